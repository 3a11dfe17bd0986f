"""Features that resources can name and this version lacks: refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from control.model.defaults import metric_names
from control.model.metrics import KnownMetrics, not_live
from control.model.violations import Feature
from turnout.v1alpha1.experiment_pb2 import (
    ON_UNDECIDED_HOLD,
    ON_UNDECIDED_UNSPECIFIED,
    ExperimentSpec,
    Step,
)

_NO_OTHERS: Final = KnownMetrics()


def unimplemented_experiment(
    spec: ExperimentSpec, metrics: KnownMetrics = _NO_OTHERS
) -> list[Feature]:
    """Field paths of features that are not implemented.

    Args:
        spec: With or without defaults.
        metrics: Those that it may name beside the built-in ones.
    """
    return [*_metrics(spec, metrics), *map(Feature, _experiment(spec))]


def _metrics(spec: ExperimentSpec, metrics: KnownMetrics) -> Iterator[Feature]:
    for path, name in metric_names(spec):
        found = metrics.find(name)
        if found is not None and not found.live:
            yield Feature(path, not_live(found))


def _experiment(spec: ExperimentSpec) -> Iterator[str]:
    for index, step in enumerate(spec.steps):
        yield from (f"spec.steps[{index}].{feature}" for feature in _step(step))
    if spec.HasField("holdback"):
        yield "spec.holdback"
    if spec.safety.autonomous:
        yield "spec.safety.autonomous"


def _step(step: Step) -> Iterator[str]:
    kind = step.WhichOneof("kind")
    if kind == "approval":
        yield str(kind)
    elif kind == "canary":
        if step.canary.HasField("lease"):
            yield "canary.lease"
        if step.canary.on_undecided not in (ON_UNDECIDED_UNSPECIFIED, ON_UNDECIDED_HOLD):
            yield "canary.onUndecided"
