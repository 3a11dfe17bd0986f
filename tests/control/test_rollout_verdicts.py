"""From cells to what the experiment does: looks, the table, `ab` steps, strata, stages, records."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.model.metrics import LIVE
from control.rollout import codec, observe
from control.rollout.assess import assess
from control.rollout.cells import Cells
from control.rollout.checks import stage_factor
from control.rollout.decide import HOLD_RECORD_EVERY_MS, Decision, decide, replay
from control.rollout.judging import is_better, is_harmed, is_shown_worse, verdict
from control.rollout.looks import (
    REST,
    ArmLook,
    DoubtLook,
    Looks,
    Method,
    MetricLook,
    SampleRatioLook,
)
from control.rollout.policy import GuardrailPolicy, Margin, Policy, PrimaryPolicy, StepPolicy
from control.rollout.reduce import reduce
from control.rollout.results import fill, standing_of
from control.rollout.run import Run
from control.rollout.seen import Seen
from control.rollout.words import Action, Reason, State, Verdict
from control.stats.confseq import Sequence, asymptotic_sequence
from tests.control import rollout_worlds as worlds
from tests.control.cell_worlds import CONTROL, V2, Arm, both, cells
from turnout.v1alpha1.experiment_pb2 import TABLE_ROW_PROMOTE
from turnout.v1alpha1.experiment_service_pb2 import STANDING_WORSE, ExperimentResults

NOW_MS = worlds.START_MS + 10 * worlds.DWELL_MS
BETTER = both(Arm(accuracy=0.85), Arm(accuracy=0.92))
EQUAL = both(Arm(), Arm())


def ab_policy(**changes: object) -> Policy:
    """A/B over accuracy by at least 1 %, errors and latency guarded."""
    made = worlds.policy(
        worlds.ab_step(),
        primary=PrimaryPolicy("accuracy", Margin(absolute=0.01)),
        guardrails=(
            GuardrailPolicy("error_rate", Margin(absolute=0.02)),
            GuardrailPolicy("latency_p95", Margin(absolute=50.0), 200.0),
        ),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def looked(found: Cells, policy: Policy) -> Looks:
    looks = reduce(found, policy)
    assert looks is not None
    return looks


def decided(
    found: Cells, policy: Policy, run: Run | None = None, *, now_ms: int = NOW_MS
) -> Decision:
    run = run or worlds.started(policy)
    evidence = worlds.healthy(now_ms, looks=looked(found, policy))
    decision = decide(run, policy, evidence, now_ms=now_ms)
    if decision.record:
        assert replay(decision.inputs_json).to_json() == decision.to_json()
    return decision


# -- Looks -------------------------------------------------------------------------------------


def test_looks_say_the_same_when_they_come_back_from_json() -> None:
    policy = ab_policy(strata=("new", "old"))
    looks = looked(cells({**both(Arm(), Arm()), **both(Arm(), Arm(), stratum=2)}), policy)
    assert codec.from_json(Looks, codec.to_json(looks)) == looks
    assert len(codec.to_json(looks)) < 20_000


def test_looks_hold_the_truth_when_all_metrics_are_asked() -> None:
    found = cells(BETTER, seed=3)
    looks = reduce(found, ab_policy(), metrics=("f1", "precision", "recall", "specificity"))
    assert looks is not None
    truth = {"error_rate": 0.0, "accuracy": 0.07}
    for metric, effect in truth.items():
        (look,) = looks.of(metric, V2)
        assert look.method is Method.BUCKETS
        assert look.low is not None
        assert look.high is not None
        assert look.low < effect < look.high
    for metric in ("f1", "precision", "recall", "specificity"):
        (look,) = looks.of(metric, V2)
        assert look.low is not None
        assert look.low > 0


def test_looks_ask_for_no_more_sequences_when_more_strata_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def counted(*arguments: Any, **options: Any) -> Sequence:
        calls.append(options["alpha"])
        return asymptotic_sequence(*arguments, **options)

    monkeypatch.setattr("control.rollout.reduce.asymptotic_sequence", counted)
    found = cells({k: arm for s in range(3) for k, arm in both(Arm(), Arm(), stratum=s).items()})
    looks = looked(found, ab_policy(strata=("a", "b")))
    bounded = [look for look in looks.metrics if look.method is not Method.EXACT]
    # Two alphas each for the two-sided ones and for harm, one for what is not worse.
    assert len(calls) <= 7 < 3 * len(bounded), calls


def test_difference_is_not_biased_when_the_base_rate_drifts_over_a_ramp() -> None:
    """Pooled, the candidate of 1, 10 and 50 % would look worse by a third of its errors."""
    splits = {e: {CONTROL: 1_000_000 - ppm, V2: ppm} for e, ppm in ((1, 10_000), (2, 500_000))}
    arms = {
        **both(Arm(users=9_900, error=0.02), Arm(users=100, error=0.02)),
        **both(Arm(users=5_000, error=0.06), Arm(users=5_000, error=0.06), epoch=2),
    }
    found = cells(arms, splits=splits)
    (look,) = looked(found, ab_policy()).of("error_rate", V2)
    errors = dict.fromkeys((CONTROL, V2), 0)
    requests = dict(errors)
    for key, cell in found.cells.items():
        errors[key.variant] += int(cell.errors.sum())
        requests[key.variant] += int(cell.requests.sum())
    pooled = errors[V2] / requests[V2] - errors[CONTROL] / requests[CONTROL]
    assert look.difference is not None
    assert look.error is not None
    assert abs(look.difference) < 4 * look.error
    assert pooled > 10 * look.error


def test_error_covers_sticky_users_when_they_always_fail() -> None:
    """200 A/A worlds in which 5 % of the users fail always: z has a spread of 1, not of 2."""
    policy = ab_policy()
    scores = []
    for seed in range(200):
        arm = Arm(users=500, requests=8.0, error=0.01, sticky=0.05)
        (look,) = looked(cells(both(arm, arm), seed=seed), policy).of("error_rate", V2)
        assert look.difference is not None
        assert look.error
        scores.append(look.difference / look.error)
    # 4.9 standard errors of a standard deviation of 200 normal scores: false alarm below 1e-6.
    assert abs(float(np.std(scores)) - 1.0) < 4.9 / math.sqrt(2 * 200)


def test_look_is_exact_when_nothing_fails() -> None:
    policy = ab_policy()
    perfect = Arm(error=0.0, users=300)
    (look,) = looked(cells(both(perfect, perfect)), policy).of("error_rate", V2)
    assert look.method is Method.EXACT
    assert look.worst is not None
    assert look.worst > -0.02


STUCK = Arm(users=30, requests=12.0, error=0.0, sticky=0.1)


def exact_look(policy: Policy, candidate: Arm = STUCK, *, seed: int = 3) -> MetricLook:
    """Errors of a first stage in which a few of 30 users always fail, as some of control's do."""
    splits = {1: worlds.split(10_000)}
    arms = both(Arm(users=3_000, requests=12.0, error=0.01, sticky=0.01), candidate)
    (look,) = looked(cells(arms, splits=splits, seed=seed), policy).of("error_rate", V2)
    assert look.method is Method.EXACT
    return look


def test_look_shows_no_harm_when_few_users_make_many_requests() -> None:
    """By requests, a fifth of which fail, it would be certain; three users are not."""
    look = exact_look(ab_policy())
    assert (look.candidate.events or 0) > 30
    assert look.best is not None
    assert look.best > 0
    assert not is_shown_worse(look)
    assert not is_better(look)


def test_look_shows_harm_when_control_is_perfect_and_many_users_are_worse_off() -> None:
    """Too few events for a variance in one arm, for ever; the other's users are witness enough."""
    perfect, bad = Arm(users=800, error=0.0), Arm(users=800, error=0.3)
    (look,) = looked(cells(both(perfect, bad)), ab_policy()).of("error_rate", V2)
    assert look.method is Method.EXACT
    assert is_shown_worse(look)
    assert standing_of(look) == STANDING_WORSE
    assert not is_harmed(look)  # a guardrail by it holds a step, and rolls nothing back


@pytest.mark.parametrize(("users", "requests"), [(40, 25.0), (1_000, 1.0)])
def test_exact_ends_are_as_wide_as_units_ask_for(users: int, requests: float) -> None:
    """A thousand requests of 40 users tell as much as 40, those of a thousand users as a thousand.

    Where the unit is the request every request is a unit, in a bucket of its own.
    """
    arm = Arm(users=users, requests=requests, error=0.0)
    (look,) = looked(cells(both(arm, arm)), ab_policy()).of("error_rate", V2)
    assert look.high is not None
    trials = (
        math.log(2 / 0.05) / look.high
    )  # of a rate without events, but for its price of many looks
    assert users / 8 < trials < users


def test_quantile_of_a_small_arm_is_not_surer_than_control_s_users_allow() -> None:
    """30 users who have all been fast say little of the slowest twentieth."""
    fast = Arm(users=30, requests=40.0, over=0.0)
    found = cells(both(Arm(users=3_000, over=0.06), fast), splits={1: worlds.split(10_000)}, seed=4)
    quantile, _ = looked(found, ab_policy()).of("latency_p95", V2)
    assert quantile.method is Method.QUANTILE
    assert quantile.error is not None
    (alone, _) = looked(
        cells(both(Arm(users=3_000, over=0.06), Arm(users=3_000, over=0.06)), seed=4), ab_policy()
    ).of("latency_p95", V2)
    assert alone.error is not None
    assert quantile.error > 2 * alone.error


def test_look_is_unknown_when_an_arm_has_no_labels() -> None:
    policy = ab_policy()
    (look,) = looked(cells(both(Arm(), Arm(labelled=0.0))), policy).of("accuracy", V2)
    assert look.method is Method.NONE
    assert look.difference is None


def test_nothing_is_looked_at_when_buckets_are_missing_for_many_requests() -> None:
    found = cells(EQUAL)
    next(iter(found.cells.values())).missing = 1_000
    assert reduce(found, ab_policy()) is None


def test_quantile_looks_worse_when_the_tail_has_moved() -> None:
    found = cells(both(Arm(latency_bin=190), Arm(latency_bin=240)))
    quantile, beyond = looked(found, ab_policy()).of("latency_p95", V2)
    assert (quantile.method, quantile.slo_ms, beyond.slo_ms) == (Method.QUANTILE, None, 200.0)
    assert quantile.low is not None
    assert quantile.low > 0


# -- A/B steps ---------------------------------------------------------------------------------


def test_ab_promotes_when_the_candidate_is_clearly_better() -> None:
    decision = decided(cells(BETTER), ab_policy())
    assert (decision.action, decision.reason) == (Action.PROMOTE, Reason.BETTER)
    assert decision.after.state is State.PROMOTED
    assert decision.promote_variant == V2
    assert "v2 is better: accuracy" in decision.sentence


def test_ab_keeps_its_split_when_it_shall_hold_at_the_end() -> None:
    decision = decided(cells(BETTER), ab_policy(promote_on_finish=False))
    assert (decision.action, decision.reason) == (Action.FINISH, Reason.BETTER)
    assert decision.after.finished
    assert decision.after.split_ppm == worlds.split(500_000)


def test_ab_goes_on_when_a_better_candidate_has_further_steps() -> None:
    policy = ab_policy(steps=(worlds.ab_step(), worlds.canary_step(990_000)))
    decision = decided(cells(BETTER), policy)
    assert (decision.action, decision.after.step) == (Action.ADVANCE, 1)


def test_ab_rolls_back_when_the_candidate_is_worse_by_more_than_the_minimum() -> None:
    decision = decided(cells(both(Arm(accuracy=0.92), Arm(accuracy=0.85))), ab_policy())
    assert (decision.action, decision.reason) == (Action.ROLLBACK, Reason.GUARDRAIL)
    assert "accuracy" in decision.sentence


def test_reasons_are_said_in_the_metric_s_own_unit_and_direction() -> None:
    """No 1e299 that stands for "any loss", and no error rate that falls by -6 points."""
    observed = ab_policy(guardrails=(GuardrailPolicy("error_rate"),))
    decision = decided(cells(both(Arm(), Arm(error=0.08))), observed)
    assert decision.action is Action.ROLLBACK
    assert decision.sentence.startswith("rolled back v2: error_rate is worse: 7.76 % of 8,024 ")
    assert "e+" not in decision.sentence
    (found,) = decision.verdicts
    assert all(abs(value) < 1e9 for why in found.reasons for value in why.values.values())


def test_sentence_says_that_there_is_no_primary_metric() -> None:
    policy = ab_policy(primary=None, steps=(worlds.canary_step(500_000),))
    found = verdict(
        looked(cells(EQUAL), policy),
        policy,
        policy.steps[0],
        V2,
        run=worlds.started(policy),
        now_ms=NOW_MS,
    )
    words = "v2: no verdict yet: no primary metric is declared, so only harm can be shown"
    assert found.sentence == words


def test_ab_keeps_control_when_the_candidate_is_a_little_worse() -> None:
    many = Arm(users=40_000, requests=10)
    arms = both(many, replace(many, accuracy=0.895))
    decision = decided(cells(arms), ab_policy())
    assert (decision.action, decision.reason) == (Action.STOP, Reason.WORSE)
    assert decision.after.state is State.STOPPED
    assert decision.sentence.startswith("kept control at step 1 of 1: v2 is worse")


def test_ab_keeps_control_when_there_is_no_difference() -> None:
    arm = Arm(users=40_000, requests=10)
    decision = decided(cells(both(arm, arm)), ab_policy())
    assert (decision.action, decision.reason) == (Action.STOP, Reason.NO_DIFFERENCE)


def test_ab_is_inconclusive_when_its_time_is_over() -> None:
    policy = ab_policy(steps=(replace(worlds.ab_step(), maximum_ms=60_000),))
    small = Arm(users=600)
    decision = decided(cells(both(small, small)), policy)
    assert (decision.action, decision.reason) == (Action.STOP, Reason.INCONCLUSIVE)
    assert decision.after.state is State.INCONCLUSIVE


@pytest.mark.parametrize(
    ("changes", "arms", "words"),
    [
        ({"minimum_units": 5_000}, BETTER, "v2: no verdict yet: units of control 2000 < 5000"),
        ({}, both(Arm(), Arm(labelled=0.0)), "v2: no verdict yet: accuracy: no labels in one arm"),
    ],
)
@pytest.mark.parametrize("promote", [True, False])
def test_ab_is_inconclusive_when_its_time_is_over_and_it_never_warmed_up(
    changes: dict[str, int], arms: dict[tuple[int, str, int], Arm], words: str, promote: bool
) -> None:
    step = replace(worlds.ab_step(), maximum_ms=600_000, **changes)  # type: ignore[arg-type]
    policy = ab_policy(steps=(step,), promote_on_finish=promote)
    early = decided(cells(arms), policy, now_ms=NOW_MS - 1)
    assert (early.action, early.reason) == (Action.CONTINUE, Reason.WARMING_UP)
    decision = decided(cells(arms), policy)
    assert decision.reason is Reason.INCONCLUSIVE
    assert f"its maximum of 10m is over: {words}" in decision.sentence
    if promote:
        assert decision.after.state is State.INCONCLUSIVE
        assert decision.sentence.startswith("kept control at step 1 of 1: ")
    else:
        assert (decision.action, decision.after.finished) == (Action.FINISH, True)


def test_ab_is_inconclusive_when_its_time_is_over_and_its_strata_disagree() -> None:
    step = replace(worlds.ab_step(), maximum_ms=600_000)
    policy = ab_policy(steps=(step,), strata=("new",))
    looks = looked(cells(BETTER), policy)
    seen = worlds.healthy(
        NOW_MS, looks=replace(looks, doubts=(DoubtLook("simpson", "accuracy", V2),))
    )
    run = worlds.started(policy)
    held = decide(run, policy, seen, now_ms=NOW_MS - 1)
    assert (held.action, held.reason) == (Action.HOLD, Reason.STRATA_DISAGREE)
    decision = decide(run, policy, seen, now_ms=NOW_MS)
    assert (decision.action, decision.reason) == (Action.STOP, Reason.INCONCLUSIVE)


@pytest.mark.parametrize("primary", [None, PrimaryPolicy("accuracy")])
def test_ab_is_inconclusive_when_its_time_is_over_without_anything_to_judge(
    primary: PrimaryPolicy | None,
) -> None:
    policy = ab_policy(
        steps=(replace(worlds.ab_step(), maximum_ms=600_000),), primary=primary, guardrails=()
    )
    seen = worlds.healthy(NOW_MS)
    decision = decide(worlds.started(policy), policy, seen, now_ms=NOW_MS)
    assert (decision.action, decision.reason) == (Action.STOP, Reason.INCONCLUSIVE)
    assert replay(decision.inputs_json).to_json() == decision.to_json()


def test_ab_promotes_when_its_time_is_over_and_the_other_candidate_never_warmed_up() -> None:
    policy = ab_policy(
        candidates=(V2, "v3"),
        steps=(
            replace(
                worlds.ab_step(),
                split_ppm={CONTROL: 499_000, V2: 500_000, "v3": 1_000},
                maximum_ms=600_000,
            ),
        ),
    )
    splits = {1: dict(policy.steps[0].split_ppm)}
    arms = {**BETTER, (1, "v3", 0): Arm(users=4)}
    assert decided(cells(arms, splits=splits), policy, now_ms=NOW_MS - 1).action is Action.HOLD
    decision = decided(cells(arms, splits=splits), policy)
    assert (decision.action, decision.promote_variant) == (Action.PROMOTE, V2)


def test_ab_stays_held_when_its_time_is_over_and_the_sample_ratio_is_wrong() -> None:
    """What is not valid is said, not ended: nothing after that row is to be decided."""
    policy = ab_policy(steps=(replace(worlds.ab_step(), maximum_ms=600_000),))
    odd = {**both(Arm(users=3_000, accuracy=0.85), Arm(users=2_000, accuracy=0.92))}
    decision = decided(cells(odd), policy)
    assert (decision.action, decision.reason) == (Action.HOLD, Reason.SAMPLE_RATIO_MISMATCH)


def test_ab_goes_on_and_says_how_many_units_when_it_is_undecided() -> None:
    arms = both(Arm(users=600, accuracy=0.898), Arm(users=600, accuracy=0.908))
    decision = decided(cells(arms), ab_policy())
    assert (decision.action, decision.reason) == (Action.CONTINUE, Reason.UNDECIDED)
    assert "units in all if the effect stays" in decision.sentence


def test_hold_is_over_when_its_reason_has_gone_for_a_while() -> None:
    """Nobody shall read for days that no sidecar is connected, when one came after a second."""
    policy = ab_policy()
    looks = looked(cells(both(Arm(users=600), Arm(users=600))), policy)
    nobody = worlds.healthy(NOW_MS, sidecars=(), looks=looks)
    run = decide(worlds.started(policy), policy, nobody, now_ms=NOW_MS).after
    for late_ms, recorded in ((1_000, False), (HOLD_RECORD_EVERY_MS, True)):
        now_ms = NOW_MS + late_ms
        decision = decide(run, policy, worlds.healthy(now_ms, looks=looks), now_ms=now_ms)
        assert (decision.action, decision.record) == (Action.CONTINUE, recorded)
    later = worlds.healthy(now_ms + 60_000, looks=looks)
    again = decide(decision.after, policy, later, now_ms=now_ms + 60_000)
    assert (again.action, again.record) == (Action.CONTINUE, False)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (replace(worlds.ab_step(), minimum_units=5_000), "units of control 2000 < 5000"),
        (replace(worlds.ab_step(), dwell_ms=3_600_000), "ran 600 s of 3600 s"),
    ],
)
def test_ab_waits_when_a_floor_is_not_reached(step: StepPolicy, words: str) -> None:
    decision = decided(cells(BETTER), ab_policy(steps=(step,)))
    assert (decision.action, decision.reason) == (Action.CONTINUE, Reason.WARMING_UP)
    assert words in decision.sentence


def test_ab_freezes_when_the_sample_ratio_is_wrong_but_harm_still_rolls_back() -> None:
    odd = {**both(Arm(users=3_000, accuracy=0.85), Arm(users=2_000, accuracy=0.92))}
    decision = decided(cells(odd), ab_policy())
    assert (decision.action, decision.reason) == (Action.HOLD, Reason.SAMPLE_RATIO_MISMATCH)
    harmful = {**both(Arm(users=3_000), Arm(users=2_000, error=0.2))}
    assert decided(cells(harmful), ab_policy()).action is Action.ROLLBACK


def test_ab_freezes_when_labels_are_lost_in_one_arm() -> None:
    found = cells(both(Arm(labelled=0.9), Arm(labelled=0.6, accuracy=0.95)))
    decision = decided(found, ab_policy())
    assert (decision.action, decision.reason) == (Action.HOLD, Reason.DIFFERENTIAL_LOSS)


def test_ab_holds_when_the_primary_is_better_and_a_guardrail_is_unclear() -> None:
    policy = ab_policy(guardrails=(GuardrailPolicy("error_rate", Margin(absolute=0.001)),))
    decision = decided(cells(BETTER), policy)
    assert (decision.action, decision.reason) == (Action.HOLD, Reason.LOW_POWER)
    assert "error_rate may be worse by more than 0.1 %" in decision.sentence


# -- Strata ------------------------------------------------------------------------------------

# Better for nine of ten, worse for the rest, every answer a 200.
ONE_STRATUM = {
    **both(Arm(users=9_000, accuracy=0.85), Arm(users=9_000, accuracy=0.95)),
    **both(Arm(users=1_000, accuracy=0.9), Arm(users=1_000, accuracy=0.6), stratum=1),
}


PERFECT = Arm(users=500, accuracy=0.75, error=0.0)
NO_MARGIN = "error_rate: 50 % of control's is a margin of 0 while control has 0 errors in"


def test_ab_says_what_its_margin_lacks_when_it_is_relative_and_control_has_no_errors() -> None:
    policy = ab_policy(guardrails=(GuardrailPolicy("error_rate", Margin(relative=0.5)),))
    found = cells(both(PERFECT, replace(PERFECT, accuracy=0.95)))
    decision = decided(found, policy)
    assert decision.action is Action.HOLD
    (told,) = decision.verdicts
    assert told.codes == ("guardrail_unclear", "no_margin")
    control = looked(found, policy).of("error_rate", V2)[0].control
    said = f"{NO_MARGIN} {control.n:,} requests; it needs 1 or more, or an absolute maximumHarm"
    assert told.reasons[1].text == said
    assert told.reasons[1].values == {"control_n": control.n, "control_events": 0.0}
    assert said in decision.sentence
    message = ExperimentResults()
    entry = SimpleNamespace(run=worlds.started(policy), policy=policy)
    fill(message, entry, found, looked(found, policy), now_ms=NOW_MS)  # type: ignore[arg-type]
    assert any(said in one.sentence for one in message.comparisons)


def test_stage_says_what_its_margin_lacks_when_it_is_relative_and_control_has_no_errors() -> None:
    policy = worlds.policy(guardrails=(GuardrailPolicy("error_rate", Margin(relative=0.5)),))
    decision = decided(cells(both(PERFECT, PERFECT)), policy)
    assert decision.action is Action.HOLD
    assert NO_MARGIN in decision.sentence


def test_margin_is_not_said_to_lack_anything_when_control_has_errors() -> None:
    policy = ab_policy(guardrails=(GuardrailPolicy("error_rate", Margin(relative=0.5)),))
    erring = replace(PERFECT, error=0.02)
    decision = decided(cells(both(erring, replace(erring, accuracy=0.95))), policy)
    assert "margin of 0" not in decision.to_json()


def test_ab_does_not_promote_and_names_the_stratum_when_one_alone_is_harmed() -> None:
    policy = ab_policy(strata=("new-merchants",))
    decision = decided(cells(ONE_STRATUM), policy)
    assert decision.action is Action.HOLD
    assert decision.reason is Reason.STRATUM_HARM
    assert "new-merchants" in decision.sentence
    assert "accuracy" in decision.sentence
    # Without strata nobody would have seen it.
    assert decided(cells(ONE_STRATUM), ab_policy()).action is Action.PROMOTE


def test_ab_holds_when_the_harmed_stratum_is_too_small_for_a_variance() -> None:
    arms = {
        **both(Arm(users=2_000, accuracy=0.85), Arm(users=2_000, accuracy=0.95)),
        **both(
            Arm(users=40, accuracy=1.0, error=0.0),
            Arm(users=40, accuracy=0.3, error=0.0),
            stratum=1,
        ),
    }
    decision = decided(cells(arms), ab_policy(strata=("new-merchants",)))
    assert (decision.action, decision.reason) == (Action.HOLD, Reason.STRATUM_HARM)


def test_experiment_rolls_back_when_a_guardrail_is_harmed_in_one_stratum() -> None:
    policy = ab_policy(
        strata=("new-merchants",),
        guardrails=(GuardrailPolicy("accuracy", Margin(absolute=0.05)),),
    )
    decision = decided(cells(ONE_STRATUM), policy)
    assert (decision.action, decision.reason) == (Action.ROLLBACK, Reason.STRATUM_HARM)
    assert "accuracy in new-merchants" in decision.sentence


def test_results_say_what_the_loop_decides_when_only_a_shown_metric_is_worse() -> None:
    """Latency, which nobody asked for, is worse in a stratum: shown, and no part of the verdict."""
    policy = ab_policy(strata=("new",), guardrails=(GuardrailPolicy("error_rate"),))
    slow = both(Arm(accuracy=0.85), Arm(accuracy=0.92, latency_bin=240), stratum=1)
    found = cells({**BETTER, **slow})
    assert decided(found, policy).action is Action.PROMOTE
    message = ExperimentResults()
    entry = SimpleNamespace(run=worlds.started(policy), policy=policy)
    looks = reduce(found, policy, metrics=LIVE)
    fill(message, entry, found, looks, now_ms=NOW_MS)  # type: ignore[arg-type]
    (told,) = message.verdicts
    assert told.row == TABLE_ROW_PROMOTE
    worse = {(c.metric, c.stratum) for c in message.comparisons if c.standing == STANDING_WORSE}
    assert ("latency_p95", "new") in worse


def test_results_tell_the_level_at_which_each_sequence_holds_when_alpha_is_shared() -> None:
    policy = ab_policy(strata=("a", "b"))
    found = cells({k: arm for s in range(3) for k, arm in both(Arm(), Arm(), stratum=s).items()})
    message = ExperimentResults()
    entry = SimpleNamespace(run=worlds.started(policy), policy=policy)
    fill(message, entry, found, looked(found, policy), now_ms=NOW_MS)  # type: ignore[arg-type]
    levels = {(one.stratum, round(one.confidence, 6)) for one in message.comparisons}
    shared = round(1 - 0.05 / 3, 6)
    assert levels == {("", 0.95), ("a", shared), ("b", shared), (REST, shared)}
    wide = {c.stratum: c.high - c.low for c in message.comparisons if c.metric == "accuracy"}
    assert wide["a"] > wide[""]


def test_results_leave_the_loop_most_of_the_time_when_looks_take_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A look of 40 ms among 5 experiments: not again within a second, however many ask."""
    policy = ab_policy()
    times = iter([0.0, 0.04, 1.0, 1.04])
    monkeypatch.setattr("control.rollout.observe.time.perf_counter", lambda: next(times))
    tenant = SimpleNamespace(shown={}, looked=dict.fromkeys("abcde"))
    entry = SimpleNamespace(name="x", policy=policy)

    def asked(found: Cells, late_ms: int) -> Looks | None:
        return observe.shown(tenant, entry, found, now_ms=NOW_MS + late_ms)  # type: ignore[arg-type]

    first = asked(cells(EQUAL), 0)
    assert first is not None
    assert asked(cells(BETTER), 999) is first
    assert asked(cells(BETTER), 1_000) is not first
    assert len(first.metrics) > len(looked(cells(EQUAL), policy).metrics)


def test_rest_has_a_name_when_it_matches_no_stratum() -> None:
    looks = looked(cells(ONE_STRATUM), ab_policy(strata=("new-merchants",)))
    assert {look.stratum for look in looks.metrics} == {"", REST, "new-merchants"}


def test_canary_holds_and_names_the_stratum_when_harm_is_tolerated_overall() -> None:
    policy = ab_policy(
        steps=(worlds.canary_step(500_000, ("error_rate",)),), strata=("new-merchants",)
    )
    decision = decided(cells(ONE_STRATUM), policy)
    assert (decision.action, decision.reason) == (Action.HOLD, Reason.STRATUM_HARM)
    assert "accuracy of v2 is worse in stratum new-merchants" in decision.sentence


# -- Stages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ppm", "factor"), [(10_000, 5), (50_000, 5), (100_000, 2), (500_000, 1)])
def test_margin_of_a_stage_is_wider_when_its_share_is_small(ppm: int, factor: float) -> None:
    assert stage_factor(worlds.canary_step(ppm), V2) == factor


def test_stage_advances_when_guardrails_are_within_its_margin() -> None:
    policy = ab_policy(steps=(worlds.canary_step(50_000), worlds.canary_step(500_000)))
    splits = {1: worlds.split(50_000)}
    found = cells(both(Arm(users=9_500), Arm(users=500)), splits=splits)
    decision = decided(found, policy)
    assert (decision.action, decision.after.step) == (Action.ADVANCE, 1)


def test_stage_rolls_back_when_a_guardrail_is_harmed_beyond_its_tolerance() -> None:
    policy = ab_policy(steps=(worlds.canary_step(500_000),))
    decision = decided(cells(both(Arm(), Arm(error=0.08))), policy)
    assert (decision.action, decision.reason) == (Action.ROLLBACK, Reason.GUARDRAIL)
    assert "error_rate" in decision.sentence


def test_check_is_undecided_when_the_margin_is_not_shown_yet() -> None:
    policy = ab_policy(
        steps=(worlds.canary_step(500_000),),
        guardrails=(GuardrailPolicy("error_rate", Margin(absolute=0.001)),),
    )
    run = worlds.started(policy)
    seen = worlds.healthy(NOW_MS, looks=looked(cells(EQUAL), policy))
    checks = assess(run, policy, seen, now_ms=NOW_MS).checks
    (check,) = [check for check in checks if check.metric == "error_rate"]
    assert (check.verdict, check.reason) == (Verdict.UNDECIDED, Reason.LOW_POWER)


def test_old_records_replay_when_they_know_no_looks() -> None:
    """What was written before there were looks has none of their fields, and reads as ever."""
    policy = worlds.policy()
    decision = decide(worlds.started(policy), policy, worlds.healthy(NOW_MS), now_ms=NOW_MS)
    assert "looks" not in decision.inputs_json
    assert "verdicts" not in decision.to_json()
    assert codec.from_json(Seen, codec.to_json(Seen())) == Seen()


numbers = st.none() | st.floats(-1e6, 1e6)
arms = st.builds(
    ArmLook,
    n=st.integers(0, 10**9),
    events=st.none() | st.integers(0, 100),
    value=st.none() | st.floats(0, 1),
    buckets=st.integers(0, 1024),
)
any_look = st.builds(
    MetricLook,
    metric=st.sampled_from(["accuracy", "error_rate", "latency_p95"]),
    variant=st.just(V2),
    higher_is_better=st.booleans(),
    control=arms,
    candidate=arms,
    stratum=st.sampled_from(["", REST, "new"]),
    slo_ms=st.none() | st.just(200.0),
    method=st.sampled_from(Method),
    difference=numbers,
    error=numbers,
    low=numbers,
    high=numbers,
    best=numbers,
    worst=numbers,
    margin=st.none() | st.floats(0, 1),
)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(any_look, max_size=6),
    st.sampled_from(["ab", "canary"]),
    st.lists(st.floats(-50, 50), max_size=2),
)
def test_decision_is_made_and_replays_when_looks_are_any(
    found: list[MetricLook], kind: str, log_es: list[float]
) -> None:
    """Missing numbers, ends out of order, empty arms: a decision, never an exception."""
    step = worlds.ab_step() if kind == "ab" else worlds.canary_step(500_000, ("accuracy",))
    policy = ab_policy(steps=(step,), strata=("new",))
    ratios = tuple(SampleRatioLook(1, "", e, {CONTROL: 1, V2: 1}, {}) for e in log_es)
    looks = Looks(tuple(found), ratios, units={CONTROL: 500, V2: 500})
    seen = worlds.healthy(NOW_MS, looks=looks)
    decision = decide(worlds.started(policy), policy, seen, now_ms=NOW_MS)
    assert decision.sentence
    if decision.record:
        assert replay(decision.inputs_json).to_json() == decision.to_json()


def test_verdict_is_made_within_milliseconds_when_an_experiment_is_large() -> None:
    """Counted in looks, not in seconds: five epochs and three strata make 4 looks a question."""
    policy = ab_policy(strata=("a", "b"))
    arms = {
        (epoch, name, stratum): Arm(users=300)
        for epoch in range(1, 6)
        for name in (CONTROL, V2)
        for stratum in range(3)
    }
    looks = looked(cells(arms), policy)
    assert len(looks.metrics) == 4 * 4
    found = verdict(looks, policy, policy.steps[0], V2, run=worlds.started(policy), now_ms=NOW_MS)
    assert found.sentence
