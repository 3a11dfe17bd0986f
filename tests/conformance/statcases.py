"""Reference cases of statistics against control.stats: `python -m tests.conformance.statcases DIR`.

Every *.json of DIR is a list of cases {name, kind, inputs, expected, rtol, atol}; the README.md of
tests/vectors/statcases has the schema. ADAPTERS translates a kind's inputs into arguments and the
results into the case's keys; it knows no case. Ends with "N passed, M failed", exit code 1 if any.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from control.stats import (
    bandits,
    bayes,
    cdfseq,
    classifiers,
    clusters,
    confseq,
    counts,
    cuped,
    drift,
    effects,
    means,
    moments,
    multiplicity,
    noninferiority,
    paired,
    power,
    proportions,
    quantiles,
    ranks,
    ratios,
    sequential,
    srm,
    strata,
)

Inputs = dict[str, Any]
Outputs = dict[str, Any]
Adapter = Callable[[Inputs], Outputs]

_ALTERNATIVES = {
    "two-sided": "two-sided", "two_sided": "two-sided",
    "greater": "greater", "larger": "greater", "less": "less", "smaller": "less",
}  # fmt: skip
_WORDS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def number(value: Any) -> Any:
    """A number, or the float that a case writes as a word."""
    return _WORDS.get(value, value) if isinstance(value, str) else value


def count(value: Any) -> int:
    """A number of units as a case writes it.

    Raises:
        ValueError: It is not whole, or not finite.
    """
    found = float(number(value or 0))
    if not found.is_integer():
        raise ValueError(f"{value} is no number of units, must be whole")
    return int(found)


def values(given: Any) -> list[float]:
    """A list of numbers, or the integers that "range(a,b)" stands for."""
    if isinstance(given, str):
        parts = given.removeprefix("range(").removesuffix(")").split(",")
        return [float(x) for x in range(*map(int, parts))]
    return list(given)


def alternative(i: Inputs) -> Any:
    """The alternative in our words; `one_sided` alone means that more is looked for."""
    if "alternative" in i:
        return _ALTERNATIVES[i["alternative"]]
    return "greater" if i.get("one_sided") else "two-sided"


def cell(given: Any) -> moments.Moments:
    """Moments from an array, from sums, or from a mean with its spread."""
    if not isinstance(given, dict):
        return moments.moments(values(given))
    if "values" in given:
        return moments.moments(values(given["values"]))
    if "sum" in given:
        return moments.moments_from_sums(given["n"], given["sum"], sum_sq=given["sum_sq"])
    spread = next((given[key] for key in ("variance", "var") if key in given), None)
    if spread is None:
        spread = next(given[key] for key in ("sd", "std") if key in given) ** 2
    return moments.moments_from_summary(given["n"], given["mean"], variance=spread)


def pair(given: Inputs) -> moments.PairMoments:
    """Moments of pairs from arrays y and x, or from sums."""
    if "sum" not in given:
        return moments.pair_moments(given["y"], given["x"])
    return moments.pair_moments_from_sums(
        given["n"],
        sum_y=given["sum"],
        sum_x=given["sum_x"],
        sum_sq_y=given["sum_sq"],
        sum_sq_x=given["sum_sq_x"],
        sum_yx=given["sum_xy"],
    )


def share(i: Inputs, arm: str) -> proportions.Share:
    return proportions.Share(i[f"x_{arm}"], i[f"n_{arm}"])


def alpha(i: Inputs) -> float:
    return float(i.get("alpha", 0.05))


def welch_t(i: Inputs) -> Outputs:
    r = means.welch(
        cell(i["control"]), cell(i["treatment"]), alpha=alpha(i), alternative=alternative(i)
    )
    return r._asdict()


def two_proportions(i: Inputs) -> Outputs:
    r = proportions.two_proportions(
        share(i, "control"), share(i, "treatment"), alpha=alpha(i), alternative=alternative(i)
    )
    return {
        "diff": r.diff,
        "z_pooled": r.z,
        "p_value": r.p_value,
        "chi2": r.chi2,
        "chi2_p": r.chi2_p,
        "wald_ci_low": r.wald.low,
        "wald_ci_high": r.wald.high,
        "newcombe_ci_low": r.newcombe.low,
        "newcombe_ci_high": r.newcombe.high,
        "wilson_control_low": r.wilson_control.low,
        "wilson_control_high": r.wilson_control.high,
        "wilson_treatment_low": r.wilson_treatment.low,
        "wilson_treatment_high": r.wilson_treatment.high,
    }


def ratio_delta(i: Inputs) -> Outputs:
    r = ratios.ratio_delta(
        pair(i["control"]), pair(i["treatment"]), alpha=alpha(i), alternative=alternative(i)
    )
    z = {"p_value_z": r.p_value, "ci_low_z": r.ci_low, "ci_high_z": r.ci_high}
    return r._asdict() | z


def cuped_adjusted(i: Inputs) -> Outputs:
    r = cuped.cuped(
        pair(i["control"]), pair(i["treatment"]), alpha=alpha(i), alternative=alternative(i)
    )
    return {
        "theta": r.theta,
        "diff_adjusted": r.adjusted.diff,
        "se_adjusted": r.adjusted.se,
        "p_value_z": r.adjusted.p_value,
        "ci_low_z": r.adjusted.ci_low,
        "ci_high_z": r.adjusted.ci_high,
        "diff_unadjusted": r.unadjusted.diff,
        "se_unadjusted": r.unadjusted.se,
    }


def relative_lift(i: Inputs) -> Outputs:
    r = cuped.relative_lift(
        cell(i["control"]), cell(i["treatment"]), alpha=alpha(i), alternative=alternative(i)
    )
    return r._asdict()


def cluster_robust(i: Inputs) -> Outputs:
    arms = []
    for arm in (0, 1):
        users = [user for user in i["users"] if user["arm"] == arm]
        arms.append(
            clusters.Clusters([u["successes"] for u in users], [u["requests"] for u in users])
        )
    r = clusters.cluster_robust(*arms)
    return {
        "diff": r.diff,
        "se_cluster_cr0": r.se_cluster,
        "se_request_level_hc0": r.se_request_level,
    }


def bucket_jackknife(i: Inputs) -> Outputs:
    arms = i["buckets"]
    r = clusters.bucket_jackknife(
        *(clusters.Clusters(arms[arm]["y"], arms[arm]["n"]) for arm in ("control", "treatment"))
    )
    return r._asdict() | {"se_diff_paired_buckets": r.se_diff}


def merge_moments(i: Inputs) -> Outputs:
    parts = [moments.pair_moments(shard["y"], shard["x"]) for shard in i["shards"]]
    whole = parts[0]
    for part in parts[1:]:
        whole = moments.merge_pairs(whole, part)
    return {
        "n": whole.n,
        "mean_y": whole.mean_y,
        "var_y": whole.y.variance,
        "mean_x": whole.mean_x,
        "var_x": whole.x.variance,
        "cov_xy": whole.covariance,
    }


def srm_chi2(i: Inputs) -> Outputs:
    return srm.srm_chi2(i["counts"], i["weights"])._asdict()


def count_sequential(i: Inputs) -> Outputs:
    k = i.get("dirichlet_concentration", 100)
    r = counts.count_evidence(i["counts"], i["weights"], concentration=k)
    found: Outputs = {"log_bayes_factor": r.log_e, "p_value": r.p_value}
    if len(i["counts"]) == 2:
        ends = counts.log_rate_ratio_sequence(
            i["counts"], i["weights"], concentration=k, alpha=alpha(i)
        )
        found |= {"log_rate_ratio_ci_low": ends.low, "log_rate_ratio_ci_high": ends.high}
    return found


def cs_asymptotic(i: Inputs) -> Outputs:
    sided = alternative(i)
    r = confseq.asymptotic_means(
        cell(i["control"]),
        cell(i["treatment"]),
        n_star=i["n_star"],
        alpha=alpha(i),
        alternative=sided,
    )
    rho = confseq.sequence_rho(i["n_star"], alpha=alpha(i), one_sided=sided != "two-sided")
    return r._asdict() | {"rho": rho}


def msprt(i: Inputs) -> Outputs:
    n_control, n_treatment = (
        i.get(f"n_{arm}", i.get("n_per_arm")) for arm in ("control", "treatment")
    )
    r = confseq.msprt(
        i["diff"],
        i["sigma"],
        n_control=count(n_control),
        n_treatment=count(n_treatment),
        tau=i["tau"],
        alpha=alpha(i),
    )
    return r._asdict() | {"ci_half_width": r.half_width}


def normal_mixture(i: Inputs) -> Outputs:
    one_sided = bool(i.get("one_sided", False))
    rho = confseq.best_rho(i["v_opt"], alpha=i.get("alpha_opt", 0.05), one_sided=one_sided)
    return {
        "rho": rho,
        "log_mixture_at_s": confseq.normal_log_mixture(
            i["s"], i["v"], rho=rho, one_sided=one_sided
        ),
        "bound": confseq.normal_mixture_bound(i["v"], alpha=alpha(i), rho=rho, one_sided=one_sided),
    }


def bernoulli_cs(i: Inputs) -> Outputs:
    r = confseq.bernoulli_sequence(
        i["successes"],
        i["trials"],
        alpha=alpha(i),
        t_opt=i["t_opt"],
        alpha_opt=i.get("alpha_opt", 0.05),
    )
    return {"ci_low": r.low, "ci_high": r.high}


def avlm_t(i: Inputs) -> Outputs:
    g = i.get("g")
    r = confseq.t_sequence(
        i["estimate"],
        i["std_error"],
        n=i["n"],
        coefficients=i["n_coefficients"],
        alpha=alpha(i),
        g=None if isinstance(g, str) else g,
    )
    return {"ci_low": r.low, "ci_high": r.high}


def dkw_sequential(i: Inputs) -> Outputs:
    bound = cdfseq.dkw_radius(i["t"], alpha=alpha(i), n_min=i["t_min"], leading=i.get("A", 0.85))
    return {"sup_cdf_bound": bound}


def quantile_ab_sequential(i: Inputs) -> Outputs:
    p = cdfseq.quantile_ab(
        values(i["control"]),
        values(i["treatment"]),
        q=i["q"],
        t_opt=i["t_opt"],
        alpha_opt=i.get("alpha_opt", 0.05),
    )
    return {"p_value": p}


def group_sequential(i: Inputs) -> Outputs:
    bounds = sequential.group_sequential_bounds(
        i["information_fractions"], alpha=alpha(i), phi=i["phi"], sides=i.get("sides", 2)
    )
    return {"z_bounds": bounds}


def power_means(i: Inputs) -> Outputs:
    arms = {
        kind: power.power_means(
            i["delta"],
            i["sd"],
            alpha=alpha(i),
            power=i["power"],
            ratio_treatment_to_control=i.get("ratio_treatment_to_control", 1.0),
            alternative=alternative(i),
            use_t=kind == "t",
        )
        for kind in ("z", "t")
    }
    found = {f"n_control_{kind}": n.n_control for kind, n in arms.items()}
    return found | {f"n_treatment_{kind}": n.n_treatment for kind, n in arms.items()}


def power_props(i: Inputs) -> Outputs:
    # The source's first sample is the treatment, and `ratio` is second over first.
    ratio = i.get("ratio", 1.0)
    n = power.power_proportions(
        i["p_control"],
        i["p_treatment"],
        alpha=alpha(i),
        power=i["power"],
        ratio_treatment_to_control=1 / ratio if ratio else math.inf,
        alternative=alternative(i),
    )
    return {"n_per_arm": n.n_treatment, "n_treatment": n.n_treatment, "n_control": n.n_control}


def multiple_testing(i: Inputs) -> Outputs:
    if "e_values" in i:
        return {"reject": multiplicity.e_bh(i["e_values"], alpha=alpha(i))}
    return multiplicity.adjust(i["p_values"], method=i["method"], alpha=alpha(i))._asdict()


def posterior(i: Inputs, successes: int, trials: int) -> bayes.BetaPosterior:
    return bayes.beta_posterior(
        successes, trials, prior_a=i.get("prior_a", 1.0), prior_b=i.get("prior_b", 1.0)
    )


def bayes_beta(i: Inputs) -> Outputs:
    r = bayes.compare_betas(
        posterior(i, i["x_control"], i["n_control"]),
        posterior(i, i["x_treatment"], i["n_treatment"]),
    )
    return {
        "p_treatment_beats_control": r.p_beat,
        "expected_loss_choose_treatment": r.loss_treatment,
        "expected_loss_choose_control": r.loss_control,
    }


def bayes_gauss(i: Inputs) -> Outputs:
    prior = i.get("prior")
    if prior is not None and not prior.get("proper", True):
        prior = None
    if prior is not None:
        prior = bayes.GaussPrior(
            prior["mean"], prior["variance"] if "variance" in prior else prior["sd"] ** 2
        )
    r = bayes.compare_gauss(cell(i["control"]), cell(i["treatment"]), prior=prior, alpha=alpha(i))
    return {
        "chance_to_win": r.p_beat,
        "posterior_mean": r.mean,
        "posterior_sd": r.sd,
        "ci_low": r.ci_low,
        "ci_high": r.ci_high,
        "expected_loss_choose_treatment": r.loss_treatment,
        "expected_gain_forgone_choose_control": r.loss_control,
    }


def bandit_prob_best(i: Inputs) -> Outputs:
    if "successes" not in i["arms"][0]:
        arms = [cell(arm) for arm in i["arms"]]
        ses = [np.sqrt(arm.variance_of_mean) for arm in arms]
        best = bandits.p_best_normals([arm.mean for arm in arms], ses)
        return {"prob_best": best, "top_two_thompson_weights": bandits.top_two_weights(best)}
    best = bandits.p_best_betas(
        [posterior(i, arm["successes"], arm["trials"]) for arm in i["arms"]]
    )
    return {"prob_best": best, "top_two_thompson_weights": bandits.top_two_weights(best)}


def quantile_ci(i: Inputs) -> Outputs:
    r = quantiles.quantile_interval(
        values(i["values"]), i["q"], alpha=alpha(i), alternative=alternative(i)
    )
    return r._asdict()


def quantile_se_clustered(i: Inputs) -> Outputs:
    se = quantiles.quantile_se(
        i["quantile_lower_at_95"],
        i["quantile_upper_at_95"],
        n=i["n_events"],
        n_bounds=i.get("n_star"),
    )
    found = {"se_iid": se}
    if "clusters" in i:
        c = i["clusters"]
        sums = quantiles.ClusterSums(
            users=c["n"],
            sum_s=c["sum_indicator"],
            sum_n=c["sum_events"],
            sum_ss=c["sum_sq_indicator"],
            sum_nn=c["sum_sq_events"],
            sum_sn=c["sum_indicator_events"],
        )
        found["se_clustered"] = quantiles.quantile_se_clustered(se, sums, q=i["q"])
    return found


def sketch_quantile(i: Inputs) -> Outputs:
    parts = [
        quantiles.sketch(shard, accuracy=i.get("relative_accuracy", 0.01)) for shard in i["shards"]
    ]
    return {"values": quantiles.sketch_quantiles(quantiles.merge_sketches(parts), i["quantiles"])}


def cohens_d(i: Inputs) -> Outputs:
    return effects.effect_size(cell(i["control"]), cell(i["treatment"]))._asdict()


def mcnemar(i: Inputs) -> Outputs:
    r = paired.mcnemar(
        i["only_primary_correct"],
        i["only_shadow_correct"],
        both_right=i.get("both_correct", 0),
        both_wrong=i.get("both_wrong", 0),
    )
    return r._asdict() | {"accuracy_diff_shadow_minus_primary": r.diff}


def mann_whitney(i: Inputs) -> Outputs:
    return ranks.mann_whitney(
        values(i["control"]), values(i["treatment"]), alternative=alternative(i)
    )._asdict()


def classifier(i: Inputs) -> Outputs:
    found = classifiers.classifier_scores(
        classifiers.Confusion(i["tp"], i["fp"], i["fn"], i["tn"])
    )._asdict()
    if "score_hist_positive" in i:
        r = ranks.auc_histogram(i["score_hist_positive"], i["score_hist_negative"])
        found["auc_from_histogram"] = r.auc
    return found


def drift_binned(i: Inputs) -> Outputs:
    r = drift.binned_drift(i["reference_counts"], i["current_counts"])
    return r._asdict() | {"js_distance_base2": r.js_distance, "chi2_p": r.p_value}


def ks(i: Inputs) -> Outputs:
    r = drift.kolmogorov_smirnov(values(i["reference"]), values(i["current"]))
    return r._asdict() | {"p_asymp": r.p_asymptotic}


def harm(r: noninferiority.NonInferiority) -> Outputs:
    bounds = {"lower_bound": r.bound, "upper_bound": r.bound}
    return r._asdict() | bounds | {"p_tost_equivalence": r.p_equivalent}


def non_inferiority(i: Inputs) -> Outputs:
    return harm(
        noninferiority.non_inferior_means(
            cell(i["control"]),
            cell(i["treatment"]),
            margin=i["margin"],
            direction=i.get("direction", "higher_is_better"),
            alpha=alpha(i),
        )
    )


def non_inferiority_props(i: Inputs) -> Outputs:
    return harm(
        noninferiority.non_inferior_proportions(
            share(i, "control"),
            share(i, "treatment"),
            margin=i["margin"],
            direction=i.get("direction", "higher_is_better"),
            alpha=alpha(i),
        )
    )


def stratified(i: Inputs) -> Outputs:
    columns = {key: [s[key] for s in i["strata"]] for key in ("x_c", "n_c", "x_t", "n_t")}
    r = strata.stratified_proportions(
        proportions.Share(columns["x_c"], columns["n_c"]),
        proportions.Share(columns["x_t"], columns["n_t"]),
    )
    return {
        "pooled_diff": r.pooled_diff,
        "strata_diffs": r.diffs,
        "ivw_diff": r.precision.diff,
        "ivw_se": np.sqrt(r.precision.variance),
        "cochran_q": r.precision.q,
        "cochran_p": r.precision.q_p,
        "mh_odds_ratio": r.mh_odds_ratio,
        "cmh_statistic": r.cmh,
        "cmh_p": r.cmh_p,
        "sign_reversal": r.sign_reversal,
    }


ADAPTERS: dict[str, Adapter] = {
    "welch_t": welch_t,
    "two_proportions": two_proportions,
    "ratio_delta": ratio_delta,
    "cuped": cuped_adjusted,
    "relative_lift": relative_lift,
    "cluster_robust": cluster_robust,
    "bucket_jackknife": bucket_jackknife,
    "merge_moments": merge_moments,
    "srm_chi2": srm_chi2,
    "count_sequential": count_sequential,
    "cs_asymptotic": cs_asymptotic,
    "msprt": msprt,
    "normal_mixture": normal_mixture,
    "bernoulli_cs": bernoulli_cs,
    "avlm_t": avlm_t,
    "dkw_sequential": dkw_sequential,
    "quantile_ab_sequential": quantile_ab_sequential,
    "group_sequential": group_sequential,
    "power_means": power_means,
    "power_props": power_props,
    "multiple_testing": multiple_testing,
    "bayes_beta": bayes_beta,
    "bayes_gauss": bayes_gauss,
    "bandit_prob_best": bandit_prob_best,
    "quantile_ci": quantile_ci,
    "quantile_se_clustered": quantile_se_clustered,
    "sketch_quantile": sketch_quantile,
    "cohens_d": cohens_d,
    "mcnemar": mcnemar,
    "mann_whitney": mann_whitney,
    "classifier": classifier,
    "drift_binned": drift_binned,
    "ks": ks,
    "non_inferiority": non_inferiority,
    "non_inferiority_props": non_inferiority_props,
    "stratified": stratified,
}


def cases(folder: Path) -> Iterator[dict[str, Any]]:
    """Every case of a folder, by file name and place in it."""
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        yield from content if isinstance(content, list) else [content]


def agrees(got: Any, expected: Any, *, rtol: float, atol: float) -> bool:
    """|got - expected| <= atol + rtol |expected|; lists by element, booleans and words exactly.

    A null stands for what a library leaves out: an open end or no number.
    """
    if isinstance(expected, list):
        items = list(np.asarray(got)) if np.ndim(got) else [got]
        return len(items) == len(expected) and all(
            agrees(g, e, rtol=rtol, atol=atol) for g, e in zip(items, expected, strict=True)
        )
    if isinstance(expected, bool):
        return bool(got) is expected
    if expected is None:
        return got is None or not math.isfinite(float(got))
    wanted, found = float(number(expected)), float(got)
    if not math.isfinite(wanted):
        return found == wanted or (math.isnan(found) and math.isnan(wanted))
    return abs(found - wanted) <= atol + rtol * abs(wanted)


def faults(case: dict[str, Any]) -> list[str]:
    """What is wrong with the answer to a case; nothing if it passes."""
    adapter = ADAPTERS.get(case["kind"])
    if adapter is None:
        return [f"kind {case['kind']!r} is unknown"]
    try:
        found = adapter(case["inputs"])
    except Exception as error:  # noqa: BLE001 - whatever a case does, the others are run
        return [f"{type(error).__name__}: {error}"]
    wrong = []
    for key, expected in case["expected"].items():
        if key not in found:
            wrong.append(f"{key}: not computed")
        elif not agrees(
            found[key], expected, rtol=case.get("rtol", 0.0), atol=case.get("atol", 0.0)
        ):
            wrong.append(f"{key}: got {found[key]}, expected {expected}")
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """Run a folder's cases and say which failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.statcases")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with *.json case files")
    folder = parser.parse_args(arguments).folder
    passed = failed = 0
    for case in cases(folder):
        wrong = faults(case)
        passed, failed = passed + (not wrong), failed + bool(wrong)
        for fault in wrong:
            print(f"FAILED {case['kind']}/{case['name']}: {fault}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
