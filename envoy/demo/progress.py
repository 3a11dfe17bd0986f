"""The demo on the terminal: one live line while an act runs, and a printed line for every event.

Without a terminal (a pipe, CI) only the events are printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from rich.console import Console as Terminal
from rich.live import Live
from rich.text import Text

_REFRESH_S = 0.25


class Progress:
    """Prints; knows nothing of what it prints."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self._begin_s = time.monotonic()

    def event(self, text: str, *, style: str = "") -> None:
        """Something happened."""
        self.terminal.print(
            Text.assemble((f"{time.monotonic() - self._begin_s:7.1f} s  ", "dim"), (text, style)),
            soft_wrap=True,
        )

    def heading(self, text: str) -> None:
        """A new act."""
        self.terminal.print()
        self.terminal.print(Text(text, style="bold"))

    @contextlib.asynccontextmanager
    async def live(self, line: Callable[[], str]) -> AsyncIterator[None]:
        """Show a line that changes, as long as the block runs."""
        if not self.terminal.is_terminal:
            yield
            return
        with Live(console=self.terminal, auto_refresh=False, transient=True) as view:

            async def refresh() -> None:
                while True:
                    view.update(Text("           " + line(), style="cyan"), refresh=True)
                    await asyncio.sleep(_REFRESH_S)

            task = asyncio.create_task(refresh())
            try:
                yield
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
