"""Where a server listens (a Unix socket, or, for tests, a TCP port), and which server it is.

Owns the two forms `unix:PATH` and `tcp:HOST:PORT`, and which of them worker i gets. Refuses to
open anything.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple, Self

UNIX_PREFIX: Final = "unix:"
TCP_PREFIX: Final = "tcp:"
PORT_MAX: Final = 65_535


class ServerKind(StrEnum):
    """Which server serves."""

    WIRE = "wire"
    GRPCIO = "grpcio"


SERVER_DEFAULT: Final = ServerKind.WIRE


class Listen(NamedTuple):
    """One address to serve on.

    Attributes:
        path: Of the Unix socket; None = TCP.
        host: Without brackets; "" for a Unix socket.
        port: 0..65535, 0 = any free one; 0 for a Unix socket.
    """

    path: Path | None
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `unix:PATH` or `tcp:HOST:PORT` (an IPv6 HOST in brackets).

        Raises:
            ValueError: It is neither; the message says what to write.
        """
        if text.startswith(UNIX_PREFIX) and text != UNIX_PREFIX:
            return cls(Path(text.removeprefix(UNIX_PREFIX)))
        if text.startswith(TCP_PREFIX):
            host, _, port = text.removeprefix(TCP_PREFIX).rpartition(":")
            bracketed = host.startswith("[") and host.endswith("]")
            number = int(port) if port.isascii() and port.isdigit() else PORT_MAX + 1
            if host and (bracketed or ":" not in host) and number <= PORT_MAX:
                return cls(None, host.strip("[]"), number)
        raise ValueError(
            "must be unix:PATH, like unix:/run/turnout/worker.sock, or, for tests, tcp:HOST:PORT"
        )

    @property
    def is_tcp(self) -> bool:
        """Whether strangers might reach it: then nothing that comes is taken on trust."""
        return self.path is None

    def worker(self, index: int) -> Listen:
        """The address of worker `index`: PATH.index, or PORT + index."""
        if self.path is None:
            return Listen(None, self.host, self.port + index if self.port else 0)
        return Listen(self.path.with_name(f"{self.path.name}.{index}"))

    def __str__(self) -> str:
        if self.path is not None:
            return f"{UNIX_PREFIX}{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{TCP_PREFIX}{host}:{self.port}"
