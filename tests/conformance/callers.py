"""gRPC calls with messages as bytes, through grpcio's two clients.

Owns the channels. Refuses to know what the messages mean. Both clients have one interface, so that
one test is a test of both.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import grpc
import grpc.aio

T = TypeVar("T")
DEADLINE_S: Final = 10.0
Metadata = Sequence[tuple[str, str | bytes]]


class Result(NamedTuple):
    """How a call ended.

    Attributes:
        code: Its status.
        answers: Messages that came, in order.
        details: The status message.
        trailers: Metadata that came last.
    """

    code: grpc.StatusCode
    answers: list[bytes]
    details: str
    trailers: dict[str, str | bytes]


class Caller(Protocol):
    """A client."""

    def call(
        self,
        method: str,
        messages: Sequence[bytes],
        *,
        timeout_s: float | None = DEADLINE_S,
        metadata: Metadata = (),
        compression: grpc.Compression | None = None,
        keep_open: bool = False,
        cancel_after: int = -1,
    ) -> Result:
        """Make one call.

        Args:
            method: "/service/method".
            messages: What is sent.
            timeout_s: The call's deadline; None = none.
            metadata: Sent before the messages.
            compression: Of the messages.
            keep_open: Do not say that no more messages come.
            cancel_after: Cancel when so many answers came; 0 = when the messages are sent.
        """
        ...

    def ask(
        self, method: str, message: bytes, *, compression: grpc.Compression | None = None
    ) -> Result:
        """Make a call of one message each way, which may be refused before it is sent.

        On the wire it is the same, but grpcio's asyncio client says INTERNAL of a stream that ends
        while it is writing, whatever the status was.

        Args:
            method: "/service/method".
            message: What is sent.
            compression: Of the message.
        """
        ...

    def close(self) -> None:
        """End the channel."""
        ...


class SyncCaller:
    """grpcio's threads."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])

    def call(
        self,
        method: str,
        messages: Sequence[bytes],
        *,
        timeout_s: float | None = DEADLINE_S,
        metadata: Metadata = (),
        compression: grpc.Compression | None = None,
        keep_open: bool = False,
        cancel_after: int = -1,
    ) -> Result:
        """See Caller."""
        sent, over = threading.Event(), threading.Event()

        def given() -> Iterator[bytes]:
            yield from messages
            sent.set()
            if keep_open:
                over.wait()

        stream: Any = self._channel.stream_stream(method)
        call = stream(given(), timeout=timeout_s, metadata=tuple(metadata), compression=compression)
        answers: list[bytes] = []
        try:
            if cancel_after == 0:
                sent.wait(DEADLINE_S)
                call.cancel()
            for answer in call:
                answers.append(answer)
                if len(answers) == cancel_after:
                    call.cancel()
        except grpc.RpcError:
            pass  # its status is read below
        finally:
            over.set()
        return Result(call.code(), answers, call.details(), _plain(call.trailing_metadata()))

    def ask(
        self, method: str, message: bytes, *, compression: grpc.Compression | None = None
    ) -> Result:
        """See Caller."""
        unary: Any = self._channel.unary_unary(method)
        call = unary.future(message, timeout=DEADLINE_S, compression=compression)
        answers = [call.result()] if call.exception() is None else []
        return Result(call.code(), answers, call.details(), _plain(call.trailing_metadata()))

    def close(self) -> None:
        """See Caller."""
        self._channel.close()


class AioCaller:
    """grpcio's asyncio client, in a loop of its own."""

    def __init__(self, target: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._channel = self._run(self._open(target))

    async def _open(self, target: str) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(3 * DEADLINE_S)

    def call(
        self,
        method: str,
        messages: Sequence[bytes],
        *,
        timeout_s: float | None = DEADLINE_S,
        metadata: Metadata = (),
        compression: grpc.Compression | None = None,
        keep_open: bool = False,
        cancel_after: int = -1,
    ) -> Result:
        """See Caller."""

        async def one() -> Result:
            sent, over = asyncio.Event(), asyncio.Event()

            async def given() -> AsyncIterator[bytes]:
                for message in messages:
                    yield message
                sent.set()
                if keep_open:
                    await over.wait()

            stream: Any = self._channel.stream_stream(method)
            call = stream(
                given(), timeout=timeout_s, metadata=tuple(metadata), compression=compression
            )
            answers: list[bytes] = []
            try:
                if cancel_after == 0:
                    await asyncio.wait_for(sent.wait(), DEADLINE_S)
                    call.cancel()
                async for answer in call:
                    answers.append(answer)
                    if len(answers) == cancel_after:
                        call.cancel()
            except (grpc.aio.AioRpcError, asyncio.CancelledError):
                pass  # its status is read below
            finally:
                over.set()
            trailers = _plain(await call.trailing_metadata())
            return Result(await call.code(), answers, await call.details(), trailers)

        return self._run(one())

    def ask(
        self, method: str, message: bytes, *, compression: grpc.Compression | None = None
    ) -> Result:
        """See Caller."""

        async def one() -> Result:
            unary: Any = self._channel.unary_unary(method)
            call = unary(message, timeout=DEADLINE_S, compression=compression)
            try:
                answers = [await call]
            except grpc.aio.AioRpcError:
                answers = []
            trailers = _plain(await call.trailing_metadata())
            return Result(await call.code(), answers, await call.details(), trailers)

        return self._run(one())

    def close(self) -> None:
        """See Caller."""
        self._run(self._channel.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _plain(metadata: Any) -> dict[str, str | bytes]:
    return dict(metadata or ())
