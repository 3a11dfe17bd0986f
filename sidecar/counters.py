"""Decided counters in shared memory: they outlive a killed worker.

Owns the memory file that one worker writes and its supervisor reads, and the table that gives each
(experiment, epoch, variant) a slot in it. Refuses to reset a counter: readers keep the last value
they saw, so a slot can pass to another variant, and a worker to its replacement, without losing a
count.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Mapping
from typing import Final

# 128 KiB per worker: 64 experiments of 64 variants four times over, or 1,000 of 16.
SLOTS: Final = 16_384
_CELL_BYTES: Final = 8

Key = tuple[str, int, str]


class CounterFile:
    """SLOTS unsigned 64-bit counters in anonymous shared memory with one writer.

    An aligned 8-byte store is one instruction on every platform that we run on, so a reader never
    sees half a number.
    """

    def __init__(self, fd: int) -> None:
        """Map an existing memory file; the descriptor stays the caller's."""
        self.fd = fd
        self._map = mmap.mmap(fd, SLOTS * _CELL_BYTES)
        self.cells = memoryview(self._map).cast("Q")

    @classmethod
    def create(cls, name: str) -> CounterFile:
        """Make a new memory file, all zeros; a child may be given its descriptor."""
        fd = os.memfd_create(name)
        os.ftruncate(fd, SLOTS * _CELL_BYTES)
        return cls(fd)

    def close(self) -> None:
        """Unmap and close."""
        self.cells.release()
        self._map.close()
        os.close(self.fd)


class SlotTable:
    """Which (experiment, epoch, variant) counts in which slot.

    A slot whose key left is free again only after every worker has said that it serves a later
    plan: until then a request in flight may still count in it.
    """

    def __init__(self, size: int = SLOTS) -> None:
        """An empty table of `size` slots."""
        self._free = list(range(size - 1, -1, -1))
        self._slots: dict[Key, int] = {}
        self._leaving: dict[Key, int] = {}
        # Keys that found no free slot: they are served, but not counted as decided.
        self.exhausted = 0

    def assign(self, keys: Iterable[Key], generation: int) -> dict[Key, int]:
        """Slots of the keys of a new plan.

        Args:
            keys: Every variant of the plan.
            generation: Of the plan order that will carry the slots; keys that are not in it leave
                with it.
        """
        wanted = list(dict.fromkeys(keys))
        present = set(wanted)
        for key in self._slots:
            if key in present:
                self._leaving.pop(key, None)
            else:
                self._leaving.setdefault(key, generation)
        self.exhausted = 0
        for key in wanted:
            if key in self._slots:
                continue
            if not self._free:
                self.exhausted += 1
                continue
            self._slots[key] = self._free.pop()
        return {key: self._slots[key] for key in wanted if key in self._slots}

    def release(self, generation: int) -> None:
        """Free what left at or before `generation`, which all workers serve now."""
        for key, left_at in list(self._leaving.items()):
            if left_at <= generation:
                del self._leaving[key]
                self._free.append(self._slots.pop(key))

    @property
    def counting(self) -> Mapping[Key, int]:
        """Every key that may still count, with its slot."""
        return self._slots


class CounterReader:
    """What has been added to one worker's counters since the last look."""

    def __init__(self, file: CounterFile) -> None:
        """Start at the file's present values."""
        self._cells = file.cells
        self._seen: dict[int, int] = {}

    def take(self, keys: Mapping[Key, int]) -> dict[Key, int]:
        """Increments by key, only those above zero."""
        cells, seen = self._cells, self._seen
        grown: dict[Key, int] = {}
        for key, slot in keys.items():
            value = cells[slot]
            more = value - seen.get(slot, 0)
            if more:
                seen[slot] = value
                grown[key] = more
        return grown
