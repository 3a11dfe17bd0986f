"""What the rollout reads from a spec, defaults included; and the numbers of its sentences."""

from __future__ import annotations

import math

import pytest
from google.protobuf import json_format

from control.rollout import codec, plain
from control.rollout.policy import (
    BreakerPolicy,
    GuardrailPolicy,
    Margin,
    Policy,
    StepPolicy,
    WindowPolicy,
)
from control.rollout.words import Kind, Phase
from turnout.v1alpha1 import experiment_pb2

VARIANTS = [{"name": "control"}, {"name": "v2"}, {"name": "v3"}]
FULL: dict[str, object] = {
    "target": "fraud",
    "unit": {"random": True},
    "control": "control",
    "variants": VARIANTS,
    "metrics": {
        "primary": {"metric": "latency_p50"},
        "guardrails": [
            {"metric": "error_rate", "maximumHarm": {"relative": 0.5}},
            {"metric": "latency_p95", "maximumHarm": {"absoluteDuration": "0.050s"}, "slo": "0.2s"},
            {"metric": "latency_p99", "slo": "0.5s"},
            {"metric": "accuracy", "maximumHarm": {"absolute": 0.02}},
        ],
    },
    "steps": [
        {"canary": {"split": {"v2": 0.29, "v3": 0.07}, "for": "60s", "checks": ["accuracy"]}},
        {"shadow": {"variant": "v3", "fraction": 0.5, "for": "1800s", "minimumRequests": 9}},
        {"ab": {"split": {"v2": 0.5}, "minimumDuration": "3600s"}},
    ],
    "onFinish": "ON_FINISH_PROMOTE",
    "safety": {
        "alpha": 0.01,
        "window": {"length": "60s", "difference": 0.1, "minimumRequests": 50},
        "breaker": {"errorRate": 0.5, "latencyP99": "1s", "windows": 2},
    },
}


def policy_of(fields: dict[str, object]) -> Policy:
    return Policy.from_spec(json_format.ParseDict(fields, experiment_pb2.ExperimentSpec()))


def test_policy_says_what_the_spec_says_when_everything_is_set() -> None:
    policy = policy_of(FULL)
    assert policy.candidates == ("v2", "v3")
    assert policy.unit_random
    assert policy.promote_on_finish
    assert policy.alpha == 0.01
    assert policy.kinds == (Kind.ERROR, Kind.SLOW, Kind.WRONG)
    assert policy.slow_after_ms == 200.0
    assert policy.guardrails == (
        GuardrailPolicy("error_rate", Margin(relative=0.5)),
        GuardrailPolicy("latency_p95", Margin(absolute=50.0), 200.0),
        GuardrailPolicy("latency_p99", None, 500.0),
        GuardrailPolicy("accuracy", Margin(absolute=0.02)),
    )
    assert policy.window == WindowPolicy(60_000, 0.1, 50)
    assert policy.breaker == BreakerPolicy(0.5, 1_000.0, 2, 20)


@pytest.mark.parametrize(
    ("confidence", "alpha"), [(0.95, 0.05), (0.9999999999999, 1e-6), (1e-13, 0.5)]
)
def test_alpha_is_one_that_sequences_take_whatever_was_stored(
    confidence: float, alpha: float
) -> None:
    """With an alpha of 0 every look would fail, and with it the whole experiment's safety."""
    step = {"ab": {"split": {"v2": 0.5}, "confidence": confidence}}
    (found,) = policy_of(FULL | {"steps": [step]}).steps
    assert found.alpha == alpha


def test_steps_have_exact_parts_per_million_when_fractions_are_not_binary() -> None:
    canary, shadow, ab = policy_of(FULL).steps
    split = {"control": 640_000, "v2": 290_000, "v3": 70_000}
    assert canary == StepPolicy(Phase.CANARY, split, "", 0, 60_000, ("accuracy",), 30)
    # A shadow has no split of its own: the one before stays.
    assert shadow == StepPolicy(Phase.SHADOW, split, "v3", 500_000, 1_800_000, (), 9)
    assert ab.split_ppm == {"control": 500_000, "v2": 500_000, "v3": 0}


def test_policy_has_the_documented_defaults_when_the_spec_is_bare() -> None:
    bare: dict[str, object] = {
        "target": "fraud",
        "control": "control",
        "variants": VARIANTS[:2],
        "steps": [{"canary": {"split": {"v2": 0.01}, "for": "60s"}}],
    }
    policy = policy_of(bare)
    assert (policy.alpha, policy.kinds, policy.breaker) == (0.001, (Kind.ERROR,), None)
    assert policy.window == WindowPolicy(900_000, 0.05, 300)
    assert not policy.promote_on_finish
    assert policy.steps[0].checks == ("error_rate",)


def test_policy_survives_json_when_it_has_everything() -> None:
    policy = policy_of(FULL)
    assert codec.from_json(Policy, codec.to_json(policy)) == policy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (plain.percent(0.2), "20 %"),
        (plain.percent(0.0025), "0.25 %"),
        (plain.percent(1 / 3), "33.3 %"),
        (plain.percent(0.0), "0 %"),
        (plain.percent(2e-7), "2.0e-05 %"),
        (plain.e_value(math.log(9870)), "9,870"),
        (plain.e_value(math.log(0.05)), "0.05"),
        (plain.e_value(math.log(2.1e6)), "2.1e6"),
        (plain.e_value(math.log(9.99e6)), "1.0e7"),
        (plain.e_value(800 * math.log(10)), "1.0e800"),
        (plain.duration(0), "0s"),
        (plain.duration(45_000), "45s"),
        (plain.duration(5_400_000), "1h 30m"),
        (plain.duration(90_061_000), "1d 1h"),
        (plain.duration(-5), "0s"),
        (plain.milliseconds(182.3), "182 ms"),
        (plain.milliseconds(7.25), "7.25 ms"),
        (plain.count(12345), "12,345"),
    ],
)
def test_numbers_read_plainly_when_put_into_a_sentence(text: str, expected: str) -> None:
    assert text == expected
