"""Upstreams that come, go, sicken and die while requests flow."""

from __future__ import annotations

from tests.integration.harness import (
    Load,
    Request,
    Stage,
    expected_variant,
    one_experiment,
    one_target,
    wait_for,
)
from tests.integration.snapshots import EXPERIMENT

USERS = [f"user-{i}" for i in range(400)]


def _request(i: int) -> Request:
    return Request(headers={"x-user-id": f"load-{i}"}, body=b"{}")


async def _serves(load: Load, variant: str) -> None:
    seen = load.tally.by_variant[variant]
    await wait_for(lambda: load.tally.by_variant[variant] > seen + 30, f"{variant} serves")


async def test_no_request_is_lost_when_upstreams_join_and_leave_under_load(stage: Stage) -> None:
    v1, v2, v3 = [await stage.pod(name) for name in ("v1", "v2", "v3")]
    fake = await stage.fake_control()
    await stage.envoy(one_target(v1))
    await stage.sidecar(control=fake.address)
    load = stage.load(_request)
    two = {"v2": v2, "v3": v3}
    await wait_for(lambda: load.tally.by_pod["v1"] > 50, "the baseline serves")
    for version, pods in enumerate(({"v2": v2}, two, {"v3": v3}), start=1):
        fractions = dict.fromkeys(pods, 0.4)
        fake.push(one_experiment(v1, pods, fractions, version=version, epoch=version))
        await fake.gate(EXPERIMENT, version)
        for name in pods:
            await _serves(load, name)
    fake.push(one_target(v1, version=4))
    await fake.acked(4)
    unstamped = load.tally.unstamped
    await wait_for(lambda: load.tally.unstamped > unstamped + 100, "the experiment is gone")
    tally = await load.stop()
    assert tally.failed == 0, tally.failures
    assert set(tally.by_pod) == {"v1", "v2", "v3"}


async def test_experiment_starts_by_itself_when_its_candidate_becomes_healthy(
    stage: Stage,
) -> None:
    v1, v2 = await stage.pod("v1", record=True), await stage.pod("v2")
    v2.healthy = False
    fake = await stage.fake_control()
    envoy = await stage.envoy(one_target(v1))
    await stage.sidecar(control=fake.address)
    snapshot = one_experiment(v1, v2, {"v2": 0.5})
    fake.push(snapshot)
    await fake.gate(EXPERIMENT, 1, is_open=False)
    await wait_for(lambda: v2.health_checks, "Envoy looks at the candidate")
    answers = await stage.users(USERS)
    assert {(a.pod, a.variant) for a in answers} == {("v1", "")}
    # Not in control either: no stamp reached the baseline.
    assert not [seen for seen in v1.seen if "x-turnout" in seen.headers]
    assert v2.requests == 0
    assert fake.reports[-1].gates[0].waiting_for
    assert (await envoy.ext_proc()).get("streams_started", 0) == 0
    v2.healthy = True
    await fake.gate(EXPERIMENT, 1)
    await stage.enrols()
    answers = await stage.stamped(USERS)
    assert [a.variant for a in answers] == [expected_variant(snapshot, u) for u in USERS]


async def test_weight_stays_and_errors_count_when_a_running_candidate_dies(stage: Stage) -> None:
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    fake = await stage.fake_control()
    envoy = await stage.envoy(one_target(v1))
    await stage.sidecar(control=fake.address)
    snapshot = one_experiment(v1, v2, {"v2": 0.5})
    fake.push(snapshot)
    await fake.serving(snapshot)
    await stage.enrols()
    await stage.stamped(USERS)
    await v2.close()
    # First connections are refused (UF), then the health check takes the host out (UH).
    both = [*await stage.stamped(USERS)]
    dead = snapshot.experiments[0].variants[1].cluster.cluster

    async def noticed() -> bool:
        return not await envoy.healthy(dead)

    await wait_for(noticed, "the health check noticed")
    both += await stage.stamped(USERS)
    failed = [a for a in both if a.failed]
    assert {(a.status, a.variant) for a in failed} == {(503, "v2")}
    assert len(failed) == sum(a.variant == "v2" for a in both) > 0
    await wait_for(lambda: fake.total("errors").total() >= len(failed), "errors are counted")
    assert {key.variant: n for key, n in fake.total("errors").items()} == {"v2": len(failed)}
