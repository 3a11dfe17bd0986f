"""One connection of the wire server under fire: fed any bytes in any chunks, and judged.

Owns the invariants: no exception, whole frames out, one answer at most for each request, no byte
after an end, flow control, and memory that is bounded by what came. Refuses to know what the right
answer to garbage is, but for one thing: it does not depend on how the bytes were cut.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from random import Random
from typing import Any, Final

from sidecar.wire.calls import PeerError
from sidecar.wire.connection import Connection
from sidecar.wire.limits import BUFFERED_BYTES_MAX, CLOSED_REMEMBERED, STREAMS_MAX
from tests.fuzz.judge import PREFACE, Judge, Sent
from tests.fuzz.sessions import frame

# What an idle connection may cost, and what each byte that came may become.
IDLE_BYTES_MAX: Final = 128 * 1024
GROWTH_MAX: Final = 8


class Peer:
    """A connection, with the shell and the services that it needs."""

    def __init__(self, *, strict: bool = False, at_once: bool = False) -> None:
        """A fresh connection at time 0; `at_once`: logs are folded while they are given."""
        self.judge = Judge()
        self.requests = 0
        self.now_s = 0.0
        self.sent = b""
        self._at_once = at_once
        self._folding: list[tuple[int, bytes, str]] = []
        self.connection = Connection(
            self._process, lambda: True, self._fold, strict=strict, now_s=0.0
        )
        self.output = b""
        self.flush()

    def _process(self, request: bytes) -> bytes | None:
        """An answer of its own for each request; some peers' messages are refused."""
        assert type(request) is bytes
        self.requests += 1
        if request.startswith(b"\xff"):
            raise PeerError("not a request")
        return b"answer %d" % self.requests if request else None

    def _fold(self, stream_id: int, message: bytes, log_name: str) -> None:
        self._folding.append((stream_id, message, log_name))
        if self._at_once:
            self.fold()

    def feed(self, data: bytes) -> None:
        """One chunk, and all turns that it needs."""
        self.sent += data
        self.connection.receive(data, self.now_s)
        turns = 0
        while self.connection.unfinished and not self.connection.closed:
            self.connection.receive(b"", self.now_s)
            turns += 1
            assert turns < 10_000, "never finished"
        self.fold()
        self.flush()

    def fold(self) -> None:
        """Fold what waits; a message that begins oddly cannot be read."""
        while self._folding:
            stream_id, message, log_name = self._folding.pop(0)
            error = PeerError("not a log") if message.startswith(b"\xff") else None
            self.connection.folded(stream_id, log_name or "log", error)

    def flush(self) -> None:
        """Take and judge what is to be sent."""
        data = self.connection.data_to_send()
        self.judge.read(data)
        self.output += data
        self.connection.written()

    def pass_time(self, seconds: float) -> None:
        """Let timers run."""
        self.now_s += seconds
        self.connection.tick(self.now_s)
        self.flush()

    def conclude(self, *, weigh: bool = False) -> None:
        """What must hold at the end, whatever came.

        Raises:
            AssertionError: It does not.
        """
        sent, judge, connection = Sent(self.sent), self.judge, self.connection
        assert judge.pings <= sent.pings
        assert judge.settings_acks <= sent.settings
        assert judge.data_bytes <= sent.window, "more DATA than the peer's windows allow"
        answers = [m for found in judge.messages().values() for m in found if m[:7] == b"answer "]
        assert len(set(answers)) == len(answers) <= self.requests, "an answer twice"
        assert connection.closed == (judge.goaway not in (None, 0)), judge.goaway
        held: dict[str, Any] = vars(connection)
        assert 0 <= held["_buffered_bytes"] <= BUFFERED_BYTES_MAX
        assert held["_unsent_bytes"] >= 0
        assert held["_reserved_bytes"] >= 0
        assert len(held["_streams"]) + len(held["_answered"]) <= STREAMS_MAX
        assert len(held["_closed"]) <= CLOSED_REMEMBERED
        if weigh:
            weight = weight_of(connection)
            limit = IDLE_BYTES_MAX + GROWTH_MAX * len(self.sent)
            assert weight <= limit, f"{weight} bytes are held after {len(self.sent)} came"


def weight_of(connection: Connection) -> int:
    """Bytes of all containers and texts that a connection holds."""
    seen: set[int] = set()
    waiting: list[Any] = [vars(connection)]
    total = 0
    while waiting:
        item = waiting.pop()
        if id(item) in seen or callable(item) or isinstance(item, type):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        waiting.extend(_parts(item))
    return total


def _parts(item: Any) -> Iterator[Any]:
    if isinstance(item, dict):
        yield from item.keys()
        yield from item.values()
    elif isinstance(item, str | bytes | bytearray | int | float):
        return
    elif hasattr(item, "__iter__"):
        yield from list(item)
    else:
        yield from getattr(item, "__dict__", {}).values()
        for cls in type(item).__mro__:
            for name in getattr(cls, "__slots__", ()):
                if hasattr(item, name):
                    yield getattr(item, name)


def run(data: bytes, *, random: Random | None = None, strict: bool = False) -> Peer:
    """Feed a session in chunks of a Random's choice, or whole; judge it."""
    peer = Peer(strict=strict, at_once=random is None)
    at = 0
    while at < len(data) and not peer.connection.closed:
        size = len(data) if random is None else random.choice((1, 8, 9, 30, 200, len(data)))
        peer.feed(data[at : at + size])
        at += size
        if random is not None and random.random() < 0.01:
            peer.pass_time(random.choice((0.1, 4.0, 11.0)))
    peer.conclude(weigh=random is None or random.random() < 0.02)
    return peer


def run_frames(frames: list[bytes], random: Random, *, strict: bool = False) -> int:
    """Feed frames to connections, a fresh one whenever one has closed.

    Returns:
        How many frames came to an open connection, each counted once.
    """
    peer, taken, at = _begun(strict), 0, 0
    while at < len(frames):
        some = frames[at : at + random.choice((1, 1, 2, 5))]
        data = b"".join(some)
        cut = random.randrange(len(data)) if random.random() < 0.3 and data else len(data)
        for part in (data[:cut], data[cut:]):
            if part and not peer.connection.closed:
                peer.feed(part)
        at += len(some)
        if peer.connection.closed:
            taken += 1  # of those that came together, one was the last
            peer.conclude()
            peer = _begun(strict)
        else:
            taken += len(some)
        if random.random() < 0.01:
            peer.pass_time(random.choice((0.1, 4.0, 11.0)))
    peer.conclude(weigh=random.random() < 0.02)
    return taken


def _begun(strict: bool) -> Peer:
    peer = Peer(strict=strict)
    peer.feed(PREFACE + frame(4, 0, 0))
    return peer


def check_cuts(data: bytes, *, strict: bool = False) -> None:
    """The same bytes, whole and cut, get the same answer.

    Raises:
        AssertionError: They do not.
    """
    whole = run(data, strict=strict)
    cut = Peer(strict=strict, at_once=True)
    for at in range(0, len(data), 1 if len(data) < 400 else 17):
        if cut.connection.closed:
            break
        cut.feed(data[at : at + (1 if len(data) < 400 else 17)])
    cut.conclude()
    assert whole.output == cut.output, f"whole {whole.output!r}\ncut   {cut.output!r}"
