"""A document on its way to the control plane: what is there, what is wanted, what would change.

Owns when two resources are the same, and what a file does not say and therefore does not change
(the salt, the etag). Shared by `apply`, which sends it, and `diff`, which shows it.
"""

from __future__ import annotations

from typing import NamedTuple

import grpc

from control.commands.client import Client, request_id
from control.model import (
    Document,
    experiment_with_defaults,
    holdout_name,
    metric_names,
    metric_with_defaults,
    target_with_defaults,
)
from turnout.v1alpha1.experiment_pb2 import Experiment, ExperimentSpec
from turnout.v1alpha1.experiment_service_pb2 import (
    CreateExperimentRequest,
    CreateTargetRequest,
    GetExperimentRequest,
    GetHoldoutRequest,
    GetTargetRequest,
    Holdout,
    HoldoutSpec,
    UpdateExperimentRequest,
    UpdateHoldoutRequest,
    UpdateTargetRequest,
)
from turnout.v1alpha1.metric_pb2 import Metric, MetricSpec
from turnout.v1alpha1.metric_service_pb2 import (
    CreateMetricRequest,
    GetMetricRequest,
    UpdateMetricRequest,
)
from turnout.v1alpha1.target_pb2 import Target, TargetSpec

Resource = Target | Experiment | Metric | Holdout


class Change(NamedTuple):
    """What a document asks for.

    Attributes:
        document: As read from the file.
        current: The resource as it is; None when there is none.
        wanted: As it is to be, without what only the control plane knows.
    """

    document: Document
    current: Resource | None
    wanted: Resource

    @property
    def label(self) -> str:
        """As in "target/fraud"."""
        if isinstance(self.wanted, Holdout):
            return "holdout"
        return f"{self.document.kind.lower()}/{self.document.name}"

    @property
    def verdict(self) -> str:
        """What apply says of it: created, configured or unchanged."""
        if self.current is None:
            return "created"
        return "unchanged" if self.same else "configured"

    @property
    def same(self) -> bool:
        """True when there is nothing to send."""
        if self.current is None or self.wanted.etag != self.current.etag:
            return False
        if isinstance(self.current, Holdout) or isinstance(self.wanted, Holdout):
            return bool(self.current.spec == self.wanted.spec)
        same_labels = self.current.labels == self.wanted.labels
        return same_labels and self.current.spec == filled(self.wanted).spec

    @property
    def overwrites(self) -> str:
        """Why this would undo a promotion that the file does not know of; "" = it does not."""
        wanted, current = self.wanted, self.current
        if not isinstance(wanted, Target) or not isinstance(current, Target):
            return ""
        promoted = current.status.promoted_from
        moved = current.spec.baseline != wanted.spec.baseline
        if not promoted or not moved or self.document.etag or self.same:
            return ""
        return (
            f"target/{self.document.name}: {promoted} was promoted and the file has another "
            "baseline; write the promoted one into it, or say --overwrite-baseline"
        )


def plan(client: Client, document: Document, tenant: str) -> Change:
    """Look up what a document is about.

    Args:
        client: Of the control plane.
        document: One that was checked.
        tenant: Of a document that names none.

    Raises:
        grpc.RpcError: The control plane cannot say.
    """
    parent = f"tenants/{document.tenant or tenant}"
    wanted: Resource
    current: Resource | None
    if isinstance(document.spec, TargetSpec):
        name = f"{parent}/targets/{document.name}"
        wanted = Target(name=name, labels=document.labels, spec=document.spec)
        current = _found(client, client.targets.GetTarget, GetTargetRequest(name=name))
    elif isinstance(document.spec, MetricSpec):
        name = f"{parent}/metrics/{document.name}"
        wanted = Metric(name=name, labels=document.labels, spec=document.spec)
        current = _found(client, client.metrics.GetMetric, GetMetricRequest(name=name))
    elif isinstance(document.spec, HoldoutSpec):
        name = holdout_name(document.tenant or tenant)
        wanted = Holdout(name=name, spec=document.spec)
        held: Holdout = client.call(client.holdouts.GetHoldout, GetHoldoutRequest(name=name))
        current = held if held.etag else None
        wanted.spec.salt = wanted.spec.salt or held.spec.salt
    else:
        assert isinstance(document.spec, ExperimentSpec)
        name = f"{parent}/experiments/{document.name}"
        wanted = Experiment(name=name, labels=document.labels, spec=document.spec)
        request = GetExperimentRequest(name=name)
        current = _found(client, client.experiments.GetExperiment, request)
        if isinstance(current, Experiment):
            # Chosen at creation and never changed: a file without it means the same.
            wanted.spec.salt = wanted.spec.salt or current.spec.salt
    if current is not None:
        wanted.etag = document.etag or current.etag
    return Change(document, current, wanted)


def send(client: Client, change: Change, *, validate_only: bool) -> Resource:
    """Create or update; the resource afterwards, or as it would be.

    Raises:
        grpc.RpcError: The control plane refused.
    """
    if change.same:
        assert change.current is not None
        return change.current
    wanted = change.wanted
    changed: Resource
    if isinstance(wanted, Holdout):
        held = UpdateHoldoutRequest(
            holdout=wanted, validate_only=validate_only, request_id=request_id()
        )
        changed = client.call(client.holdouts.UpdateHoldout, held)
        return changed
    if change.current is None:
        return _create(client, change, validate_only=validate_only)
    if isinstance(wanted, Target):
        update = UpdateTargetRequest(
            target=wanted, validate_only=validate_only, request_id=request_id()
        )
        changed = client.call(client.targets.UpdateTarget, update)
    elif isinstance(wanted, Metric):
        redefine = UpdateMetricRequest(
            metric=wanted, validate_only=validate_only, request_id=request_id()
        )
        changed = client.call(client.metrics.UpdateMetric, redefine)
    else:
        revise = UpdateExperimentRequest(
            experiment=wanted, validate_only=validate_only, request_id=request_id()
        )
        changed = client.call(client.experiments.UpdateExperiment, revise)
    return changed


def filled(resource: Resource) -> Resource:
    """A copy with every default of its spec: what the control plane stores."""
    if isinstance(resource, Target):
        target = Target()
        target.CopyFrom(resource)
        target.spec.CopyFrom(target_with_defaults(resource.spec))
        return target
    if isinstance(resource, Holdout):
        return resource
    if isinstance(resource, Metric):
        metric = Metric()
        metric.CopyFrom(resource)
        name = resource.name.rpartition("/")[2]
        metric.spec.CopyFrom(metric_with_defaults(name, resource.spec))
        return metric
    experiment = Experiment()
    experiment.CopyFrom(resource)
    experiment.spec.CopyFrom(experiment_with_defaults(resource.spec))
    return experiment


def _create(client: Client, change: Change, *, validate_only: bool) -> Resource:
    wanted, document = change.wanted, change.document
    assert not isinstance(wanted, Holdout)
    parent = "/".join(wanted.name.split("/")[:2])
    created: Resource
    if isinstance(wanted, Target):
        create = CreateTargetRequest(
            parent=parent,
            target_id=document.name,
            target=wanted,
            validate_only=validate_only,
            request_id=request_id(),
        )
        created = client.call(client.targets.CreateTarget, create)
    elif isinstance(wanted, Metric):
        declare = CreateMetricRequest(
            parent=parent,
            metric_id=document.name,
            metric=wanted,
            validate_only=validate_only,
            request_id=request_id(),
        )
        created = client.call(client.metrics.CreateMetric, declare)
    else:
        draft = CreateExperimentRequest(
            parent=parent,
            experiment_id=document.name,
            experiment=wanted,
            validate_only=validate_only,
            request_id=request_id(),
        )
        created = client.call(client.experiments.CreateExperiment, draft)
    return created


def _found(
    client: Client,
    method: object,
    request: GetTargetRequest | GetExperimentRequest | GetMetricRequest,
) -> Resource | None:
    try:
        found: Resource = client.call(method, request)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise
    return found


class Missing:
    """What a dry run would have created: experiments that need it cannot be asked about yet."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def note(self, change: Change) -> None:
        """Take in what became of a document."""
        if isinstance(change.wanted, Target | Metric) and change.current is None:
            self._names.add(change.wanted.name)

    def hold(self, change: Change) -> str:
        """What it waits for, so that only the files could be checked; "" = nothing."""
        if not isinstance(change.wanted, Experiment):
            return ""
        parent = "/".join(change.wanted.name.split("/")[:2])
        if f"{parent}/targets/{change.wanted.spec.target}" in self._names:
            return "its target"
        named = {f"{parent}/metrics/{name}" for _, name in metric_names(change.wanted.spec)}
        return "" if named.isdisjoint(self._names) else "a metric of it"
