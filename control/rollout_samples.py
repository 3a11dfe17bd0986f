"""What Prometheus sees of the experiments: where they are, what their variants have met.

Owns names, labels and the bound on their number. Reads the loop's last look, so that a scrape costs
no evidence to be added up again.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

import turnout
from control.metrics import Sample
from control.rollout.words import Reason, State
from turnout import contract

if TYPE_CHECKING:
    from control.rollout.entries import ExperimentEntry
    from control.rollout.tenant import Tenant
    from control.server import ControlPlane

Values = list[tuple[dict[str, str], float]]

# About 10 series for each variant of a live experiment, 1 for each that was rolled back.
LIVE_MAX: Final = 500
ROLLED_BACK_MAX: Final = 200
# Shown from the start: a counter that appears with 1 has not grown in Prometheus' eyes.
ROLLBACK_REASONS: Final = (
    *(Reason.LANE_ERROR, Reason.LANE_SLOW, Reason.LANE_WRONG, Reason.WINDOW_RULE),
    *(Reason.BREAKER, Reason.GUARDRAIL, Reason.OPERATOR),
)
_VARIANT_COUNTS: Final = (
    ("decided", "Requests given this variant in this epoch, as sidecars decided."),
    ("requests", "Requests served in this epoch, as Envoy logged."),
    ("errors", "Of the requests, those that failed."),
    ("slow", "Of the requests, those slower than the experiment allows."),
    ("labelled", "Requests with a prediction and a label."),
    ("correct", "Of the labelled requests, those answered correctly."),
    ("shadow_requests", "Mirrored copies in this epoch."),
    ("shadow_errors", "Of the mirrored copies, those that failed."),
)


def rollout_samples(plane: ControlPlane, now_ms: int) -> Iterator[Sample]:
    """All of it, now."""
    yield "gauge", "build_info", "The version that runs.", [({"version": turnout.__version__}, 1)]
    yield from _rollbacks(plane)
    yield from _live(plane)
    yield from _freshness(plane, now_ms)


def _rollbacks(plane: ControlPlane) -> Iterator[Sample]:
    counted = dict.fromkeys(ROLLBACK_REASONS, 0) | plane.controller.rollbacks
    by_reason: Values = [({"reason": reason.lower()}, n) for reason, n in sorted(counted.items())]
    yield "counter", "rollbacks", "Rollbacks since the start of the process.", by_reason
    ended = sorted(
        (
            (entry.run.end_ms, tenant.name, entry.name, entry.run.last_reason)
            for tenant in plane.ledger
            for entry in tenant.experiments.values()
            if entry.run.state == State.ROLLED_BACK
        ),
        reverse=True,
    )
    yield (
        "gauge",
        "rollback_timestamp_seconds",
        "When an experiment was rolled back, the newest ones; known after a restart, too.",
        [
            ({"tenant": tenant, "experiment": name, "reason": reason.lower()}, end_ms / 1000)
            for end_ms, tenant, name, reason in ended[:ROLLED_BACK_MAX]
        ],
    )


def _live(plane: ControlPlane) -> Iterator[Sample]:
    live = [
        (tenant, entry)
        for tenant in plane.ledger
        for entry in tenant.experiments.values()
        if entry.run.live
    ]
    hidden = max(0, len(live) - LIVE_MAX)
    yield "gauge", "experiments_hidden", "Live ones beyond the bound on series.", [({}, hidden)]
    steps: Values = []
    shares: Values = []
    counts: dict[str, Values] = {name: [] for name, _ in _VARIANT_COUNTS}
    for tenant, entry in islice(live, LIVE_MAX):
        labels = {"tenant": tenant.name, "experiment": entry.name}
        steps.append((labels, entry.run.step))
        for variant, ppm in entry.run.split_ppm.items():
            shares.append(({**labels, "variant": variant}, ppm / contract.BUCKET_COUNT))
        _count(counts, labels, tenant, entry)
    yield "gauge", "experiment_step", "Step of a live experiment, from 0.", steps
    yield "gauge", "variant_split_ratio", "Share of the eligible units, 0 to 1.", shares
    for name, text in _VARIANT_COUNTS:
        yield "counter", f"variant_{name}", text, counts[name]


def _count(
    counts: dict[str, Values], labels: dict[str, str], tenant: Tenant, entry: ExperimentEntry
) -> None:
    latest = tenant.latest.get(entry.name)
    seen = latest.seen.variants if latest is not None else {}
    for variant in entry.spec.variants:
        found = seen.get(variant.name)
        for name, rows in counts.items():
            rows.append(({**labels, "variant": variant.name}, getattr(found, name) if found else 0))


def _freshness(plane: ControlPlane, now_ms: int) -> Iterator[Sample]:
    ages: Values = []
    lags: Values = []
    for tenant in plane.ledger:
        states = plane.distribution.connected(tenant.name)
        heard = [max(state.last_delta_ms, state.connect_ms) for state in states]
        waiting = [
            state.sent_ms
            for state in states
            if state.sent_version != state.acked_version and not state.nack
        ]
        labels = {"tenant": tenant.name}
        ages.append((labels, max(0, now_ms - min(heard, default=now_ms)) / 1000))
        lags.append((labels, max(0, now_ms - min(waiting, default=now_ms)) / 1000))
    text = "Since the quietest connected sidecar's last batch of counts."
    yield "gauge", "telemetry_age_seconds", text, ages
    yield "gauge", "ack_lag_seconds", "Since the oldest push without ACK or NACK.", lags
