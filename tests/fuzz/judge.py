"""A strict reader of what the wire server sends: whatever bytes a peer sent, this must hold.

Owns the rules of a server's half of HTTP/2 and gRPC, from RFC 9113 and PROTOCOL-HTTP2.md, and what
flow control allows at most. Refuses to know how the server comes to its answers.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

import hpack

HEADER: Final = Struct(">IBI")
FRAME_BYTES_MAX: Final = 16_384  # no peer must take more (RFC 9113 section 6.5.2)
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WINDOW: Final = 65_535
END_STREAM: Final = 1
ACK: Final = 1
END_HEADERS: Final = 4

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE = range(9)


class Stage(IntEnum):
    """How far our answer on a stream has come."""

    NOTHING = 0
    HEADED = 1
    ENDED = 2
    RESET = 3


class Judge:
    """Reads all that one connection sends, chunk by chunk."""

    def __init__(self) -> None:
        """Nothing read yet."""
        self.stages: dict[int, Stage] = {}
        self.bodies: dict[int, bytearray] = {}
        self.pings = 0
        self.settings_acks = 0
        self.data_bytes = 0
        self.frames = 0
        self.pages: set[int] = set()  # streams that are no call: the health page
        self.goaway: int | None = None  # error code of the last
        self._stopped: set[int] = set()  # streams reset with NO_ERROR
        self._decoder = hpack.Decoder()

    def read(self, data: bytes) -> None:
        """Take whole frames: a server that is asked for its bytes has no half ones.

        Raises:
            AssertionError: A rule is broken.
        """
        at = 0
        while at < len(data):
            assert len(data) - at >= 9, "half a frame header"
            word, flags, stream_id = HEADER.unpack_from(data, at)
            length, kind = word >> 8, word & 0xFF
            assert length <= FRAME_BYTES_MAX, f"a frame of {length} bytes"
            payload = data[at + 9 : at + 9 + length]
            assert len(payload) == length, "half a frame"
            self._frame(kind, flags, stream_id, payload)
            at += 9 + length

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        assert self.goaway in (None, 0), "something after the GOAWAY of an error"
        assert (kind == SETTINGS and not flags) == (not self.frames), "SETTINGS first, and once"
        self.frames += 1
        if kind == SETTINGS:
            assert stream_id == 0
            assert (not payload) if flags & ACK else len(payload) % 6 == 0
            self.settings_acks += flags & ACK
        elif kind == PING:
            assert (stream_id, flags, len(payload)) == (0, ACK, 8)
            self.pings += 1
        elif kind == GOAWAY:
            assert stream_id == 0
            assert len(payload) >= 8
            self.goaway = int.from_bytes(payload[4:8])
        elif kind == WINDOW_UPDATE:
            assert len(payload) == 4
            assert 0 < int.from_bytes(payload) < 2**31
            assert stream_id == 0 or self._stage(stream_id) < Stage.ENDED
        else:
            assert stream_id % 2 == 1, "a stream that no client opens"
            self._stream_frame(kind, flags, stream_id, payload)

    def _stage(self, stream_id: int) -> Stage:
        return self.stages.get(stream_id, Stage.NOTHING)

    def _stream_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        stage = self._stage(stream_id)
        if kind == RST_STREAM:
            assert len(payload) == 4
            # A second one only when the first was no error and more came (section 5.4.2).
            assert stage < Stage.RESET or stream_id in self._stopped, "two resets"
            self._stopped.discard(stream_id)
            if not any(payload) and stage < Stage.RESET:
                self._stopped.add(stream_id)
            self.stages[stream_id] = Stage.RESET
            return
        assert stage < Stage.ENDED, f"type {kind} after the end of stream {stream_id}"
        if kind == DATA:
            assert flags in (0, END_STREAM)
            assert stage == Stage.HEADED, "DATA before HEADERS"
            self.bodies.setdefault(stream_id, bytearray()).extend(payload)
            self.data_bytes += len(payload)
        else:
            assert kind == HEADERS, f"type {kind} from a server"
            self._headers(stream_id, flags, payload)
            self.stages[stream_id] = Stage.HEADED
        if flags & END_STREAM:
            self.stages[stream_id] = Stage.ENDED

    def _headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        assert flags & ~END_STREAM == END_HEADERS
        fields = dict(self._decoder.decode(payload, raw=True))
        if self._stage(stream_id) == Stage.NOTHING:
            assert b":status" in fields
            if fields.get(b"content-type") == b"text/plain":
                self.pages.add(stream_id)
            only = flags & END_STREAM and fields[b":status"] == b"200"
            assert b"grpc-status" in fields or not only, "Trailers-Only without a status"
        else:
            assert flags & END_STREAM, "HEADERS that are neither first nor last"
            assert b":status" not in fields
            assert b"grpc-status" in fields

    def messages(self) -> dict[int, list[bytes]]:
        """Whole gRPC messages by stream, in order; what has not been sent whole is left out.

        Raises:
            AssertionError: A message says that it is compressed.
        """
        found: dict[int, list[bytes]] = {}
        for stream_id in self.bodies.keys() - self.pages:
            body, at = self.bodies[stream_id], 0
            while len(body) - at >= 5:
                assert body[at] == 0, "compressed"
                length = int.from_bytes(body[at + 1 : at + 5])
                if len(body) - at - 5 < length:
                    break
                found.setdefault(stream_id, []).append(bytes(body[at + 5 : at + 5 + length]))
                at += 5 + length
        return found


class Sent:
    """What a client's bytes entitle the server to, read as loosely as can be: upper bounds."""

    def __init__(self, data: bytes) -> None:
        """Walk the frames of all that was sent."""
        self.frames = self.pings = self.settings = 0
        self.window = WINDOW
        at = len(PREFACE)
        while len(data) - at >= 9:
            word, flags, stream_id = HEADER.unpack_from(data, at)
            kind, length = word & 0xFF, word >> 8
            self.frames += 1
            self.pings += kind == PING and not flags & ACK
            self.settings += kind == SETTINGS and not flags & ACK
            if kind == WINDOW_UPDATE and not stream_id & 0x7FFFFFFF and length == 4:
                self.window += int.from_bytes(data[at + 9 : at + 13]) & 0x7FFFFFFF
            at += 9 + length
