"""Rules that targets and experiments share: upstreams, models, durations, numbers, texts.

Each function notes every fault below a path. A rule that the sidecar has too is at least as strict
here, so that what is accepted is never refused later.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterable, Mapping
from typing import Final

from google.protobuf.duration_pb2 import Duration

from control.model import durations
from control.model.names import LABEL_RULE, header_fault, is_label
from control.model.violations import Report, Violation, join
from turnout.contract import BUCKET_COUNT, CLUSTER_PREFIX
from turnout.v1alpha1.common_pb2 import Model, Upstream

LABELS_MAX: Final = 32
SHARE_MIN: Final = 1 / BUCKET_COUNT
LABEL_BYTES_MAX: Final = 63
MODEL_ID_BYTES_MAX: Final = 128
MODEL_VERSION_BYTES_MAX: Final = 64
CLUSTER_BYTES_MAX: Final = 255
HOST_BYTES_MAX: Final = 253
PATH_BYTES_MAX: Final = 1024

MILLISECOND: Final = Duration(nanos=1_000_000)
MINUTE: Final = Duration(seconds=60)
HOUR: Final = Duration(seconds=3600)
DAY: Final = Duration(seconds=86_400)
YEAR: Final = Duration(seconds=365 * 86_400)
ZERO: Final = Duration()

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_PATH: Final = re.compile(r"/[\x21-\x7e]*")
_FILE: Final = re.compile(r"/[\x20-\x7e]+")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_SALT: Final = re.compile(r"[\x20-\x7e]{1,64}")


def check_label(report: Report, path: str, value: str) -> None:
    """A DNS label."""
    if not is_label(value):
        report.add(path, value, f"must be {LABEL_RULE}")


def check_labels(labels: Mapping[str, str], path: str = "labels") -> list[Violation]:
    """Every fault of a resource's labels."""
    report = Report()
    if len(labels) > LABELS_MAX:
        report.add(path, f"{len(labels)} entries", f"at most {LABELS_MAX}")
        return report.violations
    for key, value in sorted(labels.items()):
        check_text(report, join(path, key), key, LABEL_BYTES_MAX)
        check_text(report, join(path, key), value, LABEL_BYTES_MAX, empty=True)
    return report.violations


def check_text(report: Report, path: str, value: str, limit: int, *, empty: bool = False) -> None:
    """Text of at most `limit` bytes without control characters."""
    if not value and not empty:
        report.add(path, value, f"required; 1 to {limit} bytes")
    elif len(value.encode()) > limit:
        report.add(path, value, f"at most {limit} bytes, has {len(value.encode())}")
    elif _CONTROL.search(value):
        report.add(path, value, "must not have control characters")


def check_header(report: Report, path: str, name: str) -> None:
    """A request header that may be read."""
    fault = header_fault(name)
    if fault is not None:
        report.add(path, name, fault)


def check_cookie(report: Report, path: str, name: str) -> None:
    """A cookie's name."""
    if not _TOKEN.fullmatch(name):
        report.add(path, name, "must be a cookie name (RFC 6265 token), 1 to 64")


def check_salt(report: Report, path: str, salt: str) -> None:
    """A salt of a hash."""
    if not _SALT.fullmatch(salt):
        report.add(path, salt, "must be 1 to 64 printable ASCII characters")


def check_unique(report: Report, path: str, values: Iterable[str], name: str = "") -> None:
    """No value twice."""
    seen: set[str] = set()
    for index, value in enumerate(values):
        if value in seen:
            report.add(f"{path}[{index}]{name}", value, "is there twice")
        seen.add(value)


def check_number(
    report: Report,
    path: str,
    value: float,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> bool:
    """A finite number within bounds; True when it is."""
    inside = math.isfinite(value) and low <= value <= high
    if inside and not (open_low and value == low) and not (open_high and value == high):
        return True
    left, right = "above" if open_low else "at least", "below" if open_high else "at most"
    report.add(path, value, f"must be {left} {low:g} and {right} {high:g}")
    return False


def check_duration(
    report: Report,
    path: str,
    value: Duration,
    low: Duration,
    high: Duration,
    *,
    open_low: bool = False,
) -> bool:
    """A duration within bounds; True when it is."""
    total = value.seconds * 10**9 + value.nanos
    least, most = (bound.seconds * 10**9 + bound.nanos for bound in (low, high))
    valid = 0 <= value.nanos < 10**9 or (value.seconds <= 0 and -(10**9) < value.nanos <= 0)
    if valid and least <= total <= most and not (open_low and total == least):
        return True
    left = "above" if open_low else "at least"
    shown = durations.text(value) if valid else f"{value.seconds} s and {value.nanos} ns"
    report.add(
        path, shown, f"must be {left} {durations.text(low)} and at most {durations.text(high)}"
    )
    return False


# -- Models and upstreams -------------------------------------------------------------------------


def check_model(report: Report, path: str, model: Model) -> None:
    """A model's identity."""
    check_text(report, f"{path}.id", model.id, MODEL_ID_BYTES_MAX)
    check_text(report, f"{path}.version", model.version, MODEL_VERSION_BYTES_MAX)


def check_upstream(report: Report, path: str, upstream: Upstream) -> None:
    """Where a model is served: an address with its settings, or a cluster that Envoy has."""
    if bool(upstream.address) == bool(upstream.cluster):
        value = "both" if upstream.address else "neither"
        report.add(path, value, "must have exactly one of address, cluster")
    if upstream.address:
        fault = address_fault(upstream.address)
        if fault is not None:
            report.add(f"{path}.address", upstream.address, fault)
    if upstream.cluster:
        _check_cluster(report, path, upstream)
    if upstream.health_path:
        check_path(report, f"{path}.healthPath", upstream.health_path)
    if upstream.HasField("tls"):
        if not _is_host_name(upstream.tls.sni):
            rule = "required; a host name, which the certificate must carry"
            report.add(f"{path}.tls.sni", upstream.tls.sni, rule)
        if upstream.tls.ca and not _FILE.fullmatch(upstream.tls.ca):
            report.add(f"{path}.tls.ca", upstream.tls.ca, "must be an absolute path, in ASCII")


def _check_cluster(report: Report, path: str, upstream: Upstream) -> None:
    name = upstream.cluster
    if len(name) > CLUSTER_BYTES_MAX or not _VISIBLE.fullmatch(name):
        rule = f"must be 1 to {CLUSTER_BYTES_MAX} visible ASCII characters"
        report.add(f"{path}.cluster", name, rule)
    if name.startswith((CLUSTER_PREFIX, "turnout_")):
        report.add(f"{path}.cluster", name, "must not begin like the clusters that Turnout makes")
    for field, given in (
        ("http2", upstream.http2),
        ("tls", upstream.HasField("tls")),
        ("healthPath", upstream.health_path),
    ):
        if given:
            report.add(f"{path}.{field}", "set", "is the existing cluster's own; leave it out")


def check_share(report: Report, path: str, value: float, high: float) -> None:
    """A share of units: none, or one bucket at least; less would be none without a word."""
    if check_number(report, path, value, 0, high) and 0 < value < SHARE_MIN:
        report.add(path, value, f"must be 0, or at least {SHARE_MIN:g}: one of {BUCKET_COUNT:,}")


def check_path(report: Report, path: str, value: str) -> None:
    """A URL path without query and fragment."""
    if not _PATH.fullmatch(value) or "?" in value or "#" in value:
        rule = "must begin with / and be visible ASCII without ? and #"
        report.add(path, value, rule)
    elif len(value) > PATH_BYTES_MAX:
        report.add(path, value, f"at most {PATH_BYTES_MAX} bytes, has {len(value)}")


def address_fault(address: str) -> str | None:
    """The rule that a HOST:PORT breaks, or None."""
    host, colon, port = address.rpartition(":")
    rule = "must be HOST:PORT (a DNS name, IPv4, or [IPv6])"
    if not colon:
        return rule
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65_536):
        return "must end with a port of 1 to 65535"
    if host.startswith("[") and host.endswith("]"):
        return None if _is_ip(host[1:-1], 6) else "must have an IPv6 address in the brackets"
    if re.fullmatch(r"[0-9.]+", host):
        return None if _is_ip(host, 4) else "must have an IPv4 address of four numbers"
    return None if _is_host_name(host) else rule


def _is_host_name(text: str) -> bool:
    labels = text.removesuffix(".").split(".")
    return len(text) <= HOST_BYTES_MAX and all(_HOST_NAME.fullmatch(label) for label in labels)


def _is_ip(text: str, version: int) -> bool:
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return False
    return parsed.version == version and "%" not in text


def is_host_pattern(text: str) -> bool:
    """True for "*", a host name, "*.suffix" and "[IPv6]"; a port is ignored and so never given."""
    if text == "*":
        return True
    if text.startswith("[") and text.endswith("]"):
        return _is_ip(text[1:-1], 6)
    return text == text.lower() and _is_host_name(text.removeprefix("*."))
