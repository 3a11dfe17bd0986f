"""The parts that evidence is made of: counts, sketches, numbers taken, room. Pure.

Every one merges by addition, union or minimum, so that order and duplicates leave no trace, and
turns into JSON that depends on its content only.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from control.rollout.seen import Sketch
from turnout.v1alpha1.config_service_pb2 import CountDelta

RANGES_MAX: Final = 1024  # runs of numbers kept of one instance
_US_PER_MS: Final = 1000


@dataclass(slots=True)
class Room:
    """What all experiments of a tenant share, and what no bound had room for.

    Attributes:
        keys: Counts in use.
        cells: Cells in use.
        cell_bytes: Of their arrays and units.
        left_out: By what was left out.
    """

    keys: int = 0
    cells: int = 0
    cell_bytes: int = 0
    left_out: dict[str, int] = field(default_factory=dict)

    def leave_out(self, what: str, count: int = 1) -> None:
        """Counts what was left out."""
        if count:
            self.left_out[what] = self.left_out.get(what, 0) + count


class Latency:
    """A DDSketch. The sum is kept in whole microseconds: floats would depend on the order."""

    __slots__ = ("bins", "sum_us", "zero")

    def __init__(self) -> None:
        self.bins: dict[int, int] = {}
        self.zero = 0
        self.sum_us = 0

    def add(self, delta: CountDelta) -> None:
        """Adds a delta's."""
        for index, count in zip(delta.latency_bins, delta.latency_counts, strict=True):
            self.bins[index] = self.bins.get(index, 0) + count
        self.zero += delta.latency_zero
        self.sum_us += round(delta.latency_sum_ms * _US_PER_MS)

    def merge(self, other: "Latency") -> None:
        """Adds another sketch."""
        for index, count in other.bins.items():
            self.bins[index] = self.bins.get(index, 0) + count
        self.zero += other.zero
        self.sum_us += other.sum_us

    def seen(self) -> Sketch:
        """Frozen, for `assess`."""
        bins = tuple(sorted((i, n) for i, n in self.bins.items() if n))
        return Sketch(bins, self.zero, self.sum_us / _US_PER_MS)

    def to_json(self) -> list[Any]:
        """As JSON; a copy, made while the loop waits: whoever encodes it sorts the bins."""
        return [self.zero, self.sum_us, dict(self.bins)]

    @classmethod
    def from_json(cls, data: list[Any]) -> "Latency":
        """Of `to_json`; the version before had the bins as one flat list."""
        latency = cls()
        latency.zero, latency.sum_us, *bins = data
        if bins and isinstance(bins[0], dict):
            latency.bins = {int(index): count for index, count in bins[0].items()}
        else:
            latency.bins = dict(zip(bins[::2], bins[1::2], strict=True))
        return latency


COUNTED: Final = (
    "decided",
    "requests",
    "errors",
    "slow",
    "client_cancelled",
    "client_errors",
    "forced",
)
JUDGED: Final = ("labelled", "correct")


class Counts:
    """Counts of one key. `first_bad_ms` is 0 before the first bad event."""

    __slots__ = (*COUNTED, *JUDGED, "first_bad_ms", "latency")

    def __init__(self) -> None:
        self.decided = self.requests = self.errors = self.slow = 0
        self.client_cancelled = self.client_errors = self.forced = 0
        self.labelled = self.correct = self.first_bad_ms = 0
        self.latency = Latency()

    def add(self, delta: CountDelta) -> None:
        """Adds a delta's."""
        for name in COUNTED:
            setattr(self, name, getattr(self, name) + getattr(delta, name))
        self.latency.add(delta)
        self.bad_at(delta.first_bad_unix_ms)

    def bad_at(self, time_ms: int) -> None:
        """There was a bad event; 0 = there was none."""
        if time_ms and (not self.first_bad_ms or time_ms < self.first_bad_ms):
            self.first_bad_ms = time_ms

    def merge(self, other: "Counts") -> None:
        """Adds another key's."""
        for name in (*COUNTED, *JUDGED):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.latency.merge(other.latency)
        self.bad_at(other.first_bad_ms)

    def to_json(self) -> list[Any]:
        """As JSON."""
        numbers = [getattr(self, name) for name in (*COUNTED, *JUDGED)]
        return [*numbers, self.first_bad_ms, self.latency.to_json()]

    @classmethod
    def from_json(cls, data: list[Any]) -> "Counts":
        """Of `to_json`."""
        counts = cls()
        for name, number in zip((*COUNTED, *JUDGED), data, strict=False):
            setattr(counts, name, number)
        counts.first_bad_ms = data[-2]
        counts.latency = Latency.from_json(data[-1])
        return counts


class Bucket:
    """One time bucket of a variant; `latency` is let go earlier than the counts."""

    __slots__ = ("errors", "latency", "requests")

    def __init__(self) -> None:
        self.requests = self.errors = 0
        self.latency: Latency | None = None


class Numbers:
    """Which numbers of one instance were taken: sorted, disjoint, not adjacent runs."""

    __slots__ = ("runs", "seen_ms")

    def __init__(self) -> None:
        self.runs: list[list[int]] = []
        self.seen_ms = 0

    def has(self, seq: int) -> bool:
        """Whether it was taken (or given up)."""
        return any(first <= seq <= last for first, last in reversed(self.runs))

    def add(self, seq: int) -> int:
        """Takes a new number; returns how many gaps had to be given up."""
        place = len(self.runs)
        while place and self.runs[place - 1][0] > seq:
            place -= 1
        self.runs.insert(place, [seq, seq])
        for right in (place + 1, place):  # joins with its neighbours
            if 0 < right < len(self.runs) and self.runs[right - 1][1] + 1 == self.runs[right][0]:
                self.runs[right - 1][1] = self.runs.pop(right)[1]
        if len(self.runs) <= RANGES_MAX:
            return 0
        self.runs[0][1] = self.runs.pop(1)[1]
        return 1


def buckets_to_json(buckets: Mapping[int, Bucket]) -> list[list[Any]]:
    """Buckets by start, as JSON."""
    return [
        [start_s, b.requests, b.errors, b.latency.to_json() if b.latency else None]
        for start_s, b in sorted(buckets.items())
    ]


def buckets_from_json(rows: list[list[Any]]) -> dict[int, Bucket]:
    """Of `buckets_to_json`."""
    buckets = {}
    for start_s, requests, errors, latency in rows:
        bucket = buckets[start_s] = Bucket()
        bucket.requests, bucket.errors = requests, errors
        bucket.latency = Latency.from_json(latency) if latency is not None else None
    return buckets


def pack64(data: bytes) -> str:
    """Bytes as JSON takes them."""
    return base64.b64encode(data).decode()
