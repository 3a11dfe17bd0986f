"""Models that speak gRPC: split by metadata, judged by grpc-status."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from tests.integration.harness import (
    FakeControl,
    Pod,
    Stage,
    expected_variant,
    one_experiment,
    wait_for,
)
from turnout.v1alpha1.snapshot_pb2 import Snapshot

USERS = [f"user-{i}" for i in range(120)]
SERVICE = "inference.GRPCInferenceService"


@asynccontextmanager
async def _models(pods: dict[Pod, grpc.StatusCode]) -> AsyncIterator[None]:
    """gRPC servers on the ports of closed pods, each with one answer."""
    servers = []
    for pod, code in pods.items():
        await pod.close()
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((_handler(code),))
        assert server.add_insecure_port(pod.address) == pod.port
        await server.start()
        servers.append(server)
    try:
        yield
    finally:
        for server in servers:
            await server.stop(None)


def _handler(code: grpc.StatusCode) -> grpc.GenericRpcHandler:
    async def infer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        if code is not grpc.StatusCode.OK:
            await context.abort(code, "as the test says")
        return request

    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(infer)
    return grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": method})


def _snapshot(v1: Pod, v2: Pod) -> Snapshot:
    snapshot = one_experiment(v1, v2, {"v2": 0.5}, health=False)
    snapshot.targets[0].path_prefix = f"/{SERVICE}/"
    clusters = [v.cluster for v in snapshot.experiments[0].variants]
    for cluster in [snapshot.targets[0].baseline, *clusters]:
        cluster.upstream.http2 = True
        cluster.upstream.health_path = ""
    return snapshot


async def _infer(stage: Stage, users: list[str]) -> list[tuple[str, grpc.StatusCode]]:
    """Variant and status of one call of each user."""
    answers = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{stage.port}") as channel:
        infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/{SERVICE}/ModelInfer"
        )
        for user in users:
            call = infer(b"x", metadata=(("x-user-id", user),))
            code = await call.code()
            headers = [*await call.initial_metadata(), *(await call.trailing_metadata() or ())]
            variant = next((value for name, value in headers if name == "x-variant"), "")
            answers.append((str(variant), code))
    return answers


async def _started(stage: Stage, v1: Pod, v2: Pod) -> tuple[FakeControl, Snapshot]:
    fake, snapshot = await stage.fake_control(), _snapshot(v1, v2)
    await stage.envoy(snapshot)
    await stage.sidecar(control=fake.address)
    fake.push(snapshot)
    await fake.serving(snapshot)

    async def stamped() -> bool:
        return bool((await _infer(stage, ["probe"]))[0][0])

    await wait_for(stamped, "a call is stamped")
    return fake, snapshot


async def test_failing_grpc_status_is_an_error_when_http_says_200(stage: Stage) -> None:
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    # NOT_FOUND is the caller's fault, INTERNAL the model's.
    async with _models({v1: grpc.StatusCode.NOT_FOUND, v2: grpc.StatusCode.INTERNAL}):
        fake, snapshot = await _started(stage, v1, v2)
        answers = await _infer(stage, USERS)
        stamped = [(v, c, u) for (v, c), u in zip(answers, USERS, strict=True) if v]
        assert len(stamped) > 0.5 * len(USERS)
        assert all(v == expected_variant(snapshot, u) for v, _, u in stamped)
        codes = {"control": grpc.StatusCode.NOT_FOUND, "v2": grpc.StatusCode.INTERNAL}
        assert all(c == codes[v] for v, c, _ in stamped)
        given = Counter(v for v, _, _ in stamped)

        def folded() -> bool:
            requests = {k.variant: n for k, n in fake.total("requests").items()}
            return all(requests.get(name, 0) >= count for name, count in given.items())

        await wait_for(folded, "all calls are folded")
        errors = {k.variant: n for k, n in fake.total("errors").items()}
        requests = {k.variant: n for k, n in fake.total("requests").items()}
        assert errors == {"v2": requests["v2"]}
