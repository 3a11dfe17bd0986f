"""The holdout of a tenant: read and changed.

A change takes effect on experiments that start from then on: those that run keep what they were
started with. Refuses to judge a spec by itself: `control.model` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from control import model, views
from control.refusals import Fault, invalid, precondition
from control.rollout.controller import Controller, check_etag
from control.rollout.effects import Call
from control.rollout.entries import HoldoutEntry, new_holdout, sealed_holdout
from control.rollout.tenant import Mutation, Tenant
from control.rollout.words import State
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec
from turnout.v1alpha1.experiment_service_pb2 import Holdout, HoldoutSpec


class Holdouts:
    """Standard methods on holdouts.

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

    async def update(
        self,
        tenant: Tenant,
        change: Callable[[Holdout], Holdout],
        etag: str,
        call: Call,
        *,
        validate_only: bool,
    ) -> Holdout:
        """Set a tenant's holdout.

        Args:
            tenant: Whose.
            change: What is asked for: the present holdout -> the one that is wanted.
            etag: That must be current, "" = any.
            call: Who asks.
            validate_only: Change nothing.

        Raises:
            Refused: INVALID_ARGUMENT, ABORTED, FAILED_PRECONDITION or UNAVAILABLE.
        """
        async with tenant.lock:
            repeated = await self._controller.repeated(tenant, call)
            if repeated is not None:
                return Holdout.FromString(repeated)
            current = views.holdout_message(tenant.name, tenant.holdout)
            check_etag(current.name, etag, current.etag)
            wanted = change(current).spec
            faults = model.validate_holdout(tenant.name, wanted)
            _check(faults)
            after = self._changed(tenant, wanted)
            _check(model.check_held_salts(after.spec, _experiments(tenant)))
            if validate_only or after == tenant.holdout:
                return views.holdout_message(tenant.name, after)
            message = await self._controller.commit(
                tenant, Mutation(holdout=after), call, holdout=True
            )
            assert isinstance(message, Holdout)
            return message

    def _changed(self, tenant: Tenant, wanted: HoldoutSpec) -> HoldoutEntry:
        now_ms, before = self._controller.clock_ms(), tenant.holdout
        spec = HoldoutSpec(fraction=wanted.fraction, salt=wanted.salt)
        if before is None:
            spec.salt = spec.salt or self._new_salt()
            return new_holdout(tenant.name, self._new_id(), spec, now_ms)
        # Whoever did not choose the salt does not send it either; it never changes.
        spec.salt = spec.salt or before.spec.salt
        if spec.salt != before.spec.salt:
            message = "spec.salt cannot change: other units would be held out"
            raise precondition("IMMUTABLE", message, fields="salt")
        if spec == before.spec:
            return before
        resource = replace(before.resource, revision=before.resource.revision + 1)
        return sealed_holdout(HoldoutEntry(resource, spec), now_ms)


def _check(violations: Iterable[model.Violation]) -> None:
    faults = [Fault(found.field, found.value, found.rule) for found in violations]
    if faults:
        raise invalid(faults)


def _experiments(tenant: Tenant) -> dict[str, ExperimentSpec]:
    """Those that have not ended."""
    return {
        entry.name: entry.spec
        for entry in tenant.experiments.values()
        if entry.run.live or entry.run.state is State.DRAFT
    }
