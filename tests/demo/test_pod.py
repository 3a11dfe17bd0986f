"""A pod speaks the Open Inference Protocol and tells its predictions by OTLP."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from envoy.demo.client import Connection, Reply
from envoy.demo.models import digits, fails
from envoy.demo.processes import Process, free_port, wait_for

MODEL = "/v2/models/digits"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


class Collector(TraceServiceServicer):
    """An OTLP receiver that keeps the spans."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    async def Export(  # noqa: N802
        self, request: ExportTraceServiceRequest, context: object
    ) -> ExportTraceServiceResponse:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return ExportTraceServiceResponse()

    async def span(self, request_id: str) -> dict[str, Any]:
        """The span of a request: its attributes, trace id and status."""

        def match() -> Span | None:
            for span in self.spans:
                if attributes(span).get("turnout.request_id") == request_id:
                    return span
            return None

        async def arrived() -> bool:
            return match() is not None

        await wait_for(arrived, timeout_s=10, what="the span")
        span = match()
        assert span is not None
        return {
            **attributes(span),
            "trace_id": span.trace_id.hex(),
            "error": span.status.code == 2,
            "server": span.kind == Span.SPAN_KIND_SERVER,
        }


def attributes(span: Span) -> dict[str, Any]:
    return {
        item.key: getattr(item.value, item.value.WhichOneof("value") or "string_value")
        for item in span.attributes
    }


@pytest.fixture
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    servicer, server = Collector(), grpc.aio.server()
    add_TraceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


class Pod:
    """One running pod and a connection to it."""

    def __init__(self, version: str, otlp: str, models: Path, logs: Path) -> None:
        port = free_port()
        self.process = Process(
            f"pod-v{version}",
            [
                *(sys.executable, "-m", "envoy.demo.pod", "--version", version),
                *("--port", str(port), "--otlp", otlp, "--models", str(models)),
            ],
            logs=logs,
        )
        self.connection = Connection(f"127.0.0.1:{port}")

    async def ready(self) -> bool:
        try:
            return (await self.connection.request("GET", "/v2/health/ready")).status == 200
        except OSError:
            return False

    async def infer(self, body: object, **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.connection.request(
            "POST", f"{MODEL}/infer", headers=named, body=json.dumps(body).encode()
        )


@pytest.fixture
async def pod(
    request: pytest.FixtureRequest,
    collector: tuple[Collector, str],
    models: Path,
    tmp_path: Path,
) -> AsyncIterator[Pod]:
    started = Pod(request.param, collector[1], models, tmp_path)
    await started.process.ready(started.ready, timeout_s=60)
    yield started
    started.connection.close()
    started.process.stop()


def inference(row: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {
        "id": "q1",
        "inputs": [{"name": "pixels", "datatype": "FP64", "shape": [1, 64], "data": row.tolist()}],
    }


def rows(*, failing: bool) -> Iterator[tuple[np.ndarray[Any, Any], int]]:
    _, serve = digits()
    for row, label in zip(serve.rows, serve.labels, strict=True):
        if fails(row.tobytes()) is failing:
            yield row, int(label)


@pytest.mark.parametrize("pod", ["2"], indirect=True)
async def test_pod_answers_and_tells_its_prediction(
    pod: Pod, collector: tuple[Collector, str]
) -> None:
    row, label = next(rows(failing=False))
    reply = await pod.infer(
        inference(row),
        x_request_id="r1",
        traceparent=f"00-{TRACE_ID}-b7ad6b7169203331-01",
    )
    answer = json.loads(reply.body)
    assert (reply.status, reply.headers["x-model-version"]) == (200, "2")
    assert (answer["model_name"], answer["id"]) == ("digits", "q1")
    assert answer["outputs"][0]["data"] == [label]
    span = await collector[0].span("r1")
    assert span["turnout.prediction"] == str(label)
    assert 0 < span["turnout.score"] <= 1
    assert span["trace_id"] == TRACE_ID
    assert span["server"]
    assert "turnout.shadow" not in span


@pytest.mark.parametrize("pod", ["2"], indirect=True)
async def test_pod_marks_its_span_when_the_request_is_a_copy(
    pod: Pod, collector: tuple[Collector, str]
) -> None:
    row, _ = next(rows(failing=False))
    await pod.infer(inference(row), x_request_id="r2", x_turnout_shadow_of="shadow-v2;1;v2")
    assert (await collector[0].span("r2"))["turnout.shadow"] is True


@pytest.mark.parametrize("pod", ["2"], indirect=True)
async def test_pod_refuses_what_is_not_an_inference(pod: Pod) -> None:
    row, _ = next(rows(failing=False))
    bodies: list[Any] = [
        {},
        {"inputs": []},
        inference(row[:10]),
        [1],
        {"inputs": [{"data": ["x"]}]},
    ]
    for body in bodies:
        reply = await pod.infer(body)
        assert reply.status == 400
        assert "error" in json.loads(reply.body)


@pytest.mark.parametrize("pod", ["2"], indirect=True)
async def test_pod_describes_itself(pod: Pod) -> None:
    for path in ("/v2/health/live", f"{MODEL}/ready", f"{MODEL}/versions/2/ready", "/v2"):
        assert (await pod.connection.request("GET", path)).status == 200
    metadata = json.loads((await pod.connection.request("GET", MODEL)).body)
    assert metadata["versions"] == ["2"]
    assert metadata["inputs"][0]["shape"] == [1, 64]
    assert (await pod.connection.request("GET", "/v2/models/other")).status == 404


@pytest.mark.parametrize("pod", ["3"], indirect=True)
async def test_third_version_fails_on_its_inputs_and_no_others(
    pod: Pod, collector: tuple[Collector, str]
) -> None:
    bad, _ = next(rows(failing=True))
    good, _ = next(rows(failing=False))
    for _ in range(3):
        assert (await pod.infer(inference(bad), x_request_id="r3")).status == 500
        assert (await pod.infer(inference(good))).status == 200
    span = await collector[0].span("r3")
    assert span["error"]
    assert "turnout.prediction" not in span
