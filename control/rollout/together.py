"""Experiments of one target at once: what each may start with, what a new baseline means to it.

Pure. Owns the rules of layers at run time. A layer's buckets are reserved from the start of an
experiment to its end, the first free ones first. When an experiment of the layer `models` is
promoted, the others of that layer keep the control they were started with: their evidence compares
with that one, and to replace the new baseline by a candidate that was never compared with it takes
an operator's force. Experiments of other layers route nothing and follow the new baseline.
"""

from __future__ import annotations

from dataclasses import replace

from control import model, snapshot
from control.refusals import exhausted, precondition
from control.rollout import plain
from control.rollout.entries import (
    ExperimentEntry,
    ExperimentState,
    TargetEntry,
    encode_baseline,
)
from control.rollout.tenant import Tenant, mirroring_experiments
from turnout import contract


def check_start(tenant: Tenant, entry: ExperimentEntry) -> None:
    """Refuse an experiment that cannot run beside those that do.

    Raises:
        Refused: FAILED_PRECONDITION or RESOURCE_EXHAUSTED.
    """
    target = entry.spec.target
    if target not in tenant.targets:
        raise precondition("NO_TARGET", f"target {target} does not exist", target=target)
    others = _others(tenant, entry)
    if len(others) >= contract.EXPERIMENTS_PER_TARGET_MAX:
        message = f"{len(others)} experiments run on target {target}: end one of them first"
        raise exhausted("TOO_MANY_ON_TARGET", message, target=target)
    layers = {other.layer for other in others}
    if entry.layer not in layers and len(layers) >= contract.LAYERS_PER_TARGET_MAX:
        message = f"{len(layers)} layers of target {target} are in use: take one of them"
        raise exhausted("TOO_MANY_LAYERS", message, target=target)
    for other in others:
        if other.layer == entry.layer and not model.same_unit(other.spec, entry.spec):
            message = (
                f"experiment {other.name} runs in layer {entry.layer} of target {target} with "
                "another unit: give both the same unit, or take another layer"
            )
            raise precondition("UNIT_DIFFERS", message, experiment=other.name)
    _reserved(tenant, entry)


def _others(tenant: Tenant, entry: ExperimentEntry) -> list[ExperimentEntry]:
    return [other for other in tenant.live_on(entry.spec.target) if other.name != entry.name]


def _reserved(tenant: Tenant, entry: ExperimentEntry) -> snapshot.Ranges:
    """The buckets of its layer that an experiment gets now.

    Raises:
        Refused: FAILED_PRECONDITION, too few are free.
    """
    holders = [other for other in _others(tenant, entry) if other.layer == entry.layer]
    taken = [other.layer_ranges for other in holders]
    try:
        return snapshot.reserve(taken, model.reserved(entry.spec))
    except snapshot.LayerFull as full:
        held = ", ".join(
            f"{other.name} holds {_share(snapshot.size(other.layer_ranges))}" for other in holders
        )
        message = (
            f"layer {entry.layer} of target {entry.spec.target} has {_share(full.left)} left and "
            f"{entry.name} wants {_share(full.wanted)}: {held}; end one of them, or lower "
            "spec.layer.reserve"
        )
        raise precondition(
            "LAYER_RESERVED", message, experiment=holders[0].name, left=f"{full.left}"
        ) from full


def _share(buckets: int) -> str:
    return plain.percent(buckets / contract.BUCKET_COUNT)


def started(tenant: Tenant, entry: ExperimentEntry, target: TargetEntry) -> ExperimentState:
    """The state of an experiment with what it keeps from its start to its end.

    Raises:
        Refused: FAILED_PRECONDITION, too little of its layer is free.
    """
    routes = entry.layer == contract.LAYER_MODELS
    holdout = tenant.holdout
    fraction = holdout.spec.fraction if holdout else 0.0
    return replace(
        entry.state,
        baseline=encode_baseline(target.spec.baseline) if routes else "",
        layer_ranges=_reserved(tenant, entry),
        holdout_salt=holdout.spec.salt if holdout else "",
        holdout_ppm=snapshot.bucket_count(fraction),
    )


def check_promote(entry: ExperimentEntry) -> None:
    """Refuse to promote what has no upstream.

    Raises:
        Refused: FAILED_PRECONDITION.
    """
    if entry.layer != contract.LAYER_MODELS:
        message = (
            f"{entry.name} is in layer {entry.layer}, whose variants differ in parameters alone: "
            "none of them can become the baseline; set the parameter where it is read, and stop it"
        )
        raise precondition("NOTHING_TO_PROMOTE", message, layer=entry.layer)


def baseline_moved(tenant: Tenant, entry: ExperimentEntry) -> bool:
    """True when the target's baseline is no longer the control of a live experiment."""
    target = tenant.targets.get(entry.spec.target)
    if target is None or not entry.run.live or not entry.state.baseline:
        return False
    return entry.state.baseline != encode_baseline(target.spec.baseline)


def compared_with(tenant: Tenant, target: TargetEntry) -> list[ExperimentEntry]:
    """Live experiments whose control is the target's present baseline, by name."""
    present = encode_baseline(target.spec.baseline)
    return [entry for entry in tenant.live_on(target.name) if entry.state.baseline == present]


def mirrors_before(tenant: Tenant, entry: ExperimentEntry) -> str:
    """The experiment whose copies are made instead of this one's; "" = there is none."""
    if not entry.run.live or not entry.run.shadow_variant:
        return ""
    (first,) = mirroring_experiments(tenant.live_on(entry.spec.target))
    return "" if first == entry.name else first
