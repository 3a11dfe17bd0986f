"""Envoy without Turnout: the upstream, and the two set-ups that Turnout is compared with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

_TYPE = "type.googleapis.com/envoy.extensions.filters"
_HCM = f"{_TYPE}.network.http_connection_manager.v3.HttpConnectionManager"


def _listener(port: int, route: dict[str, Any]) -> dict[str, Any]:
    manager = {
        "@type": _HCM,
        "stat_prefix": f"port_{port}",
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, **route}]}
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPE}.http.router.v3.Router"},
            }
        ],
    }
    return {
        "name": f"port_{port}",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
    }


def _cluster(name: str, port: int) -> dict[str, Any]:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


def _document(listeners: Sequence[dict[str, Any]], clusters: Sequence[dict[str, Any]]) -> str:
    return json.dumps(
        {"static_resources": {"listeners": list(listeners), "clusters": list(clusters)}}
    )


def upstream(ports: Sequence[int]) -> str:
    """Answers 200 with a short body on every port."""
    answer = {"direct_response": {"status": 200, "body": {"inline_string": "ok\n"}}}
    return _document([_listener(port, answer) for port in ports], [])


def direct(listen: int, first: int) -> str:
    """Every request to one cluster: what a proxy costs without any split."""
    return _document(
        [_listener(listen, {"route": {"cluster": "first"}})], [_cluster("first", first)]
    )


def weighted(listen: int, first: int, second: int) -> str:
    """Envoy's own sticky split: weighted clusters chosen by the hash of the user's header."""
    route = {
        "route": {
            "hash_policy": [{"header": {"header_name": "x-user-id"}}],
            "weighted_clusters": {
                "clusters": [{"name": "first", "weight": 50}, {"name": "second", "weight": 50}],
                "use_hash_policy": True,
            },
        }
    }
    return _document(
        [_listener(listen, route)], [_cluster("first", first), _cluster("second", second)]
    )
