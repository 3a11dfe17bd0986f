"""OTLP trace bytes -> facts about requests. Pure.

Owns the limits on what a sender of spans may cost, and which attributes are read. Refuses to keep
spans: only a request id's hash, prediction and label, and the span's own ids leave this module.

Protobuf accepts much that is not OTLP, and can be made to cost a hundred times its size: 4 MB of
empty spans are 2 million messages and 338 MB (measured). So the wire is walked and its messages are
counted before anything is parsed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import xxhash
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status

from turnout import contract

# PyPI's xds-protos overwrites opentelemetry-proto with an old version, in which spans would parse
# as unknown fields: every request would be answered OK and count nothing.
if "scope_spans" not in ResourceSpans.DESCRIPTOR.fields_by_name:
    raise ImportError("opentelemetry-proto was overwritten by another package (xds-protos?)")

REQUEST_BYTES_MAX: Final = contract.GRPC_MESSAGE_BYTES_MAX
SPANS_MAX: Final = 50_000
# Messages of any kind in one request (attributes, events, links, values): ~170 B each once parsed,
# so 68 MB at most. A full request of real attributes (>= 20 B each) stays below it.
MESSAGES_MAX: Final = 400_000
DEPTH_MAX: Final = 32  # of values inside of values; protobuf itself refuses 100
TRACE_ID_BYTES: Final = 16
SPAN_ID_BYTES: Final = 8
REQUEST_ID_BYTES_MAX: Final = 256
TEXT_BYTES_MAX: Final = 256  # of a prediction or label, as in RecordOutcomes


class IngestError(ValueError):
    """The request is refused as a whole; nothing of it was taken."""


class MalformedSpans(IngestError):
    """The bytes are not an ExportTraceServiceRequest: INVALID_ARGUMENT, not to be repeated."""


class OversizedSpans(IngestError):
    """The request is above a limit: RESOURCE_EXHAUSTED.

    Attributes:
        what: What there is too much of.
        found: How much was found before the walk stopped.
        limit: How much is allowed.
    """

    def __init__(self, what: str, found: int, limit: int) -> None:
        self.what, self.found, self.limit = what, found, limit
        super().__init__(f"{what}: {found} is above the limit of {limit}")


class SpanFact(NamedTuple):
    """What one span says about one request.

    Attributes:
        request_hash: `request_hash` of the request id.
        prediction: The model's answer as text, None = the span does not say.
        label: The truth as text.
        score: The model's score, finite.
        cost: What the answer cost, finite.
        shadow: The span answered a mirrored copy.
        trace_id: 16 bytes.
        error: The span's status is an error.
        span_id: 8 bytes.
    """

    request_hash: int
    prediction: str | None
    label: str | None
    score: float | None
    cost: float | None
    shadow: bool
    trace_id: bytes
    error: bool
    span_id: bytes = b""


@dataclass(frozen=True, slots=True)
class Ingested:
    """What was found in one request.

    Attributes:
        spans: Spans in the request.
        facts: Those that say something about a request with an id.
        rejected: Spans that were left out, by reason (bad_trace_id, bad_span_id, long_request_id,
            long_text, not_finite). For `partial_success`.
    """

    spans: int
    facts: tuple[SpanFact, ...]
    rejected: Mapping[str, int]


def request_hash(request_id: bytes) -> int:
    """The 64-bit hash under which exposures, predictions and labels of a request meet."""
    return xxhash.xxh3_64_intdigest(request_id)


def parse(data: bytes) -> Ingested:
    """Reads one ExportTraceServiceRequest.

    Args:
        data: The message, uncompressed.

    Raises:
        OversizedSpans: More bytes, spans or messages than allowed.
        MalformedSpans: Not such a message (truncated, invalid UTF-8, nested too deep).
    """
    if len(data) > REQUEST_BYTES_MAX:
        raise OversizedSpans("bytes", len(data), REQUEST_BYTES_MAX)
    count_messages(data)
    request = ExportTraceServiceRequest()
    try:
        request.ParseFromString(data)
    except DecodeError as error:
        raise MalformedSpans("not an ExportTraceServiceRequest (invalid UTF-8?)") from error
    facts: list[SpanFact] = []
    rejected: dict[str, int] = {}
    spans = 0
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                spans += 1
                try:
                    fact = _fact(span)
                except _Rejected as reason:
                    rejected[str(reason)] = rejected.get(str(reason), 0) + 1
                else:
                    if fact is not None:
                        facts.append(fact)
    return Ingested(spans, tuple(facts), rejected)


# -- Counting on the wire --------------------------------------------------------------------------

# Field number -> schema of the messages in it, for all of ExportTraceServiceRequest that repeats.
_Schema = dict[int, "_Schema"]
_VALUE: _Schema = {}
_ATTRIBUTE: _Schema = {2: _VALUE}
_VALUE[5] = {1: _VALUE}  # ArrayValue.values
_VALUE[6] = {1: _ATTRIBUTE}  # KeyValueList.values
_SPAN: _Schema = {9: _ATTRIBUTE, 11: {3: _ATTRIBUTE}, 13: {4: _ATTRIBUTE}, 15: {}}
_SCOPE_SPANS: _Schema = {1: {3: _ATTRIBUTE}, 2: _SPAN}
_RESOURCE_SPANS: _Schema = {1: {1: _ATTRIBUTE, 3: {}}, 2: _SCOPE_SPANS}
_REQUEST: _Schema = {1: _RESOURCE_SPANS}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def count_messages(data: bytes) -> tuple[int, int]:
    """Spans and messages on the wire, without parsing them.

    Raises:
        OversizedSpans: Above SPANS_MAX or MESSAGES_MAX; the walk stops there.
        MalformedSpans: The wire format is broken, or nested deeper than DEPTH_MAX.
    """
    spans = messages = 0
    # (position, end, schema, depth) of the messages that are still to be walked.
    stack = [(0, len(data), _REQUEST, 0)]
    while stack:
        position, end, schema, depth = stack.pop()
        if depth > DEPTH_MAX:
            raise MalformedSpans(f"values nested deeper than {DEPTH_MAX}")
        while position < end:
            tag, position = _varint(data, position, end)
            field, wire = tag >> 3, tag & 7
            if wire != _BYTES:
                position = _skip(data, position, end, wire)
                continue
            length, position = _varint(data, position, end)
            if length > end - position:
                raise MalformedSpans("truncated")
            child = schema.get(field)
            if child is not None:
                messages += 1
                spans += child is _SPAN
                if spans > SPANS_MAX:
                    raise OversizedSpans("spans", spans, SPANS_MAX)
                if messages > MESSAGES_MAX:
                    raise OversizedSpans("messages", messages, MESSAGES_MAX)
                if child and length:
                    stack.append((position, position + length, child, depth + 1))
            position += length
    return spans, messages


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    if position < end and data[position] < 0x80:  # nearly all of them
        return data[position], position + 1
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise MalformedSpans("truncated")


def _skip(data: bytes, position: int, end: int, wire: int) -> int:
    if wire == _VARINT:
        return _varint(data, position, end)[1]
    if wire == _FIXED64:
        position += 8
    elif wire == _FIXED32:
        position += 4
    else:  # groups are no part of proto3
        raise MalformedSpans(f"wire type {wire}")
    if position > end:
        raise MalformedSpans("truncated")
    return position


# -- One span --------------------------------------------------------------------------------------

_READ: Final = frozenset(
    {
        contract.ATTRIBUTE_REQUEST_ID,
        contract.ATTRIBUTE_ENVOY_REQUEST_ID,
        contract.ATTRIBUTE_PREDICTION,
        contract.ATTRIBUTE_LABEL,
        contract.ATTRIBUTE_SCORE,
        contract.ATTRIBUTE_COST,
        contract.ATTRIBUTE_SHADOW,
    }
)


class _Rejected(Exception):
    """This span is left out, the others are not."""


def _fact(span: Span) -> SpanFact | None:
    """The span's fact; None when it says nothing about a request.

    Raises:
        _Rejected: The span breaks a rule of OTLP or of ours.
    """
    if len(span.trace_id) != TRACE_ID_BYTES or not any(span.trace_id):
        raise _Rejected("bad_trace_id")
    if len(span.span_id) != SPAN_ID_BYTES or not any(span.span_id):
        raise _Rejected("bad_span_id")
    # OTLP: keys are unique; of a repeated one the first counts.
    found: dict[str, AnyValue] = {}
    for attribute in span.attributes:
        if attribute.key in _READ:
            found.setdefault(attribute.key, attribute.value)
    request_id = _text(found, contract.ATTRIBUTE_REQUEST_ID) or _text(
        found, contract.ATTRIBUTE_ENVOY_REQUEST_ID
    )
    if not request_id:
        return None
    if len(request_id.encode()) > REQUEST_ID_BYTES_MAX:
        raise _Rejected("long_request_id")
    fact = SpanFact(
        request_hash(request_id.encode()),
        _short_text(found, contract.ATTRIBUTE_PREDICTION),
        _short_text(found, contract.ATTRIBUTE_LABEL),
        _number(found, contract.ATTRIBUTE_SCORE),
        _number(found, contract.ATTRIBUTE_COST),
        _text(found, contract.ATTRIBUTE_SHADOW) not in (None, "", "false"),
        span.trace_id,
        span.status.code == Status.STATUS_CODE_ERROR,
        span.span_id,
    )
    says = (fact.prediction, fact.label, fact.score, fact.cost)
    return fact if fact.error or any(value is not None for value in says) else None


def _text(found: Mapping[str, AnyValue], key: str) -> str | None:
    """The attribute as text: what a label is compared with.

    Numbers are written in their shortest decimal form, whole ones without a fraction, so that a
    model that answers 1.0 agrees with a label "1".
    """
    value = found.get(key)
    which = value.WhichOneof("value") if value is not None else None
    if value is None or which is None:
        return None
    if which == "string_value":
        return str(value.string_value)
    if which == "bool_value":
        return "true" if value.bool_value else "false"
    if which == "int_value":
        return str(value.int_value)
    if which == "double_value":
        number = value.double_value
        return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)
    raise _Rejected("not_scalar")


def _short_text(found: Mapping[str, AnyValue], key: str) -> str | None:
    text = _text(found, key)
    if text is not None and len(text.encode()) > TEXT_BYTES_MAX:
        raise _Rejected("long_text")
    return text


def _number(found: Mapping[str, AnyValue], key: str) -> float | None:
    text = _text(found, key)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _Rejected("not_finite")
    return number
