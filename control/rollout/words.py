"""The closed vocabularies of a rollout.

Members are named as in `turnout.v1alpha1` without the enum's prefix (`State.RUNNING` is
`STATE_RUNNING`), so that the edges translate by name alone. Nothing here computes.
"""

from enum import StrEnum


class State(StrEnum):
    """Where an experiment is."""

    DRAFT = "DRAFT"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    PROMOTED = "PROMOTED"
    ROLLED_BACK = "ROLLED_BACK"
    STOPPED = "STOPPED"
    INCONCLUSIVE = "INCONCLUSIVE"


class Input(StrEnum):
    """What can happen to an experiment; the first eight are an operator's commands."""

    START = "START"
    PAUSE = "PAUSE"
    RESUME = "RESUME"
    ADVANCE = "ADVANCE"
    PROMOTE = "PROMOTE"
    ROLLBACK = "ROLLBACK"
    STOP = "STOP"
    UNDO = "UNDO"
    # An accepted change of the spec.
    REVISE = "REVISE"
    # The control loop: evidence of harm; a step that passed; the last step that passed.
    HARM = "HARM"
    STEP_PASSED = "STEP_PASSED"
    STEPS_FINISHED = "STEPS_FINISHED"
    # The last step ended without a winner: control is kept; the time is over without a verdict.
    CONTROL_KEPT = "CONTROL_KEPT"
    # A bandit's look that moves units.
    REALLOCATED = "REALLOCATED"
    TIME_OVER = "TIME_OVER"


class Action(StrEnum):
    """What a decision does."""

    CONTINUE = "CONTINUE"
    HOLD = "HOLD"
    ADVANCE = "ADVANCE"
    PROMOTE = "PROMOTE"
    ROLLBACK = "ROLLBACK"
    START = "START"
    PAUSE = "PAUSE"
    RESUME = "RESUME"
    STOP = "STOP"
    FINISH = "FINISH"
    REALLOCATE = "REALLOCATE"
    UNDO = "UNDO"


class Reason(StrEnum):
    """Why; the same words as `turnout.v1alpha1.Reason`."""

    UNSPECIFIED = "UNSPECIFIED"
    WITHIN_LIMITS = "WITHIN_LIMITS"
    DWELL_NOT_OVER = "DWELL_NOT_OVER"
    NO_TRAFFIC = "NO_TRAFFIC"
    TOO_FEW_REQUESTS = "TOO_FEW_REQUESTS"
    NO_LABELS_YET = "NO_LABELS_YET"
    SAMPLE_RATIO_MISMATCH = "SAMPLE_RATIO_MISMATCH"
    STALE = "STALE"
    LOW_POWER = "LOW_POWER"
    WAITING_FOR_UPSTREAM = "WAITING_FOR_UPSTREAM"
    ANALYSIS_PENDING = "ANALYSIS_PENDING"
    LANE_ERROR = "LANE_ERROR"
    LANE_SLOW = "LANE_SLOW"
    LANE_WRONG = "LANE_WRONG"
    WINDOW_RULE = "WINDOW_RULE"
    BREAKER = "BREAKER"
    OPERATOR = "OPERATOR"
    STEPS_FINISHED = "STEPS_FINISHED"
    DIFFERENTIAL_LOSS = "DIFFERENTIAL_LOSS"
    GUARDRAIL = "GUARDRAIL"
    NO_SIDECARS = "NO_SIDECARS"
    BANDIT = "BANDIT"
    # Verdicts of the decision table.
    WARMING_UP = "WARMING_UP"
    BETTER = "BETTER"
    WORSE = "WORSE"
    FUTILE = "FUTILE"
    NO_DIFFERENCE = "NO_DIFFERENCE"
    INCONCLUSIVE = "INCONCLUSIVE"
    UNDECIDED = "UNDECIDED"
    STRATUM_HARM = "STRATUM_HARM"
    STRATA_DISAGREE = "STRATA_DISAGREE"
    NO_PRIMARY = "NO_PRIMARY"


class Verdict(StrEnum):
    """A check's outcome. No data is UNDECIDED, never one of the others."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    FAIL = "FAIL"
    UNDECIDED = "UNDECIDED"


class Kind(StrEnum):
    """Kinds of bad events; `BAD_EVENT_KIND_...` in the contract."""

    ERROR = "ERROR"
    SLOW = "SLOW"
    WRONG = "WRONG"


class Phase(StrEnum):
    """Kinds of steps that run."""

    SHADOW = "shadow"
    CANARY = "canary"
    AB = "ab"
    BANDIT = "bandit"


class Gate(StrEnum):
    """One sidecar's start gate for one epoch."""

    # The sidecar does not watch Envoy's admin: it serves without waiting.
    OFF = "OFF"
    OPEN = "OPEN"
    # Some variant's cluster has no healthy host there yet.
    CLOSED = "CLOSED"
    # The gate is on and nothing was reported for this epoch yet.
    UNKNOWN = "UNKNOWN"


class Effect(StrEnum):
    """What the controller has to do, in the order of `Decision.effects`."""

    PERSIST = "PERSIST"
    PUBLISH = "PUBLISH"
    ALERT = "ALERT"
