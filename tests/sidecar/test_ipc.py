"""Frames between supervisor and worker."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.ipc import FRAME_BYTES_MAX, FrameError, Kind, PlanOrder, PlanReport, frame, read_frame


def reader_of(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


async def test_messages_come_back_when_read_in_order() -> None:
    order = PlanOrder(
        generation=7,
        snapshot=b"\0snapshot\xff",
        tenant_key=bytes(range(32)),
        dead={"e": 3},
        open_gates=frozenset({("e", 4), ("f", 1)}),
        slots={("e", 4, "v2"): 9},
        defaults={"fraud": "model-v2"},
    )
    report = PlanReport(7, 2, "no")
    reader = reader_of(
        frame(Kind.PLAN, order.encode())
        + frame(Kind.HEARTBEAT)
        + frame(Kind.APPLIED, report.encode())
    )
    kind, payload = await read_frame(reader)
    assert kind is Kind.PLAN
    assert PlanOrder.decode(payload) == order
    assert await read_frame(reader) == (Kind.HEARTBEAT, b"")
    kind, payload = await read_frame(reader)
    assert PlanReport.decode(payload) == report
    with pytest.raises(asyncio.IncompleteReadError):
        await read_frame(reader)


def test_no_gate_and_closed_gates_are_told_apart() -> None:
    for gates in (None, frozenset[tuple[str, int]]()):
        order = PlanOrder(1, b"s", b"k" * 32, open_gates=gates)
        assert PlanOrder.decode(order.encode()).open_gates == gates


async def test_frame_is_refused_when_its_kind_or_length_is_not_ours() -> None:
    with pytest.raises(FrameError, match="kind"):
        await read_frame(reader_of(b"\0\0\0\0\x63"))
    with pytest.raises(FrameError, match="bytes"):
        await read_frame(reader_of(b"\xff\xff\xff\xff\x01"))


def test_frame_is_not_made_when_the_payload_is_too_large() -> None:
    with pytest.raises(FrameError):
        frame(Kind.DELTA, bytes(FRAME_BYTES_MAX + 1))
