"""A client that talks to a worker as Envoy does: ext_proc, health and access log on its socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from turnout.contract import ACCESS_LOG_SERVED, HEADER_STAMP, HEADER_VARIANT
from turnout.envoy.access_log_pb2 import StreamAccessLogsMessage
from turnout.envoy.ext_proc_pb2 import ProcessingRequest, ProcessingResponse
from turnout.envoy.health_pb2 import HealthCheckRequest, HealthCheckResponse

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
ACCESS_LOGS = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"
CHECK = "/grpc.health.v1.Health/Check"
DEADLINE_S = 5.0


def request_of(user: str, **headers: str) -> ProcessingRequest:
    """A request of a user to the target of `snapshots`."""
    request = ProcessingRequest()
    given = {
        ":path": "/v2/models/fraud/infer",
        ":method": "POST",
        ":authority": "fraud.test",
        "x-user-id": user,
    } | headers
    for name, value in given.items():
        request.request_headers.headers.headers.add(key=name, raw_value=value.encode())
    return request


def entry_of(stamp: str, *, status: int = 200, request_id: str = "") -> StreamAccessLogsMessage:
    """An access log of one served request."""
    message = StreamAccessLogsMessage()
    message.identifier.log_name = ACCESS_LOG_SERVED
    entry = message.http_logs.log_entry.add()
    entry.common_properties.start_time.GetCurrentTime()
    entry.common_properties.time_to_last_downstream_tx_byte.FromMilliseconds(7)
    entry.request.request_id = request_id
    entry.request.request_headers[HEADER_STAMP] = stamp
    entry.response.response_code.value = status
    return message


class WorkerClient:
    """One connection to one worker's socket."""

    def __init__(self, path: Path) -> None:
        """Connect on first use."""
        self._channel = grpc.aio.insecure_channel(
            f"unix:{path}", options=[("grpc.use_local_subchannel_pool", 1)]
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self._channel.close()

    async def process(self, request: ProcessingRequest | bytes) -> dict[str, str] | None:
        """Headers that the worker stamps; None = it ended the stream without an answer."""
        data = request if isinstance(request, bytes) else request.SerializeToString()

        async def one() -> AsyncIterator[bytes]:
            yield data

        method: Any = self._channel.stream_stream(PROCESS)
        call = method(one(), timeout=DEADLINE_S)
        answers = [ProcessingResponse.FromString(answer) async for answer in call]
        assert len(answers) <= 1, "at most one answer for a message"
        if not answers:
            return None
        mutation = answers[0].request_headers.response.header_mutation
        return {o.header.key: o.header.raw_value.decode() for o in mutation.set_headers}

    async def process_and_reset(self, request: ProcessingRequest) -> None:
        """As Envoy does: one message, and the stream is reset when the answer is there."""
        method: Any = self._channel.stream_stream(PROCESS)
        call = method(timeout=DEADLINE_S)
        await call.write(request.SerializeToString())
        await call.read()
        call.cancel()

    async def variant(self, user: str) -> str:
        """The variant a user is given; "" = none."""
        stamped: Mapping[str, str] = await self.process(request_of(user)) or {}
        return stamped.get(HEADER_VARIANT, "")

    async def log(self, *messages: StreamAccessLogsMessage | bytes) -> None:
        """Send access log messages on one stream and end it."""

        async def all_of() -> AsyncIterator[bytes]:
            for message in messages:
                yield message if isinstance(message, bytes) else message.SerializeToString()

        method: Any = self._channel.stream_unary(ACCESS_LOGS)
        await method(all_of(), timeout=DEADLINE_S)

    async def keep_logging(self, message: StreamAccessLogsMessage) -> None:
        """Send an access log message again and again on one stream, until it breaks."""
        method: Any = self._channel.stream_unary(ACCESS_LOGS)
        call = method()
        while True:
            await call.write(message.SerializeToString())
            await asyncio.sleep(0.002)

    async def serving(self) -> bool:
        """What the worker says of its health; False when it cannot be reached."""
        check: Any = self._channel.unary_unary(CHECK)
        try:
            answer = await check(HealthCheckRequest().SerializeToString(), timeout=DEADLINE_S)
        except grpc.aio.AioRpcError:
            return False
        status: int = HealthCheckResponse.FromString(answer).status
        return status == HealthCheckResponse.SERVING
