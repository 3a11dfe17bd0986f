"""Cells of one experiment: increments by bucket of units, labels and units, merged. Pure.

Owns the arrays that verdicts are computed from, and their bytes. Refuses to judge, and to look at a
delta twice: `control.evidence` gives each once.

Merging is addition and union, so that order leaves no trace but in the last bits of sums of scores
and costs. Bounded, of a tenant: CELLS_MAX cells of some 5 kB, and CELL_BYTES_MAX of arrays, 8 KiB
each (a cell without labels has 2 or 3). A cell that finds no room counts nothing any more, and
shows all of that as missing. Of units, an experiment keeps the sample of UNITS_EPOCHS epochs, 512
KiB each at the most; of older ones it keeps the numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from control.cellbytes import Array, Frozen
from control.epochunits import EpochUnits, Group
from control.outcomes import Observation, Value
from control.rollout.cells import (
    HOURS,
    NO_COUNTS,
    NO_SUMS,
    Cell,
    CellKey,
    Cells,
    Epoch,
    bucket_of,
)
from control.rollout.policy import Policy
from control.rollout.run import PAST_EPOCHS_MAX, Run
from control.tallies import Latency, Room
from turnout.contract import (
    BUCKET_INCREMENT_MAX,
    LATENCY_THRESHOLDS_MAX,
    UNIT_BUCKETS,
    UNIT_SAMPLE_MAX,
    UNIT_SAMPLE_SHIFT_MAX,
)
from turnout.v1alpha1.config_service_pb2 import BucketCounts, CellDelta, CountDelta, UnitDelta

CELLS_MAX: Final = 50_000  # of all experiments of a tenant
CELL_BYTES_MAX: Final = 256 * 1024 * 1024  # of all experiments of a tenant
EPOCHS_KEPT: Final = PAST_EPOCHS_MAX + 1
UNITS_EPOCHS: Final = 4
# Of an epoch whose tenant has no room left.
UNITS_LEAST: Final = 4_096
VALUE_MAX: Final = 1e100  # of a score or cost: its square is a number, too
WARM_UP_REQUESTS_MAX: Final = 1 << 40
_ARRAY_BYTES: Final = UNIT_BUCKETS * 8
_HASH_BYTES: Final = 8
_HOUR_S: Final = 3600
_COUNTED: Final = ("requests", "errors", "slow", "labelled", "tp", "fp", "fn", "tn")
_VALUED: Final = (
    ("scored", "score_sum", "score_squares"),
    ("costed", "cost_sum", "cost_squares"),
)
_ARRAYS: Final = (*_COUNTED, *itertools.chain.from_iterable(_VALUED))
_REVISIONS: Final = itertools.count(1)


@dataclass(slots=True)
class _Held:
    """A cell, and what its derived parts are made from.

    Attributes:
        cell: As it is handed out.
        counted: Requests, by the counts: what is missing in the cell is told from it.
        latency: What the cell's sketch shows.
        starved: There was no room once: it counts nothing any more.
        stale: The derived parts are not up to date.
    """

    cell: Cell = field(default_factory=Cell)
    counted: int = 0
    latency: Latency = field(default_factory=Latency)
    starved: bool = False
    stale: bool = True


# -- Checking --------------------------------------------------------------------------------------


def fault_of_cell(delta: CellDelta) -> str:
    """Why this is no increment of a cell; empty when it is one."""
    if len(delta.over) > LATENCY_THRESHOLDS_MAX or delta.warm_up > WARM_UP_REQUESTS_MAX:
        return "cells: over or warm_up"
    if any(not 0 < over.threshold_ms < math.inf for over in delta.over):
        return "cells: threshold_ms"
    tables = (delta.requests, delta.errors, delta.slow, *(over.requests for over in delta.over))
    for table in tables:
        if len(table.buckets) != 2 * len(table.counts):
            return "cells: columns differ in length"
        buckets = np.frombuffer(table.buckets, "<u2").astype(np.int64)
        if len(buckets) and (buckets[-1] >= UNIT_BUCKETS or (np.diff(buckets) <= 0).any()):
            return "cells: buckets must ascend and be below UNIT_BUCKETS"
        if len(buckets) and max(table.counts) >= BUCKET_INCREMENT_MAX:
            return "cells: a count out of range"
    return ""


def excess_of_cell(delta: CellDelta) -> tuple[str, int, int] | None:
    """Where part of a bucket's requests is more than all of them: field, value, requests.

    Args:
        delta: It has no `fault_of_cell`.
    """
    named = [("errors", delta.errors), ("slow", delta.slow)]
    named += [(f"over[{place}].requests", over.requests) for place, over in enumerate(delta.over)]
    parts = [(name, table) for name, table in named if table.counts]
    if not parts:
        return None
    requests = np.zeros(UNIT_BUCKETS, np.int64)
    _add(requests, delta.requests)
    for name, table in parts:
        buckets, counts = np.frombuffer(table.buckets, "<u2"), np.array(table.counts, np.int64)
        excess = counts > requests[buckets]
        if excess.any():
            at = int(np.argmax(excess))
            return f"{name}[{buckets[at]}]", int(counts[at]), int(requests[buckets[at]])
    return None


def fault_of_units(delta: UnitDelta) -> str:
    """Why these are no units; empty when they are."""
    if len(delta.unit_hashes) % _HASH_BYTES or delta.sample_shift > UNIT_SAMPLE_SHIFT_MAX:
        return "units: sample_shift or unit_hashes"
    return ""


# -- One experiment --------------------------------------------------------------------------------


class CellBook:
    """The cells of one experiment."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._held: dict[CellKey, _Held] = {}
        self._units: dict[int, EpochUnits] = {}
        # Epoch -> until when requests are in its warm-up, unix milliseconds; only those with one.
        self._warm_until: dict[int, int] = {}
        self._changed = True
        self._view: Cells | None = None

    # -- Adding ------------------------------------------------------------------------------------

    def begin(self, epoch: int, start_ms: int, warm_up_ms: int, begun: Mapping[int, int]) -> None:
        """An epoch begins; those that are too old are let go.

        Args:
            epoch: Its number.
            start_ms: Unix milliseconds.
            warm_up_ms: How long it leaves requests out.
            begun: All epochs that have begun and are kept.
        """
        if warm_up_ms:
            self._warm_until.setdefault(epoch, start_ms + warm_up_ms)
        kept = sorted(begun)[-EPOCHS_KEPT:]
        for key in [key for key in self._held if key.epoch < kept[0]]:
            self._release(self._held.pop(key))
        for table in (self._units, self._warm_until):
            for old in [old for old in table if old < kept[0]]:
                del table[old]
        for old, units in self._units.items():
            if old < kept[-min(UNITS_EPOCHS, len(kept))] and units.numbers is None:
                self._room.cell_bytes -= units.size
                units.close()
        self._changed = True

    def add_count(self, delta: CountDelta) -> None:
        """Notes what was served, and how fast; buckets come by `add`."""
        held = self._hold(CellKey(delta.epoch, delta.variant, delta.stratum))
        if held is None:
            return
        held.counted += delta.requests
        held.cell.hours[delta.bucket_unix_s // _HOUR_S % HOURS] += delta.requests
        if delta.bucket_unix_s * 1000 >= self._warm_until.get(delta.epoch, 0):
            held.latency.add(delta)

    def adopt(self, key: CellKey, requests: int) -> None:
        """Requests that were counted before there were cells: they are missing here."""
        held = self._hold(key)
        if held is not None:
            held.counted += requests

    def add(self, delta: CellDelta) -> None:
        """Adds increments; they passed `fault_of_cell`."""
        held = self._hold(CellKey(delta.epoch, delta.variant, delta.stratum))
        if held is None:
            self._room.leave_out("cells", sum(delta.requests.counts))
            return
        cell = held.cell
        if not self._make_room(held, delta):
            self._room.leave_out("cells", sum(delta.requests.counts))
            return
        cell.warm_up += delta.warm_up
        _add(cell.requests, delta.requests)
        _add(cell.errors, delta.errors)
        _add(cell.slow, delta.slow)
        for over in delta.over:
            array = cell.latency_over[over.threshold_ms]
            if array is not cell.slow:
                _add(array, over.requests)

    def add_units(self, delta: UnitDelta) -> None:
        """Unites units of an epoch; those of one that is long over are left out."""
        units = self._units.get(delta.epoch)
        if units is None:
            units = self._units[delta.epoch] = EpochUnits()
        if units.numbers is not None:
            return
        before = units.size
        group = (delta.variant, delta.stratum)
        units_max = UNITS_LEAST if self._full else UNIT_SAMPLE_MAX
        units.add(group, delta.unit_hashes, delta.sample_shift, units_max=units_max)
        self._room.cell_bytes += units.size - before
        self._touch_epoch(delta.epoch)

    def add_observation(self, seen: Observation) -> None:
        """Counts a judged answer that a user got."""
        held = self._judged(CellKey(seen.epoch, seen.variant, seen.stratum), seen.time_ms)
        if held is None or not self._grow(held, ("labelled", "tp", "fp", "fn", "tn")):
            return
        cell, bucket = held.cell, bucket_of(seen.unit)
        cell.labelled[bucket] += 1
        if seen.said != seen.positive:
            (cell.fp if seen.said else cell.fn)[bucket] += 1
        elif seen.correct:
            (cell.tp if seen.positive else cell.tn)[bucket] += 1

    def add_value(self, value: Value) -> None:
        """Counts a score or a cost."""
        held = self._judged(CellKey(value.epoch, value.variant, value.stratum), value.time_ms)
        if held is None:
            return
        bucket = bucket_of(value.unit)
        for number, names in zip((value.score, value.cost), _VALUED, strict=True):
            if number is not None and abs(number) > VALUE_MAX:
                self._room.leave_out("cells", 1)
            elif number is not None and self._grow(held, names):
                count, total, squares = (getattr(held.cell, name) for name in names)
                count[bucket] += 1
                total[bucket] += number
                squares[bucket] += number * number

    def forget(self) -> None:
        """Gives its room back; it is not to be used any more."""
        for held in self._held.values():
            self._release(held)
        self._room.cell_bytes -= sum(units.size for units in self._units.values())

    # -- Room --------------------------------------------------------------------------------------

    @property
    def _full(self) -> bool:
        """No further array."""
        return self._room.cell_bytes + _ARRAY_BYTES > CELL_BYTES_MAX

    def _hold(self, key: CellKey) -> _Held | None:
        held = self._held.get(key)
        if held is None:
            if self._room.cells >= CELLS_MAX:
                return None
            self._room.cells += 1
            held = self._held[key] = _Held()
        held.stale = self._changed = True
        return held

    def _judged(self, key: CellKey, time_ms: int) -> _Held | None:
        """Where to count what is said of a request; nowhere when it was in the warm-up."""
        if time_ms < self._warm_until.get(key.epoch, 0):
            return None
        return self._hold(key)

    def _make_room(self, held: _Held, delta: CellDelta) -> bool:
        names = [name for name in ("requests", "errors", "slow") if getattr(delta, name).counts]
        if not self._grow(held, names):
            return False
        over = held.cell.latency_over
        for one in delta.over:
            new = one.threshold_ms
            if over.get(new, NO_COUNTS).flags.writeable:
                continue
            if self._full or len(over) > LATENCY_THRESHOLDS_MAX:
                held.starved = True
                return False
            self._room.cell_bytes += _ARRAY_BYTES
            over[new] = np.zeros(UNIT_BUCKETS, np.int64)
        return True

    def _grow(self, held: _Held, names: tuple[str, ...] | list[str]) -> bool:
        """Whether a cell has all of these arrays now; half of what came would be a lie."""
        for name in names:
            array = getattr(held.cell, name)
            if held.starved or (array.flags.writeable is False and self._full):
                held.starved = True
                self._room.leave_out("cells", 1)
                return False
            if not array.flags.writeable:
                self._room.cell_bytes += _ARRAY_BYTES
                setattr(held.cell, name, np.zeros(UNIT_BUCKETS, array.dtype))
        return not held.starved

    def _release(self, held: _Held) -> None:
        self._room.cells -= 1
        self._room.cell_bytes -= _ARRAY_BYTES * sum(1 for _ in _arrays(held.cell))

    def _touch_epoch(self, epoch: int) -> None:
        self._changed = True
        for key, held in self._held.items():
            if key.epoch == epoch:
                held.stale = True

    # -- Views -------------------------------------------------------------------------------------

    def units(self, epoch: int) -> dict[str, int] | None:
        """Distinct units of the sample by variant; None when no sidecar told any."""
        units = self._units.get(epoch)
        return None if units is None else units.count()[1]

    def view(self, run: Run, policy: Policy) -> Cells:
        """The cells of a run's epochs, by reference; the same object while nothing is new."""
        epochs = (
            *(Epoch(p.epoch, p.start_ms, p.split_ppm, policy.warm_up_ms) for p in run.past),
            Epoch(run.epoch, run.epoch_start_ms, run.split_ppm, policy.warm_up_ms),
        )
        before = self._view
        if before is not None and not self._changed and before.epochs == epochs:
            return before
        numbers = {e.epoch: self._units[e.epoch].count() for e in epochs if e.epoch in self._units}
        kept = {epoch.epoch for epoch in epochs}
        cells = {}
        for key, held in self._held.items():
            if key.epoch not in kept:
                continue
            if held.stale:
                self._refresh(key, held, numbers, policy.slow_after_ms)
            cells[key] = held.cell
        self._changed = False
        self._view = Cells(
            run.experiment,
            epochs,
            cells,
            next(_REVISIONS),
            {(epoch, name): n for epoch, (_, by) in numbers.items() for name, n in by.items()},
        )
        return self._view

    def totals(self, epoch: int | None) -> dict[str, tuple[int, int, int]]:
        """Variant -> requests left out as of a warm-up, requests missing, shift of the sample."""
        found: dict[str, tuple[int, int, int]] = {}
        for key, held in self._held.items():
            if epoch in (None, key.epoch):
                warm_up, missing, _ = found.get(key.variant, (0, 0, 0))
                units = self._units.get(key.epoch) if epoch is not None else None
                found[key.variant] = (
                    warm_up + held.cell.warm_up,
                    missing + _missing(held),
                    units.shift if units is not None else 0,
                )
        return found

    def _refresh(
        self,
        key: CellKey,
        held: _Held,
        numbers: Mapping[int, tuple[dict[Group, int], dict[str, int]]],
        slow_after_ms: float | None,
    ) -> None:
        cell, group = held.cell, (key.variant, key.stratum)
        cell.latency = held.latency.seen()
        cell.missing = _missing(held)
        if key.epoch in numbers:
            cell.units = numbers[key.epoch][0].get(group, 0)
            cell.unit_sample_shift = self._units[key.epoch].shift
        if slow_after_ms is not None:
            cell.latency_over[slow_after_ms] = cell.slow
        held.stale = False

    # -- Bytes -------------------------------------------------------------------------------------

    def frozen(self) -> Frozen:
        """A copy of everything, to be turned into bytes anywhere."""
        arrays: list[Array] = []
        cells = []
        for key in sorted(self._held):
            held, names = self._held[key], []
            for name, array in _arrays(held.cell):
                names.append(name)
                arrays.append(array.copy())
            told = [held.counted, held.cell.warm_up, held.starved, held.latency.to_json()]
            cells.append([*key, *told, held.cell.hours.tolist(), names])
        epochs = []
        for epoch in sorted(self._units):
            units = self._units[epoch]
            closed = None
            if units.numbers is not None:
                groups, variants = units.numbers
                closed = [[[*group, n] for group, n in sorted(groups.items())], variants]
            arrays.extend(units.groups[group] for group in sorted(units.groups))
            epochs.append([epoch, units.shift, sorted(units.groups), closed])
        head = {"cells": cells, "units": epochs, "warm": sorted(self._warm_until.items())}
        return Frozen(head, arrays)

    @classmethod
    def thawed(cls, head: Mapping[str, Any], arrays: Iterator[Array], room: Room) -> CellBook:
        """The book of `frozen`.

        Args:
            head: Its head.
            arrays: Its arrays, and those of the books after it.
            room: What it shares.
        """
        book = cls(room)
        book._warm_until = dict(head["warm"])
        for epoch, variant, stratum, counted, warm_up, starved, latency, hours, names in head[
            "cells"
        ]:
            held = book._held[CellKey(epoch, variant, stratum)] = _Held(counted=counted)
            held.starved, held.latency = starved, Latency.from_json(latency)
            held.cell.warm_up, held.cell.hours = warm_up, np.array(hours, np.int64)
            for name in names:
                array = next(arrays).copy()
                if isinstance(name, str):
                    setattr(held.cell, name, array)
                else:
                    held.cell.latency_over[name] = array
            room.cells += 1
            room.cell_bytes += _ARRAY_BYTES * len(names)
        for epoch, shift, groups, closed in head["units"]:
            units = book._units[epoch] = EpochUnits()
            units.shift = shift
            units.groups = {(name, stratum): next(arrays) for name, stratum in groups}
            if closed is not None:
                units.numbers = ({(name, s): n for name, s, n in closed[0]}, closed[1])
            room.cell_bytes += units.size
        return book


def _add(array: npt.NDArray[np.int64], delta: BucketCounts) -> None:
    if delta.counts:
        # Every bucket is there once: a fancy index would count a second one for nothing.
        array[np.frombuffer(delta.buckets, "<u2")] += np.array(delta.counts, np.int64)


def _missing(held: _Held) -> int:
    return max(0, held.counted - int(held.cell.requests.sum()) - held.cell.warm_up)


def _arrays(cell: Cell) -> Iterator[tuple[str | float, Array]]:
    """Arrays of a cell's own, in order: not those that are shared, as nothing was counted."""
    for name in _ARRAYS:
        array = getattr(cell, name)
        if array is not NO_COUNTS and array is not NO_SUMS:
            yield name, array
    for threshold_ms in sorted(cell.latency_over):
        # The experiment's own limit is `slow`, once more.
        array = cell.latency_over[threshold_ms]
        if array is not cell.slow and array.flags.writeable:
            yield threshold_ms, array
