"""The experiment's state machine: one table over (state, input). Total; drawn in the README.

Owns which input is allowed where. Refuses with a sentence; computes no step, epoch or split.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from control.rollout.words import Action, Input, State


class Transition(NamedTuple):
    """What an input does: the next state and the decision's action."""

    state: State
    action: Action


class Refusal(NamedTuple):
    """Why an input is not allowed; goes after "cannot <input>: "."""

    sentence: str


class InvalidTransition(Exception):
    """The input is not allowed in this state.

    Attributes:
        state: Where the experiment is.
        input: What was asked.
    """

    def __init__(self, state: State, given: Input, refusal: Refusal) -> None:
        super().__init__(f"cannot {given.lower().replace('_', ' ')}: {refusal.sentence}")
        self.state = state
        self.input = given


_NOT_STARTED = Refusal("the experiment was not started")
_STARTED = Refusal("the experiment has been started")
_PAUSED = Refusal("the experiment is paused; resume it first")
_NOT_PAUSED = Refusal("the experiment is not paused")
_NOT_PROMOTED = Refusal("the experiment was not promoted")
_WAITS = Refusal("the experiment waits for an approval")
_ENDED = Refusal("the experiment has ended")
_ENDED_FOR_GOOD = Refusal(
    "the experiment has ended; apply it under another name, or delete it (turnout delete) and "
    "apply it again"
)

_ROLLED_BACK = Transition(State.ROLLED_BACK, Action.ROLLBACK)
_STOPPED = Transition(State.STOPPED, Action.STOP)
_PROMOTED = Transition(State.PROMOTED, Action.PROMOTE)

_ALL_ENDED: dict[Input, Transition | Refusal] = {
    **dict.fromkeys(Input, _ENDED),
    Input.START: _ENDED_FOR_GOOD,
}

TRANSITIONS: Final[dict[State, dict[Input, Transition | Refusal]]] = {
    State.DRAFT: {
        Input.START: Transition(State.RUNNING, Action.START),
        Input.PAUSE: _NOT_STARTED,
        Input.RESUME: _NOT_STARTED,
        Input.ADVANCE: _NOT_STARTED,
        Input.PROMOTE: _NOT_STARTED,
        Input.ROLLBACK: _NOT_STARTED,
        Input.STOP: _STOPPED,
        Input.UNDO: _NOT_PROMOTED,
        Input.REVISE: Transition(State.DRAFT, Action.CONTINUE),
        Input.HARM: _NOT_STARTED,
        Input.STEP_PASSED: _NOT_STARTED,
        Input.STEPS_FINISHED: _NOT_STARTED,
        Input.CONTROL_KEPT: _NOT_STARTED,
        Input.TIME_OVER: _NOT_STARTED,
        Input.REALLOCATED: _NOT_STARTED,
    },
    State.RUNNING: {
        Input.START: _STARTED,
        Input.PAUSE: Transition(State.PAUSED, Action.PAUSE),
        Input.RESUME: _NOT_PAUSED,
        Input.ADVANCE: Transition(State.RUNNING, Action.ADVANCE),
        Input.PROMOTE: _PROMOTED,
        Input.ROLLBACK: _ROLLED_BACK,
        Input.STOP: _STOPPED,
        Input.UNDO: _NOT_PROMOTED,
        Input.REVISE: Transition(State.RUNNING, Action.CONTINUE),
        Input.HARM: _ROLLED_BACK,
        Input.STEP_PASSED: Transition(State.RUNNING, Action.ADVANCE),
        Input.STEPS_FINISHED: Transition(State.RUNNING, Action.FINISH),
        Input.CONTROL_KEPT: _STOPPED,
        Input.TIME_OVER: Transition(State.INCONCLUSIVE, Action.STOP),
        Input.REALLOCATED: Transition(State.RUNNING, Action.REALLOCATE),
    },
    State.PAUSED: {
        Input.START: _STARTED,
        Input.PAUSE: Refusal("the experiment is paused"),
        Input.RESUME: Transition(State.RUNNING, Action.RESUME),
        Input.ADVANCE: _PAUSED,
        Input.PROMOTE: _PROMOTED,
        Input.ROLLBACK: _ROLLED_BACK,
        Input.STOP: _STOPPED,
        Input.UNDO: _NOT_PROMOTED,
        Input.REVISE: Transition(State.PAUSED, Action.CONTINUE),
        # Pausing stops advancing, never safety.
        Input.HARM: _ROLLED_BACK,
        Input.STEP_PASSED: _PAUSED,
        Input.STEPS_FINISHED: _PAUSED,
        Input.CONTROL_KEPT: _PAUSED,
        Input.TIME_OVER: _PAUSED,
        Input.REALLOCATED: _PAUSED,
    },
    # No step leads here yet; what is allowed is stated all the same.
    State.AWAITING_APPROVAL: {
        Input.START: _STARTED,
        Input.PAUSE: _WAITS,
        Input.RESUME: _NOT_PAUSED,
        Input.ADVANCE: _WAITS,
        Input.PROMOTE: _WAITS,
        Input.ROLLBACK: _ROLLED_BACK,
        Input.STOP: _STOPPED,
        Input.UNDO: _NOT_PROMOTED,
        Input.REVISE: _WAITS,
        Input.HARM: _ROLLED_BACK,
        Input.STEP_PASSED: _WAITS,
        Input.STEPS_FINISHED: _WAITS,
        Input.CONTROL_KEPT: _WAITS,
        Input.TIME_OVER: _WAITS,
        Input.REALLOCATED: _WAITS,
    },
    State.PROMOTED: {
        **_ALL_ENDED,
        Input.UNDO: Transition(State.ROLLED_BACK, Action.UNDO),
    },
    State.ROLLED_BACK: {**_ALL_ENDED, Input.UNDO: _NOT_PROMOTED},
    State.STOPPED: {**_ALL_ENDED, Input.UNDO: _NOT_PROMOTED},
    State.INCONCLUSIVE: {**_ALL_ENDED, Input.UNDO: _NOT_PROMOTED},
}


def transition(state: State, given: Input) -> Transition:
    """The table's entry.

    Raises:
        InvalidTransition: It is a refusal.
    """
    found = TRANSITIONS[state][given]
    if isinstance(found, Refusal):
        raise InvalidTransition(state, given, found)
    return found


def diagram() -> str:
    """The table as a Mermaid state diagram, one line per allowed transition."""
    lines = ["stateDiagram-v2"]
    for state, row in TRANSITIONS.items():
        for given, found in row.items():
            if isinstance(found, Transition):
                lines.append(f"  {state} --> {found.state}: {given}")
    return "\n".join(lines) + "\n"
