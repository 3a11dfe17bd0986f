"""Starts that cannot succeed, or only half: a clear message with the remedy, and nothing else hurt.

A full or a read-only disk is a small tmpfs in a mount namespace of the process's own: it goes with
the process, and nobody else sees it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.control.peers import EXPERIMENT, TENANT, Api
from tests.integration.harness import BIN, Child, Stage
from tests.integration.snapshots import one_target
from tests.integration.waiting import LOOPBACK, free_port, wait_for

NAMESPACE: Final = (
    "unshare", "--mount", *(() if os.getuid() == 0 else ("--user", "--map-root-user")),
    "sh", "-c",
)  # fmt: skip
# $1 = mount point, $2 = what is copied into it before it is full, $3... = the command.
FULL: Final = """
set -eu
cp -a "$2" "$1.kept"
mount -t tmpfs -o size=512k tmpfs "$1"
cp -a "$1.kept/." "$1"
dd if=/dev/zero of="$1/fill" bs=1k 2>/dev/null || true
shift 2
exec "$@"
"""
READ_ONLY: Final = """
set -eu
mount -t tmpfs -o size=512k,ro tmpfs "$1"
shift 2
exec "$@"
"""


@pytest.fixture
def taken() -> Iterator[str]:
    """An address on loopback that somebody listens on."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        yield f"{LOOPBACK}:{listener.getsockname()[1]}"


def on_disk(script: str, stage: Stage, *command: str, content: Path | None = None) -> list[str]:
    """The command line that runs `turnout` with such a disk at STAGE/disk."""
    disk, empty = stage.directory / "disk", stage.directory / "empty"
    disk.mkdir(exist_ok=True)
    empty.mkdir(exist_ok=True)
    place = (str(disk), str(content or empty))
    return [*NAMESPACE, script, "sh", *place, str(BIN / "turnout"), *command]


async def refusal(line: list[str], code: int = 1) -> str:
    """The output of a command that ends by itself: one line, no traceback."""
    process = await asyncio.create_subprocess_exec(
        *line, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == code, text
    assert len(text.splitlines()) == 1, text
    return text


def control(stage: Stage, *options: str) -> list[str]:
    """A control plane's command line, with a store of its own."""
    return ["control", "--store", f"sqlite:{stage.directory}/x.db", *options]


def sidecar(stage: Stage, *options: str, state: str = "state") -> list[str]:
    """A sidecar's command line; its control plane is on a port where nobody is."""
    return [
        "sidecar", "--listen", f"unix:{stage.socket}", "--workers", "1",
        "--control", f"{LOOPBACK}:{free_port()}", "--tenant", TENANT,
        "--state-dir", str(stage.directory / state), *options,
    ]  # fmt: skip


async def test_control_plane_names_port_and_remedy_when_one_is_in_use(
    stage: Stage, taken: str
) -> None:
    free = f"{LOOPBACK}:{free_port()}"
    for options, flag in (
        (("--listen", taken), "--listen"),
        (("--listen", free, "--metrics", taken), "--metrics"),
    ):
        text = await refusal([str(BIN / "turnout"), *control(stage, *options)])
        assert f"cannot listen on {taken}" in text
        assert f"choose another {flag}" in text


async def test_sidecar_names_port_and_remedy_when_one_is_in_use(stage: Stage, taken: str) -> None:
    """It refuses before it starts a worker: no socket is left behind."""
    text = await refusal([str(BIN / "turnout"), *sidecar(stage, "--metrics", taken)])
    assert f"--metrics {taken} cannot be served" in text
    assert "choose another port" in text
    assert not list(stage.directory.glob(f"{stage.socket.name}.*"))


@pytest.mark.parametrize(("script", "word"), [(FULL, "full"), (READ_ONLY, "Read-only")])
async def test_control_plane_names_disk_and_remedy_when_it_takes_no_writes(
    stage: Stage, script: str, word: str
) -> None:
    store = f"sqlite:{stage.directory}/disk/turnout.db"
    listen = f"{LOOPBACK}:{free_port()}"
    text = await refusal(on_disk(script, stage, "control", "--listen", listen, "--store", store))
    assert f"{stage.directory}/disk/turnout.db" in text
    assert word in text
    assert "free the disk, make it writable for this user, or choose another --store" in text


async def test_sidecar_names_directory_and_remedy_when_it_is_read_only(stage: Stage) -> None:
    """Envoy alone serves everybody by the baseline meanwhile."""
    v1 = await stage.pod("v1")
    await stage.envoy(one_target(v1))
    text = await refusal(on_disk(READ_ONLY, stage, *sidecar(stage, state="disk/state")))
    assert f"state directory {stage.directory}/disk/state" in text
    assert "read-only file system" in text
    assert "or choose another --state-dir" in text
    answers = await stage.users([f"user-{n}" for n in range(20)])
    assert {answer.pod for answer in answers} == {"v1"}
    assert not any(answer.failed for answer in answers)


async def test_sidecar_serves_its_last_snapshot_when_the_disk_is_full_at_start(
    stage: Stage,
) -> None:
    """Without a control plane, too: what is on disk is read, and nothing must be written."""
    plane = await stage.control()
    stage.envoy_dir.mkdir()
    async with Api(plane.address) as api:
        await api.start()
        first = await stage.sidecar(control=plane.address, envoy_admin=False)
        await stage.workers_serve()
        snapshot = stage.directory / "state" / "snapshot"
        await wait_for(snapshot.exists, "the snapshot is on disk")
    assert await first.stop() == 0
    assert await plane.stop() == 0
    options = ("--metrics", f"{LOOPBACK}:{stage.metrics_port}")
    line = on_disk(
        FULL, stage, *sidecar(stage, *options, state="disk"), content=stage.directory / "state"
    )
    second = stage._own(Child("full", stage.directory / "full.log"))
    await second.spawn(*line)
    await stage.workers_serve(1)
    assert await stage.metric("turnout_sidecar_snapshot_version") > 0
    assert "Traceback" not in second.output()
    assert await second.stop() == 0


@pytest.mark.parametrize("somebody", [False, True], ids=["nobody", "not a control plane"])
async def test_sidecar_asks_whether_the_address_is_right_when_no_control_plane_is_there(
    stage: Stage, taken: str, somebody: bool
) -> None:
    """It serves nothing, so everybody gets the baseline; it says why, and stops when told."""
    v1 = await stage.pod("v1")
    await stage.envoy(one_target(v1))
    address = f"{LOOPBACK}:{v1.port if somebody else free_port()}"
    process = await stage.sidecar(control=address)
    await wait_for(lambda: "no control plane" in process.output(), "it says so", timeout_s=45)
    assert f"no control plane at {address}" in process.output()
    assert "is --control right?" in process.output()
    answers = await stage.users([f"user-{n}" for n in range(20)])
    assert {answer.pod for answer in answers} == {"v1"}
    assert not any(answer.failed for answer in answers)
    assert await process.stop() == 0


async def test_client_asks_whether_the_address_is_right_when_no_control_plane_is_there(
    stage: Stage,
) -> None:
    address = f"{LOOPBACK}:{free_port()}"
    name = EXPERIMENT.rsplit("/", 1)[1]
    command = ("describe", name, "--control", address, "--tenant", TENANT)
    text = await stage.run(*command, code=6)
    assert address in text
    assert "--control HOST:PORT" in text
    assert "Traceback" not in text
