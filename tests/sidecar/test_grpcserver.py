"""The server's silence about calls that were cut, and about nothing else."""

from __future__ import annotations

import asyncio
import gc
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.grpcserver import GrpcServer
from sidecar.listen import Listen

GRPC = logging.getLogger("grpc._cython.cygrpc")


class ExecuteBatchError(Exception):
    """As grpc.aio's is called."""


class Nothing:
    """A handler that is never asked."""

    def process(self, request: bytes) -> bytes | None:
        raise NotImplementedError

    async def access_log(self, message: bytes, log_name: str) -> str:
        raise NotImplementedError

    def healthy(self) -> bool:
        return False


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as directory:
        yield Path(directory) / "w"


async def _fail(error: Exception) -> None:
    raise error


async def _unretrieved(error: Exception) -> None:
    task: Any = asyncio.create_task(_fail(error))
    await asyncio.wait([task])
    del task
    gc.collect()


async def test_server_is_silent_when_a_call_is_cut(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = GrpcServer(Listen(path), Nothing())
    await server.start()
    try:
        await _unretrieved(ExecuteBatchError("Failed grpc_call_start_batch: 8"))
        for error in (ExecuteBatchError("Failed"), asyncio.CancelledError()):
            GRPC.error("Exception not handled by _handle_exceptions in [/x]", exc_info=error)
        GRPC.warning("Aborting method [%s] due to server stop.", "/x")
        assert not caplog.records
        await _unretrieved(ValueError("a bug"))
        GRPC.error("something else")
        assert [record.name for record in caplog.records] == ["asyncio", GRPC.name]
    finally:
        await server.drain(0)
