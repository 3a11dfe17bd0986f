"""A snapshot as Envoy's watched files: clusters (CDS), routes (RDS) and the filter (ECDS).

Owns what Envoy is told of a snapshot. Targets become virtual hosts and routes; the upstreams of
baselines and variants become clusters with health checks; the headers that the plan reads become
the filter's allow-list. Refuses to read or write files, to know the time, and to judge a snapshot:
`sidecar.plan` does that first.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from sidecar.envoymatch import matches, target_hosts, targets_in_order
from sidecar.envoyyaml import TYPE, Json, assignment, is_ip, resources, seconds, socket_address
from turnout import contract
from turnout.v1alpha1.common_pb2 import Predicate, Upstream
from turnout.v1alpha1.snapshot_pb2 import ClusterPlan, ExperimentPlan, Snapshot, TargetPlan

CLUSTERS_FILE: Final = "cds/clusters.yaml"
ROUTES_FILE: Final = "rds/routes.yaml"
FILTER_FILE: Final = "ecds/turnout.yaml"
EXT_PROC: Final = "envoy.extensions.filters.http.ext_proc.v3."

# What the sidecar may set, and nothing else: a bug in it cannot touch a client's headers.
MUTABLE_HEADERS: Final = (
    r"^(x-variant|x-turnout|x-turnout-(upstream|shadow|shadow-variant)|x-param-.+)$"
)
# What a target's match can read. Envoy sends pseudo-headers only when they are listed.
PSEUDO_HEADERS: Final = (":authority", ":method", ":path")
# Credentials that a copy never carries.
SECRET_HEADERS: Final = ("authorization", "cookie", "proxy-authorization")

# A hung worker costs a request at most this (50 ms was tried).
MESSAGE_TIMEOUT_S: Final = 0.05
# Below the 5 s after which common model servers (uvicorn) close an idle connection: Envoy must be
# the one that closes, or a request meets a connection that is just being closed.
UPSTREAM_IDLE_S: Final = 3.0
# Envoy's default of 1,024 would answer 503 to a burst; the model's own limits decide.
UPSTREAM_LIMIT: Final = 1_000_000
STREAM_IDLE_MIN_S: Final = 300.0

_SYSTEM_CA: Final = "/etc/ssl/certs/ca-certificates.crt"


class Files(NamedTuple):
    """Texts of Envoy's three watched files."""

    cds: str
    rds: str
    ecds: str


def documents(
    snapshot: Snapshot,
    *,
    enabled: Collection[tuple[str, int]],
    extra_clusters: Iterable[ClusterPlan] = (),
) -> Files:
    """Print the three watched files.

    Args:
        snapshot: A valid snapshot.
        enabled: (experiment, epoch) whose start gate is open. A target with none of them has the
            filter off.
        extra_clusters: Clusters to keep although the snapshot no longer names them: clusters leave
            last.

    Raises:
        UnsupportedMatch: A target's header predicates need too many routes.
    """
    return Files(
        cds=resources(clusters(snapshot, extra_clusters)),
        rds=resources([_route_configuration(snapshot, frozenset(enabled))]),
        ecds=resources([_extension(snapshot)]),
    )


# -- Clusters --------------------------------------------------------------------------------------


def cluster_plans(
    snapshot: Snapshot, extra_clusters: Iterable[ClusterPlan] = ()
) -> list[ClusterPlan]:
    """All clusters that the snapshot names, each once, by name; those that Envoy has included."""
    found: dict[str, ClusterPlan] = {plan.cluster: plan for plan in extra_clusters}
    for experiment in snapshot.experiments:
        found.update({v.cluster.cluster: v.cluster for v in experiment.variants})
    found.update({target.baseline.cluster: target.baseline for target in snapshot.targets})
    return [found[name] for name in sorted(found) if name]


def clusters(snapshot: Snapshot, extra_clusters: Iterable[ClusterPlan] = ()) -> list[Json]:
    """Envoy clusters for all upstreams given by address."""
    baselines = {target.baseline.cluster for target in snapshot.targets}
    return [
        _cluster(plan, candidate=plan.cluster not in baselines)
        for plan in cluster_plans(snapshot, extra_clusters)
        if plan.upstream.address
    ]


def _cluster(plan: ClusterPlan, *, candidate: bool) -> Json:
    host, port = split_address(plan.upstream.address)
    cluster: Json = {
        "@type": TYPE + "envoy.config.cluster.v3.Cluster",
        "name": plan.cluster,
        "type": "STATIC" if is_ip(host) else "STRICT_DNS",
        "dns_lookup_family": "V4_PREFERRED",
        "connect_timeout": "1s",
        "circuit_breakers": {"thresholds": [_breakers(UPSTREAM_LIMIT)]},
        "health_checks": [_health_check(plan.upstream)],
        "load_assignment": assignment(plan.cluster, [socket_address(host, port)]),
        "typed_extension_protocol_options": _http_options(http2=plan.upstream.http2),
    }
    if candidate:
        # One or two pods: Envoy's 50 % panic threshold would send requests to dead ones.
        cluster["common_lb_config"] = {"healthy_panic_threshold": {"value": 0}}
    if plan.upstream.HasField("tls"):
        cluster["transport_socket"] = _tls(plan.upstream)
    return cluster


def _health_check(upstream: Upstream) -> Json:
    check: Json = {
        "timeout": "2s",
        "interval": "1s",
        # Without these a cluster that has no traffic yet is looked at once a minute.
        "no_traffic_interval": "1s",
        "no_traffic_healthy_interval": "1s",
        "unhealthy_threshold": 3,
        "healthy_threshold": 1,
    }
    if not upstream.health_path:
        return check | {"tcp_health_check": {}}
    http: Json = {"path": upstream.health_path, "host": upstream.address}
    if upstream.http2:
        http["codec_client_type"] = "HTTP2"
    return check | {"http_health_check": http}


def _breakers(limit: int) -> Json:
    return {
        "max_connections": limit,
        "max_pending_requests": limit,
        "max_requests": limit,
        "max_retries": limit,
    }


def _http_options(*, http2: bool) -> Json:
    protocol: Json = {"http2_protocol_options": {}} if http2 else {"http_protocol_options": {}}
    return {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "common_http_protocol_options": {"idle_timeout": seconds(UPSTREAM_IDLE_S)},
            "explicit_http_config": protocol,
        }
    }


def _tls(upstream: Upstream) -> Json:
    validation: Json = {"trusted_ca": {"filename": upstream.tls.ca or _SYSTEM_CA}}
    if upstream.tls.sni:
        validation["match_typed_subject_alt_names"] = [
            {"san_type": "DNS", "matcher": {"exact": upstream.tls.sni}}
        ]
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": TYPE + "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": upstream.tls.sni,
            "common_tls_context": {
                "alpn_protocols": ["h2" if upstream.http2 else "http/1.1"],
                "validation_context": validation,
            },
        },
    }


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT as host (without brackets) and port.

    Raises:
        ValueError: There is no port.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit():
        raise ValueError(f"address == {address!r}, must be HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


# -- Routes ----------------------------------------------------------------------------------------


def _route_configuration(snapshot: Snapshot, enabled: frozenset[tuple[str, int]]) -> Json:
    running = {e.target: e for e in snapshot.experiments if (e.name, e.epoch) in enabled}
    hosts = sorted({"*", *(host for target in snapshot.targets for host in target_hosts(target))})
    return {
        "@type": TYPE + "envoy.config.route.v3.RouteConfiguration",
        "name": contract.ROUTE_CONFIG_NAME,
        "ignore_port_in_host_matching": True,
        "virtual_hosts": [_virtual_host(snapshot, host, running) for host in hosts],
    }


def _virtual_host(snapshot: Snapshot, host: str, running: Mapping[str, ExperimentPlan]) -> Json:
    routes = [
        route
        for target in targets_in_order(snapshot.targets, host)
        for route in _routes(target, running.get(target.name))
    ]
    return {"name": host, "domains": [host], "routes": [*routes, _no_target()]}


def _no_target() -> Json:
    """What no target matches: without a route it would open an ext_proc stream (tried)."""
    return {
        "name": f"{contract.ROUTE_NAME_PREFIX}none",
        "match": {"prefix": "/"},
        "direct_response": {"status": 404},
        "typed_per_filter_config": _filter_off(),
    }


def _routes(target: TargetPlan, running: ExperimentPlan | None) -> Iterator[Json]:
    for match in matches(target):
        if running is not None:
            yield _stamped_route(target, match, running)
        yield _baseline_route(target, match, on=running is not None)


def _stamped_route(target: TargetPlan, match: Json, running: ExperimentPlan) -> Json:
    stamped = {"name": contract.HEADER_UPSTREAM, "present_match": True}
    return {
        "name": f"{contract.ROUTE_NAME_PREFIX}{target.name}/stamped",
        "match": match | {"headers": [*match.get("headers", []), stamped]},
        "metadata": {"filter_metadata": {contract.ROUTE_METADATA: _span_values(running)}},
        "route": _action(target)
        | {
            "cluster_header": contract.HEADER_UPSTREAM,
            "request_mirror_policies": [mirror_policy()],
        },
        "response_headers_to_add": [
            added_header(contract.HEADER_VARIANT, request_value(contract.HEADER_VARIANT))
        ],
    }


def _span_values(running: ExperimentPlan) -> Json:
    """What the tracer reads from the route; whoever is stamped here is in this experiment."""
    return {
        contract.METADATA_EXPERIMENT: running.name,
        contract.METADATA_EPOCH: str(running.epoch),
        contract.METADATA_STEP: str(running.step),
        contract.METADATA_REASON: "split",
        contract.METADATA_PROVIDER: "turnout",
    }


def _baseline_route(target: TargetPlan, match: Json, *, on: bool) -> Json:
    route: Json = {
        "name": f"{contract.ROUTE_NAME_PREFIX}{target.name}/baseline",
        "match": match,
        "route": _action(target) | {"cluster": target.baseline.cluster},
        # Attribution: only an applied stamp says which variant answered, never the upstream itself.
        "response_headers_to_remove": [contract.HEADER_VARIANT],
    }
    if on:
        route["request_headers_to_add"] = [added_header(contract.HEADER_UNSTAMPED, "1")]
    else:
        route["typed_per_filter_config"] = _filter_off()
    return route


def _filter_off() -> Json:
    disabled = {"@type": TYPE + EXT_PROC + "ExtProcPerRoute", "disabled": True}
    return {contract.EXT_PROC_FILTER: disabled}


def _action(target: TargetPlan) -> Json:
    timeout_s = target.timeout.ToNanoseconds() / 1e9
    return {
        "timeout": seconds(target.timeout.ToNanoseconds() / 1e9),
        # A model may think for as long as its timeout without a byte on the wire.
        "idle_timeout": seconds(max(STREAM_IDLE_MIN_S, timeout_s + 5)),
        # Only what never reached the model is tried again: a prediction may have side effects.
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset-before-request",
            "num_retries": 2,
        },
    }


def mirror_policy() -> Json:
    """Copies to the cluster that the stamp names: marked, and without credentials."""
    marker = added_header(contract.HEADER_SHADOW_OF, request_value(contract.HEADER_SHADOW_VARIANT))
    return {
        "cluster_header": contract.HEADER_SHADOW,
        "disable_shadow_host_suffix_append": True,
        "request_headers_mutations": [
            {"append": marker},
            *({"remove": name} for name in SECRET_HEADERS),
        ],
    }


def added_header(name: str, value: str) -> Json:
    """A header that a route sets, whatever was there."""
    return {
        "header": {"key": name, "value": value},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }


def request_value(name: str) -> str:
    """A request header's value, in Envoy's formats."""
    return f"%REQ({name})%"


# -- The filter ------------------------------------------------------------------------------------


def forwarded_headers(snapshot: Snapshot) -> list[str]:
    """Headers that the plan reads: units, segments, matches. No others leave Envoy."""
    names = set(PSEUDO_HEADERS)
    for target in snapshot.targets:
        for predicate in target.headers:
            names.update(_predicate_headers(predicate))
    for experiment in snapshot.experiments:
        names.update(_experiment_headers(experiment))
    return sorted(names)


def _experiment_headers(experiment: ExperimentPlan) -> Iterator[str]:
    if experiment.unit.header:
        yield experiment.unit.header
    if experiment.unit.cookie:
        yield "cookie"
    yield from _predicate_headers(experiment.segment)


def _predicate_headers(predicate: Predicate) -> Iterator[str]:
    if predicate.header:
        yield predicate.header
    for part in (*predicate.all, *predicate.any):
        yield from _predicate_headers(part)
    if predicate.HasField("negated"):
        yield from _predicate_headers(predicate.negated)


def _extension(snapshot: Snapshot) -> Json:
    return {
        "@type": TYPE + "envoy.config.core.v3.TypedExtensionConfig",
        "name": contract.EXT_PROC_FILTER,
        "typed_config": _ext_proc(forwarded_headers(snapshot)),
    }


def _ext_proc(headers: Sequence[str]) -> Json:
    return {
        "@type": TYPE + EXT_PROC + "ExternalProcessor",
        "stat_prefix": contract.EXT_PROC_STAT_PREFIX,
        "failure_mode_allow": True,
        "message_timeout": seconds(MESSAGE_TIMEOUT_S),
        "disable_immediate_response": True,
        "route_cache_action": "CLEAR",
        "processing_mode": {
            "request_header_mode": "SEND",
            "response_header_mode": "SKIP",
            "request_trailer_mode": "SKIP",
            "response_trailer_mode": "SKIP",
        },
        "mutation_rules": {
            "disallow_all": True,
            "allow_expression": {"regex": MUTABLE_HEADERS},
        },
        "forward_rules": {"allowed_headers": {"patterns": [{"exact": name} for name in headers]}},
        "grpc_service": {
            "envoy_grpc": {
                "cluster_name": contract.WORKERS_CLUSTER,
                "skip_envoy_headers": True,
                "retry_policy": {
                    "num_retries": 2,
                    "retry_on": "connect-failure,refused-stream,reset,unavailable",
                    "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.005s"},
                },
            },
            "timeout": "1s",
        },
    }
