"""Answers to Envoy as bytes, built but for what differs from request to request.

Owns the encoding of a ProcessingResponse that stamps headers, and the answer of each combination of
assignments: its first request builds it, later ones join its parts around the unit's hash. Refuses
to decide anything: who gets what is the caller's.

The bytes are written here and not by protobuf, because a combination that is not at hand has to be
built while a request waits; `tests/sidecar/test_answers.py` holds the two against each other.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from sidecar.outcome import Tally
from turnout.contract import (
    HEADER_HOP,
    HEADER_PARAMETER_PREFIX,
    HEADER_SET_COOKIE,
    HEADER_SHADOW,
    HEADER_SHADOW_VARIANT,
    HEADER_STAMP,
    HEADER_UPSTREAM,
    HEADER_VARIANT,
    HOP_MAC_BYTES,
    LAYER_MODELS,
    SESSION_ID_HEX_DIGITS,
    STAMP_FIELD_SEPARATOR,
    STAMP_SEPARATOR,
    UNIT_HASH_HEX_DIGITS,
)

NO_SLOT: Final = -1
FORCED_MARK: Final = "f"
# 8 hex digits of seconds (until the year 2106), a dot, the mac.
HOP_MARK_BYTES: Final = 8 + 1 + 2 * HOP_MAC_BYTES
# What is put in when a request is answered: hashes of the units 0, 1, ...; then these.
FILL_SESSION: Final = -1
FILL_HOP: Final = -2
# HeaderValueOption.append_action OVERWRITE_IF_EXISTS_OR_ADD: Envoy 1.40 ignores it and overwrites;
# said, so that it means the same elsewhere.
_ACTION: Final = b"\x18\x02"
_ACTION_BYTES: Final = len(_ACTION)
# CommonResponse.clear_route_cache: without it the stamped request takes the route that was chosen
# before the stamp.
_CLEAR_ROUTE_CACHE: Final = b"\x28\x01"


class Arm(NamedTuple):
    """What one experiment gives to a unit.

    Attributes:
        experiment: Its name.
        epoch: Its epoch.
        layer: Its layer.
        variant: Name of the variant.
        cluster: Where the variant is served; "" in layers that route nothing.
        parameters: Header name -> value, in the order of the names.
        shadow: (variant, cluster) that gets a copy, None = no copy.
        forced: By an override, not by its bucket.
        unit: Number of the unit among the target's.
        slot: Decided counter, or NO_SLOT.
        stratum: The slice of the traffic that the request is of; 0 = none that has a name.
    """

    experiment: str
    epoch: int
    layer: str
    variant: str
    cluster: str
    parameters: tuple[tuple[str, str], ...]
    shadow: tuple[str, str] | None
    forced: bool
    unit: int
    slot: int
    stratum: int = 0


class Template:
    """The answer to one combination of assignments.

    Attributes:
        parts: Bytes around what is put in; one more than `fills`.
        fills: What goes between them: numbers of units, FILL_SESSION, FILL_HOP.
        slots: Decided counters.
        tally: What the answer counts as.
    """

    __slots__ = ("fills", "parts", "slots", "tally")

    def __init__(
        self, parts: Sequence[bytes], fills: Sequence[int], slots: Sequence[int], tally: Tally
    ) -> None:
        self.parts = tuple(parts)
        self.fills = tuple(fills)
        self.slots = tuple(slots)
        self.tally = tally

    def filled(self, fill: Callable[[int], bytes]) -> bytes:
        """The answer with everything put in."""
        pieces = [self.parts[0]]
        for number, part in zip(self.fills, self.parts[1:], strict=True):
            pieces += (fill(number), part)
        return b"".join(pieces)


class Encoded(NamedTuple):
    """An arm's part of an answer.

    Attributes:
        stamp: Its entry, after a separator, up to the unit's hash.
        route: Headers that name variant and cluster, encoded; b"" = the arm routes nothing.
        rest: Its other headers, encoded.
        slots: Its decided counter.
    """

    stamp: bytes
    route: bytes
    rest: bytes
    slots: tuple[int, ...]


def encoded_arm(arm: Arm) -> Encoded:
    """An arm's part of what an Assembler makes; the arm is not forced."""
    route = b""
    if arm.layer == LAYER_MODELS:
        route = _set_header(HEADER_VARIANT.encode(), arm.variant.encode())
        route += _set_header(HEADER_UPSTREAM.encode(), arm.cluster.encode())
    rest = [*_shadow_headers(arm), *((name, value.encode()) for name, value in arm.parameters)]
    return Encoded(
        STAMP_SEPARATOR.encode() + _stamp_entry(arm)[:-UNIT_HASH_HEX_DIGITS],
        route,
        b"".join(_set_header(name.encode(), value) for name, value in rest),
        (arm.slot,) if arm.slot != NO_SLOT else (),
    )


class Assembler:
    """Makes the answers of one target whose combinations are too many to have templates."""

    __slots__ = ("_baseline", "_heads", "_stamp_heads")

    def __init__(self, baseline: str) -> None:
        """`baseline` is the cluster that serves when no arm names one."""
        self._baseline = _set_header(HEADER_UPSTREAM.encode(), baseline.encode())
        # What precedes a mutation, and a stamp, of some length: up to 16 layers' worth of them.
        self._heads: dict[int, bytes] = {}
        self._stamp_heads: dict[int, bytes] = {}

    def answer(self, arms: Sequence[Encoded], unit_hash: bytes) -> bytes:
        """The answer to a combination: as `template` filled, with the headers in another order.

        Args:
            arms: Of one unit; the one that routes, if any, is the first.
            unit_hash: The unit's.
        """
        # The first entry's separator gives way to the head, which ends where the value begins.
        stamp = unit_hash.join([arm.stamp for arm in arms]) + unit_hash
        length = len(stamp) - 1
        stamp_head = self._stamp_heads.get(length)
        if stamp_head is None:
            whole = _set_header(HEADER_STAMP.encode(), bytes(length))
            stamp_head = self._stamp_heads[length] = whole[: -length - _ACTION_BYTES]
        route = arms[0].route or self._baseline
        rest = b"".join([arm.rest for arm in arms])
        size = len(stamp_head) + length + _ACTION_BYTES + len(route) + len(rest)
        head = self._heads.get(size)
        if head is None:
            whole = _response(bytes(size))
            head = self._heads[size] = whole[: -size - len(_CLEAR_ROUTE_CACHE)]
        pieces = (head, stamp_head, stamp[1:], _ACTION, route, rest, _CLEAR_ROUTE_CACHE)
        return b"".join(pieces)


def template(
    arms: Sequence[Arm],
    tally: Tally,
    *,
    baseline: str,
    session: tuple[str, int] | None = None,
    hop: bool = False,
) -> Template:
    """Build the answer to one combination.

    Args:
        arms: At most one for each layer, in the order of the layers; one at least.
        tally: What the answer counts as.
        baseline: Cluster that serves when no arm names one.
        session: Name and Max-Age in seconds of the cookie of a session that has just begun.
        hop: Sidecars intercept: mark what goes to another cluster than the baseline.
    """
    routed = next((arm for arm in arms if arm.layer == LAYER_MODELS), None)
    cluster = routed.cluster if routed is not None else baseline
    entries: list[tuple[str, bytes]] = []
    fills = [arm.unit for arm in arms]
    if routed is not None:
        entries.append((HEADER_VARIANT, routed.variant.encode()))
    entries.append((HEADER_STAMP, STAMP_SEPARATOR.encode().join(map(_stamp_entry, arms))))
    entries.append((HEADER_UPSTREAM, cluster.encode()))
    for arm in arms:
        entries += _shadow_headers(arm)
    for arm in arms:
        entries += ((name, value.encode()) for name, value in arm.parameters)
    if session is not None:
        entries.append(_cookie(session))
        fills.append(FILL_SESSION)
    if hop and cluster != baseline:
        entries.append((HEADER_HOP, b"\0" * HOP_MARK_BYTES))
        fills.append(FILL_HOP)
    slots = [arm.slot for arm in arms if arm.slot != NO_SLOT]
    return Template(_parts(encode(entries), fills), fills, slots, tally)


def cookie_template(session: tuple[str, int], tally: Tally, *, default: str) -> Template:
    """Build the answer that stamps nothing, and tells the client of its new session.

    Whoever is held out or outside of a layer's reserve keeps to that only with a cookie: without
    one it would draw again, request after request, until it is enrolled.

    Args:
        session: As in `template`.
        tally: What the answer counts as.
        default: Cluster for requests that get no variant; "" = Envoy's routes know it.
    """
    entries = [_cookie(session)]
    if default:
        entries.append((HEADER_UPSTREAM, default.encode()))
    return Template(_parts(encode(entries), [FILL_SESSION]), [FILL_SESSION], [], tally)


def _cookie(session: tuple[str, int]) -> tuple[str, bytes]:
    """The header that has Envoy set a session's cookie, with a place for its id."""
    name, max_age_s = session
    tail = f"; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Lax"
    return HEADER_SET_COOKIE, f"{name}=".encode() + b"\0" * SESSION_ID_HEX_DIGITS + tail.encode()


def encode(headers: Iterable[tuple[str, bytes]]) -> bytes:
    """A ProcessingResponse that sets headers and has Envoy choose the route again."""
    return _response(b"".join(_set_header(name.encode(), value) for name, value in headers))


def _response(mutation: bytes) -> bytes:
    """HeadersResponse.response in ProcessingResponse.request_headers."""
    common = b"\x12" + _counted(mutation) + _CLEAR_ROUTE_CACHE
    return b"\x0a" + _counted(b"\x0a" + _counted(common))


def _set_header(name: bytes, value: bytes) -> bytes:
    """One HeaderMutation.set_headers: raw_value is the only one of the two that Envoy reads."""
    header = b"\x0a" + _counted(name) + (b"\x1a" + _counted(value) if value else b"")
    return b"\x0a" + _counted(b"\x0a" + _counted(header) + _ACTION)


def _counted(data: bytes) -> bytes:
    """A length-delimited field's content: its length as a varint, and itself."""
    length = len(data)
    return _varint(length) + data


def _varint(number: int) -> bytes:
    digits = []
    while number >= 0x80:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*digits, number))


def _stamp_entry(arm: Arm) -> bytes:
    separator = STAMP_FIELD_SEPARATOR
    named = separator.join((arm.experiment, str(arm.epoch), arm.variant, str(arm.stratum), ""))
    forced = f"{separator}{FORCED_MARK}" if arm.forced else ""
    return named.encode() + b"\0" * UNIT_HASH_HEX_DIGITS + forced.encode()


def _shadow_headers(arm: Arm) -> list[tuple[str, bytes]]:
    if arm.shadow is None:
        return []
    variant, cluster = arm.shadow
    marker = STAMP_FIELD_SEPARATOR.join((arm.experiment, str(arm.epoch), variant))
    return [(HEADER_SHADOW, cluster.encode()), (HEADER_SHADOW_VARIANT, marker.encode())]


def parameter_headers(parameters: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """A variant's parameters as headers."""
    return tuple(
        (HEADER_PARAMETER_PREFIX + key.lower(), value) for key, value in sorted(parameters)
    )


def _parts(answer: bytes, fills: Sequence[int]) -> list[bytes]:
    """Cut an answer where something goes in; no validated value holds a control character."""
    widths = {FILL_SESSION: SESSION_ID_HEX_DIGITS, FILL_HOP: HOP_MARK_BYTES}
    parts = []
    for fill in fills:
        width = widths.get(fill, UNIT_HASH_HEX_DIGITS)
        part, place, answer = answer.partition(b"\0" * width)
        assert place, "the answer has a place for everything that goes in"
        parts.append(part)
    return [*parts, answer]
