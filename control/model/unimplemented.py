"""Features that resources can name and this version lacks: refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Iterator

from control.model.defaults import PLANNED_METRICS
from turnout.v1alpha1.experiment_pb2 import (
    ON_UNDECIDED_HOLD,
    ON_UNDECIDED_UNSPECIFIED,
    ExperimentSpec,
    Step,
)


def unimplemented_experiment(spec: ExperimentSpec) -> list[str]:
    """Field paths of features that are not implemented."""
    return list(_experiment(spec))


def _experiment(spec: ExperimentSpec) -> Iterator[str]:
    if spec.strata:
        yield "spec.strata"
    if spec.metrics.primary.metric in PLANNED_METRICS:
        yield "spec.metrics.primary.metric"
    for index, guardrail in enumerate(spec.metrics.guardrails):
        if guardrail.metric in PLANNED_METRICS:
            yield f"spec.metrics.guardrails[{index}].metric"
    for index, step in enumerate(spec.steps):
        yield from (f"spec.steps[{index}].{feature}" for feature in _step(step))
    if spec.HasField("holdback"):
        yield "spec.holdback"
    if spec.safety.autonomous:
        yield "spec.safety.autonomous"


def _step(step: Step) -> Iterator[str]:
    kind = step.WhichOneof("kind")
    if kind in ("approval", "bandit"):
        yield str(kind)
    elif kind == "canary":
        for index, metric in enumerate(step.canary.checks):
            if metric in PLANNED_METRICS:
                yield f"canary.checks[{index}]"
        if step.canary.HasField("lease"):
            yield "canary.lease"
        if step.canary.on_undecided not in (ON_UNDECIDED_UNSPECIFIED, ON_UNDECIDED_HOLD):
            yield "canary.onUndecided"
