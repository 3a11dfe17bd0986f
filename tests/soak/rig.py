"""A sidecar of two workers beside a real Envoy, its control plane, and the faults it is given."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Final

from tests.integration.harness import (
    Envoy,
    FakeControl,
    Sidecar,
    Stage,
    one_experiment,
    one_target,
    wait_for,
)
from turnout.contract import WORKERS_CLUSTER

WORKERS: Final = 2
AGREE_S: Final = 60.0
STEADY_S: Final = 0.6


class Rig:
    """What all faults are tried on."""

    def __init__(self, stage: Stage, fake: FakeControl, envoy: Envoy, sidecar: Sidecar) -> None:
        """Use `open`."""
        self.stage = stage
        self.fake = fake
        self.envoy = envoy
        self.sidecar = sidecar

    @classmethod
    async def open(cls, stage: Stage) -> Rig:
        """Start all, and wait until requests are stamped by two workers."""
        v1, v2 = await stage.pod("v1"), await stage.pod("v2")
        fake = await stage.fake_control()
        envoy = await stage.envoy(one_target(v1), concurrency=1)
        sidecar = await stage.sidecar(control=fake.address, workers=WORKERS)
        snapshot = one_experiment(v1, v2, {"v2": 0.5}, version=2)
        fake.push(snapshot)
        await fake.serving(snapshot)
        rig = cls(stage, fake, envoy, sidecar)
        await rig.whole()
        await stage.enrols()
        return rig

    async def whole(self) -> None:
        """Wait until both workers serve and Envoy has asked both for a while.

        What it found healthy a moment ago it may be about to leave out: whom a request has failed
        on stays out for a second or two.
        """
        loop = asyncio.get_running_loop()
        since: float | None = None

        async def steady() -> bool:
            nonlocal since
            stats = await self.envoy.stats(f"cluster.{WORKERS_CLUSTER}.")
            if stats.get("membership_healthy", 0) != WORKERS:
                since = None
            elif since is None:
                since = loop.time()
            return since is not None and loop.time() - since >= STEADY_S

        await self.stage.workers_serve(WORKERS)
        await wait_for(steady, "Envoy finds both workers healthy")

    async def kill_one(self, turn: int, sig: int = signal.SIGKILL) -> int:
        """Send one worker a signal and wait until another has its place; its id."""
        workers = sorted(self.sidecar.workers())
        victim = workers[turn % len(workers)]
        restarts = await self.restarts()
        os.kill(victim, sig)

        async def replaced() -> bool:
            return await self.restarts() > restarts

        await wait_for(replaced, "the worker is replaced")
        return victim

    async def restarts(self) -> float:
        """Workers that the supervisor has found ended."""
        return await self.stage.metric("turnout_sidecar_worker_restarts_total")

    async def upgrade(self) -> None:
        """Start a new sidecar beside the old one, and wait until the old one has ended well."""
        old = self.sidecar
        self.sidecar = await self.stage.sidecar(control=self.fake.address, workers=WORKERS)
        await wait_for(lambda: not old.running, "the old sidecar ends")
        assert await old.stop() == 0, old.output()[-4_000:]

    async def agree(self, before: int) -> int:
        """Wait until the control plane has counted what Envoy has; unstamped since `before`."""
        counted = await self.stage.unstamped()
        await wait_for(
            lambda: self.fake.unstamped().total() == counted,
            "the control plane's total is Envoy's",
            timeout_s=AGREE_S,
        )
        return counted - before

    async def steady(self, seconds: float) -> None:
        """Let traffic flow for a while: Envoy's counter has moved on."""
        end = asyncio.get_running_loop().time() + seconds
        await wait_for(lambda: asyncio.get_running_loop().time() >= end, "time passes")
