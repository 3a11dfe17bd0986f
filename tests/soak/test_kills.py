"""Workers are killed and stopped at the highest steady rate; Envoy and we count the same."""

from __future__ import annotations

import signal
import statistics
import time
from typing import Final

import pytest

from tests.integration.client import Request, Slow
from tests.integration.harness import Stage, wait_for
from tests.soak.rig import Rig
from tests.soak.traffic import Wrk

pytestmark = pytest.mark.soak

KILLS: Final = 100
UNSTAMPED_MEDIAN_MAX: Final = 50
DELAY_MS_MAX: Final = 55.0
DELAYED_S_MAX: Final = 1.5
# Other work on a machine with two cores, that wrk, Envoy and workers keep busy.
MARGIN: Final = 3.0


async def test_no_request_fails_and_the_totals_are_envoys_when_workers_are_killed(
    stage: Stage,
) -> None:
    rig = await Rig.open(stage)
    before = last = await stage.unstamped()
    unstamped: list[int] = []
    async with Wrk(stage.port) as wrk:
        await rig.steady(2.0)
        for turn in range(KILLS):
            await rig.kill_one(turn)
            await rig.whole()
            now = await stage.unstamped()
            unstamped.append(now - last)
            last = now
        seen = await wrk.stop()
    print(f"{KILLS} kills at {seen.per_s:.0f} requests/s: {seen.failed} failed")
    print({name: count for name, count in (await rig.envoy.ext_proc()).items() if count})
    print(f"unstamped: median {statistics.median(unstamped):g}, most {max(unstamped)}")
    assert seen.failed == 0
    total = await rig.agree(before)
    assert total >= sum(unstamped)
    assert statistics.median(unstamped) <= UNSTAMPED_MEDIAN_MAX
    # Every answer that Envoy took was counted when it was given, by workers that were killed, too.
    stamped = seen.requests - total
    await wait_for(lambda: rig.fake.total("decided").total() >= stamped, "every answer is counted")


async def test_delay_is_short_and_soon_over_when_a_worker_is_stopped(stage: Stage) -> None:
    rig = await Rig.open(stage)
    async with Wrk(stage.port) as wrk:
        probe = stage.load(lambda i: Request(headers={"x-user-id": f"p{i}"}), pause_s=0.001)
        await rig.steady(3.0)
        usual = describe(probe.slow, time.monotonic())
        probe.slow.clear()
        began = time.monotonic()
        (victim,) = rig.sidecar.workers()[:1]
        rig.sidecar.kill_pids([victim], signal.SIGSTOP)
        await wait_for(lambda: victim not in rig.sidecar.workers(), "it is replaced")
        await rig.whole()
        tally = await probe.stop()
        seen = await wrk.stop()
    # Only who waited in vain waited for the worker that stands still; others waited for a core.
    in_vain = [slow for slow in probe.slow if not slow.stamped]
    delay_ms = max((1_000 * slow.took_s for slow in in_vain), default=0.0)
    until_s = max((slow.sent_s - began for slow in in_vain), default=0.0)
    print(f"SIGSTOP at {seen.per_s:.0f} requests/s; before: {usual}")
    print(f"in vain: {describe(in_vain, began)}")
    print(f"others: {describe([slow for slow in probe.slow if slow.stamped], began)}")
    assert (tally.failed, seen.failed) == (0, 0)
    assert delay_ms <= MARGIN * DELAY_MS_MAX
    assert until_s <= MARGIN * DELAYED_S_MAX


def describe(slow: list[Slow], began_s: float) -> str:
    """How many, how long, and until when after something began."""
    if not slow:
        return "none took long"
    longest_ms = max(1_000 * one.took_s for one in slow)
    last_s = max(one.sent_s - began_s for one in slow)
    return f"{len(slow)} took up to {longest_ms:.0f} ms, the last sent after {last_s:.2f} s"
