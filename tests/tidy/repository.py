"""What the repository consists of: its files, without generated and ignored ones."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GENERATED_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def files() -> list[Path]:
    """Every file that is, or would be, committed; sorted, relative to the root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout.decode()
    paths = {Path(name) for name in listed.split("\0") if name}
    return sorted(path for path in paths if (ROOT / path).is_file())


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
