"""A running Envoy says to a worker what sidecar/README.md shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import hpack

from sidecar.wire.frames import FrameType
from tests.integration.harness import BIN, Request, Sidecar, Stage, wait_for
from tests.integration.recording import Recorder, Spoken
from tests.integration.waiting import LOOPBACK
from tests.sidecar.readmebytes import KEY, USER, Frame, frames_of, said, snapshot_of
from turnout.contract import HEADER_STAMP
from turnout.envoy.access_log_pb2 import HTTPAccessLogEntry, StreamAccessLogsMessage

ACCESS_LOGS = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"
PREFIX_BYTES = 5
USER_HEADERS = {"x-user-id": USER}


async def _record(stage: Stage) -> Recorder:
    """One worker behind a recorder, one Envoy thread; its experiment enrols."""
    snapshot = snapshot_of(await stage.pod("v1"), await stage.pod("v2"))
    state = stage.directory / "state"
    state.mkdir(mode=0o700)
    (state / "tenant.key").touch(mode=0o600)
    (state / "tenant.key").write_bytes(KEY)
    await stage.envoy(snapshot, workers=1, concurrency=1)
    recorder = Recorder(stage.directory / "w.0", stage.directory / "x.0")
    await recorder.start()
    sidecar = stage._own(Sidecar("sidecar", stage.directory / "sidecar.log"))
    await sidecar.spawn(
        BIN / "turnout", "sidecar", "--listen", f"unix:{stage.directory}/x", "--workers", "1",
        "--state-dir", state, "--node", "n", "--envoy-dir", stage.envoy_dir,
        "--metrics", f"{LOOPBACK}:{stage.metrics_port}", "--envoy-admin", f"unix:{stage.admin}",
        "--snapshot", stage.snapshot_file(snapshot, "served"),
    )  # fmt: skip
    return recorder


async def test_envoy_says_what_the_readme_shows(stage: Stage) -> None:
    recorder = await _record(stage)
    asked = [Request(headers=USER_HEADERS, body=b"{}"), Request(body=b"{}")]

    async def logged() -> Spoken | None:
        """Ask until a stamped request has come back in a log; then what was said."""
        await stage.send(asked)
        return next((one for one in recorder.connections if _entries(_streams(one.client))), None)

    try:
        spoken = await wait_for(logged, "the access log of a stamped request")
    finally:
        await recorder.stop()
    shown, live = said(envoy=True), frames_of(bytes(spoken.client))
    # Settings and windows, to the byte.
    assert live[:2] == shown[:2]
    assert frames_of(bytes(spoken.server))[:3] == said(envoy=False)[:3]
    theirs, ours = _streams(frames=shown), _streams(spoken.client)
    answers, answered = _answers(said(envoy=False)), _answers(frames_of(bytes(spoken.server)))
    *requests, log = theirs
    assert len(requests) == 3
    for stream in requests:
        alike = [one for one, said_there in ours.items() if said_there == theirs[stream]]
        assert alike, f"no request like that of stream {stream}"
        # A worker that had no time said nothing to some of them.
        assert answers[stream] in [answered.get(one) for one in alike]
    assert theirs[log].fields in [said_there.fields for said_there in ours.values()]
    (wanted,) = _entries(theirs)
    entry = _entries(ours)[0]
    assert _shape(entry) == _shape(wanted)
    assert (
        entry.request.request_headers[HEADER_STAMP] == wanted.request.request_headers[HEADER_STAMP]
    )


class Said(NamedTuple):
    """What Envoy said on a stream."""

    fields: tuple[tuple[str, str], ...]
    data: bytes
    reset: bytes


def _streams(data: bytes | bytearray = b"", *, frames: Sequence[Frame] = ()) -> dict[int, Said]:
    """What Envoy said, by stream; of bytes or of frames."""
    decoder = hpack.Decoder()
    found: dict[int, Said] = {}
    for frame in frames or frames_of(bytes(data)):
        one = found.get(frame.stream, Said((), b"", b""))
        if frame.kind == FrameType.HEADERS:
            one = one._replace(
                fields=tuple((str(n), str(v)) for n, v in decoder.decode(frame.payload))
            )
        elif frame.kind == FrameType.DATA:
            one = one._replace(data=one.data + frame.payload)
        elif frame.kind == FrameType.RST_STREAM:
            one = one._replace(reset=frame.payload)
        if frame.stream:
            found[frame.stream] = one
    return found


def _answers(frames: Sequence[Frame]) -> dict[int, list[tuple[int, int, bytes]]]:
    """What the worker said, by stream."""
    found = defaultdict(list)
    for frame in frames:
        if frame.stream:
            found[frame.stream].append((frame.kind, frame.flags, frame.payload))
    return dict(found)


def _entries(streams: Mapping[int, Said]) -> list[HTTPAccessLogEntry]:
    """Stamped entries of the access log."""
    found: list[HTTPAccessLogEntry] = []
    for one in streams.values():
        data = one.data if (":path", ACCESS_LOGS) in one.fields else b""
        while len(data) >= PREFIX_BYTES:
            end = PREFIX_BYTES + int.from_bytes(data[1:PREFIX_BYTES], "big")
            if end > len(data):
                break
            message = StreamAccessLogsMessage.FromString(data[PREFIX_BYTES:end])
            found += message.http_logs.log_entry
            data = data[end:]
    return [entry for entry in found if HEADER_STAMP in entry.request.request_headers]


def _shape(entry: HTTPAccessLogEntry) -> set[str]:
    """Which fields an entry has."""
    parts = (entry.common_properties, entry.request, entry.response)
    return {
        f"{part.DESCRIPTOR.name}.{field.name}" for part in parts for field, _ in part.ListFields()
    }
