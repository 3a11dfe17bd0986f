"""The shell on the loop: sockets, ends, drains, and that nobody waits for anybody."""

from __future__ import annotations

import asyncio
import contextlib
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from sidecar import protocol
from sidecar.listen import Listen, ServerKind
from sidecar.protocol import PeerError, WireServer, make_server
from sidecar.wire import frames
from sidecar.wire.frames import PREFACE, FrameType, Setting
from sidecar.wire.limits import CONNECTIONS_MAX, PREFACE_S
from tests.integration.extproc import ACCESS_LOGS, WorkerClient
from tests.integration.waiting import wait_for
from tests.sidecar.wire.peer import ACCESS_LOGS as LOGS
from tests.sidecar.wire.peer import Frame, block_of, data, frames_of, headers, message, request
from turnout.envoy.ext_proc_pb2 import ProcessingResponse
from turnout.envoy.health_pb2 import HealthCheckRequest

HELLO = PREFACE + frames.settings({}) + frames.SETTINGS_ACK
ANSWER = ProcessingResponse()
ANSWER.request_headers.response.header_mutation.set_headers.add().header.key = "x"


class Echo:
    """Answers everything, and folds when it is told to."""

    def __init__(self) -> None:
        self.folded: list[bytes] = []
        self.may_fold = asyncio.Event()
        self.may_fold.set()

    def process(self, request: bytes) -> bytes | None:
        if request == b"bad":
            raise PeerError("odd")
        return ANSWER.SerializeToString()

    async def access_log(self, message: bytes, log_name: str) -> str:
        await self.may_fold.wait()
        if message == b"bad":
            raise PeerError("odd")
        self.folded.append(message)
        return "name"

    def healthy(self) -> bool:
        return True


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as directory:
        yield Path(directory) / "w"


@pytest.fixture
async def echo() -> Echo:
    return Echo()


@pytest.fixture
async def server(path: Path, echo: Echo) -> AsyncIterator[WireServer]:
    server = WireServer(Listen(path), echo)
    await server.start()
    yield server
    echo.may_fold.set()
    await server.drain(0)


class Raw:
    """A client of bare bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, path: Path, *parts: bytes) -> Raw:
        raw = cls(*await asyncio.open_unix_connection(str(path)))
        raw.writer.write(b"".join(parts))
        return raw

    async def until(self, kind: FrameType) -> list[Frame]:
        """Frames up to the first of a kind."""
        found: list[Frame] = []
        async with asyncio.timeout(10):
            while not found or found[-1].kind is not kind:
                head = await self.reader.readexactly(9)
                found += frames_of(head + await self.reader.readexactly(int.from_bytes(head[:3])))
        return found

    async def end(self) -> bytes:
        """All that still comes, up to the end."""
        async with asyncio.timeout(10):
            return await self.reader.read(-1)

    def close(self) -> None:
        self.writer.close()


async def test_socket_is_there_with_its_mode_when_started(server: WireServer, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == protocol.SOCKET_MODE
    assert [p.name for p in path.parent.iterdir()] == [path.name]


async def test_calls_of_grpc_are_served(server: WireServer, path: Path, echo: Echo) -> None:
    async with WorkerClient(path) as client:
        assert await client.process(b"hello") == {"x": ""}
        await client.log(b"first", b"second")
        assert echo.folded == [b"first", b"second"]
        assert await client.serving()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.process(b"bad")
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.log(b"bad")
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_page_is_served_on_tcp(echo: Echo) -> None:
    server = make_server(ServerKind.WIRE, Listen.parse("tcp:127.0.0.1:0"), echo)
    assert isinstance(server, WireServer)
    await server.start()
    try:
        assert server.listen.port > 0
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.listen.port}")
        async with channel:
            check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
            assert await check(HealthCheckRequest().SerializeToString()) == b"\x08\x01"
    finally:
        await server.drain(0)


async def test_connection_is_ended_cleanly_when_the_peer_breaks_the_rules(
    server: WireServer, path: Path
) -> None:
    """GOAWAY, end of stream, and no reset though much more was sent than was read."""
    raw = await Raw.connect(path, HELLO, frames.frame(0, 0, 0, b"x"), b"y" * 200_000)
    await raw.until(FrameType.GOAWAY)
    assert await raw.end() == b""
    raw.close()
    await wait_for(lambda: not server.peers, "the connection is gone")


async def test_connection_is_ended_when_the_peer_says_nothing(
    server: WireServer, path: Path
) -> None:
    raw = await Raw.connect(path)
    for peer in await wait_for(lambda: list(server.peers), "the connection is there"):
        peer.connection.tick(asyncio.get_running_loop().time() + PREFACE_S + 1)
        peer.flush()
    await raw.until(FrameType.GOAWAY)
    assert await raw.end() == b""
    raw.close()


async def test_deadlines_are_looked_at_by_themselves(
    path: Path, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.wire.connection.PREFACE_S", 0.1)
    server = WireServer(Listen(path), echo)
    await server.start()
    raw = await Raw.connect(path, PREFACE)
    await raw.until(FrameType.GOAWAY)
    raw.close()
    await server.drain(0)


async def test_connection_too_many_is_closed_at_once(server: WireServer, path: Path) -> None:
    raws = [await Raw.connect(path, HELLO) for _ in range(CONNECTIONS_MAX)]
    for raw in raws:
        await raw.until(FrameType.SETTINGS)
    extra = await Raw.connect(path)
    with contextlib.suppress(ConnectionError):
        assert await extra.end() == b""
    for raw in (*raws, extra):
        raw.close()
    await wait_for(lambda: not server.peers, "the connections are gone")
    again = await Raw.connect(path, HELLO)
    await again.until(FrameType.SETTINGS)
    again.close()


async def test_nothing_is_read_from_a_peer_that_does_not_read(
    server: WireServer, path: Path, echo: Echo
) -> None:
    """And its memory is bounded; once it reads, it gets every answer."""
    many = 40_000
    wide = frames.settings({Setting.INITIAL_WINDOW_SIZE: 2**24}) + frames.window_update(0, 2**30)
    calls = b"".join(
        request(i, b"x", shrink=False) + frames.rst_stream(i, 2) for i in range(5, 2 * many, 2)
    )
    raw = await Raw.connect(path, HELLO, wide, request(1, b"x"), request(3, b"x"))
    raw.writer.write(calls)
    (peer,) = await wait_for(lambda: list(server.peers), "the connection is there")
    transport = peer._transport
    assert transport is not None
    await wait_for(lambda: not transport.is_reading(), "reading is paused")
    assert transport.get_write_buffer_size() < 4 * protocol.UNREAD_BYTES_MAX
    got = 0
    async with asyncio.timeout(30):
        while got < many:
            head = await raw.reader.readexactly(9)
            await raw.reader.readexactly(int.from_bytes(head[:3]))
            got += head[3] == FrameType.HEADERS and head[4] & 1
    raw.close()


async def test_request_is_answered_while_a_log_is_folded(
    server: WireServer, path: Path, echo: Echo
) -> None:
    echo.may_fold.clear()
    async with WorkerClient(path) as client:
        logging = asyncio.create_task(client.log(b"slow"))
        await wait_for(lambda: server._tasks, "a message is being folded")
        assert await client.process(b"hello") == {"x": ""}
        echo.may_fold.set()
        await logging


class Slow(Echo):
    """Folds in several steps, and counts how many are at it."""

    def __init__(self) -> None:
        super().__init__()
        self.at_once = self.at_once_most = 0

    async def access_log(self, message: bytes, log_name: str) -> str:
        self.at_once += 1
        self.at_once_most = max(self.at_once_most, self.at_once)
        for _ in range(5):
            await asyncio.sleep(0)
        log_name = await super().access_log(message, log_name)
        self.at_once -= 1
        return log_name


async def test_connections_take_turns_when_one_has_many_logs(path: Path) -> None:
    """A hundred streams of one connection count as one, and one message is folded at a time."""
    slow = Slow()
    slow.may_fold.clear()
    server = WireServer(Listen(path), slow)
    await server.start()
    streams = range(1, 201, 2)
    opened = [headers(s, block_of(LOGS, shrink=s == 1)) for s in streams]
    many = await Raw.connect(path, HELLO, *opened, *[data(s, message(b"many")) for s in streams])
    await many.until(FrameType.SETTINGS)
    await wait_for(lambda: slow.at_once == 1, "a message is being folded")
    one = await Raw.connect(path, HELLO, opened[0], data(1, message(b"one")))
    await one.until(FrameType.SETTINGS)
    await wait_for(lambda: len(server._tasks) == 2, "both have something to fold")
    slow.may_fold.set()
    await wait_for(lambda: len(slow.folded) == 101, "all is folded")
    assert slow.folded.index(b"one") <= 2
    assert slow.at_once_most == 1
    for raw in (many, one):
        raw.close()
    await server.drain(0)


async def test_log_is_folded_though_its_connection_is_gone(
    server: WireServer, path: Path, echo: Echo
) -> None:
    echo.may_fold.clear()
    raw = await Raw.connect(path, HELLO, headers(1, block_of(LOGS)))
    raw.writer.write(frames.frame(0, 0, 1, b"\0\0\0\0\1a\0\0\0\0\1b"))
    await wait_for(lambda: server._tasks, "a message is being folded")
    raw.close()
    await wait_for(lambda: not server.peers, "the connection is gone")
    echo.may_fold.set()
    await wait_for(lambda: echo.folded == [b"a", b"b"], "all is folded")


async def test_successor_takes_over_without_a_request_lost(path: Path, echo: Echo) -> None:
    """Bind aside, rename, GOAWAY in two steps."""
    first, second = WireServer(Listen(path), echo), WireServer(Listen(path), echo)
    await first.start()
    raw = await Raw.connect(path, HELLO, request(1, b"x"))
    await raw.until(FrameType.DATA)
    await second.start()
    draining = asyncio.create_task(first.drain(5.0))
    await raw.until(FrameType.GOAWAY)
    raw.writer.write(request(3, b"x"))
    assert 3 in {frame.stream_id for frame in await raw.until(FrameType.DATA)}
    await raw.until(FrameType.GOAWAY)
    assert await raw.end() == b""
    raw.close()
    await draining
    async with WorkerClient(path) as client:
        assert await client.process(b"hello") == {"x": ""}
    await second.drain(0)


async def test_drain_ends_logs_that_have_no_end(server: WireServer, path: Path, echo: Echo) -> None:
    channel = grpc.aio.insecure_channel(f"unix:{path}")
    async with channel:
        call: Any = channel.stream_unary(ACCESS_LOGS)()
        await call.write(b"entry")
        await wait_for(lambda: echo.folded == [b"entry"], "it is folded")
        await server.drain(0.5)
        assert await call == b""
        assert await call.code() is grpc.StatusCode.OK
    assert not server.peers


async def test_reference_server_serves_the_same(path: Path, echo: Echo) -> None:
    server = make_server(ServerKind.GRPCIO, Listen(path), echo)
    await server.start()
    async with WorkerClient(path) as client:
        assert await client.process(b"hello") == {"x": ""}
        await client.log(b"entry")
        assert await client.serving()
    await server.drain(0)
