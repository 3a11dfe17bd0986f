"""Envoy's access log entries, read.

Owns what an entry means: whose request it was (the stamp), whether it failed, how long it took, and
why it carries no stamp. Refuses messages that do not decode and stamps that are not ours.
"""

from binascii import unhexlify
from collections.abc import Iterator
from typing import Final, NamedTuple

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from turnout.contract import (
    ACCESS_LOG_CALL_STATUS,
    HEADER_SHADOW_OF,
    HEADER_STAMP,
    ROUTE_NAME_PREFIX,
    STAMP_FIELD_SEPARATOR,
    STAMP_SEPARATOR,
    UNIT_HASH_HEX_DIGITS,
)
from turnout.envoy.access_log_pb2 import (
    AccessLogCommon,
    HTTPAccessLogEntry,
    HTTPResponseProperties,
    ResponseFlags,
    StreamAccessLogsMessage,
)

# Envoy's response flags by their short names, as bits.
FLAG_UH: Final = 1 << 0  # no healthy upstream
FLAG_UT: Final = 1 << 1  # upstream request timeout
FLAG_LR: Final = 1 << 2  # local reset
FLAG_UF: Final = 1 << 3  # upstream connection failure
FLAG_UC: Final = 1 << 4  # upstream connection termination
FLAG_UO: Final = 1 << 5  # upstream overflow
FLAG_NC: Final = 1 << 6  # no such cluster
FLAG_URX: Final = 1 << 7  # retries or connection attempts used up
FLAG_DC: Final = 1 << 8  # the client went away
FLAG_DR: Final = 1 << 9  # the client reset its stream

ERROR_FLAGS: Final = FLAG_UH | FLAG_UT | FLAG_LR | FLAG_UF | FLAG_UC | FLAG_UO | FLAG_NC | FLAG_URX
CLIENT_GONE_FLAGS: Final = FLAG_DC | FLAG_DR
_FLAG_FIELDS: Final = (
    ("no_healthy_upstream", FLAG_UH),
    ("upstream_request_timeout", FLAG_UT),
    ("local_reset", FLAG_LR),
    ("upstream_connection_failure", FLAG_UF),
    ("upstream_connection_termination", FLAG_UC),
    ("upstream_overflow", FLAG_UO),
    ("no_cluster_found", FLAG_NC),
    ("upstream_retry_limit_exceeded", FLAG_URX),
    ("downstream_connection_termination", FLAG_DC),
    ("downstream_remote_reset", FLAG_DR),
)
# OK, CANCELLED, INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED,
# FAILED_PRECONDITION, OUT_OF_RANGE, UNAUTHENTICATED: the caller's doing. Others are the server's.
GRPC_STATUS_NO_ERROR: Final = frozenset({0, 1, 3, 5, 6, 7, 9, 11, 16})

# ext_proc's call status where Envoy passed the request on without an answer. 10 is not among them:
# that stream ended with status 0 and no message, which is how a worker says "no stamp".
_UNSTAMPED_REASONS: Final = {4: "timeout", 9: "spurious", 14: "unreachable"}
_CALL_ANSWERED: Final = frozenset({0, 10})
REASON_UNKNOWN: Final = "unknown"
_FORCED: Final = "f"
ASSIGNMENTS_MAX: Final = 16  # a stamp of ours has one entry for each layer
# Times beyond are no times (the year 6429): they would not fit into what is sent up.
START_MS_MAX: Final = 2**47
_EPOCH_MAX: Final = 2**64 - 1
_STRATUM_MAX: Final = 2**32 - 1


class MalformedMessage(ValueError):
    """The bytes are not an encoded StreamAccessLogsMessage."""


class MalformedStamp(ValueError):
    """A stamp or a shadow's marker that no sidecar wrote."""


class Assignment(NamedTuple):
    """One entry of a stamp."""

    experiment: str
    epoch: int
    variant: str
    stratum: int  # 0 = none
    unit_hash: int  # unsigned 64 bits
    forced: bool  # left out of every analysis


class Shadow(NamedTuple):
    """Whom a mirrored copy was for."""

    experiment: str
    epoch: int
    variant: str


class Entry(NamedTuple):
    """One request, as Envoy saw its end."""

    start_ms: int  # Unix time, 0..START_MS_MAX
    latency_ms: float | None  # to the last byte sent downstream; None: it never was
    duration_ms: float  # to the end of the stream, whatever ended it
    upstream_ms: float | None  # to the last byte received from the upstream
    status: int  # HTTP; 0 = none
    flags: int  # FLAG_* bits
    grpc_status: int | None
    stamp: str  # raw, "" = none; see parse_stamp
    shadow_of: str  # raw, "" = not a copy; see parse_shadow
    request_id: str
    route_name: str
    upstream_cluster: str
    call_status: int | None  # of ext_proc, a gRPC code; None = the filter was off


def parse_message(data: bytes) -> tuple[str, list[Entry]]:
    """`read_message`, read to its end."""
    log_name, entries = read_message(data)
    return log_name, list(entries)


def read_message(data: bytes) -> tuple[str, Iterator[Entry]]:
    """Decode one message of an access log stream; its entries are read one by one.

    Reading all of an entry takes some 10 us: a worker folds by `logfold`, which comes here only
    with what it does not understand.

    Returns:
        The log's name and the entries. Envoy names the log in a stream's first message only: in
        later ones the name is "".

    Raises:
        MalformedMessage: The bytes do not decode.
    """
    try:
        message = StreamAccessLogsMessage.FromString(data)
    except DecodeError as error:
        raise MalformedMessage("not an encoded StreamAccessLogsMessage") from error
    return message.identifier.log_name, map(_entry, message.http_logs.log_entry)


def decode_entry(data: bytes) -> Entry:
    """Read one encoded HTTPAccessLogEntry.

    Raises:
        MalformedMessage: The bytes do not decode.
    """
    try:
        return _entry(HTTPAccessLogEntry.FromString(data))
    except DecodeError as error:
        raise MalformedMessage("not an encoded HTTPAccessLogEntry") from error


def flag_bits(data: bytes) -> int:
    """FLAG_* bits of encoded ResponseFlags.

    Raises:
        DecodeError: The bytes do not decode.
    """
    flags = ResponseFlags.FromString(data)
    return sum(bit for name, bit in _FLAG_FIELDS if getattr(flags, name))


def is_client_gone(entry: Entry) -> bool:
    """The client did not wait for the end."""
    return bool(entry.flags & CLIENT_GONE_FLAGS)


def is_error(entry: Entry) -> bool:
    """The upstream, or the way to it, failed. A client that went away is not an error."""
    if entry.flags & CLIENT_GONE_FLAGS:
        return False
    if entry.status >= 500 or entry.flags & ERROR_FLAGS:
        return True
    return entry.grpc_status is not None and entry.grpc_status not in GRPC_STATUS_NO_ERROR


def unstamped_reason(entry: Entry) -> str | None:
    """Why Envoy got no answer from a worker; None when it got one or did not ask."""
    status = entry.call_status
    if entry.stamp or status is None or status in _CALL_ANSWERED:
        return None
    return _UNSTAMPED_REASONS.get(status, REASON_UNKNOWN)


def target_of(entry: Entry) -> str:
    """The target that the route was made for, "" when it is none of ours."""
    prefix, _, rest = entry.route_name.partition(ROUTE_NAME_PREFIX)
    return rest.partition("/")[0] if rest and not prefix else ""


def parse_stamp(stamp: str) -> list[Assignment]:
    """Read the stamp header.

    Raises:
        MalformedStamp: It has not the form that contract.py gives.
    """
    parts = stamp.split(STAMP_SEPARATOR, ASSIGNMENTS_MAX)
    if len(parts) > ASSIGNMENTS_MAX:
        raise MalformedStamp(f"more than {ASSIGNMENTS_MAX} assignments")
    return [parse_assignment(part) for part in parts]


def parse_shadow(marker: str) -> Shadow:
    """Read the header that marks a mirrored copy.

    Raises:
        MalformedStamp: It has not the form that contract.py gives.
    """
    try:
        experiment, epoch, variant = marker.split(STAMP_FIELD_SEPARATOR)
        shadow = Shadow(experiment, _number(epoch, _EPOCH_MAX), variant)
    except ValueError as error:
        raise MalformedStamp(f"not a marker: {marker[:80]!r}") from error
    if not experiment or not variant:
        raise MalformedStamp(f"not a marker: {marker[:80]!r}")
    return shadow


def parse_assignment(part: str) -> Assignment:
    """Read one entry of a stamp.

    Raises:
        MalformedStamp: As `parse_stamp`.
    """
    fields = part.split(STAMP_FIELD_SEPARATOR)
    forced = len(fields) == 6 and fields[5] == _FORCED
    try:
        if len(fields) != 5 and not forced:
            raise ValueError(f"{len(fields)} fields")
        experiment, epoch, variant, stratum, digits = fields[:5]
        if not experiment or not variant or len(digits) != UNIT_HASH_HEX_DIGITS:
            raise ValueError("an empty name or a short hash")
        unit_hash = int.from_bytes(unhexlify(digits))
        numbers = _number(epoch, _EPOCH_MAX), _number(stratum, _STRATUM_MAX)
        return Assignment(experiment, numbers[0], variant, numbers[1], unit_hash, forced)
    except ValueError as error:
        raise MalformedStamp(f"not an assignment: {part[:80]!r}") from error


def _number(text: str, most: int) -> int:
    """A plain decimal of at most 19 digits; int() alone takes signs, blanks and underscores."""
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= most):
        raise ValueError(f"not a number up to {most}: {text[:20]!r}")
    return int(text)


def _entry(entry: HTTPAccessLogEntry) -> Entry:
    common, request, response = entry.common_properties, entry.request, entry.response
    headers = request.request_headers
    start = common.start_time
    call_status = common.custom_tags.get(ACCESS_LOG_CALL_STATUS, "")
    return Entry(
        start_ms=min(max(0, start.seconds * 1000 + start.nanos // 1_000_000), START_MS_MAX),
        latency_ms=_optional_ms(common, "time_to_last_downstream_tx_byte"),
        duration_ms=_ms(common.duration),
        upstream_ms=_optional_ms(common, "time_to_last_upstream_rx_byte"),
        status=response.response_code.value,
        flags=_flags(common) if common.HasField("response_flags") else 0,
        grpc_status=_grpc_status(response),
        stamp=headers.get(HEADER_STAMP, ""),
        shadow_of=headers.get(HEADER_SHADOW_OF, ""),
        request_id=request.request_id,
        route_name=common.route_name,
        upstream_cluster=common.upstream_cluster,
        call_status=int(call_status) if call_status.isdecimal() else None,
    )


def _flags(common: AccessLogCommon) -> int:
    flags = common.response_flags
    return sum(bit for name, bit in _FLAG_FIELDS if getattr(flags, name))


def _grpc_status(response: HTTPResponseProperties) -> int | None:
    status = response.response_trailers.get("grpc-status", "")
    status = status or response.response_headers.get("grpc-status", "")
    return int(status) if status.isdecimal() and len(status) <= 3 else None


def _optional_ms(common: AccessLogCommon, field: str) -> float | None:
    return _ms(getattr(common, field)) if common.HasField(field) else None  # type: ignore[arg-type]


def _ms(duration: Duration) -> float:
    return duration.seconds * 1e3 + duration.nanos / 1e6
