"""SidecarService and AuditService: what is known of sidecars, and who did what.

Read only.
"""

from __future__ import annotations

from control import views
from control.distribution import Distribution, SidecarState
from control.refusals import not_found
from control.rollout.ledger import Ledger
from control.services.errors import Context, answers
from control.services.requests import (
    Listing,
    page_of_records,
    tenant_of,
)
from control.store.base import AuditRecord, Page, Store
from turnout.v1alpha1 import config_service_pb2, experiment_service_pb2
from turnout.v1alpha1.config_service_pb2_grpc import SidecarServiceServicer
from turnout.v1alpha1.experiment_service_pb2_grpc import AuditServiceServicer
from turnout.v1alpha1.snapshot_pb2 import Snapshot


class SidecarService(SidecarServiceServicer):
    """`turnout.v1alpha1.SidecarService`."""

    def __init__(self, distribution: Distribution) -> None:
        self._distribution = distribution

    @answers
    async def ListSidecars(
        self, request: config_service_pb2.ListSidecarsRequest, context: Context
    ) -> config_service_pb2.ListSidecarsResponse:
        """List the tenant's nodes by name."""
        tenant = tenant_of(request.parent)
        published = self._distribution.current(tenant)
        version = published.version if published else 0
        states = sorted(self._distribution.sidecars(tenant), key=lambda state: state.node)
        return config_service_pb2.ListSidecarsResponse(
            sidecars=[_sidecar(state, version) for state in states]
        )

    @answers
    async def GetSnapshot(
        self, request: config_service_pb2.GetSnapshotRequest, context: Context
    ) -> Snapshot:
        """Show the snapshot that the tenant's sidecars get."""
        tenant = tenant_of(request.parent)
        published = self._distribution.current(tenant)
        if published is None:
            raise not_found(f"{request.parent}/snapshot")
        return Snapshot.FromString(published.snapshot)


class AuditService(AuditServiceServicer):
    """`turnout.v1alpha1.AuditService`."""

    def __init__(self, store: Store, ledger: Ledger) -> None:
        self._store = store
        self._ledger = ledger

    @answers
    async def ListAuditEvents(
        self, request: experiment_service_pb2.ListAuditEventsRequest, context: Context
    ) -> experiment_service_pb2.ListAuditEventsResponse:
        """List audit events, newest first."""
        tenant = tenant_of(request.parent)

        async def read(count: int, after: str) -> Page[AuditRecord]:
            await self._ledger.settled(tenant)
            reading = self._store.audits(
                tenant, resource=request.resource, page_size=count, page_token=after
            )
            return await self._ledger.asked(reading)

        page, token = await page_of_records(
            Listing("auditEvents", request.parent, request.resource),
            request.page_size,
            request.page_token,
            read,
            _event,
        )
        return experiment_service_pb2.ListAuditEventsResponse(events=page, next_page_token=token)


def _sidecar(state: SidecarState, version: int) -> config_service_pb2.Sidecar:
    return config_service_pb2.Sidecar(
        node=state.node,
        instance_id=state.instance_id,
        tenant=state.tenant,
        connected=state.connected,
        connect_time=views.timestamp(state.connect_ms),
        last_seen_time=views.timestamp(state.last_seen_ms),
        sent_version=state.sent_version,
        acked_version=state.acked_version,
        current_version=version,
        nack=state.nack,
        report=state.report,
        code_version=state.code_version,
    )


def _event(record: AuditRecord) -> experiment_service_pb2.AuditEvent:
    return experiment_service_pb2.AuditEvent(
        id=record.id,
        time=views.timestamp(record.time_ms),
        actor=record.actor,
        method=record.method,
        resource=record.resource,
        before_json=record.before_json,
        after_json=record.after_json,
    )
