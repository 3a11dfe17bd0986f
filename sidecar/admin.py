"""A reader of Envoy's admin interface.

Owns the HTTP requests and what is made of the answers: which clusters are active with how many
healthy hosts, and Envoy's own ext_proc counters. Refuses to change anything in Envoy.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from turnout.contract import (
    EXT_PROC_FILTER,
    EXT_PROC_STAT_PREFIX,
    HCM_STAT_PREFIX,
    ROUTE_CONFIG_NAME,
)

TIMEOUT_S: Final = 2.0
# Looks after which clusters are read again although nothing says that they have changed.
HOSTS_EVERY: Final = 10
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
_FAILURE_MODE_ALLOWED: Final = f".ext_proc.{EXT_PROC_STAT_PREFIX}.failure_mode_allowed"
FAILURE_MODE_ALLOWED: Final = f"http.{HCM_STAT_PREFIX}{_FAILURE_MODE_ALLOWED}"
# What Envoy counts about each of our files; every kind has the same words.
_UPDATES: Final = {
    "clusters": "cluster_manager.cds.",
    "routes": f"http.{HCM_STAT_PREFIX}.rds.{ROUTE_CONFIG_NAME}.",
    "filter": f"extension_config_discovery.http_filter.{EXT_PROC_FILTER}.",
}
_TAKEN: Final = _UPDATES["clusters"] + "update_success"
_REFUSED: Final = ("update_rejected", "update_failure", "config_fail")
# Every number that is read, in one request.
_FILTER: Final = (
    r"^(http\..+\.ext_proc\..*|cluster_manager\.cds\.update_.*|http\.[^.]+\.rds\..*\.update_.*"
    r"|.*extension_config_discovery\..*)$"
)


class AdminError(RuntimeError):
    """Envoy's admin did not answer as expected; the message names the address."""


@dataclass(frozen=True, slots=True)
class EnvoyState:
    """One look at Envoy.

    Attributes:
        healthy_hosts: Active cluster -> hosts that pass every check. A warming cluster is not here.
        counters: Envoy's counters that are read, by full name.
        uptime_s: Age of this Envoy.
    """

    healthy_hosts: Mapping[str, int]
    counters: Mapping[str, int] = field(default_factory=dict)
    uptime_s: int = 0

    @property
    def unanswered(self) -> int:
        """Requests that Envoy passed on without an answer of the sidecar, since it started."""
        # A user's own Envoy may have several connection managers, under names of its own.
        return sum(
            value
            for name, value in self.counters.items()
            if name.startswith("http.") and name.endswith(_FAILURE_MODE_ALLOWED)
        )

    @property
    def route_updates(self) -> int:
        """How often this Envoy has taken new routes."""
        return self.counters.get(_UPDATES["routes"] + "update_success", 0)

    @property
    def has_own_routes(self) -> bool:
        """Whether this Envoy does not read our routes: a user's bootstrap has its own."""
        ours = f".rds.{ROUTE_CONFIG_NAME}.update_"
        return not any(name.startswith("http.") and ours in name for name in self.counters)

    @property
    def filter_reloads(self) -> int:
        """How often this Envoy has taken a new configuration of the ext_proc filter."""
        return self.counters.get(_UPDATES["filter"] + "config_reload", 0)


class Refusals:
    """Which of our files this Envoy has refused, and not taken a newer one of since."""

    def __init__(self) -> None:
        """Nothing refused."""
        self._seen: dict[str, tuple[int, int]] = {}
        self._refused: set[str] = set()

    def observe(self, state: EnvoyState) -> tuple[str, ...]:
        """Sentences about what is refused now."""
        for kind, prefix in _UPDATES.items():
            refused = sum(state.counters.get(prefix + word, 0) for word in _REFUSED)
            taken = state.counters.get(prefix + "update_success", 0)
            before_refused, before_taken = self._seen.get(kind, (0, 0))
            if refused > before_refused:
                self._refused.add(kind)
            elif taken != before_taken:
                self._refused.discard(kind)
            self._seen[kind] = (refused, taken)
        return tuple(f"Envoy refused our {kind} file" for kind in sorted(self._refused))


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of to a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Admin:
    """Envoy's admin at `unix:PATH` or `HOST:PORT`, over one connection that is kept."""

    def __init__(self, address: str) -> None:
        """Remember the address; nothing is opened."""
        self.address = address
        self._connection: http.client.HTTPConnection | None = None
        self._hosts: dict[str, int] = {}
        # What the hosts were read beside: Envoy's age, and how often it has taken clusters.
        self._hosts_of: tuple[int, int] | None = None
        self._calm_looks = 0

    async def look(self, *, calm: bool = False) -> EnvoyState:
        """Read clusters, counters and age.

        Args:
            calm: Nobody waits for a cluster: they are read again only when this Envoy is another
                or has taken clusters since, and every HOSTS_EVERY looks; of 60 clusters that is
                half of what a look costs.

        Raises:
            AdminError: No answer within TIMEOUT_S per request, or not what Envoy answers.
        """
        return await asyncio.to_thread(self._look, calm)

    def _look(self, calm: bool) -> EnvoyState:
        query = quote(_FILTER, safe="")
        try:
            counters = parse_stats(self._get(f"/stats?format=json&filter={query}"))
            uptime_s = parse_uptime(self._get("/server_info"))
            self._read_hosts(uptime_s, counters.get(_TAKEN, 0), calm=calm)
        except (KeyError, TypeError, AttributeError) as error:
            raise AdminError(f"{self.address} does not answer as Envoy's admin does") from error
        return EnvoyState(self._hosts, counters, uptime_s)

    def _read_hosts(self, uptime_s: int, taken: int, *, calm: bool) -> None:
        self._calm_looks += 1
        known = self._hosts_of
        same = known is not None and known[0] <= uptime_s and known[1] == taken
        if not (calm and same) or self._calm_looks >= HOSTS_EVERY:
            self._hosts = parse_clusters(self._get("/clusters?format=json"))
            self._calm_looks = 0
        self._hosts_of = (uptime_s, taken)

    def _connect(self) -> http.client.HTTPConnection:
        if self.address.startswith("unix:"):
            return _UnixConnection(self.address.removeprefix("unix:"), TIMEOUT_S)
        return http.client.HTTPConnection(self.address, timeout=TIMEOUT_S)

    def _get(self, path: str) -> Any:
        kept = self._connection
        try:
            return self._ask(path)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            # Who is silent would be silent once more, beyond the time that a look may take.
            if kept is None or isinstance(error, TimeoutError):
                raise AdminError(
                    f"Envoy's admin at {self.address} does not answer: {error}"
                ) from error
        # The kept connection may have been an earlier Envoy's.
        return self._get(path)

    def _ask(self, path: str) -> Any:
        if self._connection is None:
            self._connection = self._connect()
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        body = answer.read(ANSWER_BYTES_MAX)
        if answer.status != http.HTTPStatus.OK:
            self.close()
            raise AdminError(f"Envoy's admin at {self.address}: {path} gave {answer.status}")
        return json.loads(body)

    def close(self) -> None:
        """End the connection; a later look opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def parse_clusters(answer: Any) -> dict[str, int]:
    """Healthy hosts by cluster, from `/clusters?format=json`."""
    found: dict[str, int] = {}
    for status in answer.get("cluster_statuses", ()):
        hosts = status.get("host_statuses", ())
        found[status["name"]] = sum(_is_healthy(host.get("health_status", {})) for host in hosts)
    return found


def parse_stats(answer: Any) -> dict[str, int]:
    """Counters and gauges by name, from `/stats?format=json`."""
    return {
        stat["name"]: int(stat["value"])
        for stat in answer.get("stats", ())
        if isinstance(stat.get("value"), int)
    }


def parse_uptime(answer: Any) -> int:
    """Whole seconds since this Envoy started, from `/server_info`."""
    matched = re.match(r"\d+", str(answer.get("uptime_current_epoch", "0")))
    return int(matched[0]) if matched else 0


def _is_healthy(status: Mapping[str, Any]) -> bool:
    """Whether Envoy would send a request to a host: no failed check of any kind."""
    failed = any(value is True for key, value in status.items() if key.startswith("failed_"))
    removed = status.get("pending_dynamic_removal") is True
    discovered = status.get("eds_health_status", "HEALTHY") in ("HEALTHY", "UNKNOWN")
    return discovered and not failed and not removed
