"""One hostile connection: writes as fast as it is let, reads or does not, and notes how it ends.

Owns a socket and the bounds of an attack in time and bytes. Refuses to say what is sent: `floods`
does.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from tests.conformance.frames import (
    ACKNOWLEDGED,
    GOAWAY,
    OPENING,
    PING,
    RST_STREAM,
    SETTINGS,
    Frame,
    Reader,
    frame,
)
from tests.conformance.servers import Address

READ_BYTES: Final = 262_144
# A server that takes nothing for so long has stopped reading: that is an answer too.
STUCK_S: Final = 0.5


class Over(Exception):
    """The attack has ended: by the server, or at its bounds."""


class Outcome(NamedTuple):
    """How a connection ended.

    Attributes:
        closed_s: Seconds from the first hostile byte to the server's end of the connection (its
            half of it: the server listens to nothing any more); None = it went on.
        dead_s: Seconds until nothing could be written either; None = not before the bounds.
        sent: Hostile bytes until closed_s, or all.
        stuck: Whether the server took no more bytes.
        code: Of its GOAWAY; None = none came.
        resets: RST_STREAM frames that came.
        frames: All frames that came, resets included.
    """

    closed_s: float | None
    dead_s: float | None
    sent: int
    stuck: bool
    code: int | None
    resets: int
    frames: int


class Attacker:
    """A connection with bounds.

    Attributes:
        deaf: It reads nothing while set.
        settled: The server's SETTINGS have come.
    """

    def __init__(self, address: Address, *, seconds: float, bytes_max: int) -> None:
        self.deaf = False
        self._address = address
        self._more: list[socket.socket] = []
        self._connect()
        self._seen: Counter[int] = Counter()
        self._seconds, self._bytes_max = seconds, bytes_max
        self._opened = False
        self._start = time.monotonic()
        self._closed_s: float | None = None
        self._dead_s: float | None = None
        self._sent = 0
        self._sent_at_close: int | None = None
        self._stuck = False
        self._code: int | None = None

    # -- What floods use ---------------------------------------------------------------------------

    def open(self, opening: bytes = OPENING) -> None:
        """Begin as a client does; time and bytes count from the server's SETTINGS."""
        self.write(opening)
        self.wait(lambda: self.settled or self._closed_s is not None, 2.0)
        self.write(ACKNOWLEDGED)
        if not self._opened:
            self._opened = True
            self._start, self._sent = time.monotonic(), 0

    def flood(self, chunks: Iterable[bytes]) -> None:
        """Write all of it; an end is an end of the attack.

        Raises:
            Over: The server ended it, or the bounds are reached.
        """
        for chunk in chunks:
            self.write(chunk)

    def write(self, chunk: bytes) -> None:
        """Write all, reading what comes meanwhile.

        Raises:
            Over: The server ended it, or the bounds are reached.
        """
        view, moved = memoryview(chunk), time.monotonic()
        while view:
            self._check()
            written = self._send(view)
            self._hear(0.0)
            if written:
                view, moved = view[written:], time.monotonic()
            elif time.monotonic() - moved > STUCK_S:
                self._stuck = True
                raise Over
            else:
                self._pause()

    def drip(self, data: bytes, interval_s: float) -> None:
        """Write byte after byte.

        Raises:
            Over: The server ended it, or the bounds are reached.
        """
        for at in range(len(data)):
            self.write(data[at : at + 1])
            self.idle(interval_s)

    def idle(self, seconds: float) -> None:
        """Write nothing for a while.

        Raises:
            Over: The server ended it, or the bounds are reached.
        """
        self.wait(lambda: self._closed_s is not None, seconds)
        if self._closed_s is not None:
            raise Over

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Read until something holds; whether it does."""
        deadline = time.monotonic() + seconds
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._check()
            self._hear(min(left, 0.1))
        return True

    def returning(self, flood: Callable[[], None]) -> None:
        """Come back on a new connection whenever the server ended the last.

        Raises:
            Over: The bounds are reached.
        """
        while True:
            with contextlib.suppress(Over):
                flood()
            self._closed_s = self._dead_s = self._sent_at_close = None
            self._check()
            self._peer.close()
            self._connect()

    def crowd(self, connections: int, data: bytes = b"") -> None:
        """Open more connections, say something on each, and keep them until the end."""
        for _ in range(connections):
            self._check()
            # One that is not accepted, or closed at once, is as good as any.
            with contextlib.suppress(OSError):
                self._more.append(self._address.connect())
                self._more[-1].sendall(OPENING + data)

    def end(self) -> Outcome:
        """Close, and say how it went."""
        for one in self._more:
            one.close()
        if self._closed_s is None and not self._stuck:
            # The last answers may be on their way.
            self.deaf = False
            self._hear(0.0)
        self._peer.close()
        sent = self._sent if self._sent_at_close is None else self._sent_at_close
        total = sum(self._seen.values())
        return Outcome(
            self._closed_s,
            self._dead_s,
            sent,
            self._stuck,
            self._code,
            self._seen[RST_STREAM],
            total,
        )

    # -- The socket --------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._peer = self._address.connect()
        self._peer.setblocking(False)
        self._ends = select.poll()
        self._ends.register(self._peer, select.POLLRDHUP)
        self._reader, self.settled = Reader(), False

    def _elapsed(self) -> float:
        return time.monotonic() - self._start

    def _check(self) -> None:
        if self._dead_s is not None:
            raise Over
        if self._elapsed() > self._seconds or self._sent > self._bytes_max:
            raise Over

    def _send(self, view: memoryview) -> int:
        try:
            written = self._peer.send(view)
        except BlockingIOError:
            return 0
        except OSError:
            self._dead_s = self._elapsed()
            self._close()
            # What the server said before it closed can still be read.
            self.deaf = False
            self._hear(0.0)
            raise Over from None
        self._sent += written
        return written

    def _close(self) -> None:
        if self._closed_s is None:
            self._closed_s, self._sent_at_close = self._elapsed(), self._sent

    def _pause(self) -> None:
        reads = [] if self.deaf or self._closed_s is not None else [self._peer]
        select.select(reads, [self._peer], [], 0.05)

    def _hear(self, seconds: float) -> None:
        """Read what is there, waiting at most so long for the first byte."""
        if self.deaf or self._closed_s is not None:
            # What is not read hides the end of it.
            if self._closed_s is None and self._ends.poll(0):
                self._close()
            if seconds:
                time.sleep(seconds)
            return
        if seconds:
            select.select([self._peer], [], [], seconds)
        try:
            more = self._peer.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        if not more:
            self._close()
            return
        for one in self._reader.feed(more):
            self._take(one)

    def _take(self, one: Frame) -> None:
        self._seen[one.kind] += 1
        if one.kind == GOAWAY:
            self._code = one.code
        elif one.kind == SETTINGS and not one.flags:
            self.settled = True
        elif one.kind == PING and not one.flags:
            self._peer.setblocking(True)
            with_ack = frame(PING, 1, payload=one.payload)
            try:
                self._peer.sendall(with_ack)
            except OSError:
                self._close()
            self._peer.setblocking(False)


def attack(
    address: Address, run: Callable[[Attacker], None], *, seconds: float, bytes_max: int
) -> Outcome:
    """Run an attack to its end."""
    attacker = Attacker(address, seconds=seconds, bytes_max=bytes_max)
    try:
        run(attacker)
    except Over:
        return attacker.end()
    return attacker.end()
