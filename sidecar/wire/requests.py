"""Calls: requests in, to the handler, and what the handler says to `answers`.

Owns what each method does with its messages, on the general path. Refuses frames: `handlers` reads
those, and `connection` holds the fast path, which does what this does for the one sequence that
Envoy sends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sidecar.wire.answers import Answers
from sidecar.wire.calls import (
    SERVICE_UNKNOWN,
    Method,
    PeerError,
    Refused,
    Status,
    call_of,
    health_answer,
    is_ours,
    prefixed,
)
from sidecar.wire.frames import (
    END_STREAM,
    ConnectionFault,
    ErrorCode,
    StreamFault,
)
from sidecar.wire.heads import Head
from sidecar.wire.limits import (
    CRUMB_BYTES,
    CRUMBS_BURST,
    CRUMBS_PER_S,
    LOG_FULL_BYTES,
    MESSAGE_OVERHEAD_BYTES,
    MESSAGE_S,
    PREFIX_BYTES,
    STREAMS_MAX,
    UNSENT_BYTES_MAX,
    Bucket,
    Memory,
)
from sidecar.wire.states import StreamState
from sidecar.wire.streams import Stream

_PAGE_HEAD: Final = b"\x88\x0f\x10\x0atext/plain"
_PAGE: Final = b"The worker answers.\n"

Process = Callable[[bytes], bytes | None]
Healthy = Callable[[], bool]
Fold = Callable[[int, bytes, str], None]


class Requests(Answers):
    """The calls of one connection."""

    def __init__(
        self, process: Process, healthy: Healthy, fold: Fold, *, strict: bool, memory: Memory
    ) -> None:
        """No calls yet; see `Connection`."""
        super().__init__(memory)
        self._process = process
        self._healthy = healthy
        self._fold = fold
        self._strict = strict
        # Access logs end with the message that is whole next.
        self._ending_logs = False
        self._crumbs = Bucket(CRUMBS_BURST, CRUMBS_PER_S)

    # -- What the shell asks -----------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether no call is open."""
        return not self._streams and not self._logs

    @property
    def folding(self) -> bool:
        """Whether `folded` will be called again."""
        return bool(self._logs)

    def folded(self, stream_id: int, log_name: str, error: PeerError | None = None) -> None:
        """The shell has folded a stream's message: the next one, or the end.

        Args:
            stream_id: As given to `fold`.
            log_name: What the stream's log is called from now on.
            error: Why the message could not be read.
        """
        stream = self._logs[stream_id]
        self._hold(-_held(stream.log.pop(0)))
        stream.log_name = log_name
        stream.folding = False
        try:
            self._go_on(stream, error)
            self._feed_the_starved()
        except ConnectionFault as fault:
            self._fail(fault)

    def _go_on(self, stream: Stream, error: PeerError | None) -> None:
        """One message of an access log is folded, or could not be read."""
        live = self._streams.get(stream.id) is stream
        if error is not None:
            self._hold(-sum(map(_held, stream.log)))
            stream.log.clear()
        if stream.log:
            self._fold_next(stream)
            return
        del self._logs[stream.id]
        if not live:
            return
        if error is not None:
            self._refuse(stream, Refused(Status.INVALID_ARGUMENT, str(error)))
        elif stream.state is StreamState.HALF_CLOSED_REMOTE:
            self._answer(stream, b"")
        else:
            self._give_window(stream)

    def look_at_health(self) -> None:
        """Tell watchers when the health has changed."""
        for stream_id, told in list(self._watched.items()):
            now = health_answer(serving=self._healthy())
            if now != told and told != SERVICE_UNKNOWN:
                self._watched[stream_id] = now
                self._send(self._streams[stream_id], prefixed(now), None)

    @property
    def logging(self) -> bool:
        """Whether an access log is open."""
        return any(self._is_log(stream) for stream in self._streams.values())

    def end_logs(self) -> None:
        """Ask watchers to go elsewhere, and access logs after their next message.

        Envoy throws away what it has begun to send when it reads the end, up to a whole buffer.
        After a message there is nothing for a while, unless it came because the buffer was full:
        then the timer's may be next at once.
        """
        self._ending_logs = True
        for stream in list(self._streams.values()):
            if stream.method is Method.WATCH:
                self._end_call(stream, Refused(Status.UNAVAILABLE, "the server ends"))

    def end_quiet_logs(self) -> None:
        """Ask access logs that are sending nothing; what is on its way is still folded."""
        for stream in list(self._streams.values()):
            if self._is_log(stream) and not stream.messages.held:
                self._end_log(stream)

    def _is_log(self, stream: Stream) -> bool:
        return stream.method is Method.ACCESS_LOGS and stream.state is StreamState.OPEN

    # -- Opening -----------------------------------------------------------------------------------

    def _open(self, stream_id: int, head: Head, *, ended: bool) -> Method | None:
        """A new stream whose headers are well-formed; None when it is refused already."""
        if len(self._streams) + len(self._answered) >= STREAMS_MAX:
            raise StreamFault(stream_id, ErrorCode.REFUSED_STREAM, "too many streams")
        if self._unsent_bytes > UNSENT_BYTES_MAX:
            raise StreamFault(stream_id, ErrorCode.REFUSED_STREAM, "answers are not read")
        try:
            call = call_of(head, pages=self._strict)
        except Refused as refused:
            self._refuse_bare(stream_id, refused.block(alone=True), ended=ended)
            self._count_refusal()
            return None
        stream = Stream(
            stream_id,
            call,
            window=self._stream_window,
            body_left=head.length,
            now_s=self._now_s,
        )
        self._streams[stream_id] = stream
        if ended:
            self._take_end(stream)
        return call.method

    # -- Requests ----------------------------------------------------------------------------------

    def _take_data(self, stream: Stream, data: bytes, length: int) -> None:
        """DATA of an open stream.

        Args:
            stream: It.
            data: Without padding.
            length: With padding: what flow control counts.
        """
        stream.allowance -= length
        if stream.allowance < 0:
            raise StreamFault(stream.id, ErrorCode.FLOW_CONTROL_ERROR, "stream window exceeded")
        if stream.body_left >= 0:
            stream.body_left -= len(data)
            if stream.body_left < 0:
                raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "more than content-length")
        if stream.method >= Method.PAGE or stream.trailers is not None:
            return  # Nothing is read of it, or the answer waits for its window.
        # Whole messages of a log are kept until they are folded, so that these are refused before.
        full = self._is_too_much(self._buffered_bytes + len(data), len(data))
        if full and stream.method is Method.ACCESS_LOGS:
            self._refuse_full(stream)
            return
        self._release(stream, len(data))
        self._hold(len(data))
        stream.messages.add(data)
        try:
            self._take_messages(stream)
        except Refused as refused:
            self._refuse(stream, refused)
            return
        if stream.id in self._streams:
            self._after_data(stream)

    def _take_messages(self, stream: Stream) -> None:
        """Those that are whole.

        Never anything after our trailers: what follows an answered request is not looked at, also
        while the answer still waits for its window.
        """
        while (
            stream.trailers is None
            and stream.id in self._streams
            and (message := stream.messages.next()) is not None
        ):
            self._hold(-(len(message) + PREFIX_BYTES))
            stream.message_by_s = 0.0
            self._take_message(stream, message)

    def _after_data(self, stream: Stream) -> None:
        """Bound the memory and the time of what has not come yet."""
        if stream.trailers is not None:
            self._hold(-stream.messages.held)
            stream.messages.clear()
            return
        if self._is_too_much(self._buffered_bytes, 0):
            self._refuse_full(stream)
            return
        if stream.messages.held and not stream.message_by_s:
            stream.message_by_s = self._now_s + MESSAGE_S
        if stream.method is Method.ACCESS_LOGS:
            self._give_window(stream)

    def _refuse_full(self, stream: Stream) -> None:
        self._refuse(stream, Refused(Status.RESOURCE_EXHAUSTED, "too much is unfinished"))

    def _take_message(self, stream: Stream, message: bytes) -> None:
        method = stream.method
        if method is Method.PROCESS:
            try:
                answer = self._process(message)
            except PeerError as error:
                self._refuse(stream, Refused(Status.INVALID_ARGUMENT, str(error)))
                return
            self._answer(stream, answer)
        elif method is Method.ACCESS_LOGS:
            if len(message) < CRUMB_BYTES:
                self._count_crumb()
            self._hold(_held(message))
            stream.log.append(message)
            self._fold_next(stream)
            quiet = len(message) < LOG_FULL_BYTES and not stream.messages.held
            if self._ending_logs and quiet and self._is_log(stream):
                self._end_log(stream)
        elif stream.id not in self._watched:
            self._take_health_request(stream, message)
        else:
            self._count_crumb()

    def _count_crumb(self) -> None:
        if not self._crumbs.take(self._now_s):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "messages that say nothing")

    def _take_health_request(self, stream: Stream, message: bytes) -> None:
        try:
            ours = is_ours(message)
            if not ours and stream.method is Method.CHECK:
                raise Refused(Status.NOT_FOUND, "unknown service")
        except Refused as refused:
            self._refuse(stream, refused)
            return
        answer = health_answer(serving=self._healthy()) if ours else SERVICE_UNKNOWN
        if stream.method is Method.CHECK:
            self._answer(stream, answer)
            return
        self._watched[stream.id] = answer
        self._send_head(stream)
        self._send(stream, prefixed(answer), None)

    def _take_end(self, stream: Stream) -> None:
        """The peer has ended its half."""
        if stream.body_left > 0:
            raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "less than content-length")
        if stream.state is StreamState.ANSWERED:
            self._drop(stream)
            self._remember(stream.id, StreamState.CLOSED_BY_PEER)
            return
        stream.state = StreamState.HALF_CLOSED_REMOTE
        stream.message_by_s = 0.0
        if stream.trailers is not None:
            return  # Answered, but for windows.
        if stream.method is Method.PAGE:
            self._send_head(stream, _PAGE_HEAD)
            self._send(stream, _PAGE, b"")
        elif stream.method is Method.PAGE_HEAD:
            self._send_block(stream.id, _PAGE_HEAD, END_STREAM)
            self._finish(stream)
        elif stream.messages.held:
            self._refuse(stream, Refused(Status.INTERNAL, "the stream ended within a message"))
        elif stream.method is Method.PROCESS:
            self._answer(stream, None)
        elif stream.method is Method.ACCESS_LOGS:
            if not stream.folding:
                self._answer(stream, b"")
        elif stream.id not in self._watched:
            self._refuse(stream, Refused(Status.INTERNAL, "no request"))

    def _fold_next(self, stream: Stream) -> None:
        if not stream.folding:
            stream.folding = True
            self._logs[stream.id] = stream
            self._fold(stream.id, stream.log[0], stream.log_name)


def _held(message: bytes) -> int:
    """Bytes of memory that a message of an access log takes while it waits."""
    return len(message) + MESSAGE_OVERHEAD_BYTES
