"""What an analysis says: the result that the command, the report and the plots share.

Owns the result's shape and its JSON. Refuses NaN and infinity: a number that is not there is None.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Value = float | int | str | None


@dataclass(frozen=True, slots=True)
class Reason:
    """Why. code: Stable name. text: A plain clause with the numbers. values: Those."""

    code: str
    text: str
    values: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """Whether the arms have the units they should have.

    p_value: Chi-squared, valid at one look. e_value: Valid at any look. expected, observed: Units
    per variant.
    """

    p_value: float
    e_value: float | None  # None: beyond the largest number
    expected: Mapping[str, float]
    observed: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Arm:
    """n: Units with a value. mean: Of the metric (a ratio's ratio, a quantile's quantile)."""

    n: int
    mean: float | None


@dataclass(frozen=True, slots=True)
class MetricResult:
    """One metric of one treatment against control; difference = treatment - control.

    kind: "proportion", "mean", "ratio" or "quantile", or a classifier metric's name. relative:
    difference / control's mean. ci_*, p_value: Valid at one look decided beforehand. cs_*,
    always_valid_p: Valid however often one looks. None: cannot be said.
    """

    name: str
    kind: str
    variant: str
    control: Arm
    treatment: Arm
    difference: float | None
    relative: float | None
    standard_error: float | None
    ci_low: float | None
    ci_high: float | None
    p_value: float | None
    cs_low: float | None
    cs_high: float | None
    always_valid_p: float | None


@dataclass(frozen=True, slots=True)
class StratumResult:
    """One stratum looked at apart; the sequences at alpha / number of strata."""

    stratum: str
    metrics: tuple[MetricResult, ...]
    srm: SampleRatio | None


@dataclass(frozen=True, slots=True)
class Point:
    """A cumulative look. n: Units of both arms so far. time: ISO 8601 or the column's text."""

    n: int
    time: str | None
    difference: float | None
    cs_low: float | None
    cs_high: float | None


@dataclass(frozen=True, slots=True)
class Series:
    """A metric's confidence sequence over time, of one treatment."""

    metric: str
    variant: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """What was analysed. columns: Role ("variant", "unit", ...) -> column. settings: As chosen."""

    path: str
    rows: int
    units: int
    control: str
    variants: tuple[str, ...]
    columns: Mapping[str, str]
    settings: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Analysis:
    """The whole answer. decision: A verdict's name, see control/stats/README.md."""

    decision: str
    reasons: tuple[Reason, ...]
    srm: SampleRatio | None
    metrics: tuple[MetricResult, ...]
    strata: tuple[StratumResult, ...]
    warnings: tuple[str, ...]
    source: Source
    series: tuple[Series, ...] = field(default=())

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        from control.analyze.report import notebook_html

        return notebook_html(self)


def to_json(analysis: Analysis) -> str:
    """The machine-readable answer; numbers at full precision, never NaN or infinity."""
    return json.dumps(to_dict(analysis), indent=2, ensure_ascii=False, allow_nan=False)


def to_dict(analysis: Analysis) -> dict[str, Any]:
    """The same as plain data, keys in a fixed order."""
    return {
        "decision": analysis.decision,
        "reasons": [
            {"code": reason.code, "text": reason.text, "values": dict(reason.values)}
            for reason in analysis.reasons
        ],
        "srm": _ratio(analysis.srm),
        "metrics": [_metric(metric) for metric in analysis.metrics],
        "strata": [
            {
                "stratum": stratum.stratum,
                "metrics": [_metric(metric) for metric in stratum.metrics],
                "srm": _ratio(stratum.srm),
            }
            for stratum in analysis.strata
        ],
        "warnings": list(analysis.warnings),
    }


def _ratio(ratio: SampleRatio | None) -> dict[str, Any] | None:
    if ratio is None:
        return None
    return {
        "p_value": ratio.p_value,
        "e_value": ratio.e_value,
        "expected": dict(ratio.expected),
        "observed": dict(ratio.observed),
    }


def _metric(metric: MetricResult) -> dict[str, Any]:
    return {
        "name": metric.name,
        "kind": metric.kind,
        "variant": metric.variant,
        "control": {"n": metric.control.n, "mean": metric.control.mean},
        "treatment": {"n": metric.treatment.n, "mean": metric.treatment.mean},
        "difference": metric.difference,
        "relative": metric.relative,
        "standard_error": metric.standard_error,
        "ci_low": metric.ci_low,
        "ci_high": metric.ci_high,
        "p_value": metric.p_value,
        "cs_low": metric.cs_low,
        "cs_high": metric.cs_high,
        "always_valid_p": metric.always_valid_p,
    }
