"""The same rows give the same answer, however they are kept, ordered or split."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.analyze import whole
from control.analyze.data import open_data
from control.analyze.result import Analysis, to_dict
from control.stats import analyze
from tests.analyze.worlds import ask, requests, rows

METRICS = ("converted", "revenue:mean", "ctr:ratio:clicks/views", "revenue:quantile:0.9")


def write_jsonl(table: pa.Table, path: Path) -> None:
    path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()) + "\n")


def write_gzip(table: pa.Table, path: Path) -> None:
    sink = pa.BufferOutputStream()
    pa.csv.write_csv(table, sink)
    path.write_bytes(gzip.compress(sink.getvalue().to_pybytes()))


def write_stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(str(path), table.schema) as sink:
        sink.write_table(table)


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    "a.csv": lambda table, path: pa.csv.write_csv(table, str(path)),
    "a.csv.gz": write_gzip,
    "a.parquet": lambda table, path: pa.parquet.write_table(table, str(path)),
    "a.feather": lambda table, path: pa.feather.write_feather(table, str(path)),
    "a.arrows": write_stream,
    "a.jsonl": write_jsonl,
    "quoted [1]*?'.parquet": lambda table, path: pa.parquet.write_table(table, str(path)),
    "quoted [1]'.csv": lambda table, path: pa.csv.write_csv(table, str(path)),
}


def same(one: Analysis, other: Analysis, relative: float = 1e-9) -> None:
    left, right = to_dict(one), to_dict(other)
    assert left["decision"] == right["decision"]
    assert left["warnings"] == right["warnings"]
    for a, b in zip(left["metrics"], right["metrics"], strict=True):
        for key, value in a.items():
            exact = value is None or isinstance(value, str)
            # A difference near 0 has the rounding of the means that it comes from.
            assert b[key] == (value if exact else pytest.approx(value, rel=relative, abs=1e-11))
    for a, b in zip(left["strata"], right["strata"], strict=True):
        assert a["srm"] == b["srm"]
    assert left["srm"] == right["srm"]


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return rows(n=1_500)


@pytest.fixture(scope="module")
def answer(table: pa.Table) -> Analysis:
    return ask(table, *METRICS, unit_column="user_id", strata="country")


@pytest.mark.parametrize("name", list(WRITERS))
def test_answer_is_the_same_when_the_format_is_another(
    name: str, table: pa.Table, answer: Analysis, tmp_path: Path
) -> None:
    WRITERS[name](table, tmp_path / name)
    same(ask(tmp_path / name, *METRICS, unit_column="user_id", strata="country"), answer)


def test_answer_is_the_same_when_rows_are_in_several_files(
    table: pa.Table, answer: Analysis, tmp_path: Path
) -> None:
    options = {"unit_column": "user_id", "strata": "country"}
    for index in range(4):
        folder = tmp_path / "all" / f"day={index}"
        folder.mkdir(parents=True)
        pa.parquet.write_table(table.slice(index * 375, 375), str(folder / "part.parquet"))
        pa.csv.write_csv(table.slice(index * 375, 375), str(tmp_path / f"{index}.csv"))
        write_stream(table.slice(index * 375, 375), tmp_path / f"{index}.arrows")
        pa.feather.write_feather(table.slice(index * 375, 375), str(tmp_path / f"{index}.feather"))
    same(ask(tmp_path / "all", *METRICS, **options), answer)
    same(ask(str(tmp_path / "all" / "*" / "*.parquet"), *METRICS, **options), answer)
    same(ask([tmp_path / f"{index}.csv" for index in range(4)], *METRICS, **options), answer)
    same(ask(str(tmp_path / "?.arrows"), *METRICS, **options), answer)
    same(ask(str(tmp_path / "?.feather"), *METRICS, **options), answer)


def test_answer_is_the_same_when_data_are_a_frame_or_a_relation(
    table: pa.Table, answer: Analysis
) -> None:
    options = {"unit_column": "user_id", "strata": "country"}
    same(ask(table.to_pandas(), *METRICS, **options), answer)
    with duckdb.connect() as connection:
        connection.register("held", table)
        same(ask(connection.sql("FROM held"), *METRICS, **options), answer)


def test_missing_numbers_are_left_out_when_pandas_writes_them_as_nan(table: pa.Table) -> None:
    frame = table.to_pandas()
    frame.loc[frame.index % 10 == 0, "revenue"] = np.nan
    answer = ask(frame, "revenue:mean")
    assert answer.metrics[0].control.n + answer.metrics[0].treatment.n == 1_350
    assert any("without a value are left out" in warning for warning in answer.warnings)


def test_analyze_is_found_in_the_statistics_when_a_notebook_asks(table: pa.Table) -> None:
    answer = analyze(table, variant_column="variant", control="control", metrics=["converted"])
    assert isinstance(answer, Analysis)
    assert answer.metrics[0].name == "converted"
    assert "<" in answer._repr_html_()


def test_spilled_files_are_gone_when_the_answer_is_there(table: pa.Table, tmp_path: Path) -> None:
    with open_data(table, spill=str(tmp_path)) as data:
        assert len(list(tmp_path.iterdir())) == 1
        assert data.run("counting", f"SELECT count(*) FROM {data.table}") == [(1_500,)]
    assert list(tmp_path.iterdir()) == []


def test_quantiles_are_exact_when_values_are_found_by_ever_finer_bins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = rows(n=3_000)
    tied = np.round(table.column("revenue").to_numpy() ** 3, 0)
    tied[:700] = 12.0
    table = table.set_column(table.column_names.index("revenue"), "revenue", pa.array(tied))
    at_once = [ask(table, f"revenue:quantile:{q}") for q in (0.01, 0.3, 0.99)]
    monkeypatch.setattr(whole, "FETCHED_MAX", 5)
    monkeypatch.setattr(whole, "BINS", 8)
    for q, expected in zip((0.01, 0.3, 0.99), at_once, strict=True):
        got = ask(table, f"revenue:quantile:{q}").metrics[0]
        for name in ("control", "treatment", "difference", "standard_error", "cs_low", "cs_high"):
            assert getattr(got, name) == getattr(expected.metrics[0], name)


WORLD = requests(users=120)
ANSWERS = {
    unit: ask(WORLD, "error", "latency:mean", unit_column=unit, expected=None)
    for unit in (None, "user_id")
}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from([None, "user_id"]))
def test_answer_is_the_same_when_rows_are_shuffled_and_split(
    seed: int, parts: int, unit: str | None
) -> None:
    rng = np.random.default_rng(seed)
    shuffled = WORLD.take(pa.array(rng.permutation(len(WORLD))))
    cuts = np.sort(rng.integers(0, len(WORLD), parts - 1))
    edges = [0, *(int(cut) for cut in cuts), len(WORLD)]
    chunks = [shuffled.slice(low, high - low) for low, high in pairwise(edges)]
    whole_again = pa.concat_tables(chunks)
    same(ask(whole_again, "error", "latency:mean", unit_column=unit, expected=None), ANSWERS[unit])


@pytest.mark.parametrize("names", [("1.1", "1.10"), ("False", "True"), ("2026-01-01", "2026-1-1")])
def test_variants_are_called_as_the_file_writes_them(
    names: tuple[str, str], tmp_path: Path
) -> None:
    """As numbers 1.1 and 1.10 are one version."""
    path = tmp_path / "a.csv"
    lines = [f"{names[i % 2]},{i % 3}" for i in range(600)]
    path.write_text("\n".join(["Variant,x", *lines, ""]))
    expected = dict.fromkeys(names, 0.5)
    answer = ask(str(path), "x:mean", variant_column="variant", control=names[0], expected=expected)
    assert answer.source.variants == names
    assert answer.srm is not None
    assert answer.srm.observed == dict.fromkeys(names, 300)


@pytest.mark.parametrize("name", ["v", "g", "k", "x", "y", "a", "b", "r", "s", "n", "s0", 'q"'])
@pytest.mark.parametrize("role", ["metric", "unit_column", "strata", "variant_column", "other"])
def test_answer_is_the_same_when_a_column_has_another_name(name: str, role: str) -> None:
    """The statements have names of their own, which columns must not be taken for."""
    table = requests(users=200)
    strata = pa.array([f"s{user % 2}" for user in table.column("user_id").to_pylist()])
    table = table.append_column("half", strata).append_column("more", table.column("latency"))
    roles = {"metric": "latency", "unit_column": "user_id", "strata": "half"}
    roles |= {"variant_column": "variant", "other": "more"}
    renamed = table.rename_columns(
        [name if column == roles[role] else column for column in table.column_names]
    )

    def answer(data: pa.Table, named: dict[str, str]) -> Analysis:
        latency = named["metric"]
        return ask(
            data,
            f"m={latency}:mean",
            f"q={latency}:quantile:0.9",
            "auc",
            "prediction_drift",
            variant_column=named["variant_column"],
            unit_column=named["unit_column"],
            strata=named["strata"],
            label_column="label",
            score_column="score",
            prediction_column="prediction",
            series=True,
            min_units=50,
        )

    one, other = answer(table, roles), answer(renamed, {**roles, role: name})
    for left, right in zip(one.metrics, other.metrics, strict=True):
        assert (right.control.n, right.treatment.n) == (left.control.n, left.treatment.n)
        assert right.difference == pytest.approx(left.difference)
        assert right.standard_error == pytest.approx(left.standard_error)
    assert len(other.series) == len(one.series)
