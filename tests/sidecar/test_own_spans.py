"""The supervisor's own spans: small when off, harmless when their backend is gone."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from sidecar.ownspans import OwnSpans
from tests.integration.waiting import free_port, wait_for

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
TRACE, PUSH = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def own_spans(port: int) -> OwnSpans:
    """Some that go to a port of the loopback."""
    return OwnSpans(
        f"127.0.0.1:{port}", node="node-1", tenant="risk", version="1", clock_ns=time.time_ns
    )


async def backend(port: int, got: list[Span]) -> grpc.aio.Server:
    """An OTLP receiver that keeps all spans."""

    async def export(request: bytes, _context: object) -> bytes:
        for resource in ExportTraceServiceRequest.FromString(request).resource_spans:
            for scope in resource.scope_spans:
                got.extend(scope.spans)
        return b""

    server = grpc.aio.server()
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(export)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Export": method}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server


async def test_spans_hang_below_the_push_and_come_late_when_backend_is_late() -> None:
    port, got = free_port(), list[Span]()
    mine = own_spans(port)
    mine.received(6, "")
    mine.received(7, f"00-{TRACE}-{PUSH}-01")
    mine.applied(7)
    mine.received(8, "nonsense")
    mine.applied(8, refusal="salt: must not be empty")
    await asyncio.sleep(0.7)  # the first attempt fails
    server = await backend(port, got)
    await wait_for(lambda: len(got) == 3, "all spans have come")
    by_version = {
        next(a.value.int_value for a in s.attributes if a.key == "turnout.snapshot_version"): s
        for s in got
    }
    assert by_version[7].trace_id.hex() == TRACE
    assert by_version[7].parent_span_id.hex() == PUSH
    assert not by_version[8].parent_span_id
    assert by_version[8].status.code == Status.STATUS_CODE_ERROR
    assert by_version[6].status.code == Status.STATUS_CODE_UNSET
    await mine.close()
    await server.stop(None)


async def test_last_spans_are_sent_when_the_sidecar_stops() -> None:
    port, got = free_port(), list[Span]()
    server = await backend(port, got)
    mine = own_spans(port)
    await asyncio.sleep(0)
    mine.received(1, "")
    mine.applied(1)
    await mine.close()
    assert len(got) == 1
    await server.stop(None)


async def test_stopping_is_quick_when_backend_is_gone() -> None:
    mine = own_spans(free_port())
    await asyncio.sleep(0)
    mine.received(1, "")
    mine.applied(1)
    begin = time.monotonic()
    await mine.close()
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("module", ["sidecar.service", "sidecar.worker"])
def test_sdk_is_not_loaded_when_nobody_wants_spans(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any('opentelemetry' in m for m in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)
