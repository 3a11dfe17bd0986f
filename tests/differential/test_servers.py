"""Both servers against the oracle: the same worlds and requests through real HTTP/2 bytes."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from sidecar.grpcserver import GrpcServer
from sidecar.listen import Listen
from sidecar.outcome import Answer
from sidecar.plan import Plan
from sidecar.processor import MalformedRequest
from sidecar.protocol import PeerError, Server, WireServer
from tests.differential.generate import make_world
from tests.differential.h2client import Client, Reply
from tests.differential.oracle import Meaning, World, answer
from tests.differential.subject import headers_of, meaning_of, plan_of, process_in
from tests.differential.test_differential import SEED
from tests.differential.traffic import make_request
from tests.fuzz.messages import mutated

INVALID_ARGUMENT = 3
REQUESTS = 100  # of each world, all at once on one connection


class InWorld:
    """A handler whose plan, clock and chance are a world's."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.plan: Plan | None = None
        self.answers: list[Answer] = []

    def enter(self, world: World) -> None:
        self.world, self.plan = world, plan_of(world)

    def process(self, request: bytes) -> bytes | None:
        assert self.world is not None
        assert self.plan is not None
        try:
            found = process_in(self.world, self.plan, request)
        except MalformedRequest as error:
            raise PeerError(str(error)) from error
        self.answers.append(found)
        return found.response

    async def access_log(self, message: bytes, log_name: str) -> str:
        raise AssertionError("nobody logs")

    def healthy(self) -> bool:
        return True


@asynccontextmanager
async def served(handler: InWorld) -> AsyncIterator[list[Path]]:
    """The hand-framed server and grpc.aio, each on a Unix socket."""
    directory = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    try:
        paths = [directory / "wire", directory / "grpcio"]
        servers: list[Server] = [
            WireServer(Listen(paths[0]), handler),
            GrpcServer(Listen(paths[1]), handler),
        ]
        for server in servers:
            await server.start()
        try:
            yield paths
        finally:
            for server in servers:
                await server.drain(0.0)
    finally:
        shutil.rmtree(directory)


def check(wanted: Meaning, reply: Reply, what: object) -> None:
    """A reply says what the oracle says."""
    assert reply.status == 0, what
    assert len(reply.messages) == (wanted.headers is not None), what
    got = headers_of(reply.messages[0]) if reply.messages else None
    assert got == wanted.headers, f"oracle {wanted.headers}\nserver {got}\n{what}"


async def compare(worlds: int, *, label: str) -> Counter[str]:
    """Some worlds through both servers; a few requests are not even requests."""
    handler, met = InWorld(), Counter[str]()
    async with served(handler) as paths:
        for number in range(worlds):
            random = Random(f"{SEED}/{label}/{number}")
            world = make_world(random)
            handler.enter(world)
            requests = [make_request(random, world) for _ in range(REQUESTS)]
            wanted = [answer(world, request) for request in requests]
            met.update(meaning.outcome for meaning in wanted)
            encoded = [request.SerializeToString() for request in requests]
            broken = [b"\xff" + mutated(random, data) for data in encoded[:2]]
            async with AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(Client(path)) for path in paths]
                for client, path in zip(clients, paths, strict=True):
                    handler.answers.clear()
                    replies = await client.ask(encoded + broken, end=number % 2 == 0)
                    for meaning, reply, request in zip(wanted, replies, requests, strict=False):
                        check(meaning, reply, (path.name, f"world {label}/{number}", request))
                    assert {reply.status for reply in replies[REQUESTS:]} == {INVALID_ARGUMENT}
                    assert all(not reply.messages for reply in replies[REQUESTS:])
                    # Both may take calls in another order, but no call twice.
                    counted = Counter(meaning_of(world, found).outcome for found in handler.answers)
                    assert counted == Counter(meaning.outcome for meaning in wanted)
    return met


async def test_servers_mean_what_the_oracle_says() -> None:
    """10,000 requests over 100 worlds through each server."""
    print(f"TURNOUT_SEED={SEED}")
    met = await compare(100, label="servers")
    assert met["STAMPED"] > 1_000
    assert len(met) >= 9, met


@pytest.mark.soak
@pytest.mark.parametrize("block", range(10))
async def test_servers_mean_what_the_oracle_says_for_100_000_requests(block: int) -> None:
    print(f"TURNOUT_SEED={SEED}")
    await compare(100, label=f"soak/{block}")
