"""Joins exposures, predictions and labels of one tenant by request, in any order. Pure.

Owns the rows that wait for their other parts. Refuses to know metrics: it says which unit's request
was answered rightly or wrongly, and `control.evidence` counts. Texts and request ids are 64-bit
hashes here: equality is all that is asked of them.

Scores and costs that spans tell are handed on as they are, by the same rules.

Rules:
    * the first exposure, prediction and label of a request win; repeats are counted;
    * a mirrored copy's prediction is kept beside the served one, and never judged as served;
    * a request id seen in two experiments counts for the first (a label could mean either);
    * forced requests are joined, and never judged;
    * an exposure lives for WINDOW_MS after it came, and EXPOSED_MAX are kept: beyond it the oldest
      goes, counted. What was not exposed (yet) waits apart, for as long and WAITING_MAX of them, so
      that labels of unknown requests cannot drive out exposures.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Final, NamedTuple

import xxhash

from control.ingest import SpanFact, request_hash
from control.joinrows import NO_GROUP, Ring, Row
from turnout.v1alpha1 import config_service_pb2, outcome_service_pb2

WINDOW_MS: Final = 24 * 3600 * 1000
# 102 B packed + ~100 B of index each: 202 MB and 40 MB at most. At 200 requests/s a million
# exposures are the last 83 minutes.
EXPOSED_MAX: Final = 1_000_000
WAITING_MAX: Final = 200_000
GROUPS_MAX: Final = 65_536  # (experiment, epoch, variant, stratum, forced) that rows belong to


class Fact(NamedTuple):
    """What a span or an outcome says about one request. Hashes; 0 = it does not say.

    Attributes:
        request: `ingest.request_hash` of the request id.
        prediction: `text_hash` of the model's answer.
        label: `text_hash` of the truth.
        shadow: The prediction is a mirrored copy's.
        error: The span's status is an error.
        trace: Ids of the trace (16 bytes) and of the span (8); empty for outcomes.
        score, cost: Finite; None = it does not say.
    """

    request: int
    prediction: int = 0
    label: int = 0
    shadow: bool = False
    error: bool = False
    trace: bytes = b""
    score: float | None = None
    cost: float | None = None


class Observation(NamedTuple):
    """One request whose answer can be judged: it has exposure, prediction and label.

    Attributes:
        experiment, epoch, variant, stratum: The exposure's.
        unit: The unit's hash.
        shadow: The answer is the mirrored copy's (`variant` is the one that served).
        correct: Prediction and label are the same.
        said, positive: Prediction, label are of the positive class.
        time_ms: Of the request, unix milliseconds.
        trace: Ids of the trace and the span of the prediction, empty when no span carried it.
    """

    experiment: str
    epoch: int
    variant: str
    stratum: int
    unit: int
    shadow: bool
    correct: bool
    said: bool
    positive: bool
    time_ms: int
    trace: bytes


class Value(NamedTuple):
    """Numbers that a span told of one request that was exposed; None = not this one."""

    experiment: str
    epoch: int
    variant: str
    stratum: int
    unit: int
    time_ms: int
    score: float | None = None
    cost: float | None = None


class FailedTrace(NamedTuple):
    """The trace of a request that ended in an error, with the exposure's key and time."""

    experiment: str
    epoch: int
    variant: str
    time_ms: int
    trace: bytes


@dataclass(slots=True)
class JoinCounts:
    """What the joiner did, since the tenant's beginning.

    Attributes:
        exposures, predictions, shadow_predictions, labels: First ones of their requests.
        repeated_exposures, repeated_predictions, repeated_labels: Not the first: ignored.
        orphan_labels, orphan_predictions: Left without an exposure when their time was over.
        expired: Exposures that left when their time was over.
        dropped: Rows that left early, for want of room.
    """

    exposures: int = 0
    predictions: int = 0
    shadow_predictions: int = 0
    labels: int = 0
    repeated_exposures: int = 0
    repeated_predictions: int = 0
    repeated_labels: int = 0
    orphan_labels: int = 0
    orphan_predictions: int = 0
    expired: int = 0
    dropped: int = 0


@dataclass(slots=True)
class Joined:
    """What one call completed; `now_ms` is the joiner's clock."""

    now_ms: int
    observations: list[Observation] = field(default_factory=list)
    failed: list[FailedTrace] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)


# -- Facts -----------------------------------------------------------------------------------------

_FACT = struct.Struct("<QQQB24s")
_FACT_SHADOW, _FACT_ERROR, _FACT_TRACE, _FACT_SCORE, _FACT_COST = 1, 2, 4, 8, 16
_FACT_NUMBERS = struct.Struct("<dd")  # after a fact that has a score or a cost


def text_hash(text: str) -> int:
    """A prediction's or label's hash; never 0, and 0 for the empty text: it says nothing."""
    return (xxhash.xxh3_64_intdigest(text.encode()) or 1) if text else 0


def facts_of_spans(spans: Iterable[SpanFact]) -> list[Fact]:
    """The facts that spans carry."""
    return [
        Fact(
            span.request_hash,
            text_hash(span.prediction or ""),
            text_hash(span.label or ""),
            span.shadow,
            span.error,
            span.trace_id + span.span_id,
            span.score,
            span.cost,
        )
        for span in spans
    ]


def facts_of_outcomes(outcomes: Iterable[outcome_service_pb2.Outcome]) -> list[Fact]:
    """The facts of validated outcomes."""
    return [
        Fact(
            request_hash(outcome.request_id.encode()),
            text_hash(outcome.prediction),
            text_hash(outcome.label),
        )
        for outcome in outcomes
    ]


def pack_facts(facts: Iterable[Fact]) -> bytes:
    """Facts as the journal keeps them."""
    return b"".join(map(_pack_fact, facts))


def _pack_fact(fact: Fact) -> bytes:
    numbers = fact.score is not None, fact.cost is not None
    flags = fact.shadow * _FACT_SHADOW + fact.error * _FACT_ERROR + bool(fact.trace) * _FACT_TRACE
    flags += numbers[0] * _FACT_SCORE + numbers[1] * _FACT_COST
    packed = _FACT.pack(fact.request, fact.prediction, fact.label, flags, fact.trace)
    return packed + _FACT_NUMBERS.pack(fact.score or 0, fact.cost or 0) if any(numbers) else packed


def unpack_facts(data: bytes) -> list[Fact]:
    """The facts of `pack_facts`.

    Raises:
        ValueError: Not made by it.
    """
    facts, place = [], 0
    try:
        while place < len(data):
            request, prediction, label, flags, trace = _FACT.unpack_from(data, place)
            place += _FACT.size
            score = cost = 0.0
            if flags & (_FACT_SCORE | _FACT_COST):
                score, cost = _FACT_NUMBERS.unpack_from(data, place)
                place += _FACT_NUMBERS.size
            facts.append(
                Fact(
                    request,
                    prediction,
                    label,
                    bool(flags & _FACT_SHADOW),
                    bool(flags & _FACT_ERROR),
                    trace if flags & _FACT_TRACE else b"",
                    score if flags & _FACT_SCORE else None,
                    cost if flags & _FACT_COST else None,
                )
            )
    except struct.error as error:
        raise ValueError(f"{len(data)} bytes end within a fact") from error
    return facts


_FORCED, _JUDGED, _SHADOW_JUDGED, _FAILED, _TRACED = 1, 2, 4, 8, 16
_SCORED, _COSTED, _SCORE_SAID, _COST_SAID = 32, 64, 128, 256
# Labels and predictions of the positive class; every other text is of the negative one.
POSITIVE: Final = frozenset({text_hash("1"), text_hash("true")})

# -- The joiner ------------------------------------------------------------------------------------

_Group = tuple[str, int, str, int, bool]  # experiment, epoch, variant, stratum, forced
_HEADER = struct.Struct("<qIIQQ")


class Joiner:
    """Exposures x predictions x labels of one tenant."""

    def __init__(self, *, exposed_max: int = EXPOSED_MAX, waiting_max: int = WAITING_MAX) -> None:
        self.counts = JoinCounts()
        self._exposed_max = exposed_max
        self._waiting_max = waiting_max
        self._exposed = Ring()
        self._waiting = Ring()
        self._groups: dict[_Group, int] = {}
        self._group_list: list[_Group] = []
        self._now_ms = 0

    @property
    def exposed(self) -> int:
        """Exposures that labels may still join."""
        return len(self._exposed)

    @property
    def waiting(self) -> int:
        """Requests with a label or prediction, and no exposure so far."""
        return len(self._waiting)

    def add_exposures(
        self, batches: Iterable[config_service_pb2.ExposureBatch], now_ms: int
    ) -> Joined:
        """Takes the exposures of one delta; `now_ms` is when it was received."""
        self._advance(now_ms)
        joined = Joined(self._now_ms)
        for batch in batches:
            group = self._group(
                (batch.experiment, batch.epoch, batch.variant, batch.stratum, batch.forced)
            )
            rows = zip(
                struct.iter_unpack("<Q", batch.request_hashes),
                struct.iter_unpack("<Q", batch.unit_hashes),
                batch.offset_ms,
                strict=True,
            )
            for (request,), (unit,), offset_ms in rows:
                self._expose(request, unit, batch.base_unix_ms + offset_ms, group, joined)
        return joined

    def add_facts(self, facts: Iterable[Fact], now_ms: int) -> Joined:
        """Takes what spans or outcomes say; `now_ms` is when they were received."""
        self._advance(now_ms)
        joined = Joined(self._now_ms)
        for fact in facts:
            exposed = self._exposed.get(fact.request)
            row = exposed or self._waiting.get(fact.request)
            if row is None:
                row = Row(fact.request, seen_ms=self._now_ms)
            changed = self._judge(self._say(row, fact), joined)
            if exposed is not None:
                self._exposed.put(changed)
            else:
                self._waiting.put(changed)
                self._bound(self._waiting, self._waiting_max)
        return joined

    # -- One request -------------------------------------------------------------------------------

    def _expose(self, request: int, unit: int, time_ms: int, group: int, joined: Joined) -> None:
        if self._exposed.get(request) is not None:
            self.counts.repeated_exposures += 1
            return
        self.counts.exposures += 1
        waited = self._waiting.get(request)
        if waited is not None:
            self._waiting.remove(request)
        row = (waited or Row(request))._replace(
            unit=unit, time_ms=time_ms, group=group, seen_ms=self._now_ms
        )
        if self._group_list[group][4]:
            row = row._replace(flags=row.flags | _FORCED)
        self._exposed.put(self._judge(row, joined))
        self._bound(self._exposed, self._exposed_max)

    def _say(self, row: Row, fact: Fact) -> Row:
        """The row with what the fact adds to it."""
        counts = self.counts
        if fact.label:
            if row.label:
                counts.repeated_labels += 1
            else:
                counts.labels += 1
                row = row._replace(label=fact.label)
        if fact.prediction:
            if row.shadow if fact.shadow else row.prediction:
                counts.repeated_predictions += 1
            elif fact.shadow:
                counts.shadow_predictions += 1
                row = row._replace(shadow=fact.prediction)
            else:
                counts.predictions += 1
                row = row._replace(prediction=fact.prediction)
        if fact.score is not None and not fact.shadow and not row.flags & _SCORED:
            row = row._replace(score=fact.score, flags=row.flags | _SCORED)
        if fact.cost is not None and not fact.shadow and not row.flags & _COSTED:
            row = row._replace(cost=fact.cost, flags=row.flags | _COSTED)
        if fact.trace and not fact.shadow and not row.flags & _TRACED:
            row = row._replace(trace=fact.trace, flags=row.flags | _TRACED)
        if fact.error and not fact.shadow and not row.flags & _FAILED:
            row = row._replace(flags=row.flags | _FAILED)
        return row

    def _judge(self, row: Row, joined: Joined) -> Row:
        """Says what is complete and was not said before."""
        if row.group == NO_GROUP:
            return row
        experiment, epoch, variant, stratum, forced = self._group_list[row.group]
        if forced:
            return row
        flags = row.flags
        if row.label:
            for prediction, done, shadow in (
                (row.prediction, _JUDGED, False),
                (row.shadow, _SHADOW_JUDGED, True),
            ):
                if prediction and not flags & done:
                    flags |= done
                    joined.observations.append(
                        Observation(
                            experiment,
                            epoch,
                            variant,
                            stratum,
                            row.unit,
                            shadow,
                            prediction == row.label,
                            prediction in POSITIVE,
                            row.label in POSITIVE,
                            row.time_ms,
                            row.trace if flags & _TRACED and not shadow else b"",
                        )
                    )
        score = row.score if flags & _SCORED and not flags & _SCORE_SAID else None
        cost = row.cost if flags & _COSTED and not flags & _COST_SAID else None
        if score is not None or cost is not None:
            flags |= (score is not None) * _SCORE_SAID + (cost is not None) * _COST_SAID
            joined.values.append(
                Value(experiment, epoch, variant, stratum, row.unit, row.time_ms, score, cost)
            )
        if flags & _FAILED and flags & _TRACED:  # said once: the flag goes with it
            flags &= ~_FAILED
            joined.failed.append(FailedTrace(experiment, epoch, variant, row.time_ms, row.trace))
        return row if flags == row.flags else row._replace(flags=flags)

    def _group(self, group: _Group) -> int:
        index = self._groups.get(group)
        if index is None:
            if len(self._group_list) >= GROUPS_MAX:
                self._forget_groups()
            index = len(self._group_list)
            self._groups[group] = index
            self._group_list.append(group)
        return index

    def _forget_groups(self) -> None:
        """Renumbers groups: those without rows are forgotten, or else the oldest rows go."""
        while len({row.group for row in self._exposed}) >= GROUPS_MAX // 2:
            self._bound(self._exposed, len(self._exposed) // 2)
        used = sorted({row.group for row in self._exposed})
        fresh = {old: new for new, old in enumerate(used)}
        for row in list(self._exposed):
            self._exposed.put(row._replace(group=fresh[row.group]))
        self._group_list = [self._group_list[old] for old in used]
        self._groups = {group: index for index, group in enumerate(self._group_list)}

    # -- Time and room -----------------------------------------------------------------------------

    def _advance(self, now_ms: int) -> None:
        """Lets go what is older than the window. A clock that jumps back stands still here."""
        self._now_ms = max(self._now_ms, now_ms)
        horizon_ms = self._now_ms - WINDOW_MS
        for ring in (self._exposed, self._waiting):
            while (row := ring.oldest()) is not None and row.seen_ms < horizon_ms:
                ring.remove(row.request)
                self._count_gone(row)
                self.counts.expired += row.group != NO_GROUP

    def _bound(self, ring: Ring, rows_max: int) -> None:
        while len(ring) > rows_max and (row := ring.oldest()) is not None:
            ring.remove(row.request)
            self.counts.dropped += 1
            self._count_gone(row)

    def _count_gone(self, row: Row) -> None:
        if row.group == NO_GROUP:
            self.counts.orphan_labels += row.label != 0
            self.counts.orphan_predictions += row.prediction != 0 or row.shadow != 0

    # -- Checkpoint --------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Everything, deterministically: two joiners that took the same give the same bytes."""
        groups = "\n".join(
            f"{experiment}\t{epoch}\t{variant}\t{stratum}\t{int(forced)}"
            for experiment, epoch, variant, stratum, forced in self._group_list
        ).encode()
        counts = struct.pack(f"<{len(_COUNTS)}Q", *(getattr(self.counts, name) for name in _COUNTS))
        exposed, waiting = self._exposed.to_bytes(), self._waiting.to_bytes()
        header = _HEADER.pack(self._now_ms, len(counts), len(groups), len(exposed), len(waiting))
        return b"".join((header, counts, groups, exposed, waiting))

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        *,
        exposed_max: int = EXPOSED_MAX,
        waiting_max: int = WAITING_MAX,
        version: int = 2,
    ) -> "Joiner":
        """The joiner of `to_bytes`.

        Args:
            data: What it gave.
            exposed_max: As in `Joiner`.
            waiting_max: As in `Joiner`.
            version: Of the rows, see `Ring.from_bytes`.

        Raises:
            ValueError: Not made by it.
        """
        joiner = cls(exposed_max=exposed_max, waiting_max=waiting_max)
        try:
            now_ms, *sizes = _HEADER.unpack_from(data)
        except struct.error as error:
            raise ValueError("truncated") from error
        if len(data) != _HEADER.size + sum(sizes):
            raise ValueError(f"{len(data)} bytes, must be {_HEADER.size + sum(sizes)}")
        counts, groups, exposed, waiting = _split(memoryview(data)[_HEADER.size :], sizes)
        joiner._now_ms = now_ms
        joiner.counts = JoinCounts(*struct.unpack(f"<{len(_COUNTS)}Q", counts))
        for line in groups.decode().split("\n") if groups else ():
            experiment, epoch, variant, stratum, forced = line.split("\t")
            joiner._group((experiment, int(epoch), variant, int(stratum), forced == "1"))
        joiner._exposed = Ring.from_bytes(exposed, version=version)
        joiner._waiting = Ring.from_bytes(waiting, version=version)
        return joiner


_COUNTS: Final = tuple(field.name for field in fields(JoinCounts))


def _split(data: memoryview, sizes: Sequence[int]) -> Iterator[bytes]:
    position = 0
    for size in sizes:
        yield bytes(data[position : position + size])
        position += size
