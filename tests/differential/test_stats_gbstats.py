"""On random data sets: the numbers of GrowthBook's gbstats, where the definition is the same.

gbstats computes variances from raw sums of squares, and p-values as 1 - cdf; so its variances keep
1e-16 x (sum of squares / sum of squared deviations), and its p-values 1e-16 of 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from control.stats.bayes import GaussPrior, compare_gauss
from control.stats.confseq import asymptotic_means
from control.stats.cuped import cuped, relative_lift
from control.stats.means import welch
from control.stats.moments import Moments, moments
from control.stats.quantiles import ClusterSums, quantile_se, quantile_se_clustered
from control.stats.ratios import ratio_delta
from control.stats.srm import srm_chi2
from tests.differential.statpeers import ask_gbstats, sums
from tests.differential.statworlds import WORLDS, World, agree, worlds

LEAST = 750  # worlds that a comparison must have reached; in the others an arm has no spread
ALPHA = 0.03
TINY = 2e-15  # what 1 - cdf leaves of a p-value


def lost(*arms: Moments) -> float:
    """Relative error of a variance from raw sums of squares."""
    return max(
        8e-16 * float(arm.m2 + arm.n * arm.mean**2) / float(arm.m2) for arm in arms if arm.m2 > 0
    )


def varied() -> list[World]:
    """Worlds in which both arms vary: without, gbstats answers p = 1 and a difference of 0."""
    return [world for world in worlds() if all(world.spread)]


def ask(found: list[World], of: str, **more: Any) -> list[dict[str, Any]]:
    """Compare each world's arms by metric alone ("mean"), with its covariate or denominator."""
    calls = []
    for world in found:
        second = {"mean": None, "adjusted": "x", "ratio": "d"}[of]
        arms = {
            side: sums(arm.y, getattr(arm, second) if second else None)
            for side, arm in (("control", world.control), ("treatment", world.treatment))
        }
        calls.append({"call": "compare", "of": of, "alpha": ALPHA} | arms | more)
    return ask_gbstats(calls)


def test_welch_is_gbstats() -> None:
    done = 0
    for world, theirs in zip(found := varied(), ask(found, "mean"), strict=True):
        ours = welch(*world.arms, alpha=ALPHA)
        if not world.control.y.sum():
            continue  # it refuses a baseline of 0
        rtol = max(1e-9, lost(*world.arms))
        agree(ours.diff, theirs["diff"], f"diff of {world.name}", scale=float(ours.se))
        agree(ours.se, theirs["se"], f"se of {world.name}", rtol=rtol)
        agree(ours.ci_low, theirs["low"], world.name, scale=float(ours.se), rtol=rtol)
        agree(ours.ci_high, theirs["high"], world.name, scale=float(ours.se), rtol=rtol)
        agree(ours.p_value, theirs["p_value"], f"p of {world.name}", atol=TINY, rtol=rtol)
        done += 1
    assert done >= LEAST


def test_relative_lift_is_gbstats() -> None:
    done = 0
    found = varied()
    for world, theirs in zip(found, ask(found, "mean", relative=True), strict=True):
        ours = relative_lift(*world.arms, alpha=ALPHA)
        if not ours.decided:
            continue  # a baseline within 3 standard errors of 0: gbstats says a number
        rtol = max(1e-9, lost(*world.arms))
        agree(ours.lift, theirs["diff"], f"lift of {world.name}", scale=1.0)
        agree(ours.se, theirs["se"], f"se of {world.name}", rtol=rtol)
        agree(ours.ci_low, theirs["low"], world.name, scale=1.0, rtol=rtol)
        agree(ours.ci_high, theirs["high"], world.name, scale=1.0, rtol=rtol)
        agree(ours.p_value, theirs["p_value"], f"p of {world.name}", atol=TINY, rtol=rtol)
        done += 1
    assert done >= 400


def test_ratio_is_gbstats() -> None:
    """Its interval is Student's, ours the normal's: the errors are compared."""
    done = 0
    for world, theirs in zip(found := varied(), ask(found, "ratio"), strict=True):
        if theirs["message"] is not None:
            continue
        c, t = world.ratios
        ours = ratio_delta(c, t)
        agree(ours.diff, theirs["diff"], f"diff of {world.name}", scale=float(ours.se))
        agree(ours.se, theirs["se"], f"se of {world.name}", rtol=max(1e-9, lost(c.y, t.y)))
        done += 1
    assert done >= LEAST


def test_adjusted_difference_is_gbstats() -> None:
    """Its interval is Student's, ours the normal's: estimates and errors are compared."""
    done = 0
    for world, theirs in zip(found := varied(), ask(found, "adjusted"), strict=True):
        c, t = world.covariates
        if theirs["message"] is not None or not (c.m2_x > 0 and t.m2_x > 0):
            continue
        ours = cuped(c, t)
        rtol = max(1e-9, 10 * lost(c.y, t.y, c.x, t.x))
        agree(ours.theta, theirs["theta"], f"theta of {world.name}", rtol=rtol)
        se = float(ours.unadjusted.se)
        agree(ours.adjusted.diff, theirs["diff"], f"diff of {world.name}", scale=se, rtol=rtol)
        agree(ours.adjusted.se, theirs["se"], f"se of {world.name}", scale=se, rtol=rtol)
        done += 1
    assert done >= LEAST


@pytest.mark.parametrize("n_star", [100.0, 5_000.0, 200_000.0])
def test_confidence_sequence_is_gbstats(n_star: float) -> None:
    done = 0
    for world, theirs in zip(found := varied(), ask(found, "mean", n_star=n_star), strict=True):
        if theirs["message"] is not None:
            continue
        ours = asymptotic_means(*world.arms, n_star=n_star, alpha=ALPHA)
        rtol = max(1e-9, lost(*world.arms))
        width = float(ours.half_width)
        agree(ours.ci_low, theirs["low"], f"low of {world.name}", scale=width, rtol=rtol)
        agree(ours.ci_high, theirs["high"], f"high of {world.name}", scale=width, rtol=rtol)
        # The e-value is an exponential: what a variance loses, its p-value loses as often.
        growth = 1 + abs(float(ours.log_e))
        agree(ours.p_value, theirs["p_value"], world.name, rtol=rtol * growth, atol=1e-300)
        done += 1
    assert done >= LEAST


@pytest.mark.parametrize("with_prior", [False, True])
def test_chance_to_beat_is_gbstats(with_prior: bool) -> None:
    found = varied()
    calls, priors = [], []
    for world in found:
        plain = welch(*world.arms)
        prior = GaussPrior(float(plain.se) * 0.3, float(plain.se) ** 2 * 4) if with_prior else None
        arms = {"control": sums(world.control.y), "treatment": sums(world.treatment.y)}
        calls.append({"call": "bayes", "alpha": ALPHA, "prior": prior} | arms)
        priors.append(prior)
    for world, prior, theirs in zip(found, priors, ask_gbstats(calls), strict=True):
        ours = compare_gauss(*world.arms, prior=prior, alpha=ALPHA)
        rtol = max(1e-9, lost(*world.arms))
        agree(ours.p_beat, theirs["p_beat"], f"chance of {world.name}", rtol=rtol)
        agree(ours.ci_low, theirs["low"], world.name, scale=ours.sd, rtol=rtol)
        agree(ours.ci_high, theirs["high"], world.name, scale=ours.sd, rtol=rtol)
        for name in ("loss_treatment", "loss_control"):
            mine = getattr(ours, name)
            agree(mine, theirs[name], f"{name} of {world.name}", rtol=rtol, atol=TINY * ours.sd)
    assert len(found) >= LEAST


def test_errors_of_quantiles_are_gbstats() -> None:
    calls, mine = [], []
    for number in range(WORLDS):
        rng = np.random.default_rng((11, number))
        users, q = int(rng.integers(2, 300)), float(rng.uniform(0.05, 0.99))
        n = 1 + rng.poisson(4.0, users)
        s = rng.binomial(n, rng.beta(2 * q, 2 * (1 - q), users))
        events = int(n.sum())
        low = 10 ** rng.uniform(-3, 9)
        high = low * (1 + rng.random())
        seen = min(events, int(rng.integers(100, 1_000)))
        se = quantile_se(low, high, n=events, n_bounds=seen)
        products = (np.sum(s * s), np.sum(n * n), np.sum(s * n))
        whole = ClusterSums(users, float(s.sum()), float(events), *(float(v) for v in products))
        mine.append((se, quantile_se_clustered(se, whole, q=q)))
        names = ("main_sum_squares", "denominator_sum_squares", "main_denominator_sum_product")
        calls.append(
            {
                "call": "quantile",
                "n": events,
                "n_star": seen,
                "nu": q,
                "quantile_hat": low,
                "quantile_lower": low,
                "quantile_upper": high,
                "sums": {
                    "main_sum": float(s.sum()),
                    "denominator_sum": float(events),
                    "n_clusters": users,
                    **{name: float(value) for name, value in zip(names, products, strict=True)},
                },
            }
        )
    for number, (ours, theirs) in enumerate(zip(mine, ask_gbstats(calls), strict=True)):
        agree(ours[0], theirs["se"], f"se {number}")
        agree(ours[1], theirs["se_clustered"], f"clustered {number}", scale=1e-3 * ours[0])


def test_sample_ratio_is_gbstats() -> None:
    calls = []
    for number in range(WORLDS):
        rng = np.random.default_rng((12, number))
        weights = rng.choice([1.0, 5.0, 50.0, 94.0], int(rng.integers(2, 7)))
        counts = rng.multinomial(int(10 ** rng.uniform(0, 7)), weights / weights.sum())
        calls.append({"call": "srm", "counts": counts.tolist(), "weights": weights.tolist()})
    for call, theirs in zip(calls, ask_gbstats(calls), strict=True):
        ours = srm_chi2(call["counts"], call["weights"])
        agree(ours.p_value, theirs["p_value"], str(call), atol=1e-300)


def test_gbstats_loses_a_billion_that_we_keep() -> None:
    """A spread of 1 around 1e9: raw sums of squares have no digit of it."""
    rng = np.random.default_rng(13)
    c, t = (1e9 + rng.integers(-2, 3, 500).astype(np.float64) for _ in range(2))
    arms = {"control": sums(c), "treatment": sums(t)}
    theirs = ask_gbstats([{"call": "compare", "of": "mean", "alpha": ALPHA} | arms])[0]
    ours = welch(moments(c), moments(t))
    exact = np.sqrt(np.var(c - 1e9, ddof=1) / 500 + np.var(t - 1e9, ddof=1) / 500)
    agree(ours.se, exact, "se")
    assert abs(theirs["se"] / exact - 1) > 0.01
