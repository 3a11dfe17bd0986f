"""Resource documents: trees of YAML nodes to protos, by walking the protos' own descriptors.

Owns the spelling of resources: JSON names, durations as text, enums in lower camel case. Knows no
rule about a value beyond its type: those are `targets` and `experiments`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from control.model import durations, text
from control.model.text import Mapping, Node, Scalar, Sequence
from control.model.violations import UNKNOWN_FIELD, InvalidDocument, Report, Violation, join
from turnout.v1alpha1.common_pb2 import Margin
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec
from turnout.v1alpha1.experiment_service_pb2 import HoldoutSpec
from turnout.v1alpha1.metric_pb2 import MetricSpec
from turnout.v1alpha1.target_pb2 import TargetSpec

API_VERSION: Final = "turnout/v1alpha1"
Kind = Literal["Target", "Experiment", "Metric", "Holdout"]
Spec = TargetSpec | ExperimentSpec | MetricSpec | HoldoutSpec
_SPECS: Final[dict[Kind, type[Spec]]] = {
    "Target": TargetSpec,
    "Experiment": ExperimentSpec,
    "Metric": MetricSpec,
    "Holdout": HoldoutSpec,
}
_KINDS: Final = "Target, Experiment, Metric or Holdout"
_TOP_FIELDS: Final = ("apiVersion", "kind", "metadata", "spec", "status")
# What `turnout get -o yaml` prints besides is accepted and means nothing.
_METADATA_OUTPUT: Final = ("uid", "revision", "createTime", "updateTime")
_METADATA_FIELDS: Final = ("name", "tenant", "labels", "etag", *_METADATA_OUTPUT)
# A tenant has one holdout: the tenant is its name.
_HOLDOUT_METADATA_FIELDS: Final = ("tenant", "etag", *_METADATA_OUTPUT)

_INTEGERS: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


@dataclass(frozen=True, slots=True)
class Document:
    """One resource as somebody wrote it.

    Attributes:
        kind: Which of the four.
        tenant: DNS label as written; empty when the file leaves it to the caller.
        name: DNS label as written; empty for a Holdout.
        labels: As written.
        etag: Of the state it was read from; empty when there is none.
        spec: The spec, without defaults.
        lines: Line of the file for every path that was written.
        faults: What was wrong with the spelling; the spec is without it.
    """

    kind: Kind
    tenant: str
    name: str
    labels: dict[str, str]
    etag: str
    spec: Spec
    lines: dict[str, int] = field(compare=False, repr=False)
    faults: tuple[Violation, ...] = field(compare=False, repr=False)

    def line_of(self, path: str) -> int:
        """Line of `path`, or of the nearest thing around it that was written."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path, 0)


def load_yaml(data: bytes) -> list[Document]:
    """Read a text of one or more resource documents.

    Args:
        data: UTF-8, at most `contract.RESOURCE_BYTES_MAX` bytes.

    Raises:
        InvalidDocument: With every fault of spelling and type in all documents. Rules about values
            are for `validate_target` and `validate_experiment`.
    """
    documents, violations = read_yaml(data)
    if violations:
        raise InvalidDocument(violations)
    return documents


def read_yaml(data: bytes) -> tuple[list[Document], list[Violation]]:
    """Read what can be read and say what cannot be.

    A document of a known kind is there even when parts of it were refused.

    Raises:
        InvalidDocument: The text itself is not acceptable.
    """
    nodes = [node for node in text.parse(data) if not (isinstance(node, Scalar) and node.is_null())]
    if not nodes:
        return [], [Violation("(file)", "empty", "must hold at least one resource", 1)]
    documents: list[Document] = []
    violations: list[Violation] = []
    for node in nodes:
        report = Report()
        document = _document(node, report)
        violations += report.violations
        if document is not None:
            documents.append(document)
    return documents, violations


def _document(node: Node, report: Report) -> Document | None:
    if not isinstance(node, Mapping):
        report.add(
            "(document)",
            _kind_of(node),
            f"must be a mapping with kind {_KINDS}",
            node.line,
        )
        return None
    reader = _Reader(report)
    reader.lines[""] = node.line
    entries = reader.entries(node, "", _TOP_FIELDS)
    if "apiVersion" in entries:  # there is one version so far: leaving it out says the same
        version = reader.string(entries["apiVersion"], "apiVersion")
        if version is not None and version != API_VERSION:
            report.add("apiVersion", version, f"must be {API_VERSION}", reader.lines["apiVersion"])
    kind = reader.string(entries.get("kind"), "kind", node)
    metadata = _metadata(reader, entries.get("metadata"), node, kind)
    if kind is None:
        return None
    known = next((name for name in _SPECS if name == kind), None)
    if known is None:
        report.add("kind", kind, f"must be {_KINDS}", reader.lines["kind"])
        return None
    spec = _SPECS[known]()
    if "spec" in entries:
        reader.message(entries["spec"], spec, "spec")
    else:
        report.add("spec", "missing", "required", node.line)
    faults = tuple(report.violations)
    return Document(known, spec=spec, lines=reader.lines, faults=faults, **metadata)


def _metadata(
    reader: _Reader, node: Node | None, parent: Mapping, kind: str | None
) -> dict[str, Any]:
    found: dict[str, Any] = {"name": "", "tenant": "", "labels": {}, "etag": ""}
    holdout = kind == "Holdout"
    if holdout and node is None:
        return found
    if not isinstance(node, Mapping):
        value = "missing" if node is None else _kind_of(node)
        wanted = "tenant" if holdout else "name"
        reader.report.add("metadata", value, f"must be a mapping with {wanted}", parent.line)
        return found
    reader.lines["metadata"] = node.line
    fields = _HOLDOUT_METADATA_FIELDS if holdout else _METADATA_FIELDS
    entries = reader.entries(node, "metadata", fields)
    if not holdout:
        found["name"] = reader.string(entries.get("name"), "metadata.name", node) or ""
    for key in ("tenant", "etag"):
        if key in entries:
            found[key] = reader.string(entries[key], f"metadata.{key}", node) or ""
    labels = entries.get("labels")
    if isinstance(labels, Mapping):
        for key, child in labels.entries:
            label = reader.string(child, join("metadata.labels", key), labels)
            found["labels"][key] = label or ""
    elif labels is not None:
        reader.report.add("metadata.labels", _kind_of(labels), "must be a mapping", labels.line)
    return found


class _Reader:
    """Fills messages from nodes and notes every fault and every line."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.lines: dict[str, int] = {}

    def entries(self, node: Mapping, path: str, known: Iterable[str]) -> dict[str, Node]:
        """The entries with a known key; the others are faults."""
        known = tuple(known)
        for key, value in node.entries:
            if key not in known:
                near = difflib.get_close_matches(key[:64], known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
                self.report.add(join(path, key), key, f"{UNKNOWN_FIELD}; {hint}", value.line)
        return {key: value for key, value in node.entries if key in known}

    def message(self, node: Node, message: Message, path: str) -> None:
        """Fill `message`; a mapping without entries still sets it."""
        self.lines[path] = node.line
        if isinstance(message, Duration):
            self._duration(node, message, path)
            return
        if not isinstance(node, Mapping):
            self.report.add(path, _shown(node), "must be a mapping", node.line)
            return
        message.SetInParent()
        known = _fields(message.DESCRIPTOR)
        chosen: dict[str, str] = {}
        for key, value in self.entries(node, path, known).items():
            below = join(path, key)
            oneof = known[key].containing_oneof
            if oneof is not None and len(oneof.fields) > 1:
                other = chosen.setdefault(oneof.name, key)
                if other != key:
                    self.report.add(below, key, f"{other} is there already; name one", value.line)
                    continue
            self._field(value, message, known[key], below)

    def _field(self, node: Node, message: Message, field_: FieldDescriptor, path: str) -> None:
        self.lines[path] = node.line
        if isinstance(node, Scalar) and node.is_null():
            self.report.add(
                path, "null", "must have a value; leave the field out instead", node.line
            )
        elif isinstance(message, Margin) and field_.name == "absolute":
            self._margin(node, message, path)
        elif field_.message_type is not None and field_.message_type.GetOptions().map_entry:
            self._map(node, message, field_, path)
        elif field_.is_repeated:
            self._list(node, message, field_, path)
        elif field_.message_type is not None:
            self.message(node, getattr(message, field_.name), path)
        else:
            value = self._value(node, field_, path)
            if value is not None:
                setattr(message, field_.name, value)

    def _map(self, node: Node, message: Message, field_: FieldDescriptor, path: str) -> None:
        if not isinstance(node, Mapping):
            self.report.add(path, _shown(node), "must be a mapping", node.line)
            return
        target = getattr(message, field_.name)
        entry: Any = field_.message_type
        value_field = entry.fields_by_name["value"]
        for key, child in node.entries:
            below = join(path, key)
            self.lines[below] = child.line
            value = self._value(child, value_field, below)
            if value is not None:
                target[key] = value

    def _list(self, node: Node, message: Message, field_: FieldDescriptor, path: str) -> None:
        if not isinstance(node, Sequence):
            self.report.add(path, _shown(node), "must be a list", node.line)
            return
        target = getattr(message, field_.name)
        for index, child in enumerate(node.items):
            below = f"{path}[{index}]"
            self.lines[below] = child.line
            if field_.message_type is not None:
                self.message(child, target.add(), below)
            elif (value := self._value(child, field_, below)) is not None:
                target.append(value)

    def _value(self, node: Node, field_: FieldDescriptor, path: str) -> Any:
        kind = field_.cpp_type
        if kind == FieldDescriptor.CPPTYPE_STRING:
            return self.string(node, path)
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            return self._enum(node, field_.enum_type, path)
        scalar = node if isinstance(node, Scalar) else None
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            value: Any = scalar.boolean() if scalar else None
            rule = "must be true or false"
        elif kind == FieldDescriptor.CPPTYPE_DOUBLE:
            value, rule = scalar.number() if scalar else None, "must be a number"
        else:
            low, high = _INTEGERS[kind]
            value = scalar.integer() if scalar else None
            rule = f"must be an integer of {low} to {high}"
            value = value if value is not None and low <= value <= high else None
        if value is None:
            self.report.add(path, _shown(node), rule, node.line)
        return value

    def string(self, node: Node | None, path: str, parent: Node | None = None) -> str | None:
        """A string; with `parent` given it is required."""
        if node is None:
            self.report.add(path, "missing", "required", parent.line if parent else 0)
            return None
        self.lines[path] = node.line
        if isinstance(node, Scalar) and node.is_string():
            return node.text
        hint = f', quoted: "{node.text}"' if isinstance(node, Scalar) and not node.is_null() else ""
        self.report.add(path, _shown(node), f"must be a string{hint}"[:120], node.line)
        return None

    def _enum(self, node: Node, enum: Any, path: str) -> int | None:
        names = enum_names(enum)
        if isinstance(node, Scalar) and node.is_string() and node.text in names:
            return names[node.text]
        self.report.add(path, _shown(node), f"must be one of: {', '.join(names)}", node.line)
        return None

    def _duration(self, node: Node, message: Duration, path: str) -> None:
        text = node.text if isinstance(node, Scalar) else ""
        value = durations.parse(text.removeprefix("-"))
        if value is None:
            self.report.add(path, _shown(node), f"must be {durations.RULE}", node.line)
            return
        # A negative one is well written; what the field takes is said by the field's own rule.
        sign = -1 if text.startswith("-") else 1
        message.seconds, message.nanos = sign * value.seconds, sign * value.nanos

    def _margin(self, node: Node, margin: Margin, path: str) -> None:
        """`absolute` is a number, or for latency metrics a duration."""
        number = node.number() if isinstance(node, Scalar) else None
        duration = durations.parse(node.text) if isinstance(node, Scalar) else None
        if number is not None:
            margin.absolute = number
        elif duration is not None:
            margin.absolute_duration.CopyFrom(duration)
        else:
            rule = f"must be a number, or {durations.RULE}"
            self.report.add(path, _shown(node), rule, node.line)


def enum_names(enum: Any) -> dict[str, int]:
    """The values of an enum as they are written in resources: NO_UNIT_SKIP of NoUnit is `skip`."""
    zero = enum.values_by_number[0].name
    prefix = zero.removesuffix("UNSPECIFIED")
    return {
        _camel(value.name.removeprefix(prefix)): value.number
        for value in enum.values
        if value.number
    }


def json_name(field_: FieldDescriptor) -> str:
    """A field's name as it is written in resources."""
    return str(field_.json_name)


def _fields(descriptor: Any) -> dict[str, FieldDescriptor]:
    # Margin's duration is written as `absolute`.
    return {
        json_name(field_): field_
        for field_ in descriptor.fields
        if field_.name != "absolute_duration"
    }


def _camel(upper_snake: str) -> str:
    first, *rest = upper_snake.lower().split("_")
    return first + "".join(word.capitalize() for word in rest)


def _kind_of(node: Node) -> str:
    if isinstance(node, Mapping):
        return "a mapping"
    return "a list" if isinstance(node, Sequence) else "a scalar"


def _shown(node: Node) -> str:
    return (node.text or '""') if isinstance(node, Scalar) else _kind_of(node)
