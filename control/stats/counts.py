"""e-processes on counts: exact at every look, without variances, for rare events too.

Owns the multinomial (Dirichlet) and the tilt e-process. Uses: users per arm (sample ratio), errors
per arm, discordant pairs (sequential McNemar). Refuses fractional and negative counts. An e-value
of 1 / alpha may be acted on at any look with an error probability of at most alpha.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from control.stats.confseq import Ends
from control.stats.distributions import log_gamma
from control.stats.errors import (
    FloatArray,
    check,
    check_alpha,
    check_scalar,
    check_shapes,
    check_vector,
    require,
)
from control.stats.roots import edge

# Log odds ratios that the tilt mixes over by default: harm from 1.1 to 20 times.
TILTS: Final = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0)
_LOG_ODDS_MAX: Final = 700.0


class CountEvidence(NamedTuple):
    """Evidence against "events fall to the arms like the weights"; arrays of the leading shape.

    log_e: ln of the e-value (Bayes factor). p_value: min(1, 1 / e) of this look.
    """

    log_e: FloatArray
    p_value: FloatArray


def count_evidence(
    counts: npt.ArrayLike, weights: npt.ArrayLike, *, concentration: float = 100.0
) -> CountEvidence:
    """Multinomial e-process of cumulative counts against fixed shares; vectorised.

    Args:
        counts: Events per arm, whole, >= 0, shape (..., arms), arms >= 2.
        weights: Shares or any numbers in their proportion, > 0, shape (..., arms).
        concentration: Weight k of the Dirichlet prior k * shares, > 0; fixed beforehand. Small
            ones find large deviations fast, large ones small deviations.

    Raises:
        ValueError: An argument is outside its range.

    Source: Lindon, Malek 2022 (arXiv 2011.03567), eq. 9. Checked against:
    tests/vectors/statcases/count_sequential.json (savvi, ssrm-test). O(arms) per cell.
    """
    x = check("counts", counts, ge=0, whole=True)
    theta = _shares(weights)
    check_shapes(counts=counts, weights=weights)
    if x.ndim == 0 or x.shape[-1] != theta.shape[-1]:
        raise ValueError(f"counts has shape {x.shape}, must end in the {theta.shape[-1]} arms")
    prior = check_scalar("concentration", concentration, gt=0) * theta
    log_e = _log_multibeta_ratio(prior, x) - np.sum(x * np.log(theta), axis=-1)
    return CountEvidence(np.asarray(log_e)[()], np.exp(-np.maximum(log_e, 0.0)))


def log_rate_ratio_sequence(
    counts: npt.ArrayLike,
    weights: npt.ArrayLike,
    *,
    concentration: float = 100.0,
    alpha: float = 0.05,
) -> Ends:
    """Confidence sequence of ln(rate of the second arm / rate of the first), two arms.

    Rates are events per unit of weight: with weights (traffic shares) as exposure, 0 is no effect.

    Args:
        counts: (first, second), whole, >= 0. An arm without events leaves that end infinite.
        weights: As of `count_evidence`.
        concentration: As of `count_evidence`.
        alpha: Crossing probability in (0, 1).

    Raises:
        ValueError: Not two arms, or an argument is outside its range.

    Source: Lindon, Malek 2022, section 4: the odds whose e-value is below 1 / alpha. Checked
    against: count_sequential.json (savvi).
    """
    x = check_vector("counts", counts, least=2, ge=0, whole=True)
    theta = _shares(weights)
    if len(x) != 2 or theta.shape != (2,):
        raise ValueError(f"counts has {len(x)} arms, must be 2")
    prior = check_scalar("concentration", concentration, gt=0) * theta
    threshold = -np.log(check_alpha(alpha))
    mixture = float(_log_multibeta_ratio(prior, x))
    start = float(np.log(theta[1] / theta[0]))

    def outside(log_odds: float) -> bool:
        likelihood = x[1] * -np.logaddexp(0, -log_odds) + x[0] * -np.logaddexp(0, log_odds)
        return bool(mixture - likelihood > threshold)

    if not x.any():
        return Ends(-np.inf, np.inf)
    # An arm without events has its likelihood's top at an infinite log odds ratio.
    top = float(np.clip(np.log(np.maximum(x[1], 1e-300) / np.maximum(x[0], 1e-300)), -690, 690))
    low = -np.inf if x[1] == 0 else edge(top, -_LOG_ODDS_MAX, outside) - start
    high = np.inf if x[0] == 0 else edge(top, _LOG_ODDS_MAX, outside) - start
    return Ends(float(low), float(high))


def tilt_log_e(
    events_treatment: npt.ArrayLike,
    events: npt.ArrayLike,
    *,
    treatment_share: npt.ArrayLike,
    log_odds_ratios: npt.ArrayLike = TILTS,
    prior: npt.ArrayLike | None = None,
) -> FloatArray:
    """The ln e-value of harm over time buckets with changing split and drifting base rate.

    Per bucket, given how many events there were, how many fell to the treatment is compared with
    its share of the traffic; the base rate cancels. Exact when events are independent given the
    bucket: with sticky users count each user's first event alone.

    Args:
        events_treatment: Events of the treatment per bucket, whole, shape (..., buckets).
        events: Events of both arms per bucket, >= events_treatment.
        treatment_share: Treatment's share of the traffic per bucket, in [0, 1].
        log_odds_ratios: The harms mixed over, ln odds ratios in [-100, 100], shape (tilts,);
            negative ones look for improvement.
        prior: Their weights, > 0; uniform by default.

    Returns:
        ln E, shape (...); buckets without events, or without choice of arm, add nothing.

    Raises:
        ValueError: An argument is outside its range, or an arm without traffic has events.

    Source: Hoeffding 1963, section 6, for the hypergeometric; mixture over tilts. Exactness is
    tested by enumeration in tests/control/stats/test_counts.py. O(buckets x tilts).
    """
    mine = check("events_treatment", events_treatment, ge=0, whole=True)
    both = check("events", events, ge=0, whole=True)
    share = check("treatment_share", treatment_share, ge=0, le=1)
    check_shapes(events_treatment=mine, events=both, treatment_share=share)
    require("events_treatment", mine, mine <= both, "<= events")
    require("events_treatment", mine, (share > 0) | (mine == 0), "0 in a bucket without traffic")
    require("events_treatment", mine, (share < 1) | (mine == both), "events without a control")
    tilts = check_vector("log_odds_ratios", log_odds_ratios, ge=-100, le=100)
    weights = np.ones_like(tilts) if prior is None else check("prior", prior, gt=0)
    if weights.shape != tilts.shape:
        raise ValueError(f"prior has shape {weights.shape}, must be {tilts.shape}")
    if mine.ndim == 0 or both.ndim == 0:
        raise ValueError("events is one number, must be an array over buckets")
    cost = np.log1p(share[..., None] * np.expm1(tilts))
    steps = tilts * mine[..., None] - both[..., None] * cost
    from scipy import special  # slow to import

    log = special.logsumexp(np.sum(steps, axis=-2), axis=-1, b=weights / weights.sum())
    return np.asarray(log)[()]


def _shares(weights: npt.ArrayLike) -> FloatArray:
    array = check("weights", weights, gt=0)
    if array.ndim == 0 or array.shape[-1] < 2:
        raise ValueError(f"weights has shape {array.shape}, must end in at least 2 arms")
    return np.asarray(array / np.sum(array, axis=-1, keepdims=True))


def _log_multibeta_ratio(prior: FloatArray, x: FloatArray) -> FloatArray:
    total, more = np.sum(prior, axis=-1), np.sum(x, axis=-1)
    arms = np.sum(log_gamma(prior + x) - log_gamma(prior), axis=-1)
    return np.asarray(arms - (log_gamma(total + more) - log_gamma(total)))
