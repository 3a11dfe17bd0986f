"""Two published experiments, judged by the command, give what statsmodels and scipy give.

Both ship in PyPI's causaldata. `thornton_hiv`: Thornton 2008, American Economic Review 98(5), 4,820
people of rural Malawi: a money incentive (`any`) was drawn, the outcome is whether somebody came to
hear the result of an HIV test (`got`). `nsw_mixtape`: the National Supported Work demonstration of
the 1970s (LaLonde 1986, American Economic Review 76(4); sample of Dehejia, Wahba 1999, JASA 94) of
445 people: job training (`treat`) was drawn, the outcome is the earnings of 1978 (`re78`, dollars).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pytest
from causaldata import nsw_mixtape, thornton_hiv
from scipy import stats
from statsmodels.stats import proportion, weightstats

SUFFIXES: Final = ("csv", "parquet")
TRAINING: Final = ("--variant-column", "arm", "--control", "control")


def same(found: float, wanted: float) -> None:
    assert found == pytest.approx(wanted, rel=1e-9)


def analysed(path: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "turnout.cli", "analyze", str(path), *arguments, "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def written(data: pd.DataFrame, directory: Path, suffix: str) -> Path:
    path = directory / f"data.{suffix}"
    if suffix == "csv":
        data.to_csv(path, index=False)
    else:
        data.to_parquet(path, index=False)
    return path


def incentives() -> pd.DataFrame:
    data = thornton_hiv.load_pandas().data
    data = data[data["any"].notna() & data["got"].notna()]
    return data.assign(arm=data["any"].map({0.0: "none", 1.0: "incentive"}))


def training() -> pd.DataFrame:
    data = nsw_mixtape.load_pandas().data.astype({"re78": float, "re75": float})
    arms = data["treat"].map({0: "control", 1: "training"})
    return data.assign(arm=arms, employed=data["re78"] > 0)


def arms_of(data: pd.DataFrame, column: str) -> tuple[Any, Any]:
    """Values of control and treatment."""
    treated = data["treat"] == 1
    return data.loc[~treated, column].to_numpy(float), data.loc[treated, column].to_numpy(float)


def check_sample_ratio(found: Any, observed: dict[str, int], shares: dict[str, float]) -> None:
    total = sum(observed.values())
    assert found["observed"] == observed
    for arm, share in shares.items():
        same(found["expected"][arm], total * share)
    expected = [found["expected"][arm] for arm in observed]
    same(found["p_value"], stats.chisquare(list(observed.values()), expected).pvalue)


def check_shares(found: Any, x_c: int, n_c: int, x_t: int, n_t: int) -> None:
    _, p = proportion.proportions_ztest([x_t, x_c], [n_t, n_c])
    low, high = proportion.confint_proportions_2indep(x_t, n_t, x_c, n_c, method="wald")
    p_c, p_t = x_c / n_c, x_t / n_t
    assert (found["kind"], found["control"]["n"], found["treatment"]["n"]) == (
        "proportion", n_c, n_t,
    )  # fmt: skip
    same(found["control"]["mean"], p_c)
    same(found["treatment"]["mean"], p_t)
    same(found["difference"], p_t - p_c)
    same(found["relative"], (p_t - p_c) / p_c)
    same(found["standard_error"], np.sqrt(p_c * (1 - p_c) / n_c + p_t * (1 - p_t) / n_t))
    same(found["ci_low"], low)
    same(found["ci_high"], high)
    same(found["p_value"], p)


def check_means(found: Any, c: Any, t: Any) -> None:
    theirs = weightstats.CompareMeans(weightstats.DescrStatsW(t), weightstats.DescrStatsW(c))
    low, high = theirs.tconfint_diff(usevar="unequal")
    assert (found["kind"], found["control"]["n"], found["treatment"]["n"]) == (
        "mean", len(c), len(t),
    )  # fmt: skip
    same(found["control"]["mean"], np.mean(c))
    same(found["treatment"]["mean"], np.mean(t))
    same(found["difference"], np.mean(t) - np.mean(c))
    same(found["relative"], np.mean(t) / np.mean(c) - 1)
    same(found["standard_error"], theirs.std_meandiff_separatevar)
    same(found["ci_low"], low)
    same(found["ci_high"], high)
    same(found["p_value"], theirs.ttest_ind(usevar="unequal")[1])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_incentive_to_learn_a_result_is_what_statsmodels_says(tmp_path: Path, suffix: str) -> None:
    data = incentives()
    found = analysed(
        written(data, tmp_path, suffix),
        *("--variant-column", "arm", "--control", "none", "--metric", "got:proportion"),
        *("--expected", "none=0.25", "--expected", "incentive=0.75"),
    )
    none, some = (data.loc[data["any"] == drawn, "got"].astype(int) for drawn in (0, 1))
    metric = found["metrics"][0]
    check_shares(metric, int(none.sum()), len(none), int(some.sum()), len(some))
    # As published: 34 % come without an incentive, more than twice as many with one.
    assert metric["control"]["mean"] == pytest.approx(0.34, abs=0.005)
    assert metric["treatment"]["mean"] == pytest.approx(0.79, abs=0.005)
    assert metric["cs_low"] < metric["ci_low"] < metric["ci_high"] < metric["cs_high"]
    assert found["decision"] == "PROMOTE"
    observed = {"none": len(none), "incentive": len(some)}
    check_sample_ratio(found["srm"], observed, {"none": 0.25, "incentive": 0.75})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_job_training_is_what_statsmodels_says(tmp_path: Path, suffix: str) -> None:
    data = training()
    found = analysed(
        written(data, tmp_path, suffix),
        *TRAINING,
        *("--metric", "re78:mean", "--metric", "employed:proportion", "--strata", "nodegree"),
        *("--expected", "control=0.5", "--expected", "training=0.5"),
    )
    earned, employed = found["metrics"]
    check_means(earned, *arms_of(data, "re78"))
    # The experimental benchmark of Dehejia and Wahba: $1,794.
    assert earned["difference"] == pytest.approx(1_794.34, abs=0.01)
    c, t = arms_of(data, "employed")
    check_shares(employed, int(c.sum()), len(c), int(t.sum()), len(t))
    halves = {"control": 0.5, "training": 0.5}
    check_sample_ratio(found["srm"], {"control": len(c), "training": len(t)}, halves)
    assert {stratum["stratum"] for stratum in found["strata"]} == {"0", "1"}
    for stratum in found["strata"]:
        part = data[data["nodegree"] == int(stratum["stratum"])]
        check_means(stratum["metrics"][0], *arms_of(part, "re78"))
        c, t = arms_of(part, "employed")
        check_sample_ratio(stratum["srm"], {"control": len(c), "training": len(t)}, halves)


def test_job_training_adjusted_for_earlier_earnings_is_the_formula(tmp_path: Path) -> None:
    data = training()
    path = written(data, tmp_path, "parquet")
    found = analysed(path, *TRAINING, "--metric", "re78:mean", "--covariate", "re75")
    whole = np.cov(data["re78"], data["re75"])
    theta = whole[0, 1] / whole[1, 1]
    c, t = (
        y - theta * x for y, x in zip(*(arms_of(data, n) for n in ("re78", "re75")), strict=True)
    )
    se = np.sqrt(np.var(c, ddof=1) / len(c) + np.var(t, ddof=1) / len(t))
    metric = found["metrics"][0]
    same(metric["difference"], t.mean() - c.mean())
    same(metric["standard_error"], se)
    same(metric["ci_low"], t.mean() - c.mean() - stats.norm.ppf(0.975) * se)
    same(metric["p_value"], 2 * stats.norm.sf(abs(t.mean() - c.mean()) / se))
    assert found["srm"] is None
    assert any("expected" in warning for warning in found["warnings"])


def test_several_rows_of_a_person_count_as_one(tmp_path: Path) -> None:
    """Earnings in installments, a row each: the errors stay those of people."""
    data = training().reset_index(names="person")
    parts = np.arange(len(data)) % 3 + 1
    rows = data.loc[np.repeat(data.index, parts)]
    rows = rows.assign(re78=rows["re78"] / np.repeat(parts, parts))
    path = written(rows, tmp_path, "parquet")
    found = analysed(path, *TRAINING, "--unit-column", "person", "--metric", "re78:mean")
    control, treated = (rows[rows["treat"] == arm] for arm in (0, 1))
    errors = 0.0
    for arm in (control, treated):
        people = arm.groupby("person")["re78"].agg(["sum", "count"])
        mean = people["sum"].sum() / people["count"].sum()
        left = people["sum"] - mean * people["count"]
        n = len(people)
        errors += float((left**2).sum() / (n - 1) * n / people["count"].sum() ** 2)
    metric = found["metrics"][0]
    assert (metric["control"]["n"], metric["treatment"]["n"]) == (260, 185)
    same(metric["difference"], treated["re78"].mean() - control["re78"].mean())
    same(metric["standard_error"], float(np.sqrt(errors)))
