"""One experiment made ready: who it is for, and who gets what in which bucket.

Owns what follows from an ExperimentPlan alone, so that a plan can take an experiment over from the
one before. Refuses to know gates, counters or other experiments: `assignment` binds those.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from sidecar.answers import parameter_headers
from sidecar.hashing import bucket_after, salt_prefix
from sidecar.predicates import Headers, Test, compile_predicate, stratum_test
from sidecar.units import Source, source_of
from turnout.contract import BUCKET_COUNT, LAYER_MODELS, SESSION_COOKIE
from turnout.v1alpha1.common_pb2 import Unit
from turnout.v1alpha1.snapshot_pb2 import BucketRange, ExperimentPlan, HoldoutPlan

__all__ = ["EpochFacts", "Experiment", "Headers", "Holdout", "Piece", "VariantFacts"]


class EpochFacts(NamedTuple):
    """What the fold must know of an epoch."""

    start_ms: int  # Unix time
    slow_after_ms: float | None  # a longer answer is a bad event; None: not a kind in use
    kinds: frozenset[int]  # BadEventKind
    # Requests that begin before this, unix time, are in no cell. 0 = there is no warm-up.
    warm_until_ms: int = 0
    # Beside `slow_after_ms` and above it, ascending: exceedances are counted.
    thresholds_ms: tuple[float, ...] = ()


class VariantFacts(NamedTuple):
    """A variant as an answer names it."""

    name: str
    cluster: str  # "" in layers that route nothing
    parameters: tuple[tuple[str, str], ...]  # header name -> value


class Piece(NamedTuple):
    """A run of buckets with one variant, copied or not."""

    start: int
    variant: int  # index
    copied: bool


class Holdout:
    """Units that an experiment leaves alone."""

    __slots__ = ("key", "prefix", "ranges")

    def __init__(self, message: HoldoutPlan) -> None:
        self.prefix = salt_prefix(message.salt.encode())
        self.ranges = spans(message.ranges)
        self.key = (self.prefix, self.ranges)

    def holds(self, unit: bytes) -> bool:
        """Whether a unit is held out."""
        return within(self.ranges, bucket_after(self.prefix, unit))


class Experiment:
    """One experiment, compiled from its message."""

    __slots__ = (
        "epoch", "facts", "holdout", "layer", "layer_prefix", "layer_ranges", "name",
        "overrides", "pieces", "prefix", "segment", "segment_key", "shadow", "source",
        "starts", "strata", "target", "unit_key", "variants",
    )  # fmt: skip

    def __init__(self, message: ExperimentPlan) -> None:
        self.name = message.name
        self.epoch = message.epoch
        self.target = message.target
        self.layer = message.layer
        self.facts = _epoch_facts(message)
        self.source: Source = source_of(message.unit)
        self.unit_key = _unit_key(message.unit)
        # None = all of the layer is this experiment's.
        whole = not message.layer_ranges
        self.layer_prefix = None if whole else salt_prefix(message.layer_salt.encode())
        self.layer_ranges = spans(message.layer_ranges)
        segmented = message.HasField("segment")
        # Equal for segments that mean the same.
        self.segment_key = message.segment.SerializeToString(deterministic=True)
        self.segment: Test | None = compile_predicate(message.segment) if segmented else None
        self.strata = tuple(compile_predicate(stratum_test(one)) for one in message.strata)
        held = message.HasField("holdout") and message.holdout.ranges
        self.holdout = Holdout(message.holdout) if held else None
        self.prefix = salt_prefix(message.salt.encode())
        self.variants = [
            VariantFacts(v.name, v.cluster.cluster, parameter_headers(v.parameters.items()))
            for v in message.variants
        ]
        by_name = {variant.name: index for index, variant in enumerate(self.variants)}
        self.overrides = {o.unit.encode(): by_name[o.variant] for o in message.overrides}
        # Index of the variant that gets copies.
        self.shadow = by_name[message.shadow.variant] if message.HasField("shadow") else None
        self.pieces = _tile(message, self.shadow)
        self.starts = [piece.start for piece in self.pieces[1:]]

    @property
    def order(self) -> tuple[bool, str, str]:
        """Where it stands among the experiments of a target: `models` first."""
        return (self.layer != LAYER_MODELS, self.layer, self.name)

    def stratum(self, headers: Headers, unit: bytes) -> int:
        """The number of the first stratum that a request is in, 0 = none."""
        return stratum_of(self.strata, headers, unit)

    def variant_index(self, name: str) -> int | None:
        """The index of a variant."""
        return next((i for i, variant in enumerate(self.variants) if variant.name == name), None)

    def in_layer(self, unit: bytes) -> bool:
        """Whether a unit's place in the layer is this experiment's."""
        prefix = self.layer_prefix
        return prefix is None or within(self.layer_ranges, bucket_after(prefix, unit))

    def bucket(self, unit: bytes) -> int:
        """Where a unit falls in [0, BUCKET_COUNT)."""
        return bucket_after(self.prefix, unit)

    def piece(self, unit: bytes) -> int:
        """Index of the piece that has a unit's bucket."""
        return bisect_right(self.starts, self.bucket(unit))


def stratum_of(strata: Sequence[Test], headers: Headers, unit: bytes) -> int:
    """The number of the first stratum that a request is in, 0 = none."""
    for number, test in enumerate(strata, 1):
        if test(headers, unit):
            return number
    return 0


def spans(ranges: Sequence[BucketRange]) -> tuple[tuple[int, int], ...]:
    """Ranges as pairs [start, end)."""
    return tuple((part.start, part.end) for part in ranges)


def within(ranges: Sequence[tuple[int, int]], bucket: int) -> bool:
    """Whether a bucket is in one of the ranges."""
    for start, end in ranges:  # noqa: SIM110 - a generator costs more than the tests
        if start <= bucket < end:
            return True
    return False


def _unit_key(unit: Unit) -> bytes:
    """Equal for units that are read alike: sessions of one cookie are, however long it lasts."""
    plain = Unit()
    plain.CopyFrom(unit)
    plain.ClearField("no_unit")
    if unit.HasField("session"):
        plain.session.cookie = unit.session.cookie or SESSION_COOKIE
        plain.session.ClearField("max_age")
    return plain.SerializeToString(deterministic=True)


def _epoch_facts(message: ExperimentPlan) -> EpochFacts:
    slow_after_ms = message.slow_after.ToNanoseconds() / 1e6
    warm_up_ms = message.warm_up.ToMilliseconds()
    return EpochFacts(
        message.epoch_start_unix_ms,
        slow_after_ms if slow_after_ms > 0 else None,
        frozenset(message.kinds),
        message.epoch_start_unix_ms + warm_up_ms if warm_up_ms else 0,
        tuple(threshold.ToNanoseconds() / 1e6 for threshold in message.latency_thresholds),
    )


def _tile(message: ExperimentPlan, shadow: int | None) -> list[Piece]:
    """Cut all buckets where the variant or the mirroring changes."""
    owners = sorted(
        (part.start, index)
        for index, variant in enumerate(message.variants)
        for part in variant.ranges
    )
    mirrored = spans(message.shadow.ranges) if shadow is not None else ()
    cuts = {start for start, _ in owners} | {edge for part in mirrored for edge in part}
    owner_starts = [start for start, _ in owners]
    pieces: list[Piece] = []
    for start in sorted(cut for cut in cuts if cut < BUCKET_COUNT):
        variant = owners[bisect_right(owner_starts, start) - 1][1]
        # A copy to the variant that serves would compare it with itself.
        copied = variant != shadow and within(mirrored, start)
        if not pieces or pieces[-1][1:] != (variant, copied):
            pieces.append(Piece(start, variant, copied))
    assert pieces[0].start == 0, "validated ranges tile from bucket 0"
    return pieces
