"""Whether a covariate can be from before the experiment, and what units without one are given.

Owns its mean, the count of units without it and the test that it is alike in all arms. Refuses
columns that are no numbers.
"""
# ruff: noqa: S608 - every name goes through `quoted`

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

from control.analyze.data import Data, quoted
from control.analyze.errors import BadInput
from control.analyze.metrics import Roles, is_number
from control.analyze.plans import number_of
from control.stats.means import welch
from control.stats.moments import Moments

# A covariate from before differs between arms by chance only: so rarely that looks may be many.
_APART_P: Final = 1e-4


class Covariate(NamedTuple):
    """A column over units. mean: Of all units with one. missing: Per arm units without, of all."""

    mean: float
    missing: Mapping[str, tuple[int, int]]
    of_arm: Mapping[str, Moments]

    def differs(self, control: str) -> tuple[str, ...]:
        """The arms in which it is not as in control beyond chance."""
        if control not in self.of_arm:
            return ()
        return tuple(
            arm
            for arm in sorted(self.of_arm)
            if arm != control and _apart(self.of_arm[control], self.of_arm[arm])
        )


def covariate_of(data: Data, roles: Roles, column: str) -> Covariate:
    """Count a covariate per arm; a unit's is the mean of its rows, units in two arms are left out.

    Raises:
        BadInput: The column is not numeric.
    """
    if not (is_number(data.columns[column]) or data.columns[column] == "BOOLEAN"):
        raise BadInput(f"covariate: {column!r} is of type {data.columns[column]}, must be numbers")
    x, arm = number_of(data, column), f"{quoted(roles.variant)}::VARCHAR"
    rows = f"SELECT {arm} AS arm, {x} AS x FROM {data.table} WHERE {arm} IS NOT NULL"
    if roles.unit is not None:
        unit = quoted(roles.unit)
        rows = (
            f"SELECT min({arm}) AS arm, avg({x}) AS x FROM {data.table} "
            f"WHERE {arm} IS NOT NULL AND {unit} IS NOT NULL GROUP BY {unit} "
            f"HAVING min({arm}) = max({arm})"
        )
    finite = "FILTER (abs(x) < 1e150)"
    sql = (
        f"SELECT arm, count(*), count(x), count(x) {finite}, avg(x) {finite}, "
        f"var_pop(x) {finite} FROM ({rows}) GROUP BY arm"
    )
    missing, of_arm = {}, {}
    for name, units, given, n, mean, variance in data.run("reading the covariate", sql):
        missing[name] = (units - given, units)
        numbers = (n, mean or 0.0, n * (variance or 0.0))
        of_arm[name] = Moments(*(np.asarray(one, dtype=np.float64)[()] for one in numbers))
    total = sum(float(one.n) for one in of_arm.values())
    mean = sum(float(one.n) * float(one.mean) for one in of_arm.values()) / max(total, 1.0)
    return Covariate(mean, missing, of_arm)


def _apart(control: Moments, treatment: Moments) -> bool:
    if min(control.n, treatment.n) < 2:
        return False
    test = welch(control, treatment, alpha=_APART_P)
    if not test.decided:
        return bool(control.mean != treatment.mean)
    return float(test.p_value) < _APART_P
