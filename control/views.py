"""Entries as the API shows them: Target, Experiment, and their JSON in the audit trail.

Pure; the only place where internal state becomes output-only fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp

from control import model
from control.rollout import bandit
from control.rollout.checks import Check
from control.rollout.decide import Decision
from control.rollout.entries import (
    ExperimentEntry,
    HoldoutEntry,
    MetricEntry,
    TargetEntry,
    decode_baseline,
)
from control.rollout.judging import CandidateVerdict
from control.rollout.seen import BanditSeen, LaneState
from control.rollout.words import Action, Phase, Reason, State
from turnout import contract
from turnout.v1alpha1 import (
    common_pb2,
    experiment_pb2,
    experiment_service_pb2,
    metric_pb2,
    target_pb2,
)


def timestamp(ms: int) -> Timestamp | None:
    """A Unix time in milliseconds; None for 0."""
    if not ms:
        return None
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def state_value(state: State) -> experiment_pb2.State.ValueType:
    """The contract's number of a state."""
    return experiment_pb2.State.Value(f"STATE_{state}")


def reason_value(reason: Reason) -> experiment_pb2.Reason.ValueType:
    """The contract's number of a reason."""
    return experiment_pb2.Reason.Value(f"REASON_{reason}")


def action_value(action: Action) -> experiment_pb2.Action.ValueType:
    """The contract's number of an action."""
    return experiment_pb2.Action.Value(f"ACTION_{action}")


def target_message(
    entry: TargetEntry, running: Iterable[str] = (), *, now_ms: int
) -> target_pb2.Target:
    """A target with its status.

    Args:
        entry: The target.
        running: Ids of the live experiments on it.
        now_ms: A previous baseline that has expired by then is not shown.
    """
    resource = entry.resource
    prefix = f"tenants/{resource.tenant}"
    message = target_pb2.Target(
        name=f"{prefix}/targets/{resource.name}",
        uid=resource.uid,
        etag=resource.etag,
        create_time=timestamp(resource.create_ms),
        update_time=timestamp(resource.update_ms),
        revision=resource.revision,
        labels=resource.labels,
        spec=entry.spec,
    )
    status = message.status
    status.running_experiments.extend(f"{prefix}/experiments/{name}" for name in sorted(running))
    state = entry.state
    if state.promoted_from:
        status.promoted_from = f"{prefix}/experiments/{state.promoted_from}"
    previous = decode_baseline(state.previous)
    if previous is not None and now_ms < state.previous_expire_ms:
        status.previous.CopyFrom(previous)
        expire = timestamp(state.previous_expire_ms)
        assert expire is not None
        status.previous_expire_time.CopyFrom(expire)
    return message


def holdout_message(tenant: str, entry: HoldoutEntry | None) -> experiment_service_pb2.Holdout:
    """A tenant's holdout; None = nobody ever set one."""
    name = f"tenants/{tenant}/holdout"
    if entry is None:
        return experiment_service_pb2.Holdout(name=name, spec=experiment_service_pb2.HoldoutSpec())
    resource = entry.resource
    return experiment_service_pb2.Holdout(
        name=name,
        etag=resource.etag,
        update_time=timestamp(resource.update_ms),
        revision=resource.revision,
        spec=entry.spec,
    )


def metric_message(entry: MetricEntry, users: Iterable[str] = ()) -> metric_pb2.Metric:
    """A declared metric with its status.

    Args:
        entry: The metric.
        users: Ids of the experiments that name it and have not ended.
    """
    resource = entry.resource
    prefix = f"tenants/{resource.tenant}"
    found = model.definition(entry.name, entry.spec)
    return metric_pb2.Metric(
        name=f"{prefix}/metrics/{resource.name}",
        uid=resource.uid,
        etag=resource.etag,
        create_time=timestamp(resource.create_ms),
        update_time=timestamp(resource.update_ms),
        revision=resource.revision,
        labels=resource.labels,
        spec=entry.spec,
        status=metric_pb2.MetricStatus(
            live=found.live,
            measured_as=found.measured_as,
            experiments=[f"{prefix}/experiments/{name}" for name in sorted(users)],
        ),
    )


def built_in_metric(tenant: str, found: model.Definition) -> metric_pb2.Metric:
    """A metric that every tenant has, as one of its own."""
    return metric_pb2.Metric(
        name=f"tenants/{tenant}/metrics/{found.name}",
        spec=model.spec_of(found),
        status=metric_pb2.MetricStatus(built_in=True, live=found.live),
    )


def experiment_message(
    entry: ExperimentEntry, conditions: Iterable[experiment_pb2.Condition] = ()
) -> experiment_pb2.Experiment:
    """An experiment with its status."""
    resource = entry.resource
    return experiment_pb2.Experiment(
        name=f"tenants/{resource.tenant}/experiments/{resource.name}",
        uid=resource.uid,
        etag=resource.etag,
        create_time=timestamp(resource.create_ms),
        update_time=timestamp(resource.update_ms),
        revision=resource.revision,
        labels=resource.labels,
        spec=entry.spec,
        status=_status(entry, conditions if entry.run.live else ()),
    )


def _status(
    entry: ExperimentEntry, conditions: Iterable[experiment_pb2.Condition]
) -> experiment_pb2.ExperimentStatus:
    run = entry.run
    phase: Phase | str = run.phase or ""
    status = experiment_pb2.ExperimentStatus(
        state=state_value(run.state),
        step=run.step,
        phase=str(phase) if run.live else "",
        epoch=run.epoch,
        epoch_start_time=timestamp(run.epoch_start_ms),
        step_start_time=timestamp(run.step_start_ms),
        start_time=timestamp(run.start_ms),
        end_time=timestamp(run.end_ms),
        split={name: ppm / contract.BUCKET_COUNT for name, ppm in run.split_ppm.items()},
        shadow_variant=run.shadow_variant if run.live else "",
        shadow_fraction=run.shadow_ppm / contract.BUCKET_COUNT if run.live else 0.0,
        observed_revision=run.observed_revision,
        last_decision=entry.last_decision,
        reason=run.reason,
        snapshot_version=entry.state.snapshot_version,
        winner=run.winner,
        holdout_fraction=entry.state.holdout_ppm / contract.BUCKET_COUNT,
    )
    status.conditions.extend(conditions)
    return status


def decision_message(decision: Decision) -> experiment_pb2.Decision:
    """A decision as it is stored and shown; `id` is the store's."""
    message = experiment_pb2.Decision(
        time=timestamp(decision.time_ms),
        action=action_value(decision.action),
        actor=decision.actor,
        state_before=state_value(decision.before.state),
        state_after=state_value(decision.after.state),
        step_before=decision.before.step,
        step_after=decision.after.step,
        epoch=decision.after.epoch,
        reason=reason_value(decision.reason),
        sentence=decision.sentence,
        snapshot_version=decision.snapshot_version,
        code_version=decision.code_version,
        exemplar_trace_ids=decision.exemplar_trace_ids,
        inputs_json=decision.inputs_json,
    )
    message.checks.extend(check_message(check) for check in decision.checks)
    message.lanes.extend(lane_message(lane) for lane in decision.lanes)
    message.verdicts.extend(verdict_message(verdict) for verdict in decision.verdicts)
    return message


def verdict_message(verdict: CandidateVerdict) -> experiment_pb2.CandidateVerdict:
    """A candidate's verdict on the wire."""
    message = experiment_pb2.CandidateVerdict(
        variant=verdict.variant,
        row=experiment_pb2.TableRow.Value(f"TABLE_ROW_{verdict.kind}"),
        sentence=verdict.sentence,
        notes=verdict.notes,
        projected_units=verdict.projected_units,
        metric=verdict.metric,
        stratum=verdict.stratum,
    )
    for reason in verdict.reasons:
        message.reasons.add(code=reason.code, text=reason.text, values=reason.values)
    return message


def shown_decision(message: experiment_pb2.Decision) -> experiment_pb2.Decision:
    """A decision as part of an experiment's status: without its inputs, which can be long."""
    shown = experiment_pb2.Decision()
    shown.CopyFrom(message)
    shown.ClearField("inputs_json")
    return shown


def check_message(check: Check) -> experiment_pb2.Check:
    """A check on the wire."""
    return experiment_pb2.Check(
        metric=check.metric,
        variant=check.variant,
        verdict=experiment_pb2.Verdict.Value(f"VERDICT_{check.verdict}"),
        reason=reason_value(check.reason),
        sentence=check.sentence,
        control_value=check.control_value,
        candidate_value=check.candidate_value,
        control_count=check.control_count,
        candidate_count=check.candidate_count,
    )


def bandit_message(entry: ExperimentEntry, seen: BanditSeen) -> experiment_pb2.BanditResult:
    """What a bandit step has earned, on the wire.

    Args:
        entry: The experiment, in that step or ended in it.
        seen: Of that step.
    """
    run, step = entry.run, entry.policy.steps[entry.run.step]
    assert step.bandit is not None
    message = experiment_pb2.BanditResult(
        algorithm=step.bandit.algorithm,
        metric=entry.spec.steps[run.step].bandit.reward.metric,
        epochs=seen.epochs,
        regret=seen.regret,
        uniform_regret=seen.uniform_regret,
        sentence=bandit.compared(seen),
    )
    if run.phase is Phase.BANDIT and not run.finished:
        next_ms = bandit.next_look_ms(run, step.bandit, step.dwell_ms)
        message.next_reallocation_time.CopyFrom(timestamp(next_ms) or Timestamp())
    total = sum(arm.requests for arm in seen.arms)
    known = all(arm.mean is not None for arm in seen.arms)
    best = bandit.probabilities(seen) if known else [0.0] * len(seen.arms)
    for arm, probability in zip(seen.arms, best, strict=True):
        strata, propensity = arm.strata, arm.propensity
        message.arms.add(
            variant=arm.variant,
            control=arm is seen.arms[0],
            share=run.split_ppm.get(arm.variant, 0) / contract.BUCKET_COUNT,
            exposure=arm.requests / total,
            requests=arm.requests,
            mean=arm.mean or 0.0,
            standard_error=math.sqrt(arm.variance or 0.0),
            inverse_propensity_mean=arm.propensity_mean or 0.0,
            probability_best=float(probability),
            compared=strata is not None,
            difference=strata.estimate if strata else 0.0,
            lower=strata.lower if strata else 0.0,
            upper=strata.upper if strata else 0.0,
            inverse_propensity_difference=propensity.estimate if propensity else 0.0,
            inverse_propensity_lower=propensity.lower if propensity else 0.0,
            inverse_propensity_upper=propensity.upper if propensity else 0.0,
        )
    return message


def lane_message(lane: LaneState) -> experiment_pb2.Lane:
    """A safety lane on the wire."""
    return experiment_pb2.Lane(
        kind=common_pb2.BadEventKind.Value(f"BAD_EVENT_KIND_{lane.kind}"),
        variant=lane.variant,
        block=lane.block,
        log_e_value=lane.log_e_value,
        log_threshold=lane.log_threshold,
        candidate_events=lane.candidate_events,
        control_events=lane.control_events,
        theta=lane.theta,
        crossed=lane.crossed,
    )
