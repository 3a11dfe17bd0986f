"""Envoy, sidecar and control plane together, told what to do by the command line."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio

from tests.integration.harness import ControlPlane, Pod, Request, Stage, wait_for
from turnout.v1alpha1.experiment_pb2 import Experiment, State
from turnout.v1alpha1.experiment_service_pb2 import GetExperimentRequest
from turnout.v1alpha1.experiment_service_pb2_grpc import ExperimentServiceStub

TENANT = "risk"
NAME = f"tenants/{TENANT}/experiments/fraud-v2"
USERS = [f"user-{i}" for i in range(300)]
RESOURCES = """
apiVersion: turnout/v1alpha1
kind: Target
metadata: {{name: fraud, tenant: risk}}
spec:
  match: {{pathPrefix: /v2/models/fraud}}
  baseline:
    model: {{id: fraud, version: "1"}}
    upstream: {{address: "{v1}", healthPath: /healthz}}
---
apiVersion: turnout/v1alpha1
kind: Experiment
metadata: {{name: fraud-v2, tenant: risk}}
spec:
  target: fraud
  unit: {{header: x-user-id}}
  control: control
  variants:
  - {{name: control}}
  - name: v2
    model: {{id: fraud, version: "2"}}
    upstream: {{address: "{v2}", healthPath: /healthz}}
  metrics:
    guardrails:
    - {{metric: error_rate, maximumHarm: {{absolute: 0.01}}}}
  steps:
  - canary: {{split: {{v2: 0.2}}, for: 1h, checks: [error_rate]}}
"""


class Chain:
    """The parts of one running experiment."""

    def __init__(self, stage: Stage, v1: Pod, v2: Pod, control: ControlPlane) -> None:
        self.stage, self.v1, self.v2, self.control = stage, v1, v2, control

    async def turnout(self, *command: str, code: int = 0) -> str:
        """A command of an operator."""
        where = ("--control", self.control.address, "--tenant", TENANT)
        return await self.stage.run(*command, *where, code=code)

    async def experiment(self) -> Experiment:
        """What the control plane says."""
        async with grpc.aio.insecure_channel(self.control.address) as channel:
            stub = ExperimentServiceStub(channel)
            found: Experiment = await stub.GetExperiment(GetExperimentRequest(name=NAME))
            return found

    async def in_state(self, state: State.ValueType, *, timeout_s: float = 30.0) -> Experiment:
        """Wait for a state."""

        async def reached() -> Experiment | None:
            experiment = await self.experiment()
            return experiment if experiment.status.state == state else None

        return await wait_for(reached, f"state {State.Name(state)}", timeout_s=timeout_s)

    async def everybody_gets(self, pod: str) -> None:
        """Wait until all users are served by one pod, unstamped."""

        async def all_there() -> bool:
            answers = await self.stage.users(USERS[:60])
            return {(a.status, a.pod, a.variant) for a in answers} == {(200, pod, "")}

        await wait_for(all_there, f"everybody gets {pod}")


@asynccontextmanager
async def running(stage: Stage, *, healthy: bool = True) -> AsyncIterator[Chain]:
    """An experiment at 20 %, started by command; with a candidate that is there, or not."""
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    if not healthy:
        await v2.close()
    file = stage.directory / "resources.yaml"
    file.write_text(RESOURCES.format(v1=v1.address, v2=v2.address))
    await stage.envoy(files=[file])
    control = await stage.control()
    await stage.sidecar(control=control.address)
    chain = Chain(stage, v1, v2, control)
    await chain.turnout("apply", "-f", str(file))
    await chain.turnout("start", "fraud-v2")
    if healthy:
        await stage.enrols()
    yield chain


def _load(i: int) -> Request:
    return Request(headers={"x-user-id": f"load-{i % 2_000}"}, body=b"{}")


async def test_candidate_is_rolled_back_when_all_its_pods_are_killed(stage: Stage) -> None:
    async with running(stage) as chain:
        load = stage.load(_load)
        await wait_for(lambda: load.tally.by_variant["v2"] > 100, "the candidate serves")
        await chain.v2.close()
        ended = await chain.in_state(State.STATE_ROLLED_BACK)
        assert ended.status.last_decision.sentence
        await chain.everybody_gets("v1")
        tally = await load.stop()
        # Only the dead candidate's own requests failed.
        assert {(a.status, a.variant) for a in tally.failures} == {(503, "v2")}
        failed = tally.failed
        # Neither a new sidecar nor one without a control plane brings it back.
        await chain.v2.open()
        await chain.control.kill()
        await stage.restart_sidecar(control=chain.control.address)
        await stage.workers_serve()
        await chain.everybody_gets("v1")
        assert failed > 0


async def test_winner_serves_without_a_sidecar_when_promoted_and_undo_goes_back(
    stage: Stage,
) -> None:
    async with running(stage) as chain:
        load = stage.load(_load)
        await wait_for(lambda: load.tally.by_variant["v2"] > 20, "the candidate serves")
        await chain.turnout("promote", "fraud-v2")
        await chain.in_state(State.STATE_PROMOTED)
        await chain.everybody_gets("v2")
        sidecar = await stage.kill_sidecar()
        assert not sidecar.running
        await chain.everybody_gets("v2")
        tally = await load.stop()
        assert tally.failed == 0, tally.failures
        await stage.sidecar(control=chain.control.address)
        await chain.turnout("undo", "fraud-v2")
        await chain.everybody_gets("v1")


async def test_split_goes_on_and_safety_returns_when_the_control_plane_was_killed(
    stage: Stage,
) -> None:
    async with running(stage) as chain:
        before = [a.variant for a in await stage.stamped(USERS)]
        await chain.control.kill()
        assert [a.variant for a in await stage.stamped(USERS)] == before
        await stage.control(port=chain.control.port)
        assert [a.variant for a in await stage.stamped(USERS)] == before
        await chain.in_state(State.STATE_RUNNING)
        chain.v2.status = 500
        load = stage.load(_load)
        await chain.in_state(State.STATE_ROLLED_BACK, timeout_s=60)
        await chain.everybody_gets("v1")
        tally = await load.stop()
        assert {(a.status, a.variant) for a in tally.failures} == {(500, "v2")}


async def test_promotion_is_refused_when_envoy_finds_the_candidate_unhealthy(
    stage: Stage,
) -> None:
    """The old baseline serves; when the candidate is there it can be promoted."""
    async with running(stage, healthy=False) as chain:

        async def waited_for() -> bool:
            conditions = (await chain.experiment()).status.conditions
            return any(c.type == "WAITING_FOR_UPSTREAM" and c.status for c in conditions)

        await wait_for(waited_for, "the sidecar waits for the candidate")
        refused = await chain.turnout("promote", "fraud-v2", code=5)
        assert "found no healthy host in turnout.fraud." in refused
        await chain.everybody_gets("v1")
        await chain.v2.open()
        await stage.enrols()

        async def open_now() -> bool:
            return not await waited_for()

        await wait_for(open_now, "the sidecar has found it healthy")
        await chain.turnout("promote", "fraud-v2")
        await chain.everybody_gets("v2")
