"""What makes a snapshot servable, and every reason why one is not.

The control plane validates before it sends; this is the other half of that pair, because Envoy
answers 500 for a header value with a control character even where the filter fails open. Owns all
rules of the sidecar (those of one experiment in `experimentcheck`, of predicates in
`predicatecheck`); refuses with a field path, the value and the rule, and never stops at the first
violation. A large snapshot can be looked at in slices.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Final

from sidecar.experimentcheck import cluster_violations, experiment_violations
from sidecar.predicatecheck import predicate_violations
from sidecar.violations import (
    TOKEN,
    VISIBLE,
    InvalidSnapshot,
    Violation,
    name_violations,
    violation,
)
from turnout.contract import (
    BUCKET_COUNT,
    EXPERIMENTS_PER_TARGET_MAX,
    HEADER_PARAMETER_PREFIX,
    LAYERS_PER_TARGET_MAX,
    SNAPSHOT_FORMAT,
)
from turnout.v1alpha1.snapshot_pb2 import ExperimentPlan, Snapshot, TargetPlan

__all__ = [
    "InvalidSnapshot", "Violation", "experiment_violations", "relations", "target_violations",
    "validate",
]  # fmt: skip

HOSTS_MAX: Final = 32
MODEL_NAME_BYTES_MAX: Final = 128
MODEL_VERSION_BYTES_MAX: Final = 64
_SLICE: Final = 100  # experiments of which one slice looks at the names

_HOST: Final = re.compile(r"(\*|(\*\.)?[0-9A-Za-z_.-]+|\[[0-9A-Fa-f:.]+\])\Z")
_MODEL: Final = re.compile(r"[A-Za-z0-9._-]+\Z")

# An experiment and its place in the snapshot.
_Placed = tuple[int, ExperimentPlan]


def validate(snapshot: Snapshot) -> list[Violation]:
    """Every violation of a snapshot; empty when it can be served."""
    found = [one for some in relations(snapshot) for one in some]
    for index, target in enumerate(snapshot.targets):
        found += target_violations(f"targets[{index}]", target)
    for index, experiment in enumerate(snapshot.experiments):
        found += experiment_violations(f"experiments[{index}]", experiment)
    return found


def relations(snapshot: Snapshot) -> Iterator[list[Violation]]:
    """What is wrong with the whole and between its parts, in slices of some 0.2 ms."""
    found: list[Violation] = []
    if snapshot.format != SNAPSHOT_FORMAT:
        found.append(violation("format", snapshot.format, f"must be {SNAPSHOT_FORMAT}"))
    found += name_violations("tenant", snapshot.tenant)
    for index, tombstone in enumerate(snapshot.tombstones):
        found += name_violations(f"tombstones[{index}].experiment", tombstone.experiment)
    by_target: dict[str, list[_Placed]] = {}
    for index, target in enumerate(snapshot.targets):
        if target.name in by_target:
            found.append(violation(f"targets[{index}].name", target.name, "must be unique"))
        by_target[target.name] = []
        if index % _SLICE == 0:
            yield found
            found = []
    seen: set[str] = set()
    for index, experiment in enumerate(snapshot.experiments):
        if experiment.name in seen:
            here = f"experiments[{index}].name"
            found.append(violation(here, experiment.name, "must be unique"))
        seen.add(experiment.name)
        placed = by_target.get(experiment.target)
        if placed is None:
            rule = "must name a target of this snapshot"
            found.append(violation(f"experiments[{index}].target", experiment.target, rule))
        else:
            placed.append((index, experiment))
        if index % _SLICE == 0:
            yield found
            found = []
    yield found
    for placed in by_target.values():
        if len(placed) > 1:
            yield list(_on_one_target(placed))


def _on_one_target(placed: Sequence[_Placed]) -> Iterator[Violation]:
    layers: dict[str, list[_Placed]] = {}
    for index, experiment in placed:
        layers.setdefault(experiment.layer, []).append((index, experiment))
    last, one = placed[-1]
    if len(placed) > EXPERIMENTS_PER_TARGET_MAX:
        rule = f"at most {EXPERIMENTS_PER_TARGET_MAX} experiments of one target"
        yield violation(f"experiments[{last}].target", one.target, rule)
    if len(layers) > LAYERS_PER_TARGET_MAX:
        rule = f"at most {LAYERS_PER_TARGET_MAX} layers of one target"
        yield violation(f"experiments[{last}].layer", one.layer, rule)
    for members in layers.values():
        if len(members) > 1:
            yield from _in_one_layer(members)
    yield from _same_parameters(list(layers.values()))


def _in_one_layer(members: Sequence[_Placed]) -> Iterator[Violation]:
    first = members[0][1]
    taken: list[tuple[int, int, str]] = []
    for index, experiment in members:
        if experiment.layer_salt != first.layer_salt:
            here = f"experiments[{index}].layer_salt"
            rule = f"must be the same as of {first.name}, which is in the same layer"
            yield violation(here, experiment.layer_salt, rule)
        ranges = [(part.start, part.end) for part in experiment.layer_ranges]
        taken += ((*part, experiment.name) for part in ranges or [(0, BUCKET_COUNT)])
    end_before, owner = 0, ""
    places = {experiment.name: index for index, experiment in members}
    for start, end, name in sorted(taken):
        if start < end_before and name != owner:
            rule = f"must not overlap with the ranges of {owner}, which is in the same layer"
            yield violation(f"experiments[{places[name]}].layer_ranges", f"[{start}, {end})", rule)
        if end > end_before:
            end_before, owner = end, name


def _same_parameters(layers: Sequence[Sequence[_Placed]]) -> Iterator[Violation]:
    """A request has an assignment of each layer: none may overwrite another's parameters."""
    for one, other in combinations(layers, 2):
        keys = {key: experiment.name for _, experiment in one for key in _keys(experiment)}
        for index, experiment in other:
            for key in sorted(_keys(experiment) & keys.keys()):
                rule = f"makes the same header as one of {keys[key]}, which is in another layer"
                yield violation(f"experiments[{index}].variants", key, rule)


def _keys(experiment: ExperimentPlan) -> set[str]:
    return {
        HEADER_PARAMETER_PREFIX + key.lower()
        for variant in experiment.variants
        for key in variant.parameters
    }


# -- Targets --------------------------------------------------------------------------------------


def target_violations(path: str, target: TargetPlan) -> list[Violation]:
    """Everything that is wrong with one target, looked at alone."""
    return list(_target(path, target))


def _target(path: str, target: TargetPlan) -> Iterator[Violation]:
    yield from name_violations(f"{path}.name", target.name)
    if len(target.hosts) > HOSTS_MAX:
        yield violation(f"{path}.hosts", len(target.hosts), f"at most {HOSTS_MAX}")
    for index, host in enumerate(target.hosts):
        if not _HOST.match(host):
            rule = 'must be a host without port, "*.suffix" or "*"'
            yield violation(f"{path}.hosts[{index}]", host, rule)
    prefix = target.path_prefix
    if prefix and not (prefix.startswith("/") and VISIBLE.match(prefix)):
        rule = "must begin with / and have visible ASCII only"
        yield violation(f"{path}.path_prefix", prefix, rule)
    if "?" in prefix or "#" in prefix:
        yield violation(f"{path}.path_prefix", prefix, "must have neither query nor fragment")
    for index, method in enumerate(target.methods):
        if not TOKEN.match(method):
            yield violation(f"{path}.methods[{index}]", method, "must be an HTTP token")
    for index, predicate in enumerate(target.headers):
        yield from predicate_violations(f"{path}.headers[{index}]", predicate, routed=True)
    yield from _model(path, target)
    yield from cluster_violations(f"{path}.baseline", target.baseline)
    if target.HasField("timeout") and target.timeout.ToNanoseconds() <= 0:
        yield violation(f"{path}.timeout", target.timeout.ToJsonString(), "must be above 0s")


def _model(path: str, target: TargetPlan) -> Iterator[Violation]:
    for field, value, limit in (
        ("model_name", target.model_name, MODEL_NAME_BYTES_MAX),
        ("model_version", target.model_version, MODEL_VERSION_BYTES_MAX),
    ):
        if value and (len(value) > limit or not _MODEL.match(value)):
            rule = f"must be 1..{limit} of A-Z a-z 0-9 . _ -"
            yield violation(f"{path}.{field}", value, rule)
    if target.model_version and not target.model_name:
        yield violation(f"{path}.model_version", target.model_version, "needs a model_name")
