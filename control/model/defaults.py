"""Defaults filled in, and what a spec means: its split at a step, its lanes."""

from __future__ import annotations

from typing import Final

from google.protobuf.duration_pb2 import Duration

from control.model import durations
from turnout.contract import LAYER_MODELS, SESSION_COOKIE
from turnout.v1alpha1.common_pb2 import (
    BAD_EVENT_KIND_ERROR,
    BAD_EVENT_KIND_SLOW,
    BAD_EVENT_KIND_WRONG,
    NO_UNIT_SKIP,
    BadEventKind,
    Unit,
)
from turnout.v1alpha1.experiment_pb2 import (
    ON_FINISH_HOLD,
    ON_UNDECIDED_HOLD,
    ExperimentSpec,
    Step,
)
from turnout.v1alpha1.target_pb2 import TargetSpec

LATENCY_METRICS: Final = ("latency_p50", "latency_p90", "latency_p95", "latency_p99")
METRICS: Final = ("error_rate", *LATENCY_METRICS, "accuracy")
# Metrics that the design has and this version has not: UNIMPLEMENTED, not unknown.
PLANNED_METRICS: Final = ("score", "cost", "clicks", "conversions", "revenue", "client_error_rate")

TIMEOUT_DEFAULT_S: Final = 60
KEEP_PREVIOUS_DEFAULT_S: Final = 24 * 3600
REQUESTS_MIN_DEFAULT: Final = 30
CONFIDENCE_DEFAULT: Final = 0.95
ALPHA_DEFAULT: Final = 0.001
WINDOW_LENGTH_DEFAULT_S: Final = 15 * 60
WINDOW_DIFFERENCE_DEFAULT: Final = 0.05
WINDOW_REQUESTS_DEFAULT: Final = 300
BREAKER_WINDOWS_DEFAULT: Final = 3
BREAKER_REQUESTS_DEFAULT: Final = 20
SESSION_AGE_DEFAULT_S: Final = 720 * 3600
CLAIM_HEADER_DEFAULT: Final = "authorization"


def target_with_defaults(spec: TargetSpec) -> TargetSpec:
    """A copy with every default filled in: the stored form."""
    full = TargetSpec()
    full.CopyFrom(spec)
    if not full.match.hosts:
        full.match.hosts.append("*")
    full.match.path_prefix = full.match.path_prefix or "/"
    if not full.HasField("timeout"):
        full.timeout.seconds = TIMEOUT_DEFAULT_S
    if not full.HasField("keep_previous"):
        full.keep_previous.seconds = KEEP_PREVIOUS_DEFAULT_S
    return full


def experiment_with_defaults(spec: ExperimentSpec) -> ExperimentSpec:
    """A copy with every default filled in: the stored form. The salt is the caller's to make."""
    full = ExperimentSpec()
    full.CopyFrom(spec)
    _fill_unit(full.unit)
    full.layer.name = full.layer.name or LAYER_MODELS
    if not full.layer.HasField("reserve"):
        full.layer.reserve = 1.0
    full.on_finish = full.on_finish or ON_FINISH_HOLD
    for step in full.steps:
        _fill_step(step)
    _fill_safety(full)
    return full


def _fill_unit(unit: Unit) -> None:
    unit.no_unit = unit.no_unit or NO_UNIT_SKIP
    if unit.HasField("session"):
        unit.session.cookie = unit.session.cookie or SESSION_COOKIE
        if not unit.session.HasField("max_age"):
            unit.session.max_age.seconds = SESSION_AGE_DEFAULT_S
    if unit.HasField("jwt_claim") and unit.jwt_claim.unverified:
        unit.jwt_claim.header = unit.jwt_claim.header or CLAIM_HEADER_DEFAULT


def _fill_step(step: Step) -> None:
    kind = step.WhichOneof("kind")
    if kind == "shadow":
        if not step.shadow.HasField("fraction"):
            step.shadow.fraction = 1.0
        if not step.shadow.HasField("minimum_requests"):
            step.shadow.minimum_requests = REQUESTS_MIN_DEFAULT
    elif kind == "canary":
        canary = step.canary
        if not canary.checks:
            canary.checks.append("error_rate")
        if not canary.HasField("minimum_requests"):
            canary.minimum_requests = REQUESTS_MIN_DEFAULT
        canary.on_undecided = canary.on_undecided or ON_UNDECIDED_HOLD
    elif kind == "ab" and not step.ab.HasField("confidence"):
        step.ab.confidence = CONFIDENCE_DEFAULT


def _fill_safety(spec: ExperimentSpec) -> None:
    safety = spec.safety
    if not safety.HasField("alpha"):
        safety.alpha = ALPHA_DEFAULT
    window = safety.window
    if not window.HasField("length"):
        window.length.seconds = WINDOW_LENGTH_DEFAULT_S
    if not window.HasField("difference"):
        window.difference = WINDOW_DIFFERENCE_DEFAULT
    if not window.HasField("minimum_requests"):
        window.minimum_requests = WINDOW_REQUESTS_DEFAULT
    if safety.HasField("breaker"):
        if not safety.breaker.HasField("windows"):
            safety.breaker.windows = BREAKER_WINDOWS_DEFAULT
        if not safety.breaker.HasField("minimum_requests"):
            safety.breaker.minimum_requests = BREAKER_REQUESTS_DEFAULT


def candidates(spec: ExperimentSpec) -> list[str]:
    """Names of all variants but control, in the order of the spec."""
    return [variant.name for variant in spec.variants if variant.name != spec.control]


def split_at(spec: ExperimentSpec, step: int) -> dict[str, float]:
    """Candidate -> fraction of the eligible units while step `step` runs.

    A step without a split of its own (a shadow) keeps the one before it; at first everybody is
    control.
    """
    for earlier in reversed(spec.steps[: step + 1]):
        kind = earlier.WhichOneof("kind")
        if kind == "canary":
            return dict(earlier.canary.split)
        if kind == "ab":
            return dict(earlier.ab.split)
    return {}


def shadow_at(spec: ExperimentSpec, step: int) -> tuple[str, float] | None:
    """The candidate that step `step` mirrors to and the fraction of units, or None."""
    if spec.steps[step].WhichOneof("kind") != "shadow":
        return None
    shadow = spec.steps[step].shadow
    return shadow.variant, shadow.fraction if shadow.HasField("fraction") else 1.0


def slow_after(spec: ExperimentSpec) -> Duration | None:
    """The declared latency SLO: the shortest of the latency guardrails', None without one."""
    return next(iter(_slos(spec)), None)


def latency_thresholds(spec: ExperimentSpec) -> list[Duration]:
    """The other latency guardrails' SLOs, each once, ascending: all longer than `slow_after`."""
    return _slos(spec)[1:]


def _slos(spec: ExperimentSpec) -> list[Duration]:
    slos = {
        durations.milliseconds(guardrail.slo): guardrail.slo
        for guardrail in spec.metrics.guardrails
        if guardrail.metric in LATENCY_METRICS and guardrail.HasField("slo")
    }
    return [slos[limit_ms] for limit_ms in sorted(slos)]


def bad_event_kinds(spec: ExperimentSpec) -> list[BadEventKind.ValueType]:
    """Kinds of bad events that have a safety lane.

    Errors always; slow with an SLO; wrong when accuracy is a guardrail or the primary metric.
    """
    kinds: list[BadEventKind.ValueType] = [BAD_EVENT_KIND_ERROR]
    if slow_after(spec) is not None:
        kinds.append(BAD_EVENT_KIND_SLOW)
    named = {guardrail.metric for guardrail in spec.metrics.guardrails}
    named.add(spec.metrics.primary.metric)
    if "accuracy" in named:
        kinds.append(BAD_EVENT_KIND_WRONG)
    return kinds
