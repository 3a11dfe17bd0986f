"""Rules about predicates: the shape of the tree, and every kind of leaf.

A target's match is repeated by Envoy's routes, which know only some of the leaves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import re2

from control.model.rules import check_header, check_salt, check_share, check_text
from control.model.violations import Report
from turnout.v1alpha1.common_pb2 import NumberRange, Percentage, Predicate
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec

PREDICATE_DEPTH_MAX: Final = 8
PREDICATE_LEAVES_MAX: Final = 64
PREDICATE_VALUES_MAX: Final = 256
VALUE_BYTES_MAX: Final = 256
REGEX_INSTRUCTIONS_MAX: Final = 100
REGEX_BYTES_MAX: Final = 256 * 1024  # RE2's budget for one expression; its default is 8 MiB

# One comparator: an operator (= when there is none) and a version of Semantic Versioning 2.0.0
# without build metadata, which has no place in an order.
_NUMBER: Final = r"(?:0|[1-9][0-9]{0,17})"
_IDENTIFIER: Final = r"(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_COMPARATOR: Final = re.compile(
    rf"(?:=|!=|<=|>=|<|>|\^|~)?v?{_NUMBER}\.{_NUMBER}\.{_NUMBER}"
    rf"(?:-{_IDENTIFIER}(?:\.{_IDENTIFIER})*)?"
)
_SEMVER_RULE: Final = (
    "must be comparators like >=1.2.0 <2.0.0: one of = != < <= > >= ^ ~ before MAJOR.MINOR.PATCH"
)

_ROUTED: Final = ("equals", "in", "prefix", "present")
_LEAVES: Final = (*_ROUTED, "regex", "range", "semver")


class Use(NamedTuple):
    """Where a predicate stands.

    Attributes:
        target: In a target's match.
        salt: The experiment's own; "" = it has none yet, or there is no experiment.
    """

    target: bool = False
    salt: str = ""


def check_predicate(report: Report, path: str, predicate: Predicate, use: Use) -> None:
    """A predicate and all below it."""
    leaves = _check_node(report, path, predicate, use, 1)
    if leaves > PREDICATE_LEAVES_MAX:
        report.add(path, f"{leaves} conditions", f"at most {PREDICATE_LEAVES_MAX}")


def _check_node(report: Report, path: str, predicate: Predicate, use: Use, depth: int) -> int:
    """Check one node; the number of leaves at and below it."""
    if depth > PREDICATE_DEPTH_MAX:
        report.add(path, f"level {depth}", f"at most {PREDICATE_DEPTH_MAX} levels deep")
        return 0
    shapes = [name for name in ("header", "all", "any") if getattr(predicate, name)]
    shapes += ["not"] if predicate.HasField("negated") else []
    shapes += ["percentage"] if predicate.HasField("percentage") else []
    if len(shapes) != 1:
        value = ", ".join(shapes) or "none"
        known = "header, all, any, not" if use.target else "header, percentage, all, any, not"
        report.add(path, value, f"must have exactly one of {known}")
    leaves = _check_leaf(report, path, predicate, use)
    if predicate.HasField("percentage"):
        leaves += 1
        _check_percentage(report, f"{path}.percentage", predicate.percentage, use)
    for name, parts in (("all", predicate.all), ("any", predicate.any)):
        for index, part in enumerate(parts):
            leaves += _check_node(report, f"{path}.{name}[{index}]", part, use, depth + 1)
    if predicate.HasField("negated"):
        leaves += _check_node(report, f"{path}.not", predicate.negated, use, depth + 1)
    return leaves


def _tests(predicate: Predicate) -> list[str]:
    """Names of the tests that a leaf makes on its header."""
    found = ["in"] if predicate.in_values else []
    found += [name for name in ("equals", "prefix", "present") if predicate.HasField(name)]
    found += [name for name in ("regex", "range", "semver") if predicate.HasField(name)]
    return found


def _check_leaf(report: Report, path: str, predicate: Predicate, use: Use) -> int:
    tests = _tests(predicate)
    if not predicate.header:
        for name in tests:
            report.add(f"{path}.{name}", "without header", "needs a header to test")
        return 0
    check_header(report, f"{path}.header", predicate.header)
    known = _ROUTED if use.target else _LEAVES
    if len(tests) != 1:
        rule = f"must have exactly one of {', '.join(known)}"
        report.add(path, ", ".join(tests) or "none", rule)
    for name in tests:
        if name not in known:
            rule = f"not in a target's match, which Envoy's routes repeat: {', '.join(known)}"
            report.add(f"{path}.{name}", "set", rule)
    _check_operands(report, path, predicate)
    return 1


def _check_operands(report: Report, path: str, predicate: Predicate) -> None:
    if len(predicate.in_values) > PREDICATE_VALUES_MAX:
        value = f"{len(predicate.in_values)} values"
        report.add(f"{path}.in", value, f"at most {PREDICATE_VALUES_MAX}")
    for index, value in enumerate(predicate.in_values[:PREDICATE_VALUES_MAX]):
        check_value(report, f"{path}.in[{index}]", value)
    if predicate.HasField("equals"):
        check_value(report, f"{path}.equals", predicate.equals)
    if predicate.HasField("prefix"):
        check_value(report, f"{path}.prefix", predicate.prefix, empty=False)
    if predicate.HasField("regex"):
        _check_regex(report, f"{path}.regex", predicate.regex)
    if predicate.HasField("range"):
        _check_range(report, f"{path}.range", predicate.range)
    if predicate.HasField("semver"):
        _check_semver(report, f"{path}.semver", predicate.semver)


def check_value(report: Report, path: str, value: str, *, empty: bool = True) -> None:
    """What a header's value can be."""
    check_text(report, path, value, VALUE_BYTES_MAX, empty=empty)
    if value != value.strip(" \t"):
        report.add(path, value, "must not begin or end with blanks: no header value does")


def _check_regex(report: Report, path: str, expression: str) -> None:
    check_text(report, path, expression, VALUE_BYTES_MAX)
    if len(expression.encode()) > VALUE_BYTES_MAX:
        return
    # As the sidecar compiles it.
    options: Any = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = REGEX_BYTES_MAX
    try:
        compiled: Any = re2.compile(expression, options)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace") if error.args else "not RE2"
        report.add(path, expression, f"must be an RE2 expression: {reason}")
        return
    if compiled.programsize > REGEX_INSTRUCTIONS_MAX:
        size = compiled.programsize
        rule = f"has {size} instructions, at most {REGEX_INSTRUCTIONS_MAX}: simplify it"
        report.add(path, expression, rule)


def _check_range(report: Report, path: str, limits: NumberRange) -> None:
    if not limits.HasField("min") and not limits.HasField("max"):
        report.add(path, "none", "must have min, max or both: min <= x < max")
    finite = True
    for name in ("min", "max"):
        value = getattr(limits, name)
        if limits.HasField(name) and not math.isfinite(value):
            report.add(f"{path}.{name}", value, "must be finite; leave out a side without limit")
            finite = False
    both = limits.HasField("min") and limits.HasField("max")
    if both and finite and limits.min >= limits.max:
        rule = "must be above min: it is the first number that no longer fits"
        report.add(f"{path}.max", limits.max, rule)


def _check_semver(report: Report, path: str, constraints: str) -> None:
    check_text(report, path, constraints, VALUE_BYTES_MAX)
    parts = constraints.split()
    if constraints and not parts:
        report.add(path, constraints, _SEMVER_RULE)
    for part in parts:
        if not _COMPARATOR.fullmatch(part):
            report.add(path, part, _SEMVER_RULE)


def _check_percentage(report: Report, path: str, percentage: Percentage, use: Use) -> None:
    if use.target:
        rule = f"not in a target's match, which Envoy's routes repeat: {', '.join(_ROUTED)}"
        report.add(path, "set", rule)
        return
    check_salt(report, f"{path}.salt", percentage.salt)
    if use.salt and percentage.salt == use.salt:
        rule = "must not be the experiment's own salt: one variant would lose its units"
        report.add(f"{path}.salt", percentage.salt, rule)
    check_share(report, f"{path}.fraction", percentage.fraction, 1)
    if percentage.buckets:
        rule = "is made from fraction; leave it out"
        report.add(f"{path}.buckets", percentage.buckets, rule)


def percentage_salts(spec: ExperimentSpec) -> set[str]:
    """The salts of all percentages in an experiment's segment and strata."""
    found: set[str] = set()
    parts = [spec.segment] if spec.HasField("segment") else []
    for stratum in spec.strata:
        parts += [*stratum.all, *stratum.any]
        parts += [stratum.negated] if stratum.HasField("negated") else []
    while parts:
        one = parts.pop()
        if one.HasField("percentage"):
            found.add(one.percentage.salt)
        parts += [*one.all, *one.any]
        parts += [one.negated] if one.HasField("negated") else []
    return found


def alternatives(predicates: Iterable[Predicate]) -> int:
    """How many plain conjunctions say the same as all these predicates together."""
    total = 1
    for predicate in predicates:
        total *= _alternatives(predicate, inverted=False)
    return total


def _alternatives(predicate: Predicate, *, inverted: bool) -> int:
    if predicate.HasField("negated"):
        return _alternatives(predicate.negated, inverted=not inverted)
    parts = predicate.all or predicate.any
    counts = [_alternatives(part, inverted=inverted) for part in parts]
    if not counts:
        return 1
    # De Morgan: a negated conjunction is a disjunction.
    return math.prod(counts) if bool(predicate.all) != inverted else sum(counts)
