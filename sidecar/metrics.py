"""The supervisor's metrics for Prometheus.

Owns names and types of the series and the HTTP listener. Refuses labels that a client could make
up: only configured names and fixed words are label values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sidecar.clock import monotonic_ms
from sidecar.errors import CannotRunError
from sidecar.subscription import ConfigState
from turnout import __version__

if TYPE_CHECKING:
    from sidecar.config_client import ConfigClient
    from sidecar.supervisor import Supervisor

_PREFIX: Final = "turnout_sidecar_"


class MetricsError(CannotRunError):
    """The metrics cannot be served there; the message names the address."""


class Metrics:
    """An HTTP listener with a registry of its own."""

    def __init__(
        self, supervisor: Supervisor, client: ConfigClient | None, address: tuple[str, int]
    ) -> None:
        """Listen at once.

        Raises:
            MetricsError: The address is taken or is not ours.
        """
        registry = CollectorRegistry()
        registry.register(_Collector(supervisor, client))
        registry.register(ProcessCollector(registry=None))
        host, port = address
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            reason = error.strerror or error
            raise MetricsError(
                f"--metrics {host}:{port} cannot be served: {reason}: stop who has it (ss -ltnp), "
                "or choose another port"
            ) from error

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Collector(Collector):
    """Reads the supervisor's state at each scrape; the reads are of whole values."""

    def __init__(self, supervisor: Supervisor, client: ConfigClient | None) -> None:
        self._supervisor = supervisor
        self._client = client

    def collect(self) -> Iterator[Metric]:
        """All series."""
        yield from self._config()
        yield from self._workers()
        yield from self._envoy()
        yield from self._traffic()

    def _config(self) -> Iterator[Metric]:
        supervisor = self._supervisor
        subscription = supervisor.subscription
        now_ms = monotonic_ms()
        build = GaugeMetricFamily(
            _PREFIX + "build_info", "The version that runs.", labels=["version"]
        )
        build.add_metric([__version__], 1.0)
        yield build
        state = subscription.state(now_ms)
        family = GaugeMetricFamily(
            _PREFIX + "config_state", "1 for the state that holds.", labels=["state"]
        )
        for each in ConfigState:
            family.add_metric([each], float(each == state))
        yield family
        yield _gauge(
            "snapshot_version",
            "Version of the snapshot that serves, 0 = none.",
            subscription.version,
        )
        yield _gauge("tombstones", "Epochs that never serve again.", len(supervisor.config.dead))
        yield _gauge(
            "state_ok", "1 while the state directory takes writes.", not supervisor.state_error
        )
        if self._client is None:
            return
        yield _gauge(
            "control_connected",
            "1 while the stream to the control plane is open.",
            self._client.connected,
        )
        yield _counter(
            "control_connects", "Streams to the control plane opened.", self._client.connects
        )
        away_s = subscription.away_ms(now_ms) / 1000
        yield _gauge("control_away_seconds", "Since the control plane was last heard.", away_s)
        yield _counter("snapshot_nacks", "Snapshots that this sidecar refused.", subscription.nacks)
        pending = len(supervisor.deltas.pending())
        yield _gauge("deltas_pending", "Batches without acknowledgement.", pending)
        dropped = supervisor.deltas.dropped
        yield _counter(
            "deltas_dropped",
            "Batches dropped: too many waited, or the control plane refused one.",
            dropped,
        )

    def _workers(self) -> Iterator[Metric]:
        workers = self._supervisor.workers
        yield _gauge("workers", "Workers that should run.", workers.count)
        yield _gauge("workers_ready", "Workers that serve a plan.", workers.ready)
        yield _counter(
            "worker_restarts",
            "Worker processes started again after they ended by themselves.",
            workers.restarts,
        )
        malformed = self._supervisor.malformed_deltas
        yield _counter("worker_deltas_lost", "Workers' deltas that did not decode.", malformed)
        faults = CounterMetricFamily(
            _PREFIX + "peer_faults",
            "Connections closed by their peer's fault, and malformed messages.",
            labels=["reason"],
        )
        for reason, count in sorted(workers.faults().items()):
            faults.add_metric([reason], count)
        yield faults

    def _envoy(self) -> Iterator[Metric]:
        supervisor = self._supervisor
        watched = supervisor.gate.watched
        yield _gauge("start_gate", "1 when Envoy's admin is watched.", watched)
        yield _gauge(
            "envoy_up",
            "1 while Envoy's admin answers.",
            watched and not supervisor.conductor.admin_error,
        )
        rejections = len(supervisor.conductor.rejections)
        yield _gauge("envoy_rejections", "Kinds of our files that Envoy refused.", rejections)
        family = GaugeMetricFamily(
            _PREFIX + "experiment_open",
            "1 when the experiment's start gate is open.",
            labels=["experiment"],
        )
        for view in supervisor.gate.views():
            family.add_metric([view.experiment], float(view.open))
        yield family

    def _traffic(self) -> Iterator[Metric]:
        evidence = self._supervisor.evidence
        decided = CounterMetricFamily(
            _PREFIX + "decided", "Requests given a variant.", labels=["experiment", "variant"]
        )
        for (experiment, variant), count in sorted(evidence.decided_total.items()):
            decided.add_metric([experiment, variant], count)
        yield decided
        unstamped = CounterMetricFamily(
            _PREFIX + "unstamped", "Requests that Envoy got no answer for.", labels=["reason"]
        )
        for reason, count in sorted(evidence.unstamped_total.items()):
            unstamped.add_metric([reason], count)
        yield unstamped
        answers = CounterMetricFamily(
            _PREFIX + "answers",
            "Answers by target and outcome; `answered` is all of them.",
            labels=["target", "outcome"],
        )
        for (target, outcome), count in sorted(evidence.answers_total.items()):
            answers.add_metric([target, outcome], count)
        yield answers
        logged = CounterMetricFamily(
            _PREFIX + "logged",
            "Access-log entries, mirrored copies included.",
            labels=["experiment", "variant", "what"],
        )
        for (experiment, variant, what), count in sorted(evidence.requests_total.items()):
            logged.add_metric([experiment, variant, what], count)
        yield logged


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, text, value=float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(_PREFIX + name, text, value=float(value))
