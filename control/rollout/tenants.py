"""Brings tenants into memory, and what is received into their journals.

Owns the order of a restart: resources, tombstones, evidence, then the snapshot under its old
version. Refuses to decide anything; new evidence wakes the controller.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from control import views
from control.evidence import ImpossibleCounts, InvalidDelta
from control.ingest import SpanFact
from control.journal import Journal
from control.refusals import Fault, Refused, invalid, shorten
from control.rollout.controller import Controller
from control.rollout.entries import load_experiment, load_holdout, load_metric, load_target
from control.rollout.tenant import Ahead, Tenant
from control.store.base import Kind, Store, StoreFailed, StoreUnavailable
from turnout.v1alpha1.config_service_pb2 import DeltaBatch
from turnout.v1alpha1.experiment_pb2 import Decision
from turnout.v1alpha1.outcome_service_pb2 import Outcome

CHECKPOINT_LOOK_S: Final = 5.0
# A delta that is not stored by then is looked at first: a rollback must not wait for a slow disk.
SLOW_STORE_S: Final = 0.3

_log = logging.getLogger(__name__)


class Tenants:
    """All tenants, loaded once.

    Attributes:
        unstored: Deltas that came while the store could not write: the sidecar sends them again.
    """

    def __init__(self, controller: Controller, store: Store) -> None:
        self._controller = controller
        self._ledger = controller.ledger
        self._store = store
        self._creating = asyncio.Lock()
        self.unstored = 0

    async def load(self) -> None:
        """Load every tenant of the store and publish their snapshots again.

        Raises:
            StoreError: The store cannot be read.
        """
        for name in await self._store.tenants():
            await self._load(name)

    async def get_or_create(self, name: str) -> Tenant:
        """A tenant; one that was never heard of begins empty.

        Raises:
            Refused: RESOURCE_EXHAUSTED or UNAVAILABLE.
        """
        found = self._ledger.find(name)
        if found is not None:
            return found
        async with self._creating:
            found = self._ledger.find(name)
            if found is None:
                self._ledger.admit(name)
                found = await self._ledger.asked(self._load(name))
            return found

    async def _load(self, name: str) -> Tenant:
        self._ledger.distribution.set_key(name, await self._store.tenant_key(name))
        tenant = Tenant(name, journal=await Journal.recover(self._store, name))
        for resource in await self._store.all_resources(Kind.TARGET, name):
            tenant.targets[resource.name] = load_target(resource)
        for resource in await self._store.all_resources(Kind.EXPERIMENT, name):
            entry = load_experiment(resource)
            page = await self._store.decisions(name, resource.name, page_size=1)
            if page.records:
                last = views.shown_decision(Decision.FromString(page.records[0].payload))
                entry = replace(entry, last_decision=last)
            tenant.experiments[resource.name] = entry
        for resource in await self._store.all_resources(Kind.HOLDOUT, name):
            tenant.holdout = load_holdout(resource)
        for resource in await self._store.all_resources(Kind.METRIC, name):
            tenant.metrics[resource.name] = load_metric(resource)
        for tombstone in await self._store.tombstones(name):
            tenant.tombstones[tombstone.experiment] = tombstone
        snapshot = await self._store.snapshot(name)
        self._ledger.add(tenant)
        if snapshot is not None:
            self._ledger.resume(tenant, snapshot, now_ms=self._controller.clock_ms())
        return tenant

    # -- What is received ----------------------------------------------------------------------

    async def take_delta(self, tenant: Tenant, batch: DeltaBatch) -> bool:
        """Store and merge a delta; False when it could not be stored: do not acknowledge it.

        Raises:
            Refused: INVALID_ARGUMENT, no sidecar of ours sends such a delta.
        """
        now_ms = self._controller.clock_ms()
        storing = asyncio.create_task(tenant.journal.add_delta(batch, now_ms))
        try:
            done, _ = await asyncio.wait([storing], timeout=SLOW_STORE_S)
            if not done:
                self._look_ahead(tenant, batch, now_ms)
            await storing
        except ImpossibleCounts as error:
            field = f"{_name_of(batch)}.{error.field}"
            raise invalid([Fault(field, str(error.value), f"must be {error.rule}")]) from error
        except InvalidDelta as error:
            raise invalid([Fault(_name_of(batch), "", str(error))]) from error
        except StoreUnavailable as error:
            # The stream stays: a rollback may have to go out on it.
            self.unstored += 1
            self._look_ahead(tenant, batch, now_ms)
            _log.warning("a delta was not stored: %s", error, extra={"tenant": tenant.name})
            return False
        except StoreFailed as error:
            self._ledger.fail(str(error))
            return False
        if tenant.ahead is not None:
            tenant.ahead.stored(batch, now_ms)
            if tenant.ahead.over(now_ms):
                tenant.ahead = None
        self._controller.wake()
        return True

    def _look_ahead(self, tenant: Tenant, batch: DeltaBatch, now_ms: int) -> None:
        """Harm must be seen although the delta is not stored yet."""
        if tenant.ahead is None:
            tenant.ahead = Ahead(tenant.journal.evidence)
        tenant.ahead.add(batch, now_ms)
        self._controller.wake()

    async def take_outcomes(self, tenant: Tenant, outcomes: Iterable[Outcome]) -> None:
        """Store and join outcomes.

        Raises:
            Refused: UNAVAILABLE; none was stored.
        """
        now_ms = self._controller.clock_ms()
        await self._ledger.asked(tenant.journal.add_outcomes(list(outcomes), now_ms))
        self._controller.wake()

    async def take_spans(self, name: str, facts: tuple[SpanFact, ...]) -> str:
        """See `control.otlp.Spans`."""
        tenants = list(self._ledger)
        if not name and len(tenants) != 1:
            return f"there are {len(tenants)} tenants: name one in the metadata x-turnout-tenant"
        tenant = self._ledger.find(name) if name else tenants[0]
        if tenant is None:
            return f"there is no tenant {shorten(name)}"
        now_ms = self._controller.clock_ms()
        await self._ledger.asked(tenant.journal.add_spans(facts, now_ms))
        self._controller.wake()
        return ""

    # -- Checkpoints ---------------------------------------------------------------------------

    async def checkpoint_for_ever(self) -> None:
        """Write checkpoints when they are due; never returns."""
        while True:
            await asyncio.sleep(CHECKPOINT_LOOK_S)
            for tenant in self._ledger:
                await self.checkpoint(tenant)

    async def checkpoint(self, tenant: Tenant, *, force: bool = False) -> None:
        """Write one tenant's checkpoint if it is due; a store that cannot write is left alone."""
        try:
            now_ms = self._controller.clock_ms()
            await self._ledger.asked(tenant.journal.checkpoint(now_ms, force=force))
        except Refused as refused:
            _log.warning("no checkpoint: %s", refused, extra={"tenant": tenant.name})


def _name_of(batch: DeltaBatch) -> str:
    """A batch in a refusal: by it the sidecar finds what it must not send again."""
    return f"deltas[{shorten(batch.instance_id)}/{batch.seq}]"
