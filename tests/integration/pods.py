"""Model pods in the test's own process: they say who they are, count, fail, stall and die."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Self

from tests.integration.waiting import LOOPBACK

HEALTH_PATH: Final = "/healthz"
KEEP_MAX: Final = 10_000
_END: Final = b"\r\n\r\n"


class Seen(NamedTuple):
    """One request as a pod got it."""

    method: str
    path: str
    headers: Mapping[str, str]
    body_bytes: int
    body_sha256: str


class Pod:
    """An HTTP/1.1 server named `name`.

    Attributes:
        requests: Requests other than health checks.
        seen: The requests, when `record` is set, at most KEEP_MAX.
        status: Status of the answer to a request; a function decides per request.
        healthy: What the health check is told.
        delay_s: Time before an answer.
    """

    def __init__(self, name: str, *, record: bool = False) -> None:
        self.name = name
        self.record = record
        self.port = 0
        self.requests = 0
        self.health_checks = 0
        self.seen: list[Seen] = []
        self.by_user: Counter[str] = Counter()
        self.status: int | Callable[[Seen], int] = 200
        self.healthy = True
        self.delay_s = 0.0
        self._server: asyncio.Server | None = None
        self.connections: set[asyncio.Transport] = set()

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{LOOPBACK}:{self.port}"

    async def open(self) -> Self:
        """Listen; on the port that it had before, if it had one."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Peer(self), LOOPBACK, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        """Die: stop listening, break all connections."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for transport in tuple(self.connections):
            transport.abort()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.wait_closed(), 1.0)

    def answer(self, seen: Seen) -> int:
        """Count a request and choose its status."""
        if seen.path == HEALTH_PATH:
            self.health_checks += 1
            return 200 if self.healthy else 503
        self.requests += 1
        self.by_user[seen.headers.get("x-user-id", "")] += 1
        if self.record and len(self.seen) < KEEP_MAX:
            self.seen.append(seen)
        return self.status(seen) if callable(self.status) else self.status


class _Peer(asyncio.Protocol):
    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._pod.connections.add(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is not None:
            self._pod.connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (seen := _take(self._buffer)) is not None:
            status = self._pod.answer(seen)
            delay_s = self._pod.delay_s if seen.path != HEALTH_PATH else 0.0
            if delay_s:
                asyncio.get_running_loop().call_later(delay_s, self._write, status)
            else:
                self._write(status)

    def _write(self, status: int) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        name = self._pod.name.encode()
        self._transport.write(
            # A pod that claims a variant must not be believed.
            b"HTTP/1.1 %d X\r\nx-pod: %s\r\nx-variant: forged\r\ncontent-length: %d\r\n\r\n%s"
            % (status, name, len(name), name)
        )


def _take(buffer: bytearray) -> Seen | None:
    """Remove one whole request from the buffer."""
    end = buffer.find(_END)
    if end < 0:
        return None
    lines = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    method, path, _ = lines[0].split(" ", 2)
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    start = end + len(_END)
    if headers.get("transfer-encoding") == "chunked":
        found = _chunked(buffer, start)
        if found is None:
            return None
        body, used = found
    else:
        used = start + int(headers.get("content-length", "0"))
        if len(buffer) < used:
            return None
        body = bytes(buffer[start:used])
    del buffer[:used]
    digest = hashlib.sha256(body).hexdigest() if body else ""
    return Seen(method, path, headers, len(body), digest)


def _chunked(buffer: bytearray, position: int) -> tuple[bytes, int] | None:
    parts: list[bytes] = []
    while True:
        line = buffer.find(b"\r\n", position)
        if line < 0:
            return None
        length = int(bytes(buffer[position:line]), 16)
        position = line + 2 + length + 2
        if len(buffer) < position:
            return None
        if length == 0:
            return b"".join(parts), position
        parts.append(bytes(buffer[line + 2 : line + 2 + length]))
