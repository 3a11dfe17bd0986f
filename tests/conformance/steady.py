"""A well-behaved client that asks at a steady rate, as Envoy does, and notes how long it waits.

Owns one connection in a thread of its own. Refuses to reconnect: a server that drops it has failed.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from tests.conformance.frames import (
    DATA,
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


class SteadyClient:
    """One request every INTERVAL_S, one at a time; a context manager.

    Attributes:
        waits: (when it was sent, seconds until the answer); times are time.monotonic's.
        error: What ended it early; None = nothing.
    """

    def __init__(self, address: Address) -> None:
        self.waits: list[tuple[float, float]] = []
        self.error: Exception | None = None
        self._address = address
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

    def since(self, start: float, end: float) -> list[float]:
        """Seconds that those waited who were waiting, or asked, between two moments."""
        return [wait for sent, wait in tuple(self.waits) if sent + wait >= start and sent < end]

    def _run(self) -> None:
        try:
            with self._address.connect(ANSWER_S) as peer:
                self._ask(peer)
        except (OSError, EOFError) as error:
            self.error = error

    def _ask(self, peer: socket.socket) -> None:
        reader, stream = Reader(), 1
        peer.sendall(OPENING)
        due = time.monotonic()
        while not self._stopping.is_set():
            time.sleep(max(0.0, due - time.monotonic()))
            sent = time.monotonic()
            due = max(due + INTERVAL_S, sent)
            peer.sendall(open_stream(stream, PROCESS_BLOCK) + data(stream, REQUEST))
            self._await(peer, reader, stream)
            self.waits.append((sent, time.monotonic() - sent))
            peer.sendall(rst(stream))
            stream += 2

    def _await(self, peer: socket.socket, reader: Reader, stream: int) -> None:
        while True:
            more = peer.recv(65_536)
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
        if one.kind == SETTINGS and not one.flags:
            peer.sendall(frame(SETTINGS, 1))
        elif one.kind == PING and not one.flags:
            peer.sendall(frame(PING, 1, payload=one.payload))
        elif one.kind == GOAWAY:
            raise EOFError(f"GOAWAY {one.code} {one.payload[8:]!r}")
        if one.stream == stream and one.kind in (HEADERS, RST_STREAM) and one.ends:
            raise EOFError(f"no answer, but {one}")
        return one.stream == stream and one.kind == DATA


def percentile(waits: Sequence[float], share: float) -> float:
    """The smallest wait that at least `share` of all do not exceed; 0.0 when there are none."""
    if not waits:
        return 0.0
    return sorted(waits)[min(len(waits) - 1, int(share * len(waits)))]
