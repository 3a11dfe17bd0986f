"""Traps of a file as a whole: its spelling, its watched directories, its admin."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Final

from sidecar.envoylint.config import Config
from sidecar.envoylint.finding import ERROR, WARNING, Hit, Needs, Rule

_BOOLEANS: Final = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false"})
# Fields of Envoy that hold a string wherever they occur.
_STRINGS: Final = (
    "id", "name", "cluster", "cluster_name", "service_name", "stat_prefix", "key", "exact",
    "prefix", "suffix", "contains", "zone", "region", "sub_zone", "log_name", "tag",
)  # fmt: skip


def _booleans(config: Config, _needs: Needs) -> Iterator[Hit]:
    for document in config.documents:
        for node in document.root.walk():
            named = [node.get(name) for name in _STRINGS]
            if node.get("key") is not None:
                named.append(node.get("value"))
            for value in (*named, *node.list_of("domains")):
                if value is not None and value.is_plain and value.text.lower() in _BOOLEANS:
                    yield Hit(value, f"{value.text} is a boolean to Envoy, not a string")


def _merge_keys(config: Config, _needs: Needs) -> Iterator[Hit]:
    for document in config.documents:
        for node in document.root.walk():
            for line in node.merge_keys():
                yield Hit(node, "Envoy does not know the merge key <<", line)


def _many(config: Config, _needs: Needs) -> Iterator[Hit]:
    for document in config.documents:
        if document.place > 0:
            yield Hit(document.root, "a second document of the file")


def _shared(config: Config, _needs: Needs) -> Iterator[Hit]:
    seen: dict[str, str] = {}
    for document in config.documents:
        for node in document.root.walk():
            source = node.get("path_config_source")
            if source is None or source.get("watched_directory", "path") is None:
                continue
            directory = source.word("watched_directory", "path").rstrip("/")
            path = source.word("path")
            if seen.setdefault(directory, path) != path:
                where = source.fields["watched_directory"]
                yield Hit(where, f"{seen[directory]} is watched in {directory} too")


def _no_admin(config: Config, _needs: Needs) -> Iterator[Hit]:
    for root in config.bootstraps if config.managers else []:
        if root.get("admin", "address") is None:
            yield Hit(root.get("admin") or root, "the bootstrap has no admin")


def _public_admin(config: Config, _needs: Needs) -> Iterator[Hit]:
    for root in config.bootstraps if config.managers else []:
        address = root.get("admin", "address", "socket_address", "address")
        if address is not None and not _is_loopback(address.text):
            yield Hit(address, f"admin listens on {address.text}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


RULES: Final = (
    Rule(
        "yaml-boolean",
        ERROR,
        "Envoy refuses the file, or reads another value than was meant.",
        'Quote it: "n".',
        _booleans,
    ),
    Rule(
        "yaml-merge",
        ERROR,
        "Envoy refuses the file: no such field '<<'. Plain anchors and aliases are fine.",
        "Write the merged fields out; `turnout envoy patch` does.",
        _merge_keys,
    ),
    Rule(
        "yaml-documents",
        ERROR,
        "Envoy reads the first document of a file and silently ignores the others.",
        "Put it into a file of its own.",
        _many,
    ),
    Rule(
        "shared-watch",
        WARNING,
        "Every file moved into a watched directory reloads all that watch it.",
        "Give each file a directory of its own: cds/, rds/, ecds/.",
        _shared,
    ),
    Rule(
        "admin-missing",
        WARNING,
        "Nobody can see when a candidate is healthy: experiments begin after a fixed second.",
        "Add `admin: {address: {pipe: {path: /run/turnout/admin}}}` and give it to the sidecar "
        "as --envoy-admin unix:/run/turnout/admin.",
        _no_admin,
    ),
    Rule(
        "admin-public",
        WARNING,
        "Whoever reaches it can stop this Envoy and read its configuration.",
        "Use a Unix socket (`pipe`) or 127.0.0.1.",
        _public_admin,
    ),
)
