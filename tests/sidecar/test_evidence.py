"""The supervisor's merge: workers' deltas, decided counters, Envoy's total."""

from __future__ import annotations

import pytest

from sidecar.evidence import Evidence
from sidecar.increments import CountKey, Counts, FoldDelta, TargetCounts
from sidecar.unstamped import SETTLE_MS
from turnout.v1alpha1.config_service_pb2 import ROLE_SERVED

KEY = CountKey("e", 1, "v2", 0, ROLE_SERVED, 100)


def delta(*, requests: int = 0, timeout: int = 0, target: str = "t") -> FoldDelta:
    return FoldDelta(
        counts={KEY: Counts(requests=requests)} if requests else {},
        targets={target: TargetCounts(answered=requests, unstamped={"timeout": timeout})},
    )


def test_workers_deltas_are_added_up() -> None:
    evidence = Evidence(envoy_counts=True)
    evidence.add_worker(delta(requests=2), 0)
    evidence.add_worker(delta(requests=3), 0)
    taken = evidence.take(0)
    assert taken.counts[KEY].requests == 5
    assert taken.targets["t"].answered == 5
    assert not evidence.take(1)
    assert evidence.requests_total["e", "v2", "requests"] == 5
    assert evidence.answers_total["t", "answered"] == 5


def test_decided_is_counted_in_the_bucket_of_now() -> None:
    evidence = Evidence(envoy_counts=True)
    evidence.add_decided({("e", 1, "v2"): 4}, 107_000)
    assert evidence.take(0).counts[KEY].decided == 4
    assert evidence.decided_total["e", "v2"] == 4


@pytest.mark.parametrize("target", ["t", ""])
def test_whole_envoy_has_its_own_total_with_the_logs_reasons(target: str) -> None:
    evidence = Evidence(envoy_counts=True)
    evidence.add_envoy(5, 0)
    evidence.add_worker(delta(timeout=3, target=target), 10)
    taken = evidence.take(20)
    assert taken.targets[""].unstamped == {"timeout": 3}
    assert taken.targets[target].unstamped == {"timeout": 3}
    assert evidence.take(SETTLE_MS).targets[""].unstamped == {"unknown": 2}
    assert evidence.unstamped_total.total() == 5


def test_log_is_the_total_when_nobody_reads_envoys_counters() -> None:
    evidence = Evidence(envoy_counts=False)
    evidence.add_worker(delta(timeout=3), 0)
    assert evidence.take(0).targets[""].unstamped == {"timeout": 3}
