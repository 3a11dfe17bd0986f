"""How long a new configuration takes to reach every sidecar, and how a herd that reconnects fares.

    python -m tests.benchmarks.configpush [--json FILE] [--sidecars 100,1000] [--herd 10000]
                                          [--turns 100] [--experiments 20]

A real control plane with a real store; light stream clients (`lightstreams`) in processes of their
own. Push: from the call that changes the configuration to the last acknowledgement, so with the
commit. Herd: the control plane is killed and started again while all come back at once; from the
moment it accepts connections to the last acknowledgement.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from google.protobuf import json_format

from tests.control.peers import EXPERIMENT_SPEC, PARENT, TARGET_SPEC, Api
from tests.integration.harness import ControlPlane, Stage
from turnout.v1alpha1 import config_service_pb2 as config
from turnout.v1alpha1 import experiment_service_pb2 as api
from turnout.v1alpha1.experiment_pb2 import Experiment
from turnout.v1alpha1.target_pb2 import Target

PROCESSES: Final = 2
WAIT_S: Final = 120.0


class Clients:
    """Light streams in processes of their own, and when all of them had which version."""

    def __init__(self) -> None:
        self._processes: list[asyncio.subprocess.Process] = []
        self._readers: list[asyncio.Task[None]] = []
        self._times: dict[int, dict[int, float]] = {}
        self._news = asyncio.Condition()

    async def start(self, port: int, count: int) -> None:
        """Start `count` streams."""
        each = [count // PROCESSES + (i < count % PROCESSES) for i in range(PROCESSES)]
        first = 0
        for index, share in enumerate(each):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.benchmarks.lightstreams"),
                *("--port", str(port), "--count", str(share), "--first", str(first)),
                stdout=asyncio.subprocess.PIPE,
            )
            first += share
            self._processes.append(process)
            self._readers.append(asyncio.create_task(self._read(index, process)))

    async def all_have(self, version: int, *, after_s: float = 0.0) -> float:
        """When the last stream had acknowledged a version or a later one, in monotonic seconds."""
        async with asyncio.timeout(WAIT_S), self._news:
            while True:
                for known, times in sorted(self._times.items()):
                    whole = known >= version and len(times) == PROCESSES
                    if whole and min(times.values()) >= after_s:
                        return max(times.values())
                await self._news.wait()

    async def stop(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            await process.wait()
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)

    async def _read(self, index: int, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            row = json.loads(line)
            async with self._news:
                self._times.setdefault(row["version"], {})[index] = row["all_s"]
                self._news.notify_all()


async def populate(client: Api, experiments: int) -> None:
    """Targets with a running experiment each."""
    for index in range(experiments):
        spec = yaml.safe_load(TARGET_SPEC)
        spec["match"]["pathPrefix"] = f"/v2/models/m{index}"
        found = json_format.ParseDict({"spec": spec}, Target())
        await client.create_target(found, target_id=f"m{index}")
        spec = yaml.safe_load(EXPERIMENT_SPEC) | {"target": f"m{index}"}
        message = json_format.ParseDict({"spec": spec}, Experiment())
        await client.create(message, experiment_id=f"e{index}")
        await client.verb("Start", f"{PARENT}/experiments/e{index}")


async def change(client: Api, turn: int) -> int:
    """Change one target; the version of the snapshot that carries it."""
    name = f"{PARENT}/targets/m0"
    found = await client.get_target(name)
    found.spec.timeout.FromSeconds(60 + turn % 2)
    await client.targets.UpdateTarget(api.UpdateTargetRequest(target=found))
    snapshot = await client.sidecars.GetSnapshot(config.GetSnapshotRequest(parent=PARENT))
    return int(snapshot.version)


def rss_mib(pid: int) -> tuple[float, float]:
    """Resident memory now and at its highest, MiB."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in status)
    return tuple(int(values[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


async def measure_push(stage: Stage, sidecars: int, turns: int, experiments: int) -> dict[str, Any]:
    """Milliseconds from the change to the last ACK, over `turns` changes."""
    plane = await stage.control(store=f"push{sidecars}.db")
    clients = Clients()
    try:
        async with Api(plane.address) as client:
            await populate(client, experiments)
            await clients.start(plane.port, sidecars)
            await clients.all_have(await change(client, 1))
            times_ms: list[float] = []
            for turn in range(turns):
                start_s = time.monotonic()
                version = await change(client, turn)
                times_ms.append((await clients.all_have(version) - start_s) * 1e3)
            request = config.GetSnapshotRequest(parent=PARENT)
            snapshot_bytes = (await client.sidecars.GetSnapshot(request)).ByteSize()
        return {
            "name": f"push_{sidecars}",
            "sidecars": sidecars,
            "changes": turns,
            "experiments": experiments,
            "snapshot_bytes": snapshot_bytes,
            "p50_ms": statistics.median(times_ms),
            "p99_ms": sorted(times_ms)[math.ceil(0.99 * turns) - 1],
            "max_ms": max(times_ms),
            "rss_mib": rss_mib(plane.pid)[0],
        }
    finally:
        await clients.stop()
        await plane.stop()


async def measure_herd(stage: Stage, sidecars: int, experiments: int) -> dict[str, Any]:
    """Seconds from accepting connections to the last ACK, when all come back at once."""
    plane = await stage.control(store="herd.db")
    clients = Clients()
    again: ControlPlane | None = None
    try:
        async with Api(plane.address) as client:
            await populate(client, experiments)
            await clients.start(plane.port, sidecars)
            version = await change(client, 1)
            await clients.all_have(version)
        await plane.kill(signal.SIGKILL)
        killed_s = time.monotonic()
        again = await stage.control(port=plane.port, store="herd.db")
        up_s = time.monotonic()
        all_s = await clients.all_have(version, after_s=killed_s)
        now, highest = rss_mib(again.pid)
        return {
            "name": f"herd_{sidecars}",
            "sidecars": sidecars,
            "all_current_s": all_s - up_s,
            "since_kill_s": all_s - killed_s,
            "rss_mib": now,
            "rss_max_mib": highest,
        }
    finally:
        await clients.stop()
        if again is not None:
            await again.stop()


async def measure(
    sidecars: Sequence[int], herd: int, turns: int, experiments: int
) -> list[dict[str, Any]]:
    """All measurements."""
    async with Stage() as stage:
        rows = [await measure_push(stage, count, turns, experiments) for count in sidecars]
        if herd:
            rows.append(await measure_herd(stage, herd, experiments))
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sidecars", default="100,1000")
    parser.add_argument("--herd", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=100, help="changes per number of sidecars")
    parser.add_argument("--experiments", type=int, default=20, help="each on a target of its own")
    options = parser.parse_args(arguments)
    counts = [int(text) for text in options.sidecars.split(",") if text]
    rows = asyncio.run(measure(counts, options.herd, options.turns, options.experiments))
    for row in rows:
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
