"""When a step's checks can be decided, if the candidate is as good as control.

Asks the bounds that the checks use (`control.rollout.bounds`) about expected counts. No numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from control.model.metrics import LATENCY
from control.planning.inputs import Assumptions
from control.planning.latencies import latency_of, quantile_of
from control.planning.words import count, duration, value
from control.rollout.bounds import rate_interval
from control.rollout.policy import METRIC_ACCURACY, METRIC_ERROR_RATE, GuardrailPolicy, Margin
from turnout.contract import LATENCY_SKETCH_ALPHA

# Each arm's interval in a check; as control.rollout.assess has it.
CHECK_ALPHA: Final = 0.05
# What is not decided after so many requests of both arms together is called never.
REQUESTS_MAX: Final = 1e12
_BISECTIONS: Final = 60
_SKETCH_SLACK: Final = (1 + LATENCY_SKETCH_ALPHA) ** 2


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
    """Requests per second of the candidate and of control, both > 0."""

    candidate: float
    control: float


def plan_check(
    guardrail: GuardrailPolicy, arms: Arms, minimum: int, assumed: Assumptions
) -> CheckPlan:
    """When a check passes for a candidate that equals control.

    Args:
        guardrail: With the margin; without one a check passes as soon as it is looked at.
        arms: Traffic.
        minimum: Requests of each arm below which nothing is judged.
        assumed: For baselines and the share of labelled requests.
    """
    metric = guardrail.metric
    if metric == METRIC_ERROR_RATE:
        return _rate(guardrail, arms, minimum, assumed.baselines.get(metric), 1.0)
    if metric == METRIC_ACCURACY:
        right = assumed.baselines.get(metric)
        wrong = None if right is None else 1 - right
        return _rate(guardrail, arms, minimum, wrong, assumed.labels)
    if metric in LATENCY:
        return _latency(guardrail, arms, minimum, assumed)
    return _unknown(metric, f"{metric} is not planned: it is judged by bounds of its own")


def _rate(
    guardrail: GuardrailPolicy, arms: Arms, minimum: int, rate: float | None, observed: float
) -> CheckPlan:
    """The candidate's upper bound is at most control's lower bound plus the margin."""
    metric, margin = guardrail.metric, guardrail.maximum_harm
    if margin is None:
        return _at_minimum(metric, arms, minimum, observed)
    if rate is None:
        return _no_baseline(metric)
    if margin.of(1.0) == 0 or (margin.absolute is None and rate == 0):
        why = "of 0" if margin.of(1.0) == 0 else "relative to a control without any"
        return CheckPlan(metric, True, None, None, None, f"a margin {why} can never be shown")

    def passes(mine: float, theirs: float) -> bool:
        own = rate_interval(rate * mine, mine, alpha=CHECK_ALPHA)
        other = rate_interval(rate * theirs, theirs, alpha=CHECK_ALPHA)
        return own.high <= other.low + margin.of(other.low)

    words = f"to show that {metric} is at most {_margin(metric, margin)} worse"
    return _solved(metric, arms, minimum, passes, observed, words)


def _latency(
    guardrail: GuardrailPolicy, arms: Arms, minimum: int, assumed: Assumptions
) -> CheckPlan:
    """At most 1 - q of the candidate's answers are above control's quantile plus the margin."""
    metric, margin = guardrail.metric, guardrail.maximum_harm
    if margin is None:
        return _at_minimum(metric, arms, minimum, 1.0)
    shape = latency_of(assumed.baselines, metric)
    if shape is None:
        return _no_baseline(metric)
    q, usual_ms = quantile_of(metric), assumed.baselines[metric]
    limit_ms = usual_ms * _SKETCH_SLACK + margin.of(usual_ms)
    if guardrail.slo_ms is not None:
        limit_ms = min(limit_ms, max(guardrail.slo_ms, usual_ms * _SKETCH_SLACK))
    above = shape.above(limit_ms)

    def passes(mine: float, _: float) -> bool:
        return rate_interval(above * mine, mine, alpha=CHECK_ALPHA).high <= 1 - q

    words = f"to show that {metric} is at most {value(metric, limit_ms)}"
    words += " (spread assumed)" if shape.assumed else ""
    return _solved(metric, arms, minimum, passes, 1.0, words)


def _solved(
    metric: str,
    arms: Arms,
    minimum: int,
    passes: Callable[[float, float], bool],
    observed: float,
    words: str,
) -> CheckPlan:
    """The least traffic with which a check passes, both arms growing together.

    Args:
        metric: What is checked.
        arms: Traffic.
        minimum: Requests of each arm.
        passes: (candidate's observations, control's) -> whether it would.
        observed: Share of the requests that is observed.
        words: What passing means.
    """
    rates = arms.candidate * observed, arms.control * observed
    least_s = minimum / min(rates)
    most_s = REQUESTS_MAX / sum(rates)

    def at(seconds: float) -> bool:
        return passes(rates[0] * seconds, rates[1] * seconds)

    if most_s <= least_s or not at(most_s):
        return CheckPlan(metric, True, None, None, None, f"no number of requests is enough {words}")
    low, high = least_s, most_s
    if at(low):
        high = low
    for _ in range(_BISECTIONS):
        if high - low <= 1e-3 * high:
            break
        middle = math.sqrt(low * high)
        low, high = (low, middle) if at(middle) else (middle, high)
    needed = arms.candidate * high, arms.control * high
    text = f"needs {count(needed[0])} requests ({count(needed[1])} of control) {words}"
    return CheckPlan(metric, True, needed[0], needed[1], high, text)


def _at_minimum(metric: str, arms: Arms, minimum: int, observed: float) -> CheckPlan:
    seconds = minimum / (min(arms.candidate, arms.control) * observed)
    needed = arms.candidate * seconds, arms.control * seconds
    text = f"without a margin {metric} passes after {count(minimum)} requests in both arms"
    text += " unless harm is significant"
    return CheckPlan(metric, True, needed[0], needed[1], seconds, text)


def _no_baseline(metric: str) -> CheckPlan:
    example = {METRIC_ERROR_RATE: "0.01", METRIC_ACCURACY: "0.92"}.get(metric, "180ms")
    return _unknown(metric, f"not known: say --baseline {metric}=VALUE, like {metric}={example}")


def _unknown(metric: str, text: str) -> CheckPlan:
    return CheckPlan(metric, False, None, None, None, text)


def _margin(metric: str, margin: Margin) -> str:
    if margin.absolute is not None:
        return value(metric, margin.absolute)
    return f"{value('', margin.relative or 0.0)} of control's"


def late(check: CheckPlan, within_s: float) -> str:
    """Why a check is not decided within a time; "" when it is, or when nobody can say."""
    if not check.known or (check.seconds is not None and check.seconds <= within_s):
        return ""
    if check.seconds is None:
        return check.text
    return f"{check.text}, which takes {duration(check.seconds)} at this traffic"
