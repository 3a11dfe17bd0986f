"""Whole plans: what they hold, what they doubt, and that more traffic never makes them worse."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.model import read_yaml
from control.planning.inputs import Assumptions, Traffic, traffic_of
from control.planning.results import ExperimentPlan
from control.planning.rollout import RATIOS, UNITS_LEAST, plan_experiment
from control.rollout import judging
from tests.control.resources import replaced
from tests.tidy.repository import ROOT
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec

BASELINES = {"error_rate": 0.01, "accuracy": 0.92, "latency_p50": 60.0, "latency_p95": 180.0}
CANARY = (ROOT / "envoy/examples/canary.yaml").read_text()
AB = (ROOT / "envoy/examples/ab.yaml").read_text()
SHADOW = (ROOT / "envoy/examples/shadow.yaml").read_text()


def planned(text: str, traffic: Traffic, **changes: object) -> ExperimentPlan:
    """The plan of a file with one experiment."""
    documents, violations = read_yaml(text.encode())
    assert violations == []
    (one,) = documents
    assert isinstance(one.spec, ExperimentSpec)
    assumed = Assumptions(traffic, **{"baselines": BASELINES, **changes})  # type: ignore[arg-type]
    return plan_experiment(one.name, one.spec, assumed)


def codes(plan: ExperimentPlan, field: str = "") -> set[str]:
    """What is doubted, below a field."""
    return {doubt.code for doubt in plan.warnings if doubt.field.startswith(field)}


def test_plan_has_traffic_checks_and_lanes_of_every_step() -> None:
    plan = planned(CANARY, traffic_of(20.0, requests_per_unit=20.0))
    assert [step.kind for step in plan.steps] == ["canary"] * 5
    first = plan.steps[0].candidates[0]
    assert first.requests == pytest.approx(20 * 0.01 * 1_800)
    assert first.control_requests == pytest.approx(20 * 0.99 * 1_800)
    assert first.units is not None
    assert first.units < first.requests
    assert [lane.kind for lane in first.lanes] == ["error", "slow", "wrong"]
    assert [found.ratio for found in first.lanes[0].found] == list(RATIOS)
    assert "a doubling is not detectable in 30m" in first.lanes[0].text
    assert [check.metric for check in plan.steps[2].candidates[0].checks] == [
        "error_rate",
        "latency_p95",
        "accuracy",
    ]
    assert plan.least_s == 10.5 * 3_600
    assert plan.expected_s is not None
    assert plan.expected_s >= plan.least_s


def test_doubling_is_named_as_not_detectable_when_a_step_is_too_small() -> None:
    plan = planned(CANARY, Traffic(20.0))
    (doubt,) = (
        one
        for one in plan.warnings
        if one.code == "DOUBLING_NOT_SEEN" and one.field == "spec.steps[0].canary"
    )
    assert doubt.text.startswith("at 0.2 requests/s to v2 and 1 % errors a doubling is not detect")
    assert codes(planned(CANARY, Traffic(2_000.0)), "spec.steps[1]") == set()


def test_last_stage_is_doubted_when_it_leaves_control_too_little() -> None:
    assert "CONTROL_SMALL" in codes(planned(CANARY, Traffic(200.0)), "spec.steps[4]")
    assert "CONTROL_SMALL" not in codes(planned(CANARY, Traffic(200.0)), "spec.steps[3]")


def test_window_rule_is_named_as_blind_when_it_never_has_its_requests() -> None:
    assert "WINDOW_RULE_BLIND" in codes(planned(CANARY, Traffic(20.0)), "spec.steps[0]")
    assert "WINDOW_RULE_BLIND" not in codes(planned(CANARY, Traffic(40.0)), "spec.steps[0]")


def test_few_units_are_doubted_when_their_requests_are_many() -> None:
    plan = planned(CANARY, Traffic(20.0, units_per_day=2_000.0))
    (doubt,) = (one for one in plan.warnings if one.code == "FEW_UNITS" and "[0]" in one.field)
    assert doubt.text.startswith("360 requests to v2 are those of 20 units, below 100")
    assert "FEW_UNITS" not in codes(planned(CANARY, traffic_of(20.0, requests_per_unit=20.0)))
    assert UNITS_LEAST == judging.UNITS_LEAST


def test_bandit_is_planned_at_its_first_shares() -> None:
    first = "    - canary: {split: {v2: 0.01}, for: 30m, checks: [error_rate]}"
    bandit = "    - bandit: {reward: {metric: accuracy}, every: 10m, for: 6h}\n  onFinish: hold\n"
    plan = planned(f"{CANARY.partition(first)[0]}{bandit}", Traffic(20.0))
    (step,) = plan.steps
    assert (step.kind, step.least_s, step.expected_s) == ("bandit", 21_600.0, 21_600.0)
    (candidate,) = step.candidates
    assert candidate.share == pytest.approx(0.5)
    assert [lane.kind for lane in candidate.lanes] == ["error", "slow", "wrong"]


def test_warm_up_delays_what_is_compared() -> None:
    text = replaced(CANARY, "  metrics:\n", "  metrics:\n    warmUp: 5m\n")
    seconds = [
        one.steps[1].candidates[0].checks[0].seconds
        for one in (planned(CANARY, Traffic(20.0)), planned(text, Traffic(20.0)))
    ]
    assert seconds[0] is not None
    assert seconds[1] == pytest.approx(seconds[0] + 300)


def test_comparison_is_planned_for_every_candidate() -> None:
    plan = planned(AB, traffic_of(2.0, requests_per_unit=20.0))
    found = [one.comparison for one in plan.steps[1].candidates]
    assert all(one is not None and one.weeks == 2 for one in found)
    assert plan.most_s is not None
    assert plan.expected_s is not None
    assert plan.most_s > plan.expected_s


@pytest.mark.parametrize(
    ("rps", "maximum", "code"),
    [(0.2, "672h", "MAXIMUM_TOO_SHORT"), (2.0, "170h", "MAXIMUM_SHORT"), (20.0, "672h", None)],
)
def test_maximum_duration_is_doubted_when_it_is_too_short(
    rps: float, maximum: str, code: str | None
) -> None:
    text = replaced(AB, "maximumDuration: 672h", f"maximumDuration: {maximum}")
    found = codes(planned(text, traffic_of(rps, requests_per_unit=20.0)), "spec.steps[1].ab.max")
    assert found == ({code} if code else set())


def test_comparison_within_a_week_is_doubted_when_nothing_makes_it_wait() -> None:
    text = replaced(AB, "minimumDuration: 168h", "minimumDuration: 1h")
    traffic = traffic_of(20.0, requests_per_unit=20.0)
    assert "BELOW_A_WEEK" in codes(planned(text, traffic))
    assert "BELOW_A_WEEK" not in codes(planned(AB, traffic))


def test_shadow_has_copies_and_no_lanes() -> None:
    plan = planned(SHADOW, Traffic(5.0))
    step = plan.steps[0]
    assert step.kind == "shadow"
    assert step.candidates[0].lanes == ()
    assert step.candidates[0].checks == ()
    assert step.candidates[0].requests > 0


def test_plan_says_what_it_takes_for_granted() -> None:
    plan = planned(CANARY, Traffic(20.0), baselines={"latency_p95": 180.0})
    said = " | ".join(plan.assumptions)
    assert "units not known" in said
    assert "errors are left out: no --baseline error_rate=VALUE" in said
    assert "its spread is assumed" in said
    whole = planned(CANARY, traffic_of(20.0, requests_per_unit=3.0), labels=0.5)
    assert whole.assumptions == (
        "20 requests/s to the target, 576,000 units a day with 3 requests each",
    )


def test_plan_takes_the_share_that_the_experiment_has() -> None:
    text = replaced(CANARY, "  unit: {header: x-user-id}", "  unit: {random: true}")
    text = replaced(text, "  control: control\n", "  layer: {reserve: 0.5}\n  control: control\n")
    plan = planned(text, Traffic(20.0), held_out=0.1, eligible=0.5)
    assert plan.requests_per_s == pytest.approx(20 * 0.5 * 0.5 * 0.9)
    assert plan.unit_random
    assert plan.steps[0].candidates[0].units == plan.steps[0].candidates[0].requests


@pytest.mark.parametrize("baselines", [{"error_rate": 1.2}, {"latency_p95": 0.0}])
def test_plan_refuses_a_baseline_outside_its_range(baselines: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="baseline"):
        planned(CANARY, Traffic(20.0), baselines=baselines)


@settings(max_examples=3)
@given(rps=st.floats(1.0, 100.0), more=st.floats(1.2, 10.0))
def test_more_traffic_never_makes_a_plan_slower_or_blinder(rps: float, more: float) -> None:
    few = planned(CANARY, traffic_of(rps, requests_per_unit=20.0))
    many = planned(CANARY, traffic_of(rps * more, requests_per_unit=20.0))
    for less, better in zip(few.steps, many.steps, strict=True):
        if less.expected_s is not None:
            assert better.expected_s is not None
            assert better.expected_s <= less.expected_s * 1.01
        for slow, fast in zip(less.candidates[0].lanes, better.candidates[0].lanes, strict=True):
            if slow.smallest_rate is not None:
                assert fast.smallest_rate is not None
                assert fast.smallest_rate <= slow.smallest_rate * 1.02
