"""Traffic from what is given of it, and latencies from one or two quantiles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.planning.inputs import DAY_S, Assumptions, Traffic, traffic_of
from control.planning.latencies import latency_of


def test_traffic_follows_from_two_of_three_numbers() -> None:
    assert traffic_of(20.0, requests_per_unit=20.0).units_per_day == pytest.approx(86_400)
    assert traffic_of(None, 8_640.0, 10.0).requests_per_s == pytest.approx(1.0)
    assert traffic_of(1.0, 8_640.0).units_per_day == 8_640.0
    assert traffic_of(1.0, 8_640.0, 10.2).units_per_day == 8_640.0
    assert traffic_of(1.0).units_per_day is None


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ((None, None, None), "the traffic is missing"),
        ((None, 100.0, None), "the traffic is missing"),
        ((0.0, None, None), "must be > 0"),
        ((1e304, None, None), r"requests per second == 1e\+304, must be in 1e-09\.\.1e\+12"),
        ((None, 1e-300, 10.0), "units per day == 1e-300, must be in"),
        ((1.0, 1e6, None), "more than the 86400 requests of a day"),
        ((1.0, None, 0.5), "must be >= 1"),
        ((1.0, 1_000.0, 10.0), "leave one out"),
    ],
)
def test_traffic_refuses_what_contradicts_itself(
    given_: tuple[float | None, float | None, float | None], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        traffic_of(*given_)


@pytest.mark.parametrize(
    "changes", [{"eligible": 0.0}, {"labels": 1.1}, {"power": 0.3}, {"power": 1.0}]
)
def test_assumptions_refuse_shares_outside_their_range(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Assumptions(Traffic(1.0), **changes)  # type: ignore[arg-type]


@given(
    units=st.floats(10.0, 1e6),
    per_unit=st.floats(1.0, 200.0),
    returning=st.floats(0.0, 0.9),
    seconds=st.floats(1.0, 100 * DAY_S),
)
def test_time_until_units_is_the_inverse_of_units_after_a_time(
    units: float, per_unit: float, returning: float, seconds: float
) -> None:
    traffic = Traffic(units * per_unit / DAY_S, units, returning)
    there = traffic.units_after(seconds, random=False)
    assert there is not None
    # Within a day nearly all of a day's units are there: the inverse is no better than its digits.
    if there < 0.999 * units or seconds > DAY_S:
        assert traffic.seconds_until(there, random=False) == pytest.approx(seconds, rel=1e-3)
    assert there <= traffic.requests_per_s * seconds * (1 + 1e-9)
    hour = traffic.units_per_hour
    assert hour is not None
    assert hour <= min(units, traffic.requests_per_s * 3_600) * (1 + 1e-9)


def test_latency_meets_the_quantiles_that_are_known() -> None:
    shape = latency_of({"latency_p50": 60.0, "latency_p95": 180.0}, "latency_p95")
    assert shape is not None
    assert not shape.assumed
    assert shape.above(60.0) == pytest.approx(0.5)
    assert shape.above(180.0) == pytest.approx(0.05)
    assert shape.quantile_ms(0.95) == pytest.approx(180.0)
    alone = latency_of({"latency_p95": 180.0})
    assert alone is not None
    assert alone.assumed
    assert alone.above(180.0) == pytest.approx(0.05)
    assert latency_of({"error_rate": 0.1}) is None
    assert latency_of({"latency_p50": 60.0}, "latency_p95") is None
    with pytest.raises(ValueError, match="must increase"):
        latency_of({"latency_p50": 200.0, "latency_p95": 180.0})
