"""Receives spans over OTLP/gRPC: admission by bytes in flight, then the pure ingest.

Owns the TraceService method on raw bytes (one invalid UTF-8 byte must answer INVALID_ARGUMENT, not
INTERNAL) and the mapping of its faults. Refuses to read spans itself: `control.ingest` does; and to
send them on: `control.forward` does.
"""

from __future__ import annotations

from typing import Final, Protocol

import grpc
from google.rpc import code_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from control import ingest
from control.admission import Admission
from control.forward import FORWARDED_KEY, Forwarder
from control.refusals import Refused, exhausted
from control.services.errors import Context, abort

SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"
TENANT_KEY: Final = "x-turnout-tenant"


class Spans(Protocol):
    """Where the facts go."""

    async def take_spans(self, tenant: str, facts: tuple[ingest.SpanFact, ...]) -> str:
        """Store facts of the tenant ("" = the only one); why they were not taken, "" = they were.

        Raises:
            Refused: UNAVAILABLE; to be sent again.
        """
        ...


class OtlpReceiver:
    """Answers Export.

    Args:
        sink: Where the facts go.
        admission: Bounds the bytes in flight.
        forwarder: Gets every request that was taken, unchanged; None = nobody does.

    Attributes:
        spans: Spans taken, and
        rejected: left out, by reason.
    """

    def __init__(
        self, sink: Spans, admission: Admission, forwarder: Forwarder | None = None
    ) -> None:
        self._sink = sink
        self._admission = admission
        self._forwarder = forwarder
        self.requests = 0
        self.spans = 0
        self.rejected: dict[str, int] = {}

    def handler(self) -> grpc.GenericRpcHandler:
        """The method, for `add_generic_rpc_handlers`."""
        export = grpc.unary_unary_rpc_method_handler(
            self.export, request_deserializer=bytes, response_serializer=bytes
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"Export": export})

    async def export(self, request: bytes, context: Context) -> bytes:
        """Take one ExportTraceServiceRequest."""
        self.requests += 1
        try:
            with self._admission.admit(len(request)):
                response, spans = await self._take(request, _metadata(context, TENANT_KEY))
        except Refused as refused:
            await abort(context, refused)
            raise AssertionError("abort always raises") from refused
        # After it was taken: what is refused comes again, and would be passed on twice.
        if self._forwarder is not None and spans and not _metadata(context, FORWARDED_KEY):
            self._forwarder.offer(request, spans)
        return response.SerializeToString()

    async def _take(
        self, request: bytes, tenant: str
    ) -> tuple[trace_service_pb2.ExportTraceServiceResponse, int]:
        """The answer, and the number of spans in the request."""
        try:
            found = ingest.parse(request)
        except ingest.OversizedSpans as error:
            self._reject("oversized", 1)
            raise exhausted("SPANS_TOO_LARGE", str(error)) from error
        except ingest.MalformedSpans as error:
            self._reject("malformed", 1)
            raise Refused(code_pb2.INVALID_ARGUMENT, str(error), reason="MALFORMED") from error
        for reason, count in found.rejected.items():
            self._reject(reason, count)
        response = trace_service_pb2.ExportTraceServiceResponse()
        rejected, why = sum(found.rejected.values()), ", ".join(sorted(found.rejected))
        if found.facts:
            not_taken = await self._sink.take_spans(tenant, found.facts)
            if not_taken:
                rejected, why = found.spans, not_taken
                self._reject("no_tenant", len(found.facts))
        self.spans += found.spans - rejected
        if rejected:
            response.partial_success.rejected_spans = rejected
            response.partial_success.error_message = why
        return response, found.spans

    def _reject(self, reason: str, count: int) -> None:
        self.rejected[reason] = self.rejected.get(reason, 0) + count


def _metadata(context: Context, name: str) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return ""
