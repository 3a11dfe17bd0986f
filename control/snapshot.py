"""Snapshots: the only home of weights -> bucket ranges, and of the message that sidecars serve.

Pure and canonical: equal inputs give equal bytes. Owns what a variant, a layer's reservation, a
holdout and a percentage are in buckets. Refuses ranges that do not tile the buckets or overlap in a
layer, and inputs that a sidecar would refuse for their structure; rules about values are
`control.model`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from control.model.defaults import (
    bad_event_kinds,
    experiment_with_defaults,
    latency_thresholds,
    slow_after,
    target_with_defaults,
)
from turnout.contract import (
    BUCKET_COUNT,
    CLUSTER_PREFIX,
    LAYER_MODELS,
    SNAPSHOT_BYTES_MAX,
    SNAPSHOT_DIGEST_BYTES,
    SNAPSHOT_FORMAT,
    SNAPSHOT_MAGIC,
)
from turnout.v1alpha1.common_pb2 import Predicate, Stratum, Tombstone, Upstream
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec
from turnout.v1alpha1.snapshot_pb2 import (
    BucketRange,
    ClusterPlan,
    ExperimentPlan,
    Snapshot,
    TargetPlan,
)
from turnout.v1alpha1.target_pb2 import Baseline, TargetSpec

Ranges = tuple[tuple[int, int], ...]
"""Sorted, disjoint, not adjacent [start, end) buckets."""
Allocation = Mapping[str, Ranges]
"""Variant -> its buckets. All variants together tile [0, BUCKET_COUNT)."""

CLUSTER_HASH_BYTES: Final = 4
SALT_BYTES: Final = 8
ALL_BUCKETS: Final[Ranges] = ((0, BUCKET_COUNT),)


@dataclass(frozen=True, slots=True)
class RunningExperiment:
    """An experiment that enrols units or mirrors.

    Attributes:
        name: Id within the tenant.
        spec: With or without defaults; its `salt` must be set.
        epoch: > 0.
        epoch_start_ms: Unix time in milliseconds.
        allocation: Buckets of every variant, control included, as `allocate` gave them.
        shadow: Candidate that is mirrored to and the fraction of units, or None.
        baseline: What control is pinned to; None = the target's present baseline.
        step: Index of the step that runs.
        layer_ranges: The part of its layer that it reserved at its start.
        holdout: Salt and fraction of the holdout that it was started with, or None.
    """

    name: str
    spec: ExperimentSpec
    epoch: int
    epoch_start_ms: int
    allocation: Allocation
    shadow: tuple[str, float] | None = None
    baseline: Baseline | None = None
    step: int = 0
    layer_ranges: Ranges = ALL_BUCKETS
    holdout: tuple[str, float] | None = None


class LayerFull(ValueError):
    """A layer has less left than somebody wants; `left` and `wanted` are buckets."""

    def __init__(self, wanted: int, left: int) -> None:
        self.wanted, self.left = wanted, left
        super().__init__(f"{wanted} buckets are wanted and {left} are left")


def weights_ppm(split: Mapping[str, float]) -> dict[str, int]:
    """Fractions of the units as buckets (parts per million).

    Each fraction by itself and rounded down, so that no candidate's share depends on another's and
    fractions that add up to 1 fit.

    Args:
        split: Candidate -> fraction, 0..1.
    """
    return {name: int(round(fraction * BUCKET_COUNT, 3)) for name, fraction in split.items()}


def grow(previous: Allocation, split: Mapping[str, float], *, control: str) -> dict[str, Ranges]:
    """`allocate` for fractions."""
    return allocate(previous, weights_ppm(split), control=control)


def allocate(
    previous: Allocation, weights_ppm: Mapping[str, int], *, control: str
) -> dict[str, Ranges]:
    """Buckets of every variant for new weights, moving as few units as can be.

    A growing candidate takes control's lowest buckets. A shrinking one gives its highest back to
    control; a candidate without a weight gives back all. Units move from one candidate to another
    only when control had too few to give.

    Args:
        previous: The buckets before; empty at the start of an experiment (all are control's).
        weights_ppm: Candidate -> buckets, >= 0. Control's own weight may be there and is what the
            candidates leave.
        control: Name of the control variant.

    Returns:
        Control and every candidate of `weights_ppm`, tiling [0, BUCKET_COUNT).

    Raises:
        ValueError: `previous` does not tile, or the weights do not fit.
    """
    weights = {name: weights_ppm[name] for name in sorted(weights_ppm) if name != control}
    rest = BUCKET_COUNT - sum(weights.values())
    if rest < 0 or min(weights.values(), default=0) < 0 or weights_ppm.get(control, rest) != rest:
        raise ValueError(f"weights {dict(weights_ppm)} do not fit {BUCKET_COUNT} buckets")
    before = dict(previous) or {control: ((0, BUCKET_COUNT),)}
    if not tiles(before.values()):
        raise ValueError("the previous ranges do not tile the buckets")
    kept: dict[str, Ranges] = {}
    freed: list[tuple[int, int]] = []
    for name in sorted(before.keys() - {control}):
        kept[name], given = _cut(before[name], weights.get(name, 0))
        freed.extend(given)
    stock, reserve = before.get(control, ()), _normalised(freed)
    after: dict[str, Ranges] = {}
    for name, weight in weights.items():
        mine = kept.get(name, ())
        taken, stock = _cut(stock, weight - size(mine))
        more, reserve = _cut(reserve, weight - size(mine) - size(taken))
        after[name] = _normalised((*mine, *taken, *more))
    after[control] = _normalised((*stock, *reserve))
    assert tiles(after.values()), "allocation must tile the buckets"
    return after


def reallocate(
    previous: Allocation, weights_ppm: Mapping[str, int], *, control: str
) -> dict[str, Ranges]:
    """`allocate` for a bandit: units move from any variant straight into any other.

    Only as many units move as the weights differ by: whoever shrinks gives its highest buckets, and
    whoever grows takes the lowest of those, by name. A unit stays where it is unless its variant
    shrinks.

    Raises:
        ValueError: As `allocate`.
    """
    weights = dict(weights_ppm)
    if min(weights.values(), default=0) < 0 or sum(weights.values()) != BUCKET_COUNT:
        raise ValueError(f"weights {weights} do not add up to {BUCKET_COUNT} buckets")
    before = dict(previous) or {control: ((0, BUCKET_COUNT),)}
    if not tiles(before.values()):
        raise ValueError("the previous ranges do not tile the buckets")
    after: dict[str, Ranges] = {}
    freed: list[tuple[int, int]] = []
    for name in sorted({*before, *weights}):
        after[name], given = _cut(before.get(name, ()), weights.get(name, 0))
        freed.extend(given)
    pool = _normalised(freed)
    for name in sorted(weights):
        taken, pool = _cut(pool, weights[name] - size(after[name]))
        after[name] = _normalised((*after[name], *taken))
    after = {name: ranges for name, ranges in after.items() if name in weights}
    assert tiles(after.values()), "allocation must tile the buckets"
    return after


def reserve(taken: Iterable[Ranges], fraction: float) -> Ranges:
    """The part of a layer that an experiment gets: the lowest buckets that nobody has.

    Args:
        taken: What the layer's other experiments have, in any order.
        fraction: Share of the layer, above 0.

    Raises:
        LayerFull: Less than that is left.
    """
    free: list[tuple[int, int]] = []
    position = 0
    for start, end in sorted(piece for ranges in taken for piece in ranges):
        if position < start:
            free.append((position, start))
        position = max(position, end)
    if position < BUCKET_COUNT:
        free.append((position, BUCKET_COUNT))
    wanted, left = bucket_count(fraction), size(tuple(free))
    if wanted > left:
        raise LayerFull(wanted, left)
    return _cut(tuple(free), wanted)[0]


def bucket_count(fraction: float) -> int:
    """A fraction as buckets, rounded as weights are."""
    return weights_ppm({"": fraction})[""]


def size(ranges: Ranges) -> int:
    """Number of buckets."""
    return sum(end - start for start, end in ranges)


def tiles(parts: Iterable[Ranges]) -> bool:
    """True when the ranges cover [0, BUCKET_COUNT) and no bucket twice."""
    position = 0
    for start, end in sorted(piece for ranges in parts for piece in ranges):
        if start != position or end <= start:
            return False
        position = end
    return position == BUCKET_COUNT


def _cut(ranges: Ranges, count: int) -> tuple[Ranges, Ranges]:
    """The lowest `count` buckets (all when there are fewer, none when negative), and the rest."""
    low: list[tuple[int, int]] = []
    high: list[tuple[int, int]] = []
    for start, end in ranges:
        middle = min(end, start + max(count, 0))
        count -= middle - start
        if start < middle:
            low.append((start, middle))
        if middle < end:
            high.append((middle, end))
    return tuple(low), tuple(high)


def _normalised(ranges: Iterable[tuple[int, int]]) -> Ranges:
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return tuple(joined)


def derived_salt(tenant: str, name: str) -> str:
    """The salt of an experiment that was given none, when equal files must give equal bytes."""
    return hashlib.blake2b(f"{tenant}/{name}".encode(), digest_size=SALT_BYTES).hexdigest()


def holdout_salt(tenant: str) -> str:
    """The salt of a holdout that was given none; no experiment can be called like this."""
    return derived_salt(tenant, "holdout/units")


def layer_salt(tenant: str, target: str, layer: str) -> str:
    """The salt that all experiments of one layer on one target share."""
    return derived_salt(tenant, f"layers/{target}/{layer}")


def cluster_name(target: str, upstream: Upstream) -> str:
    """Envoy's name of an upstream: a function of all that the cluster is built from."""
    if upstream.cluster:
        return upstream.cluster
    parts = [upstream.address, upstream.http2, upstream.health_path]
    parts += [upstream.tls.sni, upstream.tls.ca] if upstream.HasField("tls") else []
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=CLUSTER_HASH_BYTES)
    return f"{CLUSTER_PREFIX}{target}.{digest.hexdigest()}"


def build(
    tenant: str,
    version: int,
    targets: Mapping[str, TargetSpec],
    experiments: Iterable[RunningExperiment],
    tombstones: Iterable[Tombstone] = (),
) -> Snapshot:
    """Make the snapshot of a tenant.

    Args:
        tenant: DNS label.
        version: > 0, one more than the last of this tenant.
        targets: Id -> spec, with or without defaults.
        experiments: Those that enrol units or mirror.
        tombstones: Of rolled-back epochs. An experiment at or below its tombstone is refused.

    Raises:
        ValueError: An experiment names no target of `targets`, its ranges do not tile the buckets,
            it has no salt, it is dead, or another one has a part of what it reserved.
    """
    snapshot = Snapshot(format=SNAPSHOT_FORMAT, tenant=tenant, version=version)
    dead: dict[str, Tombstone] = {}
    for tombstone in tombstones:
        held = dead.get(tombstone.experiment)
        if held is None or tombstone.epoch > held.epoch:
            dead[tombstone.experiment] = tombstone
    snapshot.tombstones.extend(dead[name] for name in sorted(dead))
    snapshot.targets.extend(_target_plan(name, targets[name]) for name in sorted(targets))
    reserved: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for running in sorted(experiments, key=lambda running: running.name):
        if running.spec.target not in targets:
            raise ValueError(f"experiment {running.name} names no target: {running.spec.target}")
        if running.name in dead and running.epoch <= dead[running.name].epoch:
            raise ValueError(f"experiment {running.name} was rolled back at epoch {running.epoch}")
        baseline = running.baseline or targets[running.spec.target].baseline
        plan = _experiment_plan(tenant, running, baseline)
        ranges = reserved.setdefault((plan.target, plan.layer), [])
        ranges.extend(running.layer_ranges)
        if not _disjoint(ranges):
            raise ValueError(f"experiment {running.name}: layer {plan.layer} is reserved twice")
        snapshot.experiments.append(plan)
    return snapshot


def _disjoint(ranges: Iterable[tuple[int, int]]) -> bool:
    position = 0
    for start, end in sorted(ranges):
        if start < position or end <= start:
            return False
        position = end
    return position <= BUCKET_COUNT


def _target_plan(name: str, given: TargetSpec) -> TargetPlan:
    spec = target_with_defaults(given)
    return TargetPlan(
        name=name,
        hosts=spec.match.hosts,
        path_prefix=spec.match.path_prefix,
        methods=spec.match.methods,
        headers=spec.match.headers,
        baseline=_cluster_plan(name, spec.baseline.upstream),
        model=spec.baseline.model if spec.baseline.HasField("model") else None,
        timeout=spec.timeout,
        model_name=spec.match.model_name,
        model_version=spec.match.model_version,
    )


def _cluster_plan(target: str, upstream: Upstream) -> ClusterPlan:
    return ClusterPlan(cluster=cluster_name(target, upstream), upstream=upstream)


def _experiment_plan(tenant: str, running: RunningExperiment, baseline: Baseline) -> ExperimentPlan:
    spec = experiment_with_defaults(running.spec)
    if not spec.salt:
        raise ValueError(f"experiment {running.name} has no salt")
    if not tiles(running.allocation.values()):
        raise ValueError(f"experiment {running.name}: its ranges do not tile the buckets")
    plan = ExperimentPlan(
        name=running.name,
        epoch=running.epoch,
        epoch_start_unix_ms=running.epoch_start_ms,
        target=spec.target,
        unit=spec.unit,
        layer=spec.layer.name,
        layer_salt=layer_salt(tenant, spec.target, spec.layer.name),
        layer_ranges=_messages(running.layer_ranges),
        segment=_counted(spec.segment) if spec.HasField("segment") else None,
        strata=[_counted_stratum(stratum) for stratum in spec.strata],
        salt=spec.salt,
        kinds=bad_event_kinds(spec),
        slow_after=slow_after(spec),
        step=running.step,
        warm_up=spec.metrics.warm_up if spec.metrics.HasField("warm_up") else None,
        latency_thresholds=latency_thresholds(spec),
    )
    _add_variants(plan, spec, running.allocation, baseline)
    if running.shadow is not None:
        plan.shadow.variant, fraction = running.shadow
        plan.shadow.ranges.extend(_messages(_lowest(fraction)))
    if running.holdout is not None and _lowest(running.holdout[1]):
        plan.holdout.salt, fraction = running.holdout
        plan.holdout.ranges.extend(_messages(_lowest(fraction)))
    named = sorted((unit, item.variant) for item in spec.overrides for unit in item.units)
    for unit, variant in named:
        plan.overrides.add(unit=unit, variant=variant)
    return plan


def _lowest(fraction: float) -> Ranges:
    """The first buckets: a greater fraction only adds some."""
    return _cut(ALL_BUCKETS, bucket_count(fraction))[0]


def _counted_stratum(stratum: Stratum) -> Stratum:
    """A copy whose percentages say how many buckets they are."""
    counted = Stratum(name=stratum.name)
    counted.all.extend(_counted(part) for part in stratum.all)
    counted.any.extend(_counted(part) for part in stratum.any)
    if stratum.HasField("negated"):
        counted.negated.CopyFrom(_counted(stratum.negated))
    return counted


def _counted(predicate: Predicate) -> Predicate:
    """A copy whose percentages say how many buckets they are."""
    counted = Predicate()
    counted.CopyFrom(predicate)
    waiting = [counted]
    while waiting:
        node = waiting.pop()
        if node.HasField("percentage"):
            node.percentage.buckets = bucket_count(node.percentage.fraction)
        waiting += [*node.all, *node.any]
        if node.HasField("negated"):
            waiting.append(node.negated)
    return counted


def _add_variants(
    plan: ExperimentPlan, spec: ExperimentSpec, allocation: Allocation, baseline: Baseline
) -> None:
    for variant in sorted(spec.variants, key=lambda variant: variant.name != spec.control):
        control = variant.name == spec.control
        added = plan.variants.add(
            name=variant.name,
            control=control,
            ranges=_messages(allocation.get(variant.name, ())),
            parameters=variant.parameters,
        )
        if spec.layer.name != LAYER_MODELS:
            continue  # it routes nothing: requests go where the layer `models` sends them
        upstream = baseline.upstream if control else variant.upstream
        added.cluster.CopyFrom(_cluster_plan(spec.target, upstream))
        if control and baseline.HasField("model"):
            added.model.CopyFrom(baseline.model)
        elif variant.HasField("model"):
            added.model.CopyFrom(variant.model)
    unknown = allocation.keys() - {variant.name for variant in spec.variants}
    if unknown:
        raise ValueError(f"experiment {plan.name}: ranges of unknown variants {sorted(unknown)}")


def _messages(ranges: Ranges) -> list[BucketRange]:
    return [BucketRange(start=start, end=end) for start, end in ranges]


def encode(snapshot: Snapshot) -> bytes:
    """The canonical bytes of a snapshot: maps sorted by key.

    Raises:
        ValueError: More than `contract.SNAPSHOT_BYTES_MAX` bytes.
    """
    payload = snapshot.SerializeToString(deterministic=True)
    if len(payload) > SNAPSHOT_BYTES_MAX:
        raise ValueError(f"a snapshot of {len(payload)} bytes is over {SNAPSHOT_BYTES_MAX}")
    return payload


def to_file(payload: bytes) -> bytes:
    """The contents of a snapshot file: header, checksum, payload."""
    digest = hashlib.blake2b(payload, digest_size=SNAPSHOT_DIGEST_BYTES).digest()
    return SNAPSHOT_MAGIC + digest + payload


def from_file(data: bytes) -> bytes:
    """The payload of a snapshot file.

    Raises:
        ValueError: It is not one, or its checksum is wrong.
    """
    start = len(SNAPSHOT_MAGIC) + SNAPSHOT_DIGEST_BYTES
    payload = data[start:]
    if len(data) < start or not data.startswith(SNAPSHOT_MAGIC):
        raise ValueError("not a snapshot file")
    if to_file(payload) != data:
        raise ValueError("the snapshot file's checksum is wrong")
    return payload
