"""What a split request costs: no ext_proc, Turnout, and Envoy's own weighted clusters.

    python -m tests.benchmarks.split            (`make bench`)

One interleaved run: every round measures all set-ups, each round in another order, so that a
machine that slows down slows all of them. Writes RESULTS.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table

from control.commands.snapshot import build
from tests.benchmarks import plainenvoy
from tests.integration.harness import BIN, Child, Stage, free_port, wait_for
from turnout.v1alpha1.snapshot_pb2 import Snapshot

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
CONNECTIONS: Final = 32
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class Run(NamedTuple):
    """One measurement of one set-up."""

    requests_per_s: float
    envoy_us: float
    # None where there is no sidecar.
    sidecar_us: float | None
    p99_ms: float


class Setup(NamedTuple):
    """Something to measure: where it listens, and whose CPU it costs."""

    name: str
    port: int
    envoy: Child
    sidecar: tuple[int, ...] = ()


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds, user and system, that processes have used so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


async def wrk(port: int, seconds: int) -> str:
    """Load one port; wrk's report.

    Raises:
        AssertionError: wrk failed, or a request did.
    """
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency"),
        *("-s", str(HERE / "users.lua"), f"http://127.0.0.1:{port}/"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    report = (await process.communicate())[0].decode()
    assert process.returncode == 0, report
    assert "Non-2xx" not in report, report
    assert "Socket errors" not in report, report
    return report


def _milliseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


async def measure(setup: Setup, seconds: int) -> Run:
    """One round of one set-up."""
    envoy_s, sidecar_s = cpu_s([setup.envoy.pid]), cpu_s(setup.sidecar)
    report = await wrk(setup.port, seconds)
    envoy_s, sidecar_s = cpu_s([setup.envoy.pid]) - envoy_s, cpu_s(setup.sidecar) - sidecar_s
    requests = int(_found(r"(\d+) requests in", report))
    return Run(
        requests_per_s=float(_found(r"Requests/sec:\s+([\d.]+)", report)),
        envoy_us=envoy_s / requests * 1e6,
        sidecar_us=sidecar_s / requests * 1e6 if setup.sidecar else None,
        p99_ms=_milliseconds(_found(r"\n +99% +(\S+)", report)),
    )


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, text
    return match[1]


async def plain(stage: Stage, name: str, port: int, document: str) -> Child:
    """Start an Envoy of one thread on a plain configuration, and wait until it answers."""
    path = stage.directory / f"{name}.json"
    path.write_text(document)
    child = stage._own(Child(name, stage.directory / f"{name}.log"))
    await child.spawn(
        *(BIN / "envoy", "-c", path, "--disable-hot-restart", "--concurrency", "1"),
        *("-l", "warning", "--base-id", str(port)),
    )

    async def answers() -> bool:
        child.alive()
        return await _status(port) == 200

    await wait_for(answers, f"{name} answers")
    return child


async def _status(port: int) -> int:
    """Status of one request, 0 when nobody listens."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return 0
    writer.write(b"GET /bench HTTP/1.1\r\nhost: x\r\nx-user-id: u\r\nconnection: close\r\n\r\n")
    line = await reader.readline()
    writer.close()
    return int(line.split()[1]) if line else 0


async def turnout(stage: Stage, ports: Sequence[int]) -> Setup:
    """Envoy with the bootstrap, filter, routes and access logs of Turnout, and a sidecar."""
    text = Template((HERE / "resources.yaml").read_text()).substitute(
        first=f"127.0.0.1:{ports[0]}", second=f"127.0.0.1:{ports[1]}"
    )
    file = stage.directory / "resources.yaml"
    file.write_text(text)
    envoy = await stage.envoy(files=[file], concurrency=1)
    snapshot = Snapshot.FromString(build([file]))
    sidecar = await stage.sidecar(snapshot=snapshot)
    await stage.enrols(path="/bench")
    return Setup("Turnout", stage.port, envoy, (sidecar.pid, *sidecar.workers()))


async def rounds(count: int, seconds: int) -> dict[str, list[Run]]:
    """Start everything and measure; set-up -> runs."""
    async with Stage() as stage:
        ports = [free_port(), free_port()]
        await plain(stage, "upstream", ports[0], plainenvoy.upstream(ports))
        bare, split = free_port(), free_port()
        setups = [
            Setup(
                "no ext_proc",
                bare,
                await plain(stage, "bare", bare, plainenvoy.direct(bare, ports[0])),
            ),
            await turnout(stage, ports),
            Setup(
                "weighted_clusters",
                split,
                await plain(stage, "weighted", split, plainenvoy.weighted(split, *ports)),
            ),
        ]
        runs: dict[str, list[Run]] = {setup.name: [] for setup in setups}
        for setup in setups:
            await wrk(setup.port, 1)  # connections and caches are warm before the first round
        for number in range(count):
            turn = number % len(setups)
            for setup in setups[turn:] + setups[:turn]:
                run = await measure(setup, seconds)
                runs[setup.name].append(run)
                print(f"round {number + 1}: {setup.name}: {run.requests_per_s:,.0f} requests/s")
        return runs


def cells(runs: Sequence[Run]) -> list[str]:
    """The figures of one set-up, round by round."""
    sidecar = [f"{run.sidecar_us:.1f}" for run in runs if run.sidecar_us is not None]
    return [
        " · ".join(f"{run.requests_per_s:,.0f}" for run in runs),
        " · ".join(f"{run.envoy_us:.0f}" for run in runs),
        " · ".join(sidecar) or "-",
        " · ".join(f"{run.p99_ms:.1f}" for run in runs),
    ]


HEADINGS: Final = (
    "set-up",
    "requests/s",
    "Envoy CPU us/request",
    "sidecar CPU us/request",
    "p99 ms",
)


def machine() -> str:
    """CPU model, cores, kernel and Python."""
    model = _found(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return (
        f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}"
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


def document(runs: dict[str, list[Run]], *, seconds: int, load: float) -> str:
    """RESULTS.md."""
    rows = [f"| {' | '.join([name, *cells(found)])} |" for name, found in runs.items()]
    count = len(next(iter(runs.values())))
    return "\n".join(
        [
            "# Results",
            "",
            "Written by `make bench`. Speed is not a goal yet: the sidecar answers with grpc.aio.",
            "",
            f"- Machine: {machine()}",
            f"- Commit: {commit()}",
            f"- Load average of the machine at the start: {load:.1f}",
            f"- Load: wrk, 1 thread, {CONNECTIONS} connections, GET with an `x-user-id` of 4,096 "
            f"users; one interleaved run, {count} rounds of {seconds} s for each set-up, in "
            "rotated order. Rounds are separated by a dot.",
            "- Each Envoy runs with one thread; all share the machine with wrk and with the Envoy "
            "that answers as upstream.",
            "- Turnout's row has everything that Turnout adds: stripped headers, ext_proc over "
            "Unix sockets to two workers, the header route, `x-variant` on the answer, access logs "
            "to the workers. Sidecar CPU is supervisor and workers, access logs included.",
            "",
            f"| {' | '.join(HEADINGS)} |",
            "| --- |" + " --- |" * (len(HEADINGS) - 1),
            *rows,
            "",
        ]
    )


def main() -> int:
    """Run the benchmark, print it and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "RESULTS.md")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    runs = asyncio.run(rounds(options.rounds, options.seconds))
    table = Table(*HEADINGS)
    for name, found in runs.items():
        table.add_row(name, *cells(found))
    Console(width=110).print(table)
    options.out.write_text(document(runs, seconds=options.seconds, load=load))
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
