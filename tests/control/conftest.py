"""Control planes: in this process, and as a process; real store, real gRPC, a port of its own."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from control.server import ControlPlane, Options
from control.store.sqlite import SqliteStore
from tests.control.clishell import Shell, control_plane
from tests.control.peers import Api, FakeSidecar
from tests.integration.waiting import free_port


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


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A control plane that this module has to itself."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as directory:
        place = f"127.0.0.1:{free_port()}"
        with control_plane(place, Path(directory, "control.db")):
            yield place


@pytest.fixture
def shell(address: str, tmp_path: Path, request: pytest.FixtureRequest) -> Shell:
    """Commands in a tenant that no other test uses."""
    return Shell(address, f"t{zlib.crc32(request.node.name.encode())}", tmp_path)
