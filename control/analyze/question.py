"""What is asked of data, checked as far as it can be without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from control.analyze.estimate import Settings
from control.analyze.metrics import Roles
from control.stats.verdicts import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, checked as far as it can be without the data. See `analyze`."""

    roles: Roles
    control: str
    metrics: tuple[str, ...]
    expected: Mapping[str, float]
    sequential: bool
    settings: Settings
    primary: str | None
    guardrails: Mapping[str, float]
    caps: Mapping[str, float]
    label_maturity_s: float
    as_of: str | None
    minimum_effect: float | str
    equivalence: float | str | None
    harm: float | str
    lower_is_better: tuple[str, ...]
    higher_is_better: tuple[str, ...]
    rule: Rule
    min_units: int
    final: bool
    positive: str | None
    series: bool
