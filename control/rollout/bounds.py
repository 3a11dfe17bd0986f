"""Exact bounds for rates, valid at every look; and the sample-ratio e-value.

Owns the closed forms that `assess` gates on. Pure mathematics: knows no metric and no limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

# Beta(1/2, 1/2) mixture (Krichevsky-Trofimov): no events of n trials give an upper bound of about
# (ln(1/alpha) + ln(pi n) / 2) / n.
_PRIOR: Final = 0.5
_BISECTIONS: Final = 50
SRM_CONCENTRATION: Final = 1000.0


class Interval(NamedTuple):
    """A confidence sequence's present interval, 0 <= low <= high <= 1."""

    low: float
    high: float


# Of a live experiment most numbers are the same from one look to the next: 0.3 ms each.
@lru_cache(maxsize=8_192)
def rate_interval(events: float, trials: float, *, alpha: float) -> Interval:
    """Beta-binomial confidence sequence of one Bernoulli rate.

    Covers the true rate at all numbers of trials simultaneously with probability >= 1 - alpha,
    exactly (independent trials). Without events the low end is 0 and the high end still falls.

    Args:
        events: 0 <= events <= trials; planning gives expected numbers.
        trials: >= 0; 0 gives [0, 1].
        alpha: Crossing probability in (0, 1).

    Raises:
        ValueError: An argument is outside its range.

    Source: Robbins 1970 (mixture martingales); Howard et al. 2021, arXiv 1810.08240. O(1).
    """
    if not 0 <= events <= trials:
        raise ValueError(f"events == {events}, must be in 0..{trials}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha == {alpha}, must be in (0, 1)")
    if trials == 0:
        return Interval(0.0, 1.0)
    rate = events / trials
    log_mixture = _log_beta(_PRIOR + events, _PRIOR + trials - events) - _log_beta(_PRIOR, _PRIOR)
    limit = log_mixture + math.log(alpha)

    def inside(p: float) -> bool:
        # E(p) < 1/alpha  <=>  ln likelihood(p) > ln mixture + ln alpha
        return _log_likelihood(events, trials, p) > limit

    low = 0.0 if events == 0 else _edge(0.0, rate, inside)
    high = 1.0 if events == trials else _edge(1.0, rate, inside)
    return Interval(low, high)


def _edge(outside: float, within: float, inside: Callable[[float], bool]) -> float:
    for _ in range(_BISECTIONS):
        middle = (outside + within) / 2
        if inside(middle):
            within = middle
        else:
            outside = middle
    return outside


def _log_likelihood(events: float, trials: float, p: float) -> float:
    log = 0.0
    if events:
        log += events * math.log(p) if p > 0 else -math.inf
    if trials > events:
        log += (trials - events) * math.log1p(-p) if p < 1 else -math.inf
    return log


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def log_sample_ratio(
    counts: Sequence[int], shares: Sequence[float], *, concentration: float = SRM_CONCENTRATION
) -> float:
    """Logarithm of the e-value against "units fall into the arms by their shares".

    Args:
        counts: Distinct units per arm, >= 0; shape (arms,).
        shares: Design shares, > 0, adding up to 1; shape (arms,).
        concentration: Of the mixture around the shares; a larger one finds small deviations in
            large counts sooner.

    Raises:
        ValueError: The shapes differ or a share is not positive.

    Source: Lindon and Malek 2020, arXiv 2011.03567 (Dirichlet-multinomial mixture centred at the
    shares). O(arms).
    """
    if len(counts) != len(shares) or min(shares, default=0.0) <= 0:
        raise ValueError(f"{len(counts)} counts and shares {list(shares)}")
    k = concentration
    total = sum(counts)
    log = math.lgamma(k) - math.lgamma(k + total)
    for count, share in zip(counts, shares, strict=True):
        log += math.lgamma(k * share + count) - math.lgamma(k * share)
        log -= count * math.log(share)
    return log


def pooled_errors(candidate: tuple[int, int], control: tuple[int, int]) -> tuple[float, float]:
    """Difference of two rates and its pooled standard error.

    Args:
        candidate: (events, trials), trials > 0.
        control: (events, trials), trials > 0.

    Returns:
        (candidate's rate - control's, standard error under equal rates).
    """
    (x_t, n_t), (x_c, n_c) = candidate, control
    pooled = (x_t + x_c) / (n_t + n_c)
    return x_t / n_t - x_c / n_c, math.sqrt(pooled * (1 - pooled) * (1 / n_t + 1 / n_c))
