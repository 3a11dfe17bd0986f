"""The demo's users: never faster than the rate, every request written down, labels until taken."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest

from envoy.demo.models import Digits
from envoy.demo.processes import wait_for
from envoy.demo.traffic import LABEL_DELAY_S, RATE_PER_S_MAX, Labels, Traffic
from turnout.v1alpha1.outcome_service_pb2 import RecordOutcomesRequest, RecordOutcomesResponse
from turnout.v1alpha1.outcome_service_pb2_grpc import (
    OutcomeServiceServicer,
    add_OutcomeServiceServicer_to_server,
)

# Two images of thin pens, two of others.
DATA = Digits(np.repeat([[0.0], [16.0]], 2, axis=0) * np.ones((4, 64)), np.array([0, 1, 2, 1]))


class Pod:
    """Answers 7 to every row, and breaks every tenth connection's request."""

    def __init__(self) -> None:
        self.address = ""
        self.requests = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = json.dumps({"outputs": [{"data": [1]}]}).encode()
        head = "HTTP/1.1 200 OK\r\nx-variant: v2\r\nx-model-version: 2\r\n"
        head += f"content-length: {len(body)}\r\nx-request-id: "
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                asked = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(
                    int(asked.partition(b"content-length: ")[2].split(b"\r")[0])
                )
                self.requests += 1
                if self.requests % 10 == 0:
                    break
                writer.write(f"{head}r{self.requests}\r\n\r\n".encode() + body)
        writer.close()


@pytest.fixture
async def pod() -> AsyncIterator[Pod]:
    made = Pod()
    listening = await asyncio.start_server(made.handle, "127.0.0.1", 0)
    made.address = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    yield made
    listening.close()


class Outcomes(OutcomeServiceServicer):
    """Refuses the first call as unavailable, takes the others."""

    def __init__(self) -> None:
        self.calls = 0
        self.labels: dict[str, str] = {}

    async def RecordOutcomes(  # noqa: N802
        self, request: RecordOutcomesRequest, context: Any
    ) -> RecordOutcomesResponse:
        self.calls += 1
        if self.calls == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        self.labels |= {outcome.request_id: outcome.label for outcome in request.outcomes}
        return RecordOutcomesResponse(recorded=len(request.outcomes))


@contextlib.asynccontextmanager
async def running(*parts: asyncio.Task[None]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)


async def test_traffic_writes_every_request_down_and_keeps_below_the_rate(pod: Pod) -> None:
    traffic = Traffic(pod.address, DATA, Labels("127.0.0.1:1", "demo"))
    async with running(asyncio.create_task(traffic.run())):
        begin_s = time.monotonic()
        ledger = traffic.begin()

        async def enough() -> bool:
            return len(ledger.lines) >= 60

        await wait_for(enough, timeout_s=20, what="60 requests")
        await traffic.end()
        traffic.close()
        took_s = time.monotonic() - begin_s
    assert len(ledger.lines) == traffic.sent == pod.requests
    assert traffic.sent <= took_s * RATE_PER_S_MAX + 1
    failed = [line for line in ledger.lines if line.failed]
    assert len(failed) == pod.requests // 10
    assert all(line.status == 0 and line.correct is None for line in failed)
    served = [line for line in ledger.lines if not line.failed]
    assert all((line.variant, line.model) == ("v2", "2") for line in served)
    assert {line.correct for line in served} == {True, False}


async def test_labels_are_told_later_and_again_until_they_are_taken() -> None:
    outcomes, server = Outcomes(), grpc.aio.server()
    add_OutcomeServiceServicer_to_server(outcomes, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    labels = Labels(f"127.0.0.1:{port}", "demo")
    due_s = time.monotonic() - LABEL_DELAY_S
    labels.add("r1", "7", now_s=due_s)
    labels.add("r2", "8", now_s=due_s)
    labels.add("later", "9", now_s=due_s + 3600)
    async with running(asyncio.create_task(labels.run())):

        async def taken() -> bool:
            return labels.recorded == 2

        await wait_for(taken, timeout_s=10, what="the labels to be taken")
    await server.stop(None)
    assert outcomes.labels == {"r1": "7", "r2": "8"}
    assert outcomes.calls == 2
    assert len(labels) == 1
