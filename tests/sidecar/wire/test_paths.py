"""The fast path and the general path are one: same bytes out, same calls, in any chunking."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.wire import frames
from sidecar.wire.connection import Connection
from sidecar.wire.frames import END_HEADERS, END_STREAM, PREFACE, ErrorCode, FrameType, Setting
from tests.sidecar.wire.peer import (
    CHECK,
    PROCESS,
    Served,
    block_of,
    data,
    frames_of,
    headers,
    literal,
    message,
)

CAPTURE = json.loads(Path(__file__).with_name("envoy_1_40.json").read_text())
PING = frames.frame(FrameType.PING, 0, 0, b"12345678")


class Careful(Connection):
    """A connection without the fast path."""

    def _fast(self) -> tuple[tuple[bytes, ...], int, int, int]:
        return (), 0, 0, 0


def outcome(kind: type[Connection], reads: list[bytes]) -> tuple[bytes, list[bytes], bool]:
    """What a connection sends, and asks its handler, for these reads."""
    served = Served()
    connection = kind(served.process, served.healthy, served.fold, strict=False, now_s=0.0)
    sent = b""
    for read in reads:
        connection.receive(read, 1.0)
        sent += connection.data_to_send()
        while connection.unfinished:
            connection.receive(b"", 1.0)
            sent += connection.data_to_send()
    return sent, served.processed, connection.closed


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    reads, at = [], 0
    for size in sizes:
        reads.append(stream[at : at + size])
        at += size
    return [*reads, stream[at:]]


TRACE = st.binary(min_size=55, max_size=55).map(lambda b: b.hex().encode()[:55])
CONTENT = st.one_of(
    st.sampled_from((b"", b"none", b"bad", b"long" * 20, b"x" * 300, b"y" * 5_000)),
    st.binary(max_size=40),
)


@st.composite
def sessions(draw: st.DrawFn) -> bytes:
    """What a client sends: mostly what Envoy sends, and everything around it."""
    window = draw(st.sampled_from((65_535, 16 * 2**20, 64, 0)))
    out = [PREFACE, frames.settings({Setting.INITIAL_WINDOW_SIZE: window})]
    if draw(st.integers(0, 9)):
        out.append(frames.SETTINGS_ACK)
    out.append(headers(1, block_of()) + data(1, message(b"first")))
    out.append(headers(3, block_of(shrink=False)) + data(3, message(b"second")))
    stream_id, ids = 3, [1, 3]
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.integers(0, 11))
        if kind <= 6:
            stream_id += 2 * draw(st.integers(1, 2))
            ids.append(stream_id)
            out.append(draw(calls(stream_id)))
        elif kind == 7:
            out.append(frames.rst_stream(draw(st.sampled_from(ids)), ErrorCode.INTERNAL_ERROR))
        elif kind == 8:
            target = draw(st.sampled_from((0, *ids)))
            out.append(frames.window_update(target, draw(st.integers(1, 1_000))))
        elif kind == 9:
            late = data(draw(st.sampled_from(ids)), b"late", draw(st.sampled_from((0, END_STREAM))))
            out.append(late)
        elif kind == 10:
            out.append(PING)
        else:
            out.append(frames.settings({Setting.HEADER_TABLE_SIZE: draw(st.integers(0, 5_000))}))
    return b"".join(out)


@st.composite
def calls(draw: st.DrawFn, stream_id: int) -> bytes:
    """One call, in the form that Envoy gives it or in another."""
    path = draw(st.sampled_from((PROCESS, PROCESS, PROCESS, CHECK)))
    more = [(b"traceparent", draw(TRACE))] if draw(st.booleans()) else []
    block = block_of(path, *more, shrink=False)
    content = draw(CONTENT) if path == PROCESS else b""
    body = message(content)
    end = draw(st.sampled_from((0, END_STREAM)))
    shape = draw(st.integers(0, 7))
    if shape == 0:
        middle = draw(st.integers(0, len(body)))
        return (
            headers(stream_id, block)
            + data(stream_id, body[:middle])
            + data(stream_id, body[middle:], end)
        )
    if shape == 1:
        padded = frames.frame(
            FrameType.DATA, frames.PADDED | end, stream_id, b"\3" + body + b"\0\0\0"
        )
        return headers(stream_id, block) + padded
    if shape == 2:
        part = frames.frame(FrameType.CONTINUATION, END_HEADERS, stream_id, block[40:])
        return headers(stream_id, block[:40], 0) + part + data(stream_id, body, end)
    if shape == 3:
        return headers(stream_id, block) + data(stream_id, b"\1" + body[1:], end)
    if shape == 4:
        return headers(stream_id, block) + data(stream_id, body + message(b"another"), end)
    return headers(stream_id, block) + data(stream_id, body, end)


@settings(max_examples=300, deadline=None)
@given(sessions(), st.lists(st.integers(1, 400), max_size=30))
def test_fast_path_does_what_the_general_path_does(session: bytes, sizes: list[int]) -> None:
    fast = outcome(Connection, [session])
    assert fast == outcome(Careful, [session])
    assert fast == outcome(Connection, cut(session, sizes))


def test_fast_path_does_what_the_general_path_does_with_envoys_bytes() -> None:
    for name in ("health", "process"):
        reads = [bytes.fromhex(read) for read in CAPTURE[name]]
        fast = outcome(Connection, reads)
        assert fast == outcome(Careful, reads)
        assert fast == outcome(Connection, [bytes([octet]) for octet in b"".join(reads)])
        assert not fast[2]
        kinds = {frame.kind for frame in frames_of(fast[0])}
        assert FrameType.GOAWAY not in kinds
        assert FrameType.RST_STREAM not in kinds


def test_fast_path_is_taken_for_envoys_bytes() -> None:
    """A test of the tests: otherwise the comparisons say nothing."""
    slow: list[int] = []

    class Watched(Connection):
        def _take_frame(self, data: bytes, at: int, size: int) -> int:
            slow.append(at)
            return super()._take_frame(data, at, size)

    reads = [bytes.fromhex(read) for read in CAPTURE["process"]]
    _, processed, _ = outcome(Watched, reads)
    # Preface, settings and the requests before the prefix is learned: 11 frames.
    assert len(processed) > 40
    assert len(slow) <= 14


def test_fast_path_is_taken_when_envoys_block_says_something_else_behind_the_path() -> None:
    """Another time-out, or an attempt count: neither is learned or decoded anew."""
    served = Served()
    decoded: list[bytes] = []
    connection = Connection(served.process, served.healthy, served.fold, strict=False, now_s=0.0)
    for read in CAPTURE["process"]:
        connection.receive(bytes.fromhex(read), 0.0)
    asked = len(served.processed)
    sent = b"".join(bytes.fromhex(read) for read in CAPTURE["process"])[len(PREFACE) :]
    block = [f.payload for f in frames_of(sent) if f.kind is FrameType.HEADERS][-1]
    connection._heads.decode = decoded.append  # type: ignore[method-assign, assignment]
    for at, odd in enumerate((block[:-1] + b"9", block + literal(b"x-envoy-attempt-count", b"2"))):
        stream_id = 100_001 + 2 * at
        connection.receive(headers(stream_id, odd) + data(stream_id, message(b"again")), 0.0)
    assert served.processed[asked:] == [b"again"] * 2
    assert not decoded
    assert not connection.closed


def test_prefix_is_learned_once_tables_are_empty() -> None:
    served = Served()
    connection = Connection(served.process, served.healthy, served.fold, strict=False, now_s=0.0)
    connection.receive(PREFACE + frames.settings({}), 0.0)
    connection.receive(headers(1, block_of(shrink=False)) + data(1, message(b"a")), 0.0)
    assert not connection._heads.prefixes
    connection.receive(frames.SETTINGS_ACK, 0.0)
    connection.receive(headers(3, block_of()) + data(3, message(b"b")), 0.0)
    assert not connection._heads.prefixes  # the block began by the size update
    connection.receive(headers(5, block_of(shrink=False)) + data(5, message(b"c")), 0.0)
    assert connection._heads.prefixes == (b"\x83\x04" + bytes([len(PROCESS)]) + PROCESS,)
    assert served.processed == [b"a", b"b", b"c"]


def test_prefix_is_not_learned_when_every_block_is_decoded() -> None:
    served = Served()
    connection = Connection(served.process, served.healthy, served.fold, strict=True, now_s=0.0)
    connection.receive(PREFACE + frames.settings({}) + frames.SETTINGS_ACK, 0.0)
    for stream_id in (1, 3, 5):
        block = block_of(shrink=False) + literal(b"x", b"y")
        connection.receive(headers(stream_id, block) + data(stream_id, message(b"a")), 0.0)
    assert not connection._heads.prefixes
    assert served.processed == [b"a"] * 3
