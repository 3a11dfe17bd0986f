"""Increments between two takes: the statistics a sidecar sends up, as values that add up.

Owns their keys and how two of a kind merge. Refuses to know where they come from: `fold` counts,
`deltas` encodes.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil, log
from typing import Final, NamedTuple

from turnout.contract import LATENCY_MIN_MS, LATENCY_SKETCH_GAMMA, UNIT_BUCKETS

LOG_GAMMA: Final = log(LATENCY_SKETCH_GAMMA)

Buckets = list[int] | dict[int, int]
"""Requests by bucket of units: a number for each, or a dict that begins each at 0."""


class CountKey(NamedTuple):
    """What counts are kept by."""

    experiment: str
    epoch: int
    variant: str
    stratum: int
    role: int  # ROLE_SERVED or ROLE_SHADOW
    bucket_s: int  # Unix seconds, a multiple of TIME_BUCKET_S


@dataclass(slots=True)
class Counts:
    """Increments of one key.

    Attributes:
        decided: Answers given.
        requests: Entries folded.
        errors: Of them, failed.
        slow: Of them, longer than the epoch's limit.
        client_cancelled: Of them, not waited for; never errors.
        client_errors: Of them, 4xx; never errors.
        latency: Sketch bin -> entries.
        latency_zero: Entries below LATENCY_MIN_MS.
        latency_sum_ms: Over the entries in the sketch.
        first_bad_ms: Unix time of the earliest bad event, 0 = none.
        forced: Entries of forced assignments, in none of the other counts.
    """

    decided: int = 0
    requests: int = 0
    errors: int = 0
    slow: int = 0
    client_cancelled: int = 0
    client_errors: int = 0
    latency: dict[int, int] = field(default_factory=dict)
    latency_zero: int = 0
    latency_sum_ms: float = 0.0
    first_bad_ms: int = 0
    forced: int = 0

    def add_latency(self, latency_ms: float) -> None:
        """Put one latency into the sketch."""
        if latency_ms < LATENCY_MIN_MS:
            self.latency_zero += 1
            return
        index = ceil(log(latency_ms) / LOG_GAMMA)
        self.latency[index] = self.latency.get(index, 0) + 1
        self.latency_sum_ms += latency_ms

    def add_bad(self, time_ms: int) -> None:
        """Note the time of a bad event."""
        if not self.first_bad_ms or time_ms < self.first_bad_ms:
            self.first_bad_ms = time_ms

    def merge(self, other: "Counts") -> None:
        """Add other increments of the same key."""
        self.decided += other.decided
        self.requests += other.requests
        self.errors += other.errors
        self.slow += other.slow
        self.client_cancelled += other.client_cancelled
        self.client_errors += other.client_errors
        for index, count in other.latency.items():
            self.latency[index] = self.latency.get(index, 0) + count
        self.latency_zero += other.latency_zero
        self.latency_sum_ms += other.latency_sum_ms
        if other.first_bad_ms:
            self.add_bad(other.first_bad_ms)
        self.forced += other.forced


class CellKey(NamedTuple):
    """What counts by bucket of units are kept by."""

    experiment: str
    epoch: int
    variant: str
    stratum: int


@dataclass(slots=True)
class CellCounts:
    """Increments of one cell: served requests that were not forced, by bucket of units.

    Attributes:
        requests: Bucket -> requests that began after the epoch's warm-up.
        errors: Bucket -> of them, failed.
        slow: Bucket -> of them, longer than the epoch's limit.
        over: Threshold in milliseconds -> bucket -> of them, longer than that.
        warm_up: Requests that began in the warm-up: in none of the other counts.
    """

    requests: dict[int, int] = field(default_factory=dict)
    errors: dict[int, int] = field(default_factory=dict)
    slow: dict[int, int] = field(default_factory=dict)
    over: dict[float, dict[int, int]] = field(default_factory=dict)
    warm_up: int = 0

    def add_bad(self, bucket: int, *, failed: bool, slow: bool, exceeded: Iterable[float]) -> None:
        """Count what was not good about one request; `requests` has it already."""
        if failed:
            self.errors[bucket] = self.errors.get(bucket, 0) + 1
        if slow:
            self.slow[bucket] = self.slow.get(bucket, 0) + 1
        for threshold_ms in exceeded:
            over = self.over.setdefault(threshold_ms, {})
            over[bucket] = over.get(bucket, 0) + 1

    def merge(self, other: "CellCounts") -> None:
        """Add other increments of the same cell."""
        _add(self.requests, other.requests)
        _add(self.errors, other.errors)
        _add(self.slow, other.slow)
        for threshold_ms, counts in other.over.items():
            _add(self.over.setdefault(threshold_ms, {}), counts)
        self.warm_up += other.warm_up

    def add_requests(self, units: Buckets) -> None:
        """Add requests by bucket."""
        if isinstance(units, list):
            touched = tuple(filter(units.__getitem__, _BUCKETS))
            units = dict(zip(touched, map(units.__getitem__, touched), strict=True))
        _add(self.requests, units)


_BUCKETS: Final = range(UNIT_BUCKETS)


def _add(mine: dict[int, int], other: Mapping[int, int]) -> None:
    if not mine:
        mine.update(other)
        return
    for bucket, count in other.items():
        mine[bucket] = mine.get(bucket, 0) + count


@dataclass(slots=True)
class UnitSample:
    """Units of one epoch, by variant and stratum, that are new; a hash sample of 1 in 2^shift."""

    shift: int = 0
    units: dict[tuple[str, int], set[int]] = field(default_factory=dict)


class SlotKey(NamedTuple):
    """One slot of one lane's evidence: what a sample shift is shared by."""

    experiment: str
    epoch: int
    kind: int  # BadEventKind
    slot: int  # of FIRST_BAD_SLOT_S since the epoch began


@dataclass(slots=True)
class FirstBad:
    """Units by variant whose first bad event of a slot is new; a hash sample of 1 in 2^shift."""

    shift: int = 0
    units: dict[str, set[int]] = field(default_factory=dict)


class ExposureKey(NamedTuple):
    """What exposures are batched by."""

    experiment: str
    epoch: int
    variant: str
    stratum: int
    forced: bool


class Exposure(NamedTuple):
    """One stamped and served request."""

    time_ms: int
    unit_hash: int
    request_hash: int  # 0 = it had no id


class ExposureRows:
    """Exposures of one key as columns, 24 bytes a row: nothing that the collector looks at.

    Attributes:
        times_ms: Unix time of each.
        units: Unit hash of each.
        requests: Request hash of each.
    """

    __slots__ = ("requests", "times_ms", "units")

    def __init__(self, rows: Iterable[Exposure] = ()) -> None:
        """Take over rows.

        Raises:
            OverflowError: A number has more than 64 bits.
        """
        self.times_ms = array("q")
        self.units = array("Q")
        self.requests = array("Q")
        for row in rows:
            self.append(row)

    def append(self, row: Exposure) -> None:
        """Add a row at the end."""
        self.times_ms.append(row.time_ms)
        self.units.append(row.unit_hash)
        self.requests.append(row.request_hash)

    def extend(self, other: "ExposureRows") -> None:
        """Add all rows of another at the end."""
        self.times_ms.extend(other.times_ms)
        self.units.extend(other.units)
        self.requests.extend(other.requests)

    def __iter__(self) -> Iterator[Exposure]:
        return map(Exposure, self.times_ms, self.units, self.requests)

    def __len__(self) -> int:
        return len(self.times_ms)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExposureRows):
            return NotImplemented
        return (
            self.times_ms == other.times_ms
            and self.units == other.units
            and self.requests == other.requests
        )

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"ExposureRows({list(self)!r})"


@dataclass(slots=True)
class TargetCounts:
    """Answers and missing answers of one target; the fields are TargetDelta's."""

    answered: int = 0
    no_snapshot: int = 0
    shed: int = 0
    no_unit: int = 0
    not_in_segment: int = 0
    invalid_unit: int = 0
    duplicate_unit: int = 0
    waiting: int = 0
    held_out: int = 0
    not_in_layer: int = 0
    invalid_token: int = 0
    peer: int = 0
    unstamped: dict[str, int] = field(default_factory=dict)

    def merge(self, other: "TargetCounts") -> None:
        """Add other increments of the same target."""
        for name in ANSWER_COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, count in other.unstamped.items():
            self.unstamped[reason] = self.unstamped.get(reason, 0) + count


ANSWER_COUNTS: Final = (
    "answered", "no_snapshot", "shed", "no_unit", "not_in_segment", "invalid_unit",
    "duplicate_unit", "waiting", "held_out", "not_in_layer", "invalid_token", "peer",
)  # fmt: skip


@dataclass(slots=True)
class FoldDelta:
    """All increments between two takes. False when there are none.

    Attributes:
        counts: By key.
        cells: Served ones by bucket of units.
        units: By (experiment, epoch); a worker has none, its exposures say which there were.
        first_bad: New first bad events by slot.
        targets: Answers by target; "" is the Envoy as a whole.
        exposures: Rows in order of arrival.
        exposures_dropped: Beyond EXPOSURES_MAX.
        repeated_requests: Entries whose request id had been exposed before.
        malformed_stamps: Entries whose stamp or marker no sidecar wrote.
    """

    counts: dict[CountKey, Counts] = field(default_factory=dict)
    cells: dict[CellKey, CellCounts] = field(default_factory=dict)
    units: dict[tuple[str, int], UnitSample] = field(default_factory=dict)
    first_bad: dict[SlotKey, FirstBad] = field(default_factory=dict)
    targets: dict[str, TargetCounts] = field(default_factory=dict)
    exposures: dict[ExposureKey, ExposureRows] = field(default_factory=dict)
    exposures_dropped: int = 0
    repeated_requests: int = 0
    malformed_stamps: int = 0

    def __bool__(self) -> bool:
        return bool(
            self.counts
            or self.cells
            or self.units
            or self.first_bad
            or self.targets
            or self.exposures
            or self.exposures_dropped
            or self.repeated_requests
            or self.malformed_stamps
        )
