"""The holdout of a tenant: read, changed, pinned at an experiment's start; and on files."""

from __future__ import annotations

import json
import re

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from tests.control.clishell import Shell
from tests.control.peers import PARENT, Api, FakeSidecar, experiment, reason, violations
from tests.control.resources import EXPERIMENT, TARGET, violations_of
from tests.control.test_several_experiments import PARAMETERS_SPEC, named
from turnout.v1alpha1 import experiment_service_pb2 as service
from turnout.v1alpha1.experiment_service_pb2 import Holdout, HoldoutSpec

CODE = grpc.StatusCode
NAME = f"{PARENT}/holdout"
FILE = "\nkind: Holdout\nmetadata: {tenant: %s}\nspec: {fraction: %s}\n"


async def get(api: Api) -> Holdout:
    """The tenant's holdout."""
    return await api.holdouts.GetHoldout(service.GetHoldoutRequest(name=NAME))


async def update(
    api: Api, fraction: float, *, salt: str = "", etag: str = "", **fields: object
) -> Holdout:
    """Set the tenant's holdout."""
    holdout = Holdout(name=NAME, etag=etag, spec=HoldoutSpec(fraction=fraction, salt=salt))
    request = service.UpdateHoldoutRequest(holdout=holdout, **fields)  # type: ignore[arg-type]
    return await api.holdouts.UpdateHoldout(request)


async def test_fraction_is_zero_when_nobody_ever_set_one(api: Api) -> None:
    assert await get(api) == Holdout(name=NAME, spec=HoldoutSpec())


async def test_salt_is_made_once_and_kept_when_the_fraction_changes(api: Api) -> None:
    first = await update(api, 0.05)
    assert first.spec.salt
    assert first.revision == 1
    second = await update(api, 0.1, etag=first.etag)
    assert (second.spec.salt, second.spec.fraction) == (first.spec.salt, 0.1)
    assert second.revision == 2
    assert second == await get(api)
    masked = await update(api, 0.2, update_mask=FieldMask(paths=["spec.fraction"]))
    assert (masked.spec.salt, masked.spec.fraction) == (first.spec.salt, 0.2)
    # The same again is no change.
    assert await update(api, 0.2) == masked


async def test_update_is_refused_when_it_is_wrong_or_late(api: Api) -> None:
    first = await update(api, 0.05, salt="pepper")
    await update(api, 0.06)
    for fraction, fields, code in (
        (0.51, {}, CODE.INVALID_ARGUMENT),
        (-0.1, {}, CODE.INVALID_ARGUMENT),
        (float("nan"), {}, CODE.INVALID_ARGUMENT),
        (1e-9, {}, CODE.INVALID_ARGUMENT),
        (0.1, {"salt": "x" * 65}, CODE.INVALID_ARGUMENT),
        (0.1, {"salt": "salt"}, CODE.FAILED_PRECONDITION),
        (0.1, {"etag": first.etag}, CODE.ABORTED),
        (0.1, {"update_mask": FieldMask(paths=["etag"])}, CODE.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await update(api, fraction, **fields)
        assert refused.value.code() is code, (fraction, fields)
    assert (await get(api)).spec == HoldoutSpec(fraction=0.06, salt="pepper")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.holdouts.GetHoldout(service.GetHoldoutRequest(name=f"{NAME}/x"))
    assert violations(refused.value) == {"name": violations(refused.value)["name"]}
    assert reason(refused.value) == "INVALID"


async def test_nothing_is_stored_when_an_update_is_only_validated(api: Api) -> None:
    assert (await update(api, 0.05, validate_only=True)).spec.fraction == 0.05
    assert (await get(api)).spec.fraction == 0


async def test_first_answer_is_given_again_when_a_request_is_repeated(api: Api) -> None:
    first = await update(api, 0.05, request_id="r1")
    await update(api, 0.1)
    assert await update(api, 0.05, request_id="r1") == first
    assert (await get(api)).spec.fraction == 0.1


async def test_change_is_audited_when_it_is_made(api: Api) -> None:
    await update(api, 0.05)
    await update(api, 0.1)
    request = service.ListAuditEventsRequest(parent=PARENT, resource=NAME)
    events = (await api.audit.ListAuditEvents(request)).events
    assert [event.method for event in events] == ["HoldoutService.UpdateHoldout"] * 2
    shares = [
        [json.loads(text)["spec"].get("fraction", 0) for text in (e.before_json, e.after_json)]
        for e in events
    ]
    assert shares == [[0.05, 0.1], [0, 0.05]]


async def test_experiment_keeps_the_holdout_of_its_start_when_that_changes(
    api: Api, sidecar: FakeSidecar
) -> None:
    held = await update(api, 0.05)
    await api.create_target()
    await api.create(experiment(PARAMETERS_SPEC), "a")
    started = await api.verb("Start", named("a"))
    assert started.status.holdout_fraction == 0.05
    await update(api, 0.2)
    await api.create(
        experiment(PARAMETERS_SPEC.replace("scoring", "x").replace("threshold", "k")), "b"
    )
    await api.verb("Start", named("b"))
    first, second = await sidecar.plan("a"), await sidecar.plan("b")
    assert first.holdout.salt == second.holdout.salt == held.spec.salt
    assert [(r.start, r.end) for r in first.holdout.ranges] == [(0, 50_000)]
    assert [(r.start, r.end) for r in second.holdout.ranges] == [(0, 200_000)]


async def test_plan_has_no_holdout_when_the_fraction_is_zero(
    api: Api, sidecar: FakeSidecar
) -> None:
    await update(api, 0)
    await api.start(experiment(PARAMETERS_SPEC))
    assert not (await sidecar.plan()).HasField("holdout")


async def test_salt_is_refused_when_an_experiment_has_it_whichever_comes_first(api: Api) -> None:
    """All who are held out would be of its first candidate."""
    await api.create_target()
    await update(api, 0.05, salt="held")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.create(experiment(PARAMETERS_SPEC + "\nsalt: held"), "a")
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    assert 'salt of experiment "a"' in violations(refused.value)["spec.salt"]
    await api.create(experiment(PARAMETERS_SPEC + "\nsalt: own"), "a")


async def test_experiments_salt_is_refused_when_the_holdout_comes_later(api: Api) -> None:
    await api.create_target()
    await api.create(experiment(PARAMETERS_SPEC + "\nsalt: own"), "a")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await update(api, 0.05, salt="own")
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    assert "spec.salt" in violations(refused.value)
    assert (await get(api)).spec == HoldoutSpec()


def test_files_are_refused_when_holdout_and_experiment_have_one_salt() -> None:
    salted = EXPERIMENT.replace("target: fraud", "target: fraud\n  salt: same", 1)
    held = "\nkind: Holdout\nmetadata: {tenant: risk}\nspec: {fraction: 0.1, salt: same}\n"
    share = "target: fraud\n  segment: {not: {percentage: {salt: same, fraction: 0.5}}}"
    taken = re.sub("\n  segment: .*", "", EXPERIMENT).replace("target: fraud", share, 1)
    for text in (salted, taken):
        found = violations_of(f"{TARGET}---{text}---{held}")
        assert [(item.field, item.value) for item in found] == [("spec.salt", "same")]


# -- Files and commands ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "field", "rule"),
    [
        (
            "kind: Holdout\nmetadata: {tenant: risk}\nspec: {fraction: 0.6}",
            "spec.fraction",
            "at most 0.5",
        ),
        (
            "kind: Holdout\nmetadata: {name: x}\nspec: {fraction: 0.1}",
            "metadata.name",
            "unknown field",
        ),
        (
            "kind: Holdout\nmetadata: {labels: {}}\nspec: {fraction: 0.1}",
            "metadata.labels",
            "unknown",
        ),
        ("kind: Holdout\nspec: {fraction: 5 %}", "spec.fraction", "must be a number"),
        ("kind: Holdout\nmetadata: {tenant: A}\nspec: {}", "tenant", "DNS label"),
        ("kind: Holdout\nspec: {}\n---\nkind: Holdout\nspec: {}", "metadata.tenant", "has one"),
    ],
)
def test_file_is_refused_by_field_and_rule_when_it_is_wrong(
    text: str, field: str, rule: str
) -> None:
    (found,) = violations_of(text)
    assert found.field.endswith(field)
    assert rule in found.rule


def test_holdout_goes_around_when_it_is_applied_read_and_applied(shell: Shell) -> None:
    file = shell.file(FILE % (shell.tenant, 0.05))
    assert shell("diff", "-f", file).code == 1
    assert shell("apply", "-f", file).out == "holdout created\n"
    assert shell("apply", "-f", file).out == "holdout unchanged\n"
    assert shell("diff", "-f", file).code == 0
    printed = shell("get", "holdout", "-o", "yaml").out
    assert shell("apply", "-f", shell.file(printed)).out == "holdout unchanged\n"
    changed = shell.file(printed.replace("fraction: 0.05", "fraction: 0.1"))
    assert "-  fraction: 0.05" in shell("diff", "-f", changed).out
    assert shell("apply", "-f", changed).out == "holdout configured\n"
    # What was printed is of the state before.
    assert shell("apply", "-f", changed).code == 5
    assert "10 %" in shell("get", "holdout").out
    assert "10 % of the units are left alone" in shell("describe", "holdout").out


def test_files_may_hold_all_kinds_when_they_are_applied_and_not_deleted(shell: Shell) -> None:
    texts = (EXPERIMENT, TARGET, FILE % (shell.tenant, 0.05))
    file = shell.file(*texts)
    assert shell("lint", "-f", file).code == 0
    lines = shell("apply", "-f", file, "--dry-run").out.splitlines()
    assert [line.split()[0] for line in lines] == ["target/fraud", "holdout", "experiment/fraud-v2"]
    done = shell("delete", "-f", file)
    assert done.code == 2
    assert "apply it with fraction: 0" in done.err
