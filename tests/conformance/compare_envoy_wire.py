"""Compares our subset of Envoy's messages with Envoy's own; runs where xds-protos is installed.

Not a test by itself: test_envoy_wire.py runs it in a throw-away environment, because xds-protos
overwrites files of opentelemetry-proto and googleapis-common-protos. Prints one JSON object.

usage: compare_envoy_wire.py [OURS=THEIRS]    (compare one message with another one than its own)
"""

from __future__ import annotations

import importlib
import json
import random
import string
import sys
from collections.abc import Iterator
from typing import Any, TypeAlias

from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from turnout.envoy import access_log_pb2, ext_proc_pb2

PACKAGE = "turnout.envoy."
ROUNDS = 200
DEPTH_MAX = 6
THEIRS = {
    "Node": "envoy.config.core.v3.Node",
    "Metadata": "envoy.config.core.v3.Metadata",
    "HeaderValue": "envoy.config.core.v3.HeaderValue",
    "HeaderMap": "envoy.config.core.v3.HeaderMap",
    "HeaderValueOption": "envoy.config.core.v3.HeaderValueOption",
    "HttpHeaders": "envoy.service.ext_proc.v3.HttpHeaders",
    "ProcessingRequest": "envoy.service.ext_proc.v3.ProcessingRequest",
    "HeaderMutation": "envoy.service.ext_proc.v3.HeaderMutation",
    "CommonResponse": "envoy.service.ext_proc.v3.CommonResponse",
    "HeadersResponse": "envoy.service.ext_proc.v3.HeadersResponse",
    "ProcessingResponse": "envoy.service.ext_proc.v3.ProcessingResponse",
    "StreamAccessLogsResponse": "envoy.service.accesslog.v3.StreamAccessLogsResponse",
    "StreamAccessLogsMessage": "envoy.service.accesslog.v3.StreamAccessLogsMessage",
    "HTTPAccessLogEntry": "envoy.data.accesslog.v3.HTTPAccessLogEntry",
    "AccessLogCommon": "envoy.data.accesslog.v3.AccessLogCommon",
    "ResponseFlags": "envoy.data.accesslog.v3.ResponseFlags",
    "HTTPRequestProperties": "envoy.data.accesslog.v3.HTTPRequestProperties",
    "HTTPResponseProperties": "envoy.data.accesslog.v3.HTTPResponseProperties",
}
# Not plain imports: where this file is only read (mypy, an editor) there is no xds-protos.
for file in ("service.ext_proc.v3.external_processor", "service.accesslog.v3.als"):
    importlib.import_module(f"envoy.{file}_pb2")
POOL = ext_proc_pb2.DESCRIPTOR.pool
# The runtime's descriptors and the stubs' are two families of types; here they are only read.
Descriptor: TypeAlias = Any
Enum: TypeAlias = Any
Field: TypeAlias = Any


def their_name(ours: str) -> str:
    """Envoy's full name of one of our messages or enums, nested ones too."""
    outer, _, nested = ours.removeprefix(PACKAGE).partition(".")
    return THEIRS[outer] + ("." + nested if nested else "")


def our_messages() -> Iterator[Descriptor]:
    """Every message of ours, nested ones too."""
    waiting = [
        message
        for file in (ext_proc_pb2, access_log_pb2)
        for message in file.DESCRIPTOR.message_types_by_name.values()
    ]
    while waiting:
        message = waiting.pop()
        waiting.extend(message.nested_types)
        yield message


# -- Descriptors ----------------------------------------------------------------------------------


def differences(ours: Descriptor, theirs: Descriptor) -> Iterator[str]:
    """What our message says that Envoy's does not."""
    if ours.GetOptions().map_entry != theirs.GetOptions().map_entry:
        yield f"{ours.full_name}: only one of the two is a map entry"
    for field in ours.fields:
        path = f"{ours.full_name}.{field.name}"
        other = theirs.fields_by_name.get(field.name)
        if other is None:
            yield f"{path}: {theirs.full_name} has no such field"
            continue
        for what in ("number", "type", "is_repeated", "has_presence", "json_name"):
            if getattr(field, what) != getattr(other, what):
                yield f"{path}: {what} is {getattr(field, what)}, not {getattr(other, what)}"
        if oneof(field) != oneof(other):
            yield f"{path}: is in oneof {oneof(field)}, not {oneof(other)}"
        yield from type_differences(path, field, other)


def type_differences(path: str, field: Field, other: Field) -> Iterator[str]:
    """Whether the field's message or enum is the one that Envoy has there."""
    for ours, theirs in (
        (field.message_type, other.message_type),
        (field.enum_type, other.enum_type),
    ):
        if ours is None or theirs is None:
            continue
        name = ours.full_name
        expected = their_name(name) if name.startswith(PACKAGE) else name
        if theirs.full_name != expected:
            yield f"{path}: holds {expected}, not {theirs.full_name}"
        elif field.enum_type is not None:
            yield from enum_differences(path, ours, theirs)


def enum_differences(path: str, ours: Enum, theirs: Enum) -> Iterator[str]:
    """Enum values are few: all of them must be there, under the same numbers."""
    our_values = {value.name: value.number for value in ours.values}
    their_values = {value.name: value.number for value in theirs.values}
    if our_values != their_values:
        yield f"{path}: enum values are {our_values}, not {their_values}"


def oneof(field: Field) -> str | None:
    """Name of the field's oneof."""
    return field.containing_oneof.name if field.containing_oneof is not None else None


# -- Random messages ------------------------------------------------------------------------------


def fill(message: Message, rng: random.Random, depth: int = 0) -> Message:
    """Set random fields to random values."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.4 or (field.message_type is not None and depth >= DEPTH_MAX):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            fill_map(getattr(message, field.name), field.message_type, rng, depth)
        elif field.is_repeated:
            fill_repeated(getattr(message, field.name), field, rng, depth)
        elif field.message_type is not None:
            part = getattr(message, field.name)
            part.SetInParent()
            fill(part, rng, depth + 1)
        else:
            setattr(message, field.name, scalar(field, rng))
    return message


def fill_map(values: Any, entry: Descriptor, rng: random.Random, depth: int) -> None:
    """Put up to three entries into a map."""
    key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
    for _ in range(rng.randrange(4)):
        if value.message_type is not None:
            fill(values[scalar(key, rng)], rng, depth + 1)
        else:
            values[scalar(key, rng)] = scalar(value, rng)


def fill_repeated(values: Any, field: Field, rng: random.Random, depth: int) -> None:
    """Append up to three values."""
    for _ in range(rng.randrange(4)):
        if field.message_type is not None:
            fill(values.add(), rng, depth + 1)
        else:
            values.append(scalar(field, rng))


def scalar(field: Field, rng: random.Random) -> Any:
    """A random value of the field's type."""
    kinds = FieldDescriptor
    if field.cpp_type == kinds.CPPTYPE_STRING:
        text = "".join(rng.choices(string.printable + "äß\N{SNOWMAN}", k=rng.randrange(12)))
        return text.encode() + rng.randbytes(3) if field.type == kinds.TYPE_BYTES else text
    if field.cpp_type == kinds.CPPTYPE_ENUM:
        return rng.choice(field.enum_type.values).number
    bits = {kinds.CPPTYPE_INT32: 31, kinds.CPPTYPE_UINT32: 32, kinds.CPPTYPE_INT64: 63}
    if field.cpp_type == kinds.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if field.cpp_type in (kinds.CPPTYPE_DOUBLE, kinds.CPPTYPE_FLOAT):
        return float(rng.randrange(-(2**20), 2**20))
    return rng.getrandbits(bits.get(field.cpp_type, 64))


def trip_differences(ours: Descriptor, theirs: Descriptor, rng: random.Random) -> Iterator[str]:
    """Random messages of either side, through the other side and back."""
    our_class = message_factory.GetMessageClass(ours)
    their_class = message_factory.GetMessageClass(theirs)
    for number in range(ROUNDS):
        mine = fill(our_class(), rng)
        read = their_class.FromString(mine.SerializeToString())
        if unknown(read):
            yield f"{ours.full_name}: round {number}: Envoy's side does not know a field of ours"
        if our_class.FromString(read.SerializeToString()) != mine:
            yield f"{ours.full_name}: round {number}: comes back changed from Envoy's side"
        theirs_filled = fill(their_class(), rng)
        passed = our_class.FromString(theirs_filled.SerializeToString())
        if their_class.FromString(passed.SerializeToString()) != theirs_filled:
            yield f"{ours.full_name}: round {number}: Envoy's comes back changed from our side"
        yield from value_differences(passed, theirs_filled)


def unknown(message: Message) -> bool:
    """Whether a message, or one in it, holds fields that its type does not have."""
    stripped = type(message).FromString(message.SerializeToString())
    stripped.DiscardUnknownFields()
    return stripped.ByteSize() != message.ByteSize()


def value_differences(ours: Any, theirs: Any) -> Iterator[str]:
    """Whether every field that both know reads the same."""
    for field in ours.DESCRIPTOR.fields:
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        path = f"{ours.DESCRIPTOR.full_name}.{field.name}"
        if field.has_presence and ours.HasField(field.name) != theirs.HasField(field.name):
            yield f"{path}: is set on one side only"
        if field.message_type is None:
            if (list(mine) if field.is_repeated else mine) != (
                list(other) if field.is_repeated else other
            ):
                yield f"{path}: {mine!r} is not {other!r}"
        elif field.message_type.GetOptions().map_entry:
            if set(mine) != set(other):
                yield f"{path}: keys differ"
        elif field.is_repeated:
            if len(mine) != len(other):
                yield f"{path}: {len(mine)} values, not {len(other)}"
            for one, two in zip(mine, other, strict=False):
                yield from value_differences(one, two)
        elif field.message_type.full_name.startswith(PACKAGE):
            yield from value_differences(mine, other)


def main(arguments: list[str]) -> None:
    """Compare everything; print what was compared and what differs."""
    for argument in arguments:
        ours, _, theirs = argument.partition("=")
        THEIRS[ours] = theirs
    rng = random.Random(20_240_601)  # fixed, so that a failure comes again
    found: list[str] = []
    messages = fields = 0
    for message in our_messages():
        other = POOL.FindMessageTypeByName(their_name(message.full_name))
        messages += 1
        fields += len(message.fields)
        broken = list(differences(message, other))
        found += broken
        if not broken and not message.GetOptions().map_entry:
            found += trip_differences(message, other, rng)
    print(json.dumps({"messages": messages, "fields": fields, "differences": found[:50]}))


if __name__ == "__main__":
    main(sys.argv[1:])
