"""Cells: what comes together in them, what stays outside, and what outlives a restart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control import cellbook
from control.cellbook import UNITS_EPOCHS
from control.cellbytes import pack, unpack
from control.epochunits import EpochUnits
from control.evidence import CorruptEvidence, Evidence, InvalidDelta, check
from control.journal import Book, seal
from control.outcomes import Fact, pack_facts, text_hash, unpack_facts
from control.rollout.cells import NO_COUNTS, Cell, CellKey, Cells, bucket_of
from control.rollout.policy import Policy
from control.rollout.run import PastEpoch, Run
from control.rollout.words import State
from control.store.base import JournalEntry, JournalKind
from control.tallies import Latency
from tests.control.deltas import (
    EPOCH_START_MS,
    START_MS,
    batch,
    cell,
    count,
    exposures,
    hashes,
    sampled,
)
from turnout.contract import UNIT_BUCKETS, UNIT_SAMPLE_BIT
from turnout.v1alpha1.config_service_pb2 import (
    ROLE_SHADOW,
    BucketCounts,
    CellDelta,
    DeltaBatch,
    LatencyExceedance,
    UnitDelta,
)

SPLIT = {"control": 500_000, "v2": 500_000}
POLICY = Policy("control", ("v2",), (), slow_after_ms=200.0)
STEP = 1 << UNIT_SAMPLE_BIT


# A book of the format before cells, as that version wrote it: one delta of 10 requests of v2 with
# the exposure of request 5, and its prediction, 77.
OLD_BOOK = (
    "424f4f4b01505c716270f327339afda828d6c1d58f29fa358fd8f0c30f6e2c31d9aedd1364e9000000000000"
    "0045564944454e43450178014550d18ec22010fc977dde07b8989c9adcc3f91bcd85a0458e3b4b0d056bd2f4"
    "dfdda94597d0c232cc0c3391bb5f5d0a9d8b79a0fd842d7ec772fa77e8348d66ba7d106b96e556adc55ab1e2"
    "463e3f28a6535f1686175ee186a01620c0ef51afb1a8b9ee7ab109424232fcdab61fcd5f69bd6bd756b6a9fa"
    "d09f3bd466f1005139f3e2d2d86c06e0e05ce6cc744eb608c334cb3a272b8fa91a2586caa778c2d3f674f0df"
    "b5be6806f368430ed19b31f5d1c309882eee9c4d5f2023bb284e3b31fe0e457c49bb74c7a7584341627b4586"
    "53a4a39f81adde178f0f1412747900505c18a3010000580000000c0000005500000000000000000000000000"
    "0000010000000000000001000000000000000000000000000000000000000000000000000000000000000000"
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "00006578700931097632093009300500000000000000060000000000000000505c18a3010000000000004d00"
    "0000000000000000000000000000000000000000000000505c18a30100000000000000000000000000000000"
    "0000000000000000000000"
)


def run(epoch: int = 1, *, past: tuple[int, ...] = ()) -> Run:
    return Run(
        "exp",
        state=State.RUNNING,
        epoch=epoch,
        epoch_start_ms=EPOCH_START_MS,
        split_ppm=SPLIT,
        past=tuple(PastEpoch(number, EPOCH_START_MS - 1, SPLIT, 0, 1) for number in past),
    )


def evidence_of(*batches: DeltaBatch, warm_up_ms: int = 0) -> Evidence:
    found = Evidence()
    found.begin_epoch("exp", 1, EPOCH_START_MS, "fraud", warm_up_ms)
    for delivered in batches:
        found.add_delta(delivered, START_MS)
    return found


def cells_of(evidence: Evidence, epoch: int = 1) -> Cells:
    return evidence.cells(run(epoch), POLICY)


def the(evidence: Evidence, variant: str = "control", stratum: int = 0, epoch: int = 1) -> Cell:
    return cells_of(evidence, epoch).cells[CellKey(epoch, variant, stratum)]


def touched(array: np.ndarray[Any, Any]) -> dict[int, float]:
    return {int(bucket): array[bucket].item() for bucket in np.flatnonzero(array)}


def in_bucket(bucket: int, unit: int = 0) -> int:
    """The hash of a unit of this bucket."""
    return bucket << 54 | unit


# -- Increments ------------------------------------------------------------------------------------


def test_cells_add_up_over_sidecars_and_stay_apart_by_epoch_variant_and_stratum() -> None:
    evidence = evidence_of(
        batch(1, instance="a", cells=[cell("v2", {0: 2, 1023: 1}, errors={0: 1})]),
        batch(1, instance="b", cells=[cell("v2", {0: 3}, slow={0: 2}, over={500.0: {0: 1}})]),
        batch(2, instance="b", cells=[cell("v2", {7: 1}, stratum=1), cell("v2", {8: 1}, epoch=2)]),
    )
    found = the(evidence, "v2")
    assert touched(found.requests) == {0: 5, 1023: 1}
    assert touched(found.errors) == {0: 1}
    assert touched(found.slow) == {0: 2}
    assert touched(found.latency_over[500.0]) == {0: 1}
    assert found.latency_over[200.0] is found.slow
    assert found.labelled is NO_COUNTS
    assert touched(the(evidence, "v2", 1).requests) == {7: 1}
    assert set(cells_of(evidence).cells) == {CellKey(1, "v2", 0), CellKey(1, "v2", 1)}


def test_cells_come_by_reference_and_anew_only_when_something_changed() -> None:
    evidence = evidence_of(batch(1, cells=[cell("v2", {0: 2})]))
    first = cells_of(evidence)
    assert cells_of(evidence) is first
    evidence.add_delta(batch(2, cells=[cell("v2", {0: 1})]), START_MS)
    second = cells_of(evidence)
    assert second.revision != first.revision
    assert second.cells[CellKey(1, "v2", 0)] is first.cells[CellKey(1, "v2", 0)]
    assert not evidence.add_delta(batch(2, cells=[cell("v2", {0: 1})]), START_MS)
    assert cells_of(evidence) is second


def test_epochs_are_those_of_the_run() -> None:
    evidence = evidence_of(
        batch(1, cells=[cell("v2", {0: 1}, epoch=number) for number in (1, 2, 3)])
    )
    found = evidence.cells(run(3, past=(2,)), POLICY)
    assert [epoch.epoch for epoch in found.epochs] == [2, 3]
    assert {key.epoch for key in found.cells} == {2, 3}
    assert found.of(3, "v2").keys() == {0}


def test_requests_of_an_older_sidecar_are_missing_and_not_zero() -> None:
    told = batch(1, instance="new", counts=[count(requests=7)], cells=[cell("control", {3: 7})])
    silent = batch(1, instance="old", counts=[count(requests=5), count("v2", requests=4)])
    evidence = evidence_of(told, silent)
    assert (the(evidence).missing, int(the(evidence).requests.sum())) == (5, 7)
    assert (the(evidence, "v2").missing, int(the(evidence, "v2").requests.sum())) == (4, 0)
    assert evidence.beside("exp", 1) == {"control": (0, 5, 0), "v2": (0, 4, 0)}
    assert evidence.variants("exp", 1)["control"].units is None


def test_warm_up_is_left_out_and_shown() -> None:
    evidence = evidence_of(
        batch(
            1,
            counts=[
                count(at_ms=EPOCH_START_MS, requests=4, latency={300: 4}),
                count(at_ms=EPOCH_START_MS + 60_000, requests=6, latency={100: 6}),
            ],
            cells=[cell("control", {5: 6}, warm_up=4)],
        ),
        warm_up_ms=60_000,
    )
    found = the(evidence)
    assert (found.warm_up, found.missing, int(found.requests.sum())) == (4, 0, 6)
    assert found.latency.bins == ((100, 6),)
    assert evidence.variants("exp", 1)["control"].requests == 10


def test_copies_are_in_no_cell() -> None:
    evidence = evidence_of(batch(1, counts=[count("v2", role=ROLE_SHADOW, requests=9)]))
    assert cells_of(evidence).cells == {}


def test_requests_stand_by_the_hour_they_began_in() -> None:
    hour_ms = 3_600_000
    day_ms = START_MS // (24 * hour_ms) * 24 * hour_ms
    evidence = evidence_of(
        batch(
            1, counts=[count(at_ms=day_ms + 2 * hour_ms, requests=3), count(at_ms=day_ms - 1_000)]
        )
    )
    assert touched(the(evidence).hours) == {2: 3, 23: 10}


def table(buckets: bytes, *counts: int) -> BucketCounts:
    return BucketCounts(buckets=buckets, counts=counts)


NOT_A_NUMBER = LatencyExceedance(threshold_ms=float("nan"))
SECOND = LatencyExceedance(threshold_ms=1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"requests": table(b"\0\0")},
        {"requests": table(b"\1\0\1\0", 1, 1)},
        {"errors": table(b"\0\4", 1)},
        {"slow": table(b"\0\0", 2**31)},
        {"over": [NOT_A_NUMBER]},
        {"over": [SECOND] * 17},
        {"warm_up": 2**41},
        {"experiment": ""},
    ],
)
def test_cell_that_no_sidecar_sends_is_refused(wrong: dict[str, Any]) -> None:
    fields = {"experiment": "exp", "variant": "v2", **wrong}
    with pytest.raises(InvalidDelta):
        check(batch(1, cells=[CellDelta(**fields)]))


@pytest.mark.parametrize("wrong", [{"sample_shift": 31}, {"unit_hashes": b"1234567"}])
def test_units_that_no_sidecar_sends_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidDelta):
        check(batch(1, units=[UnitDelta(experiment="exp", variant="v2", **wrong)]))


# -- Labels and scores -----------------------------------------------------------------------------


def judged(book: Book, facts: list[Fact], rows: Mapping[str, list[tuple[int, int]]]) -> None:
    """Exposes (request, unit) by variant, then tells the facts."""
    exposed = [exposures(variant, pairs) for variant, pairs in rows.items()]
    entries = [
        (JournalKind.DELTA, batch(1, exposed=exposed).SerializeToString()),
        (JournalKind.OUTCOME, pack_facts(facts)),
    ]
    for kind, payload in entries:
        book.apply(JournalEntry("risk", kind, payload, START_MS))


ANSWERS = {"yes": text_hash("1"), "no": text_hash("0"), "true": text_hash("true")}


def test_labels_become_confusion_counts_in_the_bucket_of_their_unit() -> None:
    book = Book(evidence_of())
    pairs = [("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no"), ("true", "true")]
    facts = [
        Fact(number, prediction=ANSWERS[said], label=ANSWERS[truth])
        for number, (said, truth) in enumerate(pairs, 1)
    ]
    facts.append(Fact(6, prediction=text_hash("cat"), label=text_hash("dog")))
    judged(book, facts, {"v2": [(number, in_bucket(10 + number)) for number in range(1, 8)]})
    found = the(book.evidence, "v2")
    assert touched(found.tp) == {11: 1, 15: 1}
    assert touched(found.fp) == {12: 1}
    assert touched(found.fn) == {13: 1}
    assert touched(found.tn) == {14: 1}
    assert touched(found.labelled) == dict.fromkeys(range(11, 17), 1)
    seen = book.evidence.variants("exp", 1)["v2"]
    assert (seen.labelled, seen.correct) == (6, 3)


def test_label_counts_for_no_cell_when_its_request_began_in_the_warm_up() -> None:
    book = Book(evidence_of(warm_up_ms=START_MS - EPOCH_START_MS + 1))
    facts = [Fact(n, prediction=ANSWERS["yes"], label=ANSWERS["yes"], score=2.0) for n in (1, 2)]
    judged(book, facts, {"v2": [(1, 5), (2, 6)]})  # a millisecond apart
    found = the(book.evidence, "v2")
    assert int(found.labelled.sum()) == int(found.scored.sum()) == 1
    assert book.evidence.variants("exp", 1)["v2"].labelled == 2


def test_scores_and_costs_are_summed_once_per_request_whatever_comes_first() -> None:
    book = Book(evidence_of())
    facts = [
        Fact(1, score=0.5),
        Fact(1, score=9.0, cost=2.0),
        Fact(2, score=1.5, trace=b"\1" * 24),
        Fact(3, score=7.0, shadow=True),
        Fact(4, score=1e200),
    ]
    early = JournalEntry("risk", JournalKind.SPAN, pack_facts(facts[:1]), START_MS)
    book.apply(early)
    judged(book, facts, {"control": [(n, in_bucket(3)) for n in (1, 2, 3, 4)]})
    found = the(book.evidence)
    assert touched(found.scored) == {3: 2}
    assert touched(found.score_sum) == {3: 2.0}
    assert touched(found.score_squares) == {3: 0.25 + 2.25}
    assert touched(found.costed) == {3: 1}
    assert touched(found.cost_squares) == {3: 4.0}
    assert book.evidence.left_out["cells"] == 1


@given(
    st.lists(
        st.builds(
            Fact,
            st.integers(0, 2**64 - 1),
            prediction=st.integers(0, 2**64 - 1),
            label=st.integers(0, 2**64 - 1),
            shadow=st.booleans(),
            error=st.booleans(),
            score=st.none() | st.floats(allow_nan=False, allow_infinity=False),
            cost=st.none() | st.floats(allow_nan=False, allow_infinity=False),
            trace=st.sampled_from([b"", b"\1" * 24]),
        )
    )
)
def test_facts_come_back_from_their_bytes(facts: list[Fact]) -> None:
    assert unpack_facts(pack_facts(facts)) == facts


# -- Units -----------------------------------------------------------------------------------------


def test_units_are_distinct_over_sidecars_and_strata() -> None:
    evidence = evidence_of(
        batch(1, instance="a", units=[sampled("v2", [1, 2]), sampled("control", [3])]),
        batch(1, instance="b", units=[sampled("v2", [2, 4]), sampled("v2", [4], stratum=1)]),
        batch(2, instance="b", counts=[count("v2"), count("control")]),
    )
    seen = evidence.variants("exp", 1)
    assert (seen["control"].units, seen["v2"].units) == (1, 3)
    assert cells_of(evidence).units == {(1, "control"): 1, (1, "v2"): 3}
    assert (the(evidence, "v2").units, the(evidence, "v2").unit_sample_shift) == (3, 0)


def test_units_are_of_the_smallest_sample_that_any_sidecar_has() -> None:
    evidence = evidence_of(
        batch(1, counts=[count(), count("v2")], units=[sampled("control", [0, STEP, 2 * STEP])]),
        batch(2, units=[sampled("v2", [4 * STEP], shift=1)]),
    )
    seen = evidence.variants("exp", 1)
    assert (seen["control"].units, seen["v2"].units) == (2, 1)
    assert evidence.beside("exp", 1)["control"] == (0, 10, 1)


def test_units_keep_one_sample_in_all_variants_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cellbook, "UNIT_SAMPLE_MAX", 100)
    units = [unit * STEP for unit in range(1000)]
    evidence = evidence_of(
        batch(1, units=[sampled("control", units[:800])], counts=[count()]),
        batch(2, units=[sampled("v2", units[800:])], counts=[count("v2")]),
    )
    seen = evidence.variants("exp", 1)
    # 1 in 16: the first power of two that leaves at most 100 of 1000.
    assert (seen["control"].units, seen["v2"].units) == (50, 13)


def test_units_of_old_epochs_are_numbers_only() -> None:
    evidence = Evidence()
    for epoch in range(1, UNITS_EPOCHS + 2):
        evidence.begin_epoch("exp", epoch, EPOCH_START_MS)
        evidence.add_delta(batch(epoch, units=[sampled("v2", [1, 2], epoch=epoch)]), START_MS)
    evidence.add_delta(batch(99, units=[sampled("v2", [3], epoch=1)]), START_MS)
    epochs = tuple(range(1, UNITS_EPOCHS + 1))
    found = evidence.cells(run(UNITS_EPOCHS + 1, past=epochs), POLICY)
    assert set(found.units.values()) == {2}
    restored = Evidence.from_bytes(evidence.to_bytes())
    assert restored.cells(run(1), POLICY).units == {(1, "v2"): 2}


_groups = st.tuples(st.sampled_from(["control", "v2"]), st.integers(0, 1))


@given(
    st.lists(st.tuples(_groups, st.lists(st.integers(0, 30)), st.integers(0, 2)), max_size=8),
    st.integers(1, 20),
    st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_units_are_the_same_sets_in_any_order(
    told: list[tuple[tuple[str, int], list[int], int]], limit: int, chance: Any
) -> None:
    def united(parts: list[tuple[tuple[str, int], list[int], int]]) -> EpochUnits:
        found = EpochUnits()
        for group, units, shift in parts:
            found.add(group, hashes(u * STEP + u for u in units), shift, units_max=limit)
        return found

    whole, shuffled = united(told), told * 2
    chance.shuffle(shuffled)
    again = united(shuffled)
    assert (again.shift, again.count()) == (whole.shift, whole.count())
    everything: dict[tuple[str, int], set[int]] = {}
    for group, units, _ in told:
        kept = {u for u in units if not u & ((1 << whole.shift) - 1)}
        everything.setdefault(group, set()).update(kept)
    assert whole.count()[0] == {group: len(units) for group, units in everything.items()}
    assert sum(whole.count()[0].values()) <= max(limit, 4)  # 0 is in every sample


# -- Room ------------------------------------------------------------------------------------------


def test_cell_counts_nothing_more_when_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cellbook, "CELL_BYTES_MAX", 2 * 8 * UNIT_BUCKETS)
    evidence = evidence_of(
        batch(1, counts=[count(requests=2)], cells=[cell("control", {0: 2}, errors={0: 1})]),
        batch(2, counts=[count(requests=3)], cells=[cell("control", {0: 3}, slow={0: 1})]),
        batch(3, counts=[count(requests=4)], cells=[cell("control", {0: 4})]),
    )
    found = the(evidence)
    # Without room for the slow ones nothing of that delta counts, nor of any later one.
    assert (touched(found.requests), touched(found.slow), found.missing) == ({0: 2}, {}, 7)
    assert evidence.left_out["cells"] > 0
    evidence.forget("exp")
    evidence.begin_epoch("exp", 2, EPOCH_START_MS)
    evidence.add_delta(batch(4, cells=[cell("v2", {0: 1}, errors={0: 1}, epoch=2)]), START_MS)
    assert touched(the(evidence, "v2", epoch=2).errors) == {0: 1}


def test_old_epochs_give_their_room_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cellbook, "EPOCHS_KEPT", 2)
    monkeypatch.setattr(cellbook, "CELL_BYTES_MAX", 2 * 8 * UNIT_BUCKETS)
    evidence = Evidence()
    for epoch in range(1, 9):
        evidence.begin_epoch("exp", epoch, EPOCH_START_MS)
        evidence.add_delta(batch(epoch, cells=[cell("v2", {0: 1}, epoch=epoch)]), START_MS)
        assert touched(the(evidence, "v2", epoch=epoch).requests) == {0: 1}
    assert evidence.cells(run(1), POLICY).cells == {}


# -- Restarts --------------------------------------------------------------------------------------


def whole_book() -> Book:
    book = Book(evidence_of(warm_up_ms=1))
    facts = [Fact(1, prediction=ANSWERS["yes"], label=ANSWERS["no"], score=0.25, cost=3.0)]
    judged(book, facts, {"v2": [(1, in_bucket(9))]})
    told = batch(
        2,
        counts=[count("v2", requests=9, latency={3: 9}, sum_ms=2.5)],
        cells=[cell("v2", {9: 300, 10: 70_000, 11: 2**31 - 1}, over={250.5: {9: 2}}, warm_up=2)],
        units=[sampled("v2", [5, 6]), sampled("control", [7])],
    )
    for instance in "abc":  # together more than 32 bits
        told.instance_id = instance
        book.apply(JournalEntry("risk", JournalKind.DELTA, told.SerializeToString(), START_MS))
    return book


def test_cells_are_the_same_after_a_restart_and_count_on() -> None:
    book = whole_book()
    restored = Book.from_bytes(book.to_bytes())
    assert restored.to_bytes() == book.to_bytes()
    extra = batch(3, cells=[cell("v2", {9: 1}, slow={9: 1})], units=[sampled("v2", [6, 8])])
    for one in (book, restored):
        one.apply(JournalEntry("risk", JournalKind.DELTA, extra.SerializeToString(), START_MS))
    assert restored.to_bytes() == book.to_bytes()
    before, after = the(book.evidence, "v2"), the(restored.evidence, "v2")
    assert touched(after.requests)[11] == 3 * (2**31 - 1)
    for name in ("requests", "slow", "labelled", "fp", "score_sum", "cost_squares", "hours"):
        assert np.array_equal(getattr(after, name), getattr(before, name))
    assert (after.warm_up, after.latency, after.units) == (6, before.latency, 3)


def test_copy_of_evidence_changes_by_itself() -> None:
    book = whole_book()
    copied, bytes_before = book.evidence.copy(), book.evidence.to_bytes()
    assert copied.to_bytes() == bytes_before
    extra = batch(3, cells=[cell("v2", {9: 1})], units=[sampled("v2", [8])])
    copied.add_delta(extra, START_MS)
    assert book.evidence.to_bytes() == bytes_before
    assert touched(the(copied, "v2").requests)[9] == 901


def test_checkpoint_is_of_its_moment_when_it_is_packed_later() -> None:
    book = whole_book()
    bytes_before, parts = book.to_bytes(), book.parts()
    extra = batch(3, cells=[cell("v2", {9: 1})])
    book.apply(JournalEntry("risk", JournalKind.DELTA, extra.SerializeToString(), START_MS))
    assert seal(*parts) == bytes_before


def test_evidence_of_the_version_before_is_read_and_its_requests_are_missing() -> None:
    """The format before cells: JSON alone, and joined rows without scores."""
    old = bytes.fromhex(OLD_BOOK)
    book = Book.from_bytes(old)
    assert book.evidence.variants("exp", 1)["v2"].requests == 10
    assert the(book.evidence, "v2").missing == 10
    label = JournalEntry("risk", JournalKind.OUTCOME, pack_facts([Fact(5, label=77)]), START_MS)
    book.apply(label)
    assert book.evidence.variants("exp", 1)["v2"].labelled == 1


def test_latencies_of_the_version_before_are_read() -> None:
    assert Latency.from_json([1, 5, 3, 9, -2, 4]).to_json() == [1, 5, {3: 9, -2: 4}]


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_damaged_cells_are_refused_by_name(cut: int) -> None:
    data = evidence_of(batch(1, cells=[cell("v2", {0: 2})])).to_bytes()
    with pytest.raises(CorruptEvidence):
        Evidence.from_bytes(data[:-cut])


def test_packed_arrays_come_back_in_order() -> None:
    book = whole_book().evidence.frozen().cells["exp"]
    heads, arrays = unpack(pack({"b": book, "a": book}))
    assert [name for name, _ in heads] == ["a", "b"]
    found = list(arrays)
    assert all(map(np.array_equal, found, [*book.arrays, *book.arrays]))
    assert len(found) == 2 * len(book.arrays)


# -- Any partition ---------------------------------------------------------------------------------

_requests = st.lists(
    st.tuples(
        st.sampled_from(["control", "v2"]),
        st.integers(0, 1),  # stratum
        st.sampled_from([0, 1, 512, 1023]),
        st.booleans(),  # failed
    ),
    max_size=60,
)


@given(_requests, st.integers(1, 5), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_cells_are_equal_whatever_sidecars_and_batches_the_requests_came_by(
    requests: list[tuple[str, int, int, bool]], sidecars: int, chance: Any
) -> None:
    parts: dict[tuple[int, int], list[tuple[str, int, int, bool]]] = {}
    for request in requests:
        place = (chance.randrange(sidecars), chance.randrange(3))
        parts.setdefault(place, []).append(request)
    batches = [
        batch(seq + 1, instance=f"s{sidecar}", cells=_deltas(some))
        for (sidecar, seq), some in parts.items()
    ]
    chance.shuffle(batches)
    found = cells_of(evidence_of(*batches, *batches)).cells
    counted = Counter((variant, stratum, bucket) for variant, stratum, bucket, _ in requests)
    bad = Counter(request[:3] for request in requests if request[3])
    for table, name in ((counted, "requests"), (bad, "errors")):
        assert {
            (key.variant, key.stratum, bucket): number
            for key, one in found.items()
            for bucket, number in touched(getattr(one, name)).items()
        } == dict(table)


def _deltas(requests: list[tuple[str, int, int, bool]]) -> list[CellDelta]:
    tables: dict[tuple[str, int], tuple[Counter[int], Counter[int]]] = {}
    for variant, stratum, bucket, failed in requests:
        counted, bad = tables.setdefault((variant, stratum), (Counter(), Counter()))
        counted[bucket] += 1
        bad[bucket] += failed
    return [
        cell(variant, counted, stratum=stratum, errors=+bad)
        for (variant, stratum), (counted, bad) in tables.items()
    ]


def test_bucket_is_the_top_of_the_hash() -> None:
    assert bucket_of(2**64 - 1) == UNIT_BUCKETS - 1
    assert bucket_of(2**54 - 1) == 0
