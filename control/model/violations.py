"""What is wrong with a resource: one value per fault, never only the first of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

SHOWN_CHARACTERS_MAX: Final = 80
UNKNOWN_FIELD: Final = "unknown field"
NOT_IMPLEMENTED: Final = "not implemented"


class Violation(NamedTuple):
    """One fault.

    Attributes:
        field: Path as it is written in YAML, "spec.variants[1].upstream.address".
        value: The offending value, printable and shortened.
        rule: What would be accepted.
        line: Line of the file, from 1; 0 when there is no file.
    """

    field: str
    value: str
    rule: str
    line: int = 0

    def __str__(self) -> str:
        """Render as `field: value: rule`."""
        return f"{self.field}: {self.value}: {self.rule}"


class Feature(str):
    """A field path whose feature is not there, with why and what to do instead."""

    __slots__ = ("why",)

    why: str

    def __new__(cls, path: str, why: str = NOT_IMPLEMENTED) -> Feature:
        """Make one; as a string it is its path."""
        made = super().__new__(cls, path)
        made.why = why
        return made


class InvalidDocument(ValueError):
    """A text or a resource that is refused whole; `violations` has every fault that was found."""

    def __init__(self, violations: Iterable[Violation]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(str(violation) for violation in self.violations))


class Report:
    """Collects violations below a path."""

    __slots__ = ("violations",)

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def add(self, field: str, value: object, rule: str, line: int = 0) -> None:
        """Note one fault."""
        self.violations.append(Violation(field, show(value), rule, line))


def join(path: str, name: str) -> str:
    """Path of field or map entry `name` below `path`."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name):
        return f"{path}[{show(name)}]"
    return f"{path}.{name}" if path else name


def show(value: object) -> str:
    """A printable, shortened form of a value; text without quotes when that is unambiguous."""
    text = value if isinstance(value, str) else repr(value)
    if isinstance(value, bool):
        text = str(value).lower()
    if not text.isprintable() or text == "":
        text = ascii(text)
    if len(text) > SHOWN_CHARACTERS_MAX:
        text = f"{text[: SHOWN_CHARACTERS_MAX - 3]}..."
    return text
