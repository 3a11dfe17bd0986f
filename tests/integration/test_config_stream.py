"""The control plane goes, errs and comes back; the split stays as it was."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.envoyfiles import ROUTES_FILE
from tests.integration.harness import (
    FakeControl,
    Pod,
    Sidecar,
    Stage,
    one_experiment,
    one_target,
    wait_for,
)
from tests.integration.snapshots import EXPERIMENT
from turnout.v1alpha1.common_pb2 import Tombstone
from turnout.v1alpha1.snapshot_pb2 import BucketRange, Snapshot

USERS = [f"user-{i}" for i in range(300)]
BACKOFF_MAX_S = 30


async def _start(stage: Stage) -> tuple[FakeControl, Sidecar, Snapshot]:
    v1, v2 = await stage.pod("v1", record=True), await stage.pod("v2", record=True)
    fake = await stage.fake_control()
    await stage.envoy(one_target(v1))
    sidecar = await stage.sidecar(control=fake.address)
    snapshot = one_experiment(v1, v2, {"v2": 0.3})
    fake.push(snapshot)
    await fake.serving(snapshot)
    await stage.enrols()
    return fake, sidecar, snapshot


async def _stamps(stage: Stage) -> Mapping[str, str]:
    """The very bytes of each user's stamp, as the pods got them."""
    for pod in stage.pods:
        pod.seen.clear()
    await stage.stamped(USERS)
    seen = [one for pod in stage.pods for one in pod.seen]
    return {
        s.headers["x-user-id"]: s.headers["x-turnout"] for s in seen if "x-turnout" in s.headers
    }


async def test_assignments_are_byte_equal_when_control_is_gone_and_the_sidecar_restarts(
    stage: Stage,
) -> None:
    fake, _, _ = await _start(stage)
    before = await _stamps(stage)
    assert len(before) == len(USERS)
    await fake.stop()
    assert await _stamps(stage) == before
    await stage.restart_sidecar(control=fake.address)
    await stage.workers_serve()
    await stage.enrols()
    assert await _stamps(stage) == before
    # And when it is back, it hears of the time without it (but for what the killed one knew).
    known = fake.total("decided").total()
    await fake.start()
    await wait_for(
        lambda: fake.total("decided").total() >= known + len(USERS),
        "requests without a control plane are known",
        timeout_s=BACKOFF_MAX_S + 10,
    )


async def test_old_plan_serves_on_when_a_snapshot_is_bad(stage: Stage) -> None:
    fake, _, snapshot = await _start(stage)
    before = await _stamps(stage)
    bad = Snapshot()
    bad.CopyFrom(snapshot)
    bad.version = 2
    bad.experiments[0].variants[1].name = "v2\nx-evil: 1"
    bad.experiments[0].variants[0].ranges.append(BucketRange(start=0, end=2_000_000))
    fake.push(bad)
    nack = await fake.acked(2)
    fields = " ".join(violation.field for violation in nack.violations)
    assert "variants[1].name" in fields
    assert "ranges" in fields
    fake.push_bytes(3, b"\xff\xff not a snapshot")
    assert (await fake.acked(3)).violations
    assert await _stamps(stage) == before
    good = one_experiment(*_two(stage), {"v2": 0.3}, version=4)
    fake.push(good)
    assert not (await fake.acked(4)).violations
    assert await _stamps(stage) == before


async def test_buried_revision_never_serves_when_it_is_pushed_again(stage: Stage) -> None:
    fake, sidecar, snapshot = await _start(stage)
    fake.bury(Tombstone(experiment=EXPERIMENT, epoch=1, reason="too many errors", time_unix_ms=1))

    async def nobody() -> bool:
        return not any(a.variant for a in await stage.users(USERS[:30]))

    await wait_for(nobody, "nobody is enrolled")
    again = Snapshot()
    again.CopyFrom(snapshot)
    again.version = 2
    fake.push(again)
    await fake.acked(2)
    answers = await stage.users(USERS)
    assert {(a.status, a.pod, a.variant) for a in answers} == {(200, "v1", "")}
    # Not from the disk either, without a control plane that could tell.
    await fake.stop()
    await sidecar.stop()
    await stage.sidecar(control=fake.address)
    await stage.workers_serve()
    answers = await stage.users(USERS)
    assert {(a.status, a.pod, a.variant) for a in answers} == {(200, "v1", "")}
    # The next revision does.
    await fake.start()
    fake.push(one_experiment(*_two(stage), {"v2": 0.3}, version=3, epoch=2))
    await fake.gate(EXPERIMENT, 2)
    await stage.enrols()


def _two(stage: Stage) -> tuple[Pod, Pod]:
    first, second = stage.pods
    return first, second


async def test_routes_say_the_step_when_it_changes_and_nothing_else_does(stage: Stage) -> None:
    """Spans show it; requests go on as they were."""
    fake, _, snapshot = await _start(stage)
    before = await _stamps(stage)
    later = Snapshot()
    later.CopyFrom(snapshot)
    later.version = 2
    later.experiments[0].step = 7
    fake.push(later)
    await fake.serving(later)
    routes = stage.envoy_dir / ROUTES_FILE
    await wait_for(lambda: "step: '7'" in routes.read_text().replace('"', "'"), "step 7 is there")
    assert await _stamps(stage) == before
