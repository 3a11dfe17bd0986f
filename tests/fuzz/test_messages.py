"""Requests, access logs, tokens and marks that nobody should send."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.tokens import HopMarks, TokenVerifier
from tests.differential.values import hop_mark
from tests.fuzz.messages import (
    KEY,
    NOW_S,
    Asked,
    check_log,
    check_mark,
    check_token,
    log_message,
    mutated,
)
from tests.fuzz.seeds import files
from tests.vectors.make_tokens import bad_tokens, force_token

SEED: Final = int(os.environ.get("TURNOUT_SEED", "20"))
REQUESTS: Final = 20_000
LOGS: Final = 20_000
TOKENS: Final = 5_000
SOAK_BLOCKS: Final = 4
SOAK_REQUESTS: Final = 200_000  # of each block, as the others
SOAK_LOGS: Final = 225_000
SOAK_TOKENS: Final = 75_000


def ask_mutated(count: int, label: str) -> tuple[int, int]:
    """Requests and how many of them were any, in a new world for each 100."""
    random, done, good = Random(f"{SEED}/{label}"), 0, 0
    while done < count:
        asked = Asked(random)
        pool = [asked.request(random) for _ in range(20)]
        for _ in range(100):
            data = random.choice(pool)
            if random.random() < 0.7:
                data = mutated(random, data, random.choice(pool))
            good += asked.ask(data)
        done += 100
    return done, good


def fold_mutated(count: int, label: str) -> int:
    """How many of so many access log messages were any."""
    random, good = Random(f"{SEED}/{label}"), 0
    for _ in range(count):
        data = log_message(random)
        if random.random() < 0.8:
            data = mutated(random, data, log_message(random))
        good += check_log(data)
    return good


def verify_mutated(count: int, label: str) -> int:
    """How many of so many tokens and marks were believed."""
    random, good = Random(f"{SEED}/{label}"), 0
    tokens = [force_token().encode(), force_token(unit=b"user-1").encode()]
    tokens += [token.encode() for _, token in bad_tokens()]
    marks = [
        hop_mark(b"%x" % (int(NOW_S) + shift), key=KEY, tenant="risk", request_id=b"r")
        for shift in (0, -60, 61)
    ]
    verifier, hops = TokenVerifier(KEY, "risk"), HopMarks(KEY, "risk")
    for number in range(count):
        changed = random.random() < 0.9
        if number % 2:
            token = random.choice(tokens)
            token = mutated(random, token, random.choice(tokens)) if changed else token
            good += check_token(verifier, token, "risk")
        else:
            mark = random.choice(marks)
            mark = mutated(random, mark, random.choice(marks)) if changed else mark
            good += check_mark(hops, mark, random.choice((b"r", b"s")), "risk")
    return good


@pytest.mark.parametrize("path", files("request"), ids=lambda path: path.stem)
def test_processor_means_what_the_oracle_says_when_given_the_corpus(path: Path) -> None:
    random = Random(path.stem)
    for _ in range(5):
        Asked(random).ask(path.read_bytes())


@pytest.mark.parametrize("path", files("log"), ids=lambda path: path.stem)
def test_log_is_folded_alike_both_ways_when_given_the_corpus(path: Path) -> None:
    assert check_log(path.read_bytes())


def test_processor_means_what_the_oracle_says_when_requests_are_mutated() -> None:
    print(f"TURNOUT_SEED={SEED}")
    done, good = ask_mutated(REQUESTS, "requests")
    assert done / 5 < good < done


def test_log_is_folded_alike_both_ways_when_messages_are_mutated() -> None:
    print(f"TURNOUT_SEED={SEED}")
    assert LOGS / 5 < fold_mutated(LOGS, "logs") < LOGS


def test_tokens_and_marks_are_believed_alike_when_mutated() -> None:
    print(f"TURNOUT_SEED={SEED}")
    assert verify_mutated(TOKENS, "tokens") > 10


@given(st.binary(max_size=300), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_messages_hold_when_hypothesis_chooses(data: bytes, random: Random) -> None:
    asked = Asked(random)
    asked.ask(data)
    asked.ask(mutated(random, asked.request(random), data))
    check_log(data)
    check_log(mutated(random, log_message(random), data))
    check_token(TokenVerifier(KEY, "risk"), data, "risk")
    check_mark(HopMarks(KEY, "risk"), data, b"r", "risk")


@pytest.mark.soak
@pytest.mark.parametrize("block", range(SOAK_BLOCKS))
def test_messages_hold_for_2_million_mutations(block: int) -> None:
    print(f"TURNOUT_SEED={SEED}")
    ask_mutated(SOAK_REQUESTS, f"soak/{block}")
    fold_mutated(SOAK_LOGS, f"soak/{block}")
    verify_mutated(SOAK_TOKENS, f"soak/{block}")
