"""A fast HTTP/1.1 client that keeps order and counts: raw asyncio, keep-alive.

Every request has an answer: a connection that breaks gives status 0, so that "no failed request"
can be asserted. A connection that Envoy closed while it was idle is opened again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tests.integration.waiting import LOOPBACK

CONNECTIONS: Final = 8
REQUEST_DEADLINE_S: Final = 30.0
BROKEN: Final = 0
SLOW_S: Final = 0.01
_END: Final = b"\r\n\r\n"


class Request(NamedTuple):
    """What is sent. Header values may be bytes, for what is not text; a list sends several."""

    path: str = "/v2/models/fraud/infer"
    headers: Mapping[str, str | bytes | Sequence[str | bytes]] = {}
    body: bytes = b""
    method: str = ""  # POST with a body, else GET
    host: str = "fraud.test"

    def encode(self) -> bytes:
        """The request's bytes."""
        method = self.method or ("POST" if self.body else "GET")
        lines = [f"{method} {self.path} HTTP/1.1".encode(), b"host: " + self.host.encode()]
        for name, given in self.headers.items():
            for value in [given] if isinstance(given, str | bytes) else given:
                raw = value if isinstance(value, bytes) else value.encode()
                lines.append(name.encode() + b": " + raw)
        if self.body or method == "POST":
            lines.append(b"content-length: %d" % len(self.body))
        return b"\r\n".join(lines) + _END + self.body


class Response(NamedTuple):
    """What came back; status 0 = the connection broke."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def failed(self) -> bool:
        """Broken, or a server's error."""
        return self.status == BROKEN or self.status >= 500

    @property
    def variant(self) -> str:
        """The variant that was applied; "" = unstamped."""
        return self.headers.get("x-variant", "")

    @property
    def pod(self) -> str:
        """The pod that answered."""
        return self.headers.get("x-pod", "")


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._buffer = bytearray()
        self._answer: asyncio.Future[Response] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        response = _parse(self._buffer)
        if response is not None and self._answer is not None and not self._answer.done():
            self._answer.set_result(response)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Response(BROKEN, {}, repr(error).encode()))

    async def exchange(self, request: bytes) -> Response:
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        assert self._transport is not None
        self._transport.write(request)
        return await asyncio.wait_for(self._answer, REQUEST_DEADLINE_S)

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _parse(buffer: bytearray) -> Response | None:
    end = buffer.find(_END)
    if end < 0:
        return None
    lines = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    start = end + len(_END)
    if headers.get("transfer-encoding") == "chunked":
        body = _chunks(bytes(buffer[start:]))
        if body is None:
            return None
        buffer.clear()
        return Response(int(lines[0][9:12]), headers, body)
    length = int(headers.get("content-length", "0"))
    if len(buffer) < start + length:
        return None
    body = bytes(buffer[start : start + length])
    del buffer[: start + length]
    return Response(int(lines[0][9:12]), headers, body)


def _chunks(data: bytes) -> bytes | None:
    body = b""
    while True:
        size, found, rest = data.partition(b"\r\n")
        if not found:
            return None
        length = int(size, 16)
        if len(rest) < length + 2:
            return None
        if length == 0:
            return body
        body += rest[:length]
        data = rest[length + 2 :]


class Client:
    """Connections to one port, kept between calls."""

    def __init__(self, port: int, *, connections: int = CONNECTIONS) -> None:
        self._port = port
        self._size = connections
        self._connections: list[_Connection | None] = [None] * connections

    async def send(self, requests: Iterable[Request]) -> list[Response]:
        """Send all, over all connections at once; answers in the order of the requests."""
        pending = [request.encode() for request in requests]
        answers: list[Response | None] = [None] * len(pending)
        queue = iter(range(len(pending)))

        async def work(slot: int) -> None:
            for index in queue:
                answers[index] = await self.exchange(pending[index], slot)

        await asyncio.gather(*(work(slot) for slot in range(min(self._size, len(pending)))))
        return [answer for answer in answers if answer is not None]

    async def exchange(self, request: bytes, slot: int = 0) -> Response:
        """Send one request's bytes on one of the connections."""
        connection = self._connections[slot]
        try:
            if connection is None or not connection.usable:
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(_Connection, LOOPBACK, self._port)
                self._connections[slot] = connection
            return await connection.exchange(request)
        except OSError as error:
            return Response(BROKEN, {}, repr(error).encode())

    def close(self) -> None:
        """Drop all connections."""
        for connection in self._connections:
            if connection is not None:
                connection.close()


@dataclass(slots=True)
class Tally:
    """What a stream of requests saw."""

    sent: int = 0
    failed: int = 0
    unstamped: int = 0
    by_variant: Counter[str] = field(default_factory=Counter)
    by_pod: Counter[str] = field(default_factory=Counter)
    failures: list[Response] = field(default_factory=list)

    def add(self, response: Response) -> None:
        """Count one answer."""
        self.sent += 1
        self.by_pod[response.pod] += 1
        if response.variant:
            self.by_variant[response.variant] += 1
        else:
            self.unstamped += 1
        if response.failed:
            self.failed += 1
            if len(self.failures) < 20:
                self.failures.append(response)


class Slow(NamedTuple):
    """A request that took long.

    Attributes:
        sent_s: When it was sent, monotonic.
        took_s: How long it took.
        stamped: Whether a worker has answered in time.
    """

    sent_s: float
    took_s: float
    stamped: bool


class Load:
    """Requests without end in the background, until stopped."""

    def __init__(
        self,
        port: int,
        request: Callable[[int], Request],
        *,
        connections: int = 4,
        pause_s: float = 0.004,
    ) -> None:
        """Begin on `start`; request(i) is the i-th; pause_s between two on a connection."""
        self._client = Client(port, connections=connections)
        self._request = request
        self._connections = connections
        self._pause_s = pause_s
        self._next = 0
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self.tally = Tally()
        # Those that took long.
        self.slow: list[Slow] = []

    def start(self) -> None:
        """Begin to send."""
        self._tasks = [asyncio.create_task(self._run(slot)) for slot in range(self._connections)]

    async def stop(self) -> Tally:
        """Let the requests in flight end, and return what was counted."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        self._client.close()
        return self.tally

    async def abort(self) -> None:
        """End at once."""
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._client.close()

    async def _run(self, slot: int) -> None:
        while not self._stopping:
            index, self._next = self._next, self._next + 1
            sent_s = time.monotonic()
            response = await self._client.exchange(self._request(index).encode(), slot)
            self.tally.add(response)
            if (took_s := time.monotonic() - sent_s) >= SLOW_S:
                self.slow.append(Slow(sent_s, took_s, stamped=bool(response.variant)))
            await asyncio.sleep(self._pause_s)
