"""Metrics: those that every tenant has, those that it declares, and what each one means.

Owns the registry of built-in metrics, the rules of `kind: Metric`, and which of them are measured
live. Pure; computes nothing: `control.rollout` judges live metrics, `control.analyze` all of them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from google.protobuf.duration_pb2 import Duration

from control.model.names import is_label
from control.model.rules import (
    DAY,
    ZERO,
    check_duration,
    check_label,
    check_number,
    check_text,
    check_unique,
)
from control.model.violations import Report, Violation
from turnout.v1alpha1.metric_pb2 import (
    METRIC_DIRECTION_HIGHER_IS_BETTER,
    METRIC_DIRECTION_LOWER_IS_BETTER,
    METRIC_DIRECTION_UNSPECIFIED,
    METRIC_KIND_CLASSIFIER,
    METRIC_KIND_COUNT,
    METRIC_KIND_DRIFT,
    METRIC_KIND_MEAN,
    METRIC_KIND_PROPORTION,
    METRIC_KIND_QUANTILE,
    METRIC_KIND_RATIO,
    MetricDirection,
    MetricSpec,
)

COLUMN_BYTES_MAX: Final = 128
UNIT_BYTES_MAX: Final = 16
DESCRIPTION_BYTES_MAX: Final = 256
SEGMENTS_MAX: Final = 8
LABEL_MATURITY_MAX: Final = Duration(seconds=90 * DAY.seconds)
# Values that every request shows by itself; any other value is a column of outcomes.
VALUE_ERROR: Final = "error"
VALUE_LATENCY: Final = "latency"
MILLISECONDS: Final = "ms"


class Kind(StrEnum):
    """What a metric is computed as; the words of resource files and of `turnout analyze`."""

    PROPORTION = "proportion"
    MEAN = "mean"
    RATIO = "ratio"
    QUANTILE = "quantile"
    COUNT = "count"
    CLASSIFIER = "classifier"
    # Of a distribution, not of units: built in only.
    DRIFT = "drift"


class Direction(StrEnum):
    """Which way is better."""

    HIGHER = "higherIsBetter"
    LOWER = "lowerIsBetter"

    @property
    def sign(self) -> int:
        """What a difference is multiplied by, so that more is better: 1 or -1."""
        return 1 if self is Direction.HIGHER else -1


class Definition(NamedTuple):
    """What a metric means, built in or declared, with every default filled in.

    Attributes:
        name: As experiments and `turnout analyze --metric` say it.
        kind: See `Kind`.
        direction: See `Direction`.
        value: Column that is measured; `error` or `latency` for what a request shows by itself; ""
            for ratio and classifier.
        numerator, denominator: Columns of a ratio, else "".
        quantile: In (0, 1) for a quantile, else None.
        statistic: Of a classifier (a name of `CLASSIFIER_STATISTICS`), else "".
        cap: Greater values count as this much (a ratio's numerator); None = no cap.
        covariate: Column known before the exposure, "" = none.
        segments: Columns by whose values it is shown apart.
        label_maturity_s: Exposures younger than this, in seconds, are left out.
        unit: Of its values, for people; "" = a share or a plain number.
        measured_as: The built-in metric that rollouts judge it as while traffic flows; "" = only
            `turnout analyze` judges it.
        description: One line for people.
        shown_live: `turnout results` shows it, and nobody judges it.
    """

    name: str
    kind: Kind
    direction: Direction
    value: str = ""
    numerator: str = ""
    denominator: str = ""
    quantile: float | None = None
    statistic: str = ""
    cap: float | None = None
    covariate: str = ""
    segments: tuple[str, ...] = ()
    label_maturity_s: float = 0.0
    unit: str = ""
    measured_as: str = ""
    description: str = ""
    shown_live: bool = False

    @property
    def live(self) -> bool:
        """True when rollouts judge it while traffic flows."""
        return bool(self.measured_as)


# -- Built in -------------------------------------------------------------------------------------

_HIGHER_STATISTICS: Final = ("accuracy", "precision", "recall", "specificity", "f1", "auc")
CLASSIFIER_STATISTICS: Final = (*_HIGHER_STATISTICS, "false_positive_rate")
_LATENCY_QUANTILES: Final = {
    0.5: "latency_p50",
    0.9: "latency_p90",
    0.95: "latency_p95",
    0.99: "latency_p99",
}
_CLASSIFIER_WORDS: Final = {
    "accuracy": "Right predictions among all labelled ones.",
    "f1": "Harmonic mean of precision and recall.",
    "precision": "True positives among predicted positives.",
    "recall": "True positives among actual positives.",
    "specificity": "True negatives among actual negatives.",
    "false_positive_rate": "False positives among actual negatives.",
    "auc": "Chance that a positive scores above a negative: needs scores.",
}


def _classifier(name: str) -> Definition:
    return Definition(
        name,
        Kind.CLASSIFIER,
        Direction.HIGHER if name in _HIGHER_STATISTICS else Direction.LOWER,
        statistic=name,
        # Scores are not folded into counts, so a curve over them needs the rows.
        measured_as="" if name == "auc" else name,
        description=_CLASSIFIER_WORDS[name],
    )


def _latency(quantile: float, name: str) -> Definition:
    return Definition(
        name,
        Kind.QUANTILE,
        Direction.LOWER,
        value=VALUE_LATENCY,
        quantile=quantile,
        unit=MILLISECONDS,
        measured_as=name,
        description=f"{quantile * 100:g} % of the answers are sent within this.",
    )


def _outcome(name: str, kind: Kind, direction: Direction, words: str) -> Definition:
    """A metric of outcomes by unit: only `turnout analyze` has those."""
    return Definition(name, kind, direction, value=name, description=words)


_ALL: Final = (
    Definition(
        "error_rate",
        Kind.PROPORTION,
        Direction.LOWER,
        value=VALUE_ERROR,
        measured_as="error_rate",
        description="Requests that failed among all.",
    ),
    *(_latency(quantile, name) for quantile, name in _LATENCY_QUANTILES.items()),
    *(_classifier(name) for name in CLASSIFIER_STATISTICS),
    Definition(
        "throughput",
        Kind.COUNT,
        Direction.HIGHER,
        value="requests",
        shown_live=True,
        description="Requests served; the split decides how many, so they are shown, not judged.",
    ),
    Definition(
        "click_through_rate",
        Kind.RATIO,
        Direction.HIGHER,
        numerator="clicks",
        denominator="views",
        description="Clicks among views.",
    ),
    _outcome("conversion_rate", Kind.PROPORTION, Direction.HIGHER, "Units that converted."),
    _outcome("revenue_per_user", Kind.MEAN, Direction.HIGHER, "Revenue of a unit."),
    _outcome("satisfaction", Kind.MEAN, Direction.HIGHER, "What a unit says of it, on average."),
    Definition(
        "cost_per_request",
        Kind.RATIO,
        Direction.LOWER,
        numerator="cost",
        denominator="requests",
        description="Cost among requests.",
    ),
    Definition(
        "prediction_drift",
        Kind.DRIFT,
        Direction.LOWER,
        value="score",
        description="Distance of the scores' distribution from control's (PSI).",
    ),
)

BUILT_IN: Final[Mapping[str, Definition]] = MappingProxyType({d.name: d for d in _ALL})
"""Name -> built-in metric, in the order of the documentation."""

LIVE: Final = tuple(name for name, built_in in BUILT_IN.items() if built_in.live)
"""Names of the built-in metrics that rollouts judge."""

LATENCY: Final = tuple(_LATENCY_QUANTILES.values())
"""Names of the built-in latency metrics."""

Declared = Mapping[str, MetricSpec]
"""Id -> spec of a tenant's declared metrics."""


# -- Declared -------------------------------------------------------------------------------------

_KINDS: Final = {
    METRIC_KIND_PROPORTION: Kind.PROPORTION,
    METRIC_KIND_MEAN: Kind.MEAN,
    METRIC_KIND_RATIO: Kind.RATIO,
    METRIC_KIND_QUANTILE: Kind.QUANTILE,
    METRIC_KIND_COUNT: Kind.COUNT,
    METRIC_KIND_CLASSIFIER: Kind.CLASSIFIER,
    METRIC_KIND_DRIFT: Kind.DRIFT,
}
_KIND_NUMBERS: Final = {kind: number for number, kind in _KINDS.items()}
_DIRECTIONS: Final = {
    METRIC_DIRECTION_HIGHER_IS_BETTER: Direction.HIGHER,
    METRIC_DIRECTION_LOWER_IS_BETTER: Direction.LOWER,
}
_DIRECTION_NUMBERS: Final = {way: number for number, way in _DIRECTIONS.items()}
# Which kinds a field is for.
_WITH_VALUE: Final = (Kind.PROPORTION, Kind.MEAN, Kind.QUANTILE, Kind.COUNT)
_SUMMED: Final = (Kind.MEAN, Kind.RATIO, Kind.COUNT)


def metric_with_defaults(name: str, spec: MetricSpec) -> MetricSpec:
    """A copy with every default filled in: the stored form.

    Args:
        name: The metric's id.
        spec: With or without defaults.
    """
    full = MetricSpec()
    full.CopyFrom(spec)
    kind = _KINDS.get(full.kind)
    if kind in _WITH_VALUE:
        full.value = full.value or name
    known = _known_direction(full)
    if known is not None and not full.direction:
        full.direction = _DIRECTION_NUMBERS[known]
    if not full.HasField("label_maturity"):
        full.label_maturity.CopyFrom(ZERO)
    return full


def definition(name: str, spec: MetricSpec) -> Definition:
    """What a declared metric means.

    Args:
        name: Its id.
        spec: It passed `validate_metric`.
    """
    full = metric_with_defaults(name, spec)
    return Definition(
        name,
        _KINDS[full.kind],
        _DIRECTIONS[full.direction],
        value=full.value,
        numerator=full.numerator,
        denominator=full.denominator,
        quantile=full.quantile if full.HasField("quantile") else None,
        statistic=full.statistic,
        cap=full.cap if full.HasField("cap") else None,
        covariate=full.covariate,
        segments=tuple(full.segments),
        label_maturity_s=full.label_maturity.ToTimedelta().total_seconds(),
        unit=full.unit or (MILLISECONDS if full.value == VALUE_LATENCY else ""),
        measured_as=_measured_as(full),
        description=full.description,
    )


def find_metric(name: str, declared: Declared) -> Definition | None:
    """The metric of this name, built in or declared; None when there is none."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    return definition(name, declared[name]) if name in declared else None


def spec_of(built_in: Definition) -> MetricSpec:
    """A built-in metric written as a declared one is."""
    spec = MetricSpec(
        kind=_KIND_NUMBERS[built_in.kind],
        direction=_DIRECTION_NUMBERS[built_in.direction],
        value=built_in.value,
        numerator=built_in.numerator,
        denominator=built_in.denominator,
        statistic=built_in.statistic,
        unit=built_in.unit,
        description=built_in.description,
    )
    if built_in.quantile is not None:
        spec.quantile = built_in.quantile
    return spec


def not_live(found: Definition) -> str:
    """Why a metric cannot be judged while traffic flows, and what to do instead."""
    if found.shown_live:
        return (
            f"{found.name} is shown by `turnout results` and not judged: the split decides it; "
            "judge latency or errors, or what a unit does by `turnout analyze`"
        )
    why = "it needs the outcomes of units"
    if found.segments or found.label_maturity_s:
        why = "its segments or its label maturity need them to be at hand"
    return (
        f"{found.name} is not measured live: {why}; judge it with "
        f"`turnout analyze --metric {found.name}`"
    )


class KnownMetrics(NamedTuple):
    """The metrics that an experiment may name beside the built-in ones.

    Attributes:
        declared: Id -> spec. Those that break a rule of their own are not among them.
        complete: There are no others. Where files are checked by themselves there may be: then
            every id that a declared metric could have passes, but not one that looks like a
            misspelt built-in metric.
    """

    declared: Declared = MappingProxyType({})
    complete: bool = False

    def find(self, name: str) -> Definition | None:
        """The metric of this name; None when there is none, or it is not at hand."""
        return find_metric(name, self.declared)

    def fault(self, name: str) -> str | None:
        """Why nothing is named so; None when there is such a metric, or may be one."""
        if self.find(name) is not None:
            return None
        if not self.complete and is_label(name):
            near = difflib.get_close_matches(name, BUILT_IN, n=1, cutoff=0.9)
            return f"unknown metric; did you mean {near[0]}?" if near else None
        rule = f"unknown metric; known: {', '.join(LIVE)}"
        names = ", ".join(sorted(self.declared)[:10])
        return f"{rule}; declared: {names}" if names else f"{rule}; others: kind Metric"

    def measured_as(self, name: str) -> str:
        """The built-in metric that rollouts judge this one as; "" = they do not, or unknown."""
        found = self.find(name)
        return found.measured_as if found else ""


def _known_direction(spec: MetricSpec) -> Direction | None:
    """The direction that follows from what is measured; None when it has to be said."""
    if _KINDS.get(spec.kind) is Kind.CLASSIFIER and spec.statistic in CLASSIFIER_STATISTICS:
        return BUILT_IN[spec.statistic].direction
    if spec.value in (VALUE_ERROR, VALUE_LATENCY):
        return Direction.LOWER
    return None


def _measured_as(full: MetricSpec) -> str:
    kind = _KINDS[full.kind]
    if full.segments or full.label_maturity != ZERO:
        return ""  # rollouts have their own strata, and take labels as they come
    if kind is Kind.CLASSIFIER:
        return BUILT_IN[full.statistic].measured_as
    if full.value == VALUE_ERROR and kind is Kind.PROPORTION:
        return "error_rate"
    if full.value == VALUE_LATENCY and kind is Kind.QUANTILE:
        return _LATENCY_QUANTILES.get(full.quantile, "")
    return ""


# -- Rules ----------------------------------------------------------------------------------------


def validate_metric(tenant: str, name: str, spec: MetricSpec) -> list[Violation]:
    """Every rule that a declared metric breaks; empty when it may be stored.

    Args:
        tenant: Id of the tenant.
        name: Id of the metric.
        spec: With or without defaults.
    """
    report = Report()
    check_label(report, "tenant", tenant)
    if name in BUILT_IN:
        report.add("name", name, "is a built-in metric: choose another name")
    else:
        check_label(report, "name", name)
    kind = _KINDS.get(spec.kind)
    if kind is None or kind is Kind.DRIFT:
        known = ", ".join(kind for kind in Kind if kind is not Kind.DRIFT)
        report.add("spec.kind", kind or spec.kind or "missing", f"required; one of {known}")
        return report.violations
    _check_direction(report, spec)
    _check_measured(report, spec)
    _check_refinements(report, metric_with_defaults(name, spec), spec)
    if spec.unit:
        check_text(report, "spec.unit", spec.unit, UNIT_BYTES_MAX)
    check_text(report, "spec.description", spec.description, DESCRIPTION_BYTES_MAX, empty=True)
    return report.violations


def _check_direction(report: Report, spec: MetricSpec) -> None:
    path, known = "spec.direction", _known_direction(spec)
    if spec.direction not in MetricDirection.values():
        report.add(path, spec.direction, f"must be one of {', '.join(Direction)}")
    elif spec.direction == METRIC_DIRECTION_UNSPECIFIED:
        # A classifier whose statistic is wrong is told so; its direction follows from that.
        if known is None and spec.kind != METRIC_KIND_CLASSIFIER:
            report.add(path, "missing", f"required; one of {', '.join(Direction)}")
    elif known is not None and _DIRECTIONS[spec.direction] is not known:
        what = spec.statistic or spec.value
        rule = f"must be {known}, as it is for {what}; leave it out"
        report.add(path, _DIRECTIONS[spec.direction], rule)


def _check_measured(report: Report, spec: MetricSpec) -> None:
    """What is measured: the fields that the kind needs, and none that it has no use for."""
    kind = _KINDS[spec.kind]
    columns: tuple[tuple[str, str, tuple[Kind, ...], bool], ...] = (
        ("value", spec.value, _WITH_VALUE, False),
        ("numerator", spec.numerator, (Kind.RATIO,), True),
        ("denominator", spec.denominator, (Kind.RATIO,), True),
    )
    for field, value, kinds, required in columns:
        if kind not in kinds:
            _check_unused(report, field, value, kind, kinds)
        elif value or required:
            check_text(report, f"spec.{field}", value, COLUMN_BYTES_MAX)
    if kind is Kind.RATIO and spec.numerator and spec.numerator == spec.denominator:
        rule = "must be another column than the numerator"
        report.add("spec.denominator", spec.denominator, rule)
    if spec.value == VALUE_ERROR and kind is not Kind.PROPORTION:
        report.add("spec.value", spec.value, f"is what failed: use kind {Kind.PROPORTION}")
    if spec.value == VALUE_LATENCY and kind is not Kind.QUANTILE:
        report.add("spec.value", spec.value, f"is of each request: use kind {Kind.QUANTILE}")
    if kind is not Kind.QUANTILE:
        given = spec.quantile if spec.HasField("quantile") else ""
        _check_unused(report, "quantile", given, kind, (Kind.QUANTILE,))
    elif not spec.HasField("quantile"):
        report.add("spec.quantile", "missing", "required; above 0 and below 1, as 0.95")
    else:
        check_number(report, "spec.quantile", spec.quantile, 0, 1, open_low=True, open_high=True)
    if kind is not Kind.CLASSIFIER:
        _check_unused(report, "statistic", spec.statistic, kind, (Kind.CLASSIFIER,))
    elif spec.statistic not in CLASSIFIER_STATISTICS:
        rule = f"required; one of {', '.join(CLASSIFIER_STATISTICS)}"
        report.add("spec.statistic", spec.statistic or "missing", rule)


def _check_unused(
    report: Report, field: str, value: object, kind: Kind, kinds: tuple[Kind, ...]
) -> None:
    if value != "":
        rule = f"is for kind {', '.join(kinds)}, not {kind}: leave it out"
        report.add(f"spec.{field}", value, rule)


def _check_refinements(report: Report, full: MetricSpec, spec: MetricSpec) -> None:
    """Cap, covariate, segments, label maturity.

    Args:
        report: Takes the faults.
        full: With defaults.
        spec: As written.
    """
    kind = _KINDS[spec.kind]
    if spec.HasField("cap"):
        if kind not in _SUMMED:
            _check_unused(report, "cap", spec.cap, kind, _SUMMED)
        elif not math.isfinite(spec.cap) or spec.cap <= 0:
            report.add("spec.cap", spec.cap, "must be finite and above 0")
    measured = (full.value, full.numerator, full.denominator)
    if spec.covariate and kind not in _SUMMED:
        _check_unused(report, "covariate", spec.covariate, kind, _SUMMED)
    elif spec.covariate:
        check_text(report, "spec.covariate", spec.covariate, COLUMN_BYTES_MAX)
        if spec.covariate in measured:
            rule = "must be another column than what is measured: one known before the exposure"
            report.add("spec.covariate", spec.covariate, rule)
    if len(spec.segments) > SEGMENTS_MAX:
        value = f"{len(spec.segments)} segments"
        report.add("spec.segments", value, f"at most {SEGMENTS_MAX}")
    for index, column in enumerate(spec.segments[:SEGMENTS_MAX]):
        check_text(report, f"spec.segments[{index}]", column, COLUMN_BYTES_MAX)
        if column and column in measured:
            report.add(f"spec.segments[{index}]", column, "is what is measured, not a segment")
    check_unique(report, "spec.segments", spec.segments[:SEGMENTS_MAX])
    if spec.HasField("label_maturity"):
        check_duration(report, "spec.labelMaturity", spec.label_maturity, ZERO, LABEL_MATURITY_MAX)
