"""What Envoy is told of a snapshot."""

from __future__ import annotations

import re
from typing import Any

import yaml

from sidecar import envoyfiles
from tests.sidecar import samples
from turnout.v1alpha1.common_pb2 import Predicate
from turnout.v1alpha1.snapshot_pb2 import ClusterPlan, Snapshot

ON = {("fraud-v2", 1)}


def _resources(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(text)["resources"]
    return found


def _routes(snapshot: Snapshot, enabled: set[tuple[str, int]]) -> list[dict[str, Any]]:
    rds = _resources(envoyfiles.documents(snapshot, enabled=enabled).rds)
    routes: list[dict[str, Any]] = rds[0]["virtual_hosts"][0]["routes"]
    return routes


def test_filter_is_off_on_every_route_when_no_gate_is_open() -> None:
    routes = _routes(samples.snapshot(), set())
    assert [route["name"] for route in routes] == ["turnout/fraud/baseline", "turnout/none"]
    assert all(r["typed_per_filter_config"]["turnout"]["disabled"] for r in routes)
    assert not any("request_headers_to_add" in route for route in routes)


def test_stamped_route_comes_first_when_the_gate_is_open() -> None:
    stamped, baseline, none = _routes(samples.snapshot(), ON)
    assert stamped["route"]["cluster_header"] == "x-turnout-upstream"
    assert stamped["match"]["headers"] == [{"name": "x-turnout-upstream", "present_match": True}]
    assert baseline["route"]["cluster"] == "turnout.fraud.base"
    assert "typed_per_filter_config" not in baseline
    (marker,) = baseline["request_headers_to_add"]
    assert marker["header"]["key"] == "x-turnout-unstamped"
    assert none["typed_per_filter_config"]["turnout"]["disabled"]


def test_routes_stay_off_when_another_epoch_is_enabled() -> None:
    assert len(_routes(samples.snapshot(), {("fraud-v2", 2)})) == 2


def test_copies_carry_the_marker_and_no_credentials() -> None:
    (policy,) = _routes(samples.snapshot(), ON)[0]["route"]["request_mirror_policies"]
    mutations = policy["request_headers_mutations"]
    assert policy["cluster_header"] == "x-turnout-shadow"
    assert mutations[0]["append"]["header"] == {
        "key": "x-turnout-shadow-of",
        "value": "%REQ(x-turnout-shadow-variant)%",
    }
    removed = {mutation["remove"] for mutation in mutations[1:]}
    assert removed == {"authorization", "cookie", "proxy-authorization"}


def test_stream_may_idle_longer_than_the_timeout_when_a_model_is_slow() -> None:
    snapshot = samples.snapshot()
    snapshot.targets[0].timeout.FromSeconds(3600)
    action = _routes(snapshot, set())[0]["route"]
    assert (action["timeout"], action["idle_timeout"]) == ("3600s", "3605s")


def test_only_headers_that_the_plan_reads_leave_envoy() -> None:
    snapshot = samples.snapshot()
    snapshot.experiments[0].segment.CopyFrom(
        Predicate(any=[Predicate(header="x-a"), Predicate(negated=Predicate(header="x-b"))])
    )
    snapshot.targets[0].headers.add(header="x-c", equals="1")
    pseudo = [":authority", ":method", ":path"]
    assert envoyfiles.forwarded_headers(snapshot) == [*pseudo, "x-a", "x-b", "x-c", "x-user-id"]
    snapshot.experiments[0].unit.header = ""
    snapshot.experiments[0].unit.cookie = "uid"
    assert "cookie" in envoyfiles.forwarded_headers(snapshot)
    assert "x-user-id" not in envoyfiles.forwarded_headers(snapshot)


def test_candidates_never_panic_and_baselines_may() -> None:
    clusters = {cluster["name"]: cluster for cluster in envoyfiles.clusters(samples.snapshot())}
    assert "common_lb_config" not in clusters["turnout.fraud.base"]
    candidate = clusters["turnout.fraud.v2"]
    assert candidate["common_lb_config"] == {"healthy_panic_threshold": {"value": 0}}


def test_clusters_are_named_once_sorted_and_kept_when_extra() -> None:
    extra = ClusterPlan(cluster="turnout.fraud.gone")
    extra.upstream.address = "10.0.0.1:80"
    cds = _resources(
        envoyfiles.documents(samples.snapshot(), enabled=ON, extra_clusters=[extra]).cds
    )
    names = [cluster["name"] for cluster in cds]
    assert names == sorted(set(names))
    assert "turnout.fraud.gone" in names
    assert {c["name"]: c["type"] for c in cds}["turnout.fraud.gone"] == "STATIC"


def test_cluster_of_envoys_own_is_routed_to_and_not_defined() -> None:
    snapshot = samples.snapshot()
    snapshot.targets[0].baseline.cluster = "theirs"
    snapshot.targets[0].baseline.upstream.Clear()
    snapshot.targets[0].baseline.upstream.cluster = "theirs"
    assert "theirs" not in {cluster["name"] for cluster in envoyfiles.clusters(snapshot)}
    assert _routes(snapshot, set())[0]["route"]["cluster"] == "theirs"


def test_documents_are_the_same_text_when_the_snapshot_is_the_same() -> None:
    first = envoyfiles.documents(samples.snapshot(), enabled=ON)
    assert first == envoyfiles.documents(samples.snapshot(), enabled=ON)


def test_sidecar_may_set_its_own_headers_and_no_others() -> None:
    (extension,) = _resources(envoyfiles.documents(samples.snapshot(), enabled=ON).ecds)
    rules = extension["typed_config"]["mutation_rules"]
    assert rules["disallow_all"] is True
    pattern = re.compile(rules["allow_expression"]["regex"])
    ours = ["x-variant", "x-turnout", "x-turnout-upstream", "x-turnout-shadow", "x-param-a"]
    assert all(pattern.fullmatch(name) for name in [*ours, "x-turnout-shadow-variant"])
    others = ["x-turnout-shadow-of", "host", "authorization", "x-variants", "ax-variant"]
    assert not any(pattern.search(name) for name in others)
