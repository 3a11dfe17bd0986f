"""Deltas as bytes, and the queue of those that nobody has acknowledged."""

from __future__ import annotations

import pytest

from sidecar import deltas
from sidecar.deltas import DeltaLog, MalformedDelta, decode, encode, to_message
from sidecar.increments import (
    CountKey,
    Counts,
    Exposure,
    ExposureKey,
    ExposureRows,
    FirstBad,
    FoldDelta,
    SlotKey,
    TargetCounts,
)
from sidecar.unstamped import Accounted
from turnout.v1alpha1.config_service_pb2 import (
    CountDelta,
    DeltaBatch,
    ExposureBatch,
    FirstBadDelta,
)

KEY = ExposureKey("e", 1, "v", 0, forced=False)


def full() -> FoldDelta:
    return FoldDelta(
        counts={
            CountKey("e", 1, "v", 0, 1, 1_700_000_000): Counts(
                decided=1, requests=2, errors=3, slow=4, client_cancelled=5, client_errors=6,
                latency={-3: 1, 0: 2, 400: 3}, latency_zero=7, latency_sum_ms=8.5,
                first_bad_ms=1_700_000_000_001, forced=9,
            )
        },
        first_bad={
            SlotKey("e", 1, 1, 3): FirstBad(2, {"v": {4, 2**64 - 4}, "control": set()}),
        },
        targets={
            "": TargetCounts(answered=1),
            "fraud": TargetCounts(2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, {"timeout": 10}),
        },
        exposures={KEY: ExposureRows([Exposure(20, 1, 2**64 - 1), Exposure(10, 0, 0)])},
        exposures_dropped=11,
        repeated_requests=12,
        malformed_stamps=13,
    )  # fmt: skip


def test_delta_is_the_same_when_decoded() -> None:
    assert decode(encode(full())) == full()
    assert decode(b"") == FoldDelta()


def test_bytes_are_the_same_when_keys_were_met_in_another_order() -> None:
    one, two = FoldDelta(), FoldDelta()
    keys = [CountKey("e", 1, variant, 0, 1, 10) for variant in "abc"]
    for key in keys:
        one.counts[key] = Counts(requests=1, latency={2: 1, 1: 1})
    for key in reversed(keys):
        two.counts[key] = Counts(requests=1, latency={1: 1, 2: 1})
    assert encode(one) == encode(two)


def test_exposures_go_into_two_batches_when_their_times_are_far_apart() -> None:
    rows = [Exposure(5, 1, 1), Exposure(2**40, 2, 2), Exposure(7, 3, 3)]
    delta = FoldDelta(exposures={KEY: ExposureRows(rows)})
    message = to_message(delta)
    assert len(message.exposures) == 2
    assert sorted(decode(message.SerializeToString()).exposures[KEY]) == sorted(rows)


@pytest.mark.parametrize(
    "batch",
    [
        DeltaBatch(counts=[CountDelta(latency_bins=[1, 2], latency_counts=[1])]),
        DeltaBatch(first_bad=[FirstBadDelta(unit_hashes=b"1234567")]),
        DeltaBatch(exposures=[ExposureBatch(unit_hashes=bytes(8))]),
        DeltaBatch(exposures=[ExposureBatch(unit_hashes=bytes(8), request_hashes=bytes(8))]),
    ],
)
def test_batch_is_refused_when_its_arrays_disagree(batch: DeltaBatch) -> None:
    with pytest.raises(MalformedDelta):
        decode(batch.SerializeToString())


def test_bytes_are_refused_when_they_are_no_batch() -> None:
    with pytest.raises(MalformedDelta):
        decode(b"\xff\xff")


def test_batches_are_numbered_from_one_and_kept_until_acknowledged() -> None:
    log = DeltaLog("i-1")
    batches = [log.append(full(), created_ms=n) for n in range(3)]
    assert [(b.instance_id, b.seq, b.created_unix_ms) for b in batches] == [
        ("i-1", 1, 0), ("i-1", 2, 1), ("i-1", 3, 2),
    ]  # fmt: skip
    log.ack("i-1", 2)
    assert [batch.seq for batch in log.pending()] == [1, 3]
    log.ack("i-1", 2)
    log.ack("i-1", 99)
    log.ack("i-0", 1)
    assert [batch.seq for batch in log.pending()] == [1, 3]
    assert log.append(FoldDelta(), created_ms=3).seq == 4
    assert log.dropped == 0


def test_oldest_batches_are_dropped_and_counted_when_there_are_too_many() -> None:
    log = DeltaLog("i-1")
    for created_ms in range(deltas.PENDING_BATCHES_MAX + 5):
        log.append(FoldDelta(), created_ms)
    assert log.dropped == 5
    assert log.pending()[0].seq == 6
    assert len(log.pending()) == deltas.PENDING_BATCHES_MAX


def test_oldest_batches_are_dropped_when_they_are_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = to_message(full()).ByteSize()
    monkeypatch.setattr(deltas, "PENDING_BYTES_MAX", 3 * (size + 20))
    log = DeltaLog("i-1")
    for created_ms in range(10):
        log.append(full(), created_ms)
    assert [batch.seq for batch in log.pending()] == [8, 9, 10]
    monkeypatch.setattr(deltas, "PENDING_BYTES_MAX", 1)
    log.append(full(), 11)
    assert [batch.seq for batch in log.pending()] == [11], "the newest always stays"


def test_batches_of_an_earlier_run_come_first_and_keep_their_number() -> None:
    earlier = DeltaLog("i-0")
    left = [(earlier.append(full(), 0), None), (earlier.append(full(), 1), Accounted(5, 6))]
    log = DeltaLog("i-1")
    log.carry(left)
    log.append(FoldDelta(), 2)
    numbers = [(batch.instance_id, batch.seq) for batch in log.pending()]
    assert numbers == [("i-0", 1), ("i-0", 2), ("i-1", 1)]
    assert [entry.accounted for entry in log.entries()] == [None, Accounted(5, 6), None]
    log.ack("i-0", 1)
    log.ack("i-1", 1)
    assert [(batch.instance_id, batch.seq) for batch in log.pending()] == [("i-0", 2)]
