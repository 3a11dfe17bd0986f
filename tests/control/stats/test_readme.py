"""The README of the statistics shows what its example prints, and lists every file."""

from __future__ import annotations

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

FOLDER = Path(__file__).parents[3] / "control" / "stats"


def test_readme_example_prints_what_is_shown() -> None:
    code, shown = re.findall(r"```(?:python)?\n(.*?)```", (FOLDER / "README.md").read_text(), re.S)
    said = StringIO()
    with redirect_stdout(said):
        exec(compile(code, "README.md", "exec"), {})
    assert said.getvalue() == shown


def test_readme_names_every_file() -> None:
    text = (FOLDER / "README.md").read_text()
    assert not [
        path.name
        for path in FOLDER.glob("*.py")
        if path.name != "__init__.py" and f"`{path.name}`" not in text
    ]
