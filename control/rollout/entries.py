"""Targets, experiments, metrics and holdouts as the controller holds them in memory, and as stored.

Pure. Owns the encoding of `Resource.state` and the etag. Refuses to decide and to store.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field, replace
from typing import Final

from control.model import layer_name, resolved
from control.rollout import codec
from control.rollout.policy import Policy
from control.rollout.run import Ranges, Run
from control.snapshot import ALL_BUCKETS
from control.store.base import Kind, Resource
from turnout.v1alpha1.experiment_pb2 import Decision, ExperimentSpec
from turnout.v1alpha1.experiment_service_pb2 import HoldoutSpec
from turnout.v1alpha1.metric_pb2 import MetricSpec
from turnout.v1alpha1.target_pb2 import Baseline, TargetSpec

ETAG_BYTES: Final = 8
HOLDOUT_NAME: Final = "holdout"  # a tenant has one


@dataclass(frozen=True, slots=True)
class TargetState:
    """What a target remembers beside its spec.

    Attributes:
        previous: Encoded Baseline before the last promotion in base64, "" = none.
        previous_expire_ms: Until when it can be undone to, Unix milliseconds.
        promoted_from: Id of the experiment whose promotion set the baseline, "" = none.
    """

    previous: str = ""
    previous_expire_ms: int = 0
    promoted_from: str = ""


@dataclass(frozen=True, slots=True)
class ExperimentState:
    """What an experiment remembers beside its spec.

    Attributes:
        run: The rollout's state.
        baseline: Encoded Baseline that control is pinned to, base64, "" = not started.
        snapshot_version: Version that first carried this state.
        layer_ranges: Buckets of its layer that it reserved at its start, () = all of them.
        holdout_salt, holdout_ppm: The holdout that it was started with, 0 = nobody is held out.
        metrics: (declared, built-in) of the declared metrics that it names: what each one is
            measured as. A metric whose meaning is in use does not change.
    """

    run: Run
    baseline: str = ""
    snapshot_version: int = 0
    layer_ranges: Ranges = field(default=(), metadata=codec.ADDED)
    holdout_salt: str = field(default="", metadata=codec.ADDED)
    holdout_ppm: int = field(default=0, metadata=codec.ADDED)
    metrics: tuple[tuple[str, str], ...] = field(default=(), metadata=codec.ADDED)


@dataclass(frozen=True, slots=True)
class TargetEntry:
    """One target. A change makes a new entry."""

    resource: Resource
    spec: TargetSpec
    state: TargetState

    @property
    def name(self) -> str:
        """Id within the tenant."""
        return self.resource.name


@dataclass(frozen=True, slots=True)
class ExperimentEntry:
    """One experiment. A change makes a new entry."""

    resource: Resource
    spec: ExperimentSpec
    policy: Policy
    state: ExperimentState
    last_decision: Decision | None = None

    @property
    def name(self) -> str:
        """Id within the tenant."""
        return self.resource.name

    @property
    def run(self) -> Run:
        """The rollout's state."""
        return self.state.run

    @property
    def measured(self) -> ExperimentSpec:
        """The spec with what its metrics are measured as: what is judged and published."""
        return resolved(self.spec, dict(self.state.metrics))

    @property
    def baseline(self) -> Baseline | None:
        """What control is pinned to, None before the start."""
        return decode_baseline(self.state.baseline)

    @property
    def layer(self) -> str:
        """The layer that it is in."""
        return layer_name(self.spec)

    @property
    def layer_ranges(self) -> Ranges:
        """What it reserved of its layer."""
        return self.state.layer_ranges or ALL_BUCKETS


@dataclass(frozen=True, slots=True)
class MetricEntry:
    """A metric that a tenant declared. A change makes a new entry."""

    resource: Resource
    spec: MetricSpec

    @property
    def name(self) -> str:
        """Id within the tenant."""
        return self.resource.name


@dataclass(frozen=True, slots=True)
class HoldoutEntry:
    """A tenant's holdout. A change makes a new entry."""

    resource: Resource
    spec: HoldoutSpec


def encode_baseline(baseline: Baseline | None) -> str:
    """A baseline as it is kept in a state."""
    if baseline is None:
        return ""
    return base64.b64encode(baseline.SerializeToString(deterministic=True)).decode()


def decode_baseline(text: str) -> Baseline | None:
    """The inverse of `encode_baseline`."""
    return Baseline.FromString(base64.b64decode(text)) if text else None


def load_target(resource: Resource) -> TargetEntry:
    """The entry of a stored target.

    Raises:
        codec.CorruptJson: The stored state is damaged.
    """
    state = codec.from_json(TargetState, resource.state)
    return TargetEntry(resource, TargetSpec.FromString(resource.spec), state)


def load_experiment(resource: Resource) -> ExperimentEntry:
    """The entry of a stored experiment.

    Raises:
        codec.CorruptJson: The stored state is damaged.
    """
    state = codec.from_json(ExperimentState, resource.state)
    spec = ExperimentSpec.FromString(resource.spec)
    policy = Policy.from_spec(resolved(spec, dict(state.metrics)))
    return ExperimentEntry(resource, spec, policy, state)


def load_metric(resource: Resource) -> MetricEntry:
    """The entry of a stored metric."""
    return MetricEntry(resource, MetricSpec.FromString(resource.spec))


def load_holdout(resource: Resource) -> HoldoutEntry:
    """The entry of a stored holdout."""
    return HoldoutEntry(resource, HoldoutSpec.FromString(resource.spec))


def new_target(
    tenant: str, name: str, uid: str, labels: dict[str, str], spec: TargetSpec, now_ms: int
) -> TargetEntry:
    """A target that was just created."""
    resource = _new_resource(Kind.TARGET, tenant, name, uid, labels, now_ms)
    return sealed_target(TargetEntry(resource, spec, TargetState()), now_ms)


def new_experiment(
    tenant: str,
    name: str,
    uid: str,
    labels: dict[str, str],
    spec: ExperimentSpec,
    now_ms: int,
    *,
    metrics: tuple[tuple[str, str], ...] = (),
) -> ExperimentEntry:
    """An experiment that was just created: a draft; `metrics` as in `ExperimentState`."""
    resource = _new_resource(Kind.EXPERIMENT, tenant, name, uid, labels, now_ms)
    state = ExperimentState(run=Run(experiment=name), metrics=metrics)
    policy = Policy.from_spec(resolved(spec, dict(metrics)))
    return sealed_experiment(ExperimentEntry(resource, spec, policy, state), now_ms)


def new_metric(
    tenant: str, name: str, uid: str, labels: dict[str, str], spec: MetricSpec, now_ms: int
) -> MetricEntry:
    """A metric that was just declared."""
    resource = _new_resource(Kind.METRIC, tenant, name, uid, labels, now_ms)
    return sealed_metric(MetricEntry(resource, spec), now_ms)


def sealed_metric(entry: MetricEntry, now_ms: int) -> MetricEntry:
    """The entry with its stored form and etag made to agree with the spec."""
    spec = entry.spec.SerializeToString(deterministic=True)
    return replace(entry, resource=_sealed(entry.resource, spec, b"", now_ms))


def new_holdout(tenant: str, uid: str, spec: HoldoutSpec, now_ms: int) -> HoldoutEntry:
    """A holdout that is set for the first time."""
    resource = _new_resource(Kind.HOLDOUT, tenant, HOLDOUT_NAME, uid, {}, now_ms)
    return sealed_holdout(HoldoutEntry(resource, spec), now_ms)


def sealed_holdout(entry: HoldoutEntry, now_ms: int) -> HoldoutEntry:
    """The entry with its stored form and etag made to agree with the spec."""
    spec = entry.spec.SerializeToString(deterministic=True)
    return replace(entry, resource=_sealed(entry.resource, spec, b"", now_ms))


def sealed_target(entry: TargetEntry, now_ms: int) -> TargetEntry:
    """The entry with its stored form and etag made to agree with spec and state."""
    return replace(entry, resource=_sealed_entry(entry, now_ms))


def sealed_experiment(entry: ExperimentEntry, now_ms: int) -> ExperimentEntry:
    """The entry with its stored form and etag made to agree with spec and state."""
    return replace(entry, resource=_sealed_entry(entry, now_ms))


def _new_resource(
    kind: Kind, tenant: str, name: str, uid: str, labels: dict[str, str], now_ms: int
) -> Resource:
    return Resource(
        kind=kind,
        tenant=tenant,
        name=name,
        uid=uid,
        revision=1,
        etag="",
        labels=labels,
        spec=b"",
        state=b"",
        create_ms=now_ms,
        update_ms=now_ms,
    )


def _sealed_entry(entry: TargetEntry | ExperimentEntry, now_ms: int) -> Resource:
    spec = entry.spec.SerializeToString(deterministic=True)
    state = codec.to_json(entry.state).encode()
    return _sealed(entry.resource, spec, state, now_ms)


def _sealed(resource: Resource, spec: bytes, state: bytes, now_ms: int) -> Resource:
    # The etag is a function of all that a client can see, so that a write which changes nothing
    # visible leaves a reader's etag valid, and a restart makes none stale.
    digest = hashlib.blake2b(digest_size=ETAG_BYTES)
    for part in (resource.uid.encode(), str(resource.revision).encode(), spec, state):
        digest.update(len(part).to_bytes(4, "little") + part)
    for key in sorted(resource.labels):
        digest.update(f"{key}={resource.labels[key]};".encode())
    return replace(resource, spec=spec, state=state, etag=digest.hexdigest(), update_ms=now_ms)
