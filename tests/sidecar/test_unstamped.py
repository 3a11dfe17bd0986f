"""Envoy's total, split by the access log's reasons."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sidecar.unstamped import LATE_MS, SETTLE_MS, UNKNOWN, EnvoyCounter, UnstampedLedger


def test_counter_gives_increments_when_it_grows() -> None:
    counter = EnvoyCounter()
    assert [counter.observe(v, uptime_s=u) for u, v in enumerate([3, 3, 10])] == [3, 0, 7]
    assert counter.resets == 0


def test_counter_starts_where_an_earlier_process_stopped() -> None:
    assert EnvoyCounter(40).observe(45, uptime_s=9) == 5


def test_counter_gives_the_whole_value_when_envoy_was_restarted() -> None:
    counter = EnvoyCounter()
    counter.observe(10, uptime_s=100)
    assert counter.observe(4, uptime_s=1) == 4
    # Younger, though it has counted more than the one before.
    assert counter.observe(50, uptime_s=0) == 50
    assert counter.resets == 2


def test_reasons_are_given_when_they_come_after_the_total() -> None:
    ledger = UnstampedLedger()
    ledger.add_total(5, 0)
    assert ledger.take(0) == {}
    ledger.add_reasons({"timeout": 3}, 100)
    assert ledger.take(100) == {"timeout": 3}
    assert ledger.take(SETTLE_MS) == {UNKNOWN: 2}


def test_reasons_are_given_when_they_come_before_the_total() -> None:
    ledger = UnstampedLedger()
    ledger.add_reasons({"unreachable": 3}, 0)
    assert ledger.take(10) == {}
    ledger.add_total(2, 20)
    assert ledger.take(20) == {"unreachable": 2}
    ledger.add_total(1, 30)
    assert ledger.take(30) == {"unreachable": 1}
    assert ledger.take(SETTLE_MS * 2) == {}


def test_reason_is_dropped_when_its_total_never_comes() -> None:
    ledger = UnstampedLedger()
    ledger.add_reasons({"timeout": 3}, 0)
    ledger.take(SETTLE_MS)
    ledger.add_total(3, SETTLE_MS)
    assert ledger.take(SETTLE_MS) == {}
    assert ledger.take(2 * SETTLE_MS) == {UNKNOWN: 3}


def test_late_reason_is_dropped_when_it_was_called_unknown() -> None:
    ledger = UnstampedLedger()
    ledger.add_total(3, 0)
    assert ledger.take(SETTLE_MS) == {UNKNOWN: 3}
    ledger.add_reasons({"timeout": 2}, SETTLE_MS + 1)
    assert ledger.take(SETTLE_MS + 1) == {}
    # The credit does not last for ever: these are others.
    ledger.take(SETTLE_MS + LATE_MS)
    ledger.add_total(1, SETTLE_MS + LATE_MS)
    ledger.add_reasons({"timeout": 1}, SETTLE_MS + LATE_MS)
    assert ledger.take(SETTLE_MS + LATE_MS) == {"timeout": 1}


def test_nothing_waits_any_more_when_it_is_the_last_time() -> None:
    ledger = UnstampedLedger()
    ledger.add_total(3, 0)
    ledger.add_reasons({"timeout": 1}, 0)
    assert ledger.waiting == 3
    assert ledger.take(0, last=True) == {"timeout": 1, UNKNOWN: 2}
    assert ledger.waiting == 0


def test_empty_answer_is_no_reason() -> None:
    ledger = UnstampedLedger()
    ledger.add_total(1, 0)
    ledger.add_reasons({"empty": 1}, 0)
    assert ledger.take(0) == {}


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3_000),
            st.integers(0, 20),
            st.dictionaries(st.sampled_from(["timeout", "unreachable"]), st.integers(1, 20)),
        ),
        max_size=40,
    )
)
def test_sum_equals_envoys_total_whatever_comes_when(
    events: list[tuple[int, int, dict[str, int]]],
) -> None:
    ledger, now_ms, total = UnstampedLedger(), 0, 0
    sums: Counter[str] = Counter()
    for later_ms, increment, reasons in events:
        now_ms += later_ms
        total += increment
        ledger.add_total(increment, now_ms)
        ledger.add_reasons(reasons, now_ms)
        sums.update(ledger.take(now_ms))
        assert sums.total() <= total
    sums.update(ledger.take(now_ms + SETTLE_MS))
    assert sums.total() == total
