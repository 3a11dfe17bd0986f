"""What judging costs: `python -m tests.benchmarks.assess [--rounds N] [--json FILE]`.

Many cells: 10,000 experiments x metrics of one policy, in arrays, from sums by bucket to the
verdict: ratios with their variances over buckets, the primary's sequence, a guardrail's harm and
loss, the table. `table alone` is its last step. One look: an experiment at the end of its ramp,
from what sidecars counted to the verdict with its sentence, as the control plane does it once a
second.

A figure is CPU time of all threads, the least of the rounds: what disturbs only adds to it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from control.rollout import judging
from control.rollout.cells import Cells as Counted
from control.rollout.policy import GuardrailPolicy, Margin, Policy, PrimaryPolicy
from control.rollout.reduce import reduce
from control.stats.clusters import bucket_ratio
from control.stats.confseq import asymptotic_sequence
from control.stats.means import cautious_variance
from control.stats.verdictcells import Arms, Cells, Effects, Guardrails, Verdicts, judge_all
from control.stats.verdicts import Policy as Rules
from tests.control import cell_worlds, rollout_worlds
from turnout.contract import UNIT_BUCKETS

CELLS: Final = 10_000
CELLS_AT_ONCE: Final = 500  # their sums stay in the processor's cache
BUCKETS: Final = (64, UNIT_BUCKETS)
REQUESTS: Final = (5_760.0, 640.0)  # of control and treatment in a cell
ERROR_RATE: Final = 0.02
RAMP_PPM: Final = (10_000, 50_000, 100_000, 250_000, 500_000)
STRATA: Final = ("new", "old")
USERS: Final = 20_000  # of an epoch and stratum
ROUNDS: Final = 9
GOAL_CELLS_S: Final = 1.0
GOAL_LOOK_MS: Final = 10.0
RULES: Final = Rules(minimum_improvement=0.002, equivalence=0.002, min_units=100)

Floats = npt.NDArray[np.float64]


class Sums(NamedTuple):
    """Errors and requests of both arms, shapes (cells, buckets)."""

    y_c: Floats
    n_c: Floats
    y_t: Floats
    n_t: Floats


class Figures(NamedTuple):
    """Seconds for `cells` cells, or one look."""

    name: str
    cells: int
    seconds: float
    goal_s: float


def many(cells: int, buckets: int) -> Sums:
    """Cells of both arms, one in ten with a treatment that fails twice as often."""
    random = np.random.default_rng(3)
    rate = np.where(np.arange(cells) % 10 == 0, 2 * ERROR_RATE, ERROR_RATE)
    made: list[Floats] = []
    for requests, p in zip(REQUESTS, (np.full(cells, ERROR_RATE), rate), strict=True):
        n = random.poisson(requests / buckets, (cells, buckets))
        made += [random.binomial(n, p[:, None]).astype(np.float64), n.astype(np.float64)]
    return Sums(*made)


def evidence(sums: Sums) -> Cells:
    """From sums by bucket to what the table reads; errors, of which less is better."""
    buckets = sums.y_c.shape[1]
    control, treatment = bucket_ratio(sums.y_c, sums.n_c), bucket_ratio(sums.y_t, sums.n_t)
    y_c, n_c, y_t, n_t = (field.sum(axis=1) for field in sums)
    variance = cautious_variance(control.variance, n_c, treatment.variance, n_t)
    gain, n = control.ratio - treatment.ratio, n_c + n_t
    both = asymptotic_sequence(gain, variance, n=n, n_star=5_000)
    harm = asymptotic_sequence(gain, variance, n=n, n_star=5_000, alpha=0.01, alternative="less")
    return Cells(
        primary=Effects(gain, both.ci_low, both.ci_high),
        control=Arms(n_c, np.full(len(n_c), buckets), y_c, n_c - y_c),
        treatment=Arms(n_t, np.full(len(n_t), buckets), y_t, n_t - y_t),
        guardrails=Guardrails(
            Effects(gain[:, None], both.ci_low[:, None], harm.ci_high[:, None]), 0.005
        ),
        duration_s=3600.0,
    )


def judged(sums: Sums) -> list[Verdicts]:
    """The verdicts of all cells, some at once."""
    places = range(0, len(sums.y_c), CELLS_AT_ONCE)
    parts = (Sums(*(field[at : at + CELLS_AT_ONCE] for field in sums)) for at in places)
    return [judge_all(evidence(part), RULES) for part in parts]


def ramp() -> tuple[Counted, Policy]:
    """The cells of an experiment with five epochs and two strata, and what it asks for."""
    control, candidate = cell_worlds.CONTROL, cell_worlds.V2
    arms: dict[tuple[int, str, int], cell_worlds.Arm] = {}
    splits = {}
    for epoch, ppm in enumerate(RAMP_PPM, 1):
        splits[epoch] = {control: 1_000_000 - ppm, candidate: ppm}
        for stratum in range(len(STRATA) + 1):
            users = {name: USERS * share // 1_000_000 for name, share in splits[epoch].items()}
            one = cell_worlds.Arm(users[control], accuracy=0.90)
            other = cell_worlds.Arm(users[candidate], accuracy=0.91)
            arms |= cell_worlds.both(one, other, epoch=epoch, stratum=stratum)
    policy = rollout_worlds.policy(
        rollout_worlds.ab_step(),
        primary=PrimaryPolicy("accuracy", Margin(absolute=0.005)),
        guardrails=(
            GuardrailPolicy("error_rate", Margin(absolute=0.02)),
            GuardrailPolicy("latency_p95", Margin(absolute=50.0), 200.0),
        ),
        strata=STRATA,
    )
    return cell_worlds.cells(arms, splits=splits), policy


def look(cells: Counted, policy: Policy) -> judging.CandidateVerdict:
    """One look at one experiment."""
    run = rollout_worlds.started(policy)
    looks = reduce(cells, policy)
    assert looks is not None
    now_ms = run.step_start_ms + 3_600_000
    return judging.verdict(looks, policy, policy.steps[0], cell_worlds.V2, run=run, now_ms=now_ms)


def _least(work: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return min(taken)


def measure(rounds: int) -> list[Figures]:
    """All of it, each part after what it needs is made."""
    figures = []
    for buckets in BUCKETS:
        sums = many(CELLS, buckets)
        found = {kind for part in judged(sums) for kind in part.codes.tolist()}
        assert len(found) > 1, "cells that differ are judged alike"
        seconds = _least(lambda sums=sums: judged(sums), rounds)  # type: ignore[misc]
        figures.append(Figures(f"{buckets} buckets each", CELLS, seconds, GOAL_CELLS_S))
    arrays = evidence(many(CELLS, BUCKETS[0]))
    seconds = _least(lambda: judge_all(arrays, RULES), rounds)
    figures.append(Figures("table alone", CELLS, seconds, GOAL_CELLS_S))
    cells, policy = ramp()
    assert look(cells, policy).kind != "WARMING_UP"
    seconds = _least(lambda: look(cells, policy), rounds * 10)
    name = f"one look, {len(cells.cells)} cells of {UNIT_BUCKETS} buckets"
    return [*figures, Figures(name, 1, seconds, GOAL_LOOK_MS / 1000)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    figures = measure(options.rounds)
    for one in figures:
        reached = "reached" if one.seconds <= one.goal_s else "NOT reached"
        goal = f"goal <= {1000 * one.goal_s:g} ms: {reached}"
        what = one.name if one.cells == 1 else f"{one.cells:,} cells, {one.name}"
        print(f"{what}: {1000 * one.seconds:.1f} ms; {goal}")
    if options.json is not None:
        options.json.write_text(json.dumps([one._asdict() for one in figures], indent=1) + "\n")
    return int(any(one.seconds > one.goal_s for one in figures))


if __name__ == "__main__":
    sys.exit(main())
