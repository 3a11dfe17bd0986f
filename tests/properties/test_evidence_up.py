"""Folding does not depend on who folds what, nor in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar import accesslog, fold, snapshotfile
from sidecar.accesslog import Entry
from sidecar.deltas import MalformedDelta, decode, encode
from sidecar.fold import Fold
from sidecar.increments import CellKey, ExposureRows, FirstBad, FoldDelta, SlotKey
from sidecar.processor import MalformedRequest, process
from sidecar.snapshotcheck import InvalidSnapshot
from sidecar.snapshotfile import CorruptSnapshot
from sidecar.subscription import judge_snapshot
from tests.sidecar.samples import EPOCH_START_MS, build, entry, measured, snapshot, stamp
from turnout.v1alpha1.config_service_pb2 import ROLE_SERVED

PLAN = build(snapshot())
EPOCHS = {**PLAN.epochs, **build(measured(epoch=2)).epochs}


def stamps() -> st.SearchStrategy[str]:
    """A unit is always on the same variant of an epoch: it is sticky."""
    return st.builds(
        lambda unit, epoch, forced: (
            stamp("v2" if unit % 2 else "control", unit, epoch=epoch) + forced
        ),
        st.integers(0, 40).map(lambda unit: unit * 0x9E37_79B9_7F4A_7C15 % 2**64),
        st.integers(1, 3),
        st.sampled_from(["", "", "", ";f"]),
    )


def entries() -> st.SearchStrategy[Entry]:
    return st.builds(
        lambda **fields: entry(**fields),
        start_ms=st.integers(0, 200_000).map(lambda offset: EPOCH_START_MS + offset),
        # Quarters: their sums are exact, in any order.
        latency_ms=st.one_of(st.none(), st.integers(0, 4_000).map(lambda n: n / 4)),
        duration_ms=st.integers(0, 4_000).map(lambda n: n / 4),
        upstream_ms=st.one_of(st.none(), st.integers(0, 4_000).map(lambda n: n / 4)),
        status=st.sampled_from([0, 200, 404, 500, 503]),
        flags=st.sampled_from([0, 0, accesslog.FLAG_DC, accesslog.FLAG_UF]),
        grpc_status=st.sampled_from([None, None, 0, 13]),
        stamp=st.one_of(stamps(), st.just(""), st.just("garbage")),
        shadow_of=st.sampled_from(["", "", "", "fraud-v2;1;v2", "bad"]),
        call_status=st.sampled_from([None, 0, 4, 10, 14]),
        route_name=st.sampled_from(["turnout/fraud/baseline", "x"]),
    )


def distinct(found: list[Entry]) -> list[Entry]:
    """Each with a request id of its own: which of several exposures stays depends on the order."""
    return [one._replace(request_id=f"r-{number}") for number, one in enumerate(found)]


def knowing() -> Fold:
    folding = Fold()
    folding.know(EPOCHS)
    return folding


def folded(found: Sequence[Entry]) -> FoldDelta:
    folding = knowing()
    for one in found:
        folding.add(one, shadow=False)
    return folding.take()


def canonical(delta: FoldDelta) -> FoldDelta:
    """Rows come in order of arrival; as a set they are the same."""
    delta.exposures = {k: ExposureRows(sorted(rows)) for k, rows in delta.exposures.items()}
    return delta


@given(st.lists(entries(), max_size=30).map(distinct), st.data())
@settings(max_examples=120, deadline=None)
def test_increments_are_equal_when_workers_share_the_entries_anyhow(
    found: list[Entry], data: st.DataObject
) -> None:
    whole = canonical(folded(found))
    shuffled = data.draw(st.permutations(found))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(found)), max_size=4)))
    edges = [0, *cuts, len(found)]
    parts = [shuffled[a:b] for a, b in pairwise(edges)]
    merged = Fold()
    for part in data.draw(st.permutations(parts)):
        merged.merge(decode(encode(folded(part))))
    assert canonical(merged.take()) == whole


@given(st.lists(entries(), max_size=30).map(distinct), st.integers(1, 8), st.data())
@settings(max_examples=120, deadline=None)
def test_first_bad_units_are_equal_when_takes_come_at_any_time_and_twice(
    found: list[Entry], limit: int, data: st.DataObject
) -> None:
    """Also when there are too many units: the sample depends on the units alone."""
    with mock.patch.object(fold, "FIRST_BAD_UNITS_MAX", limit):
        whole = folded(found).first_bad
        folding, received = knowing(), Fold()
        for one in data.draw(st.permutations(found)):
            folding.add(one, shadow=False)
            if data.draw(st.booleans()):
                delta = FoldDelta(first_bad=folding.take().first_bad)
                received.merge(delta)
                received.merge(delta)
        received.merge(FoldDelta(first_bad=folding.take().first_bad))
        merged = received.take().first_bad
    assert nonempty(merged) == nonempty(whole)


def nonempty(found: Mapping[SlotKey, FirstBad]) -> dict[SlotKey, tuple[int, dict[str, set[int]]]]:
    """Without arms that have no units in the sample."""
    return {
        key: (bad.shift, {arm: units for arm, units in bad.units.items() if units})
        for key, bad in found.items()
    }


@given(st.lists(entries(), max_size=30))
@settings(max_examples=100, deadline=None)
def test_delta_is_the_same_when_decoded_whatever_was_folded(found: list[Entry]) -> None:
    delta = folded(found)
    assert decode(encode(delta)) == delta
    assert bool(decode(encode(delta))) == bool(delta)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_reading_bytes_never_fails_but_by_its_own_name(data: bytes) -> None:
    with suppress(accesslog.MalformedMessage):
        accesslog.parse_message(data)
    with suppress(accesslog.MalformedStamp):
        accesslog.parse_stamp(data.decode(errors="replace"))
    with suppress(MalformedDelta):
        decode(data)
    with suppress(InvalidSnapshot):
        judge_snapshot(data)
    with suppress(CorruptSnapshot):
        snapshotfile.decode(data)
    with suppress(MalformedRequest):
        process(PLAN, data, random_unit=bytes, now_s=float)


@given(st.lists(entries(), max_size=40))
@settings(max_examples=150, deadline=None)
def test_buckets_add_up_to_the_counts_whatever_was_folded(found: list[Entry]) -> None:
    delta = folded(found)
    counted: Counter[tuple[CellKey, str]] = Counter()
    for key, counts in delta.counts.items():
        if key.role == ROLE_SERVED and (key.experiment, key.epoch) in EPOCHS:
            cell = CellKey(*key[:4])
            counted[cell, "requests"] += counts.requests
            counted[cell, "errors"] += counts.errors
            counted[cell, "slow"] += counts.slow
    for cell, units in delta.cells.items():
        assert sum(units.requests.values()) + units.warm_up == counted.pop((cell, "requests"))
        for name, buckets in (("errors", units.errors), ("slow", units.slow)):
            bad = sum(buckets.values())
            left_out = counted.pop((cell, name)) - bad
            assert 0 <= left_out <= units.warm_up
        for threshold_ms, over in units.over.items():
            assert threshold_ms > 200
            assert all(over[bucket] <= units.slow[bucket] for bucket in over)
    assert not counted.total()
