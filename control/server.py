"""The control plane as one object: store, controller, services, listeners; start and stop.

Owns the order of starting and of draining. Refuses to parse a command line.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import turnout
from control import clock
from control.admission import Admission
from control.alerts import Alert, Alerts
from control.distribution import Distribution
from control.forward import Forwarder
from control.metrics import CountCalls, Metrics, Sample, serve_metrics
from control.otlp import SERVICE as OTLP_SERVICE
from control.otlp import OtlpReceiver
from control.rollout.controller import Controller, Settings
from control.rollout.holdouts import Holdouts
from control.rollout.ledger import Ledger
from control.rollout.metrics import Metrics as DeclaredMetrics
from control.rollout.resources import Resources
from control.rollout.tenants import Tenants
from control.rollout.watch import Watches
from control.samples import samples
from control.services.config import ConfigService
from control.services.errors import finish
from control.services.experiments import ExperimentService
from control.services.holdouts import HoldoutService
from control.services.metrics import MetricService
from control.services.outcomes import OutcomeService
from control.services.sidecars import AuditService, SidecarService
from control.services.targets import TargetService
from control.store.base import Store, StoreError
from control.tracing import OFF, Tracing
from turnout import contract
from turnout.v1alpha1 import (
    config_service_pb2,
    config_service_pb2_grpc,
    experiment_service_pb2,
    experiment_service_pb2_grpc,
    metric_service_pb2,
    metric_service_pb2_grpc,
    outcome_service_pb2,
    outcome_service_pb2_grpc,
)

DRAIN_S: Final = 2.0
ALERTS_SCANNED_MAX: Final = 10_000
FAR_FUTURE_MS: Final = 1 << 53
OPTIONS: Final = (
    # grpc.aio's defaults refuse 4 of 10 sidecars that reconnect at once.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    ("grpc.max_receive_message_length", contract.GRPC_MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", contract.SNAPSHOT_BYTES_MAX + contract.GRPC_MESSAGE_BYTES_MAX),
    # Sidecars ping every 30 s on a stream that may be silent for days.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # Two control planes on one port would share the sidecars between them.
    ("grpc.so_reuseport", 0),
)

_log = logging.getLogger(__name__)


class ListenError(Exception):
    """An address cannot be listened on; the message says which."""


@dataclass(frozen=True, slots=True)
class Options:
    """What `turnout control` was given.

    Attributes:
        listen: HOST:PORT of the API.
        metrics: HOST:PORT for scrapes, "" = none.
        webhooks: URLs that are told of rollbacks.
        reflection: Serve reflection.
        forward_otlp: HOST:PORT of a tracing backend that gets all spans, "" = none.
    """

    listen: str
    metrics: str = ""
    webhooks: tuple[str, ...] = ()
    reflection: bool = True
    forward_otlp: str = ""


class ControlPlane:
    """A running control plane on an open store."""

    def __init__(self, store: Store, options: Options) -> None:
        self._options = options
        self.store = store
        self.failure = asyncio.Event()
        self.failure_reason = ""
        self.forwarder = (
            Forwarder(options.forward_otlp, jitter=clock.jitter) if options.forward_otlp else None
        )
        self.tracing = _tracing(self.forwarder)
        self.distribution = Distribution()
        self.watches = Watches()
        self.ledger = Ledger(
            store,
            self.distribution,
            new_nonce=clock.new_nonce,
            changed=self.watches.changed,
            failed=self._fail,
            tracing=self.tracing,
        )
        self.alerts = Alerts(done=self._alert_done, jitter=clock.jitter)
        settings = Settings(code_version=turnout.__version__, webhooks=options.webhooks)
        self.controller = Controller(
            self.ledger,
            self.alerts,
            settings,
            clock_ms=clock.now_ms,
            new_id=clock.new_id,
            tracing=self.tracing,
        )
        self.tenants = Tenants(self.controller, store)
        self.admission = Admission()
        self.otlp = OtlpReceiver(self.tenants, self.admission, self.forwarder)
        self.config = ConfigService(self.controller, self.tenants, self.distribution, self.tracing)
        self.outcomes = OutcomeService(self.controller, self.tenants, self.admission)
        self.metrics = Metrics(self._samples, self.config.ack_seconds)
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._metrics_server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.port = 0

    async def start(self) -> None:
        """Load everything, then listen.

        Raises:
            ListenError: An address is in use or cannot be bound.
            StoreError: The store cannot be read.
        """
        await self.tenants.load()
        await self.controller.resume_alerts()
        server = grpc.aio.server(options=OPTIONS, interceptors=[CountCalls(self.metrics)])
        self._add_services(server)
        try:
            self.port = server.add_insecure_port(self._options.listen)
        except RuntimeError as error:
            message = (
                f"cannot listen on {self._options.listen}: the port is in use, or the address is "
                "not this machine's: stop who has it (ss -ltnp), or choose another --listen"
            )
            raise ListenError(message) from error
        if self._options.metrics:
            self._metrics_server = await self._listen_metrics()
        if self.forwarder is not None:
            self.forwarder.start()
        await server.start()
        self._server = server
        self._tasks = [
            asyncio.create_task(self.controller.run(), name="controller"),
            asyncio.create_task(self.tenants.checkpoint_for_ever(), name="checkpoints"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._task_ended)
        for name in ("", *self._service_names()):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Drain: say so, end streams, answer what was asked, store what was published."""
        await self._health.enter_graceful_shutdown()
        self.watches.close()
        self.distribution.close()
        if self._server is not None:
            await self._server.stop(DRAIN_S)
        await finish()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.controller.close()
        if not self.failure.is_set():
            for tenant in self.ledger:
                await self.tenants.checkpoint(tenant, force=True)
        await self.alerts.close()
        self.tracing.close()
        if self.forwarder is not None:
            await self.forwarder.close()
        if self._metrics_server is not None:
            self._metrics_server.close()
        await self.store.close()

    def _add_services(self, server: grpc.aio.Server) -> None:
        resources = Resources(self.controller, new_id=clock.new_id, new_salt=clock.new_salt)
        experiment_service_pb2_grpc.add_TargetServiceServicer_to_server(
            TargetService(self.controller, resources, self.tenants), server
        )
        experiment_service_pb2_grpc.add_ExperimentServiceServicer_to_server(
            ExperimentService(self.controller, resources, self.tenants, self.watches, self.store),
            server,
        )
        holdouts = Holdouts(self.controller, new_id=clock.new_id, new_salt=clock.new_salt)
        experiment_service_pb2_grpc.add_HoldoutServiceServicer_to_server(
            HoldoutService(self.controller, holdouts, self.tenants), server
        )
        declared = DeclaredMetrics(self.controller, new_id=clock.new_id)
        metric_service_pb2_grpc.add_MetricServiceServicer_to_server(
            MetricService(self.controller, declared, self.tenants), server
        )
        experiment_service_pb2_grpc.add_AuditServiceServicer_to_server(
            AuditService(self.store, self.ledger), server
        )
        config_service_pb2_grpc.add_SidecarServiceServicer_to_server(
            SidecarService(self.distribution), server
        )
        outcome_service_pb2_grpc.add_OutcomeServiceServicer_to_server(self.outcomes, server)
        server.add_generic_rpc_handlers((self.config.handler(), self.otlp.handler()))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._options.reflection:
            names = (*self._service_names(), health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)

    def _service_names(self) -> Iterable[str]:
        files = (
            config_service_pb2,
            experiment_service_pb2,
            metric_service_pb2,
            outcome_service_pb2,
        )
        names = [s.full_name for f in files for s in f.DESCRIPTOR.services_by_name.values()]
        return (*names, OTLP_SERVICE)

    async def _listen_metrics(self) -> asyncio.Server:
        host, _, port = self._options.metrics.rpartition(":")
        try:
            return await serve_metrics(self.metrics, host.strip("[]"), int(port))
        except OSError as error:
            message = (
                f"cannot listen on {self._options.metrics}: {error.strerror or error}: stop who "
                "has it (ss -ltnp), or choose another --metrics"
            )
            raise ListenError(message) from error

    async def _alert_done(self, alert: Alert, delivered: bool) -> None:
        """Take an alert out of the outbox, or keep it from being put there."""
        for tenant in self.ledger:
            await self.ledger.settle(tenant)
        try:
            rows = await self.store.pending_alerts(FAR_FUTURE_MS, limit=ALERTS_SCANNED_MAX)
            for row in rows:
                if row.payload == alert.payload:
                    await self.store.alert_done(row.id)
                    return
        except StoreError as error:
            _log.warning("alert %s may be sent again after a restart: %s", alert.id, error)
        self.ledger.alerts_done.add(alert.payload)

    def _samples(self) -> Iterable[Sample]:
        return samples(self)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            _log.error("%s ended", task.get_name(), exc_info=task.exception())
            self._fail(f"{task.get_name()} ended: {task.exception()}")

    def _fail(self, reason: str) -> None:
        if not self.failure.is_set():
            self.failure_reason = reason
            self.failure.set()


def _tracing(forwarder: Forwarder | None) -> Tracing:
    if forwarder is None:
        return OFF
    from control.ownspans import OwnSpans  # the SDK is loaded by those who have a backend

    return OwnSpans(forwarder.offer, version=turnout.__version__, clock_ns=clock.now_ns)
