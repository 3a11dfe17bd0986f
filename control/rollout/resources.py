"""Creates, updates and deletes targets and experiments.

Owns the rules between resources: what may change while an experiment runs, what must not go while
something needs it. Refuses to judge a spec by itself: `control.model` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from control import model, views
from control.model.violations import Violation
from control.refusals import Fault, already_exists, exhausted, invalid, not_found, precondition
from control.refusals import unimplemented as unimplemented_features
from control.rollout.controller import Controller, check_etag
from control.rollout.decide import Command
from control.rollout.effects import Call, mutation_of, undone
from control.rollout.entries import (
    ExperimentEntry,
    TargetEntry,
    new_experiment,
    new_target,
    sealed_experiment,
    sealed_target,
)
from control.rollout.policy import Policy
from control.rollout.tenant import Mutation, Tenant
from control.rollout.words import Input, State
from turnout import contract
from turnout.v1alpha1.experiment_pb2 import Experiment, ExperimentSpec
from turnout.v1alpha1.target_pb2 import Target, TargetSpec

TARGETS_PER_TENANT_MAX: Final = 1000
# What defines the comparison: with another one it would be another experiment.
FIXED_WHILE_LIVE: Final = ("target", "unit", "control", "salt", "layer")


class Resources:
    """Standard methods on targets and experiments.

    Args:
        controller: The only writer; changes go through its ledger.
        new_id: A fresh random id.
        new_salt: A fresh random assignment salt.
    """

    def __init__(
        self, controller: Controller, *, new_id: Callable[[], str], new_salt: Callable[[], str]
    ) -> None:
        self._controller = controller
        self._new_id = new_id
        self._new_salt = new_salt

    # -- Targets -------------------------------------------------------------------------------

    async def create_target(
        self, tenant: Tenant, name: str, sent: Target, call: Call, *, validate_only: bool
    ) -> Target:
        """Create a target.

        Raises:
            Refused: INVALID_ARGUMENT, UNIMPLEMENTED, ALREADY_EXISTS, RESOURCE_EXHAUSTED or
                UNAVAILABLE.
        """
        spec = model.target_with_defaults(sent.spec)
        faults = [*model.validate_target(tenant.name, name, sent.spec)]
        _check([*faults, *model.check_labels(sent.labels)])
        async with tenant.lock:
            repeated = await self._controller.repeated(tenant, call)
            if repeated is not None:
                return Target.FromString(repeated)
            if name in tenant.targets:
                raise already_exists(_target_name(tenant, name))
            _check_rivals(tenant, name, spec)
            if len(tenant.targets) >= TARGETS_PER_TENANT_MAX:
                raise exhausted("TOO_MANY_TARGETS", f"at most {TARGETS_PER_TENANT_MAX} targets")
            now_ms = self._controller.clock_ms()
            entry = new_target(tenant.name, name, self._new_id(), dict(sent.labels), spec, now_ms)
            return await self._put_target(tenant, entry, call, validate_only=validate_only)

    async def update_target(
        self,
        tenant: Tenant,
        name: str,
        change: Callable[[Target], Target],
        etag: str,
        call: Call,
        *,
        validate_only: bool,
    ) -> Target:
        """Update a target.

        Args:
            tenant: Whose.
            name: Its id.
            change: What is asked for: the present resource -> the one that is wanted.
            etag: That must be current, "" = any.
            call: Who asks.
            validate_only: Change nothing.

        Raises:
            Refused: As `create_target`, NOT_FOUND, ABORTED, FAILED_PRECONDITION.
        """
        async with tenant.lock:
            repeated = await self._controller.repeated(tenant, call)
            if repeated is not None:
                return Target.FromString(repeated)
            entry = tenant.targets.get(name)
            if entry is None:
                raise not_found(_target_name(tenant, name))
            check_etag(_target_name(tenant, name), etag, entry.resource.etag)
            now_ms = self._controller.clock_ms()
            wanted = change(views.target_message(entry, now_ms=now_ms))
            faults = [*model.validate_target(tenant.name, name, wanted.spec)]
            _check([*faults, *model.check_labels(wanted.labels)])
            after = self._changed_target(tenant, entry, wanted, now_ms)
            return await self._put_target(tenant, after, call, validate_only=validate_only)

    def _changed_target(
        self, tenant: Tenant, entry: TargetEntry, wanted: Target, now_ms: int
    ) -> TargetEntry:
        spec = model.target_with_defaults(wanted.spec)
        if spec.match != entry.spec.match:
            _check_rivals(tenant, entry.name, spec)
        # The match is who is eligible; the baseline is what the layer `models` compares with.
        live = tenant.live_on(entry.name)
        routed = [other for other in live if other.layer == contract.LAYER_MODELS]
        for field, users in (("match", live), ("baseline", routed)):
            if users and getattr(spec, field) != getattr(entry.spec, field):
                message = f"spec.{field} cannot change while experiment {users[0].name} runs"
                raise precondition("TARGET_IN_USE", message, experiment=users[0].name)
        changed = spec != entry.spec
        resource = replace(
            entry.resource,
            labels=dict(wanted.labels),
            revision=entry.resource.revision + (1 if changed else 0),
        )
        state = entry.state
        if spec.baseline != entry.spec.baseline:
            # Whoever sets the baseline by hand has left the promotion behind.
            state = replace(state, previous="", previous_expire_ms=0, promoted_from="")
        after = replace(entry, resource=resource, spec=spec, state=state)
        return sealed_target(after, now_ms)

    async def delete_target(self, tenant: Tenant, name: str, etag: str, call: Call) -> None:
        """Delete a target.

        Raises:
            Refused: NOT_FOUND, ABORTED, FAILED_PRECONDITION (an experiment needs it), UNAVAILABLE.
        """
        async with tenant.lock:
            entry = tenant.targets.get(name)
            if entry is None:
                raise not_found(_target_name(tenant, name))
            check_etag(_target_name(tenant, name), etag, entry.resource.etag)
            users = [e.name for e in _not_ended(tenant, name)]
            if users:
                message = f"experiment {users[0]} has not ended and names target {name}"
                raise precondition("TARGET_IN_USE", message, experiment=users[0])
            await self._controller.commit(tenant, Mutation(targets={name: None}), call)

    async def undo_target(self, tenant: Tenant, name: str, etag: str, call: Call) -> Target:
        """Go back to the baseline before the last promotion.

        Raises:
            Refused: NOT_FOUND, ABORTED, FAILED_PRECONDITION, UNAVAILABLE.
        """
        async with tenant.lock:
            repeated = await self._controller.repeated(tenant, call)
            if repeated is not None:
                return Target.FromString(repeated)
            entry = tenant.targets.get(name)
            if entry is None:
                raise not_found(_target_name(tenant, name))
            check_etag(_target_name(tenant, name), etag, entry.resource.etag)
            now_ms = self._controller.clock_ms()
            self._controller.check_undo_target(tenant, entry, now_ms)
            experiment = tenant.experiments.get(entry.state.promoted_from)
            mutation = Mutation(targets={name: undone(entry, now_ms)})
            if experiment is not None and experiment.run.state is State.PROMOTED:
                command = Command(verb=Input.UNDO, actor=call.actor)
                decision = self._controller.decided(tenant, experiment, command, now_ms)
                mutation = mutation_of(tenant, experiment, decision)
            message = await self._controller.commit(tenant, mutation, call, target=name)
            assert isinstance(message, Target)
            return message

    async def _put_target(
        self, tenant: Tenant, entry: TargetEntry, call: Call, *, validate_only: bool
    ) -> Target:
        live = [e.name for e in tenant.live_on(entry.name)]
        if validate_only or entry == tenant.targets.get(entry.name):
            return views.target_message(entry, live, now_ms=self._controller.clock_ms())
        mutation = Mutation(targets={entry.name: entry})
        message = await self._controller.commit(tenant, mutation, call, target=entry.name)
        assert isinstance(message, Target)
        return message

    # -- Experiments ---------------------------------------------------------------------------

    async def create_experiment(
        self, tenant: Tenant, name: str, sent: Experiment, call: Call, *, validate_only: bool
    ) -> Experiment:
        """Create an experiment, as a draft.

        Raises:
            Refused: INVALID_ARGUMENT, UNIMPLEMENTED, ALREADY_EXISTS, FAILED_PRECONDITION (no such
                target), RESOURCE_EXHAUSTED, UNAVAILABLE.
        """
        async with tenant.lock:
            repeated = await self._controller.repeated(tenant, call)
            if repeated is not None:
                return Experiment.FromString(repeated)
            spec, metrics = self._good_spec(tenant, name, sent.spec, sent.labels)
            if name in tenant.experiments:
                raise already_exists(_experiment_name(tenant, name))
            if len(tenant.experiments) >= contract.EXPERIMENTS_PER_TENANT_MAX:
                limit = contract.EXPERIMENTS_PER_TENANT_MAX
                raise exhausted("TOO_MANY_EXPERIMENTS", f"at most {limit} experiments")
            spec.salt = spec.salt or self._new_salt()
            entry = new_experiment(
                tenant.name,
                name,
                self._new_id(),
                dict(sent.labels),
                spec,
                self._controller.clock_ms(),
                metrics=metrics,
            )
            return await self._put_experiment(
                tenant,
                Mutation(experiments={name: entry}),
                entry,
                call,
                validate_only=validate_only,
            )

    async def update_experiment(
        self,
        tenant: Tenant,
        name: str,
        change: Callable[[Experiment], Experiment],
        etag: str,
        call: Call,
        *,
        validate_only: bool,
    ) -> Experiment:
        """Update an experiment; arguments as `update_target`.

        While it runs, a change of split, variants, targeting or metrics begins a new epoch, and
        `FIXED_WHILE_LIVE` cannot change.

        Raises:
            Refused: As `create_experiment`, NOT_FOUND, ABORTED, FAILED_PRECONDITION.
        """
        async with tenant.lock:
            repeated = await self._controller.repeated(tenant, call)
            if repeated is not None:
                return Experiment.FromString(repeated)
            entry = tenant.experiments.get(name)
            if entry is None:
                raise not_found(_experiment_name(tenant, name))
            check_etag(_experiment_name(tenant, name), etag, entry.resource.etag)
            wanted = change(views.experiment_message(entry))
            # Whoever did not choose the salt does not send it either; it never changes.
            wanted.spec.salt = wanted.spec.salt or entry.spec.salt
            spec, metrics = self._good_spec(tenant, name, wanted.spec, wanted.labels)
            entry = replace(entry, state=replace(entry.state, metrics=metrics))
            mutation, after = self._changed_experiment(tenant, entry, wanted, spec, call)
            return await self._put_experiment(
                tenant, mutation, after, call, validate_only=validate_only
            )

    def _changed_experiment(
        self,
        tenant: Tenant,
        entry: ExperimentEntry,
        wanted: Experiment,
        spec: ExperimentSpec,
        call: Call,
    ) -> tuple[Mutation, ExperimentEntry]:
        now_ms = self._controller.clock_ms()
        changed = spec != entry.spec
        resource = replace(
            entry.resource,
            labels=dict(wanted.labels),
            revision=entry.resource.revision + (1 if changed else 0),
        )
        after = replace(entry, resource=resource, spec=spec)
        after = replace(after, policy=Policy.from_spec(after.measured))
        if changed:
            _check_may_change(entry, spec)
        if changed and entry.run.live and _begins_epoch(entry, spec):
            command = Command(verb=Input.REVISE, actor=call.actor, revision=after.resource.revision)
            decision = self._controller.decided(tenant, after, command, now_ms)
            mutation = mutation_of(tenant, after, decision)
            revised = mutation.experiments[entry.name]
            assert revised is not None
            return mutation, revised
        if changed and entry.run.live:
            run = replace(entry.run, observed_revision=resource.revision)
            after = replace(after, state=replace(after.state, run=run))
        after = sealed_experiment(after, now_ms)
        return Mutation(experiments={entry.name: after}), after

    async def delete_experiment(self, tenant: Tenant, name: str, etag: str, call: Call) -> None:
        """Delete an experiment; its epochs are never used again under this name.

        Raises:
            Refused: NOT_FOUND, ABORTED, FAILED_PRECONDITION (it runs), UNAVAILABLE.
        """
        async with tenant.lock:
            entry = tenant.experiments.get(name)
            if entry is None:
                raise not_found(_experiment_name(tenant, name))
            check_etag(_experiment_name(tenant, name), etag, entry.resource.etag)
            if entry.run.live:
                message = f"experiment {name} runs: stop it or roll it back first"
                raise precondition("EXPERIMENT_RUNS", message)
            await self._controller.commit(tenant, Mutation(experiments={name: None}), call)
            now_ms = self._controller.clock_ms()
            await self._controller.ledger.asked(tenant.journal.forget(name, now_ms))

    async def _put_experiment(
        self,
        tenant: Tenant,
        mutation: Mutation,
        entry: ExperimentEntry,
        call: Call,
        *,
        validate_only: bool,
    ) -> Experiment:
        if validate_only or entry == tenant.experiments.get(entry.name):
            return views.experiment_message(entry)
        message = await self._controller.commit(tenant, mutation, call, experiment=entry.name)
        assert isinstance(message, Experiment)
        return message

    def _good_spec(
        self, tenant: Tenant, name: str, sent: ExperimentSpec, labels: Mapping[str, str]
    ) -> tuple[ExperimentSpec, tuple[tuple[str, str], ...]]:
        """The spec with its defaults, and what the declared metrics in it are measured as.

        Raises:
            Refused: INVALID_ARGUMENT, UNIMPLEMENTED or FAILED_PRECONDITION.
        """
        target, known = tenant.targets.get(sent.target), tenant.known_metrics
        siblings = {e.name: e.spec for e in _not_ended(tenant, sent.target) if e.name != name}
        faults = model.validate_experiment(
            tenant.name, name, sent, target.spec if target else None, siblings, known
        )
        missing = model.unimplemented_experiment(sent, known)
        if tenant.holdout is not None:
            faults += model.check_held_salts(tenant.holdout.spec, {name: sent})
        _check([*faults, *model.check_labels(labels)], missing)
        if target is None:
            message = f"target {sent.target} does not exist"
            raise precondition("NO_TARGET", message, target=sent.target)
        return model.experiment_with_defaults(sent), model.measured_names(sent, known)


def _check(violations: Iterable[Violation], unimplemented: Iterable[str] = ()) -> None:
    """Refuse what breaks a rule, then what is not implemented."""
    faults = [Fault(v.field, v.value, v.rule) for v in violations]
    if faults:
        raise invalid(faults)
    features = list(unimplemented)
    if features:
        raise unimplemented_features(features)


def _check_rivals(tenant: Tenant, name: str, spec: TargetSpec) -> None:
    """Refuse a target that would take another's requests, or get none itself."""
    others = {entry.name: entry.spec for entry in tenant.targets.values()}
    _check(model.check_rivals(name, spec, others))


def _check_may_change(entry: ExperimentEntry, spec: ExperimentSpec) -> None:
    if spec.salt != entry.spec.salt:
        raise precondition("IMMUTABLE", "spec.salt cannot change", fields="salt")
    if entry.run.state is State.DRAFT:
        return
    if not entry.run.live:
        message = (
            f"experiment {entry.name} has ended: its spec cannot change; apply it under another "
            "name, or delete it (turnout delete) and apply it again"
        )
        raise precondition("EXPERIMENT_ENDED", message, state=str(entry.run.state))
    fields = [f for f in FIXED_WHILE_LIVE if getattr(spec, f) != getattr(entry.spec, f)]
    if fields:
        named = ", ".join(f"spec.{field}" for field in fields)
        message = f"{named} cannot change while the experiment runs"
        raise precondition("FIXED_WHILE_LIVE", message, fields=",".join(fields))


def _begins_epoch(entry: ExperimentEntry, spec: ExperimentSpec) -> bool:
    """True unless only later steps or what happens after the last one changes.

    A change of the safety rules counts too: thresholds that move while evidence is on the table
    would void the lanes' error bound.
    """
    run = entry.run
    if run.finished or spec.steps[: run.step + 1] != entry.spec.steps[: run.step + 1]:
        return True
    fields = ("segment", "strata", "variants", "metrics", "safety", "holdback")
    return any(getattr(spec, field) != getattr(entry.spec, field) for field in fields)


def _not_ended(tenant: Tenant, target: str) -> list[ExperimentEntry]:
    return [
        entry
        for entry in tenant.experiments.values()
        if entry.spec.target == target and (entry.run.live or entry.run.state is State.DRAFT)
    ]


def _target_name(tenant: Tenant, name: str) -> str:
    return f"tenants/{tenant.name}/targets/{name}"


def _experiment_name(tenant: Tenant, name: str) -> str:
    return f"tenants/{tenant.name}/experiments/{name}"
