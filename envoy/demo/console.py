"""What an operator would ask the control plane, over its own gRPC API."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from turnout.v1alpha1.config_service_pb2 import ListSidecarsRequest, Sidecar
from turnout.v1alpha1.config_service_pb2_grpc import SidecarServiceStub
from turnout.v1alpha1.experiment_pb2 import Experiment, State
from turnout.v1alpha1.experiment_service_pb2 import (
    ExperimentResults,
    GetExperimentRequest,
    GetExperimentResultsRequest,
    StartExperimentRequest,
    StopExperimentRequest,
)
from turnout.v1alpha1.experiment_service_pb2_grpc import ExperimentServiceStub

if TYPE_CHECKING:
    from turnout.v1alpha1.config_service_pb2_grpc import SidecarServiceAsyncStub
    from turnout.v1alpha1.experiment_service_pb2_grpc import ExperimentServiceAsyncStub

_TIMEOUT_S = 5.0
# Who asks, for decisions and the audit.
_METADATA = (("x-turnout-actor", "demo"),)


def state_name(state: State.ValueType) -> str:
    """RUNNING for STATE_RUNNING."""
    return State.Name(state).removeprefix("STATE_")


class Console:
    """A client of one control plane; every call has a deadline and none is retried.

    Raises (every call):
        grpc.aio.AioRpcError: The control plane said no, or did not answer.
    """

    def __init__(self, address: str, tenant: str) -> None:
        self._tenant = f"tenants/{tenant}"
        self._channel = grpc.aio.insecure_channel(
            address,
            # After the control plane was away: try again at once, not after two minutes.
            options=[
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 500),
            ],
        )
        self._experiments: ExperimentServiceAsyncStub = ExperimentServiceStub(self._channel)
        self._sidecars: SidecarServiceAsyncStub = SidecarServiceStub(self._channel)

    def name(self, experiment: str) -> str:
        """Resource name of an experiment."""
        return f"{self._tenant}/experiments/{experiment}"

    async def start(self, experiment: str) -> None:
        """Start an experiment."""
        await self._experiments.StartExperiment(
            StartExperimentRequest(name=self.name(experiment)),
            timeout=_TIMEOUT_S,
            metadata=_METADATA,
        )

    async def stop(self, experiment: str, reason: str) -> Experiment:
        """End an experiment without a verdict."""
        return await self._experiments.StopExperiment(
            StopExperimentRequest(name=self.name(experiment), reason=reason),
            timeout=_TIMEOUT_S,
            metadata=_METADATA,
        )

    async def get(self, experiment: str) -> Experiment:
        """The experiment with its status."""
        return await self._experiments.GetExperiment(
            GetExperimentRequest(name=self.name(experiment)),
            timeout=_TIMEOUT_S,
            metadata=_METADATA,
        )

    async def results(self, experiment: str) -> ExperimentResults:
        """Turnout's own figures."""
        return await self._experiments.GetExperimentResults(
            GetExperimentResultsRequest(name=self.name(experiment)),
            timeout=_TIMEOUT_S,
            metadata=_METADATA,
        )

    async def sidecars(self) -> list[Sidecar]:
        """What the control plane knows of its sidecars."""
        answer = await self._sidecars.ListSidecars(
            ListSidecarsRequest(parent=self._tenant),
            timeout=_TIMEOUT_S,
            metadata=_METADATA,
        )
        return list(answer.sidecars)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()
