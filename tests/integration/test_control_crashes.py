"""kill -9 at any moment of a rollback: what was taken away never serves again."""

from __future__ import annotations

import asyncio
import random
import signal

import grpc
import pytest

from tests.control.peers import PARENT, Api, FakeSidecar, traffic
from tests.integration.harness import ControlPlane, Stage
from turnout.v1alpha1.common_pb2 import Tombstone
from turnout.v1alpha1.snapshot_pb2 import Snapshot

SEED = 20_261_122


class Known:
    """What a sidecar keeps over reconnects, and what must never be broken.

    Attributes:
        version: Serves now.
        tombstones: Highest epoch of each experiment that must not serve.
    """

    def __init__(self) -> None:
        self.version = 0
        self.tombstones: dict[str, int] = {}

    def take(self, sidecar: FakeSidecar) -> None:
        """Check everything that one stream sent, in order."""
        for response in sidecar.received:
            for tombstone in response.tombstones.tombstones:
                self._bury(tombstone.experiment, tombstone.epoch)
            if response.HasField("snapshot"):
                push = response.snapshot
                self._check(push.version, Snapshot.FromString(push.snapshot))

    def hello(self) -> list[Tombstone]:
        """The tombstones for the next Hello."""
        return [Tombstone(experiment=e, epoch=n) for e, n in self.tombstones.items()]

    def _check(self, version: int, snapshot: Snapshot) -> None:
        assert version >= self.version
        self.version = version
        for plan in snapshot.experiments:
            assert plan.epoch > self.tombstones.get(plan.name, 0), f"{plan.name} was revived"
        for tombstone in snapshot.tombstones:
            self._bury(tombstone.experiment, tombstone.epoch)

    def _bury(self, experiment: str, epoch: int) -> None:
        self.tombstones[experiment] = max(epoch, self.tombstones.get(experiment, 0))


async def _act(plane: ControlPlane, chance: random.Random, known: Known, name: str) -> None:
    """Start an experiment, have it rolled back in one of two ways, and kill in the middle."""
    full_name = f"{PARENT}/experiments/{name}"
    async with Api(plane.address) as api:
        listed = await api.get_target()
        for running in listed.status.running_experiments:
            await api.verb("Stop", running)
        await api.create(experiment_id=name)
        await api.verb("Start", full_name)
        peer = FakeSidecar(
            api.channel, tombstones=known.hello(), applied_version=known.version, instance=name
        )
        async with peer as sidecar:
            plan = await sidecar.plan(name)
            if chance.random() < 0.5:
                harm = traffic(plan, {"control": 1900, "v2": 100}, {"v2": 40})
                sidecar.send_deltas(harm)
                rollback = None
            else:
                rollback = asyncio.create_task(api.verb("Rollback", full_name))
            await asyncio.sleep(chance.uniform(0, 0.15))  # the moment of the crash, no wait
            await plane.kill(signal.SIGKILL)
            if rollback is not None:
                await asyncio.gather(rollback, return_exceptions=True)
            known.take(sidecar)


async def _crash(stage: Stage, rounds: int, seed: int) -> None:
    chance, known = random.Random(seed), Known()
    plane = await stage.control()
    async with Api(plane.address) as api:
        await api.create_target()
    for number in range(rounds):
        await _act(plane, chance, known, f"e{number}")
        plane = await stage.control(port=plane.port, store=plane.store.name)
        async with Api(plane.address) as api:
            peer = FakeSidecar(api.channel, tombstones=known.hello(), applied_version=known.version)
            async with peer as sidecar:
                await sidecar.until(lambda me: me.pushes, "a snapshot")
                known.take(sidecar)
            state = await api.state(f"{PARENT}/experiments/e{number}")
            if f"e{number}" in known.tombstones:
                assert state == "ROLLED_BACK"
            else:
                assert state in {"RUNNING", "ROLLED_BACK"}
            with pytest.raises(grpc.aio.AioRpcError):
                await api.verb("Start", f"{PARENT}/experiments/e{number}")


async def test_candidate_never_serves_again_when_killed_around_its_rollback(stage: Stage) -> None:
    """Four crashes at random moments (seed in the file)."""
    await _crash(stage, 4, SEED)


@pytest.mark.soak
async def test_candidate_never_serves_again_in_many_crashes(stage: Stage) -> None:
    """A hundred of them."""
    await _crash(stage, 100, SEED + 1)
