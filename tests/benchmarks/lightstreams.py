"""Many sidecars in one process: streams that say Hello, parse what comes and acknowledge snapshots.

    python -m tests.benchmarks.lightstreams --port P --count N [--first I] [--tenant T]

Each has a connection of its own, like a sidecar, and HTTP/2 frames by hand: thousands of grpc.aio
channels would measure themselves. A connection that is lost comes back at once (no jitter: the
worst herd). Prints one JSON line for every version that all N have acknowledged: {version, all_s},
`all_s` in seconds of CLOCK_MONOTONIC, which the processes of one machine share.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import struct
import time
from collections import Counter
from typing import Final, cast

import uvloop

from turnout import contract
from turnout.v1alpha1 import config_service_pb2 as config
from turnout.v1alpha1.snapshot_pb2 import Snapshot

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_PATH: Final = b"/turnout.v1alpha1.ConfigService/Stream"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_WINDOW_BYTES: Final = 1 << 30
_REFILL_BYTES: Final = 1 << 24
_RETRY_S: Final = 0.05


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def message(payload: bytes) -> bytes:
    """One gRPC message in one DATA frame of stream 1."""
    return frame(_DATA, 0, 1, b"\0" + struct.pack(">I", len(payload)) + payload)


def opening() -> bytes:
    """What a client says before its first message: literals only, nothing enters a table."""

    def literal(name: bytes, value: bytes) -> bytes:
        return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value

    block = b"\x83\x86" + literal(b":path", _PATH) + literal(b":authority", b"control")
    block += literal(b"content-type", b"application/grpc") + literal(b"te", b"trailers")
    settings = struct.pack(">HI", 4, _WINDOW_BYTES)
    window = struct.pack(">I", _WINDOW_BYTES - 65_535)
    return (
        _PREFACE
        + frame(_SETTINGS, 0, 0, settings)
        + frame(_WINDOW, 0, 0, window)
        + frame(_HEADERS, 4, 1, block)
    )


OPENING: Final = opening()


class Herd:
    """All streams of this process, and what they have acknowledged."""

    def __init__(self, port: int, tenant: str, count: int) -> None:
        self.port = port
        self.tenant = tenant
        self.count = count
        self.applied = 0
        self._acked: Counter[int] = Counter()
        self._parsed: tuple[bytes, int] = (b"", 0)

    def acked(self, version: int) -> None:
        """One more stream has taken a version."""
        self._acked[version] += 1
        if self._acked[version] == self.count:
            self.applied = version
            print(json.dumps({"version": version, "all_s": time.monotonic()}), flush=True)

    def lost(self, version: int) -> None:
        """A stream that had taken a version is gone: it must take it again."""
        self._acked[version] -= 1

    def parse(self, snapshot: bytes) -> int:
        """The version of an encoded snapshot; every stream's bytes are decoded."""
        return Snapshot.FromString(snapshot).version

    async def keep(self, node: str) -> None:
        """One stream for ever."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                _, stream = await loop.create_connection(
                    lambda: Stream(self, node), "127.0.0.1", self.port
                )
            except OSError:
                await asyncio.sleep(_RETRY_S)
                continue
            await stream.gone


class Stream(asyncio.Protocol):
    """One sidecar's stream."""

    def __init__(self, herd: Herd, node: str) -> None:
        self._herd = herd
        self._node = node
        self._buffer = bytearray()
        self._body = bytearray()
        self._unrefilled = 0
        self._version = 0
        self._transport: asyncio.Transport | None = None
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say Hello."""
        # uvloop's transports are not asyncio.Transport's children.
        self._transport = cast("asyncio.Transport", transport)
        hello = config.StreamRequest()
        hello.hello.node = self._node
        hello.hello.instance_id = self._node
        hello.hello.tenant = self._herd.tenant
        hello.hello.snapshot_format = contract.SNAPSHOT_FORMAT
        self._transport.write(OPENING + message(hello.SerializeToString()))

    def connection_lost(self, error: Exception | None) -> None:
        """Come back."""
        if self._version:
            self._herd.lost(self._version)
        self.gone.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Take frames apart."""
        self._buffer += data
        while len(self._buffer) >= 9:
            length = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < 9 + length:
                return
            kind, flags = self._buffer[3], self._buffer[4]
            payload = bytes(self._buffer[9 : 9 + length])
            del self._buffer[: 9 + length]
            self._frame(kind, flags, payload)

    def _frame(self, kind: int, flags: int, payload: bytes) -> None:
        assert self._transport is not None
        if kind == _DATA:
            self._unrefilled += len(payload)
            if self._unrefilled > _REFILL_BYTES:
                refill = struct.pack(">I", self._unrefilled)
                self._transport.write(frame(_WINDOW, 0, 0, refill) + frame(_WINDOW, 0, 1, refill))
                self._unrefilled = 0
            self._body += payload
            self._messages()
        elif kind == _SETTINGS and not flags & 1:
            self._transport.write(frame(_SETTINGS, 1, 0))
        elif kind == _PING and not flags & 1:
            self._transport.write(frame(_PING, 1, 0, payload))
        elif kind in (_GOAWAY, _RST) or (kind == _HEADERS and flags & 1):
            self._transport.close()

    def _messages(self) -> None:
        while len(self._body) >= 5:
            length = int.from_bytes(self._body[1:5], "big")
            if len(self._body) < 5 + length:
                return
            payload = bytes(self._body[5 : 5 + length])
            del self._body[: 5 + length]
            response = config.StreamResponse.FromString(payload)
            if response.HasField("snapshot"):
                self._acknowledge(response.snapshot)

    def _acknowledge(self, push: config.SnapshotPush) -> None:
        assert self._transport is not None
        assert self._herd.parse(push.snapshot) == push.version
        request = config.StreamRequest()
        request.ack.version, request.ack.nonce = push.version, push.nonce
        self._transport.write(message(request.SerializeToString()))
        self._version = push.version
        self._herd.acked(push.version)


async def run(port: int, tenant: str, first: int, count: int) -> None:
    """Keep `count` streams until killed."""
    herd = Herd(port, tenant, count)
    await asyncio.gather(*(herd.keep(f"light-{first + i}") for i in range(count)))


def main(arguments: list[str] | None = None) -> None:
    """Run until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--tenant", default="risk")
    options = parser.parse_args(arguments)
    uvloop.run(run(options.port, options.tenant, options.first, options.count))


if __name__ == "__main__":
    main()
