"""The sidecar as the image has it: Debian's Python where there is one, and a compiled request path.

Owns `.shipped`, a virtual environment made as the Dockerfile makes the image's: the same locks, the
same build. Where Debian's Python is missing or another version than ours, it is made with ours.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests import compiling

ROOT: Final = compiling.ROOT
FOLDER: Final = ROOT / ".shipped"
_DEBIANS: Final = Path("/usr/bin/python3")
# It must be able to make an environment, and have the headers to compile with.
_WHAT: Final = (
    "import ensurepip, os, sys, sysconfig, venv; "
    "os.stat(sysconfig.get_path('include') + '/Python.h'); print(*sys.version_info[:2])"
)


def python() -> Path:
    """The image's interpreter, or ours."""
    wanted = f"{sys.version_info.major} {sys.version_info.minor}"
    if _DEBIANS.exists():
        asked = subprocess.run([_DEBIANS, "-c", _WHAT], capture_output=True, text=True, check=False)
        if asked.stdout.strip() == wanted:
            return _DEBIANS
    return Path(sys.executable)


@functools.cache
def build() -> Path:
    """Bring the environment up to date, once in a run: a minute where something has changed.

    Returns:
        The command `turnout`.

    Raises:
        subprocess.CalledProcessError: It cannot be made; what pip and the compiler wrote is shown.
    """
    locks = [(ROOT / name).read_bytes() for name in ("requirements.txt", "requirements-image.txt")]
    parts = [compiling.digest().encode(), str(python()).encode(), *locks]
    wanted = hashlib.blake2b(b"\0".join(parts)).hexdigest()
    what = "installing the sidecar as it is shipped"
    return compiling.up_to_date(FOLDER, wanted, _make, what) / "bin" / "turnout"


def _make(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    tools = folder / "tools"
    locked = ("install", "-q", "--require-hashes", "--only-binary", ":all:", "-r")
    for place, lock in ((folder, "requirements.txt"), (tools, "requirements-image.txt")):
        subprocess.run([python(), "-m", "venv", place], check=True)
        compiling.pip(_python_of(place), *locked, str(ROOT / lock))
    built = compiling.wheel(_python_of(tools), folder / "wheels")
    compiling.pip(_python_of(folder), "install", *compiling.OFFLINE, str(built))
    shutil.rmtree(tools)


def _python_of(folder: Path) -> Path:
    return folder / "bin" / "python"
