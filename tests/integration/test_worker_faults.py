"""One worker dies, stands still or hangs under traffic: the other serves, and counts agree."""

from __future__ import annotations

import signal
import statistics
import time
from typing import Final

from tests.integration.harness import Load, Request, Stage, wait_for
from tests.soak.rig import Rig

KILLS: Final = 4
# Threefold of what is asked of a machine that does nothing else.
UNSTAMPED_MEDIAN_MAX: Final = 3 * 50
DELAY_S_MAX: Final = 3 * 0.055
DELAYED_S_MAX: Final = 3 * 1.5


def traffic(stage: Stage) -> Load:
    return stage.load(
        lambda i: Request(headers={"x-user-id": f"u{i}"}), connections=8, pause_s=0.002
    )


async def flows(load: Load, requests: int = 200) -> None:
    before = load.tally.sent
    await wait_for(lambda: load.tally.sent > before + requests, "traffic flows")


async def test_no_request_fails_and_the_totals_are_envoys_when_a_worker_is_killed(
    stage: Stage,
) -> None:
    rig = await Rig.open(stage)
    before = last = await stage.unstamped()
    unstamped: list[int] = []
    load = traffic(stage)
    await flows(load)
    for turn in range(KILLS):
        await rig.kill_one(turn)
        await rig.whole()
        await flows(load)
        now = await stage.unstamped()
        unstamped.append(now - last)
        last = now
    tally = await load.stop()
    assert tally.failed == 0, tally.failures
    assert await rig.agree(before) == tally.unstamped
    assert statistics.median(unstamped) <= UNSTAMPED_MEDIAN_MAX, unstamped
    stamped = tally.by_variant.total()
    await wait_for(lambda: rig.fake.total("decided").total() >= stamped, "every answer is counted")
    assert rig.fake.reports[-1].worker_restarts == KILLS


async def test_requests_do_not_wait_for_a_worker_that_stands_still(stage: Stage) -> None:
    rig = await Rig.open(stage)
    load = traffic(stage)
    await flows(load)
    victim = rig.sidecar.workers()[0]
    rig.sidecar.kill_pids([victim], signal.SIGSTOP)
    stopped_s = time.monotonic()

    def left_out() -> bool:
        """Nobody has waited long for a while, though traffic has flowed."""
        now_s = time.monotonic()
        late = [
            slow.sent_s
            for slow in load.slow
            if slow.took_s > DELAY_S_MAX and slow.sent_s > stopped_s
        ]
        return now_s - max(late, default=stopped_s) > DELAYED_S_MAX / 3

    await wait_for(left_out, "nobody waits any more", timeout_s=3 * DELAYED_S_MAX)
    await wait_for(lambda: victim not in rig.sidecar.workers(), "it is replaced")
    await rig.whole()
    tally = await load.stop()
    assert tally.failed == 0, tally.failures
    assert "was silent for" in rig.sidecar.output()
