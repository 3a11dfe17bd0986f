"""What a worker serves to Envoy: external processing, access logs and health on one socket.

Owns the socket, the connections' transports and their clock: `sidecar.wire` says what every byte
means. Refuses to look into a request: a Handler does that. The interface is the Server protocol;
`sidecar.grpcserver` has its reference implementation.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Final, Protocol, cast

from sidecar.listen import Listen, ServerKind
from sidecar.wire.calls import ACCESS_LOG_SERVICE as ACCESS_LOG_SERVICE
from sidecar.wire.calls import EXT_PROC_SERVICE as EXT_PROC_SERVICE
from sidecar.wire.calls import HEALTH_SERVICE as HEALTH_SERVICE
from sidecar.wire.calls import PeerError as PeerError
from sidecar.wire.connection import Connection
from sidecar.wire.limits import CONNECTIONS_MAX, Memory

SOCKET_MODE: Final = 0o660
# How often a health watcher looks again, and deadlines are looked at.
WATCH_INTERVAL_S: Final = 0.25
# A drain's first GOAWAY lets requests come that are on their way; 300 ms lost none (measured).
GO_AWAY_S: Final = 0.3
# Then access logs end, each after its next message: Envoy sends one twice a second.
LOGS_S: Final = 0.6
# After our last byte: what the peer still sends is read and thrown away, for closing with unread
# input would reset the connection and take our last words with it.
LINGER_S: Final = 1.0
# Why a connection was not taken.
TOO_MANY: Final = "too_many_connections"
# What a peer may pour in meanwhile: without a bound it had 3.6 GB of it read, for 0.4 s of CPU.
LINGER_BYTES: Final = 1024 * 1024
# A client that has our GOAWAY and all answers closes by itself; one that sees both and the end of
# the stream in one read may take the end for a failure (grpc does).
LAST_WORDS_S: Final = 0.2
_DRAIN_LOOK_S: Final = 0.01
# Answers that a peer leaves unread before we stop reading from it.
UNREAD_BYTES_MAX: Final = 256 * 1024


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

    @property
    def faults(self) -> Mapping[str, int]:
        """Connections that were closed by their peer's fault, by reason, as far as it can tell."""
        ...


class _Peer(asyncio.Protocol):
    """One connection: bytes from the transport to `Connection`, and back."""

    def __init__(self, server: WireServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self.connection = Connection(
            server.handler.process,
            server.handler.healthy,
            self._fold,
            strict=server.listen.is_tcp,
            now_s=self._loop.time(),
            memory=server.memory,
        )
        self._transport: asyncio.Transport | None = None
        self._ending = False
        self._discarded = 0
        # Access-log messages in the order in which they came: one a stream at most.
        self._to_fold: deque[tuple[int, bytes, str]] = deque()
        self._folding = False

    # -- Called by the loop ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        transport = cast("asyncio.Transport", transport)
        if len(self._server.peers) >= CONNECTIONS_MAX:
            self._server.faults[TOO_MANY] += 1
            transport.abort()
            return
        self._transport = transport
        self._server.peers.add(self)
        transport.set_write_buffer_limits(UNREAD_BYTES_MAX)
        self.flush()

    def data_received(self, data: bytes) -> None:
        connection, transport = self.connection, self._transport
        if transport is None:
            return
        if self._ending:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                transport.abort()
            return
        if connection.owes and not transport.get_write_buffer_size():
            connection.written()
        connection.receive(data, self._loop.time())
        answers = connection.data_to_send()
        if answers:
            transport.write(answers)
        if connection.closed or connection.unfinished:
            self.flush()

    def pause_writing(self) -> None:
        """The peer does not read: then we do not read either."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None and not self.connection.unfinished:
            self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._server.peers.discard(self)
        self.connection.forget()
        self._let_go()

    # -- Called by the server ----------------------------------------------------------------------

    def tick(self) -> None:
        """Deadlines and changes of health."""
        self.connection.tick(self._loop.time())
        self.connection.look_at_health()
        self.flush()

    def flush(self) -> None:
        """Hand to the transport what there is to send."""
        transport, connection = self._transport, self.connection
        if transport is None or self._ending:
            return
        data = connection.data_to_send()
        if data:
            transport.write(data)
        if connection.closed:
            self._end(transport)
        elif connection.unfinished:
            # The others first.
            transport.pause_reading()
            self._loop.call_soon(self._go_on)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    # -- Inside ------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Handle what was received earlier."""
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size() <= UNREAD_BYTES_MAX:
            self._transport.resume_reading()
        self.data_received(b"")

    def _end(self, transport: asyncio.Transport) -> None:
        self._ending = True
        if self.connection.fault is not None:
            self._server.faults[self.connection.fault.name.lower()] += 1
        transport.write_eof()
        transport.resume_reading()
        self._loop.call_later(LINGER_S, self.abort)

    def _fold(self, stream_id: int, message: bytes, log_name: str) -> None:
        self._to_fold.append((stream_id, message, log_name))
        if not self._folding:
            self._folding = True
            self._server.spawn(self._fold_all())

    async def _fold_all(self) -> None:
        try:
            while self._to_fold:
                await self._fold_next(*self._to_fold.popleft())
                # Also when nobody else waits for a turn: requests come first.
                await asyncio.sleep(0)
        finally:
            self._folding = False
        self._let_go()

    async def _fold_next(self, stream_id: int, message: bytes, log_name: str) -> None:
        failed = None
        try:
            async with self._server.turn:
                log_name = await self._server.handler.access_log(message, log_name)
        except PeerError as error:
            failed = error
        self.connection.folded(stream_id, log_name, failed)
        self.flush()

    def _let_go(self) -> None:
        """When all is over, free the memory now."""
        if self._transport is None and not self.connection.folding:
            self.connection.release()


class WireServer:
    """The services on `sidecar.wire`.

    Attributes:
        listen: Where; with the real port after `start`.
        handler: What happens to the messages.
        peers: The connections that are open.
        memory: What they hold together.
        faults: Those that were closed by their peer's fault, by HTTP/2's error or TOO_MANY.
        turn: Who folds. A turn of the loop folds one step of one message, however many access logs
            are open; connections take turns, whatever the number of their streams.
    """

    def __init__(self, listen: Listen, handler: Handler) -> None:
        """Serve `handler` at `listen`; nothing happens before `start`."""
        self.listen = listen
        self.handler = handler
        self.peers: set[_Peer] = set()
        self.memory = Memory()
        self.faults: Counter[str] = Counter()
        self.turn = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bind beside the path and rename over it, so that the path never leads nowhere."""
        loop = asyncio.get_running_loop()
        make = partial(_Peer, self)
        path = self.listen.path
        if path is None:
            self._server = await loop.create_server(make, self.listen.host, self.listen.port)
            port = self._server.sockets[0].getsockname()[1]
            self.listen = self.listen._replace(port=port)
        else:
            hidden = path.with_name(f".{path.name}.{os.getpid()}")
            hidden.unlink(missing_ok=True)
            self._server = await loop.create_unix_server(make, str(hidden), backlog=CONNECTIONS_MAX)
            hidden.chmod(SOCKET_MODE)
            hidden.rename(path)
        self._ticking = asyncio.create_task(self._tick())

    async def drain(self, grace_s: float) -> None:
        """GOAWAY in two steps, wait for open streams up to `grace_s` seconds, close."""
        if self._server is None:
            return
        loop = asyncio.get_running_loop()
        end_s = loop.time() + grace_s
        self._server.close()
        self._for_all(lambda peer: peer.connection.go_away())
        await self._until(lambda: not self.peers, loop.time() + min(GO_AWAY_S, grace_s))
        self._for_all(lambda peer: peer.connection.go_away_at_last())
        logs_s = min(end_s, loop.time() + LOGS_S)
        await self._until(lambda: not any(peer.connection.logging for peer in self.peers), logs_s)
        self._for_all(lambda peer: peer.connection.end_quiet_logs())
        await self._until(lambda: all(peer.connection.idle for peer in self.peers), end_s)
        await self._until(lambda: not self.peers, loop.time() + LAST_WORDS_S)
        self._for_all(lambda peer: peer.connection.close())
        await self._until(lambda: not self.peers, loop.time() + LINGER_S)
        self._for_all(lambda peer: peer.abort())
        if self._ticking is not None:
            self._ticking.cancel()
        await asyncio.gather(*self._tasks)

    def spawn(self, folding: Coroutine[None, None, None]) -> None:
        """Run the folding of an access log; it ends though its connection may not live so long."""
        task = asyncio.get_running_loop().create_task(folding)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _until(self, true: Callable[[], bool], end_s: float) -> None:
        left_s = end_s - asyncio.get_running_loop().time()
        for _ in range(int(left_s / _DRAIN_LOOK_S) + 1):
            if true():
                return
            await asyncio.sleep(_DRAIN_LOOK_S)

    def _for_all(self, do: Callable[[_Peer], None]) -> None:
        for peer in list(self.peers):
            do(peer)
            peer.flush()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            for peer in list(self.peers):
                peer.tick()


def make_server(kind: ServerKind, listen: Listen, handler: Handler) -> Server:
    """A server of `handler` at `listen`; nothing happens before its `start`.

    Args:
        kind: Ours, or the reference; what is not asked for is not imported.
        listen: Where.
        handler: What happens to the messages.
    """
    if kind is ServerKind.WIRE:
        return WireServer(listen, handler)
    from sidecar.grpcserver import GrpcServer

    return GrpcServer(listen, handler)
