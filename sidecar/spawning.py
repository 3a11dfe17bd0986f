"""Starts a worker process, with a link and a memory file of its own.

Owns the command line of a worker. Imports little: the first workers are started before the
supervisor has imported what only it needs, and both imports then run side by side.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.counters import CounterFile
from sidecar.listen import SERVER_DEFAULT, Listen, ServerKind
from turnout.logs import PLAIN, Style

if TYPE_CHECKING:
    from sidecar.options import Options

_ENVIRONMENT: Final = {"GRPC_VERBOSITY": "NONE"}


class Place(NamedTuple):
    """What a worker and those that come after it have in common.

    Attributes:
        number: Of the worker, from 0.
        listen: Where it serves.
        server: Which server it runs.
        log: How it logs.
    """

    number: int
    listen: Listen
    server: ServerKind = SERVER_DEFAULT
    log: Style = PLAIN


class Spawned(NamedTuple):
    """A worker that was started and not spoken to yet.

    Attributes:
        process: The process.
        link: Our end of the socket pair; not blocking.
        counters: Its memory file.
    """

    process: subprocess.Popen[bytes]
    link: socket.socket
    counters: CounterFile

    def discard(self) -> None:
        """End it: it is not needed."""
        self.process.kill()
        self.process.wait()
        self.link.close()
        self.counters.close()


def places(options: Options) -> list[Place]:
    """Of all workers of a sidecar."""
    return [
        Place(i, options.listen.worker(i), options.server, options.log)
        for i in range(options.workers)
    ]


def spawn(place: Place) -> Spawned:
    """Start a worker.

    Raises:
        OSError: There is no process, memory or descriptor to be had.
    """
    counters = CounterFile.create(f"turnout-decided-{place.number}")
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:
        counters.close()
        raise
    try:
        # -P: what lies in the working directory is not imported.
        process = subprocess.Popen(  # noqa: S603 - no word of it comes from outside
            [
                sys.executable,
                *("-P", "-m", "sidecar.worker"),
                *("--listen", str(place.listen), "--server", place.server),
                *("--link", str(theirs.fileno())),
                *("--counters", str(counters.fd)),
                *("--index", str(place.number)),
                *("--log-format", place.log.format, "--log-level", place.log.level),
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), counters.fd),
            env={**_ENVIRONMENT, **os.environ},
        )
    except OSError:
        ours.close()
        counters.close()
        raise
    finally:
        theirs.close()
    ours.setblocking(False)
    return Spawned(process, ours, counters)
