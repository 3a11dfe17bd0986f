"""When an experiment may begin on this sidecar, and in which order Envoy is told.

Owns the order: clusters first, then the filter's headers, then the workers' plan, then the routes;
and backwards when an experiment leaves: plan, routes, and its clusters last. Owns the latch of the
start gate. Refuses to read or write anything, and to know the time: it is told what is seen and
what was done, and says what should be.

The gate of an experiment opens when every cluster of its variants is active in this Envoy with a
healthy host, and Envoy forwards every header that it reads. It latches per (experiment, cluster):
weight is never withdrawn for health later, because dead pods are errors that the safety lanes must
see.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from turnout.contract import WORKERS_CLUSTER

# Without Envoy's admin nothing says that a file was taken: wait this long after writing it.
SETTLE_MS: Final = 1_000
# A baseline that is active but has no healthy host is routed to after this time all the same: the
# operator has asked for it, and the old one may be gone.
BASELINE_PATIENCE_MS: Final = 10_000
# How long the first routes wait for every experiment to be ready.
FIRST_ROUTES_MS: Final = 5_000


class Enrolment(NamedTuple):
    """An experiment of the snapshot, as far as the gate is concerned.

    Attributes:
        experiment: Its name.
        epoch: Its epoch.
        clusters: Of all its variants, control included.
        headers: Request headers (and dynamic metadata) that its plan reads.
    """

    experiment: str
    epoch: int
    clusters: frozenset[str]
    headers: frozenset[str]


class Desired(NamedTuple):
    """What the snapshot asks for, tombstoned experiments left out.

    Attributes:
        enrolments: The experiments.
        baselines: Target -> cluster of its baseline.
        grace_ms: How long a cluster stays after the last route to it is gone: requests in flight.
    """

    enrolments: tuple[Enrolment, ...] = ()
    baselines: Mapping[str, str] = {}
    grace_ms: int = 30_000


class Routes(NamedTuple):
    """What Envoy's routes should say.

    Attributes:
        enabled: (experiment, epoch) for whose target the filter is on.
        baselines: Target -> cluster; a target that is not here has no route yet.
        clusters: Every cluster that a route or a stamp may name.
    """

    enabled: frozenset[tuple[str, int]]
    baselines: Mapping[str, str]
    clusters: frozenset[str]


class GateView(NamedTuple):
    """The gate of one experiment, for reports."""

    experiment: str
    epoch: int
    open: bool
    waiting_for: tuple[str, ...]


class Gate:
    """The state behind the order; one for each sidecar."""

    def __init__(
        self, *, watched: bool, remembered: Mapping[str, Iterable[str]] | None = None
    ) -> None:
        """A gate that has seen nothing.

        Args:
            watched: Envoy's admin is read. Otherwise every gate is open, after SETTLE_MS.
            remembered: `latches()` of an earlier process. For these a cluster must be active, and
            need
                not be healthy: its weight was given before.
        """
        self.watched = watched
        self._remembered = {name: frozenset(c) for name, c in (remembered or {}).items()}
        self._desired = Desired()
        self._latched: dict[str, set[str]] = {}
        # Active clusters and their healthy hosts at the last look; since when each is active.
        self._healthy: Mapping[str, int] = {}
        self._active_since: dict[str, int] = {}
        # Cluster -> when it was first written, for an Envoy that nobody watches.
        self._written: dict[str, int] = {}
        self._headers: frozenset[str] = frozenset()
        self._headers_coming: tuple[frozenset[str], int, int] | None = None
        self._reloads = 0
        self._served: frozenset[tuple[str, int]] = frozenset()
        # None: the file is an earlier process's, or the bootstrap's; nobody here knows what it
        # says.
        self._routes: Routes | None = None
        self._began_ms: int | None = None
        self._unrouted: dict[str, int] = {}
        self._now_ms = 0

    # -- What happened -----------------------------------------------------------------------------

    def desire(self, desired: Desired) -> None:
        """A new snapshot, or a tombstone, changed what should be."""
        self._desired = desired
        names = {enrolment.experiment for enrolment in desired.enrolments}
        # What comes anew waits for a fresh look at Envoy.
        self._latched = {name: c for name, c in self._latched.items() if name in names}

    def remember(self, latches: Mapping[str, Iterable[str]]) -> None:
        """What an earlier process had open is another than was said at first."""
        self._remembered = {name: frozenset(clusters) for name, clusters in latches.items()}

    def observe(
        self, healthy_hosts: Mapping[str, int], *, filter_reloads: int, now_ms: int
    ) -> None:
        """Envoy was looked at: active clusters with their healthy hosts."""
        self.tick(now_ms)
        since = self._active_since
        self._active_since = {name: since.get(name, now_ms) for name in healthy_hosts}
        self._healthy = healthy_hosts
        if self._headers_coming and filter_reloads != self._headers_coming[2]:
            self._headers, self._headers_coming = self._headers_coming[0], None
        self._reloads = filter_reloads
        self._latch()

    def tick(self, now_ms: int) -> None:
        """Time went on."""
        self._now_ms = now_ms
        if self._began_ms is None and self._desired.baselines:
            self._began_ms = now_ms
        coming = self._headers_coming
        if coming and now_ms - coming[1] >= SETTLE_MS * (2 if self.watched else 1):
            self._headers, self._headers_coming = coming[0], None
        if not self.watched:
            self._latch()

    def clusters_written(self, names: Iterable[str]) -> None:
        """The clusters file names these now."""
        self._written = {name: self._written.get(name, self._now_ms) for name in names}

    def filter_written(self, headers: frozenset[str], *, changed: bool) -> None:
        """The filter's file allows these headers now; `changed` = the file was another before."""
        if not changed:
            if self._headers_coming is None:
                self._headers = headers
            return
        # Headers that stay are forwarded all the time.
        self._headers &= headers
        self._headers_coming = (headers, self._now_ms, self._reloads)

    def workers_serve(self, gates: frozenset[tuple[str, int]]) -> None:
        """Every worker that serves has a plan in which these gates are open."""
        self._served = gates

    def routes_written(self, routes: Routes) -> None:
        """The routes file says this now; clusters that it no longer names begin their grace."""
        before = frozenset() if self._routes is None else self._routes.clusters
        for name in before - routes.clusters:
            self._unrouted[name] = self._now_ms
        for name in routes.clusters:
            self._unrouted.pop(name, None)
        self._routes = routes

    @property
    def written(self) -> Routes | None:
        """What the routes file says; None = not known."""
        return self._routes

    # -- What should be ----------------------------------------------------------------------------

    def open_gates(self) -> frozenset[tuple[str, int]]:
        """(experiment, epoch) whose units the workers may enrol."""
        return frozenset(
            (enrolment.experiment, enrolment.epoch)
            for enrolment in self._desired.enrolments
            if not self._waiting(enrolment) and enrolment.headers <= self._headers
        )

    def as_remembered(self) -> bool:
        """Whether every gate is open that an earlier process had opened."""
        return not any(
            self._waiting(enrolment)
            for enrolment in self._desired.enrolments
            if enrolment.clusters <= self._remembered.get(enrolment.experiment, frozenset())
        )

    def routes(self) -> Routes | None:
        """What the routes file should say; None = leave the file that is there alone."""
        written = self._routes or Routes(frozenset(), {}, frozenset())
        # A new epoch of an experiment that is on stays on: the workers change over by themselves.
        on = {experiment for experiment, _ in written.enabled}
        enabled = frozenset(
            gate
            for gate in self.open_gates()
            if gate[0] in on or (gate in self._served and self._workers_reached())
        )
        baselines: dict[str, str] = {}
        for target, cluster in self._desired.baselines.items():
            if written.baselines.get(target) == cluster or self._baseline_usable(cluster):
                baselines[target] = cluster
            elif (previous := written.baselines.get(target)) is not None:
                baselines[target] = previous
        if self._routes is None and not self._may_begin(enabled, baselines):
            return None
        named = set(baselines.values())
        for enrolment in self._desired.enrolments:
            if (enrolment.experiment, enrolment.epoch) in enabled:
                named |= enrolment.clusters
        return Routes(enabled, baselines, frozenset(named))

    def clusters(self) -> frozenset[str]:
        """What the clusters file should name: wanted, still routed to, or in grace."""
        wanted = set(self._desired.baselines.values())
        wanted |= self._routes.clusters if self._routes is not None else frozenset()
        for enrolment in self._desired.enrolments:
            wanted |= enrolment.clusters
        grace_ms = self._desired.grace_ms
        for name, when in list(self._unrouted.items()):
            if self._now_ms - when >= grace_ms:
                del self._unrouted[name]
        return frozenset(wanted | self._unrouted.keys())

    def views(self) -> list[GateView]:
        """Every experiment's gate, in the snapshot's order."""
        opened = self.open_gates()
        return [
            GateView(e.experiment, e.epoch, (e.experiment, e.epoch) in opened, self._waiting(e))
            for e in self._desired.enrolments
        ]

    def latches(self) -> dict[str, list[str]]:
        """What a restarted sidecar should remember."""
        return {name: sorted(clusters) for name, clusters in sorted(self._latched.items())}

    def pending(self) -> bool:
        """Whether something waits for Envoy or for time: look often, and at everything.

        Also before the first routes, and while Envoy finds no worker: a restarted sidecar's first
        look sees workers of the one before that had said they were going.
        """
        waits = len(self.open_gates()) < len(self._desired.enrolments)
        waits = waits or self._headers_coming is not None or not self._workers_reached()
        unrouted = self._routes is None and bool(self._desired.baselines)
        return waits or unrouted or self.routes() != self._routes

    # -- Details -----------------------------------------------------------------------------------

    def _latch(self) -> None:
        for enrolment in self._desired.enrolments:
            latched = self._latched.setdefault(enrolment.experiment, set())
            remembered = self._remembered.get(enrolment.experiment, frozenset())
            for cluster in enrolment.clusters:
                if self._usable(cluster) or (cluster in remembered and cluster in self._healthy):
                    latched.add(cluster)

    def _workers_reached(self) -> bool:
        """Whether Envoy's health checks have found a worker: the filter would get no answer."""
        return not self.watched or self._healthy.get(WORKERS_CLUSTER, 1) > 0

    def _waiting(self, enrolment: Enrolment) -> tuple[str, ...]:
        latched = self._latched.get(enrolment.experiment, set())
        return tuple(sorted(enrolment.clusters - latched))

    def _usable(self, cluster: str) -> bool:
        if self.watched:
            return self._healthy.get(cluster, 0) > 0
        return self._settled(cluster)

    def _may_begin(self, enabled: frozenset[tuple[str, int]], baselines: Mapping[str, str]) -> bool:
        """Whether the first routes may be written.

        A restarted sidecar finds routes that work. It must not write any without a target, nor
        switch experiments off for the second that its workers need.
        """
        if not self._desired.baselines or len(baselines) < len(self._desired.baselines):
            return False
        all_on = len(enabled) == len(self._desired.enrolments)
        began_ms = self._now_ms if self._began_ms is None else self._began_ms
        return all_on or self._now_ms - began_ms >= FIRST_ROUTES_MS

    def _settled(self, cluster: str) -> bool:
        written = self._written.get(cluster)
        return written is not None and self._now_ms - written >= SETTLE_MS

    def _baseline_usable(self, cluster: str) -> bool:
        if not self.watched:
            return self._settled(cluster)
        if cluster not in self._healthy:
            return False
        waited = self._now_ms - self._active_since[cluster] >= BASELINE_PATIENCE_MS
        return self._healthy[cluster] > 0 or waited
