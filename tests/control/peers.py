"""Peers of a control plane under test: an API client and a sidecar, both over real gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Self

import grpc
import yaml
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2

from turnout import contract
from turnout.v1alpha1 import config_service_pb2 as config
from turnout.v1alpha1 import experiment_service_pb2 as api
from turnout.v1alpha1.common_pb2 import BAD_EVENT_KIND_ERROR, Tombstone
from turnout.v1alpha1.config_service_pb2_grpc import ConfigServiceStub, SidecarServiceStub
from turnout.v1alpha1.experiment_pb2 import Experiment, State
from turnout.v1alpha1.experiment_service_pb2_grpc import (
    AuditServiceStub,
    ExperimentServiceStub,
    HoldoutServiceStub,
    TargetServiceStub,
)
from turnout.v1alpha1.metric_service_pb2_grpc import MetricServiceStub
from turnout.v1alpha1.outcome_service_pb2_grpc import OutcomeServiceStub
from turnout.v1alpha1.snapshot_pb2 import ExperimentPlan, Snapshot
from turnout.v1alpha1.target_pb2 import Target

TENANT = "risk"
PARENT = f"tenants/{TENANT}"
TARGET = f"{PARENT}/targets/fraud"
EXPERIMENT = f"{PARENT}/experiments/fraud-v2"

TARGET_SPEC = """
match: {hosts: ["fraud.risk.svc"], pathPrefix: /v2/models/fraud}
baseline: {model: {id: fraud, version: "1"}, upstream: {address: "127.0.0.1:8001"}}
"""

EXPERIMENT_SPEC = """
target: fraud
unit: {header: x-user-id}
control: control
variants:
- {name: control}
- {name: v2, model: {id: fraud, version: "2"}, upstream: {address: "127.0.0.1:8002"}}
steps:
- canary: {split: {v2: 0.05}, for: 3600s}
- canary: {split: {v2: 0.5}, for: 3600s}
"""


def target(spec: str = TARGET_SPEC, **fields: Any) -> Target:
    """A target with this YAML spec (durations as protobuf JSON has them)."""
    return json_format.ParseDict({"spec": yaml.safe_load(spec), **fields}, Target())


def experiment(spec: str = EXPERIMENT_SPEC, **fields: Any) -> Experiment:
    """An experiment with this YAML spec."""
    return json_format.ParseDict({"spec": yaml.safe_load(spec), **fields}, Experiment())


def details(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The `google.rpc.Status` in an error's trailers."""
    for key, value in error.trailing_metadata():
        if key == "grpc-status-details-bin":
            return status_pb2.Status.FromString(value)
    raise AssertionError(f"no status details: {error}")


def violations(error: grpc.aio.AioRpcError) -> dict[str, str]:
    """Field -> description of an error's BadRequest."""
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in details(error).details), error
    return {v.field: v.description for v in bad.field_violations}


def reason(error: grpc.aio.AioRpcError) -> str:
    """The reason in an error's ErrorInfo, whose domain is ours."""
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in details(error).details), error
    assert info.domain == "turnout"
    return str(info.reason)


class Api:
    """All stubs on one channel, and the calls that most tests make."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address)
        self.targets = TargetServiceStub(self.channel)
        self.experiments = ExperimentServiceStub(self.channel)
        self.holdouts = HoldoutServiceStub(self.channel)
        self.metrics = MetricServiceStub(self.channel)
        self.sidecars = SidecarServiceStub(self.channel)
        self.audit = AuditServiceStub(self.channel)
        self.outcomes = OutcomeServiceStub(self.channel)

    async def __aenter__(self) -> Self:
        await asyncio.wait_for(self.channel.channel_ready(), 10)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.channel.close()

    async def create_target(
        self, message: Target | None = None, target_id: str = "fraud", **fields: Any
    ) -> Target:
        """Create a target."""
        return await self.targets.CreateTarget(
            api.CreateTargetRequest(
                parent=PARENT, target_id=target_id, target=message or target(), **fields
            )
        )

    async def create(
        self, message: Experiment | None = None, experiment_id: str = "fraud-v2", **fields: Any
    ) -> Experiment:
        """Create an experiment."""
        return await self.experiments.CreateExperiment(
            api.CreateExperimentRequest(
                parent=PARENT,
                experiment_id=experiment_id,
                experiment=message or experiment(),
                **fields,
            )
        )

    async def start(self, message: Experiment | None = None) -> Experiment:
        """Create target and experiment, and start it."""
        await self.create_target()
        await self.create(message)
        return await self.verb("Start")

    async def verb(self, verb: str, name: str = EXPERIMENT, **fields: Any) -> Experiment:
        """Call a custom method."""
        request = getattr(api, f"{verb}ExperimentRequest")(name=name, **fields)
        found: Experiment = await getattr(self.experiments, f"{verb}Experiment")(request)
        return found

    async def get(self, name: str = EXPERIMENT) -> Experiment:
        """Get an experiment."""
        return await self.experiments.GetExperiment(api.GetExperimentRequest(name=name))

    async def get_target(self, name: str = TARGET) -> Target:
        """Get a target."""
        return await self.targets.GetTarget(api.GetTargetRequest(name=name))

    async def results(self, name: str = EXPERIMENT) -> api.ExperimentResults:
        """Get an experiment's results."""
        return await self.experiments.GetExperimentResults(
            api.GetExperimentResultsRequest(name=name)
        )

    async def state(self, name: str = EXPERIMENT) -> str:
        """The experiment's state by name."""
        return State.Name((await self.get(name)).status.state).removeprefix("STATE_")

    async def reported(self) -> None:
        """Wait until every connected sidecar has told its state."""
        async with asyncio.timeout(10):
            while True:
                request = config.ListSidecarsRequest(parent=PARENT)
                found = (await self.sidecars.ListSidecars(request)).sidecars
                if found and all(one.report.workers for one in found if one.connected):
                    return
                await asyncio.sleep(0.01)

    async def until(
        self, condition: Callable[[Experiment], bool], name: str = EXPERIMENT
    ) -> Experiment:
        """Watch until the condition holds."""
        call = self.experiments.WatchExperiments(
            api.WatchExperimentsRequest(parent=PARENT, name=name)
        )
        try:
            async with asyncio.timeout(15):
                async for event in call:
                    if condition(event.experiment):
                        return event.experiment
        finally:
            call.cancel()
        raise AssertionError("the watch ended")


class FakeSidecar:
    """A supervisor: says Hello, acknowledges snapshots, reports, sends deltas.

    Attributes:
        pushes: (version, snapshot, seconds of the monotonic clock when it came).
        tombstones: All that were sent to it.
        received: Everything, in order.
        acked: Numbers of the deltas that were acknowledged.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        node: str = "node-1",
        *,
        instance: str = "instance-1",
        tombstones: Iterable[Tombstone] = (),
        applied_version: int = 0,
        nack: bool = False,
        reports: bool = True,
    ) -> None:
        self.hello = config.Hello(
            node=node,
            instance_id=instance,
            tenant=TENANT,
            applied_version=applied_version,
            snapshot_format=1,
            tombstones=tombstones,
            code_version="test",
        )
        self._channel = channel
        self._nack = nack
        self._reports = reports
        self.pushes: list[tuple[int, Snapshot, float]] = []
        self.keys: list[bytes] = []
        self.received: list[config.StreamResponse] = []
        self.tombstones: list[Tombstone] = []
        self.acked: list[int] = []
        self.report = config.SidecarReport(workers=2, workers_ready=2)
        self._outgoing: asyncio.Queue[config.StreamRequest | None] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self.error: grpc.aio.AioRpcError | None = None
        self.seq = 0

    async def __aenter__(self) -> Self:
        self._outgoing.put_nowait(config.StreamRequest(hello=self.hello))
        self._call = ConfigServiceStub(self._channel).Stream(self._requests())
        self._tasks = [asyncio.create_task(self._read())]
        if self._reports:
            self._tasks.append(asyncio.create_task(self._report()))
        return self

    async def __aexit__(self, *error: object) -> None:
        self._call.cancel()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _requests(self) -> AsyncIterator[config.StreamRequest]:
        while (request := await self._outgoing.get()) is not None:
            yield request

    async def _report(self) -> None:
        while True:
            self.send(config.StreamRequest(report=self.report))
            await asyncio.sleep(0.5)

    async def _read(self) -> None:
        try:
            async for response in self._call:
                self._take(response)
                self._changed.set()
        except grpc.aio.AioRpcError as error:
            self.error = error
            self._changed.set()

    def _take(self, response: config.StreamResponse) -> None:
        self.received.append(response)
        kind = response.WhichOneof("message")
        if kind == "tombstones":
            self.tombstones.extend(response.tombstones.tombstones)
        elif kind == "delta_ack":
            self.acked.append(response.delta_ack.seq)
        else:
            push = response.snapshot
            self.keys.append(push.tenant_key)
            snapshot = Snapshot.FromString(push.snapshot)
            self.pushes.append((push.version, snapshot, time.monotonic()))
            ack = config.SnapshotAck(version=push.version, nonce=push.nonce)
            if self._nack:
                ack.violations.add(field="experiments[0].name", value="x", rule="refused by a test")
            self.send(config.StreamRequest(ack=ack))

    def send(self, request: config.StreamRequest) -> None:
        """Send any request."""
        self._outgoing.put_nowait(request)

    def end(self) -> None:
        """Half-close the stream."""
        self._outgoing.put_nowait(None)

    async def until(
        self, condition: Callable[[Self], Any], what: str, timeout_s: float = 10
    ) -> Any:
        """Wait for what the condition gives to be true."""
        try:
            async with asyncio.timeout(timeout_s):
                while not (found := condition(self)):
                    self._changed.clear()
                    await self._changed.wait()
                return found
        except TimeoutError:
            raise AssertionError(f"not within {timeout_s:g} s: {what}") from None

    async def plan(self, name: str = "fraud-v2", *, epoch: int = 1) -> ExperimentPlan:
        """The experiment's plan when this epoch (or a later one) has come."""

        def found(me: Self) -> ExperimentPlan | None:
            for plan in me.snapshot.experiments if me.pushes else ():
                if plan.name == name and plan.epoch >= epoch:
                    return plan
            return None

        plan: ExperimentPlan = await self.until(found, f"epoch {epoch} of {name}")
        return plan

    @property
    def snapshot(self) -> Snapshot:
        """The last snapshot."""
        return self.pushes[-1][1]

    @property
    def version(self) -> int:
        """The last snapshot's version."""
        return self.pushes[-1][0] if self.pushes else 0

    async def deltas(self, batch: config.DeltaBatch) -> int:
        """Send a batch under the next number (or its own), and wait for its acknowledgement."""
        self.send_deltas(batch)
        await self.until(lambda me: batch.seq in me.acked, f"ack of {batch.seq}")
        return batch.seq

    def send_deltas(self, batch: config.DeltaBatch) -> None:
        """Send a batch under the next number, or under its own."""
        if not batch.seq:
            self.seq += 1
            batch.seq = self.seq
        batch.instance_id = self.hello.instance_id
        self.send(config.StreamRequest(deltas=batch))


def traffic(
    plan: ExperimentPlan,
    requests: dict[str, int],
    errors: dict[str, int] | None = None,
    *,
    first_unit: int = 1,
) -> config.DeltaBatch:
    """Requests of many different users, of whom some fail, now."""
    now_ms = time.time_ns() // 1_000_000
    batch = config.DeltaBatch(created_unix_ms=now_ms)
    slot = max(0, now_ms - plan.epoch_start_unix_ms) // (contract.FIRST_BAD_SLOT_S * 1000)
    for variant, count in requests.items():
        failed = (errors or {}).get(variant, 0)
        batch.counts.add(
            experiment=plan.name,
            epoch=plan.epoch,
            variant=variant,
            role=config.ROLE_SERVED,
            bucket_unix_s=now_ms // 1000 // contract.TIME_BUCKET_S * contract.TIME_BUCKET_S,
            decided=count,
            requests=count,
            errors=failed,
            latency_bins=[200],
            latency_counts=[count],
            latency_sum_ms=50.0 * count,
            first_bad_unix_ms=now_ms if failed else 0,
        )
        if failed:
            units = range(first_unit, first_unit + failed)
            batch.first_bad.add(
                experiment=plan.name,
                epoch=plan.epoch,
                variant=variant,
                kind=BAD_EVENT_KIND_ERROR,
                slot=slot,
                unit_hashes=b"".join(struct.pack("<Q", hash_of(variant, u)) for u in units),
            )
    return batch


def hash_of(variant: str, unit: int) -> int:
    """A 64-bit hash that looks like one, different for every variant."""
    return (unit * 0x9E3779B97F4A7C15 + sum(variant.encode())) % (1 << 64)
