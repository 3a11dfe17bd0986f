"""What a plan says: the dataclasses that commands print.

Lengths are seconds, shares and rates 0..1; None is "never" or "not known", as each says.
"""

from __future__ import annotations

from dataclasses import dataclass

from control.planning.checks import CheckPlan
from control.planning.inputs import Caution


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """Units and times of a comparison; None = not known, and `text` says what is missing.

    Attributes:
        metric: Compared.
        effect: The minimum improvement, in the metric's unit.
        candidate_units, control_units: With one look at the end.
        inflation: Factor for a test that may be looked at any time, at its last look.
        candidate_units_most, control_units_most: With it.
        seconds, seconds_most: Until both arms have them.
        weeks: Whole weeks that the longer one takes.
        detectable: Improvement that the maximum duration can find.
        text: One clause.
    """

    metric: str
    effect: float | None
    candidate_units: float | None
    control_units: float | None
    inflation: float | None
    candidate_units_most: float | None
    control_units_most: float | None
    seconds: float | None
    seconds_most: float | None
    weeks: int | None
    detectable: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Found:
    """Harm of one size: a multiple of control's rate of bad events, and when lanes find it."""

    ratio: float
    rate: float
    chance: float
    median_s: float | None
    p95_s: float | None


@dataclass(frozen=True, slots=True)
class LanePlan:
    """What one safety lane sees in one step.

    Attributes:
        kind: Of bad event.
        base: Control's rate of them.
        smallest_rate: Of the candidate, found in the step's time in half of the cases; None = not
            even when every request is a bad event.
        smallest_ratio: The same as a multiple; None also without bad events of control.
        found: For the usual multiples.
        text: One sentence.
    """

    kind: str
    base: float
    smallest_rate: float | None
    smallest_ratio: float | None
    found: tuple[Found, ...]
    text: str


@dataclass(frozen=True, slots=True)
class CandidatePlan:
    """One candidate in one step; numbers are expected in the step's own time.

    Attributes:
        variant: Its name.
        share: Of the experiment's units (a shadow: of their copies).
        requests, control_requests: In the step's time.
        units, control_units: Distinct ones; None = not known.
        minimum_s: Until it has the step's minimumRequests.
        checks: Of the step.
        lanes: Of the experiment; those without a baseline are left out.
        comparison: Of an ab step.
    """

    variant: str
    share: float
    requests: float
    control_requests: float
    units: float | None
    control_units: float | None
    minimum_s: float
    checks: tuple[CheckPlan, ...]
    lanes: tuple[LanePlan, ...]
    comparison: ComparisonPlan | None


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step.

    Attributes:
        index: Into the steps.
        kind: As in the file.
        control: Control's share.
        least_s: Its own time.
        expected_s: Until everything that it asks for is there, when the candidate is as good as
            control (of an ab step: better by the minimum); None = never, or not known.
        most_s: Its maximum; None = no limit.
        candidates: With a share.
    """

    index: int
    kind: str
    control: float
    least_s: float
    expected_s: float | None
    most_s: float | None
    candidates: tuple[CandidatePlan, ...]


@dataclass(frozen=True, slots=True)
class ExperimentPlan:
    """A rollout.

    Attributes:
        name, target: Ids.
        requests_per_s, units_per_day: Of the experiment: what its reserve and segment leave.
        unit_random: Every request is a unit.
        steps: In order.
        least_s, expected_s, most_s: Of all steps together; see `StepPlan`.
        assumptions: Sentences: what is taken for granted.
        warnings: Doubts.
    """

    name: str
    target: str
    requests_per_s: float
    units_per_day: float | None
    unit_random: bool
    steps: tuple[StepPlan, ...]
    least_s: float
    expected_s: float | None
    most_s: float | None
    assumptions: tuple[str, ...]
    warnings: tuple[Caution, ...]
