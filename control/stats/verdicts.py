"""Verdicts: the closed decision table from evidence to one of ten answers, with reasons.

Owns the table, its order (harm before validity before benefit) and the words of the reasons.
Refuses to estimate: every number comes in ready, oriented so that + is good, valid at any look.
Refuses to act: what a verdict does to traffic is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final, NamedTuple

from control.stats.looks import (
    Alarm,
    Arm,
    Breaker,
    Doubt,
    Effect,
    Evidence,
    Flips,
    Guardrail,
    Look,
    Policy,
    Rule,
    Stratum,
    Window,
    check_look,
    oriented,
)

__all__ = [
    "HOLD",
    "HOLD_REPLACES",
    "TABLE",
    "WEEK_S",
    "WINDOW_ERRORS_LEAST",
    "WINDOW_UNITS_LEAST",
    "Alarm",
    "Arm",
    "Breaker",
    "Doubt",
    "Effect",
    "Evidence",
    "Flips",
    "Guardrail",
    "Kind",
    "Look",
    "Policy",
    "Reason",
    "Row",
    "Rule",
    "Stratum",
    "Verdict",
    "Window",
    "judge",
    "oriented",
    "projected_units",
]

WINDOW_UNITS_LEAST: Final = 300  # with a minimum count alone 33-63 % false rollbacks a day
WINDOW_ERRORS_LEAST: Final = 5.0  # pooled standard errors
WEEK_S: Final = 7 * 24 * 3600.0

Value = float | int | str | None


class Kind(Enum):
    """What to do. INVALID, WARMING_UP and INCONCLUSIVE stand outside the order of harm."""

    ROLLBACK = "ROLLBACK"
    INVALID = "INVALID"
    WARMING_UP = "WARMING_UP"
    HOLD = "HOLD"
    PROMOTE = "PROMOTE"
    KEEP_CONTROL_WORSE = "KEEP_CONTROL_WORSE"
    KEEP_CONTROL_FUTILE = "KEEP_CONTROL_FUTILE"
    NO_DIFFERENCE = "NO_DIFFERENCE"
    CONTINUE = "CONTINUE"
    INCONCLUSIVE = "INCONCLUSIVE"


class Reason(NamedTuple):
    """code: Stable name. text: A plain clause with the numbers. values: Those; None: not finite."""

    code: str
    text: str
    values: Mapping[str, Value]


class Verdict(NamedTuple):
    """kind: Exactly one. reasons: Why, at least one. notes: What did not decide but matters.

    ships_candidate: PROMOTE, or NO_DIFFERENCE under `ship_if_non_inferior` with every guardrail
    non-inferior, no stratum harmed and no alarm.
    """

    kind: Kind
    reasons: tuple[Reason, ...]
    notes: tuple[Reason, ...]
    ships_candidate: bool

    @property
    def sentence(self) -> str:
        """All reasons as one plain sentence."""
        words = self.kind.value.replace("_", " ").lower()
        return f"{words}: {'; '.join(reason.text for reason in self.reasons)}."


Reasons = tuple[Reason, ...]


class Row(NamedTuple):
    """One row: where it stands, when it holds (its reasons; none: it does not), what it yields."""

    number: str
    when: Callable[[Look, Policy], Reasons]
    yields: Kind


def judge(look: Look, policy: Policy) -> Verdict:
    """The one verdict of a look.

    Args:
        look: Anytime-valid evidence, oriented; NaN, a missing spread or ends out of order are
            answered WARMING_UP with the reason, unless another input shows harm or invalidity.
        policy: Fixed before the first look.

    Raises:
        ValueError: A count, margin, limit or alpha is outside its range.

    Source: the usual superiority-or-stop rule made total; non-inferior guardrails as in Spotify's
    decision rule (arXiv 2402.11609), but harm before validity. O(inputs).
    """
    check_look(look)
    row, reasons = next((row, why) for row in TABLE if (why := row.when(look, policy)))
    kind, doubts = row.yields, HOLD.when(look, policy)
    if kind in HOLD_REPLACES and doubts:
        kind, reasons = HOLD.yields, doubts
    ships = kind is Kind.PROMOTE or (
        kind is Kind.NO_DIFFERENCE and policy.ship_if_non_inferior and not _blocked(look)
    )
    return Verdict(kind, reasons, _notes(look, policy), ships)


def _rollback(look: Look, policy: Policy) -> Reasons:
    return (
        *(
            _reason("fast_lane", "harm in {about}: ln e {log_e:.4g} >= {threshold:.4g}", **lane)
            for lane in _fired(look.fast_lanes)
        ),
        *_harm(look.primary, policy.harm_tolerance),
        *(r for g in look.guardrails for r in _harm(g.effect, g.tolerance, g.stratum)),
        *(
            _reason(
                "window",
                "{signal} is worse by {difference:.4g} > {limit:.4g} in the window "
                "({n_control} and {n_treatment} units, standard error {std_error:.4g})",
                **w._asdict(),
            )
            for w in look.windows
            if min(w.n_control, w.n_treatment) >= WINDOW_UNITS_LEAST
            and w.difference > w.limit
            and w.std_error > 0
            and w.difference > WINDOW_ERRORS_LEAST * w.std_error
        ),
        *(
            _reason(
                "breaker",
                "{signal} broke its limit {limit:.4g} in {broken} windows of {needed} needed",
                **b._asdict(),
            )
            for b in look.breakers
            if b.broken >= b.needed
        ),
    )


def _invalid(look: Look, policy: Policy) -> Reasons:
    ratio = "sample ratio mismatch in {about}: ln e {log_e:.4g} >= {threshold:.4g}"
    loss = "{about} is missing more often in one arm: ln e {log_e:.4g} >= {threshold:.4g}"
    return (
        *(_reason("sample_ratio", ratio, **fired) for fired in _fired(look.sample_ratios)),
        *(
            _reason(
                "assignment_flips",
                "{flipped} of {units} units of {epoch} were in more than one arm (> {limit:.4g})",
                limit=policy.max_flip_share,
                **f._asdict(),
            )
            for f in look.flips
            if f.flipped > policy.max_flip_share * f.units
        ),
        *(_reason("differential_loss", loss, **fired) for fired in _fired(look.losses)),
    )


def _warming_up(look: Look, policy: Policy) -> Reasons:
    reasons = [
        _unusable(look.primary, open_ends=False),
        *(_unusable(g.effect, g.stratum) for g in look.guardrails),
        *(_unusable(s.effect, s.name) for s in look.strata),
        *(
            _reason("no_number", "{about} has no e-value", about=process.about)
            for process in (*look.fast_lanes, *look.sample_ratios, *look.losses)
            if math.isnan(process.log_e)
        ),
        *(
            _reason("no_number", "the window of {about} has no numbers", about=w.signal)
            for w in look.windows
            if not (math.isfinite(w.difference) and math.isfinite(w.std_error))
        ),
    ]
    floors: tuple[tuple[str, float], ...] = (
        ("units", policy.min_units),
        ("buckets", policy.min_buckets),
        ("events", policy.min_events),
        ("non_events", policy.min_events),
        ("label_coverage", policy.min_label_coverage),
    )
    for side, arm in (("control", look.control), ("candidate", look.treatment)):
        for name, floor in floors:
            seen = getattr(arm, name)
            if seen is not None and not seen >= floor:
                text = f"{name.replace('_', ' ')} of {{arm}} {{seen:.4g}} < {{floor:.4g}}"
                reasons.append(_reason(f"few_{name}", text, arm=side, seen=seen, floor=floor))
    if not look.duration_s >= policy.min_duration_s:
        text = "ran {seen:.4g} s of {floor:.4g} s"
        seen = look.duration_s
        reasons.append(_reason("short_duration", text, seen=seen, floor=policy.min_duration_s))
    return tuple(reason for reason in reasons if reason is not None)


def _hold(look: Look, policy: Policy) -> Reasons:
    doubts = (
        _reason(alarm.doubt, f"{alarm.doubt.replace('_', ' ')} in {{about}}", about=alarm.about)
        for alarm in look.alarms
    )
    harmed = (_blame("stratum_harm", s.effect, "is harmed", s.name) for s in _harmed(look))
    unclear = _unclear(look) if _passes(look.primary, policy) else ()
    return (*doubts, *harmed, *unclear)


def _promote(look: Look, policy: Policy) -> Reasons:
    if not _passes(look.primary, policy) or _unclear(look) or _harmed(look):
        return ()
    return _primary("better", look, policy, "improved by at least {minimum:.4g}")


def _worse(look: Look, policy: Policy) -> Reasons:
    return _primary("worse", look, policy, "is worse") if look.primary.high < 0 else ()


def _futile(look: Look, policy: Policy) -> Reasons:
    reached = look.primary.high >= policy.minimum_improvement
    if reached or look.primary.low >= -policy.equivalence:
        return ()
    return _primary("futile", look, policy, "cannot improve by {minimum:.4g}")


def _no_difference(look: Look, policy: Policy) -> Reasons:
    low, d = look.primary.low, policy.minimum_improvement
    if look.primary.high >= d or low < -policy.equivalence:
        return ()
    if low >= 0:
        return _primary("below_minimum", look, policy, "improved, but by less than {minimum:.4g}")
    return _primary("equivalent", look, policy, "neither fell by {equivalence:.4g} nor rose enough")


def _inconclusive(look: Look, policy: Policy) -> Reasons:
    return _maximum(look, policy)


def _continue(look: Look, policy: Policy) -> Reasons:
    why = _primary("undecided", look, policy, "may still improve by {minimum:.4g}")
    units = projected_units(look, policy)
    if units is None:
        return why
    text = "about {units:.3g} units in all if the effect stays"
    return (*why, _reason("projected_units", text, units=units))


# Rows in the order they are tried; row 4 (HOLD) comes last and replaces only PROMOTE or CONTINUE.
TABLE: Final = (
    Row("1", _rollback, Kind.ROLLBACK),
    Row("2", _invalid, Kind.INVALID),
    Row("3", _warming_up, Kind.WARMING_UP),
    Row("5", _promote, Kind.PROMOTE),
    Row("6", _worse, Kind.KEEP_CONTROL_WORSE),
    Row("7", _futile, Kind.KEEP_CONTROL_FUTILE),
    Row("8", _no_difference, Kind.NO_DIFFERENCE),
    Row("9 at the maximum", _inconclusive, Kind.INCONCLUSIVE),
    Row("9", _continue, Kind.CONTINUE),
)
HOLD: Final = Row("4", _hold, Kind.HOLD)
HOLD_REPLACES: Final = frozenset({Kind.PROMOTE, Kind.CONTINUE})


def projected_units(look: Look, policy: Policy) -> float | None:
    """Units of both arms at which rows 5, 7 or 8 would decide, if the point effect stays.

    Widths are taken to fall with the root of the units, a little faster than they do. None: no
    number of units decides at this effect, or the primary has no interval.
    """
    p, d = look.primary, policy.minimum_improvement
    if _unusable(p, open_ends=False) is not None:
        return None
    if p.effect < d:
        width, target = p.high - p.effect, d - p.effect
    else:
        width, target = p.effect - p.low, p.effect - (d if policy.rule == "strict" else 0.0)
    if target <= 0:
        return None
    factor = max(width / target, 1.0)
    units = (look.control.units + look.treatment.units) * factor * factor
    return units if math.isfinite(units) else None


def _passes(primary: Effect, policy: Policy) -> bool:
    gauge = primary.effect if policy.rule == "point" else primary.low
    return primary.low > 0 and gauge >= policy.minimum_improvement


def _unclear(look: Look) -> Reasons:
    return tuple(
        _blame("guardrail_unclear", g.effect, "may be worse by {margin:.4g}", g.stratum, g.margin)
        for g in look.guardrails
        if not g.effect.low > -g.margin
    )


def _harmed(look: Look) -> tuple[Stratum, ...]:
    return tuple(s for s in look.strata if s.effect.high < 0)


def _blocked(look: Look) -> bool:
    return bool(_unclear(look) or _harmed(look) or look.alarms)


def _harm(effect: Effect, tolerance: float, stratum: str = "") -> Reasons:
    if _unusable(effect) is not None or not (effect.high < 0 and effect.effect <= -tolerance):
        return ()
    return (_blame("harm", effect, "is worse (tolerated {margin:.4g})", stratum, tolerance),)


def _unusable(effect: Effect, stratum: str = "", *, open_ends: bool = True) -> Reason | None:
    e = effect
    ends = (e.low < math.inf and e.high > -math.inf) if open_ends else math.isfinite(e.high - e.low)
    if ends and math.isfinite(e.effect) and e.low <= e.effect <= e.high and e.low < e.high:
        return None
    said = "has no spread" if e.low == e.high else "has no usable interval"
    return _blame("no_spread" if e.low == e.high else "no_interval", effect, said, stratum)


def _maximum(look: Look, policy: Policy) -> Reasons:
    units = look.control.units + look.treatment.units
    text = "the maximum of {maximum:.6g} {of} is reached"
    limits = (("s", look.duration_s, policy.max_duration_s), ("units", units, policy.max_units))
    return tuple(
        _reason("maximum_reached", text, of=of, maximum=maximum, seen=seen)
        for of, seen, maximum in limits
        if maximum is not None and seen >= maximum
    )


def _notes(look: Look, policy: Policy) -> Reasons:
    reached = _maximum(look, policy)
    if look.duration_s >= WEEK_S:
        return reached
    text = "{seen:.4g} s is less than a week: days of the week are not balanced"
    return (*reached, _reason("below_a_week", text, seen=look.duration_s))


def _fired(processes: tuple[Evidence, ...]) -> tuple[dict[str, Value], ...]:
    return tuple(
        {"about": p.about, "log_e": p.log_e, "threshold": -math.log(p.alpha)}
        for p in processes
        if p.log_e >= -math.log(p.alpha)
    )


def _primary(code: str, look: Look, policy: Policy, said: str) -> Reasons:
    p = look.primary
    return (
        _reason(
            code,
            "{metric} " + said + " (effect {effect:.4g}, [{low:.4g}, {high:.4g}])",
            minimum=policy.minimum_improvement,
            equivalence=policy.equivalence,
            **p._asdict(),
        ),
    )


def _blame(code: str, effect: Effect, said: str, stratum: str = "", margin: float = 0.0) -> Reason:
    where = " in {stratum} " if stratum else " "
    numbers = " (effect {effect:.4g}, [{low:.4g}, {high:.4g}])"
    text = "{metric}" + where + said + numbers
    return _reason(code, text, stratum=stratum, margin=margin, **effect._asdict())


def _reason(code: str, template: str, **values: Value) -> Reason:
    shown = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return Reason(code, template.format(**values), shown)
