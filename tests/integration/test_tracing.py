"""Envoy's spans: what the control plane joins outcomes and exemplars by."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.integration.harness import Stage, free_port, one_experiment, wait_for
from turnout.contract import ATTRIBUTE_ENVOY_REQUEST_ID

USERS = [f"user-{i}" for i in range(40)]


@asynccontextmanager
async def _collector(spans: list[Span]) -> AsyncIterator[str]:
    """An OTLP receiver that keeps all spans."""

    async def export(
        request: otlp.ExportTraceServiceRequest, _: object
    ) -> otlp.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                spans.extend(scope.spans)
        return otlp.ExportTraceServiceResponse()

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        export,
        request_deserializer=otlp.ExportTraceServiceRequest.FromString,
        response_serializer=otlp.ExportTraceServiceResponse.SerializeToString,
    )
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"Export": handler}),)
    )
    address = f"127.0.0.1:{free_port()}"
    server.add_insecure_port(address)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)


def _attributes(span: Span) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in span.attributes}


async def test_spans_carry_request_id_and_variant_when_everything_is_sampled(
    stage: Stage,
) -> None:
    spans: list[Span] = []
    v1, v2 = await stage.pod("v1", record=True), await stage.pod("v2", record=True)
    snapshot = one_experiment(v1, v2, {"v2": 0.5})
    async with _collector(spans) as address:
        await stage.envoy(snapshot, args=["--otlp", address, "--sampling", "100"])
        await stage.sidecar(snapshot=snapshot)
        await stage.enrols()
        answers = await stage.stamped(USERS)
        given = {a.headers["x-request-id"]: a.variant for a in answers}

        def traced() -> dict[str, str]:
            found = {}
            for span in spans:
                attributes = _attributes(span)
                if span.kind == Span.SPAN_KIND_SERVER:
                    name = attributes.get(ATTRIBUTE_ENVOY_REQUEST_ID, "")
                    found[name] = attributes.get("turnout.variant", "")
            return found

        await wait_for(lambda: given.items() <= traced().items(), "all requests are traced")
        # The model's own spans hang below the call to it: the trace's context arrived.
        parents = {one.headers["traceparent"].split("-")[2] for one in v1.seen + v2.seen}
        await wait_for(
            lambda: parents <= {span.span_id.hex() for span in spans}, "their parents are sent"
        )


async def test_one_trace_says_experiment_step_and_copy_when_request_is_mirrored(
    stage: Stage,
) -> None:
    spans: list[Span] = []
    v1, v2 = await stage.pod("v1", record=True), await stage.pod("v2", record=True)
    snapshot = one_experiment(v1, v2, {"v2": 0.0}, shadow=("v2", 1.0), epoch=7)
    snapshot.experiments[0].step = 3
    baseline, candidate = (v.cluster.cluster for v in snapshot.experiments[0].variants)
    async with _collector(spans) as address:
        await stage.envoy(snapshot, args=["--otlp", address, "--sampling", "100"])
        await stage.sidecar(snapshot=snapshot)
        await stage.enrols()
        [answer] = await stage.stamped(["one"])
        given = answer.headers["x-request-id"]

        def tree() -> dict[str, Span] | None:
            """The request's spans by name, when all are there."""
            traces = [
                s.trace_id for s in spans if _attributes(s).get(ATTRIBUTE_ENVOY_REQUEST_ID) == given
            ]
            found = {s.name: s for s in spans if s.trace_id in traces}
            return found if len(found) == 4 else None

        found = await wait_for(tree, "the four spans of the request are sent")
    root = found.pop("ingress")
    assert {s.parent_span_id for s in found.values()} == {root.span_id}
    said = {
        "turnout.experiment": "fraud-v2",
        "turnout.epoch": "7",
        "turnout.step": "3",
        "turnout.variant": "control",
        "feature_flag.key": "fraud-v2",
        "feature_flag.result.variant": "control",
        "feature_flag.result.reason": "split",
        "feature_flag.provider.name": "turnout",
    }
    assert said.items() <= _attributes(root).items()
    upstream = found.pop(f"router {baseline} egress")
    assert said.items() <= _attributes(upstream).items()
    # A copy's span has Envoy's own name for it, the candidate's cluster, and not the variant that
    # served the client.
    copy = _attributes(found.pop("mirror"))
    assert copy["upstream_cluster"] == candidate
    assert "turnout.variant" not in copy
    assert [name for name in found if "ExternalProcessor" in name]
