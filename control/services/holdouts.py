"""HoldoutService: decode -> rollout -> encode.

Refuses to hold state or rules: names and envelopes are checked here, everything else below.
"""

from __future__ import annotations

from control import views
from control.refusals import Fault, invalid, shorten
from control.rollout.controller import Controller
from control.rollout.holdouts import Holdouts
from control.rollout.tenants import Tenants
from control.services.calls import call_of
from control.services.errors import Context, answers
from control.services.requests import LABEL, check_size, merged
from turnout.v1alpha1 import experiment_service_pb2 as api
from turnout.v1alpha1.experiment_service_pb2_grpc import HoldoutServiceServicer


class HoldoutService(HoldoutServiceServicer):
    """`turnout.v1alpha1.HoldoutService`."""

    def __init__(self, controller: Controller, holdouts: Holdouts, tenants: Tenants) -> None:
        self._controller = controller
        self._holdouts = holdouts
        self._tenants = tenants

    @answers
    async def GetHoldout(self, request: api.GetHoldoutRequest, context: Context) -> api.Holdout:
        """Get a tenant's holdout; of one that never set any it is 0."""
        name = _tenant_of(request.name, "name")
        tenant = self._controller.ledger.find(name)
        return views.holdout_message(name, tenant.holdout if tenant else None)

    @answers
    async def UpdateHoldout(
        self, request: api.UpdateHoldoutRequest, context: Context
    ) -> api.Holdout:
        """Set a tenant's holdout."""
        name = _tenant_of(request.holdout.name, "holdout.name")
        check_size(request.holdout)
        call = call_of(request, context, "HoldoutService.UpdateHoldout")
        return await self._holdouts.update(
            await self._tenants.get_or_create(name),
            lambda current: merged(current, request.holdout, request.update_mask),
            request.holdout.etag,
            call,
            validate_only=request.validate_only,
        )


def _tenant_of(name: str, field: str) -> str:
    """The tenant in `tenants/{tenant}/holdout`.

    Raises:
        Refused: INVALID_ARGUMENT, not such a name.
    """
    parts = name.split("/")
    good = len(parts) == 3 and parts[0] == "tenants" and parts[2] == "holdout"
    if not good or not LABEL.fullmatch(parts[1]):
        raise invalid([Fault(field, shorten(name), "must be tenants/{tenant}/holdout")])
    return parts[1]
