"""`analyze`: the function behind the command and the notebook.

Owns the arguments. Refuses those that no data could fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from control.analyze.data import MEMORY_DEFAULT, Progress, open_data
from control.analyze.errors import BadInput
from control.analyze.estimate import N_STAR, Settings
from control.analyze.metrics import Roles
from control.analyze.question import Question
from control.analyze.result import Analysis
from control.analyze.run import Run
from control.stats.errors import check_alpha, check_scalar
from control.stats.verdicts import Rule


def analyze(
    data: Any,
    *,
    variant_column: str,
    control: str,
    unit_column: str | None = None,
    metrics: str | Sequence[str] = (),
    strata: str | None = None,
    covariate: str | None = None,
    expected: Mapping[str, float] | None = None,
    sequential: bool = True,
    alpha: float = 0.05,
    time_column: str | None = None,
    label_column: str | None = None,
    prediction_column: str | None = None,
    score_column: str | None = None,
    positive: str | None = None,
    primary: str | None = None,
    guardrails: Mapping[str, float] | None = None,
    minimum_effect: float | str = 0.0,
    equivalence: float | str | None = None,
    harm: float | str = 0.0,
    lower_is_better: Sequence[str] = (),
    higher_is_better: Sequence[str] = (),
    caps: Mapping[str, float] | None = None,
    label_maturity_s: float = 0.0,
    as_of: str | None = None,
    rule: Rule = "point",
    min_units: int = 100,
    final: bool = False,
    tuned_for: float = N_STAR,
    drop_invalid: bool = False,
    series: bool = True,
    memory: str = MEMORY_DEFAULT,
    threads: int | None = None,
    spill: str | None = None,
    progress: Progress | None = None,
) -> Analysis:
    """Judge an experiment's data: which variant is better, and may that be believed.

    Args:
        data: Files (a path, a glob, a directory, several) of CSV, Parquet, Arrow or JSON lines; a
            pandas or polars frame; a pyarrow table or dataset; a DuckDB relation.
        variant_column: Column that names each row's variant.
        control: The variant that the others are compared with.
        unit_column: Whom the variants were given to; None: every row is a unit.
        metrics: `NAME`, `NAME:mean|proportion|count`, `NAME:ratio:NUM/DEN`, `NAME:quantile:0.95`,
            `NAME=COLUMN:kind`; the first decides. None: every column that can be one.
        strata: Column by which all is looked at apart as well.
        covariate: Column measured before the experiment, to reduce variance (CUPED).
        expected: Variant -> share of units that it should have.
        sequential: Decide by sequences that hold at any look; else by intervals of one look.
        alpha: Error probability of each interval, in (0, 1).
        time_column: When a row happened; gives the series its times and the duration.
        label_column: What was true, for classifier metrics.
        prediction_column: What the model said.
        score_column: How sure it was, for the area under the curve.
        positive: The value of label and prediction that counts as positive.
        primary: Name of the metric that decides, the first by default.
        guardrails: Metric -> loss that is tolerable, in its unit.
        minimum_effect: Least improvement worth having, in the primary's unit or as "2%".
        equivalence: Loss that is as good as none; the minimum effect by default.
        harm: Point effect from which a proven loss is a rollback.
        lower_is_better: Metrics of which less is better; names tell of some.
        higher_is_better: Metrics of which more is better in spite of their names.
        caps: Metric -> what greater values count as (winsorising): of a row, or of a unit's sum
            where that is its value (a ratio's numerator, revenue_per_user).
        label_maturity_s: How long after an exposure (a unit's first row) its outcome is final;
            younger ones are left out of everything. Needs `time_column`.
        as_of: When outcomes were taken, as "2026-01-31 12:00"; the newest time by default.
        rule: "point" or "strict", see `control.stats.verdicts.Policy`.
        min_units: Of each arm, before anything is decided.
        final: No more data will come: what is open is INCONCLUSIVE.
        tuned_for: Units at which sequences are tightest; to be chosen before the data are seen.
        drop_invalid: Treat NaN and infinities as missing instead of refusing them.
        series: Also the sequences over time.
        memory: DuckDB's limit; the rest is spilled.
        threads: Of DuckDB.
        spill: Where to spill to.
        progress: Called with each step's name and share.

    Raises:
        ValueError: Data or an argument of which no honest number can be made; says which.
    """
    _check_name(variant_column)
    said = (label_column, prediction_column, score_column)
    question = Question(
        roles=Roles(variant_column, unit_column, strata, covariate, time_column, *said),
        control=str(control),
        metrics=_asked(metrics),
        expected={str(name): _share(name, share) for name, share in (expected or {}).items()},
        sequential=sequential,
        settings=Settings(check_alpha(alpha), check_scalar("tuned_for", tuned_for, gt=0)),
        primary=primary,
        guardrails=dict(guardrails or {}),
        minimum_effect=minimum_effect,
        equivalence=equivalence,
        harm=harm,
        lower_is_better=tuple(lower_is_better),
        higher_is_better=tuple(higher_is_better),
        label_maturity_s=check_scalar("label_maturity_s", label_maturity_s, ge=0),
        as_of=as_of,
        caps={name: check_scalar(f"cap {name}", cap, gt=0) for name, cap in (caps or {}).items()},
        rule=rule,
        min_units=int(check_scalar("min_units", min_units, ge=2, whole=True)),
        final=final,
        positive=positive,
        series=series,
    )
    reading = _reading(variant_column, unit_column, memory, threads, spill)
    with open_data(data, **reading, progress=progress) as opened:
        opened.drop_invalid = drop_invalid
        return Run(opened, question).answer()


def _reading(
    variant: str, unit: str | None, memory: str, threads: int | None, spill: str | None
) -> dict[str, Any]:
    """What `open_data` has to know."""
    if threads is not None:
        threads = int(check_scalar("threads", threads, ge=1, whole=True))
    columns = {"variant_column": variant, "unit_column": unit or ""}
    return {**columns, "memory": memory, "threads": threads, "spill": spill}


def _check_name(variant_column: object) -> None:
    if not isinstance(variant_column, str):
        raise BadInput(f"variant_column == {variant_column!r}, must be a column's name")


def _asked(metrics: str | Sequence[str] | None) -> tuple[str, ...]:
    asked = (metrics,) if isinstance(metrics, str) else tuple(metrics or ())
    for text in asked:
        if not isinstance(text, str):
            raise BadInput(f"metrics: {text!r}: must be text, as 'revenue:mean'")
    return asked


def _share(name: str, share: float) -> float:
    try:
        return float(share)
    except (TypeError, ValueError) as error:
        raise BadInput(f"expected: {name}={share!r}: a share must be a number above 0") from error
