"""The control plane's own numbers, read at each scrape.

Owns names and labels of the metrics; refuses to keep any number itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from control.metrics import Sample
from control.rollout_samples import rollout_samples

if TYPE_CHECKING:
    from control.server import ControlPlane

Values = list[tuple[dict[str, str], float]]


def samples(plane: ControlPlane) -> Iterator[Sample]:
    """Everything, now."""
    yield from _loop(plane)
    yield from _sidecars(plane)
    yield from _received(plane)
    yield from _forwarded(plane)
    yield from _tenants(plane)
    yield from rollout_samples(plane, plane.controller.clock_ms())


def _loop(plane: ControlPlane) -> Iterator[Sample]:
    controller, alerts = plane.controller, plane.alerts
    actions: Values = [({"action": a.lower()}, n) for a, n in controller.decisions.items()]
    yield "counter", "decisions", "Decisions carried out.", actions
    yield (
        "counter",
        "loop_ticks",
        "Rounds of the loop: looks at all live experiments.",
        [({}, controller.ticks)],
    )
    yield (
        "counter",
        "loop_errors",
        "Looks that failed: an experiment was not judged.",
        [({}, controller.loop_errors)],
    )
    yield "gauge", "watchers", "Open WatchExperiments calls.", [({}, plane.watches.count)]
    yield "counter", "alerts_delivered", "Webhook alerts delivered.", [({}, alerts.delivered)]
    yield (
        "counter",
        "alert_attempts_failed",
        "Posts of alerts that failed; each is tried again.",
        [({}, alerts.failed_attempts)],
    )
    lost = alerts.given_up + alerts.dropped
    yield "counter", "alerts_lost", "Webhook alerts given up or dropped.", [({}, lost)]
    yield "gauge", "alerts_waiting", "Webhook alerts not yet delivered.", [({}, alerts.waiting)]


def _sidecars(plane: ControlPlane) -> Iterator[Sample]:
    yield "gauge", "streams", "Open config streams.", [({}, plane.distribution.streams)]
    connected: Values = []
    behind: Values = []
    refusing: Values = []
    version: Values = []
    for tenant in plane.ledger:
        labels = {"tenant": tenant.name}
        states = plane.distribution.connected(tenant.name)
        published = plane.distribution.current(tenant.name)
        current = published.version if published else 0
        connected.append((labels, len(states)))
        behind.append((labels, sum(s.acked_version != current for s in states)))
        refusing.append((labels, sum(bool(s.nack) for s in states)))
        version.append((labels, current))
    yield "gauge", "sidecars_connected", "Connected sidecars.", connected
    yield "gauge", "sidecars_behind", "Connected, current snapshot not acknowledged.", behind
    yield "gauge", "sidecars_refusing", "Connected, current snapshot refused.", refusing
    yield "gauge", "snapshot_version", "Version of the snapshot that is published.", version
    yield (
        "counter",
        "snapshot_nacks",
        "Snapshots refused by a sidecar (NACK).",
        [({}, plane.config.nacks)],
    )


def _received(plane: ControlPlane) -> Iterator[Sample]:
    yield "counter", "deltas", "Delta batches received.", [({}, plane.config.deltas)]
    yield (
        "counter",
        "deltas_unstored",
        "Batches that could not be stored; they come again.",
        [({}, plane.tenants.unstored)],
    )
    yield "counter", "outcomes", "Outcomes recorded.", [({}, plane.outcomes.recorded)]
    yield "counter", "otlp_requests", "OTLP export calls received.", [({}, plane.otlp.requests)]
    yield "counter", "spans", "Spans taken for evidence.", [({}, plane.otlp.spans)]
    rejected: Values = [({"reason": r}, n) for r, n in plane.otlp.rejected.items()]
    yield "counter", "spans_rejected", "Spans left out of the evidence, by reason.", rejected
    admission = plane.admission
    yield (
        "gauge",
        "in_flight_bytes",
        "Bytes of spans and outcomes being worked on.",
        [({}, admission.in_flight_bytes)],
    )
    yield (
        "counter",
        "ingest_shed",
        "Calls with spans or outcomes refused under load.",
        [({}, admission.shed)],
    )


def _forwarded(plane: ControlPlane) -> Iterator[Sample]:
    forwarder = plane.forwarder
    if forwarder is None:
        return
    yield (
        "counter",
        "spans_forwarded",
        "Spans that the tracing backend took.",
        [({}, forwarder.forwarded)],
    )
    dropped: Values = [({"reason": r}, n) for r, n in forwarder.dropped.items()]
    yield "counter", "forward_spans_dropped", "Spans not forwarded, by reason.", dropped
    failed: Values = [({"code": c}, n) for c, n in forwarder.failed_attempts.items()]
    yield (
        "counter",
        "forward_attempts_failed",
        "Exports to the tracing backend that failed, by gRPC code.",
        failed,
    )
    yield (
        "gauge",
        "forward_queue_requests",
        "Exports to the tracing backend that wait.",
        [({}, forwarder.queued)],
    )
    yield (
        "gauge",
        "forward_queue_bytes",
        "Bytes of the exports that wait.",
        [({}, forwarder.queued_bytes)],
    )


def _tenants(plane: ControlPlane) -> Iterator[Sample]:
    experiments: Values = []
    left_out: Values = []
    pending: Values = []
    exposed: Values = []
    for tenant in plane.ledger:
        states: dict[str, int] = {}
        for entry in tenant.experiments.values():
            states[entry.run.state] = states.get(entry.run.state, 0) + 1
        labels = {"tenant": tenant.name}
        experiments += [({**labels, "state": state}, n) for state, n in states.items()]
        lost = tenant.journal.evidence.left_out
        left_out += [({**labels, "reason": reason}, n) for reason, n in lost.items()]
        pending.append((labels, len(tenant.pending)))
        exposed.append((labels, tenant.journal.joiner.exposed))
    yield "gauge", "experiments", "Experiments by state.", experiments
    yield (
        "counter",
        "evidence_left_out",
        "Evidence left out because it is beyond a bound, by reason.",
        left_out,
    )
    yield "gauge", "changes_unstored", "Changes published and not yet stored.", pending
    yield "gauge", "exposures_kept", "Exposures that labels can join.", exposed
