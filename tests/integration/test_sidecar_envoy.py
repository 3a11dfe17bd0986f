"""A sidecar beside a real Envoy: the order of its files, the start gate, the accounts."""

from __future__ import annotations

import signal
from collections import Counter

from sidecar.admin import Admin
from sidecar.envoyfiles import CLUSTERS_FILE, FILTER_FILE, ROUTES_FILE
from tests.integration.harness import (
    Request,
    Stage,
    one_experiment,
    one_target,
    wait_for,
)
from tests.integration.snapshots import EXPERIMENT, expected_variant
from turnout.contract import WORKERS_CLUSTER
from turnout.v1alpha1.common_pb2 import Tombstone
from turnout.v1alpha1.config_service_pb2 import ROLE_SERVED

USERS = [f"user-{i}" for i in range(300)]


async def test_sidecar_splits_and_accounts_when_experiment_is_pushed() -> None:
    async with Stage() as stage:
        v1, v2 = await stage.pod("v1"), await stage.pod("v2")
        await stage.envoy(one_target(v1))
        fake = await stage.fake_control()
        await stage.sidecar(control=fake.address)
        snapshot = one_experiment(v1, v2, {"v2": 0.3}, version=2)
        fake.push(snapshot)
        await fake.gate(EXPERIMENT, 1)
        assert not (await fake.acked(2)).violations
        await stage.enrols()
        answers = await stage.users(USERS)
        assert not any(answer.failed for answer in answers)
        # On a busy machine an answer may miss Envoy's 50 ms: unstamped, never another variant.
        stamped = [(a.variant, u) for a, u in zip(answers, USERS, strict=True) if a.variant]
        assert len(stamped) > 0.9 * len(USERS)
        assert all(variant == expected_variant(snapshot, user) for variant, user in stamped)
        given = Counter(answer.variant for answer in answers)
        # The requests of `enrols` are folded too: compare what the sidecar says with itself.
        await wait_for(
            lambda: sum(fake.total("requests").values()) >= len(USERS), "entries are folded"
        )
        await wait_for(lambda: fake.total("requests") == fake.total("decided"), "decided == logged")
        requests = {key.variant: n for key, n in fake.total("requests").items()}
        assert requests["v2"] >= given["v2"]
        assert {key.role for key in fake.total("requests")} == {ROLE_SERVED}
        decided = sum(fake.total("decided").values())
        assert await stage.metric("turnout_sidecar_decided_total") == decided
        assert await stage.metric("turnout_sidecar_snapshot_version") == snapshot.version
        assert await stage.metric("turnout_sidecar_config_state") == 1
        assert await stage.metric("turnout_sidecar_experiment_open") == 1
        assert await stage.metric("turnout_sidecar_workers_ready") == 2
        assert await stage.metric("turnout_sidecar_envoy_up") == 1
        assert await stage.metric("turnout_sidecar_control_connected") == 1


async def test_experiment_enrols_nobody_when_candidate_is_not_healthy() -> None:
    async with Stage() as stage:
        v1, v2 = await stage.pod("v1"), await stage.pod("v2")
        await v2.close()
        await stage.envoy(one_target(v1))
        fake = await stage.fake_control()
        await stage.sidecar(control=fake.address)
        fake.push(one_experiment(v1, v2, {"v2": 0.5}, version=2))
        await fake.gate(EXPERIMENT, 1, is_open=False)
        answers = await stage.users(USERS[:50])
        assert not any(answer.variant for answer in answers)
        assert {answer.pod for answer in answers} == {"v1"}
        assert fake.reports[-1].gates[0].waiting_for


async def test_unstamped_total_equals_what_clients_saw_when_both_workers_are_killed() -> None:
    async with Stage() as stage:
        v1, v2 = await stage.pod("v1"), await stage.pod("v2")
        snapshot = one_experiment(v1, v2, {"v2": 0.5}, version=2)
        await stage.envoy(one_target(v1))
        fake = await stage.fake_control()
        sidecar = await stage.sidecar(control=fake.address)
        fake.push(snapshot)
        await fake.gate(EXPERIMENT, 1)
        await stage.enrols()
        load = stage.load(
            lambda i: Request(headers={"x-user-id": f"u{i}"}), connections=4, pause_s=0.005
        )
        await wait_for(lambda: load.tally.sent > 200, "traffic flows")
        sidecar.kill_workers()
        await wait_for(lambda: load.tally.unstamped > 0, "some are unstamped")
        stamped = load.tally.by_variant.total()
        await wait_for(lambda: load.tally.by_variant.total() > stamped + 200, "new workers answer")
        tally = await load.stop()
        assert tally.failed == 0
        await wait_for(
            lambda: sum(fake.unstamped().values()) >= tally.unstamped, "unstamped are counted"
        )
        assert sum(fake.unstamped().values()) == tally.unstamped


async def test_routes_stay_on_when_the_sidecar_restarts_without_control() -> None:
    async with Stage() as stage:
        v1, v2 = await stage.pod("v1"), await stage.pod("v2")
        snapshot = one_experiment(v1, v2, {"v2": 0.5}, version=2)
        await stage.envoy(one_target(v1))
        fake = await stage.fake_control()
        sidecar = await stage.sidecar(control=fake.address)
        fake.push(snapshot)
        await fake.gate(EXPERIMENT, 1)
        await stage.enrols()
        await wait_for((stage.directory / "state" / "snapshot").exists, "it is on disk")
        files = [stage.envoy_dir / name for name in (CLUSTERS_FILE, ROUTES_FILE, FILTER_FILE)]
        before = [file.stat().st_ino for file in files]
        await fake.stop()
        await sidecar.stop()
        # A pod that is down now was given its weight before: the restart does not take it away.
        await v2.close()
        await stage.sidecar(control=fake.address)
        await stage.enrols(user=next(u for u in USERS if expected_variant(snapshot, u) == "v2"))
        assert [file.stat().st_ino for file in files] == before


async def test_nobody_goes_back_to_the_old_model_when_the_candidate_is_promoted() -> None:
    async with Stage() as stage:
        v1, v2 = await stage.pod("v1"), await stage.pod("v2")
        running = one_experiment(v1, v2, {"v2": 0.9}, version=2)
        await stage.envoy(one_target(v1))
        fake = await stage.fake_control()
        await stage.sidecar(control=fake.address)
        fake.push(running)
        await fake.gate(EXPERIMENT, 1)
        await stage.enrols()
        users = [user for user in USERS if expected_variant(running, user) == "v2"]
        load = stage.load(
            lambda i: Request(headers={"x-user-id": users[i % len(users)]}), pause_s=0.002
        )
        await wait_for(lambda: load.tally.sent > 200, "traffic flows")
        stamped = load.tally.by_variant.total()
        unstamped = load.tally.unstamped
        fake.push(one_target(v2, version=3))
        assert not (await fake.acked(3)).violations
        await wait_for(lambda: load.tally.unstamped > unstamped + 200, "the baseline serves")
        tally = await load.stop()
        assert tally.failed == 0
        assert stamped <= tally.by_variant["v2"]
        assert tally.by_pod["v1"] <= unstamped


async def test_files_are_written_again_when_a_bootstrap_overwrites_them() -> None:
    async with Stage() as stage:
        v1, v2 = await stage.pod("v1"), await stage.pod("v2")
        fake = await stage.fake_control()
        # The sidecar is there first: it waits for an Envoy.
        await stage.sidecar(control=fake.address)
        fake.push(one_experiment(v1, v2, {"v2": 1.0}, version=2))
        await fake.gate(EXPERIMENT, 1, is_open=False)
        await stage.envoy(one_target(v1))
        await stage.enrols()
        await stage.bootstrap(one_target(v1))
        assert "x-turnout-upstream" not in (stage.envoy_dir / ROUTES_FILE).read_text()
        await wait_for(
            lambda: "x-turnout-upstream" in (stage.envoy_dir / ROUTES_FILE).read_text(),
            "the routes are ours again",
        )
        await stage.enrols()


async def test_tombstone_takes_effect_when_no_file_can_be_written() -> None:
    async with Stage() as stage:
        v1, v2 = await stage.pod("v1"), await stage.pod("v2")
        await stage.envoy(one_target(v1))
        fake = await stage.fake_control()
        sidecar = await stage.sidecar(control=fake.address)
        fake.push(one_experiment(v1, v2, {"v2": 1.0}, version=2))
        await fake.gate(EXPERIMENT, 1)
        await stage.enrols()
        # As good as a full disk: the temporary names are taken by directories.
        for name in ("tombstones", "snapshot"):
            (stage.directory / "state" / f".{name}.{sidecar.pid}.tmp").mkdir()
        (stage.envoy_dir / f"..routes.yaml.staged.{sidecar.pid}.tmp").mkdir()
        fake.bury(Tombstone(experiment=EXPERIMENT, epoch=1, reason="test"))

        async def baseline_only() -> bool:
            return {answer.pod for answer in await stage.users(USERS[:20])} == {"v1"}

        await wait_for(baseline_only, "the baseline serves everybody", timeout_s=5)
        await wait_for(lambda: fake.reports[-1].envoy_rejections, "the report says it")
        assert "cannot be written" in fake.reports[-1].envoy_rejections[0]
        assert "state directory cannot be written" in sidecar.output()


async def test_outage_is_counted_once_when_the_whole_sidecar_was_away() -> None:
    async with Stage() as stage:
        v1, v2 = await stage.pod("v1"), await stage.pod("v2")
        await stage.envoy(one_target(v1))
        fake = await stage.fake_control()
        sidecar = await stage.sidecar(control=fake.address)
        fake.push(one_experiment(v1, v2, {"v2": 0.5}, version=2))
        await fake.gate(EXPERIMENT, 1)
        await stage.enrols()
        missing = 0
        for _ in range(2):
            await sidecar.stop()
            answers = await stage.users(USERS[:20])
            assert not any(answer.failed or answer.variant for answer in answers)
            missing += len(answers)
            hellos = len(fake.hellos)
            sidecar = await stage.sidecar(control=fake.address)

            def back(before: int = hellos) -> bool:
                return len(fake.hellos) > before

            await wait_for(back, "it is back")
            await wait_for(lambda: envoy_has_workers(stage), "Envoy found the workers")
            await stage.enrols()

        async def equal() -> bool:
            return fake.unstamped().total() == await stage.unstamped()

        await wait_for(equal, "Envoy and we count the same")
        assert await stage.unstamped() >= missing


async def envoy_has_workers(stage: Stage) -> bool:
    admin = Admin(f"unix:{stage.admin}")
    try:
        return bool((await admin.look()).healthy_hosts[WORKERS_CLUSTER])
    finally:
        admin.close()


async def test_unstamped_total_goes_on_when_envoy_restarts() -> None:
    async with Stage() as stage:
        v1, v2 = await stage.pod("v1"), await stage.pod("v2")
        envoy = await stage.envoy(one_target(v1))
        fake = await stage.fake_control()
        sidecar = await stage.sidecar(control=fake.address)
        fake.push(one_experiment(v1, v2, {"v2": 0.5}, version=2))
        await fake.gate(EXPERIMENT, 1)
        for number in (20, 5):
            # The second Envoy has counted less than the first: its counter went down.
            await stage.enrols()
            counted = fake.unstamped().total()
            sidecar.kill_workers(signal.SIGSTOP)
            answers = await stage.users(USERS[:number])
            missing = sum(not answer.variant for answer in answers)
            assert missing > 0
            await wait_for(
                lambda: fake.unstamped().total() >= counted + missing,  # noqa: B023 - awaited here
                "all are counted",
            )
            await stage.enrols()
            await envoy.kill(signal.SIGKILL)
            envoy = await stage.start_envoy()
