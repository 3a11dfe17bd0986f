"""Verdicts of many cells at once: the decision table over arrays, without its words.

Owns the same rows as `verdicts.judge`, in the same order, for experiments x metrics of one policy;
a property test holds the two equal. Refuses reasons: they are asked of `judge`, for the few cells
whose verdict acts. 10,000 cells take about 2 ms, where `judge` takes 0.3 s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from control.stats.errors import BoolArray, FloatArray, check
from control.stats.looks import Policy
from control.stats.verdicts import WINDOW_ERRORS_LEAST, WINDOW_UNITS_LEAST, Kind

KINDS: Final = tuple(Kind)


class Effects(NamedTuple):
    """As `looks.Effect`: of the primary shape (cells,), of guardrails and strata (cells, each)."""

    effect: npt.ArrayLike
    low: npt.ArrayLike
    high: npt.ArrayLike


class Guardrails(NamedTuple):
    """As `looks.Guardrail`: effects of shape (cells, guardrails), the others fit it."""

    effects: Effects
    margin: npt.ArrayLike
    tolerance: npt.ArrayLike = 0.0


class Processes(NamedTuple):
    """As `looks.Evidence`: ln e of shape (cells, processes), alpha fits it."""

    log_e: npt.ArrayLike
    alpha: npt.ArrayLike


class Windows(NamedTuple):
    """As `looks.Window`: shapes (cells, windows)."""

    difference: npt.ArrayLike
    limit: npt.ArrayLike
    std_error: npt.ArrayLike
    n_control: npt.ArrayLike
    n_treatment: npt.ArrayLike


class Breakers(NamedTuple):
    """As `looks.Breaker`: shapes (cells, breakers)."""

    broken: npt.ArrayLike
    needed: npt.ArrayLike


class FlipCounts(NamedTuple):
    """As `looks.Flips`: shapes (cells, epochs)."""

    flipped: npt.ArrayLike
    units: npt.ArrayLike


class Arms(NamedTuple):
    """As `looks.Arm`: shapes (cells,); None where a floor applies to no cell."""

    units: npt.ArrayLike
    buckets: npt.ArrayLike | None = None
    events: npt.ArrayLike | None = None
    non_events: npt.ArrayLike | None = None
    label_coverage: npt.ArrayLike | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """As `looks.Look`, of many cells; None where no cell has any. alarms: Any, shape (cells,)."""

    primary: Effects
    control: Arms
    treatment: Arms
    duration_s: npt.ArrayLike = 0.0
    guardrails: Guardrails | None = None
    strata: Effects | None = None
    fast_lanes: Processes | None = None
    windows: Windows | None = None
    breakers: Breakers | None = None
    sample_ratios: Processes | None = None
    losses: Processes | None = None
    flips: FlipCounts | None = None
    alarms: npt.ArrayLike = False


class Verdicts(NamedTuple):
    """codes: Index into KINDS, int8. ships_candidate: As of `verdicts.Verdict`. Shape (cells,)."""

    codes: npt.NDArray[np.int8]
    ships_candidate: BoolArray

    def kind(self, cell: int) -> Kind:
        """The verdict of one cell."""
        return KINDS[int(self.codes[cell])]

    def are(self, kind: Kind) -> BoolArray:
        """Which cells have this verdict."""
        return np.asarray(self.codes == KINDS.index(kind))


def judge_all(cells: Cells, policy: Policy) -> Verdicts:
    """The one verdict of each cell; what `verdicts.judge` says of it alone.

    Args:
        cells: Anytime-valid evidence, oriented; NaN as of `judge`.
        policy: Of all cells.

    Raises:
        ValueError: A count, margin, limit or alpha is outside its range, or shapes do not fit.

    Source: as of `verdicts.judge`. O(cells x inputs).
    """
    _check_cells(cells)
    primary = _Usable.of(cells.primary, open_ends=False)
    shape = primary.effect.shape
    minimum = policy.minimum_improvement
    gauge = primary.effect if policy.rule == "point" else primary.low
    passes = (primary.low > 0) & (gauge >= minimum)
    unclear, harmed = _unclear(cells), _harmed(cells)
    below = primary.high < minimum
    rows: tuple[tuple[Kind, BoolArray], ...] = (
        (Kind.ROLLBACK, _rollback(cells, policy)),
        (Kind.INVALID, _invalid(cells, policy)),
        (Kind.WARMING_UP, ~primary.usable | _warming_up(cells, policy)),
        (Kind.PROMOTE, passes & ~unclear & ~harmed),
        (Kind.KEEP_CONTROL_WORSE, primary.high < 0),
        (Kind.KEEP_CONTROL_FUTILE, below & (primary.low < -policy.equivalence)),
        (Kind.NO_DIFFERENCE, below),
        (Kind.INCONCLUSIVE, _at_maximum(cells, policy)),
    )
    codes = np.select(
        [np.broadcast_to(holds, shape) for _, holds in rows],
        [np.int8(KINDS.index(kind)) for kind, _ in rows],
        np.int8(KINDS.index(Kind.CONTINUE)),
    )
    alarms = np.asarray(cells.alarms, dtype=np.bool_)
    verdicts = Verdicts(codes, np.zeros(shape, dtype=np.bool_))
    replaced = verdicts.are(Kind.PROMOTE) | verdicts.are(Kind.CONTINUE)
    doubted = replaced & (alarms | harmed | (passes & unclear))
    verdicts = Verdicts(
        np.where(doubted, np.int8(KINDS.index(Kind.HOLD)), codes), verdicts.ships_candidate
    )
    ships = verdicts.are(Kind.PROMOTE)
    if policy.ship_if_non_inferior:
        ships = ships | (verdicts.are(Kind.NO_DIFFERENCE) & ~(unclear | harmed | alarms))
    return Verdicts(verdicts.codes, ships)


class _Usable(NamedTuple):
    effect: FloatArray
    low: FloatArray
    high: FloatArray
    usable: BoolArray

    @classmethod
    def of(cls, effects: Effects, *, open_ends: bool = True) -> _Usable:
        e, low, high = np.broadcast_arrays(
            *(np.asarray(field, dtype=np.float64) for field in effects)
        )
        if open_ends:
            ends = (low < np.inf) & (high > -np.inf)
        else:
            with np.errstate(invalid="ignore", over="ignore"):
                ends = np.isfinite(high - low)
        ordered = (low <= e) & (e <= high) & (low < high)
        return cls(e, low, high, ends & np.isfinite(e) & ordered)

    def harm(self, tolerance: npt.ArrayLike) -> BoolArray:
        reached = self.effect <= -np.asarray(tolerance)
        return np.asarray(self.usable & (self.high < 0) & reached)


def _rollback(cells: Cells, policy: Policy) -> BoolArray:
    # A primary with an open low end warms up, but its harm is seen all the same.
    found = _Usable.of(cells.primary).harm(policy.harm_tolerance) | _fired(cells.fast_lanes)
    if cells.guardrails is not None:
        guarded = _Usable.of(cells.guardrails.effects)
        found = found | _any(guarded.harm(cells.guardrails.tolerance))
    if cells.windows is not None:
        difference, limit, std_error, n_c, n_t = (np.asarray(field) for field in cells.windows)
        enough = np.minimum(n_c, n_t) >= WINDOW_UNITS_LEAST
        clear = (std_error > 0) & (difference > WINDOW_ERRORS_LEAST * std_error)
        found = found | _any(enough & (difference > limit) & clear)
    if cells.breakers is not None:
        broken, needed = np.asarray(cells.breakers.broken), np.asarray(cells.breakers.needed)
        found = found | _any(broken >= needed)
    return np.asarray(found)


def _invalid(cells: Cells, policy: Policy) -> BoolArray:
    found = _fired(cells.sample_ratios) | _fired(cells.losses)
    if cells.flips is not None:
        allowed = policy.max_flip_share * np.asarray(cells.flips.units)
        found = found | _any(np.asarray(cells.flips.flipped) > allowed)
    return found


def _warming_up(cells: Cells, policy: Policy) -> BoolArray:
    found = ~(np.asarray(cells.duration_s, dtype=np.float64) >= policy.min_duration_s)
    if cells.guardrails is not None:
        found = found | _any(~_Usable.of(cells.guardrails.effects).usable)
    if cells.strata is not None:
        found = found | _any(~_Usable.of(cells.strata).usable)
    for processes in (cells.fast_lanes, cells.sample_ratios, cells.losses):
        if processes is not None:
            found = found | _any(np.isnan(np.asarray(processes.log_e, dtype=np.float64)))
    if cells.windows is not None:
        difference, error = np.asarray(cells.windows.difference), cells.windows.std_error
        found = found | _any(~(np.isfinite(difference) & np.isfinite(np.asarray(error))))
    floors = (
        policy.min_units,
        policy.min_buckets,
        policy.min_events,
        policy.min_events,
        policy.min_label_coverage,
    )
    for arm in (cells.control, cells.treatment):
        for seen, floor in zip(arm, floors, strict=True):
            if seen is not None:
                found = found | ~(np.asarray(seen, dtype=np.float64) >= floor)
    return np.asarray(found)


def _at_maximum(cells: Cells, policy: Policy) -> BoolArray:
    units = np.asarray(cells.control.units) + np.asarray(cells.treatment.units)
    long, many = policy.max_duration_s, policy.max_units
    late = np.asarray(cells.duration_s) >= (math.inf if long is None else long)
    return np.asarray(late & (long is not None) | (units >= (math.inf if many is None else many)))


def _unclear(cells: Cells) -> BoolArray:
    if cells.guardrails is None:
        return np.asarray(False)
    low = np.asarray(cells.guardrails.effects.low, dtype=np.float64)
    return _any(~(low > -np.asarray(cells.guardrails.margin)))


def _harmed(cells: Cells) -> BoolArray:
    if cells.strata is None:
        return np.asarray(False)
    return _any(np.asarray(cells.strata.high, dtype=np.float64) < 0)


def _fired(processes: Processes | None) -> BoolArray:
    if processes is None:
        return np.asarray(False)
    # math.log, not numpy's: at a threshold met exactly the last bit decides, as it does in `judge`.
    alphas, where = np.unique(np.asarray(processes.alpha), return_inverse=True)
    thresholds = np.array([-math.log(alpha) for alpha in alphas])[where]
    log_e = np.asarray(processes.log_e, dtype=np.float64)
    return _any(log_e >= thresholds.reshape(np.shape(processes.alpha)))


def _any(found: BoolArray) -> BoolArray:
    return np.asarray(np.any(found, axis=-1))


def _check_cells(cells: Cells) -> None:
    for name, arm in (("control", cells.control), ("treatment", cells.treatment)):
        for field in ("units", "buckets", "events", "non_events"):
            count = getattr(arm, field)
            if count is not None:
                check(f"{name}.{field}", count, ge=0, whole=True)
    if cells.guardrails is not None:
        check("guardrail.margin", cells.guardrails.margin, ge=0)
        check("guardrail.tolerance", cells.guardrails.tolerance, ge=0)
    for processes in (cells.fast_lanes, cells.sample_ratios, cells.losses):
        if processes is not None:
            check("alpha", processes.alpha, gt=0, lt=1)
    if cells.windows is not None:
        check("window.limit", cells.windows.limit, ge=0)
    if cells.breakers is not None:
        check("breaker.needed", cells.breakers.needed, ge=1, whole=True)
