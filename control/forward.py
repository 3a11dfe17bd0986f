"""Passes received spans on, byte for byte, to a tracing backend that speaks OTLP/gRPC.

Owns a bounded queue and its retries: the newest spans are kept, what does not fit is dropped and
counted. Refuses to wait (who sent the spans has its answer already), to look into them, and to keep
them over a restart: a trace is worth less than the request it tells of.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from turnout import contract

METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
# Marks what we pass on, so that control planes that forward to each other do not do so for ever.
FORWARDED_KEY: Final = "x-turnout-forwarded"

_OPTIONS: Final = (
    ("grpc.max_send_message_length", 2 * contract.GRPC_MESSAGE_BYTES_MAX),
    # gRPC's own pause between attempts to connect grows to two minutes: a backend that is back
    # would stay unused for that long.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 60_000),
    # A proxy from the environment is no part of what the operator named.
    ("grpc.enable_http_proxy", 0),
)
# What OTLP calls retryable; RESOURCE_EXHAUSTED is only with a RetryInfo.
_RETRYABLE: Final = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What forwarding may cost.

    Attributes:
        queue_bytes: Of requests that wait or are being sent.
        queue_requests: Their number.
        senders: Requests that are sent at the same time; a slow backend gets no more.
        timeout_s: Of one attempt.
        backoff_base_s: Ceiling of the first pause; it doubles up to
        backoff_cap_s: this one. The pause is drawn from [0, ceiling).
        retry_info_max_s: The longest pause that a backend may ask for.
        drain_s: How long `close` goes on sending.
    """

    queue_bytes: int = 32 * 1024 * 1024
    queue_requests: int = 20_000
    senders: int = 4
    timeout_s: float = 10.0
    backoff_base_s: float = 0.5
    backoff_cap_s: float = 5.0
    retry_info_max_s: float = 60.0
    drain_s: float = 1.0


class _Item(NamedTuple):
    request: bytes
    spans: int


class _Failure(NamedTuple):
    """Why a request was not taken; `retry_s` None = it never will be."""

    code: str
    message: str
    retry_s: float | None


class Forwarder:
    """Sends to one backend.

    Args:
        address: HOST:PORT of the backend (plain text).
        jitter: A number in [0, 1) for the backoff.
        limits: See there.

    Attributes:
        forwarded: Spans that the backend took.
        dropped: Spans that were given up, by reason: "full" (the queue had no room), "refused" (the
            backend will never take them), "partial" (it took the rest of the request), "stopped".
        failed_attempts: Attempts that failed, by gRPC status code.
    """

    def __init__(
        self, address: str, *, jitter: Callable[[], float], limits: Limits | None = None
    ) -> None:
        self.address = address
        self._jitter = jitter
        self._limits = limits or Limits()
        self._queue: deque[_Item] = deque()
        self._sending = 0
        self._came = asyncio.Event()
        self._sent = asyncio.Event()  # nothing waits
        self._sent.set()
        self._tasks: list[asyncio.Task[None]] = []
        self._channel: grpc.aio.Channel | None = None
        self._down = False
        self.queued_bytes = 0
        self.forwarded = 0
        self.dropped: dict[str, int] = {}
        self.failed_attempts: dict[str, int] = {}

    @property
    def queued(self) -> int:
        """Requests that wait or are being sent."""
        return len(self._queue) + self._sending

    def start(self) -> None:
        """Begin to send; needs a running loop. The backend need not be there."""
        self._channel = grpc.aio.insecure_channel(self.address, options=_OPTIONS)
        # No serialisers: what came in goes out.
        call: Any = self._channel.unary_unary(METHOD)
        self._tasks = [
            asyncio.create_task(self._send_for_ever(call), name=f"forward-{i}")
            for i in range(self._limits.senders)
        ]

    async def close(self) -> None:
        """Send for a moment what waits, then stop; the rest is dropped."""
        if not self._down:
            with contextlib.suppress(TimeoutError):
                # Not wait_for: Python 3.11's loses a cancellation that comes with the event.
                async with asyncio.timeout(self._limits.drain_s):
                    await self._sent.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        while self._queue:
            self._give_up(self._queue.popleft(), "stopped")
        if self._channel is not None:
            await self._channel.close()

    def offer(self, request: bytes, spans: int) -> None:
        """Queue a request with so many spans; never waits. The oldest make room for the newest."""
        limits = self._limits
        while self._queue and (
            self.queued >= limits.queue_requests
            or self.queued_bytes + len(request) > limits.queue_bytes
        ):
            self._give_up(self._queue.popleft(), "full")
        item = _Item(request, spans)
        self.queued_bytes += len(request)
        if self.queued >= limits.queue_requests or self.queued_bytes > limits.queue_bytes:
            self._give_up(item, "full")  # what is being sent fills it alone
            return
        self._queue.append(item)
        self._came.set()
        self._sent.clear()

    def _give_up(self, item: _Item, reason: str) -> None:
        self.queued_bytes -= len(item.request)
        self._count_dropped(reason, item.spans)

    def _count_dropped(self, reason: str, spans: int) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + spans

    # -- Sending -----------------------------------------------------------------------------------

    async def _send_for_ever(self, call: Callable[..., Awaitable[bytes]]) -> None:
        while True:
            while not self._queue:
                self._came.clear()
                await self._came.wait()
            item = self._queue.popleft()
            self._sending += 1
            reason = "stopped"
            try:
                reason = await self._send(call, item)
            finally:
                self._sending -= 1
                if not self.queued:
                    self._sent.set()
                if reason:
                    self._give_up(item, reason)
                else:
                    self.queued_bytes -= len(item.request)

    async def _send(self, call: Callable[..., Awaitable[bytes]], item: _Item) -> str:
        """Send until it is taken ("") or never will be (the reason)."""
        attempt = 0
        while True:
            failure = await self._attempt(call, item)
            if failure is None:
                self._say_up()
                return ""
            self.failed_attempts[failure.code] = self.failed_attempts.get(failure.code, 0) + 1
            self._say_down(failure)
            if failure.retry_s is None:
                return "refused"
            limits = self._limits
            ceiling = min(limits.backoff_cap_s, limits.backoff_base_s * 2 ** min(attempt, 16))
            await asyncio.sleep(failure.retry_s + ceiling * self._jitter())
            attempt += 1

    async def _attempt(self, call: Callable[..., Awaitable[bytes]], item: _Item) -> _Failure | None:
        metadata = ((FORWARDED_KEY, "1"),)
        try:
            answer = await call(item.request, timeout=self._limits.timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return _failure(error, self._limits.retry_info_max_s)
        rejected = _rejected(answer, item.spans)
        if rejected:
            self._count_dropped("partial", rejected)
        self.forwarded += item.spans - rejected
        return None

    def _say_down(self, failure: _Failure) -> None:
        if not self._down:
            _log.warning(
                "spans are not taken by %s: %s %s; requests and rollouts go on without it, the "
                "newest spans wait in memory",
                self.address,
                failure.code,
                failure.message[:200],
            )
        self._down = True

    def _say_up(self) -> None:
        if self._down:
            _log.info("spans are taken by %s again", self.address)
        self._down = False


def _failure(error: grpc.aio.AioRpcError, retry_info_max_s: float) -> _Failure:
    code = error.code()
    asked_s = _retry_delay_s(error)
    retryable = code in _RETRYABLE or (
        code is grpc.StatusCode.RESOURCE_EXHAUSTED and asked_s is not None
    )
    retry_s = min(asked_s or 0.0, retry_info_max_s) if retryable else None
    return _Failure(code.name, error.details() or "", retry_s)


def _retry_delay_s(error: grpc.aio.AioRpcError) -> float | None:
    """The pause that the backend asks for (RetryInfo), None when it does not."""
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        info = error_details_pb2.RetryInfo()
        try:
            status = status_pb2.Status.FromString(value)
            if any(detail.Unpack(info) for detail in status.details):
                return max(0.0, float(info.retry_delay.ToNanoseconds() / 1e9))
        except DecodeError:
            return None  # details that nobody can read ask for nothing
    return None


def _rejected(answer: bytes, spans: int) -> int:
    """Spans of a taken request that the backend left out."""
    try:
        rejected = ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans
    except DecodeError:
        return 0
    return min(max(rejected, 0), spans)
