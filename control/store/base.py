"""What the control plane keeps, and what a store promises.

Owns the records, the unit of work (`Change`), the errors and the `Store` protocol. Refuses to know
any database, and to look into specs, states, decisions and journal payloads: they are bytes here.

Promises of every store:
    * a method that returned has committed: the effects survive kill -9 and power loss;
    * `commit` is all or nothing, and its preconditions (etags) are checked inside the transaction;
    * tombstones and epochs only grow;
    * journal ids grow by commit order, so that replaying by id repeats what was applied live.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Final, Generic, Protocol, TypeVar

PAGE_MAX: Final = 1000
SNAPSHOTS_KEPT: Final = 16  # per tenant: the last versions, for looking back
IDEMPOTENCY_WINDOW_MS: Final = 24 * 3600 * 1000
ALERTS_PENDING_MAX: Final = 10_000  # beyond it the oldest pending alert is given up, and counted


class Kind(StrEnum):
    """Kinds of resources."""

    TARGET = "target"
    EXPERIMENT = "experiment"
    HOLDOUT = "holdout"
    METRIC = "metric"


class JournalKind(StrEnum):
    """Kinds of journal entries; `control.recovery` knows their payloads."""

    DELTA = "delta"
    OUTCOME = "outcome"
    SPAN = "span"
    EPOCH = "epoch"
    FORGET = "forget"


# -- Errors ----------------------------------------------------------------------------------------


class StoreError(Exception):
    """The store could not do what was asked."""


class StoreOpenError(StoreError):
    """The store cannot be opened; the message says what to do about it."""


class StoreUnavailable(StoreError):
    """The database is locked, or the disk is full: nothing was written, try again later."""


class StoreFailed(StoreError):
    """A write failed below the database: what is on disk is unknown, so no further write is tried.

    A retried fsync may report success for pages that were lost; the process must end and recover.
    """


class NotFound(StoreError):
    """There is no such resource."""

    def __init__(self, kind: Kind, tenant: str, name: str) -> None:
        self.kind, self.tenant, self.name = kind, tenant, name
        super().__init__(f"{kind} {name!r} of tenant {tenant!r} does not exist")


class AlreadyExists(StoreError):
    """A resource of this name exists."""

    def __init__(self, kind: Kind, tenant: str, name: str) -> None:
        self.kind, self.tenant, self.name = kind, tenant, name
        super().__init__(f"{kind} {name!r} of tenant {tenant!r} exists already")


class Conflict(StoreError):
    """Somebody else wrote first: the expected etag or version is not the current one."""

    def __init__(self, what: str, expected: str, current: str) -> None:
        self.what, self.expected, self.current = what, expected, current
        super().__init__(f"{what} was changed meanwhile: expected {expected}, it is {current}")


# -- Records ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Resource:
    """A target, an experiment, a metric or a holdout.

    Attributes:
        kind: What it is.
        tenant: Whose it is.
        name: Its id within the tenant (not the resource name).
        uid: Random, given at creation.
        revision: +1 at every accepted change of spec.
        etag: Opaque, new at every write; the writer makes it.
        labels: Free key-value pairs.
        spec: The encoded specification message.
        state: Opaque to the store: run state, previous baseline and the like.
        create_ms: Unix milliseconds.
        update_ms: Unix milliseconds.
    """

    kind: Kind
    tenant: str
    name: str
    uid: str
    revision: int
    etag: str
    labels: Mapping[str, str]
    spec: bytes
    state: bytes
    create_ms: int
    update_ms: int


class Expect(Enum):
    """Preconditions of a write that are not an etag."""

    ANY = "any"  # whatever is there, or nothing
    ABSENT = "absent"  # creation: raises AlreadyExists


@dataclass(frozen=True, slots=True)
class PutResource:
    """Writes a resource whole. `expect` is the etag that must be current, or an `Expect`."""

    resource: Resource
    expect: str | Expect = Expect.ANY


@dataclass(frozen=True, slots=True)
class DeleteResource:
    """Deletes a resource; raises NotFound when there is none. Its last epoch is remembered."""

    kind: Kind
    tenant: str
    name: str
    expect: str | Expect = Expect.ANY


@dataclass(frozen=True, slots=True)
class TombstoneRecord:
    """Plans of `experiment` with an epoch at or below `epoch` never serve again."""

    tenant: str
    experiment: str
    epoch: int
    reason: str
    time_ms: int


@dataclass(frozen=True, slots=True)
class EpochMark:
    """The highest epoch used under an experiment's name; survives the experiment."""

    tenant: str
    experiment: str
    epoch: int


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """One decision. `payload` is the encoded Decision; `id` is 0 until it is stored."""

    tenant: str
    experiment: str
    time_ms: int
    action: str
    payload: bytes
    id: int = 0


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """Who did what to which resource. `id` is 0 until it is stored."""

    tenant: str
    time_ms: int
    actor: str
    method: str
    resource: str
    before_json: str
    after_json: str
    id: int = 0


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """An encoded snapshot; versions of a tenant grow."""

    tenant: str
    version: int
    payload: bytes
    time_ms: int


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """The first answer to a request id, given again when the request is repeated.

    `digest` tells a repetition from another request under the same id.
    """

    tenant: str
    method: str
    request_id: str
    digest: bytes
    response: bytes
    time_ms: int


@dataclass(frozen=True, slots=True)
class AlertRecord:
    """An alert that still has to be delivered: a row of the outbox. `id` is 0 until stored."""

    tenant: str
    created_ms: int
    payload: bytes
    attempts: int = 0
    next_attempt_ms: int = 0
    id: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """One unit of work: all of it is committed, or none."""

    puts: Sequence[PutResource] = ()
    deletes: Sequence[DeleteResource] = ()
    epochs: Sequence[EpochMark] = ()
    tombstones: Sequence[TombstoneRecord] = ()
    decisions: Sequence[DecisionRecord] = ()
    audits: Sequence[AuditRecord] = ()
    snapshots: Sequence[SnapshotRecord] = ()
    answers: Sequence[AnswerRecord] = ()
    alerts: Sequence[AlertRecord] = ()


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """Something to be remembered before it is acknowledged.

    Attributes:
        tenant: Whose it is.
        kind: What the payload is.
        payload: Opaque to the store.
        received_ms: Unix milliseconds by the control plane's clock.
        source: For deltas the sidecar's instance id.
        seq: For deltas the number within the instance: kept once per (tenant, source, seq).
    """

    tenant: str
    kind: JournalKind
    payload: bytes
    received_ms: int
    source: str = ""
    seq: int = 0


@dataclass(frozen=True, slots=True)
class JournalRow:
    """A stored entry with its place in the order of commits."""

    id: int
    entry: JournalEntry


Committed = Callable[[JournalRow], None]


def ignore_row(_: JournalRow) -> None:
    """Does nothing with a committed row."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that journal rows up to and including `journal_id` came to, for one tenant."""

    tenant: str
    journal_id: int
    time_ms: int
    payload: bytes


Record = TypeVar("Record")


@dataclass(frozen=True)
class Page(Generic[Record]):
    """One page of a listing; `next_token` is empty on the last."""

    records: Sequence[Record] = field(default_factory=tuple)
    next_token: str = ""


# -- The store -------------------------------------------------------------------------------------


class Store(Protocol):
    """Durable state of the control plane. Methods may raise StoreUnavailable and StoreFailed."""

    async def close(self) -> None:
        """Ends it; what was committed stays."""

    async def commit(self, change: Change) -> None:
        """Commits all of `change`.

        Raises:
            Conflict: An expected etag is not current, or a snapshot's version does not grow.
            AlreadyExists: `Expect.ABSENT`, and it is there.
            NotFound: A delete, or a put with an etag, of what is not there.
        """

    async def get(self, kind: Kind, tenant: str, name: str) -> Resource | None:
        """The resource, or None."""

    async def list_resources(
        self, kind: Kind, tenant: str, *, page_size: int = 100, page_token: str = ""
    ) -> Page[Resource]:
        """Resources by name. Raises ValueError for a token that this store did not make."""

    async def all_resources(self, kind: Kind, tenant: str) -> list[Resource]:
        """All resources of a kind by name: what the controller loads at its start."""

    async def tenants(self) -> list[str]:
        """Every tenant that ever had anything, by name."""

    async def tenant_key(self, tenant: str) -> bytes:
        """The tenant's secret for unit hashes, 32 bytes; made at the first call."""

    async def last_epoch(self, tenant: str, experiment: str) -> int:
        """The highest epoch used under this name, 0 = none; a deletion does not reset it."""

    async def snapshot(self, tenant: str) -> SnapshotRecord | None:
        """The snapshot of the highest version."""

    async def tombstones(self, tenant: str) -> list[TombstoneRecord]:
        """The highest tombstone of each experiment, by name."""

    async def decisions(
        self, tenant: str, experiment: str, *, page_size: int = 100, page_token: str = ""
    ) -> Page[DecisionRecord]:
        """Decisions, newest first."""

    async def audits(
        self, tenant: str, *, resource: str = "", page_size: int = 100, page_token: str = ""
    ) -> Page[AuditRecord]:
        """Audit events, newest first; of one resource, or of all."""

    async def answer(self, tenant: str, method: str, request_id: str) -> AnswerRecord | None:
        """The first answer to this request id, while it is remembered."""

    async def pending_alerts(self, now_ms: int, *, limit: int = 100) -> list[AlertRecord]:
        """Alerts whose next attempt is due, oldest first."""

    async def alert_done(self, alert_id: int) -> None:
        """Takes an alert out of the outbox: delivered, or given up."""

    async def alert_retry(self, alert_id: int, *, attempts: int, next_attempt_ms: int) -> None:
        """Puts a failed alert back until `next_attempt_ms`."""

    async def append_journal(
        self, entries: Sequence[JournalEntry], committed: Committed = ignore_row
    ) -> list[int | None]:
        """Appends; the id of each entry, None for a delta that is there already.

        `committed` is called with each new row after its commit, before this returns, and in the
        order of ids over all callers: what it applies live is what a replay applies.
        """

    async def read_journal(
        self, tenant: str, *, after_id: int = 0, limit: int = 1000
    ) -> list[JournalRow]:
        """Rows of a tenant with an id above `after_id`, by id."""

    async def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replaces the tenant's checkpoint and drops the journal rows that it covers.

        One that covers less than the present one changes nothing.
        """

    async def checkpoint(self, tenant: str) -> Checkpoint | None:
        """The tenant's last checkpoint."""
