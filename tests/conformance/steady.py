"""A well-behaved client that asks at a steady rate, as Envoy does, and notes how long it waits.

Owns one connection in a thread of its own. Refuses to reconnect: a server that drops it has failed.
"""

from __future__ import annotations

import io
import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from tests.conformance.frames import (
    ACKNOWLEDGED,
    DATA,
    FIRST,
    GOAWAY,
    HEADERS,
    OPENING,
    PING,
    PROCESS_BLOCK,
    REQUEST,
    RST_STREAM,
    SETTINGS,
    Frame,
    Reader,
    data,
    frame,
    open_stream,
    rst,
)
from tests.conformance.servers import Address

INTERVAL_S: Final = 0.005
ANSWER_S: Final = 10.0
READ_BYTES: Final = 65_536


class Wait(NamedTuple):
    """One request.

    Attributes:
        sent_s: When, of time.monotonic.
        seconds: Until the answer.
        queued_s: Of these, what the server or this client was ready and had no CPU: the machine's
            doing, not the server's.
    """

    sent_s: float
    seconds: float
    queued_s: float


class SteadyClient:
    """One request every INTERVAL_S, one at a time; a context manager.

    Attributes:
        waits: Of all requests.
        error: What ended it early; None = nothing.
    """

    def __init__(self, address: Address, *, pid: int = 0) -> None:
        """Nothing is sent before it is entered.

        Args:
            address: Of the server.
            pid: Of the server, to tell queued_s; 0 = unknown.
        """
        self.waits: list[Wait] = []
        self.error: Exception | None = None
        self._address = address
        self._pid = pid
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def since(self, start: float, end: float) -> list[Wait]:
        """The requests that were open at some time between two moments."""
        return [
            wait
            for wait in tuple(self.waits)
            if wait.sent_s + wait.seconds >= start and wait.sent_s < end
        ]

    def _run(self) -> None:
        # The main thread's only: where there are more, they serve too, and less is excused.
        paths = ["/proc/thread-self/schedstat"]
        if self._pid:
            paths.append(f"/proc/{self._pid}/schedstat")
        try:
            with ExitStack() as stack:
                files = [stack.enter_context(Path(path).open("rb", buffering=0)) for path in paths]
                self._ask(stack.enter_context(self._address.connect(ANSWER_S)), files)
        except (OSError, EOFError) as error:
            self.error = error

    def _ask(self, peer: socket.socket, files: Sequence[io.FileIO]) -> None:
        reader, stream = Reader(), FIRST
        peer.sendall(OPENING)
        # SETTINGS first: what they say is acknowledged before the first request.
        while not any(one.kind == SETTINGS for one in reader.feed(peer.recv(READ_BYTES))):
            pass
        peer.sendall(ACKNOWLEDGED)
        due = time.monotonic()
        while not self._stopping.is_set():
            time.sleep(max(0.0, due - time.monotonic()))
            queued = [_queued_s(file) for file in files]
            sent = time.monotonic()
            due = max(due + INTERVAL_S, sent)
            peer.sendall(open_stream(stream, PROCESS_BLOCK) + data(stream, REQUEST))
            self._await(peer, reader, stream)
            seconds = time.monotonic() - sent
            more = sum(_queued_s(file) - before for file, before in zip(files, queued, strict=True))
            self.waits.append(Wait(sent, seconds, min(more, seconds)))
            peer.sendall(rst(stream))
            stream += 2

    def _await(self, peer: socket.socket, reader: Reader, stream: int) -> None:
        while True:
            more = peer.recv(READ_BYTES)
            if not more:
                raise EOFError("the server closed the connection of a well-behaved client")
            answered = False
            for one in reader.feed(more):
                # What shares a read with the answer is looked at too; the answer's end is not news.
                if not (answered and one.stream == stream):
                    answered |= self._is_answer(peer, one, stream)
            if answered:
                return

    @staticmethod
    def _is_answer(peer: socket.socket, one: Frame, stream: int) -> bool:
        if one.kind == PING and not one.flags:
            peer.sendall(frame(PING, 1, payload=one.payload))
        elif one.kind == GOAWAY:
            raise EOFError(f"GOAWAY {one.code} {one.payload[8:]!r}")
        if one.stream == stream and one.kind in (HEADERS, RST_STREAM) and one.ends:
            raise EOFError(f"no answer, but {one}")
        return one.stream == stream and one.kind == DATA


def _queued_s(file: io.FileIO) -> float:
    """How long a thread was ready and not running, since it began."""
    return int(os.pread(file.fileno(), 100, 0).split()[1]) / 1e9


def percentile(waits: Sequence[float], share: float) -> float:
    """The smallest wait that at least `share` of all do not exceed; 0.0 when there are none."""
    if not waits:
        return 0.0
    return sorted(waits)[min(len(waits) - 1, int(share * len(waits)))]
