"""A control plane in this process: real store, real gRPC, a port of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from control.server import ControlPlane, Options
from control.store.sqlite import SqliteStore
from tests.control.peers import Api, FakeSidecar


@pytest_asyncio.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    """A started control plane."""
    store = await SqliteStore.open(f"sqlite:{tmp_path}/control.db")
    one = ControlPlane(store, Options(listen="127.0.0.1:0"))
    await one.start()
    yield one
    await one.stop()


@pytest_asyncio.fixture
async def api(plane: ControlPlane) -> AsyncIterator[Api]:
    """A client of it."""
    async with Api(f"127.0.0.1:{plane.port}") as client:
        yield client


@pytest_asyncio.fixture
async def sidecar(api: Api) -> AsyncIterator[FakeSidecar]:
    """A sidecar of it."""
    async with FakeSidecar(api.channel) as peer:
        yield peer
