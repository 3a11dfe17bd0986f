"""The sidecar's end of the config stream, as a state machine without a stream.

Owns what is said to the control plane and when, which snapshot is served, and every tombstone ever
heard of. Refuses invalid snapshots whole (NACK; the plan that served before serves on) and forgets
no tombstone. The clock and chance are arguments; what must happen is returned as effects, to be
carried out in the order given. Nothing waits for a disk: a rollback must work when it is full.

A snapshot is acknowledged when the caller says that the workers serve it, not before.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from sidecar.plan import decode_snapshot
from sidecar.snapshotcheck import InvalidSnapshot, Violation, validate
from turnout.contract import SNAPSHOT_FORMAT, TENANT_KEY_BYTES
from turnout.v1alpha1.common_pb2 import Tombstone
from turnout.v1alpha1.config_service_pb2 import (
    FieldViolation,
    Hello,
    SnapshotAck,
    SnapshotPush,
    StreamRequest,
    StreamResponse,
    TombstoneSet,
)
from turnout.v1alpha1.snapshot_pb2 import Snapshot

BACKOFF_BASE_S: Final = 0.5
BACKOFF_CAP_S: Final = 30.0
STALE_AFTER_MS: Final = 300_000  # without the control plane; what is served does not change
# A NACK names this many violations; a snapshot that is all wrong need not be listed whole.
VIOLATIONS_MAX: Final = 100
ORDERS_MAX: Final = 8  # unconfirmed at a time; workers pass over all but the newest anyway
_EXPONENT_MAX: Final = 16  # 0.5 s * 2^16 is far above the cap


class ConfigState(StrEnum):
    """How far what is served can be trusted to be what the control plane wants."""

    NO_SNAPSHOT = "NO_SNAPSHOT"
    CURRENT = "CURRENT"
    CACHED = "CACHED"  # the control plane is away
    STALE = "STALE"  # it has been away for STALE_AFTER_MS, or sent what was refused


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this sidecar is; the fields of Hello that never change."""

    node: str
    instance_id: str
    tenant: str
    code_version: str


@dataclass(frozen=True, slots=True)
class Send:
    """Say this on the stream; dropped when there is none."""

    message: StreamRequest


@dataclass(frozen=True, slots=True)
class Apply:
    """Serve this snapshot, without experiments whose epoch is dead; then call `applied`.

    Attributes:
        payload: The encoded snapshot.
        snapshot: The same, decoded and valid.
        tenant_key: Key of the unit hashes.
        dead: Experiment -> highest tombstoned epoch.
        order: Number to hand to `applied` or `failed`; rises.
    """

    payload: bytes
    snapshot: Snapshot
    tenant_key: bytes
    dead: Mapping[str, int]
    order: int


@dataclass(frozen=True, slots=True)
class Persist:
    """Keep the snapshot and the key on disk; it serves already, so a failure is only reported."""

    payload: bytes
    tenant_key: bytes


@dataclass(frozen=True, slots=True)
class PersistTombstones:
    """Keep the whole set on disk; it is in force already, so a failure is only reported."""

    tombstones: TombstoneSet


@dataclass(frozen=True, slots=True)
class Acked:
    """The control plane has this batch on its disk.

    Attributes:
        instance_id: Under which the batch was made: ours, or an earlier supervisor's.
        seq: Its number.
    """

    instance_id: str
    seq: int


@dataclass(frozen=True, slots=True)
class Backoff:
    """Connect again after this long."""

    delay_s: float


Effect = Send | Apply | Persist | PersistTombstones | Acked | Backoff
Judge = Callable[[bytes], Snapshot]


def judge_snapshot(payload: bytes) -> Snapshot:
    """Decode a snapshot and hold it against every rule.

    Raises:
        InvalidSnapshot: With every violation.
    """
    snapshot = decode_snapshot(payload)
    if violations := validate(snapshot):
        raise InvalidSnapshot(violations)
    return snapshot


@dataclass(frozen=True, slots=True)
class _Offer:
    """A snapshot that serves, or is about to; `nonce` until its push has been answered, then ""."""

    payload: bytes
    snapshot: Snapshot
    tenant_key: bytes
    nonce: str

    def is_(self, push: SnapshotPush) -> bool:
        """Whether a push brings these very bytes again."""
        return self.payload == push.snapshot and self.tenant_key == push.tenant_key


class Subscription:
    """One sidecar's subscription; lives as long as its supervisor, over many streams."""

    def __init__(self, identity: Identity, *, judge: Judge = judge_snapshot) -> None:
        """Nothing served, not connected.

        Args:
            identity: Said in every Hello.
            judge: Decodes and checks a snapshot; raises InvalidSnapshot.
        """
        self._identity = identity
        self._judge = judge
        self._served: _Offer | None = None
        # By order, oldest first: what the workers were asked to serve and have not confirmed.
        self._orders: dict[int, _Offer] = {}
        self._last_order = 0
        self._tombstones: dict[str, Tombstone] = {}
        self._connected = False
        self._heard = False
        self._refused = False
        self._attempts = 0
        self._away_since_ms: int | None = None
        self.nacks = 0
        """Snapshots refused since the start."""

    @property
    def version(self) -> int:
        """Version that the workers serve, 0 = none."""
        return self._served.snapshot.version if self._served is not None else 0

    @property
    def dead(self) -> dict[str, int]:
        """Experiment -> highest epoch that must never serve again."""
        return {name: tombstone.epoch for name, tombstone in self._tombstones.items()}

    def state(self, now_ms: int) -> ConfigState:
        """How current the served snapshot is.

        Args:
            now_ms: Monotonic, as in every other call.
        """
        if self._served is None:
            return ConfigState.NO_SNAPSHOT
        if self._connected and self._heard:
            return ConfigState.STALE if self._refused else ConfigState.CURRENT
        away_ms = 0 if self._away_since_ms is None else now_ms - self._away_since_ms
        return ConfigState.STALE if away_ms >= STALE_AFTER_MS else ConfigState.CACHED

    def away_ms(self, now_ms: int) -> int:
        """How long there has been no stream; 0 = there is one, or none was ever tried."""
        if self._connected or self._away_since_ms is None:
            return 0
        return now_ms - self._away_since_ms

    # -- Events -----------------------------------------------------------------------------------

    def loaded(
        self,
        payload: bytes,
        tenant_key: bytes,
        tombstones: Iterable[Tombstone],
        *,
        now_ms: int,
    ) -> list[Effect]:
        """The disk was read, before the first connection.

        Args:
            payload: The last good snapshot.
            tenant_key: Its key.
            tombstones: All that were in force.
            now_ms: Monotonic.

        Raises:
            InvalidSnapshot: What was good once is not now (an older sidecar wrote it); the
                tombstones are in force all the same.
        """
        self._bury(tombstones)
        self._away_since_ms = now_ms
        return self._offer(payload, tenant_key, nonce="")

    def connected(self, now_ms: int) -> list[Effect]:
        """A stream is open: say Hello."""
        del now_ms
        self._connected, self._heard = True, False
        hello = Hello(
            node=self._identity.node,
            instance_id=self._identity.instance_id,
            tenant=self._identity.tenant,
            applied_version=self.version,
            code_version=self._identity.code_version,
            snapshot_format=SNAPSHOT_FORMAT,
            tombstones=self.tombstone_set().tombstones,
        )
        return [Send(StreamRequest(hello=hello))]

    def received(self, response: StreamResponse, now_ms: int) -> list[Effect]:
        """The control plane said something."""
        del now_ms
        self._heard = True
        self._attempts = 0  # it answers: only now is a new failure a first one
        kind = response.WhichOneof("message")
        if kind == "snapshot":
            return self._pushed(response.snapshot)
        if kind == "tombstones":
            return self.buried(response.tombstones.tombstones)
        if kind == "delta_ack":
            return [Acked(response.delta_ack.instance_id, response.delta_ack.seq)]
        return []

    def applied(self, order: int) -> list[Effect]:
        """Every worker serves what this order asked for."""
        offer = self._orders.get(order)
        if offer is None:
            return []  # confirmed before, or passed over by one that was confirmed
        self._orders = {number: left for number, left in self._orders.items() if number > order}
        self._refused = False
        if not offer.nonce:
            self._served = offer
            return []  # from the disk, or answered before: only its tombstones are new
        self._served = self._answered(offer)
        return [
            Persist(offer.payload, offer.tenant_key),
            self._ack(offer.snapshot.version, offer.nonce),
        ]

    def failed(self, order: int, reason: str) -> list[Effect]:
        """The workers could not serve it (a bug of ours): what served before serves on."""
        offer = self._orders.pop(order, None)
        if offer is None:
            return []
        self._refused = True
        effects: list[Effect] = []
        if offer.nonce:
            self.nacks += 1
            violation = Violation("snapshot", str(offer.snapshot.version), reason)
            effects.append(self._ack(offer.snapshot.version, offer.nonce, [violation]))
            self._answered(offer)
        served = self._served
        if served is not None and not self._orders and served.payload != offer.payload:
            # Under the tombstones that came with, or after, the one that failed.
            effects.append(self._apply(served))
        return effects

    def buried(self, tombstones: Iterable[Tombstone]) -> list[Effect]:
        """Tombstones were heard of, from anywhere: they are in force before anything else."""
        if not self._bury(tombstones):
            return []
        effects: list[Effect] = []
        newest = next(reversed(self._orders.values()), self._served)
        if newest is not None:
            effects.append(self._apply(newest))
        effects.append(PersistTombstones(self.tombstone_set()))
        return effects

    def disconnected(self, now_ms: int, *, jitter: float) -> list[Effect]:
        """The stream ended, or could not be opened.

        Args:
            now_ms: Monotonic.
            jitter: Uniform in [0, 1): full jitter, so that a restarted control plane is not met by
                all sidecars at once.
        """
        if self._connected or self._away_since_ms is None:
            self._away_since_ms = now_ms
        self._connected = self._heard = False
        ceiling_s = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** min(self._attempts, _EXPONENT_MAX))
        self._attempts += 1
        return [Backoff(ceiling_s * jitter)]

    def tombstone_set(self) -> TombstoneSet:
        """All tombstones, by experiment."""
        return TombstoneSet(
            tombstones=[self._tombstones[name] for name in sorted(self._tombstones)]
        )

    # -- Parts ------------------------------------------------------------------------------------

    def _pushed(self, push: SnapshotPush) -> list[Effect]:
        if not self._orders and self._served is not None and self._served.is_(push):
            self._refused = False
            return [self._ack(push.version, push.nonce)]
        try:
            return self._offer(push.snapshot, push.tenant_key, push.nonce, push.version)
        except InvalidSnapshot as error:
            self._refused = True
            self.nacks += 1
            return [self._ack(push.version, push.nonce, error.violations)]

    def _offer(
        self, payload: bytes, tenant_key: bytes, nonce: str, version: int | None = None
    ) -> list[Effect]:
        if len(tenant_key) != TENANT_KEY_BYTES:
            # The value is a secret: only its length is said.
            rule = f"must have {TENANT_KEY_BYTES} bytes"
            raise InvalidSnapshot([Violation("tenant_key", f"{len(tenant_key)} bytes", rule)])
        snapshot = self._judge(payload)
        if version is not None and snapshot.version != version:
            rule = f"must be {version}, the version of the push"
            raise InvalidSnapshot([Violation("version", str(snapshot.version), rule)])
        grew = self._bury(snapshot.tombstones)
        effects: list[Effect] = [self._apply(_Offer(payload, snapshot, tenant_key, nonce))]
        if grew:
            effects.append(PersistTombstones(self.tombstone_set()))
        return effects

    def _apply(self, offer: _Offer) -> Apply:
        self._last_order += 1
        self._orders[self._last_order] = offer
        while len(self._orders) > ORDERS_MAX:
            del self._orders[next(iter(self._orders))]
        return Apply(offer.payload, offer.snapshot, offer.tenant_key, self.dead, self._last_order)

    def _answered(self, offer: _Offer) -> _Offer:
        """Take the nonce off an offer everywhere: its push is answered once."""
        answered = replace(offer, nonce="")
        for number, other in self._orders.items():
            if other is offer:
                self._orders[number] = answered
        return answered

    def _bury(self, tombstones: Iterable[Tombstone]) -> bool:
        """Add to the set, which only grows; whether it did."""
        grew = False
        for tombstone in tombstones:
            known = self._tombstones.get(tombstone.experiment)
            if known is None or known.epoch < tombstone.epoch:
                self._tombstones[tombstone.experiment] = tombstone
                grew = True
        return grew

    @staticmethod
    def _ack(version: int, nonce: str, violations: Iterable[Violation] = ()) -> Send:
        listed = [FieldViolation(field=f, value=v, rule=r) for f, v, r in violations]
        if len(listed) > VIOLATIONS_MAX:
            more = f"and {len(listed) - VIOLATIONS_MAX} more"
            listed[VIOLATIONS_MAX:] = [FieldViolation(field="", value="", rule=more)]
        ack = SnapshotAck(version=version, nonce=nonce, violations=listed)
        return Send(StreamRequest(ack=ack))
