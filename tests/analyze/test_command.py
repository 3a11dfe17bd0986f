"""`turnout analyze` as a person and a script run it: a process, its output, its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from tests.analyze.worlds import ask, requests, rows

BASE = ("--variant-column", "variant", "--control", "control")
SHARES = ("--expected", "control=0.5", "--expected", "treatment=0.5")
KEYS = ["decision", "reasons", "srm", "metrics", "strata", "warnings"]
METRIC_KEYS = [
    "name",
    "kind",
    "variant",
    "control",
    "treatment",
    "difference",
    "relative",
    "standard_error",
    "ci_low",
    "ci_high",
    "p_value",
    "cs_low",
    "cs_high",
    "always_valid_p",
]


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "turnout.cli", "analyze", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": ".:proto", **environment},
    )


def answered(*arguments: str | Path) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout, parse_constant=pytest.fail)
    assert isinstance(answer, dict)
    return answer


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "orders.parquet"
    pa.parquet.write_table(rows(n=3_000, lift=0.08), str(path))
    return path


def test_json_has_the_promised_keys_and_nothing_else_on_stdout(orders: Path) -> None:
    done = run(orders, *BASE, *SHARES, "--strata", "country", "--json")
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert list(answer) == KEYS
    assert list(answer["srm"]) == ["p_value", "e_value", "expected", "observed"]
    assert [list(reason) for reason in answer["reasons"]] == [["code", "text", "values"]]
    for metric in (*answer["metrics"], *answer["strata"][0]["metrics"]):
        assert list(metric) == METRIC_KEYS
        assert list(metric["control"]) == ["n", "mean"]
    assert [stratum["stratum"] for stratum in answer["strata"]] == ["DE", "FR", "PL"]
    assert "counting" in done.stderr
    assert run(orders, *BASE, "--json", "--quiet").stderr == ""


def test_numbers_have_full_precision_when_printed_as_json(orders: Path) -> None:
    answer = answered(
        orders, *BASE, *SHARES, "--metric", "revenue:mean", "--unit-column", "user_id"
    )
    expected = ask(orders, "revenue:mean", unit_column="user_id").metrics[0]
    got = answer["metrics"][0]
    assert got["p_value"] == pytest.approx(expected.p_value, rel=1e-12)
    assert got["cs_low"] == pytest.approx(expected.cs_low, rel=1e-12)


def test_sample_ratio_is_null_and_warned_of_when_no_share_is_expected(orders: Path) -> None:
    answer = answered(orders, *BASE, "--metric", "converted:proportion")
    assert answer["srm"] is None
    assert any("--expected" in warning for warning in answer["warnings"])


@pytest.mark.parametrize(
    ("decision", "arguments"),
    [
        ("PROMOTE", ["--control", "control"]),
        ("ROLLBACK", ["--control", "treatment"]),
        (
            "INVALID",
            ["--control", "control", "--expected", "control=9", "--expected", "treatment=1"],
        ),
        ("WARMING_UP", ["--control", "control", "--min-units", "100000"]),
    ],
)
def test_exit_code_is_zero_whatever_the_decision_when_data_are_good(
    decision: str, arguments: list[str], orders: Path
) -> None:
    answer = answered(orders, "--variant-column", "variant", "--metric", "converted", *arguments)
    assert answer["decision"] == decision


def test_every_option_of_the_question_reaches_the_answer(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    pa.csv.write_csv(requests(users=400), str(path))
    answer = answered(
        path,
        *BASE,
        *("--unit-column", "user_id", "--label-column", "label"),
        *("--prediction-column", "prediction", "--score-column", "score", "--positive", "1"),
        *("--metric", "latency_p95", "--metric", "f1", "--metric", "auc", "--metric", "error_rate"),
        *("--metric", "slow=latency:quantile:0.5", "--metric", "r:ratio:latency/score"),
        *(
            "--fixed",
            "--alpha",
            "0.1",
            "--minimum-effect",
            "2%",
            "--equivalence",
            "1",
            "--harm",
            "5",
        ),
        *("--guardrail", "error_rate=0.5", "--primary", "latency_p95", "--strict", "--final"),
        *("--higher-is-better", "slow", "--lower-is-better", "r", "--min-units", "50"),
        *("--tuned-for", "5000", "--drop-invalid", "--memory", "500MB", "--spill", tmp_path),
    )
    assert [(metric["name"], metric["kind"]) for metric in answer["metrics"]] == [
        ("latency_p95", "quantile"),
        ("f1", "f1"),
        ("auc", "auc"),
        ("error_rate", "proportion"),
        ("slow", "quantile"),
        ("r", "ratio"),
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_table_begins_with_the_decision_and_says_why_when_a_person_asks(orders: Path) -> None:
    done = run(orders, *BASE, *SHARES, "--metric", "converted", "--strata", "country")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "PROMOTE: the treatment is better: ship it"
    assert lines[1].startswith("  because converted improved")
    assert any(line.startswith("Sample ratio: as expected: control") for line in lines)
    assert any("95 % at any look" in line for line in lines)
    assert "country = FR" in lines
    assert any(line.startswith("warning: no unit column") for line in lines)
    fixed = run(orders, *BASE, "--metric", "converted", "--fixed").stdout
    assert fixed.index("at one look") < fixed.index("at any look")


@pytest.mark.parametrize(
    ("code", "says", "arguments"),
    [
        (3, "'varient': no such column; did you mean 'variant'", ["--variant-column", "varient"]),
        (3, "alpha == 3.0, must be < 1", ["--alpha", "3"]),
        (3, "no such column", ["--metric", "nope:mean"]),
        (2, "'control' must be NAME=NUMBER", ["--expected", "control"]),
        (2, "is given twice", ["--expected", "control=1", "--expected", "control=1"]),
        (2, "no directory", ["--html", "/nowhere/report.html"]),
        (2, "No such option", ["--nope"]),
    ],
)
def test_refusal_is_one_message_without_a_traceback_when_input_is_bad(
    code: int, says: str, arguments: list[str], orders: Path
) -> None:
    done = run(orders, *BASE, *arguments, "--json", "-q")
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_report_and_plot_are_written_beside_the_json_when_asked_for(
    orders: Path, tmp_path: Path
) -> None:
    report, plot = tmp_path / "report.html", tmp_path / "plot.svg"
    answer = answered(orders, *BASE, "--metric", "converted", "--html", report, "--plot", plot)
    assert answer["decision"] == "PROMOTE"
    assert "PROMOTE" in report.read_text().upper()
    assert "<svg" in plot.read_text()
    wrong = run(orders, *BASE, "--metric", "converted", "--plot", tmp_path / "plot.xyz", "-q")
    assert wrong.returncode == 3
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize("option", ["--html", "--plot"])
def test_data_stay_as_they_are_when_a_report_would_be_written_over_them(
    tmp_path: Path, option: str
) -> None:
    data = tmp_path / "data.csv"
    data.write_text("variant,x\ncontrol,1\ntreatment,2\n")
    before = data.read_text()
    done = run(data, *BASE, "--metric", "x:mean", option, data)
    assert done.returncode == 2
    assert "is the data: name another file" in " ".join(done.stderr.split())
    assert data.read_text() == before


def test_refusal_names_the_file_when_there_is_none(tmp_path: Path) -> None:
    done = run(tmp_path / "none.csv", *BASE)
    assert (done.returncode, done.stdout) == (1, "")
    assert "none.csv: no such file" in done.stderr


def test_command_says_what_to_install_when_the_extra_is_missing(
    orders: Path, tmp_path: Path
) -> None:
    hide = (
        "import importlib.util as u, sys\\nfind = u.find_spec\\n"
        "u.find_spec = lambda name, *a: None if name == 'duckdb' else find(name, *a)\\n"
    )
    (tmp_path / "sitecustomize.py").write_text(hide.replace("\\n", "\n"))
    done = run(orders, *BASE, PYTHONPATH=f"{tmp_path}:.:proto")
    assert done.returncode == 1
    assert 'turnout analyze needs duckdb: pip install "turnout[analyze]"' in done.stderr


def test_help_teaches_with_an_example_and_the_decisions() -> None:
    done = run("--help", TERMINAL_WIDTH="100")
    assert done.returncode == 0
    for word in ("turnout analyze orders.parquet", "--unit-column", "PROMOTE", "revenue_per_user"):
        assert word in done.stdout
