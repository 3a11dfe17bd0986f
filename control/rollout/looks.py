"""What a look at the evidence comes to: small, frozen, and all that a verdict is made of.

`control.rollout.reduce` makes them of cells; a decision's record keeps them, so they are values
that turn into canonical JSON: what cannot be said is None, never NaN. Refuses to judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

# The stratum of what matches none of the declared ones. No stratum can be called like this.
REST: Final = "(rest)"


class Method(StrEnum):
    """How a metric's bounds came about."""

    # Clustered by hash bucket of units, stratified by epoch: may promote, and roll back.
    BUCKETS = "BUCKETS"
    # A latency quantile from sketches, with a clustered error, stratified by epoch: as BUCKETS.
    QUANTILE = "QUANTILE"
    # Exact bounds of two rates in the present epoch, where there are too few events or units for a
    # variance: whether it is not worse by requests, whether it is worse or better by units. A step
    # may wait for it; as a guardrail it rolls nothing back.
    EXACT = "EXACT"
    # No bounds.
    NONE = "NONE"


@dataclass(frozen=True, slots=True)
class ArmLook:
    """One arm of one metric.

    Attributes:
        n: Requests, labels or whatever the metric's denominator counts.
        events: Of n, what the numerator counts; None for a quantile.
        value: In the metric's unit (shares 0..1, milliseconds), over the epochs in equal weights
            for both arms; None without data.
        buckets: Buckets of units that have some of n; 0 for a quantile.
        coverage: Share of the answered requests that have a label, of a metric that needs labels.
    """

    n: int = 0
    events: int | None = None
    value: float | None = None
    buckets: int = 0
    coverage: float | None = None


@dataclass(frozen=True, slots=True)
class MetricLook:
    """One metric of one candidate against control, overall or in one stratum.

    Attributes:
        metric: Its name.
        variant: The candidate.
        stratum: "" = all together.
        higher_is_better: Its direction.
        slo_ms: Not None: the share of answers slower than this, instead of the quantile.
        method: Where the bounds come from.
        control, candidate: The arms.
        difference: candidate - control.
        error: Its standard error, clustered.
        low, high: Two-sided confidence sequence of the difference, at the primary metric's alpha
            over the candidates.
        best: Upper bound of the gain (the difference, turned so that + is good), at the guardrails'
            share of alpha: below 0, the candidate is worse.
        worst: Lower bound of the gain, one-sided: above -margin, the candidate is not worse by it.
        margin: Tolerated harm >= 0 in the metric's unit; None = none is declared.
        effective: Trials at 50:50 that would tell as much.
    """

    metric: str
    variant: str
    higher_is_better: bool
    control: ArmLook
    candidate: ArmLook
    stratum: str = ""
    slo_ms: float | None = None
    method: Method = Method.NONE
    difference: float | None = None
    error: float | None = None
    low: float | None = None
    high: float | None = None
    best: float | None = None
    worst: float | None = None
    margin: float | None = None
    effective: float = 0.0

    @property
    def gain(self) -> float | None:
        """The difference, turned so that + is good."""
        if self.difference is None or self.higher_is_better:
            return self.difference
        return -self.difference


@dataclass(frozen=True, slots=True)
class SampleRatioLook:
    """Distinct units of the hash sample per arm against the design's shares, of one epoch.

    Attributes:
        epoch: The epoch.
        stratum: "" = all together.
        log_e: ln of the e-value against "as designed".
        units, shares: By variant.
    """

    epoch: int
    stratum: str
    log_e: float
    units: dict[str, int]
    shares: dict[str, float]


@dataclass(frozen=True, slots=True)
class DoubtLook:
    """A reason not to believe one number for everybody: "simpson" or "heterogeneity"."""

    doubt: str
    metric: str
    variant: str


@dataclass(frozen=True, slots=True)
class LossLook:
    """Labels missing in one arm more than in the other: ln e against "equally often"."""

    variant: str
    log_e: float
    control_coverage: float
    candidate_coverage: float


@dataclass(frozen=True, slots=True)
class Looks:
    """Everything that a verdict may be made of, of one experiment.

    Attributes:
        metrics: Primary, guardrails and checks of every candidate; overall, then by stratum.
        sample_ratios: Of every epoch, and of every stratum in the present one.
        losses, doubts: Of every candidate.
        units: Variant -> distinct units, about: from the hash sample of its largest epoch.
        requests: Variant -> requests looked at, warm-up left out.
        warm_up: Variant -> requests that were left out because they began in a warm-up.
        missing: Requests whose buckets no sidecar told; looked at by nothing here.
    """

    metrics: tuple[MetricLook, ...] = ()
    sample_ratios: tuple[SampleRatioLook, ...] = ()
    losses: tuple[LossLook, ...] = ()
    doubts: tuple[DoubtLook, ...] = ()
    units: dict[str, int] | None = None
    requests: dict[str, int] | None = None
    warm_up: dict[str, int] | None = None
    missing: int = 0

    def of(self, metric: str, variant: str, stratum: str = "") -> tuple[MetricLook, ...]:
        """The looks at one metric of a candidate: several where it has an SLO beside it."""
        return tuple(
            look
            for look in self.metrics
            if (look.metric, look.variant, look.stratum) == (metric, variant, stratum)
        )
