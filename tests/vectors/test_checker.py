"""The vectors against Go: `checker` reads the same files with other libraries."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.tidy.repository import ROOT
from tests.vectors.make_assignment import ASSIGNMENT, file_text

VECTORS = Path(__file__).parent
FILES = ("hashing.json", "assignment.json", "tokens.json")
CHECKER = ROOT / ".tools" / "bin" / "vectorchecker"
BUILD_S = 300  # a first build compiles Go's library


@pytest.fixture(scope="module")
def checker() -> Path:
    """The built command."""
    build = [str(ROOT / ".ci" / "tools"), "vectorchecker"]
    done = subprocess.run(build, capture_output=True, text=True, timeout=BUILD_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return CHECKER


def run(checker: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([checker, directory], capture_output=True, text=True, timeout=60)


def cases(node: Any) -> int:
    """How many cases there are below a node of the vectors."""
    if isinstance(node, dict):
        own = len(node["cases"]) if "cases" in node else 0
        return own + sum(cases(child) for name, child in node.items() if name != "cases")
    return sum(map(cases, node)) if isinstance(node, list) else 0


def test_go_agrees_with_every_vector(checker: Path) -> None:
    done = run(checker, VECTORS)
    assert done.returncode == 0, done.stdout + done.stderr
    counted = re.fullmatch(r"(\d+) agree, 0 disagree\n", done.stdout)
    assert counted is not None, done.stdout
    assert int(counted[1]) >= sum(cases(json.loads((VECTORS / f).read_text())) for f in FILES)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("hashing.json", "48cb0138e2005613", "48cb0138e2005614"),
        ("assignment.json", '"variant": "v2"', '"variant": "v3"'),
        ("assignment.json", '"held": false', '"held": true'),
        ("assignment.json", '"in": true', '"in": false'),
        ("assignment.json", "beta;1;", "beta;2;"),
        ("tokens.json", '"variant": "v2"', '"variant": "v3"'),
        ("tokens.json", '"valid": false', '"valid": true'),
    ],
)
def test_go_disagrees_when_a_vector_is_changed(
    checker: Path, tmp_path: Path, file: str, old: str, new: str
) -> None:
    for name in FILES:
        shutil.copy(VECTORS / name, tmp_path)
    changed = (tmp_path / file).read_text().replace(old, new, 1)
    assert changed != (tmp_path / file).read_text()
    (tmp_path / file).write_text(changed)
    done = run(checker, tmp_path)
    assert done.returncode == 1, done.stdout
    assert "the vectors say" in done.stdout


def test_checker_cannot_run_when_a_vector_file_is_missing(checker: Path, tmp_path: Path) -> None:
    assert run(checker, tmp_path).returncode == 2


def test_assignment_vectors_are_what_their_maker_makes() -> None:
    """Rewritten by `python -m tests.vectors.make_assignment` alone, whose diff is looked at."""
    assert ASSIGNMENT.read_text() == file_text()
