"""Access log entries and answers, folded into increments that merge.

Owns the statistics a sidecar sends up: counts and latency sketches by (experiment, epoch, variant,
stratum, role, time bucket), served requests by bucket of units, the first bad event of each unit,
exposures, and answers by target.
Refuses to know the time or the network: an entry brings its own time, `take` hands out what has
come in since the last one. Folding any partition of the same entries, in any order, gives the same
increments, but for sums of floats and which of several exposures of one request id is kept.

A worker folds what it sees; a supervisor merges its workers' deltas through a Fold of its own, so
that a unit or a request id seen by two workers still counts once.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Final

from sidecar.accesslog import (
    Assignment,
    Entry,
    MalformedStamp,
    is_client_gone,
    is_error,
    parse_shadow,
    parse_stamp,
    target_of,
    unstamped_reason,
)
from sidecar.hashing import request_hash
from sidecar.increments import (
    Buckets,
    CellCounts,
    CellKey,
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
from sidecar.outcome import DUPLICATE_UNIT, INVALID_TOKEN, Outcome, Tally
from sidecar.plan import EpochFacts
from turnout.contract import (
    FIRST_BAD_SLOT_S,
    FIRST_BAD_UNITS_MAX,
    TIME_BUCKET_S,
    UNIT_BUCKET_SHIFT,
    UNIT_BUCKETS,
)
from turnout.v1alpha1.common_pb2 import BAD_EVENT_KIND_ERROR, BAD_EVENT_KIND_SLOW
from turnout.v1alpha1.config_service_pb2 import ROLE_SERVED, ROLE_SHADOW

EXPOSURES_MAX: Final = 65_536  # rows of one take, 24 B each: 1.6 MB; beyond, drop newest
RECENT_REQUESTS_MAX: Final = 65_536  # request ids of each of two generations, about 80 B each
KNOWN_EPOCHS_MAX: Final = 4_096  # the oldest is forgotten first; its late entries lose kind SLOW
# What is remembered of first bad events after they were sent: about 60 B for each unit, 500 B for
# each slot. Beyond it the oldest slots forget; a unit that fails again there is sent twice, and
# merges to once.
SEEN_UNITS_MAX: Final = 1_048_576
SEEN_SLOTS_MAX: Final = 16_384
_SAMPLE_SHIFT_MAX: Final = 63
# Cells of one take with a number for every bucket, 8 kB each; others only have what they need.
DENSE_CELLS_MAX: Final = 1_024
_TARGETS_MAX: Final = 4_096  # names come from routes that we wrote; a foreign flood stops here
BUCKET_MS: Final = TIME_BUCKET_S * 1000
_SLOT_MS: Final = FIRST_BAD_SLOT_S * 1000
_SLOT_LAST: Final = 2**32 - 1

# Outcomes that have a count of their own beside `answered`.
_OUTCOME_FIELDS: Final = {
    Outcome.NO_SNAPSHOT: "no_snapshot",
    Outcome.SHED: "shed",
    Outcome.NO_UNIT: "no_unit",
    Outcome.NOT_IN_SEGMENT: "not_in_segment",
    Outcome.INVALID_UNIT: "invalid_unit",
    Outcome.WAITING: "waiting",
    Outcome.HELD_OUT: "held_out",
    Outcome.NOT_IN_LAYER: "not_in_layer",
    Outcome.PEER: "peer",
}
_FLAG_FIELDS: Final = ((DUPLICATE_UNIT, "duplicate_unit"), (INVALID_TOKEN, "invalid_token"))


class Seen:
    """Request ids of one experiment that were there lately, in two generations."""

    __slots__ = ("current", "older")

    def __init__(self) -> None:
        """None yet."""
        self.current: set[int] = set()
        self.older: set[int] = set()


class Lane:
    """One arm of one epoch at hand: what `logfold` needs to count a served request there.

    Attributes:
        given: Whose arm; its unit hash means nothing.
        facts: What is known of the epoch.
        limit_ms: A longer answer is slow.
        seen: Request ids of the experiment.
        rows: Exposures of the arm, not forced.
        bucket: Time bucket of `counts`, in units of BUCKET_MS; -1 = every entry turns the lane.
        counts: Increments of that bucket.
        early: Entries of that bucket began in the epoch's warm-up.
        units: Its requests by bucket of units.
    """

    __slots__ = (
        "bucket", "counts", "early", "facts", "given", "limit_ms", "rows", "seen", "units",
    )  # fmt: skip

    def __init__(
        self, given: Assignment, facts: EpochFacts | None, seen: Seen, rows: ExposureRows
    ) -> None:
        self.given = given
        self.facts = facts
        self.limit_ms = _limit_ms(facts)
        self.seen = seen
        self.rows = rows
        self.bucket = -1
        self.counts = Counts()
        self.early = False
        self.units: Buckets = []


class Fold:
    """Folds entries and answers, or merges what other folds took.

    Attributes:
        lanes: Kept by `logfold`, by the bytes of a stamp without its unit hash. Empty again
            whenever what a lane holds is no longer what counts.
    """

    def __init__(self) -> None:
        """Nothing folded, no epoch known."""
        self._epochs: dict[tuple[str, int], EpochFacts] = {}
        self._delta = FoldDelta()
        # Requests by bucket of units, one number for each: an index costs half of a dict's entry.
        self._units: dict[CellKey, Buckets] = {}
        self._early: dict[CellKey, Buckets] = {}
        self._nowhere = [0] * UNIT_BUCKETS
        self._answers: dict[Tally, int] = {}
        self._exposures = 0
        self._requests = _RecentRequests()
        self._bad = _FirstBadEvents()
        self.lanes: dict[bytes, Lane] = {}

    def know(self, epochs: Mapping[tuple[str, int], EpochFacts]) -> None:
        """Learn a plan's epochs; earlier ones stay known, as their entries are still on the way."""
        for key, facts in epochs.items():
            self._epochs.pop(key, None)
            self._epochs[key] = facts
        while len(self._epochs) > KNOWN_EPOCHS_MAX:
            del self._epochs[next(iter(self._epochs))]
        self.lanes.clear()

    def add(self, entry: Entry, *, shadow: bool) -> None:
        """Fold one entry.

        Args:
            entry: As parsed.
            shadow: It comes from the log of mirrored copies: it counts for the shadow variant and
                never for the one that served.
        """
        try:
            if shadow or entry.shadow_of:
                self._add_shadow(entry)
            elif entry.stamp:
                for assignment in parse_stamp(entry.stamp):
                    self._add_served(entry, assignment)
            else:
                self._add_unstamped(entry)
        except MalformedStamp:
            self._delta.malformed_stamps += 1

    def answered(self, tally: Tally) -> None:
        """Count one answer, by target. `decided` is not counted here: it outlives the worker."""
        answers = self._answers
        answers[tally] = answers.get(tally, 0) + 1

    def decided(
        self, experiment: str, epoch: int, variant: str, *, count: int, now_ms: int
    ) -> None:
        """Count assignments that were answered, in the time bucket of now."""
        self._counts(experiment, epoch, variant, 0, ROLE_SERVED, now_ms).decided += count

    def unstamped(self, reasons: Mapping[str, int], *, target: str = "") -> None:
        """Count requests that Envoy passed on without an answer, by reason."""
        counts = self._target(target)
        for reason, count in reasons.items():
            counts.unstamped[reason] = counts.unstamped.get(reason, 0) + count

    def merge(self, delta: FoldDelta) -> None:
        """Take over what another fold took; the delta is left as it is."""
        mine = self._delta
        for key, counts in delta.counts.items():
            mine.counts.setdefault(key, Counts()).merge(counts)
        for cell, units in delta.cells.items():
            mine.cells.setdefault(cell, CellCounts()).merge(units)
        for target, answers in delta.targets.items():
            self._target(target).merge(answers)
        for slot, first_bad in delta.first_bad.items():
            self._bad.merge(slot, first_bad)
        for exposure_key, rows in delta.exposures.items():
            self._merge_rows(exposure_key, rows)
        mine.exposures_dropped += delta.exposures_dropped
        mine.repeated_requests += delta.repeated_requests
        mine.malformed_stamps += delta.malformed_stamps

    def take(self) -> FoldDelta:
        """Hand out everything since the last take."""
        taken, self._delta = self._delta, FoldDelta()
        for key, units in self._units.items():
            taken.cells.setdefault(key, CellCounts()).add_requests(units)
        for key, units in self._early.items():
            warm_up = sum(units if isinstance(units, list) else units.values())
            taken.cells.setdefault(key, CellCounts()).warm_up += warm_up
        self._units, self._early = {}, {}
        taken.first_bad = self._bad.take()
        taken.exposures = {key: rows for key, rows in taken.exposures.items() if rows}
        for tally, count in self._answers.items():
            _count_answers(taken.targets.setdefault(tally.target, TargetCounts()), tally, count)
        self._answers = {}
        self._exposures = 0
        self.lanes.clear()
        return taken

    # -- The short way: see logfold ---------------------------------------------------------------

    def room(self) -> int:
        """So many exposures can be added to lanes before a limit needs looking at."""
        return min(EXPOSURES_MAX - self._exposures, RECENT_REQUESTS_MAX - self._requests.count)

    def lane(self, given: Assignment) -> Lane:
        """The lane of an assignment that is not forced; good until `lanes` is emptied."""
        experiment, epoch, variant, stratum = given[:4]
        key = ExposureKey(experiment, epoch, variant, stratum, forced=False)
        rows = self._delta.exposures.setdefault(key, ExposureRows())
        facts = self._epochs.get((experiment, epoch))
        return Lane(given, facts, self._requests.of(experiment), rows)

    def turn(self, lane: Lane, start_ms: int) -> Counts:
        """Point a lane at the time bucket of `start_ms`."""
        experiment, epoch, variant, stratum = lane.given[:4]
        lane.bucket = start_ms // BUCKET_MS
        lane.counts = self._counts(experiment, epoch, variant, stratum, ROLE_SERVED, start_ms)
        lane.early = _is_early(lane.facts, start_ms)
        lane.units = self._units_of(lane.given, lane.facts, early=lane.early)
        if lane.facts is not None and lane.bucket == lane.facts.warm_until_ms // BUCKET_MS:
            lane.bucket = -1  # the warm-up ends within it
        return lane.counts

    def add_bad(
        self,
        lane: Lane,
        unit_hash: int,
        start_ms: int,
        latency_ms: float,
        *,
        failed: bool,
        gone: bool,
        status: int,
    ) -> None:
        """Count a served request, in the lane's bucket, that was not simply good."""
        slow = _count(
            lane.counts,
            start_ms,
            latency_ms,
            failed=failed,
            gone=gone,
            status=status,
            waited_ms=latency_ms,
            limit_ms=lane.limit_ms,
            early=lane.early,
        )
        lane.units[unit_hash >> UNIT_BUCKET_SHIFT] += 1
        if lane.facts is not None and (failed or slow):
            if not lane.early:
                bucket = unit_hash >> UNIT_BUCKET_SHIFT
                self._note_cell(
                    lane.given, lane.facts, bucket, latency_ms, failed=failed, slow=slow
                )
            slow = slow and not lane.early  # cold caches are what a warm-up is for
            self._note_bad(lane.given, lane.facts, unit_hash, start_ms, failed=failed, slow=slow)

    def exposed(self, added: int, repeated: int) -> None:
        """So many rows were added to lanes, and so many left out as their request id was known."""
        self._exposures += added
        self._requests.count += added
        self._delta.repeated_requests += repeated

    def malformed(self) -> None:
        """Count an entry whose stamp no sidecar wrote."""
        self._delta.malformed_stamps += 1

    # -- Entries ----------------------------------------------------------------------------------

    def _add_served(self, entry: Entry, given: Assignment) -> None:
        experiment, epoch, variant, stratum, unit_hash, forced = given
        counts = self._counts(experiment, epoch, variant, stratum, ROLE_SERVED, entry.start_ms)
        row = Exposure(entry.start_ms, unit_hash, request_hash(entry.request_id.encode()))
        self._expose(ExposureKey(experiment, epoch, variant, stratum, forced), row)
        if forced:
            counts.forced += 1
            return
        facts = self._epochs.get((experiment, epoch))
        early, bucket = _is_early(facts, entry.start_ms), unit_hash >> UNIT_BUCKET_SHIFT
        failed, slow = _count_entry(counts, entry, entry.latency_ms, facts, early=early)
        self._units_of(given, facts, early=early)[bucket] += 1
        if facts is not None and (failed or slow):
            if not early:
                waited_ms = _waited_ms(entry, entry.latency_ms)
                self._note_cell(given, facts, bucket, waited_ms, failed=failed, slow=slow)
            slow = slow and not early
            self._note_bad(given, facts, unit_hash, entry.start_ms, failed=failed, slow=slow)

    def _units_of(self, given: Assignment, facts: EpochFacts | None, *, early: bool) -> Buckets:
        """Where to count a request by bucket of units.

        One of an epoch of which nothing is known is in no cell: that it was slow would be missing.
        """
        if facts is None:
            return self._nowhere
        table = self._early if early else self._units
        key = CellKey(*given[:4])
        units = table.get(key)
        if units is None:
            dense = len(table) < DENSE_CELLS_MAX
            units = table[key] = [0] * UNIT_BUCKETS if dense else defaultdict(int)
        return units

    def _note_cell(
        self,
        given: Assignment,
        facts: EpochFacts,
        bucket: int,
        waited_ms: float,
        *,
        failed: bool,
        slow: bool,
    ) -> None:
        exceeded = [limit_ms for limit_ms in facts.thresholds_ms if waited_ms > limit_ms]
        cell = self._delta.cells.setdefault(CellKey(*given[:4]), CellCounts())
        cell.add_bad(bucket, failed=failed, slow=slow, exceeded=exceeded)

    def _note_bad(
        self,
        given: Assignment,
        facts: EpochFacts,
        unit_hash: int,
        start_ms: int,
        *,
        failed: bool,
        slow: bool,
    ) -> None:
        slot = min(max(0, (start_ms - facts.start_ms) // _SLOT_MS), _SLOT_LAST)
        for bad, kind in ((failed, BAD_EVENT_KIND_ERROR), (slow, BAD_EVENT_KIND_SLOW)):
            if bad and kind in facts.kinds:
                key = SlotKey(given.experiment, given.epoch, kind, slot)
                self._bad.add(key, given.variant, unit_hash)

    def _add_shadow(self, entry: Entry) -> None:
        experiment, epoch, variant = parse_shadow(entry.shadow_of)
        counts = self._counts(experiment, epoch, variant, 0, ROLE_SHADOW, entry.start_ms)
        # Nobody downstream waits for a copy: its time ends with the upstream's last byte.
        facts = self._epochs.get((experiment, epoch))
        early = _is_early(facts, entry.start_ms)
        _count_entry(counts, entry, entry.upstream_ms, facts, early=early)

    def _add_unstamped(self, entry: Entry) -> None:
        reason = unstamped_reason(entry)
        if reason is not None:
            self.unstamped({reason: 1}, target=target_of(entry))

    def _counts(
        self, experiment: str, epoch: int, variant: str, stratum: int, role: int, time_ms: int
    ) -> Counts:
        bucket_s = time_ms // BUCKET_MS * TIME_BUCKET_S
        key = CountKey(experiment, epoch, variant, stratum, role, bucket_s)
        counts = self._delta.counts.get(key)
        if counts is None:
            counts = self._delta.counts[key] = Counts()
        return counts

    def _target(self, target: str) -> TargetCounts:
        targets = self._delta.targets
        if target not in targets and len(targets) >= _TARGETS_MAX:
            target = ""
        return targets.setdefault(target, TargetCounts())

    def _expose(self, key: ExposureKey, row: Exposure) -> None:
        if row.request_hash and not self._is_new(key.experiment, row.request_hash):
            self._delta.repeated_requests += 1
        elif self._exposures >= EXPOSURES_MAX:
            self._delta.exposures_dropped += 1
        else:
            self._exposures += 1
            self._delta.exposures.setdefault(key, ExposureRows()).append(row)

    def _is_new(self, experiment: str, hashed: int) -> bool:
        seen = self._requests.of(experiment)
        if hashed in seen.current or hashed in seen.older:
            return False
        if self._requests.count >= RECENT_REQUESTS_MAX:
            self._requests.age()
            self.lanes.clear()
            seen = self._requests.of(experiment)
        self._requests.count += 1
        seen.current.add(hashed)
        return True

    def _merge_rows(self, key: ExposureKey, rows: ExposureRows) -> None:
        """`_expose` of all; at once when none of them needs a look of its own."""
        seen, hashes = self._requests.of(key.experiment), set(rows.requests)
        if (
            len(rows) <= self.room()
            and len(hashes) == len(rows)
            and 0 not in hashes
            and hashes.isdisjoint(seen.current)
            and hashes.isdisjoint(seen.older)
        ):
            seen.current |= hashes
            self.exposed(len(rows), 0)
            self._delta.exposures.setdefault(key, ExposureRows()).extend(rows)
            return
        for row in rows:
            self._expose(key, row)


def _limit_ms(facts: EpochFacts | None) -> float:
    limit_ms = facts.slow_after_ms if facts is not None else None
    return inf if limit_ms is None else limit_ms


def _count_entry(
    counts: Counts,
    entry: Entry,
    latency_ms: float | None,
    facts: EpochFacts | None,
    *,
    early: bool,
) -> tuple[bool, bool]:
    """Count one entry; whether it failed and whether it was slow."""
    failed = is_error(entry)
    slow = _count(
        counts,
        entry.start_ms,
        latency_ms,
        failed=failed,
        gone=is_client_gone(entry),
        status=entry.status,
        waited_ms=_waited_ms(entry, latency_ms),
        limit_ms=_limit_ms(facts),
        early=early,
    )
    return failed, slow


def _waited_ms(entry: Entry, latency_ms: float | None) -> float:
    """How long it took; a client that gave up after the limit waited longer than that, too."""
    return entry.duration_ms if latency_ms is None else latency_ms


def _is_early(facts: EpochFacts | None, start_ms: int) -> bool:
    """Whether a request began in its epoch's warm-up."""
    return facts is not None and start_ms < facts.warm_until_ms


def _count(
    counts: Counts,
    start_ms: int,
    latency_ms: float | None,
    *,
    failed: bool,
    gone: bool,
    status: int,
    waited_ms: float,
    limit_ms: float,
    early: bool,
) -> bool:
    """Count one request; whether it was slow, which is no bad event in a warm-up."""
    counts.requests += 1
    if failed:
        counts.errors += 1
    elif gone:
        counts.client_cancelled += 1
    elif 400 <= status < 500:
        counts.client_errors += 1
    if latency_ms is not None:
        counts.add_latency(latency_ms)
    slow = waited_ms > limit_ms
    counts.slow += slow
    if failed or (slow and not early):
        counts.add_bad(start_ms)
    return slow


def _count_answers(counts: TargetCounts, tally: Tally, count: int) -> None:
    counts.answered += count
    names = [name for flag, name in _FLAG_FIELDS if tally.flags & flag]
    if tally.outcome in _OUTCOME_FIELDS:
        names.append(_OUTCOME_FIELDS[tally.outcome])
    for name in names:
        setattr(counts, name, getattr(counts, name) + count)


class _RecentRequests:
    """Which request ids were there lately: two generations, the older one forgotten whole."""

    __slots__ = ("_seen", "count")

    def __init__(self) -> None:
        self._seen: dict[str, Seen] = {}
        self.count = 0  # of the current generation, over all experiments

    def of(self, experiment: str) -> Seen:
        """Those of one experiment."""
        seen = self._seen.get(experiment)
        if seen is None:
            seen = self._seen[experiment] = Seen()
        return seen

    def age(self) -> None:
        """Begin a new generation; what `of` gave before is no longer good."""
        for seen in self._seen.values():
            seen.older, seen.current = seen.current, set()
        self._seen = {name: seen for name, seen in self._seen.items() if seen.older}
        self.count = 0


@dataclass(slots=True)
class _Slot:
    """All units of one slot that were bad, and those of them that no take has handed out."""

    shift: int = 0
    seen: set[int] = field(default_factory=set)
    fresh: dict[str, set[int]] = field(default_factory=dict)
    changed: bool = False


class _FirstBadEvents:
    """Each unit's first bad event of a slot, once; a hash sample when there are too many.

    The shift of a slot is the smallest with which all its units fit, so it depends on which units
    there were and not on their order.
    """

    __slots__ = ("_seen", "_slots")

    def __init__(self) -> None:
        self._slots: dict[SlotKey, _Slot] = {}
        self._seen = 0

    def add(self, key: SlotKey, variant: str, unit_hash: int) -> None:
        """Note one bad event."""
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = _Slot()
        if unit_hash & ((1 << slot.shift) - 1) or unit_hash in slot.seen:
            return
        slot.seen.add(unit_hash)
        self._seen += 1
        slot.fresh.setdefault(variant, set()).add(unit_hash)
        slot.changed = True
        while len(slot.seen) > FIRST_BAD_UNITS_MAX and slot.shift < _SAMPLE_SHIFT_MAX:
            self._thin(slot, slot.shift + 1)

    def merge(self, key: SlotKey, other: FirstBad) -> None:
        """Add what another fold took."""
        slot = self._slots.setdefault(key, _Slot())
        if other.shift > slot.shift:
            self._thin(slot, other.shift)
            slot.changed = True
        for variant, units in other.units.items():
            slot.fresh.setdefault(variant, set())
            for unit in units:
                self.add(key, variant, unit)

    def take(self) -> dict[SlotKey, FirstBad]:
        """What is new since the last take."""
        taken: dict[SlotKey, FirstBad] = {}
        for key, slot in self._slots.items():
            if slot.changed:
                taken[key] = FirstBad(slot.shift, slot.fresh)
                # The variants stay: a shift that rises must reach every arm.
                slot.fresh = {variant: set() for variant in slot.fresh}
                slot.changed = False
        for key in list(self._slots):
            if self._seen <= SEEN_UNITS_MAX and len(self._slots) <= SEEN_SLOTS_MAX:
                break
            self._seen -= len(self._slots.pop(key).seen)
        return taken

    def _thin(self, slot: _Slot, shift: int) -> None:
        mask = (1 << shift) - 1
        slot.shift = shift
        before = len(slot.seen)
        slot.seen = {unit for unit in slot.seen if not unit & mask}
        self._seen += len(slot.seen) - before
        for variant, units in slot.fresh.items():
            slot.fresh[variant] = {unit for unit in units if not unit & mask}
