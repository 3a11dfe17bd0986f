"""A connection that is over frees its memory at once: the collector seldom runs here."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sidecar.listen import Listen
from sidecar.protocol import WireServer
from sidecar.wire import frames
from sidecar.wire.connection import Connection
from sidecar.wire.frames import PREFACE
from tests.integration.waiting import wait_for
from tests.sidecar.wire.peer import ACCESS_LOGS, block_of, data, headers, message, request

HELLO = PREFACE + frames.settings({}) + frames.SETTINGS_ACK
GARBAGE = b"no HTTP/2 at all" * 10


class Slow:
    """Answers everything, and folds when it is told to."""

    def __init__(self) -> None:
        self.folded = 0
        self.may_fold = asyncio.Event()

    def process(self, request: bytes) -> bytes | None:
        return b""

    async def access_log(self, message: bytes, log_name: str) -> str:
        await self.may_fold.wait()
        self.folded += 1
        return log_name

    def healthy(self) -> bool:
        return True


@pytest.fixture
async def slow() -> Slow:
    return Slow()


@pytest.fixture
async def server(slow: Slow) -> AsyncIterator[WireServer]:
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as directory:
        server = WireServer(Listen(Path(directory) / "w"), slow)
        await server.start()
        yield server
        slow.may_fold.set()
        await server.drain(0)


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def connection_after(
    server: WireServer, sent: bytes
) -> tuple[weakref.ref[Connection], asyncio.StreamWriter]:
    """The server's side of a connection that sent something."""
    _, writer = await asyncio.open_unix_connection(str(server.listen.path))
    writer.write(sent)
    await wait_for(lambda: server.peers, "it is accepted")
    return weakref.ref(next(iter(server.peers)).connection), writer


@pytest.mark.parametrize(
    "sent",
    [
        HELLO,
        HELLO + request(1, b"x"),
        HELLO + headers(1, block_of()),
        HELLO + headers(1, block_of(ACCESS_LOGS)) + data(1, message(b"x" * 1_000)[:500]),
        GARBAGE,
    ],
)
async def test_connection_is_freed_when_its_peer_is_gone(server: WireServer, sent: bytes) -> None:
    connection, writer = await connection_after(server, sent)
    writer.close()
    await wait_for(lambda: not server.peers and connection() is None, "it is freed")


async def test_connection_is_freed_when_its_last_log_is_folded(
    server: WireServer, slow: Slow
) -> None:
    logs = headers(1, block_of(ACCESS_LOGS)) + data(1, message(b"one") + message(b"two"))
    connection, writer = await connection_after(server, HELLO + logs)
    await wait_for(lambda: (one := connection()) and one.folding, "a log is being folded")
    writer.close()
    await wait_for(lambda: not server.peers, "the peer is gone")
    assert connection() is not None
    slow.may_fold.set()
    await wait_for(lambda: connection() is None, "it is freed")
    assert slow.folded == 2
