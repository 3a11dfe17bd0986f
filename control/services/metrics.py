"""MetricService: decode -> rollout -> encode.

Refuses to hold state or rules: names and envelopes are checked here, everything else below.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.empty_pb2 import Empty

from control import views
from control.model import BUILT_IN, is_metric
from control.refusals import Fault, invalid, not_found, shorten
from control.rollout.controller import Controller
from control.rollout.metrics import Metrics
from control.rollout.tenant import Tenant
from control.rollout.tenants import Tenants
from control.services.calls import call_of, check_id
from control.services.errors import Context, answers
from control.services.requests import (
    LABEL,
    Listing,
    Name,
    check_size,
    merged,
    page_of_names,
    tenant_of,
)
from turnout.v1alpha1 import metric_service_pb2 as api
from turnout.v1alpha1.metric_pb2 import Metric
from turnout.v1alpha1.metric_service_pb2_grpc import MetricServiceServicer

SERVICE: Final = "MetricService"


class MetricService(MetricServiceServicer):
    """`turnout.v1alpha1.MetricService`."""

    def __init__(self, controller: Controller, metrics: Metrics, tenants: Tenants) -> None:
        self._controller = controller
        self._metrics = metrics
        self._tenants = tenants

    @answers
    async def CreateMetric(self, request: api.CreateMetricRequest, context: Context) -> Metric:
        """Declare a metric."""
        name = tenant_of(request.parent)
        if request.metric_id not in BUILT_IN:  # which has a rule of its own
            check_id("metricId", request.metric_id)
        check_size(request.metric)
        call = call_of(request, context, f"{SERVICE}.CreateMetric")
        return await self._metrics.create(
            await self._tenants.get_or_create(name),
            request.metric_id,
            request.metric,
            call,
            validate_only=request.validate_only,
        )

    @answers
    async def GetMetric(self, request: api.GetMetricRequest, context: Context) -> Metric:
        """Get a metric, declared or built in."""
        name = _name_of(request.name, "name")
        return self._shown(self._controller.ledger.find(name.tenant), name)

    @answers
    async def ListMetrics(
        self, request: api.ListMetricsRequest, context: Context
    ) -> api.ListMetricsResponse:
        """List metrics by name, built-in ones among them."""
        owner = tenant_of(request.parent)
        tenant = self._controller.ledger.find(owner)
        page, token = page_of_names(
            Listing("metrics", request.parent),
            request.page_size,
            request.page_token,
            (*BUILT_IN, *(tenant.metrics if tenant else ())),
            lambda name: self._shown(tenant, Name(owner, name)),
        )
        return api.ListMetricsResponse(metrics=page, next_page_token=token)

    @answers
    async def UpdateMetric(self, request: api.UpdateMetricRequest, context: Context) -> Metric:
        """Update a metric."""
        name = _name_of(request.metric.name, "metric.name")
        check_size(request.metric)
        call = call_of(request, context, f"{SERVICE}.UpdateMetric")
        return await self._metrics.update(
            await self._tenant(name, request.metric.name),
            name.id,
            lambda current: merged(current, request.metric, request.update_mask),
            request.metric.etag,
            call,
            validate_only=request.validate_only,
        )

    @answers
    async def DeleteMetric(self, request: api.DeleteMetricRequest, context: Context) -> Empty:
        """Delete a metric."""
        name = _name_of(request.name, "name")
        call = call_of(request, context, f"{SERVICE}.DeleteMetric")
        tenant = await self._tenant(name, request.name)
        await self._metrics.delete(tenant, name.id, request.etag, call)
        return Empty()

    async def _tenant(self, name: Name, resource: str) -> Tenant:
        if name.id in BUILT_IN:
            return await self._tenants.get_or_create(name.tenant)
        return self._controller.known(name.tenant, resource)

    def _shown(self, tenant: Tenant | None, name: Name) -> Metric:
        if name.id in BUILT_IN:
            return views.built_in_metric(name.tenant, BUILT_IN[name.id])
        entry = tenant.metrics.get(name.id) if tenant else None
        if tenant is None or entry is None:
            raise not_found(f"tenants/{name.tenant}/metrics/{name.id}")
        return views.metric_message(entry, [user.name for user in tenant.users_of(name.id)])


def _name_of(name: str, field: str) -> Name:
    """Tenant and id in `tenants/{tenant}/metrics/{id}`; a built-in metric's id has underscores.

    Raises:
        Refused: INVALID_ARGUMENT, not such a name.
    """
    parts = name.split("/")
    good = len(parts) == 4 and parts[0] == "tenants" and parts[2] == "metrics"
    if not good or not LABEL.fullmatch(parts[1]) or not is_metric(parts[3]):
        raise invalid([Fault(field, shorten(name), "must be tenants/{tenant}/metrics/{id}")])
    return Name(parts[1], parts[3])
