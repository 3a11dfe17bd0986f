"""Opening data: files of any known format, data frames and relations, as one DuckDB table.

Owns formats, limits of memory and the form in which DuckDB's errors reach a person. Refuses to
read rows into Python: everything after this is SQL over `Data.table`.
"""

from __future__ import annotations

import csv
import glob
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb

from control.analyze.errors import BadInput, Unreadable, listed

TABLE: Final = "turnout_data"
MEMORY_DEFAULT: Final = "1GB"
HEAD_ROWS: Final = 2048
PROGRESS_EVERY_S: Final = 0.2
_SAID_MAX: Final = 300
TEXT_KEPT_BYTES: Final = 64 << 20

CSV: Final = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zst", ".tsv.zst", ".txt")
JSON: Final = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
PARQUET: Final = (".parquet", ".pq")
ARROW: Final = (".arrow", ".feather", ".ipc", ".arrows")
SUFFIXES: Final = {"csv": CSV, "json": JSON, "parquet": PARQUET, "arrow": ARROW}
DELIMITERS: Final = ",;\t|"
WHOLE_MAX: Final = 2.0**53  # from here on floating numbers stand for several whole ones
NULLS: Final = ("", "NA", "N/A", "NULL", "null", "None")

# A step's name and the share that is done, None: unknown.
Progress = Callable[[str, float | None], None]


@dataclass(slots=True)
class Data:
    """A table that can be asked. columns: Name -> DuckDB type, in the file's order."""

    path: str
    table: str
    columns: dict[str, str]
    query: Callable[[str], list[tuple[Any, ...]]]
    progress: Progress | None = None
    share: Callable[[], float] | None = None
    drop_invalid: bool = False  # NaN and infinities count as missing

    def run(self, step: str, sql: str) -> list[tuple[Any, ...]]:
        """The few rows of an aggregate.

        Args:
            step: What is being done, for progress.
            sql: A statement over `self.table`.

        Raises:
            BadInput: The data do not allow it: a value of another type, numbers out of range.
        """
        with self._reported(step), explained(self.path):
            return self.query(sql)

    def is_empty(self) -> bool:
        """Whether there is no row at all.

        Raises:
            BadInput: The data cannot be read.
        """
        return not self.run("opening", f"SELECT 1 FROM {self.table} LIMIT 1")  # noqa: S608

    @contextmanager
    def _reported(self, step: str) -> Iterator[None]:
        if self.progress is None:
            yield
            return
        progress, share, done = self.progress, self.share, threading.Event()

        def report() -> None:
            while not done.wait(PROGRESS_EVERY_S):
                progress(step, None if share is None else share())

        progress(step, None)
        reporter = threading.Thread(target=report, daemon=True)
        reporter.start()
        try:
            yield
        finally:
            done.set()
            reporter.join()
        progress(step, 1.0)


@contextmanager
def open_data(
    data: Any,
    *,
    memory: str = MEMORY_DEFAULT,
    threads: int | None = None,
    spill: str | None = None,
    progress: Progress | None = None,
    variant_column: str = "",
    unit_column: str = "",
) -> Iterator[Data]:
    """Open files (a path, a glob, a directory, several), a data frame or a relation.

    Args:
        data: A path or several; or a pandas or polars frame, a pyarrow table or dataset, a DuckDB
            relation.
        memory: DuckDB's limit, as "1GB"; what does not fit is spilled.
        threads: Of DuckDB; one per core by default.
        spill: Directory to spill to; a temporary one by default.
        progress: Called with each step and its share.
        variant_column: Of CSV, is taken as it is written: 1.1 and 1.10 are two versions.
        unit_column: Of CSV, likewise where its numbers are too large to be told apart.

    Raises:
        BadInput: The format is not known, or the data cannot be read; `Unreadable` for no file.
    """
    if isinstance(data, duckdb.DuckDBPyRelation):
        yield _of_relation(data, progress)
        return
    with _connection(memory, threads, spill) as connection:
        if _is_path(data):
            names = [str(each) for each in ([data] if isinstance(data, str | Path) else data)]
            path = ", ".join(names)
            with explained(path):
                _of_files(connection, names, variant_column, unit_column)
        else:
            path = f"<{type(data).__module__.split('.')[0]} {type(data).__name__}>"
            with explained(path):
                connection.register(TABLE, _of_frame(data))
        yield _opened(connection, path, progress)


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn DuckDB's errors into refusals that a person can act on."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise BadInput(f"{path}: needs more memory ({_first(error)}): raise --memory") from error
    except duckdb.Error as error:
        raise BadInput(f"{path}: cannot be read: {_first(error)}") from error
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror or error}") from error


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string in SQL."""
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def _connection(
    memory: str, threads: int | None, spill: str | None
) -> Iterator[duckdb.DuckDBPyConnection]:
    directory = tempfile.mkdtemp(prefix="turnout-analyze-", dir=spill)
    connection = duckdb.connect()
    try:
        _set(connection, "temp_directory", directory, "--spill")
        if memory.strip().startswith("-"):
            raise BadInput(f"--memory: {memory!r} must be above 0, like 1GB")
        _set(connection, "memory_limit", memory, "--memory")
        if threads is not None:
            connection.execute(f"SET threads = {int(threads)}")
        connection.execute("SET autoinstall_known_extensions = false")
        connection.execute("SET enable_progress_bar = true")
        connection.execute("SET enable_progress_bar_print = false")
        yield connection
    finally:
        connection.close()
        shutil.rmtree(directory, ignore_errors=True)


def _set(connection: duckdb.DuckDBPyConnection, name: str, value: str, option: str) -> None:
    try:
        connection.execute(f"SET {name} = {literal(value)}")
    except duckdb.Error as error:
        raise BadInput(f"{option}: {value!r}: {_first(error)}") from error


def _opened(connection: duckdb.DuckDBPyConnection, path: str, progress: Progress | None) -> Data:
    def query(sql: str) -> list[tuple[Any, ...]]:
        return connection.execute(sql).fetchall()

    def share() -> float:
        return max(float(connection.query_progress()), 0.0) / 100

    with explained(path):
        columns = {row[0]: row[1] for row in query(f"DESCRIBE {TABLE}")}
    return Data(path, TABLE, columns, query, progress, share)


def _of_relation(relation: duckdb.DuckDBPyRelation, progress: Progress | None) -> Data:
    def query(sql: str) -> list[tuple[Any, ...]]:
        answer = relation.query(TABLE, sql)
        return [] if answer is None else answer.fetchall()

    columns = {name: str(kind) for name, kind in zip(relation.columns, relation.types, strict=True)}
    return Data("<duckdb relation>", TABLE, columns, query, progress)


def _of_frame(data: Any) -> Any:
    import pyarrow
    import pyarrow.dataset

    if isinstance(data, pyarrow.Table | pyarrow.dataset.Dataset):
        return data
    if isinstance(data, pyarrow.RecordBatch):
        return pyarrow.Table.from_batches([data])
    if hasattr(data, "collect") and hasattr(data, "collect_schema"):  # a lazy frame of polars
        data = data.collect()
    if hasattr(data, "to_arrow"):
        return data.to_arrow()
    if type(data).__module__.split(".")[0] == "pandas" and hasattr(data, "columns"):
        with_names = data.rename(columns=str)
        try:
            return pyarrow.Table.from_pandas(with_names, preserve_index=False)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
            raise BadInput(f"data: mixed types in a column: {_first(error)}") from error
    raise BadInput(
        f"data == {type(data).__name__}, must be a path, a pandas or polars frame, a pyarrow table "
        "or dataset, or a DuckDB relation"
    )


def _is_path(data: Any) -> bool:
    if isinstance(data, str | Path):
        return True
    return isinstance(data, list | tuple) and all(isinstance(each, str | Path) for each in data)


def _of_files(
    connection: duckdb.DuckDBPyConnection, names: Sequence[str], variant: str, unit: str
) -> None:
    if not names:
        raise BadInput("data: no file given")
    files = [file for name in names for file in _expanded(name)]
    formats = {_format(file) for file in files}
    if len(formats) > 1:
        raise BadInput(f"data: files of several formats ({', '.join(sorted(formats))}): give one")
    if formats == {"csv"}:
        _read_csv(connection, files, variant, unit)
    else:
        _READERS[formats.pop()](connection, files)


def _expanded(name: str) -> list[str]:
    path = Path(name)
    if path.is_dir():
        found = sorted(
            str(file) for file in path.rglob("*") if file.is_file() and _known(file.name)
        )
        if not found:
            raise Unreadable(f"{name}: a directory without data; known: {_all_suffixes()}")
        return found
    if path.exists():
        return [name]
    found = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - of an absolute pattern, too
    if not found:
        nothing = "no file matches" if re.search(r"[*?\[]", name) else "no such file"
        raise Unreadable(f"{name}: {nothing}")
    return found


def _known(name: str) -> bool:
    return any(name.lower().endswith(suffix) for of in SUFFIXES.values() for suffix in of)


def _all_suffixes() -> str:
    return " ".join(suffix for of in SUFFIXES.values() for suffix in of)


def _format(file: str) -> str:
    for name, suffixes in SUFFIXES.items():
        if file.lower().endswith(suffixes):
            if os.path.getsize(file) == 0:  # noqa: PTH202
                raise BadInput(f"{file}: the file is empty; it must have a header and rows")
            return name
    raise BadInput(f"{file}: the format is not known; names end in one of {_all_suffixes()}")


def _read_csv(
    connection: duckdb.DuckDBPyConnection, files: Sequence[str], variant: str, unit: str
) -> None:
    nulls = ", ".join(map(literal, NULLS))
    # A name of the header is needed: without it DuckDB calls the columns column0, column1 ...
    options = f"header = true, nullstr = [{nulls}], union_by_name = true"
    # All rows decide on types: a late 1.5 in a column of whole numbers would be rounded silently.
    source = f"read_csv({_list(files)}, {options}, sample_size = -1"
    headers = {file: _first_line(connection, file) for file in files}
    if all(variant.casefold() in _fields(header) for header in headers.values()):
        # Else DuckDB may take a row that has more values than all others for the header.
        source += ", skip = 0"
    try:
        _kept(connection, f"{source})", files)
        columns = {row[0]: row[1] for row in connection.execute(f"DESCRIBE {TABLE}").fetchall()}
    except duckdb.Error:
        _require_fields(connection, headers)
        raise
    # It makes one column of rows that do not fit their header, of the header, too.
    whole = [each for each in map(_fields, columns) if len(each) > 1]
    if any(variant.casefold() in each for each in whole) or (whole and len(columns) == 1):
        _require_fields(connection, headers)
        raise BadInput(f"{files[0]}: rows have more or fewer values than its header")
    texts = []
    for name, kind in columns.items():
        if name.casefold() == variant.casefold() and kind not in ("VARCHAR", "BIGINT"):
            texts.append(f"{literal(name)}: 'VARCHAR'")
        elif name.casefold() == unit.casefold() and kind == "DOUBLE":
            sql = f"SELECT count_if({_merged(name)}) FROM {TABLE}"  # noqa: S608
            (merged,) = connection.execute(sql).fetchall()[0]
            texts += [f"{literal(name)}: 'VARCHAR'"] * bool(merged)
    if texts:
        _kept(connection, f"{source}, types = {{{', '.join(texts)}}})", files)


def merged_numbers(data: Data, column: str) -> int:
    """Values of a column of floating numbers that others may have been rounded to, or NaN."""
    if data.columns[column] not in ("DOUBLE", "FLOAT"):
        return 0
    sql = f"SELECT count_if({_merged(column)}) FROM {data.table}"  # noqa: S608
    return int(data.run("looking at units", sql)[0][0])


def _merged(column: str) -> str:
    return f"NOT abs({quoted(column)}::DOUBLE) < {WHOLE_MAX!r}"


def _first_line(connection: duckdb.DuckDBPyConnection, file: str) -> str:
    lines = connection.read_csv(
        glob.escape(file),
        columns={"line": "VARCHAR"},
        sep="\x01",
        quotechar="",
        escapechar="",
        header=False,
        auto_detect=False,
    )
    try:
        found = lines.limit(1).fetchall()
    except duckdb.Error:
        return ""  # reading all of it says why
    return str(found[0][0] or "").removeprefix("\ufeff") if found else ""


def _delimiter(header: str) -> str:
    return max(DELIMITERS, key=header.count)


def _fields(header: str) -> list[str]:
    """The names in a header, without regard to case; one where nothing separates them."""
    found = next(csv.reader([header], delimiter=_delimiter(header)), [])
    return [name.strip().casefold() for name in found]


def _require_fields(connection: duckdb.DuckDBPyConnection, headers: Mapping[str, str]) -> None:
    """Refuse rows that do not fit their header, by file and line.

    Raises:
        BadInput: There is one.
    """
    for file, header in headers.items():
        names = next(csv.reader([header], delimiter=_delimiter(header)), [])
        if len(names) < 2:
            continue
        try:
            connection.read_csv(
                glob.escape(file),
                columns={f"c{place}": "VARCHAR" for place in range(len(names))},
                sep=_delimiter(header),
                header=True,
                quotechar='"',
                escapechar='"',
                auto_detect=False,
            ).aggregate("count(*)").fetchall()
        except duckdb.Error as error:
            raise BadInput(_ragged(file, str(error), names) or _first(error)) from error


def _ragged(file: str, said: str, names: Sequence[str]) -> str:
    """DuckDB's words on a line that does not fit its header, with what to do; "" if it is not."""
    line, found = re.search(r"CSV Error on Line: (\d+)", said), re.search(r"Found: (\d+)", said)
    if line is None:
        return ""
    cut = "correct or remove the line; if it is the last one, the file may be cut off: get it again"
    if "unterminated quote" in said:
        return f"{file}: line {line[1]}: a quote is opened and never closed: {cut}"
    if found is None:
        return ""
    # Of a line that is too long DuckDB does not count all values.
    more = int(found[1]) > len(names)
    has = "more values than" if more else f"{found[1]} of"
    return (
        f"{file}: line {line[1]} has {has} the {len(names)} of its header ({listed(names)}): {cut}"
    )


def _read_json(connection: duckdb.DuckDBPyConnection, files: Sequence[str]) -> None:
    source = f"read_json({_list(files)}, union_by_name = true, sample_size = -1)"
    _kept(connection, source, files)


def _read_parquet(connection: duckdb.DuckDBPyConnection, files: Sequence[str]) -> None:
    _view(
        connection, f"read_parquet({_list(files)}, union_by_name = {str(len(files) > 1).lower()})"
    )


def _read_arrow(connection: duckdb.DuckDBPyConnection, files: Sequence[str]) -> None:
    import pyarrow
    import pyarrow.dataset

    streams = [file for file in files if file.lower().endswith(".arrows")]
    try:
        if not streams:
            connection.register(TABLE, pyarrow.dataset.dataset(list(files), format="ipc"))
            return
        # A stream can be read once only, so it is copied to where DuckDB can spill it.
        with pyarrow.ipc.open_stream(streams[0]) as stream:
            connection.register("turnout_stream", stream)
            connection.execute(f"CREATE TEMP TABLE {TABLE} AS FROM turnout_stream")
        for file in streams[1:]:
            with pyarrow.ipc.open_stream(file) as stream:
                connection.register("turnout_stream", stream)
                connection.execute(f"INSERT INTO {TABLE} BY NAME FROM turnout_stream")
    except pyarrow.ArrowInvalid as error:
        raise BadInput(f"{files[0]}: is no Arrow file: {_first(error)}") from error


def _kept(connection: duckdb.DuckDBPyConnection, source: str, files: Sequence[str]) -> None:
    """Text is parsed once if it is not much, at each scan if it is."""
    if sum(os.path.getsize(file) for file in files) > TEXT_KEPT_BYTES:  # noqa: PTH202
        _view(connection, source)
    else:
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {TABLE} AS FROM {source}")


def _view(connection: duckdb.DuckDBPyConnection, source: str) -> None:
    connection.execute(f"CREATE OR REPLACE TEMP VIEW {TABLE} AS FROM {source}")


def _list(files: Sequence[str]) -> str:
    # DuckDB takes * ? [ in names for a pattern, also in names that are no pattern.
    escaped = (re.sub(r"([*?\[])", r"[\1]", file) for file in files)
    return "[" + ", ".join(map(literal, escaped)) + "]"


def _first(error: BaseException) -> str:
    said = str(error)
    for rest in (
        "LINE 1:",
        "Possible ",
        "The search space",
    ):  # our SQL, DuckDB's options
        said = said.partition(rest)[0]
    lines = [line.strip() for line in said.splitlines()]
    lines = [line for line in lines if line and not line.startswith("Original Line")]
    return " ".join(lines[:3])[:_SAID_MAX].rstrip(".") if lines else type(error).__name__


_READERS: Final = {
    "json": _read_json,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
}
