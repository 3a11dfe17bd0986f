"""Messages of an access log, folded in one pass.

Owns the short way of the common entry: a served request with one well-formed stamp or several. It
looks at the few fields it needs in a lean message and counts in prepared lanes. Refuses to decide
what an entry means: what it does not recognise at once is read whole by `accesslog` and counted by
`Fold.add`, and whatever it counts itself `Fold.add` would have counted the same.
"""

from binascii import unhexlify
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import ceil, log
from typing import Final

import xxhash
from google.protobuf.message import DecodeError

from sidecar.accesslog import (
    ASSIGNMENTS_MAX,
    CLIENT_GONE_FLAGS,
    ERROR_FLAGS,
    GRPC_STATUS_NO_ERROR,
    START_MS_MAX,
    MalformedMessage,
    MalformedStamp,
    decode_entry,
    flag_bits,
    parse_assignment,
)
from sidecar.fold import BUCKET_MS, Fold, Lane
from sidecar.increments import LOG_GAMMA
from turnout.contract import (
    ACCESS_LOG_SHADOW,
    HEADER_REQUEST_ID,
    HEADER_STAMP,
    LATENCY_MIN_MS,
    STAMP_SEPARATOR,
    UNIT_BUCKET_SHIFT,
    UNIT_HASH_HEX_DIGITS,
)
from turnout.envoy.access_log_lean_pb2 import LeanAccessLogsMessage, LeanEntry
from turnout.envoy.access_log_pb2 import StreamAccessLogsMessage

ENTRIES_AT_ONCE: Final = 64  # at most 0.3 ms on the short way, 1 ms on the long one
LANES_MAX: Final = 1_024  # arms of one take; those beyond go the long way


def _map_key(name: str) -> bytes:
    """How an entry of a map begins on the wire: its key, and the tag of its value."""
    return b"\n" + bytes((len(name),)) + name.encode() + b"\x12"


_STAMP: Final = _map_key(HEADER_STAMP)
_REQUEST_ID: Final = _map_key(HEADER_REQUEST_ID)
_GRPC_STATUS: Final = _map_key("grpc-status")
_SEPARATOR: Final = STAMP_SEPARATOR.encode()
_DIGITS: Final = UNIT_HASH_HEX_DIGITS

Given = Sequence[tuple[Lane, bytes]]  # a lane and the unit hash, 8 bytes, big endian


def fold_message(fold: Fold, data: bytes, log_name: str) -> tuple[str, Iterator[None]]:
    """Decode one message of an access log stream; its entries are folded step by step.

    A message may hold thousands (1.1 MB was seen after an outage): a worker that must answer
    requests meanwhile takes one step at a time.

    Args:
        fold: Where to count.
        data: The encoded message.
        log_name: The log's name as the stream's earlier messages gave it.

    Returns:
        The log's name, and an iterator that folds ENTRIES_AT_ONCE entries at each step. It raises
        MalformedMessage when it comes to an entry that does not decode.

    Raises:
        MalformedMessage: The bytes do not decode.
    """
    try:
        message = LeanAccessLogsMessage.FromString(data)
        if message.identifier:
            told = b"".join(message.identifier)
            identifier = StreamAccessLogsMessage.Identifier.FromString(told)
            log_name = identifier.log_name or log_name
    except DecodeError as error:
        raise MalformedMessage("not an encoded StreamAccessLogsMessage") from error
    return log_name, _steps(fold, message, shadow=log_name == ACCESS_LOG_SHADOW)


def _steps(fold: Fold, message: LeanAccessLogsMessage, *, shadow: bool) -> Iterator[None]:
    entries = message.http_logs.log_entry
    for start in range(0, len(entries), ENTRIES_AT_ONCE):
        some = entries[start : start + ENTRIES_AT_ONCE]
        if shadow or fold.room() < len(some) * ASSIGNMENTS_MAX:
            for entry in some:
                _add(fold, entry, shadow=shadow)
        else:
            _fold_served(fold, some)
        yield


def _add(fold: Fold, entry: LeanEntry, *, shadow: bool) -> None:
    """The long way. The lean message has kept what it does not know, so nothing is missing."""
    fold.add(decode_entry(entry.SerializeToString()), shadow=shadow)


def _fold_served(fold: Fold, entries: Sequence[LeanEntry]) -> None:
    """Fold entries of primaries: one function, because each call would cost a tenth of an entry."""
    lanes, hashed = fold.lanes, xxhash.xxh3_64_intdigest
    added = repeated = 0
    for entry in entries:
        common, request, response = entry.common_properties, entry.request, entry.response
        time = common.start_time
        start_ms = time.seconds * 1000 + time.nanos // 1_000_000
        time = common.time_to_last_downstream_tx_byte
        latency_ms = time.seconds * 1e3 + time.nanos / 1e6
        request_hash = hashed(request.request_id)
        given = _given(fold, lanes, request.request_headers)
        if (
            not given
            or latency_ms < LATENCY_MIN_MS
            or not 0 <= start_ms <= START_MS_MAX
            or not request.request_id
        ):
            _add(fold, entry, shadow=False)
            continue
        status = response.response_code.value
        flags = common.response_flags
        trailers, headers = response.response_trailers, response.response_headers
        good = status < 400 and not flags and not trailers and not headers
        failed = gone = False
        if not good:
            bits, grpc_status = _bits(flags), _grpc_status(trailers, headers)
            if bits < 0 or grpc_status < 0:
                _add(fold, entry, shadow=False)
                continue
            gone = bool(bits & CLIENT_GONE_FLAGS)
            failed = not gone and (
                status >= 500 or bool(bits & ERROR_FLAGS) or grpc_status not in GRPC_STATUS_NO_ERROR
            )
            good = not failed and not gone and status < 400
        for lane, unit in given:
            unit_hash = int.from_bytes(unit)
            seen = lane.seen
            if request_hash in seen.current or request_hash in seen.older:
                repeated += 1
            else:
                added += 1
                seen.current.add(request_hash)
                rows = lane.rows
                rows.times_ms.append(start_ms)
                rows.units.append(unit_hash)
                rows.requests.append(request_hash)
            if start_ms // BUCKET_MS == lane.bucket:
                counts = lane.counts
            else:
                counts = fold.turn(lane, start_ms)
            if good and latency_ms <= lane.limit_ms:
                counts.requests += 1
                lane.units[unit_hash >> UNIT_BUCKET_SHIFT] += 1
                index = ceil(log(latency_ms) / LOG_GAMMA)
                bins = counts.latency
                bins[index] = bins.get(index, 0) + 1
                counts.latency_sum_ms += latency_ms
            else:
                fold.add_bad(
                    lane, unit_hash, start_ms, latency_ms, failed=failed, gone=gone, status=status
                )
    fold.exposed(added, repeated)


def _given(fold: Fold, lanes: dict[bytes, Lane], headers: Sequence[bytes]) -> Given:
    """The assignments of a stamp; nothing when only the long way can tell."""
    stamp = b""
    for header in headers:
        if header.startswith(_STAMP):
            stamp = header
        elif not header.startswith(_REQUEST_ID):
            return ()
    lane = lanes.get(stamp[:-_DIGITS])
    try:
        if lane is not None:
            return ((lane, unhexlify(stamp[-_DIGITS:])),)
        return _several(fold, lanes, stamp)
    except ValueError:
        return ()


def _several(fold: Fold, lanes: dict[bytes, Lane], header: bytes) -> Given:
    """The assignments of a stamp of several, or of one that is new.

    Raises:
        ValueError: Only the long way can tell.
    """
    stamp = _value(header, _STAMP)
    parts = stamp.split(_SEPARATOR)
    if not stamp or len(parts) > ASSIGNMENTS_MAX:
        raise ValueError("no stamp")
    found: list[tuple[Lane, bytes]] = []
    for part in parts:
        lane = lanes.get(part[:-_DIGITS])
        if lane is None:
            lane = _new_lane(fold, lanes, part)
        found.append((lane, unhexlify(part[-_DIGITS:])))
    if len(found) == 1 and len(lanes) < LANES_MAX:
        # The length of the value is in the key, so that it holds for every stamp found by it.
        lanes[header[:-_DIGITS]] = found[0][0]
    return found


def _new_lane(fold: Fold, lanes: dict[bytes, Lane], part: bytes) -> Lane:
    try:
        given = parse_assignment(part.decode())
    except MalformedStamp as error:
        raise ValueError(str(error)) from error
    if given.forced or len(lanes) >= LANES_MAX:
        raise ValueError("forced, or one of too many")
    lane = lanes[part[:-_DIGITS]] = fold.lane(given)
    return lane


def _value(entry: bytes, key: bytes) -> bytes:
    """The value of a map's entry that begins with `key`.

    Raises:
        ValueError: The entry is not of the plain form: key, value of at most 16,383 bytes, end.
    """
    at = len(key)
    if not entry.startswith(key) or len(entry) < at + 2:
        raise ValueError("another form")
    size = entry[at]
    at += 1
    if size >= 0x80:
        size += (entry[at] << 7) - 0x80
        at += 1
    if size != len(entry) - at or entry[at - 1] >= 0x80:
        raise ValueError("another form")
    return entry[at:]


@lru_cache(maxsize=256)
def _bits(flags: bytes) -> int:
    """Response flags as bits; -1: they do not decode."""
    try:
        return flag_bits(flags)
    except DecodeError:
        return -1


@lru_cache(maxsize=256)
def _grpc_status(trailers: bytes, headers: bytes) -> int:
    """The gRPC status of the last entries of two maps, OK when both are empty; -1: unclear."""
    entry = trailers or headers
    if not entry:
        return 0
    try:
        status = _value(entry, _GRPC_STATUS)
    except ValueError:
        return -1
    return int(status) if status.isdigit() and len(status) <= 3 else -1
