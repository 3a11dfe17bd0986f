"""Envoy on the first files, before or without a sidecar."""

from __future__ import annotations

from tests.integration.harness import Request, Stage, one_experiment


async def test_envoy_serves_the_baseline_when_no_sidecar_was_ever_there() -> None:
    async with Stage() as stage:
        v1, v2 = await stage.pod("v1"), await stage.pod("v2")
        envoy = await stage.envoy(one_experiment(v1, v2, {"v2": 0.5}))
        answers = await stage.users(f"u{i}" for i in range(200))
        assert {(a.status, a.pod, a.variant) for a in answers} == {(200, "v1", "")}
        assert all(a.headers["x-request-id"] for a in answers)
        assert (await envoy.ext_proc()).get("streams_started", 0) == 0
        assert v2.requests == 0


async def test_envoy_answers_404_without_a_stream_when_no_target_matches() -> None:
    async with Stage() as stage:
        v1 = await stage.pod("v1")
        envoy = await stage.envoy(one_experiment(v1, v1, {"v2": 0.5}))
        answers = await stage.send([Request(path="/elsewhere")])
        assert answers[0].status == 404
        assert (await envoy.ext_proc()).get("streams_started", 0) == 0
