"""Bad input to every public function: a ValueError or "cannot say" as documented, nothing else.

Each function has an example that it answers. Hypothesis puts what no caller should send in the
place of some of its arguments: NaN, infinities, negative, fractional and huge counts, empty arms,
one unit, no spread, no events, 1e9 and 1e300, other shapes and types. Then either the function
refuses with a ValueError, or every number of its answer is one: NaN only where the function's
documentation says "NaN", never a warning, never another exception.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any, Final, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import control.stats
from control.stats import (
    bandits,
    bayes,
    bucketed,
    cdfseq,
    classifiers,
    clusters,
    confseq,
    counts,
    cuped,
    drift,
    effects,
    looks,
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
    verdictcells,
    verdicts,
)

ALL: Final = frozenset({"*"})
NONE: Final[frozenset[str]] = frozenset()


class Entry(NamedTuple):
    """One function with arguments that it answers.

    nan: Fields (or "*") that its documentation lets be NaN, undecided. infinite: The same of
    infinity.
    """

    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    nan: frozenset[str] = NONE
    infinite: frozenset[str] = NONE


CELL = moments.moments([1.0, 2.0, 4.0])
OTHER = moments.moments([2.0, 3.0, 7.0, 1.0])
PAIR = moments.pair_moments([1.0, 2.0, 4.0], [1.0, 3.0, 2.0])
OTHER_PAIR = moments.pair_moments([2.0, 3.0, 7.0, 1.0], [1.0, 2.0, 4.0, 2.0])
SHARE = proportions.Share(3, 10)
OTHER_SHARE = proportions.Share(6, 12)
BETA = bayes.BetaPosterior(3.0, 8.0)
USERS = clusters.Clusters([1, 0, 2], [2, 1, 3])
OTHERS = clusters.Clusters([1, 3, 2], [2, 4, 3])
ARMS = {"control": CELL, "treatment": OTHER}
PAIRS = {"control": PAIR, "treatment": OTHER_PAIR}
SHARES = {"control": SHARE, "treatment": OTHER_SHARE}
LEVEL = {"alpha": 0.05}
SIDED = {"alpha": 0.05, "alternative": "two-sided"}
VALUES = [1.0, 2.0, 4.0, 4.0]
ENDS = frozenset({"ci_low", "ci_high", "low", "high", "bound"})
REWARDS = [[[3.0, 1.0], [4.0, 6.0]]]
TRIES = [[[10.0, 10.0], [20.0, 30.0]]]
DRAWN = [[0.5, 0.5]]
EFFECT = looks.Effect("m", 0.1, -0.1, 0.3)
ARM = looks.Arm(500, 60, 30, 470)
LOOK = looks.Look(primary=EFFECT, control=ARM, treatment=ARM, duration_s=60.0)
POLICY = looks.Policy(minimum_improvement=0.01, equivalence=0.02)
CELLS = verdictcells.Cells(
    primary=verdictcells.Effects([0.1], [-0.1], [0.3]),
    control=verdictcells.Arms([500]),
    treatment=verdictcells.Arms([500]),
)

ENTRIES: Final = (
    Entry(bandits.p_best_betas, {"arms": [BETA, bayes.BetaPosterior(2.0, 5.0)]}),
    Entry(bandits.p_best_normals, {"means": [1.0, 2.0], "ses": [0.5, 1.0]}),
    Entry(bandits.top_two_weights, {"prob_best": [0.25, 0.75], "beta": 0.5}),
    Entry(bandits.with_floor, {"weights": [0.25, 0.75], "floor": 0.1}),
    Entry(bandits.stratified_means, {"rewards": REWARDS, "counts": TRIES}, ALL),
    Entry(bandits.propensity_means, {"rewards": REWARDS, "counts": TRIES, "shares": DRAWN}, ALL),
    Entry(
        bandits.stratified_difference,
        {"rewards": REWARDS, "counts": TRIES, "control": 0, "treatment": 1},
        ALL,
    ),
    Entry(
        bandits.propensity_difference,
        {"rewards": REWARDS, "counts": TRIES, "shares": DRAWN, "control": 0, "treatment": 1},
        ALL,
    ),
    Entry(
        bayes.beta_posterior, {"successes": 3, "trials": 10, "prior_a": 1.0, "prior_b": 1.0}
    ),
    Entry(bayes.compare_betas, {"control": BETA, "treatment": bayes.BetaPosterior(5.0, 8.0)}),
    Entry(bayes.compare_gauss, ARMS | LEVEL | {"prior": bayes.GaussPrior(0.0, 1.0)}),
    Entry(
        bucketed.bucketed_difference,
        {
            "control_y": [[1.0, 2.0]], "control_n": [[3.0, 4.0]],
            "treatment_y": [[2.0, 2.0]], "treatment_n": [[3.0, 3.0]],
        },
        ALL,
    ),
    Entry(bucketed.bucket_sums, {"y": [[1.0, 2.0], [3.0, 2.0]], "n": [[4.0, 5.0], [6.0, 6.0]]}),
    Entry(bucketed.design_effect, {"y": [9.0, 8.0, 7.0], "n": [30.0, 20.0, 20.0]}),
    Entry(
        cdfseq.dkw_radius,
        {"n": 100.0, "alpha": 0.05, "n_min": 10.0, "leading": 0.85},
        infinite=ALL,
    ),
    Entry(
        cdfseq.quantile_sequence,
        {"values": VALUES, "q": 0.5, "alpha": 0.05, "t_opt": 100.0, "alpha_opt": 0.05},
        infinite=ENDS,
    ),
    Entry(
        cdfseq.sequence_ranks,
        {"n": 100, "q": 0.5, "alpha": 0.05, "t_opt": 100.0, "alpha_opt": 0.05},
    ),
    Entry(
        cdfseq.quantile_ab,
        {"control": VALUES, "treatment": [3.0, 1.0], "q": 0.5, "t_opt": 100.0, "alpha_opt": 0.05},
    ),
    Entry(
        cdfseq.quantile_ab_counts,
        {"control": [1, 2, 4], "treatment": [0, 3, 2], "q": 0.5, "t_opt": 9.0, "alpha_opt": 0.05},
    ),
    Entry(
        classifiers.ratio_sums,
        {"counts": classifiers.Confusion(3, 1, 2, 9), "metric": "precision"},
    ),
    Entry(classifiers.classifier_scores, {"counts": classifiers.Confusion(3, 1, 2, 9)}, ALL),
    Entry(clusters.cluster_robust, {"control": USERS, "treatment": OTHERS}),
    Entry(clusters.bucket_ratio, {"y": [1.0, 2.0, 0.5], "n": [3.0, 2.0, 1.0]}),
    Entry(clusters.jackknife_variance, {"leave_one_out": [0.1, 0.2, 0.15]}),
    Entry(clusters.bucket_jackknife, {"control": USERS, "treatment": OTHERS}),
    Entry(
        clusters.bucket_jackknife_of,
        {"statistic": lambda s: s[..., 0] + s[..., 1], "sums": [[1.0, 2.0], [3.0, 4.0]]},
    ),
    Entry(confseq.best_rho, {"v_opt": 10.0, "alpha": 0.05, "one_sided": False}),
    Entry(confseq.normal_log_mixture, {"s": 3.0, "v": 5.0, "rho": 2.0, "one_sided": True}),
    Entry(
        confseq.normal_mixture_bound, {"v": 5.0, "alpha": 0.05, "rho": 2.0, "one_sided": True}
    ),
    Entry(
        confseq.normal_sequence,
        {"diff": 0.1, "variance": 0.01, "tau2": 0.02, "alpha": 0.05, "null": 0.0},
    ),
    Entry(confseq.sequence_rho, {"n_star": 1e4, "alpha": 0.05, "one_sided": True}),
    Entry(
        confseq.asymptotic_sequence,
        {"diff": 0.1, "variance": 0.01, "n": 200.0, "n_star": 1e4} | SIDED,
    ),
    Entry(confseq.asymptotic_means, ARMS | SIDED | {"n_star": 1e4}),
    Entry(
        confseq.msprt,
        {
            "diff": 0.1, "sigma": 1.0, "n_control": 10, "n_treatment": 12, "tau": 0.2,
            "alpha": 0.05, "null": 0.0,
        },
    ),
    Entry(confseq.t_radius, {"n": 50, "coefficients": 2, "alpha": 0.05, "g": 1.0}),
    Entry(
        confseq.t_sequence,
        {"estimate": 1.0, "std_error": 0.5, "n": 50, "coefficients": 2, "alpha": 0.05, "g": 1.0},
    ),
    Entry(
        confseq.bernoulli_sequence,
        {"successes": 3, "trials": 10, "alpha": 0.05, "t_opt": 100.0, "alpha_opt": 0.05},
    ),
    Entry(
        counts.count_evidence,
        {"counts": [3, 5], "weights": [1.0, 2.0], "concentration": 100.0},
    ),
    Entry(
        counts.log_rate_ratio_sequence,
        {"counts": [3, 5], "weights": [1.0, 2.0], "concentration": 100.0, "alpha": 0.05},
        infinite=ENDS,
    ),
    Entry(
        counts.tilt_log_e,
        {
            "events_treatment": [1, 2], "events": [3, 5], "treatment_share": [0.1, 0.5],
            "log_odds_ratios": [0.5, 1.0], "prior": [1.0, 2.0],
        },
    ),
    Entry(cuped.cuped, PAIRS | SIDED | {"theta": 0.5}),
    Entry(cuped.relative_lift, ARMS | SIDED),
    Entry(
        drift.binned_drift,
        {"reference": [3, 5, 2], "current": [4, 4, 4], "alpha": 0.001, "psi_least": 0.1},
    ),
    Entry(
        drift.kolmogorov_smirnov,
        {"reference": VALUES, "current": [3.0, 1.0]},
        frozenset({"p_asymptotic", "p_exact"}),
    ),
    Entry(effects.effect_size, ARMS, ALL),
    Entry(means.estimate, {"diff": 1.0, "se": 0.5, "df": 10.0, "null": 0.0} | SIDED),
    Entry(means.welch, ARMS | SIDED | {"null": 0.0}),
    Entry(means.mean_variances, ARMS),
    Entry(
        means.cautious_variance,
        {"variance_c": 0.1, "n_c": 100.0, "variance_t": 0.3, "n_t": 10.0},
    ),
    Entry(moments.moments, {"values": VALUES}),
    Entry(moments.pair_moments, {"y": VALUES, "x": [1.0, 1.0, 2.0, 0.0]}),
    Entry(moments.moments_from_summary, {"n": 5, "mean": 2.0, "variance": 1.0}),
    Entry(moments.moments_from_sums, {"n": 5, "total": 10.0, "sum_sq": 30.0, "shift": 1.0}),
    Entry(
        moments.pair_moments_from_sums,
        {"n": 3, "sum_y": 6.0, "sum_x": 3.0, "sum_sq_y": 14.0, "sum_sq_x": 5.0, "sum_yx": 8.0},
    ),
    Entry(moments.merge_all, {"parts": [CELL, OTHER]}),
    Entry(multiplicity.adjust, {"p_values": [0.1, 0.01], "method": "holm", "alpha": 0.05}),
    Entry(multiplicity.e_bh, {"e_values": [30.0, 1.0], "alpha": 0.05}),
    Entry(
        noninferiority.non_inferior_means,
        ARMS | LEVEL | {"margin": 0.1, "direction": "lower_is_better"},
        ALL,
    ),
    Entry(
        noninferiority.non_inferior_proportions,
        SHARES | LEVEL | {"margin": 0.1, "direction": "higher_is_better"},
        ALL,
    ),
    Entry(
        paired.mcnemar,
        {"only_first": 3, "only_second": 5, "both_right": 9, "both_wrong": 2},
        frozenset({"chi2", "p", "chi2_corrected", "p_corrected"}),
    ),
    Entry(
        power.power_means,
        {
            "delta": 0.1, "sd": 1.0, "power": 0.8, "ratio_treatment_to_control": 1.0,
            "use_t": True,
        } | SIDED,
    ),
    Entry(
        power.power_proportions,
        {
            "p_control": 0.1, "p_treatment": 0.2, "power": 0.8,
            "ratio_treatment_to_control": 1.0,
        } | SIDED,
    ),
    Entry(proportions.wilson, {"x": 3, "n": 10, "alpha": 0.05}),
    Entry(proportions.two_proportions, SHARES | SIDED),
    Entry(
        quantiles.quantile_interval,
        {"values": VALUES, "q": 0.5} | SIDED,
        frozenset({"ci_low", "ci_high"}),
        ENDS,
    ),
    Entry(quantiles.interval_ranks, {"n": 50, "q": 0.5} | SIDED),
    Entry(
        quantiles.quantile_se,
        {"lower": 1.0, "upper": 2.0, "n": 100, "alpha": 0.05, "n_bounds": 50},
    ),
    Entry(
        quantiles.quantile_se_clustered,
        {"se_iid": 0.1, "sums": quantiles.ClusterSums(3, 4.0, 8.0, 6.0, 26.0, 12.0), "q": 0.5},
    ),
    Entry(quantiles.sketch, {"values": VALUES, "accuracy": 0.01}),
    Entry(quantiles.merge_sketches, {"parts": [quantiles.sketch([1.0]), quantiles.sketch([2.0])]}),
    Entry(quantiles.sketch_quantiles, {"of": quantiles.sketch([1.0, 2.0]), "q": 0.5}),
    Entry(
        ranks.mann_whitney,
        {"control": VALUES, "treatment": [3.0, 1.0], "alternative": "less"},
        frozenset({"p_value"}),
    ),
    Entry(
        ranks.mann_whitney_histogram,
        {"control": [1, 2, 3], "treatment": [2, 0, 4], "alternative": "less"},
        frozenset({"p_value"}),
    ),
    Entry(ranks.auc_histogram, {"positive": [1, 2, 3], "negative": [2, 0, 4]}),
    Entry(ranks.auc_of_pairs, {"won": 3.0, "positives": 3, "negatives": 4}),
    Entry(ratios.ratio_variance, {"arm": PAIR}),
    Entry(ratios.ratio_delta, PAIRS | SIDED, frozenset({"rel_diff", "rel_se"})),
    Entry(
        sequential.spent_alpha, {"information_fractions": [0.5, 1.0], "alpha": 0.05, "phi": 2.0}
    ),
    Entry(
        sequential.group_sequential_bounds,
        {"information_fractions": [0.5, 1.0], "alpha": 0.05, "phi": 2.0, "sides": 2},
    ),
    Entry(srm.srm_chi2, {"counts": [3, 5], "weights": [1.0, 2.0]}),
    Entry(
        strata.stratified,
        {
            "diffs": [0.1, 0.2], "variances": [0.01, 0.02], "weighting": "population",
            "units": [10.0, 20.0],
        },
        frozenset({"q_p"}),
    ),
    Entry(
        strata.stratified_proportions,
        {
            "control": proportions.Share([3, 4], [10, 9]),
            "treatment": proportions.Share([5, 4], [10, 11]),
        },
        frozenset({"mh_odds_ratio", "cmh", "cmh_p"}),
    ),
    Entry(looks.Policy, dataclasses.asdict(POLICY), ALL, ALL),
    Entry(verdictcells.judge_all, {"cells": CELLS, "policy": POLICY}),
    Entry(verdicts.judge, {"look": LOOK, "policy": POLICY}),
    Entry(verdicts.projected_units, {"look": LOOK, "policy": POLICY}),
)  # fmt: skip
NAMES: Final = [f"{e.function.__module__.split('.')[-1]}.{e.function.__name__}" for e in ENTRIES]

# Whose arguments were checked by those who call them, or that are the checks.
INNER: Final = frozenset(
    {
        *("bayes.beta_quantiles", "bayes.normal_quantiles", "bayes.panels", "bayes.p_best"),
        *("confseq.beta_binomial_log_mixture", "drift.population_stability", "means.welch_df"),
        *("proportions.check_share", "proportions.pooled_variance", "proportions.wald_variance"),
        *("looks.check_look", "looks.oriented", "moments.merge", "moments.merge_pairs"),
        *("bayes.beta_density", "bayes.check_posterior"),
    }
)
INNER_MODULES: Final = frozenset({"errors", "distributions", "roots"})

SCALARS: Final = st.one_of(
    st.sampled_from(
        [
            *(math.nan, math.inf, -math.inf, 0, 0.0, -0.0, 1, -1, 2, 0.5, -0.5, 1.5, 3, 100),
            *(1e9, -1e9, 10**9, 1e-9, 1e-300, 5e-324, 1e18, 1e80, -1e80, 1e150, 1e300, -1e308),
            *(2**53, 10**400, True, False, None, "1", "nan", 1 + 1j, [], [1.0], [[1.0, 2.0]]),
        ]
    ),
    st.floats(),
    st.floats(-10, 10),
    st.integers(-3, 1_000),
)
NUMBERS: Final = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.0, -1.0, 0.5, 1e9, 1e300, 5e-324]),
    st.floats(-10, 10),
    st.integers(0, 50),
)


def bad(like: Any) -> st.SearchStrategy[Any]:
    """Values that have no place where `like` has one, or hardly."""
    if callable(like):
        return st.just(like)
    if isinstance(like, str):
        return st.sampled_from(["", "x", "greater", "less", "two-sided", "bh", like])
    if isinstance(like, bool):
        return st.booleans()
    if isinstance(like, Enum):
        return st.just(like)
    if isinstance(like, quantiles.Sketch):
        return st.sampled_from([quantiles.sketch([]), quantiles.sketch([0.0], accuracy=0.5), like])
    if isinstance(like, tuple) and hasattr(like, "_fields"):
        return _one_field(like)
    if dataclasses.is_dataclass(like) and not isinstance(like, type):
        return _one_attribute(like)
    if isinstance(like, np.ndarray) and not like.ndim:
        return SCALARS
    if isinstance(like, (list, np.ndarray)) and len(like) and not _numeric(like):
        return st.one_of(st.just([]), st.just(list(like[:1])), st.lists(bad(like[0]), max_size=3))
    if isinstance(like, (list, np.ndarray)):
        return _arrays(like)
    return SCALARS


def _numeric(values: Any) -> bool:
    try:
        np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return not hasattr(values[0], "_fields")


@st.composite
def _one_field(draw: st.DrawFn, like: Any) -> Any:
    field = draw(st.sampled_from(like._fields))
    value = draw(bad(getattr(like, field)))
    # State is of arrays; lists are for arguments.
    state = isinstance(like, (moments.Moments, moments.PairMoments))
    return like._replace(**{field: np.asarray(value) if state else value})


@st.composite
def _one_attribute(draw: st.DrawFn, like: Any) -> Any:
    field = draw(st.sampled_from([field.name for field in dataclasses.fields(like)]))
    value = getattr(like, field)
    if value is None or (isinstance(value, tuple) and not value):
        return like
    try:
        return dataclasses.replace(like, **{field: draw(bad(value))})
    except ValueError:
        return like  # refused where it is made


@st.composite
def _arrays(draw: st.DrawFn, like: Any) -> Any:
    array = np.asarray(like, dtype=np.float64)
    way = draw(st.integers(0, 5))
    if way == 0:
        place = draw(st.integers(0, array.size - 1))
        flat = array.ravel().copy()
        flat[place] = draw(NUMBERS)
        return flat.reshape(array.shape)
    if way == 1:
        return np.full(array.shape, draw(NUMBERS))
    if way == 2:
        return draw(st.lists(NUMBERS, max_size=5))
    if way == 3:
        return draw(st.sampled_from([array[:1], array[..., :0], array[None], array[0], array * 0]))
    if way == 4:
        return array + draw(st.sampled_from([1e9, 1e15, -1e9])) if draw(st.booleans()) else -array
    return draw(SCALARS)


@st.composite
def spoiled(draw: st.DrawFn, entry: Entry) -> dict[str, Any]:
    """The arguments with one to three of them replaced."""
    names = draw(st.lists(st.sampled_from(list(entry.arguments)), min_size=1, max_size=3))
    return dict(entry.arguments) | {name: draw(bad(entry.arguments[name])) for name in names}


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every number in an answer, with its field's name."""
    if hasattr(value, "_fields"):
        for field in value._fields:
            yield from leaves(field, getattr(value, field))
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from leaves(str(key), one)
    elif dataclasses.is_dataclass(value):
        for one_field in dataclasses.fields(value):
            yield from leaves(one_field.name, getattr(value, one_field.name))
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from leaves(name, one)
    elif isinstance(value, (int, float, np.ndarray, np.generic)):
        yield name, np.asarray(value)


def check_answer(entry: Entry, answer: Any) -> None:
    undecided = [part for part in _parts(answer) if not np.all(part.decided)]
    nan = ALL if undecided else entry.nan
    for field, value in leaves("*", answer):
        if value.dtype.kind != "f":
            continue
        if "*" not in nan and field not in nan:
            assert not np.any(np.isnan(value)), f"{field} is NaN in {answer}"
        one_sided = field in ENDS or field in ("df", "log_e")
        if "*" not in entry.infinite and field not in entry.infinite and not one_sided:
            assert not np.any(np.isinf(value)), f"{field} is infinite in {answer}"


def _parts(answer: Any) -> list[Any]:
    parts = [answer, *(answer if isinstance(answer, tuple) else ())]
    return [part for part in parts if hasattr(part, "decided")]


def answered(entry: Entry, arguments: Mapping[str, Any]) -> Any:
    """Its answer, or the refusal."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return entry.function(**arguments)
        except ValueError as refusal:
            return refusal


@pytest.mark.parametrize("entry", ENTRIES, ids=NAMES)
def test_function_refuses_or_answers_whatever_it_is_given(entry: Entry) -> None:
    answer = answered(entry, entry.arguments)
    assert not isinstance(answer, ValueError), answer
    check_answer(entry, answer)

    @settings(max_examples=EXAMPLES)
    @given(spoiled(entry))
    def survives(arguments: dict[str, Any]) -> None:
        answer = answered(entry, arguments)
        if not isinstance(answer, ValueError):
            check_answer(entry, answer)

    survives()


EXAMPLES: Final = 25  # HYPOTHESIS_PROFILE=long tries more: make soak


def test_every_public_function_is_tried() -> None:
    found = set()
    for module in pkgutil.iter_modules(control.stats.__path__):
        if module.name in INNER_MODULES:
            continue
        loaded = importlib.import_module(f"control.stats.{module.name}")
        for name, function in inspect.getmembers(loaded, inspect.isfunction):
            if function.__module__ == loaded.__name__ and not name.startswith("_"):
                found.add(f"{module.name}.{name}")
    assert found - INNER - set(NAMES) == set()


@pytest.mark.parametrize("entry", ENTRIES, ids=NAMES)
@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.1, math.nan, math.inf, None, "0.05", [0.05]])
def test_alpha_outside_its_range_is_refused(entry: Entry, alpha: Any) -> None:
    if "alpha" not in entry.arguments:
        return
    refusal = answered(entry, dict(entry.arguments) | {"alpha": alpha})
    assert isinstance(refusal, ValueError), refusal
    assert "alpha" in str(refusal)
