"""Plans built in slices: the same plan, what has not changed taken over, all violations told."""

from __future__ import annotations

import gc
import time

import pytest

from sidecar.plan import InvalidSnapshot, Plan, PlanBuilder
from sidecar.processor import process
from tests.benchmarks.assignment import KEY, encoded, one_experiment, twenty_on_one, with_others
from tests.sidecar.samples import NOW_S, no_random
from turnout.v1alpha1.snapshot_pb2 import Snapshot


def builder(snapshot: Snapshot, previous: Plan | None = None) -> PlanBuilder:
    return Plan.builder(
        snapshot, tenant_key=KEY, dead={}, open_gates=None, slots={}, previous=previous
    )


def built(snapshot: Snapshot, previous: Plan | None = None) -> Plan:
    steps = builder(snapshot, previous)
    for _ in steps:
        pass
    return steps.plan


def answers(plan: Plan) -> list[bytes | None]:
    requests = [encoded(b"user-%d" % number) for number in range(200)]
    return [
        process(plan, one, random_unit=no_random, now_s=lambda: NOW_S).response for one in requests
    ]


def test_plan_is_the_same_when_it_is_built_upon_another() -> None:
    snapshot = twenty_on_one()
    first = built(snapshot)
    changed = Snapshot.FromString(snapshot.SerializeToString())
    changed.experiments[3].epoch += 1
    changed.experiments[4].salt = "other"
    assert answers(built(changed, first)) == answers(built(changed))
    assert answers(built(changed, first)) != answers(first)
    assert answers(built(snapshot, first)) == answers(first)


def test_unchanged_experiments_are_taken_over_and_the_others_are_not() -> None:
    snapshot = twenty_on_one()
    first = built(snapshot)
    changed = Snapshot.FromString(snapshot.SerializeToString())
    changed.experiments[3].epoch += 1
    second = built(changed, first)
    before, after = first.targets[0].experiments, second.targets[0].experiments
    same = [old is new for old, new in zip(before, after, strict=True)]
    assert same.count(False) == 1
    assert not same[[one.name for one in before].index(changed.experiments[3].name)]


def test_experiment_is_bound_anew_when_only_its_gate_or_counter_changed() -> None:
    snapshot = one_experiment()
    first = built(snapshot)
    key = ("fraud-v2", 3, "candidate")
    second = Plan.build(
        snapshot, tenant_key=KEY, dead={}, open_gates=[("fraud-v2", 3)], slots={key: 9},
        previous=first,
    )  # fmt: skip
    slots = {
        process(second, encoded(b"user-%d" % n), random_unit=no_random, now_s=lambda: NOW_S).slots
        for n in range(50)
    }
    assert slots == {(), (9,)}
    closed = Plan.build(snapshot, tenant_key=KEY, dead={}, open_gates=[], slots={}, previous=second)
    assert set(answers(closed)) == {None}


def test_all_violations_are_told_at_the_end_when_there_are_some() -> None:
    snapshot = with_others(twenty_on_one(), 50)
    snapshot.experiments[5].salt = ""
    snapshot.experiments[60].epoch = 0
    snapshot.targets[7].path_prefix = "x"
    steps = builder(snapshot)
    with pytest.raises(InvalidSnapshot) as refused:
        for _ in steps:
            pass
    assert {violation.field for violation in refused.value.violations} == {
        "experiments[5].salt", "experiments[60].epoch", "targets[7].path_prefix"
    }  # fmt: skip


def test_plan_of_a_thousand_is_built_in_short_steps() -> None:
    """Deadlines of behaviour with a threefold margin: 0.3 s in all; a hundredth of it at once."""
    snapshot = with_others(one_experiment(), 1_000)
    times = []
    steps = builder(snapshot)
    gc.disable()  # as the worker does
    try:
        before = time.thread_time()
        for _ in steps:
            after = time.thread_time()
            times.append(after - before)
            before = after
    finally:
        gc.enable()
    assert len(times) > 2_000
    assert sum(times) < 0.9
    assert sorted(times)[-10] < 0.003
