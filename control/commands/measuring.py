"""Traffic and baselines of a target, as the control plane has counted them.

Owns which experiment's counts stand for the target: the one that served last. Guesses nothing: what
was not counted is not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from control.commands.client import Client
from control.model import LATENCY_METRICS
from control.planning.inputs import Assumptions, Traffic
from control.planning.structure import experiment_traffic
from control.rollout.plain import count, duration, percent
from turnout.v1alpha1.experiment_pb2 import Experiment, VariantResult
from turnout.v1alpha1.experiment_service_pb2 import (
    ExperimentResults,
    GetExperimentResultsRequest,
    ListExperimentsRequest,
)

PAGE_SIZE: Final = 500
# Fewer requests of control say nothing of its rates.
REQUESTS_LEAST: Final = 100
# A shorter time says nothing of the traffic.
SECONDS_LEAST: Final = 1.0


class Measured(NamedTuple):
    """What was counted.

    Attributes:
        requests_per_s: To the whole target, as far as the experiment's segment lets them in.
        baselines: Metric -> control's value; rates 0..1, milliseconds.
        labels: Share of control's requests that got a label, 0 = none did.
        source: Where it is from, one sentence.
        missing: What the control plane cannot say.
    """

    requests_per_s: float
    baselines: dict[str, float]
    labels: float
    source: str
    missing: tuple[str, ...]


def measure(client: Client, tenant: str, target: str) -> Measured | None:
    """Traffic of a target; None when no experiment on it has served anything.

    Raises:
        grpc.RpcError: The control plane cannot say.
    """
    served = [one for one in _experiments(client, tenant) if one.spec.target == target]
    served = [one for one in served if one.status.start_time.seconds]
    # The one that runs, else the one that ended last.
    served.sort(key=lambda one: (not one.status.end_time.seconds, one.status.end_time.seconds))
    for experiment in reversed(served):
        request = GetExperimentResultsRequest(name=experiment.name)
        results: ExperimentResults = client.call(client.experiments.GetExperimentResults, request)
        found = _measured(experiment, results)
        if found is not None:
            return found
    return None


def _experiments(client: Client, tenant: str) -> Iterator[Experiment]:
    request = ListExperimentsRequest(parent=f"tenants/{tenant}", page_size=PAGE_SIZE)
    while True:
        page = client.call(client.experiments.ListExperiments, request)
        yield from page.experiments
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _measured(experiment: Experiment, results: ExperimentResults) -> Measured | None:
    status = experiment.status
    end = status.end_time if status.end_time.seconds else results.as_of_time
    seconds = _seconds(end) - _seconds(status.start_time)
    requests = sum(variant.requests for variant in results.variants)
    control = next((variant for variant in results.variants if variant.control), None)
    if seconds < SECONDS_LEAST or not requests or control is None:
        return None
    share = _share(experiment)
    rps = requests / seconds / share
    baselines = _baselines(control)
    source = (
        f"measured: {count(requests)} requests of {experiment.name.rpartition('/')[2]} in "
        f"{duration(round(seconds * 1000))}"
    )
    if share < 1:
        source += f", which has {percent(share)} of the target"
    missing = ["units per day"]
    if "error_rate" not in baselines:
        missing.append(f"error rate ({count(control.requests)} requests of control are too few)")
    labels = control.labelled / control.requests if control.requests else 0.0
    return Measured(rps, baselines, min(1.0, labels), source, tuple(missing))


def _share(experiment: Experiment) -> float:
    whole = Assumptions(Traffic(1.0), held_out=experiment.status.holdout_fraction)
    return experiment_traffic(experiment.spec, whole).requests_per_s


def _baselines(control: VariantResult) -> dict[str, float]:
    if control.requests < REQUESTS_LEAST:
        return {}
    found = {"error_rate": control.errors / control.requests}
    for metric in LATENCY_METRICS:
        value_ms = getattr(control, f"{metric}_ms")
        if value_ms > max(found.get(name, 0.0) for name in (*LATENCY_METRICS, "")):
            found[metric] = value_ms
    if control.labelled >= REQUESTS_LEAST:
        found["accuracy"] = control.correct / control.labelled
    return found


def _seconds(time: Timestamp) -> float:
    return time.seconds + time.nanos / 1e9
