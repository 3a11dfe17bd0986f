"""Bucketed differences: by hand, against the jackknife, and with a small arm that met no harm."""

from __future__ import annotations

import numpy as np
import pytest

from control.stats.bucketed import NOTHING, bucket_sums, bucketed_difference, design_effect
from control.stats.clusters import Clusters, bucket_jackknife

BUCKETS = 256


def arm(per_bucket: float, rate: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = rng.poisson(per_bucket, (1, BUCKETS)) + 1
    return rng.binomial(n, rate), n


def test_bucketed_difference_is_the_jackknifes_when_the_smaller_arm_has_the_larger_spread() -> None:
    (y_c, n_c), (y_t, n_t) = arm(40, 0.05, 1), arm(4, 0.3, 2)
    found = bucketed_difference(y_c, n_c, y_t, n_t)
    peer = bucket_jackknife(Clusters(y_c[0], n_c[0]), Clusters(y_t[0], n_t[0]))
    assert found.diff == pytest.approx(peer.diff, rel=1e-12)
    # The linearised jackknife differs from the exact one by terms of 1 / buckets.
    assert found.variance == pytest.approx(peer.se_diff**2, rel=0.03)
    assert found.treatment - found.control == pytest.approx(found.diff, rel=1e-12)
    total_c, total_t = n_c.sum(), n_t.sum()
    assert found.effective == pytest.approx(4 * total_c * total_t / (total_c + total_t))


def test_bucketed_difference_lends_a_small_arm_without_events_the_spread_of_the_large_one() -> None:
    y_c, n_c = np.zeros((1, BUCKETS)), np.full((1, BUCKETS), 95.0)
    y_c[0, :10] = 95.0  # ten buckets that always fail
    n_t = np.full((1, BUCKETS), 5.0)
    found = bucketed_difference(y_c, n_c, np.zeros_like(n_t), n_t)
    rate = 10 / BUCKETS
    own = (10 * (95 * (1 - rate)) ** 2 + (BUCKETS - 10) * (95 * rate) ** 2) / (95 * BUCKETS) ** 2
    # In the place of the candidate, 19 times fewer units have 19 times the variance.
    assert found.variance == pytest.approx(BUCKETS / (BUCKETS - 1) * (own + 19 * own), rel=1e-12)
    mirrored = bucketed_difference(np.zeros_like(n_t), n_t, y_c, n_c)
    assert mirrored.variance == pytest.approx(found.variance, rel=1e-12)
    assert mirrored.diff == pytest.approx(-found.diff, rel=1e-12)


def test_bucketed_difference_lends_over_the_stages_of_a_ramp() -> None:
    """A bucket that is bad in both stages is bad once: its spread adds up over the strata."""
    bad = np.zeros(BUCKETS)
    bad[:10] = 1.0
    n_c = np.array([[99.0], [90.0]]) * np.ones(BUCKETS)
    n_t = np.array([[1.0], [10.0]]) * np.ones(BUCKETS)
    found = bucketed_difference(bad * n_c, n_c, np.zeros_like(n_t), n_t)
    rate = 10 / BUCKETS
    weights = np.array([99 * 1 / 100, 90 * 10 / 100]) / (0.99 + 9.0)
    spread = rate * (1 - rate) / BUCKETS
    # Shares .01 and .1 of the units, nested: of the pair, the lesser; against .9 at least.
    nested = np.array([[0.01, 0.01], [0.01, 0.1]]) / np.array([[0.99, 0.9], [0.9, 0.9]])
    per_unit = np.outer(weights * [99, 9], weights * [99, 9])
    expected = spread * (weights.sum() ** 2 + float((per_unit * nested).sum()))
    assert found.variance == pytest.approx(BUCKETS / (BUCKETS - 1) * expected, rel=1e-12)


def test_bucketed_difference_is_not_moved_by_a_stratum_without_one_arm() -> None:
    (y_c, n_c), (y_t, n_t) = arm(40, 0.05, 3), arm(4, 0.06, 4)
    alone = bucketed_difference(y_c, n_c, y_t, n_t)
    none = np.zeros_like(n_t)
    more = bucketed_difference(
        np.vstack([y_c, y_c]), np.vstack([n_c, n_c]), np.vstack([y_t, none]), np.vstack([n_t, none])
    )
    assert more == alone
    assert bucketed_difference(y_c, n_c, none, none) == NOTHING


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([[1, 2]], [[3, -1]], [[1, 2]], [[3, 4]]), "control_n == -1"),
        (([[1]], [[3]], [[1]], [[3]]), "2 buckets"),
        (([[1, 2]], [[3, 4]], [[1, 2]], [[3, 4, 5]]), r"treatment_n has shape \(1, 3\)"),
        (([[1, np.nan]], [[3, 4]], [[1, 2]], [[3, 4]]), "control_y"),
    ],
)
def test_bucketed_difference_refuses_what_is_no_sum(
    given: tuple[list[list[float]], ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bucketed_difference(*given)


@pytest.mark.parametrize("rows", [slice(1, 3), np.array([0, 3]), np.array([2])])
def test_sums_of_some_strata_answer_like_those_strata_alone_when_taken_from_the_whole(
    rows: slice | np.ndarray,
) -> None:
    parts = [(arm(40, 0.05 * k, k), arm(4 * k, 0.3, 9 - k)) for k in (1, 2, 3, 4)]
    y_c, n_c, y_t, n_t = (
        np.vstack([part[side][at] for part in parts]) for side in (0, 1) for at in (0, 1)
    )
    control, treatment = bucket_sums(y_c, n_c), bucket_sums(y_t, n_t)
    found = treatment.of(rows).minus(control.of(rows))
    assert found == bucketed_difference(y_c[rows], n_c[rows], y_t[rows], n_t[rows])
    assert treatment.of(rows).design_effect() == design_effect(y_t[rows], n_t[rows])
