"""The evidence as it came in: cumulative looks over time or over rows, for plots.

A unit counts, with all its rows, from its first row on. Owns where looks are; refuses more than
`LOOKS_MAX`.
"""
# ruff: noqa: S608 - every name goes through `quoted`

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from control.analyze.aggregate import LOOKS_MAX, Group, Table, merged
from control.analyze.data import Data, quoted
from control.analyze.errors import BadInput
from control.analyze.estimate import Settings, compare
from control.analyze.metrics import is_number
from control.analyze.plans import Plan
from control.analyze.result import Point, Series


class Times(NamedTuple):
    """look: SQL for the look of a row. ends: When each look ended; empty without a time column.

    duration_s: From the first row to the last, None if it is not known.
    """

    look: str
    ends: tuple[str, ...]
    duration_s: float | None


def times_of(data: Data, column: str | None) -> Times:
    """Where the looks are: equal spans of time, or of rows.

    Raises:
        BadInput: The column is neither a time nor a number.
    """
    if column is None:
        rows = data.run("counting rows", f"SELECT count(*) FROM {data.table}")[0][0]
        look = f"((row_number() OVER () - 1) * {LOOKS_MAX} // {max(rows, 1)})"
        return Times(look, (), None)
    kind, name = data.columns[column], quoted(column)
    if kind == "VARCHAR":
        name = f"try_cast({name} AS TIMESTAMP)"
    elif not (is_number(kind) or kind.startswith("TIMESTAMP") or kind == "DATE"):
        raise BadInput(f"time: column {column!r} is of type {kind}, must be times or numbers")
    number = f"{name}::DOUBLE" if is_number(kind) else f"epoch({name})"
    number = f"CASE WHEN isfinite({number}) THEN {number} END"
    sql = f"SELECT min({number}), max({number}), count({number}) FROM {data.table}"
    first, last, known = data.run("reading times", sql)[0]
    if not known:
        raise BadInput(f"time: column {column!r} has no times; they look like 2026-01-31 12:00:00")
    span = (last - first) or 1.0
    # What has no time is counted at the first look.
    look = (
        f"coalesce(least(floor(({number} - {first!r}) / {span!r} * {LOOKS_MAX}), "
        f"{LOOKS_MAX - 1})::INTEGER, 0)"
    )
    ends = [first + span * (index + 1) / LOOKS_MAX for index in range(LOOKS_MAX)]
    shown = [_time(end, number=is_number(kind)) for end in ends]
    return Times(look, tuple(shown), None if is_number(kind) else last - first)


def series_of(
    plans: Sequence[Plan],
    table: Table,
    times: Times,
    *,
    control: str,
    treatments: Sequence[str],
    settings: Settings,
) -> tuple[Series, ...]:
    """Each metric's confidence sequence, look after look."""
    looks = sorted({key[2] for key in table.groups if key[2] is not None})
    sofar: dict[str, Group] = {}
    points: dict[tuple[int, str], list[Point]] = {}
    for look in looks:
        for variant in (control, *treatments):
            new = [g for key, g in table.groups.items() if key[0] == variant and key[2] == look]
            before = [sofar[variant]] if variant in sofar else []
            if before or new:
                sofar[variant] = merged([*before, *new])
        for variant in treatments:
            if control not in sofar or variant not in sofar:
                continue
            for index, plan in enumerate(plans):
                found = compare(
                    plan,
                    variant,
                    sofar[control].cells[index],
                    sofar[variant].cells[index],
                    settings,
                ).result
                n = found.control.n + found.treatment.n
                time = times.ends[look] if times.ends else None
                point = Point(n, time, found.difference, found.cs_low, found.cs_high)
                points.setdefault((index, variant), []).append(point)
    return tuple(
        Series(plans[index].metric.name, variant, tuple(found))
        for (index, variant), found in sorted(points.items())
    )


def _time(seconds: float, *, number: bool) -> str:
    if number:
        return f"{seconds:g}"
    return datetime.fromtimestamp(seconds, tz=UTC).isoformat(timespec="seconds")
