"""RFC 9113, section by section: what ends a connection, what ends a stream, what is ignored."""

from __future__ import annotations

import pytest

from sidecar.wire import frames
from sidecar.wire.connection import Connection
from sidecar.wire.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES_MAX,
    PADDED,
    PREFACE,
    PRIORITY,
    STREAM_ID_MAX,
    WINDOW_MAX,
    WORD,
    ErrorCode,
    FrameType,
    Setting,
    frame,
)
from sidecar.wire.limits import CONNECTION_WINDOW, LOG_FULL_BYTES, STREAM_WINDOW, STREAMS_MAX
from sidecar.wire.streams import Stream
from tests.sidecar.wire.peer import (
    ACCESS_LOGS,
    CHECK,
    PROCESS,
    WATCH,
    Peer,
    block_of,
    data,
    headers,
    literal,
    message,
    open_get,
    plain,
    request,
)

OPEN = headers(1, block_of())
HALF = headers(1, block_of(ACCESS_LOGS), END_HEADERS | END_STREAM)
GET = (b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/healthz")

FATAL: list[tuple[str, bytes, ErrorCode]] = [
    ("4.2 too large", frame(0, 0, 1, b"x" * (FRAME_BYTES_MAX + 1))[:9], ErrorCode.FRAME_SIZE_ERROR),
    ("4.3 bad block", headers(1, b"\x80"), ErrorCode.COMPRESSION_ERROR),
    ("4.3 between", headers(1, block_of(), 0) + data(1, b"x"), ErrorCode.PROTOCOL_ERROR),
    ("5.1 data idle", data(1, b"x"), ErrorCode.PROTOCOL_ERROR),
    ("5.1 reset idle", frames.rst_stream(1, 0), ErrorCode.PROTOCOL_ERROR),
    ("5.1 window idle", frames.window_update(1, 1), ErrorCode.PROTOCOL_ERROR),
    ("5.1 headers closed", OPEN + frames.rst_stream(1, 0) + OPEN, ErrorCode.STREAM_CLOSED),
    ("5.1.1 even", headers(2, block_of()), ErrorCode.PROTOCOL_ERROR),
    ("5.1.1 lower", headers(5, block_of()) + headers(3, block_of()), ErrorCode.PROTOCOL_ERROR),
    ("6.1 stream 0", data(0, b"x"), ErrorCode.PROTOCOL_ERROR),
    ("6.1 padding", OPEN + data(1, b"\5abc", PADDED), ErrorCode.PROTOCOL_ERROR),
    ("6.1 no pad length", OPEN + data(1, b"", PADDED), ErrorCode.FRAME_SIZE_ERROR),
    ("6.2 stream 0", headers(0, block_of()), ErrorCode.PROTOCOL_ERROR),
    ("6.2 priority", headers(1, b"\0\0", END_HEADERS | PRIORITY), ErrorCode.FRAME_SIZE_ERROR),
    ("6.3 size idle", frame(2, 0, 1, b"\0" * 4), ErrorCode.FRAME_SIZE_ERROR),
    ("5.3.1 itself idle", frame(2, 0, 1, b"\0\0\0\1\0"), ErrorCode.PROTOCOL_ERROR),
    ("6.3 stream 0", frame(2, 0, 0, b"\0" * 5), ErrorCode.PROTOCOL_ERROR),
    ("6.4 stream 0", frames.rst_stream(0, 0), ErrorCode.PROTOCOL_ERROR),
    ("6.4 size", OPEN + frame(3, 0, 1, b"\0" * 3), ErrorCode.FRAME_SIZE_ERROR),
    ("6.5 ack payload", frame(4, ACK, 0, b"\0" * 6), ErrorCode.FRAME_SIZE_ERROR),
    ("6.5 size", frame(4, 0, 0, b"\0" * 5), ErrorCode.FRAME_SIZE_ERROR),
    ("6.5 stream", frame(4, 0, 1, b""), ErrorCode.PROTOCOL_ERROR),
    ("6.5.2 push", frames.settings({Setting.ENABLE_PUSH: 2}), ErrorCode.PROTOCOL_ERROR),
    (
        "6.5.2 window",
        frames.settings({Setting.INITIAL_WINDOW_SIZE: WINDOW_MAX + 1}),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    ("6.5.2 frame", frames.settings({Setting.MAX_FRAME_SIZE: 16_383}), ErrorCode.PROTOCOL_ERROR),
    ("6.5.2 frame", frames.settings({Setting.MAX_FRAME_SIZE: 2**24}), ErrorCode.PROTOCOL_ERROR),
    ("6.6 push", frame(5, END_HEADERS, 1, b"\0\0\0\2"), ErrorCode.PROTOCOL_ERROR),
    ("6.7 stream", frame(6, 0, 1, b"\0" * 8), ErrorCode.PROTOCOL_ERROR),
    ("6.7 size", frame(6, 0, 0, b"\0" * 7), ErrorCode.FRAME_SIZE_ERROR),
    ("6.8 stream", frame(7, 0, 1, b"\0" * 8), ErrorCode.PROTOCOL_ERROR),
    ("6.8 size", frame(7, 0, 0, b"\0" * 7), ErrorCode.FRAME_SIZE_ERROR),
    ("6.9 size", frame(8, 0, 0, b"\0" * 3), ErrorCode.FRAME_SIZE_ERROR),
    ("6.9 zero", frames.window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
    ("6.9.1 overflow", frames.window_update(0, WINDOW_MAX), ErrorCode.FLOW_CONTROL_ERROR),
    (
        "6.9.2 overflow",
        OPEN
        + frames.window_update(1, WINDOW_MAX - 65_535)
        + frames.settings({Setting.INITIAL_WINDOW_SIZE: 65_536}),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    ("6.10 alone", frame(9, END_HEADERS, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
    (
        "6.10 of another",
        headers(1, block_of(), 0) + frame(9, END_HEADERS, 3, b"x"),
        ErrorCode.PROTOCOL_ERROR,
    ),
]

RESETTING: list[tuple[str, bytes, ErrorCode]] = [
    ("5.1 data half-closed", HALF + data(1, b"x"), ErrorCode.NO_ERROR),
    ("6.3 size", OPEN + frame(2, 0, 1, b"\0" * 4), ErrorCode.FRAME_SIZE_ERROR),
    ("5.3.1 itself", OPEN + frame(2, 0, 1, b"\0\0\0\1\0"), ErrorCode.PROTOCOL_ERROR),
    (
        "5.3.1 itself",
        headers(1, b"\0\0\0\1\0" + block_of(), END_HEADERS | PRIORITY),
        ErrorCode.PROTOCOL_ERROR,
    ),
    ("5.1 data closed", OPEN + frames.rst_stream(1, 0) + data(1, b"x"), ErrorCode.STREAM_CLOSED),
    ("6.9 zero", OPEN + frames.window_update(1, 0), ErrorCode.PROTOCOL_ERROR),
    (
        "6.9.1 overflow",
        OPEN + frames.window_update(1, WINDOW_MAX),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    ("8.1 trailers", OPEN + headers(1, literal(b"a", b"b")), ErrorCode.PROTOCOL_ERROR),
    (
        "8.1 pseudo trailers",
        OPEN + headers(1, literal(b":path", b"/"), END_HEADERS | END_STREAM),
        ErrorCode.PROTOCOL_ERROR,
    ),
    ("8.2 upper case", headers(1, block_of(PROCESS, (b"A", b"b"))), ErrorCode.PROTOCOL_ERROR),
    ("8.2.1 value", headers(1, block_of(PROCESS, (b"a", b"b\nc"))), ErrorCode.PROTOCOL_ERROR),
    ("8.2.1 blank", headers(1, block_of(PROCESS, (b"a", b" b"))), ErrorCode.PROTOCOL_ERROR),
    ("8.2.1 name", headers(1, block_of(PROCESS, (b"", b"b"))), ErrorCode.PROTOCOL_ERROR),
    (
        "8.2.2 connection",
        headers(1, block_of(PROCESS, (b"connection", b"close"))),
        ErrorCode.PROTOCOL_ERROR,
    ),
    ("8.2.2 te", headers(1, block_of(PROCESS, (b"te", b"gzip"))), ErrorCode.PROTOCOL_ERROR),
    ("8.3 unknown", headers(1, plain(*GET, (b":x", b"y"))), ErrorCode.PROTOCOL_ERROR),
    ("8.3 late", headers(1, plain(GET[0], (b"a", b"b"), *GET[1:])), ErrorCode.PROTOCOL_ERROR),
    ("8.3 twice", headers(1, plain(*GET, GET[0])), ErrorCode.PROTOCOL_ERROR),
    ("8.3 missing", headers(1, plain(*GET[1:])), ErrorCode.PROTOCOL_ERROR),
    ("8.3 empty", headers(1, plain(*GET[:2], (b":path", b""))), ErrorCode.PROTOCOL_ERROR),
    (
        "8.1.1 no number",
        headers(1, block_of(PROCESS, (b"content-length", b"-1"))),
        ErrorCode.PROTOCOL_ERROR,
    ),
    (
        "8.1.1 two lengths",
        headers(1, block_of(PROCESS, (b"content-length", b"1"), (b"content-length", b"2"))),
        ErrorCode.PROTOCOL_ERROR,
    ),
    (
        "8.1.1 more",
        headers(1, block_of(PROCESS, (b"content-length", b"1"))) + data(1, b"ab"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    (
        "8.1.1 less",
        headers(1, block_of(PROCESS, (b"content-length", b"3"))) + data(1, b"ab", END_STREAM),
        ErrorCode.PROTOCOL_ERROR,
    ),
]

IGNORED: list[tuple[str, bytes]] = [
    ("4.1 unknown type", frame(0xEE, 0xFF, 77, b"whatever")),
    ("4.1 unknown flags", frame(6, 0xFE, 0, b"\0" * 8)),
    ("4.1 reserved bit", frame(8, 0, 2**31, b"\x80\0\0\1")),
    ("5.1 priority idle", frame(2, 0, 9, b"\0" * 5)),
    ("5.1 reset again", OPEN + frames.rst_stream(1, 0) + frames.rst_stream(1, 0)),
    ("5.1 window closed", OPEN + frames.rst_stream(1, 0) + frames.window_update(1, 5)),
    ("6.5.2 unknown", frame(4, 0, 0, b"\0\x77\0\0\0\1")),
    ("6.7 ack", frame(6, ACK, 0, b"\0" * 8)),
    ("6.8 goaway", frames.goaway(0, 0)),
    ("6.2 priority", headers(1, b"\0\0\0\3\0" + block_of(), END_HEADERS | PRIORITY)),
    ("7 unknown code", OPEN + frames.rst_stream(1, 0xFFFF)),
]


@pytest.mark.parametrize(("rule", "sent", "code"), FATAL, ids=[r for r, _, _ in FATAL])
def test_connection_ends_when_the_peer_breaks_its_rules(
    rule: str, sent: bytes, code: ErrorCode
) -> None:
    assert Peer().send(sent).goaway() is code


@pytest.mark.parametrize(("rule", "sent", "code"), RESETTING, ids=[r for r, _, _ in RESETTING])
def test_only_the_stream_ends_when_the_peer_breaks_its_rules(
    rule: str, sent: bytes, code: ErrorCode
) -> None:
    peer = Peer().send(sent)
    if code is not ErrorCode.NO_ERROR:
        assert peer.resets() == {1: code}
    # Another stream is served as before, and the header tables are still in step.
    peer.send(request(3, b"hello"))
    assert peer.served.processed == [b"hello"]


@pytest.mark.parametrize(("rule", "sent"), IGNORED, ids=[r for r, _ in IGNORED])
def test_connection_goes_on_when_what_comes_may_be_ignored(rule: str, sent: bytes) -> None:
    peer = Peer().send(sent)
    assert peer.resets() == {}
    peer.send(headers(11, block_of()) + data(11, message(b"hello")))
    assert peer.served.processed == [b"hello"]


def test_half_closed_stream_is_reset_when_more_comes() -> None:
    peer = Peer().send(headers(1, block_of(ACCESS_LOGS)), data(1, message(b"entry"), END_STREAM))
    assert peer.served.folding == [(1, b"entry", "")]  # half-closed (remote) while it is folded
    peer.send(data(1, b"x"))
    assert peer.resets() == {1: ErrorCode.STREAM_CLOSED}


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nXX"])
def test_connection_ends_when_the_preface_is_another(start: bytes) -> None:
    """Section 3.4, at the first byte that differs."""
    peer = Peer(begin=False)
    peer.read()
    assert peer.send(start).goaway() is ErrorCode.PROTOCOL_ERROR


@pytest.mark.parametrize("first", [frames.SETTINGS_ACK, frame(6, 0, 0, b"\0" * 8), OPEN])
def test_connection_ends_when_settings_do_not_come_first(first: bytes) -> None:
    peer = Peer(begin=False)
    peer.read()
    assert peer.send(PREFACE, first).goaway() is ErrorCode.PROTOCOL_ERROR


def test_first_frame_we_send_is_settings() -> None:
    peer = Peer(begin=False)
    settings, window = peer.read()
    assert settings.kind is FrameType.SETTINGS
    assert WORD.unpack(window.payload) == (CONNECTION_WINDOW - 65_535,)


def test_settings_and_ping_are_acknowledged() -> None:
    """Sections 6.5.3 and 6.7."""
    peer = Peer().send(frames.settings({}), frame(6, 0, 0, b"payload!"))
    settings, ping = peer.read()
    assert (settings.kind, settings.flags) == (FrameType.SETTINGS, ACK)
    assert (ping.kind, ping.flags, ping.payload) == (FrameType.PING, ACK, b"payload!")


def test_stream_is_refused_when_too_many_are_open() -> None:
    """Section 5.1.2; streams that are answered and not ended by the peer count too."""
    peer = Peer()
    for i in range(STREAMS_MAX):
        peer.send(request(2 * i + 1, b"hello"))
    assert peer.resets() == {}
    last = 2 * STREAMS_MAX + 1
    peer.send(request(last, b"one too many"))
    assert peer.resets() == {last: ErrorCode.REFUSED_STREAM}
    peer.send(frames.rst_stream(1, ErrorCode.INTERNAL_ERROR), request(last + 2, b"hello"))
    assert peer.resets() == {}
    assert len(peer.served.processed) == STREAMS_MAX + 1


# -- Flow control (sections 5.2, 6.9) --------------------------------------------------------------


def bytes_of(peer: Peer, stream_id: int) -> bytes:
    found = [f for f in peer.read() if f.stream_id == stream_id and f.kind is FrameType.DATA]
    return b"".join(f.payload for f in found)


def test_answer_waits_when_the_streams_window_is_too_small() -> None:
    peer = Peer().send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 3}))
    peer.read()
    peer.send(OPEN, data(1, message(b"hello")))
    whole = message(b"hello")
    assert bytes_of(peer, 1) == whole[:3]
    peer.send(frames.window_update(1, 2))
    assert bytes_of(peer, 1) == whole[3:5]
    peer.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 100}))
    found = peer.read()
    assert [(f.kind, f.flags) for f in found[1:]] == [
        (FrameType.DATA, 0),
        (FrameType.HEADERS, END_HEADERS | END_STREAM),
    ]


def test_window_may_become_negative() -> None:
    """Section 6.9.2."""
    peer = Peer().send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 4}))
    peer.send(OPEN, data(1, message(b"hello")))
    peer.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}))
    peer.read()
    peer.send(frames.window_update(1, 4))
    assert bytes_of(peer, 1) == b""
    peer.send(frames.window_update(1, 1))
    assert len(bytes_of(peer, 1)) == 1


def test_answers_go_out_in_order_when_the_connections_window_opens() -> None:
    """Also those of the fast path, and never more than it allows."""
    peer = Peer().send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 2**20}))
    content = b"long" + b"x" * 196
    for stream_id in (1, 3, 5, 7, 9):
        peer.send(request(stream_id, content if stream_id > 1 else b"a", shrink=stream_id == 1))
    got = [f for f in peer.read() if f.kind is FrameType.DATA]
    assert sum(len(f.payload) for f in got) == 65_535
    peer.send(frames.window_update(0, 2**20))
    rest = peer.read()
    ended = [f.stream_id for f in rest if f.flags & END_STREAM]
    assert ended == sorted(ended)
    assert ended[-1] == 9
    total = sum(len(f.payload) for f in (*got, *rest) if f.kind is FrameType.DATA)
    assert total == 4 * (200 * 100 + 5) + 6


def test_message_after_an_answered_one_is_not_looked_at() -> None:
    """Never a second answer, though the first still waits for its window."""
    peer = Peer().send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}))
    peer.send(OPEN, data(1, message(b"first")), data(1, message(b"second")))
    peer.send(frames.window_update(1, 1_000))
    peer.send(data(1, message(b"third")))
    assert peer.served.processed == [b"first"]
    assert bytes_of(peer, 1) == message(b"first")


def test_connection_window_is_refilled_whatever_becomes_of_the_streams() -> None:
    """Padding, DATA of streams that are gone or reset: all of it counts."""
    peer = Peer()
    padded = data(1, b"\xff" + b"x" * 16_000 + b"\0" * 255, PADDED)
    stream_id = 1
    for _ in range(CONNECTION_WINDOW // 2 // 16_256 // 400 + 1):
        peer.connection._allowance -= 16_256 * 399  # as if 399 more had come
        peer.send(headers(stream_id, block_of(b"/unknown")))
        peer.send(padded[:5] + WORD.pack(stream_id) + padded[9:]).pass_time(1.0)
        stream_id += 2
    updates = [f for f in peer.read() if f.kind is FrameType.WINDOW_UPDATE]
    assert [f.stream_id for f in updates] == [0]
    assert not peer.connection.closed


def test_connection_ends_when_its_window_is_exceeded() -> None:
    peer = Peer()
    peer.connection._allowance = 10
    assert peer.send(OPEN, data(1, b"x" * 11)).goaway() is ErrorCode.FLOW_CONTROL_ERROR


def test_stream_is_reset_when_its_window_is_exceeded() -> None:
    peer = Peer().send(OPEN)
    content = message(b"x" * 60_000)[:-1]  # never whole
    assert len(content) < STREAM_WINDOW
    for at in range(0, len(content), FRAME_BYTES_MAX):
        peer.send(data(1, content[at : at + FRAME_BYTES_MAX]))
    assert peer.resets() == {}
    logs = headers(3, block_of(ACCESS_LOGS, shrink=False))
    peer.send(logs, data(3, message(b"x" * 10)))  # being folded: no more window
    for _ in range(STREAM_WINDOW // FRAME_BYTES_MAX + 1):
        peer.send(data(3, b"\0\0\0\x3f\xfb" + b"x" * (FRAME_BYTES_MAX - 5)))
    assert peer.resets() == {3: ErrorCode.FLOW_CONTROL_ERROR}


def test_only_answers_that_wait_for_the_connection_are_looked_at_when_its_window_grows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five hundred that wait for their streams' windows cost nothing for each WINDOW_UPDATE."""
    peer = Peer().send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}))
    for stream_id in range(1, 1_001, 2):
        peer.send(request(stream_id, b"x", shrink=stream_id == 1))
    looks: list[int] = []
    pump = Connection._pump

    def look(connection: Connection, stream: Stream) -> None:
        looks.append(stream.id)
        pump(connection, stream)

    monkeypatch.setattr(Connection, "_pump", look)
    for _ in range(50):
        peer.send(frames.window_update(0, 1))
    assert looks == []
    peer.send(frames.window_update(5, 1))
    assert looks == [5]
    looks.clear()
    # All of them may go on now, and what they send is whole.
    peer.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 100}))
    assert len(looks) == 500
    sent = b"".join(f.payload for f in peer.read() if f.kind is FrameType.DATA)
    assert len(sent) == 500 * len(message(b"x"))


# -- Draining (section 6.8) ------------------------------------------------------------------------


def test_drain_serves_what_is_on_its_way_and_refuses_what_comes_after() -> None:
    peer = Peer()
    peer.send(headers(1, block_of()))
    peer.connection.go_away()
    (first,) = peer.read()
    assert WORD.unpack_from(first.payload) == (STREAM_ID_MAX,)
    peer.send(request(3, b"on its way"))
    peer.connection.go_away_at_last()
    last = peer.read()[-1]
    assert WORD.unpack_from(last.payload) == (3,)
    peer.send(request(5, b"too late"), data(1, message(b"begun before")))
    assert peer.resets() == {5: ErrorCode.REFUSED_STREAM}
    assert peer.served.processed == [b"on its way", b"begun before"]
    assert peer.connection.idle


def test_last_goaway_names_no_higher_stream_when_the_connection_fails_in_a_drain() -> None:
    peer = Peer().send(request(1, b"served"))
    peer.connection.go_away()
    peer.connection.go_away_at_last()
    peer.send(request(3, b"too late"), data(0, b"a fault"))
    named = [WORD.unpack_from(f.payload)[0] for f in peer.read() if f.kind is FrameType.GOAWAY]
    assert named == [STREAM_ID_MAX, 1, 1]


def test_open_calls_end_well_when_the_drain_ends() -> None:
    peer = Peer().send(
        headers(1, block_of(ACCESS_LOGS)),
        headers(3, block_of(shrink=False)),
        headers(5, block_of(WATCH, shrink=False)),
        data(5, message(b"")),
    )
    peer.answers()
    assert not peer.connection.idle
    peer.connection.go_away_at_last()
    assert {i: a["grpc-status"] for i, a in peer.answers().items()} == {5: "14"}
    assert peer.connection.logging
    peer.connection.end_quiet_logs()
    assert not peer.connection.logging
    assert {i: a["grpc-status"] for i, a in peer.answers().items()} == {1: "0"}
    # What was on its way is folded still, until the peer has seen the end.
    peer.send(data(1, message(b"late")))
    assert peer.served.folding == [(1, b"late", "")]
    peer.connection.folded(1, "")
    assert not peer.connection.idle
    peer.send(frames.rst_stream(1, ErrorCode.INTERNAL_ERROR))
    assert peer.resets() == {}
    peer.connection.close()
    assert {i: a["grpc-status"] for i, a in peer.answers().items()} == {3: "14"}
    assert peer.connection.closed


def test_access_log_ends_after_a_whole_message_when_the_drain_ends() -> None:
    """What the peer has begun to send when it reads the end would be lost with the stream."""
    peer = Peer().send(headers(1, block_of(ACCESS_LOGS)), data(1, message(b"first")[:3]))
    peer.answers()
    peer.connection.go_away_at_last()
    peer.connection.end_quiet_logs()
    assert peer.answers() == {}
    peer.send(data(1, message(b"first")[3:] + message(b"second")[:7]))
    assert peer.answers() == {}
    peer.send(data(1, message(b"second")[7:]))
    assert peer.answers()[1]["grpc-status"] == "0"
    assert [content for _, content, _ in peer.served.folding] == [b"first"]
    peer.connection.folded(1, "")
    assert [content for _, content, _ in peer.served.folding] == [b"first", b"second"]


def test_access_log_goes_on_after_a_full_buffer_when_the_drain_ends() -> None:
    """The next message comes with Envoy's timer, perhaps at once."""
    full, rest = bytes(LOG_FULL_BYTES), b"what came since"
    peer = Peer().send(headers(1, block_of(ACCESS_LOGS)))
    peer.answers()
    peer.connection.go_away_at_last()
    sent = message(full)
    for start in range(0, len(sent), FRAME_BYTES_MAX):
        peer.send(data(1, sent[start : start + FRAME_BYTES_MAX]))
    assert peer.answers() == {}
    assert peer.connection.logging
    assert [content for _, content, _ in peer.served.folding] == [full]
    peer.connection.folded(1, "")
    peer.send(data(1, message(rest)))
    assert peer.answers()[1]["grpc-status"] == "0"
    assert [content for _, content, _ in peer.served.folding] == [full, rest]


def test_health_is_the_handlers_while_draining() -> None:
    """A successor may have the socket: Envoy must not take its host for unhealthy."""
    peer = Peer()
    peer.connection.go_away()
    peer.read()
    peer.send(headers(1, block_of(CHECK)), data(1, message(b""), END_STREAM))
    assert bytes_of(peer, 1) == message(b"\x08\x01")


# -- The page for tools that speak HTTP only -------------------------------------------------------


def test_page_is_there_on_tcp_only() -> None:
    for strict, status in ((True, "200"), (False, "405")):
        peer = Peer(strict=strict)
        peer.send(open_get(1), data(1, b"", END_STREAM))
        assert peer.answers()[1][":status"] == status
    peer = Peer(strict=True).send(open_get(1, b"/other"))
    assert peer.answers()[1][":status"] == "404"


def test_page_has_no_body_for_head_and_is_refused_to_other_methods() -> None:
    for method, status in ((b"HEAD", "200"), (b"DELETE", "405"), (b"OPTIONS", "405")):
        fields = ((b":method", method), (b":scheme", b"http"), (b":path", b"/healthz"))
        peer = Peer(strict=True).send(headers(1, plain(*fields), END_HEADERS | END_STREAM))
        frames_sent = peer.read()
        assert [f.kind for f in frames_sent if f.stream_id] == [FrameType.HEADERS]
        assert peer.connection.idle
        peer = Peer(strict=True).send(headers(1, plain(*fields), END_HEADERS | END_STREAM))
        assert peer.answers()[1][":status"] == status


# -- HPACK -----------------------------------------------------------------------------------------


def test_smaller_table_is_acknowledged_in_the_first_block() -> None:
    """RFC 7541 section 4.2: strict decoders end the connection without; once is enough."""
    peer = Peer().send(request(1, b"a"), request(3, b"b", shrink=False))  # the fast path is open
    for _ in range(2):
        peer.send(frames.settings({Setting.HEADER_TABLE_SIZE: 0}))
    peer.read()
    peer.send(request(5, b"c", shrink=False), request(7, b"d", shrink=False))
    blocks = [f.payload for f in peer.read() if f.kind is FrameType.HEADERS]
    assert [block.startswith(b"\x20") for block in blocks] == [True, False, False, False]


def test_table_must_be_emptied_after_our_settings() -> None:
    """RFC 7541 section 4.2, the other way round."""
    block = block_of(shrink=False)
    peer = Peer().send(headers(1, block))
    assert peer.goaway() is ErrorCode.COMPRESSION_ERROR
