"""OTLP bytes: what is read of them, and what they may cost."""

from __future__ import annotations

import contextlib
import resource
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from control.ingest import (
    MESSAGES_MAX,
    REQUEST_BYTES_MAX,
    SPANS_MAX,
    IngestError,
    MalformedSpans,
    OversizedSpans,
    count_messages,
    parse,
    request_hash,
)
from turnout import contract

TRACE, SPAN = b"\x01" * 16, b"\x02" * 8
Value = str | int | float | bool


def value_of(value: Value) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    return AnyValue(string_value=value)


def span(
    *, trace: bytes = TRACE, span_id: bytes = SPAN, error: bool = False, **said: Value
) -> Span:
    """A span that says `turnout.<name>`; `guid` stands for Envoy's own request id."""
    keys = {"guid": contract.ATTRIBUTE_ENVOY_REQUEST_ID}
    attributes = [
        KeyValue(key=keys.get(name, f"turnout.{name}"), value=value_of(value))
        for name, value in said.items()
    ]
    status = Status(code=Status.STATUS_CODE_ERROR if error else Status.STATUS_CODE_UNSET)
    return Span(trace_id=trace, span_id=span_id, attributes=attributes, status=status)


def request_of(*spans: Span) -> bytes:
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.extend(spans)
    return request.SerializeToString()


def wrapped(payload: bytes, *fields: int) -> bytes:
    """The payload as a field inside a field inside ..., innermost last in `fields`."""
    for field in reversed(fields):
        size, length = len(payload), b""
        while size > 127:
            length += bytes([size & 127 | 128])
            size >>= 7
        payload = bytes([field << 3 | 2]) + length + bytes([size]) + payload
    return payload


def test_span_says_what_its_attributes_say() -> None:
    said = span(request_id="r1", prediction="fraud", label="ok", score=0.75, cost=2, shadow=True)
    found = parse(request_of(said, span(request_id="r2", prediction="ok", error=True)))
    assert found.spans == 2
    first, second = found.facts
    assert first == (request_hash(b"r1"), "fraud", "ok", 0.75, 2.0, True, TRACE, False, SPAN)
    assert (second.prediction, second.shadow, second.error) == ("ok", False, True)


def test_envoys_request_id_counts_when_the_span_has_no_other() -> None:
    own, envoys = parse(
        request_of(
            span(request_id="mine", guid="envoys", prediction="1"),
            span(guid="envoys", prediction="1"),
        )
    ).facts
    assert own.request_hash == request_hash(b"mine")
    assert envoys.request_hash == request_hash(b"envoys")


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (1.0, "1"), (0.5, "0.5"), (-0.0, "0"), (1e300, "1e+300"), (True, "true"), ("", "")],
)
def test_prediction_is_compared_as_text_when_it_is_a_number(value: Value, text: str) -> None:
    (fact,) = parse(request_of(span(request_id="r", prediction=value))).facts
    assert fact.prediction == text


def test_span_that_says_nothing_about_a_request_gives_no_fact() -> None:
    found = parse(request_of(span(), span(prediction="1"), span(guid="r"), span(request_id="")))
    assert found.spans == 4
    assert not found.facts
    assert not found.rejected


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (span(trace=b"\x01", request_id="r", label="1"), "bad_trace_id"),
        (span(trace=b"\x00" * 16, request_id="r", label="1"), "bad_trace_id"),
        (span(span_id=b"", request_id="r", label="1"), "bad_span_id"),
        (span(request_id="r" * 257, label="1"), "long_request_id"),
        (span(request_id="r", label="é" * 129), "long_text"),
        (span(request_id="r", score=float("nan")), "not_finite"),
        (span(request_id="r", cost=float("inf")), "not_finite"),
        (span(request_id="r", score="high"), "not_finite"),
    ],
)
def test_bad_span_is_left_out_and_counted_and_the_others_are_taken(bad: Span, reason: str) -> None:
    found = parse(request_of(bad, span(request_id="good", label="1")))
    assert found.rejected == {reason: 1}
    assert [fact.request_hash for fact in found.facts] == [request_hash(b"good")]


def test_span_is_left_out_when_its_prediction_is_a_list() -> None:
    bad = span(request_id="r")
    listed = AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1)]))
    bad.attributes.add(key=contract.ATTRIBUTE_PREDICTION, value=listed)
    assert parse(request_of(bad)).rejected == {"not_scalar": 1}


def test_first_of_a_repeated_attribute_counts() -> None:
    twice = span(request_id="r", prediction="first")
    twice.attributes.add(key=contract.ATTRIBUTE_PREDICTION, value=AnyValue(string_value="second"))
    (fact,) = parse(request_of(twice)).facts
    assert fact.prediction == "first"


def test_end_before_start_does_not_matter() -> None:
    backwards = span(request_id="r", label="1")
    backwards.start_time_unix_nano, backwards.end_time_unix_nano = 2, 1
    assert parse(request_of(backwards)).facts


def test_whole_request_is_malformed_when_one_byte_is_no_utf8() -> None:
    data = request_of(span(request_id="r", label="XYZ"), span(request_id="good", label="1"))
    with pytest.raises(MalformedSpans):
        parse(data.replace(b"XYZ", b"\xff\xfe\xc3"))


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",
        b"\x0a\x05abc",
        b"\xff" * 11,
        b"\x0b",  # a group
        b"\x09\x00",
        wrapped(b"\x12\x7f", 1),
        wrapped(b"", 1, 2, 2, 9, 2, *([5, 1] * 40)),
    ],
)
def test_bytes_are_malformed_when_the_wire_format_is_broken(data: bytes) -> None:
    with pytest.raises(MalformedSpans):
        parse(data)


def test_deep_values_are_refused_before_the_parser_sees_them() -> None:
    with pytest.raises(MalformedSpans, match="nested"):
        count_messages(wrapped(b"", 1, 2, 2, 9, 2, *([5, 1] * 20)))


def test_request_is_oversized_when_it_has_too_many_bytes() -> None:
    with pytest.raises(OversizedSpans) as refused:
        parse(bytes(REQUEST_BYTES_MAX + 1))
    assert refused.value.limit == REQUEST_BYTES_MAX


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (wrapped(b"\x12\x00" * 2_000_000, 1, 2), "spans"),  # empty spans
        (wrapped(b"\x4a\x00" * 2_000_000, 1, 2, 2), "messages"),  # empty attributes of one span
        (wrapped(b"\x5a\x00" * 2_000_000, 1, 2, 2), "messages"),  # empty events
        (wrapped(b"\x0a\x00" * 2_000_000, 1, 2, 2, 9, 2, 5), "messages"),  # an array of nothing
        (b"\x0a\x00" * 2_000_000, "messages"),  # empty resource spans
        (wrapped(b"\x12\x00" * 2_000_000, 1), "messages"),  # empty scopes
    ],
)
def test_four_megabytes_of_empty_messages_cost_little(data: bytes, what: str) -> None:
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(OversizedSpans) as refused:
        parse(data)
    assert refused.value.what == what
    assert refused.value.found == refused.value.limit + 1
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 50_000


def test_count_agrees_with_what_is_parsed() -> None:
    request = ExportTraceServiceRequest()
    for _ in range(3):
        scope = request.resource_spans.add().scope_spans.add()
        scope.spans.extend([span(request_id="r", label="1") for _ in range(4)])
    spans, messages = count_messages(request.SerializeToString())
    assert spans == 12
    # 3 resource spans, 3 scopes, 12 spans with a status and 2 attributes of one value each.
    assert messages == 3 + 3 + 12 * (1 + 1 + 2 * 2)
    assert spans < SPANS_MAX < MESSAGES_MAX


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused_with_a_typed_error(data: bytes) -> None:
    with contextlib.suppress(IngestError):
        parse(data)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 255), st.integers(0, 3))
def test_damaged_request_is_read_or_refused_with_a_typed_error(
    place: int, byte: int, cut: int
) -> None:
    data = bytearray(
        request_of(*[span(request_id=f"r{n}", label="1", score=0.5) for n in range(4)])
    )
    data[place % len(data)] = byte
    with contextlib.suppress(IngestError):
        parse(bytes(data[: len(data) - cut]))
