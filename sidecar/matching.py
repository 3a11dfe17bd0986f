"""Which target a request is for: the one whose route Envoy would take.

Owns the order in which targets are looked for, which `envoymatch` says to Envoy: an exact host
before `*.suffix`, longer first, before `*`; then a target that names a model's version, then one
that names a model; then the longest path prefix, then more header predicates, then named methods,
then the name. Ports are ignored, hosts compared without case, queries and fragments cut off.
Refuses to know what a target does with its requests.

What host, method and path decide is decided once for each combination of them that is seen, and
remembered: a model is called by few.
"""

from collections.abc import Sequence
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from sidecar.predicates import Headers, Test, all_of, among, any_of, compile_all
from turnout.contract import MODEL_NAME_HEADERS, MODEL_VERSION_HEADERS
from turnout.v1alpha1.snapshot_pb2 import TargetPlan

# Combinations of host, method and path that are remembered, about 0.5 KB each. Longer ones are not:
# anybody may send paths of 60 KB, each another.
REMEMBERED_MAX: Final = 1_024
REMEMBERED_BYTES_MAX: Final = 512

_Rank = tuple[bool, bool, int, int, bool, str]


class Named(Protocol):
    """Whatever is matched."""

    @property
    def name(self) -> str:
        """A name, unique among the targets."""
        ...


T = TypeVar("T", bound=Named)


class Candidate(NamedTuple, Generic[T]):
    """A target that fits a request's host, method and path, and what its headers must be."""

    target: T
    test: Test | None


class Matcher(Generic[T]):
    """All targets of a plan, by host and path."""

    __slots__ = ("_hosts", "_known")

    def __init__(self) -> None:
        self._hosts: dict[bytes, _Paths[T]] = {}
        self._known: dict[tuple[bytes, bytes | None, bytes], tuple[Candidate[T], ...]] = {}

    def add(self, message: TargetPlan, target: T) -> None:
        """Take in one more target."""
        entry = _Entry(message, target)
        for pattern in {host.lower() for host in message.hosts} or {"*"}:
            self._hosts.setdefault(pattern.encode(), _Paths()).add(entry)

    def candidates(
        self, authority: bytes, method: bytes | None, path: bytes
    ) -> tuple[Candidate[T], ...]:
        """Targets that fit as far as these say; the first whose test holds is the one."""
        if b"?" in path or b"#" in path:
            path = path.split(b"#", 1)[0].split(b"?", 1)[0]
        key = (authority, method, path)
        found = self._known.get(key)
        if found is None:
            found = tuple(self._find(_without_port(authority).lower(), method, path))
            if len(authority) + len(path) <= REMEMBERED_BYTES_MAX:
                if len(self._known) >= REMEMBERED_MAX:
                    self._known.clear()
                self._known[key] = found
        return found

    def _find(self, host: bytes, method: bytes | None, path: bytes) -> list[Candidate[T]]:
        found: list[Candidate[T]] = []
        seen: set[str] = set()
        for pattern in _patterns(host, exact=host in self._hosts):
            paths = self._hosts.get(pattern)
            for entry in paths.fitting(path) if paths is not None else ():
                name = entry.target.name
                if name in seen or (entry.methods and method not in entry.methods):
                    continue
                seen.add(name)
                found.append(Candidate(entry.target, entry.test(path)))
        return found


def _patterns(host: bytes, *, exact: bool) -> list[bytes]:
    """Host patterns that fit a host, the most exact first."""
    patterns = [host] if exact else []
    for place, character in enumerate(host):
        # "*" stands for one character at least, unless the host has a place of its own.
        if character == 0x2E and (place or exact):
            patterns.append(b"*" + host[place:])
    return [*patterns, b"*"]


def _without_port(authority: bytes) -> bytes:
    """What is before the last colon, if it is not inside the brackets of an IPv6 address.

    Whatever is behind it, as to Envoy (ignore_port_in_host_matching; tried on 1.40): `a.com:` and
    `a.com:x` are a.com, or Envoy would take another target's route than we stamp for.
    """
    host, colon, port = authority.rpartition(b":")
    return host if colon and b"]" not in port else authority


class _Entry(Generic[T]):
    """One target as it is matched."""

    __slots__ = ("_headers", "_model", "methods", "prefix", "rank", "target")

    def __init__(self, message: TargetPlan, target: T) -> None:
        self.target = target
        self.prefix = (message.path_prefix or "/").encode()
        self.methods = frozenset(method.encode() for method in message.methods)
        self._headers = [compile_all(message.headers)] if message.headers else []
        self.rank: _Rank = (
            not message.model_version,
            not message.model_name,
            -len(message.path_prefix or "/"),
            -len(message.headers),
            not message.methods,
            message.name,
        )
        self._model = _Model(message) if message.model_name else None

    def test(self, path: bytes) -> Test | None:
        """What the headers must be besides, with a path that begins with the prefix."""
        named = self._model.tests(path) if self._model is not None else []
        tests = [*named, *self._headers]
        return all_of(tests) if tests else None


class _Model:
    """Where a request says which model it is for (`envoymatch.model_prefixes` says it to Envoy)."""

    __slots__ = ("_name", "_named", "_version", "_versioned")

    def __init__(self, message: TargetPlan) -> None:
        name, version = message.model_name, message.model_version
        self._named = _model_prefixes(message.path_prefix, name)
        self._name = any_of([among(header, [name]) for header in MODEL_NAME_HEADERS])
        self._versioned = _model_prefixes(message.path_prefix, f"{name}/versions/{version}")
        self._version = (
            any_of([among(header, [version]) for header in MODEL_VERSION_HEADERS])
            if version
            else None
        )

    def tests(self, path: bytes) -> list[Test]:
        """What the headers must say that the path does not."""
        path += b"/"
        by_path = [] if path.startswith(self._named) else [self._name]
        if self._version is None:
            return by_path
        return [] if path.startswith(self._versioned) else [*by_path, self._version]


def _model_prefixes(path_prefix: str, tail: str) -> tuple[bytes, ...]:
    base = path_prefix.rstrip("/")
    forms = (f"/v2/models/{tail}/", f"/v1/models/{tail}/", f"/v1/models/{tail}:")
    return tuple((mount + form).encode() for mount in dict.fromkeys(("", base)) for form in forms)


class _Paths(Generic[T]):
    """The targets of one host pattern, by path prefix."""

    __slots__ = ("_by_prefix", "_lengths")

    def __init__(self) -> None:
        self._by_prefix: dict[bytes, list[_Entry[T]]] = {}
        self._lengths: list[int] = []

    def add(self, entry: _Entry[T]) -> None:
        self._by_prefix.setdefault(entry.prefix, []).append(entry)
        if len(entry.prefix) not in self._lengths:
            self._lengths.append(len(entry.prefix))

    def fitting(self, path: bytes) -> Sequence[_Entry[T]]:
        """Those whose prefix the path begins with, the most exact first."""
        found: list[_Entry[T]] = []
        for length in self._lengths:
            if length <= len(path):
                found += self._by_prefix.get(path[:length], ())
        return sorted(found, key=lambda entry: entry.rank)


def first_that_fits(candidates: Sequence[Candidate[T]], headers: Headers) -> T | None:
    """The target that a request with these headers is for."""
    for target, test in candidates:
        if test is None or test(headers, b""):
            return target
    return None
