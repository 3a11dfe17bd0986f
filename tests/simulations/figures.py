"""What a simulation found: one figure of ours, its bound, and the naive method's beside it.

Owns the forms of figures and of the table. Refuses to run anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Final, Literal

SEED: Final = 20260722

Relation = Literal["<=", ">=", "within"]
Unit = Literal["share", "number", "minutes", "users"]


@dataclass(frozen=True, slots=True)
class Claim:
    """value: Measured. It must stand in `relation` to `limit`, "within" meaning +- `slack`."""

    value: float
    relation: Relation
    limit: float
    slack: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether it does; NaN does not."""
        if self.relation == "within":
            return abs(self.value - self.limit) <= self.slack
        return self.value <= self.limit if self.relation == "<=" else self.value >= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table.

    Attributes:
        plan: P1 to P9.
        what: World and figure.
        reps: Simulated experiments.
        ours: Of the product's functions.
        naive: Name of the naive method; "" if there is none to this line.
        theirs: What it gives, with the bound by which it is shown to fail.
        unit: Of the values.
        seed: Of the generator.
    """

    plan: str
    what: str
    reps: int
    ours: Claim
    naive: str = ""
    theirs: Claim | None = None
    unit: Unit = "share"
    seed: int = SEED

    @property
    def fault(self) -> str:
        """What is wrong: our figure out of its bound, or a naive method that does not fail."""
        if not self.ours.holds:
            return f"{self.plan} {self.what}: {_claim(self.ours, self.unit)}"
        if self.theirs is not None and not self.theirs.holds:
            return f"{self.plan} {self.what}: {self.naive} gives {_claim(self.theirs, self.unit)}"
        return ""


def rate_within(rejected: float, rate: float, reps: int) -> Claim:
    """A measured error rate against its nominal one plus three standard errors."""
    return Claim(rejected, "<=", rate + 3 * math.sqrt(rate * (1 - rate) / reps))


def table(figures: Iterable[Figure]) -> str:
    """Markdown."""
    lines = [
        "| plan | world and figure | reps | ours | bound | naive method | its figure |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for f in figures:
        theirs = "" if f.theirs is None else _value(f.theirs.value, f.unit)
        ours, bound = _value(f.ours.value, f.unit), _bound(f.ours, f.unit)
        cells = (f.plan, f.what, f"{f.reps:,}", ours, bound, f.naive)
        lines.append(f"| {' | '.join(cells)} | {theirs} |")
    return "\n".join(lines)


def to_json(figures: Iterable[Figure], cpu_s: Mapping[str, float]) -> str:
    """All figures and the CPU seconds of each part of the plan."""
    rows = [asdict(figure) | {"holds": not figure.fault} for figure in figures]
    return json.dumps({"figures": rows, "cpu_s": dict(cpu_s)}, indent=1, allow_nan=False)


def _claim(claim: Claim, unit: Unit) -> str:
    return f"{_value(claim.value, unit)}, must be {_bound(claim, unit)}"


def _bound(claim: Claim, unit: Unit) -> str:
    limit = _value(claim.limit, unit)
    if claim.relation == "within":
        return f"{limit} +- {_value(claim.slack, unit)}"
    return f"{claim.relation} {limit}"


def _value(value: float, unit: Unit) -> str:
    if unit == "share":
        return f"{100 * value:.3g} %"
    if unit == "minutes":
        return f"{value:.3g} min"
    if unit == "users":
        return f"{value:,.0f} users"
    return f"{value:.3g}"
