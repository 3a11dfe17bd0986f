"""Semantic Versions (semver.org 2.0.0): parse, order, and constraints on them.

Owns what a version and a constraint are. Refuses everything else with None or InvalidConstraint: a
value that is no version fits no constraint.

A constraint is comparisons separated by blanks, all of which must hold; each is an operator (= when
there is none) and a whole version. `^1.2.3` is >=1.2.3 and below the next version that changes the
left-most non-zero number, `~1.2.3` is >=1.2.3 and below 1.3.0; pre-releases of that upper version
are above it. Everything else is plain precedence: 2.0.0-rc.1 is below 2.0.0.
"""

import re
from collections.abc import Callable
from typing import Final

VERSION_BYTES_MAX: Final = 256

_NUMBER: Final = r"(0|[1-9][0-9]*)"
_IDENTIFIERS: Final = r"[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*"
_VERSION: Final = re.compile(
    rf"v?{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-({_IDENTIFIERS}))?(?:\+{_IDENTIFIERS})?\Z"
)
_COMPARISON: Final = re.compile(r"(=|!=|<=|<|>=|>|\^|~)?(.*)\Z", re.DOTALL)

# Major, minor, patch; whether it is a release; the identifiers of the pre-release, each as (is a
# name, number, name): numbers are below names, and a longer list is above its own beginning.
Version = tuple[int, int, int, bool, tuple[tuple[bool, int, str], ...]]
# Below every pre-release of its numbers but -0 itself: the upper bound of ^ and ~.
_LOWEST_PRERELEASE: Final = ((False, 0, ""),)


class InvalidConstraint(ValueError):
    """The text is no list of comparisons with versions."""


def parse_version(text: str) -> Version | None:
    """A version that compares as its precedence does (section 11); None when it is not one."""
    if len(text) > VERSION_BYTES_MAX or not (found := _VERSION.match(text)):
        return None
    major, minor, patch, pre = found.groups()
    identifiers = []
    for part in pre.split(".") if pre else ():
        numeric = part.isdigit()
        if numeric and part[0] == "0" and part != "0":
            return None  # section 9: numeric identifiers have no leading zeros
        identifiers.append((not numeric, int(part) if numeric else 0, "" if numeric else part))
    return int(major), int(minor), int(patch), not pre, tuple(identifiers)


def compile_constraints(text: str) -> Callable[[bytes], bool]:
    """A function that says whether a header's value is a version that fits.

    Raises:
        InvalidConstraint: The text has no comparison, or one that cannot be read.
    """
    bounds = [bound for part in text.split() for bound in _bounds(part)]
    if not bounds:
        raise InvalidConstraint("must have a comparison such as >=1.2.0")

    def fits(value: bytes) -> bool:
        if not value.isascii():
            return False
        version = parse_version(value.decode())
        return version is not None and all(holds(version, bound) for holds, bound in bounds)

    return fits


_Bound = tuple[Callable[[Version, Version], bool], Version]
_OPERATORS: Final[dict[str, Callable[[Version, Version], bool]]] = {
    "=": lambda version, bound: version == bound,
    "!=": lambda version, bound: version != bound,
    "<": lambda version, bound: version < bound,
    "<=": lambda version, bound: version <= bound,
    ">": lambda version, bound: version > bound,
    ">=": lambda version, bound: version >= bound,
}


def _bounds(part: str) -> list[_Bound]:
    found = _COMPARISON.match(part)
    assert found is not None, "every text is an operator, or none, and a rest"
    operator, rest = found[1] or "=", found[2]
    version = parse_version(rest)
    if version is None:
        raise InvalidConstraint(f"{part!r} is no operator with a version MAJOR.MINOR.PATCH")
    if operator in _OPERATORS:
        return [(_OPERATORS[operator], version)]
    major, minor, patch = version[:3]
    if operator == "~" or (major == 0 and minor):
        above = (major, minor + 1, 0)
    elif operator == "^" and major:
        above = (major + 1, 0, 0)
    else:
        above = (0, 0, patch + 1)
    upper: Version = (*above, False, _LOWEST_PRERELEASE)
    return [(_OPERATORS[">="], version), (_OPERATORS["<"], upper)]
