"""What a predicate on headers means, case by case; `tests/properties` has the oracle."""

from __future__ import annotations

import pytest

from sidecar.hashing import bucket
from sidecar.predicates import (
    REGEX_PROGRAM_MAX,
    REPEATED,
    InvalidRegex,
    compile_all,
    compile_predicate,
    compile_regex,
)
from turnout.v1alpha1.common_pb2 import NumberRange, Percentage, Predicate

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
    assert compile_predicate(predicate)(headers, b"") is holds


@pytest.mark.parametrize("a", [b"1", b"2"])
@pytest.mark.parametrize("b", [b"", None])
def test_all_and_any_are_and_and_or(a: bytes, b: bytes | None) -> None:
    headers = {"x-a": a} | ({} if b is None else {"x-b": b})
    both, either = a == b"1" and b is not None, a == b"1" or b is not None
    assert compile_predicate(Predicate(all=[A, B]))(headers, b"") is both
    assert compile_predicate(Predicate(any=[A, B]))(headers, b"") is either
    assert compile_all([A, B])(headers, b"") is both
    assert compile_all([])(headers, b"") is True


# -- Expressions, numbers, versions, shares -------------------------------------------------------


def regex(text: str) -> Predicate:
    return Predicate(header="x-a", regex=text)


def between(low: float | None = None, high: float | None = None) -> Predicate:
    return Predicate(header="x-a", range=NumberRange(min=low, max=high))


@pytest.mark.parametrize(
    ("predicate", "value", "holds"),
    [
        (regex("[a-z]+-(foo|bar)[0-9]{2}"), b"x-foo12", True),
        (regex("[a-z]+-(foo|bar)[0-9]{2}"), b"x-foo123", False),
        (regex("foo|bar"), b"foobar", False),
        (regex("a.c"), "a\N{SNOWMAN}c".encode(), True),
        (regex("a.c"), b"a\xffc", False),
        (regex("a.c"), b"a\nc", False),
        (regex("(?i)abc"), b"ABC", True),
        (regex("x*"), b"", True),
        (regex("x"), None, False),
        (regex("x"), b"y" + REPEATED + b"x", True),
        (between(1, 2), b"1", True),
        (between(1, 2), b"2", False),
        (between(1, 2), b"1.999", True),
        (between(1, 2), b"0.9999", False),
        (between(low=-5), b"-4.5e0", True),
        (between(low=-5), b"+1E3", True),
        (between(high=5), b"-1e300", True),
        (between(high=5), b"-1e999", False),
        (between(low=5), b"1e999", False),
        (between(low=0), b"inf", False),
        (between(low=0), b"nan", False),
        (between(low=0), b"1_0", False),
        (between(low=0), b" 1", False),
        (between(low=0), b"1.", False),
        (between(low=0), b".5", False),
        (between(low=0), b"0x1", False),
        (between(low=0), "\N{ARABIC-INDIC DIGIT ONE}".encode(), False),
        (between(low=0), b"1" * 64, True),
        (between(low=0), b"1" * 65, False),
        (between(low=0), b"", False),
        (between(low=0), None, False),
        (between(low=5), b"1" + REPEATED + b"6", True),
        (Predicate(header="x-a", semver=">=1.2.0 <2.0.0"), b"1.9.9", True),
        (Predicate(header="x-a", semver=">=1.2.0 <2.0.0"), b"2.0.0", False),
        (Predicate(header="x-a", semver=">=1.2.0"), b"rubbish", False),
        (Predicate(header="x-a", semver=">=1.2.0"), None, False),
    ],
)
def test_predicate_compares_by_meaning_when_it_is_more_than_bytes(
    predicate: Predicate, value: bytes | None, holds: bool
) -> None:
    headers = {} if value is None else {"x-a": value}
    test = compile_predicate(predicate)
    assert test(headers, b"") is holds
    assert test(headers, b"") is holds, "and again, remembered"


def test_percentage_takes_the_units_below_its_buckets() -> None:
    test = compile_predicate(Predicate(percentage=Percentage(salt="other", buckets=250_000)))
    units = [b"user-%d" % number for number in range(2_000)]
    taken = [unit for unit in units if test({}, unit)]
    assert taken == [unit for unit in units if bucket(b"other", unit) < 250_000]
    assert 400 < len(taken) < 600
    nobody = compile_predicate(Predicate(percentage=Percentage(salt="other", buckets=0)))
    assert not any(nobody({}, unit) for unit in units)


@pytest.mark.parametrize("text", ["(", "a{1001}", "(?=a)", r"(a)\1", "(a*)*{3}", "[a-z]{90}" * 3])
def test_expression_is_refused_when_it_is_no_re2_or_too_large(text: str) -> None:
    with pytest.raises(InvalidRegex):
        compile_regex(text)


def test_expression_has_a_bounded_program() -> None:
    assert compile_regex("[a-z]{40}").programsize <= REGEX_PROGRAM_MAX


def test_remembered_results_are_bounded_and_right() -> None:
    test = compile_predicate(regex("[0-9]*[02468]"))
    for number in range(1_000):
        assert test({"x-a": b"%d" % number}, b"") is (number % 2 == 0)
    assert test({"x-a": b"2" * 10_000}, b"") is True
