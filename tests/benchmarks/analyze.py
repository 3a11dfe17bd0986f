"""`turnout analyze` on Parquet of 100 million rows, beside SQL by hand in a process of its own.

    python -m tests.benchmarks.analyze [--rows N] [--rounds N] [--dir DIR] [--json FILE]

Two questions: every row is a unit; a unit has 20 rows. The SQL finds every number that the command
needs of the data, with DuckDB's own settings: units, rows and values of each variant, means,
spreads, units in both variants, conversions that are neither 0 nor 1. Both take turns, timed from
start to exit; memory is a process' largest resident set, CPU time is of all its threads. The file
is made by DuckDB in DIR (a temporary one), 12 bytes a row or so, and removed. Both have to find the
same units, differences and standard errors, to 1e-9.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

ROWS: Final = 100_000_000
ROUNDS: Final = 3
ROWS_A_UNIT: Final = 20
RSS_MIB_MAX: Final = 2_048.0
RATIO_MAX: Final = 1.5
_BYTES_A_ROW: Final = 24  # twice what it takes
# DuckDB with its own settings, but for the order of rows, and for the bar that it draws where a
# program is no file; nothing else is imported.
_BY_HAND: Final = """
import duckdb, json, sys
with duckdb.connect() as connection:
    connection.execute("SET preserve_insertion_order = false")
    connection.execute("SET enable_progress_bar = false")
    print(json.dumps(connection.execute(sys.argv[1]).fetchall()))
"""

_MAKE: Final = """
COPY (
  SELECT user_id, CASE WHEN hash(user_id, 1) % 2 = 0 THEN 'control' ELSE 'treatment' END AS variant,
    (u1 < 0.05)::TINYINT AS converted,
    CASE WHEN u1 < 0.05 THEN round(exp(3 + 1.2 * sqrt(-2 * ln(u2)) * cos(2 * pi() * u3)), 2) ELSE 0
      END AS revenue
  FROM (
    SELECT (hash(i, 2) % {units})::BIGINT AS user_id, (hash(i, 3) % 1000003) / 1000003.0 AS u1,
      (hash(i, 4) % 1000003 + 1) / 1000004.0 AS u2, (hash(i, 5) % 1000003) / 1000003.0 AS u3
    FROM range({rows}) AS numbers(i))
) TO '{path}' (FORMAT parquet, COMPRESSION zstd)
"""


class Case(NamedTuple):
    """One question. sql: Ends in a row per variant: name, units, values against the rule, the rest.

    The rest is of revenue, then of converted: value, squared standard error.
    """

    name: str
    options: tuple[str, ...]
    sql: str


CASES: Final = (
    Case(
        "a row is a unit",
        (),
        "SELECT variant, count(*), count_if(converted NOT IN (0, 1)), "
        "avg(revenue), var_samp(revenue) / count(revenue), avg(converted), "
        "avg(converted) * (1 - avg(converted)) / count(converted) "
        "FROM '{path}' GROUP BY variant ORDER BY variant",
    ),
    Case(
        f"{ROWS_A_UNIT} rows a unit",
        ("--unit-column", "user_id"),
        "WITH units AS (SELECT user_id, min(variant) AS one, max(variant) AS other, count(*) AS r, "
        "sum(revenue) AS s, count(revenue) AS n, sum(converted) AS x, count(converted) AS m, "
        "count_if(converted NOT IN (0, 1)) AS bad FROM '{path}' GROUP BY user_id), "
        "moments AS (SELECT CASE WHEN one = other THEN one END AS variant, count(*) AS units, "
        "sum(bad) AS bad, sum(r) AS r, count(s) AS k, sum(s) / sum(n) AS v, avg(n) AS w, "
        "var_samp(s) AS ss, covar_samp(s, n) AS sn, var_samp(n) AS nn, count(x) AS j, "
        "sum(x) / sum(m) AS p, avg(m) AS q, var_samp(x) AS xx, covar_samp(x, m) AS xm, "
        "var_samp(m) AS mm FROM units GROUP BY ALL) "
        "SELECT variant, units, bad, v, (ss - 2 * v * sn + v * v * nn) / (w * w * k), "
        "p, (xx - 2 * p * xm + p * p * mm) / (q * q * j), r FROM moments ORDER BY variant",
    ),
)


class Ran(NamedTuple):
    """A process: seconds from start to exit and of CPU, its largest resident set, what it found.

    found: Units of control and treatment; difference and standard error of revenue, of converted.
    """

    seconds: float
    cpu_s: float
    rss_mib: float
    found: tuple[float, ...]


def make(path: Path, rows: int) -> None:
    """The data, in a process of its own: its memory is nobody's."""
    units = max(rows // ROWS_A_UNIT, 1)
    sql = _MAKE.format(rows=rows, units=units, path=path)
    subprocess.run([sys.executable, "-c", _BY_HAND, sql], check=True, stdout=subprocess.DEVNULL)


def by_hand(case: Case, path: Path) -> Ran:
    """The SQL."""
    command = ("-c", _BY_HAND, case.sql.format(path=path))
    used, text = _timed(command, path.parent)
    control, treatment = json.loads(text)
    assert control[2] == treatment[2] == 0, "the data have conversions that are none"
    found = [control[1], treatment[1]]
    for value, squared in ((3, 4), (5, 6)):
        found.append(treatment[value] - control[value])
        found.append(math.sqrt(treatment[squared] + control[squared]))
    return Ran(*used, tuple(found))


def by_command(case: Case, path: Path) -> Ran:
    """`turnout analyze`."""
    options = (
        *("--variant-column", "variant", "--control", "control"),
        *("--metric", "revenue:mean", "--metric", "converted:proportion"),
        *("--expected", "control=0.5", "--expected", "treatment=0.5", "--json"),
    )
    command = ("-m", "turnout.cli", "analyze", str(path), *options, *case.options)
    used, text = _timed(command, path.parent)
    answer = json.loads(text)
    found = [answer["srm"]["observed"][name] for name in ("control", "treatment")]
    for metric in answer["metrics"]:
        found += [metric["difference"], metric["standard_error"]]
    return Ran(*used, tuple(found))


def _timed(command: Sequence[str], directory: Path) -> tuple[tuple[float, float, float], str]:
    path = os.pathsep.join([str(Path.cwd()), str(Path.cwd() / "proto")])
    # An installed command has its bytecode: the first round writes it here, where it stays.
    kept = {"PYTHONPATH": path, "PYTHONPYCACHEPREFIX": str(directory / "bytecode")}
    named = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with (directory / "out").open("w+") as out:
        begun = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=out,
            stderr=subprocess.DEVNULL,
            env=named | kept,
        )
        # Of this process alone; RUSAGE_CHILDREN is the largest of all so far.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        out.seek(0)
        cpu_s = usage.ru_utime + usage.ru_stime
        return (seconds, cpu_s, usage.ru_maxrss / 1024), out.read()


def measure(case: Case, path: Path, rounds: int) -> dict[str, Any]:
    """Both ways in turns."""
    mine: list[Ran] = []
    hand: list[Ran] = []
    for number in range(rounds):
        ways = [(mine, by_command), (hand, by_hand)]
        for runs, way in ways[:: 1 if number % 2 else -1]:
            runs.append(way(case, path))
    for one, other in zip(mine, hand, strict=True):
        for here, there in zip(one.found, other.found, strict=True):
            assert math.isclose(here, there, rel_tol=1e-9), (one.found, other.found)
    ratios = [one.seconds / other.seconds for one, other in zip(mine, hand, strict=True)]
    return {
        "case": case.name,
        "seconds": round(statistics.median(run.seconds for run in mine), 2),
        "sql_seconds": round(statistics.median(run.seconds for run in hand), 2),
        "ratio": round(statistics.median(ratios), 3),
        "cpu_s": round(statistics.median(run.cpu_s for run in mine), 2),
        "sql_cpu_s": round(statistics.median(run.cpu_s for run in hand), 2),
        "rss_mib": round(max(run.rss_mib for run in mine)),
        "sql_rss_mib": round(max(run.rss_mib for run in hand)),
    }


def main() -> None:
    """Measure and print; exit 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--dir", type=Path, help="where the data go; free disk is looked at first")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="turnout-bench-") as directory:
        free = shutil.disk_usage(directory).free
        if free < 2 * _BYTES_A_ROW * options.rows:
            sys.exit(f"{options.rows:,} rows need {2 * _BYTES_A_ROW * options.rows:,} bytes free")
        path = Path(directory) / "data.parquet"
        make(path, options.rows)
        size = path.stat().st_size
        cases = [measure(case, path, options.rounds) for case in CASES]
    found: dict[str, Any] = {"rows": options.rows, "bytes": size, "cpus": os.cpu_count()}
    found["cases"] = cases
    found["missed"] = [
        f"{case['case']}: {name}"
        for case in cases
        for name, most in (("rss_mib", RSS_MIB_MAX), ("ratio", RATIO_MAX))
        if case[name] > most
    ]
    text = json.dumps(found, indent=1)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
    sys.exit(1 if found["missed"] else 0)


if __name__ == "__main__":
    main()
