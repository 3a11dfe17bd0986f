"""What a worker does with the messages of its server: answers requests, folds access logs.

Owns the plan that serves (one reference, swapped whole), the fold and the decided counters. Refuses
sockets, tasks and processes: `worker` is the shell.
"""

from __future__ import annotations

import asyncio
import os

from sidecar import clock
from sidecar.accesslog import MalformedMessage
from sidecar.counters import CounterFile
from sidecar.fold import Fold
from sidecar.logfold import fold_message
from sidecar.plan import Plan
from sidecar.processor import (
    NO_SNAPSHOT,
    RANDOM_UNIT_BYTES,
    MalformedRequest,
    assign,
    decide_unusual,
)
from sidecar.protocol import PeerError


class Work:
    """The Handler of a worker's server: the pure core with a plan that can change."""

    def __init__(self, counters: CounterFile) -> None:
        """No plan yet: every request is answered without a stamp, health says NOT_SERVING."""
        self.plan: Plan | None = None
        self.fold = Fold()
        self._answered = self.fold.answered
        self._cells = counters.cells
        self._retired = False
        # Messages that could not be read, of requests and of access logs.
        self.malformed = 0

    def process(self, request: bytes) -> bytes | None:
        """Answer one request, and count the answer."""
        plan = self.plan
        if plan is None:
            response, slots, tally = NO_SNAPSHOT
        else:
            # `processor.decide`, written out: a call less (benchmark `assignment`, process).
            found = plan.decoder.quick(request)
            if found is not None:
                page, headers = found
                response, slots, tally = assign(plan, page, headers, request, _random_unit, _now_s)
            else:
                try:
                    response, slots, tally = decide_unusual(plan, request, _random_unit, _now_s)
                except MalformedRequest as error:
                    self.malformed += 1
                    raise PeerError(str(error)) from error
        if slots:
            cells = self._cells
            for slot in slots:
                cells[slot] += 1
        self._answered(tally)
        return response

    async def access_log(self, message: bytes, log_name: str) -> str:
        """Fold the entries of one message, a few at a time."""
        try:
            log_name, steps = fold_message(self.fold, message, log_name)
            for _ in steps:
                # 9,000 entries in one go took 300 ms; Envoy waits 50 ms for an answer.
                await asyncio.sleep(0)
        except MalformedMessage as error:
            self.malformed += 1
            raise PeerError(str(error)) from error
        return log_name

    def healthy(self) -> bool:
        """Only a worker with a plan, that will still be there, should be asked."""
        return self.plan is not None and not self._retired

    def retire(self) -> None:
        """This worker goes and nobody has its place: Envoy is to ask others."""
        self._retired = True

    def serve(self, plan: Plan) -> None:
        """Swap the plan: one reference, so no request ever sees half of two plans."""
        self.plan = plan
        self.fold.know(plan.epochs)


def _random_unit() -> bytes:
    return os.urandom(RANDOM_UNIT_BYTES)


def _now_s() -> float:
    return clock.now_ms() / 1000
