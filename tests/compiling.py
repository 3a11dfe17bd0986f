"""The request path compiled, as the image has it: built once for each change.

Owns `.compiled`, a folder with the wheel's packages. `python -m tests.compiling` (`make compiled`)
brings it up to date; TURNOUT_COMPILED=.compiled has tests and benchmarks use it. Refuses to put
anything beside the sources: a compiled module there would hide what is being edited.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
FOLDER: Final = ROOT / ".compiled"
VARIABLE: Final = "TURNOUT_COMPILED"
OFFLINE: Final = ("-q", "--no-deps", "--no-index")
_SOURCES: Final = ("sidecar/**/*.py", "proto/turnout/**/*.py", "pyproject.toml", ".ci/compile.py")


def use() -> None:
    """Import the sidecar from the folder that the variable names; before anybody imports it.

    Imported now, as pytest puts the checkout first in the path again.
    """
    if folder := os.environ.get(VARIABLE):
        sys.path.insert(0, str(Path(folder).absolute()))
        importlib.import_module("sidecar")


def environment() -> dict[str, str]:
    """Variables with which a process uses the compiled sidecar, and so do its children."""
    return {VARIABLE: str(FOLDER), "PYTHONPATH": str(FOLDER)}


def begin() -> None:
    """Use the compiled sidecar here and in every process that is started from now on."""
    build()
    os.environ.update(environment())
    use()


def build() -> Path:
    """Bring the folder up to date; about 40 s where something has changed.

    Raises:
        subprocess.CalledProcessError: It cannot be compiled; what the compilers wrote is shown.
    """
    return up_to_date(FOLDER, digest(), _make, "compiling the request path")


def up_to_date(folder: Path, wanted: str, make: Callable[[Path], None], what: str) -> Path:
    """Have a folder made anew where it is not of the wanted digest; by one process at a time."""
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / ".digest"
        if not stamp.exists() or stamp.read_text() != wanted:
            print(f"{what} into {folder.name}", file=sys.stderr, flush=True)
            make(folder)
            stamp.write_text(wanted)
    return folder


def _make(folder: Path) -> None:
    made = folder.with_suffix(".new")
    shutil.rmtree(made, ignore_errors=True)
    here = Path(sys.executable)
    built = wheel(here, made / "wheel")
    pip(here, "install", *OFFLINE, "--target", str(made / "packages"), str(built))
    shutil.rmtree(folder, ignore_errors=True)
    (made / "packages").rename(folder)
    shutil.rmtree(made)


def wheel(python: Path, into: Path) -> Path:
    """Build the wheel of this checkout, request path compiled, with what an interpreter has."""
    pip(python, "wheel", *OFFLINE, "--no-build-isolation", "-w", str(into), str(ROOT))
    [built] = into.glob("*.whl")
    return built


def pip(python: Path, *arguments: str) -> None:
    """Run an interpreter's pip, of nobody's compiled checkout.

    Raises:
        subprocess.CalledProcessError: pip failed; what it wrote is shown.
    """
    variables = {**os.environ, "HATCH_BUILD_HOOKS_ENABLE": "1"}
    for name in environment():
        variables.pop(name, None)
    command = (python, "-m", "pip", "--disable-pip-version-check")
    subprocess.run([*command, *arguments], env=variables, check=True)


def digest() -> str:
    """Of everything that is compiled, and of the interpreter."""
    found = hashlib.blake2b(sys.version.encode())
    for path in sorted(path for pattern in _SOURCES for path in ROOT.glob(pattern)):
        found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()


if __name__ == "__main__":
    build()
