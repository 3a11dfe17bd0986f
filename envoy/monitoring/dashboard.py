"""Makes the Grafana dashboard: `python -m envoy.monitoring.dashboard > FILE` (dashboard.json here).

Owns which panels there are and what they ask Prometheus. Refuses to know a data source: Grafana
asks for one at the import.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final, NamedTuple

SOURCE: Final = {"type": "prometheus", "uid": "${source}"}
COLUMNS: Final = 3
WIDTH: Final = 24 // COLUMNS
HEIGHT: Final = 8
CONTROL: Final = 'tenant=~"$tenant"'
CHOSEN: Final = 'tenant=~"$tenant", experiment=~"$experiment"'


class Panel(NamedTuple):
    """One graph: (expression, legend) pairs in one unit of Grafana's."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]


def variant(name: str) -> str:
    """Growth per second of one of the variants' counts."""
    return f"rate(turnout_control_variant_{name}_total{{{CHOSEN}}}[1m])"


ROWS: Final = (
    (
        "Rollouts",
        (
            Panel(
                "Experiments by state",
                "short",
                ((f"turnout_control_experiments{{{CONTROL}}}", "{{tenant}} {{state}}"),),
            ),
            Panel(
                "Share of the units",
                "percentunit",
                (
                    (
                        f"turnout_control_variant_split_ratio{{{CHOSEN}}}",
                        "{{experiment}} {{variant}}",
                    ),
                ),
            ),
            Panel(
                "Rollbacks by reason",
                "short",
                (("increase(turnout_control_rollbacks_total[5m]) > 0", "{{reason}}"),),
            ),
        ),
    ),
    (
        "Variants",
        (
            Panel(
                "Requests per second",
                "reqps",
                ((variant("requests"), "{{experiment}} {{variant}}"),),
            ),
            Panel(
                "Error rate",
                "percentunit",
                (
                    (
                        f"{variant('errors')} / {variant('requests')}",
                        "{{experiment}} {{variant}}",
                    ),
                    (
                        f"{variant('shadow_errors')} / {variant('shadow_requests')}",
                        "{{experiment}} {{variant}} (shadow)",
                    ),
                ),
            ),
            Panel(
                "Right answers of the labelled",
                "percentunit",
                (
                    (
                        f"{variant('correct')} / {variant('labelled')}",
                        "{{experiment}} {{variant}}",
                    ),
                ),
            ),
            Panel(
                "Slow requests",
                "percentunit",
                (
                    (
                        f"{variant('slow')} / {variant('requests')}",
                        "{{experiment}} {{variant}}",
                    ),
                ),
            ),
            Panel(
                "Decided and not logged",
                "percentunit",
                (
                    (
                        f"1 - {variant('requests')} / {variant('decided')}",
                        "{{experiment}} {{variant}}",
                    ),
                ),
            ),
            Panel(
                "Age of the telemetry",
                "s",
                ((f"turnout_control_telemetry_age_seconds{{{CONTROL}}}", "{{tenant}}"),),
            ),
        ),
    ),
    (
        "Configuration",
        (
            Panel(
                "Sidecars",
                "short",
                (
                    (f"turnout_control_sidecars_connected{{{CONTROL}}}", "{{tenant}} connected"),
                    (f"turnout_control_sidecars_behind{{{CONTROL}}}", "{{tenant}} behind"),
                    (f"turnout_control_sidecars_refusing{{{CONTROL}}}", "{{tenant}} refusing"),
                ),
            ),
            Panel(
                "From push to ACK",
                "s",
                (
                    (
                        "histogram_quantile(0.99, sum by (le) "
                        "(rate(turnout_control_snapshot_ack_seconds_bucket[5m])))",
                        "p99",
                    ),
                    (f"turnout_control_ack_lag_seconds{{{CONTROL}}}", "{{tenant}} waits"),
                ),
            ),
            Panel(
                "Snapshot version",
                "short",
                (
                    (f"turnout_control_snapshot_version{{{CONTROL}}}", "{{tenant}} published"),
                    ("turnout_sidecar_snapshot_version", "{{instance}} serves"),
                ),
            ),
        ),
    ),
    (
        "Sidecars",
        (
            Panel(
                "Requests without an answer",
                "reqps",
                (
                    (
                        "sum by (instance, reason) (rate(turnout_sidecar_unstamped_total[1m]))",
                        "{{instance}} {{reason}}",
                    ),
                ),
            ),
            Panel(
                "Serving workers, restarts",
                "short",
                (
                    ("turnout_sidecar_workers_ready", "{{instance}} serve"),
                    (
                        "increase(turnout_sidecar_worker_restarts_total[5m])",
                        "{{instance}} restarts",
                    ),
                ),
            ),
            Panel(
                "Batches that wait, batches lost",
                "short",
                (
                    ("turnout_sidecar_deltas_pending", "{{instance}} wait"),
                    ("increase(turnout_sidecar_deltas_dropped_total[5m])", "{{instance}} lost"),
                ),
            ),
        ),
    ),
    (
        "Processes",
        (
            Panel(
                "Resident memory",
                "bytes",
                (('process_resident_memory_bytes{job=~"turnout.*"}', "{{job}} {{instance}}"),),
            ),
            Panel(
                "CPU",
                "percentunit",
                (
                    (
                        'rate(process_cpu_seconds_total{job=~"turnout.*"}[1m])',
                        "{{job}} {{instance}}",
                    ),
                ),
            ),
            Panel(
                "Calls of the API",
                "reqps",
                (
                    (
                        "sum by (method, code) (rate(turnout_control_rpcs_total[1m]))",
                        "{{method}} {{code}}",
                    ),
                ),
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's JSON model (schema of Grafana 10)."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        place = {"h": 1, "w": 24, "x": 0, "y": y}
        panels.append({"type": "row", "title": title, "collapsed": False, "gridPos": place})
        y += 1
        for index, panel in enumerate(row):
            x, down = index % COLUMNS * WIDTH, index // COLUMNS * HEIGHT
            panels.append(_graph(panel, {"h": HEIGHT, "w": WIDTH, "x": x, "y": y + down}))
        y += -(-len(row) // COLUMNS) * HEIGHT
    for number, item in enumerate(panels, 1):
        item["id"] = number
    return {
        "uid": "turnout",
        "title": "Turnout",
        "tags": ["turnout"],
        "schemaVersion": 39,
        "timezone": "browser",
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_source(), _variable("tenant"), _variable("experiment")]},
        "panels": panels,
    }


def _graph(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
            for i, (expr, legend) in enumerate(panel.queries)
        ],
    }


def _source() -> dict[str, Any]:
    return {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def _variable(label: str) -> dict[str, Any]:
    return {
        "name": label,
        "type": "query",
        "datasource": SOURCE,
        "query": f"label_values(turnout_control_variant_split_ratio, {label})",
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
