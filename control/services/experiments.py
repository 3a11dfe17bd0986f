"""ExperimentService: decode -> controller -> encode.

Refuses to hold state or rules: names and envelopes are checked here, everything else below.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from google.protobuf.empty_pb2 import Empty

from control import views
from control.refusals import Fault, invalid, not_found, shorten, unimplemented
from control.rollout.controller import Controller
from control.rollout.decide import Command
from control.rollout.forcing import create_token
from control.rollout.observe import results
from control.rollout.resources import Resources
from control.rollout.tenant import Tenant
from control.rollout.tenants import Tenants
from control.rollout.watch import Watch, Watches
from control.rollout.words import Input
from control.services.calls import call_of, check_id
from control.services.errors import Context, answers, streams
from control.services.requests import (
    Listing,
    check_reason,
    check_size,
    merged,
    name_of,
    page_of_names,
    page_of_records,
    tenant_of,
)
from control.store.base import DecisionRecord, Page, Store
from turnout.v1alpha1 import experiment_service_pb2 as api
from turnout.v1alpha1.experiment_pb2 import Decision, Experiment
from turnout.v1alpha1.experiment_service_pb2_grpc import ExperimentServiceServicer

SERVICE: Final = "ExperimentService"
RESULTS_EVERY_S: Final = 1.0


VerbRequest = (
    api.StartExperimentRequest
    | api.PauseExperimentRequest
    | api.ResumeExperimentRequest
    | api.AdvanceExperimentRequest
    | api.PromoteExperimentRequest
    | api.RollbackExperimentRequest
    | api.StopExperimentRequest
    | api.UndoExperimentRequest
)


class ExperimentService(ExperimentServiceServicer):
    """`turnout.v1alpha1.ExperimentService`."""

    def __init__(
        self,
        controller: Controller,
        resources: Resources,
        tenants: Tenants,
        watches: Watches,
        store: Store,
    ) -> None:
        self._controller = controller
        self._resources = resources
        self._tenants = tenants
        self._watches = watches
        self._store = store

    # -- Standard methods ----------------------------------------------------------------------

    @answers
    async def CreateExperiment(
        self, request: api.CreateExperimentRequest, context: Context
    ) -> Experiment:
        """Create an experiment, as a draft."""
        name = tenant_of(request.parent)
        check_id("experimentId", request.experiment_id)
        check_size(request.experiment)
        call = call_of(request, context, f"{SERVICE}.CreateExperiment")
        tenant = await self._tenants.get_or_create(name)
        return await self._resources.create_experiment(
            tenant,
            request.experiment_id,
            request.experiment,
            call,
            validate_only=request.validate_only,
        )

    @answers
    async def GetExperiment(
        self, request: api.GetExperimentRequest, context: Context
    ) -> Experiment:
        """Get an experiment."""
        name = name_of(request.name, "experiments")
        tenant = self._controller.known(name.tenant, request.name)
        return self._shown(tenant, name.id)

    @answers
    async def ListExperiments(
        self, request: api.ListExperimentsRequest, context: Context
    ) -> api.ListExperimentsResponse:
        """List experiments by name."""
        tenant = self._controller.ledger.find(tenant_of(request.parent))

        def show(name: str) -> Experiment:
            assert tenant is not None
            return self._shown(tenant, name)

        page, token = page_of_names(
            Listing("experiments", request.parent),
            request.page_size,
            request.page_token,
            tenant.experiments if tenant else (),
            show,
        )
        return api.ListExperimentsResponse(experiments=page, next_page_token=token)

    @answers
    async def UpdateExperiment(
        self, request: api.UpdateExperimentRequest, context: Context
    ) -> Experiment:
        """Update an experiment."""
        name = name_of(request.experiment.name, "experiments", field="experiment.name")
        check_size(request.experiment)
        call = call_of(request, context, f"{SERVICE}.UpdateExperiment")
        return await self._resources.update_experiment(
            self._controller.known(name.tenant, request.experiment.name),
            name.id,
            lambda current: merged(current, request.experiment, request.update_mask),
            request.experiment.etag,
            call,
            validate_only=request.validate_only,
        )

    @answers
    async def DeleteExperiment(
        self, request: api.DeleteExperimentRequest, context: Context
    ) -> Empty:
        """Delete an experiment."""
        name = name_of(request.name, "experiments")
        call = call_of(request, context, f"{SERVICE}.DeleteExperiment")
        tenant = self._controller.known(name.tenant, request.name)
        await self._resources.delete_experiment(tenant, name.id, request.etag, call)
        return Empty()

    # -- Verbs ---------------------------------------------------------------------------------

    @answers
    async def StartExperiment(
        self, request: api.StartExperimentRequest, context: Context
    ) -> Experiment:
        """Start an experiment at its first step."""
        return await self._verb(request, context, Input.START)

    @answers
    async def PauseExperiment(
        self, request: api.PauseExperimentRequest, context: Context
    ) -> Experiment:
        """Freeze the step."""
        return await self._verb(request, context, Input.PAUSE)

    @answers
    async def ResumeExperiment(
        self, request: api.ResumeExperimentRequest, context: Context
    ) -> Experiment:
        """Go on."""
        return await self._verb(request, context, Input.RESUME)

    @answers
    async def AdvanceExperiment(
        self, request: api.AdvanceExperimentRequest, context: Context
    ) -> Experiment:
        """Go to the next step."""
        return await self._verb(request, context, Input.ADVANCE)

    @answers
    async def PromoteExperiment(
        self, request: api.PromoteExperimentRequest, context: Context
    ) -> Experiment:
        """Make a candidate the target's baseline."""
        return await self._verb(
            request, context, Input.PROMOTE, variant=request.variant, force=request.force
        )

    @answers
    async def RollbackExperiment(
        self, request: api.RollbackExperimentRequest, context: Context
    ) -> Experiment:
        """Take all traffic from the candidates, for good."""
        check_reason(request.reason)
        return await self._verb(request, context, Input.ROLLBACK, reason=request.reason)

    @answers
    async def StopExperiment(
        self, request: api.StopExperimentRequest, context: Context
    ) -> Experiment:
        """End it without a verdict."""
        check_reason(request.reason)
        return await self._verb(request, context, Input.STOP, reason=request.reason)

    @answers
    async def UndoExperiment(
        self, request: api.UndoExperimentRequest, context: Context
    ) -> Experiment:
        """Undo its promotion."""
        return await self._verb(request, context, Input.UNDO)

    @answers
    async def ApproveExperiment(
        self, request: api.ApproveExperimentRequest, context: Context
    ) -> Experiment:
        """Refuse: approvals are not implemented."""
        raise unimplemented(["approval"])

    @answers
    async def RejectExperiment(
        self, request: api.RejectExperimentRequest, context: Context
    ) -> Experiment:
        """Refuse: approvals are not implemented."""
        raise unimplemented(["approval"])

    @answers
    async def CreateForceToken(
        self, request: api.CreateForceTokenRequest, context: Context
    ) -> api.ForceToken:
        """Sign a token that gives its bearer a variant."""
        name = name_of(request.name, "experiments")
        call = call_of(request, context, f"{SERVICE}.CreateForceToken")
        tenant = self._controller.known(name.tenant, request.name)
        return await create_token(self._controller, tenant, name.id, request, call)

    async def _verb(
        self,
        request: VerbRequest,
        context: Context,
        verb: Input,
        *,
        variant: str = "",
        reason: str = "",
        force: bool = False,
    ) -> Experiment:
        name = name_of(request.name, "experiments")
        call = call_of(request, context, f"{SERVICE}.{verb.title()}Experiment")
        command = Command(verb=verb, actor=call.actor, variant=variant, reason=reason, force=force)
        return await self._controller.command(
            name.tenant, name.id, command, call, etag=request.etag
        )

    # -- Looking -------------------------------------------------------------------------------

    @streams
    async def WatchExperiments(
        self, request: api.WatchExperimentsRequest, context: Context
    ) -> AsyncIterator[api.WatchExperimentsResponse]:
        """First the present state, then one event per change; a name must exist."""
        parent, only = tenant_of(request.parent), ""
        if request.name:
            named = name_of(request.name, "experiments")
            if named.tenant != parent:
                rule = f"must be an experiment of {request.parent}"
                raise invalid([Fault("name", shorten(request.name), rule)])
            only = named.id
            if not self._present(parent, only):
                raise not_found(request.name)
        watch = self._watches.open(parent, only)
        try:
            known = set()
            for name in self._present(parent, only):
                known.add(name)
                yield self._event(parent, name, api.WatchExperimentsResponse.TYPE_PRESENT)
            while (changed := await watch.take()) is not None:
                name = changed
                if name in self._present(parent, only):
                    known.add(name)
                    yield self._event(parent, name, api.WatchExperimentsResponse.TYPE_CHANGED)
                elif name in known:
                    known.discard(name)
                    yield self._deleted(parent, name)
        finally:
            self._watches.end(parent, watch)

    @streams
    async def WatchExperimentResults(
        self, request: api.WatchExperimentResultsRequest, context: Context
    ) -> AsyncIterator[api.ExperimentResults]:
        """Results whenever they are others, until the experiment has ended."""
        name = name_of(request.name, "experiments")
        if not self._present(name.tenant, name.id):
            raise not_found(request.name)
        watch = self._watches.open(name.tenant, name.id)
        told = b""
        try:
            while True:
                tenant = self._controller.known(name.tenant, request.name)
                entry = tenant.experiments.get(name.id)
                if entry is None:
                    return
                found = results(tenant, entry, now_ms=self._controller.clock_ms())
                key = _said(found)
                if key != told:
                    told = key
                    yield found
                if entry.run.start_ms and not entry.run.live:
                    return
                if not await _second(watch):
                    return
        finally:
            self._watches.end(name.tenant, watch)

    @answers
    async def GetExperimentResults(
        self, request: api.GetExperimentResultsRequest, context: Context
    ) -> api.ExperimentResults:
        """What is known of the variants."""
        name = name_of(request.name, "experiments")
        tenant = self._controller.known(name.tenant, request.name)
        entry = tenant.experiments.get(name.id)
        if entry is None:
            raise not_found(request.name)
        return results(tenant, entry, now_ms=self._controller.clock_ms())

    @answers
    async def ListDecisions(
        self, request: api.ListDecisionsRequest, context: Context
    ) -> api.ListDecisionsResponse:
        """List decisions, newest first."""
        name = name_of(request.parent, "experiments", field="parent")
        ledger = self._controller.ledger

        async def read(count: int, after: str) -> Page[DecisionRecord]:
            await ledger.settled(name.tenant)
            reading = self._store.decisions(name.tenant, name.id, page_size=count, page_token=after)
            return await ledger.asked(reading)

        page, token = await page_of_records(
            Listing("decisions", request.parent),
            request.page_size,
            request.page_token,
            read,
            _decision,
        )
        return api.ListDecisionsResponse(decisions=page, next_page_token=token)

    def _present(self, parent: str, only: str) -> list[str]:
        tenant = self._controller.ledger.find(parent)
        names = sorted(tenant.experiments) if tenant else []
        return [name for name in names if not only or name == only]

    def _event(
        self, parent: str, name: str, kind: api.WatchExperimentsResponse.Type.ValueType
    ) -> api.WatchExperimentsResponse:
        tenant = self._controller.ledger.find(parent)
        assert tenant is not None
        return api.WatchExperimentsResponse(type=kind, experiment=self._shown(tenant, name))

    def _deleted(self, parent: str, name: str) -> api.WatchExperimentsResponse:
        gone = Experiment(name=f"tenants/{parent}/experiments/{name}")
        kind = api.WatchExperimentsResponse.TYPE_DELETED
        return api.WatchExperimentsResponse(type=kind, experiment=gone)

    def _shown(self, tenant: Tenant, name: str) -> Experiment:
        entry = tenant.experiments.get(name)
        if entry is None:
            raise not_found(f"tenants/{tenant.name}/experiments/{name}")
        latest = tenant.latest.get(name)
        return views.experiment_message(entry, latest.conditions if latest else ())


def _said(found: api.ExperimentResults) -> bytes:
    """Results but for what only time changes."""
    kept = api.ExperimentResults()
    kept.CopyFrom(found)
    kept.ClearField("as_of_time")
    kept.ClearField("throughput")
    return kept.SerializeToString(deterministic=True)


async def _second(watch: Watch) -> bool:
    """Wait for a second, less when the experiment changes; False when the watch has ended."""
    try:
        async with asyncio.timeout(RESULTS_EVERY_S):
            return await watch.take() is not None
    except TimeoutError:
        return True


def _decision(record: DecisionRecord) -> Decision:
    decision = Decision.FromString(record.payload)
    decision.id = record.id
    return decision
