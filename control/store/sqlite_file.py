"""The database file of the SQLite store: its lock, mode, schema and connections.

Owns everything that happens before the first transaction. Refuses a file that somebody else has
open, that is no database, or that a newer version made.
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from control.store.base import StoreOpenError

BUSY_TIMEOUT_MS: Final = 5000
READERS: Final = 4
WAL_BYTES_KEPT: Final = 64 * 1024 * 1024  # the log is cut back to this after a checkpoint

REMEDY: Final = "free the disk, make it writable for this user, or choose another --store"


def lock(path: Path) -> int:
    """Takes the exclusive lock beside the database, which the kernel frees when the process ends.

    Raises:
        StoreOpenError: The directory cannot be written, or another process has the lock.
    """
    lock_path = path.with_name(path.name + ".lock")
    try:
        fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreOpenError(
            f"store {path}: cannot write into its directory ({error.strerror}): {REMEDY}"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise StoreOpenError(
            f"store {path}: another control plane has it open: stop it, or "
            "give this one a --store of its own"
        ) from error
    return fd


def prepare(path: Path) -> None:
    """Creates the file with mode 0600, checks what is in it, and migrates it.

    Raises:
        StoreOpenError: It is no database, a newer version made it, or it cannot be written.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)  # -wal and -shm take the mode of the database
    except OSError as error:
        raise StoreOpenError(
            f"store {path}: cannot be written ({error.strerror}): {REMEDY}"
        ) from error
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1000},
    )
    _configure(engine, writer=True)
    try:
        _migrate(engine, path)
    except DBAPIError as error:
        remedy = f": {REMEDY}" if "full" in str(error.orig) or "readonly" in str(error.orig) else ""
        raise StoreOpenError(f"store {path}: {error.orig}{remedy}") from error
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


def engine(path: Path, *, writer: bool) -> AsyncEngine:
    """Connections to the file: one for writing, or READERS that cannot write."""
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
