"""The sidecar as the image has it: Debian's Python where there is one, and a compiled request path.

Owns `.shipped`, a virtual environment made as the Dockerfile makes the image's: the same locks, the
same build. Where Debian's Python is missing or another version than ours, it is made with ours.
"""

from __future__ import annotations

import hashlib
import os
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


def build() -> Path:
    """Bring the environment up to date: a minute where something has changed.

    Returns:
        The command `turnout`.

    Raises:
        subprocess.CalledProcessError: It cannot be made; what pip and the compiler wrote is shown.
    """
    command, stamp = FOLDER / "bin" / "turnout", FOLDER / ".digest"
    locks = [(ROOT / name).read_bytes() for name in ("requirements.txt", "requirements-image.txt")]
    parts = [compiling.digest().encode(), str(python()).encode(), *locks]
    wanted = hashlib.blake2b(b"\0".join(parts)).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        print("making the sidecar as it is shipped in .shipped", file=sys.stderr, flush=True)
        _make()
        stamp.write_text(wanted)
    return command


def _make() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    tools = FOLDER / "tools"
    locked = ("install", "-q", "--require-hashes", "--only-binary", ":all:", "-r")
    for folder, lock in ((FOLDER, "requirements.txt"), (tools, "requirements-image.txt")):
        subprocess.run([python(), "-m", "venv", folder], check=True)
        _pip(folder, *locked, str(ROOT / lock))
    offline = ("-q", "--no-deps", "--no-index")
    wheels = FOLDER / "wheels"
    _pip(tools, "wheel", *offline, "--no-build-isolation", "-w", str(wheels), str(ROOT))
    [wheel] = wheels.glob("*.whl")
    _pip(FOLDER, "install", *offline, str(wheel))
    shutil.rmtree(tools)


def _pip(folder: Path, *arguments: str) -> None:
    environment = {**os.environ, "HATCH_BUILD_HOOKS_ENABLE": "1"}
    # Those of a compiled checkout; here everything is installed.
    for name in compiling.environment():
        environment.pop(name, None)
    pip = (folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
    subprocess.run([*pip, *arguments], env=environment, check=True)
