"""Coverage-guided fuzzing for a bounded time, from the committed corpus."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.fuzz.seeds import CORPUS
from tests.tidy.repository import ROOT

SECONDS: Final = 90
MEMORY_MB: Final = 600
INPUT_BYTES_MAX: Final = 8192


@pytest.mark.soak
@pytest.mark.parametrize("target", ["wire", "request", "log"])
def test_nothing_is_found_when_coverage_guides(target: str, tmp_path: Path) -> None:
    seeds = tmp_path / "seeds"
    shutil.copytree(CORPUS / target, seeds)
    command = [
        *(sys.executable, "-m", "tests.fuzz.guided", target),
        *(f"-max_total_time={SECONDS}", f"-rss_limit_mb={MEMORY_MB}"),
        *(f"-max_len={INPUT_BYTES_MAX}", f"-artifact_prefix={tmp_path}/", "-seed=20"),
        *("-print_final_stats=1", str(seeds)),
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=5 * SECONDS
    )
    found = [path.name for path in tmp_path.glob("*-*") if path.is_file()]
    assert done.returncode == 0, f"{found}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    assert "stat::number_of_executed_units" in done.stderr
