"""What quantiles need of the statistics, when only ranks and counts are at hand."""

from __future__ import annotations

import numpy as np
import pytest

from control.stats.cdfseq import quantile_ab, quantile_ab_counts, quantile_sequence, sequence_ranks
from control.stats.quantiles import interval_ranks, quantile_interval


@pytest.mark.parametrize("q", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("n", [1, 30, 4_000])
def test_ranks_are_those_of_the_interval_when_values_are_known(q: float, n: int) -> None:
    values = np.sort(np.random.default_rng(n).normal(size=n))
    low, high = interval_ranks(n, q)
    whole = quantile_interval(values, q)
    assert np.isnan(whole.ci_low) if low < 0 else whole.ci_low == values[low]
    assert np.isnan(whole.ci_high) if high >= n else whole.ci_high == values[high]
    low, high = sequence_ranks(n, q, alpha=0.05, t_opt=1_000)
    ends = quantile_sequence(values, q, alpha=0.05, t_opt=1_000)
    assert ends.low == (values[low] if low >= 0 else -np.inf)
    assert ends.high == (values[high] if high < n else np.inf)


def test_p_value_only_grows_when_values_are_counted_in_wider_bins() -> None:
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.2, 1.0):
        control, treatment = rng.normal(size=800), rng.normal(shift, size=700)
        exact = quantile_ab(control, treatment, q=0.5, t_opt=500)
        edges = np.unique(np.concatenate([control, treatment]))
        before = exact
        for step in (1, 8, 64):
            bins = np.append(edges[::step], np.inf)
            counts = [np.histogram(arm, bins)[0] for arm in (control, treatment)]
            got = quantile_ab_counts(counts[0], counts[1], q=0.5, t_opt=500)
            assert got >= before * (1 - 1e-9)
            before = got
        assert quantile_ab_counts([800], [700], q=0.5, t_opt=500) == 1.0


def test_counts_are_refused_when_they_do_not_fit() -> None:
    with pytest.raises(ValueError, match="treatment has 1 bins, must be 2"):
        quantile_ab_counts([1, 2], [3], q=0.5, t_opt=10)
    with pytest.raises(ValueError, match="sum of control == 0"):
        quantile_ab_counts([0, 0], [3, 4], q=0.5, t_opt=10)
