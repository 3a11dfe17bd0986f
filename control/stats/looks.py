"""Looks: what is known at one time, and what was decided beforehand, in the form verdicts read.

Owns the shapes of evidence (effects, guardrails, strata, e-processes, windows, breakers, arms) and
of the policy, and the refusal of counts, limits and alphas that are none. Refuses to judge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from control.stats.errors import check_alpha, check_direction, check_scalar

Rule = Literal["point", "strict"]
Doubt = Literal["simpson", "heterogeneity", "input_drift"]


class Effect(NamedTuple):
    """An oriented effect (+ is good), in the metric's unit: low < effect < high, or unusable.

    metric: Its name. effect: Point estimate. low, high: Confidence sequence; of the primary both
    finite, elsewhere low may be -inf and high +inf: no bound on that side yet.
    """

    metric: str
    effect: float
    low: float
    high: float


class Guardrail(NamedTuple):
    """effect: Its high bound at alpha_g / G (harm), its low bound unsplit (non-inferiority).

    margin: Loss still non-inferior, m_g >= 0. tolerance: Harm h >= 0 that the point effect must
    reach before a rollback. stratum: Names the stratum if it guards only one.
    """

    effect: Effect
    margin: float
    tolerance: float = 0.0
    stratum: str = ""


class Stratum(NamedTuple):
    """The effect in one stratum; its bounds at alpha / number of strata."""

    name: str
    effect: Effect


class Evidence(NamedTuple):
    """An e-process: of a signal (fast lane), an epoch or segment (sample ratio), a loss.

    log_e: ln of the e-value; +inf says "impossible under the null". alpha: It fires at
    e >= 1 / alpha.
    """

    about: str
    log_e: float
    alpha: float


class Window(NamedTuple):
    """Harm of one signal in one window: fires above limit, with 300 units and 5 errors.

    difference: Oriented so that + is HARM, like limit (>= 0) and std_error (pooled).
    """

    signal: str
    difference: float
    limit: float
    std_error: float
    n_control: int
    n_treatment: int


class Breaker(NamedTuple):
    """Absolute limit: windows with enough requests that broke it, and how many trip it (k)."""

    signal: str
    limit: float
    broken: int
    needed: int


class Flips(NamedTuple):
    """Units of one epoch that were seen in more than one arm."""

    epoch: str
    flipped: int
    units: int


class Alarm(NamedTuple):
    """A doubt about one metric or input that keeps the split: `about` names it."""

    doubt: Doubt
    about: str


class Arm(NamedTuple):
    """State of one arm against the floors of the warm-up; None where a floor does not apply.

    units: Counted. buckets: Non-empty hash buckets. events, non_events: Of a proportion judged by
    a normal approximation. label_coverage: In [0, 1], of a metric that needs labels.
    """

    units: int
    buckets: int | None = None
    events: int | None = None
    non_events: int | None = None
    label_coverage: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """All that is known at one look; durations in seconds."""

    primary: Effect
    control: Arm
    treatment: Arm
    duration_s: float = 0.0
    guardrails: tuple[Guardrail, ...] = ()
    strata: tuple[Stratum, ...] = ()
    fast_lanes: tuple[Evidence, ...] = ()
    windows: tuple[Window, ...] = ()
    breakers: tuple[Breaker, ...] = ()
    sample_ratios: tuple[Evidence, ...] = ()
    losses: tuple[Evidence, ...] = ()  # labels or metrics missing in one arm more than the other
    flips: tuple[Flips, ...] = ()
    alarms: tuple[Alarm, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What was fixed before the first look.

    minimum_improvement d, equivalence q, harm_tolerance h: >= 0, in the primary's unit.
    rule: "point" promotes at low > 0 and effect >= d; "strict" at low > 0 and low >= d.
    max_units: Of both arms together.

    Raises:
        ValueError: A value is not finite, negative, a share above 1, or an unknown rule.
    """

    minimum_improvement: float
    equivalence: float
    harm_tolerance: float = 0.0
    rule: Rule = "point"
    ship_if_non_inferior: bool = False
    min_units: int = 100
    min_buckets: int = 50
    min_events: int = 10
    min_label_coverage: float = 0.0
    max_flip_share: float = 0.01
    min_duration_s: float = 0.0
    max_duration_s: float | None = None
    max_units: int | None = None

    def __post_init__(self) -> None:
        for name in ("minimum_improvement", "equivalence", "harm_tolerance", "min_duration_s"):
            check_scalar(name, getattr(self, name), ge=0)
        for name in ("min_units", "min_buckets", "min_events"):
            check_scalar(name, getattr(self, name), ge=0, whole=True)
        for name in ("min_label_coverage", "max_flip_share"):
            check_scalar(name, getattr(self, name), ge=0, le=1)
        for name in ("max_duration_s", "max_units"):
            if getattr(self, name) is not None:
                check_scalar(name, getattr(self, name), gt=0)
        if self.rule not in get_args(Rule):
            raise ValueError(f"rule == {self.rule!r}, must be one of {get_args(Rule)}")


def oriented(
    metric: str, effect: float, *, low: float, high: float, direction: str = "higher_is_better"
) -> Effect:
    """An effect (treatment - control) turned so that + is good.

    Raises:
        ValueError: Unknown direction.
    """
    if check_direction(direction) == "lower_is_better":
        return Effect(metric, -effect, -high, -low)
    return Effect(metric, effect, low, high)


def check_look(look: Look) -> None:
    """Refuse counts, margins, limits and alphas that are none; NaN effects are judged instead.

    Raises:
        ValueError: One is outside its range.
    """
    # A full check costs 20 us, too much for 10,000 verdicts a look: only what fails here gets one.
    for name, arm in (("control", look.control), ("treatment", look.treatment)):
        for field in ("units", "buckets", "events", "non_events"):
            count = getattr(arm, field)
            if count is not None and not (type(count) is int and count >= 0):
                check_scalar(f"{name}.{field}", count, ge=0, whole=True)
    for guardrail in look.guardrails:
        for field in ("margin", "tolerance"):
            if not 0 <= getattr(guardrail, field) < math.inf:
                check_scalar(f"guardrail.{field}", getattr(guardrail, field), ge=0)
    for evidence in (*look.fast_lanes, *look.sample_ratios, *look.losses):
        if not 0 < evidence.alpha < 1:
            check_alpha(evidence.alpha, name=f"alpha of {evidence.about}")
    for window in look.windows:
        check_scalar("window.limit", window.limit, ge=0)
    for breaker in look.breakers:
        check_scalar("breaker.needed", breaker.needed, ge=1, whole=True)
