"""Semantic versions: the order of semver.org 2.0.0 section 11, and constraints."""

from __future__ import annotations

from itertools import pairwise

import pytest

from sidecar.semver import InvalidConstraint, compile_constraints, parse_version

# The example of section 11, and numbers that order as numbers.
ASCENDING = [
    "1.0.0-0", "1.0.0-2", "1.0.0-11", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta",
    "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1", "1.2.0",
    "1.10.0", "2.0.0",
]  # fmt: skip


def test_versions_are_in_the_order_of_the_specification() -> None:
    parsed = [parse_version(text) for text in ASCENDING]
    for low, high in pairwise(parsed):
        assert low is not None
        assert high is not None
        assert low < high


@pytest.mark.parametrize("text", ["v1.2.3", "1.2.3+build", "1.2.3+001.sha-5114f85"])
def test_prefix_and_build_do_not_matter(text: str) -> None:
    assert parse_version(text) == parse_version("1.2.3")


@pytest.mark.parametrize(
    "text",
    ["", "1", "1.2", "1.2.3.4", "01.2.3", "1.02.3", "1.2.03", "1.2.3-", "1.2.3-01", "1.2.3-a..b",
     "1.2.3+", "-1.2.3", " 1.2.3", "1.2.3\n", "vv1.2.3", "V1.2.3", "1.2.3-\u00fc",
     "1.2." + "3" * 300],
)  # fmt: skip
def test_text_is_no_version(text: str) -> None:
    assert parse_version(text) is None


@pytest.mark.parametrize(
    ("constraint", "inside", "outside"),
    [
        ("1.2.3", ["1.2.3", "v1.2.3+x"], ["1.2.4", "1.2.3-rc"]),
        ("=1.2.3", ["1.2.3"], ["1.2.2"]),
        ("!=1.2.3", ["1.2.4"], ["1.2.3"]),
        (">1.2.3", ["1.2.4", "2.0.0-a"], ["1.2.3", "1.2.3-rc"]),
        (">=1.2.0 <2.0.0", ["1.2.0", "1.99.0", "2.0.0-rc.1"], ["1.2.0-rc", "2.0.0", "1.1.9"]),
        ("<=1.2.3", ["1.2.3", "0.0.0"], ["1.2.4"]),
        ("^1.2.3", ["1.2.3", "1.9.0"], ["2.0.0", "2.0.0-0", "2.0.0-rc", "1.2.2"]),
        ("^0.2.3", ["0.2.3", "0.2.9"], ["0.3.0", "0.3.0-a", "0.2.2"]),
        ("^0.0.3", ["0.0.3"], ["0.0.4", "0.0.2", "0.0.4-a"]),
        ("~1.2.3", ["1.2.3", "1.2.9"], ["1.3.0", "1.3.0-a", "1.2.2"]),
        ("~0.0.3", ["0.0.3", "0.0.9"], ["0.1.0"]),
        ("  ^1.0.0   !=1.5.0 ", ["1.4.0"], ["1.5.0", "2.0.0"]),
    ],
)
def test_constraint_holds_inside_and_not_outside(
    constraint: str, inside: list[str], outside: list[str]
) -> None:
    fits = compile_constraints(constraint)
    assert [text for text in inside if not fits(text.encode())] == []
    assert [text for text in outside if fits(text.encode())] == []
    assert not fits(b"\xff")


@pytest.mark.parametrize(
    "text", ["", " ", "1.2", ">=", ">= 1.2.0", "=>1.2.0", "1.x", "^", "a || b"]
)
def test_constraint_is_refused_when_it_cannot_be_read(text: str) -> None:
    with pytest.raises(InvalidConstraint):
        compile_constraints(text)
