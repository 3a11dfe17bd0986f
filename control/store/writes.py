"""One statement or two for each kind of record, inside a transaction that `sqlite` has begun.

Owns preconditions and what only grows. Refuses to begin or end transactions.
"""

import json

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from control.store import tables as t
from control.store.base import (
    ALERTS_PENDING_MAX,
    IDEMPOTENCY_WINDOW_MS,
    SNAPSHOTS_KEPT,
    AlreadyExists,
    AnswerRecord,
    Change,
    Conflict,
    DeleteResource,
    Expect,
    JournalEntry,
    JournalKind,
    Kind,
    NotFound,
    PutResource,
    SnapshotRecord,
    TombstoneRecord,
)


async def put(connection: AsyncConnection, put: PutResource) -> None:
    """Writes a resource when its precondition holds."""
    resource = put.resource
    await _check(connection, resource.kind, resource.tenant, resource.name, put.expect)
    values = {
        "uid": resource.uid,
        "revision": resource.revision,
        "etag": resource.etag,
        "labels": json.dumps(dict(resource.labels), sort_keys=True),
        "spec": resource.spec,
        "state": resource.state,
        "create_ms": resource.create_ms,
        "update_ms": resource.update_ms,
    }
    await connection.execute(
        insert(t.resources)
        .values(kind=resource.kind, tenant=resource.tenant, name=resource.name, **values)
        .on_conflict_do_update(index_elements=["kind", "tenant", "name"], set_=values)
    )


async def delete(connection: AsyncConnection, delete: DeleteResource) -> None:
    """Deletes a resource when its precondition holds."""
    if not await _check(connection, delete.kind, delete.tenant, delete.name, delete.expect):
        raise NotFound(delete.kind, delete.tenant, delete.name)
    c = t.resources.c
    await connection.execute(
        sa.delete(t.resources).where(
            c.kind == delete.kind, c.tenant == delete.tenant, c.name == delete.name
        )
    )


async def _check(
    connection: AsyncConnection, kind: Kind, tenant: str, name: str, expect: str | Expect
) -> bool:
    """Whether the resource is there, after its precondition held."""
    c = t.resources.c
    etag = (
        await connection.execute(
            sa.select(c.etag).where(c.kind == kind, c.tenant == tenant, c.name == name)
        )
    ).scalar_one_or_none()
    if expect is Expect.ABSENT and etag is not None:
        raise AlreadyExists(kind, tenant, name)
    if isinstance(expect, str):
        if etag is None:
            raise NotFound(kind, tenant, name)
        if etag != expect:
            raise Conflict(f"{kind} {name!r}", expect, etag)
    return etag is not None


async def raise_epoch(
    connection: AsyncConnection, tenant: str, experiment: str, epoch: int
) -> None:
    """Raises the highest epoch used under a name; never lowers it."""
    statement = insert(t.epochs).values(tenant=tenant, experiment=experiment, epoch=epoch)
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=["tenant", "experiment"],
            set_={"epoch": statement.excluded.epoch},
            where=t.epochs.c.epoch < statement.excluded.epoch,
        )
    )


async def put_tombstone(connection: AsyncConnection, tombstone: TombstoneRecord) -> None:
    """Raises an experiment's tombstone; never lowers it."""
    values = {
        "epoch": tombstone.epoch,
        "reason": tombstone.reason,
        "time_ms": tombstone.time_ms,
    }
    statement = insert(t.tombstones).values(
        tenant=tombstone.tenant, experiment=tombstone.experiment, **values
    )
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=["tenant", "experiment"],
            set_=values,
            where=t.tombstones.c.epoch < statement.excluded.epoch,
        )
    )
    # A name that is used again must start above what was rolled back.
    await raise_epoch(connection, tombstone.tenant, tombstone.experiment, tombstone.epoch)


async def put_snapshot(connection: AsyncConnection, snapshot: SnapshotRecord) -> None:
    """Adds a snapshot of a higher version, and lets the oldest go."""
    c = t.snapshots.c
    newest = (
        await connection.execute(
            sa.select(sa.func.max(c.version)).where(c.tenant == snapshot.tenant)
        )
    ).scalar_one_or_none()
    if newest is not None and snapshot.version <= newest:
        raise Conflict(
            f"the snapshot of {snapshot.tenant!r}", f"below {snapshot.version}", str(newest)
        )
    await connection.execute(
        sa.insert(t.snapshots).values(
            tenant=snapshot.tenant,
            version=snapshot.version,
            time_ms=snapshot.time_ms,
            payload=snapshot.payload,
        )
    )
    kept = (
        sa.select(c.version)
        .where(c.tenant == snapshot.tenant)
        .order_by(c.version.desc())
        .limit(SNAPSHOTS_KEPT)
    )
    await connection.execute(
        sa.delete(t.snapshots).where(c.tenant == snapshot.tenant, c.version.not_in(kept))
    )


async def put_answer(connection: AsyncConnection, answer: AnswerRecord) -> None:
    """Remembers the first answer to a request id, and forgets those of yesterday."""
    await connection.execute(
        sa.delete(t.answers).where(t.answers.c.time_ms < answer.time_ms - IDEMPOTENCY_WINDOW_MS)
    )
    await connection.execute(
        insert(t.answers)
        .values(
            tenant=answer.tenant,
            method=answer.method,
            request_id=answer.request_id,
            digest=answer.digest,
            response=answer.response,
            time_ms=answer.time_ms,
        )
        .on_conflict_do_nothing()  # the first answer stands
    )


async def append_rows(connection: AsyncConnection, change: Change) -> None:
    """Appends decisions, audit events and alerts; the outbox drops its oldest beyond its bound."""
    for decision in change.decisions:
        await connection.execute(
            sa.insert(t.decisions).values(
                tenant=decision.tenant,
                experiment=decision.experiment,
                time_ms=decision.time_ms,
                action=decision.action,
                payload=decision.payload,
            )
        )
    for audit in change.audits:
        await connection.execute(
            sa.insert(t.audits).values(
                tenant=audit.tenant,
                time_ms=audit.time_ms,
                actor=audit.actor,
                method=audit.method,
                resource=audit.resource,
                before_json=audit.before_json,
                after_json=audit.after_json,
            )
        )
    for alert in change.alerts:
        await connection.execute(
            sa.insert(t.alerts).values(
                tenant=alert.tenant,
                created_ms=alert.created_ms,
                attempts=alert.attempts,
                next_attempt_ms=alert.next_attempt_ms,
                payload=alert.payload,
            )
        )
    if change.alerts:
        kept = sa.select(t.alerts.c.id).order_by(t.alerts.c.id.desc()).limit(ALERTS_PENDING_MAX)
        await connection.execute(sa.delete(t.alerts).where(t.alerts.c.id.not_in(kept)))


async def append(connection: AsyncConnection, entry: JournalEntry) -> int | None:
    """Appends one journal entry; its id, None for a delta that is there already."""
    row = await connection.execute(
        insert(t.journal)
        .values(
            tenant=entry.tenant,
            kind=entry.kind,
            source=entry.source,
            seq=entry.seq if entry.kind is JournalKind.DELTA else None,
            received_ms=entry.received_ms,
            payload=entry.payload,
        )
        .on_conflict_do_nothing()
        .returning(t.journal.c.id)
    )
    row_id: int | None = row.scalar_one_or_none()
    return row_id
