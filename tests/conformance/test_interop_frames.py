"""gRPC's interop cases on the level of frames, from the client's side, on the Unix socket."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Final, Self

import pytest

from tests.conformance.frames import (
    ACK,
    ACKNOWLEDGED,
    DATA,
    END_STREAM,
    FIRST,
    GOAWAY,
    NO_ERROR,
    OPENING,
    PING,
    PROCESS_BLOCK,
    REQUEST,
    RST_STREAM,
    SETTINGS,
    WINDOW_MAX,
    Frame,
    Reader,
    data,
    frame,
    literal,
    open_stream,
    rst,
)
from tests.conformance.servers import Server

SOON_S: Final = 5.0
STREAMS_MAX: Final = 1_024
REFUSED_STREAM, STREAM_CANCEL = 7, 8


class Peer:
    """A client that writes frames and waits for some."""

    def __init__(self, server: Server) -> None:
        self._socket = server.address.connect(SOON_S)
        self._reader = Reader()
        self.frames: list[Frame] = []
        self.ended = False
        self.write(OPENING)
        self.until(lambda: any(one.kind == SETTINGS for one in self.frames))
        self.write(ACKNOWLEDGED)
        self.until(lambda: any(one.ends for one in self.frames))
        self.frames.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def until(self, condition: Callable[[], bool]) -> None:
        """Read until something holds."""
        deadline = time.monotonic() + SOON_S
        while not condition():
            assert not self.ended, f"the server closed: {self.frames}"
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                more = self._socket.recv(65_536)
            except TimeoutError:
                raise AssertionError(f"nothing within {SOON_S:g} s: {self.frames}") from None
            self.ended = not more
            self.frames += self._reader.feed(more)

    def of(self, stream: int, *kinds: int) -> list[Frame]:
        return [
            one for one in self.frames if one.stream == stream and (not kinds or one.kind in kinds)
        ]

    def answered(self, stream: int) -> bool:
        """Ask on a stream, and wait for the whole answer."""
        self.write(open_stream(stream, PROCESS_BLOCK))
        self.write(data(stream, REQUEST, flags=END_STREAM))
        self.until(lambda: any(one.ends for one in self.of(stream)))
        return bool(self.of(stream, DATA)) and not self.of(stream, RST_STREAM)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("wire") as one:
        yield one
        assert one.alive, one.output()
        assert one.output() == ""


@pytest.fixture
def peer(server: Server) -> Iterator[Peer]:
    with Peer(server) as one:
        yield one


@pytest.mark.parametrize(
    "begun",
    [
        b"",  # rst_after_header
        data(3, REQUEST[:20]),  # rst_during_data
        data(3, REQUEST),  # rst_after_data
    ],
)
def test_connection_serves_on_when_a_stream_is_reset(peer: Peer, begun: bytes) -> None:
    peer.write(open_stream(3, PROCESS_BLOCK) + begun + rst(3))
    assert peer.answered(5)


def test_ping_is_echoed_when_a_request_is_open(peer: Peer) -> None:
    peer.write(open_stream(3, PROCESS_BLOCK) + frame(PING, payload=b"turnout!"))
    peer.until(lambda: any(one.kind == PING for one in peer.frames))
    (answer,) = [one for one in peer.frames if one.kind == PING]
    assert (answer.flags, answer.payload) == (ACK, b"turnout!")


def test_stream_is_refused_when_there_are_too_many(peer: Peer) -> None:
    """gRPC interop: max_streams."""
    last = 2 * STREAMS_MAX + FIRST
    peer.write(b"".join(open_stream(stream, PROCESS_BLOCK) for stream in range(FIRST, last + 1, 2)))
    peer.until(lambda: bool(peer.of(last)))
    assert [(one.kind, one.code) for one in peer.of(last)] == [(RST_STREAM, REFUSED_STREAM)]
    assert not [one for one in peer.frames if one.stream not in (0, last)]
    # One goes, one may come.
    peer.write(rst(3))
    assert peer.answered(last + 2)
    peer.write(data(5, REQUEST))
    peer.until(lambda: bool(peer.of(5, DATA)))


def test_open_stream_is_answered_when_the_client_says_goaway(peer: Peer) -> None:
    peer.write(open_stream(3, PROCESS_BLOCK) + frame(GOAWAY, payload=bytes(8)))
    peer.write(data(3, REQUEST, flags=END_STREAM))
    peer.until(lambda: any(one.ends for one in peer.of(3)))
    assert peer.of(3, DATA)


def test_stream_is_reset_when_its_deadline_passes(peer: Peer) -> None:
    """grpc-timeout, from a client that does not cancel by itself."""
    block = PROCESS_BLOCK + literal(b"grpc-timeout", b"100m")
    peer.write(open_stream(3, block))
    peer.until(lambda: bool(peer.of(3)))
    assert [(one.kind, one.code) for one in peer.of(3)] == [(RST_STREAM, STREAM_CANCEL)]
    assert peer.answered(5)


def test_message_is_read_whole_when_it_comes_byte_by_byte(peer: Peer) -> None:
    peer.write(open_stream(3, PROCESS_BLOCK))
    for at in range(len(REQUEST)):
        peer.write(data(3, REQUEST[at : at + 1]))
    peer.until(lambda: bool(peer.of(3, DATA)))


def test_server_goes_away_in_two_steps_when_it_is_told_to_end() -> None:
    """A stream that is open then is answered; a new one between the steps is served too."""
    with Server("wire") as server, Peer(server) as peer:
        peer.write(open_stream(3, PROCESS_BLOCK))
        assert peer.answered(5)
        os.kill(server.pid, signal.SIGTERM)

        def goaways() -> list[Frame]:
            return [one for one in peer.frames if one.kind == GOAWAY]

        peer.until(lambda: bool(goaways()))
        assert int.from_bytes(goaways()[0].payload[:4], "big") == WINDOW_MAX
        assert goaways()[0].code == NO_ERROR
        assert peer.answered(7)
        peer.until(lambda: len(goaways()) == 2)
        assert int.from_bytes(goaways()[1].payload[:4], "big") == 7
        peer.write(data(3, REQUEST, flags=END_STREAM))
        peer.until(lambda: peer.ended)
        assert peer.of(3, DATA)
