"""What Envoy's admin answers, read."""

from __future__ import annotations

import pytest

from sidecar.admin import (
    FAILURE_MODE_ALLOWED,
    Admin,
    AdminError,
    EnvoyState,
    Refusals,
    parse_clusters,
    parse_stats,
    parse_uptime,
)

# Cut down from Envoy 1.40's `/clusters?format=json`.
HEALTHY = {"address": {}, "health_status": {"eds_health_status": "HEALTHY"}}
FAILED = {
    "address": {},
    "health_status": {"failed_active_health_check": True, "eds_health_status": "HEALTHY"},
}
EJECTED = {
    "health_status": {"failed_outlier_check": True, "eds_health_status": "HEALTHY"},
}
DRAINING = {"health_status": {"eds_health_status": "DRAINING"}}
REMOVED = {
    "health_status": {"pending_dynamic_removal": True, "eds_health_status": "HEALTHY"},
}


@pytest.mark.parametrize(
    ("hosts", "healthy"),
    [
        ([HEALTHY], 1),
        ([{"health_status": {}}], 1),
        ([HEALTHY, FAILED, HEALTHY], 2),
        ([FAILED], 0),
        ([EJECTED], 0),
        ([DRAINING], 0),
        ([REMOVED], 0),
        ([], 0),
    ],
)
def test_hosts_are_counted_when_every_check_passes(hosts: list[object], healthy: int) -> None:
    answer = {"cluster_statuses": [{"name": "c", "host_statuses": hosts}]}
    assert parse_clusters(answer) == {"c": healthy}


def test_no_cluster_is_found_when_there_is_none() -> None:
    assert parse_clusters({}) == {}


def test_stats_are_numbers_by_name() -> None:
    answer = {
        "stats": [{"name": FAILURE_MODE_ALLOWED, "value": 3}, {"histograms": {}, "name": "h"}]
    }
    state = EnvoyState({}, parse_stats(answer))
    assert state.unanswered == 3
    assert EnvoyState({}).unanswered == 0


def test_routes_are_the_users_when_envoy_does_not_count_ours() -> None:
    assert EnvoyState({}, {"http.web.rds.mine.update_success": 1}).has_own_routes
    for manager in ("turnout", "web"):
        ours = {f"http.{manager}.rds.turnout.update_success": 0}
        assert not EnvoyState({}, ours).has_own_routes


def test_unanswered_requests_are_summed_when_an_envoy_has_managers_of_its_own() -> None:
    suffix = ".ext_proc.turnout.failure_mode_allowed"
    counters = {f"http.web{suffix}": 2, f"http.web.tls{suffix}": 3, "http.web.ext_proc.other.x": 9}
    assert EnvoyState({}, counters).unanswered == 5


def test_refused_file_is_named_until_envoy_takes_a_newer_one() -> None:
    refusals = Refusals()

    def seen(refused: int, taken: int) -> tuple[str, ...]:
        rds = "http.turnout.rds.turnout."
        counters = {rds + "update_rejected": refused, rds + "update_success": taken}
        return refusals.observe(EnvoyState({}, counters))

    assert seen(0, 1) == ()
    assert seen(1, 1) == ("Envoy refused our routes file",)
    assert seen(1, 1) == ("Envoy refused our routes file",)
    assert seen(1, 2) == ()
    # Another Envoy, which begins at zero.
    assert seen(0, 1) == ()


def test_uptime_is_in_whole_seconds() -> None:
    assert parse_uptime({"uptime_current_epoch": "17s"}) == 17
    assert parse_uptime({}) == 0


async def test_error_names_the_address_when_nobody_answers() -> None:
    with pytest.raises(AdminError, match=r"/nowhere/admin\.sock"):
        await Admin("unix:/nowhere/admin.sock").look()
