"""Everything the controller knows of one tenant, and the snapshot that it comes to.

Pure but for being mutable: owned and changed by `control.rollout.ledger` alone. Refuses to store,
to publish and to decide.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from control import snapshot
from control.journal import Journal
from control.rollout.decide import Decision
from control.rollout.entries import ExperimentEntry, TargetEntry
from control.rollout.seen import Seen
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
from turnout.v1alpha1.experiment_pb2 import Condition
from turnout.v1alpha1.snapshot_pb2 import Snapshot


@dataclass(frozen=True, slots=True)
class Latest:
    """What the loop saw and thought last, recorded or not."""

    decision: Decision
    seen: Seen
    conditions: tuple[Condition, ...]


@dataclass(slots=True)
class Tenant:
    """State of one tenant in memory; the store has the same, or will have after `pending`.

    Attributes:
        name: DNS label.
        targets, experiments: By id.
        tombstones: Highest of each experiment.
        epochs: Highest epoch ever used under a name, deleted experiments included.
        version: Last snapshot version that was given out, published or not.
        content: The published snapshot with version 0; None before the first.
        journal: What sidecars, spans and outcomes have told.
        latest: The loop's last look at each live experiment.
        pending: Changes that were published before they were stored, in order.
        lock: Held while a change is stored: changes are stored one after the other.
    """

    name: str
    journal: Journal
    targets: dict[str, TargetEntry] = field(default_factory=dict)
    experiments: dict[str, ExperimentEntry] = field(default_factory=dict)
    tombstones: dict[str, TombstoneRecord] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    version: int = 0
    content: bytes | None = None
    latest: dict[str, Latest] = field(default_factory=dict)
    pending: deque[Change] = field(default_factory=deque)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def live_on(self, target: str) -> list[ExperimentEntry]:
        """The live experiments of a target, by name."""
        found = (self.experiments[name] for name in sorted(self.experiments))
        return [entry for entry in found if entry.run.live and entry.spec.target == target]

    def last_epoch(self, experiment: str) -> int:
        """The highest epoch ever used under this name, tombstones learnt from sidecars included."""
        dead = self.tombstones.get(experiment)
        return max(self.epochs.get(experiment, 0), dead.epoch if dead else 0)


@dataclass(frozen=True, slots=True)
class Mutation:
    """What one command or decision changes; None as an entry = deleted."""

    targets: Mapping[str, TargetEntry | None] = field(default_factory=dict)
    experiments: Mapping[str, ExperimentEntry | None] = field(default_factory=dict)
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
    running = [
        running_experiment(entry)
        for entry in experiments.values()
        if entry is not None and entry.run.live
    ]
    return snapshot.build(
        tenant.name,
        0,
        {name: entry.spec for name, entry in targets.items() if entry is not None},
        running,
        [tombstone_message(tombstone) for tombstone in tombstones.values()],
    )


def running_experiment(entry: ExperimentEntry) -> snapshot.RunningExperiment:
    """A live experiment as the snapshot takes it."""
    run = entry.run
    shadow = None
    if run.shadow_variant:
        shadow = (run.shadow_variant, run.shadow_ppm / contract.BUCKET_COUNT)
    return snapshot.RunningExperiment(
        name=entry.name,
        spec=entry.spec,
        epoch=run.epoch,
        epoch_start_ms=run.epoch_start_ms,
        allocation=run.allocation,
        shadow=shadow,
        baseline=entry.baseline,
    )


def allocated(entry: ExperimentEntry) -> ExperimentEntry:
    """The entry with ranges for its run's split, grown from those it had before."""
    run = entry.run
    allocation = snapshot.allocate(run.allocation, run.split_ppm, control=entry.spec.control)
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
