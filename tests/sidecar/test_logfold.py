"""The short way of folding an entry, against the slow one."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar import fold, logfold
from sidecar.accesslog import START_MS_MAX, MalformedMessage, parse_message
from sidecar.deltas import decode, encode
from sidecar.fold import Fold
from sidecar.increments import FoldDelta
from sidecar.logfold import ENTRIES_AT_ONCE, fold_message
from tests.sidecar.samples import EPOCH_START_MS, build, measured, snapshot, stamp
from tests.sidecar.slowfold import fold_slowly
from turnout.contract import ACCESS_LOG_SERVED, ACCESS_LOG_SHADOW
from turnout.envoy.access_log_pb2 import HTTPAccessLogEntry, StreamAccessLogsMessage
from turnout.v1alpha1.common_pb2 import BAD_EVENT_KIND_ERROR, BAD_EVENT_KIND_SLOW

EPOCHS = {**build(snapshot()).epochs, **build(measured(epoch=2)).epochs}
FLAGS = (
    "no_healthy_upstream", "upstream_request_timeout", "downstream_connection_termination",
    "downstream_remote_reset", "no_route_found", "stream_idle_timeout",
)  # fmt: skip


def logged(
    *stamps: str,
    status: int = 200,
    flags: tuple[str, ...] = (),
    latency_ns: int | None = 12_345_678,
    start_ms: int = EPOCH_START_MS + 5_000,
    request_id: str = "r-1",
    shadow_of: str = "",
    grpc: tuple[str, str] = ("", ""),
    headers: tuple[tuple[str, str], ...] = (),
    call_status: str = "0",
) -> HTTPAccessLogEntry:
    """An entry as Envoy writes it."""
    entry = HTTPAccessLogEntry()
    common, request, response = entry.common_properties, entry.request, entry.response
    common.start_time.seconds, ms = divmod(start_ms, 1000)
    common.start_time.nanos = ms * 1_000_000
    common.duration.FromNanoseconds(15_000_000)
    common.time_to_last_upstream_rx_byte.FromNanoseconds(11_000_000)
    if latency_ns is not None:
        common.time_to_last_downstream_tx_byte.FromNanoseconds(latency_ns)
    for flag in flags:
        setattr(common.response_flags, flag, True)
    common.route_name = "turnout/fraud/stamped"
    common.custom_tags["c"] = call_status
    request.request_id = request_id
    if request_id:
        request.request_headers["x-request-id"] = request_id
    if stamps:
        request.request_headers["x-turnout"] = ",".join(stamps)
    if shadow_of:
        request.request_headers["x-turnout-shadow-of"] = shadow_of
    request.request_headers.update(dict(headers))
    response.response_code.value = status
    if grpc[0]:
        response.response_trailers["grpc-status"] = grpc[0]
    if grpc[1]:
        response.response_headers["grpc-status"] = grpc[1]
    return entry


def message(*entries: HTTPAccessLogEntry, log_name: str = "") -> bytes:
    made = StreamAccessLogsMessage()
    made.identifier.log_name = log_name
    made.http_logs.log_entry.extend(entries)
    return made.SerializeToString()


def fold_quickly(*messages: bytes) -> FoldDelta:
    folding, log_name = Fold(), ""
    folding.know(EPOCHS)
    for data in messages:
        log_name, steps = fold_message(folding, data, log_name)
        for _ in steps:
            pass
    return folding.take()


def agree(*entries: HTTPAccessLogEntry, log_name: str = ACCESS_LOG_SERVED) -> FoldDelta:
    data = message(*entries, log_name=log_name)
    quick = fold_quickly(data)
    assert quick == fold_slowly([data], EPOCHS)
    assert decode(encode(quick)) == quick
    return quick


# A unit is on the same variant of an epoch, but mutated stamps are not so well behaved.
_stamps = st.builds(
    lambda name, epoch, arm, unit, end: stamp(arm, unit, epoch=epoch, name=name) + end,
    st.sampled_from(["fraud-v2", "fraud-v2", "threshold"]),
    st.integers(1, 3),
    st.sampled_from(["v2", "control"]),
    st.integers(0, 40) | st.integers(0, 2**64 - 1),
    st.sampled_from(["", "", "", "", ";f"]),
)
_odd = st.sampled_from(
    [
        "", ",", "garbage", "a;1;b;0", "a;1;b;0;00 00 00 00 00  ", "a;1;b;0;0123456789ABCDEF",
        "a;1;b;4294967296;0123456789abcdef", "a;01;b;0;0123456789abcdef", "fraud-v2;1;v2;0;",
        "fraud-v2;1;v2;0;0123456789abcdeg", "a;18446744073709551616;b;0;0123456789abcdef",
        f"{'n' * 200};1;v2;0;0123456789abcdef", "\N{SNOWMAN};1;v2;0;0123456789abcdef",
    ]
)  # fmt: skip
_entries = st.builds(
    lambda stamps, **fields: logged(*stamps, **fields),
    st.lists(_stamps, max_size=1) | st.lists(_stamps, max_size=5) | st.lists(_stamps | _odd),
    status=st.sampled_from([200, 200, 200, 0, 302, 404, 500, 503]),
    flags=st.lists(st.sampled_from(FLAGS), max_size=2).map(tuple) | st.just(()),
    latency_ns=st.none() | st.integers(0, 400_000_000) | st.sampled_from([0, 999, 1_000, 2**62]),
    # The warm-up ends at 12,345 ms, within a time bucket.
    start_ms=(st.integers(-1, 200_000) | st.integers(9_990, 20_010)).map(
        lambda offset: EPOCH_START_MS + offset
    )
    | st.sampled_from([-1, 0, START_MS_MAX, START_MS_MAX + 1, 2**60]),
    request_id=st.sampled_from(["", "r-1", "r-2"]) | st.uuids().map(str),
    shadow_of=st.sampled_from(["", "", "", "", "", "fraud-v2;1;v2", "bad"]),
    grpc=st.tuples(*[st.sampled_from(["", "", "", "0", "14", "-", "1000", "\u0661"])] * 2),
    headers=st.sampled_from([(), (), (), (("x-other", "1"),), (("x-turnou", ""),), (("", ""),)]),
    call_status=st.sampled_from(["0", "4", "10", "-"]),
)


@given(st.lists(_entries, max_size=12), st.sampled_from([ACCESS_LOG_SERVED, ACCESS_LOG_SHADOW]))
@settings(max_examples=400, deadline=None)
@example([logged(stamp(unit=n), request_id=f"r-{n}") for n in range(150)], ACCESS_LOG_SERVED)
def test_increments_are_the_slow_ones_whatever_is_logged(
    entries: list[HTTPAccessLogEntry], log_name: str
) -> None:
    agree(*entries, log_name=log_name)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_increments_are_the_slow_ones_when_bytes_of_a_stamp_are_changed(
    data: st.DataObject,
) -> None:
    text = list(stamp(unit=7) + data.draw(st.sampled_from(["", "," + stamp("control", 9)])))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at] = data.draw(st.sampled_from([*"0;,fgG \n\0_+-", "", "\u00e9"]))
    # The first makes the lane that the second may find.
    agree(logged(stamp(unit=7)), logged("".join(text), request_id="r-2"))


@given(st.binary(max_size=60), st.integers(0, 300))
@settings(max_examples=400, deadline=None)
def test_bytes_are_folded_or_refused_by_name_when_a_message_is_cut_or_overwritten(
    patch: bytes, at: int
) -> None:
    """Where both can read it; the lean message does not mind what it does not read."""
    whole = message(logged(stamp()), logged(stamp(unit=2), request_id="r-2"), log_name="x")
    for data in (whole[:at], whole[:at] + patch + whole[at + len(patch) :]):
        try:
            slow = fold_slowly([data], EPOCHS)
        except MalformedMessage:
            slow = None
        try:
            quick = fold_quickly(data)
        except MalformedMessage:
            quick = None
        assert slow is None or quick is not None
        if quick is not None:
            assert decode(encode(quick)) == quick


def test_common_entry_goes_the_short_way() -> None:
    with mock.patch.object(logfold, "_add", side_effect=AssertionError):
        delta = fold_quickly(
            message(
                logged(stamp(unit=1)),
                logged(stamp("control", 2), request_id="r-2", status=503),
                logged(stamp(), stamp(name="threshold"), request_id="r-3", grpc=("5", "")),
                logged(stamp(), request_id="r-4", flags=("upstream_request_timeout",)),
            )
        )
    assert sum(counts.requests for counts in delta.counts.values()) == 5


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.request.request_headers.update({"x-other": "1"}),
        lambda entry: entry.request.request_headers.update({"x-turnout-shadow-of": "a;1;b"}),
        lambda entry: entry.request.ClearField("request_id"),
        lambda entry: entry.common_properties.ClearField("time_to_last_downstream_tx_byte"),
        lambda entry: entry.response.response_trailers.update({"grpc-status": "x"}),
        lambda entry: entry.request.request_headers.update({"x-turnout": stamp() + ";f"}),
    ],
)
def test_entry_goes_the_long_way_when_it_is_not_understood(
    change: Callable[[HTTPAccessLogEntry], None],
) -> None:
    entry = logged(stamp())
    change(entry)
    with mock.patch.object(logfold, "_add", wraps=logfold._add) as long_way:
        agree(entry)
    assert long_way.call_count == 1


def test_log_keeps_its_name_when_later_messages_do_not_say_it() -> None:
    copy = logged(stamp("control"), shadow_of="fraud-v2;1;v2")
    messages = [message(copy, log_name=ACCESS_LOG_SHADOW), message(logged(stamp()))]
    quick = fold_quickly(*messages)
    assert quick == fold_slowly(messages, EPOCHS)
    assert quick.malformed_stamps == 1, "a copy must have its marker"


def test_steps_leave_room_for_others_when_a_message_is_long() -> None:
    entries = [logged(stamp(unit=n), request_id=f"r-{n}") for n in range(2 * ENTRIES_AT_ONCE + 1)]
    folding = Fold()
    _, steps = fold_message(folding, message(*entries), "")
    next(steps)
    [counts] = folding.take().counts.values()
    assert counts.requests == ENTRIES_AT_ONCE
    assert len(list(steps)) == 2


def test_increments_are_the_slow_ones_when_a_take_comes_between_steps() -> None:
    # Quarters of a millisecond: their sums are exact, in any order.
    entries = [
        logged(stamp(unit=n), request_id=f"r-{n}", latency_ns=n * 250_000) for n in range(200)
    ]
    data = message(*entries)
    folding, merged = Fold(), Fold()
    folding.know(EPOCHS)
    _, steps = fold_message(folding, data, "")
    for _ in steps:
        merged.merge(folding.take())
    assert merged.take() == fold_slowly([data], EPOCHS)


@pytest.mark.parametrize("limit", [("EXPOSURES_MAX", 70), ("RECENT_REQUESTS_MAX", 70)])
def test_limits_are_kept_when_the_short_way_comes_near_them(
    monkeypatch: pytest.MonkeyPatch, limit: tuple[str, int]
) -> None:
    entries = [logged(stamp(unit=n), request_id=f"r-{n % 150}") for n in range(300)]
    monkeypatch.setattr(fold, *limit)
    quick, folding = fold_quickly(message(*entries)), Fold()
    folding.know(EPOCHS)
    for entry in parse_message(message(*entries))[1]:
        folding.add(entry, shadow=False)
    assert quick == folding.take()


def test_arms_beyond_the_lanes_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfold, "LANES_MAX", 3)
    agree(*(logged(stamp(f"v{n % 7}", n), request_id=f"r-{n}") for n in range(40)))


def test_increments_are_the_slow_ones_when_few_cells_are_dense(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fold, "DENSE_CELLS_MAX", 1)
    units = [number * 0x9E37_79B9_7F4A_7C15 % 2**64 for number in range(40)]
    delta = agree(
        *(
            logged(stamp(arm, unit, epoch=2), request_id=f"{arm}-{unit}", start_ms=start_ms)
            for arm in ("control", "v2")
            for unit in units
            for start_ms in (EPOCH_START_MS, EPOCH_START_MS + 20_000)
        )
    )
    assert {sum(cell.requests.values()) for cell in delta.cells.values()} == {40}
    assert {cell.warm_up for cell in delta.cells.values()} == {40}


def test_slow_answers_are_no_bad_events_when_their_requests_began_in_the_warm_up() -> None:
    """It ends at 12,345 ms, within a time bucket; errors are bad events from the first request."""
    slow_ns = 400_000_000
    delta = agree(
        *(
            logged(
                stamp("v2", unit, epoch=2),
                request_id=f"r-{unit}",
                start_ms=EPOCH_START_MS + start_ms,
                latency_ns=slow_ns,
                status=status,
            )
            for unit, (start_ms, status) in enumerate(
                [(1_000, 200), (12_344, 200), (12_345, 200), (12_000, 503), (2_000, 503)]
            )
        )
    )
    found = {key.kind: first.units for key, first in delta.first_bad.items()}
    assert found == {BAD_EVENT_KIND_SLOW: {"v2": {2}}, BAD_EVENT_KIND_ERROR: {"v2": {3, 4}}}
    # They are counted and shown as ever, and the first bad event is the first error.
    assert sum(counts.slow for counts in delta.counts.values()) == 5
    first = min(counts.first_bad_ms for counts in delta.counts.values())
    assert first == EPOCH_START_MS + 2_000


def test_request_is_in_no_cell_when_nothing_is_known_of_its_epoch() -> None:
    delta = agree(logged(stamp("v2", 1, epoch=3)))
    assert sum(counts.requests for counts in delta.counts.values()) == 1
    assert not delta.cells


@pytest.mark.parametrize("data", [b"\xff", b"\x12\x05abc", b"\x0a\x02\x0a\x10"])
def test_message_is_refused_when_it_does_not_decode(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        fold_message(Fold(), data, "")


def test_message_is_refused_at_the_entry_that_does_not_decode() -> None:
    entry = logged("garbage").SerializeToString()
    broken = entry.replace(b"turnout/fraud", b"\xff\xff\xff\xff\xff\xff\xff/fraud")
    wrapped = b"\x0a" + bytes((len(broken) & 0x7F | 0x80, len(broken) >> 7)) + broken
    data = b"\x12" + bytes((len(wrapped) & 0x7F | 0x80, len(wrapped) >> 7)) + wrapped
    _, steps = fold_message(Fold(), data, "")
    with pytest.raises(MalformedMessage):
        next(steps)
