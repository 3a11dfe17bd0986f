"""When a step's checks can be decided, if the candidate is as good as control.

Asks the bounds that live checks use about expected counts. Live, their variance is taken from
buckets of units; here the requests of one unit are taken to fail independently. Needs numpy and
scipy once a guardrail has a margin.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from control.model.metrics import LATENCY
from control.planning.inputs import Assumptions
from control.planning.latencies import Latency, latency_of, quantile_of
from control.planning.words import count, duration, times, value
from control.rollout.bounds import rate_interval
from control.rollout.plain import percent
from control.rollout.policy import (
    METRIC_ACCURACY,
    METRIC_ERROR_RATE,
    GuardrailPolicy,
    Margin,
    StepPolicy,
)
from control.rollout.words import Phase
from turnout.contract import BUCKET_COUNT, LATENCY_SKETCH_ALPHA

# What is not decided after so many requests of both arms together is called never.
REQUESTS_MAX: Final = 1e12
_BISECTIONS: Final = 60
_Z: Final = 1.96  # of the ranks around a quantile, as live looks take them

Passes = Callable[[float, float], bool]


@dataclass(frozen=True, slots=True)
class CheckPlan:
    """One check of one candidate in one step.

    Attributes:
        metric: What is checked.
        known: False when a baseline is missing or the metric cannot be planned: all else is None.
        candidate_requests, control_requests: That each arm needs; None = no number is enough.
        seconds: Until both have them; None = never.
        text: One clause.
    """

    metric: str
    known: bool
    candidate_requests: float | None
    control_requests: float | None
    seconds: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Arms:
    """Two arms' traffic in a step.

    Attributes:
        candidate, control: Requests per second, > 0.
        share: The candidate's of the experiment's units; early in a ramp margins are wider.
        canary: It is a canary step.
        per_unit: Requests of one unit in the step's time, >= 1.
    """

    candidate: float
    control: float
    share: float = 1.0
    canary: bool = True
    per_unit: float = 1.0


@dataclass(frozen=True, slots=True)
class _Question:
    """What must be shown, and who has to show it; passes(candidate's trials, control's)."""

    words: str
    passes: Passes


def plan_check(
    guardrail: GuardrailPolicy, arms: Arms, minimum: int, assumed: Assumptions
) -> CheckPlan:
    """When a check passes for a candidate that equals control.

    Args:
        guardrail: With the margin; without one a check passes as soon as it is looked at.
        arms: Traffic.
        minimum: Requests of each arm below which nothing is judged.
        assumed: For baselines and the share of labelled requests.

    Raises:
        ImportError: It has a margin, and there is no numpy or scipy.
    """
    metric, margin = guardrail.metric, guardrail.maximum_harm
    observed = assumed.labels if metric == METRIC_ACCURACY else 1.0
    if metric not in (METRIC_ERROR_RATE, METRIC_ACCURACY, *LATENCY):
        return _unknown(metric, "not planned: how many requests count for it is not known")
    if margin is None and guardrail.slo_ms is None:
        return _at_minimum(metric, arms, minimum, observed)
    base = assumed.baselines.get(metric)
    if base is None:
        example = {METRIC_ERROR_RATE: "0.01", METRIC_ACCURACY: "0.92"}.get(metric, "180ms")
        return _unknown(metric, f"not known: say --baseline {metric}=VALUE, like {example}")
    if metric in LATENCY:
        shape = latency_of(assumed.baselines, metric)
        assert shape is not None
        questions = _latency_questions(guardrail, arms, base, shape)
    else:
        assert margin is not None
        rate = base if metric == METRIC_ERROR_RATE else 1 - base
        # A relative margin is one of the metric's own value.
        questions = [_rate_question(metric, rate, margin.of(base), margin, arms)]
    return _solved(metric, arms, minimum, questions, observed)


def _rate_question(
    metric: str, rate: float, harm: float, margin: Margin | None, arms: Arms
) -> _Question:
    """The rate of bad events is at most `harm` times the stage's factor above control's."""
    from control.rollout.reduce import EVENTS_LEAST, SAFE_ALPHA

    factor = _stage_factor(arms)
    allowed = harm * factor

    def passes(mine: float, theirs: float) -> bool:
        if min(mine, theirs) * min(rate, 1 - rate) < EVENTS_LEAST:
            own = rate_interval(rate * mine, mine, alpha=SAFE_ALPHA)
            other = rate_interval(rate * theirs, theirs, alpha=SAFE_ALPHA)
            return own.high - other.low < allowed
        return _half_width(rate * (1 - rate) * (1 / mine + 1 / theirs), mine, theirs) < allowed

    words = f"to show that {metric} is at most {percent(allowed)} worse"
    if margin is not None and margin.absolute is None:
        words += f" ({percent(margin.relative or 0.0)} of control's)"
    return _Question(words + _widened(factor), passes)


def _latency_questions(
    guardrail: GuardrailPolicy, arms: Arms, usual_ms: float, shape: Latency
) -> list[_Question]:
    """The quantile itself, when it has a margin; and the share of answers beyond the SLO."""
    from control.rollout.judging import tolerance
    from control.rollout.looks import ArmLook, Method, MetricLook
    from control.rollout.reduce import EVENTS_LEAST

    metric, margin, slo_ms = guardrail.metric, guardrail.maximum_harm, guardrail.slo_ms
    q, found = quantile_of(metric), []
    assumed = " (spread assumed)" if shape.assumed else ""
    if margin is not None:
        look = MetricLook(
            metric=metric,
            variant="",
            higher_is_better=False,
            control=ArmLook(value=usual_ms),
            candidate=ArmLook(value=usual_ms),
            method=Method.QUANTILE,
            margin=margin.of(usual_ms),
        )
        allowed_ms = tolerance(look) * _stage_factor(arms)
        effect = 1.0 if slo_ms is not None else arms.per_unit
        spread, edges = math.sqrt(q * (1 - q) * effect), LATENCY_SKETCH_ALPHA * usual_ms / _Z
        density = shape.density(usual_ms)

        def passes(mine: float, theirs: float) -> bool:
            if min(mine, theirs) * min(q, 1 - q) < EVENTS_LEAST:
                return False
            variance = sum(
                (spread / math.sqrt(n) / density + edges * math.sqrt(effect)) ** 2
                for n in (mine, theirs)
            )
            return _half_width(variance, mine, theirs) < allowed_ms

        words = f"to show that {metric} is at most {value(metric, allowed_ms)} worse"
        found.append(_Question(words + _widened(_stage_factor(arms)) + assumed, passes))
    if slo_ms is not None:
        beyond = shape.above(slo_ms)
        inside = _rate_question(metric, beyond, max(0.0, 1 - q - beyond), None, arms)
        words = (
            f"to show that at most {percent(1 - q)} are slower than {value(metric, slo_ms)}, "
            f"as {percent(beyond)} of control's are"
        )
        found.append(_Question(words + assumed, inside.passes))
    return found


def _half_width(variance: float, mine: float, theirs: float) -> float:
    """Of the one-sided sequence that shows a candidate to be no worse."""
    from control.rollout.reduce import N_STAR, SAFE_ALPHA
    from control.stats.confseq import asymptotic_sequence

    look = asymptotic_sequence(
        0.0,
        variance,
        n=4 * mine * theirs / (mine + theirs),
        n_star=N_STAR,
        alpha=SAFE_ALPHA,
        alternative="greater",
    )
    return float(look.half_width)


def _stage_factor(arms: Arms) -> float:
    from control.rollout.checks import stage_factor

    phase = Phase.CANARY if arms.canary else Phase.AB
    return stage_factor(StepPolicy(phase, {"": round(arms.share * BUCKET_COUNT)}), "")


def _widened(factor: float) -> str:
    return f" ({times(factor)} times the margin at so small a share)" if factor != 1 else ""


def _solved(
    metric: str, arms: Arms, minimum: int, questions: list[_Question], observed: float
) -> CheckPlan:
    """The least time after which all questions are answered, both arms growing together.

    Args:
        metric: What is checked.
        arms: Traffic.
        minimum: Requests of each arm.
        questions: At least one.
        observed: Share of the requests that is observed.
    """
    rates = arms.candidate * observed, arms.control * observed
    slowest = 0.0
    for question in questions:
        seconds = _least_s(question.passes, rates, minimum / min(rates))
        if seconds is None:
            text = f"no number of requests is enough {question.words}"
            return CheckPlan(metric, True, None, None, None, text)
        if seconds >= slowest:
            slowest, words = seconds, question.words
    needed = arms.candidate * slowest, arms.control * slowest
    text = f"needs {count(needed[0])} requests ({count(needed[1])} of control) {words}"
    return CheckPlan(metric, True, needed[0], needed[1], slowest, text)


def _least_s(passes: Passes, rates: tuple[float, float], least_s: float) -> float | None:
    most_s = max(least_s, REQUESTS_MAX / sum(rates))

    def at(seconds: float) -> bool:
        return passes(rates[0] * seconds, rates[1] * seconds)

    if not at(most_s):
        return None
    if at(least_s):
        return least_s
    low, high = least_s, most_s
    for _ in range(_BISECTIONS):
        if high - low <= 1e-3 * high:
            break
        middle = math.sqrt(low * high)
        low, high = (low, middle) if at(middle) else (middle, high)
    return high


def _at_minimum(metric: str, arms: Arms, minimum: int, observed: float) -> CheckPlan:
    seconds = minimum / (min(arms.candidate, arms.control) * observed)
    needed = arms.candidate * seconds, arms.control * seconds
    text = f"without a margin {metric} passes after {count(minimum)} requests in both arms"
    return CheckPlan(
        metric, True, needed[0], needed[1], seconds, f"{text} unless harm is significant"
    )


def _unknown(metric: str, text: str) -> CheckPlan:
    return CheckPlan(metric, False, None, None, None, text)


def late(check: CheckPlan, within_s: float) -> str:
    """Why a check is not decided within a time; "" when it is, or when nobody can say."""
    if not check.known or (check.seconds is not None and check.seconds <= within_s):
        return ""
    if check.seconds is None:
        return check.text
    return f"{check.text}, which takes {duration(check.seconds)} at this traffic"
