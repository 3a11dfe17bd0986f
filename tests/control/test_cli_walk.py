"""The walk through a change that control/README.md prints, run as it is printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.control.clishell import Shell
from tests.tidy.repository import ROOT
from tests.tidy.test_readme import blocks

HERE = "tests/control/test_cli_walk.py::test_walk_through_a_change_runs_as_printed"


def printed() -> list[tuple[list[str], int]]:
    """Each command's words, and the exit code that its comment promises."""
    readme = (ROOT / "control" / "README.md").read_text()
    (block,) = (found for found in blocks(readme) if HERE in found.tests)
    commands = []
    for line in block.body.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ turnout "), comments=True)
        promised = re.search(r"# (\d+):", line)
        commands.append((words, int(promised[1]) if promised else 0))
    return commands


def test_walk_through_a_change_runs_as_printed(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = printed()
    assert len(commands) == 13
    for words, code in commands:
        done = shell(*words)
        assert (done.code, words) == (code, words), done.err
    assert "none runs on fraud" in done.out
    assert done.lines[0].startswith("The baseline serves it")
