"""Verdicts: harm, doubts and checks, and that no data is neither good nor bad."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.rollout.assess import Assessment, assess
from control.rollout.bounds import log_sample_ratio, rate_interval
from control.rollout.checks import Check
from control.rollout.policy import BreakerPolicy, GuardrailPolicy, Margin, Policy
from control.rollout.seen import BucketSeen, Seen, Sketch, VariantSeen, WindowSeen
from control.rollout.words import Gate, Kind, Reason, Verdict
from tests.control import rollout_worlds as worlds
from tests.control.rollout_worlds import CONTROL, V2, arm, healthy, sketch
from turnout.contract import LATENCY_SKETCH_GAMMA

NOW_MS = worlds.START_MS + worlds.DWELL_MS + 1
BUCKET_S = NOW_MS // 1000 // 10 * 10


def judge(seen: Seen, policy: Policy | None = None, *, now_ms: int = NOW_MS) -> Assessment:
    policy = policy or worlds.policy()
    return assess(worlds.started(policy), policy, seen, now_ms=now_ms)


def check_of(judged: Assessment, metric: str) -> Check:
    (check,) = [c for c in judged.checks if c.metric == metric]
    return check


def reasons(judged: Assessment) -> list[Reason]:
    return [doubt.reason for doubt in judged.doubts]


def guarded(metric: str, margin: Margin | None = None, slo_ms: float | None = None) -> Policy:
    guardrail = GuardrailPolicy(metric, margin, slo_ms)
    return worlds.policy(worlds.canary_step(checks=(metric,)), guardrails=(guardrail,))


def test_step_passes_when_everything_is_healthy() -> None:
    judged = judge(healthy(NOW_MS))
    assert judged.doubts == ()
    assert judged.harms == ()
    assert check_of(judged, "error_rate").verdict is Verdict.PASS


# -- Doubts ------------------------------------------------------------------------------------


def test_step_waits_when_the_dwell_is_not_over() -> None:
    now_ms = worlds.START_MS + 15_000
    judged = judge(healthy(now_ms), now_ms=now_ms)
    assert reasons(judged) == [Reason.DWELL_NOT_OVER]
    assert judged.doubts[0].sentence == "45s of 1m are left"


@pytest.mark.parametrize(
    ("requests", "expected"),
    [(0, Reason.NO_TRAFFIC), (29, Reason.TOO_FEW_REQUESTS), (30, None)],
)
def test_step_waits_when_the_candidate_has_too_few_requests(
    requests: int, expected: Reason | None
) -> None:
    seen = healthy(NOW_MS, variants={CONTROL: arm(1_000), V2: arm(requests)})
    found = reasons(judge(seen))
    assert found[:1] == ([expected] if expected else [])


def test_step_waits_when_no_sidecar_is_there() -> None:
    assert reasons(judge(healthy(NOW_MS, sidecars=())))[0] is Reason.NO_SIDECARS


@pytest.mark.parametrize(
    ("age_ms", "connected", "expected"),
    [
        (5_000, True, []),
        (5_001, True, [Reason.STALE]),
        (59_000, False, [Reason.STALE]),
        (61_000, True, [Reason.STALE]),
        (61_000, False, [Reason.NO_SIDECARS]),
    ],
)
def test_step_waits_when_a_sidecar_is_silent(
    age_ms: int, connected: bool, expected: list[Reason]
) -> None:
    sidecars = (worlds.sidecar(NOW_MS - age_ms, connected=connected),)
    assert reasons(judge(healthy(NOW_MS, sidecars=sidecars))) == expected


@pytest.mark.parametrize("gate", [Gate.CLOSED, Gate.UNKNOWN])
def test_step_waits_when_one_sidecars_gate_is_not_open(gate: Gate) -> None:
    sidecars = (worlds.sidecar(NOW_MS), worlds.sidecar(NOW_MS, gate=gate))
    judged = judge(healthy(NOW_MS, sidecars=sidecars))
    assert reasons(judged) == [Reason.WAITING_FOR_UPSTREAM]
    if gate is Gate.CLOSED:
        assert judged.doubts[0].sentence == (
            "1 of 2 sidecars wait for upstreams: no healthy host in turnout.fraud.v2"
        )


def test_step_waits_when_the_split_serves_no_candidate() -> None:
    judged = judge(healthy(NOW_MS), worlds.policy(worlds.canary_step(0)))
    assert reasons(judged)[0] is Reason.NO_TRAFFIC


def test_shadow_step_counts_copies_when_it_asks_for_requests() -> None:
    policy = worlds.policy(worlds.shadow_step())
    variants = {CONTROL: arm(1_000), V2: VariantSeen(shadow_requests=29)}
    assert reasons(judge(healthy(NOW_MS, variants=variants), policy)) == [Reason.TOO_FEW_REQUESTS]
    variants[V2] = VariantSeen(shadow_requests=30)
    assert judge(healthy(NOW_MS, variants=variants), policy).doubts == ()


# -- Validity ----------------------------------------------------------------------------------


def units(control: int, v2: int) -> Seen:
    return healthy(NOW_MS, variants={CONTROL: arm(19_000, units=control), V2: arm(1_000, units=v2)})


def test_sample_ratio_fails_when_units_do_not_fall_as_designed() -> None:
    judged = judge(units(9_000, 1_000))
    assert reasons(judged) == [Reason.SAMPLE_RATIO_MISMATCH]
    assert check_of(judged, "sample_ratio").verdict is Verdict.FAIL
    assert judge(units(9_500, 500)).doubts == ()


def test_sample_ratio_is_undecided_and_no_obstacle_when_units_are_not_counted() -> None:
    judged = judge(healthy(NOW_MS))
    assert check_of(judged, "sample_ratio").reason is Reason.LOW_POWER
    assert judged.doubts == ()


def test_sample_ratio_e_value_is_one_on_average_when_the_design_holds() -> None:
    shares, total = (0.7, 0.3), 12
    mean = sum(
        math.comb(total, k)
        * 0.7**k
        * 0.3 ** (total - k)
        * math.exp(log_sample_ratio((k, total - k), shares))
        for k in range(total + 1)
    )
    assert mean == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize(
    ("lost", "expected"),
    [(0, []), (40, []), (60, [Reason.DIFFERENTIAL_LOSS])],
)
def test_results_are_invalid_when_one_arm_loses_more_entries(
    lost: int, expected: list[Reason]
) -> None:
    """40 lost of 2,000 are 2 % and yet within chance of the 1 % in control; 60 are not."""
    control = arm(37_620, decided=38_000)
    candidate = arm(2_000 - lost, decided=2_000)
    judged = judge(healthy(NOW_MS, variants={CONTROL: control, V2: candidate}))
    assert reasons(judged) == expected


def test_loss_is_no_obstacle_when_a_few_requests_are_in_flight() -> None:
    variants = {CONTROL: arm(1_990, decided=2_000), V2: arm(97, decided=100)}
    assert judge(healthy(NOW_MS, variants=variants)).doubts == ()


# -- Guardrails: rates -------------------------------------------------------------------------


def test_model_passes_when_it_has_no_errors_at_all() -> None:
    policy = guarded("error_rate", Margin(absolute=0.01))
    few = judge(healthy(NOW_MS, requests=300), policy)
    assert reasons(few) == [Reason.LOW_POWER]
    many = judge(healthy(NOW_MS, requests=1_000), policy)
    assert many.doubts == ()
    assert check_of(many, "error_rate").sentence == (
        "error_rate: v2 0 % errors of requests (1,000), control 0 % (19,000); 1 % more is allowed"
    )


@pytest.mark.parametrize("margin", [None, Margin(absolute=0.01), Margin(relative=0.5)])
def test_error_rate_fails_when_it_is_beyond_doubt_above_what_is_allowed(
    margin: Margin | None,
) -> None:
    variants = {CONTROL: arm(19_000, 190), V2: arm(1_000, 60)}
    judged = judge(healthy(NOW_MS, variants=variants), guarded("error_rate", margin))
    check = check_of(judged, "error_rate")
    assert (check.verdict, check.reason) == (Verdict.FAIL, Reason.GUARDRAIL)
    assert reasons(judged) == [Reason.GUARDRAIL]
    assert judged.harms == ()  # a check holds, it does not roll back
    assert (check.control_value, check.candidate_value) == (0.01, 0.06)


def test_error_rate_passes_without_a_margin_when_nothing_significant_is_seen() -> None:
    variants = {CONTROL: arm(19_000, 190), V2: arm(1_000, 15)}
    judged = judge(healthy(NOW_MS, variants=variants), guarded("error_rate"))
    assert check_of(judged, "error_rate").verdict is Verdict.PASS


def test_step_waits_for_evidence_when_all_was_in_the_warm_up() -> None:
    """The counts have a thousand answers without an error, all of them of a cold cache."""
    judged = judge(healthy(NOW_MS), worlds.policy(warm_up_ms=3_600_000))
    check = check_of(judged, "error_rate")
    assert (check.verdict, check.reason) == (Verdict.UNDECIDED, Reason.NO_TRAFFIC)
    assert check.sentence == "error_rate: no evidence by bucket of units after the warm-up yet"
    assert reasons(judged) == [Reason.NO_TRAFFIC]


def test_checks_do_not_compare_when_the_split_leaves_no_control() -> None:
    policy = worlds.policy(worlds.canary_step(1_000_000))
    judged = judge(healthy(NOW_MS, variants={V2: arm(1_000, 10)}), policy)
    assert judged.doubts == ()
    assert check_of(judged, "error_rate").sentence == (
        "error_rate: no control at this split; only absolute limits apply"
    )


def labelled(control: tuple[int, int], v2: tuple[int, int]) -> Seen:
    return healthy(
        NOW_MS,
        variants={
            CONTROL: arm(19_000, labelled=control[1], correct=control[0]),
            V2: arm(1_000, labelled=v2[1], correct=v2[0]),
        },
    )


@pytest.mark.parametrize(
    ("control", "v2", "verdict", "reason"),
    [
        ((0, 0), (0, 0), Verdict.UNDECIDED, Reason.NO_LABELS_YET),
        ((900, 1_000), (0, 0), Verdict.UNDECIDED, Reason.NO_LABELS_YET),
        ((900, 1_000), (20, 20), Verdict.UNDECIDED, Reason.TOO_FEW_REQUESTS),
        ((17_000, 19_000), (90, 100), Verdict.UNDECIDED, Reason.LOW_POWER),
        ((17_000, 19_000), (910, 1_000), Verdict.PASS, Reason.WITHIN_LIMITS),
        ((17_000, 19_000), (700, 1_000), Verdict.FAIL, Reason.GUARDRAIL),
    ],
)
def test_accuracy_is_judged_when_labels_are_there(
    control: tuple[int, int], v2: tuple[int, int], verdict: Verdict, reason: Reason
) -> None:
    judged = judge(labelled(control, v2), guarded("accuracy", Margin(absolute=0.05)))
    check = check_of(judged, "accuracy")
    assert (check.verdict, check.reason) == (verdict, reason), check.sentence


def test_accuracy_says_how_many_requests_have_labels_when_judged() -> None:
    judged = judge(labelled((17_000, 19_000), (910, 1_000)), guarded("accuracy"))
    check = check_of(judged, "accuracy")
    assert "labels for 100 % and 100 % of the requests" in check.sentence
    assert (check.control_value, check.candidate_value) == (17 / 19, 0.91)


# -- Guardrails: latency -----------------------------------------------------------------------


def slow(v2_ms: float, *, requests: int = 1_000, control_ms: float = 100.0) -> Seen:
    return healthy(
        NOW_MS,
        variants={
            CONTROL: arm(19_000, latency=sketch(control_ms, 19_000)),
            V2: arm(requests, latency=sketch(v2_ms, requests)),
        },
    )


@pytest.mark.parametrize(
    ("v2_ms", "margin", "slo_ms", "verdict"),
    [
        (100.0, None, None, Verdict.PASS),
        (120.0, None, None, Verdict.FAIL),
        (120.0, Margin(absolute=50.0), None, Verdict.PASS),
        (120.0, Margin(relative=0.5), None, Verdict.PASS),
        (160.0, Margin(absolute=50.0), None, Verdict.FAIL),
        (140.0, Margin(absolute=50.0), 120.0, Verdict.FAIL),
        # Control breaks the SLO itself: the candidate need not be better than it.
        (100.0, Margin(absolute=50.0), 50.0, Verdict.PASS),
    ],
)
def test_latency_is_compared_with_control_when_both_have_answers(
    v2_ms: float, margin: Margin | None, slo_ms: float | None, verdict: Verdict
) -> None:
    judged = judge(slow(v2_ms), guarded("latency_p95", margin, slo_ms))
    check = check_of(judged, "latency_p95")
    assert check.verdict is verdict, check.sentence
    assert check.candidate_value == pytest.approx(v2_ms, rel=0.011)


def test_latency_is_undecided_when_few_answers_show_little() -> None:
    policy = guarded("latency_p95", Margin(absolute=50.0))
    judged = judge(slow(100.0, requests=40), policy)
    assert check_of(judged, "latency_p95").reason is Reason.LOW_POWER
    assert check_of(judge(slow(100.0, requests=5), policy), "latency_p95").reason is (
        Reason.TOO_FEW_REQUESTS
    )


# -- Harm --------------------------------------------------------------------------------------


def window(control: tuple[int, int], v2: tuple[int, int]) -> Seen:
    return healthy(NOW_MS, window={CONTROL: WindowSeen(*control[::-1]), V2: WindowSeen(*v2[::-1])})


@pytest.mark.parametrize(
    ("control", "v2", "rolls_back"),
    [
        ((100, 10_000), (70, 1_000), True),
        ((100, 10_000), (60, 1_000), False),  # exactly the allowed difference
        ((3, 299), (299, 299), False),  # too few requests
        ((0, 300), (300, 300), True),
        ((120, 300), (150, 300), False),  # 10 % more, and less than 5 standard errors
        ((5_000, 10_000), (100, 1_000), False),  # better
    ],
)
def test_window_rule_rolls_back_when_the_difference_is_large_and_certain(
    control: tuple[int, int], v2: tuple[int, int], rolls_back: bool
) -> None:
    harms = judge(window(control, v2)).harms
    assert [harm.reason for harm in harms] == ([Reason.WINDOW_RULE] if rolls_back else [])


@pytest.mark.parametrize(
    ("units", "errors", "rolls_back"), [(4, 100, False), (5, 100, True), (1, 500, True)]
)
def test_window_rule_asks_for_several_units_when_not_most_requests_fail(
    units: int, errors: int, rolls_back: bool
) -> None:
    """A few users who always fail are no evidence, however many requests they make."""
    lane = replace(worlds.crossed_lane(), crossed=False, candidate_events=units)
    harms = judge(replace(window((100, 10_000), (errors, 1_000)), lanes=(lane,))).harms
    assert [harm.reason for harm in harms] == ([Reason.WINDOW_RULE] if rolls_back else [])


def test_window_rule_says_its_numbers_when_it_rolls_back() -> None:
    (harm,) = judge(window((100, 10_000), (70, 1_000))).harms
    assert harm.sentence == (
        "error_rate: 7 % of 1,000 requests to v2 failed in the last 15m, 1 % of 10,000 to control; "
        "a difference of 5 % is allowed"
    )


def test_window_rule_judges_copies_when_the_step_is_a_shadow() -> None:
    policy = worlds.policy(worlds.shadow_step())
    shown = {
        CONTROL: WindowSeen(10_000, 100),
        V2: WindowSeen(shadow_requests=1_000, shadow_errors=70),
    }
    (harm,) = judge(healthy(NOW_MS, window=shown), policy).harms
    assert (harm.reason, harm.variant) == (Reason.WINDOW_RULE, V2)
    assert "1,000 copies to v2 failed" in harm.sentence


def buckets(*errors: int, requests: int = 20) -> tuple[BucketSeen, ...]:
    return tuple(
        BucketSeen(BUCKET_S - 10 * (len(errors) - 1 - i), requests, e, sketch(100.0, requests))
        for i, e in enumerate(errors)
    )


@pytest.mark.parametrize(
    ("seen", "rolls_back"),
    [
        (buckets(11, 11, 11), True),
        (buckets(0, 11, 11, 11, 0), True),
        (buckets(11, 11, 10, 11, 11), False),
        (buckets(11, 11, 11, requests=19), False),
        ((*buckets(11, 11), BucketSeen(BUCKET_S + 20, 20, 20)), False),
    ],
)
def test_breaker_rolls_back_when_consecutive_windows_break_the_limit(
    seen: tuple[BucketSeen, ...], rolls_back: bool
) -> None:
    policy = worlds.policy(breaker=BreakerPolicy(error_rate=0.5))
    harms = judge(healthy(NOW_MS, buckets={V2: seen}), policy).harms
    assert [harm.reason for harm in harms] == ([Reason.BREAKER] if rolls_back else [])


@pytest.mark.parametrize(("limit_ms", "rolls_back"), [(90.0, True), (100.0, False)])
def test_breaker_rolls_back_when_the_p99_is_above_its_limit(
    limit_ms: float, rolls_back: bool
) -> None:
    policy = worlds.policy(breaker=BreakerPolicy(latency_p99_ms=limit_ms))
    harms = judge(healthy(NOW_MS, buckets={V2: buckets(0, 0, 0)}), policy).harms
    assert [(h.reason, h.kind) for h in harms] == (
        [(Reason.BREAKER, Kind.SLOW)] if rolls_back else []
    )


# When the oldest of three buckets begins, after the epoch's start.
EPOCH_AGE_MS = (BUCKET_S - 20) * 1000 - worlds.START_MS


@pytest.mark.parametrize(
    ("warm_up_ms", "shadow", "found"),
    [
        (EPOCH_AGE_MS, False, [(V2, Kind.SLOW)]),
        # The warm-up ends within the oldest bucket: that one is left out, and two are too few.
        (EPOCH_AGE_MS + 1, False, []),
        (EPOCH_AGE_MS, True, [(V2, Kind.SLOW)]),
        (EPOCH_AGE_MS + 1, True, []),
        (3_600_000, False, []),
    ],
)
def test_breaker_of_latency_waits_when_the_epoch_is_in_its_warm_up(
    warm_up_ms: int, shadow: bool, found: list[tuple[str, Kind]]
) -> None:
    policy = worlds.policy(breaker=BreakerPolicy(latency_p99_ms=90.0), warm_up_ms=warm_up_ms)
    seen = buckets(0, 0, 0)
    if shadow:
        policy = replace(policy, steps=(worlds.shadow_step(),))
        seen = tuple(
            BucketSeen(b.start_unix_s, shadow_requests=b.requests, shadow_latency=b.latency)
            for b in seen
        )
    harms = judge(healthy(NOW_MS, buckets={V2: seen}), policy).harms
    assert [(harm.variant, harm.kind) for harm in harms] == found


def test_breaker_of_errors_rolls_back_when_the_epoch_is_in_its_warm_up() -> None:
    policy = worlds.policy(breaker=BreakerPolicy(error_rate=0.5), warm_up_ms=3_600_000)
    (harm,) = judge(healthy(NOW_MS, buckets={V2: buckets(11, 11, 11)}), policy).harms
    assert (harm.reason, harm.kind) == (Reason.BREAKER, Kind.ERROR)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (
            Kind.WRONG,
            "accuracy: 38 of 61 first wrong answers came from v2, expected 20 %, "
            "e-value 2.1e6 > 9,867 (block 3)",
        ),
        (
            Kind.SLOW,
            "latency: 38 of 61 first slow answers (over 200 ms) came from v2, expected 20 %, "
            "e-value 2.1e6 > 9,867 (block 3)",
        ),
    ],
)
def test_lane_says_its_numbers_when_it_has_crossed(kind: Kind, sentence: str) -> None:
    policy = worlds.policy(slow_after_ms=200.0)
    (harm,) = judge(healthy(NOW_MS, lanes=(worlds.crossed_lane(kind),)), policy).harms
    assert harm.sentence == sentence
    assert harm.reason == f"LANE_{kind}"


def test_random_units_are_not_called_first_when_every_event_counts() -> None:
    policy = worlds.policy(unit_random=True)
    (harm,) = judge(healthy(NOW_MS, lanes=(worlds.crossed_lane(),)), policy).harms
    assert "38 of 61 errors came from v2" in harm.sentence


def test_strongest_lane_comes_first_when_several_have_crossed() -> None:
    weak = worlds.crossed_lane(Kind.ERROR)
    strong = replace(worlds.crossed_lane(Kind.WRONG), log_e_value=40.0)
    harms = judge(healthy(NOW_MS, lanes=(weak, strong))).harms
    assert [harm.reason for harm in harms] == [Reason.LANE_WRONG, Reason.LANE_ERROR]


# -- Bounds ------------------------------------------------------------------------------------


def vectors(kind: str) -> list[dict[str, Any]]:
    path = Path(__file__).parents[1] / "vectors" / "statistics.json"
    cases: list[dict[str, Any]] = json.loads(path.read_text())[kind]
    return cases


@pytest.mark.parametrize("case", vectors("count_sequential"), ids=lambda case: case["name"])
def test_sample_ratio_agrees_with_the_reference_when_counts_are_given(case: dict[str, Any]) -> None:
    given_, expected = case["inputs"], case["expected"]
    log_e = log_sample_ratio(
        given_["counts"], given_["weights"], concentration=given_["dirichlet_concentration"]
    )
    assert log_e == pytest.approx(expected["log_bayes_factor"], rel=case["rtol"])


@pytest.mark.parametrize("case", vectors("sketch_quantile"), ids=lambda case: case["name"])
def test_sketch_quantiles_agree_with_the_reference_when_shards_are_added(
    case: dict[str, Any],
) -> None:
    values = [value for shard in case["inputs"]["shards"] for value in shard]
    gamma = math.log(LATENCY_SKETCH_GAMMA)
    bins = Counter(math.ceil(math.log(value) / gamma) for value in values)
    merged = Sketch(tuple(sorted(bins.items())), sum_ms=sum(values))
    for q, expected in zip(case["inputs"]["quantiles"], case["expected"]["values"], strict=True):
        assert merged.quantile(q) == pytest.approx(expected, rel=0.01)


@settings(deadline=None)
@given(st.integers(0, 2_000), st.integers(0, 2_000))
def test_interval_holds_the_rate_when_any_counts_are_given(events: int, more: int) -> None:
    interval = rate_interval(events, events + more, alpha=0.05)
    rate = events / max(1, events + more)
    assert 0.0 <= interval.low <= interval.high <= 1.0
    assert interval.low <= rate <= interval.high or events + more == 0


@pytest.mark.parametrize("trials", [1, 100, 680, 1_000_000])
def test_upper_bound_falls_when_trials_have_no_events(trials: int) -> None:
    """In closed form: (1 - p)^n = alpha Gamma(n + 1/2) / (sqrt(pi) Gamma(n + 1))."""
    log_mixture = math.lgamma(trials + 0.5) - math.lgamma(trials + 1) - math.log(math.pi) / 2
    expected = -math.expm1((math.log(0.05) + log_mixture) / trials)
    assert rate_interval(0, trials, alpha=0.05).high == pytest.approx(expected, rel=1e-6)


def test_interval_covers_the_rate_when_looked_at_after_every_trial() -> None:
    """2,000 streams of 1,000 trials at 3 %: fewer than 5 % ever exclude it, at any look."""
    rng = np.random.default_rng(20260722)
    events = rng.random((2_000, 1_000)) < 0.03
    missed = 0
    for stream in events.cumsum(axis=1):
        looks = range(9, 1_000, 30)
        bounds = [rate_interval(int(stream[n]), n + 1, alpha=0.05) for n in looks]
        missed += any(not b.low <= 0.03 <= b.high for b in bounds)
    assert missed <= 0.05 * 2_000


@pytest.mark.parametrize(
    ("events", "trials", "alpha"), [(2, 1, 0.05), (-1, 3, 0.05), (1, 2, 0.0), (1, 2, 1.0)]
)
def test_interval_refuses_when_an_argument_is_out_of_range(
    events: int, trials: int, alpha: float
) -> None:
    with pytest.raises(ValueError, match="=="):
        rate_interval(events, trials, alpha=alpha)
