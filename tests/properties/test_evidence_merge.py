"""Any order, any number of deliveries, any split of the stream: bit-equal evidence."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from control.evidence import Evidence
from control.tallies import RANGES_MAX, Numbers
from tests.control.deltas import (
    EPOCH_START_MS,
    START_MS,
    batch,
    cell,
    count,
    exposures,
    first_bad,
    sampled,
)
from turnout.v1alpha1.common_pb2 import BAD_EVENT_KIND_ERROR, BAD_EVENT_KIND_SLOW
from turnout.v1alpha1.config_service_pb2 import (
    ROLE_SERVED,
    ROLE_SHADOW,
    CellDelta,
    CountDelta,
    DeltaBatch,
    ExposureBatch,
    FirstBadDelta,
    TargetDelta,
    UnitDelta,
)

variants = st.sampled_from(["control", "v2", "v3"])
epochs = st.integers(1, 6)
units = st.integers(0, 40)
# From two days ago to an hour ahead: some buckets are older than the window, some just at its edge.
times = st.one_of(
    st.integers(START_MS - 2 * 86_400_000, START_MS + 3_600_000),
    st.sampled_from([START_MS - 86_400_000, START_MS - 3_600_000]),
)

counts = st.builds(
    count,
    variants,
    epoch=epochs,
    role=st.sampled_from([ROLE_SERVED, ROLE_SHADOW]),
    at_ms=times,
    requests=st.integers(0, 1000),
    errors=st.integers(0, 10),
    latency=st.dictionaries(st.integers(-100, 900), st.integers(1, 50), max_size=4),
    sum_ms=st.floats(0, 1e6),
    first_bad_ms=st.one_of(st.just(0), times),
)
bad = st.builds(
    first_bad,
    variants,
    st.lists(units, max_size=5),
    slot=st.integers(0, 20),
    kind=st.sampled_from([BAD_EVENT_KIND_ERROR, BAD_EVENT_KIND_SLOW]),
    sample_shift=st.integers(0, 2),
    epoch=epochs,
)
targets = st.builds(
    TargetDelta,
    target=st.sampled_from(["", "fraud"]),
    unstamped=st.dictionaries(
        st.sampled_from(["timeout", "unreachable", "unknown"]), st.integers(0, 9), max_size=3
    ),
    answered=st.integers(0, 99),
)
exposed = st.builds(
    exposures, variants, st.lists(st.tuples(st.integers(0, 99), units), max_size=5), epoch=epochs
)
by_bucket = st.dictionaries(st.integers(0, 1023), st.integers(1, 300), max_size=4)
celled = st.builds(
    cell,
    variants,
    by_bucket,
    epoch=epochs,
    stratum=st.integers(0, 1),
    errors=by_bucket,
    slow=by_bucket,
    over=st.dictionaries(st.sampled_from([250.0, 300.5]), by_bucket, max_size=2),
    warm_up=st.integers(0, 9),
)
samples = st.builds(
    sampled,
    variants,
    st.lists(st.integers(0, 2**28 - 1), max_size=5),
    epoch=epochs,
    stratum=st.integers(0, 1),
    shift=st.integers(0, 2),
)
parts = st.one_of(counts, bad, targets, exposed, celled, samples)
Part = CountDelta | FirstBadDelta | TargetDelta | ExposureBatch | CellDelta | UnitDelta


def numbered(groups: list[list[Part]]) -> list[DeltaBatch]:
    """One batch per group, of two instances."""
    return [
        batch(
            number // 2 + 1,
            instance=f"i{number % 2}",
            counts=[p for p in group if isinstance(p, CountDelta)],
            bad=[p for p in group if isinstance(p, FirstBadDelta)],
            targets=[p for p in group if isinstance(p, TargetDelta)],
            exposed=[p for p in group if isinstance(p, ExposureBatch)],
            cells=[p for p in group if isinstance(p, CellDelta)],
            units=[p for p in group if isinstance(p, UnitDelta)],
        )
        for number, group in enumerate(groups)
    ]


def evidence_of(batches: list[DeltaBatch]) -> Evidence:
    """Evidence of these deliveries, in this order."""
    evidence = Evidence()
    for epoch in range(1, 7):
        warm_up_ms = 0 if epoch % 2 else 600_000
        evidence.begin_epoch("exp", epoch, EPOCH_START_MS + epoch, "fraud", warm_up_ms)
    for delivered in batches:
        evidence.add_delta(delivered, START_MS)
    return evidence


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(parts, max_size=4), max_size=8), st.randoms(use_true_random=False))
def test_evidence_is_bit_equal_when_deltas_are_repeated_and_reordered(
    groups: list[list[Part]], chance: random.Random
) -> None:
    batches = numbered(groups)
    shuffled = batches * 5
    chance.shuffle(shuffled)
    assert evidence_of(shuffled).to_bytes() == evidence_of(batches).to_bytes()


@settings(max_examples=100, deadline=None)
@given(st.lists(parts, max_size=20), st.randoms(use_true_random=False))
def test_counts_do_not_depend_on_how_the_stream_is_cut_into_deltas(
    stream: list[Part], chance: random.Random
) -> None:
    whole = evidence_of(numbered([stream]))
    cut: list[list[Part]] = [[] for _ in range(chance.randint(1, 8))]
    for part in stream:
        cut[chance.randrange(len(cut))].append(part)
    pieces = evidence_of(numbered(cut))
    for epoch in (None, 1, 2, 3, 4, 5, 6):
        assert pieces.variants("exp", epoch) == whole.variants("exp", epoch)
        if epoch is not None:
            span = (START_MS // 1000 - 86_400, START_MS // 1000 + 3_600)
            assert pieces.window("exp", epoch, *span) == whole.window("exp", epoch, *span)
    for target in ("", "fraud"):
        assert pieces.target(target) == whole.target(target)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(parts, max_size=4), max_size=8), st.integers(0, 8))
def test_evidence_goes_on_as_if_nothing_was_when_it_is_restored_in_the_middle(
    groups: list[list[Part]], cut: int
) -> None:
    batches = numbered(groups)
    restored = Evidence.from_bytes(evidence_of(batches[:cut]).to_bytes())
    for delivered in batches[cut:]:
        restored.add_delta(delivered, START_MS)
    assert restored.to_bytes() == evidence_of(batches).to_bytes()


@given(st.lists(st.integers(1, 60)))
def test_numbers_are_the_set_of_what_was_taken(taken: list[int]) -> None:
    numbers = Numbers()
    for number in taken:
        if not numbers.has(number):
            assert numbers.add(number) == 0
    assert {n for n in range(1, 70) if numbers.has(n)} == set(taken)
    assert all(left[1] + 1 < right[0] for left, right in itertools.pairwise(numbers.runs))


def test_numbers_give_up_the_oldest_gap_when_there_are_too_many() -> None:
    numbers = Numbers()
    given_up = sum(numbers.add(n) for n in range(1, 2 * RANGES_MAX + 20, 2))
    assert given_up > 0
    assert len(numbers.runs) == RANGES_MAX
    assert numbers.has(2)
    assert not numbers.has(2 * RANGES_MAX)
