"""The safety lanes: blocks, restarts, sampling, and that merging is a union."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.rollout import lanes
from control.rollout.lanes import BlockTracker, CorruptTracker, LaneFacts
from control.rollout.run import PastEpoch
from control.rollout.seen import LaneState
from control.rollout.words import Kind
from tests.control import rollout_worlds as worlds
from turnout.contract import (
    FIRST_BAD_BLOCK_EVERY,
    FIRST_BAD_BLOCK_SLOTS,
    FIRST_BAD_SLOT_S,
    FIRST_BAD_UNITS_MAX,
)

FACTS = LaneFacts(
    epoch=1,
    epoch_start_ms=0,
    control="control",
    thetas={"v2": 0.05},
    kinds=(Kind.ERROR,),
    alpha_lane=0.001,
    blocks_before=0,
    blocks=1_000_000,
)
SLOT_MS = FIRST_BAD_SLOT_S * 1000

Event = tuple[Kind, int, str, int]  # kind, slot, variant, unit
events = st.lists(
    st.tuples(
        st.sampled_from(Kind),
        st.integers(0, 200),
        st.sampled_from(["control", "v2"]),
        st.integers(0, 40),
    ),
    max_size=120,
)


def tracked(given_events: list[Event]) -> BlockTracker:
    tracker = BlockTracker()
    for kind, slot, variant, unit in given_events:
        tracker.add(kind, slot, variant, (unit,))
    return tracker


def state_at(tracker: BlockTracker, slot: int, facts: LaneFacts = FACTS) -> LaneState:
    (state,) = tracker.assess(facts, now_ms=slot * SLOT_MS)
    return state


def log_e_by_definition(given_events: list[Event], block: int, theta: float) -> float:
    """One block's e-value straight from the description: no masks, no increments, no caches."""
    begin = block * FIRST_BAD_BLOCK_EVERY
    first: dict[tuple[str, int], int] = {}
    for kind, slot, variant, unit in given_events:
        if kind is Kind.ERROR and begin <= slot < begin + FIRST_BAD_BLOCK_SLOTS:
            key = (variant, unit)
            first[key] = min(first.get(key, slot), slot)
    total = 0.0
    for restart, weight in enumerate(lanes.RESTARTS):
        counted = [key for key, slot in first.items() if slot >= begin + restart]
        n_t = sum(variant == "v2" for variant, _ in counted)
        for d in lanes.GRID:
            tilt = math.exp(d * n_t) / (1 + theta * (math.exp(d) - 1)) ** len(counted)
            total += weight * tilt / len(lanes.GRID)
    return math.log(total)


def state_by_definition(given_events: list[Event], now_slot: int) -> object:
    """The block furthest beyond its threshold, else the live one nearest to it."""
    slots = [slot for kind, slot, _, _ in given_events if kind is Kind.ERROR]
    newest = now_slot // FIRST_BAD_BLOCK_EVERY
    oldest = max(0, newest - FIRST_BAD_BLOCK_SLOTS // FIRST_BAD_BLOCK_EVERY + 1)
    busy = sorted({block for slot in slots for block in lanes.blocks_of(slot)})
    log_e = {block: log_e_by_definition(given_events, block, 0.05) for block in busy}
    beyond = {b: log_e[b] - lanes.log_threshold(b + 1, 0.001) for b in busy}
    crossed = [b for b in busy if beyond[b] >= 0]
    choice = crossed or [b for b in busy if oldest <= b <= newest]
    best = max(choice, key=lambda b: beyond[b], default=newest)
    begin = best * FIRST_BAD_BLOCK_EVERY
    units = {
        (variant, unit)
        for kind, slot, variant, unit in given_events
        if kind is Kind.ERROR and begin <= slot < begin + FIRST_BAD_BLOCK_SLOTS
    }
    candidate = sum(variant == "v2" for variant, _ in units)
    return LaneState(
        kind=Kind.ERROR,
        variant="v2",
        block=best + 1,
        log_e_value=pytest.approx(log_e.get(best, 0.0), abs=1e-9),  # type: ignore[arg-type]
        log_threshold=lanes.log_threshold(best + 1, 0.001),
        candidate_events=candidate,
        control_events=len(units) - candidate,
        theta=0.05,
        crossed=bool(crossed),
    )


@settings(max_examples=60, deadline=None)
@given(events, st.randoms(use_true_random=False))
def test_tracker_is_a_union_when_events_repeat_and_change_order(
    given_events: list[Event], random: st.DataObject
) -> None:
    shuffled = given_events * 2
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, two = tracked(given_events), tracked(shuffled)
    assert one.to_bytes() == two.to_bytes()
    assert one.assess(FACTS, now_ms=200 * SLOT_MS) == two.assess(FACTS, now_ms=200 * SLOT_MS)


@settings(max_examples=60, deadline=None)
@given(events, st.integers(0, 200))
def test_state_is_that_of_the_definition_when_computed_by_increments(
    given_events: list[Event], now_slot: int
) -> None:
    tracker = BlockTracker()
    for kind, slot, variant, unit in given_events:
        tracker.add(kind, slot, variant, (unit,))
        state_at(tracker, now_slot)  # what was cached must not survive the next event
    assert state_at(tracker, now_slot) == state_by_definition(given_events, now_slot)


@settings(max_examples=40, deadline=None)
@given(events)
def test_tracker_survives_a_checkpoint_when_written_and_read(given_events: list[Event]) -> None:
    tracker = tracked(given_events)
    again = BlockTracker.from_bytes(tracker.to_bytes())
    assert again.to_bytes() == tracker.to_bytes()
    assert state_at(again, 200) == state_at(tracker, 200)


@pytest.mark.parametrize("damage", ["cut", "extra", "magic"])
def test_tracker_is_refused_when_the_checkpoint_is_damaged(damage: str) -> None:
    data = tracked([(Kind.ERROR, 3, "v2", 9)]).to_bytes()
    data = {"cut": data[:-1], "extra": data + b"x", "magic": b"?" + data[1:]}[damage]
    with pytest.raises(CorruptTracker):
        BlockTracker.from_bytes(data)


def test_unit_counts_once_per_block_when_it_fails_in_every_slot() -> None:
    tracker = BlockTracker()
    for slot in range(60):
        tracker.add(Kind.ERROR, slot, "v2", (1,))
    state = state_at(tracker, 59)
    assert (state.candidate_events, state.control_events) == (1, 0)
    assert not state.crossed


@pytest.mark.parametrize(
    ("slot", "expected"),
    [(0, [0]), (4, [0]), (5, [0, 1]), (59, list(range(12))), (60, list(range(1, 13)))],
)
def test_slot_belongs_to_the_blocks_of_its_hour_when_blocks_begin_every_five_minutes(
    slot: int, expected: list[int]
) -> None:
    assert list(lanes.blocks_of(slot)) == expected


def test_thresholds_spend_no_more_than_alpha_when_added_over_all_blocks() -> None:
    spent = sum(math.exp(-lanes.log_threshold(k, 0.001)) for k in range(1, 100_000))
    assert 0.00099 < spent < 0.001


@pytest.mark.parametrize("theta", [0.01, 0.2, 0.5, 0.99])
def test_tilt_is_an_e_value_when_its_mean_is_taken_over_the_null(theta: float) -> None:
    """Exactly 1 for every number of events: the martingale that Ville's inequality needs."""
    for n in (1, 2, 7, 20):
        mean = sum(
            math.comb(n, k)
            * theta**k
            * (1 - theta) ** (n - k)
            * math.exp(lanes.log_tilt(k, n - k, theta))
            for k in range(n + 1)
        )
        assert mean == pytest.approx(1.0, rel=1e-9)


def test_restart_finds_late_harm_when_the_block_began_with_many_harmless_events() -> None:
    """Why RESTARTS: the harmless minutes before must not outweigh what comes."""
    quiet = [285, 0, 0, 0, 0], [15, 0, 0, 0, 0]
    harmed_control, harmed_candidate = [285, 0, 0, 40, 0], [15, 0, 0, 14, 0]
    assert lanes.log_block(quiet[1], quiet[0], 0.05) < 0.5
    with_restarts = lanes.log_block(harmed_candidate, harmed_control, 0.05)
    from_the_start = lanes.log_tilt(29, 325, 0.05)
    assert with_restarts > from_the_start + 3.0


def test_block_numbers_go_on_when_a_new_epoch_begins() -> None:
    tracker = tracked([(Kind.ERROR, 7, "v2", 1)])
    state = state_at(tracker, 7, replace(FACTS, blocks_before=10))
    assert state.block in (11, 12)
    assert state.log_threshold == lanes.log_threshold(state.block, 0.001)


def test_lane_crosses_when_far_more_than_its_share_comes_from_the_candidate() -> None:
    tracker = BlockTracker()
    tracker.add(Kind.ERROR, 0, "v2", range(10))
    tracker.add(Kind.ERROR, 0, "control", range(100, 110))
    state = state_at(tracker, 0)
    assert state.crossed
    assert state.log_e_value > state.log_threshold
    assert (state.candidate_events, state.control_events, state.theta) == (10, 10, 0.05)


def test_lane_stays_below_when_the_share_is_as_designed() -> None:
    tracker = BlockTracker()
    tracker.add(Kind.ERROR, 0, "v2", range(50))
    tracker.add(Kind.ERROR, 0, "control", range(100, 1050))
    state = state_at(tracker, 0)
    assert not state.crossed
    assert state.log_e_value < 1.0


def test_late_labels_roll_back_when_their_block_is_over() -> None:
    """A label that comes hours later counts where its request was."""
    tracker = BlockTracker()
    state_at(tracker, 180)
    tracker.add(Kind.ERROR, 2, "v2", range(30))
    state = state_at(tracker, 181)
    assert state.crossed
    assert state.block == 1


def test_no_block_begins_when_its_epoch_is_over() -> None:
    """The next epoch has the numbers; a sidecar that was cut off may go on with the old plan."""
    tracker = BlockTracker()
    tracker.add(Kind.ERROR, 70, "v2", range(30))
    ended = replace(FACTS, blocks=2)
    state = state_at(tracker, 70, ended)
    assert not state.crossed
    assert state.block == 2
    assert state_at(tracker, 70).crossed


def test_both_arms_keep_the_same_sample_when_a_sidecar_sampled() -> None:
    tracker = BlockTracker()
    tracker.add(Kind.ERROR, 0, "control", range(64))
    tracker.add(Kind.ERROR, 0, "v2", (8, 16), sample_shift=3)
    state = state_at(tracker, 0)
    assert (state.candidate_events, state.control_events) == (2, 8)
    tracker.add(Kind.ERROR, 1, "control", (65, 72))
    assert state_at(tracker, 1).control_events == 9


def test_sample_shrinks_when_a_block_has_more_units_than_the_limit() -> None:
    tracker = BlockTracker()
    half = FIRST_BAD_UNITS_MAX // 2 + 1
    tracker.add(Kind.ERROR, 0, "control", range(half))
    tracker.add(Kind.ERROR, 1, "v2", range(half, 2 * half))
    state = state_at(tracker, 1)
    total = state.candidate_events + state.control_events
    assert total == pytest.approx(half, abs=1)
    assert state.candidate_events == pytest.approx(half / 2, abs=1)


def test_old_blocks_are_forgotten_when_a_day_has_passed() -> None:
    tracker = BlockTracker()
    tracker.add(Kind.ERROR, 0, "v2", range(30))
    day = 24 * 3600 // FIRST_BAD_SLOT_S
    later = day + 2 * 3600 // FIRST_BAD_SLOT_S
    state = state_at(tracker, later)
    assert not state.crossed
    empty = BlockTracker()
    state_at(empty, later)
    assert len(tracker.to_bytes()) <= len(empty.to_bytes()) + 16
    tracker.add(Kind.ERROR, later, "v2", range(30))
    state = state_at(tracker, later)
    assert (state.crossed, state.candidate_events) == (True, 30)


@pytest.mark.parametrize("slot", [-5, 10**9])
def test_tracker_stays_small_when_a_clock_is_broken(slot: int) -> None:
    tracker = BlockTracker()
    tracker.add(Kind.ERROR, slot, "v2", (1,))
    assert len(tracker.to_bytes()) < 100


def test_facts_divide_alpha_when_several_kinds_and_candidates_are_watched() -> None:
    policy = replace(
        worlds.policy(), candidates=("v2", "v3"), kinds=(Kind.ERROR, Kind.SLOW, Kind.WRONG)
    )
    run = worlds.started(policy)
    run = replace(run, split_ppm={"control": 800_000, "v2": 150_000, "v3": 50_000})
    (facts,) = lanes.lane_facts(run, policy, now_ms=worlds.START_MS + 301_000)
    assert facts.alpha_lane == pytest.approx(0.001 / 6)
    assert facts.thetas == {"v2": 150 / 950, "v3": 50 / 850}
    assert facts.blocks == 2


def test_no_lane_applies_when_the_split_leaves_no_control() -> None:
    policy = worlds.policy(worlds.canary_step(1_000_000))
    run = worlds.started(policy)
    assert lanes.lane_facts(run, policy, now_ms=worlds.START_MS) == ()
    assert lanes.assess_all(run, policy, {1: BlockTracker()}, now_ms=worlds.START_MS) == ()


def test_earlier_epoch_still_rolls_back_when_its_labels_come_late() -> None:
    policy = worlds.policy()
    run = worlds.started(policy, last_epoch=1)  # epoch 2
    past = PastEpoch(1, worlds.START_MS - 600_000, worlds.split(200_000), 0, 2)
    run = replace(run, past=(past,), blocks_before=2)
    tracker = BlockTracker()
    now_ms = worlds.START_MS + 1000
    assert [s.crossed for s in lanes.assess_all(run, policy, {1: tracker}, now_ms=now_ms)] == [
        False
    ]
    tracker.add(Kind.ERROR, 1, "v2", range(30))
    states = lanes.assess_all(run, policy, {1: tracker}, now_ms=now_ms)
    assert [s.crossed for s in states] == [False, True]
    assert (states[1].block, states[1].theta) == (1, 0.2)


def test_kinds_are_judged_apart_when_both_have_events() -> None:
    facts = replace(FACTS, kinds=(Kind.ERROR, Kind.WRONG))
    tracker = tracked([(Kind.WRONG, 0, "v2", unit) for unit in range(20)])
    states = tracker.assess(facts, now_ms=0)
    assert [(s.kind, s.crossed) for s in states] == [(Kind.ERROR, False), (Kind.WRONG, True)]


def test_state_never_changes_when_nothing_comes_in() -> None:
    tracker = tracked([(Kind.ERROR, s, v, s) for s, v in itertools.product(range(9), ("v2",))])
    first = state_at(tracker, 9)
    assert all(state_at(tracker, 9) == first for _ in range(3))


def test_looking_leaves_no_trace_when_nothing_has_come_in() -> None:
    tracker = tracked([(Kind.ERROR, 1, "v2", 1)])
    before = tracker.to_bytes()
    tracker.assess(replace(FACTS, kinds=tuple(Kind)), now_ms=SLOT_MS)
    assert tracker.to_bytes() == before
