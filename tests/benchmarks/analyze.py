"""`turnout analyze` on Parquet of 100 million rows, beside SQL by hand in a process of its own.

    python -m tests.benchmarks.analyze [--rows N] [--rounds N] [--dir DIR] [--json FILE]

Two questions: every row is a unit; a unit has 20 rows. The SQL answers as much as the command needs
from a scan, with DuckDB's own settings. Both take turns, timed from start to exit; memory is a
process' largest resident set. The file is made by DuckDB in DIR (a temporary one), 12 bytes a row
or so, and removed. Both have to find the same difference to 1e-9.
"""

from __future__ import annotations

import argparse
import json
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

import duckdb

ROWS: Final = 100_000_000
ROUNDS: Final = 3
ROWS_A_UNIT: Final = 20
RSS_MIB_MAX: Final = 2_048.0
RATIO_MAX: Final = 1.5
_BYTES_A_ROW: Final = 24  # twice what it takes

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
    """One question. sql: Ends in a row per variant: name, mean of revenue, the rest."""

    name: str
    options: tuple[str, ...]
    sql: str


CASES: Final = (
    Case(
        "a row is a unit",
        (),
        "SELECT variant, avg(revenue), count(*), count(revenue), var_samp(revenue), "
        "count(converted), avg(converted) FROM '{path}' GROUP BY variant ORDER BY variant",
    ),
    Case(
        f"{ROWS_A_UNIT} rows a unit",
        ("--unit-column", "user_id"),
        "WITH units AS (SELECT user_id, min(variant) AS one, max(variant) AS other, "
        "sum(revenue) AS s, count(revenue) AS n, sum(converted) AS x, count(converted) AS m "
        "FROM '{path}' GROUP BY user_id) "
        "SELECT one, sum(s) / sum(n), count(*), count_if(one <> other), var_samp(s), var_samp(n), "
        "covar_samp(s, n), avg(n), sum(x) / sum(m), var_samp(x), var_samp(m), covar_samp(x, m) "
        "FROM units GROUP BY one ORDER BY one",
    ),
)


class Ran(NamedTuple):
    """A process: seconds from start to exit, its largest resident set, the difference it found."""

    seconds: float
    rss_mib: float
    difference: float


def make(path: Path, rows: int) -> None:
    """The data, in a process of its own: its memory is nobody's."""
    units = max(rows // ROWS_A_UNIT, 1)
    sql = _MAKE.format(rows=rows, units=units, path=path)
    subprocess.run([sys.executable, "-m", "tests.benchmarks.analyze", "--sql", sql], check=True)


def answer(sql: str) -> list[Any]:
    """Run a statement with DuckDB as it comes."""
    with duckdb.connect() as connection:
        connection.execute("SET preserve_insertion_order = false")
        return connection.execute(sql).fetchall()


def by_hand(case: Case, path: Path) -> Ran:
    """The SQL."""
    command = ("tests.benchmarks.analyze", "--sql", case.sql.format(path=path))
    seconds, rss_mib, text = _timed(command, path.parent)
    control, treatment = json.loads(text)
    return Ran(seconds, rss_mib, treatment[1] - control[1])


def by_command(case: Case, path: Path) -> Ran:
    """`turnout analyze`."""
    options = (
        *("--variant-column", "variant", "--control", "control"),
        *("--metric", "revenue:mean", "--metric", "converted:proportion"),
        *("--expected", "control=0.5", "--expected", "treatment=0.5", "--json"),
    )
    command = ("turnout.cli", "analyze", str(path), *options, *case.options)
    seconds, rss_mib, text = _timed(command, path.parent)
    return Ran(seconds, rss_mib, json.loads(text)["metrics"][0]["difference"])


def _timed(module: Sequence[str], directory: Path) -> tuple[float, float, str]:
    path = os.pathsep.join([str(Path.cwd()), str(Path.cwd() / "proto")])
    with (directory / "out").open("w+") as out:
        begun = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            stdout=out,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path},
        )
        # Of this process alone; RUSAGE_CHILDREN is the largest of all so far.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, module)
        out.seek(0)
        return seconds, usage.ru_maxrss / 1024, out.read()


def measure(case: Case, path: Path, rounds: int) -> dict[str, Any]:
    """Both ways in turns."""
    mine: list[Ran] = []
    hand: list[Ran] = []
    for number in range(rounds):
        ways = [(mine, by_command), (hand, by_hand)]
        for runs, way in ways[:: 1 if number % 2 else -1]:
            runs.append(way(case, path))
    for one, other in zip(mine, hand, strict=True):
        assert abs(one.difference - other.difference) <= 1e-9 * abs(other.difference)
    ratios = [one.seconds / other.seconds for one, other in zip(mine, hand, strict=True)]
    return {
        "case": case.name,
        "seconds": round(statistics.median(run.seconds for run in mine), 2),
        "sql_seconds": round(statistics.median(run.seconds for run in hand), 2),
        "ratio": round(statistics.median(ratios), 3),
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
    parser.add_argument("--sql", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sql is not None:
        print(json.dumps(answer(options.sql)))
        return
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
