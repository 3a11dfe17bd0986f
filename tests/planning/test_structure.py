"""Designs that can never decide are named, whatever the traffic; good ones are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from control.model import read_yaml
from control.planning.inputs import Assumptions, Traffic
from control.planning.structure import segment_share, structural, with_traffic
from tests.control.resources import EXPERIMENT, document, replaced
from tests.tidy.repository import ROOT
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec

STEP = (
    "  - canary: {split: {v2: 0.01, v3: 0.01}, for: 30m, checks: [error_rate], minimumRequests: 30}"
)


def spec(step: str = STEP, *, old: str = STEP, text: str = EXPERIMENT) -> ExperimentSpec:
    """The usual experiment with one place changed."""
    found = document(replaced(text, old, step)).spec
    assert isinstance(found, ExperimentSpec)
    return found


def codes(one: ExperimentSpec) -> set[str]:
    """What is doubted."""
    return {doubt.code for doubt in structural(one)}


def test_usual_experiment_is_not_doubted() -> None:
    assert structural(spec()) == ()


@pytest.mark.parametrize(
    ("step", "code", "said"),
    [
        (
            "  - canary: {split: {v2: 0, v3: 0}, for: 30m}",
            "NO_CANDIDATE",
            "never passes",
        ),
        (
            "  - canary: {split: {v2: 0.01, v3: 0.99}, for: 30m}",
            "NO_CONTROL",
            "no control is left",
        ),
        (
            "  - canary: {split: {v2: 0.01}, for: 1s, minimumRequests: 1000000}",
            "MINIMUM_REQUESTS_RATE",
            "100,000,000 requests per second",
        ),
        (
            "  - ab: {split: {v2: 0.01, v3: 0.99}}",
            "NO_CONTROL",
            "never decides",
        ),
        (
            "  - ab: {split: {v2: 0.01}, minimumUnits: 1000, maximumDuration: 5s}",
            "MAXIMUM_TOO_SHORT",
            "1,000 units per arm within 5s",
        ),
        (
            "  - ab: {split: {v2: 0.01}, maximumDuration: 0s}",
            "MAXIMUM_TOO_SHORT",
            "never decides",
        ),
    ],
)
def test_step_is_doubted_when_no_traffic_lets_it_decide(step: str, code: str, said: str) -> None:
    found = [doubt for doubt in structural(spec(step)) if doubt.code == code]
    assert found
    assert said in found[0].text
    assert found[0].field.startswith("spec.steps[1].")


def test_margin_of_nothing_is_doubted_for_a_rate_and_not_for_a_latency() -> None:
    old = "{metric: error_rate, maximumHarm: {absolute: 0.01}}"
    assert codes(spec("{metric: error_rate, maximumHarm: {absolute: 0}}", old=old)) == {
        "MARGIN_ZERO"
    }
    old = "{metric: latency_p95, maximumHarm: {absolute: 50ms}, slo: 200ms}"
    assert codes(spec("{metric: latency_p95, maximumHarm: {absolute: 0ms}}", old=old)) == set()


def test_comparison_without_a_primary_metric_is_doubted() -> None:
    text = replaced(EXPERIMENT, STEP, "  - ab: {split: {v2: 0.5}, maximumDuration: 168h}")
    old = "    primary: {metric: accuracy, minimumImprovement: {absolute: 0.01}}\n"
    text = replaced(text, "- canary: {split: {v2: 0.05, v3: 0.01}", "- canary: {split: {v2: 0.5}")
    assert codes(spec("", old=old, text=text)) == {"NO_PRIMARY"}
    assert codes(spec(old, old=old, text=text)) == set()


def test_warm_up_that_outlasts_a_step_is_doubted() -> None:
    assert "ALL_WARM_UP" in codes(spec("  metrics:\n    warmUp: 30m\n", old="  metrics:\n"))
    assert "ALL_WARM_UP" not in codes(spec("  metrics:\n    warmUp: 1m\n", old="  metrics:\n"))


def test_segment_of_nobody_is_doubted_and_others_are_measured() -> None:
    old = "{all: [{header: x-country, in: [DE, FR]}]}"
    nobody = spec("{all: [{percentage: {salt: beta, fraction: 0}}]}", old=old)
    assert codes(nobody) == {"NOBODY"}
    some = spec(
        "{all: [{percentage: {salt: a, fraction: 0.5}}, {percentage: {salt: b, fraction: 0.2}}]}",
        old=old,
    )
    assert segment_share(some.segment) == pytest.approx(0.1)
    assert segment_share(spec().segment) is None


def test_traffic_is_doubted_when_it_is_too_little_for_a_step_s_time() -> None:
    assumed = Assumptions(Traffic(0.1), {"error_rate": 0.01})
    found = with_traffic(spec(), assumed)
    assert {doubt.code for doubt in found} == {"MINIMUM_REQUESTS_LATE", "CHECK_LATE"}
    late = [doubt for doubt in found if doubt.field == "spec.steps[2].canary.minimumRequests"]
    assert [doubt.text for doubt in late] == [
        "v2 gets 18 requests in 1h; 30 take 1h 40m",
        "v3 gets 3.6 requests in 1h; 30 take 8h 20m",
    ]
    # Latencies are not known here, and what is not known is not doubted.
    rich = Assumptions(Traffic(1_000.0), {"error_rate": 0.01})
    assert with_traffic(spec(), rich) == ()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "envoy/examples").glob("*.yaml")), ids=lambda path: path.name
)
def test_examples_are_not_doubted(path: Path) -> None:
    documents, _ = read_yaml(path.read_bytes())
    for one in documents:
        if isinstance(one.spec, ExperimentSpec):
            assert structural(one.spec) == ()
