"""Many comparisons at once: Holm and Benjamini-Hochberg on p-values, e-BH on e-values.

Owns the adjustments. Refuses p-values outside [0, 1]. Anytime p-values may be given; under optional
stopping with dependent metrics e-BH is the one that is valid.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from control.stats.errors import BoolArray, FloatArray, check_alpha, check_vector, require

Method = Literal["holm", "bh"]


class Adjusted(NamedTuple):
    """adjusted: p-values to compare with alpha, in the order given. reject: Which may be."""

    adjusted: FloatArray
    reject: BoolArray


def adjust(p_values: npt.ArrayLike, *, method: Method, alpha: float = 0.05) -> Adjusted:
    """Adjust p-values for their number.

    Args:
        p_values: In [0, 1], shape (tests,), at least one.
        method: "holm" (family-wise error, any dependence) or "bh" (false discovery rate,
            independent or positively dependent).
        alpha: Error rate to keep, in (0, 1).

    Raises:
        ValueError: An argument is outside its range, or the method unknown.

    Source: Holm 1979; Benjamini, Hochberg 1995. Checked against:
    tests/vectors/statcases/multiple_testing.json (statsmodels). O(tests log tests).
    """
    p = check_vector("p_values", p_values, ge=0, le=1)
    level = check_alpha(alpha)
    order = np.argsort(p, kind="stable")
    ranked, tests = p[order], len(p)
    if method == "holm":
        left = np.arange(tests, 0, -1)
        adjusted = np.maximum.accumulate(ranked * left)
        fails = ranked > level / left
        rejected = np.arange(tests) < (np.argmax(fails) if fails.any() else tests)
    elif method == "bh":
        share = np.arange(1, tests + 1) / tests
        adjusted = np.minimum.accumulate((ranked / share)[::-1])[::-1]
        passes = np.flatnonzero(ranked <= share * level)
        rejected = np.arange(tests) <= (passes[-1] if len(passes) else -1)
    else:
        raise ValueError(f"method == {method!r}, must be 'holm' or 'bh'")
    back = np.empty(tests, dtype=np.intp)
    back[order] = np.arange(tests)
    return Adjusted(np.minimum(adjusted, 1.0)[back], rejected[back])


def e_bh(e_values: npt.ArrayLike, *, alpha: float = 0.05) -> BoolArray:
    """Which hypotheses to reject by their e-values, at a false discovery rate of alpha.

    Valid under any dependence and any stopping: the largest k with the k-th largest e-value
    >= tests / (alpha k).

    Args:
        e_values: >= 0, infinity allowed, shape (tests,), at least one.
        alpha: In (0, 1).

    Raises:
        ValueError: An argument is outside its range.

    Source: Wang, Ramdas 2022, JRSS-B 84. O(tests log tests).
    """
    e = np.asarray(e_values, dtype=np.float64)
    if e.ndim != 1 or not len(e):
        raise ValueError(f"e_values has shape {e.shape}, must be (tests,) with at least one")
    require("e_values", e, e >= 0, ">= 0")
    order = np.argsort(-e, kind="stable")
    need = len(e) / (check_alpha(alpha) * np.arange(1, len(e) + 1))
    passes = np.flatnonzero(e[order] >= need)
    reject = np.zeros(len(e), dtype=np.bool_)
    reject[order[: passes[-1] + 1 if len(passes) else 0]] = True
    return reject
