"""The page for users: what it says to type works, and gives what it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path("control/analyze/README.md")
ROOT = Path.cwd()


def test_commands_of_the_page_work_and_print_what_it_shows(tmp_path: Path) -> None:
    text = PAGE.read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    pythons = [body for language, body in blocks if language == "python"]
    shells = [body for language, body in blocks if language == "sh"]
    shown = next(body for language, body in blocks if language == "")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}",
    }

    def run(command: list[str]) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run([sys.executable, "-c", pythons[0]])
    outputs = [run(["bash", "-ec", shell]) for shell in shells]
    assert outputs[0].startswith(shown)
    assert outputs[1].startswith('{\n  "decision"')
    assert run([sys.executable, "-c", pythons[1]]).startswith("PROMOTE 0.0")
