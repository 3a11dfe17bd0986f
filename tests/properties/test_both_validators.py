"""What the control plane accepts, a sidecar serves; what it would refuse is never sent.

The sidecar's rules are the other half of a pair: a spec that passes the first half and fails the
second would be refused by every sidecar at once, and nothing of its tenant would change any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st

from control import snapshot as snapshots
from control.model import (
    shadow_at,
    split_at,
    unimplemented_experiment,
    validate_experiment,
    validate_target,
)
from sidecar.envoyfiles import documents
from sidecar.envoymatch import UnsupportedMatch
from sidecar.snapshotcheck import validate
from turnout.v1alpha1.common_pb2 import (
    JwtClaim,
    NumberRange,
    Percentage,
    Predicate,
    Session,
    Unit,
    Upstream,
)
from turnout.v1alpha1.experiment_pb2 import (
    CanaryStep,
    ExperimentSpec,
    ShadowStep,
    Step,
    Variant,
)
from turnout.v1alpha1.target_pb2 import Baseline, RequestMatch, TargetSpec

# Good values and their evil neighbours; each strategy draws a good one most of the time.
LABELS: Final = ["v2", "a", "9", "a-b", "x" * 63]
BAD_LABELS: Final = ["", "A", "a_b", "a;b", "a,b", "-a", "a\n", "x" * 64, "ü"]
HEADERS: Final = ["x-user-id", "cookie", "a" * 64, "x.y", "authorization"]
BAD_HEADERS: Final = [
    "", ":path", "X-A", "a b", "x-variant", "x-turnout", "x-turnout-a", "a" * 65, "host",
]  # fmt: skip
ADDRESSES: Final = ["v2:8080", "a.b.c:1", "10.0.0.1:65535", "[::1]:80", "a_b:80", "a.b.:80"]
BAD_ADDRESSES: Final = ["", "v2", "v2:0", "v2:65536", "v2:x", "a b:80", ":80", "::1:80", "a\n:80"]
PATHS: Final = ["", "/", "/v2/models", "/a%20b"]
BAD_PATHS: Final = ["v2", "/a b", "/a?b", "/a#b", "/a\n", "/ü"]
HOSTS: Final = ["*", "*.svc", "a.b", "a", "127.0.0.1", "[::1]"]
BAD_HOSTS: Final = ["a.b:80", "", "a b", "*a", "a.*", "ü", "A.b", "*.", "a/b"]
VALUES: Final = ["a", "a b", "\N{SNOWMAN}", "v" * 256]
BAD_VALUES: Final = ["v" * 257, "a\0b", "\r\n", " a"]
PARAMETERS: Final = [("threshold", "0.7"), ("k" * 48, "v" * 256), ("a.b", "~")]
BAD_PARAMETERS: Final = [("", "1"), ("a b", "1"), ("k" * 49, "1"), ("a", "\n"), ("a", "v" * 257)]
REGEXES: Final = ["[a-z]+", "(a|b)*", "^$", "a{99}", "(?i)x", "\N{SNOWMAN}+"]
BAD_REGEXES: Final = ["", "(", "(?=a)", "(a)\\1", "a{200}", "\\pL{9}", "[z-a]", "a" * 257]
SEMVERS: Final = ["1.2.3", ">=1.2.0 <2.0.0-rc.1", "^0.1.0", "~v1.2.3", "!=1.0.0-a.0"]
BAD_SEMVERS: Final = ["", " ", "1.2", ">= 1.2.0", "^01.0.0", "=1.0.0-00", "=1.0.0-a..b", "latest"]
SALTS: Final = ["beta", "a b", "~" * 64]
BAD_SALTS: Final = ["", "s", "x" * 65, "ü", "a\n"]
UNIT_NAMES: Final = ["u", "user id", "ü", "q" * 64]
BAD_UNIT_NAMES: Final = ["", "q" * 65, "a\0"]
CLAIMS: Final = ["sub", "realm.user", "c" * 128]
BAD_CLAIMS: Final = ["", ".", "a..b", "c" * 129, "a\n"]
MODELS: Final = ["", "fraud", "a.b_c-D9", "m" * 64]
BAD_MODELS: Final = ["a/b", "..", "m m", "m" * 129, "ü"]
CLUSTERS: Final = ["mine", "outbound|80||a.b", "c" * 255]
BAD_CLUSTERS: Final = ["a b", "a\n", "c" * 256, "turnout.fraud.1", "ü"]


def mostly(good: list[str], bad: list[str]) -> st.SearchStrategy[str]:
    return st.integers(0, 19).flatmap(lambda roll: st.sampled_from(bad if roll == 0 else good))


def upstreams() -> st.SearchStrategy[Upstream]:
    addressed = st.builds(
        lambda address, path, http2: Upstream(address=address, health_path=path, http2=http2),
        mostly(ADDRESSES, BAD_ADDRESSES),
        mostly(PATHS, BAD_PATHS),
        st.booleans(),
    )
    named = mostly(CLUSTERS, BAD_CLUSTERS).map(lambda name: Upstream(cluster=name))
    return st.one_of(addressed, addressed, named)


def leaves() -> st.SearchStrategy[Predicate]:
    header = mostly(HEADERS, BAD_HEADERS)
    return st.one_of(
        routed_leaves(),
        st.builds(lambda h, v: Predicate(header=h, regex=v), header, mostly(REGEXES, BAD_REGEXES)),
        st.builds(lambda h, v: Predicate(header=h, semver=v), header, mostly(SEMVERS, BAD_SEMVERS)),
        st.builds(lambda h, v: Predicate(header=h, range=v), header, ranges()),
        mostly(SALTS, BAD_SALTS).map(
            lambda salt: Predicate(percentage=Percentage(salt=salt, fraction=0.3))
        ),
    )


def ranges() -> st.SearchStrategy[NumberRange]:
    limits = st.none() | st.sampled_from([-1.0, 0.0, 18.5, 1e300, float("inf"), float("nan")])
    return st.builds(lambda low, high: NumberRange(min=low, max=high), limits, limits)


def routed_leaves() -> st.SearchStrategy[Predicate]:
    header, value = mostly(HEADERS, BAD_HEADERS), mostly(VALUES, BAD_VALUES)
    return st.one_of(
        st.builds(lambda h, v: Predicate(header=h, equals=v), header, st.just("") | value),
        st.builds(lambda h, v: Predicate(header=h, prefix=v), header, value),
        st.builds(lambda h, v: Predicate(header=h, present=v), header, st.booleans()),
        st.builds(
            lambda h, v: Predicate(header=h, in_values=v), header, st.lists(value, max_size=3)
        ),
    )


def predicates() -> st.SearchStrategy[Predicate]:
    inner = st.lists(leaves(), min_size=1, max_size=3)
    return st.one_of(
        leaves(),
        inner.map(lambda parts: Predicate(all=parts)),
        inner.map(lambda parts: Predicate(any=parts)),
        leaves().map(lambda part: Predicate(negated=part)),
        st.just(Predicate()),
    )


@st.composite
def targets(draw: st.DrawFn) -> TargetSpec:
    match = RequestMatch(
        model_name=draw(mostly(MODELS, BAD_MODELS)),
        model_version=draw(st.just("") | mostly(MODELS, BAD_MODELS)),
        hosts=draw(st.lists(mostly(HOSTS, BAD_HOSTS), max_size=2)),
        path_prefix=draw(mostly(PATHS, BAD_PATHS)),
        methods=draw(st.lists(mostly(["GET", "POST"], ["get", "", "G T"]), max_size=2)),
        headers=draw(st.lists(predicates(), max_size=1)),
    )
    spec = TargetSpec(match=match, baseline=Baseline(upstream=draw(upstreams())))
    if draw(st.booleans()):
        spec.timeout.FromMilliseconds(draw(st.sampled_from([1, 3_600_000, 60_000, 0, -1])))
    return spec


@st.composite
def experiments(draw: st.DrawFn) -> ExperimentSpec:
    unit = draw(
        st.one_of(
            mostly(HEADERS, BAD_HEADERS).map(lambda name: Unit(header=name)),
            mostly(["uid", "__Host-a"], ["", "a b", "a=b", "ü"]).map(lambda n: Unit(cookie=n)),
            st.just(Unit(random=True)),
            mostly(UNIT_NAMES, BAD_UNIT_NAMES).map(lambda name: Unit(query_parameter=name)),
            mostly(CLAIMS, BAD_CLAIMS).map(
                lambda name: Unit(jwt_claim=JwtClaim(claim=name, unverified=True))
            ),
            st.builds(
                lambda name, where, header: Unit(
                    jwt_claim=JwtClaim(claim=name, payload_in_metadata=where, header=header)
                ),
                mostly(CLAIMS, BAD_CLAIMS),
                mostly(["claims"], ["", "p" * 257]),
                mostly([""], HEADERS),
            ),
            st.builds(
                lambda name, age: Unit(session=Session(cookie=name, max_age=Duration(seconds=age))),
                mostly(["", "sid", "__Host-a"], ["a b", "a=b", "x" * 65]),
                st.sampled_from([60, 3600, 8760 * 3600, 0, 59, 8760 * 3600 + 1]),
            ),
        )
    )
    names = ["control", *draw(st.lists(mostly(LABELS, BAD_LABELS), min_size=1, max_size=3))]
    variants = [Variant(name="control")]
    for name in names[1:]:
        given = draw(st.lists(st.sampled_from(PARAMETERS * 4 + BAD_PARAMETERS), max_size=2))
        parameters: Mapping[str, str] = dict(given)
        variants.append(Variant(name=name, upstream=draw(upstreams()), parameters=parameters))
    draw(st.randoms(use_true_random=False)).shuffle(variants)
    fraction = draw(st.sampled_from([0.0, 0.01, 0.333333, 0.5, 1.0, 1.5, -0.1, 1e-7]))
    minute = Duration(seconds=60)
    shadow = ShadowStep(variant=names[1], fraction=abs(fraction), dwell=minute)
    canary = CanaryStep(split={names[-1]: fraction}, dwell=minute)
    first = Step(shadow=shadow) if draw(st.booleans()) else Step(canary=canary)
    spec = ExperimentSpec(
        target="fraud", unit=unit, control="control", variants=variants, steps=[first], salt="s"
    )
    if draw(st.booleans()):
        spec.segment.CopyFrom(draw(predicates()))
    spec.layer.reserve = draw(st.sampled_from([1.0, 0.5, 1e-6, 0.0, 1e-7, 1.1]))
    for _ in range(draw(st.integers(0, 2))):
        units = draw(st.lists(mostly(["a", "b", "c", "u" * 256], ["", "u" * 257]), max_size=3))
        spec.overrides.add(units=units, variant=draw(st.sampled_from([*names, "nobody"])))
    if draw(st.integers(0, 3)) == 0:
        route_nothing(spec)
    if draw(st.booleans()):
        guardrail = spec.metrics.guardrails.add(metric="latency_p95")
        guardrail.slo.FromMilliseconds(draw(st.sampled_from([1, 200, 3_600_000, 0])))
    return spec


def route_nothing(spec: ExperimentSpec) -> None:
    """Put it into a layer of parameters; a shadow step there stays one, which is refused."""
    spec.layer.name = "prices"
    for variant in spec.variants:
        variant.ClearField("upstream")


def check(target: TargetSpec, spec: ExperimentSpec) -> bool:
    """Whether control accepts both; then a sidecar must, too."""
    if (
        validate_target("risk", "fraud", target)
        or validate_experiment("risk", "fraud-v2", spec, target, {})
        or unimplemented_experiment(spec)
    ):
        return False
    running = snapshots.RunningExperiment(
        name="fraud-v2",
        spec=spec,
        epoch=1,
        epoch_start_ms=1,
        allocation=snapshots.grow({}, split_at(spec, 0), control=spec.control),
        shadow=shadow_at(spec, 0),
        layer_ranges=snapshots.reserve([], spec.layer.reserve),
        holdout=("h", 0.1),
    )
    message = snapshots.build("risk", 1, {"fraud": target}, [running])
    assert validate(message) == []
    try:
        documents(message, enabled=[("fraud-v2", 1)])
    except UnsupportedMatch as error:
        raise AssertionError(f"Envoy's files cannot say what control accepts: {error}") from error
    return True


@given(targets(), experiments())
@settings(max_examples=300, deadline=None)
def test_sidecar_serves_what_control_accepts(target: TargetSpec, spec: ExperimentSpec) -> None:
    check(target, spec)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("header", HEADERS)
def test_good_values_are_accepted_by_both(address: str, header: str) -> None:
    """So that the property above is not empty."""
    target = TargetSpec(match=RequestMatch(hosts=HOSTS), baseline=Baseline())
    target.baseline.upstream.address = address
    spec = ExperimentSpec(target="fraud", unit=Unit(header=header), control="control", salt="s")
    spec.layer.reserve = 1.0
    spec.variants.add(name="control")
    spec.variants.add(name="v2", parameters=dict(PARAMETERS)).upstream.address = address
    spec.steps.add().canary.CopyFrom(CanaryStep(split={"v2": 0.5}, dwell=Duration(seconds=1)))
    assert check(target, spec)
