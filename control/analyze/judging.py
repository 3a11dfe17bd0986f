"""From compared metrics to a decision, by the closed table of `control.stats.verdicts`.

Owns what analysed data give as evidence: the effect over strata, sample ratios, units in two arms,
losses. With several treatments each is judged at alpha / treatments; the answer is PROMOTE if one
passes, else the harm, else the doubt, else what is open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from control.analyze.estimate import Compared, Settings
from control.analyze.metrics import HIGHER
from control.analyze.result import MetricResult, Reason
from control.analyze.shares import ALPHA
from control.stats import verdicts
from control.stats.confseq import asymptotic_sequence
from control.stats.counts import count_evidence
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


class Guard(NamedTuple):
    """A metric that must not get worse by more than `margin`: at alpha, and at its harm's."""

    compared: Compared
    harm: Compared
    direction: str
    margin: float


@dataclass(frozen=True, slots=True)
class Judged:
    """All that is known of one treatment."""

    variant: str
    primary: Compared
    direction: str
    units: tuple[int, int]
    strata: Sequence[tuple[str, Compared, int]] = ()  # name, at alpha / strata, units
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


def effect_over_strata(each: Judged, settings: Settings, *, fixed: bool) -> MetricResult | None:
    """The effect averaged over strata by their units: None where a stratum cannot be said."""
    usable = [(c.result.difference, c.variance, n) for _, c, n in each.strata]
    if len(usable) < 2 or any(d is None or not v for d, v, _ in usable):
        return None
    diffs = np.array([d for d, _, _ in usable], dtype=np.float64)
    variances = np.array([v for _, v, _ in usable], dtype=np.float64)
    whole = stratified(diffs, variances, units=[n for _, _, n in usable])
    result = each.primary.result
    n = result.control.n + result.treatment.n
    se = math.sqrt(float(whole.variance))
    interval = estimate(whole.diff, se, alpha=settings.alpha)
    sequence = asymptotic_sequence(
        whole.diff, whole.variance, n=n, n_star=settings.n_star, alpha=settings.alpha
    )
    ends = (interval.ci_low, interval.ci_high) if fixed else (sequence.ci_low, sequence.ci_high)
    return MetricResult(
        result.name,
        result.kind,
        result.variant,
        result.control,
        result.treatment,
        float(whole.diff),
        None,
        se,
        float(interval.ci_low),
        float(interval.ci_high),
        float(interval.p_value),
        float(ends[0]),
        float(ends[1]),
        float(sequence.p_value),
    )


def _judge(each: Judged, options: Options, settings: Settings) -> verdicts.Verdict:
    over_strata = effect_over_strata(each, settings, fixed=options.fixed)
    units = sum(each.units)
    look = verdicts.Look(
        primary=_effect(over_strata or each.primary.result, each.direction, options.fixed),
        control=_arm(each, 0),
        treatment=_arm(each, 1),
        duration_s=options.duration_s or 0.0,
        guardrails=tuple(_guardrail(guard, options) for guard in each.guards),
        strata=_strata(each, options),
        sample_ratios=tuple(verdicts.Evidence(*ratio) for ratio in each.sample_ratios),
        losses=tuple(_losses(each)),
        flips=(verdicts.Flips("the data", *each.flips),) if each.flips[0] else (),
        alarms=_alarms(each, over_strata),
    )
    policy = verdicts.Policy(
        minimum_improvement=options.minimum_effect,
        equivalence=options.equivalence,
        harm_tolerance=options.harm,
        rule=options.rule,
        min_units=options.min_units,
        max_units=max(units, 1) if options.final else None,
    )
    return verdicts.judge(look, policy)


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


def _guardrail(guard: Guard, options: Options) -> verdicts.Guardrail:
    bound = _open(_effect(guard.compared.result, guard.direction, options.fixed))
    harm = _open(_effect(guard.harm.result, guard.direction, options.fixed))
    return verdicts.Guardrail(bound._replace(high=harm.high), margin=guard.margin)


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


def _alarms(each: Judged, over_strata: MetricResult | None) -> tuple[verdicts.Alarm, ...]:
    if over_strata is None:
        return ()
    diffs = [c.result.difference or 0.0 for _, c, _ in each.strata]
    variances = [c.variance or 0.0 for _, c, _ in each.strata]
    alarms: list[verdicts.Alarm] = []
    pooled, kept = each.primary.result.difference or 0.0, over_strata.difference or 0.0
    # Near 0 signs differ by chance: the strata must also move the effect by more than its error.
    if pooled * kept < 0 and abs(pooled - kept) > (over_strata.standard_error or math.inf):
        alarms.append(verdicts.Alarm("simpson", over_strata.name))
    whole = stratified(diffs, variances, weighting="precision")
    if float(whole.q_p) < HETEROGENEITY_ALPHA:
        alarms.append(verdicts.Alarm("heterogeneity", over_strata.name))
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
