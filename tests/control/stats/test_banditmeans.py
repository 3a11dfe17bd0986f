"""Means and differences that shares which followed the outcomes leave valid."""

from __future__ import annotations

import numpy as np
import pytest

from control.stats.bandits import (
    propensity_difference,
    propensity_means,
    stratified_difference,
    stratified_means,
    top_two_weights,
)

# Two epochs, two arms, four buckets; the base rate falls as arm 1 gets the traffic.
COUNTS = np.array(
    [[[20, 20, 20, 20], [20, 20, 20, 20]], [[5, 5, 5, 5], [35, 35, 35, 35]]], dtype=float
)
REWARDS = np.array(
    [[[16, 15, 17, 16], [18, 18, 18, 18]], [[1, 3, 2, 2], [17, 18, 17, 18]]], dtype=float
)
SHARES = np.array([[0.5, 0.5], [0.125, 0.875]])


def test_stratified_means_weigh_epochs_by_all_traffic() -> None:
    rates = REWARDS.sum(axis=2) / COUNTS.sum(axis=2)
    found = stratified_means(REWARDS, COUNTS)
    assert found.mean == pytest.approx(rates.mean(axis=0))  # both epochs have 160 requests
    pooled = REWARDS.sum(axis=(0, 2)) / COUNTS.sum(axis=(0, 2))
    assert found.mean[1] > found.mean[0]
    assert pooled[1] < pooled[0]  # all thrown together, the better arm looks worse
    assert (found.variance > 0).all()


def test_propensity_means_agree_when_counts_are_as_designed() -> None:
    strata, weighted = stratified_means(REWARDS, COUNTS), propensity_means(REWARDS, COUNTS, SHARES)
    assert weighted.mean == pytest.approx(strata.mean)
    difference = propensity_difference(REWARDS, COUNTS, SHARES, control=0, treatment=1)
    assert difference.diff == pytest.approx(strata.mean[1] - strata.mean[0])


def test_difference_is_within_epochs_when_the_base_rate_falls() -> None:
    found = stratified_difference(REWARDS, COUNTS, control=0, treatment=1)
    rates = REWARDS.sum(axis=2) / COUNTS.sum(axis=2)
    weights = np.array([40.0, 17.5])
    expected = weights @ (rates[:, 1] - rates[:, 0]) / weights.sum()
    assert found.diff == pytest.approx(expected)
    assert found.effective == pytest.approx(4 * weights.sum())
    back = stratified_difference(REWARDS, COUNTS, control=1, treatment=0)
    assert (back.diff, back.variance) == pytest.approx((-found.diff, found.variance))


def test_variance_is_that_of_buckets_when_a_bucket_moves_together() -> None:
    counts = np.full((1, 2, 64), 100.0)
    rewards = np.tile(np.where(np.arange(64) % 2, 90.0, 50.0), (1, 2, 1))
    clustered = stratified_means(rewards, counts).variance
    alone = stratified_means(rewards.sum(axis=2, keepdims=True), counts.sum(axis=2, keepdims=True))
    assert (clustered > 10 * alone.variance).all()
    # The same units on both arms: what they have in common is no difference.
    assert stratified_difference(rewards, counts, control=0, treatment=1).diff == 0


def test_variance_is_positive_when_nothing_was_missed() -> None:
    counts = np.full((3, 2, 8), 4.0)
    for found in (
        stratified_means(counts, counts),
        propensity_means(counts, counts, np.full((3, 2), 0.5)),
    ):
        assert found.mean == pytest.approx(1)
        assert (found.variance > 0).all()
    assert stratified_difference(counts, counts, control=0, treatment=1).variance > 0


def test_nothing_is_said_when_no_epoch_has_every_arm() -> None:
    counts = np.array([[[5.0], [0.0]], [[0.0], [5.0]]])
    assert np.isnan(stratified_means(counts, counts).mean).all()
    found = stratified_difference(counts, counts, control=0, treatment=1)
    assert np.isnan(found.diff)
    assert found.effective == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": REWARDS + 100}, "rewards"),
        ({"rewards": REWARDS[0]}, "rewards has shape"),
        ({"shares": SHARES[:1]}, "shares has shape"),
        ({"shares": SHARES * 0}, "shares"),
        ({"treatment": 0}, "two of 2 arms"),
        ({"rewards": REWARDS * np.nan}, "rewards"),
    ],
)
def test_argument_is_refused_by_name_when_it_is_wrong(
    change: dict[str, object], message: str
) -> None:
    good = {"rewards": REWARDS, "counts": COUNTS, "shares": SHARES, "control": 0, "treatment": 1}
    with pytest.raises(ValueError, match=message):
        propensity_difference(**{**good, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("rest", [1e-3, 1e-9, 1e-12, 1e-300])
def test_top_two_weights_add_up_when_one_arm_is_nearly_certain(rest: float) -> None:
    weights = top_two_weights([1 - rest, rest * 0.75, rest * 0.25])
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert weights == pytest.approx([0.5, 0.375, 0.125], abs=2 * rest + 1e-12)
