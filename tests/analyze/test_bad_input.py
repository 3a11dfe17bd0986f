"""What no honest number can be made of: refused with field, value and remedy, or left undecided."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.analyze.errors import BadInput, Unreadable
from control.analyze.metrics import BUILT_IN, LOWER
from control.analyze.result import to_json
from control.model.metrics import BUILT_IN as LIVE
from tests.analyze.worlds import ask, first, requests, rows


def halves(values: list[Any], **more: list[Any]) -> pa.Table:
    """A column x, its rows in turn of control and of treatment."""
    names = ["control", "treatment"] * (len(values) // 2 + 1)
    return pa.table({"variant": names[: len(values)], "x": values, **more})


def refused(says: str, data: Any, *metrics: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=says):
        ask(data, *metrics, **options)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", ["x:mean", "x:quantile:0.5", "r:ratio:x/d", "r:ratio:d/x"])
@pytest.mark.parametrize("unit", [None, "u"])
def test_number_is_refused_when_it_is_not_finite(bad: float, metric: str, unit: str | None) -> None:
    values = [float(i) for i in range(400)]
    values[7] = bad
    table = halves(values, d=[1.0] * 400, u=list(range(400)))
    refused(
        r"metric '.': column 'x' has \d NaN and \d infinite values; .*--drop-invalid",
        table,
        metric,
        unit_column=unit,
    )
    got = first(table, metric, unit_column=unit, drop_invalid=True)
    assert got.control.n + got.treatment.n == 399


def test_covariate_and_score_are_refused_when_they_are_not_finite() -> None:
    table = halves([1.0, 2.0] * 200, c=[math.nan] + [1.0] * 399)
    refused("covariate: the column has 1 NaN", table, "x", covariate="c")
    scored = requests(users=50).append_column(
        "bad", pa.array([math.inf] + [0.5] * (len(requests(users=50)) - 1))
    )
    refused("score: column 'bad'", scored, "auc", label_column="label", score_column="bad")


def test_squares_are_refused_when_they_overflow() -> None:
    refused("too large to be squared", halves([1e200, -1e200, 3e200] * 100), "x:mean")


@pytest.mark.parametrize("value", [0.0, 3.3, -1e9])
@pytest.mark.parametrize("kind", ["mean", "quantile:0.5"])
def test_nothing_is_decided_when_values_are_all_alike(value: float, kind: str) -> None:
    answer = ask(halves([value] * 1_000), f"x:{kind}")
    got = answer.metrics[0]
    assert (got.difference, got.p_value, got.standard_error) == (0.0, None, None)
    assert answer.decision == "WARMING_UP"
    assert any("no spread" in warning for warning in answer.warnings)


def test_nothing_is_decided_when_an_arm_has_one_unit() -> None:
    table = halves([float(i) for i in range(300)], u=["a", "b"] * 150)
    answer = ask(table, "x:mean", unit_column="u")
    assert answer.decision == "WARMING_UP"
    assert answer.metrics[0].p_value is None
    assert ask(halves([1.0, 2.0]), "x:mean").decision == "WARMING_UP"


def test_nothing_is_said_of_an_arm_when_it_has_no_value() -> None:
    table = halves([1.0, None, 3.0, None] * 10)
    got = first(table, "x:mean")
    assert got.treatment.n == 0
    assert (got.treatment.mean, got.difference, got.p_value, got.cs_low) == (None,) * 4


def test_denominator_is_not_divided_by_when_it_is_zero() -> None:
    answer = ask(halves([1.0, 2.0] * 200, d=[0.0] * 400), "r:ratio:x/d")
    assert answer.metrics[0].difference is None
    assert any("denominator" in warning for warning in answer.warnings)


@pytest.mark.parametrize(
    ("says", "metric"),
    [
        ("398 values of column 'x' break the rule of a proportion: .* use x:mean", "x:proportion"),
        ("values of column 'n' break the rule of a count: each must be a whole number", "n:count"),
        ("'x:meen': 'meen' is no kind; did you mean 'mean'", "x:meen"),
        ("'clickz': no such column; did you mean 'clicks'", "clickz:mean"),
        ("'x:quantile:2': '2': a quantile is between 0 and 1", "x:quantile:2"),
        ("'x:quantile': '': a quantile", "x:quantile"),
        ("a ratio is NAME:ratio:NUMERATOR/DENOMINATOR", "r:ratio:x"),
        ("denominator of 'r': 'y': no such column", "r:ratio:x/y"),
        ("nothing may follow 'mean'", "x:mean:3"),
        ("column 't' has 400 values that are not numbers, as 'a'", "t:mean"),
        ("has no name; say NAME:KIND", ":mean"),
        ("'accuracy': needs --label-column and --prediction-column", "accuracy"),
        ("'auc': needs --label-column and --score-column", "auc"),
        ("'satisfaction': no column of that meaning .* satisfaction=COLUMN", "satisfaction"),
        ("'throughput': is measured live", "throughput"),
        ("column 'l' is of type", "l:mean"),
    ],
)
def test_metric_is_refused_when_the_data_do_not_have_it(says: str, metric: str) -> None:
    table = halves(
        [float(i) for i in range(400)],
        n=[-1] * 400,
        t=["a"] * 400,
        clicks=[1] * 400,
        l=[[1]] * 400,
    )
    refused(says, table, metric)


@pytest.mark.parametrize(
    ("says", "options"),
    [
        ("alpha == 2", {"alpha": 2.0}),
        ("alpha == nan", {"alpha": math.nan}),
        ("alpha == 0", {"alpha": 0.0}),
        (
            "variant: 'varient': no such column; did you mean 'variant'",
            {"variant_column": "varient"},
        ),
        ("control: 'contrl': no such variant .* did you mean 'control'", {"control": "contrl"}),
        ("variant: column 'u' has 400 values .* is it the unit", {"variant_column": "u"}),
        ("unit: 'variant' is already the variant column", {"unit_column": "variant"}),
        ("strata: column 'u' has 400 values, must have at most", {"strata": "u"}),
        ("covariate: 'variant' is of type VARCHAR", {"covariate": "variant"}),
        (
            "expected: control=-1: a share must be above 0",
            {"expected": {"control": -1, "treatment": 2}},
        ),
        (
            r"expected: the shares sum to 0\.8, must sum to 1: correct them .* or give weights",
            {"expected": {"control": 0.5, "treatment": 0.3}},
        ),
        (r"the shares sum to 1\.4, must", {"expected": {"control": 0.7, "treatment": 0.7}}),
        ("expected: control=nan", {"expected": {"control": math.nan, "treatment": 1}}),
        ("expected: no share for 'treatment'", {"expected": {"control": 1.0}}),
        ("'treatmnt': no such variant in the data; did you mean", {"expected": {"treatmnt": 1}}),
        ("minimum_effect == -1", {"minimum_effect": -1.0}),
        ("minimum_effect: 'x'", {"minimum_effect": "x"}),
        ("min_units == 0", {"min_units": 0}),
        ("primary: 'z' is no metric here", {"primary": "z"}),
        ("guardrail: 'z' is no metric here", {"guardrails": {"z": 1.0}}),
        ("guardrail x == -1", {"guardrails": {"x": -1.0}}),
        ("lower_is_better: 'z' is no metric here", {"lower_is_better": ["z"]}),
        ("time: column 'variant' has no times", {"time_column": "variant"}),
        ("--memory: 'lots'", {"memory": "lots"}),
        ("--memory: '-5GB'", {"memory": "-5GB"}),
        ("both name 'x': say one", {"lower_is_better": ["x"], "higher_is_better": ["x"]}),
        ("tuned_for == 0", {"tuned_for": 0}),
    ],
)
def test_option_is_refused_when_it_fits_no_data(says: str, options: dict[str, Any]) -> None:
    refused(
        says, halves([float(i % 9) for i in range(400)], u=list(range(400))), "x:mean", **options
    )


def test_data_are_refused_when_they_have_one_variant_or_none_or_no_rows() -> None:
    one = pa.table({"variant": ["control"] * 9, "x": [1.0] * 9})
    refused("has only 'control': nothing to compare it with", one, "x", expected=None)
    none = pa.table({"variant": pa.nulls(9, pa.string()), "x": [1.0] * 9})
    refused("variant: column 'variant' is empty in every row", none, "x")
    refused("has no rows", one.slice(0, 0), "x")
    text = pa.table({"variant": ["a", "b"], "t": ["x", "y"]})
    refused("no column is a number or yes/no; .*--metric", text)


def test_reason_is_true_when_all_units_of_a_variant_are_in_another_too() -> None:
    twice = pa.table({"variant": ["control", "treatment"] * 9, "x": [1.0] * 18,
                      "u": [i // 2 for i in range(18)]})  # fmt: skip
    refused(r"are in another, too \(9 units", twice, "x", unit_column="u")


@pytest.mark.parametrize(
    ("name", "decision", "told"),
    [
        ("response_time", "ROLLBACK", "less"),
        ("ttft_ms", "ROLLBACK", "less"),
        ("http_5xx", "ROLLBACK", "less"),
        ("p99_latency", "ROLLBACK", "less"),
        ("cost_savings", "PROMOTE", "more"),
        ("error_free", "PROMOTE", "more"),
        ("churn_prevented", "PROMOTE", "more"),
    ],
)
def test_direction_that_a_name_tells_is_said_with_what_changes_it(
    name: str, decision: str, told: str
) -> None:
    values = [100.0 + i % 7 + (50.0 if i % 2 else 0.0) for i in range(2_000)]
    found = ask(halves(values).rename_columns(["variant", name]), f"{name}:mean")
    assert found.decision == decision
    (warning,) = [text for text in found.warnings if "is taken as better" in text]
    other = "higher" if told == "less" else "lower"
    assert warning.startswith(f"{name}: {told} is taken as better")
    assert warning.endswith(f"--{other}-is-better {name}")


def test_nothing_is_decided_when_variants_are_as_many_as_rows() -> None:
    table = pa.table({"variant": ["a", "b", "c", "d"], "x": [1.0, 2.0, 3.0, 4.0]})
    assert ask(table, "x", control="a", expected=None).decision == "WARMING_UP"


def test_file_is_refused_when_it_is_not_what_its_name_says(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no")
    (tmp_path / "a.feather").write_bytes(b"no" * 50)
    (tmp_path / "a.jsonl").write_text('{"variant":')
    (tmp_path / "a.csv").write_bytes("variant,x\nm\xfcller,1\n".encode("latin1"))
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "a.xlsx").write_text("x")
    (tmp_path / "none").mkdir()
    for name, says in (
        ("a.parquet", "cannot be read"),
        ("a.feather", "is no Arrow file"),
        ("a.jsonl", "cannot be read"),
        ("a.csv", "not utf-8"),
        ("empty.csv", "the file is empty"),
        ("a.xlsx", r"the format is not known; names end in one of \.csv"),
    ):
        refused(says, tmp_path / name, "x")
    for name in ("nothing.csv", "*.tsv", "none"):
        with pytest.raises(Unreadable):
            ask(tmp_path / name, "x")
    refused("files of several formats", [tmp_path / "a.csv", tmp_path / "a.jsonl"], "x")
    refused("data == int, must be a path", 3, "x")


@pytest.mark.parametrize("rows_before", [2, 100, 30_000])
@pytest.mark.parametrize("rows_after", [0, 100])
@pytest.mark.parametrize(
    ("row", "has"),
    [
        ("c,1,9", "has more values than the 2 of its header"),
        ("c,1,9,9,9", "has more values than the 2 of its header"),
        ("c", "has 1 of the 2 of its header"),
        ('"c', "a quote is opened and never closed"),
    ],
)
def test_line_is_told_when_it_does_not_fit_the_header(
    rows_before: int, rows_after: int, row: str, has: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    before, after = (["c,1", "t,2"] * (count // 2) for count in (rows_before, rows_after))
    path.write_text("\n".join(["variant,x", *before, row, *after]))
    refused(rf"a.csv: line {rows_before + 2}:? {has}.*correct or remove the line", str(path))


def test_file_is_told_when_only_the_second_has_a_line_that_does_not_fit(tmp_path: Path) -> None:
    good, bad = tmp_path / "a.csv", tmp_path / "b.csv.gz"
    good.write_text("variant,x\nc,1\nt,2\n")
    bad.write_bytes(gzip.compress(b"variant,x\nc,1\nt,2\nc,1,5\n"))
    refused(r"b.csv.gz: line 4 has more values", [str(good), str(bad)])


@pytest.mark.parametrize(
    ("shares", "note"),
    [
        ((0.5, 0.5), ""),
        ((50, 50), ""),
        ((1, 1), "expected shares sum to 2, not 1: taken as 1 : 1"),
        ((1, 0.5), "expected shares sum to 1.5, not 1: taken as 1 : 0.5"),
        ((0.33, 0.66), "expected shares sum to 0.99, not 1: taken as 0.33 : 0.66"),
    ],
)
def test_expected_shares_may_be_weights(shares: tuple[float, float], note: str) -> None:
    expected = dict(zip(("control", "treatment"), shares, strict=True))
    answer = ask(rows(), "clicks", expected=expected)
    assert answer.srm is not None
    found = answer.srm.expected
    assert found["control"] / found["treatment"] == pytest.approx(shares[0] / shares[1])
    assert [each for each in answer.warnings if "expected" in each] == [note] * bool(note)


def test_lines_before_the_header_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "\n".join(["orders of March", "", "variant,x", *["control,1", "treatment,2"] * 50])
    )
    assert first(str(path), "x").difference == 1.0


def test_types_are_told_when_a_column_of_a_file_or_frame_mixes_them(tmp_path: Path) -> None:
    lines = ["variant,x", *(f"{'control' if i % 2 else 'treatment'},{i}" for i in range(99_000))]
    lines[98_000] = "control,much"
    (tmp_path / "late.csv").write_text("\n".join(lines))
    refused("column 'x' has 1 values that are not numbers, as 'much'", tmp_path / "late.csv", "x")
    lines[98_000] = "control,1.5"
    (tmp_path / "late.csv").write_text("\n".join(lines))
    got = first(tmp_path / "late.csv", "x").control.mean
    assert got == pytest.approx((49_500**2 - 97_999 + 1.5) / 49_500, rel=1e-12)
    frame = rows(n=10).to_pandas().astype({"clicks": object})
    frame.loc[3, "clicks"] = "x"
    refused("mixed types in a column", frame, "clicks")


def test_rows_are_counted_and_left_out_when_they_have_no_variant_or_unit() -> None:
    table = halves([float(i % 9) for i in range(400)], u=[None if i < 6 else i for i in range(400)])
    names = [
        None if i >= 390 else name for i, name in enumerate(table.column("variant").to_pylist())
    ]
    table = table.set_column(0, "variant", pa.array(names))
    answer = ask(table, "x", unit_column="u")
    assert "10 rows without a variant are left out" in answer.warnings
    assert "6 rows without a unit are left out" in answer.warnings
    assert answer.metrics[0].control.n + answer.metrics[0].treatment.n == 384


def test_built_in_names_mean_what_they_mean_live_when_both_have_them() -> None:
    assert BUILT_IN.keys() <= set(LIVE)
    for name, built_in in BUILT_IN.items():
        assert (built_in.direction == LOWER) == (LIVE[name].direction.sign < 0), name


NUMBERS = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 1e9, 1e-300, 1e300, math.nan, math.inf]),
    st.integers(-5, 5).map(float),
    st.none(),
)
ROW = st.tuples(st.sampled_from(["control", "b", "c", None]), NUMBERS, NUMBERS, st.integers(0, 6))
METRIC = st.sampled_from(
    ["x:mean", "x", "x:proportion", "x:count", "r:ratio:x/y", "x:quantile:0.5", "x:quantile:0.99"]
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(ROW, max_size=12),
    METRIC,
    st.fixed_dictionaries(
        {},
        optional={
            "unit_column": st.just("u"),
            "covariate": st.just("y"),
            "strata": st.just("u"),
            "drop_invalid": st.just(True),
            "sequential": st.just(False),
            "series": st.just(True),
        },
    ),
)
def test_answer_is_json_or_a_refusal_when_data_are_anything(
    given_rows: list[tuple[str | None, float | None, float | None, int]],
    metric: str,
    options: dict[str, Any],
) -> None:
    columns = list(zip(*given_rows, strict=True)) or [(), (), (), ()]
    types = (pa.string(), pa.float64(), pa.float64(), pa.int64())
    table = pa.table(
        {
            name: pa.array(list(values), kind)
            for name, values, kind in zip(("variant", "x", "y", "u"), columns, types, strict=True)
        }
    )
    if options.get("strata") == options.get("unit_column"):
        options.pop("strata", None)
    try:
        text = to_json(ask(table, metric, expected=None, **options))
    except BadInput:
        return
    answer = json.loads(text, parse_constant=pytest.fail)
    assert "nan" not in text.lower()
    for found in answer["metrics"]:
        if found["p_value"] is not None:
            assert 0 <= found["p_value"] <= 1
            assert found["ci_low"] <= found["ci_high"]


@pytest.mark.parametrize(
    ("says", "options"),
    [
        (r"metrics: 3: must be text", {"metrics": [3]}),
        (r"variant_column == None, must be a column's name", {"variant_column": None}),
        (r"expected: control='half': a share must be a number", {"expected": {"control": "half"}}),
        (r"expected: control=None: a share must be a number", {"expected": {"control": None}}),
        (r"threads == 0.0, must be >= 1", {"threads": 0}),
    ],
)
def test_argument_of_a_notebook_is_refused_when_it_is_of_another_type(
    says: str, options: dict[str, Any]
) -> None:
    refused(says, halves([1.0, 2.0] * 200), **options)


def test_frame_without_columns_is_refused() -> None:
    refused("cannot be read", pa.table({}))


def test_units_are_refused_when_numbers_stand_for_several_of_them(tmp_path: Path) -> None:
    ids = [98765432109876543210 + i for i in range(400)]
    table = halves([1.0, 2.0] * 200, u=[float(each) for each in ids])
    refused(r"unit: column 'u' is of type DOUBLE with 400 values", table, "x", unit_column="u")
    path = tmp_path / "a.csv"
    rows = [f"{'ct'[i % 2]},{each}e1,{i % 3}" for i, each in enumerate(ids)]
    path.write_text("\n".join(["variant,u,x", *rows, ""]))
    told = ask(str(path), "x", control="c", unit_column="u", expected=None)
    assert told.source.units == 400


def test_time_that_is_not_finite_counts_as_none() -> None:
    times = [float(i) for i in range(400)]
    times[3] = math.inf
    answer = ask(halves([1.0, 2.0] * 200, t=times), "x", time_column="t", series=True)
    assert answer.series[0].points[-1].n == 400
