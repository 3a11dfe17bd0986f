"""Names: DNS labels, resource names, header names."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from turnout.contract import RESERVED_HEADER_PREFIXES, RESERVED_HEADERS

_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
LABEL_RULE: Final = "a DNS label: 1 to 63 of a-z 0-9 -, no - at either end"

_RESOURCE: Final = re.compile(r"tenants/([^/]+)/(targets|experiments|metrics)/([^/]+)")
# A built-in metric's, which has underscores.
_METRIC: Final = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")
_HOLDOUT: Final = re.compile(r"tenants/([^/]+)/holdout")
RESOURCE_RULE: Final = "tenants/{tenant}/KIND/{name}, KIND one of targets, experiments, metrics"

_HEADER: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}")
HEADER_RULE: Final = "a lower-case header name (RFC 9110 token) of 1 to 64 characters"


class ResourceName(NamedTuple):
    """Parts of a resource name; `collection` is "targets", "experiments" or "metrics"."""

    tenant: str
    collection: str
    name: str

    def __str__(self) -> str:
        """Render as tenants/{tenant}/{collection}/{name}."""
        return f"tenants/{self.tenant}/{self.collection}/{self.name}"


def is_label(text: str) -> bool:
    """True for a DNS label."""
    return _LABEL.fullmatch(text) is not None


def is_metric(text: str) -> bool:
    """True for what can be the id of a metric, built in or declared."""
    return _METRIC.fullmatch(text) is not None


def parse_name(text: str) -> ResourceName:
    """Split a resource name.

    Raises:
        ValueError: It is not `RESOURCE_RULE`, or a part is not a DNS label.
    """
    match = _RESOURCE.fullmatch(text)
    good = is_metric if match is not None and match[2] == "metrics" else is_label
    if match is None or not (is_label(match[1]) and good(match[3])):
        raise ValueError(f"{text!r} is not {RESOURCE_RULE}")
    return ResourceName(match[1], match[2], match[3])


def holdout_name(tenant: str) -> str:
    """The resource name of a tenant's holdout."""
    return f"tenants/{tenant}/holdout"


def tenant_of_holdout(text: str) -> str:
    """The tenant in the resource name of a holdout.

    Raises:
        ValueError: It is no such name.
    """
    match = _HOLDOUT.fullmatch(text)
    if match is None or not is_label(match[1]):
        raise ValueError(f"{text!r} is not tenants/{{tenant}}/holdout")
    return match[1]


def header_fault(name: str) -> str | None:
    """The rule that a header name breaks; None when requests may be read by it.

    Pseudo-headers are not readable by name here, and what Envoy takes from clients (`contract`'s
    reserved names) is never there to be read.
    """
    if name.startswith(":"):
        return "must not be a pseudo-header"
    if name == "host":
        return "must not be host: Envoy calls it :authority; match hosts on the target"
    if _HEADER.fullmatch(name) is None:
        return f"must be {HEADER_RULE}"
    if name in RESERVED_HEADERS or name.startswith(RESERVED_HEADER_PREFIXES):
        return "must not be a name that Turnout or Envoy reserves"
    return None
