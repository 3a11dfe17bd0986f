"""Which units were exposed, by arm: what the sample ratio is tested on.

Owns a hash sample of the units of each epoch, and which of them were sent. Refuses to know times
and requests. All variants and strata of an epoch have the same sample: 1 unit in 2^shift by bits of
its hash that are of no other use, with the smallest shift that all of them fit with. So the sample
depends on which units there were, not on their order, and the arms' numbers compare.

A supervisor keeps it: its workers' exposures say which units there were, before any is left out for
want of room. What it forgets, or a successor never knew, is sent again and merges to once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from sidecar.increments import UnitSample
from turnout.contract import UNIT_SAMPLE_BIT, UNIT_SAMPLE_MAX, UNIT_SAMPLE_SHIFT_MAX

# What is remembered of all epochs, about 60 B for each unit; beyond it the oldest epochs forget.
SEEN_UNITS_MAX: Final = 1_048_576
SEEN_EPOCHS_MAX: Final = 4_096

Group = tuple[str, int]  # variant, stratum


@dataclass(slots=True)
class _Epoch:
    """Units of one epoch: all of the sample, and those that no take has handed out."""

    shift: int = 0
    seen: dict[Group, set[int]] = field(default_factory=dict)
    fresh: dict[Group, set[int]] = field(default_factory=dict)
    count: int = 0
    changed: bool = False


class UnitSamples:
    """The samples of all epochs."""

    def __init__(self) -> None:
        """No unit yet."""
        self._epochs: dict[tuple[str, int], _Epoch] = {}
        self._seen = 0

    def add(self, experiment: str, epoch: int, group: Group, units: Iterable[int]) -> None:
        """Note exposed units."""
        found = self._epochs.get((experiment, epoch))
        if found is None:
            found = self._epochs[experiment, epoch] = _Epoch()
        seen = found.seen.setdefault(group, set())
        mask = _mask(found.shift)
        fresh = {unit for unit in set(units) - seen if not unit & mask}
        if not fresh:
            return
        seen |= fresh
        found.fresh.setdefault(group, set()).update(fresh)
        found.changed = True
        found.count += len(fresh)
        self._seen += len(fresh)
        while found.count > UNIT_SAMPLE_MAX and found.shift < UNIT_SAMPLE_SHIFT_MAX:
            self._thin(found)

    def take(self) -> dict[tuple[str, int], UnitSample]:
        """What is new since the last take."""
        taken: dict[tuple[str, int], UnitSample] = {}
        for key, found in self._epochs.items():
            if found.changed:
                taken[key] = UnitSample(found.shift, found.fresh)
                # The groups stay: a shift that rises must reach every arm.
                found.fresh = {group: set() for group in found.fresh}
                found.changed = False
        for key in list(self._epochs):
            if self._seen <= SEEN_UNITS_MAX and len(self._epochs) <= SEEN_EPOCHS_MAX:
                break
            self._seen -= self._epochs.pop(key).count
        return taken

    def _thin(self, found: _Epoch) -> None:
        found.shift += 1
        mask = _mask(found.shift)
        for groups in (found.seen, found.fresh):
            for group, units in groups.items():
                groups[group] = {unit for unit in units if not unit & mask}
        before, found.count = found.count, sum(map(len, found.seen.values()))
        self._seen += found.count - before


def _mask(shift: int) -> int:
    """The bits that are 0 in the hash of a unit of the sample."""
    return ((1 << shift) - 1) << UNIT_SAMPLE_BIT
