"""Quantiles and whole distributions at any time: bounds that hold at all looks at once.

Owns the DKW-type band of a distribution function, the confidence sequence of a quantile and the
comparison of two arms' quantiles. Refuses clustered events: independent ones are assumed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from control.stats.confseq import Ends, best_rho, beta_binomial_log_mixture
from control.stats.errors import FloatArray, check, check_alpha, check_scalar, check_vector
from control.stats.roots import edge


def dkw_radius(
    n: npt.ArrayLike, *, alpha: float, n_min: float, leading: float = 0.85
) -> FloatArray:
    """Half-width of a band around an empirical distribution function, at all n >= n_min at once.

    Args:
        n: Values seen, >= 1, any shape; below n_min the radius is infinite.
        alpha: Crossing probability in (0, 1).
        n_min: First look, >= 1; fixed beforehand.
        leading: Constant A in (1 / sqrt(2), 10]; small ones are tighter late.

    Raises:
        ValueError: An argument is outside its range.

    Source: Howard, Ramdas 2022 (Bernoulli 28), Theorem 2: A sqrt((ln ln(e n / n_min) + C) / n).
    Checked against: tests/vectors/statcases/dkw_sequential.json (confseq).
    """
    seen = check("n", n, ge=1)
    first = check_scalar("n_min", n_min, ge=1)
    a = check_scalar("leading", leading, gt=float(1 / np.sqrt(2)), le=10)
    constant = _lil_constant(check_alpha(alpha), a)
    late = np.maximum(seen, first)
    radius = a * np.sqrt((np.log1p(np.log(late / first)) + constant) / late)
    return np.where(seen < first, np.inf, radius)[()]


def quantile_sequence(
    values: npt.ArrayLike, q: float, *, alpha: float, t_opt: float, alpha_opt: float = 0.05
) -> Ends:
    """Confidence sequence of a quantile, exact for independent values of any distribution.

    Args:
        values: Seen so far, finite, shape (n,), at least one.
        q: In (0, 1).
        alpha: Crossing probability in (0, 1).
        t_opt: The n at which it is tightest, > 0; fixed beforehand.
        alpha_opt: The alpha that the tuning is for.

    Returns:
        Ends that are values seen, or infinite while there are too few.

    Raises:
        ValueError: An argument is outside its range.

    Source: Howard, Ramdas 2022, Theorem 1 with the beta-binomial mixture. O(n log n).
    """
    x = np.sort(check_vector("values", values))
    n = len(x)
    low, high = sequence_ranks(n, q, alpha=alpha, t_opt=t_opt, alpha_opt=alpha_opt)
    return Ends(
        float(x[low]) if low >= 0 else float("-inf"), float(x[high]) if high < n else float("inf")
    )


def sequence_ranks(
    n: int, q: float, *, alpha: float, t_opt: float, alpha_opt: float = 0.05
) -> tuple[int, int]:
    """Ranks, from 0, of the order statistics that `quantile_sequence` ends at after n values.

    Args:
        n: Values seen, >= 1.
        q: As of `quantile_sequence`, like the rest.
        alpha: Crossing probability.
        t_opt: Tuning.
        alpha_opt: Tuning.

    Returns:
        -1 for a lower end, n for an upper one, that is still infinite.

    Raises:
        ValueError: An argument is outside its range.

    Source: as of `quantile_sequence`. O(1).
    """
    seen, rho = int(check_scalar("n", n, ge=1, whole=True)), _rho(t_opt, alpha_opt)
    level, threshold = check_scalar("q", q, gt=0, lt=1), -np.log(check_alpha(alpha))
    best = _minimiser(seen, level, rho)

    def outside(below: float) -> bool:
        return bool(beta_binomial_log_mixture(below, seen, p=level, rho=rho) > threshold)

    # Counts of values below the quantile that are believed: [least, most].
    least = edge(best, 0.0, outside) if outside(0.0) else 0.0
    most = edge(best, float(seen), outside) if outside(float(seen)) else float(seen)
    return int(np.ceil(least)) - 1, int(np.floor(most))


def quantile_ab(
    control: npt.ArrayLike,
    treatment: npt.ArrayLike,
    *,
    q: float,
    t_opt: float,
    alpha_opt: float = 0.05,
) -> float:
    """P-value, valid at any time, of "both arms have the same quantile".

    Args:
        control: Values seen so far, finite, shape (n,), at least one.
        treatment: As control.
        q: In (0, 1).
        t_opt: Values per arm at which it is sharpest, > 0; fixed beforehand.
        alpha_opt: The alpha that the tuning is for, in (0, 1).

    Raises:
        ValueError: An argument is outside its range.

    Source: Howard, Ramdas 2022, section 5: the least product of both arms' e-values over all
    values that the common quantile could have. Checked against: quantile_ab_sequential.json
    (confseq). O(n log n).
    """
    arms = [check_vector("control", control), check_vector("treatment", treatment)]
    bins = np.unique(np.concatenate(arms))
    counts = [np.bincount(np.searchsorted(bins, arm), minlength=len(bins)) for arm in arms]
    return quantile_ab_counts(counts[0], counts[1], q=q, t_opt=t_opt, alpha_opt=alpha_opt)


def quantile_ab_counts(
    control: npt.ArrayLike,
    treatment: npt.ArrayLike,
    *,
    q: float,
    t_opt: float,
    alpha_opt: float = 0.05,
) -> float:
    """`quantile_ab` from counts in bins of values, ascending and the same for both arms.

    Bins of one value each give its p-value; wider ones a larger one, which is as valid.

    Args:
        control: Values per bin, whole, >= 0, shape (bins,), not all 0.
        treatment: As control.
        q: As of `quantile_ab`, like the rest.
        t_opt: Tuning.
        alpha_opt: Tuning.

    Raises:
        ValueError: An argument is outside its range.

    Source: as of `quantile_ab`. O(bins).
    """
    level, rho = check_scalar("q", q, gt=0, lt=1), _rho(t_opt, alpha_opt)
    logs: list[FloatArray] = []
    for name, arm in (("control", control), ("treatment", treatment)):
        counts = check_vector(name, arm, ge=0, whole=True)
        upto = np.cumsum(counts)
        n = int(check_scalar(f"sum of {name}", float(upto[-1]), ge=1))
        # A bin may hold the quantile at any rank among its values.
        believed = np.clip(_minimiser(n, level, rho), upto - counts, upto)
        logs.append(beta_binomial_log_mixture(believed, n, p=level, rho=rho))
    if len(logs[0]) != len(logs[1]):
        raise ValueError(f"treatment has {len(logs[1])} bins, must be {len(logs[0])} as control")
    return float(np.exp(-max(float(np.min(logs[0] + logs[1])), 0.0)))


def _rho(t_opt: float, alpha_opt: float) -> float:
    return float(best_rho(check_scalar("t_opt", t_opt, gt=0), alpha=alpha_opt))


def _minimiser(n: int, q: float, rho: float) -> float:
    from scipy import optimize  # slow to import

    found = optimize.minimize_scalar(
        lambda k: float(beta_binomial_log_mixture(k, n, p=q, rho=rho)),
        bounds=(0.0, float(n)),
        method="bounded",
        options={"xatol": 1e-9 * max(n, 1)},
    )
    return float(found.x)


def _lil_constant(alpha: float, leading: float) -> float:
    from scipy import optimize  # slow to import

    def least_error(constant: float) -> float:
        def slack(eta: float) -> float:
            return float(leading - np.sqrt(2 * (eta - 1) / constant) - np.sqrt(eta / 2))

        # Between 1 and the eta at which gamma^2 falls to 1, where the series diverges.
        top = optimize.brentq(slack, 1.0, 2 * leading**2, xtol=1e-14)

        def error(eta: float) -> float:
            gamma_sq = 2 / eta * (leading - np.sqrt(2 * (eta - 1) / constant)) ** 2
            if gamma_sq <= 1 or eta <= 1:
                return float("inf")
            series = 1 + 1 / ((gamma_sq - 1) * np.log(eta))
            return float(4 * np.exp(-gamma_sq * constant) * series)

        span = top - 1
        found = optimize.minimize_scalar(
            error,
            bounds=(1 + 1e-9 * span, top - 1e-9 * span),
            method="bounded",
            options={"xatol": 1e-12},
        )
        return float(found.fun)

    high = 5.0
    while least_error(high) > alpha:
        high *= 2
    low = high / 2
    while least_error(low) < alpha:
        low /= 2
    return float(optimize.brentq(lambda c: np.log(least_error(c) / alpha), low, high, xtol=1e-13))
