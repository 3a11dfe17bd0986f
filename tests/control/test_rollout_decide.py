"""Decisions: every outcome of the loop, every command, replay, and two properties of safety."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.rollout import codec
from control.rollout.decide import (
    HOLD_RECORD_EVERY_MS,
    Command,
    Decision,
    Refused,
    apply_command,
    decide,
    replay,
)
from control.rollout.policy import BreakerPolicy, GuardrailPolicy, Margin, Policy, PrimaryPolicy
from control.rollout.run import PAST_EPOCHS_MAX, Run
from control.rollout.seen import BucketSeen, Exemplar, Seen, SidecarSeen, VariantSeen, WindowSeen
from control.rollout.words import Action, Effect, Gate, Input, Kind, Phase, Reason, State
from tests.control import rollout_worlds as worlds
from tests.control.rollout_worlds import CONTROL, V2, arm, healthy

NOW_MS = worlds.START_MS + worlds.DWELL_MS + 1
PERSIST_FIRST = (Effect.PERSIST, Effect.PUBLISH)
PUBLISH_FIRST = (Effect.PUBLISH, Effect.PERSIST, Effect.ALERT)
THREE = worlds.policy(worlds.shadow_step(), worlds.canary_step(50_000), worlds.canary_step(500_000))


def decided(run: Run, policy: Policy, seen: Seen | None = None, now_ms: int = NOW_MS) -> Decision:
    """The loop's decision; and whatever it is, its record replays to the same."""
    decision = decide(run, policy, seen or healthy(now_ms), now_ms=now_ms)
    assert_replays(decision)
    return decision


def commanded(
    run: Run,
    policy: Policy,
    verb: Input,
    now_ms: int = NOW_MS,
    *,
    seen: Seen | None = None,
    **more: object,
) -> Decision:
    command = Command(verb, "alice", revision=2, **more)  # type: ignore[arg-type]
    decision = apply_command(run, policy, seen or healthy(now_ms), command, now_ms=now_ms)
    assert_replays(decision)
    return decision


def assert_replays(decision: Decision) -> None:
    assert bool(decision.inputs_json) == decision.record
    if decision.record:
        assert replay(decision.inputs_json).to_json() == decision.to_json()


def at_step(policy: Policy, index: int) -> Run:
    """The run that has just entered a step, moved there by an operator."""
    run = worlds.started(policy)
    for _ in range(index):
        run = commanded(run, policy, Input.ADVANCE, worlds.START_MS).after
    return run


# -- Steps -------------------------------------------------------------------------------------


def test_start_begins_the_first_step_in_a_new_epoch_when_the_name_was_used_before() -> None:
    command = Command(Input.START, "alice", revision=4, last_epoch=11)
    decision = apply_command(Run("fraud-v2"), THREE, Seen(), command, now_ms=worlds.START_MS)
    after = decision.after
    assert (after.state, after.step, after.phase) == (State.RUNNING, 0, Phase.SHADOW)
    assert (after.epoch, after.observed_revision) == (12, 4)
    assert (after.split_ppm, after.shadow_variant) == (worlds.split(0), V2)
    assert (decision.effects, decision.new_epoch) == (PERSIST_FIRST, True)
    assert decision.sentence == "started by alice: step 1 of 3: shadow v2 100 % for at least 1m"
    assert_replays(decision)


def test_step_goes_on_when_its_dwell_is_not_over() -> None:
    decision = decided(worlds.started(THREE), THREE, now_ms=worlds.START_MS + 1_000)
    assert (decision.action, decision.effects, decision.record) == (Action.CONTINUE, (), False)
    assert decision.after is decision.before


def test_step_advances_when_it_has_passed() -> None:
    run = at_step(THREE, 1)
    decision = decided(run, THREE)
    after = decision.after
    assert (decision.action, decision.reason) == (Action.ADVANCE, Reason.WITHIN_LIMITS)
    assert (after.step, after.epoch, after.epoch_start_ms) == (2, run.epoch + 1, NOW_MS)
    assert (after.step_start_ms, after.split_ppm) == (NOW_MS, worlds.split(500_000))
    assert (decision.effects, decision.new_epoch) == (PERSIST_FIRST, True)
    assert decision.sentence == (
        "step 2 of 3 passed: error_rate: v2 0 % errors of requests (1,000), control 0 % (19,000); "
        "next: canary v2 50 % for at least 1m"
    )


def test_shadow_passes_when_enough_copies_were_answered() -> None:
    variants = {CONTROL: arm(1_000), V2: replace(arm(0), shadow_requests=1_000)}
    decision = decided(worlds.started(THREE), THREE, healthy(NOW_MS, variants=variants))
    assert (decision.action, decision.after.phase) == (Action.ADVANCE, Phase.CANARY)
    assert decision.after.shadow_variant == ""


def test_epoch_stays_when_the_next_step_has_the_same_split() -> None:
    policy = worlds.policy(worlds.canary_step(50_000), worlds.canary_step(50_000))
    decision = decided(worlds.started(policy), policy)
    assert (decision.action, decision.new_epoch) == (Action.ADVANCE, False)
    assert decision.after.epoch == decision.before.epoch
    assert decision.effects == (Effect.PERSIST,)


def test_block_numbers_and_past_epochs_go_on_when_the_split_changes() -> None:
    run = at_step(THREE, 1)
    now_ms = worlds.START_MS + 1_000_000
    after = decided(run, THREE, healthy(now_ms), now_ms).after
    assert after.blocks_before == 4  # begun at 0, 300, 600 and 900 s
    (past,) = after.past  # the shadow's epoch served no candidate
    assert (past.epoch, past.blocks_before, past.blocks) == (run.epoch, 0, 4)


def test_past_epochs_are_bounded_when_there_are_many_steps() -> None:
    steps = [worlds.canary_step(ppm * 1_000) for ppm in range(1, PAST_EPOCHS_MAX + 5)]
    policy = worlds.policy(*steps)
    assert len(at_step(policy, len(steps) - 1).past) == PAST_EPOCHS_MAX


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (healthy(NOW_MS, sidecars=()), Reason.NO_SIDECARS),
        (healthy(NOW_MS, sidecars=(worlds.sidecar(NOW_MS - 6_000),)), Reason.STALE),
        (
            healthy(NOW_MS, sidecars=(worlds.sidecar(NOW_MS, gate=Gate.CLOSED),)),
            Reason.WAITING_FOR_UPSTREAM,
        ),
        (healthy(NOW_MS, variants={}), Reason.NO_TRAFFIC),
        (healthy(NOW_MS, requests=10), Reason.TOO_FEW_REQUESTS),
        (
            healthy(NOW_MS, variants={CONTROL: arm(9_000, units=900), V2: arm(900, units=900)}),
            Reason.SAMPLE_RATIO_MISMATCH,
        ),
        (healthy(NOW_MS, variants={CONTROL: arm(9_000), V2: arm(900, 90)}), Reason.GUARDRAIL),
    ],
)
def test_step_holds_with_a_typed_reason_when_something_is_in_doubt(
    seen: Seen, reason: Reason
) -> None:
    decision = decided(worlds.started(worlds.policy()), worlds.policy(), seen)
    assert (decision.action, decision.reason) == (Action.HOLD, reason)
    assert decision.after.state is State.RUNNING
    assert decision.effects == (Effect.PERSIST,)  # recorded, nothing published


def test_hold_is_recorded_once_when_it_stands() -> None:
    policy, nobody = worlds.policy(), healthy(NOW_MS, sidecars=())
    first = decided(worlds.started(policy), policy, nobody)
    assert first.record
    again = decided(first.after, policy, nobody, NOW_MS + 1_000)
    assert (again.action, again.record, again.effects) == (Action.HOLD, False, ())


def test_hold_is_recorded_again_when_its_reason_has_changed_for_a_while() -> None:
    policy = worlds.policy()
    first = decided(worlds.started(policy), policy, healthy(NOW_MS, sidecars=()))
    for late_ms, recorded in ((1_000, False), (HOLD_RECORD_EVERY_MS, True)):
        now_ms = NOW_MS + late_ms
        decision = decided(first.after, policy, healthy(now_ms, variants={}), now_ms)
        assert (decision.reason, decision.record) == (Reason.NO_TRAFFIC, recorded)


# -- The end -----------------------------------------------------------------------------------


def test_candidate_is_promoted_when_the_last_step_has_passed() -> None:
    policy = worlds.policy(promote=True)
    decision = decided(worlds.started(policy), policy)
    after = decision.after
    assert (decision.action, decision.promote_variant) == (Action.PROMOTE, V2)
    assert (after.state, after.winner, after.end_ms) == (State.PROMOTED, V2, NOW_MS)
    assert (after.split_ppm, after.allocation, after.phase) == ({}, {}, None)
    assert decision.effects == PERSIST_FIRST
    assert decision.tombstone_epoch == 0
    assert after.reason == decision.sentence


def test_split_stays_when_the_last_step_has_passed_and_on_finish_is_hold() -> None:
    policy = worlds.policy(promote=False)
    decision = decided(worlds.started(policy), policy)
    after = decision.after
    assert (decision.action, decision.reason) == (Action.FINISH, Reason.STEPS_FINISHED)
    assert (after.state, after.finished, after.split_ppm) == (
        State.RUNNING,
        True,
        worlds.split(50_000),
    )
    standing = decided(after, policy, now_ms=NOW_MS + 1_000)
    assert (standing.action, standing.reason) == (Action.HOLD, Reason.STEPS_FINISHED)
    assert not standing.record


def test_nobody_is_promoted_by_the_loop_when_the_baseline_has_moved() -> None:
    """The candidate was compared with another control than the one it would replace."""
    policy = worlds.policy(promote=True)
    seen = healthy(NOW_MS, baseline_moved=True)
    decision = decided(worlds.started(policy), policy, seen)
    assert (decision.action, decision.promote_variant) == (Action.FINISH, "")
    assert "the target's baseline has changed since it started" in decision.sentence
    run = decision.after
    with pytest.raises(Refused) as refused:
        commanded(run, policy, Input.PROMOTE, seen=seen)
    assert refused.value.reason == "BASELINE_MOVED"
    forced = commanded(run, policy, Input.PROMOTE, seen=seen, force=True)
    assert forced.promote_variant == V2
    assert "forced: the target's baseline has changed" in forced.sentence


@pytest.mark.parametrize("what", ["shadow last", "two candidates"])
def test_nobody_is_promoted_when_the_winner_is_not_plain(what: str) -> None:
    policy = worlds.policy(worlds.shadow_step(), promote=True)
    variants = {CONTROL: arm(1_000), V2: replace(arm(1_000), shadow_requests=1_000)}
    if what == "two candidates":
        split = {CONTROL: 800_000, V2: 100_000, "v3": 100_000}
        step = replace(worlds.canary_step(), split_ppm=split)
        policy = worlds.policy(step, promote=True, candidates=(V2, "v3"))
        variants["v3"] = arm(1_000)
    decision = decided(worlds.started(policy), policy, healthy(NOW_MS, variants=variants))
    assert decision.action is Action.FINISH


def test_ab_step_holds_its_split_when_nothing_can_decide() -> None:
    policy = worlds.policy(worlds.ab_step(), promote=True)
    decision = decided(worlds.started(policy), policy)
    assert (decision.action, decision.reason) == (Action.HOLD, Reason.NO_PRIMARY)
    policy = replace(policy, primary=PrimaryPolicy("accuracy"))
    decision = decided(worlds.started(policy), policy)
    assert (decision.action, decision.reason) == (Action.HOLD, Reason.ANALYSIS_PENDING)


# -- Harm --------------------------------------------------------------------------------------


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("kind", Kind)
def test_experiment_rolls_back_when_a_lane_has_crossed(kind: Kind, paused: bool) -> None:
    policy = worlds.policy(kinds=tuple(Kind))
    run = worlds.started(policy, last_epoch=4)
    if paused:
        run = commanded(run, policy, Input.PAUSE).after
    exemplars = (
        Exemplar(CONTROL, kind, ("no",)),
        Exemplar(V2, kind, ("trace-1", "trace-2")),
    )
    seen = healthy(NOW_MS, lanes=(worlds.crossed_lane(kind),), exemplars=exemplars)
    decision = decided(run, policy, seen)
    assert (decision.action, decision.reason) == (Action.ROLLBACK, f"LANE_{kind}")
    assert decision.effects == PUBLISH_FIRST
    assert (decision.tombstone_epoch, decision.after.state) == (5, State.ROLLED_BACK)
    assert decision.exemplar_trace_ids == ("trace-1", "trace-2")
    assert (decision.after.split_ppm, decision.after.phase) == ({}, None)


def test_sentence_names_accuracy_when_wrong_answers_roll_back() -> None:
    policy = worlds.policy(kinds=(Kind.ERROR, Kind.WRONG))
    lane = worlds.crossed_lane(Kind.WRONG)
    decision = decided(worlds.started(policy), policy, healthy(NOW_MS, lanes=(lane,)))
    assert decision.sentence == (
        "rolled back v2: accuracy: 38 of 61 first wrong answers came from v2, expected 20 %, "
        "e-value 2.1e6 > 9,867 (block 3)"
    )


def test_harm_is_not_masked_when_the_sample_ratio_is_broken_and_telemetry_is_gone() -> None:
    policy = worlds.policy()
    seen = healthy(
        NOW_MS,
        lanes=(worlds.crossed_lane(),),
        sidecars=(),
        variants={CONTROL: arm(9_000, units=900), V2: arm(900, units=900)},
    )
    assert decided(worlds.started(policy), policy, seen).action is Action.ROLLBACK


def test_shadow_rolls_back_when_the_copies_fail() -> None:
    policy = worlds.policy(worlds.shadow_step())
    window = {CONTROL: WindowSeen(10_000), V2: WindowSeen(0, 0, 1_000, 100)}
    decision = decided(worlds.started(policy), policy, healthy(NOW_MS, window=window))
    assert (decision.action, decision.reason) == (Action.ROLLBACK, Reason.WINDOW_RULE)


def test_ab_and_finished_steps_roll_back_when_harm_is_seen() -> None:
    for policy in (worlds.policy(worlds.ab_step()), worlds.policy(promote=False)):
        run = worlds.started(policy)
        run = replace(run, finished=run.phase is Phase.CANARY)
        seen = healthy(NOW_MS, lanes=(worlds.crossed_lane(),))
        assert decided(run, policy, seen).action is Action.ROLLBACK


@pytest.mark.parametrize(
    "state", [State.DRAFT, State.PROMOTED, State.ROLLED_BACK, State.STOPPED, State.INCONCLUSIVE]
)
def test_nothing_happens_when_no_step_runs(state: State) -> None:
    seen = healthy(NOW_MS, lanes=(worlds.crossed_lane(),))
    decision = decided(Run("x", state=state), worlds.policy(), seen)
    assert (decision.action, decision.effects) == (Action.CONTINUE, ())


# -- Commands ----------------------------------------------------------------------------------


def test_pause_freezes_the_dwell_when_resumed_later() -> None:
    policy = worlds.policy()
    paused = commanded(worlds.started(policy), policy, Input.PAUSE, worlds.START_MS + 20_000)
    assert (paused.action, paused.effects) == (Action.PAUSE, (Effect.PERSIST,))
    held = decided(paused.after, policy)
    assert (held.action, held.reason, held.record) == (Action.HOLD, Reason.OPERATOR, False)
    later_ms = worlds.START_MS + 1_000_000
    resumed = commanded(paused.after, policy, Input.RESUME, later_ms)
    assert resumed.after.state is State.RUNNING
    assert resumed.after.epoch == paused.before.epoch
    assert decided(resumed.after, policy, now_ms=later_ms + 39_000).action is Action.CONTINUE
    assert decided(resumed.after, policy, now_ms=later_ms + 40_001).action is Action.PROMOTE


def test_advance_moves_on_whatever_the_checks_say() -> None:
    run = worlds.started(THREE)
    command = Command(Input.ADVANCE, "alice")
    decision = apply_command(run, THREE, Seen(), command, now_ms=worlds.START_MS + 1)
    assert (decision.action, decision.after.step) == (Action.ADVANCE, 1)
    assert decision.reason is Reason.OPERATOR


def test_advance_is_refused_when_the_step_is_the_last() -> None:
    with pytest.raises(Refused, match="step 3 is the last"):
        commanded(at_step(THREE, 2), THREE, Input.ADVANCE)


def test_promote_takes_the_only_candidate_when_none_is_named() -> None:
    decision = commanded(worlds.started(THREE), THREE, Input.PROMOTE)
    assert (decision.promote_variant, decision.after.state) == (V2, State.PROMOTED)
    assert decision.effects == PERSIST_FIRST


@pytest.mark.parametrize("variant", ["", "control", "v9"])
def test_promote_is_refused_when_the_variant_is_no_candidate(variant: str) -> None:
    policy = worlds.policy(candidates=(V2, "v3"))
    with pytest.raises(Refused, match="promote one of: v2, v3"):
        commanded(worlds.started(policy), policy, Input.PROMOTE, variant=variant)


UNHEALTHY = [
    (
        (worlds.sidecar(NOW_MS), worlds.sidecar(NOW_MS, gate=Gate.CLOSED)),
        "1 of 2 connected sidecars found no healthy host in turnout.fraud.v2 yet",
    ),
    (
        (worlds.sidecar(NOW_MS, gate=Gate.UNKNOWN),),
        "1 of 1 connected sidecars have not reported on it yet",
    ),
    ((), "no sidecar is connected that could say whether it is healthy"),
    (
        (worlds.sidecar(NOW_MS, connected=False),),
        "no sidecar is connected that could say whether it is healthy",
    ),
]


@pytest.mark.parametrize(("sidecars", "why"), UNHEALTHY)
def test_promote_is_refused_when_nobody_found_the_candidate_healthy(
    sidecars: tuple[SidecarSeen, ...], why: str
) -> None:
    """Everybody would be sent to it; force does that all the same, and says so."""
    run, seen = worlds.started(THREE), healthy(NOW_MS, sidecars=sidecars)
    cluster = "turnout.fraud.v2"
    with pytest.raises(Refused, match=why) as refused:
        commanded(run, THREE, Input.PROMOTE, seen=seen, cluster=cluster)
    assert refused.value.reason == "WAITING_FOR_UPSTREAM"
    decision = commanded(run, THREE, Input.PROMOTE, seen=seen, cluster=cluster, force=True)
    assert (decision.promote_variant, decision.after.state) == (V2, State.PROMOTED)
    assert decision.sentence == f"promoted v2 by alice, forced: {why}"


def test_promote_is_obeyed_when_a_gate_waits_for_another_upstream() -> None:
    """A baseline that is down is a reason to promote."""
    seen = healthy(NOW_MS, sidecars=(worlds.sidecar(NOW_MS, gate=Gate.CLOSED),))
    run = worlds.started(THREE)
    decision = commanded(run, THREE, Input.PROMOTE, seen=seen, cluster="turnout.fraud.v3")
    assert decision.sentence == "promoted v2 by alice"


@pytest.mark.parametrize("gate", [Gate.CLOSED, Gate.UNKNOWN, None])
def test_nobody_is_promoted_on_finish_when_the_upstream_is_waited_for(gate: Gate | None) -> None:
    policy = worlds.policy(promote=True)
    sidecars = (worlds.sidecar(NOW_MS, gate=gate),) if gate else ()
    decision = decided(worlds.started(policy), policy, healthy(NOW_MS, sidecars=sidecars))
    wanted = Reason.WAITING_FOR_UPSTREAM if gate else Reason.NO_SIDECARS
    assert (decision.action, decision.reason) == (Action.HOLD, wanted)


def test_operators_rollback_publishes_first_and_leaves_a_tombstone() -> None:
    decision = commanded(worlds.started(THREE), THREE, Input.ROLLBACK, reason="looks odd")
    assert (decision.effects, decision.tombstone_epoch) == (PUBLISH_FIRST, 1)
    assert decision.sentence == "rolled back by alice: looks odd"


def test_stop_ends_without_a_verdict() -> None:
    decision = commanded(worlds.started(THREE), THREE, Input.STOP)
    assert (decision.after.state, decision.tombstone_epoch) == (State.STOPPED, 0)
    assert decision.effects == PERSIST_FIRST


def test_undo_brings_the_old_baseline_back_when_it_was_promoted() -> None:
    promoted = commanded(worlds.started(THREE), THREE, Input.PROMOTE).after
    decision = commanded(promoted, THREE, Input.UNDO)
    assert (decision.action, decision.undo) == (Action.UNDO, True)
    assert (decision.after.state, decision.tombstone_epoch) == (State.ROLLED_BACK, 1)
    assert decision.promote_variant == ""
    assert decision.sentence == "promotion of v2 undone by alice"


def test_revision_begins_a_new_epoch_and_forgets_the_old_models_evidence() -> None:
    run = at_step(THREE, 2)
    assert run.past
    decision = commanded(run, THREE, Input.REVISE, NOW_MS)
    after = decision.after
    assert (after.epoch, after.step, after.observed_revision) == (run.epoch + 1, 2, 2)
    assert (after.past, after.step_start_ms) == ((), NOW_MS)
    assert after.blocks_before == run.blocks_before + 1
    assert decision.new_epoch


def test_revision_is_refused_when_the_running_step_is_gone() -> None:
    with pytest.raises(Refused, match="step 3 runs and the new spec has only 1"):
        commanded(at_step(THREE, 2), worlds.policy(), Input.REVISE)


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        (Input.PAUSE, "cannot pause: the experiment was not started"),
        (Input.UNDO, "cannot undo: the experiment was not promoted"),
    ],
)
def test_command_is_refused_in_words_when_the_state_does_not_allow_it(
    verb: Input, message: str
) -> None:
    with pytest.raises(Refused, match=f"^{message}$"):
        commanded(Run("x"), THREE, verb)


# -- Records -----------------------------------------------------------------------------------


def test_run_survives_json_when_it_has_everything() -> None:
    run = replace(
        at_step(THREE, 2), allocation={CONTROL: ((0, 5), (9, 10)), V2: ((5, 9),)}, paused_ms=3
    )
    assert Run.from_json(run.to_json()) == run
    assert Run.from_json(run.to_json()).to_json() == run.to_json()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"experiment":1}', '{"experiment":"x","surprise":1}']
)
def test_run_is_refused_when_the_json_is_not_one(text: str) -> None:
    with pytest.raises(codec.CorruptJson):
        Run.from_json(text)


def test_record_of_before_reads_and_writes_as_ever_when_a_field_was_added() -> None:
    text = codec.to_json(healthy(NOW_MS))
    assert "baseline_moved" not in text
    assert codec.from_json(Seen, text) == healthy(NOW_MS)
    moved = healthy(NOW_MS, baseline_moved=True)
    assert codec.from_json(Seen, codec.to_json(moved)) == moved


def test_record_is_canonical_when_the_same_inputs_are_built_in_another_order() -> None:
    policy = worlds.policy()
    seen = healthy(NOW_MS)
    turned = replace(
        seen,
        variants=dict(reversed(seen.variants.items())),
        window=dict(reversed(seen.window.items())),
    )
    run = worlds.started(policy)
    first, second = (decide(run, policy, s, now_ms=NOW_MS) for s in (seen, turned))
    assert first.to_json() == second.to_json()
    assert json.loads(first.inputs_json)["policy"]["control"] == CONTROL


# -- Properties --------------------------------------------------------------------------------

counts = st.integers(0, 3_000)


@st.composite
def any_seen(draw: st.DrawFn) -> Seen:
    """Arbitrary evidence, mostly nonsense."""
    requests = {name: draw(counts) for name in (CONTROL, V2)}
    errors = {name: draw(st.integers(0, n)) for name, n in requests.items()}
    start_s = NOW_MS // 10_000 * 10
    bucket = BucketSeen(start_s, requests[V2], errors[V2])
    return Seen(
        variants={
            name: replace(arm(n, errors[name]), units=draw(st.none() | counts))
            for name, n in requests.items()
        },
        window={name: WindowSeen(n, errors[name]) for name, n in requests.items()},
        buckets={
            V2: tuple(replace(bucket, start_unix_s=start_s - 10 * i) for i in (2, 1, 0)),
        },
        lanes=(replace(worlds.crossed_lane(), crossed=draw(st.booleans())),),
        sidecars=tuple(
            worlds.sidecar(NOW_MS - draw(st.integers(0, 90_000)), gate=draw(st.sampled_from(Gate)))
            for _ in range(draw(st.integers(0, 2)))
        ),
    )


any_policy = st.sampled_from(
    [
        worlds.policy(breaker=BreakerPolicy(error_rate=0.3)),
        worlds.policy(worlds.shadow_step(), worlds.canary_step(), promote=False),
        worlds.policy(worlds.ab_step()),
        worlds.policy(guardrails=(GuardrailPolicy("error_rate", Margin(absolute=0.02)),)),
    ]
)


@settings(deadline=None)
@given(any_policy, any_seen(), st.integers(0, 3_000), st.booleans())
def test_more_harm_never_leads_away_from_rollback_when_added(
    policy: Policy, seen: Seen, more: int, paused: bool
) -> None:
    """More errors of the candidate among the same requests; a lane that has crossed as well."""
    run = worlds.started(policy)
    run = replace(run, state=State.PAUSED, paused_ms=NOW_MS) if paused else run
    before = decided(run, policy, seen)
    worse = replace(
        seen,
        variants={**seen.variants, V2: _worse(seen.variants[V2], more)},
        window={**seen.window, V2: _worse(seen.window[V2], more)},
        buckets={V2: tuple(_worse(bucket, more) for bucket in seen.buckets[V2])},
    )
    after = decided(run, policy, worse)
    if before.action is Action.ROLLBACK:
        assert after.action is Action.ROLLBACK
    crossed = replace(worse, lanes=(worlds.crossed_lane(),))
    assert decided(run, policy, crossed).action is Action.ROLLBACK


Part = TypeVar("Part", VariantSeen, WindowSeen, BucketSeen)


def _worse(part: Part, more: int) -> Part:
    return replace(part, errors=min(part.requests, part.errors + more))


@settings(deadline=None)
@given(any_policy, st.integers(0, 10_000_000), st.booleans())
def test_nothing_advances_or_rolls_back_when_there_is_no_data(
    policy: Policy, late_ms: int, connected: bool
) -> None:
    now_ms = worlds.START_MS + late_ms
    sidecars = (worlds.sidecar(now_ms),) if connected else ()
    decision = decided(worlds.started(policy), policy, Seen(sidecars=sidecars), now_ms)
    assert decision.action in (Action.CONTINUE, Action.HOLD)


@settings(deadline=None)
@given(any_policy, any_seen(), st.integers(-100_000, 10_000_000))
def test_decision_replays_byte_for_byte_when_made_on_anything(
    policy: Policy, seen: Seen, late_ms: int
) -> None:
    decided(worlds.started(policy), policy, seen, worlds.START_MS + late_ms)
