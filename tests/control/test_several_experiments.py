"""Several experiments on one target: layers, reservations, shadows, promotions. Real gRPC."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from control.server import ControlPlane, Options
from control.store.sqlite import SqliteStore
from tests.control.peers import (
    EXPERIMENT_SPEC,
    PARENT,
    TARGET,
    Api,
    FakeSidecar,
    experiment,
    reason,
    violations,
)
from turnout import contract
from turnout.v1alpha1 import experiment_service_pb2 as service
from turnout.v1alpha1.config_service_pb2 import DeltaBatch, TargetDelta
from turnout.v1alpha1.experiment_pb2 import Experiment
from turnout.v1alpha1.snapshot_pb2 import ExperimentPlan

CODE = grpc.StatusCode

PARAMETERS_SPEC = """
target: fraud
unit: {cookie: uid}
layer: {name: scoring}
control: control
variants:
- {name: control}
- {name: high, parameters: {threshold: "0.9"}}
steps:
- canary: {split: {high: 0.5}, for: 3600s}
"""
SHADOW = "- shadow: {variant: v2, for: 3600s}\n- canary: {split: {v2: 0.05}, for: 3600s}\n"


def routed(variant: str, *, reserve: float, shadow: bool = False) -> Experiment:
    """An experiment of the layer `models` with an upstream of its own."""
    port = 8000 + int(variant[1:])
    spec = EXPERIMENT_SPEC.replace("v2", variant).replace("8002", str(port))
    if shadow:
        spec = spec[: spec.index("steps:")] + "steps:\n" + SHADOW.replace("v2", variant)
    return experiment(f"{spec}layer: {{name: models, reserve: {reserve}}}\n")


def named(name: str) -> str:
    """The resource name of an experiment."""
    return f"{PARENT}/experiments/{name}"


async def run(api: Api, name: str, message: Experiment) -> Experiment:
    """Create and start an experiment."""
    await api.create(message, name)
    return await api.verb("Start", named(name))


def ranges(plan: ExperimentPlan) -> list[tuple[int, int]]:
    """What an experiment has of its layer."""
    return [(piece.start, piece.end) for piece in plan.layer_ranges]


async def gone(sidecar: FakeSidecar, name: str) -> None:
    """Wait until an experiment is in the snapshot no more."""
    await sidecar.until(
        lambda me: all(plan.name != name for plan in me.snapshot.experiments), f"{name} ended"
    )


# -- Layers ----------------------------------------------------------------------------------------


async def test_second_experiment_gets_the_next_ranges_when_a_part_is_reserved(
    api: Api, sidecar: FakeSidecar
) -> None:
    await api.create_target()
    await run(api, "a", routed("v2", reserve=0.5))
    await run(api, "b", routed("v3", reserve=0.3))
    first, second = await sidecar.plan("a"), await sidecar.plan("b")
    assert (ranges(first), ranges(second)) == ([(0, 500_000)], [(500_000, 800_000)])
    assert first.layer_salt == second.layer_salt != ""
    assert first.salt != second.salt
    running = (await api.get_target()).status.running_experiments
    assert list(running) == [named("a"), named("b")]


async def test_start_is_refused_with_the_holders_when_too_little_is_left(api: Api) -> None:
    await api.create_target()
    await run(api, "a", routed("v2", reserve=0.5))
    await run(api, "b", routed("v3", reserve=0.3))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await run(api, "c", routed("v4", reserve=0.25))
    assert (refused.value.code(), reason(refused.value)) == (
        CODE.FAILED_PRECONDITION,
        "LAYER_RESERVED",
    )
    assert refused.value.details() == (
        "layer models of target fraud has 20 % left and c wants 25 %: a holds 50 %, b holds 30 %; "
        "end one of them, or lower spec.layer.reserve"
    )
    assert await api.state(named("c")) == "DRAFT"


async def test_freed_ranges_are_given_first_when_an_experiment_ends(
    api: Api, sidecar: FakeSidecar
) -> None:
    await api.create_target()
    await run(api, "a", routed("v2", reserve=0.2))
    await run(api, "b", routed("v3", reserve=0.3))
    await api.verb("Rollback", named("a"))
    await run(api, "c", routed("v4", reserve=0.25))
    assert ranges(await sidecar.plan("c")) == [(0, 200_000), (500_000, 550_000)]
    # Who stays is not moved.
    assert ranges(await sidecar.plan("b")) == [(200_000, 500_000)]


async def test_reservation_is_the_same_when_the_control_plane_was_restarted(
    tmp_path: Path,
) -> None:
    for start in (True, False):
        store = await SqliteStore.open(f"sqlite:{tmp_path}/again.db")
        plane = ControlPlane(store, Options(listen="127.0.0.1:0"))
        await plane.start()
        async with Api(f"127.0.0.1:{plane.port}") as api:
            if start:
                name = f"{PARENT}/holdout"
                spec = service.HoldoutSpec(fraction=0.1)
                held = service.Holdout(name=name, spec=spec)
                await api.holdouts.UpdateHoldout(service.UpdateHoldoutRequest(holdout=held))
                await api.create_target()
                await run(api, "a", routed("v2", reserve=0.2))
                await run(api, "b", routed("v3", reserve=0.3))
                await api.verb("Stop", named("a"))
            async with FakeSidecar(api.channel) as sidecar:
                plan = await sidecar.plan("b")
                assert ranges(plan) == [(200_000, 500_000)]
                assert [(r.start, r.end) for r in plan.holdout.ranges] == [(0, 100_000)]
        await plane.stop()


async def test_layers_are_independent_when_both_have_experiments(
    api: Api, sidecar: FakeSidecar
) -> None:
    await api.create_target()
    await run(api, "a", routed("v2", reserve=1.0))
    await run(api, "b", experiment(PARAMETERS_SPEC))
    first, second = await sidecar.plan("a"), await sidecar.plan("b")
    assert ranges(first) == ranges(second) == [(0, contract.BUCKET_COUNT)]
    assert first.layer_salt != second.layer_salt
    assert not any(variant.HasField("cluster") for variant in second.variants)
    assert dict(second.variants[1].parameters) == {"threshold": "0.9"}
    results = await api.results(named("b"))
    assert [variant.variant for variant in results.epoch_variants] == ["control", "high"]


async def test_start_is_refused_when_the_layers_unit_is_another(api: Api) -> None:
    await api.create_target()
    await run(api, "a", routed("v2", reserve=0.5))
    other = routed("v3", reserve=0.5)
    other.spec.unit.header = "x-session-id"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await run(api, "b", other)
    assert (refused.value.code(), reason(refused.value)) == (
        CODE.FAILED_PRECONDITION,
        "UNIT_DIFFERS",
    )
    assert "give both the same unit, or take another layer" in str(refused.value.details())


async def test_create_is_refused_when_another_layer_sets_the_parameter(api: Api) -> None:
    await api.create_target()
    await api.create(experiment(PARAMETERS_SPEC), "b")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.create(experiment(PARAMETERS_SPEC.replace("scoring", "limits")), "c")
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    (rule,) = violations(refused.value).values()
    assert "experiment b in layer scoring of this target sets x-param-threshold, too" in rule
    await api.create(experiment(PARAMETERS_SPEC), "d")  # the same layer: never both at once


async def test_seventeenth_layer_is_refused_when_sixteen_are_in_use(api: Api) -> None:
    await api.create_target()
    for index in range(contract.LAYERS_PER_TARGET_MAX):
        spec = PARAMETERS_SPEC.replace("scoring", f"l{index}").replace("threshold", f"k{index}")
        await run(api, f"e{index}", experiment(spec))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await run(api, "e16", experiment(PARAMETERS_SPEC))
    assert (refused.value.code(), reason(refused.value)) == (
        CODE.RESOURCE_EXHAUSTED,
        "TOO_MANY_LAYERS",
    )
    await api.verb("Stop", named("e3"))
    await api.verb("Start", named("e16"))


async def test_rollback_of_one_leaves_the_other_when_both_run(
    api: Api, sidecar: FakeSidecar
) -> None:
    await api.create_target()
    await run(api, "a", routed("v2", reserve=0.5))
    await run(api, "b", routed("v3", reserve=0.5))
    before = await sidecar.plan("b")
    await api.verb("Rollback", named("a"), reason="a test")
    await gone(sidecar, "a")
    assert await sidecar.plan("b") == before
    assert (await api.state(named("a")), await api.state(named("b"))) == ("ROLLED_BACK", "RUNNING")


# -- Shadows ---------------------------------------------------------------------------------------


async def test_second_shadow_is_queued_until_the_first_ends(api: Api, sidecar: FakeSidecar) -> None:
    await api.create_target()
    await run(api, "z", routed("v2", reserve=0.5, shadow=True))
    await run(api, "a", routed("v3", reserve=0.5, shadow=True))
    assert (await sidecar.plan("z")).HasField("shadow")
    assert not (await sidecar.plan("a")).HasField("shadow")

    def queued(found: Experiment) -> bool:
        return any(item.type == "SHADOW_QUEUED" for item in found.status.conditions)

    waits = await api.until(queued, named("a"))
    (condition,) = (item for item in waits.status.conditions if item.type == "SHADOW_QUEUED")
    assert condition.status
    assert "experiment z mirrors on target fraud, one at a time" in condition.message
    assert not queued(await api.get(named("z")))
    await api.verb("Advance", named("z"))
    await sidecar.until(
        lambda me: any(p.name == "a" and p.HasField("shadow") for p in me.snapshot.experiments),
        "the queued shadow begins",
    )
    await api.until(lambda found: not queued(found), named("a"))


# -- Promotions ------------------------------------------------------------------------------------


async def test_others_keep_their_control_when_one_of_the_layer_is_promoted(
    api: Api, sidecar: FakeSidecar
) -> None:
    """Their evidence compares with the control that they were started with."""
    await api.create_target()
    await run(api, "a", routed("v2", reserve=0.4))
    await run(api, "b", routed("v3", reserve=0.4))
    await run(api, "p", experiment(PARAMETERS_SPEC))
    epoch = (await sidecar.plan("b")).epoch
    await api.reported()
    await api.verb("Promote", named("a"))
    await gone(sidecar, "a")
    (plan,) = (found for found in sidecar.snapshot.experiments if found.name == "b")
    assert plan.variants[0].cluster.upstream.address == "127.0.0.1:8001"
    assert plan.epoch == epoch
    assert sidecar.snapshot.targets[0].baseline.upstream.address == "127.0.0.1:8002"
    # Other layers route nothing: their requests go to the new baseline.
    (parameters,) = (found for found in sidecar.snapshot.experiments if found.name == "p")
    assert not any(variant.HasField("cluster") for variant in parameters.variants)


async def test_promotion_takes_force_when_the_baseline_has_moved(
    api: Api, sidecar: FakeSidecar
) -> None:
    await api.create_target()
    await run(api, "a", routed("v2", reserve=0.4))
    await run(api, "b", routed("v3", reserve=0.4))
    await sidecar.plan("b")
    await api.reported()
    await api.verb("Promote", named("a"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.verb("Promote", named("b"))
    assert (refused.value.code(), reason(refused.value)) == (
        CODE.FAILED_PRECONDITION,
        "BASELINE_MOVED",
    )
    promoted = await api.verb("Promote", named("b"), force=True)
    assert "the target's baseline has changed since it started" in promoted.status.reason
    assert (await api.get_target()).spec.baseline.upstream.address == "127.0.0.1:8003"


async def test_undo_is_possible_when_the_others_compare_with_the_old_baseline(
    api: Api, sidecar: FakeSidecar
) -> None:
    await api.create_target()
    await run(api, "a", routed("v2", reserve=0.4))
    await run(api, "b", routed("v3", reserve=0.3))
    await sidecar.plan("b")
    await api.reported()
    await api.verb("Promote", named("a"))
    await run(api, "c", routed("v4", reserve=0.3))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.verb("Undo", named("a"))
    assert reason(refused.value) == "TARGET_IN_USE"
    assert "experiment c compares with the present baseline" in str(refused.value.details())
    await api.verb("Stop", named("c"))
    await api.verb("Undo", named("a"))
    assert (await api.get_target()).spec.baseline.upstream.address == "127.0.0.1:8001"
    assert await api.state(named("b")) == "RUNNING"


async def test_promotion_is_refused_when_the_layer_routes_nothing(api: Api) -> None:
    await api.create_target()
    await run(api, "p", experiment(PARAMETERS_SPEC))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.verb("Promote", named("p"), force=True)
    assert (refused.value.code(), reason(refused.value)) == (
        CODE.FAILED_PRECONDITION,
        "NOTHING_TO_PROMOTE",
    )


async def test_baseline_may_change_when_only_parameters_are_compared(api: Api) -> None:
    await api.create_target()
    await run(api, "p", experiment(PARAMETERS_SPEC))
    message = await api.get_target()
    message.spec.baseline.upstream.address = "127.0.0.1:9"
    changed = await api.targets.UpdateTarget(service.UpdateTargetRequest(target=message))
    assert changed.spec.baseline.upstream.address == "127.0.0.1:9"
    changed.spec.match.path_prefix = "/elsewhere"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.targets.UpdateTarget(service.UpdateTargetRequest(target=changed))
    assert reason(refused.value) == "TARGET_IN_USE"


async def test_allow_list_grows_in_the_same_epoch_when_it_is_changed(
    api: Api, sidecar: FakeSidecar
) -> None:
    """Forced units are left out of analysis: the evidence stays."""
    await api.create_target()
    await run(api, "a", routed("v2", reserve=1.0))
    before = await sidecar.plan("a")
    message = await api.get(named("a"))
    message.spec.overrides.add(units=["qa-2", "qa-1"], variant="v2")
    request = service.UpdateExperimentRequest(experiment=message)
    await api.experiments.UpdateExperiment(request)
    plan = await sidecar.until(
        lambda me: next((p for p in me.snapshot.experiments if p.overrides), None), "overrides"
    )
    assert [(item.unit, item.variant) for item in plan.overrides] == [
        ("qa-1", "v2"),
        ("qa-2", "v2"),
    ]
    assert plan.epoch == before.epoch
    assert TARGET.endswith(plan.target)


# -- Evidence --------------------------------------------------------------------------------------


async def test_results_have_what_is_beside_the_variants_since_the_own_start(
    api: Api, sidecar: FakeSidecar
) -> None:
    await api.create_target()
    await run(api, "a", routed("v2", reserve=0.5))
    first = TargetDelta(target="fraud", answered=10, held_out=3, invalid_token=1)
    await sidecar.deltas(DeltaBatch(targets=[first]))
    await run(api, "b", experiment(PARAMETERS_SPEC))
    second = TargetDelta(target="fraud", answered=5, not_in_layer=2)
    await sidecar.deltas(DeltaBatch(targets=[second]))
    beside = (await api.results(named("a"))).beside
    assert dict(beside) == {"held_out": 3, "invalid_token": 1, "not_in_layer": 2}
    assert dict((await api.results(named("b"))).beside) == {"not_in_layer": 2}
