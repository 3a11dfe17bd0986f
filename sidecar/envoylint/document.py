"""YAML and JSON with line numbers, read as Envoy reads them.

Owns text -> nodes: anchors, merge keys, several documents, both spellings of a field's name, and
what tells Envoy's configuration from other files. Refuses files that are not YAML, not Envoy's, or
of API v2, each with one message; and to know what a field is good for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

import yaml

BYTES_MAX: Final = 8 * 1024 * 1024
# Nodes after anchors are written out: a few lines of nested aliases can stand for billions.
NODES_MAX: Final = 1_000_000
# Protobuf's own limit: Envoy refuses what is nested deeper.
DEPTH_MAX: Final = 100

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TRUE: Final = frozenset({"true", "yes", "on", "y"})
_MERGE: Final = "<<"
_V2_TYPE: Final = re.compile(r"envoy\.(?:[\w]+\.)*v2(?:alpha\d*|beta\d*)?\.")
_BOOTSTRAP: Final = frozenset(
    {"static_resources", "dynamic_resources", "admin", "node", "layered_runtime", "stats_sinks"}
)
_KINDS: Final = (
    ("discovery", frozenset({"resources"})),
    ("bootstrap", _BOOTSTRAP),
    ("listener", frozenset({"filter_chains", "api_listener", "default_filter_chain"})),
    ("manager", frozenset({"http_filters"})),
    ("routes", frozenset({"virtual_hosts"})),
    ("cluster", frozenset({"load_assignment", "lb_policy", "eds_cluster_config"})),
)
_TYPES: Final = {
    "Bootstrap": "bootstrap",
    "DiscoveryResponse": "discovery",
    "Listener": "listener",
    "HttpConnectionManager": "manager",
    "RouteConfiguration": "routes",
    "Cluster": "cluster",
    "TypedExtensionConfig": "extension",
}


class UnreadableFile(ValueError):
    """The file cannot be judged; the message has FILE:LINE, what is wrong, and the remedy."""

    def __init__(self, file: str, line: int, what: str) -> None:
        super().__init__(f"{file}:{line}: {what}")
        self.file = file
        self.line = line


class Node:
    """A value of the file, and the line where it (or its key) stands."""

    __slots__ = ("_elements", "_fields", "_raw", "file", "line")

    def __init__(self, file: str, raw: yaml.Node, line: int) -> None:
        self.file = file
        self.line = line
        self._raw = raw
        self._fields: dict[str, Node] | None = None
        self._elements: list[Node] | None = None

    @property
    def raw(self) -> yaml.Node:
        """What the YAML reader made of it."""
        return self._raw

    @property
    def fields(self) -> dict[str, Node]:
        """A mapping's values by name, in snake_case; empty for anything else."""
        if self._fields is None:
            self._fields = {}
            if isinstance(self._raw, yaml.MappingNode):
                self._merge(self._raw, self._fields)
        return self._fields

    def _merge(self, raw: yaml.MappingNode, into: dict[str, Node]) -> None:
        """Collect a mapping's pairs; its own win over those that it merges."""
        merged: list[yaml.Node] = []
        for key, value in raw.value:
            name = str(key.value)
            if name == _MERGE and isinstance(key, yaml.ScalarNode) and not key.style:
                many = isinstance(value, yaml.SequenceNode)
                merged += value.value if many else [value]
            elif isinstance(key, yaml.ScalarNode):
                into.setdefault(snake(name), Node(self.file, value, key.start_mark.line + 1))
        for other in merged:
            if isinstance(other, yaml.MappingNode):
                self._merge(other, into)

    @property
    def elements(self) -> list[Node]:
        """A list's values; empty for anything else."""
        if self._elements is None:
            values = self._raw.value if isinstance(self._raw, yaml.SequenceNode) else ()
            self._elements = [Node(self.file, raw, raw.start_mark.line + 1) for raw in values]
        return self._elements

    def get(self, *names: str) -> Node | None:
        """The value behind a path of names; None where it ends."""
        node: Node | None = self
        for name in names:
            node = node.fields.get(name) if node is not None else None
        return node

    def list_of(self, *names: str) -> list[Node]:
        """The elements of the list behind a path of names."""
        node = self.get(*names)
        return node.elements if node is not None else []

    def word(self, *names: str) -> str:
        """The scalar behind a path of names, as written; "" when there is none."""
        node = self.get(*names)
        return node.text if node is not None else ""

    @property
    def text(self) -> str:
        """A scalar as written; "" for anything else."""
        return str(self._raw.value) if isinstance(self._raw, yaml.ScalarNode) else ""

    @property
    def is_plain(self) -> bool:
        """A scalar without quotes."""
        return isinstance(self._raw, yaml.ScalarNode) and not self._raw.style

    @property
    def is_mapping(self) -> bool:
        """Whether it has fields."""
        return isinstance(self._raw, yaml.MappingNode)

    @property
    def is_true(self) -> bool:
        """Whether Envoy takes it for true."""
        return self.text.lower() in _TRUE

    @property
    def type(self) -> str:
        """The last part of "@type"; "" when there is none."""
        return self.word("@type").rpartition(".")[2].rpartition("/")[2]

    def walk(self) -> Iterator[Node]:
        """This value and all below it, in the file's order."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            if isinstance(node._raw, yaml.MappingNode):
                stack += reversed(node.fields.values())
            elif isinstance(node._raw, yaml.SequenceNode):
                stack += reversed(node.elements)

    def merge_keys(self) -> Iterator[int]:
        """Lines with a merge key directly in this mapping."""
        if isinstance(self._raw, yaml.MappingNode):
            for key, _ in self._raw.value:
                if key.value == _MERGE and not key.style:
                    yield key.start_mark.line + 1


class Document(NamedTuple):
    """One document of a file.

    Attributes:
        kind: bootstrap, discovery, listener, manager, routes, cluster or extension.
        root: Its value.
        place: Its place in the file, from 0.
    """

    kind: str
    root: Node
    place: int


def load(data: bytes, file: str) -> list[Document]:
    """Read a file.

    Args:
        data: What it holds, UTF-8.
        file: How messages call it.

    Raises:
        UnreadableFile: It is too large, not YAML, not Envoy's, or of API v2.
    """
    if len(data) > BYTES_MAX:
        raise UnreadableFile(file, 1, f"{len(data)} bytes; at most {BYTES_MAX} are read")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UnreadableFile(file, line, "not UTF-8: save it as UTF-8") from error
    raws = _compose(text, file)
    documents = []
    for place, raw in enumerate(raws):
        _measure(raw, file)
        root = Node(file, raw, raw.start_mark.line + 1)
        _refuse_v2(root)
        documents.append(Document(_kind(root), root, place))
    if not documents:
        raise UnreadableFile(file, 1, "empty: give a bootstrap, LDS, Listener or HCM of Envoy")
    return documents


@lru_cache(maxsize=4096)
def snake(name: str) -> str:
    """A field's name as Envoy's documentation writes it; names that are no field's stay."""
    if not name.isalnum() or name.islower() or not name[0].islower():
        return name
    return re.sub(r"([A-Z])", lambda match: "_" + match[1].lower(), name)


def _compose(text: str, file: str) -> list[yaml.Node]:
    if text.lstrip().startswith("{"):
        # JSON may be indented with tabs, which YAML forbids; inside its strings there are none.
        text = text.replace("\t", " ")
    try:
        return [raw for raw in yaml.compose_all(text, Loader=_LOADER) if raw is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        raise UnreadableFile(file, line, f"not YAML: {error.problem or error}") from error
    except yaml.YAMLError as error:
        raise UnreadableFile(file, 1, f"not YAML: {error}".splitlines()[0]) from error
    except RecursionError as error:
        raise UnreadableFile(file, 1, "nested too deeply to be a configuration") from error


def _measure(root: yaml.Node, file: str) -> None:
    """Refuse what grows without end once its anchors are written out."""
    sizes: dict[int, int] = {}
    depths: dict[int, int] = {}
    open_nodes: set[int] = set()
    # Depth first without recursion: a node is met twice, the second time after its children.
    stack = [(root, False)]
    while stack:
        node, left = stack.pop()
        children = _children(node)
        if left:
            open_nodes.discard(id(node))
            sizes[id(node)] = 1 + sum(sizes[id(child)] for child in children)
            depths[id(node)] = 1 + max((depths[id(child)] for child in children), default=0)
        elif id(node) in open_nodes:
            line = node.start_mark.line + 1
            raise UnreadableFile(file, line, "an anchor contains itself: write the value out")
        elif id(node) not in sizes:
            open_nodes.add(id(node))
            stack.append((node, True))
            stack += [(child, False) for child in children]
    if depths[id(root)] > DEPTH_MAX:
        raise UnreadableFile(file, root.start_mark.line + 1, f"nested deeper than {DEPTH_MAX}")
    if sizes[id(root)] > NODES_MAX:
        what = f"its anchors stand for more than {NODES_MAX} values: write them out"
        raise UnreadableFile(file, root.start_mark.line + 1, what)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _refuse_v2(root: Node) -> None:
    for node in root.walk():
        url, version = node.get("@type"), None
        for name in ("resource_api_version", "transport_api_version"):
            version = version or node.get(name)
        old_type = url if url is not None and _V2_TYPE.search(url.text) else None
        old_version = version if version is not None and version.text in ("V2", "AUTO") else None
        inline = node.get("config")
        old_filter = (
            inline
            if inline is not None and inline.is_mapping and node.word("name").startswith("envoy.")
            and "@type" not in node.fields and node.get("typed_config") is None
            else None
        )  # fmt: skip
        if (old := old_type or old_version or old_filter) is not None:
            what = "API v2, which Envoy no longer reads: move the file to v3 (typed_config) first"
            raise UnreadableFile(root.file, old.line, what)


def _kind(root: Node) -> str:
    if kind := _TYPES.get(root.type):
        return kind
    for kind, names in _KINDS:
        if names & root.fields.keys():
            return kind
    if root.word("api_version").startswith("turnout/"):
        what = "a resource of Turnout, not Envoy's: give it with -f"
    elif {"api_version", "kind"} <= root.fields.keys():
        what = "a Kubernetes manifest, not Envoy's: give the configuration that is inside it"
    else:
        what = "not Envoy's: give a bootstrap, LDS (resources:), a Listener or an HCM"
    raise UnreadableFile(root.file, root.line, what)
