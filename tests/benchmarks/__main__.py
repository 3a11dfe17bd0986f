"""All benchmarks, one after the other: `python -m tests.benchmarks` (`make bench`).

Owns RESULTS.md: what was measured, where and when it was. Refuses to measure: each benchmark is a
program of its own, so that none of them has another's memory or threads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.benchmarks.dataplane import HEADINGS, ROUNDS, SECONDS, goals, table
from tests.benchmarks.plans import USERS
from tests.benchmarks.processes import CONNECTIONS
from tests.benchmarks.running import Round
from tests.benchmarks.shipped import python

ROOT: Final = Path(__file__).parents[2]
DATA_PLANE: Final = "tests.benchmarks.dataplane"


class Benchmark(NamedTuple):
    """One of the others: what it prints is what is kept."""

    title: str
    module: str


BENCHMARKS: Final = (
    Benchmark("One decision", "tests.benchmarks.assignment"),
    Benchmark("One entry of the access log", "tests.benchmarks.folding"),
    Benchmark("The wire alone", "tests.benchmarks.wire"),
    Benchmark("Memory and start", "tests.benchmarks.footprint"),
    Benchmark("A push of 1,000 experiments under load", "tests.benchmarks.push"),
    Benchmark("Configuration push", "tests.benchmarks.configpush"),
    Benchmark("Judging 10,000 cells, and one experiment", "tests.benchmarks.assess"),
    Benchmark("Judging 100 million rows", "tests.benchmarks.analyze"),
)


def machine() -> str:
    """CPU model, cores, kernel and Python."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return (
        f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


def commit() -> str:
    """The commit that was measured, and whether the tree differed from it."""
    head = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!RESULTS.md")
    return (head or "unknown") + (" with local changes" if changed else "")


def _git(*arguments: str) -> str:
    """Output of git; nothing where there is no git or no repository."""
    if shutil.which("git") is None:
        return ""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A table."""
    rule = "| --- |" + " --- |" * (len(headings) - 1)
    return [f"| {' | '.join(headings)} |", rule, *(f"| {' | '.join(line)} |" for line in lines)]


def data_plane(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The data plane's part of RESULTS.md."""
    results = {row["name"]: [Round(**one) for one in row["rounds"]] for row in rows}
    count = len(rows[0]["rounds"])
    return [
        "## The data plane",
        "",
        f"One interleaved run of {count} rounds in rotated order; medians, and medians of the "
        f"rounds' ratios. wrk, 1 thread, {CONNECTIONS} connections, GET by {len(USERS):,} users in "
        "turn with three headers. Each Envoy has one thread and answers as upstream, too; all "
        "share the machine with wrk. Server time and memory are of all of a server's processes, "
        "the supervisor included. What rows have alike: `tests/benchmarks/rows.py`.",
        "",
        *markdown(HEADINGS, table(results)),
        "",
        *markdown(("goal", "median ratio", "reached"), goals(results)),
        "",
        "`idle`: a target at rest. `turnout_20`: 20 experiments, 4 in 4 layers on the route, with "
        "segments, overrides and a mirror that copies nobody. `grpc_aio`: Turnout on grpc.aio. "
        "`grpc_go`, `tonic`: minimal servers of `tests/benchmarks/peers`. `default`: the product "
        "as it comes, with two workers and access logs; access logs are off in all other rows. "
        f"Turnout's rows run it as it is shipped: {_interpreter()}, request path compiled.",
        "",
    ]


def _interpreter() -> str:
    """The Python of the sidecar as it is shipped."""
    asked = subprocess.run([python(), "-VV"], capture_output=True, text=True, check=True)
    return asked.stdout.strip()


def document(load: float, parts: Sequence[str]) -> str:
    """RESULTS.md."""
    return "\n".join(
        [
            "# Results",
            "",
            "Written by `make bench`.",
            "",
            f"- Machine: {machine()}",
            f"- Commit: {commit()}",
            f"- Load average of the machine at the start: {load:.1f}",
            "",
            *parts,
        ]
    )


def _run(module: str, *arguments: str) -> str:
    """Run a benchmark, show what it prints, and return it; a missed goal is a result like others.

    Raises:
        subprocess.CalledProcessError: It failed without a word.
    """
    print(f"--- {module} {' '.join(arguments)}", flush=True)
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode and not lines:
        raise subprocess.CalledProcessError(process.returncode, module)
    return "".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them all and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the data plane")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="of each of its measurements")
    parser.add_argument("--out", type=Path, default=ROOT / "RESULTS.md")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "dataplane.json"
        given = ("--rounds", str(options.rounds), "--seconds", str(options.seconds))
        _run(DATA_PLANE, "--json", str(file), *given)
        parts = data_plane(json.loads(file.read_text()))
    for one in BENCHMARKS:
        text = _run(one.module).rstrip()
        command = f"`python -m {one.module}`"
        parts += [f"## {one.title}", "", f"{command}:", "", "```text", text, "```", ""]
    options.out.write_text(document(load, parts))
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
