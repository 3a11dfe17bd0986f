"""Carries out changes: the one place that orders memory, store and sidecars.

Owns the tenants' state, snapshot versions and the rule that everything is stored before it is
published, except a rollback, which is published first and stored after: it must work while the disk
is slow or full. Refuses to decide what changes.

A rollback never waits for the tenant's lock. When one happens while another change is being stored,
memory wins: the other change is refused, and what the store then has is overwritten with what
memory has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final, TypeVar

from google.rpc import code_pb2

from control import snapshot
from control.distribution import Distribution
from control.model import holdout_name
from control.refusals import Refused, already_exists, exhausted, not_found, stale, unavailable
from control.rollout.entries import (
    HOLDOUT_NAME,
    ExperimentEntry,
    HoldoutEntry,
    MetricEntry,
    TargetEntry,
    sealed_experiment,
)
from control.rollout.tenant import Mutation, Tenant, overlay, tombstone_message
from control.store.base import (
    AlreadyExists,
    Change,
    Conflict,
    DeleteResource,
    Expect,
    Kind,
    NotFound,
    PutResource,
    SnapshotRecord,
    Store,
    StoreFailed,
    StoreUnavailable,
)
from control.tracing import OFF, Tracing
from turnout.v1alpha1.snapshot_pb2 import Snapshot

TENANTS_MAX: Final = 1000

_log = logging.getLogger(__name__)

T = TypeVar("T")
Close = Callable[[Mutation], Mutation]
Entry = TargetEntry | ExperimentEntry | MetricEntry | HoldoutEntry


def _unchanged(mutation: Mutation) -> Mutation:
    return mutation


class Ledger:
    """State of all tenants, in memory, in the store and on the sidecars.

    Args:
        store: Where changes are kept.
        distribution: Where snapshots are published.
        new_nonce: A fresh random nonce for each publication.
        changed: Called with (tenant, experiment) after an experiment has changed.
        failed: Called once when the store has failed for good.
        tracing: Told of every push.
    """

    def __init__(
        self,
        store: Store,
        distribution: Distribution,
        *,
        new_nonce: Callable[[], str],
        changed: Callable[[str, str], None],
        failed: Callable[[str], None],
        tracing: Tracing = OFF,
    ) -> None:
        self.store = store
        self.distribution = distribution
        self._new_nonce = new_nonce
        self._changed = changed
        self._tracing = tracing
        self.fail = failed
        self._tenants: dict[str, Tenant] = {}
        self._flushes: dict[str, asyncio.Task[None]] = {}
        self.alerts_done: set[bytes] = set()

    # -- Tenants -------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Tenant]:
        return iter(list(self._tenants.values()))

    def find(self, name: str) -> Tenant | None:
        """A tenant that is known."""
        return self._tenants.get(name)

    def admit(self, name: str) -> None:
        """Refuse one tenant too many.

        Raises:
            Refused: RESOURCE_EXHAUSTED.
        """
        if name not in self._tenants and len(self._tenants) >= TENANTS_MAX:
            raise exhausted("TOO_MANY_TENANTS", f"there are {TENANTS_MAX} tenants already")

    def add(self, tenant: Tenant) -> None:
        """Take in a tenant."""
        self._tenants[tenant.name] = tenant

    # -- Store, then publish -------------------------------------------------------------------

    async def commit(
        self, tenant: Tenant, mutation: Mutation, close: Close = _unchanged, *, now_ms: int
    ) -> Mutation:
        """Store a change, then make it known. The caller holds the tenant's lock.

        Args:
            tenant: Whose.
            mutation: What changes.
            close: Adds what depends on the final entries: audit events, the answer to be kept.
            now_ms: Unix milliseconds.

        Returns:
            The mutation as it was stored: entries carry the snapshot version.

        Raises:
            Refused: UNAVAILABLE, ABORTED, NOT_FOUND or ALREADY_EXISTS; nothing has changed.
        """
        assert tenant.lock.locked()
        if not await self._flush(tenant):
            raise unavailable("the store cannot write just now")
        await self._begin_epochs(tenant, mutation, now_ms)
        held = _entries(tenant, mutation)
        planned = self._planned(tenant, mutation)
        if planned is not None:
            tenant.version += 1
            mutation = _stamped(mutation, tenant.version, now_ms)
        mutation = close(mutation)
        record = None if planned is None else _record(tenant, planned, now_ms)
        await self.asked(self.store.commit(_change(tenant, mutation, [record] if record else [])))
        if any(
            now is not before for now, before in zip(_entries(tenant, mutation), held, strict=True)
        ):
            self._overrule(tenant, mutation)
            message = "rolled back meanwhile: read it again"
            raise Refused(code_pb2.ABORTED, message, reason="ROLLED_BACK_MEANWHILE")
        self._install(tenant, mutation)
        if planned is not None and record is not None:
            if record.version == tenant.version:
                self._publish(tenant, planned, record)
            else:
                self.republish(tenant, now_ms=now_ms)
        self._tell(tenant, mutation)
        return mutation

    # -- Publish, then store -------------------------------------------------------------------

    def publish_first(
        self, tenant: Tenant, mutation: Mutation, close: Close = _unchanged, *, now_ms: int
    ) -> Mutation:
        """Make a rollback known now, and store it as soon as the store can; never waits.

        Returns:
            The mutation as it was published.
        """
        tenant.version += 1
        mutation = close(_stamped(mutation, tenant.version, now_ms))
        planned = overlay(tenant, mutation)
        record = _record(tenant, planned, now_ms)
        self._install(tenant, mutation)
        tombstones = [tombstone_message(tombstone) for tombstone in mutation.tombstones]
        self.distribution.publish_tombstones(tenant.name, tombstones)
        self._publish(tenant, planned, record)
        self._defer(tenant, _change(tenant, mutation, [record], forced=True))
        self._tell(tenant, mutation)
        return mutation

    def republish(self, tenant: Tenant, *, now_ms: int) -> None:
        """Publish what memory has under a new version, and store the version later."""
        planned = overlay(tenant, Mutation())
        tenant.version += 1
        record = _record(tenant, planned, now_ms)
        self._publish(tenant, planned, record)
        change = Change(snapshots=[record])
        if tenant.pending and not tenant.lock.locked() and _only_snapshots(tenant.pending[-1]):
            tenant.pending.pop()
        self._defer(tenant, change)

    def tell(self, tenant: Tenant, experiment: str) -> None:
        """Tell watchers that an experiment looks different now."""
        self._changed(tenant.name, experiment)

    def retry(self, tenant: Tenant) -> None:
        """Try again, in the background, to store what was published first."""
        running = self._flushes.get(tenant.name)
        if tenant.pending and (running is None or running.done()):
            self._flushes[tenant.name] = asyncio.create_task(self._flush_soon(tenant))

    async def settled(self, name: str) -> None:
        """Before the store is read for what was decided: store what was published first."""
        tenant = self.find(name)
        if tenant is not None and tenant.pending:
            await self.settle(tenant)

    async def settle(self, tenant: Tenant) -> bool:
        """Try to store what was published first; False while the store cannot."""
        async with tenant.lock:
            return await self._flush(tenant)

    def resume(self, tenant: Tenant, record: SnapshotRecord, *, now_ms: int) -> None:
        """Publish the stored snapshot again after a restart, under its own version."""
        stored = Snapshot.FromString(record.payload)
        stored.version = 0
        tenant.version = record.version
        self._publish(tenant, stored, record)
        if self._planned(tenant, Mutation()) is not None:
            self.republish(tenant, now_ms=now_ms)

    # -- Inside --------------------------------------------------------------------------------

    def _planned(self, tenant: Tenant, mutation: Mutation) -> Snapshot | None:
        """The next snapshot (version 0); None when nothing in it changes."""
        try:
            planned = overlay(tenant, mutation)
            content = snapshot.encode(planned)
        except ValueError as error:
            raise exhausted("SNAPSHOT", str(error)) from error
        return None if content == tenant.content else planned

    def _install(self, tenant: Tenant, mutation: Mutation) -> None:
        for name, target in mutation.targets.items():
            if target is None:
                tenant.targets.pop(name, None)
            else:
                tenant.targets[name] = target
        for name, experiment in mutation.experiments.items():
            if experiment is None:
                tenant.experiments.pop(name, None)
                tenant.latest.pop(name, None)
            else:
                tenant.experiments[name] = experiment
            if experiment is None or not experiment.run.live:
                tenant.looked.pop(name, None)
                tenant.shown.pop(name, None)
        for name, metric in mutation.metrics.items():
            if metric is None:
                tenant.metrics.pop(name, None)
            else:
                tenant.metrics[name] = metric
        if mutation.holdout is not None:
            tenant.holdout = mutation.holdout
        for mark in mutation.epochs:
            tenant.epochs[mark.experiment] = max(mark.epoch, tenant.epochs.get(mark.experiment, 0))
        for tombstone in mutation.tombstones:
            known = tenant.tombstones.get(tombstone.experiment)
            if known is None or known.epoch < tombstone.epoch:
                tenant.tombstones[tombstone.experiment] = tombstone

    def _publish(self, tenant: Tenant, planned: Snapshot, record: SnapshotRecord) -> None:
        planned.version = 0
        tenant.content = snapshot.encode(planned)
        nonce = self._new_nonce()
        with self._tracing.push(tenant.name, record.version, len(record.payload)) as traceparent:
            self.distribution.publish(
                tenant.name, record.version, nonce, record.payload, traceparent=traceparent
            )

    def _tell(self, tenant: Tenant, mutation: Mutation) -> None:
        for name in mutation.experiments:
            self.tell(tenant, name)

    def _overrule(self, tenant: Tenant, mutation: Mutation) -> None:
        """Write what memory has over what the store has for everything a change touched."""
        puts = []
        for target in mutation.targets:
            entry = tenant.targets.get(target)
            if entry is not None:
                puts.append(PutResource(entry.resource))
        for experiment in mutation.experiments:
            current = tenant.experiments.get(experiment)
            if current is not None:
                puts.append(PutResource(current.resource))
        self._defer(tenant, Change(puts=puts))

    async def _begin_epochs(self, tenant: Tenant, mutation: Mutation, now_ms: int) -> None:
        """Make the epochs' starts known before anybody can send evidence of them."""
        for mark in mutation.epochs:
            entry = mutation.experiments[mark.experiment]
            assert entry is not None
            began = tenant.journal.begin_epoch(
                entry.name,
                mark.epoch,
                entry.run.epoch_start_ms,
                entry.spec.target,
                now_ms,
                warm_up_ms=entry.policy.warm_up_ms,
            )
            await self.asked(began)
            tenant.ahead = None  # a copy from before the epoch

    async def asked(self, asking: Awaitable[T]) -> T:
        """What the store answers.

        Raises:
            Refused: UNAVAILABLE, ABORTED, NOT_FOUND or ALREADY_EXISTS.
        """
        try:
            return await asking
        except StoreUnavailable as error:
            raise unavailable(f"the store cannot do it just now: {error}") from error
        except StoreFailed as error:
            self.fail(str(error))
            raise unavailable("the store has failed") from error
        except Conflict as error:
            raise stale(error.what, error.expected, error.current) from error
        except NotFound as error:
            raise not_found(_resource_name(error.kind, error.tenant, error.name)) from error
        except AlreadyExists as error:
            raise already_exists(_resource_name(error.kind, error.tenant, error.name)) from error

    def _defer(self, tenant: Tenant, change: Change) -> None:
        # Bounded without a count: while the store cannot write nothing can start, so that there are
        # at most as many rollbacks as there are live experiments.
        tenant.pending.append(change)
        self.retry(tenant)

    async def _flush_soon(self, tenant: Tenant) -> None:
        await self.settle(tenant)

    async def _flush(self, tenant: Tenant) -> bool:
        while tenant.pending:
            change = tenant.pending[0]
            alerts = [a for a in change.alerts if a.payload not in self.alerts_done]
            try:
                await self.store.commit(replace(change, alerts=alerts))
            except StoreUnavailable as error:
                extra = {"tenant": tenant.name}
                _log.warning("a published change is not yet stored: %s", error, extra=extra)
                return False
            except StoreFailed as error:
                self.fail(str(error))
                return False
            tenant.pending.popleft()
        return True


def _entries(tenant: Tenant, mutation: Mutation) -> list[Entry | None]:
    held: list[Entry | None] = []
    held.extend(tenant.targets.get(name) for name in mutation.targets)
    held.extend(tenant.experiments.get(name) for name in mutation.experiments)
    held.extend(tenant.metrics.get(name) for name in mutation.metrics)
    if mutation.holdout is not None:
        held.append(tenant.holdout)
    return held


def _stamped(mutation: Mutation, version: int, now_ms: int) -> Mutation:
    """The mutation with the snapshot version in every experiment that it changes."""
    experiments = {
        name: None
        if entry is None
        else sealed_experiment(
            replace(entry, state=replace(entry.state, snapshot_version=version)), now_ms
        )
        for name, entry in mutation.experiments.items()
    }
    return replace(mutation, experiments=experiments)


def _record(tenant: Tenant, planned: Snapshot, now_ms: int) -> SnapshotRecord:
    numbered = Snapshot()
    numbered.CopyFrom(planned)
    numbered.version = tenant.version
    return SnapshotRecord(tenant.name, tenant.version, snapshot.encode(numbered), now_ms)


def _change(
    tenant: Tenant,
    mutation: Mutation,
    snapshots: Iterable[SnapshotRecord],
    *,
    forced: bool = False,
) -> Change:
    """The unit of work of a mutation.

    Args:
        tenant: As it was before the mutation.
        mutation: What changes.
        snapshots: The new snapshot, if there is one.
        forced: Memory is right whatever the store has.
    """
    puts: list[PutResource] = []
    deletes: list[DeleteResource] = []
    holdouts = {HOLDOUT_NAME: mutation.holdout} if mutation.holdout else {}
    held = {HOLDOUT_NAME: tenant.holdout} if tenant.holdout else {}
    changes: tuple[tuple[Kind, Mapping[str, Entry | None], Mapping[str, Entry]], ...] = (
        (Kind.TARGET, mutation.targets, tenant.targets),
        (Kind.EXPERIMENT, mutation.experiments, tenant.experiments),
        (Kind.METRIC, mutation.metrics, tenant.metrics),
        (Kind.HOLDOUT, holdouts, held),
    )
    for kind, entries, current in changes:
        for name, entry in entries.items():
            before = current.get(name)
            expect: str | Expect = Expect.ABSENT if before is None else before.resource.etag
            if forced:
                expect = Expect.ANY
            if entry is None:
                deletes.append(DeleteResource(kind, tenant.name, name, expect))
            else:
                puts.append(PutResource(entry.resource, expect))
    return Change(
        puts=puts,
        deletes=deletes,
        epochs=mutation.epochs,
        tombstones=mutation.tombstones,
        decisions=mutation.decisions,
        audits=mutation.audits,
        snapshots=list(snapshots),
        answers=mutation.answers,
        alerts=mutation.alerts,
    )


def _only_snapshots(change: Change) -> bool:
    return change == Change(snapshots=change.snapshots)


def _resource_name(kind: Kind, tenant: str, name: str) -> str:
    return holdout_name(tenant) if kind is Kind.HOLDOUT else f"tenants/{tenant}/{kind}s/{name}"
