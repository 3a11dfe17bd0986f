"""What is wrong with a snapshot, said in one form; and the rules that several checks share.

Owns Violation, the alphabets of names and headers, and the arithmetic of bucket ranges. Refuses to
know what a snapshot is made of.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from turnout.contract import BUCKET_COUNT, HEADER_STAMP, HEADER_VARIANT
from turnout.v1alpha1.snapshot_pb2 import BucketRange

HEADER_NAME_BYTES_MAX: Final = 64
VALUE_SHOWN_MAX: Final = 80  # characters of an offending value that a violation repeats

# Names are stamped with ';' and ',' between them: this alphabet holds neither.
_NAME: Final = re.compile(r"[a-z0-9-]{1,63}\Z")
TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110 section 5.6.2
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+\Z")
VISIBLE: Final = re.compile(r"[\x21-\x7e]+\Z")
PRINTABLE: Final = re.compile(r"[\x20-\x7e]*\Z")
_OURS: Final = (HEADER_VARIANT, HEADER_STAMP)
_OURS_PREFIX: Final = "x-turnout-"


class Violation(NamedTuple):
    """One rule that one field breaks."""

    field: str  # path, e.g. experiments[0].variants[1].name
    value: str  # as given, shortened to VALUE_SHOWN_MAX characters
    rule: str  # what must hold


class InvalidSnapshot(ValueError):
    """A snapshot that must not be served; the plan that served before serves on."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(f"{v.field} = {v.value!r}: {v.rule}" for v in self.violations))


def violation(field: str, value: object, rule: str) -> Violation:
    """A violation that shows a value, shortened."""
    return Violation(field, str(value)[:VALUE_SHOWN_MAX], rule)


def name_violations(path: str, name: str) -> Iterator[Violation]:
    """What is wrong with an id."""
    if not _NAME.match(name):
        yield violation(path, name, "must be 1..63 of a-z 0-9 -")


def repeated_names(path: str, names: Iterable[str]) -> Iterator[Violation]:
    """Names that were there before."""
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            yield violation(f"{path}[{index}].name", name, "must be unique")
        seen.add(name)


def header_violations(path: str, name: str) -> Iterator[Violation]:
    """What is wrong with a header that is read."""
    if len(name) > HEADER_NAME_BYTES_MAX or not _HEADER.match(name):
        rule = f"must be a lower-case header name of 1..{HEADER_NAME_BYTES_MAX} bytes"
        yield violation(path, name, rule)
    # Envoy strips these from clients: a plan that reads one would read its own answers.
    if name in _OURS or name.startswith(_OURS_PREFIX):
        yield violation(path, name, "must not be a header that Turnout sets")


# -- Ranges ---------------------------------------------------------------------------------------


def range_violations(path: str, ranges: Sequence[BucketRange]) -> Iterator[Violation]:
    """What is wrong with ranges that one owner has."""
    end_before = 0
    for index, part in enumerate(ranges):
        shown = f"[{part.start}, {part.end})"
        if not part.start < part.end <= BUCKET_COUNT:
            rule = f"must have 0 <= start < end <= {BUCKET_COUNT}"
            yield violation(f"{path}[{index}]", shown, rule)
        elif part.start < end_before:
            yield violation(f"{path}[{index}]", shown, "must follow the range before it")
        end_before = max(end_before, part.end)


def gap(owners: Sequence[Sequence[BucketRange]]) -> int | None:
    """First bucket that no range or two ranges own; None when the ranges tile all buckets."""
    position = 0
    for start, end in sorted((part.start, part.end) for ranges in owners for part in ranges):
        if start != position:
            return min(start, position)
        position = end
    return None if position == BUCKET_COUNT else position
