"""What the general path keeps of one stream, and of a header block that comes in parts.

Owns nothing but the fields; `answers`, `requests` and `handlers` move them.
"""

from __future__ import annotations

from sidecar.wire.calls import MESSAGE_BYTES_MAX, Call, Messages, Method
from sidecar.wire.limits import MESSAGE_S, STREAM_WINDOW
from sidecar.wire.states import StreamState


class Stream:
    """A stream that is not answered yet.

    Attributes:
        id: Its number.
        method: What it asks for.
        state: See `states`.
        messages: What has come of its next message.
        window: What we may send, bytes; may be negative (RFC 9113 section 6.9.2).
        allowance: What the peer may still send, bytes.
        reserved: Bytes of the connection's memory kept for the rest of a large message.
        body_left: What content-length still promises, -1 = nothing promised.
        message_by_s: When the message that is coming must be whole; 0 = any time.
        answer_by_s: When what is unsent must be gone; 0 = any time.
        expires_s: When the caller stops waiting; 0 = never.
        unsent: Message bytes that wait for a window.
        trailers: Block that ends the stream, b"" = END_STREAM on the last data, None = not yet.
        headed: Whether our HEADERS went out.
        log: Whole access log messages that wait for their turn.
        log_name: What the stream called its log.
        folding: Whether one is being folded.
    """

    __slots__ = (
        "allowance",
        "answer_by_s",
        "body_left",
        "expires_s",
        "folding",
        "headed",
        "id",
        "log",
        "log_name",
        "message_by_s",
        "messages",
        "method",
        "reserved",
        "state",
        "trailers",
        "unsent",
        "window",
    )

    def __init__(
        self, stream_id: int, call: Call, *, window: int, body_left: int, now_s: float
    ) -> None:
        """A new stream, OPEN."""
        self.id = stream_id
        self.method = call.method
        self.state = StreamState.OPEN
        self.messages = Messages(MESSAGE_BYTES_MAX[call.method], encoded=call.encoded)
        self.window = window
        self.allowance = STREAM_WINDOW
        self.reserved = 0
        self.body_left = body_left
        # An access log may have nothing to say for long.
        idle = call.method is Method.ACCESS_LOGS
        self.message_by_s = 0.0 if idle else now_s + MESSAGE_S
        self.answer_by_s = 0.0
        self.expires_s = now_s + call.timeout_s if call.timeout_s else 0.0
        self.unsent = bytearray()
        self.trailers: bytes | None = None
        self.headed = False
        self.log: list[bytes] = []
        self.log_name = ""
        self.folding = False


class Block:
    """A header block that may come in parts.

    Attributes:
        stream_id: Whose it is.
        data: What has come.
        ended: Whether the peer has ended the stream with it.
        depends_on_itself: Whether its priority says so.
        by_s: When it must be whole.
        parts: CONTINUATIONs so far.
    """

    __slots__ = ("by_s", "data", "depends_on_itself", "ended", "parts", "stream_id")

    def __init__(
        self, stream_id: int, data: bytes, *, ended: bool, depends_on_itself: bool, by_s: float
    ) -> None:
        """The first part."""
        self.stream_id = stream_id
        self.data = bytearray(data)
        self.ended = ended
        self.depends_on_itself = depends_on_itself
        self.by_s = by_s
        self.parts = 0
