"""A row that runs: its Envoy, which stays, and its server, which is started for each measurement.

Owns starting, waiting until what the server decides is applied, and one measured round. A server is
only there while it is measured, so that no other row's costs the machine anything.
"""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from sidecar.envoyfiles import cluster_plans
from tests.benchmarks import plans
from tests.benchmarks.processes import cpu_s, family, memory, wrk
from tests.benchmarks.rows import Place, Row, envoy_document, name_the_variant, write_files
from tests.integration.client import Client, Request, Response
from tests.integration.harness import BIN, EXT_PROC, Child, Envoy, wait_for
from turnout.contract import HEADER_VARIANT, WORKERS_CLUSTER

READY_S: Final = 30.0
# A busy machine lets a request wait for more than 50 ms now and then; with more of them the row is
# another one, and measured again.
UNSTAMPED_MAX: Final = 0.01
ATTEMPTS: Final = 3
# For servers of the Go runtime: one processor, and no collection below the limit.
_ENVIRONMENT: Final = ("GOMAXPROCS=1", "GOGC=off", "GOMEMLIMIT=256MiB")


class Round(NamedTuple):
    """One measurement of one row; the fields of the JSON file."""

    rps: float
    p50_ms: float
    p99_ms: float
    envoy_us: float  # CPU per request
    server_us: float  # likewise, of all of the server's processes; 0 = there is no server
    rss_mib: float  # likewise, added up


class Running:
    """A row's Envoy, which stays, and its server, which is started for each measurement."""

    def __init__(self, row: Row, directory: Path) -> None:
        """Nothing runs before `open`."""
        self.row = row
        self.place = Place(row.name, directory)
        self.snapshot = row.snapshot(self.place.upstreams)
        self.envoy = Envoy(
            self.place.directory / "envoy.log", self.place.admin, self.place.ports.listen
        )
        self._client = Client(self.place.ports.listen, connections=1)
        self._server: Child | None = None

    async def open(self) -> None:
        """Start Envoy and wait until it answers."""
        write_files(self.place, self.row, self.snapshot)
        path = self.place.directory / "envoy.json"
        path.write_text(envoy_document(self.place, self.row))
        await self.envoy.spawn(
            *(BIN / "envoy", "-c", path, "--disable-hot-restart", "--concurrency", "1"),
            *("-l", "error"),
        )
        await wait_for(self._answers, f"{self.row.name}: Envoy answers", timeout_s=READY_S)
        for cluster in {plan.cluster for plan in cluster_plans(self.snapshot)}:
            healthy = partial(self.envoy.healthy, cluster)
            await wait_for(healthy, f"{self.row.name}: {cluster} is healthy", timeout_s=READY_S)

    async def start(self) -> None:
        """Start the server and wait until what it decides is applied."""
        if self.row.command is not None:
            self._server = self.place.child("server")
            command = self.row.command(self.place, self.snapshot, self.row)
            await self._server.spawn("env", *_ENVIRONMENT, *command)
        if self.row.command is not None and not self.row.stamps:
            await wait_for(self._listens, f"{self.row.name}: serves", timeout_s=READY_S)
            name_the_variant(self.place)
        await wait_for(self._named, f"{self.row.name}: names a variant", timeout_s=READY_S)

    def pids(self) -> list[int]:
        """The server's processes, all of them."""
        return family(self._server.pid) if self._server is not None else []

    async def stop(self) -> None:
        """Stop the server."""
        if self._server is not None:
            await self._server.kill(signal.SIGTERM)
            self._server = None

    async def close(self) -> None:
        """Stop all."""
        if self._server is not None:
            await self._server.kill(signal.SIGTERM)
        if self.envoy.running:
            await self.envoy.kill()

    def output(self) -> str:
        """The end of what its processes wrote."""
        children = [self.envoy, *([self._server] if self._server is not None else [])]
        return "".join(f"--- {child.name}\n{child.output()[-2_000:]}\n" for child in children)

    def check(self) -> bool:
        """True; AssertionError with its output when a process has ended."""
        return self.envoy.alive() and (self._server is None or self._server.alive())

    async def measure(self, seconds: int, *, warm_up_s: int) -> Round:
        """Start the server, load it, stop it; again when too many requests went unstamped.

        Raises:
            AssertionError: A request failed, a process ended, or the row was not what it says.
        """
        try:
            await self.start()
            if warm_up_s:
                await wrk(self.place.ports.listen, warm_up_s)
            for _ in range(ATTEMPTS):
                measured, unstamped = await self._measured(seconds)
                if unstamped <= UNSTAMPED_MAX:
                    return measured
                print(f"{self.row.name}: {unstamped:.1%} unstamped: something else was busy")
            return measured
        except AssertionError:
            print(self.output())
            raise
        finally:
            await self.stop()

    async def _measured(self, seconds: int) -> tuple[Round, float]:
        """The figures, and the share of requests that were not stamped."""
        pids, before = self.pids(), await self._counters()
        envoy_s, server_s = cpu_s([self.envoy.pid]), cpu_s(pids)
        report = await wrk(self.place.ports.listen, seconds)
        envoy_s, server_s = cpu_s([self.envoy.pid]) - envoy_s, cpu_s(pids) - server_s
        assert self.pids() == pids, f"{self.row.name}: a process of the server came or went"
        after = await self._counters()
        grown = {name: after[name] - before[name] for name in after}
        asked, missed = grown.get("streams_started", 0), grown.get("failure_mode_allowed", 0)
        assert bool(asked) == self.row.stamps, f"{self.row.name}: {asked} requests asked the server"
        await wait_for(self._named, f"{self.row.name}: names a variant", timeout_s=READY_S)
        figures = Round(
            rps=report.rps,
            p50_ms=report.p50_ms,
            p99_ms=report.p99_ms,
            envoy_us=envoy_s / report.requests * 1e6,
            server_us=server_s / report.requests * 1e6,
            rss_mib=memory(pids).rss,
        )
        return figures, missed / report.requests

    async def _counters(self) -> dict[str, int]:
        return await self.envoy.stats(EXT_PROC) if self.row.command is not None else {}

    async def _ask(self) -> Response:
        headers = {plans.UNIT_HEADER: plans.USERS[0], **plans.HEADERS}
        [response] = await self._client.send([Request(plans.PATH, headers)])
        return response

    async def _answers(self) -> bool:
        self.check()
        try:
            return (await self._ask()).status == 200
        except OSError:
            return False

    async def _named(self) -> bool:
        self.check()
        return HEADER_VARIANT in (await self._ask()).headers

    async def _listens(self) -> bool:
        """The server's health check passes in Envoy's eyes."""
        self.check()
        return await self.envoy.healthy(WORKERS_CLUSTER)
