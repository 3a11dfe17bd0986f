"""Decisions: each kind on data that call for it, and what of the data may not be believed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from control.analyze.result import Analysis
from tests.analyze.worlds import SHARES, ask, first, requests, rows


def world(
    rates: dict[str, float], n: int = 20_000, *, seed: int = 5, column: str = "converted"
) -> pa.Table:
    """n units per variant with these rates."""
    rng = np.random.default_rng(seed)
    variant = np.repeat(list(rates), n)
    rate = np.repeat(list(rates.values()), n)
    return pa.table(
        {
            "variant": variant,
            "user_id": np.arange(len(variant)),
            column: (rng.random(len(variant)) < rate).astype(np.int64),
        }
    )


def decided(
    rates: dict[str, float], *, n: int = 20_000, column: str = "converted", **options: Any
) -> Analysis:
    return ask(world(rates, n, column=column), column, **options)


def codes(answer: Analysis) -> list[str]:
    return [reason.code for reason in answer.reasons]


def test_decision_is_promote_when_the_treatment_is_clearly_better() -> None:
    answer = decided({"control": 0.10, "treatment": 0.14})
    assert answer.decision == "PROMOTE"
    assert codes(answer) == ["better"]
    assert "converted improved" in answer.reasons[0].text
    assert answer.reasons[0].values["variant"] == "treatment"


def test_decision_is_rollback_when_the_treatment_harms() -> None:
    assert decided({"control": 0.14, "treatment": 0.10}).decision == "ROLLBACK"


def test_decision_is_worse_when_harm_is_tolerated() -> None:
    answer = decided({"control": 0.14, "treatment": 0.10}, harm=0.08)
    assert answer.decision == "KEEP_CONTROL_WORSE"


def test_less_is_better_when_the_metric_is_an_error_or_so_declared() -> None:
    rates = {"control": 0.10, "treatment": 0.14}
    assert decided(rates, column="error").decision == "ROLLBACK"
    assert decided(rates, lower_is_better=["converted"]).decision == "ROLLBACK"
    answer = decided(rates, column="error", higher_is_better=["error"])
    assert answer.decision == "PROMOTE"
    assert any("by its name" in text for text in decided(rates, column="error").warnings)


def test_decision_is_continue_when_nothing_is_clear_and_inconclusive_when_data_are_over() -> None:
    rates = {"control": 0.10, "treatment": 0.10}
    assert decided(rates).decision == "CONTINUE"
    assert decided(rates, final=True).decision == "INCONCLUSIVE"


def test_decision_is_no_difference_or_futile_when_a_minimum_effect_is_out_of_reach() -> None:
    rates = {"control": 0.10, "treatment": 0.10}
    assert decided(rates, minimum_effect="30%").decision == "NO_DIFFERENCE"
    futile = decided(rates, minimum_effect=0.03, equivalence=0.001)
    assert futile.decision == "KEEP_CONTROL_FUTILE"


def test_decision_is_warming_up_when_units_are_few() -> None:
    answer = decided({"control": 0.1, "treatment": 0.4}, n=60)
    assert answer.decision == "WARMING_UP"
    assert "few_units" in codes(answer)


def test_decision_is_invalid_when_shares_are_not_those_expected() -> None:
    table = world({"control": 0.10, "treatment": 0.10})
    few = table.filter(pa.compute.less(table.column("user_id"), 37_000))
    answer = ask(few, "converted", expected=SHARES)
    assert answer.decision == "INVALID"
    assert answer.srm is not None
    assert answer.srm.e_value is not None
    assert answer.srm.e_value > 1_000
    assert answer.srm.p_value < 1e-9


def flipped(share: float) -> pa.Table:
    table = world({"control": 0.10, "treatment": 0.10}, n=2_000)
    again = table.slice(0, int(4_000 * share)).drop_columns(["variant"])
    other = again.add_column(0, "variant", pa.array(["treatment"] * len(again)))
    return pa.concat_tables([table, other])


def test_unit_in_two_variants_is_left_out_and_told_when_there_are_few() -> None:
    answer = ask(flipped(0.005), "converted", unit_column="user_id")
    metric = answer.metrics[0]
    assert (metric.control.n, metric.treatment.n) == (1_980, 2_000)
    assert any("20 of 4000 units" in warning for warning in answer.warnings)
    assert answer.decision != "INVALID"
    table = flipped(0.005)
    table = table.append_column("half", pa.array(table.column("user_id").to_numpy() % 2))
    apart = ask(table, "converted", unit_column="user_id", strata="half")
    counts = [stratum.metrics[0].control.n for stratum in apart.strata]
    assert counts == [990, 990]


def test_units_in_two_variants_make_data_invalid_when_they_are_more_than_one_percent() -> None:
    answer = ask(flipped(0.02), "converted", unit_column="user_id")
    assert answer.decision == "INVALID"
    assert codes(answer) == ["assignment_flips"]


def test_decision_is_invalid_when_one_arm_loses_values() -> None:
    table = world({"control": 0.10, "treatment": 0.10}, n=3_000)
    values = table.column("converted").to_pylist()
    lost = [None if i >= 3_000 and i % 20 == 0 else v for i, v in enumerate(values)]
    answer = ask(table.set_column(2, "converted", pa.array(lost)), "converted:proportion")
    assert answer.decision == "INVALID"
    assert codes(answer) == ["differential_loss"]


def test_decision_is_hold_when_one_stratum_is_harmed() -> None:
    rng = np.random.default_rng(2)
    n = 60_000
    treated, small = rng.random(n) < 0.5, rng.random(n) < 0.2
    rate = 0.3 + np.where(small, -0.1, 0.06) * treated
    table = pa.table(
        {
            "variant": np.where(treated, "treatment", "control"),
            "kind": np.where(small, "new", "old"),
            "converted": (rng.random(n) < rate).astype(np.int64),
        }
    )
    assert ask(table, "converted").decision == "PROMOTE"
    answer = ask(table, "converted", strata="kind")
    assert answer.decision == "HOLD"
    assert "stratum_harm" in codes(answer)
    assert any("kind=new" in reason.text for reason in answer.reasons)


def test_effect_is_taken_over_strata_when_shares_of_traffic_changed() -> None:
    """A ramp from 5 % to 50 % while the base rate rises: pooled, the treatment looks better."""
    rng = np.random.default_rng(4)
    n = 40_000
    late = np.arange(2 * n) >= n
    treated = rng.random(2 * n) < np.where(late, 0.5, 0.05)
    table = pa.table(
        {
            "variant": np.where(treated, "treatment", "control"),
            "day": np.where(late, "2", "1"),
            "converted": (rng.random(2 * n) < np.where(late, 0.3, 0.1)).astype(np.int64),
        }
    )
    assert ask(table, "converted", expected=None).decision == "PROMOTE"
    assert ask(table, "converted", expected=None, strata="day").decision == "CONTINUE"


def ramp(*, tiny: list[tuple[str, str, int]], rate: tuple[float, float] = (0.1, 0.3)) -> pa.Table:
    """No effect at all; the base rate and the treatment's share rise. tiny: Further rows."""
    rng = np.random.default_rng(4)
    n = 40_000
    late = np.arange(2 * n) >= n
    treated = rng.random(2 * n) < np.where(late, 0.5, 0.05)
    variant, day = np.where(treated, "treatment", "control"), np.where(late, "2", "1")
    x = (rng.random(2 * n) < np.where(late, rate[1], rate[0])).astype(np.int64)
    more = list(zip(*tiny, strict=True)) or [(), (), ()]
    return pa.table(
        {
            "variant": [*variant, *more[0]],
            "day": [*day, *more[1]],
            "converted": [*x.tolist(), *more[2]],
        }
    )


@pytest.mark.parametrize("kind", ["proportion", "mean"])
@pytest.mark.parametrize("values", [(0, 0), (1, 1), (0, 1)])
def test_effect_is_taken_over_all_strata_when_one_has_no_spread(
    values: tuple[int, int], kind: str
) -> None:
    table = ramp(tiny=[("control", "3", values[0]), ("treatment", "3", values[1])])
    assert ask(table, "converted", expected=None).decision == "PROMOTE"
    answer = ask(table, f"converted:{kind}", expected=None, strata="day")
    assert answer.decision == "CONTINUE"
    assert not any("left out" in warning for warning in answer.warnings)


@pytest.mark.parametrize("as_guardrail", [False, True])
@pytest.mark.parametrize(
    ("events", "decision"), [((5, 900), "ROLLBACK"), ((900, 0), "PROMOTE"), ((3, 5), "CONTINUE")]
)
def test_few_events_are_judged_by_exact_sequences_when_there_are_strata(
    events: tuple[int, int], decision: str, as_guardrail: bool
) -> None:
    n = 20_000
    rng = np.random.default_rng(8)
    failed = [np.arange(n) < count for count in events]
    table = pa.table(
        {
            "variant": np.repeat(["control", "treatment"], n),
            "half": np.tile(np.arange(n) % 2, 2),
            "error": np.concatenate(failed).astype(np.int64),
            "gain": rng.normal(np.repeat([0.0, 1.0], n), 1.0),
        }
    )
    if not as_guardrail:
        assert ask(table, "error:proportion", strata="half").decision == decision
        return
    answer = ask(table, "gain:mean", "error:proportion", strata="half", guardrails={"error": 0.01})
    assert answer.decision == ("ROLLBACK" if decision == "ROLLBACK" else "PROMOTE")


def test_nothing_is_decided_when_no_stratum_has_both_arms() -> None:
    rng = np.random.default_rng(4)
    late = np.arange(20_000) >= 10_000
    table = pa.table(
        {
            "variant": np.where(late, "treatment", "control"),
            "day": np.where(late, "2", "1"),
            "converted": (rng.random(20_000) < np.where(late, 0.3, 0.1)).astype(np.int64),
        }
    )
    assert ask(table, "converted", expected=None).decision == "PROMOTE"
    answer = ask(table, "converted", expected=None, strata="day")
    assert answer.decision == "WARMING_UP"
    assert codes(answer) == ["no_interval"]


def test_guardrail_is_taken_over_strata_when_shares_of_traffic_changed() -> None:
    """Latency rises while the traffic moves: pooled, the treatment is to blame."""
    table = ramp(tiny=[])
    day = np.array(table.column("day").to_pylist()) == "2"
    rng = np.random.default_rng(6)
    slow = table.append_column("latency", pa.array(rng.normal(50 + 30 * day, 10)))
    guarded: dict[str, Any] = {"guardrails": {"latency": 2}, "expected": None}
    assert ask(slow, "converted", "latency", **guarded).decision == "ROLLBACK"
    answer = ask(slow, "converted", "latency", strata="day", **guarded)
    assert answer.decision == "CONTINUE"


def test_strata_are_not_taken_for_independent_when_units_are_in_several() -> None:
    """A/A, users who return every day: 6 of 40 were called different by days taken so."""
    called, users, days = 0, 600, 10
    user = np.repeat(np.arange(users), days * 3)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        treated, rate = rng.random(users) < 0.5, rng.beta(1.0, 4.0, users)
        table = pa.table(
            {
                "variant": np.where(treated[user], "treatment", "control"),
                "user_id": user,
                "day": np.tile(np.repeat(np.arange(days), 3), users),
                "failed": (rng.random(len(user)) < rate[user]).astype(np.int64),
            }
        )
        answer = ask(table, "failed", expected=None, strata="day", unit_column="user_id")
        called += answer.decision in ("PROMOTE", "ROLLBACK")
        assert any("units are in several strata" in warning for warning in answer.warnings)
    assert called <= 1


def test_strata_lend_a_small_arm_the_spread_of_the_large_one_when_it_has_less() -> None:
    """A/A, heavy tails, 98 : 2: by its own spread the small arm is called different too often."""
    called = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        treated = rng.random(10_000) < 0.02
        table = pa.table(
            {
                "variant": np.where(treated, "treatment", "control"),
                "half": np.arange(10_000) % 2,
                "revenue": rng.lognormal(0.0, 2.0, 10_000),
            }
        )
        answer = ask(table, "revenue:mean", expected=None, strata="half", min_units=50)
        called += answer.decision in ("PROMOTE", "ROLLBACK")
    assert called <= 2


def test_guardrail_rolls_back_when_it_is_harmed_and_holds_when_it_is_unclear() -> None:
    rng = np.random.default_rng(9)
    table = world({"control": 0.10, "treatment": 0.14})
    late = np.where(np.array(table.column("variant").to_pylist()) == "treatment", 1.0, 0.0)
    slow = table.append_column("latency", pa.array(rng.normal(50 + 4 * late, 20)))
    answer = ask(slow, "converted", "latency", guardrails={"latency": 10})
    assert answer.decision == "ROLLBACK"
    same = table.append_column("latency", pa.array(rng.normal(50, 20, len(late))))
    assert ask(same, "converted", "latency", guardrails={"latency": 2}).decision == "PROMOTE"
    unclear = ask(same, "converted", "latency", guardrails={"latency": 0.1})
    assert unclear.decision == "HOLD"
    assert codes(unclear) == ["guardrail_unclear"]


def test_best_treatment_is_promoted_when_there_are_several() -> None:
    rates = {"control": 0.10, "a": 0.10, "b": 0.15, "c": 0.06}
    answer = decided(rates, expected=None)
    assert answer.decision == "PROMOTE"
    assert answer.reasons[0].text.startswith("b (promote): ")
    assert [reason.text[:12] for reason in answer.reasons if "rollback" in reason.text]
    harmed = decided({"control": 0.10, "a": 0.10, "c": 0.06}, expected=None)
    assert harmed.decision == "ROLLBACK"


def test_fixed_decides_earlier_than_sequential_when_the_effect_is_small() -> None:
    rates = {"control": 0.10, "treatment": 0.1045}
    sequential, fixed = (decided(rates, sequential=each) for each in (True, False))
    assert fixed.metrics == sequential.metrics
    assert sequential.decision == "CONTINUE"
    assert fixed.decision == "PROMOTE"


def test_model_without_errors_can_pass_when_the_other_has_many() -> None:
    answer = decided({"control": 0.05, "treatment": 0.0}, n=3_000, column="error")
    assert answer.decision == "PROMOTE"


def test_series_ends_where_the_metric_stands_when_looks_are_over_time_or_rows() -> None:
    table = rows(n=2_000)
    times = np.datetime64("2026-01-01") + np.arange(2_000) * np.timedelta64(600, "s")
    table = table.append_column("at", pa.array(times.astype("datetime64[us]")))
    for options in ({}, {"time_column": "at"}, {"time_column": "at", "unit_column": "user_id"}):
        answer = ask(table, "converted", "revenue:mean", series=True, **options)
        for series, metric in zip(answer.series, answer.metrics, strict=True):
            last = series.points[-1]
            assert len(series.points) == 50
            assert last.n == metric.control.n + metric.treatment.n
            assert last.cs_low == pytest.approx(metric.cs_low, rel=1e-9)
            sizes = [point.n for point in series.points]
            assert sizes == sorted(sizes)
            assert (last.time is None) == (not options)
    timed = ask(table, "converted", time_column="at")
    assert any("a week" not in warning for warning in timed.warnings)


def test_drift_is_told_when_predictions_of_the_arms_differ() -> None:
    table = requests(users=2_000)
    moved = np.where(np.array(table.column("variant").to_pylist()) == "treatment", 0.15, 0.0)
    shifted = table.set_column(
        table.column_names.index("score"),
        "score",
        pa.array(table.column("score").to_numpy() + moved),
    )
    still, drifted = (
        ask(each, "error", "prediction_drift", score_column="score") for each in (table, shifted)
    )
    assert still.metrics[1].p_value is not None
    assert still.metrics[1].p_value > 1e-4
    assert drifted.metrics[1].p_value is not None
    assert drifted.metrics[1].p_value < 1e-9
    assert any("predictions differ" in warning for warning in drifted.warnings)
    assert first(table, "prediction_drift", prediction_column="prediction").kind == "drift"


@pytest.mark.parametrize("column", ["score", "prediction"])
def test_drift_has_no_p_value_when_units_have_several_rows(column: str) -> None:
    table = requests(users=2_000)
    options = {f"{column}_column": column, "unit_column": "user_id"}
    answer = ask(table, "prediction_drift", **options)
    assert answer.metrics[0].difference is not None
    assert answer.metrics[0].p_value is None
    assert any("has no p-value: units have several rows" in text for text in answer.warnings)
    once = pa.table(table.to_pandas().drop_duplicates("user_id"))
    assert ask(once, "prediction_drift", **options).metrics[0].p_value is not None


def test_nothing_is_decided_when_drift_is_all_that_is_asked() -> None:
    answer = ask(requests(users=2_000), "prediction_drift", score_column="score")
    assert answer.decision == "INCONCLUSIVE"
    assert codes(answer) == ["no_deciding_metric"]
