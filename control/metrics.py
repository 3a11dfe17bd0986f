"""What the control plane tells Prometheus about itself.

Owns the registry, the RPC counters and a minimal HTTP listener for scrapes on the event loop (a
thread of its own would read the controller's state while it changes). Refuses to hold any state
that decisions are made on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final

import grpc
from prometheus_client import (
    CollectorRegistry,
    Counter,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from control.services.errors import checked_stream, lenient, refuse_malformed

PREFIX: Final = "turnout_control_"
REQUEST_BYTES_MAX: Final = 8 * 1024
REQUEST_TIMEOUT_S: Final = 5.0

Sample = tuple[str, str, str, Iterable[tuple[dict[str, str], float]]]
"""(type "gauge" or "counter", name without prefix, help, [(labels, value)])."""


class Metrics:
    """The registry; `samples` is read at each scrape, and `more` are registered."""

    def __init__(self, samples: Callable[[], Iterable[Sample]], *more: Collector) -> None:
        # No series for when each counter was made: the process's start says that once.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.registry.register(_Scrape(samples))
        for collector in (ProcessCollector(registry=None), *more):
            self.registry.register(collector)
        self.rpcs = Counter(
            PREFIX + "rpcs",
            "Unary calls of the API answered.",
            ("method", "code"),
            registry=self.registry,
        )

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Scrape(Collector):
    def __init__(self, samples: Callable[[], Iterable[Sample]]) -> None:
        self._samples = samples

    def describe(self) -> Iterable[Metric]:
        """Describe nothing, so that registering does not scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read all samples now."""
        for kind, name, text, values in self._samples():
            rows = list(values)
            labels = sorted({key for row, _ in rows for key in row})
            family: GaugeMetricFamily | CounterMetricFamily
            if kind == "counter":
                family = CounterMetricFamily(PREFIX + name, text, labels=labels)
            else:
                family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
            for row, value in rows:
                family.add_metric([row.get(label, "") for label in labels], value)
            yield family


class CountCalls(grpc.aio.ServerInterceptor):
    """Counts unary calls by method and status code. Methods we do not serve count as one."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a unary method."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            self._metrics.rpcs.labels("unknown", "UNIMPLEMENTED").inc()
            return handler
        raw = handler.request_deserializer is bytes
        if handler.request_streaming and (raw or not handler.response_streaming):
            return handler  # the config stream: refuses what it cannot read
        if handler.response_streaming:
            return checked_stream(handler)
        behaviour = handler.unary_unary
        assert behaviour is not None

        async def counted(request: Any, context: Any) -> Any:
            code = "OK"
            try:
                await refuse_malformed(request, context)
                return await behaviour(request, context)
            except BaseException:
                set_code = context.code()
                code = set_code.name if isinstance(set_code, grpc.StatusCode) else "UNKNOWN"
                raise
            finally:
                self._metrics.rpcs.labels(method, code).inc()

        return grpc.unary_unary_rpc_method_handler(
            counted,
            request_deserializer=lenient(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )


async def serve_metrics(metrics: Metrics, host: str, port: int) -> asyncio.Server:
    """Listen for scrapes: GET /metrics, one request per connection.

    Raises:
        OSError: The address cannot be used.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_response(head, metrics))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever it was did not want an answer
        finally:
            writer.close()

    return await asyncio.start_server(answer, host, port, limit=REQUEST_BYTES_MAX)


def _response(head: bytes, metrics: Metrics) -> bytes:
    line = head.split(b"\r\n", 1)[0].split(b" ")
    if len(line) != 3 or line[0] not in {b"GET", b"HEAD"}:
        return _http(b"405 Method Not Allowed", b"")
    if line[1].split(b"?", 1)[0] != b"/metrics":
        return _http(b"404 Not Found", b"")
    return _http(b"200 OK", metrics.exposition() if line[0] == b"GET" else b"")


def _http(status: bytes, body: bytes) -> bytes:
    head = (
        b"HTTP/1.1 " + status + b"\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8"
        b"\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
    )
    return head + body
