"""Workers end without a traceback, whoever ends them and whatever goes on."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from tests.integration.extproc import WorkerClient, entry_of, request_of
from tests.integration.harness import Sidecar, Stage, one_experiment, wait_for

STAMP = "exp;1;v2;0;0123456789abcdef"
NOISE = ("Traceback", "Error", "never retrieved", "Aborting method")
GONE = (grpc.aio.AioRpcError, asyncio.CancelledError, asyncio.InvalidStateError)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage() as stage:
        yield stage


async def serving(stage: Stage) -> Sidecar:
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    snapshot = one_experiment(v1, v2, {"v2": 0.5})
    sidecar = await stage.sidecar(snapshot=snapshot, envoy_admin=False, workers=1)

    async def answers() -> bool:
        if not Path(f"{stage.socket}.0").exists():
            return False
        async with WorkerClient(Path(f"{stage.socket}.0")) as client:
            return await client.serving()

    await wait_for(answers, "the worker serves")
    return sidecar


async def ask(client: WorkerClient, asked: list[int]) -> None:
    """Ask until the worker is gone."""
    with contextlib.suppress(*GONE):
        while True:
            await client.process_and_reset(request_of(f"user-{len(asked)}"))
            asked.append(1)


async def log(client: WorkerClient) -> None:
    """Something to be flushed at any moment, also when nobody reads any more."""
    with contextlib.suppress(*GONE):
        await client.keep_logging(entry_of(STAMP, request_id="r"))


def silent(sidecar: Sidecar) -> None:
    lines = sidecar.output().splitlines()
    assert not [line for line in lines if any(noise in line for noise in NOISE)], lines


@pytest.mark.parametrize("who", ["supervisor killed", "all stopped"])
async def test_worker_is_silent_when_it_ends_under_traffic(stage: Stage, who: str) -> None:
    sidecar = await serving(stage)
    workers = sidecar.workers()
    async with WorkerClient(Path(f"{stage.socket}.0")) as client:
        asked: list[int] = []
        asking = [asyncio.create_task(ask(client, asked)) for _ in range(16)]
        asking.append(asyncio.create_task(log(client)))
        await wait_for(lambda: len(asked) > 200, "traffic flows")
        await sidecar.kill(signal.SIGKILL if who == "supervisor killed" else signal.SIGTERM)
        await wait_for(lambda: not sidecar.alive_pids(workers), "the worker has ended")
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking)
    silent(sidecar)
    gone = "the supervisor is gone: draining"
    assert sidecar.output().count(gone) == (1 if who == "supervisor killed" else 0)
