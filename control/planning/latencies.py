"""A latency distribution from one or two known quantiles: what share of answers is above a limit.

Lognormal, because a limit's distance is known in milliseconds and its share is not. With a single
quantile the spread is an assumption (`SIGMA`), which every sentence that rests on it must say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from statistics import NormalDist
from typing import Final, NamedTuple

from control.model.metrics import BUILT_IN, LATENCY

# Standard deviation of the logarithm: p99 is then 1.4 times p95, and 3.2 times the median.
SIGMA: Final = 0.5
_NORMAL: Final = NormalDist()


class Latency(NamedTuple):
    """ln(latency in ms) is normal; `assumed`: its spread is `SIGMA`, not from two quantiles."""

    mu: float
    sigma: float
    assumed: bool

    def above(self, limit_ms: float) -> float:
        """Share of the answers above a limit."""
        if limit_ms <= 0:
            return 1.0
        return _NORMAL.cdf((self.mu - math.log(limit_ms)) / self.sigma)

    def quantile_ms(self, q: float) -> float:
        """The latency that a share q of the answers keeps."""
        return math.exp(self.mu + self.sigma * _NORMAL.inv_cdf(q))

    def density(self, at_ms: float) -> float:
        """Share of the answers per millisecond."""
        return _NORMAL.pdf((math.log(at_ms) - self.mu) / self.sigma) / (self.sigma * at_ms)


def latency_of(baselines: Mapping[str, float], metric: str | None = None) -> Latency | None:
    """The distribution through the known quantiles; None without any.

    Args:
        baselines: Metric -> milliseconds; two quantiles, the one asked for and the furthest from
            it, give the spread.
        metric: The quantile that must be met exactly; None takes the highest known one.

    Raises:
        ValueError: Quantiles that do not increase.
    """
    known = {quantile_of(name): baselines[name] for name in LATENCY if name in baselines}
    values = [known[q] for q in sorted(known)]
    if any(low >= high for low, high in pairwise(values)):
        raise ValueError("latency quantiles must increase: p50 < p90 < p95 < p99")
    if not known or (metric is not None and metric not in baselines):
        return None
    q = max(known) if metric is None else quantile_of(metric)
    others = [other for other in known if other != q]
    z, log_q = _NORMAL.inv_cdf(q), math.log(known[q])
    if not others:
        return Latency(log_q - SIGMA * z, SIGMA, assumed=True)
    far = max(others, key=lambda other: abs(_NORMAL.inv_cdf(other) - z))
    sigma = (log_q - math.log(known[far])) / (z - _NORMAL.inv_cdf(far))
    return Latency(log_q - sigma * z, sigma, assumed=False)


def quantile_of(metric: str) -> float:
    """The quantile of a latency metric."""
    quantile = BUILT_IN[metric].quantile
    assert quantile is not None
    return quantile
