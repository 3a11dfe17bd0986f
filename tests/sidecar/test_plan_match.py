"""Which target a request is for: the same as Envoy's routes."""

from __future__ import annotations

import pytest

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
