"""Every figure of the plan is within its bound, and every naive method beside it fails.

Seeded: the same numbers on every run. A bound is the plan's: a nominal rate plus three standard
errors at the repetitions used, or a limit with room. The figures are in control/stats/README.md.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from control.rollout.bounds import log_sample_ratio
from control.stats.counts import count_evidence
from control.stats.verdictcells import judge_all
from control.stats.verdicts import Arm, Effect, Look, judge
from tests.simulations import decisions
from tests.simulations.figures import Claim, Figure, table
from tests.simulations.plan import PLAN
from tests.simulations.streams import World, bernoulli

README = Path(__file__).parents[2] / "control" / "stats" / "README.md"


@pytest.mark.parametrize("name", PLAN)
def test_plan_holds_and_the_naive_methods_fail(name: str) -> None:
    _hold(PLAN[name](long=False))


@pytest.mark.soak
@pytest.mark.parametrize("name", PLAN)
def test_plan_holds_and_the_naive_methods_fail_at_full_length(name: str) -> None:
    _hold(PLAN[name](long=True))


def _hold(figures: list[Figure]) -> None:
    print(table(figures))
    assert [figure.fault for figure in figures if figure.fault] == []
    assert any(figure.theirs is not None for figure in figures)


def test_simulated_looks_are_judged_alike_one_by_one_and_together() -> None:
    """The decisions of P7 are those of `judge`, at each look of 40 experiments."""
    found = 0
    for truth in (-0.02, 0.0, 0.005, 0.02):
        world = World(10, decisions.LOOKS, decisions.USERS_PER_LOOK)
        counts = bernoulli(world, 0.1, 0.1 + truth, np.random.default_rng(5))
        cells = decisions.cells_of(counts)
        rule = decisions.policy("point")
        together = judge_all(cells, rule)
        primary = [np.asarray(field) for field in cells.primary]
        for at in np.ndindex(together.codes.shape):
            arms = [
                Arm(int(n[at]), events=int(x[at]), non_events=int(n[at] - x[at]))
                for x, n in ((counts.x_c, counts.n_c), (counts.x_t, counts.n_t))
            ]
            effect = Effect("rate", *(float(field[at]) for field in primary))
            alone = judge(Look(primary=effect, control=arms[0], treatment=arms[1]), rule)
            found += int(together.are(alone.kind)[at])
    assert found == 4 * 10 * decisions.LOOKS


def test_live_sample_ratio_is_the_one_that_is_simulated() -> None:
    rng = np.random.default_rng(6)
    for _ in range(50):
        counts = rng.integers(0, 50_000, 3)
        shares = rng.dirichlet([5, 5, 5])
        live = log_sample_ratio(counts.tolist(), shares.tolist())
        simulated = float(count_evidence(counts, shares, concentration=1000.0).log_e)
        assert math.isclose(live, simulated, rel_tol=1e-9, abs_tol=1e-6)


def test_figure_names_its_fault_when_a_bound_or_a_naive_method_holds_out() -> None:
    good = Figure(plan="P0", what="x", reps=1, ours=Claim(0.01, "<=", 0.06))
    assert good.fault == ""
    bad = Figure(plan="P0", what="x", reps=1, ours=Claim(0.07, "<=", 0.06))
    assert bad.fault == "P0 x: 7 %, must be <= 6 %"
    tame = Figure(
        plan="P0",
        what="x",
        reps=1,
        ours=good.ours,
        naive="peeked",
        theirs=Claim(0.05, ">=", 0.25),
    )
    assert tame.fault == "P0 x: peeked gives 5 %, must be >= 25 %"
    assert Figure(plan="P0", what="x", reps=1, ours=Claim(math.nan, "<=", 1.0)).fault


def test_readme_shows_figures_of_every_part_of_the_plan() -> None:
    shown = set(re.findall(r"^\| (P\d) \|", README.read_text(), re.M))
    assert shown == set(PLAN)
