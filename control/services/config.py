"""ConfigService: the stream between a sidecar's supervisor and the control plane.

Owns the stream's life: Hello first, then snapshots out, acknowledgements and deltas in. Works on
raw bytes, so that one encoded snapshot serves all streams. Refuses to decide what is published and
to merge deltas.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2
from prometheus_client import Histogram

from control.distribution import Distribution, Outbox, SidecarState
from control.refusals import Fault, Refused, exhausted, invalid, shorten
from control.rollout.controller import Controller
from control.rollout.tenant import Tenant, tombstone_message
from control.rollout.tenants import Tenants
from control.services.errors import Context, abort
from control.services.requests import LABEL, LABEL_RULE
from control.tracing import OFF, Tracing
from turnout import contract
from turnout.v1alpha1.config_service_pb2 import Hello, StreamRequest

SERVICE: Final = "turnout.v1alpha1.ConfigService"
HELLO_TIMEOUT_S: Final = 10.0
STREAMS_MAX: Final = 20_000
NODE_BYTES_MAX: Final = 253
INSTANCE_BYTES_MAX: Final = 128
VIOLATIONS_LOGGED: Final = 5
ACK_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

_log = logging.getLogger(__name__)


class ConfigService:
    """`turnout.v1alpha1.ConfigService`.

    Attributes:
        deltas: Batches taken, duplicates included.
        nacks: Snapshots refused by a sidecar.
        ack_seconds: From push to ACK or NACK.
    """

    def __init__(
        self,
        controller: Controller,
        tenants: Tenants,
        distribution: Distribution,
        tracing: Tracing = OFF,
    ) -> None:
        self._controller = controller
        self._tenants = tenants
        self._distribution = distribution
        self._tracing = tracing
        self.deltas = 0
        self.nacks = 0
        self.ack_seconds = Histogram(
            "turnout_control_snapshot_ack_seconds",
            "From a snapshot's push to its ACK or NACK.",
            buckets=ACK_BUCKETS_S,
            registry=None,
        )

    def handler(self) -> grpc.GenericRpcHandler:
        """The method, for `add_generic_rpc_handlers`."""
        stream = grpc.stream_stream_rpc_method_handler(
            self.stream, request_deserializer=bytes, response_serializer=bytes
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"Stream": stream})

    async def stream(
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        """Serve one sidecar until it or we go away."""
        try:
            async for response in self._serve(requests):
                yield response
        except Refused as refused:
            await abort(context, refused)

    async def _serve(self, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        hello = await self._hello(requests)
        tenant = await self._tenants.get_or_create(hello.tenant)
        # What it knows goes first: a snapshot that revives what was rolled back must never be sent.
        self._controller.meet(tenant, hello)
        now_ms = self._controller.clock_ms()
        outbox, state = self._distribution.attach(hello, now_ms=now_ms)
        if self._distribution.current(tenant.name) is None:
            outbox.put_tombstones(tombstone_message(t) for t in tenant.tombstones.values())
        reader = asyncio.create_task(self._read(requests, tenant, outbox, state))
        try:
            while (message := await outbox.take()) is not None:
                response, published = message
                if published is not None:
                    now_ms = self._controller.clock_ms()
                    self._distribution.sent(state, published, now_ms=now_ms)
                yield response
            if reader.done():
                reader.result()
        finally:
            reader.cancel()
            self._distribution.detach(outbox, state, now_ms=self._controller.clock_ms())
            self._controller.wake()

    async def _hello(self, requests: AsyncIterator[bytes]) -> Hello:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                first = _parsed(await anext(requests))
        except (TimeoutError, StopAsyncIteration) as error:
            message = f"no Hello within {HELLO_TIMEOUT_S:g} s"
            raise Refused(code_pb2.DEADLINE_EXCEEDED, message, reason="NO_HELLO") from error
        if first.WhichOneof("message") != "hello":
            raise invalid([Fault("message", "", "the first message must be hello")])
        _check_hello(first.hello)
        if self._distribution.streams >= STREAMS_MAX:
            raise exhausted("TOO_MANY_STREAMS", f"at most {STREAMS_MAX} sidecars")
        return first.hello

    async def _read(
        self,
        requests: AsyncIterator[bytes],
        tenant: Tenant,
        outbox: Outbox,
        state: SidecarState,
    ) -> None:
        try:
            async for raw in requests:
                await self._take(_parsed(raw), tenant, outbox, state)
        finally:
            outbox.close()

    async def _take(
        self, request: StreamRequest, tenant: Tenant, outbox: Outbox, state: SidecarState
    ) -> None:
        state.last_seen_ms = self._controller.clock_ms()
        kind = request.WhichOneof("message")
        if kind == "deltas":
            self.deltas += 1
            batch = request.deltas
            state.last_delta_ms = state.last_seen_ms
            if await self._tenants.take_delta(tenant, batch):
                outbox.put_ack(batch.instance_id, batch.seq)
        elif kind == "report":
            state.reported(request.report)
            self._controller.wake()
        elif kind == "ack":
            known = self._distribution.acknowledged(state, request.ack)
            if known:
                self.ack_seconds.observe((state.last_seen_ms - state.sent_ms) / 1000)
            refused = "; ".join(f"{v.field}: {v.rule}" for v in request.ack.violations[:1])
            if known:
                self._tracing.acknowledged(
                    tenant.name,
                    state.node,
                    request.ack.version,
                    sent_ms=state.sent_ms,
                    now_ms=state.last_seen_ms,
                    refusal=shorten(refused),
                )
            if known and request.ack.violations:
                self.nacks += 1
                shown = "; ".join(
                    f"{shorten(v.field)}: {shorten(v.rule)}"
                    for v in request.ack.violations[:VIOLATIONS_LOGGED]
                )
                extra = {"tenant": state.tenant, "node": state.node, "version": request.ack.version}
                _log.error("a sidecar refuses its snapshot: %s", shown, extra=extra)
        elif kind == "tombstones":
            source = f"sidecar {shorten(state.node)}"
            self._controller.learn(tenant, request.tombstones.tombstones, source=source)
        else:
            raise invalid([Fault("message", kind or "none", "must be ack, deltas or report")])


def _parsed(raw: bytes) -> StreamRequest:
    try:
        return StreamRequest.FromString(raw)
    except DecodeError as error:
        raise invalid([Fault("message", "", "must be a StreamRequest")]) from error


def _check_hello(hello: Hello) -> None:
    faults = []
    if not LABEL.fullmatch(hello.tenant):
        faults.append(Fault("hello.tenant", shorten(hello.tenant), LABEL_RULE))
    if not 0 < len(hello.node.encode()) <= NODE_BYTES_MAX or not hello.node.isprintable():
        rule = f"must be 1..{NODE_BYTES_MAX} printable bytes"
        faults.append(Fault("hello.node", shorten(hello.node), rule))
    if not 0 < len(hello.instance_id) <= INSTANCE_BYTES_MAX:
        rule = f"must have 1..{INSTANCE_BYTES_MAX} characters"
        faults.append(Fault("hello.instanceId", shorten(hello.instance_id), rule))
    if hello.snapshot_format < contract.SNAPSHOT_FORMAT:
        rule = f"must understand format {contract.SNAPSHOT_FORMAT}"
        faults.append(Fault("hello.snapshotFormat", str(hello.snapshot_format), rule))
    if faults:
        raise invalid(faults)
