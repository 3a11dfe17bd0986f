"""The demo's users: rows of the data set as requests through Envoy, and labels a few seconds later.

Open loop at a fixed rate that is never exceeded, also not to catch up after a stall.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import grpc
import numpy as np

from envoy.demo.client import Connection
from envoy.demo.ledger import Ledger, Line
from envoy.demo.models import MODEL_NAME, Digits, thin
from envoy.demo.pod import VERSION_HEADER
from turnout import contract
from turnout.v1alpha1.outcome_service_pb2 import Outcome, RecordOutcomesRequest
from turnout.v1alpha1.outcome_service_pb2_grpc import OutcomeServiceStub

if TYPE_CHECKING:
    from turnout.v1alpha1.outcome_service_pb2_grpc import OutcomeServiceAsyncStub

USERS: Final = 2000
# Every fortieth user has a thin pen and sends what thin pens drew; the others send the rest.
THIN_EVERY: Final = 40
PEN_HEADER: Final = "x-pen"
RATE_PER_S_MAX: Final = 200
LABEL_DELAY_S: Final = 3.0
CONNECTIONS: Final = 32
INFER_PATH: Final = f"/v2/models/{MODEL_NAME}/infer"
_LABELS_EVERY_S: Final = 0.5
# Labels wait here while the control plane is away: ten minutes of traffic, then the oldest go.
_LABELS_MAX: Final = 600 * RATE_PER_S_MAX
# On a busy machine requests must not pile up: beyond this the sender waits for answers.
_IN_FLIGHT_MAX: Final = 64
_TIMEOUT_S: Final = 20.0


class Labels:
    """Truths on their way: told `LABEL_DELAY_S` after the answer, again until acknowledged."""

    def __init__(self, control: str, tenant: str) -> None:
        self._control = control
        self._tenant = tenant
        self._waiting: deque[tuple[float, Outcome]] = deque(maxlen=_LABELS_MAX)
        self.recorded = 0

    def add(self, request_id: str, label: str, *, now_s: float) -> None:
        """Remember one truth."""
        outcome = Outcome(request_id=request_id, label=label)
        outcome.event_time.GetCurrentTime()
        self._waiting.append((now_s + LABEL_DELAY_S, outcome))

    def __len__(self) -> int:
        return len(self._waiting)

    async def run(self) -> None:
        """Send what is due, until cancelled; what the control plane did not take waits."""
        while True:
            async with grpc.aio.insecure_channel(self._control) as channel:
                stub = OutcomeServiceStub(channel)
                try:
                    while True:
                        await self._send_due(stub)
                        await asyncio.sleep(_LABELS_EVERY_S)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in (
                        grpc.StatusCode.UNAVAILABLE,
                        grpc.StatusCode.DEADLINE_EXCEEDED,
                    ):
                        raise
            await asyncio.sleep(_LABELS_EVERY_S)

    async def _send_due(self, stub: OutcomeServiceAsyncStub) -> None:
        now_s = time.monotonic()
        due: list[Outcome] = []
        for at_s, outcome in self._waiting:
            if at_s > now_s or len(due) == contract.OUTCOMES_PER_CALL_MAX // 4:
                break
            due.append(outcome)
        if not due:
            return
        request = RecordOutcomesRequest(parent=f"tenants/{self._tenant}", outcomes=due)
        await stub.RecordOutcomes(request, timeout=5)
        self.recorded += len(due)
        for _ in due:
            self._waiting.popleft()


class Traffic:
    """Sends requests while it runs, and writes every one into the current ledger."""

    def __init__(self, envoy: str, data: Digits, labels: Labels, *, seed: int = 7) -> None:
        self._data = data
        self._labels = labels
        self._random = random.Random(seed)
        self._idle = deque(Connection(envoy) for _ in range(CONNECTIONS))
        self._envoy = envoy
        self._open = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._bodies = [self._body(row) for row in range(len(data.labels))]
        drawn = thin(data.rows)
        rows = {"thin": np.flatnonzero(drawn), "normal": np.flatnonzero(~drawn)}
        self._rows = {pen: found.tolist() for pen, found in rows.items()}
        self._broken: BaseException | None = None
        self.ledger = Ledger()
        self.sent = 0

    def _body(self, row: int) -> bytes:
        tensor = {
            "name": "pixels",
            "datatype": "FP64",
            "shape": [1, 64],
            "data": self._data.rows[row].tolist(),
        }
        return json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()

    def begin(self) -> Ledger:
        """A new ledger, and requests from now on."""
        self.ledger = Ledger()
        self._open.set()
        return self.ledger

    async def end(self) -> None:
        """No new requests; returns when those in flight are answered."""
        self._open.clear()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def run(self) -> None:
        """Send at the fixed rate while open, until cancelled.

        Raises:
            ValueError: An answer was not an inference; the demo is broken.
        """
        next_s = time.monotonic()
        while True:
            await self._open.wait()
            if self._broken is not None:
                raise self._broken
            next_s = max(time.monotonic(), next_s + 1 / RATE_PER_S_MAX)
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            if not self._open.is_set():
                continue
            while len(self._tasks) >= _IN_FLIGHT_MAX:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            self.sent += 1
            task = asyncio.create_task(self._one(self.ledger))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def close(self) -> None:
        """Drop the idle connections; to be called after `end`."""
        while self._idle:
            self._idle.pop().close()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and self._broken is None:
            self._broken = task.exception()

    async def _one(self, ledger: Ledger) -> None:
        number = self._random.randrange(USERS)
        user, pen = f"user-{number:04d}", "normal" if number % THIN_EVERY else "thin"
        row = self._random.choice(self._rows[pen])
        connection = self._idle.popleft() if self._idle else Connection(self._envoy)
        sent_s = time.monotonic()
        status, variant, model, request_id, correct = 0, "", "", "", None
        try:
            reply = await connection.request(
                "POST",
                INFER_PATH,
                headers={"x-user-id": user, PEN_HEADER: pen, "content-type": "application/json"},
                body=self._bodies[row],
                host="digits.demo",
                timeout_s=_TIMEOUT_S,
            )
            status = reply.status
            variant = reply.headers.get(contract.HEADER_VARIANT, "")
            model = reply.headers.get(VERSION_HEADER, "")
            request_id = reply.headers.get(contract.HEADER_REQUEST_ID, "")
            if status == 200:
                digit = json.loads(reply.body)["outputs"][0]["data"][0]
                correct = bool(digit == self._data.labels[row])
        except OSError:
            pass  # written down as status 0: a failed request
        done_s = time.monotonic()
        self._idle.append(connection)
        if correct is not None and request_id:
            self._labels.add(request_id, str(self._data.labels[row]), now_s=done_s)
        ledger.add(Line(sent_s, done_s, user, status, variant, model, correct, request_id))
