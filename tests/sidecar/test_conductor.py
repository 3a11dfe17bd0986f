"""The conductor ends when it is told to, whatever happens at that moment."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.conductor import Conductor
from sidecar.config import Config
from sidecar.gate import Gate
from sidecar.workers import Workers
from tests.sidecar import samples

END_S = 5.0


@pytest.mark.parametrize("turns", range(6))
async def test_conductor_ends_when_it_is_cancelled_so_many_turns_after_it_was_woken(
    turns: int,
) -> None:
    stepped = asyncio.Event()
    config = Config()
    workers = Workers([], on_delta=lambda _: None, on_change=lambda: None)
    conductor = Conductor(
        config,
        workers,
        Gate(watched=False, remembered={}),
        envoy_dir=None,
        admin=None,
        on_look=lambda _: None,
        on_step=stepped.set,
    )
    running = asyncio.create_task(conductor.run())
    await stepped.wait()
    for _ in range(5):
        await asyncio.sleep(0)  # until it waits
    conductor.wake()
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    ended, _ = await asyncio.wait([running], timeout=END_S)
    running.cancel()  # else a failure would wait for ever, too
    assert running in ended
    assert running.cancelled()


def test_conductor_warns_once_when_no_resource_has_the_intercepted_pods_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = Config()
    conductor = Conductor(
        config,
        Workers([], on_delta=lambda _: None, on_change=lambda: None),
        Gate(watched=False, remembered={}),
        envoy_dir=None,
        admin=None,
        on_look=lambda _: None,
        on_step=lambda: None,
        local="10.0.0.7:8080",
    )
    conductor.changed()
    assert not caplog.records  # nothing is known yet
    plan = samples.snapshot()
    for baseline, warnings in (("fraud:80", 1), ("fraud:80", 1), ("10.0.0.7:8080", 1)):
        plan.targets[0].baseline.upstream.address = baseline
        config.serve(plan.SerializeToString(), plan, samples.KEY, {})
        conductor.changed()
        assert len(caplog.records) == warnings
    assert "'10.0.0.7:8080' is the address of no baseline" in caplog.text
