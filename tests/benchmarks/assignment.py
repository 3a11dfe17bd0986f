"""What one decision costs: `python -m tests.benchmarks.assignment [--json FILE] [--no-sdks]`.

Owns the snapshots and requests that are measured, and the CPU clock around `processor`. Every case
is measured in every round, the order turned by one from round to round; a figure is the least of
the rounds, as what disturbs a measurement only ever adds to it; medians stand beside.

decode      bytes -> page and headers (`Decoder.quick`)
assign      what follows: match, unit, holdout, overrides, segments, buckets, answer
process     `Work.process`, the whole: decode, assign, count
fresh/again every unit for the first time / the same 512 units in turn

Beside them, in the same rounds, the SDKs of LaunchDarkly, GrowthBook and flagd evaluate an
equivalent flag of one experiment (`assignmentpeers`), in an environment of their own.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from sidecar.counters import CounterFile
from sidecar.plan import Plan
from sidecar.processor import assign
from sidecar.work import Work
from turnout.contract import BUCKET_COUNT
from turnout.envoy.ext_proc_pb2 import ProcessingRequest
from turnout.v1alpha1.common_pb2 import BAD_EVENT_KIND_ERROR
from turnout.v1alpha1.snapshot_pb2 import ExperimentPlan, Snapshot, TargetPlan

KEY: Final = bytes(range(32))
ROUNDS: Final = 15
REQUESTS: Final = 4_000
REPEATED_UNITS: Final = 512
OTHERS: Final = 1_000
HERE: Final = Path(__file__).parent
SDKS: Final = HERE.parents[1] / ".tools" / "sdks"
LOCK: Final = HERE / "requirements-sdks.txt"


class Case(NamedTuple):
    """One thing to time.

    Attributes:
        name: What is measured.
        run: Does it `calls` times.
        calls: How often.
    """

    name: str
    run: Callable[[], object]
    calls: int


# -- Snapshots ------------------------------------------------------------------------------------


def target(name: str) -> TargetPlan:
    """A target with a path of its own."""
    plan = TargetPlan(name=name, path_prefix=f"/v2/models/{name}")
    plan.baseline.cluster = f"turnout.{name}.base"
    plan.baseline.upstream.address = "base:8080"
    return plan


def experiment(name: str, on: str, layer: str, **places: int) -> ExperimentPlan:
    """One half control, one half candidate; in `models` with upstreams, else with a parameter.

    Args:
        name: The experiment's.
        on: The target's.
        layer: The layer's.
        **places: `part` of `parts`, when the layer is shared.
    """
    plan = ExperimentPlan(
        name=name, epoch=3, epoch_start_unix_ms=1_700_000_000_000, target=on, layer=layer,
        salt=f"salt-of-{name}", kinds=[BAD_EVENT_KIND_ERROR],
    )  # fmt: skip
    plan.unit.header = "x-user-id"
    half = BUCKET_COUNT // 2
    for index, (variant, start, end) in enumerate(
        (("control", 0, half), ("candidate", half, BUCKET_COUNT))
    ):
        one = plan.variants.add(name=variant, control=not index)
        one.ranges.add(start=start, end=end)
        if layer == "models":
            one.cluster.cluster = f"turnout.{on}.{variant}"
            one.cluster.upstream.address = f"{variant}:8080"
        else:
            one.parameters[f"{layer}-threshold"] = f"0.{index + 5}"
    if places:
        width = BUCKET_COUNT // places["parts"]
        plan.layer_salt = f"layer-{on}-{layer}"
        plan.layer_ranges.add(start=width * places["part"], end=width * (places["part"] + 1))
    return plan


def one_experiment() -> Snapshot:
    """One target, one experiment."""
    return Snapshot(
        format=1, tenant="risk", version=1, targets=[target("fraud")],
        experiments=[experiment("fraud-v2", "fraud", "models")],
    )  # fmt: skip


def turnout_20() -> Snapshot:
    """The data plane benchmark's: 20 experiments, 4 in 4 layers on the measured route."""
    snapshot = Snapshot(format=1, tenant="risk", version=1, targets=[target("fraud")])
    for layer in ("models", "pricing", "ranking", "texts"):
        one = experiment(f"fraud-{layer}", "fraud", layer)
        one.segment.header = "x-country"
        one.segment.in_values.extend(["DE", "FR"])
        one.overrides.add(unit="tester", variant="candidate")
        one.holdout.salt = "holdout"
        one.holdout.ranges.add(start=0, end=1)
        if layer == "models":
            # Copies of the candidate's own requests alone: none is made.
            one.shadow.variant = "candidate"
            one.shadow.ranges.add(start=BUCKET_COUNT // 2, end=BUCKET_COUNT)
        snapshot.experiments.append(one)
    return with_others(snapshot, 16)


def twenty_on_one() -> Snapshot:
    """Five layers of one target, in each of them four experiments that exclude each other."""
    snapshot = Snapshot(format=1, tenant="risk", version=1, targets=[target("fraud")])
    for layer in ("models", "pricing", "ranking", "texts", "zoom"):
        for part in range(4):
            name = f"fraud-{layer}-{part}"
            snapshot.experiments.append(experiment(name, "fraud", layer, part=part, parts=4))
    return snapshot


def with_others(snapshot: Snapshot, count: int) -> Snapshot:
    """The same with experiments of other targets."""
    for number in range(len(snapshot.targets), len(snapshot.targets) + count):
        name = f"other-{number:04d}"
        snapshot.targets.append(target(name))
        one = experiment(f"{name}-v2", name, "models")
        one.segment.header = "x-country"
        one.segment.in_values.extend(["DE", "FR"])
        snapshot.experiments.append(one)
    return snapshot


SNAPSHOTS: Final[dict[str, Callable[[], Snapshot]]] = {
    "1": one_experiment,
    "1 + 1,000 elsewhere": lambda: with_others(one_experiment(), OTHERS),
    "turnout_20": turnout_20,
    "turnout_20 + 1,000 elsewhere": lambda: with_others(turnout_20(), OTHERS),
    "20 on one target": twenty_on_one,
    "20 on one target + 1,000 elsewhere": lambda: with_others(twenty_on_one(), OTHERS),
}


def build(snapshot: Snapshot, previous: Plan | None = None) -> Plan:
    """The plan, every variant with a counter."""
    keys = [(e.name, e.epoch, v.name) for e in snapshot.experiments for v in e.variants]
    return Plan.build(
        snapshot,
        tenant_key=KEY,
        dead={},
        open_gates=None,
        slots={key: number for number, key in enumerate(keys)},
        previous=previous,
    )


def encoded(unit: bytes, path: bytes = b"/v2/models/fraud/infer") -> bytes:
    """A request as Envoy sends it: the forwarded headers, and its protocol configuration."""
    message = ProcessingRequest()
    for name, value in (
        (":authority", b"fraud.risk.svc"),
        (":path", path),
        (":method", b"POST"),
        ("x-country", b"DE"),
        ("x-user-id", unit),
    ):
        message.request_headers.headers.headers.add(key=name, raw_value=value)
    return message.SerializeToString() + b"\x5a\x02\x18\x01"


# -- Cases ----------------------------------------------------------------------------------------


def cases() -> Iterator[Case]:
    """Everything of ours that is timed."""
    fresh = [encoded(b"user-%d" % number) for number in range(REQUESTS * (ROUNDS + 1))]
    again = [encoded(b"user-%d" % (number % REPEATED_UNITS)) for number in range(REQUESTS)]
    paths = [
        encoded(b"user-1", b"/v2/models/fraud/infer?id=%d" % number)
        for number in range(REQUESTS * (ROUNDS + 1))
    ]
    for name, snapshot in SNAPSHOTS.items():
        yield from _cases_of(name, snapshot(), fresh, again)
    yield _rotating(
        "decode: every path for the first time", build(one_experiment()).decoder.quick, paths
    )


def _cases_of(
    name: str, snapshot: Snapshot, fresh: list[bytes], again: list[bytes]
) -> Iterator[Case]:
    plan = build(snapshot)
    yield _rotating(f"{name}: decode", plan.decoder.quick, fresh)

    def assigned(plan: Plan, parts: Iterator[list[Any]]) -> None:
        for page, headers, request in next(parts):
            assign(plan, page, headers, request, bytes, float)

    for kind, requests in (("fresh", fresh), ("again", again)):
        # A plan for each, as it remembers answers.
        plan, work = build(snapshot), Work(CounterFile.create("benchmark"))
        work.serve(build(snapshot))
        ready = [(*found, data) for data in requests if (found := plan.decoder.quick(data))]
        assert len(ready) == len(requests), "every request is read the short way"
        parts = _parts(ready)
        yield Case(f"{name}: assign, {kind}", partial(assigned, plan, parts), REQUESTS)
        yield _rotating(f"{name}: process, {kind}", work.process, requests)


def _rotating(name: str, function: Callable[[bytes], object], requests: list[bytes]) -> Case:
    parts = _parts(requests)

    def run() -> None:
        for request in next(parts):
            function(request)

    return Case(name, run, REQUESTS)


def _parts(requests: list[Any]) -> Iterator[list[Any]]:
    """REQUESTS of them at a time, in turn."""
    while True:
        for start in range(0, len(requests), REQUESTS):
            yield requests[start : start + REQUESTS]


def measure(all_cases: list[Case], peers: Callable[[], dict[str, float]]) -> dict[str, list[float]]:
    """Microseconds per call of each case, by round."""
    found: dict[str, list[float]] = {case.name: [] for case in all_cases}
    for round_ in range(ROUNDS):
        turned = all_cases[round_ % len(all_cases) :] + all_cases[: round_ % len(all_cases)]
        for case in turned:
            started = time.thread_time_ns()
            case.run()
            found[case.name].append((time.thread_time_ns() - started) / case.calls / 1000)
        for name, microseconds in peers().items():
            found.setdefault(name, []).append(microseconds)
    return found


def plan_times() -> dict[str, float]:
    """Building a plan of 1,000 experiments: milliseconds in all, and its longest step."""
    snapshot = with_others(one_experiment(), OTHERS)
    data = snapshot.SerializeToString()
    found: dict[str, list[float]] = {}
    previous: Plan | None = None
    gc.disable()  # as the worker does meanwhile
    for _ in range(5):
        for name, known in (("anew", None), ("unchanged", previous)):
            steps = []
            builder = Plan.builder(
                Snapshot.FromString(data), tenant_key=KEY, dead={}, open_gates=None, slots={},
                previous=known,
            )  # fmt: skip
            # CPU time: a step that another process interrupts is no longer one.
            before = time.thread_time_ns()
            for _ in builder:
                steps.append(time.thread_time_ns() - before)
                before = time.thread_time_ns()
            steps.append(time.thread_time_ns() - before)
            previous = builder.plan
            found.setdefault(f"plan of 1,000 {name}, ms", []).append(sum(steps) / 1e6)
            found.setdefault(f"plan of 1,000 {name}, longest step, ms", []).append(max(steps) / 1e6)
    gc.enable()
    return {name: min(values) for name, values in found.items()}


class Peers:
    """The SDKs in a process of their own; each line on its input is a round."""

    def __init__(self, python: Path) -> None:
        self._process = subprocess.Popen(
            [python, HERE / "assignmentpeers.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def round(self) -> dict[str, float]:
        """Microseconds per evaluation of each SDK."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        found: dict[str, float] = json.loads(self._process.stdout.readline())
        return found

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


def sdks_python() -> Path:
    """An interpreter that has the SDKs: nothing of ours needs what they bring."""
    python, installed = SDKS / "bin" / "python", SDKS / "installed"
    wanted = LOCK.read_text() + sys.version
    if not installed.exists() or installed.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", SDKS], check=True)
        pip = (python, "-m", "pip", "install", "-q", "--disable-pip-version-check")
        only = ("--require-hashes", "--only-binary", ":all:", "-r", LOCK)
        subprocess.run([*pip, *only], check=True)
        installed.write_text(wanted)
    return python


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--no-sdks", action="store_true", help="measure only what is ours")
    options = parser.parse_args()
    peers = None if options.no_sdks else Peers(sdks_python())
    rounds = measure(list(cases()), peers.round if peers else dict)
    if peers:
        peers.close()
    figures = [
        {"name": name, "us": min(values), "median_us": statistics.median(values)}
        for name, values in rounds.items()
    ]
    for figure in figures:
        name, us, median = figure["name"], figure["us"], figure["median_us"]
        sys.stdout.write(f"{name:<55} {us:8.2f} us   median {median:8.2f}\n")
    plan = plan_times()
    for label, value in plan.items():
        sys.stdout.write(f"{label:<55} {value:8.2f} ms\n")
    if options.json:
        options.json.write_text(json.dumps({"calls": figures, "plan": plan}, indent=1) + "\n")


if __name__ == "__main__":
    main()
