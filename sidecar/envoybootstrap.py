"""The bootstrap of an Envoy that works with a sidecar.

Owns what never changes while Envoy runs: the listener, the strip of reserved headers, the filters'
places, both access logs, the tracer, the workers' cluster. Refuses everything that depends on a
snapshot: that is in the watched files (`envoyfiles`).
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from sidecar.envoyfiles import CLUSTERS_FILE, FILTER_FILE, ROUTES_FILE
from sidecar.envoyfilter import EXT_PROC
from sidecar.envoyyaml import TYPE, Json, assignment, dump, is_ip, seconds, socket_address
from sidecar.wire.limits import LOG_FULL_BYTES
from turnout import contract

# The access log carries these and no others, so that new units and segments need no new log.
LOGGED_HEADERS: Final = (
    contract.HEADER_STAMP,
    contract.HEADER_REQUEST_ID,
    contract.HEADER_SHADOW_OF,
)
# 2 MiB is about 4,500 entries (450 bytes each); Envoy drops what is beyond. A backlog comes as one
# gRPC message, which must stay below what a worker takes (LOG_BYTES_MAX).
ACCESS_LOG_FLUSH_S: Final = 0.5
CONNECTIONS_MAX: Final = 50_000
# A list of 256 header values makes a program of 65,000 instructions. At the default limit of 100
# Envoy would refuse all routes because of one target (tried); the lists' own limits bound it.
RUNTIME: Final = {
    "re2.max_program_size.error_level": 1_000_000,
    "re2.max_program_size.warn_level": 1_000_000,
}

_CALL_STATUS: Final = f"%FILTER_STATE({contract.EXT_PROC_FILTER}:FIELD:request_header_call_status)%"

# SO_MARK of Envoy's connections to pods; envoy/transparent/intercept has the same number.
ENVOY_MARK: Final = 0x7B


class BootstrapOptions(NamedTuple):
    """What an Envoy needs to know to start beside a sidecar.

    Attributes:
        listen_host: IP address on which requests arrive.
        listen_port: Its port.
        sidecar: Path of the workers' sockets, without the number: worker i listens on PATH.i.
        workers: Number of workers, >= 1.
        envoy_dir: Absolute path of the directory that holds the three watched directories.
        admin: Path of the Unix socket of Envoy's admin.
        otlp_host: Host that takes spans, "" = no tracing.
        otlp_port: Its port.
        sampling: Percentage of requests that are traced, 0..100.
        node: Envoy's node id.
        filters: HTTP filters that run before ours, as jwt_authn does where a unit is a claim.
        transparent: Whether the listener gets what is meant for the pod beside it.
    """

    listen_host: str
    listen_port: int
    sidecar: str
    workers: int
    envoy_dir: str
    admin: str
    otlp_host: str = ""
    otlp_port: int = 0
    sampling: float = 1.0
    node: str = "turnout"
    filters: tuple[Json, ...] = ()
    transparent: bool = False


def bootstrap(options: BootstrapOptions) -> str:
    """Print Envoy's bootstrap. The three watched files must exist when Envoy starts."""
    static_clusters = [workers_cluster(options.sidecar, options.workers)]
    if options.otlp_host:
        static_clusters.append(_otlp_cluster(options))
    return dump(
        {
            "node": {"id": options.node, "cluster": "turnout"},
            "admin": {"address": {"pipe": {"path": options.admin, "mode": 0o600}}},
            "dynamic_resources": {"cds_config": watched(options.envoy_dir, CLUSTERS_FILE)},
            "static_resources": {
                "listeners": [_listener(options)],
                "clusters": static_clusters,
            },
            "layered_runtime": {"layers": [{"name": "turnout", "static_layer": RUNTIME}]},
            "overload_manager": {"resource_monitors": [_connection_limit()]},
        }
    )


def _connection_limit() -> Json:
    return {
        "name": "envoy.resource_monitors.global_downstream_max_connections",
        "typed_config": {
            "@type": TYPE
            + "envoy.extensions.resource_monitors.downstream_connections.v3"
            + ".DownstreamConnectionsConfig",
            "max_active_downstream_connections": CONNECTIONS_MAX,
        },
    }


def watched(envoy_dir: str, file: str) -> Json:
    """The source of a watched file."""
    path = f"{envoy_dir}/{file}"
    return {
        "resource_api_version": "V3",
        "path_config_source": {
            "path": path,
            "watched_directory": {"path": path.rpartition("/")[0]},
        },
    }


def _listener(options: BootstrapOptions) -> Json:
    return {
        "name": "turnout",
        "address": socket_address(options.listen_host, options.listen_port),
        **(_INTERCEPTING if options.transparent else {}),
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": _connection_manager(options),
                    }
                ]
            }
        ],
    }


# Connections that the kernel redirects (TPROXY) keep both addresses: the one that was called says
# where the local pod is, and Envoy speaks to it in the client's name.
_INTERCEPTING: Final[Json] = {
    "transparent": True,
    "listener_filters": [
        {
            "name": "envoy.filters.listener.original_dst",
            "typed_config": {
                "@type": TYPE + "envoy.extensions.filters.listener.original_dst.v3.OriginalDst"
            },
        },
        {
            "name": "envoy.filters.listener.original_src",
            "typed_config": {
                "@type": TYPE + "envoy.extensions.filters.listener.original_src.v3.OriginalSrc",
                "mark": ENVOY_MARK,
            },
        },
    ],
}


def _connection_manager(options: BootstrapOptions) -> Json:
    manager: Json = {
        "@type": TYPE
        + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": contract.HCM_STAT_PREFIX,
        "codec_type": "AUTO",
        "generate_request_id": True,
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        # Outcomes are joined by request id: Envoy must not write the trace decision into it.
        "request_id_extension": {
            "typed_config": {
                "@type": TYPE + "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig",
                "pack_trace_reason": False,
                "use_request_id_for_trace_sampling": False,
            }
        },
        "server_header_transformation": "PASS_THROUGH",
        "normalize_path": True,
        "request_headers_timeout": "10s",
        "common_http_protocol_options": {"max_headers_count": 200},
        "early_header_mutation_extensions": [strip(contract.RESERVED_HEADER_PREFIXES)],
        "access_log": [
            access_log(contract.ACCESS_LOG_SERVED, contract.HEADER_STAMP, contract.HEADER_UNSTAMPED)
        ],
        "rds": {
            "route_config_name": contract.ROUTE_CONFIG_NAME,
            "config_source": watched(options.envoy_dir, ROUTES_FILE),
        },
        "http_filters": [*options.filters, ext_proc_filter(options.envoy_dir), _router()],
    }
    if options.transparent:
        # The model sees the caller's address, and after a peer's Envoy x-forwarded-for has it.
        manager["use_remote_address"] = True
    if options.otlp_host:
        manager["tracing"] = _tracing(options)
    return manager


def strip(reserved_prefixes: Sequence[str]) -> Json:
    """Remove what a client may not say. In a later filter the route would be chosen already."""
    names = [{"exact": name} for name in contract.RESERVED_HEADERS]
    prefixes = [{"prefix": prefix} for prefix in reserved_prefixes]
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": TYPE
            + "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": [
                {"remove_on_match": {"key_matcher": matcher}} for matcher in (*names, *prefixes)
            ],
        },
    }


def ext_proc_filter(envoy_dir: str) -> Json:
    """The filter's place; its configuration comes by a watched file."""
    return {
        "name": contract.EXT_PROC_FILTER,
        "config_discovery": {
            "config_source": watched(envoy_dir, FILTER_FILE),
            "type_urls": [TYPE + EXT_PROC + "ExternalProcessor"],
        },
    }


def _router() -> Json:
    return {
        "name": "envoy.filters.http.router",
        "typed_config": {
            "@type": TYPE + "envoy.extensions.filters.http.router.v3.Router",
            "suppress_envoy_headers": True,
            "upstream_log": [access_log(contract.ACCESS_LOG_SHADOW, contract.HEADER_SHADOW_OF)],
        },
    }


def access_log(log_name: str, *headers: str) -> Json:
    """Log requests that carry one of these headers."""
    present = [
        {"header_filter": {"header": {"name": name, "present_match": True}}} for name in headers
    ]
    return {
        "name": "envoy.access_loggers.http_grpc",
        "filter": present[0] if len(present) == 1 else {"or_filter": {"filters": present}},
        "typed_config": {
            "@type": TYPE + "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
            "common_config": {
                "log_name": log_name,
                "transport_api_version": "V3",
                "buffer_flush_interval": seconds(ACCESS_LOG_FLUSH_S),
                "buffer_size_bytes": LOG_FULL_BYTES,
                "custom_tags": [{"tag": contract.ACCESS_LOG_CALL_STATUS, "value": _CALL_STATUS}],
                "grpc_service": {
                    "envoy_grpc": {
                        "cluster_name": contract.WORKERS_CLUSTER,
                        "skip_envoy_headers": True,
                    }
                },
            },
            "additional_request_headers_to_log": list(LOGGED_HEADERS),
            "additional_response_headers_to_log": ["grpc-status"],
            "additional_response_trailers_to_log": ["grpc-status"],
        },
    }


def _tracing(options: BootstrapOptions) -> Json:
    return {
        "random_sampling": {"value": options.sampling},
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": {
                "@type": TYPE + "envoy.config.trace.v3.OpenTelemetryConfig",
                "service_name": options.node,
                "grpc_service": {
                    "envoy_grpc": {"cluster_name": contract.OTLP_CLUSTER},
                    "timeout": "1s",
                },
            },
        },
        # The call to the model gets a span of its own, below Envoy's: the model's hangs below that.
        "spawn_upstream_span": True,
        "custom_tags": _custom_tags(),
    }


def _custom_tags() -> list[Json]:
    """Tags of Envoy's own span; a request without a stamp has none of them."""
    from_headers = (
        (contract.ATTRIBUTE_VARIANT, contract.HEADER_VARIANT),
        (contract.ATTRIBUTE_STAMP, contract.HEADER_STAMP),
        (contract.ATTRIBUTE_FLAG_VARIANT, contract.HEADER_VARIANT),
    )
    from_route = (
        (contract.ATTRIBUTE_EXPERIMENT, contract.METADATA_EXPERIMENT),
        (contract.ATTRIBUTE_EPOCH, contract.METADATA_EPOCH),
        (contract.ATTRIBUTE_STEP, contract.METADATA_STEP),
        (contract.ATTRIBUTE_FLAG_KEY, contract.METADATA_EXPERIMENT),
        (contract.ATTRIBUTE_FLAG_REASON, contract.METADATA_REASON),
        (contract.ATTRIBUTE_FLAG_PROVIDER, contract.METADATA_PROVIDER),
    )
    return [
        *({"tag": tag, "request_header": {"name": name}} for tag, name in from_headers),
        *({"tag": tag, "metadata": _route_metadata(key)} for tag, key in from_route),
    ]


def _route_metadata(key: str) -> Json:
    path = {"key": contract.ROUTE_METADATA, "path": [{"key": key}]}
    return {"kind": {"route": {}}, "metadata_key": path}


def workers_cluster(sidecar: str, workers: int) -> Json:
    """The workers. Each part that was left out in trials showed as lost stamps."""
    pipes = [{"pipe": {"path": f"{sidecar}.{i}"}} for i in range(workers)]
    return {
        "name": contract.WORKERS_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "0.05s",
        "common_lb_config": {
            "healthy_panic_threshold": {"value": 0},
            # Envoy's threads hear of a change of health at once. Its default merges for 1 s all
            # that follow a first one: "worker 0 is down" at once, "worker 1 is up" a second later.
            "update_merge_window": "0s",
        },
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 64,
                    "max_pending_requests": 4096,
                    "max_requests": 4096,
                    "max_retries": 1024,
                }
            ]
        },
        "outlier_detection": {
            "consecutive_5xx": 1,
            "interval": "0.2s",
            "base_ejection_time": "1s",
            "max_ejection_percent": 100,
        },
        "health_checks": [
            {
                "timeout": "0.2s",
                "interval": "0.3s",
                "no_traffic_interval": "0.3s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "grpc_health_check": {},
            }
        ],
        "load_assignment": assignment(contract.WORKERS_CLUSTER, pipes),
        "typed_extension_protocol_options": _http2_options(),
    }


def _otlp_cluster(options: BootstrapOptions) -> Json:
    return {
        "name": contract.OTLP_CLUSTER,
        "type": "STATIC" if is_ip(options.otlp_host) else "STRICT_DNS",
        "dns_lookup_family": "V4_PREFERRED",
        "connect_timeout": "1s",
        "load_assignment": assignment(
            contract.OTLP_CLUSTER, [socket_address(options.otlp_host, options.otlp_port)]
        ),
        "typed_extension_protocol_options": _http2_options(),
    }


def _http2_options() -> Json:
    return {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
