"""Evidence by bucket of units: what a verdict's variances are computed from. Values only.

Owns the shape of it: a `Cell` for each (epoch, variant, stratum) of one experiment, with one number
for each of `contract.UNIT_BUCKETS` buckets of units. A unit's requests are not independent of each
other, its bucket's sums are of other buckets' (STATISTICS: bucketed ratio variance, Deng, Knoblich
and Lu 2018, arXiv 1803.06336). Refuses to merge (`control.cellbook`) and to judge
(`control.rollout.looks`).

Counted in a cell: requests that a variant served, not forced, that began after the epoch's warm-up.
Arrays are handed out by reference, once a second to whoever reduces them: they are read, never
written, and not kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from control.rollout.seen import Sketch
from turnout.contract import UNIT_BUCKET_SHIFT, UNIT_BUCKETS

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
HOURS: Final = 24


def _zeros() -> Integers:
    zeros = np.zeros(UNIT_BUCKETS, np.int64)
    zeros.flags.writeable = False
    return zeros


# What nothing was counted in: most cells have no labels. Nobody can write to them.
NO_COUNTS: Final = _zeros()
NO_SUMS: Final = NO_COUNTS.astype(np.float64)
NO_SUMS.flags.writeable = False


class CellKey(NamedTuple):
    """What cells are kept by."""

    epoch: int
    variant: str
    stratum: int


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch that the run can still be judged by.

    Attributes:
        epoch: Its number.
        start_ms: Unix milliseconds.
        split_ppm: Every variant, control included -> parts per million of the eligible units: the
            design's shares.
        warm_up_ms: Requests that began earlier than this after `start_ms` are in no cell.
    """

    epoch: int
    start_ms: int
    split_ppm: Mapping[str, int]
    warm_up_ms: int = 0


@dataclass(slots=True, eq=False)
class Cell:
    """Sums by bucket of units, arrays of shape (UNIT_BUCKETS,), and what is beside them.

    Attributes:
        requests: Requests served.
        errors, slow: Of `requests`. Slow is beyond the experiment's shortest SLO.
        latency_over: Declared latency threshold in milliseconds -> requests that took longer.
        labelled: Requests with prediction and label.
        tp, fp, fn, tn: Of `labelled`, by whether prediction and label are of the positive class;
            tp and tn have prediction and label equal, so that tp + tn are the right answers, and
            what is missing to `labelled` is wrong within one side (more than two classes).
        scored, score_sum, score_squares: Requests with a score, and its sums.
        costed, cost_sum, cost_squares: Requests with a cost, and its sums.
        latency: Time to last byte sent; the time bucket in which the warm-up ended is left out of
            it whole.
        units: Distinct units exposed, warm-up included, of the hash sample.
        unit_sample_shift: The sample is 1 unit in 2^shift, the same in all cells of the epoch.
        warm_up: Requests left out of the arrays, because they began in the warm-up.
        missing: Requests counted of which no sidecar told the buckets: of an older version, or
            beyond a bound. More than a few, and the arrays are not all of the evidence.
        hours: Requests by hour of the day (UTC), shape (24,), warm-up included.
    """

    requests: Integers = field(default_factory=lambda: NO_COUNTS)
    errors: Integers = field(default_factory=lambda: NO_COUNTS)
    slow: Integers = field(default_factory=lambda: NO_COUNTS)
    latency_over: dict[float, Integers] = field(default_factory=dict)
    labelled: Integers = field(default_factory=lambda: NO_COUNTS)
    tp: Integers = field(default_factory=lambda: NO_COUNTS)
    fp: Integers = field(default_factory=lambda: NO_COUNTS)
    fn: Integers = field(default_factory=lambda: NO_COUNTS)
    tn: Integers = field(default_factory=lambda: NO_COUNTS)
    scored: Integers = field(default_factory=lambda: NO_COUNTS)
    score_sum: Floats = field(default_factory=lambda: NO_SUMS)
    score_squares: Floats = field(default_factory=lambda: NO_SUMS)
    costed: Integers = field(default_factory=lambda: NO_COUNTS)
    cost_sum: Floats = field(default_factory=lambda: NO_SUMS)
    cost_squares: Floats = field(default_factory=lambda: NO_SUMS)
    latency: Sketch = field(default_factory=Sketch)
    units: int = 0
    unit_sample_shift: int = 0
    warm_up: int = 0
    missing: int = 0
    hours: Integers = field(default_factory=lambda: np.zeros(HOURS, np.int64))


@dataclass(frozen=True, slots=True)
class Cells:
    """All of one experiment, for the epochs of its run.

    Attributes:
        experiment: Its id within the tenant.
        epochs: The run's, oldest first, the present one last.
        cells: Of these epochs; a missing one has counted nothing.
        revision: Another one whenever something in `cells` is different: whoever keeps what he
            reduced need not do it again for the same revision and epochs.
        units: (epoch, variant) -> distinct units of the sample over all strata: a unit can be in
            several.
    """

    experiment: str
    epochs: tuple[Epoch, ...] = ()
    cells: Mapping[CellKey, Cell] = field(default_factory=dict)
    revision: int = 0
    units: Mapping[tuple[int, str], int] = field(default_factory=dict)

    def of(self, epoch: int, variant: str) -> dict[int, Cell]:
        """The cells of a variant in one epoch, by stratum."""
        return {
            key.stratum: cell
            for key, cell in self.cells.items()
            if key.epoch == epoch and key.variant == variant
        }


def bucket_of(unit_hash: int) -> int:
    """The bucket of a unit: the top bits of its hash, as sidecars count."""
    return unit_hash >> UNIT_BUCKET_SHIFT
