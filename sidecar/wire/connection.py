"""One HTTP/2 connection of a gRPC server, without I/O: bytes and a clock in, bytes out.

Owns how bytes are cut into frames, the fast path, and what takes too long. `handlers` has what each
frame does. Refuses sockets, tasks and clocks. How to use it:

    connection = Connection(process, healthy, fold, strict=False, now_s=now)
    write(connection.data_to_send())             # our SETTINGS
    connection.receive(data, now)                # any chunk of what the peer sent
    write(connection.data_to_send())             # answers to all of it, in one write
    connection.written()                         # when nothing of that waits in a buffer any more
    if connection.unfinished: ...                # call receive(b"", now) in another turn
    if connection.closed: ...                    # write what is there, end, read and discard

`process(request) -> answer | None` is called for each ext_proc message and may raise PeerError.
`fold(stream_id, message, log_name)` starts folding one access log message; the caller says
`connection.folded(stream_id, log_name, error)` when it is done, at once or later. `tick(now)` is
called a few times a second, and `look_at_health()`. `go_away()` begins a drain, `go_away_at_last()`
lets nothing new in and ends what has no end, access logs after a message; `end_quiet_logs()` those
that send none; with `idle` all calls are over; `close()`.

`strict` is for TCP: every header block is decoded, and GET /healthz is served.

The fast path handles the one sequence that Envoy sends per request - HEADERS with a learned
beginning and END_HEADERS, one DATA frame with one whole message - and the reset of an answered
stream. It changes the same state and sends the same bytes as the general path would
(tests/sidecar/wire/test_paths.py); everything unexpected falls through to that.
"""

from __future__ import annotations

from typing import Final

from sidecar.wire import frames
from sidecar.wire.calls import (
    ANSWER_END,
    ANSWER_MIDDLES,
    ANSWER_PREFIXES,
    ANSWER_START,
    ONLY_OK,
    ONLY_START,
    PREBUILT_BYTES_MAX,
    TRAILERS_OK,
    Call,
    Method,
    PeerError,
    Refused,
    Status,
)
from sidecar.wire.frames import (
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES_MAX,
    FRAME_HEADER_BYTES,
    HEADER,
    PREFACE,
    STREAM_ID_MAX,
    WINDOW_DEFAULT,
    ConnectionFault,
    ErrorCode,
    FrameType,
    Setting,
    StreamFault,
)
from sidecar.wire.handlers import TAKERS, Handlers
from sidecar.wire.limits import (
    CHORES_PER_TURN,
    CONNECTION_WINDOW,
    HEADER_BLOCK_S,
    HEADER_LIST_BYTES_MAX,
    MESSAGE_S,
    PREFACE_S,
    PREFIX_BYTES,
    STEPS_PER_TURN,
    STREAM_WINDOW,
    STREAMS_MAX,
    UNSENT_BYTES_MAX,
    Memory,
)
from sidecar.wire.requests import Fold, Healthy, Process
from sidecar.wire.states import CONNECTION, ConnectionState, StreamState
from sidecar.wire.streams import Stream

_RST_STREAM: Final = int(FrameType.RST_STREAM)
_HEADERS: Final = int(FrameType.HEADERS)
_RST_BYTES: Final = FRAME_HEADER_BYTES + 4
# Where a frame's header has the stream id.
_ID_AT: Final = 5
_MESSAGE_AT: Final = FRAME_HEADER_BYTES + PREFIX_BYTES


class Connection(Handlers):
    """See the module."""

    def __init__(
        self,
        process: Process,
        healthy: Healthy,
        fold: Fold,
        *,
        strict: bool,
        now_s: float,
        memory: Memory | None = None,
    ) -> None:
        """A connection that was just accepted.

        Args:
            process: Answers one ext_proc message; None = no answer.
            healthy: What health checks are told.
            fold: Starts the folding of an access log message; see `Requests.folded`.
            strict: Nothing is taken on trust, and there is a health page: for TCP.
            now_s: The time, monotonic.
            memory: What the server's connections share; None = this is the only one.
        """
        super().__init__(process, healthy, fold, strict=strict, memory=memory or Memory())
        self._now_s = now_s
        self._rest = b""
        self._begin_by_s = now_s + PREFACE_S
        self._frame_since_s = now_s
        # As `_fast` said when what it goes by last changed: after each frame on the general path,
        # an answer that windows hold back, and a tick.
        self._fast_terms = self._fast()
        self._steps = 0
        self.closed = False
        self.unfinished = False
        # Why it was closed, if by the peer's fault: an error code of HTTP/2.
        self.fault: ErrorCode | None = None
        asked = {
            Setting.MAX_CONCURRENT_STREAMS: STREAMS_MAX,
            Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            Setting.MAX_HEADER_LIST_SIZE: HEADER_LIST_BYTES_MAX,
        }
        if not strict:
            asked = {Setting.HEADER_TABLE_SIZE: 0} | asked
        self._out.append(frames.settings(asked))
        self._out.append(frames.window_update(0, CONNECTION_WINDOW - WINDOW_DEFAULT))

    # -- What the shell calls ----------------------------------------------------------------------

    def data_to_send(self) -> bytes:
        """All bytes to send since the last call."""
        out = self._out
        if not out:
            return b""
        data = b"".join(out)
        out.clear()
        return data

    @property
    def owes(self) -> bool:
        """Whether control replies may still wait to be read: then `written` means something."""
        return self._control_replies > 0

    def written(self) -> None:
        """Nothing that we sent waits to be taken by the peer's socket any more."""
        self._control_replies = 0

    def receive(self, data: bytes, now_s: float) -> None:
        """Take what the peer sent; a bounded part of it, see `unfinished`."""
        self._now_s = now_s
        if self.closed:
            return
        at = 0
        if self._rest:
            data = self._rest + data
            self._rest = b""
        else:
            self._frame_since_s = now_s
        try:
            if self._state is ConnectionState.PREFACE:
                at = self._take_preface(data)
            if self._state is not ConnectionState.PREFACE:
                at = self._take_frames(data, at)
            if at != len(data):
                self._rest = data[at:]
                if at:
                    self._frame_since_s = now_s
            if self._allowance < CONNECTION_WINDOW // 2:
                self._refill()
        except ConnectionFault as fault:
            self._fail(fault)

    def tick(self, now_s: float) -> None:
        """Notice what took too long."""
        self._now_s = now_s
        if self.closed:
            return
        try:
            if self._state <= ConnectionState.SETTINGS and now_s > self._begin_by_s:
                raise ConnectionFault(ErrorCode.SETTINGS_TIMEOUT, "no preface in time")
            if self._block is not None and now_s > self._block.by_s:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a slow header block")
            if self._rest and not self.unfinished:
                self._look_at_frame(now_s - self._frame_since_s)
            self._look_at_streams(now_s)
            self._feed_the_starved()
            self._end_answered()
            self._fast_terms = self._fast()
        except ConnectionFault as fault:
            self._fail(fault)

    def go_away(self) -> None:
        """Ask the peer to open no more streams here; those on their way are served."""
        if not self.closed:
            self._out.append(frames.goaway(STREAM_ID_MAX, ErrorCode.NO_ERROR))

    def go_away_at_last(self) -> None:
        """Serve nothing that comes from now on."""
        if not self.closed:
            self._final_id = self._last_id
            self._fast_terms = self._fast()
            self._out.append(frames.goaway(self._last_id, ErrorCode.NO_ERROR))
            self.end_logs()

    def close(self) -> None:
        """End what is open; after what is to be sent, take and send nothing more."""
        self._starved.clear()
        for stream in list(self._streams.values()):
            self._end_call(stream, Refused(Status.UNAVAILABLE, "the server ends"))
        self._end()

    def forget(self) -> None:
        """The transport is gone: what is not whole will never be."""
        self._starved.clear()
        for stream in list(self._streams.values()):
            self._drop(stream)
        self._end()

    def release(self) -> None:
        """The transport is gone, and nothing is being folded: refer to nobody any more.

        The shell refers to us and we to the shell; see TAKERS.
        """
        self.forget()
        self._fold = _fold_nothing

    # -- Frames ------------------------------------------------------------------------------------

    def _take_preface(self, data: bytes) -> int:
        """RFC 9113 section 3.4; the position behind it, 0 = not all of it is there."""
        if data[: len(PREFACE)] != PREFACE[: len(data)]:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no HTTP/2 preface")
        if len(data) < len(PREFACE):
            return 0
        self._state = ConnectionState.SETTINGS
        return len(PREFACE)

    def _take_frames(self, data: bytes, at: int) -> int:
        """Take whole frames, as many as one turn may; the position behind the last."""
        size = len(data)
        self._steps = STEPS_PER_TURN
        self._chores = 0
        self.unfinished = False
        while size - at >= FRAME_HEADER_BYTES:
            if self._fast_terms[0]:
                at = self._take_fast(data, at, size)
            if self._steps <= 0 or self._chores >= CHORES_PER_TURN:
                self.unfinished = size - at >= FRAME_HEADER_BYTES
                break
            if size - at < FRAME_HEADER_BYTES:
                break
            behind = self._take_frame(data, at, size)
            if behind == at:
                break
            at = behind
            self._steps -= 1
            self._fast_terms = self._fast()
        return at

    def _take_fast(self, data: bytes, at: int, size: int) -> int:
        """Take what the fast path takes; the position of the first frame that it does not take.

        No calls but `process`: one costs a tenth of a request (tests/benchmarks/wire.py).
        """
        process, answered, out, steps = self._process, self._answered, self._out, self._steps
        prefixes, prefix_bytes, room, answer_max = self._fast_terms
        while steps > 0 and size - at >= FRAME_HEADER_BYTES:
            # Read byte by byte: compiled, that is a third of what `struct` takes.
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            kind = data[at + 3]
            stream_id = data[at + 5] << 24 | data[at + 6] << 16 | data[at + 7] << 8 | data[at + 8]
            if kind == _RST_STREAM:
                if length != 4 or stream_id not in answered or size - at < _RST_BYTES:
                    break
                del answered[stream_id]
                at += _RST_BYTES
                steps -= 1
                continue
            body = at + FRAME_HEADER_BYTES + length
            if (
                kind != _HEADERS
                or data[at + 4] != END_HEADERS
                or stream_id <= self._last_id
                or not data.startswith(prefixes, at + FRAME_HEADER_BYTES)
                or not prefix_bytes <= length <= FRAME_BYTES_MAX
                or not stream_id & 1
                or stream_id > STREAM_ID_MAX
                or len(answered) >= room
                or size - body < _MESSAGE_AT
            ):
                break
            id_bytes = data[at + _ID_AT : at + FRAME_HEADER_BYTES]
            flags = data[body + 4]
            framed = data[body] << 16 | data[body + 1] << 8 | data[body + 2]
            length = data[body + 11] << 16 | data[body + 12] << 8 | data[body + 13]
            end = body + _MESSAGE_AT + length
            if (
                data[body + 3]  # DATA has type 0
                or flags > END_STREAM
                or data[body + _ID_AT : body + FRAME_HEADER_BYTES] != id_bytes
                or data[body + 9]  # compressed
                or data[body + 10]  # longer than any frame
                or framed != length + PREFIX_BYTES
                or framed > FRAME_BYTES_MAX
                or end > size
            ):
                break
            self._last_id = stream_id
            self._allowance -= length + PREFIX_BYTES
            self._pings = self._empty_data = 0
            at = end
            steps -= 1
            try:
                answer = process(data[body + _MESSAGE_AT : end])
            except PeerError as error:
                self._refuse_unreadable(stream_id, error, ended=bool(flags))
                break
            if answer is None:
                self._bare_answers += 1
                out += (ONLY_START, id_bytes, ONLY_OK)
            elif (length := len(answer)) > answer_max or length + PREFIX_BYTES > self._window:
                self._answer_slowly(stream_id, answer, ended=bool(flags))
                break
            else:
                self._window -= length + PREFIX_BYTES
                self._data_frames += 1
                middle, prefix = ANSWER_MIDDLES[length], ANSWER_PREFIXES[length]
                out += (ANSWER_START, id_bytes, middle, id_bytes, prefix, answer)
                out += (ANSWER_END, id_bytes, TRAILERS_OK)
            if not flags:
                answered[stream_id] = 0
        self._steps = steps
        return at

    def _fast(self) -> tuple[tuple[bytes, ...], int, int, int]:
        """What the fast path goes by.

        Beginnings of blocks, the longest one's length, room for streams, the longest answer. No
        beginnings = no fast path: while new streams are refused, or within a header block.
        """
        room = STREAMS_MAX - len(self._streams)
        answer_max = min(PREBUILT_BYTES_MAX - 1, self._stream_window - PREFIX_BYTES)
        if (
            self._state is not ConnectionState.OPEN
            or self._final_id != STREAM_ID_MAX
            or self._unsent_bytes > UNSENT_BYTES_MAX
            or self._shrink
        ):
            return (), 0, room, answer_max
        return self._heads.prefixes, self._heads.prefix_bytes, room, answer_max

    def _refuse_unreadable(self, stream_id: int, error: PeerError, *, ended: bool) -> None:
        block = Refused(Status.INVALID_ARGUMENT, str(error)).block(alone=True)
        self._refuse_bare(stream_id, block, ended=ended)
        self._count_refusal()

    def _answer_slowly(self, stream_id: int, answer: bytes, *, ended: bool) -> None:
        """An answer of the fast path that the windows do not let through at once."""
        call = Call(Method.PROCESS)
        stream = Stream(
            stream_id, call, window=self._stream_window, body_left=-1, now_s=self._now_s
        )
        stream.message_by_s = 0.0
        self._streams[stream_id] = stream
        if ended:
            stream.state = StreamState.HALF_CLOSED_REMOTE
        self._answer(stream, answer)
        self._fast_terms = self._fast()

    def _take_frame(self, data: bytes, at: int, size: int) -> int:
        """Take one frame of any kind; the position behind it, or `at` if it is not whole."""
        word: int
        word, flags, stream_id = HEADER.unpack_from(data, at)
        kind, length = word & 0xFF, word >> 8
        stream_id &= STREAM_ID_MAX  # The reserved bit is ignored (section 4.1).
        if kind not in CONNECTION[self._state]:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame that may not come here")
        if length > FRAME_BYTES_MAX:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a frame over our limit")
        payload = at + FRAME_HEADER_BYTES
        end = payload + length
        if end > size:
            return at
        take = TAKERS[kind] if kind < len(TAKERS) else Handlers._on_noise
        try:
            take(self, flags, stream_id, data[payload:end])
        except StreamFault as fault:
            self._reset(fault.stream_id, fault.code)
        return end

    def _refill(self) -> None:
        """Keep the connection's window open: streams, not it, hold the peer back."""
        if self._allowance < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded")
        self._out.append(frames.window_update(0, CONNECTION_WINDOW - self._allowance))
        self._allowance = CONNECTION_WINDOW

    def _look_at_frame(self, age_s: float) -> None:
        """A frame that comes byte by byte."""
        kind = self._rest[3] if len(self._rest) > 3 else FrameType.HEADERS
        is_block = kind in (FrameType.HEADERS, FrameType.CONTINUATION)
        if age_s > (HEADER_BLOCK_S if is_block else MESSAGE_S):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a slow frame")

    def _look_at_streams(self, now_s: float) -> None:
        """End what nobody waits for any more, and what comes or goes too slowly."""
        slow = False
        for stream in list(self._streams.values()):
            late = any(0.0 < by_s < now_s for by_s in (stream.message_by_s, stream.answer_by_s))
            if late or 0.0 < stream.expires_s < now_s:
                slow = slow or late
                if not late and not self._expired.take(now_s):
                    raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "calls without time")
                self._out.append(frames.rst_stream(stream.id, ErrorCode.CANCEL))
                self._end_by_reset(stream.id, StreamState.CLOSED_BY_US)
        if slow and not self._streams:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a slow message")

    def _fail(self, fault: ConnectionFault) -> None:
        """Section 5.4.1."""
        self.fault = fault.code
        # Never above what a GOAWAY before has named (section 6.8).
        last_id = min(self._last_id, self._final_id)
        self._out.append(frames.goaway(last_id, fault.code, fault.reason))
        # Those that waited for memory wait for nothing now: a GOAWAY is the last that is said.
        self._starved.clear()
        for stream in list(self._streams.values()):
            self._drop(stream)
        self._end()

    def _end(self) -> None:
        self.closed, self.unfinished = True, False
        self._state = ConnectionState.CLOSED
        self._rest = b""
        self._block = None
        self._answered.clear()


def _fold_nothing(stream_id: int, message: bytes, log_name: str) -> None:
    raise AssertionError(f"a released connection folds a message of stream {stream_id}")
