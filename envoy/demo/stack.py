"""Everything that runs in the demo, and where: ports, sockets, directories, processes.

Starts the same commands that an operator would type, each with its log in .turnout/demo/logs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from string import Template
from typing import Final

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from envoy.demo.client import Connection
from envoy.demo.envoystats import ClusterMeter, EnvoyStats
from envoy.demo.models import VERSIONS
from envoy.demo.processes import Process, StartFailure, children, free_port, wait_for

TENANT: Final = "demo"
TARGET: Final = "digits"
WORKERS: Final = 2
NODE: Final = "demo-node"
RESOURCES: Final = Path(__file__).parent / "resources"
BIN: Final = Path(sys.executable).parent
_COMMAND_TIMEOUT_S: Final = 30.0
_METER_EVERY_S: Final = 1.0


class Stack:
    """The demo's processes.

    Args:
        root: .turnout/demo; fitted models in it are kept from run to run, all else is made anew.
        jaeger: HOST:PORT of a tracing backend that gets all spans, "" = none.
    """

    def __init__(self, root: Path, *, jaeger: str = "") -> None:
        self.root = root
        self._jaeger = jaeger
        self.logs = root / "logs"
        self.resources = root / "resources"
        # Unix socket paths must stay below 108 bytes, wherever the checkout is.
        self.sockets = Path(tempfile.mkdtemp(prefix="turnout-demo-", dir="/tmp"))
        self.control_address = f"127.0.0.1:{free_port()}"
        self.envoy_address = f"127.0.0.1:{free_port()}"
        self.metrics_address = f"127.0.0.1:{free_port()}"
        self.control_metrics_address = f"127.0.0.1:{free_port()}"
        self.pods = {version: f"127.0.0.1:{free_port()}" for version in VERSIONS}
        self.admin = f"unix:{self.sockets}/admin.sock"
        self.stats = EnvoyStats(self.admin)
        self._meter = ClusterMeter()
        self._metering = asyncio.Lock()
        self._running: dict[str, Process] = {}

    # -- Files -------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the directories, and the resource files with this run's addresses in them."""
        for part in ("logs", "resources", "envoy", "state", "store"):
            shutil.rmtree(self.root / part, ignore_errors=True)
            (self.root / part).mkdir(parents=True)
        (self.root / "summary.json").unlink(missing_ok=True)
        addresses = {f"v{version}": address for version, address in self.pods.items()}
        for source in sorted(RESOURCES.glob("*.yaml")):
            text = Template(source.read_text()).substitute(addresses)
            (self.resources / source.name).write_text(text)

    # -- Starting ----------------------------------------------------------------------------------

    def _start(self, name: str, *command: str) -> Process:
        if name in self._running and self._running[name].running:
            raise AssertionError(f"{name} runs already")
        process = Process(
            name,
            command,
            logs=self.logs,
            # One row at a time: thread pools of numeric libraries would only fight over the cores.
            environment={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._running[name] = process
        return process

    async def start_control(self) -> None:
        """Start the control plane (again: with the same store).

        Raises:
            StartFailure: It does not serve.
        """
        process = self._start(
            "control",
            *(str(BIN / "turnout"), "control"),
            *("--listen", self.control_address),
            *("--store", f"sqlite:{self.root / 'store' / 'control.db'}"),
            *("--metrics", self.control_metrics_address),
            *(("--forward-otlp", self._jaeger) if self._jaeger else ()),
        )
        await process.ready(self._control_serves)

    async def _control_serves(self) -> bool:
        async with grpc.aio.insecure_channel(self.control_address) as channel:
            try:
                answer = await HealthStub(channel).Check(HealthCheckRequest(), timeout=1)
            except grpc.aio.AioRpcError:
                return False
            serves: bool = answer.status == HealthCheckResponse.SERVING
            return serves

    async def start_pods(self) -> None:
        """Start the model pods; the first start fits the models.

        Raises:
            StartFailure: One does not serve.
        """
        for version, address in self.pods.items():
            self._start(
                f"pod-v{version}",
                *(sys.executable, "-m", "envoy.demo.pod"),
                *("--version", version),
                *("--port", address.rpartition(":")[2]),
                *("--otlp", self.control_address),
                *("--models", str(self.root / "models")),
            )
        for version, address in self.pods.items():

            async def serves(address: str = address) -> bool:
                connection = Connection(address)
                try:
                    return (await connection.request("GET", "/v2/health/ready")).status == 200
                except OSError:
                    return False
                finally:
                    connection.close()

            await self._running[f"pod-v{version}"].ready(serves, timeout_s=60)

    async def start_sidecar(self) -> None:
        """Start the sidecar's supervisor and its workers.

        Raises:
            StartFailure: A worker's socket does not appear.
        """
        listen = self.sockets / "worker"
        process = self._start(
            "sidecar",
            *(str(BIN / "turnout"), "sidecar"),
            *("--listen", f"unix:{listen}"),
            *("--workers", str(WORKERS)),
            *("--control", self.control_address),
            *("--tenant", TENANT),
            *("--state-dir", str(self.root / "state")),
            *("--node", NODE),
            *("--envoy-dir", str(self.root / "envoy")),
            *("--envoy-admin", self.admin),
            *("--metrics", self.metrics_address),
            *(("--otlp", self.control_address) if self._jaeger else ()),
        )

        async def listens() -> bool:
            return all(Path(f"{listen}.{index}").exists() for index in range(WORKERS))

        await process.ready(listens)

    async def start_envoy(self) -> None:
        """Write Envoy's bootstrap with `turnout envoy bootstrap` and start Envoy.

        Raises:
            StartFailure: The files cannot be made, or Envoy does not go live.
        """
        bootstrap = self.root / "envoy"
        await self.command(
            "envoy-bootstrap",
            *("envoy", "bootstrap", "-f", str(self.resources / "target.yaml")),
            *("--listen", self.envoy_address),
            *("--sidecar", f"unix:{self.sockets / 'worker'}"),
            *("--workers", str(WORKERS)),
            *("--envoy-dir", str(bootstrap)),
            *("--admin", self.admin),
            *("--otlp", self.control_address),
            *("--sampling", "100"),
            *("-o", str(bootstrap)),
        )
        process = self._start(
            "envoy",
            *(str(BIN / "envoy"), "-c", str(bootstrap / "bootstrap.yaml")),
            *("--concurrency", "2", "--disable-hot-restart", "--log-level", "warning"),
        )
        await process.ready(self.stats.ready)

    async def command(self, name: str, *arguments: str) -> str:
        """Run one `turnout` command to its end; answers what it printed.

        Raises:
            StartFailure: It did not exit with 0.
        """
        process = Process(name, [str(BIN / "turnout"), *arguments], logs=self.logs)

        async def ended() -> bool:
            return not process.running

        try:
            await wait_for(ended, timeout_s=_COMMAND_TIMEOUT_S, what=f"turnout {arguments[0]}")
        except TimeoutError as error:
            process.kill()
            raise StartFailure(f"{error}; the end of {process.log}:\n{process.tail()}") from error
        if process.status != 0:
            raise StartFailure(
                f"`turnout {' '.join(arguments)}` ended with status {process.status}; "
                f"it said:\n{process.tail()}"
            )
        return process.log.read_text()

    async def apply(self, *files: str) -> None:
        """`turnout apply` resource files of this run.

        Raises:
            StartFailure: They were refused.
        """
        chosen = [part for name in files for part in ("-f", str(self.resources / name))]
        await self.command("apply", "apply", *chosen, "--control", self.control_address)

    # -- Watching and ending -----------------------------------------------------------------------

    async def upstream_totals(self) -> Counter[str]:
        """HOST:PORT -> requests that Envoy sent there since it started."""
        async with self._metering:  # or an older reading could be taken for a restart from 0
            addresses = await self.stats.addresses()
            self._meter.sample(await self.stats.read(), addresses)
            return self._meter.totals()

    async def meter(self) -> None:
        """Sample Envoy's clusters every second, until cancelled.

        Raises:
            StartFailure: Something that is needed ended.
        """
        while True:
            try:
                await self.upstream_totals()
            except OSError:
                self.check()  # an Envoy that ended says why; one that is slow is asked again
            await asyncio.sleep(_METER_EVERY_S)

    def check(self) -> None:
        """Make sure that everything that was started and not stopped still runs.

        Raises:
            StartFailure: Something ended.
        """
        for process in self._running.values():
            process.check()

    def kill(self, name: str) -> None:
        """End one process at once, as a crash would."""
        self._running.pop(name).kill()

    def worker_pids(self) -> list[int]:
        """The sidecar's workers."""
        supervisor = self._running["sidecar"].pid
        return [pid for pid, line in children(supervisor) if "sidecar.worker" in line]

    def signal_supervisor(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor alone."""
        os.kill(self._running["sidecar"].pid, number)

    def stop(self) -> None:
        """End everything that was started, by its pid, and remove the sockets.

        The sidecar first, so that its last counts reach the control plane, which ends last.
        """
        first, last = self._running.pop("sidecar", None), self._running.pop("control", None)
        if first is not None:
            first.stop()
        for process in self._running.values():
            process.ask_to_end()
        for process in self._running.values():
            process.stop()
        if last is not None:
            last.stop()
        self._running.clear()
        shutil.rmtree(self.sockets, ignore_errors=True)
