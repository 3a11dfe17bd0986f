"""Answers and ends of streams, and the windows of both directions.

Owns which streams there are, what waits to be sent, how much memory what has come takes, and the
budgets that a peer's faults are paid from. Refuses to read requests: `requests` does.
"""

from __future__ import annotations

from typing import Final

from sidecar.wire import frames
from sidecar.wire.calls import (
    HEADERS_OK,
    ONLY_OK,
    TRAILERS_OK,
    Method,
    Refused,
    prefixed,
)
from sidecar.wire.frames import (
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES_MAX,
    WINDOW_DEFAULT,
    WINDOW_MAX,
    ConnectionFault,
    ErrorCode,
    FrameType,
)
from sidecar.wire.limits import (
    ALL_BUFFERED_BYTES_MAX,
    ANSWER_S,
    ANSWERED_S,
    BUFFERED_BYTES_MAX,
    CLOSED_REMEMBERED,
    DATA_BYTES_MIN,
    EXPIRED_BURST,
    EXPIRED_PER_S,
    FAIR_SHARE_BYTES,
    LATE_BURST,
    LATE_PER_S,
    MESSAGE_S,
    RESETS_BURST,
    RESETS_PER_S,
    STREAM_WINDOW,
    Bucket,
    Memory,
)
from sidecar.wire.states import StreamState
from sidecar.wire.streams import Stream

_TABLE_SIZE_0: Final = b"\x20"


class Answers:
    """The streams of one connection, seen from our side."""

    def __init__(self, memory: Memory) -> None:
        """No streams yet; `memory` is that of all connections."""
        self._memory = memory
        self._now_s = 0.0
        self._out: list[bytes] = []
        self._last_id = 0
        # Streams that are not answered; those that we have answered and the peer has not ended,
        # with what came since; and how others ended.
        self._streams: dict[int, Stream] = {}
        self._answered: dict[int, int] = {}
        self._closed: dict[int, StreamState] = {}
        self._resets = Bucket(RESETS_BURST, RESETS_PER_S)
        self._late = Bucket(LATE_BURST, LATE_PER_S)
        self._expired = Bucket(EXPIRED_BURST, EXPIRED_PER_S)
        # Streams that were answered at the last look, and when that was.
        self._answered_then: list[int] = []
        self._looked_s = 0.0
        # PINGs in a row: since something was asked or answered.
        self._pings = 0
        # Costly things done in this turn.
        self._chores = 0
        # What we may send: on the connection, and on a new stream; who waits for the connection's.
        self._window = WINDOW_DEFAULT
        self._stream_window = WINDOW_DEFAULT
        self._blocked: dict[int, Stream] = {}
        self._unsent_bytes = 0
        self._data_frames = 0
        # Answers that are one block, without DATA.
        self._bare_answers = 0
        # What has come and is not done with, what is promised to large messages, who waits.
        self._buffered_bytes = 0
        self._reserved_bytes = 0
        self._starved: dict[int, Stream] = {}
        # What each watcher was told; access logs of which a message is being folded.
        self._watched: dict[int, bytes] = {}
        self._logs: dict[int, Stream] = {}
        # The peer has asked for a smaller header table. We never use one, but must say so, once
        # (RFC 7541 section 4.2).
        self._shrink = False

    def _state_of(self, stream_id: int) -> StreamState:
        stream = self._streams.get(stream_id)
        if stream is not None:
            return stream.state
        if stream_id in self._answered:
            return StreamState.ANSWERED
        # Streams of even ids would be ours; we open none.
        if stream_id > self._last_id or not stream_id & 1:
            return StreamState.IDLE
        return self._closed.get(stream_id, StreamState.FORGOTTEN)

    # -- Answers -----------------------------------------------------------------------------------

    def _answer(self, stream: Stream, message: bytes | None) -> None:
        """One message and status 0; None = status 0 alone (Trailers-Only)."""
        if message is None:
            self._bare_answers += 1
            self._send_block(stream.id, ONLY_OK, END_STREAM)
            self._finish(stream)
            return
        self._send_head(stream)
        self._send(stream, prefixed(message), TRAILERS_OK)

    def _refuse(self, stream: Stream, refused: Refused) -> None:
        """End a call that cannot be served any further, by the peer's fault."""
        self._end_call(stream, refused)
        self._count_refusal()

    def _end_call(self, stream: Stream, refused: Refused) -> None:
        block = refused.block(alone=not stream.headed)
        self._drop(stream)
        if stream.state is StreamState.ANSWERED:
            self._remember(stream.id, StreamState.CLOSED_BY_US)
            self._out.append(frames.rst_stream(stream.id, ErrorCode.NO_ERROR))
            return
        ended = stream.state is StreamState.HALF_CLOSED_REMOTE
        self._refuse_bare(stream.id, block, ended=ended)

    def _refuse_bare(self, stream_id: int, block: bytes, *, ended: bool) -> None:
        """Answer by one block."""
        self._send_block(stream_id, block, END_STREAM)
        if not ended:
            self._answered[stream_id] = 0

    def _end_log(self, stream: Stream) -> None:
        stream.state = StreamState.ANSWERED
        message = prefixed(b"")
        if min(self._window, stream.window) < len(message):
            self._send_block(stream.id, ONLY_OK, END_STREAM)
            return
        self._send_block(stream.id, HEADERS_OK, 0)
        self._window -= len(message)
        self._out.append(frames.frame(FrameType.DATA, 0, stream.id, message))
        self._send_block(stream.id, TRAILERS_OK, END_STREAM)

    def _send_block(self, stream_id: int, block: bytes, flags: int) -> None:
        if self._shrink:
            block = _TABLE_SIZE_0 + block
            self._shrink = False
        self._out.append(frames.frame(FrameType.HEADERS, END_HEADERS | flags, stream_id, block))

    def _send_head(self, stream: Stream, block: bytes = HEADERS_OK) -> None:
        stream.headed = True
        self._send_block(stream.id, block, 0)

    def _send(self, stream: Stream, data: bytes, trailers: bytes | None) -> None:
        stream.unsent += data
        stream.trailers = trailers
        self._unsent_bytes += len(data)
        self._pump(stream)

    def _pump(self, stream: Stream) -> None:
        """Send what the windows allow (RFC 9113 section 6.9)."""
        unsent = stream.unsent
        while unsent and self._window > 0 and stream.window > 0:
            part = bytes(unsent[: min(self._window, stream.window, FRAME_BYTES_MAX)])
            del unsent[: len(part)]
            self._window -= len(part)
            stream.window -= len(part)
            self._unsent_bytes -= len(part)
            if not unsent or len(part) >= DATA_BYTES_MIN:
                self._data_frames += 1
                # grpc-go measures the way's bandwidth by a PING after each answer.
                self._pings = 0
            last = not unsent and stream.trailers == b""
            flags = END_STREAM if last else 0
            self._out.append(frames.frame(FrameType.DATA, flags, stream.id, part))
        if unsent:
            stream.answer_by_s = stream.answer_by_s or self._now_s + ANSWER_S
            self._wait_for_connection(stream)
            return
        self._blocked.pop(stream.id, None)
        stream.answer_by_s = 0.0
        if stream.trailers is not None:
            if stream.trailers:
                self._send_block(stream.id, stream.trailers, END_STREAM)
            self._finish(stream)

    def _wait_for_connection(self, stream: Stream) -> None:
        """Whether what is unsent waits for the connection's window; else for the stream's own.

        A peer that opens the one byte by byte must not make us look at those that need the other.
        """
        if stream.window > 0:
            self._blocked[stream.id] = stream
        else:
            self._blocked.pop(stream.id, None)

    def _pump_all(self) -> None:
        """The connection's window has grown: in the order in which the streams came to wait."""
        while self._blocked and self._window > 0:
            self._pump(next(iter(self._blocked.values())))

    def _resize_windows(self, size: int) -> None:
        """SETTINGS_INITIAL_WINDOW_SIZE moves every open stream's window (section 6.9.2)."""
        change = size - self._stream_window
        self._stream_window = size
        for stream in self._streams.values():
            stream.window += change
            if stream.window > WINDOW_MAX:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window overflows")
            if stream.unsent:
                self._wait_for_connection(stream)

    # -- The peer's windows ------------------------------------------------------------------------

    def _give_window(self, stream: Stream) -> None:
        """Let an access log go on: its usual window, and the rest of a large message.

        Nothing while messages wait to be folded: that is the stream's backpressure. A large
        message gets its memory as a whole or waits, so that two of them never wait for each other.
        """
        if stream.log or stream.state is StreamState.HALF_CLOSED_REMOTE:
            return
        increment = 0
        missing = stream.messages.missing
        if missing > stream.allowance:
            more = missing - stream.allowance
            promised = self._buffered_bytes + self._reserved_bytes + more
            if self._is_too_much(promised, more):
                self._starved[stream.id] = stream
                stream.message_by_s = 0.0
                return
            self._starved.pop(stream.id, None)
            stream.message_by_s = self._now_s + MESSAGE_S
            stream.reserved += more
            self._reserved_bytes += more
            increment = more
        elif not missing and stream.allowance < STREAM_WINDOW // 2:
            increment = STREAM_WINDOW - stream.allowance
        if increment:
            stream.allowance += increment
            self._out.append(frames.window_update(stream.id, increment))

    def _hold(self, change: int) -> None:
        self._buffered_bytes += change
        self._memory.held_bytes += change

    def _is_too_much(self, held: int, more: int) -> bool:
        """Whether this connection may not hold so much, when all hold `more` more than now."""
        crowded = self._memory.held_bytes + more > ALL_BUFFERED_BYTES_MAX
        return held > (FAIR_SHARE_BYTES if crowded else BUFFERED_BYTES_MAX)

    def _release(self, stream: Stream, length: int) -> None:
        """Reserved memory becomes used memory."""
        used = min(stream.reserved, length)
        stream.reserved -= used
        self._reserved_bytes -= used

    def _feed_the_starved(self) -> None:
        """Give memory to those that wait, in their order, until one must wait on.

        All of them want much, so that it is seldom in another's way; and a peer that ends streams
        one by one does not make us look at a thousand each time.
        """
        for stream in list(self._starved.values()):
            self._give_window(stream)
            if stream.id in self._starved and not stream.log:
                return

    # -- Ends --------------------------------------------------------------------------------------

    def _finish(self, stream: Stream) -> None:
        """We have ended our half."""
        ended = stream.state is StreamState.HALF_CLOSED_REMOTE
        self._drop(stream)
        if not ended:
            self._answered[stream.id] = 0
        elif stream.method is not Method.PROCESS:
            # The fast path remembers none, so that it has nothing to remember.
            self._remember(stream.id, StreamState.CLOSED_BY_PEER)

    def _reset(self, stream_id: int, code: ErrorCode) -> None:
        """Reset a stream; the peer made us do so, so it is counted (CVE-2025-8671)."""
        self._out.append(frames.rst_stream(stream_id, code))
        self._end_by_reset(stream_id, StreamState.CLOSED_BY_US)
        self._count_reset()

    def _end_by_reset(self, stream_id: int, state: StreamState) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._drop(stream)
        self._answered.pop(stream_id, None)
        self._remember(stream_id, state)

    def _count_refusal(self) -> None:
        self._chores += 1
        self._count_reset()

    def _count_late(self, length: int) -> None:
        if not self._late.take(self._now_s, length):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "data for streams that have ended")

    def _end_answered(self) -> None:
        """Reset what was answered long ago and the peer never ends (RFC 9113 section 8.1)."""
        if self._now_s - self._looked_s < ANSWERED_S:
            return
        for stream_id in self._answered_then:
            if self._answered.pop(stream_id, None) is not None:
                self._out.append(frames.rst_stream(stream_id, ErrorCode.NO_ERROR))
                self._remember(stream_id, StreamState.CLOSED_BY_US)
        self._answered_then = list(self._answered)
        self._looked_s = self._now_s

    def _count_reset(self) -> None:
        if not self._resets.take(self._now_s):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many resets")

    def _drop(self, stream: Stream) -> None:
        """Forget an open stream; access logs that came whole are still folded."""
        del self._streams[stream.id]
        self._blocked.pop(stream.id, None)
        self._starved.pop(stream.id, None)
        self._watched.pop(stream.id, None)
        self._unsent_bytes -= len(stream.unsent)
        self._hold(-stream.messages.held)
        self._release(stream, stream.reserved)
        stream.messages.clear()
        if self._starved:
            self._feed_the_starved()

    def _remember(self, stream_id: int, state: StreamState) -> None:
        closed = self._closed
        closed[stream_id] = state
        if len(closed) > CLOSED_REMEMBERED:
            del closed[next(iter(closed))]

    def _fail(self, fault: ConnectionFault) -> None:
        """End the connection."""
        raise NotImplementedError
