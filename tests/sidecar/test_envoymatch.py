"""Which requests are a target's; tests/integration/test_routes.py asks Envoy itself."""

from __future__ import annotations

import re

import pytest

from sidecar.envoymatch import (
    MATCH_TERMS_MAX,
    UnsupportedMatch,
    matches,
    model_prefixes,
    targets_in_order,
)
from turnout.contract import MODEL_NAME_HEADERS
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


def _by_path(target: TargetPlan, path: str) -> bool:
    """Whether one of the target's matches takes a request that has this path and no header."""
    for match in matches(target):
        if "headers" in match:
            continue
        if "prefix" in match:
            taken = path.startswith(match["prefix"])
        else:
            regex = match["safe_regex"]["regex"].replace(r"\C", "(?s:.)")
            taken = re.fullmatch(regex, path) is not None
        if taken:
            return True
    return False


@pytest.mark.parametrize(
    ("path", "named", "versioned"),
    [
        ("/v2/models/fraud", True, False),
        ("/v2/models/fraud/infer", True, False),
        ("/v2/models/fraud/versions/2", True, True),
        ("/v2/models/fraud/versions/2/infer", True, True),
        ("/v2/models/fraud/versions/22/infer", True, False),
        ("/v1/models/fraud:predict", True, False),
        ("/v1/models/fraud", True, False),
        ("/v1/models/fraud/versions/2:predict", True, True),
        ("/v2/models/fraud:predict", False, False),
        ("/v2/models/fraud2/infer", False, False),
        ("/v2/models/Fraud/infer", False, False),
        ("/x/v2/models/fraud/infer", False, False),
        ("/v2/models", False, False),
    ],
)
def test_path_names_a_model_as_open_inference_protocol_and_kserve_do(
    path: str, named: bool, versioned: bool
) -> None:
    model = TargetPlan(name="t", model_name="fraud")
    assert _by_path(model, path) is named
    assert (path + "/").startswith(model_prefixes(model, version=False)) is named
    model.model_version = "2"
    assert _by_path(model, path) is versioned
    assert (path + "/").startswith(model_prefixes(model, version=True)) is versioned


_RESTS = (
    "/v2/models/fraud",
    "/v2/models/fraud/",
    "/v2/models/fraud/infer/x",
    "/v1/models/fraud:predict",
    "/v2/models/fraudulent",
    "/v2/models",
)


@pytest.mark.parametrize(
    "prefix",
    ["/", "", "/ns/fraud", "/ns/fraud/", "/v2/models/fraud", "/v2/models/fraud/", "/v2/models/x",
     "/v2/models/fraud/infer", "/v1/models/fraud:", "/v1/models/fraud:pre", "/v2/mod"],
)  # fmt: skip
def test_path_prefix_and_model_must_both_hold_when_a_target_has_both(prefix: str) -> None:
    model = TargetPlan(name="t", model_name="fraud", path_prefix=prefix)
    taken = 0
    for mount in ("", "/ns/fraud", "/ns"):
        for rest in _RESTS:
            path = mount + rest
            named = (path + "/").startswith(model_prefixes(model, version=False))
            assert _by_path(model, path) is (named and path.startswith(prefix or "/")), path
            taken += _by_path(model, path)
    assert taken or prefix == "/v2/models/x"


def test_header_names_the_model_when_the_path_does_not() -> None:
    model = TargetPlan(name="t", model_name="fraud", methods=["POST"], headers=[A])
    by_header = [m for m in matches(model) if m.get("prefix") == "/"]
    assert [m["headers"][1] for m in by_header] == [
        {"name": name, "string_match": {"exact": "fraud"}} for name in MODEL_NAME_HEADERS
    ]
    assert all(m["headers"][0]["name"] == ":method" for m in matches(model))
    assert all(m["headers"][-1]["name"] == "x-a" for m in matches(model))
    model.model_version = "2"
    asked = [[h["name"] for h in m["headers"][1:-1]] for m in matches(model)]
    assert asked == [[], ["x-model-version"], *([n, "x-model-version"] for n in MODEL_NAME_HEADERS)]


def test_target_with_a_model_comes_before_prefixes_that_would_hide_it() -> None:
    targets = [
        TargetPlan(name="prefix", path_prefix="/v2/models/fraud/versions"),
        TargetPlan(name="model", model_name="fraud"),
        TargetPlan(name="version", model_name="fraud", model_version="2"),
        TargetPlan(name="host", hosts=["a.x"]),
    ]
    order = [target.name for target in targets_in_order(targets, "a.x")]
    assert order == ["host", "version", "model", "prefix"]
