"""A real Jaeger behind the control plane: a request is one trace, a rollback shows its why."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx
import numpy as np
import pytest

from control.forward import Limits
from envoy.demo.client import Connection
from envoy.demo.models import MODEL_NAME, digits, fails
from envoy.demo.processes import Process
from tests.integration.harness import ControlPlane, Request, Stage, free_port
from tests.integration.waiting import LOOPBACK, wait_for

ROOT = Path(__file__).parents[2]
JAEGER = ROOT / ".tools" / "bin" / "jaeger"
TENANT = "demo"
PATH = f"/v2/models/{MODEL_NAME}/infer"
RESOURCES = """
apiVersion: turnout/v1alpha1
kind: Target
metadata: {{name: digits, tenant: demo}}
spec:
  match: {{pathPrefix: /v2/models/digits}}
  baseline:
    model: {{id: digits, version: "1"}}
    upstream: {{address: "{v1}", healthPath: /v2/health/ready}}
---
apiVersion: turnout/v1alpha1
kind: Experiment
metadata: {{name: next, tenant: demo}}
spec:
  target: digits
  unit: {{header: x-user-id}}
  control: v1
  variants:
  - {{name: v1}}
  - name: v3
    model: {{id: digits, version: "3"}}
    upstream: {{address: "{v3}", healthPath: /v2/health/ready}}
  metrics:
    guardrails: [{{metric: error_rate}}]
  steps:
  - {step}
"""
SHADOW = "shadow: {variant: v3, fraction: 1.0, for: 1h}"
CANARY = "canary: {split: {v3: 0.5}, for: 1h}"


class Span(NamedTuple):
    """A span as Jaeger's query API shows it."""

    trace: str
    id: str
    service: str
    name: str
    tags: dict[str, Any]
    parents: list[str]
    links: list[tuple[str, str]]


class Jaeger:
    """One Jaeger on ports of its own."""

    def __init__(self, logs: Path) -> None:
        self.otlp_port, self._http_port = free_port(), free_port()
        ports = {"OTLP": self.otlp_port, "HTTP": self._http_port, "GRPC": free_port()}
        self._environment = {f"JAEGER_{name}_PORT": str(port) for name, port in ports.items()}
        self._logs = logs
        self._process = self._spawn()
        base = f"http://{LOOPBACK}:{self._http_port}"
        self._client = httpx.AsyncClient(base_url=base, trust_env=False)

    @property
    def address(self) -> str:
        """Where it takes spans."""
        return f"{LOOPBACK}:{self.otlp_port}"

    async def __aenter__(self) -> Self:
        await self._process.ready(self._answers)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.aclose()
        self.kill()

    def _spawn(self) -> Process:
        command = [str(JAEGER), "--config", f"file:{ROOT / '.ci' / 'jaeger' / 'config.yaml'}"]
        return Process("jaeger", command, logs=self._logs, environment=self._environment)

    def kill(self) -> None:
        """Be gone, with all traces."""
        self._process.kill()

    async def start(self) -> None:
        """Be there again, on the same ports."""
        self._process = self._spawn()
        await self._process.ready(self._answers)

    async def _answers(self) -> bool:
        try:
            return (await self._client.get("/api/services")).is_success
        except httpx.TransportError:
            return False

    async def find(self, service: str, **query: str) -> list[Span]:
        """All spans of the traces in which a span of a service fits."""
        answer = await self._client.get("/api/traces", params={"service": service, **query})
        return [
            _span(span, trace["processes"])
            for trace in answer.json()["data"] or ()
            for span in trace["spans"]
        ]


def _span(span: dict[str, Any], processes: dict[str, Any]) -> Span:
    references = span["references"]
    return Span(
        span["traceID"],
        span["spanID"],
        processes[span["processID"]]["serviceName"],
        span["operationName"],
        {tag["key"]: tag["value"] for tag in span["tags"]},
        [r["spanID"] for r in references if r["refType"] == "CHILD_OF"],
        [(r["traceID"], r["spanID"]) for r in references if r["refType"] == "FOLLOWS_FROM"],
    )


class Scene:
    """Envoy, sidecar, control plane, two model pods and Jaeger."""

    def __init__(self, stage: Stage, jaeger: Jaeger, control: ControlPlane, metrics: str) -> None:
        self.stage, self.jaeger, self.control, self._metrics = stage, jaeger, control, metrics

    async def turnout(self, *command: str) -> str:
        """A command of an operator."""
        where = ("--control", self.control.address, "--tenant", TENANT)
        return await self.stage.run(*command, *where)

    async def infer(self, user: str, row: np.ndarray[Any, Any]) -> Any:
        """One inference."""
        [answer] = await self.stage.send([inference(user, row)])
        return answer

    async def metric(self, name: str) -> float:
        """Sum of a metric of the control plane over its labels; 0 when there is none."""
        async with httpx.AsyncClient(trust_env=False) as client:
            text = (await client.get(f"http://{self._metrics}/metrics")).text
        lines = [line for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def control_resident_bytes(self) -> int:
        """Memory of the control plane."""
        pages = int(Path(f"/proc/{self.control.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def inference(user: str, row: np.ndarray[Any, Any]) -> Request:
    """A request of the Open Inference Protocol."""
    tensor = {"name": "pixels", "datatype": "FP64", "shape": [1, 64], "data": row.tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    return Request(path=PATH, headers={"x-user-id": user}, body=body)


@asynccontextmanager
async def running(stage: Stage, step: str) -> AsyncIterator[Scene]:
    """A started experiment with one step."""
    async with AsyncExitStack() as stack:
        jaeger = await stack.enter_async_context(Jaeger(stage.directory))
        metrics = f"{LOOPBACK}:{free_port()}"
        control = await stage.control("--forward-otlp", jaeger.address, "--metrics", metrics)
        addresses = {}
        for version in ("1", "3"):
            addresses[f"v{version}"] = await _pod(stack, stage.directory, version, control.address)
        file = stage.directory / "resources.yaml"
        file.write_text(RESOURCES.format(step=step, **addresses))
        args = ["--otlp", control.address, "--sampling", "100"]
        await stage.envoy(files=[file], args=args)
        await stage.sidecar(control=control.address, args=["--tenant", TENANT, *args[:2]])
        scene = Scene(stage, jaeger, control, metrics)
        await scene.turnout("apply", "-f", str(file))
        await scene.turnout("start", "next")
        await stage.enrols(path=f"/v2/models/{MODEL_NAME}")
        yield scene


async def _pod(stack: AsyncExitStack, logs: Path, version: str, otlp: str) -> str:
    """Start a model pod of the demo and return its address."""
    address = f"{LOOPBACK}:{free_port()}"
    process = Process(
        f"pod-v{version}",
        [
            *(sys.executable, "-m", "envoy.demo.pod", "--version", version),
            *("--port", address.rpartition(":")[2], "--otlp", otlp),
            *("--models", str(logs / "models")),
        ],
        logs=logs,
        environment={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    stack.callback(process.stop)
    connection = Connection(address)
    stack.callback(connection.close)

    async def ready() -> bool:
        try:
            return (await connection.request("GET", "/v2/health/ready")).status == 200
        except OSError:
            return False

    await process.ready(ready, timeout_s=60)
    return address


def rows(*, failing: bool) -> list[np.ndarray[Any, Any]]:
    """Inputs on which version 3 fails, or does not."""
    _, serve = digits()
    return [row for row in serve.rows if fails(row.tobytes()) is failing]


def by_name(spans: Iterable[Span]) -> dict[tuple[str, str], Span]:
    """Spans by service and name; Envoy's calls by what is called."""
    return {(span.service, span.name): span for span in spans}


def _bad(span: Span) -> bool:
    return span.tags.get("error") is True


@pytest.fixture(autouse=True)
def jaeger_is_there() -> None:
    """`make test` builds it before the tests."""
    assert JAEGER.exists(), "run .ci/tools jaeger"


async def test_one_request_is_one_trace_when_it_is_mirrored(stage: Stage) -> None:
    async with running(stage, SHADOW) as scene:
        answer = await scene.infer("somebody", rows(failing=False)[0])
        assert answer.status == 200
        assert answer.variant == "v1"
        tags = json.dumps({"guid:x-request-id": answer.headers["x-request-id"]})

        async def whole() -> dict[tuple[str, str], Span] | None:
            found = by_name(await scene.jaeger.find("turnout", tags=tags))
            return found if len(found) == 6 else None

        found = await wait_for(whole, "six spans of the request are in Jaeger")
    assert len({span.trace for span in found.values()}) == 1
    root = found.pop(("turnout", "ingress"))
    said = {
        "turnout.experiment": "next",
        "turnout.epoch": "1",
        "turnout.step": "0",
        "turnout.variant": "v1",
        "feature_flag.key": "next",
        "feature_flag.result.variant": "v1",
        "feature_flag.result.reason": "split",
        "feature_flag.provider.name": "turnout",
    }
    assert said.items() <= root.tags.items()
    mirror = found.pop(("turnout", "mirror"))
    [asked] = [found.pop(key) for key in list(found) if "ExternalProcessor" in key[1]]
    [upstream] = [found.pop(key) for key in list(found) if key[1].startswith("router ")]
    assert mirror.parents == asked.parents == upstream.parents == [root.id]
    served = found.pop((f"{MODEL_NAME}-v1", f"infer {MODEL_NAME}"))
    copied = found.pop((f"{MODEL_NAME}-v3", f"infer {MODEL_NAME}"))
    assert served.parents == [upstream.id]
    assert copied.parents == [mirror.id]
    assert copied.tags["turnout.shadow"] is True
    assert "turnout.shadow" not in served.tags
    assert served.tags["turnout.prediction"]


async def test_rollback_links_to_failed_requests_when_candidate_fails(stage: Stage) -> None:
    async with running(stage, CANARY) as scene:
        failing = rows(failing=True)
        first = [await scene.infer(f"first-{i}", failing[i]) for i in range(12)]
        bad = [answer for answer in first if answer.status == 500]
        assert {answer.variant for answer in bad} == {"v3"}

        async def failed() -> set[tuple[str, str]]:
            """Trace and span of what the candidate failed on: its own span, and Envoy's."""
            spans = await scene.jaeger.find(f"{MODEL_NAME}-v3", limit="1500")
            traces = {s.trace for s in spans if s.service == f"{MODEL_NAME}-v3" and _bad(s)}
            return {(s.trace, s.id) for s in spans if s.trace in traces and _bad(s)}

        async def all_there() -> bool:
            return len({trace for trace, _ in await failed()}) >= len(bad)

        await wait_for(all_there, "the failed requests are in Jaeger")
        sent = 0

        async def rolled_back() -> list[Span]:
            nonlocal sent
            for _ in range(20):
                await scene.infer(f"user-{sent}", failing[sent % len(failing)])
                sent += 1
            return await scene.jaeger.find("turnout-control", operation="rollback")

        spans = await wait_for(rolled_back, "the rollback's span", timeout_s=60)
        [rollback] = [span for span in spans if span.name == "rollback"]
        assert rollback.tags["turnout.experiment"] == "next"
        assert rollback.tags["turnout.reason"] == "LANE_ERROR"
        assert rollback.links

        async def linked() -> bool:
            return set(rollback.links) <= await failed()

        await wait_for(linked, "the linked spans are in Jaeger, and failed")
        assert {"assess", "push"} <= {s.name for s in spans if s.parents == [rollback.id]}

        async def told() -> list[Span]:
            """What the push came to, at both of its ends."""
            spans = await scene.jaeger.find("turnout-control", operation="rollback")
            pushes = [s.id for s in spans if s.name == "push"]
            ends = [s for s in spans if s.parents == pushes]
            return ends if len(ends) == 2 else []

        ends = await wait_for(told, "both ends of the push are in Jaeger")
        assert {(s.service, s.name) for s in ends} == {
            ("turnout-control", "ack"),
            ("turnout-sidecar", "apply"),
        }


@pytest.mark.parametrize(
    "down_s", [3, pytest.param(60, marks=pytest.mark.soak)], ids=lambda s: f"{s} s"
)
async def test_no_request_fails_when_jaeger_is_down_under_load(stage: Stage, down_s: float) -> None:
    forwarded = "turnout_control_spans_forwarded_total"
    async with running(stage, CANARY) as scene:
        fine = rows(failing=False)
        load = stage.load(lambda i: inference(f"user-{i % 500}", fine[i % len(fine)]), pause_s=0.02)

        async def takes() -> bool:
            return await scene.metric(forwarded) > 100

        await wait_for(takes, "Jaeger takes spans")
        resident = scene.control_resident_bytes()
        scene.jaeger.kill()

        async def noticed() -> bool:
            return await scene.metric("turnout_control_forward_attempts_failed_total") > 0

        await wait_for(noticed, "the control plane knows that Jaeger is gone")
        before = await scene.metric(forwarded)
        await asyncio.sleep(down_s)
        assert await scene.metric("turnout_control_forward_queue_requests") > 0
        assert await scene.metric("turnout_control_forward_queue_bytes") <= Limits().queue_bytes
        assert scene.control_resident_bytes() - resident < 3 * Limits().queue_bytes
        await scene.jaeger.start()

        async def recovered() -> bool:
            waiting = await scene.metric("turnout_control_forward_queue_requests")
            return waiting < 5 and await scene.metric(forwarded) > before

        await wait_for(recovered, "what waited is sent, without a restart")
        assert await scene.jaeger.find("turnout")
        tally = await load.stop()
        assert tally.sent > 50 * down_s
        assert tally.failures == []
