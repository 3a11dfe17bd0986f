"""The area under the curve is of ranks alone, whatever the scores look like."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from scipy import special
from sklearn.metrics import roc_auc_score

from control.analyze.result import MetricResult
from tests.analyze.worlds import first

ROWS, USERS = 24_000, 600

Floats = npt.NDArray[np.float64]
SCORES: dict[str, Callable[[Floats], Floats]] = {
    "fraud": lambda z: special.expit(1.5 * z - 9),
    "lognormal": lambda z: np.exp(4 * z),
    "ties": lambda z: np.round(z, 1),
    "outlier": lambda z: np.where(np.arange(len(z)) == 7, 1e9, special.expit(z)),
    "lowest": lambda z: np.where(np.arange(len(z)) == 7, -1e300, z * 1e-6),
    "two": lambda z: (z > 0).astype(np.float64),
}


def scored(shape: Callable[[Floats], Floats], seed: int = 1, lift: float = 0.3) -> pa.Table:
    """Rows of users who stay in one arm and share a level; the treatment's scores are better."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, USERS, ROWS)
    treated = user % 3 == 0
    label = rng.random(ROWS) < 0.2
    z = 0.6 * rng.normal(size=USERS)[user] + rng.normal(size=ROWS)
    z += (1 + lift * treated) * label
    return pa.table(
        {
            "variant": np.where(treated, "treatment", "control"),
            "user": user,
            "label": label.astype(np.int64),
            "score": shape(z),
        }
    )


def asked(table: pa.Table, unit: str | None = None) -> MetricResult:
    return first(table, "auc", label_column="label", score_column="score", unit_column=unit)


def areas(table: pa.Table) -> list[float]:
    label, score = (table.column(name).to_numpy() for name in ("label", "score"))
    arm = np.array(table.column("variant").to_pylist())
    return [
        float(roc_auc_score(label[arm == each], score[arm == each]))
        for each in ("control", "treatment")
    ]


@pytest.mark.parametrize("unit", [None, "user"])
@pytest.mark.parametrize("shape", SCORES)
def test_auc_is_that_of_the_reference_when_scores_are_skewed(shape: str, unit: str | None) -> None:
    table = scored(SCORES[shape])
    got = asked(table, unit)
    assert [got.control.mean, got.treatment.mean] == pytest.approx(areas(table), rel=1e-9)


@pytest.mark.parametrize("unit", [None, "user"])
def test_auc_and_its_error_stay_when_a_monotone_change_is_made_to_the_scores(
    unit: str | None,
) -> None:
    plain, bent = asked(scored(lambda z: z), unit), asked(scored(SCORES["lognormal"]), unit)
    assert plain.difference == pytest.approx(bent.difference, rel=1e-12)
    assert plain.standard_error == pytest.approx(bent.standard_error, rel=1e-12)


def test_error_is_the_spread_of_areas_when_users_repeat() -> None:
    """Over many draws the error told is the one seen; that of single rows is too small."""
    draws = [asked(scored(lambda z: z, seed=seed), "user") for seed in range(40)]
    seen = np.std([draw.difference or 0.0 for draw in draws], ddof=1)
    told = np.mean([draw.standard_error or 0.0 for draw in draws])
    assert told == pytest.approx(seen, rel=0.3)


def test_nothing_is_said_of_the_error_when_one_user_has_all_positives() -> None:
    table = scored(lambda z: z)
    label = (table.column("user").to_numpy() < 2).astype(np.int64)
    got = asked(table.set_column(2, "label", pa.array(label)), "user")
    assert got.difference is not None
    assert got.standard_error is None
