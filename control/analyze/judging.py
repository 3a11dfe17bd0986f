"""From compared metrics to a decision, by the closed table of `control.stats.verdicts`.

Owns what analysed data give as evidence: the effect over strata, sample ratios, units in two arms,
losses. With several treatments each is judged at alpha / treatments; the answer is PROMOTE if one
passes, else the harm, else the doubt, else what is open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np

from control.analyze.estimate import UNITS_LEAST, Compared, Settings
from control.analyze.metrics import HIGHER
from control.analyze.result import Arm, MetricResult, Reason
from control.analyze.shares import ALPHA
from control.stats import verdicts
from control.stats.confseq import asymptotic_sequence
from control.stats.counts import count_evidence
from control.stats.errors import FloatArray
from control.stats.means import estimate
from control.stats.strata import stratified
from control.stats.verdicts import Kind

GUARDRAIL_ALPHA: Final = 0.01  # one-sided, over all guardrails
HETEROGENEITY_ALPHA: Final = 0.001

# Of several treatments' verdicts the first of these is the answer.
ORDER: Final = (
    Kind.PROMOTE,
    Kind.ROLLBACK,
    Kind.INVALID,
    Kind.HOLD,
    Kind.CONTINUE,
    Kind.WARMING_UP,
    Kind.INCONCLUSIVE,
    Kind.NO_DIFFERENCE,
    Kind.KEEP_CONTROL_FUTILE,
    Kind.KEEP_CONTROL_WORSE,
)


@dataclass(frozen=True, slots=True)
class Options:
    """What the decision needs beside the data; effects in the primary's own unit.

    fixed: Judge by the intervals of one look. final: No more data will come. duration_s: None:
    not known.
    """

    minimum_effect: float = 0.0
    equivalence: float = 0.0
    harm: float = 0.0
    rule: verdicts.Rule = "point"
    min_units: int = 100
    fixed: bool = False
    final: bool = False
    duration_s: float | None = None


class Part(NamedTuple):
    """A stratum: its name, the metric in it at alpha / strata, units of both arms."""

    name: str
    compared: Compared
    units: int


class Guard(NamedTuple):
    """A metric that must not get worse by more than `margin`: at alpha, and at its harm's.

    Both are the whole data's. strata, harm_strata: As of the primary, at these alphas / strata.
    """

    compared: Compared
    harm: Compared
    direction: str
    margin: float
    strata: Sequence[Part] = ()
    harm_strata: Sequence[Part] = ()


@dataclass(frozen=True, slots=True)
class Judged:
    """All that is known of one treatment.

    by_strata: The data have two strata or more. returning: As of `effect_over_strata`.
    """

    variant: str
    primary: Compared
    direction: str
    units: tuple[int, int]
    strata: Sequence[Part] = ()  # those with units of both arms
    by_strata: bool = False
    returning: int = 0
    guards: Sequence[Guard] = ()
    sample_ratios: Sequence[tuple[str, float, float]] = ()  # about, ln e, alpha
    flips: tuple[int, int] = (0, 0)  # in several arms, units
    missing: Mapping[str, tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=dict)


class Decision(NamedTuple):
    """The answer with its reasons; notes go to the warnings."""

    kind: str
    reasons: tuple[Reason, ...]
    notes: tuple[str, ...]


def decide(judged: Sequence[Judged], options: Options, settings: Settings) -> Decision:
    """The one decision over all treatments."""
    verdict_of = {each.variant: _judge(each, options, settings) for each in judged}
    best = min(verdict_of.values(), key=lambda verdict: ORDER.index(verdict.kind))
    several = len(judged) > 1
    ordered = sorted(verdict_of.items(), key=lambda item: ORDER.index(item[1].kind))
    reasons = []
    for variant, verdict in ordered:
        said = f"{variant} ({_words(verdict.kind)}): " if several else ""
        for reason in verdict.reasons:
            values = {"variant": variant, **reason.values}
            reasons.append(Reason(reason.code, said + _plain(reason), values))
    notes = dict.fromkeys(
        note.text
        for verdict in verdict_of.values()
        for note in verdict.notes
        if note.code != "below_a_week" or options.duration_s is not None
    )
    return Decision(best.kind.value, tuple(reasons), tuple(notes))


def effect_over_strata(
    whole: Compared,
    strata: Sequence[Part],
    settings: Settings,
    *,
    fixed: bool,
    returning: int = 0,
) -> MetricResult:
    """The effect averaged over the strata with values in both arms, by their units.

    Args:
        whole: Of all strata as if they were one, which a ramp biases; its names and units stay.
        strata: Those with units of both arms.
        settings: Of the sequence and the interval.
        fixed: Ends of the interval of one look stand for the sequence's.
        returning: Times that a unit is in one more stratum: those strata's errors go together.

    Returns:
        No interval of one look where events are too few for a variance, or no stratum has one; no
        sequence either where a stratum has none then, nor with fewer than UNITS_LEAST in an arm.
    """
    result = whole.result
    usable = [part for part in strata if part.compared.result.difference is not None]
    if whole.exact or not any(comparable(part.compared) for part in usable):
        return _by_exact_ends(result, strata)
    diffs = [part.compared.result.difference or 0.0 for part in usable]
    units = [part.units for part in usable]
    gates = _cautious_gates(usable)
    own = [part.compared.variance or gate for part, gate in zip(usable, gates, strict=True)]
    effect = stratified(diffs, own, units=units)
    one_look, any_look = (
        _variance(effect.weights, variances, units, returning) for variances in (own, gates)
    )
    arms = [sum(arm.n for arm in arms) for arms in zip(*map(_arms_of, usable), strict=True)]
    se = math.sqrt(one_look)
    interval = estimate(effect.diff, se, alpha=settings.alpha)
    sequence = asymptotic_sequence(
        effect.diff, any_look, n=sum(arms), n_star=settings.n_star, alpha=settings.alpha
    )
    # Of a small arm its own errors say too little for a sequence, of the whole as of its strata.
    told = min(arms) >= UNITS_LEAST
    ends = (interval.ci_low, interval.ci_high) if fixed else (sequence.ci_low, sequence.ci_high)
    return MetricResult(
        result.name,
        result.kind,
        result.variant,
        result.control,
        result.treatment,
        float(effect.diff),
        None,
        se,
        float(interval.ci_low),
        float(interval.ci_high),
        float(interval.p_value),
        float(ends[0]) if told or fixed else None,
        float(ends[1]) if told or fixed else None,
        float(sequence.p_value) if told else None,
    )


def _arms_of(part: Part) -> tuple[Arm, Arm]:
    return part.compared.result.control, part.compared.result.treatment


def _by_exact_ends(result: MetricResult, strata: Sequence[Part]) -> MetricResult:
    """All strata's own sequences hold together, so their average holds the average effect."""
    found = [part.compared.result for part in strata]
    units = [part.units for part in strata]

    def averaged(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return None
        return float(np.average(known, weights=units))

    return replace(
        result,
        difference=averaged([each.difference for each in found]),
        standard_error=None,
        ci_low=None,
        ci_high=None,
        p_value=None,
        cs_low=averaged([each.cs_low for each in found]),
        cs_high=averaged([each.cs_high for each in found]),
        always_valid_p=None,
    )


def _variance(
    weights: FloatArray, variances: Sequence[float], units: Sequence[int], returning: int
) -> float:
    """Of the weighted effect; two strata correlate by at most the share of units in both.

    A unit in m strata is counted m - 1 times in `returning`, so no two strata share more than that.
    """
    parts, n = weights * np.sqrt(variances), np.asarray(units, dtype=np.float64)
    together = np.minimum(returning / np.sqrt(np.outer(n, n)), 1.0)
    np.fill_diagonal(together, 1.0)
    return float(parts @ together @ parts)


def comparable(compared: Compared) -> bool:
    """Whether a stratum has a difference with a variance."""
    return compared.result.difference is not None and _gate(compared) > 0


def _cautious_gates(parts: Sequence[Part]) -> list[float]:
    """Variances of the strata's differences; no spread so far is not the certainty of none.

    A share that is 0 or 1 in both arms gets the rule of three's bound, 3 events of n; whatever else
    has no spread gets the largest variance of a unit in any other stratum.
    """
    own = [_gate(part.compared) for part in parts]
    room = [_room(part.compared.result) for part in parts]
    largest = max((gate / by for gate, by in zip(own, room, strict=True)), default=0.0)
    found = []
    for part, gate, by in zip(parts, own, room, strict=True):
        result = part.compared.result
        lent = largest
        if part.compared.exact:
            share = min(3 / (result.control.n + result.treatment.n), 0.5)
            lent = share * (1 - share)
        found.append(gate or lent * by)
    return found


def _room(result: MetricResult) -> float:
    """Of a variance per unit: what the difference of two means has of it."""
    return 1 / result.control.n + 1 / result.treatment.n


def _gate(compared: Compared) -> float:
    return compared.gate or compared.variance or 0.0


def _judge(each: Judged, options: Options, settings: Settings) -> verdicts.Verdict:
    fixed, units = options.fixed, sum(each.units)
    effect = each.primary.result
    if each.by_strata:
        effect = effect_over_strata(
            each.primary, each.strata, settings, fixed=fixed, returning=each.returning
        )
    look = verdicts.Look(
        primary=_effect(effect, each.direction, fixed),
        control=_arm(each, 0),
        treatment=_arm(each, 1),
        duration_s=options.duration_s or 0.0,
        guardrails=tuple(_guardrail(guard, each, options, settings) for guard in each.guards),
        strata=_strata(each, options),
        sample_ratios=tuple(verdicts.Evidence(*ratio) for ratio in each.sample_ratios),
        losses=tuple(_losses(each)),
        flips=(verdicts.Flips("the data", *each.flips),) if each.flips[0] else (),
        alarms=_alarms(each, effect) if each.by_strata else (),
    )
    policy = verdicts.Policy(
        minimum_improvement=options.minimum_effect,
        equivalence=options.equivalence,
        harm_tolerance=options.harm,
        rule=options.rule,
        min_units=options.min_units,
        max_units=max(units, 1) if options.final else None,
    )
    return _undecided(verdicts.judge(look, policy), each.primary.result)


def _undecided(verdict: verdicts.Verdict, primary: MetricResult) -> verdicts.Verdict:
    """Drift is a distance without good or bad: more data would not make it decide."""
    if primary.kind != "drift" or verdict.kind is not Kind.WARMING_UP:
        return verdict
    why = verdicts.Reason(
        "no_deciding_metric",
        f"{primary.name} is only measured and decides nothing: name a metric to decide by first",
        {"metric": primary.name},
    )
    return verdict._replace(kind=Kind.INCONCLUSIVE, reasons=(why,))


def _effect(result: MetricResult, direction: str, fixed: bool) -> verdicts.Effect:
    low, high = (
        (result.ci_low, result.ci_high)
        if fixed and result.standard_error is not None
        else (result.cs_low, result.cs_high)
    )
    missing = math.nan
    return verdicts.oriented(
        result.name,
        missing if result.difference is None else result.difference,
        low=missing if low is None else low,
        high=missing if high is None else high,
        direction=direction,
    )


def _arm(each: Judged, side: int) -> verdicts.Arm:
    events = None if each.primary.events is None else each.primary.events[side]
    return verdicts.Arm(
        units=each.units[side],
        events=None if events is None else events[0],
        non_events=None if events is None else events[1],
    )


def _open(effect: verdicts.Effect) -> verdicts.Effect:
    """What says nothing yet has no bound, which is no fault."""
    if math.isfinite(effect.effect) and math.isfinite(effect.high - effect.low):
        return effect
    point = effect.effect if math.isfinite(effect.effect) else 0.0
    return effect._replace(effect=point, low=-math.inf, high=math.inf)


def _guardrail(
    guard: Guard, each: Judged, options: Options, settings: Settings
) -> verdicts.Guardrail:
    results = [guard.compared.result, guard.harm.result]
    if each.by_strata:
        at_harm = settings._replace(alpha=guardrail_alpha(len(each.guards)))
        results = [
            effect_over_strata(
                guard.compared, parts, at, fixed=options.fixed, returning=each.returning
            )
            for parts, at in ((guard.strata, settings), (guard.harm_strata, at_harm))
        ]
    bound, harm = (_open(_effect(one, guard.direction, options.fixed)) for one in results)
    return verdicts.Guardrail(bound._replace(high=harm.high), margin=guard.margin)


def guardrail_alpha(guardrails: int) -> float:
    """Two-sided alpha of each guardrail's harm, which is tested on one side."""
    return min(2 * GUARDRAIL_ALPHA / max(guardrails, 1), 0.99)


def _strata(each: Judged, options: Options) -> tuple[verdicts.Stratum, ...]:
    return tuple(
        verdicts.Stratum(name, _open(_effect(compared.result, each.direction, options.fixed)))
        for name, compared, _ in each.strata
        if _floor(compared, options)
    )


def _floor(compared: Compared, options: Options) -> bool:
    result = compared.result
    return min(result.control.n, result.treatment.n) >= options.min_units


def _losses(each: Judged) -> list[verdicts.Evidence]:
    found = []
    for name, ((lost_c, of_c), (lost_t, of_t)) in each.missing.items():
        if lost_c + lost_t and of_c and of_t:
            evidence = count_evidence([lost_c, lost_t], [of_c, of_t])
            alpha = ALPHA / len(each.missing)
            found.append(verdicts.Evidence(name, float(evidence.log_e), alpha))
    return found


def _alarms(each: Judged, effect: MetricResult) -> tuple[verdicts.Alarm, ...]:
    usable = [part.compared for part in each.strata if comparable(part.compared)]
    if effect.standard_error is None or len(usable) < 2:
        return ()
    alarms: list[verdicts.Alarm] = []
    pooled, kept = each.primary.result.difference or 0.0, effect.difference or 0.0
    # Near 0 signs differ by chance: the strata must also move the effect by more than its error.
    if pooled * kept < 0 and abs(pooled - kept) > effect.standard_error:
        alarms.append(verdicts.Alarm("simpson", effect.name))
    diffs = [compared.result.difference or 0.0 for compared in usable]
    apart = stratified(diffs, [_gate(compared) for compared in usable], weighting="precision")
    if float(apart.q_p) < HETEROGENEITY_ALPHA:
        alarms.append(verdicts.Alarm("heterogeneity", effect.name))
    return tuple(alarms)


def _plain(reason: verdicts.Reason) -> str:
    """The clause without numbers that are none, or that nobody asked for."""
    if reason.code not in ("no_interval", "no_spread"):
        if reason.values.get("minimum") != 0:
            return reason.text
        return reason.text.replace("improved by at least 0 ", "improved ").replace(
            "may still improve by 0 ", "may be better or worse "
        )
    where = f" in {reason.values['stratum']}" if reason.values.get("stratum") else ""
    said = "has no spread" if reason.code == "no_spread" else "has no usable sequence yet"
    return f"{reason.values['metric']}{where} {said}"


def _words(kind: Kind) -> str:
    return kind.value.replace("_", " ").lower()


def improves(result: MetricResult, direction: str) -> bool:
    """Whether the point effect is for the better."""
    difference = result.difference or 0.0
    return difference > 0 if direction == HIGHER else difference < 0
