"""Distinct units of one epoch, on a hash sample that is the same in all its arms. Pure.

Owns what the sample ratio is tested on. Refuses to know experiments and deltas. Uniting is
idempotent and does not depend on order: the shift is the smallest that a sidecar used or that all
units fit with.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from turnout.contract import UNIT_SAMPLE_BIT, UNIT_SAMPLE_SHIFT_MAX

Hashes = npt.NDArray[np.uint64]
Group = tuple[str, int]  # variant, stratum


class EpochUnits:
    """Distinct units of one epoch, by variant and stratum, on one hash sample."""

    __slots__ = ("groups", "numbers", "shift")

    def __init__(self) -> None:
        self.shift = 0
        self.groups: dict[Group, Hashes] = {}
        # Set when the epoch is over: units by group, and by variant over all strata.
        self.numbers: tuple[dict[Group, int], dict[str, int]] | None = None

    @property
    def size(self) -> int:
        """Bytes of the hashes."""
        return sum(units.nbytes for units in self.groups.values())

    def add(self, group: Group, packed: bytes, shift: int, *, units_max: int) -> None:
        """Unites units; halves the sample, in all groups, as often as room asks for it."""
        while self.shift < shift:
            self._thin()
        new = np.unique(_sampled(np.frombuffer(packed, "<u8").astype(np.uint64), self.shift))
        known = self.groups.get(group)
        if known is not None and len(known):
            places = np.minimum(np.searchsorted(known, new), len(known) - 1)
            new = new[known[places] != new]
            new = np.sort(np.concatenate((known, new)), kind="stable") if len(new) else known
        self.groups[group] = new
        while sum(map(len, self.groups.values())) > units_max:
            if self.shift >= UNIT_SAMPLE_SHIFT_MAX:
                break
            self._thin()

    def count(self) -> tuple[dict[Group, int], dict[str, int]]:
        """Units by group, and by variant: a unit can be in several strata."""
        if self.numbers is not None:
            return self.numbers
        by_variant: dict[str, list[Hashes]] = {}
        for (variant, _), units in self.groups.items():
            by_variant.setdefault(variant, []).append(units)
        return (
            {group: len(units) for group, units in self.groups.items()},
            {name: _distinct(found) for name, found in by_variant.items()},
        )

    def close(self) -> None:
        """Keep the numbers only."""
        self.numbers = self.count()
        self.groups = {}

    def _thin(self) -> None:
        self.shift += 1
        self.groups = {group: _sampled(units, self.shift) for group, units in self.groups.items()}


def _sampled(units: Hashes, shift: int) -> Hashes:
    mask = np.uint64(((1 << shift) - 1) << UNIT_SAMPLE_BIT)
    return units[(units & mask) == 0] if shift else units


def _distinct(found: list[Hashes]) -> int:
    return len(found[0]) if len(found) == 1 else len(np.unique(np.concatenate(found)))
