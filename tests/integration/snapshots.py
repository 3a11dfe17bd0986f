"""Snapshots for tests: one target, one experiment, ranges laid out by hand."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.hashing import bucket
from tests.integration.pods import HEALTH_PATH, Pod
from turnout.contract import BUCKET_COUNT, LAYER_MODELS, SNAPSHOT_FORMAT
from turnout.v1alpha1.common_pb2 import BAD_EVENT_KIND_ERROR, Unit, Upstream
from turnout.v1alpha1.snapshot_pb2 import (
    BucketRange,
    ClusterPlan,
    ExperimentPlan,
    Snapshot,
    TargetPlan,
)

TARGET = "fraud"
EXPERIMENT = "fraud-v2"
CONTROL = "control"
PATH_PREFIX = "/v2/models/fraud"
SALT = "salt-of-the-test"


def cluster_of(pod: Pod, *, health: bool = True) -> ClusterPlan:
    """The cluster of a pod, with an HTTP health check or without."""
    upstream = Upstream(address=pod.address, health_path=HEALTH_PATH if health else "")
    return ClusterPlan(cluster=f"turnout.{TARGET}.{pod.port:08x}", upstream=upstream)


def one_target(
    pod: Pod, *, version: int = 1, name: str = TARGET, path_prefix: str = PATH_PREFIX
) -> Snapshot:
    """A target without an experiment."""
    snapshot = Snapshot(format=SNAPSHOT_FORMAT, tenant="risk", version=version)
    target = TargetPlan(name=name, hosts=["*"], path_prefix=path_prefix, baseline=cluster_of(pod))
    target.timeout.FromSeconds(30)
    snapshot.targets.append(target)
    return snapshot


def ranges_of(fractions: Mapping[str, float]) -> dict[str, list[tuple[int, int]]]:
    """Candidates' ranges one after the other from 0, each in an equal share of the buckets; the
    rest of its share, and so all that a smaller fraction leaves, is control's."""
    share = BUCKET_COUNT // max(len(fractions), 1)
    ranges: dict[str, list[tuple[int, int]]] = {CONTROL: []}
    for place, (name, fraction) in enumerate(fractions.items()):
        start, size = place * share, round(fraction * BUCKET_COUNT)
        assert size <= share
        ranges[name] = [(start, start + size)] if size else []
        end = BUCKET_COUNT if place == len(fractions) - 1 else start + share
        if start + size < end:
            ranges[CONTROL].append((start + size, end))
    return ranges


def one_experiment(
    baseline: Pod,
    candidates: Pod | Mapping[str, Pod],
    fractions: Mapping[str, float],
    *,
    version: int = 1,
    epoch: int = 1,
    shadow: tuple[str, float] | None = None,
    unit: Unit | None = None,
    health: bool = True,
) -> Snapshot:
    """A target with one experiment on x-user-id.

    Args:
        baseline: Control's pod.
        candidates: The pods by variant; one pod is "v2".
        fractions: Share of each candidate; a candidate that is not named has none.
        version: Of the snapshot.
        epoch: Of the experiment.
        shadow: (variant, fraction) that is mirrored to.
        unit: What is kept on one variant.
        health: Check the candidates by HTTP rather than TCP.
    """
    pods = {"v2": candidates} if isinstance(candidates, Pod) else dict(candidates)
    ranges = ranges_of({name: fractions.get(name, 0.0) for name in pods})
    snapshot = one_target(baseline, version=version)
    experiment = ExperimentPlan(
        name=EXPERIMENT,
        epoch=epoch,
        epoch_start_unix_ms=1,
        target=TARGET,
        unit=unit or Unit(header="x-user-id"),
        layer=LAYER_MODELS,
        layer_salt=LAYER_MODELS,
        layer_ranges=[BucketRange(start=0, end=BUCKET_COUNT)],
        salt=SALT,
        kinds=[BAD_EVENT_KIND_ERROR],
    )
    clusters = {CONTROL: snapshot.targets[0].baseline} | {
        name: cluster_of(pod, health=health) for name, pod in pods.items()
    }
    for name, cluster in clusters.items():
        experiment.variants.add(
            name=name,
            control=name == CONTROL,
            cluster=cluster,
            ranges=[BucketRange(start=a, end=b) for a, b in ranges[name]],
        )
    if shadow is not None:
        experiment.shadow.variant = shadow[0]
        experiment.shadow.ranges.add(start=0, end=round(shadow[1] * BUCKET_COUNT))
    snapshot.experiments.append(experiment)
    return snapshot


def expected_variant(snapshot: Snapshot, user: str) -> str:
    """Which variant a user must get, by the ranges and the hash."""
    experiment = snapshot.experiments[0]
    place = bucket(experiment.salt.encode(), user.encode())
    return next(
        variant.name
        for variant in experiment.variants
        for one in variant.ranges
        if one.start <= place < one.end
    )
