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
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
FOLDER: Final = ROOT / ".compiled"
VARIABLE: Final = "TURNOUT_COMPILED"
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
    with (ROOT / ".compiled.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp, wanted = FOLDER / ".digest", digest()
        if not stamp.exists() or stamp.read_text() != wanted:
            print("compiling the request path into .compiled", file=sys.stderr, flush=True)
            _build(FOLDER)
            stamp.write_text(wanted)
    return FOLDER


def _build(folder: Path) -> None:
    made = folder.with_suffix(".new")
    shutil.rmtree(made, ignore_errors=True)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    offline = ("-q", "--no-deps", "--no-index")
    wheels = made / "wheel"
    subprocess.run(
        [*pip, "wheel", *offline, "--no-build-isolation", "-w", str(wheels), str(ROOT)],
        env={**os.environ, "HATCH_BUILD_HOOKS_ENABLE": "1"},
        check=True,
    )
    [wheel] = wheels.glob("*.whl")
    subprocess.run(
        [*pip, "install", *offline, "--target", str(made / "packages"), str(wheel)], check=True
    )
    shutil.rmtree(folder, ignore_errors=True)
    (made / "packages").rename(folder)
    shutil.rmtree(made)


def digest() -> str:
    """Of everything that is compiled, and of the interpreter."""
    found = hashlib.blake2b(sys.version.encode())
    for path in sorted(path for pattern in _SOURCES for path in ROOT.glob(pattern)):
        found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()


if __name__ == "__main__":
    build()
