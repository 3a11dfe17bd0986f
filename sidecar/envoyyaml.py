"""Documents for Envoy, as YAML that Envoy's reader takes as it was meant.

Owns the spelling: types, durations, quotes. Refuses to know what a document is about.
"""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import yaml

TYPE: Final = "type.googleapis.com/"

Json = dict[str, Any]
# Each dumper folds long strings in its own way.
_UNFOLDED: Final = 1_000_000
_BARE: Final = re.compile(r"[a-z][a-z_]{3,}")


class Dumper(yaml.SafeDumper):
    """Quotes whatever Envoy's YAML reader could take for something else than a string.

    To it `n` and `on` are booleans (tried); names of fields stay bare because they are long words.
    """


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    bare = _BARE.fullmatch(text) and text not in ("true", "false", "null")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if bare else '"')


Dumper.add_representer(str, _string)

if TYPE_CHECKING:
    FastDumper = Dumper
else:
    # libyaml where PyYAML was built with it: the same bytes in half the time, and it lets other
    # threads in. Files of 300 experiments are written again at every gate.
    class FastDumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):
        """Dumper, in C."""

    FastDumper.add_representer(str, _string)


def dump(document: Mapping[str, Any]) -> str:
    """One document, its keys in the order given."""
    text: str = yaml.dump(
        dict(document), Dumper=FastDumper, sort_keys=False, width=_UNFOLDED, allow_unicode=False
    )
    return text


def resources(documents: Sequence[Json]) -> str:
    """A discovery response: what a watched file holds."""
    return dump({"resources": list(documents)})


def seconds(value: float) -> str:
    """A duration as Envoy writes it: "0.05s"."""
    return f"{value:.9f}".rstrip("0").rstrip(".") + "s"


def socket_address(host: str, port: int) -> Json:
    """An IP address or name with its port."""
    return {"socket_address": {"address": host, "port_value": port}}


def assignment(cluster: str, addresses: Sequence[Json]) -> Json:
    """One locality with one endpoint for each address."""
    endpoints = [{"endpoint": {"address": address}} for address in addresses]
    return {"cluster_name": cluster, "endpoints": [{"lb_endpoints": endpoints}]}


def is_ip(host: str) -> bool:
    """Whether the host is an address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
