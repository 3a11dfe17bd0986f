"""The supervisor's own spans: from a snapshot's arrival to the workers' serving it.

Owns the OpenTelemetry SDK and the export over the supervisor's own gRPC, without threads. Imported
only when there is a backend: a sidecar without one stays as small as it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import grpc
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sidecar.tracing import Tracing

SERVICE_NAME: Final = "turnout-sidecar"
EXPORT_EVERY_S: Final = 0.5
EXPORT_TIMEOUT_S: Final = 2.0
CLOSE_S: Final = 1.0
# What waits for a backend that is gone; then the oldest go.
WAITING_MAX: Final = 1_024
# Snapshots that are being applied at the same time; only the newest matter.
OPEN_MAX: Final = 16

_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
# A proxy from the environment is no part of what the operator named.
_OPTIONS: Final = (("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 5_000))
_LOG = logging.getLogger(__name__)


class _Export(SpanProcessor):
    """Sends ended spans, a few at a time; a failed attempt is made again with the next."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._waiting: deque[ReadableSpan] = deque(maxlen=WAITING_MAX)
        self._failing = False

    def on_end(self, span: ReadableSpan) -> None:
        self._waiting.append(span)

    async def run(self) -> None:
        """Send until cancelled, and then once more."""
        async with grpc.aio.insecure_channel(self._address, options=_OPTIONS) as channel:
            call: Any = channel.unary_unary(_METHOD)
            try:
                while True:
                    await asyncio.sleep(EXPORT_EVERY_S)
                    await self._send(call, EXPORT_TIMEOUT_S)
            finally:
                await self._send(call, CLOSE_S)

    async def _send(self, call: Any, timeout_s: float) -> None:
        spans = list(self._waiting)
        if not spans:
            return
        self._waiting.clear()
        try:
            await call(encode_spans(spans).SerializeToString(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            if not self._failing:
                code = error.code().name
                _LOG.warning("spans are not taken by %s: %s", self._address, code)
            self._failing = True
            self._waiting = deque([*spans, *self._waiting], maxlen=WAITING_MAX)
            return
        self._failing = False


class OwnSpans(Tracing):
    """Makes the spans and sends them; needs a running loop.

    Args:
        address: HOST:PORT that takes OTLP/gRPC.
        node: Stable name of this node.
        tenant: Whose sidecar it is.
        version: Of the code.
        clock_ns: Unix nanoseconds.
    """

    def __init__(
        self, address: str, *, node: str, tenant: str, version: str, clock_ns: Callable[[], int]
    ) -> None:
        self._clock_ns = clock_ns
        self._said = {"turnout.node": node, "turnout.tenant": tenant}
        about = {
            "service.name": SERVICE_NAME,
            "service.version": version,
            "service.instance.id": node,
        }
        provider = TracerProvider(
            sampler=ALWAYS_ON, resource=Resource.create(about), shutdown_on_exit=False
        )
        export = _Export(address)
        provider.add_span_processor(export)
        self._tracer = provider.get_tracer("turnout.sidecar", version)
        self._task = asyncio.get_running_loop().create_task(export.run())
        self._open: dict[int, Span] = {}

    def received(self, version: int, traceparent: str) -> None:
        """Begin a span below the push's."""
        context = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
        if version in self._open:  # again after a new connection
            self._open.pop(version).end(self._clock_ns())
        self._open[version] = self._tracer.start_span(
            "apply",
            context=context,
            kind=SpanKind.CONSUMER,
            attributes={**self._said, "turnout.snapshot_version": version},
            start_time=self._clock_ns(),
        )
        while len(self._open) > OPEN_MAX:
            self._open.pop(min(self._open)).end(self._clock_ns())

    def applied(self, version: int, *, refusal: str = "") -> None:
        """End the snapshot's span, and those of older ones, which it has overtaken."""
        for number in [number for number in self._open if number <= version]:
            span = self._open.pop(number)
            if refusal and number == version:
                span.set_status(Status(StatusCode.ERROR, refusal))
            span.set_attribute("turnout.overtaken", number != version)
            span.end(self._clock_ns())

    async def close(self) -> None:
        """Send what was not sent yet, in at most about a second."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
