"""What makes an experiment servable, and every reason why one is not.

Owns the rules that one ExperimentPlan can break alone; `snapshotcheck` has those between several.
Refuses with a field path, the value and the rule.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final

from sidecar.predicatecheck import predicate_violations
from sidecar.predicates import stratum_test
from sidecar.violations import (
    PRINTABLE,
    TOKEN,
    VISIBLE,
    Violation,
    gap,
    header_violations,
    name_violations,
    range_violations,
    repeated_names,
    violation,
)
from turnout.contract import (
    BUCKET_COUNT,
    HEADER_PARAMETER_PREFIX,
    LATENCY_THRESHOLDS_MAX,
    LAYER_MODELS,
    STRATA_MAX,
    VARIANTS_MAX,
)
from turnout.v1alpha1.common_pb2 import (
    BAD_EVENT_KIND_SLOW,
    BAD_EVENT_KIND_UNSPECIFIED,
    BadEventKind,
    JwtClaim,
    NoUnit,
    Session,
    Unit,
    Upstream,
)
from turnout.v1alpha1.snapshot_pb2 import (
    ClusterPlan,
    ExperimentPlan,
    HoldoutPlan,
    Override,
    ShadowPlan,
    VariantPlan,
)

PARAMETERS_MAX: Final = 16
PARAMETER_KEY_BYTES_MAX: Final = 48
PARAMETER_VALUE_BYTES_MAX: Final = 256
CLUSTER_NAME_BYTES_MAX: Final = 256
SALT_BYTES_MAX: Final = 128
OVERRIDE_UNITS_MAX: Final = 1_024
OVERRIDE_UNIT_BYTES_MAX: Final = 256
COOKIE_BYTES_MAX: Final = 64
CLAIM_BYTES_MAX: Final = 128
QUERY_PARAMETER_BYTES_MAX: Final = 64
MAX_AGE_S: Final = (60, 8760 * 3600)
WARM_UP_MAX_NS: Final = 3600 * 1_000_000_000

_ADDRESS: Final = re.compile(r"([0-9A-Za-z_.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})\Z")
_UNITS: Final = ("header", "cookie", "random", "query_parameter")
_UNIT_MESSAGES: Final = ("jwt_claim", "session")


def experiment_violations(path: str, experiment: ExperimentPlan) -> list[Violation]:
    """Everything that is wrong with one experiment, looked at alone."""
    return list(_experiment(path, experiment))


def _experiment(path: str, experiment: ExperimentPlan) -> Iterator[Violation]:
    yield from name_violations(f"{path}.name", experiment.name)
    if experiment.epoch < 1:
        yield violation(f"{path}.epoch", experiment.epoch, "must be at least 1")
    if experiment.epoch_start_unix_ms <= 0:
        value = experiment.epoch_start_unix_ms
        yield violation(f"{path}.epoch_start_unix_ms", value, "must be above 0")
    yield from _unit(f"{path}.unit", experiment.unit)
    yield from _layer(path, experiment)
    if experiment.HasField("segment"):
        here = f"{path}.segment"
        yield from predicate_violations(here, experiment.segment, salt=experiment.salt)
    yield from _strata(f"{path}.strata", experiment)
    yield from _salt(f"{path}.salt", experiment.salt)
    yield from _variants(path, experiment)
    if experiment.HasField("shadow"):
        yield from _shadow(f"{path}.shadow", experiment)
    yield from _kinds(path, experiment)
    yield from _measures(path, experiment)
    if experiment.HasField("holdout"):
        yield from _holdout(f"{path}.holdout", experiment.holdout)
    names = {variant.name for variant in experiment.variants}
    yield from _overrides(f"{path}.overrides", experiment.overrides, names)


def _strata(path: str, experiment: ExperimentPlan) -> Iterator[Violation]:
    strata = experiment.strata
    if len(strata) > STRATA_MAX:
        yield violation(path, len(strata), f"at most {STRATA_MAX}")
    yield from repeated_names(path, (stratum.name for stratum in strata))
    for index, stratum in enumerate(strata):
        here = f"{path}[{index}]"
        yield from name_violations(f"{here}.name", stratum.name)
        yield from predicate_violations(here, stratum_test(stratum), salt=experiment.salt)


def _salt(path: str, salt: str) -> Iterator[Violation]:
    if not 0 < len(salt.encode()) <= SALT_BYTES_MAX:
        yield violation(path, salt, f"must have 1..{SALT_BYTES_MAX} bytes")


def _layer(path: str, experiment: ExperimentPlan) -> Iterator[Violation]:
    yield from name_violations(f"{path}.layer", experiment.layer)
    found = list(range_violations(f"{path}.layer_ranges", experiment.layer_ranges))
    yield from found
    ranges = experiment.layer_ranges
    part = bool(ranges) and not found and gap([ranges]) is not None
    if part or experiment.layer_salt:
        # The whole layer needs no salt: nobody is outside of it.
        yield from _salt(f"{path}.layer_salt", experiment.layer_salt)


def _unit(path: str, unit: Unit) -> Iterator[Violation]:
    found = [name for name in _UNITS if getattr(unit, name)]
    found += [name for name in _UNIT_MESSAGES if unit.HasField(name)]
    if len(found) != 1:
        rule = f"must have exactly one of {', '.join((*_UNITS, *_UNIT_MESSAGES))}"
        yield violation(path, ", ".join(found) or "none", rule)
    if unit.header:
        yield from header_violations(f"{path}.header", unit.header)
    if unit.cookie and not TOKEN.match(unit.cookie):
        yield violation(f"{path}.cookie", unit.cookie, "must be a token")
    if len(unit.query_parameter.encode()) > QUERY_PARAMETER_BYTES_MAX:
        rule = f"must have 1..{QUERY_PARAMETER_BYTES_MAX} bytes"
        yield violation(f"{path}.query_parameter", unit.query_parameter, rule)
    if unit.HasField("jwt_claim"):
        yield from _claim(f"{path}.jwt_claim", unit.jwt_claim)
    if unit.HasField("session"):
        yield from _session(f"{path}.session", unit.session)
    if unit.no_unit not in (NoUnit.NO_UNIT_UNSPECIFIED, NoUnit.NO_UNIT_SKIP):
        yield violation(f"{path}.no_unit", unit.no_unit, "only NO_UNIT_SKIP is implemented")


def _claim(path: str, claim: JwtClaim) -> Iterator[Violation]:
    if not 0 < len(claim.claim.encode()) <= CLAIM_BYTES_MAX or "" in claim.claim.split("."):
        rule = f"must be names with dots between them, 1..{CLAIM_BYTES_MAX} bytes"
        yield violation(f"{path}.claim", claim.claim, rule)
    if claim.unverified and claim.payload_in_metadata:
        rule = "must be absent: the claim is unverified, and so read from the token"
        yield violation(f"{path}.payload_in_metadata", claim.payload_in_metadata, rule)
    if not claim.unverified and not claim.payload_in_metadata:
        rule = "must be there unless the claim is unverified"
        yield violation(f"{path}.payload_in_metadata", "none", rule)
    if claim.header and not claim.unverified:
        rule = "must be absent unless the claim is unverified: jwt_authn knows the token's header"
        yield violation(f"{path}.header", claim.header, rule)
    elif claim.header:
        yield from header_violations(f"{path}.header", claim.header)


def _session(path: str, session: Session) -> Iterator[Violation]:
    name = session.cookie
    if name and (len(name) > COOKIE_BYTES_MAX or not TOKEN.match(name)):
        yield violation(f"{path}.cookie", name, f"must be a token of 1..{COOKIE_BYTES_MAX} bytes")
    if session.HasField("max_age"):
        low, high = MAX_AGE_S
        if not low <= session.max_age.ToSeconds() <= high:
            value = session.max_age.ToJsonString()
            yield violation(f"{path}.max_age", value, f"must be {low}s..{high}s")


def _variants(path: str, experiment: ExperimentPlan) -> Iterator[Violation]:
    variants = experiment.variants
    if not 2 <= len(variants) <= VARIANTS_MAX:
        yield violation(f"{path}.variants", len(variants), f"must have 2..{VARIANTS_MAX} entries")
    yield from repeated_names(f"{path}.variants", (variant.name for variant in variants))
    controls = [variant.name for variant in variants if variant.control]
    if len(controls) != 1 or not variants[0].control:
        rule = "the first variant, and no other, must be control"
        yield violation(f"{path}.variants", ", ".join(controls) or "none", rule)
    valid = True
    for index, variant in enumerate(variants):
        here = f"{path}.variants[{index}]"
        yield from name_violations(f"{here}.name", variant.name)
        if experiment.layer == LAYER_MODELS:
            yield from cluster_violations(f"{here}.cluster", variant.cluster)
        elif variant.HasField("cluster"):
            rule = f"must be absent: only the layer {LAYER_MODELS} routes"
            yield violation(f"{here}.cluster", variant.cluster.cluster, rule)
        yield from _parameters(f"{here}.parameters", variant)
        for found in range_violations(f"{here}.ranges", variant.ranges):
            valid = False
            yield found
    broken = gap([variant.ranges for variant in variants])
    if valid and broken is not None:
        rule = f"the ranges of all variants must tile [0, {BUCKET_COUNT})"
        yield violation(f"{path}.variants", f"broken at bucket {broken}", rule)


def cluster_violations(path: str, cluster: ClusterPlan) -> Iterator[Violation]:
    """What is wrong with a cluster."""
    name = cluster.cluster
    if len(name) > CLUSTER_NAME_BYTES_MAX or not VISIBLE.match(name):
        rule = f"must be 1..{CLUSTER_NAME_BYTES_MAX} visible ASCII characters"
        yield violation(f"{path}.cluster", name, rule)
    yield from _upstream(f"{path}.upstream", cluster.upstream)


def _upstream(path: str, upstream: Upstream) -> Iterator[Violation]:
    if bool(upstream.address) == bool(upstream.cluster):
        value = upstream.address or "none"
        yield violation(path, value, "must have either address or cluster")
    if upstream.address:
        match = _ADDRESS.match(upstream.address)
        if match is None or not 0 < int(match[2]) < 65536:
            yield violation(f"{path}.address", upstream.address, "must be HOST:PORT")
    health_path = upstream.health_path
    if health_path and not (health_path.startswith("/") and VISIBLE.match(health_path)):
        rule = "must begin with / and have visible ASCII only"
        yield violation(f"{path}.health_path", health_path, rule)


def _parameters(path: str, variant: VariantPlan) -> Iterator[Violation]:
    if len(variant.parameters) > PARAMETERS_MAX:
        yield violation(path, len(variant.parameters), f"at most {PARAMETERS_MAX}")
    seen: dict[str, str] = {}
    for key, value in sorted(variant.parameters.items()):
        here = f"{path}[{key}]"
        if len(key) > PARAMETER_KEY_BYTES_MAX or not TOKEN.match(key):
            rule = f"must be a token of at most {PARAMETER_KEY_BYTES_MAX} bytes"
            yield violation(here, key, rule)
        header = HEADER_PARAMETER_PREFIX + key.lower()
        if header in seen:
            yield violation(here, key, f"makes the same header as {seen[header]}: {header}")
        seen.setdefault(header, key)
        if len(value) > PARAMETER_VALUE_BYTES_MAX or not PRINTABLE.match(value):
            rule = f"must have at most {PARAMETER_VALUE_BYTES_MAX} visible ASCII characters"
            yield violation(here, repr(value), rule)


def _shadow(path: str, experiment: ExperimentPlan) -> Iterator[Violation]:
    shadow: ShadowPlan = experiment.shadow
    if experiment.layer != LAYER_MODELS:
        rule = f"must be absent: only the layer {LAYER_MODELS} has upstreams to copy to"
        yield violation(path, shadow.variant, rule)
    candidates = [variant.name for variant in experiment.variants if not variant.control]
    if shadow.variant not in candidates:
        yield violation(f"{path}.variant", shadow.variant, "must name a candidate")
    yield from range_violations(f"{path}.ranges", shadow.ranges)


def _kinds(path: str, experiment: ExperimentPlan) -> Iterator[Violation]:
    for index, kind in enumerate(experiment.kinds):
        if kind == BAD_EVENT_KIND_UNSPECIFIED or kind not in BadEventKind.values():
            yield violation(f"{path}.kinds[{index}]", kind, "must be a known kind of bad event")
    needs_limit = BAD_EVENT_KIND_SLOW in experiment.kinds
    if needs_limit and experiment.slow_after.ToNanoseconds() <= 0:
        value = experiment.slow_after.ToJsonString()
        yield violation(f"{path}.slow_after", value, "must be above 0s: SLOW is in kinds")


def _measures(path: str, experiment: ExperimentPlan) -> Iterator[Violation]:
    """What is left out of the comparison, and over which latencies requests are counted."""
    if not 0 <= experiment.warm_up.ToNanoseconds() <= WARM_UP_MAX_NS:
        value = experiment.warm_up.ToJsonString()
        yield violation(f"{path}.warm_up", value, "must be 0s to 3600s")
    thresholds = experiment.latency_thresholds
    if len(thresholds) > LATENCY_THRESHOLDS_MAX:
        rule = f"at most {LATENCY_THRESHOLDS_MAX}"
        yield violation(f"{path}.latency_thresholds", len(thresholds), rule)
        return
    before_ns = experiment.slow_after.ToNanoseconds()
    for index, threshold in enumerate(thresholds):
        if threshold.ToNanoseconds() <= before_ns:
            here, value = f"{path}.latency_thresholds[{index}]", threshold.ToJsonString()
            yield violation(here, value, "must be above slow_after and the one before it")
        before_ns = max(before_ns, threshold.ToNanoseconds())


def _holdout(path: str, holdout: HoldoutPlan) -> Iterator[Violation]:
    yield from _salt(f"{path}.salt", holdout.salt)
    yield from range_violations(f"{path}.ranges", holdout.ranges)


def _overrides(path: str, overrides: Sequence[Override], names: set[str]) -> Iterator[Violation]:
    if len(overrides) > OVERRIDE_UNITS_MAX:
        yield violation(path, len(overrides), f"at most {OVERRIDE_UNITS_MAX}")
    seen: set[str] = set()
    for index, override in enumerate(overrides):
        here = f"{path}[{index}]"
        if not 0 < len(override.unit.encode()) <= OVERRIDE_UNIT_BYTES_MAX:
            rule = f"must have 1..{OVERRIDE_UNIT_BYTES_MAX} bytes"
            yield violation(f"{here}.unit", override.unit, rule)
        if override.unit in seen:
            yield violation(f"{here}.unit", override.unit, "must be in one entry only")
        seen.add(override.unit)
        if override.variant not in names:
            yield violation(f"{here}.variant", override.variant, "must name a variant")
