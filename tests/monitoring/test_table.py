"""The table of metrics in envoy/monitoring/README.md against what the processes expose."""

from __future__ import annotations

from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tests.control.peers import Api
from tests.integration.harness import Stage
from tests.integration.harness import _http_get as http_get
from tests.integration.waiting import LOOPBACK, free_port
from tests.monitoring.prometheus import MONITORING, promtool


class Row(NamedTuple):
    """One metric."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


def table() -> dict[str, list[Row]]:
    """The documented metrics of each command."""
    found: dict[str, list[Row]] = {}
    rows: list[Row] = []
    for line in (MONITORING / "README.md").read_text().splitlines():
        if line.startswith("## `turnout "):
            rows = found.setdefault(line.split("`")[1].removeprefix("turnout "), [])
        elif line.startswith("| `") and found:
            name, kind, labels, meaning = (cell.strip() for cell in line.strip("|").split("|"))
            split = tuple(filter(None, (label.strip() for label in labels.split(","))))
            rows.append(Row(name.strip("`"), kind, split, meaning))
    return found


def compare(documented: list[Row], exposition: str) -> list[str]:
    """How a table and an exposition differ."""
    exposed: dict[str, tuple[str, str]] = {}
    wrong = []
    rows = {row.name: row for row in documented}
    for family in text_string_to_metric_families(exposition):
        name = family.name + ("_total" if family.type == "counter" else "")
        exposed[name] = (family.type, family.documentation)
        for sample in family.samples:
            labels = sample.labels.keys() - {"le"}
            if name in rows and labels != set(rows[name].labels):
                wrong.append(f"{name}: labels {sorted(labels)}, documented {rows[name].labels}")
    for name in sorted(exposed.keys() | rows.keys()):
        if name not in rows:
            wrong.append(f"{name} is not documented")
        elif name not in exposed:
            wrong.append(f"{name} is not exposed")
        elif exposed[name] != (rows[name].kind, rows[name].meaning):
            wrong.append(f"{name}: {exposed[name]}, documented {rows[name]}")
    return sorted(set(wrong))


async def test_table_is_what_the_processes_expose(stage: Stage) -> None:
    """Names, types, labels, meanings; and promtool finds nothing against the conventions."""
    port = free_port()
    backend = f"{LOOPBACK}:{free_port()}"
    plane = await stage.control(
        "--metrics", f"{LOOPBACK}:{port}", "--forward-otlp", backend,
    )  # fmt: skip
    stage.envoy_dir.mkdir()
    async with Api(plane.address) as api:
        await api.start()
        await stage.sidecar(control=plane.address, envoy_admin=False)
        await stage.workers_serve()
    for command, at in (("control", port), ("sidecar", stage.metrics_port)):
        exposition = await http_get(at, "/metrics")
        assert compare(table()[command], exposition) == []
        assert promtool("check", "metrics", text=exposition) == ""


def test_a_difference_is_found_when_there_is_one() -> None:
    exposition = '# HELP a_total x\n# TYPE a_total counter\na_total{b="1"} 1\n'
    documented = [Row("a_total", "counter", (), "x"), Row("c", "gauge", (), "y")]
    assert compare(documented, exposition) == [
        "a_total: labels ['b'], documented ()",
        "c is not exposed",
    ]
