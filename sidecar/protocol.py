"""What a worker serves to Envoy: external processing, access logs and health on one Unix socket.

Owns the gRPC methods and the socket file. Refuses to look into a request: a Handler does that. The
interface is the Server protocol.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Protocol

from sidecar.listen import Listen

EXT_PROC_SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
ACCESS_LOG_SERVICE: Final = "envoy.service.accesslog.v3.AccessLogService"
HEALTH_SERVICE: Final = "grpc.health.v1.Health"

SOCKET_MODE: Final = 0o660
# How often a health watcher looks again.
WATCH_INTERVAL_S: Final = 0.25


class ServerKind(StrEnum):
    """Which server serves."""

    WIRE = "wire"
    GRPCIO = "grpcio"


SERVER_DEFAULT: Final = ServerKind.GRPCIO


class PeerError(ValueError):
    """The peer's message cannot be read; the call ends with INVALID_ARGUMENT."""


class Handler(Protocol):
    """What happens to the messages. Called on the event loop; must not block."""

    def process(self, request: bytes) -> bytes | None:
        """Answer one ProcessingRequest; None = no answer, the stream ends with status 0.

        Raises:
            PeerError: The request cannot be read.
        """
        ...

    async def access_log(self, message: bytes, log_name: str) -> str:
        """Fold one StreamAccessLogsMessage and return the stream's log name.

        Envoy names a log in the first message of a stream only. A message may be large: the handler
        lets others run in between.

        Raises:
            PeerError: The message cannot be read.
        """
        ...

    def healthy(self) -> bool:
        """Whether requests should come here."""
        ...


class Server(Protocol):
    """A server of the three services on one socket."""

    async def start(self) -> None:
        """Bind and serve; returns when connections are accepted."""
        ...

    async def drain(self, grace_s: float) -> None:
        """Refuse new streams, let open ones end within `grace_s`, then close."""
        ...


def make_server(kind: ServerKind, listen: Listen, handler: Handler) -> Server:
    """A server of `handler` at `listen`; nothing happens before its `start`.

    Args:
        kind: Ours, or the reference; what is not asked for is not imported.
        listen: Where.
        handler: What happens to the messages.
    """
    from sidecar.grpcserver import GrpcServer

    return GrpcServer(listen, handler)
