"""A minimal ext_proc server on grpclib, to compare with; runs where grpclib is installed.

usage: peer_grpclib.py unix:PATH | tcp:HOST:PORT
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from typing import Any

# Not plain imports: where this file is only read (mypy, an editor) there is no grpclib.
CONST: Any = importlib.import_module("grpclib.const")
SERVER: Any = importlib.import_module("grpclib.server")

ANSWER = b"\x0a\x30" + b"\x0a\x2e" + b"a" * 46  # as long as a stamp
SERVING = b"\x08\x01"


class Raw:
    """Messages stay bytes."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data


class Services:
    """What Envoy calls."""

    def __mapping__(self) -> dict[str, Any]:
        handler, cardinality = CONST.Handler, CONST.Cardinality
        return {
            "/envoy.service.ext_proc.v3.ExternalProcessor/Process": handler(
                self.process, cardinality.STREAM_STREAM, bytes, bytes
            ),
            "/grpc.health.v1.Health/Check": handler(
                self.check, cardinality.UNARY_UNARY, bytes, bytes
            ),
            "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs": handler(
                self.access_logs, cardinality.STREAM_UNARY, bytes, bytes
            ),
        }

    async def process(self, stream: Any) -> None:
        if await stream.recv_message() is not None:
            await stream.send_message(ANSWER)

    async def check(self, stream: Any) -> None:
        await stream.recv_message()
        await stream.send_message(SERVING)

    async def access_logs(self, stream: Any) -> None:
        while await stream.recv_message() is not None:
            pass
        await stream.send_message(b"")


async def main() -> None:
    server = SERVER.Server([Services()], codec=Raw())
    kind, _, rest = sys.argv[1].partition(":")
    if kind == "unix":
        await server.start(path=rest)
    else:
        host, _, port = rest.rpartition(":")
        await server.start(host, int(port))
    await server.wait_closed()


asyncio.run(main())
