"""What clients send, as bytes: whole sessions built of frames, and their mutations.

Owns the pools and the mutators; every choice is a `random.Random`'s, so that a seed makes the same
bytes again. A session is a list of frames behind the preface, so that mutations stay frames mostly.
"""

from __future__ import annotations

from random import Random
from typing import Final

import hpack

from tests.fuzz.judge import HEADER, PREFACE
from turnout.envoy.ext_proc_pb2 import ProcessingRequest
from turnout.envoy.health_pb2 import HealthCheckRequest

EXT_PROC: Final = b"/envoy.service.ext_proc.v3.ExternalProcessor/Process"
LOGS: Final = b"/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"
CHECK: Final = b"/grpc.health.v1.Health/Check"
WATCH: Final = b"/grpc.health.v1.Health/Watch"
Field = tuple[bytes, bytes]


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return HEADER.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def request_fields(path: bytes, *more: Field) -> list[Field]:
    """The header list of a call."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"turnout_workers"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *more,
    ]


def encoded(
    fields: list[Field], *, table: bool = False, size_zero: bool = False, huffman: bool = True
) -> bytes:
    """A header block; without `table`, literals that are never indexed, as after size 0."""
    encoder = hpack.Encoder()
    if size_zero:
        encoder.header_table_size = 0
    if table:
        return bytes(encoder.encode(fields, huffman=True))
    return bytes(encoder.encode([(n, v, True) for n, v in fields], huffman=huffman))


def _heads() -> list[bytes]:
    """Header blocks, good and bad."""
    odd: list[list[Field]] = [
        request_fields(EXT_PROC, (b"grpc-timeout", b"50m")),
        request_fields(EXT_PROC, (b"grpc-timeout", b"999999999H")),
        request_fields(EXT_PROC, (b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")),
        request_fields(EXT_PROC, (b"content-length", b"7")),
        request_fields(EXT_PROC, (b"content-length", b"x")),
        request_fields(EXT_PROC, (b"grpc-encoding", b"gzip")),
        request_fields(EXT_PROC, (b"grpc-encoding", b"identity")),
        request_fields(EXT_PROC, (b"Upper", b"x")),
        request_fields(EXT_PROC, (b"connection", b"close")),
        request_fields(EXT_PROC, (b":late", b"x")),
        request_fields(EXT_PROC, (b"x", b"a\r\nb")),
        request_fields(EXT_PROC, (b"x", b"y" * 15_000)),
        request_fields(EXT_PROC, (b"x-bin", b"\xff" * 40)),
        request_fields(EXT_PROC + b"/"),
        request_fields(EXT_PROC.lower()),
        request_fields(b"/"),
        request_fields(b""),
        request_fields(EXT_PROC)[1:],
        request_fields(EXT_PROC)[:4],
        [(b":method", b"GET"), *request_fields(b"/healthz")[1:4]],
        [(b":method", b"GET"), *request_fields(EXT_PROC)[1:]],
        [(b"grpc-status", b"0")],
        [],
    ]
    good = [request_fields(path) for path in (EXT_PROC, LOGS, CHECK, WATCH)]
    blocks = [encoded(fields, huffman=False) for fields in good] * 4
    blocks += [encoded(fields, size_zero=True) for fields in good] * 2
    blocks += [encoded(fields, table=True) for fields in good]
    blocks += [encoded(fields, huffman=index % 4 == 0) for index, fields in enumerate(odd)]
    raw = (
        b"\x20", b"\x3f\xe1\x1f", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x80", b"\xbe",
        b"\x00\x83\xff\xff\xff\x00", b"\x3f" + b"\xff" * 20, b"\x83\x04\x7f", b"\x20\x83\x04\x00",
    )  # fmt: skip
    return blocks + list(raw)


def _bodies() -> list[bytes]:
    """gRPC bodies: whole messages, several, halves, lies."""
    request = ProcessingRequest()
    request.request_headers.end_of_stream = True
    for name, value in ((":path", b"/v2"), (":method", b"POST"), ("x-user-id", b"user-1")):
        request.request_headers.headers.headers.add(key=name, raw_value=value)
    whole = request.SerializeToString()
    health = HealthCheckRequest(service="").SerializeToString()
    named = HealthCheckRequest(service="nobody").SerializeToString()
    messages = (whole, whole, whole, b"", health, named, b"\xff\xff", b"x" * 3000)
    bodies = [prefixed(message) for message in messages]
    bodies += [prefixed(whole) * 2, prefixed(whole) + b"\0\0", prefixed(whole)[:3], b""]
    bodies += [b"\x01" + prefixed(whole)[1:], b"\x02" + prefixed(whole)[1:]]
    bodies += [b"\0" + length.to_bytes(4) for length in (65_536, 65_537, 4 << 20, 2**32 - 1)]
    bodies += [prefixed(whole)[:20], prefixed(whole)[20:], b"z" * 16_384, b"z" * 9]
    return bodies


def prefixed(message: bytes) -> bytes:
    """A gRPC message with its prefix."""
    return b"\0" + len(message).to_bytes(4) + message


HEADS: Final = _heads()
BODIES: Final = _bodies()
# Plain mostly: decoding Huffman's code would take most of a long run's time.
LIKELY_HEADS: Final = [
    encoded(request_fields(EXT_PROC), huffman=huffman) for huffman in (False,) * 7 + (True,)
]
LIKELY_BODY: Final = prefixed(b"a request")
CONTROL: Final = (
    frame(4, 0, 0), frame(4, 1, 0), frame(4, 1, 0, b"x"), frame(4, 0, 0, b"\0\4\0\0\0\1"),
    frame(4, 0, 0, b"\0\4\x7f\xff\xff\xff"), frame(4, 0, 0, b"\0\4\0\0\0\0"),
    frame(4, 0, 0, b"\0\4\x80\0\0\0"), frame(4, 0, 0, b"\0\5\0\0\0\0"),
    frame(4, 0, 0, b"\0\2\0\0\0\2"),
    frame(4, 0, 0, b"\0\1\xff\xff\xff\xff"), frame(4, 0, 0, b"\0\x63\0\0\0\1" * 33),
    frame(6, 0, 0, b"12345678"), frame(6, 1, 0, b"12345678"), frame(6, 0, 0, b"1"),
    frame(7, 0, 0, b"\0" * 8), frame(7, 0, 0, b"\0" * 7), frame(8, 0, 0, b"\0\0\0\1"),
    frame(8, 0, 0, b"\x7f\xff\xff\xff"), frame(8, 0, 0, b"\0\0\0\0"), frame(8, 0, 0, b"\0\1\0\0"),
    frame(5, 4, 1, b"\0\0\0\2"), frame(0x63, 0xFF, 5, b"unknown"), frame(9, 4, 1, b"\x82"),
)  # fmt: skip


class Session:
    """Builds one session; the frames in order."""

    def __init__(self, random: Random) -> None:
        """Empty but for the SETTINGS that begin it."""
        self._random = random
        self._next_id = 1
        self.frames: list[bytes] = [CONTROL[0]]

    def add(self) -> None:
        """One more thing that a client may do."""
        random = self._random
        chance = random.random()
        if chance < 0.68:
            self._call()
        elif chance < 0.75:
            self.frames.append(random.choice(CONTROL))
        elif chance < 0.83:
            self.frames.append(frame(3, 0, self._some_id(), random.choice((b"\0\0\0\x08", b"\0"))))
        elif chance < 0.92:
            increment = random.choice((0, 1, 100, 65_535, 2**31 - 1)).to_bytes(4)
            self.frames.append(frame(8, 0, self._some_id(), increment))
        elif chance < 0.95:
            self.frames.append(
                frame(2, 0, self._some_id(), random.choice((b"\0" * 5, b"\0\0\0\1a")))
            )
        else:
            body = random.choice(BODIES)
            self.frames.append(frame(0, random.choice((0, 1)), self._some_id(), body))

    def _some_id(self) -> int:
        """A stream that was opened, mostly."""
        if self._random.random() < 0.9:
            return max(1, self._next_id - 2 * self._random.randint(1, 4))
        return self._random.choice((0, 2, self._next_id, 2**31 - 1))

    def _call(self) -> None:
        random, stream_id = self._random, self._next_id
        self._next_id += 2
        if random.random() < 0.75:
            head, body = random.choice(LIKELY_HEADS), LIKELY_BODY
        else:
            head, body = random.choice(HEADS), random.choice(BODIES)
        self.frames += self._head(stream_id, head, ended=random.random() < 0.05)
        end = random.choice((0, 0, 1))
        if random.random() < 0.1 and len(body) > 1:
            cut = random.randrange(1, len(body))
            self.frames.append(frame(0, 0, stream_id, body[:cut]))
            body = body[cut:]
        if random.random() < 0.1:
            padding = random.choice((0, 1, 255, len(body) % 256))
            self.frames.append(
                frame(0, end | 8, stream_id, bytes([padding]) + body + b"\0" * padding)
            )
        else:
            self.frames.append(frame(0, end, stream_id, body))
        if random.random() < 0.15:
            trailers = random.choice((b"", encoded([(b"x", b"y")]), random.choice(HEADS)))
            self.frames.append(frame(1, 5, stream_id, trailers))
        if random.random() < 0.4:
            self.frames.append(frame(3, 0, stream_id, b"\0\0\0\0"))

    def _head(self, stream_id: int, block: bytes, *, ended: bool) -> list[bytes]:
        random, end = self._random, int(ended)
        if random.random() < 0.1 and len(block) > 2:
            cuts = sorted(random.sample(range(len(block)), min(len(block), random.randint(1, 3))))
            parts = [block[a:b] for a, b in zip([0, *cuts], [*cuts, len(block)], strict=True)]
            middle = [frame(9, 0, stream_id, part) for part in parts[1:-1]]
            return [frame(1, end, stream_id, parts[0]), *middle, frame(9, 4, stream_id, parts[-1])]
        if random.random() < 0.05:
            depends = random.choice((0, stream_id, 1)).to_bytes(4)
            return [frame(1, end | 4 | 0x20, stream_id, depends + b"\x10" + block)]
        if random.random() < 0.05:
            return [frame(1, end | 4 | 8, stream_id, b"\x03" + block + b"\0\0\0")]
        return [frame(1, end | 4, stream_id, block)]


def mutated(random: Random, frames: list[bytes]) -> list[bytes]:
    """A few mutations of frames."""
    frames = list(frames)
    for _ in range(random.choice((0, 0, 1, 1, 2, 4))):
        place = random.randrange(len(frames))
        victim = frames[place]
        kind = random.randrange(8)
        if kind == 0:
            del frames[place]
        elif kind == 1:
            frames.insert(place, victim)
        elif kind == 2:
            other = random.randrange(len(frames))
            frames[place], frames[other] = frames[other], victim
        elif kind == 3 and len(victim) >= 9:
            at = random.choice((0, 1, 2, 3, 4, 5, 8))  # of the frame header
            frames[place] = victim[:at] + bytes([random.randrange(256)]) + victim[at + 1 :]
        elif kind == 4 and len(victim) > 9:
            at = random.randrange(9, len(victim))
            frames[place] = (
                victim[:at] + bytes([victim[at] ^ 1 << random.randrange(8)]) + victim[at + 1 :]
            )
        elif kind == 5 and len(victim) > 9:
            payload = victim[9 : random.randrange(9, len(victim))]
            frames[place] = frame(victim[3], victim[4], int.from_bytes(victim[5:9]), payload)
        elif kind == 6 and len(victim) >= 9:
            kinds = frame(random.randrange(11), random.choice((0, 1, 4, 5, 8, 0x20, 0x2D)), 0)[3:5]
            frames[place] = victim[:3] + kinds + victim[5:]
        else:
            frames[place] = victim + random.randbytes(random.randint(1, 12))
        if not frames:
            return [CONTROL[0]]
    return frames


def split(data: bytes) -> list[bytes]:
    """Bytes as frames; the last may be half a one."""
    frames, at = [], 0
    while at < len(data):
        length = 9 + int.from_bytes(data[at : at + 3])
        frames.append(data[at : at + length])
        at += length
    return frames


def session(random: Random, *, length: int = 12) -> bytes:
    """A whole session, mutated or not."""
    made = Session(random)
    for _ in range(random.randint(1, length)):
        made.add()
    data = PREFACE + b"".join(mutated(random, made.frames))
    if random.random() < 0.1:
        place = random.randrange(len(data))
        data = data[:place] + random.randbytes(random.randint(0, 4)) + data[place + 1 :]
    return data
