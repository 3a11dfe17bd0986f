"""From sufficient statistics to estimates: which test and which sequence a metric gets.

Owns that choice; the formulas are `control.stats`'s. Refuses to fill in: what has no spread, too
few units or no denominator is None, never a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np

from control.analyze.aggregate import Cell
from control.analyze.metrics import CLASSIFIER
from control.analyze.plans import Plan
from control.analyze.result import Arm, MetricResult
from control.stats.confseq import Ends, asymptotic_sequence, bernoulli_sequence, t_radius
from control.stats.cuped import cuped
from control.stats.means import Estimate, cautious_variance, welch
from control.stats.moments import merge_pairs
from control.stats.proportions import Share, pooled_variance, two_proportions, wald_variance
from control.stats.ratios import RatioTest, ratio_delta, ratio_variance

EVENTS_LEAST: Final = 10  # of events and of non-events per arm, for a normal approximation
UNITS_LEAST: Final = 100  # per arm, for an asymptotic sequence
N_STAR: Final = 10_000
_BISECTIONS: Final = 60
_ALPHA_LEAST: Final = 1e-12

NO_SPREAD: Final = "no spread in the data"
TOO_FEW: Final = "too few units in an arm for a sequence: no harm can be shown yet"


class Settings(NamedTuple):
    """alpha: Error probability of intervals and sequences. n_star: Units that sequences suit."""

    alpha: float = 0.05
    n_star: float = N_STAR


@dataclass(frozen=True, slots=True)
class Compared:
    """A metric of one treatment.

    events: (events, non-events) of control and treatment where a normal approximation depends on
    them; None elsewhere. variance: Of the difference, None if it cannot be said. gate: The same for
    looks at any time, None where it is no other. exact: The sequence is exact, as events are too
    few for any variance. note: What is missing, or worth knowing.
    """

    result: MetricResult
    events: tuple[tuple[int, int], tuple[int, int]] | None = None
    variance: float | None = None
    note: str = ""
    gate: float | None = None
    exact: bool = False


class _Estimate(NamedTuple):
    """Of a difference.

    variances: Squared errors of both arms. normal: Not a t-test's, which pays for an unknown
    variance.
    """

    diff: float
    se: float
    ci_low: float
    ci_high: float
    p_value: float
    variances: tuple[float, float]
    adjusted_means: tuple[float, float] | None = None
    normal: bool = True


def compare(
    plan: Plan, variant: str, control: Cell, treatment: Cell, settings: Settings
) -> Compared:
    """Estimate one metric of one treatment against control."""
    empty = _with_difference(
        MetricResult(
            plan.metric.name,
            reported_kind(plan),
            variant,
            Arm(control.n, control.mean),
            Arm(treatment.n, treatment.mean),
            *(None,) * 9,
        )
    )
    weighted = control.weighted and not (control.once and treatment.once)
    why_not = _obstacle(control, treatment, weighted)
    share = is_share(plan)
    if share and not weighted and not control.covariate and not why_not:
        return _proportions(empty, control, treatment, settings)
    if not why_not and min(control.n, treatment.n) < 2:
        why_not = "fewer than 2 units in an arm"
    if why_not:
        return Compared(empty, note=why_not)
    found = _estimated(control, treatment, weighted, settings)
    if found is None:
        return Compared(empty, note=NO_SPREAD)
    result = _filled(empty, found)
    # A small arm has not met its rare large values yet: it is lent the other's spread per unit.
    gate = float(cautious_variance(found.variances[0], control.n, found.variances[1], treatment.n))
    events = (_events(control, weighted), _events(treatment, weighted)) if share else None
    if events is not None and min(*events[0], *events[1]) < EVENTS_LEAST:
        note = f"fewer than {EVENTS_LEAST} events or non-events in an arm: no sequence yet"
        return Compared(result, events, found.se**2, note, gate)
    result = _with_sequence(result, found, gate, settings)
    note = "" if result.cs_low is not None else TOO_FEW
    return Compared(result, events, found.se**2, note, gate)


def reported_kind(plan: Plan) -> str:
    """The kind as the result names it."""
    return plan.metric.kind or "proportion"


def is_share(plan: Plan) -> bool:
    """Whether each row's value is 0 or 1."""
    if plan.below or plan.metric.total:
        return False
    return reported_kind(plan) == "proportion" or plan.metric.kind in CLASSIFIER


def least_alpha(apart: Callable[[float], bool]) -> float:
    """The p-value of nested intervals: the least alpha at which they exclude no difference."""
    low, high = math.log(_ALPHA_LEAST), 0.0
    if apart(_ALPHA_LEAST):
        return _ALPHA_LEAST
    if not apart(1 - 1e-9):
        return 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if apart(math.exp(middle)):
            high = middle
        else:
            low = middle
    return math.exp(high)


def number(value: Any) -> float | None:
    """A finite number, or None."""
    return float(value) if math.isfinite(value) else None


def _obstacle(control: Cell, treatment: Cell, weighted: bool) -> str:
    if control.n == 0 or treatment.n == 0:
        return f"no value in {'control' if control.n == 0 else 'the treatment'}"
    if weighted and not (control.ratio.mean_x > 0 and treatment.ratio.mean_x > 0):
        return "its denominator is not above 0 in an arm"
    return ""


def _with_difference(result: MetricResult) -> MetricResult:
    c, t = result.control.mean, result.treatment.mean
    if c is None or t is None:
        return result
    relative = number((t - c) / c) if c else None
    return replace(result, difference=t - c, relative=relative)


def _estimated(
    control: Cell, treatment: Cell, weighted: bool, settings: Settings
) -> _Estimate | None:
    if control.covariate:
        return _adjusted(control, treatment, weighted, settings)
    if weighted:
        ratio = ratio_delta(control.ratio, treatment.ratio, alpha=settings.alpha)
        parts = (float(ratio_variance(cell.ratio)[1]) for cell in (control, treatment))
        return _taken(ratio, *parts) if ratio.decided else None
    test = welch(control.value, treatment.value, alpha=settings.alpha)
    parts = (float(cell.value.variance_of_mean) for cell in (control, treatment))
    return _taken(test, *parts)._replace(normal=False) if test.decided else None


def _adjusted(
    control: Cell, treatment: Cell, weighted: bool, settings: Settings
) -> _Estimate | None:
    one = control.with_covariate(weighted=weighted)
    two = treatment.with_covariate(weighted=weighted)
    found = cuped(one, two, alpha=settings.alpha)
    if not found.adjusted.decided:
        return None
    theta, middle = float(found.theta), float(merge_pairs(one, two).mean_x)
    means = tuple(
        float(pair.mean_y) + cell.offset - theta * (float(pair.mean_x) - middle)
        for pair, cell in ((one, control), (two, treatment))
    )
    # The arms' shares of the variance, by what the covariate leaves of each.
    left = [
        float(pair.m2_y - 2 * theta * pair.c_yx + theta**2 * pair.m2_x) / (n - 1) / n
        for pair, n in ((one, control.n), (two, treatment.n))
    ]
    parts = (max(part, 0.0) for part in left)
    return _taken(found.adjusted, *parts)._replace(adjusted_means=(means[0], means[1]))


def _taken(test: Estimate | RatioTest, control: float, treatment: float) -> _Estimate:
    return _Estimate(
        float(test.diff),
        float(test.se),
        float(test.ci_low),
        float(test.ci_high),
        float(test.p_value),
        (control, treatment),
    )


def _filled(result: MetricResult, found: _Estimate) -> MetricResult:
    if found.adjusted_means is not None:
        c, t = found.adjusted_means
        result = replace(
            result, control=Arm(result.control.n, c), treatment=Arm(result.treatment.n, t)
        )
    # Its own difference, of values less their shift: that of two means at 1e9 has lost digits.
    c_mean = result.control.mean
    return replace(
        result,
        difference=found.diff,
        relative=number(found.diff / c_mean) if c_mean else None,
        standard_error=found.se,
        ci_low=found.ci_low,
        ci_high=found.ci_high,
        p_value=number(found.p_value),
    )


def _with_sequence(
    result: MetricResult, found: _Estimate, gate: float, settings: Settings
) -> MetricResult:
    n_c, n_t = result.control.n, result.treatment.n
    if min(n_c, n_t) < UNITS_LEAST:
        return _with_t_sequence(result, found, gate, settings)
    sequence = asymptotic_sequence(
        found.diff, gate, n=n_c + n_t, n_star=settings.n_star, alpha=settings.alpha
    )
    return replace(
        result,
        cs_low=number(sequence.ci_low),
        cs_high=number(sequence.ci_high),
        always_valid_p=number(sequence.p_value),
    )


def _with_t_sequence(
    result: MetricResult, found: _Estimate, gate: float, settings: Settings
) -> MetricResult:
    """For few units in an arm: the t mixture with the tuning g fixed, on the cautious variance.

    Degrees of freedom are the smaller arm's alone, whatever the other has: its own variance may be
    most of the error. The widest counts of this, the interval of one look and, for an estimate
    that is no mean, the asymptotic sequence. Measured in tests/analyze/test_small_arms.py.
    """
    units = min(result.control.n, result.treatment.n)

    def radius(alpha: float) -> float:
        # A g that n is too small for has no finite radius: the sequence says nothing yet.
        try:
            return t_radius(units + 1, 2, alpha=alpha, g=1.0)
        except ValueError:
            return math.inf

    half = radius(settings.alpha) * math.sqrt(gate)
    if not math.isfinite(half):
        return result
    score = abs(found.diff) / math.sqrt(gate)
    halves = [half, found.ci_high - found.diff]
    p_values = [least_alpha(lambda alpha: score > radius(alpha)), found.p_value]
    if found.normal:
        n = result.control.n + result.treatment.n
        sequence = asymptotic_sequence(
            found.diff, gate, n=n, n_star=settings.n_star, alpha=settings.alpha
        )
        halves.append(float(sequence.half_width))
        p_values.append(float(sequence.p_value))
    return replace(
        result,
        cs_low=found.diff - max(halves),
        cs_high=found.diff + max(halves),
        always_valid_p=max(p_values),
    )


def _share(cell: Cell) -> tuple[int, int]:
    return round((float(cell.value.mean) + cell.offset) * cell.n), cell.n


def _events(cell: Cell, weighted: bool) -> tuple[int, int]:
    if not weighted:
        x, n = _share(cell)
        return x, n - x
    total, events = cell.ratio.mean_x * cell.n, cell.ratio.mean_y * cell.n
    return round(float(events)), round(float(total - events))


def _proportions(
    empty: MetricResult, control: Cell, treatment: Cell, settings: Settings
) -> Compared:
    (x_c, n_c), (x_t, n_t) = _share(control), _share(treatment)
    test = two_proportions(Share(x_c, n_c), Share(x_t, n_t), alpha=settings.alpha)
    arms = [np.asarray(count, dtype=np.float64) for count in (x_c, n_c, x_t, n_t)]
    variance = float(wald_variance(*arms))
    # Pooled: with few events an arm's own variance errs on the side of "no error at all".
    pooled = float(pooled_variance(*arms))
    # Wald's interval has no width for an arm without events, or with nothing else: Newcombe's has.
    edge = x_c in (0, n_c) or x_t in (0, n_t)
    interval = test.newcombe if edge else test.wald
    result = replace(
        empty,
        standard_error=math.sqrt(variance) if variance > 0 else None,
        ci_low=float(interval.low),
        ci_high=float(interval.high),
        p_value=number(test.p_value),
    )
    events = (x_c, n_c - x_c), (x_t, n_t - x_t)
    if min(*events[0], *events[1]) < EVENTS_LEAST:
        exact = _with_exact_sequence(result, (x_c, n_c), (x_t, n_t), settings)
        return Compared(exact, None, variance or None, gate=pooled or None, exact=True)
    sequence = asymptotic_sequence(
        test.diff,
        pooled,
        n=n_c + n_t,
        n_star=settings.n_star,
        alpha=settings.alpha,
    )
    result = replace(
        result,
        cs_low=float(sequence.ci_low),
        cs_high=float(sequence.ci_high),
        always_valid_p=float(sequence.p_value),
    )
    return Compared(result, events, variance, gate=pooled)


def _with_exact_sequence(
    result: MetricResult, control: tuple[int, int], treatment: tuple[int, int], settings: Settings
) -> MetricResult:
    """Both arms' exact sequences at alpha / 2; the p-value is the alpha at which they part."""

    def ends(alpha: float) -> tuple[Ends, Ends]:
        one, two = (
            bernoulli_sequence(x, n, alpha=alpha / 2, t_opt=settings.n_star / 2)
            for x, n in (control, treatment)
        )
        return one, two

    def apart(alpha: float) -> bool:
        one, two = ends(alpha)
        return one.high < two.low or two.high < one.low

    one, two = ends(settings.alpha)
    return replace(
        result,
        cs_low=two.low - one.high,
        cs_high=two.high - one.low,
        always_valid_p=least_alpha(apart),
    )
