"""Access log entries and answers, folded into increments that merge.

Owns the statistics a sidecar sends up: counts and latency sketches by (experiment, epoch, variant,
stratum, role, time bucket), the first bad event of each unit, exposures, and answers by target.
Refuses to know the time or the network: an entry brings its own time, `take` hands out what has
come in since the last one. Folding any partition of the same entries, in any order, gives the same
increments, but for sums of floats and which of several exposures of one request id is kept.

A worker folds what it sees; a supervisor merges its workers' deltas through a Fold of its own, so
that a unit or a request id seen by two workers still counts once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, log
from typing import Final, NamedTuple

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
from sidecar.outcome import DUPLICATE_UNIT, INVALID_TOKEN, Outcome, Tally
from sidecar.plan import EpochFacts
from turnout.contract import (
    FIRST_BAD_SLOT_S,
    FIRST_BAD_UNITS_MAX,
    LATENCY_MIN_MS,
    LATENCY_SKETCH_GAMMA,
    TIME_BUCKET_S,
)
from turnout.v1alpha1.common_pb2 import BAD_EVENT_KIND_ERROR, BAD_EVENT_KIND_SLOW
from turnout.v1alpha1.config_service_pb2 import ROLE_SERVED, ROLE_SHADOW

EXPOSURES_MAX: Final = 65_536  # rows of one take, about 100 B each: 6.5 MB; beyond, drop newest
RECENT_REQUESTS_MAX: Final = 65_536  # request ids of each of two generations, about 100 B each
KNOWN_EPOCHS_MAX: Final = 4_096  # the oldest is forgotten first; its late entries lose kind SLOW
# What is remembered of first bad events after they were sent: about 60 B for each unit, 500 B for
# each slot. Beyond it the oldest slots forget; a unit that fails again there is sent twice, and
# merges to once.
SEEN_UNITS_MAX: Final = 1_048_576
SEEN_SLOTS_MAX: Final = 16_384
_SAMPLE_SHIFT_MAX: Final = 63
_TARGETS_MAX: Final = 4_096  # names come from routes that we wrote; a foreign flood stops here
_BUCKET_MS: Final = TIME_BUCKET_S * 1000
_SLOT_MS: Final = FIRST_BAD_SLOT_S * 1000
_SLOT_LAST: Final = 2**32 - 1
_LOG_GAMMA: Final = log(LATENCY_SKETCH_GAMMA)


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
        index = ceil(log(latency_ms) / _LOG_GAMMA)
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


@dataclass(slots=True)
class FoldDelta:
    """All increments between two takes. False when there are none.

    Attributes:
        counts: By key.
        first_bad: New first bad events by slot.
        targets: Answers by target; "" is the Envoy as a whole.
        exposures: Rows in order of arrival.
        exposures_dropped: Beyond EXPOSURES_MAX.
        repeated_requests: Entries whose request id had been exposed before.
        malformed_stamps: Entries whose stamp or marker no sidecar wrote.
    """

    counts: dict[CountKey, Counts] = field(default_factory=dict)
    first_bad: dict[SlotKey, FirstBad] = field(default_factory=dict)
    targets: dict[str, TargetCounts] = field(default_factory=dict)
    exposures: dict[ExposureKey, list[Exposure]] = field(default_factory=dict)
    exposures_dropped: int = 0
    repeated_requests: int = 0
    malformed_stamps: int = 0

    def __bool__(self) -> bool:
        return bool(
            self.counts
            or self.first_bad
            or self.targets
            or self.exposures
            or self.exposures_dropped
            or self.repeated_requests
            or self.malformed_stamps
        )


class Fold:
    """Folds entries and answers, or merges what other folds took."""

    def __init__(self) -> None:
        """Nothing folded, no epoch known."""
        self._epochs: dict[tuple[str, int], EpochFacts] = {}
        self._delta = FoldDelta()
        self._answers: dict[Tally, int] = {}
        self._exposures = 0
        self._requests = _RecentRequests()
        self._bad = _FirstBadEvents()

    def know(self, epochs: Mapping[tuple[str, int], EpochFacts]) -> None:
        """Learn a plan's epochs; earlier ones stay known, as their entries are still on the way."""
        for key, facts in epochs.items():
            self._epochs.pop(key, None)
            self._epochs[key] = facts
        while len(self._epochs) > KNOWN_EPOCHS_MAX:
            del self._epochs[next(iter(self._epochs))]

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
        for target, answers in delta.targets.items():
            self._target(target).merge(answers)
        for slot, first_bad in delta.first_bad.items():
            self._bad.merge(slot, first_bad)
        for exposure_key, rows in delta.exposures.items():
            for row in rows:
                self._expose(exposure_key, row)
        mine.exposures_dropped += delta.exposures_dropped
        mine.repeated_requests += delta.repeated_requests
        mine.malformed_stamps += delta.malformed_stamps

    def take(self) -> FoldDelta:
        """Hand out everything since the last take."""
        taken, self._delta = self._delta, FoldDelta()
        taken.first_bad = self._bad.take()
        for tally, count in self._answers.items():
            _count_answers(taken.targets.setdefault(tally.target, TargetCounts()), tally, count)
        self._answers = {}
        self._exposures = 0
        return taken

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
        failed, slow = self._count(counts, entry, entry.latency_ms, facts)
        if facts is None or not (failed or slow):
            return
        slot = min(max(0, (entry.start_ms - facts.start_ms) // _SLOT_MS), _SLOT_LAST)
        if failed and BAD_EVENT_KIND_ERROR in facts.kinds:
            key = SlotKey(experiment, epoch, BAD_EVENT_KIND_ERROR, slot)
            self._bad.add(key, variant, unit_hash)
        if slow and BAD_EVENT_KIND_SLOW in facts.kinds:
            key = SlotKey(experiment, epoch, BAD_EVENT_KIND_SLOW, slot)
            self._bad.add(key, variant, unit_hash)

    def _add_shadow(self, entry: Entry) -> None:
        experiment, epoch, variant = parse_shadow(entry.shadow_of)
        counts = self._counts(experiment, epoch, variant, 0, ROLE_SHADOW, entry.start_ms)
        # Nobody downstream waits for a copy: its time ends with the upstream's last byte.
        self._count(counts, entry, entry.upstream_ms, self._epochs.get((experiment, epoch)))

    def _add_unstamped(self, entry: Entry) -> None:
        reason = unstamped_reason(entry)
        if reason is not None:
            self.unstamped({reason: 1}, target=target_of(entry))

    @staticmethod
    def _count(
        counts: Counts, entry: Entry, latency_ms: float | None, facts: EpochFacts | None
    ) -> tuple[bool, bool]:
        """Count one entry; whether it failed and whether it was slow."""
        counts.requests += 1
        failed = is_error(entry)
        if failed:
            counts.errors += 1
        elif is_client_gone(entry):
            counts.client_cancelled += 1
        elif 400 <= entry.status < 500:
            counts.client_errors += 1
        if latency_ms is not None:
            counts.add_latency(latency_ms)
        limit_ms = facts.slow_after_ms if facts is not None else None
        # A client that gave up after the limit waited longer than the limit, too.
        waited_ms = latency_ms if latency_ms is not None else entry.duration_ms
        slow = limit_ms is not None and waited_ms > limit_ms
        counts.slow += slow
        if failed or slow:
            counts.add_bad(entry.start_ms)
        return failed, slow

    def _counts(
        self, experiment: str, epoch: int, variant: str, stratum: int, role: int, time_ms: int
    ) -> Counts:
        bucket_s = time_ms // _BUCKET_MS * TIME_BUCKET_S
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
        if row.request_hash and not self._requests.is_new((key.experiment, row.request_hash)):
            self._delta.repeated_requests += 1
        elif self._exposures >= EXPOSURES_MAX:
            self._delta.exposures_dropped += 1
        else:
            self._exposures += 1
            self._delta.exposures.setdefault(key, []).append(row)


def _count_answers(counts: TargetCounts, tally: Tally, count: int) -> None:
    counts.answered += count
    names = [name for flag, name in _FLAG_FIELDS if tally.flags & flag]
    if tally.outcome in _OUTCOME_FIELDS:
        names.append(_OUTCOME_FIELDS[tally.outcome])
    for name in names:
        setattr(counts, name, getattr(counts, name) + count)


class _RecentRequests:
    """Which request ids were there lately: two generations, the older one forgotten whole."""

    __slots__ = ("_current", "_older")

    def __init__(self) -> None:
        self._current: set[tuple[str, int]] = set()
        self._older: set[tuple[str, int]] = set()

    def is_new(self, key: tuple[str, int]) -> bool:
        """Whether the key was not there, which it is from now on."""
        if key in self._current or key in self._older:
            return False
        if len(self._current) >= RECENT_REQUESTS_MAX:
            self._older, self._current = self._current, set()
        self._current.add(key)
        return True


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
