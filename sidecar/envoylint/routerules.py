"""Traps in route configurations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sidecar.envoylint.config import Config, Manager, routes_of
from sidecar.envoylint.document import Node
from sidecar.envoylint.finding import ERROR, WARNING, Hit, Needs, Rule
from turnout import contract

_EXACT_PATHS: Final = ("path", "path_separated_prefix", "safe_regex", "connect_matcher")


def _tables(config: Config) -> Iterator[tuple[Manager | None, Node]]:
    """Route configurations that stamped requests meet, each with its manager."""
    for table in config.route_configs:
        manager = next((m for m in config.managers if m.route_config is table), None)
        stamped = any(r.get("route", "cluster_header") for _, r, _, _ in routes_of(table))
        if manager is not None or config.managers or stamped:
            yield manager, table


def _timeouts(config: Config, _needs: Needs) -> Iterator[Hit]:
    for manager, table in _tables(config):
        for host, route, _, _ in routes_of(table):
            action = route.get("route")
            if (
                action is not None
                and action.get("timeout") is None
                and config.enabled(manager, route, host, table)
            ):
                yield Hit(action, "the route has no timeout: 15 s")


def _no_default(config: Config, _needs: Needs) -> Iterator[Hit]:
    for _, table in _tables(config):
        for _, route, place, routes in routes_of(table):
            header = route.get("route", "cluster_header")
            if header is None:
                continue
            asked = {h.word("name").lower() for h in route.list_of("match", "headers")}
            if header.text.lower() not in asked:
                yield Hit(header, f"the route also takes requests without {header.text}")
            elif not any(_is_default(other, route) for other in routes[place + 1 :]):
                yield Hit(header, f"no later route takes the same requests without {header.text}")


def _is_default(route: Node, stamped: Node) -> bool:
    """Whether a route leads what the stamped one leaves to a fixed cluster."""
    action = route.get("route")
    if action is None or action.get("cluster_header") is not None:
        return False
    asked = {h.word("name").lower() for h in stamped.list_of("match", "headers")}
    more = {h.word("name").lower() for h in route.list_of("match", "headers")} - asked
    if more or stamped.word("route", "cluster_header") in {
        h.word("name").lower() for h in route.list_of("match", "headers")
    }:
        return False
    prefix = route.get("match", "prefix")
    if prefix is not None:
        own = stamped.word("match", "prefix") or stamped.word("match", "path")
        own = own or stamped.word("match", "path_separated_prefix")
        return prefix.text in ("", "/") or own.startswith(prefix.text)
    return any(
        _text(route, kind) == _text(stamped, kind) != "" for kind in _EXACT_PATHS
    )  # fmt: skip


def _text(route: Node, kind: str) -> str:
    node = route.get("match", kind)
    return node.text or node.word("regex") if node is not None else ""


def _mirror(config: Config, _needs: Needs) -> Iterator[Hit]:
    for _, table in _tables(config):
        for _, route, _, _ in routes_of(table):
            for policy in route.list_of("route", "request_mirror_policies"):
                added = {
                    m.word("append", "header", "key").lower()
                    for m in policy.list_of("request_headers_mutations")
                }
                by_header = policy.word("cluster_header").lower() == contract.HEADER_SHADOW
                if by_header and contract.HEADER_SHADOW_OF not in added:
                    yield Hit(policy, f"copies do not carry {contract.HEADER_SHADOW_OF}")


def _cookie(config: Config, needs: Needs) -> Iterator[Hit]:
    for header, levels in _stamped(config) if needs.session else ():
        if not _sets_cookie(levels):
            yield Hit(header, "the stamped route adds no set-cookie to responses")
            continue
        stamped, host, table = levels
        later = [*host.list_of("routes")]
        later = later[later.index(stamped) + 1 :]
        default = next((route for route in later if _is_default(route, stamped)), None)
        if default is not None and not _sets_cookie((default, host, table)):
            action = default.get("route") or default
            yield Hit(action, "the default route adds no set-cookie to responses")


def _sets_cookie(levels: tuple[Node, ...]) -> bool:
    added = [h for level in levels for h in level.list_of("response_headers_to_add")]
    return "set-cookie" in {h.word("header", "key").lower() for h in added}


def _token_leak(config: Config, needs: Needs) -> Iterator[Hit]:
    for route, levels in _stamped(config) if needs.tokens else ():
        lists = [level.get("request_headers_to_remove") for level in levels]
        names = {n.text.lower() for given in lists if given is not None for n in given.elements}
        if contract.HEADER_FORCE not in names:
            yield Hit(route, f"{contract.HEADER_FORCE} goes on to the model")


def _stamped(config: Config) -> Iterator[tuple[Node, tuple[Node, Node, Node]]]:
    """Stamped routes: where to report, and the levels at which headers are added and removed."""
    for _, table in _tables(config):
        for host, route, _, _ in routes_of(table):
            header = route.get("route", "cluster_header")
            if header is not None and header.text.lower() == contract.HEADER_UPSTREAM:
                yield header, (route, host, table)


def _validate(config: Config, _needs: Needs) -> Iterator[Hit]:
    if not any(
        root.get("dynamic_resources", "cds_config") or root.get("dynamic_resources", "ads_config")
        for root in config.bootstraps
    ):
        return
    for root in config.bootstraps:
        known = {c.word("name") for c in root.list_of("static_resources", "clusters")}
        for table in _inline_tables(root):
            switch = table.get("validate_clusters")
            if switch is not None and not switch.is_true:
                continue
            for name, node in _named_clusters(table):
                if name not in known:
                    yield Hit(node, f"an inline route names {name}, which comes by CDS")
                    break


def _inline_tables(root: Node) -> Iterator[Node]:
    for listener in root.list_of("static_resources", "listeners"):
        for node in listener.walk():
            table = node.get("route_config")
            if table is not None and node.type == "HttpConnectionManager":
                yield table


def _named_clusters(table: Node) -> Iterator[tuple[str, Node]]:
    for _, route, _, _ in routes_of(table):
        node = route.get("route", "cluster")
        if node is not None:
            yield node.text, node
        for weighted in route.list_of("route", "weighted_clusters", "clusters"):
            if (name := weighted.get("name")) is not None:
                yield name.text, name


RULES: Final = (
    Rule(
        "route-timeout",
        ERROR,
        "Envoy cuts every answer of a model that takes longer.",
        "Write the target's timeout: `timeout: 60s` (0s = none).",
        _timeouts,
    ),
    Rule(
        "no-default-route",
        ERROR,
        "A request without the stamp, as when the sidecar is away, gets an error.",
        "Match on the header's presence (`present_match: true`), and let a second route with the "
        "same path lead to the baseline's cluster.",
        _no_default,
    ),
    Rule(
        "mirror-marker",
        ERROR,
        "A copy's access-log entry looks like the served request's: a crashing shadow looks like "
        "a crashing model.",
        "Append x-turnout-shadow-of: %REQ(x-turnout-shadow-variant)% in the policy's "
        "request_headers_mutations.",
        _mirror,
    ),
    Rule(
        "session-cookie",
        ERROR,
        "The unit is a session, and a client that never gets its cookie is a new user with each "
        "request.",
        "Add to response_headers_to_add, of the stamped route and of the default one (who is held "
        "out keeps to it by the same cookie): set-cookie: %REQ(x-turnout-set-cookie)% with "
        "append_action APPEND_IF_EXISTS_OR_ADD.",
        _cookie,
    ),
    Rule(
        "force-token-leak",
        WARNING,
        "Whoever reads a model's logs can use the token until it expires.",
        "Add `request_headers_to_remove: [x-force-variant]` to the route_config.",
        _token_leak,
    ),
    Rule(
        "validate-clusters",
        ERROR,
        "Envoy refuses to start: inline routes are checked before CDS has answered.",
        "Add `validate_clusters: false` to the route_config.",
        _validate,
    ),
)
