"""What follows from a snapshot: the gate's wishes and the workers' orders."""

from __future__ import annotations

import pytest

from sidecar.config import Config, judge
from sidecar.snapshotcheck import InvalidSnapshot
from tests.integration.snapshots import EXPERIMENT, TARGET
from turnout.contract import BUCKET_COUNT, SNAPSHOT_FORMAT
from turnout.v1alpha1.common_pb2 import BAD_EVENT_KIND_ERROR, Predicate, Unit, Upstream
from turnout.v1alpha1.snapshot_pb2 import (
    BucketRange,
    ClusterPlan,
    ExperimentPlan,
    Snapshot,
    TargetPlan,
    VariantPlan,
)

KEY = bytes(32)


def cluster(name: str) -> ClusterPlan:
    return ClusterPlan(cluster=name, upstream=Upstream(address="127.0.0.1:1"))


def snapshot(*, epoch: int = 1, timeout_s: int = 60, version: int = 1) -> Snapshot:
    half = BUCKET_COUNT // 2
    target = TargetPlan(name=TARGET, hosts=["*"], path_prefix="/", baseline=cluster("b"))
    target.timeout.FromSeconds(timeout_s)
    experiment = ExperimentPlan(
        name=EXPERIMENT,
        epoch=epoch,
        epoch_start_unix_ms=1,
        target=TARGET,
        unit=Unit(header="x-user-id"),
        layer="models",
        salt="s",
        segment=Predicate(header="x-country", equals="DE"),
        kinds=[BAD_EVENT_KIND_ERROR],
        variants=[
            VariantPlan(
                name="control",
                control=True,
                cluster=cluster("b"),
                ranges=[BucketRange(start=half, end=BUCKET_COUNT)],
            ),
            VariantPlan(name="v2", cluster=cluster("c"), ranges=[BucketRange(start=0, end=half)]),
        ],
    )
    return Snapshot(
        format=SNAPSHOT_FORMAT,
        tenant="risk",
        version=version,
        targets=[target],
        experiments=[experiment],
    )


def config_of(message: Snapshot, dead: dict[str, int] | None = None) -> Config:
    config = Config()
    payload = message.SerializeToString()
    config.serve(payload, judge(payload, "risk"), KEY, dead or {})
    return config


def test_gate_is_asked_for_clusters_and_headers_of_every_experiment() -> None:
    desired = config_of(snapshot()).desired()
    (enrolment,) = desired.enrolments
    assert enrolment.clusters == {"b", "c"}
    assert enrolment.headers >= {"x-user-id", "x-country"}
    assert desired.baselines == {TARGET: "b"}


@pytest.mark.parametrize(("timeout_s", "grace_ms"), [(1, 10_000), (60, 65_000), (900, 120_000)])
def test_clusters_stay_as_long_as_a_request_may_last(timeout_s: int, grace_ms: int) -> None:
    assert config_of(snapshot(timeout_s=timeout_s)).desired().grace_ms == grace_ms


@pytest.mark.parametrize(("epoch", "lives"), [(3, False), (4, False), (5, True)])
def test_experiment_is_left_out_when_its_epoch_is_dead(epoch: int, lives: bool) -> None:
    config = config_of(snapshot(epoch=epoch), {EXPERIMENT: 4})
    assert bool(config.live().experiments) is lives
    assert bool(config.desired().enrolments) is lives
    assert config.order(None).dead == {EXPERIMENT: 4}
    assert len(config.snapshot.experiments) == 1


def test_orders_are_numbered_and_keep_the_slots_of_variants_that_stay() -> None:
    config = config_of(snapshot())
    first = config.order(frozenset())
    second = config.order(frozenset({(EXPERIMENT, 1)}))
    assert second.generation == first.generation + 1
    assert second.slots == first.slots
    payload = snapshot(epoch=2).SerializeToString()
    config.serve(payload, judge(payload, ""), KEY, {})
    third = config.order(None)
    assert set(third.slots.values()).isdisjoint(first.slots.values())
    assert len(config.counting()) == 4
    config.served(third.generation)
    assert config.counting() == third.slots


def test_snapshot_of_another_tenant_is_refused() -> None:
    payload = snapshot().SerializeToString()
    assert judge(payload, "").tenant == "risk"
    with pytest.raises(InvalidSnapshot) as refused:
        judge(payload, "other")
    assert [violation.field for violation in refused.value.violations] == ["tenant"]


def test_gate_waits_for_the_baseline_when_variants_only_set_parameters() -> None:
    changed = snapshot()
    changed.experiments[0].layer = "limits"
    for variant in changed.experiments[0].variants:
        variant.ClearField("cluster")
    config = Config()
    config.serve(changed.SerializeToString(), changed, KEY, {})
    (enrolment,) = config.desired().enrolments
    # What is stamped goes there by its name.
    assert enrolment.clusters == {"b"}


def test_gate_waits_for_verified_claims_when_a_unit_is_one() -> None:
    changed = snapshot()
    changed.experiments[0].unit.Clear()
    changed.experiments[0].unit.jwt_claim.claim = "sub"
    config = Config()
    config.serve(changed.SerializeToString(), changed, KEY, {})
    (enrolment,) = config.desired().enrolments
    assert "metadata envoy.filters.http.jwt_authn" in enrolment.headers
