"""Paired comparisons: two models that answered the same requests (shadow traffic).

Owns McNemar's test and the paired difference of accuracies. Refuses negative counts. The sequential
form is `counts.count_evidence` on the discordant pairs with weights (.5, .5).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from scipy import special

from control.stats.distributions import chi2_sf
from control.stats.errors import check_scalar, require

_COUNT_MAX: Final = 10**15  # above it a float64 is no count


class McNemar(NamedTuple):
    """diff: Accuracy of the second model - the first's. se: Its paired standard error.

    p_exact: Binomial, two-sided; 1 without discordant pairs. chi2_corrected, p_corrected: With
    continuity correction. chi2, p: Without. NaN without discordant pairs, where nothing is tested.
    """

    diff: float
    se: float
    p_exact: float
    chi2_corrected: float
    p_corrected: float
    chi2: float
    p: float


def mcnemar(
    only_first: int, only_second: int, *, both_right: int = 0, both_wrong: int = 0
) -> McNemar:
    """Compare the accuracies of two models on the same requests.

    Args:
        only_first: Requests that only the first model (primary, control) had right, >= 0.
        only_second: Requests that only the second (shadow, treatment) had right, >= 0.
        both_right: >= 0.
        both_wrong: >= 0.

    Raises:
        ValueError: Not whole, negative, above 1e15, or no request at all.

    Source: McNemar 1947; correction by Edwards 1948; variance of (c - b) / n for paired samples.
    Checked against: tests/vectors/statcases/mcnemar.json (statsmodels, mlxtend).
    """
    b = check_scalar("only_first", only_first, ge=0, le=_COUNT_MAX, whole=True)
    c = check_scalar("only_second", only_second, ge=0, le=_COUNT_MAX, whole=True)
    n = b + c + check_scalar("both_right", both_right, ge=0, whole=True)
    n += check_scalar("both_wrong", both_wrong, ge=0, whole=True)
    require("requests", n, n > 0, "> 0")
    split = b + c
    diff = (c - b) / n
    se = np.sqrt(max(split - (b - c) ** 2 / n, 0.0)) / n
    if split == 0:
        nan = float("nan")
        return McNemar(diff, float(se), 1.0, nan, nan, nan, nan)
    exact = min(1.0, 2 * float(special.bdtr(min(b, c), int(split), 0.5)))
    corrected = (abs(b - c) - 1) ** 2 / split
    plain = (b - c) ** 2 / split
    return McNemar(
        diff=diff,
        se=float(se),
        p_exact=exact,
        chi2_corrected=corrected,
        p_corrected=float(chi2_sf(corrected, 1)),
        chi2=plain,
        p=float(chi2_sf(plain, 1)),
    )
