"""Label maturity: exposures too young to have their outcome yet are left out of everything.

A unit's exposure is its first row, without units each row. Owns when data end. Refuses to guess a
time: without a column of times nothing is said to be old enough.
"""
# ruff: noqa: S608 - every name goes through `quoted`, every text through `literal`

from __future__ import annotations

from dataclasses import replace
from typing import Final

from control.analyze.data import Data, literal, quoted
from control.analyze.errors import BadInput
from control.analyze.metrics import Roles, is_number

_UNITS_S: Final = (("d", 86_400), ("h", 3_600), ("min", 60))


def mature(data: Data, roles: Roles, maturity_s: float, as_of: str | None) -> tuple[Data, str]:
    """The data without young exposures, and a sentence that says how many those were.

    Args:
        data: All rows.
        roles: `time` is needed.
        maturity_s: How long after an exposure its outcome is final, in seconds.
        as_of: When the outcomes were taken, as "2026-01-31 12:00"; None = at the newest time.

    Raises:
        BadInput: No time column, no times in it, or nothing is old enough.
    """
    said = f"label maturity of {_shown(maturity_s)}"
    if roles.time is None:
        raise BadInput(
            f"labelMaturity: a {said} needs to know when each row happened: name its column with "
            "--time-column (or leave young rows out of the data, and give --label-maturity 0s)"
        )
    name, kind = quoted(roles.time), data.columns[roles.time]
    if is_number(kind) or not (kind == "VARCHAR" or kind.startswith(("TIMESTAMP", "DATE"))):
        raise BadInput(
            f"time: column {roles.time!r} is of type {kind}, must be times, as 2026-01-31 12:00: "
            f"there is a {said}"
        )
    at = f"try_cast({name} AS TIMESTAMP)" if kind == "VARCHAR" else name
    seconds = f"CASE WHEN isfinite({at}) THEN epoch({at}) END"
    end = _end(data, roles.time, seconds, as_of)
    unit = quoted(roles.unit) if roles.unit else None
    by_unit = f"WHERE {unit} IS NOT NULL GROUP BY {unit}"
    exposures = f"SELECT {seconds} AS turnout_at FROM {data.table}"
    if unit:
        exposures = f"SELECT min({seconds}) AS turnout_at FROM {data.table} {by_unit}"
    old = f"<= {end - maturity_s!r}::DOUBLE"
    counts = f"count(*), count_if(turnout_at {old}), count_if(turnout_at IS NULL)"
    counted = f"SELECT {counts} FROM ({exposures})"
    every, kept, timeless = data.run("looking for young exposures", counted)[0]
    what = "units" if unit else "rows"
    shown = data.run("reading times", f"SELECT make_timestamp(({end!r} * 1e6)::BIGINT)::VARCHAR")
    until = f"at the end of the data ({shown[0][0]})" if as_of is None else f"as of {as_of}"
    if not kept:
        raise BadInput(
            f"labelMaturity: all {every:,} {what} are younger than the {said} {until}: wait, or "
            "say when their outcomes were taken with --as-of"
        )
    where = f"{seconds} {old}"
    if unit:
        found = f"SELECT {unit} FROM {data.table} {by_unit} HAVING min({seconds}) {old}"
        where = f"{unit} IS NULL OR {unit} IN ({found})"
    without = f", {timeless:,} of them without any time" if timeless else ""
    return replace(data, table=f"(SELECT * FROM {data.table} WHERE {where})"), (
        f"{said}: {every - kept:,} of {every:,} {what} are left out of everything as younger "
        f"{until}{without}"
    )


def _end(data: Data, column: str, seconds: str, as_of: str | None) -> float:
    if as_of is None:
        (newest,) = data.run("reading times", f"SELECT max({seconds}) FROM {data.table}")[0]
        if newest is None:
            raise BadInput(
                f"time: column {column!r} has no times; they look like 2026-01-31 12:00:00"
            )
        return float(newest)
    sql = f"SELECT epoch(try_cast({literal(as_of)} AS TIMESTAMP))"
    (found,) = data.run("reading times", sql)[0]
    if found is None:
        raise BadInput(f"as_of: {as_of!r}: must be a time, as 2026-01-31 or 2026-01-31 12:00")
    return float(found)


def _shown(seconds: float) -> str:
    for name, length in _UNITS_S:
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g} {name}"
    return f"{seconds:g} s"
