"""What this sidecar serves, and what follows from it.

Owns the judgement of a snapshot for this sidecar, the plan order for the workers and what the start
gate is asked for. Refuses invalid snapshots and other tenants', whole. No I/O, no clock; tombstones
are `subscription`'s, which hands over the set that is in force.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sidecar.counters import Key, SlotTable
from sidecar.envoyfilter import forwarded_inputs
from sidecar.envoymatch import UnsupportedMatch, matches
from sidecar.gate import Desired, Enrolment
from sidecar.ipc import PlanOrder
from sidecar.snapshotcheck import InvalidSnapshot, Violation
from sidecar.subscription import judge_snapshot
from turnout.v1alpha1.snapshot_pb2 import ExperimentPlan, Snapshot, TargetPlan

# Requests in flight keep their cluster: the longest timeout of a target, within these bounds.
_GRACE_MIN_MS: Final = 10_000
_GRACE_MAX_MS: Final = 120_000
_GRACE_EXTRA_MS: Final = 5_000


def judge(payload: bytes, tenant: str) -> Snapshot:
    """Decode a snapshot and hold it against every rule of this sidecar.

    Args:
        payload: An encoded Snapshot.
        tenant: Whose it must be; empty = anybody's (stand-alone).

    Raises:
        InvalidSnapshot: With every violation.
    """
    snapshot = judge_snapshot(payload)
    violations: list[Violation] = []
    if tenant and snapshot.tenant != tenant:
        violations.append(Violation("tenant", snapshot.tenant, f"must be {tenant}"))
    for target in snapshot.targets:
        try:
            matches(target)
        except UnsupportedMatch as error:
            violations.append(Violation("targets", error.target, str(error)))
    if violations:
        raise InvalidSnapshot(violations)
    return snapshot


class Config:
    """The configuration that serves; changed by `serve` only."""

    def __init__(self, *, transparent: bool = False) -> None:
        """Nothing to serve.

        Args:
            transparent: Envoy intercepts what is meant for the pod beside it.
        """
        self._transparent = transparent
        self.payload = b""
        self.key = b""
        self.snapshot = Snapshot()
        self.dead: Mapping[str, int] = {}
        # Rises with every change.
        self.revision = 0
        self._live: tuple[int, Snapshot] = (0, Snapshot())
        self._slots = SlotTable()
        self._generation = 0

    def serve(
        self, payload: bytes, snapshot: Snapshot, key: bytes, dead: Mapping[str, int]
    ) -> None:
        """Serve a snapshot that was judged.

        Args:
            payload: As encoded by whoever made it.
            snapshot: The same, decoded.
            key: Of unit hashes.
            dead: Experiment -> highest epoch that must never serve.
        """
        self.payload, self.snapshot, self.key = payload, snapshot, key
        self.dead = dict(dead)
        self.revision += 1

    def live(self) -> Snapshot:
        """The snapshot without the experiments that are dead; not to be changed."""
        revision, live = self._live
        if revision != self.revision:
            live = Snapshot()
            live.CopyFrom(self.snapshot)
            del live.experiments[:]
            live.experiments.extend(e for e in self.snapshot.experiments if not self._is_dead(e))
            self._live = (self.revision, live)
        return live

    def desired(self) -> Desired:
        """What the start gate and Envoy's files are asked for."""
        live = self.live()
        targets = {target.name: target for target in live.targets}
        enrolments = tuple(
            Enrolment(
                experiment.name,
                experiment.epoch,
                _served_by(experiment, targets[experiment.target]),
                forwarded_inputs(
                    Snapshot(targets=[targets[experiment.target]], experiments=[experiment])
                ),
            )
            for experiment in live.experiments
        )
        longest = max((t.timeout.ToMilliseconds() for t in live.targets), default=0)
        grace_ms = max(_GRACE_MIN_MS, min(_GRACE_MAX_MS, longest + _GRACE_EXTRA_MS))
        baselines = {target.name: target.baseline.cluster for target in live.targets}
        return Desired(enrolments, baselines, grace_ms)

    def order(
        self,
        open_gates: frozenset[tuple[str, int]] | None,
        defaults: Mapping[str, str] | None = None,
    ) -> PlanOrder:
        """The next order for the workers.

        Args:
            open_gates: (experiment, epoch) that may enrol; None = there is no gate.
            defaults: Target -> cluster of requests that get no variant, see `PlanOrder`.
        """
        self._generation += 1
        keys = [
            (experiment.name, experiment.epoch, variant.name)
            for experiment in self.snapshot.experiments
            for variant in experiment.variants
        ]
        return PlanOrder(
            generation=self._generation,
            snapshot=self.payload,
            tenant_key=self.key,
            dead=dict(self.dead),
            open_gates=open_gates,
            slots=self._slots.assign(keys, self._generation),
            defaults=dict(defaults or {}),
            transparent=self._transparent,
        )

    @property
    def next_generation(self) -> int:
        """Of the order to come."""
        return self._generation + 1

    def counting(self) -> dict[Key, int]:
        """Every variant that may still be counted, with its slot in the decided counters."""
        return dict(self._slots.counting)

    def served(self, generation: int) -> None:
        """Every worker serves this order or a later one: slots of what left before are free."""
        self._slots.release(generation)

    def _is_dead(self, experiment: ExperimentPlan) -> bool:
        return experiment.epoch <= self.dead.get(experiment.name, 0)


def _served_by(experiment: ExperimentPlan, target: TargetPlan) -> frozenset[str]:
    """The clusters that a stamp of this experiment can name.

    One that sets parameters routes nothing: what it stamps goes to the target's baseline.
    """
    own = frozenset(v.cluster.cluster for v in experiment.variants if v.HasField("cluster"))
    return own or frozenset((target.baseline.cluster,))
