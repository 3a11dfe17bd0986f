"""What there is in a user's files: connection managers, filters, routes, logs, clusters.

Owns finding them, and which of them are Turnout's business. Refuses to judge.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from sidecar.envoylint.document import Document, Node
from turnout import contract

_GRPC_LOG: Final = "HttpGrpcAccessLogConfig"
_EXT_PROC: Final = "ExternalProcessor"
_WORKERS: Final = contract.WORKERS_CLUSTER
_LOG: Final = ("typed_config", "common_config")


class HttpFilter(NamedTuple):
    """One entry of a manager's http_filters.

    Attributes:
        name: Its name.
        node: The entry.
        type: Message name of its configuration, as far as the file says.
        config: The configuration; None when it comes from elsewhere.
        dynamic: It comes by extension discovery (ECDS).
    """

    name: str
    node: Node
    type: str
    config: Node | None
    dynamic: bool


class Manager(NamedTuple):
    """One HTTP connection manager with its filters in order."""

    node: Node
    filters: tuple[HttpFilter, ...]

    @property
    def route_config(self) -> Node | None:
        """Its inline routes."""
        return self.node.get("route_config")

    def router(self) -> HttpFilter | None:
        """Its router filter."""
        return next((f for f in self.filters if f.type == "Router"), None)


class Config:
    """All documents of one lint, looked through.

    Attributes:
        documents: As they were read.
        bootstraps: Roots of those that are a bootstrap.
        managers: Connection managers that have an ext_proc filter of interest.
        processors: These filters' configurations, as (where to report, configuration).
        clusters: By name.
        route_configs: Inline ones of `managers`, and those that stand alone.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = tuple(documents)
        self.bootstraps = [d.root for d in documents if d.kind == "bootstrap"]
        self._extensions = dict(_extensions(documents))
        self.clusters = dict(_clusters(documents))
        managers = [self._manager(node) for node in _managers(documents)]
        ours = [
            f
            for f in [f for m in managers for f in m.filters if f.type == _EXT_PROC]
            if f.name == contract.EXT_PROC_FILTER or _grpc_cluster(f.config) == _WORKERS
        ]
        names = {id(f.node) for f in ours}
        self.managers = [
            m
            for m in managers
            if any(f.type == _EXT_PROC and (not ours or id(f.node) in names) for f in m.filters)
        ]
        self._ours = names
        self.processors = list(self._processors())
        self.route_configs = [m.route_config for m in self.managers if m.route_config is not None]
        self.route_configs += _lone_routes(documents)

    def ext_procs(self, manager: Manager) -> list[tuple[int, HttpFilter]]:
        """A manager's filters of interest, each with its place among the others."""
        return [
            (place, f)
            for place, f in enumerate(manager.filters)
            if f.type == _EXT_PROC and (not self._ours or id(f.node) in self._ours)
        ]

    def worker_clusters(self) -> list[Node]:
        """Clusters that the filters call."""
        names = {_grpc_cluster(config) for _, config in self.processors} - {""}
        # A filter's configuration may be in a file that was not given.
        names |= {_WORKERS} if self.managers else set()
        return [self.clusters[name] for name in sorted(names) if name in self.clusters]

    def has_response_phase(self) -> bool:
        """Whether a filter waits for the model's answer."""
        return any(response_phase(config) for _, config in self.processors)

    def logs(self, entries: Iterable[Node]) -> list[Node]:
        """The gRPC access logs among entries that go to the workers."""
        found = [e for e in entries if e.get("typed_config") and _log_type(e) == _GRPC_LOG]
        workers = {_grpc_cluster(config) for _, config in self.processors} - {""} | {_WORKERS}
        return [
            e for e in found if e.word(*_LOG, "grpc_service", "envoy_grpc", "cluster_name")
            in workers
        ]  # fmt: skip

    def enabled(self, manager: Manager | None, route: Node, *above: Node) -> bool:
        """Whether a request on a route asks the sidecar.

        Args:
            manager: Whose routes these are; None = not in these files.
            route: The route.
            above: Its virtual host and route configuration, the nearer first.
        """
        filters = [f for _, f in self.ext_procs(manager)] if manager is not None else []
        names = [f.name for f in filters] or [contract.EXT_PROC_FILTER]
        for name in names:
            for level in (route, *above):
                setting = level.get("typed_per_filter_config", name)
                if setting is not None:
                    switch = setting.get("disabled")
                    if not (switch is not None and switch.is_true):
                        return True
                    break
            else:
                off = [f.node.get("disabled") for f in filters if f.name == name]
                if not any(node is not None and node.is_true for node in off):
                    return True
        return False

    def _manager(self, node: Node) -> Manager:
        filters = tuple(self._filter(entry) for entry in node.list_of("http_filters"))
        return Manager(node, filters)

    def _filter(self, entry: Node) -> HttpFilter:
        name, config = entry.word("name"), entry.get("typed_config")
        if config is not None:
            return HttpFilter(name, entry, config.type, config, dynamic=False)
        urls = [
            url.text.rpartition(".")[2] for url in entry.list_of("config_discovery", "type_urls")
        ]
        config = self._extensions.get(name)
        kind = urls[0] if len(urls) == 1 else config.type if config is not None else ""
        return HttpFilter(
            name, entry, kind, config, dynamic=entry.get("config_discovery") is not None
        )

    def _processors(self) -> Iterator[tuple[Node, Node]]:
        seen = set()
        for manager in self.managers:
            for _, f in self.ext_procs(manager):
                if f.config is not None:
                    seen.add(id(f.config))
                    yield (f.config if f.dynamic else f.node), f.config
        for config in self._extensions.values():
            if config.type == _EXT_PROC and id(config) not in seen and not self.managers:
                yield config, config


def response_phase(config: Node) -> bool:
    """Whether the filter's configuration sends the response's headers too (the default does)."""
    return config.word("processing_mode", "response_header_mode") != "SKIP"


def matches_any(name: str, matchers: Iterable[Node]) -> bool:
    """Whether a header's name fits one of Envoy's string matchers."""
    return any(_fits(name, matcher) for matcher in matchers)


def routes_of(route_config: Node) -> Iterator[tuple[Node, Node, int, list[Node]]]:
    """(virtual host, route, its place, all routes of the host)."""
    for host in route_config.list_of("virtual_hosts"):
        routes = host.list_of("routes")
        for place, route in enumerate(routes):
            yield host, route, place, routes


def _fits(name: str, matcher: Node) -> bool:
    folded = (matcher.get("ignore_case") or matcher).is_true
    subject = name.lower() if folded else name

    def given(kind: str) -> str | None:
        node = matcher.get(kind)
        return None if node is None else node.text.lower() if folded else node.text

    if (exact := given("exact")) is not None:
        return subject == exact
    if (prefix := given("prefix")) is not None:
        return subject.startswith(prefix)
    if (suffix := given("suffix")) is not None:
        return subject.endswith(suffix)
    if (part := given("contains")) is not None:
        return part in subject
    try:
        return re.fullmatch(matcher.word("safe_regex", "regex") or "(?!)", subject) is not None
    except re.error:
        return False


def _grpc_cluster(config: Node | None) -> str:
    return config.word("grpc_service", "envoy_grpc", "cluster_name") if config is not None else ""


def _log_type(entry: Node) -> str:
    config = entry.get("typed_config")
    return config.type if config is not None else ""


def _managers(documents: Sequence[Document]) -> Iterator[Node]:
    for document in documents:
        for node in document.root.walk():
            if node.type == "HttpConnectionManager":
                yield node
        if document.kind == "manager" and document.root.type != "HttpConnectionManager":
            yield document.root


def _resources(documents: Sequence[Document], kind: str, type_name: str) -> Iterator[Node]:
    """Resources of one type, alone in a document or in a discovery response."""
    for document in documents:
        if document.kind == kind:
            yield document.root
        for resource in document.root.list_of("resources"):
            if resource.type == type_name:
                yield resource


def _clusters(documents: Sequence[Document]) -> Iterator[tuple[str, Node]]:
    for document in documents:
        for cluster in document.root.list_of("static_resources", "clusters"):
            yield cluster.word("name"), cluster
    for cluster in _resources(documents, "cluster", "Cluster"):
        yield cluster.word("name"), cluster


def _extensions(documents: Sequence[Document]) -> Iterator[tuple[str, Node]]:
    for extension in _resources(documents, "extension", "TypedExtensionConfig"):
        config = extension.get("typed_config")
        if config is not None:
            yield extension.word("name"), config


def _lone_routes(documents: Sequence[Document]) -> list[Node]:
    return list(_resources(documents, "routes", "RouteConfiguration"))
