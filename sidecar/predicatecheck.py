"""What makes a predicate one that can be compiled, and every reason why one is not.

Owns the rules of predicates; refuses with a field path, the value and the rule.
"""

import math
from collections.abc import Iterator
from typing import Final

from sidecar.predicates import InvalidRegex, compile_regex
from sidecar.semver import InvalidConstraint, compile_constraints
from sidecar.violations import PRINTABLE, Violation, header_violations, violation
from turnout.contract import BUCKET_COUNT
from turnout.v1alpha1.common_pb2 import NumberRange, Percentage, Predicate

PREDICATE_DEPTH_MAX: Final = 8
PREDICATE_LEAVES_MAX: Final = 64
PREDICATE_VALUES_MAX: Final = 256
PREDICATE_VALUE_BYTES_MAX: Final = 256
PERCENTAGE_SALT_MAX: Final = 64
# What Envoy's routes can say, too.
_ROUTED: Final = ("equals", "prefix", "present")
_FIELDS: Final = (*_ROUTED, "regex", "range", "semver")


def predicate_violations(
    path: str, predicate: Predicate, *, routed: bool = False, salt: str = ""
) -> Iterator[Violation]:
    """Everything that is wrong with a predicate.

    Args:
        path: Of the field.
        predicate: As given.
        routed: It belongs to a target's match, which Envoy's routes repeat.
        salt: The experiment's own, which no percentage may use.
    """
    leaves = _leaves(predicate)
    if leaves > PREDICATE_LEAVES_MAX:
        yield violation(path, leaves, f"at most {PREDICATE_LEAVES_MAX} leaves")
    yield from _node(path, predicate, 1, routed=routed, salt=salt)


def _leaves(predicate: Predicate) -> int:
    parts = [*predicate.all, *predicate.any]
    if predicate.HasField("negated"):
        parts.append(predicate.negated)
    return sum(map(_leaves, parts)) if parts else 1


def _node(
    path: str, predicate: Predicate, depth: int, *, routed: bool, salt: str
) -> Iterator[Violation]:
    if depth > PREDICATE_DEPTH_MAX:
        yield violation(path, depth, f"at most {PREDICATE_DEPTH_MAX} levels")
        return
    shapes = [name for name in ("header", "all", "any") if getattr(predicate, name)]
    shapes += ["not"] * predicate.HasField("negated")
    shapes += ["percentage"] * predicate.HasField("percentage")
    if len(shapes) != 1:
        rule = "must have exactly one of header, all, any, not, percentage"
        yield violation(path, ", ".join(shapes) or "none", rule)
    if predicate.HasField("percentage"):
        yield from _percentage(f"{path}.percentage", predicate.percentage, routed=routed, salt=salt)
    if predicate.header or not shapes:
        yield from _leaf(path, predicate, routed=routed)
    for name in ("all", "any"):
        for index, part in enumerate(getattr(predicate, name)):
            here = f"{path}.{name}[{index}]"
            yield from _node(here, part, depth + 1, routed=routed, salt=salt)
    if predicate.HasField("negated"):
        yield from _node(f"{path}.not", predicate.negated, depth + 1, routed=routed, salt=salt)


def _leaf(path: str, predicate: Predicate, *, routed: bool) -> Iterator[Violation]:
    if predicate.header:
        yield from header_violations(f"{path}.header", predicate.header)
    tests = [name for name in _FIELDS if predicate.HasField(name)]
    tests += ["in"] * bool(predicate.in_values)
    possible = ("in", *(_ROUTED if routed else _FIELDS))
    if predicate.header and (len(tests) != 1 or tests[0] not in possible):
        rule = f"must have exactly one of {', '.join(sorted(possible))}"
        yield violation(path, ", ".join(tests) or "none", rule)
    if len(predicate.in_values) > PREDICATE_VALUES_MAX:
        yield violation(f"{path}.in", len(predicate.in_values), f"at most {PREDICATE_VALUES_MAX}")
    values = [(f"in[{index}]", value) for index, value in enumerate(predicate.in_values)]
    values += [(name, getattr(predicate, name)) for name in ("equals", "prefix", "regex", "semver")]
    for name, value in values:
        if len(value.encode()) > PREDICATE_VALUE_BYTES_MAX:
            rule = f"at most {PREDICATE_VALUE_BYTES_MAX} bytes"
            yield violation(f"{path}.{name}", value, rule)
    for name in ("prefix", "regex"):
        if name in tests and not getattr(predicate, name):
            yield violation(f"{path}.{name}", "", "must have 1 byte at least")
    yield from _compiled(path, predicate)
    if predicate.HasField("range"):
        yield from _range(f"{path}.range", predicate.range)


def _compiled(path: str, predicate: Predicate) -> Iterator[Violation]:
    """What only compiling tells."""
    if 0 < len(predicate.regex.encode()) <= PREDICATE_VALUE_BYTES_MAX:
        try:
            compile_regex(predicate.regex)
        except InvalidRegex as error:
            rule = f"must be an RE2 expression: {error}"
            yield violation(f"{path}.regex", predicate.regex, rule)
    if predicate.HasField("semver") and len(predicate.semver.encode()) <= PREDICATE_VALUE_BYTES_MAX:
        try:
            compile_constraints(predicate.semver)
        except InvalidConstraint as error:
            yield violation(f"{path}.semver", predicate.semver, str(error))


def _range(path: str, limits: NumberRange) -> Iterator[Violation]:
    given = [getattr(limits, name) for name in ("min", "max") if limits.HasField(name)]
    if not given or not all(map(math.isfinite, given)):
        yield violation(path, given, "must have min or max, and finite ones")
    elif len(given) == 2 and not limits.min < limits.max:
        yield violation(path, given, "must have min < max")


def _percentage(
    path: str, percentage: Percentage, *, routed: bool, salt: str
) -> Iterator[Violation]:
    if routed:
        yield violation(path, "set", "Envoy's routes cannot say it")
    if not 0 < len(percentage.salt) <= PERCENTAGE_SALT_MAX or not PRINTABLE.match(percentage.salt):
        rule = f"must be 1..{PERCENTAGE_SALT_MAX} printable ASCII characters"
        yield violation(f"{path}.salt", percentage.salt, rule)
    if percentage.salt == salt:
        rule = "must not be the experiment's own: its variants would not be comparable"
        yield violation(f"{path}.salt", percentage.salt, rule)
    if percentage.buckets > BUCKET_COUNT:
        yield violation(f"{path}.buckets", percentage.buckets, f"at most {BUCKET_COUNT}")
