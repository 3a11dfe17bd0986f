"""How many units an A/B comparison needs, how long they take, and what a maximum can find.

Needs numpy and scipy (`control.stats`). A unit counts once, whatever the number of its requests: a
rate's spread between units is at most that of one request each, so plans err on the safe side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from control.model.metrics import BUILT_IN, Direction, Kind
from control.planning.inputs import DAY_S, Assumptions, Traffic
from control.planning.latencies import latency_of
from control.planning.results import ComparisonPlan
from control.planning.words import count, duration, value
from control.rollout.policy import Margin
from control.rollout.reduce import N_STAR
from control.stats.confseq import asymptotic_sequence
from control.stats.distributions import normal_ppf
from control.stats.power import SampleSize, power_means, power_proportions

WEEK_S: Final = 7 * DAY_S
_BISECTIONS: Final = 60
_RATES: Final = (Kind.PROPORTION, Kind.CLASSIFIER)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared: a metric of one candidate with control's.

    Attributes:
        metric: Name of a built-in metric.
        effect: The minimum improvement, in the metric's unit, > 0.
        alpha: Two-sided: the candidate's part of 1 - confidence, which all candidates share.
        confidence: Of the step.
        power: Chance of finding the effect.
        candidate, control: Shares of the experiment's units, > 0.
        random: Every request is a unit.
    """

    metric: str
    effect: float
    alpha: float
    confidence: float
    power: float
    candidate: float
    control: float
    random: bool


def sequential_inflation(*, alpha: float, power: float, trials: float) -> float:
    """Trials at the last look of an anytime-valid test as a multiple of the fixed number.

    The sequence is that of live verdicts, tuned at `N_STAR` trials: 1.9 at 5 % and 80 % near it,
    more far from it. At exactly the effect planned for, half of the tests have decided by about the
    fixed number.

    Args:
        alpha: Two-sided, in (0, 1).
        power: In (alpha, 1).
        trials: The fixed number, of both arms as if at 50:50, > 0.

    Raises:
        ValueError: An argument is outside its range.
    """
    # In units of the fixed-sample standard error the effect is z_alpha/2 + z_power.
    effect = math.sqrt(float(power_means(1.0, 1.0, alpha=alpha, power=power).n_control) / 2)
    beyond = effect + float(normal_ppf(alpha / 2))

    def short(multiple: float) -> bool:
        look = asymptotic_sequence(0.0, 1.0, n=multiple * trials, n_star=N_STAR, alpha=alpha)
        return effect * math.sqrt(multiple) < float(look.half_width) + beyond

    low, high = 1.0, 2.0
    while short(high):
        high *= 2
    for _ in range(_BISECTIONS):
        if high - low < 1e-4:
            break
        middle = (low + high) / 2
        low, high = (middle, high) if short(middle) else (low, middle)
    return high


def units_needed(asked: Comparison, effect: float, assumed: Assumptions) -> SampleSize | None:
    """Units with a single look; None when the spread between units is not known.

    Raises:
        ValueError: The improvement leaves 0..1 for a rate.
    """
    alpha, ratio = asked.alpha, asked.candidate / asked.control
    deviation = assumed.deviations.get(asked.metric)
    base = assumed.baselines.get(asked.metric)
    known = BUILT_IN[asked.metric]
    if deviation is None and base is not None and known.kind in _RATES:
        better = base + known.direction.sign * effect
        if not 0 <= better <= 1:
            raise ValueError(f"{asked.metric} cannot become {better:.3g}")
        inside = 1e-9
        p = min(max(base, inside), 1 - inside), min(max(better, inside), 1 - inside)
        return power_proportions(
            *p, alpha=alpha, power=asked.power, ratio_treatment_to_control=ratio
        )
    if deviation is None and known.kind is Kind.QUANTILE and known.quantile is not None:
        shape = latency_of(assumed.baselines, asked.metric)
        if shape is None or base is None:
            return None
        spread = math.sqrt(known.quantile * (1 - known.quantile))
        deviation = spread / shape.density(base)
    if deviation is None:
        return None
    return power_means(
        effect, deviation, alpha=alpha, power=asked.power, ratio_treatment_to_control=ratio
    )


def plan_comparison(
    asked: Comparison,
    traffic: Traffic,
    assumed: Assumptions,
    *,
    maximum_s: float | None,
    warm_up_s: float = 0.0,
) -> ComparisonPlan:
    """Units and times of one comparison.

    Args:
        asked: What is compared.
        traffic: Of the whole experiment.
        assumed: Baselines and deviations.
        maximum_s: Of the step; None = no limit.
        warm_up_s: That is left out at the beginning.

    Raises:
        ValueError: A share, confidence or power is outside its range.
    """
    if asked.metric not in BUILT_IN:
        return _nothing(asked.metric, "not known: its kind Metric must be in the files")
    if not asked.effect > 0:
        return _nothing(
            asked.metric, "no minimumImprovement, or none that its baseline would make a number of"
        )
    try:
        fixed = units_needed(asked, asked.effect, assumed)
    except ValueError as error:
        return _nothing(asked.metric, str(error))
    if fixed is None:
        return _nothing(asked.metric, _missing(asked.metric))
    inflation = _inflation(asked, traffic, fixed)
    candidate, control = max(2.0, fixed.n_treatment), max(2.0, fixed.n_control)
    times = [
        _seconds(asked, traffic, candidate * factor, control * factor, warm_up_s)
        for factor in (1.0, inflation)
    ]
    detectable = None
    if maximum_s is not None:
        arms = [
            traffic.scaled(share).units_after(max(0.0, maximum_s - warm_up_s), random=asked.random)
            for share in (asked.candidate, asked.control)
        ]
        if arms[0] is not None and arms[1] is not None:
            detectable = _detectable(asked, traffic, assumed, SampleSize(arms[1], arms[0]))
    return ComparisonPlan(
        metric=asked.metric,
        effect=asked.effect,
        candidate_units=candidate,
        control_units=control,
        inflation=inflation,
        candidate_units_most=candidate * inflation,
        control_units_most=control * inflation,
        seconds=times[0],
        seconds_most=times[1],
        weeks=None if times[1] is None else math.ceil(times[1] / WEEK_S),
        detectable=detectable,
        text=_sentence(asked, candidate, control, inflation, times),
    )


def _seconds(
    asked: Comparison, traffic: Traffic, candidate: float, control: float, warm_up_s: float
) -> float | None:
    times = [
        traffic.scaled(share).seconds_until(units, random=asked.random)
        for share, units in ((asked.candidate, candidate), (asked.control, control))
    ]
    if times[0] is None or times[1] is None:
        return None
    return max(times[0], times[1]) + warm_up_s


def _inflation(asked: Comparison, traffic: Traffic, fixed: SampleSize) -> float:
    """Of a comparison with so many units; live trials are requests, several to a unit."""
    per_unit = 1.0 if asked.random else traffic.requests_per_unit or 1.0
    harmonic = fixed.n_control * fixed.n_treatment / (fixed.n_control + fixed.n_treatment)
    return sequential_inflation(
        alpha=asked.alpha, power=asked.power, trials=4 * harmonic * per_unit
    )


def _detectable(
    asked: Comparison, traffic: Traffic, assumed: Assumptions, there: SampleSize
) -> float | None:
    """The smallest improvement that so many units can show at any time; None = none possible."""
    base, known = assumed.baselines.get(asked.metric), BUILT_IN[asked.metric]
    most = base if base is not None and base > 0 else asked.effect * 1e6
    if known.kind in _RATES and base is not None:
        most = 1 - base if known.direction is Direction.HIGHER else base

    def enough(effect: float) -> bool:
        needed = units_needed(asked, effect, assumed)
        if needed is None or needed.n_treatment > there.n_treatment:
            return False
        inflation = _inflation(asked, traffic, needed)
        return (
            needed.n_treatment * inflation <= there.n_treatment
            and needed.n_control * inflation <= there.n_control
        )

    most *= 1 - 1e-9
    if most <= 0 or not enough(most):
        return None
    low, high = most * 1e-9, most
    for _ in range(_BISECTIONS):
        if high - low < 1e-3 * high:
            break
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _missing(metric: str) -> str:
    if BUILT_IN[metric].kind in (*_RATES, Kind.QUANTILE):
        return f"not known: say --baseline {metric}=VALUE"
    return f"not known: say --standard-deviation {metric}=VALUE, between units"


def _nothing(metric: str, text: str) -> ComparisonPlan:
    return ComparisonPlan(metric, *(None,) * 10, text=text)


def _sentence(
    asked: Comparison,
    candidate: float,
    control: float,
    inflation: float,
    times: list[float | None],
) -> str:
    words = (
        f"{asked.metric} {value(asked.metric, asked.effect)} better, confidence "
        f"{asked.confidence:g}, power {asked.power:g}: {count(candidate)} units of the candidate "
        f"and {count(control)} of control with one look, {inflation:.2f} times that with a look "
        "at any time"
    )
    if times[0] is None or times[1] is None:
        return f"{words}; for the time say --units-per-day or --requests-per-unit"
    weeks = math.ceil(times[1] / WEEK_S)
    return (
        f"{words}: {duration(times[0])} to {duration(times[1])}, {weeks} whole "
        f"week{'s' if weeks > 1 else ''} for all days of the week alike"
    )


def effect_of(margin: Margin | None, base: float | None) -> float:
    """The minimum improvement in the metric's unit; 0 when there is none, or none is known."""
    if margin is None or (margin.absolute is None and base is None):
        return 0.0
    return margin.of(base or 0.0)
