"""Real processes for integration tests: Envoy, sidecar, control plane; pods and clients here.

Owns ports, directories, starting, waiting and stopping. Refuses to sleep instead of waiting for a
condition, and to end a process that it did not start. Everything listens on loopback or on Unix
sockets below a short directory in /tmp (a socket's path has 107 bytes).

    async with Stage() as stage:
        v1, v2 = await stage.pod("v1"), await stage.pod("v2")
        snapshot = one_experiment(v1, v2, fractions={"v2": 0.2})
        await stage.envoy(snapshot)
        await stage.sidecar(snapshot=snapshot)
        await stage.enrols()
        answers = await stage.send([Request(headers={"x-user-id": "u1"})])
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from sidecar.snapshotfile import encode
from tests.integration.client import Client, Load, Request, Response, Tally
from tests.integration.fakecontrol import FakeControl
from tests.integration.pods import HEALTH_PATH, Pod, Seen
from tests.integration.snapshots import expected_variant, one_experiment, one_target, ranges_of
from tests.integration.waiting import LOOPBACK, free_port, wait_for
from turnout.v1alpha1.snapshot_pb2 import Snapshot

__all__ = [
    "BIN",
    "HEALTH_PATH",
    "Child",
    "Client",
    "ControlPlane",
    "Envoy",
    "FakeControl",
    "Load",
    "Pod",
    "Request",
    "Response",
    "Seen",
    "Sidecar",
    "Stage",
    "Tally",
    "expected_variant",
    "free_port",
    "one_experiment",
    "one_target",
    "ranges_of",
    "wait_for",
]

BIN: Final = Path(sys.executable).parent
STOP_S: Final = 10.0
EXT_PROC: Final = "http.turnout.ext_proc.turnout."
ANY_USER: Final = "anybody"
TENANT: Final = "risk"
RETRIES_MAX: Final = 10
MISSED_MAX: Final = 2.0

C = TypeVar("C", bound="Child")


class Child:
    """A process of ours, its output in a file."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Started and not ended."""
        return self._process is not None and self._process.returncode is None

    def output(self) -> str:
        """What it wrote so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    async def spawn(self, *command: str | Path) -> None:
        """Start it."""
        with self.log.open("ab") as out:
            self._process = await asyncio.create_subprocess_exec(
                *map(str, command), stdout=out, stderr=out, stdin=asyncio.subprocess.DEVNULL
            )

    async def kill(self, sig: int = signal.SIGKILL) -> int:
        """Send a signal and wait for the end; the exit code."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(sig)
        try:
            return await asyncio.wait_for(self._process.wait(), STOP_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
            raise AssertionError(
                f"{self.name} did not end within {STOP_S:g} s of signal {sig}\n{self.output()}"
            ) from None

    async def stop(self) -> int:
        """End it as an operator would."""
        return await self.kill(signal.SIGTERM) if self.running else 0

    def alive(self) -> bool:
        """True; AssertionError with its output when it has ended."""
        if not self.running:
            raise AssertionError(f"{self.name} ended\n{self.output()[-4_000:]}")
        return True


class Envoy(Child):
    """Envoy, and its admin interface."""

    def __init__(self, log: Path, admin: Path, port: int) -> None:
        super().__init__("envoy", log)
        self.admin = admin
        self.port = port

    async def get(self, path: str) -> str:
        """GET from the admin interface."""
        reader, writer = await asyncio.open_unix_connection(str(self.admin))
        try:
            request = f"GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n"
            writer.write(request.encode())
            answer = await reader.read(-1)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        head, _, body = answer.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head.lower():
            body = _unchunk(body)
        return body.decode()

    async def ready(self) -> bool:
        """Whether requests are served."""
        self.alive()
        try:
            return (await self.get("/ready")).strip() == "LIVE"
        except OSError:
            return False

    async def stats(self, prefix: str) -> dict[str, int]:
        """Counters and gauges below a prefix, without it."""
        text = await self.get(f"/stats?format=json&type=All&filter=^{prefix}")
        found = json.loads(text)["stats"]
        return {s["name"].removeprefix(prefix): s["value"] for s in found if "value" in s}

    async def ext_proc(self) -> dict[str, int]:
        """The filter's own counters."""
        return await self.stats(EXT_PROC)

    async def healthy(self, cluster: str) -> bool:
        """Whether a cluster has a healthy host."""
        return (await self.stats(f"cluster.{cluster}.")).get("membership_healthy", 0) > 0


def _unchunk(data: bytes) -> bytes:
    body = b""
    while data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            break
        body, data = body + rest[:length], rest[length + 2 :]
    return body


class Sidecar(Child):
    """A supervisor with its workers."""

    def workers(self) -> list[int]:
        """Process ids of the workers that live now."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [pid for pid in map(int, children) if "sidecar.worker" in _command_line(pid)]

    def kill_workers(self, sig: int = signal.SIGKILL) -> list[int]:
        """Send a signal to every worker, and return their ids."""
        pids = self.workers()
        self.kill_pids(pids, sig)
        return pids

    def kill_pids(self, pids: Iterable[int], sig: int = signal.SIGKILL) -> None:
        """Send a signal to workers found earlier, those that still are workers."""
        for pid in self.alive_pids(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sig)

    def alive_pids(self, pids: Iterable[int]) -> list[int]:
        """Which of these still are workers."""
        return [pid for pid in pids if "sidecar.worker" in _command_line(pid)]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


class ControlPlane(Child):
    """`turnout control`."""

    def __init__(self, log: Path, port: int, store: Path) -> None:
        super().__init__("control", log)
        self.port = port
        self.store = store

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{LOOPBACK}:{self.port}"


async def _end(child: Child) -> None:
    if child.running:
        await child.kill(signal.SIGKILL if isinstance(child, Envoy) else signal.SIGTERM)


async def _failed(endings: Iterable[Awaitable[object]]) -> list[BaseException]:
    """Carry them all out; what was raised."""
    ended = await asyncio.gather(*endings, return_exceptions=True)
    return [one for one in ended if isinstance(one, BaseException)]


class Stage:
    """One Envoy with one sidecar and all around it; everything ends with it.

    Attributes:
        directory: A short directory that is removed at the end.
        port: Where Envoy listens.
        pods: All pods, in the order in which they were opened.
        turnout: The command that its sidecars are.
    """

    def __init__(self) -> None:
        self.turnout = BIN / "turnout"
        self.directory = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
        self.port = free_port()
        self.metrics_port = free_port()
        self._children: list[Child] = []
        self.pods: list[Pod] = []
        self._fakes: list[FakeControl] = []
        self._loads: list[Load] = []
        self._client: Client | None = None
        self._envoy: Envoy | None = None
        self._sidecar: Sidecar | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        """End all of it, whatever of it fails to end; then say what failed."""
        failures: list[BaseException] = []
        failures += await _failed(load.abort() for load in self._loads)
        if self._client is not None:
            self._client.close()
        for child in reversed(self._children):
            failures += await _failed([_end(child)])
        failures += await _failed(fake.stop() for fake in self._fakes)
        failures += await _failed(pod.close() for pod in self.pods)
        if error[0] is not None or failures:
            self.dump()
        shutil.rmtree(self.directory, ignore_errors=bool(failures))
        if failures:
            raise BaseExceptionGroup("the stage did not end as it should", failures)

    def dump(self) -> None:
        """Print the end of every child's output."""
        for child in self._children:
            print(f"--- {child.name}\n{child.output()[-4_000:]}")

    # -- Parts -------------------------------------------------------------------------------------

    @property
    def envoy_dir(self) -> Path:
        """Where Envoy's watched files are."""
        return self.directory / "e"

    @property
    def socket(self) -> Path:
        """The workers' sockets, without their number."""
        return self.directory / "w"

    @property
    def admin(self) -> Path:
        """Envoy's admin socket."""
        return self.directory / "a"

    async def pod(self, name: str, *, record: bool = False) -> Pod:
        """Open a pod."""
        pod = await Pod(name, record=record).open()
        self.pods.append(pod)
        return pod

    async def envoy(
        self,
        snapshot: Snapshot | None = None,
        *,
        files: Sequence[Path] = (),
        workers: int = 2,
        concurrency: int = 2,
        args: Sequence[str] = (),
    ) -> Envoy:
        """Write a bootstrap (see there) and start Envoy on it, with so many threads."""
        await self.bootstrap(snapshot, files=files, workers=workers, args=args)
        return await self.start_envoy(concurrency=concurrency)

    async def bootstrap(
        self,
        snapshot: Snapshot | None = None,
        *,
        files: Sequence[Path] = (),
        workers: int = 2,
        args: Sequence[str] = (),
    ) -> None:
        """Write a bootstrap and the first files with the real command.

        Args:
            snapshot: The targets; or
            files: resource files with the targets.
            workers: Workers' sockets.
            args: More options of `turnout envoy bootstrap`.
        """
        given = [part for file in files for part in ("-f", str(file))]
        if snapshot is not None:
            given = ["--snapshot", str(self.snapshot_file(snapshot, "first"))]
        await self.run(
            "envoy", "bootstrap", *given,
            "--listen", f"{LOOPBACK}:{self.port}",
            "--sidecar", f"unix:{self.socket}",
            "--workers", str(workers),
            "--envoy-dir", str(self.envoy_dir),
            "--admin", f"unix:{self.admin}",
            *args, "-o", str(self.directory),
        )  # fmt: skip

    async def start_envoy(self, *, concurrency: int = 2) -> Envoy:
        """Start Envoy on the bootstrap that is there."""
        envoy = self._own(Envoy(self.directory / "envoy.log", self.admin, self.port))
        await envoy.spawn(
            BIN / "envoy", "-c", self.directory / "bootstrap.yaml", "--disable-hot-restart",
            "--concurrency", str(concurrency), "-l", "warning", "--reject-unknown-dynamic-fields",
        )  # fmt: skip
        self._envoy = envoy
        await wait_for(envoy.ready, "Envoy is ready")
        return envoy

    async def sidecar(
        self,
        *,
        snapshot: Snapshot | None = None,
        control: str = "",
        state: str = "state",
        node: str = "node-1",
        workers: int = 2,
        envoy_admin: bool = True,
        args: Sequence[str] = (),
    ) -> Sidecar:
        """Start `turnout sidecar`, stand-alone on a snapshot or with a control plane."""
        command = [
            "sidecar", "--listen", f"unix:{self.socket}", "--workers", str(workers),
            "--state-dir", str(self.directory / state), "--node", node,
            "--envoy-dir", str(self.envoy_dir),
            "--metrics", f"{LOOPBACK}:{self.metrics_port}",
        ]  # fmt: skip
        if envoy_admin:
            command += ["--envoy-admin", f"unix:{self.admin}"]
        if snapshot is not None:
            command += ["--snapshot", str(self.snapshot_file(snapshot, "served"))]
        if control:
            command += ["--control", control, "--tenant", TENANT]
        sidecar = self._own(Sidecar("sidecar", self.directory / "sidecar.log"))
        await sidecar.spawn(self.turnout, *command, *args)
        self._sidecar = sidecar
        return sidecar

    async def kill_sidecar(self) -> Sidecar:
        """Kill the last sidecar: the supervisor first, so that nobody restarts the workers."""
        sidecar = self._sidecar
        assert sidecar is not None
        workers = sidecar.workers()
        await sidecar.kill()
        sidecar.kill_pids(workers)
        await wait_for(lambda: not sidecar.alive_pids(workers), "all workers are gone")
        return sidecar

    async def restart_sidecar(self, *, control: str) -> Sidecar:
        """Kill the last sidecar and start another on its state."""
        await self.kill_sidecar()
        return await self.sidecar(control=control)

    async def fake_control(self) -> FakeControl:
        """Start a control plane that does what the test says."""
        fake = FakeControl(free_port())
        self._fakes.append(fake)
        await fake.start()
        return fake

    async def control(self, *args: str, port: int = 0, store: str = "control.db") -> ControlPlane:
        """Start `turnout control`; a store that is there goes on."""
        plane = ControlPlane(
            self.directory / "control.log", port or free_port(), self.directory / store
        )
        self._own(plane)
        await plane.spawn(
            BIN / "turnout", "control", "--listen", plane.address,
            "--store", f"sqlite:{plane.store}", *args,
        )  # fmt: skip

        async def accepts() -> bool:
            plane.alive()
            return await _accepts(plane.port)

        await wait_for(accepts, "the control plane accepts connections")
        return plane

    async def run(self, *command: str, code: int = 0) -> str:
        """Run `turnout` to its end and return its output (both streams)."""
        process = await asyncio.create_subprocess_exec(
            str(BIN / "turnout"), *command,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            stdin=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        output, _ = await process.communicate()
        text = output.decode()
        assert process.returncode == code, f"turnout {command[0]}: {process.returncode}\n{text}"
        return text

    def snapshot_file(self, snapshot: Snapshot, name: str) -> Path:
        """Write a snapshot file, header included."""
        path = self.directory / f"{name}.snapshot"
        path.write_bytes(encode(snapshot.SerializeToString(deterministic=True)))
        return path

    def write(self, file: str, text: str) -> None:
        """Replace one of Envoy's watched files, as the sidecar does."""
        path = self.envoy_dir / file
        temporary = path.with_name(".new")
        temporary.write_text(text)
        temporary.replace(path)

    def _own(self, child: C) -> C:
        self._children.append(child)
        return child

    # -- Traffic -----------------------------------------------------------------------------------

    @property
    def client(self) -> Client:
        """Connections to Envoy, kept between calls."""
        if self._client is None:
            self._client = Client(self.port)
        return self._client

    async def send(self, requests: Iterable[Request]) -> list[Response]:
        """Send all and return the answers in order."""
        return await self.client.send(requests)

    async def users(self, names: Iterable[str]) -> list[Response]:
        """One request of each user."""
        return await self.send(Request(headers={"x-user-id": name}) for name in names)

    async def stamped(self, names: Sequence[str]) -> list[Response]:
        """One stamped answer of each user, in order.

        On a machine that is busy with other things Envoy may wait in vain for the sidecar (50 ms)
        and serve the baseline: such users ask again, and Envoy must have counted every time.
        """
        before = await self.unstamped()
        answers = await self.users(names)
        missed = 0
        for _ in range(RETRIES_MAX):
            again = [i for i, answer in enumerate(answers) if not answer.variant]
            if not again:
                break
            missed += len(again)
            if len(again) > len(names) / 2:
                # Not a late answer here and there: no worker is asked now (just restarted, say).
                missed += await self.enrols()
            for i, answer in zip(again, await self.users(names[i] for i in again), strict=True):
                answers[i] = answer
        assert missed <= MISSED_MAX * len(names), f"{missed} of {len(names)} unstamped"
        assert await self.unstamped() - before == missed
        return answers

    async def unstamped(self) -> int:
        """Requests that Envoy passed on without an answer, as it counts them."""
        assert self._envoy is not None
        return (await self._envoy.ext_proc()).get("failure_mode_allowed", 0)

    async def message_timeouts(self) -> int:
        """Those of them that waited in vain for an answer."""
        assert self._envoy is not None
        return (await self._envoy.ext_proc()).get("message_timeouts", 0)

    def load(
        self, request: Callable[[int], Request], *, connections: int = 4, pause_s: float = 0.004
    ) -> Load:
        """Start requests in the background."""
        load = Load(self.port, request, connections=connections, pause_s=pause_s)
        self._loads.append(load)
        load.start()
        return load

    async def enrols(self, *, path: str = Request().path, user: str = ANY_USER) -> int:
        """Wait until a request of a user is stamped; how many were not."""
        probes: list[Response] = []

        async def stamped() -> bool:
            probes.extend(await self.send([Request(path=path, headers={"x-user-id": user})]))
            return bool(probes[-1].variant)

        await wait_for(stamped, "a request is stamped")
        return len(probes) - 1

    async def workers_serve(self, count: int = 2) -> None:
        """Wait until so many workers serve a plan."""

        async def ready() -> bool:
            return await self.metric("turnout_sidecar_workers_ready") == count

        await wait_for(ready, f"{count} workers serve")

    async def metric(self, name: str) -> float:
        """Sum of a metric of the sidecar over its labels."""
        return sum([sample.value for sample in await self._samples(name)])

    async def metric_by(self, name: str, label: str) -> dict[str, float]:
        """A metric of the sidecar by one label."""
        return {sample.labels[label]: sample.value for sample in await self._samples(name)}

    async def _samples(self, name: str) -> list[Sample]:
        text = await _http_get(self.metrics_port, "/metrics")
        lines = "".join(f"{line}\n" for line in text.splitlines() if line.startswith(name))
        families = text_string_to_metric_families(lines)
        return [sample for family in families for sample in family.samples if sample.name == name]


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


async def _http_get(port: int, path: str) -> str:
    client = Client(port, connections=1)
    try:
        answer: Any = await client.exchange(Request(path=path, host=LOOPBACK).encode())
    finally:
        client.close()
    return str(answer.body.decode())
