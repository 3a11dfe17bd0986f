"""Covariates that an arm lacks or that the treatment changed, and strata without spread."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from control.analyze.engine import analyze
from control.analyze.result import Analysis

UNITS = 8_000


def world(seed: int = 1) -> dict[str, np.ndarray]:
    """No effect; value and covariate rise over the rows."""
    rng = np.random.default_rng(seed)
    arm = np.where(rng.random(UNITS) < 0.5, "c", "t")
    x = np.linspace(0, 10, UNITS) + rng.normal(size=UNITS)
    return {"arm": arm, "x": x, "y": 0.5 * x + rng.normal(size=UNITS)}


def asked(columns: dict[str, np.ndarray], lost: np.ndarray | None = None) -> Analysis:
    table = pa.table({**columns, "x": pa.array(columns["x"], mask=lost)})
    return analyze(table, variant_column="arm", control="c", metrics=["y:mean"], covariate="x")


def test_units_without_a_covariate_get_its_mean_when_some_lack_it() -> None:
    columns = world()
    lost = np.random.default_rng(2).random(UNITS) < 0.3
    answer = asked(columns, lost)
    x, t = columns["x"], columns["arm"] == "t"
    filled = np.where(lost, x[~lost].mean(), x)
    plain = asked({**columns, "x": filled})
    one, other = answer.metrics[0], plain.metrics[0]
    # Over all rows at once by least squares within the arms, which shares no code.
    within = [filled - np.where(t, filled[t].mean(), filled[~t].mean())]
    theta = (within[0] @ columns["y"]) / (within[0] @ within[0])
    rest = columns["y"] - theta * filled
    assert one.difference == pytest.approx(rest[t].mean() - rest[~t].mean(), rel=1e-3)
    assert one.difference == pytest.approx(other.difference, rel=1e-9)
    said = f"c {int((lost & ~t).sum())} of {int((~t).sum())}"
    assert any(said in warning for warning in answer.warnings)
    assert answer.decision == "CONTINUE"


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_data_are_invalid_when_one_arm_lacks_the_covariate(share: float) -> None:
    columns = world()
    lost = (columns["arm"] == "t") & (np.random.default_rng(3).random(UNITS) < share)
    answer = asked(columns, lost)
    assert answer.decision == "INVALID"
    assert "the covariate" in answer.reasons[0].text


def test_covariate_is_not_applied_when_it_differs_between_the_arms() -> None:
    columns = world()
    t = columns["arm"] == "t"
    answer = asked({**columns, "x": columns["x"] + 3 * t})
    y = columns["y"]
    assert answer.metrics[0].difference == pytest.approx(y[t].mean() - y[~t].mean(), rel=1e-9)
    assert answer.decision == "CONTINUE"
    assert any("covariate x differs between c and 't'" in said for said in answer.warnings)


def test_covariate_is_not_applied_when_it_is_the_arm() -> None:
    columns = world()
    t = columns["arm"] == "t"
    y = columns["y"] + 0.5 * t
    answer = asked({**columns, "y": y, "x": 1.0 * t})
    assert answer.metrics[0].difference == pytest.approx(y[t].mean() - y[~t].mean(), rel=1e-9)


def test_covariate_is_alike_by_chance_in_nearly_all_worlds_when_it_is_from_before() -> None:
    answers = [asked(world(seed)) for seed in range(20)]
    assert not any("differs" in said for answer in answers for said in answer.warnings)


def strata(last: int, scale: float) -> pa.Table:
    """Stratum a: 10 % to 16 %; b: three times the units, no event but `last` in treatment."""
    arm, stratum, events = [], [], []
    for name, s, n, hits in (
        ("c", "a", 5_000, 500),
        ("t", "a", 5_000, 800),
        ("c", "b", 15_000, 0),
        ("t", "b", 15_000, last),
    ):
        arm += [name] * n
        stratum += [s] * n
        events += [scale] * hits + [0.0] * (n - hits)
    return pa.table({"arm": arm, "s": stratum, "y": events})


@pytest.mark.parametrize(("kind", "scale"), [("proportion", 1.0), ("mean", 2.0)])
def test_effect_is_of_all_units_when_a_stratum_has_no_events(kind: str, scale: float) -> None:
    answers = [
        analyze(
            strata(last, scale),
            variant_column="arm",
            control="c",
            metrics=[f"y:{kind}"],
            minimum_effect=0.05 * scale,
            strata="s",
        )
        for last in (0, 1)
    ]
    assert [answer.decision for answer in answers] == ["NO_DIFFERENCE", "NO_DIFFERENCE"]
    # A quarter of the units at 0.06, three quarters at 0.
    assert answers[0].reasons[0].values["effect"] == pytest.approx(0.015 * scale)


def test_effect_over_strata_is_covered_when_one_of_them_has_rarely_an_event() -> None:
    rng, outside, worlds = np.random.default_rng(5), 0, 60
    for _ in range(worlds):
        hits = rng.binomial([500, 500, 1500, 1500], [0.2, 0.2, 1e-3, 1e-3])
        parts = zip(("c", "t", "c", "t"), "aabb", (500, 500, 1500, 1500), hits, strict=True)
        arm: list[str] = []
        stratum: list[str] = []
        y: list[int] = []
        for name, s, n, x in parts:
            arm, stratum, y = arm + [name] * n, stratum + [s] * n, y + [1] * x + [0] * (n - x)
        answer = analyze(
            pa.table({"arm": arm, "s": stratum, "y": y}),
            variant_column="arm",
            control="c",
            metrics=["y:proportion"],
            strata="s",
        )
        outside += answer.decision not in ("CONTINUE", "NO_DIFFERENCE")
    assert outside <= 0.05 * worlds
