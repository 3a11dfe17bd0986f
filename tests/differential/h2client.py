"""A plain gRPC client over HTTP/2 frames of its own: many calls on one Unix socket, any server.

Owns just enough of RFC 9113 to ask and to read answers: it acknowledges, opens its windows wide and
takes answers as they come. Refuses what it does not expect; it is no judge of a server's manners
(`tests/fuzz/judge.py` is).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import hpack

from tests.fuzz.judge import HEADER, PREFACE
from tests.fuzz.sessions import EXT_PROC, encoded, frame, prefixed, request_fields

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM: Final = 1
ACK: Final = 1
WIDE: Final = (2**31 - 1 - 65_535).to_bytes(4)
FRAME_BYTES_MAX: Final = 16_384
ANSWER_S: Final = 30.0


class Reply(NamedTuple):
    """What a call came to."""

    status: int  # gRPC
    messages: tuple[bytes, ...]


class Client:
    """One connection."""

    def __init__(self, path: Path) -> None:
        """Connect with `async with`."""
        self._path = path
        self._next_id = 1
        self._decoder = hpack.Decoder()
        self._bodies: dict[int, bytearray] = {}
        self._statuses: dict[int, int] = {}
        self._received = 0

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_unix_connection(str(self._path))
        # Table size 0, as our own server asks: the same header block for all calls.
        first = frame(SETTINGS, 0, 0, b"\0\4\x7f\xff\xff\xff\0\2\0\0\0\0")
        self._writer.write(PREFACE + first + frame(WINDOW_UPDATE, 0, 0, WIDE))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def ask(self, messages: list[bytes], *, end: bool = True) -> list[Reply]:
        """One call for each message, all at once; their replies in order.

        Args:
            messages: Encoded ProcessingRequests.
            end: Half-close each call with its message, as most clients do; Envoy does not, and
                resets the stream when it has the answer.
        """
        ids = []
        block = encoded(request_fields(EXT_PROC))
        for message in messages:
            stream_id, self._next_id = self._next_id, self._next_id + 2
            ids.append(stream_id)
            self._writer.write(frame(HEADERS, 4, stream_id, block) + _data(stream_id, message, end))
        async with asyncio.timeout(ANSWER_S):
            while not all(stream_id in self._statuses for stream_id in ids):
                await self._take_frame()
        if not end:
            for stream_id in ids:
                self._writer.write(frame(RST_STREAM, 0, stream_id, b"\0\0\0\0"))
        return [
            Reply(self._statuses.pop(i), _messages(bytes(self._bodies.pop(i, b"")))) for i in ids
        ]

    async def _take_frame(self) -> None:
        word, flags, stream_id = HEADER.unpack(await self._reader.readexactly(9))
        kind, payload = word & 0xFF, await self._reader.readexactly(word >> 8)
        if kind == SETTINGS and not flags & ACK:
            self._writer.write(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._writer.write(frame(PING, ACK, 0, payload))
        elif kind == DATA:
            assert not flags & ~END_STREAM
            self._bodies.setdefault(stream_id, bytearray()).extend(payload)
        elif kind == HEADERS:
            assert flags & 4, "a header block in one frame"
            fields = dict(self._decoder.decode(payload, raw=True))
            assert fields.get(b":status", b"200") == b"200", fields
            if flags & END_STREAM:
                assert stream_id not in self._statuses, "trailers twice"
                self._statuses[stream_id] = int(fields[b"grpc-status"])
        elif kind == RST_STREAM:
            assert stream_id in self._statuses or stream_id < self._next_id - 2 * len(
                self._statuses
            ), "a call was reset"
        else:
            assert kind in (SETTINGS, PING, WINDOW_UPDATE), f"frame type {kind}"


def _data(stream_id: int, message: bytes, end: bool) -> bytes:
    """A message as DATA frames."""
    body = prefixed(message)
    parts = [body[at : at + FRAME_BYTES_MAX] for at in range(0, len(body), FRAME_BYTES_MAX)]
    frames = [frame(DATA, 0, stream_id, part) for part in parts[:-1]]
    return b"".join([*frames, frame(DATA, int(end), stream_id, parts[-1])])


def _messages(body: bytes) -> tuple[bytes, ...]:
    """The gRPC messages of a body."""
    found = []
    while body:
        assert body[0] == 0
        length = int.from_bytes(body[1:5])
        assert len(body) >= 5 + length, "half a message"
        found.append(body[5 : 5 + length])
        body = body[5 + length :]
    return tuple(found)
