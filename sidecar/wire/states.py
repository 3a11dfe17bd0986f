"""States of a connection and of a stream (RFC 9113 sections 3.4, 5.1), as tables.

Owns what a frame means by where it arrives. Refuses to look into frames. States and actions are
plain integers and the tables lists: a lookup costs as little as an `if`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from sidecar.wire.frames import FrameType


class ConnectionState(IntEnum):
    """Where the connection is."""

    PREFACE = 0  # the client's 24 bytes
    SETTINGS = 1  # its first SETTINGS
    OPEN = 2
    BLOCK = 3  # within a header block: nothing but its CONTINUATIONs
    CLOSED = 4  # GOAWAY sent, or all done: what comes is discarded


class StreamState(IntEnum):
    """Where a stream is, as the server sees it."""

    IDLE = 0
    OPEN = 1
    HALF_CLOSED_REMOTE = 2  # the peer has ended its half
    ANSWERED = 3  # half-closed (local): we have ended ours
    CLOSED_BY_PEER = 4  # by both ends, or by the peer's reset
    CLOSED_BY_US = 5  # we have reset it: the peer may not know yet
    FORGOTTEN = 6  # an id below the highest that we know nothing of


class Action(IntEnum):
    """What to do with a frame."""

    TAKE = 0
    DISCARD = 1  # it counts for flow control and header compression, and means nothing
    RESET_CLOSED = 2  # stream error STREAM_CLOSED
    FAIL_CLOSED = 3  # connection error STREAM_CLOSED
    FAIL_PROTOCOL = 4  # connection error PROTOCOL_ERROR


_TAKE, _DISCARD = Action.TAKE, Action.DISCARD
_RESET, _FAIL, _PROTOCOL = Action.RESET_CLOSED, Action.FAIL_CLOSED, Action.FAIL_PROTOCOL

# Columns: DATA, HEADERS, PRIORITY, RST_STREAM; WINDOW_UPDATE is column 4 (see COLUMN).
STREAM: Final[list[list[Action]]] = [
    [_PROTOCOL, _TAKE, _TAKE, _PROTOCOL, _PROTOCOL],  # IDLE
    [_TAKE, _TAKE, _TAKE, _TAKE, _TAKE],  # OPEN
    [_RESET, _RESET, _TAKE, _TAKE, _TAKE],  # HALF_CLOSED_REMOTE
    [_TAKE, _TAKE, _TAKE, _TAKE, _TAKE],  # ANSWERED
    [_RESET, _FAIL, _TAKE, _DISCARD, _DISCARD],  # CLOSED_BY_PEER
    [_DISCARD, _DISCARD, _TAKE, _DISCARD, _DISCARD],  # CLOSED_BY_US
    # A new stream must have a higher id (5.1.1); all else may be late.
    [_RESET, _PROTOCOL, _TAKE, _DISCARD, _DISCARD],  # FORGOTTEN
]
COLUMN: Final = {
    FrameType.DATA: 0,
    FrameType.HEADERS: 1,
    FrameType.PRIORITY: 2,
    FrameType.RST_STREAM: 3,
    FrameType.WINDOW_UPDATE: 4,
}

_ALL: Final = frozenset(range(256))
# Frame types that may come; everything else is a connection error PROTOCOL_ERROR.
CONNECTION: Final[list[frozenset[int]]] = [
    frozenset(),  # PREFACE: no frames yet
    frozenset({FrameType.SETTINGS}),  # SETTINGS
    # PUSH_PROMISE is the server's (8.4); a CONTINUATION needs a block before it (6.10).
    _ALL - {FrameType.PUSH_PROMISE, FrameType.CONTINUATION},  # OPEN
    frozenset({FrameType.CONTINUATION}),  # BLOCK
    frozenset(),  # CLOSED: not looked at
]
