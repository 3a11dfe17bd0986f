"""The data plane's benchmark: that it runs, in a very short form, and how it judges."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import data_plane, document
from tests.benchmarks.dataplane import GOALS, Goal, chosen, goals, medians, ratio
from tests.benchmarks.processes import family, milliseconds, read_report
from tests.benchmarks.rows import ROWS
from tests.benchmarks.running import Round

ROOT = Path(__file__).parents[2]
REPORT = """\
Running 1s test @ http://127.0.0.1:1/
  1 threads and 32 connections
  Latency Distribution
     50%    1.13ms
     75%    1.60ms
     90%    2.26ms
     99%  873.00us
  20541 requests in 1.00s, 3.72MB read
{problem}Requests/sec:  20466.88
Transfer/sec:      3.71MB
"""


def figures(rps: float = 1.0, server_us: float = 1.0) -> Round:
    return Round(rps=rps, p50_ms=1.0, p99_ms=2.0, envoy_us=50.0, server_us=server_us, rss_mib=10.0)


def test_benchmark_measures_every_row_that_can_run(tmp_path: Path) -> None:
    """No row depends on how fast it is: only on its requests being answered as the row says."""
    if shutil.which("wrk") is None:
        subprocess.run([ROOT / ".ci" / "tools", "wrk"], check=True)
    file = tmp_path / "figures.json"
    subprocess.run(
        [
            *(sys.executable, "-m", "tests.benchmarks.dataplane"),
            *("--json", str(file), "--rounds", "1", "--seconds", "1"),
        ],
        cwd=ROOT,
        check=True,
    )
    rows = json.loads(file.read_text())
    assert [row["name"] for row in rows] == [row.name for row in chosen("")[0]]
    for row in rows:
        [measured] = row.pop("rounds")
        assert measured == {key: value for key, value in row.items() if key != "name"}
        assert set(measured) == set(Round._fields)
        assert bool(measured["server_us"]) == (row["name"] not in ("none", "hash_policy"))
    assert document(0.5, data_plane([dict(row, rounds=[_figures_of(row)]) for row in rows]))


def _figures_of(row: dict[str, float]) -> dict[str, float]:
    return {key: row[key] for key in Round._fields}


def test_ratio_is_the_median_of_the_rounds_ratios_when_the_machine_changes() -> None:
    """Not the ratio of the medians: here that would be 1."""
    results = {
        "tonic": [figures(server_us=10.0), figures(server_us=20.0), figures(server_us=30.0)],
        "turnout_20": [figures(server_us=7.0), figures(server_us=14.0), figures(server_us=90.0)],
    }
    assert ratio(results, Goal("turnout_20", "server_us", "tonic", at_most=0.8)) == 0.7
    assert medians(results["turnout_20"]).server_us == 14.0


def test_goal_says_so_when_it_is_missed_and_when_a_row_is_not_there() -> None:
    results = {"idle": [figures(rps=94.0)], "none": [figures(rps=100.0)]}
    found = {words: (shown, reached) for words, shown, reached in goals(results)}
    assert found["idle rps >= 0.95 x none"] == ("0.94", "NO")
    assert found["turnout_20 rps >= 0.95 x tonic"] == ("-", "not measured")
    assert len(found) == len(GOALS)


@pytest.mark.parametrize(
    ("goal", "value", "reached"),
    [
        (Goal("a", "rps", "b", at_least=0.95), 0.95, True),
        (Goal("a", "rps", "b", at_least=0.95), 0.94, False),
        (Goal("a", "rps", "b", at_most=0.8), 0.8, True),
        (Goal("a", "rps", "b", at_most=0.8), 0.81, False),
    ],
)
def test_goal_is_reached_at_its_limit(goal: Goal, value: float, reached: bool) -> None:
    assert goal.reached(value) is reached


def test_row_is_refused_when_there_is_none_of_its_name() -> None:
    assert [row.name for row in chosen("idle,none")[0]] == ["none", "idle"]
    with pytest.raises(ValueError, match="no such rows: nothing"):
        chosen("none,nothing")


def test_row_is_left_out_by_name_when_its_server_is_not_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = tmp_path / "extproc-go"
    rows = tuple(row._replace(needs=missing) if row.name == "grpc_go" else row for row in ROWS)
    monkeypatch.setattr("tests.benchmarks.dataplane.ROWS", rows)
    left, lacking = chosen("none,grpc_go")
    assert [row.name for row in left] == ["none"]
    assert lacking == [
        "row grpc_go is left out: extproc-go is not there (`.ci/tools peers` builds it)"
    ]


def test_report_of_wrk_is_read() -> None:
    assert read_report(REPORT.format(problem="")) == (20541, 20466.88, 1.13, 0.873)


@pytest.mark.parametrize("problem", ["Non-2xx or 3xx responses: 1\n", "Socket errors: read 1\n"])
def test_report_of_wrk_is_refused_when_a_request_failed(problem: str) -> None:
    with pytest.raises(AssertionError):
        read_report(REPORT.format(problem=f"  {problem}"))


def test_wrk_latencies_are_read_in_every_unit() -> None:
    assert [milliseconds(text) for text in ("250us", "1.5ms", "2.00s")] == [0.25, 1.5, 2000.0]


def test_family_has_children_of_children() -> None:
    with subprocess.Popen(
        ["sh", "-c", "sh -c 'cat; true'; true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.read(1) == b"x", "all of them run"
        assert len(family(process.pid)) == 3
        process.stdin.close()
