"""Defaults filled in, and what a spec means: its split at a step, its lanes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from google.protobuf.duration_pb2 import Duration

from control.model import durations, metrics
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
    BanditStep,
    ExperimentSpec,
    Step,
)
from turnout.v1alpha1.target_pb2 import TargetSpec

LATENCY_METRICS: Final = metrics.LATENCY
METRICS: Final = metrics.LIVE

TIMEOUT_DEFAULT_S: Final = 60
KEEP_PREVIOUS_DEFAULT_S: Final = 24 * 3600
REQUESTS_MIN_DEFAULT: Final = 30
CONFIDENCE_DEFAULT: Final = 0.95
THOMPSON: Final = "thompson"
TOP_TWO: Final = "top_two"
EVERY_DEFAULT_S: Final = 5 * 60
EXPLORATION_FLOOR_DEFAULT: Final = 0.05
BANDIT_REQUESTS_DEFAULT: Final = 100
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
        _fill_step(step, len(full.variants))
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


def _fill_step(step: Step, variants: int) -> None:
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
    elif kind == "bandit":
        _fill_bandit(step.bandit, variants)


def _fill_bandit(bandit: BanditStep, variants: int) -> None:
    bandit.algorithm = bandit.algorithm or THOMPSON
    if not bandit.HasField("exploration_floor"):
        # At least half of all traffic stays with the evidence.
        least = 1 / (2 * max(variants, 1))
        bandit.exploration_floor = min(EXPLORATION_FLOOR_DEFAULT, least)
    if not bandit.HasField("every"):
        bandit.every.seconds = EVERY_DEFAULT_S
    if not bandit.HasField("minimum_requests"):
        bandit.minimum_requests = BANDIT_REQUESTS_DEFAULT


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
        if kind == "bandit":
            return dict.fromkeys(candidates(spec), 1 / len(spec.variants))
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

    Errors always; slow with an SLO; wrong when accuracy is a guardrail, the primary metric or a
    bandit's reward.
    """
    kinds: list[BadEventKind.ValueType] = [BAD_EVENT_KIND_ERROR]
    if slow_after(spec) is not None:
        kinds.append(BAD_EVENT_KIND_SLOW)
    named = {guardrail.metric for guardrail in spec.metrics.guardrails}
    named.add(spec.metrics.primary.metric)
    named.update(step.bandit.reward.metric for step in spec.steps if step.HasField("bandit"))
    if "accuracy" in named:
        kinds.append(BAD_EVENT_KIND_WRONG)
    return kinds


def resolved(spec: ExperimentSpec, measured_as: Mapping[str, str]) -> ExperimentSpec:
    """The spec with every declared metric replaced by the built-in one that it is measured as.

    What rollouts and sidecars read; what people read keeps its names.

    Args:
        spec: As stored; it is not changed.
        measured_as: Declared name -> built-in name.
    """
    if not measured_as:
        return spec
    full = ExperimentSpec()
    full.CopyFrom(spec)
    if full.metrics.primary.metric in measured_as:
        full.metrics.primary.metric = measured_as[full.metrics.primary.metric]
    for guardrail in full.metrics.guardrails:
        guardrail.metric = measured_as.get(guardrail.metric, guardrail.metric)
    for step in full.steps:
        if step.HasField("canary"):
            step.canary.checks[:] = [measured_as.get(name, name) for name in step.canary.checks]
        if step.HasField("bandit"):
            reward = step.bandit.reward
            reward.metric = measured_as.get(reward.metric, reward.metric)
    return full


def measured_names(
    spec: ExperimentSpec, known: metrics.KnownMetrics
) -> tuple[tuple[str, str], ...]:
    """(declared, built-in) of every declared metric that an experiment names, by name."""
    names = {name for _, name in metric_names(spec)} - metrics.BUILT_IN.keys()
    return tuple((name, known.measured_as(name)) for name in sorted(names))


def metric_names(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    """Field path and name of every metric that an experiment names."""
    if spec.metrics.HasField("primary"):
        yield "spec.metrics.primary.metric", spec.metrics.primary.metric
    for index, guardrail in enumerate(spec.metrics.guardrails):
        yield f"spec.metrics.guardrails[{index}].metric", guardrail.metric
    for index, step in enumerate(spec.steps):
        path = f"spec.steps[{index}]"
        if step.HasField("bandit"):
            yield f"{path}.bandit.reward.metric", step.bandit.reward.metric
        for place, name in enumerate(step.canary.checks):
            yield f"{path}.canary.checks[{place}]", name
