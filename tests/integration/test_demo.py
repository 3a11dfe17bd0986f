"""`make demo` as a visitor runs it: all seven acts, and the summary that it leaves."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.tidy.repository import ROOT

# At most 5 minutes after installation, on a machine that may be busy.
DEMO_TIMEOUT_S = 420
ZERO_WITHIN_S = 30
# `timeout` says 124 when it had to end the command: a watch never ends by itself.
TIMEOUT_STATUS = 124
KEYS = {
    "name",
    "ok",
    "requests",
    "failed",
    "unstamped",
    "final_state",
    "reason",
    "seconds_to_zero",
    "exposed_requests",
    "variants",
}


def environment() -> dict[str, str]:
    """A visitor's environment: nothing of pytest's or of the make that runs it."""
    ours = {"PYTHONPATH", "MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "ARGS"}
    return {name: value for name, value in os.environ.items() if name not in ours}


def test_demo_plays_every_act_as_it_must() -> None:
    done = subprocess.run(
        ["make", "demo"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEMO_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    acts = json.loads((ROOT / ".turnout/demo/summary.json").read_text())["acts"]
    assert len(acts) == 7
    assert all(set(act) == KEYS and act["ok"] for act in acts)
    states = " ".join(act["final_state"] for act in acts)
    assert states == "STOPPED PROMOTED ROLLED_BACK ROLLED_BACK RUNNING STOPPED PROMOTED"
    assert sum(act["requests"] for act in acts) > 10_000
    assert sum(act["failed"] for act in acts) == 0
    for act in acts[2:4]:
        assert act["seconds_to_zero"] <= ZERO_WITHIN_S
        assert act["exposed_requests"] > 0
    assert "accuracy" in acts[3]["reason"].lower()
    assert "v5 is better: accuracy" in acts[6]["reason"]
    assert "accuracy" in acts[5]["reason"]
    assert "thin-pens" in acts[5]["reason"]
    assert acts[5]["variants"]["v6"]["errors"] == 0
    for act in (acts[0], acts[1], acts[4], acts[5], acts[6]):
        assert act["seconds_to_zero"] is None
        assert act["exposed_requests"] is None


def demo(root: Path) -> subprocess.Popen[str]:
    """The demo with a root of its own, its output in a pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "envoy.demo", "--acts", "1", "--root", str(root)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def started_from(root: Path) -> list[str]:
    """Command lines of processes that work below a demo's root."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # it ended meanwhile
            if str(root) in line:
                found.append(line)
    return found


def test_demo_leaves_nothing_running_when_it_is_interrupted(tmp_path: Path) -> None:
    process = demo(tmp_path)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "shadow-v2 started" in line:
            break
    assert len(started_from(tmp_path)) > 6, "".join(lines)
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130, "".join(lines) + rest
    assert not started_from(tmp_path)


def test_demo_says_why_when_a_part_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("in the way of the fitted models\n")
    process = demo(tmp_path)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2, output
    assert "pod-v1 ended with status 1; the end of" in output
    assert "FileExistsError" in output
    assert not started_from(tmp_path)


def answer(line: str) -> str:
    """What a printed line answers. A bare machine has no curl: then its URL is fetched here."""
    if line.startswith("curl ") and shutil.which("curl") is None:
        *options, url = shlex.split(line)
        headers = dict(option.split(": ") for option in options if ": " in option)
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as reply:
            text: str = reply.read().decode()
            return text
    watches = "Watch" in line
    done = subprocess.run(
        ["bash", "-c", f"timeout 2 {line}" if watches else line],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == (TIMEOUT_STATUS if watches else 0), (line, done)
    return done.stdout


def test_kept_demo_answers_the_lines_that_it_prints() -> None:
    process = subprocess.Popen(
        ["make", "demo", "KEEP=1", "ACTS=5"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    printed: list[str] = []
    for line in process.stdout:
        printed.append(line)
        if "/v2/models/digits" in line and "curl -si" in line:
            break
    tried = [line.strip() for line in printed if line.startswith("  ") and "curl -" in line]
    assert len(tried) == 7, "".join(printed)
    try:
        for line in tried:
            assert answer(line).strip(), line
    finally:
        # As Ctrl-C does: the whole process group of make gets it.
        os.killpg(process.pid, signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
    assert "Traceback" not in rest, rest
    assert not started_from(ROOT / ".turnout" / "demo")
