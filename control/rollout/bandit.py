"""A bandit step: what each variant earns, and the next split. Pure.

Owns when a bandit looks, what it learns from evidence by bucket of units, and the shares that
follow from it. Refuses to judge harm (`assess` does, whatever the shares are) and to draw: shares
are the probabilities themselves, by quadrature, so that the same evidence gives the same split.

Looks are at times fixed beforehand, multiples of `every`: the first five of them, then each when a
fifth more time has gone. So a step has at most `LOOKS_MAX` epochs, all of which are kept, and no
epoch is as long as it is because of what was seen in it (batches that grow lose next to nothing:
Gao, Han, Ren, Zhou 2019, arXiv 1904.01763).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from control.model.defaults import TOP_TWO
from control.model.steps import BANDIT_EPOCHS_MAX
from control.rollout import plain
from control.rollout.cells import Cell, Cells
from control.rollout.policy import BanditPolicy, Policy
from control.rollout.run import PAST_EPOCHS_MAX, Run
from control.rollout.seen import ArmSeen, BanditSeen, Interval
from control.stats.bandits import (
    ArmDifference,
    p_best_betas,
    propensity_difference,
    propensity_means,
    stratified_difference,
    stratified_means,
    top_two_weights,
    with_floor,
)
from control.stats.bayes import BetaPosterior
from control.stats.confseq import asymptotic_sequence
from turnout.contract import BUCKET_COUNT

LOOKS_AT_FIRST: Final = 5
GROWTH: Final = 1.2
LOOKS_MAX: Final = 28
# Shares are whole thousandths: less than that is not worth an epoch, nor the last bit of a sum.
SHARE_PPM: Final = 1_000
# Half the sum of all changes below which the split stays: an epoch costs the lanes their blocks.
MOVE_PPM_MIN: Final = 10_000
ALPHA: Final = 0.05
# Requests at 50:50 at which the confidence sequence is tightest; fixed before the first look.
N_STAR: Final = 5_000
METRIC_ACCURACY: Final = "accuracy"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Split:
    """What a look comes to.

    Attributes:
        ppm: Every variant, control too -> parts per million, adding up to all.
        probabilities: Of being the best, by variant.
    """

    ppm: dict[str, int]
    probabilities: dict[str, float]


# -- When it looks --------------------------------------------------------------------------------


def looks(every_ms: int, dwell_ms: int) -> list[int]:
    """When a step looks, milliseconds after its start, ascending; the end is no look.

    Args:
        every_ms: Shortest time between two looks.
        dwell_ms: How long the step lasts, at most `BANDIT_EPOCHS_MAX` times that.
    """
    found, k = [], 1
    while k * every_ms < dwell_ms:
        found.append(k * every_ms)
        k = k + 1 if k < LOOKS_AT_FIRST else max(k + 1, math.ceil(k * GROWTH))
    assert len(found) <= LOOKS_MAX < PAST_EPOCHS_MAX or dwell_ms > BANDIT_EPOCHS_MAX * every_ms
    return found


def look_due(run: Run, bandit: BanditPolicy, dwell_ms: int, *, now_ms: int) -> int:
    """Number of the last look whose time has come, from 1; 0 = none has."""
    gone_ms = now_ms - run.step_start_ms
    return sum(at_ms <= gone_ms for at_ms in looks(bandit.every_ms, dwell_ms))


def next_look_ms(run: Run, bandit: BanditPolicy, dwell_ms: int) -> int:
    """When the next look is, Unix milliseconds; the end of the step after the last one."""
    times = looks(bandit.every_ms, dwell_ms)
    ahead = times[run.bandit_looks] if run.bandit_looks < len(times) else dwell_ms
    return run.step_start_ms + ahead


# -- What it learns -------------------------------------------------------------------------------


def observe(cells: Cells, run: Run, policy: Policy) -> BanditSeen | None:
    """What the variants of a bandit step have earned in all its epochs; None before there is any.

    Args:
        cells: By bucket of units, of all epochs of the run.
        run: In a bandit step, or ended in one.
        policy: Of the revision that runs.
    """
    bandit = policy.steps[run.step].bandit
    # What has ended is served by nobody: its last epoch comes once more, without a split.
    served = [epoch for epoch in cells.epochs if epoch.split_ppm]
    epochs = [epoch for epoch in served if epoch.epoch >= run.bandit_epoch > 0]
    if bandit is None or not epochs:
        return None
    names = (policy.control, *policy.candidates)
    arrays = [
        [_rewards(cells.of(epoch.epoch, name), bandit.metric) for name in names] for epoch in epochs
    ]
    rewards = np.array([[x for x, _ in row] for row in arrays], dtype=np.float64)
    counts = np.array([[n for _, n in row] for row in arrays], dtype=np.float64)
    if not counts.any():
        return None
    if policy.unit_random:  # every request is a unit of its own: no bucket holds one whole
        rewards, counts = (part.sum(axis=2, keepdims=True) for part in (rewards, counts))
    shares = [[epoch.split_ppm.get(name, 0) / BUCKET_COUNT for name in names] for epoch in epochs]
    missing = sum(
        cell.missing for key, cell in cells.cells.items() if key.epoch >= run.bandit_epoch
    )
    return earnings(names, rewards, counts, np.array(shares), missing=missing)


def _rewards(strata: Mapping[int, Cell], metric: str) -> tuple[Floats, Floats]:
    """Rewards and requests of one variant in one epoch by bucket, all strata together."""
    found = list(strata.values()) or [Cell()]
    if metric == METRIC_ACCURACY:
        right = sum((cell.tp + cell.tn for cell in found), start=np.float64(0))
        labelled = sum((cell.labelled for cell in found), start=np.float64(0))
        return np.asarray(right), np.asarray(labelled)
    served = sum((cell.requests for cell in found), start=np.float64(0))
    good = sum((cell.requests - cell.errors for cell in found), start=np.float64(0))
    return np.asarray(good), np.asarray(served)


def earnings(
    names: tuple[str, ...],
    rewards: Floats,
    counts: Floats,
    shares: Floats,
    *,
    missing: int = 0,
) -> BanditSeen:
    """What arrays by bucket of units come to.

    Args:
        names: The variants, control first.
        rewards: Shape (epochs, variants, buckets); one bucket = requests are units of their own.
        counts: Requests, the same shape.
        shares: By design, shape (epochs, variants).
        missing: Requests that are in no bucket.
    """
    requests = counts.sum(axis=(0, 2))
    strata = stratified_means(rewards, counts)
    weighted = propensity_means(rewards, counts, shares)
    arms = [
        ArmSeen(
            variant=name,
            requests=int(requests[index]),
            mean=_share(strata.mean[index]),
            variance=_finite(strata.variance[index]),
            propensity_mean=_share(weighted.mean[index]),
        )
        for index, name in enumerate(names)
    ]
    for index in range(1, len(names)):
        pair = {"control": 0, "treatment": index}
        arms[index] = ArmSeen(
            variant=arms[index].variant,
            requests=arms[index].requests,
            mean=arms[index].mean,
            variance=arms[index].variance,
            propensity_mean=arms[index].propensity_mean,
            strata=_interval(stratified_difference(rewards, counts, **pair)),
            propensity=_interval(propensity_difference(rewards, counts, shares, **pair)),
        )
    means = [arm.mean for arm in arms if arm.mean is not None]
    regret = uniform = 0.0
    if len(means) == len(arms):
        best = max(means)
        lost = [best - mean for mean in means]
        regret = float(sum(arm.requests * loss for arm, loss in zip(arms, lost, strict=True)))
        uniform = float(requests.sum() * sum(lost) / len(lost))
    return BanditSeen(tuple(arms), len(counts), regret, uniform, missing)


def _interval(found: ArmDifference) -> Interval | None:
    """The 95 % confidence sequence of a difference; None without one."""
    if not found.effective > 0 or not found.variance > 0:
        return None
    at = asymptotic_sequence(
        found.diff, found.variance, n=found.effective, n_star=N_STAR, alpha=ALPHA
    )
    return Interval(float(at.diff), float(at.ci_low), float(at.ci_high))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _share(value: float) -> float | None:
    """A mean reward: weights that add up to 1 but for the last bit make none of more than 1."""
    return min(max(float(value), 0.0), 1.0) if math.isfinite(value) else None


# -- What follows from it -------------------------------------------------------------------------


def enough(seen: BanditSeen | None, bandit: BanditPolicy) -> bool:
    """True when every variant has what shares may first move on."""
    return seen is not None and all(
        arm.requests >= bandit.minimum_requests and arm.mean is not None for arm in seen.arms
    )


def next_split(seen: BanditSeen, bandit: BanditPolicy) -> Split:
    """The shares that the evidence asks for.

    Thompson sampling's probability of being the best, or top-two's mixture with the runner-up,
    above the floor. An arm's posterior is the Beta with its mean and variance: by bucket of units,
    so that a few busy users make nobody sure.

    Args:
        seen: With a mean for every arm; control first.
        bandit: See `BanditPolicy`.
    """
    best = probabilities(seen)
    weights = top_two_weights(best) if bandit.algorithm == TOP_TWO else best
    shares = with_floor(weights, floor=bandit.floor)
    names = [arm.variant for arm in seen.arms]
    return Split(
        _rounded(dict(zip(names, map(float, shares), strict=True)), bandit.floor, names[0]),
        dict(zip(names, map(float, best), strict=True)),
    )


def probabilities(seen: BanditSeen) -> Floats:
    """P(variant is the best one), in the order of the arms, adding up to 1."""
    return p_best_betas([_posterior(arm) for arm in seen.arms])


def _posterior(arm: ArmSeen) -> BetaPosterior:
    assert arm.mean is not None
    assert arm.variance is not None
    # Trials that were as telling: p (1 - p) / variance, never more than there were.
    smooth = (arm.mean * arm.requests + 1) / (arm.requests + 2)
    trials = min(smooth * (1 - smooth) / arm.variance, float(arm.requests))
    return BetaPosterior(1 + arm.mean * trials, 1 + (1 - arm.mean) * trials)


def _rounded(shares: Mapping[str, float], floor: float, control: str) -> dict[str, int]:
    """Shares as whole `SHARE_PPM`; control takes what is left, and nobody is below the floor."""
    least = math.ceil(round(floor * BUCKET_COUNT, 3))
    ppm = {
        name: max(least, round(share * BUCKET_COUNT / SHARE_PPM) * SHARE_PPM)
        for name, share in shares.items()
        if name != control
    }
    short = least - (BUCKET_COUNT - sum(ppm.values()))
    while short > 0:
        # Rounding and the floor took it; the largest can spare it.
        name = max(sorted(ppm), key=lambda key: ppm[key])
        taken = min(short, ppm[name] - least)
        ppm[name] -= taken
        short -= taken
        if not taken:
            break  # all are at the floor, which is 1 / arms: control has the rest
    return {control: BUCKET_COUNT - sum(ppm.values()), **ppm}


def moved_ppm(before: Mapping[str, int], after: Mapping[str, int]) -> int:
    """Units that change their variant between two splits, parts per million."""
    return sum(max(0, after[name] - before.get(name, 0)) for name in after)


def winner(seen: BanditSeen | None) -> str:
    """The best variant that is shown to be better than control; "" = control, or nothing shown."""
    if seen is None:
        return ""
    better = [
        arm
        for arm in seen.arms
        if arm.strata is not None and arm.strata.lower > 0 and arm.mean is not None
    ]
    return max(better, key=lambda arm: arm.mean or 0.0).variant if better else ""


def all_worse(seen: BanditSeen | None) -> bool:
    """True when every candidate is shown to be worse than control."""
    if seen is None:
        return False
    return all(arm.strata is not None and arm.strata.upper < 0 for arm in seen.arms[1:])


# -- Words ----------------------------------------------------------------------------------------


def learnt(seen: BanditSeen, split: Split) -> str:
    """What a look found: means and probabilities."""
    return ", ".join(
        f"{arm.variant} earns {plain.percent(arm.mean or 0.0)} of {plain.count(arm.requests)} and "
        f"is best with {plain.percent(split.probabilities[arm.variant])}"
        for arm in seen.arms
    )


def too_few(seen: BanditSeen | None, bandit: BanditPolicy) -> str:
    """Which variants have fewer requests than shares may move on."""
    if seen is None:
        return f"no request has earned or missed a reward yet ({bandit.metric})"
    short = [arm for arm in seen.arms if arm.requests < bandit.minimum_requests]
    named = ", ".join(f"{arm.variant} has {plain.count(arm.requests)}" for arm in short)
    if not named:
        return "no epoch has requests in every variant yet"
    return f"{named} of {plain.count(bandit.minimum_requests)} requests"


def compared(seen: BanditSeen | None) -> str:
    """Every candidate against control, within epochs."""
    if seen is None:
        return "nothing was earned"
    control = seen.arms[0].variant
    parts = []
    for arm in seen.arms[1:]:
        if arm.strata is None:
            parts.append(f"{arm.variant} cannot be compared with {control} yet")
            continue
        at = arm.strata
        parts.append(
            f"{arm.variant} earns {_points(at.estimate)} against {control} (95 % confidence "
            f"sequence {_points(at.lower)} to {_points(at.upper)})"
        )
    return "; ".join(parts)


def _points(difference: float) -> str:
    return f"{100 * difference:+.3g} points"
