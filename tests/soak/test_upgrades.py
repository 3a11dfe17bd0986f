"""Sidecars are upgraded at the highest steady rate: every request is stamped and counted."""

from __future__ import annotations

from typing import Final

import pytest

from tests.integration.harness import Stage, wait_for
from tests.soak.rig import AGREE_S, Rig
from tests.soak.traffic import Wrk

pytestmark = pytest.mark.soak

UPGRADES: Final = 20
# wrk breaks off what is under way when it ends.
BROKEN_OFF: Final = 32
REST_MS: Final = 2


# A closed loop, which takes all that wrk, Envoy and the sidecar can get of two cores and leaves a
# new sidecar to wait with the others; and one whose connections rest, at three fifths of its rate.
@pytest.mark.parametrize("rest_ms", [0, REST_MS])
async def test_nothing_is_lost_when_the_sidecar_is_upgraded(stage: Stage, rest_ms: int) -> None:
    rig = await Rig.open(stage)
    before = await stage.unstamped()
    stats_before = await rig.envoy.ext_proc()
    async with Wrk(stage.port, rest_ms=rest_ms) as wrk:
        await rig.steady(2.0)
        for _ in range(UPGRADES):
            await rig.upgrade()
            await rig.whole()
        seen = await wrk.stop()
    stats = await rig.envoy.ext_proc()
    grown = {name: count - stats_before.get(name, 0) for name, count in stats.items()}
    print(f"{UPGRADES} upgrades at {seen.per_s:.0f} requests/s: {seen.failed} failed")
    print({name: grown[name] for name in sorted(grown) if grown[name]})
    unstamped = await rig.agree(before)
    print(f"unstamped: {unstamped}, of them waited in vain: {grown['message_timeouts']}")
    assert seen.failed == 0
    # When all cores are busy an answer may come too late, whoever serves.
    assert unstamped <= (0 if rest_ms else grown["message_timeouts"])

    def counted() -> bool:
        decided, requests = rig.fake.total("decided"), rig.fake.total("requests")
        return 0 <= decided.total() - requests.total() <= BROKEN_OFF + unstamped

    print(await rig.envoy.stats("access_logs.grpc_access_log."))
    try:
        await wait_for(counted, "what was decided is logged", timeout_s=AGREE_S)
    finally:
        decided, requests = rig.fake.total("decided"), rig.fake.total("requests")
        print(f"decided {decided.total()}, logged {requests.total()}")
    stamped = seen.requests - unstamped
    await wait_for(lambda: rig.fake.total("decided").total() >= stamped, "every answer is counted")
