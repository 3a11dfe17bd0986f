"""Units of A/B comparisons: textbook numbers, the price of looking at any time, monotone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.planning.comparison import (
    Comparison,
    effect_of,
    plan_comparison,
    sequential_inflation,
    units_needed,
)
from control.planning.inputs import DAY_S, Assumptions, Traffic
from control.rollout.policy import Margin
from control.rollout.reduce import N_STAR
from control.stats.confseq import asymptotic_sequence

TRAFFIC = Traffic(10.0, units_per_day=20_000.0)
ASSUMED = Assumptions(TRAFFIC, {"accuracy": 0.9, "error_rate": 0.05, "latency_p95": 180.0})
ASKED = Comparison("accuracy", 0.01, 0.05, 0.95, 0.8, 0.5, 0.5, random=False)
SEED = 20261122


def asked(**changes: object) -> Comparison:
    """The usual comparison, changed."""
    return dataclasses.replace(ASKED, **changes)  # type: ignore[arg-type]


def test_units_are_the_textbook_s_when_there_is_one_look() -> None:
    # 2 p (1 - p) (1.96 + 0.8416)^2 / d^2 with each arm's own variance under the alternative.
    needed = units_needed(ASKED, 0.01, ASSUMED)
    assert needed is not None
    assert needed.n_control == pytest.approx(13_495, rel=0.01)
    assert needed.n_treatment == pytest.approx(needed.n_control)


def test_looking_at_any_time_costs_the_published_factor_when_it_is_tuned_to_the_size() -> None:
    # 1.92 at the last look, of a sequence tuned at the fixed size (simulated, 80 % power).
    found = sequential_inflation(alpha=0.05, power=0.8, trials=N_STAR)
    assert found == pytest.approx(1.92, abs=0.04)
    assert sequential_inflation(alpha=0.05, power=0.8, trials=N_STAR * 100) < 2.7


@pytest.mark.parametrize("trials", [2_000, 20_000])
def test_looking_at_any_time_finds_the_effect_as_often_as_planned(trials: int) -> None:
    """1,000 tests with 40 looks each: one standard error of a power of 80 % is 1.3 %."""
    random = np.random.default_rng(SEED)
    effect = 2.8016 / np.sqrt(trials)  # in standard deviations of a difference of one trial
    most = sequential_inflation(alpha=0.05, power=0.8, trials=trials) * trials
    times = np.linspace(most / 40, most, 40)
    steps = np.diff(times, prepend=0.0)
    paths = np.cumsum(random.normal(effect * steps, np.sqrt(steps), (1_000, 40)), axis=1)
    looks = asymptotic_sequence(
        paths / times, np.broadcast_to(1 / times, paths.shape), n=times, n_star=N_STAR, alpha=0.05
    )
    decided = looks.ci_low > 0
    # A look at the end alone has the planned power; earlier looks can only add to it.
    assert 0.75 < decided[:, -1].mean() < 0.85
    assert decided.any(axis=1).mean() >= 0.79


def test_days_and_weeks_follow_from_the_units_of_both_arms() -> None:
    planned = plan_comparison(asked(candidate=0.2, control=0.6), TRAFFIC, ASSUMED, maximum_s=None)
    assert planned.candidate_units is not None
    assert planned.seconds is not None
    # The smaller arm waits longest: 4,000 new units a day.
    assert planned.seconds / DAY_S == pytest.approx(planned.candidate_units / 4_000, rel=0.02)
    assert planned.weeks == 1
    assert planned.detectable is None


def test_units_that_come_back_make_it_longer() -> None:
    times = []
    for returning in (0.0, 0.5, 0.9, 1.0):
        traffic = Traffic(10.0, 2_000.0, returning)
        times.append(plan_comparison(ASKED, traffic, ASSUMED, maximum_s=None).seconds)
    assert times[0] < times[1] < times[2]  # type: ignore[operator]
    assert times[3] is None


def test_maximum_can_find_the_effect_that_it_is_long_enough_for() -> None:
    planned = plan_comparison(ASKED, TRAFFIC, ASSUMED, maximum_s=None)
    assert planned.seconds_most is not None
    enough = plan_comparison(ASKED, TRAFFIC, ASSUMED, maximum_s=planned.seconds_most)
    assert enough.detectable == pytest.approx(ASKED.effect, rel=0.02)
    short = plan_comparison(ASKED, TRAFFIC, ASSUMED, maximum_s=planned.seconds_most / 4)
    assert short.detectable is not None
    assert short.detectable > 1.8 * ASKED.effect
    minute = plan_comparison(ASKED, TRAFFIC, ASSUMED, maximum_s=60.0)
    assert minute.detectable is not None
    assert minute.detectable > 0.05


def test_spread_that_is_given_counts_instead_of_a_rate_s_own() -> None:
    narrow = Assumptions(TRAFFIC, ASSUMED.baselines, {"accuracy": 0.1})
    given_units = units_needed(ASKED, 0.01, narrow)
    own = units_needed(ASKED, 0.01, ASSUMED)
    assert given_units is not None
    assert own is not None
    assert given_units.n_control < own.n_control / 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metric": "recall"}, "--baseline recall=VALUE"),
        ({"metric": "revenue_per_user"}, "--standard-deviation revenue_per_user=VALUE"),
        ({"metric": "unheard-of"}, "kind Metric"),
        ({"effect": 0.0}, "no minimumImprovement"),
        ({"effect": 0.2}, "cannot become 1.1"),
    ],
)
def test_comparison_says_what_is_missing_when_it_cannot_be_planned(
    changes: dict[str, object], said: str
) -> None:
    planned = plan_comparison(asked(**changes), TRAFFIC, ASSUMED, maximum_s=None)
    assert planned.candidate_units is None
    assert said in planned.text


def test_time_is_not_known_when_units_are_not() -> None:
    planned = plan_comparison(ASKED, Traffic(10.0), ASSUMED, maximum_s=DAY_S)
    assert planned.candidate_units is not None
    assert (planned.seconds, planned.detectable) == (None, None)
    assert "say --units-per-day" in planned.text


def test_effect_is_relative_to_the_baseline_when_the_margin_is() -> None:
    assert effect_of(Margin(relative=0.1), 0.05) == pytest.approx(0.005)
    assert effect_of(Margin(relative=0.1), None) == 0.0
    assert effect_of(Margin(absolute=0.01), None) == 0.01
    assert effect_of(None, 0.05) == 0.0


@settings(max_examples=30)
@given(
    metric=st.sampled_from(["accuracy", "error_rate", "latency_p95"]),
    effect=st.floats(0.002, 0.02),
    share=st.floats(0.02, 0.9),
    more=st.floats(1.05, 4.0),
)
def test_more_traffic_or_effect_never_takes_longer_and_finds_no_less(
    metric: str, effect: float, share: float, more: float
) -> None:
    scale = 200.0 if metric == "latency_p95" else 1.0
    one = asked(metric=metric, effect=effect * scale, candidate=share, control=1 - share)
    base = plan_comparison(one, TRAFFIC, ASSUMED, maximum_s=3 * DAY_S)
    busy = plan_comparison(one, TRAFFIC.scaled(more), ASSUMED, maximum_s=3 * DAY_S)
    large = plan_comparison(
        dataclasses.replace(one, effect=one.effect * min(more, 0.045 / effect)),
        TRAFFIC,
        ASSUMED,
        maximum_s=3 * DAY_S,
    )
    assert base.seconds is not None
    assert base.seconds_most is not None
    for better in (busy, large):
        assert better.seconds is not None
        assert better.seconds_most is not None
        assert better.seconds <= base.seconds * 1.001
        assert better.seconds_most <= base.seconds_most * 1.01
    if base.detectable is not None:
        assert busy.detectable is not None
        assert busy.detectable <= base.detectable * 1.01
