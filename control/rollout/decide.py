"""Verdicts -> one decision: next state, one plain sentence, effects in order. Pure.

`decide` is the control loop's, `apply_command` the operator's; both give a `Decision`, and `replay` makes
the same one again from its record. Stores nothing, publishes nothing, reads no clock.
"""

from dataclasses import dataclass

from control.rollout.assess import Check
from control.rollout.policy import Policy
from control.rollout.run import Run
from control.rollout.seen import LaneState, Seen
from control.rollout.words import Action, Effect, Input, Reason


class Refused(Exception):
    """An operator's command that the run's state does not allow; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, why, and on what evidence; `turnout.v1alpha1.Decision`.

    Attributes:
        action: What it does.
        actor: "turnout" or the operator.
        time_ms: When, Unix milliseconds.
        before, after: The run; `after.allocation` is still the old one when `new_epoch` is true.
        reason, sentence: Why, in one word and in one sentence with the numbers.
        effects: To be carried out in this order. ROLLBACK: PUBLISH, PERSIST, ALERT (it must work with a
            full disk); everything else PERSIST before PUBLISH; empty when nothing changes.
        new_epoch: The controller sets `after.allocation = snapshot.allocate(...)` before its effects.
        record: Store it: the action changes something, or the reason of a standing hold is new.
        tombstone_epoch: Plans up to this epoch never serve again; 0 = no tombstone.
        promote_variant: Becomes the target's baseline in the same transaction; "" = none.
        undo: The target's previous baseline comes back in the same transaction.
        checks, lanes: As judged.
        exemplar_trace_ids: Traces of the kind and variant that decided.
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
    exemplar_trace_ids: tuple[str, ...] = ()
    snapshot_version: int = 0
    code_version: str = ""
    inputs_json: str = ""

    def to_json(self) -> str:
        """Canonical JSON."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Command:
    """An operator's command.

    Attributes:
        verb: One of START PAUSE RESUME ADVANCE PROMOTE ROLLBACK STOP UNDO REVISE.
        actor: Who.
        variant: For PROMOTE; may be "" with a single candidate.
        reason: For ROLLBACK and STOP; goes into the sentence.
        revision: For START and REVISE: the spec revision that `policy` was read from.
        last_epoch: For START: the highest epoch ever used by this name.
    """

    verb: Input
    actor: str
    variant: str = ""
    reason: str = ""
    revision: int = 0
    last_epoch: int = 0


def decide(run: Run, policy: Policy, seen: Seen, *, now_ms: int) -> Decision:
    """The control loop's decision for one experiment, made every second and on new evidence.

    A run that is not live gives CONTINUE without effects.
    """
    raise NotImplementedError


def apply_command(
    run: Run, policy: Policy, seen: Seen, command: Command, *, now_ms: int
) -> Decision:
    """The operator's decision.

    Raises:
        Refused: The state or the step does not allow it.
    """
    raise NotImplementedError


def replay(inputs_json: str) -> Decision:
    """The decision that these inputs give; `replay(d.inputs_json).to_json() == d.to_json()`."""
    raise NotImplementedError
