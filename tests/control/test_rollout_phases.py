"""The state table: total, and every entry means what the design says."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from control.rollout import phases
from control.rollout.phases import (
    TRANSITIONS,
    InvalidTransition,
    Refusal,
    Transition,
    diagram,
    transition,
)
from control.rollout.words import Action, Input, State

ENDED = (State.PROMOTED, State.ROLLED_BACK, State.STOPPED, State.INCONCLUSIVE)
ALLOWED = {
    (State.DRAFT, Input.START): (State.RUNNING, Action.START),
    (State.DRAFT, Input.STOP): (State.STOPPED, Action.STOP),
    (State.DRAFT, Input.REVISE): (State.DRAFT, Action.CONTINUE),
    (State.RUNNING, Input.PAUSE): (State.PAUSED, Action.PAUSE),
    (State.RUNNING, Input.ADVANCE): (State.RUNNING, Action.ADVANCE),
    (State.RUNNING, Input.PROMOTE): (State.PROMOTED, Action.PROMOTE),
    (State.RUNNING, Input.ROLLBACK): (State.ROLLED_BACK, Action.ROLLBACK),
    (State.RUNNING, Input.STOP): (State.STOPPED, Action.STOP),
    (State.RUNNING, Input.REVISE): (State.RUNNING, Action.CONTINUE),
    (State.RUNNING, Input.HARM): (State.ROLLED_BACK, Action.ROLLBACK),
    (State.RUNNING, Input.STEP_PASSED): (State.RUNNING, Action.ADVANCE),
    (State.RUNNING, Input.STEPS_FINISHED): (State.RUNNING, Action.FINISH),
    (State.RUNNING, Input.CONTROL_KEPT): (State.STOPPED, Action.STOP),
    (State.RUNNING, Input.TIME_OVER): (State.INCONCLUSIVE, Action.STOP),
    (State.RUNNING, Input.REALLOCATED): (State.RUNNING, Action.REALLOCATE),
    (State.PAUSED, Input.RESUME): (State.RUNNING, Action.RESUME),
    (State.PAUSED, Input.PROMOTE): (State.PROMOTED, Action.PROMOTE),
    (State.PAUSED, Input.ROLLBACK): (State.ROLLED_BACK, Action.ROLLBACK),
    (State.PAUSED, Input.STOP): (State.STOPPED, Action.STOP),
    (State.PAUSED, Input.REVISE): (State.PAUSED, Action.CONTINUE),
    (State.PAUSED, Input.HARM): (State.ROLLED_BACK, Action.ROLLBACK),
    (State.AWAITING_APPROVAL, Input.ROLLBACK): (State.ROLLED_BACK, Action.ROLLBACK),
    (State.AWAITING_APPROVAL, Input.STOP): (State.STOPPED, Action.STOP),
    (State.AWAITING_APPROVAL, Input.HARM): (State.ROLLED_BACK, Action.ROLLBACK),
    (State.PROMOTED, Input.UNDO): (State.ROLLED_BACK, Action.UNDO),
}


def test_table_is_total_when_every_pair_is_looked_up() -> None:
    assert set(TRANSITIONS) == set(State)
    for state in State:
        assert set(TRANSITIONS[state]) == set(Input), state


@pytest.mark.parametrize(("state", "given"), list(itertools.product(State, Input)))
def test_transition_is_as_designed_when_any_input_meets_any_state(
    state: State, given: Input
) -> None:
    expected = ALLOWED.get((state, given))
    if expected is None:
        assert isinstance(TRANSITIONS[state][given], Refusal)
        with pytest.raises(InvalidTransition, match="cannot ") as caught:
            transition(state, given)
        assert (caught.value.state, caught.value.input) == (state, given)
    else:
        assert transition(state, given) == Transition(*expected)


@pytest.mark.parametrize("state", ENDED)
def test_ended_experiment_never_serves_again_when_anything_is_asked(state: State) -> None:
    reachable = {t.state for t in TRANSITIONS[state].values() if isinstance(t, Transition)}
    assert not reachable & {State.RUNNING, State.PAUSED, State.DRAFT}


def test_diagram_in_the_readme_is_the_table_when_compared() -> None:
    assert diagram().count("-->") == len(ALLOWED)
    readme = Path(phases.__file__).with_name("README.md")
    assert f"```mermaid\n{diagram()}```" in readme.read_text()
