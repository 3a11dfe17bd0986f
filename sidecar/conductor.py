"""Carries out the order in which workers and Envoy are told.

Owns the steps between the start gate, the workers and Envoy's files, and the looks at Envoy's
admin. Refuses to decide what the order is: `gate` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Final

from sidecar.admin import Admin, AdminError, EnvoyState, Refusals
from sidecar.clock import monotonic_ms
from sidecar.config import Config
from sidecar.envoydir import EnvoyDir
from sidecar.envoyfiles import (
    CLUSTERS_FILE,
    FILTER_FILE,
    ROUTES_FILE,
    clusters_text,
    filter_text,
    routes_text,
    stray_local,
)
from sidecar.envoyfilter import forwarded_inputs
from sidecar.gate import Gate, Routes
from sidecar.workers import Workers
from turnout.v1alpha1.snapshot_pb2 import ClusterPlan, Snapshot

_LOG = logging.getLogger(__name__)

LOOK_BUSY_S: Final = 0.2  # while something waits for Envoy
LOOK_CALM_S: Final = 1.0
_LOOK_SOON_S: Final = 0.02
# How long the workers' order waits for the routes of a promotion.
ROUTES_FIRST_S: Final = 2.0
# How long a new process looks for what the one before it had opened.
INHERIT_S: Final = 2.0
_IN_FLIGHT_S: Final = 0.1
# Plans of clusters that left the snapshot and may still be routed to; far more than a day's
# changes.
_CLUSTERS_MAX: Final = 10_000
_NOTHING_WRITTEN: Final = (-1, frozenset[str](), False)


class Conductor:
    """Brings workers and Envoy to what the configuration asks for, step by step."""

    def __init__(
        self,
        config: Config,
        workers: Workers,
        gate: Gate,
        *,
        envoy_dir: EnvoyDir | None,
        admin: Admin | None,
        local: str = "",
        on_look: Callable[[EnvoyState], None],
        on_step: Callable[[], None],
    ) -> None:
        """Nothing is done before `changed`.

        Args:
            config: What should be served.
            workers: Who serves.
            gate: The order.
            envoy_dir: None = Envoy's files are written by somebody else.
            admin: None = the gate is off.
            local: The address of the pod beside an Envoy that intercepts; "" = it does not.
            on_look: Takes every look at Envoy.
            on_step: Called after every step: gates may have moved.
        """
        self._config = config
        self._workers = workers
        self._gate = gate
        self._dir = envoy_dir
        self._admin = admin
        self._local = local
        self._local_is_stray = False
        self._on_look = on_look
        self._on_step = on_step
        self._clusters: dict[str, ClusterPlan] = {}
        self._ordered: tuple[int, frozenset[tuple[str, int]]] = (0, frozenset())
        # Revision and clusters that Envoy's files have: texts are made anew only for others.
        self._written: tuple[int, frozenset[str], bool] = _NOTHING_WRITTEN
        # What the filter's headers were made from.
        self._filtered = Snapshot()
        self._routes_lost = False
        # (experiment, epoch) -> step, as the routes say it.
        self._steps: dict[tuple[str, int], int] = {}
        self._woken = asyncio.Event()
        self._refusals = Refusals()
        self._route_updates = 0
        # Envoy does not read our routes file; what was last ordered because of that.
        self._own_routes = False
        self._defaulted: Mapping[str, str] = {}
        # What the last order was made of, and the timer of one that waits for the routes.
        self._baselines: dict[str, str] = {}
        self._dead: dict[str, int] = {}
        self._late: asyncio.TimerHandle | None = None
        # Until `begin`, no order is given.
        self._begun = False
        # What a report says about Envoy.
        self.admin_error = "" if admin is not None else "no --envoy-admin: every gate is open"
        self.file_error = ""
        self.rejections: tuple[str, ...] = ()

    def changed(self) -> int:
        """The configuration changed: tell the workers now, Envoy soon.

        Only a promotion goes the other way: the routes lead to the new baseline first, because what
        the workers no longer enrol goes where the routes lead. A tombstone never waits for that.

        Returns:
            The generation of the order, for `Workers.served`.
        """
        baselines = {t.name: t.baseline.cluster for t in self._config.snapshot.targets}
        promoted = any(self._baselines.get(name, new) != new for name, new in baselines.items())
        routes_first = promoted and self._dead == self._config.dead and self._dir is not None
        self._baselines, self._dead = baselines, dict(self._config.dead)
        for experiment in self._config.snapshot.experiments:
            for variant in experiment.variants:
                if variant.HasField("cluster"):
                    self._clusters[variant.cluster.cluster] = variant.cluster
        for target in self._config.snapshot.targets:
            self._clusters[target.baseline.cluster] = target.baseline
        self._warn_of_local()
        self._gate.desire(self._config.desired())
        self.wake()
        if not self._begun:
            return self._config.next_generation
        if routes_first:
            self._order_late()
            return self._config.next_generation
        self._order()
        return self._ordered[0]

    def wake(self) -> None:
        """Something happened that may allow the next step."""
        self._woken.set()

    async def begin(self, *, inherited: bool) -> None:
        """Give the first order.

        Args:
            inherited: Another process serves with this Envoy until ours can: look until every gate
                is open that it has opened, and take its headers for forwarded. Nothing is written:
                Envoy's files are its own.
        """
        if inherited:
            self._gate.filter_written(forwarded_inputs(self._config.live()), changed=False)
        await self._look()
        deadline_ms = monotonic_ms() + int(INHERIT_S * 1000)
        while inherited and not self._gate.as_remembered() and monotonic_ms() < deadline_ms:
            await asyncio.sleep(_LOOK_SOON_S)
            await self._look()
        self._begun = True
        if self._config.payload:
            self._order()

    async def run(self) -> None:
        """Step until cancelled."""
        while True:
            await self._step()
            self._on_step()
            wait_s = LOOK_BUSY_S if self._gate.pending() else LOOK_CALM_S
            # Not `wait_for`: Python 3.11's loses a cancellation that comes with the waking.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()
            self._woken.clear()

    async def _step(self) -> None:
        await self._look()
        if not self._config.payload:
            return
        self._gate.tick(monotonic_ms())
        try:
            await self._notice_others()
            await self._write_clusters_and_filter()
            opened = self._gate.open_gates()
            changed = opened != self._ordered[1] or self._defaults() != self._defaulted
            if changed and self._late is None:
                self._order()
            if self._workers.served_generation >= self._ordered[0]:
                self._gate.workers_serve(self._ordered[1])
            updates = self._route_updates
            if await self._write_routes():
                await self._order_if_routed(updates)
            self.file_error = ""
        except (OSError, ValueError) as error:
            # A full disk, or what cannot be said in Envoy's words: the files that are there stay.
            if (text := f"Envoy's files cannot be written: {error}") != self.file_error:
                self.file_error = text
                _LOG.error("%s", text)

    async def _look(self) -> None:
        if self._admin is None:
            return
        try:
            state = await self._admin.look(calm=(calm := not self._gate.pending()))
            if calm and self._gate.pending():
                # Wanted while we looked: these hosts may be of an earlier look.
                state = await self._admin.look()
        except AdminError as error:
            self.admin_error = str(error)
            return
        self.admin_error, self.rejections = "", self._refusals.observe(state)
        self._gate.observe(
            self._usable(state), filter_reloads=state.filter_reloads, now_ms=monotonic_ms()
        )
        self._route_updates = state.route_updates
        self._own_routes = state.has_own_routes
        self._on_look(state)

    def _usable(self, state: EnvoyState) -> Mapping[str, int]:
        """Hosts by cluster; the pod beside Envoy has none until it is called, and is there."""
        if not self._local:
            return state.healthy_hosts
        plans = self._clusters.values()
        beside = {plan.cluster: 1 for plan in plans if plan.upstream.address == self._local}
        return {**state.healthy_hosts, **beside}

    def _warn_of_local(self) -> None:
        """Say once that the pod beside Envoy is in no resource, and again when that begins anew."""
        snapshot = self._config.snapshot
        stray = stray_local(snapshot, self._local) if snapshot.targets else ""
        if stray and not self._local_is_stray:
            _LOG.warning("--local: %s", stray)
        self._local_is_stray = bool(stray)

    def _order_late(self) -> None:
        """Order after the routes, or after ROUTES_FIRST_S whatever Envoy does."""
        if self._late is None:
            loop = asyncio.get_running_loop()
            self._late = loop.call_later(ROUTES_FIRST_S, self._order)

    async def _order_if_routed(self, updates: int) -> None:
        """Order what waited for the routes, once Envoy has taken them.

        Args:
            updates: Envoy's count of taken routes before ours were written.
        """
        if self._late is None:
            return
        while self._route_updates <= updates and self._late is not None:
            await asyncio.sleep(_LOOK_SOON_S)
            await self._look()
        # Requests that found their route just before are still asking the workers.
        await asyncio.sleep(_IN_FLIGHT_S)
        if self._late is not None:
            self._order()

    def _order(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
            self.wake()
        opened = self._gate.open_gates()
        self._defaulted = self._defaults()
        order = self._config.order(opened if self._gate.watched else None, self._defaulted)
        self._ordered = (order.generation, opened)
        self._workers.order(order)

    def _defaults(self) -> Mapping[str, str]:
        """Where requests without a variant go, in an Envoy whose routes are not ours.

        A promotion must not end at a default route that still leads to the old baseline. As in our
        own routes, a new baseline waits until its cluster is usable.
        """
        routes = self._gate.written
        return dict(routes.baselines) if self._own_routes and routes is not None else {}

    async def _notice_others(self) -> None:
        """Files that somebody else has written are not ours any more: say everything again."""
        if self._dir is not None and await asyncio.to_thread(self._dir.changed_by_others):
            _LOG.warning("somebody else has written Envoy's files: they are written again")
            self._written = _NOTHING_WRITTEN
            self._routes_lost = True

    async def _write_clusters_and_filter(self) -> None:
        live = self._config.live()
        names = self._gate.clusters()
        late = self._late is not None
        if self._written == (key := (self._config.revision, names, late)):
            return
        self._forget(names)
        # While workers serve the plan before, they need the headers that it reads.
        filtered = _merged(live, self._filtered) if late else live
        headers = forwarded_inputs(filtered)
        filter_changed = False
        if self._dir is not None:
            extra = [self._clusters[name] for name in sorted(names) if name in self._clusters]
            # Long texts take long to print: not on the loop that hands out plans.
            text = await asyncio.to_thread(clusters_text, filtered, extra, local=self._local)
            await self._write(CLUSTERS_FILE, text)
            text = await asyncio.to_thread(filter_text, filtered, local=self._local)
            filter_changed = await self._write(FILTER_FILE, text)
        self._gate.clusters_written(names)
        self._gate.filter_written(headers, changed=filter_changed)
        self._written, self._filtered = key, filtered

    async def _write_routes(self) -> bool:
        """Bring the routes up to date; whether they were not."""
        routes = self._gate.routes()
        if routes is None:
            return False
        steps = {(e.name, e.epoch): e.step for e in self._config.live().experiments}
        # Spans show the step; one that changes nothing else changes no epoch, and so no `routes`.
        # While an experiment is leaving its routes go by the gate's order, not by this.
        stepped = steps != self._steps and routes.enabled <= steps.keys()
        if routes == self._gate.written and not self._routes_lost and not stepped:
            return False
        if self._dir is not None:
            routed = self._routed(routes)
            text = await asyncio.to_thread(routes_text, routed, routes.enabled, local=self._local)
            await self._write(ROUTES_FILE, text)
        self._gate.routes_written(routes)
        self._routes_lost, self._steps = False, steps
        return True

    async def _write(self, name: str, text: str) -> bool:
        assert self._dir is not None
        return await asyncio.to_thread(self._dir.write, name, text)

    def _routed(self, routes: Routes) -> Snapshot:
        """The live snapshot with the baselines that routes may name already."""
        routed = Snapshot()
        routed.CopyFrom(self._config.live())
        targets = [target for target in routed.targets if target.name in routes.baselines]
        for target in targets:
            plan = self._clusters[routes.baselines[target.name]]
            target.baseline.CopyFrom(plan)
        kept = list(targets)
        del routed.targets[:]
        routed.targets.extend(kept)
        return routed

    def _forget(self, names: frozenset[str]) -> None:
        if len(self._clusters) > _CLUSTERS_MAX:
            self._clusters = {name: p for name, p in self._clusters.items() if name in names}


def _merged(live: Snapshot, before: Snapshot) -> Snapshot:
    """The live snapshot with the experiments of the one before: for the headers of both."""
    merged = Snapshot()
    merged.CopyFrom(live)
    merged.experiments.extend(before.experiments)
    return merged
