"""Prints one digest of the answers to generated requests: `digest SEED WORLDS REQUESTS`.

Run in processes with different PYTHONHASHSEED, whose digests must be equal.
"""

from __future__ import annotations

import hashlib
import sys
from random import Random

from tests.differential.generate import make_world
from tests.differential.subject import plan_of, process_in
from tests.differential.traffic import make_request


def digest(seed: int, worlds: int, requests: int) -> str:
    """SHA-256 of all answers, in hex."""
    random, sums = Random(seed), hashlib.sha256()
    for _ in range(worlds):
        world = make_world(random)
        plan = plan_of(world)
        for _ in range(requests):
            request = make_request(random, world)
            answer = process_in(world, plan, request.SerializeToString(deterministic=True))
            sums.update(repr(answer).encode())
    return sums.hexdigest()


if __name__ == "__main__":
    print(digest(*map(int, sys.argv[1:])))
