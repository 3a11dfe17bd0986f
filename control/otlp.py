"""Receives spans over OTLP/gRPC: admission by bytes in flight, then the pure ingest.

Owns the TraceService method on raw bytes (one invalid UTF-8 byte must answer INVALID_ARGUMENT, not
INTERNAL) and its memory bound. Refuses to read spans itself: `control.ingest` does, and the
controller stores what it found.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from control.refusals import Refused, unavailable
from control.services.errors import Context, abort

SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"
# Requests that are being parsed or stored hold at most this many bytes on the wire; parsed they
# take up to ~20 times as much (empty spans are the worst case).
IN_FLIGHT_BYTES_MAX: Final = 16 * 1024 * 1024
RETRY_AFTER_MS: Final = 500
TENANT_KEY: Final = "x-turnout-tenant"

Accept = Callable[[bytes, str], Awaitable[trace_service_pb2.ExportTraceServiceResponse]]


class OtlpReceiver:
    """Answers Export; `accept(request, tenant or "")` parses and stores.

    `accept` raises `Refused` for what is malformed or too big.
    """

    def __init__(self, accept: Accept) -> None:
        self._accept = accept
        self.in_flight_bytes = 0
        self.shed = 0
        self.requests = 0

    def handler(self) -> grpc.GenericRpcHandler:
        """The method, for `add_generic_rpc_handlers`."""
        export = grpc.unary_unary_rpc_method_handler(
            self.export,
            request_deserializer=bytes,
            response_serializer=bytes,
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"Export": export})

    async def export(self, request: bytes, context: Context) -> bytes:
        """Take one ExportTraceServiceRequest."""
        size = len(request)
        self.requests += 1
        if self.in_flight_bytes + size > IN_FLIGHT_BYTES_MAX:
            self.shed += 1
            await self._shed(context)
        self.in_flight_bytes += size
        try:
            response = await self._accept(request, _tenant(context))
        except Refused as refused:
            await abort(context, refused)
            raise AssertionError("abort always raises") from refused
        finally:
            self.in_flight_bytes -= size
        return response.SerializeToString()

    async def _shed(self, context: Context) -> None:
        """UNAVAILABLE with RetryInfo: the one overload answer that OTLP senders retry."""
        status = unavailable("too many spans in flight").status()
        delay = duration_pb2.Duration(nanos=RETRY_AFTER_MS * 1_000_000)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        trailers = (("grpc-status-details-bin", status.SerializeToString()),)
        await context.abort(grpc.StatusCode.UNAVAILABLE, status.message, trailers)


def _tenant(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == TENANT_KEY:
            return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return ""
