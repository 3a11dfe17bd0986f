"""Assignment by several experiments at once: layers, holdouts, ramps; nothing disturbs the rest.

Each property is asked of the plan that serves, through whole answers; the statistical ones are of
fixed seeds, with bounds that a right hash breaks once in 10^6 seeds.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.snapshot import Allocation, Ranges, allocate, grow
from sidecar.hashing import bucket
from sidecar.snapshotcheck import validate
from tests.differential.generate import make_world
from tests.sidecar.samples import ask, build, experiment, snapshot, stamped, target, variant
from turnout.contract import BUCKET_COUNT, LAYER_MODELS
from turnout.v1alpha1.snapshot_pb2 import BucketRange, ExperimentPlan, Snapshot

UNITS: Final = [b"user-%d" % number for number in range(400)]
MANY: Final = [b"customer/%d" % number for number in range(8_000)]
# Upper 1e-6 quantiles of chi-square (scipy.stats.chi2.isf).
CHI_SQUARE_99: Final = 180.79
CHI_SQUARE_7: Final = 40.52
CHI_SQUARE_3: Final = 30.66
LAYERS: Final = ("aa", "prompt", "zeta")
Assignments = dict[str, str]  # experiment -> variant


def assignments(message: Snapshot, units: Sequence[bytes]) -> dict[bytes, Assignments]:
    """Unit -> what it is in, of a snapshot that a sidecar accepts."""
    assert validate(message) == []
    plan = build(message)
    found: dict[bytes, Assignments] = {}
    for unit in units:
        answer = ask(plan, ("x-user-id", unit))
        entries = stamped(answer)["x-turnout"].decode() if answer.response else ""
        parts = [entry.split(";") for entry in entries.split(",") if entry]
        found[unit] = {part[0]: part[2] for part in parts}
        assert len(found[unit]) == len(parts), "one entry for each experiment"
    return found


def empty() -> Snapshot:
    """A target without experiments."""
    message = snapshot()
    del message.experiments[:]
    return message


def in_layer(
    name: str, layer: str, part: Ranges = (), *, on: str = "fraud", share: int = 300_000
) -> ExperimentPlan:
    """An experiment of which `share` parts per million are v2's."""
    plan = experiment(name, share=share)
    plan.target, plan.layer, plan.salt = on, layer, f"salt of {name}"
    plan.layer_salt = f"salt of {on} {layer}"
    plan.layer_ranges.extend(BucketRange(start=s, end=e) for s, e in part or [(0, BUCKET_COUNT)])
    for each in plan.variants:
        if layer != LAYER_MODELS:
            each.ClearField("cluster")
            each.parameters[f"{layer}-key"] = each.name
    return plan


def add(message: Snapshot, *plans: ExperimentPlan) -> Snapshot:
    """A copy with more experiments, sorted by name."""
    made = Snapshot()
    made.CopyFrom(message)
    del made.experiments[:]
    made.experiments.extend(sorted([*message.experiments, *plans], key=lambda plan: plan.name))
    return made


def with_allocation(allocation: Mapping[str, Ranges]) -> Snapshot:
    """The sample's experiment with these variants."""
    message = snapshot()
    [plan] = message.experiments
    del plan.variants[:]
    plan.variants.extend(
        variant(name, *allocation[name], control=name == "control")
        for name in sorted(allocation, key=lambda name: (name != "control", name))
    )
    return message


def arms(allocation: Mapping[str, Ranges]) -> dict[bytes, str]:
    """Unit -> variant."""
    found = assignments(with_allocation(allocation), UNITS)
    return {unit: given["fraud-v2"] for unit, given in found.items()}


# -- Hash ------------------------------------------------------------------------------------------


def chi_square(observed: Sequence[float], expected: Sequence[float]) -> float:
    """Pearson's statistic."""
    return sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_buckets_are_uniform_when_salt_and_form_of_units_vary(seed: int) -> None:
    random = Random(seed)
    salt = random.randbytes(random.randint(1, 64))
    form = random.choice((b"%d", b"user-%d", b"%032x", b"%d@example.test"))
    start = random.randrange(2**40)
    cells = Counter(
        bucket(salt, form % number) * 100 // BUCKET_COUNT for number in range(start, start + 20_000)
    )
    assert chi_square([cells[i] for i in range(100)], [200] * 100) < CHI_SQUARE_99


def test_answers_are_equal_in_processes_with_other_hash_seeds() -> None:
    """Worlds, requests and answers made anew in each process; only the digest comes back."""
    digests = set()
    for seed in ("0", "1", "4242"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-m", "tests.differential.digest", "7", "20", "50"]
        done = subprocess.run(
            command,
            env=environment,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout)
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 2 * hashlib.sha256().digest_size


# -- Layers ----------------------------------------------------------------------------------------


@st.composite
def layered(draw: st.DrawFn) -> Snapshot:
    """One target with up to three experiments in each of up to four layers."""
    plans = []
    for layer in (LAYER_MODELS, *LAYERS):
        count = draw(st.integers(0, 3))
        cuts = sorted(draw(st.sets(st.integers(0, BUCKET_COUNT), min_size=6, max_size=6)))
        for index in range(count):
            part = (cuts[2 * index], cuts[2 * index + 1])
            share = draw(st.sampled_from([0, 1, 300_000, 999_999, BUCKET_COUNT]))
            plans.append(in_layer(f"{layer}-{index}", layer, (part,), share=share))
    return add(empty(), *plans)


@given(layered())
@settings(max_examples=25, deadline=None)
def test_experiments_exclude_each_other_within_a_layer(message: Snapshot) -> None:
    layers = {plan.name: plan.layer for plan in message.experiments}
    for unit, given_ in assignments(message, UNITS[:150]).items():
        places = {
            plan.name
            for plan in message.experiments
            if any(
                part.start <= bucket(plan.layer_salt.encode(), unit) < part.end
                for part in plan.layer_ranges
            )
        }
        assert given_.keys() == places
        assert len({layers[name] for name in given_}) == len(given_)


@given(layered(), st.data())
@settings(max_examples=25, deadline=None)
def test_nobody_moves_in_other_experiments_when_one_is_taken_away_or_added(
    message: Snapshot, data: st.DataObject
) -> None:
    """Of the same layer, of other layers, of other targets: before, between and behind."""
    with_all = assignments(message, UNITS[:80])
    names = [plan.name for plan in message.experiments]
    gone = data.draw(st.sets(st.sampled_from(names))) if names else set()
    less = Snapshot()
    less.CopyFrom(message)
    del less.experiments[:]
    less.experiments.extend(plan for plan in message.experiments if plan.name not in gone)
    more = add(less, in_layer("aaa", "new"), in_layer("other", LAYER_MODELS, on="other"))
    more.targets.append(target("other"))
    more.targets[-1].path_prefix = "/other"
    for changed in (less, more):
        for unit, given_ in assignments(changed, UNITS[:80]).items():
            kept = {name: arm for name, arm in given_.items() if name != "aaa"}
            assert kept == {n: arm for n, arm in with_all[unit].items() if n not in gone}


def test_nobody_moves_in_other_layers_when_one_ramps_or_rolls_back() -> None:
    found = []
    for share in (0, 300_000, 900_000, 0):
        one = in_layer("one", LAYER_MODELS, share=share)
        message = add(empty(), one, in_layer("two", "aa"), in_layer("three", "zeta"))
        found.append({u: a | {"one": ""} for u, a in assignments(message, UNITS).items()})
    assert all(after == found[0] for after in found)


def test_layers_are_independent_when_all_split_the_same_units() -> None:
    """Chi-square of 8 cells against the product of the shares."""
    message = add(
        empty(),
        in_layer("one", LAYER_MODELS, share=500_000),
        in_layer("two", "aa", share=300_000),
        in_layer("three", "zeta", share=200_000),
    )
    found = assignments(message, MANY)
    cells = Counter((a["one"], a["two"], a["three"]) for a in found.values())
    shares = {"one": 0.5, "two": 0.3, "three": 0.2}
    observed, expected = [], []
    for cell in [
        (x, y, z) for x in ("control", "v2") for y in ("control", "v2") for z in ("control", "v2")
    ]:
        share = 1.0
        for name, arm in zip(shares, cell, strict=True):
            share *= shares[name] if arm == "v2" else 1 - shares[name]
        observed.append(float(cells[cell]))
        expected.append(share * len(MANY))
    assert chi_square(observed, expected) < CHI_SQUARE_7


def test_arm_and_place_in_the_layer_are_independent_when_a_layer_is_shared() -> None:
    """An experiment's own split is even among the units that its part of the layer gives it."""
    message = add(
        empty(),
        in_layer("low", "aa", ((0, 250_000),), share=500_000),
        in_layer("high", "aa", ((250_000, BUCKET_COUNT),), share=500_000),
    )
    cells = Counter(next(iter(a.items())) for a in assignments(message, MANY).values())
    quarter, half = len(MANY) * 0.125, len(MANY) * 0.375
    observed = [cells[("low", "control")], cells[("low", "v2")]]
    observed += [cells[("high", "control")], cells[("high", "v2")]]
    assert chi_square(observed, [quarter, quarter, half, half]) < CHI_SQUARE_3


# -- Ramps -----------------------------------------------------------------------------------------

CANDIDATES: Final = ("v2", "v3", "v4")
ramps = st.lists(
    st.fixed_dictionaries({name: st.integers(0, 80_000) for name in CANDIDATES}),
    min_size=2,
    max_size=4,
)


@given(ramps)
@settings(max_examples=15, deadline=None)
def test_users_never_swap_when_several_variants_grow_at_once(
    increments: list[dict[str, int]],
) -> None:
    allocation: Allocation = {}
    weights = dict.fromkeys(CANDIDATES, 0)
    before: dict[bytes, str] = {}
    for increment in increments:
        weights = {name: weights[name] + increment[name] for name in CANDIDATES}
        allocation = allocate(allocation, weights, control="control")
        now = arms(allocation)
        for unit, arm in before.items():
            assert now[unit] == arm or arm == "control"
        before = now


@given(ramps, st.sampled_from(CANDIDATES))
@settings(max_examples=15, deadline=None)
def test_only_a_rolled_back_variants_users_move_and_to_control(
    increments: list[dict[str, int]], bad: str
) -> None:
    allocation: Allocation = {}
    weights = dict.fromkeys(CANDIDATES, 0)
    for increment in increments:
        weights = {name: weights[name] + increment[name] for name in CANDIDATES}
        allocation = allocate(allocation, weights, control="control")
    before = arms(allocation)
    after = arms(allocate(allocation, weights | {bad: 0}, control="control"))
    assert after == {unit: "control" if arm == bad else arm for unit, arm in before.items()}


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_nobody_or_everybody_gets_the_candidate_at_0_and_100_percent(fraction: float) -> None:
    """Exactly: also the units of the first and of the last bucket."""
    allocation = grow({}, {"v2": fraction}, control="control")
    assert {*arms(allocation).values()} == {"v2" if fraction else "control"}
    extremes = sorted(MANY, key=lambda unit: bucket(b"salt", unit))
    found = assignments(with_allocation(allocation), [*extremes[:20], *extremes[-20:]])
    assert {a["fraud-v2"] for a in found.values()} == {"v2" if fraction else "control"}
    again = grow(grow({}, {"v2": 0.37}, control="control"), {"v2": fraction}, control="control")
    assert arms(again) == arms(allocation)


# -- Holdout ---------------------------------------------------------------------------------------


def held(message: Snapshot, end: int) -> set[bytes]:
    """Units that are in no experiment when buckets below `end` are held out of all of them."""
    for plan in message.experiments:
        plan.holdout.salt = "tenant's holdout"
        del plan.holdout.ranges[:]
        if end:
            plan.holdout.ranges.add(start=0, end=end)
        else:
            plan.ClearField("holdout")
    found = assignments(message, UNITS)
    # All or nothing: one holdout for all layers.
    assert {len(given_) for given_ in found.values()} <= {0, len(message.experiments)}
    return {unit for unit, given_ in found.items() if not given_}


@given(st.lists(st.integers(0, BUCKET_COUNT), min_size=2, max_size=4))
@settings(max_examples=15, deadline=None)
def test_holdout_only_grows_and_is_one_for_all_experiments(ends: list[int]) -> None:
    message = add(empty(), in_layer("one", LAYER_MODELS), in_layer("two", "aa"))
    before: set[bytes] = set()
    for end in sorted(ends):
        now = held(message, end)
        assert before <= now
        assert now == {unit for unit in UNITS if bucket(b"tenant's holdout", unit) < end}
        before = now


def test_arms_do_not_change_when_others_are_held_out() -> None:
    message = add(empty(), in_layer("one", LAYER_MODELS), in_layer("two", "aa"))
    before = assignments(message, UNITS)
    out = held(message, 200_000)
    assert 0 < len(out) < len(UNITS)
    after = assignments(message, UNITS)
    assert after == {u: {} if u in out else given_ for u, given_ in before.items()}


# -- Worlds ----------------------------------------------------------------------------------------


@given(st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_generated_worlds_are_accepted(random: Random) -> None:
    world = make_world(random)
    assert validate(world.snapshot) == [], json.dumps(world.dead)
