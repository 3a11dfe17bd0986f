"""`make demo`: starts everything, plays the acts, prints what happened, ends everything.

Exit code 0 only if every act ended as it must, 1 if one did not, 2 if something did not start,
130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import grpc
from rich.console import Console as Terminal

from envoy.demo.acts import ACTS
from envoy.demo.console import Console
from envoy.demo.models import digits
from envoy.demo.processes import StartFailure
from envoy.demo.progress import Progress
from envoy.demo.report import print_act, print_summary
from envoy.demo.result import ActResult, write_summary
from envoy.demo.scene import Scene
from envoy.demo.stack import TENANT, Stack
from envoy.demo.traffic import INFER_PATH, RATE_PER_S_MAX, USERS, Labels, Traffic

REQUESTS_MIN: Final = 10_000
EXIT_WRONG: Final = 1
EXIT_NOT_STARTED: Final = 2
EXIT_INTERRUPTED: Final = 130


async def _start(stack: Stack, progress: Progress) -> None:
    """Start the parts, the ones first that others need."""
    stack.prepare()
    progress.event("control plane")
    await stack.start_control()
    progress.event("model pods v1 to v6 (fitted at the first start)")
    await stack.start_pods()
    await stack.apply("target.yaml")
    progress.event("Envoy and the sidecar beside it")
    await stack.start_envoy()
    await stack.start_sidecar()
    progress.event(f"ready: Envoy on {stack.envoy_address}, control on {stack.control_address}")


async def _play(
    stack: Stack, console: Console, traffic: Traffic, progress: Progress, only: Sequence[int]
) -> list[ActResult]:
    """Play the acts in order; an act that breaks down is told, and the next one is played."""
    acts = []
    for number, part in enumerate(ACTS, start=1):
        if number not in only:
            continue
        result = ActResult(name=part.name, title=part.title)
        acts.append(result)
        scene = Scene(
            stack,
            console,
            traffic,
            progress,
            result=result,
            experiment=part.experiment,
            baseline=part.baseline,
        )
        try:
            await part.play(scene)
        except (TimeoutError, grpc.aio.AioRpcError) as error:
            await traffic.end()
            detail = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
            result.claim("the act could be played to its end", held=False, detail=detail)
        print_act(progress.terminal, result)
    return acts


async def _with_company(
    stack: Stack, progress: Progress, *, only: Sequence[int], keep: bool, begin_s: float
) -> int:
    """Play with traffic, labels and meter running beside; when one of them breaks, all end."""
    console = Console(stack.control_address, TENANT)
    labels = Labels(stack.control_address, TENANT)
    traffic = Traffic(stack.envoy_address, digits()[1], labels)
    company: list[asyncio.Task[None]] = [
        asyncio.create_task(part) for part in (traffic.run(), labels.run(), stack.meter())
    ]
    play = asyncio.create_task(_play(stack, console, traffic, progress, only))
    waiting: set[asyncio.Task[Any]] = {play, *company}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in company:
            if task.done():
                task.result()  # raises what broke it: these never return
        took_s = time.monotonic() - begin_s
        code = _conclude(stack.root, await play, only, progress.terminal, took_s)
        if keep:
            await _keep(stack, traffic, progress)
        return code
    finally:
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        traffic.close()
        await console.close()


async def _keep(stack: Stack, traffic: Traffic, progress: Progress) -> None:
    """Leave everything running, with traffic, until Ctrl-C."""
    grpcurl = ".tools/bin/grpcurl" if Path(".tools/bin/grpcurl").exists() else "grpcurl"
    call = f"{grpcurl} -plaintext"
    service = "turnout.v1alpha1.ExperimentService"
    name = f"tenants/{TENANT}/experiments/split-v1"
    progress.heading("Left running, with traffic; Ctrl-C ends it. Try (grpcurl: make tools):")
    for line in (
        f"{call} {stack.control_address} list",
        f'{call} -d \'{{"parent": "tenants/{TENANT}"}}\' {stack.control_address} '
        f"{service}/ListExperiments",
        f'{call} -d \'{{"name": "{name}"}}\' {stack.control_address} '
        f"{service}/GetExperimentResults",
        f'{call} -d \'{{"parent": "tenants/{TENANT}"}}\' {stack.control_address} '
        f"{service}/WatchExperiments",
        f'{call} -d \'{{"name": "{name}"}}\' {stack.control_address} {service}/RollbackExperiment',
        f"curl -s http://{stack.control_metrics_address}/metrics",
        f"curl -si -H 'host: digits.demo' -H 'x-user-id: me' "
        f"http://{stack.envoy_address}{INFER_PATH.removesuffix('/infer')}",
    ):
        progress.terminal.print(f"  {line}", soft_wrap=True, highlight=False, markup=False)
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            traffic.begin()  # a new ledger every minute: nobody reads it any more
            await asyncio.sleep(60)


async def run(
    root: Path, *, only: Sequence[int], keep: bool, terminal: Terminal, jaeger: str = ""
) -> int:
    """Play the demo; answers the exit code."""
    progress = Progress(terminal)
    stack = Stack(root, jaeger=jaeger)
    loop, begin_s = asyncio.get_running_loop(), time.monotonic()
    current = asyncio.current_task()
    assert current is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, current.cancel)
    progress.heading(
        f"Turnout demo: handwritten digits, {USERS:,} users, at most {RATE_PER_S_MAX} requests/s"
    )
    try:
        await _start(stack, progress)
        return await _with_company(stack, progress, only=only, keep=keep, begin_s=begin_s)
    except StartFailure as error:
        terminal.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return EXIT_NOT_STARTED
    except asyncio.CancelledError:
        terminal.print("interrupted; everything is being stopped")
        return EXIT_INTERRUPTED
    finally:
        stack.stop()


def _conclude(
    root: Path, acts: list[ActResult], only: Sequence[int], terminal: Terminal, took_s: float
) -> int:
    write_summary(root / "summary.json", acts)
    print_summary(terminal, acts)
    requests = sum(act.requests for act in acts)
    enough = requests > REQUESTS_MIN or len(only) < len(ACTS)
    if not enough:
        terminal.print(f"only {requests:,} requests, more than {REQUESTS_MIN:,} are wanted")
    right = enough and len(acts) == len(only) and all(act.ok for act in acts)
    terminal.print(
        f"{requests:,} requests in {took_s:.0f} s, {sum(act.failed for act in acts)} failed; "
        + ("every act ended as it must" if right else "NOT every act ended as it must")
        + f"; {_shown(root / 'summary.json')}",
        highlight=False,
        soft_wrap=True,
    )
    return 0 if right else EXIT_WRONG


def _shown(path: Path) -> Path:
    """Relative to the working directory when it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _acts(text: str) -> list[int]:
    numbers = sorted({int(part) for part in text.split(",")})
    if not numbers or not set(numbers) <= set(range(1, len(ACTS) + 1)):
        raise argparse.ArgumentTypeError(f"acts are 1 to {len(ACTS)}")
    return numbers


def main() -> int:
    """Parse the command line and play."""
    parser = argparse.ArgumentParser(prog="make demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--keep", action="store_true", help="leave it running until Ctrl-C")
    parser.add_argument(
        "--acts",
        type=_acts,
        default=list(range(1, len(ACTS) + 1)),
        help="only these, as 1,3 (acts 3 to 7 expect act 2)",
    )
    parser.add_argument("--jaeger", default="", help="HOST:PORT (OTLP/gRPC) that gets all spans")
    parser.add_argument("--root", type=Path, default=Path(".turnout/demo"))
    options = parser.parse_args()
    width = shutil.get_terminal_size((100, 24)).columns
    terminal = Terminal(width=width, highlight=False)
    return asyncio.run(
        run(
            options.root.resolve(),
            only=options.acts,
            keep=options.keep,
            terminal=terminal,
            jaeger=options.jaeger,
        )
    )
