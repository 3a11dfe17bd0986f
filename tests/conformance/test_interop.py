"""Clients of other makers are served on the Unix socket: grpcio's two, by gRPC's interop cases.

grpc-go, nghttp2 and the cases on the level of frames are in test_interop_tools and
test_interop_frames; real Envoy is in tests/integration.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

import grpc
import pytest

from sidecar.wire.limits import LOG_BYTES_MAX
from tests.conformance.callers import AioCaller, Caller, SyncCaller
from tests.conformance.servers import Server
from tests.integration.extproc import ACCESS_LOGS, CHECK, PROCESS, entry_of, request_of
from turnout.contract import HEADER_VARIANT
from turnout.envoy.access_log_pb2 import StreamAccessLogsMessage
from turnout.envoy.ext_proc_pb2 import ProcessingResponse
from turnout.envoy.health_pb2 import HealthCheckRequest, HealthCheckResponse

WATCH: Final = CHECK.replace("Check", "Watch")
SERVING: Final = HealthCheckResponse(status=HealthCheckResponse.SERVING).SerializeToString()
REQUEST: Final = request_of("u1").SerializeToString()
STAMP: Final = "fraud-v2;1;v2;0;0123456789abcdef"
OK: Final = grpc.StatusCode.OK
ENVOYS_LARGEST: Final = 60 * 1024  # of headers, and so of one message
PROCESS_BYTES_MAX: Final = 64 * 1024
# What Envoy was seen to send after an outage.
LOG_AFTER_OUTAGE: Final = 1_113_378


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("wire") as one:
        yield one
        assert one.alive, one.output()
        assert one.output() == ""


@pytest.fixture(scope="module", params=[SyncCaller, AioCaller])
def caller(server: Server, request: pytest.FixtureRequest) -> Iterator[Caller]:
    one: Caller = request.param(f"unix:{server.address.path}")
    yield one
    one.close()


def stamped(answer: bytes) -> dict[str, str]:
    mutation = ProcessingResponse.FromString(answer).request_headers.response.header_mutation
    return {o.header.key: o.header.raw_value.decode() for o in mutation.set_headers}


def log_of(size: int) -> bytes:
    """An access log message of exactly so many bytes."""
    message = StreamAccessLogsMessage()
    entry = entry_of(STAMP)
    message.identifier.CopyFrom(entry.identifier)
    message.http_logs.MergeFrom(entry.http_logs)
    # A node's id says nothing to us; the prefixes of what holds it grow with it.
    message.identifier.node.id = "x" * (size - 100)
    message.identifier.node.id = "x" * (2 * size - 100 - message.ByteSize())
    assert message.ByteSize() == size
    return message.SerializeToString()


def test_check_is_answered_when_its_message_is_empty(caller: Caller) -> None:
    """gRPC interop: empty_unary."""
    result = caller.call(CHECK, [b""])
    assert (result.code, result.answers) == (OK, [SERVING])


def test_request_is_stamped_when_a_target_matches(caller: Caller) -> None:
    result = caller.call(PROCESS, [REQUEST])
    assert result.code is OK
    (answer,) = result.answers
    assert HEADER_VARIANT in stamped(answer)


def test_requests_are_all_stamped_alike_when_they_share_a_connection(caller: Caller) -> None:
    """gRPC interop: ping_pong, as Envoy plays it: a stream each."""
    results = [caller.call(PROCESS, [REQUEST]) for _ in range(100)]
    assert {result.code for result in results} == {OK}
    assert len({tuple(result.answers) for result in results}) == 1


def test_requests_are_all_answered_when_many_are_open_at_once(caller: Caller) -> None:
    results = []

    def ask(name: str) -> None:
        for i in range(20):
            request = request_of(f"{name}-{i}").SerializeToString()
            results.append(caller.call(PROCESS, [request]))

    threads = [threading.Thread(target=ask, args=(f"t{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.code for result in results] == [OK] * 160
    assert all(len(result.answers) == 1 for result in results)


def test_stream_ends_with_status_0_when_no_message_came(caller: Caller) -> None:
    """gRPC interop: empty_stream."""
    result = caller.call(PROCESS, [])
    assert (result.code, result.answers) == (OK, [])
    result = caller.call(ACCESS_LOGS, [])
    assert (result.code, result.answers) == (OK, [b""])


@pytest.mark.parametrize("size", [0, 1, 16_384, ENVOYS_LARGEST])
def test_request_is_stamped_when_a_header_is_large(caller: Caller, size: int) -> None:
    """gRPC interop: large_unary, as large as Envoy takes."""
    request = request_of("u1", **{"x-large": "x" * size})
    result = caller.call(PROCESS, [request.SerializeToString()])
    assert result.code is OK, result
    assert HEADER_VARIANT in stamped(result.answers[0])


@pytest.mark.parametrize("size", [1_000, 271_828, LOG_AFTER_OUTAGE, LOG_BYTES_MAX])
def test_log_is_taken_when_it_is_as_large_as_allowed(caller: Caller, size: int) -> None:
    """gRPC interop: client_streaming and large_unary."""
    result = caller.call(ACCESS_LOGS, [log_of(size)] * 3)
    assert (result.code, result.answers) == (OK, [b""]), result


def test_log_is_refused_when_it_is_larger_than_allowed(caller: Caller) -> None:
    result = caller.ask(ACCESS_LOGS, log_of(LOG_BYTES_MAX + 1))
    assert result.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caller.call(CHECK, [b""]).code is OK


def test_request_is_refused_when_it_is_larger_than_allowed(caller: Caller) -> None:
    request = request_of("u1", **{"x-large": "x" * PROCESS_BYTES_MAX})
    result = caller.ask(PROCESS, request.SerializeToString())
    assert result.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caller.call(CHECK, [b""]).code is OK


@pytest.mark.parametrize("method", [PROCESS, ACCESS_LOGS])
def test_call_ends_at_once_when_it_is_cancelled_after_it_began(caller: Caller, method: str) -> None:
    """gRPC interop: cancel_after_begin."""
    result = caller.call(method, [], keep_open=True, cancel_after=0)
    assert result.code is grpc.StatusCode.CANCELLED
    assert caller.call(CHECK, [b""]).code is OK


def test_watch_says_serving_and_ends_when_it_is_cancelled(caller: Caller) -> None:
    """gRPC interop: cancel_after_first_response, server_streaming."""
    result = caller.call(WATCH, [b""], cancel_after=1)
    assert (result.code, result.answers) == (grpc.StatusCode.CANCELLED, [SERVING])
    assert caller.call(CHECK, [b""]).code is OK


@pytest.mark.parametrize("method", [PROCESS, ACCESS_LOGS, WATCH])
def test_call_ends_at_its_deadline_when_nothing_happens(caller: Caller, method: str) -> None:
    """gRPC interop: timeout_on_sleeping_server."""
    messages = [b""] if method == WATCH else []
    result = caller.call(method, messages, keep_open=True, timeout_s=0.2)
    assert result.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caller.call(CHECK, [b""]).code is OK


@pytest.mark.parametrize("method", [PROCESS, ACCESS_LOGS])
def test_call_ends_with_invalid_argument_when_its_message_cannot_be_read(
    caller: Caller, method: str
) -> None:
    """gRPC interop: status_code_and_message."""
    result = caller.ask(method, b"\xff")
    assert result.code is grpc.StatusCode.INVALID_ARGUMENT
    assert result.details
    assert caller.call(CHECK, [b""]).code is OK


@pytest.mark.parametrize(
    "method",
    [
        PROCESS.replace("Process", "Other"),  # unimplemented_method
        "/envoy.service.ext_proc.v3.Other/Process",  # unimplemented_service
        PROCESS.lower(),
        PROCESS + "?a=b",
        PROCESS + "/",
        "/",
    ],
)
def test_call_ends_with_unimplemented_when_its_path_is_no_methods(
    caller: Caller, method: str
) -> None:
    result = caller.ask(method, b"")
    assert (result.code, result.answers) == (grpc.StatusCode.UNIMPLEMENTED, [])
    assert caller.call(CHECK, [b""]).code is OK


@pytest.mark.parametrize("method", [PROCESS, ACCESS_LOGS, CHECK])
@pytest.mark.parametrize("kind", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_call_ends_with_unimplemented_when_it_is_compressed(
    caller: Caller, method: str, kind: grpc.Compression
) -> None:
    """gRPC interop: client_compressed_*, of a server that does not decompress."""
    large = request_of("u1", **{"x-large": "x" * 10_000}).SerializeToString()
    name = HealthCheckRequest(service="x" * 1_000).SerializeToString()
    message = {PROCESS: large, ACCESS_LOGS: log_of(10_000), CHECK: name}[method]
    result = caller.ask(method, message, compression=kind)
    assert result.code is grpc.StatusCode.UNIMPLEMENTED
    assert caller.call(CHECK, [b""]).code is OK


def test_call_is_served_when_it_brings_metadata(caller: Caller) -> None:
    """gRPC interop: custom_metadata."""
    metadata: list[tuple[str, str | bytes]] = [
        ("x-grpc-test-echo-initial", "test_initial_metadata_value"),
        ("x-grpc-test-echo-trailing-bin", b"\xab\xab\xab"),
        ("x-padded-bin", bytes(range(256))),
        ("x-many", "a"),
        ("x-many", "b"),
    ]
    result = caller.call(PROCESS, [REQUEST], metadata=metadata)
    assert (result.code, len(result.answers)) == (OK, 1)
