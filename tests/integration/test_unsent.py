"""No count is lost when a sidecar ends while the control plane is away."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.extproc import WorkerClient, entry_of, request_of
from tests.integration.harness import (
    FakeControl,
    Request,
    Sidecar,
    Stage,
    one_experiment,
    one_target,
    wait_for,
)
from tests.integration.snapshots import EXPERIMENT

USERS = [f"user-{i}" for i in range(40)]
CONNECT_S = 40.0


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage() as stage:
        yield stage


def unsent(stage: Stage) -> list[Path]:
    directory = stage.directory / "state" / "unsent"
    return sorted(directory.iterdir()) if directory.exists() else []


async def counting(stage: Stage, fake: FakeControl) -> Sidecar:
    """A sidecar without Envoy, with a plan."""
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    sidecar = await stage.sidecar(control=fake.address, workers=1, envoy_admin=False)
    fake.push(one_experiment(v1, v2, {"v2": 0.5}, version=1))
    assert not (await fake.acked(1)).violations
    return sidecar


async def answer_all(stage: Stage) -> None:
    async with WorkerClient(Path(f"{stage.socket}.0")) as client:
        answers = [await client.process(request_of(user)) for user in USERS]
        stamps = [headers["x-turnout"] for headers in answers if headers]
        await client.log(*(entry_of(stamp, request_id=f"r{i}") for i, stamp in enumerate(stamps)))


def total(fake: FakeControl, field: str) -> int:
    return sum(fake.total(field).values())


def in_buckets(fake: FakeControl) -> int:
    """Requests by bucket of units; each batch once."""
    cells = (cell for batch in fake.batches.values() for cell in batch.cells)
    return sum(sum(cell.requests.counts) for cell in cells)


def units(fake: FakeControl) -> int:
    """Distinct units of the sample, over all batches."""
    told = (one for batch in fake.batches.values() for one in batch.units)
    return len(
        {one.unit_hashes[i : i + 8] for one in told for i in range(0, len(one.unit_hashes), 8)}
    )


@pytest.mark.parametrize("received", [False, True])
async def test_counts_are_sent_by_the_next_start_when_the_sidecar_stops_without_control(
    stage: Stage, received: bool
) -> None:
    fake = await stage.fake_control()
    sidecar = await counting(stage, fake)
    instance = fake.hellos[-1].instance_id
    if received:
        # The control plane has the batch, but its acknowledgement never came.
        fake.acknowledge = False
        await answer_all(stage)
        await wait_for(lambda: total(fake, "requests") == len(USERS), "the batch came")
    await fake.stop()
    if not received:
        await answer_all(stage)
    assert await sidecar.stop() == 0
    assert unsent(stage)
    assert "the next start sends them" in sidecar.output()
    fake.acknowledge = True
    await fake.start()
    await stage.sidecar(control=fake.address, workers=1, envoy_admin=False)
    await wait_for(lambda: not unsent(stage), "all are acknowledged", timeout_s=CONNECT_S)
    assert total(fake, "decided") == len(USERS)
    assert total(fake, "requests") == in_buckets(fake) == units(fake) == len(USERS)
    seqs = sorted(seq for name, seq in fake.batches if name == instance)
    assert seqs == list(range(1, len(seqs) + 1)), "under their own number, without a gap"
    assert (fake.repeats > 0) == received


async def test_counts_are_sent_by_the_next_start_when_the_sidecar_is_killed_without_control(
    stage: Stage,
) -> None:
    fake = await stage.fake_control()
    sidecar = await counting(stage, fake)
    await fake.stop()
    before = len(unsent(stage))
    await answer_all(stage)
    # The batch with the counts is among the first five; the two newest are not written yet.
    await wait_for(lambda: len(unsent(stage)) >= before + 5, "batches are written")
    await stage.kill_sidecar()
    assert not sidecar.running
    await fake.start()
    await stage.sidecar(control=fake.address, workers=1, envoy_admin=False)
    await wait_for(lambda: not unsent(stage), "all are acknowledged", timeout_s=CONNECT_S)
    assert total(fake, "decided") == len(USERS)
    assert total(fake, "requests") == in_buckets(fake) == units(fake) == len(USERS)


async def test_disk_is_left_alone_when_the_control_plane_acknowledges(stage: Stage) -> None:
    fake = await stage.fake_control()
    await counting(stage, fake)
    await answer_all(stage)
    batches = len(fake.batches)
    await wait_for(lambda: len(fake.batches) > batches + 3, "more batches come")
    assert not (stage.directory / "state" / "unsent").exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_unstamped_total_is_envoys_when_control_was_away_and_the_sidecar_ends(
    stage: Stage, how: signal.Signals
) -> None:
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    await stage.envoy(one_target(v1))
    fake = await stage.fake_control()
    sidecar = await stage.sidecar(control=fake.address)
    fake.push(one_experiment(v1, v2, {"v2": 0.5}, version=2))
    await fake.gate(EXPERIMENT, 1)
    await stage.enrols()
    load = stage.load(
        lambda i: Request(headers={"x-user-id": f"u{i}"}), connections=2, pause_s=0.01
    )
    await wait_for(lambda: load.tally.sent > 100, "traffic flows")
    await fake.stop()
    sent = load.tally.sent
    sidecar.kill_workers()
    await wait_for(lambda: load.tally.sent > sent + 300, "traffic goes on without control")
    if how is signal.SIGTERM:
        await sidecar.stop()
    else:
        await wait_for(lambda: unsent(stage), "what was unstamped is written")
        await stage.kill_sidecar()
    await fake.start()
    await stage.sidecar(control=fake.address)
    stamped = load.tally.by_variant.total()
    await wait_for(lambda: load.tally.by_variant.total() > stamped + 200, "it answers again")
    tally = await load.stop()
    assert tally.failed == 0
    assert tally.unstamped > 0

    async def equal() -> bool:
        return fake.unstamped().total() == await stage.unstamped()

    await wait_for(equal, "Envoy and we count the same", timeout_s=CONNECT_S)
    await wait_for(lambda: not unsent(stage), "nothing is left", timeout_s=CONNECT_S)
    assert await equal()
