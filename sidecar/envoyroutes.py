"""Routes (RDS): where stamped requests go, where all others go, and what neither carries along.

Owns the route configuration of a snapshot. Refuses to decide which experiments are on: it is told.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

from sidecar.envoyfilter import EXT_PROC, token_header
from sidecar.envoymatch import matches, target_hosts, targets_in_order
from sidecar.envoyyaml import TYPE, Json, seconds
from turnout import contract
from turnout.v1alpha1.snapshot_pb2 import ExperimentPlan, Snapshot, TargetPlan

# Credentials that a copy never carries; a token that forces a variant is gone before it is made. A
# session's new cookie stays on the request that is served: a route that removed it there could not
# put it into the response either (tried).
SECRET_HEADERS: Final = (
    "authorization",
    "cookie",
    "proxy-authorization",
    contract.HEADER_SET_COOKIE,
)
STREAM_IDLE_MIN_S: Final = 300.0

# What is no target's must be passed on as if nobody were between.
_NO_LIMITS: Final[Json] = {"timeout": "0s", "idle_timeout": "0s"}
_STAMPED: Final[Json] = {"name": contract.HEADER_UPSTREAM, "present_match": True}


def route_configuration(
    snapshot: Snapshot, enabled: Collection[tuple[str, int]], *, local: str = ""
) -> Json:
    """All routes.

    Args:
        snapshot: A valid snapshot.
        enabled: (experiment, epoch) whose start gate is open.
        local: The address of the pod beside an Envoy that intercepts; "" = Envoy does not.
    """
    running = _running(snapshot, enabled)
    off = _filter_off(absent=not _rematched(snapshot, running))
    hosts = sorted({"*", *(host for target in snapshot.targets for host in target_hosts(target))})
    return {
        "@type": TYPE + "envoy.config.route.v3.RouteConfiguration",
        "name": contract.ROUTE_CONFIG_NAME,
        "ignore_port_in_host_matching": True,
        # Whoever serves: a token that gives its bearer a variant is no business of a model's.
        "request_headers_to_remove": [contract.HEADER_FORCE],
        "virtual_hosts": [_virtual_host(snapshot, host, running, off, local) for host in hosts],
    }


def _running(
    snapshot: Snapshot, enabled: Collection[tuple[str, int]]
) -> dict[str, list[ExperimentPlan]]:
    """Target -> its experiments that are on, in the order of their stamps: `models` first."""
    running: dict[str, list[ExperimentPlan]] = {}
    in_order = sorted(snapshot.experiments, key=lambda e: (not _routes_it(e), e.layer, e.name))
    for experiment in in_order:
        if (experiment.name, experiment.epoch) in enabled:
            running.setdefault(experiment.target, []).append(experiment)
    return running


def _routes_it(experiment: ExperimentPlan) -> bool:
    return experiment.layer == contract.LAYER_MODELS


def _virtual_host(
    snapshot: Snapshot,
    host: str,
    running: Mapping[str, Sequence[ExperimentPlan]],
    off: Json,
    local: str,
) -> Json:
    routes = [
        route
        for target in targets_in_order(snapshot.targets, host)
        for route in _routes(target, running.get(target.name, ()), off, transparent=bool(local))
    ]
    if local:
        checked = [_health_route(path, off) for path in _health_paths(snapshot, local)]
        routes = [*checked, *routes, _passing_route("none", {"prefix": "/"}, _NO_LIMITS, off)]
    else:
        routes.append(_no_target())
    return {"name": host, "domains": [host], "routes": routes}


def _no_target() -> Json:
    """What no target matches: without a route it would open an ext_proc stream (tried)."""
    return {
        "name": f"{contract.ROUTE_NAME_PREFIX}none",
        "match": {"prefix": "/"},
        "direct_response": {"status": 404},
        "typed_per_filter_config": _filter_off(absent=False),
    }


def _routes(
    target: TargetPlan, running: Sequence[ExperimentPlan], off: Json, *, transparent: bool
) -> Iterator[Json]:
    unasked = None if running else off
    for match in matches(target):
        if running:
            yield from _stamped_routes(target, match, running)
        if transparent:
            # A peer has decided, or says so: if a worker does not believe the mark, it stamps, and
            # the routes above take the request. Without a worker the pod that was called serves.
            marked = {"name": contract.HEADER_HOP, "present_match": True}
            asked = match | {"headers": [*match.get("headers", []), marked]}
            peer = _passing_route(f"{target.name}/peer", asked, _action(target), unasked)
            yield peer | _cookie_alone(running)
        yield _baseline_route(target, match, unasked) | _cookie_alone(running)


def _cookie_alone(running: Iterable[ExperimentPlan]) -> Json:
    """What a route of unstamped requests adds to a response: a session's new cookie."""
    return {"response_headers_to_add": [session_cookie()]} if _issue(running) else {}


# -- Transparent proxying --------------------------------------------------------------------------


def _passing_route(name: str, match: Json, action: Json, off: Json | None) -> Json:
    """To the pod that the client has called; `off` keeps the filter out, None has it asked."""
    route: Json = {
        "name": f"{contract.ROUTE_NAME_PREFIX}{name}",
        "match": match,
        "route": action | {"cluster": contract.LOCAL_CLUSTER},
        "request_headers_to_remove": [contract.HEADER_HOP],
    }
    if off is not None:
        route["typed_per_filter_config"] = off
    return route


def _health_route(path: str, off: Json) -> Json:
    """A peer's health check asks about this pod, whatever the targets would make of it."""
    mark = {"name": contract.HEADER_HOP, "string_match": {"exact": contract.HOP_HEALTH}}
    return _passing_route("health", {"path": path, "headers": [mark]}, _NO_LIMITS, off)


def _health_paths(snapshot: Snapshot, local: str) -> list[str]:
    """Health paths of all upstreams that are the pod beside this Envoy."""
    plans = [target.baseline for target in snapshot.targets]
    plans += [v.cluster for e in snapshot.experiments for v in e.variants]
    upstreams = [plan.upstream for plan in plans if plan.upstream.address == local]
    return sorted({u.health_path for u in upstreams if u.health_path})


def _stamped_routes(
    target: TargetPlan, match: Json, running: Sequence[ExperimentPlan]
) -> Iterator[Json]:
    """One route; of several experiments, one for each that routes, and one for all others.

    Which experiment a request is in, its route must know for the tracer: no header says it alone.
    An experiment that routes is the first of its stamp.
    """
    if len(running) == 1:
        yield _stamped_route(target, match, running, running[0], [_STAMPED])
        return
    for experiment in running:
        if _routes_it(experiment):
            begins = contract.STAMP_FIELD_SEPARATOR.join((experiment.name, str(experiment.epoch)))
            first = {
                "name": contract.HEADER_STAMP,
                "string_match": {"prefix": begins + contract.STAMP_FIELD_SEPARATOR},
            }
            yield _stamped_route(target, match, running, experiment, [_STAMPED, first])
    yield _stamped_route(target, match, running, None, [_STAMPED])


def _stamped_route(
    target: TargetPlan,
    match: Json,
    running: Sequence[ExperimentPlan],
    named: ExperimentPlan | None,
    asked: Iterable[Json],
) -> Json:
    """The route of what is stamped.

    Args:
        target: Whose requests.
        match: Which of them.
        running: The target's experiments.
        named: The one that the tracer names; None = the stamp alone says which they are.
        asked: Conditions on the stamp.
    """
    tokens = {header for e in running if (header := token_header(e.unit.jwt_claim))}
    return {
        "name": f"{contract.ROUTE_NAME_PREFIX}{target.name}/stamped",
        "match": match | {"headers": [*match.get("headers", []), *asked]},
        "metadata": {"filter_metadata": {contract.ROUTE_METADATA: _span_values(named)}},
        "route": _action(target)
        | {
            "cluster_header": contract.HEADER_UPSTREAM,
            "request_mirror_policies": [mirror_policy(tokens)],
        },
        # A model's own word is removed first: who is in a parameter's experiment alone has none.
        "response_headers_to_remove": [contract.HEADER_VARIANT],
        "response_headers_to_add": stamped_answer(running),
    }


def _span_values(named: ExperimentPlan | None) -> Json:
    """What the tracer reads from the route."""
    values: Json = {contract.METADATA_REASON: "split", contract.METADATA_PROVIDER: "turnout"}
    if named is None:
        return values
    return {
        contract.METADATA_EXPERIMENT: named.name,
        contract.METADATA_EPOCH: str(named.epoch),
        contract.METADATA_STEP: str(named.step),
        **values,
    }


def stamped_answer(running: Iterable[ExperimentPlan]) -> list[Json]:
    """What the stamped route adds to a response: who answered, and a session's new cookie."""
    added = [added_header(contract.HEADER_VARIANT, request_value(contract.HEADER_VARIANT))]
    if _issue(running):
        added.append(session_cookie())
    return added


def _issue(running: Iterable[ExperimentPlan]) -> bool:
    return any(experiment.unit.HasField("session") for experiment in running)


def session_cookie() -> Json:
    """The cookie that the sidecar issued; Envoy leaves it out where there is none."""
    cookie = added_header("set-cookie", request_value(contract.HEADER_SET_COOKIE))
    return cookie | {"append_action": "APPEND_IF_EXISTS_OR_ADD"}


def _baseline_route(target: TargetPlan, match: Json, off: Json | None) -> Json:
    route: Json = {
        "name": f"{contract.ROUTE_NAME_PREFIX}{target.name}/baseline",
        "match": match,
        "route": _action(target) | {"cluster": target.baseline.cluster},
        # Attribution: only an applied stamp says which variant answered, never the upstream itself.
        "response_headers_to_remove": [contract.HEADER_VARIANT],
        "request_headers_to_remove": [contract.HEADER_HOP],
    }
    if off is None:
        route["request_headers_to_add"] = [added_header(contract.HEADER_UNSTAMPED, "1")]
    else:
        route["typed_per_filter_config"] = off
    return route


def _rematched(snapshot: Snapshot, running: Mapping[str, Sequence[ExperimentPlan]]) -> bool:
    """Whether a request may come to a running target after its first route was found.

    A filter before ours may set the headers that the target matches by: a claim, a model's name.
    """
    targets = [target for target in snapshot.targets if target.name in running]
    return any(target.headers or target.model_name for target in targets)


def _filter_off(*, absent: bool) -> Json:
    """Nobody is asked on this route.

    Args:
        absent: Who finds this route first has no such filter, and no later route brings it back:
            a request at rest costs Envoy what it costs without us. Else it is there, and silent,
            for a tenth more of Envoy's time.
    """
    kind = "envoy.config.route.v3.FilterConfig" if absent else EXT_PROC + "ExtProcPerRoute"
    return {contract.EXT_PROC_FILTER: {"@type": TYPE + kind, "disabled": True}}


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


def mirror_policy(tokens: Iterable[str] = ()) -> Json:
    """Copies to the cluster that the stamp names: marked, and without credentials.

    Args:
        tokens: Headers with credentials, beside the usual ones.
    """
    marker = added_header(contract.HEADER_SHADOW_OF, request_value(contract.HEADER_SHADOW_VARIANT))
    secrets = [*SECRET_HEADERS, *sorted(set(tokens) - set(SECRET_HEADERS))]
    return {
        "cluster_header": contract.HEADER_SHADOW,
        "disable_shadow_host_suffix_append": True,
        "request_headers_mutations": [{"append": marker}, *({"remove": name} for name in secrets)],
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
