"""No attack costs the server, or anybody else, more than a little: see floods for the attacks.

Bounds in time, CPU and memory are three times the goal: the machine is shared. `python -m
tests.conformance.attacks --report` measures against the goal itself.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Final

import pytest

from sidecar.wire.limits import CONNECTIONS_MAX
from tests.conformance.attacks import Attackers, complaints, measure, quiet_share
from tests.conformance.floods import ATTACKS, Attack, End
from tests.conformance.servers import Server
from tests.conformance.steady import SteadyClient

MARGIN: Final = 3.0
SOON_S: Final = 10.0
# After so long an attack that is still let in gives up, most of them in vain.
ATTACK_S: Final = 1.5
FAST: Final = [one for one in ATTACKS if one.end is not End.DEADLINE]
SLOW: Final = [one for one in ATTACKS if one.end is End.DEADLINE]


@pytest.fixture(scope="module")
def attackers() -> Iterator[Attackers]:
    with Attackers() as process:
        yield process


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("wire") as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[SteadyClient]:
    with SteadyClient(server.address, pid=server.pid) as steady:
        yield steady
    assert steady.error is None


@pytest.fixture(scope="module")
def share(server: Server, client: SteadyClient) -> float:
    return quiet_share(server, client)


def name_of(one: Attack) -> str:
    return f"{one.number}-{one.name}"


@pytest.mark.parametrize("one", FAST, ids=name_of)
def test_attack_is_ended_and_cheap_when_others_are_served(
    one: Attack, server: Server, client: SteadyClient, attackers: Attackers, share: float
) -> None:
    (cost,) = measure(server, client, attackers, [one], share=share, seconds=ATTACK_S)
    assert not complaints(one, cost, margin=MARGIN), cost
    assert server.alive, server.output()


def test_connections_are_closed_when_there_are_too_many(
    server: Server, client: SteadyClient
) -> None:
    """Those beyond the limit at once; when they are gone, others may come."""
    asked = len(client.waits)
    crowd = [server.address.connect() for _ in range(CONNECTIONS_MAX + 20)]
    try:
        closed = [one for one in crowd if is_closed(one)]
        assert len(closed) >= 20
        assert len(crowd) - len(closed) >= CONNECTIONS_MAX - 2, "the steady client's, and one more"
    finally:
        for one in crowd:
            one.close()
    with SteadyClient(server.address) as another:
        deadline = time.monotonic() + SOON_S
        while len(another.waits) < 5 or len(client.waits) < asked + 5:
            assert time.monotonic() < deadline, (another.error, client.error)
            time.sleep(0.01)


def is_closed(peer: socket.socket) -> bool:
    """Whether the server closes it; an open one says SETTINGS at once."""
    try:
        return not peer.recv(1)
    except ConnectionError:
        return True


def test_slow_connections_are_closed_at_their_deadline_when_all_come_at_once(
    server: Server, client: SteadyClient, attackers: Attackers, share: float
) -> None:
    seconds = max(one.deadline_s for one in SLOW) + 2 * MARGIN
    costs = measure(server, client, attackers, SLOW, share=share, seconds=seconds)
    found = {
        name_of(one): complaints(one, cost, margin=MARGIN)
        for one, cost in zip(SLOW, costs, strict=True)
    }
    assert not any(found.values()), found
    assert server.alive, server.output()
