"""The table over arrays says of every cell what `judge` says of it alone, and is fast."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.stats import verdictcells as vc
from control.stats import verdicts as vd
from control.stats.clusters import bucket_ratio
from control.stats.confseq import asymptotic_sequence
from control.stats.means import cautious_variance
from control.stats.verdicts import Kind, judge

THRESHOLD = -math.log(0.001)
EDGES = (-5.0, -4.0, -2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 3.0)
# Few values, so that edges are met exactly and every row is reached.
numbers = st.sampled_from((*EDGES, math.nan, math.inf, -math.inf))
ordered = st.lists(st.sampled_from(EDGES), min_size=3, max_size=3).map(sorted)
effects = st.one_of(
    ordered.map(lambda e: vd.Effect("m", e[1], e[0], e[2])),
    ordered.map(lambda e: vd.Effect("m", e[1], e[0], e[2])),
    st.builds(vd.Effect, st.just("m"), numbers, numbers, numbers),
)
counts = st.sampled_from([0, 1, 9, 10, 49, 50, 99, 100, 300, 50_000])
enough = st.sampled_from([300, 50_000])
evidence = st.builds(
    vd.Evidence,
    st.just("e"),
    st.sampled_from([0.0, 0.0, 0.0, THRESHOLD - 1e-9, THRESHOLD, math.nan, math.inf]),
    st.sampled_from([0.001, 0.001, 1e-6]),
)


@st.composite
def arms(draw: st.DrawFn) -> vd.Arm:
    few = counts if draw(st.integers(0, 3)) == 0 else enough
    coverage = st.sampled_from([1.0, 1.0, 1.0, 0.5, math.nan])
    return vd.Arm(draw(few), draw(few), draw(few), draw(few), draw(coverage))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[vd.Look], vd.Policy]:
    """Looks with the same kinds of inputs, and their policy."""
    sizes = [draw(st.sampled_from([0, 0, 1, 2])) for _ in range(8)]

    def several(of: st.SearchStrategy[object], size: int) -> tuple[object, ...]:
        return tuple(draw(of) for _ in range(size))

    guardrail = st.builds(vd.Guardrail, effects, *[st.sampled_from([0.0, 1.0, 4.0])] * 2)
    stratum = st.builds(vd.Stratum, st.just("s"), effects)
    window = st.builds(
        vd.Window,
        st.just("w"),
        st.sampled_from([0.0, 0.05, 0.06, math.nan]),
        st.just(0.05),
        st.sampled_from([0.01, 0.012, 0.0]),
        counts,
        counts,
    )
    breaker = st.builds(vd.Breaker, st.just("b"), st.just(1.0), st.integers(0, 3), st.just(3))
    flip = st.builds(vd.Flips, st.just("f"), st.sampled_from([0, 1, 2]), st.just(100))
    alarm = st.just(vd.Alarm("simpson", "m"))
    kinds = (guardrail, stratum, evidence, window, breaker, evidence, evidence, flip)
    names = (
        "guardrails",
        "strata",
        "fast_lanes",
        "windows",
        "breakers",
        "sample_ratios",
        "losses",
        "flips",
    )
    looks = []
    for _ in range(draw(st.integers(1, 12))):
        fields = {n: several(k, size) for n, k, size in zip(names, kinds, sizes, strict=True)}
        base = vd.Look(
            primary=draw(effects),
            control=draw(arms()),
            treatment=draw(arms()),
            duration_s=draw(st.sampled_from([0.0, 3600.0, 1e6, math.nan])),
            alarms=(draw(alarm),) * draw(st.sampled_from([0, 0, 1])),
        )
        looks.append(replace(base, **fields))  # type: ignore[arg-type]
    policy = vd.Policy(
        minimum_improvement=draw(st.sampled_from([0.0, 1.0])),
        equivalence=draw(st.sampled_from([0.0, 2.0])),
        harm_tolerance=draw(st.sampled_from([0.0, 4.0])),
        rule=draw(st.sampled_from(["point", "strict"])),
        ship_if_non_inferior=draw(st.booleans()),
        min_label_coverage=draw(st.sampled_from([0.0, 0.9])),
        min_duration_s=draw(st.sampled_from([0.0, 3600.0])),
        max_duration_s=draw(st.sampled_from([None, 1e6])),
        max_units=draw(st.sampled_from([None, 100_000])),
    )
    return looks, policy


def effects_of(found: Sequence[Sequence[vd.Effect]]) -> vc.Effects:
    cells = np.array([[e[1:] for e in row] for row in found], dtype=np.float64)
    return vc.Effects(cells[..., 0], cells[..., 1], cells[..., 2])


def columns(rows: Sequence[Sequence[tuple[object, ...]]], first: int) -> list[np.ndarray]:
    cells = np.array([[r[first:] for r in row] for row in rows], dtype=np.float64)
    return [cells[..., i] for i in range(cells.shape[-1])]


def cells_of(looks: list[vd.Look]) -> vc.Cells:
    """The same looks as arrays."""
    one = looks[0]
    primary = effects_of([[look.primary] for look in looks])
    arms_of = []
    for side in ("control", "treatment"):
        units, *rest = zip(*(getattr(look, side) for look in looks), strict=True)
        floors = [None if field[0] is None else np.array(field) for field in rest]
        arms_of.append(vc.Arms(np.array(units), *floors))
    processes = {
        name: vc.Processes(*columns([getattr(look, name) for look in looks], 1))
        for name in ("fast_lanes", "sample_ratios", "losses")
        if getattr(one, name)
    }
    guards = [look.guardrails for look in looks]
    return vc.Cells(
        primary=vc.Effects(*(np.asarray(field)[:, 0] for field in primary)),
        control=arms_of[0],
        treatment=arms_of[1],
        duration_s=np.array([look.duration_s for look in looks]),
        guardrails=vc.Guardrails(
            effects_of([[g.effect for g in row] for row in guards]),
            np.array([[g.margin for g in row] for row in guards]),
            np.array([[g.tolerance for g in row] for row in guards]),
        )
        if one.guardrails
        else None,
        strata=effects_of([[s.effect for s in look.strata] for look in looks])
        if one.strata
        else None,
        windows=vc.Windows(*columns([look.windows for look in looks], 1)) if one.windows else None,
        breakers=vc.Breakers(*columns([look.breakers for look in looks], 2))
        if one.breakers
        else None,
        flips=vc.FlipCounts(*columns([look.flips for look in looks], 1)) if one.flips else None,
        alarms=np.array([bool(look.alarms) for look in looks]),
        **processes,
    )


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_cells_are_judged_as_each_look_alone(world: tuple[list[vd.Look], vd.Policy]) -> None:
    looks, policy = world
    together = vc.judge_all(cells_of(looks), policy)
    alone = [judge(look, policy) for look in looks]
    assert [together.kind(i) for i in range(len(looks))] == [v.kind for v in alone]
    assert together.ships_candidate.tolist() == [v.ships_candidate for v in alone]


@pytest.mark.parametrize(
    ("seed", "kinds"), [(1, set(Kind) - {Kind.KEEP_CONTROL_WORSE}), (2, set(Kind))]
)
def test_cells_are_judged_as_each_look_alone_in_every_row(seed: int, kinds: set[Kind]) -> None:
    """Random looks of one policy that reach every verdict; seed 1 rolls back what is worse."""
    rng = np.random.default_rng(seed)
    policy = vd.Policy(
        minimum_improvement=1.0,
        equivalence=2.0,
        harm_tolerance=0.0 if seed == 1 else 4.0,
        max_units=90_000,
    )
    looks = []
    for _ in range(2_000):
        low, effect, high = sorted(rng.normal(size=3) * 3)
        arm = vd.Arm(int(rng.choice([50, 20_000, 50_000], p=[0.1, 0.8, 0.1])))
        looks.append(
            vd.Look(
                primary=vd.Effect("m", effect, low, high),
                control=arm,
                treatment=arm,
                guardrails=(vd.Guardrail(vd.Effect("g", 0.0, -rng.exponential(), 1.0), 2.0),),
                sample_ratios=(vd.Evidence("e", float(rng.normal() * 3), 0.001),),
            )
        )
    together = vc.judge_all(cells_of(looks), policy)
    found = [judge(look, policy).kind for look in looks]
    assert [together.kind(i) for i in range(len(looks))] == found
    assert set(found) == kinds


def bare(**fields: object) -> vc.Cells:
    arm = vc.Arms(np.array([500, 500]))
    primary = vc.Effects(np.array([3.0, 3.0]), np.array([2.0, 2.0]), np.array([4.0, 4.0]))
    return replace(vc.Cells(primary=primary, control=arm, treatment=arm), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"control": vc.Arms(np.array([-1, 5]))}, "control.units == -1"),
        ({"treatment": vc.Arms(np.array([5, 5]), events=np.array([0.5, 1]))}, "treatment.events"),
        ({"guardrails": vc.Guardrails(vc.Effects([[0.0]], [[-1.0]], [[1.0]]), -1.0)}, "margin"),
        ({"losses": vc.Processes([[0.0]], 1.0)}, "alpha == 1.0, must be < 1"),
        ({"windows": vc.Windows([[0.0]], -1.0, [[1.0]], [[1]], [[1]])}, "window.limit"),
        ({"breakers": vc.Breakers([[0]], 0)}, "breaker.needed"),
    ],
)
def test_cells_are_refused_when_a_count_or_limit_is_none(
    fields: dict[str, object], message: str
) -> None:
    policy = vd.Policy(minimum_improvement=1.0, equivalence=2.0)
    assert vc.judge_all(bare(), policy).kind(1) is Kind.PROMOTE
    with pytest.raises(ValueError, match=message):
        vc.judge_all(bare(**fields), policy)


def test_ten_thousand_cells_are_judged_from_their_buckets_within_a_second() -> None:
    """From sums by bucket to the verdict, with harm and non-inferiority: about 0.3 s of CPU."""
    rng, n, buckets = np.random.default_rng(3), 10_000, 64
    requests_c, requests_t = (rng.poisson(m, (n, buckets)).astype(float) for m in (90.0, 10.0))
    errors_c, errors_t = rng.binomial(90, 0.02, (n, buckets)), rng.binomial(10, 0.02, (n, buckets))
    policy = vd.Policy(minimum_improvement=0.002, equivalence=0.002, min_units=100)
    began = time.process_time()
    control, treatment = bucket_ratio(errors_c, requests_c), bucket_ratio(errors_t, requests_t)
    n_c, n_t = requests_c.sum(axis=1), requests_t.sum(axis=1)
    variance = cautious_variance(control.variance, n_c, treatment.variance, n_t)
    gain, tuned = control.ratio - treatment.ratio, {"n": n_c + n_t, "n_star": 5_000}
    both = asymptotic_sequence(gain, variance, **tuned)
    worst = asymptotic_sequence(gain, variance, alpha=0.01, alternative="less", **tuned)
    verdicts = vc.judge_all(
        vc.Cells(
            primary=vc.Effects(gain, both.ci_low, both.ci_high),
            control=vc.Arms(n_c, np.full(n, buckets), errors_c.sum(axis=1)),
            treatment=vc.Arms(n_t, np.full(n, buckets), errors_t.sum(axis=1)),
            guardrails=vc.Guardrails(
                vc.Effects(gain[:, None], both.ci_low[:, None], worst.ci_high[:, None]), 0.005
            ),
            duration_s=3600.0,
        ),
        policy,
    )
    assert time.process_time() - began < 1.0
    assert verdicts.codes.shape == (n,)
    assert len(set(verdicts.codes.tolist())) > 1
