"""Verdicts -> one decision: next run, one plain sentence, effects in order. Pure.

`decide` is the control loop's, `apply_command` the operator's; both give a `Decision`, and `replay`
makes the same one again from its record. Stores nothing, publishes nothing, reads no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from control.rollout import bandit, codec, plain
from control.rollout.assess import Assessment, Harm, assess
from control.rollout.checks import Check
from control.rollout.judging import CandidateVerdict
from control.rollout.phases import InvalidTransition, transition
from control.rollout.policy import BanditPolicy, Policy, StepPolicy
from control.rollout.run import PAST_EPOCHS_MAX, PastEpoch, Run
from control.rollout.seen import LaneState, Seen
from control.rollout.words import Action, Effect, Gate, Input, Phase, Reason, State, Verdict
from control.stats.verdicts import Kind as Row
from turnout.contract import BUCKET_COUNT

ACTOR_LOOP: Final = "turnout"
# A hold whose reason changes is recorded again, but no more often than this.
HOLD_RECORD_EVERY_MS: Final = 10_000
EXEMPLARS_MAX: Final = 10
BASELINE_MOVED: Final = (
    "the target's baseline has changed since it started, and was never compared with it"
)

_PUBLISH_FIRST: Final = (Effect.PUBLISH, Effect.PERSIST, Effect.ALERT)
_PERSIST_FIRST: Final = (Effect.PERSIST, Effect.PUBLISH)
_PERSIST_ONLY: Final = (Effect.PERSIST,)


# Doubts that keep an `ab` step from acting on any verdict.
_AB_DOUBTS: Final = (
    Reason.SAMPLE_RATIO_MISMATCH,
    Reason.DIFFERENTIAL_LOSS,
    Reason.NO_SIDECARS,
    Reason.WAITING_FOR_UPSTREAM,
    Reason.STALE,
)
# Rows after which more data would not make a candidate the winner.
_AB_SETTLED: Final = (
    Row.KEEP_CONTROL_WORSE,
    Row.KEEP_CONTROL_FUTILE,
    Row.NO_DIFFERENCE,
    Row.INCONCLUSIVE,
)
# Rows that would wait for more evidence.
_AB_WAITS: Final = (Row.WARMING_UP, Row.HOLD, Row.CONTINUE)
ROW_REASONS: Final = {
    Row.ROLLBACK: Reason.GUARDRAIL,
    Row.INVALID: Reason.SAMPLE_RATIO_MISMATCH,
    Row.WARMING_UP: Reason.WARMING_UP,
    Row.HOLD: Reason.STRATA_DISAGREE,
    Row.PROMOTE: Reason.BETTER,
    Row.KEEP_CONTROL_WORSE: Reason.WORSE,
    Row.KEEP_CONTROL_FUTILE: Reason.FUTILE,
    Row.NO_DIFFERENCE: Reason.NO_DIFFERENCE,
    Row.CONTINUE: Reason.UNDECIDED,
    Row.INCONCLUSIVE: Reason.INCONCLUSIVE,
}


_HOLD_REASONS: Final = {
    "stratum_harm": Reason.STRATUM_HARM,
    "simpson": Reason.STRATA_DISAGREE,
    "heterogeneity": Reason.STRATA_DISAGREE,
    "guardrail_unclear": Reason.LOW_POWER,
}


class Refused(Exception):
    """An operator's command that the run's state does not allow; the message is one sentence.

    Attributes:
        reason: In one word, for machines.
    """

    def __init__(self, message: str, *, reason: str = "WRONG_STATE") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, why, and on what evidence; `turnout.v1alpha1.Decision`.

    Attributes:
        action: What it does.
        actor: "turnout" or the operator.
        time_ms: When, Unix milliseconds.
        before, after: The run; `after.allocation` is still the old one when `new_epoch` is true.
        reason, sentence: Why, in one word and in one sentence with the numbers.
        effects: To be carried out in this order. ROLLBACK: PUBLISH, PERSIST, ALERT (it must work
            with a full disk); everything else PERSIST before PUBLISH; () when nothing changes.
        new_epoch: The controller sets `after.allocation` by `snapshot.allocate` before the effects.
        record: Store it: the action changes something, or the reason of a standing hold is new.
        tombstone_epoch: Plans up to this epoch never serve again; 0 = no tombstone.
        promote_variant: Becomes the target's baseline in the same transaction; "" = none.
        undo: The target's previous baseline comes back in the same transaction.
        checks, lanes, verdicts: As judged.
        exemplar_trace_ids: Traces of the variant and kind that decided.
        snapshot_version, code_version: As seen.
        inputs_json: Canonical JSON of everything it was made on; "" unless `record`.
    """

    action: Action
    actor: str
    time_ms: int
    before: Run
    after: Run
    reason: Reason
    sentence: str
    effects: tuple[Effect, ...] = ()
    new_epoch: bool = False
    record: bool = False
    tombstone_epoch: int = 0
    promote_variant: str = ""
    undo: bool = False
    checks: tuple[Check, ...] = ()
    lanes: tuple[LaneState, ...] = ()
    verdicts: tuple[CandidateVerdict, ...] = field(default=(), metadata=codec.ADDED)
    exemplar_trace_ids: tuple[str, ...] = ()
    snapshot_version: int = 0
    code_version: str = ""
    inputs_json: str = ""

    def to_json(self) -> str:
        """Canonical JSON."""
        return codec.to_json(self)


@dataclass(frozen=True, slots=True)
class Command:
    """An operator's command.

    Attributes:
        verb: START, PAUSE, RESUME, ADVANCE, PROMOTE, ROLLBACK, STOP, UNDO or REVISE.
        actor: Who.
        variant: For PROMOTE; may be "" with a single candidate.
        reason: For ROLLBACK and STOP; goes into the sentence.
        revision: For START and REVISE: the spec revision that `policy` was read from.
        last_epoch: For START: the highest epoch ever used by this name.
        cluster: For PROMOTE: Envoy's name of the candidate's upstream.
        force: For PROMOTE: also when nobody has found the candidate healthy.
    """

    verb: Input
    actor: str
    variant: str = ""
    reason: str = ""
    revision: int = 0
    last_epoch: int = 0
    cluster: str = ""
    force: bool = False


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything that a decision is a function of; `command` is None for the control loop's."""

    run: Run
    policy: Policy
    seen: Seen
    now_ms: int
    command: Command | None = None


def decide(run: Run, policy: Policy, seen: Seen, *, now_ms: int) -> Decision:
    """The control loop's decision for one experiment, made every second and on new evidence.

    Harm is tested before anything else, in RUNNING and in PAUSED. A run that is not live gives
    CONTINUE without effects.

    Args:
        run: As stored.
        policy: Of the revision that runs.
        seen: Of the run's present epoch.
        now_ms: Unix milliseconds.
    """
    inputs = Inputs(run, policy, seen, now_ms)
    if not run.live:
        sentence = f"no step runs: {run.state.lower().replace('_', ' ')}"
        none = Assessment((), (), (), ())
        return _standing(inputs, none, Action.CONTINUE, Reason.UNSPECIFIED, sentence)
    judged = assess(run, policy, seen, now_ms=now_ms)
    if judged.harms:
        return _roll_back(inputs, judged)
    if run.state is State.PAUSED:
        sentence = f"paused at step {_step_of(run, policy)}"
        return _standing(inputs, judged, Action.HOLD, Reason.OPERATOR, sentence)
    step = policy.steps[run.step]
    if run.finished:
        sentence = f"all {len(policy.steps)} steps have passed; promote, roll back or stop it"
        return _standing(inputs, judged, Action.HOLD, Reason.STEPS_FINISHED, sentence)
    if step.phase is Phase.AB:
        return _compare(inputs, judged)
    if step.bandit is not None:
        return _earn(inputs, judged, step.bandit)
    if judged.doubts:
        doubt = judged.doubts[0]
        early = judged.doubts[-1].reason is Reason.DWELL_NOT_OVER
        sentence = f"step {_step_of(run, policy)}: {doubt.sentence}"
        action = Action.CONTINUE if early else Action.HOLD
        return _standing(inputs, judged, action, doubt.reason, sentence)
    return _step_passed(inputs, judged)


def apply_command(
    run: Run, policy: Policy, seen: Seen, command: Command, *, now_ms: int
) -> Decision:
    """The operator's decision.

    Args:
        run: As stored.
        policy: Of the present spec (for REVISE: of the new one).
        seen: For the record; a command is obeyed whatever it says, but PROMOTE wants the candidate
            to have been healthy, or force.
        command: What is asked.
        now_ms: Unix milliseconds.

    Raises:
        Refused: The state, the step, the variants or the candidate's health do not allow it.
    """
    inputs = Inputs(run, policy, seen, now_ms, command)
    try:
        transition(run.state, command.verb)
    except InvalidTransition as invalid:
        raise Refused(str(invalid)) from invalid
    return _COMMANDS[command.verb](inputs, command)


def replay(inputs_json: str) -> Decision:
    """The decision that these inputs give; `replay(d.inputs_json).to_json() == d.to_json()`.

    Raises:
        codec.CorruptJson: The text is no record of inputs.
        Refused: It records a command that this code would refuse.
    """
    inputs = codec.from_json(Inputs, inputs_json)
    if inputs.command is not None:
        return apply_command(
            inputs.run, inputs.policy, inputs.seen, inputs.command, now_ms=inputs.now_ms
        )
    return decide(inputs.run, inputs.policy, inputs.seen, now_ms=inputs.now_ms)


# -- The control loop's outcomes ----------------------------------------------------------------


def _roll_back(inputs: Inputs, judged: Assessment) -> Decision:
    harm = judged.harms[0]
    sentence = f"rolled back {harm.variant}: {harm.sentence}"
    decision = _end(inputs, Input.HARM, harm.reason, sentence, judged)
    return replace(decision, exemplar_trace_ids=_exemplars(inputs.seen, harm))


def _exemplars(seen: Seen, harm: Harm) -> tuple[str, ...]:
    found = [
        trace_id
        for exemplar in seen.exemplars
        if exemplar.variant == harm.variant and exemplar.kind is harm.kind
        for trace_id in exemplar.trace_ids
    ]
    return tuple(found[:EXEMPLARS_MAX])


def _step_passed(
    inputs: Inputs, judged: Assessment, better: CandidateVerdict | None = None
) -> Decision:
    """To the next step, or to the end; by a verdict, when `better` is one."""
    run, policy = inputs.run, inputs.policy
    asked = policy.steps[run.step].checks
    why = "; ".join(check.sentence for check in judged.checks if check.metric in asked)
    why = why or "its time is over and no harm was seen"
    within = Reason.WITHIN_LIMITS if better is None else Reason.BETTER
    finished = Reason.STEPS_FINISHED if better is None else Reason.BETTER
    why = why if better is None else better.sentence
    last = len(policy.steps)
    if run.step + 1 < last:
        sentence = f"step {run.step + 1} of {last} passed: {why}; next: "
        sentence += _words(policy.steps[run.step + 1], policy)
        after, new_epoch = _enter(run, policy, run.step + 1, inputs.now_ms)
        given = Input.STEP_PASSED
        return _change(inputs, given, after, within, sentence, judged, new_epoch=new_epoch)
    winner = better.variant if better else _only_candidate(run, policy)
    moved = policy.promote_on_finish and bool(winner) and inputs.seen.baseline_moved
    if policy.promote_on_finish and winner and not moved:
        sentence = f"promoted {winner}: step {last} of {last} passed: {why}"
        return _end(inputs, Input.PROMOTE, finished, sentence, judged, winner)
    sentence = f"step {last} of {last} passed: {why}; "
    if moved:
        sentence += f"{BASELINE_MOVED}; "
    sentence += "the split stays until somebody decides"
    after = replace(run, finished=True)
    return _change(inputs, Input.STEPS_FINISHED, after, finished, sentence, judged)


def _compare(inputs: Inputs, judged: Assessment) -> Decision:
    """An `ab` step: the decision table's verdict on every candidate, and what follows from it."""
    run, policy = inputs.run, inputs.policy
    here = f"step {_step_of(run, policy)}: "
    # What keeps a verdict from being believed or acted on; the dwell and the traffic are among the
    # table's own questions, and a guardrail's check is one of its rows.
    for doubt in judged.doubts:
        if doubt.reason in _AB_DOUBTS:
            return _standing(inputs, judged, Action.HOLD, doubt.reason, here + doubt.sentence)
    late = 0 < policy.steps[run.step].maximum_ms <= inputs.now_ms - run.step_start_ms
    if policy.primary is None:
        sentence = "no primary metric is declared, so nothing can be decided"
        if late:
            return _kept(inputs, judged, Reason.INCONCLUSIVE, sentence)
        sentence = f"{here}{sentence}; promote it, roll it back or stop it"
        return _standing(inputs, judged, Action.HOLD, Reason.NO_PRIMARY, sentence)
    if not judged.verdicts:
        sentence = "no evidence by bucket of units yet"
        if late:
            return _kept(inputs, judged, Reason.INCONCLUSIVE, sentence)
        return _standing(inputs, judged, Action.HOLD, Reason.ANALYSIS_PENDING, here + sentence)
    rows = {verdict.variant: _row(verdict, late=late) for verdict in judged.verdicts}
    better = [verdict for verdict in judged.verdicts if rows[verdict.variant] is Row.PROMOTE]
    if len(better) == 1 and all(
        row in _AB_SETTLED for name, row in rows.items() if name != better[0].variant
    ):
        return _step_passed(inputs, judged, better[0])
    open_ = [verdict for verdict in judged.verdicts if rows[verdict.variant] not in _AB_SETTLED]
    if open_ and not better:
        verdict = open_[0]
        action = Action.HOLD if rows[verdict.variant] is Row.HOLD else Action.CONTINUE
        reason = ROW_REASONS[rows[verdict.variant]]
        if rows[verdict.variant] is Row.HOLD:
            reason = next(why for code, why in _HOLD_REASONS.items() if code in verdict.codes)
        return _standing(inputs, judged, action, reason, here + verdict.sentence)
    if better:
        names = ", ".join(verdict.variant for verdict in better)
        sentence = f"{here}{names} are better than {policy.control}; promote one of them"
        if open_:
            sentence = f"{here}{better[0].sentence}; {open_[0].sentence}"
        return _standing(inputs, judged, Action.HOLD, Reason.BETTER, sentence)
    over = Row.INCONCLUSIVE in rows.values()
    reason = Reason.INCONCLUSIVE if over else ROW_REASONS[next(iter(rows.values()))]
    said = "; ".join(verdict.sentence for verdict in judged.verdicts)
    return _kept(inputs, judged, reason, said)


def _row(verdict: CandidateVerdict, *, late: bool) -> Row:
    """A row of the table; at the maximum what waits for more evidence waits no longer."""
    row = Row(verdict.kind)
    return Row.INCONCLUSIVE if late and row in _AB_WAITS else row


def _kept(inputs: Inputs, judged: Assessment, reason: Reason, said: str) -> Decision:
    """No candidate is better, and none will be shown to be: control stays the baseline."""
    run, policy = inputs.run, inputs.policy
    over = reason is Reason.INCONCLUSIVE
    where = f"step {run.step + 1} of {len(policy.steps)}"
    if over and Row.INCONCLUSIVE not in [Row(verdict.kind) for verdict in judged.verdicts]:
        maximum = plain.duration(policy.steps[run.step].maximum_ms)
        said = f"its maximum of {maximum} is over: {said}"
    if not policy.promote_on_finish:
        sentence = f"{where} is decided: {said}; the split stays until somebody decides"
        after = replace(run, finished=True)
        return _change(inputs, Input.STEPS_FINISHED, after, reason, sentence, judged)
    sentence = f"kept {policy.control} at {where}: {said}"
    given = Input.TIME_OVER if over else Input.CONTROL_KEPT
    return _end(inputs, given, reason, sentence, judged)


def _only_candidate(run: Run, policy: Policy) -> str:
    """The one candidate that the last step serves; "" when there are several or it is a shadow."""
    serving = [name for name in policy.candidates if run.split_ppm.get(name, 0) > 0]
    return serving[0] if len(serving) == 1 and run.phase is not Phase.SHADOW else ""


def _earn(inputs: Inputs, judged: Assessment, policy: BanditPolicy) -> Decision:
    """A bandit step: it goes on, looks, or ends. What is doubtful moves nobody."""
    run, step, now_ms = inputs.run, inputs.policy.steps[inputs.run.step], inputs.now_ms
    here = f"step {_step_of(run, inputs.policy)}: "
    for doubt in judged.doubts:
        if doubt.reason in _AB_DOUBTS:
            return _standing(inputs, judged, Action.HOLD, doubt.reason, here + doubt.sentence)
    if now_ms - run.step_start_ms >= step.dwell_ms:
        return _earned(inputs, judged)
    due = bandit.look_due(run, policy, step.dwell_ms, now_ms=now_ms)
    if due > run.bandit_looks:
        return _look(inputs, judged, policy, due)
    wait_ms = bandit.next_look_ms(run, policy, step.dwell_ms) - now_ms
    sentence = f"{here}{_shares(run.split_ppm, inputs.policy)}; next look in "
    sentence += plain.duration(wait_ms)
    return _standing(inputs, judged, Action.CONTINUE, Reason.BANDIT, sentence)


def _look(inputs: Inputs, judged: Assessment, policy: BanditPolicy, due: int) -> Decision:
    """A bandit's look: recorded whatever comes of it; a new epoch when units move."""
    run, seen = replace(inputs.run, bandit_looks=due), inputs.seen.bandit
    here = f"look {due} of step {run.step + 1}: "
    if seen is None or not bandit.enough(seen, policy):
        sentence = f"{here}the shares stay: {bandit.too_few(seen, policy)}"
        decision = _decision(
            inputs, Action.CONTINUE, Reason.TOO_FEW_REQUESTS, sentence, judged, run, record=True
        )
        return replace(decision, effects=_PERSIST_ONLY)
    split = bandit.next_split(seen, policy)
    moved = bandit.moved_ppm(run.split_ppm, split.ppm)
    learnt = bandit.learnt(seen, split)
    if moved < bandit.MOVE_PPM_MIN:
        sentence = f"{here}{learnt}: {_shares(run.split_ppm, inputs.policy)} stays"
        decision = _decision(
            inputs, Action.CONTINUE, Reason.BANDIT, sentence, judged, run, record=True
        )
        return replace(decision, effects=_PERSIST_ONLY)
    share = plain.percent(moved / BUCKET_COUNT)
    sentence = f"{here}{learnt}: {_shares(split.ppm, inputs.policy)}, {share} of the units move"
    after = _begin_epoch(run, replace(run, split_ppm=split.ppm), inputs.now_ms)
    return _change(
        inputs, Input.REALLOCATED, after, Reason.BANDIT, sentence, judged, new_epoch=True
    )


def _earned(inputs: Inputs, judged: Assessment) -> Decision:
    """The end of a bandit step: the best candidate wins if it is shown to be better."""
    run, policy, seen = inputs.run, inputs.policy, inputs.seen.bandit
    where, said = f"step {run.step + 1} of {len(policy.steps)}", bandit.compared(seen)
    winner = bandit.winner(seen)
    moved = bool(winner) and inputs.seen.baseline_moved
    against = _against(policy, judged, winner)
    if policy.promote_on_finish and winner and not moved and not against:
        sentence = f"promoted {winner}: {where} is over: {said}"
        return _end(inputs, Input.PROMOTE, Reason.BETTER, sentence, judged, winner)
    if policy.promote_on_finish and not winner:
        worse = bandit.all_worse(seen)
        given = Input.CONTROL_KEPT if worse else Input.TIME_OVER
        reason = Reason.WORSE if worse else Reason.INCONCLUSIVE
        return _end(
            inputs, given, reason, f"kept {policy.control}: {where} is over: {said}", judged
        )
    sentence = f"{where} is over: {said}; "
    if moved:
        sentence += f"{BASELINE_MOVED}; "
    if policy.promote_on_finish and against:
        sentence += f"{against}; "
    sentence += "the split stays until somebody decides"
    after = replace(run, finished=True)
    return _change(inputs, Input.STEPS_FINISHED, after, Reason.STEPS_FINISHED, sentence, judged)


def _against(policy: Policy, judged: Assessment, winner: str) -> str:
    """What keeps the best arm of a bandit from being promoted, as row 5 of the table has it."""
    for doubt in judged.doubts:
        if doubt.reason is Reason.STRATUM_HARM:
            return doubt.sentence
    strict = {g.metric for g in policy.guardrails if g.maximum_harm is not None}
    guarded = {g.metric for g in policy.guardrails}
    for check in judged.checks:
        if check.variant == winner and check.metric in guarded:
            failed = check.verdict is Verdict.FAIL
            if failed or (check.metric in strict and check.verdict is not Verdict.PASS):
                return check.sentence
    return ""


# -- The operator's commands --------------------------------------------------------------------


def _start(inputs: Inputs, command: Command) -> Decision:
    now_ms, policy = inputs.now_ms, inputs.policy
    fresh = Run(
        experiment=inputs.run.experiment,
        state=State.RUNNING,
        epoch=max(command.last_epoch, inputs.run.epoch),
        start_ms=now_ms,
        observed_revision=command.revision,
    )
    after, _ = _enter(fresh, policy, 0, now_ms)
    sentence = f"started by {command.actor}: step 1 of {len(policy.steps)}: "
    sentence += _words(policy.steps[0], policy)
    return _change(
        inputs, command.verb, after, Reason.OPERATOR, sentence, _judged(inputs), new_epoch=True
    )


def _pause(inputs: Inputs, command: Command) -> Decision:
    after = replace(inputs.run, paused_ms=inputs.now_ms)
    sentence = f"paused by {command.actor} at step {_step_of(inputs.run, inputs.policy)}"
    return _change(inputs, command.verb, after, Reason.OPERATOR, sentence, _judged(inputs))


def _resume(inputs: Inputs, command: Command) -> Decision:
    run = inputs.run
    paused_for_ms = inputs.now_ms - run.paused_ms
    # Clocks may step back; the dwell never grows by that.
    started_ms = run.step_start_ms + max(0, paused_for_ms)
    after = replace(run, paused_ms=0, step_start_ms=started_ms)
    sentence = f"resumed by {command.actor} after {plain.duration(paused_for_ms)}"
    return _change(inputs, command.verb, after, Reason.OPERATOR, sentence, _judged(inputs))


def _advance(inputs: Inputs, command: Command) -> Decision:
    run, policy = inputs.run, inputs.policy
    if run.step + 1 >= len(policy.steps):
        raise Refused(f"step {run.step + 1} is the last; promote, roll back or stop it")
    after, new_epoch = _enter(run, policy, run.step + 1, inputs.now_ms)
    sentence = f"advanced by {command.actor} to step {run.step + 2} of {len(policy.steps)}: "
    sentence += _words(policy.steps[run.step + 1], policy)
    return _change(
        inputs,
        command.verb,
        after,
        Reason.OPERATOR,
        sentence,
        _judged(inputs),
        new_epoch=new_epoch,
    )


def _promote(inputs: Inputs, command: Command) -> Decision:
    candidates = inputs.policy.candidates
    variant = command.variant or (candidates[0] if len(candidates) == 1 else "")
    if variant not in candidates:
        known = ", ".join(candidates)
        raise Refused(f"{variant or 'no variant'} given; promote one of: {known}")
    sentence = f"promoted {variant} by {command.actor}"
    if unknown := _not_known_healthy(inputs.seen, command.cluster):
        if not command.force:
            message = f"cannot promote {variant}: {unknown}; wait for it, or force the promotion"
            raise Refused(message, reason=Reason.WAITING_FOR_UPSTREAM)
        sentence += f", forced: {unknown}"
    if inputs.seen.baseline_moved:
        if not command.force:
            message = f"cannot promote {variant}: {BASELINE_MOVED}; force the promotion if you will"
            raise Refused(message, reason="BASELINE_MOVED")
        sentence += f", forced: {BASELINE_MOVED}"
    return _end(inputs, command.verb, Reason.OPERATOR, sentence, _judged(inputs), variant)


def _not_known_healthy(seen: Seen, cluster: str) -> str:
    """Why nobody can say that a candidate's upstream was ever healthy; "" = it was.

    A gate that is off does not look, and is believed.
    """
    connected = [sidecar for sidecar in seen.sidecars if sidecar.connected]
    if not connected:
        return "no sidecar is connected that could say whether it is healthy"
    silent = [s for s in connected if s.gate is Gate.UNKNOWN]
    waiting = [s for s in connected if s.gate is Gate.CLOSED and cluster in s.waiting_for]
    if waiting:
        count = f"{len(waiting)} of {len(connected)} connected sidecars"
        return f"{count} found no healthy host in {cluster} yet"
    if silent:
        return f"{len(silent)} of {len(connected)} connected sidecars have not reported on it yet"
    return ""


def _operator_rollback(inputs: Inputs, command: Command) -> Decision:
    sentence = f"rolled back by {command.actor}" + _because(command)
    return _end(inputs, command.verb, Reason.OPERATOR, sentence, _judged(inputs))


def _stop(inputs: Inputs, command: Command) -> Decision:
    sentence = f"stopped by {command.actor}" + _because(command)
    return _end(inputs, command.verb, Reason.OPERATOR, sentence, _judged(inputs))


def _undo(inputs: Inputs, command: Command) -> Decision:
    run = inputs.run
    sentence = f"promotion of {run.winner} undone by {command.actor}"
    decision = _end(inputs, command.verb, Reason.OPERATOR, sentence, None)
    return replace(decision, undo=True)


def _revise(inputs: Inputs, command: Command) -> Decision:
    """The spec changed: a new epoch, whose evidence alone counts; the step begins again."""
    run, policy = inputs.run, inputs.policy
    sentence = f"spec revision {command.revision} by {command.actor}"
    after = replace(run, observed_revision=command.revision)
    if not run.live:
        return _change(inputs, command.verb, after, Reason.OPERATOR, sentence, None)
    if run.step >= len(policy.steps):
        raise Refused(f"step {run.step + 1} runs and the new spec has only {len(policy.steps)}")
    after, _ = _enter(after, policy, run.step, inputs.now_ms, anew=True)
    after = replace(after, past=(), paused_ms=inputs.now_ms if run.paused_ms else 0)
    sentence += f": step {run.step + 1} of {len(policy.steps)} begins again: "
    sentence += _words(policy.steps[run.step], policy)
    return _change(inputs, command.verb, after, Reason.OPERATOR, sentence, None, new_epoch=True)


_COMMANDS: Final = {
    Input.START: _start,
    Input.PAUSE: _pause,
    Input.RESUME: _resume,
    Input.ADVANCE: _advance,
    Input.PROMOTE: _promote,
    Input.ROLLBACK: _operator_rollback,
    Input.STOP: _stop,
    Input.UNDO: _undo,
    Input.REVISE: _revise,
}


def _because(command: Command) -> str:
    return f": {command.reason}" if command.reason else ""


def _judged(inputs: Inputs) -> Assessment | None:
    """What the evidence said when the operator decided; None where no step runs."""
    run = inputs.run
    if not run.live or run.step >= len(inputs.policy.steps):
        return None
    return assess(run, inputs.policy, inputs.seen, now_ms=inputs.now_ms)


# -- Runs ---------------------------------------------------------------------------------------


def _enter(
    run: Run, policy: Policy, index: int, now_ms: int, *, anew: bool = False
) -> tuple[Run, bool]:
    """The run at the start of a step, and whether that is a new epoch."""
    step = policy.steps[index]
    after = replace(
        run,
        step=index,
        phase=step.phase,
        step_start_ms=now_ms,
        finished=False,
        split_ppm=step.split_ppm,
        shadow_variant=step.shadow_variant,
        shadow_ppm=step.shadow_ppm,
        bandit_looks=0,
    )
    same = (run.split_ppm, run.shadow_variant, run.shadow_ppm) == (
        after.split_ppm,
        after.shadow_variant,
        after.shadow_ppm,
    )
    begun = not same or anew
    if begun:
        after = _begin_epoch(run, after, now_ms)
    if step.bandit is not None:
        after = replace(after, bandit_epoch=after.epoch)
    return after, begun


def _begin_epoch(run: Run, after: Run, now_ms: int) -> Run:
    """`after` in a new epoch; the present one's late evidence can still roll back."""
    blocks = run.blocks_begun(now_ms)
    past = run.past
    if blocks:
        ended = PastEpoch(run.epoch, run.epoch_start_ms, run.split_ppm, run.blocks_before, blocks)
        past = (*past, ended)[-PAST_EPOCHS_MAX:]
    return replace(
        after,
        epoch=run.epoch + 1,
        epoch_start_ms=now_ms,
        blocks_before=run.blocks_before + blocks,
        past=past,
    )


def _end(
    inputs: Inputs,
    given: Input,
    reason: Reason,
    sentence: str,
    judged: Assessment | None,
    winner: str = "",
) -> Decision:
    """The experiment ends: everybody is served by the target's baseline."""
    run = inputs.run
    action = transition(run.state, given).action
    blocks = run.blocks_begun(inputs.now_ms)
    ended = PastEpoch(run.epoch, run.epoch_start_ms, run.split_ppm, run.blocks_before, blocks)
    after = replace(
        run,
        # Its design is what its results are still compared by.
        past=(*run.past, ended)[-PAST_EPOCHS_MAX:] if blocks else run.past,
        phase=None,
        end_ms=inputs.now_ms,
        split_ppm={},
        allocation={},
        shadow_variant="",
        shadow_ppm=0,
        paused_ms=0,
        finished=False,
        reason=sentence,
        winner=winner,
    )
    decision = _change(inputs, given, after, reason, sentence, judged)
    taken_away = action in (Action.ROLLBACK, Action.UNDO)
    return replace(
        decision,
        effects=_PUBLISH_FIRST if action is Action.ROLLBACK else _PERSIST_FIRST,
        tombstone_epoch=run.epoch if taken_away else 0,
        promote_variant=winner,
    )


def _change(
    inputs: Inputs,
    given: Input,
    after: Run,
    reason: Reason,
    sentence: str,
    judged: Assessment | None,
    *,
    new_epoch: bool = False,
) -> Decision:
    """A decision that goes through the state table and is recorded."""
    entry = transition(inputs.run.state, given)
    after = replace(after, state=entry.state)
    effects = _PERSIST_FIRST if new_epoch else _PERSIST_ONLY
    decision = _decision(inputs, entry.action, reason, sentence, judged, after, record=True)
    return replace(decision, effects=effects, new_epoch=new_epoch)


def _standing(
    inputs: Inputs, judged: Assessment, action: Action, reason: Reason, sentence: str
) -> Decision:
    """Nothing changes. A hold is recorded when it begins, when its reason changes, when it is over.

    Else an operator would be told for days that sidecars wait which have long gone on.
    """
    run = inputs.run
    settled = inputs.now_ms - run.last_ms >= HOLD_RECORD_EVERY_MS
    announced = run.last_action in (Action.PAUSE, Action.FINISH)
    fresh = run.last_action is not Action.HOLD or (run.last_reason is not reason and settled)
    over = action is Action.CONTINUE and run.last_action is Action.HOLD and settled
    record = over or (action is Action.HOLD and fresh and not announced)
    decision = _decision(inputs, action, reason, sentence, judged, run, record=record)
    return replace(decision, effects=_PERSIST_ONLY) if record else decision


def _decision(
    inputs: Inputs,
    action: Action,
    reason: Reason,
    sentence: str,
    judged: Assessment | None,
    after: Run,
    *,
    record: bool,
) -> Decision:
    if record:
        after = replace(after, last_action=action, last_reason=reason, last_ms=inputs.now_ms)
    return Decision(
        action=action,
        actor=inputs.command.actor if inputs.command else ACTOR_LOOP,
        time_ms=inputs.now_ms,
        before=inputs.run,
        after=after,
        reason=reason,
        sentence=sentence,
        record=record,
        checks=judged.checks if judged else (),
        lanes=judged.lanes if judged else (),
        verdicts=judged.verdicts if judged else (),
        snapshot_version=inputs.seen.snapshot_version,
        code_version=inputs.seen.code_version,
        inputs_json=codec.to_json(inputs) if record else "",
    )


# -- Words --------------------------------------------------------------------------------------


def _step_of(run: Run, policy: Policy) -> str:
    step = policy.steps[run.step]
    return f"{run.step + 1} of {len(policy.steps)} ({_words(step, policy)})"


def _words(step: StepPolicy, policy: Policy) -> str:
    for_ = f" for at least {plain.duration(step.dwell_ms)}" if step.dwell_ms else ""
    if step.phase is Phase.SHADOW:
        share = plain.percent(step.shadow_ppm / BUCKET_COUNT)
        return f"shadow {step.shadow_variant} {share}{for_}"
    if step.bandit is not None:
        return f"bandit {step.bandit.algorithm} on {step.bandit.metric}{for_}"
    split = ", ".join(
        f"{name} {plain.percent(step.split_ppm[name] / BUCKET_COUNT)}"
        for name in policy.candidates
        if step.split_ppm.get(name, 0) > 0
    )
    kind = "A/B test" if step.phase is Phase.AB else "canary"
    alone = (
        "" if step.split_ppm.get(policy.control, 0) else ", no control left: no lanes, no checks"
    )
    return f"{kind} {split or 'nobody'}{for_}{alone}"


def _shares(split_ppm: Mapping[str, int], policy: Policy) -> str:
    names = (policy.control, *policy.candidates)
    return ", ".join(f"{n} {plain.percent(split_ppm.get(n, 0) / BUCKET_COUNT)}" for n in names)
