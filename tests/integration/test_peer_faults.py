"""What peers of the workers do wrong is counted, also by workers that are gone."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from tests.integration.extproc import WorkerClient
from tests.integration.harness import Stage, one_experiment, wait_for


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage() as stage:
        yield stage


async def faults(stage: Stage) -> dict[str, float]:
    """The metric, by reason."""
    return await stage.metric_by("turnout_sidecar_peer_faults_total", "reason")


async def say(path: str, data: bytes) -> bytes:
    """What a worker answers before it closes."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_faults_are_counted_by_reason_when_peers_break_the_rules(stage: Stage) -> None:
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    fake = await stage.fake_control()
    sidecar = await stage.sidecar(control=fake.address, envoy_admin=False, workers=1)
    fake.push(one_experiment(v1, v2, {"v2": 0.5}))
    await stage.workers_serve(1)
    worker = f"{stage.socket}.0"
    assert await faults(stage) == {}

    for _ in range(2):
        assert await say(worker, b"GET / HTTP/1.1\r\nHost: worker\r\n\r\n")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async with WorkerClient(Path(worker)) as client:
            await client.process(b"\xff" * 9)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    wanted = {"protocol_error": 2.0, "malformed_message": 1.0}

    async def counted() -> bool:
        return await faults(stage) == wanted

    await wait_for(counted, "all are counted")
    (pid,) = sidecar.workers()
    sidecar.kill_pids([pid], signal.SIGKILL)
    await wait_for(lambda: sidecar.workers() not in ([], [pid]), "the worker is replaced")
    await stage.workers_serve(1)
    assert await faults(stage) == wanted
    await say(worker, b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n")
    wanted["protocol_error"] = 3.0
    await wait_for(counted, "they are counted on")
