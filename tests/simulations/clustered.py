"""P2: users are assigned, requests are counted. Whose variance is it?

A user's failing rate is his own (beta), and so is his number of requests; users arrive one after
another over the experiment. The variance of the rate is then about ten times that of as many
independent requests (the design effect).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from control.stats.clusters import bucket_ratio
from control.stats.confseq import asymptotic_sequence
from control.stats.means import cautious_variance
from control.stats.moments import PairMoments, pair_moments_from_sums
from control.stats.proportions import Share, pooled_variance, two_proportions
from control.stats.ratios import ratio_variance
from tests.simulations.figures import SEED, Claim, Figure
from tests.simulations.streams import Floats

LOOKS: Final = 50
BEFORE: Final = 5  # as much time again as that many looks before the first: 100 units per arm
USERS: Final = 2048
REQUESTS_PER_LOOK: Final = 0.33
BETA: Final = (0.4, 1.6)
BUCKETS: Final = (64, 256, 1024)
ALPHA: Final = 0.05
FPR_MOST: Final = 0.07


class Rep(NamedTuple):
    """One experiment at each look, per method: difference and variance, shapes (looks,)."""

    users: Floats
    by_user: tuple[Floats, Floats]
    by_bucket: dict[int, tuple[Floats, Floats]]
    requests: tuple[Floats, Floats, Floats, Floats]  # x_c, n_c, x_t, n_t


def run(*, long: bool) -> list[Figure]:
    """Error rates and the honesty of standard errors."""
    reps = 4_000 if long else 1_000
    rng = np.random.default_rng([SEED, 20])
    found = [_experiment(rng) for _ in range(reps)]
    x_c, n_c, x_t, n_t = (np.stack(f) for f in zip(*(r.requests for r in found), strict=True))
    request = asymptotic_sequence(
        x_t / n_t - x_c / n_c,
        pooled_variance(x_c, n_c, x_t, n_t),
        n=n_c + n_t,
        n_star=n_c[0, -1] + n_t[0, -1],
        alpha=ALPHA,
    )
    tested = two_proportions(Share(x_c, n_c), Share(x_t, n_t), alpha=ALPHA).p_value < ALPHA
    users = np.stack([r.users for r in found])
    wrong = {
        "same sequence, requests as units": float((request.p_value <= ALPHA).any(axis=1).mean()),
        "z-test of requests, each look": float(tested.any(axis=1).mean()),
        "z-test of requests, last look": float(tested[:, -1].mean()),
    }
    methods = {"users": [r.by_user for r in found]}
    methods |= {f"{b} buckets": [r.by_bucket[b] for r in found] for b in BUCKETS}
    figures = []
    naives = iter([*wrong.items(), *wrong.items()])
    for name, states in methods.items():
        diff, variance = (np.stack(field) for field in zip(*states, strict=True))
        naive, value = next(naives)
        figures.append(
            Figure(
                plan="P2",
                what=f"A/A, sticky users, variance by {name}: different in {LOOKS} looks",
                reps=reps,
                ours=Claim(_different(diff, variance, users), "<=", FPR_MOST),
                naive=naive,
                theirs=Claim(value, ">=", 0.30),
            )
        )
        figures.append(_honesty(name, diff[:, -1], variance[:, -1], reps))
    x, n = (x_c + x_t)[:, -1], (n_c + n_t)[:, -1]
    effect = float(np.var(diff[:, -1]) / np.mean(x / n * (1 - x / n) * (4 / n)))
    figures.append(
        Figure(
            plan="P2",
            what="the world's design effect: true variance / that of requests",
            reps=reps,
            ours=Claim(effect, "within", 9.6, 1.5),
            unit="number",
        )
    )
    return figures


def _honesty(name: str, diff: Floats, variance: Floats, reps: int) -> Figure:
    ratio = float(np.sqrt(np.mean(variance)) / np.std(diff, ddof=1))
    # The standard deviation of so many reps errs by 1 / sqrt(2 reps) itself; at 1,000 three times
    # that is .067.
    return Figure(
        plan="P2",
        what=f"standard error by {name} / the true one, last look",
        reps=reps,
        ours=Claim(ratio, "within", 1.0, float(3 / np.sqrt(2 * reps))),
        unit="number",
    )


def _different(diff: Floats, variance: Floats, users: Floats) -> float:
    sequence = asymptotic_sequence(diff, variance, n=users, n_star=float(USERS), alpha=ALPHA)
    return float((sequence.p_value <= ALPHA).any(axis=1).mean())


def _experiment(rng: np.random.Generator) -> Rep:
    """A user's bucket is independent of his arm, as `hash(salt2, unit) mod B` makes it."""
    candidate = rng.permutation(USERS) < USERS // 2
    times = np.arange(LOOKS + BEFORE)[:, None]
    arrival = rng.integers(0, LOOKS + BEFORE, USERS)
    rate = rng.beta(*BETA, USERS)
    busy = rng.gamma(1.0, REQUESTS_PER_LOOK, USERS) * (times >= arrival)
    made = rng.poisson(busy)
    failed = rng.binomial(made, rate)
    n, y = (np.cumsum(each, axis=0, dtype=np.float64)[BEFORE:] for each in (made, failed))
    arms = [(y[:, mine], n[:, mine]) for mine in (~candidate, candidate)]
    users = [_moments(*arm) for arm in arms]
    (r_c, v_c), (r_t, v_t) = (ratio_variance(u) for u in users)
    by_user = r_t - r_c, cautious_variance(v_c, users[0].n, v_t, users[1].n)
    by_bucket = {}
    for buckets in BUCKETS:
        shape = (LOOKS, USERS // buckets, buckets)
        c, t = (
            bucket_ratio(
                (y * mine).reshape(shape).sum(axis=1), (n * mine).reshape(shape).sum(axis=1)
            )
            for mine in (~candidate, candidate)
        )
        by_bucket[buckets] = t.ratio - c.ratio, c.variance + t.variance
    (y_c, n_c), (y_t, n_t) = ((y.sum(axis=1), n.sum(axis=1)) for y, n in arms)
    return Rep(users[0].n + users[1].n, by_user, by_bucket, (y_c, n_c, y_t, n_t))


def _moments(y: Floats, n: Floats) -> PairMoments:
    """Over all users of an arm who came; those who have not come yet add 0 to every sum."""
    sums = {
        "sum_y": y.sum(axis=1),
        "sum_x": n.sum(axis=1),
        "sum_sq_y": (y * y).sum(axis=1),
        "sum_sq_x": (n * n).sum(axis=1),
        "sum_yx": (y * n).sum(axis=1),
    }
    return pair_moments_from_sums((n > 0).sum(axis=1), **sums)
