"""What comes in: outcomes, spans, hellos. Bad input is refused whole, and memory stays bounded."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import xxhash
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from control.admission import IN_FLIGHT_BYTES_MAX
from control.server import ControlPlane
from tests.control.peers import PARENT, TENANT, Api, FakeSidecar, reason, violations
from tests.integration.waiting import wait_for
from turnout.v1alpha1 import config_service_pb2 as config
from turnout.v1alpha1.outcome_service_pb2 import Outcome, RecordOutcomesRequest
from turnout.v1alpha1.snapshot_pb2 import ExperimentPlan

CODE = grpc.StatusCode
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


async def export(
    api: Api, request: ExportTraceServiceRequest | bytes, tenant: str = ""
) -> ExportTraceServiceResponse:
    """Export spans."""
    raw = request if isinstance(request, bytes) else request.SerializeToString()
    call: Any = api.channel.unary_unary(EXPORT, response_deserializer=bytes)
    metadata = (("x-turnout-tenant", tenant),) if tenant else ()
    return ExportTraceServiceResponse.FromString(await call(raw, metadata=metadata))


def spans(predictions: dict[str, str], *, shadow: bool = False) -> ExportTraceServiceRequest:
    """A span per request id, with its prediction."""
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for index, (request_id, prediction) in enumerate(predictions.items(), start=1):
        span = scope.spans.add(
            trace_id=index.to_bytes(16, "big"), span_id=index.to_bytes(8, "big"), name="infer"
        )
        pairs = {"turnout.request_id": request_id, "turnout.prediction": prediction}
        for key, value in pairs.items():
            span.attributes.append(KeyValue(key=key, value=AnyValue(string_value=value)))
        if shadow:
            on = AnyValue(bool_value=True)
            span.attributes.append(KeyValue(key="turnout.shadow", value=on))
    return request


def exposures(plan: ExperimentPlan, served: dict[str, list[str]]) -> config.DeltaBatch:
    """Requests (by id) that each variant served, of a user each."""
    batch = config.DeltaBatch()
    now_ms = time.time_ns() // 1_000_000
    for variant, ids in served.items():
        hashes = [xxhash.xxh3_64_intdigest(request_id.encode()) for request_id in ids]
        batch.counts.add(
            experiment=plan.name,
            epoch=plan.epoch,
            variant=variant,
            role=config.ROLE_SERVED,
            bucket_unix_s=now_ms // 10_000 * 10,
            decided=len(ids),
            requests=len(ids),
        )
        batch.exposures.add(
            experiment=plan.name,
            epoch=plan.epoch,
            variant=variant,
            base_unix_ms=now_ms,
            unit_hashes=b"".join(struct.pack("<Q", h ^ 0xFFFF) for h in hashes),
            request_hashes=b"".join(struct.pack("<Q", h) for h in hashes),
            offset_ms=[0] * len(ids),
        )
    return batch


async def record(api: Api, labels: dict[str, str]) -> int:
    """Record labels by request id."""
    answer = await api.outcomes.RecordOutcomes(
        RecordOutcomesRequest(
            parent=PARENT,
            outcomes=[Outcome(request_id=i, label=label) for i, label in labels.items()],
        )
    )
    return answer.recorded


async def test_accuracy_is_counted_when_labels_come_before_and_after_predictions(
    api: Api, sidecar: FakeSidecar
) -> None:
    """Exposure, prediction and label meet by request id, in any order."""
    await api.start()
    plan = await sidecar.plan()
    ids = [f"request-{n}" for n in range(20)]
    assert await record(api, dict.fromkeys(ids[:10], "fraud")) == 10
    await export(api, spans(dict.fromkeys(ids[:5], "fraud") | dict.fromkeys(ids[5:], "fine")))
    await sidecar.deltas(exposures(plan, {"control": ids[:10], "v2": ids[10:]}))
    assert await record(api, dict.fromkeys(ids[10:], "fine")) == 10
    found = {v.variant: v for v in (await api.results()).epoch_variants}
    assert (found["control"].labelled, found["control"].correct) == (10, 5)
    assert (found["v2"].labelled, found["v2"].correct) == (10, 10)
    assert found["v2"].label_coverage == 1.0


@pytest.mark.parametrize(
    ("outcome", "field"),
    [
        (Outcome(label="a"), "outcomes[1].requestId"),
        (Outcome(request_id="r" * 257, label="a"), "outcomes[1].requestId"),
        (Outcome(request_id="r", label="a" * 257), "outcomes[1].label"),
        (Outcome(request_id="r", prediction="a" * 257), "outcomes[1].prediction"),
        (Outcome(request_id="r"), "outcomes[1]"),
    ],
)
async def test_whole_call_is_refused_when_one_outcome_is_bad(
    plane: ControlPlane, api: Api, outcome: Outcome, field: str
) -> None:
    """INVALID_ARGUMENT names it."""
    await api.create_target()
    good = Outcome(request_id="ok", label="a")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.outcomes.RecordOutcomes(
            RecordOutcomesRequest(parent=PARENT, outcomes=[good, outcome])
        )
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    assert list(violations(refused.value)) == [field]
    tenant = plane.ledger.find(TENANT)
    assert tenant is not None
    assert tenant.journal.joiner.waiting == 0


async def test_outcome_is_unimplemented_when_by_unit_or_with_values(api: Api) -> None:
    """By name."""
    await api.create_target()
    outcomes = [Outcome(unit="u", label="a"), Outcome(request_id="r", values={"revenue": 1.0})]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.outcomes.RecordOutcomes(RecordOutcomesRequest(parent=PARENT, outcomes=outcomes))
    assert refused.value.code() is CODE.UNIMPLEMENTED
    assert set(violations(refused.value)) == {"outcomes.unit", "outcomes.values"}


async def test_outcomes_are_exhausted_when_too_many(api: Api) -> None:
    """More than 10,000 in one call; an unknown tenant is NOT_FOUND."""
    await api.create_target()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await record(api, {f"r{n}": "a" for n in range(10_001)})
    assert refused.value.code() is CODE.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.outcomes.RecordOutcomes(RecordOutcomesRequest(parent="tenants/nobody"))
    assert refused.value.code() is CODE.NOT_FOUND


async def test_outcomes_are_refused_when_malformed(api: Api) -> None:
    """INVALID_ARGUMENT, not UNKNOWN with a traceback in our log."""
    await api.create_target()
    call: Any = api.channel.unary_unary("/turnout.v1alpha1.OutcomeService/RecordOutcomes")
    good = RecordOutcomesRequest(parent=PARENT, outcomes=[Outcome(request_id="a", label="1")])
    for bad in (b"\xff\xff\xff", b"\x00", good.SerializeToString()[:-1]):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(bad)
        assert refused.value.code() is CODE.INVALID_ARGUMENT
        assert reason(refused.value) == "MALFORMED"


@pytest.mark.parametrize(
    "method",
    [
        "turnout.v1alpha1.ExperimentService/WatchExperiments",
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
    ],
)
async def test_request_is_refused_when_it_is_no_message(api: Api, method: str) -> None:
    """Streams and grpc's own services too: INVALID_ARGUMENT."""
    kind = api.channel.unary_unary if method.endswith("Check") else api.channel.unary_stream
    make: Any = kind
    call = make(f"/{method}")(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await (call if method.endswith("Check") else call.read())
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    assert reason(refused.value) == "MALFORMED"


async def test_reflection_is_refused_when_it_is_no_message(api: Api) -> None:
    make: Any = api.channel.stream_stream
    call = make("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(iter([b"\xff\xff\xff"])).read()
    assert refused.value.code() is CODE.INVALID_ARGUMENT


async def test_spans_are_refused_when_malformed(api: Api) -> None:
    """INVALID_ARGUMENT for the whole request, whatever the fault."""
    await api.create_target()
    good = spans({"request-1": "a"}).SerializeToString()
    for bad in (b"\xff\xff\xff", good[:-3], good.replace(b"request-1", b"reque\xff\xfe-1")):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await export(api, bad)
        assert refused.value.code() is CODE.INVALID_ARGUMENT
        assert reason(refused.value) == "MALFORMED"
    assert not (await export(api, good)).partial_success.rejected_spans


async def test_spans_are_exhausted_when_there_are_too_many(api: Api) -> None:
    """Two million empty spans fit into 4 MB."""
    await api.create_target()
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for _ in range(60_000):
        scope.spans.add()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await export(api, request)
    assert refused.value.code() is CODE.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await export(api, b"\x00" * (5 << 20))
    assert refused.value.code() is CODE.RESOURCE_EXHAUSTED


async def test_spans_are_shed_when_too_many_bytes_are_in_flight(
    plane: ControlPlane, api: Api
) -> None:
    """UNAVAILABLE with a delay: the one answer that senders retry."""
    await api.create_target()
    with plane.admission.admit(IN_FLIGHT_BYTES_MAX), pytest.raises(grpc.aio.AioRpcError) as refused:
        await export(api, spans({"r": "a"}))
    assert refused.value.code() is CODE.UNAVAILABLE
    assert "RetryInfo" in str(refused.value.trailing_metadata())
    assert plane.admission.in_flight_bytes == 0
    await export(api, spans({"r": "a"}))


async def test_spans_are_rejected_in_part_when_their_tenant_is_not_known(api: Api) -> None:
    """A sender must not retry what will not be taken either."""
    answer = await export(api, spans({"r": "a"}))
    assert answer.partial_success.rejected_spans == 1
    assert "tenant" in answer.partial_success.error_message
    await api.create_target()
    assert not (await export(api, spans({"r": "a"}))).partial_success.rejected_spans
    assert (await export(api, spans({"r": "a"}), "nobody")).partial_success.rejected_spans == 1
    assert not (await export(api, spans({"r": "a"}), TENANT)).partial_success.rejected_spans


NODE = "hello.node"
HELLO = config.Hello(node="n", instance_id="i", tenant=TENANT, snapshot_format=1)


@pytest.mark.parametrize(
    ("hello", "field"),
    [
        (config.Hello(), "hello.tenant"),
        (config.Hello(node="n", instance_id="i", tenant="Bad!", snapshot_format=1), "hello.tenant"),
        (
            config.Hello(node="n" * 254, instance_id="i", tenant="t", snapshot_format=1),
            "hello.node",
        ),
        (config.Hello(node="n", tenant="t", snapshot_format=1), "hello.instanceId"),
        (config.Hello(node="n", instance_id="i", tenant="t"), "hello.snapshotFormat"),
    ],
)
async def test_stream_is_refused_when_its_hello_is_bad(
    api: Api, hello: config.Hello, field: str
) -> None:
    """INVALID_ARGUMENT names every field."""
    code, error = await ended(api, config.StreamRequest(hello=hello))
    assert code is CODE.INVALID_ARGUMENT
    assert field in violations(error)


async def test_stream_is_refused_when_it_does_not_begin_with_hello(api: Api) -> None:
    """Or sends what is no request at all, or a delta that no sidecar sends."""
    code, _ = await ended(api, config.StreamRequest(report=config.SidecarReport()))
    assert code is CODE.INVALID_ARGUMENT
    code, _ = await ended(api, b"\xff\xff\xff")
    assert code is CODE.INVALID_ARGUMENT
    code, _ = await ended(api, config.StreamRequest(hello=HELLO), config.StreamRequest())
    assert code is CODE.INVALID_ARGUMENT
    bad = config.StreamRequest(deltas=config.DeltaBatch(instance_id="i", seq=0))
    code, _ = await ended(api, config.StreamRequest(hello=HELLO), bad)
    assert code is CODE.INVALID_ARGUMENT


async def test_stream_is_refused_with_field_and_rule_when_a_delta_has_more_errors_than_requests(
    api: Api,
) -> None:
    count = config.CountDelta(
        experiment="e", variant="v", role=config.ROLE_SERVED, requests=2, errors=3
    )
    bad = config.StreamRequest(deltas=config.DeltaBatch(instance_id="i", seq=1, counts=[count]))
    code, error = await ended(api, config.StreamRequest(hello=HELLO), bad)
    assert code is CODE.INVALID_ARGUMENT
    rule = "must be <= requests == 2 (is 3)"
    assert violations(error) == {"deltas[i/1].counts[0].errors": rule}


async def test_no_snapshot_is_pushed_when_the_tenant_never_had_one(api: Api) -> None:
    """An empty one would take a sidecar's last good configuration away."""
    async with FakeSidecar(api.channel, applied_version=7) as sidecar:

        async def listed() -> int:
            found = await api.sidecars.ListSidecars(config.ListSidecarsRequest(parent=PARENT))
            return len(found.sidecars)

        await wait_for(listed, "the sidecar is listed")
        assert not sidecar.pushes
        await api.create_target()
        await sidecar.until(lambda me: me.pushes, "the first snapshot")
        assert sidecar.version == 8
        assert len(sidecar.keys[0]) == 32


async def ended(
    api: Api, *requests: config.StreamRequest | bytes
) -> tuple[grpc.StatusCode, grpc.aio.AioRpcError]:
    """How a stream with these requests ends."""

    async def outgoing() -> AsyncIterator[bytes]:
        for request in requests:
            yield request if isinstance(request, bytes) else request.SerializeToString()
        await asyncio.sleep(10)

    method: Any = api.channel.stream_stream("/turnout.v1alpha1.ConfigService/Stream")
    call = method(outgoing())

    async def drain() -> None:
        async for _ in call:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await asyncio.wait_for(drain(), 5)
    return refused.value.code(), refused.value
