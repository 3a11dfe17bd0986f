"""Every rule about targets and experiments: the field, the value, the rule."""

from __future__ import annotations

import math

import pytest
from google.protobuf.duration_pb2 import Duration

from control.model import (
    Violation,
    experiment_with_defaults,
    target_with_defaults,
    unimplemented,
    validate_experiment,
    validate_target,
)
from control.model.rules import address_fault, is_host_pattern
from tests.control.resources import EXPERIMENT, TARGET, document, replaced, violations_of
from turnout.contract import RESOURCE_BYTES_MAX, VARIANTS_MAX
from turnout.v1alpha1.common_pb2 import Predicate
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec
from turnout.v1alpha1.target_pb2 import TargetSpec

TARGET_FAULTS = [
    ("{name: fraud, tenant", "{name: Fraud, tenant", "metadata.name", "Fraud", "DNS label"),
    ("tenant: risk", "tenant: -risk", "metadata.tenant", "-risk", "DNS label"),
    ("fraud.risk.svc", "*.risk.*", "spec.match.hosts[0]", "*.risk.*", "host name"),
    ("fraud.risk.svc", "a:99999", "spec.match.hosts[0]", "a:99999", "host name"),
    ('"fraud.risk.svc"', "a, a", "spec.match.hosts[1]", "a", "is there twice"),
    ("/v2/models/fraud", "v2", "spec.match.pathPrefix", "v2", "must begin with /"),
    ("/v2/models/fraud", '"/a?b"', "spec.match.pathPrefix", "/a?b", "without ? and #"),
    (
        "/v2/models/fraud",
        '"/a\\r\\nx: y"',
        "spec.match.pathPrefix",
        r"'/a\r\nx: y'",
        "visible ASCII",
    ),
    ('"fraud-v1:8080"', "fraud-v1", "spec.baseline.upstream.address", "fraud-v1", "HOST:PORT"),
    ("fraud-v1:8080", "a:0", "spec.baseline.upstream.address", "a:0", "port of 1 to 65535"),
    ("fraud-v1:8080", "1.2.3:1", "spec.baseline.upstream.address", "1.2.3:1", "four numbers"),
    ("fraud-v1:8080", "[::z]:1", "spec.baseline.upstream.address", "[::z]:1", "IPv6"),
    ("fraud-v1:8080", "a b:1", "spec.baseline.upstream.address", "a b:1", "HOST:PORT"),
    ('{address: "fraud-v1:8080"}', "{}", "spec.baseline.upstream", "neither", "exactly one of"),
    (
        'address: "fraud-v1:8080"',
        "cluster: turnout.x",
        "spec.baseline.upstream.cluster",
        "turnout.x",
        "must not begin like",
    ),
    (
        'address: "fraud-v1:8080"',
        'cluster: "a b"',
        "spec.baseline.upstream.cluster",
        "a b",
        "visible ASCII",
    ),
    (
        'address: "fraud-v1:8080"',
        "cluster: x, http2: true",
        "spec.baseline.upstream.http2",
        "set",
        "existing cluster's own",
    ),
    (
        '"fraud-v1:8080"',
        '"fraud-v1:8080", tls: {}',
        "spec.baseline.upstream.tls.sni",
        "''",
        "required",
    ),
    ('version: "1"', 'version: ""', "spec.baseline.model.version", "''", "required"),
    ('version: "1"', r'version: "\e"', "spec.baseline.model.version", r"'\x1b'", "control char"),
    ("60s", "61m", "spec.timeout", "1h1m", "at least 1ms and at most 1h"),
    ("60s", "0s", "spec.timeout", "0s", "at least 1ms"),
    ("60s", "-1s", "spec.timeout", "-1s", "at least 1ms"),
    ("60s", "60", "spec.timeout", "60", "must be a duration like"),
    ("60s", "1s\n  keepPrevious: 31d", "spec.keepPrevious", "31d", "at most 30d"),
    ("60s", "1s\n  timeuot: 1s", "spec.timeuot", "timeuot", "did you mean timeout?"),
    ("turnout/v1alpha1", "turnout/v2", "apiVersion", "turnout/v2", "turnout/v1alpha1"),
    ("kind: Target", "kind: Goal", "kind", "Goal", "must be Target, Experiment, Metric or Holdout"),
]

EXPERIMENT_FAULTS = [
    ("target: fraud", "target: Fraud", "spec.target", "Fraud", "DNS label"),
    ("{header: x-user-id, noUnit: skip}", "{}", "spec.unit", "none", "exactly one of header"),
    ("header: x-user-id", "header: x, cookie: y", "spec.unit", "header, cookie", "exactly one"),
    ("x-user-id", "X-User", "spec.unit.header", "X-User", "lower-case header name"),
    ("x-user-id", '":path"', "spec.unit.header", ":path", "pseudo-header"),
    ("x-user-id", '"a\\r\\nb"', "spec.unit.header", r"'a\r\nb'", "header name"),
    ("x-user-id", '"a\\0"', "spec.unit.header", r"'a\x00'", "header name"),
    ("x-user-id", "x-variant", "spec.unit.header", "x-variant", "reserves"),
    ("x-user-id", "x-turnout", "spec.unit.header", "x-turnout", "reserves"),
    ("x-user-id", "x-turnout-upstream", "spec.unit.header", "x-turnout-upstream", "reserves"),
    ("x-user-id", "x-envoy-internal", "spec.unit.header", "x-envoy-internal", "reserves"),
    ("x-user-id", "host", "spec.unit.header", "host", "must not be host"),
    ("header: x-user-id", 'cookie: "a;b"', "spec.unit.cookie", "a;b", "cookie name"),
    ("reserve: 1.0", "reserve: 1.5", "spec.layer.reserve", "1.5", "at most 1"),
    ("reserve: 1.0", "reserve: 0", "spec.layer.reserve", "0.0", "at least 1e-06"),
    ("x-country", '":method"', "spec.segment.all[0].header", ":method", "pseudo-header"),
    ("in: [DE, FR]", "equals: a, in: [b]", "spec.segment.all[0]", "in, equals", "exactly one of"),
    (
        "in: [DE, FR]",
        'in: ["a\\nb"]',
        "spec.segment.all[0].in[0]",
        r"'a\nb'",
        "control characters",
    ),
    ("in: [DE, FR]", 'prefix: ""', "spec.segment.all[0].prefix", "''", "required"),
    ("in: [DE, FR]", 'equals: " a"', "spec.segment.all[0].equals", " a", "blanks"),
    (
        "{name: control}",
        '{name: control, upstream: {address: "a:1"}}',
        "spec.variants[0].upstream",
        "set",
        "control is the target's baseline",
    ),
    (
        "{threshold:",
        "{Threshold:",
        "spec.variants[1].parameters.Threshold",
        "Threshold",
        "lower-case header name",
    ),
    (
        '"0.7"',
        '"0.7\\r\\nx-admin: 1"',
        "spec.variants[1].parameters.threshold",
        r"'0.7\r\nx-admin: 1'",
        "visible ASCII",
    ),
    (
        "metric: accuracy",
        "metric: acuracy",
        "spec.metrics.primary.metric",
        "acuracy",
        "did you mean accuracy?",
    ),
    (
        "{metric: error_rate,",
        "{metric: error_rates,",
        "spec.metrics.guardrails[0].metric",
        "error_rates",
        "unknown metric; known: error_rate",
    ),
    (
        "error_rate, maximumHarm: {absolute: 0.01}",
        "error_rate, maximumHarm: {absolute: 50ms}",
        "spec.metrics.guardrails[0].maximumHarm.absolute",
        "50ms",
        "a number of 0 to 1",
    ),
    (
        "absolute: 50ms",
        "absolute: 0.05",
        "spec.metrics.guardrails[1].maximumHarm.absolute",
        "0.05",
        "must be a duration",
    ),
    (
        "absolute: 50ms",
        "relative: 0",
        "spec.metrics.guardrails[1].maximumHarm.relative",
        "0.0",
        "above 0",
    ),
    ("slo: 200ms", "slo: 2h", "spec.metrics.guardrails[1].slo", "2h", "at most 1h"),
    ("  metrics:", "  metrics:\n    warmUp: 2h", "spec.metrics.warmUp", "2h", "at most 1h"),
    (
        "error_rate, maximumHarm: {absolute: 0.01}",
        "error_rate, slo: 1s",
        "spec.metrics.guardrails[0].slo",
        "1s",
        "only latency metrics",
    ),
    (
        "shadow: {variant: v2",
        "shadow: {variant: v9",
        "spec.steps[0].shadow.variant",
        "v9",
        "v2, v3",
    ),
    (
        "shadow: {variant: v2",
        "shadow: {variant: control",
        "spec.steps[0].shadow.variant",
        "control",
        "must name a candidate",
    ),
    ("fraction: 1.0", "fraction: 1.1", "spec.steps[0].shadow.fraction", "1.1", "at most 1"),
    ("fraction: 1.0", "fraction: .nan", "spec.steps[0].shadow.fraction", "nan", "at most 1"),
    ("fraction: 1.0, for: 30m", "fraction: 1.0", "spec.steps[0].shadow.for", "missing", "required"),
    ("fraction: 1.0, for: 30m", "for: 0s", "spec.steps[0].shadow.for", "0s", "above 0s"),
    ("fraction: 1.0, for: 30m", "for: -1s", "spec.steps[0].shadow.for", "-1s", "above 0s"),
    ("{v2: 0.01, v3: 0.01}", "{v2: 1.01}", "spec.steps[1].canary.split.v2", "1.01", "at most 1"),
    ("{v2: 0.01, v3: 0.01}", "{v2: -0.1}", "spec.steps[1].canary.split.v2", "-0.1", "at least 0"),
    ("{v2: 0.01, v3: 0.01}", "{v2: .inf}", "spec.steps[1].canary.split.v2", "inf", "at most 1"),
    ("{v2: 0.01, v3: 0.01}", "{v2: 1e-7}", "spec.steps[1].canary.split.v2", "1e-07", "one bucket"),
    ("{v2: 0.01, v3: 0.01}", "{v9: 0.1}", "spec.steps[1].canary.split.v9", "v9", "a candidate"),
    (
        "{v2: 0.01, v3: 0.01}",
        "{control: 0.1}",
        "spec.steps[1].canary.split.control",
        "control",
        "a candidate",
    ),
    ("{v2: 0.01, v3: 0.01}", "{}", "spec.steps[1].canary.split", "missing", "required"),
    (
        "{v2: 0.05, v3: 0.01}",
        "{v2: 0.6, v3: 0.5}",
        "spec.steps[2].canary.split",
        "0.6 + 0.5",
        "not be more than 1 together",
    ),
    (
        "{v2: 0.05, v3: 0.01}",
        "{v2: 0.005, v3: 0.01}",
        "spec.steps[2].canary.split.v2",
        "0.005",
        "at least 0.01, as in the step before: a ramp only grows",
    ),
    (
        "{v2: 0.05, v3: 0.01}",
        "{v2: 0.05}",
        "spec.steps[2].canary.split.v3",
        "0.0",
        "a ramp only grows",
    ),
    (
        "checks: [error_rate, latency_p95]",
        "checks: [latency_p96]",
        "spec.steps[2].canary.checks[0]",
        "latency_p96",
        "unknown metric",
    ),
    (
        "minimumRequests: 30}\n",
        "minimumRequests: 0}\n",
        "spec.steps[1].canary.minimumRequests",
        "0",
        "at least 1",
    ),
    (
        "  onFinish: hold",
        "  - shadow: {variant: v3, for: 1m}\n  onFinish: hold",
        "spec.steps[3].shadow",
        "step 3",
        "must come before the first step with a split",
    ),
    ("onFinish: hold", "onFinish: promote", "spec.onFinish", "v2, v3", "one candidate"),
    ("onFinish: hold", "onFinish: win", "spec.onFinish", "win", "must be one of: promote, hold"),
    (
        "  onFinish: hold",
        "  - {}\n  onFinish: hold",
        "spec.steps[3]",
        "none",
        "exactly one of shadow",
    ),
    (
        "  onFinish: hold",
        "  - ab: {split: {v2: 0.5, v3: 0.5}, confidence: 1}\n  onFinish: hold",
        "spec.steps[3].ab.confidence",
        "1.0",
        "at most 0.999999",
    ),
    (
        "  onFinish: hold",
        "  - ab: {split: {v2: 0.5, v3: 0.5}, confidence: 0.9999999999999}\n  onFinish: hold",
        "spec.steps[3].ab.confidence",
        "0.9999999999999",
        "at most 0.999999",
    ),
    (
        "  onFinish: hold",
        "  - ab: {split: {v2: 0.5, v3: 0.5}, confidence: 0.05}\n  onFinish: hold",
        "spec.steps[3].ab.confidence",
        "0.05",
        "at least 0.5",
    ),
    (
        "  onFinish: hold",
        "  - ab: {split: {v2: 0.5, v3: 0.5}, minimumDuration: 2h, maximumDuration: 1h}\n"
        "  onFinish: hold",
        "spec.steps[3].ab.maximumDuration",
        "1h",
        "at least 2h",
    ),
    ("alpha: 0.001", "alpha: 0.2", "spec.safety.alpha", "0.2", "at most 0.1"),
    ("alpha: 0.001", "alpha: 0", "spec.safety.alpha", "0.0", "above 0"),
    ("length: 15m", "length: 59s", "spec.safety.window.length", "59s", "at least 1m"),
    ("difference: 0.05", "difference: 2", "spec.safety.window.difference", "2.0", "at most 1"),
    (
        "minimumRequests: 300",
        "minimumRequests: 29",
        "spec.safety.window.minimumRequests",
        "29",
        "at least 30",
    ),
    (
        "safety: {alpha: 0.001",
        "safety: {breaker: {}",
        "spec.safety.breaker",
        "no limit",
        "errorRate, latencyP99",
    ),
    ("  onFinish: hold", '  salt: "é"\n  onFinish: hold', "spec.salt", "é", "printable ASCII"),
    ("{team: payments}", '{team: "a\\u0085"}', "metadata.labels.team", r"'a\x85'", "control char"),
    ("{team: payments}", f"{{team: {'x' * 64}}}", "metadata.labels.team", "x" * 64, "at most 63"),
    ("name: fraud-v2", f"name: {'a' * 64}", "metadata.name", "a" * 64, "DNS label"),
]


# One change that breaks several rules: a name that others refer to.
COMPOUND_FAULTS = [
    ("control: control", "control: v9", "spec.control", "v9", "name of one of the variants"),
    ("{name: v3,", "{name: v2,", "spec.variants[2].name", "v2", "is there twice"),
    ("{name: v3,", '{name: "v,3",', "spec.variants[2].name", "v,3", "DNS label"),
    (
        "{metric: latency_p95,",
        "{metric: error_rate,",
        "spec.metrics.guardrails[1].metric",
        "error_rate",
        "is there twice",
    ),
    (
        ', upstream: {address: "fraud-v3:8080"}',
        "",
        "spec.variants[2].upstream",
        "missing",
        "required on every candidate",
    ),
]


def assert_fault(found: list[Violation], field: str, value: str, rule: str, text: str) -> None:
    """The fault is among those found, with a line of the text."""
    (fault,) = (violation for violation in found if violation.field == field)
    assert fault.value == value
    assert rule in fault.rule
    assert 0 < fault.line <= text.count("\n") + 1


@pytest.mark.parametrize(("old", "new", "field", "value", "rule"), TARGET_FAULTS)
def test_target_is_refused_by_field_value_and_rule_when_one_thing_is_wrong(
    old: str, new: str, field: str, value: str, rule: str
) -> None:
    text = replaced(TARGET, old, new)
    found = violations_of(text)
    assert len(found) == 1
    assert_fault(found, field, value, rule, text)


@pytest.mark.parametrize(("old", "new", "field", "value", "rule"), EXPERIMENT_FAULTS)
def test_experiment_is_refused_by_field_value_and_rule_when_one_thing_is_wrong(
    old: str, new: str, field: str, value: str, rule: str
) -> None:
    text = replaced(EXPERIMENT, old, new)
    found = violations_of(text)
    assert len(found) == 1
    assert_fault(found, field, value, rule, text)


@pytest.mark.parametrize(("old", "new", "field", "value", "rule"), COMPOUND_FAULTS)
def test_experiment_is_refused_by_field_value_and_rule_when_one_thing_breaks_more(
    old: str, new: str, field: str, value: str, rule: str
) -> None:
    text = replaced(EXPERIMENT, old, new)
    assert_fault(violations_of(text), field, value, rule, text)


def test_every_fault_is_named_with_its_line_when_there_are_many() -> None:
    text = EXPERIMENT
    for old, new in (
        ("x-user-id", "X-User"),
        ("{name: v3,", "{name: v2,"),
        ("v2: 0.05", "v2: 1.5"),
        ("alpha: 0.001", "alpha: 7"),
        ("metric: accuracy", "metric: acuracy"),
    ):
        text = replaced(text, old, new)
    found = {violation.field: violation.line for violation in violations_of(text)}
    lines = text.split("\n")
    assert "X-User" in lines[found["spec.unit.header"] - 1]
    assert "fraud-v3" in lines[found["spec.variants[2].name"] - 1]
    assert "v2: 1.5" in lines[found["spec.steps[2].canary.split.v2"] - 1]
    assert "alpha: 7" in lines[found["spec.safety.alpha"] - 1]
    assert "acuracy" in lines[found["spec.metrics.primary.metric"] - 1]


def test_ten_thousand_variants_are_refused_as_one_fault_when_they_are_named() -> None:
    variants = ", ".join(f"{{name: v{index}}}" for index in range(10_000))
    text = (
        "kind: Experiment\nmetadata: {name: many}\nspec:\n  target: fraud\n"
        f"  unit: {{random: true}}\n  control: v0\n  variants: [{variants}]\n"
        "  steps: [{canary: {split: {v1: 0.1}, for: 1m}}]\n"
    )
    assert violations_of(text) == [
        Violation("spec.variants", "10000 variants", "must be 2 to 64, control among them", 7)
    ]


def test_variant_limit_is_accepted_when_it_is_reached_exactly() -> None:
    spec = document(EXPERIMENT).spec
    assert isinstance(spec, ExperimentSpec)
    for index in range(VARIANTS_MAX - len(spec.variants)):
        spec.variants.add(name=f"extra-{index}").upstream.address = "a:1"
    assert validate_experiment("risk", "x", spec, None, {}) == []
    spec.variants.add(name="one-more").upstream.address = "a:1"
    (fault,) = validate_experiment("risk", "x", spec, None, {})
    assert fault.field == "spec.variants"


def test_resource_is_refused_by_size_when_it_comes_without_yaml() -> None:
    spec = TargetSpec()
    spec.match.hosts.extend(f"host-{index}.example" for index in range(RESOURCE_BYTES_MAX // 16))
    (fault,) = validate_target("risk", "big", spec)
    assert fault.field == "spec"
    assert f"at most {RESOURCE_BYTES_MAX} bytes" in fault.rule


def test_numbers_are_refused_when_they_come_from_protos_and_not_from_yaml() -> None:
    spec = document(EXPERIMENT).spec
    assert isinstance(spec, ExperimentSpec)
    spec.steps[1].canary.split["v2"] = math.nan
    spec.steps[1].canary.dwell.CopyFrom(Duration(seconds=-5))
    spec.steps[2].canary.dwell.CopyFrom(Duration(seconds=5, nanos=-1))
    spec.on_finish = 99  # type: ignore[assignment]
    spec.metrics.guardrails[0].maximum_harm.Clear()
    found = {item.field: item.value for item in validate_experiment("risk", "x", spec, None, {})}
    assert found == {
        "spec.steps[1].canary.split.v2": "nan",
        "spec.steps[1].canary.for": "-5s",
        "spec.steps[2].canary.for": "5 s and -1 ns",
        "spec.onFinish": "99",
        "spec.metrics.guardrails[0].maximumHarm": "none",
    }


def test_predicate_is_refused_when_it_is_too_deep_or_too_wide() -> None:
    deep = Predicate(header="x", present=True)
    for _ in range(8):
        deep = Predicate(negated=deep)
    wide = Predicate(any=[Predicate(header="x", equals=str(index)) for index in range(65)])
    for predicate, value in ((deep, "level 9"), (wide, "65 conditions")):
        spec = document(EXPERIMENT).spec
        assert isinstance(spec, ExperimentSpec)
        spec.segment.CopyFrom(predicate)
        (fault,) = validate_experiment("risk", "x", spec, None, {})
        assert fault.value == value


def test_target_is_refused_when_its_predicates_need_too_many_routes() -> None:
    spec = document(TARGET).spec
    assert isinstance(spec, TargetSpec)
    pair = Predicate(any=[Predicate(header="a", equals="1"), Predicate(header="b", equals="1")])
    spec.match.headers.extend([pair] * 6)
    assert validate_target("risk", "x", spec) == []
    spec.match.headers.append(pair)
    (fault,) = validate_target("risk", "x", spec)
    assert fault == ("spec.match.headers", "128 combinations", fault.rule, 0)
    # not(all(a, b)) is two ways; not(any(a, b)) is one.
    del spec.match.headers[:]
    spec.match.headers.extend([Predicate(negated=pair)] * 12)
    assert validate_target("risk", "x", spec) == []


def test_files_are_refused_when_they_must_stand_by_themselves_and_do_not() -> None:
    second = replaced(EXPERIMENT, "name: fraud-v2", "name: other")
    assert violations_of(EXPERIMENT) == []
    (missing,) = violations_of(EXPERIMENT, whole=True)
    assert (missing.field, missing.rule) == ("spec.target", "must be in the files")
    (twice,) = violations_of(f"{TARGET}---{EXPERIMENT}---{second}", whole=True)
    assert (twice.field, twice.value) == ("spec.layer.reserve", "1")
    assert twice.rule.startswith("only 0 of layer models is left: fraud-v2 reserved the rest")
    foreign = replaced(TARGET, "tenant: risk", "tenant: sales")
    found = violations_of(f"{TARGET}---{foreign}", whole=True)
    assert [item.rule for item in found] == ["must be risk: a snapshot has one tenant"]
    assert [item.rule for item in violations_of(f"{TARGET}---{TARGET}")] == [
        "Target is there twice"
    ]


@pytest.mark.parametrize(
    ("old", "new", "feature"),
    [
        ("metric: accuracy", "metric: revenue_per_user", "spec.metrics.primary.metric"),
        ("{metric: error_rate,", "{metric: cost_per_request,", "spec.metrics.guardrails[0].metric"),
        ("for: 1h,", "for: 1h, lease: 1m,", "spec.steps[2].canary.lease"),
        ("for: 1h,", "for: 1h, onUndecided: extend,", "spec.steps[2].canary.onUndecided"),
        ("for: 1h,", "for: 1h, onUndecided: rollback,", "spec.steps[2].canary.onUndecided"),
        (
            "  onFinish:",
            "  - approval: {groups: [a], need: 1}\n  onFinish:",
            "spec.steps[3].approval",
        ),
        ("  onFinish:", "  holdback: {fraction: 0.1, for: 1d}\n  onFinish:", "spec.holdback"),
        ("alpha: 0.001", "autonomous: true", "spec.safety.autonomous"),
    ],
)
def test_feature_is_named_and_is_no_fault_when_it_is_not_implemented(
    old: str, new: str, feature: str
) -> None:
    text = replaced(EXPERIMENT, old, new)
    assert violations_of(text) == []
    assert unimplemented(document(text)) == [feature]


@pytest.mark.parametrize(
    "address",
    [
        "a:1",
        "fraud-v1.risk.svc.cluster.local:8080",
        "10.0.0.1:65535",
        "[::1]:80",
        "my_pod:9",
        "a.:1",
    ],
)
def test_address_is_accepted_when_it_is_host_and_port(address: str) -> None:
    assert address_fault(address) is None


@pytest.mark.parametrize(
    "address",
    [
        "", "a", ":80", "a:", "a:b", "a:-1", "a:65536", "a:080800", "a:\u0661", "a..b:1", "-a:1",
        "::1:80", "[1.2.3.4]:80", "[fe80::1%eth0]:80", "256.1.1.1:80", "http://a:80", "a:80/x",
        "a@b:80", "é:80", f"{'a' * 64}:1", f"{'a.' * 130}a:1", "a\n:1", "a:1\n",
    ],
)  # fmt: skip
def test_address_is_refused_when_it_is_malformed(address: str) -> None:
    assert address_fault(address) is not None


def test_hosts_are_patterns_when_they_are_names_suffixes_or_addresses() -> None:
    good = ["*", "a", "a.b.c", "*.a.b", "[::1]", "10.0.0.1"]
    bad = ["", "A", "**", "*a", "a.*", "a b", "a:", "a:80", "[::1]:80", "::1", "[x]", "a/b", "a\n"]
    assert [host for host in good if not is_host_pattern(host)] == []
    assert [host for host in bad if is_host_pattern(host)] == []


def test_defaults_are_those_of_the_contract_when_little_is_said() -> None:
    target = target_with_defaults(TargetSpec())
    assert list(target.match.hosts) == ["*"]
    assert target.match.path_prefix == "/"
    assert (target.timeout.seconds, target.keep_previous.seconds) == (60, 86_400)
    text = replaced(
        EXPERIMENT,
        "  safety: {alpha: 0.001, window: {length: 15m, difference: 0.05, minimumRequests: 300}}\n",
        "",
    )
    spec = document(text).spec
    assert isinstance(spec, ExperimentSpec)
    full = experiment_with_defaults(spec)
    assert full.safety.alpha == 0.001
    assert full.safety.window.length.seconds == 900
    assert (full.safety.window.difference, full.safety.window.minimum_requests) == (0.05, 300)
    assert full.steps[0].shadow.minimum_requests == 30
    assert list(full.steps[1].canary.checks) == ["error_rate"]
    assert full.steps[2].canary.minimum_requests == 30
    assert experiment_with_defaults(full) == full
    assert validate_experiment("risk", "x", full, None, {}) == []
    given = document(TARGET).spec
    assert isinstance(given, TargetSpec)
    assert validate_target("risk", "x", target_with_defaults(given)) == []


@pytest.mark.parametrize(
    "match",
    [
        '{hosts: ["fraud.risk.svc"], pathPrefix: /v2/models/fraud}',
        '{hosts: [a.b, "fraud.risk.svc"], pathPrefix: /v2/models/fraud, methods: []}',
    ],
)
def test_later_target_is_refused_when_both_have_one_match(match: str) -> None:
    """Otherwise one of them silently gets no traffic."""
    found = violations_of(TARGET + "---" + _second_target(match))
    assert [(v.field, v.value, v.rule) for v in found] == [
        (
            "spec.match",
            "fraud.risk.svc/v2/models/fraud",
            'target "fraud" already has this match',
        )
    ]
    assert found[0].line > TARGET.count("\n")


def test_target_is_refused_when_only_defaults_make_the_match_the_same() -> None:
    anything = _second_target("{}").replace("second", "first")
    found = violations_of(anything + "---" + _second_target('{hosts: ["*"], pathPrefix: /}'))
    assert [v.rule for v in found] == ['target "first" already has this match']


def test_target_is_refused_when_the_order_of_methods_and_headers_differs() -> None:
    one = "{methods: [GET, POST], headers: [{header: a, equals: x}, {header: b, equals: y}]}"
    two = "{methods: [POST, GET], headers: [{header: b, equals: y}, {header: a, equals: x}]}"
    assert len(violations_of(_second_target(one) + "---" + _third_target(two))) == 1


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("{header: a, in: [p, q]}", "{header: a, in: [q, p]}"),
        ("{header: a, in: [p]}", "{header: a, equals: p}"),
        ("{not: {header: a, in: [p, q]}}", "{not: {header: a, in: [q, p]}}"),
        ("{all: [{header: a, equals: p}]}", "{header: a, equals: p}"),
        (
            "{any: [{header: a, prefix: p}, {header: b, equals: q}]}",
            "{any: [{header: b, equals: q}, {header: a, prefix: p}]}",
        ),
    ],
)
def test_target_is_refused_when_its_headers_say_the_same_in_other_words(one: str, two: str) -> None:
    first, second = (f"{{headers: [{leaf}]}}" for leaf in (one, two))
    assert len(violations_of(_second_target(first) + "---" + _third_target(second))) == 1


@pytest.mark.parametrize("path", ["/a%2Fb", "/a/..b/c", "/a/...", "/a.b", "/%20"])
def test_target_is_good_when_its_path_stays_as_it_is(path: str) -> None:
    assert not violations_of(_second_target(f"{{pathPrefix: {path}}}"))


@pytest.mark.parametrize(
    "path", ["/a/../b", "/..", "/a/./b", "/a/.", "/x/%2e%2e/y", "/x\\y", "/%41"]
)
def test_target_is_refused_when_no_path_that_envoy_has_resolved_begins_so(path: str) -> None:
    (found,) = violations_of(_second_target(f"{{pathPrefix: {path}}}"))
    assert (found.field, found.value) == ("spec.match.pathPrefix", path)


@pytest.mark.parametrize(
    "match",
    [
        '{hosts: ["fraud.risk.svc"]}',
        '{hosts: ["fraud.risk.svc"], pathPrefix: /v2/models/fraud, methods: [POST]}',
        '{hosts: ["fraud.risk.svc"], pathPrefix: /v2/models/fraud, '
        "headers: [{header: a, equals: x}]}",
        '{hosts: ["*.risk.svc"], pathPrefix: /v2/models/fraud}',
    ],
)
def test_target_is_good_when_its_match_differs_in_one_part(match: str) -> None:
    assert violations_of(TARGET + "---" + _second_target(match)) == []


def test_target_is_good_when_the_same_match_is_another_tenants() -> None:
    match = '{hosts: ["fraud.risk.svc"], pathPrefix: /v2/models/fraud}'
    other = replaced(_second_target(match), "tenant: risk", "tenant: other")
    assert violations_of(TARGET + "---" + other) == []


def _second_target(match: str) -> str:
    text = replaced(TARGET, "name: fraud, tenant", "name: second, tenant")
    return replaced(text, '{hosts: ["fraud.risk.svc"], pathPrefix: /v2/models/fraud}', match)


def _third_target(match: str) -> str:
    return replaced(_second_target(match), "name: second", "name: third")
