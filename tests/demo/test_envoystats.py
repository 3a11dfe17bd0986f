"""Envoy's counters are read as differences, also of clusters that come and go."""

from __future__ import annotations

from envoy.demo.envoystats import ClusterMeter, EnvoyCounts

V1, V2 = "127.0.0.1:8001", "127.0.0.1:8002"


def counts(**totals: int) -> EnvoyCounts:
    return EnvoyCounts({f"cluster.{name}.upstream_rq_total": n for name, n in totals.items()})


def test_meter_adds_up_the_lives_of_a_cluster() -> None:
    meter = ClusterMeter()
    meter.sample(counts(a=5, b=7), {"a": V1, "b": V2})
    meter.sample(counts(a=9, b=7), {"a": V1, "b": V2})
    meter.sample(counts(b=8), {"b": V2})  # a left
    meter.sample(counts(a=3, b=8), {"a": V1, "b": V2})  # and came back, counting from 0
    meter.sample(counts(a=4, b=8), {"a": V1, "b": V2})
    assert meter.totals() == {V1: 13, V2: 8}


def test_meter_adds_clusters_of_one_address() -> None:
    meter = ClusterMeter()
    meter.sample(counts(a=5, b=7), {"a": V1, "b": V1})
    assert meter.totals() == {V1: 12}


def test_difference_of_two_readings_is_what_happened_between() -> None:
    before = EnvoyCounts({"http.turnout.downstream_rq_completed": 5, "x": 1})
    after = EnvoyCounts(
        {
            "http.turnout.downstream_rq_completed": 9,
            "http.turnout.downstream_rq_5xx": 2,
            "http.turnout.ext_proc.turnout.failure_mode_allowed": 1,
            "http.turnout.ext_proc.turnout.stream_msgs_received": 3,
            "x": 1,
        }
    )
    between = after - before
    assert (between.requests, between.errors, between.unstamped, between.answered) == (4, 2, 1, 3)
    assert "x" not in between.counters
