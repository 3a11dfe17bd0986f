"""Random data sets to compare our statistics with other libraries on, and what agreement is.

Owns 1,000 worlds (two arms of units with a metric, a covariate and a denominator) and 1,000 pairs
of counts, all seeded: light and heavy tails, zeros, no spread, scales from 1e-3 to 1e9, splits to
99/1. Refuses to judge: a test says which definitions are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from control.stats.moments import Moments, PairMoments, moments, pair_moments

Values = npt.NDArray[np.float64]
WORLDS: Final = 1_000
RTOL: Final = 1e-9
_SEED: Final = 20_261_122
_SHARES: Final = (0.5, 0.5, 0.8, 0.2, 0.99, 0.01)  # of the treatment


class Units(NamedTuple):
    """One arm, unit by unit. y: The metric. x: Known before. d: A denominator, >= 1."""

    y: Values
    x: Values
    d: Values


class World(NamedTuple):
    """One data set. name: Its shape and number, for messages."""

    name: str
    control: Units
    treatment: Units

    @property
    def arms(self) -> tuple[Moments, Moments]:
        """Moments of the metric: control, treatment."""
        return moments(self.control.y), moments(self.treatment.y)

    @property
    def covariates(self) -> tuple[PairMoments, PairMoments]:
        """Moments of metric and covariate."""
        return tuple(pair_moments(arm.y, arm.x) for arm in (self.control, self.treatment))  # type: ignore[return-value]

    @property
    def ratios(self) -> tuple[PairMoments, PairMoments]:
        """Moments of metric and denominator."""
        return tuple(pair_moments(arm.y, arm.d) for arm in (self.control, self.treatment))  # type: ignore[return-value]

    @property
    def spread(self) -> tuple[bool, bool]:
        """Whether the metric varies at all: control, treatment."""
        return bool(np.ptp(self.control.y)), bool(np.ptp(self.treatment.y))


class Counted(NamedTuple):
    """Events of trials of both arms."""

    name: str
    x_c: int
    n_c: int
    x_t: int
    n_t: int


Shape = Callable[[np.random.Generator, int], Values]

SHAPES: Final[dict[str, Shape]] = {
    "normal": lambda rng, n: rng.normal(3.0, 1.0, n),
    "lognormal": lambda rng, n: rng.lognormal(0.0, 2.0, n),
    "student": lambda rng, n: 1.0 + rng.standard_t(2.1, n),
    "pareto": lambda rng, n: rng.pareto(1.5, n),
    "counts": lambda rng, n: rng.poisson(0.3, n).astype(np.float64),
    "rare": lambda rng, n: (rng.random(n) < 10 ** rng.uniform(-4, -0.5)).astype(np.float64),
    "revenue": lambda rng, n: (rng.random(n) < 0.05) * rng.lognormal(3.0, 1.5, n),
    "signed": lambda rng, n: rng.normal(0.0, 1.0, n),
    "ties": lambda rng, n: rng.integers(1, 6, n).astype(np.float64),
}


@cache
def worlds() -> tuple[World, ...]:
    """The 1,000 data sets, the same in every run."""
    return tuple(_worlds())


def _worlds() -> Iterator[World]:
    names = tuple(SHAPES)
    for number in range(WORLDS):
        rng = np.random.default_rng((_SEED, number))
        name = names[number % len(names)]
        total = int(10 ** rng.uniform(np.log10(6), 3.3))
        n_t = int(np.clip(round(total * rng.choice(_SHARES)), 2, total - 2))
        scale = 10 ** rng.uniform(-3, 9)
        lift = 1.0 if rng.random() < 0.5 else float(rng.uniform(0.8, 1.5))
        yield World(
            f"{name} {number}",
            _units(rng, SHAPES[name], total - n_t, scale),
            _units(rng, SHAPES[name], n_t, scale * lift),
        )


def _units(rng: np.random.Generator, shape: Shape, n: int, scale: float) -> Units:
    y = shape(rng, n)
    x = (0.7 * y + rng.normal(0.0, 1.0, n)) * scale
    if rng.random() < 0.02:
        x = np.full(n, scale)
    return Units(y * scale, x, 1.0 + rng.poisson(3.0, n).astype(np.float64))


@cache
def counted() -> tuple[Counted, ...]:
    """1,000 pairs of counts: rates from 0 to 1, 2 to 10 million trials."""
    found = []
    for number in range(WORLDS):
        rng = np.random.default_rng((_SEED, 1, number))
        total = int(10 ** rng.uniform(np.log10(6), 7))
        n_t = int(np.clip(round(total * rng.choice(_SHARES)), 2, total - 2))
        rate = float(rng.choice([0.0, 1.0, 10 ** rng.uniform(-5, -1), rng.uniform(0.05, 0.95)]))
        other = min(1.0, rate * float(rng.choice([1.0, rng.uniform(0.9, 1.2)])))
        n_c = total - n_t
        x_c, x_t = int(rng.binomial(n_c, rate)), int(rng.binomial(n_t, other))
        found.append(Counted(f"counts {number}", x_c, n_c, x_t, n_t))
    return tuple(found)


def agree(
    ours: Any,
    theirs: Any,
    where: str,
    *,
    rtol: float = RTOL,
    scale: float = 0.0,
    atol: float = 0.0,
) -> None:
    """Fail unless two numbers are the same to `rtol`, or NaN both.

    Args:
        ours: A number of ours.
        theirs: The other library's.
        where: What was compared, and in which world.
        rtol: Of the larger of both and of `scale`.
        scale: What the number is a difference of, or is measured in: the end of an interval near
            0 has no more digits than its standard error.
        atol: What the other library leaves out on purpose or by rounding, such as 1 - cdf.
    """
    a, b = float(ours), float(theirs)
    if np.isnan(a) or np.isnan(b) or np.isinf(a) or np.isinf(b):
        assert a == b or (np.isnan(a) and np.isnan(b)), f"{where}: {a!r} and {b!r}"
        return
    limit = rtol * max(abs(a), abs(b), scale) + atol
    assert abs(a - b) <= limit, f"{where}: {a!r} and {b!r} differ by {abs(a - b):.3g} > {limit:.3g}"
