"""A sidecar without an Envoy: its processes, its disk and its stream, under faults."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import grpc
import pytest

from tests.integration.extproc import WorkerClient, entry_of, request_of
from tests.integration.harness import FakeControl, Pod, Sidecar, Stage, one_experiment, wait_for
from tests.integration.snapshots import EXPERIMENT, expected_variant
from turnout.v1alpha1.common_pb2 import Tombstone
from turnout.v1alpha1.snapshot_pb2 import Snapshot

USERS = [f"user-{i}" for i in range(40)]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage() as stage:
        yield stage


@pytest.fixture
async def pods(stage: Stage) -> tuple[Pod, Pod]:
    return await stage.pod("v1"), await stage.pod("v2")


def socket_of(stage: Stage, worker: int = 0) -> Path:
    return Path(f"{stage.socket}.{worker}")


async def sidecar_of(stage: Stage, fake: FakeControl, workers: int = 1) -> Sidecar:
    return await stage.sidecar(control=fake.address, workers=workers, envoy_admin=False)


async def assigned(stage: Stage, worker: int = 0) -> list[str]:
    async with WorkerClient(socket_of(stage, worker)) as client:
        return [await client.variant(user) for user in USERS]


async def served(fake: FakeControl, snapshot: Snapshot) -> None:
    fake.push(snapshot)
    ack = await fake.acked(snapshot.version)
    assert not ack.violations


async def test_sidecar_is_not_serving_and_answers_nothing_when_it_has_no_snapshot(
    stage: Stage,
) -> None:
    fake = await stage.fake_control()
    await sidecar_of(stage, fake)
    await wait_for(socket_of(stage).exists, "the socket is there")
    assert stat.S_IMODE(socket_of(stage).stat().st_mode) == 0o660
    async with WorkerClient(socket_of(stage)) as client:
        assert not await client.serving()
        assert await client.process(request_of("u")) is None
    await wait_for(lambda: fake.target_total("no_snapshot") == 1, "the answer is counted")
    assert fake.reports[-1].config_state == "NO_SNAPSHOT"
    assert not fake.reports[-1].start_gate


async def test_worker_answers_by_the_ranges_when_a_snapshot_is_pushed(
    stage: Stage, pods: tuple[Pod, Pod]
) -> None:
    fake = await stage.fake_control()
    await sidecar_of(stage, fake, workers=2)
    snapshot = one_experiment(*pods, {"v2": 0.5}, version=3)
    await served(fake, snapshot)
    for worker in (0, 1):
        await wait_for(socket_of(stage, worker).exists, "the socket is there")
        assert await assigned(stage, worker) == [expected_variant(snapshot, u) for u in USERS]
    await wait_for(lambda: sum(fake.total("decided").values()) == 2 * len(USERS), "all decided")
    await wait_for(lambda: fake.reports[-1].applied_version == 3, "the report names the version")
    assert fake.reports[-1].config_state == "CURRENT"


async def test_old_plan_serves_on_when_a_bad_snapshot_is_pushed(
    stage: Stage, pods: tuple[Pod, Pod]
) -> None:
    fake = await stage.fake_control()
    await sidecar_of(stage, fake)
    good = one_experiment(*pods, {"v2": 0.5}, version=1)
    await served(fake, good)
    bad = one_experiment(*pods, {"v2": 0.9}, version=2)
    bad.experiments[0].variants[0].ranges[0].start += 1
    bad.experiments[0].target = "nowhere"
    fake.push(bad)
    violations = (await fake.acked(2)).violations
    assert any("ranges" in violation.field + violation.rule for violation in violations)
    assert any(violation.value == "nowhere" for violation in violations)
    fake.push_bytes(3, b"\xff\xff not a snapshot")
    assert (await fake.acked(3)).violations
    other = one_experiment(*pods, {"v2": 0.9}, version=4)
    other.tenant = "somebody-else"
    fake.push(other)
    assert [v.field for v in (await fake.acked(4)).violations] == ["tenant"]
    assert await assigned(stage) == [expected_variant(good, user) for user in USERS]
    await served(fake, one_experiment(*pods, {"v2": 0.6}, version=5))


async def test_assignments_are_the_same_when_control_is_dead_and_the_sidecar_restarts(
    stage: Stage, pods: tuple[Pod, Pod]
) -> None:
    fake = await stage.fake_control()
    sidecar = await sidecar_of(stage, fake)
    snapshot = one_experiment(*pods, {"v2": 0.5}, version=7)
    await served(fake, snapshot)
    async with WorkerClient(socket_of(stage)) as client:
        before = [await client.process(request_of(user)) for user in USERS]
    state = stage.directory / "state"
    await wait_for((state / "snapshot").exists, "the snapshot is on disk")
    assert stat.S_IMODE((state / "tenant.key").stat().st_mode) == 0o600
    await fake.stop()
    await sidecar.stop()
    # The newest file is damaged by one bit: the one before it is used, or, here, none is there.
    await sidecar_of(stage, fake)
    await wait_for(lambda: is_serving(stage), "it serves from disk")
    async with WorkerClient(socket_of(stage)) as client:
        assert [await client.process(request_of(user)) for user in USERS] == before


async def is_serving(stage: Stage, worker: int = 0) -> bool:
    if not socket_of(stage, worker).exists():
        return False
    async with WorkerClient(socket_of(stage, worker)) as client:
        return await client.serving()


async def test_previous_snapshot_serves_when_the_newest_on_disk_is_damaged(
    stage: Stage, pods: tuple[Pod, Pod]
) -> None:
    fake = await stage.fake_control()
    sidecar = await sidecar_of(stage, fake)
    first = one_experiment(*pods, {"v2": 0.2}, version=1)
    state = stage.directory / "state"
    await served(fake, first)
    await wait_for((state / "snapshot").exists, "the first is on disk")
    await served(fake, one_experiment(*pods, {"v2": 0.9}, version=2))
    await wait_for((state / "snapshot.prev").exists, "the second is on disk")
    await fake.stop()
    await sidecar.stop()
    data = bytearray((state / "snapshot").read_bytes())
    data[-1] ^= 1
    (state / "snapshot").write_bytes(data)
    restarted = await sidecar_of(stage, fake)
    await wait_for(lambda: is_serving(stage), "it serves from disk")
    assert await assigned(stage) == [expected_variant(first, user) for user in USERS]
    assert "passed over" in restarted.output()


async def test_decided_counts_survive_when_workers_are_killed(
    stage: Stage, pods: tuple[Pod, Pod]
) -> None:
    fake = await stage.fake_control()
    sidecar = await sidecar_of(stage, fake)
    await served(fake, one_experiment(*pods, {"v2": 0.5}, version=1))
    for round_number in range(1, 4):
        await wait_for(lambda: is_serving(stage), "the worker serves")
        await assigned(stage)
        # At once: not a single flush was possible since the answers.
        killed = sidecar.kill_workers(signal.SIGKILL)
        assert len(killed) == 1
        expected = round_number * len(USERS)
        await wait_for(partial(is_decided, fake, expected), "every answer is counted")
    await wait_for(lambda: fake.reports[-1].worker_restarts == 3, "restarts are reported")


def is_decided(fake: FakeControl, count: int) -> bool:
    return sum(fake.total("decided").values()) == count


async def test_worker_is_replaced_within_seconds_when_it_stands_still(
    stage: Stage, pods: tuple[Pod, Pod]
) -> None:
    fake = await stage.fake_control()
    sidecar = await sidecar_of(stage, fake)
    await served(fake, one_experiment(*pods, {"v2": 0.5}, version=1))
    (silent,) = sidecar.kill_workers(signal.SIGSTOP)
    started = time.monotonic()
    await wait_for(lambda: silent not in sidecar.workers(), "the silent one is killed")
    assert 1.0 < time.monotonic() - started < 5.0
    await wait_for(lambda: is_serving(stage), "another one serves")
    assert "was silent for" in sidecar.output()


async def test_workers_live_on_when_it_was_the_supervisor_that_stood_still(
    stage: Stage, pods: tuple[Pod, Pod]
) -> None:
    fake = await stage.fake_control()
    sidecar = await sidecar_of(stage, fake)
    await served(fake, one_experiment(*pods, {"v2": 0.5}, version=1))
    workers = sidecar.workers()
    os.kill(sidecar.pid, signal.SIGSTOP)
    stopped = time.monotonic()
    while time.monotonic() - stopped < 3.0:  # longer than a worker may be silent
        await assigned(stage)
    os.kill(sidecar.pid, signal.SIGCONT)
    reports = len(fake.reports)
    await wait_for(lambda: len(fake.reports) > reports + 1, "it reports again")
    assert sidecar.workers() == workers
    assert fake.reports[-1].worker_restarts == 0


async def test_tombstoned_epoch_never_serves_again_when_an_older_snapshot_is_pushed(
    stage: Stage, pods: tuple[Pod, Pod]
) -> None:
    fake = await stage.fake_control()
    sidecar = await sidecar_of(stage, fake)
    old = one_experiment(*pods, {"v2": 0.5}, version=1, epoch=4)
    await served(fake, old)
    assert any(await assigned(stage))
    fake.bury(Tombstone(experiment=EXPERIMENT, epoch=4, reason="test"))
    await wait_for(lambda: nobody_assigned(stage), "nobody is enrolled")
    old.version = 2
    await served(fake, old)
    assert not any(await assigned(stage))
    state = stage.directory / "state"
    await wait_for((state / "tombstones").exists, "the tombstone is on disk")
    await fake.stop()
    await sidecar.stop()
    sidecar = await sidecar_of(stage, fake)
    await wait_for(lambda: is_serving(stage), "it serves from disk")
    assert not any(await assigned(stage))
    await fake.start()
    await wait_for(lambda: len(fake.hellos) > 1, "it is connected again", timeout_s=30)
    assert [(t.experiment, t.epoch) for t in fake.hellos[-1].tombstones] == [(EXPERIMENT, 4)]
    await served(fake, one_experiment(*pods, {"v2": 0.5}, version=3, epoch=5))
    await wait_for(lambda: somebody_assigned(stage), "a newer epoch serves")


async def nobody_assigned(stage: Stage) -> bool:
    return not any(await assigned(stage))


async def somebody_assigned(stage: Stage) -> bool:
    return any(await assigned(stage))


async def test_deltas_are_sent_again_when_the_stream_breaks_before_the_acknowledgement(
    stage: Stage, pods: tuple[Pod, Pod]
) -> None:
    fake = await stage.fake_control()
    fake.acknowledge = False
    await sidecar_of(stage, fake)
    await served(fake, one_experiment(*pods, {"v2": 0.5}, version=1))
    await assigned(stage)
    await wait_for(lambda: sum(fake.total("decided").values()) == len(USERS), "the batch came")
    assert fake.repeats == 0
    await fake.stop()
    fake.acknowledge = True
    await fake.start()
    await wait_for(lambda: fake.repeats > 0, "unacknowledged batches come again", timeout_s=30)
    repeats = fake.repeats
    newest = max(seq for _, seq in fake.batches)
    await wait_for(lambda: max(seq for _, seq in fake.batches) > newest + 2, "new batches come")
    assert fake.repeats == repeats
    assert sum(fake.total("decided").values()) == len(USERS)


async def test_refused_batch_is_dropped_and_counted_and_others_come(
    stage: Stage, pods: tuple[Pod, Pod]
) -> None:
    fake = await stage.fake_control()
    fake.refuses = lambda batch: bool(batch.counts) and not fake.refused
    await sidecar_of(stage, fake)
    await served(fake, one_experiment(*pods, {"v2": 0.5}, version=1))
    await assigned(stage)
    await wait_for(lambda: fake.refused, "a batch is refused")
    before = len(fake.batches)
    await wait_for(lambda: len(fake.batches) > before + 2, "others come", timeout_s=30)
    assert fake.refused[0] not in fake.batches
    assert len(fake.refused) == 1
    assert await stage.metric("turnout_sidecar_deltas_dropped_total") == 1
    await served(fake, one_experiment(*pods, {"v2": 0.0}, version=2))


async def test_last_counts_are_acknowledged_when_the_sidecar_stops(
    stage: Stage, pods: tuple[Pod, Pod]
) -> None:
    fake = await stage.fake_control()
    sidecar = await sidecar_of(stage, fake)
    await served(fake, one_experiment(*pods, {"v2": 0.5}, version=1))
    async with WorkerClient(socket_of(stage)) as client:
        stamped = [await client.process(request_of(user)) for user in USERS]
        stamps = [headers["x-turnout"] for headers in stamped if headers]
        await client.log(*(entry_of(stamp, request_id=f"r{i}") for i, stamp in enumerate(stamps)))
    await sidecar.stop()
    assert sum(fake.total("decided").values()) == len(USERS)
    assert sum(fake.total("requests").values()) == len(USERS)
    assert not socket_of(stage).exists()


async def test_worker_refuses_and_serves_on_when_messages_are_garbage(
    stage: Stage, pods: tuple[Pod, Pod]
) -> None:
    fake = await stage.fake_control()
    await sidecar_of(stage, fake)
    await served(fake, one_experiment(*pods, {"v2": 0.5}, version=1))
    async with WorkerClient(socket_of(stage)) as client:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.process(b"\xff\xff\xff")
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.log(b"\xff\xff\xff")
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await client.variant("u")


async def test_workers_go_when_their_supervisor_is_killed(
    stage: Stage, pods: tuple[Pod, Pod]
) -> None:
    fake = await stage.fake_control()
    sidecar = await sidecar_of(stage, fake)
    await served(fake, one_experiment(*pods, {"v2": 0.5}, version=1))
    (worker,) = sidecar.workers()
    await sidecar.kill(signal.SIGKILL)
    await wait_for(lambda: not Path(f"/proc/{worker}/stat").exists() or zombie(worker), "it ends")
    await sidecar_of(stage, fake)
    await wait_for(lambda: is_serving(stage), "the next one serves from disk")


def zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


async def test_command_says_why_when_it_cannot_run(stage: Stage, pods: tuple[Pod, Pod]) -> None:
    snapshot = stage.snapshot_file(one_experiment(*pods, {"v2": 0.5}), "s")
    listen = ["--listen", f"unix:{stage.socket}"]
    serve = ["sidecar", *listen, "--snapshot", str(snapshot)]
    text = await stage.run("sidecar", *listen, code=2)
    assert "--control" in text
    assert "--snapshot" in text
    text = await stage.run("sidecar", *listen, "--control", "nowhere", "--tenant", "t", code=2)
    assert "--state-dir" in text
    text = await stage.run("sidecar", "--listen", "/a", "--snapshot", str(snapshot), code=2)
    assert "unix:PATH" in text
    text = await stage.run(*serve, "--metrics", "127.0.0.1:http", code=2)
    assert "--metrics" in text
    text = await stage.run(*serve, "--state-dir", "/proc/nope", code=1)
    assert "/proc/nope" in text
    assert "cannot be used" in text
    damaged = stage.directory / "damaged"
    damaged.write_bytes(snapshot.read_bytes()[:-1])
    text = await stage.run("sidecar", *listen, "--snapshot", str(damaged), code=3)
    assert "not a snapshot file" in text
    await stage.sidecar(snapshot=one_experiment(*pods, {"v2": 0.5}), envoy_admin=False, workers=1)
    await wait_for(lambda: is_serving(stage), "a sidecar serves")
    text = await stage.run(*serve, "--workers", "1", code=1)
    assert "in use" in text
    assert socket_of(stage).is_socket(), "the refused one takes no socket away"
    state = str(stage.directory / "state")
    other = ["sidecar", "--listen", f"unix:{stage.directory}/x", "--snapshot", str(snapshot)]
    text = await stage.run(*other, "--state-dir", state, code=1)
    assert "in use by another sidecar" in text


async def test_stand_alone_serves_the_new_file_when_it_gets_sighup(
    stage: Stage, pods: tuple[Pod, Pod]
) -> None:
    first = one_experiment(*pods, {"v2": 0.1})
    sidecar = await stage.sidecar(snapshot=first, envoy_admin=False, workers=1)
    await wait_for(lambda: is_serving(stage), "it serves")
    second = one_experiment(*pods, {"v2": 0.9}, version=2)
    stage.snapshot_file(second, "served")
    os.kill(sidecar.pid, signal.SIGHUP)
    expected = [expected_variant(second, user) for user in USERS]

    async def changed() -> bool:
        return await assigned(stage) == expected

    await wait_for(changed, "the new file serves")
    (stage.directory / "served.snapshot").write_bytes(b"rubbish")
    os.kill(sidecar.pid, signal.SIGHUP)
    await wait_for(lambda: "served on" in sidecar.output(), "the refusal is logged")
    assert await assigned(stage) == expected
