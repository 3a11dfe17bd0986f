"""YAML text to a tree of nodes with line numbers, by the rules of YAML 1.2 and within limits.

Owns the limits on text: size, depth, aliases, duplicate keys, encoding. Refuses to know any field.
PyYAML's own constructors are not used: they take the last of two equal keys, read `no` as false and
expand aliases.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from control.model.violations import InvalidDocument, Report, Violation, join, show
from turnout.contract import RESOURCE_BYTES_MAX, RESOURCE_DEPTH_MAX

# libyaml where it was built in: the same events, some 20 times faster.
_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

DOCUMENTS_MAX: Final = 1000
_NULL: Final = re.compile(r"(?:~|null|Null|NULL|)")
_BOOL: Final = re.compile(r"(?:true|True|TRUE|false|False|FALSE)")
_INTEGER: Final = re.compile(r"[-+]?[0-9]+")
_FLOAT: Final = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_NUMBER_CHARACTERS_MAX: Final = 40


@dataclass(frozen=True, slots=True)
class Scalar:
    """A scalar as written. `plain` is False when it was quoted, which always means a string."""

    text: str
    plain: bool
    line: int

    def is_null(self) -> bool:
        """True for `~`, `null` and nothing at all."""
        return self.plain and _NULL.fullmatch(self.text) is not None

    def is_string(self) -> bool:
        """True when YAML 1.2's core schema reads it as text."""
        return not self.plain or not any(
            pattern.fullmatch(self.text) for pattern in (_NULL, _BOOL, _INTEGER, _FLOAT)
        )

    def boolean(self) -> bool | None:
        """The truth value, or None when it is not one."""
        if not self.plain or not _BOOL.fullmatch(self.text):
            return None
        return self.text.lower() == "true"

    def integer(self) -> int | None:
        """The decimal integer, or None when it is not one."""
        if not self.plain or not _INTEGER.fullmatch(self.text):
            return None
        return int(self.text) if len(self.text) <= _NUMBER_CHARACTERS_MAX else None

    def number(self) -> float | None:
        """The number, NaN and infinities included, or None when it is not one."""
        if not self.plain or not _FLOAT.fullmatch(self.text):
            return None
        return float(self.text.lower().replace(".inf", "inf").replace(".nan", "nan"))


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list of nodes."""

    items: tuple[Node, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """Entries in the order of the file; keys are unique."""

    entries: tuple[tuple[str, Node], ...]
    line: int


Node = Scalar | Sequence | Mapping


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been seen yet."""

    path: str
    line: int
    mapping: bool
    items: list[Node] = field(default_factory=list)
    keys: dict[str, None] = field(default_factory=dict)
    key: str | None = None  # the key whose value comes next

    def child_path(self) -> str:
        if not self.mapping:
            return f"{self.path}[{len(self.items)}]"
        return join(self.path, self.key) if self.key is not None else self.path


def parse(data: bytes) -> list[Node]:
    """Read all documents of a text.

    Args:
        data: UTF-8, at most `contract.RESOURCE_BYTES_MAX` bytes.

    Raises:
        InvalidDocument: With every fault of the text; after one that makes the rest unreadable
            (encoding, size, syntax, depth) the faults up to there.
    """
    if len(data) > RESOURCE_BYTES_MAX:
        value = f"more than {RESOURCE_BYTES_MAX} bytes"
        raise InvalidDocument([Violation("(file)", value, "too large")])
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        value = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise InvalidDocument([Violation("(file)", value, "must be UTF-8", line)]) from error
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.YAMLError as error:
        builder.report.violations.append(_syntax_violation(error))
    except _Unreadable:
        pass  # the builder has noted why
    if builder.report.violations:
        raise InvalidDocument(builder.report.violations)
    return builder.documents


class _Unreadable(Exception):
    """The rest of the text is not worth reading."""


class _Builder:
    """Builds nodes from parse events, without recursion: the depth limit is ours, not Python's."""

    def __init__(self) -> None:
        self.documents: list[Node] = []
        self.report = Report()
        self._stack: list[_Open] = []

    def take(self, event: Any) -> None:
        """Use one event of PyYAML's parser."""
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            self._fault(f"*{event.anchor}", "aliases are not accepted; write the value out", line)
            self._place(Scalar("", plain=True, line=line))
        elif isinstance(event, yaml.NodeEvent):
            self._check_properties(event, line)
            if isinstance(event, yaml.ScalarEvent):
                self._place_scalar(event, line)
            else:
                self._open(isinstance(event, yaml.MappingStartEvent), line)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._close()

    def _check_properties(self, event: Any, line: int) -> None:
        if event.anchor is not None:
            self._fault(f"&{event.anchor}", "anchors are not accepted", line)
        if event.tag is not None and event.tag != "!":
            self._fault(event.tag, "tags are not accepted", line)

    def _place_scalar(self, event: Any, line: int) -> None:
        top = self._stack[-1] if self._stack else None
        if top is None or not top.mapping or top.key is not None:
            self._place(Scalar(event.value, plain=event.implicit[0], line=line))
            return
        key = str(event.value)
        if key in top.keys:
            self._fault(key, "the key is there twice", line, join(top.path, key))
        top.keys[key] = None
        top.key = key

    def _open(self, mapping: bool, line: int) -> None:
        top = self._stack[-1] if self._stack else None
        if top is not None and top.mapping and top.key is None:
            self._fault("(collection)", "a key must be a string", line)
            raise _Unreadable
        if len(self._stack) >= RESOURCE_DEPTH_MAX:
            self._fault("(collection)", f"at most {RESOURCE_DEPTH_MAX} levels deep", line)
            raise _Unreadable
        self._stack.append(_Open(top.child_path() if top else "", line, mapping))

    def _close(self) -> None:
        done = self._stack.pop()
        if done.mapping:
            # After a duplicate key the lengths differ; the text is refused then anyway.
            entries = tuple(zip(done.keys, done.items, strict=False))
            self._place(Mapping(entries, done.line))
        else:
            self._place(Sequence(tuple(done.items), done.line))

    def _place(self, node: Node) -> None:
        if not self._stack:
            if len(self.documents) >= DOCUMENTS_MAX:
                self._fault("(document)", f"at most {DOCUMENTS_MAX} documents", node.line)
                raise _Unreadable
            self.documents.append(node)
            return
        top = self._stack[-1]
        top.items.append(node)
        top.key = None

    def _fault(self, value: str, rule: str, line: int, path: str | None = None) -> None:
        if path is None:
            path = self._stack[-1].child_path() if self._stack else ""
        self.report.add(path or "(document)", value, rule, line)


def _syntax_violation(error: yaml.YAMLError) -> Violation:
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        problem = getattr(error, "problem", None) or "invalid"
        return Violation(
            "(file)", f"column {mark.column + 1}", f"not YAML: {problem}", mark.line + 1
        )
    # A character that YAML forbids: the reader's error carries no mark.
    character = getattr(error, "character", None)
    value = f"U+{character:04X}" if isinstance(character, int) else show(str(error))
    return Violation("(file)", value, "not YAML: this character is not allowed")
