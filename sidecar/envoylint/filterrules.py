"""Traps in the configuration of the ext_proc filter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sidecar.envoylint.config import Config, matches_any, response_phase
from sidecar.envoylint.document import Node
from sidecar.envoylint.finding import ERROR, WARNING, Hit, Needs, Rule
from sidecar.units import JWT_AUTHN_NAMESPACE
from turnout import contract

MESSAGE_TIMEOUT_MIN_S: Final = 0.01

# What an answer sets.
_STAMPED: Final = (
    contract.HEADER_VARIANT,
    contract.HEADER_STAMP,
    contract.HEADER_UPSTREAM,
    contract.HEADER_SHADOW,
    contract.HEADER_SHADOW_VARIANT,
    contract.HEADER_PARAMETER_PREFIX + "a",
)
_UNITS: Final = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def seconds_of(node: Node | None) -> float | None:
    """A duration in seconds; None when it is absent or not one."""
    if node is None:
        return None
    if node.is_mapping:
        parts = (node.word("seconds") or "0", node.word("nanos") or "0")
        if not all(part.isdigit() for part in parts):
            return None
        return int(parts[0]) + int(parts[1]) / 1e9
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)(s|ms|us|ns)", node.text)
    return float(matched[1]) * _UNITS[matched[2]] if matched else None


def _true(config: Node, name: str) -> bool:
    node = config.get(name)
    return node is not None and node.is_true


def _no_clear(config: Config, _needs: Needs) -> Iterator[Hit]:
    for where, processor in config.processors:
        if processor.word("route_cache_action") != "CLEAR":
            yield Hit(where, "the ext_proc filter has no route_cache_action: CLEAR")


def _routing(config: Config, _needs: Needs) -> Iterator[Hit]:
    for _, processor in config.processors:
        allowed = processor.get("mutation_rules", "allow_all_routing")
        if allowed is not None and allowed.is_true:
            yield Hit(allowed, "mutation_rules has allow_all_routing: true")


def _mutable(config: Config, needs: Needs) -> Iterator[Hit]:
    session = (contract.HEADER_SET_COOKIE,) if needs.session else ()
    for _, processor in config.processors:
        rules = processor.get("mutation_rules")
        if rules is None:
            continue
        refused = [name for name in (*_STAMPED, *session) if not _may_set(name, rules)]
        if refused:
            yield Hit(rules, f"mutation_rules refuse {', '.join(refused)}")


def _may_set(name: str, rules: Node) -> bool:
    if _fits(name, rules.word("disallow_expression", "regex")):
        return False
    return _fits(name, rules.word("allow_expression", "regex")) or not _true(rules, "disallow_all")


def _fits(name: str, regex: str) -> bool:
    try:
        return bool(regex) and re.fullmatch(regex, name) is not None
    except re.error:
        # RE2 knows expressions that Python does not: no finding about what cannot be judged.
        return True


def _no_claims(config: Config, needs: Needs) -> Iterator[Hit]:
    for where, processor in config.processors if needs.claims else []:
        given = processor.get("metadata_options", "forwarding_namespaces", "untyped")
        names = {node.text for node in given.elements} if given is not None else set()
        if JWT_AUTHN_NAMESPACE not in names:
            yield Hit(given or where, f"metadata_options does not forward {JWT_AUTHN_NAMESPACE}")


def _no_tokens(config: Config, needs: Needs) -> Iterator[Hit]:
    for _, processor in config.processors if needs.tokens else []:
        rules = processor.get("forward_rules")
        allowed = processor.list_of("forward_rules", "allowed_headers", "patterns")
        if rules is not None and allowed and not matches_any(contract.HEADER_FORCE, allowed):
            yield Hit(rules, f"forward_rules lacks {contract.HEADER_FORCE}")


def _closed(config: Config, _needs: Needs) -> Iterator[Hit]:
    for where, processor in config.processors:
        if not _true(processor, "failure_mode_allow"):
            given = processor.get("failure_mode_allow")
            yield Hit(given or where, f"failure_mode_allow is {'false' if given else 'missing'}")


def _timeout(config: Config, _needs: Needs) -> Iterator[Hit]:
    for where, processor in config.processors:
        given = processor.get("message_timeout")
        timeout_s = seconds_of(given)
        if given is None:
            yield Hit(where, "message_timeout is missing: 200 ms")
        elif timeout_s is not None and timeout_s < MESSAGE_TIMEOUT_MIN_S:
            yield Hit(given, f"message_timeout is {timeout_s * 1e3:g} ms")


def _immediate(config: Config, _needs: Needs) -> Iterator[Hit]:
    for where, processor in config.processors:
        if not _true(processor, "disable_immediate_response"):
            given = processor.get("disable_immediate_response")
            yield Hit(given or where, "disable_immediate_response is not true")


def _no_forward_rules(config: Config, _needs: Needs) -> Iterator[Hit]:
    for where, processor in config.processors:
        if not processor.list_of("forward_rules", "allowed_headers", "patterns"):
            yield Hit(where, "forward_rules has no allowed_headers: every header is sent")


def _forward_rules(config: Config, needs: Needs) -> Iterator[Hit]:
    for _, processor in config.processors:
        rules = processor.get("forward_rules")
        allowed = processor.list_of("forward_rules", "allowed_headers", "patterns")
        refused = processor.list_of("forward_rules", "disallowed_headers", "patterns")
        missing = [
            name
            for name in needs.headers
            if not matches_any(name, allowed) or matches_any(name, refused)
        ]
        if rules is not None and allowed and missing:
            yield Hit(rules, f"forward_rules lacks {', '.join(missing)}")


def _static(config: Config, _needs: Needs) -> Iterator[Hit]:
    for manager in config.managers:
        for _, f in config.ext_procs(manager):
            if not f.dynamic:
                yield Hit(f.node, "the ext_proc filter's configuration is static (typed_config)")


def _retries(config: Config, _needs: Needs) -> Iterator[Hit]:
    for where, processor in config.processors:
        service = processor.get("grpc_service", "envoy_grpc")
        if processor.get("grpc_service", "retry_policy") is not None:
            continue
        if processor.get("grpc_service", "envoy_grpc", "retry_policy") is not None:
            # Tried on Envoy 1.40: accepted, and not one request is asked again.
            yield Hit(service or where, "retry_policy is in envoy_grpc, where it has no effect")
        else:
            yield Hit(service or where, "the ext_proc call has no retry_policy")


def _response_phase(config: Config, _needs: Needs) -> Iterator[Hit]:
    for where, processor in config.processors:
        if response_phase(processor):
            given = processor.get("processing_mode", "response_header_mode")
            mode = given.text if given is not None else "missing (SEND)"
            node = given or processor.get("processing_mode") or where
            yield Hit(node, f"response_header_mode is {mode}")


def _observability(config: Config, _needs: Needs) -> Iterator[Hit]:
    for _, processor in config.processors:
        if _true(processor, "observability_mode"):
            yield Hit(processor.fields["observability_mode"], "observability_mode is true")


RULES: Final = (
    Rule(
        "no-route-clear",
        ERROR,
        "A stamped request takes the route chosen before the stamp, unless each answer asks anew.",
        "Add `route_cache_action: CLEAR` to the ext_proc filter.",
        _no_clear,
    ),
    Rule(
        "mutation-rules-routing",
        ERROR,
        "A fault in the processor could rewrite :path, :authority and :method of any request.",
        "Remove it; write `mutation_rules: {disallow_all: true, allow_expression: {regex: ...}}` "
        "with the stamped headers only.",
        _routing,
    ),
    Rule(
        "mutation-rules-incomplete",
        ERROR,
        "Envoy drops what an answer may not set without a word: nothing is split, or nothing kept.",
        "Allow them: `allow_expression: {regex: '^(x-variant|x-turnout|x-turnout-(upstream|shadow|"
        "shadow-variant|set-cookie)|x-param-.+)$'}`.",
        _mutable,
    ),
    Rule(
        "fail-closed",
        ERROR,
        "A sidecar that is away answers the users with 500.",
        "Add `failure_mode_allow: true`: the default route serves, and Envoy counts it.",
        _closed,
    ),
    Rule(
        "message-timeout",
        WARNING,
        "A hung sidecar costs every request this time; below 10 ms a busy Envoy misfires.",
        "Write `message_timeout: 0.05s`.",
        _timeout,
    ),
    Rule(
        "immediate-response",
        WARNING,
        "The sidecar could answer requests itself, which it never should.",
        "Add `disable_immediate_response: true`.",
        _immediate,
    ),
    Rule(
        "forward-rules-missing",
        WARNING,
        "Credentials and personal data leave Envoy, and every header costs time.",
        "List the headers that the plan reads under `forward_rules.allowed_headers.patterns`; a "
        "sidecar with --envoy-dir keeps the list by itself.",
        _no_forward_rules,
    ),
    Rule(
        "forward-rules-incomplete",
        ERROR,
        "The sidecar finds no target, unit or segment: nobody is enrolled, and nothing says why.",
        "Add these to `forward_rules.allowed_headers.patterns`; pseudo-headers count as headers.",
        _forward_rules,
    ),
    Rule(
        "claims-unseen",
        ERROR,
        "The unit is a verified claim, and the sidecar never sees one: nobody is enrolled.",
        "Add `metadata_options: {forwarding_namespaces: {untyped: [envoy.filters.http.jwt_authn]}}`"
        "; a sidecar with --envoy-dir does it by itself.",
        _no_claims,
    ),
    Rule(
        "force-token-unseen",
        WARNING,
        "A token of `turnout force` changes nothing: its bearer is served like everybody.",
        "Add x-force-variant to `forward_rules.allowed_headers.patterns`.",
        _no_tokens,
    ),
    Rule(
        "static-filter",
        WARNING,
        "A new unit or segment header then needs a restart of Envoy.",
        "Use `config_discovery` with a watched file (ECDS): `turnout envoy patch` writes it.",
        _static,
    ),
    Rule(
        "grpc-retry",
        WARNING,
        "Every worker that restarts leaves requests unstamped.",
        "Beside `envoy_grpc`, not in it, write `retry_policy: {num_retries: 2, retry_on: "
        '"connect-failure,refused-stream,reset,unavailable"}`.',
        _retries,
    ),
    Rule(
        "response-phase",
        WARNING,
        "The stream stays open while the model thinks, and each request costs a second message.",
        "Write `processing_mode: {request_header_mode: SEND, response_header_mode: SKIP}`.",
        _response_phase,
    ),
    Rule(
        "observability-mode",
        ERROR,
        "Envoy does not wait for answers and ignores them: nothing is split.",
        "Remove `observability_mode`.",
        _observability,
    ),
)
