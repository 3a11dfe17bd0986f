"""What is known of one experiment: its counts, cells, buckets and first bad events. Pure.

Owns what `assess` looks at, by epoch. Refuses to know tenants, deltas' numbers and checkpoints:
`control.evidence` merges each delta once, and keeps the bytes.
"""

import base64
import struct
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from control.cellbook import EPOCHS_KEPT, CellBook
from control.outcomes import FailedTrace, Observation, Value
from control.rollout.cells import CellKey
from control.rollout.lanes import SLOT_MS, BlockTracker
from control.rollout.seen import BucketSeen, Exemplar, Sketch, VariantSeen, WindowSeen
from control.rollout.words import Kind
from control.tallies import (
    Bucket,
    Counts,
    Latency,
    Room,
    buckets_from_json,
    buckets_to_json,
    pack64,
)
from turnout.contract import TIME_BUCKET_S
from turnout.v1alpha1 import common_pb2
from turnout.v1alpha1.config_service_pb2 import (
    ROLE_SERVED,
    ROLE_SHADOW,
    CountDelta,
    FirstBadDelta,
    UnitDelta,
)

KEYS_MAX: Final = 50_000  # of all experiments of a tenant
BUCKETS_MS: Final = 24 * 3600 * 1000  # the longest safety window
BUCKETS_AHEAD_MS: Final = 3600 * 1000  # a bucket further in the future comes from a wrong clock
BUCKET_SKETCHES_MS: Final = 3600 * 1000  # breakers look at single buckets' latency, not far back
EXEMPLARS_MAX: Final = 5
TRACE_ID_DIGITS: Final = 32  # then come those of the span
WAITING_WRONG_MAX: Final = 65_536
# A slot is one bit of a number per unit: a wild one would be a number of gigabytes.
SLOTS_AHEAD: Final = 60
SLOTS_UNBEGUN_MAX: Final = 7 * 24 * 60

KINDS: Final = {
    common_pb2.BAD_EVENT_KIND_ERROR: Kind.ERROR,
    common_pb2.BAD_EVENT_KIND_SLOW: Kind.SLOW,
    common_pb2.BAD_EVENT_KIND_WRONG: Kind.WRONG,
}


class CountKey(NamedTuple):
    """What counts are kept by."""

    epoch: int
    variant: str
    stratum: int
    role: int


class Findings:
    """Evidence of one experiment."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._counts: dict[CountKey, Counts] = {}
        # (epoch, variant, role) -> bucket's start in seconds -> bucket
        self._buckets: dict[tuple[int, str, int], dict[int, Bucket]] = {}
        self._starts: dict[int, int] = {}
        self._shadow_judged: dict[int, list[int]] = {}
        # Wrong answers of epochs whose start is not known yet: (time, variant, unit).
        self._waiting_wrong: dict[int, set[tuple[int, str, int]]] = {}
        # (epoch, variant, kind) -> (time, ids of trace and span), the youngest few.
        self._exemplars: dict[tuple[int, str, str], set[tuple[int, str]]] = {}
        self.trackers: dict[int, BlockTracker] = {}
        self.cells = CellBook(room)
        # What `variants` said, until something is added.
        self._said: dict[int | None, dict[str, VariantSeen]] = {}
        self.targets_at_start: dict[str, dict[str, int]] | None = None

    # -- Adding ------------------------------------------------------------------------------------

    def has_begun(self, epoch: int) -> bool:
        """Whether the start of this epoch is known."""
        return epoch in self._starts

    def begin(self, epoch: int, start_ms: int, now_ms: int, warm_up_ms: int = 0) -> None:
        """The start of an epoch is known now; the first one that is said stands."""
        self._starts.setdefault(epoch, start_ms)
        for time_ms, variant, unit in sorted(self._waiting_wrong.pop(epoch, ())):
            self._add_wrong(epoch, variant, unit, time_ms, now_ms)
        for table in (
            self.trackers,
            self._starts,
            self._shadow_judged,
            self._waiting_wrong,
        ):
            _forget_oldest(table, EPOCHS_KEPT)
        self._said.clear()
        self.cells.begin(epoch, self._starts.get(epoch, start_ms), warm_up_ms, self._starts)

    def add_count(self, delta: CountDelta, received_ms: int, now_ms: int) -> None:
        """Adds counts; to their time bucket, too, unless a wrong clock made it."""
        key = CountKey(delta.epoch, delta.variant, delta.stratum, int(delta.role))
        counts = self._counts_of(key)
        if counts is None:
            return
        self._said.clear()
        counts.add(delta)
        if delta.role == ROLE_SERVED:
            self.cells.add_count(delta)
        start_ms = delta.bucket_unix_s * 1000
        if start_ms > received_ms + BUCKETS_AHEAD_MS:
            self._room.leave_out("buckets_ahead")
            return
        start_s = delta.bucket_unix_s - delta.bucket_unix_s % TIME_BUCKET_S
        buckets = self._buckets.setdefault((key.epoch, key.variant, key.role), {})
        bucket = buckets.setdefault(start_s, Bucket())
        bucket.requests += delta.requests
        bucket.errors += delta.errors
        if start_ms >= now_ms - BUCKET_SKETCHES_MS:
            bucket.latency = bucket.latency or Latency()
            bucket.latency.add(delta)

    def add_first_bad(self, delta: FirstBadDelta, received_ms: int) -> None:
        """Unites first bad events of units; a slot that no clock could give is left out."""
        start_ms = self._starts.get(delta.epoch)
        latest = SLOTS_UNBEGUN_MAX
        if start_ms is not None:
            latest = max(0, received_ms - start_ms) // SLOT_MS + SLOTS_AHEAD
        tracker = self._tracker(delta.epoch)
        if delta.slot > latest or tracker is None:
            self._room.leave_out("first_bad", len(delta.unit_hashes) // 8)
            return
        tracker.add(
            KINDS[delta.kind],
            delta.slot,
            delta.variant,
            [unit for (unit,) in struct.iter_unpack("<Q", delta.unit_hashes)],
            delta.sample_shift,
        )

    def add_observation(self, seen: Observation, now_ms: int) -> None:
        """Counts one judged answer; a wrong one is a bad event of its unit."""
        if seen.shadow:
            self._said.clear()
            judged = self._shadow_judged.setdefault(seen.epoch, [0, 0])
            judged[0] += 1
            judged[1] += seen.correct
            return
        counts = self._counts_of(CountKey(seen.epoch, seen.variant, seen.stratum, ROLE_SERVED))
        if counts is None:
            return
        self._said.clear()
        self.cells.add_observation(seen)
        counts.labelled += 1
        counts.correct += seen.correct
        if not seen.correct:
            counts.bad_at(seen.time_ms)
            self._add_wrong(seen.epoch, seen.variant, seen.unit, seen.time_ms, now_ms)
            self._add_exemplar(seen.epoch, seen.variant, Kind.WRONG, seen.time_ms, seen.trace)

    def add_units(self, delta: UnitDelta) -> None:
        """Unites exposed units."""
        self._said.clear()
        self.cells.add_units(delta)

    def add_value(self, value: Value) -> None:
        """Counts a score or a cost of a served request."""
        self.cells.add_value(value)

    def add_failed(self, failed: FailedTrace) -> None:
        """Keeps the trace of a request that ended in an error, while it is among the youngest."""
        self._add_exemplar(failed.epoch, failed.variant, Kind.ERROR, failed.time_ms, failed.trace)

    def _counts_of(self, key: CountKey) -> Counts | None:
        counts = self._counts.get(key)
        if counts is None:
            if self._room.keys >= KEYS_MAX:
                self._room.leave_out("keys")
                return None
            self._room.keys += 1
            counts = self._counts[key] = Counts()
        return counts

    def _add_wrong(self, epoch: int, variant: str, unit: int, time_ms: int, now_ms: int) -> None:
        start_ms = self._starts.get(epoch)
        if start_ms is None:
            waiting = self._waiting_wrong.setdefault(epoch, set())
            if len(waiting) < WAITING_WRONG_MAX:
                waiting.add((time_ms, variant, unit))
            else:
                self._room.leave_out("first_bad")
            return
        tracker = self._tracker(epoch)
        if tracker is None or time_ms > now_ms + BUCKETS_AHEAD_MS:
            self._room.leave_out("first_bad")
            return
        tracker.add(Kind.WRONG, max(0, time_ms - start_ms) // SLOT_MS, variant, (unit,))

    def _add_exemplar(
        self, epoch: int, variant: str, kind: Kind, time_ms: int, trace: bytes
    ) -> None:
        if not trace:
            return
        kept = self._exemplars.setdefault((epoch, variant, kind.value), set())
        kept.add((time_ms, trace.hex()))
        if len(kept) > EXEMPLARS_MAX:
            kept.discard(min(kept))

    def _tracker(self, epoch: int) -> BlockTracker | None:
        """The epoch's lanes, None when it is too old to have any."""
        tracker = self.trackers.get(epoch)
        if tracker is None and _is_recent(epoch, self.trackers, EPOCHS_KEPT):
            tracker = self.trackers[epoch] = BlockTracker()
            _forget_oldest(self.trackers, EPOCHS_KEPT)
        return tracker

    # -- Letting go --------------------------------------------------------------------------------

    def prune(self, now_ms: int) -> None:
        """Lets go old buckets: what stays depends on the latest time, not on when this runs."""
        oldest_s = -(-(now_ms - BUCKETS_MS) // 1000)
        sketches_s = -(-(now_ms - BUCKET_SKETCHES_MS) // 1000)
        for key, buckets in list(self._buckets.items()):
            for start_s in [s for s in buckets if s < oldest_s]:
                del buckets[start_s]
            for start_s, bucket in buckets.items():
                if start_s < sketches_s:
                    bucket.latency = None
            if not buckets:
                del self._buckets[key]

    def forget(self) -> None:
        """Gives its room back; it is not to be used any more."""
        self.cells.forget()
        self._room.keys -= len(self._counts)

    # -- Views -------------------------------------------------------------------------------------

    def variants(self, epoch: int | None = None) -> dict[str, VariantSeen]:
        """Counts by variant, over all strata; of one epoch, or of all (to be shown only)."""
        said = self._said.get(epoch)
        if said is not None:
            return said
        served: dict[str, Counts] = {}
        shadow: dict[str, Counts] = {}
        # One shadow per target at a time: an epoch's copies all went to the one that counts some.
        copies: dict[int, str] = {}
        for key, counts in self._counts.items():
            if epoch in (None, key.epoch):
                table = shadow if key.role == ROLE_SHADOW else served
                table.setdefault(key.variant, Counts()).merge(counts)
                if key.role == ROLE_SHADOW:
                    copies[key.epoch] = key.variant
        for judged_epoch, (labelled, correct) in self._shadow_judged.items():
            if judged_epoch in copies:
                shadow[copies[judged_epoch]].labelled += labelled
                shadow[copies[judged_epoch]].correct += correct
        units = self.cells.units(epoch) if epoch is not None else None
        none = Counts()
        said = self._said[epoch] = {
            name: _variant_seen(served.get(name, none), shadow.get(name, none), units, name)
            for name in sorted({*served, *shadow})
        }
        return said

    def window(self, epoch: int, start_s: int, end_s: int) -> dict[str, WindowSeen]:
        """Counts of the buckets that begin in [start_s, end_s), unix seconds, by variant."""
        found: dict[str, WindowSeen] = {}
        for variant, served, shadow in self._buckets_of(epoch):
            ours, copies = (_within(table, start_s, end_s) for table in (served, shadow))
            found[variant] = WindowSeen(
                sum(b.requests for b in ours),
                sum(b.errors for b in ours),
                sum(b.requests for b in copies),
                sum(b.errors for b in copies),
            )
        return found

    def buckets(self, epoch: int, *, now_ms: int, count: int) -> dict[str, tuple[BucketSeen, ...]]:
        """The last `count` buckets up to the present one, oldest first, empty ones included."""
        present_s = now_ms // 1000 - now_ms // 1000 % TIME_BUCKET_S
        starts = [present_s - TIME_BUCKET_S * back for back in reversed(range(count))]
        none = Bucket()
        return {
            variant: tuple(
                _bucket_seen(start_s, served.get(start_s, none), shadow.get(start_s, none))
                for start_s in starts
            )
            for variant, served, shadow in self._buckets_of(epoch)
        }

    def exemplars(self, epoch: int) -> tuple[Exemplar, ...]:
        """Traces of bad events, the youngest first, by variant and kind."""
        return tuple(
            Exemplar(
                variant,
                Kind(kind),
                tuple(ids[:TRACE_ID_DIGITS] for _, ids in sorted(kept, reverse=True)),
            )
            for (number, variant, kind), kept in sorted(self._exemplars.items())
            if number == epoch
        )

    def exemplar_spans(self, epoch: int) -> dict[str, str]:
        """Trace id -> the id of the span in it that answered, of the exemplars that have one."""
        return {
            ids[:TRACE_ID_DIGITS]: ids[TRACE_ID_DIGITS:]
            for (number, _, _), kept in self._exemplars.items()
            if number == epoch
            for _, ids in kept
            if ids[TRACE_ID_DIGITS:].strip("0")
        }

    def _buckets_of(self, epoch: int) -> list[tuple[str, dict[int, Bucket], dict[int, Bucket]]]:
        """(variant, served, shadow) of one epoch."""
        return [
            (
                name,
                self._buckets.get((epoch, name, ROLE_SERVED), {}),
                self._buckets.get((epoch, name, ROLE_SHADOW), {}),
            )
            for name in sorted({key[1] for key in self._buckets if key[0] == epoch})
        ]

    # -- Checkpoint --------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Everything, in an order that depends on the content only."""
        return {
            "counts": [[*key, self._counts[key].to_json()] for key in sorted(self._counts)],
            "buckets": [
                [*key, buckets_to_json(self._buckets[key])] for key in sorted(self._buckets)
            ],
            "trackers": [[e, pack64(t.to_bytes())] for e, t in sorted(self.trackers.items())],
            "starts": sorted(self._starts.items()),
            "shadow_judged": [[epoch, *two] for epoch, two in sorted(self._shadow_judged.items())],
            "waiting_wrong": [[e, sorted(some)] for e, some in sorted(self._waiting_wrong.items())],
            "exemplars": [[*key, sorted(kept)] for key, kept in sorted(self._exemplars.items())],
            "targets_at_start": self.targets_at_start,
        }

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], room: Room, cells: CellBook | None = None
    ) -> "Findings":
        """Of `to_json`; without cells all that was counted is missing in them."""
        found = cls(room)
        found._counts = {CountKey(*row[:4]): Counts.from_json(row[4]) for row in data["counts"]}
        room.keys += len(found._counts)
        found._buckets = {
            (epoch, variant, role): buckets_from_json(buckets)
            for epoch, variant, role, buckets in data["buckets"]
        }
        found.trackers = {
            epoch: BlockTracker.from_bytes(base64.b64decode(tracker))
            for epoch, tracker in data["trackers"]
        }
        found._starts = dict(data["starts"])
        found._shadow_judged = {epoch: two for epoch, *two in data["shadow_judged"]}
        found._waiting_wrong = {
            epoch: {(time_ms, variant, unit) for time_ms, variant, unit in some}
            for epoch, some in data["waiting_wrong"]
        }
        found._exemplars = {
            (epoch, variant, kind): {(time_ms, trace) for time_ms, trace in kept}
            for epoch, variant, kind, kept in data["exemplars"]
        }
        found.targets_at_start = data["targets_at_start"]
        if cells is not None:
            found.cells = cells
            return found
        for key, counts in found._counts.items():
            if key.role == ROLE_SERVED:
                cell = CellKey(key.epoch, key.variant, key.stratum)
                found.cells.adopt(cell, counts.requests)
        return found


def _within(buckets: Mapping[int, Bucket], start_s: int, end_s: int) -> list[Bucket]:
    """Buckets that begin in [start_s, end_s): a short window of a long epoch looks at few."""
    starts = range(start_s + -start_s % TIME_BUCKET_S, end_s, TIME_BUCKET_S)
    if len(starts) < len(buckets):
        return [bucket for start in starts if (bucket := buckets.get(start)) is not None]
    return [bucket for start, bucket in buckets.items() if start_s <= start < end_s]


def _is_recent(epoch: int, epochs: Iterable[int], kept: int) -> bool:
    return sum(other > epoch for other in epochs) < kept


def _forget_oldest(table: dict[int, Any], kept: int) -> None:
    for epoch in sorted(table)[: max(0, len(table) - kept)]:
        del table[epoch]


def _variant_seen(
    served: Counts, shadow: Counts, units: Mapping[str, int] | None, name: str
) -> VariantSeen:
    return VariantSeen(
        decided=max(0, served.decided - served.forced),  # sidecars count both in `decided`
        requests=served.requests,
        errors=served.errors,
        slow=served.slow,
        client_cancelled=served.client_cancelled,
        latency=served.latency.seen(),
        labelled=served.labelled,
        correct=served.correct,
        shadow_requests=shadow.requests,
        shadow_errors=shadow.errors,
        shadow_slow=shadow.slow,
        shadow_labelled=shadow.labelled,
        shadow_correct=shadow.correct,
        shadow_latency=shadow.latency.seen(),
        units=units.get(name, 0) if units is not None else None,
        first_bad_unix_ms=served.first_bad_ms,
    )


def _bucket_seen(start_s: int, served: Bucket, shadow: Bucket) -> BucketSeen:
    return BucketSeen(
        start_s,
        served.requests,
        served.errors,
        served.latency.seen() if served.latency else Sketch(),
        shadow.requests,
        shadow.errors,
        shadow.latency.seen() if shadow.latency else Sketch(),
    )
