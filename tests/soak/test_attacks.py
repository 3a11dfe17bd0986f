"""The attacks at full length, each on a fresh worker, held nearly to the goal itself.

Half as much again is allowed: a read more or less in memory, and a machine that others use too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from tests.conformance.attacks import SECONDS_MAX, Attackers, complaints, measure, quiet_share
from tests.conformance.floods import ATTACKS, Attack
from tests.conformance.servers import Server
from tests.conformance.steady import SteadyClient

MARGIN: Final = 1.5


@pytest.fixture(scope="module")
def attackers() -> Iterator[Attackers]:
    with Attackers() as process:
        yield process


@pytest.mark.soak
@pytest.mark.parametrize("one", ATTACKS, ids=lambda one: f"{one.number}-{one.name}")
def test_attack_stays_within_the_goal_when_it_lasts(one: Attack, attackers: Attackers) -> None:
    seconds = max(SECONDS_MAX, one.deadline_s + 2 * MARGIN)
    with Server("wire") as server, SteadyClient(server.address, pid=server.pid) as client:
        share = quiet_share(server, client)
        (cost,) = measure(server, client, attackers, [one], share=share, seconds=seconds)
        assert not complaints(one, cost, margin=MARGIN), cost
        assert server.alive, server.output()
    assert client.error is None
