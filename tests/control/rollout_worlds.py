"""Runs, policies and evidence for the rollout's tests: healthy unless a test says otherwise."""

from __future__ import annotations

import math
from dataclasses import replace

from control.rollout.decide import Command, apply_command
from control.rollout.policy import GuardrailPolicy, Policy, StepPolicy
from control.rollout.run import Run
from control.rollout.seen import LaneState, Seen, SidecarSeen, Sketch, VariantSeen, WindowSeen
from control.rollout.words import Gate, Input, Kind, Phase
from turnout.contract import LATENCY_SKETCH_GAMMA

START_MS = 1_700_000_000_000
DWELL_MS = 60_000
CONTROL, V2 = "control", "v2"


def split(v2_ppm: int) -> dict[str, int]:
    """Control and v2."""
    return {CONTROL: 1_000_000 - v2_ppm, V2: v2_ppm}


def shadow_step() -> StepPolicy:
    return StepPolicy(
        Phase.SHADOW, split(0), shadow_variant=V2, shadow_ppm=1_000_000, dwell_ms=DWELL_MS
    )


def canary_step(v2_ppm: int = 50_000, checks: tuple[str, ...] = ("error_rate",)) -> StepPolicy:
    return StepPolicy(Phase.CANARY, split(v2_ppm), dwell_ms=DWELL_MS, checks=checks)


def ab_step(v2_ppm: int = 500_000) -> StepPolicy:
    return StepPolicy(Phase.AB, split(v2_ppm))


def policy(*steps: StepPolicy, promote: bool = True, **changes: object) -> Policy:
    """Control and v2 over these steps (default: one canary of 5 %)."""
    made = Policy(
        CONTROL,
        (V2,),
        steps or (canary_step(),),
        guardrails=(GuardrailPolicy("error_rate"),),
        promote_on_finish=promote,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def started(of: Policy, *, last_epoch: int = 0) -> Run:
    """The run just after START."""
    command = Command(Input.START, "alice", revision=1, last_epoch=last_epoch)
    return apply_command(Run("fraud-v2"), of, Seen(), command, now_ms=START_MS).after


def sidecar(now_ms: int, *, gate: Gate = Gate.OPEN, connected: bool = True) -> SidecarSeen:
    waiting = ("turnout.fraud.v2",) if gate is Gate.CLOSED else ()
    return SidecarSeen("node-1", connected, now_ms, gate, waiting)


def sketch(value_ms: float, count: int) -> Sketch:
    """`count` answers that all took about `value_ms`."""
    index = math.ceil(math.log(value_ms) / math.log(LATENCY_SKETCH_GAMMA))
    return Sketch(((index, count),), sum_ms=value_ms * count)


def arm(requests: int, errors: int = 0, **changes: object) -> VariantSeen:
    """A variant whose every request was decided, logged and took about 10 ms."""
    made = VariantSeen(
        decided=requests, requests=requests, errors=errors, latency=sketch(10.0, requests)
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def healthy(now_ms: int, *, requests: int = 1_000, **changes: object) -> Seen:
    """One fresh sidecar, no errors, 5 % of the traffic to v2."""
    made = Seen(
        variants={CONTROL: arm(19 * requests), V2: arm(requests)},
        window={CONTROL: WindowSeen(19 * requests), V2: WindowSeen(requests)},
        sidecars=(sidecar(now_ms),),
        snapshot_version=7,
        code_version="1.2.3",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def crossed_lane(kind: Kind = Kind.ERROR, variant: str = V2) -> LaneState:
    return LaneState(
        kind=kind,
        variant=variant,
        block=3,
        log_e_value=14.557,
        log_threshold=9.197,
        candidate_events=38,
        control_events=23,
        theta=0.2,
        crossed=True,
    )
