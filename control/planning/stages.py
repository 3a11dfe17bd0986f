"""An experiment's steps as a plan sees them: who gets which share, how long, and what must hold.

Reads a spec whose declared metrics are resolved and that `control.model` accepts. Computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from control.model import defaults
from control.model.durations import milliseconds
from control.rollout.policy import GuardrailPolicy, Margin, kind_of
from control.rollout.words import Kind
from turnout.v1alpha1.common_pb2 import Margin as MarginMessage
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec

SHARE_ERROR: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Stage:
    """One step.

    Attributes:
        index: Into the steps.
        kind: "shadow", "canary", "ab", "bandit" or "approval".
        field: Path in the resource file.
        shares: Candidate -> share of the experiment's units; for a shadow of their copies.
        control: Control's share, 0 when the split leaves none.
        dwell_s: At least so long.
        maximum_s: At most so long; None = no limit.
        checks: Metrics that must pass.
        minimum_requests: Of each candidate.
        minimum_units: Of each arm (ab).
        confidence: Of an ab step, else None.
    """

    index: int
    kind: str
    field: str
    shares: dict[str, float]
    control: float
    dwell_s: float
    maximum_s: float | None = None
    checks: tuple[str, ...] = ()
    minimum_requests: int = 0
    minimum_units: int = 0
    confidence: float | None = None

    @property
    def lane_candidates(self) -> tuple[str, ...]:
        """Candidates that a lane watches; none without a control, and none of a shadow."""
        return () if self.kind == "shadow" or not self.control else tuple(self.shares)


def stages_of(spec: ExperimentSpec) -> tuple[Stage, ...]:
    """The steps of a spec, with or without its defaults."""
    full = defaults.experiment_with_defaults(spec)
    return tuple(_stage(full, index) for index in range(len(full.steps)))


def _stage(full: ExperimentSpec, index: int) -> Stage:
    step = full.steps[index]
    kind = step.WhichOneof("kind") or ""
    field = f"spec.steps[{index}].{kind}"
    given = defaults.split_at(full, index)  # a map of the contract has no order of its own
    split = {name: given[name] for name in defaults.candidates(full) if given.get(name, 0) > 0}
    left = 1 - sum(split.values())
    control = left if left > SHARE_ERROR else 0.0
    if kind == "shadow":
        shares = {step.shadow.variant: step.shadow.fraction}
        dwell_s = milliseconds(step.shadow.dwell) / 1e3
        minimum = step.shadow.minimum_requests
        return Stage(index, kind, field, shares, control, dwell_s, minimum_requests=minimum)
    if kind == "canary":
        canary = step.canary
        return Stage(
            index,
            kind,
            field,
            split,
            control,
            milliseconds(canary.dwell) / 1e3,
            checks=tuple(canary.checks),
            minimum_requests=canary.minimum_requests,
        )
    if kind == "ab":
        limited = step.ab.HasField("maximum_duration")
        return Stage(
            index,
            kind,
            field,
            split,
            control,
            milliseconds(step.ab.minimum_duration) / 1e3,
            milliseconds(step.ab.maximum_duration) / 1e3 if limited else None,
            minimum_units=step.ab.minimum_units,
            confidence=step.ab.confidence,
        )
    if kind == "bandit":
        length_s = milliseconds(step.bandit.dwell) / 1e3
        return Stage(index, kind, field, split, control, length_s, length_s)
    return Stage(index, kind, field, split, control, 0.0)


def guardrails_of(spec: ExperimentSpec) -> dict[str, GuardrailPolicy]:
    """Metric -> guardrail."""
    return {
        guardrail.metric: GuardrailPolicy(
            guardrail.metric,
            margin_of(guardrail.maximum_harm) if guardrail.HasField("maximum_harm") else None,
            milliseconds(guardrail.slo) if guardrail.HasField("slo") else None,
        )
        for guardrail in spec.metrics.guardrails
    }


def margin_of(message: MarginMessage) -> Margin | None:
    """A margin in the metric's unit (milliseconds for latencies)."""
    which = message.WhichOneof("value")
    if which is None:
        return None
    if which == "relative":
        return Margin(relative=message.relative)
    if which == "absolute_duration":
        return Margin(absolute=milliseconds(message.absolute_duration))
    return Margin(absolute=message.absolute)


def lane_kinds(spec: ExperimentSpec) -> tuple[Kind, ...]:
    """Kinds of bad events that have a lane."""
    return tuple(kind_of(number) for number in defaults.bad_event_kinds(spec))
