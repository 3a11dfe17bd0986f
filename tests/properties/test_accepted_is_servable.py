"""What the control plane accepts, the sidecar serves and Envoy's files can say.

The two sides check by rules of their own. This draws resources whose fields come from pools of odd
values and asserts: no violation here means no violation there, at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError
from hypothesis import event, given, settings
from hypothesis import strategies as st

from control.model import (
    experiment_with_defaults,
    shadow_at,
    split_at,
    unimplemented_experiment,
    validate_experiment,
    validate_holdout,
    validate_target,
)
from control.snapshot import LayerFull, RunningExperiment, build, encode, grow, reserve
from sidecar.envoyfiles import documents
from sidecar.plan import Plan
from sidecar.snapshotcheck import validate
from tests.control.resources import EXPERIMENT, TARGET, document
from turnout.v1alpha1.common_pb2 import Predicate, Unit, Upstream
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec
from turnout.v1alpha1.experiment_service_pb2 import HoldoutSpec
from turnout.v1alpha1.snapshot_pb2 import Snapshot
from turnout.v1alpha1.target_pb2 import RequestMatch, TargetSpec

odd_texts = st.sampled_from(
    ["", "a", "A", "x-user", "*", "a b", " a", "a\n", "a\x00", "é", "a,b", "a;b", "a=b", '"', "(a)",
     ":path", "host", "x-turnout-a", "x-envoy-a", "x-param-a", "%", "${a}", "\u2028", "a" * 64,
     "a" * 65, "a" * 300, "~", "`", "|", "a.b", "a_b", "-a", "0"]
)  # fmt: skip
hosts = st.one_of(
    odd_texts, st.sampled_from(["*.a", "a:80", "[::1]", "[::1]:8080", "10.0.0.1", "*.a.b:81", "a."])
)
addresses = st.one_of(
    odd_texts,
    st.sampled_from(
        ["a:1", "a.b:65535", "[::1]:80", "10.1.2.3:8", "a_b:9", "a.:1", "a:070", "x:0"]
    ),
)
paths = st.one_of(odd_texts, st.sampled_from(["/", "/v2", "/a%20b", "/a//b", "/~!$&'()*+,;=:@"]))
regexes = st.one_of(
    odd_texts, st.sampled_from(["[a-z]+", "(", "(?=a)", "a{99}", "a{200}", "\\pL+", "(?i)é", "^$"])
)
constraints = st.one_of(
    odd_texts,
    st.sampled_from(
        [">=1.2.0 <2.0.0", "1.2.3", "^0.0.1", "~1.2.3-rc.1", "!=v1.0.0", ">= 1.0.0", "=1.0",
         "^01.0.0", "=1.0.0+b", " ", "9" * 20 + ".0.0", "=1.0.0-a..b", "=1.0.0-00", "=1.0.0-0a"]
    ),
)  # fmt: skip
numbers = st.sampled_from([0.0, -1.5, 1e300, float("inf"), float("-inf"), float("nan"), 18.0])
held_out_fractions = st.sampled_from([0.0, 1e-7, 1e-6, 0.05, 1 / 3, 0.5, 0.6])
fractions = st.sampled_from([0.0, 1e-6, 1e-7, 0.05, 1 / 3, 0.5, 0.999999, 1.0, 1.1, -0.1])


def leaves(draw: Any) -> Predicate:
    """A predicate with one header."""
    leaf = Predicate(header=draw(odd_texts))
    kinds = [
        "equals",
        "prefix",
        "in_values",
        "present",
        "none",
        "regex",
        "semver",
        "range",
        "share",
    ]
    kind = draw(st.sampled_from(kinds))
    if kind == "share":
        leaf.header = draw(st.sampled_from(["", "", "", "a"]))
        leaf.percentage.salt, leaf.percentage.fraction = draw(odd_texts), draw(fractions)
        leaf.percentage.buckets = draw(st.sampled_from([0, 0, 0, 1]))
    elif kind == "range":
        leaf.range.SetInParent()
        for side in draw(st.lists(st.sampled_from(["min", "max"]), max_size=2)):
            setattr(leaf.range, side, draw(numbers))
    elif kind == "regex":
        leaf.regex = draw(regexes)
    elif kind == "semver":
        leaf.semver = draw(constraints)
    elif kind == "in_values":
        leaf.in_values.extend(draw(st.lists(odd_texts, max_size=3)))
    elif kind == "present":
        leaf.present = draw(st.booleans())
    elif kind != "none":
        setattr(leaf, kind, draw(odd_texts))
    return leaf


@st.composite
def predicates(draw: Any) -> Predicate:
    """A predicate of up to two levels."""
    kind = draw(st.sampled_from(["leaf", "all", "any", "not"]))
    if kind == "leaf":
        return leaves(draw)
    if kind == "not":
        return Predicate(negated=leaves(draw))
    parts = [leaves(draw) for _ in range(draw(st.integers(0, 3)))]
    return Predicate(all=parts) if kind == "all" else Predicate(any=parts)


@st.composite
def targets(draw: Any) -> TargetSpec:
    """A good target with an odd field or none."""
    spec = document(TARGET).spec
    assert isinstance(spec, TargetSpec)
    changes: dict[str, Callable[[], Any]] = {
        "hosts": lambda: spec.match.hosts.append(draw(hosts)),
        "prefix": lambda: setattr(spec.match, "path_prefix", draw(paths)),
        "method": lambda: spec.match.methods.append(
            draw(st.sampled_from(["GET", "get", "", "A B"]))
        ),
        "header": lambda: spec.match.headers.append(draw(predicates())),
        "model": lambda: setattr(spec.match, "model_name", draw(odd_texts)),
        "model version": lambda: spec.match.MergeFrom(
            RequestMatch(model_name="a", model_version=draw(odd_texts))
        ),
        "address": lambda: setattr(spec.baseline.upstream, "address", draw(addresses)),
        "cluster": lambda: spec.baseline.upstream.CopyFrom(Upstream(cluster=draw(odd_texts))),
        "health": lambda: setattr(spec.baseline.upstream, "health_path", draw(paths)),
        "sni": lambda: setattr(spec.baseline.upstream.tls, "sni", draw(odd_texts)),
        "timeout": lambda: setattr(spec.timeout, "nanos", draw(st.integers(0, 999_999_999))),
    }
    for name in draw(st.lists(st.sampled_from(sorted(changes)), max_size=1)):
        changes[name]()
    return spec


@st.composite
def claims(draw: Any) -> Unit:
    """A unit from a token, odd or not."""
    unit = Unit()
    unit.jwt_claim.claim = draw(
        st.one_of(odd_texts, st.sampled_from(["sub", "a..b", ".", "a.b.c"]))
    )
    unit.jwt_claim.unverified = draw(st.booleans())
    unit.jwt_claim.payload_in_metadata = draw(st.one_of(st.just(""), odd_texts))
    unit.jwt_claim.header = draw(st.one_of(st.just(""), odd_texts))
    return unit


@st.composite
def sessions(draw: Any) -> Unit:
    """A unit from a cookie of ours, odd or not."""
    unit = Unit()
    unit.session.cookie = draw(st.one_of(st.just(""), odd_texts))
    if draw(st.booleans()):
        unit.session.max_age.seconds = draw(
            st.sampled_from([0, -1, 59, 60, 8760 * 3600, 8760 * 3600 + 1])
        )
        unit.session.max_age.nanos = draw(st.sampled_from([0, 0, 1, 999_999_999]))
    return unit


@st.composite
def neighbours(draw: Any) -> ExperimentSpec:
    """Another experiment on the same target: of the same layer, or of one that routes nothing."""
    spec = document(EXPERIMENT).spec
    assert isinstance(spec, ExperimentSpec)
    spec.layer.reserve = draw(st.sampled_from([0.5, 0.25, 1e-6]))
    if draw(st.booleans()):
        return spec
    del spec.steps[0]
    spec.layer.name = "prices"
    spec.unit.CopyFrom(Unit(query_parameter="u"))
    for index, variant in enumerate(spec.variants):
        variant.ClearField("upstream")
        variant.ClearField("parameters")
        variant.parameters[draw(st.sampled_from(["threshold", "limit", f"k{index}"]))] = "1"
    return spec


@st.composite
def experiments(draw: Any) -> ExperimentSpec:
    """A good experiment with up to two odd fields."""
    spec = document(EXPERIMENT).spec
    assert isinstance(spec, ExperimentSpec)
    spec.layer.reserve = 0.5
    candidate = spec.variants[1]
    changes: dict[str, Callable[[], Any]] = {
        "header": lambda: setattr(spec.unit, "header", draw(odd_texts)),
        "cookie": lambda: spec.unit.CopyFrom(Unit(cookie=draw(odd_texts))),
        "random": lambda: spec.unit.CopyFrom(Unit(random=True)),
        "parameter of a query": lambda: spec.unit.CopyFrom(Unit(query_parameter=draw(odd_texts))),
        "claim": lambda: spec.unit.CopyFrom(draw(claims())),
        "session": lambda: spec.unit.CopyFrom(draw(sessions())),
        "override": lambda: spec.overrides.add(
            units=draw(st.lists(odd_texts, max_size=3)),
            variant=draw(st.sampled_from(["v2", "control", "v9"])),
        ),
        "layer": lambda: setattr(spec.layer, "name", draw(odd_texts)),
        "reserve": lambda: setattr(spec.layer, "reserve", draw(fractions)),
        "segment": lambda: spec.segment.CopyFrom(draw(predicates())),
        "name": lambda: setattr(candidate, "name", draw(odd_texts)),
        "address": lambda: setattr(candidate.upstream, "address", draw(addresses)),
        "cluster": lambda: candidate.upstream.CopyFrom(Upstream(cluster=draw(odd_texts))),
        "parameter": lambda: candidate.parameters.update({draw(odd_texts): draw(odd_texts)}),
        "split": lambda: spec.steps[2].canary.split.update({"v2": draw(fractions)}),
        "split of v3": lambda: spec.steps[2].canary.split.update({"v3": draw(fractions)}),
        "shadow": lambda: setattr(spec.steps[0].shadow, "fraction", draw(fractions)),
        "slo": lambda: setattr(
            spec.metrics.guardrails[1].slo, "nanos", draw(st.integers(0, 999_999_999))
        ),
        "salt": lambda: setattr(spec, "salt", draw(odd_texts)),
    }
    for name in draw(st.lists(st.sampled_from(sorted(changes)), max_size=2)):
        changes[name]()
    return spec


@settings(max_examples=300, deadline=None)
@given(targets(), experiments(), st.none() | neighbours(), held_out_fractions)
def test_snapshot_is_served_at_every_step_when_its_resources_were_accepted(
    target: TargetSpec, spec: ExperimentSpec, neighbour: ExperimentSpec | None, held_out: float
) -> None:
    beside = {} if neighbour is None else {"fraud-v4": neighbour}
    faults = [
        *validate_target("risk", "fraud", target),
        *validate_experiment("risk", "fraud-v2", spec, target, beside),
        *validate_holdout("risk", HoldoutSpec(fraction=held_out)),
        *unimplemented_experiment(spec),
    ]
    event("refused" if faults else "accepted")
    if faults:
        return
    spec.salt = spec.salt or "s"
    running = []
    for step in range(len(spec.steps)):
        try:
            running = started({"fraud-v2": spec, **beside}, step, held_out)
        except LayerFull:
            event("the layer is full")
            return
        payload = encode(build("risk", step + 1, {"fraud": target}, running))
        snapshot = Snapshot.FromString(payload)
        assert validate(snapshot) == []
        Plan.build(snapshot, tenant_key=bytes(32), dead={}, open_gates=None, slots={})
        documents(snapshot, enabled=[(run.name, run.epoch) for run in running])
    event(f"{len(running)} experiments")


def started(
    specs: dict[str, ExperimentSpec], step: int, held_out: float
) -> list[RunningExperiment]:
    """Experiments of one target at a step (or their last), started one after the other.

    Raises:
        LayerFull: One of them is refused at its start.
    """
    taken: dict[str, list[Any]] = {}
    running = []
    for name, spec in specs.items():
        at = min(step, len(spec.steps) - 1)
        allocation: Any = {}
        for earlier in range(at + 1):
            allocation = grow(allocation, split_at(spec, earlier), control=spec.control)
        full = experiment_with_defaults(spec)
        full.salt = full.salt or name
        held = taken.setdefault(full.layer.name, [])
        held.append(reserve(held, full.layer.reserve))
        run = RunningExperiment(
            name,
            full,
            step + 1,
            1,
            allocation,
            shadow_at(spec, at),
            layer_ranges=held[-1],
            holdout=("h", held_out),
        )
        running.append(run)
    return running


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_validation_ends_in_violations_when_a_message_is_damaged(data: st.DataObject) -> None:
    for text, kind in ((TARGET, TargetSpec), (EXPERIMENT, ExperimentSpec)):
        damaged = bytearray(document(text).spec.SerializeToString())
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        try:
            spec = kind.FromString(bytes(damaged))
        except DecodeError:  # gRPC answers it
            continue
        if isinstance(spec, TargetSpec):
            found = validate_target("risk", "x", spec)
        else:
            found = validate_experiment("risk", "x", spec, None, {"y": spec})
            unimplemented_experiment(spec)
        assert all(item.field and item.rule and item.value.isprintable() for item in found)
