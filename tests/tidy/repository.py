"""What the repository consists of: its files, without generated and ignored ones."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IGNORED = {"__pycache__", ".git", "dist", "htmlcov"}
IGNORED_PREFIXES = (
    *(".venv", ".turnout", ".tools", ".coverage", ".mypy", ".ruff", ".pytest"),
    *(".hypothesis", ".import_linter"),
)
GENERATED_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def files() -> list[Path]:
    """Every file that is, or would be, committed; sorted, relative to the root."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        # An unpacked archive: everything but what tools leave behind.
        return sorted(path for path in _walk(Path()) if (ROOT / path).is_file())
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout.decode()
    paths = {Path(name) for name in listed.split("\0") if name}
    return sorted(path for path in paths if (ROOT / path).is_file())


def _walk(directory: Path) -> Iterator[Path]:
    for path in (ROOT / directory).iterdir():
        relative = path.relative_to(ROOT)
        if path.name in IGNORED or path.name.startswith(IGNORED_PREFIXES):
            continue
        if path.is_dir():
            yield from _walk(relative)
        else:
            yield relative


def sources() -> list[Path]:
    """The Python modules written by hand."""
    return [
        path
        for path in files()
        if path.suffix == ".py" and not path.name.endswith(GENERATED_SUFFIXES)
    ]


def run(*command: str, cwd: Path = ROOT) -> str:
    """Run a checker; its output is the message when it fails.

    Raises:
        AssertionError: The command failed.
    """
    done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{' '.join(command)}\n{output}"
    return output
