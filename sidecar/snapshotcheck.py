"""What makes a snapshot servable, and every reason why one is not.

The control plane validates before it sends; this is the other half of that pair, because Envoy
answers 500 for a header value with a control character even where the filter fails open. Owns all
rules of the sidecar; refuses with a field path, the value and the rule, and never stops at the
first violation.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from turnout.contract import (
    BUCKET_COUNT,
    HEADER_PARAMETER_PREFIX,
    HEADER_STAMP,
    HEADER_VARIANT,
    LAYER_MODELS,
    SNAPSHOT_FORMAT,
    VARIANTS_MAX,
)
from turnout.v1alpha1.common_pb2 import (
    BAD_EVENT_KIND_SLOW,
    BAD_EVENT_KIND_UNSPECIFIED,
    BadEventKind,
    NoUnit,
    Predicate,
    Unit,
    Upstream,
)
from turnout.v1alpha1.snapshot_pb2 import (
    BucketRange,
    ClusterPlan,
    ExperimentPlan,
    ShadowPlan,
    Snapshot,
    TargetPlan,
    VariantPlan,
)

PREDICATE_DEPTH_MAX: Final = 8
PREDICATE_LEAVES_MAX: Final = 64
PREDICATE_VALUES_MAX: Final = 256
PREDICATE_VALUE_BYTES_MAX: Final = 256
PARAMETERS_MAX: Final = 16
PARAMETER_KEY_BYTES_MAX: Final = 48
PARAMETER_VALUE_BYTES_MAX: Final = 256
HEADER_NAME_BYTES_MAX: Final = 64
CLUSTER_NAME_BYTES_MAX: Final = 256
SALT_BYTES_MAX: Final = 128
HOSTS_MAX: Final = 32
VALUE_SHOWN_MAX: Final = 80  # characters of an offending value that a violation repeats

# Names are stamped with ';' and ',' between them: this alphabet holds neither.
_NAME: Final = re.compile(r"[a-z0-9-]{1,63}\Z")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110 section 5.6.2
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+\Z")
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+\Z")
_PRINTABLE: Final = re.compile(r"[\x20-\x7e]*\Z")
_HOST: Final = re.compile(r"(\*|(\*\.)?[0-9A-Za-z_.-]+|\[[0-9A-Fa-f:.]+\])\Z")
_ADDRESS: Final = re.compile(r"([0-9A-Za-z_.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})\Z")
_OURS: Final = (HEADER_VARIANT, HEADER_STAMP)
_OURS_PREFIX: Final = "x-turnout-"


class Violation(NamedTuple):
    """One rule that one field breaks."""

    field: str  # path, e.g. experiments[0].variants[1].name
    value: str  # as given, shortened to VALUE_SHOWN_MAX characters
    rule: str  # what must hold


class InvalidSnapshot(ValueError):
    """A snapshot that must not be served; the plan that served before serves on."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(f"{v.field} = {v.value!r}: {v.rule}" for v in self.violations))


def validate(snapshot: Snapshot) -> list[Violation]:
    """Every violation of a snapshot; empty when it can be served."""
    return list(_snapshot(snapshot))


def _violation(field: str, value: object, rule: str) -> Violation:
    return Violation(field, str(value)[:VALUE_SHOWN_MAX], rule)


def _snapshot(snapshot: Snapshot) -> Iterator[Violation]:
    if snapshot.format != SNAPSHOT_FORMAT:
        yield _violation("format", snapshot.format, f"must be {SNAPSHOT_FORMAT}")
    yield from _name("tenant", snapshot.tenant)
    yield from _unique("targets", (target.name for target in snapshot.targets))
    for index, target in enumerate(snapshot.targets):
        yield from _target(f"targets[{index}]", target)
    yield from _unique("experiments", (experiment.name for experiment in snapshot.experiments))
    targets = {target.name for target in snapshot.targets}
    taken: dict[str, str] = {}
    for index, experiment in enumerate(snapshot.experiments):
        path = f"experiments[{index}]"
        yield from _experiment(path, experiment)
        if experiment.target not in targets:
            yield _violation(
                f"{path}.target", experiment.target, "must name a target of this snapshot"
            )
        elif experiment.target in taken:
            rule = f"has experiment {taken[experiment.target]}, which reserves the whole layer"
            yield _violation(f"{path}.target", experiment.target, rule)
        taken.setdefault(experiment.target, experiment.name)
    for index, tombstone in enumerate(snapshot.tombstones):
        yield from _name(f"tombstones[{index}].experiment", tombstone.experiment)


def _unique(path: str, names: Iterable[str]) -> Iterator[Violation]:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            yield _violation(f"{path}[{index}].name", name, "must be unique")
        seen.add(name)


def _name(path: str, name: str) -> Iterator[Violation]:
    if not _NAME.match(name):
        yield _violation(path, name, "must be 1..63 of a-z 0-9 -")


# -- Targets --------------------------------------------------------------------------------------


def _target(path: str, target: TargetPlan) -> Iterator[Violation]:
    yield from _name(f"{path}.name", target.name)
    if len(target.hosts) > HOSTS_MAX:
        yield _violation(f"{path}.hosts", len(target.hosts), f"at most {HOSTS_MAX}")
    for index, host in enumerate(target.hosts):
        if not _HOST.match(host):
            rule = 'must be a host without port, "*.suffix" or "*"'
            yield _violation(f"{path}.hosts[{index}]", host, rule)
    prefix = target.path_prefix
    if prefix and not (prefix.startswith("/") and _VISIBLE.match(prefix)):
        rule = "must begin with / and have visible ASCII only"
        yield _violation(f"{path}.path_prefix", prefix, rule)
    if "?" in prefix or "#" in prefix:
        yield _violation(f"{path}.path_prefix", prefix, "must have neither query nor fragment")
    for index, method in enumerate(target.methods):
        if not _TOKEN.match(method):
            yield _violation(f"{path}.methods[{index}]", method, "must be an HTTP token")
    for index, predicate in enumerate(target.headers):
        yield from _predicate(f"{path}.headers[{index}]", predicate)
    yield from _cluster(f"{path}.baseline", target.baseline)
    if target.HasField("timeout") and target.timeout.ToNanoseconds() <= 0:
        yield _violation(f"{path}.timeout", target.timeout.ToJsonString(), "must be above 0s")


def _cluster(path: str, cluster: ClusterPlan) -> Iterator[Violation]:
    name = cluster.cluster
    if len(name) > CLUSTER_NAME_BYTES_MAX or not _VISIBLE.match(name):
        rule = f"must be 1..{CLUSTER_NAME_BYTES_MAX} visible ASCII characters"
        yield _violation(f"{path}.cluster", name, rule)
    yield from _upstream(f"{path}.upstream", cluster.upstream)


def _upstream(path: str, upstream: Upstream) -> Iterator[Violation]:
    if bool(upstream.address) == bool(upstream.cluster):
        value = upstream.address or "none"
        yield _violation(path, value, "must have either address or cluster")
    if upstream.address:
        match = _ADDRESS.match(upstream.address)
        if match is None or not 0 < int(match[2]) < 65536:
            yield _violation(f"{path}.address", upstream.address, "must be HOST:PORT")
    health_path = upstream.health_path
    if health_path and not (health_path.startswith("/") and _VISIBLE.match(health_path)):
        rule = "must begin with / and have visible ASCII only"
        yield _violation(f"{path}.health_path", health_path, rule)


# -- Experiments ----------------------------------------------------------------------------------


def _experiment(path: str, experiment: ExperimentPlan) -> Iterator[Violation]:
    yield from _name(f"{path}.name", experiment.name)
    if experiment.epoch < 1:
        yield _violation(f"{path}.epoch", experiment.epoch, "must be at least 1")
    if experiment.epoch_start_unix_ms <= 0:
        value = experiment.epoch_start_unix_ms
        yield _violation(f"{path}.epoch_start_unix_ms", value, "must be above 0")
    yield from _unit(f"{path}.unit", experiment.unit)
    yield from _layer(path, experiment)
    if experiment.HasField("segment"):
        yield from _predicate(f"{path}.segment", experiment.segment)
    if experiment.strata:
        yield _violation(f"{path}.strata", len(experiment.strata), "is not implemented")
    if not 0 < len(experiment.salt.encode()) <= SALT_BYTES_MAX:
        yield _violation(f"{path}.salt", experiment.salt, f"must have 1..{SALT_BYTES_MAX} bytes")
    yield from _variants(path, experiment)
    if experiment.HasField("shadow"):
        yield from _shadow(f"{path}.shadow", experiment.shadow, experiment.variants)
    yield from _kinds(path, experiment)


def _layer(path: str, experiment: ExperimentPlan) -> Iterator[Violation]:
    if experiment.layer != LAYER_MODELS:
        rule = f"only {LAYER_MODELS} is implemented"
        yield _violation(f"{path}.layer", experiment.layer, rule)
    if experiment.layer_ranges and _gap([experiment.layer_ranges]) is not None:
        rule = "must be the whole layer; a part of it is not implemented"
        yield _violation(f"{path}.layer_ranges", _shown(experiment.layer_ranges), rule)


def _unit(path: str, unit: Unit) -> Iterator[Violation]:
    for name, given in (
        ("jwt_claim", unit.HasField("jwt_claim")),
        ("session", unit.HasField("session")),
        ("query_parameter", bool(unit.query_parameter)),
    ):
        if given:
            yield _violation(f"{path}.{name}", "set", "is not implemented")
    found = [name for name in ("header", "cookie", "random") if getattr(unit, name)]
    if len(found) != 1:
        rule = "must have exactly one of header, cookie, random"
        yield _violation(path, ", ".join(found) or "none", rule)
    if unit.header:
        yield from _input_header(f"{path}.header", unit.header)
    if unit.cookie and not _TOKEN.match(unit.cookie):
        yield _violation(f"{path}.cookie", unit.cookie, "must be a token")
    if unit.no_unit not in (NoUnit.NO_UNIT_UNSPECIFIED, NoUnit.NO_UNIT_SKIP):
        yield _violation(f"{path}.no_unit", unit.no_unit, "only NO_UNIT_SKIP is implemented")


def _variants(path: str, experiment: ExperimentPlan) -> Iterator[Violation]:
    variants = experiment.variants
    if not 2 <= len(variants) <= VARIANTS_MAX:
        yield _violation(f"{path}.variants", len(variants), f"must have 2..{VARIANTS_MAX} entries")
    yield from _unique(f"{path}.variants", (variant.name for variant in variants))
    controls = [variant.name for variant in variants if variant.control]
    if len(controls) != 1 or not variants[0].control:
        rule = "the first variant, and no other, must be control"
        yield _violation(f"{path}.variants", ", ".join(controls) or "none", rule)
    valid = True
    for index, variant in enumerate(variants):
        here = f"{path}.variants[{index}]"
        yield from _name(f"{here}.name", variant.name)
        yield from _cluster(f"{here}.cluster", variant.cluster)
        yield from _parameters(f"{here}.parameters", variant)
        for violation in _ranges(f"{here}.ranges", variant.ranges):
            valid = False
            yield violation
    gap = _gap([variant.ranges for variant in variants])
    if valid and gap is not None:
        rule = f"the ranges of all variants must tile [0, {BUCKET_COUNT})"
        yield _violation(f"{path}.variants", f"broken at bucket {gap}", rule)


def _parameters(path: str, variant: VariantPlan) -> Iterator[Violation]:
    if len(variant.parameters) > PARAMETERS_MAX:
        yield _violation(path, len(variant.parameters), f"at most {PARAMETERS_MAX}")
    seen: dict[str, str] = {}
    for key, value in sorted(variant.parameters.items()):
        here = f"{path}[{key}]"
        if len(key) > PARAMETER_KEY_BYTES_MAX or not _TOKEN.match(key):
            rule = f"must be a token of at most {PARAMETER_KEY_BYTES_MAX} bytes"
            yield _violation(here, key, rule)
        header = HEADER_PARAMETER_PREFIX + key.lower()
        if header in seen:
            yield _violation(here, key, f"makes the same header as {seen[header]}: {header}")
        seen.setdefault(header, key)
        if len(value) > PARAMETER_VALUE_BYTES_MAX or not _PRINTABLE.match(value):
            rule = f"must have at most {PARAMETER_VALUE_BYTES_MAX} visible ASCII characters"
            yield _violation(here, repr(value), rule)


def _shadow(path: str, shadow: ShadowPlan, variants: Sequence[VariantPlan]) -> Iterator[Violation]:
    candidates = [variant.name for variant in variants if not variant.control]
    if shadow.variant not in candidates:
        yield _violation(f"{path}.variant", shadow.variant, "must name a candidate")
    yield from _ranges(f"{path}.ranges", shadow.ranges)


def _kinds(path: str, experiment: ExperimentPlan) -> Iterator[Violation]:
    for index, kind in enumerate(experiment.kinds):
        if kind == BAD_EVENT_KIND_UNSPECIFIED or kind not in BadEventKind.values():
            yield _violation(f"{path}.kinds[{index}]", kind, "must be a known kind of bad event")
    needs_limit = BAD_EVENT_KIND_SLOW in experiment.kinds
    if needs_limit and experiment.slow_after.ToNanoseconds() <= 0:
        value = experiment.slow_after.ToJsonString()
        yield _violation(f"{path}.slow_after", value, "must be above 0s: SLOW is in kinds")


# -- Ranges ---------------------------------------------------------------------------------------


def _ranges(path: str, ranges: Sequence[BucketRange]) -> Iterator[Violation]:
    end_before = 0
    for index, part in enumerate(ranges):
        shown = f"[{part.start}, {part.end})"
        if not part.start < part.end <= BUCKET_COUNT:
            rule = f"must have 0 <= start < end <= {BUCKET_COUNT}"
            yield _violation(f"{path}[{index}]", shown, rule)
        elif part.start < end_before:
            yield _violation(f"{path}[{index}]", shown, "must follow the range before it")
        end_before = max(end_before, part.end)


def _gap(owners: Sequence[Sequence[BucketRange]]) -> int | None:
    """First bucket that no range or two ranges own; None when the ranges tile all buckets."""
    position = 0
    for start, end in sorted((part.start, part.end) for ranges in owners for part in ranges):
        if start != position:
            return min(start, position)
        position = end
    return None if position == BUCKET_COUNT else position


def _shown(ranges: Sequence[BucketRange]) -> str:
    return ", ".join(f"[{part.start}, {part.end})" for part in ranges)


# -- Predicates -----------------------------------------------------------------------------------


def _predicate(path: str, predicate: Predicate) -> Iterator[Violation]:
    leaves = _leaves(predicate)
    if leaves > PREDICATE_LEAVES_MAX:
        yield _violation(path, leaves, f"at most {PREDICATE_LEAVES_MAX} leaves")
    yield from _predicate_node(path, predicate, 1)


def _leaves(predicate: Predicate) -> int:
    parts = [*predicate.all, *predicate.any]
    if predicate.HasField("negated"):
        parts.append(predicate.negated)
    return sum(map(_leaves, parts)) if parts else 1


def _predicate_node(path: str, predicate: Predicate, depth: int) -> Iterator[Violation]:
    if depth > PREDICATE_DEPTH_MAX:
        yield _violation(path, depth, f"at most {PREDICATE_DEPTH_MAX} levels")
        return
    shapes = [name for name in ("header", "all", "any") if getattr(predicate, name)]
    if predicate.HasField("negated"):
        shapes.append("not")
    if len(shapes) != 1:
        rule = "must have exactly one of header, all, any, not"
        yield _violation(path, ", ".join(shapes) or "none", rule)
    if predicate.header or not shapes:
        yield from _predicate_leaf(path, predicate)
    for name in ("all", "any"):
        for index, part in enumerate(getattr(predicate, name)):
            yield from _predicate_node(f"{path}.{name}[{index}]", part, depth + 1)
    if predicate.HasField("negated"):
        yield from _predicate_node(f"{path}.not", predicate.negated, depth + 1)


def _predicate_leaf(path: str, predicate: Predicate) -> Iterator[Violation]:
    if predicate.header:
        yield from _input_header(f"{path}.header", predicate.header)
    tests = [name for name in ("equals", "prefix", "present") if predicate.HasField(name)]
    if predicate.in_values:
        tests.append("in")
    if predicate.header and len(tests) != 1:
        rule = "must have exactly one of equals, in, prefix, present"
        yield _violation(path, ", ".join(tests) or "none", rule)
    if len(predicate.in_values) > PREDICATE_VALUES_MAX:
        yield _violation(f"{path}.in", len(predicate.in_values), f"at most {PREDICATE_VALUES_MAX}")
    values = [(f"in[{index}]", value) for index, value in enumerate(predicate.in_values)]
    values += [("equals", predicate.equals), ("prefix", predicate.prefix)]
    for name, value in values:
        if len(value.encode()) > PREDICATE_VALUE_BYTES_MAX:
            rule = f"at most {PREDICATE_VALUE_BYTES_MAX} bytes"
            yield _violation(f"{path}.{name}", value, rule)
    if predicate.HasField("prefix") and not predicate.prefix:
        yield _violation(f"{path}.prefix", "", "must have 1 byte at least")


def _input_header(path: str, name: str) -> Iterator[Violation]:
    if len(name) > HEADER_NAME_BYTES_MAX or not _HEADER.match(name):
        rule = f"must be a lower-case header name of 1..{HEADER_NAME_BYTES_MAX} bytes"
        yield _violation(path, name, rule)
    # Envoy strips these from clients: a plan that reads one would read its own answers.
    if name in _OURS or name.startswith(_OURS_PREFIX):
        yield _violation(path, name, "must not be a header that Turnout sets")
