"""Safety lanes: anytime-valid tests of "the candidate has more bad events than its share".

Owns the first bad events of units by slot and block, and the tilt e-process over them. Refuses
counts of raw events under a sticky unit: one user who always fails would be evidence for ever.

The scheme. Units are hashed to arms independently of what they meet. So without harm the arms of
the units, in the order of their first bad event within a block, are independent draws: the
candidate's with probability theta = f_candidate / (f_candidate + f_control). For n_T first events
of the candidate among n, exp(d n_T) / (1 + theta (e^d - 1))^n is then a martingale of mean 1 for
every log odds ratio d, and so is its mixture over a grid (Hoeffding's tilt). The same holds from
any later slot of the block on, given the past, because units that were met earlier in the block
are left out: a block mixes over the slots at which it may begin to count (RESTARTS), so that the
quiet minutes before a change do not weigh against it. A block begins every five minutes and lives
an hour, because by then most units have had their first event. Block k of an experiment has the
threshold pi^2 k^2 / (6 alpha_lane); the sum of the error probabilities of all blocks is alpha_lane
(union bound).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from control.rollout.policy import Policy
from control.rollout.run import PastEpoch, Run
from control.rollout.seen import LaneState
from control.rollout.words import Kind
from turnout.contract import (
    FIRST_BAD_BLOCK_EVERY,
    FIRST_BAD_BLOCK_SLOTS,
    FIRST_BAD_SLOT_S,
    FIRST_BAD_UNITS_MAX,
)

# Log odds ratios that the mixture covers, equally weighted: odds of 1.1 to 20.
GRID: Final = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0)
# Weights of counting from the block's first slot, second slot, ...; they add up to 1. Half for the
# first, because that is when a bad model shows itself; after FIRST_BAD_BLOCK_EVERY slots the next
# block has begun.
RESTARTS: Final = (0.5, *([0.5 / (FIRST_BAD_BLOCK_EVERY - 1)] * (FIRST_BAD_BLOCK_EVERY - 1)))
# Labels join for 24 hours; blocks that began before that get no more events.
BLOCKS_KEPT: Final = 24 * 3600 // (FIRST_BAD_SLOT_S * FIRST_BAD_BLOCK_EVERY)
BLOCKS_BETWEEN_PRUNINGS: Final = 12
# A slot this far beyond the oldest that is kept comes from a broken clock: it is dropped, because a
# unit's slots are the bits of one integer (at most 1 KiB).
SLOTS_AHEAD_MAX: Final = 8192
SLOT_MS: Final = FIRST_BAD_SLOT_S * 1000
_LIFE_MASK: Final = (1 << FIRST_BAD_BLOCK_SLOTS) - 1
_LOG_GRID: Final = math.log(len(GRID))
_LOG_RESTARTS: Final = tuple(math.log(weight) for weight in RESTARTS)
_FORMAT: Final = b"LANES\x01"


class CorruptTracker(ValueError):
    """The bytes are no tracker."""


@dataclass(frozen=True, slots=True)
class LaneFacts:
    """What one epoch's design fixes for its lanes.

    Attributes:
        epoch: The epoch.
        epoch_start_ms: Origin of its slots, Unix milliseconds.
        control: Name of the control variant.
        thetas: Candidate -> f_candidate / (f_candidate + f_control), each in (0, 1).
        kinds: Kinds in use.
        alpha_lane: `safety.alpha` / (kinds in use x candidates).
        blocks_before: Blocks begun in earlier epochs.
        blocks: Blocks begun in this one.
    """

    epoch: int
    epoch_start_ms: int
    control: str
    thetas: dict[str, float]
    kinds: tuple[Kind, ...]
    alpha_lane: float
    blocks_before: int
    blocks: int


def lane_facts(run: Run, policy: Policy, *, now_ms: int) -> tuple[LaneFacts, ...]:
    """Facts of the run's present epoch and of the earlier ones whose late evidence counts.

    An epoch in which no candidate serves beside control has no lanes and is left out.
    """
    present = PastEpoch(
        epoch=run.epoch,
        start_ms=run.epoch_start_ms,
        split_ppm=run.split_ppm,
        blocks_before=run.blocks_before,
        blocks=run.blocks_begun(now_ms),
    )
    found = (_facts(epoch, policy) for epoch in (present, *reversed(run.past)))
    return tuple(facts for facts in found if facts.thetas and facts.blocks)


def _facts(epoch: PastEpoch, policy: Policy) -> LaneFacts:
    control_ppm = epoch.split_ppm.get(policy.control, 0)
    thetas = {
        name: epoch.split_ppm[name] / (epoch.split_ppm[name] + control_ppm)
        for name in policy.candidates
        if control_ppm > 0 and epoch.split_ppm.get(name, 0) > 0
    }
    return LaneFacts(
        epoch=epoch.epoch,
        epoch_start_ms=epoch.start_ms,
        control=policy.control,
        thetas=thetas,
        kinds=policy.kinds,
        alpha_lane=policy.alpha / max(1, len(policy.kinds) * len(thetas)),
        blocks_before=epoch.blocks_before,
        blocks=epoch.blocks,
    )


def assess_all(
    run: Run, policy: Policy, trackers: Mapping[int, BlockTracker], *, now_ms: int
) -> tuple[LaneState, ...]:
    """One state per kind in use and candidate of the present epoch; crossed ones of earlier epochs.

    Args:
        run: The live run.
        policy: Its policy.
        trackers: By epoch; one that is missing has seen nothing.
        now_ms: Unix milliseconds.
    """
    states: list[LaneState] = []
    for facts in lane_facts(run, policy, now_ms=now_ms):
        tracker = trackers.get(facts.epoch)
        if facts.epoch == run.epoch:
            states += (tracker or BlockTracker()).assess(facts, now_ms=now_ms)
        elif tracker is not None:
            states += [s for s in tracker.assess(facts, now_ms=now_ms) if s.crossed]
    return tuple(states)


def log_threshold(block: int, alpha_lane: float) -> float:
    """ln(pi^2 k^2 / (6 alpha_lane)) for block k >= 1: 1/k^2 sums to pi^2/6 over all blocks."""
    return math.log(math.pi**2 * block**2 / (6.0 * alpha_lane))


def log_tilt(candidate: float, control: float, theta: float) -> float:
    """Logarithm of the tilt e-value, mixed over GRID.

    Args:
        candidate: First bad events of the candidate, >= 0; planning gives expected numbers.
        control: Of control, >= 0.
        theta: Probability that one is the candidate's without harm, in (0, 1).

    Source: Hoeffding 1963 (tilting); Ville's inequality. Complexity: O(len(GRID)).
    """
    if candidate + control == 0:
        return 0.0
    n = candidate + control
    logs = [d * candidate - n * cost for d, cost in zip(GRID, _costs(theta), strict=True)]
    return _log_sum_exp(logs) - _LOG_GRID


@lru_cache(maxsize=1024)
def _costs(theta: float) -> tuple[float, ...]:
    """What each event costs: ln(1 + theta (e^d - 1)) for every d of GRID."""
    return tuple(math.log1p(theta * math.expm1(d)) for d in GRID)


def log_block(candidate: Sequence[float], control: Sequence[float], theta: float) -> float:
    """Logarithm of one block's e-value.

    Args:
        candidate: Units whose first bad event in the block fell into its slot 0, 1, ..., the last
            entry holding all later slots; len(RESTARTS) entries.
        control: The same of control.
        theta: As in `log_tilt`.
    """
    logs: list[float] = []
    n_candidate: float = 0
    n_control: float = 0
    for restart in reversed(range(len(RESTARTS))):
        n_candidate += candidate[restart]
        n_control += control[restart]
        logs.append(_LOG_RESTARTS[restart] + log_tilt(n_candidate, n_control, theta))
    return _log_sum_exp(logs)


def _log_sum_exp(logs: list[float]) -> float:
    largest = max(logs)
    return largest + math.log(sum(math.exp(x - largest) for x in logs))


def blocks_of(slot: int) -> range:
    """Indices (0-based, within the epoch) of the blocks that a slot belongs to."""
    first = max(0, -(-(slot - FIRST_BAD_BLOCK_SLOTS + 1) // FIRST_BAD_BLOCK_EVERY))
    return range(first, slot // FIRST_BAD_BLOCK_EVERY + 1)


class BlockTracker:
    """First bad events of one epoch of one experiment.

    Merging is a union: any order and any number of duplicates give the same state. Bounded: at most
    `FIRST_BAD_UNITS_MAX` units per kind and block; beyond it both arms keep the same, smaller hash
    sample.
    """

    __slots__ = ("_ledgers",)

    def __init__(self) -> None:
        self._ledgers: dict[Kind, _Ledger] = {}

    def add(
        self, kind: Kind, slot: int, variant: str, unit_hashes: Iterable[int], sample_shift: int = 0
    ) -> None:
        """Units that had a bad event of this kind in this slot.

        Args:
            kind: Kind of bad event.
            slot: floor((time of the request - epoch start) / FIRST_BAD_SLOT_S); a negative one
                (skewed clock) counts as 0.
            variant: The units' variant in this epoch.
            unit_hashes: 64-bit hashes; for a random unit each event has its own.
            sample_shift: Only hashes with `hash & (2**sample_shift - 1) == 0` were kept.
        """
        ledger = self._ledgers.get(kind)
        if ledger is None:
            ledger = self._ledgers[kind] = _Ledger()
        ledger.add(max(0, slot), variant, unit_hashes, sample_shift)

    def assess(self, facts: LaneFacts, *, now_ms: int) -> list[LaneState]:
        """One state per kind in use and candidate, in that order.

        The state is that of the block furthest beyond its threshold when one has crossed, else of
        the live block nearest to it.
        """
        now_block = max(0, now_ms - facts.epoch_start_ms) // (SLOT_MS * FIRST_BAD_BLOCK_EVERY)
        states = []
        for kind in facts.kinds:
            # Made even without events: what is kept moves on with the time.
            ledger = self._ledgers.setdefault(kind, _Ledger())
            ledger.prune(now_block)
            states += [ledger.state(facts, kind, name, now_block) for name in facts.thetas]
        return states

    def to_bytes(self) -> bytes:
        """Deterministic: equal evidence gives equal bytes, whatever the order it came in."""
        kinds = sorted(kind for kind, ledger in self._ledgers.items() if ledger)
        parts = [_FORMAT, struct.pack("<H", len(kinds))]
        for kind in kinds:
            parts += [_text(kind), self._ledgers[kind].to_bytes()]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> BlockTracker:
        """The tracker of `to_bytes`.

        Raises:
            CorruptTracker: The bytes are none.
        """
        reader = _Reader(data)
        tracker = cls()
        if reader.take(len(_FORMAT)) != _FORMAT:
            raise CorruptTracker("unknown format")
        for _ in range(reader.number("<H")):
            try:
                kind = Kind(reader.text())
            except ValueError as error:
                raise CorruptTracker(str(error)) from error
            tracker._ledgers[kind] = _Ledger.read(reader)
        if not reader.at_end:
            raise CorruptTracker("bytes after the end")
        return tracker


class _Ledger:
    """One kind: each unit's slots as a bit mask, and what the blocks count of it.

    Invariant: `_counts` is a function of (`_units`, `_base`); bit i of a mask is slot
    `_base * FIRST_BAD_BLOCK_EVERY + i`.
    """

    __slots__ = ("_base", "_cache", "_counts", "_crossed", "_facts", "_shift", "_totals", "_units")

    def __init__(self) -> None:
        self._shift = 0
        self._base = 0  # first block that is kept
        self._units: dict[str, dict[int, int]] = {}
        # Block -> variant -> units by the slot of their first event; see `log_block`.
        self._counts: dict[int, dict[str, list[int]]] = {}
        self._totals: dict[int, int] = {}
        self._facts: LaneFacts | None = None
        self._cache: dict[tuple[str, int], float] = {}
        self._crossed: set[tuple[str, int]] = set()

    def __bool__(self) -> bool:
        """False while it is as good as new, so that looking at it leaves no trace."""
        return bool(self._shift or self._base or self._units)

    def add(self, slot: int, variant: str, unit_hashes: Iterable[int], sample_shift: int) -> None:
        if sample_shift > self._shift:
            self._resample(sample_shift)
        ahead = slot - self._base * FIRST_BAD_BLOCK_EVERY
        if not 0 <= ahead < SLOTS_AHEAD_MAX:
            return
        units = self._units.setdefault(variant, {})
        bit = 1 << ahead
        for unit in unit_hashes:
            before = units.get(unit, 0)
            if not before & bit and not unit & ((1 << self._shift) - 1):
                self._count(slot, variant, before)
                units[unit] = before | bit
        while max((self._totals.get(b, 0) for b in blocks_of(slot)), default=0) > (
            FIRST_BAD_UNITS_MAX
        ):
            self._resample(self._shift + 1)

    def _count(self, slot: int, variant: str, before: int) -> None:
        """One more slot of a unit that had those of the mask `before`."""
        last = len(RESTARTS) - 1
        for block in blocks_of(slot):
            if block < self._base:
                continue
            offset = slot - block * FIRST_BAD_BLOCK_EVERY
            mask = (before >> ((block - self._base) * FIRST_BAD_BLOCK_EVERY)) & _LIFE_MASK
            if mask:
                first = (mask & -mask).bit_length() - 1
                if offset >= first or first > last < offset:
                    continue
                self._counts[block][variant][min(first, last)] -= 1
            else:
                self._totals[block] = self._totals.get(block, 0) + 1
            row = self._counts.setdefault(block, {}).setdefault(variant, [0] * len(RESTARTS))
            row[min(offset, last)] += 1
            self._forget(block)

    def _forget(self, block: int) -> None:
        if self._facts is not None:
            for name in self._facts.thetas:
                self._cache.pop((name, block), None)
                self._crossed.discard((name, block))

    def _resample(self, shift: int) -> None:
        """Keep a smaller hash sample, the same in all arms, and count anew."""
        sample = (1 << shift) - 1
        kept = {
            variant: {unit: mask for unit, mask in units.items() if not unit & sample}
            for variant, units in self._units.items()
        }
        self._shift = shift
        self._restore(kept)

    def _restore(self, units: dict[str, dict[int, int]]) -> None:
        self._units, self._counts, self._totals = units, {}, {}
        self._cache, self._crossed, self._facts = {}, set(), None
        for variant, masks in units.items():
            for mask in masks.values():
                seen = 0
                while rest := mask & ~seen:
                    bit = rest & -rest
                    slot = self._base * FIRST_BAD_BLOCK_EVERY + bit.bit_length() - 1
                    self._count(slot, variant, seen)
                    seen |= bit

    def prune(self, now_block: int) -> None:
        """Forget blocks that can get no more events, an hour's worth at a time."""
        if now_block - self._base <= BLOCKS_KEPT + BLOCKS_BETWEEN_PRUNINGS:
            return
        base = now_block - BLOCKS_KEPT
        shift = (base - self._base) * FIRST_BAD_BLOCK_EVERY
        self._base = base
        self._units = {
            variant: {unit: mask >> shift for unit, mask in units.items() if mask >> shift}
            for variant, units in self._units.items()
        }
        for block in [b for b in self._counts if b < base]:
            self._forget(block)
            del self._counts[block]
            self._totals.pop(block, None)

    def state(self, facts: LaneFacts, kind: Kind, name: str, now_block: int) -> LaneState:
        if facts != self._facts:
            self._refresh(facts)
        newest = min(now_block, facts.blocks - 1)
        oldest = now_block - FIRST_BAD_BLOCK_SLOTS // FIRST_BAD_BLOCK_EVERY + 1
        for block in self._counts:
            if (name, block) not in self._cache and block < facts.blocks:
                self._evaluate(facts, name, block)
        blocks = {b for crossed, b in self._crossed if crossed == name}
        blocks = blocks or {b for b in range(max(0, oldest), newest + 1) if b in self._counts}
        best = max(
            sorted(blocks or {newest}),
            key=lambda b: (
                self._cache.get((name, b), 0.0)
                - log_threshold(facts.blocks_before + b + 1, facts.alpha_lane)
            ),
        )
        row = self._counts.get(best, {})
        return LaneState(
            kind=kind,
            variant=name,
            block=facts.blocks_before + best + 1,
            log_e_value=self._cache.get((name, best), 0.0),
            log_threshold=log_threshold(facts.blocks_before + best + 1, facts.alpha_lane),
            candidate_events=sum(row.get(name, ())),
            control_events=sum(row.get(facts.control, ())),
            theta=facts.thetas[name],
            crossed=(name, best) in self._crossed,
        )

    def _refresh(self, facts: LaneFacts) -> None:
        """Other facts than before: what was computed from the old ones goes."""
        old = self._facts
        self._facts = facts
        if old is None or (old.thetas, old.alpha_lane, old.blocks_before, old.control) != (
            facts.thetas,
            facts.alpha_lane,
            facts.blocks_before,
            facts.control,
        ):
            self._cache, self._crossed = {}, set()

    def _evaluate(self, facts: LaneFacts, name: str, block: int) -> None:
        none = [0] * len(RESTARTS)
        row = self._counts[block]
        log_e = log_block(row.get(name, none), row.get(facts.control, none), facts.thetas[name])
        self._cache[name, block] = log_e
        if log_e >= log_threshold(facts.blocks_before + block + 1, facts.alpha_lane):
            self._crossed.add((name, block))

    def to_bytes(self) -> bytes:
        parts = [struct.pack("<BIH", self._shift, self._base, len(self._units))]
        for variant in sorted(self._units):
            units = self._units[variant]
            parts += [_text(variant), struct.pack("<I", len(units))]
            for unit in sorted(units):
                mask = units[unit]
                size = (mask.bit_length() + 7) // 8
                parts.append(struct.pack("<QH", unit, size) + mask.to_bytes(size, "little"))
        return b"".join(parts)

    @classmethod
    def read(cls, reader: _Reader) -> _Ledger:
        ledger = cls()
        ledger._shift, ledger._base = reader.number("<B"), reader.number("<I")
        units: dict[str, dict[int, int]] = {}
        for _ in range(reader.number("<H")):
            masks = units.setdefault(reader.text(), {})
            for _ in range(reader.number("<I")):
                unit = reader.number("<Q")
                masks[unit] = int.from_bytes(reader.take(reader.number("<H")), "little")
        ledger._restore(units)
        return ledger


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<H", len(data)) + data


class _Reader:
    """Bytes read from the front; running out of them is corruption."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)

    def take(self, size: int) -> bytes:
        if self._at + size > len(self._data):
            raise CorruptTracker("bytes end early")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def text(self) -> str:
        try:
            return self.take(self.number("<H")).decode()
        except UnicodeDecodeError as error:
            raise CorruptTracker(str(error)) from error
