"""The reference cases of statistics pass, and the runner that says so can fail."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.statcases import ADAPTERS, agrees, cases, faults, main

VECTORS = Path(__file__).parents[1] / "vectors" / "statcases"
CASES = list(cases(VECTORS))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['kind']}-{case['name']}")
def test_statistics_agree_with_the_reference_when_given_its_inputs(case: dict[str, Any]) -> None:
    assert not faults(case)


def test_every_kind_has_a_case_and_every_case_an_adapter() -> None:
    assert {case["kind"] for case in CASES} == set(ADAPTERS)
    assert len(CASES) == 37


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['kind']}-{case['name']}")
def test_runner_fails_when_an_expected_value_is_off(case: dict[str, Any]) -> None:
    wrong = copy.deepcopy(case)
    key, value = next(iter(case["expected"].items()))
    off = [x + 1 for x in value] if isinstance(value, list) else value + 1
    wrong["expected"][key] = off
    assert [fault.split(":")[0] for fault in faults(wrong)] == [key]


def test_runner_ends_with_the_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = copy.deepcopy(CASES[0]), copy.deepcopy(CASES[0])
    bad["name"], bad["kind"] = "strange", "unheard_of"
    (tmp_path / "a.json").write_text(json.dumps([good, bad]))
    assert main([str(tmp_path)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "FAILED unheard_of/strange: kind 'unheard_of' is unknown",
        "1 passed, 1 failed",
    ]


def test_runner_fails_when_there_is_no_case(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 1


def test_agreement_takes_words_for_floats_and_booleans_exactly() -> None:
    assert agrees(float("inf"), "inf", rtol=0, atol=0)
    assert agrees(float("nan"), "nan", rtol=0, atol=0)
    assert not agrees(1e300, "inf", rtol=1, atol=1)
    assert not agrees(False, True, rtol=1, atol=1)
    assert not agrees([1.0, 2.0], [1.0], rtol=1, atol=1)
    assert not agrees(float("nan"), 1.0, rtol=1, atol=1)
    assert agrees(float("inf"), None, rtol=0, atol=0)
    assert not agrees(0.0, None, rtol=1, atol=1)


@pytest.mark.parametrize(
    ("kind", "inputs", "expected"),
    [
        ("welch_t", {"control": {"n": 9, "mean": 1.0, "sd": 2.0},
                     "treatment": {"n": 4, "mean": 2.0, "variance": 1.0},
                     "alternative": "larger"}, {"diff": 1.0, "ci_high": "inf"}),
        ("count_sequential", {"counts": [0, 0, 0], "weights": [1, 1, 2]},
         {"log_bayes_factor": 0.0, "p_value": 1.0}),
        ("count_sequential", {"counts": [0, 5], "weights": [1, 1]},
         {"log_rate_ratio_ci_high": "inf"}),
        ("cs_asymptotic", {"control": [1.0, 2.0, 4.0], "treatment": [2.0, 3.0, 4.0],
                           "n_star": 10, "alternative": "less"}, {"ci_low": "-inf"}),
        ("dkw_sequential", {"t": 10, "alpha": 0.05, "t_min": 100}, {"sup_cdf_bound": "inf"}),
        ("quantile_ci", {"values": [1.0, 2.0], "q": 0.5}, {"ci_low": "nan", "estimate": 1.5}),
        ("bandit_prob_best", {"arms": [{"n": 9, "mean": 1.0, "sd": 1.0}] * 2},
         {"prob_best": [0.5, 0.5]}),
        ("bayes_gauss", {"control": {"n": 9, "sum": 9.0, "sum_sq": 17.0},
                         "treatment": {"n": 9, "sum": 9.0, "sum_sq": 17.0},
                         "prior": {"mean": 1.0, "variance": 2 / 9, "proper": True}},
         {"posterior_mean": 0.5}),
        ("multiple_testing", {"e_values": [100.0, 1.0]}, {"reject": [True, False]}),
    ],
)  # fmt: skip
def test_runner_takes_what_else_the_schema_allows(
    kind: str, inputs: dict[str, Any], expected: dict[str, Any]
) -> None:
    case = {"kind": kind, "name": "other", "inputs": inputs, "expected": expected}
    assert not faults(case | {"rtol": 1e-9, "atol": 1e-9})


@pytest.mark.parametrize(
    ("kind", "inputs", "said"),
    [
        (
            "msprt",
            {"diff": 0.1, "sigma": 1, "tau": 1, "n_per_arm": "inf"},
            "ValueError: inf is no number of units, must be whole",
        ),
        (
            "power_props",
            {"p_control": 0.1, "p_treatment": 0.2, "power": 0.8, "ratio": 0},
            "ValueError: ratio_treatment_to_control == inf, must be finite",
        ),
    ],
)
def test_case_is_refused_in_words_when_its_inputs_are_out_of_range(
    kind: str, inputs: dict[str, Any], said: str
) -> None:
    assert faults({"kind": kind, "name": "bad", "inputs": inputs, "expected": {}}) == [said]
