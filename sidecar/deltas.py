"""Increments as bytes, and as numbered batches that are kept until they are acknowledged.

Owns the encoding of a FoldDelta (the same between worker and supervisor as on the config stream)
and the queue of batches. Refuses bytes that do not decode. Sending is the caller's.
"""

import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from sidecar.increments import (
    ANSWER_COUNTS,
    CellCounts,
    CellKey,
    CountKey,
    Counts,
    ExposureKey,
    ExposureRows,
    FirstBad,
    FoldDelta,
    SlotKey,
    TargetCounts,
    UnitSample,
)
from sidecar.unstamped import Accounted
from turnout.contract import BUCKET_INCREMENT_MAX, UNIT_BUCKETS
from turnout.v1alpha1.common_pb2 import BadEventKind
from turnout.v1alpha1.config_service_pb2 import (
    BucketCounts,
    CellDelta,
    CountDelta,
    DeltaBatch,
    ExposureBatch,
    FirstBadDelta,
    LatencyExceedance,
    Role,
    TargetDelta,
    UnitDelta,
)

# A batch a second: ten minutes without the control plane. With 200 exposures a second that is 4 MB,
# at the most 600 x 2.6 MB; the byte limit stops before.
PENDING_BATCHES_MAX: Final = 600
PENDING_BYTES_MAX: Final = 64 * 1024 * 1024
_HASH_BYTES: Final = 8
# Offsets of one exposure batch fit into 32 bits: rows that are further apart go into two batches.
_SPAN_BITS: Final = 31


class MalformedDelta(ValueError):
    """The bytes are not an encoded delta."""


# -- Encoding -------------------------------------------------------------------------------------


def encode(delta: FoldDelta) -> bytes:
    """A delta as bytes, from worker to supervisor."""
    return to_message(delta).SerializeToString()


def decode(data: bytes) -> FoldDelta:
    """The delta of `encode`.

    Raises:
        MalformedDelta: The bytes are not one.
    """
    try:
        return from_message(DeltaBatch.FromString(data))
    except DecodeError as error:
        raise MalformedDelta("not an encoded DeltaBatch") from error


def to_message(delta: FoldDelta) -> DeltaBatch:
    """A delta as a batch without number; sorted, so that equal deltas are equal messages."""
    batch = DeltaBatch(
        exposures_dropped=delta.exposures_dropped,
        repeated_requests=delta.repeated_requests,
        malformed_stamps=delta.malformed_stamps,
    )
    batch.counts.extend(_count_delta(key, delta.counts[key]) for key in sorted(delta.counts))
    batch.cells.extend(_cell_delta(key, delta.cells[key]) for key in sorted(delta.cells))
    for epoch in sorted(delta.units):
        batch.units.extend(_unit_deltas(epoch, delta.units[epoch]))
    for slot in sorted(delta.first_bad):
        batch.first_bad.extend(_first_bad_deltas(slot, delta.first_bad[slot]))
    batch.targets.extend(_target_delta(name, delta.targets[name]) for name in sorted(delta.targets))
    for key in sorted(delta.exposures):
        batch.exposures.extend(_exposure_batches(key, delta.exposures[key]))
    return batch


def from_message(batch: DeltaBatch) -> FoldDelta:
    """The delta of a batch.

    Raises:
        MalformedDelta: Packed arrays do not agree in length.
    """
    delta = FoldDelta(
        exposures_dropped=batch.exposures_dropped,
        repeated_requests=batch.repeated_requests,
        malformed_stamps=batch.malformed_stamps,
    )
    for message in batch.counts:
        delta.counts.setdefault(_count_key(message), Counts()).merge(_counts(message))
    for cell in batch.cells:
        cell_key = CellKey(cell.experiment, cell.epoch, cell.variant, cell.stratum)
        delta.cells.setdefault(cell_key, CellCounts()).merge(_cell_counts(cell))
    for units in batch.units:
        sample = delta.units.setdefault((units.experiment, units.epoch), UnitSample())
        sample.shift = max(sample.shift, units.sample_shift)
        group = (units.variant, units.stratum)
        sample.units.setdefault(group, set()).update(_unpack(units.unit_hashes))
    for bad in batch.first_bad:
        key = SlotKey(bad.experiment, bad.epoch, bad.kind, bad.slot)
        first_bad = delta.first_bad.setdefault(key, FirstBad())
        first_bad.shift = max(first_bad.shift, bad.sample_shift)
        first_bad.units.setdefault(bad.variant, set()).update(_unpack(bad.unit_hashes))
    for target in batch.targets:
        answers = delta.targets.setdefault(target.target, TargetCounts())
        answers.merge(_target_counts(target))
    for exposures in batch.exposures:
        rows = delta.exposures.setdefault(_exposure_key(exposures), ExposureRows())
        rows.extend(_exposure_rows(exposures))
    return delta


def _count_delta(key: CountKey, counts: Counts) -> CountDelta:
    bins = sorted(counts.latency)
    return CountDelta(
        experiment=key.experiment,
        epoch=key.epoch,
        variant=key.variant,
        stratum=key.stratum,
        role=Role.ValueType(key.role),
        bucket_unix_s=key.bucket_s,
        decided=counts.decided,
        requests=counts.requests,
        errors=counts.errors,
        slow=counts.slow,
        client_cancelled=counts.client_cancelled,
        client_errors=counts.client_errors,
        latency_bins=bins,
        latency_counts=[counts.latency[index] for index in bins],
        latency_sum_ms=counts.latency_sum_ms,
        latency_zero=counts.latency_zero,
        first_bad_unix_ms=counts.first_bad_ms,
        forced=counts.forced,
    )


def _count_key(message: CountDelta) -> CountKey:
    return CountKey(
        message.experiment,
        message.epoch,
        message.variant,
        message.stratum,
        message.role,
        message.bucket_unix_s,
    )


def _counts(message: CountDelta) -> Counts:
    if len(message.latency_bins) != len(message.latency_counts):
        raise MalformedDelta("latency_bins and latency_counts differ in length")
    return Counts(
        decided=message.decided,
        requests=message.requests,
        errors=message.errors,
        slow=message.slow,
        client_cancelled=message.client_cancelled,
        client_errors=message.client_errors,
        latency=dict(zip(message.latency_bins, message.latency_counts, strict=True)),
        latency_zero=message.latency_zero,
        latency_sum_ms=message.latency_sum_ms,
        first_bad_ms=message.first_bad_unix_ms,
        forced=message.forced,
    )


def _cell_delta(key: CellKey, counts: CellCounts) -> CellDelta:
    return CellDelta(
        experiment=key.experiment,
        epoch=key.epoch,
        variant=key.variant,
        stratum=key.stratum,
        requests=_buckets(counts.requests),
        errors=_buckets(counts.errors),
        slow=_buckets(counts.slow),
        over=[
            LatencyExceedance(threshold_ms=limit_ms, requests=_buckets(counts.over[limit_ms]))
            for limit_ms in sorted(counts.over)
        ],
        warm_up=counts.warm_up,
    )


def _buckets(counts: Mapping[int, int]) -> BucketCounts | None:
    if not counts:
        return None
    buckets = sorted(counts)
    return BucketCounts(
        buckets=struct.pack(f"<{len(buckets)}H", *buckets),
        counts=[min(counts[bucket], BUCKET_INCREMENT_MAX - 1) for bucket in buckets],
    )


def _cell_counts(message: CellDelta) -> CellCounts:
    return CellCounts(
        requests=_bucket_counts(message.requests),
        errors=_bucket_counts(message.errors),
        slow=_bucket_counts(message.slow),
        over={over.threshold_ms: _bucket_counts(over.requests) for over in message.over},
        warm_up=message.warm_up,
    )


def _bucket_counts(message: BucketCounts) -> dict[int, int]:
    counts = message.counts
    if len(message.buckets) != 2 * len(counts):
        raise MalformedDelta("buckets and counts differ in length")
    buckets = struct.unpack(f"<{len(counts)}H", message.buckets)
    if buckets and max(buckets) >= UNIT_BUCKETS:
        raise MalformedDelta(f"bucket {max(buckets)}, must be below {UNIT_BUCKETS}")
    return dict(zip(buckets, counts, strict=True))


def _unit_deltas(epoch: tuple[str, int], sample: UnitSample) -> Iterator[UnitDelta]:
    for variant, stratum in sorted(sample.units):
        yield UnitDelta(
            experiment=epoch[0],
            epoch=epoch[1],
            variant=variant,
            stratum=stratum,
            sample_shift=sample.shift,
            unit_hashes=_pack(sorted(sample.units[variant, stratum])),
        )


def _first_bad_deltas(slot: SlotKey, first_bad: FirstBad) -> Iterator[FirstBadDelta]:
    for variant in sorted(first_bad.units):
        yield FirstBadDelta(
            experiment=slot.experiment,
            epoch=slot.epoch,
            variant=variant,
            kind=BadEventKind.ValueType(slot.kind),
            slot=slot.slot,
            sample_shift=first_bad.shift,
            unit_hashes=_pack(sorted(first_bad.units[variant])),
        )


def _target_delta(target: str, counts: TargetCounts) -> TargetDelta:
    message = TargetDelta(target=target, unstamped=counts.unstamped)
    for name in ANSWER_COUNTS:
        setattr(message, name, getattr(counts, name))
    return message


def _target_counts(message: TargetDelta) -> TargetCounts:
    counts = TargetCounts(unstamped=dict(message.unstamped))
    for name in ANSWER_COUNTS:
        setattr(counts, name, getattr(message, name))
    return counts


def _exposure_batches(key: ExposureKey, rows: ExposureRows) -> Iterator[ExposureBatch]:
    times_ms = rows.times_ms
    if not times_ms:
        return
    base_ms = min(times_ms)
    if (max(times_ms) - base_ms) >> _SPAN_BITS:
        for span in _spans(rows):
            yield from _exposure_batches(key, span)
        return
    yield ExposureBatch(
        experiment=key.experiment,
        epoch=key.epoch,
        variant=key.variant,
        stratum=key.stratum,
        forced=key.forced,
        base_unix_ms=base_ms,
        unit_hashes=_little(rows.units),
        request_hashes=_little(rows.requests),
        offset_ms=[time_ms - base_ms for time_ms in times_ms],
    )


def _spans(rows: ExposureRows) -> Iterable[ExposureRows]:
    spans: dict[int, ExposureRows] = {}
    for row in rows:
        spans.setdefault(row.time_ms >> _SPAN_BITS, ExposureRows()).append(row)
    return spans.values()


def _exposure_key(message: ExposureBatch) -> ExposureKey:
    return ExposureKey(
        message.experiment, message.epoch, message.variant, message.stratum, message.forced
    )


def _exposure_rows(message: ExposureBatch) -> ExposureRows:
    base_ms, rows = message.base_unix_ms, ExposureRows()
    try:
        rows.times_ms.extend([base_ms + offset_ms for offset_ms in message.offset_ms])
    except OverflowError as error:
        raise MalformedDelta(f"base_unix_ms == {base_ms}, offsets beyond 64 bits") from error
    rows.units.frombytes(_whole(message.unit_hashes))
    rows.requests.frombytes(_whole(message.request_hashes))
    if sys.byteorder == "big":
        rows.units.byteswap()
        rows.requests.byteswap()
    if not len(rows.units) == len(rows.requests) == len(rows.times_ms):
        raise MalformedDelta("unit_hashes, request_hashes and offset_ms differ in length")
    return rows


def _little(hashes: "array[int]") -> bytes:
    if sys.byteorder == "big":
        hashes = hashes[:]
        hashes.byteswap()
    return hashes.tobytes()


def _pack(hashes: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(hashes)}Q", *hashes)


def _whole(data: bytes) -> bytes:
    if len(data) % _HASH_BYTES:
        raise MalformedDelta(f"packed hashes have {len(data)} bytes, not a multiple of 8")
    return data


def _unpack(data: bytes) -> tuple[int, ...]:
    _whole(data)
    return struct.unpack(f"<{len(data) // _HASH_BYTES}Q", data)


# -- The queue ------------------------------------------------------------------------------------


class Pending(NamedTuple):
    """A batch that is not acknowledged.

    Attributes:
        batch: With its instance and number.
        accounted: How far Envoy's own counter is in this batch and those before it.
        size: Bytes of the batch.
    """

    batch: DeltaBatch
    accounted: Accounted | None
    size: int


class DeltaLog:
    """Numbered batches, kept until the control plane has them on disk.

    They are those of one supervisor's life, and before them what an earlier one left behind: each
    under the instance and number it was made with, so that sending it twice changes nothing.
    """

    def __init__(self, instance_id: str) -> None:
        """Begin at number 1.

        Args:
            instance_id: Random for each start; numbers are unique within it.
        """
        self.instance_id = instance_id
        # Batches that were thrown away unacknowledged since the start.
        self.dropped = 0
        self._next_seq = 1
        # By (instance, seq), oldest first.
        self._pending: dict[tuple[str, int], Pending] = {}
        self._pending_bytes = 0

    def carry(self, batches: Iterable[tuple[DeltaBatch, Accounted | None]]) -> None:
        """Take over what an earlier supervisor left, oldest first; before any `append`."""
        for batch, accounted in batches:
            self._keep(batch, accounted)

    def append(
        self, delta: FoldDelta, created_ms: int, accounted: Accounted | None = None
    ) -> DeltaBatch:
        """Number a delta and keep it; the oldest batches give way when there are too many.

        Args:
            delta: May be empty: a batch that says "nothing happened" shows that we are alive.
            created_ms: Unix time.
            accounted: How far Envoy's counter is in the batches, this one included.
        """
        batch = to_message(delta)
        batch.instance_id = self.instance_id
        batch.seq = self._next_seq
        batch.created_unix_ms = created_ms
        self._next_seq += 1
        self._keep(batch, accounted)
        return batch

    def ack(self, instance_id: str, seq: int) -> None:
        """Forget one batch, which the control plane has on disk; unknown ones change nothing."""
        if (instance_id, seq) in self._pending:
            self._forget((instance_id, seq))

    def pending(self) -> list[DeltaBatch]:
        """Unacknowledged batches, oldest first: what to send again on a new stream."""
        return [entry.batch for entry in self._pending.values()]

    def entries(self) -> list[Pending]:
        """The same, with what is known of them."""
        return list(self._pending.values())

    def _keep(self, batch: DeltaBatch, accounted: Accounted | None) -> None:
        size = batch.ByteSize()
        self._pending[batch.instance_id, batch.seq] = Pending(batch, accounted, size)
        self._pending_bytes += size
        while len(self._pending) > 1 and (
            len(self._pending) > PENDING_BATCHES_MAX or self._pending_bytes > PENDING_BYTES_MAX
        ):
            self._forget(next(iter(self._pending)))
            self.dropped += 1

    def _forget(self, key: tuple[str, int]) -> None:
        self._pending_bytes -= self._pending.pop(key).size
