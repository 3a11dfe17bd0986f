"""The reference server: external processing, access logs and health on grpc.aio.

Owns nothing that the hand-framed server of `sidecar.wire` does not do too; it is there to compare
with (`--server grpcio`). Refuses to look into a request: a Handler does that. Imported only when
asked for: a worker that does not need grpc does not pay for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import Any, Final

import grpc
import grpc.aio

from sidecar.listen import TCP_PREFIX, Listen
from sidecar.protocol import (
    ACCESS_LOG_SERVICE,
    EXT_PROC_SERVICE,
    HEALTH_SERVICE,
    SOCKET_MODE,
    WATCH_INTERVAL_S,
    Handler,
    PeerError,
)
from sidecar.wire.calls import SERVICE_UNKNOWN
from sidecar.wire.limits import LOG_BYTES_MAX
from turnout.envoy.health_pb2 import HealthCheckRequest, HealthCheckResponse

# Envoy opens one stream per request: nothing here may depend on grpc's defaults for few long calls.
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", LOG_BYTES_MAX),
    ("grpc.so_reuseport", 0),
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
)
_EMPTY: Final = b""
_GRPC_LOG: Final = "grpc._cython.cygrpc"


def _be_silent_about_cut_calls(loop: asyncio.AbstractEventLoop) -> None:
    """Keep grpc.aio from writing a traceback for each call that the stop, or the peer, cut."""

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not _is_cut(context.get("exception")):
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)
    grpc_log = logging.getLogger(_GRPC_LOG)
    if _tells not in grpc_log.filters:
        grpc_log.addFilter(_tells)


def _tells(record: logging.LogRecord) -> bool:
    """Whether a record of grpc's says anything about us."""
    if record.exc_info and _is_cut(record.exc_info[1]):
        return False
    return not str(record.msg).startswith("Aborting method")


def _is_cut(error: BaseException | None) -> bool:
    """Whether it is how grpc.aio ends a call that is over before we are; its types are private."""
    if isinstance(error, asyncio.CancelledError):
        return True
    return type(error).__name__ in ("ExecuteBatchError", "_ServerStoppedError")


class GrpcServer:
    """The services on grpc.aio, messages as bytes."""

    def __init__(self, listen: Listen, handler: Handler) -> None:
        """Serve `handler` at `listen`; nothing happens before `start`."""
        self._listen = listen
        self._handler = handler
        self._draining = False
        self._server = grpc.aio.server(options=_OPTIONS)
        self._server.add_generic_rpc_handlers(self._methods())

    @property
    def faults(self) -> Mapping[str, int]:
        """Nothing: gRPC does not tell why it closes a connection."""
        return {}

    async def start(self) -> None:
        """Bind beside the path and rename over it, so that the path never leads nowhere."""
        _be_silent_about_cut_calls(asyncio.get_running_loop())
        path = self._listen.path
        if path is None:
            self._server.add_insecure_port(str(self._listen).removeprefix(TCP_PREFIX))
            await self._server.start()
            return
        hidden = path.with_name(f".{path.name}.{os.getpid()}")
        hidden.unlink(missing_ok=True)
        self._server.add_insecure_port(f"unix:{hidden}")
        await self._server.start()
        hidden.chmod(SOCKET_MODE)
        hidden.rename(path)

    async def drain(self, grace_s: float) -> None:
        """Send GOAWAY, wait for open streams up to `grace_s` seconds, close."""
        self._draining = True
        await self._server.stop(grace_s)

    def _methods(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Handlers without (de)serialisers: grpc hands over bytes."""
        return (
            grpc.method_handlers_generic_handler(
                EXT_PROC_SERVICE,
                {"Process": grpc.stream_stream_rpc_method_handler(self._process)},
            ),
            grpc.method_handlers_generic_handler(
                ACCESS_LOG_SERVICE,
                {"StreamAccessLogs": grpc.stream_unary_rpc_method_handler(self._access_logs)},
            ),
            grpc.method_handlers_generic_handler(
                HEALTH_SERVICE,
                {
                    "Check": grpc.unary_unary_rpc_method_handler(self._check),
                    "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
                },
            ),
        )

    async def _process(self, _requests: Any, context: Any) -> None:
        """One request message, at most one answer, then status 0.

        Envoy sends one message per stream and resets the stream when it has the answer; the reset
        cancels this coroutine, which is normal and silent.
        """
        request = await context.read()
        if request is grpc.aio.EOF:
            return
        try:
            answer = self._handler.process(request)
        except PeerError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if answer is not None:
            await context.write(answer)

    async def _access_logs(self, messages: Any, context: Any) -> bytes:
        """Fold until Envoy goes away; there is nothing to say before."""
        log_name = ""
        try:
            async for message in messages:
                log_name = await self._handler.access_log(message, log_name)
        except PeerError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return _EMPTY

    def _health(self, request: bytes) -> bytes | None:
        """What a health request is told; None = it asks about another service."""
        if HealthCheckRequest.FromString(request).service not in ("", EXT_PROC_SERVICE):
            return None
        serving = self._handler.healthy() and not self._draining
        status = HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse(status=status).SerializeToString()

    async def _check(self, request: bytes, context: Any) -> bytes:
        told = self._health(request)
        if told is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return told or _EMPTY  # not reached: abort raises

    async def _watch(self, request: bytes, context: Any) -> None:
        await context.write(last := self._health(request) or SERVICE_UNKNOWN)
        while not self._draining:
            await asyncio.sleep(WATCH_INTERVAL_S)
            if (now := self._health(request) or SERVICE_UNKNOWN) != last:
                await context.write(last := now)
