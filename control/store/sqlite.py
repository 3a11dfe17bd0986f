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
import json
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control.store import sqlite_file, writes
from control.store import tables as t
from control.store.base import (
    PAGE_MAX,
    AlertRecord,
    AnswerRecord,
    AuditRecord,
    Change,
    Checkpoint,
    Committed,
    DecisionRecord,
    JournalEntry,
    JournalKind,
    JournalRow,
    Kind,
    Page,
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
JOURNAL_BATCH_MAX: Final = 512  # entries committed together

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
        lock_fd = sqlite_file.lock(path)
        try:
            await asyncio.to_thread(sqlite_file.prepare, path)
        except BaseException:
            os.close(lock_fd)
            raise
        return cls(
            path,
            lock_fd,
            sqlite_file.engine(path, writer=True),
            sqlite_file.engine(path, writer=False),
        )

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
                await writes.put(connection, put)
            for delete in change.deletes:
                await writes.delete(connection, delete)
            for mark in change.epochs:
                await writes.raise_epoch(connection, mark.tenant, mark.experiment, mark.epoch)
            for tombstone in change.tombstones:
                await writes.put_tombstone(connection, tombstone)
            for snapshot in change.snapshots:
                await writes.put_snapshot(connection, snapshot)
            for answer in change.answers:
                await writes.put_answer(connection, answer)
            await writes.append_rows(connection, change)

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
                    ids = [await writes.append(connection, append.entry) for append in batch]
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
