"""The control plane's own spans: what it decided and why, what it pushed, who took it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from control.server import ControlPlane, Options
from control.store.sqlite import SqliteStore
from tests.control.peers import Api, FakeSidecar, traffic
from tests.control.test_forward import Backend
from tests.control.test_services_telemetry import export, exposures, spans
from tests.integration.waiting import wait_for


@pytest_asyncio.fixture
async def backend() -> AsyncIterator[Backend]:
    """A backend that is up."""
    one = await Backend().up()
    yield one
    await one.down()


@pytest_asyncio.fixture
async def plane(tmp_path: Path, backend: Backend) -> AsyncIterator[ControlPlane]:
    """A control plane that forwards to it."""
    store = await SqliteStore.open(f"sqlite:{tmp_path}/control.db")
    one = ControlPlane(store, Options(listen="127.0.0.1:0", forward_otlp=backend.address))
    await one.start()
    yield one
    await one.stop()


def found(backend: Backend, name: str) -> list[Span]:
    """The control plane's spans of a name."""
    return [
        span
        for request in map(ExportTraceServiceRequest.FromString, backend.got)
        for resource in request.resource_spans
        for attribute in resource.resource.attributes
        if (attribute.key, attribute.value.string_value) == ("service.name", "turnout-control")
        for scope in resource.scope_spans
        for span in scope.spans
        if span.name == name
    ]


async def test_rollback_links_to_bad_requests_when_evidence_decides(
    api: Api, sidecar: FakeSidecar, backend: Backend
) -> None:
    await api.start()
    plan = await sidecar.plan()
    bad = spans({"r1": "1", "r2": "2"})
    for span in bad.resource_spans[0].scope_spans[0].spans:
        span.status.code = Status.STATUS_CODE_ERROR
    await export(api, bad)
    await sidecar.deltas(exposures(plan, {"v2": ["r1", "r2"]}))
    await sidecar.deltas(traffic(plan, {"control": 1900, "v2": 100}, {"v2": 40}))
    await sidecar.until(lambda me: me.pushes and not me.snapshot.experiments, "rollback")

    [rollback] = await wait_for(lambda: found(backend, "rollback"), "the rollback's span")
    links = {(link.trace_id, link.span_id) for link in rollback.links}
    assert links == {(n.to_bytes(16, "big"), n.to_bytes(8, "big")) for n in (1, 2)}
    said = {pair.key: pair.value.string_value for pair in rollback.attributes}
    assert said["turnout.experiment"] == plan.name
    assert said["turnout.reason"] == "LANE_ERROR"
    assert said["turnout.epoch"] == "1"
    assert "v2" in said["turnout.sentence"]
    [assess] = [s for s in found(backend, "assess") if s.parent_span_id == rollback.span_id]
    assert rollback.start_time_unix_nano <= assess.start_time_unix_nano
    assert assess.end_time_unix_nano <= rollback.end_time_unix_nano
    [push] = [s for s in found(backend, "push") if s.parent_span_id == rollback.span_id]

    def acknowledged() -> list[Span]:
        return [s for s in found(backend, "ack") if s.parent_span_id == push.span_id]

    [ack] = await wait_for(acknowledged, "the acknowledgement's span")
    assert {s.trace_id for s in (assess, push, ack)} == {rollback.trace_id}
    assert not found(backend, "assess")[0].links


async def test_refusal_has_a_span_when_a_sidecar_refuses(api: Api, backend: Backend) -> None:
    async with FakeSidecar(api.channel, nack=True):
        await api.start()
        [nack, *_] = await wait_for(lambda: found(backend, "nack"), "the refusal's span")
    assert nack.status.code == Status.STATUS_CODE_ERROR
