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
from importlib import import_module
from threading import Thread
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np

from control.analyze.data import Data, literal, quoted
from control.analyze.errors import BadInput
from control.analyze.metrics import Roles
from control.analyze.plans import VARIANTS_MAX, Plan, number_of
from control.stats.moments import Moments, PairMoments, merge_pairs

STRATA_MAX: Final = 100
LOOKS_MAX: Final = 50
MISSING: Final = "(missing)"
_BITS_LEAST: Final = 8  # of the smallest whole number
# Keys to group by: variant, stratum, look. Data have columns beside them, often of one letter.
_VARIANT: Final = "turnout_v"
_STRATUM: Final = "turnout_g"
_LOOK: Final = "turnout_k"


@dataclass(frozen=True, slots=True)
class Cell:
    """One metric in one arm, from variables over units: value, weight (if any), covariate (if any).

    n: Units with a value. missing: Units (rows) without. pairs: Moments of each pair of variables.
    weighted: The metric is value / weight: a ratio, or a mean over rows by unit. once: All weights
    are 1, so that they say nothing. offset: To be added to values. bad: Values against the rule.
    cut: Values above the metric's cap.
    """

    n: int
    missing: int
    pairs: Mapping[tuple[int, int], PairMoments]
    weighted: bool
    covariate: bool
    once: bool
    offset: float
    bad: int
    cut: int = 0

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
        x_shift: The covariate's mean over units, which units without one are given.
        without_flips: Look for units in several arms over all rows first, and leave them out.

    Raises:
        BadInput: Values are not finite, or break their metric's rule.
    """
    # Whoever counts compares next. That takes scipy, and its import as long as 10 million rows;
    # DuckDB counts them meanwhile, without the interpreter's lock.
    Thread(target=import_module, args=("scipy.special",)).start()
    keys = [f"{quoted(roles.variant)}::VARCHAR AS {_VARIANT}"]
    if by_stratum and roles.strata:
        keys.append(f"coalesce({quoted(roles.strata)}::VARCHAR, {literal(MISSING)}) AS {_STRATUM}")
    if look:
        keys.append(f"{look} AS {_LOOK}")
    covariate = ""
    if roles.covariate:
        covariate = f"({number_of(data, roles.covariate)} - {x_shift!r})"
    if roles.unit is None:
        covariate = covariate and f"coalesce({covariate}, 0.0)"
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
    """Keys to group by, and all of them, with NULL for those that are not used."""
    used = [key.rpartition(" AS ")[2] for key in keys]
    every = (_VARIANT, _STRATUM, _LOOK)
    return used, ", ".join(name if name in used else "NULL" for name in every)


def _by_row(data: Data, plans: Sequence[Plan], keys: Sequence[str], covariate: str) -> Table:
    outputs: list[str] = ["count(*)"]
    for plan in plans:
        value = plan.capped(plan.value)
        variables = [f"({value} - {plan.shift!r})" if plan.shift else value]
        if plan.below:
            variables = [
                f"CASE WHEN {plan.below} IS NOT NULL THEN {value} END",
                f"CASE WHEN {plan.value} IS NOT NULL THEN {plan.below} END",
            ]
        if covariate:
            variables.append(f"CASE WHEN {variables[0]} IS NOT NULL THEN {covariate} END")
        outputs += _sums(variables, binary=plan.binary)
        outputs += [_broken(plan), _cut(plan, plan.value)]
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
            (bad, cut), place = numbers[place : place + 2], place + 2
            found_cell = _cell(plan, shape, part, rows=rows, bad=bad, cut=cut, once=False)
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
    rows_of = _rows_of(data, roles.variant)
    unassigned = rows_of.pop(None, 0)
    arms = {1 << place: name for place, name in enumerate(rows_of) if name is not None}
    if not arms:
        return Table({}, unassigned=unassigned)
    used, shown = _names(keys)
    inner = [f"bit_or({_mask(arms)}) AS arm", "count(*) AS r"]
    inner += [{_STRATUM: _STRATUM, _LOOK: f"min({_LOOK}) AS {_LOOK}"}[name] for name in used[1:]]
    outer = ["count(*)", "sum(r)"]
    for index, plan in enumerate(plans):
        of_plan = _unit_outputs(plan, index, covariate=bool(covariate))
        inner += of_plan[0]
        outer += of_plan[1]
    if covariate:
        inner.append(f"coalesce(avg({covariate}), 0.0) AS x")
    where = f"{unit} IS NOT NULL AND {variant} IS NOT NULL"
    if without_flips:
        where += (
            f" AND {unit} NOT IN (SELECT {unit} FROM {data.table} WHERE {where} GROUP BY {unit} "
            f"HAVING min(hash({variant}::VARCHAR)) <> max(hash({variant}::VARCHAR)))"
        )
    rows = f"SELECT {', '.join(keys)}, * FROM {data.table} WHERE {where}"
    # Of the rows by name: what is selected has one-letter names, too.
    by_unit = ", ".join([f"turnout_rows.{unit}", *(name for name in used if name == _STRATUM)])
    sql = (
        f"SELECT {shown.replace(_VARIANT, 'arm', 1)}, {', '.join(outer)} FROM "
        f"(SELECT {', '.join(inner)} FROM ({rows}) AS turnout_rows GROUP BY {by_unit}) "
        f"GROUP BY {', '.join(['arm', *used[1:]])}"
    )
    found: dict[Key, Group] = {}
    flipped, counted = 0, 0
    for arm, g, k, units, seen, *numbers in data.run("counting by unit", sql):
        counted += int(seen)
        if arm not in arms:
            flipped += units
            continue
        cells, place = [], 0
        for plan in plans:
            shape = _Shape(not plan.single, bool(covariate))
            part, place = numbers[place : place + shape.width], place + shape.width
            (most, bad, cut), place = numbers[place : place + 3], place + 3
            once = not plan.below and most == 1
            found_cell = _cell(plan, shape, part, rows=units, bad=bad, cut=cut, once=once)
            cells.append(found_cell or _refuse_infinite(data, plan, covariate))
        found[arms[arm], g, k] = Group(int(seen), units, tuple(cells))
    unitless = 0 if without_flips else sum(rows_of.values()) - counted
    return Table(found, flipped, unassigned, unitless)


def _unit_outputs(plan: Plan, index: int, *, covariate: bool) -> tuple[list[str], list[str]]:
    """Of one metric: what is counted per unit, and what over units."""
    s, n, valid = f"s{index}", f"n{index}", f"c{index}"
    by_row = plan.value if plan.summed else plan.capped(plan.value)
    value = f"{by_row} - {plan.shift!r}" if plan.shift else by_row
    inner = []
    if plan.below:
        both = f"{plan.value} IS NOT NULL AND {plan.below} IS NOT NULL"
        inner.append(f"sum({plan.below}) FILTER ({both}) AS {n}")
        value = f"CASE WHEN {plan.below} IS NOT NULL THEN {value} END"
    else:
        n = valid
    # Aggregates skip NULL themselves; a FILTER takes as long as the sum.
    inner.append(f"{'max' if plan.metric.any_of else 'sum'}({value}) AS {s}")
    inner.append(f"count({value}) AS {valid}")
    inner.append(f"{_broken(plan)} AS m{index}")
    cut = _cut(plan, s)
    if plan.metric.cap is not None and not plan.summed:
        inner.append(f"{_cut(plan, plan.value)} AS u{index}")
        cut = f"sum(u{index})"
    of_unit = plan.capped(s) if plan.summed else s
    variables = [of_unit] if plan.single else [of_unit, f"CASE WHEN {valid} > 0 THEN {n} END"]
    if covariate:
        variables.append(f"CASE WHEN {valid} > 0 THEN x END")
    return inner, [*_sums(variables), f"max({valid})", f"sum(m{index})", cut]


def _rows_of(data: Data, column: str) -> dict[str | None, int]:
    """Rows per variant; None: rows without one."""
    sql = f"SELECT {quoted(column)}::VARCHAR, count(*) FROM {data.table} GROUP BY 1"
    found: dict[str | None, int] = dict(data.run("finding variants", sql))
    if len(found.keys() - {None}) > VARIANTS_MAX:
        raise BadInput(
            f"variant: column {column!r} has {len(found.keys() - {None})} values, must have at "
            f"most {VARIANTS_MAX}; is it the unit?"
        )
    return found


def _mask(arms: Mapping[int, str]) -> str:
    """A bit for each variant: a unit's variants are one small number, not names."""
    kind = "UTINYINT" if len(arms) <= _BITS_LEAST else "UBIGINT"
    whens = (f"WHEN {_VARIANT} = {literal(name)} THEN {bit}::{kind}" for bit, name in arms.items())
    return f"CASE {' '.join(whens)} END"


def _broken(plan: Plan) -> str:
    """Rows against the rule; count_if would count in 16 bytes per unit."""
    return f"count(CASE WHEN NOT ({plan.must}) THEN 1 END)" if plan.must else "0"


def _cut(plan: Plan, value: str) -> str:
    """Values above the cap, if there is one."""
    over = plan.over(value)
    return f"count(CASE WHEN {over} THEN 1 END)" if over else "0"


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
    cut: int,
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
    variables = (shape.weighted, shape.covariate)
    return Cell(n, rows - n, pairs, *variables, once, plan.shift, int(bad or 0), int(cut or 0))


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
            cut=one.cut + two.cut,
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
