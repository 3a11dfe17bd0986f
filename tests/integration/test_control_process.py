"""The control plane as a process: start, stop, crash, come back; alerts; grpcurl's reflection."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.control.peers import (
    EXPERIMENT,
    EXPERIMENT_SPEC,
    PARENT,
    Api,
    FakeSidecar,
    experiment,
    traffic,
)
from tests.integration.harness import Stage
from tests.integration.waiting import free_port, wait_for
from turnout.v1alpha1 import config_service_pb2 as config
from turnout.v1alpha1 import experiment_service_pb2 as service
from turnout.v1alpha1.experiment_pb2 import (
    ACTION_ROLLBACK,
    STATE_ROLLED_BACK,
    STATE_RUNNING,
)

SHORT = EXPERIMENT_SPEC.replace("for: 3600s", "for: 1s, minimumRequests: 30")


async def test_run_evidence_and_version_are_the_same_when_killed_in_mid_rollout(
    stage: Stage,
) -> None:
    """kill -9: the next process goes on where this one was, and finishes the rollout."""
    plane = await stage.control()
    async with Api(plane.address) as api:
        await api.start(experiment(SHORT + "onFinish: ON_FINISH_PROMOTE\n"))
        async with FakeSidecar(api.channel) as sidecar:
            plan = await sidecar.plan()
            await sidecar.deltas(traffic(plan, {"control": 950, "v2": 50}, {"control": 3}))
            plan = await sidecar.plan(epoch=2)
            await sidecar.deltas(traffic(plan, {"control": 10, "v2": 10}, {"control": 1}))
            version, snapshot, key = sidecar.version, sidecar.snapshot, sidecar.keys[-1]
        before = await api.get()
        results = await api.results()
    await plane.kill(signal.SIGKILL)
    again = await stage.control(port=plane.port, store=plane.store.name)
    async with Api(again.address) as api:
        after = await api.get()
        assert after.spec == before.spec
        assert after.status.state == STATE_RUNNING
        for field in ("epoch", "epoch_start_time", "step", "step_start_time", "split"):
            assert getattr(after.status, field) == getattr(before.status, field), field
        assert (await api.results()).epoch_variants == results.epoch_variants
        assert (await api.results()).variants == results.variants
        async with FakeSidecar(api.channel, applied_version=version) as sidecar:
            await sidecar.until(lambda me: me.pushes, "the snapshot")
            assert sidecar.version == version
            assert sidecar.snapshot == snapshot
            assert sidecar.keys == [key]
            repeated = traffic(plan, {"control": 10, "v2": 10})
            repeated.seq = 2
            await sidecar.deltas(repeated)
            assert (await api.results()).epoch_variants == results.epoch_variants
            sidecar.seq = 2
            await sidecar.deltas(traffic(plan, {"control": 500, "v2": 500}))
            await sidecar.until(lambda me: not me.snapshot.experiments, "promotion")
            assert sidecar.version == version + 1
    assert await again.stop() == 0


async def test_rollback_is_learnt_back_when_it_was_published_and_not_stored(stage: Stage) -> None:
    """The store of before the rollback, a sidecar of after it: the rollback stands."""
    plane = await stage.control()
    async with Api(plane.address) as api:
        await api.start()
    assert await plane.stop() == 0
    copy = stage.directory / "before.db"
    copy.write_bytes(plane.store.read_bytes())
    plane = await stage.control(store=plane.store.name)
    async with Api(plane.address) as api, FakeSidecar(api.channel) as sidecar:
        await sidecar.plan()
        await api.verb("Rollback", reason="bad")
        await sidecar.until(lambda me: not me.snapshot.experiments, "rollback")
        version, tombstones = sidecar.version, list(sidecar.tombstones)
    await plane.kill(signal.SIGKILL)
    plane = await stage.control(store=copy.name)
    async with Api(plane.address) as api:
        assert await api.state() == "RUNNING"
        peer = FakeSidecar(api.channel, tombstones=tombstones, applied_version=version)
        async with peer as sidecar:
            await sidecar.until(lambda me: me.pushes, "a snapshot")
            assert sidecar.version > version
            assert not any(s.experiments for _, s, _ in sidecar.pushes)
        found = await api.get()
        assert found.status.state == STATE_ROLLED_BACK
        assert "learnt" in found.status.reason


async def test_webhook_is_delivered_when_traffic_is_taken_away(stage: Stage) -> None:
    """JSON with the numbers, retried, and from the stored outbox after a crash."""
    bodies: list[Any] = []
    port = free_port()
    hook = f"http://127.0.0.1:{port}/hook"
    plane = await stage.control("--webhook", hook)
    async with Api(plane.address) as api:
        await api.start()
        async with FakeSidecar(api.channel) as sidecar:
            plan = await sidecar.plan()
            sidecar.send_deltas(traffic(plan, {"control": 1900, "v2": 100}, {"v2": 40}))
            await sidecar.until(lambda me: not me.snapshot.experiments, "rollback")
        page = await api.experiments.ListDecisions(service.ListDecisionsRequest(parent=EXPERIMENT))
        assert page.decisions[0].action == ACTION_ROLLBACK
    await plane.kill(signal.SIGKILL)
    async with receiver(port, bodies):
        plane = await stage.control("--webhook", hook, store=plane.store.name)
        await wait_for(lambda: bodies, "the alert")
    (body,) = bodies
    assert body["type"] == "rollback"
    assert body["experiment"] == EXPERIMENT
    assert body["reason"] == "LANE_ERROR"
    assert body["sentence"] == page.decisions[0].sentence
    assert body["epoch"] == 1


async def test_port_in_use_is_named_when_the_control_plane_starts(stage: Stage) -> None:
    """One line, exit code 1; the store is not left locked."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        store = f"sqlite:{stage.directory}/control.db"
        output = await stage.run("control", "--listen", address, "--store", store, code=1)
    assert f"cannot listen on {address}" in output
    assert "Traceback" not in output
    await stage.control()


async def test_bad_arguments_are_refused_when_the_control_plane_starts(stage: Stage) -> None:
    """Each by name."""
    listen = ("control", "--listen", f"127.0.0.1:{free_port()}")
    for arguments, code, word in (
        (("--store", "mysql:x"), 1, "sqlite:PATH"),
        (("--store", "sqlite:/nowhere/at/all/turnout.db"), 1, "/nowhere/at/all"),
        (("--webhook", "ftp://x"), 2, "http(s)"),
        (("--metrics", "here"), 2, "HOST:PORT"),
    ):
        output = await stage.run(*listen, *arguments, code=code)
        assert word in output
        assert "Traceback" not in output


async def test_store_is_refused_when_another_process_has_it(stage: Stage) -> None:
    """Two writers would each know half."""
    plane = await stage.control()
    listen = f"127.0.0.1:{free_port()}"
    output = await stage.run(
        "control", "--listen", listen, "--store", f"sqlite:{plane.store}", code=1
    )
    assert str(plane.store) in output
    assert "Traceback" not in output


async def test_health_reflection_and_metrics_answer_when_it_runs(stage: Stage) -> None:
    """What grpcurl and Prometheus ask first."""
    port = free_port()
    plane = await stage.control("--metrics", f"127.0.0.1:{port}")
    async with Api(plane.address) as api:
        health = health_pb2_grpc.HealthStub(api.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(api.channel)
        call = stub.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        async for found in call:
            names = {s.name for s in found.list_services_response.service}
        assert {
            "turnout.v1alpha1.TargetService",
            "turnout.v1alpha1.ExperimentService",
            "turnout.v1alpha1.ConfigService",
            "opentelemetry.proto.collector.trace.v1.TraceService",
            "grpc.health.v1.Health",
        } <= names
        await api.create_target()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
    assert text.startswith("HTTP/1.1 200 OK")
    assert 'turnout_control_snapshot_version{tenant="risk"} 1.0' in text
    assert 'code="OK",method="/turnout.v1alpha1.TargetService/CreateTarget"' in text


async def test_streams_end_and_everything_is_stored_when_told_to_stop(stage: Stage) -> None:
    """SIGTERM: within seconds, exit code 0, sidecars see the end of their streams."""
    plane = await stage.control()
    async with Api(plane.address) as api:
        await api.start()
        async with FakeSidecar(api.channel) as sidecar:
            plan = await sidecar.plan()
            await sidecar.deltas(traffic(plan, {"control": 95, "v2": 5}))
            watch = api.experiments.WatchExperiments(service.WatchExperimentsRequest(parent=PARENT))
            assert await watch.read() is not grpc.aio.EOF
            async with asyncio.timeout(8):
                assert await plane.stop() == 0
    plane = await stage.control(store=plane.store.name)
    async with Api(plane.address) as api:
        found = {v.variant: v.requests for v in (await api.results()).epoch_variants}
        assert found == {"control": 95, "v2": 5}
        listed = await api.sidecars.ListSidecars(config.ListSidecarsRequest(parent=PARENT))
        assert not listed.sidecars


@asynccontextmanager
async def receiver(port: int, bodies: list[Any]) -> AsyncIterator[None]:
    """An HTTP server that keeps what is posted; the first request fails."""
    failed = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal failed
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        (length,) = [int(x.split(b":")[1]) for x in lines if x.startswith(b"content-length")]
        body = await reader.readexactly(length)
        status = b"200 OK" if failed else b"500 Oops"
        if failed:
            bodies.append(json.loads(body))
        failed += 1
        writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()
