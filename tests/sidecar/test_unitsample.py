"""The sample of exposed units that the sample ratio is tested on."""

from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar import unitsample
from sidecar.deltas import decode, encode
from sidecar.evidence import Evidence
from sidecar.increments import Exposure, ExposureKey, ExposureRows, FoldDelta, UnitSample
from sidecar.unitsample import UnitSamples
from turnout.contract import UNIT_SAMPLE_BIT, UNIT_SAMPLE_MAX

Groups = dict[tuple[str, int], set[int]]
STEP = 1 << UNIT_SAMPLE_BIT


def united(takes: list[dict[tuple[str, int], UnitSample]]) -> tuple[int, Groups]:
    """What the control plane comes to: one sample, by the highest shift that was said."""
    shift = max((sample.shift for take in takes for sample in take.values()), default=0)
    units: Groups = {}
    for take in takes:
        for sample in take.values():
            for group, kept in sample.units.items():
                units.setdefault(group, set()).update(kept)
    mask = ((1 << shift) - 1) << UNIT_SAMPLE_BIT
    return shift, {
        group: found
        for group, all_ in units.items()
        if (found := {u for u in all_ if not u & mask})
    }


def test_unit_is_sent_once_when_it_is_exposed_again() -> None:
    samples = UnitSamples()
    samples.add("e", 1, ("v2", 0), [5, 5, 6])
    assert samples.take() == {("e", 1): UnitSample(0, {("v2", 0): {5, 6}})}
    samples.add("e", 1, ("v2", 0), [6])
    assert samples.take() == {}
    samples.add("e", 1, ("v2", 0), [7])
    samples.add("e", 2, ("v2", 0), [5])
    assert samples.take() == {
        ("e", 1): UnitSample(0, {("v2", 0): {7}}),
        ("e", 2): UnitSample(0, {("v2", 0): {5}}),
    }


def test_unit_counts_in_both_when_it_is_seen_in_two_strata() -> None:
    samples = UnitSamples()
    samples.add("e", 1, ("v2", 0), [5])
    samples.add("e", 1, ("v2", 1), [5])
    assert samples.take()["e", 1].units == {("v2", 0): {5}, ("v2", 1): {5}}


def test_shift_reaches_every_arm_when_one_of_them_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unitsample, "UNIT_SAMPLE_MAX", 4)
    samples = UnitSamples()
    samples.add("e", 1, ("control", 0), [0, STEP])
    assert samples.take()["e", 1].shift == 0
    samples.add("e", 1, ("v2", 0), [2 * STEP, 3 * STEP, 4 * STEP])
    sample = samples.take()["e", 1]
    assert sample == UnitSample(1, {("control", 0): set(), ("v2", 0): {2 * STEP, 4 * STEP}})


def test_bound_holds_when_there_are_many_units() -> None:
    samples = UnitSamples()
    samples.add("e", 1, ("v2", 0), range(0, (UNIT_SAMPLE_MAX + 1) * STEP, STEP))
    sample = samples.take()["e", 1]
    assert sample.shift == 1
    assert len(sample.units["v2", 0]) == UNIT_SAMPLE_MAX // 2 + 1


def test_oldest_epoch_is_sent_again_when_it_was_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unitsample, "SEEN_UNITS_MAX", 1)
    samples = UnitSamples()
    for epoch in (1, 2, 1):
        samples.add("e", epoch, ("v2", 0), [5])
    samples.take()
    samples.add("e", 1, ("v2", 0), [5])
    assert samples.take()["e", 1].units["v2", 0] == {5}


_added = st.tuples(
    st.sampled_from([("control", 0), ("v2", 0), ("v2", 1)]),
    st.lists(st.integers(0, 63).map(lambda unit: unit * STEP + unit % 3), max_size=12),
)


@given(st.lists(_added, max_size=12), st.integers(1, 12), st.data())
@settings(max_examples=200, deadline=None)
def test_sample_depends_on_the_units_alone_whatever_their_order_and_the_takes(
    added: list[tuple[tuple[str, int], list[int]]], limit: int, data: st.DataObject
) -> None:
    with mock.patch.object(unitsample, "UNIT_SAMPLE_MAX", limit):
        whole = UnitSamples()
        for group, units in added:
            whole.add("e", 1, group, units)
        parts, takes = UnitSamples(), []
        for group, units in data.draw(st.permutations(added)):
            parts.add("e", 1, group, data.draw(st.permutations(units)))
            if data.draw(st.booleans()):
                takes.append(decode(encode(FoldDelta(units=parts.take()))).units)
        takes.append(parts.take())
    assert united(takes) == united([whole.take()])


def test_units_are_those_of_the_workers_exposures_when_none_is_forced() -> None:
    evidence = Evidence(envoy_counts=True)
    rows = ExposureRows([Exposure(1_000, 7, 1), Exposure(1_000, 7, 2), Exposure(1_000, 8, 3)])
    forced = ExposureRows([Exposure(1_000, 9, 4)])
    for _ in range(2):  # two workers, and one request id in both
        exposed = {
            ExposureKey("e", 1, "v2", 0, forced=False): rows,
            ExposureKey("e", 1, "v2", 0, forced=True): forced,
        }
        evidence.add_worker(FoldDelta(exposures=exposed), 0)
    assert evidence.take(0).units == {("e", 1): UnitSample(0, {("v2", 0): {7, 8}})}
    assert not evidence.take(1)
