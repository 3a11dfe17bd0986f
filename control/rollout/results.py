"""What the evidence says of every metric, as the API shows it. Pure.

Owns the comparisons, their standing and what is missing for one, fairness gaps, balance over the
day, and the sentence that comes first. Refuses to judge: verdicts come from the decision table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

from google.protobuf.duration_pb2 import Duration

from control import views
from control.rollout import judging
from control.rollout.cells import Cells
from control.rollout.entries import ExperimentEntry
from control.rollout.judging import CandidateVerdict
from control.rollout.looks import ArmLook, Looks, Method, MetricLook
from control.rollout.policy import Policy
from control.rollout.reduce import guardrails, primary_alpha, strata_of
from control.rollout.run import Run
from turnout.v1alpha1 import experiment_service_pb2 as api


def fill(
    message: api.ExperimentResults,
    entry: ExperimentEntry,
    cells: Cells,
    looks: Looks | None,
    *,
    now_ms: int,
) -> None:
    """Everything that cells show, into the results of an experiment.

    Args:
        message: To be completed.
        entry: The experiment, running or ended.
        cells: Of its epochs.
        looks: At them, with every metric that is to be shown.
        now_ms: Unix milliseconds.
    """
    run, policy = entry.run, entry.policy
    if looks is None:
        message.sentence = run.reason or _nothing(run, cells)
        return
    # What is only shown has no part in the verdict: the loop does not look at it.
    asked = {guardrail.metric for guardrail in guardrails(policy)}
    judged = replace(looks, metrics=tuple(one for one in looks.metrics if one.metric in asked))
    names = dict.fromkeys(look.variant for look in looks.metrics)
    found = _verdicts(judged, names, policy, run, now_ms)
    message.sentence = first_sentence(entry, found)
    message.verdicts.extend(views.verdict_message(verdict) for verdict in found)
    alpha = primary_alpha(policy) / max(1, len(names))
    message.comparisons.extend(
        _comparison(look, policy, 1 - (alpha / strata_of(policy) if look.stratum else alpha))
        for look in looks.metrics
        if look.control.n or look.candidate.n
    )
    for ratio in looks.sample_ratios:
        message.sample_ratios.add(
            epoch=ratio.epoch,
            stratum=ratio.stratum,
            log_e_value=ratio.log_e,
            units=ratio.units,
            shares=ratio.shares,
        )
    message.fairness_gaps.extend(_gaps(looks, policy))
    _balance(message, cells)
    for name, requests in (looks.requests or {}).items():
        seconds = (now_ms - cells.epochs[0].start_ms) / 1000
        if run.end_ms:
            seconds = (run.end_ms - cells.epochs[0].start_ms) / 1000
        if seconds > 0:
            message.throughput[name] = requests / seconds


def _nothing(run: Run, cells: Cells) -> str:
    missing = sum(cell.missing for cell in cells.cells.values())
    if missing:
        return (
            f"nothing can be compared: of {missing:,} requests no sidecar told the buckets of "
            "units (an older version, or beyond a bound)"
        )
    return "nothing was started" if not run.epoch else "nothing to compare yet"


def _verdicts(
    looks: Looks, names: Iterable[str], policy: Policy, run: Run, now_ms: int
) -> list[CandidateVerdict]:
    if run.step >= len(policy.steps):
        return []
    step = policy.steps[run.step]
    until_ms = run.end_ms or now_ms
    return [judging.verdict(looks, policy, step, name, run=run, now_ms=until_ms) for name in names]


def first_sentence(entry: ExperimentEntry, found: Iterable[CandidateVerdict]) -> str:
    """What there is to know: why it ended, or what the table says of the candidates."""
    if entry.run.reason:
        return entry.run.reason
    return "; ".join(verdict.sentence for verdict in found) or "nothing to compare yet"


# -- Comparisons -------------------------------------------------------------------------------


def _comparison(look: MetricLook, policy: Policy, confidence: float) -> api.Comparison:
    standing = standing_of(look)
    message = api.Comparison(
        metric=look.metric,
        variant=look.variant,
        stratum=look.stratum,
        higher_is_better=look.higher_is_better,
        control=_arm(look.control),
        candidate=_arm(look.candidate),
        difference=look.difference,
        low=look.low,
        high=look.high,
        confidence=confidence,
        margin=look.margin,
        standing=standing,
        sentence=_sentence(look, standing, policy),
        projected_n=_projected(look, standing),
        method=str(look.method),
    )
    if look.slo_ms is not None:
        message.slo.CopyFrom(_duration(look.slo_ms))
    return message


def _duration(ms: float) -> Duration:
    return Duration(seconds=int(ms // 1000), nanos=int(ms % 1000 * 1_000_000))


def _arm(arm: ArmLook) -> api.ArmValue:
    return api.ArmValue(n=arm.n, events=arm.events, value=arm.value, label_coverage=arm.coverage)


def standing_of(look: MetricLook) -> api.Standing.ValueType:
    """Where a candidate stands on one metric."""
    if look.method is Method.NONE or look.difference is None:
        return api.STANDING_NO_DATA
    if judging.is_shown_worse(look):
        return api.STANDING_WORSE
    if judging.is_better(look):
        return api.STANDING_BETTER
    if look.margin is not None and look.worst is not None and look.worst > -look.margin:
        return api.STANDING_NOT_WORSE
    return api.STANDING_UNCLEAR


def _sentence(look: MetricLook, standing: api.Standing.ValueType, policy: Policy) -> str:
    where = f" in {look.stratum}" if look.stratum else ""
    said = judging.comparison(look, policy.control)
    if standing == api.STANDING_NO_DATA:
        return f"{look.variant}{where}: {look.metric}: {judging.too_few(look)}"
    words = {
        api.STANDING_WORSE: "worse beyond doubt",
        api.STANDING_BETTER: "better",
        api.STANDING_NOT_WORSE: "not worse",
        api.STANDING_UNCLEAR: "unclear",
    }[standing]
    no_margin = judging.why_no_margin(look, policy) if standing == api.STANDING_UNCLEAR else ""
    rest = f"; {no_margin}" if no_margin else ""
    return f"{look.variant}{where} is {words}: {said}{rest}"


def _projected(look: MetricLook, standing: api.Standing.ValueType) -> float | None:
    """N of both arms at which it would be not worse (or, without a margin, better or worse).

    Widths are taken to fall with the root of n, a little faster than they do.
    """
    gain, worst = look.gain, look.worst
    if standing != api.STANDING_UNCLEAR or gain is None:
        return None
    n = look.control.n + look.candidate.n
    if look.margin is not None:
        if worst is None or gain + look.margin <= 0 or gain <= worst:
            return None
        ratio = (gain - worst) / (gain + look.margin)
    elif look.low is not None and look.high is not None and look.difference:
        ratio = (look.high - look.low) / 2 / abs(look.difference)
    else:
        return None
    projected = n * max(ratio, 1.0) ** 2
    return projected if math.isfinite(projected) else None


# -- Beside ------------------------------------------------------------------------------------


def _gaps(looks: Looks, policy: Policy) -> Iterator[api.FairnessGap]:
    """How far apart the strata of one variant are, by metric."""
    names = dict.fromkeys(look.variant for look in looks.metrics)
    metrics = dict.fromkeys(look.metric for look in looks.metrics if look.slo_ms is None)
    first = next(iter(names), "")
    for metric in metrics:
        for variant in (policy.control, *names):
            of = first if variant == policy.control else variant
            values = {
                look.stratum: arm.value
                for look in looks.metrics
                if (look.metric, look.variant, look.slo_ms) == (metric, of, None) and look.stratum
                for arm in ((look.control if variant == policy.control else look.candidate),)
                if arm.value is not None
            }
            if len(values) < 2:
                continue
            lowest = min(values, key=lambda name: values[name])
            highest = max(values, key=lambda name: values[name])
            yield api.FairnessGap(
                variant=variant,
                metric=metric,
                lowest_stratum=lowest,
                lowest=values[lowest],
                highest_stratum=highest,
                highest=values[highest],
            )


def _balance(message: api.ExperimentResults, cells: Cells) -> None:
    """Shares of each arm's requests by hour, in the present epoch."""
    present = cells.epochs[-1].epoch
    hours: dict[str, list[int]] = {}
    for key, cell in sorted(cells.cells.items()):
        if key.epoch == present:
            known = hours.setdefault(key.variant, [0] * 24)
            hours[key.variant] = [a + int(b) for a, b in zip(known, cell.hours, strict=True)]
    totals = {name: sum(counts) for name, counts in hours.items() if sum(counts)}
    for hour in range(24):
        shares = {name: hours[name][hour] / total for name, total in totals.items()}
        if any(shares.values()):
            message.hours.add(hour=hour, shares=shares)
            if len(shares) > 1:
                gap = max(shares.values()) - min(shares.values())
                message.hour_gap = max(message.hour_gap, gap)
