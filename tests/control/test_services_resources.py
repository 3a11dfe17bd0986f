"""Targets and experiments over real gRPC: names, etags, masks, pages, idempotency, refusals."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from control.rollout import decide
from tests.control.peers import (
    EXPERIMENT,
    EXPERIMENT_SPEC,
    PARENT,
    TARGET,
    TARGET_SPEC,
    Api,
    experiment,
    reason,
    target,
    violations,
)
from turnout.v1alpha1 import experiment_service_pb2 as service
from turnout.v1alpha1.experiment_pb2 import STATE_DRAFT, STATE_RUNNING, Experiment
from turnout.v1alpha1.target_pb2 import Target

CODE = grpc.StatusCode


async def test_target_is_stored_with_defaults_when_created(api: Api) -> None:
    """And read back as it was answered."""
    created = await api.create_target(target(labels={"team": "payments"}))
    assert created.name == TARGET
    assert created.revision == 1
    assert created.uid
    assert created.etag
    assert created.create_time.seconds > 0
    assert created.spec.timeout.seconds == 60
    assert created.spec.keep_previous.seconds == 24 * 3600
    assert await api.get_target() == created


async def test_experiment_is_a_draft_with_a_random_salt_when_created(api: Api) -> None:
    """Two experiments never share their assignment by accident."""
    await api.create_target()
    await api.create_target(target(TARGET_ELSEWHERE), target_id="other")
    first = await api.create()
    second = await api.create(
        experiment(EXPERIMENT_SPEC.replace("target: fraud", "target: other")), "another"
    )
    assert first.status.state == STATE_DRAFT
    assert len(first.spec.salt) == 16
    assert first.spec.salt != second.spec.salt
    assert first.spec.safety.alpha == 0.001


async def test_write_is_aborted_when_its_etag_is_stale(api: Api) -> None:
    """On updates, deletions and verbs; the current etag is in the details."""
    first = await api.create_target()
    await api.create()
    changed = Target(name=TARGET, etag=first.etag, labels={"a": "b"})
    mask = FieldMask(paths=["labels"])
    second = await api.targets.UpdateTarget(
        service.UpdateTargetRequest(target=changed, update_mask=mask)
    )
    assert second.etag != first.etag
    assert second.spec == first.spec
    for call in (
        api.targets.UpdateTarget(service.UpdateTargetRequest(target=changed, update_mask=mask)),
        api.targets.DeleteTarget(service.DeleteTargetRequest(name=TARGET, etag=first.etag)),
        api.verb("Start", etag="stale"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is CODE.ABORTED
        assert reason(refused.value) == "STALE_ETAG"
    assert await api.state() == "DRAFT"


async def test_verb_is_obeyed_when_its_etag_is_current(api: Api) -> None:
    """The etag of the last answer is the current one."""
    await api.create_target()
    created = await api.create()
    started = await api.verb("Start", etag=created.etag)
    assert started.status.state == STATE_RUNNING
    paused = await api.verb("Pause", etag=started.etag)
    assert paused.etag != started.etag


async def test_first_answer_is_given_again_when_a_request_id_is_repeated(api: Api) -> None:
    """Also after the resource has changed; another request under the same id is refused."""
    first = await api.create_target(request_id="r1")
    assert await api.create_target(request_id="r1") == first
    await api.create(request_id="r1")
    started = await api.verb("Start", request_id="r2")
    await api.verb("Pause")
    assert await api.verb("Start", request_id="r2") == started
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.create_target(target(labels={"a": "b"}), request_id="r1")
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    assert list(violations(refused.value)) == ["requestId"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.create_target(request_id="x" * 65)
    assert refused.value.code() is CODE.INVALID_ARGUMENT


async def test_nothing_is_stored_when_only_validation_is_asked_for(api: Api) -> None:
    """The answer is what it would have been."""
    answer = await api.create_target(validate_only=True)
    assert answer.spec.timeout.seconds == 60
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.get_target()
    assert refused.value.code() is CODE.NOT_FOUND
    await api.create_target()
    await api.create(validate_only=True)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.get()
    assert refused.value.code() is CODE.NOT_FOUND


async def test_only_masked_fields_change_when_a_mask_is_given(api: Api) -> None:
    """Paths below the spec, in either spelling; unknown paths are named."""
    await api.create_target()
    sent = Target(name=TARGET, labels={"ignored": "yes"})
    sent.spec.timeout.seconds = 5
    sent.spec.keep_previous.seconds = 60
    updated = await api.targets.UpdateTarget(
        service.UpdateTargetRequest(target=sent, update_mask=FieldMask(paths=["spec.keepPrevious"]))
    )
    assert updated.spec.keep_previous.seconds == 60
    assert updated.spec.timeout.seconds == 60
    assert not updated.labels
    assert updated.revision == 2
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.targets.UpdateTarget(
            service.UpdateTargetRequest(
                target=sent, update_mask=FieldMask(paths=["status", "spec.nothing", "spec.timeout"])
            )
        )
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    assert (await api.get_target()).spec.timeout.seconds == 60


async def test_revision_stays_when_nothing_changes(api: Api) -> None:
    """Applying the same file twice is no change."""
    created = await api.create_target()
    again = await api.targets.UpdateTarget(
        service.UpdateTargetRequest(target=Target(name=TARGET, spec=created.spec))
    )
    assert (again.revision, again.etag) == (created.revision, created.etag)


async def test_list_has_everything_once_when_read_in_pages(api: Api) -> None:
    """Tokens are opaque; a foreign one is refused."""
    await api.create_target()
    names = [f"e{n}" for n in range(5)]
    for index, name in enumerate(names):
        spec = TARGET_ELSEWHERE.replace("elsewhere", name)
        await api.create_target(target(spec), target_id=f"t{index}")
    seen: list[str] = []
    token = ""
    while True:
        page = await api.targets.ListTargets(
            service.ListTargetsRequest(parent=PARENT, page_size=4, page_token=token)
        )
        seen += [t.name.rpartition("/")[2] for t in page.targets]
        token = page.next_page_token
        if not token:
            break
    assert seen == ["fraud", "t0", "t1", "t2", "t3", "t4"]
    for bad in (
        service.ListTargetsRequest(parent=PARENT, page_token="garbage!"),
        service.ListTargetsRequest(parent=PARENT, page_size=-1),
        service.ListTargetsRequest(parent="tenants/UPPER"),
        service.ListTargetsRequest(parent="risk"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await api.targets.ListTargets(bad)
        assert refused.value.code() is CODE.INVALID_ARGUMENT
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.experiments.ListDecisions(
            service.ListDecisionsRequest(parent=EXPERIMENT, page_token="MTpi")
        )
    assert refused.value.code() is CODE.INVALID_ARGUMENT


async def test_page_token_is_refused_when_it_is_of_another_list(api: Api) -> None:
    """Of another kind, parent or filter: its rows would be silently skipped."""
    await api.create_target()
    await api.create_target(target(TARGET_ELSEWHERE), target_id="other")
    page = await api.targets.ListTargets(service.ListTargetsRequest(parent=PARENT, page_size=1))
    audit = await api.audit.ListAuditEvents(
        service.ListAuditEventsRequest(parent=PARENT, page_size=1)
    )
    token, events = page.next_page_token, audit.next_page_token
    assert token
    assert events
    for call in (
        api.targets.ListTargets(
            service.ListTargetsRequest(parent="tenants/other", page_token=token)
        ),
        api.targets.ListTargets(service.ListTargetsRequest(parent=PARENT, page_token=events)),
        api.experiments.ListExperiments(
            service.ListExperimentsRequest(parent=PARENT, page_token=token)
        ),
        api.experiments.ListDecisions(
            service.ListDecisionsRequest(parent=EXPERIMENT, page_token=events)
        ),
        api.audit.ListAuditEvents(
            service.ListAuditEventsRequest(parent=PARENT, resource=TARGET, page_token=events)
        ),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is CODE.INVALID_ARGUMENT
        assert list(violations(refused.value)) == ["pageToken"]


async def test_page_size_is_reduced_when_too_large_and_refused_when_negative(api: Api) -> None:
    await api.create_target()
    page = await api.targets.ListTargets(
        service.ListTargetsRequest(parent=PARENT, page_size=1_000_000)
    )
    assert len(page.targets) == 1
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.targets.ListTargets(service.ListTargetsRequest(parent=PARENT, page_size=-1))
    assert "above 1000 means that" in violations(refused.value)["pageSize"]


async def test_name_is_refused_when_taken_or_missing(api: Api) -> None:
    """ALREADY_EXISTS, NOT_FOUND, and FAILED_PRECONDITION for a missing target."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.create()
    assert refused.value.code() is CODE.FAILED_PRECONDITION
    assert reason(refused.value) == "NO_TARGET"
    await api.create_target()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.create_target()
    assert refused.value.code() is CODE.ALREADY_EXISTS
    for call in (api.get(), api.verb("Start"), api.results()):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is CODE.NOT_FOUND


async def test_verb_is_refused_when_the_state_forbids_it(api: Api) -> None:
    """FAILED_PRECONDITION says why."""
    await api.start()
    for verb, word in (("Start", "started"), ("Resume", "not paused"), ("Undo", "not come")):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await api.verb(verb)
        assert refused.value.code() is CODE.FAILED_PRECONDITION
        assert word in (refused.value.details() or "")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.experiments.DeleteExperiment(service.DeleteExperimentRequest(name=EXPERIMENT))
    assert refused.value.code() is CODE.FAILED_PRECONDITION


TARGET_ELSEWHERE = """
match: {hosts: ["elsewhere.risk.svc"], pathPrefix: /v2/models/fraud}
baseline: {upstream: {address: "127.0.0.1:8001"}}
"""


def changed(text: str, wanted: str) -> str:
    """The experiment with one line changed."""
    assert text in EXPERIMENT_SPEC
    return EXPERIMENT_SPEC.replace(text, wanted, 1)


CANARY = "- canary: {split: {v2: 0.05}, for: 3600s}"
UNIMPLEMENTED = {
    "spec.steps[0].approval": changed(CANARY, "- approval: {groups: [leads], need: 1}"),
    "spec.holdback": EXPERIMENT_SPEC + "holdback: {fraction: 0.01, for: 3600s}\n",
    "spec.steps[0].canary.lease": changed(
        CANARY, "- canary: {split: {v2: 0.05}, for: 3600s, lease: 600s}"
    ),
    "spec.safety.autonomous": EXPERIMENT_SPEC + "safety: {autonomous: true}\n",
    "spec.steps[0].canary.onUndecided": changed(
        CANARY,
        "- canary: {split: {v2: 0.05}, for: 3600s, onUndecided: ON_UNDECIDED_ROLLBACK}",
    ),
    "spec.metrics.guardrails[0].metric": EXPERIMENT_SPEC
    + "metrics: {guardrails: [{metric: conversion_rate}]}\n",
    "spec.metrics.primary.metric": EXPERIMENT_SPEC
    + "metrics: {primary: {metric: revenue_per_user}}\n",
}


@pytest.mark.parametrize("feature", UNIMPLEMENTED)
async def test_feature_is_unimplemented_by_name_when_asked_for(api: Api, feature: str) -> None:
    """Never ignored: nothing is stored."""
    await api.create_target()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.create(experiment(UNIMPLEMENTED[feature]))
    assert refused.value.code() is CODE.UNIMPLEMENTED, refused.value.details()
    assert feature in violations(refused.value)
    listed = await api.experiments.ListExperiments(service.ListExperimentsRequest(parent=PARENT))
    assert not listed.experiments


async def test_all_features_are_named_when_several_are_unimplemented(api: Api) -> None:
    """Not only the first."""
    await api.create_target()
    spec = UNIMPLEMENTED["spec.holdback"] + "safety: {autonomous: true}\n"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.create(experiment(spec))
    assert set(violations(refused.value)) == {"spec.holdback", "spec.safety.autonomous"}


@pytest.mark.parametrize("verb", ["Approve", "Reject"])
async def test_approval_is_unimplemented_when_called(api: Api, verb: str) -> None:
    """By name."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.verb(verb)
    assert refused.value.code() is CODE.UNIMPLEMENTED
    assert list(violations(refused.value)) == ["approval"]


async def test_every_violation_is_named_when_a_resource_is_bad(api: Api) -> None:
    """Field path and rule; nothing is stored."""
    await api.create_target()
    spec = EXPERIMENT_SPEC.replace("v2: 0.05", "v2: 1.5").replace("v2: 0.5", "v2: -0.5")
    spec = spec.replace("x-user-id", "X User").replace("127.0.0.1:8002", "nowhere")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.create(experiment(spec))
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    found = violations(refused.value)
    for field in ("spec.unit.header", "spec.variants[1].upstream.address", "spec.steps[0]"):
        assert any(name.startswith(field) for name in found), found
    assert any(name.startswith("spec.steps[1]") for name in found), found
    listed = await api.experiments.ListExperiments(service.ListExperimentsRequest(parent=PARENT))
    assert not listed.experiments


async def test_refusal_arrives_when_there_are_thousands_of_violations(api: Api) -> None:
    """Trailers have a limit: the rest is counted."""
    await api.create_target()
    message = experiment()
    for index in range(900):
        message.labels[f"label-{index}"] = "x"
    for _ in range(400):
        message.spec.variants.add(name="Bad Name!")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.create(message)
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    assert violations(refused.value)


async def test_resource_is_exhausted_when_too_large(api: Api) -> None:
    """Above 256 KiB by our own rule, above 4 MiB by gRPC's; the service goes on."""
    await api.create_target()
    message = experiment()
    for index in range(10_000):
        message.spec.variants.add(name=f"variant-{index}", upstream={"address": "10.0.0.1:80"})
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.create(message)
    assert refused.value.code() is CODE.RESOURCE_EXHAUSTED
    message.labels["a"] = "x" * (5 << 20)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.create(message)
    assert refused.value.code() is CODE.RESOURCE_EXHAUSTED
    assert (await api.get_target()).name == TARGET


async def test_unknown_field_is_refused_when_sent(api: Api) -> None:
    """A newer client asks for something that we would silently leave out."""
    raw = service.CreateTargetRequest(parent=PARENT, target_id="fraud", target=target())
    raw.target.spec.MergeFromString(b"\xd0\x3f\x01")  # field 1018, varint 1
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.targets.CreateTarget(raw)
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    assert list(violations(refused.value)) == ["target.spec.#1018"]


async def test_watch_tells_state_changes_and_deletion_when_they_happen(api: Api) -> None:
    """First the present state, then every change, at last the deletion."""
    await api.create_target()
    await api.create()
    call = api.experiments.WatchExperiments(service.WatchExperimentsRequest(parent=PARENT))
    event = await call.read()
    assert isinstance(event, service.WatchExperimentsResponse)
    assert event.type == service.WatchExperimentsResponse.TYPE_PRESENT
    await api.verb("Start")
    event = await call.read()
    assert isinstance(event, service.WatchExperimentsResponse)
    assert event.type == service.WatchExperimentsResponse.TYPE_CHANGED
    assert event.experiment.status.state == STATE_RUNNING
    await api.verb("Stop")
    await api.experiments.DeleteExperiment(service.DeleteExperimentRequest(name=EXPERIMENT))
    types = []
    while service.WatchExperimentsResponse.TYPE_DELETED not in types:
        event = await call.read()
        assert isinstance(event, service.WatchExperimentsResponse)
        types.append(event.type)
    call.cancel()


async def test_results_are_streamed_until_the_experiment_has_ended(api: Api) -> None:
    """First as they are, then when they are others; the last ones say why it ended."""
    await api.create_target()
    await api.create()
    await api.verb("Start")
    request = service.WatchExperimentResultsRequest(name=EXPERIMENT)
    sentences: list[str] = []
    async with asyncio.timeout(20):
        async for found in api.experiments.WatchExperimentResults(request):
            sentences.append(found.sentence)
            if len(sentences) == 1:
                await api.verb("Stop")
    assert sentences[0] == "nothing to compare yet"
    assert sentences[-1].startswith("stopped by")


async def test_results_of_nothing_are_not_streamed(api: Api) -> None:
    await api.create_target()
    request = service.WatchExperimentResultsRequest(name=EXPERIMENT)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async with asyncio.timeout(10):
            await api.experiments.WatchExperimentResults(request).read()
    assert refused.value.code() is CODE.NOT_FOUND


async def test_watch_is_refused_when_the_name_is_another_tenants(api: Api) -> None:
    """It would follow the parent's experiment of that id, and say nothing for ever."""
    await api.create_target()
    request = service.WatchExperimentsRequest(parent="tenants/other", name=EXPERIMENT)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.experiments.WatchExperiments(request).read()
    assert "name" in violations(refused.value)


async def test_watch_is_refused_when_the_experiment_does_not_exist(api: Api) -> None:
    """Not a stream that is silent for ever."""
    await api.create_target()
    call = api.experiments.WatchExperiments(
        service.WatchExperimentsRequest(parent=PARENT, name=EXPERIMENT)
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async with asyncio.timeout(10):
            await call.read()
    assert refused.value.code() is CODE.NOT_FOUND


async def test_audit_tells_who_changed_what_when_asked(api: Api) -> None:
    """Before and after; the actor is the caller's metadata."""
    await api.targets.CreateTarget(
        service.CreateTargetRequest(parent=PARENT, target_id="fraud", target=target()),
        metadata=(("x-turnout-actor", "alice"),),
    )
    await api.create()
    await api.verb("Start")
    page = await api.audit.ListAuditEvents(service.ListAuditEventsRequest(parent=PARENT))
    assert [e.method for e in page.events] == [
        "ExperimentService.StartExperiment",
        "ExperimentService.CreateExperiment",
        "TargetService.CreateTarget",
    ]
    assert page.events[2].actor == "alice"
    assert page.events[2].before_json == ""
    assert '"pathPrefix":"/v2/models/fraud"' in page.events[2].after_json.replace(": ", ":")
    assert "STATE_DRAFT" in page.events[0].before_json
    assert "STATE_RUNNING" in page.events[0].after_json
    assert "127.0.0.1" in page.events[0].actor
    only = await api.audit.ListAuditEvents(
        service.ListAuditEventsRequest(parent=PARENT, resource=TARGET)
    )
    assert [e.resource for e in only.events] == [TARGET]


async def test_decision_replays_to_itself_when_read_back(api: Api) -> None:
    """The record has everything that it was made on."""
    await api.start()
    page = await api.experiments.ListDecisions(service.ListDecisionsRequest(parent=EXPERIMENT))
    record = page.decisions[0]
    again = decide.replay(record.inputs_json)
    assert again.sentence == record.sentence
    assert decide.replay(again.inputs_json).to_json() == again.to_json()
    assert isinstance(await api.get(), Experiment)


async def test_page_fits_into_a_message_when_resources_are_large(api: Api) -> None:
    """gRPC clients take 4 MiB; the list goes on in the next page."""
    await api.create_target()
    note = {f"k{n}": "x" * 63 for n in range(32)}
    for index in range(24):
        spec = TARGET_ELSEWHERE.replace("elsewhere", f"host-{index}")
        message = target(spec, labels=note)
        for number in range(31):
            message.spec.match.hosts.append(f"{'h' * 60}.{'g' * 60}.{number}.{index}.example")
        for number in range(16):
            values = [f"{number}-{n}-" + "v" * 240 for n in range(40)]
            message.spec.match.headers.add(header=f"x-h{number}", in_values=values)
        await api.create_target(message, target_id=f"t{index}")
    seen, pages, token = 0, 0, ""
    while pages == 0 or token:
        page = await api.targets.ListTargets(
            service.ListTargetsRequest(parent=PARENT, page_size=1000, page_token=token)
        )
        assert page.ByteSize() < 4 << 20
        seen, pages, token = seen + len(page.targets), pages + 1, page.next_page_token
    assert seen == 25
    assert pages > 1


async def test_target_is_refused_when_another_has_its_match(api: Api) -> None:
    """Created, updated or only tried; the other one is named. A more specific match is fine."""
    await api.create_target()
    same = target(TARGET_SPEC.replace("8001", "8009"))
    for only_tried in (False, True):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await api.create_target(same, target_id="second", validate_only=only_tried)
        assert refused.value.code() is CODE.INVALID_ARGUMENT
        assert 'target "fraud" already has this match' in violations(refused.value)["spec.match"]
    longer = TARGET_SPEC.replace("/v2/models/fraud", "/v2/models/fraud/versions")
    await api.create_target(target(longer), target_id="second")
    moved = Target(name=f"{PARENT}/targets/second", spec=same.spec)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.targets.UpdateTarget(service.UpdateTargetRequest(target=moved))
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    assert "spec.match" in violations(refused.value)
    again = Target(name=TARGET, spec=same.spec)
    changed = await api.targets.UpdateTarget(service.UpdateTargetRequest(target=again))
    assert changed.spec.baseline.upstream.address == "127.0.0.1:8009"
