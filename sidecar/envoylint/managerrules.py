"""Traps in the connection manager: strip, filter order, access logs, request ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from sidecar.envoylint.config import Config, HttpFilter, Manager, matches_any
from sidecar.envoylint.document import Node
from sidecar.envoylint.finding import ERROR, WARNING, Hit, Needs, Rule
from turnout import contract

LOG_BUFFER_BYTES_MIN: Final = 1024 * 1024
_LOG_BUFFER_DEFAULT: Final = 16_384
# What a client may not say, and for each prefix a header that has it.
_STRIPPED: Final = (
    *contract.RESERVED_HEADERS,
    contract.HEADER_UPSTREAM,
    contract.HEADER_SHADOW,
    contract.HEADER_PARAMETER_PREFIX + "*",
)
# Filters that judge a request by its route: what they allowed must be the route that is taken.
_GUARDS: Final = frozenset({"RBAC", "ExtAuthz", "BasicAuth", "OAuth2", "ApiKeyAuth"})
_LOG: Final = ("typed_config", "common_config")


def _removed(mutations: Sequence[Node], wanted: Sequence[str] = _STRIPPED) -> set[str]:
    """Which of these headers (default: the reserved ones) the mutations remove."""
    names = {mutation.word("remove").lower() for mutation in mutations}
    matchers = [m for x in mutations if (m := x.get("remove_on_match", "key_matcher")) is not None]
    return {name for name in wanted if name in names or matches_any(name, matchers)}


def _early(manager: Manager) -> tuple[Node | None, set[str]]:
    """(the manager's early mutations, what they remove)."""
    return manager.node.get("early_header_mutation_extensions"), _removed(_early_mutations(manager))


def _early_mutations(manager: Manager) -> list[Node]:
    extensions = manager.node.list_of("early_header_mutation_extensions")
    return [m for e in extensions for m in e.list_of("typed_config", "mutations")]


def _late(manager: Manager, before: int) -> tuple[HttpFilter | None, set[str]]:
    """(the first filter that removes reserved headers before ext_proc, what it removes)."""
    for f in manager.filters[:before]:
        if f.type == "HeaderMutation" and f.config is not None:
            removed = _removed(f.config.list_of("mutations", "request_mutations"))
            if removed:
                return f, removed
    return None, set()


def _strip_missing(config: Config, _needs: Needs) -> Iterator[Hit]:
    for manager in config.managers:
        _, removed = _early(manager)
        late, _ = _late(manager, config.ext_procs(manager)[0][0])
        if not removed and late is None:
            yield Hit(manager.node, f"nothing removes {', '.join(_STRIPPED)} from clients")


def _strip_late(config: Config, _needs: Needs) -> Iterator[Hit]:
    for manager in config.managers:
        _, removed = _early(manager)
        late, late_removed = _late(manager, config.ext_procs(manager)[0][0])
        if late is not None and late_removed - removed:
            what = ", ".join(name for name in _STRIPPED if name in late_removed - removed)
            yield Hit(late.node, f"a header_mutation filter removes {what}")


def _strip_incomplete(config: Config, _needs: Needs) -> Iterator[Hit]:
    for manager in config.managers:
        early, removed = _early(manager)
        missing = [name for name in _STRIPPED if name not in removed]
        if early is not None and removed and missing:
            yield Hit(early, f"clients may still send {', '.join(missing)}")


def _token_stripped(config: Config, _needs: Needs) -> Iterator[Hit]:
    token = (contract.HEADER_FORCE,)
    for manager in config.managers:
        if _removed(_early_mutations(manager), token):
            where = manager.node.fields["early_header_mutation_extensions"]
            yield Hit(where, f"{contract.HEADER_FORCE} is removed from clients")
        place = config.ext_procs(manager)[0][0]
        for f in manager.filters[:place]:
            if f.type == "HeaderMutation" and f.config is not None:
                mutations = f.config.list_of("mutations", "request_mutations")
                if _removed(mutations, token):
                    yield Hit(f.node, f"a header_mutation filter removes {contract.HEADER_FORCE}")


def _claims(config: Config, needs: Needs) -> Iterator[Hit]:
    for manager in config.managers if needs.claims else []:
        for place, f in config.ext_procs(manager):
            before = [g for g in manager.filters[:place] if g.type == "JwtAuthentication"]
            kept = {word for g in before if g.config is not None for word in _payloads(g.config)}
            if any(g.config is None for g in before):
                continue  # its providers are in a file that was not given
            if missing := sorted(needs.claims - kept):
                yield Hit(f.node, f"no jwt_authn before ext_proc keeps {', '.join(missing)}")


def _payloads(jwt: Node) -> Iterator[str]:
    providers = jwt.get("providers")
    for provider in providers.fields.values() if providers is not None else ():
        yield provider.word("payload_in_metadata")


def _order(config: Config, _needs: Needs) -> Iterator[Hit]:
    for manager in config.managers:
        for place, f in config.ext_procs(manager):
            for other in manager.filters[:place]:
                if other.type == "Router":
                    yield Hit(f.node, "ext_proc stands after the router and never runs")
                elif other.type in _GUARDS:
                    yield Hit(f.node, f"ext_proc stands after {other.name or other.type}")


def _served_logs(config: Config, manager: Manager) -> list[Node]:
    return config.logs(manager.node.list_of("access_log"))


def _upstream_logs(config: Config, manager: Manager) -> list[Node]:
    router = manager.router()
    entries = router.node.list_of("typed_config", "upstream_log") if router is not None else []
    return config.logs(entries)


def _no_log(config: Config, _needs: Needs) -> Iterator[Hit]:
    for manager in config.managers:
        if not _served_logs(config, manager) and not _upstream_logs(config, manager):
            yield Hit(manager.node, "no gRPC access log goes to the sidecar")


def _upstream_log(config: Config, _needs: Needs) -> Iterator[Hit]:
    for manager in config.managers:
        upstream = _upstream_logs(config, manager)
        if upstream and not _served_logs(config, manager):
            yield Hit(upstream[0], "the router's upstream_log is the only log to the sidecar")


def _log_buffer(config: Config, _needs: Needs) -> Iterator[Hit]:
    for manager in config.managers:
        for log in (*_served_logs(config, manager), *_upstream_logs(config, manager)):
            given = log.get(*_LOG, "buffer_size_bytes")
            text = given.text if given is not None else ""
            size = int(text) if text.isdigit() else _LOG_BUFFER_DEFAULT
            if size < LOG_BUFFER_BYTES_MIN:
                yield Hit(given or log, f"the access log's buffer has {size} bytes")


def _log_headers(config: Config, _needs: Needs) -> Iterator[Hit]:
    for manager in config.managers:
        served = [(log, contract.HEADER_STAMP) for log in _served_logs(config, manager)]
        copies = [(log, contract.HEADER_SHADOW_OF) for log in _upstream_logs(config, manager)]
        for log, name in (*served, *copies):
            given = log.get("typed_config", "additional_request_headers_to_log")
            names = {n.text.lower() for n in given.elements} if given is not None else set()
            if missing := [n for n in (name, contract.HEADER_REQUEST_ID) if n not in names]:
                yield Hit(given or log, f"the access log does not carry {', '.join(missing)}")


def _request_id(config: Config, _needs: Needs) -> Iterator[Hit]:
    for manager in config.managers:
        given = manager.node.get("always_set_request_id_in_response")
        if given is None or not given.is_true:
            yield Hit(given or manager.node, "always_set_request_id_in_response is not true")


RULES: Final = (
    Rule(
        "strip-missing",
        ERROR,
        "While the sidecar is away a client that sends these headers chooses its own variant.",
        "Remove x-variant, x-turnout, x-turnout-* and x-param-* in "
        "`early_header_mutation_extensions`.",
        _strip_missing,
    ),
    Rule(
        "strip-late",
        ERROR,
        "The route is chosen before any filter runs: the header is gone and its route is taken.",
        "Move these removals to the manager's `early_header_mutation_extensions`.",
        _strip_late,
    ),
    Rule(
        "strip-incomplete",
        ERROR,
        "A header that a client can set is believed while the sidecar is away.",
        "Add them to the mutations: `remove_on_match: {key_matcher: {prefix: x-turnout-}}`.",
        _strip_incomplete,
    ),
    Rule(
        "force-token-stripped",
        WARNING,
        "A token of `turnout force` never reaches the sidecar; it is signed, and no risk.",
        "Leave x-force-variant to the sidecar, and to `request_headers_to_remove` of the routes.",
        _token_stripped,
    ),
    Rule(
        "claims-unverified",
        ERROR,
        "The unit is a claim that Envoy's jwt_authn must verify before: nobody is enrolled.",
        "Put envoy.filters.http.jwt_authn before ext_proc, with the unit's `payload_in_metadata` "
        "in its provider, and `allow_missing_or_failed` where a token is no duty.",
        _claims,
    ),
    Rule(
        "filter-order",
        ERROR,
        "The stamp changes the route: a filter before it has judged another one than is taken.",
        "Put ext_proc before filters that allow or refuse, and the router last.",
        _order,
    ),
    Rule(
        "access-log-missing",
        ERROR,
        "Counts come from access logs alone: no experiment would ever see an error.",
        "Add envoy.access_loggers.http_grpc to the manager's `access_log`, to the ext_proc "
        "cluster.",
        _no_log,
    ),
    Rule(
        "upstream-log-only",
        ERROR,
        "It has no entry for a variant without a healthy host, and one for each retry.",
        "Log served requests in the manager's `access_log`, and only copies in `upstream_log`.",
        _upstream_log,
    ),
    Rule(
        "log-buffer",
        WARNING,
        "The buffer is also the limit beyond which Envoy drops entries.",
        "Write `buffer_size_bytes: 2097152`.",
        _log_buffer,
    ),
    Rule(
        "log-headers",
        ERROR,
        "An entry without them belongs to no variant, or joins no outcome.",
        "Add them to `additional_request_headers_to_log`.",
        _log_headers,
    ),
    Rule(
        "request-id-response",
        WARNING,
        "A client that does not know its request id cannot report how the prediction ended.",
        "Add `always_set_request_id_in_response: true` to the connection manager.",
        _request_id,
    ),
)
