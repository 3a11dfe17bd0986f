"""The bytes in sidecar/README.md are those that a worker says, and mean what stands beside them."""

from __future__ import annotations

import asyncio
from contextlib import closing
from itertools import groupby

import hpack

from sidecar.counters import CounterFile
from sidecar.increments import CountKey
from sidecar.plan import Plan
from sidecar.wire.connection import Connection
from sidecar.wire.frames import FrameType
from sidecar.work import Work
from tests.integration.pods import Pod
from tests.sidecar.readmebytes import KEY, README, USER, frames_of, said, snapshot_of, turns
from turnout.envoy.access_log_pb2 import StreamAccessLogsMessage
from turnout.envoy.ext_proc_pb2 import ProcessingRequest, ProcessingResponse
from turnout.v1alpha1.config_service_pb2 import ROLE_SERVED

PREFIX_BYTES = 5


def _plan() -> Plan:
    pods = Pod("v1"), Pod("v2")
    for port, pod in enumerate(pods, start=1):
        pod.port = port
    return Plan.build(snapshot_of(*pods), tenant_key=KEY, dead={}, open_gates=None, slots={})


def test_worker_answers_envoys_bytes_with_those_of_the_readme() -> None:
    with closing(CounterFile.create("readme")) as counters:
        work = Work(counters)
        work.serve(_plan())
        logs: list[tuple[int, bytes, str]] = []
        connection = Connection(
            work.process, work.healthy, lambda *log: logs.append(log), strict=False, now_s=0.0
        )
        dialogue = turns()
        for turn in dialogue:
            if turn.envoy:
                connection.receive(turn.data, 0.0)
            else:
                assert connection.data_to_send().hex() == turn.data.hex()
        # The last turn is the access log's: it is folded one message after the other.
        name = ""
        while logs:
            stream, message, _ = logs.pop(0)
            name = asyncio.run(work.access_log(message, name))
            connection.folded(stream, name)
        assert name == "turnout_served"
        assert connection.data_to_send() == b""
        assert not connection.closed
        delta = work.fold.take()
    [(key, counts)] = delta.counts.items()
    assert isinstance(key, CountKey)
    assert (key.experiment, key.epoch, key.variant, key.role) == ("fraud-v2", 1, "v2", ROLE_SERVED)
    assert (counts.requests, counts.errors) == (1, 0)


def test_blocks_of_headers_say_what_stands_beside_them() -> None:
    lines = [(line.data, line.says) for turn in turns() for line in turn.lines]
    decoded = 0
    for envoy in (True, False):
        decoder = hpack.Decoder()
        for frame in said(envoy=envoy):
            if frame.kind != FrameType.HEADERS:
                continue
            fields = decoder.decode(frame.payload)
            for name, value in fields:
                wanted = f"{name!s}: {value!s}"
                assert any(says == wanted and data in frame.payload for data, says in lines)
                decoded += 1
    assert decoded > 20


def test_messages_say_what_stands_beside_them() -> None:
    says = [line.says for turn in turns() for line in turn.lines]
    by_stream = groupby(sorted(said(envoy=True), key=lambda f: f.stream), key=lambda f: f.stream)
    for stream, frames in by_stream:
        messages = [f.payload[PREFIX_BYTES:] for f in frames if f.kind == FrameType.DATA]
        if stream and stream < 7:
            (message,) = messages
            for header in ProcessingRequest.FromString(message).request_headers.headers.headers:
                assert f"{header.key}: {header.raw_value.decode()}" in says
    first, second = (StreamAccessLogsMessage.FromString(message) for message in messages)
    assert f"identifier: log_name {first.identifier.log_name}" in says
    (entry,) = second.http_logs.log_entry
    for name, value in entry.request.request_headers.items():
        assert f"request header {name}: {value}" in says
    assert f"route_name: {entry.common_properties.route_name}" in says
    assert f"response_code: {entry.response.response_code.value}" in says
    answered = next(f for f in said(envoy=False) if f.kind == FrameType.DATA)
    response = ProcessingResponse.FromString(answered.payload[PREFIX_BYTES:])
    options = response.request_headers.response.header_mutation.set_headers
    stamped = {o.header.key: o.header.raw_value.decode() for o in options}
    assert f"x-variant: {stamped['x-variant']}" in says
    assert f"x-turnout: {stamped['x-turnout'][:-16]}" in says
    assert f"x-turnout-upstream: {stamped['x-turnout-upstream']}" in says


def test_frames_are_whole_and_the_users_are_the_readmes() -> None:
    for turn in turns():
        frames = frames_of(turn.data)
        preface = 24 if turn.data.startswith(b"PRI ") else 0
        assert sum(9 + len(frame.payload) for frame in frames) + preface == len(turn.data)
    assert f"x-user-id: {USER}" in README.read_text()
