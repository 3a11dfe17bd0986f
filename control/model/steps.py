"""Rules about an experiment's steps: every step by itself, and the walk through them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from google.protobuf.duration_pb2 import Duration

from control.model import durations
from control.model.defaults import EVERY_DEFAULT_S, THOMPSON, TOP_TWO, candidates
from control.model.metrics import KnownMetrics
from control.model.rules import (
    DAY,
    YEAR,
    ZERO,
    check_duration,
    check_number,
    check_unique,
)
from control.model.violations import Report, join
from turnout.contract import BUCKET_COUNT, STEPS_MAX
from turnout.v1alpha1.experiment_pb2 import (
    ON_FINISH_PROMOTE,
    AbStep,
    BanditStep,
    CanaryStep,
    ExperimentSpec,
    OnUndecided,
    ShadowStep,
    Step,
)

CHECKS_MAX: Final = 16
REQUESTS_MAX: Final = 10**12
# Sums of decimal fractions like 0.1 + 0.2 are not exact.
FRACTION_ERROR: Final = 1e-9
FRACTION_MIN: Final = 1 / BUCKET_COUNT
# Below a half a verdict would be a guess; nearer to 1 no traffic decides.
CONFIDENCE_RANGE: Final = (0.5, 0.999999)
BANDIT_EPOCHS_MAX: Final = 288  # five minutes of a day; a lane's threshold grows with every epoch
BANDIT_FLOOR_MIN: Final = 0.01
BANDIT_EVERY_MIN: Final = Duration(seconds=10)
BANDIT_REWARDS: Final = ("error_rate", "accuracy")


def check_steps(report: Report, spec: ExperimentSpec, metrics: KnownMetrics) -> None:
    """All steps of a spec.

    Args:
        report: Takes the faults.
        spec: With or without defaults.
        metrics: Those that it may name beside the built-in ones.
    """
    if not 1 <= len(spec.steps) <= STEPS_MAX:
        report.add("spec.steps", f"{len(spec.steps)} steps", f"must be 1 to {STEPS_MAX}")
        return
    known = candidates(spec)
    reached: dict[str, float] = {}  # candidate -> its share in the step before
    for index, step in enumerate(spec.steps):
        path = f"spec.steps[{index}]"
        kind = step.WhichOneof("kind")
        if kind is None:
            report.add(path, "none", "must have exactly one of shadow, canary, ab, bandit")
        elif kind == "shadow":
            _check_shadow(report, f"{path}.shadow", step.shadow, known)
            if reached:
                rule = "must come before the first step with a split: users would leave a candidate"
                report.add(f"{path}.shadow", f"step {index}", rule)
        elif kind == "canary":
            _check_canary(report, f"{path}.canary", step.canary, metrics)
        elif kind == "ab":
            _check_ab(report, f"{path}.ab", step.ab)
        elif kind == "bandit":
            _check_bandit(report, f"{path}.bandit", step.bandit, spec, metrics)
            if index + 1 < len(spec.steps):
                rule = "must be the last step: a ramp cannot grow from shares that nobody knows yet"
                report.add(f"{path}.bandit", f"step {index + 1}", rule)
        if kind in ("canary", "ab"):
            split = _split(step)
            if _check_split(report, f"{path}.{kind}.split", split, known):
                _check_growth(report, f"{path}.{kind}.split", reached, split)
                reached = {name: split.get(name, 0.0) for name in known}
    _check_finish(report, spec)


def _split(step: Step) -> Mapping[str, float]:
    return step.canary.split if step.HasField("canary") else step.ab.split


def _check_split(report: Report, path: str, split: Mapping[str, float], known: list[str]) -> bool:
    """The fractions by themselves; True when all are numbers of 0 to 1."""
    if not split:
        report.add(path, "missing", "required; a fraction of the units for each candidate")
    valid = True
    for name in sorted(split):
        here = join(path, name)
        if name not in known:
            report.add(here, name, f"must name a candidate: {', '.join(known[:10]) or 'none'}")
        valid &= check_number(report, here, split[name], 0, 1)
        if 0 < split[name] < FRACTION_MIN:
            report.add(here, split[name], f"must be 0 or at least {FRACTION_MIN:f}: one bucket")
    if valid and sum(split.values()) > 1 + FRACTION_ERROR:
        shares = " + ".join(f"{split[name]:g}" for name in sorted(split))
        report.add(path, shares, "the fractions of all candidates must not be more than 1 together")
    return valid


def _check_growth(
    report: Report, path: str, before: Mapping[str, float], after: Mapping[str, float]
) -> None:
    for name in sorted(before):
        share = after.get(name, 0.0)
        if share < before[name]:
            rule = f"must be at least {before[name]:g}, as in the step before: a ramp only grows"
            report.add(join(path, name), share, rule)


def _check_shadow(report: Report, path: str, step: ShadowStep, known: list[str]) -> None:
    if step.variant not in known:
        rule = f"must name a candidate: {', '.join(known[:10]) or 'none'}"
        report.add(f"{path}.variant", step.variant or "missing", rule)
    if step.HasField("fraction"):
        check_number(report, f"{path}.fraction", step.fraction, FRACTION_MIN, 1)
    _check_dwell(report, path, step)
    if step.HasField("minimum_requests"):
        check_number(report, f"{path}.minimumRequests", step.minimum_requests, 1, REQUESTS_MAX)


def _check_canary(report: Report, path: str, step: CanaryStep, metrics: KnownMetrics) -> None:
    _check_dwell(report, path, step)
    if len(step.checks) > CHECKS_MAX:
        report.add(f"{path}.checks", f"{len(step.checks)} checks", f"at most {CHECKS_MAX}")
    for index, metric in enumerate(step.checks[:CHECKS_MAX]):
        if (fault := metrics.fault(metric)) is not None:
            report.add(f"{path}.checks[{index}]", metric or "missing", fault)
    check_unique(report, f"{path}.checks", step.checks[:CHECKS_MAX])
    if step.HasField("minimum_requests"):
        check_number(report, f"{path}.minimumRequests", step.minimum_requests, 1, REQUESTS_MAX)
    if step.on_undecided not in OnUndecided.values():
        report.add(f"{path}.onUndecided", step.on_undecided, "unknown value")
    if step.HasField("lease"):
        check_duration(report, f"{path}.lease", step.lease, ZERO, YEAR, open_low=True)


def _check_bandit(
    report: Report, path: str, step: BanditStep, spec: ExperimentSpec, metrics: KnownMetrics
) -> None:
    if step.algorithm not in ("", THOMPSON, TOP_TWO):
        report.add(f"{path}.algorithm", step.algorithm, f"must be {THOMPSON} or {TOP_TWO}")
    _check_reward(report, f"{path}.reward.metric", step.reward.metric, metrics)
    if step.HasField("exploration_floor"):
        here, most = f"{path}.explorationFloor", 1 / max(len(spec.variants), 1)
        check_number(report, here, step.exploration_floor, BANDIT_FLOOR_MIN, most)
    if step.HasField("minimum_requests"):
        check_number(report, f"{path}.minimumRequests", step.minimum_requests, 1, REQUESTS_MAX)
    every = step.every if step.HasField("every") else Duration(seconds=EVERY_DEFAULT_S)
    if not check_duration(report, f"{path}.every", every, BANDIT_EVERY_MIN, DAY):
        return
    if not step.HasField("dwell"):
        report.add(f"{path}.for", "missing", "required; how long the bandit lasts")
    elif check_duration(report, f"{path}.for", step.dwell, every, YEAR):
        times = durations.milliseconds(step.dwell) / durations.milliseconds(every)
        if times > BANDIT_EPOCHS_MAX:
            rule = f"must be at most {BANDIT_EPOCHS_MAX} times `every`: raise that, or be shorter"
            report.add(f"{path}.for", f"{times:g} times", rule)


def _check_reward(report: Report, path: str, metric: str, metrics: KnownMetrics) -> None:
    known = f"must be {' or '.join(BANDIT_REWARDS)}, or declared as one of them"
    fault = metrics.fault(metric)
    if not metric:
        report.add(path, "missing", f"required; {known}")
    elif fault is not None:
        report.add(path, metric, fault)
    elif (live := metrics.measured_as(metric)) and live not in BANDIT_REWARDS:
        report.add(path, metric, f"{known}: a reward is what one request earns")


def _check_dwell(report: Report, path: str, step: ShadowStep | CanaryStep) -> None:
    if step.HasField("dwell"):
        check_duration(report, f"{path}.for", step.dwell, ZERO, YEAR, open_low=True)
    else:
        report.add(f"{path}.for", "missing", "required; how long the step lasts at least")


def _check_ab(report: Report, path: str, step: AbStep) -> None:
    if step.HasField("confidence"):
        least, most = CONFIDENCE_RANGE
        check_number(report, f"{path}.confidence", step.confidence, least, most)
    if step.HasField("minimum_units"):
        check_number(report, f"{path}.minimumUnits", step.minimum_units, 0, REQUESTS_MAX)
    valid = True
    for name, field in (
        ("minimumDuration", "minimum_duration"),
        ("maximumDuration", "maximum_duration"),
    ):
        if step.HasField(field):  # type: ignore[arg-type]
            valid &= check_duration(report, f"{path}.{name}", getattr(step, field), ZERO, YEAR)
    if valid and step.HasField("maximum_duration") and step.HasField("minimum_duration"):
        check_duration(
            report, f"{path}.maximumDuration", step.maximum_duration, step.minimum_duration, YEAR
        )


def _check_finish(report: Report, spec: ExperimentSpec) -> None:
    """Promotion needs one candidate that the last step gives traffic to."""
    if spec.on_finish != ON_FINISH_PROMOTE:
        return
    last = spec.steps[-1]
    if last.HasField("bandit"):
        return  # the evidence says which one
    if last.WhichOneof("kind") not in ("canary", "ab"):
        rule = "promote needs a last step with a split: nobody was served by the candidate"
        report.add("spec.onFinish", "promote", rule)
        return
    served = sorted(name for name, share in _split(last).items() if share > 0)
    if len(served) != 1:
        value = ", ".join(served[:10]) or "none"
        report.add("spec.onFinish", value, "promote needs one candidate in the last step's split")
