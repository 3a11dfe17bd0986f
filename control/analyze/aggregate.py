"""From rows to sufficient statistics, in SQL: one scan, or one per unit and then over units.

Owns the statements. Refuses values that are no numbers, and holds a row per variant, stratum and
look at most. Variances are DuckDB's own running ones (Welford's), means are taken around a shift:
values at 1e9 lose nothing.
"""
# ruff: noqa: S608 - every name goes through `quoted`, every text through `literal`

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np

from control.analyze.data import HEAD_ROWS, Data, literal, quoted
from control.analyze.errors import BadInput
from control.analyze.metrics import CLASSIFIER, Metric, Roles, is_number
from control.stats.moments import Moments, PairMoments, merge_pairs

VARIANTS_MAX: Final = 50
STRATA_MAX: Final = 100
LOOKS_MAX: Final = 50
MISSING: Final = "(missing)"
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


@dataclass(frozen=True, slots=True)
class Cell:
    """One metric in one arm, from variables over units: value, weight (if any), covariate (if any).

    n: Units with a value. missing: Units (rows) without. pairs: Moments of each pair of variables.
    weighted: The metric is value / weight: a ratio, or a mean over rows by unit. once: All weights
    are 1, so that they say nothing. offset: To be added to values. bad: Values against the rule.
    """

    n: int
    missing: int
    pairs: Mapping[tuple[int, int], PairMoments]
    weighted: bool
    covariate: bool
    once: bool
    offset: float
    bad: int

    @property
    def value(self) -> Moments:
        """Of the value alone."""
        return self.pairs[0, 0].y

    @property
    def ratio(self) -> PairMoments:
        """Of value and weight."""
        return self.pairs[0, 1]

    @property
    def mean(self) -> float | None:
        """The arm's value: a mean, a share, a ratio; None without units or a denominator."""
        if self.n == 0:
            return None
        if not self.weighted or self.once:
            return float(self.value.mean) + self.offset
        if self.ratio.mean_x == 0:
            return None
        return float(self.ratio.mean_y / self.ratio.mean_x) + self.offset

    def with_covariate(self, *, weighted: bool) -> PairMoments:
        """Of the value and the covariate; a ratio is linearised around its own value."""
        if not weighted:
            return self.pairs[0, 2 if self.weighted else 1]
        y_w, y_x, w_x = self.pairs[0, 1], self.pairs[0, 2], self.pairs[1, 2]
        weight, r = y_w.mean_x, y_w.mean_y / y_w.mean_x
        m2 = y_w.m2_y - 2 * r * y_w.c_yx + r**2 * y_w.m2_x
        c = y_x.c_yx - r * w_x.c_yx
        return PairMoments(
            y_w.n, r, y_x.mean_x, np.maximum(m2, 0.0) / weight**2, y_x.m2_x, c / weight
        )


@dataclass(frozen=True, slots=True)
class Group:
    """All metrics of one arm: in everything, in a stratum or at a look."""

    rows: int
    units: int
    cells: tuple[Cell, ...]


Key = tuple[str, str | None, int | None]  # variant, stratum, look


@dataclass(frozen=True, slots=True)
class Table:
    """What a scan gives. flipped: Units in several arms, left out. unassigned: Rows without arm."""

    groups: Mapping[Key, Group]
    flipped: int = 0
    unassigned: int = 0
    unitless: int = 0


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


def covariate_shift(data: Data, column: str) -> float:
    """A constant near the covariate's mean: what units without one are given.

    Raises:
        BadInput: The column is not numeric.
    """
    if not (is_number(data.columns[column]) or data.columns[column] == "BOOLEAN"):
        raise BadInput(f"covariate: {column!r} is of type {data.columns[column]}, must be numbers")
    x = number_of(data, column)
    sql = f"SELECT avg(x) FILTER (isfinite(x)) FROM (SELECT {x} AS x FROM {data.table} LIMIT 2048)"
    return float(data.run("reading the first rows", sql)[0][0] or 0.0)


def aggregate(
    data: Data,
    plans: Sequence[Plan],
    roles: Roles,
    *,
    by_stratum: bool = False,
    look: str = "",
    x_shift: float = 0.0,
    without_flips: bool = False,
) -> Table:
    """Count everything: a group per variant, and per stratum and look if asked for.

    Args:
        data: What to read.
        plans: Metrics.
        roles: Columns with a meaning of their own.
        by_stratum: Also by `roles.strata`.
        look: An SQL expression of a row's look, a small whole number; "" for none.
        x_shift: As of `covariate_shift`.
        without_flips: Look for units in several arms over all rows first, and leave them out.

    Raises:
        BadInput: Values are not finite, or break their metric's rule.
    """
    keys = [f"{quoted(roles.variant)}::VARCHAR AS v"]
    if by_stratum and roles.strata:
        keys.append(f"coalesce({quoted(roles.strata)}::VARCHAR, {literal(MISSING)}) AS g")
    if look:
        keys.append(f"{look} AS k")
    covariate = ""
    if roles.covariate:
        covariate = f"coalesce({number_of(data, roles.covariate)} - {x_shift!r}, 0.0)"
    if roles.unit is None:
        return _by_row(data, plans, keys, covariate)
    return _by_unit(data, plans, roles, keys, covariate, without_flips=without_flips)


def merged(groups: Iterable[Group]) -> Group:
    """Groups of different rows as one."""
    whole: Group | None = None
    for group in groups:
        whole = group if whole is None else _merge(whole, group)
    if whole is None:
        raise ValueError("groups == [], must be at least one")
    return whole


def _names(keys: Sequence[str]) -> tuple[list[str], str]:
    """Keys to group by, and the same with NULL for those that are not used: v, g, k."""
    used = [key.rpartition(" AS ")[2] for key in keys]
    return used, ", ".join(name if name in used else "NULL" for name in ("v", "g", "k"))


def _by_row(data: Data, plans: Sequence[Plan], keys: Sequence[str], covariate: str) -> Table:
    outputs: list[str] = ["count(*)"]
    for plan in plans:
        variables = [f"({plan.value} - {plan.shift!r})" if plan.shift else plan.value]
        if plan.below:
            variables = [
                f"CASE WHEN {plan.below} IS NOT NULL THEN {plan.value} END",
                f"CASE WHEN {plan.value} IS NOT NULL THEN {plan.below} END",
            ]
        if covariate:
            variables.append(f"CASE WHEN {variables[0]} IS NOT NULL THEN {covariate} END")
        outputs += _sums(variables, binary=plan.binary)
        outputs.append(f"count_if(NOT ({plan.must}))" if plan.must else "0")
    # No more keys than are needed: grouping by a constant costs as much as counting.
    used, shown = _names(keys)
    sql = (
        f"SELECT {shown}, {', '.join(outputs)} FROM "
        f"(SELECT {', '.join(keys)}, * FROM {data.table}) GROUP BY {', '.join(used)}"
    )
    found: dict[Key, Group] = {}
    unassigned = 0
    for v, g, k, rows, *numbers in data.run("counting", sql):
        if v is None:
            unassigned += rows
            continue
        cells, place = [], 0
        for plan in plans:
            shape = _Shape(bool(plan.below), bool(covariate))
            part, place = numbers[place : place + shape.width], place + shape.width
            bad, place = numbers[place], place + 1
            found_cell = _cell(plan, shape, part, rows=rows, bad=bad, once=False)
            cells.append(found_cell or _refuse_infinite(data, plan, covariate))
        found[v, g, k] = Group(rows, rows, tuple(cells))
    return Table(found, unassigned=unassigned)


def _by_unit(
    data: Data,
    plans: Sequence[Plan],
    roles: Roles,
    keys: Sequence[str],
    covariate: str,
    *,
    without_flips: bool,
) -> Table:
    unit, variant = quoted(roles.unit or ""), quoted(roles.variant)
    arms, unassigned, unitless = _arms(data, unit, variant)
    used, shown = _names(keys)
    inner = ["min(hash(v)) AS a", "max(hash(v)) AS b", "count(*) AS r"]
    inner += [{"g": "g", "k": "min(k) AS k"}[name] for name in used[1:]]
    outer = ["count(*)", "sum(r)"]
    for index, plan in enumerate(plans):
        s, n, valid = f"s{index}", f"n{index}", f"c{index}"
        both = f"{plan.value} IS NOT NULL" + (
            f" AND {plan.below} IS NOT NULL" if plan.below else ""
        )
        value = f"{plan.value} - {plan.shift!r}" if plan.shift else plan.value
        function = "max" if plan.metric.any_of else "sum"
        inner.append(f"{function}({value}) FILTER ({both}) AS {s}")
        inner.append(f"{f'sum({plan.below})' if plan.below else 'count(*)'} FILTER ({both}) AS {n}")
        inner.append(f"count(*) FILTER ({both}) AS {valid}")
        inner.append(f"{f'count_if(NOT ({plan.must}))' if plan.must else '0'} AS m{index}")
        variables = [s] if plan.single else [s, f"CASE WHEN {valid} > 0 THEN {n} END"]
        if covariate:
            variables.append(f"CASE WHEN {valid} > 0 THEN x END")
        outer += [*_sums(variables), f"max({valid})", f"sum(m{index})"]
    if covariate:
        inner.append(f"avg({covariate}) AS x")
    where = f"{unit} IS NOT NULL AND {variant} IS NOT NULL"
    if without_flips:
        where += (
            f" AND {unit} NOT IN (SELECT {unit} FROM {data.table} WHERE {where} GROUP BY {unit} "
            f"HAVING min(hash({variant}::VARCHAR)) <> max(hash({variant}::VARCHAR)))"
        )
    rows = f"SELECT {', '.join(keys)}, * FROM {data.table} WHERE {where}"
    by_unit = ", ".join([unit, *(name for name in used if name == "g")])
    sql = (
        f"SELECT {shown.replace('v', 'arm', 1)}, {', '.join(outer)} FROM "
        f"(SELECT CASE WHEN a = b THEN a END AS arm, * FROM "
        f"(SELECT {', '.join(inner)} FROM ({rows}) GROUP BY {by_unit})) "
        f"GROUP BY {', '.join(['arm', *used[1:]])}"
    )
    found: dict[Key, Group] = {}
    flipped = 0
    for arm, g, k, units, seen, *numbers in data.run("counting by unit", sql):
        if arm is None:
            flipped += units
            continue
        cells, place = [], 0
        for plan in plans:
            shape = _Shape(not plan.single, bool(covariate))
            part, place = numbers[place : place + shape.width], place + shape.width
            (most, bad), place = numbers[place : place + 2], place + 2
            once = not plan.below and most == 1
            found_cell = _cell(plan, shape, part, rows=units, bad=bad, once=once)
            cells.append(found_cell or _refuse_infinite(data, plan, covariate))
        found[arms[arm], g, k] = Group(int(seen), units, tuple(cells))
    return Table(found, flipped, unassigned, unitless)


def _arms(data: Data, unit: str, variant: str) -> tuple[dict[int, str], int, int]:
    """Names of variants by their hash: a hash takes 8 bytes per unit, a name more."""
    sql = (
        f"SELECT {variant}::VARCHAR AS v, hash({variant}::VARCHAR), count(*), "
        f"count_if({unit} IS NULL) FROM {data.table} GROUP BY 1, 2"
    )
    found = data.run("finding variants", sql)
    unassigned = sum(row[2] for row in found if row[0] is None)
    unitless = sum(row[3] for row in found if row[0] is not None)
    return {row[1]: row[0] for row in found if row[0] is not None}, unassigned, unitless


def _sums(variables: Sequence[str], *, binary: bool = False) -> list[str]:
    outputs = [f"count({variables[0]})", *(f"avg({variable})" for variable in variables)]
    if binary and len(variables) == 1:
        return [*outputs, f"avg({variables[0]}) * (1 - avg({variables[0]}))"]
    for i, first in enumerate(variables):
        for j in range(i, len(variables)):
            second = variables[j]
            outputs.append(f"var_pop({first})" if i == j else f"covar_pop({first}, {second})")
    return outputs


class _Shape(NamedTuple):
    """Which variables a metric has over units."""

    weighted: bool
    covariate: bool

    @property
    def variables(self) -> int:
        return 1 + self.weighted + self.covariate

    @property
    def width(self) -> int:
        return 1 + self.variables + self.variables * (self.variables + 1) // 2


def _cell(
    plan: Plan,
    shape: _Shape,
    numbers: Sequence[Any],
    *,
    rows: int,
    bad: int,
    once: bool,
) -> Cell | None:
    """None: a number is not finite."""
    n, size = int(numbers[0]), shape.variables
    values = [0.0 if number is None else float(number) for number in numbers[1:]]
    if not all(map(math.isfinite, values)):
        return None
    means, products = values[:size], iter(values[size:])
    spread = {(i, j): n * next(products) for i in range(size) for j in range(i, size)}
    pairs = {
        (i, j): _pair(n, means[i], means[j], spread[i, i], spread[j, j], spread[i, j])
        for i, j in spread
    }
    return Cell(
        n, rows - n, pairs, shape.weighted, shape.covariate, once, plan.shift, int(bad or 0)
    )


def _pair(n: int, y: float, x: float, yy: float, xx: float, yx: float) -> PairMoments:
    return PairMoments(
        *(np.asarray(number, dtype=np.float64)[()] for number in (n, y, x, yy, xx, yx))
    )


def _merge(a: Group, b: Group) -> Group:
    cells = tuple(
        replace(
            one,
            n=one.n + two.n,
            missing=one.missing + two.missing,
            pairs={pair: merge_pairs(one.pairs[pair], two.pairs[pair]) for pair in one.pairs},
            once=one.once and two.once,
            bad=one.bad + two.bad,
        )
        for one, two in zip(a.cells, b.cells, strict=True)
    )
    return Group(a.rows + b.rows, a.units + b.units, cells)


def _refuse_infinite(data: Data, plan: Plan, covariate: str) -> NoReturn:
    name = plan.metric.name
    largest = 0.0
    for expression, what in (
        (plan.value, f"metric {name!r}: column {plan.metric.column or name!r}"),
        (plan.below, f"metric {name!r}: column {plan.metric.denominator!r}"),
        (covariate, "covariate: the column"),
    ):
        if expression:
            sql = (
                f"SELECT count_if(isnan(y)), count_if(isinf(y)), max(abs(y)) FILTER (isfinite(y)) "
                f"FROM (SELECT {expression} AS y FROM {data.table})"
            )
            nans, infinities, most = data.run("looking for what is not finite", sql)[0]
            largest = max(largest, most or 0.0)
            if nans or infinities:
                raise BadInput(
                    f"{what} has {nans} NaN and {infinities} infinite values; correct or empty "
                    "them, or leave them out with --drop-invalid"
                )
    raise BadInput(
        f"metric {name!r}: values up to {largest:g} are too large to be squared; "
        "give them in a larger unit"
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
