"""What one sidecar costs when it does nothing: memory of its processes, and its start.

    python -m tests.benchmarks.footprint [--json FILE] [--rounds N]

Memory is read from /proc/PID/smaps_rollup after requests on every worker: `rss_mib` counts pages
that are shared with others whole, `pss_mib` by shares. The start is measured from exec of `turnout
sidecar` to the first stamped answer from a saved snapshot, best and median of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Final

import grpc.aio

from tests import compiling
from tests.benchmarks import shipped
from tests.integration.extproc import WorkerClient, request_of
from tests.integration.harness import Sidecar, Stage, one_experiment, wait_for

RSS_WORKER_MIB: Final = 45.0
PSS_ALL_MIB: Final = 100.0
START_S: Final = 0.5
WORKERS: Final = 2
REQUESTS: Final = 2_000
_POLL_S: Final = 0.002


def rollup(pid: int) -> dict[str, float]:
    """RSS, PSS and private memory of a process, MiB."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split()[:2]
        found[name.rstrip(":")] = int(value) / 1024
    return {
        "rss_mib": round(found["Rss"], 1),
        "pss_mib": round(found["Pss"], 1),
        "private_mib": round(found["Private_Clean"] + found["Private_Dirty"], 1),
    }


async def first_answer(stage: Stage, start: Any) -> tuple[Sidecar, float]:
    """Start a sidecar; seconds until a request of its first worker is stamped."""
    path = Path(f"{stage.socket}.0")
    path.unlink(missing_ok=True)
    begun = time.perf_counter()
    sidecar: Sidecar = await start()
    while True:
        sidecar.alive()
        if path.exists():
            async with WorkerClient(path) as client:
                try:
                    if await client.variant("anybody"):
                        return sidecar, time.perf_counter() - begun
                except grpc.aio.AioRpcError:
                    pass
        await asyncio.sleep(_POLL_S)


async def memory(stage: Stage, sidecar: Sidecar) -> dict[str, Any]:
    """Of all processes, after some traffic."""
    for i in range(WORKERS):
        async with WorkerClient(Path(f"{stage.socket}.{i}")) as client:
            for n in range(REQUESTS // WORKERS):
                await client.process(request_of(f"user-{n}"))
    workers = [rollup(pid) for pid in sidecar.workers()]
    supervisor = rollup(sidecar.pid)
    return {
        "worker_rss_mib": max(one["rss_mib"] for one in workers),
        "all_pss_mib": round(sum(one["pss_mib"] for one in (supervisor, *workers)), 1),
        "supervisor": supervisor,
        "workers": workers,
    }


async def measure(rounds: int) -> dict[str, Any]:
    """Everything, in one dictionary."""
    async with Stage() as stage:
        stage.turnout = shipped.build()
        snapshot = one_experiment(await stage.pod("v1"), await stage.pod("v2"), {"v2": 0.5})
        fake = await stage.fake_control()
        fake.push(snapshot)
        state = stage.directory / "state"

        async def start() -> Sidecar:
            return await stage.sidecar(control=fake.address, envoy_admin=False, workers=WORKERS)

        sidecar = await start()
        await wait_for((state / "snapshot").exists, "the snapshot is on disk")
        await stage.workers_serve(WORKERS)
        seconds = []
        for _ in range(rounds):
            await sidecar.stop()
            hellos = len(fake.hellos)
            sidecar, took_s = await first_answer(stage, start)
            seconds.append(took_s)
        await wait_for(lambda: len(fake.hellos) > hellos, "it is connected")
        await stage.workers_serve(WORKERS)
        return {
            "start_s": round(statistics.median(seconds), 3),
            "start_best_s": round(min(seconds), 3),
            "starts_s": [round(one, 3) for one in seconds],
            **await memory(stage, sidecar),
            "cpus": os.cpu_count(),
        }


def main() -> None:
    """Measure and print; exit 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--rounds", type=int, default=9, help="starts")
    options = parser.parse_args()
    for name in compiling.environment():
        os.environ.pop(name, None)  # it has its own compiled modules
    found = asyncio.run(measure(options.rounds))
    goals = {
        "worker_rss_mib": RSS_WORKER_MIB,
        "all_pss_mib": PSS_ALL_MIB,
        "start_s": START_S,
    }
    found["missed"] = [name for name, most in goals.items() if found[name] > most]
    text = json.dumps(found, indent=1)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
    sys.exit(1 if found["missed"] else 0)


if __name__ == "__main__":
    main()
