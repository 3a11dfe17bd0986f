"""Documents checked together: duplicates, targets, siblings, and each one's own rules."""

from __future__ import annotations

from collections.abc import Sequence

from control.model.documents import Document
from control.model.experiments import validate_experiment
from control.model.rules import check_labels
from control.model.targets import check_rivals, validate_target
from control.model.unimplemented import unimplemented_experiment, unimplemented_target
from control.model.violations import UNKNOWN_FIELD, Report, Violation
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec
from turnout.v1alpha1.target_pb2 import TargetSpec

_METADATA = {"name": "metadata.name", "tenant": "metadata.tenant"}


def check_documents(
    documents: Sequence[Document], *, tenant: str, whole: bool = False
) -> list[list[Violation]]:
    """Every rule that each document breaks, with its line; without the faults of reading it.

    Args:
        documents: In the order of the files.
        tenant: Tenant of documents that name none.
        whole: The documents must stand by themselves: every target is among them, all are of one
            tenant, and no two experiments want the whole of one layer.
    """
    checked = []
    for index, document in enumerate(documents):
        report = Report()
        _check_identity(report, documents, index, tenant)
        if whole:
            _check_whole(report, documents, index, tenant)
        report.violations += _own_rules(documents, document, tenant)
        checked.append(
            [
                violation._replace(line=document.line_of(violation.field))
                for violation in report.violations
                if not _follows(violation.field, document.faults)
            ]
        )
    return checked


def unimplemented(document: Document) -> list[str]:
    """Field paths of features of a document that are not implemented."""
    if isinstance(document.spec, TargetSpec):
        return unimplemented_target(document.spec)
    return unimplemented_experiment(document.spec)


def _own_rules(documents: Sequence[Document], document: Document, tenant: str) -> list[Violation]:
    owner = document.tenant or tenant
    if isinstance(document.spec, TargetSpec):
        found = validate_target(owner, document.name, document.spec)
        found += check_rivals(
            document.name, document.spec, _targets_before(documents, document, tenant)
        )
    else:
        target = _target_of(documents, document, tenant)
        siblings = {
            other.name: other.spec
            for other in documents
            if isinstance(other.spec, ExperimentSpec)
            and other.name != document.name
            and (other.tenant or tenant) == owner
            and other.spec.target == document.spec.target
        }
        found = validate_experiment(owner, document.name, document.spec, target, siblings)
    found += check_labels(document.labels, "metadata.labels")
    return [item._replace(field=_METADATA.get(item.field, item.field)) for item in found]


def _targets_before(
    documents: Sequence[Document], document: Document, tenant: str
) -> dict[str, TargetSpec]:
    """Targets of the same tenant above the document: of two with one match the later is refused."""
    found = {}
    for other in documents:
        if other is document:
            break
        same_tenant = (other.tenant or tenant) == (document.tenant or tenant)
        if same_tenant and isinstance(other.spec, TargetSpec) and other.spec.HasField("match"):
            found[other.name] = other.spec
    return found


def _check_identity(report: Report, documents: Sequence[Document], index: int, tenant: str) -> None:
    document = documents[index]
    identity = (document.kind, document.tenant or tenant, document.name)
    before = ((other.kind, other.tenant or tenant, other.name) for other in documents[:index])
    if document.name and identity in before:
        report.add("metadata.name", document.name, f"{document.kind} is there twice")


def _check_whole(report: Report, documents: Sequence[Document], index: int, tenant: str) -> None:
    document = documents[index]
    owner, first = document.tenant or tenant, documents[0].tenant or tenant
    if owner != first:
        report.add("metadata.tenant", owner, f"must be {first}: a snapshot has one tenant")
    if not isinstance(document.spec, ExperimentSpec):
        return
    if _target_of(documents, document, tenant) is None:
        report.add("spec.target", document.spec.target or "missing", "must be in the files")
    for other in documents[:index]:
        if isinstance(other.spec, ExperimentSpec) and other.spec.target == document.spec.target:
            rule = f"experiment {other.name} has the whole layer of this target; build one of them"
            report.add("spec.target", document.spec.target, rule)


def _target_of(documents: Sequence[Document], document: Document, tenant: str) -> TargetSpec | None:
    assert isinstance(document.spec, ExperimentSpec)
    wanted = (document.tenant or tenant, document.spec.target)
    for other in documents:
        if isinstance(other.spec, TargetSpec) and (other.tenant or tenant, other.name) == wanted:
            return other.spec
    return None


def _follows(path: str, faults: Sequence[Violation]) -> bool:
    """True when a fault of reading explains this one: the value is not there because of it."""
    for fault in faults:
        if fault.field == path or path.startswith((f"{fault.field}.", f"{fault.field}[")):
            return True
        # Something below was refused. An unknown field was not meant for this place, though.
        below = fault.field.startswith((f"{path}.", f"{path}["))
        if below and not fault.rule.startswith(UNKNOWN_FIELD):
            return True
    return False
