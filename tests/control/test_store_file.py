"""The database file: who may open it, what is said when it cannot be, what failed writes do."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from control.store.base import (
    AlertRecord,
    Change,
    EpochMark,
    JournalEntry,
    JournalKind,
    Kind,
    StoreFailed,
    StoreOpenError,
    StoreUnavailable,
)
from control.store.sqlite import SqliteStore, path_of_url
from control.store.sqlite_file import engine
from control.store.tables import metadata

MARK = Change(epochs=[EpochMark("t", "exp", 1)])


async def opened(path: Path) -> SqliteStore:
    return await SqliteStore.open(f"sqlite:{path}")


@pytest.mark.parametrize(
    "url", ["", "sqlite:", "turnout.db", "postgres://x", "sqlite::memory:", "sqlite"]
)
def test_url_is_refused_when_it_names_no_file(url: str) -> None:
    with pytest.raises(StoreOpenError, match="expected sqlite:PATH"):
        path_of_url(url)


def test_url_names_relative_and_absolute_paths() -> None:
    assert path_of_url("sqlite:a/b.db") == Path("a/b.db")
    assert path_of_url("sqlite:/a/b c.db") == Path("/a/b c.db")


@pytest.mark.parametrize("name", ["turnout.db", "with space?and#more%20.db"])
async def test_what_was_committed_is_there_when_it_is_opened_again(
    tmp_path: Path, name: str
) -> None:
    store = await opened(tmp_path / name)
    await store.commit(MARK)
    await store.close()
    again = await opened(tmp_path / name)
    assert await again.last_epoch("t", "exp") == 1
    await again.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, name + ".lock"])


async def test_pragmas_are_those_that_promise_durability(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s.db")
    for connections in (store._writer, store._readers):
        async with connections.connect() as connection:
            for pragma, value in (
                ("journal_mode", "wal"),
                ("synchronous", 2),
                ("foreign_keys", 1),
                ("busy_timeout", 5000),
            ):
                row = await connection.exec_driver_sql(f"PRAGMA {pragma}")
                assert row.scalar_one() == value, pragma
    await store.close()


async def test_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    await (await opened(tmp_path / "s.db")).close()
    plain = sa.create_engine(f"sqlite:///{tmp_path / 's.db'}")
    with plain.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    plain.dispose()


async def test_second_process_is_refused_while_the_first_has_it_open(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s.db")
    with pytest.raises(StoreOpenError, match="another control plane has it open"):
        await opened(tmp_path / "s.db")
    code = (
        "import asyncio, sys; from control.store.sqlite import SqliteStore\n"
        "asyncio.run(SqliteStore.open(sys.argv[1]))"
    )
    run = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code, f"sqlite:{tmp_path / 's.db'}"],
        capture_output=True,
        check=False,
    )
    assert b"another control plane has it open" in run.stderr
    await store.close()
    await (await opened(tmp_path / "s.db")).close()


async def test_missing_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreOpenError, match=r"nowhere.*No such file or directory"):
        await opened(tmp_path / "nowhere" / "s.db")


async def test_read_only_directory_is_said() -> None:
    # Not even root can make a file there.
    with pytest.raises(StoreOpenError, match=r"/proc/s\.db: cannot write into its directory"):
        await opened(Path("/proc/s.db"))


async def test_file_is_refused_when_it_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(b"this is a letter to my aunt, not a database. " * 50)
    before = path.read_bytes()
    with pytest.raises(StoreOpenError, match="not a database"):
        await opened(path)
    assert path.read_bytes() == before
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreOpenError, match="directory"):
        await opened(path)


async def test_schema_is_refused_when_it_is_newer_than_the_code(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    await (await opened(path)).close()
    raw = sqlite3.connect(path)
    raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.commit()
    raw.close()
    with pytest.raises(StoreOpenError, match="schema 9999 is newer than this version"):
        await opened(path)
    # The failed attempt must not keep the lock.
    with pytest.raises(StoreOpenError, match="newer"):
        await opened(path)


async def test_writes_are_unavailable_and_reads_go_on_when_another_process_holds_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.store.sqlite_file.BUSY_TIMEOUT_MS", 50)
    store = await opened(tmp_path / "s.db")
    await store.commit(MARK)
    raw = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    raw.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        await store.commit(MARK)
    with pytest.raises(StoreUnavailable):
        await store.append_journal([JournalEntry("t", JournalKind.SPAN, b"x", 1)])
    assert await store.last_epoch("t", "exp") == 1
    raw.execute("ROLLBACK")
    raw.close()
    await store.commit(Change(epochs=[EpochMark("t", "exp", 2)]))
    assert await store.last_epoch("t", "exp") == 2
    assert await store.read_journal("t") == []
    await store.close()


async def test_writes_are_unavailable_and_reads_go_on_when_the_disk_is_full(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s.db")
    await store.commit(MARK)
    async with store._writer.connect() as connection:
        pages = (await connection.exec_driver_sql("PRAGMA page_count")).scalar_one()
        await connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    big = Change(epochs=[EpochMark("t", "exp", 2)], alerts=[AlertRecord("t", 1, bytes(1_000_000))])
    with pytest.raises(StoreUnavailable, match="full"):
        await store.commit(big)
    with pytest.raises(StoreUnavailable, match="full"):
        await store.append_journal([JournalEntry("t", JournalKind.SPAN, bytes(1_000_000), 1)])
    assert await store.last_epoch("t", "exp") == 1
    async with store._writer.connect() as connection:
        await connection.exec_driver_sql("PRAGMA max_page_count=100000")
    await store.commit(big)
    assert await store.last_epoch("t", "exp") == 2
    await store.close()


async def test_no_write_is_tried_again_after_the_file_was_found_damaged(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = await opened(path)
    await store.commit(Change(alerts=[AlertRecord("t", 1, bytes(200_000))]))
    await store.close()
    with path.open("r+b") as file:  # every page but the first
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    # The damaged file cannot be opened the usual way.
    damaged = SqliteStore(
        path, os.open(tmp_path, os.O_RDONLY), engine(path, writer=True), engine(path, writer=False)
    )
    with pytest.raises(StoreFailed):
        await damaged.commit(MARK)
    with pytest.raises(StoreFailed):
        await damaged.append_journal([JournalEntry("t", JournalKind.SPAN, b"x", 1)])
    with pytest.raises(StoreFailed):
        await damaged.get(Kind.TARGET, "t", "x")
    await damaged.close()


def test_migrations_ship_with_the_package() -> None:
    import control.store.migrations as package

    folder = Path(package.__path__[0])
    assert (folder / "env.py").is_file()
    assert sorted(p.name for p in (folder / "versions").glob("v*.py"))
