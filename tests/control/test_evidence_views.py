"""What evidence shows of an experiment, and what it leaves out."""

from __future__ import annotations

import pytest

from control import evidence as module
from control.cellbook import EPOCHS_KEPT
from control.evidence import CorruptEvidence, Evidence, InvalidDelta, check
from control.outcomes import FailedTrace, Joined, Observation
from control.rollout.lanes import BlockTracker, LaneFacts
from control.rollout.policy import BreakerPolicy, Policy, StepPolicy
from control.rollout.run import Run
from control.rollout.words import Kind, Phase, State
from tests.control.deltas import (
    EPOCH_START_MS,
    START_MS,
    batch,
    count,
    exposures,
    first_bad,
    slot_ms,
)
from turnout.contract import LATENCY_SKETCH_GAMMA, TIME_BUCKET_S
from turnout.v1alpha1.common_pb2 import BAD_EVENT_KIND_WRONG
from turnout.v1alpha1.config_service_pb2 import (
    ROLE_SHADOW,
    CountDelta,
    DeltaBatch,
    ExposureBatch,
    FirstBadDelta,
    TargetDelta,
)

FACTS = LaneFacts(
    epoch=1,
    epoch_start_ms=EPOCH_START_MS,
    control="control",
    thetas={"v2": 0.5},
    kinds=(Kind.ERROR, Kind.SLOW, Kind.WRONG),
    alpha_lane=0.001,
    blocks_before=0,
    blocks=3,
)


def evidence_of(*batches: DeltaBatch) -> Evidence:
    found = Evidence()
    found.begin_epoch("exp", 1, EPOCH_START_MS, "fraud")
    for delivered in batches:
        found.add_delta(delivered, START_MS)
    return found


def events(evidence: Evidence, kind: Kind) -> tuple[int, int]:
    """(candidate's, control's) first bad events of a kind that lanes see."""
    kept = evidence.tracker("exp", 1)
    assert kept is not None
    tracker = BlockTracker.from_bytes(kept.to_bytes())  # assessing prunes, and views must not
    (state,) = [s for s in tracker.assess(FACTS, now_ms=START_MS) if s.kind is kind]
    return state.candidate_events, state.control_events


def wrong(unit: int, *, variant: str = "v2", at_ms: int = START_MS, epoch: int = 1) -> Observation:
    answer = (False, True, False)  # not correct: positive said, and it was not
    return Observation("exp", epoch, variant, 0, unit, False, *answer, at_ms, b"\x07" * 16)


def right(unit: int, *, variant: str = "v2", shadow: bool = False) -> Observation:
    return Observation("exp", 1, variant, 0, unit, shadow, True, True, True, START_MS, b"")


def test_variants_add_up_over_strata_sidecars_and_epochs() -> None:
    evidence = evidence_of(
        batch(1, instance="a", counts=[count(requests=10, errors=1), count("v2", requests=5)]),
        batch(1, instance="b", counts=[count(requests=3, errors=1)]),
        batch(2, instance="b", counts=[count(epoch=2, requests=100)]),
    )
    stratified = count(requests=2)
    stratified.stratum = 1
    evidence.add_delta(batch(3, counts=[stratified]), START_MS)
    assert evidence.variants("exp", 1)["control"].requests == 15
    assert evidence.variants("exp", 1)["control"].errors == 2
    assert evidence.variants("exp", 1)["v2"].requests == 5
    assert evidence.variants("exp")["control"].requests == 115
    assert evidence.variants("other", 1) == {}


def test_forced_requests_are_no_loss_when_they_were_logged() -> None:
    forced = count("v2", requests=5)  # 25 decided for v2: 5 by bucket, 20 by allow-list or token
    forced.decided, forced.forced = 25, 19
    evidence = evidence_of(batch(1, counts=[count(requests=10), forced]))
    seen = evidence.variants("exp", 1)
    assert (seen["control"].decided, seen["control"].requests) == (10, 10)
    assert (seen["v2"].decided, seen["v2"].requests) == (6, 5)  # the one that never was logged


def test_delta_counts_once_when_delivered_again() -> None:
    delta = batch(1, counts=[count(requests=10)])
    evidence = evidence_of(delta)
    assert evidence.has_delta("i", 1)
    assert not evidence.has_delta("i", 2)
    assert not evidence.add_delta(delta, START_MS + 5_000)
    assert evidence.variants("exp", 1)["control"].requests == 10
    assert evidence.last_delta_ms("i") == START_MS + 5_000
    assert evidence.last_delta_ms("other") == 0


def test_latency_quantile_is_within_one_percent() -> None:
    bins: dict[int, int] = {}
    for latency_ms in range(1, 1001):
        index = 0
        while LATENCY_SKETCH_GAMMA**index < latency_ms:
            index += 1
        bins[index] = bins.get(index, 0) + 1
    evidence = evidence_of(batch(1, counts=[count(requests=1000, latency=bins, sum_ms=500_500.0)]))
    sketch = evidence.variants("exp", 1)["control"].latency
    assert sketch.count == 1000
    assert sketch.sum_ms == 500_500.0
    for q in (0.5, 0.9, 0.95, 0.99):
        exact = 1 + q * 999
        quantile = sketch.quantile(q)
        assert quantile is not None
        assert abs(quantile - exact) <= 0.0101 * exact + 1


def test_shadow_counts_stand_apart_from_served_ones() -> None:
    evidence = evidence_of(
        batch(
            1,
            counts=[
                count(requests=10),
                count("v2", role=ROLE_SHADOW, requests=9, errors=4),
            ],
        )
    )
    served = [right(1, variant="control"), right(2, variant="control", shadow=True)]
    evidence.add_joined(Joined(START_MS, served))
    seen = evidence.variants("exp", 1)
    assert (seen["control"].requests, seen["control"].errors) == (10, 0)
    assert (seen["control"].labelled, seen["control"].shadow_labelled) == (1, 0)
    assert (seen["v2"].requests, seen["v2"].errors) == (0, 0)
    assert (seen["v2"].shadow_requests, seen["v2"].shadow_errors) == (9, 4)
    assert (seen["v2"].shadow_labelled, seen["v2"].shadow_correct) == (1, 1)


def test_window_holds_only_its_buckets() -> None:
    evidence = evidence_of(
        batch(
            1,
            counts=[
                count(at_ms=START_MS - 60_000, requests=7, errors=7),
                count(at_ms=START_MS - 20_000, requests=5, errors=1),
                count("v2", at_ms=START_MS - 10_000, requests=3, errors=3),
                count("v2", role=ROLE_SHADOW, at_ms=START_MS - 10_000, requests=2),
            ],
        )
    )
    window = evidence.window("exp", 1, START_MS // 1000 - 30, START_MS // 1000)
    assert (window["control"].requests, window["control"].errors) == (5, 1)
    assert (window["v2"].requests, window["v2"].errors) == (3, 3)
    assert window["v2"].shadow_requests == 2


def test_buckets_are_the_last_ones_with_empty_ones_between() -> None:
    evidence = evidence_of(
        batch(1, counts=[count(at_ms=START_MS - 20_000, requests=5, latency={3: 5})])
    )
    buckets = evidence.buckets("exp", 1, now_ms=START_MS, count=3)["control"]
    present_s = START_MS // 1000 // TIME_BUCKET_S * TIME_BUCKET_S
    assert [b.start_unix_s for b in buckets] == [present_s - 20, present_s - 10, present_s]
    assert [b.requests for b in buckets] == [5, 0, 0]
    assert buckets[0].latency.bins == ((3, 5),)


def test_buckets_are_let_go_after_a_day_and_totals_stay() -> None:
    evidence = evidence_of(batch(1, counts=[count(requests=5)]))
    assert evidence.window("exp", 1, 0, START_MS)["control"].requests == 5
    evidence.add_delta(batch(2), START_MS + 25 * 3_600_000)
    assert evidence.window("exp", 1, 0, START_MS) == {}
    assert evidence.variants("exp", 1)["control"].requests == 5


def test_bucket_from_the_far_future_is_counted_but_in_no_window() -> None:
    evidence = evidence_of(batch(1, counts=[count(at_ms=START_MS + 86_400_000, requests=5)]))
    assert evidence.window("exp", 1, 0, 2 * START_MS) == {}
    assert evidence.variants("exp", 1)["control"].requests == 5
    assert evidence.left_out["buckets_ahead"] == 1


def test_lanes_see_each_unit_once_over_all_sidecars() -> None:
    evidence = evidence_of(
        batch(1, instance="a", bad=[first_bad("v2", [1, 2], slot=9)]),
        batch(
            1,
            instance="b",
            bad=[first_bad("v2", [2, 3], slot=9), first_bad("control", [4], slot=9)],
        ),
    )
    assert events(evidence, Kind.ERROR) == (3, 1)


def test_wrong_answers_go_to_the_lane_once_per_unit() -> None:
    evidence = evidence_of()
    evidence.add_joined(
        Joined(
            START_MS,
            [wrong(1), wrong(1), wrong(2), wrong(3), right(4), right(5, variant="control")],
        )
    )
    assert events(evidence, Kind.WRONG) == (3, 0)
    seen = evidence.variants("exp", 1)["v2"]
    assert (seen.labelled, seen.correct, seen.first_bad_unix_ms) == (5, 1, START_MS)


def test_wrong_answers_wait_until_their_epoch_has_begun() -> None:
    late = Evidence()
    late.add_delta(batch(1), START_MS)
    late.add_joined(Joined(START_MS, [wrong(1), wrong(2, at_ms=slot_ms(3))]))
    late = Evidence.from_bytes(late.to_bytes())
    late.begin_epoch("exp", 1, EPOCH_START_MS, "fraud")
    early = evidence_of(batch(1))
    early.add_joined(Joined(START_MS, [wrong(1), wrong(2, at_ms=slot_ms(3))]))
    assert late.to_bytes() == early.to_bytes()


def test_slot_is_refused_when_no_clock_could_give_it() -> None:
    evidence = evidence_of(
        batch(1, bad=[first_bad("v2", [1], slot=2**32 - 1)]),
        batch(2, bad=[first_bad("v2", [1], slot=2**32 - 1, epoch=7)]),
    )
    assert evidence.left_out["first_bad"] == 2
    assert len(evidence.to_bytes()) < 2000


def test_first_bad_of_kind_wrong_from_a_sidecar_is_taken_too() -> None:
    evidence = evidence_of(batch(1, bad=[first_bad("v2", [1], slot=9, kind=BAD_EVENT_KIND_WRONG)]))
    assert events(evidence, Kind.WRONG) == (1, 0)


def test_exemplars_are_the_youngest_few() -> None:
    evidence = evidence_of()
    for second in range(20):
        failed = FailedTrace("exp", 1, "v2", START_MS + second, bytes([second + 1]) * 16)
        evidence.add_joined(Joined(START_MS, [], [failed]))
    (exemplar,) = evidence.exemplars("exp", 1)
    assert (exemplar.variant, exemplar.kind) == ("v2", Kind.ERROR)
    assert exemplar.trace_ids == tuple(f"{n:02x}" * 16 for n in (20, 19, 18, 17, 16))


def test_target_counts_since_the_start_of_an_experiment() -> None:
    evidence = Evidence()
    unstamped = TargetDelta(target="fraud", unstamped={"timeout": 5}, no_unit=2, answered=10)
    evidence.add_delta(batch(1, targets=[unstamped]), START_MS)
    evidence.begin_epoch("exp", 1, EPOCH_START_MS, "fraud")
    more = TargetDelta(target="fraud", unstamped={"timeout": 1, "empty": 2}, answered=7)
    whole = TargetDelta(target="", unstamped={"unknown": 3})
    evidence.add_delta(batch(2, targets=[more, whole]), START_MS)
    evidence.begin_epoch("exp", 2, START_MS, "fraud")
    since = evidence.target("fraud", since_start_of="exp")
    assert since.unstamped == {"timeout": 1, "empty": 2}
    assert since.beside["answered"] == 7
    assert since.beside["no_unit"] == 0
    assert evidence.target("fraud").unstamped == {"timeout": 6, "empty": 2}
    assert evidence.target("", since_start_of="exp").unstamped == {"unknown": 3}


def test_forgotten_experiment_leaves_nothing_and_others_stay() -> None:
    other = batch(1, counts=[count("v2", experiment="other", requests=4)])
    evidence = Evidence()
    evidence.add_delta(other, START_MS)
    before = evidence.to_bytes()
    evidence.begin_epoch("exp", 1, EPOCH_START_MS, "fraud")
    evidence.add_delta(
        batch(2, counts=[count()], bad=[first_bad("v2", [1])], exposed=[exposures("v2", [(1, 1)])]),
        START_MS,
    )
    evidence.add_joined(Joined(START_MS, [wrong(1)]))
    evidence.forget("exp")
    assert evidence.variants("exp") == {}
    fresh = Evidence.from_bytes(before)
    fresh.add_delta(batch(2), START_MS)
    assert evidence.to_bytes() == fresh.to_bytes()


def test_seen_is_filled_for_a_run_and_begins_its_epoch() -> None:
    evidence = Evidence()
    counts = [count(requests=40), count("v2", requests=30, errors=3)]
    evidence.add_delta(batch(1, counts=counts, bad=[first_bad("v2", [1, 2, 3])]), START_MS)
    policy = Policy(
        control="control",
        candidates=("v2",),
        steps=(StepPolicy(Phase.CANARY, {"control": 500_000, "v2": 500_000}),),
        breaker=BreakerPolicy(error_rate=0.5),
    )
    run = Run(
        experiment="exp",
        state=State.RUNNING,
        phase=Phase.CANARY,
        epoch=1,
        epoch_start_ms=EPOCH_START_MS,
        split_ppm={"control": 500_000, "v2": 500_000},
    )
    seen = evidence.seen(run, policy, now_ms=START_MS, snapshot_version=7, code_version="1")
    assert seen.variants["v2"].requests == 30
    assert seen.window["v2"].errors == 3
    assert len(seen.buckets["v2"]) == 5
    (lane,) = seen.lanes
    assert (lane.kind, lane.candidate_events) == (Kind.ERROR, 3)
    assert (seen.snapshot_version, seen.code_version) == (7, "1")
    evidence.add_joined(Joined(START_MS, [wrong(1)]))
    assert events(evidence, Kind.WRONG) == (1, 0)


def test_new_keys_are_left_out_and_counted_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("control.findings.KEYS_MAX", 3)
    evidence = evidence_of(
        batch(1, counts=[count(experiment=f"e{n}", requests=1) for n in range(5)]),
        batch(2, counts=[count(experiment="e0", requests=1)]),
    )
    assert evidence.left_out["keys"] == 2
    assert evidence.variants("e0", 1)["control"].requests == 2


def test_oldest_instance_goes_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INSTANCES_MAX", 2)
    evidence = Evidence()
    for number in range(3):
        evidence.add_delta(batch(1, instance=f"i{number}"), START_MS + number)
    assert [evidence.has_delta(f"i{n}", 1) for n in range(3)] == [False, True, True]
    assert evidence.left_out["instances"] == 1


def test_lanes_of_old_epochs_go_when_there_are_too_many() -> None:
    evidence = Evidence()
    for epoch in range(1, EPOCHS_KEPT + 3):
        evidence.begin_epoch("exp", epoch, EPOCH_START_MS)
        evidence.add_delta(batch(epoch, bad=[first_bad("v2", [1], epoch=epoch)]), START_MS)
    assert evidence.tracker("exp", 2) is None
    assert evidence.tracker("exp", 3) is not None
    evidence.add_delta(batch(99, bad=[first_bad("v2", [1], epoch=1)]), START_MS)
    assert evidence.tracker("exp", 1) is None


@pytest.mark.parametrize(
    "delta",
    [
        DeltaBatch(instance_id="", seq=1),
        DeltaBatch(instance_id="i", seq=0),
        DeltaBatch(instance_id="i" * 129, seq=1),
        DeltaBatch(instance_id="i", seq=2**64 - 1),
        batch(1, counts=[count(requests=2**63)]),
        batch(1, counts=[count(first_bad_ms=-1)]),
        batch(1, targets=[TargetDelta(target="t" * 64)]),
        batch(1, targets=[TargetDelta(unstamped={"r" * 64: 1})]),
        batch(1, counts=[count("")]),
        batch(1, counts=[count("tab\there")]),
        batch(1, counts=[count("v" * 64)]),
        batch(1, counts=[CountDelta(experiment="e", variant="v")]),
        batch(
            1, counts=[CountDelta(experiment="e", variant="v", role=ROLE_SHADOW, latency_bins=[1])]
        ),
        batch(1, counts=[count(sum_ms=float("nan"))]),
        batch(1, counts=[count(sum_ms=float("inf"))]),
        batch(1, counts=[count(sum_ms=-1.0)]),
        batch(1, counts=[count(latency={10**6: 1})]),
        batch(1, bad=[first_bad("v2", [1], sample_shift=65)]),
        batch(
            1,
            bad=[
                FirstBadDelta(
                    experiment="e", variant="v", kind=BAD_EVENT_KIND_WRONG, unit_hashes=b"\x00" * 7
                )
            ],
        ),
        batch(1, bad=[FirstBadDelta(experiment="e", variant="v")]),
        batch(1, exposed=[ExposureBatch(experiment="e", variant="v", offset_ms=[1])]),
        batch(1, exposed=[exposures("v2", [(1, 1)], at_ms=-1)]),
    ],
)
def test_delta_is_refused_whole_when_no_sidecar_of_ours_sends_it(delta: DeltaBatch) -> None:
    with pytest.raises(InvalidDelta):
        check(delta)
    evidence = Evidence()
    before = evidence.to_bytes()
    with pytest.raises(InvalidDelta):
        evidence.add_delta(delta, START_MS)
    assert evidence.to_bytes() == before


@pytest.mark.parametrize("damage", [b"", b"x", b"EVIDENCE\x01nonsense"])
def test_damaged_evidence_is_refused(damage: bytes) -> None:
    with pytest.raises(CorruptEvidence):
        Evidence.from_bytes(damage)
