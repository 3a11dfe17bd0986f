"""Text of `turnout describe`: state, conditions, the last decision with its numbers, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.message import Message

from control.commands.output import percent, split_of, state_of
from control.model import BUILT_IN, Definition, definition, plain, to_yaml
from control.model.metrics import Direction, Kind
from control.model.render import enum_text, time_text
from turnout.v1alpha1.common_pb2 import Unit
from turnout.v1alpha1.experiment_pb2 import (
    Check,
    Condition,
    Decision,
    Experiment,
    ExperimentSpec,
    Lane,
    Step,
)
from turnout.v1alpha1.experiment_service_pb2 import Holdout
from turnout.v1alpha1.metric_pb2 import Metric
from turnout.v1alpha1.target_pb2 import Baseline, RequestMatch, Target


def experiment(resource: Experiment, decisions: Sequence[Decision]) -> str:
    """An experiment as a page of text.

    Args:
        resource: As the control plane has it.
        decisions: The latest, newest first.
    """
    status = resource.status
    lines = [
        *_head("Experiment", resource),
        f"Target:      {resource.spec.target}",
        f"Unit:        {_unit(resource.spec.unit)}",
        f"Layer:       {_layer(resource.spec)}",
        f"State:       {state_of(status)}",
    ]
    if status.holdout_fraction:
        lines.append(
            f"Held out:    {percent(status.holdout_fraction)} of the units, since its start"
        )
    if forced := sum(len(item.units) for item in resource.spec.overrides):
        lines.append(f"Overrides:   {forced} units have a variant by name")
    if status.reason:
        lines.append(f"Why:         {status.reason}")
    if status.winner:
        lines.append(f"Winner:      {status.winner}")
    if split := split_of(resource):
        lines.append(f"Split:       {split}")
    lines.append(f"Epoch:       {status.epoch} (snapshot {status.snapshot_version})")
    for label, time in (("Started", status.start_time), ("Ended", status.end_time)):
        if time.seconds:
            lines.append(f"{label + ':':<13}{time_text(time)}")
    lines += ["Steps:", *_steps(resource)]
    if status.conditions:
        lines.append("Conditions:")
    lines += [_condition(item) for item in status.conditions]
    if status.HasField("last_decision"):
        lines += ["Last decision:", *_decision(status.last_decision)]
    lines += _history(decisions)
    return "\n".join(lines)


def target(resource: Target) -> str:
    """A target as a page of text."""
    match = resource.spec.match
    lines = [
        *_head("Target", resource),
        f"Hosts:       {', '.join(match.hosts)}",
        f"Path prefix: {match.path_prefix}",
        *_model_match(match),
        f"Baseline:    {_baseline(resource.spec.baseline)}",
    ]
    status = resource.status
    if status.promoted_from:
        lines.append(f"Promoted by: {status.promoted_from}")
    if status.HasField("previous"):
        until = time_text(status.previous_expire_time)
        lines.append(f"Previous:    {_baseline(status.previous)} (undo until {until})")
    running = [name.rpartition("/")[2] for name in status.running_experiments]
    lines.append(f"Running:     {', '.join(running) or 'nothing'}")
    lines += ["Spec:", *_indented(to_yaml([plain(resource.spec)]).splitlines())]
    return "\n".join(lines)


def metric(resource: Metric) -> str:
    """A metric as a page of text."""
    found, status = meaning(resource), resource.status
    lines = (
        [f"Metric:      {resource.name}", "Built in:    every tenant has it"]
        if status.built_in
        else _head("Metric", resource)
    )
    if found.description:
        lines.append(f"About:       {found.description}")
    better = "higher" if found.direction is Direction.HIGHER else "lower"
    lines += [f"Kind:        {found.kind}, {better} is better", f"Measured:    {measured(found)}"]
    if status.live:
        as_ = f" as {status.measured_as}" if status.measured_as else ""
        lines.append(f"Where:       live, in rollouts{as_}, and in turnout analyze")
    elif elsewhere(found) == "results":
        lines.append("Where:       shown by turnout results, judged by nobody")
    else:
        lines.append("Where:       turnout analyze: it needs the outcomes of units")
    if found.cap is not None:
        lines.append(f"Cap:         greater values count as {found.cap:g}")
    if found.covariate:
        lines.append(f"Covariate:   {found.covariate}")
    if found.segments:
        lines.append(f"Segments:    {', '.join(found.segments)}")
    if found.label_maturity_s:
        text = plain(resource.spec.label_maturity)
        lines.append(f"Maturity:    {text} after the exposure an outcome is final")
    used = [name.rpartition("/")[2] for name in status.experiments]
    if not status.built_in:
        lines.append(f"Used by:     {', '.join(used) or 'nobody'}")
    return "\n".join(lines)


def elsewhere(found: Definition) -> str:
    """Where a metric that rollouts do not judge is found, in a word."""
    return "results" if found.name in BUILT_IN and BUILT_IN[found.name].shown_live else "analyze"


def meaning(resource: Metric) -> Definition:
    """What a metric means, as the control plane has it."""
    return definition(resource.name.rpartition("/")[2], resource.spec)


def measured(found: Definition) -> str:
    """What a metric is computed from: "clicks / views"."""
    if found.kind is Kind.RATIO:
        text = f"{found.numerator} / {found.denominator}"
    elif found.kind is Kind.CLASSIFIER:
        text = f"{found.statistic} of predictions and labels"
    elif found.quantile is not None:
        text = f"{found.quantile * 100:g} % quantile of {found.value}"
    else:
        text = found.value
    return f"{text} ({found.unit})" if found.unit else text


def holdout(resource: Holdout) -> str:
    """A holdout as a page of text."""
    share = percent(resource.spec.fraction)
    lines = [
        f"Holdout:     {resource.name}",
        f"Revision:    {resource.revision}" + (f" (etag {resource.etag})" if resource.etag else ""),
        f"Fraction:    {share} of the units are left alone by experiments that start from now on",
    ]
    return "\n".join(lines)


def lane_row(lane: Lane) -> tuple[object, ...]:
    """A safety lane as a row of a table."""
    return (
        _name(lane, "kind"),
        lane.variant,
        lane.block,
        lane.candidate_events,
        lane.control_events,
        lane.log_e_value,
        lane.log_threshold,
        lane.crossed,
    )


def check_row(check: Check) -> tuple[object, ...]:
    """A check as a row of a table."""
    return (
        check.metric,
        check.variant,
        _name(check, "verdict"),
        _name(check, "reason"),
        check.control_value,
        check.candidate_value,
        check.sentence,
    )


def _unit(unit: Unit) -> str:
    """Where the unit comes from: "header x-user-id"."""
    shown = plain(unit)
    shown.pop("noUnit", None)
    ((kind, value),) = shown.items() or [("none", "")]
    if kind == "jwtClaim":
        trust = "unverified" if unit.jwt_claim.unverified else "verified"
        return f"claim {unit.jwt_claim.claim} of a {trust} token"
    if kind == "session":
        return f"session, cookie {unit.session.cookie}"
    if kind == "random":
        return "random: each request by itself"
    return f"{'query parameter' if kind == 'queryParameter' else kind} {value}"


def _layer(spec: ExperimentSpec) -> str:
    return f"{spec.layer.name}, reserves {percent(spec.layer.reserve)}"


def _model_match(match: RequestMatch) -> list[str]:
    if not match.model_name:
        return []
    version = f", version {match.model_version}" if match.model_version else ""
    return [f"Model:       {match.model_name}{version}"]


def _head(kind: str, resource: Target | Experiment | Metric) -> list[str]:
    labels = ", ".join(f"{key}={resource.labels[key]}" for key in sorted(resource.labels))
    lines = [f"{kind + ':':<13}{resource.name}"]
    if labels:
        lines.append(f"Labels:      {labels}")
    lines.append(f"Revision:    {resource.revision} (etag {resource.etag})")
    return lines


def _steps(resource: Experiment) -> list[str]:
    status = resource.status
    lines = []
    for index, step in enumerate(resource.spec.steps):
        here = "->" if status.phase and index == status.step else "  "
        lines.append(f"  {here} {index + 1}. {_step(step)}")
    return lines


def _step(step: Step) -> str:
    kind = step.WhichOneof("kind") or "none"
    body: Message = getattr(step, kind)
    settings = plain(body)
    parts = []
    if kind == "shadow":
        parts.append(f"{settings.pop('variant', '')} {percent(settings.pop('fraction', 1.0))}")
    if kind == "bandit":
        parts.append(f"reward {settings.pop('reward', {}).get('metric', '')}")
    split = settings.pop("split", {})
    parts += [f"{name} {percent(share)}" for name, share in split.items()]
    parts += [
        f"{key} {', '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in settings.items()
    ]
    return f"{kind}: {'; '.join(parts)}"


def _condition(item: Condition) -> str:
    reason = f" ({_name(item, 'reason')})" if item.reason else ""
    message = f": {item.message}" if item.message else ""
    return f"  {item.type} {'yes' if item.status else 'no'}{reason}{message}"


def _decision(decision: Decision) -> Iterable[str]:
    actor = f" by {decision.actor}" if decision.actor else ""
    yield f"  {time_text(decision.time)} {_name(decision, 'action')}{actor}"
    yield f"  {decision.sentence}"
    for check in decision.checks:
        reason = f" ({_name(check, 'reason')})" if check.reason else ""
        verdict = f"{_name(check, 'verdict')}{reason}"
        yield f"  check {check.metric} {check.variant}: {verdict} {check.sentence}".rstrip()
    for lane in decision.lanes:
        crossed = "CROSSED" if lane.crossed else "not crossed"
        yield (
            f"  lane {_name(lane, 'kind')} {lane.variant}: {lane.candidate_events} against "
            f"{lane.control_events} of control's, log e {lane.log_e_value:.2f} of "
            f"{lane.log_threshold:.2f}, {crossed}"
        )


def _history(decisions: Sequence[Decision]) -> list[str]:
    if not decisions:
        return []
    return [
        "Decisions:",
        *(
            f"  {time_text(item.time)} {_name(item, 'action')}: {item.sentence}"
            for item in decisions
        ),
    ]


def _baseline(baseline: Baseline) -> str:
    upstream = baseline.upstream.address or f"cluster {baseline.upstream.cluster}"
    model = f"{baseline.model.id} {baseline.model.version}".strip()
    return f"{upstream} ({model})" if model else upstream


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _name(message: Message, field: str) -> str:
    descriptor: Any = message.DESCRIPTOR.fields_by_name[field]
    return enum_text(descriptor, getattr(message, field))
