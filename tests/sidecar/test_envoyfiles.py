"""What Envoy is told of a snapshot."""

from __future__ import annotations

import re
from typing import Any

import yaml

from sidecar import envoyfiles, envoyfilter
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


def _kinds_of_rest(snapshot: Snapshot) -> set[str]:
    """How the filter is kept out of targets at rest while fraud-v2 runs on another."""
    snapshot.targets.append(samples.target("calm"))
    snapshot.targets[-1].path_prefix = "/calm"
    calm = [route for route in _routes(snapshot, ON) if route["name"].startswith("turnout/calm")]
    offs = [route["typed_per_filter_config"]["turnout"]["@type"] for route in calm]
    return {off.rpartition(".")[2] for off in offs}


def test_filter_is_not_made_for_targets_at_rest() -> None:
    assert _kinds_of_rest(samples.snapshot()) == {"FilterConfig"}


def test_filter_is_made_and_silent_when_a_running_target_may_match_late() -> None:
    by_header, by_model = samples.snapshot(), samples.snapshot()
    by_header.targets[0].headers.append(Predicate(header="x-tier", in_values=["gold"]))
    by_model.targets[0].model_name = "fraud"
    for snapshot in (by_header, by_model):
        assert _kinds_of_rest(snapshot) == {"ExtProcPerRoute"}


def test_copies_carry_the_marker_and_no_credentials() -> None:
    (policy,) = _routes(samples.snapshot(), ON)[0]["route"]["request_mirror_policies"]
    mutations = policy["request_headers_mutations"]
    assert policy["cluster_header"] == "x-turnout-shadow"
    assert mutations[0]["append"]["header"] == {
        "key": "x-turnout-shadow-of",
        "value": "%REQ(x-turnout-shadow-variant)%",
    }
    removed = {mutation["remove"] for mutation in mutations[1:]}
    secrets = {"authorization", "cookie", "proxy-authorization", "x-turnout-set-cookie"}
    assert removed == secrets


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
    others = ["x-a", "x-b", "x-c", "x-force-variant", "x-user-id"]
    assert envoyfilter.forwarded_headers(snapshot) == [*pseudo, *others]
    snapshot.experiments[0].unit.header = ""
    snapshot.experiments[0].unit.cookie = "uid"
    assert "cookie" in envoyfilter.forwarded_headers(snapshot)
    assert "x-user-id" not in envoyfilter.forwarded_headers(snapshot)


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
    ours += ["x-turnout-shadow-variant", "x-turnout-set-cookie", "x-hop-turnout"]
    assert all(pattern.fullmatch(name) for name in ours)
    others = ["x-turnout-shadow-of", "host", "authorization", "x-variants", "ax-variant"]
    others += ["x-force-variant", "set-cookie", "cookie"]
    assert not any(pattern.search(name) for name in others)


def _layered() -> Snapshot:
    """Two experiments that route, a parameter's, and a parameter's on a target of its own."""
    snapshot = samples.snapshot()
    second = snapshot.experiments.add()
    second.CopyFrom(snapshot.experiments[0])
    second.name, second.step = "fraud-v3", 2
    for name, on in (("a-limit", "fraud"), ("b-limit", "spam")):
        parameter = snapshot.experiments.add()
        parameter.CopyFrom(samples.experiment(name))
        parameter.target, parameter.layer = on, "limits"
        for variant in parameter.variants:
            variant.ClearField("cluster")
    snapshot.targets.append(samples.target("spam"))
    snapshot.targets[1].path_prefix = "/spam"
    return snapshot


def test_variants_without_clusters_add_none() -> None:
    names = {cluster["name"] for cluster in envoyfiles.clusters(_layered())}
    assert names == {"turnout.fraud.base", "turnout.fraud.control", "turnout.fraud.v2",
                     "turnout.spam.base"}  # fmt: skip


def test_filter_is_on_and_the_stamp_routes_when_only_a_parameter_is_tried() -> None:
    stamped, baseline = _routes(_layered(), {("b-limit", 1)})[:2]
    assert stamped["name"] == "turnout/spam/stamped"
    assert stamped["route"]["cluster_header"] == "x-turnout-upstream"
    # Whoever is stamped is in it, although no x-variant says so.
    assert stamped["metadata"]["filter_metadata"]["turnout"]["experiment"] == "b-limit"
    assert stamped["response_headers_to_remove"] == ["x-variant"]
    assert "typed_per_filter_config" not in baseline


def test_each_experiment_that_routes_has_a_route_when_several_run_on_a_target() -> None:
    on = {(name, 1) for name in ("fraud-v2", "fraud-v3", "a-limit")}
    routes = [r for r in _routes(_layered(), on) if r["name"] == "turnout/fraud/stamped"]
    spans = [route["metadata"]["filter_metadata"]["turnout"] for route in routes]
    asked = [route["match"]["headers"] for route in routes]
    assert [span.get("experiment") for span in spans] == ["fraud-v2", "fraud-v3", None]
    assert [span.get("step") for span in spans] == ["0", "2", None]
    upstream = {"name": "x-turnout-upstream", "present_match": True}
    prefix = {"name": "x-turnout", "string_match": {"prefix": "fraud-v3;1;"}}
    assert asked[1:] == [[upstream, prefix], [upstream]]


def test_session_answers_with_its_cookie_and_others_do_not() -> None:
    snapshot = samples.snapshot()
    added = _routes(snapshot, ON)[0]["response_headers_to_add"]
    assert [h["header"]["key"] for h in added] == ["x-variant"]
    snapshot.experiments[0].unit.Clear()
    snapshot.experiments[0].unit.session.cookie = "sid"
    stamped = _routes(snapshot, ON)[0]
    assert stamped["response_headers_to_add"][1] == {
        "header": {"key": "set-cookie", "value": "%REQ(x-turnout-set-cookie)%"},
        "append_action": "APPEND_IF_EXISTS_OR_ADD",
    }
    # Removed from the request it would be gone when the response is made.
    assert "request_headers_to_remove" not in stamped
    assert "cookie" in envoyfilter.forwarded_headers(snapshot)


def test_baseline_answers_with_the_cookie_too_when_a_session_runs() -> None:
    """Of whoever is held out: else a new session would be drawn with each request."""
    snapshot = samples.snapshot()
    assert "response_headers_to_add" not in _routes(snapshot, ON)[1]
    snapshot.experiments[0].unit.Clear()
    snapshot.experiments[0].unit.session.SetInParent()
    stamped, baseline = _routes(snapshot, ON)[:2]
    assert baseline["name"] == "turnout/fraud/baseline"
    assert baseline["response_headers_to_add"] == stamped["response_headers_to_add"][1:]
    assert "response_headers_to_add" not in _routes(snapshot, set())[0]


def test_force_token_goes_to_the_sidecar_and_no_further() -> None:
    (rds,) = _resources(envoyfiles.documents(samples.snapshot(), enabled=ON).rds)
    assert rds["request_headers_to_remove"] == ["x-force-variant"]
    assert "x-force-variant" in envoyfilter.forwarded_headers(samples.snapshot())
    without = samples.snapshot()
    del without.experiments[:]
    assert "x-force-variant" not in envoyfilter.forwarded_headers(without)


def test_verified_claims_leave_envoy_only_when_a_unit_is_one() -> None:
    snapshot = samples.snapshot()
    (extension,) = _resources(envoyfiles.documents(snapshot, enabled=ON).ecds)
    assert "metadata_options" not in extension["typed_config"]
    before = envoyfilter.forwarded_inputs(snapshot)
    claim = snapshot.experiments[0].unit.jwt_claim
    claim.claim, claim.payload_in_metadata = "sub", "payload"
    (extension,) = _resources(envoyfiles.documents(snapshot, enabled=ON).ecds)
    namespaces = {"untyped": ["envoy.filters.http.jwt_authn"]}
    assert extension["typed_config"]["metadata_options"] == {"forwarding_namespaces": namespaces}
    assert "authorization" not in envoyfilter.forwarded_headers(snapshot)
    # The start gate waits for it.
    new = envoyfilter.forwarded_inputs(snapshot) - before
    assert new == {"metadata envoy.filters.http.jwt_authn"}


def test_unverified_token_leaves_envoy_and_is_not_copied() -> None:
    snapshot = samples.snapshot()
    claim = snapshot.experiments[0].unit.jwt_claim
    claim.claim, claim.unverified = "sub", True
    assert "authorization" in envoyfilter.forwarded_headers(snapshot)
    claim.header = "x-jwt"
    assert "x-jwt" in envoyfilter.forwarded_headers(snapshot)
    (policy,) = _routes(snapshot, ON)[0]["route"]["request_mirror_policies"]
    assert {"remove": "x-jwt"} in policy["request_headers_mutations"]


def test_headers_that_name_models_leave_envoy_when_a_target_has_a_model() -> None:
    snapshot = samples.snapshot()
    assert "seldon-model" not in envoyfilter.forwarded_headers(snapshot)
    snapshot.targets[0].model_name = "fraud"
    assert "seldon-model" in envoyfilter.forwarded_headers(snapshot)
    assert "x-model-version" not in envoyfilter.forwarded_headers(snapshot)
    snapshot.targets[0].model_version = "2"
    assert "x-model-version" in envoyfilter.forwarded_headers(snapshot)
