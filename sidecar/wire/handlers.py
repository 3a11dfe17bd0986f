"""What each frame does (RFC 9113 section 6), on the general path.

Owns settings, pings, header blocks in parts, and the counters of frames that cost more than they
say. Refuses bytes: `connection` cuts them into frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sidecar.wire import frames
from sidecar.wire.calls import (
    Method,
)
from sidecar.wire.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES_LIMIT,
    FRAME_BYTES_MAX,
    PRIORITY,
    SETTING,
    STREAM_ID_MAX,
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
    CONNECTION_WINDOW,
    CONTINUATIONS_MAX,
    CONTROL_REPLIES_MAX,
    DECODE_BYTES,
    EMPTY_DATA_IN_A_ROW_MAX,
    HEADER_BLOCK_BYTES_MAX,
    HEADER_BLOCK_S,
    LATE_FRAME_BYTES,
    NOISE_BASE,
    PINGS_IN_A_ROW_MAX,
    PINGS_WINDOW_S,
    SETTINGS_ENTRIES_MAX,
    SETTINGS_MAX,
    SETTINGS_WINDOW_S,
    STREAM_WINDOW,
    WINDOW_UPDATES_BASE,
    WINDOW_UPDATES_PER_DATA,
    Memory,
    Window,
)
from sidecar.wire.requests import Fold, Healthy, Process, Requests
from sidecar.wire.states import COLUMN, STREAM, Action, ConnectionState, StreamState
from sidecar.wire.streams import Block

_DATA: Final = COLUMN[FrameType.DATA]
_HEADERS: Final = COLUMN[FrameType.HEADERS]
_RST: Final = COLUMN[FrameType.RST_STREAM]
_WINDOW_UPDATE: Final = COLUMN[FrameType.WINDOW_UPDATE]
_WORD_BYTES: Final = 4
# RFC 7541's, until a setting changes it.
_TABLE_BYTES_DEFAULT: Final = 4_096
_PING_BYTES: Final = 8
_PRIORITY_BYTES: Final = 5
_SETTING_BYTES: Final = 6
_GOAWAY_BYTES: Final = 8


class Handlers(Requests):
    """Takes whole frames."""

    def __init__(
        self, process: Process, healthy: Healthy, fold: Fold, *, strict: bool, memory: Memory
    ) -> None:
        """No frames yet; see `Connection`."""
        super().__init__(process, healthy, fold, strict=strict, memory=memory)
        self._state = ConnectionState.PREFACE
        self._heads = HeaderDecoder(strict=strict)
        self._block: Block | None = None
        # When the first byte came of the frame that is being taken, or is not whole.
        self._frame_since_s = 0.0
        # What the peer may still send on the connection.
        self._allowance = CONNECTION_WINDOW
        self._pings_since_s = 0.0
        self._settings = Window(SETTINGS_MAX, SETTINGS_WINDOW_S)
        self._control_replies = 0
        self._empty_data = 0
        self._noise = 0
        self._window_updates = 0
        self._final_id = STREAM_ID_MAX
        self._shrunk = False

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
            self._count_late(max(len(payload), LATE_FRAME_BYTES))
            if action is Action.RESET_CLOSED:
                raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "data on a closed stream")
            return
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._take_data(stream, data, len(payload))
        else:
            self._take_late_data(stream_id, len(payload), ended=ended)
        if ended:
            self._on_end(stream_id)

    def _take_late_data(self, stream_id: int, length: int, *, ended: bool) -> None:
        """What the peer sent before it saw our answer; the end that each stream has is free."""
        self._count_late(length if ended else max(length, LATE_FRAME_BYTES))
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
        block = Block(
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

    def _take_block(self, block: Block) -> None:
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

    def _take_request(self, block: Block) -> None:
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

    # -- Counters ----------------------------------------------------------------------------------

    def _reply(self, reply: bytes) -> None:
        self._control_replies += 1
        if self._control_replies > CONTROL_REPLIES_MAX:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "replies are not read")
        self._out.append(reply)

    def _count_noise(self) -> None:
        self._noise += 1
        if self._noise > NOISE_BASE + self._data_frames + self._bare_answers:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "frames that say nothing")


# By frame type. Not bound methods in each connection: that would be a cycle, and a closed
# connection would stay until the collector comes, which has little to do here and seldom does.
TAKERS: Final[tuple[Callable[[Handlers, int, int, bytes], None], ...]] = (
    Handlers._on_data,
    Handlers._on_headers,
    Handlers._on_priority,
    Handlers._on_rst_stream,
    Handlers._on_settings,
    Handlers._on_noise,
    Handlers._on_ping,
    Handlers._on_goaway,
    Handlers._on_window_update,
    Handlers._on_continuation,
)
