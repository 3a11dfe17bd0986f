"""The wire server's connection against sessions that no client should send."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from random import Random
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.judge import PREFACE, Judge
from tests.fuzz.seeds import corpus, files
from tests.fuzz.sessions import Session, mutated, session
from tests.fuzz.wiretarget import check_cuts, run, run_frames

SEED: Final = int(os.environ.get("TURNOUT_SEED", "20"))
SESSIONS: Final = 6_000
CUTS: Final = 2_500
SOAK_BLOCKS: Final = 8
SOAK_FRAMES: Final = 1_000_000  # of each block
# Allocators keep some; a byte kept for each frame would be 1 MB a block.
GROWTH_BYTES_MAX: Final = 8 * 1024 * 1024


@pytest.mark.parametrize("path", files("wire"), ids=lambda path: path.stem)
@pytest.mark.parametrize("strict", [False, True])
def test_connection_keeps_its_rules_when_given_the_corpus(path: Path, strict: bool) -> None:
    check_cuts(path.read_bytes(), strict=strict)


def test_corpus_is_there() -> None:
    """`python -m tests.fuzz.seeds` writes what is missing."""
    for kind, named in corpus().items():
        assert {*named} <= {path.stem for path in files(kind)}, kind


def test_connection_keeps_its_rules_when_sessions_are_mutated() -> None:
    print(f"TURNOUT_SEED={SEED}")
    answered = closed = 0
    for number in range(SESSIONS):
        random = Random(f"{SEED}/{number}")
        peer = run(session(random), random=random, strict=number % 4 == 0)
        answered += peer.requests > 0
        closed += peer.connection.closed
    # Not all are refused at once, and not all are harmless.
    assert answered > SESSIONS / 3
    assert closed > SESSIONS / 10


def test_connections_keep_their_rules_when_a_fresh_one_takes_what_is_left() -> None:
    """As the long form has it: the frames behind a fatal one are not wasted."""
    print(f"TURNOUT_SEED={SEED}")
    taken = 0
    for number in range(400):
        random = Random(f"{SEED}/frames/{number}")
        made = Session(random)
        for _ in range(60):
            made.add()
        taken += run_frames(mutated(random, made.frames), random, strict=number % 4 == 0)
    assert taken > 400 * 60


def test_answers_do_not_depend_on_how_bytes_are_cut() -> None:
    """Whole sessions take the fast path, single bytes the general one."""
    print(f"TURNOUT_SEED={SEED}")
    for number in range(CUTS):
        check_cuts(session(Random(f"{SEED}/cut/{number}")), strict=number % 4 == 0)


@given(st.randoms(use_true_random=False), st.binary(max_size=60), st.booleans())
@settings(max_examples=150, deadline=None)
def test_connection_keeps_its_rules_when_hypothesis_chooses(
    random: Random, tail: bytes, strict: bool
) -> None:
    check_cuts(session(random, length=5) + tail, strict=strict)


@given(st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_connection_keeps_its_rules_when_bytes_are_anything(data: bytes) -> None:
    check_cuts(data)
    check_cuts(PREFACE + data)


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (b"\0\0\0\4\0\0\0\0\0" * 2, "SETTINGS first"),
        (b"\0\0\0\4\0\0\0\0\0" + b"\0\0\1\0\0\0\0\0\1a", "DATA before HEADERS"),
        (b"\0\0\0\4\0\0\0\0\0" + b"\0\0\2\1\5\0\0\0\1\x88\x88" * 2, "Trailers-Only"),
        (b"\0\0\0\4\0\0\0\0\0" + b"\0\0\4\3\0\0\0\0\1\0\0\0\1" * 2, "two resets"),
        (b"\0\0\0\4\0\0\0\0", "half a frame header"),
        (b"\0\0\1\4\0\0\0\0\0", "half a frame"),
    ],
)
def test_judge_sees_what_is_broken(broken: bytes, why: str) -> None:
    """A judge that never objects would prove nothing."""
    with pytest.raises(AssertionError, match=why):
        Judge().read(broken)


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.soak
@pytest.mark.parametrize("block", range(SOAK_BLOCKS))
def test_connection_keeps_its_rules_for_8_million_mutated_frames(block: int) -> None:
    """A million in each block; the first tenth warms the allocators up."""
    print(f"TURNOUT_SEED={SEED}")
    frames = number = before = 0
    while frames < SOAK_FRAMES:
        random = Random(f"{SEED}/soak/{block}/{number}")
        made = Session(random)
        for _ in range(60):
            made.add()
        frames += run_frames(mutated(random, made.frames), random, strict=number % 4 == 0)
        number += 1
        if not before and frames > SOAK_FRAMES / 10:
            before = _resident()
    assert _resident() - before < GROWTH_BYTES_MAX


def test_mutations_change_something() -> None:
    random = Random(1)
    frames = [b"\0\0\0\4\0\0\0\0\0", b"\0\0\1\0\0\0\0\0\1a"]
    assert sum(mutated(random, frames) != frames for _ in range(100)) > 50
