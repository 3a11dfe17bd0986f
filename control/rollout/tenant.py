"""Everything the controller knows of one tenant, and the snapshot that it comes to.

Pure but for being mutable: owned and changed by `control.rollout.ledger` alone. Refuses to store,
to publish and to decide.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from control import snapshot
from control.evidence import Evidence
from control.journal import Journal
from control.model import KnownMetrics
from control.rollout.cells import Cells
from control.rollout.decide import Decision
from control.rollout.entries import ExperimentEntry, HoldoutEntry, MetricEntry, TargetEntry
from control.rollout.looks import Looks
from control.rollout.policy import Policy
from control.rollout.seen import Seen
from control.rollout.words import Phase, State
from control.store.base import (
    AlertRecord,
    AnswerRecord,
    AuditRecord,
    Change,
    DecisionRecord,
    EpochMark,
    TombstoneRecord,
)
from turnout import contract
from turnout.v1alpha1.common_pb2 import Tombstone
from turnout.v1alpha1.config_service_pb2 import DeltaBatch
from turnout.v1alpha1.experiment_pb2 import Condition
from turnout.v1alpha1.snapshot_pb2 import Snapshot

# A sidecar sends what was not acknowledged again within seconds; this long without it, it is gone.
AHEAD_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Latest:
    """What the loop saw and thought last, recorded or not."""

    decision: Decision
    seen: Seen
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Looked:
    """Looks, what they are of (good until the cells are others), and how long they took."""

    cells: Cells
    policy: Policy
    at_ms: int
    looks: Looks | None
    cost_ms: float = 0.0


class Ahead:
    """Evidence with deltas that the store could not take yet.

    Harm must be seen while the disk is slow or full, and evidence is otherwise what was stored. A
    copy that is thrown away as soon as everything in it is stored; labels that come meanwhile are
    not in it.
    """

    def __init__(self, stored: Evidence) -> None:
        self.evidence = stored.copy()
        self._unstored: set[tuple[str, int]] = set()
        self._touched_ms = 0

    def add(self, batch: DeltaBatch, now_ms: int) -> None:
        """Look at a delta that is not stored."""
        self.evidence.add_delta(batch, now_ms)
        self._unstored.add((batch.instance_id, batch.seq))
        self._touched_ms = now_ms

    def stored(self, batch: DeltaBatch, now_ms: int) -> None:
        """A delta was stored; one that was not looked at yet is now."""
        self.evidence.add_delta(batch, now_ms)
        self._unstored.discard((batch.instance_id, batch.seq))

    def over(self, now_ms: int) -> bool:
        """True when everything is stored, or its senders have gone."""
        return not self._unstored or now_ms - self._touched_ms > AHEAD_MS


@dataclass(slots=True)
class Tenant:
    """State of one tenant in memory; the store has the same, or will have after `pending`.

    Attributes:
        name: DNS label.
        targets, experiments: By id.
        metrics: Declared ones, by id.
        holdout: As it is for experiments that start now; None = nobody ever set one.
        tombstones: Highest of each experiment.
        epochs: Highest epoch ever used under a name, deleted experiments included.
        version: Last snapshot version that was given out, published or not.
        content: The published snapshot with version 0; None before the first.
        journal: What sidecars, spans and outcomes have told, stored.
        ahead: The same with deltas that are not stored yet; see `Ahead`.
        latest: The loop's last look at each live experiment.
        looked: What the evidence by bucket came to, by experiment.
        shown: The same with the metrics that results only show, where somebody asked.
        pending: Changes that were published before they were stored, in order.
        lock: Held while a change is stored: changes are stored one after the other.
    """

    name: str
    journal: Journal
    ahead: Ahead | None = None
    targets: dict[str, TargetEntry] = field(default_factory=dict)
    experiments: dict[str, ExperimentEntry] = field(default_factory=dict)
    metrics: dict[str, MetricEntry] = field(default_factory=dict)
    holdout: HoldoutEntry | None = None
    tombstones: dict[str, TombstoneRecord] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    version: int = 0
    content: bytes | None = None
    latest: dict[str, Latest] = field(default_factory=dict)
    looked: dict[str, Looked] = field(default_factory=dict)
    shown: dict[str, Looked] = field(default_factory=dict)
    pending: deque[Change] = field(default_factory=deque)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def evidence(self) -> Evidence:
        """All that may be looked at."""
        return self.journal.evidence if self.ahead is None else self.ahead.evidence

    def live_on(self, target: str) -> list[ExperimentEntry]:
        """The live experiments of a target, by name."""
        found = (self.experiments[name] for name in sorted(self.experiments))
        return [entry for entry in found if entry.run.live and entry.spec.target == target]

    def users_of(self, metric: str) -> list[ExperimentEntry]:
        """Experiments that name a declared metric and have not ended, by name."""
        found = (self.experiments[name] for name in sorted(self.experiments))
        return [
            entry
            for entry in found
            if (entry.run.live or entry.run.state is State.DRAFT)
            and any(named == metric for named, _ in entry.state.metrics)
        ]

    @property
    def known_metrics(self) -> KnownMetrics:
        """What experiments may name beside the built-in metrics."""
        declared = {name: entry.spec for name, entry in self.metrics.items()}
        return KnownMetrics(declared, complete=True)

    def last_epoch(self, experiment: str) -> int:
        """The highest epoch ever used under this name, tombstones learnt from sidecars included."""
        dead = self.tombstones.get(experiment)
        return max(self.epochs.get(experiment, 0), dead.epoch if dead else 0)


@dataclass(frozen=True, slots=True)
class Mutation:
    """What one command or decision changes; an entry of None is deleted, no holdout is kept."""

    targets: Mapping[str, TargetEntry | None] = field(default_factory=dict)
    experiments: Mapping[str, ExperimentEntry | None] = field(default_factory=dict)
    metrics: Mapping[str, MetricEntry | None] = field(default_factory=dict)
    holdout: HoldoutEntry | None = None
    epochs: tuple[EpochMark, ...] = ()
    tombstones: tuple[TombstoneRecord, ...] = ()
    decisions: tuple[DecisionRecord, ...] = ()
    audits: tuple[AuditRecord, ...] = ()
    answers: tuple[AnswerRecord, ...] = ()
    alerts: tuple[AlertRecord, ...] = ()


def overlay(tenant: Tenant, mutation: Mutation) -> Snapshot:
    """The tenant's snapshot, with version 0, as it will be after the mutation."""
    targets = {**tenant.targets, **mutation.targets}
    experiments = {**tenant.experiments, **mutation.experiments}
    tombstones = dict(tenant.tombstones)
    for tombstone in mutation.tombstones:
        tombstones[tombstone.experiment] = tombstone
    live = [entry for entry in experiments.values() if entry is not None and entry.run.live]
    mirroring = mirroring_experiments(live)
    running = [running_experiment(entry, mirrors=entry.name in mirroring) for entry in live]
    return snapshot.build(
        tenant.name,
        0,
        {name: entry.spec for name, entry in targets.items() if entry is not None},
        running,
        [tombstone_message(tombstone) for tombstone in tombstones.values()],
    )


def mirroring_experiments(live: Iterable[ExperimentEntry]) -> set[str]:
    """Names of the live experiments whose copies are made: one of each target.

    The one that started first: nobody takes a shadow over from an experiment that has it.
    """
    first: dict[str, ExperimentEntry] = {}
    for entry in sorted(live, key=lambda entry: (entry.run.start_ms, entry.name)):
        if entry.run.shadow_variant:
            first.setdefault(entry.spec.target, entry)
    return {entry.name for entry in first.values()}


def running_experiment(
    entry: ExperimentEntry, *, mirrors: bool = True
) -> snapshot.RunningExperiment:
    """A live experiment as the snapshot takes it.

    Args:
        entry: The experiment.
        mirrors: False while it waits for another one's shadow to end.
    """
    run = entry.run
    shadow = holdout = None
    if run.shadow_variant and mirrors:
        shadow = (run.shadow_variant, run.shadow_ppm / contract.BUCKET_COUNT)
    if entry.state.holdout_ppm:
        fraction = entry.state.holdout_ppm / contract.BUCKET_COUNT
        holdout = (entry.state.holdout_salt, fraction)
    return snapshot.RunningExperiment(
        name=entry.name,
        spec=entry.measured,
        epoch=run.epoch,
        epoch_start_ms=run.epoch_start_ms,
        allocation=run.allocation,
        shadow=shadow,
        baseline=entry.baseline,
        step=run.step,
        layer_ranges=entry.layer_ranges,
        holdout=holdout,
    )


def allocated(entry: ExperimentEntry) -> ExperimentEntry:
    """The entry with ranges for its run's split, grown from those it had before."""
    run = entry.run
    moved = snapshot.reallocate if run.phase is Phase.BANDIT else snapshot.allocate
    allocation = moved(run.allocation, run.split_ppm, control=entry.spec.control)
    state = replace(entry.state, run=replace(run, allocation=allocation))
    return replace(entry, state=state)


def tombstone_message(record: TombstoneRecord) -> Tombstone:
    """A tombstone on the wire."""
    return Tombstone(
        experiment=record.experiment,
        epoch=record.epoch,
        reason=record.reason,
        time_unix_ms=record.time_ms,
    )
