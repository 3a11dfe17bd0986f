"""Declared metrics of a tenant: created, changed, deleted.

Owns what a metric in use protects: while an experiment that has started names it, its meaning does
not change, and while one that has not ended does, it is not deleted. Refuses to judge a spec by
itself: `control.model` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from control import model, views
from control.model import Violation
from control.refusals import Fault, already_exists, exhausted, invalid, not_found, precondition
from control.rollout.controller import Controller, check_etag
from control.rollout.effects import Call
from control.rollout.entries import MetricEntry, new_metric, sealed_metric
from control.rollout.tenant import Mutation, Tenant
from turnout.v1alpha1.metric_pb2 import Metric, MetricSpec

METRICS_PER_TENANT_MAX: Final = 1000


class Metrics:
    """Standard methods on declared metrics.

    Args:
        controller: The only writer; changes go through its ledger.
        new_id: A fresh random id.
    """

    def __init__(self, controller: Controller, *, new_id: Callable[[], str]) -> None:
        self._controller = controller
        self._new_id = new_id

    async def create(
        self, tenant: Tenant, name: str, sent: Metric, call: Call, *, validate_only: bool
    ) -> Metric:
        """Declare a metric.

        Raises:
            Refused: INVALID_ARGUMENT, ALREADY_EXISTS, RESOURCE_EXHAUSTED or UNAVAILABLE.
        """
        _check(tenant, name, sent)
        async with tenant.lock:
            repeated = await self._controller.repeated(tenant, call)
            if repeated is not None:
                return Metric.FromString(repeated)
            if name in tenant.metrics:
                raise already_exists(_full_name(tenant, name))
            if len(tenant.metrics) >= METRICS_PER_TENANT_MAX:
                raise exhausted("TOO_MANY_METRICS", f"at most {METRICS_PER_TENANT_MAX} metrics")
            spec = model.metric_with_defaults(name, sent.spec)
            now_ms = self._controller.clock_ms()
            entry = new_metric(tenant.name, name, self._new_id(), dict(sent.labels), spec, now_ms)
            return await self._put(tenant, entry, call, validate_only=validate_only)

    async def update(
        self,
        tenant: Tenant,
        name: str,
        change: Callable[[Metric], Metric],
        etag: str,
        call: Call,
        *,
        validate_only: bool,
    ) -> Metric:
        """Update a metric.

        Args:
            tenant: Whose.
            name: Its id.
            change: What is asked for: the present resource -> the one that is wanted.
            etag: That must be current, "" = any.
            call: Who asks.
            validate_only: Change nothing.

        Raises:
            Refused: As `create`, NOT_FOUND, ABORTED, FAILED_PRECONDITION.
        """
        async with tenant.lock:
            repeated = await self._controller.repeated(tenant, call)
            if repeated is not None:
                return Metric.FromString(repeated)
            entry = self._entry(tenant, name, etag)
            wanted = change(views.metric_message(entry))
            _check(tenant, name, wanted)
            spec = model.metric_with_defaults(name, wanted.spec)
            if spec != entry.spec:
                _check_may_change(tenant, entry, spec)
            revision = entry.resource.revision + (spec != entry.spec)
            resource = replace(entry.resource, labels=dict(wanted.labels), revision=revision)
            after = MetricEntry(resource, spec)
            after = entry if after == entry else sealed_metric(after, self._controller.clock_ms())
            return await self._put(tenant, after, call, validate_only=validate_only)

    async def delete(self, tenant: Tenant, name: str, etag: str, call: Call) -> None:
        """Delete a metric.

        Raises:
            Refused: NOT_FOUND, ABORTED, FAILED_PRECONDITION (an experiment needs it), UNAVAILABLE.
        """
        async with tenant.lock:
            self._entry(tenant, name, etag)
            users = tenant.users_of(name)
            if users:
                message = (
                    f"experiment {users[0].name} has not ended and names metric {name}: end it, or "
                    "name another metric there"
                )
                raise precondition("METRIC_IN_USE", message, experiment=users[0].name)
            await self._controller.commit(tenant, Mutation(metrics={name: None}), call)

    def _entry(self, tenant: Tenant, name: str, etag: str) -> MetricEntry:
        if name in model.BUILT_IN:
            message = f"{name} is a built-in metric: it cannot be changed or deleted"
            raise precondition("BUILT_IN", message, metric=name)
        entry = tenant.metrics.get(name)
        if entry is None:
            raise not_found(_full_name(tenant, name))
        check_etag(_full_name(tenant, name), etag, entry.resource.etag)
        return entry

    async def _put(
        self, tenant: Tenant, entry: MetricEntry, call: Call, *, validate_only: bool
    ) -> Metric:
        if validate_only or entry == tenant.metrics.get(entry.name):
            users = [user.name for user in tenant.users_of(entry.name)]
            return views.metric_message(entry, users)
        mutation = Mutation(metrics={entry.name: entry})
        message = await self._controller.commit(tenant, mutation, call, metric=entry.name)
        assert isinstance(message, Metric)
        return message


def _check(tenant: Tenant, name: str, sent: Metric) -> None:
    faults: list[Violation] = model.validate_metric(tenant.name, name, sent.spec)
    faults += model.check_labels(sent.labels)
    if faults:
        raise invalid([Fault(fault.field, fault.value, fault.rule) for fault in faults])


def _check_may_change(tenant: Tenant, entry: MetricEntry, spec: MetricSpec) -> None:
    """Refuse to change what a running experiment is judged by, or what a draft relies on.

    Raises:
        Refused: FAILED_PRECONDITION.
    """
    users = tenant.users_of(entry.name)
    live = [user for user in users if user.run.live]
    if live:
        message = (
            f"experiment {live[0].name} runs and is judged by metric {entry.name}: end it first, "
            "or declare another metric"
        )
        raise precondition("METRIC_IN_USE", message, experiment=live[0].name)
    before, after = (model.definition(entry.name, each).measured_as for each in (entry.spec, spec))
    if users and before != after:
        message = (
            f"experiment {users[0].name} names metric {entry.name}, which would be measured as "
            f"{after or 'nothing live'} and not as {before}: delete that, or name another metric"
        )
        raise precondition("METRIC_IN_USE", message, experiment=users[0].name)


def _full_name(tenant: Tenant, name: str) -> str:
    return f"tenants/{tenant.name}/metrics/{name}"
