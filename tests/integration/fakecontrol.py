"""A control plane that says what a test wants, and keeps what a sidecar says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import grpc.aio

from tests.integration.waiting import LOOPBACK, wait_for
from turnout.v1alpha1 import config_service_pb2 as config
from turnout.v1alpha1.common_pb2 import Tombstone
from turnout.v1alpha1.config_service_pb2_grpc import (
    ConfigServiceServicer,
    add_ConfigServiceServicer_to_server,
)
from turnout.v1alpha1.snapshot_pb2 import Snapshot

TENANT_KEY = bytes(range(32))


class CountKey(NamedTuple):
    """What counts are summed over: all time buckets and strata."""

    experiment: str
    epoch: int
    variant: str
    role: int


class FakeControl(ConfigServiceServicer):
    """ConfigService for any number of sidecars; pushes one snapshot to all.

    Attributes:
        acks: All SnapshotAcks, oldest first.
        batches: (instance, seq) -> DeltaBatch; a repeated one is counted in `repeats` and dropped.
        hellos: All Hellos.
        reports: All SidecarReports.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.acks: list[config.SnapshotAck] = []
        self.batches: dict[tuple[str, int], config.DeltaBatch] = {}
        self.repeats = 0
        # False: batches are kept and not acknowledged.
        self.acknowledge = True
        # Whether a batch is refused, as one that contradicts itself; it ends the stream.
        self.refuses: Callable[[config.DeltaBatch], bool] = lambda _: False
        self.refused: list[tuple[str, int]] = []
        self.hellos: list[config.Hello] = []
        self.reports: list[config.SidecarReport] = []
        self._server: grpc.aio.Server | None = None
        self._streams: set[asyncio.Queue[config.StreamResponse]] = set()
        self._current: config.SnapshotPush | None = None
        self._pushes = 0

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{LOOPBACK}:{self.port}"

    async def start(self) -> None:
        """Listen."""
        self._server = grpc.aio.server()
        add_ConfigServiceServicer_to_server(self, self._server)
        assert self._server.add_insecure_port(self.address) == self.port
        await self._server.start()

    async def stop(self) -> None:
        """Die: break all streams."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)

    def push(self, snapshot: Snapshot) -> None:
        """Send a snapshot to every sidecar, now and at its next Hello."""
        self.push_bytes(snapshot.version, snapshot.SerializeToString(deterministic=True))

    def push_bytes(self, version: int, data: bytes) -> None:
        """Send bytes that may not be a snapshot at all."""
        self._pushes += 1
        self._current = config.SnapshotPush(
            version=version, nonce=f"n{self._pushes}", snapshot=data, tenant_key=TENANT_KEY
        )
        self._tell(config.StreamResponse(snapshot=self._current))

    def bury(self, tombstone: Tombstone) -> None:
        """Send a tombstone to every connected sidecar."""
        self._tell(config.StreamResponse(tombstones=config.TombstoneSet(tombstones=[tombstone])))

    async def acked(self, version: int) -> config.SnapshotAck:
        """The first answer to a snapshot, ACK or NACK."""
        return await wait_for(
            lambda: next((ack for ack in self.acks if ack.version == version), None),
            f"an answer to snapshot {version}",
        )

    async def serving(self, snapshot: Snapshot) -> None:
        """Wait until a sidecar has applied a snapshot and opened the gates of its experiments."""
        ack = await self.acked(snapshot.version)
        assert not ack.violations, ack
        for experiment in snapshot.experiments:
            await self.gate(experiment.name, experiment.epoch)

    async def gate(self, experiment: str, epoch: int, *, is_open: bool = True) -> None:
        """Wait until the newest report says that an experiment's gate is open (or closed)."""

        def reported() -> bool:
            gates = self.reports[-1].gates if self.reports else []
            return any(
                (gate.experiment, gate.epoch, gate.open) == (experiment, epoch, is_open)
                for gate in gates
            )

        await wait_for(reported, f"gate of {experiment} epoch {epoch} open: {is_open}")

    def total(self, field: str) -> Counter[CountKey]:
        """Sum of one field of all CountDeltas, e.g. "requests" or "decided"."""
        sums: Counter[CountKey] = Counter()
        for batch in self.batches.values():
            for delta in batch.counts:
                key = CountKey(delta.experiment, delta.epoch, delta.variant, delta.role)
                sums[key] += getattr(delta, field)
        return +sums

    def unstamped(self) -> Counter[str]:
        """Requests without an answer of the sidecar, by reason: Envoy as a whole."""
        sums: Counter[str] = Counter()
        for batch in self.batches.values():
            for target in batch.targets:
                if not target.target:
                    sums.update(dict(target.unstamped))
        return +sums

    def target_total(self, field: str) -> int:
        """Sum of one field of all TargetDeltas, e.g. "no_unit"."""
        return sum(
            getattr(target, field) for batch in self.batches.values() for target in batch.targets
        )

    async def Stream(  # noqa: N802 - gRPC's name
        self,
        request_iterator: AsyncIterator[config.StreamRequest],
        context: grpc.aio.ServicerContext[config.StreamRequest, config.StreamResponse],
    ) -> AsyncIterator[config.StreamResponse]:
        """One sidecar."""
        outbox: asyncio.Queue[config.StreamResponse] = asyncio.Queue(1_000)
        reader = asyncio.create_task(self._read(request_iterator, outbox))
        self._streams.add(outbox)
        try:
            while True:
                response = await outbox.get()
                if not response.WhichOneof("message"):
                    instance, seq = self.refused[-1]
                    details = f"deltas[{instance}/{seq}].counts[0].errors: must be <= requests"
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, details)
                yield response
        finally:
            self._streams.discard(outbox)
            reader.cancel()

    async def _read(
        self,
        requests: AsyncIterator[config.StreamRequest],
        outbox: asyncio.Queue[config.StreamResponse],
    ) -> None:
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "hello":
                self.hellos.append(request.hello)
                if self._current is not None:
                    outbox.put_nowait(config.StreamResponse(snapshot=self._current))
            elif kind == "ack":
                self.acks.append(request.ack)
            elif kind == "report":
                self.reports.append(request.report)
            elif kind == "deltas" and self.refuses(request.deltas):
                self.refused.append((request.deltas.instance_id, request.deltas.seq))
                outbox.put_nowait(config.StreamResponse())
                return
            elif kind == "deltas":
                self._keep(request.deltas)
                if not self.acknowledge:
                    continue
                ack = config.DeltaAck(
                    instance_id=request.deltas.instance_id, seq=request.deltas.seq
                )
                outbox.put_nowait(config.StreamResponse(delta_ack=ack))

    def _keep(self, batch: config.DeltaBatch) -> None:
        key = (batch.instance_id, batch.seq)
        if key in self.batches:
            self.repeats += 1
        else:
            self.batches[key] = batch

    def _tell(self, message: config.StreamResponse) -> None:
        for outbox in self._streams:
            outbox.put_nowait(message)
