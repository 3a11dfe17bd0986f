"""TargetService: decode -> controller -> encode.

Refuses to hold state or rules: names and envelopes are checked here, everything else below.
"""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from control import views
from control.refusals import not_found
from control.rollout.controller import Controller
from control.rollout.resources import Resources
from control.rollout.tenant import Tenant
from control.rollout.tenants import Tenants
from control.services.calls import call_of, check_id
from control.services.errors import Context, answers
from control.services.requests import (
    Listing,
    check_size,
    merged,
    name_of,
    page_of_names,
    tenant_of,
)
from turnout.v1alpha1 import experiment_service_pb2 as api
from turnout.v1alpha1.experiment_service_pb2_grpc import TargetServiceServicer
from turnout.v1alpha1.target_pb2 import Target


class TargetService(TargetServiceServicer):
    """`turnout.v1alpha1.TargetService`."""

    def __init__(self, controller: Controller, resources: Resources, tenants: Tenants) -> None:
        self._controller = controller
        self._resources = resources
        self._tenants = tenants

    @answers
    async def CreateTarget(self, request: api.CreateTargetRequest, context: Context) -> Target:
        """Create a target."""
        name = tenant_of(request.parent)
        check_id("targetId", request.target_id)
        check_size(request.target)
        call = call_of(request, context, "TargetService.CreateTarget")
        tenant = await self._tenants.get_or_create(name)
        return await self._resources.create_target(
            tenant, request.target_id, request.target, call, validate_only=request.validate_only
        )

    @answers
    async def GetTarget(self, request: api.GetTargetRequest, context: Context) -> Target:
        """Get a target."""
        name = name_of(request.name, "targets")
        tenant = self._controller.known(name.tenant, request.name)
        entry = tenant.targets.get(name.id)
        if entry is None:
            raise not_found(request.name)
        return self._shown(tenant, name.id)

    @answers
    async def ListTargets(
        self, request: api.ListTargetsRequest, context: Context
    ) -> api.ListTargetsResponse:
        """List targets by name."""
        tenant = self._controller.ledger.find(tenant_of(request.parent))

        def show(name: str) -> Target:
            assert tenant is not None
            return self._shown(tenant, name)

        page, token = page_of_names(
            Listing("targets", request.parent),
            request.page_size,
            request.page_token,
            tenant.targets if tenant else (),
            show,
        )
        return api.ListTargetsResponse(targets=page, next_page_token=token)

    @answers
    async def UpdateTarget(self, request: api.UpdateTargetRequest, context: Context) -> Target:
        """Update a target."""
        name = name_of(request.target.name, "targets", field="target.name")
        check_size(request.target)
        call = call_of(request, context, "TargetService.UpdateTarget")
        return await self._resources.update_target(
            self._controller.known(name.tenant, request.target.name),
            name.id,
            lambda current: merged(current, request.target, request.update_mask),
            request.target.etag,
            call,
            validate_only=request.validate_only,
        )

    @answers
    async def DeleteTarget(self, request: api.DeleteTargetRequest, context: Context) -> Empty:
        """Delete a target."""
        name = name_of(request.name, "targets")
        call = call_of(request, context, "TargetService.DeleteTarget")
        tenant = self._controller.known(name.tenant, request.name)
        await self._resources.delete_target(tenant, name.id, request.etag, call)
        return Empty()

    @answers
    async def UndoTarget(self, request: api.UndoTargetRequest, context: Context) -> Target:
        """Go back to the baseline before the last promotion."""
        name = name_of(request.name, "targets")
        call = call_of(request, context, "TargetService.UndoTarget")
        tenant = self._controller.known(name.tenant, request.name)
        return await self._resources.undo_target(tenant, name.id, request.etag, call)

    def _shown(self, tenant: Tenant, name: str) -> Target:
        running = [entry.name for entry in tenant.live_on(name)]
        now_ms = self._controller.clock_ms()
        return views.target_message(tenant.targets[name], running, now_ms=now_ms)
