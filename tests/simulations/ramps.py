"""P3: the candidate's share rises while the base rate drifts. Pooled counts then lie."""

from __future__ import annotations

from typing import Final

import numpy as np

from control.stats.confseq import asymptotic_sequence
from control.stats.counts import tilt_log_e
from control.stats.means import estimate
from control.stats.proportions import Share, pooled_variance, two_proportions
from control.stats.strata import stratified
from tests.simulations import liveramp
from tests.simulations.figures import SEED, Claim, Figure, rate_within

STAGES: Final = (0.01, 0.05, 0.10, 0.25, 0.50)
BASES: Final = (0.05, 0.06, 0.07, 0.08, 0.09)
USERS_PER_STAGE: Final = 20_000
ALPHA: Final = 0.05
HARM_ALPHA: Final = 0.01
LOOKS_PER_STAGE: Final = 20
MINUTES: Final = 720
REQUESTS_PER_S: Final = 100.0
EVENTS_LEAST: Final = 10


def run(*, long: bool) -> list[Figure]:
    """Bias and error rates over the ramp 1-5-10-25-50 %."""
    return [
        *_effects(20_000 if long else 4_000),
        *_harm(2_000 if long else 1_000),
        *liveramp.run(2_000 if long else 300),
    ]


def _effects(reps: int) -> list[Figure]:
    rng = np.random.default_rng([SEED, 30])
    n_t = rng.binomial(USERS_PER_STAGE, STAGES, (reps, len(STAGES))).astype(np.float64)
    n_c = USERS_PER_STAGE - n_t
    x_c, x_t = (rng.binomial(n.astype(int), BASES).astype(np.float64) for n in (n_c, n_t))
    diffs = x_t / n_t - x_c / n_c
    ours = stratified(diffs, pooled_variance(x_c, n_c, x_t, n_t), units=n_c + n_t)
    rejected = estimate(ours.diff, np.sqrt(ours.variance), alpha=ALPHA).p_value < ALPHA
    pooled = two_proportions(
        Share(x_c.sum(axis=1), n_c.sum(axis=1)), Share(x_t.sum(axis=1), n_t.sum(axis=1))
    )
    naive, world = "counts pooled over the stages", "A/A ramp 1-5-10-25-50 %, base 5 to 9 %"
    return [
        Figure(
            plan="P3",
            what=f"{world}, strata by epoch: different at the end (z)",
            reps=reps,
            ours=Claim(float(rejected.mean()), "<=", 0.06),
            naive=naive,
            theirs=Claim(float((pooled.p_value < ALPHA).mean()), ">=", 0.9),
        ),
        Figure(
            plan="P3",
            what=f"{world}: bias in standard errors of {reps:,} reps",
            reps=reps,
            ours=Claim(abs(_bias(ours.diff)), "<=", 3.0),
            naive=naive,
            theirs=Claim(abs(_bias(pooled.diff)), ">=", 10.0),
            unit="number",
        ),
        _sequence(1_000, world),
    ]


def _bias(diff: np.ndarray) -> float:
    return float(diff.mean() / (diff.std(ddof=1) / np.sqrt(len(diff))))


def _sequence(reps: int, world: str) -> Figure:
    """The same, looked at 20 times in each stage; epochs that are too young are left out."""
    rng = np.random.default_rng([SEED, 31])
    shape = (reps, len(STAGES), LOOKS_PER_STAGE)
    share, base = np.array(STAGES)[:, None], np.array(BASES)[:, None]
    here_t = rng.binomial(USERS_PER_STAGE // LOOKS_PER_STAGE, share, shape)
    here_c = USERS_PER_STAGE // LOOKS_PER_STAGE - here_t
    here = (rng.binomial(here_c, base), here_c, rng.binomial(here_t, base), here_t)
    # (reps, looks, stages): what each look knows of each stage.
    counts = []
    for each in here:
        known = np.zeros((reps, len(STAGES) * LOOKS_PER_STAGE, len(STAGES)))
        for stage in range(len(STAGES)):
            begin = stage * LOOKS_PER_STAGE
            known[:, begin : begin + LOOKS_PER_STAGE, stage] = np.cumsum(each[:, stage], axis=1)
            known[:, begin + LOOKS_PER_STAGE :, stage] = each[:, stage].sum(axis=1)[:, None]
        counts.append(known)
    x_c, n_c, x_t, n_t = counts
    ready = (np.minimum(x_c, x_t) >= EVENTS_LEAST) & (np.minimum(n_c, n_t) >= 100)
    safe_c, safe_t = np.where(ready, n_c, 1.0), np.where(ready, n_t, 1.0)
    diffs = np.where(ready, x_t / safe_t - x_c / safe_c, 0.0)
    variance = np.where(ready, pooled_variance(x_c, safe_c, x_t, safe_t), 0.0)
    units = np.where(ready, n_c + n_t, 0.0)
    any_ready = ready.any(axis=-1)
    units[~any_ready, 0] = 1.0  # decided nowhere: variance 0
    joined = stratified(diffs, variance, units=units)
    sequence = asymptotic_sequence(
        joined.diff, joined.variance, n=units.sum(axis=-1), n_star=50_000, alpha=ALPHA
    )
    crossed = (sequence.p_value <= ALPHA) & any_ready
    total_c, total_t = n_c.sum(axis=-1), n_t.sum(axis=-1)
    pooled = two_proportions(
        Share(x_c.sum(axis=-1), total_c), Share(x_t.sum(axis=-1), np.maximum(total_t, 1))
    )
    return Figure(
        plan="P3",
        what=f"{world}, strata by epoch: different in 100 looks (sequence)",
        reps=reps,
        ours=rate_within(float(crossed.any(axis=1).mean()), ALPHA, reps),
        naive="pooled z-test at each look",
        theirs=Claim(float((pooled.p_value < ALPHA).any(axis=1).mean()), ">=", 0.9),
    )


def _harm(reps: int) -> list[Figure]:
    """The harm e-process: 100 requests/s, 12 h, five stages, the base error rate doubling."""
    rng = np.random.default_rng([SEED, 32])
    per_stage = MINUTES // len(STAGES)
    stage = np.arange(MINUTES) // per_stage
    share = np.array(STAGES)[stage]
    base = np.linspace(0.01, 0.02, MINUTES)
    errors = rng.poisson(REQUESTS_PER_S * 60 * base, (reps, MINUTES))
    mine = rng.binomial(errors, share)
    # Within a stage the share is one: its minutes add up to one bucket, at each look.
    member = stage == np.arange(len(STAGES))[:, None]
    known_mine, known_all = (
        np.cumsum(each[:, :, None] * member.T, axis=1)[:, 4::5] for each in (mine, errors)
    )
    log_e = tilt_log_e(known_mine, known_all, treatment_share=np.array(STAGES))
    crossed = (log_e >= -np.log(HARM_ALPHA)).any(axis=1)
    requests = REQUESTS_PER_S * 60
    n_t = np.cumsum(requests * share)[4::5].round()
    n_c = np.cumsum(requests * (1 - share))[4::5].round()
    x_t = np.cumsum(mine, axis=1)[:, 4::5]
    x_c = np.cumsum(errors - mine, axis=1)[:, 4::5]
    naive = two_proportions(Share(x_c, n_c), Share(x_t, n_t), alternative="greater")
    return [
        Figure(
            plan="P3",
            what="A/A, errors 1 to 2 % over the ramp, 12 h, every 5 min: harm found (tilt)",
            reps=reps,
            ours=rate_within(float(crossed.mean()), HARM_ALPHA, reps),
            naive="pooled z-test at each look",
            theirs=Claim(float((naive.p_value < HARM_ALPHA).any(axis=1).mean()), ">=", 0.9),
        )
    ]
