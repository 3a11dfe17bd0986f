"""Which target a request is for: the same as Envoy's routes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.envoymatch import matches, target_hosts, targets_in_order
from sidecar.envoyyaml import Json
from sidecar.matching import REMEMBERED_BYTES_MAX, REMEMBERED_MAX
from sidecar.plan import Plan
from tests.sidecar.samples import build, target
from turnout.v1alpha1.common_pb2 import Predicate
from turnout.v1alpha1.snapshot_pb2 import Snapshot, TargetPlan


def plan_of(*targets: TargetPlan) -> Plan:
    return build(Snapshot(format=1, tenant="risk", version=1, targets=targets))


def matched(plan: Plan, host: bytes, path: bytes = b"/v2", **headers: bytes) -> str | None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    found = plan.match({":authority": host, ":path": path, ":method": b"POST"} | named)
    return found.name if found is not None else None


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (b"api.risk.svc", "exact"),
        (b"API.Risk.SVC", "exact"),
        (b"api.risk.svc:8080", "exact"),
        (b"other.risk.svc", "long-suffix"),
        (b"other.svc", "suffix"),
        (b".svc", "any"),
        (b"svc", "any"),
        (b"[::1]:8080", "address"),
        (b"[::1]", "address"),
        (b"[::1]:", "address"),
        (b"api.risk.svc:", "exact"),
        (b"api.risk.svc:x", "exact"),
        (b"api.risk.svc:1:2", "any"),
        (b"", "any"),
    ],
)
def test_match_takes_the_most_exact_host_when_several_fit(host: bytes, expected: str) -> None:
    plan = plan_of(
        target("any", hosts=["*"]),
        target("suffix", hosts=["*.svc"]),
        target("long-suffix", hosts=["*.risk.svc"]),
        target("exact", hosts=["Api.risk.svc"]),
        target("address", hosts=["[::1]"]),
    )
    assert matched(plan, host) == expected


def test_match_falls_through_to_less_exact_hosts_when_the_path_does_not_fit() -> None:
    exact = target("exact", hosts=["a"])
    exact.path_prefix = "/only"
    plan = plan_of(exact, target("any"))
    assert matched(plan, b"a", b"/only/this") == "exact"
    assert matched(plan, b"a", b"/v2") == "any"
    assert matched(plan, b"a", b"/other") is None


def test_match_takes_the_longest_prefix_when_several_fit() -> None:
    short, long = target("a-short"), target("b-long")
    short.path_prefix, long.path_prefix = "/v2", "/v2/models"
    plan = plan_of(short, long)
    assert matched(plan, b"x", b"/v2/models/fraud?q=/") == "b-long"
    assert matched(plan, b"x", b"/v2/other") == "a-short"


@pytest.mark.parametrize("path", [b"/?x=/v2", b"/#/v2", b"", b"/V2"])
def test_match_ignores_query_and_fragment_when_it_compares_the_path(path: bytes) -> None:
    assert matched(plan_of(target()), b"x", path) is None


def test_match_keeps_the_path_before_a_query_when_it_has_one() -> None:
    assert matched(plan_of(target()), b"x", b"/v2?next=1#2") == "fraud"


def test_match_asks_for_method_and_headers_when_the_target_names_them() -> None:
    narrow = target("narrow", methods=["GET", "POST"])
    narrow.headers.add(header="x-model", equals="fraud")
    plan = plan_of(narrow, target("wide"))
    assert matched(plan, b"x", x_model=b"fraud") == "narrow"
    assert matched(plan, b"x", x_model=b"other") == "wide"
    assert matched(plan, b"x") == "wide"
    put = plan.match({":authority": b"x", ":path": b"/v2", ":method": b"PUT", "x-model": b"fraud"})
    assert put is not None
    assert put.name == "wide"


def test_match_prefers_more_predicates_when_the_prefix_is_the_same() -> None:
    one, two = target("a"), target("b")
    one.headers.append(Predicate(header="x-one", present=True))
    two.headers.append(Predicate(header="x-one", present=True))
    two.headers.append(Predicate(header="x-two", present=True))
    plan = plan_of(one, two)
    assert matched(plan, b"x", x_one=b"1", x_two=b"2") == "b"
    assert matched(plan, b"x", x_one=b"1") == "a"


def test_match_finds_nothing_when_there_is_no_target() -> None:
    assert matched(plan_of(), b"x") is None


# -- As Envoy's routes have it --------------------------------------------------------------------

HOSTS = ["a.svc", "b.svc", "c", "A.SVC:80"]
PATHS = [
    "/v2/models/fraud/infer", "/v2/models/fraud/versions/2/infer", "/v1/models/fraud:predict",
    "/v2/models/fraud", "/v2/models/other/infer", "/ns/v2/models/fraud", "/v2", "/",
    "/v2/models?q=/",
]  # fmt: skip
MODEL_HEADERS: list[dict[str, bytes]] = [
    {}, {"x-model-name": b"fraud"}, {"seldon-model": b"fraud", "x-model-version": b"2"},
    {"x-model-name": b"other", "x-model-version": b"2"}, {"x-one": b"1"},
]  # fmt: skip


@st.composite
def some_targets(draw: st.DrawFn) -> list[TargetPlan]:
    found = []
    for number in range(draw(st.integers(1, 4))):
        one = target(f"t{number}")
        one.path_prefix = draw(st.sampled_from(["/", "/v2", "/v2/models", "/ns", ""]))
        one.hosts.extend(draw(st.lists(st.sampled_from(["a.svc", "*.svc", "*", "c"]), max_size=2)))
        one.model_name = draw(st.sampled_from(["", "", "fraud"]))
        one.model_version = "2" if one.model_name and draw(st.booleans()) else ""
        one.methods.extend(draw(st.sampled_from([[], ["POST"], ["GET"]])))
        if draw(st.booleans()):
            one.headers.append(Predicate(header="x-one", present=draw(st.booleans())))
        found.append(one)
    return found


def by_routes(targets: list[TargetPlan], host: str, path: str, headers: dict[str, bytes]) -> str:
    """The first of Envoy's routes that takes the request: its target, "" = none."""
    name = host.split(":")[0].lower()
    patterns = {pattern for one in targets for pattern in target_hosts(one)} | {"*"}
    suffixes = sorted((p for p in patterns if p.startswith("*.")), key=len, reverse=True)
    fitting = [p for p in suffixes if name.endswith(p[1:]) and len(name) > len(p) - 1]
    virtual = name if name in patterns else next(iter(fitting), "*")
    path = path.split("?")[0]
    for one in targets_in_order(targets, virtual):
        if any(_takes(match, path, headers) for match in matches(one)):
            return one.name
    return ""


def _takes(match: Json, path: str, headers: dict[str, bytes]) -> bool:
    if "prefix" in match:
        fits = path.startswith(match["prefix"])
    else:
        pattern = match["safe_regex"]["regex"].replace(r"\C", "(?s:.)")
        fits = re.fullmatch(pattern, path) is not None
    for wanted in match.get("headers", ()):
        value = (headers | {":method": b"POST"}).get(wanted["name"])
        if "present_match" in wanted:
            fits = fits and (value is not None) == wanted["present_match"]
        else:
            fits = fits and value is not None and value.decode() == wanted["string_match"]["exact"]
    return fits


@given(
    some_targets(), st.sampled_from(HOSTS), st.sampled_from(PATHS), st.sampled_from(MODEL_HEADERS)
)
@settings(max_examples=300, deadline=None)
def test_match_is_the_target_of_envoys_first_route(
    targets: list[TargetPlan], host: str, path: str, headers: dict[str, bytes]
) -> None:
    pseudo = {":authority": host.encode(), ":path": path.encode(), ":method": b"POST"}
    found = plan_of(*targets).match(pseudo | headers)
    assert (found.name if found is not None else "") == by_routes(targets, host, path, headers)


def test_candidates_that_are_remembered_are_bounded() -> None:
    plan = plan_of(target())
    for number in range(3 * REMEMBERED_MAX):
        assert matched(plan, b"x", b"/v2/%d" % number) == "fraud"
    assert len(plan.matcher._known) <= REMEMBERED_MAX


def test_candidates_of_long_paths_are_found_and_not_remembered() -> None:
    """Anybody may send a thousand paths of 60 KB, each another."""
    plan = plan_of(target())
    for number in range(10):
        assert matched(plan, b"x", b"/v2/%d/" % number + b"p" * REMEMBERED_BYTES_MAX) == "fraud"
    assert not plan.matcher._known
