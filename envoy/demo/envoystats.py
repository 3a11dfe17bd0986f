"""Envoy's own counters, read from its admin interface: what the demo's figures are held against."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from envoy.demo.client import Connection
from turnout import contract

_HTTP = f"http.{contract.HCM_STAT_PREFIX}."
# What Envoy is asked for: to print all of its counters again and again costs it more than the
# demo's traffic does.
_WANTED = quote(rf"^(http\.{contract.HCM_STAT_PREFIX}\.|cluster\..*\.upstream_rq_total)", safe="")
_COUNTERS = f"/stats?type=Counters&usedonly&filter={_WANTED}"
_EXT_PROC = f"{_HTTP}ext_proc.{contract.EXT_PROC_STAT_PREFIX}."


@dataclass(frozen=True, slots=True)
class EnvoyCounts:
    """Counters since Envoy started, or the difference of two readings."""

    counters: Mapping[str, int]

    def __sub__(self, earlier: EnvoyCounts) -> EnvoyCounts:
        return EnvoyCounts(
            {
                name: value - earlier.counters.get(name, 0)
                for name, value in self.counters.items()
                if value != earlier.counters.get(name, 0)
            }
        )

    def value(self, name: str) -> int:
        """One counter; a counter that Envoy has not made yet is 0."""
        return self.counters.get(name, 0)

    @property
    def requests(self) -> int:
        """Requests from clients that Envoy answered."""
        return self.value(f"{_HTTP}downstream_rq_completed")

    @property
    def errors(self) -> int:
        """Answers of 500 and more to clients."""
        return self.value(f"{_HTTP}downstream_rq_5xx")

    @property
    def unstamped(self) -> int:
        """Requests for which the sidecar gave no answer."""
        return self.value(f"{_EXT_PROC}failure_mode_allowed")

    @property
    def answered(self) -> int:
        """Requests that the sidecar stamped: it ends a stream without a message otherwise."""
        return self.value(f"{_EXT_PROC}stream_msgs_received")


class ClusterMeter:
    """Requests per upstream address since the start, through clusters that come and go.

    A cluster that Envoy removes takes its counters along, and starts from 0 when it returns.
    Sampled every second, the sum over all its lives is exact: clusters leave long after
    their last request.
    """

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._totals: Counter[str] = Counter()

    def sample(self, counts: EnvoyCounts, addresses: Mapping[str, str]) -> None:
        """Add what happened since the last sample.

        Args:
            counts: All counters now.
            addresses: Cluster name -> HOST:PORT, as `EnvoyStats.addresses` says.
        """
        now = {name: counts.value(f"cluster.{name}.upstream_rq_total") for name in addresses}
        for name, total in now.items():
            before = self._last.get(name, 0)
            self._totals[addresses[name]] += total - before if total >= before else total
        self._last = now

    def totals(self) -> Counter[str]:
        """HOST:PORT -> requests."""
        return self._totals.copy()


class EnvoyStats:
    """Reads one Envoy.

    Args:
        admin: `unix:PATH` of the admin interface.
    """

    def __init__(self, admin: str) -> None:
        self._admin = admin

    async def _get(self, path: str) -> str:
        connection = Connection(self._admin)
        try:
            reply = await connection.request("GET", path)
        finally:
            connection.close()
        return reply.body.decode()

    async def ready(self) -> bool:
        """Whether Envoy serves."""
        try:
            return (await self._get("/ready")).strip() == "LIVE"
        except OSError:
            return False

    async def read(self) -> EnvoyCounts:
        """All counters and gauges now."""
        counters = {}
        for line in (await self._get(_COUNTERS)).splitlines():
            name, _, value = line.rpartition(": ")
            if value.isdigit():
                counters[name] = int(value)
        return EnvoyCounts(counters)

    async def addresses(self) -> dict[str, str]:
        """Cluster name -> HOST:PORT of its (first) host, for the clusters that have one."""
        found: dict[str, str] = {}
        for line in (await self._get("/clusters")).splitlines():
            name, separator, rest = line.partition("::")
            address = rest.partition("::")[0]
            if separator and re.fullmatch(r"[\d.]+:\d+", address):
                found.setdefault(name, address)
        return found
