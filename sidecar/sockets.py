"""Whether the workers' sockets can be made where they are asked for.

Owns the checks and their sentences. Refuses to remove anything: a socket that answers is
somebody's.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from sidecar.clock import monotonic_ms
from sidecar.errors import CannotRunError

# The path of a Unix socket fits into 108 bytes, with its NUL; ours needs a temporary name beside
# it.
SOCKET_PATH_BYTES_MAX: Final = 90
_PROBE_S: Final = 3.0
_LOOK_S: Final = 0.1


class SocketError(CannotRunError):
    """The workers cannot listen there; the message says why and what to do."""


async def check_socket(path: Path) -> None:
    """A socket file that nobody answers on is rubbish; one that answers is somebody's.

    Workers of a supervisor that was killed a moment ago are still draining: wait for them a little.

    Raises:
        SocketError: A live server has it, or it cannot be made there.
    """
    check_place(path)
    deadline = monotonic_ms() + int(_PROBE_S * 1000)
    while await is_live(path):
        if monotonic_ms() > deadline:
            raise SocketError(
                f"{path} is in use by a live server: stop it, or choose another --listen"
            )
        await asyncio.sleep(_LOOK_S)


def check_place(path: Path) -> None:
    """Whether a socket can be made at a path.

    Raises:
        SocketError: It cannot.
    """
    if len(str(path).encode()) > SOCKET_PATH_BYTES_MAX:
        raise SocketError(f"{path} is too long for a Unix socket (at most {SOCKET_PATH_BYTES_MAX})")
    if not path.parent.is_dir():
        raise SocketError(f"{path}: there is no directory {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise SocketError(f"{path}: this user may not create files in {path.parent}")
    if path.exists() and not path.is_socket():
        raise SocketError(f"{path} is there already and is not a socket: remove it")


async def is_live(path: Path) -> bool:
    """Whether somebody accepts connections there."""
    try:
        _, writer = await asyncio.open_unix_connection(str(path))
    except OSError:
        return False
    writer.close()
    return True
