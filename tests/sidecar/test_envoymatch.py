"""Which requests are a target's; tests/integration/test_routes.py asks Envoy itself."""

from __future__ import annotations

import pytest

from sidecar.envoymatch import MATCH_TERMS_MAX, UnsupportedMatch, matches, targets_in_order
from turnout.v1alpha1.common_pb2 import Predicate
from turnout.v1alpha1.snapshot_pb2 import TargetPlan

A = Predicate(header="x-a", equals="1")
B = Predicate(header="x-b", prefix="p")


def test_any_becomes_one_route_for_each_way() -> None:
    target = TargetPlan(name="t", headers=[A, Predicate(any=[A, B])])
    found = [[header["name"] for header in match["headers"]] for match in matches(target)]
    assert found == [["x-a", "x-a"], ["x-a", "x-b"]]


def test_negation_is_pushed_to_the_leaves() -> None:
    nor = Predicate(negated=Predicate(any=[A, Predicate(negated=B)]))
    (match,) = matches(TargetPlan(name="t", headers=[nor]))
    not_a, b = match["headers"]
    assert not_a["invert_match"]
    # So that a request without the header satisfies the negation.
    assert not_a["treat_missing_header_as_empty"]
    assert b == {"name": "x-b", "string_match": {"prefix": "p"}}


def test_values_are_quoted_when_they_look_like_expressions() -> None:
    leaf = Predicate(header="x-a", in_values=["a.b", "c|d"])
    (match,) = matches(TargetPlan(name="t", headers=[leaf]))
    assert match["headers"][0]["string_match"]["safe_regex"]["regex"] == r"a\.b|c\|d"


def test_match_is_refused_when_it_needs_too_many_routes() -> None:
    both = Predicate(any=[A, B])
    fits = TargetPlan(name="t", headers=[both] * 6)
    assert len(matches(fits)) == MATCH_TERMS_MAX
    with pytest.raises(UnsupportedMatch) as refused:
        matches(TargetPlan(name="t", headers=[both] * 60))
    assert refused.value.terms > MATCH_TERMS_MAX


def test_targets_are_looked_for_by_host_then_path_then_headers_then_methods_then_name() -> None:
    targets = [
        TargetPlan(name="any"),
        TargetPlan(name="b", hosts=["a.x"]),
        TargetPlan(name="a", hosts=["a.x"]),
        TargetPlan(name="methods", hosts=["a.x"], methods=["GET"]),
        TargetPlan(name="headers", hosts=["A.x"], headers=[A]),
        TargetPlan(name="path", hosts=["a.x"], path_prefix="/v2"),
        TargetPlan(name="suffix", hosts=["*.x"], path_prefix="/v2/models"),
        TargetPlan(name="other", hosts=["b.x"]),
    ]
    order = [target.name for target in targets_in_order(targets, "a.x")]
    assert order == ["path", "headers", "methods", "a", "b", "suffix", "any"]
    assert [t.name for t in targets_in_order(targets, "*.x")] == ["suffix", "any"]
