"""Every rule of a snapshot, broken one at a time, and all at once."""

# ruff: noqa: E501 - a rule per line reads as a table

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from sidecar.plan import InvalidSnapshot, decode_snapshot
from sidecar.snapshotcheck import validate
from tests.sidecar.samples import build, snapshot, target
from turnout.v1alpha1.common_pb2 import (
    BAD_EVENT_KIND_UNSPECIFIED,
    JwtClaim,
    NumberRange,
    Percentage,
    Predicate,
    Session,
    Unit,
)
from turnout.v1alpha1.snapshot_pb2 import (
    ExperimentPlan,
    ShadowPlan,
    Snapshot,
    TargetPlan,
    VariantPlan,
)

Change = Callable[[Snapshot], object]


def exp(message: Snapshot) -> ExperimentPlan:
    return message.experiments[0]


def var(message: Snapshot, index: int = 1) -> VariantPlan:
    return message.experiments[0].variants[index]


def tar(message: Snapshot) -> TargetPlan:
    return message.targets[0]


def put(message: object, **fields: object) -> object:
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def nested(depth: int) -> Predicate:
    predicate = Predicate(header="x-a", present=True)
    for _ in range(depth - 1):
        predicate = Predicate(all=[predicate])
    return predicate


def second_experiment(message: Snapshot) -> None:
    message.experiments.add().CopyFrom(exp(message))
    message.experiments[1].name = "other"


def tuned(message: Snapshot, layer: str) -> ExperimentPlan:
    """One more experiment on the target, in a layer of its own or in `models`."""
    other = message.experiments.add()
    other.CopyFrom(message.experiments[0])
    other.name, other.layer = f"e{len(message.experiments)}", layer
    other.ClearField("layer_ranges")
    if layer != "models":
        for each in other.variants:
            each.ClearField("cluster")
    return other


def part(plan: ExperimentPlan, start: int, end: int) -> ExperimentPlan:
    plan.layer_salt = "layer"
    plan.layer_ranges.add(start=start, end=end)
    return plan


def unit(message: Snapshot, **fields: Any) -> None:
    message.experiments[0].unit.CopyFrom(Unit(**fields))


RULES: list[tuple[str, Change, str]] = [
    ("unknown format", lambda m: put(m, format=2), "format"),
    ("no format", lambda m: put(m, format=0), "format"),
    ("tenant", lambda m: put(m, tenant="Risk"), "tenant"),
    ("tombstone", lambda m: m.tombstones.add(experiment="a;b"), "tombstones[0].experiment"),
    ("target twice", lambda m: m.targets.append(target()), "targets[1].name"),
    ("target name", lambda m: put(tar(m), name="a/b"), "targets[0].name"),
    ("host", lambda m: tar(m).hosts.append("a b"), "targets[0].hosts[0]"),
    ("star inside a host", lambda m: tar(m).hosts.append("a.*"), "targets[0].hosts[0]"),
    ("many hosts", lambda m: tar(m).hosts.extend(f"h{n}" for n in range(33)), "targets[0].hosts"),
    ("relative path", lambda m: put(tar(m), path_prefix="v2"), "targets[0].path_prefix"),
    ("path with query", lambda m: put(tar(m), path_prefix="/v2?a"), "targets[0].path_prefix"),
    ("path with control", lambda m: put(tar(m), path_prefix="/v2\n"), "targets[0].path_prefix"),
    ("method", lambda m: tar(m).methods.append("GE T"), "targets[0].methods[0]"),
    ("match", lambda m: tar(m).headers.add(header="X-A", present=True), "targets[0].headers[0].header"),
    ("timeout", lambda m: tar(m).timeout.FromSeconds(-1), "targets[0].timeout"),
    ("no cluster", lambda m: put(tar(m).baseline, cluster=""), "targets[0].baseline.cluster"),
    ("no upstream", lambda m: tar(m).baseline.ClearField("upstream"), "targets[0].baseline.upstream"),
    ("two upstreams", lambda m: put(tar(m).baseline.upstream, cluster="c"), "targets[0].baseline.upstream"),
    ("port", lambda m: put(tar(m).baseline.upstream, address="a:70000"), "targets[0].baseline.upstream.address"),
    ("no port", lambda m: put(tar(m).baseline.upstream, address="a"), "targets[0].baseline.upstream.address"),
    ("health path", lambda m: put(tar(m).baseline.upstream, health_path="x"), "targets[0].baseline.upstream.health_path"),
    ("same experiment", lambda m: m.experiments.add().CopyFrom(exp(m)), "experiments[1].name"),
    ("shared layer", second_experiment, "experiments[1].layer_ranges"),
    ("unknown target", lambda m: put(exp(m), target="other"), "experiments[0].target"),
    ("experiment name", lambda m: put(exp(m), name="a;b"), "experiments[0].name"),
    ("newline in a name", lambda m: put(exp(m), name="a\n"), "experiments[0].name"),
    ("epoch", lambda m: put(exp(m), epoch=0), "experiments[0].epoch"),
    ("epoch start", lambda m: put(exp(m), epoch_start_unix_ms=0), "experiments[0].epoch_start_unix_ms"),
    ("layer", lambda m: put(exp(m), layer="UI"), "experiments[0].layer"),
    ("cluster outside of models", lambda m: put(exp(m), layer="ui"), "experiments[0].variants[0].cluster"),
    ("part of a layer", lambda m: exp(m).layer_ranges.add(start=0, end=9), "experiments[0].layer_salt"),
    ("strata", lambda m: exp(m).strata.add(name="a"), "experiments[0].strata[0]"),
    ("no salt", lambda m: put(exp(m), salt=""), "experiments[0].salt"),
    ("long salt", lambda m: put(exp(m), salt="s" * 129), "experiments[0].salt"),
    ("no unit", lambda m: exp(m).unit.Clear(), "experiments[0].unit"),
    ("two units", lambda m: put(exp(m).unit, cookie="c"), "experiments[0].unit"),
    ("query", lambda m: m.experiments[0].unit.CopyFrom(Unit(query_parameter="q" * 65)), "experiments[0].unit.query_parameter"),
    ("cookie", lambda m: m.experiments[0].unit.CopyFrom(Unit(cookie="a b")), "experiments[0].unit.cookie"),
    ("no unit rule", lambda m: put(exp(m).unit, no_unit=9), "experiments[0].unit.no_unit"),
    ("pseudo unit", lambda m: put(exp(m).unit, header=":path"), "experiments[0].unit.header"),
    ("own unit", lambda m: put(exp(m).unit, header="x-turnout-a"), "experiments[0].unit.header"),
    ("own stamp", lambda m: put(exp(m).unit, header="x-turnout"), "experiments[0].unit.header"),
    ("own variant", lambda m: put(exp(m).unit, header="x-variant"), "experiments[0].unit.header"),
    ("long header", lambda m: put(exp(m).unit, header="h" * 65), "experiments[0].unit.header"),
    ("one variant", lambda m: exp(m).variants.pop(), "experiments[0].variants"),
    ("no control", lambda m: put(var(m, 0), control=False), "experiments[0].variants"),
    ("two controls", lambda m: put(var(m), control=True), "experiments[0].variants"),
    ("same variant", lambda m: put(var(m), name="control"), "experiments[0].variants[1].name"),
    ("variant name", lambda m: put(var(m), name="v;2"), "experiments[0].variants[1].name"),
    ("cluster with space", lambda m: put(var(m).cluster, cluster="a b"), "experiments[0].variants[1].cluster.cluster"),
    ("cluster with newline", lambda m: put(var(m).cluster, cluster="a\n"), "experiments[0].variants[1].cluster.cluster"),
    ("gap", lambda m: put(var(m).ranges[0], start=900_001), "experiments[0].variants"),
    ("overlap", lambda m: put(var(m).ranges[0], start=899_999), "experiments[0].variants"),
    ("short of the end", lambda m: put(var(m).ranges[0], end=999_999), "experiments[0].variants"),
    ("empty range", lambda m: var(m).ranges.add(start=5, end=5), "experiments[0].variants[1].ranges[1]"),
    ("beyond", lambda m: put(var(m).ranges[0], end=1_000_001), "experiments[0].variants[1].ranges[0]"),
    ("unsorted", lambda m: var(m).ranges.add(start=1, end=2), "experiments[0].variants[1].ranges[1]"),
    ("parameter value", lambda m: var(m).parameters.update({"a": "x\r\ny"}), "experiments[0].variants[1].parameters[a]"),
    ("parameter DEL", lambda m: var(m).parameters.update({"a": "\x7f"}), "experiments[0].variants[1].parameters[a]"),
    ("parameter umlaut", lambda m: var(m).parameters.update({"a": "ü"}), "experiments[0].variants[1].parameters[a]"),
    ("parameter key", lambda m: var(m).parameters.update({"a b": "1"}), "experiments[0].variants[1].parameters[a b]"),
    ("parameter twice", lambda m: var(m).parameters.update({"A": "1", "a": "2"}), "experiments[0].variants[1].parameters[a]"),
    ("parameters", lambda m: var(m).parameters.update({f"p{n}": "" for n in range(17)}), "experiments[0].variants[1].parameters"),
    ("shadow of none", lambda m: put(exp(m).shadow, variant="v9"), "experiments[0].shadow.variant"),
    ("shadow of control", lambda m: put(exp(m).shadow, variant="control"), "experiments[0].shadow.variant"),
    ("kind", lambda m: exp(m).kinds.append(BAD_EVENT_KIND_UNSPECIFIED), "experiments[0].kinds[2]"),
    ("slow without limit", lambda m: exp(m).ClearField("slow_after"), "experiments[0].slow_after"),
    ("long warm-up", lambda m: exp(m).warm_up.FromSeconds(3_601), "experiments[0].warm_up"),
    ("negative warm-up", lambda m: exp(m).warm_up.FromSeconds(-1), "experiments[0].warm_up"),
    ("threshold that is slow_after", lambda m: exp(m).latency_thresholds.add().FromMilliseconds(200), "experiments[0].latency_thresholds[0]"),
    ("thresholds descend", lambda m: exp(m).latency_thresholds.extend([Duration(seconds=4), Duration(seconds=3)]), "experiments[0].latency_thresholds[1]"),
    ("thresholds", lambda m: exp(m).latency_thresholds.extend(Duration(seconds=s) for s in range(1, 18)), "experiments[0].latency_thresholds"),
    ("empty segment", lambda m: exp(m).segment.SetInParent(), "experiments[0].segment"),
    ("leaf without test", lambda m: put(exp(m).segment, header="x-a"), "experiments[0].segment"),
    ("leaf and all", lambda m: exp(m).segment.CopyFrom(Predicate(header="x-a", equals="1", all=[nested(1)])), "experiments[0].segment"),
    ("two tests", lambda m: exp(m).segment.CopyFrom(Predicate(header="x-a", equals="1", prefix="1")), "experiments[0].segment"),
    ("empty prefix", lambda m: exp(m).segment.CopyFrom(Predicate(header="x-a", prefix="")), "experiments[0].segment.prefix"),
    ("deep", lambda m: exp(m).segment.CopyFrom(nested(9)), "experiments[0].segment.all[0].all[0].all[0].all[0].all[0].all[0].all[0].all[0]"),
    ("wide", lambda m: exp(m).segment.CopyFrom(Predicate(any=[nested(1)] * 65)), "experiments[0].segment"),
    ("own header", lambda m: exp(m).segment.CopyFrom(Predicate(negated=Predicate(header="x-variant", present=True))), "experiments[0].segment.not.header"),
    ("values", lambda m: exp(m).segment.CopyFrom(Predicate(header="x-a", in_values=map(str, range(257)))), "experiments[0].segment.in"),
    ("two shapes", lambda m: exp(m).segment.CopyFrom(Predicate(header="x-a", equals="1", percentage=Percentage(salt="p"))), "experiments[0].segment"),
    ("regex", lambda m: exp(m).segment.CopyFrom(Predicate(header="x-a", regex="(")), "experiments[0].segment.regex"),
    ("look-ahead", lambda m: exp(m).segment.CopyFrom(Predicate(header="x-a", regex="(?=a)")), "experiments[0].segment.regex"),
    ("large regex", lambda m: exp(m).segment.CopyFrom(Predicate(header="x-a", regex="[a-z]{500}")), "experiments[0].segment.regex"),
    ("empty regex", lambda m: exp(m).segment.CopyFrom(Predicate(header="x-a", regex="")), "experiments[0].segment.regex"),
    ("long regex", lambda m: exp(m).segment.CopyFrom(Predicate(header="x-a", regex="a" * 257)), "experiments[0].segment.regex"),
    ("range of nothing", lambda m: exp(m).segment.CopyFrom(Predicate(header="x-a", range=NumberRange())), "experiments[0].segment.range"),
    ("range upside down", lambda m: exp(m).segment.CopyFrom(Predicate(header="x-a", range=NumberRange(min=2, max=1))), "experiments[0].segment.range"),
    ("range of NaN", lambda m: exp(m).segment.CopyFrom(Predicate(header="x-a", range=NumberRange(min=float("nan")))), "experiments[0].segment.range"),
    ("range without end", lambda m: exp(m).segment.CopyFrom(Predicate(header="x-a", range=NumberRange(max=float("inf")))), "experiments[0].segment.range"),
    ("semver", lambda m: exp(m).segment.CopyFrom(Predicate(header="x-a", semver="1.x")), "experiments[0].segment.semver"),
    ("percentage without salt", lambda m: exp(m).segment.CopyFrom(Predicate(percentage=Percentage(buckets=1))), "experiments[0].segment.percentage.salt"),
    ("percentage by the own salt", lambda m: exp(m).segment.CopyFrom(Predicate(percentage=Percentage(salt="salt"))), "experiments[0].segment.percentage.salt"),
    ("percentage beyond", lambda m: exp(m).segment.CopyFrom(Predicate(percentage=Percentage(salt="p", buckets=1_000_001))), "experiments[0].segment.percentage.buckets"),
    ("match by regex", lambda m: tar(m).headers.append(Predicate(header="x-a", regex="a")), "targets[0].headers[0]"),
    ("match by percentage", lambda m: tar(m).headers.append(Predicate(percentage=Percentage(salt="p"))), "targets[0].headers[0].percentage"),
    ("model name", lambda m: put(tar(m), model_name="a/b"), "targets[0].model_name"),
    ("model version alone", lambda m: put(tar(m), model_version="1"), "targets[0].model_version"),
    ("claim", lambda m: unit(m, jwt_claim=JwtClaim(claim="a..b", payload_in_metadata="p")), "experiments[0].unit.jwt_claim.claim"),
    ("claim of nobody", lambda m: unit(m, jwt_claim=JwtClaim(claim="sub")), "experiments[0].unit.jwt_claim.payload_in_metadata"),
    ("claim of both", lambda m: unit(m, jwt_claim=JwtClaim(claim="sub", unverified=True, payload_in_metadata="p")), "experiments[0].unit.jwt_claim.payload_in_metadata"),
    ("verified claim's header", lambda m: unit(m, jwt_claim=JwtClaim(claim="sub", payload_in_metadata="p", header="x-jwt")), "experiments[0].unit.jwt_claim.header"),
    ("claim's header", lambda m: unit(m, jwt_claim=JwtClaim(claim="sub", unverified=True, header="X")), "experiments[0].unit.jwt_claim.header"),
    ("session cookie", lambda m: unit(m, session=Session(cookie="a b")), "experiments[0].unit.session.cookie"),
    ("session age", lambda m: unit(m, session=Session(max_age=Duration(seconds=59))), "experiments[0].unit.session.max_age"),
    ("holdout without salt", lambda m: exp(m).holdout.ranges.add(start=0, end=1), "experiments[0].holdout.salt"),
    ("holdout beyond", lambda m: exp(m).holdout.ranges.add(start=0, end=1_000_001), "experiments[0].holdout.ranges[0]"),
    ("override of none", lambda m: exp(m).overrides.add(unit="", variant="v2"), "experiments[0].overrides[0].unit"),
    ("long override", lambda m: exp(m).overrides.add(unit="u" * 257, variant="v2"), "experiments[0].overrides[0].unit"),
    ("override to none", lambda m: exp(m).overrides.add(unit="u", variant="v9"), "experiments[0].overrides[0].variant"),
    ("override twice", lambda m: [exp(m).overrides.add(unit="u", variant=v) for v in ("v2", "control")], "experiments[0].overrides[1].unit"),
    ("many overrides", lambda m: [exp(m).overrides.add(unit=f"{n}", variant="v2") for n in range(1_025)], "experiments[0].overrides"),
    ("shadow without upstream", lambda m: tuned(m, "ui").shadow.CopyFrom(ShadowPlan(variant="v2")), "experiments[1].shadow"),
    ("layer salts differ", lambda m: [put(exp(m), layer_salt="a"), put(tuned(m, "models"), layer_salt="b")], "experiments[1].layer_salt"),
    ("layer ranges overlap", lambda m: [part(exp(m), 0, 500), part(tuned(m, "models"), 499, 600)], "experiments[1].layer_ranges"),
    ("parameters of two layers", lambda m: [var(m).parameters.update({"K": "1"}), tuned(m, "ui").variants[0].parameters.update({"k": "2"})], "experiments[1].variants"),
    ("many layers", lambda m: [tuned(m, f"l{n}") for n in range(16)], "experiments[16].layer"),
    ("many experiments", lambda m: [part(tuned(m, "ui"), n, n + 1) for n in range(64)], "experiments[64].target"),
    ("long value", lambda m: exp(m).segment.CopyFrom(Predicate(header="x-a", equals="v" * 257)), "experiments[0].segment.equals"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "field"), [rule[1:] for rule in RULES], ids=[r[0] for r in RULES]
)
def test_snapshot_is_refused_with_the_field_when_a_rule_is_broken(
    change: Change, field: str
) -> None:
    message = snapshot()
    assert validate(message) == []
    change(message)
    violations = validate(message)
    assert field in [violation.field for violation in violations], violations
    with pytest.raises(InvalidSnapshot) as refused:
        build(message)
    assert list(refused.value.violations) == violations


def test_all_violations_are_reported_when_several_rules_are_broken() -> None:
    message = snapshot()
    put(message, tenant="")
    put(exp(message), epoch=0, salt="", layer="UI")
    var(message).parameters["a"] = "\n"
    put(var(message), name="v;2")
    fields = {violation.field for violation in validate(message)}
    assert fields >= {
        "tenant",
        "experiments[0].epoch",
        "experiments[0].salt",
        "experiments[0].layer",
        "experiments[0].variants[1].parameters[a]",
        "experiments[0].variants[1].name",
    }


@pytest.mark.parametrize(
    ("claim", "rule"),
    [
        (JwtClaim(claim="sub"), "must be there unless"),
        (JwtClaim(claim="sub", unverified=True, payload_in_metadata="p"), "must be absent: the"),
    ],
)
def test_rule_says_what_to_do_when_a_claims_payload_is_wrong(claim: JwtClaim, rule: str) -> None:
    message = snapshot()
    unit(message, jwt_claim=claim)
    [found] = validate(message)
    assert found.field == "experiments[0].unit.jwt_claim.payload_in_metadata"
    assert found.rule.startswith(rule)


def test_violation_shows_the_value_shortened_when_it_is_long() -> None:
    message = snapshot()
    put(exp(message), name="x" * 1000)
    [violation] = [v for v in validate(message) if v.field == "experiments[0].name"]
    assert violation.value == "x" * 80


@pytest.mark.parametrize(
    "change",
    [
        lambda m: exp(m).layer_ranges.add(start=0, end=1_000_000),
        lambda m: tar(m).hosts.extend(["*", "*.svc", "a.b", "127.0.0.1", "[::1]"]),
        lambda m: put(tar(m), path_prefix=""),
        lambda m: put(var(m).cluster, cluster="outbound|8080||svc.ns.svc.cluster.local"),
        lambda m: put(tar(m).baseline.upstream, address="[::1]:80"),
        lambda m: exp(m).segment.CopyFrom(nested(8)),
        lambda m: exp(m).segment.CopyFrom(Predicate(header="x-a", equals="")),
        lambda m: var(m).parameters.update({"a": "two words", "b": ""}),
        lambda m: m.experiments.pop(),
        lambda m: tuned(m, "ui"),
        lambda m: [part(exp(m), 0, 500), part(tuned(m, "models"), 500, 501)],
        lambda m: [tuned(m, f"l{n}") for n in range(15)],
        lambda m: [part(tuned(m, "ui"), n, n + 1) for n in range(63)],
        lambda m: unit(m, session=Session()),
        lambda m: unit(m, query_parameter="id"),
        lambda m: unit(m, jwt_claim=JwtClaim(claim="a.b", payload_in_metadata="p")),
        lambda m: unit(m, jwt_claim=JwtClaim(claim="sub", unverified=True)),
        lambda m: put(tar(m), model_name="fraud.v-2_x", model_version="2"),
        lambda m: exp(m).overrides.add(unit="\u00fc", variant="control"),
        lambda m: put(exp(m).holdout, salt="h"),
        lambda m: exp(m).segment.CopyFrom(Predicate(percentage=Percentage(salt="p", buckets=0))),
        lambda m: exp(m).segment.CopyFrom(Predicate(header="x-a", regex="[a-z]{1,40}")),
        lambda m: exp(m).segment.CopyFrom(Predicate(header="x-a", range=NumberRange(min=0))),
        lambda m: exp(m).segment.CopyFrom(Predicate(header="x-a", semver="^1.2.3 !=1.5.0")),
    ],
)
def test_snapshot_is_accepted_when_unusual_but_lawful(change: Change) -> None:
    message = snapshot()
    change(message)
    assert validate(message) == []


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x12\x01\xff", b"\0" * (16 * 1024 * 1024 + 1)])
def test_bytes_are_refused_when_they_are_no_snapshot(data: bytes) -> None:
    with pytest.raises(InvalidSnapshot) as refused:
        decode_snapshot(data)
    assert [violation.field for violation in refused.value.violations] == ["snapshot"]


def test_plan_is_refused_when_the_key_has_the_wrong_length() -> None:
    from sidecar.plan import Plan

    with pytest.raises(ValueError, match="32"):
        Plan.build(snapshot(), tenant_key=b"short", dead={}, open_gates=None, slots={})
