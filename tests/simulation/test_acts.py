"""Whole rollouts, second by second: requests in, the real lanes and decisions, the ending out.

A good model walks its steps to PROMOTED; one that fails and one that answers wrongly are rolled
back for the right reason; nothing but the requests differs between them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from control.rollout.decide import Command, Decision, apply_command, decide, replay
from control.rollout.lanes import SLOT_MS, BlockTracker, assess_all
from control.rollout.policy import GuardrailPolicy, Margin, Policy, StepPolicy
from control.rollout.run import Run
from control.rollout.seen import Seen, SidecarSeen, Sketch, VariantSeen, WindowSeen
from control.rollout.words import Action, Input, Kind, Phase, Reason, State
from control.snapshot import allocate
from turnout.contract import BUCKET_COUNT

SEED = 20260722
START_MS = 1_700_000_000_000
USERS = 3_000
REQUESTS_PER_S = 200
LABEL_DELAY_S = 5
CONTROL = "control"


@dataclass
class Counts:
    """One variant in one epoch."""

    requests: int = 0
    errors: int = 0
    labelled: int = 0
    correct: int = 0
    shadow: int = 0


@dataclass
class Act:
    """A control plane with one experiment and no network: counts, trackers, run."""

    policy: Policy
    candidate: str
    error_rate: dict[str, float]
    accuracy: dict[str, float]
    run: Run = field(init=False)
    counts: dict[tuple[int, str], Counts] = field(default_factory=dict)
    trackers: dict[int, BlockTracker] = field(default_factory=dict)
    labels: list[tuple[float, int, int, str, int, bool]] = field(default_factory=list)
    exposed: int = 0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(SEED)
        # A user's bucket, as the sidecar's hash would give it.
        self.bucket = self.random.integers(0, BUCKET_COUNT, USERS)
        self.run = Run("act")
        self.obey(Command(Input.START, "tester", revision=1), START_MS)

    def obey(self, command: Command, now_ms: int) -> None:
        self.take(apply_command(self.run, self.policy, Seen(), command, now_ms=now_ms))

    def take(self, decision: Decision) -> None:
        run = decision.after
        if decision.new_epoch:
            allocation = allocate(run.allocation, run.split_ppm, control=CONTROL)
            run = replace(run, allocation=allocation)
        self.run = run

    def variant_of(self, user: int) -> str:
        for name, ranges in self.run.allocation.items():
            if any(start <= self.bucket[user] < end for start, end in ranges):
                return name
        raise AssertionError("ranges tile the buckets")

    def serve(self, now_s: int) -> None:
        """One second of requests; labels of those five seconds ago."""
        now_ms = START_MS + now_s * 1000
        epoch = self.run.epoch
        slot = (now_ms - self.run.epoch_start_ms) // SLOT_MS
        tracker = self.trackers.setdefault(epoch, BlockTracker())
        for user in self.random.integers(0, USERS, REQUESTS_PER_S):
            name = self.variant_of(int(user))
            counts = self.counts.setdefault((epoch, name), Counts())
            counts.requests += 1
            self.exposed += name == self.candidate
            if self.run.shadow_variant:
                key = (epoch, self.run.shadow_variant)
                self.counts.setdefault(key, Counts()).shadow += 1
            if self.random.random() < self.error_rate[name]:
                counts.errors += 1
                tracker.add(Kind.ERROR, slot, name, (int(user),))
            else:
                right = bool(self.random.random() < self.accuracy[name])
                self.labels.append((now_s + LABEL_DELAY_S, epoch, slot, name, int(user), right))
        self.join(now_s)

    def join(self, now_s: int) -> None:
        while self.labels and self.labels[0][0] <= now_s:
            _, epoch, slot, name, user, right = self.labels.pop(0)
            counts = self.counts[epoch, name]
            counts.labelled += 1
            counts.correct += right
            if not right:
                self.trackers[epoch].add(Kind.WRONG, slot, name, (user,))

    def seen(self, now_ms: int) -> Seen:
        counts = {
            name: self.counts.get((self.run.epoch, name), Counts())
            for name in (CONTROL, self.candidate)
        }
        return Seen(
            variants={
                name: VariantSeen(
                    decided=c.requests,
                    requests=c.requests,
                    errors=c.errors,
                    latency=Sketch(((200, c.requests),) if c.requests else ()),
                    labelled=c.labelled,
                    correct=c.correct,
                    shadow_requests=c.shadow,
                )
                for name, c in counts.items()
            },
            window={name: WindowSeen(c.requests, c.errors) for name, c in counts.items()},
            lanes=assess_all(self.run, self.policy, self.trackers, now_ms=now_ms),
            sidecars=(SidecarSeen("node", connected=True, last_seen_unix_ms=now_ms),),
        )

    def play(self, at_most_s: int) -> tuple[Decision, int]:
        """Second by second until the experiment ends."""
        for now_s in range(1, at_most_s):
            self.serve(now_s)
            now_ms = START_MS + now_s * 1000
            decision = decide(self.run, self.policy, self.seen(now_ms), now_ms=now_ms)
            if decision.record:
                assert replay(decision.inputs_json).to_json() == decision.to_json()
            self.take(decision)
            if not self.run.live:
                return decision, now_s
        raise AssertionError(f"still {self.run.state} after {at_most_s} s")


def split(name: str, ppm: int) -> dict[str, int]:
    return {CONTROL: BUCKET_COUNT - ppm, name: ppm}


def canary(name: str, ppm: int, dwell_s: int, *checks: str) -> StepPolicy:
    return StepPolicy(
        Phase.CANARY, split(name, ppm), dwell_ms=dwell_s * 1000, checks=checks or ("error_rate",)
    )


def policy(name: str, *steps: StepPolicy) -> Policy:
    return Policy(
        CONTROL,
        (name,),
        steps,
        guardrails=(
            GuardrailPolicy("error_rate", Margin(absolute=0.02)),
            GuardrailPolicy("latency_p95", Margin(absolute=50.0), 2_000.0),
            GuardrailPolicy("accuracy", Margin(absolute=0.03)),
        ),
        promote_on_finish=True,
        kinds=(Kind.ERROR, Kind.SLOW, Kind.WRONG),
        slow_after_ms=2_000.0,
    )


def test_good_model_is_promoted_when_it_walks_all_its_steps() -> None:
    shadow = StepPolicy(Phase.SHADOW, split("v2", 0), "v2", BUCKET_COUNT, 10_000)
    act = Act(
        policy(
            "v2",
            shadow,
            canary("v2", 50_000, 15),
            canary("v2", 250_000, 15, "error_rate", "latency_p95"),
            canary("v2", 500_000, 15, "error_rate", "latency_p95", "accuracy"),
        ),
        "v2",
        error_rate={CONTROL: 0.0, "v2": 0.0},
        accuracy={CONTROL: 0.94, "v2": 0.96},
    )
    decision, seconds = act.play(300)
    print(f"promoted after {seconds} s: {decision.sentence}")
    assert (decision.action, act.run.state, act.run.winner) == (
        Action.PROMOTE,
        State.PROMOTED,
        "v2",
    )
    assert act.run.epoch == 4
    epochs = Counter(epoch for epoch, _ in act.counts)
    assert len(epochs) == 4


def test_failing_model_is_rolled_back_within_seconds_when_it_has_5_percent() -> None:
    act = Act(
        policy("v3", canary("v3", 50_000, 60)),
        "v3",
        error_rate={CONTROL: 0.0, "v3": 0.2},
        accuracy={CONTROL: 0.94, "v3": 0.94},
    )
    decision, seconds = act.play(60)
    print(f"rolled back after {seconds} s, {act.exposed} requests: {decision.sentence}")
    assert (decision.reason, act.run.state) == (Reason.LANE_ERROR, State.ROLLED_BACK)
    assert decision.sentence.startswith("rolled back v3: error_rate: ")
    assert seconds <= 15


@pytest.mark.parametrize("accuracy", [0.75, 0.85])
def test_wrong_model_is_rolled_back_for_its_accuracy_when_all_it_answers_is_200(
    accuracy: float,
) -> None:
    act = Act(
        policy("v4", canary("v4", 200_000, 60, "error_rate", "accuracy")),
        "v4",
        error_rate={CONTROL: 0.0, "v4": 0.0},
        accuracy={CONTROL: 0.94, "v4": accuracy},
    )
    decision, seconds = act.play(120)
    print(f"rolled back after {seconds} s, {act.exposed} requests: {decision.sentence}")
    assert (decision.reason, act.run.state) == (Reason.LANE_WRONG, State.ROLLED_BACK)
    assert "accuracy" in act.run.reason
    assert seconds <= 60
