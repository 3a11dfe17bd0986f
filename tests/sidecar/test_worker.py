"""A worker's handler: which plan answers, what is counted, and that nobody waits for a log."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from sidecar.counters import CounterFile
from sidecar.logfold import ENTRIES_AT_ONCE
from sidecar.plan import Plan
from sidecar.protocol import PeerError
from sidecar.work import Work
from tests.integration.extproc import entry_of, request_of
from tests.sidecar.test_config import KEY, snapshot
from turnout.contract import ACCESS_LOG_SERVED
from turnout.envoy.access_log_pb2 import StreamAccessLogsMessage

STAMP = "fraud-v2;1;v2;0;0123456789abcdef"


@pytest.fixture
def work() -> Iterator[Work]:
    counters = CounterFile.create("test")
    work = Work(counters)
    yield work
    del work
    counters.cells.release()


def plan(slot: int = 5) -> Plan:
    message = snapshot()
    message.experiments[0].ClearField("segment")
    slots = {("fraud-v2", 1, "v2"): slot, ("fraud-v2", 1, "control"): slot}
    return Plan.build(message, tenant_key=KEY, dead={}, open_gates=None, slots=slots)


def test_worker_is_not_healthy_and_counts_when_it_has_no_plan(work: Work) -> None:
    assert not work.healthy()
    assert work.process(request_of("u").SerializeToString()) is None
    assert work.fold.take().targets[""].no_snapshot == 1


def test_answer_is_counted_in_its_slot_when_a_plan_serves(work: Work) -> None:
    counters = CounterFile.create("test")
    work = Work(counters)
    work.serve(plan())
    assert work.healthy()
    assert work.process(request_of("u").SerializeToString())
    assert counters.cells[5] == 1
    assert work.fold.take().targets["fraud"].answered == 1


def test_request_that_cannot_be_read_is_the_peers_error(work: Work) -> None:
    work.serve(plan())
    with pytest.raises(PeerError):
        work.process(b"\xff")


async def test_log_that_cannot_be_read_is_the_peers_error(work: Work) -> None:
    with pytest.raises(PeerError):
        await work.access_log(b"\xff", "")


async def test_log_keeps_its_name_when_later_messages_have_none(work: Work) -> None:
    first = entry_of(STAMP)
    name = await work.access_log(first.SerializeToString(), "")
    assert name == ACCESS_LOG_SERVED
    first.ClearField("identifier")
    assert await work.access_log(first.SerializeToString(), name) == name
    (counts,) = work.fold.take().counts.values()
    assert counts.requests == 2


async def test_others_run_while_a_large_message_is_folded(work: Work) -> None:
    message = StreamAccessLogsMessage()
    slices = 20
    for _ in range(slices * ENTRIES_AT_ONCE):
        message.MergeFrom(entry_of(STAMP))
    folding = asyncio.create_task(work.access_log(message.SerializeToString(), ""))
    turns = 0
    while not folding.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= slices
    assert sum(c.requests for c in work.fold.take().counts.values()) == slices * ENTRIES_AT_ONCE
