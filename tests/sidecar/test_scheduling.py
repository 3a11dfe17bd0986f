"""Short turns are asked for, and nothing else of a process changes."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.scheduling import _ATTR, LONG_NS, SHORT_NS, ask_for_turns

SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}
NICE = 3


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """One that waits, a little nicer than its parent."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as one:
        os.setpriority(os.PRIO_PROCESS, one.pid, NICE)
        yield one
        one.kill()


def turn_ns(pid: int) -> int:
    attr = ctypes.create_string_buffer(_ATTR.size)
    number = SCHED_GETATTR[platform.machine()]
    assert ctypes.CDLL(None).syscall(number, pid, attr, _ATTR.size, 0) == 0
    return int(_ATTR.unpack(attr.raw)[5])


def heeded() -> bool:
    """Whether this kernel takes notice."""
    major, minor = platform.release().split(".")[:2]
    return (int(major), int(minor)) >= (6, 12)


def test_turns_are_short_and_the_rest_stays_when_they_are_asked_for(
    process: subprocess.Popen[bytes],
) -> None:
    assert ask_for_turns(SHORT_NS, process.pid)
    assert turn_ns(process.pid) == (SHORT_NS if heeded() else 0)
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == NICE
    assert os.sched_getscheduler(process.pid) == os.SCHED_OTHER


def test_policy_stays_when_a_process_has_its_own(process: subprocess.Popen[bytes]) -> None:
    os.sched_setscheduler(process.pid, os.SCHED_BATCH, os.sched_param(0))
    assert not ask_for_turns(SHORT_NS, process.pid)
    assert os.sched_getscheduler(process.pid) == os.SCHED_BATCH


def test_nothing_is_asked_when_the_process_is_gone(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert not ask_for_turns(SHORT_NS, process.pid)


def test_turns_are_passed_on_until_a_process_asks_for_its_own() -> None:
    ask = "from sidecar.scheduling import *; assert ask_for_turns(LONG_NS)"
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen(
        [sys.executable, "-c", f"{ask}; {start}"], stdin=subprocess.PIPE
    ) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        try:
            while not (pids := children.read_text().split()):
                assert parent.poll() is None
            child = int(pids[0])
            passed_on = turn_ns(parent.pid), turn_ns(child)
            assert ask_for_turns(SHORT_NS, child)
            own = turn_ns(parent.pid), turn_ns(child)
        finally:
            parent.communicate(b"\n")
    long_ns, short_ns = (LONG_NS, SHORT_NS) if heeded() else (0, 0)
    assert passed_on == (long_ns, long_ns)
    assert own == (long_ns, short_ns)
