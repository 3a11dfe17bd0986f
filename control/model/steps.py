"""Rules about an experiment's steps: every step by itself, and the walk through them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from control.model.defaults import METRICS, PLANNED_METRICS, candidates
from control.model.rules import (
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
METRIC_RULE: Final = f"unknown metric; known: {', '.join(METRICS)}"


def check_steps(report: Report, spec: ExperimentSpec) -> None:
    """All steps of a spec."""
    if not 1 <= len(spec.steps) <= STEPS_MAX:
        report.add("spec.steps", f"{len(spec.steps)} steps", f"must be 1 to {STEPS_MAX}")
        return
    known = candidates(spec)
    reached: dict[str, float] = {}  # candidate -> its share in the step before
    for index, step in enumerate(spec.steps):
        path = f"spec.steps[{index}]"
        kind = step.WhichOneof("kind")
        if kind is None:
            report.add(path, "none", "must have exactly one of shadow, canary, ab")
        elif kind == "shadow":
            _check_shadow(report, f"{path}.shadow", step.shadow, known)
            if reached:
                rule = "must come before the first step with a split: users would leave a candidate"
                report.add(f"{path}.shadow", f"step {index}", rule)
        elif kind == "canary":
            _check_canary(report, f"{path}.canary", step.canary)
        elif kind == "ab":
            _check_ab(report, f"{path}.ab", step.ab)
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


def _check_canary(report: Report, path: str, step: CanaryStep) -> None:
    _check_dwell(report, path, step)
    if len(step.checks) > CHECKS_MAX:
        report.add(f"{path}.checks", f"{len(step.checks)} checks", f"at most {CHECKS_MAX}")
    for index, metric in enumerate(step.checks[:CHECKS_MAX]):
        if metric not in (*METRICS, *PLANNED_METRICS):
            report.add(f"{path}.checks[{index}]", metric, METRIC_RULE)
    check_unique(report, f"{path}.checks", step.checks[:CHECKS_MAX])
    if step.HasField("minimum_requests"):
        check_number(report, f"{path}.minimumRequests", step.minimum_requests, 1, REQUESTS_MAX)
    if step.on_undecided not in OnUndecided.values():
        report.add(f"{path}.onUndecided", step.on_undecided, "unknown value")
    if step.HasField("lease"):
        check_duration(report, f"{path}.lease", step.lease, ZERO, YEAR, open_low=True)


def _check_dwell(report: Report, path: str, step: ShadowStep | CanaryStep) -> None:
    if step.HasField("dwell"):
        check_duration(report, f"{path}.for", step.dwell, ZERO, YEAR, open_low=True)
    else:
        report.add(f"{path}.for", "missing", "required; how long the step lasts at least")


def _check_ab(report: Report, path: str, step: AbStep) -> None:
    if step.HasField("confidence"):
        check_number(
            report, f"{path}.confidence", step.confidence, 0, 1, open_low=True, open_high=True
        )
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
    if last.WhichOneof("kind") not in ("canary", "ab"):
        rule = "promote needs a last step with a split: nobody was served by the candidate"
        report.add("spec.onFinish", "promote", rule)
        return
    served = sorted(name for name, share in _split(last).items() if share > 0)
    if len(served) != 1:
        value = ", ".join(served[:10]) or "none"
        report.add("spec.onFinish", value, "promote needs one candidate in the last step's split")
