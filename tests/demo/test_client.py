"""The demo's client counts what a client sees: whole answers, and every failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from envoy.demo.client import Connection

Serve = Callable[[bytes], None]


class Server:
    """Answers every request with the next of its canned answers; None closes the connection."""

    def __init__(self) -> None:
        self.answers: list[bytes | None] = []
        self.connections = 0
        self.address = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                answer = self.answers.pop(0)
                if answer is None:
                    break
                writer.write(answer)
        except asyncio.IncompleteReadError:
            pass  # the client went away
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    listening = await asyncio.start_server(made.handle, "127.0.0.1", 0)
    made.address = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    yield made
    listening.close()


async def test_client_keeps_its_connection_and_reads_both_kinds_of_bodies(server: Server) -> None:
    server.answers = [
        b"HTTP/1.1 200 OK\r\nX-Variant: v2\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n",
        b"HTTP/1.1 204 None\r\n\r\n",
    ]
    connection = Connection(server.address)
    first = await connection.request("POST", "/", body=b"x")
    assert (first.status, first.headers["x-variant"], first.body) == (200, "v2", b"ok")
    second = await connection.request("GET", "/")
    assert (second.status, second.body) == (503, b"abcd")
    assert (await connection.request("GET", "/")).status == 204
    assert server.connections == 1
    connection.close()


async def test_client_fails_and_connects_anew_when_the_server_hangs_up(server: Server) -> None:
    server.answers = [None, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]
    connection = Connection(server.address)
    with pytest.raises(ConnectionResetError):
        await connection.request("GET", "/")
    assert (await connection.request("GET", "/")).status == 200
    assert server.connections == 2
    connection.close()


async def test_client_gives_up_when_no_answer_comes(server: Server) -> None:
    server.answers = [b""]
    connection = Connection(server.address)
    with pytest.raises(TimeoutError):
        await connection.request("GET", "/", timeout_s=0.1)
    connection.close()


async def test_client_fails_when_nobody_listens() -> None:
    with pytest.raises(OSError, match="No such file"):
        await Connection("unix:/tmp/nobody-listens-here").request("GET", "/")
