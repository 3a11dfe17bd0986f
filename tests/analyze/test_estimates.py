"""Each kind of metric against a computation that shares no code with it."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from scipy import special, stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.proportion import proportions_ztest

from tests.analyze.worlds import Floats, arms, ask, first, requests, rows

EXACT = 1e-9


def near(value: float | None, expected: float, relative: float = EXACT) -> None:
    assert value == pytest.approx(expected, rel=relative, abs=1e-14)


def sequence(diff: float, variance: float, n: int, n_star: float = 10_000.0) -> tuple[float, float]:
    """Waudby-Smith et al. (2103.06476), theorem 2.2, in its own symbols."""
    alpha = 0.05
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / n_star
    sigma2 = variance * n
    half = math.sqrt(
        sigma2 * 2 * (n * rho2 + 1) / (n**2 * rho2) * math.log(math.sqrt(n * rho2 + 1) / alpha)
    )
    return diff - half, diff + half


def test_proportion_is_the_pooled_z_of_statsmodels_when_rows_are_units() -> None:
    table = rows(lift=0.03)
    c, t = arms(table, "converted")
    got = first(table, "converted:proportion")
    _, p = proportions_ztest([t.sum(), c.sum()], [len(t), len(c)])
    error = math.sqrt(t.mean() * (1 - t.mean()) / len(t) + c.mean() * (1 - c.mean()) / len(c))
    near(got.p_value, p)
    near(got.standard_error, error)
    near(got.difference, t.mean() - c.mean())
    near(got.relative, t.mean() / c.mean() - 1)
    near(got.ci_low, t.mean() - c.mean() - stats.norm.ppf(0.975) * error)
    assert (got.control.n, got.treatment.n) == (len(c), len(t))
    near(got.control.mean, c.mean())


def test_proportion_s_sequence_uses_the_pooled_variance_when_events_are_enough() -> None:
    table = rows()
    c, t = arms(table, "converted")
    pooled = np.concatenate([c, t]).mean()
    variance = pooled * (1 - pooled) * (1 / len(c) + 1 / len(t))
    low, high = sequence(t.mean() - c.mean(), variance, len(c) + len(t))
    got = first(table, "converted:proportion")
    near(got.cs_low, low)
    near(got.cs_high, high)


def test_mean_is_welch_s_test_of_scipy_when_rows_are_units() -> None:
    table = rows(lift=0.1)
    c, t = arms(table, "revenue")
    expected = stats.ttest_ind(t, c, equal_var=False)
    interval = expected.confidence_interval(0.95)
    got = first(table, "revenue:mean")
    near(got.p_value, expected.pvalue)
    near(got.ci_low, interval.low)
    near(got.ci_high, interval.high)
    variance = t.var(ddof=1) / len(t) + c.var(ddof=1) / len(c)
    near(got.standard_error, math.sqrt(variance))
    spread = {len(arm): arm.var(ddof=1) for arm in (c, t)}
    small, large = min(spread), max(spread)
    cautious = max(spread[small], spread[large]) / small + spread[large] / large
    low, high = sequence(t.mean() - c.mean(), cautious, len(c) + len(t))
    near(got.cs_low, low)
    near(got.cs_high, high)


def test_sequence_lends_a_small_arm_the_spread_of_the_large_one_when_it_has_less() -> None:
    rng = np.random.default_rng(8)
    variant = np.where(rng.random(20_000) < 0.02, "treatment", "control")
    values = np.where(variant == "control", rng.normal(0, 3, 20_000), rng.normal(0, 1, 20_000))
    table = pa.table(
        {"variant": variant, "u": np.arange(20_000), "x": values, "y": rng.random(20_000)}
    )
    c, t = arms(table, "x")
    cautious = c.var(ddof=1) / len(t) + c.var(ddof=1) / len(c)
    low, _ = sequence(t.mean() - c.mean(), cautious, 20_000)
    near(first(table, "x:mean").cs_low, low)
    near(first(table, "x:mean", covariate="y").cs_low, low, relative=0.02)


def test_alpha_moves_intervals_and_sequences_when_it_is_given() -> None:
    table = rows()
    c, t = arms(table, "revenue")
    interval = stats.ttest_ind(t, c, equal_var=False).confidence_interval(0.8)
    got, usual = (first(table, "revenue:mean", alpha=alpha) for alpha in (0.2, 0.05))
    near(got.ci_low, interval.low)
    assert got.cs_low is not None
    assert usual.cs_low is not None
    assert got.cs_low > usual.cs_low


@pytest.mark.parametrize("by_unit", [False, True])
def test_ratio_is_the_delta_method_when_numerator_and_denominator_vary(by_unit: bool) -> None:
    table = rows()
    (y_c, y_t), (x_c, x_t) = arms(table, "clicks"), arms(table, "views")
    ratios, variance = [], 0.0
    for y, x in ((y_c, x_c), (y_t, x_t)):
        ratio = y.sum() / x.sum()
        ratios.append(ratio)
        variance += np.var(y - ratio * x, ddof=1) / len(x) / x.mean() ** 2
    unit = {"unit_column": "user_id"} if by_unit else {}
    got = first(table, "ctr:ratio:clicks/views", **unit)
    near(got.difference, ratios[1] - ratios[0])
    near(got.standard_error, math.sqrt(variance))
    near(got.p_value, 2 * stats.norm.sf(abs(ratios[1] - ratios[0]) / math.sqrt(variance)))
    assert got.control.n == len(y_c)


@pytest.mark.parametrize(("metric", "column"), [("latency:mean", "latency"), ("error", "error")])
def test_mean_over_rows_is_cluster_robust_when_units_return(metric: str, column: str) -> None:
    table = requests()
    y = np.asarray(table.column(column).to_numpy(zero_copy_only=False), dtype=np.float64)
    user = table.column("user_id").to_numpy()
    treated = np.array(table.column("variant").to_pylist()) == "treatment"
    x = np.column_stack([np.ones(len(y)), treated])
    model = OLS(y, x).fit(cov_type="cluster", cov_kwds={"groups": user, "use_correction": False})
    got = first(table, metric, unit_column="user_id")
    near(got.difference, model.params[1])
    # CR0 lacks the factor n / (n - 1) of each arm's own variance.
    near(got.standard_error, model.bse[1], relative=4e-3)
    assert got.control.n == len(set(user[~treated]))
    by_row = first(table, metric)
    assert by_row.standard_error is not None
    assert got.standard_error is not None
    assert got.standard_error > 1.3 * by_row.standard_error


def test_unit_column_changes_nothing_but_the_count_when_every_unit_has_one_row() -> None:
    table = rows()
    for metric in ("converted:proportion", "revenue:mean"):
        one, other = first(table, metric), first(table, metric, unit_column="user_id")
        assert one.p_value is not None
        near(other.p_value, one.p_value)
        assert one.standard_error is not None
        near(other.standard_error, one.standard_error)


def test_revenue_per_user_sums_each_user_s_rows_when_users_return() -> None:
    table = requests()
    latency, users = arms(table, "latency"), arms(table, "user_id")
    totals = [
        np.bincount(user.astype(int), values) for user, values in zip(users, latency, strict=True)
    ]
    c, t = (total[total > 0] for total in totals)
    got = first(table, "revenue_per_user=latency", unit_column="user_id")
    near(got.p_value, stats.ttest_ind(t, c, equal_var=False).pvalue)
    near(got.control.mean, c.mean())


def test_conversion_rate_counts_a_user_once_when_users_return() -> None:
    table = requests()
    error, users = arms(table, "error"), arms(table, "user_id")
    shares = []
    for user, values in zip(users, error, strict=True):
        seen = np.unique(user)
        shares.append((sum(values[user == one].max() for one in seen), len(seen)))
    got = first(table, "conversion_rate=error", unit_column="user_id")
    _, p = proportions_ztest([shares[1][0], shares[0][0]], [shares[1][1], shares[0][1]])
    near(got.p_value, p)


def cuped(y: tuple[Floats, Floats], x: tuple[Floats, Floats]) -> tuple[float, float]:
    """Deng et al. 2013 by numpy: pooled coefficient, difference, its variance."""
    (y_c, y_t), (x_c, x_t) = y, x
    both = np.cov(np.concatenate(y), np.concatenate(x))
    theta = both[0, 1] / both[1, 1]
    diff = (y_t.mean() - y_c.mean()) - theta * (x_t.mean() - x_c.mean())
    parts = (np.var(a - theta * b, ddof=1) / len(a) for a, b in zip(y, x, strict=True))
    return diff, sum(parts)


@pytest.mark.parametrize("unit", [None, "user_id"])
@pytest.mark.parametrize("column", ["revenue", "converted"])
def test_covariate_reduces_the_error_as_cuped_does_when_it_was_measured_before(
    column: str, unit: str | None
) -> None:
    table = rows(lift=0.05)
    diff, variance = cuped(arms(table, column), arms(table, "before"))
    got = first(table, column, covariate="before", unit_column=unit)
    near(got.difference, diff)
    near(got.standard_error, math.sqrt(variance))
    assert got.treatment.mean is not None
    assert got.control.mean is not None
    near(got.difference, got.treatment.mean - got.control.mean)


def test_covariate_adjusts_a_ratio_by_its_linearised_value_when_units_return() -> None:
    table = requests()
    user = table.column("user_id").to_numpy()
    before = np.random.default_rng(3).normal(size=user.max() + 1)
    table = table.append_column("before", pa.array(before[user]))
    ys, xs, ratios = [], [], []
    for users, values in zip(arms(table, "user_id"), arms(table, "latency"), strict=True):
        ids = np.unique(users).astype(int)
        total = np.bincount(users.astype(int), values, minlength=user.max() + 1)[ids]
        count = np.bincount(users.astype(int), minlength=user.max() + 1)[ids]
        ratio = total.sum() / count.sum()
        ratios.append(ratio)
        ys.append(ratio + (total - ratio * count) / count.mean())
        xs.append(before[ids])
    diff, variance = cuped((ys[0], ys[1]), (xs[0], xs[1]))
    got = first(table, "latency:mean", covariate="before", unit_column="user_id")
    # theta is the pooled one, which the linearised values give only around each arm's own ratio.
    near(got.difference, diff)
    near(got.standard_error, math.sqrt(variance))


@pytest.mark.parametrize("q", [0.5, 0.95])
def test_quantile_is_numpy_s_with_the_error_of_order_statistics_when_rows_are_units(
    q: float,
) -> None:
    table = rows()
    c, t = arms(table, "revenue")
    errors = []
    for arm in (c, t):
        low, high = stats.binom.ppf(0.025, len(arm), q), stats.binom.isf(0.025, len(arm), q)
        ordered = np.sort(arm)
        width = ordered[int(high)] - ordered[int(low) - 1]
        errors.append(width / (2 * stats.norm.ppf(0.975)) * math.sqrt((len(arm) - 1) / len(arm)))
    got = first(table, f"revenue:quantile:{q}")
    near(got.control.mean, np.quantile(c, q))
    near(got.difference, np.quantile(t, q) - np.quantile(c, q))
    near(got.standard_error, math.hypot(*errors))
    assert got.cs_low is not None
    assert got.cs_high is not None
    assert got.cs_low < 0 < got.cs_high
    assert got.always_valid_p == 1.0


def test_quantile_finds_a_shift_at_any_look_when_there_is_one() -> None:
    table = rows(n=6_000)
    slow = np.where(np.array(table.column("variant").to_pylist()) == "treatment", 8.0, 0.0)
    shifted = table.set_column(
        table.column_names.index("revenue"),
        "revenue",
        pa.array(table.column("revenue").to_numpy() + slow),
    )
    got = first(shifted, "revenue:quantile:0.5")
    assert got.always_valid_p is not None
    assert got.always_valid_p < 0.01
    assert got.cs_low is not None
    assert 0 < got.cs_low < 8 < (got.cs_high or 0)


def test_quantile_s_error_counts_users_when_users_return() -> None:
    table = requests()
    by_row, by_user = (
        first(table, "latency:quantile:0.9", unit_column=unit) for unit in (None, "user_id")
    )
    assert by_row.standard_error is not None
    assert by_user.standard_error is not None
    assert by_user.difference == by_row.difference
    ratios = []
    for users, values in zip(arms(table, "user_id"), arms(table, "latency"), strict=True):
        below = values <= np.quantile(values, 0.9)
        total = np.bincount(users.astype(int), below)
        count = np.bincount(users.astype(int))
        total, count = total[count > 0], count[count > 0]
        share = total.sum() / count.sum()
        clustered = np.sum((total - share * count) ** 2) * len(count) / (len(count) - 1)
        ratios.append(math.sqrt(clustered / (0.9 * 0.1 * len(values))))
    assert (
        min(ratios) - 1e-9 <= by_user.standard_error / by_row.standard_error <= max(ratios) + 1e-9
    )


def test_classifier_metrics_are_those_of_the_confusion_matrix_when_labels_are_known() -> None:
    table = requests()
    labels, said = arms(table, "label"), arms(table, "prediction")
    names = ("accuracy", "precision", "recall", "specificity", "false_positive_rate", "f1")
    answer = ask(table, *names, label_column="label", prediction_column="prediction")
    for side in (0, 1):
        y, p = labels[side] == 1, said[side] == 1
        tp, fp, fn, tn = (np.sum(a) for a in (y & p, ~y & p, y & ~p, ~y & ~p))
        expected = {
            "accuracy": (tp + tn) / len(y),
            "precision": tp / (tp + fp),
            "recall": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            "false_positive_rate": fp / (tn + fp),
            "f1": 2 * tp / (2 * tp + fp + fn),
        }
        for metric in answer.metrics:
            arm = metric.treatment if side else metric.control
            near(arm.mean, expected[metric.name])
            assert metric.kind == metric.name
    assert not [warning for warning in answer.warnings if "without a value" in warning]


def test_accuracy_compares_classes_when_they_are_names() -> None:
    table = requests()
    names = np.array(["cat", "dog"])
    for column in ("label", "prediction"):
        values = pa.array(names[table.column(column).to_numpy()])
        table = table.set_column(table.column_names.index(column), column, values)
    got = first(table, "accuracy", label_column="label", prediction_column="prediction")
    same = np.concatenate(arms(requests(), "label")) == np.concatenate(
        arms(requests(), "prediction")
    )
    c, t = got.control, got.treatment
    assert c.mean is not None
    assert t.mean is not None
    near(c.mean * c.n + t.mean * t.n, float(same.sum()))
    positive = {"label_column": "label", "prediction_column": "prediction", "positive": "dog"}
    plain = {"label_column": "label", "prediction_column": "prediction"}
    near(
        first(table, "f1", **positive).difference, first(requests(), "f1", **plain).difference or 0
    )


@pytest.mark.parametrize("unit", [None, "user_id"])
def test_auc_is_the_mann_whitney_share_when_scores_are_known(unit: str | None) -> None:
    table = requests(lift=0.1)
    got = first(table, "auc", label_column="label", score_column="score", unit_column=unit)
    areas = []
    for labels, scores in zip(arms(table, "label"), arms(table, "score"), strict=True):
        positive, negative = scores[labels == 1], scores[labels == 0]
        wins = stats.mannwhitneyu(positive, negative).statistic
        areas.append(wins / (len(positive) * len(negative)))
    near(got.control.mean, areas[0])
    near(got.treatment.mean, areas[1])
    assert got.p_value is not None
    assert got.p_value < 1e-6


def test_sample_ratio_is_chi_squared_and_dirichlet_when_shares_are_expected() -> None:
    table = rows(n=900)
    c, t = arms(table, "user_id")
    got = ask(table, "converted", expected={"control": 60, "treatment": 40}).srm
    assert got is not None
    n = len(c) + len(t)
    near(got.p_value, stats.chisquare([len(c), len(t)], [0.6 * n, 0.4 * n]).pvalue, 1e-8)
    prior = np.array([60.0, 40.0])
    seen = np.array([len(c), len(t)], dtype=np.float64)
    log_e = (
        special.gammaln(prior + seen).sum()
        - special.gammaln(prior).sum()
        - special.gammaln((prior + seen).sum())
        + special.gammaln(prior.sum())
        - (seen * np.log(prior / 100)).sum()
    )
    near(got.e_value, math.exp(log_e), 1e-7)
    assert got.observed == {"control": len(c), "treatment": len(t)}
    near(got.expected["control"], 0.6 * n)


def test_stratum_is_the_analysis_of_its_rows_when_looked_at_apart() -> None:
    table = rows()
    answer = ask(table, "converted", "revenue:mean", strata="country")
    assert [stratum.stratum for stratum in answer.strata] == ["DE", "FR", "PL"]
    for unit in (None, "user_id"):
        for stratum in ask(table, "revenue:mean", strata="country", unit_column=unit).strata:
            part = table.filter(pa.compute.equal(table.column("country"), stratum.stratum))
            alone, third = (first(part, "revenue:mean", alpha=alpha) for alpha in (0.05, 0.05 / 3))
            got = stratum.metrics[0]
            assert alone.p_value is not None
            assert third.cs_low is not None
            near(got.p_value, alone.p_value)
            near(got.ci_low, alone.ci_low or 0)
            near(got.cs_low, third.cs_low)
    whole = first(table, "revenue:mean")
    near(answer.metrics[1].p_value, whole.p_value or 0)


@pytest.mark.parametrize("unit", [None, "user_id"])
def test_large_magnitudes_lose_no_digits_when_values_are_at_a_billion(unit: str | None) -> None:
    table = rows()
    small = np.round(table.column("revenue").to_numpy() * 1024) / 1024  # exact after the shift
    near_zero, far = (
        table.set_column(table.column_names.index("revenue"), "revenue", pa.array(small + shift))
        for shift in (0.0, 1e9)
    )
    one, other = (first(each, "revenue:mean", unit_column=unit) for each in (near_zero, far))
    for name in ("standard_error", "p_value", "difference", "ci_low", "cs_high"):
        value = getattr(one, name)
        assert getattr(other, name) == pytest.approx(value, rel=1e-7)


def test_exact_sequence_covers_when_there_is_no_event_at_all() -> None:
    n = 3_000
    table = pa.table(
        {"variant": ["control", "treatment"] * n, "error": np.zeros(2 * n, dtype=np.int64)}
    )
    got = first(table, "error:proportion")
    assert got.p_value is None
    assert got.standard_error is None
    assert got.cs_high is not None
    assert 0 < got.cs_high < 0.01
    assert got.always_valid_p == 1.0


def test_several_treatments_give_a_result_each_when_there_are_three_variants() -> None:
    table = rows()
    variants = np.array(table.column("variant").to_pylist(), dtype=object)
    half = variants == "treatment"
    half[::2] = False
    variants[half] = "other"
    table = table.set_column(0, "variant", pa.array(list(variants)))
    answer = ask(table, "revenue:mean", "converted", expected=None)
    assert [(each.name, each.variant) for each in answer.metrics] == [
        ("revenue", "other"),
        ("revenue", "treatment"),
        ("converted", "other"),
        ("converted", "treatment"),
    ]
    assert answer.srm is None
    assert any("--expected" in warning for warning in answer.warnings)


def test_units_are_told_apart_by_variant_when_there_are_more_than_eight() -> None:
    rng = np.random.default_rng(12)
    names = ["control", *(f"v{number}" for number in range(11))]
    variant, value = rng.choice(names, 6_000), rng.normal(5, 2, 6_000)
    user = np.arange(6_000)
    # The last unit comes back in another variant: left out, as if it had never been there.
    table = pa.table(
        {
            "variant": [*variant, "v3" if variant[-1] != "v3" else "v4"],
            "user_id": [*user, user[-1]],
            "value": [*value, 1e6],
        }
    )
    alone = pa.table({"variant": variant[:-1], "value": value[:-1]})
    by_unit = ask(table, "value:mean", unit_column="user_id", expected=None)
    by_row = ask(alone, "value:mean", expected=None)
    assert any(text.startswith("1 of 6000 units") for text in by_unit.warnings)
    assert len(by_unit.metrics) == len(names) - 1
    for one, other in zip(by_unit.metrics, by_row.metrics, strict=True):
        assert (one.variant, one.treatment.n) == (other.variant, other.treatment.n)
        assert other.difference is not None
        near(one.difference, other.difference)
