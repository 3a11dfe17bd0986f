"""The supervisor's own spans: from a snapshot's arrival to the workers' serving it.

Owns the OpenTelemetry SDK and its export, on a thread of its own. Imported only when there is a
backend: a sidecar without one stays as small as it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sidecar.tracing import Tracing

SERVICE_NAME: Final = "turnout-sidecar"
EXPORT_EVERY_MS: Final = 500
EXPORT_TIMEOUT_S: Final = 5
QUEUE_SPANS: Final = 1_024
CLOSE_S: Final = 1.0
# Snapshots that are being applied at the same time; only the newest matter.
OPEN_MAX: Final = 16


class OwnSpans(Tracing):
    """Makes the spans and sends them.

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
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=Resource.create(about), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=address, insecure=True, timeout=EXPORT_TIMEOUT_S)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter, max_queue_size=QUEUE_SPANS, schedule_delay_millis=EXPORT_EVERY_MS
            )
        )
        self._tracer = self._provider.get_tracer("turnout.sidecar", version)
        self._open: dict[int, Span] = {}

    def received(self, version: int, traceparent: str) -> None:
        """Begin a span below the push's."""
        context = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
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

    def close(self) -> None:
        """Send what was not sent yet, for at most a second: a backend may be gone."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(CLOSE_S)
