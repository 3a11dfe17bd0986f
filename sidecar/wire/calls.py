"""gRPC over HTTP/2: which methods there are, what answers look like in bytes, how messages end.

Owns paths, statuses, timeouts and message prefixes (grpc/doc/PROTOCOL-HTTP2.md). Refuses streams
and windows: `connection` has them.

All headers that we send are literals without indexing, so their bytes never depend on the
connection and can be made ahead; only the stream id is spliced in.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Final

from google.protobuf.message import DecodeError

from sidecar.wire.frames import END_HEADERS, END_STREAM, WORD, FrameType
from sidecar.wire.heads import Head
from sidecar.wire.limits import (
    HEALTH_BYTES_MAX,
    LOG_BYTES_MAX,
    PREFIX_BYTES,
    PROCESS_BYTES_MAX,
)
from turnout.envoy.health_pb2 import HealthCheckRequest, HealthCheckResponse


class Method(IntEnum):
    """What a stream asks for."""

    PROCESS = 0
    ACCESS_LOGS = 1
    CHECK = 2
    WATCH = 3
    PAGE = 4  # GET /healthz, on TCP
    PAGE_HEAD = 5  # HEAD of the same


class Status(IntEnum):
    """Those of gRPC's status codes that we send."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


EXT_PROC_SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
ACCESS_LOG_SERVICE: Final = "envoy.service.accesslog.v3.AccessLogService"
HEALTH_SERVICE: Final = "grpc.health.v1.Health"
METHODS: Final = {
    f"/{EXT_PROC_SERVICE}/Process".encode(): Method.PROCESS,
    f"/{ACCESS_LOG_SERVICE}/StreamAccessLogs".encode(): Method.ACCESS_LOGS,
    f"/{HEALTH_SERVICE}/Check".encode(): Method.CHECK,
    f"/{HEALTH_SERVICE}/Watch".encode(): Method.WATCH,
}
# In the order of Method.
MESSAGE_BYTES_MAX: Final = (
    PROCESS_BYTES_MAX,
    LOG_BYTES_MAX,
    HEALTH_BYTES_MAX,
    HEALTH_BYTES_MAX,
    0,
    0,
)
PAGE_PATH: Final = b"/healthz"
# h2spec posts to the page that it gets.
_PAGE_METHODS: Final = {b"GET": Method.PAGE, b"POST": Method.PAGE, b"HEAD": Method.PAGE_HEAD}
_CONTENT_TYPE: Final = re.compile(rb"application/grpc([+;].*)?")
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def _literal(name: bytes, value: bytes) -> bytes:
    """A header field as a literal without indexing (RFC 7541 section 6.2.2); both < 127 bytes."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


# 0x88 = :status 200; 0x0f 0x10 = literal without indexing, name content-type (static index 31).
_HEAD_OK: Final = b"\x88\x0f\x10\x10application/grpc"
_TRAILERS_OK: Final = _literal(b"grpc-status", b"0")


class PeerError(ValueError):
    """The peer's message cannot be read; the call ends with INVALID_ARGUMENT."""


class Refused(Exception):
    """A call ends with a status."""

    def __init__(self, status: Status, message: str) -> None:
        """Say which, and why."""
        super().__init__(message)
        self.status = status
        self.message = message

    def block(self, *, alone: bool) -> bytes:
        """Header block that ends the call; `alone`: it is the whole answer (Trailers-Only)."""
        return status_block(self.status, self.message, alone=alone)


class NotGrpc(Refused):
    """The request is HTTP, but no call."""

    def __init__(self, http_status: int) -> None:
        """Answer with an HTTP status."""
        super().__init__(Status.INTERNAL, "")
        self.http_status = http_status

    def block(self, *, alone: bool) -> bytes:
        """Always the whole answer. 0x08 = literal without indexing, name :status (index 8)."""
        assert alone
        return b"\x08\x03" + str(self.http_status).encode()


def status_block(status: Status, message: str, *, alone: bool) -> bytes:
    """Trailers; `alone`: as the only HEADERS of the answer (Trailers-Only)."""
    block = (_HEAD_OK if alone else b"") + _literal(b"grpc-status", str(int(status)).encode())
    if message:
        block += _literal(b"grpc-message", percent(message)[:120])
    if status is Status.UNIMPLEMENTED:
        block += _literal(b"grpc-accept-encoding", b"identity")
    return block


def percent(message: str) -> bytes:
    """Percent-encode a grpc-message: 0x20-0x7E but the percent sign stay plain."""
    return b"".join(
        bytes([octet]) if 0x20 <= octet <= 0x7E and octet != 0x25 else b"%%%02X" % octet
        for octet in message.encode()
    )


class Call:
    """What a request's headers ask for.

    Attributes:
        method: Which.
        timeout_s: How long it may take; 0 = for ever.
        encoded: Whether messages may be compressed.
    """

    __slots__ = ("encoded", "method", "timeout_s")

    def __init__(self, method: Method, *, timeout_s: float = 0.0, encoded: bool = False) -> None:
        self.method = method
        self.timeout_s = timeout_s
        self.encoded = encoded


def call_of(head: Head, *, pages: bool) -> Call:
    """What a request's headers ask for.

    Args:
        head: They.
        pages: The health page is served too.

    Raises:
        Refused: It cannot be served; what to answer.
    """
    if pages and head.path == PAGE_PATH:
        page = _PAGE_METHODS.get(head.method)
        if page is None:
            raise NotGrpc(405)
        return Call(page)
    if head.method != b"POST":
        raise NotGrpc(404 if pages else 405)
    if not _CONTENT_TYPE.fullmatch(head.content_type):
        raise NotGrpc(415)
    # By exact name: '/a/b?x', '//a/b' and 'a/b' are other methods.
    method = METHODS.get(head.path)
    if method is None:
        raise Refused(Status.UNIMPLEMENTED, "unknown method")
    encoded = head.encoding not in (b"", b"identity")
    timeout_s = _timeout_s(head.timeout) if head.timeout else 0.0
    return Call(method, timeout_s=timeout_s, encoded=encoded)


def _timeout_s(text: bytes) -> float:
    match = _TIMEOUT.fullmatch(text)
    if match is None:
        raise Refused(Status.INTERNAL, "malformed grpc-timeout")
    # Zero has passed already; a tick is when it is seen.
    return max(int(match[1]) * _UNIT_S[match[2]], 1e-9)


class Messages:
    """Cut a stream's bytes into messages, whatever frames they came in."""

    __slots__ = ("_buffer", "_bytes_max", "_encoded", "_need")

    def __init__(self, bytes_max: int, *, encoded: bool) -> None:
        """Take messages of up to `bytes_max` bytes."""
        self._buffer = bytearray()
        self._bytes_max = bytes_max
        self._encoded = encoded
        self._need = -1

    @property
    def held(self) -> int:
        """Bytes of the message that is not whole."""
        return len(self._buffer)

    @property
    def missing(self) -> int:
        """Bytes that the message still lacks, 0 = not known or none has begun."""
        return self._need + PREFIX_BYTES - len(self._buffer) if self._need >= 0 else 0

    def add(self, data: bytes) -> None:
        """Add bytes."""
        self._buffer += data

    def next(self) -> bytes | None:
        """The next message that is whole, taken out; None when there is none.

        Raises:
            Refused: A prefix says what we do not take; found before the message is kept.
        """
        buffer = self._buffer
        if self._need < 0:
            if len(buffer) < PREFIX_BYTES:
                return None
            self._need = self._read_prefix(buffer)
        end = PREFIX_BYTES + self._need
        if end > len(buffer):
            return None
        message = bytes(buffer[PREFIX_BYTES:end])
        del buffer[:end]
        self._need = -1
        return message

    def clear(self) -> None:
        """Forget what has come."""
        self._buffer.clear()
        self._need = -1

    def _read_prefix(self, buffer: bytearray) -> int:
        flag = buffer[0]
        if flag == 1 and self._encoded:
            raise Refused(Status.UNIMPLEMENTED, "compression is not supported")
        if flag:
            raise Refused(Status.INTERNAL, "a message flag that must not be")
        need: int = WORD.unpack_from(buffer, 1)[0]
        if need > self._bytes_max:
            raise Refused(Status.RESOURCE_EXHAUSTED, f"a message over {self._bytes_max} bytes")
        return need


def prefixed(message: bytes) -> bytes:
    """A message as it is sent."""
    return b"\0" + WORD.pack(len(message)) + message


def is_ours(request: bytes) -> bool:
    """Whether a health request asks about a service that is here.

    Raises:
        Refused: It is unreadable.
    """
    try:
        service = HealthCheckRequest.FromString(request).service
    except DecodeError as error:
        raise Refused(Status.INVALID_ARGUMENT, "not a HealthCheckRequest") from error
    return service in ("", EXT_PROC_SERVICE)


_SERVING: Final = HealthCheckResponse(status=HealthCheckResponse.SERVING).SerializeToString()
_NOT_SERVING: Final = HealthCheckResponse(
    status=HealthCheckResponse.NOT_SERVING
).SerializeToString()


# What a Watch of another service is told, and told once: no service is added later.
SERVICE_UNKNOWN: Final = HealthCheckResponse(
    status=HealthCheckResponse.SERVICE_UNKNOWN
).SerializeToString()


def health_answer(*, serving: bool) -> bytes:
    """A HealthCheckResponse."""
    return _SERVING if serving else _NOT_SERVING


# -- Answers, made ahead ---------------------------------------------------------------------------

HEADERS_OK: Final = _HEAD_OK
TRAILERS_OK: Final = _TRAILERS_OK
ONLY_OK: Final = _HEAD_OK + _TRAILERS_OK
# Longer answers than this are made when they are sent.
PREBUILT_BYTES_MAX: Final = 2_048


def _start(block: bytes, flags: int) -> bytes:
    """A HEADERS frame's header up to the stream id."""
    return WORD.pack(len(block) << 8 | FrameType.HEADERS) + bytes([flags])


def _middle(length: int) -> bytes:
    return _HEAD_OK + WORD.pack((length + PREFIX_BYTES) << 8 | FrameType.DATA) + b"\0"


# A whole answer is START id MIDDLE id PREFIX message END id TRAILERS_OK; the two in the middle
# depend on the message's length.
ANSWER_START: Final = _start(_HEAD_OK, END_HEADERS)
ANSWER_MIDDLES: Final = [_middle(length) for length in range(PREBUILT_BYTES_MAX)]
ANSWER_PREFIXES: Final = [b"\0" + WORD.pack(length) for length in range(PREBUILT_BYTES_MAX)]
ANSWER_END: Final = _start(_TRAILERS_OK, END_HEADERS | END_STREAM)
# No answer is ONLY_START id ONLY_OK.
ONLY_START: Final = _start(ONLY_OK, END_HEADERS | END_STREAM)
