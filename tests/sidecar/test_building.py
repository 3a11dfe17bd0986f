"""Plans are built and let go of without holding the loop."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from sidecar.building import build, in_slices, let_go, read
from sidecar.ipc import PlanOrder
from sidecar.snapshotcheck import InvalidSnapshot
from tests.sidecar.test_config import KEY, snapshot
from turnout.v1alpha1.snapshot_pb2 import Snapshot

EXPERIMENTS = 300


def order_of(message: Snapshot) -> PlanOrder:
    return PlanOrder(1, message.SerializeToString(), KEY)


def many(count: int = EXPERIMENTS, *, salt: str = "") -> Snapshot:
    """A snapshot of many targets with an experiment each."""
    message = snapshot()
    target, experiment = message.targets[0], message.experiments[0]
    for i in range(count):
        one = message.targets.add()
        one.CopyFrom(target)
        one.name = f"t{i}"
        one.path_prefix = f"/t{i}"
        other = message.experiments.add()
        other.CopyFrom(experiment)
        other.name, other.target = f"e{i}", one.name
        other.salt = f"{other.salt}{salt}"
    return message


async def turns_while(work: asyncio.Future[Any]) -> int:
    turns = 0
    while not work.done():
        await asyncio.sleep(0)
        turns += 1
    return turns


async def test_others_run_while_a_plan_is_built() -> None:
    building = asyncio.create_task(build(order_of(many()), None))
    assert await turns_while(building) > 10
    plan = building.result()
    assert len(plan.targets) == EXPERIMENTS + 1
    assert gc.isenabled()


async def test_others_run_while_an_order_is_read() -> None:
    slots = {(f"e{i}", 1, "v2"): i for i in range(20_000)}
    gates = frozenset((f"e{i}", 1) for i in range(10_000))
    order = PlanOrder(1, b"s", KEY, open_gates=gates, slots=slots)
    reading = asyncio.create_task(read(order.encode()))
    assert await turns_while(reading) > 10
    assert reading.result() == order


async def test_next_plan_is_built_from_the_one_before() -> None:
    before = await build(order_of(many()), None)
    after = await build(order_of(many()), before)
    assert set(map(id, after.parts())) & set(map(id, before.parts()))


async def test_reason_is_given_and_the_collector_runs_on_when_a_snapshot_is_invalid() -> None:
    bad = snapshot()
    bad.experiments[0].target = "nowhere"
    with pytest.raises(InvalidSnapshot):
        await build(order_of(bad), None)
    assert gc.isenabled()


async def test_others_run_while_a_plan_is_let_go_of() -> None:
    class Slow:
        def __del__(self) -> None:
            sum(range(20_000))

    parts: list[object] = [Slow() for _ in range(100)]
    freeing = asyncio.create_task(let_go(parts))
    assert await turns_while(freeing) > 10
    assert not parts


async def test_all_steps_are_done_when_they_are_short() -> None:
    done = iter([None] * 1_000)
    await in_slices(done)
    assert not list(done)
