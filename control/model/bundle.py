"""Documents checked together: duplicates, targets, siblings, and each one's own rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from control.model.documents import Document
from control.model.experiments import validate_experiment
from control.model.holdouts import check_held_salts, validate_holdout
from control.model.layers import layer_name, reserved, same_unit
from control.model.metrics import KnownMetrics, validate_metric
from control.model.rules import check_labels
from control.model.steps import FRACTION_ERROR
from control.model.targets import check_rivals, validate_target
from control.model.unimplemented import unimplemented_experiment
from control.model.violations import UNKNOWN_FIELD, Feature, Report, Violation
from turnout.contract import EXPERIMENTS_PER_TARGET_MAX, LAYERS_PER_TARGET_MAX
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec
from turnout.v1alpha1.experiment_service_pb2 import HoldoutSpec
from turnout.v1alpha1.metric_pb2 import MetricSpec
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
            tenant, and all experiments can run at once.
    """
    checked = []
    for index, document in enumerate(documents):
        report = Report()
        _check_identity(report, documents, index, tenant)
        if whole:
            _check_whole(report, documents, index, tenant)
        report.violations += _own_rules(documents, document, tenant, whole=whole)
        checked.append(
            [
                violation._replace(line=document.line_of(violation.field))
                for violation in report.violations
                if not _follows(violation.field, document.faults)
            ]
        )
    return checked


def unimplemented(
    document: Document, documents: Sequence[Document] = (), *, tenant: str = ""
) -> list[Feature]:
    """Field paths of features of a document that are not implemented.

    Args:
        document: Any.
        documents: Those that are read with it: an experiment may name their metrics.
        tenant: Tenant of documents that name none.
    """
    if not isinstance(document.spec, ExperimentSpec):
        return []
    owner = document.tenant or tenant
    return unimplemented_experiment(document.spec, _metrics_of(documents, owner, tenant))


def _metrics_of(
    documents: Sequence[Document], owner: str, tenant: str, *, whole: bool = False
) -> KnownMetrics:
    """The metrics that are declared in files and break no rule."""
    declared = {
        other.name: other.spec
        for other in documents
        if isinstance(other.spec, MetricSpec)
        and (other.tenant or tenant) == owner
        and not validate_metric(owner, other.name, other.spec)
    }
    return KnownMetrics(declared, complete=whole)


def _own_rules(
    documents: Sequence[Document], document: Document, tenant: str, *, whole: bool
) -> list[Violation]:
    owner = document.tenant or tenant
    if isinstance(document.spec, TargetSpec):
        found = validate_target(owner, document.name, document.spec)
        found += check_rivals(
            document.name, document.spec, _targets_before(documents, document, tenant)
        )
    elif isinstance(document.spec, HoldoutSpec):
        found = validate_holdout(owner, document.spec)
        found += check_held_salts(document.spec, _experiments_of(documents, owner, tenant))
    elif isinstance(document.spec, MetricSpec):
        found = validate_metric(owner, document.name, document.spec)
    else:
        target = _target_of(documents, document, tenant)
        siblings = {
            name: spec
            for name, spec in _experiments_of(documents, owner, tenant).items()
            if name != document.name and spec.target == document.spec.target
        }
        metrics = _metrics_of(documents, owner, tenant, whole=whole)
        found = validate_experiment(owner, document.name, document.spec, target, siblings, metrics)
    found += check_labels(document.labels, "metadata.labels")
    return [item._replace(field=_METADATA.get(item.field, item.field)) for item in found]


def _experiments_of(
    documents: Sequence[Document], owner: str, tenant: str
) -> dict[str, ExperimentSpec]:
    return {
        other.name: other.spec
        for other in documents
        if isinstance(other.spec, ExperimentSpec) and (other.tenant or tenant) == owner
    }


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
    if identity not in before:
        return
    if document.kind == "Holdout":
        report.add("metadata.tenant", identity[1], "has a Holdout already; a tenant has one")
    elif document.name:
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
    # What runs at once is taken in by name, as the snapshot does.
    others = {
        other.name: other.spec
        for other in documents
        if isinstance(other.spec, ExperimentSpec)
        and other.spec.target == document.spec.target
        and other.name < document.name
    }
    _check_together(report, document.spec, others)


def _check_together(
    report: Report, spec: ExperimentSpec, others: Mapping[str, ExperimentSpec]
) -> None:
    """Whether an experiment can run while the others of its target do."""
    if len(others) >= EXPERIMENTS_PER_TARGET_MAX:
        rule = f"at most {EXPERIMENTS_PER_TARGET_MAX} experiments can run on one target"
        report.add("spec.target", spec.target, rule)
    layer = layer_name(spec)
    layers = {layer_name(other) for other in others.values()}
    if layer not in layers and len(layers) >= LAYERS_PER_TARGET_MAX:
        report.add("spec.layer.name", layer, f"at most {LAYERS_PER_TARGET_MAX} layers of a target")
    beside = {name: other for name, other in others.items() if layer_name(other) == layer}
    for name in sorted(beside):
        if not same_unit(spec, beside[name]):
            rule = (
                f"must be the unit of experiment {name} in the same layer: they exclude each other"
            )
            report.add("spec.unit", "another one", rule)
            break
    left = 1 - sum(reserved(other) for other in beside.values())
    if reserved(spec) > left + FRACTION_ERROR:
        rule = (
            f"only {max(left, 0):g} of layer {layer} is left: {', '.join(sorted(beside))} "
            "reserved the rest; lower a reserve, or take another layer"
        )
        report.add("spec.layer.reserve", f"{reserved(spec):g}", rule)


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
