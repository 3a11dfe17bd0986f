"""What clients get when the sidecar is away, and what they cannot do."""

from __future__ import annotations

import asyncio
import signal

from tests.integration.harness import (
    Load,
    Request,
    Sidecar,
    Stage,
    one_experiment,
    one_target,
    wait_for,
)
from tests.integration.snapshots import cluster_of, expected_variant
from turnout.contract import HEADER_UNSTAMPED

USERS = [f"user-{i}" for i in range(200)]


async def test_new_baseline_serves_when_the_sidecar_dies_after_a_promotion(stage: Stage) -> None:
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    fake = await stage.fake_control()
    await stage.envoy(one_target(v1))
    await stage.sidecar(control=fake.address)
    snapshot = one_experiment(v1, v2, {"v2": 0.5})
    fake.push(snapshot)
    await fake.serving(snapshot)
    await stage.enrols()
    load = stage.load(lambda i: Request(headers={"x-user-id": f"load-{i}"}))
    await wait_for(lambda: load.tally.by_variant["v2"] > 20, "the candidate serves")
    fake.push(one_target(v2, version=2))

    async def promoted() -> bool:
        return {a.pod for a in await stage.users(USERS[:20])} == {"v2"}

    await wait_for(promoted, "the new baseline serves everybody")
    await stage.kill_sidecar()
    answers = await stage.users(USERS)
    assert {(a.status, a.pod, a.variant) for a in answers} == {(200, "v2", "")}
    tally = await load.stop()
    assert tally.failed == 0, tally.failures


async def test_no_stream_is_opened_when_the_target_has_no_experiment(stage: Stage) -> None:
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    fake = await stage.fake_control()
    envoy = await stage.envoy(one_target(v1))
    await stage.sidecar(control=fake.address)
    fake.push(one_target(v1))
    await fake.acked(1)
    await stage.users(USERS)
    assert (await envoy.ext_proc()).get("streams_started", 0) == 0
    # With one it does, and after it no more.
    running = one_experiment(v1, v2, {"v2": 0.5}, version=2)
    fake.push(running)
    await fake.serving(running)
    await stage.enrols()
    assert (await envoy.ext_proc())["streams_started"] > 0
    fake.push(one_target(v1, version=3))
    await fake.acked(3)

    async def quiet() -> bool:
        before = (await envoy.ext_proc())["streams_started"]
        await stage.users(USERS[:20])
        return (await envoy.ext_proc())["streams_started"] == before

    await wait_for(quiet, "no more streams")
    before = (await envoy.ext_proc())["streams_started"]
    answers = await stage.users(USERS)
    assert {(a.pod, a.variant) for a in answers} == {("v1", "")}
    assert (await envoy.ext_proc())["streams_started"] == before
    # Nor is it logged.
    logged = (await envoy.stats("access_logs.grpc_access_log."))["logs_written"]
    await stage.users(USERS)
    assert (await envoy.stats("access_logs.grpc_access_log."))["logs_written"] == logged


async def test_clients_headers_never_choose_when_the_sidecar_lives_or_is_dead(
    stage: Stage,
) -> None:
    v1, v2 = await stage.pod("v1", record=True), await stage.pod("v2", record=True)
    snapshot = one_experiment(v1, v2, {"v2": 0.3})
    await stage.envoy(snapshot)
    await stage.sidecar(snapshot=snapshot)
    await stage.enrols()
    evil = {
        "x-variant": "v2",
        "X-Variant": "v2",
        "x-turnout": "fraud-v2;1;v2;0;0000000000000000",
        "x-turnout-upstream": cluster_of(v2).cluster,
        "x-turnout-shadow": cluster_of(v2).cluster,
        "x-turnout-shadow-variant": "fraud-v2;1;v2",
        "x-turnout-shadow-of": "fraud-v2;1;v2",
        "x-turnout-anything": "1",
        "x-param-threshold": "0",
    }
    requests = [Request(headers={"x-user-id": user, **evil}) for user in USERS]
    answers = await stage.send(requests)
    stamped = [(a.variant, u) for a, u in zip(answers, USERS, strict=True) if a.variant]
    assert len(stamped) > 0.5 * len(USERS)
    assert all(variant == expected_variant(snapshot, user) for variant, user in stamped)
    for seen in v1.seen + v2.seen:
        assert not {"x-turnout-anything", "x-turnout-shadow-of", "x-param-threshold"} & set(
            seen.headers
        )
        assert "0000000000000000" not in seen.headers.get("x-turnout", "")
    await stage.kill_sidecar()
    v1.seen.clear()
    before = v2.requests
    answers = await stage.send(requests)
    assert {(a.status, a.pod, a.variant) for a in answers} == {(200, "v1", "")}
    assert v2.requests == before
    names = {name for seen in v1.seen for name in seen.headers}
    assert {n for n in names if n.startswith(("x-turnout", "x-v", "x-param"))} == {HEADER_UNSTAMPED}


async def test_requests_wait_50_ms_at_most_when_every_worker_hangs(stage: Stage) -> None:
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    snapshot = one_experiment(v1, v2, {"v2": 0.3})
    envoy = await stage.envoy(snapshot)
    sidecar = await stage.sidecar(snapshot=snapshot)
    await stage.enrols()
    before = (await envoy.ext_proc())["message_timeouts"]
    hung = sidecar.kill_workers(signal.SIGSTOP)
    started_s = asyncio.get_running_loop().time()
    answers = await stage.users(USERS)
    took_s = asyncio.get_running_loop().time() - started_s
    # 200 users over 8 connections, 50 ms each, make 1.3 s; not stopped by any other timeout.
    assert took_s < 5
    assert {(a.status, a.pod, a.variant) for a in answers} == {(200, "v1", "")}
    assert (await envoy.ext_proc())["message_timeouts"] > before
    # The supervisor ends them after 2 s of silence and starts others.
    await wait_for(lambda: not set(hung) & set(sidecar.workers()), "hung workers are replaced")
    await stage.enrols()


async def _stamps(load: Load, count: int) -> None:
    before = load.tally.by_variant.total()
    await wait_for(lambda: load.tally.by_variant.total() >= before + count, "workers answer")


async def _kill(sidecar: Sidecar, load: Load) -> None:
    unstamped = load.tally.unstamped
    killed = sidecar.kill_workers()
    assert len(killed) == 2
    await wait_for(lambda: load.tally.unstamped > unstamped, "the baseline serves")
    await wait_for(lambda: not set(killed) & set(sidecar.workers()), "others start")


async def test_accounts_are_exact_when_both_workers_are_killed_again_and_again(
    stage: Stage,
) -> None:
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    fake = await stage.fake_control()
    await stage.envoy(one_target(v1))
    sidecar = await stage.sidecar(control=fake.address)
    snapshot = one_experiment(v1, v2, {"v2": 0.5})
    fake.push(snapshot)
    await fake.serving(snapshot)
    await stage.enrols()
    before = await stage.unstamped()
    load = stage.load(lambda i: Request(headers={"x-user-id": f"u{i}"}), pause_s=0.002)
    for _ in range(3):
        await _stamps(load, 150)
        await _kill(sidecar, load)
    await _stamps(load, 150)
    tally = await load.stop()
    assert tally.failed == 0, tally.failures
    # What Envoy counted is what the clients saw: those and no others went without a stamp.
    counted = await stage.unstamped()
    assert counted - before == tally.unstamped
    await wait_for(lambda: fake.unstamped().total() >= counted, "the control plane knows")
    assert fake.unstamped().total() == counted
    # Counted when decided, although the workers that decided were killed.
    await wait_for(
        lambda: fake.total("decided").total() >= tally.by_variant.total(), "decisions are known"
    )
