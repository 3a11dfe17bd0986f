"""Warnings of what `apply` and `lint` take in: steps that can never decide, or not in their time.

Owns where they go: a line each on standard error, and `status.warnings` of the document that is
printed. They stop nothing, and nothing that goes wrong here stops anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import grpc
import typer

from control.commands.client import Client
from control.commands.measuring import measure
from control.model import Document
from control.model.defaults import resolved
from control.model.metrics import KnownMetrics
from control.planning.inputs import Assumptions, Caution, Traffic
from control.planning.structure import segment_share, structural, with_traffic
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec
from turnout.v1alpha1.metric_pb2 import MetricSpec


def doubts_of(document: Document, beside: Iterable[Document]) -> tuple[Caution, ...]:
    """Doubts about a document that no traffic can lift; none about what is no experiment.

    Args:
        document: One that was checked.
        beside: All documents of its files: they may declare its metrics.
    """
    spec = document.spec
    return structural(_resolved(spec, beside)) if isinstance(spec, ExperimentSpec) else ()


def measured_doubts(
    client: Client, document: Document, beside: Iterable[Document], tenant: str
) -> tuple[Caution, ...]:
    """Doubts about an experiment at the traffic that the control plane has counted on its target.

    None where nothing was counted, or the control plane does not say.

    Args:
        client: Of the control plane.
        document: One that was checked.
        beside: As of `doubts_of`.
        tenant: Of a document that names none.
    """
    if not isinstance(document.spec, ExperimentSpec):
        return ()
    spec = _resolved(document.spec, beside)
    try:
        found = measure(client, document.tenant or tenant, spec.target)
    except grpc.RpcError:  # whoever cannot list experiments may still be allowed to write one
        return ()
    if found is None:
        return ()
    share = segment_share(spec.segment) if spec.HasField("segment") else None
    assumed = Assumptions(
        Traffic(found.requests_per_s),
        found.baselines,
        eligible=share or 1.0,
        labels=found.labels or 1.0,
    )
    try:
        doubts = with_traffic(spec, assumed)
    except ImportError:  # apply works without numpy and scipy; what needs them is plan's to say
        return ()
    return tuple(replace(one, text=f"{one.text} ({found.source})") for one in doubts)


def warn(file: str, document: Document, doubts: Sequence[Caution]) -> None:
    """Print doubts on standard error, with their lines."""
    for one in doubts:
        place = f"{file}:{document.line_of(one.field)}"
        typer.echo(f"{place}: warning: {one.field}: {one.text}", err=True)


def entry(file: str, document: Document, doubt: Caution) -> dict[str, Any]:
    """A doubt as data, as `lint` lists it beside violations."""
    return {
        "file": file,
        "line": document.line_of(doubt.field),
        "field": doubt.field,
        "code": doubt.code,
        "warning": doubt.text,
    }


def with_warnings(document: dict[str, Any], doubts: Sequence[Caution]) -> dict[str, Any]:
    """A printed document with its doubts as `status.warnings`: a file that is read ignores them."""
    if not doubts:
        return document
    warnings = [{"code": one.code, "field": one.field, "text": one.text} for one in doubts]
    return {**document, "status": {**document.get("status", {}), "warnings": warnings}}


def _resolved(spec: ExperimentSpec, beside: Iterable[Document]) -> ExperimentSpec:
    known = KnownMetrics({one.name: one.spec for one in beside if isinstance(one.spec, MetricSpec)})
    named = {name: known.measured_as(name) for name in known.declared}
    return resolved(spec, {name: built_in for name, built_in in named.items() if built_in})
