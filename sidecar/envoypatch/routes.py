"""What a user's inline routes need, for the split of targets.

Owns the stamped route before theirs, and what theirs needs to stay the default. Theirs keeps its
match, cluster, timeout, rewrite and everything else; where it is wider than the target (a prefix
`/` for a target at `/v2/models/fraud`) a copy of it, narrowed to the target's path, is put before
it, so that the rest of its requests never ask the sidecar. What was put there is named
`turnout/<target>/...` and made anew from theirs by the next patch.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from sidecar.envoymatch import (
    exact_header,
    match_rank,
    model_prefixes,
    target_hosts,
    targets_in_order,
)
from sidecar.envoypatch.roundtrip import Tree, default, drop, field, key, listed, put
from sidecar.envoyroutes import added_header, mirror_policy, request_value, session_cookie
from sidecar.envoyyaml import TYPE, Json, seconds
from turnout import contract
from turnout.v1alpha1.snapshot_pb2 import TargetPlan

_CLUSTER_SPECIFIERS: Final = (
    "cluster",
    "cluster_header",
    "weighted_clusters",
    "cluster_specifier_plugin",
    "inline_cluster_specifier_plugin",
)
_CONDITIONS: Final = ("headers", "query_parameters", "runtime_fraction", "dynamic_metadata",
                      "grpc", "tls_context", "filter_state", "cookies")  # fmt: skip
_META: Final = re.compile(r"[\\^$.|?*+()\[\]{}]")


def add_routes(route_config: Tree, targets: Sequence[TargetPlan]) -> set[str]:
    """Add what targets need to a route configuration.

    Returns:
        Names of the targets that its routes can serve.
    """
    served: set[str] = set()
    for host in listed(route_config, "virtual_hosts"):
        domains = [str(d).lower() for d in listed(host, "domains")]
        fitting = _in_order([t for t in targets if _hosts_meet(t, domains)])
        routes = [r for r in listed(host, "routes") if not _is_ours(r)]
        if not routes:
            continue
        put(host, "routes", list(_with_ours(routes, fitting, served)))
    if served:
        theirs = listed(route_config, "request_headers_to_remove")
        others = [name for name in theirs if str(name).lower() != contract.HEADER_FORCE]
        put(route_config, "request_headers_to_remove", [*others, contract.HEADER_FORCE])
    return served


def strays(route_config: Tree, baselines: Mapping[str, str]) -> Iterator[str]:
    """Sentences about targets whose default route leads elsewhere than their baseline.

    Args:
        route_config: With what `add_routes` adds.
        baselines: Target -> cluster.
    """
    for host in listed(route_config, "virtual_hosts"):
        routes = listed(host, "routes")
        for stamped, theirs in pairwise(routes):
            target = str(field(stamped, "name") or "").removeprefix(contract.ROUTE_NAME_PREFIX)
            name, _, kind = target.partition("/")
            cluster = field(theirs, "route", "cluster") or "several clusters"
            if _is_ours(stamped) and kind == "stamped" and cluster != baselines.get(name):
                yield (
                    f"target {name}: the default route leads to {cluster}, and the baseline is "
                    f"{baselines.get(name)}, which serves while the sidecar is there"
                )


def _in_order(targets: Sequence[TargetPlan]) -> list[TargetPlan]:
    """The order in which the sidecar looks: models first, then the longest path."""
    hosts = {host for t in targets for host in target_hosts(t)}
    ranked: dict[str, TargetPlan] = {}
    for host in sorted(hosts, key=lambda h: (h.startswith("*"), -len(h), h)):
        ranked.update({t.name: t for t in targets_in_order(targets, host) if t.name not in ranked})
    return sorted(ranked.values(), key=lambda t: match_rank(t)[:3])


class _Part(NamedTuple):
    """Requests of a target: all of a prefix, or those that name its model in one way.

    Attributes:
        target: Whose.
        path_prefix: What their paths begin with; at a model's name more may begin so.
        headers: Conditions on their headers.
    """

    target: TargetPlan
    path_prefix: str
    headers: tuple[Json, ...] = ()


def _parts(target: TargetPlan) -> list[_Part]:
    """A target's parts, as routes without expressions can tell them."""
    wanted = target.path_prefix or "/"
    if not target.model_name:
        return [_Part(target, wanted)]
    named = _by_path(target, version=False)
    named += [
        _Part(target, wanted, (exact_header(name, target.model_name),))
        for name in contract.MODEL_NAME_HEADERS
    ]
    if not target.model_version:
        return named
    return _by_path(target, version=True) + [
        part._replace(headers=(*part.headers, exact_header(name, target.model_version)))
        for part in named
        for name in contract.MODEL_VERSION_HEADERS
    ]


def _by_path(target: TargetPlan, *, version: bool) -> list[_Part]:
    wanted = target.path_prefix or "/"
    stems = dict.fromkeys(p.rstrip("/:") for p in model_prefixes(target, version=version))
    longer = [max(stem, wanted, key=len) for stem in stems
              if stem.startswith(wanted) or wanted.startswith(stem)]  # fmt: skip
    return [_Part(target, prefix) for prefix in dict.fromkeys(longer)]


def _with_ours(
    routes: Sequence[Tree], targets: Sequence[TargetPlan], served: set[str]
) -> Iterator[Tree]:
    parts = [part for target in targets for part in _parts(target)]
    done: list[_Part] = []
    for route in routes:
        _take_back(route)
        whole = None
        for part in parts:
            meeting = _meeting(route, part.path_prefix) if part not in done else None
            if meeting is None:
                continue
            served.add(part.target.name)
            if _covers(route, part.path_prefix):
                done.append(part)
            if meeting == "within" and not part.headers:
                whole = whole or part.target
                continue
            narrow = _narrowed(route, part, shorter=meeting == "wider")
            yield _stamped(narrow, part.target)
            yield _default(_named(narrow, f"{part.target.name}/baseline"), part.target)
        if whole is not None:
            # Before the copy is made: the next patch would find it there, in another order.
            _give_time(field(route, "route"), whole)
            yield _stamped(route, whole)
            _default(route, whole)
        yield route


def _is_ours(route: Any) -> bool:
    name = str(field(route, "name") or "")
    return name.startswith(contract.ROUTE_NAME_PREFIX) and name.count("/") == 2


# -- Which routes ----------------------------------------------------------------------------------


def _hosts_meet(target: TargetPlan, domains: Sequence[str]) -> bool:
    return any(_meet(host, _bare(domain)) for host in target_hosts(target) for domain in domains)


def _bare(domain: str) -> str:
    host, colon, port = domain.rpartition(":")
    return host if colon and (port.isdigit() or port == "*") else domain


def _meet(host: str, domain: str) -> bool:
    """Whether some name fits both patterns; `foo.*` is a pattern of virtual hosts alone."""
    if "*" in (host, domain):
        return True
    if domain.endswith("*"):
        return host.startswith(("*", domain[:-1]))
    for one, other in ((host, domain), (domain, host)):
        if one.startswith("*") and (other.endswith(one[1:]) or other.startswith("*")):
            return other.endswith(one[1:]) or one.endswith(other[1:])
    return host == domain


def _meeting(route: Tree, wanted: str) -> str | None:
    """How a route's paths and a target's prefix meet: "within" it, "wider", or not at all."""
    action = field(route, "route")
    if not isinstance(action, dict) or field(action, "cluster_header") == contract.HEADER_UPSTREAM:
        return None
    match = field(route, "match") or {}
    for kind in ("prefix", "path_separated_prefix"):
        given = field(match, kind)
        if given is None:
            continue
        if str(given).startswith(wanted):
            return "within"
        edge = "/" if kind == "path_separated_prefix" and wanted != given else ""
        return "wider" if wanted.startswith(f"{given}{edge}") else None
    head = _literal_head(match)
    if head is None:
        return None
    exact = field(match, "path") is not None
    meets = head.startswith(wanted) or (not exact and wanted.startswith(head))
    return "within" if meets else None


def _literal_head(match: Tree) -> str | None:
    """What every path of the match begins with, as far as its spelling says."""
    path = field(match, "path")
    if path is not None:
        return str(path)
    regex = field(match, "safe_regex", "regex")
    if regex is not None:
        # Quantifiers make the character before them optional.
        found = _META.search(str(regex).lstrip("^"))
        text = str(regex).lstrip("^")
        return text if found is None else text[: max(found.start() - 1, 0)]
    template = field(match, "path_match_policy", "typed_config", "path_template")
    return None if template is None else re.split(r"[{*]", str(template))[0]


def _covers(route: Tree, wanted: str) -> bool:
    """Whether no request below a path prefix gets past this route."""
    match = field(route, "match") or {}
    prefix = field(match, "prefix")
    plain = not any(field(match, name) for name in _CONDITIONS)
    return plain and prefix is not None and wanted.startswith(str(prefix))


# -- What is made of them --------------------------------------------------------------------------


def _narrowed(route: Tree, part: _Part, *, shorter: bool) -> Tree:
    """Theirs for a part of a target; `shorter`: the path that it matches is shorter."""
    narrow = copy.deepcopy(route)
    match = default(narrow, "match", {})
    if part.headers:
        put(match, "headers", [*listed(match, "headers"), *part.headers])
    if not shorter:
        return narrow
    kind = "prefix" if field(match, "prefix") is not None else "path_separated_prefix"
    given = str(field(match, kind))
    spelled = key(match, kind)
    # The mapping is made anew so that `prefix` stands where theirs stood.
    narrow[key(narrow, "match")] = {
        ("prefix" if name == spelled else name): (part.path_prefix if name == spelled else value)
        for name, value in match.items()
    }
    action = narrow[key(narrow, "route")]
    rewrite = field(action, "prefix_rewrite")
    if rewrite is not None:
        # Envoy replaces what was matched, and more is matched now.
        put(action, "prefix_rewrite", f"{rewrite}{part.path_prefix[len(given) :]}")
    return narrow


def _stamped(route: Tree, target: TargetPlan) -> Tree:
    """Theirs for requests with a stamp, to the cluster that it names."""
    stamped = _named(copy.deepcopy(route), f"{target.name}/stamped")
    match = default(stamped, "match", {})
    present = {"name": contract.HEADER_UPSTREAM, "present_match": True}
    put(match, "headers", [*listed(match, "headers"), present])
    action = stamped[key(stamped, "route")]
    for name in _CLUSTER_SPECIFIERS:
        drop(action, name)
    action["cluster_header"] = contract.HEADER_UPSTREAM
    _give_time(action, target)
    policies = [*listed(action, "request_mirror_policies"), mirror_policy()]
    put(action, "request_mirror_policies", policies)
    # Removed first: what comes to the baseline without a variant must not carry a model's own word.
    removed = [*listed(stamped, "response_headers_to_remove"), contract.HEADER_VARIANT]
    put(stamped, "response_headers_to_remove", removed)
    variant = added_header(contract.HEADER_VARIANT, request_value(contract.HEADER_VARIANT))
    # The cookie in any case: a later experiment's unit may be a session.
    ours = [variant, session_cookie()]
    put(stamped, "response_headers_to_add", [*listed(stamped, "response_headers_to_add"), *ours])
    return stamped


def _named(route: Tree, name: str) -> Tree:
    """A route under a name of ours, which stands first."""
    drop(route, "name")
    return {"name": f"{contract.ROUTE_NAME_PREFIX}{name}", **route}


def _default(route: Tree, target: TargetPlan) -> Tree:
    """Theirs, asking the sidecar first, for what comes back without a stamp."""
    _give_time(field(route, "route"), target)
    mark = added_header(contract.HEADER_UNSTAMPED, "1")
    put(route, "request_headers_to_add", [*listed(route, "request_headers_to_add"), mark])
    removed = [*listed(route, "response_headers_to_remove"), contract.HEADER_VARIANT]
    put(route, "response_headers_to_remove", removed)
    # Whoever is outside of an experiment stays there by the same cookie.
    added = [*listed(route, "response_headers_to_add"), session_cookie()]
    put(route, "response_headers_to_add", added)
    switch = {"@type": TYPE + "envoy.config.route.v3.FilterConfig", "config": {}}
    put(default(route, "typed_per_filter_config", {}), contract.EXT_PROC_FILTER, switch)
    return route


def _take_back(route: Tree) -> None:
    """Remove what `_default` added, so that copies are made of theirs alone."""
    _drop(route, "request_headers_to_add", added_header(contract.HEADER_UNSTAMPED, "1"))
    _drop(route, "response_headers_to_remove", contract.HEADER_VARIANT)
    _drop(route, "response_headers_to_add", session_cookie())
    settings = field(route, "typed_per_filter_config")
    if isinstance(settings, dict) and settings.pop(contract.EXT_PROC_FILTER, None) and not settings:
        drop(route, "typed_per_filter_config")


def _drop(route: Tree, name: str, item: Any) -> None:
    kept = [other for other in listed(route, name) if not _same(other, item)]
    if kept:
        put(route, name, kept)
    else:
        drop(route, name)


def _same(given: Any, ours: Any) -> bool:
    if isinstance(ours, dict):
        # The value too: they may set cookies of their own.
        pairs = ((field(given, "header", name), ours["header"][name]) for name in ("key", "value"))
        return all(str(theirs) == wanted for theirs, wanted in pairs)
    return bool(str(given).lower() == ours)


def _give_time(action: Tree, target: TargetPlan) -> None:
    """The target's timeout, where theirs says nothing: Envoy's default is 15 s."""
    default(action, "timeout", seconds(target.timeout.ToNanoseconds() / 1e9))
