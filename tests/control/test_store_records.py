"""The store's promises about records: all or nothing, preconditions, pages, what only grows."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from control.store import open_store
from control.store.base import (
    ALERTS_PENDING_MAX,
    IDEMPOTENCY_WINDOW_MS,
    SNAPSHOTS_KEPT,
    AlertRecord,
    AlreadyExists,
    AnswerRecord,
    AuditRecord,
    Change,
    Checkpoint,
    Conflict,
    DecisionRecord,
    DeleteResource,
    EpochMark,
    Expect,
    JournalEntry,
    JournalKind,
    JournalRow,
    Kind,
    NotFound,
    PutResource,
    Resource,
    SnapshotRecord,
    Store,
    TombstoneRecord,
)

TARGET = Resource(
    kind=Kind.TARGET,
    tenant="risk",
    name="fraud",
    uid="u1",
    revision=1,
    etag="e1",
    labels={"team": "payments", "a": "b"},
    spec=b"\x00spec",
    state=b"",
    create_ms=1,
    update_ms=2,
)


@pytest.fixture(name="store")
async def _store(tmp_path: Path) -> AsyncIterator[Store]:
    store = await open_store(f"sqlite:{tmp_path / 'turnout.db'}")
    yield store
    await store.close()


async def test_resource_comes_back_as_it_was(store: Store) -> None:
    await store.commit(Change(puts=[PutResource(TARGET, Expect.ABSENT)]))
    assert await store.get(Kind.TARGET, "risk", "fraud") == TARGET
    assert await store.get(Kind.EXPERIMENT, "risk", "fraud") is None
    assert await store.get(Kind.TARGET, "other", "fraud") is None
    changed = replace(TARGET, etag="e2", revision=2, spec=b"new")
    await store.commit(Change(puts=[PutResource(changed, "e1")]))
    assert await store.get(Kind.TARGET, "risk", "fraud") == changed
    assert await store.tenants() == ["risk"]


@pytest.mark.parametrize(
    ("put", "error"),
    [
        (PutResource(TARGET, Expect.ABSENT), AlreadyExists),
        (PutResource(TARGET, "stale"), Conflict),
        (PutResource(replace(TARGET, name="other"), "e1"), NotFound),
    ],
)
async def test_nothing_is_written_when_a_precondition_fails(
    store: Store, put: PutResource, error: type[Exception]
) -> None:
    await store.commit(Change(puts=[PutResource(TARGET)]))
    other = replace(TARGET, name="a-first")
    with pytest.raises(error):
        await store.commit(
            Change(
                puts=[PutResource(other, Expect.ABSENT), put],
                tombstones=[TombstoneRecord("risk", "x", 1, "r", 1)],
                alerts=[AlertRecord("risk", 1, b"alert")],
            )
        )
    assert await store.get(Kind.TARGET, "risk", "a-first") is None
    assert await store.tombstones("risk") == []
    assert await store.pending_alerts(10) == []


async def test_one_of_many_writers_wins_when_all_expect_the_same_etag(store: Store) -> None:
    await store.commit(Change(puts=[PutResource(TARGET)]))
    writes = [
        store.commit(Change(puts=[PutResource(replace(TARGET, etag=f"new{n}"), "e1")]))
        for n in range(20)
    ]
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert sum(result is None for result in results) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 19


async def test_delete_needs_its_resource_and_its_etag(store: Store) -> None:
    await store.commit(Change(puts=[PutResource(TARGET)]))
    with pytest.raises(Conflict):
        await store.commit(Change(deletes=[DeleteResource(Kind.TARGET, "risk", "fraud", "no")]))
    await store.commit(Change(deletes=[DeleteResource(Kind.TARGET, "risk", "fraud", "e1")]))
    assert await store.get(Kind.TARGET, "risk", "fraud") is None
    with pytest.raises(NotFound):
        await store.commit(Change(deletes=[DeleteResource(Kind.TARGET, "risk", "fraud")]))


async def test_pages_hold_every_resource_once_in_order(store: Store) -> None:
    names = [f"n{number:03}" for number in range(25)]
    puts = [PutResource(replace(TARGET, name=name)) for name in reversed(names)]
    await store.commit(Change(puts=puts))
    found: list[str] = []
    token = ""
    while True:
        page = await store.list_resources(Kind.TARGET, "risk", page_size=10, page_token=token)
        found += [resource.name for resource in page.records]
        token = page.next_token
        if not token:
            break
    assert found == names
    assert [r.name for r in await store.all_resources(Kind.TARGET, "risk")] == names
    exact = await store.list_resources(Kind.TARGET, "risk", page_size=25)
    assert exact.next_token == ""


async def test_decisions_and_audits_come_newest_first_in_pages(store: Store) -> None:
    decisions = [DecisionRecord("risk", "exp", n, "HOLD", bytes([n])) for n in range(5)]
    audits = [AuditRecord("risk", n, "me", "M", f"r{n % 2}", "", "{}") for n in range(5)]
    await store.commit(Change(decisions=decisions, audits=audits))
    first = await store.decisions("risk", "exp", page_size=3)
    assert [d.time_ms for d in first.records] == [4, 3, 2]
    second = await store.decisions("risk", "exp", page_size=3, page_token=first.next_token)
    assert [(d.time_ms, d.payload, d.action) for d in second.records] == [
        (1, b"\x01", "HOLD"),
        (0, b"\x00", "HOLD"),
    ]
    assert second.next_token == ""
    assert (await store.decisions("risk", "other")).records == []
    assert [a.time_ms for a in (await store.audits("risk")).records] == [4, 3, 2, 1, 0]
    assert [a.time_ms for a in (await store.audits("risk", resource="r1")).records] == [3, 1]


@pytest.mark.parametrize("token", ["x", "i1; DROP TABLE audits", "i", "i٣"])
async def test_page_token_is_refused_when_another_listing_made_it(store: Store, token: str) -> None:
    with pytest.raises(ValueError, match="page token"):
        await store.audits("risk", page_token=token)
    with pytest.raises(ValueError, match="page token"):
        await store.list_resources(Kind.TARGET, "risk", page_token=token)
    with pytest.raises(ValueError, match="page size"):
        await store.audits("risk", page_size=-1)


async def test_tombstones_and_epochs_only_grow_and_outlive_their_experiment(store: Store) -> None:
    def tomb(epoch: int) -> TombstoneRecord:
        return TombstoneRecord("risk", "exp", epoch, f"r{epoch}", epoch)

    experiment = replace(TARGET, kind=Kind.EXPERIMENT, name="exp")
    await store.commit(Change(puts=[PutResource(experiment)], tombstones=[tomb(5)]))
    await store.commit(Change(tombstones=[tomb(3)], epochs=[EpochMark("risk", "exp", 4)]))
    assert await store.tombstones("risk") == [tomb(5)]
    assert await store.last_epoch("risk", "exp") == 5
    await store.commit(Change(epochs=[EpochMark("risk", "exp", 9)]))
    await store.commit(Change(deletes=[DeleteResource(Kind.EXPERIMENT, "risk", "exp")]))
    assert await store.last_epoch("risk", "exp") == 9
    assert await store.last_epoch("risk", "never") == 0
    assert await store.tombstones("risk") == [tomb(5)]


async def test_snapshot_versions_grow_and_only_the_last_are_kept(store: Store) -> None:
    assert await store.snapshot("risk") is None
    for version in range(1, SNAPSHOTS_KEPT + 5):
        await store.commit(Change(snapshots=[SnapshotRecord("risk", version, b"s", version)]))
    newest = SNAPSHOTS_KEPT + 4
    assert await store.snapshot("risk") == SnapshotRecord("risk", newest, b"s", newest)
    for version in (newest, 1):
        with pytest.raises(Conflict):
            await store.commit(Change(snapshots=[SnapshotRecord("risk", version, b"s", 1)]))
    await store.commit(Change(snapshots=[SnapshotRecord("other", 1, b"s", 1)]))


async def test_first_answer_to_a_request_id_stands_for_a_day(store: Store) -> None:
    first = AnswerRecord("risk", "Create", "id", b"digest", b"first", 1000)
    await store.commit(Change(answers=[first]))
    await store.commit(Change(answers=[replace(first, response=b"second")]))
    assert await store.answer("risk", "Create", "id") == first
    assert await store.answer("risk", "Update", "id") is None
    later = AnswerRecord("risk", "Create", "new", b"", b"", 1001 + IDEMPOTENCY_WINDOW_MS)
    await store.commit(Change(answers=[later]))
    assert await store.answer("risk", "Create", "id") is None


async def test_alert_stays_in_the_outbox_until_it_is_done(store: Store) -> None:
    await store.commit(Change(alerts=[AlertRecord("risk", 1, b"a"), AlertRecord("risk", 2, b"b")]))
    first, second = await store.pending_alerts(100)
    await store.alert_retry(first.id, attempts=1, next_attempt_ms=500)
    assert [alert.payload for alert in await store.pending_alerts(499)] == [b"b"]
    (again, _) = await store.pending_alerts(500)
    assert (again.payload, again.attempts) == (b"a", 1)
    await store.alert_done(first.id)
    await store.alert_done(second.id)
    assert await store.pending_alerts(10**9) == []


async def test_outbox_drops_its_oldest_when_it_is_full(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ALERTS_PENDING_MAX >= 1000
    monkeypatch.setattr("control.store.writes.ALERTS_PENDING_MAX", 3)
    for number in range(5):
        await store.commit(Change(alerts=[AlertRecord("risk", number, bytes([number]))]))
    assert [a.created_ms for a in await store.pending_alerts(100)] == [2, 3, 4]


async def test_tenant_key_is_random_and_stays(store: Store, tmp_path: Path) -> None:
    keys = await asyncio.gather(*(store.tenant_key("risk") for _ in range(10)))
    assert len(set(keys)) == 1
    assert len(keys[0]) == 32
    assert await store.tenant_key("other") != keys[0]
    assert await store.tenants() == ["other", "risk"]
    for path in tmp_path.iterdir():  # the key is in the log before it is in the database
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def delta(seq: int, *, tenant: str = "risk", source: str = "i") -> JournalEntry:
    return JournalEntry(tenant, JournalKind.DELTA, bytes([seq % 256]), 5, source, seq)


async def test_journal_keeps_a_delta_once_and_other_entries_as_often_as_they_come(
    store: Store,
) -> None:
    outcome = JournalEntry("risk", JournalKind.OUTCOME, b"o", 6)
    ids = await store.append_journal(
        [delta(1), delta(1), delta(1, source="j"), delta(1, tenant="t2"), outcome, outcome]
    )
    assert ids[1] is None
    assert sum(row_id is not None for row_id in ids) == 5
    assert await store.append_journal([delta(1)]) == [None]
    rows = await store.read_journal("risk")
    assert [row.entry for row in rows] == [delta(1), delta(1, source="j"), outcome, outcome]
    assert [row.id for row in rows] == [i for i in ids[:3] + ids[4:] if i is not None]
    assert [row.id for row in await store.read_journal("risk", after_id=rows[1].id)] == [
        row.id for row in rows[2:]
    ]
    assert len(await store.read_journal("risk", limit=2)) == 2


async def test_committed_rows_are_told_in_the_order_of_ids_over_all_callers(store: Store) -> None:
    told: list[JournalRow] = []
    calls = [
        store.append_journal([delta(n), delta(n + 1000), delta(n)], told.append)
        for n in range(1, 301)
    ]
    results = await asyncio.gather(*calls)
    assert [row.id for row in told] == sorted(row.id for row in told)
    assert [row for row in told if row.entry.tenant == "risk"] == await store.read_journal("risk")
    assert all(ids[2] is None for ids in results)


async def test_failing_callback_fails_its_own_caller_only(store: Store) -> None:
    def fails(_: JournalRow) -> None:
        raise RuntimeError("a bug")

    bad, good = await asyncio.gather(
        store.append_journal([delta(1)], fails),
        store.append_journal([delta(2)]),
        return_exceptions=True,
    )
    assert isinstance(bad, RuntimeError)
    assert isinstance(good, list)
    assert len(await store.read_journal("risk")) == 2


async def test_entry_that_cannot_be_stored_fails_and_the_next_is_stored(store: Store) -> None:
    with pytest.raises(OverflowError):
        await store.append_journal([delta(2**64 - 1)])
    assert await store.append_journal([delta(1)]) != [None]


async def test_cancelled_caller_does_not_take_others_or_its_own_write_with_it(
    store: Store,
) -> None:
    commit = asyncio.create_task(store.commit(Change(puts=[PutResource(TARGET)])))
    cancelled = asyncio.create_task(store.append_journal([delta(1)]))
    stays = asyncio.create_task(store.append_journal([delta(2)]))
    await asyncio.sleep(0)
    commit.cancel()
    cancelled.cancel()
    (row_id,) = await stays
    assert row_id is not None
    # The writer is free again, and nothing was cut in two.
    await store.commit(Change(epochs=[EpochMark("risk", "x", 1)]))
    assert len(await store.read_journal("risk")) == 2
    assert await store.get(Kind.TARGET, "risk", "fraud") == TARGET


async def test_checkpoint_replaces_the_rows_that_it_covers(store: Store) -> None:
    assert await store.checkpoint("risk") is None
    ids = await store.append_journal([delta(1), delta(2), delta(3), delta(1, tenant="other")])
    assert ids[1] is not None
    await store.save_checkpoint(Checkpoint("risk", ids[1], 7, b"book"))
    assert await store.checkpoint("risk") == Checkpoint("risk", ids[1], 7, b"book")
    assert [row.entry.seq for row in await store.read_journal("risk")] == [3]
    assert len(await store.read_journal("other")) == 1
    await store.save_checkpoint(Checkpoint("risk", ids[0] or 0, 9, b"older"))
    assert (await store.checkpoint("risk") or Checkpoint("", 0, 0, b"")).payload == b"book"
    # Ids are not given again, or a later checkpoint would cover rows that it has not seen.
    await store.save_checkpoint(Checkpoint("risk", 10**6, 8, b"book2"))
    (new_id,) = await store.append_journal([delta(4)])
    assert new_id is not None
    assert ids[3] is not None
    assert new_id > ids[3]
