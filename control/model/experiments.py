"""Rules about experiments, and the features that are known and not implemented."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from control.model import durations
from control.model.defaults import LATENCY_METRICS, METRICS
from control.model.layers import check_layer, check_layer_variant, layer_name
from control.model.metrics import KnownMetrics
from control.model.predicates import Use, check_predicate
from control.model.rules import (
    DAY,
    HOUR,
    MILLISECOND,
    MINUTE,
    YEAR,
    ZERO,
    check_duration,
    check_label,
    check_model,
    check_number,
    check_salt,
    check_unique,
    check_upstream,
)
from control.model.steps import REQUESTS_MAX, check_steps
from control.model.units import check_overrides, check_unit
from control.model.violations import Report, Violation, join
from turnout.contract import (
    HEADER_PARAMETER_PREFIX,
    LAYER_MODELS,
    RESOURCE_BYTES_MAX,
    STRATA_MAX,
    VARIANTS_MAX,
)
from turnout.v1alpha1.common_pb2 import Margin, Predicate
from turnout.v1alpha1.experiment_pb2 import (
    Breaker,
    ExperimentSpec,
    Metrics,
    OnFinish,
    Safety,
    Variant,
)
from turnout.v1alpha1.target_pb2 import TargetSpec

PARAMETERS_MAX: Final = 16
PARAMETER_KEY_BYTES_MAX: Final = 48
PARAMETER_VALUE_BYTES_MAX: Final = 256
GUARDRAILS_MAX: Final = 16
BREAKER_WINDOWS_MAX: Final = 1000
ALPHA_MAX: Final = 0.1
WINDOW_REQUESTS_MIN: Final = 30
_NO_OTHERS: Final = KnownMetrics()

_PARAMETER_KEY: Final = re.compile(rf"[!#$%&'*+.^_`|~0-9a-z-]{{1,{PARAMETER_KEY_BYTES_MAX}}}")
_PARAMETER_VALUE: Final = re.compile(rf"[\x21-\x7e]{{1,{PARAMETER_VALUE_BYTES_MAX}}}")


def validate_experiment(
    tenant: str,
    name: str,
    spec: ExperimentSpec,
    target: TargetSpec | None,
    siblings: Mapping[str, ExperimentSpec],
    metrics: KnownMetrics = _NO_OTHERS,
) -> list[Violation]:
    """Every rule that an experiment breaks; empty when it may be stored.

    Features that are not implemented are not faults: see `unimplemented_experiment`.

    Args:
        tenant: Id of the tenant.
        name: Id of the experiment.
        spec: With or without defaults.
        target: The target it names; None when there is none of that name or it is not at hand: that
            a target exists is for the caller to demand.
        siblings: Id -> spec of the other experiments of that target that have not ended.
        metrics: Those that it may name beside the built-in ones.
    """
    report = Report()
    check_label(report, "tenant", tenant)
    check_label(report, "name", name)
    if spec.ByteSize() > RESOURCE_BYTES_MAX:
        report.add("spec", f"{spec.ByteSize()} bytes", f"at most {RESOURCE_BYTES_MAX} bytes")
        return report.violations
    check_label(report, "spec.target", spec.target)
    if spec.HasField("unit"):
        check_unit(report, "spec.unit", spec.unit)
    else:
        report.add("spec.unit", "missing", "required; what is kept on one variant")
    check_layer(report, spec, siblings)
    if spec.HasField("segment"):
        check_predicate(report, "spec.segment", spec.segment, Use(salt=spec.salt))
    _check_strata(report, spec)
    _check_variants(report, spec)
    _check_metrics(report, "spec.metrics", spec.metrics, metrics)
    check_steps(report, spec, metrics)
    if spec.on_finish not in OnFinish.values():
        report.add("spec.onFinish", spec.on_finish, "unknown value")
    if spec.HasField("holdback"):
        check_number(report, "spec.holdback.fraction", spec.holdback.fraction, 0, 1)
        check_duration(report, "spec.holdback.for", spec.holdback.dwell, ZERO, YEAR)
    _check_safety(report, "spec.safety", spec.safety)
    check_overrides(report, spec)
    if spec.salt:
        check_salt(report, "spec.salt", spec.salt)
    return report.violations


def _check_strata(report: Report, spec: ExperimentSpec) -> None:
    if len(spec.strata) > STRATA_MAX:
        report.add("spec.strata", f"{len(spec.strata)} strata", f"at most {STRATA_MAX}")
        return
    for index, stratum in enumerate(spec.strata):
        path = f"spec.strata[{index}]"
        check_label(report, f"{path}.name", stratum.name)
        negated = stratum.negated if stratum.HasField("negated") else None
        one = Predicate(all=stratum.all, any=stratum.any, negated=negated)
        check_predicate(report, path, one, Use(salt=spec.salt))
    names = [stratum.name for stratum in spec.strata]
    check_unique(report, "spec.strata", names, ".name")


# -- Variants -------------------------------------------------------------------------------------


def _check_variants(report: Report, spec: ExperimentSpec) -> None:
    if not 2 <= len(spec.variants) <= VARIANTS_MAX:
        value = f"{len(spec.variants)} variants"
        report.add("spec.variants", value, f"must be 2 to {VARIANTS_MAX}, control among them")
    names = [variant.name for variant in spec.variants]
    if spec.control not in names:
        value = spec.control or "missing"
        report.add("spec.control", value, "required; the name of one of the variants")
    if len(spec.variants) > VARIANTS_MAX:
        return  # thousands of faults would hide this one
    check_unique(report, "spec.variants", names, ".name")
    needs_upstream = layer_name(spec) == LAYER_MODELS
    for index, variant in enumerate(spec.variants):
        path = f"spec.variants[{index}]"
        check_label(report, f"{path}.name", variant.name)
        _check_parameters(report, f"{path}.parameters", variant)
        if variant.name == spec.control:
            for field in ("upstream", "model"):
                if variant.HasField(field):
                    rule = "control is the target's baseline and names none of its own"
                    report.add(f"{path}.{field}", "set", rule)
            continue
        if variant.HasField("model"):
            check_model(report, f"{path}.model", variant.model)
        if variant.HasField("upstream"):
            check_upstream(report, f"{path}.upstream", variant.upstream)
        elif needs_upstream:
            report.add(f"{path}.upstream", "missing", "required on every candidate")
        check_layer_variant(report, path, spec, variant)


def _check_parameters(report: Report, path: str, variant: Variant) -> None:
    if len(variant.parameters) > PARAMETERS_MAX:
        value = f"{len(variant.parameters)} parameters"
        report.add(path, value, f"at most {PARAMETERS_MAX}")
        return
    for key, value in sorted(variant.parameters.items()):
        if not _PARAMETER_KEY.fullmatch(key):
            rule = (
                f"must be 1 to {PARAMETER_KEY_BYTES_MAX} characters of a lower-case header name: "
                f"it is stamped as {HEADER_PARAMETER_PREFIX}KEY"
            )
            report.add(join(path, key), key, rule)
        if not _PARAMETER_VALUE.fullmatch(value):
            rule = f"must be 1 to {PARAMETER_VALUE_BYTES_MAX} visible ASCII characters"
            report.add(join(path, key), value, rule)


# -- Metrics and safety ---------------------------------------------------------------------------


def _check_metrics(report: Report, path: str, metrics: Metrics, known: KnownMetrics) -> None:
    if metrics.HasField("primary"):
        metric = metrics.primary.metric
        _check_metric(report, f"{path}.primary.metric", metric, known)
        if metrics.primary.HasField("minimum_improvement"):
            margin = metrics.primary.minimum_improvement
            here = f"{path}.primary.minimumImprovement"
            _check_margin(report, here, margin, known.measured_as(metric))
    if metrics.HasField("warm_up"):
        check_duration(report, f"{path}.warmUp", metrics.warm_up, ZERO, HOUR)
    if len(metrics.guardrails) > GUARDRAILS_MAX:
        value = f"{len(metrics.guardrails)} guardrails"
        report.add(f"{path}.guardrails", value, f"at most {GUARDRAILS_MAX}")
        return
    for index, guardrail in enumerate(metrics.guardrails):
        here = f"{path}.guardrails[{index}]"
        _check_metric(report, f"{here}.metric", guardrail.metric, known)
        measured = known.measured_as(guardrail.metric)
        if guardrail.HasField("maximum_harm"):
            _check_margin(report, f"{here}.maximumHarm", guardrail.maximum_harm, measured)
        if not guardrail.HasField("slo"):
            continue
        shown = durations.text(guardrail.slo)
        if measured and measured not in LATENCY_METRICS:
            report.add(f"{here}.slo", shown, f"only latency metrics have one: {guardrail.metric}")
        else:
            check_duration(report, f"{here}.slo", guardrail.slo, MILLISECOND, HOUR)
    # Two names of one measurement would be two answers to one question.
    names = [known.measured_as(item.metric) or item.metric for item in metrics.guardrails]
    check_unique(report, f"{path}.guardrails", names, ".metric")


def _check_metric(report: Report, path: str, metric: str, known: KnownMetrics) -> None:
    if (fault := known.fault(metric)) is not None:
        report.add(path, metric or "missing", fault)


def _check_margin(report: Report, path: str, margin: Margin, metric: str) -> None:
    kind = margin.WhichOneof("value")
    latency = metric in LATENCY_METRICS
    if kind is None:
        report.add(path, "none", "must have exactly one of absolute, relative")
    elif kind == "relative":
        check_number(report, f"{path}.relative", margin.relative, 0, 1000, open_low=True)
    elif metric not in METRICS:
        return  # of an unknown unit: the metric is a fault by itself
    elif kind == "absolute_duration" and not latency:
        shown = durations.text(margin.absolute_duration)
        report.add(f"{path}.absolute", shown, f"must be a number of 0 to 1 for {metric}")
    elif kind == "absolute_duration":
        check_duration(report, f"{path}.absolute", margin.absolute_duration, ZERO, HOUR)
    elif latency:
        rule = f"must be {durations.RULE} for {metric}"
        report.add(f"{path}.absolute", margin.absolute, rule)
    else:
        check_number(report, f"{path}.absolute", margin.absolute, 0, 1)


def _check_safety(report: Report, path: str, safety: Safety) -> None:
    if safety.HasField("alpha"):
        check_number(report, f"{path}.alpha", safety.alpha, 0, ALPHA_MAX, open_low=True)
    window = safety.window
    if window.HasField("length"):
        check_duration(report, f"{path}.window.length", window.length, MINUTE, DAY)
    if window.HasField("difference"):
        check_number(report, f"{path}.window.difference", window.difference, 0, 1, open_low=True)
    if window.HasField("minimum_requests"):
        here = f"{path}.window.minimumRequests"
        check_number(report, here, window.minimum_requests, WINDOW_REQUESTS_MIN, REQUESTS_MAX)
    if safety.HasField("breaker"):
        _check_breaker(report, f"{path}.breaker", safety.breaker)


def _check_breaker(report: Report, path: str, breaker: Breaker) -> None:
    if not breaker.HasField("error_rate") and not breaker.HasField("latency_p99"):
        report.add(path, "no limit", "must have errorRate, latencyP99 or both")
    if breaker.HasField("error_rate"):
        check_number(report, f"{path}.errorRate", breaker.error_rate, 0, 1, open_low=True)
    if breaker.HasField("latency_p99"):
        check_duration(report, f"{path}.latencyP99", breaker.latency_p99, MILLISECOND, HOUR)
    if breaker.HasField("windows"):
        check_number(report, f"{path}.windows", breaker.windows, 1, BREAKER_WINDOWS_MAX)
    if breaker.HasField("minimum_requests"):
        here = f"{path}.minimumRequests"
        check_number(report, here, breaker.minimum_requests, 1, REQUESTS_MAX)
