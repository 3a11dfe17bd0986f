"""A restart comes to the same evidence, byte for byte, wherever it happened."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from control.evidence import ImpossibleCounts, InvalidDelta
from control.ingest import SpanFact, request_hash
from control.journal import CHECKPOINT_EVERY_MS, Book, Journal
from control.store.base import Checkpoint, JournalKind, StoreOpenError, StoreUnavailable
from control.store.sqlite import SqliteStore
from tests.control.deltas import (
    EPOCH_START_MS,
    START_MS,
    batch,
    cell,
    count,
    exposures,
    first_bad,
)
from turnout.v1alpha1.config_service_pb2 import ROLE_SERVED, CountDelta, DeltaBatch
from turnout.v1alpha1.outcome_service_pb2 import Outcome

TRACE = b"\x05" * 16


def some_delta(chance: random.Random, seq: int, instance: str) -> DeltaBatch:
    variant = chance.choice(["control", "v2"])
    epoch = chance.randint(1, 3)
    rows = [(request_hash(b"r%d" % chance.randrange(400)), chance.randrange(50)) for _ in range(5)]
    return batch(
        seq,
        instance=instance,
        counts=[count(variant, epoch=epoch, requests=5, latency={chance.randrange(99): 5})],
        bad=[first_bad(variant, [chance.randrange(50)], slot=chance.randrange(9), epoch=epoch)],
        exposed=[exposures(variant, rows, epoch=epoch)],
    )


async def some_step(journal: Journal, chance: random.Random, now_ms: int) -> None:
    """One random thing that happens to a tenant."""
    match chance.randrange(8):
        case 0 | 1 | 2:
            delta = some_delta(chance, chance.randint(1, 60), chance.choice(["a", "b"]))
            await journal.add_delta(delta, now_ms)
        case 3 | 4:
            label = chance.choice(["yes", "no"])
            outcome = Outcome(request_id=f"r{chance.randrange(400)}", label=label)
            await journal.add_outcomes([outcome], now_ms)
        case 5 | 6:
            request = request_hash(b"r%d" % chance.randrange(400))
            shadow, error = chance.random() < 0.2, chance.random() < 0.1
            fact = SpanFact(request, "yes", None, None, None, shadow, TRACE, error)
            await journal.add_spans((fact,), now_ms)
        case _:
            epoch = chance.randint(1, 3)
            await journal.begin_epoch("exp", epoch, EPOCH_START_MS + epoch, "fraud", now_ms)


@pytest.mark.parametrize("seed", range(3))
async def test_evidence_is_what_it_was_after_restarts_at_random_points(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    url = f"sqlite:{tmp_path / 's.db'}"
    store = await SqliteStore.open(url)
    journal = await Journal.recover(store, "t")
    checkpoints = 0
    for step in range(400):
        now_ms = START_MS + step * 1000
        await some_step(journal, chance, now_ms)
        if chance.random() < 0.03:
            checkpoints += await journal.checkpoint(now_ms, force=True)
        if chance.random() < 0.03:
            before = journal.to_bytes()
            await store.close()
            store = await SqliteStore.open(url)
            journal = await Journal.recover(store, "t")
            assert journal.to_bytes() == before
    seen = journal.evidence.variants("exp")
    assert checkpoints > 3
    assert seen["v2"].labelled > seen["v2"].correct > 0
    assert seen["v2"].requests > 0
    await store.close()


async def test_concurrent_callers_are_applied_in_the_order_of_the_journal(tmp_path: Path) -> None:
    store = await SqliteStore.open(f"sqlite:{tmp_path / 's.db'}")
    journal = await Journal.recover(store, "t")
    chance = random.Random(3)
    steps = [some_step(journal, chance, START_MS + n) for n in range(200)]
    await asyncio.gather(*steps)
    again = await Journal.recover(store, "t")
    assert again.to_bytes() == journal.to_bytes()
    await store.close()


async def test_delta_counts_once_when_its_row_was_dropped_by_a_checkpoint(tmp_path: Path) -> None:
    store = await SqliteStore.open(f"sqlite:{tmp_path / 's.db'}")
    journal = await Journal.recover(store, "t")
    delta = batch(1, counts=[count(requests=7)])
    assert await journal.add_delta(delta, START_MS)
    assert await journal.checkpoint(START_MS, force=True)
    assert await store.read_journal("t") == []
    again = await Journal.recover(store, "t")
    for known in (journal, again):
        assert not await known.add_delta(delta, START_MS)
        assert known.evidence.variants("exp", 1)["control"].requests == 7
    assert await store.read_journal("t") == []
    await store.close()


async def test_label_after_a_checkpoint_joins_an_exposure_before_it(tmp_path: Path) -> None:
    store = await SqliteStore.open(f"sqlite:{tmp_path / 's.db'}")
    journal = await Journal.recover(store, "t")
    request = request_hash(b"r1")
    await journal.add_delta(batch(1, exposed=[exposures("v2", [(request, 9)])]), START_MS)
    await journal.checkpoint(START_MS, force=True)
    journal = await Journal.recover(store, "t")
    outcome = Outcome(request_id="r1", label="yes", prediction="yes")
    await journal.add_outcomes([outcome], START_MS)
    journal = await Journal.recover(store, "t")
    seen = journal.evidence.variants("exp", 1)["v2"]
    assert (seen.labelled, seen.correct) == (1, 1)
    await store.close()


async def test_checkpoint_is_written_when_it_is_due_and_something_is_new(tmp_path: Path) -> None:
    store = await SqliteStore.open(f"sqlite:{tmp_path / 's.db'}")
    journal = await Journal.recover(store, "t")
    assert not await journal.checkpoint(START_MS)
    await journal.add_delta(batch(1), START_MS)
    assert await journal.checkpoint(START_MS)
    await journal.add_delta(batch(2), START_MS)
    assert not await journal.checkpoint(START_MS + CHECKPOINT_EVERY_MS - 1)
    assert await journal.checkpoint(START_MS + CHECKPOINT_EVERY_MS)
    assert not await journal.checkpoint(START_MS + 10 * CHECKPOINT_EVERY_MS)
    await store.close()


async def test_nothing_is_stored_or_counted_when_a_delta_is_invalid(tmp_path: Path) -> None:
    store = await SqliteStore.open(f"sqlite:{tmp_path / 's.db'}")
    journal = await Journal.recover(store, "t")
    before = journal.to_bytes()
    with pytest.raises(InvalidDelta):
        await journal.add_delta(batch(1, counts=[count("")]), START_MS)
    assert journal.to_bytes() == before
    assert await store.read_journal("t") == []
    await store.close()


FIVE = {3: 5, 900: 2}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            batch(1, counts=[count(), count(requests=5, errors=6)]),
            "counts[1].errors == 6, must be <= requests == 5",
        ),
        (
            batch(1, counts=[count(requests=5, latency={7: 4, 9: 2})]),
            "counts[0].latency_counts + latency_zero == 6, must be <= requests == 5",
        ),
        (
            batch(1, counts=[CountDelta(experiment="e", variant="v", role=ROLE_SERVED, slow=1)]),
            "counts[0].slow == 1, must be <= requests == 0",
        ),
        (
            batch(1, cells=[cell("v2", FIVE), cell("v2", FIVE, errors={3: 5, 900: 3})]),
            "cells[1].errors[900] == 3, must be <= requests == 2 of this bucket",
        ),
        (
            batch(1, cells=[cell("v2", FIVE, slow={4: 1})]),
            "cells[0].slow[4] == 1, must be <= requests == 0 of this bucket",
        ),
        (
            batch(1, cells=[cell("v2", FIVE, over={200.0: {3: 5}, 250.0: {900: 7}})]),
            "cells[0].over[1].requests[900] == 7, must be <= requests == 2 of this bucket",
        ),
    ],
)
async def test_delta_is_refused_whole_when_part_of_its_requests_is_more_than_all(
    wrong: DeltaBatch, message: str, tmp_path: Path
) -> None:
    store = await SqliteStore.open(f"sqlite:{tmp_path / 's.db'}")
    journal = await Journal.recover(store, "t")
    before = journal.to_bytes()
    with pytest.raises(ImpossibleCounts) as caught:
        await journal.add_delta(wrong, START_MS)
    assert str(caught.value) == message
    assert journal.to_bytes() == before
    assert await store.read_journal("t") == []
    await store.close()


async def test_journal_is_recovered_when_an_older_version_stored_impossible_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await SqliteStore.open(f"sqlite:{tmp_path / 's.db'}")
    journal = await Journal.recover(store, "t")
    odd = batch(1, counts=[count(requests=5, errors=6)])
    with monkeypatch.context() as older:
        older.setattr("control.journal.check_counts", lambda _: None)
        await journal.add_delta(odd, START_MS)
    again = await Journal.recover(store, "t")
    assert again.to_bytes() == journal.to_bytes()
    # Sent again, as its acknowledgement was lost: known, and so no longer refused.
    assert not await again.add_delta(odd, START_MS)
    await store.close()


async def test_nothing_counts_when_it_could_not_be_stored(tmp_path: Path) -> None:
    store = await SqliteStore.open(f"sqlite:{tmp_path / 's.db'}")
    journal = await Journal.recover(store, "t")
    async with store._writer.connect() as connection:
        pages = (await connection.exec_driver_sql("PRAGMA page_count")).scalar_one()
        await connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    before = journal.to_bytes()
    rows = [(n, n) for n in range(20_000)]
    with pytest.raises(StoreUnavailable):
        await journal.add_delta(batch(1, exposed=[exposures("v2", rows)]), START_MS)
    assert journal.to_bytes() == before
    await store.close()


async def test_damaged_checkpoint_is_said_and_not_taken_for_nothing(tmp_path: Path) -> None:
    store = await SqliteStore.open(f"sqlite:{tmp_path / 's.db'}")
    payload = bytearray(Book().to_bytes())
    payload[-1] ^= 1
    await store.save_checkpoint(Checkpoint("t", 5, 1, bytes(payload)))
    with pytest.raises(StoreOpenError, match=r"tenant 't'.*checksum"):
        await Journal.recover(store, "t")
    await store.close()


async def test_forgotten_experiment_stays_forgotten_after_a_restart(tmp_path: Path) -> None:
    store = await SqliteStore.open(f"sqlite:{tmp_path / 's.db'}")
    journal = await Journal.recover(store, "t")
    await journal.add_delta(batch(1, counts=[count()]), START_MS)
    await journal.forget("exp", START_MS)
    journal = await Journal.recover(store, "t")
    assert journal.evidence.variants("exp") == {}
    assert {row.entry.kind for row in await store.read_journal("t")} == {
        JournalKind.DELTA,
        JournalKind.FORGET,
    }
    await store.close()


async def test_raw_ids_are_nowhere_in_the_file(tmp_path: Path) -> None:
    store = await SqliteStore.open(f"sqlite:{tmp_path / 's.db'}")
    journal = await Journal.recover(store, "t")
    outcome = Outcome(request_id="canary-request", label="canary-label", prediction="x")
    await journal.add_outcomes([outcome], START_MS)
    await journal.checkpoint(START_MS, force=True)
    await store.close()
    for path in tmp_path.iterdir():
        assert b"canary" not in path.read_bytes()
