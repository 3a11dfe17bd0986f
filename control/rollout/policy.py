"""What an experiment's spec asks of the rollout: parsed once, with every default filled in.

The only reader of `ExperimentSpec` in the rollout; frozen and JSON-able, because a decision replays from
it. Validates nothing: the spec has passed `control.model`.
"""

from dataclasses import dataclass, field

from google.protobuf.duration_pb2 import Duration

from control.rollout.words import Kind, Phase
from turnout import contract
from turnout.v1alpha1 import common_pb2, experiment_pb2

MINIMUM_REQUESTS = 30
ALPHA = 0.001
WINDOW_LENGTH_MS = 900_000
WINDOW_DIFFERENCE = 0.05
WINDOW_MINIMUM_REQUESTS = 300
BREAKER_WINDOWS = 3
BREAKER_MINIMUM_REQUESTS = 20
METRIC_ERROR_RATE = "error_rate"
METRIC_ACCURACY = "accuracy"
METRIC_LATENCY_PREFIX = "latency_p"


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
    """One guardrail; `maximum_harm` None = any significant harm fails; `slo_ms` for latency only."""

    metric: str
    maximum_harm: Margin | None = None
    slo_ms: float | None = None


@dataclass(frozen=True, slots=True)
class StepPolicy:
    """One step.

    Attributes:
        phase: Its kind.
        split_ppm: Every variant (control too) -> parts per million; only control for shadow steps.
        shadow_variant, shadow_ppm: For shadow steps.
        dwell_ms: How long at least.
        checks: Guardrail metrics that must pass.
        minimum_requests: Of each candidate (copies, for a shadow step).
    """

    phase: Phase
    split_ppm: dict[str, int]
    shadow_variant: str = ""
    shadow_ppm: int = 0
    dwell_ms: int = 0
    checks: tuple[str, ...] = ()
    minimum_requests: int = MINIMUM_REQUESTS


@dataclass(frozen=True, slots=True)
class WindowPolicy:
    """The window rule."""

    length_ms: int = WINDOW_LENGTH_MS
    difference: float = WINDOW_DIFFERENCE
    minimum_requests: int = WINDOW_MINIMUM_REQUESTS


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """Absolute limits; None = no such limit."""

    error_rate: float | None = None
    latency_p99_ms: float | None = None
    windows: int = BREAKER_WINDOWS
    minimum_requests: int = BREAKER_MINIMUM_REQUESTS


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
    """

    control: str
    candidates: tuple[str, ...]
    steps: tuple[StepPolicy, ...]
    unit_random: bool = False
    guardrails: tuple[GuardrailPolicy, ...] = ()
    promote_on_finish: bool = False
    alpha: float = ALPHA
    window: WindowPolicy = field(default_factory=WindowPolicy)
    breaker: BreakerPolicy | None = None
    kinds: tuple[Kind, ...] = (Kind.ERROR,)
    slow_after_ms: float | None = None

    @staticmethod
    def from_spec(spec: experiment_pb2.ExperimentSpec) -> "Policy":
        """The policy of a validated spec."""
        candidates = tuple(v.name for v in spec.variants if v.name != spec.control)
        guardrails = tuple(_guardrail(g) for g in spec.metrics.guardrails)
        slow_after_ms = min((g.slo_ms for g in guardrails if g.slo_ms is not None), default=None)
        measured = {g.metric for g in guardrails} | {spec.metrics.primary.metric}
        kinds = [Kind.ERROR]
        if slow_after_ms is not None:
            kinds.append(Kind.SLOW)
        if METRIC_ACCURACY in measured:
            kinds.append(Kind.WRONG)
        safety = spec.safety
        return Policy(
            control=spec.control,
            candidates=candidates,
            steps=tuple(_step(step, spec.control, candidates) for step in spec.steps),
            unit_random=spec.unit.random,
            guardrails=guardrails,
            promote_on_finish=spec.on_finish == experiment_pb2.ON_FINISH_PROMOTE,
            alpha=safety.alpha if safety.HasField("alpha") else ALPHA,
            window=_window(safety.window),
            breaker=_breaker(safety.breaker) if safety.HasField("breaker") else None,
            kinds=tuple(kinds),
            slow_after_ms=slow_after_ms,
        )


def _ms(duration: Duration) -> int:
    return int(duration.seconds * 1000 + duration.nanos // 1_000_000)


def _margin(margin: common_pb2.Margin) -> Margin | None:
    which = margin.WhichOneof("value")
    if which is None:
        return None
    if which == "relative":
        return Margin(relative=margin.relative)
    if which == "absolute_duration":
        return Margin(absolute=float(_ms(margin.absolute_duration)))
    return Margin(absolute=margin.absolute)


def _guardrail(guardrail: experiment_pb2.Guardrail) -> GuardrailPolicy:
    return GuardrailPolicy(
        metric=guardrail.metric,
        maximum_harm=_margin(guardrail.maximum_harm)
        if guardrail.HasField("maximum_harm")
        else None,
        slo_ms=float(_ms(guardrail.slo)) if guardrail.HasField("slo") else None,
    )


def _split_ppm(
    split: dict[str, float], control: str, candidates: tuple[str, ...]
) -> dict[str, int]:
    """Parts per million of every variant of the step; control takes what the candidates leave."""
    ppm = {name: round(split.get(name, 0.0) * contract.BUCKET_COUNT) for name in candidates}
    taken = sum(ppm.values())
    if taken > contract.BUCKET_COUNT:  # rounding of several fractions that add up to one
        largest = max(ppm, key=lambda name: ppm[name])
        ppm[largest] -= taken - contract.BUCKET_COUNT
    return {control: contract.BUCKET_COUNT - sum(ppm.values()), **ppm}


def _step(step: experiment_pb2.Step, control: str, candidates: tuple[str, ...]) -> StepPolicy:
    which = step.WhichOneof("kind")
    if which == "shadow":
        shadow = step.shadow
        fraction = shadow.fraction if shadow.HasField("fraction") else 1.0
        return StepPolicy(
            phase=Phase.SHADOW,
            split_ppm=_split_ppm({}, control, candidates),
            shadow_variant=shadow.variant,
            shadow_ppm=round(fraction * contract.BUCKET_COUNT),
            dwell_ms=_ms(shadow.dwell),
            minimum_requests=_minimum(shadow),
        )
    if which == "canary":
        canary = step.canary
        return StepPolicy(
            phase=Phase.CANARY,
            split_ppm=_split_ppm(dict(canary.split), control, candidates),
            dwell_ms=_ms(canary.dwell),
            checks=tuple(canary.checks) or (METRIC_ERROR_RATE,),
            minimum_requests=_minimum(canary),
        )
    if which == "ab":
        return StepPolicy(
            phase=Phase.AB,
            split_ppm=_split_ppm(dict(step.ab.split), control, candidates),
            dwell_ms=_ms(step.ab.minimum_duration),
        )
    raise ValueError(f"a step of kind {which} is not implemented")


def _minimum(step: experiment_pb2.ShadowStep | experiment_pb2.CanaryStep) -> int:
    return step.minimum_requests if step.HasField("minimum_requests") else MINIMUM_REQUESTS


def _window(window: experiment_pb2.SafetyWindow) -> WindowPolicy:
    return WindowPolicy(
        length_ms=_ms(window.length) if window.HasField("length") else WINDOW_LENGTH_MS,
        difference=window.difference if window.HasField("difference") else WINDOW_DIFFERENCE,
        minimum_requests=(
            window.minimum_requests
            if window.HasField("minimum_requests")
            else WINDOW_MINIMUM_REQUESTS
        ),
    )


def _breaker(breaker: experiment_pb2.Breaker) -> BreakerPolicy:
    return BreakerPolicy(
        error_rate=breaker.error_rate if breaker.HasField("error_rate") else None,
        latency_p99_ms=(
            float(_ms(breaker.latency_p99)) if breaker.HasField("latency_p99") else None
        ),
        windows=breaker.windows if breaker.HasField("windows") else BREAKER_WINDOWS,
        minimum_requests=(
            breaker.minimum_requests
            if breaker.HasField("minimum_requests")
            else BREAKER_MINIMUM_REQUESTS
        ),
    )
