"""A bandit on a real Envoy: traffic goes where requests succeed, and leaves what goes bad."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

import grpc.aio

from control.rollout.decide import replay
from tests.integration.harness import Request, Stage, wait_for
from tests.integration.pods import Seen
from turnout.v1alpha1.experiment_pb2 import Action, BanditResult, Decision, Experiment, State
from turnout.v1alpha1.experiment_service_pb2 import (
    GetExperimentRequest,
    GetExperimentResultsRequest,
    ListDecisionsRequest,
)
from turnout.v1alpha1.experiment_service_pb2_grpc import ExperimentServiceStub

TENANT: Final = "risk"
NAME: Final = f"tenants/{TENANT}/experiments/fraud-v2"
FLOOR: Final = 0.1
RESOURCES: Final = """
apiVersion: turnout/v1alpha1
kind: Metric
metadata: {{name: answered, tenant: risk}}
spec: {{kind: proportion, value: error}}
---
apiVersion: turnout/v1alpha1
kind: Target
metadata: {{name: fraud, tenant: risk}}
spec:
  match: {{pathPrefix: /v2/models/fraud}}
  baseline: {{upstream: {{address: "{v1}", healthPath: /healthz}}}}
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
  - {{name: v2, upstream: {{address: "{v2}", healthPath: /healthz}}}}
  steps:
  - bandit:
      reward: {{metric: answered}}
      explorationFloor: {floor}
      every: 10s
      for: 10m
      minimumRequests: 100
"""


def every(count: int) -> Callable[[Seen], int]:
    """A pod that fails every so many requests."""
    numbers = itertools.count(1)
    return lambda _: 500 if next(numbers) % count == 0 else 200


def _load(i: int) -> Request:
    return Request(headers={"x-user-id": f"load-{i % 3_000}"}, body=b"{}")


async def test_bandit_moves_to_the_better_arm_and_leaves_it_when_it_goes_bad(stage: Stage) -> None:
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    v1.status = every(4)
    file = stage.directory / "resources.yaml"
    file.write_text(RESOURCES.format(v1=v1.address, v2=v2.address, floor=FLOOR))
    await stage.envoy(files=[file])
    control = await stage.control()
    await stage.sidecar(control=control.address)
    where = ("--control", control.address, "--tenant", TENANT)
    await stage.run("apply", "-f", str(file), *where)
    await stage.run("start", "fraud-v2", *where)
    async with grpc.aio.insecure_channel(control.address) as channel:
        api = ExperimentServiceStub(channel)

        async def look() -> Experiment:
            found: Experiment = await api.GetExperiment(GetExperimentRequest(name=NAME))
            return found

        assert (await look()).status.split["v2"] == 0.5
        load = stage.load(_load)

        async def moved() -> Experiment | None:
            found = await look()
            return found if found.status.split["v2"] > 0.85 else None

        after = await wait_for(moved, "traffic moves to v2", timeout_s=60)
        assert after.status.state == State.STATE_RUNNING
        assert after.status.split["control"] >= FLOOR
        served = dict(load.tally.by_variant)
        # As many again: of equal shares, control may have had a little more than half.
        enough = served["v2"] + sum(served.values())
        await wait_for(lambda: load.tally.by_variant["v2"] > enough, "v2 serves", timeout_s=60)
        more = {name: load.tally.by_variant[name] - served[name] for name in ("control", "v2")}
        assert more["v2"] > 3 * more["control"]

        asked = GetExperimentResultsRequest(name=NAME)
        earned: BanditResult = (await api.GetExperimentResults(asked)).bandit
        arms = {arm.variant: arm for arm in earned.arms}
        assert earned.metric == "answered"
        assert arms["v2"].mean > 0.99 > 0.85 > arms["control"].mean
        assert arms["v2"].probability_best > 0.99
        assert arms["v2"].lower > 0
        assert earned.regret < earned.uniform_regret
        table = await stage.run("results", "fraud-v2", *where)
        assert "BANDIT" in table
        assert "equal shares would have lost" in table
        assert "Exposure: control" in await stage.run("describe", "fraud-v2", *where)

        # What moves traffic does not make it safe: the lanes see the arm that most are on.
        v2.status = 500

        async def rolled_back() -> Experiment | None:
            found = await look()
            return found if found.status.state == State.STATE_ROLLED_BACK else None

        await wait_for(rolled_back, "the lanes roll back", timeout_s=60)
        await load.stop()
        listed = await api.ListDecisions(ListDecisionsRequest(parent=NAME))
        decisions: list[Decision] = list(listed.decisions)
    assert Action.ACTION_REALLOCATE in {decision.action for decision in decisions}
    for decision in decisions:
        again = replay(decision.inputs_json)
        assert (again.sentence, str(again.action)) == (
            decision.sentence,
            Action.Name(decision.action).removeprefix("ACTION_"),
        )
