"""The snapshots that are measured: one experiment, and twenty of which four are on the route.

Both read the same headers, so that both Envoys forward the same.
"""

from __future__ import annotations

from typing import Final

from sidecar.hashing import bucket
from turnout.contract import BUCKET_COUNT, LAYER_MODELS
from turnout.v1alpha1.common_pb2 import BAD_EVENT_KIND_ERROR, BAD_EVENT_KIND_SLOW, Predicate
from turnout.v1alpha1.snapshot_pb2 import (
    BucketRange,
    ClusterPlan,
    ExperimentPlan,
    Snapshot,
    TargetPlan,
    VariantPlan,
)

TENANT: Final = "bench"
PATH: Final = "/bench"
UNIT_HEADER: Final = "x-user-id"
# What wrk.lua sends.
HEADERS: Final = {"x-country": "DE", "x-app-version": "2.7.1"}
USERS: Final = tuple(f"user-{number}" for number in range(32_768))
CONTROL: Final = "first"
CANDIDATE: Final = "second"
LAYERS: Final = (LAYER_MODELS, "prices", "ranking", "texts")
ON_THE_ROUTE: Final = 4
IN_THE_PLAN: Final = 20
_MIRRORED: Final = 10  # buckets, of which no user is in any


class Upstreams:
    """Two upstreams, as clusters."""

    def __init__(self, first: int, second: int) -> None:
        """Take the ports that they listen on."""
        self.first = _cluster(CONTROL, first)
        self.second = _cluster(CANDIDATE, second)

    def names(self) -> dict[str, str]:
        """Variant -> cluster."""
        return {CONTROL: self.first.cluster, CANDIDATE: self.second.cluster}


def without_experiment(upstreams: Upstreams) -> Snapshot:
    """One target, at rest."""
    snapshot = Snapshot(format=1, tenant=TENANT, version=1)
    snapshot.targets.append(_target("bench", PATH, upstreams))
    return snapshot


def one_experiment(upstreams: Upstreams) -> Snapshot:
    """Half of the users to each of two upstreams; a second target makes it read more headers."""
    snapshot = without_experiment(upstreams)
    other = _target("other", "/other", upstreams)
    other.headers.extend(Predicate(header=name, present=True) for name in HEADERS)
    snapshot.targets.append(other)
    snapshot.experiments.append(_experiment("half", "bench", LAYER_MODELS, upstreams))
    return snapshot


def twenty_experiments(upstreams: Upstreams) -> Snapshot:
    """Four in four layers on the route, each with a segment, overrides, one with a mirror."""
    snapshot = without_experiment(upstreams)
    for number, layer in enumerate(LAYERS):
        experiment = _experiment(f"layer-{number}", "bench", layer, upstreams)
        experiment.segment.CopyFrom(_segment())
        for user in range(10):
            experiment.overrides.add(unit=f"tester-{user}", variant=CANDIDATE)
        snapshot.experiments.append(experiment)
    _mirror(snapshot.experiments[0])
    for number in range(IN_THE_PLAN - ON_THE_ROUTE):
        name = f"other-{number:02}"
        snapshot.targets.append(_target(name, f"/{name}", upstreams))
        snapshot.experiments.append(_experiment(name, name, LAYER_MODELS, upstreams))
    return snapshot


def _segment() -> Predicate:
    country = Predicate(header="x-country", in_values=["AT", "CH", "DE", "FR"])
    version = Predicate(header="x-app-version", semver=">=2.0.0 <3.0.0")
    return Predicate(all=[country, version])


def _mirror(experiment: ExperimentPlan) -> None:
    """Copy some buckets that none of the users is in: decided each time, and never copied."""
    salt = experiment.salt.encode()
    used = {bucket(salt, user.encode()) for user in USERS}
    start = next(
        start
        for start in range(0, BUCKET_COUNT, _MIRRORED)
        if used.isdisjoint(range(start, start + _MIRRORED))
    )
    experiment.shadow.variant = CANDIDATE
    experiment.shadow.ranges.add(start=start, end=start + _MIRRORED)


def _cluster(name: str, port: int) -> ClusterPlan:
    plan = ClusterPlan(cluster=f"turnout.bench.{name}")
    plan.upstream.address = f"127.0.0.1:{port}"
    return plan


def _target(name: str, path: str, upstreams: Upstreams) -> TargetPlan:
    target = TargetPlan(name=name, path_prefix=path, baseline=upstreams.first)
    target.timeout.FromSeconds(60)
    return target


def _experiment(name: str, target: str, layer: str, upstreams: Upstreams) -> ExperimentPlan:
    half = BUCKET_COUNT // 2
    plan = ExperimentPlan(
        name=name,
        epoch=1,
        epoch_start_unix_ms=1,
        target=target,
        layer=layer,
        layer_salt=f"layer-{layer}",
        layer_ranges=[BucketRange(start=0, end=BUCKET_COUNT)],
        salt=f"salt-{name}",
        kinds=[BAD_EVENT_KIND_ERROR, BAD_EVENT_KIND_SLOW],
    )
    plan.unit.header = UNIT_HEADER
    plan.slow_after.FromMilliseconds(200)
    for variant, start, cluster in (
        (CONTROL, 0, upstreams.first),
        (CANDIDATE, half, upstreams.second),
    ):
        plan.variants.append(
            VariantPlan(
                name=variant,
                control=variant == CONTROL,
                ranges=[BucketRange(start=start, end=start + half)],
                cluster=cluster if layer == LAYER_MODELS else None,
            )
        )
    return plan
