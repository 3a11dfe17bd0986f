"""gbstats in an environment of its own, as it wants numpy 1: made once, asked in batches.

Owns the environment (in ${TURNOUT_CACHE:-~/.cache/turnout}, by the hash of its lock) and the form
of a question. Refuses to be imported by the product: nothing of ours needs it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.differential.statworlds import Values

HERE: Final = Path(__file__).parent
REQUIREMENTS: Final = HERE / "requirements-gbstats.txt"
PROGRAM: Final = HERE / "peer_gbstats.py"
CACHE: Final = Path(os.environ.get("TURNOUT_CACHE") or Path.home() / ".cache" / "turnout")


def gbstats_python() -> Path:
    """An interpreter that has gbstats; the first call on a machine installs it."""
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    home = CACHE / f"gbstats-{wanted[:16]}"
    python, installed = home / "bin" / "python", home / "installed"
    CACHE.mkdir(parents=True, exist_ok=True)
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
            pip = (python, "-m", "pip", "install", "-q", "--disable-pip-version-check")
            only = ("--require-hashes", "--only-binary", ":all:", "-r", REQUIREMENTS)
            subprocess.run([*pip, *only], check=True)
            installed.touch()
    return python


def ask_gbstats(calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Its answer to each call; see `peer_gbstats.CALLS`."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [gbstats_python(), PROGRAM],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def sums(y: Values, x: Values | None = None) -> dict[str, Any]:
    """An arm as gbstats takes it: raw sums, each the float64 nearest to the exact one."""
    found: dict[str, Any] = {"n": len(y), "sum_y": _exact(y), "sum_sq_y": _exact(y, y)}
    if x is not None:
        found |= {"sum_x": _exact(x), "sum_sq_x": _exact(x, x), "sum_yx": _exact(y, x)}
    return found


def _exact(*factors: Values) -> float:
    product = np.ones(len(factors[0]), dtype=np.longdouble)
    for factor in factors:
        product = product * factor
    return float(np.sum(product))
