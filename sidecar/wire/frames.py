"""Frames of RFC 9113 section 4 and 6: numbers, layouts and the bytes of those that we send.

Owns no state. Refuses to interpret: `connection` says what a frame means.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

# RFC 9113 section 3.4.
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER_BYTES: Final = 9
# What we take (section 6.5.2, the least allowed) and therefore what everybody takes from us.
FRAME_BYTES_MAX: Final = 16_384
FRAME_BYTES_LIMIT: Final = 16_777_215
WINDOW_DEFAULT: Final = 65_535
WINDOW_MAX: Final = 2**31 - 1
STREAM_ID_MAX: Final = 2**31 - 1

# Length and type in one word: a frame header is read by one call (wire micro-benchmark).
HEADER: Final = Struct(">IBI")
WORD: Final = Struct(">I")
SETTING: Final = Struct(">HI")
_TWO_WORDS: Final = Struct(">II")


class FrameType(IntEnum):
    """Section 6."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY: Final = 0x20


class ErrorCode(IntEnum):
    """Section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class Setting(IntEnum):
    """Section 6.5.2."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class ConnectionFault(Exception):
    """The peer broke the connection's rules: GOAWAY, then the end (section 5.4.1)."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        """`reason` goes into the GOAWAY's debug data."""
        super().__init__(reason)
        self.code = code
        self.reason = reason


class StreamFault(Exception):
    """The peer broke one stream's rules: RST_STREAM (section 5.4.2)."""

    def __init__(self, stream_id: int, code: ErrorCode, reason: str) -> None:
        """Name the stream to reset."""
        super().__init__(reason)
        self.stream_id = stream_id
        self.code = code
        self.reason = reason


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """One frame; `payload` has at most FRAME_BYTES_MAX bytes."""
    return HEADER.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def settings(values: dict[Setting, int]) -> bytes:
    """Our SETTINGS."""
    payload = b"".join(SETTING.pack(name, value) for name, value in values.items())
    return frame(FrameType.SETTINGS, 0, 0, payload)


SETTINGS_ACK: Final = frame(FrameType.SETTINGS, ACK, 0, b"")


def rst_stream(stream_id: int, code: int) -> bytes:
    """Section 6.4."""
    return frame(FrameType.RST_STREAM, 0, stream_id, WORD.pack(code))


def window_update(stream_id: int, increment: int) -> bytes:
    """Section 6.9; `increment` is 1..WINDOW_MAX."""
    return frame(FrameType.WINDOW_UPDATE, 0, stream_id, WORD.pack(increment))


def ping_ack(payload: bytes) -> bytes:
    """Section 6.7."""
    return frame(FrameType.PING, ACK, 0, payload)


def goaway(last_stream_id: int, code: int, reason: str = "") -> bytes:
    """Section 6.8."""
    return frame(
        FrameType.GOAWAY, 0, 0, _TWO_WORDS.pack(last_stream_id, code) + reason.encode("ascii")
    )


def unpadded(flags: int, payload: bytes) -> bytes:
    """The payload of a DATA or HEADERS frame without its padding (section 6.1).

    Raises:
        ConnectionFault: The padding is as long as the payload, or longer.
    """
    if not flags & PADDED:
        return payload
    if not payload:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a padded frame without pad length")
    length = payload[0]
    if length >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - length]
