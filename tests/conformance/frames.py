"""HTTP/2 frames by hand, right or wrong as the caller wants them.

Owns the bytes of frames, of header blocks without compression and of gRPC messages, and reading
frames back. Refuses to keep rules: those who attack break them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from tests.integration.extproc import ACCESS_LOGS, CHECK, PROCESS, request_of

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE = range(6)
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(6, 10)
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, PRIORITISED = 0x4, 0x8, 0x20
HEADER_BYTES: Final = 9
FRAME_BYTES_MAX: Final = 16_384
WINDOW_MAX: Final = 2**31 - 1

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT, INITIAL_WINDOW = 1, 2, 3, 4
NO_ERROR, PROTOCOL_ERROR = 0, 1
CANCEL, ENHANCE_YOUR_CALM = 8, 11

_LENGTH: Final = struct.Struct(">BHBBI")


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """One frame; its length is right."""
    return head(len(payload), kind, flags, stream) + payload


def head(length: int, kind: int, flags: int = 0, stream: int = 0) -> bytes:
    """A frame's header with any length."""
    return _LENGTH.pack(length >> 16, length & 0xFFFF, kind, flags, stream)


def literal(name: bytes, value: bytes) -> bytes:
    """A header that enters no table (RFC 7541 6.2.2), without Huffman."""
    return b"\x00" + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    return _integer(len(text), 7) + text


def _integer(value: int, bits: int) -> bytes:
    """An integer with an N-bit prefix whose other bits are 0 (RFC 7541 5.1)."""
    full = (1 << bits) - 1
    if value < full:
        return bytes([value])
    out, value = bytearray([full]), value - full
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    out.append(value)
    return bytes(out)


def request_block(path: str = PROCESS, *more: tuple[bytes, bytes]) -> bytes:
    """Headers of a gRPC call; they leave the decoder's table as it is."""
    return (
        b"\x83\x86"  # :method POST, :scheme http
        + b"\x04" + _string(path.encode())
        + b"\x01" + _string(b"localhost")
        + literal(b"te", b"trailers")
        + literal(b"content-type", b"application/grpc")
        + b"".join(literal(name, value) for name, value in more)
    )  # fmt: skip


def message(body: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """A gRPC message with its prefix; `length` tells another length than the true one."""
    return struct.pack(">BI", flag, len(body) if length is None else length) + body


def settings(*entries: tuple[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", *entry) for entry in entries))


def window_update(stream: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, stream=stream, payload=struct.pack(">I", increment))


def rst(stream: int, code: int = CANCEL) -> bytes:
    """An RST_STREAM frame."""
    return frame(RST_STREAM, stream=stream, payload=struct.pack(">I", code))


def open_stream(stream: int, block: bytes, *, flags: int = 0) -> bytes:
    """A HEADERS frame with a whole block."""
    return frame(HEADERS, END_HEADERS | flags, stream, block)


def data(stream: int, payload: bytes, *, flags: int = 0) -> bytes:
    """A DATA frame."""
    return frame(DATA, flags, stream, payload)


def odd(first: int = 3) -> Iterator[int]:
    """Stream ids of a client."""
    return iter(range(first, WINDOW_MAX, 2))


class Frame:
    """A frame that was read."""

    __slots__ = ("flags", "kind", "payload", "stream")

    def __init__(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self.kind, self.flags, self.stream, self.payload = kind, flags, stream, payload

    def __repr__(self) -> str:
        return f"Frame({self.kind}, {self.flags:#x}, {self.stream}, {self.payload[:40]!r})"

    @property
    def ends(self) -> bool:
        """Whether it is the stream's last."""
        return self.kind == RST_STREAM or (
            self.kind in (DATA, HEADERS) and bool(self.flags & END_STREAM)
        )

    @property
    def code(self) -> int:
        """The error code of RST_STREAM or GOAWAY."""
        at = 4 if self.kind == GOAWAY else 0
        return int.from_bytes(self.payload[at : at + 4], "big")


class Reader:
    """Frames out of bytes as they come."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, more: bytes) -> list[Frame]:
        """The frames that are whole now."""
        buffer = self._buffer
        buffer += more
        frames, at = [], 0
        while len(buffer) - at >= HEADER_BYTES:
            high, low, kind, flags, stream = _LENGTH.unpack_from(buffer, at)
            end = at + HEADER_BYTES + (high << 16) + low
            if len(buffer) < end:
                break
            payload = bytes(buffer[at + HEADER_BYTES : end])
            frames.append(Frame(kind, flags, stream & WINDOW_MAX, payload))
            at = end
        del buffer[:at]
        return frames


PROCESS_BLOCK: Final = request_block()
CHECK_BLOCK: Final = request_block(CHECK)
ACCESS_LOGS_BLOCK: Final = request_block(ACCESS_LOGS)
REQUEST: Final = message(request_of("somebody").SerializeToString())
# Windows as large as Envoy's, so that answers are never held back.
OPENING: Final = PREFACE + settings((INITIAL_WINDOW, 2**24)) + window_update(0, 2**30)
# The table of a server that allows none must be emptied by the first block after its SETTINGS were
# acknowledged (RFC 7541 section 4.2); a health check on stream FIRST - 2 does that.
FIRST: Final = 3
ACKNOWLEDGED: Final = (
    frame(SETTINGS, ACK)
    + open_stream(FIRST - 2, b"\x20" + CHECK_BLOCK)
    + data(FIRST - 2, message(b""), flags=END_STREAM)
)
