"""A snapshot as Envoy's watched files: clusters (CDS), routes (RDS) and the filter (ECDS).

Owns the clusters that the upstreams of baselines and variants become, and the three texts; routes
are `envoyroutes`', the filter is `envoyfilter`'s. Refuses to read or write files, to know the time,
and to judge a snapshot: `sidecar.plan` does that first.
"""

from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from sidecar.envoyfilter import extension
from sidecar.envoyroutes import route_configuration
from sidecar.envoyyaml import TYPE, Json, assignment, is_ip, resources, seconds, socket_address
from turnout import contract
from turnout.v1alpha1.common_pb2 import Upstream
from turnout.v1alpha1.snapshot_pb2 import ClusterPlan, Snapshot

CLUSTERS_FILE: Final = "cds/clusters.yaml"
ROUTES_FILE: Final = "rds/routes.yaml"
FILTER_FILE: Final = "ecds/turnout.yaml"

# Below the 5 s after which common model servers (uvicorn) close an idle connection: Envoy must be
# the one that closes, or a request meets a connection that is just being closed.
UPSTREAM_IDLE_S: Final = 3.0
# Envoy's default of 1,024 would answer 503 to a burst; the model's own limits decide.
UPSTREAM_LIMIT: Final = 1_000_000

# Of the addresses that a warning offers.
_ADDRESSES_TOLD: Final = 5

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
    local: str = "",
) -> Files:
    """Print the three watched files.

    Args:
        snapshot: A valid snapshot.
        enabled: (experiment, epoch) whose start gate is open. A target with none of them has the
            filter off.
        extra_clusters: Clusters to keep although the snapshot no longer names them: clusters leave
            last.
        local: Where Envoy intercepts what is meant for the pod beside it: the address that the
            resources have for that pod. "" = Envoy is called by its own address.

    Raises:
        UnsupportedMatch: A target's header predicates need too many routes.
    """
    return Files(
        cds=clusters_text(snapshot, extra_clusters, local=local),
        rds=routes_text(snapshot, enabled, local=local),
        ecds=filter_text(snapshot, local=local),
    )


def clusters_text(
    snapshot: Snapshot, extra_clusters: Iterable[ClusterPlan] = (), *, local: str = ""
) -> str:
    """Print CLUSTERS_FILE; arguments as of `documents`."""
    return resources(clusters(snapshot, extra_clusters, local=local))


def routes_text(
    snapshot: Snapshot, enabled: Collection[tuple[str, int]], *, local: str = ""
) -> str:
    """Print ROUTES_FILE; arguments as of `documents`."""
    return resources([route_configuration(snapshot, frozenset(enabled), local=local)])


def filter_text(snapshot: Snapshot, *, local: str = "") -> str:
    """Print FILTER_FILE; arguments as of `documents`."""
    return resources([extension(snapshot, transparent=bool(local))])


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


def stray_local(snapshot: Snapshot, local: str) -> str:
    """What is wrong with the address of the pod beside Envoy, in words; "" = nothing.

    An Envoy that intercepts for a pod that no resource names splits nothing: every request goes to
    the pod as it came. The resources may come later, so that this warns, and refuses nothing.

    Args:
        snapshot: The resources.
        local: HOST:PORT; "" = Envoy does not intercept.
    """
    known = sorted({plan.upstream.address for plan in cluster_plans(snapshot)} - {""})
    if not local or local in known:
        return ""
    told = ", ".join(known[:_ADDRESSES_TOLD]) + (", ..." if len(known) > _ADDRESSES_TOLD else "")
    return f"{local!r} is the address of no baseline or variant; they have {told or 'none'}"


def clusters(
    snapshot: Snapshot, extra_clusters: Iterable[ClusterPlan] = (), *, local: str = ""
) -> list[Json]:
    """Envoy clusters for all upstreams given by address."""
    baselines = {target.baseline.cluster for target in snapshot.targets}
    found = [
        _local_cluster(plan.cluster, _http_options(http2=plan.upstream.http2))
        if plan.upstream.address == local
        else _cluster(plan, candidate=plan.cluster not in baselines, marked=bool(local))
        for plan in cluster_plans(snapshot, extra_clusters)
        if plan.upstream.address
    ]
    if local:
        found.append(_local_cluster(contract.LOCAL_CLUSTER, _downstream_options()))
    return found


def _local_cluster(name: str, options: Json) -> Json:
    """The pod that the client has called: no name, no load balancing, no health of its own."""
    return {
        "@type": TYPE + "envoy.config.cluster.v3.Cluster",
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "1s",
        "circuit_breakers": {"thresholds": [_breakers(UPSTREAM_LIMIT)]},
        "typed_extension_protocol_options": options,
    }


def _cluster(plan: ClusterPlan, *, candidate: bool, marked: bool) -> Json:
    host, port = split_address(plan.upstream.address)
    cluster: Json = {
        "@type": TYPE + "envoy.config.cluster.v3.Cluster",
        "name": plan.cluster,
        "type": "STATIC" if is_ip(host) else "STRICT_DNS",
        "dns_lookup_family": "V4_PREFERRED",
        "connect_timeout": "1s",
        "circuit_breakers": {"thresholds": [_breakers(UPSTREAM_LIMIT)]},
        "health_checks": [_health_check(plan.upstream, marked=marked)],
        "load_assignment": assignment(plan.cluster, [socket_address(host, port)]),
        "typed_extension_protocol_options": _http_options(http2=plan.upstream.http2),
    }
    if candidate:
        # One or two pods: Envoy's 50 % panic threshold would send requests to dead ones.
        cluster["common_lb_config"] = {"healthy_panic_threshold": {"value": 0}}
    if plan.upstream.HasField("tls"):
        cluster["transport_socket"] = _tls(plan.upstream)
    return cluster


def _health_check(upstream: Upstream, *, marked: bool) -> Json:
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
    if marked:
        # An Envoy that intercepts beside that pod lets it pass (`envoyroutes`).
        mark = {"key": contract.HEADER_HOP, "value": contract.HOP_HEALTH}
        http["request_headers_to_add"] = [{"header": mark}]
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
    return _protocol_options({"explicit_http_config": protocol})


def _downstream_options() -> Json:
    """Speak to the pod as the client spoke to us."""
    both: Json = {"http_protocol_options": {}, "http2_protocol_options": {}}
    return _protocol_options({"use_downstream_protocol_config": both})


def _protocol_options(protocol: Json) -> Json:
    return {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "common_http_protocol_options": {"idle_timeout": seconds(UPSTREAM_IDLE_S)},
            **protocol,
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
