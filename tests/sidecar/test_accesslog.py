"""What an access log entry means."""

from __future__ import annotations

import pytest

from sidecar import accesslog
from sidecar.accesslog import (
    Assignment,
    MalformedMessage,
    MalformedStamp,
    Shadow,
    is_client_gone,
    is_error,
    parse_message,
    parse_shadow,
    parse_stamp,
    target_of,
    unstamped_reason,
)
from tests.sidecar.samples import entry
from turnout.envoy.access_log_pb2 import StreamAccessLogsMessage

DIGITS = "00000000000000ff"


def message() -> StreamAccessLogsMessage:
    message = StreamAccessLogsMessage()
    message.identifier.log_name = "turnout_served"
    logged = message.http_logs.log_entry.add()
    common = logged.common_properties
    common.start_time.FromNanoseconds(1_700_000_000_123_999_999)
    common.time_to_last_downstream_tx_byte.FromNanoseconds(12_500_000)
    common.time_to_last_upstream_rx_byte.FromNanoseconds(12_000_000)
    common.duration.FromNanoseconds(13_000_000)
    common.route_name = "turnout/fraud/stamped"
    common.upstream_cluster = "turnout.fraud.v2"
    common.custom_tags["c"] = "0"
    common.response_flags.upstream_connection_failure = True
    common.response_flags.downstream_connection_termination = True
    logged.request.request_id = "r-1"
    logged.request.request_headers["x-turnout"] = f"fraud-v2;1;v2;0;{DIGITS}"
    logged.response.response_code.value = 503
    logged.response.response_trailers["grpc-status"] = "14"
    return message


def test_entry_has_every_field_when_envoy_fills_them() -> None:
    name, [read] = parse_message(message().SerializeToString())
    assert name == "turnout_served"
    assert read == accesslog.Entry(
        start_ms=1_700_000_000_123,
        latency_ms=12.5,
        duration_ms=13.0,
        upstream_ms=12.0,
        status=503,
        flags=accesslog.FLAG_UF | accesslog.FLAG_DC,
        grpc_status=14,
        stamp=f"fraud-v2;1;v2;0;{DIGITS}",
        shadow_of="",
        request_id="r-1",
        route_name="turnout/fraud/stamped",
        upstream_cluster="turnout.fraud.v2",
        call_status=0,
    )


def test_entry_has_defaults_when_envoy_fills_nothing() -> None:
    empty = StreamAccessLogsMessage()
    empty.http_logs.log_entry.add()
    name, [read] = parse_message(empty.SerializeToString())
    assert name == ""
    assert read == accesslog.Entry(0, None, 0.0, None, 0, 0, None, "", "", "", "", "", None)


@pytest.mark.parametrize("status", ["-", "", "x", "-1", "1e3"])
def test_call_status_is_none_when_it_is_no_number(status: str) -> None:
    logged = message()
    logged.http_logs.log_entry[0].common_properties.custom_tags["c"] = status
    _, [read] = parse_message(logged.SerializeToString())
    assert read.call_status is None


def test_grpc_status_comes_from_the_headers_when_the_answer_is_trailers_only() -> None:
    logged = message()
    response = logged.http_logs.log_entry[0].response
    response.response_trailers.clear()
    response.response_headers["grpc-status"] = "5"
    _, [read] = parse_message(logged.SerializeToString())
    assert read.grpc_status == 5


@pytest.mark.parametrize("data", [b"\xff", b"\x12\x05abc", b"\x12\x02\x0a\x10"])
def test_message_is_refused_when_it_does_not_decode(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parse_message(data)


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"status": 200}, False),
        ({"status": 404}, False),
        ({"status": 499}, False),
        ({"status": 500}, True),
        ({"status": 599}, True),
        ({"status": 0}, False),
        *(({"status": 200, "flags": flag}, True) for flag in (
            accesslog.FLAG_UF, accesslog.FLAG_UH, accesslog.FLAG_UO, accesslog.FLAG_UT,
            accesslog.FLAG_UC, accesslog.FLAG_NC, accesslog.FLAG_URX, accesslog.FLAG_LR,
        )),
        ({"status": 0, "flags": accesslog.FLAG_DC}, False),
        ({"status": 0, "flags": accesslog.FLAG_DR}, False),
        ({"status": 503, "flags": accesslog.FLAG_DC | accesslog.FLAG_UF}, False),
        *(({"grpc_status": code}, False) for code in (0, 1, 3, 5, 6, 7, 9, 11, 16)),
        *(({"grpc_status": code}, True) for code in (2, 4, 8, 10, 12, 13, 14, 15, 17)),
    ],
)  # fmt: skip
def test_entry_is_an_error_when_the_upstream_failed(changes: dict[str, int], failed: bool) -> None:
    """DESIGN's list: status >= 500, UF UH UO UT UC NC URX LR, failing grpc-status; never DC."""
    assert is_error(entry(**changes)) is failed


def test_client_is_gone_when_the_flags_say_so() -> None:
    assert is_client_gone(entry(flags=accesslog.FLAG_DC))
    assert is_client_gone(entry(flags=accesslog.FLAG_DR | accesslog.FLAG_UT))
    assert not is_client_gone(entry(flags=accesslog.FLAG_UT))


@pytest.mark.parametrize(
    ("status", "stamp", "reason"),
    [
        (None, "", None),
        (0, "", None),
        (10, "", None),
        (4, "", "timeout"),
        (9, "", "spurious"),
        (14, "", "unreachable"),
        (3, "", "unknown"),
        (13, "", "unknown"),
        (4, "fraud-v2;1;v2;0;00", None),
    ],
)
def test_missing_answer_has_a_reason_when_envoy_tells_one(
    status: int | None, stamp: str, reason: str | None
) -> None:
    assert unstamped_reason(entry(call_status=status, stamp=stamp)) == reason


@pytest.mark.parametrize(
    ("route", "target"),
    [
        ("turnout/fraud/stamped", "fraud"),
        ("turnout/fraud/baseline", "fraud"),
        ("turnout/fraud", "fraud"),
        ("other/turnout/fraud", ""),
        ("turnout/", ""),
        ("", ""),
    ],
)
def test_target_is_the_routes_when_the_route_is_ours(route: str, target: str) -> None:
    assert target_of(entry(route_name=route)) == target


def test_stamp_is_read_when_it_has_one_or_more_assignments() -> None:
    one = f"fraud-v2;12;v2;0;{DIGITS}"
    assert parse_stamp(one) == [Assignment("fraud-v2", 12, "v2", 0, 255, forced=False)]
    two = parse_stamp(f"{one},other;1;control;3;ffffffffffffffff;f")
    assert two[1] == Assignment("other", 1, "control", 3, 2**64 - 1, forced=True)


@pytest.mark.parametrize(
    "stamp",
    [
        "", ",", ";;;;", "a;1;b;0", f"a;1;b;0;{DIGITS};g", f"a;1;b;0;{DIGITS};f;f",
        f";1;b;0;{DIGITS}", f"a;1;;0;{DIGITS}", f"a;x;b;0;{DIGITS}", f"a;-1;b;0;{DIGITS}",
        f"a;+1;b;0;{DIGITS}", f"a; 1;b;0;{DIGITS}", f"a;1_0;b;0;{DIGITS}", f"a;1;b;;{DIGITS}",
        "a;1;b;0;00", "a;1;b;0;0000000000000g00", f"a;{'9' * 20};b;0;{DIGITS}",
        ",".join([f"a;1;b;0;{DIGITS}"] * 17), f"a;1;b;0;{DIGITS},",
        "a;1;b;0;00 00 00 00 00 0", f"a;\N{ARABIC-INDIC DIGIT ONE};b;0;{DIGITS}",
    ],
)  # fmt: skip
def test_stamp_is_refused_when_no_sidecar_wrote_it(stamp: str) -> None:
    with pytest.raises(MalformedStamp):
        parse_stamp(stamp)


def test_marker_is_read_when_a_sidecar_wrote_it() -> None:
    assert parse_shadow("fraud-v2;3;v2") == Shadow("fraud-v2", 3, "v2")


@pytest.mark.parametrize("marker", ["", "a", "a;1", "a;x;b", ";1;b", "a;1;", "a;1;b;c", "-"])
def test_marker_is_refused_when_no_sidecar_wrote_it(marker: str) -> None:
    with pytest.raises(MalformedStamp):
        parse_shadow(marker)
