"""The attacks: what each sends, and what a server must do about it.

Owns the hostile bytes. Each attack is a function of an Attacker that sends until it is stopped: the
server ends the connection, or the attacker's bounds are reached. Numbers are for tests and tables.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from enum import Enum
from itertools import repeat
from typing import Final, NamedTuple

from sidecar.wire.limits import LOG_BYTES_MAX
from tests.conformance.attacker import Attacker
from tests.conformance.frames import (
    ACCESS_LOGS_BLOCK,
    ACKNOWLEDGED,
    CHECK_BLOCK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FIRST,
    FRAME_BYTES_MAX,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW,
    OPENING,
    PADDED,
    PING,
    PREFACE,
    PRIORITISED,
    PRIORITY,
    PROCESS_BLOCK,
    REQUEST,
    SETTINGS,
    WINDOW_MAX,
    data,
    frame,
    head,
    literal,
    message,
    odd,
    open_stream,
    request_block,
    rst,
    settings,
    window_update,
)
from tests.integration.extproc import CHECK

CHUNK_BYTES: Final = 32_768
WATCH: Final = CHECK.replace("Check", "Watch")
PREFACE_S: Final = 5.0
BLOCK_S: Final = 5.0
MESSAGE_S: Final = 10.0


class End(Enum):
    """What must become of the connection."""

    CLOSED = "closed"  # within 1 s or 1 MB
    DEADLINE = "deadline"  # within the attack's deadline + 1 s
    HELD = "held"  # closed, or nothing more is read from it
    SERVED = "served"  # it is within its rights; it must only stay cheap
    WORK = "work"  # ordinary requests, as many as it can: nobody else may starve
    CROWD = "crowd"  # many connections, one after the other or at once: memory is for all of them


class Attack(NamedTuple):
    """One attack.

    Attributes:
        number: Its number.
        name: What it does.
        run: Sends it.
        end: What must become of it.
        deadline_s: Of the server, for End.DEADLINE.
    """

    number: int
    name: str
    run: Callable[[Attacker], None]
    end: End
    deadline_s: float = 0.0


def chunks(parts: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in larger pieces."""
    piece = bytearray()
    for part in parts:
        piece += part
        if len(piece) >= CHUNK_BYTES:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)


def per_stream(
    make: Callable[[int], bytes], opening: bytes = OPENING
) -> Callable[[Attacker], None]:
    """The same on stream after stream."""

    def run(attacker: Attacker) -> None:
        attacker.open(opening)
        attacker.flood(chunks(make(stream) for stream in odd()))

    return run


def again(one: bytes, *, first: bytes = b"", deaf: bool = False) -> Callable[[Attacker], None]:
    """The same frames again and again, after some others."""

    def run(attacker: Attacker) -> None:
        attacker.open()
        attacker.write(first)
        attacker.deaf = deaf
        attacker.flood(repeat(one * max(1, CHUNK_BYTES // len(one))))

    return run


def hold(data: bytes, *, opening: bytes = OPENING) -> Callable[[Attacker], None]:
    """Send something and then nothing."""

    def run(attacker: Attacker) -> None:
        if opening:
            attacker.open(opening)
        attacker.write(data)
        attacker.idle(60.0)

    return run


def dripped(
    data: bytes, *, first: bytes = b"", opening: bytes = OPENING
) -> Callable[[Attacker], None]:
    """Send something, byte by byte, after something else."""

    def run(attacker: Attacker) -> None:
        if opening:
            attacker.open(opening)
        attacker.write(first)
        attacker.drip(data, 0.4)

    return run


OPENED: Final = open_stream(FIRST, PROCESS_BLOCK)
UNENDED: Final = frame(HEADERS, 0, FIRST, PROCESS_BLOCK)
ENDED: Final = END_HEADERS | END_STREAM
MANY_HEADERS: Final = literal(b"a", b"b" * 100) * (FRAME_BYTES_MAX // 106)


def _open(stream: int, *more: tuple[bytes, bytes], flags: int = 0) -> bytes:
    block = PROCESS_BLOCK + b"".join(literal(*one) for one in more)
    return open_stream(stream, block, flags=flags)


def _self_priority(stream: int) -> bytes:
    dependency = struct.pack(">IB", stream, 16)
    return frame(HEADERS, ENDED | PRIORITISED, stream, dependency + PROCESS_BLOCK)


def _bomb(attacker: Attacker) -> None:
    """A 4 KB entry in the table, then one byte for each of its copies (CVE-2016-6581)."""
    # Before the server's SETTINGS are acknowledged, the table has 4,096 bytes.
    entry = b"\x40\x01a\x7f" + b"\xd1\x1e" + b"b" * (127 + 0x51 + (0x1E << 7))
    block = PROCESS_BLOCK + entry + b"\xbe" * 8_000
    attacker.write(OPENING)
    attacker.flood(chunks(open_stream(stream, block, flags=END_STREAM) for stream in odd()))


def _churn(attacker: Attacker) -> None:
    """Inserts into the table without end: each costs an eviction."""
    attacker.open()
    block = PROCESS_BLOCK + b"\x40\x01a\x01b" * 2_500
    attacker.flood(chunks(open_stream(stream, block, flags=END_STREAM) for stream in odd()))


def _resize(attacker: Attacker) -> None:
    """Move every open stream's window, again and again."""
    attacker.open()
    attacker.write(
        b"".join(open_stream(stream, PROCESS_BLOCK) for stream in range(FIRST, 1_801, 2))
    )
    both = settings((INITIAL_WINDOW, 1)) + settings((INITIAL_WINDOW, 2**20))
    attacker.flood(repeat(both * 600))


def _watchers(attacker: Attacker) -> None:
    """As many streams as are allowed that wait for news about health."""
    attacker.open()
    for stream in range(FIRST, 2_001, 2):
        attacker.write(
            open_stream(stream, request_block(WATCH)) + data(stream, message(b""), flags=1)
        )
    attacker.idle(1.0)


def _sleepers(attacker: Attacker) -> None:
    """As many streams as are allowed on which nothing comes."""
    attacker.open()
    attacker.write(
        b"".join(open_stream(stream, PROCESS_BLOCK) for stream in range(FIRST, 2_001, 2))
    )
    attacker.idle(1.0)


def _crowd(attacker: Attacker) -> None:
    """Many more connections than one Envoy needs."""
    attacker.open()
    attacker.crowd(200)
    attacker.idle(1.0)


def returning(flood: Callable[[Attacker], None]) -> Callable[[Attacker], None]:
    """The same on connection after connection."""

    def run(attacker: Attacker) -> None:
        attacker.returning(lambda: flood(attacker))

    return run


def _partial(stream: int) -> bytes:
    """Most of a message as large as is allowed."""
    body = data(stream, message(b"x" * 16_000, length=60_000)) + data(stream, b"x" * 16_000) * 2
    return open_stream(stream, PROCESS_BLOCK) + body


def _partial_log(stream: int) -> bytes:
    """A quarter of what a stream's window lets in of a log as large as is allowed."""
    first = message(b"x" * 16_000, length=LOG_BYTES_MAX)
    body = data(stream, first) + data(stream, b"x" * 16_000)
    return open_stream(stream, ACCESS_LOGS_BLOCK) + body


def _partial_logs(attacker: Attacker) -> None:
    """The same on 50 connections."""
    attacker.open()
    logs = b"".join(_partial_log(stream) for stream in range(FIRST, FIRST + 2 * 120, 2))
    attacker.crowd(50, ACKNOWLEDGED + logs)
    attacker.idle(0.5)


def _crumbs(stream: int) -> bytes:
    """An access log of 128 KiB in messages of two bytes."""
    full = message(b"\x12\0") * (FRAME_BYTES_MAX // 7)
    return open_stream(stream, ACCESS_LOGS_BLOCK) + data(stream, full) * 8


def _entries(attacker: Attacker) -> None:
    """Access logs on 500 streams, each message one entry of its own."""
    attacker.open()
    entry = b"\x12\x81\x01\x0a\x7f" + b"\x1a\x7d\x2a\x7b" + b"x" * 123
    full = message(entry) * (FRAME_BYTES_MAX // (len(entry) + 5))
    streams = range(FIRST, FIRST + 1_000, 2)
    attacker.write(b"".join(open_stream(s, ACCESS_LOGS_BLOCK) for s in streams))
    attacker.flood(chunks(data(s, full) for _ in range(7) for s in streams))


def _trickle(attacker: Attacker) -> None:
    """Answers that wait for their streams' windows, beside a connection's that opens and opens."""
    attacker.open(NO_WINDOW)
    streams = range(FIRST, FIRST + 1_000, 2)
    attacker.write(b"".join(map(_asked, streams)))
    bits = (window_update(s, 1) + window_update(0, 1) * 9 for _ in repeat(0) for s in streams)
    attacker.flood(chunks(bits))


def _one_by_one(attacker: Attacker) -> None:
    """Where reads end must not matter."""
    attacker.open(NO_WINDOW)
    attacker.flood(_asked(stream) for stream in odd())


def _dribble(stream: int) -> bytes:
    """A message as large as is allowed, a byte in each frame."""
    body = message(b"x" * 60_000)
    return open_stream(stream, PROCESS_BLOCK) + b"".join(
        data(stream, body[at : at + 1]) for at in range(len(body))
    )


def _huge(stream: int) -> bytes:
    return open_stream(stream, PROCESS_BLOCK) + data(stream, message(b"x" * 100, length=2**32 - 1))


def _asked(stream: int) -> bytes:
    return open_stream(stream, PROCESS_BLOCK) + data(stream, REQUEST)


def _checked(stream: int) -> bytes:
    return open_stream(stream, CHECK_BLOCK) + data(stream, message(b""), flags=END_STREAM)


def _deaf(make: Callable[[int], bytes], opening: bytes = OPENING) -> Callable[[Attacker], None]:
    def run(attacker: Attacker) -> None:
        attacker.open(opening)
        attacker.deaf = True
        attacker.flood(chunks(make(stream) for stream in odd()))

    return run


NO_WINDOW: Final = PREFACE + settings((INITIAL_WINDOW, 0))
FULL: Final = b"x" * FRAME_BYTES_MAX
PING_FRAME: Final = frame(PING, payload=b"turnout!")
C, S = End.CLOSED, End.DEADLINE
_LIST: Final[tuple[tuple[str, Callable[[Attacker], None], End, float], ...]] = (
    # Rapid reset, CVE-2023-44487.
    ("rapid reset", per_stream(lambda s: _open(s) + rst(s)), C, 0),
    ("rapid reset of half a message",
     per_stream(lambda s: _open(s) + data(s, REQUEST[:20]) + rst(s)), C, 0),
    # MadeYouReset, CVE-2025-8671: the server is made to reset.
    ("made to reset: WINDOW_UPDATE of 0",
     per_stream(lambda s: _open(s) + window_update(s, 0)), C, 0),
    ("made to reset: window overflow",
     per_stream(lambda s: _open(s) + window_update(s, WINDOW_MAX)), C, 0),
    ("made to reset: HEADERS after END_STREAM",
     per_stream(lambda s: _open(s, flags=END_STREAM) + _open(s, flags=END_STREAM)), C, 0),
    ("made to reset: DATA after END_STREAM",
     per_stream(lambda s: _open(s, flags=END_STREAM) + data(s, b"x")), C, 0),
    ("made to reset: PRIORITY of 4 bytes",
     per_stream(lambda s: _open(s) + frame(PRIORITY, 0, s, b"\0\0\0\0")), C, 0),
    ("made to reset: PRIORITY on itself",
     per_stream(lambda s: _open(s) + frame(PRIORITY, 0, s, struct.pack(">IB", s, 16))), C, 0),
    ("made to reset: HEADERS that depend on themselves", per_stream(_self_priority), C, 0),
    ("made to reset: upper-case header",
     per_stream(lambda s: _open(s, (b"Bad", b"x"), flags=END_STREAM)), C, 0),
    ("made to reset: wrong content-length",
     per_stream(lambda s: _open(s, (b"content-length", b"9")) + data(s, b"x", flags=1)), C, 0),
    # CONTINUATION, CVE-2024-27316, CVE-2024-30255.
    ("CONTINUATION flood",
     again(frame(CONTINUATION, 0, FIRST, MANY_HEADERS), first=UNENDED), C, 0),
    ("empty CONTINUATION flood",
     again(frame(CONTINUATION, 0, FIRST), first=UNENDED), C, 0),
    ("CONTINUATION of one byte flood",
     again(frame(CONTINUATION, 0, FIRST, b"\x82"), first=UNENDED), C, 0),
    # Control frames, CVE-2019-9512, -9515.
    ("PING flood", again(PING_FRAME), C, 0),
    ("PING flood, unread", again(PING_FRAME, deaf=True), C, 0),
    ("PING flood beside requests", per_stream(lambda s: _asked(s) + PING_FRAME * 20), C, 0),
    ("SETTINGS flood", again(settings()), C, 0),
    ("SETTINGS flood, unread", again(settings(), deaf=True), C, 0),
    ("SETTINGS of 2,000 entries", again(settings(*[(0x99, 1)] * 2_000)), C, 0),
    ("SETTINGS that move 900 windows", _resize, C, 0),
    ("SETTINGS ACK flood", again(frame(SETTINGS, 1)), C, 0),
    # CVE-2019-9518 and its relatives.
    ("empty DATA flood", again(frame(DATA, 0, FIRST), first=OPENED), C, 0),
    ("padded empty DATA flood",
     again(frame(DATA, PADDED, FIRST, b"\xff" + bytes(255)), first=OPENED), C, 0),
    ("PRIORITY flood", again(frame(PRIORITY, 0, FIRST, bytes(5)), first=OPENED), C, 0),
    ("PRIORITY flood on idle streams",
     per_stream(lambda s: frame(PRIORITY, 0, s, bytes(5))), C, 0),
    ("WINDOW_UPDATE flood, connection", again(window_update(0, 1)), C, 0),
    ("WINDOW_UPDATE flood, stream", again(window_update(FIRST, 1), first=OPENED), C, 0),
    ("RST_STREAM flood on one stream", again(rst(FIRST), first=OPENED), C, 0),
    ("GOAWAY flood", again(frame(GOAWAY, 0, 0, bytes(8))), C, 0),
    ("unknown frame flood", again(frame(0x42, 0, 0)), C, 0),
    ("DATA flood on a stream that ended",
     again(data(FIRST, FULL), first=OPENED + rst(FIRST)), C, 0),
    # HPACK, CVE-2016-6581, CVE-2019-9516.
    ("HPACK bomb", _bomb, C, 0),
    ("HPACK table churn", _churn, C, 0),
    ("headers without name or value",
     per_stream(lambda s: open_stream(s, PROCESS_BLOCK + b"\0\0\0" * 5_000)), C, 0),
    ("header list too large", per_stream(lambda s: open_stream(s, b"\x82" * 16_000)), C, 0),
    # Messages.
    ("message of 4 GiB announced", per_stream(_huge), C, 0),
    ("message of 4 GiB, sent",
     again(data(FIRST, FULL), first=OPENED + data(FIRST, message(b"x", length=2**32 - 1))), C, 0),
    ("unfinished messages on every stream", per_stream(_partial), C, 0),
    ("unfinished logs on every stream", per_stream(_partial_log), C, 0),
    ("unfinished logs on 50 connections", _partial_logs, End.CROWD, 0),
    ("unreadable messages", per_stream(lambda s: _open(s) + data(s, message(b"\xff" * 9))), C, 0),
    ("compressed messages", per_stream(lambda s: _open(s) + data(s, message(b"x", flag=1))), C, 0),
    # Streams.
    ("too many streams", per_stream(_open), C, 0),
    ("requests, answers unread", _deaf(_asked), End.HELD, 0),
    ("requests, answers unread, reset", _deaf(lambda s: _asked(s) + rst(s)), End.HELD, 0),
    ("requests without window for an answer", per_stream(_asked, NO_WINDOW), End.HELD, 0),
    ("1,000 streams that wait", _sleepers, End.SERVED, 0),
    ("1,000 health watches", _watchers, End.SERVED, 0),
    ("requests as fast as they go", per_stream(lambda s: _asked(s) + rst(s)), End.WORK, 0),
    ("health checks as fast as they go", per_stream(_checked), End.WORK, 0),
    ("rapid reset, on connection after connection",
     returning(per_stream(lambda s: _open(s) + rst(s))), End.CROWD, 0),
    ("PING flood, on connection after connection", returning(again(PING_FRAME)), End.CROWD, 0),
    ("200 connections", _crowd, End.CROWD, 0),
    # No preface at all.
    ("HTTP/1.1", lambda a: a.flood(repeat(b"POST / HTTP/1.1\r\nhost: a\r\n\r\n" * 1_000)), C, 0),
    ("TLS", lambda a: a.flood(repeat(b"\x16\x03\x01\x02\x00" + bytes(1_000))), C, 0),
    # Slow ones.
    ("connection without a byte", hold(b"", opening=b""), S, PREFACE_S),
    ("slow preface", dripped(PREFACE, opening=b""), S, PREFACE_S),
    ("preface without SETTINGS", hold(PREFACE, opening=b""), S, PREFACE_S),
    ("slow HEADERS", dripped(open_stream(FIRST, PROCESS_BLOCK)), S, BLOCK_S),
    ("HEADERS without an end", hold(UNENDED), S, BLOCK_S),
    ("slow CONTINUATION",
     dripped(frame(CONTINUATION, 0, FIRST, b"\x82" * 90), first=UNENDED),
     S, BLOCK_S),
    ("slow message", dripped(data(FIRST, REQUEST), first=OPENED), S, MESSAGE_S),
    ("half a message", hold(OPENED + data(FIRST, REQUEST[:20])), S, MESSAGE_S),
    ("half a frame", hold(OPENED + head(100, DATA, 0, FIRST) + REQUEST[:20]), S, MESSAGE_S),
    # Small things, each cheap to send.
    ("DATA of one byte on a stream that ended",
     again(data(FIRST, b"x"), first=OPENED + rst(FIRST)), C, 0),
    ("empty DATA that ends a stream that was reset",
     again(data(FIRST, b"", flags=END_STREAM), first=OPENED + window_update(FIRST, 0)), C, 0),
    ("empty access-log messages",
     again(data(FIRST, message(b"") * 3_000), first=open_stream(FIRST, ACCESS_LOGS_BLOCK)), C, 0),
    ("small access-log messages on every stream", per_stream(_crumbs), C, 0),
    ("messages on a health watch",
     again(data(FIRST, message(b"") * 3_000), first=open_stream(FIRST, request_block(WATCH))),
     C, 0),
    ("windows opened byte by byte", _trickle, C, 0),
    ("messages sent byte by byte", per_stream(_dribble), End.WORK, 0),
    ("calls without time",
     per_stream(lambda s: _open(s, (b"grpc-timeout", b"1n")) + data(s, REQUEST[:20])), C, 0),
    ("requests without window, each in a write of its own", _one_by_one, End.HELD, 0),
    ("access-log entries on 500 streams", _entries, End.WORK, 0),
)  # fmt: skip
ATTACKS: Final = tuple(Attack(i, *one) for i, one in enumerate(_LIST, start=1))
