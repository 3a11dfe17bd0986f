"""OutcomeService: what really happened, told later.

Owns the checks of outcomes: one bad outcome refuses the whole call. Refuses to join them:
`control.outcomes` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from control.admission import Admission
from control.refusals import Fault, exhausted, invalid, shorten, unimplemented
from control.rollout.controller import Controller
from control.rollout.tenants import Tenants
from control.services.errors import Context, answers
from control.services.requests import tenant_of
from turnout import contract
from turnout.v1alpha1.outcome_service_pb2 import (
    Outcome,
    RecordOutcomesRequest,
    RecordOutcomesResponse,
)
from turnout.v1alpha1.outcome_service_pb2_grpc import OutcomeServiceServicer

TEXT_BYTES_MAX: Final = 256
LONG_RULE: Final = f"must be at most {TEXT_BYTES_MAX} bytes"


class OutcomeService(OutcomeServiceServicer):
    """`turnout.v1alpha1.OutcomeService`.

    Attributes:
        recorded: Outcomes taken.
    """

    def __init__(self, controller: Controller, tenants: Tenants, admission: Admission) -> None:
        self._controller = controller
        self._tenants = tenants
        self._admission = admission
        self.recorded = 0

    @answers
    async def RecordOutcomes(
        self, request: RecordOutcomesRequest, context: Context
    ) -> RecordOutcomesResponse:
        """Store outcomes and join them to requests; acknowledged = stored."""
        tenant = self._controller.known(tenant_of(request.parent), request.parent)
        if len(request.outcomes) > contract.OUTCOMES_PER_CALL_MAX:
            limit = contract.OUTCOMES_PER_CALL_MAX
            message = f"{len(request.outcomes)} outcomes in one call; at most {limit} are allowed"
            raise exhausted("TOO_MANY_OUTCOMES", message)
        with self._admission.admit(request.ByteSize()):
            faults = [f for i, o in enumerate(request.outcomes) for f in _faults(i, o)]
            if faults:
                raise invalid(faults)
            features = sorted({f for outcome in request.outcomes for f in _features(outcome)})
            if features:
                raise unimplemented(features)
            await self._tenants.take_outcomes(tenant, request.outcomes)
        self.recorded += len(request.outcomes)
        return RecordOutcomesResponse(recorded=len(request.outcomes))


def _faults(index: int, outcome: Outcome) -> Iterator[Fault]:
    path = f"outcomes[{index}]"
    rule = f"must be 1..{TEXT_BYTES_MAX} bytes"
    by_unit = outcome.unit and not outcome.request_id
    if not by_unit and not 0 < len(outcome.request_id.encode()) <= TEXT_BYTES_MAX:
        yield Fault(f"{path}.requestId", shorten(outcome.request_id), rule)
    for field in ("label", "prediction"):
        value = getattr(outcome, field)
        if len(value.encode()) > TEXT_BYTES_MAX:
            yield Fault(f"{path}.{field}", shorten(value), LONG_RULE)
    if not outcome.label and not outcome.prediction and not outcome.values:
        yield Fault(path, "", "must have a label or a prediction")


def _features(outcome: Outcome) -> Iterator[str]:
    if outcome.unit:
        yield "outcomes.unit"
    if outcome.values:
        yield "outcomes.values"
