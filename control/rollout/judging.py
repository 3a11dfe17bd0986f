"""Looks -> verdicts of the closed decision table, one for each candidate. Pure.

Owns what of a look is a guardrail, a stratum's harm or the primary effect, and the sentence that
people read first. Refuses to estimate (`reduce`), to order the rows of the table
(`control.stats.verdicts`) and to act (`decide`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from control.model.metrics import BUILT_IN
from control.model.metrics import Kind as MetricKind
from control.rollout import plain
from control.rollout.looks import ArmLook, Looks, Method, MetricLook
from control.rollout.policy import Policy, StepPolicy
from control.rollout.run import Run
from control.rollout.words import Phase
from control.stats import verdicts
from control.stats.verdicts import Kind, Reason, Verdict
from turnout.contract import LATENCY_SKETCH_ALPHA

SAMPLE_RATIO_ALPHA: Final = 0.001
LOSS_ALPHA: Final = 0.001
UNITS_LEAST: Final = 100
# Metrics of predictions against labels.
LABEL_METRICS: Final = tuple(n for n, d in BUILT_IN.items() if d.kind is MetricKind.CLASSIFIER)
# A guardrail without a declared margin is observed: it must not be harmed, nothing more. These
# stand for "any loss": finite, because the table takes no infinite margin.
_ANY_MARGIN: Final = 1e300
_ANY_LOSS: Final = -1e299
# Two sketches' quantiles may differ by this share though the true ones are equal.
_SLACK: Final = 2 * LATENCY_SKETCH_ALPHA
_TRUSTED: Final = (Method.BUCKETS, Method.QUANTILE)


@dataclass(frozen=True, slots=True)
class Why:
    """One reason: a stable code, a plain clause, and the numbers in it that are finite."""

    code: str
    text: str
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class CandidateVerdict:
    """The table's answer about one candidate.

    Attributes:
        variant: The candidate.
        kind: A row's name: `control.stats.verdicts.Kind`.
        sentence: Why, in one plain sentence with the numbers.
        reasons: At least one.
        notes: Texts of what did not decide but matters.
        projected_units: Units of both arms at which it would decide if the effect stays; None =
            no number says, or it has decided.
        metric, stratum: What the first reason is about; "" = no single one.
    """

    variant: str
    kind: str
    sentence: str
    reasons: tuple[Why, ...] = ()
    notes: tuple[str, ...] = ()
    projected_units: float | None = None
    metric: str = ""
    stratum: str = ""

    @property
    def codes(self) -> tuple[str, ...]:
        """Of the reasons, in order."""
        return tuple(reason.code for reason in self.reasons)

    @property
    def text(self) -> str:
        """All reasons as one clause."""
        return "; ".join(reason.text for reason in self.reasons)


def verdict(
    looks: Looks, policy: Policy, step: StepPolicy, name: str, *, run: Run, now_ms: int
) -> CandidateVerdict:
    """The verdict on one candidate now.

    A step without a primary metric can show harm and invalidity, and else says WARMING_UP.

    Args:
        looks: At all evidence.
        policy: Fixed before.
        step: That runs.
        name: The candidate.
        run: For the time that the step has run.
        now_ms: Unix milliseconds.
    """
    primary = primary_look(looks, policy, name)
    look = verdicts.Look(
        primary=_primary_effect(primary),
        control=_arm(looks, policy.control, primary.control if primary else None, primary),
        treatment=_arm(looks, name, primary.candidate if primary else None, primary),
        duration_s=max(0, now_ms - run.step_start_ms) / 1000,
        guardrails=tuple(_guardrails(looks, policy, name)),
        strata=tuple(
            verdicts.Stratum(found.stratum, _effect(found, exact=True))
            for found in harmed_strata(looks, name)
        ),
        sample_ratios=tuple(_sample_ratios(looks)),
        losses=tuple(
            verdicts.Evidence(f"a label of {loss.variant}", loss.log_e, LOSS_ALPHA)
            for loss in looks.losses
            if loss.variant == name
        ),
        alarms=tuple(
            verdicts.Alarm("simpson" if doubt.doubt == "simpson" else "heterogeneity", doubt.metric)
            for doubt in looks.doubts
            if doubt.variant == name
        ),
    )
    least = minimum_improvement(policy, primary)
    found = verdicts.judge(
        look,
        verdicts.Policy(
            minimum_improvement=least,
            equivalence=least,
            harm_tolerance=least,
            min_units=max(UNITS_LEAST, step.minimum_units),
            min_duration_s=step.dwell_ms / 1000 if step.phase is Phase.AB else 0.0,
            max_duration_s=step.maximum_ms / 1000 if step.maximum_ms else None,
        ),
    )
    shown = {(_shown(one), one.stratum): one for one in looks.metrics if one.variant == name}
    return _said(found, name, policy, primary, shown)


def primary_look(looks: Looks, policy: Policy, name: str) -> MetricLook | None:
    """The look that decides; None when no primary metric is declared."""
    if policy.primary is None:
        return None
    found = looks.of(policy.primary.metric, name)
    return next((look for look in found if look.slo_ms is None), None)


def minimum_improvement(policy: Policy, primary: MetricLook | None) -> float:
    """The least improvement worth a change, in the primary's unit."""
    if policy.primary is None or policy.primary.minimum_improvement is None or primary is None:
        return 0.0
    return policy.primary.minimum_improvement.of(primary.control.value or 0.0)


def tolerance(look: MetricLook) -> float:
    """The harm that a point effect must reach to count."""
    declared = look.margin or 0.0
    if look.method is Method.QUANTILE:
        return max(declared, _SLACK * (look.control.value or 0.0))
    return declared


def is_harmed(look: MetricLook) -> bool:
    """Worse beyond doubt, and by no less than what is tolerated."""
    gain, best = look.gain, look.best
    if look.method not in _TRUSTED or gain is None or best is None:
        return False
    return best < 0 and gain <= -tolerance(look)


def is_shown_worse(look: MetricLook) -> bool:
    """As `is_harmed`; by exact bounds, beyond what is tolerated, which a step waits for."""
    if look.method is Method.EXACT and look.best is not None:
        return look.best < -tolerance(look)
    return is_harmed(look)


def is_better(look: MetricLook) -> bool:
    """Better beyond doubt, by however little."""
    if look.low is None or look.high is None or look.method is Method.NONE:
        return False
    slack = _SLACK * (look.control.value or 0.0) if look.method is Method.QUANTILE else 0.0
    return look.low > 0 if look.higher_is_better else look.high < -slack


def harmed_strata(looks: Looks, name: str) -> list[MetricLook]:
    """A candidate's metrics that are worse beyond doubt in one stratum, tolerated or not."""
    slack = {Method.QUANTILE: _SLACK}
    return [
        look
        for look in looks.metrics
        if look.variant == name
        and look.stratum
        and look.best is not None
        and look.best < -slack.get(look.method, 0.0) * (look.control.value or 0.0)
    ]


def _primary_effect(look: MetricLook | None) -> verdicts.Effect:
    if look is None or look.difference is None or look.low is None or look.high is None:
        name = "the primary metric" if look is None else look.metric
        return verdicts.Effect(name, math.nan, math.nan, math.nan)
    return verdicts.oriented(
        look.metric,
        # Exact ends are of the present epoch, the estimate of all: it may lie outside of them.
        min(max(look.difference, look.low), look.high),
        low=look.low,
        high=look.high,
        direction="higher_is_better" if look.higher_is_better else "lower_is_better",
    )


def _effect(look: MetricLook, *, exact: bool = False) -> verdicts.Effect:
    """A guardrail's; exact bounds show harm only where it holds and does not roll back."""
    gain = math.nan if look.gain is None else look.gain
    low = -math.inf if look.worst is None else look.worst
    shows = look.best is not None and (exact or look.method in _TRUSTED)
    high = look.best if shows and look.best is not None else math.inf
    return verdicts.Effect(
        _shown(look), min(max(gain, low), high) if not math.isnan(gain) else gain, low, high
    )


def _shown(look: MetricLook) -> str:
    if look.slo_ms is None:
        return look.metric
    return f"{look.metric} (share over {plain.milliseconds(look.slo_ms)})"


def _guardrails(looks: Looks, policy: Policy, name: str) -> Iterator[verdicts.Guardrail]:
    declared = {guardrail.metric for guardrail in policy.guardrails}
    asked = declared | {metric for step in policy.steps for metric in step.checks}
    for look in looks.metrics:
        if look.variant != name or look.metric not in asked:
            continue
        if look.stratum:
            if is_harmed(look):
                effect, harm = _effect(look)._replace(low=_ANY_LOSS), tolerance(look)
                yield verdicts.Guardrail(effect, _ANY_MARGIN, harm, look.stratum)
        elif look.margin is not None:
            margin = max(look.margin, tolerance(look))
            yield verdicts.Guardrail(_effect(look), margin, tolerance(look))
        elif look.method is not Method.NONE:
            observed = _effect(look)._replace(low=_ANY_LOSS)
            yield verdicts.Guardrail(observed, _ANY_MARGIN, tolerance(look))


def _sample_ratios(looks: Looks) -> Iterator[verdicts.Evidence]:
    alpha = SAMPLE_RATIO_ALPHA / max(1, len(looks.sample_ratios))
    for look in looks.sample_ratios:
        about = f"epoch {look.epoch}" + (f", stratum {look.stratum}" if look.stratum else "")
        yield verdicts.Evidence(about, look.log_e, alpha)


def _arm(looks: Looks, name: str, arm: ArmLook | None, look: MetricLook | None) -> verdicts.Arm:
    units = (looks.units or {}).get(name, 0)
    if arm is None or look is None or look.method is not Method.BUCKETS:
        return verdicts.Arm(units)
    events = arm.events or 0
    return verdicts.Arm(units, arm.buckets, events, arm.n - events)


# -- Words -------------------------------------------------------------------------------------


def _said(
    found: Verdict,
    name: str,
    policy: Policy,
    primary: MetricLook | None,
    shown: Mapping[tuple[str, str], MetricLook],
) -> CandidateVerdict:
    first = found.reasons[0]
    reasons = tuple(_whys(found.reasons, policy, shown))
    about = str(first.values.get("metric") or "")
    projected = [reason for reason in found.reasons if reason.code == "projected_units"]
    units = projected[0].values.get("units") if projected else None
    return CandidateVerdict(
        variant=name,
        kind=found.kind.value,
        sentence=_sentence(found.kind, reasons, name, policy, primary),
        reasons=reasons,
        notes=tuple(reason.text for reason in found.notes),
        projected_units=float(units) if isinstance(units, float | int) else None,
        metric=about.partition(" ")[0] if about.partition(" ")[0] in BUILT_IN else "",
        stratum=str(first.values.get("stratum") or ""),
    )


_OPENINGS: Final = {
    Kind.ROLLBACK: "{name} does harm",
    Kind.INVALID: "the comparison of {name} is not valid",
    Kind.WARMING_UP: "{name}: no verdict yet",
    Kind.HOLD: "{name} is held",
    Kind.PROMOTE: "{name} is better",
    Kind.KEEP_CONTROL_WORSE: "{name} is worse",
    Kind.KEEP_CONTROL_FUTILE: "{name} cannot become good enough",
    Kind.NO_DIFFERENCE: "{name} makes no difference that counts",
    Kind.CONTINUE: "{name}: undecided yet",
    Kind.INCONCLUSIVE: "{name}: no verdict in the time that was given",
}


def _whys(
    reasons: tuple[Reason, ...], policy: Policy, shown: Mapping[tuple[str, str], MetricLook]
) -> Iterator[Why]:
    """The reasons, and why a margin is 0 where that is why a guardrail is unclear."""
    for reason in reasons:
        yield _why(reason, policy, shown)
        about = str(reason.values.get("metric")), str(reason.values.get("stratum") or "")
        if reason.code == "guardrail_unclear" and about in shown:
            no_margin = why_no_margin(shown[about], policy)
            if no_margin:
                numbers = {"control_n": float(shown[about].control.n), "control_events": 0.0}
                yield Why("no_margin", no_margin, numbers)


def why_no_margin(look: MetricLook, policy: Policy) -> str:
    """What is missing for a relative margin that is 0 as yet; "" when it is another margin."""
    declared = {guard.metric: guard.maximum_harm for guard in policy.guardrails}.get(look.metric)
    share = declared.relative if declared is not None else None
    if not share or look.slo_ms is not None or look.margin != 0 or look.control.events != 0:
        return ""
    events, of = "events", "labels" if look.metric in LABEL_METRICS else "requests"
    if look.metric == "error_rate":
        events = "errors"
    return (
        f"{look.metric}: {plain.percent(share)} of {policy.control}'s is a margin of 0 while "
        f"{policy.control} has 0 {events} in {plain.count(look.control.n)} {of}; it needs "
        "1 or more, or an absolute maximumHarm"
    )


def _why(reason: Reason, policy: Policy, shown: Mapping[tuple[str, str], MetricLook]) -> Why:
    """A reason in the metric's own unit and direction, with the arms' numbers."""
    values = {
        name: float(value)
        for name, value in reason.values.items()
        if isinstance(value, int | float) and abs(value) < -_ANY_LOSS
    }
    metric, stratum = str(reason.values.get("metric")), str(reason.values.get("stratum") or "")
    look = shown.get((metric, stratum))
    text = reason.text
    what = f"{metric} in {stratum}" if stratum else metric
    if reason.code in ("no_interval", "no_spread"):
        if look is not None:
            text = f"{what}: {too_few(look)}"
        elif policy.primary is None:
            text = "no primary metric is declared, so only harm can be shown"
        else:
            text = f"{policy.primary.metric}: nothing to compare yet"
    elif reason.code == "projected_units":
        about = float(format(values["units"], ".3g"))  # it is no more than a guess
        text = f"about {about:,.0f} units in all if the effect stays"
    elif look is not None and reason.code in ("harm", "stratum_harm"):
        text = f"{what} is worse: {gap(look)}"
        if reason.code == "harm" and values.get("margin"):
            text += f" ({number(look, values['margin'])} is tolerated)"
    elif look is not None and reason.code == "guardrail_unclear":
        text = f"{what} may be worse by more than {number(look, values['margin'])}: {gap(look)}"
    return Why(reason.code, text, values)


def _sentence(
    kind: Kind,
    reasons: tuple[Why, ...],
    name: str,
    policy: Policy,
    primary: MetricLook | None,
) -> str:
    opening = _OPENINGS[kind].format(name=name)
    about_primary = kind not in (Kind.ROLLBACK, Kind.INVALID, Kind.WARMING_UP, Kind.HOLD)
    if about_primary and primary is not None and primary.difference is not None:
        rest = [comparison(primary, policy.control)]
        rest += [r.text for r in reasons if r.code == "projected_units"]
        if kind is Kind.INCONCLUSIVE:
            rest += [r.text for r in reasons]
        return f"{opening}: {'; '.join(rest)}"
    return f"{opening}: {'; '.join(reason.text for reason in reasons)}"


def too_few(look: MetricLook) -> str:
    """Why two arms cannot be compared."""
    least = min(look.control.n, look.candidate.n)
    what = "labels" if look.metric in LABEL_METRICS else "answers"
    return f"no {what} in one arm yet" if not least else f"too few {what} yet"


def comparison(look: MetricLook, control: str) -> str:
    """Both arms, the difference and its interval: "accuracy 94.9 % of 1,210, control ..."."""
    text = (
        f"{_shown(look)} {number(look, look.candidate.value)} of "
        f"{plain.count(look.candidate.n)}, {control} {number(look, look.control.value)} of "
        f"{plain.count(look.control.n)}"
    )
    if look.difference is not None:
        text += f", difference {signed(look, look.difference)}"
    if look.low is not None and look.high is not None:
        text += f" [{signed(look, look.low)}, {signed(look, look.high)}]"
    return text


def gap(look: MetricLook) -> str:
    """The harm in numbers: "80.1 % of 412 against 95 % of 400"."""
    return (
        f"{number(look, look.candidate.value)} of {plain.count(look.candidate.n)} against "
        f"{number(look, look.control.value)} of {plain.count(look.control.n)}"
    )


def number(look: MetricLook, value: float | None) -> str:
    """A value of the look's metric as people read it."""
    if value is None:
        return "unknown"
    if BUILT_IN[look.metric].unit and look.slo_ms is None:
        return plain.milliseconds(value)
    return plain.percent(value)


def signed(look: MetricLook, value: float) -> str:
    """A difference with its sign."""
    text = number(look, abs(value))
    return f"{'-' if value < 0 else '+'}{text}"
