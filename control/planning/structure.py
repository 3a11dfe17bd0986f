"""Steps that can never decide, whatever the traffic; and those that cannot with the traffic known.

What `turnout apply` and `turnout lint` warn of. Forbids nothing. `structural` needs no numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from control.model.durations import milliseconds
from control.model.metrics import BUILT_IN, LATENCY
from control.planning.checks import Arms, CheckPlan, late, plan_check
from control.planning.inputs import Assumptions, Caution, Traffic
from control.planning.stages import Stage, guardrails_of, stages_of
from control.planning.words import count, duration
from control.rollout.policy import GuardrailPolicy
from turnout.v1alpha1.common_pb2 import Predicate
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec

# Units or requests per second that no target has: a design that needs more is a slip.
RATE_MAX: Final = 100_000.0
# A comparison that ends sooner is over before its evidence has come in.
MAXIMUM_LEAST_S: Final = 60.0


def structural(spec: ExperimentSpec) -> tuple[Caution, ...]:
    """Doubts about a design that no traffic can lift.

    Args:
        spec: Accepted by `control.model`, its declared metrics resolved.
    """
    found = []
    if spec.HasField("segment") and segment_share(spec.segment) == 0:
        text = "no unit is eligible: a percentage of 0 must hold"
        found.append(Caution("NOBODY", "spec.segment", text))
    for stage in stages_of(spec):
        found += _split_doubts(stage)
        found += _impossible(spec, stage)
        if stage.kind == "ab":
            found += _ab_doubts(spec, stage)
    return tuple(found)


def with_traffic(spec: ExperimentSpec, assumed: Assumptions) -> tuple[Caution, ...]:
    """Doubts about a design at a known traffic: a step's time is too short for what it asks.

    Args:
        spec: As of `structural`.
        assumed: Traffic and baselines of the target.

    Raises:
        ImportError: A guardrail has a margin, and there is no numpy or scipy.
    """
    traffic = experiment_traffic(spec, assumed)
    stages = stages_of(spec)
    return tuple(doubt for stage in stages for doubt in late_doubts(spec, stage, traffic, assumed))


def experiment_traffic(spec: ExperimentSpec, assumed: Assumptions) -> Traffic:
    """The share of the target's traffic that an experiment has to itself."""
    reserve = spec.layer.reserve if spec.layer.HasField("reserve") else 1.0
    return assumed.traffic.scaled(assumed.eligible * reserve * (1 - assumed.held_out))


def segment_share(segment: Predicate) -> float | None:
    """The share of the units that a segment takes; None when headers decide it."""
    if segment.HasField("percentage"):
        return segment.percentage.fraction
    shares = [segment_share(part) for part in segment.all]
    if 0.0 in shares:
        return 0.0
    product = 1.0
    for share in shares:
        if share is None:
            return None
        product *= share
    return product if shares else None


def check_of(
    spec: ExperimentSpec,
    stage: Stage,
    name: str,
    metric: str,
    traffic: Traffic,
    assumed: Assumptions,
) -> CheckPlan:
    """`plan_check` of one check of one candidate in a step that has a control."""
    guardrail = guardrails_of(spec).get(metric, GuardrailPolicy(metric))
    rps, share = traffic.requests_per_s, stage.shares[name]
    length_s = max(stage.dwell_s, 1.0)
    units = traffic.scaled(share).units_after(length_s, random=spec.unit.random)
    arms = Arms(
        rps * share,
        rps * stage.control,
        share=share,
        canary=stage.kind == "canary",
        per_unit=max(1.0, rps * share * length_s / units) if units else 1.0,
    )
    check = plan_check(guardrail, arms, stage.minimum_requests, assumed)
    if check.seconds is None:
        return check
    # What comes in the warm-up is not compared.
    return replace(check, seconds=check.seconds + milliseconds(spec.metrics.warm_up) / 1e3)


def late_doubts(
    spec: ExperimentSpec, stage: Stage, traffic: Traffic, assumed: Assumptions
) -> Iterator[Caution]:
    """What a step asks for and does not get in its time, at the experiment's traffic."""
    for name, share in stage.shares.items():
        mine = traffic.requests_per_s * share
        if stage.minimum_requests > mine * stage.dwell_s:
            text = (
                f"{name} gets {count(mine * stage.dwell_s)} requests in {duration(stage.dwell_s)}; "
                f"{count(stage.minimum_requests)} take {duration(stage.minimum_requests / mine)}"
            )
            yield Caution("MINIMUM_REQUESTS_LATE", f"{stage.field}.minimumRequests", text)
        for metric in stage.checks if stage.control else ():
            check = check_of(spec, stage, name, metric, traffic, assumed)
            if doubt := late(check, stage.dwell_s):
                text = f"{metric} of {name} is not decided in {duration(stage.dwell_s)}: {doubt}"
                code = "CHECK_NEVER" if check.seconds is None else "CHECK_LATE"
                yield Caution(code, f"{stage.field}.checks", text)
        if not stage.minimum_units or stage.maximum_s is None:
            continue
        random = spec.unit.random
        least = traffic.scaled(min(share, stage.control or share))
        units = least.units_after(stage.maximum_s, random=random)
        if units is not None and units < stage.minimum_units:
            text = (
                f"{count(units)} units per arm come in {duration(stage.maximum_s)}, "
                f"{count(stage.minimum_units)} are wanted: it ends undecided"
            )
            yield Caution("MINIMUM_UNITS_LATE", f"{stage.field}.minimumUnits", text)


def _split_doubts(stage: Stage) -> Iterator[Caution]:
    if stage.kind in ("canary", "ab") and not stage.shares:
        text = "no candidate has a share: it never passes, for want of traffic"
        yield Caution("NO_CANDIDATE", f"{stage.field}.split", text)
    elif stage.kind == "canary" and not stage.control:
        text = "no control is left: no check and no safety lane, only breakers watch"
        yield Caution("NO_CONTROL", f"{stage.field}.split", text)
    elif stage.kind == "ab" and not stage.control:
        text = "no control is left to compare with: it never decides"
        yield Caution("NO_CONTROL", f"{stage.field}.split", text)


def _impossible(spec: ExperimentSpec, stage: Stage) -> Iterator[Caution]:
    """Checks that nothing can pass, and numbers that no traffic gives in time."""
    guardrails = guardrails_of(spec)
    for index, metric in enumerate(stage.checks):
        here = f"{stage.field}.checks[{index}]"
        if metric in BUILT_IN and not BUILT_IN[metric].live:
            yield Caution("NOT_LIVE", here, f"{metric} is not measured while traffic flows")
        margin = guardrails[metric].maximum_harm if metric in guardrails else None
        if margin is not None and margin.absolute == 0 and metric not in LATENCY:
            text = f"{metric} with a maximumHarm of 0 never passes: no evidence shows a harm of 0"
            yield Caution("MARGIN_ZERO", here, f"{text}; leave it out, or allow something")
    for name, share in stage.shares.items():
        rate = stage.minimum_requests / (share * stage.dwell_s) if stage.dwell_s else 0.0
        if rate > RATE_MAX:
            text = (
                f"{count(stage.minimum_requests)} requests to {name} in {duration(stage.dwell_s)} "
                f"are {count(rate)} requests per second in all"
            )
            yield Caution("MINIMUM_REQUESTS_RATE", f"{stage.field}.minimumRequests", text)
    warm_up_s = milliseconds(spec.metrics.warm_up) / 1e3
    length_s = stage.maximum_s if stage.maximum_s is not None else stage.dwell_s
    if warm_up_s and stage.kind != "shadow" and 0 < length_s <= warm_up_s:
        text = f"its {duration(length_s)} are all warm-up ({duration(warm_up_s)}): nothing compared"
        yield Caution("ALL_WARM_UP", stage.field, text)


def _ab_doubts(spec: ExperimentSpec, stage: Stage) -> Iterator[Caution]:
    primary = spec.metrics.primary.metric
    if not primary:
        text = "no primary metric: there is nothing to decide by"
        yield Caution("NO_PRIMARY", stage.field, text)
    elif primary in BUILT_IN and not BUILT_IN[primary].live:
        text = f"{primary} is not measured while traffic flows: it never decides"
        yield Caution("NOT_LIVE", "spec.metrics.primary.metric", text)
    if stage.maximum_s is None or not stage.shares:
        return
    least = min([*stage.shares.values(), stage.control or 1.0])
    rate = stage.minimum_units / (least * stage.maximum_s) if stage.maximum_s else RATE_MAX + 1
    if stage.minimum_units and (rate > RATE_MAX or stage.maximum_s < MAXIMUM_LEAST_S):
        text = (
            f"{count(stage.minimum_units)} units per arm within {duration(stage.maximum_s)}: "
            "it ends undecided"
        )
        yield Caution("MAXIMUM_TOO_SHORT", f"{stage.field}.maximumDuration", text)
    elif stage.maximum_s < MAXIMUM_LEAST_S:
        text = f"{duration(stage.maximum_s)} are over before evidence has come in: never decides"
        yield Caution("MAXIMUM_TOO_SHORT", f"{stage.field}.maximumDuration", text)
