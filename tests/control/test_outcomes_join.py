"""Labels, predictions and exposures of a request meet, and what does not is counted."""

from __future__ import annotations

import random

import pytest

from control.ingest import SpanFact, request_hash
from control.joinrows import Ring, Row
from control.outcomes import (
    GROUPS_MAX,
    WINDOW_MS,
    Fact,
    Joiner,
    facts_of_outcomes,
    facts_of_spans,
    text_hash,
    unpack_facts,
)
from sidecar import hashing
from tests.control.deltas import START_MS, exposures
from turnout.v1alpha1.outcome_service_pb2 import Outcome

YES, NO = text_hash("yes"), text_hash("no")
TRACE = b"\x01" * 24


def test_label_judges_the_served_prediction_when_it_comes_last() -> None:
    joiner = Joiner()
    assert not joiner.add_exposures([exposures("v2", [(1, 77)])], START_MS).observations
    assert not joiner.add_facts([Fact(1, prediction=YES, trace=TRACE)], START_MS).observations
    (observation,) = joiner.add_facts([Fact(1, label=NO)], START_MS + 5).observations
    assert observation == ("exp", 1, "v2", 0, 77, False, False, False, False, START_MS, TRACE)


def test_copy_is_judged_apart_and_never_as_served() -> None:
    joiner = Joiner()
    joiner.add_exposures([exposures("control", [(1, 77)])], START_MS)
    joiner.add_facts([Fact(1, prediction=NO, shadow=True), Fact(1, label=YES)], START_MS)
    (served,) = joiner.add_facts([Fact(1, prediction=YES)], START_MS).observations
    assert (served.shadow, served.correct) == (False, True)
    assert joiner.counts.shadow_predictions == joiner.counts.predictions == 1


def test_first_of_each_wins_and_repeats_are_counted() -> None:
    joiner = Joiner()
    joiner.add_exposures([exposures("v2", [(1, 7)]), exposures("control", [(1, 8)])], START_MS)
    facts = [Fact(1, prediction=YES), Fact(1, prediction=NO), Fact(1, label=YES), Fact(1, label=NO)]
    (observation,) = joiner.add_facts(facts, START_MS).observations
    assert (observation.variant, observation.correct) == ("v2", True)
    counts = joiner.counts
    repeated = (counts.repeated_exposures, counts.repeated_predictions, counts.repeated_labels)
    assert repeated == (1, 1, 1)


def test_forced_request_is_joined_and_never_judged() -> None:
    joiner = Joiner()
    joiner.add_exposures([exposures("v2", [(1, 7)], forced=True)], START_MS)
    assert not joiner.add_facts([Fact(1, YES, NO, error=True, trace=TRACE)], START_MS).observations
    assert joiner.counts.labels == 1


def test_trace_of_a_failed_request_is_given_once_with_its_variant() -> None:
    joiner = Joiner()
    joiner.add_facts([Fact(1, error=True, trace=TRACE)], START_MS)
    (failed,) = joiner.add_exposures([exposures("v2", [(1, 7)])], START_MS).failed
    assert failed == ("exp", 1, "v2", START_MS, TRACE)
    assert not joiner.add_facts([Fact(1, label=YES)], START_MS).failed


def test_label_is_an_orphan_when_its_request_was_never_exposed() -> None:
    joiner = Joiner()
    joiner.add_facts([Fact(1, label=YES), Fact(2, prediction=YES)], START_MS)
    assert joiner.waiting == 2
    joiner.add_facts([], START_MS + WINDOW_MS + 1)
    assert joiner.waiting == 0
    assert (joiner.counts.orphan_labels, joiner.counts.orphan_predictions) == (1, 1)
    late = exposures("v2", [(1, 7)])
    assert not joiner.add_exposures([late], START_MS + WINDOW_MS + 1).observations


def test_exposure_is_joined_until_its_window_is_over_and_not_later() -> None:
    joiner = Joiner()
    joiner.add_exposures([exposures("v2", [(1, 7), (2, 8)])], START_MS)
    assert joiner.add_facts([Fact(1, YES, YES)], START_MS + WINDOW_MS).observations
    assert not joiner.add_facts([Fact(2, YES, YES)], START_MS + WINDOW_MS + 1).observations
    assert joiner.counts.expired == 2


def test_clock_that_jumps_back_lets_nothing_go_and_keeps_nothing_longer() -> None:
    joiner = Joiner()
    joiner.add_exposures([exposures("v2", [(1, 7)])], START_MS)
    assert joiner.add_facts([Fact(1, YES, YES)], START_MS - 10 * WINDOW_MS).observations
    joiner.add_facts([], START_MS + WINDOW_MS + 1)
    assert joiner.exposed == 0


def test_oldest_exposure_goes_when_there_is_no_room() -> None:
    joiner = Joiner(exposed_max=3)
    joiner.add_exposures([exposures("v2", [(n, n) for n in range(1, 6)])], START_MS)
    assert joiner.exposed == 3
    assert joiner.counts.dropped == 2
    found = joiner.add_facts([Fact(n, YES, YES) for n in range(1, 6)], START_MS).observations
    assert [observation.unit for observation in found] == [3, 4, 5]


def test_labels_of_unknown_requests_cannot_drive_out_exposures() -> None:
    joiner = Joiner(exposed_max=10, waiting_max=5)
    joiner.add_exposures([exposures("v2", [(1, 7)])], START_MS)
    joiner.add_facts([Fact(n, label=YES) for n in range(100, 200)], START_MS)
    assert joiner.waiting == 5
    assert (joiner.counts.dropped, joiner.counts.orphan_labels) == (95, 95)
    assert joiner.add_facts([Fact(1, YES, YES)], START_MS).observations


def test_groups_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control.outcomes.GROUPS_MAX", 8)
    joiner = Joiner(exposed_max=3)
    for epoch in range(1, 30):
        joiner.add_exposures([exposures("v2", [(epoch, epoch)], epoch=epoch)], START_MS)
    found = joiner.add_facts([Fact(n, YES, YES) for n in range(1, 30)], START_MS).observations
    assert [observation.epoch for observation in found] == [27, 28, 29]
    assert Joiner.from_bytes(joiner.to_bytes()).to_bytes() == joiner.to_bytes()
    assert GROUPS_MAX > 1000


def test_span_and_outcome_of_a_request_meet_the_hash_that_sidecars_make() -> None:
    span = SpanFact(request_hash(b"req-1"), "1", None, 0.5, None, True, TRACE, False)
    (of_span,) = facts_of_spans([span])
    (of_outcome,) = facts_of_outcomes([Outcome(request_id="req-1", label="1")])
    assert of_span.request == of_outcome.request == hashing.request_hash(b"req-1")
    assert of_span.prediction == of_outcome.label != 0
    assert (of_span.label, of_outcome.prediction, of_span.shadow) == (0, 0, True)


@pytest.mark.parametrize("data", [b"x", b"\x00" * 48, b"\x00" * 50])
def test_facts_of_another_length_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="within a fact"):
        unpack_facts(data)


@pytest.mark.parametrize("data", [b"", b"\x00" * 20, b"\x01" * 64])
def test_damaged_joiner_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"truncated|must be"):
        Joiner.from_bytes(data)


def test_ring_agrees_with_a_dictionary_over_many_random_steps() -> None:
    chance = random.Random(7)
    ring = Ring()
    expected: dict[int, Row] = {}
    for step in range(20_000):
        request = chance.randrange(3000)
        if chance.random() < 0.35 and expected:
            request = next(iter(expected)) if chance.random() < 0.7 else request
            if request in expected:
                ring.remove(request)
                del expected[request]
        else:
            row = Row(request, time_ms=step, trace=bytes(24))
            ring.put(row)
            expected[request] = row
        oldest = ring.oldest()
        assert (oldest.request if oldest else None) == next(iter(expected), None)
    assert list(ring) == list(expected.values())
    assert {n: ring.get(n) for n in range(3000) if ring.get(n)} == expected
    again = Ring.from_bytes(ring.to_bytes())
    assert list(again) == list(ring)
    assert again.to_bytes() == ring.to_bytes()
