"""The lean access log has the numbers of the full one, which is compared with Envoy's own."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import UInt32Value

from turnout.envoy import access_log_lean_pb2 as lean
from turnout.envoy import access_log_pb2 as full

PAIRS: list[tuple[type[Message], type[Message]]] = [
    (lean.LeanAccessLogsMessage, full.StreamAccessLogsMessage),
    (lean.LeanEntries, full.StreamAccessLogsMessage.HTTPAccessLogEntries),
    (lean.LeanEntry, full.HTTPAccessLogEntry),
    (lean.LeanCommon, full.AccessLogCommon),
    (lean.LeanRequest, full.HTTPRequestProperties),
    (lean.LeanResponse, full.HTTPResponseProperties),
    (lean.LeanTime, Timestamp),
    (lean.LeanTime, Duration),
    (lean.LeanCode, UInt32Value),
]


@pytest.mark.parametrize(("ours", "envoys"), PAIRS, ids=lambda message: message.__name__)
def test_lean_message_reads_the_fields_of_the_full_one_when_names_are_equal(
    ours: type[Message], envoys: type[Message]
) -> None:
    """Every field of the lean message is the full one's, under its number."""
    assert ours.DESCRIPTOR.fields
    for field in ours.DESCRIPTOR.fields:
        assert envoys.DESCRIPTOR.fields_by_name[field.name].number == field.number, field.name
