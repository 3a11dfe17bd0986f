"""A snapshot made ready to serve: immutable, and with every answer built but for the unit's hash.

Owns target match, arms (who gets what in which bucket) and the encoded answers. Refuses a snapshot
with any violation (`snapshotcheck`), whole: a plan is either complete or not there. A plan is never
changed; the worker builds the next one and swaps one reference.

Target match means what Envoy's routes mean (`envoyfiles`): an exact host before `*.suffix`, longer
first, before `*`; then the longest path prefix, then more header predicates, then named methods,
then the name. Ports are ignored, hosts compared without case.
"""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from sidecar.hashing import UnitHasher, bucket_after, salt_prefix
from sidecar.predicates import Headers, Test, compile_all, compile_predicate
from sidecar.snapshotcheck import InvalidSnapshot, Violation, validate
from turnout.contract import (
    BUCKET_COUNT,
    HEADER_PARAMETER_PREFIX,
    HEADER_SHADOW,
    HEADER_SHADOW_VARIANT,
    HEADER_STAMP,
    HEADER_UPSTREAM,
    HEADER_VARIANT,
    SNAPSHOT_BYTES_MAX,
    STAMP_FIELD_SEPARATOR,
    UNIT_HASH_HEX_DIGITS,
)
from turnout.envoy.ext_proc_pb2 import HeaderValueOption, ProcessingResponse
from turnout.v1alpha1.snapshot_pb2 import ExperimentPlan, Snapshot, TargetPlan, VariantPlan

__all__ = ["Arm", "EpochFacts", "Experiment", "InvalidSnapshot", "Plan", "Target", "Violation"]

NO_SLOT: Final = -1
_STRATUM_NONE: Final = 0
# No validated value holds a control character, so this marks the hash's place and nothing else.
_HASH_PLACE: Final = b"\0" * UNIT_HASH_HEX_DIGITS


class EpochFacts(NamedTuple):
    """What the fold must know of an epoch."""

    start_ms: int  # Unix time
    slow_after_ms: float | None  # a longer answer is a bad event; None: not a kind in use
    kinds: frozenset[int]  # BadEventKind


class Arm(NamedTuple):
    """What a run of buckets gets: an encoded answer in two halves, the unit's hash between them."""

    variant: str
    shadow: str | None
    head: bytes
    tail: bytes
    slot: int  # decided counter, or NO_SLOT


class Experiment:
    """One experiment on one target, ready to assign."""

    __slots__ = (
        "_arms", "_salt", "_starts",
        "cookie", "epoch", "header", "name", "open", "random", "segment",
    )  # fmt: skip

    def __init__(self, message: ExperimentPlan, *, is_open: bool, slots: Mapping[str, int]) -> None:
        self.name = message.name
        self.epoch = message.epoch
        self.open = is_open
        self.header = message.unit.header
        self.cookie = message.unit.cookie.encode()
        self.random = message.unit.random
        segmented = message.HasField("segment")
        self.segment: Test | None = compile_predicate(message.segment) if segmented else None
        self._salt = salt_prefix(message.salt.encode())
        self._starts, self._arms = _tile(message, slots)

    def bucket(self, unit: bytes) -> int:
        """Where a unit falls in [0, BUCKET_COUNT)."""
        return bucket_after(self._salt, unit)

    def assign(self, unit: bytes) -> Arm:
        """The arm of a unit's bucket."""
        return self._arms[bisect_right(self._starts, self.bucket(unit)) - 1]


class Target:
    """One target: what it matches, and the experiment on it, if one may serve."""

    __slots__ = ("default", "experiment", "headers", "methods", "name", "path_prefix")

    def __init__(
        self, message: TargetPlan, experiment: Experiment | None, cluster: str = ""
    ) -> None:
        self.name = message.name
        self.path_prefix = (message.path_prefix or "/").encode()
        self.methods = frozenset(method.encode() for method in message.methods)
        self.headers: Test | None = compile_all(message.headers) if message.headers else None
        self.experiment = experiment
        # The answer to a request that gets no variant; None = Envoy's route knows the baseline.
        self.default = _answer({HEADER_UPSTREAM: cluster.encode()}) if cluster else None


class Plan:
    """Everything that `processor.process` needs, for one tenant and version."""

    __slots__ = ("_hosts", "epochs", "hasher", "targets", "tenant", "version")

    def __init__(
        self,
        snapshot: Snapshot,
        targets: Sequence[Target],
        hasher: UnitHasher,
        epochs: Mapping[tuple[str, int], EpochFacts],
    ) -> None:
        """Index validated parts; `Plan.build` is the way in."""
        self.version = snapshot.version
        self.tenant = snapshot.tenant
        self.targets = tuple(targets)
        self.hasher = hasher
        self.epochs = epochs
        self._hosts = _Hosts(list(zip(snapshot.targets, targets, strict=True)))

    @classmethod
    def build(
        cls,
        snapshot: Snapshot,
        *,
        tenant_key: bytes,
        dead: Mapping[str, int],
        open_gates: Collection[tuple[str, int]] | None,
        slots: Mapping[tuple[str, int, str], int],
        defaults: Mapping[str, str] | None = None,
    ) -> "Plan":
        """Validate a snapshot and make it ready to serve.

        Args:
            snapshot: The decoded snapshot.
            tenant_key: Key of the unit hashes, TENANT_KEY_BYTES.
            dead: Experiment -> highest epoch that must never serve again.
            open_gates: (experiment, epoch) of those that may enrol; None = there is no start gate.
            slots: (experiment, epoch, variant) -> decided counter.
            defaults: Target -> cluster for requests that get no variant, where Envoy's routes are
                somebody else's; None = they are ours, and know it.

        Raises:
            InvalidSnapshot: With every violation.
            ValueError: The key has the wrong length.
        """
        violations = validate(snapshot)
        if violations:
            raise InvalidSnapshot(violations)
        buried = dict(dead)
        for tombstone in snapshot.tombstones:
            epoch = max(tombstone.epoch, buried.get(tombstone.experiment, 0))
            buried[tombstone.experiment] = epoch
        experiments: dict[str, Experiment] = {}
        for message in snapshot.experiments:
            key = (message.name, message.epoch)
            if message.epoch <= buried.get(message.name, 0):
                continue
            experiments[message.target] = Experiment(
                message,
                is_open=open_gates is None or key in open_gates,
                slots={v.name: slots.get((*key, v.name), NO_SLOT) for v in message.variants},
            )
        clusters = defaults or {}
        targets = [
            Target(target, experiments.get(target.name), clusters.get(target.name, ""))
            for target in snapshot.targets
        ]
        epochs = {(m.name, m.epoch): _epoch_facts(m) for m in snapshot.experiments}
        return cls(snapshot, targets, UnitHasher(tenant_key), epochs)

    def match(self, headers: Headers) -> Target | None:
        """The target whose route Envoy would take; None when there is none.

        Args:
            headers: Lower-case name -> value, pseudo-headers among them.
        """
        path = headers.get(":path", b"/")
        if b"?" in path or b"#" in path:
            path = path.split(b"#", 1)[0].split(b"?", 1)[0]
        for target in self._hosts.candidates(headers.get(":authority", b"")):
            if not path.startswith(target.path_prefix):
                continue
            if target.methods and headers.get(":method") not in target.methods:
                continue
            if target.headers is None or target.headers(headers):
                return target
        return None


def decode_snapshot(data: bytes) -> Snapshot:
    """Parse an encoded snapshot.

    Raises:
        InvalidSnapshot: It is too large or is not an encoded Snapshot.
    """
    if len(data) > SNAPSHOT_BYTES_MAX:
        rule = f"must have at most {SNAPSHOT_BYTES_MAX} bytes"
        raise InvalidSnapshot([Violation("snapshot", f"{len(data)} bytes", rule)])
    try:
        return Snapshot.FromString(data)
    except DecodeError as error:
        rule = "must be an encoded Snapshot"
        raise InvalidSnapshot([Violation("snapshot", f"{len(data)} bytes", rule)]) from error


class _Hosts:
    """Which targets a host is matched against, in which order: Envoy's virtual hosts and routes."""

    __slots__ = ("_any", "_exact", "_suffixes")

    def __init__(self, pairs: Sequence[tuple[TargetPlan, Target]]) -> None:
        patterns = {host for message, _ in pairs for host in _patterns(message)} | {"*"}
        ordered = {pattern: _in_order(pairs, pattern) for pattern in patterns}
        self._any = ordered.pop("*")
        suffixes = sorted((p for p in ordered if p.startswith("*")), key=lambda p: (-len(p), p))
        self._suffixes = [(pattern[1:].encode(), ordered.pop(pattern)) for pattern in suffixes]
        self._exact = {pattern.encode(): targets for pattern, targets in ordered.items()}

    def candidates(self, authority: bytes) -> Sequence[Target]:
        """Targets that may match, the first that does wins."""
        if not self._exact and not self._suffixes:
            return self._any
        host = _without_port(authority).lower()
        exact = self._exact.get(host)
        if exact is not None:
            return exact
        for suffix, targets in self._suffixes:
            # "*" stands for one character at least.
            if host.endswith(suffix) and len(host) > len(suffix):
                return targets
        return self._any


def _patterns(message: TargetPlan) -> list[str]:
    return [host.lower() for host in message.hosts] or ["*"]


def _in_order(pairs: Sequence[tuple[TargetPlan, Target]], host: str) -> tuple[Target, ...]:
    """Targets with a pattern that fits a host (or is at least as wide as a pattern), best first."""
    ranked: list[tuple[tuple[bool, int, int, int, bool, str], Target]] = []
    for message, target in pairs:
        fitting = [p for p in _patterns(message) if _fits(p, host)]
        if fitting:
            wide, length = min((p.startswith("*"), -len(p)) for p in fitting)
            prefix = -len(target.path_prefix)
            rank = (wide, length, prefix, -len(message.headers), not target.methods, target.name)
            ranked.append((rank, target))
    return tuple(target for _, target in sorted(ranked, key=lambda item: item[0]))


def _fits(pattern: str, host: str) -> bool:
    return pattern == host or (pattern.startswith("*") and host.endswith(pattern[1:]))


def _without_port(authority: bytes) -> bytes:
    host, colon, port = authority.rpartition(b":")
    # An IPv6 address has colons of its own, inside its brackets.
    return (
        host if colon and port.isdigit() and not (b":" in host and host[-1:] != b"]") else authority
    )


def _epoch_facts(message: ExperimentPlan) -> EpochFacts:
    slow_after_ms = message.slow_after.ToNanoseconds() / 1e6
    return EpochFacts(
        message.epoch_start_unix_ms,
        slow_after_ms if slow_after_ms > 0 else None,
        frozenset(message.kinds),
    )


# -- Arms and answers -----------------------------------------------------------------------------


def _tile(message: ExperimentPlan, slots: Mapping[str, int]) -> tuple[list[int], list[Arm]]:
    """Cut all buckets where the variant or the mirroring changes; one arm for each piece."""
    owners = sorted(
        (part.start, index)
        for index, variant in enumerate(message.variants)
        for part in variant.ranges
    )
    mirrored = [(part.start, part.end) for part in message.shadow.ranges]
    cuts = {start for start, _ in owners} | {edge for part in mirrored for edge in part}
    starts = sorted(cut for cut in cuts if cut < BUCKET_COUNT)
    owner_starts = [start for start, _ in owners]
    arms: list[Arm] = []
    made: dict[tuple[str, bool], Arm] = {}
    for start in starts:
        variant = message.variants[owners[bisect_right(owner_starts, start) - 1][1]]
        # A copy to the variant that serves would compare it with itself.
        copied = variant.name != message.shadow.variant and any(
            low <= start < high for low, high in mirrored
        )
        key = (variant.name, copied)
        if key not in made:
            made[key] = _arm(message, variant, copied=copied, slot=slots[variant.name])
        arms.append(made[key])
    assert starts[0] == 0, "validated ranges tile from bucket 0"
    return starts, arms


def _arm(message: ExperimentPlan, variant: VariantPlan, *, copied: bool, slot: int) -> Arm:
    separator = STAMP_FIELD_SEPARATOR
    assignment = (message.name, str(message.epoch), variant.name, str(_STRATUM_NONE))
    headers = {
        HEADER_VARIANT: variant.name.encode(),
        HEADER_STAMP: f"{separator.join(assignment)}{separator}".encode() + _HASH_PLACE,
        HEADER_UPSTREAM: variant.cluster.cluster.encode(),
    }
    shadow = message.shadow.variant if copied else None
    if shadow is not None:
        cluster = next(v.cluster.cluster for v in message.variants if v.name == shadow)
        marker = (message.name, str(message.epoch), shadow)
        headers[HEADER_SHADOW] = cluster.encode()
        headers[HEADER_SHADOW_VARIANT] = separator.join(marker).encode()
    for name, value in sorted(variant.parameters.items()):
        headers[HEADER_PARAMETER_PREFIX + name.lower()] = value.encode()
    head, place, tail = _answer(headers).partition(_HASH_PLACE)
    assert place, "the answer has a place for the unit hash"
    return Arm(variant.name, shadow, head, tail, slot)


def _answer(headers: Mapping[str, bytes]) -> bytes:
    response = ProcessingResponse()
    common = response.request_headers.response
    for name, value in headers.items():
        option = common.header_mutation.set_headers.add(
            # Envoy 1.40 ignores it and overwrites; said, so that it means the same elsewhere.
            append_action=HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        )
        option.header.key = name
        option.header.raw_value = value  # the only one of the two that Envoy reads
    # Without it the stamped request takes the route that was chosen before the stamp.
    common.clear_route_cache = True
    return response.SerializeToString(deterministic=True)
