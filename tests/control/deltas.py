"""Makes the deltas, exposures and facts that evidence is tested with."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from turnout.contract import FIRST_BAD_SLOT_S, TIME_BUCKET_S
from turnout.v1alpha1.common_pb2 import BAD_EVENT_KIND_ERROR, BadEventKind
from turnout.v1alpha1.config_service_pb2 import (
    ROLE_SERVED,
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

START_MS = 1_800_000_000_000
EPOCH_START_MS = START_MS - 600_000


def hashes(values: Iterable[int]) -> bytes:
    """Packed as deltas carry them."""
    return b"".join(struct.pack("<Q", value) for value in values)


def count(
    variant: str = "control",
    *,
    experiment: str = "exp",
    epoch: int = 1,
    role: Role.ValueType = ROLE_SERVED,
    at_ms: int = START_MS,
    requests: int = 10,
    errors: int = 0,
    latency: dict[int, int] | None = None,
    sum_ms: float = 0.0,
    first_bad_ms: int = 0,
) -> CountDelta:
    """One count delta."""
    bins = latency or {}
    return CountDelta(
        experiment=experiment,
        epoch=epoch,
        variant=variant,
        role=role,
        bucket_unix_s=at_ms // 1000 // TIME_BUCKET_S * TIME_BUCKET_S,
        decided=requests,
        requests=requests,
        errors=errors,
        latency_bins=list(bins),
        latency_counts=list(bins.values()),
        latency_sum_ms=sum_ms,
        first_bad_unix_ms=first_bad_ms,
    )


def cell(
    variant: str = "control",
    requests: Mapping[int, int] = MappingProxyType({}),
    *,
    experiment: str = "exp",
    epoch: int = 1,
    stratum: int = 0,
    errors: Mapping[int, int] = MappingProxyType({}),
    slow: Mapping[int, int] = MappingProxyType({}),
    over: Mapping[float, Mapping[int, int]] = MappingProxyType({}),
    warm_up: int = 0,
) -> CellDelta:
    """One delta of a cell: bucket -> requests, and of them ..."""
    return CellDelta(
        experiment=experiment,
        epoch=epoch,
        variant=variant,
        stratum=stratum,
        requests=buckets(requests),
        errors=buckets(errors),
        slow=buckets(slow),
        over=[LatencyExceedance(threshold_ms=t, requests=buckets(o)) for t, o in over.items()],
        warm_up=warm_up,
    )


def buckets(counts: Mapping[int, int]) -> BucketCounts:
    """Counts by bucket as deltas carry them."""
    found = sorted(counts)
    return BucketCounts(
        buckets=b"".join(struct.pack("<H", bucket) for bucket in found),
        counts=[counts[bucket] for bucket in found],
    )


def sampled(
    variant: str,
    units: Iterable[int],
    *,
    experiment: str = "exp",
    epoch: int = 1,
    stratum: int = 0,
    shift: int = 0,
) -> UnitDelta:
    """Exposed units of the sample."""
    return UnitDelta(
        experiment=experiment,
        epoch=epoch,
        variant=variant,
        stratum=stratum,
        sample_shift=shift,
        unit_hashes=hashes(units),
    )


def first_bad(
    variant: str,
    units: Iterable[int],
    *,
    slot: int = 0,
    kind: BadEventKind.ValueType = BAD_EVENT_KIND_ERROR,
    sample_shift: int = 0,
    epoch: int = 1,
) -> FirstBadDelta:
    """First bad events of units."""
    return FirstBadDelta(
        experiment="exp",
        epoch=epoch,
        variant=variant,
        kind=kind,
        slot=slot,
        sample_shift=sample_shift,
        unit_hashes=hashes(units),
    )


def exposures(
    variant: str,
    rows: Iterable[tuple[int, int]],
    *,
    experiment: str = "exp",
    epoch: int = 1,
    forced: bool = False,
    at_ms: int = START_MS,
) -> ExposureBatch:
    """Exposures of (request hash, unit hash), a millisecond apart."""
    pairs = list(rows)
    return ExposureBatch(
        experiment=experiment,
        epoch=epoch,
        variant=variant,
        forced=forced,
        base_unix_ms=at_ms,
        request_hashes=hashes(request for request, _ in pairs),
        unit_hashes=hashes(unit for _, unit in pairs),
        offset_ms=list(range(len(pairs))),
    )


def batch(
    seq: int,
    *,
    instance: str = "i",
    counts: Iterable[CountDelta] = (),
    bad: Iterable[FirstBadDelta] = (),
    targets: Iterable[TargetDelta] = (),
    exposed: Iterable[ExposureBatch] = (),
    cells: Iterable[CellDelta] = (),
    units: Iterable[UnitDelta] = (),
) -> DeltaBatch:
    """One numbered delta."""
    return DeltaBatch(
        instance_id=instance,
        seq=seq,
        created_unix_ms=START_MS,
        counts=counts,
        first_bad=bad,
        targets=targets,
        exposures=exposed,
        cells=cells,
        units=units,
    )


def slot_ms(slot: int) -> int:
    """When a slot of an epoch that began at EPOCH_START_MS begins."""
    return EPOCH_START_MS + slot * FIRST_BAD_SLOT_S * 1000
