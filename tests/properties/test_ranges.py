"""Weights to bucket ranges: what a ramp promises to users, for any history of splits (DESIGN 4)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.snapshot import Allocation, Ranges, allocate, grow, size, tiles, weights_ppm
from turnout.contract import BUCKET_COUNT

CONTROL = "control"
NAMES = ("a", "b", "c", "d")

# Splits in parts per million, of up to four candidates, whose sum fits.
splits = st.dictionaries(
    st.sampled_from(NAMES), st.integers(0, BUCKET_COUNT // len(NAMES)), max_size=len(NAMES)
)
histories = st.lists(splits, min_size=1, max_size=8)


def overlap(left: Ranges, right: Ranges) -> int:
    """Buckets that both have."""
    return sum(
        max(0, min(end, other_end) - max(start, other_start))
        for start, end in left
        for other_start, other_end in right
    )


def replay(history: list[dict[str, int]]) -> Allocation:
    """The allocation after all splits, one after the other."""
    allocation: Allocation = {}
    for split in history:
        allocation = allocate(allocation, split, control=CONTROL)
    return allocation


def moved_between_candidates(before: Allocation, after: Allocation) -> int:
    """Buckets that went from one candidate to another."""
    return sum(
        overlap(before[left], after[right])
        for left in before
        for right in after
        if CONTROL not in (left, right) and left != right
    )


@settings(deadline=None)
@given(histories)
def test_ranges_tile_and_have_the_asked_sizes_when_splits_change(
    history: list[dict[str, int]],
) -> None:
    allocation = replay(history)
    assert tiles(allocation.values())
    for name, weight in history[-1].items():
        assert size(allocation[name]) == weight
    assert allocation.keys() == {CONTROL, *history[-1]}


@settings(deadline=None)
@given(histories, splits)
def test_candidate_keeps_its_units_and_gains_exactly_the_increment_when_it_grows(
    history: list[dict[str, int]], increment: Mapping[str, int]
) -> None:
    before = replay(history)
    grown = {
        name: min(size(before.get(name, ())) + increment.get(name, 0), BUCKET_COUNT // len(NAMES))
        for name in NAMES
    }
    after = allocate(before, grown, control=CONTROL)
    for name in NAMES:
        mine = before.get(name, ())
        assert overlap(mine, after[name]) == size(mine)  # nobody left
        gained = size(after[name]) - size(mine)
        assert overlap(before[CONTROL], after[name]) == gained  # and all who came were control's
    assert overlap(before[CONTROL], after[CONTROL]) == size(after[CONTROL])


@settings(deadline=None)
@given(histories, splits)
def test_no_unit_moves_between_candidates_when_control_has_enough(
    history: list[dict[str, int]], split: dict[str, int]
) -> None:
    before = replay(history)
    growth = sum(max(0, weight - size(before.get(name, ()))) for name, weight in split.items())
    if growth > size(before[CONTROL]):
        return
    after = allocate(before, split, control=CONTROL)
    assert moved_between_candidates(before, after) == 0


@settings(deadline=None)
@given(histories, st.sampled_from(NAMES))
def test_units_return_to_control_when_a_candidate_is_removed(
    history: list[dict[str, int]], removed: str
) -> None:
    before = replay(history)
    kept = {name: size(before[name]) for name in before if name not in (CONTROL, removed)}
    after = allocate(before, kept, control=CONTROL)
    assert removed not in after
    assert overlap(before.get(removed, ()), after[CONTROL]) == size(before.get(removed, ()))
    assert all(after[name] == before[name] for name in kept)


@settings(deadline=None)
@given(histories)
def test_allocation_repeats_when_the_history_is_replayed(history: list[dict[str, int]]) -> None:
    shuffled = [dict(reversed(split.items())) for split in history]
    assert replay(history) == replay(shuffled)


@settings(deadline=None)
@given(histories)
def test_ranges_are_sorted_and_joined_when_pieces_meet(history: list[dict[str, int]]) -> None:
    for ranges in replay(history).values():
        for (_, end), (start, _) in itertools.pairwise(ranges):
            assert end < start


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=64))
def test_weights_fit_when_fractions_add_up_to_one(parts: list[float]) -> None:
    total = sum(parts)
    if total == 0:
        return
    split = {f"v{index}": part / total for index, part in enumerate(parts)}
    assert 0 <= sum(weights_ppm(split).values()) <= BUCKET_COUNT


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.0, 0),
        (1.0, 1_000_000),
        (0.01, 10_000),
        (0.05, 50_000),
        (0.07, 70_000),
        (0.29, 290_000),
        (0.57, 570_000),
        (0.99, 990_000),
        (0.000001, 1),
        (0.0001, 100),
        (1 / 3, 333_333),
    ],
)
def test_weight_is_exact_when_the_fraction_is_decimal(fraction: float, expected: int) -> None:
    assert weights_ppm({"v": fraction}) == {"v": expected}


def test_candidate_has_no_range_when_its_fraction_is_zero() -> None:
    assert grow({}, {"a": 0.0}, control=CONTROL) == {"a": (), CONTROL: ((0, BUCKET_COUNT),)}


def test_users_ramp_without_leaving_when_split_goes_one_five_fifty_percent() -> None:
    allocation: Allocation = {}
    sizes = []
    for fraction in (0.01, 0.05, 0.5, 0.99, 1.0):
        allocation = grow(allocation, {"a": fraction}, control=CONTROL)
        assert allocation["a"] == ((0, round(fraction * BUCKET_COUNT)),)
        sizes.append(size(allocation[CONTROL]))
    assert sizes == [990_000, 950_000, 500_000, 10_000, 0]


def test_freed_units_are_used_last_when_control_is_exhausted() -> None:
    before = allocate({}, {"a": 600_000, "b": 400_000}, control=CONTROL)
    after = allocate(before, {"a": 700_000, "b": 300_000}, control=CONTROL)
    assert size(after["a"]) == 700_000
    assert moved_between_candidates(before, after) == 100_000


@pytest.mark.parametrize(
    ("previous", "weights"),
    [
        ({}, {"a": BUCKET_COUNT + 1}),
        ({}, {"a": -1}),
        ({}, {"a": 10, CONTROL: 10}),
        ({CONTROL: ((0, 10),)}, {"a": 1}),
        ({CONTROL: ((0, BUCKET_COUNT),), "a": ((0, 1),)}, {"a": 1}),
        ({CONTROL: ((1, BUCKET_COUNT), (1, 1))}, {}),
    ],
)
def test_allocation_is_refused_when_it_cannot_tile(
    previous: Allocation, weights: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match="do not"):
        allocate(previous, weights, control=CONTROL)
