"""Predicates on request headers, compiled to closures.

Owns what a predicate means: values are compared as bytes; of several headers of one name, one that
fits is enough (as to Envoy's own header matcher, which does not join them: tried on 1.40); a header
that is missing makes every leaf but `present: false` false. Refuses nothing: `snapshotcheck` has
validated it before.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from turnout.v1alpha1.common_pb2 import Predicate

# Between the values of several headers of one name: no header's value can hold it.
REPEATED: Final = b"\0"

Headers = Mapping[str, bytes]
Test = Callable[[Headers], bool]


def compile_predicate(predicate: Predicate) -> Test:
    """Turn a validated predicate into a function of the request's headers (lower-case names)."""
    if predicate.all:
        return compile_all(predicate.all)
    if predicate.any:
        return _any_of([compile_predicate(part) for part in predicate.any])
    if predicate.HasField("negated"):
        return _not(compile_predicate(predicate.negated))
    return _leaf(predicate)


def compile_all(predicates: Sequence[Predicate]) -> Test:
    """The conjunction of predicates; of none, it is true."""
    tests = [compile_predicate(part) for part in predicates]
    if len(tests) == 1:
        return tests[0]

    def all_of(headers: Headers) -> bool:
        for test in tests:  # noqa: SIM110 - a generator costs more than the tests
            if not test(headers):
                return False
        return True

    return all_of


def _any_of(tests: Sequence[Test]) -> Test:
    def any_of(headers: Headers) -> bool:
        for test in tests:  # noqa: SIM110 - a generator costs more than the tests
            if test(headers):
                return True
        return False

    return any_of


def _not(test: Test) -> Test:
    def negated(headers: Headers) -> bool:
        return not test(headers)

    return negated


def _leaf(predicate: Predicate) -> Test:
    name = predicate.header
    if predicate.HasField("present"):
        wanted = predicate.present
        return lambda headers: (name in headers) is wanted
    fits = _value(predicate)

    def leaf(headers: Headers) -> bool:
        value = headers.get(name)
        if value is None:
            return False
        if REPEATED in value:
            return any(map(fits, value.split(REPEATED)))
        return fits(value)

    return leaf


def _value(predicate: Predicate) -> Callable[[bytes], bool]:
    if predicate.HasField("prefix"):
        prefix = predicate.prefix.encode()
        return lambda value: value.startswith(prefix)
    if predicate.HasField("equals"):
        wanted = predicate.equals.encode()
        return lambda value: value == wanted
    values = frozenset(text.encode() for text in predicate.in_values)
    return lambda value: value in values
