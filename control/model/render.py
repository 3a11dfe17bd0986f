"""Messages as plain data in the spelling of resource files, and as YAML that reads back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import yaml
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from control.model import durations
from control.model.documents import API_VERSION, Kind, enum_names, json_name
from control.model.names import parse_name, tenant_of_holdout
from control.model.text import Scalar
from turnout.v1alpha1.experiment_pb2 import Experiment
from turnout.v1alpha1.experiment_service_pb2 import Holdout
from turnout.v1alpha1.metric_pb2 import Metric
from turnout.v1alpha1.target_pb2 import Target

# Enums of inputs are written as in files; what the server says is written as in the API.
_INPUT_ENUMS: Final = ("NoUnit", "OnUndecided", "OnFinish", "MetricKind", "MetricDirection")


def document_of(resource: Target | Experiment | Metric | Holdout) -> dict[str, Any]:
    """A resource as a document: what `turnout apply` takes, with its status."""
    if isinstance(resource, Holdout):
        return _holdout_document(resource)
    name = parse_name(resource.name)
    metadata: dict[str, Any] = {"name": name.name, "tenant": name.tenant}
    if resource.labels:
        metadata["labels"] = dict(sorted(resource.labels.items()))
    if not (isinstance(resource, Metric) and resource.status.built_in):
        metadata |= {"uid": resource.uid, "etag": resource.etag, "revision": resource.revision}
        metadata |= {
            "createTime": time_text(resource.create_time),
            "updateTime": time_text(resource.update_time),
        }
    kind: Kind = "Metric" if isinstance(resource, Metric) else "Experiment"
    if isinstance(resource, Target):
        kind = "Target"
    document = _document(kind, metadata, plain(resource.spec))
    status = plain(resource.status)
    return {**document, "status": status} if status else document


def _holdout_document(holdout: Holdout) -> dict[str, Any]:
    metadata: dict[str, Any] = {"tenant": tenant_of_holdout(holdout.name)}
    if holdout.etag:
        metadata |= {"etag": holdout.etag, "revision": holdout.revision}
        metadata["updateTime"] = time_text(holdout.update_time)
    # The fraction is what it is all about, 0 too.
    return _document("Holdout", metadata, {"fraction": 0.0, **plain(holdout.spec)})


def _document(kind: Kind, metadata: dict[str, Any], spec: Any) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def plain(message: Message) -> Any:
    """A message as dictionaries, lists and scalars; what is not set is left out."""
    if isinstance(message, Duration):
        return durations.text(message)
    if isinstance(message, Timestamp):
        return time_text(message)
    entries: dict[str, Any] = {}
    for field, value in message.ListFields():
        # Margin's duration is written as `absolute`.
        name = "absolute" if field.name == "absolute_duration" else json_name(field)
        entries[name] = _field(field, value)
    return entries


def enum_text(field: FieldDescriptor, number: int) -> str:
    """A value of an enum, without the prefix that all its values share."""
    enum: Any = field.enum_type
    if number not in enum.values_by_number:
        return str(number)
    if enum.name in _INPUT_ENUMS:
        names = {value: name for name, value in enum_names(enum).items()}
        return names.get(number, "")
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(enum.values_by_number[number].name.removeprefix(prefix))


def time_text(time: Timestamp) -> str:
    """RFC 3339 in UTC, with milliseconds."""
    return f"{time.ToDatetime():%Y-%m-%dT%H:%M:%S}.{time.nanos // 1_000_000:03d}Z"


def to_yaml(documents: Iterable[Any]) -> str:
    """YAML documents, separated by ---."""
    return "---\n".join(
        yaml.dump(
            document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, indent=2
        )
        for document in documents
    )


def _field(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(sorted(value.items()))
    if field.is_repeated:
        return [_single(field, item) for item in value]
    return _single(field, value)


def _single(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return enum_text(field, value)
    return value.hex() if isinstance(value, bytes) else value


class _Dumper(yaml.SafeDumper):
    """Quotes every string that YAML 1.2 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write repeated values out: aliases are not accepted in files."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Line ends of any kind are folded in every other style.
    plain_is_same = Scalar(text, plain=True, line=0).is_string() and text.isprintable()
    style = None if plain_is_same else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
