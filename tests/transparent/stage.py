"""Two pods that both intercept, and a client, each in a network namespace of its own.

    client 10.99.0.1 ──┐
    v1     10.99.0.2 ──┼── a bridge in a fourth namespace
    v2     10.99.0.3 ──┘

Needs root and iptables. Everything is removed at the end: namespaces, processes, files.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

from sidecar.snapshotfile import encode
from tests.integration.harness import BIN, Child, Envoy, Sidecar
from tests.integration.waiting import wait_for
from turnout.v1alpha1.snapshot_pb2 import Snapshot

HERE: Final = Path(__file__).parent
INTERCEPT: Final = HERE.parents[1] / "envoy" / "transparent" / "intercept"
PORT: Final = 8080
ENVOY_PORT: Final = 15006
METRICS_PORT: Final = 9000
CLIENT, V1, V2 = "10.99.0.1", "10.99.0.2", "10.99.0.3"
# Of the tenant: what a control plane would send to both sidecars.
KEY: Final = bytes(range(32))


def ip(*command: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *command], check=True, capture_output=True, text=True)


class Host:
    """One namespace, its processes and their files."""

    def __init__(self, name: str, address: str, directory: Path) -> None:
        self.name = f"turnout-{os.getpid()}-{name}"
        self.address = address
        self.directory = directory / name
        self.directory.mkdir()
        self.children: list[Child] = []
        self.sidecar: Sidecar | None = None
        self.envoy: Envoy | None = None

    def inside(self, *command: str | Path) -> list[str]:
        """A command that runs in the namespace."""
        return ["ip", "netns", "exec", self.name, *map(str, command)]

    async def run(self, *command: str | Path, given: str = "") -> str:
        """Run a command inside to its end; its output."""
        process = await asyncio.create_subprocess_exec(
            *self.inside(*command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.directory,
        )
        output, errors = await process.communicate(given.encode())
        assert process.returncode == 0, f"{command}: {errors.decode()}"
        return output.decode()

    async def model(self, name: str) -> None:
        """Start the model, which knows nothing of the rest."""
        child = Child("model", self.directory / "model.log")
        self.children.append(child)
        await child.spawn(*self.inside(sys.executable, HERE / "model.py", name, str(PORT)))

    async def proxy(self, snapshot: Snapshot) -> None:
        """Intercept, and start Envoy and sidecar beside the model."""
        await self.run(INTERCEPT, "add", str(PORT))
        await self.run(INTERCEPT, "add", str(PORT))
        file = self.directory / "plan.snapshot"
        file.write_bytes(encode(snapshot.SerializeToString(deterministic=True)))
        state = self.directory / "state"
        state.mkdir()
        (state / "tenant.key").write_bytes(KEY)
        (state / "tenant.key").chmod(0o600)
        local = f"{self.address}:{PORT}"
        await self.run(
            BIN / "turnout", "envoy", "bootstrap", "--snapshot", file,
            "--listen", f"0.0.0.0:{ENVOY_PORT}", "--local", local,
            "--sidecar", "unix:" + str(self.directory / "w"), "--workers", "2",
            "--envoy-dir", self.directory / "e", "--admin", "unix:" + str(self.directory / "a"),
            "-o", self.directory,
        )  # fmt: skip
        self.envoy = Envoy(self.directory / "envoy.log", self.directory / "a", ENVOY_PORT)
        self.children.append(self.envoy)
        await self.envoy.spawn(
            *self.inside(
                BIN / "envoy",
                "-c",
                self.directory / "bootstrap.yaml",
                "--disable-hot-restart",
                "--concurrency",
                "1",
                "-l",
                "warning",
                "--reject-unknown-dynamic-fields",
            )
        )
        await wait_for(self.envoy.ready, "Envoy is ready")
        await self.start_sidecar()

    async def start_sidecar(self) -> None:
        """Start the sidecar."""
        self.sidecar = Sidecar("sidecar", self.directory / "sidecar.log")
        self.children.append(self.sidecar)
        await self.sidecar.spawn(
            *self.inside(
                BIN / "turnout",
                "sidecar",
                "--listen",
                "unix:" + str(self.directory / "w"),
                "--state-dir",
                self.directory / "state",
                "--node",
                self.name,
                "--envoy-dir",
                self.directory / "e",
                "--envoy-admin",
                "unix:" + str(self.directory / "a"),
                "--snapshot",
                self.directory / "plan.snapshot",
                "--local",
                f"{self.address}:{PORT}",
                "--metrics",
                f"127.0.0.1:{METRICS_PORT}",
            )
        )

    async def metrics(self) -> dict[str, float]:
        """The sidecar's metrics, by name and labels as they are printed."""
        text = await self.run("curl", "-sS", f"http://127.0.0.1:{METRICS_PORT}/metrics")
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    async def kill_sidecar(self) -> None:
        """Kill supervisor and workers at once."""
        assert self.sidecar is not None
        workers = self.sidecar.workers()
        await self.sidecar.kill()
        self.sidecar.kill_pids(workers)
        sidecar = self.sidecar
        await wait_for(lambda: not sidecar.alive_pids(workers), "workers are gone")

    async def ask(
        self, address: str, requests: Sequence[dict[str, Any]], *, port: int = PORT
    ) -> list[dict[str, Any]]:
        """Ask as a client in this namespace."""
        output = await self.run(
            sys.executable, HERE / "ask.py", address, str(port), given=json.dumps(list(requests))
        )
        answers: list[dict[str, Any]] = json.loads(output)
        return answers

    async def stats(self, prefix: str) -> dict[str, int]:
        """Counters of this host's Envoy."""
        assert self.envoy is not None
        return await self.envoy.stats(prefix)


class Network:
    """The namespaces."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
        self.client = Host("c", CLIENT, self.directory)
        self.v1 = Host("v1", V1, self.directory)
        self.v2 = Host("v2", V2, self.directory)
        self._switch = f"turnout-{os.getpid()}-sw"
        self._made: list[str] = []

    async def __aenter__(self) -> Self:
        """Make them, and connect them."""
        try:
            self._connect()
        except BaseException:
            self._remove()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        """Take everything away."""
        for host in (self.client, self.v1, self.v2):
            for child in reversed(host.children):
                if child.running:
                    hard = isinstance(child, Envoy)
                    await child.kill(signal.SIGKILL if hard else signal.SIGTERM)
                if error[0] is not None:
                    print(f"--- {host.name} {child.name}\n{child.output()[-3_000:]}")
        self._remove()

    def _connect(self) -> None:
        self._namespace(self._switch)
        ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self._switch, "link", "set", "br0", "up")
        for number, host in enumerate((self.client, self.v1, self.v2)):
            self._namespace(host.name)
            port = f"p{number}"
            ip(
                *("link", "add", port, "netns", self._switch),
                *("type", "veth", "peer", "name", "eth0", "netns", host.name),
            )
            ip("-n", self._switch, "link", "set", port, "master", "br0", "up")
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            ip("-n", host.name, "link", "set", "eth0", "up")

    def _namespace(self, name: str) -> None:
        ip("netns", "add", name)
        self._made.append(name)
        ip("-n", name, "link", "set", "lo", "up")

    def _remove(self) -> None:
        for name in reversed(self._made):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)
        shutil.rmtree(self.directory)
