"""What requests wait longer for while a plan of 1,000 experiments is pushed, again and again.

    python -m tests.benchmarks.push [--rounds N] [--seconds S] [--rps R] [--json FILE]

h2load asks one worker over its Unix socket at a steady rate; rounds with and without pushes take
turns. In the rounds with pushes every experiment changes with each push, so that nothing of the
plan before can be used again. A round's figure is the 99.9th percentile of all its requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import struct
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.benchmarks import shipped
from tests.integration.extproc import PROCESS, request_of
from tests.integration.harness import FakeControl, Stage, one_experiment, wait_for
from turnout.v1alpha1.snapshot_pb2 import Snapshot

EXPERIMENTS: Final = 1_000
PUSH_EVERY_S: Final = 1.0
CLIENTS: Final = 8
LONGER_MS_MAX: Final = 2.0
_PERMILLE: Final = 999


class Round(NamedTuple):
    """One round.

    Attributes:
        requests: Answered.
        failed: The others.
        p50_ms: Median.
        p999_ms: 99.9th percentile.
        worst_ms: Longest.
        pushes: Acknowledged meanwhile.
    """

    requests: int
    failed: int
    p50_ms: float
    p999_ms: float
    worst_ms: float
    pushes: int


def large(first: Snapshot, version: int, *, experiments: int = EXPERIMENTS) -> Snapshot:
    """A snapshot with so many targets of one experiment each, all of them new in this version."""
    snapshot = Snapshot()
    snapshot.CopyFrom(first)
    snapshot.version = version
    target, experiment = first.targets[0], first.experiments[0]
    for i in range(experiments - 1):
        one = snapshot.targets.add()
        one.CopyFrom(target)
        one.name, one.path_prefix = f"t{i}", f"/v2/models/m{i}"
        other = snapshot.experiments.add()
        other.CopyFrom(experiment)
        other.name, other.target, other.salt = f"e{i}", one.name, f"s{version}-{i}"
    return snapshot


async def h2load(stage: Stage, seconds: int, rps: int, name: str) -> list[tuple[int, float]]:
    """Ask the worker; (status, milliseconds) of every request."""
    message = request_of("somebody").SerializeToString()
    body, log = stage.directory / "body", stage.directory / f"{name}.log"
    body.write_bytes(struct.pack(">BI", 0, len(message)) + message)
    process = await asyncio.create_subprocess_exec(
        *("h2load", "-c", str(CLIENTS), "-m", "16", "-D", str(seconds), "-t", "1"),
        *("--rps", str(rps / CLIENTS), "-d", body, "-H", "content-type: application/grpc"),
        *("-H", "te: trailers", f"--log-file={log}", "-B", f"unix:{stage.socket}.0"),
        f"http://worker{PROCESS}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    log.unlink()
    return [(int(status), int(took_us) / 1000) for _, status, took_us in lines]


async def pushing(fake: FakeControl, snapshots: list[bytes], first: int) -> int:
    """Push until cancelled; the last version."""
    version = first
    try:
        while True:
            version += 1
            fake.push_bytes(version, with_version(snapshots[version % len(snapshots)], version))
            await fake.acked(version)
            await asyncio.sleep(PUSH_EVERY_S)
    except asyncio.CancelledError:
        return version


def with_version(encoded: bytes, version: int) -> bytes:
    """The same snapshot under another version: of two fields of a message the last counts."""
    return encoded + Snapshot(version=version).SerializeToString()


async def measure(rounds: int, seconds: int, rps: int) -> dict[str, Any]:
    """All rounds, and what they say together."""
    async with Stage() as stage:
        v1, v2 = await stage.pod("v1"), await stage.pod("v2")
        first = one_experiment(v1, v2, {"v2": 0.5})
        fake = await stage.fake_control()
        stage.turnout = shipped.build()
        await stage.sidecar(control=fake.address, envoy_admin=False, workers=1)
        both = [large(first, version).SerializeToString(deterministic=True) for version in (1, 2)]
        fake.push_bytes(1, both[0])
        ack = await fake.acked(1)
        assert not ack.violations, ack
        await wait_for(Path(f"{stage.socket}.0").exists, "the worker listens")
        version = 1
        found: dict[str, list[Round]] = {"calm": [], "pushes": []}
        await h2load(stage, 2, rps, "warm")
        for number in range(rounds):
            for kind in ("calm", "pushes") if number % 2 else ("pushes", "calm"):
                before = version
                task = None
                if kind == "pushes":
                    task = asyncio.create_task(pushing(fake, both, version))
                answers = await h2load(stage, seconds, rps, f"{kind}{number}")
                if task is not None:
                    task.cancel()
                    version = await task
                found[kind].append(round_of(answers, version - before))
        assert not any(ack.violations for ack in fake.acks)
    calm = statistics.median(one.p999_ms for one in found["calm"])
    pushed = statistics.median(one.p999_ms for one in found["pushes"])
    return {
        "p999_calm_ms": round(calm, 3),
        "p999_pushes_ms": round(pushed, 3),
        "longer_ms": round(pushed - calm, 3),
        "snapshot_bytes": len(both[0]),
        "rounds": {kind: [one._asdict() for one in all_] for kind, all_ in found.items()},
    }


def round_of(answers: list[tuple[int, float]], pushes: int) -> Round:
    """Figures of one round."""
    took = sorted(ms for status, ms in answers if status == 200)
    assert took, "nothing was answered"
    return Round(
        requests=len(took),
        failed=len(answers) - len(took),
        p50_ms=round(took[len(took) // 2], 3),
        p999_ms=round(took[len(took) * _PERMILLE // 1000], 3),
        worst_ms=round(took[-1], 3),
        pushes=pushes,
    )


def main() -> None:
    """Measure and print; exit 1 when requests wait too long or fail."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each kind")
    parser.add_argument("--seconds", type=int, default=8, help="of each round")
    parser.add_argument("--rps", type=int, default=2_000, help="requests per second")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    found = asyncio.run(measure(options.rounds, options.seconds, options.rps))
    text = json.dumps(found, indent=1)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
    failed = sum(one["failed"] for all_ in found["rounds"].values() for one in all_)
    sys.exit(1 if failed or found["longer_ms"] > LONGER_MS_MAX else 0)


if __name__ == "__main__":
    main()
