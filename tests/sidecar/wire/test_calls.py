"""gRPC over HTTP/2: which calls are served, how messages come, how each call ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.wire import frames
from sidecar.wire.calls import METHODS, Messages, Status, percent
from sidecar.wire.frames import END_HEADERS, END_STREAM, ErrorCode, FrameType
from sidecar.wire.limits import ANSWERED_S
from sidecar.wire.states import CONNECTION, STREAM, Action, ConnectionState, StreamState
from tests.sidecar.wire.peer import (
    ACCESS_LOGS,
    CHECK,
    PROCESS,
    WATCH,
    Peer,
    block_of,
    data,
    frames_of,
    headers,
    literal,
    message,
    plain,
    request,
)

POST = (b":method", b"POST"), (b":scheme", b"http")
GRPC = (b"content-type", b"application/grpc")


def status_of(peer: Peer, stream_id: int = 1) -> str:
    return peer.answers()[stream_id]["grpc-status"]


@pytest.mark.parametrize(
    ("path", "served"),
    [
        *((path, True) for path in METHODS),
        (PROCESS[1:], False),
        (b"/" + PROCESS, False),
        (PROCESS + b"?x", False),
        (PROCESS + b"/", False),
        (PROCESS.lower(), False),
        (b"/x/Y", False),
    ],
)
def test_method_is_served_by_its_exact_path(path: bytes, served: bool) -> None:
    peer = Peer().send(headers(1, plain(*POST, (b":path", path), GRPC)))
    if served:
        assert peer.answers() == {}
    else:
        answer = peer.answers()[1]
        assert answer[":status"] == "200"
        assert answer["grpc-status"] == "12"


@pytest.mark.parametrize(
    ("block", "status"),
    [
        (plain((b":method", b"PUT"), POST[1], (b":path", PROCESS), GRPC), "405"),
        (plain((b":method", b"CONNECT"), (b":authority", b"a:1")), "405"),  # section 8.5
        (plain(*POST, (b":path", PROCESS)), "415"),
        (plain(*POST, (b":path", PROCESS), (b"content-type", b"text/plain")), "415"),
        (plain(*POST, (b":path", PROCESS), (b"content-type", b"application/grpcx")), "415"),
    ],
)
def test_request_that_is_no_call_gets_an_http_status(block: bytes, status: str) -> None:
    peer = Peer().send(headers(1, block))
    assert peer.answers() == {1: {":status": status}}


def test_call_is_served_when_its_content_type_says_more() -> None:
    for kind in (b"application/grpc+proto", b"application/grpc; charset=x"):
        block = plain(*POST, (b":path", PROCESS), (b"content-type", kind))
        peer = Peer().send(headers(1, block), data(1, message(b"x")))
        assert status_of(peer) == "0"


def test_request_is_answered_by_headers_message_and_trailers() -> None:
    peer = Peer().send(request(1, b"hello"))
    head, body, trailers = peer.read()
    assert (head.kind, head.flags) == (FrameType.HEADERS, END_HEADERS)
    assert (body.kind, body.flags, body.payload) == (FrameType.DATA, 0, message(b"hello"))
    assert (trailers.kind, trailers.flags) == (FrameType.HEADERS, END_HEADERS | END_STREAM)


def test_request_without_an_answer_ends_well() -> None:
    """Trailers-Only: Envoy goes on unmodified, and counts no failure."""
    peer = Peer().send(request(1, b"none"))
    (only,) = peer.read()
    assert (only.kind, only.flags) == (FrameType.HEADERS, END_HEADERS | END_STREAM)
    assert status_of(Peer().send(request(1, b"none"))) == "0"
    assert status_of(Peer().send(headers(1, block_of(), END_HEADERS | END_STREAM))) == "0"


def test_message_that_cannot_be_read_ends_its_stream_only() -> None:
    answers = Peer().send(request(1, b"bad", end=True), request(3, b"good")).answers()
    assert answers[1]["grpc-status"] == "3"
    assert answers[1]["grpc-message"] == "odd"
    assert answers[3]["grpc-status"] == "0"


@pytest.mark.parametrize(
    ("encoding", "prefix", "status"),
    [
        (b"", b"\1", Status.INTERNAL),
        (b"identity", b"\1", Status.INTERNAL),
        (b"gzip", b"\1", Status.UNIMPLEMENTED),
        (b"gzip", b"\0", Status.OK),
        (b"", b"\2", Status.INTERNAL),
    ],
)
def test_compressed_message_is_refused(encoding: bytes, prefix: bytes, status: Status) -> None:
    more = [(b"grpc-encoding", encoding)] if encoding else []
    peer = Peer().send(headers(1, block_of(PROCESS, *more)), data(1, prefix + b"\0\0\0\0"))
    answer = peer.answers()[1]
    assert answer["grpc-status"] == str(int(status))
    assert answer.get("grpc-accept-encoding") == (
        "identity" if status is Status.UNIMPLEMENTED else None
    )


@pytest.mark.parametrize("path", [PROCESS, ACCESS_LOGS, CHECK, WATCH])
def test_stream_that_ends_within_a_message_is_an_error(path: bytes) -> None:
    peer = Peer().send(headers(1, block_of(path)), data(1, message(b"hello")[:-1], END_STREAM))
    assert status_of(peer) == "13"


@pytest.mark.parametrize("path", [CHECK, WATCH])
def test_health_call_without_a_request_is_an_error(path: bytes) -> None:
    peer = Peer().send(headers(1, block_of(path), END_HEADERS | END_STREAM))
    assert status_of(peer) == "13"


@pytest.mark.parametrize("text", [b"1", b"123456789S", b"S", b"-1S", b"1s"])
def test_timeout_that_cannot_be_read_is_an_error(text: bytes) -> None:
    peer = Peer().send(headers(1, block_of(PROCESS, (b"grpc-timeout", text))))
    assert status_of(peer) == "13"


def test_health_is_told() -> None:
    for healthy, body in ((True, b"\x08\x01"), (False, b"\x08\x02")):
        peer = Peer()
        peer.served.is_healthy = healthy
        peer.send(request(1, b"", path=CHECK, end=True))
        assert [f.payload for f in peer.read() if f.kind is FrameType.DATA] == [message(body)]
    known = b"\x0a\x2c" + b"envoy.service.ext_proc.v3.ExternalProcessor"[:44]
    known = b"\x0a" + bytes([len(PROCESS) - 9]) + PROCESS[1:-8]
    assert status_of(Peer().send(request(1, known, path=CHECK))) == "0"
    assert status_of(Peer().send(request(1, b"\x0a\x01x", path=CHECK))) == "5"
    assert status_of(Peer().send(request(1, b"\xff", path=CHECK))) == "3"


def test_watch_of_an_unknown_service_waits_and_is_told_nothing_else() -> None:
    """As health.proto asks: the service may come later, a client must not try again and again."""
    peer = Peer().send(request(1, b"\x0a\x01x", path=WATCH, end=True))
    assert [f.payload for f in peer.read() if f.kind is FrameType.DATA] == [message(b"\x08\x03")]
    peer.served.is_healthy = False
    peer.connection.look_at_health()
    assert peer.read() == []
    assert not peer.connection.idle


def test_watcher_is_told_when_health_changes_and_only_then() -> None:
    peer = Peer().send(request(1, b"", path=WATCH, end=True))
    assert [f.kind for f in peer.read()] == [FrameType.HEADERS, FrameType.DATA]
    peer.connection.look_at_health()
    assert peer.read() == []
    peer.served.is_healthy = False
    peer.connection.look_at_health()
    (told,) = peer.read()
    assert (told.payload, told.flags) == (message(b"\x08\x02"), 0)


def test_access_log_is_answered_when_it_has_ended_and_all_is_folded() -> None:
    peer = Peer().send(headers(1, block_of(ACCESS_LOGS)), data(1, message(b"a") + message(b"b")))
    peer.send(data(1, b"", END_STREAM))
    assert peer.served.folding == [(1, b"a", "")]
    peer.connection.folded(1, "name")
    assert peer.served.folding[1:] == [(1, b"b", "name")]
    assert peer.answers() == {}
    peer.connection.folded(1, "name")
    assert status_of(peer) == "0"
    assert peer.connection.idle


def test_access_log_is_folded_to_the_end_when_the_stream_or_connection_goes() -> None:
    for last in (frames.rst_stream(1, 8), data(0, b"")):
        peer = Peer().send(headers(1, block_of(ACCESS_LOGS)))
        peer.send(data(1, message(b"a") + message(b"b")), last)
        assert not peer.connection.idle
        peer.connection.folded(1, "name")
        peer.connection.folded(1, "name")
        assert [content for _, content, _ in peer.served.folding] == [b"a", b"b"]
        assert peer.connection.idle


def test_access_log_that_cannot_be_read_ends_its_stream() -> None:
    from sidecar.wire.calls import PeerError

    peer = Peer().send(headers(1, block_of(ACCESS_LOGS)), data(1, message(b"a") + message(b"b")))
    peer.connection.folded(1, "", PeerError("odd"))
    assert status_of(peer) == "3"
    assert len(peer.served.folding) == 1
    assert peer.connection.idle


def test_trailers_end_a_call_too() -> None:
    end = headers(1, literal(b"x", b"y"), END_HEADERS | END_STREAM)
    peer = Peer().send(headers(1, block_of(ACCESS_LOGS)), end)
    assert status_of(peer) == "0"


def test_call_is_refused_without_reading_on() -> None:
    """What comes after a whole answer is ignored."""
    peer = Peer().send(headers(1, block_of(b"/x/Y")))
    assert [f.kind for f in peer.read()] == [FrameType.HEADERS]
    peer.send(data(1, b"x" * 1_000), frames.rst_stream(1, 8))
    assert peer.read() == []
    peer.send(request(3, b"hello"))
    assert status_of(peer, 3) == "0"


@given(st.lists(st.binary(max_size=50), max_size=8), st.lists(st.integers(1, 20), max_size=30))
def test_messages_are_the_same_however_they_come(contents: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(message(content) for content in contents)
    messages, found, at = Messages(100, encoded=False), [], 0
    for size in [*cuts, len(stream) + 1]:
        messages.add(stream[at : at + size])
        at += size
        while (whole := messages.next()) is not None:
            found.append(whole)
    assert found == contents
    assert messages.held == 0


def test_answered_stream_is_reset_when_the_peer_does_not_end_it() -> None:
    """RFC 9113 section 8.1, but late: a reset beside the answer would race with it."""
    peer = Peer(now_s=100.0).send(request(1, b"x"), request(3, b"x"), frames.rst_stream(3, 2))
    peer.pass_time(0.1)
    assert peer.resets() == {}
    peer.pass_time(ANSWERED_S + 0.1)
    assert peer.resets() == {1: ErrorCode.NO_ERROR}
    peer.send(data(1, b"late"), frames.rst_stream(1, 2)).pass_time(ANSWERED_S + 0.1)
    assert peer.resets() == {}


def test_status_message_is_percent_encoded() -> None:
    assert percent("50% é\n") == b"50%25 %C3%A9%0A"


# -- States ----------------------------------------------------------------------------------------


def test_every_state_says_what_each_frame_means() -> None:
    assert len(STREAM) == len(StreamState)
    assert all(len(row) == 5 for row in STREAM)
    assert len(CONNECTION) == len(ConnectionState)
    # PRIORITY may come in any state (section 5.1); what is late is never fatal.
    assert {row[2] for row in STREAM} == {Action.TAKE}
    for state in (StreamState.CLOSED_BY_US, StreamState.FORGOTTEN):
        assert STREAM[state][3] is Action.DISCARD


def test_stream_that_we_reset_ignores_what_is_on_its_way() -> None:
    """Section 5.1: it counts for windows and header tables, and means nothing."""
    peer = Peer().send(headers(1, block_of()), frames.window_update(1, 0))
    assert peer.resets() == {1: ErrorCode.PROTOCOL_ERROR}
    late = headers(1, block_of(), END_HEADERS | END_STREAM)
    peer.send(data(1, b"x"), late, frames.window_update(1, 0), frames.rst_stream(1, 8))
    assert peer.resets() == {}


def test_bytes_that_come_back_are_frames() -> None:
    """A test of the tests."""
    assert frames_of(frames.goaway(1, 2))[0].payload == b"\0\0\0\1\0\0\0\2"
