"""Entries and answers become increments."""

from __future__ import annotations

import pytest

from sidecar import accesslog, fold
from sidecar.fold import Fold
from sidecar.hashing import request_hash
from sidecar.increments import (
    CountKey,
    Counts,
    ExposureKey,
    FirstBad,
    FoldDelta,
    SlotKey,
    TargetCounts,
)
from sidecar.outcome import DUPLICATE_UNIT, INVALID_TOKEN, Outcome, Tally
from sidecar.plan import EpochFacts
from tests.sidecar.samples import EPOCH_START_MS, build, entry, snapshot, stamp
from turnout.contract import FIRST_BAD_SLOT_S, LATENCY_SKETCH_GAMMA, TIME_BUCKET_S
from turnout.v1alpha1.common_pb2 import BAD_EVENT_KIND_ERROR, BAD_EVENT_KIND_SLOW
from turnout.v1alpha1.config_service_pb2 import ROLE_SERVED, ROLE_SHADOW

BUCKET_S = (EPOCH_START_MS + 5_000) // 1000 // TIME_BUCKET_S * TIME_BUCKET_S
SERVED = CountKey("fraud-v2", 1, "v2", 0, ROLE_SERVED, BUCKET_S)
ERROR_0 = SlotKey("fraud-v2", 1, BAD_EVENT_KIND_ERROR, 0)
SLOW_0 = SlotKey("fraud-v2", 1, BAD_EVENT_KIND_SLOW, 0)


def knowing() -> Fold:
    folding = Fold()
    folding.know(build(snapshot()).epochs)
    return folding


def folded(*entries: accesslog.Entry, shadow: bool = False) -> FoldDelta:
    folding = knowing()
    for one in entries:
        folding.add(one, shadow=shadow)
    return folding.take()


# -- Served requests ------------------------------------------------------------------------------


def test_request_counts_for_its_variant_when_stamped() -> None:
    delta = folded(entry(), entry(request_id="r-2"))
    [(key, counts)] = delta.counts.items()
    assert key == SERVED
    assert (counts.requests, counts.errors, counts.slow, counts.client_errors) == (2, 0, 0, 0)
    assert counts.latency_sum_ms == 40.0
    assert sum(counts.latency.values()) == 2
    assert counts.first_bad_ms == 0
    assert not delta.first_bad


def test_latency_bin_holds_its_value_within_the_sketchs_error() -> None:
    for latency_ms in (0.001, 0.5, 1.0, 7.3, 250.0, 3_600_000.0):
        [counts] = folded(entry(latency_ms=latency_ms)).counts.values()
        [index] = counts.latency
        low, high = LATENCY_SKETCH_GAMMA ** (index - 1), LATENCY_SKETCH_GAMMA**index
        assert low * (1 - 1e-9) <= latency_ms <= high * (1 + 1e-9)


@pytest.mark.parametrize("latency_ms", [0.0, 0.0009])
def test_latency_counts_as_zero_when_below_the_least(latency_ms: float) -> None:
    [counts] = folded(entry(latency_ms=latency_ms)).counts.values()
    assert (counts.latency_zero, counts.latency, counts.latency_sum_ms) == (1, {}, 0.0)


def test_error_is_counted_and_its_unit_noted_when_a_request_fails() -> None:
    delta = folded(entry(status=503, stamp=stamp(unit=7)))
    [counts] = delta.counts.values()
    assert (counts.requests, counts.errors) == (1, 1)
    assert counts.first_bad_ms == EPOCH_START_MS + 5_000
    assert delta.first_bad[ERROR_0].units == {"v2": {7}}
    assert delta.first_bad[ERROR_0].shift == 0


def test_slow_answer_is_counted_when_longer_than_the_limit() -> None:
    delta = folded(entry(latency_ms=200.0), entry(latency_ms=200.5, stamp=stamp(unit=9)))
    [counts] = delta.counts.values()
    assert (counts.slow, counts.errors) == (1, 0)
    assert delta.first_bad == {SLOW_0: FirstBad(0, {"v2": {9}})}


def test_client_that_gave_up_is_slow_but_no_error_when_it_waited_too_long() -> None:
    gone = {"status": 0, "flags": accesslog.FLAG_DC, "latency_ms": None, "upstream_ms": None}
    delta = folded(entry(**gone, duration_ms=150.0), entry(**gone, duration_ms=250.0))
    [counts] = delta.counts.values()
    assert (counts.client_cancelled, counts.errors, counts.slow) == (2, 0, 1)
    assert counts.latency == {}
    assert list(delta.first_bad) == [SLOW_0]


def test_client_error_is_apart_when_the_status_is_4xx() -> None:
    [counts] = folded(entry(status=404), entry(status=429, flags=accesslog.FLAG_UO)).counts.values()
    assert (counts.client_errors, counts.errors) == (1, 1)


def test_first_bad_event_counts_once_a_slot_when_a_unit_fails_again() -> None:
    slot_ms = FIRST_BAD_SLOT_S * 1000
    times = [EPOCH_START_MS + offset for offset in (0, 1, slot_ms - 1, slot_ms, slot_ms + 5)]
    delta = folded(*(entry(status=500, start_ms=time) for time in times))
    assert {key.slot: bad.units for key, bad in delta.first_bad.items()} == {
        0: {"v2": {1}},
        1: {"v2": {1}},
    }
    assert sum(counts.errors for counts in delta.counts.values()) == 5


def test_first_bad_event_is_not_sent_again_when_it_was_taken() -> None:
    folding = knowing()
    folding.add(entry(status=500), shadow=False)
    assert folding.take().first_bad
    folding.add(entry(status=500, request_id="r-2"), shadow=False)
    assert not folding.take().first_bad


def test_slot_is_the_first_when_clocks_differ_and_a_request_began_before_its_epoch() -> None:
    delta = folded(entry(status=500, start_ms=EPOCH_START_MS - 90_000))
    assert list(delta.first_bad) == [ERROR_0]


def test_kind_is_not_noted_when_the_epoch_does_not_use_it() -> None:
    message = snapshot()
    del message.experiments[0].kinds[:]
    folding = Fold()
    folding.know(build(message).epochs)
    folding.add(entry(status=500, latency_ms=999.0), shadow=False)
    delta = folding.take()
    assert not delta.first_bad
    assert delta.counts[SERVED].errors == delta.counts[SERVED].slow == 1


def test_request_still_counts_when_its_epoch_is_unknown() -> None:
    delta = folded(entry(status=500, latency_ms=999.0, stamp=stamp(epoch=9)))
    [(key, counts)] = delta.counts.items()
    assert key.epoch == 9
    assert (counts.requests, counts.errors, counts.slow) == (1, 1, 0)
    assert not delta.first_bad


def test_earlier_epochs_stay_known_when_a_new_plan_comes() -> None:
    folding = knowing()
    folding.know(build(snapshot(epoch=2)).epochs)
    folding.add(entry(status=500), shadow=False)
    assert ERROR_0 in folding.take().first_bad


def test_oldest_epoch_is_forgotten_when_too_many_are_known() -> None:
    folding = knowing()
    facts = EpochFacts(EPOCH_START_MS, None, frozenset())
    for epoch in range(fold.KNOWN_EPOCHS_MAX):
        folding.know({("other", epoch): facts})
    folding.add(entry(status=500), shadow=False)
    assert not folding.take().first_bad


def test_forced_request_is_in_no_count_but_its_own() -> None:
    delta = folded(entry(status=500, stamp=stamp() + ";f"))
    assert delta.counts[SERVED] == Counts(forced=1)
    assert not delta.first_bad
    assert list(delta.exposures) == [ExposureKey("fraud-v2", 1, "v2", 0, forced=True)]


@pytest.mark.parametrize("text", ["garbage", "a;b;c", "fraud-v2;1;v2;0;xyz"])
def test_entry_is_counted_as_malformed_when_no_sidecar_wrote_the_stamp(text: str) -> None:
    delta = folded(entry(stamp=text))
    assert delta == FoldDelta(malformed_stamps=1)


# -- Shadows and unstamped ------------------------------------------------------------------------


def test_copy_counts_for_the_shadow_alone_when_it_crashes() -> None:
    copy = entry(
        status=503, shadow_of="fraud-v2;1;v3", stamp=stamp("control"), upstream_ms=30.0,
        latency_ms=1.0,
    )  # fmt: skip
    delta = folded(copy, shadow=True)
    [(key, counts)] = delta.counts.items()
    assert key == SERVED._replace(variant="v3", role=ROLE_SHADOW)
    assert (counts.requests, counts.errors, counts.latency_sum_ms) == (1, 1, 30.0)
    assert not delta.exposures
    assert not delta.first_bad


def test_copy_is_the_shadows_when_its_log_is_not_named() -> None:
    delta = folded(entry(shadow_of="fraud-v2;1;v3", stamp=stamp("control")), shadow=False)
    assert [key.role for key in delta.counts] == [ROLE_SHADOW]


def test_copy_is_malformed_when_it_has_no_marker() -> None:
    assert folded(entry(), shadow=True) == FoldDelta(malformed_stamps=1)


def test_missing_answer_is_counted_by_target_and_reason_when_envoy_tells_it() -> None:
    route = "turnout/fraud/baseline"
    delta = folded(
        entry(stamp="", call_status=4, route_name=route),
        entry(stamp="", call_status=14, route_name=route),
        entry(stamp="", call_status=14, route_name="elsewhere"),
        entry(stamp="", call_status=10, route_name=route),
        entry(stamp="", call_status=None, route_name=route),
    )
    assert delta.targets == {
        "fraud": TargetCounts(unstamped={"timeout": 1, "unreachable": 1}),
        "": TargetCounts(unstamped={"unreachable": 1}),
    }
    assert not delta.counts


# -- Exposures ------------------------------------------------------------------------------------


def test_exposure_joins_request_and_unit_when_a_request_is_served() -> None:
    delta = folded(entry(stamp=stamp(unit=77), request_id="abc"))
    [(key, [row])] = delta.exposures.items()
    assert key == ExposureKey("fraud-v2", 1, "v2", 0, forced=False)
    assert row == (EPOCH_START_MS + 5_000, 77, request_hash(b"abc"))


def test_first_exposure_wins_when_a_request_id_is_repeated() -> None:
    folding = knowing()
    folding.add(entry(stamp=stamp("control", unit=1)), shadow=False)
    folding.add(entry(stamp=stamp("v2", unit=2)), shadow=False)
    first = folding.take()
    folding.add(entry(), shadow=False)
    second = folding.take()
    assert [key.variant for key in first.exposures] == ["control"]
    assert (first.repeated_requests, second.repeated_requests) == (1, 1)
    assert not second.exposures
    assert second.counts[SERVED].requests == 1, "the request itself counts"


def test_exposures_are_kept_when_requests_have_no_id() -> None:
    [rows] = folded(entry(request_id=""), entry(request_id="")).exposures.values()
    assert [row.request_hash for row in rows] == [0, 0]


def test_newest_exposures_are_dropped_and_counted_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fold, "EXPOSURES_MAX", 3)
    folding = knowing()
    for number in range(5):
        folding.add(entry(request_id=f"r-{number}"), shadow=False)
    delta = folding.take()
    [rows] = delta.exposures.values()
    assert [row.request_hash for row in rows] == [request_hash(b"r-%d" % n) for n in range(3)]
    assert delta.exposures_dropped == 2
    folding.add(entry(request_id="r-9"), shadow=False)
    assert folding.take().exposures_dropped == 0


def test_request_ids_are_forgotten_when_two_generations_are_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fold, "RECENT_REQUESTS_MAX", 10)
    folding = knowing()
    for number in range(30):
        folding.add(entry(request_id=f"r-{number}"), shadow=False)
    folding.add(entry(request_id="r-29"), shadow=False)
    folding.add(entry(request_id="r-0"), shadow=False)
    assert folding.take().repeated_requests == 1


# -- Samples of first bad events ------------------------------------------------------------------


def test_both_arms_keep_the_same_hash_sample_when_too_many_units_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fold, "FIRST_BAD_UNITS_MAX", 100)
    delta = folded(
        *(
            entry(status=500, stamp=stamp("v2" if unit % 3 else "control", unit=unit * 7919))
            for unit in range(1, 1001)
        )
    )
    bad = delta.first_bad[ERROR_0]
    assert bad.shift == 4
    for arm, units in bad.units.items():
        expected = {
            unit * 7919
            for unit in range(1, 1001)
            if ("v2" if unit % 3 else "control") == arm and unit * 7919 % 16 == 0
        }
        assert units == expected


def test_every_arm_hears_of_a_higher_shift_when_only_one_has_new_units(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fold, "FIRST_BAD_UNITS_MAX", 10)
    folding = knowing()
    folding.add(entry(status=500, stamp=stamp("control", unit=16)), shadow=False)
    folding.take()
    for unit in range(1, 12):
        folding.add(entry(status=500, stamp=stamp("v2", unit=unit)), shadow=False)
    bad = folding.take().first_bad[ERROR_0]
    assert bad == FirstBad(1, {"control": set(), "v2": {2, 4, 6, 8, 10}})


def test_sent_units_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold, "SEEN_UNITS_MAX", 2)
    folding = knowing()
    slot_ms = FIRST_BAD_SLOT_S * 1000
    for slot in range(4):
        start_ms = EPOCH_START_MS + slot * slot_ms
        folding.add(entry(status=500, start_ms=start_ms), shadow=False)
    assert len(folding.take().first_bad) == 4
    for slot in range(4):
        start_ms = EPOCH_START_MS + slot * slot_ms
        folding.add(entry(status=500, start_ms=start_ms), shadow=False)
    assert {key.slot for key in folding.take().first_bad} == {0, 1}


# -- Answers --------------------------------------------------------------------------------------


def test_answers_are_counted_by_target_and_outcome() -> None:
    folding = Fold()
    for outcome in Outcome:
        flags = DUPLICATE_UNIT | INVALID_TOKEN if outcome is Outcome.STAMPED else 0
        folding.answered(Tally("fraud", outcome, flags))
    shed = Tally("", Outcome.SHED)
    for tally in (Tally("", Outcome.NO_SNAPSHOT), shed, shed):
        folding.answered(tally)
    assert folding.take().targets == {
        "fraud": TargetCounts(
            answered=len(Outcome), no_snapshot=1, shed=1, no_unit=1, not_in_segment=1,
            invalid_unit=1, duplicate_unit=1, waiting=1, held_out=1, not_in_layer=1,
            invalid_token=1, peer=1,
        ),
        "": TargetCounts(answered=3, no_snapshot=1, shed=2),
    }  # fmt: skip
    assert not folding.take()


def test_decided_falls_into_the_bucket_of_the_answer() -> None:
    folding = Fold()
    folding.decided("fraud-v2", 1, "v2", count=3, now_ms=EPOCH_START_MS + 5_000)
    folding.decided("fraud-v2", 1, "v2", count=4, now_ms=EPOCH_START_MS + 5_001)
    assert folding.take().counts == {SERVED: Counts(decided=7)}


def test_foreign_targets_are_counted_together_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fold, "_TARGETS_MAX", 2)
    folding = Fold()
    for number in range(5):
        folding.unstamped({"timeout": 1}, target=f"t{number}")
    assert folding.take().targets == {
        "t0": TargetCounts(unstamped={"timeout": 1}),
        "t1": TargetCounts(unstamped={"timeout": 1}),
        "": TargetCounts(unstamped={"timeout": 3}),
    }


# -- Merging --------------------------------------------------------------------------------------


def test_unit_and_request_count_once_when_two_workers_saw_them() -> None:
    one = folded(entry(status=500))
    two = folded(entry(status=500))
    merged = Fold()
    merged.merge(one)
    merged.merge(two)
    delta = merged.take()
    assert delta.counts[SERVED].errors == 2
    assert delta.first_bad[ERROR_0].units == {"v2": {1}}
    assert [len(rows) for rows in delta.exposures.values()] == [1]
    assert delta.repeated_requests == 1


def test_counts_and_answers_add_up_when_workers_share_a_key() -> None:
    folding, merged = knowing(), Fold()
    for number in range(2):
        folding.add(entry(request_id=f"r-{number}", status=500), shadow=False)
        folding.add(entry(stamp="", call_status=4), shadow=False)
        folding.answered(Tally("", Outcome.SHED))
        merged.merge(folding.take())
    delta = merged.take()
    [counts] = delta.counts.values()
    assert (counts.requests, counts.errors, sum(counts.latency.values())) == (2, 2, 2)
    assert delta.targets == {
        "fraud": TargetCounts(unstamped={"timeout": 2}),
        "": TargetCounts(answered=2, shed=2),
    }


def test_higher_shift_of_one_worker_is_everyones_when_merged() -> None:
    merged = Fold()
    merged.merge(FoldDelta(first_bad={ERROR_0: FirstBad(0, {"v2": {1, 2, 3, 4}})}))
    merged.merge(FoldDelta(first_bad={ERROR_0: FirstBad(1, {"control": {6}})}))
    bad = merged.take().first_bad[ERROR_0]
    assert bad == FirstBad(1, {"v2": {2, 4}, "control": {6}})


def test_delta_is_false_when_nothing_was_folded() -> None:
    assert not Fold().take()
    assert folded(entry())
