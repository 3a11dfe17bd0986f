"""The life of one request: the bytes Envoy sent, to the bytes it gets back.

Owns the order of the tests and what each outcome is called. No clock and no chance (both are asked
of the caller), no state: counting is the caller's, with the outcome.

The order: target; hop mark, where sidecars intercept; the experiments' units; then in each layer,
for each experiment: holdout, allow-list, force token, segment, layer, bucket. In a layer at most
one experiment has a unit: one that forces it before all others. An experiment whose start gate is
closed is not looked at. A token that is not believed, or that names nothing which may serve, is
ignored and counted. Of several headers of one name the first is the unit, token or mark.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Final

from xxhash import xxh3_64_intdigest

from sidecar.answers import FILL_HOP, FILL_SESSION, Encoded
from sidecar.arms import Headers, stratum_of
from sidecar.matching import first_that_fits
from sidecar.outcome import INVALID_TOKEN, Answer, Outcome, Tally
from sidecar.plan import Plan
from sidecar.predicates import Test
from sidecar.requests import MalformedRequest, Page, page_of, read_headers
from sidecar.tokens import ForceToken
from sidecar.units import RANDOM_UNIT_BYTES, Request
from turnout.contract import (
    BUCKET_COUNT,
    HEADER_FORCE,
    HEADER_HOP,
    HEADER_REQUEST_ID,
    UNIT_BYTES_MAX,
)

__all__ = [
    "RANDOM_UNIT_BYTES",
    "MalformedRequest",
    "Verdict",
    "assign",
    "decide",
    "decide_unusual",
    "process",
]

# What to send (None: Trailers-Only status 0, Envoy's own route serves), decided counters to raise,
# and what the answer counts as. A plain tuple, as one is made for every request.
Verdict = tuple[bytes | None, tuple[int, ...], Tally]

NO_SNAPSHOT: Final[Verdict] = (None, (), Tally("", Outcome.NO_SNAPSHOT))
SHED: Final[Verdict] = (None, (), Tally("", Outcome.SHED))
_NO_TARGET: Final[Verdict] = (None, (), Tally("", Outcome.NO_TARGET))


def process(
    plan: Plan,
    request: bytes,
    *,
    random_unit: Callable[[], bytes],
    now_s: Callable[[], float],
) -> Answer:
    """Decide one request.

    Args:
        plan: The plan that serves.
        request: One encoded ProcessingRequest.
        random_unit: Makes RANDOM_UNIT_BYTES fresh random bytes; called only when a unit needs them.
        now_s: Unix time; called only for force tokens and hop marks.

    Raises:
        MalformedRequest: The bytes are not a ProcessingRequest with request headers.
    """
    response, slots, tally = decide(plan, request, random_unit, now_s)
    return Answer(response, tally.outcome, tally.target, slots, tally.flags)


def decide(
    plan: Plan, request: bytes, random_unit: Callable[[], bytes], now_s: Callable[[], float]
) -> Verdict:
    """`process` without the making of an Answer."""
    found = plan.decoder.quick(request)
    if found is not None:
        return assign(plan, found[0], found[1], request, random_unit, now_s)
    return decide_unusual(plan, request, random_unit, now_s)


def decide_unusual(
    plan: Plan, request: bytes, random_unit: Callable[[], bytes], now_s: Callable[[], float]
) -> Verdict:
    """`decide` for a request that `Decoder.quick` does not read.

    Raises:
        MalformedRequest: As `process`.
    """
    headers, first = read_headers(request)
    page = page_of(plan.matcher, headers, first)
    return _assign_fully(plan, page, headers, first, request, random_unit, now_s)


def assign(
    plan: Plan,
    page: Page,
    headers: dict[str, bytes],
    request: bytes,
    random_unit: Callable[[], bytes],
    now_s: Callable[[], float],
) -> Verdict:
    """What follows decoding, for a request without repeated headers.

    Args:
        plan: The plan that serves.
        page: As `Decoder.quick` found it.
        headers: Likewise.
        request: Encoded, for what is not in the headers.
        random_unit: As in `process`.
        now_s: Likewise.
    """
    target = page.target
    if target is None:
        target = first_that_fits(page.candidates, headers)
        if target is None:
            return _NO_TARGET
    quick = target.bound.quick
    if quick is None or HEADER_FORCE in headers:
        return _assign_fully(plan, page, headers, None, request, random_unit, now_s)
    if quick.header:
        unit = headers.get(quick.header)
    else:
        taken = quick.source.take(Request(headers, None, page.path, request), random_unit)
        unit = taken.value
        if taken.several or taken.issued:
            # The unit that was drawn is kept: another would be drawn.
            drawn = bytes.fromhex(unit.decode()) if taken.issued else b""
            return _assign_fully(plan, page, headers, None, request, lambda: drawn, now_s)
    if not unit:
        return target.default, (), quick.no_unit
    if len(unit) > UNIT_BYTES_MAX:
        return target.default, (), quick.invalid_unit
    if unit in quick.overridden:
        return _assign_fully(plan, page, headers, None, request, lambda: unit, now_s)
    held_salt = quick.held_salt
    if held_salt is not None:
        place = xxh3_64_intdigest(held_salt + unit) % BUCKET_COUNT
        if bisect_right(quick.held_edges, place) & 1:
            return target.default, (), quick.held_out
    few = quick.few
    number = 0
    arms: list[Encoded] = []
    last: Test | None = None
    inside = True
    for layer in quick.layers:
        member = layer.only
        if member is None:
            place = xxh3_64_intdigest(layer.salt + unit) % BUCKET_COUNT
            member = layer.members[bisect_right(layer.starts, place)]
            if member is None:
                continue
        segment = member.segment
        if segment is not last:
            last = segment
            inside = segment is None or segment(headers, unit)
        if inside:
            place = xxh3_64_intdigest(member.salt + unit) % BUCKET_COUNT
            piece = bisect_right(member.edges, place)
            if member.strata:
                piece += member.pieces * stratum_of(member.strata, headers, unit)
            number += member.codes[piece]
            if not few:
                arms.append(member.arms[piece])
    if not number:
        return target.default, (), quick.why_not(headers, unit)
    unit_hash = plan.hasher.hex_digits(unit)
    template = quick.templates.get(number) if few else None
    if template is None:
        return quick.answer(number, arms, unit_hash)
    return unit_hash.join(template.parts), template.slots, quick.stamped


def _assign_fully(
    plan: Plan,
    page: Page,
    headers: Headers,
    first: Mapping[str, bytes] | None,
    request: bytes,
    random_unit: Callable[[], bytes],
    now_s: Callable[[], float],
) -> Verdict:
    """Assign a request by the whole of the rules."""
    target = page.target or first_that_fits(page.candidates, headers)
    if target is None:
        return _NO_TARGET
    firsts = headers if first is None else {**headers, **first}
    if plan.hop is not None and HEADER_HOP in firsts:
        request_id = firsts.get(HEADER_REQUEST_ID, b"")
        if plan.hop.is_good(firsts[HEADER_HOP], request_id, now_s()):
            return None, (), target.tally(Outcome.PEER)
    if not target.bound.layers:
        return target.default, (), target.bound.idle
    token, flags = _token(plan, firsts, now_s)
    found = target.decide(Request(headers, first, page.path, request), token, random_unit)
    flags |= found.flags
    # A session that has just begun is told of in any case: without its cookie the client would
    # draw another unit next time, and be held out or outside of a layer only until one enrols it.
    if not found.number and found.issued is None:
        return target.default, (), target.tally(found.furthest, flags)
    template = target.template(found.number, found.issued)

    def fill(place: int) -> bytes:
        if place == FILL_HOP:
            assert plan.hop is not None, "only then has an answer a place for it"
            return plan.hop.make(firsts.get(HEADER_REQUEST_ID, b""), now_s())
        if place == FILL_SESSION:
            assert found.issued is not None, "likewise"
            return found.units[found.issued].value
        return plan.hasher.hex_digits(found.units[place].value)

    outcome = Outcome.STAMPED if found.number else found.furthest
    tally = template.tally if found.number and not flags else target.tally(outcome, flags)
    return template.filled(fill), template.slots, tally


def _token(
    plan: Plan, headers: Headers, now_s: Callable[[], float]
) -> tuple[ForceToken | None, int]:
    """The force token that is believed; and the flag of one that is not."""
    text = headers.get(HEADER_FORCE)
    if text is None:
        return None, 0
    token = plan.tokens.verify(text, now_s())
    if token is None or not plan.serves(token.experiment, token.variant):
        return None, INVALID_TOKEN
    return token, 0
