"""Every cap of `limits`, by the attack it stops; and that what Envoy does is no attack."""

from __future__ import annotations

import pytest

from sidecar.wire import frames
from sidecar.wire.connection import Connection
from sidecar.wire.frames import (
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES_MAX,
    PADDED,
    PREFACE,
    ErrorCode,
    FrameType,
    Setting,
    frame,
)
from sidecar.wire.limits import (
    ALL_BUFFERED_BYTES_MAX,
    ANSWER_S,
    BUFFERED_BYTES_MAX,
    CHORES_PER_TURN,
    CONTINUATIONS_MAX,
    CONTROL_REPLIES_MAX,
    CRUMB_BYTES,
    CRUMBS_BURST,
    EXPIRED_BURST,
    HEADER_BLOCK_S,
    LATE_BURST,
    LATE_FRAME_BYTES,
    LOG_BYTES_MAX,
    MESSAGE_OVERHEAD_BYTES,
    MESSAGE_S,
    NOISE_BASE,
    PINGS_IN_A_ROW_MAX,
    PINGS_WINDOW_S,
    PREFACE_S,
    PROCESS_BYTES_MAX,
    RESETS_BURST,
    RESETS_PER_S,
    SETTINGS_ENTRIES_MAX,
    SETTINGS_MAX,
    STEPS_PER_TURN,
    STREAM_WINDOW,
    STREAMS_MAX,
    UNSENT_BYTES_MAX,
    WINDOW_UPDATES_BASE,
    Bucket,
    Memory,
    Window,
)
from sidecar.wire.streams import Stream
from tests.sidecar.wire.peer import (
    ACCESS_LOGS,
    PROCESS,
    WATCH,
    Peer,
    block_of,
    data,
    headers,
    message,
    request,
)

CALM = ErrorCode.ENHANCE_YOUR_CALM
PING = frame(6, 0, 0, b"12345678")


def opened(stream_id: int) -> bytes:
    return headers(stream_id, block_of())


def count_until_closed(peer: Peer, *parts: bytes) -> int:
    """How many were taken before the connection ended."""
    for taken, part in enumerate(parts):
        if peer.send(part).connection.closed:
            return taken
    raise AssertionError("the connection is still open")


# -- Resets ----------------------------------------------------------------------------------------


def test_connection_ends_when_unanswered_streams_are_reset_too_fast() -> None:
    """CVE-2023-44487."""
    peer = Peer()
    attack = [opened(i) + frames.rst_stream(i, 8) for i in range(1, 1_001, 2)]
    assert count_until_closed(peer, *attack) == RESETS_BURST
    assert peer.goaway() is CALM
    assert peer.connection.idle


def test_resets_are_free_when_the_stream_was_answered() -> None:
    """Envoy ends every stream by RST_STREAM(INTERNAL_ERROR)."""
    peer = Peer()
    for i in range(1, 5_001, 2):
        peer.send(request(i, b"x", shrink=i == 1), frames.rst_stream(i, 2))
    assert peer.resets() == {}
    assert len(peer.served.processed) == 2_500


def test_resets_are_free_when_the_answer_is_on_its_way() -> None:
    """A client that has ended its half and cancels: the reset crosses the answer, of any kind."""
    peer = Peer()
    for i in range(1, 5_001, 2):
        content = b"none" if i % 4 == 1 else b"x"
        peer.send(request(i, content, shrink=i == 1, end=True), frames.rst_stream(i, 8))
    assert not peer.connection.closed


def test_connection_ends_when_calls_have_no_time_again_and_again() -> None:
    """All that are open may run out of time at once; more and more of them is an attack."""
    peer = Peer()
    block = block_of(PROCESS, (b"grpc-timeout", b"1n"))
    ends = 0
    for stream_id in range(1, 2 * EXPIRED_BURST + 1_001, 2):
        peer.send(headers(stream_id, block))
        if stream_id % 1_000 == 999:
            peer.pass_time(0.001)
            if peer.connection.closed:
                break
            ends += len(peer.resets())
    assert EXPIRED_BURST - 500 < ends <= EXPIRED_BURST
    assert peer.connection.fault is CALM


def test_resets_are_free_when_they_are_rare() -> None:
    peer = Peer()
    for i in range(1, 2_001, 2):
        peer.send(opened(i), frames.rst_stream(i, 8)).pass_time(1 / RESETS_PER_S)
    assert not peer.connection.closed


@pytest.mark.parametrize(
    "provoke",
    [
        lambda i: opened(i) + frames.window_update(i, 0),
        lambda i: opened(i) + frames.window_update(i, 2**31 - 1),
        lambda i: headers(i, block_of(), END_HEADERS | END_STREAM) + data(i, b"x"),
        lambda i: (
            headers(i, b"\0\0\0" + bytes([i & 255]) + b"\0" + block_of(), 0x24)
            if i < 256
            else opened(i) + data(i, b"x") + frames.window_update(i, 0)
        ),
        lambda i: headers(i, block_of(PROCESS, (b"A", b"b"))),
    ],
    ids=["zero", "overflow", "after the end", "itself", "malformed"],
)
def test_connection_ends_when_we_are_made_to_reset_too_fast(provoke: object) -> None:
    """CVE-2025-8671, and the like: our resets share the budget."""
    assert callable(provoke)
    peer = Peer()
    attack = [provoke(i) for i in range(1, 2_001, 2)]
    assert count_until_closed(peer, *attack) <= RESETS_BURST
    assert peer.goaway() is CALM


# -- Header blocks ---------------------------------------------------------------------------------


def test_connection_ends_when_a_block_goes_on_for_ever() -> None:
    """CVE-2024-27316: by number, by bytes, and at the first that is empty."""
    part = frame(9, 0, 1, b"x")
    peer = Peer().send(headers(1, block_of(), 0))
    assert count_until_closed(peer, *[part] * 20) == CONTINUATIONS_MAX
    assert peer.goaway() is CALM
    peer = Peer().send(headers(1, block_of(), 0))
    assert count_until_closed(peer, *[frame(9, 0, 1, b"x" * 8_192)] * 20) == 1
    assert peer.goaway() is CALM
    peer = Peer().send(headers(1, block_of(), 0), frame(9, 0, 1, b""))
    assert peer.goaway() is CALM


def test_connection_ends_when_a_block_decodes_to_too_much() -> None:
    """CVE-2016-6581: one large field, and many references to it."""
    bomb = b"\x40\x01a" + b"\x7f\x81\x1e" + b"b" * 4_000 + b"\xbe" * 8_000
    peer = Peer(strict=True).send(headers(1, bomb))
    assert peer.goaway() is CALM


def test_connection_ends_when_a_block_is_slow() -> None:
    peer = Peer().send(headers(1, block_of(), 0)).pass_time(HEADER_BLOCK_S - 1)
    assert not peer.connection.closed
    assert peer.pass_time(1.1).goaway() is CALM


# -- Frames that cost more than they say -----------------------------------------------------------


def test_connection_ends_when_it_is_pinged_too_often() -> None:
    """CVE-2019-9512; a PING now and then, or between requests, is answered."""
    assert count_until_closed(Peer(), *[PING] * 9) == PINGS_IN_A_ROW_MAX
    peer = Peer()
    for _ in range(20):
        peer.send(PING).pass_time(PINGS_WINDOW_S)
    for i in range(1, 41, 2):
        peer.send(PING, request(i, b"x"), PING)
        peer.connection.written()
    assert peer.resets() == {}


def test_pings_are_free_when_each_comes_after_an_answer() -> None:
    """As grpc-go sends them; answers that come late have no request between them."""
    peer = Peer()
    streams = range(1, 41, 2)
    peer.send(*[headers(s, block_of(ACCESS_LOGS, shrink=s == 1)) for s in streams])
    peer.send(*[data(s, message(b"x" * CRUMB_BYTES), END_STREAM) for s in streams])
    for stream_id in streams:
        peer.connection.folded(stream_id, "log")
        peer.send(PING)
    assert not peer.connection.closed


def test_connection_ends_when_settings_come_too_often() -> None:
    """CVE-2019-9515; one was its first."""
    some = frames.settings({Setting.MAX_CONCURRENT_STREAMS: 1})
    peer = Peer()
    assert count_until_closed(peer, *[some] * 40) == SETTINGS_MAX - 1
    assert peer.goaway() is CALM
    many = frame(4, 0, 0, b"\0\3\0\0\0\1" * (SETTINGS_ENTRIES_MAX + 1))
    assert Peer().send(many).goaway() is CALM


def test_connection_ends_when_replies_are_not_read() -> None:
    peer = Peer()
    parts = [request(i, b"x") + PING for i in range(1, 1_001, 2)]
    # The acknowledgement of its SETTINGS was never read either.
    assert count_until_closed(peer, *parts) == CONTROL_REPLIES_MAX - 1
    assert peer.goaway() is CALM


def test_connection_ends_when_data_frames_are_empty() -> None:
    """CVE-2019-9518, padded ones too; one, or the last of a stream, may be."""
    for empty in (data(1, b""), frame(0, PADDED, 1, b"\3\0\0\0")):
        assert count_until_closed(Peer().send(opened(1)), *[empty] * 9) == 1
    peer = Peer().send(opened(1), data(1, b""), data(1, message(b"x")), data(1, b"", END_STREAM))
    assert peer.served.processed == [b"x"]
    assert not peer.connection.closed


@pytest.mark.parametrize(
    "noise",
    [
        frame(2, 0, 1, b"\0\0\0\7\1"),
        frame(0xFE, 0, 0, b"hello"),
        frames.SETTINGS_ACK,
        frame(6, 1, 0, b"12345678"),
        frames.goaway(0, 0),
    ],
    ids=["priority", "unknown", "settings ack", "ping ack", "goaway"],
)
def test_connection_ends_when_frames_say_nothing(noise: bytes) -> None:
    """CVE-2019-9513 and its kin."""
    peer = Peer()
    assert NOISE_BASE - 2 <= count_until_closed(peer, *[noise] * 400) <= NOISE_BASE
    assert peer.goaway() is CALM


def test_connection_ends_when_windows_are_updated_for_nothing() -> None:
    peer = Peer()
    assert count_until_closed(peer, *[frames.window_update(0, 1)] * 400) == WINDOW_UPDATES_BASE
    assert peer.goaway() is CALM
    peer = Peer()
    for i in range(1, 2_001, 2):
        peer.send(request(i, b"x"), *[frames.window_update(0, 1)] * 9, frames.rst_stream(i, 2))
    assert not peer.connection.closed


# -- Time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [b"", PREFACE[:10], PREFACE], ids=["nothing", "part", "preface"])
def test_connection_ends_when_it_does_not_begin(start: bytes) -> None:
    peer = Peer(begin=False)
    peer.read()
    peer.send(start).pass_time(PREFACE_S - 0.1)
    assert not peer.connection.closed
    assert peer.pass_time(0.2).goaway() is ErrorCode.SETTINGS_TIMEOUT


def test_slow_message_ends_its_stream_and_then_the_connection() -> None:
    peer = Peer().send(opened(1), data(1, message(b"x")[:3]), headers(3, block_of(ACCESS_LOGS)))
    peer.pass_time(MESSAGE_S + 0.1)
    assert peer.resets() == {1: ErrorCode.CANCEL}
    peer.send(data(3, message(b"entry")[:3])).pass_time(MESSAGE_S + 0.1)
    assert peer.goaway() is CALM


def test_access_log_may_be_silent_between_messages() -> None:
    peer = Peer().send(headers(1, block_of(ACCESS_LOGS))).pass_time(3_600)
    peer.send(data(1, message(b"entry"))).pass_time(3_600)
    assert peer.resets() == {}


def test_call_ends_when_its_own_time_is_over() -> None:
    """grpc-timeout; the connection has nothing to do with it."""
    peer = Peer().send(headers(1, block_of(ACCESS_LOGS, (b"grpc-timeout", b"1500m"))))
    assert peer.pass_time(1.4).resets() == {}
    assert peer.pass_time(0.2).resets() == {1: ErrorCode.CANCEL}


def test_stream_ends_when_its_answer_is_never_let_through() -> None:
    peer = Peer().send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}), request(1, b"x"))
    assert peer.pass_time(ANSWER_S - 0.1).resets() == {}
    peer.pass_time(0.2)
    assert next(f.kind for f in peer.read()) is FrameType.RST_STREAM


# -- Memory ----------------------------------------------------------------------------------------


def prefix(length: int) -> bytes:
    return b"\0" + length.to_bytes(4, "big")


def feed(peer: Peer, stream_id: int, content: bytes) -> int:
    """Send as the windows allow; how many bytes were let through."""
    allowed, sent = STREAM_WINDOW, 0
    while sent < len(content) and allowed:
        part = content[sent : sent + min(allowed, FRAME_BYTES_MAX)]
        peer.send(data(stream_id, part))
        sent += len(part)
        allowed -= len(part)
        for got in peer.read():
            if got.kind is FrameType.WINDOW_UPDATE and got.stream_id == stream_id:
                allowed += int.from_bytes(got.payload, "big")
    return sent


def test_message_is_refused_by_its_prefix_when_it_is_too_large() -> None:
    for path, limit in ((PROCESS, PROCESS_BYTES_MAX), (ACCESS_LOGS, LOG_BYTES_MAX)):
        peer = Peer().send(headers(1, block_of(path)), data(1, prefix(limit)))
        assert peer.answers() == {}
        peer.send(headers(3, block_of(path)), data(3, prefix(limit + 1)))
        assert peer.answers()[3]["grpc-status"] == "8"
        assert not peer.connection.closed


def test_largest_access_log_comes_through() -> None:
    peer = Peer().send(headers(1, block_of(ACCESS_LOGS)))
    content = message(b"x" * LOG_BYTES_MAX)
    assert feed(peer, 1, content) == len(content)
    ((_, folded, _),) = peer.served.folding
    assert len(folded) == LOG_BYTES_MAX


def test_second_large_access_log_waits_for_the_first() -> None:
    """Two of them must not wait for each other, each with half."""
    peer = Peer().send(headers(1, block_of(ACCESS_LOGS)), headers(3, block_of(ACCESS_LOGS)))
    content = message(b"x" * (LOG_BYTES_MAX - 8))
    first = feed(peer, 1, content[: LOG_BYTES_MAX // 2])
    second = feed(peer, 3, content)
    assert second == STREAM_WINDOW
    rest = content[first:]
    for at in range(0, len(rest), FRAME_BYTES_MAX):
        peer.send(data(1, rest[at : at + FRAME_BYTES_MAX]))
    assert len(peer.served.folding) == 1
    peer.read()
    peer.connection.folded(1, "")
    updates = [f for f in peer.read() if f.kind is FrameType.WINDOW_UPDATE and f.stream_id == 3]
    assert sum(int.from_bytes(f.payload, "big") for f in updates) == len(content) - second
    rest = content[second:]
    for at in range(0, len(rest), FRAME_BYTES_MAX):
        peer.send(data(3, rest[at : at + FRAME_BYTES_MAX]))
    assert len(peer.served.folding) == 2


def test_access_log_is_held_back_while_it_is_folded() -> None:
    """The stream's window is the backpressure: one message is folded, the window's rest waits."""
    peer = Peer().send(headers(1, block_of(ACCESS_LOGS)))
    content = message(b"x" * 10_000) * 100
    sent = feed(peer, 1, content)
    assert sent <= 2 * STREAM_WINDOW
    assert len(peer.served.folding) == 1
    for _ in range(sent // 10_005):
        peer.connection.folded(1, "name")
    assert [name for _, _, name in peer.served.folding] == ["", *["name"] * (sent // 10_005 - 1)]
    assert any(f.stream_id == 1 for f in peer.read())


def test_unfinished_messages_are_refused_when_they_are_too_many() -> None:
    peer = Peer()
    streams = BUFFERED_BYTES_MAX // 60_000 + 2
    for i in range(streams):
        part = prefix(60_001) + b"x" * 60_000
        peer.send(headers(2 * i + 1, block_of()))
        for at in range(0, len(part), FRAME_BYTES_MAX):
            peer.send(data(2 * i + 1, part[at : at + FRAME_BYTES_MAX]))
    assert {a["grpc-status"] for a in peer.answers().values()} == {"8"}
    assert not peer.connection.closed


def test_memory_is_shared_by_all_connections() -> None:
    """Who has a fair share is served on, whoever fills the memory."""
    memory = Memory()
    crowd = [Peer(memory=memory) for _ in range(20)]
    for peer in crowd:
        peer.send(headers(1, block_of(ACCESS_LOGS)))
        feed(peer, 1, message(b"x" * LOG_BYTES_MAX)[:-1])
    assert memory.held_bytes <= ALL_BUFFERED_BYTES_MAX + 20 * STREAM_WINDOW
    modest = Peer(memory=memory)
    modest.send(headers(1, block_of()), data(1, message(b"hello")[:7]))
    modest.send(data(1, message(b"hello")[7:]))
    assert modest.served.processed == [b"hello"]
    for peer in crowd:
        peer.connection.forget()
    assert memory.held_bytes == 0


def test_streams_are_refused_when_answers_are_not_let_through() -> None:
    peer = Peer().send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}))
    count = UNSENT_BYTES_MAX // 20_000 + 1
    for i in range(count + 1):
        peer.send(request(2 * i + 1, b"long" + b"x" * 196))
    assert peer.resets() == {2 * count + 1: ErrorCode.REFUSED_STREAM}
    assert len(peer.served.processed) == count


@pytest.mark.parametrize(
    ("content", "cap"),
    [(b"x", STREAMS_MAX - 1), (b"long" + b"x" * 196, UNSENT_BYTES_MAX // 20_000 + 1)],
)
def test_streams_are_refused_when_answers_are_not_let_through_on_the_fast_path(
    content: bytes, cap: int
) -> None:
    """Each request in a read of its own: the caps are looked up behind each."""
    peer = Peer().send(headers(1, block_of(ACCESS_LOGS)), request(3, b"x", shrink=False))
    peer.send(frames.rst_stream(3, ErrorCode.NO_ERROR))
    peer.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}))
    peer.read()
    refused = 5 + 2 * cap
    for stream_id in range(5, refused + 2, 2):
        peer.send(request(stream_id, content, shrink=False, end=True))
    assert peer.resets() == {refused: ErrorCode.REFUSED_STREAM}
    assert len(peer.served.processed) == 1 + cap


# -- Fairness --------------------------------------------------------------------------------------


def test_others_get_their_turn_when_one_sends_much() -> None:
    peer = Peer().send(request(1, b"x"), request(3, b"x", shrink=False))
    ids = range(5, 5 + 4 * STEPS_PER_TURN, 2)
    many = [request(i, b"x", shrink=False) + frames.rst_stream(i, 2) for i in ids]
    served, connection = peer.served.processed, peer.connection
    connection.receive(b"".join(many), 0.0)
    assert connection.unfinished
    assert len(served) - 2 == STEPS_PER_TURN // 2
    connection.receive(b"", 0.0)
    assert len(served) - 2 == STEPS_PER_TURN
    peer.send()
    assert len(served) - 2 == len(many)


def test_others_get_their_turn_sooner_when_headers_must_be_decoded() -> None:
    peer = Peer()
    connection = peer.connection
    ids = range(1, 4 * CHORES_PER_TURN, 2)
    connection.receive(b"".join(request(i, b"bad", end=True) for i in ids), 0.0)
    assert connection.unfinished
    assert len(peer.served.processed) <= CHORES_PER_TURN


def test_connection_ends_when_data_comes_for_streams_that_have_ended() -> None:
    """Reset by the peer, reset by us, or answered."""
    for end in (frames.rst_stream(1, 8), frames.window_update(1, 0), data(1, message(b"none"))):
        peer = Peer().send(opened(1), end)
        late = data(1, b"x" * FRAME_BYTES_MAX)
        assert count_until_closed(peer, *[late] * 100) == LATE_BURST // FRAME_BYTES_MAX
        assert peer.goaway() is CALM


@pytest.mark.parametrize(("part", "flags"), [(b"x", 0), (b"", END_STREAM)])
def test_connection_ends_when_data_for_streams_that_have_ended_comes_in_small_frames(
    part: bytes, flags: int
) -> None:
    peer = Peer().send(opened(1), frames.window_update(1, 0))
    most = LATE_BURST // LATE_FRAME_BYTES
    assert count_until_closed(peer, *[data(1, part, flags)] * 2 * most) == most
    assert peer.goaway() is CALM


def test_end_of_an_answered_stream_is_free() -> None:
    """Clients other than Envoy end their half after the answer, one empty frame for each."""
    peer = Peer()
    for place in range(2 * LATE_BURST // LATE_FRAME_BYTES):
        stream_id = 2 * place + 1
        peer.send(request(stream_id, b"x", shrink=not place), data(stream_id, b"", END_STREAM))
        assert not peer.connection.closed


def test_connection_ends_when_windows_are_opened_byte_by_byte() -> None:
    """What they let out earns no further ones; the last byte of an answer does."""
    peer = Peer().send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}))
    peer.send(request(1, b"x" * 1_000))
    one = frames.window_update(1, 1) + frames.window_update(0, 1)
    assert count_until_closed(peer, *[one] * 1_000) == WINDOW_UPDATES_BASE // 2
    assert peer.goaway() is CALM


@pytest.mark.parametrize("path", [ACCESS_LOGS, WATCH])
def test_connection_ends_when_messages_say_nothing(path: bytes) -> None:
    """Many in each frame: a frame is no measure of what it costs."""
    peer = Peer().send(headers(1, block_of(path)))
    per_frame = 100
    some = data(1, message(b"") * per_frame)
    taken = count_until_closed(peer, *[some] * CRUMBS_BURST)
    assert taken == CRUMBS_BURST // per_frame
    assert peer.goaway() is CALM


def test_access_log_of_single_entries_is_no_flood() -> None:
    """An Envoy that does not buffer sends each entry as a message."""
    peer = Peer().send(headers(1, block_of(ACCESS_LOGS)))
    for _ in range(3 * CRUMBS_BURST):
        peer.send(data(1, message(b"x" * CRUMB_BYTES)))
        peer.connection.folded(1, "log")
    assert not peer.connection.closed
    assert len(peer.served.folding) == 3 * CRUMBS_BURST


def test_messages_that_wait_are_counted_with_what_each_takes_beside_its_bytes() -> None:
    memory = Memory()
    peer = Peer(memory=memory).send(headers(1, block_of(ACCESS_LOGS)))
    peer.send(data(1, message(b"") * 10))
    assert memory.held_bytes == 10 * MESSAGE_OVERHEAD_BYTES
    for left in range(9, -1, -1):
        peer.connection.folded(1, "")
        assert memory.held_bytes == left * MESSAGE_OVERHEAD_BYTES


def test_who_waits_for_memory_is_looked_at_once_when_a_thousand_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Streams that end one after the other do not make us look at all others each time."""
    peer = Peer()
    peer.send(headers(1, block_of(ACCESS_LOGS)), data(1, prefix(LOG_BYTES_MAX)))
    waiting = range(3, 1_000, 2)
    for stream_id in waiting:
        begun = data(stream_id, prefix(LOG_BYTES_MAX))
        peer.send(headers(stream_id, block_of(ACCESS_LOGS, shrink=False)), begun)
    looks: list[int] = []
    give = Connection._give_window

    def look(connection: Connection, stream: Stream) -> None:
        looks.append(stream.id)
        give(connection, stream)

    monkeypatch.setattr(Connection, "_give_window", look)
    peer.send(frames.rst_stream(1, ErrorCode.CANCEL))
    assert looks == [3, 5]  # one is given what another leaves, the next must wait on
    looks.clear()
    for stream_id in range(7, 207, 2):
        peer.send(frames.rst_stream(stream_id, ErrorCode.CANCEL))
    assert len(looks) == 100
    looks.clear()
    peer.connection.forget()
    assert not looks


def test_connection_ends_when_a_frame_is_slow() -> None:
    """From its first byte, whatever comes of it since."""
    peer = Peer()
    for octet in opened(1)[:8]:
        peer.send(bytes([octet])).pass_time(HEADER_BLOCK_S / 8)
    assert not peer.connection.closed
    assert peer.pass_time(0.1).goaway() is CALM
    peer = Peer().send(data(1, b"x")[:9]).pass_time(MESSAGE_S - 0.1)
    assert not peer.connection.closed
    assert peer.pass_time(0.2).goaway() is CALM


@pytest.mark.parametrize(
    "refused",
    [
        lambda i: request(i, b"bad"),
        lambda i: opened(i) + data(i, b"\1\0\0\0\0"),
        lambda i: opened(i) + data(i, b"\0\xff\xff\xff\xff"),
        lambda i: request(i, b"x", path=b"/x/Y"),
    ],
    ids=["unreadable", "flag", "announced", "unknown"],
)
def test_connection_ends_when_calls_must_be_refused_too_fast(refused: object) -> None:
    assert callable(refused)
    peer = Peer()
    assert count_until_closed(peer, *[refused(i) for i in range(1, 1_001, 2)]) == RESETS_BURST
    assert peer.goaway() is CALM


def test_buckets_and_windows_count() -> None:
    bucket = Bucket(2, 1.0)
    assert [bucket.take(10.0) for _ in range(3)] == [True, True, False]
    assert bucket.take(12.0)
    window = Window(2, 10.0)
    assert [window.take(1.0) for _ in range(3)] == [True, True, False]
    assert not window.take(11.0)
    assert window.take(11.1)
