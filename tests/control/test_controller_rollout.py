"""The loop: evidence in, decisions out, over real gRPC."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.field_mask_pb2 import FieldMask

from control.rollout import decide, observe
from control.rollout.decide import Decision
from control.rollout.entries import load_experiment, load_target
from control.rollout.looks import Looks
from control.rollout.policy import Policy
from control.rollout.run import Run
from control.rollout.seen import Seen
from control.server import ControlPlane
from control.store.base import Change, Kind, StoreUnavailable
from tests.control.peers import (
    EXPERIMENT,
    EXPERIMENT_SPEC,
    PARENT,
    TARGET,
    TARGET_SPEC,
    Api,
    FakeSidecar,
    experiment,
    reason,
    target,
    traffic,
)
from tests.integration.waiting import wait_for
from turnout.v1alpha1 import config_service_pb2 as config
from turnout.v1alpha1 import experiment_pb2
from turnout.v1alpha1 import experiment_service_pb2 as service
from turnout.v1alpha1.common_pb2 import Tombstone
from turnout.v1alpha1.experiment_pb2 import STATE_ROLLED_BACK, STATE_RUNNING, Experiment

WAITING = experiment_pb2.REASON_WAITING_FOR_UPSTREAM
SHORT = EXPERIMENT_SPEC.replace("for: 3600s", "for: 1s, minimumRequests: 30")


async def test_candidate_is_rolled_back_within_a_second_when_its_lane_crosses(
    api: Api, sidecar: FakeSidecar
) -> None:
    """From the delta that crosses to the push: less than a second."""
    await api.start()
    plan = await sidecar.plan()
    await sidecar.deltas(traffic(plan, {"control": 1900, "v2": 100}, {"control": 1}))
    assert await api.state() == "RUNNING"
    begin = time.monotonic()
    sidecar.send_deltas(traffic(plan, {"control": 1900, "v2": 100}, {"v2": 40}))
    await sidecar.until(lambda me: me.pushes and not me.snapshot.experiments, "rollback")
    assert sidecar.pushes[-1][2] - begin < 1.0
    assert [(t.experiment, t.epoch) for t in sidecar.tombstones] == [("fraud-v2", 1)]
    assert [(t.experiment, t.epoch) for t in sidecar.snapshot.tombstones] == [("fraud-v2", 1)]
    found = await api.get()
    assert found.status.state == experiment_pb2.STATE_ROLLED_BACK
    assert found.status.last_decision.reason == experiment_pb2.REASON_LANE_ERROR
    assert found.status.end_time.seconds > 0
    decisions = await api.experiments.ListDecisions(service.ListDecisionsRequest(parent=EXPERIMENT))
    assert decisions.decisions[0].action == experiment_pb2.ACTION_ROLLBACK
    assert decisions.decisions[0].inputs_json
    assert decisions.decisions[0].id > 0


@pytest.mark.parametrize("what", ["reduce", "decide"])
async def test_candidate_is_rolled_back_when_its_evidence_cannot_be_judged(
    api: Api, sidecar: FakeSidecar, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Numbers that no statistic takes stop no safety lane."""
    decides = decide.decide

    def refuses(*_: object, **__: object) -> Looks:
        raise ValueError("alpha == 0.0, must be > 0")

    def decides_without_looks(run: Run, policy: Policy, seen: Seen, *, now_ms: int) -> Decision:
        return refuses() if seen.looks else decides(run, policy, seen, now_ms=now_ms)  # type: ignore[return-value]

    monkeypatch.setattr(observe, "reduce", refuses)
    if what == "decide":
        monkeypatch.setattr(observe, "reduce", lambda *_, **__: Looks(missing=1))
        monkeypatch.setattr(decide, "decide", decides_without_looks)
    await api.start()
    plan = await sidecar.plan()
    await sidecar.deltas(traffic(plan, {"control": 1900, "v2": 100}, {"control": 1}))
    await sidecar.deltas(traffic(plan, {"control": 1900, "v2": 100}, {"v2": 40}))
    await sidecar.until(lambda me: me.pushes and not me.snapshot.experiments, "rollback")
    found = await api.get()
    assert found.status.last_decision.reason == experiment_pb2.REASON_LANE_ERROR


async def test_canary_advances_and_promotes_when_its_checks_pass(
    api: Api, sidecar: FakeSidecar
) -> None:
    """The winner is the target's baseline, the old one is kept, the experiment has ended."""
    await api.start(experiment(SHORT + "onFinish: ON_FINISH_PROMOTE\n"))
    plan = await sidecar.plan()
    before = {v.name: [(r.start, r.end) for r in v.ranges] for v in plan.variants}
    assert sum(end - start for start, end in before["v2"]) == 50_000
    await sidecar.deltas(traffic(plan, {"control": 950, "v2": 50}))
    plan = await sidecar.plan(epoch=2)
    after = {v.name: [(r.start, r.end) for r in v.ranges] for v in plan.variants}
    assert sum(end - start for start, end in after["v2"]) == 500_000
    assert before["v2"][0][0] == after["v2"][0][0]
    await sidecar.deltas(traffic(plan, {"control": 500, "v2": 500}))
    await sidecar.until(lambda me: not me.snapshot.experiments, "promotion")
    assert sidecar.snapshot.targets[0].baseline.upstream.address == "127.0.0.1:8002"
    assert not sidecar.snapshot.tombstones
    found = await api.get()
    assert found.status.state == experiment_pb2.STATE_PROMOTED
    assert found.status.winner == "v2"
    kept = await api.get_target()
    assert kept.spec.baseline.model.version == "2"
    assert kept.status.previous.upstream.address == "127.0.0.1:8001"
    assert kept.status.promoted_from == EXPERIMENT
    assert kept.revision == 2


async def test_promotion_is_undone_when_asked(api: Api, sidecar: FakeSidecar) -> None:
    """The previous baseline serves again, and can be undone to only once."""
    await api.start()
    await api.reported()
    await api.verb("Promote", variant="v2")
    await sidecar.until(
        lambda me: me.snapshot.targets[0].baseline.upstream.address == "127.0.0.1:8002",
        "promotion",
    )
    await api.verb("Undo")
    await sidecar.until(
        lambda me: me.snapshot.targets[0].baseline.upstream.address == "127.0.0.1:8001", "undo"
    )
    kept = await api.get_target()
    assert not kept.status.HasField("previous")
    assert kept.status.promoted_from == ""
    assert (await api.get()).status.state == experiment_pb2.STATE_ROLLED_BACK


async def test_target_goes_back_when_its_promotion_is_undone(api: Api) -> None:
    """UndoTarget does the same as the experiment's undo; there is one previous baseline."""
    await api.start()
    await api.verb("Promote", force=True)
    undone = await api.targets.UndoTarget(service.UndoTargetRequest(name=TARGET, request_id="r"))
    assert undone.spec.baseline.upstream.address == "127.0.0.1:8001"
    assert undone.spec.baseline.model.version == "1"
    assert await api.state() == "ROLLED_BACK"
    again = await api.targets.UndoTarget(service.UndoTargetRequest(name=TARGET, request_id="r"))
    assert again == undone
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.targets.UndoTarget(service.UndoTargetRequest(name=TARGET))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert reason(refused.value) == "NO_PREVIOUS"


async def test_undo_is_refused_when_the_previous_baseline_is_no_longer_kept(api: Api) -> None:
    """`keepPrevious` bounds how long a promotion can be undone."""
    await api.create_target(target(TARGET_SPEC + "keepPrevious: 0s\n"))
    await api.create()
    await api.verb("Start")
    await api.verb("Promote", force=True)
    assert not (await api.get_target()).status.HasField("previous")
    for call in (
        api.verb("Undo"),
        api.targets.UndoTarget(service.UndoTargetRequest(name=TARGET)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert reason(refused.value) == "PREVIOUS_EXPIRED"


async def test_ab_step_says_that_analysis_is_pending_when_it_runs(api: Api) -> None:
    """It holds its split; the operator decides."""
    canary = "- canary: {split: {v2: 0.05}, for: 3600s}"
    assert canary in EXPERIMENT_SPEC
    spec = EXPERIMENT_SPEC.replace(canary, "- ab: {split: {v2: 0.5}, confidence: 0.9}")
    await api.start(experiment(spec + "metrics: {primary: {metric: accuracy}}\n"))
    found = await api.until(
        lambda e: any(c.type == "ANALYSIS_PENDING" and c.status for c in e.status.conditions)
    )
    assert found.status.phase == "ab"
    assert dict(found.status.split) == {"control": 0.5, "v2": 0.5}
    results = await api.results()
    assert results.primary_reason == experiment_pb2.REASON_ANALYSIS_PENDING
    assert results.primary_sentence
    promoted = await api.verb("Promote", force=True)
    assert promoted.status.state == experiment_pb2.STATE_PROMOTED
    assert "forced: no sidecar is connected" in promoted.status.last_decision.sentence


async def test_canary_waits_when_an_upstream_is_not_healthy_yet(
    api: Api, sidecar: FakeSidecar
) -> None:
    """The condition names the cluster; the step does not pass."""
    await api.start(experiment(SHORT))
    plan = await sidecar.plan()
    sidecar.report.start_gate = True
    gate = sidecar.report.gates.add(experiment="fraud-v2", epoch=plan.epoch, open=False)
    gate.waiting_for.append("turnout.fraud.cafe")
    sidecar.send(config.StreamRequest(report=sidecar.report))

    def waiting(found: experiment_pb2.Experiment) -> bool:
        return any(
            c.type == "WAITING_FOR_UPSTREAM" and c.status and "turnout.fraud.cafe" in c.message
            for c in found.status.conditions
        )

    found = await api.until(waiting)
    assert found.status.step == 0


async def test_promotion_is_refused_when_the_candidate_was_never_healthy(
    api: Api, sidecar: FakeSidecar
) -> None:
    """FAILED_PRECONDITION by name, while a gate waits or nobody is connected; force overrides."""
    await api.start()
    plan = await sidecar.plan()
    cluster = next(v.cluster.cluster for v in plan.variants if v.name == "v2")
    sidecar.report.start_gate = True
    gate = sidecar.report.gates.add(experiment="fraud-v2", epoch=plan.epoch, open=False)
    gate.waiting_for.append(cluster)
    sidecar.send(config.StreamRequest(report=sidecar.report))
    await api.until(lambda e: any(c.reason == WAITING and c.status for c in e.status.conditions))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.verb("Promote")
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert reason(refused.value) == "WAITING_FOR_UPSTREAM"
    assert cluster in (refused.value.details() or "")
    assert (await api.get_target()).spec.baseline.upstream.address == "127.0.0.1:8001"
    gate.open = True
    del gate.waiting_for[:]
    sidecar.send(config.StreamRequest(report=sidecar.report))
    await api.until(lambda e: all(c.reason != WAITING for c in e.status.conditions))
    promoted = await api.verb("Promote")
    assert promoted.status.last_decision.sentence.startswith("promoted v2 by ")
    assert "forced" not in promoted.status.last_decision.sentence


async def test_promotion_is_refused_when_no_sidecar_is_connected(api: Api) -> None:
    await api.start()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.verb("Promote")
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert reason(refused.value) == "WAITING_FOR_UPSTREAM"
    assert await api.state() == "RUNNING"


async def test_deltas_give_equal_counts_when_delivered_twice_and_out_of_order(api: Api) -> None:
    """A number of an instance counts once."""
    await api.start()
    async with FakeSidecar(api.channel) as sidecar:
        plan = await sidecar.plan()
        batches = [traffic(plan, {"control": 19 * n, "v2": n}) for n in (1, 2, 3)]
        for batch, seq in zip(batches, (3, 1, 2), strict=True):
            batch.seq = seq
        for batch in (*batches, *batches):
            sidecar.send_deltas(batch)
        await sidecar.until(lambda me: len(me.acked) == 6, "6 acks")
    found = await api.results()
    assert {v.variant: v.requests for v in found.epoch_variants} == {"control": 114, "v2": 6}
    assert found.epoch_variants[1].latency_p50_ms > 0


async def test_version_only_grows_when_experiments_change(api: Api, sidecar: FakeSidecar) -> None:
    """And a change that no sidecar needs to know is not pushed."""
    await api.start()
    await sidecar.plan()
    version = sidecar.version
    await api.verb("Pause")
    await api.verb("Resume")
    assert sidecar.version == version
    await api.verb("Advance")
    await sidecar.plan(epoch=2)
    assert sidecar.version == version + 1
    await api.verb("Stop", reason="enough")
    await sidecar.until(lambda me: not me.snapshot.experiments, "stop")
    assert not sidecar.snapshot.tombstones
    versions = [version for version, _, _ in sidecar.pushes]
    assert versions == sorted(set(versions))


async def test_epochs_are_never_used_again_when_a_name_is(api: Api, sidecar: FakeSidecar) -> None:
    """Also not after the experiment was deleted."""
    await api.start()
    await sidecar.plan(epoch=1)
    await api.verb("Advance")
    await sidecar.plan(epoch=2)
    await api.verb("Stop")
    await api.experiments.DeleteExperiment(service.DeleteExperimentRequest(name=EXPERIMENT))
    await api.create()
    started = await api.verb("Start")
    assert started.status.epoch == 3
    results = await api.results()
    assert sum(v.requests for v in results.variants) == 0


async def test_spec_change_begins_an_epoch_when_it_touches_the_comparison(
    api: Api, sidecar: FakeSidecar
) -> None:
    """A later step may change without one; the current split, variants and metrics may not."""
    created = await api.start()
    await sidecar.plan(epoch=1)
    created = await api.get()
    created.spec.steps[1].canary.split["v2"] = 0.4
    changed = await api.experiments.UpdateExperiment(
        service.UpdateExperimentRequest(experiment=created)
    )
    assert (changed.status.epoch, changed.revision) == (1, 2)
    assert changed.status.observed_revision == 2
    changed.spec.steps[0].canary.split["v2"] = 0.1
    changed.etag = ""
    changed = await api.experiments.UpdateExperiment(
        service.UpdateExperimentRequest(experiment=changed)
    )
    assert (changed.status.epoch, changed.revision) == (2, 3)
    plan = await sidecar.plan(epoch=2)
    assert [sum(r.end - r.start for r in v.ranges) for v in plan.variants] == [900_000, 100_000]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target", "other"),
        ("unit", {"cookie": "session"}),
        ("salt", "another"),
    ],
)
async def test_update_is_refused_when_a_running_experiment_is_no_longer_the_same(
    api: Api, field: str, value: object
) -> None:
    """FAILED_PRECONDITION, and nothing changes."""
    elsewhere = target(TARGET_SPEC.replace("fraud.risk.svc", "other.risk.svc"))
    await api.create_target(elsewhere, target_id="other")
    before = await api.start()
    wanted = json_format.ParseDict({"name": EXPERIMENT, "spec": {field: value}}, Experiment())
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.experiments.UpdateExperiment(
            service.UpdateExperimentRequest(
                experiment=wanted, update_mask=FieldMask(paths=[f"spec.{field}"])
            )
        )
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert field in (refused.value.details() or "")
    assert (await api.get()).spec == before.spec


async def test_target_cannot_change_under_a_running_experiment(api: Api) -> None:
    """Its baseline is the experiment's control; it can be deleted only afterwards."""
    await api.start()
    changed = await api.get_target()
    changed.spec.baseline.upstream.address = "127.0.0.1:9999"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.targets.UpdateTarget(service.UpdateTargetRequest(target=changed))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert reason(refused.value) == "TARGET_IN_USE"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.targets.DeleteTarget(service.DeleteTargetRequest(name=TARGET))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    await api.verb("Stop")
    await api.targets.DeleteTarget(service.DeleteTargetRequest(name=TARGET))


async def test_tombstone_of_a_sidecar_rolls_back_when_we_had_forgotten(api: Api) -> None:
    """It was published before a crash and not stored: it is learnt back, and told to the others."""
    await api.start()
    async with FakeSidecar(api.channel, "node-1", instance="one") as other:
        await other.plan()
        dead = Tombstone(experiment="fraud-v2", epoch=1, reason="was bad", time_unix_ms=1)
        async with FakeSidecar(
            api.channel, "node-2", instance="two", tombstones=[dead], applied_version=40
        ) as knowing:
            await knowing.until(lambda me: me.pushes, "a snapshot")
            # Never the version that would revive it, and above the one that it serves.
            assert not any(s.experiments for _, s, _ in knowing.pushes)
            assert knowing.pushes[-1][0] > 40
        await other.until(lambda me: not me.snapshot.experiments, "rollback")
    found = await api.get()
    assert found.status.state == STATE_ROLLED_BACK
    assert "was bad" in found.status.reason
    with pytest.raises(grpc.aio.AioRpcError):
        await api.verb("Start")


async def test_operator_rolls_back_when_the_store_cannot_write(
    plane: ControlPlane, api: Api, sidecar: FakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published first; stored when the store can again."""
    await api.start()
    await sidecar.plan()
    commit = plane.store.commit

    async def full(change: Change) -> None:
        raise StoreUnavailable("disk full")

    monkeypatch.setattr(plane.store, "commit", full)
    found = await api.verb("Rollback", reason="bad")
    assert found.status.state == STATE_ROLLED_BACK
    await sidecar.until(lambda me: not me.snapshot.experiments, "rollback")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.create(experiment_id="another")
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    monkeypatch.setattr(plane.store, "commit", commit)
    await api.create(experiment_id="another")
    stored = await plane.store.get(Kind.EXPERIMENT, "risk", "fraud-v2")
    assert stored is not None
    assert load_experiment(stored).run.state == "ROLLED_BACK"
    assert [t.epoch for t in await plane.store.tombstones("risk")] == [1]


async def test_rollback_wins_when_another_change_is_being_stored(
    plane: ControlPlane, api: Api, sidecar: FakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A promotion that a slow disk holds up does not revive what was rolled back meanwhile."""
    await api.start()
    await sidecar.plan()
    await api.reported()
    commit = plane.store.commit
    held, go_on = asyncio.Event(), asyncio.Event()

    async def slow(change: Change) -> None:
        held.set()
        await go_on.wait()
        await commit(change)

    monkeypatch.setattr(plane.store, "commit", slow)
    promotion = asyncio.create_task(api.verb("Promote", variant="v2"))
    await held.wait()
    await api.verb("Rollback")
    await sidecar.until(lambda me: not me.snapshot.experiments, "rollback")
    monkeypatch.setattr(plane.store, "commit", commit)
    go_on.set()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await promotion
    assert refused.value.code() is grpc.StatusCode.ABORTED
    assert await api.state() == "ROLLED_BACK"
    kept = await api.get_target()
    assert kept.spec.baseline.upstream.address == "127.0.0.1:8001"
    await api.experiments.ListDecisions(service.ListDecisionsRequest(parent=EXPERIMENT))
    stored = await plane.store.get(Kind.EXPERIMENT, "risk", "fraud-v2")
    stored_target = await plane.store.get(Kind.TARGET, "risk", "fraud")
    assert stored is not None
    assert stored_target is not None
    assert load_experiment(stored).run.state == "ROLLED_BACK"
    assert load_target(stored_target).spec.baseline.upstream.address == "127.0.0.1:8001"


async def test_both_changes_are_served_when_one_is_rolled_back_while_the_other_is_stored(
    plane: ControlPlane, api: Api, sidecar: FakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rollback does not wait; the change that was being stored comes in a later version."""
    await api.start()
    other = TARGET_SPEC.replace("fraud.risk.svc", "other.risk.svc")
    await api.create_target(target(other), target_id="other")
    await api.create(experiment(EXPERIMENT_SPEC.replace("target: fraud", "target: other")), "o")
    await sidecar.plan()
    commit = plane.store.commit
    held, go_on = asyncio.Event(), asyncio.Event()

    async def slow(change: Change) -> None:
        held.set()
        await go_on.wait()
        await commit(change)

    monkeypatch.setattr(plane.store, "commit", slow)
    starting = asyncio.create_task(api.verb("Start", f"{PARENT}/experiments/o"))
    await held.wait()
    await api.verb("Rollback")
    await sidecar.until(lambda me: not me.snapshot.experiments, "rollback")
    monkeypatch.setattr(plane.store, "commit", commit)
    go_on.set()
    assert (await starting).status.state == STATE_RUNNING
    await sidecar.plan("o")
    assert [e.name for e in sidecar.snapshot.experiments] == ["o"]
    assert [t.experiment for t in sidecar.snapshot.tombstones] == ["fraud-v2"]
    versions = [version for version, _, _ in sidecar.pushes]
    assert versions == sorted(set(versions))
    tenant = plane.ledger.find("risk")
    assert tenant is not None
    assert await plane.ledger.settle(tenant)
    stored = await plane.store.snapshot("risk")
    assert stored is not None
    assert stored.version == sidecar.version


async def test_change_is_whole_when_its_client_gives_up(
    plane: ControlPlane, api: Api, sidecar: FakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored is what is served, although nobody waits for the answer."""
    await api.create_target()
    await api.create()
    commit = plane.store.commit
    held, go_on = asyncio.Event(), asyncio.Event()

    async def slow(change: Change) -> None:
        held.set()
        await go_on.wait()
        await commit(change)

    monkeypatch.setattr(plane.store, "commit", slow)
    starting = asyncio.create_task(api.verb("Start"))
    await held.wait()
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    go_on.set()
    await sidecar.plan()
    assert await api.state() == "RUNNING"


@pytest.mark.parametrize("disk", ["full", "slow"])
async def test_candidate_is_rolled_back_when_the_disk_is_full_or_slow(
    plane: ControlPlane, api: Api, sidecar: FakeSidecar, monkeypatch: pytest.MonkeyPatch, disk: str
) -> None:
    """Evidence that cannot be stored yet is looked at; it is acknowledged when it is stored."""
    await api.start()
    plan = await sidecar.plan()
    await sidecar.deltas(traffic(plan, {"control": 1900, "v2": 100}, {"control": 1}))
    repaired = asyncio.Event()
    append, commit = plane.store.append_journal, plane.store.commit

    async def broken_append(*args: Any) -> Any:
        if disk == "full":
            raise StoreUnavailable("disk full")
        await repaired.wait()
        return await append(*args)

    async def broken_commit(change: Change) -> None:
        if disk == "full":
            raise StoreUnavailable("disk full")
        await repaired.wait()
        await commit(change)

    monkeypatch.setattr(plane.store, "append_journal", broken_append)
    monkeypatch.setattr(plane.store, "commit", broken_commit)
    begin = time.monotonic()
    batch = traffic(plan, {"control": 1900, "v2": 100}, {"v2": 40})
    sidecar.send_deltas(batch)
    await sidecar.until(lambda me: not me.snapshot.experiments, "rollback")
    assert sidecar.pushes[-1][2] - begin < 2.0
    assert batch.seq not in sidecar.acked
    monkeypatch.undo()
    repaired.set()
    await sidecar.deltas(batch)
    await wait_for(lambda: _stored_state(plane), "the rollback is stored")
    tenant = plane.ledger.find("risk")
    assert tenant is not None
    assert tenant.ahead is None
    found = {v.variant: v.requests for v in (await api.results()).variants}
    assert found == {"control": 3800, "v2": 200}


async def _stored_state(plane: ControlPlane) -> bool:
    stored = await plane.store.get(Kind.EXPERIMENT, "risk", "fraud-v2")
    return stored is not None and load_experiment(stored).run.state == "ROLLED_BACK"


async def test_sidecar_is_shown_with_what_it_acknowledged(api: Api) -> None:
    """An ACK raises the version; a NACK shows every violation and changes nothing."""
    await api.start()
    async with (
        FakeSidecar(api.channel, "good") as good,
        FakeSidecar(api.channel, "refusing", nack=True) as refusing,
    ):
        await good.plan()
        await refusing.plan()

        async def listed() -> dict[str, config.Sidecar]:
            found = await api.sidecars.ListSidecars(config.ListSidecarsRequest(parent=PARENT))
            return {s.node: s for s in found.sidecars}

        async def settled() -> bool:
            found = await listed()
            return found["good"].acked_version > 0 and len(found["refusing"].nack) > 0

        await wait_for(settled, "ACK and NACK are shown")
        found = await listed()
        assert found["good"].acked_version == found["good"].current_version == good.version
        assert found["refusing"].acked_version == 0
        assert found["refusing"].nack[0].rule == "refused by a test"
        assert found["refusing"].connected
    await wait_for(lambda: _away(api), "both are away")


async def _away(api: Api) -> bool:
    found = await api.sidecars.ListSidecars(config.ListSidecarsRequest(parent=PARENT))
    return not any(s.connected for s in found.sidecars)
