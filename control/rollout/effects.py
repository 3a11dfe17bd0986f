"""What a decision changes: entries, epochs, tombstones, the new baseline, alerts, audit events.

Pure. Refuses to decide and to carry out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

from google.protobuf.message import Message

from control import audit, views
from control.alerts import Alert
from control.rollout.decide import Decision
from control.rollout.entries import (
    ExperimentEntry,
    MetricEntry,
    TargetEntry,
    TargetState,
    decode_baseline,
    encode_baseline,
    sealed_experiment,
    sealed_target,
)
from control.rollout.tenant import Mutation, Tenant, allocated
from control.rollout.together import started
from control.rollout.words import Action, Effect
from control.store.base import (
    AlertRecord,
    AnswerRecord,
    DecisionRecord,
    EpochMark,
    TombstoneRecord,
)
from turnout.v1alpha1.experiment_pb2 import Experiment
from turnout.v1alpha1.experiment_service_pb2 import Holdout
from turnout.v1alpha1.metric_pb2 import Metric
from turnout.v1alpha1.target_pb2 import Baseline, Target


@dataclass(frozen=True, slots=True)
class Call:
    """Who asks for a change, by which method; a repeated request id gets the first answer."""

    actor: str
    method: str
    request_id: str = ""
    digest: bytes = b""


def mutation_of(
    tenant: Tenant,
    entry: ExperimentEntry,
    decision: Decision,
    envelopes: Iterable[tuple[str, str]] = (),
) -> Mutation:
    """Everything that a decision changes.

    Args:
        tenant: Whose.
        entry: The experiment as it was decided about.
        decision: Any decision.
        envelopes: (id, URL) of each alert to be sent, should the decision ask for one.
    """
    now_ms = decision.time_ms
    target = tenant.targets.get(entry.spec.target)
    after = replace(entry, state=replace(entry.state, run=decision.after))
    if decision.action is Action.START and target is not None:
        after = replace(after, state=started(tenant, after, target))
    if decision.new_epoch and after.run.live:
        after = allocated(after)
    decisions: tuple[DecisionRecord, ...] = ()
    if decision.record:
        message = views.decision_message(decision)
        after = replace(after, last_decision=views.shown_decision(message))
        payload = message.SerializeToString(deterministic=True)
        decisions = (
            DecisionRecord(tenant.name, entry.name, now_ms, str(decision.action), payload),
        )
    tombstones: tuple[TombstoneRecord, ...] = ()
    if decision.tombstone_epoch:
        tombstones = (
            TombstoneRecord(
                tenant.name, entry.name, decision.tombstone_epoch, decision.sentence, now_ms
            ),
        )
    epochs: tuple[EpochMark, ...] = ()
    if decision.after.epoch > entry.run.epoch:
        epochs = (EpochMark(tenant.name, entry.name, decision.after.epoch),)
    targets: dict[str, TargetEntry | None] = {}
    if target is not None and decision.promote_variant:
        targets[target.name] = promoted(target, entry, decision.promote_variant, now_ms)
    if target is not None and decision.undo:
        targets[target.name] = undone(target, now_ms)
    return Mutation(
        targets=targets,
        experiments={entry.name: sealed_experiment(after, now_ms)},
        epochs=epochs,
        tombstones=tombstones,
        decisions=decisions,
        alerts=_alert_records(tenant, entry, decision, envelopes),
    )


def _alert_records(
    tenant: Tenant,
    entry: ExperimentEntry,
    decision: Decision,
    envelopes: Iterable[tuple[str, str]],
) -> tuple[AlertRecord, ...]:
    if Effect.ALERT not in decision.effects:
        return ()
    body = {
        "type": decision.action.lower(),
        "tenant": tenant.name,
        "experiment": f"tenants/{tenant.name}/experiments/{entry.name}",
        "target": f"tenants/{tenant.name}/targets/{entry.spec.target}",
        "state": str(decision.after.state),
        "epoch": decision.before.epoch,
        "actor": decision.actor,
        "reason": str(decision.reason),
        "sentence": decision.sentence,
        "time_unix_ms": decision.time_ms,
        "exemplar_trace_ids": list(decision.exemplar_trace_ids),
    }
    records = []
    for alert_id, url in envelopes:
        envelope = {"id": alert_id, "url": url, "body": body}
        payload = json.dumps(envelope, sort_keys=True).encode()
        records.append(AlertRecord(tenant.name, decision.time_ms, payload))
    return tuple(records)


def promoted(
    target: TargetEntry, experiment: ExperimentEntry, variant: str, now_ms: int
) -> TargetEntry:
    """The target with a variant as its baseline; the old one is kept for `keepPrevious`."""
    winner = next(v for v in experiment.spec.variants if v.name == variant)
    baseline = Baseline(upstream=winner.upstream)
    if winner.HasField("model"):
        baseline.model.CopyFrom(winner.model)
    keep_ms = target.spec.keep_previous.ToMilliseconds()
    state = replace(
        target.state,
        previous=encode_baseline(target.spec.baseline),
        previous_expire_ms=now_ms + keep_ms,
        promoted_from=experiment.name,
    )
    return _with_baseline(target, baseline, state, now_ms)


def undone(target: TargetEntry, now_ms: int) -> TargetEntry:
    """The target with its previous baseline."""
    previous = decode_baseline(target.state.previous)
    assert previous is not None
    state = replace(target.state, previous="", previous_expire_ms=0, promoted_from="")
    return _with_baseline(target, previous, state, now_ms)


def _with_baseline(
    target: TargetEntry, baseline: Baseline, state: TargetState, now_ms: int
) -> TargetEntry:
    spec = type(target.spec)()
    spec.CopyFrom(target.spec)
    spec.baseline.CopyFrom(baseline)
    resource = replace(target.resource, revision=target.resource.revision + 1)
    return sealed_target(replace(target, resource=resource, spec=spec, state=state), now_ms)


def alert_of(record: AlertRecord) -> Alert:
    """The alert in a row of the outbox."""
    envelope = json.loads(record.payload)
    body = json.dumps({"id": envelope["id"], **envelope["body"]}, sort_keys=True).encode()
    return Alert(id=envelope["id"], url=envelope["url"], body=body, payload=record.payload)


Shown = Target | Experiment | Metric | Holdout


class Closing:
    """Makes the answer and the audit events of a mutation when its entries are final."""

    def __init__(
        self,
        tenant: Tenant,
        call: Call,
        now_ms: int,
        *,
        experiment: str = "",
        target: str = "",
        metric: str = "",
        holdout: bool = False,
    ) -> None:
        self._holdout = holdout
        self._metric = metric
        self._now_ms = now_ms
        self._tenant = tenant
        self._call = call
        self._experiment = experiment
        self._target = target
        self.message: Message | None = None

    def __call__(self, mutation: Mutation) -> Mutation:
        """The mutation with its audit events and its answer."""
        now_ms = self._now_ms
        tenant = self._tenant
        pairs: list[tuple[Shown | None, Shown | None]] = []
        for target, entry in mutation.targets.items():
            before = self._shown(tenant.targets.get(target), now_ms)
            pairs.append((before, self._shown(entry, now_ms)))
        for experiment, changed in mutation.experiments.items():
            before = self._shown(tenant.experiments.get(experiment), now_ms)
            pairs.append((before, self._shown(changed, now_ms)))
        for metric, declared in mutation.metrics.items():
            before = self._shown(tenant.metrics.get(metric), now_ms)
            pairs.append((before, self._shown(declared, now_ms)))
        if mutation.holdout is not None:
            shown = views.holdout_message(tenant.name, mutation.holdout)
            pairs.append((views.holdout_message(tenant.name, tenant.holdout), shown))
        audits = audit.records(
            tenant.name, self._call.actor, self._call.method, pairs, time_ms=now_ms
        )
        if self._experiment:
            self.message = self._shown(mutation.experiments.get(self._experiment), now_ms)
        elif self._target:
            self.message = self._shown(mutation.targets.get(self._target), now_ms)
        elif self._metric:
            self.message = self._shown(mutation.metrics.get(self._metric), now_ms)
        elif self._holdout:
            self.message = views.holdout_message(tenant.name, mutation.holdout)
        answers: tuple[AnswerRecord, ...] = ()
        call = self._call
        if call.request_id and self.message is not None:
            response = self.message.SerializeToString()
            answers = (
                AnswerRecord(
                    self._tenant.name, call.method, call.request_id, call.digest, response, now_ms
                ),
            )
        return replace(mutation, audits=(*mutation.audits, *audits), answers=answers)

    def _shown(
        self, entry: TargetEntry | ExperimentEntry | MetricEntry | None, now_ms: int
    ) -> Shown | None:
        if entry is None:
            return None
        if isinstance(entry, MetricEntry):
            users = [user.name for user in self._tenant.users_of(entry.name)]
            return views.metric_message(entry, users)
        if isinstance(entry, ExperimentEntry):
            latest = self._tenant.latest.get(entry.name)
            return views.experiment_message(entry, latest.conditions if latest else ())
        running = [live.name for live in self._tenant.live_on(entry.name)]
        return views.target_message(entry, running, now_ms=now_ms)
