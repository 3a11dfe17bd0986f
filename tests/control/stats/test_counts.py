"""The e-processes on counts are e-values by enumeration, at any magnitude."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from control.stats import counts


def test_count_evidence_has_mean_1_under_the_null_when_enumerated() -> None:
    shares = (0.2, 0.3, 0.5)
    total = 0.0
    for x in product(range(7), repeat=3):
        if sum(x) == 6:
            ways = math.factorial(6) // math.prod(math.factorial(k) for k in x)
            chance = ways * math.prod(s**k for s, k in zip(shares, x, strict=True))
            total += chance * math.exp(counts.count_evidence(x, shares, concentration=3).log_e)
    assert total == pytest.approx(1.0, rel=1e-12)


def test_tilt_has_mean_at_most_1_under_hypergeometric_draws_when_enumerated() -> None:
    # Two buckets of 20 and 10 requests with other splits and base rates; all draws of events.
    buckets = [(20, 5, 6), (10, 5, 3)]  # requests, of the treatment, events of both
    worlds: list[list[tuple[int, float]]] = []
    for requests, mine, events in buckets:
        draws = math.comb(requests, events)
        worlds.append(
            [
                (k, math.comb(mine, k) * math.comb(requests - mine, events - k) / draws)
                for k in range(min(mine, events) + 1)
                if events - k <= requests - mine
            ]
        )
    total = 0.0
    for (a, p_a), (b, p_b) in product(*worlds):
        log_e = counts.tilt_log_e([a, b], [6, 3], treatment_share=[5 / 20, 5 / 10])
        total += p_a * p_b * math.exp(log_e)
    assert 0.5 < total <= 1 + 1e-12


def test_tilt_is_an_e_value_of_exactly_1_under_independent_events() -> None:
    total = sum(
        math.comb(8, k) * 0.3**k * 0.7 ** (8 - k)
        * math.exp(counts.tilt_log_e([k], [8], treatment_share=0.3))
        for k in range(9)
    )  # fmt: skip
    assert total == pytest.approx(1.0, rel=1e-12)


def test_tilt_finds_harm_and_ignores_drift_and_ramp() -> None:
    share = np.array([0.01, 0.05, 0.1, 0.25, 0.5])
    events = np.array([1000, 3000, 500, 8000, 2000])
    fair = counts.tilt_log_e(np.round(share * events), events, treatment_share=share)
    harm = counts.tilt_log_e(np.round(2 * share * events), events, treatment_share=share)
    assert fair < 0 < math.log(1000) < harm


def test_tilt_ignores_buckets_without_events_or_without_choice() -> None:
    one = counts.tilt_log_e([3], [5], treatment_share=[0.4])
    more = counts.tilt_log_e([3, 0, 0, 7], [5, 0, 9, 7], treatment_share=[0.4, 0.5, 0.0, 1.0])
    assert more == pytest.approx(float(one), rel=1e-12)


def test_tilt_works_on_cells_when_given_leading_axes() -> None:
    mine, both = np.array([[3, 1], [0, 2]]), np.array([[5, 4], [3, 9]])
    cells = counts.tilt_log_e(mine, both, treatment_share=0.3)
    assert cells.shape == (2,)
    assert float(cells[1]) == float(counts.tilt_log_e(mine[1], both[1], treatment_share=0.3))


def test_rate_ratio_sequence_and_evidence_agree_on_no_effect() -> None:
    for x in ([530, 470], [600, 400], [90, 10], [0, 9], [9, 0]):
        shares = [0.7, 0.3]
        e = counts.count_evidence(x, shares)
        ends = counts.log_rate_ratio_sequence(x, shares, alpha=0.05)
        assert (ends.low <= 0 <= ends.high) == (e.log_e <= math.log(20))


def test_rate_ratio_is_open_where_an_arm_has_no_events() -> None:
    assert counts.log_rate_ratio_sequence([0, 0], [1, 1]) == (-math.inf, math.inf)
    assert counts.log_rate_ratio_sequence([0, 50], [1, 1]).high == math.inf
    assert counts.log_rate_ratio_sequence([50, 0], [1, 1]).low == -math.inf
    assert counts.log_rate_ratio_sequence([50, 0], [1, 1]).high < 0


def test_rate_ratio_narrows_when_counts_grow_to_1e9() -> None:
    widths = []
    for size in (10, 10**3, 10**6, 10**9):
        ends = counts.log_rate_ratio_sequence([size, size], [1, 1])
        assert ends.low == pytest.approx(-ends.high, rel=1e-3)
        widths.append(ends.high - ends.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 1e-3


def test_count_evidence_works_on_cells_and_takes_unscaled_weights() -> None:
    cells = counts.count_evidence([[10, 20, 30], [5, 5, 5]], [1, 2, 3])
    assert cells.log_e.shape == (2,)
    assert cells.p_value[0] == 1.0
    assert float(cells.log_e[1]) == float(counts.count_evidence([5, 5, 5], [10, 20, 30]).log_e)


@pytest.mark.parametrize(
    ("x", "weights", "message"),
    [
        ([-1, 2], [1, 1], "counts == -1"),
        ([1.5, 2], [1, 1], "counts == 1.5"),
        ([np.nan, 2], [1, 1], "counts == nan"),
        ([1, 2], [0, 1], "weights == 0"),
        ([1, 2, 3], [1, 1], "shapes"),
        ([1], [1], "weights has shape"),
        (3, [1, 1], "counts has shape"),
    ],
)
def test_counts_are_refused_when_they_are_none(x: object, weights: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        counts.count_evidence(x, weights)  # type: ignore[arg-type]


def test_tilt_refuses_events_without_traffic() -> None:
    with pytest.raises(ValueError, match=r"must be 0 in a bucket without traffic"):
        counts.tilt_log_e([1], [2], treatment_share=[0.0])
    with pytest.raises(ValueError, match=r"must be <= events"):
        counts.tilt_log_e([3], [2], treatment_share=[0.5])
    with pytest.raises(ValueError, match=r"treatment_share == 1.5"):
        counts.tilt_log_e([1], [2], treatment_share=[1.5])
    with pytest.raises(ValueError, match=r"prior has shape"):
        counts.tilt_log_e([1], [2], treatment_share=[0.5], prior=[1.0])
