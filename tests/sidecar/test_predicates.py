"""What a predicate on headers means, case by case; `tests/properties` has the oracle."""

from __future__ import annotations

import pytest

from sidecar.predicates import REPEATED, compile_all, compile_predicate
from turnout.v1alpha1.common_pb2 import Predicate

A = Predicate(header="x-a", equals="1")
B = Predicate(header="x-b", present=True)


@pytest.mark.parametrize(
    ("predicate", "value", "holds"),
    [
        (Predicate(header="x-a", equals="1"), b"1", True),
        (Predicate(header="x-a", equals="1"), b"11", False),
        (Predicate(header="x-a", equals=""), b"", True),
        (Predicate(header="x-a", equals=""), None, False),
        (Predicate(header="x-a", prefix="1"), b"12", True),
        (Predicate(header="x-a", prefix="1"), b"21", False),
        (Predicate(header="x-a", prefix="1"), None, False),
        (Predicate(header="x-a", in_values=["1", "2"]), b"2", True),
        (Predicate(header="x-a", in_values=["1", "2"]), b"3", False),
        (Predicate(header="x-a", in_values=["1", "2"]), None, False),
        (Predicate(header="x-a", present=True), b"", True),
        (Predicate(header="x-a", present=True), None, False),
        (Predicate(header="x-a", present=False), b"", False),
        (Predicate(header="x-a", present=False), None, True),
        (Predicate(negated=A), b"1", False),
        (Predicate(negated=A), b"2", True),
        (Predicate(negated=A), None, True),
        (Predicate(header="x-a", equals="\N{SNOWMAN}"), "\N{SNOWMAN}".encode(), True),
        (Predicate(header="x-a", equals="\N{SNOWMAN}"), b"\xff", False),
        (A, b"2" + REPEATED + b"1", True),
        (A, b"2" + REPEATED + b"3", False),
    ],
)
def test_predicate_holds_when_the_value_fits(
    predicate: Predicate, value: bytes | None, holds: bool
) -> None:
    headers = {} if value is None else {"x-a": value}
    assert compile_predicate(predicate)(headers) is holds


@pytest.mark.parametrize("a", [b"1", b"2"])
@pytest.mark.parametrize("b", [b"", None])
def test_all_and_any_are_and_and_or(a: bytes, b: bytes | None) -> None:
    headers = {"x-a": a} | ({} if b is None else {"x-b": b})
    both, either = a == b"1" and b is not None, a == b"1" or b is not None
    assert compile_predicate(Predicate(all=[A, B]))(headers) is both
    assert compile_predicate(Predicate(any=[A, B]))(headers) is either
    assert compile_all([A, B])(headers) is both
    assert compile_all([])(headers) is True
