"""What is known of one tenant's experiments: deltas and judged answers, merged. Pure.

Owns the counts that `assess` looks at. Refuses to judge, and to read a clock: times come with what
is added.

Merging is idempotent and does not depend on order: a delta counts once per (instance, number),
counts are integers that are added, sets are united, first times are minima. So the same deltas give
the same bytes however often and in whatever order they came (tests/properties). Everything is
bounded; what a bound leaves out is counted in `left_out`:
    * KEYS_MAX (experiment, epoch, variant, stratum, role); BUCKETS_MS of time buckets;
    * EPOCHS_KEPT epochs of an experiment have lanes, UNITS_EPOCHS of them have their units counted;
    * INSTANCES_MAX instances; of one, `tallies.RANGES_MAX` runs of numbers (numbers are lost only
      when a sidecar had to drop deltas: beyond that the oldest gap counts as lost for good).

An epoch has to be begun (`begin_epoch`) before it is published: slots of wrong answers count from
its start. Those that come before wait.
"""

import base64
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from control.outcomes import FailedTrace, Joined, Observation
from control.rollout.lanes import SLOT_MS, BlockTracker, assess_all
from control.rollout.policy import Policy
from control.rollout.run import PAST_EPOCHS_MAX, Run
from control.rollout.seen import (
    BucketSeen,
    Exemplar,
    Seen,
    SidecarSeen,
    Sketch,
    VariantSeen,
    WindowSeen,
)
from control.rollout.words import Kind
from control.tallies import (
    Bucket,
    Counts,
    Latency,
    Numbers,
    Units,
    buckets_from_json,
    buckets_to_json,
    pack64,
    units_from_json,
    units_to_json,
)
from turnout.contract import TIME_BUCKET_S
from turnout.v1alpha1 import common_pb2
from turnout.v1alpha1.config_service_pb2 import (
    ROLE_SERVED,
    ROLE_SHADOW,
    CountDelta,
    DeltaBatch,
    ExposureBatch,
    FirstBadDelta,
    TargetDelta,
)

KEYS_MAX: Final = 50_000
BUCKETS_MS: Final = 24 * 3600 * 1000  # the longest safety window
BUCKETS_AHEAD_MS: Final = 3600 * 1000  # a bucket further in the future comes from a wrong clock
BUCKET_SKETCHES_MS: Final = (
    3600 * 1000
)  # breakers look at single buckets' latency, and not far back
EPOCHS_KEPT: Final = PAST_EPOCHS_MAX + 1
UNITS_EPOCHS: Final = 4
INSTANCES_MAX: Final = 4096
TARGETS_MAX: Final = 2000
REASONS_MAX: Final = 16
EXEMPLARS_MAX: Final = 5
WAITING_WRONG_MAX: Final = 65_536
# A slot is one bit of a number per unit: a wild one would be a number of gigabytes.
SLOTS_AHEAD: Final = 60
SLOTS_UNBEGUN_MAX: Final = 7 * 24 * 60
PRUNE_EVERY_MS: Final = 60_000
_FORMAT: Final = b"EVIDENCE\x01"

_KINDS: Final = {
    common_pb2.BAD_EVENT_KIND_ERROR: Kind.ERROR,
    common_pb2.BAD_EVENT_KIND_SLOW: Kind.SLOW,
    common_pb2.BAD_EVENT_KIND_WRONG: Kind.WRONG,
}


class InvalidDelta(ValueError):
    """A delta that no sidecar of ours sends; nothing of it was taken."""


class CorruptEvidence(ValueError):
    """The bytes are no evidence."""


class EpochKey(NamedTuple):
    """One epoch of one experiment."""

    experiment: str
    epoch: int


class CountKey(NamedTuple):
    """What counts are kept by."""

    experiment: str
    epoch: int
    variant: str
    stratum: int
    role: int


class TargetCounts(NamedTuple):
    """Counted beside the variants, for one target ("" = whole Envoys).

    Attributes:
        unstamped: Requests without an answer from the sidecar, by reason.
        beside: Answers without a stamp, by the names of `TargetDelta`, and `answered` in all.
    """

    unstamped: Mapping[str, int]
    beside: Mapping[str, int]


# -- Checking --------------------------------------------------------------------------------------


def check(batch: DeltaBatch) -> None:
    """Refuses what could not be merged, before it is stored.

    Raises:
        InvalidDelta: Names the part.
    """
    if not batch.instance_id or len(batch.instance_id) > 128 or batch.seq < 1:
        raise InvalidDelta("instance_id must have 1..128 characters and seq must be >= 1")
    for count in batch.counts:
        _check_key(count.experiment, count.variant)
        if len(count.latency_bins) != len(count.latency_counts):
            raise InvalidDelta("latency_bins and latency_counts differ in length")
        if count.role not in (ROLE_SERVED, ROLE_SHADOW):
            raise InvalidDelta(f"role {count.role}")
        if not 0 <= count.latency_sum_ms < 1e18:  # also refuses NaN
            raise InvalidDelta(f"latency_sum_ms {count.latency_sum_ms}")
        if any(not -2000 < index < 4000 for index in count.latency_bins):
            raise InvalidDelta("latency bin out of range")
    for bad in batch.first_bad:
        _check_key(bad.experiment, bad.variant)
        if len(bad.unit_hashes) % 8 or bad.sample_shift > 64 or bad.kind not in _KINDS:
            raise InvalidDelta("first_bad: kind, sample_shift or unit_hashes")
    for exposure in batch.exposures:
        _check_key(exposure.experiment, exposure.variant)
        rows = len(exposure.offset_ms) * 8
        if len(exposure.unit_hashes) != rows or len(exposure.request_hashes) != rows:
            raise InvalidDelta("exposures: columns differ in length")
        if not 0 <= exposure.base_unix_ms < 1 << 62:
            raise InvalidDelta("exposures: base_unix_ms")


def _check_key(experiment: str, variant: str) -> None:
    for name in (experiment, variant):
        if not 0 < len(name) <= 63 or not name.isascii() or not name.isprintable():
            raise InvalidDelta(f"name {name[:80]!r}")


# -- Evidence --------------------------------------------------------------------------------------


class Evidence:
    """Everything that deltas and judged answers of one tenant came to."""

    def __init__(self) -> None:
        self._now_ms = 0
        self._prune_at_ms = 0
        self._counts: dict[CountKey, Counts] = {}
        # (experiment, epoch, variant, role) -> bucket's start in seconds -> bucket
        self._buckets: dict[tuple[str, int, str, int], dict[int, Bucket]] = {}
        self._numbers: dict[str, Numbers] = {}
        self._trackers: dict[EpochKey, BlockTracker] = {}
        self._units: dict[EpochKey, Units] = {}
        self._epoch_starts: dict[EpochKey, int] = {}
        self._shadow_judged: dict[EpochKey, list[int]] = {}
        # Wrong answers of epochs whose start is not known yet: (time, variant, unit).
        self._waiting_wrong: dict[EpochKey, set[tuple[int, str, int]]] = {}
        # (experiment, epoch, variant, kind) -> (time, trace), the youngest few.
        self._exemplars: dict[tuple[str, int, str, str], set[tuple[int, str]]] = {}
        self._targets: dict[str, dict[str, int]] = {}
        self._targets_at_start: dict[str, dict[str, dict[str, int]]] = {}
        self.left_out: dict[str, int] = {}

    # -- Adding ------------------------------------------------------------------------------------

    def begin_epoch(self, experiment: str, epoch: int, start_ms: int, target: str = "") -> None:
        """An epoch is about to be published: the origin of its slots.

        The first epoch of an experiment also remembers what its target had counted before.
        """
        key = EpochKey(experiment, epoch)
        self._epoch_starts.setdefault(key, start_ms)
        self._targets_at_start.setdefault(
            experiment, {name: dict(self._targets.get(name, {})) for name in ("", target)}
        )
        for time_ms, variant, unit in sorted(self._waiting_wrong.pop(key, ())):
            self._add_wrong(key, variant, unit, time_ms)
        self._forget_epochs(experiment)

    def forget(self, experiment: str) -> None:
        """Forgets a deleted experiment."""
        self._counts = {k: v for k, v in self._counts.items() if k.experiment != experiment}
        self._buckets = {k: v for k, v in self._buckets.items() if k[0] != experiment}
        self._exemplars = {k: v for k, v in self._exemplars.items() if k[0] != experiment}
        for epochs in self._epoch_tables():
            for epoch_key in [key for key in epochs if key.experiment == experiment]:
                del epochs[epoch_key]
        self._targets_at_start.pop(experiment, None)

    def add_delta(self, batch: DeltaBatch, received_ms: int) -> bool:
        """Merges a delta; False when it had been merged before.

        Exposures in it also have to go to the joiner, when this is True.

        Args:
            batch: It passed `check`.
            received_ms: Unix milliseconds by the control plane's clock.

        Raises:
            InvalidDelta: It did not.
        """
        check(batch)
        self._advance(received_ms)
        numbers = self._instance(batch.instance_id)
        numbers.seen_ms = max(numbers.seen_ms, received_ms)
        if numbers.has(batch.seq):
            return False
        self._leave_out("gaps_given_up", numbers.add(batch.seq))
        for count in batch.counts:
            self._add_count(count, received_ms)
        for bad in batch.first_bad:
            self._add_first_bad(bad, received_ms)
        for target in batch.targets:
            self._add_target(target)
        for exposure in batch.exposures:
            self._add_units(exposure)
        self._leave_out("exposures_dropped", batch.exposures_dropped)
        self._leave_out("repeated_requests", batch.repeated_requests)
        self._leave_out("malformed_stamps", batch.malformed_stamps)
        return True

    def has_delta(self, instance_id: str, seq: int) -> bool:
        """Whether this delta has been merged (or its number was given up)."""
        numbers = self._numbers.get(instance_id)
        return numbers is not None and numbers.has(seq)

    def add_joined(self, joined: Joined) -> None:
        """Counts what the joiner completed; each of its observations is given once."""
        self._advance(joined.now_ms)
        for observation in joined.observations:
            self._add_observation(observation)
        for failed in joined.failed:
            self._add_failed(failed)

    def _add_count(self, delta: CountDelta, received_ms: int) -> None:
        key = CountKey(delta.experiment, delta.epoch, delta.variant, delta.stratum, int(delta.role))
        counts = self._counts_of(key)
        if counts is None:
            return
        counts.add(delta)
        start_ms = delta.bucket_unix_s * 1000
        if start_ms > received_ms + BUCKETS_AHEAD_MS:
            self._leave_out("buckets_ahead")
            return
        start_s = delta.bucket_unix_s - delta.bucket_unix_s % TIME_BUCKET_S
        buckets = self._buckets.setdefault((key.experiment, key.epoch, key.variant, key.role), {})
        bucket = buckets.setdefault(start_s, Bucket())
        bucket.requests += delta.requests
        bucket.errors += delta.errors
        if start_ms >= self._now_ms - BUCKET_SKETCHES_MS:
            bucket.latency = bucket.latency or Latency()
            bucket.latency.add(delta)

    def _counts_of(self, key: CountKey) -> Counts | None:
        counts = self._counts.get(key)
        if counts is None:
            if len(self._counts) >= KEYS_MAX:
                self._leave_out("keys")
                return None
            counts = self._counts[key] = Counts()
        return counts

    def _add_first_bad(self, delta: FirstBadDelta, received_ms: int) -> None:
        key = EpochKey(delta.experiment, delta.epoch)
        start_ms = self._epoch_starts.get(key)
        latest = SLOTS_UNBEGUN_MAX
        if start_ms is not None:
            latest = max(0, received_ms - start_ms) // SLOT_MS + SLOTS_AHEAD
        tracker = self._tracker(key)
        if delta.slot > latest or tracker is None:
            self._leave_out("first_bad", len(delta.unit_hashes) // 8)
            return
        tracker.add(
            _KINDS[delta.kind],
            delta.slot,
            delta.variant,
            [unit for (unit,) in struct.iter_unpack("<Q", delta.unit_hashes)],
            delta.sample_shift,
        )

    def _add_target(self, delta: TargetDelta) -> None:
        if delta.target not in self._targets and len(self._targets) >= TARGETS_MAX:
            self._leave_out("targets")
            return
        counts = self._targets.setdefault(delta.target, {})
        for name in _BESIDE:
            if value := getattr(delta, name):
                counts[name] = counts.get(name, 0) + value
        for reason, value in sorted(delta.unstamped.items()):
            name = _UNSTAMPED + reason
            if name not in counts and sum(n.startswith(_UNSTAMPED) for n in counts) >= REASONS_MAX:
                name = _UNSTAMPED + "unknown"
            counts[name] = counts.get(name, 0) + value

    def _add_units(self, batch: ExposureBatch) -> None:
        key = EpochKey(batch.experiment, batch.epoch)
        if batch.forced or not self._epoch_is_recent(key, self._units, UNITS_EPOCHS):
            return
        units = self._units.setdefault(key, Units())
        units.add(batch.variant, (u for (u,) in struct.iter_unpack("<Q", batch.unit_hashes)))
        self._forget_oldest(key.experiment, self._units, UNITS_EPOCHS)

    def _add_observation(self, seen: Observation) -> None:
        key = EpochKey(seen.experiment, seen.epoch)
        if seen.shadow:
            judged = self._shadow_judged.setdefault(key, [0, 0])
            judged[0] += 1
            judged[1] += seen.correct
            return
        counts = self._counts_of(CountKey(*seen[:4], ROLE_SERVED))
        if counts is None:
            return
        counts.labelled += 1
        counts.correct += seen.correct
        if not seen.correct:
            counts.bad_at(seen.time_ms)
            self._add_wrong(key, seen.variant, seen.unit, seen.time_ms)
            self._add_exemplar(key, seen.variant, Kind.WRONG, seen.time_ms, seen.trace)

    def _add_wrong(self, key: EpochKey, variant: str, unit: int, time_ms: int) -> None:
        start_ms = self._epoch_starts.get(key)
        if start_ms is None:
            waiting = self._waiting_wrong.setdefault(key, set())
            if len(waiting) < WAITING_WRONG_MAX:
                waiting.add((time_ms, variant, unit))
            else:
                self._leave_out("first_bad")
            return
        tracker = self._tracker(key)
        slot = max(0, time_ms - start_ms) // SLOT_MS
        if tracker is None or time_ms > self._now_ms + BUCKETS_AHEAD_MS:
            self._leave_out("first_bad")
            return
        tracker.add(Kind.WRONG, slot, variant, (unit,))

    def _add_failed(self, failed: FailedTrace) -> None:
        key = EpochKey(failed.experiment, failed.epoch)
        self._add_exemplar(key, failed.variant, Kind.ERROR, failed.time_ms, failed.trace)

    def _add_exemplar(
        self, key: EpochKey, variant: str, kind: Kind, time_ms: int, trace: bytes
    ) -> None:
        if not trace:
            return
        kept = self._exemplars.setdefault((*key, variant, kind.value), set())
        kept.add((time_ms, trace.hex()))
        if len(kept) > EXEMPLARS_MAX:
            kept.discard(min(kept))

    # -- Bounds ------------------------------------------------------------------------------------

    def _advance(self, now_ms: int) -> None:
        self._now_ms = max(self._now_ms, now_ms)
        if self._now_ms >= self._prune_at_ms:
            self._prune()

    def _instance(self, instance_id: str) -> Numbers:
        numbers = self._numbers.get(instance_id)
        if numbers is None:
            while len(self._numbers) >= INSTANCES_MAX:
                oldest = min(self._numbers, key=lambda i: (self._numbers[i].seen_ms, i))
                del self._numbers[oldest]
                self._leave_out("instances")
            numbers = self._numbers[instance_id] = Numbers()
        return numbers

    def _tracker(self, key: EpochKey) -> BlockTracker | None:
        """The epoch's lanes, None when it is too old to have any."""
        tracker = self._trackers.get(key)
        if tracker is None and self._epoch_is_recent(key, self._trackers, EPOCHS_KEPT):
            tracker = self._trackers[key] = BlockTracker()
            self._forget_oldest(key.experiment, self._trackers, EPOCHS_KEPT)
        return tracker

    @staticmethod
    def _epoch_is_recent(key: EpochKey, table: Mapping[EpochKey, object], kept: int) -> bool:
        newer = sum(k.experiment == key.experiment and k.epoch > key.epoch for k in table)
        return newer < kept

    @staticmethod
    def _forget_oldest(experiment: str, table: dict[EpochKey, Any], kept: int) -> None:
        epochs = sorted(key for key in table if key.experiment == experiment)
        for key in epochs[: max(0, len(epochs) - kept)]:
            del table[key]

    def _forget_epochs(self, experiment: str) -> None:
        for table in self._epoch_tables():
            self._forget_oldest(experiment, table, EPOCHS_KEPT)

    def _epoch_tables(self) -> tuple[dict[EpochKey, Any], ...]:
        return (
            self._trackers,
            self._units,
            self._epoch_starts,
            self._shadow_judged,
            self._waiting_wrong,
        )

    def _leave_out(self, what: str, count: int = 1) -> None:
        if count:
            self.left_out[what] = self.left_out.get(what, 0) + count

    def _prune(self) -> None:
        """Lets go old buckets: what stays depends on the latest time, not on when this runs."""
        self._prune_at_ms = self._now_ms + PRUNE_EVERY_MS
        oldest_s = -(-(self._now_ms - BUCKETS_MS) // 1000)
        sketches_s = -(-(self._now_ms - BUCKET_SKETCHES_MS) // 1000)
        for key, buckets in list(self._buckets.items()):
            for start_s in [s for s in buckets if s < oldest_s]:
                del buckets[start_s]
            for start_s, bucket in buckets.items():
                if start_s < sketches_s:
                    bucket.latency = None
            if not buckets:
                del self._buckets[key]

    # -- Views -------------------------------------------------------------------------------------

    def seen(
        self,
        run: Run,
        policy: Policy,
        *,
        now_ms: int,
        sidecars: tuple[SidecarSeen, ...] = (),
        snapshot_version: int = 0,
        code_version: str = "",
    ) -> Seen:
        """What `assess` looks at, for a run's present epoch.

        Begins the run's epochs when nobody did: the run is stored, so it says the same after a
        restart.
        """
        for epoch, start_ms in (
            (run.epoch, run.epoch_start_ms),
            *((past.epoch, past.start_ms) for past in run.past),
        ):
            if epoch and EpochKey(run.experiment, epoch) not in self._epoch_starts:
                self.begin_epoch(run.experiment, epoch, start_ms)
        variants = (policy.control, *policy.candidates)
        trackers = {
            key.epoch: tracker
            for key, tracker in self._trackers.items()
            if key.experiment == run.experiment
        }
        window_s = -(-policy.window.length_ms // 1000)
        buckets = {}
        if policy.breaker is not None:
            buckets = self.buckets(
                run.experiment, run.epoch, now_ms=now_ms, count=policy.breaker.windows + 2
            )
        return Seen(
            variants=self.variants(run.experiment, run.epoch),
            window=self.window(
                run.experiment, run.epoch, now_ms // 1000 - window_s, now_ms // 1000 + 1
            ),
            buckets={name: buckets[name] for name in variants if name in buckets},
            lanes=assess_all(run, policy, trackers, now_ms=now_ms),
            sidecars=sidecars,
            exemplars=self.exemplars(run.experiment, run.epoch),
            snapshot_version=snapshot_version,
            code_version=code_version,
        )

    def variants(self, experiment: str, epoch: int | None = None) -> dict[str, VariantSeen]:
        """Counts by variant, over all strata; of one epoch, or of all (to be shown only)."""
        served: dict[str, Counts] = {}
        shadow: dict[str, Counts] = {}
        # One shadow per target at a time: an epoch's copies all went to the one that counts some.
        copies: dict[int, str] = {}
        for key, counts in self._counts.items():
            if key.experiment == experiment and epoch in (None, key.epoch):
                table = shadow if key.role == ROLE_SHADOW else served
                table.setdefault(key.variant, Counts()).merge(counts)
                if key.role == ROLE_SHADOW:
                    copies[key.epoch] = key.variant
        for (name, judged_epoch), (labelled, correct) in self._shadow_judged.items():
            if name == experiment and judged_epoch in copies:
                shadow[copies[judged_epoch]].labelled += labelled
                shadow[copies[judged_epoch]].correct += correct
        units = self._units.get(EpochKey(experiment, epoch)) if epoch is not None else None
        none = Counts()
        return {
            name: _variant_seen(served.get(name, none), shadow.get(name, none), units, name)
            for name in sorted({*served, *shadow})
        }

    def window(
        self, experiment: str, epoch: int, start_s: int, end_s: int
    ) -> dict[str, WindowSeen]:
        """Counts of the buckets that begin in [start_s, end_s), unix seconds, by variant."""
        found: dict[str, WindowSeen] = {}
        for variant, served, shadow in self._buckets_of(experiment, epoch):
            ours = [b for s, b in served.items() if start_s <= s < end_s]
            copies = [b for s, b in shadow.items() if start_s <= s < end_s]
            found[variant] = WindowSeen(
                sum(b.requests for b in ours),
                sum(b.errors for b in ours),
                sum(b.requests for b in copies),
                sum(b.errors for b in copies),
            )
        return found

    def buckets(
        self, experiment: str, epoch: int, *, now_ms: int, count: int
    ) -> dict[str, tuple[BucketSeen, ...]]:
        """The last `count` buckets up to the present one, oldest first, empty ones included."""
        present_s = now_ms // 1000 - now_ms // 1000 % TIME_BUCKET_S
        starts = [present_s - TIME_BUCKET_S * back for back in reversed(range(count))]
        none = Bucket()
        return {
            variant: tuple(
                _bucket_seen(start_s, served.get(start_s, none), shadow.get(start_s, none))
                for start_s in starts
            )
            for variant, served, shadow in self._buckets_of(experiment, epoch)
        }

    def exemplars(self, experiment: str, epoch: int) -> tuple[Exemplar, ...]:
        """Traces of bad events, the youngest first, by variant and kind."""
        return tuple(
            Exemplar(variant, Kind(kind), tuple(trace for _, trace in sorted(kept, reverse=True)))
            for (name, number, variant, kind), kept in sorted(self._exemplars.items())
            if (name, number) == (experiment, epoch)
        )

    def target(self, target: str, *, since_start_of: str = "") -> TargetCounts:
        """What was counted beside the variants.

        Args:
            target: Its name, "" = whole Envoys.
            since_start_of: Leave out what was counted before this experiment began.
        """
        counts = dict(self._targets.get(target, {}))
        for name, before in self._targets_at_start.get(since_start_of, {}).get(target, {}).items():
            counts[name] -= before
        return TargetCounts(
            {
                name.removeprefix(_UNSTAMPED): count
                for name, count in sorted(counts.items())
                if name.startswith(_UNSTAMPED) and count
            },
            {name: counts.get(name, 0) for name in _BESIDE},
        )

    def tracker(self, experiment: str, epoch: int) -> BlockTracker | None:
        """The lanes' first bad events of an epoch; None when it has none, or is too old."""
        return self._trackers.get(EpochKey(experiment, epoch))

    def last_delta_ms(self, instance_id: str) -> int:
        """When this instance's last delta was received, unix milliseconds, 0 = never."""
        numbers = self._numbers.get(instance_id)
        return numbers.seen_ms if numbers is not None else 0

    def _buckets_of(
        self, experiment: str, epoch: int
    ) -> list[tuple[str, dict[int, Bucket], dict[int, Bucket]]]:
        """(variant, served, shadow) of one epoch."""
        names = sorted({k[2] for k in self._buckets if k[:2] == (experiment, epoch)})
        return [
            (
                name,
                self._buckets.get((experiment, epoch, name, ROLE_SERVED), {}),
                self._buckets.get((experiment, epoch, name, ROLE_SHADOW), {}),
            )
            for name in names
        ]

    # -- Checkpoint --------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Everything; equal evidence gives equal bytes, whatever the order it came in."""
        self._prune()
        data = {
            "now_ms": self._now_ms,
            "counts": [[*key, self._counts[key].to_json()] for key in sorted(self._counts)],
            "buckets": [
                [*key, buckets_to_json(self._buckets[key])] for key in sorted(self._buckets)
            ],
            "numbers": [
                [instance, numbers.seen_ms, numbers.runs]
                for instance, numbers in sorted(self._numbers.items())
            ],
            "trackers": [[*k, pack64(t.to_bytes())] for k, t in sorted(self._trackers.items())],
            "units": [[*key, *units_to_json(self._units[key])] for key in sorted(self._units)],
            "epoch_starts": [[*key, start] for key, start in sorted(self._epoch_starts.items())],
            "shadow_judged": [[*key, *two] for key, two in sorted(self._shadow_judged.items())],
            "waiting_wrong": [
                [*key, sorted(waiting)] for key, waiting in sorted(self._waiting_wrong.items())
            ],
            "exemplars": [[*key, sorted(kept)] for key, kept in sorted(self._exemplars.items())],
            "targets": self._targets,
            "targets_at_start": self._targets_at_start,
            "left_out": self.left_out,
        }
        text = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return _FORMAT + zlib.compress(text.encode(), 1)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Evidence":
        """The evidence of `to_bytes`.

        Raises:
            CorruptEvidence: Not made by it, or by another version.
        """
        if not data.startswith(_FORMAT):
            raise CorruptEvidence("unknown format")
        try:
            found = json.loads(zlib.decompress(data[len(_FORMAT) :]))
            evidence = cls()
            evidence._load(found)
        except (zlib.error, ValueError, KeyError, TypeError, IndexError) as error:
            raise CorruptEvidence(str(error)) from error
        return evidence

    def _load(self, data: Mapping[str, Any]) -> None:
        self._now_ms = data["now_ms"]
        self._counts = {CountKey(*row[:5]): Counts.from_json(row[5]) for row in data["counts"]}
        self._buckets = {
            (e, n, v, r): buckets_from_json(buckets) for e, n, v, r, buckets in data["buckets"]
        }
        for instance, seen_ms, runs in data["numbers"]:
            numbers = self._numbers[instance] = Numbers()
            numbers.seen_ms, numbers.runs = seen_ms, runs
        self._trackers = {
            EpochKey(e, n): BlockTracker.from_bytes(base64.b64decode(tracker))
            for e, n, tracker in data["trackers"]
        }
        self._units = {
            EpochKey(e, n): units_from_json(shift, units) for e, n, shift, units in data["units"]
        }
        self._epoch_starts = {EpochKey(e, n): start for e, n, start in data["epoch_starts"]}
        self._shadow_judged = {EpochKey(e, n): two for e, n, *two in data["shadow_judged"]}
        self._waiting_wrong = {
            EpochKey(e, n): {(t, v, u) for t, v, u in waiting}
            for e, n, waiting in data["waiting_wrong"]
        }
        self._exemplars = {
            (e, n, v, k): {(t, trace) for t, trace in kept}
            for e, n, v, k, kept in data["exemplars"]
        }
        self._targets = data["targets"]
        self._targets_at_start = data["targets_at_start"]
        self.left_out = data["left_out"]


_UNSTAMPED: Final = "unstamped."
_BESIDE: Final = (
    "answered",
    "no_snapshot",
    "shed",
    "no_unit",
    "not_in_segment",
    "invalid_unit",
    "duplicate_unit",
    "waiting",
)


def _variant_seen(served: Counts, shadow: Counts, units: Units | None, name: str) -> VariantSeen:
    return VariantSeen(
        decided=served.decided,
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
        units=len(units.units.get(name, ())) if units is not None else None,
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
