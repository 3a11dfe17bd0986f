"""Caps on heavy tails, beside numpy: what is cut, and where."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.analyze.worlds import Floats, arms, ask, requests, rows


def by_unit(table: pa.Table, column: str) -> tuple[Floats, Floats, Any]:
    """Of each unit: sum, rows, whether it is treated."""
    user = table.column("user_id").to_numpy()
    values = np.asarray(table.column(column).to_numpy(zero_copy_only=False), float)
    treated = np.array(table.column("variant").to_pylist()) == "treatment"
    count = np.bincount(user)
    present = count > 0
    return (
        np.asarray(np.bincount(user, values)[present], float),
        count[present].astype(float),
        np.bincount(user, treated)[present] > 0,
    )


def ratio_error(top: Floats, bottom: Floats) -> tuple[float, float]:
    """A ratio of sums, and its squared error by the delta method."""
    r = top.sum() / bottom.sum()
    spread = np.cov(top - r * bottom, ddof=1)
    return float(r), float(spread / bottom.mean() ** 2 / len(top))


@pytest.mark.parametrize("covariate", [None, "before"])
def test_mean_is_of_capped_rows_when_a_row_is_a_unit(covariate: str | None) -> None:
    table = rows()
    answer = ask(table, "revenue:mean", caps={"revenue": 20.0}, covariate=covariate)
    found = answer.metrics[0]
    one, two = (np.minimum(arm, 20.0) for arm in arms(table, "revenue"))
    if covariate is None:
        error = np.sqrt(one.var(ddof=1) / len(one) + two.var(ddof=1) / len(two))
        assert found.difference == pytest.approx(two.mean() - one.mean(), rel=1e-9)
    else:
        x_one, x_two = arms(table, "before")
        y, x = (
            np.concatenate([a - a.mean(), b - b.mean()]) for a, b in ((one, two), (x_one, x_two))
        )
        theta = (y @ x) / (x @ x)
        shift = theta * (x_two.mean() - x_one.mean())
        error = np.sqrt(
            sum((a - theta * b).var(ddof=1) / len(a) for a, b in ((one, x_one), (two, x_two)))
        )
        assert found.difference == pytest.approx(two.mean() - one.mean() - shift, rel=0.05)
    assert found.standard_error == pytest.approx(error, rel=1e-9 if covariate is None else 1e-2)
    cut = [int((arm > 20).sum()) for arm in arms(table, "revenue")]
    assert (
        f"revenue: values are capped at 20: {sum(cut):,} are above it and count as that "
        f"(control {cut[0]:,}, treatment {cut[1]:,})"
    ) in answer.warnings
    assert answer.source.settings["cap revenue"] == 20.0


def test_mean_of_several_rows_is_capped_by_row() -> None:
    table = requests()
    answer = ask(table, "latency:mean", caps={"latency": 30}, unit_column="user_id")
    capped = table.set_column(
        table.schema.get_field_index("latency"),
        "latency",
        pa.array(np.minimum(table.column("latency").to_numpy(), 30.0)),
    )
    plain = ask(capped, "latency:mean", unit_column="user_id")
    for name in ("difference", "standard_error", "cs_low"):
        one, two = (getattr(each.metrics[0], name) for each in (answer, plain))
        assert one == pytest.approx(two, rel=1e-9)
    cut = int((table.column("latency").to_numpy() > 30).sum())
    assert any(f"values are capped at 30: {cut:,} are" in each for each in answer.warnings)


def test_unit_sum_is_capped_when_it_is_the_units_value() -> None:
    table = requests().rename_columns(
        ["variant", "user_id", "error", "revenue", "label", "score", "prediction"]
    )
    answer = ask(table, "revenue_per_user", caps={"revenue_per_user": 200}, unit_column="user_id")
    total, _, treated = by_unit(table, "revenue")
    one, two = np.minimum(total[~treated], 200), np.minimum(total[treated], 200)
    found = answer.metrics[0]
    assert found.control.mean == pytest.approx(one.mean(), rel=1e-9)
    assert found.difference == pytest.approx(two.mean() - one.mean(), rel=1e-9)
    error = np.sqrt(one.var(ddof=1) / len(one) + two.var(ddof=1) / len(two))
    assert found.standard_error == pytest.approx(error, rel=1e-9)
    cut = int((total > 200).sum())
    assert any(f"units' sums are capped at 200: {cut:,} are" in each for each in answer.warnings)


@pytest.mark.parametrize("unit", [None, "user_id"])
def test_ratio_has_its_numerator_capped(unit: str | None) -> None:
    table = rows() if unit is None else requests()
    top, bottom, cap = ("revenue", "before", 25.0) if unit is None else ("latency", "one", 150.0)
    if unit is None:
        halves = zip(arms(table, top), arms(table, bottom), strict=True)
        pairs = [(np.minimum(above, cap), below) for above, below in halves]
    else:
        table = table.append_column("one", pa.array(np.ones(table.num_rows)))
        total, count, treated = by_unit(table, top)
        pairs = [(np.minimum(total[arm], cap), count[arm]) for arm in (~treated, treated)]
    answer = ask(table, f"r:ratio:{top}/{bottom}", caps={"r": cap}, unit_column=unit)
    found = answer.metrics[0]
    (r_c, v_c), (r_t, v_t) = (ratio_error(*pair) for pair in pairs)
    assert found.control.mean == pytest.approx(r_c, rel=1e-9)
    assert found.difference == pytest.approx(r_t - r_c, rel=1e-9)
    assert found.standard_error == pytest.approx(np.sqrt(v_c + v_t), rel=1e-9)


def test_strata_and_series_are_of_capped_values() -> None:
    table = rows()
    capped = table.set_column(
        table.schema.get_field_index("revenue"),
        "revenue",
        pa.array(np.minimum(table.column("revenue").to_numpy(), 20.0)),
    )
    options: dict[str, Any] = {"strata": "country", "series": True}
    one = ask(table, "revenue:mean", caps={"revenue": 20}, **options)
    two = ask(capped, "revenue:mean", **options)
    for mine, other in zip(one.strata, two.strata, strict=True):
        assert mine.metrics[0].standard_error == pytest.approx(
            other.metrics[0].standard_error, rel=1e-12
        )
    assert one.series[0].points[-1].cs_low == pytest.approx(
        two.series[0].points[-1].cs_low, rel=1e-12
    )


def test_missing_values_stay_missing_and_the_rule_is_of_what_is_there_when_capped() -> None:
    table = pa.table(
        {
            "variant": ["control", "treatment"] * 300,
            "x": [1.0, 9.0, None, 4.0, 2.0, 7.0] * 100,
        }
    )
    answer = ask(table, "x:count", caps={"x": 5})
    assert answer.metrics[0].control == type(answer.metrics[0].control)(200, 1.5)
    assert answer.metrics[0].treatment.mean == pytest.approx((5 + 4 + 5) / 3)
    assert "x: values are capped at 99: none is above it" in (
        ask(table, "x:count", caps={"x": 99}).warnings
    )
    halves = table.set_column(1, "x", pa.array([1.5, 9.5] * 300))
    with pytest.raises(ValueError, match="a whole number"):
        ask(halves, "x:count", caps={"x": 5})


def test_metric_without_a_kind_is_a_mean_when_it_is_capped() -> None:
    assert ask(rows(), "clicks", caps={"clicks": 3}).metrics[0].kind == "mean"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_number_is_refused_also_when_a_cap_would_hide_it(bad: float) -> None:
    table = pa.table(
        {"variant": ["control", "treatment"] * 300, "x": [1.0, 2.0] * 299 + [bad, 1.0]}
    )
    with pytest.raises(ValueError, match=r"1 NaN|1 infinite"):
        ask(table, "x:mean", caps={"x": 5})


@pytest.mark.parametrize(
    ("metric", "caps", "words"),
    [
        (
            "converted:proportion",
            {"converted": 1},
            "cap: 'converted' is a proportion: caps are for",
        ),
        ("revenue:quantile:0.9", {"revenue": 1}, "cap: 'revenue' is a quantile"),
        ("revenue:mean", {"revenu": 1}, "cap: 'revenu' is no metric here; did you mean"),
        ("revenue:mean", {"revenue": 0}, "cap revenue"),
        ("revenue:mean", {"revenue": float("inf")}, "cap revenue"),
    ],
)
def test_cap_is_refused_when_its_metric_has_no_use_for_it(
    metric: str, caps: dict[str, float], words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        ask(rows(), metric, caps=caps)
