"""Label maturity: exposures too young for their outcome are left out, and that is said."""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from control.analyze.result import Analysis
from tests.analyze.worlds import ask, rows

DAY_S = 86_400.0
START = datetime.fromisoformat("2026-03-01T12:00:00")


def daily(**more: Any) -> pa.Table:
    """Users of 20 days, 200 a day: exposed at noon."""
    table = rows()
    at = [START + timedelta(days=user // 200) for user in range(table.num_rows)]
    for name, values in {"at": at, **more}.items():
        table = table.append_column(name, pa.array(values))
    return table


def alike(one: Analysis, other: Analysis) -> bool:
    """Whether both have the same numbers; sums are taken in any order."""
    pairs = zip(one.metrics, other.metrics, strict=True)
    return all(
        mine.control.n == its.control.n
        and mine.difference == pytest.approx(its.difference, rel=1e-9)
        and mine.standard_error == pytest.approx(its.standard_error, rel=1e-9)
        and mine.cs_low == pytest.approx(its.cs_low, rel=1e-9)
        for mine, its in pairs
    )


def test_young_rows_are_left_out_of_everything_and_counted() -> None:
    table = daily()
    answer = ask(
        table, "converted", "revenue:quantile:0.5", time_column="at", label_maturity_s=5 * DAY_S
    )
    plain = ask(table.slice(0, 15 * 200), "converted", "revenue:quantile:0.5", time_column="at")
    assert alike(answer, plain)
    assert answer.srm == plain.srm
    assert answer.source.units == 3_000
    assert (
        "label maturity of 5 d: 1,000 of 4,000 rows are left out of everything as younger at the "
        "end of the data (2026-03-20 12:00:00)"
    ) in answer.warnings


def test_unit_counts_with_all_its_rows_when_its_first_is_old_enough() -> None:
    once = daily()
    again = once.set_column(
        once.schema.get_field_index("at"), "at", pa.array([START + timedelta(days=19)] * 4_000)
    )
    # Everybody comes back on the last day; those of the last five days came first then.
    table = pa.concat_tables([once, again])
    options: dict[str, Any] = {"unit_column": "user_id", "time_column": "at"}
    answer = ask(table, "revenue:mean", label_maturity_s=5 * DAY_S, **options)
    old = pa.concat_tables([once.slice(0, 3_000), again.slice(0, 3_000)])
    assert alike(answer, ask(old, "revenue:mean", **options))
    assert answer.source.rows == 6_000
    assert any("1,000 of 4,000 units are left out" in warning for warning in answer.warnings)


@pytest.mark.parametrize(
    ("as_of", "kept"),
    [("2026-03-25 12:00", 4_000), ("2026-03-10T12:00:00", 1_000), ("2026-03-20", 2_800)],
)
def test_age_is_as_of_the_time_that_is_given(as_of: str, kept: int) -> None:
    answer = ask(daily(), "revenue", time_column="at", label_maturity_s=5 * DAY_S, as_of=as_of)
    assert answer.source.units == kept


def test_rows_without_a_time_are_left_out_and_counted() -> None:
    table = daily()
    at = [None if place < 50 else value for place, value in enumerate(table["at"].to_pylist())]
    table = table.set_column(table.schema.get_field_index("at"), "at", pa.array(at))
    answer = ask(table, "revenue", time_column="at", label_maturity_s=5 * DAY_S)
    assert answer.source.units == 2_950
    assert any("50 of them without any time" in warning for warning in answer.warnings)


def test_times_may_be_text_dates_or_a_relation(tmp_path: Path) -> None:
    table = daily()
    times = table["at"].to_pylist()
    for values in ([time.isoformat() for time in times], [time.date() for time in times]):
        other = table.set_column(table.schema.get_field_index("at"), "at", pa.array(values))
        found = ask(other, "revenue", time_column="at", label_maturity_s=5 * DAY_S)
        assert found.source.units == 3_000
    with duckdb.connect() as connection:
        relation = connection.from_arrow(table)
        found = ask(relation, "revenue", time_column="at", label_maturity_s=5 * DAY_S, series=True)
        assert found.source.units == 3_000
    assert isinstance(times[0].date(), date)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "labelMaturity: a label maturity of 5 d needs to know when each row happened"),
        ({"time_column": "clicks"}, "time: column 'clicks' is of type BIGINT, must be times"),
        ({"time_column": "country"}, "time: column 'country' has no times"),
        ({"time_column": "at", "as_of": "soon"}, "as_of: 'soon': must be a time"),
        ({"time_column": "at", "as_of": "2026-03-02"}, "all 4,000 rows are younger than the label"),
    ],
)
def test_label_maturity_is_refused_when_ages_cannot_be_told(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        ask(daily(), "revenue", label_maturity_s=5 * DAY_S, **options)
