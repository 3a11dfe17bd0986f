"""The ext_proc filter's configuration: what a worker is shown, and what it may change.

Owns which headers and metadata leave Envoy for a snapshot, and the list of headers that an answer
may set. Refuses everything else of Envoy: `envoyfiles` has the rest of the watched files.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from sidecar.envoyyaml import TYPE, Json, seconds
from sidecar.predicates import stratum_test
from sidecar.units import JWT_AUTHN_NAMESPACE, JWT_DEFAULT_HEADER
from turnout import contract
from turnout.v1alpha1.common_pb2 import JwtClaim, Predicate
from turnout.v1alpha1.snapshot_pb2 import ExperimentPlan, Snapshot

EXT_PROC: Final = "envoy.extensions.filters.http.ext_proc.v3."
# What the sidecar may set, and nothing else: a bug in it cannot touch a client's headers.
MUTABLE_HEADERS: Final = (
    r"^(x-variant|x-turnout|x-turnout-(upstream|shadow|shadow-variant|set-cookie)"
    r"|x-hop-turnout|x-param-.+)$"
)
# What a target's match can read. Envoy sends pseudo-headers only when they are listed.
PSEUDO_HEADERS: Final = (":authority", ":method", ":path")

# A hung worker costs a request at most this (50 ms was tried).
MESSAGE_TIMEOUT_S: Final = 0.05


def extension(snapshot: Snapshot, *, transparent: bool = False) -> Json:
    """The filter as an ECDS resource.

    Args:
        snapshot: A valid snapshot.
        transparent: Other sidecars intercept, too: a worker must see and make their marks.
    """
    headers = forwarded_headers(snapshot)
    if transparent:
        headers = sorted({*headers, contract.HEADER_HOP, contract.HEADER_REQUEST_ID})
    return {
        "@type": TYPE + "envoy.config.core.v3.TypedExtensionConfig",
        "name": contract.EXT_PROC_FILTER,
        "typed_config": _ext_proc(headers, forwarded_metadata(snapshot)),
    }


# -- What leaves Envoy -----------------------------------------------------------------------------


def forwarded_headers(snapshot: Snapshot) -> list[str]:
    """Headers that the plan reads: units, segments, overrides, matches. No others leave Envoy."""
    names = set(PSEUDO_HEADERS)
    for target in snapshot.targets:
        for predicate in target.headers:
            names.update(_predicate_headers(predicate))
        if target.model_name:
            names.update(contract.MODEL_NAME_HEADERS)
        if target.model_version:
            names.update(contract.MODEL_VERSION_HEADERS)
    for experiment in snapshot.experiments:
        names.update(_experiment_headers(experiment))
    return sorted(names)


def forwarded_metadata(snapshot: Snapshot) -> list[str]:
    """Namespaces of Envoy's dynamic metadata that the plan reads: verified claims."""
    wanted = any(is_verified(e.unit.jwt_claim) for e in snapshot.experiments)
    return [JWT_AUTHN_NAMESPACE] if wanted else []


def forwarded_inputs(snapshot: Snapshot) -> frozenset[str]:
    """All that the plan reads of a request, by name: the start gate compares it with Envoy's."""
    namespaces = (f"metadata {name}" for name in forwarded_metadata(snapshot))
    return frozenset((*forwarded_headers(snapshot), *namespaces))


def is_verified(claim: JwtClaim) -> bool:
    """Whether a unit is a claim that Envoy's JWT filter has verified."""
    return bool(claim.claim) and not claim.unverified


def token_header(claim: JwtClaim) -> str:
    """The header with the token of an unverified claim; "" where there is none."""
    return (claim.header or JWT_DEFAULT_HEADER) if claim.claim and claim.unverified else ""


def _experiment_headers(experiment: ExperimentPlan) -> Iterator[str]:
    yield contract.HEADER_FORCE
    unit = experiment.unit
    if unit.header:
        yield unit.header
    if unit.cookie or unit.HasField("session"):
        yield "cookie"
    if header := token_header(unit.jwt_claim):
        yield header
    yield from _predicate_headers(experiment.segment)
    for stratum in experiment.strata:
        yield from _predicate_headers(stratum_test(stratum))


def _predicate_headers(predicate: Predicate) -> Iterator[str]:
    if predicate.header:
        yield predicate.header
    for part in (*predicate.all, *predicate.any):
        yield from _predicate_headers(part)
    if predicate.HasField("negated"):
        yield from _predicate_headers(predicate.negated)


# -- The configuration -----------------------------------------------------------------------------


def _ext_proc(headers: Sequence[str], namespaces: Sequence[str]) -> Json:
    processor: Json = {
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
            },
            "timeout": "1s",
            # Here, not in envoy_grpc: there Envoy takes it, and retries nothing. The longest pause
            # is each try's timeout, too; it never begins: our calls do not end before the answer.
            "retry_policy": {
                "num_retries": 2,
                "retry_on": "connect-failure,refused-stream,reset,unavailable",
                "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.005s"},
            },
        },
    }
    if namespaces:
        # A payload holds what the issuer put into it: it leaves Envoy only when a unit is in it.
        processor["metadata_options"] = {"forwarding_namespaces": {"untyped": list(namespaces)}}
    return processor
