"""A stage's checks: one named question about one candidate, answered from looks.

Owns when a look passes a stage, and how much wider a margin is early in a ramp. Judges; does not
act.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from control.rollout import judging, plain
from control.rollout.judging import LABEL_METRICS
from control.rollout.looks import MetricLook
from control.rollout.policy import Policy, StepPolicy
from control.rollout.words import Phase, Reason, Verdict
from turnout.contract import BUCKET_COUNT

# Up to this share of the units, a stage margin is so many times the declared one: what is tolerated
# times the share never exceeds a quarter of the declared harm to everybody.
STAGE_FACTORS: Final = ((0.05, 5.0), (0.125, 2.0), (1.0, 1.0))


@dataclass(frozen=True, slots=True)
class Check:
    """One question about one candidate and its answer; `turnout.v1alpha1.Check`.

    Attributes:
        metric: A guardrail's metric, "sample_ratio" or "loss".
        variant: The candidate; "" for sample_ratio.
        verdict, reason, sentence: The answer.
        control_value, candidate_value: In the metric's unit (rates 0..1, milliseconds).
        control_count, candidate_count: Requests, labels or units looked at.
    """

    metric: str
    variant: str
    verdict: Verdict
    reason: Reason
    sentence: str
    control_value: float = 0.0
    candidate_value: float = 0.0
    control_count: int = 0
    candidate_count: int = 0


def look_check(found: tuple[MetricLook, ...], policy: Policy, step: StepPolicy) -> Check:
    """A guardrail's looks as one check: the quantile's and, with an SLO, that of answers over it.

    PASS with a margin: not worse by it, wider in early stages. Without: no harm beyond doubt.
    """
    asked = [(_look_verdict(look, step), look) for look in found]
    order = (Verdict.FAIL, Verdict.UNDECIDED, Verdict.PASS)
    (verdict, reason), look = min(asked, key=lambda pair: order.index(pair[0][0]))
    sentence = judging.comparison(look, policy.control)
    if look.margin is not None:
        allowed = look.margin * stage_factor(step, look.variant)
        sentence += f"; {judging.number(look, allowed)} worse is allowed"
    if reason is Reason.LOW_POWER:
        sentence += ", not shown yet"
        no_margin = judging.why_no_margin(look, policy)
        sentence += f"; {no_margin}" if no_margin else ""
    elif reason in (Reason.NO_TRAFFIC, Reason.TOO_FEW_REQUESTS, Reason.NO_LABELS_YET):
        sentence += f"; at least {plain.count(step.minimum_requests)} each are needed"
    return Check(
        look.metric,
        look.variant,
        verdict,
        reason,
        sentence,
        control_value=look.control.value or 0.0,
        candidate_value=look.candidate.value or 0.0,
        control_count=look.control.n,
        candidate_count=look.candidate.n,
    )


def _look_verdict(look: MetricLook, step: StepPolicy) -> tuple[Verdict, Reason]:
    least = min(look.control.n, look.candidate.n)
    if least == 0 or look.difference is None:
        labels = look.metric in LABEL_METRICS
        return Verdict.UNDECIDED, Reason.NO_LABELS_YET if labels else Reason.NO_TRAFFIC
    if least < step.minimum_requests:
        return Verdict.UNDECIDED, Reason.TOO_FEW_REQUESTS
    if judging.is_shown_worse(look):
        return Verdict.FAIL, Reason.GUARDRAIL
    if look.margin is None:
        return Verdict.PASS, Reason.WITHIN_LIMITS
    allowed = max(look.margin, judging.tolerance(look)) * stage_factor(step, look.variant)
    if look.worst is not None and look.worst > -allowed:
        return Verdict.PASS, Reason.WITHIN_LIMITS
    return Verdict.UNDECIDED, Reason.LOW_POWER


def stage_factor(step: StepPolicy, name: str) -> float:
    """How much wider a margin is while a stage's harm would still be small."""
    share = step.split_ppm.get(name, 0) / BUCKET_COUNT
    if step.phase is not Phase.CANARY:
        return 1.0
    return next(factor for limit, factor in STAGE_FACTORS if share <= limit)
