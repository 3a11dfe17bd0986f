"""Rules about layers: what a layer may hold, and what its experiments must agree on.

Experiments of one layer on one target exclude each other by the ranges that they reserve; layers
are independent. Which ranges are free when is not known here: `control.snapshot` and the start say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from control.model.defaults import experiment_with_defaults
from control.model.rules import check_label, check_number
from control.model.violations import Report, join
from turnout.contract import BUCKET_COUNT, HEADER_PARAMETER_PREFIX, LAYER_MODELS
from turnout.v1alpha1.common_pb2 import Unit
from turnout.v1alpha1.experiment_pb2 import ON_FINISH_PROMOTE, ExperimentSpec, Variant

RESERVE_MIN: Final = 1 / BUCKET_COUNT


def layer_name(spec: ExperimentSpec) -> str:
    """The layer that an experiment is in."""
    return spec.layer.name or LAYER_MODELS


def layer_order(layer: str) -> tuple[bool, str]:
    """Sorts layers: `models` first, then by name."""
    return layer != LAYER_MODELS, layer


def reserved(spec: ExperimentSpec) -> float:
    """The share of its layer that an experiment wants."""
    return spec.layer.reserve if spec.layer.HasField("reserve") else 1.0


def same_unit(one: ExperimentSpec, other: ExperimentSpec) -> bool:
    """True when two experiments take the unit of a request from the same place.

    Ranges of one layer exclude each other only then: by another unit, a request is in another
    bucket.
    """
    units = [Unit(), Unit()]
    for unit, spec in zip(units, (one, other), strict=True):
        unit.CopyFrom(experiment_with_defaults(spec).unit)
        unit.ClearField("no_unit")
        if unit.HasField("session"):
            unit.session.ClearField("max_age")
    return units[0] == units[1]


def check_layer(
    report: Report, spec: ExperimentSpec, siblings: Mapping[str, ExperimentSpec]
) -> None:
    """An experiment's layer, by itself and beside the target's other experiments."""
    name = layer_name(spec)
    check_label(report, "spec.layer.name", name)
    if spec.layer.HasField("reserve"):
        check_number(report, "spec.layer.reserve", spec.layer.reserve, RESERVE_MIN, 1)
    if name != LAYER_MODELS:
        _check_no_routing(report, spec, name)
    _check_keys(report, spec, name, siblings)
    _check_salts(report, spec, name, siblings)


def _check_salts(
    report: Report, spec: ExperimentSpec, name: str, siblings: Mapping[str, ExperimentSpec]
) -> None:
    """Layers are independent of one another only by their experiments' salts."""
    for other, sibling in sorted(siblings.items()):
        if spec.salt and sibling.salt == spec.salt and layer_name(sibling) != name:
            rule = (
                f'experiment "{other}" in layer {layer_name(sibling)} has it: who gets a variant '
                "of the one would get the same of the other; leave it out to get one of its own"
            )
            report.add("spec.salt", spec.salt, rule)
            return


def check_layer_variant(report: Report, path: str, spec: ExperimentSpec, variant: Variant) -> None:
    """A candidate of a layer that routes nothing: it differs in its parameters alone."""
    name = layer_name(spec)
    if name == LAYER_MODELS:
        return
    for field in ("upstream", "model"):
        if variant.HasField(field):
            rule = f"only the layer {LAYER_MODELS} names upstreams, not {name}: use parameters"
            report.add(f"{path}.{field}", "set", rule)


def _check_no_routing(report: Report, spec: ExperimentSpec, name: str) -> None:
    for index, step in enumerate(spec.steps):
        if step.WhichOneof("kind") == "shadow":
            rule = f"needs a candidate with an upstream: the layer {LAYER_MODELS}, not {name}"
            report.add(f"spec.steps[{index}].shadow", step.shadow.variant or "set", rule)
    if spec.on_finish == ON_FINISH_PROMOTE:
        rule = f"only a candidate of the layer {LAYER_MODELS} can become the baseline; use hold"
        report.add("spec.onFinish", "promote", rule)


def _check_keys(
    report: Report, spec: ExperimentSpec, name: str, siblings: Mapping[str, ExperimentSpec]
) -> None:
    """No parameter that another layer stamps, too: a request would have two values of it."""
    for sibling in sorted(siblings):
        other = siblings[sibling]
        if other.target != spec.target or layer_name(other) == name:
            continue
        theirs = {key for variant in other.variants for key in variant.parameters}
        for index, variant in enumerate(spec.variants):
            for key in sorted(theirs.intersection(variant.parameters)):
                rule = (
                    f"experiment {sibling} in layer {layer_name(other)} of this target sets "
                    f"{HEADER_PARAMETER_PREFIX}{key}, too: use another key, or the same layer"
                )
                report.add(join(f"spec.variants[{index}].parameters", key), key, rule)
