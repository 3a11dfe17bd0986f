"""The seven acts: what is tried, and what must be true at the end of each."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import grpc

from envoy.demo.console import state_name
from envoy.demo.ledger import Line
from envoy.demo.processes import wait_for
from envoy.demo.result import Row
from envoy.demo.scene import Scene
from envoy.demo.stack import TENANT
from turnout.v1alpha1.experiment_pb2 import (
    REASON_BETTER,
    REASON_GUARDRAIL,
    REASON_LANE_WRONG,
    REASON_STRATUM_HARM,
    Experiment,
    State,
)

# A request that was on its way while the split changed may still carry the old variant.
SETTLE_S: Final = 1.5
ZERO_WITHIN_S: Final = 30.0
COPIES_MIN: Final = 500
# As the resource file strata.yaml calls the group of users.
STRATUM: Final = "thin-pens"
LOGGED_S: Final = 3.0
WORKERS_AWAY_S: Final = 4.0
CONTROL_AWAY_S: Final = 6.0

Act = Callable[[Scene], Awaitable[None]]


def _ended(experiment: Experiment) -> bool:
    return experiment.status.state not in (State.STATE_DRAFT, State.STATE_RUNNING)


async def _take_end(scene: Scene) -> Experiment:
    """The experiment as it stands; its state and reason go into the result."""
    experiment = await scene.console.get(scene.experiment)
    scene.result.final_state = state_name(experiment.status.state)
    scene.result.reason = experiment.status.reason
    return experiment


# -- Act 1 -----------------------------------------------------------------------------------------


async def shadow(scene: Scene) -> None:
    """Every request is copied to v2; users are served by v1 alone."""
    result = scene.result
    await scene.open("shadow.yaml")
    await _watch_copies(scene)
    await scene.traffic.end()
    sent = await _count_copies(scene)
    result.claim(
        "Turnout counted every copy that Envoy sent to v2",
        scene.copies == sent and sent > 0,
        f"{scene.copies} of {sent}",
    )
    row = (await scene.variant_results())["v2"]
    stopped = await scene.console.stop(scene.experiment, "the shadow was watched long enough")
    scene.progress.event(f"{scene.experiment}: {state_name(stopped.status.state)}")
    await _take_end(scene)
    result.claim("the shadow ended as STOPPED", result.final_state == "STOPPED")
    seen = scene.ledger.served_by("2")
    result.claim("no user saw an answer of v2", not seen, f"{scene.ledger.users()} users")
    result.claim("no copy failed", row.shadow_errors == 0, row.shadow_errors or "")
    result.claim(
        "labels made the copies' accuracy known",
        row.shadow_labelled > 0,
        f"{row.shadow_correct} of {row.shadow_labelled} right",
    )
    await scene.close()
    result.variants["v2"] = Row(
        requests=scene.copies,
        errors=row.shadow_errors,
        accuracy=row.shadow_correct / row.shadow_labelled if row.shadow_labelled else None,
        p50_ms=None,
        p95_ms=row.shadow_latency_p95_ms or None,
    )


async def _watch_copies(scene: Scene) -> None:
    """Let traffic flow until some hundred copies are counted, and for the step's time."""

    async def watched() -> bool:
        scene.stack.check()
        copies = (await scene.variant_results())["v2"].shadow_requests
        scene.status = f"shadow, {copies} copies counted"
        return copies >= COPIES_MIN

    async with scene.progress.live(scene.line):
        await wait_for(watched, timeout_s=40, what=f"{COPIES_MIN} copies to be counted")
    # The step asks for 12 s; the labels of its last requests come 3 s later.
    await scene.flow(14)


async def _count_copies(scene: Scene) -> int:
    """Wait until Turnout has counted what Envoy sent to v2; answers Envoy's count."""
    scene.shadowed, sent = "2", 0

    async def counted() -> bool:
        nonlocal sent
        scene.copies = (await scene.variant_results())["v2"].shadow_requests
        sent = (await scene.upstream_requests())["2"]
        return scene.copies == sent

    with contextlib.suppress(TimeoutError):  # the claim says how they differ
        await wait_for(counted, timeout_s=10, what="Turnout and Envoy to agree on the copies")
    return sent


# -- Act 2 -----------------------------------------------------------------------------------------


async def promotion(scene: Scene) -> None:
    """v2 is ramped up and becomes the baseline; then the sidecar's workers are killed."""
    result = scene.result
    await scene.open("canary.yaml")
    await scene.until(_ended, timeout_s=120, what="the promotion")
    await _take_end(scene)
    result.claim("v2 was promoted", result.final_state == "PROMOTED")
    back = _went_back(scene.ledger.lines, "v2")
    result.claim("no user left v2 while it grew", not back, back[:3] if back else "")
    await _everyone_on(scene, "2")
    await _without_workers(scene)
    await scene.close()


def _went_back(lines: list[Line], candidate: str) -> list[str]:
    """Users who were on the candidate and later, stamped, were not."""
    first: dict[str, float] = {}
    back = set()
    for line in sorted(lines, key=lambda line: line.sent_s):
        if line.variant == candidate:
            first.setdefault(line.user, line.done_s)
        elif line.variant and line.sent_s > first.get(line.user, float("inf")) + SETTLE_S:
            back.add(line.user)
    return sorted(back)


async def _everyone_on(scene: Scene, version: str) -> None:
    """Wait until Envoy's default route is a version's: half a second of answers by it alone."""

    async def switched() -> bool:
        since_s = time.monotonic() - 0.5
        recent = [line.model for line in scene.ledger.lines[-200:] if line.sent_s > since_s]
        return len(recent) > 20 and set(recent) == {version}

    async with scene.progress.live(scene.line):
        took_s = await wait_for(switched, timeout_s=20, what=f"v{version} to serve everyone")
    scene.progress.event(f"v{version} serves everyone, {took_s:.1f} s after the promotion was seen")


async def _without_workers(scene: Scene) -> None:
    """Kill both workers and keep the supervisor from starting new ones for a while.

    Not before the log entries of the last stamped requests have been counted: what a killed worker
    had not passed on is lost (and would be reported as loss).
    """
    await scene.flow(LOGGED_S)
    scene.stack.signal_supervisor(signal.SIGSTOP)
    try:
        pids = scene.stack.worker_pids()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        begin_s = time.monotonic()
        scene.progress.event(f"both workers killed (pids {', '.join(map(str, pids))})", style="red")
        await scene.flow(WORKERS_AWAY_S)
        end_s = time.monotonic()
    finally:
        scene.stack.signal_supervisor(signal.SIGCONT)
    lines = [line for line in scene.ledger.lines if begin_s < line.sent_s < end_s]
    by_v2 = sum(line.model == "2" and not line.failed for line in lines)
    scene.result.claim(
        "with both workers dead everyone was served by v2",
        len(pids) == 2 and len(lines) > 100 and by_v2 == len(lines),
        f"{by_v2} of {len(lines)} requests, {scene.ledger.users(lines)} users",
    )

    async def back() -> bool:
        return len(set(scene.stack.worker_pids()) - set(pids)) == 2

    await wait_for(back, timeout_s=20, what="the workers to come back")
    scene.progress.event("the supervisor started new workers")


# -- Acts 3 and 4 ----------------------------------------------------------------------------------


async def broken(scene: Scene) -> None:
    """v3 answers 500 on some inputs: rolled back for errors."""
    await _rolled_back(scene, "broken.yaml", version="3")
    errors = scene.result.variants["v3"].errors
    scene.result.claim("v3 failed requests itself", errors > 0, errors)
    scene.result.claim("the reason names errors", "error" in scene.result.reason.lower())


async def wrong(scene: Scene) -> None:
    """v4 answers 200 and is wrong: rolled back for accuracy."""
    await _rolled_back(scene, "wrong.yaml", version="4")
    decision = (await scene.console.get(scene.experiment)).status.last_decision
    scene.result.claim(
        "the reason names accuracy",
        "accuracy" in scene.result.reason.lower()
        and decision.reason in (REASON_LANE_WRONG, REASON_GUARDRAIL),
    )
    scene.result.claim("v4 answered every request with 200", not scene.result.variants["v4"].errors)


async def _rolled_back(scene: Scene, resource: str, *, version: str) -> None:
    result = scene.result
    await scene.open(resource)
    await scene.until(_ended, timeout_s=90, what="the rollback")
    await scene.flow(3)  # so that a late request to the bad model would be seen
    await _take_end(scene)
    result.claim(f"v{version} was rolled back", result.final_state == "ROLLED_BACK")
    await scene.close(excused=version if version == "3" else None, bad=version)
    zero_s = result.seconds_to_zero
    result.claim(
        f"v{version} had no traffic within {ZERO_WITHIN_S:.0f} s of its first bad answer",
        zero_s is not None and zero_s <= ZERO_WITHIN_S,
        "never seen" if zero_s is None else f"{zero_s:.1f} s",
    )
    last_s = scene.ledger.last_served_s(version)
    after = [line for line in scene.ledger.lines if last_s is not None and line.sent_s > last_s]
    result.claim(
        f"v2 served everyone after that, for {SETTLE_S} s and more",
        bool(after)
        and after[-1].sent_s - after[0].sent_s > SETTLE_S
        and all(line.model == "2" for line in after),
        f"{len(after)} requests",
    )


# -- Act 5 -----------------------------------------------------------------------------------------


async def outage(scene: Scene) -> None:
    """The control plane is killed and comes back; nobody's variant changes."""
    result = scene.result
    await scene.open("split.yaml")
    await scene.until(
        lambda experiment: experiment.status.state == State.STATE_RUNNING,
        timeout_s=10,
        what="the split to run",
    )
    await scene.flow(6)
    before = await scene.console.get(scene.experiment)
    scene.stack.kill("control")
    begin_s = time.monotonic()
    scene.progress.event("the control plane is killed", style="red")
    await scene.flow(CONTROL_AWAY_S)
    end_s = time.monotonic()
    await scene.stack.start_control()
    scene.progress.event("the control plane runs again")
    await _sidecar_back(scene)
    await scene.flow(4)
    after = await _take_end(scene)
    result.reason = result.reason or "runs on after the control plane came back"
    lines = [line for line in scene.ledger.lines if begin_s < line.sent_s < end_s]
    stamped = sum(bool(line.variant) for line in lines)
    split = sum(line.variant == "v1" for line in lines) / max(1, stamped)
    result.claim(
        "the split went on without the control plane",
        # 30 % of 2,000 users; 6 s show some 900 of them: 0.2 to 0.4 is beyond 6 sigma.
        stamped > 100 and stamped > 0.9 * len(lines) and 0.2 < split < 0.4,
        f"v1 {split:.0%} of {stamped} stamped of {len(lines)} requests",
    )
    moved = scene.ledger.moved()
    result.claim("no user changed variant", not moved, moved[:3] if moved else "")
    result.claim(
        "the experiment runs on, in the same epoch",
        result.final_state == "RUNNING" and before.status.epoch == after.status.epoch,
        f"epoch {before.status.epoch} and {after.status.epoch}",
    )
    await scene.close()


async def _sidecar_back(scene: Scene) -> None:
    async def connected() -> bool:
        try:
            return any(sidecar.connected for sidecar in await scene.console.sidecars())
        except grpc.aio.AioRpcError:
            return False

    async with scene.progress.live(scene.line):
        took_s = await wait_for(connected, timeout_s=45, what="the sidecar to connect again")
    scene.progress.event(f"the sidecar is connected again after {took_s:.1f} s")


# -- Act 7 -----------------------------------------------------------------------------------------


async def comparison(scene: Scene) -> None:
    """v5 is compared with v2 until there is a verdict by labels, and becomes the baseline."""
    result = scene.result
    await _free_the_layer(scene)
    await scene.open("ab.yaml")
    await scene.until(_ended, timeout_s=120, what="the verdict")
    ended = await _take_end(scene)
    decision = ended.status.last_decision
    result.claim("v5 was promoted by its verdict", decision.reason == REASON_BETTER)
    result.claim("the reason names accuracy", "v5 is better: accuracy" in result.reason)
    found = await scene.console.results(scene.experiment)
    told = next((c for c in found.comparisons if c.metric == "accuracy"), None)
    result.claim(
        "the confidence sequence of the difference is above 0",
        told is not None and told.low > 0,
        f"{told.difference:+.3f} [{told.low:+.3f}, {told.high:+.3f}]" if told else "",
    )
    await _everyone_on(scene, "5")
    await scene.close()


# -- Act 6: one stratum ----------------------------------------------------------------------------


def _held(experiment: Experiment) -> bool:
    return _ended(experiment) or experiment.status.last_decision.reason == REASON_STRATUM_HARM


async def stratum(scene: Scene) -> None:
    """v6 is better than v2 but for one group of users: held, then stopped by hand."""
    result = scene.result
    await _free_the_layer(scene)
    await scene.open("strata.yaml")
    await scene.until(_held, timeout_s=90, what="the stratum's harm")
    held = await scene.console.get(scene.experiment)
    sentence = held.status.last_decision.sentence
    result.claim("v6 was held, not promoted", held.status.state == State.STATE_RUNNING)
    result.claim(
        "the reason names stratum and metric",
        held.status.last_decision.reason == REASON_STRATUM_HARM
        and "accuracy" in sentence
        and STRATUM in sentence,
        sentence,
    )
    found = await scene.console.results(scene.experiment)
    told = {c.stratum: c for c in found.comparisons if c.metric == "accuracy"}
    result.claim(
        "everywhere else v6 is no worse",
        "(rest)" in told and told["(rest)"].difference > 0,
        f"{told['(rest)'].difference:+.3f}" if "(rest)" in told else "",
    )
    await _show_strata(scene)
    if held.status.state == State.STATE_RUNNING:
        await scene.console.stop(scene.experiment, f"held: {sentence}")
    await _take_end(scene)
    result.claim("it ended as STOPPED", result.final_state == "STOPPED")
    await scene.close()
    result.claim("v6 answered every request with 200", not result.variants["v6"].errors)


async def _show_strata(scene: Scene) -> None:
    """What `turnout results` says of the strata."""
    control = ("--control", scene.stack.control_address, "--tenant", TENANT)
    said = await scene.stack.command("results", "results", scene.experiment, *control)
    for line in said.splitlines():
        if line.startswith(("METRIC", "accuracy  ")) or "accuracy from" in line:
            scene.progress.terminal.print(
                f"  {line.rstrip()}", soft_wrap=True, markup=False, highlight=False
            )


async def _free_the_layer(scene: Scene) -> None:
    """End the split that act 5 left running, if it was played: two never route one request."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        stopped = await scene.console.stop("split-v1", "the next act needs the traffic")
        scene.progress.event(f"split-v1: {state_name(stopped.status.state)}")


class Part(NamedTuple):
    """An act on the playbill.

    Attributes:
        play: Plays it.
        name, title: As in `ActResult`.
        experiment: Id of its experiment.
        baseline: Variant that serves what is not stamped.
    """

    play: Act
    name: str
    title: str
    experiment: str
    baseline: str


ACTS: Final = (
    Part(shadow, "shadow", "1 shadow: v2 gets copies", "shadow-v2", "v1"),
    Part(promotion, "canary v2", "2 canary v2: promoted", "canary-v2", "v1"),
    Part(broken, "canary v3", "3 canary v3: breaks", "canary-v3", "v2"),
    Part(wrong, "canary v4", "4 canary v4: is wrong", "canary-v4", "v2"),
    Part(outage, "outage", "5 control plane killed", "split-v1", "v2"),
    Part(stratum, "ab v6", "6 A/B test v6: thin pens", "ab-v6", "v2"),
    Part(comparison, "ab v5", "7 A/B test v5: better", "ab-v5", "v2"),
)
