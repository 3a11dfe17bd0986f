"""Resources: from YAML or gRPC to messages that are known to be good, and their meaning.

Pure: no clock, no chance, no socket. Every function that refuses something names every fault.
"""

from control.model import durations
from control.model.bundle import check_documents, unimplemented
from control.model.defaults import (
    LATENCY_METRICS,
    METRICS,
    bad_event_kinds,
    candidates,
    experiment_with_defaults,
    measured_names,
    metric_names,
    resolved,
    shadow_at,
    slow_after,
    split_at,
    target_with_defaults,
)
from control.model.documents import API_VERSION, Document, Kind, load_yaml, read_yaml
from control.model.experiments import validate_experiment
from control.model.holdouts import check_held_salts, validate_holdout
from control.model.layers import layer_name, layer_order, reserved, same_unit
from control.model.metrics import (
    BUILT_IN,
    Definition,
    KnownMetrics,
    definition,
    find_metric,
    metric_with_defaults,
    spec_of,
    validate_metric,
)
from control.model.names import ResourceName, holdout_name, is_label, is_metric, parse_name
from control.model.render import document_of, plain, to_yaml
from control.model.rules import check_labels
from control.model.targets import check_rivals, validate_target
from control.model.unimplemented import unimplemented_experiment
from control.model.violations import Feature, InvalidDocument, Violation

__all__ = [
    "API_VERSION",
    "BUILT_IN",
    "LATENCY_METRICS",
    "METRICS",
    "Definition",
    "Document",
    "Feature",
    "InvalidDocument",
    "Kind",
    "KnownMetrics",
    "ResourceName",
    "Violation",
    "bad_event_kinds",
    "candidates",
    "check_documents",
    "check_held_salts",
    "check_labels",
    "check_rivals",
    "definition",
    "document_of",
    "durations",
    "experiment_with_defaults",
    "find_metric",
    "holdout_name",
    "is_label",
    "is_metric",
    "layer_name",
    "layer_order",
    "load_yaml",
    "measured_names",
    "metric_names",
    "metric_with_defaults",
    "parse_name",
    "plain",
    "read_yaml",
    "reserved",
    "resolved",
    "same_unit",
    "shadow_at",
    "slow_after",
    "spec_of",
    "split_at",
    "target_with_defaults",
    "to_yaml",
    "unimplemented",
    "unimplemented_experiment",
    "validate_experiment",
    "validate_holdout",
    "validate_metric",
    "validate_target",
]
