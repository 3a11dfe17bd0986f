"""What a request costs: Turnout, Envoy alone, and other ext_proc servers, in one interleaved run.

    python -m tests.benchmarks.dataplane [--json FILE] [--rounds N] [--seconds S] [--rows A,B]

Every round measures all rows, each round in another order, so that a machine that slows down slows
all of them; a ratio is the median of the rounds' ratios. See `rows` for what rows have alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.table import Table

from tests.benchmarks.rows import ROWS, Row
from tests.benchmarks.running import Round, Running

ROUNDS: Final = 9
SECONDS: Final = 8
WARM_UP_S: Final = 1

Results = Mapping[str, Sequence[Round]]


class Goal(NamedTuple):
    """A ratio of two rows, and what it has to be."""

    row: str
    figure: str
    other: str
    at_least: float | None = None
    at_most: float | None = None

    def words(self) -> str:
        """As in the table."""
        limit = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        return f"{self.row} {self.figure} {limit} x {self.other}"

    def reached(self, ratio: float) -> bool:
        """Whether a ratio is good enough."""
        low = -1.0 if self.at_least is None else self.at_least
        return low <= ratio and (self.at_most is None or ratio <= self.at_most)


GOALS: Final = (
    Goal("turnout_20", "server_us", "tonic", at_most=0.8),
    Goal("turnout_20", "server_us", "grpc_go", at_most=0.4),
    Goal("turnout_20", "rps", "tonic", at_least=0.95),
    Goal("turnout_20", "p99_ms", "tonic", at_most=1.5),
    Goal("idle", "rps", "none", at_least=0.95),
    Goal("default", "rps", "none", at_least=0.5),
)


def ratio(results: Results, goal: Goal) -> float | None:
    """The median of the rounds' ratios; None when a row was not measured."""
    if goal.row not in results or goal.other not in results:
        return None
    pairs = zip(results[goal.row], results[goal.other], strict=True)
    return float(median(getattr(a, goal.figure) / getattr(b, goal.figure) for a, b in pairs))


def medians(rounds: Sequence[Round]) -> Round:
    """Each figure's median."""
    return Round(*(median(figures) for figures in zip(*rounds, strict=True)))


def document(results: Results) -> list[dict[str, Any]]:
    """The JSON file: rows with medians and their rounds."""
    return [
        {
            "name": name,
            **medians(rounds)._asdict(),
            "rounds": [measured._asdict() for measured in rounds],
        }
        for name, rounds in results.items()
    ]


async def run(
    rows: Sequence[Row], *, rounds: int, seconds: int, say: Callable[[str], None] = print
) -> dict[str, list[Round]]:
    """Measure all rows so many times, in rotated order."""
    directory = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    running = [Running(row, directory) for row in rows]
    results: dict[str, list[Round]] = {row.name: [] for row in rows}
    try:
        for one in running:
            await one.open()
        for number in range(rounds):
            turn = number % len(running)
            for one in running[turn:] + running[:turn]:
                measured = await one.measure(seconds, warm_up_s=min(WARM_UP_S, seconds - 1))
                results[one.row.name].append(measured)
                say(f"round {number + 1}: {one.row.name}: {_line(measured)}")
    finally:
        for one in running:
            await one.close()
        shutil.rmtree(directory)
    return results


def _line(figures: Round) -> str:
    return (
        f"{figures.rps:,.0f} requests/s, p99 {figures.p99_ms:.1f} ms, "
        f"Envoy {figures.envoy_us:.1f} us, server {figures.server_us:.1f} us"
    )


HEADINGS: Final = (
    "row", "requests/s", "p50 ms", "p99 ms", "Envoy us/request", "server us/request", "RSS MiB",
)  # fmt: skip


def table(results: Results) -> list[tuple[str, ...]]:
    """Medians, a line for each row."""
    return [(name, *_cells(medians(rounds))) for name, rounds in results.items()]


def _cells(m: Round) -> Sequence[str]:
    cells = [f"{m.rps:,.0f}", f"{m.p50_ms:.2f}", f"{m.p99_ms:.2f}", f"{m.envoy_us:.1f}"]
    return [*cells, *((f"{m.server_us:.1f}", f"{m.rss_mib:.0f}") if m.rss_mib else "--")]


def goals(results: Results) -> list[tuple[str, str, str]]:
    """What was to be reached, the ratio, and whether it was; rows that are missing say so."""
    lines = []
    for goal in GOALS:
        found = ratio(results, goal)
        if found is None:
            lines.append((goal.words(), "-", "not measured"))
        else:
            lines.append((goal.words(), f"{found:.2f}", "yes" if goal.reached(found) else "NO"))
    return lines


def chosen(names: str) -> tuple[list[Row], list[str]]:
    """The rows of a comma-separated list ("" = all) that can run, and what the others lack.

    Raises:
        ValueError: A name is no row's.
    """
    wanted = [name for name in names.split(",") if name] or [row.name for row in ROWS]
    if unknown := set(wanted) - {row.name for row in ROWS}:
        raise ValueError(f"no such rows: {', '.join(sorted(unknown))}")
    rows = [row for row in ROWS if row.name in wanted]
    lacking = [
        f"row {row.name} is left out: {row.needs.name} is not there (`.ci/tools peers` builds it)"
        for row in rows
        if row.needs is not None and not row.needs.exists()
    ]
    return [row for row in rows if row.needs is None or row.needs.exists()], lacking


def show(results: Results) -> None:
    """Print both tables."""
    console = Console(width=110)
    figures = Table(*HEADINGS)
    for line in table(results):
        figures.add_row(*line)
    reached = Table("goal", "median ratio", "reached")
    for row in goals(results):
        reached.add_row(*row)
    console.print(figures)
    console.print(reached)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=int, default=SECONDS, help="of each measurement")
    parser.add_argument("--rows", default="", help="names, separated by commas; all by default")
    options = parser.parse_args(arguments)
    if shutil.which("wrk") is None:
        print("wrk is not there: `.ci/tools wrk` installs it", file=sys.stderr)
        return 1
    try:
        rows, lacking = chosen(options.rows)
    except ValueError as error:
        parser.error(str(error))
    for line in lacking:
        print(line, file=sys.stderr)
    results = asyncio.run(run(rows, rounds=options.rounds, seconds=options.seconds))
    if options.json is not None:
        options.json.write_text(json.dumps(document(results), indent=1) + "\n")
    show(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
