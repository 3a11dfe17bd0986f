"""Units, predicates, layers, overrides, model names in resources: what is good, what refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from control.commands.snapshot import build
from control.model import (
    experiment_with_defaults,
    plain,
    same_unit,
    to_yaml,
    validate_experiment,
    validate_target,
)
from control.model.predicates import Use, check_predicate
from control.model.violations import Report
from control.snapshot import LayerFull, reserve
from tests.control.clirunning import turnout
from tests.control.resources import EXPERIMENT, TARGET, document, replaced, violations_of
from turnout.contract import BUCKET_COUNT
from turnout.v1alpha1.common_pb2 import Predicate
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec
from turnout.v1alpha1.snapshot_pb2 import Snapshot

UNIT = "unit: {header: x-user-id, noUnit: skip}"
SEGMENT = "segment: {all: [{header: x-country, in: [DE, FR]}]}"
SCORING = """
kind: Experiment
metadata: {name: scoring, tenant: risk}
spec:
  target: fraud
  unit: {cookie: uid}
  layer: {name: scoring}
  control: control
  variants:
  - {name: control}
  - {name: high, parameters: {limit: "0.9"}}
  steps:
  - canary: {split: {high: 0.5}, for: 1h}
"""


def spec_of(text: str) -> ExperimentSpec:
    """The spec of a good experiment."""
    spec = document(text).spec
    assert isinstance(spec, ExperimentSpec)
    return spec


# -- Good ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "unit",
    [
        "{cookie: __Host-uid}",
        "{random: true}",
        "{queryParameter: user}",
        "{session: {}}",
        "{session: {cookie: sid, maxAge: 1m}}",
        "{jwtClaim: {claim: realm.sub, payloadInMetadata: claims}}",
        "{jwtClaim: {claim: sub, unverified: true}}",
        "{jwtClaim: {claim: sub, unverified: true, header: x-token}}",
    ],
)
def test_unit_is_good_and_reads_back_when_it_is_one_of_them(unit: str) -> None:
    text = replaced(EXPERIMENT, UNIT, f"unit: {unit}")
    assert violations_of(text) == []
    spec = experiment_with_defaults(spec_of(text))
    written = {"kind": "Experiment", "metadata": {"name": "x"}, "spec": plain(spec)}
    assert spec_of(to_yaml([written])) == spec
    assert experiment_with_defaults(spec) == spec


def test_defaults_are_filled_when_a_unit_leaves_them_out() -> None:
    session = experiment_with_defaults(
        spec_of(replaced(EXPERIMENT, UNIT, "unit: {session: {}}"))
    ).unit.session
    assert (session.cookie, session.max_age.seconds) == ("turnout-session", 720 * 3600)
    claim = experiment_with_defaults(
        spec_of(replaced(EXPERIMENT, UNIT, "unit: {jwtClaim: {claim: sub, unverified: true}}"))
    ).unit.jwt_claim
    assert claim.header == "authorization"


@pytest.mark.parametrize(
    "leaf",
    [
        "{header: x-app, regex: '[a-z]+(-beta)?'}",
        "{header: x-age, range: {min: 18}}",
        "{header: x-age, range: {max: 1e3}}",
        "{header: x-age, range: {min: -0.5, max: 0.5}}",
        "{header: x-app, semver: '>=1.2.0 <2.0.0-rc.1'}",
        "{header: x-app, semver: '^1.2.3'}",
        "{header: x-app, semver: 'v1.2.3'}",
        "{percentage: {salt: beta, fraction: 0.3}}",
        "{not: {percentage: {salt: beta, fraction: 1}}}",
    ],
)
def test_segment_is_good_when_its_leaf_is_one_of_them(leaf: str) -> None:
    text = replaced(
        EXPERIMENT, SEGMENT, f"segment: {{any: [{leaf}, {{header: a, present: true}}]}}"
    )
    assert violations_of(text) == []


def test_two_layers_are_good_together_when_their_parameters_differ() -> None:
    assert violations_of(f"{TARGET}---{EXPERIMENT}---{SCORING}", whole=True) == []


# -- Refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "field", "rule"),
    [
        ("{}", "", "exactly one of header, cookie, random, jwtClaim, session, queryParameter"),
        ("{header: a, cookie: b}", "", "exactly one of"),
        ("{session: {}, queryParameter: q}", "", "exactly one of"),
        ("{cookie: 'a b'}", ".cookie", "cookie name"),
        (f"{{queryParameter: {'q' * 65}}}", ".queryParameter", "at most 64 bytes"),
        ("{session: {cookie: 'a;b'}}", ".session.cookie", "cookie name"),
        ("{session: {cookie: __Host-id}}", ".session.cookie", "without Secure"),
        ("{session: {cookie: __secure-id}}", ".session.cookie", "without Secure"),
        ("{session: {maxAge: 59s}}", ".session.maxAge", "at least 1m"),
        ("{session: {maxAge: 366d}}", ".session.maxAge", "at most 365d"),
        ("{session: {maxAge: 60.5s}}", ".session.maxAge", "whole seconds"),
        ("{jwtClaim: {claim: sub}}", ".jwtClaim.payloadInMetadata", "required"),
        ("{jwtClaim: {payloadInMetadata: p}}", ".jwtClaim.claim", "required"),
        ("{jwtClaim: {claim: a..b, payloadInMetadata: p}}", ".jwtClaim.claim", "between the dots"),
        (
            "{jwtClaim: {claim: a, payloadInMetadata: p, unverified: true}}",
            ".jwtClaim.payloadInMetadata",
            "name one of the two",
        ),
        (
            "{jwtClaim: {claim: a, payloadInMetadata: p, header: x-a}}",
            ".jwtClaim.header",
            "only with unverified",
        ),
        (
            "{jwtClaim: {claim: a, unverified: true, header: x-variant}}",
            ".jwtClaim.header",
            "reserves",
        ),
    ],
)
def test_unit_is_refused_by_field_and_rule_when_it_is_wrong(
    unit: str, field: str, rule: str
) -> None:
    (found,) = violations_of(replaced(EXPERIMENT, UNIT, f"unit: {unit}"))
    assert found.field == f"spec.unit{field}"
    assert rule in found.rule
    assert found.line > 0


@pytest.mark.parametrize(
    ("segment", "field", "rule"),
    [
        ("{header: a, regex: '('}", ".regex", "RE2 expression: missing )"),
        ("{header: a, regex: '(?=a)'}", ".regex", "RE2 expression"),
        ("{header: a, regex: 'a{200}'}", ".regex", "204 instructions, at most 100"),
        ("{header: a, regex: ''}", ".regex", "required"),
        ("{header: a, range: {}}", ".range", "min, max or both"),
        ("{header: a, range: {min: 2, max: 2}}", ".range.max", "above min"),
        ("{header: a, range: {min: .nan}}", ".range.min", "finite"),
        ("{header: a, range: {max: .inf}}", ".range.max", "finite"),
        ("{header: a, semver: '1.2'}", ".semver", "MAJOR.MINOR.PATCH"),
        ("{header: a, semver: '>= 1.2.0'}", ".semver", "MAJOR.MINOR.PATCH"),
        ("{header: a, semver: '>=01.2.0'}", ".semver", "MAJOR.MINOR.PATCH"),
        ("{header: a, semver: ' '}", ".semver", "MAJOR.MINOR.PATCH"),
        ("{header: a, semver: ''}", ".semver", "required"),
        (
            "{header: a, equals: b, semver: '1.2.3'}",
            "",
            "exactly one of equals, in, prefix, present, regex",
        ),
        ("{regex: a}", "", "exactly one of header, percentage"),
        ("{percentage: {fraction: 0.1}}", ".percentage.salt", "1 to 64"),
        ("{percentage: {salt: a, fraction: 1.1}}", ".percentage.fraction", "at most 1"),
        ("{percentage: {salt: a, fraction: 1.0e-9}}", ".percentage.fraction", "at least 1e-06"),
        (
            "{percentage: {salt: a, fraction: 0.1, buckets: 1}}",
            ".percentage.buckets",
            "leave it out",
        ),
        ("{percentage: {salt: pepper, fraction: 0.1}}", ".percentage.salt", "own salt"),
        ("{header: a, present: true, percentage: {salt: a, fraction: 0.1}}", "", "exactly one of"),
    ],
)
def test_segment_is_refused_by_field_and_rule_when_it_is_wrong(
    segment: str, field: str, rule: str
) -> None:
    text = replaced(EXPERIMENT, SEGMENT, f"segment: {segment}\n  salt: pepper")
    found = {item.field: item.rule for item in violations_of(text)}
    assert rule in found[f"spec.segment{field}"]


@pytest.mark.parametrize("leaf", ["regex: a", "range: {min: 1}", "semver: 1.2.3"])
def test_target_is_refused_when_its_match_has_what_routes_cannot_say(leaf: str) -> None:
    text = replaced(TARGET, "match: {", f"match: {{headers: [{{header: a, {leaf}}}], ")
    rules = {item.field: item.rule for item in violations_of(text)}
    name = leaf.partition(":")[0]
    assert "which Envoy's routes repeat" in rules[f"spec.match.headers[0].{name}"]


def test_percentage_is_refused_when_it_is_in_a_match() -> None:
    report = Report()
    predicate = Predicate()
    predicate.percentage.salt = "a"
    check_predicate(report, "p", predicate, Use(target=True))
    assert [item.field for item in report.violations] == ["p.percentage"]


@pytest.mark.parametrize(
    ("overrides", "field", "rule"),
    [
        ("[{units: [a], variant: v9}]", "[0].variant", "must name a variant: control, v2, v3"),
        ("[{units: [], variant: v2}]", "[0].units", "1 to 256"),
        (
            "[{units: [a, a], variant: v2}]",
            "[0].units[1]",
            "is in spec.overrides[0].units[0] already",
        ),
        (
            "[{units: [a], variant: v2}, {units: [a], variant: v3}]",
            "[1].units[0]",
            "is in spec.overrides[0].units[0] already",
        ),
        ("[{units: [' a'], variant: v2}]", "[0].units[0]", "blanks"),
        ("[{units: [''], variant: v2}]", "[0].units[0]", "1 to 256 bytes"),
        (f"[{{units: [{'x' * 257}], variant: v2}}]", "[0].units[0]", "at most 256 bytes"),
    ],
)
def test_overrides_are_refused_by_field_and_rule_when_they_are_wrong(
    overrides: str, field: str, rule: str
) -> None:
    (found,) = violations_of(
        replaced(EXPERIMENT, "  onFinish:", f"  overrides: {overrides}\n  onFinish:")
    )
    assert found.field == f"spec.overrides{field}"
    assert rule in found.rule


@pytest.mark.parametrize(
    ("unit", "value", "rule"),
    [
        ("session: {}", "alice", "32 digits of 0-9 a-f"),
        ("session: {}", "0123456789ABCDEF0123456789ABCDEF", "32 digits of 0-9 a-f"),
        ("session: {}", "0123456789abcdef0123456789abcdef", ""),
        ("cookie: uid", "a;b", "semicolon"),
        ("queryParameter: user", "a;b", ""),
        ("queryParameter: user", "' a'", ""),
    ],
)
def test_override_is_refused_when_no_request_can_have_the_unit(
    unit: str, value: str, rule: str
) -> None:
    text = replaced(EXPERIMENT, "header: x-user-id, noUnit: skip", unit)
    overrides = f"  overrides: [{{units: [{value}], variant: v2}}]\n  onFinish:"
    found = violations_of(replaced(text, "  onFinish:", overrides))
    assert [item.field for item in found] == (["spec.overrides[0].units[0]"] if rule else [])
    assert all(rule in item.rule for item in found)


def test_overrides_are_refused_when_there_are_too_many_or_no_units_to_name() -> None:
    spec = spec_of(EXPERIMENT)
    for index in range(5):
        units = [f"u{index}-{number}" for number in range(205)]
        spec.overrides.add(units=units, variant="v2")
    (many,) = validate_experiment("risk", "x", spec, None, {})
    assert many.value == "5 entries, 1025 units"
    del spec.overrides[4]
    assert validate_experiment("risk", "x", spec, None, {}) == []
    spec.unit.Clear()
    spec.unit.random = True
    (random,) = validate_experiment("risk", "x", spec, None, {})
    assert "no request has a unit that could be named" in random.rule


def test_layer_is_refused_everywhere_it_would_route_when_it_is_not_models() -> None:
    text = replaced(EXPERIMENT, "name: models", "name: prices")
    text = replaced(text, "onFinish: hold", "onFinish: promote")
    found = {item.field: item.rule for item in violations_of(text)}
    assert set(found) >= {
        "spec.variants[1].upstream",
        "spec.variants[2].upstream",
        "spec.steps[0].shadow",
        "spec.onFinish",
    }
    assert "only the layer models names upstreams, not prices" in found["spec.variants[1].upstream"]


def test_both_are_refused_when_two_layers_set_the_same_parameter() -> None:
    other = replaced(SCORING, "limit:", "threshold:")
    found = violations_of(f"{TARGET}---{EXPERIMENT}---{other}")
    assert [item.field for item in found] == [
        "spec.variants[1].parameters.threshold",
        "spec.variants[1].parameters.threshold",
    ]
    assert (
        "experiment scoring in layer scoring of this target sets x-param-threshold" in found[0].rule
    )


def test_both_are_refused_when_two_layers_have_one_salt() -> None:
    """They would not be independent: v2 of the one is v2 of the other for every user."""
    one, other = (
        re.sub("\n  salt: .*", "", text).replace("target: fraud", "target: fraud\n  salt: same")
        for text in (EXPERIMENT, SCORING)
    )
    found = violations_of(f"{TARGET}---{one}---{other}")
    assert [(item.field, item.value) for item in found] == [("spec.salt", "same")] * 2
    assert "leave it out to get one of its own" in found[0].rule


def test_second_is_refused_when_the_first_has_too_much_of_the_layer() -> None:
    first = replaced(EXPERIMENT, "reserve: 1.0", "reserve: 0.7")
    second = replaced(
        replaced(EXPERIMENT, "reserve: 1.0", "reserve: 0.3"), "fraud-v2, ten", "z, ten"
    )
    assert violations_of(f"{TARGET}---{first}---{second}", whole=True) == []
    more = replaced(second, "reserve: 0.3", "reserve: 0.4")
    (found,) = violations_of(f"{TARGET}---{first}---{more}", whole=True)
    assert (found.field, found.value) == ("spec.layer.reserve", "0.4")
    assert found.rule.startswith("only 0.3 of layer models is left: fraud-v2 reserved the rest")
    other_unit = replaced(second, "x-user-id", "x-device")
    (found,) = violations_of(f"{TARGET}---{first}---{other_unit}", whole=True)
    assert found.field == "spec.unit"


def test_units_are_the_same_when_they_differ_in_what_is_not_read() -> None:
    one = spec_of(replaced(EXPERIMENT, UNIT, "unit: {session: {}}"))
    other = spec_of(replaced(EXPERIMENT, UNIT, "unit: {session: {maxAge: 1h}, noUnit: skip}"))
    assert same_unit(one, other)
    assert not same_unit(one, spec_of(EXPERIMENT))


@pytest.mark.parametrize(
    ("match", "field"),
    [
        ("modelName: 'a/b'", "modelName"),
        (f"modelName: {'a' * 129}", "modelName"),
        ("modelName: '..'", "modelName"),
        ("modelName: a, modelVersion: 'b c'", "modelVersion"),
        (f"modelName: a, modelVersion: {'1' * 65}x", "modelVersion"),
        ("modelVersion: a", "modelVersion"),
    ],
)
def test_target_is_refused_when_its_model_cannot_be_in_a_path(match: str, field: str) -> None:
    (found,) = violations_of(replaced(TARGET, "match: {", f"match: {{{match}, "))
    assert found.field == f"spec.match.{field}"


def test_targets_are_good_beside_each_other_when_only_their_models_differ() -> None:
    first = replaced(TARGET, "match: {", "match: {modelName: a, ")
    second = replaced(
        replaced(TARGET, "match: {", "match: {modelName: b, "), "fraud, ten", "z, ten"
    )
    assert violations_of(f"{first}---{second}") == []
    (found,) = violations_of(f"{first}---{replaced(second, 'modelName: b', 'modelName: a')}")
    assert found.rule == 'target "fraud" already has this match'
    assert validate_target("risk", "x", document(first).spec) == []  # type: ignore[arg-type]


# -- Ranges and snapshots --------------------------------------------------------------------------


def test_ranges_are_the_first_free_ones_when_some_are_taken() -> None:
    assert reserve([], 1.0) == ((0, BUCKET_COUNT),)
    taken = [((100, 200),), ((0, 50), (300, 400))]
    assert reserve(taken, 0.0001) == ((50, 100), (200, 250))
    with pytest.raises(LayerFull) as full:
        reserve([((0, 999_999),)], 0.000_002)
    assert (full.value.wanted, full.value.left) == (2, 1)


def test_snapshot_has_everything_and_the_same_bytes_when_it_is_built_twice(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    first = replaced(EXPERIMENT, "reserve: 1.0", "reserve: 0.25")
    first = replaced(
        first, SEGMENT, "segment: {not: {any: [{percentage: {salt: beta, fraction: 0.3}}]}}"
    )
    first = replaced(
        first, "  onFinish:", "  overrides: [{units: [b, a], variant: v2}]\n  onFinish:"
    )
    second = replaced(
        replaced(EXPERIMENT, "reserve: 1.0", "reserve: 0.5"), "fraud-v2, ten", "a, ten"
    )
    named = replaced(TARGET, "match: {", "match: {modelName: fraud, modelVersion: '1', ")
    held = "\nkind: Holdout\nmetadata: {tenant: risk}\nspec: {fraction: 0.05}\n"
    file.write_text("---".join((held, first, SCORING, named, second)))
    data = build([file])
    assert build([file]) == data
    snapshot = Snapshot.FromString(data)
    plans = {plan.name: plan for plan in snapshot.experiments}
    assert {
        name: [(r.start, r.end) for r in plan.layer_ranges] for name, plan in plans.items()
    } == {
        "a": [(0, 500_000)],
        "fraud-v2": [(500_000, 750_000)],
        "scoring": [(0, BUCKET_COUNT)],
    }
    # One shadow at a time: the first by name.
    assert [plan.name for plan in snapshot.experiments if plan.HasField("shadow")] == ["a"]
    assert plans["fraud-v2"].segment.negated.any[0].percentage.buckets == 300_000
    assert [(o.unit, o.variant) for o in plans["fraud-v2"].overrides] == [("a", "v2"), ("b", "v2")]
    assert {plan.holdout.salt for plan in plans.values()} == {plans["a"].holdout.salt}
    assert plans["a"].holdout.ranges[0].end == 50_000
    assert (snapshot.targets[0].model_name, snapshot.targets[0].model_version) == ("fraud", "1")
    file.write_text("---".join((held, first, SCORING, named, second)).replace("0.05}\n", "0.06}\n"))
    moved = Snapshot.FromString(build([file]))
    assert moved.experiments[0].holdout.salt == plans["a"].holdout.salt
    assert turnout("lint", "-f", file).code == 0
