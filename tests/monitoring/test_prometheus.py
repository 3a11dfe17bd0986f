"""A real Prometheus scrapes real processes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.control.peers import Api, FakeSidecar, traffic
from tests.integration.harness import Stage
from tests.integration.waiting import LOOPBACK, free_port, wait_for
from tests.monitoring.prometheus import Prometheus
from tests.monitoring.test_rules import expressions


@pytest_asyncio.fixture
async def prometheus(stage: Stage) -> AsyncIterator[Prometheus]:
    """Not started."""
    server = Prometheus(stage.directory)
    yield server
    if server.running:
        await server.kill()


async def test_rollback_alert_fires_when_a_candidate_breaks(
    stage: Stage, prometheus: Prometheus
) -> None:
    """And every expression of the rules and of the dashboard is answered."""
    port = free_port()
    plane = await stage.control("--metrics", f"{LOOPBACK}:{port}")
    stage.envoy_dir.mkdir()
    async with Api(plane.address) as api:
        await api.start()
        await stage.sidecar(control=plane.address, envoy_admin=False)
        await stage.workers_serve()
        await prometheus.start({"turnout-control": port, "turnout-sidecar": stage.metrics_port})

        async def both_up() -> bool:
            up = await prometheus.query("up == 1")
            return {row["metric"]["job"] for row in up} == {"turnout-control", "turnout-sidecar"}

        await wait_for(both_up, "both are scraped")
        for where, expression in expressions():
            await prometheus.query(expression)
            assert where
        assert "TurnoutRollback" not in await prometheus.alerts()

        async with FakeSidecar(api.channel, "node-2") as sidecar:
            plan = await sidecar.plan()
            sidecar.send_deltas(traffic(plan, {"control": 1900, "v2": 100}, {"v2": 40}))
            await sidecar.until(lambda me: not me.snapshot.experiments, "rollback")

        async def fires() -> bool:
            return "TurnoutRollback" in await prometheus.alerts()

        await wait_for(fires, "the rollback alert fires")
        alert = (await prometheus.alerts())["TurnoutRollback"]
        assert alert["labels"]["experiment"] == "fraud-v2"
        assert alert["labels"]["reason"] == "lane_error"
        assert alert["labels"]["severity"] == "page"
        counted = await prometheus.query('turnout_control_rollbacks_total{reason="lane_error"}')
        assert [row["value"][1] for row in counted] == ["1"]


async def test_rollback_alert_fires_when_the_control_plane_was_restarted(
    stage: Stage, prometheus: Prometheus
) -> None:
    """Nobody scraped it between the rollback and its death."""
    plane = await stage.control()
    async with Api(plane.address) as api:
        await api.start()
        await api.verb("Rollback", reason="bad")
    assert await plane.stop() == 0
    port = free_port()
    await stage.control("--metrics", f"{LOOPBACK}:{port}", store=plane.store.name)
    await prometheus.start({"turnout-control": port})

    async def fires() -> bool:
        return "TurnoutRollback" in await prometheus.alerts()

    await wait_for(fires, "the rollback alert fires")
    assert (await prometheus.alerts())["TurnoutRollback"]["labels"]["reason"] == "operator"
