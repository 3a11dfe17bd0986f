"""Sidecars and workers are replaced under traffic: no request without an answer, no count lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from sidecar.handover import Claim, socket_of
from sidecar.listen import Listen
from sidecar.service import PREDECESSOR_END_S
from tests.integration.harness import (
    FakeControl,
    Load,
    Request,
    Sidecar,
    Stage,
    one_experiment,
    one_target,
    wait_for,
)
from tests.integration.waiting import LOOPBACK, free_port

ROUNDS: Final = 3
# Of all requests, on a machine that does other things beside.
LATE_MAX: Final = 0.01


async def flows(load: Load, requests: int = 200) -> None:
    before = load.tally.sent
    await wait_for(lambda: load.tally.sent > before + requests, "traffic flows")


class Counts(NamedTuple):
    """What was counted before the traffic: by Envoy, and by the control plane."""

    unstamped: int
    timeouts: int
    requests: int
    decided: int


async def counts(stage: Stage, fake: FakeControl) -> Counts:
    return Counts(
        await stage.unstamped(),
        await stage.message_timeouts(),
        fake.total("requests").total(),
        fake.total("decided").total(),
    )


async def settled(stage: Stage, fake: FakeControl) -> Counts:
    """What is counted, when nothing is under way any more."""

    def equal() -> bool:
        return 0 < fake.total("requests").total() == fake.total("decided").total()

    await wait_for(equal, "the probes are logged")
    return await counts(stage, fake)


async def nothing_is_lost(stage: Stage, fake: FakeControl, load: Load, before: Counts) -> None:
    """Every request was answered, stamped and counted, by Envoy and by us.

    But for those that waited in vain because the machine was busy with other things: Envoy counts
    them apart, and a worker that was not there, or went too soon, is never among them.
    """
    tally = await load.stop()
    assert tally.failed == 0, tally.failures
    stamped = tally.by_variant.total()
    await wait_for(
        lambda: fake.total("requests").total() >= before.requests + stamped, "all logged"
    )
    after = await counts(stage, fake)
    late = after.timeouts - before.timeouts
    assert late <= LATE_MAX * tally.sent
    assert tally.unstamped <= late
    assert after.unstamped - before.unstamped == tally.unstamped
    assert after.requests - before.requests == stamped
    assert stamped <= after.decided - before.decided <= stamped + late
    await wait_for(lambda: fake.unstamped().total() == after.unstamped, "Envoy and we count alike")


async def started(stage: Stage) -> tuple[FakeControl, Sidecar, Load, Counts]:
    """The same, with what was counted before."""
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    fake = await stage.fake_control()
    await stage.envoy(one_target(v1))
    sidecar = await stage.sidecar(control=fake.address)
    snapshot = one_experiment(v1, v2, {"v2": 0.5}, version=2)
    fake.push(snapshot)
    await fake.serving(snapshot)
    await stage.workers_serve()
    await stage.enrols()
    before = await settled(stage, fake)
    load = stage.load(
        lambda i: Request(headers={"x-user-id": f"u{i}"}), connections=8, pause_s=0.002
    )
    await flows(load)
    return fake, sidecar, load, before


async def ended(sidecar: Sidecar) -> None:
    await wait_for(lambda: not sidecar.running, "it ends by itself")


async def talking(sidecar: Sidecar, times: int) -> None:
    """Wait until another asks for the so manieth time."""
    ready = "gets ready to take over"
    await wait_for(lambda: sidecar.output().count(ready) >= times, "the two talk")


async def told_to_stop(sidecar: Sidecar, times: int) -> None:
    """Wait until one that another takes over from has been told to stop."""
    said = "told to stop while another"
    await wait_for(lambda: sidecar.output().count(said) >= times, "it waits")


async def replaced(sidecar: Sidecar, before: list[int]) -> None:
    """Wait until other workers are there, and only they."""
    await wait_for(
        lambda: not set(sidecar.workers()) & set(before) and len(sidecar.workers()) == len(before),
        "all workers are others",
    )


async def test_nothing_is_lost_when_workers_are_replaced_under_traffic(stage: Stage) -> None:
    fake, sidecar, load, before = await started(stage)
    for _ in range(ROUNDS):
        workers = sidecar.workers()
        os.kill(sidecar.pid, signal.SIGHUP)
        await replaced(sidecar, workers)
        await flows(load)
    await nothing_is_lost(stage, fake, load, before)
    assert fake.reports[-1].worker_restarts == 0, "who is replaced has not failed"


async def test_nothing_is_lost_when_a_new_sidecar_takes_over_under_traffic(stage: Stage) -> None:
    fake, sidecar, load, before = await started(stage)
    for _ in range(ROUNDS):
        hellos = len(fake.hellos)
        new = await stage.sidecar(control=fake.address)
        await ended(sidecar)
        assert await sidecar.stop() == 0
        await flows(load)
        assert new.running
        assert len(fake.hellos) == hellos + 1
        assert fake.hellos[-1].applied_version == 2, "it serves before it says Hello"
        sidecar = new
    instances = {hello.instance_id for hello in fake.hellos}
    assert len(instances) == ROUNDS + 1
    await nothing_is_lost(stage, fake, load, before)
    # Under their own numbers, without a gap.
    for instance in instances - {fake.hellos[-1].instance_id}:
        seqs = sorted(seq for name, seq in fake.batches if name == instance)
        assert seqs == list(range(1, len(seqs) + 1))


async def test_stand_alone_sidecar_is_replaced_under_traffic_without_a_gap(stage: Stage) -> None:
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    snapshot = one_experiment(v1, v2, {"v2": 0.5})
    await stage.envoy(snapshot)
    old = await stage.sidecar(snapshot=snapshot)
    await stage.workers_serve()
    await stage.enrols()
    load = stage.load(lambda i: Request(headers={"x-user-id": f"u{i}"}), pause_s=0.002)
    await flows(load)
    new = await stage.sidecar(snapshot=snapshot)
    await ended(old)
    await flows(load)
    assert new.running
    tally = await load.stop()
    assert tally.failed == 0, tally.failures
    assert tally.unstamped <= await stage.message_timeouts()


async def test_nothing_is_lost_when_the_old_one_is_told_to_stop_while_another_takes_over(
    stage: Stage,
) -> None:
    """`start` of the one and `stop` of the other, a moment apart."""
    fake, sidecar, load, before = await started(stage)
    for talks in range(1, ROUNDS + 1):
        new = await stage.sidecar(control=fake.address)
        await talking(sidecar, talks)
        os.kill(sidecar.pid, signal.SIGTERM)
        await ended(sidecar)
        assert await sidecar.stop() == 0
        await flows(load)
        assert new.running
        sidecar = new
    await nothing_is_lost(stage, fake, load, before)


async def test_old_sidecar_stops_when_it_is_told_twice_or_the_new_one_goes(stage: Stage) -> None:
    v1 = await stage.pod("v1")
    for times, twice in enumerate((True, False), start=1):
        sidecar = await stage.sidecar(snapshot=one_target(v1))
        await stage.workers_serve()
        writer = await Stranger(stage).freeze()
        os.kill(sidecar.pid, signal.SIGTERM)
        await told_to_stop(sidecar, times)
        assert sidecar.running
        if twice:
            os.kill(sidecar.pid, signal.SIGTERM)
        else:
            writer.close()
        await ended(sidecar)
        assert await sidecar.stop() == 0
        writer.close()


async def test_new_sidecar_serves_on_when_its_metrics_address_is_somebody_elses(
    stage: Stage,
) -> None:
    """When it finds out, the one before has gone: requests come first."""
    v1 = await stage.pod("v1")
    old = await stage.sidecar(snapshot=one_target(v1))
    await stage.workers_serve()
    stage.metrics_port = free_port()
    with socket.create_server((LOOPBACK, stage.metrics_port)):
        new = await stage.sidecar(snapshot=one_target(v1))
        await ended(old)
        await wait_for(lambda: "tried again every" in new.output(), "it says so")
        assert new.running
    await wait_for(lambda: measured(stage), "they are served when the address is free")
    assert new.running


async def measured(stage: Stage) -> bool:
    """Whether somebody answers at the metrics' address."""
    try:
        return await stage.metric("turnout_sidecar_workers_ready") == 2
    except OSError:
        return False


@pytest.mark.soak
async def test_new_sidecar_serves_on_when_the_old_one_hangs_at_its_end(stage: Stage) -> None:
    """Longer than the new one waits: the state directory is the old one's until it goes on."""
    v1 = await stage.pod("v1")
    old = await stage.sidecar(snapshot=one_target(v1))
    await stage.workers_serve()
    new = await stage.sidecar(snapshot=one_target(v1))
    await wait_for(lambda: "this one drains and ends" in old.output(), "it ends")
    os.kill(old.pid, signal.SIGSTOP)
    said = "keeps and tells nothing"
    await wait_for(lambda: said in new.output(), "it says so", timeout_s=2 * PREDECESSOR_END_S)
    assert new.running
    os.kill(old.pid, signal.SIGCONT)
    await wait_for(lambda: "taken over from" in new.output(), "it has all of it")
    await ended(old)


class Stranger:
    """Asks a sidecar to hand over, as a new one does, and then does not go on."""

    def __init__(self, stage: Stage) -> None:
        listen = Listen(stage.socket)
        path = socket_of(listen)
        assert path is not None
        self._path = path
        self._claim = Claim.of(listen, stage.directory / "state")

    async def freeze(self) -> asyncio.StreamWriter:
        """Have it freeze."""
        reader, writer = await asyncio.open_unix_connection(str(self._path))
        for message in ({"take": self._claim._asdict(), "version": "9"}, {"do": "freeze"}):
            writer.write(json.dumps(message).encode() + b"\n")
            assert json.loads(await reader.readline()) == {"ok": True}
        return writer


async def test_old_sidecar_serves_on_when_the_new_one_dies_halfway(stage: Stage) -> None:
    fake, sidecar, load, before = await started(stage)
    workers = sidecar.workers()
    hellos = len(fake.hellos)
    writer = await Stranger(stage).freeze()
    # The new one had taken the sockets, and is gone with them.
    for i in range(2):
        Path(f"{stage.socket}.{i}").unlink()
    writer.close()
    await replaced(sidecar, workers)
    await wait_for(lambda: len(fake.hellos) > hellos, "it is connected again", timeout_s=40)
    await flows(load)
    await nothing_is_lost(stage, fake, load, before)
    # And it can still be replaced.
    await stage.sidecar(control=fake.address)
    await ended(sidecar)


async def test_new_sidecar_serves_when_the_old_one_dies_halfway(stage: Stage) -> None:
    fake, sidecar, load, _ = await started(stage)
    new = await stage.sidecar(control=fake.address)
    await wait_for(lambda: "gets ready to take over" in sidecar.output(), "the two talk")
    await sidecar.kill()
    await wait_for(lambda: len(fake.hellos) > 1, "the new one says Hello", timeout_s=40)
    await stage.enrols()
    await flows(load)
    assert new.running
    tally = await load.stop()
    assert tally.failed == 0, tally.failures
    counted = await stage.unstamped()
    await wait_for(lambda: fake.unstamped().total() == counted, "Envoy and we count the same")


@pytest.mark.parametrize("what", ["snapshot", "state"])
async def test_old_sidecar_serves_on_when_the_new_one_cannot(stage: Stage, what: str) -> None:
    fake, sidecar, load, before = await started(stage)
    state = stage.directory / "state"
    await wait_for((state / "snapshot").exists, "the snapshot is on disk")
    if what == "snapshot":
        new = await stage.sidecar(control=fake.address, args=("--tenant", "other"))
        said = "refused"
    else:
        new = await stage.sidecar(control=fake.address, state="elsewhere")
        said = "in use"
    await ended(new)
    assert said in new.output()
    assert sidecar.running
    await flows(load)
    await nothing_is_lost(stage, fake, load, before)
