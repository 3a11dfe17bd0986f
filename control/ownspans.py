"""The control plane's own spans: decisions, what was published, who took it.

Owns their names, attributes and links, with opentelemetry-sdk; the forwarder takes them to the same
backend as everybody's. Refuses threads: spans are encoded on the loop, a few at a time.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
    use_span,
)

from control.rollout.decide import Decision
from control.tracing import Tracing
from turnout import contract

SERVICE_NAME: Final = "turnout-control"
FLUSH_S: Final = 0.5
FLUSH_SPANS: Final = 256
# Of one push; a thousand sidecars that acknowledge at once would cost the loop 50 ms. A refusal
# always has its span.
ACKS_TRACED_MAX: Final = 100
PUSHES_KEPT: Final = 256

Offer = Callable[[bytes, int], None]


class _Handover(SpanProcessor):
    """Collects ended spans for a moment and hands them over as one OTLP request."""

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self._ended: list[ReadableSpan] = []
        self._timer: asyncio.TimerHandle | None = None

    def on_end(self, span: ReadableSpan) -> None:
        """Keep the span for the next request."""
        self._ended.append(span)
        if len(self._ended) >= FLUSH_SPANS:
            self.force_flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.force_flush)

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """Hand over what there is; does not wait."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ended, self._ended = self._ended, []
        if ended:
            self._offer(encode_spans(ended).SerializeToString(), len(ended))
        return True


class _Push:
    """A push whose acknowledgements are awaited."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.acks = 0


class OwnSpans(Tracing):
    """Makes the spans.

    Args:
        offer: Takes an encoded ExportTraceServiceRequest and the number of spans in it.
        version: Of the code.
        clock_ns: Unix nanoseconds.
    """

    def __init__(self, offer: Offer, *, version: str, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._handover = _Handover(offer)
        resource = Resource.create({"service.name": SERVICE_NAME, "service.version": version})
        provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(self._handover)
        self._tracer: Tracer = provider.get_tracer("turnout.control", version)
        self._pushes: OrderedDict[tuple[str, int], _Push] = OrderedDict()

    def now_ns(self) -> int:
        """Unix nanoseconds."""
        return self._clock_ns()

    @contextmanager
    def decision(
        self, tenant: str, decision: Decision, *, assessed_ns: int, spans: Mapping[str, str]
    ) -> Iterator[None]:
        """A span from the look to the publication, with the look as its first child."""
        start_ns = min(decision.time_ms * 1_000_000, assessed_ns)
        links = [
            _link(trace, spans[trace]) for trace in decision.exemplar_trace_ids if trace in spans
        ]
        span = self._tracer.start_span(
            str(decision.action).lower(),
            attributes=_attributes(tenant, decision),
            links=links,
            start_time=start_ns,
        )
        look = self._tracer.start_span(
            "assess",
            context=set_span_in_context(span),
            attributes={
                "turnout.checks": [f"{c.metric}: {c.verdict}" for c in decision.checks],
                "turnout.lanes": len(decision.lanes),
            },
            start_time=start_ns,
        )
        look.end(assessed_ns)
        with use_span(span, end_on_exit=True):
            yield

    @contextmanager
    def push(self, tenant: str, version: int, size_bytes: int) -> Iterator[str]:
        """A span below the decision's, if one published it; sidecars go on below it."""
        span = self._tracer.start_span(
            "push",
            kind=SpanKind.PRODUCER,
            attributes={
                "turnout.tenant": tenant,
                "turnout.snapshot_version": version,
                "turnout.snapshot_bytes": size_bytes,
            },
        )
        self._pushes[tenant, version] = _Push(span)
        if len(self._pushes) > PUSHES_KEPT:
            self._pushes.popitem(last=False)
        context = span.get_span_context()
        with use_span(span, end_on_exit=True):
            yield f"00-{context.trace_id:032x}-{context.span_id:016x}-01"

    def acknowledged(
        self, tenant: str, node: str, version: int, *, sent_ms: int, now_ms: int, refusal: str
    ) -> None:
        """A span from the push to the answer, below the push's."""
        push = self._pushes.get((tenant, version))
        if push is None:
            return  # published by an earlier process, or long ago
        push.acks += 1
        if push.acks > ACKS_TRACED_MAX and not refusal:
            return
        span = self._tracer.start_span(
            "nack" if refusal else "ack",
            context=set_span_in_context(push.span),
            kind=SpanKind.CONSUMER,
            attributes={
                "turnout.tenant": tenant,
                "turnout.node": node,
                "turnout.snapshot_version": version,
            },
            start_time=sent_ms * 1_000_000,
        )
        if refusal:
            span.set_status(Status(StatusCode.ERROR, refusal))
        span.end(max(now_ms, sent_ms) * 1_000_000)

    def close(self) -> None:
        """Hand over what was not handed over yet."""
        self._handover.force_flush()


def _attributes(tenant: str, decision: Decision) -> dict[str, str | int | list[str]]:
    run = decision.after
    return {
        "turnout.tenant": tenant,
        contract.ATTRIBUTE_EXPERIMENT: run.experiment,
        contract.ATTRIBUTE_FLAG_KEY: run.experiment,
        contract.ATTRIBUTE_EPOCH: str(decision.before.epoch or run.epoch),
        contract.ATTRIBUTE_STEP: str(run.step),
        "turnout.action": str(decision.action),
        "turnout.actor": decision.actor,
        "turnout.reason": str(decision.reason),
        "turnout.sentence": decision.sentence,
        "turnout.exemplar_trace_ids": list(decision.exemplar_trace_ids),
    }


def _link(trace_id: str, span_id: str) -> Link:
    """To a request that shows why."""
    context = SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(1)
    )
    return Link(context, {"turnout.exemplar": True})
