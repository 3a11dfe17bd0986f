"""Evidence -> verdicts: one named check per question, each PASS, FAIL or UNDECIDED with a reason.

Judges; does not act. No data never passes and never fails.
"""

from dataclasses import dataclass

from control.rollout.policy import Policy
from control.rollout.run import Run
from control.rollout.seen import LaneState, Seen
from control.rollout.words import Reason, Verdict


@dataclass(frozen=True, slots=True)
class Check:
    """One metric of one candidate against control; `turnout.v1alpha1.Check`."""

    metric: str
    variant: str
    verdict: Verdict
    reason: Reason
    sentence: str
    control_value: float = 0.0
    candidate_value: float = 0.0
    control_count: int = 0
    candidate_count: int = 0


@dataclass(frozen=True, slots=True)
class Harm:
    """Evidence that takes traffic away: a lane, the window rule or a breaker."""

    variant: str
    reason: Reason
    sentence: str


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why a stage cannot pass now although nothing is harmful."""

    reason: Reason
    sentence: str


@dataclass(frozen=True, slots=True)
class Assessment:
    """Everything `decide` distinguishes.

    Attributes:
        harms: Strongest first; empty = none shown.
        doubts: About telemetry, upstreams, sample ratio, loss, dwell, traffic; most telling first.
        checks: The step's checks, then the other guardrails (shown, not asked for).
        lanes: As seen.
    """

    harms: tuple[Harm, ...]
    doubts: tuple[Doubt, ...]
    checks: tuple[Check, ...]
    lanes: tuple[LaneState, ...]


def assess(run: Run, policy: Policy, seen: Seen, *, now_ms: int) -> Assessment:
    """Judge the current step of a live run."""
    raise NotImplementedError
