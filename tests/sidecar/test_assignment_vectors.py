"""The shared vectors, which a checker in Go proves too, answered by the sidecar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sidecar.arms import within
from sidecar.hashing import bucket
from sidecar.outcome import Outcome
from sidecar.plan import Plan
from sidecar.predicates import compile_predicate
from tests.sidecar.samples import EPOCH_START_MS, ask, snapshot, stamped
from turnout.v1alpha1.common_pb2 import Percentage, Predicate
from turnout.v1alpha1.snapshot_pb2 import BucketRange, ExperimentPlan

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "assignment.json").read_text()
)
SECTIONS = ("variants", "layer", "holdout", "percentage", "stamps")


def spans(ranges: list[list[int]]) -> list[BucketRange]:
    return [BucketRange(start=start, end=end) for start, end in ranges]


def experiment(name: str, **facts: Any) -> ExperimentPlan:
    plan = ExperimentPlan(
        name=name,
        epoch=facts.get("epoch", 1),
        epoch_start_unix_ms=EPOCH_START_MS,
        target="fraud",
        layer=facts.get("layer", "models"),
        layer_salt=facts.get("layer_salt", ""),
        layer_ranges=spans(facts.get("layer_ranges", [])),
        salt=facts["salt"],
    )
    plan.unit.header = "x-user-id"
    if "holdout_salt" in facts:
        plan.holdout.salt = facts["holdout_salt"]
        plan.holdout.ranges.extend(spans(facts["holdout_ranges"]))
    for variant, ranges in facts["variants"].items():
        one = plan.variants.add(name=variant, control=variant == "control", ranges=spans(ranges))
        if plan.layer == "models":
            one.cluster.cluster = f"c.{variant}"
            one.cluster.upstream.address = "a:1"
    return plan


def planned(*experiments: ExperimentPlan, key: bytes = bytes(32)) -> Plan:
    message = snapshot()
    del message.experiments[:]
    message.experiments.extend(experiments)
    return Plan.build(message, tenant_key=key, dead={}, open_gates=None, slots={})


def test_the_vectors_have_all_sections() -> None:
    assert set(SECTIONS) < set(VECTORS)


@pytest.mark.parametrize("world", VECTORS["variants"]["worlds"], ids=lambda world: world["name"])
def test_unit_has_the_vectors_variant(world: dict[str, Any]) -> None:
    plan = planned(experiment("e", salt=world["salt"], variants=world["variants"]))
    for case in world["cases"]:
        unit = bytes.fromhex(case["unit"])
        assert bucket(world["salt"].encode(), unit) == case["bucket"]
        assert stamped(ask(plan, ("x-user-id", unit)))["x-variant"] == case["variant"].encode()


def test_unit_is_in_the_vectors_experiment_of_a_layer() -> None:
    layer = VECTORS["layer"]
    everybody = {"control": [[0, 1_000_000]], "v2": []}
    plan = planned(
        *(
            experiment(
                name, salt="s", layer_salt=layer["salt"], layer_ranges=ranges, variants=everybody
            )
            for name, ranges in layer["experiments"].items()
        )
    )
    for case in layer["cases"]:
        answer = ask(plan, ("x-user-id", bytes.fromhex(case["unit"])))
        if case["experiment"]:
            assert stamped(answer)["x-turnout"].startswith(case["experiment"].encode() + b";")
        else:
            assert answer.outcome is Outcome.NOT_IN_LAYER


def test_unit_is_held_out_when_the_vectors_say_so() -> None:
    holdout = VECTORS["holdout"]
    facts = {"holdout_salt": holdout["salt"], "holdout_ranges": holdout["ranges"]}
    plan = planned(
        experiment("e", salt="s", variants={"control": [[0, 1_000_000]], "v2": []}, **facts)
    )
    ranges = [(start, end) for start, end in holdout["ranges"]]
    for case in holdout["cases"]:
        unit = bytes.fromhex(case["unit"])
        outcome = ask(plan, ("x-user-id", unit)).outcome
        assert outcome is (Outcome.HELD_OUT if case["held"] else Outcome.STAMPED)
        assert within(ranges, case["bucket"]) is case["held"]


def test_unit_is_in_the_vectors_percentage() -> None:
    for world in VECTORS["percentage"]["worlds"]:
        share = Percentage(salt=world["salt"], buckets=world["buckets"])
        test = compile_predicate(Predicate(percentage=share))
        for case in world["cases"]:
            assert test({}, bytes.fromhex(case["unit"])) is case["in"]


def test_stamp_is_the_vectors_stamp() -> None:
    stamps = VECTORS["stamps"]
    experiments = [experiment(**facts) for facts in stamps["experiments"]]
    plan = planned(*experiments, key=bytes.fromhex(stamps["key"]))
    for case in stamps["cases"]:
        answer = ask(plan, ("x-user-id", bytes.fromhex(case["unit"])))
        got = stamped(answer)["x-turnout"].decode() if answer.response is not None else ""
        assert got == case["stamp"]
