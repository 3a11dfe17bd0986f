"""Child processes are watched, told about, and ended with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from envoy.demo.processes import Process, StartFailure, children, wait_for


async def never() -> bool:
    return False


async def test_failure_to_start_shows_the_end_of_the_log(tmp_path: Path) -> None:
    process = Process(
        "broken", [sys.executable, "-c", "raise SystemExit('no such port')"], logs=tmp_path
    )
    with pytest.raises(StartFailure, match=r"(?s)broken ended with status 1.*no such port"):
        await process.ready(never)


async def test_silent_process_is_told_when_it_is_not_ready_in_time(tmp_path: Path) -> None:
    process = Process("silent", ["sleep", "60"], logs=tmp_path)
    try:
        with pytest.raises(StartFailure, match="waited 0 s for silent to be ready"):
            await process.ready(never, timeout_s=0.1)
    finally:
        process.stop()
    assert not process.running


async def test_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\n"
        "from envoy.demo.processes import Process\n"
        "child = Process('child', ['sleep', '60'], logs=pathlib.Path(sys.argv[1]))\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())

    async def leashed() -> bool:
        return (parent.pid, True) in [
            (parent.pid, "sleep 60" in line) for pid, line in children(parent.pid) if pid == child
        ]

    await wait_for(leashed, timeout_s=10, what="the child to become its program")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()

    async def gone() -> bool:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return True
        state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "Z"  # ended; nobody has waited for it yet

    await wait_for(gone, timeout_s=10, what="the child to end")
