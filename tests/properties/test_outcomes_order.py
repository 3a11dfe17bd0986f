"""Exposures, predictions and labels of the same requests give the same answers in any order."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from control.outcomes import Fact, Joiner, Observation, pack_facts, unpack_facts
from tests.control.deltas import START_MS, exposures
from turnout.v1alpha1.config_service_pb2 import ExposureBatch

Event = ExposureBatch | Fact


@st.composite
def requests(draw: st.DrawFn) -> list[Event]:
    """What may be said about some requests, each thing once."""
    events: list[Event] = []
    for request in range(1, draw(st.integers(1, 12)) + 1):
        answer = st.sampled_from([11, 22])
        if draw(st.booleans()):
            variant = draw(st.sampled_from(["control", "v2"]))
            forced = draw(st.integers(0, 9)) == 0
            events.append(exposures(variant, [(request, request)], forced=forced))
        for shadow in (False, True):
            if draw(st.booleans()):
                trace = draw(st.sampled_from([b"", bytes([request]) * 24]))
                error = draw(st.booleans())
                events.append(Fact(request, draw(answer), 0, shadow, error, trace))
        if draw(st.booleans()):
            events.append(Fact(request, 0, draw(answer)))
    return events


def join(joiner: Joiner, events: list[Event]) -> list[Observation]:
    """The observations of these events, one call each."""
    found: list[Observation] = []
    for number, event in enumerate(events):
        now_ms = START_MS + number
        if isinstance(event, Fact):
            found += joiner.add_facts([event], now_ms).observations
        else:
            found += joiner.add_exposures([event], now_ms).observations
    return found


def judged(observations: list[Observation]) -> Counter[tuple[object, ...]]:
    """What counts; the trace is an example and may come too late."""
    return Counter(tuple(o[:-1]) for o in observations)


@settings(max_examples=200, deadline=None)
@given(requests(), st.randoms(use_true_random=False))
def test_observations_are_the_same_in_any_order_and_when_all_is_said_twice(
    events: list[Event], chance: random.Random
) -> None:
    straight = judged(join(Joiner(), events))
    shuffled = events * 2
    chance.shuffle(shuffled)
    assert judged(join(Joiner(), shuffled)) == straight
    assert all(times == 1 for times in straight.values())


@settings(max_examples=200, deadline=None)
@given(requests(), st.integers(0, 40), st.randoms(use_true_random=False))
def test_joiner_goes_on_as_if_nothing_was_when_it_is_restored_in_the_middle(
    events: list[Event], cut: int, chance: random.Random
) -> None:
    chance.shuffle(events)
    whole = Joiner()
    first = join(whole, events[:cut])
    restored = Joiner.from_bytes(whole.to_bytes())
    assert restored.to_bytes() == whole.to_bytes()
    rest = join(restored, events[cut:])
    assert rest == join(whole, events[cut:])
    assert restored.to_bytes() == whole.to_bytes()
    assert judged(first + rest) == judged(join(Joiner(), events))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.builds(
            Fact,
            st.integers(0, 2**64 - 1),
            st.integers(0, 2**64 - 1),
            st.integers(0, 2**64 - 1),
            st.booleans(),
            st.booleans(),
            st.one_of(st.just(b""), st.binary(min_size=24, max_size=24)),
        )
    )
)
def test_facts_come_back_from_the_journal_as_they_were(facts: list[Fact]) -> None:
    assert unpack_facts(pack_facts(facts)) == facts


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.lists(st.tuples(st.booleans(), st.integers(1, 200)), max_size=150),
)
def test_joiner_keeps_its_bounds_and_its_bytes_whatever_comes(
    exposed_max: int, waiting_max: int, events: list[tuple[bool, int]]
) -> None:
    joiner = Joiner(exposed_max=exposed_max, waiting_max=waiting_max)
    for is_exposure, request in events:
        if is_exposure:
            joiner.add_exposures([exposures("v2", [(request, 1)])], START_MS)
        else:
            joiner.add_facts([Fact(request, label=5)], START_MS)
        assert joiner.exposed <= exposed_max
        assert joiner.waiting <= waiting_max
    data = joiner.to_bytes()
    again = Joiner.from_bytes(data, exposed_max=exposed_max, waiting_max=waiting_max)
    assert again.to_bytes() == data
    assert again.counts == joiner.counts
