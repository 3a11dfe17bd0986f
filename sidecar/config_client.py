"""The stream to the control plane.

Owns the gRPC call: connect, send what is queued, hand over what arrives, connect again after the
pause that `subscription` says. Refuses to interpret a message. Nothing that serves requests waits
for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from sidecar.clock import monotonic_ms
from sidecar.subscription import Backoff, Effect, Subscription
from sidecar.tracing import OFF, Tracing
from turnout.contract import GRPC_MESSAGE_BYTES_MAX, SNAPSHOT_BYTES_MAX
from turnout.v1alpha1.config_service_pb2 import DeltaBatch, SidecarReport, StreamRequest
from turnout.v1alpha1.config_service_pb2_grpc import ConfigServiceStub

_LOG = logging.getLogger(__name__)

# Said again this often even when nothing changed.
REPORT_S: Final = 2.0
# A batch that was not acknowledged within this time is sent again on the same stream.
RESEND_S: Final = 10.0
# Unread messages that we hold for a control plane that does not read; beyond, the stream is given
# up.
_QUEUE_MAX: Final = 4_096
_KEEPALIVE_MS: Final = 30_000
_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A snapshot of the largest size, with its envelope.
    ("grpc.max_receive_message_length", SNAPSHOT_BYTES_MAX + GRPC_MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", GRPC_MESSAGE_BYTES_MAX),
    # The pause between attempts is ours (full jitter); grpc's own must not add to it.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


class Peer(Protocol):
    """What the stream asks of the supervisor."""

    def perform(self, effects: list[Effect]) -> None:
        """Carry out effects, in order."""
        ...

    def pending(self) -> list[DeltaBatch]:
        """Batches that were not acknowledged, oldest first."""
        ...

    def rejected(self, batch: DeltaBatch, why: str) -> None:
        """The control plane will never take this batch."""
        ...

    def report(self) -> SidecarReport:
        """The sidecar's state now."""
        ...


class ConfigClient:
    """Keeps one stream open to the control plane."""

    def __init__(
        self, address: str, subscription: Subscription, peer: Peer, tracing: Tracing = OFF
    ) -> None:
        """Nothing is opened before `run`."""
        self._tracing = tracing
        self._address = address
        self._subscription = subscription
        self._peer = peer
        self._outgoing: asyncio.Queue[StreamRequest] | None = None
        self._call: Any = None
        self._reported = SidecarReport()
        # (instance, seq) -> when it was last sent on this stream.
        self._sent_ms: dict[tuple[str, int], int] = {}
        self.connects = 0
        self.last_error = ""

    @property
    def connected(self) -> bool:
        """Whether there is a stream to send on."""
        return self._outgoing is not None

    def send(self, message: StreamRequest) -> None:
        """Queue a message; dropped when there is no stream (Hello and resends make up for it)."""
        if message.HasField("ack"):
            refusal = "; ".join(f"{v.field}: {v.rule}" for v in message.ack.violations)
            self._tracing.applied(message.ack.version, refusal=refusal)
        if self._outgoing is None:
            return
        try:
            self._outgoing.put_nowait(message)
        except asyncio.QueueFull:
            # The control plane does not read: end this stream, and begin again with what is
            # pending.
            self._outgoing = None
            self._call.cancel()

    def send_pending(self) -> None:
        """Send batches that this stream has not carried, or not got acknowledged for long."""
        if self._outgoing is None:
            return
        now = monotonic_ms()
        batches = self._peer.pending()
        kept = {(batch.instance_id, batch.seq) for batch in batches}
        self._sent_ms = {key: sent for key, sent in self._sent_ms.items() if key in kept}
        for batch in batches:
            key = (batch.instance_id, batch.seq)
            sent = self._sent_ms.get(key)
            if sent is None or now - sent >= RESEND_S * 1000:
                self._sent_ms[key] = now
                self.send(StreamRequest(deltas=batch))

    def send_report(self, *, always: bool = False) -> None:
        """Send the report if it changed, or `always`."""
        if self._outgoing is None:
            return
        report = self._peer.report()
        if always or report != self._reported:
            self._reported = report
            self.send(StreamRequest(report=report))

    async def run(self) -> None:
        """Connect, again and again, until cancelled."""
        async with grpc.aio.insecure_channel(self._address, options=_OPTIONS) as channel:
            stub: Any = ConfigServiceStub(channel)
            while True:
                try:
                    await self._stream(stub)
                except grpc.aio.AioRpcError as error:
                    self.last_error = f"{error.code().name}: {error.details()}"
                    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                        self._give_up(error.details() or "")
                finally:
                    self._outgoing = None
                _LOG.warning(
                    "no control plane at %s: %s; what is served is served on; is --control right?",
                    self._address,
                    self.last_error,
                )
                await asyncio.sleep(self._disconnected())

    def _disconnected(self) -> float:
        # Chance is drawn here, at the edge, so that the state machine replays.
        jitter = random.uniform(0.0, 1.0)  # noqa: S311 - spreads reconnects, guards no secret
        effects = self._subscription.disconnected(monotonic_ms(), jitter=jitter)
        self._peer.perform([effect for effect in effects if not isinstance(effect, Backoff)])
        return sum(effect.delay_s for effect in effects if isinstance(effect, Backoff))

    async def _stream(self, stub: Any) -> None:
        queue: asyncio.Queue[StreamRequest] = asyncio.Queue(_QUEUE_MAX)
        call = self._call = stub.Stream()
        writing: list[asyncio.Task[None]] = []
        try:
            await call.wait_for_connection()
            self._outgoing = queue
            self._sent_ms.clear()
            self.connects += 1
            _LOG.info("connected to the control plane at %s", self._address)
            self.last_error = ""
            self._peer.perform(self._subscription.connected(monotonic_ms()))
            self.send_report(always=True)
            self.send_pending()
            writing.append(asyncio.create_task(self._keep_writing(call, queue)))
            writing.append(asyncio.create_task(self._keep_reporting()))
            while (response := await call.read()) is not grpc.aio.EOF:
                if response.HasField("snapshot"):
                    pushed = response.snapshot
                    self._tracing.received(pushed.version, pushed.traceparent)
                self._peer.perform(self._subscription.received(response, monotonic_ms()))
            status = await call.code()
            self.last_error = f"the stream ended: {status.name} {await call.details() or ''}"
        finally:
            call.cancel()
            for task in writing:
                task.cancel()
            await asyncio.gather(*writing, return_exceptions=True)

    def _give_up(self, details: str) -> None:
        """Let go of the batch that was refused: sent again, it would end every stream to come."""
        for batch in self._peer.pending():
            if f"deltas[{batch.instance_id}/{batch.seq}]" in details:
                self._peer.rejected(batch, details)
                return

    async def _keep_writing(self, call: Any, queue: asyncio.Queue[StreamRequest]) -> None:
        """Write what is queued until the stream breaks; the reader says why it broke."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await call.write(await queue.get())

    async def _keep_reporting(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            self.send_report(always=True)
