"""Ends a process whose event loop stands still, with a trace of where it stood.

Owns the thread and the limit. The supervisor kills who is silent, too; this works when it is busy,
and it says in which line the loop hung.
"""

from __future__ import annotations

import faulthandler
import os
import threading
from collections.abc import Callable
from typing import Final

from sidecar.clock import monotonic_ms

# A little less than the supervisor's patience, which sees only that nothing came.
LIMIT_MS: Final = 1_800
LOOK_S: Final = 0.2
EXIT_HUNG: Final = 70
_STDERR: Final = 2


def _abort() -> None:  # pragma: no cover - it ends the process
    faulthandler.dump_traceback(file=_STDERR, all_threads=True)
    os._exit(EXIT_HUNG)


class Watchdog:
    """Wants to hear of the loop every LIMIT_MS."""

    def __init__(
        self,
        *,
        on_hung: Callable[[], None] = _abort,
        clock_ms: Callable[[], int] = monotonic_ms,
    ) -> None:
        """Nothing is watched before `start`.

        Args:
            on_hung: Called on the watching thread; must not return.
            clock_ms: Monotonic.
        """
        self._on_hung = on_hung
        self._clock_ms = clock_ms
        self._beat_ms = 0
        self._looked_ms = 0

    def start(self) -> None:
        """Watch from now on, as long as the process lives."""
        self._beat_ms = self._looked_ms = self._clock_ms()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        """The loop turns."""
        self._beat_ms = self._clock_ms()

    def look(self) -> None:
        """Judge the loop once."""
        now_ms, looked_ms = self._clock_ms(), self._looked_ms
        self._looked_ms = now_ms
        if now_ms - looked_ms > LIMIT_MS / 2:
            # The whole process stood still, this thread too: the loop gets its time again.
            self._beat_ms = max(self._beat_ms, now_ms)
        elif now_ms - self._beat_ms > LIMIT_MS:
            self._on_hung()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(LOOK_S)
            self.look()
