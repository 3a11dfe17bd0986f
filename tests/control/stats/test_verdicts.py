"""The decision table: ten regions with their edges, each row's trigger and priority, order."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.stats import verdicts as vd
from control.stats.verdicts import Effect, Evidence, Guardrail, Kind, Look, Policy, Stratum, judge

INF, NAN = math.inf, math.nan
WEEKS = 3 * vd.WEEK_S
POLICY = Policy(minimum_improvement=1.0, equivalence=2.0, harm_tolerance=4.0)
STRICT = replace(POLICY, rule="strict")
ARM = vd.Arm(10_000, buckets=256, events=500, non_events=9_500, label_coverage=1.0)
TOO_FEW = vd.Arm(99, buckets=256, events=500, non_events=9_500, label_coverage=1.0)

# Order of the table from most harm to least; HOLD = CONTINUE.
ORDER = {
    Kind.ROLLBACK: 0,
    Kind.KEEP_CONTROL_WORSE: 1,
    Kind.KEEP_CONTROL_FUTILE: 2,
    Kind.NO_DIFFERENCE: 3,
    Kind.HOLD: 4,
    Kind.CONTINUE: 4,
    Kind.PROMOTE: 5,
}


def look(low: float, high: float, effect: float | None = None, **fields: object) -> Look:
    middle = (low + high) / 2 if effect is None else effect
    base = Look(
        primary=Effect("revenue", middle, low, high), control=ARM, treatment=ARM, duration_s=WEEKS
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def bound(metric: str, low: float, high: float) -> Effect:
    return Effect(metric, (low + high) / 2, low, high)


def codes(verdict: vd.Verdict) -> set[str]:
    return {reason.code for reason in verdict.reasons}


BETTER = look(2.0, 4.0)
HARMED = Guardrail(bound("errors", -3.0, -1.0), margin=0.5)
SAFE = Guardrail(bound("errors", -0.4, 0.6), margin=0.5)
UNCLEAR = Guardrail(bound("errors", -0.5, 0.6), margin=0.5)
MISMATCH = Evidence("epoch 2", math.log(1000), alpha=0.001)
SLICE_HARM = Stratum("country=DE", bound("revenue", -3.0, -0.1))
ALARM = vd.Alarm("simpson", "revenue")
AT_MAXIMUM = replace(POLICY, max_units=20_000)


@pytest.mark.parametrize(
    ("low", "high", "effect", "kind"),
    [
        (1.5, 2.5, 2.0, Kind.PROMOTE),  # d <= L
        (0.2, 0.8, 0.5, Kind.NO_DIFFERENCE),  # 0 <= L < d, U < d
        (0.5, 2.0, 1.2, Kind.PROMOTE),  # 0 <= L < d <= U, D >= d
        (0.5, 2.0, 0.9, Kind.CONTINUE),  # 0 <= L < d <= U, D < d
        (-1.5, -0.5, -1.0, Kind.KEEP_CONTROL_WORSE),  # -q <= L, U < 0
        (-1.0, 0.5, -0.2, Kind.NO_DIFFERENCE),  # -q <= L < 0 <= U < d
        (-1.0, 2.0, 0.5, Kind.CONTINUE),  # -q <= L < 0, U >= d
        (-3.0, -1.0, -2.0, Kind.KEEP_CONTROL_WORSE),  # L < -q, U < 0
        (-3.0, 0.5, -1.0, Kind.KEEP_CONTROL_FUTILE),  # L < -q, 0 <= U < d
        (-3.0, 2.0, -0.5, Kind.CONTINUE),  # L < -q, U >= d
    ],
)
def test_verdict_is_that_of_its_region(low: float, high: float, effect: float, kind: Kind) -> None:
    verdict = judge(look(low, high, effect), POLICY)
    assert verdict.kind is kind
    assert verdict.reasons[0].values["low"] == low
    assert f"[{low:.4g}, {high:.4g}]" in verdict.sentence


@pytest.mark.parametrize(
    ("low", "high", "effect", "policy", "kind"),
    [
        (0.0, 2.0, 1.5, POLICY, Kind.CONTINUE),  # L == 0: not above
        (0.001, 2.0, 1.0, POLICY, Kind.PROMOTE),  # D == d
        (0.999, 2.0, 1.5, STRICT, Kind.CONTINUE),
        (1.0, 2.0, 1.5, STRICT, Kind.PROMOTE),  # L == d
        (0.0, 2.0, 1.5, replace(STRICT, minimum_improvement=0.0), Kind.CONTINUE),
        (0.0, 0.999, 0.5, POLICY, Kind.NO_DIFFERENCE),  # L == 0
        (0.0, 1.0, 0.5, POLICY, Kind.CONTINUE),  # U == d
        (-1.0, 1.0, 0.5, POLICY, Kind.CONTINUE),
        (-3.0, 1.0, 0.5, POLICY, Kind.CONTINUE),
        (-2.0, 0.5, 0.0, POLICY, Kind.NO_DIFFERENCE),  # L == -q
        (-2.001, 0.5, 0.0, POLICY, Kind.KEEP_CONTROL_FUTILE),
        (-1.0, 0.0, -0.5, POLICY, Kind.NO_DIFFERENCE),  # U == 0: not below
        (-3.0, 0.0, -0.5, POLICY, Kind.KEEP_CONTROL_FUTILE),
        (-5.0, -3.0, -4.0, POLICY, Kind.ROLLBACK),  # D == -h
        (-5.0, -3.0, -3.999, POLICY, Kind.KEEP_CONTROL_WORSE),
        (-5.0, 0.0, -4.5, POLICY, Kind.KEEP_CONTROL_FUTILE),  # D <= -h without U < 0
        (-1.0, -0.1, -0.2, replace(POLICY, harm_tolerance=0.0), Kind.ROLLBACK),
    ],
)
def test_edges_fall_on_the_documented_side(
    low: float, high: float, effect: float, policy: Policy, kind: Kind
) -> None:
    assert judge(look(low, high, effect), policy).kind is kind


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_primary_warms_up_when_a_number_is_not_finite(position: int, value: float) -> None:
    numbers = [-1.0, -3.0, 4.0]
    numbers[position] = value
    verdict = judge(look(0, 1, primary=Effect("revenue", *numbers)), AT_MAXIMUM)
    assert (verdict.kind, codes(verdict)) == (Kind.WARMING_UP, {"no_interval"})
    assert None in verdict.reasons[0].values.values()


@pytest.mark.parametrize(
    ("effect", "code"),
    [
        (Effect("revenue", 3.0, 3.0, 3.0), "no_spread"),
        (Effect("revenue", -9.0, -9.0, -9.0), "no_spread"),
        (Effect("revenue", 3.0, 4.0, 2.0), "no_interval"),
        (Effect("revenue", 5.0, 2.0, 4.0), "no_interval"),
        (Effect("revenue", -9.0, -8.0, -4.0), "no_interval"),
        (Effect("revenue", 0.0, -1.7e308, 1.7e308), "no_interval"),
    ],
)
def test_primary_warms_up_when_its_interval_says_nothing(effect: Effect, code: str) -> None:
    verdict = judge(look(0, 1, primary=effect), POLICY)
    assert (verdict.kind, codes(verdict)) == (Kind.WARMING_UP, {code})


@pytest.mark.parametrize(
    "fields",
    [
        {"guardrails": (Guardrail(Effect("errors", NAN, NAN, NAN), 1.0),)},
        {"guardrails": (Guardrail(Effect("errors", 0.0, 0.0, 0.0), 1.0),)},
        {"guardrails": (Guardrail(Effect("errors", -9.0, -INF, -INF), 1.0),)},
        {"strata": (Stratum("new", Effect("revenue", 0.0, -1.0, NAN)),)},
        {"sample_ratios": (Evidence("epoch 1", NAN, 0.001),)},
        {"fast_lanes": (Evidence("errors", NAN, 0.01),)},
        {"losses": (Evidence("labels", NAN, 0.001),)},
        {"windows": (vd.Window("errors", NAN, 0.05, 0.001, 900, 900),)},
        {"windows": (vd.Window("errors", INF, 0.05, NAN, 900, 900),)},
        {"duration_s": NAN},
        {"duration_s": -1.0},
    ],
)
def test_look_warms_up_when_any_input_has_no_number(fields: dict[str, object]) -> None:
    assert judge(replace(BETTER, **fields), POLICY).kind is Kind.WARMING_UP  # type: ignore[arg-type]


def test_guardrail_with_one_open_end_judges_by_the_other() -> None:
    harm = Guardrail(Effect("errors", -2.0, -INF, -1.0), margin=0.5)
    fine = Guardrail(Effect("errors", 0.0, -0.1, INF), margin=0.5)
    unknown = Guardrail(Effect("errors", 0.0, -INF, INF), margin=0.5)
    kinds = [judge(replace(BETTER, guardrails=(g,)), POLICY).kind for g in (harm, fine, unknown)]
    assert kinds == [Kind.ROLLBACK, Kind.PROMOTE, Kind.HOLD]


WINDOW = vd.Window("errors", 0.06, 0.05, 0.01, 300, 300)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"fast_lanes": (Evidence("timeouts", math.log(100), 0.01),)}, "fast_lane"),
        ({"fast_lanes": (Evidence("timeouts", INF, 0.01),)}, "fast_lane"),
        ({"guardrails": (HARMED,)}, "harm"),
        ({"guardrails": (HARMED._replace(tolerance=2.0),)}, "harm"),  # D == -h
        ({"primary": bound("revenue", -9.0, -1.0)}, "harm"),
        ({"windows": (WINDOW,)}, "window"),
        ({"breakers": (vd.Breaker("p99", 800.0, broken=3, needed=3),)}, "breaker"),
    ],
)
def test_rollback_comes_before_everything(fields: dict[str, object], code: str) -> None:
    bad = replace(BETTER, treatment=TOO_FEW, sample_ratios=(MISMATCH,), alarms=(ALARM,), **fields)  # type: ignore[arg-type]
    for seen in (replace(BETTER, **fields), bad):  # type: ignore[arg-type]
        verdict = judge(seen, AT_MAXIMUM)
        assert (verdict.kind, codes(verdict)) == (Kind.ROLLBACK, {code})


@pytest.mark.parametrize(
    "fields",
    [
        {"fast_lanes": (Evidence("timeouts", math.log(100) - 1e-9, 0.01),)},
        {"guardrails": (SAFE, Guardrail(bound("errors", -0.4, -0.1), 0.5, tolerance=1.0))},
        {"windows": (WINDOW._replace(n_control=299),)},
        {"windows": (WINDOW._replace(n_treatment=299),)},
        {"windows": (WINDOW._replace(difference=0.05),)},
        {"windows": (WINDOW._replace(std_error=0.012),)},
        {"windows": (WINDOW._replace(std_error=0.0),)},
        {"breakers": (vd.Breaker("p99", 800.0, broken=2, needed=3),)},
        {"sample_ratios": (MISMATCH._replace(log_e=math.log(1000) - 1e-9),)},
        {"flips": (vd.Flips("epoch 1", 100, 10_000),)},
        {"losses": (Evidence("labels", 6.9, 0.001),)},
        {"strata": (Stratum("new", bound("revenue", -1.0, 0.0)),)},
    ],
)
def test_better_candidate_is_promoted_when_nothing_quite_fires(fields: dict[str, object]) -> None:
    verdict = judge(replace(BETTER, **fields), POLICY)  # type: ignore[arg-type]
    assert (verdict.kind, verdict.ships_candidate) == (Kind.PROMOTE, True)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"sample_ratios": (MISMATCH,)}, "sample_ratio"),
        ({"sample_ratios": (Evidence("DE", INF, 0.001),)}, "sample_ratio"),
        ({"flips": (vd.Flips("epoch 1", 101, 10_000),)}, "assignment_flips"),
        ({"losses": (Evidence("labels", 7.0, 0.001),)}, "differential_loss"),
    ],
)
def test_invalid_comes_before_all_but_harm(fields: dict[str, object], code: str) -> None:
    for seen in (BETTER, replace(BETTER, treatment=TOO_FEW, alarms=(ALARM,)), look(-3, -1)):
        verdict = judge(replace(seen, **fields), AT_MAXIMUM)  # type: ignore[arg-type]
        assert (verdict.kind, codes(verdict)) == (Kind.INVALID, {code})
        assert not verdict.ships_candidate


@pytest.mark.parametrize("side", ["control", "treatment"])
@pytest.mark.parametrize(
    ("arm", "code"),
    [
        (ARM._replace(units=99), "few_units"),
        (ARM._replace(buckets=49), "few_buckets"),
        (ARM._replace(events=9), "few_events"),
        (ARM._replace(non_events=9), "few_non_events"),
        (ARM._replace(label_coverage=0.89), "few_label_coverage"),
        (ARM._replace(label_coverage=NAN), "few_label_coverage"),
    ],
)
def test_warm_up_comes_before_benefit_when_either_arm_is_below_a_floor(
    side: str, arm: vd.Arm, code: str
) -> None:
    policy = replace(AT_MAXIMUM, min_label_coverage=0.9)
    for seen in (BETTER, look(-3, -1), look(-3, 0.5), replace(BETTER, alarms=(ALARM,))):
        verdict = judge(replace(seen, **{side: arm}), policy)  # type: ignore[arg-type]
        assert (verdict.kind, codes(verdict)) == (Kind.WARMING_UP, {code})


def test_warm_up_ends_at_each_floor() -> None:
    least = vd.Arm(100, buckets=50, events=10, non_events=10, label_coverage=0.9)
    policy = replace(POLICY, min_label_coverage=0.9, min_duration_s=WEEKS)
    seen = replace(BETTER, control=least, treatment=least)
    assert judge(seen, policy).kind is Kind.PROMOTE
    early = judge(replace(seen, duration_s=WEEKS - 1), policy)
    assert (early.kind, codes(early)) == (Kind.WARMING_UP, {"short_duration"})
    bare = replace(seen, control=vd.Arm(100), treatment=vd.Arm(100))  # exact sequences: no floor
    assert judge(bare, POLICY).kind is Kind.PROMOTE


DOUBTS: list[tuple[dict[str, object], str]] = [
    ({"alarms": (ALARM,)}, "simpson"),
    ({"alarms": (vd.Alarm("input_drift", "age"),)}, "input_drift"),
    ({"strata": (SLICE_HARM,)}, "stratum_harm"),
]


@pytest.mark.parametrize(
    ("fields", "code"), [*DOUBTS, ({"guardrails": (UNCLEAR,)}, "guardrail_unclear")]
)
def test_hold_replaces_promote(fields: dict[str, object], code: str) -> None:
    verdict = judge(replace(BETTER, **fields), POLICY)  # type: ignore[arg-type]
    assert (verdict.kind, codes(verdict), verdict.ships_candidate) == (Kind.HOLD, {code}, False)


@pytest.mark.parametrize(("fields", "code"), DOUBTS)
def test_hold_replaces_continue_but_no_other_verdict(fields: dict[str, object], code: str) -> None:
    held = judge(replace(look(-1, 2), **fields), POLICY)  # type: ignore[arg-type]
    assert (held.kind, codes(held)) == (Kind.HOLD, {code})
    for low, high in ((-3.0, -1.0), (-3.0, 0.5), (-1.0, 0.5), (0.2, 0.8)):
        seen = replace(look(low, high), **fields)  # type: ignore[arg-type]
        assert judge(seen, POLICY).kind is judge(look(low, high), POLICY).kind
    ended = judge(replace(look(-1, 2), **fields), AT_MAXIMUM)  # type: ignore[arg-type]
    assert ended.kind is Kind.INCONCLUSIVE


def test_unclear_guardrail_holds_only_when_the_primary_is_ready() -> None:
    assert judge(replace(look(-1, 2), guardrails=(UNCLEAR,)), POLICY).kind is Kind.CONTINUE


def test_hold_names_stratum_and_metric_when_harm_is_only_there() -> None:
    verdict = judge(replace(BETTER, strata=(SLICE_HARM,)), POLICY)
    assert "revenue in country=DE is harmed" in verdict.sentence
    guarded = HARMED._replace(stratum="country=DE")
    assert (
        "errors in country=DE is worse"
        in judge(replace(BETTER, guardrails=(guarded,)), POLICY).sentence
    )


@pytest.mark.parametrize("policy", [AT_MAXIMUM, replace(POLICY, max_duration_s=WEEKS)])
def test_maximum_ends_only_what_would_continue(policy: Policy) -> None:
    ended = judge(look(-1, 2), policy)
    assert (ended.kind, codes(ended)) == (Kind.INCONCLUSIVE, {"maximum_reached"})
    for low, high in ((2.0, 4.0), (-3.0, -1.0), (-3.0, 0.5), (-1.0, 0.5)):
        verdict = judge(look(low, high), policy)
        assert verdict.kind is judge(look(low, high), POLICY).kind
        assert [note.code for note in verdict.notes] == ["maximum_reached"]
    assert judge(look(-1, 2), replace(POLICY, max_units=20_001)).kind is Kind.CONTINUE


def test_no_difference_ships_only_when_policy_allows_and_nothing_speaks_against() -> None:
    ship = replace(POLICY, ship_if_non_inferior=True)
    for seen in (look(-1, 0.5), look(0.2, 0.8)):
        assert not judge(seen, POLICY).ships_candidate
        assert judge(seen, ship).ships_candidate
        assert judge(seen, ship).kind is Kind.NO_DIFFERENCE
        blockers = ({"guardrails": (UNCLEAR,)}, {"strata": (SLICE_HARM,)}, {"alarms": (ALARM,)})
        for fields in blockers:
            assert not judge(replace(seen, **fields), ship).ships_candidate
    assert not judge(look(-3, 0.5), ship).ships_candidate


def test_short_run_notes_that_the_week_is_not_balanced() -> None:
    notes = judge(replace(BETTER, duration_s=3600.0), POLICY).notes
    assert [note.code for note in notes] == ["below_a_week"]
    assert judge(BETTER, POLICY).notes == ()


@pytest.mark.parametrize(
    ("low", "high", "policy", "units"),
    [
        (-1.0, 5.0, POLICY, 20_000 * (3 / 2) ** 2),  # D = 2 >= d: until L > 0
        (-1.0, 5.0, STRICT, 20_000 * 3**2),  # until L >= d
        (-2.0, 3.0, POLICY, 20_000 * 5**2),  # D = 0.5 < d: until U < d
        (0.0, 2.0, STRICT, None),  # D == d: never
    ],
)
def test_continue_projects_the_units_to_a_decision(
    low: float, high: float, policy: Policy, units: float | None
) -> None:
    verdict = judge(look(low, high), policy)
    found = [r.values["units"] for r in verdict.reasons if r.code == "projected_units"]
    assert verdict.kind is Kind.CONTINUE
    assert found == ([] if units is None else [pytest.approx(units)])


def test_projection_is_none_when_the_primary_has_no_interval() -> None:
    assert vd.projected_units(look(NAN, NAN), POLICY) is None


def test_effect_is_turned_when_lower_is_better() -> None:
    latency = vd.oriented("p99", 5.0, low=-INF, high=7.0, direction="lower_is_better")
    assert latency == Effect("p99", -5.0, -7.0, INF)
    assert vd.oriented("clicks", 5.0, low=3.0, high=7.0) == Effect("clicks", 5.0, 3.0, 7.0)
    with pytest.raises(ValueError, match="direction == 'up'"):
        vd.oriented("clicks", 5.0, low=3.0, high=7.0, direction="up")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("minimum_improvement", -0.1),
        ("minimum_improvement", NAN),
        ("equivalence", INF),
        ("harm_tolerance", -1.0),
        ("min_units", -1),
        ("min_units", 1.5),
        ("max_flip_share", 1.1),
        ("max_units", 0),
        ("rule", "loose"),
    ],
)
def test_policy_is_refused_when_a_value_is_out_of_range(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} == "):
        replace(POLICY, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"control": vd.Arm(-1)},
        {"treatment": ARM._replace(events=-1)},
        {"guardrails": (SAFE._replace(margin=-0.5),)},
        {"guardrails": (SAFE._replace(tolerance=NAN),)},
        {"sample_ratios": (MISMATCH._replace(alpha=0.0),)},
        {"windows": (WINDOW._replace(limit=-0.1),)},
        {"breakers": (vd.Breaker("p99", 800.0, broken=0, needed=0),)},
    ],
)
def test_look_is_refused_when_a_count_margin_or_alpha_is_out_of_range(
    fields: dict[str, object],
) -> None:
    with pytest.raises(ValueError, match="must be"):
        judge(replace(BETTER, **fields), POLICY)  # type: ignore[arg-type]


ANY = st.floats() | st.sampled_from([0.0, -0.0, 1.0, -2.0, NAN, INF, -INF])
EFFECTS = st.builds(Effect, st.just("m"), ANY, ANY, ANY)
EVIDENCE = st.builds(Evidence, st.just("x"), ANY, st.sampled_from([0.001, 0.01]))
SIZES = st.floats(0.0, 5.0) | st.sampled_from([0.0, 1.0, 2.0])
ARMS = st.builds(
    vd.Arm,
    st.integers(0, 10**9),
    buckets=st.none() | st.integers(0, 1024),
    events=st.none() | st.integers(0, 100),
    non_events=st.none() | st.integers(0, 100),
    label_coverage=st.none() | ANY,
)
POLICIES = st.builds(
    Policy,
    minimum_improvement=SIZES,
    equivalence=SIZES,
    harm_tolerance=SIZES,
    rule=st.sampled_from(["point", "strict"]),
    ship_if_non_inferior=st.booleans(),
    max_units=st.none() | st.integers(1, 10**6),
)


def few(values: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(values, max_size=2).map(tuple)


GUARDRAILS = st.builds(Guardrail, EFFECTS, SIZES, SIZES)
LOOKS = st.builds(
    Look,
    primary=EFFECTS,
    control=ARMS,
    treatment=ARMS,
    duration_s=ANY,
    guardrails=few(GUARDRAILS),
    strata=few(st.builds(Stratum, st.just("s"), EFFECTS)),
    fast_lanes=few(EVIDENCE),
    windows=few(
        st.builds(
            vd.Window, st.just("w"), ANY, SIZES, ANY, st.integers(0, 900), st.integers(0, 900)
        )
    ),
    sample_ratios=few(EVIDENCE),
    losses=few(EVIDENCE),
    alarms=few(st.just(ALARM)),
)


@given(LOOKS, POLICIES)
def test_every_look_gets_one_verdict_with_reasons(seen: Look, policy: Policy) -> None:
    verdict = judge(seen, policy)
    assert verdict.kind in Kind
    assert verdict.reasons
    numbers = [v for r in (*verdict.reasons, *verdict.notes) for v in r.values.values()]
    assert all(math.isfinite(v) for v in numbers if isinstance(v, float))
    if verdict.ships_candidate:
        assert seen.primary.low >= -policy.equivalence


# Grid numbers: shifts are exact, so an edge is met exactly and ends keep their order.
GRID = st.integers(-24, 24).map(lambda k: k / 4)
WIDTHS = st.integers(1, 24).map(lambda k: k / 4)
GRID_SIZES = st.integers(0, 12).map(lambda k: k / 4)


@st.composite
def grid_effects(draw: st.DrawFn) -> Effect:
    middle = draw(GRID)
    return Effect("m", middle, middle - draw(WIDTHS), middle + draw(WIDTHS))


READY = st.builds(
    Look,
    primary=grid_effects(),
    control=st.just(ARM),
    treatment=st.just(ARM),
    guardrails=few(st.builds(Guardrail, grid_effects(), GRID_SIZES, GRID_SIZES)),
    strata=few(st.builds(Stratum, st.just("s"), grid_effects())),
    alarms=few(st.just(ALARM)),
)
GRID_POLICIES = st.builds(
    Policy,
    minimum_improvement=GRID_SIZES,
    equivalence=GRID_SIZES,
    harm_tolerance=GRID_SIZES,
    rule=st.sampled_from(["point", "strict"]),
    ship_if_non_inferior=st.booleans(),
    max_units=st.sampled_from([None, 20_000]),
)


def down(effect: Effect, by: float) -> Effect:
    return Effect(effect.metric, effect.effect - by, effect.low - by, effect.high - by)


@given(READY, GRID_POLICIES, WIDTHS, st.booleans(), st.booleans())
def test_more_harm_never_moves_a_verdict_up(
    seen: Look, policy: Policy, by: float, all_metrics: bool, harm_primary: bool
) -> None:
    worse = replace(seen, primary=down(seen.primary, by)) if harm_primary else seen
    if all_metrics or not harm_primary:
        worse = replace(
            worse,
            guardrails=tuple(g._replace(effect=down(g.effect, by)) for g in seen.guardrails),
            strata=tuple(s._replace(effect=down(s.effect, by)) for s in seen.strata),
        )
    before, after = judge(seen, policy).kind, judge(worse, policy).kind
    if before in ORDER and after in ORDER:
        assert ORDER[after] <= ORDER[before]
    else:
        assert Kind.INCONCLUSIVE in (before, after)


@given(READY, GRID_POLICIES)
def test_hold_comes_only_from_promote_or_continue(seen: Look, policy: Policy) -> None:
    plain = judge(replace(seen, alarms=()), policy).kind
    alarmed = judge(replace(seen, alarms=(ALARM,)), policy).kind
    assert alarmed is (Kind.HOLD if plain in (Kind.PROMOTE, Kind.CONTINUE, Kind.HOLD) else plain)
