"""The start gate against an Envoy that takes files late and whose hosts come and go."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.gate import FIRST_ROUTES_MS, Desired, Enrolment, Gate
from turnout.contract import WORKERS_CLUSTER

TARGETS = ("t", "u")
BASELINES = ("b1", "b2", "b3")
CANDIDATES = ("c1", "c2", "c3")
HEADERS = ("x-a", "x-b")
EVERYTHING = (*BASELINES, *CANDIDATES)


class GateMachine(RuleBasedStateMachine):
    """The shell's part is played honestly: it writes what it is told and says so."""

    @initialize()
    def start(self) -> None:
        """Nothing is configured, every host is up."""
        self.gate = Gate(watched=True)
        self.now_ms = 1_000_000
        self.epochs: dict[str, int] = {}
        self.enrolments: tuple[Enrolment, ...] = ()
        self.file: frozenset[str] = frozenset()
        self.active: frozenset[str] = frozenset()
        self.up = set(EVERYTHING)
        self.workers_up = True
        self.filter_file: frozenset[str] = frozenset()
        self.filter_taken: frozenset[str] = frozenset()
        self.reloads = 0
        # (experiment, cluster) that was seen healthy while the experiment was there.
        self.seen: set[tuple[str, str]] = set()
        self.served: frozenset[tuple[str, int]] = frozenset()

    # -- The control plane -------------------------------------------------------------------------

    @rule(
        baselines=st.lists(st.sampled_from(BASELINES), min_size=2, max_size=2),
        running=st.dictionaries(
            st.sampled_from(["e", "f"]),
            st.tuples(st.sampled_from(CANDIDATES), st.sampled_from(HEADERS), st.booleans()),
            min_size=1,
        ),
    )
    def push(self, baselines: list[str], running: dict[str, tuple[str, str, bool]]) -> None:
        """A new snapshot: experiment e is on target t, f on u."""
        enrolments = []
        for name, (candidate, header, changed) in sorted(running.items()):
            self.epochs[name] = self.epochs.get(name, 0) + changed
            baseline = baselines["ef".index(name)]
            clusters = frozenset({baseline, candidate})
            enrolments.append(Enrolment(name, self.epochs[name], clusters, frozenset({header})))
        self.enrolments = tuple(enrolments)
        self.seen = {(e, c) for e, c in self.seen if e in running}
        self.gate.desire(Desired(self.enrolments, dict(zip(TARGETS, baselines, strict=True))))

    @rule(baselines=st.lists(st.sampled_from(BASELINES), min_size=2, max_size=2))
    def end_all(self, baselines: list[str]) -> None:
        """Every experiment leaves."""
        self.push(baselines, {})

    # -- Envoy and its hosts -----------------------------------------------------------------------

    @rule(cluster=st.sampled_from(EVERYTHING))
    def host_changes(self, cluster: str) -> None:
        """A host comes or goes."""
        self.up ^= {cluster}

    @rule()
    def workers_change(self) -> None:
        """Envoy finds the workers, or loses them."""
        self.workers_up = not self.workers_up

    @rule()
    def envoy_takes_files(self) -> None:
        """Envoy reads the clusters and the filter as they are now."""
        self.active = self.file
        if self.filter_taken != self.filter_file:
            self.filter_taken = self.filter_file
            self.reloads += 1

    # -- The shell ---------------------------------------------------------------------------------

    @rule(later_ms=st.sampled_from([10, 500, 3_000, 20_000]))
    def look(self, later_ms: int) -> None:
        """Envoy's admin is read."""
        self.now_ms += later_ms
        healthy = {name: int(name in self.up) for name in self.active}
        healthy[WORKERS_CLUSTER] = int(self.workers_up)
        for enrolment in self.enrolments:
            self.seen |= {(enrolment.experiment, c) for c in enrolment.clusters if healthy.get(c)}
        self.gate.observe(healthy, filter_reloads=self.reloads, now_ms=self.now_ms)

    @rule()
    def write_clusters_and_filter(self) -> None:
        """The first two files."""
        self.file = self.gate.clusters()
        self.gate.clusters_written(self.file)
        headers = frozenset[str]().union(*(e.headers for e in self.enrolments))
        changed = headers != self.filter_file
        self.filter_file = headers
        self.gate.filter_written(headers, changed=changed)

    @rule()
    def files_are_taken_and_seen(self) -> None:
        """The usual course of things."""
        self.write_clusters_and_filter()
        self.envoy_takes_files()
        self.look(500)

    @rule()
    def workers_take_the_plan(self) -> None:
        """Every worker serves the gates that are open."""
        self.served = self.gate.open_gates()
        self.gate.workers_serve(self.served)

    @precondition(lambda self: self.gate.routes() is not None)
    @rule()
    def write_routes(self) -> None:
        """The last file."""
        routes = self.gate.routes()
        assert routes is not None
        before = self.gate.written
        on = {name for name, _ in before.enabled} if before is not None else set()
        for name, epoch in routes.enabled:
            assert name in on or (name, epoch) in self.served
        self.gate.routes_written(routes)

    # -- What always holds -------------------------------------------------------------------------

    @invariant()
    def routed_clusters_are_kept(self) -> None:
        """Whatever a route may name stays in the clusters file."""
        written = self.gate.written
        if written is not None:
            assert written.clusters <= self.gate.clusters()

    @invariant()
    def open_gates_had_healthy_hosts_and_headers(self) -> None:
        """Nobody is enrolled before every cluster was seen healthy."""
        opened = self.gate.open_gates()
        for enrolment in self.enrolments:
            if (enrolment.experiment, enrolment.epoch) in opened:
                assert all((enrolment.experiment, c) in self.seen for c in enrolment.clusters)

    @invariant()
    def no_target_loses_its_route(self) -> None:
        """A target that had a route has one, unless it was never desired."""
        written, routes = self.gate.written, self.gate.routes()
        if written is not None and routes is not None:
            assert written.baselines.keys() <= routes.baselines.keys()

    def teardown(self) -> None:
        """With everything up, all that is asked for comes about."""
        if not hasattr(self, "gate") or not self.epochs:
            return
        self.up, self.workers_up = set(EVERYTHING), True
        for _ in range(4):
            self.write_clusters_and_filter()
            self.envoy_takes_files()
            self.look(FIRST_ROUTES_MS)
            self.workers_take_the_plan()
            if (routes := self.gate.routes()) is not None:
                self.gate.routes_written(routes)
        written = self.gate.written
        assert written is not None
        assert written.enabled == {(e.experiment, e.epoch) for e in self.enrolments}
        assert not self.gate.pending()


TestGate = GateMachine.TestCase
TestGate.settings = settings(max_examples=300, stateful_step_count=40)
