"""Cells are the requests of each user, counted once more by those who sent them.

Two Envoys with a sidecar each, one control plane, one experiment with a stratum. What clients got
is counted per user; what came of it is read from the control plane's store after it was killed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final

import grpc.aio
import numpy as np
import pytest

from control.journal import Journal
from control.rollout.cells import Cell, CellKey, Cells
from control.rollout.entries import load_experiment
from control.store import open_store
from control.store.base import Kind
from tests.integration.harness import ControlPlane, Request, Response, Stage, wait_for
from tests.integration.pods import Seen
from turnout.v1alpha1.experiment_service_pb2 import (
    ExperimentResults,
    GetExperimentResultsRequest,
)
from turnout.v1alpha1.experiment_service_pb2_grpc import ExperimentServiceStub
from turnout.v1alpha1.outcome_service_pb2 import Outcome, RecordOutcomesRequest
from turnout.v1alpha1.outcome_service_pb2_grpc import OutcomeServiceStub

TENANT: Final = "risk"
NAME: Final = "fraud-v2"
RESOURCES: Final = """
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
  strata:
  - {{name: new-merchants, all: [{{header: x-merchant-age, in: [new]}}]}}
  control: control
  variants:
  - {{name: control}}
  - name: v2
    model: {{id: fraud, version: "2"}}
    upstream: {{address: "{v2}", healthPath: /healthz}}
  metrics:
    primary: {{metric: accuracy, minimumImprovement: {{absolute: 0.01}}}}
    guardrails:
    - {{metric: latency_p95, maximumHarm: {{absolute: 50ms}}, slo: 1s}}
    - {{metric: latency_p99, maximumHarm: {{absolute: 50ms}}, slo: 2s}}
    warmUp: {warm_up}
  steps:
  - canary: {{split: {{v2: 0.5}}, for: 1h, checks: [error_rate]}}
"""

# (variant, stratum) -> user -> requests
Counts = dict[tuple[str, int], Counter[str]]


class Ledger:
    """What the clients got, by user; only what a sidecar had stamped."""

    def __init__(self) -> None:
        self.requests: Counts = {}
        self.errors: Counts = {}
        self.answered: list[tuple[str, int, str, str]] = []  # variant, stratum, user, request id

    def add(self, requests: Sequence[Request], responses: Sequence[Response]) -> None:
        """Count answers, in the order of their requests."""
        for request, response in zip(requests, responses, strict=True):
            assert response.status in (200, 503), response
            if not response.variant:
                continue
            user = str(request.headers["x-user-id"])
            place = (response.variant, int(request.headers["x-merchant-age"] == "new"))
            self.requests.setdefault(place, Counter())[user] += 1
            if response.failed:
                self.errors.setdefault(place, Counter())[user] += 1
            else:
                self.answered.append((*place, user, response.headers["x-request-id"]))

    @property
    def total(self) -> int:
        """All requests."""
        return sum(users.total() for users in self.requests.values())


def request_of(user: int, number: int) -> Request:
    """A user's request; some users are new merchants in every other one."""
    age = "new" if user % 3 == 0 and number % 2 else "old"
    return Request(headers={"x-user-id": f"user-{user}", "x-merchant-age": age}, body=b"{}")


def fails(seen: Seen) -> int:
    """Every fifth user always fails, with either model."""
    user = seen.headers["x-user-id"].removeprefix("user-")
    return 503 if int(user) % 5 == 0 else 200


async def _send(stage: Stage, ledger: Ledger, users: Iterable[int]) -> None:
    requests = [request_of(user, n) for user in users for n in range(1 + user % 7)]
    ledger.add(requests, await stage.send(requests))


async def _enrolled(stage: Stage, ledger: Ledger) -> None:
    """Wait until requests are stamped; these are counted, too."""
    request = [request_of(1, 0)]

    async def stamped() -> bool:
        before = ledger.total
        ledger.add(request, await stage.send(request))
        return ledger.total > before

    await wait_for(stamped, "a request is stamped")


async def _results(control: ControlPlane) -> ExperimentResults:
    async with grpc.aio.insecure_channel(control.address) as channel:
        asked = GetExperimentResultsRequest(name=f"tenants/{TENANT}/experiments/{NAME}")
        found: ExperimentResults = await ExperimentServiceStub(channel).GetExperimentResults(asked)
        return found


async def _counted(control: ControlPlane, ledger: Ledger) -> None:
    """Wait until the control plane has stored all that was sent."""

    async def there() -> bool:
        found = await _results(control)
        return sum(one.requests for one in found.epoch_variants) == ledger.total

    await wait_for(there, f"{ledger.total} requests are counted")


async def _label(control: ControlPlane, ledger: Ledger) -> dict[str, Counts]:
    """Tell predictions and labels of what was answered; the confusion counts by user."""
    told: dict[str, Counts] = {"tp": {}, "fp": {}, "fn": {}, "tn": {}}
    outcomes = []
    for number, (variant, stratum, user, request_id) in enumerate(ledger.answered):
        said, truth = number % 2, number % 3 == 0
        name = ("tp" if truth else "fp") if said else ("fn" if truth else "tn")
        told[name].setdefault((variant, stratum), Counter())[user] += 1
        prediction, label = str(said), str(int(truth))
        outcomes.append(Outcome(request_id=request_id, prediction=prediction, label=label))
    async with grpc.aio.insecure_channel(control.address) as channel:
        call: Any = OutcomeServiceStub(channel).RecordOutcomes
        await call(RecordOutcomesRequest(parent=f"tenants/{TENANT}", outcomes=outcomes))
    return told


async def _cells(control: ControlPlane) -> tuple[Cells, bytes]:
    """The cells that a dead control plane has stored, and the key of unit hashes."""
    store = await open_store(f"sqlite:{control.store}")
    try:
        resources = await store.all_resources(Kind.EXPERIMENT, TENANT)
        entry = load_experiment(next(one for one in resources if one.name == NAME))
        journal = await Journal.recover(store, TENANT)
        key = await store.tenant_key(TENANT)
        return journal.evidence.cells(entry.run, entry.policy), key
    finally:
        await store.close()


def _hash(key: bytes, user: str) -> int:
    digest = hashlib.blake2b(user.encode(), key=key, digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _by_bucket(key: bytes, users: Counter[str]) -> dict[int, int]:
    found: Counter[int] = Counter()
    for user, count in users.items():
        found[_hash(key, user) >> 54] += count
    return dict(found)


def _touched(array: np.ndarray[Any, Any]) -> dict[int, int]:
    return {int(bucket): int(array[bucket]) for bucket in np.flatnonzero(array)}


def _cell(cells: Cells, variant: str, stratum: int) -> Cell:
    return cells.cells.get(CellKey(cells.epochs[-1].epoch, variant, stratum), Cell())


def assert_equal(cells: Cells, key: bytes, name: str, counts: Counts) -> None:
    """One array of every cell is what was counted by user."""
    for variant in ("control", "v2"):
        for stratum in (0, 1):
            users = counts.get((variant, stratum), Counter())
            found = _touched(getattr(_cell(cells, variant, stratum), name))
            assert found == _by_bucket(key, users), (name, variant, stratum)


@pytest.fixture
async def other() -> AsyncIterator[Stage]:
    async with Stage() as one:
        yield one


async def _started(stages: Sequence[Stage], *, warm_up: str = "0s") -> ControlPlane:
    """The experiment runs on all stages, by one control plane that the first has."""
    first = stages[0]
    pods = [await first.pod("v1"), await first.pod("v2")]
    for pod in pods:
        pod.status = fails
    file = first.directory / "resources.yaml"
    v1, v2 = (pod.address for pod in pods)
    file.write_text(RESOURCES.format(v1=v1, v2=v2, warm_up=warm_up))
    control = await first.control()
    for number, stage in enumerate(stages):
        await stage.envoy(files=[file])
        await stage.sidecar(control=control.address, node=f"node-{number}")
    where = ("--control", control.address, "--tenant", TENANT)
    await first.run("apply", "-f", str(file), *where)
    await first.run("start", NAME, *where)
    return control


async def test_cells_are_the_requests_of_each_user_when_workers_and_the_control_plane_die(
    stage: Stage, other: Stage
) -> None:
    control = await _started([stage, other])
    ledger = Ledger()
    for one in (stage, other):
        await _enrolled(one, ledger)
    # The same users on both sidecars.
    await _send(stage, ledger, range(60))
    await _send(other, ledger, range(30, 90))
    await _counted(control, ledger)
    sidecar = stage._sidecar
    assert sidecar is not None
    sidecar.kill_workers()
    await other.restart_sidecar(control=control.address)
    await control.kill()
    control = await stage.control(port=control.port)
    for one in (stage, other):
        await one.workers_serve()
        await _enrolled(one, ledger)
        await _send(one, ledger, range(90))
    await _counted(control, ledger)
    told = await _label(control, ledger)
    shown = {one.variant: one for one in (await _results(control)).epoch_variants}
    await control.kill()
    cells, key = await _cells(control)
    assert_equal(cells, key, "requests", ledger.requests)
    assert_equal(cells, key, "errors", ledger.errors)
    for name, counts in told.items():
        assert_equal(cells, key, name, counts)
    for variant in ("control", "v2"):
        users = {u for (v, _), found in ledger.requests.items() if v == variant for u in found}
        assert cells.units[cells.epochs[-1].epoch, variant] == len(users) == shown[variant].units
        assert shown[variant].missing == shown[variant].warm_up == 0
    assert sum(cell.missing for cell in cells.cells.values()) == 0
    assert len(ledger.requests) == 4


async def test_requests_in_the_warm_up_are_counted_and_not_compared(stage: Stage) -> None:
    control = await _started([stage], warm_up="1h")
    ledger = Ledger()
    await _enrolled(stage, ledger)
    await _send(stage, ledger, range(30))
    await _counted(control, ledger)
    shown = {one.variant: one for one in (await _results(control)).epoch_variants}
    for variant in ("control", "v2"):
        users = [found for (v, _), found in ledger.requests.items() if v == variant]
        count = sum(one.total() for one in users)
        assert (shown[variant].requests, shown[variant].warm_up) == (count, count)
        assert shown[variant].missing == 0
    text = await stage.run("results", NAME, "--control", control.address, "--tenant", TENANT)
    assert "began in a warm-up" in text
    await control.kill()
    cells, _ = await _cells(control)
    assert all(not cell.requests.any() for cell in cells.cells.values())
    assert sum(cells.units.values()) > 0
