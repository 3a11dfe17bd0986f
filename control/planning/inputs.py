"""What a plan is made for: traffic and baselines, as given or measured, and what is assumed.

Owns how requests and units follow from each other. Refuses traffic that contradicts itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

DAY_S: Final = 86_400.0
HOUR_S: Final = 3_600.0
# Two of requests, units and requests per unit give the third; all three must agree this well.
AGREEMENT: Final = 0.05
# Of each of the three: nobody has more, and nothing overflows.
TRAFFIC_LEAST: Final = 1e-9
TRAFFIC_MOST: Final = 1e12


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests and units of a target in a mean hour.

    Attributes:
        requests_per_s: That an experiment with everybody in it would see, > 0.
        units_per_day: Distinct units among a day's requests; None = not known.
        returning: Share of a day's units that came on a day before, 0..1.
    """

    requests_per_s: float
    units_per_day: float | None = None
    returning: float = 0.0

    @property
    def units_per_hour(self) -> float | None:
        """Distinct units among an hour's requests, when each spreads its own over the day."""
        return self.units_after(HOUR_S, random=False)

    @property
    def requests_per_unit(self) -> float | None:
        """Of a unit in a day, >= 1."""
        if self.units_per_day is None:
            return None
        return max(1.0, self.requests_per_s * DAY_S / self.units_per_day)

    def scaled(self, share: float) -> Traffic:
        """The traffic of a share of the units."""
        units = None if self.units_per_day is None else self.units_per_day * share
        return Traffic(self.requests_per_s * share, units, self.returning)

    def units_after(self, seconds: float, *, random: bool) -> float | None:
        """Distinct units that have come by then; None = not known.

        Args:
            seconds: Since a beginning, >= 0.
            random: Every request is a unit.
        """
        if random:
            return self.requests_per_s * seconds
        if self.units_per_day is None:
            return None
        days = seconds / DAY_S
        if days <= 1:
            # A unit is there as soon as the first of its requests is.
            return self.units_per_day * (1 - math.pow(1 - days, self.requests_per_unit or 1.0))
        return self.units_per_day * (1 + (days - 1) * (1 - self.returning))

    def seconds_until(self, units: float, *, random: bool) -> float | None:
        """Seconds until so many distinct units have come; None = never, or not known."""
        if random:
            return units / self.requests_per_s
        if self.units_per_day is None:
            return None
        days = units / self.units_per_day
        if days <= 1:
            return (1 - math.pow(1 - days, 1 / (self.requests_per_unit or 1.0))) * DAY_S
        if self.returning >= 1:
            return None
        return (1 + (days - 1) / (1 - self.returning)) * DAY_S


def traffic_of(
    requests_per_s: float | None = None,
    units_per_day: float | None = None,
    requests_per_unit: float | None = None,
    *,
    returning: float = 0.0,
) -> Traffic:
    """Traffic from two of its three numbers, or from requests alone.

    Args:
        requests_per_s: Of the target.
        units_per_day: Distinct ones in a day.
        requests_per_unit: Of one unit in a day.
        returning: Share of a day's units that came on a day before.

    Raises:
        ValueError: A number is not positive, too few are given, or all three contradict each other.
    """
    given = {
        "requests per second": requests_per_s,
        "units per day": units_per_day,
        "requests per unit": requests_per_unit,
    }
    for name, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} == {value:g}, must be > 0")
        if value is not None and not TRAFFIC_LEAST <= value <= TRAFFIC_MOST:
            raise ValueError(f"{name} == {value:g}, must be in {TRAFFIC_LEAST:g}..{TRAFFIC_MOST:g}")
    if not 0 <= returning <= 1:
        raise ValueError(f"returning == {returning:g}, must be in 0..1")
    if requests_per_unit is not None and requests_per_unit < 1:
        raise ValueError(f"requests per unit == {requests_per_unit:g}, must be >= 1")
    if requests_per_s is None:
        if units_per_day is None or requests_per_unit is None:
            raise ValueError(
                "the traffic is missing: requests per second, or both units per day and requests "
                "per unit"
            )
        requests_per_s = units_per_day * requests_per_unit / DAY_S
    elif requests_per_unit is not None:
        units = requests_per_s * DAY_S / requests_per_unit
        if units_per_day is not None and abs(units - units_per_day) > AGREEMENT * units:
            raise ValueError(
                f"{requests_per_s:g} requests per second are {units:.6g} units per day at "
                f"{requests_per_unit:g} requests each, not {units_per_day:g}: leave one out"
            )
        units_per_day = units_per_day or units
    if units_per_day is not None and units_per_day > requests_per_s * DAY_S * (1 + AGREEMENT):
        raise ValueError(
            f"units per day == {units_per_day:g}, more than the {requests_per_s * DAY_S:.6g} "
            "requests of a day"
        )
    return Traffic(requests_per_s, units_per_day, returning)


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What a plan takes for granted.

    Attributes:
        traffic: Of the target.
        baselines: Metric -> control's value; rates 0..1, latencies in milliseconds.
        deviations: Metric -> standard deviation between units, in the metric's unit.
        eligible: Share of the target's units that the experiment's segment takes.
        held_out: Share of the units that the holdout keeps out.
        labels: Share of the requests that get a label.
        power: Wanted chance of finding the minimum improvement.
    """

    traffic: Traffic
    baselines: Mapping[str, float] = field(default_factory=dict)
    deviations: Mapping[str, float] = field(default_factory=dict)
    eligible: float = 1.0
    held_out: float = 0.0
    labels: float = 1.0
    power: float = 0.8

    def __post_init__(self) -> None:
        for name, share in (("eligible", self.eligible), ("labels", self.labels)):
            if not 0 < share <= 1:
                raise ValueError(f"{name} == {share:g}, must be > 0 and at most 1")
        if not 0.5 <= self.power < 1:
            raise ValueError(f"power == {self.power:g}, must be at least 0.5 and below 1")


@dataclass(frozen=True, slots=True)
class Caution:
    """A doubt about a design; it never forbids anything.

    Attributes:
        code: Stable name.
        field: Path in the resource file.
        text: One clause with the numbers.
    """

    code: str
    field: str
    text: str
