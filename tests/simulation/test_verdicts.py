"""A/B tests from deltas and labels to decisions, with the clock driven: the real evidence and loop.

Users differ (each has its own accuracy and comes back), so that requests are not independent; the
short form runs in `make test`, the full one (marked soak) in `make soak`, all seeded. Beside it the
usual way: a z-test on requests, looked at as often, which must fail here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from control.evidence import Evidence
from control.outcomes import Joined, Observation
from control.rollout.cells import bucket_of
from control.rollout.decide import Command, Decision, apply_command, decide, replay
from control.rollout.policy import GuardrailPolicy, Margin, Policy, PrimaryPolicy, StepPolicy
from control.rollout.reduce import reduce
from control.rollout.run import Run
from control.rollout.seen import Seen, SidecarSeen
from control.rollout.words import Input, Phase, Reason, State
from control.snapshot import allocate
from tests.control import deltas
from turnout.contract import BUCKET_COUNT

SEED = 20261122
START_MS = 1_800_000_000_000
USERS = 1_500
LOOK_MS = 60_000
REQUESTS = 200  # between two looks
CONTROL, V2 = "control", "v2"
Accuracy = Callable[[str, int], float]


def split(ppm: int) -> dict[str, int]:
    return {CONTROL: BUCKET_COUNT - ppm, V2: ppm}


AB = StepPolicy(Phase.AB, split(500_000), minimum_units=100)
RAMP = tuple(
    StepPolicy(Phase.CANARY, split(ppm), dwell_ms=10 * LOOK_MS, checks=("error_rate",))
    for ppm in (50_000, 200_000)
)


def policy(*steps: StepPolicy, strata: tuple[str, ...] = ()) -> Policy:
    return Policy(
        CONTROL,
        (V2,),
        steps or (AB,),
        guardrails=(GuardrailPolicy("error_rate", Margin(absolute=0.02)),),
        promote_on_finish=True,
        primary=PrimaryPolicy("accuracy", Margin(absolute=0.01)),
        strata=strata,
    )


@dataclass
class Trial:
    """One experiment, its users and its evidence."""

    policy: Policy
    accuracy: Accuracy
    seed: int
    drift: float = 0.0  # of both arms' accuracy, a look
    run: Run = field(init=False)
    looks: int = 0
    naive: float = 0.0  # the greatest z of requests at any look, better for v2

    def __post_init__(self) -> None:
        self.random = np.random.default_rng([SEED, self.seed])
        self.place = self.random.integers(0, BUCKET_COUNT, USERS)
        self.unit = self.random.integers(0, 1 << 63, USERS, dtype=np.int64)
        # Each user's own ease: on the scale of log odds, as much as the mean's own.
        self.ease = self.random.normal(0.0, 1.5, USERS)
        self.stratum = (self.random.random(USERS) < 0.2).astype(int)
        self.evidence = Evidence()
        self.run = Run("x")
        self.counts = {CONTROL: [0, 0], V2: [0, 0]}
        start = Command(Input.START, "tester", revision=1)
        self.take(apply_command(self.run, self.policy, Seen(), start, now_ms=START_MS))

    def take(self, decision: Decision) -> None:
        run = decision.after
        if decision.new_epoch:
            allocation = allocate(run.allocation, run.split_ppm, control=CONTROL)
            run = replace(run, allocation=allocation)
            self.evidence.begin_epoch("x", run.epoch, run.epoch_start_ms)
        self.run = run

    def serve(self, now_ms: int) -> None:
        """The requests and labels between two looks."""
        self.looks += 1
        cells: dict[tuple[str, int], dict[int, int]] = {}
        units: dict[tuple[str, int], set[int]] = {}
        seen = []
        for user in self.random.integers(0, USERS, REQUESTS).tolist():
            name = self.variant_of(user)
            stratum = int(self.stratum[user]) if self.policy.strata else 0
            unit = int(self.unit[user])
            key = (name, stratum)
            counted = cells.setdefault(key, {})
            counted[bucket_of(unit)] = counted.get(bucket_of(unit), 0) + 1
            units.setdefault(key, set()).add(unit)
            right = self.is_right(name, stratum, user)
            self.counts[name][0] += 1
            self.counts[name][1] += right
            positive = bool(self.random.random() < 0.5)
            seen.append(
                Observation(
                    "x", self.run.epoch, name, stratum, unit, False, right,
                    positive == right, positive, now_ms, b"",
                )
            )  # fmt: skip
        epoch = self.run.epoch
        counts = []
        for (name, stratum), sums in cells.items():
            requests = sum(sums.values())
            count = deltas.count(name, experiment="x", epoch=epoch, at_ms=now_ms, requests=requests)
            count.stratum = stratum
            counts.append(count)
        batch = deltas.batch(
            self.looks,
            counts=counts,
            cells=[
                deltas.cell(name, sums, experiment="x", epoch=epoch, stratum=stratum)
                for (name, stratum), sums in cells.items()
            ],
            units=[
                deltas.sampled(name, sorted(some), experiment="x", epoch=epoch, stratum=stratum)
                for (name, stratum), some in units.items()
            ],
        )
        self.evidence.add_delta(batch, now_ms)
        self.evidence.add_joined(Joined(now_ms, seen))

    def is_right(self, name: str, stratum: int, user: int) -> bool:
        mean = self.accuracy(name, stratum)
        odds = math.log(mean / (1 - mean)) + self.drift * self.looks + float(self.ease[user])
        return bool(self.random.random() < 1 / (1 + math.exp(-odds)))

    def variant_of(self, user: int) -> str:
        for name, ranges in self.run.allocation.items():
            if any(start <= self.place[user] < end for start, end in ranges):
                return name
        raise AssertionError("ranges tile the buckets")

    def look(self, now_ms: int) -> Decision:
        """What the loop decides now; its record replays."""
        cells = self.evidence.cells(self.run, self.policy)
        seen = self.evidence.seen(
            self.run,
            self.policy,
            now_ms=now_ms,
            sidecars=(SidecarSeen("node", connected=True, last_seen_unix_ms=now_ms),),
        )
        seen = replace(seen, looks=reduce(cells, self.policy))
        decision = decide(self.run, self.policy, seen, now_ms=now_ms)
        if decision.record:
            assert replay(decision.inputs_json).to_json() == decision.to_json()
        return decision

    def play(self, looks: int) -> Decision:
        """Until it ends, or so many looks."""
        decision = None
        for number in range(1, looks + 1):
            now_ms = START_MS + number * LOOK_MS
            self.serve(now_ms)
            self.note_naive()
            decision = self.look(now_ms)
            self.take(decision)
            if not self.run.live:
                break
        assert decision is not None
        return decision

    def note_naive(self) -> None:
        (n_c, x_c), (n_t, x_t) = self.counts[CONTROL], self.counts[V2]
        if min(n_c, n_t) < 100:
            return
        pooled = (x_c + x_t) / (n_c + n_t)
        error = math.sqrt(max(pooled * (1 - pooled), 1e-9) * (1 / n_c + 1 / n_t))
        self.naive = max(self.naive, (x_t / n_t - x_c / n_c) / error)


def equal(name: str, stratum: int) -> float:
    return 0.8


def better(name: str, stratum: int) -> float:
    return 0.93 if name == V2 else 0.75


def worse_in_one(name: str, stratum: int) -> float:
    if stratum:
        return 0.4 if name == V2 else 0.9
    return 0.93 if name == V2 else 0.75


def test_equal_candidate_is_not_promoted_in_20_of_20_runs() -> None:
    promoted, naive = 0, 0
    for seed in range(20):
        trial = Trial(policy(), equal, seed)
        trial.play(60)
        promoted += trial.run.state is State.PROMOTED
        naive += trial.naive > 1.96
    print(f"A/A: {promoted} of 20 promoted; z of requests, looked at 60 times: {naive} of 20")
    assert promoted == 0
    # The usual way must fail in the same worlds: 20 of 20 right would be luck below 1e-3.
    assert naive >= 3


def test_better_candidate_is_promoted_in_all_runs() -> None:
    for seed in range(5):
        trial = Trial(policy(), better, seed)
        decision = trial.play(60)
        assert trial.run.state is State.PROMOTED, decision.sentence
        assert decision.reason is Reason.BETTER


def test_candidate_that_is_worse_in_one_stratum_is_never_promoted() -> None:
    for seed in range(5):
        trial = Trial(policy(strata=("new",)), worse_in_one, seed)
        decision = trial.play(40)
        assert trial.run.state is not State.PROMOTED
        assert decision.reason is Reason.STRATUM_HARM, decision.sentence
        assert "accuracy" in decision.sentence
        assert "new" in decision.sentence


def test_ramp_leads_to_the_verdict_when_the_base_rate_drifts() -> None:
    """Two stages and the A/B step: their evidence is one, by epoch strata."""
    trial = Trial(policy(*RAMP, AB), better, seed=3, drift=-0.02)
    decision = trial.play(80)
    assert trial.run.state is State.PROMOTED, decision.sentence
    assert trial.run.epoch == 3


@pytest.mark.soak
def test_equal_candidates_are_promoted_no_more_often_than_alpha_allows() -> None:
    """400 A/A ramps of sticky users with a drifting base rate; alpha / 2 is 2.5 %."""
    promoted, harmed = 0, 0
    for seed in range(400):
        trial = Trial(policy(*RAMP, AB), equal, 1_000 + seed, drift=-0.01)
        trial.play(80)
        promoted += trial.run.state is State.PROMOTED
        harmed += trial.run.state is State.ROLLED_BACK
    print(f"A/A ramps: {promoted} of 400 promoted, {harmed} rolled back")
    # 4.9 standard errors above 10 of 400.
    assert promoted <= 10 + 4.9 * math.sqrt(400 * 0.025 * 0.975)
    assert harmed <= 10 + 4.9 * math.sqrt(400 * 0.025 * 0.975)
