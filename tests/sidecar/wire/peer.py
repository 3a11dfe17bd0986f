"""The other end of a connection in memory: frames that a client would send, answers read back."""

from __future__ import annotations

from typing import NamedTuple

import hpack

from sidecar.wire import frames
from sidecar.wire.calls import PeerError
from sidecar.wire.connection import Connection
from sidecar.wire.frames import (
    END_HEADERS,
    END_STREAM,
    PREFACE,
    WORD,
    ErrorCode,
    FrameType,
)
from sidecar.wire.limits import Memory

PROCESS = b"/envoy.service.ext_proc.v3.ExternalProcessor/Process"
ACCESS_LOGS = b"/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"
CHECK = b"/grpc.health.v1.Health/Check"
WATCH = b"/grpc.health.v1.Health/Watch"
# How Envoy begins a block: :method POST, :path never indexed.
NOT_INDEXED = b"\x83\x04"


class Frame(NamedTuple):
    """One frame that came back."""

    kind: FrameType
    flags: int
    stream_id: int
    payload: bytes


def frames_of(data: bytes) -> list[Frame]:
    """Cut bytes into frames; there must be no rest."""
    found = []
    while data:
        length = int.from_bytes(data[:3], "big")
        assert len(data) >= 9 + length, "a frame that is cut off"
        stream_id = int.from_bytes(data[5:9], "big")
        found.append(Frame(FrameType(data[3]), data[4], stream_id, data[9 : 9 + length]))
        data = data[9 + length :]
    return found


class Served:
    """What the handler was asked, and what it says."""

    def __init__(self) -> None:
        self.processed: list[bytes] = []
        self.folding: list[tuple[int, bytes, str]] = []
        self.is_healthy = True

    def process(self, request: bytes) -> bytes | None:
        """`none` has no answer, `bad` cannot be read, all else is echoed; `long` many times."""
        self.processed.append(request)
        if request.startswith(b"none"):
            return None
        if request.startswith(b"bad"):
            raise PeerError("odd")
        return request * 100 if request.startswith(b"long") else request

    def healthy(self) -> bool:
        return self.is_healthy

    def fold(self, stream_id: int, message: bytes, log_name: str) -> None:
        self.folding.append((stream_id, message, log_name))


class Peer:
    """A client in memory, over one Connection."""

    def __init__(
        self,
        *,
        strict: bool = False,
        begin: bool = True,
        now_s: float = 0.0,
        memory: Memory | None = None,
    ) -> None:
        self.served = Served()
        self.now_s = now_s
        self.connection = Connection(
            self.served.process,
            self.served.healthy,
            self.served.fold,
            strict=strict,
            now_s=now_s,
            memory=memory,
        )
        self._decoder = hpack.Decoder()
        if begin:
            self.send(PREFACE, frames.settings({}), frames.SETTINGS_ACK)
            self.read()

    def send(self, *parts: bytes) -> Peer:
        """Hand over bytes, in one read."""
        self.connection.receive(b"".join(parts), self.now_s)
        while self.connection.unfinished:
            self.connection.receive(b"", self.now_s)
        return self

    def read(self) -> list[Frame]:
        """What came back since."""
        return frames_of(self.connection.data_to_send())

    def answers(self) -> dict[int, dict[str, str]]:
        """Headers and trailers of all HEADERS that came back since, by stream."""
        found: dict[int, dict[str, str]] = {}
        for frame in self.read():
            if frame.kind is FrameType.HEADERS:
                fields = self._decoder.decode(frame.payload)
                found.setdefault(frame.stream_id, {}).update((str(n), str(v)) for n, v in fields)
        return found

    def pass_time(self, seconds: float) -> Peer:
        """Let time pass, and be noticed."""
        self.now_s += seconds
        self.connection.tick(self.now_s)
        return self

    def goaway(self) -> ErrorCode:
        """Why the connection was ended."""
        (found,) = [f for f in self.read() if f.kind is FrameType.GOAWAY]
        assert self.connection.closed
        return ErrorCode(WORD.unpack_from(found.payload, 4)[0])

    def resets(self) -> dict[int, ErrorCode]:
        """Which streams were reset, and why; the connection lives."""
        assert not self.connection.closed
        found = [f for f in self.read() if f.kind is FrameType.RST_STREAM]
        return {f.stream_id: ErrorCode(WORD.unpack(f.payload)[0]) for f in found}


def block_of(path: bytes = PROCESS, *more: tuple[bytes, bytes], shrink: bool = True) -> bytes:
    """A request's header block as Envoy writes it with a table of size 0."""
    fields = [
        (b":scheme", b"http"),
        (b":authority", b"turnout"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *more,
    ]
    rest = b"".join(literal(name, value) for name, value in fields)
    start = b"\x20" if shrink else b""
    return start + NOT_INDEXED + bytes([len(path)]) + path + rest


def literal(name: bytes, value: bytes) -> bytes:
    """A header field as a literal without indexing; both shorter than 127 bytes."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def plain(*fields: tuple[bytes, bytes]) -> bytes:
    """A block of exactly these fields."""
    return b"\x20" + b"".join(literal(name, value) for name, value in fields)


def headers(stream_id: int, block: bytes, flags: int = END_HEADERS) -> bytes:
    return frames.frame(FrameType.HEADERS, flags, stream_id, block)


def data(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    return frames.frame(FrameType.DATA, flags, stream_id, payload)


def message(content: bytes) -> bytes:
    """With its prefix."""
    return b"\0" + len(content).to_bytes(4, "big") + content


def request(
    stream_id: int, content: bytes, *, path: bytes = PROCESS, end: bool = False, shrink: bool = True
) -> bytes:
    """A whole call of one message; for the fast path only without `shrink`."""
    return headers(stream_id, block_of(path, shrink=shrink)) + data(
        stream_id, message(content), END_STREAM if end else 0
    )


def open_get(stream_id: int, path: bytes = b"/healthz", *more: tuple[bytes, bytes]) -> bytes:
    """HEADERS of a GET, not ended."""
    fields = ((b":method", b"GET"), (b":scheme", b"http"), (b":path", path), *more)
    return headers(stream_id, plain(*fields))
