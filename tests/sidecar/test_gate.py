"""The order: clusters, headers, plan, routes; and backwards."""

from __future__ import annotations

from sidecar.gate import (
    BASELINE_PATIENCE_MS,
    FIRST_ROUTES_MS,
    SETTLE_MS,
    Desired,
    Enrolment,
    Gate,
    Routes,
)
from turnout.contract import WORKERS_CLUSTER

HEADERS = frozenset({":path", "x-user-id"})
EXPERIMENT = Enrolment("e", 1, frozenset({"b", "c"}), HEADERS)
DESIRED = Desired((EXPERIMENT,), {"t": "b"}, grace_ms=10_000)
OPEN = frozenset({("e", 1)})


class Envoy:
    """What the shell does: writes what the gate says and tells it."""

    def __init__(self, *, watched: bool = True, remembered: dict[str, list[str]] | None = None):
        self.gate = Gate(watched=watched, remembered=remembered)
        self.now_ms = 1_000_000
        self.headers = HEADERS
        self.healthy: dict[str, int] = {}
        self.reloads = 0
        self.written: list[str] = []

    def desire(self, desired: Desired) -> None:
        self.gate.desire(desired)

    def step(self, later_ms: int = 0, *, serve: bool = True) -> Routes | None:
        """One step of the conductor; what the routes file says after it."""
        self.now_ms += later_ms
        gate = self.gate
        if gate.watched:
            gate.observe(self.healthy, filter_reloads=self.reloads, now_ms=self.now_ms)
        gate.tick(self.now_ms)
        gate.clusters_written(gate.clusters())
        gate.filter_written(self.headers, changed=False)
        if serve:
            gate.workers_serve(gate.open_gates())
        routes = gate.routes()
        if routes is not None and routes != gate.written:
            gate.routes_written(routes)
        return gate.written


def running(**options: bool) -> Envoy:
    envoy = Envoy(**options)  # type: ignore[arg-type]
    envoy.healthy = {"b": 1, "c": 1}
    envoy.desire(DESIRED)
    assert envoy.step() == Routes(OPEN, {"t": "b"}, frozenset({"b", "c"}))
    return envoy


def test_gate_stays_closed_and_says_for_what_when_a_cluster_is_not_healthy() -> None:
    envoy = Envoy()
    envoy.desire(DESIRED)
    for healthy in ({"b": 1}, {"b": 1, "c": 0}):
        envoy.healthy = healthy
        envoy.step()
        assert envoy.gate.open_gates() == frozenset()
        assert envoy.gate.views()[0].waiting_for == ("c",)
        assert envoy.gate.pending()
    envoy.healthy = {"b": 1, "c": 1}
    envoy.step()
    assert envoy.gate.open_gates() == OPEN
    assert envoy.gate.views()[0].open


def test_gate_stays_open_when_every_host_dies_later() -> None:
    envoy = running()
    for healthy in ({"b": 1, "c": 0}, {"b": 0}, {}):
        envoy.healthy = healthy
        assert envoy.step(60_000) == envoy.gate.written
        assert envoy.gate.open_gates() == OPEN


def test_gate_stays_open_when_the_epoch_changes() -> None:
    envoy = running()
    envoy.healthy = {"b": 1, "c": 0}
    second = EXPERIMENT._replace(epoch=2)
    envoy.desire(DESIRED._replace(enrolments=(second,)))
    # The filter is not switched off for the moment that the workers need.
    routes = envoy.step(serve=False)
    assert routes is not None
    assert routes.enabled == {("e", 2)}


def test_gate_is_asked_again_when_the_experiment_left_and_comes_back() -> None:
    envoy = running()
    envoy.desire(DESIRED._replace(enrolments=()))
    envoy.step()
    envoy.healthy = {"b": 1, "c": 0}
    envoy.desire(DESIRED)
    envoy.step()
    assert envoy.gate.open_gates() == frozenset()


def test_filter_is_on_only_after_the_workers_serve_the_open_gate() -> None:
    envoy = Envoy()
    envoy.desire(DESIRED._replace(enrolments=()))
    envoy.healthy = {"b": 1}
    envoy.step()
    envoy.desire(DESIRED)
    envoy.healthy = {"b": 1, "c": 1}
    routes = envoy.step(serve=False)
    assert routes is not None
    assert routes.enabled == frozenset()
    routes = envoy.step()
    assert routes is not None
    assert routes.enabled == OPEN


def test_filter_is_off_while_envoy_has_no_healthy_worker() -> None:
    envoy = Envoy()
    envoy.desire(DESIRED)
    envoy.healthy = {"b": 1, "c": 1, WORKERS_CLUSTER: 0}
    assert envoy.step() is None
    envoy.healthy = {"b": 1, "c": 1, WORKERS_CLUSTER: 1}
    routes = envoy.step()
    assert routes is not None
    assert routes.enabled == OPEN


def test_envoy_is_looked_at_often_until_it_has_found_the_workers_of_a_restarted_sidecar() -> None:
    """What is read seldom may be of the moment at which the one before said that it went."""
    envoy = Envoy(remembered=running().gate.latches())
    envoy.desire(DESIRED)
    assert envoy.gate.pending()  # nothing is known
    envoy.healthy = {"b": 1, "c": 1, WORKERS_CLUSTER: 0}
    assert envoy.step() is None
    assert envoy.gate.pending()
    envoy.healthy = {"b": 1, "c": 1, WORKERS_CLUSTER: 2}
    routes = envoy.step()
    assert routes is not None
    assert routes.enabled == OPEN
    assert not envoy.gate.pending()


def test_gate_waits_for_envoy_to_forward_a_new_header() -> None:
    envoy = running()
    second = Enrolment("f", 1, frozenset({"b"}), HEADERS | {"x-country"})
    envoy.desire(DESIRED._replace(enrolments=(EXPERIMENT, second)))
    envoy.headers = HEADERS | {"x-country"}
    gate = envoy.gate
    gate.filter_written(envoy.headers, changed=True)
    assert gate.open_gates() == OPEN
    envoy.step(10)
    assert gate.open_gates() == OPEN
    envoy.reloads = 1
    envoy.step(10)
    assert gate.open_gates() == OPEN | {("f", 1)}


def test_gate_stops_waiting_for_the_header_when_the_counter_says_nothing() -> None:
    envoy = running()
    second = Enrolment("f", 1, frozenset({"b"}), HEADERS | {"x-country"})
    envoy.desire(DESIRED._replace(enrolments=(EXPERIMENT, second)))
    envoy.headers = HEADERS | {"x-country"}
    envoy.gate.filter_written(envoy.headers, changed=True)
    envoy.step(2 * SETTLE_MS - 1)
    assert envoy.gate.open_gates() == OPEN
    envoy.step(1)
    assert envoy.gate.open_gates() == OPEN | {("f", 1)}


def test_clusters_leave_last_when_an_experiment_leaves() -> None:
    envoy = running()
    envoy.desire(DESIRED._replace(enrolments=()))
    assert "c" in envoy.gate.clusters()  # the routes still name it
    routes = envoy.step()
    assert routes == Routes(frozenset(), {"t": "b"}, frozenset({"b"}))
    envoy.step(DESIRED.grace_ms - 1)
    assert "c" in envoy.gate.clusters()
    envoy.step(1)
    assert envoy.gate.clusters() == {"b"}


def test_cluster_stays_when_it_comes_back_within_its_grace() -> None:
    envoy = running()
    envoy.desire(DESIRED._replace(enrolments=()))
    envoy.step()
    envoy.desire(DESIRED)
    envoy.step(DESIRED.grace_ms * 2)
    assert envoy.gate.clusters() == {"b", "c"}


def test_baseline_changes_only_when_the_new_one_is_healthy() -> None:
    envoy = running()
    envoy.desire(Desired((), {"t": "n"}))
    routes = envoy.step()
    assert routes is not None
    assert routes.baselines == {"t": "b"}
    assert envoy.gate.clusters() >= {"b", "n"}
    envoy.healthy["n"] = 0
    routes = envoy.step()
    assert routes is not None
    assert routes.baselines == {"t": "b"}
    envoy.healthy["n"] = 1
    routes = envoy.step()
    assert routes is not None
    assert routes.baselines == {"t": "n"}


def test_baseline_changes_all_the_same_when_the_new_one_stays_unhealthy() -> None:
    envoy = running()
    envoy.desire(Desired((), {"t": "n"}))
    envoy.healthy["n"] = 0
    envoy.step()
    routes = envoy.step(BASELINE_PATIENCE_MS)
    assert routes is not None
    assert routes.baselines == {"t": "n"}


def test_new_target_gets_its_route_when_its_baseline_is_active() -> None:
    envoy = running()
    envoy.desire(DESIRED._replace(baselines={"t": "b", "u": "n"}))
    routes = envoy.step()
    assert routes is not None
    assert routes.baselines == {"t": "b"}
    envoy.healthy["n"] = 1
    routes = envoy.step()
    assert routes is not None
    assert routes.baselines == {"t": "b", "u": "n"}


def test_first_routes_wait_when_a_restarted_sidecar_finds_working_ones() -> None:
    envoy = Envoy()
    envoy.desire(DESIRED)
    assert envoy.step() is None  # no cluster seen yet: a file without targets would be an outage
    envoy.healthy = {"b": 1, "c": 0}
    assert envoy.step() is None  # the experiment may be on in the file that is there
    routes = envoy.step(FIRST_ROUTES_MS)
    assert routes == Routes(frozenset(), {"t": "b"}, frozenset({"b"}))


def test_remembered_latch_opens_when_the_cluster_is_active_but_not_healthy() -> None:
    envoy = Envoy(remembered=running().gate.latches())
    envoy.desire(DESIRED)
    envoy.healthy = {"b": 1}
    envoy.step()
    assert envoy.gate.open_gates() == frozenset()
    envoy.healthy = {"b": 1, "c": 0}
    envoy.step()
    assert envoy.gate.open_gates() == OPEN


def test_gates_open_after_a_while_when_nobody_watches_envoy() -> None:
    envoy = Envoy(watched=False)
    envoy.desire(DESIRED)
    assert envoy.step() is None
    assert envoy.step(SETTLE_MS - 1) is None
    assert envoy.step(1) == Routes(OPEN, {"t": "b"}, frozenset({"b", "c"}))
    assert not envoy.gate.pending()
