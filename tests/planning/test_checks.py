"""When checks can be decided: as the live checks decide in seeded worlds, and monotone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.planning.checks import Arms, late, plan_check
from control.planning.inputs import Assumptions, Traffic
from control.rollout.checks import look_check
from control.rollout.policy import GuardrailPolicy, Margin, Policy, StepPolicy
from control.rollout.reduce import reduce
from control.rollout.words import Phase, Verdict
from tests.control.cell_worlds import CONTROL, V2, Arm, both, cells

TRAFFIC = Traffic(100.0)
BASELINES = {"error_rate": 0.02, "accuracy": 0.9, "latency_p50": 60.0, "latency_p95": 180.0}
ASSUMED = Assumptions(TRAFFIC, BASELINES)
MINIMUM = 30


def guardrail(metric: str, harm: float | None, slo_ms: float | None = None) -> GuardrailPolicy:
    """A guardrail with an absolute margin."""
    return GuardrailPolicy(metric, None if harm is None else Margin(absolute=harm), slo_ms)


def live(asked: GuardrailPolicy, share: float, requests: tuple[float, float], seed: int) -> Verdict:
    """The live check's verdict on a world of so many requests (the candidate's, control's)."""
    ppm = round(share * 1e6)
    split = {CONTROL: 1_000_000 - ppm, V2: ppm}
    step = StepPolicy(Phase.CANARY, split, checks=(asked.metric,), minimum_requests=MINIMUM)
    policy = Policy(CONTROL, (V2,), (step,), guardrails=(asked,))
    mine, theirs = (
        Arm(users=max(1, round(n)), requests=1.0, error=0.02, accuracy=0.9) for n in requests
    )
    looks = reduce(cells(both(theirs, mine), splits={1: split}, seed=seed), policy)
    assert looks is not None
    return look_check(looks.of(asked.metric, V2), policy, step).verdict


@pytest.mark.parametrize(
    ("metric", "harm", "share"),
    [
        ("error_rate", 0.01, 0.5),
        ("error_rate", 0.01, 0.1),
        ("error_rate", 0.01, 0.01),
        ("error_rate", 0.005, 0.25),
        ("accuracy", 0.02, 0.5),
        ("accuracy", 0.02, 0.05),
    ],
)
def test_check_passes_live_with_twice_what_is_planned_and_not_with_a_third(
    metric: str, harm: float, share: float
) -> None:
    """The observed difference is noise around 0: the plan is about the middle of what is needed."""
    asked = guardrail(metric, harm)
    arms = Arms(100 * share, 100 * (1 - share), share=share)
    planned = plan_check(asked, arms, MINIMUM, ASSUMED)
    assert planned.candidate_requests is not None
    assert planned.control_requests is not None
    needed = planned.candidate_requests, planned.control_requests
    passed = {
        factor: sum(
            live(asked, share, (needed[0] * factor, needed[1] * factor), seed) is Verdict.PASS
            for seed in range(20)
        )
        for factor in (0.33, 2.2)
    }
    print(f"{metric} {harm} at {share}: {planned.text}: passed {passed} of 20")
    assert passed[0.33] <= 6
    assert passed[2.2] >= 14


def test_margin_is_wider_when_the_share_is_small() -> None:
    seconds = {}
    for share in (0.05, 0.1, 0.5):
        arms = Arms(5.0, 95.0, share=share)
        seconds[share] = plan_check(guardrail("error_rate", 0.01), arms, MINIMUM, ASSUMED).seconds
    assert seconds[0.05] < seconds[0.1] < seconds[0.5]  # type: ignore[operator]
    text = plan_check(guardrail("error_rate", 0.01), Arms(1, 99, share=0.01), 30, ASSUMED).text
    assert "at most 5 % worse (5 times the margin at so small a share)" in text


@pytest.mark.parametrize(
    ("asked", "baselines"),
    [
        (guardrail("error_rate", 0.0), {"error_rate": 0.01}),
        (GuardrailPolicy("error_rate", Margin(relative=0.5)), {"error_rate": 0.0}),
        # Control itself is slower than the SLO more often than the quantile allows.
        (guardrail("latency_p95", None, 100.0), {"latency_p50": 60.0, "latency_p95": 180.0}),
    ],
)
def test_check_is_never_decided_when_nothing_can_show_it(
    asked: GuardrailPolicy, baselines: dict[str, float]
) -> None:
    planned = plan_check(asked, Arms(50, 50), MINIMUM, Assumptions(TRAFFIC, baselines))
    assert planned.known
    assert planned.seconds is None
    assert "no number of requests is enough" in late(planned, 1e9)


def test_check_passes_at_the_minimum_when_it_has_no_margin() -> None:
    planned = plan_check(guardrail("error_rate", None), Arms(0.5, 9.5), 60, ASSUMED)
    assert planned.seconds == pytest.approx(120)
    assert late(planned, 119.0).endswith("takes 2m at this traffic")
    assert late(planned, 121.0) == ""


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("error_rate", "--baseline error_rate=VALUE, like 0.01"),
        ("latency_p99", "--baseline latency_p99=VALUE, like 180ms"),
        ("precision", "not planned"),
    ],
)
def test_check_says_what_is_missing_when_it_cannot_be_planned(metric: str, said: str) -> None:
    planned = plan_check(guardrail(metric, 0.01), Arms(50, 50), 30, Assumptions(TRAFFIC))
    assert not planned.known
    assert said in planned.text
    assert late(planned, 1.0) == ""


def test_labels_that_come_for_a_part_take_as_much_longer() -> None:
    whole, part = (
        plan_check(
            guardrail("accuracy", 0.02), Arms(50, 50), 30, Assumptions(TRAFFIC, BASELINES, labels=x)
        ).seconds
        for x in (1.0, 0.25)
    )
    assert whole is not None
    assert part == pytest.approx(4 * whole, rel=0.01)


@given(
    metric=st.sampled_from(["error_rate", "accuracy", "latency_p95"]),
    share=st.floats(0.01, 0.98),
    harm=st.floats(0.002, 0.1),
    more=st.floats(1.05, 50.0),
)
def test_more_traffic_or_a_wider_margin_never_takes_longer(
    metric: str, share: float, harm: float, more: float
) -> None:
    scale = 200.0 if metric == "latency_p95" else 1.0
    asked = guardrail(metric, harm * scale)
    few = plan_check(asked, Arms(10 * share, 10 * (1 - share), share=share), 30, ASSUMED)
    many = plan_check(
        asked, Arms(10 * more * share, 10 * more * (1 - share), share=share), 30, ASSUMED
    )
    wide = plan_check(
        guardrail(metric, harm * scale * more),
        Arms(10 * share, 10 * (1 - share), share=share),
        30,
        ASSUMED,
    )
    if few.seconds is not None:
        for better in (many, wide):
            assert better.seconds is not None
            assert better.seconds <= few.seconds * 1.01
