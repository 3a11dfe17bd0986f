"""Traps in clusters: the workers', and those of candidates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sidecar.envoylint.config import Config, routes_of
from sidecar.envoylint.document import Node
from sidecar.envoylint.finding import ERROR, WARNING, Hit, Needs, Rule

_REQUESTS_DEFAULT: Final = 1024
_RETRIES_DEFAULT: Final = 3
_OPTIONS: Final = (
    "typed_extension_protocol_options", "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
)  # fmt: skip


def _breakers(config: Config, _needs: Needs) -> Iterator[Hit]:
    phases = ", and the response phase holds each for the model's time"
    tail = phases if config.has_response_phase() else ""
    for cluster in config.worker_clusters():
        thresholds = [
            t
            for t in cluster.list_of("circuit_breakers", "thresholds")
            if t.word("priority") in ("", "DEFAULT")
        ]
        requests = max((_number(t, "max_requests") for t in thresholds), default=0)
        retries = max((_number(t, "max_retries") for t in thresholds), default=0)
        where = cluster.get("circuit_breakers") or cluster
        if requests <= _REQUESTS_DEFAULT:
            yield Hit(where, f"at most {requests or _REQUESTS_DEFAULT} requests at once{tail}")
        elif retries <= _RETRIES_DEFAULT:
            yield Hit(where, f"at most {retries or _RETRIES_DEFAULT} retries at once")


def _number(node: Node, name: str) -> int:
    text = node.word(name)
    return int(text) if text.isdigit() else 0


def _health(config: Config, _needs: Needs) -> Iterator[Hit]:
    for cluster in config.worker_clusters():
        checks = cluster.list_of("health_checks")
        if not any(c.get("grpc_health_check") is not None for c in checks):
            where = cluster.get("health_checks") or cluster
            yield Hit(where, "the ext_proc cluster has no gRPC health check")


def _outliers(config: Config, _needs: Needs) -> Iterator[Hit]:
    for cluster in config.worker_clusters():
        if cluster.get("outlier_detection") is None:
            yield Hit(cluster, "the ext_proc cluster has no outlier_detection")


def _panics(cluster: Node) -> bool:
    """Whether a share of dead hosts makes Envoy send to all of them."""
    threshold = cluster.get("common_lb_config", "healthy_panic_threshold")
    return threshold is None or threshold.word("value").rstrip("0") not in ("", "0.", "-")


def _panic(config: Config, _needs: Needs) -> Iterator[Hit]:
    for cluster in config.worker_clusters():
        if _panics(cluster):
            yield Hit(cluster, "the ext_proc cluster has the panic threshold of 50 %")


def _http2(config: Config, _needs: Needs) -> Iterator[Hit]:
    for cluster in config.worker_clusters():
        options = cluster.get(*_OPTIONS)
        spoken = (
            cluster.get("http2_protocol_options"),
            options and options.get("explicit_http_config", "http2_protocol_options"),
            options and options.get("auto_config"),
            options and options.get("use_downstream_protocol_config"),
        )
        if not any(spoken):
            yield Hit(cluster, "the ext_proc cluster does not speak HTTP/2")


def candidates(config: Config, needs: Needs) -> list[Node]:
    """Clusters of these files that serve candidates.

    Without a plan: those that no route names, where a route takes its cluster from a header.
    """
    if needs.candidates is not None:
        names = needs.candidates
        return [config.clusters[n] for n in sorted(names) if n in config.clusters]
    routes = [r for table in config.route_configs for _, r, _, _ in routes_of(table)]
    if not any(r.get("route", "cluster_header") for r in routes):
        return []
    used = {node.text for document in config.documents for node in _uses(document.root)}
    return [config.clusters[n] for n in sorted(config.clusters) if n not in used]


_USES: Final = ("cluster", "cluster_name", "collector_cluster", "clusters")


def _uses(root: Node) -> Iterator[Node]:
    """Every value that names a cluster, other than the cluster's own."""
    for node in root.walk():
        if node.get("lb_endpoints") or node.get("endpoints"):
            continue
        for name in _USES:
            value = node.get(name)
            if value is not None and value.text:
                yield value
        for weighted in node.list_of("weighted_clusters", "clusters"):
            if (name_node := weighted.get("name")) is not None:
                yield name_node


def _candidate_panic(config: Config, needs: Needs) -> Iterator[Hit]:
    if not config.managers and not config.route_configs:
        return
    for cluster in candidates(config, needs):
        if _panics(cluster):
            name = cluster.word("name")
            yield Hit(cluster, f"the candidate's cluster {name} has the panic threshold of 50 %")


RULES: Final = (
    Rule(
        "workers-breakers",
        WARNING,
        "Requests beyond the limit go unstamped, or fail where the filter fails closed.",
        "Write `circuit_breakers: {thresholds: [{max_connections: 64, max_pending_requests: 4096, "
        "max_requests: 4096, max_retries: 1024}]}`.",
        _breakers,
    ),
    Rule(
        "workers-health-check",
        ERROR,
        "A hung sidecar costs every request the whole message_timeout, for ever.",
        "Add `health_checks: [{timeout: 0.2s, interval: 0.5s, unhealthy_threshold: 2, "
        "healthy_threshold: 1, grpc_health_check: {}}]`.",
        _health,
    ),
    Rule(
        "workers-outlier",
        WARNING,
        "Until the next health check requests keep going to a worker that has died.",
        "Add `outlier_detection: {consecutive_5xx: 1, interval: 0.2s, base_ejection_time: 1s, "
        "max_ejection_percent: 100}`.",
        _outliers,
    ),
    Rule(
        "workers-panic",
        WARNING,
        "With one of two workers gone Envoy asks both again.",
        "Add `common_lb_config: {healthy_panic_threshold: {value: 0}}`.",
        _panic,
    ),
    Rule(
        "workers-http2",
        ERROR,
        "gRPC needs HTTP/2: every call fails, and every request goes unstamped.",
        "Add `explicit_http_config: {http2_protocol_options: {}}` to its HttpProtocolOptions.",
        _http2,
    ),
    Rule(
        "candidate-panic",
        WARNING,
        "A candidate has one or two pods: with one of them dead half of its requests go there.",
        "Add `common_lb_config: {healthy_panic_threshold: {value: 0}}` to it.",
        _candidate_panic,
    ),
)
