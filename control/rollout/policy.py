"""What an experiment's spec asks of the rollout: parsed once, with every default filled in.

The only reader of `ExperimentSpec` in the rollout; frozen and JSON-able, because a decision replays
from it. Validates nothing: the spec has passed `control.model`.
"""

from dataclasses import dataclass, field
from typing import Final

from control.model import defaults
from control.model.durations import milliseconds
from control.rollout import codec
from control.rollout.words import Kind, Phase
from control.snapshot import weights_ppm
from turnout import contract
from turnout.v1alpha1 import common_pb2, experiment_pb2

METRIC_ERROR_RATE: Final = "error_rate"
METRIC_ACCURACY: Final = "accuracy"
METRIC_LATENCY_PREFIX: Final = "latency_p"
ALPHA_PRIMARY: Final = 0.05
# Of what was stored when any confidence between 0 and 1 was taken: no sequence has an alpha of 0.
ALPHA_LEAST: Final = 1e-6
ALPHA_MOST: Final = 0.5


@dataclass(frozen=True, slots=True)
class Margin:
    """Tolerated harm: one of the two is set; rates 0..1 and milliseconds."""

    absolute: float | None = None
    relative: float | None = None

    def of(self, control: float) -> float:
        """The margin in the metric's unit, given control's value."""
        if self.absolute is not None:
            return self.absolute
        return (self.relative or 0.0) * control


@dataclass(frozen=True, slots=True)
class GuardrailPolicy:
    """One guardrail; no `maximum_harm`: any significant harm fails; `slo_ms`: latency only."""

    metric: str
    maximum_harm: Margin | None = None
    slo_ms: float | None = None


@dataclass(frozen=True, slots=True)
class PrimaryPolicy:
    """What an `ab` step decides by; no `minimum_improvement`: any improvement counts."""

    metric: str
    minimum_improvement: Margin | None = None


@dataclass(frozen=True, slots=True)
class BanditPolicy:
    """How a bandit step moves traffic.

    Attributes:
        algorithm: "thompson" or "top_two".
        metric: What a request earns: "error_rate" (no error) or "accuracy" (a right answer).
        floor: Least share of every variant, 0..1.
        every_ms: Shortest time between looks.
        minimum_requests: Of every variant, before shares first move.
    """

    algorithm: str
    metric: str
    floor: float
    every_ms: int
    minimum_requests: int


@dataclass(frozen=True, slots=True)
class StepPolicy:
    """One step.

    Attributes:
        phase: Its kind.
        split_ppm: Every variant (control too) -> parts per million; a shadow step keeps the
            split before it.
        shadow_variant, shadow_ppm: For shadow steps.
        dwell_ms: How long at least.
        checks: Guardrail metrics that must pass.
        minimum_requests: Of each candidate (copies, for a shadow step).
        alpha: For `ab` steps: probability that a verdict on the primary metric is wrong.
        minimum_units: For `ab` steps, of each arm.
        maximum_ms: For `ab` steps: when the verdict is INCONCLUSIVE; 0 = never.
        bandit: For `bandit` steps; `split_ppm` is the split that they begin with.
    """

    phase: Phase
    split_ppm: dict[str, int]
    shadow_variant: str = ""
    shadow_ppm: int = 0
    dwell_ms: int = 0
    checks: tuple[str, ...] = ()
    minimum_requests: int = defaults.REQUESTS_MIN_DEFAULT
    alpha: float = field(default=ALPHA_PRIMARY, metadata=codec.ADDED)
    minimum_units: int = field(default=0, metadata=codec.ADDED)
    maximum_ms: int = field(default=0, metadata=codec.ADDED)
    bandit: BanditPolicy | None = field(default=None, metadata=codec.ADDED)


@dataclass(frozen=True, slots=True)
class WindowPolicy:
    """The window rule."""

    length_ms: int = 1000 * defaults.WINDOW_LENGTH_DEFAULT_S
    difference: float = defaults.WINDOW_DIFFERENCE_DEFAULT
    minimum_requests: int = defaults.WINDOW_REQUESTS_DEFAULT


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """Absolute limits; None = no such limit."""

    error_rate: float | None = None
    latency_p99_ms: float | None = None
    windows: int = defaults.BREAKER_WINDOWS_DEFAULT
    minimum_requests: int = defaults.BREAKER_REQUESTS_DEFAULT


@dataclass(frozen=True, slots=True)
class Policy:
    """What `assess` and `decide` need of a spec.

    Attributes:
        control: Name of the control variant.
        candidates: All others, in the spec's order.
        unit_random: The unit is the request, so every bad event counts by itself.
        guardrails: In the spec's order.
        steps: As walked.
        promote_on_finish: Else hold.
        alpha: Probability of any false rollback by the lanes.
        window, breaker: The other two safety rules.
        kinds: Bad events that have a lane.
        slow_after_ms: A slower answer is a bad event, None = there is no SLOW lane.
        primary: What `ab` steps decide by, None = nothing was declared.
        strata: Their names, in the spec's order: stratum i has the number i + 1 in evidence.
        warm_up_ms: Requests that begin earlier than this in an epoch are not compared.
    """

    control: str
    candidates: tuple[str, ...]
    steps: tuple[StepPolicy, ...]
    unit_random: bool = False
    guardrails: tuple[GuardrailPolicy, ...] = ()
    promote_on_finish: bool = False
    alpha: float = defaults.ALPHA_DEFAULT
    window: WindowPolicy = field(default_factory=WindowPolicy)
    breaker: BreakerPolicy | None = None
    kinds: tuple[Kind, ...] = (Kind.ERROR,)
    slow_after_ms: float | None = None
    warm_up_ms: int = field(default=0, metadata=codec.ADDED)
    primary: PrimaryPolicy | None = field(default=None, metadata=codec.ADDED)
    strata: tuple[str, ...] = field(default=(), metadata=codec.ADDED)

    @staticmethod
    def from_spec(spec: experiment_pb2.ExperimentSpec) -> "Policy":
        """The policy of a validated spec, with or without its defaults filled in.

        Raises:
            ValueError: A step of a kind that is not implemented.
        """
        full = defaults.experiment_with_defaults(spec)
        slow_after = defaults.slow_after(full)
        return Policy(
            control=full.control,
            candidates=tuple(defaults.candidates(full)),
            steps=tuple(_step(full, index) for index in range(len(full.steps))),
            unit_random=full.unit.random,
            guardrails=tuple(_guardrail(g) for g in full.metrics.guardrails),
            promote_on_finish=full.on_finish == experiment_pb2.ON_FINISH_PROMOTE,
            alpha=full.safety.alpha,
            window=WindowPolicy(
                length_ms=int(milliseconds(full.safety.window.length)),
                difference=full.safety.window.difference,
                minimum_requests=full.safety.window.minimum_requests,
            ),
            breaker=_breaker(full.safety.breaker) if full.safety.HasField("breaker") else None,
            kinds=tuple(kind_of(number) for number in defaults.bad_event_kinds(full)),
            slow_after_ms=None if slow_after is None else milliseconds(slow_after),
            warm_up_ms=int(milliseconds(full.metrics.warm_up)),
            primary=_primary(full.metrics),
            strata=tuple(stratum.name for stratum in full.strata),
        )


def kind_of(number: common_pb2.BadEventKind.ValueType) -> Kind:
    """The contract's kind of bad event by its number.

    Raises:
        ValueError: No such kind.
    """
    return Kind(common_pb2.BadEventKind.Name(number).removeprefix("BAD_EVENT_KIND_"))


def _margin(margin: common_pb2.Margin) -> Margin | None:
    which = margin.WhichOneof("value")
    if which is None:
        return None
    if which == "relative":
        return Margin(relative=margin.relative)
    if which == "absolute_duration":
        return Margin(absolute=milliseconds(margin.absolute_duration))
    return Margin(absolute=margin.absolute)


def _primary(metrics: experiment_pb2.Metrics) -> PrimaryPolicy | None:
    primary = metrics.primary
    if not primary.metric:
        return None
    least = (
        _margin(primary.minimum_improvement) if primary.HasField("minimum_improvement") else None
    )
    return PrimaryPolicy(primary.metric, least)


def _guardrail(guardrail: experiment_pb2.Guardrail) -> GuardrailPolicy:
    harm = _margin(guardrail.maximum_harm) if guardrail.HasField("maximum_harm") else None
    slo_ms = milliseconds(guardrail.slo) if guardrail.HasField("slo") else None
    return GuardrailPolicy(metric=guardrail.metric, maximum_harm=harm, slo_ms=slo_ms)


def _step(spec: experiment_pb2.ExperimentSpec, index: int) -> StepPolicy:
    step = spec.steps[index]
    ppm = dict.fromkeys(defaults.candidates(spec), 0)
    ppm |= weights_ppm(defaults.split_at(spec, index))
    ppm = {spec.control: contract.BUCKET_COUNT - sum(ppm.values()), **ppm}
    which = step.WhichOneof("kind")
    if which == "shadow":
        variant, fraction = step.shadow.variant, step.shadow.fraction
        return StepPolicy(
            phase=Phase.SHADOW,
            split_ppm=ppm,
            shadow_variant=variant,
            shadow_ppm=weights_ppm({variant: fraction})[variant],
            dwell_ms=int(milliseconds(step.shadow.dwell)),
            minimum_requests=step.shadow.minimum_requests,
        )
    if which == "canary":
        return StepPolicy(
            phase=Phase.CANARY,
            split_ppm=ppm,
            dwell_ms=int(milliseconds(step.canary.dwell)),
            checks=tuple(step.canary.checks),
            minimum_requests=step.canary.minimum_requests,
        )
    if which == "ab":
        return StepPolicy(
            phase=Phase.AB,
            split_ppm=ppm,
            dwell_ms=int(milliseconds(step.ab.minimum_duration)),
            # As people write it: 1 - 0.95 is not 0.05.
            alpha=min(max(round(1 - step.ab.confidence, 12), ALPHA_LEAST), ALPHA_MOST),
            minimum_units=step.ab.minimum_units,
            maximum_ms=int(milliseconds(step.ab.maximum_duration)),
        )
    if which == "bandit":
        return StepPolicy(
            phase=Phase.BANDIT,
            split_ppm=ppm,
            dwell_ms=int(milliseconds(step.bandit.dwell)),
            bandit=BanditPolicy(
                algorithm=step.bandit.algorithm,
                metric=step.bandit.reward.metric,
                floor=step.bandit.exploration_floor,
                every_ms=int(milliseconds(step.bandit.every)),
                minimum_requests=step.bandit.minimum_requests,
            ),
        )
    raise ValueError(f"a step of kind {which} is not implemented")


def _breaker(breaker: experiment_pb2.Breaker) -> BreakerPolicy:
    p99_ms = milliseconds(breaker.latency_p99) if breaker.HasField("latency_p99") else None
    return BreakerPolicy(
        error_rate=breaker.error_rate if breaker.HasField("error_rate") else None,
        latency_p99_ms=p99_ms,
        windows=breaker.windows,
        minimum_requests=breaker.minimum_requests,
    )
