"""What a test leaves behind: processes, and gRPC servers and channels that are still open.

Owns the look before and after each test. What is found fails the test that left it, by name, and
is made harmless: the process is killed, the gRPC object kept until the end, because the garbage
collector waits for its poller's thread, perhaps for ever, wherever it meets such an object.
Refuses to look at what fixtures of a wider scope hold.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Collection, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

# What was told to end may still be about to.
END_S: Final = 5.0
_POLL_S: Final = 0.01

# By id: such an object is neither hashed nor compared.
_open: dict[int, tuple[str, Any]] = {}


class LeftBehindError(AssertionError):
    """A test left something; the message says what."""


def _notes(kind: type[Any], name: str, closing: str) -> None:
    """Note every object of a class from its making until the end of its closing."""
    made, close = kind.__init__, getattr(kind, closing)

    @functools.wraps(made)
    def init(self: Any, *args: Any, **named: Any) -> None:
        made(self, *args, **named)
        where = os.environ.get("PYTEST_CURRENT_TEST", "")
        _open[id(self)] = (f"{name}, made in {where}", self)

    @functools.wraps(close)
    async def closed(self: Any, *args: Any, **named: Any) -> Any:
        result = await close(self, *args, **named)
        _open.pop(id(self), None)
        return result

    kind.__init__ = init
    setattr(kind, closing, closed)


def watch_grpc() -> None:
    """Note servers and channels from now on; once in a process."""
    # What `grpc.aio.server` and `insecure_channel` make; the public classes are their bases.
    _notes(import_module("grpc.aio._server").Server, "a grpc.aio server", "stop")
    _notes(import_module("grpc.aio._channel").Channel, "a grpc.aio channel", "_close")


def children() -> dict[int, str]:
    """Process id -> command line of our children that run; zombies do not."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            for pid in map(int, (task / "children").read_text().split()):
                if command := _command(pid):
                    found[pid] = command
    return found


def _command(pid: int) -> str:
    """Its command line, or its name while it has none yet; "" = it has ended."""
    try:
        # The name is in brackets; what ended and nobody waited for yet is a zombie.
        name, _, rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    if rest.split()[0] in "ZX":
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace").strip() or name


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """What runs within ends all that it starts.

    Raises:
        LeftBehindError: It did not.
    """
    before, held = children().keys(), set(_open)
    yield
    deadline_s = time.monotonic() + END_S
    while (left := _left(before)) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    said = [f"process {pid}: {command}" for pid, command in left.items()]
    said += [name for key, (name, _) in _open.items() if key not in held]
    if said:
        raise LeftBehindError("left behind:\n" + "\n".join(said))


def _left(before: Collection[int]) -> dict[int, str]:
    return {pid: command for pid, command in children().items() if pid not in before}
