"""What evidence shows of one experiment: the only input of `assess`, filled by `control.evidence`.

Values only: no clock, no thresholds, no judgement. Everything is frozen and turns into canonical
JSON (`control.rollout.codec`), because a decision is replayed from it.
"""

from dataclasses import dataclass, field

from control.rollout import codec
from control.rollout.looks import Looks
from control.rollout.words import Gate, Kind
from turnout import contract


@dataclass(frozen=True, slots=True)
class Sketch:
    """A latency sketch (DDSketch with `contract.LATENCY_SKETCH_GAMMA`), relative error 1 %.

    Attributes:
        bins: (index, count), sorted by index, counts > 0; bin i holds (gamma^(i-1), gamma^i] ms.
        zero: Answers below `contract.LATENCY_MIN_MS`.
        sum_ms: Sum of all latencies, milliseconds.
    """

    bins: tuple[tuple[int, int], ...] = ()
    zero: int = 0
    sum_ms: float = 0.0

    @property
    def count(self) -> int:
        """Answers in the sketch."""
        return self.zero + sum(count for _, count in self.bins)

    def quantile(self, q: float) -> float | None:
        """The q-quantile in milliseconds, None without data.

        Args:
            q: In [0, 1].
        """
        total = self.count
        if total == 0:
            return None
        rank = q * (total - 1)
        below = self.zero
        if rank < below:
            return 0.0
        for index, count in self.bins:
            below += count
            if rank < below:
                return _middle_ms(index)
        return _middle_ms(self.bins[-1][0]) if self.bins else 0.0

    def above(self, limit_ms: float) -> int:
        """Answers whose bin's middle is above the limit (milliseconds)."""
        return sum(count for index, count in self.bins if _middle_ms(index) > limit_ms)


def _middle_ms(index: int) -> float:
    # The point of the bin with equal relative distance to both ends (Masson, Rim, Lee 2019, eq. 3).
    gamma = contract.LATENCY_SKETCH_GAMMA
    return float(2.0 * gamma**index / (gamma + 1.0))


@dataclass(frozen=True, slots=True)
class VariantSeen:
    """One variant over the current epoch (all strata together).

    Attributes:
        decided: Answers given by sidecars, but for those that forced the variant and were logged.
        requests: Access-log entries folded, errors included; forced ones are in none of the counts.
        errors, slow, client_cancelled: Of `requests`.
        latency: Time to last byte sent.
        labelled, correct: Served requests with prediction and label; of these the right answers.
        shadow_...: The same of mirrored copies.
        units: Distinct units exposed in this epoch, counted on the same hash sample in every
            variant; None = not counted.
        first_bad_unix_ms: Earliest bad event, 0 = none.
    """

    decided: int = 0
    requests: int = 0
    errors: int = 0
    slow: int = 0
    client_cancelled: int = 0
    latency: Sketch = field(default_factory=Sketch)
    labelled: int = 0
    correct: int = 0
    shadow_requests: int = 0
    shadow_errors: int = 0
    shadow_slow: int = 0
    shadow_labelled: int = 0
    shadow_correct: int = 0
    shadow_latency: Sketch = field(default_factory=Sketch)
    units: int | None = None
    first_bad_unix_ms: int = 0


@dataclass(frozen=True, slots=True)
class BucketSeen:
    """One variant in one time bucket of `contract.TIME_BUCKET_S` seconds of the current epoch.

    Attributes:
        start_unix_s: A multiple of `contract.TIME_BUCKET_S`.
        requests, errors: Served requests.
        latency: Their sketch; may be left empty when the policy has no latency breaker.
        shadow_requests, shadow_errors, shadow_latency: The same of mirrored copies.
    """

    start_unix_s: int
    requests: int = 0
    errors: int = 0
    latency: Sketch = field(default_factory=Sketch)
    shadow_requests: int = 0
    shadow_errors: int = 0
    shadow_latency: Sketch = field(default_factory=Sketch)


@dataclass(frozen=True, slots=True)
class WindowSeen:
    """One variant over the safety window (its buckets of the current epoch, added up)."""

    requests: int = 0
    errors: int = 0
    shadow_requests: int = 0
    shadow_errors: int = 0


@dataclass(frozen=True, slots=True)
class LaneState:
    """The strongest live block of one safety lane.

    Attributes:
        kind: Kind of bad event.
        variant: The candidate.
        block: 1-based number of the block over the whole experiment.
        log_e_value, log_threshold: Natural logarithms.
        candidate_events, control_events: First bad events of units in the block.
        theta: Share of the candidate's events without harm.
        crossed: log_e_value >= log_threshold.
    """

    kind: Kind
    variant: str
    block: int
    log_e_value: float
    log_threshold: float
    candidate_events: int
    control_events: int
    theta: float
    crossed: bool


@dataclass(frozen=True, slots=True)
class SidecarSeen:
    """One sidecar of the tenant.

    Attributes:
        node: Its name.
        connected: Its config stream is open.
        last_seen_unix_ms: Last report or delta received from it (control plane's clock).
        gate: Its start gate for this experiment's current epoch.
        waiting_for: Clusters without a healthy host there.
    """

    node: str
    connected: bool
    last_seen_unix_ms: int
    gate: Gate = Gate.OFF
    waiting_for: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Exemplar:
    """Traces that show a bad event."""

    variant: str
    kind: Kind
    trace_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the ends of its confidence sequence."""

    estimate: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class ArmSeen:
    """One variant of a bandit step, over all epochs of the step.

    Attributes:
        variant: Its name.
        requests: Requests that earned or missed a reward.
        mean, variance: Mean reward, 0..1, and its variance; epochs weighted by their traffic. None
            while no epoch has requests in every variant.
        propensity_mean: The same by inverse propensity; None without requests.
        strata, propensity: Difference from control, within epochs and by inverse propensity; None
            for control, and without evidence.
    """

    variant: str
    requests: int
    mean: float | None
    variance: float | None
    propensity_mean: float | None
    strata: Interval | None = None
    propensity: Interval | None = None


@dataclass(frozen=True, slots=True)
class BanditSeen:
    """What a bandit step has earned.

    Attributes:
        arms: Every variant, control first.
        epochs: Of the step, the present one included.
        regret: Rewards lost against serving the best mean to everybody, estimated.
        uniform_regret: What equal shares would have lost.
        missing: Requests that are in no bucket, so that no arm has them.
    """

    arms: tuple[ArmSeen, ...]
    epochs: int
    regret: float
    uniform_regret: float
    missing: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything `decide` may look at, for one experiment and its current epoch.

    Attributes:
        variants: Over the current epoch, by name; a missing variant has seen nothing.
        window: Over the last `policy.window.length_ms` of the current epoch, by name.
        buckets: The last `policy.breaker.windows` + 2 time buckets (the present one included),
            oldest first, by name; needed only with a breaker.
        lanes: From `lanes.assess_all`.
        sidecars: Connected ones, and those lost less than `SIDECAR_FORGOTTEN_AFTER_MS` ago.
        exemplars: At most a few per variant and kind.
        snapshot_version: The tenant's version that serves now.
        code_version: Of the control plane.
        baseline_moved: The target's baseline is no longer what control is pinned to.
        bandit: Of a bandit step, None = another step runs, or there is nothing yet.
        looks: At the evidence by bucket of units, over all epochs of the run; None = there is none
            that can be looked at.
    """

    variants: dict[str, VariantSeen] = field(default_factory=dict)
    window: dict[str, WindowSeen] = field(default_factory=dict)
    buckets: dict[str, tuple[BucketSeen, ...]] = field(default_factory=dict)
    lanes: tuple[LaneState, ...] = ()
    sidecars: tuple[SidecarSeen, ...] = ()
    exemplars: tuple[Exemplar, ...] = ()
    snapshot_version: int = 0
    code_version: str = ""
    baseline_moved: bool = field(default=False, metadata=codec.ADDED)
    looks: Looks | None = field(default=None, metadata=codec.ADDED)
    bandit: BanditSeen | None = field(default=None, metadata=codec.ADDED)


# A sidecar that was scaled away must not hold a stage for ever; when it returns, what it counted
# for an old epoch counts for that epoch.
SIDECAR_FORGOTTEN_AFTER_MS = 60_000
