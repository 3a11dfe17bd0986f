"""What a request's answer must be, slowly: written from the contract, not from the sidecar.

Owns the whole decision in plain loops over the snapshot's message: nothing is built, indexed or
kept between two requests. Imports of the product only the generated messages and the contract.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

import xxhash

from tests.differential import values
from turnout.contract import (
    BUCKET_COUNT,
    HEADER_FORCE,
    HEADER_HOP,
    HEADER_PARAMETER_PREFIX,
    HEADER_REQUEST_ID,
    HEADER_SET_COOKIE,
    HEADER_SHADOW,
    HEADER_SHADOW_VARIANT,
    HEADER_STAMP,
    HEADER_UPSTREAM,
    HEADER_VARIANT,
    LAYER_MODELS,
    MODEL_NAME_HEADERS,
    MODEL_VERSION_HEADERS,
    SESSION_COOKIE,
    SESSION_ID_HEX_DIGITS,
    UNIT_BYTES_MAX,
)
from turnout.envoy.ext_proc_pb2 import ProcessingRequest
from turnout.v1alpha1.common_pb2 import Predicate, Unit
from turnout.v1alpha1.snapshot_pb2 import BucketRange, ExperimentPlan, Snapshot, TargetPlan

SESSION_SECONDS: Final = 720 * 3600
JWT_NAMESPACE: Final = "envoy.filters.http.jwt_authn"
# How far an experiment came that does not enrol; the greater, the further.
FAILURES: Final = (
    "WAITING", "NO_UNIT", "INVALID_UNIT", "HELD_OUT", "NOT_IN_SEGMENT", "NOT_IN_LAYER",
)  # fmt: skip
Headers = list[tuple[str, bytes]]


class World(NamedTuple):
    """All that an answer depends on beside the request."""

    snapshot: Snapshot
    key: bytes
    dead: dict[str, int]  # experiment -> highest epoch that is dead
    open_gates: set[tuple[str, int]] | None  # None = there is no gate
    defaults: dict[str, str]  # target -> cluster where Envoy's routes are somebody else's
    transparent: bool
    now_s: float
    chance: bytes  # what every draw gives


class Meaning(NamedTuple):
    """What an answer says."""

    headers: dict[str, bytes] | None  # None = Trailers-Only
    outcome: str
    target: str
    duplicate_unit: bool
    invalid_token: bool
    decided: frozenset[tuple[str, int, str]]  # (experiment, epoch, variant) that count it


class Found(NamedTuple):
    """A unit."""

    value: bytes
    duplicate: bool = False
    issued: str = ""  # the Set-Cookie that makes it last


class Enrolled(NamedTuple):
    """One assignment."""

    experiment: ExperimentPlan
    variant: str
    unit: Found
    forced: bool


def answer(world: World, request: ProcessingRequest) -> Meaning:
    """The answer to one request."""
    headers = [(h.key, h.raw_value) for h in request.request_headers.headers.headers]
    target = match(world.snapshot.targets, headers)
    if target is None:
        return Meaning(None, "NO_TARGET", "", False, False, frozenset())
    if world.transparent and is_decided(world, headers):
        return Meaning(None, "PEER", target.name, False, False, frozenset())
    experiments = in_order(world, target)
    if not experiments:
        return refusal(world, target, "NO_EXPERIMENT")
    token = force_of(world, headers)
    given = first(headers, HEADER_FORCE)
    wasted = given is not None and (token is None or not names_something(world, token))
    # A target that waits looks at no token.
    wasted = wasted and any(is_open(world, experiment) for experiment in experiments)
    enrolled: list[Enrolled] = []
    failed: list[str] = []
    duplicate = False
    cookie = ""  # the whole of it, when this request begins a session
    for layer in layers_of(experiments):
        tried: list[Enrolled] = []
        for experiment in layer:
            if not is_open(world, experiment):
                failed.append("WAITING")
                continue
            unit = unit_of(world, experiment.unit, headers, request)
            if unit.issued:
                cookie = cookie or unit.issued
                if unit.issued.partition("=")[0] != cookie.partition("=")[0]:
                    unit = Found(b"")
            duplicate = duplicate or unit.duplicate
            result = enrol(experiment, unit, headers, token)
            if isinstance(result, str):
                failed.append(result)
            else:
                tried.append(result)
        # Forced ones first; else the first by name.
        enrolled += ([one for one in tried if one.forced] or tried)[:1]
    if not enrolled:
        outcome = max(failed, key=FAILURES.index)
        none = refusal(world, target, outcome, duplicate=duplicate, wasted=wasted)
        told = {**(none.headers or {}), HEADER_SET_COOKIE: cookie.encode()}
        return none._replace(headers=told) if cookie else none
    stamps = frozenset((e.experiment.name, e.experiment.epoch, e.variant) for e in enrolled)
    said = stamp(world, target, experiments, enrolled, headers)
    if cookie:
        said[HEADER_SET_COOKIE] = cookie.encode()
    return Meaning(said, "STAMPED", target.name, duplicate, wasted, stamps)


def layers_of(experiments: list[ExperimentPlan]) -> list[list[ExperimentPlan]]:
    """The experiments by layer, in order."""
    names = list(dict.fromkeys(experiment.layer for experiment in experiments))
    return [[e for e in experiments if e.layer == name] for name in names]


def names_something(world: World, token: tuple[str, str, bytes]) -> bool:
    """Whether a token's experiment and variant are of this snapshot, and may serve."""
    for target in world.snapshot.targets:
        for experiment in in_order(world, target):
            if experiment.name == token[0] and is_open(world, experiment):
                return token[1] in [variant.name for variant in experiment.variants]
    return False


def refusal(
    world: World, target: TargetPlan, outcome: str, *, duplicate: bool = False, wasted: bool = False
) -> Meaning:
    """The answer to a request that gets no variant."""
    cluster = world.defaults.get(target.name, "")
    headers = {HEADER_UPSTREAM: cluster.encode()} if cluster else None
    return Meaning(headers, outcome, target.name, duplicate, wasted, frozenset())


def first(headers: Headers, name: str) -> bytes | None:
    """The first value of a header."""
    for key, value in headers:
        if key == name:
            return value
    return None


def bucket(salt: str, unit: bytes) -> int:
    """xxh3_64(salt + NUL + unit) mod BUCKET_COUNT."""
    return int(xxhash.xxh3_64_intdigest(salt.encode() + b"\0" + unit) % BUCKET_COUNT)


def within(ranges: Sequence[BucketRange], place: int) -> bool:
    """Whether a bucket is in one of the ranges."""
    return any(part.start <= place < part.end for part in ranges)


# -- Targets ---------------------------------------------------------------------------------------


def match(targets: Sequence[TargetPlan], headers: Headers) -> TargetPlan | None:
    """The target of a request: the most exact host, then model, path and so on."""
    host = without_port(first(headers, ":authority") or b"").lower()
    best: tuple[tuple[bool, int, bool, bool, int, int, bool, str], TargetPlan] | None = None
    for target in targets:
        patterns = [pattern.lower().encode() for pattern in target.hosts] or [b"*"]
        fitting = [pattern for pattern in patterns if host_fits(pattern, host)]
        if not fitting or not rest_fits(target, headers):
            continue
        exact = min((pattern.startswith(b"*"), -len(pattern)) for pattern in fitting)
        rank = (
            *exact,
            not target.model_version,
            not target.model_name,
            -len(target.path_prefix or "/"),
            -len(target.headers),
            not target.methods,
            target.name,
        )
        if best is None or rank < best[0]:
            best = (rank, target)
    return None if best is None else best[1]


def host_fits(pattern: bytes, host: bytes) -> bool:
    """ "*" is any; "*.suffix" has one character at least before the suffix."""
    if pattern == b"*":
        return True
    if pattern.startswith(b"*"):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return pattern == host


def without_port(authority: bytes) -> bytes:
    """The host of an authority: Envoy cuts at the last colon that is in no brackets."""
    colon = authority.rfind(b":")
    return authority if colon < authority.rfind(b"]") or colon < 0 else authority[:colon]


def rest_fits(target: TargetPlan, headers: Headers) -> bool:
    """Path, method, header predicates and the model."""
    path = path_of(headers)
    if not path.startswith((target.path_prefix or "/").encode()):
        return False
    method = first(headers, ":method")
    if target.methods and (method is None or method not in [m.encode() for m in target.methods]):
        return False
    if not all(holds(predicate, headers, b"", "") for predicate in target.headers):
        return False
    return not target.model_name or names_model(target, path, headers)


def path_of(headers: Headers) -> bytes:
    """The path without query and fragment."""
    path = first(headers, ":path")
    if path is None:
        return b"/"
    return path.partition(b"#")[0].partition(b"?")[0]


def names_model(target: TargetPlan, path: bytes, headers: Headers) -> bool:
    """Whether path or headers name the target's model, and its version if it has one."""
    name, version = target.model_name.encode(), target.model_version.encode()
    by_path = path_names(target, path, name)
    by_header = any((header, name) in headers for header in MODEL_NAME_HEADERS)
    if not version:
        return by_path or by_header
    if path_names(target, path, name + b"/versions/" + version):
        return True
    version_said = any((header, version) in headers for header in MODEL_VERSION_HEADERS)
    return (by_path or by_header) and version_said


def path_names(target: TargetPlan, path: bytes, tail: bytes) -> bool:
    """/v2/models/TAIL or below, /v1/models/TAIL or below or with a verb; at the root or a mount."""
    for mount in (b"", target.path_prefix.rstrip("/").encode()):
        for protocol in (b"/v2/models/", b"/v1/models/"):
            whole = mount + protocol + tail
            if path == whole or path.startswith(whole + b"/"):
                return True
        if path.startswith(mount + b"/v1/models/" + tail + b":"):
            return True
    return False


# -- Experiments -----------------------------------------------------------------------------------


def in_order(world: World, target: TargetPlan) -> list[ExperimentPlan]:
    """The target's living experiments: layer `models` first, then by layer, then by name."""
    living = []
    for experiment in world.snapshot.experiments:
        buried = [world.dead.get(experiment.name, 0)]
        buried += [t.epoch for t in world.snapshot.tombstones if t.experiment == experiment.name]
        if experiment.target == target.name and experiment.epoch > max(buried):
            living.append(experiment)
    return sorted(living, key=lambda e: (e.layer != LAYER_MODELS, e.layer, e.name))


def is_open(world: World, experiment: ExperimentPlan) -> bool:
    """Whether the start gate lets it enrol."""
    return world.open_gates is None or (experiment.name, experiment.epoch) in world.open_gates


def force_of(world: World, headers: Headers) -> tuple[str, str, bytes] | None:
    """What a believed force token says."""
    given = first(headers, HEADER_FORCE)
    if given is None:
        return None
    return values.force_token(given, key=world.key, tenant=world.snapshot.tenant, now_s=world.now_s)


def enrol(
    experiment: ExperimentPlan,
    unit: Found,
    headers: Headers,
    token: tuple[str, str, bytes] | None,
) -> Enrolled | str:
    """The assignment of a unit by one experiment, or why there is none."""
    if not unit.value:
        return "NO_UNIT"
    if len(unit.value) > UNIT_BYTES_MAX:
        return "INVALID_UNIT"
    if within(experiment.holdout.ranges, bucket(experiment.holdout.salt, unit.value)):
        return "HELD_OUT"
    for override in experiment.overrides:
        if override.unit.encode() == unit.value:
            return Enrolled(experiment, override.variant, unit, True)
    if token is not None and token[0] == experiment.name and token[2] in (b"", unit.value):
        for variant in experiment.variants:
            if variant.name == token[1]:
                return Enrolled(experiment, variant.name, unit, True)
    if experiment.HasField("segment") and not holds(
        experiment.segment, headers, unit.value, experiment.salt
    ):
        return "NOT_IN_SEGMENT"
    if experiment.layer_ranges and not within(
        experiment.layer_ranges, bucket(experiment.layer_salt, unit.value)
    ):
        return "NOT_IN_LAYER"
    place = bucket(experiment.salt, unit.value)
    [name] = [v.name for v in experiment.variants if within(v.ranges, place)]
    return Enrolled(experiment, name, unit, False)


# -- Units -----------------------------------------------------------------------------------------


def unit_of(world: World, unit: Unit, headers: Headers, request: ProcessingRequest) -> Found:
    """What is kept on one variant; empty when the request has none."""
    if unit.header:
        return of([value for name, value in headers if name == unit.header])
    cookie_headers = [value for name, value in headers if name == "cookie"]
    if unit.cookie:
        return of(values.cookies(cookie_headers, unit.cookie.encode()))
    if unit.random:
        return Found(world.chance)
    if unit.query_parameter:
        path = first(headers, ":path") or b""
        return of(values.parameters(path, unit.query_parameter.encode()))
    if unit.HasField("session"):
        return session(world, unit, cookie_headers)
    return claim(unit, headers, request)


def of(found: list[bytes]) -> Found:
    """The first of several counts."""
    return Found(found[0], len(found) > 1) if found else Found(b"")


def session(world: World, unit: Unit, cookie_headers: list[bytes]) -> Found:
    """The session's cookie, or a fresh one."""
    name = unit.session.cookie or SESSION_COOKIE
    given = values.cookies(cookie_headers, name.encode())
    for value in given:
        if len(value) == SESSION_ID_HEX_DIGITS and not set(value) - set(values.HEX.encode()):
            return Found(value, len(given) > 1)
    seconds = unit.session.max_age.seconds or SESSION_SECONDS
    fresh = world.chance.hex()
    text = f"{name}={fresh}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax"
    return Found(fresh.encode(), issued=text)


def claim(unit: Unit, headers: Headers, request: ProcessingRequest) -> Found:
    """The claim of a verified payload, or of a token that is only read."""
    wanted = unit.jwt_claim
    if wanted.unverified:
        found = of([v for name, v in headers if name == (wanted.header or "authorization")])
        payload = values.unverified_payload(found.value)
        return Found(values.claim_of(payload, wanted.claim), found.duplicate)
    metadata = request.metadata_context.filter_metadata
    if JWT_NAMESPACE not in metadata:
        return Found(b"")
    node = metadata[JWT_NAMESPACE]
    path = [wanted.payload_in_metadata, *wanted.claim.split(".")]
    if path[0] in node.fields and wanted.claim in node.fields[path[0]].struct_value.fields:
        path = [path[0], wanted.claim]  # a claim whose own name has the dots
    for name in path[:-1]:
        if name not in node.fields or node.fields[name].WhichOneof("kind") != "struct_value":
            return Found(b"")
        node = node.fields[name].struct_value
    if path[-1] not in node.fields:
        return Found(b"")
    value = node.fields[path[-1]]
    kind = value.WhichOneof("kind")
    if kind in ("string_value", "bool_value", "number_value"):
        return Found(values.claim_text(getattr(value, kind)))
    return Found(b"")


# -- Predicates ------------------------------------------------------------------------------------


def holds(predicate: Predicate, headers: Headers, unit: bytes, salt: str) -> bool:
    """The words of the proto."""
    if predicate.all:
        return all(holds(part, headers, unit, salt) for part in predicate.all)
    if predicate.any:
        return any(holds(part, headers, unit, salt) for part in predicate.any)
    if predicate.HasField("negated"):
        return not holds(predicate.negated, headers, unit, salt)
    if predicate.HasField("percentage"):
        return bucket(predicate.percentage.salt, unit) < predicate.percentage.buckets
    found = [value for name, value in headers if name == predicate.header]
    if predicate.header == "cookie" and found:
        found = [b"; ".join(found)]  # RFC 9113 section 8.2.3: crumbs of one header
    if predicate.HasField("present"):
        return bool(found) == predicate.present
    return any(leaf(predicate, value) for value in found)


def leaf(predicate: Predicate, value: bytes) -> bool:
    """Whether one value fits."""
    if predicate.HasField("equals"):
        return value == predicate.equals.encode()
    if predicate.HasField("prefix"):
        return value.startswith(predicate.prefix.encode())
    if predicate.HasField("regex"):
        return regex_fits(predicate.regex, value)
    if predicate.HasField("semver"):
        return values.fits(value, predicate.semver)
    if predicate.HasField("range"):
        found = values.number(value)
        limits = predicate.range
        return (
            found is not None
            and (not limits.HasField("min") or limits.min <= found)
            and (not limits.HasField("max") or found < limits.max)
        )
    return value in [text.encode() for text in predicate.in_values]


def regex_fits(expression: str, value: bytes) -> bool:
    """RE2 on the whole value; of what is no UTF-8 nothing fits, not even a dot."""
    try:
        return re.fullmatch(expression, value.decode()) is not None
    except UnicodeDecodeError:
        return False


# -- Answers ---------------------------------------------------------------------------------------


def stamp(
    world: World,
    target: TargetPlan,
    experiments: list[ExperimentPlan],
    enrolled: list[Enrolled],
    headers: Headers,
) -> dict[str, bytes]:
    """The headers of a stamped answer."""
    said: dict[str, bytes] = {}
    entries = []
    baseline = world.defaults.get(target.name) or target.baseline.cluster
    upstream = baseline
    for one in enrolled:
        digest = hashlib.blake2b(one.unit.value, key=world.key, digest_size=8).digest()
        number = int.from_bytes(digest, "little")
        epoch = one.experiment.epoch
        entry = f"{one.experiment.name};{epoch};{one.variant};0;{number:016x}"
        entries.append(entry + (";f" if one.forced else ""))
        [variant] = [v for v in one.experiment.variants if v.name == one.variant]
        if one.experiment.layer == LAYER_MODELS:
            upstream = variant.cluster.cluster
            said[HEADER_VARIANT] = one.variant.encode()
        for key, value in variant.parameters.items():
            said[HEADER_PARAMETER_PREFIX + key.lower()] = value.encode()
    said[HEADER_STAMP] = ",".join(entries).encode()
    said[HEADER_UPSTREAM] = upstream.encode()
    said |= shadow(world, experiments, enrolled)
    if world.transparent and upstream != baseline:
        said[HEADER_HOP] = values.hop_mark(
            f"{int(world.now_s):x}".encode(),
            key=world.key,
            tenant=world.snapshot.tenant,
            request_id=first(headers, HEADER_REQUEST_ID) or b"",
        )
    return said


def shadow(
    world: World, experiments: list[ExperimentPlan], enrolled: list[Enrolled]
) -> dict[str, bytes]:
    """The copy: of the first experiment of the target that mirrors, by layer order."""
    mirroring = [e for e in experiments if e.HasField("shadow") and is_open(world, e)]
    for one in enrolled:
        if not mirroring or one.experiment.name != mirroring[0].name or one.forced:
            continue
        plan = one.experiment.shadow
        place = bucket(one.experiment.salt, one.unit.value)
        if plan.variant != one.variant and within(plan.ranges, place):
            [variant] = [v for v in one.experiment.variants if v.name == plan.variant]
            marker = f"{one.experiment.name};{one.experiment.epoch};{plan.variant}"
            return {
                HEADER_SHADOW: variant.cluster.cluster.encode(),
                HEADER_SHADOW_VARIANT: marker.encode(),
            }
    return {}


def is_decided(world: World, headers: Headers) -> bool:
    """Whether a peer's mark is on the request."""
    mark = first(headers, HEADER_HOP)
    if mark is None:
        return False
    return values.is_hop(
        mark,
        key=world.key,
        tenant=world.snapshot.tenant,
        request_id=first(headers, HEADER_REQUEST_ID) or b"",
        now_s=world.now_s,
    )
