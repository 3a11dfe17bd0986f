"""The watchdog ends a process whose loop hangs, and no other."""

from __future__ import annotations

import subprocess
import sys

from sidecar.watchdog import EXIT_HUNG, LIMIT_MS, Watchdog

HANGS = """
import time
from sidecar.watchdog import Watchdog

def the_loop_hangs_here():
    while True:
        time.sleep(0.01)

Watchdog().start()
the_loop_hangs_here()
"""


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


def watchdog() -> tuple[Watchdog, Clock, list[int]]:
    clock, hung = Clock(), list[int]()
    one = Watchdog(on_hung=lambda: hung.append(clock.now_ms), clock_ms=clock)
    one.beat()
    one.look()
    return one, clock, hung


def test_process_ends_and_says_where_when_its_loop_hangs() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", HANGS], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == EXIT_HUNG
    assert "the_loop_hangs_here" in done.stderr


def test_nothing_ends_while_the_loop_turns() -> None:
    one, clock, hung = watchdog()
    for _ in range(100):
        clock.now_ms += LIMIT_MS // 3
        one.beat()
        one.look()
    assert not hung


def test_loop_is_hung_when_it_misses_the_limit() -> None:
    one, clock, hung = watchdog()
    while not hung and clock.now_ms < 1_000_000 + 10 * LIMIT_MS:
        clock.now_ms += LIMIT_MS // 10
        one.look()
    assert LIMIT_MS < hung[0] - 1_000_000 <= 1.2 * LIMIT_MS


def test_loop_gets_its_time_again_when_the_whole_process_stood_still() -> None:
    one, clock, hung = watchdog()
    clock.now_ms += 100 * LIMIT_MS
    one.look()
    clock.now_ms += LIMIT_MS // 3
    one.look()
    assert not hung
