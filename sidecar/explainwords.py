"""How `explain` says values, shares and conditions.

Owns wording. Refuses to decide: whether a condition holds is judged by the function that judges it
while serving.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from sidecar.predicates import REPEATED, compile_predicate
from turnout.contract import (
    BUCKET_COUNT,
    HEADER_PARAMETER_PREFIX,
    HEADER_SET_COOKIE,
    HEADER_SHADOW,
    HEADER_SHADOW_VARIANT,
    HEADER_STAMP,
    HEADER_UPSTREAM,
    HEADER_VARIANT,
    UNIT_HASH_HEX_DIGITS,
)
from turnout.envoy.ext_proc_pb2 import ProcessingResponse
from turnout.v1alpha1.common_pb2 import NumberRange, Predicate
from turnout.v1alpha1.snapshot_pb2 import BucketRange

VALUE_CHARACTERS_MAX: Final = 120
HASH_SHOWN: Final = "<unit hash>"
# The unit's pseudonym, at its place in an entry of the stamp.
_HASH: Final = re.compile(rf"(?<=;)[0-9a-f]{{{UNIT_HASH_HEX_DIGITS}}}(?=;f|,|$)")
_ORDER: Final = (
    HEADER_VARIANT,
    HEADER_UPSTREAM,
    HEADER_STAMP,
    HEADER_SHADOW,
    HEADER_SHADOW_VARIANT,
)


def shown(value: bytes) -> str:
    """A header's value, printable and shortened."""
    text = value.replace(REPEATED, b", ").decode(errors="backslashreplace")
    if not text.isprintable():
        text = ascii(text)[1:-1]
    if len(text) > VALUE_CHARACTERS_MAX:
        text = f"{text[: VALUE_CHARACTERS_MAX - 3]}..."
    return text


def size(ranges: Sequence[BucketRange]) -> int:
    """How many buckets ranges have."""
    return sum(part.end - part.start for part in ranges)


def percent(buckets: int) -> str:
    """A share of all buckets."""
    return f"{buckets / BUCKET_COUNT * 100:.6g} %"


class Conditions:
    """Conditions on one request, in words.

    Attributes:
        headers: Of the request.
    """

    def __init__(self, headers: Mapping[str, bytes]) -> None:
        """Headers as decoded."""
        self.headers = headers

    def value(self, name: str) -> str:
        """A header's value."""
        found = self.headers.get(name)
        return "(none)" if found is None else shown(found)

    def judged(self, predicates: Sequence[Predicate], unit: bytes = b"") -> list[tuple[str, bool]]:
        """Every condition, and whether it holds for a unit."""
        found = []
        for predicate in predicates:
            holds = compile_predicate(predicate)(self.headers, unit)
            found.append((f"{self._said(predicate, unit)}: {'yes' if holds else 'no'}", holds))
        return found

    def _said(self, predicate: Predicate, unit: bytes) -> str:
        for word, parts in (("all of", predicate.all), ("any of", predicate.any)):
            if parts:
                return f"{word} ({'; '.join(text for text, _ in self.judged(parts, unit))})"
        if predicate.HasField("negated"):
            return f"not ({self.judged([predicate.negated], unit)[0][0]})"
        if predicate.HasField("percentage"):
            share = percent(predicate.percentage.buckets)
            return f"the unit is in {share} by salt {shown(predicate.percentage.salt.encode())}"
        return f"{predicate.header} {_leaf(predicate)} (is {self.value(predicate.header)})"


def _leaf(predicate: Predicate) -> str:
    if predicate.HasField("present"):
        return "is present" if predicate.present else "is absent"
    if predicate.HasField("range"):
        return _range(predicate.range)
    for field, words in (
        ("prefix", "begins with"),
        ("equals", "equals"),
        ("regex", "matches"),
        ("semver", "is a version"),
    ):
        if predicate.HasField(field):  # type: ignore[arg-type]
            return f"{words} {shown(getattr(predicate, field).encode())}"
    return f"is one of {shown(', '.join(predicate.in_values).encode())}"


def _range(given: NumberRange) -> str:
    low = [f"at least {given.min:g}"] if given.HasField("min") else []
    high = [f"below {given.max:g}"] if given.HasField("max") else []
    return f"is a number, {' and '.join(low + high)}"


def stamped_headers(response: bytes | None) -> dict[str, str]:
    """The headers that an answer sets, in the order in which people look for them.

    Hashes of units are left out.
    """
    if response is None:
        return {}
    message = ProcessingResponse.FromString(response)
    options = message.request_headers.response.header_mutation.set_headers
    headers = {option.header.key: option.header.raw_value.decode() for option in options}
    if HEADER_STAMP in headers:
        headers[HEADER_STAMP] = _HASH.sub(HASH_SHOWN, headers[HEADER_STAMP])
    return dict(sorted(headers.items(), key=lambda item: _rank(item[0])))


def _rank(name: str) -> tuple[int, str]:
    if name in _ORDER:
        return _ORDER.index(name), name
    last = name == HEADER_SET_COOKIE or not name.startswith(HEADER_PARAMETER_PREFIX)
    return len(_ORDER) + last, name
