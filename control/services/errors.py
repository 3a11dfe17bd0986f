"""Puts refusals on the wire: decorators that every servicer method wears.

Owns the mapping from `Refused` and from the store's failures to gRPC trailers. Refuses to decide
what is refused.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeVar

import grpc
from google.protobuf import message
from google.rpc import code_pb2

from control.refusals import Refused

Reply = TypeVar("Reply")
Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[Any, Any, Context], Awaitable[Reply]]
StreamMethod = Callable[[Any, Any, Context], AsyncIterator[Reply]]

_running: set[asyncio.Task[Any]] = set()

CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class Malformed(NamedTuple):
    """Stands for a request whose bytes are not the message; grpc would answer UNKNOWN."""

    why: str

    def refusal(self) -> Refused:
        """INVALID_ARGUMENT."""
        return Refused(
            code_pb2.INVALID_ARGUMENT, f"not the request's message: {self.why}", reason="MALFORMED"
        )


def lenient(parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """A deserializer that gives `Malformed` instead of raising; see `refuse_malformed`."""
    if parse is None:
        return None

    def parsed(data: bytes) -> Any:
        try:
            return parse(data)
        except message.DecodeError as error:
            return Malformed(str(error))

    return parsed


async def refuse_malformed(request: object, context: Context) -> None:
    """End the call when its bytes were not the message."""
    if isinstance(request, Malformed):
        await abort(context, request.refusal())


def checked_stream(
    handler: grpc.RpcMethodHandler[Any, Any],
) -> grpc.RpcMethodHandler[Any, Any]:
    """A streaming method, ours or grpc's own, that refuses malformed requests."""
    if handler.request_streaming:
        return _checked_conversation(handler)
    behaviour: Any = handler.unary_stream

    async def yields(request: Any, context: Any) -> AsyncIterator[Any]:
        await refuse_malformed(request, context)
        async for reply in behaviour(request, context):
            yield reply

    async def writes(request: Any, context: Any) -> None:
        await refuse_malformed(request, context)
        await behaviour(request, context)

    # grpc asks the function which of the two it is.
    checked: Any = yields if inspect.isasyncgenfunction(behaviour) else writes
    return grpc.unary_stream_rpc_method_handler(
        checked,
        request_deserializer=lenient(handler.request_deserializer),
        response_serializer=handler.response_serializer,
    )


def _checked_conversation(
    handler: grpc.RpcMethodHandler[Any, Any],
) -> grpc.RpcMethodHandler[Any, Any]:
    behaviour: Any = handler.stream_stream

    async def yields(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async def checked() -> AsyncIterator[Any]:
            async for request in requests:
                await refuse_malformed(request, context)
                yield request

        async for reply in behaviour(checked(), context):
            yield reply

    return grpc.stream_stream_rpc_method_handler(
        yields,
        request_deserializer=lenient(handler.request_deserializer),
        response_serializer=handler.response_serializer,
    )


def answers(method: Method[Reply]) -> Method[Reply]:
    """Turn refusals of a unary method into a status with details."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Any, context: Context) -> Reply:
        # A client that gives up must not cut a change in two: what is stored would not be known.
        task: asyncio.Task[Reply] = asyncio.create_task(_awaited(method(self, request, context)))
        _running.add(task)
        task.add_done_callback(_ended)
        try:
            return await asyncio.shield(task)
        except Refused as refused:
            await abort(context, refused)
            raise AssertionError("abort always raises") from refused

    return wrapped


async def _awaited(answer: Awaitable[Reply]) -> Reply:
    return await answer


def _ended(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled():
        task.exception()  # whoever asked may have gone: then nobody else looks at it


async def finish() -> None:
    """Wait for calls whose clients have given up."""
    while _running:
        await asyncio.wait(_running)


def streams(method: StreamMethod[Reply]) -> StreamMethod[Reply]:
    """Turn refusals of a server-streaming method into a status with details."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Any, context: Context) -> AsyncIterator[Reply]:
        try:
            async for reply in method(self, request, context):
                yield reply
        except Refused as refused:
            await abort(context, refused)

    return wrapped


async def abort(context: Context, refused: Refused) -> None:
    """End the call with the refusal; raises grpc's own abort error."""
    trailers = (("grpc-status-details-bin", refused.status().SerializeToString()),)
    await context.abort(CODES[refused.code], refused.message, trailers)
