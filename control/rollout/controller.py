"""The only loop, and the only writer of runs.

observe -> assess -> decide -> persist -> publish, every second and on new evidence; a rollback is
published first. Operators' commands go through the same door. Refuses to judge (`decide` does) and
to order effects itself (`ledger` does).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final

from google.protobuf.message import Message

from control.alerts import Alerts
from control.refusals import Fault, Refused, invalid, not_found, precondition, stale
from control.rollout import decide
from control.rollout.decide import Command, Decision
from control.rollout.effects import Call, Closing, alert_of, mutation_of
from control.rollout.entries import (
    ExperimentEntry,
    TargetEntry,
)
from control.rollout.ledger import Ledger
from control.rollout.observe import Nodes, conditions, observe
from control.rollout.tenant import Latest, Mutation, Tenant
from control.rollout.together import check_promote, check_start, compared_with, mirrors_before
from control.rollout.words import Action, Effect, Input
from control.snapshot import cluster_name
from control.store.base import (
    AlertRecord,
    TombstoneRecord,
)
from control.tracing import OFF, Tracing
from turnout.v1alpha1.common_pb2 import Tombstone
from turnout.v1alpha1.config_service_pb2 import Hello
from turnout.v1alpha1.experiment_pb2 import Experiment

TICK_S: Final = 1.0
# On new evidence the loop looks again, but not more often than this.
TICK_MIN_S: Final = 0.05
TICK_PAUSE: Final = 3.0
ALERTS_LOADED_MAX: Final = 1000
# No epoch that we ever gave out comes near; a tombstone above it is a sidecar's mistake.
EPOCH_MAX: Final = 1 << 40
VERSION_MAX: Final = 1 << 40
LOOP_ACTOR: Final = "turnout"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator gave on the command line, and what is fixed in code."""

    code_version: str
    webhooks: tuple[str, ...] = ()


class Controller:
    """Runs every experiment of every tenant.

    Args:
        ledger: Carries changes out.
        alerts: Delivers alerts.
        settings: See there.
        clock_ms: Unix milliseconds; the one clock of runs and decisions.
        new_id: A fresh random id.
        tracing: Told of every decision.
    """

    def __init__(
        self,
        ledger: Ledger,
        alerts: Alerts,
        settings: Settings,
        *,
        clock_ms: Callable[[], int],
        new_id: Callable[[], str],
        tracing: Tracing = OFF,
    ) -> None:
        self.ledger = ledger
        self.alerts = alerts
        self.settings = settings
        self.clock_ms = clock_ms
        self._new_id = new_id
        self._tracing = tracing
        self._evidence_came = asyncio.Event()
        self._busy: dict[tuple[str, str], asyncio.Task[None]] = {}
        self.decisions: dict[str, int] = {}
        self.rollbacks: dict[str, int] = {}
        self.loop_errors = 0
        self.ticks = 0

    # -- The loop ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look at every live experiment once a second, and when evidence came; never returns."""
        loop = asyncio.get_running_loop()
        while True:
            self._evidence_came.clear()
            begin = loop.time()
            self.tick()
            # With very many experiments the loop still leaves most of the time to everybody else.
            pause = min(TICK_S, max(TICK_MIN_S, TICK_PAUSE * (loop.time() - begin)))
            await asyncio.sleep(pause)
            try:
                async with asyncio.timeout(TICK_S - pause):
                    await self._evidence_came.wait()
            except TimeoutError:
                pass  # nothing new for a second: time itself is evidence

    def wake(self) -> None:
        """Evidence came: look soon."""
        self._evidence_came.set()

    def tick(self) -> None:
        """Decide about every live experiment; never waits: a slow disk delays no rollback."""
        self.ticks += 1
        now_ms = self.clock_ms()
        for tenant in self.ledger:
            nodes = Nodes(self.ledger.distribution.sidecars(tenant.name), now_ms=now_ms)
            for entry in list(tenant.experiments.values()):
                if not entry.run.live:
                    continue
                try:
                    self._look(tenant, entry, nodes, now_ms)
                except Exception:  # noqa: BLE001 - one fault must not stop the others' safety
                    self.loop_errors += 1
                    _log.exception("the loop failed", extra=_concerns(tenant, entry))
            self.ledger.retry(tenant)

    def _look(self, tenant: Tenant, entry: ExperimentEntry, nodes: Nodes, now_ms: int) -> None:
        seen = observe(
            tenant,
            entry,
            nodes,
            now_ms=now_ms,
            code_version=self.settings.code_version,
        )
        try:
            decision = decide.decide(entry.run, entry.policy, seen, now_ms=now_ms)
        except ValueError:  # numbers that no statistic takes stop no lane, window rule or breaker
            self.loop_errors += 1
            _log.exception("no verdict is possible", extra=_concerns(tenant, entry))
            seen = replace(seen, looks=None, bandit=None)
            decision = decide.decide(entry.run, entry.policy, seen, now_ms=now_ms)
        before = tenant.latest.get(entry.name)
        shown = conditions(
            entry,
            seen,
            before.conditions if before else (),
            queued_behind=mirrors_before(tenant, entry),
            now_ms=now_ms,
        )
        tenant.latest[entry.name] = Latest(decision, seen, shown)
        if before is None or before.conditions != shown:
            self.ledger.tell(tenant, entry.name)
        if not decision.effects and not decision.record:
            return
        if Effect.PUBLISH in decision.effects[:1]:
            call = Call(LOOP_ACTOR, f"loop/{decision.action}")
            self._take_away(tenant, entry, decision, call)
            return
        key = (tenant.name, entry.name)
        if key not in self._busy:
            task = asyncio.create_task(self._carry_out_later(tenant, entry, decision))
            self._busy[key] = task
            task.add_done_callback(lambda _: self._busy.pop(key, None))

    async def _carry_out_later(
        self, tenant: Tenant, entry: ExperimentEntry, decision: Decision
    ) -> None:
        async with tenant.lock:
            if tenant.experiments.get(entry.name) is not entry:
                return  # somebody else decided meanwhile; the next look sees that
            try:
                call = Call(LOOP_ACTOR, f"loop/{decision.action}")
                await self._carry_out(tenant, entry, decision, call)
            except Refused as refused:
                extra = _concerns(tenant, entry)
                _log.warning("%s is refused: %s", decision.action, refused, extra=extra)

    # -- Commands ------------------------------------------------------------------------------

    async def command(
        self, tenant_name: str, name: str, command: Command, call: Call, *, etag: str = ""
    ) -> Experiment:
        """Carry out an operator's command.

        Raises:
            Refused: NOT_FOUND, ABORTED (etag), FAILED_PRECONDITION, UNAVAILABLE.
        """
        tenant = self.known(tenant_name, f"tenants/{tenant_name}/experiments/{name}")
        if command.verb is Input.ROLLBACK:
            # Not behind the lock: it must not wait for a change that a slow disk holds up.
            return await self._command(tenant, name, command, call, etag)
        async with tenant.lock:
            return await self._command(tenant, name, command, call, etag)

    async def _command(
        self, tenant: Tenant, name: str, command: Command, call: Call, etag: str
    ) -> Experiment:
        repeated = await self.repeated(tenant, call)
        if repeated is not None:
            return Experiment.FromString(repeated)
        entry = tenant.experiments.get(name)
        full_name = f"tenants/{tenant.name}/experiments/{name}"
        if entry is None:
            raise not_found(full_name)
        check_etag(full_name, etag, entry.resource.etag)
        now_ms = self.clock_ms()
        if command.verb is Input.START:
            check_start(tenant, entry)
            stored = await self.ledger.asked(self.ledger.store.last_epoch(tenant.name, name))
            last_epoch = max(stored, tenant.last_epoch(name))
            command = replace(command, revision=entry.resource.revision, last_epoch=last_epoch)
        if command.verb is Input.PROMOTE:
            check_promote(entry)
            command = replace(command, cluster=_cluster_of(entry, command.variant))
        if command.verb is Input.UNDO:
            self._check_undo(tenant, entry, now_ms)
        decision = self.decided(tenant, entry, command, now_ms)
        if Effect.PUBLISH in decision.effects[:1]:
            message = self._take_away(tenant, entry, decision, call)
            if not tenant.lock.locked():
                await self.ledger.settle(tenant)
            return message
        return await self._carry_out(tenant, entry, decision, call)

    def decided(
        self, tenant: Tenant, entry: ExperimentEntry, command: Command, now_ms: int
    ) -> Decision:
        """What a command comes to.

        Raises:
            Refused: FAILED_PRECONDITION.
        """
        seen = observe(
            tenant,
            entry,
            Nodes(self.ledger.distribution.sidecars(tenant.name), now_ms=now_ms),
            now_ms=now_ms,
            code_version=self.settings.code_version,
        )
        try:
            return decide.apply_command(entry.run, entry.policy, seen, command, now_ms=now_ms)
        except decide.Refused as refused:
            metadata = {"state": str(entry.run.state), "command": str(command.verb)}
            raise precondition(refused.reason, str(refused), **metadata) from refused

    def _check_undo(self, tenant: Tenant, entry: ExperimentEntry, now_ms: int) -> None:
        target = tenant.targets.get(entry.spec.target)
        if target is None or target.state.promoted_from != entry.name:
            message = f"the baseline of target {entry.spec.target} does not come from {entry.name}"
            raise precondition("NOT_PROMOTED", message)
        self.check_undo_target(tenant, target, now_ms)

    def check_undo_target(self, tenant: Tenant, target: TargetEntry, now_ms: int) -> None:
        """Refuse to undo what cannot be undone now.

        Raises:
            Refused: FAILED_PRECONDITION.
        """
        if not target.state.previous:
            raise precondition("NO_PREVIOUS", f"target {target.name} has no previous baseline")
        if now_ms >= target.state.previous_expire_ms:
            raise precondition(
                "PREVIOUS_EXPIRED", f"the previous baseline of {target.name} is no longer kept"
            )
        users = compared_with(tenant, target)
        if users:
            message = (
                f"experiment {users[0].name} compares with the present baseline of target "
                f"{target.name}: stop it or roll it back first"
            )
            raise precondition("TARGET_IN_USE", message, experiment=users[0].name)

    # -- Carrying out --------------------------------------------------------------------------

    async def _carry_out(
        self, tenant: Tenant, entry: ExperimentEntry, decision: Decision, call: Call
    ) -> Experiment:
        """Store, then publish. The tenant's lock is held."""
        mutation = self._mutation(tenant, entry, decision)
        with self._traced(tenant, decision):
            closed = await self.commit(tenant, mutation, call, experiment=entry.name)
        self._count(decision)
        self._alert(mutation.alerts)
        assert isinstance(closed, Experiment)
        return closed

    def _take_away(
        self, tenant: Tenant, entry: ExperimentEntry, decision: Decision, call: Call
    ) -> Experiment:
        """Roll back: publish now, store as soon as the store can."""
        mutation = self._mutation(tenant, entry, decision)
        closing = Closing(tenant, call, self.clock_ms(), experiment=entry.name, target="")
        with self._traced(tenant, decision):
            self.ledger.publish_first(tenant, mutation, closing, now_ms=decision.time_ms)
        self._count(decision)
        self._alert(mutation.alerts)
        extra = _concerns(tenant, entry) | {"request_id": call.request_id}
        _log.warning("rollback: %s", decision.sentence, extra=extra)
        assert isinstance(closing.message, Experiment)
        return closing.message

    async def commit(
        self,
        tenant: Tenant,
        mutation: Mutation,
        call: Call,
        *,
        experiment: str = "",
        target: str = "",
        metric: str = "",
        holdout: bool = False,
    ) -> Message | None:
        """Store a mutation with its audit events and its answer, then publish it.

        Args:
            tenant: Whose; its lock is held.
            mutation: What changes.
            call: Who asked.
            experiment: Id of the experiment that is the answer, or
            target: of the target, or
            metric: of the metric, or
            holdout: the tenant's holdout is.

        Returns:
            The resource as it is now; None when it was deleted.

        Raises:
            Refused: UNAVAILABLE or ABORTED; nothing has changed.
        """
        closing = Closing(
            tenant,
            call,
            self.clock_ms(),
            experiment=experiment,
            target=target,
            metric=metric,
            holdout=holdout,
        )
        await self.ledger.commit(tenant, mutation, closing, now_ms=self.clock_ms())
        who = {"actor": call.actor, "request_id": call.request_id}
        extra = {"tenant": tenant.name, "experiment": experiment, **who}
        named = f" of target {target}" if target else f" of metric {metric}" if metric else ""
        _log.info("%s%s", call.method, named, extra=extra)
        return closing.message

    def _mutation(self, tenant: Tenant, entry: ExperimentEntry, decision: Decision) -> Mutation:
        envelopes = [(self._new_id(), url) for url in self.settings.webhooks]
        return mutation_of(tenant, entry, decision, envelopes)

    def _traced(self, tenant: Tenant, decision: Decision) -> AbstractContextManager[None]:
        spans: Mapping[str, str] = {}
        if decision.exemplar_trace_ids:
            before = decision.before
            spans = tenant.evidence.exemplar_spans(before.experiment, before.epoch)
        assessed_ns = self._tracing.now_ns()
        return self._tracing.decision(tenant.name, decision, assessed_ns=assessed_ns, spans=spans)

    async def repeated(self, tenant: Tenant, call: Call) -> bytes | None:
        """The first answer to this request id, None when there was none.

        Raises:
            Refused: INVALID_ARGUMENT, the id was used for another request.
        """
        if not call.request_id:
            return None
        reading = self.ledger.store.answer(tenant.name, call.method, call.request_id)
        answer = await self.ledger.asked(reading)
        if answer is None:
            return None
        if answer.digest != call.digest:
            rule = "was used for another request"
            raise invalid([Fault("requestId", call.request_id, rule)])
        return answer.response

    def known(self, tenant: str, resource: str) -> Tenant:
        """A tenant that exists.

        Raises:
            Refused: NOT_FOUND.
        """
        found = self.ledger.find(tenant)
        if found is None:
            raise not_found(resource)
        return found

    # -- What sidecars know --------------------------------------------------------------------

    def meet(self, tenant: Tenant, hello: Hello) -> None:
        """Learn what a sidecar knows and we do not, before anything is sent to it.

        A version above ours was published before a crash and not stored, or the store is older than
        the sidecar: go above it.
        """
        ahead = tenant.version < hello.applied_version <= VERSION_MAX
        if ahead:
            tenant.version = hello.applied_version
        self.learn(tenant, hello.tombstones, source=f"sidecar {hello.node}")
        if ahead and tenant.version == hello.applied_version and tenant.content is not None:
            self.ledger.republish(tenant, now_ms=self.clock_ms())

    def learn(self, tenant: Tenant, tombstones: Iterable[Tombstone], *, source: str) -> None:
        """Merge a sidecar's tombstones: the set only grows.

        One that we do not know was published before a crash, and was not stored: the experiment is
        rolled back now.
        """
        for tombstone in tombstones:
            known = tenant.tombstones.get(tombstone.experiment)
            if known is not None and known.epoch >= tombstone.epoch:
                continue
            if not 0 < tombstone.epoch <= EPOCH_MAX or len(tombstone.experiment) > 63:
                extra = {"tenant": tenant.name}
                _log.warning("%s sent an impossible tombstone", source, extra=extra)
                continue
            self._learn(tenant, tombstone, source)

    def _learn(self, tenant: Tenant, tombstone: Tombstone, source: str) -> None:
        now_ms = self.clock_ms()
        record = TombstoneRecord(
            tenant.name,
            tombstone.experiment,
            tombstone.epoch,
            tombstone.reason[:1024],
            tombstone.time_unix_ms,
        )
        entry = tenant.experiments.get(tombstone.experiment)
        if entry is None or not entry.run.live or entry.run.epoch > tombstone.epoch:
            self.ledger.publish_first(tenant, Mutation(tombstones=(record,)), now_ms=now_ms)
            return
        reason = f"learnt from {source}: {record.reason}"
        command = Command(verb=Input.ROLLBACK, actor=LOOP_ACTOR, reason=reason)
        decision = self.decided(tenant, entry, command, now_ms)
        decision = replace(decision, tombstone_epoch=max(decision.tombstone_epoch, tombstone.epoch))
        self._take_away(tenant, entry, decision, Call(LOOP_ACTOR, "loop/LEARN"))

    # -- Alerts --------------------------------------------------------------------------------

    def _alert(self, records: Iterable[AlertRecord]) -> None:
        for record in records:
            self.alerts.submit(alert_of(record))

    async def resume_alerts(self) -> None:
        """Take up the alerts that the last process did not deliver, to URLs that still count."""
        pending = await self.ledger.store.pending_alerts(self.clock_ms(), limit=ALERTS_LOADED_MAX)
        for record in pending:
            alert = alert_of(record)
            if alert.url in self.settings.webhooks:
                self.alerts.submit(alert)
            else:
                await self.ledger.store.alert_done(record.id)

    def _count(self, decision: Decision) -> None:
        self.decisions[decision.action] = self.decisions.get(decision.action, 0) + 1
        if decision.action == Action.ROLLBACK:
            self.rollbacks[decision.reason] = self.rollbacks.get(decision.reason, 0) + 1

    async def close(self) -> None:
        """Finish what is being stored."""
        await asyncio.gather(*self._busy.values(), return_exceptions=True)
        for tenant in self.ledger:
            await self.ledger.settle(tenant)


def check_etag(name: str, sent: str, current: str) -> None:
    """Refuse a write that was made on an old reading.

    Raises:
        Refused: ABORTED.
    """
    if sent and sent != current:
        raise stale(name, sent, current)


def _cluster_of(entry: ExperimentEntry, variant: str) -> str:
    """Envoy's name of a candidate's upstream; of the only one when none is named."""
    candidates = entry.policy.candidates
    wanted = variant or (candidates[0] if len(candidates) == 1 else "")
    for found in entry.spec.variants:
        if found.name == wanted:
            return cluster_name(entry.spec.target, found.upstream)
    return ""


def _concerns(tenant: Tenant, entry: ExperimentEntry) -> dict[str, object]:
    return {"tenant": tenant.name, "experiment": entry.name, "epoch": entry.run.epoch}
