"""Metrics put into SQL over rows: what a row's value is, what it must be, what is guessed.

Owns the expressions, the guesses from the first rows and the shift that keeps sums of large
numbers exact. Refuses columns whose values are no numbers.
"""
# ruff: noqa: S608 - every name goes through `quoted`, every text through `literal`

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from control.analyze.data import HEAD_ROWS, Data, literal, quoted
from control.analyze.errors import BadInput
from control.analyze.metrics import CLASSIFIER, Metric, Roles, is_number

VARIANTS_MAX: Final = 50
# A mean so many standard deviations from 0 is subtracted before summing.
_FAR: Final = 1e3
_WHOLE: Final = "a whole number >= 0"
_BINARY: Final = "0 or 1"


@dataclass(frozen=True, slots=True)
class Plan:
    """A metric in SQL over rows. value: DOUBLE or NULL. below: A ratio's denominator.

    must: A condition on `value` that every row has to meet; rule: the same in words. shift,
    x_shift: Subtracted from the value and the covariate before summing. single: The value of a
    unit is one number (a sum, a maximum), not several rows.
    """

    metric: Metric
    value: str
    below: str = ""
    must: str = ""
    rule: str = ""
    shift: float = 0.0

    @property
    def binary(self) -> bool:
        """Whether each row's value is known to be 0 or 1, or is refused."""
        return not self.below and self.metric.kind in ("proportion", *CLASSIFIER)

    @property
    def single(self) -> bool:
        """Whether a unit has one value, not one per row."""
        return self.metric.total or self.metric.any_of

    @property
    def summed(self) -> bool:
        """Whether a unit's value is the sum of its rows: then that is what a cap is of."""
        return self.single or bool(self.below)

    def capped(self, value: str) -> str:
        """A value in SQL, not above the cap."""
        # Of finite values: NaN and infinities are refused, not hidden. least() would take a missing
        # value for the cap.
        over = self.over(value)
        if over is None:
            return value
        return f"CASE WHEN {over} THEN {self.metric.cap!r}::DOUBLE ELSE {value} END"

    def over(self, value: str) -> str | None:
        """The condition in SQL that a value is above the cap; None without one."""
        cap = self.metric.cap
        return None if cap is None else f"({value} > {cap!r}::DOUBLE AND isfinite({value}))"


def plan_metrics(
    data: Data,
    metrics: Sequence[Metric],
    roles: Roles,
    *,
    positive: str | None,
) -> tuple[Plan, ...]:
    """Put metrics into SQL; kinds that were not given are guessed from the first rows.

    Raises:
        BadInput: A text column holds what is no number, or the variants are too many to be such.
    """
    plans = [_plan(data, metric, roles, positive) for metric in metrics]
    head = _head(data, plans, roles)
    return tuple(
        _guessed(replace(plan, shift=_shift(seen)), seen, data)
        for plan, seen in zip(plans, head, strict=True)
    )


def _plan(data: Data, metric: Metric, roles: Roles, positive: str | None) -> Plan:
    if metric.kind in CLASSIFIER:
        return _classifier(data, metric, roles, positive)
    value = number_of(data, metric.column)
    below = number_of(data, metric.denominator) if metric.denominator else ""
    binary = metric.kind == "proportion" and data.columns[metric.column] != "BOOLEAN"
    if binary:
        return Plan(
            metric, value, below, f"{_native(data, metric.column, value)} IN (0, 1)", _BINARY
        )
    if metric.kind == "count":
        return Plan(metric, value, below, f"{value} >= 0 AND {value} = floor({value})", _WHOLE)
    return Plan(metric, value, below)


def _classifier(data: Data, metric: Metric, roles: Roles, positive: str | None) -> Plan:
    label, prediction = roles.label or "", roles.prediction or ""
    both = f"{quoted(label)} IS NOT NULL AND {quoted(prediction)} IS NOT NULL"
    if metric.kind == "accuracy" and data.columns[label] == data.columns[prediction]:
        same = f"{quoted(label)} = {quoted(prediction)}"
        return Plan(metric, f"CASE WHEN {both} THEN ({same})::INTEGER::DOUBLE END")
    if (
        metric.kind == "accuracy"
        and positive is None
        and "VARCHAR"
        in (
            data.columns[label],
            data.columns[prediction],
        )
    ):
        same = f"{quoted(label)}::VARCHAR = {quoted(prediction)}::VARCHAR"
        return Plan(metric, f"CASE WHEN {both} THEN ({same})::INTEGER::DOUBLE END")
    is_true = positive_of(data, label, "label", positive)
    is_said = positive_of(data, prediction, "prediction", positive)
    when = {
        "accuracy": (both, f"{is_true} = {is_said}"),
        "precision": (f"{both} AND {is_said}", is_true),
        "recall": (f"{both} AND {is_true}", is_said),
        "specificity": (f"{both} AND NOT {is_true}", f"NOT {is_said}"),
        "false_positive_rate": (f"{both} AND NOT {is_true}", is_said),
    }
    if metric.kind in when:
        of, hit = when[metric.kind]
        return Plan(metric, f"CASE WHEN {of} THEN ({hit})::INTEGER::DOUBLE END")
    top = f"CASE WHEN {both} THEN 2.0 * ({is_true} AND {is_said})::INTEGER END"
    bottom = f"CASE WHEN {both} THEN ({is_true})::INTEGER + ({is_said})::INTEGER::DOUBLE END"
    return Plan(metric, top, bottom)


def positive_of(data: Data, column: str, role: str, positive: str | None) -> str:
    """SQL for "this row's label (prediction) is the positive class".

    Raises:
        BadInput: The positive class cannot be told from the column.
    """
    kind, name = data.columns[column], quoted(column)
    if positive is not None:
        return f"(lower({name}::VARCHAR) = lower({literal(positive)}))"
    if kind == "BOOLEAN":
        return f"({name})"
    if is_number(kind):
        sql = f"SELECT min({name}::DOUBLE), max({name}::DOUBLE), count(DISTINCT {name}) <= 2 "
        low, high, two = data.run("looking at labels", f"{sql} FROM {data.table}")[0]
        if low is not None and not (two and low in (0, 1) and high in (0, 1)):
            raise BadInput(
                f"{role}: column {column!r} has values from {low:g} to {high:g}, must be 0 or 1; "
                "name the positive one with --positive VALUE"
            )
        return f"({name} = 1)"
    raise BadInput(
        f"{role}: column {column!r} is of type {kind}: name the positive class with --positive"
    )


def number_of(data: Data, column: str) -> str:
    """A column as DOUBLE in SQL; NaN and infinities become NULL if they are to be dropped.

    Raises:
        BadInput: A text column has values that are no numbers.
    """
    kind, name = data.columns[column], quoted(column)
    if data.drop_invalid and kind in ("DOUBLE", "FLOAT", "VARCHAR"):
        value = f"{name}::DOUBLE" if kind == "FLOAT" else name
        value = f"try_cast({name} AS DOUBLE)" if kind == "VARCHAR" else value
        return f"CASE WHEN isfinite({value}) THEN {value} END"
    if kind == "DOUBLE":
        return name
    if kind == "BOOLEAN":
        return f"{name}::INTEGER::DOUBLE"
    if kind != "VARCHAR":
        return f"{name}::DOUBLE"
    sql = (
        f"SELECT count({name}), count(*), min({name}) FROM {data.table} "
        f"WHERE {name} IS NOT NULL AND try_cast({name} AS DOUBLE) IS NULL"
    )
    wrong, _, first = data.run("looking for text among numbers", sql)[0]
    if wrong:
        raise BadInput(
            f"metric: column {column!r} has {wrong} values that are not numbers, as {first!r}; "
            "correct or empty them (an empty value is left out)"
        )
    return f"{name}::DOUBLE"


@dataclass(frozen=True, slots=True)
class _Head:
    mean: float
    deviation: float
    binary: bool
    least: float


def _head(data: Data, plans: Sequence[Plan], roles: Roles) -> list[_Head]:
    variant = quoted(roles.variant)
    outputs = [f"count(DISTINCT {variant}::VARCHAR)", "count(*)"]
    for plan in plans:
        finite = f"FILTER (isfinite({plan.value}))"
        outputs += [
            f"avg({plan.value}) {finite}",
            f"stddev_pop({plan.value}) {finite}",
            f"bool_and({plan.value} IN (0, 1))",
            f"min({plan.value}) {finite}",
        ]
    sql = f"SELECT {', '.join(outputs)} FROM (FROM {data.table} LIMIT {HEAD_ROWS})"
    variants, rows, *numbers = data.run("reading the first rows", sql)[0]
    if variants > VARIANTS_MAX:
        raise BadInput(
            f"variant: column {roles.variant!r} has {variants} values in the first {rows} rows, "
            f"must have at most {VARIANTS_MAX}; is it the unit?"
        )
    quads = [numbers[place : place + 4] for place in range(0, len(numbers), 4)]
    return [_Head(m or 0.0, d or 0.0, b is True, low or 0.0) for m, d, b, low in quads]


def _shift(seen: _Head) -> float:
    if seen.deviation == 0:
        return seen.least if abs(seen.least) > 1 else 0.0
    return seen.mean if abs(seen.mean) > _FAR * seen.deviation else 0.0


def _guessed(plan: Plan, seen: _Head, data: Data) -> Plan:
    if plan.below or plan.metric.kind in CLASSIFIER or plan.single:
        plan = replace(plan, shift=0.0)
    if plan.metric.kind:
        return plan
    if data.columns[plan.metric.column] == "BOOLEAN":
        return replace(plan, metric=replace(plan.metric, kind="proportion"))
    if not seen.binary:
        return replace(plan, metric=replace(plan.metric, kind="mean"))
    # Only all rows can say; `kind` stays "" until they have been counted.
    must = f"{_native(data, plan.metric.column, plan.value)} IN (0, 1)"
    return replace(plan, must=must, rule=_BINARY, shift=0.0)


def _native(data: Data, column: str, value: str) -> str:
    """Whole numbers are compared as they are, which takes half the time."""
    return quoted(column) if data.columns[column].endswith(("INT", "INTEGER")) else value
