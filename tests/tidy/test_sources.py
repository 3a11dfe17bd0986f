"""Properties of the sources that no linter has a rule for."""

from __future__ import annotations

import ast
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tidy.repository import ROOT, files, sources

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 800
VECTORS = Path("tests/vectors")
# Spelled so that this file does not contain what it looks for.
REGISTRY_HOSTS = re.compile(
    "|".join(["pypi" r"\.org", "python" r"hosted\.org", "proxy" r"\.golang"])
)
MACHINE_PATHS = re.compile("|".join([r"(?<![\w.*])/" "work/", r"/" "root/", r"/" "home/"]))
LEFTOVERS = re.compile("|".join([r"\bTO" r"DO\b", r"\bFIX" r"ME\b", r"\bX" r"XX\b"]))


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring and decorators."""
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def long_functions(text: str) -> Iterator[tuple[str, int]]:
    """(name, lines) of every function that is too long."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = function_lines(node)
            if lines > FUNCTION_LINES_MAX:
                yield node.name, lines


def texts() -> Iterator[tuple[Path, str]]:
    """Every committed file that is text."""
    for path in files():
        try:
            yield path, (ROOT / path).read_text("utf-8")
        except UnicodeDecodeError:
            continue


def found(pattern: re.Pattern[str]) -> list[str]:
    """Where a pattern occurs, as path:line."""
    return [
        f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {match.group()}"
        for path, text in texts()
        for match in pattern.finditer(text)
    ]


def test_functions_have_at_most_70_lines() -> None:
    long = [
        f"{path}: {name} has {lines} lines"
        for path in sources()
        for name, lines in long_functions((ROOT / path).read_text())
    ]
    assert not long, "\n".join(long)


def test_a_function_of_71_lines_is_found() -> None:
    text = "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX
    assert list(long_functions(text)) == [("f", FUNCTION_LINES_MAX + 1)]


def test_modules_have_at_most_800_lines() -> None:
    long = [
        str(path)
        for path in sources()
        if len((ROOT / path).read_text().splitlines()) > MODULE_LINES_MAX
    ]
    assert not long, long


def test_modules_say_what_they_own() -> None:
    silent = [
        str(path)
        for path in sources()
        if (ROOT / path).stat().st_size
        and not ast.get_docstring(ast.parse((ROOT / path).read_text()))
    ]
    assert not silent, silent


@pytest.mark.parametrize("pattern", [REGISTRY_HOSTS, MACHINE_PATHS], ids=["registry", "machine"])
def test_no_file_names_a_registry_or_a_machine(pattern: re.Pattern[str]) -> None:
    assert not found(pattern)


def test_no_comment_is_a_leftover() -> None:
    left = []
    for path in sources():
        with (ROOT / path).open("rb") as file:
            left += [
                f"{path}:{token.start[0]}: {token.string}"
                for token in tokenize.tokenize(file.readline)
                if token.type == tokenize.COMMENT and LEFTOVERS.search(token.string)
            ]
    assert not left


def test_no_test_is_skipped() -> None:
    """`make test` leaves nothing out but what is marked soak."""
    pattern = re.compile(r"pytest\.(mark\.)?(skip|xfail|import" r"orskip)|unittest\.skip")
    assert not [hit for hit in found(pattern) if "test_sources.py" not in hit]


def has_provenance(content: dict[str, object] | list[dict[str, object]]) -> bool:
    """Whether the file, or else each of its sections, or each case of a list, has one."""
    if isinstance(content, list):
        return all(case.get("source") and case.get("library") for case in content)
    sections = [section for section in content.values() if isinstance(section, dict)]
    return bool(content.get("provenance")) or (
        bool(sections) and all(section.get("provenance") for section in sections)
    )


def test_vectors_say_how_they_were_made() -> None:
    """A JSON file, or each of its sections, has a `provenance`, or each case a source and library;
    other files are in a README.md."""
    nameless = []
    for path in files():
        if VECTORS not in path.parents or path.suffix in {".py", ".md"}:
            continue
        readme = ROOT / path.parent / "README.md"
        described = readme.exists() and path.name in readme.read_text()
        if path.suffix == ".json":
            content = json.loads((ROOT / path).read_text())
            described |= has_provenance(content)
        if not described:
            nameless.append(str(path))
    assert not nameless, nameless
