"""The audit trail's events: who did what, and how each resource looked before and after.

Pure. Refuses to store: events are part of the change that they tell of, so that there is no change
without its event and no event without its change.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import json_format

from control.store.base import AuditRecord
from turnout.v1alpha1.experiment_pb2 import Experiment
from turnout.v1alpha1.experiment_service_pb2 import Holdout
from turnout.v1alpha1.metric_pb2 import Metric
from turnout.v1alpha1.target_pb2 import Target

Resource = Target | Experiment | Metric | Holdout


def records(
    tenant: str,
    actor: str,
    method: str,
    pairs: Iterable[tuple[Resource | None, Resource | None]],
    *,
    time_ms: int,
) -> list[AuditRecord]:
    """One event per resource that changed.

    Args:
        tenant: Whose resources.
        actor: The caller's `x-turnout-actor` or address; "turnout" for the control loop.
        method: "Service.Method", or "loop/ACTION".
        pairs: Each resource (before, after); None = it did not or does not exist.
        time_ms: Unix milliseconds.
    """
    events = []
    for before, after in pairs:
        shown = after or before
        assert shown is not None
        events.append(
            AuditRecord(
                tenant=tenant,
                time_ms=time_ms,
                actor=actor,
                method=method,
                resource=shown.name,
                before_json=_json(before),
                after_json=_json(after),
            )
        )
    return events


def _json(resource: Resource | None) -> str:
    if resource is None:
        return ""
    return json_format.MessageToJson(resource, indent=None, sort_keys=True)
