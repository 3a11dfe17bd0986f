"""Envoy itself goes and comes back: its files and counters are taken up where they are."""

from __future__ import annotations

import asyncio
import time

from sidecar.envoyfiles import ROUTES_FILE
from sidecar.gate import FIRST_ROUTES_MS
from tests.integration.harness import (
    Request,
    Stage,
    expected_variant,
    one_experiment,
    one_target,
    wait_for,
)

# The first routes of a sidecar that cannot know more by then, and as long again.
RESTARTED_S = 2 * FIRST_ROUTES_MS / 1000
USERS = [f"user-{i}" for i in range(200)]


async def test_split_and_accounts_go_on_when_envoy_is_killed_and_started_again(
    stage: Stage,
) -> None:
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    fake = await stage.fake_control()
    envoy = await stage.envoy(one_target(v1))
    sidecar = await stage.sidecar(control=fake.address)
    snapshot = one_experiment(v1, v2, {"v2": 0.5})
    fake.push(snapshot)
    await fake.serving(snapshot)
    await stage.enrols()
    expected = [expected_variant(snapshot, user) for user in USERS]
    assert [a.variant for a in await stage.stamped(USERS)] == expected
    before = await stage.unstamped()
    await envoy.kill()
    # What the first Envoy counted is known as of the last look at it.
    known = fake.unstamped().total()
    assert known <= before
    await stage.start_envoy()
    await stage.enrols()
    assert [a.variant for a in await stage.stamped(USERS)] == expected
    # The new Envoy counts from zero; the sidecar's total goes on.
    load = stage.load(lambda i: Request(headers={"x-user-id": f"u{i}"}))
    await wait_for(lambda: load.tally.by_variant.total() > 50, "workers answer")
    sidecar.kill_workers()
    await wait_for(lambda: load.tally.unstamped > 5, "the baseline serves")
    tally = await load.stop()
    assert tally.failed == 0, tally.failures
    counted = await stage.unstamped()
    assert counted >= tally.unstamped
    await wait_for(lambda: fake.unstamped().total() >= counted, "the control plane knows")
    assert counted <= fake.unstamped().total() <= before + counted


async def test_experiment_stays_on_when_the_sidecar_is_stopped_and_started_again(
    stage: Stage,
) -> None:
    """Envoy has heard that the old one's workers go: the new one must not take that for its own."""
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    snapshot = one_experiment(v1, v2, {"v2": 0.5})
    await stage.envoy(snapshot)
    sidecar = await stage.sidecar(snapshot=snapshot)
    await stage.workers_serve()
    await stage.enrols()
    routes = stage.envoy_dir / ROUTES_FILE
    before = routes.read_text()
    assert await sidecar.stop() == 0
    await stage.sidecar(snapshot=snapshot)
    await stage.enrols()
    seen = set()
    until = time.monotonic() + RESTARTED_S
    while time.monotonic() < until:
        seen.add(routes.read_text())
        await asyncio.sleep(0.05)
    assert seen == {before}
