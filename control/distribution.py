"""Which snapshot each tenant's sidecars get, and what each of them has said about it.

Owns the current snapshot of every tenant (encoded once, the same bytes object for all streams), one
bounded outbox per stream, and the ACK state per sidecar. Refuses to build snapshots, to store
anything and to read a clock.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from turnout.v1alpha1 import common_pb2, config_service_pb2

# A node that is gone is remembered so that `turnout sidecars` can show it; beyond this many per
# tenant the one that was away longest is forgotten. ~1 KiB each.
SIDECARS_MAX: Final = 20_000
# A sidecar keeps unacknowledged batches itself and resends them, so that acknowledgements beyond
# this many in one stream's outbox can be dropped: the batch comes again and is acknowledged then.
ACKS_MAX: Final = 4096


@dataclass(slots=True)
class Published:
    """A tenant's current snapshot as it goes over the wire."""

    version: int
    nonce: str
    snapshot: bytes
    """The encoded Snapshot."""
    response: bytes
    """The encoded StreamResponse that holds it; shared by all streams."""


@dataclass(slots=True)
class SidecarState:
    """What is known of one node of a tenant."""

    tenant: str
    node: str
    instance_id: str
    code_version: str
    connect_ms: int
    last_seen_ms: int
    connected: bool = True
    sent_version: int = 0
    sent_nonce: str = ""
    sent_ms: int = 0
    acked_version: int = 0
    nack: list[config_service_pb2.FieldViolation] = field(default_factory=list)
    report: config_service_pb2.SidecarReport | None = None
    last_delta_ms: int = 0
    gates: dict[tuple[str, int], tuple[bool, tuple[str, ...]]] = field(default_factory=dict)
    """(experiment, epoch) -> start gate open, clusters waited for; the report's, made ready to ask:
    every look at every experiment asks every sidecar."""

    def reported(self, report: config_service_pb2.SidecarReport) -> None:
        """Take a new report."""
        self.report = report
        self.gates = {(g.experiment, g.epoch): (g.open, tuple(g.waiting_for)) for g in report.gates}


class Outbox:
    """What one stream still has to send: at most one snapshot, merged tombstones, bounded acks.

    A consumer that is slower than the changes gets the newest snapshot only. Tombstones go first: a
    sidecar that is still busy with a big snapshot has already learnt what must not serve.
    """

    def __init__(self) -> None:
        self._snapshot: Published | None = None
        self._tombstones: dict[str, common_pb2.Tombstone] = {}
        self._acks: deque[tuple[str, int]] = deque(maxlen=ACKS_MAX)
        self._wake = asyncio.Event()
        self._closed = False

    def put_snapshot(self, published: Published) -> None:
        """Queue a snapshot in place of one that was not yet sent."""
        self._snapshot = published
        self._wake.set()

    def put_tombstones(self, tombstones: Iterable[common_pb2.Tombstone]) -> None:
        """Queue tombstones; per experiment the highest epoch is kept."""
        for tombstone in tombstones:
            known = self._tombstones.get(tombstone.experiment)
            if known is None or known.epoch < tombstone.epoch:
                self._tombstones[tombstone.experiment] = tombstone
                self._wake.set()

    def put_ack(self, instance_id: str, seq: int) -> None:
        """Queue the acknowledgement of a stored batch."""
        self._acks.append((instance_id, seq))
        self._wake.set()

    def close(self) -> None:
        """End the stream when what is queued has been sent."""
        self._closed = True
        self._wake.set()

    async def take(self) -> tuple[bytes, Published | None] | None:
        """The next encoded StreamResponse, and the snapshot if it is one; None when closed."""
        while True:
            message = self._next()
            if message is not None:
                return message
            if self._closed:
                return None
            self._wake.clear()
            await self._wake.wait()

    def _next(self) -> tuple[bytes, Published | None] | None:
        if self._tombstones:
            response = config_service_pb2.StreamResponse()
            response.tombstones.tombstones.extend(self._tombstones.values())
            self._tombstones.clear()
            return response.SerializeToString(), None
        if self._snapshot is not None:
            published, self._snapshot = self._snapshot, None
            return published.response, published
        if self._acks:
            instance_id, seq = self._acks.popleft()
            response = config_service_pb2.StreamResponse()
            response.delta_ack.instance_id = instance_id
            response.delta_ack.seq = seq
            return response.SerializeToString(), None
        return None


class Distribution:
    """The current snapshot of every tenant and the streams that carry it."""

    def __init__(self) -> None:
        self._published: dict[str, Published] = {}
        self._keys: dict[str, bytes] = {}
        self._sidecars: dict[str, OrderedDict[str, SidecarState]] = {}
        self._streams: dict[str, dict[Outbox, SidecarState]] = {}
        # (tenant, node) -> its open streams, the oldest first; nearly always one.
        self._of_node: dict[tuple[str, str], list[SidecarState]] = {}

    # -- what is published ------------------------------------------------------------

    def set_key(self, tenant: str, key: bytes) -> None:
        """Set the tenant's key for unit hashes; it is sent beside every later snapshot."""
        self._keys[tenant] = key

    def publish(
        self, tenant: str, version: int, nonce: str, snapshot: bytes, *, traceparent: str = ""
    ) -> None:
        """Make a snapshot current and queue it on every stream of the tenant.

        Raises:
            ValueError: The version is not above the current one.
        """
        current = self._published.get(tenant)
        if current is not None and version <= current.version:
            raise ValueError(f"version == {version}, must be > {current.version}")
        response = config_service_pb2.StreamResponse()
        response.snapshot.version = version
        response.snapshot.nonce = nonce
        response.snapshot.snapshot = snapshot
        response.snapshot.tenant_key = self._keys[tenant]
        response.snapshot.traceparent = traceparent
        published = Published(version, nonce, snapshot, response.SerializeToString())
        self._published[tenant] = published
        for outbox in self._streams.get(tenant, ()):
            outbox.put_snapshot(published)

    def publish_tombstones(self, tenant: str, tombstones: Iterable[common_pb2.Tombstone]) -> None:
        """Queue tombstones on every stream of the tenant, before any snapshot."""
        queued = list(tombstones)
        for outbox in self._streams.get(tenant, ()):
            outbox.put_tombstones(queued)

    def current(self, tenant: str) -> Published | None:
        """The snapshot that is current, None before the first."""
        return self._published.get(tenant)

    # -- streams ------------------------------------------------------------

    def attach(
        self, hello: config_service_pb2.Hello, *, now_ms: int
    ) -> tuple[Outbox, SidecarState]:
        """Register a stream; the current snapshot is queued on it at once.

        A second stream of the same node replaces the first in what is shown: the supervisor has
        restarted or has reconnected before the old connection was seen to be dead.
        """
        state = SidecarState(
            tenant=hello.tenant,
            node=hello.node,
            instance_id=hello.instance_id,
            code_version=hello.code_version,
            connect_ms=now_ms,
            last_seen_ms=now_ms,
        )
        nodes = self._sidecars.setdefault(hello.tenant, OrderedDict())
        before = nodes.pop(hello.node, None)
        if before is not None and before.instance_id == hello.instance_id:
            state.report, state.gates = before.report, before.gates
            state.last_delta_ms = before.last_delta_ms
        nodes[hello.node] = state
        self._forget_oldest(nodes)
        outbox = Outbox()
        self._streams.setdefault(hello.tenant, {})[outbox] = state
        self._of_node.setdefault((hello.tenant, hello.node), []).append(state)
        published = self._published.get(hello.tenant)
        if published is not None:
            outbox.put_snapshot(published)
        return outbox, state

    def detach(self, outbox: Outbox, state: SidecarState, *, now_ms: int) -> None:
        """Forget a stream; the node stays known as disconnected."""
        self._streams.get(state.tenant, {}).pop(outbox, None)
        state.connected = False
        state.last_seen_ms = now_ms
        key = (state.tenant, state.node)
        others = [other for other in self._of_node.get(key, ()) if other is not state]
        if others:
            self._of_node[key] = others
        else:
            self._of_node.pop(key, None)
        nodes = self._sidecars.get(state.tenant, OrderedDict())
        if nodes.get(state.node) is state and others:
            # Another stream of the same node is still served: it is what is shown again.
            nodes[state.node] = others[-1]

    def sent(self, state: SidecarState, published: Published, *, now_ms: int) -> None:
        """Note that a snapshot went out on the node's stream."""
        state.sent_version = published.version
        state.sent_nonce = published.nonce
        state.sent_ms = now_ms

    def acknowledged(self, state: SidecarState, ack: config_service_pb2.SnapshotAck) -> bool:
        """Note an ACK or NACK; False when its nonce is not that of the last snapshot sent."""
        if ack.nonce != state.sent_nonce:
            return False
        state.nack = list(ack.violations)
        if not ack.violations:
            state.acked_version = ack.version
        return True

    def close(self) -> None:
        """End all streams."""
        for streams in self._streams.values():
            for outbox in streams:
                outbox.close()

    # -- what is shown ------------------------------------------------------------

    def sidecars(self, tenant: str) -> Iterator[SidecarState]:
        """The tenant's nodes, connected or not, in the order in which they came."""
        yield from self._sidecars.get(tenant, {}).values()

    def connected(self, tenant: str) -> list[SidecarState]:
        """The tenant's connected nodes."""
        return [state for state in self.sidecars(tenant) if state.connected]

    @property
    def streams(self) -> int:
        """Open streams of all tenants."""
        return sum(len(streams) for streams in self._streams.values())

    def _forget_oldest(self, nodes: OrderedDict[str, SidecarState]) -> None:
        if len(nodes) <= SIDECARS_MAX:
            return
        away = (node for node, state in nodes.items() if not state.connected)
        oldest = next(away, None)
        if oldest is not None:
            del nodes[oldest]
