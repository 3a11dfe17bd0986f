"""A writer is killed again and again: what it acknowledged is there, nothing is by half."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from control.journal import Book, Journal
from control.store.base import JournalEntry, JournalKind, Kind
from control.store.sqlite import SqliteStore
from tests.control.deltas import EPOCH_START_MS, START_MS
from tests.control.store_writer import TENANT, delta_of

CYCLES = 20
SOAK_CYCLES = 1000
ACKS_BEFORE_KILL_MAX = 60


def killed_writer(path: Path, acks: int) -> dict[str, int]:
    """Kills a writer after `acks` acknowledged steps; the last number of each kind."""
    last = {"delta": 0, "change": 0}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.control.store_writer", str(path)], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        for _ in range(acks):
            line = writer.stdout.readline()
            assert line, f"the writer ended by itself with {writer.wait()}"
            kind, number = line.split()
            last[kind.decode()] = int(number)
        writer.kill()
        # What it said before it died counts, too; a last line may be torn.
        for line in writer.stdout.read().split(b"\n")[:-1]:
            kind, number = line.split()
            last[kind.decode()] = int(number)
    return last


async def check(path: Path, acknowledged: dict[str, int]) -> None:
    raw = sqlite3.connect(path)
    assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    raw.close()
    store = await SqliteStore.open(f"sqlite:{path}")
    journal = await Journal.recover(store, TENANT)
    deltas = 0
    while journal.evidence.has_delta("i", deltas + 1):
        deltas += 1
    assert deltas >= acknowledged["delta"]
    assert journal.to_bytes() == expected(deltas)
    resource = await store.get(Kind.TARGET, TENANT, "x")
    changes = resource.revision if resource else 0
    assert changes >= acknowledged["change"]
    decisions = await store.decisions(TENANT, "exp", page_size=1)
    tombstones = await store.tombstones(TENANT)
    assert [d.time_ms for d in decisions.records] == ([changes] if changes else [])
    assert [t.epoch for t in tombstones] == ([changes] if changes else [])
    await store.close()


def expected(deltas: int) -> bytes:
    """The book of a process that was never killed."""
    book = Book()
    book.evidence.begin_epoch("exp", 1, EPOCH_START_MS, "fraud")
    for number in range(1, deltas + 1):
        payload = delta_of(number).SerializeToString()
        entry = JournalEntry(TENANT, JournalKind.DELTA, payload, START_MS + number, "i", number)
        book.apply(entry)
    return book.to_bytes()


def kill_loop(path: Path, cycles: int) -> None:
    chance = random.Random(11)
    acknowledged = {"delta": 0, "change": 0}
    for _ in range(cycles):
        last = killed_writer(path, chance.randint(1, ACKS_BEFORE_KILL_MAX))
        acknowledged = {kind: max(n, last[kind]) for kind, n in acknowledged.items()}
        asyncio.run(check(path, acknowledged))
    assert acknowledged["delta"] > cycles
    assert acknowledged["change"] > cycles


def test_no_acknowledged_write_is_lost_when_the_writer_is_killed(tmp_path: Path) -> None:
    kill_loop(tmp_path / "s.db", CYCLES)


@pytest.mark.soak
def test_no_acknowledged_write_is_lost_over_a_thousand_kills(tmp_path: Path) -> None:
    kill_loop(tmp_path / "s.db", SOAK_CYCLES)
