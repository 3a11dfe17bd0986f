"""A/B tests on a real Envoy, judged by the labels that are told of its answers.

Every model answers 200 and fast; nothing but the labels says which one is better, and where.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, Final

import grpc.aio
import pytest

from tests.integration.harness import ControlPlane, Request, Stage
from turnout.v1alpha1.experiment_pb2 import Experiment, Reason, State, TableRow
from turnout.v1alpha1.experiment_service_pb2 import (
    STANDING_BETTER,
    ExperimentResults,
    GetExperimentRequest,
    GetExperimentResultsRequest,
)
from turnout.v1alpha1.experiment_service_pb2_grpc import ExperimentServiceStub
from turnout.v1alpha1.outcome_service_pb2 import Outcome, RecordOutcomesRequest
from turnout.v1alpha1.outcome_service_pb2_grpc import OutcomeServiceStub

TENANT: Final = "risk"
NAME: Final = f"tenants/{TENANT}/experiments/fraud-v2"
USERS: Final = 1_200
NEW: Final = 5  # every fifth user is a new merchant's
RESOURCES: Final = """
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
  strata:
  - {{name: new-merchants, all: [{{header: x-merchant-age, in: [new]}}]}}
  control: control
  variants:
  - {{name: control}}
  - {{name: v2, upstream: {{address: "{v2}", healthPath: /healthz}}}}
  metrics:
    primary: {{metric: accuracy, minimumImprovement: {{absolute: 0.02}}}}
    guardrails:
    - {{metric: error_rate, maximumHarm: {{absolute: 0.02}}}}
  steps:
  - ab: {{split: {{v2: 0.5}}, minimumUnits: 100}}
  onFinish: promote
"""

# (pod, is a new merchant's) -> how often its answer is right.
Accuracy = Callable[[str, bool], float]


class Comparison:
    """One A/B test, its users, and somebody who knows the truth."""

    def __init__(self, stage: Stage, control: ControlPlane, accuracy: Accuracy, seed: int) -> None:
        self._stage, self._control, self._accuracy = stage, control, accuracy
        self._random = random.Random(seed)
        self.where = ("--control", control.address, "--tenant", TENANT)
        self.looks = 0
        self.statuses: set[int] = set()

    async def play(self, *, at_most_s: float) -> Experiment:
        """Requests and their labels, until there is an end or the time is over."""
        end = time.monotonic() + at_most_s
        async with grpc.aio.insecure_channel(self._control.address) as channel:
            outcomes, stub = OutcomeServiceStub(channel), ExperimentServiceStub(channel)
            while True:
                await self._batch(outcomes)
                found: Experiment = await stub.GetExperiment(GetExperimentRequest(name=NAME))
                self.looks += 1
                held = found.status.last_decision.reason == Reason.REASON_STRATUM_HARM
                if found.status.state != State.STATE_RUNNING or held or time.monotonic() > end:
                    return found

    async def results(self) -> ExperimentResults:
        """What the control plane knows."""
        async with grpc.aio.insecure_channel(self._control.address) as channel:
            stub = ExperimentServiceStub(channel)
            request = GetExperimentResultsRequest(name=NAME)
            found: ExperimentResults = await stub.GetExperimentResults(request)
            return found

    async def _batch(self, outcomes: OutcomeServiceStub) -> None:
        users = self._random.sample(range(USERS), 400)
        answers = await self._stage.send(
            Request(
                headers={
                    "x-user-id": f"user-{user}",
                    "x-merchant-age": "new" if user % NEW == 0 else "old",
                },
                body=b"{}",
            )
            for user in users
        )
        told = []
        for user, answer in zip(users, answers, strict=True):
            self.statuses.add(answer.status)
            if answer.variant:
                right = self._random.random() < self._accuracy(answer.pod, user % NEW == 0)
                label = self._random.choice("01")
                prediction = label if right else "10"[int(label)]
                identity = answer.headers["x-request-id"]
                told.append(Outcome(request_id=identity, label=label, prediction=prediction))
        call: Any = outcomes.RecordOutcomes
        await call(RecordOutcomesRequest(parent=f"tenants/{TENANT}", outcomes=told))
        # The loop looks once a second, and sidecars tell what they counted as often.
        await asyncio.sleep(0.5)


async def started(stage: Stage, accuracy: Accuracy, *, seed: int = 20261122) -> Comparison:
    """An A/B test at 50 % that runs."""
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    file = stage.directory / "resources.yaml"
    file.write_text(RESOURCES.format(v1=v1.address, v2=v2.address))
    await stage.envoy(files=[file])
    control = await stage.control()
    await stage.sidecar(control=control.address)
    where = ("--control", control.address, "--tenant", TENANT)
    await stage.run("apply", "-f", str(file), *where)
    await stage.run("start", "fraud-v2", *where)
    await stage.enrols()
    return Comparison(stage, control, accuracy, seed)


async def test_ab_promotes_the_candidate_when_labels_say_it_is_clearly_better(
    stage: Stage,
) -> None:
    world = await started(stage, lambda pod, new: 0.95 if pod == "v2" else 0.75)
    ended = await world.play(at_most_s=60)
    assert ended.status.state == State.STATE_PROMOTED, ended.status.last_decision.sentence
    decision = ended.status.last_decision
    assert decision.reason == Reason.REASON_BETTER
    assert "v2 is better: accuracy" in decision.sentence
    assert world.statuses == {200}
    [verdict] = decision.verdicts
    assert (verdict.variant, verdict.row) == ("v2", TableRow.TABLE_ROW_PROMOTE)
    # The results of what has ended say the same, by metric and stratum.
    found = await world.results()
    assert found.sentence == ended.status.reason
    told = {(c.metric, c.stratum): c for c in found.comparisons}
    overall = told["accuracy", ""]
    assert overall.standing == STANDING_BETTER
    assert 0 < overall.low < overall.difference < overall.high
    assert {stratum for _, stratum in told} == {"", "(rest)", "new-merchants"}
    assert {gap.metric for gap in found.fairness_gaps} >= {"accuracy"}
    assert sum(found.sample_ratios[0].units.values()) > USERS / 2
    text = await stage.run("results", "fraud-v2", *world.where)
    assert text.startswith("promoted v2: step 1 of 1 passed: v2 is better: accuracy")
    assert "Verdict on v2: PROMOTE" in text


async def test_ab_does_not_promote_and_names_the_stratum_when_it_is_worse_there_alone(
    stage: Stage,
) -> None:
    def accuracy(pod: str, new: bool) -> float:
        if new:
            return 0.5 if pod == "v2" else 0.95
        return 0.97 if pod == "v2" else 0.8

    world = await started(stage, accuracy)
    found = await world.play(at_most_s=60)
    decision = found.status.last_decision
    assert found.status.state == State.STATE_RUNNING, decision.sentence
    assert decision.reason == Reason.REASON_STRATUM_HARM, decision.sentence
    assert "accuracy" in decision.sentence
    assert "new-merchants" in decision.sentence
    text = await stage.run("results", "fraud-v2", *world.where)
    assert "v2 is held: " in text.splitlines()[0]
    assert "new-merchants" in text.splitlines()[0]
    assert world.statuses == {200}


@pytest.mark.parametrize("seed", [1, 2])
async def test_ab_does_not_promote_when_the_candidate_is_equal(stage: Stage, seed: int) -> None:
    world = await started(stage, lambda pod, new: 0.85, seed=seed)
    found = await world.play(at_most_s=15)
    assert found.status.state != State.STATE_PROMOTED, found.status.last_decision.sentence
    assert world.looks > 5
    assert world.statuses == {200}


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3, 21))
async def test_ab_never_promotes_when_the_candidate_is_equal(stage: Stage, seed: int) -> None:
    """With the two above 20 of 20."""
    world = await started(stage, lambda pod, new: 0.85, seed=seed)
    found = await world.play(at_most_s=30)
    assert found.status.state != State.STATE_PROMOTED, found.status.last_decision.sentence
