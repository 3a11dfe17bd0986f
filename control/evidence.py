"""What is known of one tenant's experiments: deltas and judged answers, merged. Pure.

Owns the counts that `assess` looks at. Refuses to judge, and to read a clock: times come with what
is added.

Merging is idempotent and does not depend on order: a delta counts once per (instance, number),
counts are integers that are added, sets are united, first times are minima. So the same deltas give
the same bytes however often and in whatever order they came (tests/properties). Everything is
bounded; what a bound leaves out is counted in `left_out`:
    * `findings.KEYS_MAX` (experiment, epoch, variant, stratum, role), EXPERIMENTS_MAX experiments;
    * of an experiment, EPOCHS_KEPT epochs have lanes and cells; BUCKETS_MS of time buckets; what
      cells may take says `control.cellbook`;
    * INSTANCES_MAX instances; of one, `tallies.RANGES_MAX` runs of numbers (numbers are lost only
      when a sidecar had to drop deltas: beyond that the oldest gap counts as lost for good).

An epoch has to be begun (`begin_epoch`) before it is published: slots of wrong answers count from
its start. Those that come before wait.
"""

import itertools
import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from control.cellbook import CellBook, excess_of_cell, fault_of_cell, fault_of_units
from control.cellbytes import Array, Frozen, pack, unpack
from control.findings import KINDS, Findings
from control.outcomes import Joined
from control.rollout.cells import Cells
from control.rollout.lanes import BlockTracker, assess_all
from control.rollout.policy import Policy
from control.rollout.run import Run
from control.rollout.seen import BucketSeen, Exemplar, Seen, SidecarSeen, VariantSeen, WindowSeen
from control.tallies import COUNTED, Numbers, Room
from turnout.contract import EXPERIMENTS_PER_TENANT_MAX
from turnout.v1alpha1.config_service_pb2 import (
    ROLE_SERVED,
    ROLE_SHADOW,
    CountDelta,
    DeltaBatch,
    TargetDelta,
)

# Twice what may exist: deltas of deleted experiments still come in.
EXPERIMENTS_MAX: Final = 2 * EXPERIMENTS_PER_TENANT_MAX
INSTANCES_MAX: Final = 4096
TARGETS_MAX: Final = 2000
REASONS_MAX: Final = 16
NAME_CHARACTERS_MAX: Final = 63
COUNT_MAX: Final = 1 << 40  # of one delta: a million of them still fit into 64 bits
PRUNE_EVERY_MS: Final = 60_000
_NUMBER_MAX: Final = 1 << 62  # what SQLite and packed rows hold
_FORMAT: Final = b"EVIDENCE\x02"
_FORMAT_1: Final = b"EVIDENCE\x01"  # before cells
_SIZE: Final = struct.Struct("<Q")
_UNREADABLE: Final = (zlib.error, struct.error, StopIteration)
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
    "held_out",
    "not_in_layer",
    "invalid_token",
    "peer",
)


class InvalidDelta(ValueError):
    """A delta that no sidecar of ours sends; nothing of it was taken."""


class ImpossibleCounts(InvalidDelta):
    """Counts that no requests could have come to.

    Attributes:
        field: Of the batch: "cells[0].errors[17]".
        value: What is there.
        rule: What must hold, to follow "must be".
    """

    def __init__(self, field: str, value: int, rule: str) -> None:
        self.field, self.value, self.rule = field, value, rule
        super().__init__(f"{field} == {value}, must be {rule}")


class CorruptEvidence(ValueError):
    """The bytes are no evidence."""


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
    if not 0 < len(batch.instance_id) <= 128 or not 0 < batch.seq <= _NUMBER_MAX:
        raise InvalidDelta("instance_id must have 1..128 characters and seq must be >= 1")
    for count in batch.counts:
        _check_count(count)
    for bad in batch.first_bad:
        _check_key(bad.experiment, bad.variant)
        if len(bad.unit_hashes) % 8 or bad.sample_shift > 64 or bad.kind not in KINDS:
            raise InvalidDelta("first_bad: kind, sample_shift or unit_hashes")
    for exposure in batch.exposures:
        _check_key(exposure.experiment, exposure.variant)
        rows = len(exposure.offset_ms) * 8
        if len(exposure.unit_hashes) != rows or len(exposure.request_hashes) != rows:
            raise InvalidDelta("exposures: columns differ in length")
        if not 0 <= exposure.base_unix_ms <= _NUMBER_MAX:
            raise InvalidDelta("exposures: base_unix_ms")
    for cell in batch.cells:
        _check_key(cell.experiment, cell.variant)
        if fault := fault_of_cell(cell):
            raise InvalidDelta(fault)
    for units in batch.units:
        _check_key(units.experiment, units.variant)
        if fault := fault_of_units(units):
            raise InvalidDelta(fault)
    for target in batch.targets:
        if any(len(name) > NAME_CHARACTERS_MAX for name in (target.target, *target.unstamped)):
            raise InvalidDelta("targets: name or reason too long")


def _check_count(count: CountDelta) -> None:
    _check_key(count.experiment, count.variant)
    if len(count.latency_bins) != len(count.latency_counts):
        raise InvalidDelta("latency_bins and latency_counts differ in length")
    if count.role not in (ROLE_SERVED, ROLE_SHADOW):
        raise InvalidDelta(f"role {count.role}")
    if not 0 <= count.latency_sum_ms < 1e18:  # also refuses NaN
        raise InvalidDelta(f"latency_sum_ms {count.latency_sum_ms}")
    if any(not -2000 < index < 4000 for index in count.latency_bins):
        raise InvalidDelta("latency bin out of range")
    if any(getattr(count, name) > COUNT_MAX for name in COUNTED) or count.first_bad_unix_ms < 0:
        raise InvalidDelta("a count out of range")


def check_counts(batch: DeltaBatch) -> None:
    """Refuses counts that contradict each other, before they are stored.

    Apart from `check`, which what is stored passes again when it is replayed: an older version
    stored what this one refuses.

    Args:
        batch: It passed `check`.

    Raises:
        ImpossibleCounts: Part of the requests is more than all of them.
    """
    for place, count in enumerate(batch.counts):
        ended = count.errors + count.client_cancelled + count.client_errors
        timed = sum(count.latency_counts) + count.latency_zero
        for name, value in (
            ("errors", count.errors),
            ("slow", count.slow),
            ("errors + client_cancelled + client_errors", ended),
            ("latency_counts + latency_zero", timed),
        ):
            if value > count.requests:
                field = f"counts[{place}].{name}"
                raise ImpossibleCounts(field, value, f"<= requests == {count.requests}")
    for place, cell in enumerate(batch.cells):
        if found := excess_of_cell(cell):
            name, value, requests = found
            rule = f"<= requests == {requests} of this bucket"
            raise ImpossibleCounts(f"cells[{place}].{name}", value, rule)


def _check_key(experiment: str, variant: str) -> None:
    for name in (experiment, variant):
        if not 0 < len(name) <= NAME_CHARACTERS_MAX or not name.isascii() or not name.isprintable():
            raise InvalidDelta(f"name {name[:80]!r}")


@dataclass(frozen=True, slots=True)
class FrozenEvidence:
    """Evidence as it was; nothing in it changes."""

    data: Mapping[str, Any]
    cells: Mapping[str, Frozen]

    def text(self) -> str:
        """All but the cells, as JSON."""
        return json.dumps(self.data, sort_keys=True, separators=(",", ":"))

    def to_bytes(self) -> bytes:
        """As bytes: slow for much evidence, and free of the evidence itself."""
        text = zlib.compress(self.text().encode(), 1)
        return _FORMAT + _SIZE.pack(len(text)) + text + pack(self.cells)


# -- Evidence --------------------------------------------------------------------------------------


class Evidence:
    """Everything that deltas and judged answers of one tenant came to."""

    def __init__(self) -> None:
        self._now_ms = 0
        self._prune_at_ms = 0
        self._room = Room()
        self._experiments: dict[str, Findings] = {}
        self._numbers: dict[str, Numbers] = {}
        self._targets: dict[str, dict[str, int]] = {}

    @property
    def left_out(self) -> Mapping[str, int]:
        """What no bound had room for, by kind, and what sidecars left out."""
        return self._room.left_out

    # -- Adding ------------------------------------------------------------------------------------

    def begin_epoch(
        self, experiment: str, epoch: int, start_ms: int, target: str = "", warm_up_ms: int = 0
    ) -> None:
        """An epoch is about to be published: the origin of its slots, and how long it warms up.

        The first epoch of an experiment also remembers what its target had counted before.
        """
        found = self._findings(experiment)
        if found is None:
            return
        if found.targets_at_start is None:
            found.targets_at_start = {n: dict(self._targets.get(n, {})) for n in ("", target)}
        found.begin(epoch, start_ms, self._now_ms, warm_up_ms)

    def forget(self, experiment: str) -> None:
        """Forgets a deleted experiment."""
        found = self._experiments.pop(experiment, None)
        if found is not None:
            found.forget()

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
        self._room.leave_out("gaps_given_up", numbers.add(batch.seq))
        for count in batch.counts:
            if (found := self._findings(count.experiment)) is not None:
                found.add_count(count, received_ms, self._now_ms)
        for bad in batch.first_bad:
            if (found := self._findings(bad.experiment)) is not None:
                found.add_first_bad(bad, received_ms)
        for cell in batch.cells:
            if (found := self._findings(cell.experiment)) is not None:
                found.cells.add(cell)
        for units in batch.units:
            if (found := self._findings(units.experiment)) is not None:
                found.add_units(units)
        for target in batch.targets:
            self._add_target(target)
        for what in ("exposures_dropped", "repeated_requests", "malformed_stamps"):
            self._room.leave_out(what, getattr(batch, what))
        return True

    def has_delta(self, instance_id: str, seq: int) -> bool:
        """Whether this delta has been merged (or its number was given up)."""
        numbers = self._numbers.get(instance_id)
        return numbers is not None and numbers.has(seq)

    def add_joined(self, joined: Joined) -> None:
        """Counts what the joiner completed; each of its observations is given once."""
        self._advance(joined.now_ms)
        for observation in joined.observations:
            if (found := self._findings(observation.experiment)) is not None:
                found.add_observation(observation, self._now_ms)
        for value in joined.values:
            if (found := self._findings(value.experiment)) is not None:
                found.add_value(value)
        for failed in joined.failed:
            if (found := self._findings(failed.experiment)) is not None:
                found.add_failed(failed)

    def _add_target(self, delta: TargetDelta) -> None:
        if delta.target not in self._targets and len(self._targets) >= TARGETS_MAX:
            self._room.leave_out("targets")
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

    # -- Bounds ------------------------------------------------------------------------------------

    def _findings(self, experiment: str) -> Findings | None:
        """An experiment's findings, None when there is no room for one more."""
        found = self._experiments.get(experiment)
        if found is None:
            if len(self._experiments) >= EXPERIMENTS_MAX:
                self._room.leave_out("experiments")
                return None
            found = self._experiments[experiment] = Findings(self._room)
        return found

    def _instance(self, instance_id: str) -> Numbers:
        numbers = self._numbers.get(instance_id)
        if numbers is None:
            while len(self._numbers) >= INSTANCES_MAX:
                oldest = min(self._numbers, key=lambda i: (self._numbers[i].seen_ms, i))
                del self._numbers[oldest]
                self._room.leave_out("instances")
            numbers = self._numbers[instance_id] = Numbers()
        return numbers

    def _advance(self, now_ms: int) -> None:
        self._now_ms = max(self._now_ms, now_ms)
        if self._now_ms >= self._prune_at_ms:
            self._prune()

    def _prune(self) -> None:
        self._prune_at_ms = self._now_ms + PRUNE_EVERY_MS
        for found in self._experiments.values():
            found.prune(self._now_ms)

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
        name, epoch = run.experiment, run.epoch
        begun = ((epoch, run.epoch_start_ms), *((p.epoch, p.start_ms) for p in run.past))
        for number, start_ms in begun:
            if number and not self._of(name).has_begun(number):
                self.begin_epoch(name, number, start_ms, warm_up_ms=policy.warm_up_ms)
        found = self._of(name)
        now_s = now_ms // 1000
        window_s = -(-policy.window.length_ms // 1000)
        buckets = {}
        if policy.breaker is not None:
            buckets = found.buckets(epoch, now_ms=now_ms, count=policy.breaker.windows + 2)
        return Seen(
            variants=found.variants(epoch),
            window=found.window(epoch, now_s - window_s, now_s + 1),
            buckets=buckets,
            lanes=assess_all(run, policy, found.trackers, now_ms=now_ms),
            sidecars=sidecars,
            exemplars=found.exemplars(epoch),
            snapshot_version=snapshot_version,
            code_version=code_version,
        )

    def cells(self, run: Run, policy: Policy) -> Cells:
        """Sums by bucket of units of the run's epochs, by reference: to be read, not kept.

        The same object as before while nothing in it has changed.
        """
        return self._of(run.experiment).cells.view(run, policy)

    def beside(self, experiment: str, epoch: int | None = None) -> dict[str, tuple[int, int, int]]:
        """See `CellBook.totals`."""
        return self._of(experiment).cells.totals(epoch)

    def variants(self, experiment: str, epoch: int | None = None) -> dict[str, VariantSeen]:
        """Counts by variant, over all strata; of one epoch, or of all (to be shown only)."""
        return self._of(experiment).variants(epoch)

    def window(
        self, experiment: str, epoch: int, start_s: int, end_s: int
    ) -> dict[str, WindowSeen]:
        """Counts of the buckets that begin in [start_s, end_s), unix seconds, by variant."""
        return self._of(experiment).window(epoch, start_s, end_s)

    def buckets(
        self, experiment: str, epoch: int, *, now_ms: int, count: int
    ) -> dict[str, tuple[BucketSeen, ...]]:
        """The last `count` buckets up to the present one, oldest first, empty ones included."""
        return self._of(experiment).buckets(epoch, now_ms=now_ms, count=count)

    def exemplars(self, experiment: str, epoch: int) -> tuple[Exemplar, ...]:
        """Traces of bad events, the youngest first, by variant and kind."""
        return self._of(experiment).exemplars(epoch)

    def exemplar_spans(self, experiment: str, epoch: int) -> dict[str, str]:
        """See `Findings.exemplar_spans`."""
        return self._of(experiment).exemplar_spans(epoch)

    def tracker(self, experiment: str, epoch: int) -> BlockTracker | None:
        """The lanes' first bad events of an epoch; None when it has none, or is too old."""
        return self._of(experiment).trackers.get(epoch)

    def target(self, target: str, *, since_start_of: str = "") -> TargetCounts:
        """What was counted beside the variants.

        Args:
            target: Its name, "" = whole Envoys.
            since_start_of: Leave out what was counted before this experiment began.
        """
        counts = dict(self._targets.get(target, {}))
        at_start = self._of(since_start_of).targets_at_start or {}
        for name, before in at_start.get(target, {}).items():
            counts[name] -= before
        return TargetCounts(
            {
                name.removeprefix(_UNSTAMPED): count
                for name, count in sorted(counts.items())
                if name.startswith(_UNSTAMPED) and count
            },
            {name: counts.get(name, 0) for name in _BESIDE},
        )

    def last_delta_ms(self, instance_id: str) -> int:
        """When this instance's last delta was received, unix milliseconds, 0 = never."""
        numbers = self._numbers.get(instance_id)
        return numbers.seen_ms if numbers is not None else 0

    def _of(self, experiment: str) -> Findings:
        """To be read: an experiment that nothing is known of has empty findings."""
        return self._experiments.get(experiment) or Findings(Room())

    # -- Checkpoint --------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Everything; equal evidence gives equal bytes, whatever the order it came in."""
        return self.frozen().to_bytes()

    def frozen(self) -> "FrozenEvidence":
        """Everything as it is now; to be turned into bytes anywhere."""
        self._prune()
        data = {
            "now_ms": self._now_ms,
            "experiments": {name: found.to_json() for name, found in self._experiments.items()},
            "numbers": [
                [i, self._numbers[i].seen_ms, [list(run) for run in self._numbers[i].runs]]
                for i in sorted(self._numbers)
            ],
            "targets": {name: dict(counts) for name, counts in self._targets.items()},
            "left_out": dict(self._room.left_out),
        }
        cells = {name: found.cells.frozen() for name, found in self._experiments.items()}
        return FrozenEvidence(data, cells)

    def copy(self) -> "Evidence":
        """Another one that is equal, and changes by itself."""
        frozen, copied = self.frozen(), Evidence()
        heads = [(name, book.head) for name, book in frozen.cells.items()]
        arrays = itertools.chain.from_iterable(book.arrays for book in frozen.cells.values())
        copied._load(json.loads(frozen.text()), heads, arrays)
        return copied

    @classmethod
    def from_bytes(cls, data: bytes) -> "Evidence":
        """The evidence of `to_bytes`, of this version or the one before.

        Raises:
            CorruptEvidence: Not made by it, or by another version.
        """
        heads: Iterable[tuple[str, Mapping[str, Any]]] = ()
        arrays: Iterator[Array] = iter(())
        try:
            if data.startswith(_FORMAT):
                (size,) = _SIZE.unpack_from(data, len(_FORMAT))
                start = len(_FORMAT) + _SIZE.size
                text = zlib.decompress(data[start : start + size])
                heads, arrays = unpack(data[start + size :])
            elif data.startswith(_FORMAT_1):
                text = zlib.decompress(data[len(_FORMAT_1) :])
            else:
                raise CorruptEvidence("unknown format")
            evidence = cls()
            evidence._load(json.loads(text), heads, arrays)
        except (*_UNREADABLE, ValueError, KeyError, TypeError, IndexError) as error:
            raise CorruptEvidence(str(error)) from error
        return evidence

    def _load(
        self,
        data: Mapping[str, Any],
        heads: Iterable[tuple[str, Mapping[str, Any]]],
        arrays: Iterator[Array],
    ) -> None:
        self._now_ms = data["now_ms"]
        self._room.left_out = data["left_out"]
        books = {name: CellBook.thawed(head, arrays, self._room) for name, head in heads}
        self._experiments = {
            name: Findings.from_json(found, self._room, books.get(name))
            for name, found in data["experiments"].items()
        }
        for instance, seen_ms, runs in data["numbers"]:
            numbers = self._numbers[instance] = Numbers()
            numbers.seen_ms, numbers.runs = seen_ms, runs
        self._targets = data["targets"]
