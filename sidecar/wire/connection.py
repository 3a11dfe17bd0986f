"""One HTTP/2 connection of a gRPC server, without I/O: bytes and a clock in, bytes out.

Owns framing, settings, the connection's window, flood counters and the fast path. `requests` has
the streams and their calls. Refuses sockets, tasks and clocks. How to use it:

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
lets nothing new in and ends what has no end; with `idle` all calls are over; `close()`.

`strict` is for TCP: every header block is decoded, and GET /healthz is served.

The fast path handles the one sequence that Envoy sends per request - HEADERS with a learned
beginning and END_HEADERS, one DATA frame with one whole message - and the reset of an answered
stream. It changes the same state and sends the same bytes as the general path would
(tests/sidecar/wire/test_paths.py); everything unexpected falls through to that.
"""

from __future__ import annotations

from collections.abc import Callable
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
    ACK,
    DATA_HEADER_AND_PREFIX,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES_LIMIT,
    FRAME_BYTES_MAX,
    FRAME_HEADER_BYTES,
    HEADER,
    PREFACE,
    PRIORITY,
    SETTING,
    STREAM_ID_MAX,
    WINDOW_DEFAULT,
    WINDOW_MAX,
    WORD,
    ConnectionFault,
    ErrorCode,
    FrameType,
    Setting,
    StreamFault,
    unpadded,
)
from sidecar.wire.heads import HeaderDecoder, Malformed, check_trailers, head_of
from sidecar.wire.limits import (
    CHORES_PER_TURN,
    CONNECTION_WINDOW,
    CONTINUATIONS_MAX,
    CONTROL_REPLIES_MAX,
    DECODE_BYTES,
    EMPTY_DATA_IN_A_ROW_MAX,
    HEADER_BLOCK_BYTES_MAX,
    HEADER_BLOCK_S,
    HEADER_LIST_BYTES_MAX,
    MESSAGE_S,
    NOISE_BASE,
    PINGS_IN_A_ROW_MAX,
    PINGS_WINDOW_S,
    PREFACE_S,
    PREFIX_BYTES,
    SETTINGS_ENTRIES_MAX,
    SETTINGS_MAX,
    SETTINGS_WINDOW_S,
    STEPS_PER_TURN,
    STREAM_WINDOW,
    STREAMS_MAX,
    UNSENT_BYTES_MAX,
    WINDOW_UPDATES_BASE,
    WINDOW_UPDATES_PER_DATA,
    Window,
)
from sidecar.wire.requests import Fold, Healthy, Process, Requests
from sidecar.wire.states import COLUMN, CONNECTION, STREAM, Action, ConnectionState, StreamState
from sidecar.wire.streams import Stream

_DATA: Final = COLUMN[FrameType.DATA]
_HEADERS: Final = COLUMN[FrameType.HEADERS]
_RST: Final = COLUMN[FrameType.RST_STREAM]
_WINDOW_UPDATE: Final = COLUMN[FrameType.WINDOW_UPDATE]
# A reset as one word: length 4, type RST_STREAM.
_RST_WORD: Final = 4 << 8 | FrameType.RST_STREAM
_RST_BYTES: Final = FRAME_HEADER_BYTES + 4
# The reserved bit must be clear, and the id a client's.
_ODD_MASK: Final = 0x8000_0001
_DATA_WORD_MAX: Final = FRAME_BYTES_MAX << 8
_MESSAGE_AT: Final = FRAME_HEADER_BYTES + PREFIX_BYTES
_WORD_BYTES: Final = 4
# RFC 7541's, until a setting changes it.
_TABLE_BYTES_DEFAULT: Final = 4_096
_PING_BYTES: Final = 8
_PRIORITY_BYTES: Final = 5
_SETTING_BYTES: Final = 6
_GOAWAY_BYTES: Final = 8


class Connection(Requests):
    """See the module."""

    def __init__(
        self, process: Process, healthy: Healthy, fold: Fold, *, strict: bool, now_s: float
    ) -> None:
        """A connection that was just accepted.

        Args:
            process: Answers one ext_proc message; None = no answer.
            healthy: What health checks are told.
            fold: Starts the folding of an access log message; see `Requests.folded`.
            strict: Nothing is taken on trust, and there is a health page: for TCP.
            now_s: The time, monotonic.
        """
        super().__init__(process, healthy, fold, strict=strict)
        self._now_s = now_s
        self._state = ConnectionState.PREFACE
        self._rest = b""
        self._heads = HeaderDecoder(strict=strict)
        self._begin_by_s = now_s + PREFACE_S
        # When the first byte came of the frame that is not whole.
        self._frame_since_s = now_s
        self._block: _Block | None = None
        # What the peer may still send on the connection.
        self._allowance = CONNECTION_WINDOW
        self._pings = 0
        self._pings_since_s = 0.0
        self._settings = Window(SETTINGS_MAX, SETTINGS_WINDOW_S)
        self._control_replies = 0
        self._empty_data = 0
        self._noise = 0
        self._window_updates = 0
        self._final_id = STREAM_ID_MAX
        self._shrunk = False
        # As `_fast` said after the last frame on the general path, which alone changes it.
        self._fast_terms = self._fast()
        self.closed = False
        self.unfinished = False
        self._takers: list[Callable[[int, int, bytes], None]] = [
            self._on_data,
            self._on_headers,
            self._on_priority,
            self._on_rst_stream,
            self._on_settings,
            self._on_noise,
            self._on_ping,
            self._on_goaway,
            self._on_window_update,
            self._on_continuation,
        ]
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
        data = b"".join(self._out)
        self._out.clear()
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
            self._end_answered()
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
        for stream in list(self._streams.values()):
            self._end_call(stream, Refused(Status.UNAVAILABLE, "the server ends"))
        self._end()

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
        """Take whole frames; the position behind the last that was taken.

        The fast path is in here, in one function: a call costs as much as a tenth of a request
        (tests/benchmarks/wire.py).
        """
        size = len(data)
        unpack, unpack_data = HEADER.unpack_from, DATA_HEADER_AND_PREFIX.unpack_from
        process, answered, out = self._process, self._answered, self._out
        prefixes, prefix_bytes, room = self._fast_terms
        self.unfinished = False
        self._chores = 0
        for _ in range(STEPS_PER_TURN):
            if size - at < FRAME_HEADER_BYTES:
                return at
            word, flags, stream_id = unpack(data, at)
            if word == _RST_WORD:
                if stream_id in answered and size - at >= _RST_BYTES:
                    del answered[stream_id]
                    at += _RST_BYTES
                    continue
            elif (
                flags == END_HEADERS
                and stream_id > self._last_id
                and data.startswith(prefixes, at + FRAME_HEADER_BYTES)
                and word & 0xFF == FrameType.HEADERS
                and prefix_bytes <= word >> 8 <= FRAME_BYTES_MAX
                and stream_id & _ODD_MASK == 1
                and len(answered) < room
                and size - (body := at + FRAME_HEADER_BYTES + (word >> 8)) >= _MESSAGE_AT
            ):
                word, flags, same_id, compressed, length = unpack_data(data, body)
                end = body + _MESSAGE_AT + length
                if (
                    same_id == stream_id
                    and end <= size
                    and word == (length + PREFIX_BYTES) << 8  # DATA has type 0
                    and word <= _DATA_WORD_MAX
                    and flags <= END_STREAM
                    and not compressed
                ):
                    self._last_id = stream_id
                    self._allowance -= length + PREFIX_BYTES
                    self._pings = self._empty_data = 0
                    try:
                        answer = process(data[body + _MESSAGE_AT : end])
                    except PeerError as error:
                        at = end
                        self._refuse_unreadable(stream_id, error, ended=bool(flags))
                        if self._chores >= CHORES_PER_TURN:
                            break
                        continue
                    id_bytes = data[at + 5 : at + FRAME_HEADER_BYTES]
                    if answer is None:
                        out += (ONLY_START, id_bytes, ONLY_OK)
                    elif (length := len(answer)) < PREBUILT_BYTES_MAX and (
                        length + PREFIX_BYTES <= self._window
                        and length + PREFIX_BYTES <= self._stream_window
                    ):
                        self._window -= length + PREFIX_BYTES
                        self._data_frames += 1
                        out += (
                            ANSWER_START,
                            id_bytes,
                            ANSWER_MIDDLES[length],
                            id_bytes,
                            ANSWER_PREFIXES[length],
                            answer,
                            ANSWER_END,
                            id_bytes,
                            TRAILERS_OK,
                        )
                    else:
                        at = end
                        self._answer_slowly(stream_id, answer, ended=bool(flags))
                        self._fast_terms = prefixes, prefix_bytes, room = self._fast()
                        continue
                    if not flags:
                        answered[stream_id] = 0
                    at = end
                    continue
            behind = self._take_frame(data, at, size)
            if behind == at:
                return at
            at = behind
            if self._chores >= CHORES_PER_TURN:
                break
            self._fast_terms = prefixes, prefix_bytes, room = self._fast()
        self.unfinished = size - at >= FRAME_HEADER_BYTES
        return at

    def _fast(self) -> tuple[tuple[bytes, ...], int, int]:
        """What the fast path goes by: beginnings of blocks, their length, room for streams.

        No beginnings = no fast path: while new streams are refused, or within a header block.
        """
        room = STREAMS_MAX - len(self._streams)
        if (
            self._state is not ConnectionState.OPEN
            or self._final_id != STREAM_ID_MAX
            or self._unsent_bytes > UNSENT_BYTES_MAX
            or self._shrink
        ):
            return (), 0, room
        return self._heads.prefixes, self._heads.prefix_bytes, room

    def _refuse_unreadable(self, stream_id: int, error: PeerError, *, ended: bool) -> None:
        block = Refused(Status.INVALID_ARGUMENT, str(error)).block(alone=True)
        self._refuse_bare(stream_id, block, ended=ended)
        self._count_refusal()

    def _answer_slowly(self, stream_id: int, answer: bytes, *, ended: bool) -> None:
        """An answer of the fast path that the windows do not let through at once."""
        call = Call.process()
        stream = Stream(
            stream_id, call, window=self._stream_window, body_left=-1, now_s=self._now_s
        )
        stream.message_by_s = 0.0
        self._streams[stream_id] = stream
        if ended:
            stream.state = StreamState.HALF_CLOSED_REMOTE
        self._answer(stream, answer)

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
        take = self._takers[kind] if kind < len(self._takers) else self._on_noise
        try:
            take(flags, stream_id, data[payload:end])
        except StreamFault as fault:
            self._reset(fault.stream_id, fault.code)
        return end

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

    def _action(self, stream_id: int, column: int) -> Action:
        """What to do with a frame on a stream, if it does not end the connection."""
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream's frame on stream 0")
        action = STREAM[self._state_of(stream_id)][column]
        if action is Action.FAIL_PROTOCOL:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame on a stream that is not open")
        if action is Action.FAIL_CLOSED:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, "headers on a closed stream")
        return action

    # -- DATA and HEADERS --------------------------------------------------------------------------

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Section 6.1."""
        self._allowance -= len(payload)
        if self._allowance < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded")
        action = self._action(stream_id, _DATA)
        data = unpadded(flags, payload)
        ended = bool(flags & END_STREAM)
        self._pings = 0
        self._empty_data = 0 if data or ended else self._empty_data + 1
        if self._empty_data > EMPTY_DATA_IN_A_ROW_MAX:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "empty DATA frames")
        if action is Action.RESET_CLOSED or action is Action.DISCARD:
            self._count_late(len(payload))
            if action is Action.RESET_CLOSED:
                raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "data on a closed stream")
            return
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._take_data(stream, data, len(payload))
        else:
            self._take_late_data(stream_id, len(payload))
        if ended:
            self._on_end(stream_id)

    def _take_late_data(self, stream_id: int, length: int) -> None:
        """What the peer sent before it saw our answer."""
        self._count_late(length)
        self._answered[stream_id] += length
        if self._answered[stream_id] > STREAM_WINDOW:
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "stream window exceeded")

    def _on_end(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._take_end(stream)
        elif self._answered.pop(stream_id, None) is None:
            self._remember(stream_id, StreamState.CLOSED_BY_PEER)

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Section 6.2."""
        if not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream id that is not a client's")
        self._pings = 0
        part = unpadded(flags, payload)
        depends_on = 0
        if flags & PRIORITY:
            if len(part) < _PRIORITY_BYTES:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS without its priority")
            depends_on = WORD.unpack_from(part)[0] & STREAM_ID_MAX
            part = part[_PRIORITY_BYTES:]
        block = _Block(
            stream_id,
            part,
            ended=bool(flags & END_STREAM),
            depends_on_itself=depends_on == stream_id,
            by_s=self._frame_since_s + HEADER_BLOCK_S,
        )
        if flags & END_HEADERS:
            self._take_block(block)
        else:
            self._block = block
            self._state = ConnectionState.BLOCK

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Section 6.10."""
        block = self._block
        assert block is not None, "CONTINUATION is let through only within a block"
        if stream_id != block.stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of another stream")
        block.parts += 1
        block.data += payload
        if (
            not payload
            or block.parts > CONTINUATIONS_MAX
            or len(block.data) > HEADER_BLOCK_BYTES_MAX
        ):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "an endless header block")
        if flags & END_HEADERS:
            self._block = None
            self._state = ConnectionState.OPEN
            self._take_block(block)

    def _take_block(self, block: _Block) -> None:
        """A whole header block: a request, or trailers."""
        stream_id = block.stream_id
        action = self._action(stream_id, _HEADERS)
        state = self._state_of(stream_id)
        if state is StreamState.IDLE:
            self._take_request(block)
            return
        fields = self._decode(bytes(block.data))
        if action is Action.RESET_CLOSED:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "headers after the end")
        if action is Action.DISCARD:
            self._count_noise()
            return
        try:
            check_trailers(fields)
        except Malformed as error:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, str(error)) from error
        if not block.ended:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "trailers that end nothing")
        if block.depends_on_itself:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "depends on itself")
        self._on_end(stream_id)

    def _decode(self, data: bytes) -> list[tuple[bytes, bytes]]:
        self._chores += 1 + len(data) // DECODE_BYTES
        return self._heads.decode(data)

    def _take_request(self, block: _Block) -> None:
        """The headers of a new stream."""
        stream_id, data = block.stream_id, bytes(block.data)
        self._last_id = stream_id
        head = self._heads.known(data)
        if head is None:
            fields = self._decode(data)
            try:
                head = head_of(fields)
            except Malformed as error:
                raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, str(error)) from error
            self._heads.remember(data, head)
        if block.depends_on_itself:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "depends on itself")
        if stream_id > self._final_id:
            # Not processed, and said so: the peer may try again elsewhere at once (section 8.7).
            self._out.append(frames.rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
            self._remember(stream_id, StreamState.CLOSED_BY_US)
            return
        if self._open(stream_id, head, ended=block.ended) is Method.PROCESS:
            self._heads.learn(data)

    # -- Other frames of a stream ------------------------------------------------------------------

    def _on_priority(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Section 6.3: deprecated, checked, and ignored."""
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        self._count_noise()
        if len(payload) != _PRIORITY_BYTES:
            code, why = ErrorCode.FRAME_SIZE_ERROR, "PRIORITY of another size"
        elif WORD.unpack_from(payload)[0] & STREAM_ID_MAX == stream_id:
            code, why = ErrorCode.PROTOCOL_ERROR, "depends on itself"
        else:
            return
        if stream_id in self._streams or stream_id in self._answered:
            raise StreamFault(stream_id, code, why)
        # Section 6.4: there is no RST_STREAM on an idle stream, nor a second one on a closed one.
        raise ConnectionFault(code, why)

    def _on_rst_stream(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Section 6.4. Only resets of what is not answered are counted (CVE-2023-44487)."""
        if len(payload) != _WORD_BYTES:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM of another size")
        action = self._action(stream_id, _RST)
        if action is Action.DISCARD:
            self._count_noise()
        elif stream_id in self._answered:
            del self._answered[stream_id]
        elif self._state_of(stream_id) is StreamState.ANSWERED:
            self._end_by_reset(stream_id, StreamState.CLOSED_BY_PEER)
        else:
            self._end_by_reset(stream_id, StreamState.CLOSED_BY_PEER)
            self._count_reset()

    def _on_window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Section 6.9."""
        if len(payload) != _WORD_BYTES:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE of another size")
        self._window_updates += 1
        allowed = WINDOW_UPDATES_BASE + WINDOW_UPDATES_PER_DATA * self._data_frames
        if self._window_updates > allowed:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many WINDOW_UPDATEs")
        increment: int = WORD.unpack(payload)[0] & WINDOW_MAX
        if not stream_id:
            self._widen(increment)
            return
        if self._action(stream_id, _WINDOW_UPDATE) is Action.DISCARD:
            return
        if not increment:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "an increment of 0")
        stream = self._streams.get(stream_id)
        if stream is None:
            return  # Answered: there is nothing left to send.
        stream.window += increment
        if stream.window > WINDOW_MAX:
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "its window overflows")
        if stream.unsent:
            self._pump(stream)

    def _widen(self, increment: int) -> None:
        """The connection's own window."""
        if not increment:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "an increment of 0")
        self._window += increment
        if self._window > WINDOW_MAX:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the window overflows")
        self._pump_all()

    # -- Frames of the connection ------------------------------------------------------------------

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Section 6.5."""
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if len(payload) % _SETTING_BYTES or (flags & ACK and payload):
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of another size")
        if flags & ACK:
            if self._state is ConnectionState.SETTINGS:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no SETTINGS after the preface")
            self._heads.acknowledged()
            self._count_noise()
            return
        few = len(payload) <= SETTINGS_ENTRIES_MAX * _SETTING_BYTES
        if not few or not self._settings.take(self._now_s):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many SETTINGS")
        for name, value in SETTING.iter_unpack(payload):
            self._set(name, value)
        self._state = ConnectionState.OPEN
        self._reply(frames.SETTINGS_ACK)
        # What wider windows let out comes after the acknowledgement that they are in force.
        self._pump_all()

    def _set(self, name: int, value: int) -> None:
        """Section 6.5.2. What we never do (push, frames over 16 KiB) needs only checking."""
        if name == Setting.INITIAL_WINDOW_SIZE:
            if value > WINDOW_MAX:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "an initial window too large")
            self._resize_windows(value)
        elif name == Setting.HEADER_TABLE_SIZE and value < _TABLE_BYTES_DEFAULT:
            self._shrink = self._shrink or not self._shrunk
            self._shrunk = True
        elif name == Setting.ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
        elif name == Setting.MAX_FRAME_SIZE and not FRAME_BYTES_MAX <= value <= FRAME_BYTES_LIMIT:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "MAX_FRAME_SIZE out of range")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Section 6.7."""
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != _PING_BYTES:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING of another size")
        if flags & ACK:
            self._count_noise()
            return
        if self._now_s - self._pings_since_s > PINGS_WINDOW_S:
            self._pings, self._pings_since_s = 0, self._now_s
        self._pings += 1
        if self._pings > PINGS_IN_A_ROW_MAX:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")
        self._reply(frames.ping_ack(payload))

    def _on_goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Section 6.8: the peer opens no more streams; those that are open end as usual."""
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < _GOAWAY_BYTES:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY of another size")
        self._count_noise()

    def _on_noise(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Section 5.5: unknown types are ignored."""
        self._count_noise()

    # -- Counters and ends -------------------------------------------------------------------------

    def _reply(self, reply: bytes) -> None:
        self._control_replies += 1
        if self._control_replies > CONTROL_REPLIES_MAX:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "replies are not read")
        self._out.append(reply)

    def _count_noise(self) -> None:
        self._noise += 1
        if self._noise > NOISE_BASE + self._data_frames:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "frames that say nothing")

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
                self._out.append(frames.rst_stream(stream.id, ErrorCode.CANCEL))
                self._end_by_reset(stream.id, StreamState.CLOSED_BY_US)
        if slow and not self._streams:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a slow message")

    def _fail(self, fault: ConnectionFault) -> None:
        """Section 5.4.1."""
        self._out.append(frames.goaway(self._last_id, fault.code, fault.reason))
        for stream in list(self._streams.values()):
            self._drop(stream)
        self._end()

    def _end(self) -> None:
        self.closed, self.unfinished = True, False
        self._state = ConnectionState.CLOSED
        self._rest = b""
        self._block = None
        self._answered.clear()


class _Block:
    """A header block that may come in parts."""

    __slots__ = ("by_s", "data", "depends_on_itself", "ended", "parts", "stream_id")

    def __init__(
        self, stream_id: int, data: bytes, *, ended: bool, depends_on_itself: bool, by_s: float
    ) -> None:
        self.stream_id = stream_id
        self.data = bytearray(data)
        self.ended = ended
        self.depends_on_itself = depends_on_itself
        self.by_s = by_s
        self.parts = 0
