"""gbstats answers: calls as JSON on standard input, their results on the output.

Runs in an interpreter with tests/differential/requirements-gbstats.txt installed. Owns the words of
gbstats; knows nothing of ours.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from typing import Any

from gbstats.bayesian.tests import EffectBayesianABTest, EffectBayesianConfig, GaussianPrior
from gbstats.frequentist.tests import (
    FrequentistConfig,
    SequentialConfig,
    SequentialTwoSidedTTest,
    TwoSidedTTest,
)
from gbstats.models.statistics import (
    QuantileClusteredStatistic,
    QuantileStatistic,
    RatioStatistic,
    RegressionAdjustedStatistic,
    SampleMeanStatistic,
)
from gbstats.utils import check_srm


def statistic(kind: str, arm: dict[str, Any]) -> Any:
    y = SampleMeanStatistic(n=arm["n"], sum=arm["sum_y"], sum_squares=arm["sum_sq_y"])
    if kind == "mean":
        return y
    x = SampleMeanStatistic(n=arm["n"], sum=arm["sum_x"], sum_squares=arm["sum_sq_x"])
    if kind == "ratio":
        return RatioStatistic(arm["n"], y, x, arm["sum_yx"])
    return RegressionAdjustedStatistic(arm["n"], y, x, arm["sum_yx"], 0.0)


def compare(call: dict[str, Any]) -> dict[str, Any]:
    a, b = (statistic(call["of"], call[arm]) for arm in ("control", "treatment"))
    way = "relative" if call.get("relative") else "absolute"
    n_star = call.get("n_star")
    if n_star is None:
        test: Any = TwoSidedTTest(a, b, FrequentistConfig(difference_type=way, alpha=call["alpha"]))
    else:
        config = SequentialConfig(
            difference_type=way, alpha=call["alpha"], sequential_tuning_parameter=n_star
        )
        test = SequentialTwoSidedTTest(a, b, config)
    result = test.compute_result()
    return {
        "diff": result.expected,
        "se": result.uplift.stddev,
        "low": result.ci[0],
        "high": result.ci[1],
        "p_value": result.p_value,
        "theta": getattr(test.stat_a, "theta", 0.0),
        "message": result.error_message,
    }


def bayes(call: dict[str, Any]) -> dict[str, Any]:
    a, b = (statistic("mean", call[arm]) for arm in ("control", "treatment"))
    given = call.get("prior")
    prior = GaussianPrior(*given, proper=True) if given else GaussianPrior()
    config = EffectBayesianConfig(
        difference_type="absolute", prior_type="absolute", prior_effect=prior, alpha=call["alpha"]
    )
    result = EffectBayesianABTest(a, b, config).compute_result()
    return {
        "p_beat": result.chance_to_win,
        "low": result.ci[0],
        "high": result.ci[1],
        "mean": result.expected,
        "loss_control": result.risk[0],
        "loss_treatment": result.risk[1],
        "message": result.error_message,
    }


def quantile(call: dict[str, Any]) -> dict[str, Any]:
    plain = {
        name: call[name]
        for name in ("n", "n_star", "nu", "quantile_hat", "quantile_lower", "quantile_upper")
    }
    one = QuantileStatistic(**plain)
    many = QuantileClusteredStatistic(**plain, **call["sums"])
    return {
        "se": math.sqrt(one.variance_init / one.n),
        "se_clustered": math.sqrt(max(many.variance_init, 0.0) / many.n),
    }


def srm(call: dict[str, Any]) -> dict[str, Any]:
    return {"p_value": check_srm(call["counts"], call["weights"])}


CALLS = {"compare": compare, "bayes": bayes, "quantile": quantile, "srm": srm}


def main() -> None:
    warnings.simplefilter("ignore")
    json.dump([CALLS[call["call"]](call) for call in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
