"""The bandit step: when it looks, what it learns, the next split, and what it decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control import snapshot
from control.model import (
    KnownMetrics,
    experiment_with_defaults,
    split_at,
    unimplemented_experiment,
    validate_experiment,
)
from control.rollout import bandit
from control.rollout.cells import Cell, CellKey, Cells, Epoch
from control.rollout.decide import Command, Decision, Refused, apply_command, decide, replay
from control.rollout.looks import ArmLook, Looks, Method, MetricLook
from control.rollout.policy import BanditPolicy, GuardrailPolicy, Margin, Policy, StepPolicy
from control.rollout.run import Run
from control.rollout.seen import ArmSeen, BanditSeen, Interval, Seen
from control.rollout.words import Action, Effect, Input, Phase, Reason, State
from control.stats.bandits import stratified_means
from tests.control import rollout_worlds as worlds
from tests.control.resources import EXPERIMENT, document, violations_of
from turnout.contract import BUCKET_COUNT, UNIT_BUCKETS
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec

EVERY_MS = 300_000
DAY_MS = 24 * 3_600_000
POLICY = BanditPolicy("thompson", "error_rate", 0.05, EVERY_MS, 100)


def bandit_step(**changes: object) -> StepPolicy:
    """A bandit of control and v2 for a day."""
    policy = replace(POLICY, **changes)  # type: ignore[arg-type]
    return StepPolicy(Phase.BANDIT, worlds.split(500_000), dwell_ms=DAY_MS, bandit=policy)


def running(*, promote: bool = True, **changes: object) -> tuple[Run, Policy]:
    """A bandit that has just begun, and its policy."""
    policy = worlds.policy(bandit_step(**changes), promote=promote)
    return worlds.started(policy), policy


def arms(control: float, v2: float, requests: int = 1_000) -> BanditSeen:
    """Two arms with these mean rewards."""
    x = np.array([[[control * requests], [v2 * requests]]])
    n = np.full((1, 2, 1), float(requests))
    return bandit.earnings(("control", "v2"), x, n, np.array([[0.5, 0.5]]))


def seen(now_ms: int, earned: BanditSeen | None, **changes: object) -> Seen:
    """Healthy, with these earnings."""
    return replace(worlds.healthy(now_ms), bandit=earned, **changes)  # type: ignore[arg-type]


def decided(run: Run, policy: Policy, at: Seen, now_ms: int) -> Decision:
    """The loop's decision, which replays to the byte when it is recorded."""
    decision = decide(run, policy, at, now_ms=now_ms)
    if decision.record:
        assert replay(decision.inputs_json).to_json() == decision.to_json()
    return decision


# -- When it looks ---------------------------------------------------------------------------------


@given(st.integers(10_000, DAY_MS), st.floats(1, 288))
def test_looks_are_few_and_grow_apart_when_a_step_is_long(every_ms: int, times: float) -> None:
    found = bandit.looks(every_ms, int(every_ms * times))
    assert len(found) <= bandit.LOOKS_MAX
    gaps = np.diff([0, *found])
    assert (gaps >= every_ms).all()
    assert (np.diff(gaps) >= -every_ms).all()  # whole multiples: rounding may take one back
    assert all(at_ms % every_ms == 0 for at_ms in found)
    assert all(at_ms < every_ms * times for at_ms in found)


# -- What it learns --------------------------------------------------------------------------------


def cells(epochs: dict[int, dict[str, tuple[int, int]]], **columns: str) -> Cells:
    """Epoch -> variant -> (requests, failures), spread over buckets."""
    held = {}
    for number, variants in epochs.items():
        for name, (requests, failed) in variants.items():
            for stratum, part in ((0, requests // 4), (1, requests - requests // 4)):
                served = np.bincount(np.arange(part) % UNIT_BUCKETS, minlength=UNIT_BUCKETS)
                share = failed // 4 if stratum == 0 else failed - failed // 4
                wrong = np.bincount(np.arange(share) % UNIT_BUCKETS, minlength=UNIT_BUCKETS)
                held[CellKey(number, name, stratum)] = (
                    Cell(labelled=served, tp=served - wrong)
                    if columns
                    else Cell(requests=served, errors=wrong)
                )
    known = tuple(Epoch(number, 0, worlds.split(500_000)) for number in epochs)
    return Cells("fraud-v2", known, held, 1)


def test_earnings_are_of_the_steps_own_epochs_and_all_strata() -> None:
    run, policy = running()
    run = replace(run, epoch=4, bandit_epoch=3)
    found = bandit.observe(
        cells(
            {
                2: {"control": (999, 999), "v2": (999, 0)},
                3: {"control": (400, 40), "v2": (400, 20)},
                4: {"control": (100, 20), "v2": (700, 105)},
            }
        ),
        run,
        policy,
    )
    assert found is not None
    control, v2 = found.arms
    assert (found.epochs, control.requests, v2.requests) == (2, 500, 1_100)
    assert control.mean == pytest.approx((0.9 + 0.8) / 2)
    assert v2.mean == pytest.approx((0.95 + 0.85) / 2)
    assert v2.strata is not None
    assert v2.strata.estimate == pytest.approx(0.05)
    assert v2.strata.lower < 0.05 < v2.strata.upper
    assert control.strata is None
    assert found.regret == pytest.approx(0.05 * 500)
    assert found.uniform_regret == pytest.approx(0.05 * 800)


def test_split_is_made_when_arms_have_not_failed_in_any_of_many_epochs() -> None:
    """Weights of epochs add up to 1.0000000000000002, and a mean of that had no posterior."""
    over = 0
    for seed in (43, 369):
        random = np.random.default_rng(seed)
        epochs = int(random.integers(3, 9))
        counts = random.integers(20, 90, (epochs, 3, 1)).astype(float)
        over += bool((stratified_means(counts, counts).mean > 1).any())
        shares = np.full((epochs, 3), 1 / 3)
        found = bandit.earnings(("control", "a", "b"), counts, counts, shares)
        assert all(arm.mean is not None and 1 - 1e-12 < arm.mean <= 1 for arm in found.arms)
        assert sum(bandit.next_split(found, POLICY).ppm.values()) == BUCKET_COUNT
    assert over  # else this shows nothing


def test_earnings_stay_what_they_were_when_the_experiment_has_ended() -> None:
    """Its last epoch is among the past ones then, and the present one has no split."""
    run, policy = running()
    command = Command(Input.STOP, "alice")
    now_ms = worlds.START_MS + EVERY_MS
    ended = apply_command(run, policy, seen(now_ms, None), command, now_ms=now_ms).after
    before = cells({1: {"control": (400, 40), "v2": (400, 20)}})
    after = replace(before, epochs=(*before.epochs, Epoch(1, 0, ended.split_ppm)))
    assert bandit.observe(after, ended, policy) == bandit.observe(before, run, policy) is not None


def test_reward_is_a_right_answer_when_the_metric_is_accuracy() -> None:
    run, policy = running(metric="accuracy")
    told = {1: {"control": (100, 40), "v2": (100, 10)}}
    found = bandit.observe(cells(told, labels="yes"), replace(run, bandit_epoch=1), policy)
    assert found is not None
    assert [arm.mean for arm in found.arms] == pytest.approx([0.6, 0.9])
    assert bandit.observe(cells(told), replace(run, bandit_epoch=1), policy) is None


# -- The next split --------------------------------------------------------------------------------


def arm(name: str, mean: float, requests: int, variance: float) -> ArmSeen:
    """One variant."""
    return ArmSeen(name, requests, mean, variance, mean)


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.integers(1, 10**9), st.floats(1e-12, 1)),
        min_size=2,
        max_size=8,
    ),
    st.sampled_from(["thompson", "top_two"]),
    st.floats(0.01, 1),
)
def test_split_adds_up_and_keeps_the_floor_whatever_was_earned(
    found: list[tuple[float, int, float]], algorithm: str, part: float
) -> None:
    names = ["control", *(f"v{index}" for index in range(1, len(found)))]
    floor = max(0.01, part / len(found))
    given_arms = tuple(arm(name, *values) for name, values in zip(names, found, strict=True))
    policy = replace(POLICY, algorithm=algorithm, floor=floor)
    split = bandit.next_split(BanditSeen(given_arms, 1, 0, 0), policy)
    assert sum(split.ppm.values()) == BUCKET_COUNT
    assert list(split.ppm) == names
    assert min(split.ppm.values()) >= int(floor * BUCKET_COUNT)
    assert sum(split.probabilities.values()) == pytest.approx(1)


def test_split_follows_the_evidence_and_stays_even_without_any() -> None:
    even = bandit.next_split(arms(0.9, 0.9), POLICY)
    assert even.ppm == {"control": 500_000, "v2": 500_000}
    better = bandit.next_split(arms(0.8, 0.9), POLICY)
    assert better.ppm == {"control": 50_000, "v2": 950_000}
    worse = bandit.next_split(arms(0.9, 0.8), POLICY)
    assert worse.ppm == {"control": 950_000, "v2": 50_000}
    two = bandit.next_split(arms(0.8, 0.9), replace(POLICY, algorithm="top_two"))
    assert two.ppm == {"control": 500_000, "v2": 500_000}  # two arms: the runner-up is the other


def test_busy_users_make_nobody_sure() -> None:
    x, n = np.zeros((1, 2, 64)), np.full((1, 2, 64), 20.0)
    x[0, 0], x[0, 1] = np.where(np.arange(64) % 2, 20, 14), np.where(np.arange(64) % 3, 20, 12)
    shares = np.array([[0.5, 0.5]])
    clustered = bandit.earnings(("control", "v2"), x, n, shares)
    alone = bandit.earnings(
        ("control", "v2"), x.sum(axis=2, keepdims=True), n.sum(axis=2, keepdims=True), shares
    )
    sure = [bandit.probabilities(each).max() for each in (clustered, alone)]
    assert 0.5 < sure[0] < sure[1]


@given(st.lists(st.lists(st.integers(0, 1000), min_size=3, max_size=3), min_size=1, max_size=6))
def test_reallocation_moves_only_the_difference(weights: list[list[int]]) -> None:
    names = ("control", "a", "b")
    before: dict[str, snapshot.Ranges] = {}
    split = {"control": BUCKET_COUNT, "a": 0, "b": 0}
    for row in weights:
        total = sum(row) or 1
        ppm = {name: BUCKET_COUNT * one // total for name, one in zip(names, row, strict=True)}
        ppm["control"] += BUCKET_COUNT - sum(ppm.values())
        after = snapshot.reallocate(before, ppm, control="control")
        assert {name: snapshot.size(ranges) for name, ranges in after.items()} == ppm
        places = _places(before or {"control": snapshot.ALL_BUCKETS})
        moved = (places != _places(after)).sum()
        assert moved == bandit.moved_ppm(split, ppm)
        # Nobody leaves a variant that grows.
        for index, name in enumerate(sorted(names)):
            if ppm[name] >= split[name]:
                assert (_places(after)[places == index] == index).all()
        before, split = after, ppm


def _places(allocation: snapshot.Allocation) -> np.ndarray:
    found = np.full(BUCKET_COUNT, -1, np.int8)
    for index, name in enumerate(sorted(("control", "a", "b"))):
        for start, end in allocation.get(name, ()):
            found[start:end] = index
    return found


# -- What it decides -------------------------------------------------------------------------------


def test_step_begins_with_equal_shares_and_a_first_epoch() -> None:
    run, _ = running()
    assert (run.phase, run.epoch, run.bandit_epoch, run.bandit_looks) == (Phase.BANDIT, 1, 1, 0)
    assert run.split_ppm == worlds.split(500_000)


def test_split_stays_until_a_look_is_due() -> None:
    run, policy = running()
    now_ms = worlds.START_MS + EVERY_MS - 1
    decision = decided(run, policy, seen(now_ms, arms(0.8, 0.9)), now_ms)
    assert (decision.action, decision.reason, decision.effects) == (
        Action.CONTINUE,
        Reason.BANDIT,
        (),
    )
    assert "next look in" in decision.sentence


def test_look_moves_units_in_a_new_epoch_when_one_arm_earns_more() -> None:
    run, policy = running()
    now_ms = worlds.START_MS + EVERY_MS
    decision = decided(run, policy, seen(now_ms, arms(0.8, 0.9)), now_ms)
    assert (decision.action, decision.reason) == (Action.REALLOCATE, Reason.BANDIT)
    assert decision.effects == (Effect.PERSIST, Effect.PUBLISH)
    assert decision.new_epoch
    after = decision.after
    assert (after.epoch, after.bandit_epoch, after.bandit_looks) == (2, 1, 1)
    assert after.split_ppm == worlds.split(950_000)
    assert after.step_start_ms == run.step_start_ms
    assert [past.epoch for past in after.past] == [1]
    assert "v2 earns 90 % of 1,000" in decision.sentence
    assert "45 % of the units move" in decision.sentence
    # Until the next look nothing happens, whatever comes.
    later = decided(after, policy, seen(now_ms + 1, arms(0.9, 0.1)), now_ms + 1)
    assert later.effects == ()


@pytest.mark.parametrize(
    ("earned", "reason", "words"),
    [
        (None, Reason.TOO_FEW_REQUESTS, "no request has earned"),
        (arms(0.1, 0.9, 99), Reason.TOO_FEW_REQUESTS, "control has 99, v2 has 99 of 100 requests"),
        (arms(0.9, 0.9), Reason.BANDIT, "control 50 %, v2 50 % stays"),
    ],
)
def test_look_is_recorded_and_no_epoch_when_nobody_moves(
    earned: BanditSeen | None, reason: Reason, words: str
) -> None:
    run, policy = running()
    now_ms = worlds.START_MS + EVERY_MS
    decision = decided(run, policy, seen(now_ms, earned), now_ms)
    assert (decision.action, decision.reason, decision.record) == (Action.CONTINUE, reason, True)
    assert decision.effects == (Effect.PERSIST,)
    assert not decision.new_epoch
    assert decision.after.bandit_looks == 1
    assert words in decision.sentence


def test_nobody_moves_when_the_evidence_is_doubtful_or_the_experiment_is_paused() -> None:
    run, policy = running()
    now_ms = worlds.START_MS + EVERY_MS
    stale = seen(now_ms, arms(0.8, 0.9), sidecars=(worlds.sidecar(now_ms - 10_000),))
    doubted = decided(run, policy, stale, now_ms)
    assert (doubted.action, doubted.reason) == (Action.HOLD, Reason.STALE)
    paused = apply_command(
        run, policy, seen(now_ms, None), Command(Input.PAUSE, "a"), now_ms=now_ms
    )
    still = decided(paused.after, policy, seen(now_ms + 1, arms(0.8, 0.9)), now_ms + 1)
    assert (still.action, still.reason) == (Action.HOLD, Reason.OPERATOR)


def test_harm_rolls_back_whatever_an_arm_earns() -> None:
    run, policy = running()
    now_ms = worlds.START_MS + EVERY_MS
    harmed = seen(now_ms, arms(0.8, 0.9), lanes=(worlds.crossed_lane(),))
    decision = decided(run, policy, harmed, now_ms)
    assert (decision.action, decision.after.state) == (Action.ROLLBACK, State.ROLLED_BACK)


def shown(lower: float, upper: float) -> BanditSeen:
    """v2 against control, with this confidence sequence."""
    found = arms(0.8, 0.8)
    interval = Interval((lower + upper) / 2, lower, upper)
    return replace(found, arms=(found.arms[0], replace(found.arms[1], strata=interval)))


@pytest.mark.parametrize(
    ("promote", "earned", "action", "state"),
    [
        (True, shown(0.01, 0.03), Action.PROMOTE, State.PROMOTED),
        (True, shown(-0.01, 0.03), Action.STOP, State.INCONCLUSIVE),
        (True, shown(-0.03, -0.01), Action.STOP, State.STOPPED),
        (True, None, Action.STOP, State.INCONCLUSIVE),
        (False, shown(0.01, 0.03), Action.FINISH, State.RUNNING),
    ],
)
def test_step_ends_as_its_inference_says_when_its_time_is_over(
    promote: bool, earned: BanditSeen | None, action: Action, state: State
) -> None:
    run, policy = running(promote=promote)
    now_ms = worlds.START_MS + DAY_MS
    decision = decided(run, policy, seen(now_ms, earned), now_ms)
    assert (decision.action, decision.after.state) == (action, state)
    assert decision.promote_variant == ("v2" if action is Action.PROMOTE else "")
    if action is Action.FINISH:
        assert decision.after.finished
        assert decision.after.split_ppm == run.split_ppm


@pytest.mark.parametrize(
    ("guardrail", "words"),
    [
        (GuardrailPolicy("recall"), ""),  # no label has come, and no harm is known
        (GuardrailPolicy("recall", Margin(absolute=0.02)), "recall: no evidence by bucket"),
    ],
)
def test_best_arm_is_not_promoted_while_a_guardrail_is_unclear(
    guardrail: GuardrailPolicy, words: str
) -> None:
    run, policy = running()
    policy = replace(policy, guardrails=(guardrail,))
    now_ms = worlds.START_MS + DAY_MS
    decision = decided(run, policy, seen(now_ms, shown(0.01, 0.03)), now_ms)
    if not words:
        assert decision.promote_variant == "v2"
        return
    assert (decision.action, decision.after.finished) == (Action.FINISH, True)
    assert words in decision.sentence
    assert "until somebody decides" in decision.sentence


def test_best_arm_is_not_promoted_when_it_is_worse_in_a_stratum() -> None:
    run, policy = running()
    policy = replace(policy, strata=("new",), guardrails=(GuardrailPolicy("accuracy"),))
    arm = ArmLook(n=500, events=400, value=0.8, buckets=40)
    harmed = MetricLook(
        "accuracy", "v2", True, arm, arm, "new", method=Method.EXACT, difference=-0.2, best=-0.05
    )
    now_ms = worlds.START_MS + DAY_MS
    at = seen(now_ms, shown(0.01, 0.03), looks=Looks(metrics=(harmed,)))
    decision = decided(run, policy, at, now_ms)
    assert (decision.action, decision.after.finished) == (Action.FINISH, True)
    assert "accuracy of v2 is worse in stratum new" in decision.sentence


def test_promotion_waits_for_somebody_when_the_baseline_has_moved() -> None:
    run, policy = running()
    now_ms = worlds.START_MS + DAY_MS
    moved = seen(now_ms, shown(0.01, 0.03), baseline_moved=True)
    decision = decided(run, policy, moved, now_ms)
    assert decision.action is Action.FINISH
    assert "baseline has changed" in decision.sentence


def test_step_begins_anew_when_the_spec_is_revised() -> None:
    run, policy = running()
    run = replace(run, epoch=5, bandit_looks=4, split_ppm=worlds.split(900_000))
    command = Command(Input.REVISE, "alice", revision=2)
    after = apply_command(run, policy, seen(0, None), command, now_ms=worlds.START_MS + 1).after
    assert (after.epoch, after.bandit_epoch, after.bandit_looks) == (6, 6, 0)
    assert after.split_ppm == worlds.split(500_000)
    with pytest.raises(Refused):
        apply_command(
            run, policy, seen(0, None), Command(Input.ADVANCE, "a"), now_ms=worlds.START_MS
        )


# -- The resource ----------------------------------------------------------------------------------

STEPS = EXPERIMENT[: EXPERIMENT.index("  steps:")]
TAIL = "  onFinish: promote\n"


LABELS = "reward: {metric: accuracy}, for: 1d"


def with_bandit(fields: str, after: str = "") -> str:
    """The experiment with a bandit as its only step."""
    return f"{STEPS}  steps:\n  - bandit: {{{fields}}}\n{after}{TAIL}"


def test_bandit_has_its_defaults_when_they_are_left_out() -> None:
    text = with_bandit("reward: {metric: error_rate}, for: 1d")
    assert violations_of(text) == []
    spec = document(text).spec
    assert isinstance(spec, ExperimentSpec)
    assert unimplemented_experiment(spec) == []
    full = experiment_with_defaults(spec).steps[0].bandit
    assert (full.algorithm, full.exploration_floor) == ("thompson", 0.05)
    assert (full.every.seconds, full.minimum_requests) == (300, 100)
    assert split_at(spec, 0) == pytest.approx({"v2": 1 / 3, "v3": 1 / 3})
    made = Policy.from_spec(spec).steps[0]
    assert made.bandit == BanditPolicy("thompson", "error_rate", 0.05, 300_000, 100)
    assert sum(made.split_ppm.values()) == BUCKET_COUNT


@pytest.mark.parametrize(
    ("fields", "field", "rule"),
    [
        ("for: 1d", "reward.metric", "required; must be error_rate or accuracy"),
        ("reward: {metric: f1}, for: 1d", "reward.metric", "what one request earns"),
        ("reward: {metric: error_rte}, for: 1d", "reward.metric", "unknown metric"),
        ("reward: {metric: accuracy}", "for", "required"),
        ("reward: {metric: accuracy}, for: 1d, every: 4m", "for", "at most 288 times"),
        ("reward: {metric: accuracy}, for: 1d, every: 1s", "every", "at least 10s"),
        ("reward: {metric: accuracy}, for: 1m", "for", "at least 5m"),
        ("reward: {metric: accuracy}, for: 1d, algorithm: ucb", "algorithm", "thompson or top_two"),
        ("reward: {metric: accuracy}, for: 1d, explorationFloor: 0.4", "explorationFloor", "0.333"),
        ("reward: {metric: accuracy}, for: 1d, explorationFloor: 0", "explorationFloor", "0.01"),
        (
            "reward: {metric: accuracy}, for: 1d, minimumRequests: 0",
            "minimumRequests",
            "at least 1",
        ),
    ],
)
def test_bandit_is_refused_by_field_and_rule_when_it_is_wrong(
    fields: str, field: str, rule: str
) -> None:
    found = violations_of(with_bandit(fields))
    assert any(
        fault.field == f"spec.steps[0].bandit.{field}" and rule in fault.rule for fault in found
    ), found


def test_bandit_is_refused_when_it_is_not_the_last_step() -> None:
    after = "  - canary: {split: {v2: 0.9}, for: 1h}\n"
    found = violations_of(with_bandit("reward: {metric: accuracy}, for: 1d", after))
    assert [fault.field for fault in found] == ["spec.steps[0].bandit"]
    assert "must be the last step" in found[0].rule


def test_reward_of_units_is_not_implemented_when_it_is_asked_for() -> None:
    text = with_bandit("reward: {metric: conversion_rate}, for: 1d")
    spec = document(text).spec
    assert isinstance(spec, ExperimentSpec)
    assert validate_experiment("risk", "x", spec, None, {}, KnownMetrics(complete=True)) == []
    (feature,) = unimplemented_experiment(spec)
    assert feature == "spec.steps[0].bandit.reward.metric"
    assert "turnout analyze" in feature.why
