"""The boundary is the published one, one in all its parametrisations, and tight where tuned."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.stats import confseq as cs
from control.stats.moments import moments, moments_from_summary

VARIANCES = st.floats(1e-8, 1e8)


def test_mixtures_are_those_printed_by_confseq() -> None:
    # gostevehoward/confseq 70b1ef3, test/uniform_boundaries_unittest.cpp
    two, one = (cs.best_rho(100.0, alpha=0.05, one_sided=sided) for sided in (False, True))
    assert two == pytest.approx(12.60056, abs=1e-5)
    assert cs.normal_log_mixture(10, 100, rho=one, one_sided=True) == pytest.approx(
        -0.06502391, abs=1e-7
    )
    bound = cs.normal_mixture_bound(100, alpha=0.05, rho=one, one_sided=True)
    assert bound == pytest.approx(27.66071, abs=1e-5)


@pytest.mark.parametrize(
    ("x", "n", "t_opt", "low", "high"),
    [
        (700, 1000, 100, 0.651629, 0.745949),
        (15, 50, 50, 0.129556, 0.511896),
        (5, 50, 50, 0.013021, 0.269264),
        (1, 50, 50, 0.0, 0.13489),
        (1, 2, 50, 0.0, 1.0),
        (100, 200, 1, 0.328923, 0.671076),
        (0, 1, 50, 0.0, 1.0),
        (1, 1, 50, 0.0, 1.0),
    ],
)
def test_bernoulli_sequence_is_that_printed_by_confseq(
    x: int, n: int, t_opt: float, low: float, high: float
) -> None:
    r = cs.bernoulli_sequence(x, n, alpha=0.05, t_opt=t_opt)
    assert (r.low, r.high) == pytest.approx((low, high), abs=1e-5)


def test_bernoulli_sequence_bounds_a_rate_without_events_and_says_nothing_without_trials() -> None:
    assert cs.bernoulli_sequence(0, 0, alpha=0.05, t_opt=100) == (0.0, 1.0)
    highs = [cs.bernoulli_sequence(0, n, alpha=0.05, t_opt=1000).high for n in (100, 1000, 10**6)]
    assert highs == sorted(highs, reverse=True)
    assert highs[2] < 2e-5


@given(st.floats(-1e3, 1e3), VARIANCES, VARIANCES)
def test_bound_and_e_value_agree_on_the_edge(diff: float, variance: float, tau2: float) -> None:
    r = cs.normal_sequence(diff, variance, tau2=tau2, alpha=0.05)
    edge = cs.normal_sequence(r.ci_high, variance, tau2=tau2, alpha=0.05, null=diff)
    if abs(diff) < 1e6 * r.half_width:
        assert edge.log_e == pytest.approx(np.log(20), rel=1e-6, abs=1e-6)


@given(VARIANCES, VARIANCES, st.floats(1.001, 100))
def test_width_shrinks_when_the_variance_does(variance: float, tau2: float, k: float) -> None:
    widths = [cs.normal_sequence(0.0, v, tau2=tau2).half_width for v in (variance, variance * k)]
    assert widths[0] < widths[1]


@given(VARIANCES, VARIANCES, st.floats(0.001, 0.4), st.booleans())
def test_bound_falls_when_alpha_grows(v: float, rho: float, alpha: float, one: bool) -> None:
    bounds = [
        cs.normal_mixture_bound(v, alpha=a, rho=rho, one_sided=one) for a in (alpha, 2 * alpha)
    ]
    assert bounds[1] < bounds[0]


@given(st.floats(0, 10), st.integers(100, 10**6))
def test_asymptotic_sequence_is_the_same_formula_as_msprt(diff: float, n: int) -> None:
    rho = cs.sequence_rho(5000, alpha=0.05)
    variance = 4 * 2.0**2 / n
    one = cs.asymptotic_sequence(diff, variance, n=n, n_star=5000)
    tau = float(np.sqrt(rho**2 * variance * n))
    other = cs.msprt(diff, 2.0, n_control=n / 2, n_treatment=n / 2, tau=tau)
    assert np.allclose(one, other, rtol=1e-9)


def test_width_is_1_549_fixed_widths_at_the_tuned_size_and_least_there() -> None:
    n = np.array([0.1, 0.25, 0.5, 1, 4]) * 10_000
    r = cs.asymptotic_sequence(0.0, 1 / n, n=n, n_star=10_000)
    price = r.half_width * np.sqrt(n) / 1.959964
    assert price == pytest.approx([1.97, 1.67, 1.60, 1.549, 1.60], abs=0.03)
    assert price.argmin() == 3


@given(st.floats(0.001, 0.3), st.floats(-0.5, 0.5))
def test_one_sided_p_value_is_alpha_on_the_bound(alpha: float, diff: float) -> None:
    r = cs.asymptotic_sequence(diff, 0.01, n=1000, n_star=1000, alpha=alpha, alternative="greater")
    assert r.ci_high == np.inf
    assert (r.p_value < alpha) == (r.ci_low > 0) or abs(r.ci_low) < 1e-9


def test_one_sided_sequences_mirror_each_other() -> None:
    up = cs.asymptotic_sequence(0.5, 0.01, n=1000, n_star=1000, alternative="greater")
    down = cs.asymptotic_sequence(-0.5, 0.01, n=1000, n_star=1000, alternative="less")
    assert down.ci_high == -up.ci_low
    assert down.ci_low == -np.inf
    assert down.p_value == up.p_value < 0.01
    away = cs.asymptotic_sequence(-0.5, 0.01, n=1000, n_star=1000, alternative="greater")
    assert away.p_value == 1.0
    assert away.log_e == -np.inf


def test_sequence_is_undecided_without_spread_and_decides_other_cells() -> None:
    r = cs.asymptotic_sequence([1.0, 1.0], [0.0, 1.0], n=100, n_star=100)
    assert list(r.decided) == [False, True]
    assert np.isnan(r.p_value[0])
    assert not cs.asymptotic_means(moments([1.0, 1.0]), moments([1.0, 1.0]), n_star=100).decided


def test_means_at_1e9_have_the_sequence_of_means_at_0() -> None:
    y = np.arange(100) % 11
    low, high = (
        cs.asymptotic_means(moments(y + k), moments(y[:70] + k), n_star=500) for k in (0, 1e9)
    )
    assert high.half_width == pytest.approx(float(low.half_width), rel=1e-9)


def test_t_radius_shrinks_to_the_normal_and_grows_for_few_units() -> None:
    radii = [cs.t_radius(n, 2, alpha=0.05) for n in (5, 10, 100, 10**6)]
    assert radii == sorted(radii, reverse=True)
    assert radii[-1] == pytest.approx(3.035, abs=0.001)
    with pytest.raises(ValueError, match=r"g == 1e\+06, must be smaller"):
        cs.t_radius(10, 2, alpha=0.05, g=1e6)
    with pytest.raises(ValueError, match=r"n == 3.0, must be > 3"):
        cs.t_radius(3, 2, alpha=0.05)


def test_sequences_hold_in_19_of_20_worlds_when_looked_at_all_the_time() -> None:
    # 2,000 worlds of 400 looks: at a true rate of .05, more than 151 failures has P < 1e-6.
    rng = np.random.default_rng(7)
    n = np.arange(1, 401)
    mean = np.cumsum(rng.normal(size=(2000, 400)), axis=1) / n
    r = cs.normal_sequence(mean, 1 / n, tau2=0.05)
    crossed = np.any((r.ci_low > 0) | (r.ci_high < 0), axis=1)
    assert crossed.sum() <= 151
    peeked = np.any(np.abs(mean) * np.sqrt(n) > 1.96, axis=1)
    assert peeked.mean() > 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variance": -1.0}, "variance == -1.0"),
        ({"diff": np.nan}, "diff == nan"),
        ({"n": 0}, "n == 0.0"),
        ({"n_star": 0}, "v_opt == 0.0"),
        ({"alpha": 1.0}, "alpha == 1.0"),
        ({"alpha": 0.5, "alternative": "less"}, "alpha == 0.5, must be < 0.5"),
        ({"diff": [1.0, 2.0], "n": [1.0, 2.0, 3.0]}, "shapes"),
    ],
)
def test_sequence_refuses_bad_input(arguments: dict[str, object], message: str) -> None:
    given_ = {"diff": 0.0, "variance": 1.0, "n": 10, "n_star": 10} | arguments
    with pytest.raises(ValueError, match=message):
        cs.asymptotic_sequence(given_.pop("diff"), given_.pop("variance"), **given_)  # type: ignore[arg-type]


def test_other_sequences_refuse_bad_input() -> None:
    with pytest.raises(ValueError, match=r"tau2 == 0.0"):
        cs.normal_sequence(0, 1, tau2=0)
    with pytest.raises(ValueError, match=r"sigma == 0.0"):
        cs.msprt(0, 0, n_control=1, n_treatment=1, tau=1)
    with pytest.raises(ValueError, match=r"successes == 2.0, must be <= trials"):
        cs.bernoulli_sequence(2, 1, alpha=0.05, t_opt=100)
    one = moments_from_summary(1, 0.0, variance=0.0)
    with pytest.raises(ValueError, match=r"control.n == 1.0"):
        cs.asymptotic_means(one, one, n_star=10)
