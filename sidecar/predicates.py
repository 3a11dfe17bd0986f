"""Predicates on a request, compiled to closures.

Owns what a predicate means: values are compared as bytes; of several headers of one name, one that
fits is enough (as to Envoy's own header matcher, which does not join them: tried on 1.40); a header
that is missing makes every leaf but `present: false` false, and so does a value that is no number
or no version. Refuses nothing: `snapshotcheck` has validated it before.

Regular expressions are RE2's (google-re2: 0.6 MB, 16 ms and 3.7 MB to import, 2 KB for each
expression, 1.4 us for a match), so that no expression and no header can take more than linear time.
It is imported when the first expression is compiled: who uses none pays nothing.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from sidecar.hashing import bucket_after, salt_prefix
from sidecar.semver import compile_constraints
from turnout.v1alpha1.common_pb2 import NumberRange, Percentage, Predicate, Stratum

# Between the values of several headers of one name: no header's value can hold it.
REPEATED: Final = b"\0"
# The same as a number: `bytes in bytes` tries its left side as one first, and fails, at a price.
_REPEATED_BYTE: Final = 0
REGEX_PROGRAM_MAX: Final = 100  # instructions
# RE2's own budget for one expression, compiled and cached states; its default is 8 MB.
_REGEX_BYTES_MAX: Final = 256 * 1024
NUMBER_BYTES_MAX: Final = 64
_NUMBER: Final = re.compile(rb"[+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?\Z")
_INFINITY: Final = float("inf")
# Results that a leaf remembers, by value: a header that segments split by has few values.
_REMEMBERED_MAX: Final = 256
_REMEMBERED_BYTES_MAX: Final = 128

Headers = Mapping[str, bytes]
# A request's headers (lower-case names) and its unit, which only a percentage looks at.
Test = Callable[[Headers, bytes], bool]
Fits = Callable[[bytes], bool]


class Regex(Protocol):
    """What is used of a compiled expression."""

    programsize: int

    def fullmatch(self, text: bytes) -> object | None:
        """Whether the whole text matches."""
        ...


class InvalidRegex(ValueError):
    """The text is no RE2 expression, or too large a one; the message says why."""


def compile_predicate(predicate: Predicate) -> Test:
    """Turn a validated predicate into a function of the request's headers and unit."""
    if predicate.all:
        return compile_all(predicate.all)
    if predicate.any:
        return any_of([compile_predicate(part) for part in predicate.any])
    if predicate.HasField("negated"):
        return _not(compile_predicate(predicate.negated))
    if predicate.HasField("percentage"):
        return _percentage(predicate.percentage)
    return _leaf(predicate)


def stratum_test(stratum: Stratum) -> Predicate:
    """What a request of the stratum fits."""
    negated = stratum.negated if stratum.HasField("negated") else None
    return Predicate(all=stratum.all, any=stratum.any, negated=negated)


def compile_all(predicates: Sequence[Predicate]) -> Test:
    """The conjunction of predicates; of none, it is true."""
    return all_of([compile_predicate(part) for part in predicates])


def all_of(tests: Sequence[Test]) -> Test:
    """The conjunction of tests; of none, it is true."""
    if len(tests) == 1:
        return tests[0]
    tests = tuple(tests)

    def every(headers: Headers, unit: bytes = b"") -> bool:
        for test in tests:  # noqa: SIM110 - a generator costs more than the tests
            if not test(headers, unit):
                return False
        return True

    return every


def any_of(tests: Sequence[Test]) -> Test:
    """The disjunction of tests; of none, it is false."""

    def some(headers: Headers, unit: bytes = b"") -> bool:
        for test in tests:  # noqa: SIM110 - a generator costs more than the tests
            if test(headers, unit):
                return True
        return False

    return some


def _not(test: Test) -> Test:
    def negated(headers: Headers, unit: bytes = b"") -> bool:
        return not test(headers, unit)

    return negated


def _percentage(percentage: Percentage) -> Test:
    prefix, buckets = salt_prefix(percentage.salt.encode()), percentage.buckets

    def share(_headers: Headers, unit: bytes = b"") -> bool:
        return bucket_after(prefix, unit) < buckets

    return share


def _leaf(predicate: Predicate) -> Test:
    name = predicate.header
    if predicate.HasField("present"):
        return _is_there(name, wanted=predicate.present)
    if predicate.HasField("equals"):
        return among(name, [predicate.equals])
    if predicate.in_values:
        return among(name, predicate.in_values)
    fits = _value(predicate)

    def leaf(headers: Headers, _unit: bytes = b"") -> bool:
        value = headers.get(name)
        if value is None:
            return False
        if _REPEATED_BYTE in value:
            return any(map(fits, value.split(REPEATED)))
        return fits(value)

    return leaf


def _is_there(name: str, *, wanted: bool) -> Test:
    def present(headers: Headers, _unit: bytes = b"") -> bool:
        return (name in headers) is wanted

    return present


def among(name: str, values: Sequence[str]) -> Test:
    """Whether a header is one of some values."""
    wanted = frozenset(text.encode() for text in values)

    def leaf(headers: Headers, _unit: bytes = b"") -> bool:
        value = headers.get(name)
        if value in wanted:
            return True
        if value is None or _REPEATED_BYTE not in value:
            return False
        return not wanted.isdisjoint(value.split(REPEATED))

    return leaf


def _value(predicate: Predicate) -> Fits:
    if predicate.HasField("prefix"):
        prefix = predicate.prefix.encode()
        return lambda value: value.startswith(prefix)
    if predicate.HasField("regex"):
        match = compile_regex(predicate.regex).fullmatch
        return _remembering(lambda value: match(value) is not None)
    if predicate.HasField("range"):
        return _number_in(predicate.range)
    return _remembering(compile_constraints(predicate.semver))


def compile_regex(text: str) -> Regex:
    """An RE2 expression; its `fullmatch` takes bytes.

    Raises:
        InvalidRegex: RE2 refuses it, or its program is longer than REGEX_PROGRAM_MAX.
    """
    import re2

    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = _REGEX_BYTES_MAX
    try:
        found: Regex = re2.compile(text, options)
    except re2.error as error:
        why = error.args[0] if error.args else b""
        text = why.decode(errors="replace") if isinstance(why, bytes) else str(why)
        raise InvalidRegex(text) from error
    if found.programsize > REGEX_PROGRAM_MAX:
        raise InvalidRegex(f"{found.programsize} instructions, at most {REGEX_PROGRAM_MAX}")
    return found


def _number_in(limits: NumberRange) -> Fits:
    low = limits.min if limits.HasField("min") else -_INFINITY
    high = limits.max if limits.HasField("max") else _INFINITY

    def inside(value: bytes) -> bool:
        if len(value) > NUMBER_BYTES_MAX or _NUMBER.match(value) is None:
            return False
        number = float(value)
        # 1e999 is written as a number, but has become an infinity.
        return low <= number < high and -_INFINITY < number < _INFINITY

    return _remembering(inside)


def _remembering(fits: Fits) -> Fits:
    """The same function with the results of its latest short values at hand."""
    known: dict[bytes, bool] = {}

    def remembered(value: bytes) -> bool:
        result = known.get(value)
        if result is None:
            result = fits(value)
            if len(value) <= _REMEMBERED_BYTES_MAX:
                if len(known) >= _REMEMBERED_MAX:
                    known.clear()
                known[value] = result
        return result

    return remembered
