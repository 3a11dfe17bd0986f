"""The sidecar's answers against the oracle's, for generated worlds and requests.

A seed makes the same worlds again: `TURNOUT_SEED=7 pytest tests/differential`. What was once wrong
is in test_found.py by name.
"""

from __future__ import annotations

import os
from collections import Counter
from random import Random
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.differential.generate import make_world
from tests.differential.oracle import FAILURES, World, answer
from tests.differential.subject import meaning_of, plan_of, process_in
from tests.differential.traffic import make_request
from turnout.envoy.ext_proc_pb2 import ProcessingRequest

SEED: Final = int(os.environ.get("TURNOUT_SEED", "20"))
BLOCKS: Final = 10
WORLDS: Final = 100  # of each block
REQUESTS: Final = 100  # of each world: 100,000 in all


def differences(world: World, requests: list[ProcessingRequest], met: Counter[str]) -> list[str]:
    """Where processor and oracle disagree; counts the outcomes that were met."""
    plan, found = plan_of(world), []
    for request in requests:
        wanted = answer(world, request)
        got = meaning_of(world, process_in(world, plan, request.SerializeToString()))
        met[wanted.outcome] += 1
        if wanted.headers is not None:
            met.update(wanted.headers.keys())
        if wanted != got:
            found.append(f"oracle {wanted}\nsidecar {got}\n{request}")
    return found


@pytest.mark.parametrize("block", range(BLOCKS))
def test_processor_means_what_the_oracle_says(block: int) -> None:
    """100,000 requests over 1,000 worlds, in ten blocks."""
    print(f"TURNOUT_SEED={SEED}")
    met: Counter[str] = Counter()
    for number in range(WORLDS):
        random = Random(f"{SEED}/{block}/{number}")
        world = make_world(random)
        requests = [make_request(random, world) for _ in range(REQUESTS)]
        found = differences(world, requests, met)
        assert not found, f"world {SEED}/{block}/{number}, {len(found)} differ:\n{found[0]}"
    # The generators reach everything; else agreement would say little.
    wanted = {*FAILURES, "STAMPED", "NO_TARGET", "NO_EXPERIMENT", "PEER"}
    wanted |= {"x-turnout-shadow", "x-turnout-set-cookie", "x-hop-turnout", "x-variant"}
    assert wanted <= met.keys(), wanted - met.keys()
    assert met["STAMPED"] > WORLDS * REQUESTS / 10


@given(st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_processor_means_what_the_oracle_says_when_hypothesis_chooses(random: Random) -> None:
    """Hypothesis shrinks through the Random that it hands to the generators."""
    world = make_world(random)
    requests = [make_request(random, world) for _ in range(3)]
    found = differences(world, requests, Counter())
    assert not found, found[0]
