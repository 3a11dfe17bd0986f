"""Data of experiments whose truth is known, and the one way tests ask about them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from control.analyze.engine import analyze
from control.analyze.result import Analysis, MetricResult

SHARES = {"control": 0.5, "treatment": 0.5}
Floats = npt.NDArray[np.float64]


def rows(seed: int = 7, n: int = 4_000, *, lift: float = 0.0) -> pa.Table:
    """Users with one row each: a share, a heavy-tailed number, two counts, a covariate."""
    rng = np.random.default_rng(seed)
    treated = rng.random(n) < 0.5
    before = rng.gamma(2.0, 10.0, n)
    return pa.table(
        {
            "variant": np.where(treated, "treatment", "control"),
            "user_id": np.arange(n),
            "converted": (rng.random(n) < 0.2 + lift * treated).astype(np.int64),
            "revenue": before * 0.7 + rng.lognormal(1.0, 1.0, n) + 10 * lift * treated,
            "clicks": rng.poisson(2.0, n),
            "views": 1 + rng.poisson(9.0, n),
            "before": before,
            "country": rng.choice(["DE", "FR", "PL"], n),
        }
    )


def requests(seed: int = 11, users: int = 600, *, lift: float = 0.0) -> pa.Table:
    """Requests of users that differ and return: errors by row would be far too small."""
    rng = np.random.default_rng(seed)
    arm = rng.random(users) < 0.5
    rate = rng.beta(1.0, 4.0, users)
    count = 1 + rng.negative_binomial(1, 0.15, users)
    user = np.repeat(np.arange(users), count)
    order = rng.permutation(len(user))
    user = user[order]
    label = rng.random(len(user)) < 0.4
    score = np.clip(rng.normal(0.4 + 0.2 * label + lift * arm[user] * label, 0.2), 0, 1)
    return pa.table(
        {
            "variant": np.where(arm[user], "treatment", "control"),
            "user_id": user,
            "error": rng.random(len(user)) < rate[user],
            "latency": rng.lognormal(3.0 + rate[user], 0.5),
            "label": label.astype(np.int64),
            "score": score,
            "prediction": (score > 0.5).astype(np.int64),
        }
    )


def ask(data: Any, *metrics: str, **options: Any) -> Analysis:
    """The analysis of a world: its columns are called alike everywhere."""
    given: dict[str, Any] = {
        "variant_column": "variant",
        "control": "control",
        "expected": SHARES,
        "series": False,
        "metrics": metrics,
    }
    return analyze(data, **{**given, **options})


def first(data: Any, *metrics: str, **options: Any) -> MetricResult:
    """The first metric's result."""
    return ask(data, *metrics, **options).metrics[0]


def arms(table: pa.Table, column: str) -> tuple[Floats, Floats]:
    """A column of control and of treatment."""
    values = np.asarray(table.column(column).to_numpy(zero_copy_only=False), dtype=np.float64)
    treated = np.array(table.column("variant").to_pylist()) == "treatment"
    return values[~treated], values[treated]
