"""The store on SQLite: one file, one process, every acknowledged write on the disk.

Owns the database file (mode 0600, an exclusive lock on `PATH.lock` while it is open), its schema
(migrated when it is opened) and the order of writes. Refuses to be opened twice, to open a file
that is no database or that a newer version made, and to write after a failed write.

WAL with synchronous=FULL: a commit returns after fsync of the log. Writes go through one
connection, in BEGIN IMMEDIATE transactions, so that none ever waits to upgrade its lock; reads have
connections of their own and see the last commit. Journal appends that wait for the writer are
committed together, so that a slow disk costs one fsync per batch and not one per call.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from control.store import tables as t
from control.store.base import (
    ALERTS_PENDING_MAX,
    IDEMPOTENCY_WINDOW_MS,
    PAGE_MAX,
    SNAPSHOTS_KEPT,
    AlertRecord,
    AlreadyExists,
    AnswerRecord,
    AuditRecord,
    Change,
    Checkpoint,
    Committed,
    Conflict,
    DecisionRecord,
    DeleteResource,
    Expect,
    JournalEntry,
    JournalKind,
    JournalRow,
    Kind,
    NotFound,
    Page,
    PutResource,
    Resource,
    SnapshotRecord,
    StoreFailed,
    StoreOpenError,
    StoreUnavailable,
    TombstoneRecord,
    ignore_row,
)
from turnout.contract import TENANT_KEY_BYTES

URL_PREFIX: Final = "sqlite:"
BUSY_TIMEOUT_MS: Final = 5000
READERS: Final = 4
JOURNAL_BATCH_MAX: Final = 512  # entries committed together
WAL_BYTES_KEPT: Final = 64 * 1024 * 1024  # the log is cut back to this after a checkpoint

# SQLITE_BUSY, SQLITE_LOCKED, SQLITE_FULL: nothing was written, and it may work later.
_RETRYABLE: Final = frozenset({5, 6, 13})


def path_of_url(url: str) -> Path:
    """The file that a `sqlite:PATH` URL names.

    Raises:
        StoreOpenError: It is no such URL.
    """
    path = url.removeprefix(URL_PREFIX)
    if not url.startswith(URL_PREFIX) or not path or path.startswith(":"):
        raise StoreOpenError(f"store {url!r}: expected sqlite:PATH, for example sqlite:turnout.db")
    return Path(path)


@dataclass(frozen=True, slots=True)
class _Append:
    """A journal entry that waits for its commit; its future may be gone with its caller."""

    entry: JournalEntry
    committed: Committed
    future: asyncio.Future[int | None]

    def succeed(self, row_id: int | None) -> None:
        try:
            if row_id is not None:
                self.committed(JournalRow(row_id, self.entry))
        except Exception as error:  # noqa: BLE001 - a bug of this caller must not fail the others
            self.fail(error)
        else:
            if not self.future.done():
                self.future.set_result(row_id)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class SqliteStore:
    """`control.store.base.Store` on one SQLite file. Make it with `open`."""

    def __init__(self, path: Path, lock_fd: int, writer: AsyncEngine, readers: AsyncEngine) -> None:
        self._path = path
        self._lock_fd = lock_fd
        self._writer = writer
        self._readers = readers
        self._turn = asyncio.Lock()
        self._failed: str | None = None
        self._appends: list[_Append] = []
        self._flusher: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()

    # -- Opening and closing -----------------------------------------------------------------------

    @classmethod
    async def open(cls, url: str) -> Self:
        """Opens, or creates, and migrates the database of a `sqlite:PATH` URL.

        Raises:
            StoreOpenError: The path cannot be used; the message names it and says why.
        """
        path = path_of_url(url)
        lock_fd = _lock(path)
        try:
            await asyncio.to_thread(_prepare, path)
        except BaseException:
            os.close(lock_fd)
            raise
        return cls(path, lock_fd, _engine(path, writer=True), _engine(path, writer=False))

    async def close(self) -> None:
        """Ends it when running writes are over; what was committed stays."""
        running = [*self._running, *([self._flusher] if self._flusher else [])]
        await asyncio.gather(*running, return_exceptions=True)
        await self._readers.dispose()
        await self._writer.dispose()
        os.close(self._lock_fd)

    # -- One unit of work --------------------------------------------------------------------------

    async def commit(self, change: Change) -> None:
        """See `Store.commit`."""
        # A caller that is cancelled (a client that hung up) must not cut a transaction in two.
        task = asyncio.get_running_loop().create_task(self._commit(change))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        await asyncio.shield(task)

    async def _commit(self, change: Change) -> None:
        async with self._write() as connection:
            for put in change.puts:
                await _put(connection, put)
            for delete in change.deletes:
                await _delete(connection, delete)
            for mark in change.epochs:
                await _raise_epoch(connection, mark.tenant, mark.experiment, mark.epoch)
            for tombstone in change.tombstones:
                await _put_tombstone(connection, tombstone)
            for snapshot in change.snapshots:
                await _put_snapshot(connection, snapshot)
            for answer in change.answers:
                await _put_answer(connection, answer)
            await _append_rows(connection, change)

    # -- Resources ---------------------------------------------------------------------------------

    async def get(self, kind: Kind, tenant: str, name: str) -> Resource | None:
        """See `Store.get`."""
        c = t.resources.c
        rows = await self._rows(
            sa.select(t.resources).where(c.kind == kind, c.tenant == tenant, c.name == name)
        )
        return _resource(rows[0]) if rows else None

    async def list_resources(
        self, kind: Kind, tenant: str, *, page_size: int = 100, page_token: str = ""
    ) -> Page[Resource]:
        """See `Store.list_resources`."""
        size = _page_size(page_size)
        c = t.resources.c
        after = _text_token(page_token)
        rows = await self._rows(
            sa.select(t.resources)
            .where(c.kind == kind, c.tenant == tenant, c.name > after)
            .order_by(c.name)
            .limit(size + 1)
        )
        token = f"n{rows[size - 1].name}" if len(rows) > size else ""
        return Page([_resource(row) for row in rows[:size]], token)

    async def all_resources(self, kind: Kind, tenant: str) -> list[Resource]:
        """See `Store.all_resources`."""
        c = t.resources.c
        rows = await self._rows(
            sa.select(t.resources).where(c.kind == kind, c.tenant == tenant).order_by(c.name)
        )
        return [_resource(row) for row in rows]

    async def tenants(self) -> list[str]:
        """See `Store.tenants`."""
        named = [
            sa.select(table.c.tenant)
            for table in (t.tenants, t.resources, t.journal, t.tombstones, t.epochs, t.snapshots)
        ]
        rows = await self._rows(sa.union(*named).order_by("tenant"))
        return [row.tenant for row in rows]

    async def tenant_key(self, tenant: str) -> bytes:
        """See `Store.tenant_key`."""
        query = sa.select(t.tenants.c.key).where(t.tenants.c.tenant == tenant)
        rows = await self._rows(query)
        if rows:
            return bytes(rows[0].key)
        async with self._write() as connection:
            await connection.execute(
                insert(t.tenants)
                .values(tenant=tenant, key=secrets.token_bytes(TENANT_KEY_BYTES))
                .on_conflict_do_nothing()
            )
        return bytes((await self._rows(query))[0].key)

    async def last_epoch(self, tenant: str, experiment: str) -> int:
        """See `Store.last_epoch`."""
        c = t.epochs.c
        rows = await self._rows(
            sa.select(c.epoch).where(c.tenant == tenant, c.experiment == experiment)
        )
        return int(rows[0].epoch) if rows else 0

    async def snapshot(self, tenant: str) -> SnapshotRecord | None:
        """See `Store.snapshot`."""
        c = t.snapshots.c
        rows = await self._rows(
            sa.select(t.snapshots).where(c.tenant == tenant).order_by(c.version.desc()).limit(1)
        )
        if not rows:
            return None
        row = rows[0]
        return SnapshotRecord(row.tenant, row.version, bytes(row.payload), row.time_ms)

    async def tombstones(self, tenant: str) -> list[TombstoneRecord]:
        """See `Store.tombstones`."""
        c = t.tombstones.c
        rows = await self._rows(
            sa.select(t.tombstones).where(c.tenant == tenant).order_by(c.experiment)
        )
        return [
            TombstoneRecord(row.tenant, row.experiment, row.epoch, row.reason, row.time_ms)
            for row in rows
        ]

    # -- Records in the order of time --------------------------------------------------------------

    async def decisions(
        self, tenant: str, experiment: str, *, page_size: int = 100, page_token: str = ""
    ) -> Page[DecisionRecord]:
        """See `Store.decisions`."""
        c = t.decisions.c
        where = [c.tenant == tenant, c.experiment == experiment]
        rows, token = await self._newest(t.decisions, where, page_size, page_token)
        return Page(
            [
                DecisionRecord(r.tenant, r.experiment, r.time_ms, r.action, bytes(r.payload), r.id)
                for r in rows
            ],
            token,
        )

    async def audits(
        self, tenant: str, *, resource: str = "", page_size: int = 100, page_token: str = ""
    ) -> Page[AuditRecord]:
        """See `Store.audits`."""
        c = t.audits.c
        where = [c.tenant == tenant]
        if resource:
            where.append(c.resource == resource)
        rows, token = await self._newest(t.audits, where, page_size, page_token)
        return Page(
            [
                AuditRecord(
                    r.tenant,
                    r.time_ms,
                    r.actor,
                    r.method,
                    r.resource,
                    r.before_json,
                    r.after_json,
                    r.id,
                )
                for r in rows
            ],
            token,
        )

    async def answer(self, tenant: str, method: str, request_id: str) -> AnswerRecord | None:
        """See `Store.answer`."""
        c = t.answers.c
        rows = await self._rows(
            sa.select(t.answers).where(
                c.tenant == tenant, c.method == method, c.request_id == request_id
            )
        )
        if not rows:
            return None
        r = rows[0]
        return AnswerRecord(
            r.tenant, r.method, r.request_id, bytes(r.digest), bytes(r.response), r.time_ms
        )

    # -- Outbox of alerts --------------------------------------------------------------------------

    async def pending_alerts(self, now_ms: int, *, limit: int = 100) -> list[AlertRecord]:
        """See `Store.pending_alerts`."""
        c = t.alerts.c
        rows = await self._rows(
            sa.select(t.alerts).where(c.next_attempt_ms <= now_ms).order_by(c.id).limit(limit)
        )
        return [
            AlertRecord(
                r.tenant, r.created_ms, bytes(r.payload), r.attempts, r.next_attempt_ms, r.id
            )
            for r in rows
        ]

    async def alert_done(self, alert_id: int) -> None:
        """See `Store.alert_done`."""
        async with self._write() as connection:
            await connection.execute(sa.delete(t.alerts).where(t.alerts.c.id == alert_id))

    async def alert_retry(self, alert_id: int, *, attempts: int, next_attempt_ms: int) -> None:
        """See `Store.alert_retry`."""
        async with self._write() as connection:
            await connection.execute(
                sa.update(t.alerts)
                .where(t.alerts.c.id == alert_id)
                .values(attempts=attempts, next_attempt_ms=next_attempt_ms)
            )

    # -- Journal -----------------------------------------------------------------------------------

    async def append_journal(
        self, entries: Sequence[JournalEntry], committed: Committed = ignore_row
    ) -> list[int | None]:
        """See `Store.append_journal`. Entries of one call may be committed in several batches."""
        loop = asyncio.get_running_loop()
        waiting = [_Append(entry, committed, loop.create_future()) for entry in entries]
        self._appends.extend(waiting)
        if self._flusher is None or self._flusher.done():
            self._flusher = loop.create_task(self._flush_appends())
        done = await asyncio.gather(*(a.future for a in waiting), return_exceptions=True)
        for result in done:
            if isinstance(result, BaseException):
                raise result
        return [result for result in done if not isinstance(result, BaseException)]

    async def _flush_appends(self) -> None:
        """Commits what waits, batch by batch; its own task, so that no caller can cancel it."""
        while self._appends:
            batch: list[_Append] = []
            try:
                async with self._write() as connection:
                    batch = self._take_appends()
                    ids = [await _append(connection, append.entry) for append in batch]
            except Exception as error:  # noqa: BLE001 - passed on: else all would wait for ever
                for append in batch or self._take_appends():
                    append.fail(error)
            else:
                for append, row_id in zip(batch, ids, strict=True):
                    append.succeed(row_id)

    def _take_appends(self) -> list["_Append"]:
        batch = self._appends[:JOURNAL_BATCH_MAX]
        del self._appends[:JOURNAL_BATCH_MAX]
        return batch

    async def read_journal(
        self, tenant: str, *, after_id: int = 0, limit: int = 1000
    ) -> list[JournalRow]:
        """See `Store.read_journal`."""
        c = t.journal.c
        rows = await self._rows(
            sa.select(t.journal)
            .where(c.tenant == tenant, c.id > after_id)
            .order_by(c.id)
            .limit(limit)
        )
        return [
            JournalRow(
                r.id,
                JournalEntry(
                    r.tenant,
                    JournalKind(r.kind),
                    bytes(r.payload),
                    r.received_ms,
                    r.source,
                    r.seq or 0,
                ),
            )
            for r in rows
        ]

    async def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """See `Store.save_checkpoint`."""
        values = {
            "journal_id": checkpoint.journal_id,
            "time_ms": checkpoint.time_ms,
            "payload": checkpoint.payload,
        }
        c = t.journal.c
        async with self._write() as connection:
            await connection.execute(
                insert(t.checkpoints)
                .values(tenant=checkpoint.tenant, **values)
                .on_conflict_do_update(
                    index_elements=["tenant"],
                    set_=values,
                    # The rows that the newer one covers are gone.
                    where=t.checkpoints.c.journal_id <= checkpoint.journal_id,
                )
            )
            await connection.execute(
                sa.delete(t.journal).where(
                    c.tenant == checkpoint.tenant, c.id <= checkpoint.journal_id
                )
            )

    async def checkpoint(self, tenant: str) -> Checkpoint | None:
        """See `Store.checkpoint`."""
        rows = await self._rows(sa.select(t.checkpoints).where(t.checkpoints.c.tenant == tenant))
        if not rows:
            return None
        row = rows[0]
        return Checkpoint(row.tenant, row.journal_id, row.time_ms, bytes(row.payload))

    # -- Connections -------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _write(self) -> AsyncIterator[AsyncConnection]:
        """The one writing transaction; commits when the block ends, rolls back when it raises."""
        async with self._turn:
            if self._failed is not None:
                raise StoreFailed(self._failed)
            try:
                async with self._writer.begin() as connection:
                    yield connection
            except DBAPIError as error:
                raise self._typed(error) from error

    async def _rows(self, query: sa.sql.expression.Executable) -> Sequence[sa.Row[Any]]:
        try:
            async with self._readers.connect() as connection:
                return (await connection.execute(query)).all()
        except DBAPIError as error:
            raise self._typed(error) from error

    async def _newest(
        self,
        table: sa.Table,
        where: list[sa.ColumnElement[bool]],
        page_size: int,
        page_token: str,
    ) -> tuple[Sequence[sa.Row[Any]], str]:
        size = _page_size(page_size)
        if page_token:
            where = [*where, table.c.id < _id_token(page_token)]
        rows = await self._rows(
            sa.select(table).where(*where).order_by(table.c.id.desc()).limit(size + 1)
        )
        token = f"i{rows[size - 1].id}" if len(rows) > size else ""
        return rows[:size], token

    def _typed(self, error: DBAPIError) -> Exception:
        code = getattr(error.orig, "sqlite_errorcode", None)
        text = f"{self._path}: {error.orig}"
        if code is None:
            return error
        if code & 0xFF in _RETRYABLE:
            return StoreUnavailable(text)
        if isinstance(error.orig, sqlite3.OperationalError | sqlite3.DatabaseError) and (
            code & 0xFF in (10, 11)  # SQLITE_IOERR, SQLITE_CORRUPT
        ):
            self._failed = text
            return StoreFailed(text)
        return error


# -- Writing one record ----------------------------------------------------------------------------


async def _put(connection: AsyncConnection, put: PutResource) -> None:
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


async def _delete(connection: AsyncConnection, delete: DeleteResource) -> None:
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


async def _raise_epoch(
    connection: AsyncConnection, tenant: str, experiment: str, epoch: int
) -> None:
    statement = insert(t.epochs).values(tenant=tenant, experiment=experiment, epoch=epoch)
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=["tenant", "experiment"],
            set_={"epoch": statement.excluded.epoch},
            where=t.epochs.c.epoch < statement.excluded.epoch,
        )
    )


async def _put_tombstone(connection: AsyncConnection, tombstone: TombstoneRecord) -> None:
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
    await _raise_epoch(connection, tombstone.tenant, tombstone.experiment, tombstone.epoch)


async def _put_snapshot(connection: AsyncConnection, snapshot: SnapshotRecord) -> None:
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


async def _put_answer(connection: AsyncConnection, answer: AnswerRecord) -> None:
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


async def _append_rows(connection: AsyncConnection, change: Change) -> None:
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


async def _append(connection: AsyncConnection, entry: JournalEntry) -> int | None:
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


# -- Reading ---------------------------------------------------------------------------------------


def _resource(row: sa.Row[Any]) -> Resource:
    return Resource(
        Kind(row.kind),
        row.tenant,
        row.name,
        row.uid,
        row.revision,
        row.etag,
        json.loads(row.labels),
        bytes(row.spec),
        bytes(row.state),
        row.create_ms,
        row.update_ms,
    )


def _page_size(size: int) -> int:
    if size < 0:
        raise ValueError(f"page size {size}, must be >= 0")
    return min(size or 100, PAGE_MAX)


def _text_token(token: str) -> str:
    if token and not token.startswith("n"):
        raise ValueError("page token of another listing")
    return token[1:]


def _id_token(token: str) -> int:
    if not token.startswith("i") or not token[1:].isascii() or not token[1:].isdigit():
        raise ValueError("page token of another listing")
    return int(token[1:19])


# -- The file --------------------------------------------------------------------------------------


def _lock(path: Path) -> int:
    """Takes the exclusive lock beside the database, which the kernel frees when the process ends.

    Raises:
        StoreOpenError: The directory cannot be written, or another process has the lock.
    """
    lock_path = path.with_name(path.name + ".lock")
    try:
        fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreOpenError(
            f"store {path}: cannot write into its directory ({error.strerror})"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise StoreOpenError(f"store {path}: another control plane has it open") from error
    return fd


def _prepare(path: Path) -> None:
    """Creates the file with mode 0600, checks what is in it, and migrates it.

    Raises:
        StoreOpenError: It is no database, a newer version made it, or it cannot be written.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)  # -wal and -shm take the mode of the database
    except OSError as error:
        raise StoreOpenError(f"store {path}: cannot be written ({error.strerror})") from error
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1000},
    )
    _configure(engine, writer=True)
    try:
        _migrate(engine, path)
    except DBAPIError as error:
        raise StoreOpenError(f"store {path}: {error.orig}") from error
    finally:
        engine.dispose()


def _migrate(engine: sa.Engine, path: Path) -> None:
    config = Config()
    config.set_main_option("script_location", "control.store:migrations")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with engine.begin() as connection:
        if sa.inspect(connection).has_table("alembic_version"):
            rows = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars()
            if unknown := sorted(set(rows) - known):
                raise StoreOpenError(
                    f"store {path}: its schema {', '.join(unknown)} is newer than this version "
                    f"of Turnout; use the version that made it, or another file"
                )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _engine(path: Path, *, writer: bool) -> AsyncEngine:
    engine = create_async_engine(
        sa.URL.create("sqlite+aiosqlite", database=str(path)),
        poolclass=AsyncAdaptedQueuePool,
        pool_size=1 if writer else READERS,
        max_overflow=0,
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1000},
    )
    _configure(engine.sync_engine, writer=writer)
    return engine


def _configure(engine: sa.Engine, *, writer: bool) -> None:
    """Has SQLAlchemy begin every transaction itself; the driver would begin them too late."""

    @sa.event.listens_for(engine, "connect")
    def _(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        for pragma in _pragmas(writer=writer):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writer else "BEGIN")


def _pragmas(*, writer: bool) -> Iterator[str]:
    yield f"busy_timeout={BUSY_TIMEOUT_MS}"
    if writer:
        yield "journal_mode=WAL"
    yield "synchronous=FULL"
    yield "foreign_keys=ON"
    yield f"journal_size_limit={WAL_BYTES_KEPT}"
    if not writer:
        yield "query_only=ON"
