"""What a patch adds, what it keeps, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from sidecar.envoylint import Needs, UnreadableFile, lint
from sidecar.envoypatch import PatchOptions, Unsupported, notes, patch
from sidecar.envoypatch.routes import add_routes
from turnout.v1alpha1.common_pb2 import Upstream
from turnout.v1alpha1.snapshot_pb2 import ClusterPlan, ExperimentPlan, Snapshot, TargetPlan

Tree = dict[str, Any]

OPTIONS = PatchOptions(sidecar="/run/t/w", workers=3, envoy_dir="/run/t/e", admin="/run/t/a")
OWN = """\
# Mine.
static_resources:
  listeners:
    - name: web
      address: {socket_address: {address: 127.0.0.1, port_value: 0x2710}}
      filter_chains:
        - filters:
            - name: http
              typed_config:
                "@type": type.googleapis.com/x.HttpConnectionManager
                stat_prefix: web
                route_config:
                  virtual_hosts:
                    - name: all
                      domains: ["*"]
                      routes: [{match: {prefix: /}, route: {cluster: v1}}]
                http_filters:
                  - {name: cors, typed_config: {"@type": type.googleapis.com/x.Cors}}
                  - {name: rbac, typed_config: {"@type": type.googleapis.com/x.RBAC}}
                  - {name: router, typed_config: {"@type": type.googleapis.com/x.Router}}
  clusters:
    - {name: v1, connect_timeout: 0.250s, metadata: {filter_metadata: {mine: {a: 1:30, b: 0600, c: "n"}}}}
    - {name: v2, connect_timeout: 1s}
"""  # noqa: E501
MANAGER = ("static_resources", "listeners", 0, "filter_chains", 0, "filters", 0, "typed_config")


def target(name: str, prefix: str = "", *hosts: str) -> TargetPlan:
    baseline = ClusterPlan(cluster="v1", upstream=Upstream(cluster="v1"))
    made = TargetPlan(name=name, path_prefix=prefix, hosts=hosts, baseline=baseline)
    made.timeout.FromSeconds(60)
    return made


def plan(*targets: TargetPlan, candidate: Upstream | None = None) -> Snapshot:
    snapshot = Snapshot(targets=targets or [target("fraud", "/fraud")])
    experiment = ExperimentPlan(name="e", epoch=1, target=snapshot.targets[0].name)
    upstream = candidate or Upstream(cluster="v2")
    cluster = ClusterPlan(cluster=upstream.cluster or "turnout.fraud.1", upstream=upstream)
    experiment.variants.add(name="v2", cluster=cluster)
    snapshot.experiments.append(experiment)
    return snapshot


def at(tree: Any, *path: str | int) -> Any:
    for step in path:
        tree = tree[step]
    return tree


def patched(text: str, snapshot: Snapshot | None = None) -> Tree:
    out = patch(text.encode(), "own.yaml", OPTIONS, snapshot or plan())
    assert patch(out.encode(), "own.yaml", OPTIONS, snapshot or plan()) == out
    tree: Tree = yaml.safe_load(out)
    return tree


def routed(routes: list[Tree], *targets: TargetPlan, domain: str = "*") -> list[str]:
    """The routes after a patch, as "name path -> cluster or header"; a second one moves nothing."""
    table: Tree = {"virtual_hosts": [{"name": "h", "domains": [domain], "routes": routes}]}
    add_routes(table, targets)
    first = yaml.safe_dump(table)
    add_routes(table, targets)
    assert yaml.safe_dump(table) == first
    found = table["virtual_hosts"][0]["routes"]
    return [f"{_name(r)} -> {_destination(r)}" for r in found]


def _name(route: Tree) -> str:
    match = route["match"]
    path = next(str(v) for k, v in match.items() if k != "headers")
    return f"{route['name'].removeprefix('turnout/')} {path}" if "name" in route else path


def _destination(route: Tree) -> str:
    action = route.get("route", {})
    asks = "*" if "turnout" in route.get("typed_per_filter_config", {}) else ""
    return str(action.get("cluster_header") or action.get("cluster") or "-") + asks


def route(cluster: str = "v1", **match: Any) -> Tree:
    return {"match": match, "route": {"cluster": cluster, "timeout": "5s"}}


# -- Routes ----------------------------------------------------------------------------------------

STAMP = "x-turnout-upstream"


def test_a_wide_route_is_narrowed_before_itself() -> None:
    assert routed([route(prefix="/")], target("fraud", "/fraud")) == [
        f"fraud/stamped /fraud -> {STAMP}",
        "fraud/baseline /fraud -> v1*",
        "/ -> v1",
    ]


def test_a_route_within_the_target_asks_itself() -> None:
    own = [route(path="/fraud/a"), route(prefix="/fraud/b", cluster="b"), route(prefix="/x")]
    assert routed(own, target("fraud", "/fraud")) == [
        f"fraud/stamped /fraud/a -> {STAMP}",
        "/fraud/a -> v1*",
        f"fraud/stamped /fraud/b -> {STAMP}",
        "/fraud/b -> b*",
        "/x -> v1",
    ]


def test_a_target_with_a_model_asks_where_a_request_may_name_it() -> None:
    named = target("iris")
    named.model_name = "iris"
    found = routed([route(prefix="/v2"), route(prefix="/")], named)
    assert found[:3] == [
        f"iris/stamped /v2/models/iris -> {STAMP}",
        "iris/baseline /v2/models/iris -> v1*",
        f"iris/stamped /v2 -> {STAMP}",
    ]
    assert "/v2 -> v1" in found
    assert f"iris/stamped /v1/models/iris -> {STAMP}" in found
    assert found[-1] == "/ -> v1"
    table: Tree = {"virtual_hosts": [{"domains": ["*"], "routes": [route(prefix="/")]}]}
    add_routes(table, [named])
    headers = [r["match"]["headers"] for r in table["virtual_hosts"][0]["routes"][2 * 2 : -1]]
    asked = {tuple(h["name"] for h in given) for given in headers}
    assert ("seldon-model", STAMP) in asked
    assert ("seldon-model",) in asked
    assert all(h["string_match"] == {"exact": "iris"} for given in headers for h in given[:1])


def test_a_version_goes_before_its_model_and_a_prefix_that_hides_both_after_them() -> None:
    named, versioned = target("iris"), target("iris-2")
    named.model_name = versioned.model_name = "iris"
    versioned.model_version = "2"
    found = routed([route(prefix="/")], target("all", "/v2"), named, versioned)
    paths = [line for line in found if line.endswith(STAMP) and " / " not in line]
    assert paths == [
        f"iris-2/stamped /v2/models/iris/versions/2 -> {STAMP}",
        f"iris-2/stamped /v1/models/iris/versions/2 -> {STAMP}",
        f"iris-2/stamped /v2/models/iris -> {STAMP}",
        f"iris-2/stamped /v1/models/iris -> {STAMP}",
        f"iris/stamped /v2/models/iris -> {STAMP}",
        f"iris/stamped /v1/models/iris -> {STAMP}",
        f"all/stamped /v2 -> {STAMP}",
    ]


def test_the_longest_path_goes_first_when_targets_share_a_route() -> None:
    targets = (target("all", "/m"), target("one", "/m/one"))
    assert routed([route(prefix="/")], *targets) == [
        f"one/stamped /m/one -> {STAMP}",
        "one/baseline /m/one -> v1*",
        f"all/stamped /m -> {STAMP}",
        "all/baseline /m -> v1*",
        "/ -> v1",
    ]


def test_a_later_route_is_left_alone_when_an_earlier_one_takes_every_request() -> None:
    own = [route(prefix="/fraud"), route(prefix="/", cluster="rest")]
    assert routed(own, target("fraud", "/fraud")) == [
        f"fraud/stamped /fraud -> {STAMP}",
        "/fraud -> v1*",
        "/ -> rest",
    ]


def test_a_later_route_is_taken_too_when_the_earlier_one_has_conditions() -> None:
    beta = route(prefix="/fraud", headers=[{"name": "x-beta", "present_match": True}])
    found = routed([beta, route(prefix="/", cluster="rest")], target("fraud", "/fraud"))
    assert [line.split(" -> ")[1] for line in found] == [STAMP, "v1*", STAMP, "rest*", "rest"]


def test_routes_without_a_cluster_stay_as_they_are() -> None:
    own = [
        {"match": {"prefix": "/fraud"}, "redirect": {"https_redirect": True}},
        {"match": {"prefix": "/"}, "direct_response": {"status": 404}},
    ]
    assert routed(own, target("fraud", "/fraud")) == ["/fraud -> -", "/ -> -"]


@pytest.mark.parametrize(
    ("match", "meets"),
    [
        ({"path_separated_prefix": "/fraud"}, True),
        ({"path_separated_prefix": "/fr"}, False),
        ({"path": "/fraudulent"}, True),
        ({"path": "/other"}, False),
        ({"safe_regex": {"regex": "/fraud/v[0-9]+"}}, True),
        ({"safe_regex": {"regex": "^/[a-z]+/infer"}}, True),
        ({"safe_regex": {"regex": "/other/.*"}}, False),
        ({"path_match_policy": {"typed_config": {"path_template": "/fraud/{id}"}}}, True),
        ({"connect_matcher": {}}, False),
    ],
)
def test_a_route_is_the_targets_when_its_paths_meet(match: Tree, meets: bool) -> None:
    found = routed([{"match": match, "route": {"cluster": "v1"}}], target("fraud", "/fraud"))
    assert len(found) == (2 if meets else 1)


@pytest.mark.parametrize(
    ("domain", "host", "meets"),
    [
        ("*", "a.b", True),
        ("a.b", "a.b", True),
        ("a.b:8080", "a.b", True),
        ("a.b:*", "a.b", True),
        ("A.B", "a.b", True),
        ("c.b", "a.b", False),
        ("*.b", "a.b", True),
        ("a.b", "*.b", True),
        ("*.a.b", "*.b", True),
        ("*.c", "*.b", False),
        ("a.*", "a.b", True),
        ("c.*", "a.b", False),
        ("a.b", "", True),
    ],
)
def test_a_virtual_host_is_the_targets_when_its_names_meet(
    domain: str, host: str, meets: bool
) -> None:
    hosts = (host,) if host else ()
    found = routed([route(prefix="/")], target("t", "/t", *hosts), domain=domain)
    assert len(found) == (3 if meets else 1)


def test_a_rewrite_stays_what_it_was_when_a_route_is_narrowed() -> None:
    own = {"match": {"prefix": "/api/"}, "route": {"cluster": "v1", "prefix_rewrite": "/"}}
    table: Tree = {"virtual_hosts": [{"domains": ["*"], "routes": [own]}]}
    add_routes(table, [target("fraud", "/api/fraud")])
    found = table["virtual_hosts"][0]["routes"]
    assert [r["route"]["prefix_rewrite"] for r in found] == ["/fraud", "/fraud", "/"]


def test_the_stamped_route_keeps_all_but_the_cluster() -> None:
    own = {
        "match": {"prefix": "/t", "headers": [{"name": "a", "present_match": True}]},
        "name": "mine",
        "route": {"weighted_clusters": {}, "retry_policy": {"num_retries": 1}},
        "response_headers_to_add": [{"header": {"key": "b", "value": "c"}}],
        "metadata": {"x": 1},
    }
    table: Tree = {"virtualHosts": [{"domains": ["*"], "routes": [own]}]}
    add_routes(table, [target("t", "/t")])
    stamped, theirs = table["virtualHosts"][0]["routes"]
    assert [h["name"] for h in stamped["match"]["headers"]] == ["a", STAMP]
    assert stamped["name"] == "turnout/t/stamped"
    assert "weighted_clusters" not in stamped["route"]
    assert stamped["route"]["retry_policy"] == {"num_retries": 1}
    assert stamped["route"]["timeout"] == theirs["route"]["timeout"] == "60s"
    added = [h["header"]["key"] for h in stamped["response_headers_to_add"]]
    assert added == ["b", "x-variant", "set-cookie"]
    assert table["request_headers_to_remove"] == ["x-force-variant"]
    assert stamped["metadata"] == {"x": 1}
    assert theirs["name"] == "mine"
    assert [h["header"]["key"] for h in theirs["request_headers_to_add"]] == ["x-turnout-unstamped"]
    assert "request_headers_to_add" not in stamped
    # Who is held out answers with it as well.
    assert [h["header"]["key"] for h in theirs["response_headers_to_add"]] == ["b", "set-cookie"]


def test_a_cookie_of_theirs_stays_when_ours_is_made_anew() -> None:
    mine = {"header": {"key": "set-cookie", "value": "theirs=1"}}
    own = {"match": {"prefix": "/t"}, "route": {"cluster": "v1"}, "response_headers_to_add": [mine]}
    table: Tree = {"virtual_hosts": [{"domains": ["*"], "routes": [own]}]}
    for _ in range(2):
        add_routes(table, [target("t", "/t")])
        stamped, theirs = table["virtual_hosts"][0]["routes"]
        values = [h["header"]["value"] for h in theirs["response_headers_to_add"]]
        assert values == ["theirs=1", "%REQ(x-turnout-set-cookie)%"]
        assert len(stamped["response_headers_to_add"]) == 3


# -- The rest of the bootstrap ---------------------------------------------------------------------


def test_what_was_there_stays_as_it_was_written() -> None:
    out = patch(OWN.encode(), "own.yaml", OPTIONS, plan())
    for kept in ("port_value: 0x2710", "a: 1:30", "b: 0600", 'c: "n"', "connect_timeout: 0.250s"):
        assert kept in out
    assert next(iter(yaml.safe_load(out))) == "static_resources"


def test_everything_that_a_split_needs_is_there() -> None:
    tree = patched(OWN)
    manager = at(tree, *MANAGER)
    assert [f["name"] for f in manager["http_filters"]] == ["cors", "turnout", "rbac", "router"]
    assert manager["http_filters"][1]["disabled"] is True
    assert manager["always_set_request_id_in_response"] is True
    names = [c["name"] for c in at(tree, "static_resources", "clusters")]
    assert names == ["v1", "v2", "turnout_workers"]
    endpoints = at(tree, "static_resources", "clusters", 2, "load_assignment", "endpoints", 0)
    assert len(endpoints["lb_endpoints"]) == 3
    assert tree["node"] == {"id": "turnout", "cluster": "turnout"}
    assert tree["admin"]["address"]["pipe"]["path"] == "/run/t/a"
    assert lint({"x": yaml.safe_dump(tree).encode()}, Needs.of(plan())) == []


def test_a_candidate_has_no_panic_threshold_and_the_baseline_keeps_its_own() -> None:
    clusters = at(patched(OWN), "static_resources", "clusters")
    assert "common_lb_config" not in clusters[0]
    assert clusters[1]["common_lb_config"] == {"healthy_panic_threshold": {"value": 0}}


def test_clusters_come_by_file_when_nothing_else_says_where_from() -> None:
    tree = patched(OWN, plan(candidate=Upstream(address="127.0.0.1:1")))
    source = at(tree, "dynamic_resources", "cds_config", "path_config_source")
    assert source["path"] == "/run/t/e/cds/clusters.yaml"


def test_another_cds_stays_when_the_plan_names_clusters() -> None:
    own = OWN + "dynamic_resources: {cds_config: {ads: {}}}\n"
    assert at(patched(own), "dynamic_resources", "cds_config") == {"ads": {}}


def test_anchors_and_merge_keys_are_written_out() -> None:
    own = OWN.replace("    - {name: v1,", "    - &v1 {name: v1,").replace(
        "{name: v2, connect_timeout: 1s}", "{<<: *v1, name: v2}"
    )
    tree = patched(own)
    v1, v2, _ = at(tree, "static_resources", "clusters")
    assert v2["metadata"] == v1["metadata"]
    assert "common_lb_config" in v2
    assert "common_lb_config" not in v1


def test_an_admin_and_a_node_of_their_own_stay() -> None:
    own = OWN + "node: {id: mine}\nadmin: {address: {pipe: {path: /mine}}, profile_path: /p}\n"
    tree = patched(own)
    assert tree["node"] == {"id": "mine", "cluster": "turnout"}
    assert tree["admin"] == {"address": {"pipe": {"path": "/mine"}}, "profile_path": "/p"}


def test_a_patch_with_other_options_replaces_what_the_first_one_added() -> None:
    once = patch(OWN.encode(), "x", OPTIONS, plan())
    again = patch(once.encode(), "x", OPTIONS._replace(workers=1), plan(target("other", "/o")))
    assert "turnout/fraud/" not in again
    assert "turnout/other/stamped" in again
    assert "/run/t/w.0" in again
    assert "/run/t/w.1" not in again


VHDS = OWN.replace("route_config:", "route_config:\n                  vhds: {}")
MATCHER = OWN.replace("routes: [", "matcher: [").replace("route: {", "r: {")
OTHER_CDS = OWN + "dynamic_resources: {cds_config: {ads: {}}}\n"
ADDRESS = plan(candidate=Upstream(address="10.0.0.1:80"))


def test_the_owner_is_told_when_the_default_route_is_not_the_baseline() -> None:
    def told(text: str) -> list[str]:
        return notes(patch(text.encode(), "x", OPTIONS, plan()), "x", plan())

    assert told(OWN) == []
    (note,) = told(OWN.replace("route: {cluster: v1}", "route: {cluster: old}"))
    assert "target fraud: the default route leads to old, and the baseline is v1" in note
    weighted = OWN.replace("route: {cluster: v1}", "route: {weighted_clusters: {clusters: []}}")
    assert "several clusters" in told(weighted)[0]


REFUSED = {
    "RDS": (OWN.replace("route_config:", "rds:"), plan(), "come from elsewhere"),
    "VHDS": (VHDS, plan(), "VHDS"),
    "a matcher": (MATCHER, plan(), "matcher"),
    "no route": (OWN.replace("prefix: /}", "prefix: /other}"), plan(), "no route leads requests"),
    "no router": (OWN.replace("x.Router", "x.Other"), plan(), "no static router"),
    "an address": (OTHER_CDS, ADDRESS, r"upstream.address 10.0.0.1:80"),
    "documents": (OWN + "---\nadmin: {}\n", plan(), "2 documents"),
    "no listener": ("static_resources: {}\n", plan(), "no static listener"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_is_refused_with_what_stands_in_the_way(name: str) -> None:
    text, snapshot, message = REFUSED[name]
    with pytest.raises(Unsupported, match=message):
        patch(text.encode(), "own.yaml", OPTIONS, snapshot)


@pytest.mark.parametrize("text", ["a: ]", "hello: 1", "node: &n {id: *n}"])
def test_a_file_is_refused_when_lint_cannot_read_it(text: str) -> None:
    with pytest.raises(UnreadableFile, match=r"own\.yaml:1"):
        patch(text.encode(), "own.yaml", OPTIONS, plan())
