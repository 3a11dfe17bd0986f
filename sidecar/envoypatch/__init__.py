"""Additions to a user's own bootstrap, so that their Envoy splits traffic.

What is supported: a bootstrap (YAML or JSON, one document) whose listeners are static and whose
connection managers have their routes inline. Their clusters may be static or come from elsewhere
(CDS, ADS, EDS): then baselines and candidates are named with `upstream: {cluster: NAME}`. When the
bootstrap has no CDS of its own, it gets the sidecar's watched file, and upstreams may be addresses.

What is added: the strip of reserved headers, the ext_proc filter (off but on the targets' routes;
its configuration by ECDS), both access logs, the request id in responses, the workers' cluster, a
panic threshold of 0 on candidates, a node id and an admin socket where there is none, and the
targets' routes (`envoypatch.routes`). Patching again changes nothing.

What is refused, by name: other documents than a bootstrap (LDS, a bare listener or manager have no
place for the workers' cluster), listeners or routes that come from elsewhere (LDS, RDS, SRDS,
VHDS), virtual hosts with a generic matcher, a router by ECDS, a plan with addresses where clusters
come by another CDS, and targets that no route serves.

Routes stay the user's. A sidecar that watches this Envoy's admin sees that its own routes are not
read, and stamps the baseline's cluster too, so that a promotion takes effect; only a sidecar that
is away leaves requests to the user's default route.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from sidecar.envoybootstrap import access_log, ext_proc_filter, strip, watched, workers_cluster
from sidecar.envoyfiles import CLUSTERS_FILE, cluster_plans
from sidecar.envoylint.document import load
from sidecar.envoypatch.roundtrip import (
    Tree,
    WrongShape,
    default,
    field,
    listed,
    put,
    text_of,
    type_of,
    values_of,
)
from sidecar.envoypatch.routes import add_routes, strays
from turnout import contract
from turnout.v1alpha1.snapshot_pb2 import Snapshot

__all__ = ["PatchOptions", "Unsupported", "notes", "patch"]

# x-envoy-* stays: services of the user's own may rely on it.
_STRIPPED_PREFIXES: Final = ("x-turnout-", contract.HEADER_PARAMETER_PREFIX)
_STRIP_NAME: Final = "turnout"
# Filters that judge a request by its route: ext_proc, which changes it, goes before them.
_GUARDS: Final = frozenset({"RBAC", "ExtAuthz", "BasicAuth", "OAuth2", "ApiKeyAuth", "Router"})


class Unsupported(ValueError):
    """The file cannot be patched; the message names what stands in the way, and the remedy."""


class PatchOptions(NamedTuple):
    """What the additions need to know.

    Attributes:
        sidecar: Path of the workers' sockets, without the number.
        workers: Number of workers, >= 1.
        envoy_dir: Absolute path of the directory of the watched files.
        admin: Path of a Unix socket for Envoy's admin, where the bootstrap has none.
    """

    sidecar: str
    workers: int
    envoy_dir: str
    admin: str


def patch(data: bytes, file: str, options: PatchOptions, snapshot: Snapshot) -> str:
    """Write the additions into a bootstrap.

    Args:
        data: The user's file.
        file: How messages call it.
        options: Sockets and directories.
        snapshot: The plan whose targets are split.

    Raises:
        UnreadableFile: It is not YAML, not Envoy's, or of API v2.
        Unsupported: It is Envoy's, and has no place for the additions.
    """
    documents = load(data, file)
    if len(documents) != 1:
        raise Unsupported(f"{file}: {len(documents)} documents, and Envoy reads the first alone")
    if documents[0].kind != "bootstrap":
        kind = documents[0].kind
        raise Unsupported(f"{file}: a {kind}; give the bootstrap, which holds the workers' cluster")
    try:
        tree: Tree = values_of(documents[0].root.raw)
        _sources(tree, file, options, snapshot)
        _split(tree, file, options, snapshot)
        _clusters(tree, options, snapshot)
    except WrongShape as error:
        raise Unsupported(f"{file}: {error}; see `envoy --mode validate -c {file}`") from error
    return text_of(tree)


def notes(text: str, file: str, snapshot: Snapshot) -> list[str]:
    """What the owner of a patched file should know: default routes that differ from the plan.

    Args:
        text: What `patch` made.
        file: How messages call it.
        snapshot: The plan.
    """
    tree = values_of(load(text.encode(), file)[0].root.raw)
    baselines = {target.name: target.baseline.cluster for target in snapshot.targets}
    tables = [table for _, m in _managers(tree) if (table := field(m, "route_config")) is not None]
    return sorted({note for table in tables for note in strays(table, baselines)})


def _sources(tree: Tree, file: str, options: PatchOptions, snapshot: Snapshot) -> None:
    """Node, admin and CDS: what dynamic configuration and the start gate need."""
    node = default(tree, "node", {})
    default(node, "id", "turnout")
    default(node, "cluster", "turnout")
    if field(tree, "admin", "address") is None:
        admin = default(tree, "admin", {})
        put(admin, "address", {"pipe": {"path": options.admin, "mode": 0o600}})
    ours = watched(options.envoy_dir, CLUSTERS_FILE)
    dynamic = default(tree, "dynamic_resources", {})
    theirs = field(dynamic, "cds_config")
    if theirs is None:
        put(dynamic, "cds_config", ours)
    elif _path(theirs) != _path(ours):
        known = {p.cluster: p.upstream.address for p in cluster_plans(snapshot)}
        if addresses := sorted(address for address in known.values() if address):
            raise Unsupported(
                f"{file}: clusters come by its own cds_config, so upstream.address "
                f"{', '.join(addresses)} cannot be added; name a cluster with upstream.cluster"
            )


def _path(source: Any) -> str:
    return str(field(source, "path_config_source", "path"))


# -- Connection managers ---------------------------------------------------------------------------


def _split(tree: Tree, file: str, options: PatchOptions, snapshot: Snapshot) -> None:
    managers = list(_managers(tree))
    if not managers:
        raise Unsupported(
            f"{file}: no static listener with an HTTP connection manager; listeners that come by "
            "LDS are patched where they are made"
        )
    served: set[str] = set()
    elsewhere = [name for name, manager in managers if field(manager, "route_config") is None]
    for name, manager in managers:
        table = field(manager, "route_config")
        if table is None:
            continue
        _refuse_matchers(table, file, name)
        found = add_routes(table, snapshot.targets)
        if found or any(_is_named(f) for f in listed(manager, "http_filters")):
            _manager(manager, file, name, options)
        served |= found
    missing = [target.name for target in snapshot.targets if target.name not in served]
    if missing and elsewhere:
        raise Unsupported(
            f"{file}: the routes of listener {', '.join(elsewhere)} come from elsewhere (RDS), so "
            f"those of target {', '.join(missing)} cannot be added; put them into route_config"
        )
    if missing:
        raise Unsupported(
            f"{file}: no route leads requests of target {', '.join(missing)} to a cluster; add "
            "one for its hosts and pathPrefix"
        )


def _managers(tree: Tree) -> Iterator[tuple[str, Tree]]:
    """(listener's name, connection manager) of every static listener."""
    for listener in listed(tree, "static_resources", "listeners"):
        chains = [*listed(listener, "filter_chains"), field(listener, "default_filter_chain")]
        for chain in chains:
            for network in listed(chain, "filters"):
                config = field(network, "typed_config")
                if type_of(config) == "HttpConnectionManager":
                    yield str(field(listener, "name") or "without a name"), config


def _refuse_matchers(table: Tree, file: str, listener: str) -> None:
    for host in listed(table, "virtual_hosts"):
        if field(host, "matcher") is not None:
            name = field(host, "name")
            raise Unsupported(f"{file}: virtual host {name} has a matcher; it needs routes")
    if field(table, "vhds") is not None:
        raise Unsupported(
            f"{file}: virtual hosts of listener {listener} come from elsewhere (VHDS)"
        )


def _manager(manager: Tree, file: str, listener: str, options: PatchOptions) -> None:
    strips = [e for e in listed(manager, "early_header_mutation_extensions")
              if field(e, "name") != _STRIP_NAME]  # fmt: skip
    ours = {**strip(_STRIPPED_PREFIXES), "name": _STRIP_NAME}
    put(manager, "early_header_mutation_extensions", [ours, *strips])
    put(manager, "always_set_request_id_in_response", True)
    if field(manager, "generate_request_id") is not None:
        put(manager, "generate_request_id", True)
    served = access_log(
        contract.ACCESS_LOG_SERVED, contract.HEADER_STAMP, contract.HEADER_UNSTAMPED
    )
    put(manager, "access_log", _logs(listed(manager, "access_log"), served))
    filters = [f for f in listed(manager, "http_filters") if not _is_named(f)]
    router = filters[-1] if filters else {}
    config = field(router, "typed_config")
    if type_of(config) != "Router":
        raise Unsupported(f"{file}: the last filter of listener {listener} is no static router")
    copies = access_log(contract.ACCESS_LOG_SHADOW, contract.HEADER_SHADOW_OF)
    put(config, "upstream_log", _logs(listed(config, "upstream_log"), copies))
    place = next(
        i for i, f in enumerate(filters) if type_of(field(f, "typed_config")) in _GUARDS
    )  # fmt: skip
    # Off: the routes of targets turn it on.
    entry = ext_proc_filter(options.envoy_dir)
    entry = {"name": entry.pop("name"), "disabled": True, **entry}
    put(manager, "http_filters", [*filters[:place], entry, *filters[place:]])


def _is_named(entry: Any) -> bool:
    return bool(field(entry, "name") == contract.EXT_PROC_FILTER)


def _logs(theirs: list[Any], ours: Tree) -> list[Any]:
    name = field(ours, "typed_config", "common_config", "log_name")
    kept = [e for e in theirs if field(e, "typed_config", "common_config", "log_name") != name]
    return [*kept, ours]


# -- Clusters --------------------------------------------------------------------------------------


def _clusters(tree: Tree, options: PatchOptions, snapshot: Snapshot) -> None:
    static = default(tree, "static_resources", {})
    clusters = listed(static, "clusters")
    kept = [c for c in clusters if field(c, "name") != contract.WORKERS_CLUSTER]
    baselines = {target.baseline.cluster for target in snapshot.targets}
    candidates = {plan.cluster for plan in cluster_plans(snapshot)} - baselines
    for cluster in kept:
        if str(field(cluster, "name")) in candidates:
            # One or two pods: Envoy's 50 % panic threshold would send requests to dead ones.
            common = default(cluster, "common_lb_config", {})
            default(common, "healthy_panic_threshold", {"value": 0})
    put(static, "clusters", [*kept, workers_cluster(options.sidecar, options.workers)])
