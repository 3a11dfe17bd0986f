"""Spans go on to a tracing backend: unchanged, and never at the cost of who sent them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
import pytest_asyncio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from control.forward import FORWARDED_KEY, Forwarder, Limits
from control.otlp import SERVICE
from control.server import ControlPlane, Options
from control.store.sqlite import SqliteStore
from tests.control.clirunning import turnout
from tests.control.peers import Api
from tests.control.test_services_telemetry import EXPORT, export, spans
from tests.integration.waiting import free_port, wait_for

CODE = grpc.StatusCode


class Backend:
    """A tracing backend on a port of its own, which can be down, slow or in a bad mood."""

    def __init__(self, port: int = 0) -> None:
        self.port = port or free_port()
        self.got: list[bytes] = []
        self.calls = 0
        self.times: list[float] = []
        self.delay_s = 0.0
        self.code: grpc.StatusCode | None = None
        self.retry_s: float | None = None
        self.rejects = 0
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    async def up(self) -> Self:
        """Listen."""
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        method: Any = grpc.unary_unary_rpc_method_handler(self._export)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Export": method}),)
        )
        self._server.add_insecure_port(self.address)
        await self._server.start()
        return self

    async def down(self) -> None:
        """Be gone."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def _export(self, request: bytes, context: Any) -> bytes:
        self.calls += 1
        self.times.append(time.monotonic())
        await asyncio.sleep(self.delay_s)
        if self.code is not None:
            if self.retry_s is not None:
                context.set_trailing_metadata((("grpc-status-details-bin", self._details()),))
            await context.abort(self.code, "not now")
        self.got.append(request)
        answer = ExportTraceServiceResponse()
        answer.partial_success.rejected_spans = self.rejects
        return answer.SerializeToString()

    def _details(self) -> bytes:
        assert self.retry_s is not None
        assert self.code is not None
        delay = duration_pb2.Duration(nanos=int(self.retry_s * 1e9))
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        status = status_pb2.Status(code=self.code.value[0], details=[detail])
        return bytes(status.SerializeToString())


@pytest_asyncio.fixture
async def backend() -> AsyncIterator[Backend]:
    """A backend that is up."""
    one = await Backend().up()
    yield one
    await one.down()


def forwarder(backend: Backend, **limits: Any) -> Forwarder:
    """A started one, with short pauses."""
    short: dict[str, Any] = {"backoff_base_s": 0.02, "backoff_cap_s": 0.1, **limits}
    one = Forwarder(backend.address, jitter=lambda: 0.5, limits=Limits(**short))
    one.start()
    return one


async def test_bytes_arrive_unchanged_when_backend_is_up(backend: Backend) -> None:
    one = forwarder(backend)
    # With a field that no version of OTLP knows: whoever parses and writes anew may lose it.
    sent = [spans({f"r{i}": "1"}).SerializeToString() + b"\xfa\x3e\x02hi" for i in range(50)]
    for request in sent:
        one.offer(request, 1)
    await wait_for(lambda: one.forwarded == 50, "all are forwarded")
    await one.close()
    assert sorted(backend.got) == sorted(sent)
    assert one.dropped == {}
    assert (one.queued, one.queued_bytes) == (0, 0)


async def test_newest_are_kept_and_rest_is_counted_when_backend_is_down() -> None:
    backend = Backend()
    one = forwarder(backend, queue_requests=20)
    for i in range(100):
        one.offer(b"%03d" % i, 2)
        assert one.queued <= 20
    await asyncio.sleep(0)
    assert one.dropped == {"full": 160}
    await backend.up()
    await wait_for(lambda: len(backend.got) == 20, "the rest arrives without a restart")
    assert sorted(backend.got) == [b"%03d" % i for i in range(80, 100)]
    await one.close()
    await backend.down()


async def test_memory_is_bounded_by_bytes_when_requests_are_large() -> None:
    backend = Backend()
    one = forwarder(backend, queue_bytes=1_000_000)
    for _ in range(200):
        one.offer(bytes(90_000), 1)
        assert one.queued_bytes <= 1_000_000
    assert one.queued == 11
    assert one.dropped == {"full": 189}
    one.offer(bytes(2_000_000), 1)
    assert one.queued_bytes == 0
    assert one.dropped == {"full": 201}
    await one.close()


@pytest.mark.parametrize(
    ("code", "retried"),
    [
        (CODE.UNAVAILABLE, True),
        (CODE.ABORTED, True),
        (CODE.INVALID_ARGUMENT, False),
        (CODE.UNIMPLEMENTED, False),
        (CODE.PERMISSION_DENIED, False),
        # Without RetryInfo the backend says that it will never take it.
        (CODE.RESOURCE_EXHAUSTED, False),
    ],
)
async def test_only_retryable_codes_are_retried_when_backend_refuses(
    backend: Backend, code: grpc.StatusCode, retried: bool
) -> None:
    backend.code = code
    one = forwarder(backend)
    one.offer(b"", 3)
    await wait_for(lambda: backend.calls >= (3 if retried else 1), "it was tried")
    if retried:
        backend.code = None
        await wait_for(lambda: one.forwarded == 3, "it arrives in the end")
    else:
        await wait_for(lambda: one.dropped == {"refused": 3}, "it is dropped and counted")
        assert backend.calls == 1
    assert one.failed_attempts[code.name] >= 1
    await one.close()


async def test_pause_is_as_long_as_backend_asks_when_it_sends_retry_info(backend: Backend) -> None:
    backend.code, backend.retry_s = CODE.RESOURCE_EXHAUSTED, 0.6
    one = forwarder(backend)
    one.offer(b"", 1)
    await wait_for(lambda: backend.calls == 2, "it is tried again")
    assert 0.6 <= backend.times[1] - backend.times[0] < 5
    backend.code = None
    await wait_for(lambda: one.forwarded == 1, "it arrives")
    await one.close()


async def test_left_out_spans_are_counted_when_backend_takes_a_part(backend: Backend) -> None:
    backend.rejects = 2
    one = forwarder(backend)
    one.offer(b"", 5)
    await wait_for(lambda: one.forwarded == 3, "three are taken")
    assert one.dropped == {"partial": 2}
    await one.close()


async def test_stopping_is_quick_and_counted_when_backend_hangs(backend: Backend) -> None:
    backend.delay_s = 60
    one = forwarder(backend, drain_s=0.2)
    for _ in range(9):
        one.offer(b"", 1)
    await wait_for(lambda: backend.calls == 4, "all senders wait for the backend")
    begin = time.monotonic()
    await one.close()
    assert time.monotonic() - begin < 5
    assert one.dropped == {"stopped": 9}


# -- The control plane with a backend --------------------------------------------------------------


@pytest_asyncio.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[ControlPlane, Backend]]:
    """A control plane that forwards to a backend that is not yet up."""
    backend = Backend()
    store = await SqliteStore.open(f"sqlite:{tmp_path}/control.db")
    plane = ControlPlane(store, Options(listen="127.0.0.1:0", forward_otlp=backend.address))
    await plane.start()
    yield plane, backend
    await plane.stop()
    await backend.down()


async def test_received_request_goes_on_when_it_was_taken(
    pair: tuple[ControlPlane, Backend],
) -> None:
    """What is refused, and what another control plane passed on, is not."""
    plane, backend = pair
    await backend.up()
    taken = spans({"r1": "1"}).SerializeToString()
    async with Api(f"127.0.0.1:{plane.port}") as api:
        await export(api, taken)
        with pytest.raises(grpc.aio.AioRpcError):
            await export(api, b"\xff\xff")
        call: Any = api.channel.unary_unary(EXPORT, response_deserializer=bytes)
        await call(taken, metadata=((FORWARDED_KEY, "1"),))
    await wait_for(lambda: backend.got == [taken], "the one request arrives")
    assert plane.forwarder is not None
    assert plane.forwarder.queued == 0


@pytest.mark.parametrize(
    "down_s", [3, pytest.param(60, marks=pytest.mark.soak)], ids=lambda s: f"{s} s"
)
@pytest.mark.parametrize("how", ["gone", "hangs", "refuses"])
async def test_no_export_fails_and_memory_is_bounded_when_backend_is_down_under_load(
    pair: tuple[ControlPlane, Backend], down_s: float, how: str
) -> None:
    """Sent, taken, dropped and waiting always add up; it recovers by itself."""
    plane, backend = pair
    one = plane.forwarder
    assert one is not None
    await backend.up()
    request = spans({f"r{i}": "x" * 200 for i in range(100)}).SerializeToString()
    sent, slowest_s = 0, 0.0
    async with Api(f"127.0.0.1:{plane.port}") as api:

        async def send(until: float) -> None:
            nonlocal sent, slowest_s
            while time.monotonic() < until:
                begin = time.monotonic()
                await export(api, request)  # raises when it is refused
                sent += 1
                slowest_s = max(slowest_s, time.monotonic() - begin)
                assert one.queued_bytes <= Limits().queue_bytes
                await asyncio.sleep(0.005)

        await send(time.monotonic() + 0.5)
        await wait_for(lambda: one.queued == 0, "the backend keeps up")
        if how == "gone":
            await backend.down()
        backend.delay_s = 3600.0 if how == "hangs" else 0.0
        backend.code = CODE.UNAVAILABLE if how == "refuses" else None
        before, resident = one.forwarded, _resident_bytes()
        await send(time.monotonic() + down_s)
        assert one.forwarded == before
        assert one.queued > 0
        assert _resident_bytes() - resident < 3 * Limits().queue_bytes
        assert sent * 100 == one.forwarded + sum(one.dropped.values()) + one.queued * 100
        assert slowest_s < 2  # the machine is shared; a wait for the backend would be 10 s
        backend.delay_s, backend.code = 0.0, None
        if how == "gone":
            await backend.up()
        await send(time.monotonic() + 0.5)
    await wait_for(lambda: one.queued == 0, "all that waited is sent", timeout_s=40)
    assert sent * 100 == one.forwarded + sum(one.dropped.values())
    assert set(one.dropped) <= {"full"}


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("jaeger", "is not HOST:PORT"),
        ("http://127.0.0.1:4317", "is not HOST:PORT"),
        ("127.0.0.1:7700", "is this control plane itself"),
    ],
)
def test_control_refuses_to_start_when_the_backend_cannot_be_one(
    tmp_path: Path, address: str, says: str
) -> None:
    words = ("control", "--listen", "127.0.0.1:7700", "--store", f"sqlite:{tmp_path}/c.db")
    done = turnout(*words, "--forward-otlp", address)
    assert (done.code, says in done.err) == (2, True)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
