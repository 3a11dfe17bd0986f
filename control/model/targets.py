"""Rules about targets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from control.model.defaults import target_with_defaults
from control.model.predicates import Use, alternatives, check_predicate
from control.model.rules import (
    DAY,
    HOUR,
    MILLISECOND,
    MODEL_ID_BYTES_MAX,
    MODEL_VERSION_BYTES_MAX,
    ZERO,
    check_duration,
    check_label,
    check_model,
    check_path,
    check_unique,
    check_upstream,
    is_host_pattern,
)
from control.model.violations import Report, Violation
from turnout.contract import RESOURCE_BYTES_MAX
from turnout.v1alpha1.common_pb2 import Predicate
from turnout.v1alpha1.target_pb2 import RequestMatch, TargetSpec

HOSTS_MAX: Final = 32
METHODS_MAX: Final = 16
MATCH_HEADERS_MAX: Final = 16
# A target becomes one Envoy route for each way to satisfy its header predicates.
MATCH_ROUTES_MAX: Final = 64
KEEP_PREVIOUS_MAX: Final = type(DAY)(seconds=30 * DAY.seconds)

_METHOD: Final = re.compile(r"[A-Z][A-Z-]{0,31}")
# A part of a path as it is written: nothing in it is ever percent-encoded.
_MODEL: Final = re.compile(r"[A-Za-z0-9._-]+")


def validate_target(tenant: str, name: str, spec: TargetSpec) -> list[Violation]:
    """Every rule that a target breaks; empty when it may be stored.

    Args:
        tenant: Id of the tenant.
        name: Id of the target.
        spec: With or without defaults.
    """
    report = Report()
    check_label(report, "tenant", tenant)
    check_label(report, "name", name)
    if spec.ByteSize() > RESOURCE_BYTES_MAX:
        report.add("spec", f"{spec.ByteSize()} bytes", f"at most {RESOURCE_BYTES_MAX} bytes")
        return report.violations
    if not spec.HasField("match"):
        report.add("spec.match", "missing", "required; {} is any request")
    _check_match(report, "spec.match", spec.match)
    if spec.HasField("baseline") and spec.baseline.HasField("upstream"):
        check_upstream(report, "spec.baseline.upstream", spec.baseline.upstream)
    else:
        report.add("spec.baseline.upstream", "missing", "required; it serves what is not tried")
    if spec.baseline.HasField("model"):
        check_model(report, "spec.baseline.model", spec.baseline.model)
    if spec.HasField("timeout"):
        check_duration(report, "spec.timeout", spec.timeout, MILLISECOND, HOUR)
    if spec.HasField("keep_previous"):
        path = "spec.keepPrevious"
        check_duration(report, path, spec.keep_previous, ZERO, KEEP_PREVIOUS_MAX)
    return report.violations


# RFC 3986 section 6.2.2, as Envoy's normalize_path does it before it looks for a route.
_NEEDLESS: Final = r"%(?:2[dDeE]|3[0-9]|4[1-9a-fA-F]|5[0-9aAfF]|6[1-9a-fA-F]|7[0-9aAeE])"
_NORMAL: Final = re.compile(rf"(?!.*/\.\.?(?:/|$))(?!.*\\)(?!.*{_NEEDLESS}).*", re.DOTALL)


def check_rivals(name: str, spec: TargetSpec, rivals: Mapping[str, TargetSpec]) -> list[Violation]:
    """A violation when another target takes the same requests: one of them would get none.

    The same means, after defaults: a host in common, and equal path prefix, methods, headers and
    model.
    With any of these different the more specific target wins.

    Args:
        name: Id of the target.
        spec: With or without defaults.
        rivals: Other targets of the tenant by id; one called `name` is the target itself.
    """
    report = Report()
    if not spec.HasField("match"):
        return report.violations
    mine = target_with_defaults(spec).match
    for rival in sorted(rivals.keys() - {name}):
        theirs = target_with_defaults(rivals[rival]).match
        shared = [host for host in mine.hosts if host in theirs.hosts]
        if shared and _beyond_hosts(mine) == _beyond_hosts(theirs):
            shown = f"{shared[0]}{mine.path_prefix}"
            report.add("spec.match", shown, f'target "{rival}" already has this match')
            break
    return report.violations


def _beyond_hosts(match: RequestMatch) -> tuple[object, ...]:
    """What must hold besides the host; the order in which it is written does not matter."""
    headers = frozenset(_in_one_form(item) for item in match.headers)
    model = match.model_name, match.model_version
    return match.path_prefix, frozenset(match.methods), headers, model


def _in_one_form(predicate: Predicate) -> bytes:
    """The same bytes for what means the same: one value is `equals`, several have one order."""
    if predicate.HasField("negated"):
        return b"not " + _in_one_form(predicate.negated)
    for word, parts in ((b"all", predicate.all), (b"any", predicate.any)):
        forms = sorted({_in_one_form(part) for part in parts})
        if forms:
            return forms[0] if len(forms) == 1 else word + repr(forms).encode()
    one = Predicate()
    one.CopyFrom(predicate)
    values = sorted(set(one.in_values)) or ([one.equals] if one.HasField("equals") else [])
    if values:
        one.ClearField("equals")
        del one.in_values[:]
        one.in_values.extend(values)
    return one.SerializeToString(deterministic=True)


def _check_match(report: Report, path: str, match: RequestMatch) -> None:
    if len(match.hosts) > HOSTS_MAX:
        report.add(f"{path}.hosts", f"{len(match.hosts)} hosts", f"at most {HOSTS_MAX}")
    for index, host in enumerate(match.hosts[:HOSTS_MAX]):
        if not is_host_pattern(host):
            rule = 'must be "*", a lower-case host name without port, or "*.suffix"'
            report.add(f"{path}.hosts[{index}]", host, rule)
    check_unique(report, f"{path}.hosts", match.hosts[:HOSTS_MAX])
    if match.path_prefix:
        check_path(report, f"{path}.pathPrefix", match.path_prefix)
        if not _NORMAL.fullmatch(match.path_prefix):
            rule = "must be as Envoy normalizes it: no . or .. between slashes, no backslash, no "
            rule += "%-escape of a letter, a digit or one of -._~"
            report.add(f"{path}.pathPrefix", match.path_prefix, rule)
    if len(match.methods) > METHODS_MAX:
        report.add(f"{path}.methods", f"{len(match.methods)} methods", f"at most {METHODS_MAX}")
    for index, method in enumerate(match.methods[:METHODS_MAX]):
        if not _METHOD.fullmatch(method):
            report.add(f"{path}.methods[{index}]", method, "must be a method in upper case")
    check_unique(report, f"{path}.methods", match.methods[:METHODS_MAX])
    _check_model_match(report, path, match)
    if len(match.headers) > MATCH_HEADERS_MAX:
        value = f"{len(match.headers)} predicates"
        report.add(f"{path}.headers", value, f"at most {MATCH_HEADERS_MAX}")
        return
    faults = len(report.violations)
    for index, predicate in enumerate(match.headers):
        check_predicate(report, f"{path}.headers[{index}]", predicate, Use(target=True))
    if len(report.violations) == faults and alternatives(match.headers) > MATCH_ROUTES_MAX:
        rule = f"at most {MATCH_ROUTES_MAX} combinations: each is a route of Envoy's"
        report.add(f"{path}.headers", f"{alternatives(match.headers)} combinations", rule)


def _check_model_match(report: Report, path: str, match: RequestMatch) -> None:
    for field, value, limit in (
        ("modelName", match.model_name, MODEL_ID_BYTES_MAX),
        ("modelVersion", match.model_version, MODEL_VERSION_BYTES_MAX),
    ):
        if value and (len(value) > limit or not _MODEL.fullmatch(value)):
            rule = f"must be 1 to {limit} of A-Z a-z 0-9 . _ -"
            report.add(f"{path}.{field}", value, rule)
        elif value in (".", ".."):
            report.add(f"{path}.{field}", value, "must not be . or ..: no path keeps it")
    if match.model_version and not match.model_name:
        rule = "needs modelName: a version of which model?"
        report.add(f"{path}.modelVersion", match.model_version, rule)
