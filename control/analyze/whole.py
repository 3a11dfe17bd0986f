"""Metrics that need the distribution, not sums: quantiles, area under the curve, drift.

Owns their scans. Order statistics are found exactly by counting in ever finer bins, so that no
column is sorted or held in memory; only the distinct scores of an area under the curve are sorted,
by DuckDB, which spills them to disk.
"""
# ruff: noqa: S608 - every name goes through `quoted`, every text through `literal`

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from control.analyze.aggregate import MISSING
from control.analyze.data import Data, literal, quoted
from control.analyze.errors import BadInput
from control.analyze.estimate import TOO_FEW, UNITS_LEAST, Compared, Settings, number
from control.analyze.metrics import Metric, Roles, is_number
from control.analyze.plans import number_of, positive_of
from control.analyze.result import Arm, MetricResult
from control.stats.cdfseq import quantile_ab_counts, sequence_ranks
from control.stats.confseq import asymptotic_sequence
from control.stats.drift import binned_drift
from control.stats.means import estimate
from control.stats.quantiles import (
    ClusterSums,
    interval_ranks,
    quantile_se,
    quantile_se_clustered,
)
from control.stats.ranks import auc_of_pairs

SCANNED: Final = ("quantile", "auc", "drift")
BINS: Final = 4096
FETCHED_MAX: Final = 100_000  # values between two bins' ends that are ranked at once
DRIFT_BINS: Final = 10
CATEGORIES_MAX: Final = 50
ERROR_ALPHA: Final = 0.05  # of the interval that a quantile's error is read from


@dataclass(slots=True)
class _Quantile:
    """One arm: n values of `units` units; order statistics by rank; error of the estimate."""

    n: int
    units: int
    clustered: bool
    estimate: float
    se: float | None
    ranks: Mapping[int, float]


@dataclass(slots=True)
class Scanner:
    """Reads the rows again for the metrics that need it; what it has counted it keeps."""

    data: Data
    roles: Roles
    positive: str | None
    flipped: bool = False
    _sizes: dict[tuple[str, str, str | None], tuple[int, int]] = field(default_factory=dict)
    _known: dict[tuple[str, str, str | None, int], float] = field(default_factory=dict)

    def compare(
        self,
        metric: Metric,
        control: str,
        variant: str,
        settings: Settings,
        *,
        stratum: str | None = None,
    ) -> Compared:
        """Estimate one metric of one treatment against control.

        Raises:
            BadInput: Values are not finite, or labels not two classes.
        """
        by_kind = {"quantile": self._quantiles, "auc": self._aucs, "drift": self._drift}
        return by_kind[metric.kind](metric, control, variant, settings, stratum)

    def _where(self, variant: str, stratum: str | None) -> str:
        roles = self.roles
        arm = f"{quoted(roles.variant)}::VARCHAR"
        conditions = [f"{arm} = {literal(variant)}"]
        if stratum is not None and roles.strata:
            group = f"coalesce({quoted(roles.strata)}::VARCHAR, {literal(MISSING)})"
            conditions.append(f"{group} = {literal(stratum)}")
        if roles.unit:
            unit = quoted(roles.unit)
            conditions.append(f"{unit} IS NOT NULL")
            if self.flipped:
                conditions.append(
                    f"{unit} NOT IN (SELECT {unit} FROM {self.data.table} WHERE {unit} IS NOT NULL "
                    f"AND {arm} IS NOT NULL GROUP BY {unit} HAVING min({arm}) <> max({arm}))"
                )
        return " AND ".join(conditions)

    def _quantiles(
        self, metric: Metric, control: str, variant: str, settings: Settings, stratum: str | None
    ) -> Compared:
        arms = [self._quantile(metric, arm, settings, stratum) for arm in (control, variant)]
        empty = _empty(metric, variant)
        if any(arm is None for arm in arms):
            return Compared(empty, note="no value in an arm")
        one, two = (arm for arm in arms if arm is not None)
        difference = two.estimate - one.estimate
        result = replace(
            empty,
            control=Arm(one.units, one.estimate),
            treatment=Arm(two.units, two.estimate),
            difference=difference,
            relative=number(difference / one.estimate) if one.estimate else None,
        )
        variance = None
        if one.se is not None and two.se is not None and one.se + two.se > 0:
            variance = one.se**2 + two.se**2
            result = _with_interval(result, difference, variance, settings)
        if one.clustered or two.clustered:
            if variance is None:
                return Compared(result, note="no spread, or too few values for an error")
            return _with_sequence(result, difference, variance, settings)
        ends = [
            self._sequence_ends(metric, arm, state, settings, stratum)
            for arm, state in ((control, one), (variant, two))
        ]
        return Compared(
            replace(
                result,
                cs_low=number(ends[1][0] - ends[0][1]),
                cs_high=number(ends[1][1] - ends[0][0]),
                always_valid_p=self._same_quantile(
                    metric, (control, variant), ends, settings, stratum
                ),
            ),
            None,
            variance,
            "" if variance else "no spread, or too few values for an error",
        )

    def _quantile(
        self, metric: Metric, arm: str, settings: Settings, stratum: str | None
    ) -> _Quantile | None:
        n, units = self._size(metric, arm, stratum)
        if n == 0:
            return None
        place = metric.q * (n - 1)
        lower, upper = interval_ranks(n, metric.q, alpha=ERROR_ALPHA)
        wanted = {math.floor(place), math.ceil(place)}
        wanted |= {rank for rank in (lower, upper) if 0 <= rank < n}
        if units == n:
            ranks = sequence_ranks(n, metric.q, alpha=settings.alpha / 2, t_opt=settings.n_star / 2)
            wanted |= {rank for rank in ranks if 0 <= rank < n}
        at = self._ranked(metric, arm, stratum, sorted(wanted))
        low, high = at[math.floor(place)], at[math.ceil(place)]
        middle = low + (high - low) * (place - math.floor(place))
        se = None
        if n >= 2 and lower >= 0 and upper < n:
            se = quantile_se(at[lower], at[upper], n=n, alpha=ERROR_ALPHA)
        if se is not None and units != n:
            se = self._clustered_error(metric, arm, stratum, se, middle) if units > 1 else None
        return _Quantile(n, units, units != n, middle, se, at)

    def _sequence_ends(
        self, metric: Metric, arm: str, state: _Quantile, settings: Settings, stratum: str | None
    ) -> tuple[float, float]:
        low, high = sequence_ranks(
            state.n, metric.q, alpha=settings.alpha / 2, t_opt=settings.n_star / 2
        )
        wanted = [rank for rank in (low, high) if 0 <= rank < state.n]
        at = self._ranked(metric, arm, stratum, wanted)
        return at.get(low, -math.inf), at.get(high, math.inf)

    def _same_quantile(
        self,
        metric: Metric,
        arms: tuple[str, str],
        ends: Sequence[tuple[float, float]],
        settings: Settings,
        stratum: str | None,
    ) -> float:
        """P-value of equal quantiles; bins are fine where both quantiles are believed to be."""
        finite = [end for pair in ends for end in pair if math.isfinite(end)]
        low, high = min(finite, default=0.0), max(finite, default=0.0)
        counts = []
        for arm in arms:
            found = self._bins(metric, arm, stratum, low, high)
            counts.append(np.array([found.get(bin_, 0) for bin_ in range(-1, BINS + 2)]))
        return quantile_ab_counts(counts[0], counts[1], q=metric.q, t_opt=settings.n_star / 2)

    def _bins(
        self, metric: Metric, arm: str, stratum: str | None, low: float, high: float
    ) -> dict[int, int]:
        width = (high - low) / BINS or 1.0
        sql = (
            f"SELECT CASE WHEN y < {low!r}::DOUBLE THEN -1 WHEN y > {high!r}::DOUBLE "
            f"THEN {BINS + 1} ELSE floor((y - {low!r}::DOUBLE) / {width!r}::DOUBLE)::INTEGER END "
            f"AS b, count(*) FROM {self._values(metric, arm, stratum)} GROUP BY 1"
        )
        return {min(max(b, -1), BINS + 1): n for b, n in self.data.run("comparing quantiles", sql)}

    def _size(self, metric: Metric, arm: str, stratum: str | None) -> tuple[int, int]:
        key = (metric.name, arm, stratum)
        if key not in self._sizes:
            units = f"count(DISTINCT {quoted(self.roles.unit)})" if self.roles.unit else "count(*)"
            y = number_of(self.data, metric.column)
            sql = (
                f"SELECT count(*), {units}, count_if(isnan({y})), count_if(isinf({y})) "
                f"FROM {self.data.table} WHERE {y} IS NOT NULL AND {self._where(arm, stratum)}"
            )
            n, distinct, nans, infinities = self.data.run(f"counting {metric.name}", sql)[0]
            if nans or infinities:
                raise BadInput(
                    f"metric {metric.name!r}: column {metric.column!r} has {nans} NaN and "
                    f"{infinities} infinite values; correct or empty them, or leave them out with "
                    "--drop-invalid"
                )
            self._sizes[key] = n, distinct
        return self._sizes[key]

    def _values(self, metric: Metric, arm: str, stratum: str | None) -> str:
        y = number_of(self.data, metric.column)
        where = f"{y} IS NOT NULL AND {self._where(arm, stratum)}"
        return f"(SELECT {y} AS y FROM {self.data.table} WHERE {where})"

    def _ranked(
        self, metric: Metric, arm: str, stratum: str | None, ranks: Sequence[int]
    ) -> dict[int, float]:
        """Order statistics x[rank], ranks from 0 and ascending."""
        key = (metric.name, arm, stratum)
        missing = [rank for rank in ranks if (*key, rank) not in self._known]
        if missing:
            values = self._values(metric, arm, stratum)
            sql = f"SELECT min(y), max(y), count(*) FROM {values}"
            low, high, n = self.data.run(f"ranking {metric.name}", sql)[0]
            for rank, value in self._narrowed(values, missing, low, high, 0, n).items():
                self._known[*key, rank] = value
        return {rank: self._known[*key, rank] for rank in ranks}

    def _narrowed(
        self, values: str, ranks: Sequence[int], low: float, high: float, below: int, n: int
    ) -> dict[int, float]:
        """Find ranks among the n values in [low, high], `below` of which all others are less."""
        if low == high:
            return dict.fromkeys(ranks, low)
        within = f"FROM {values} WHERE y BETWEEN {low!r}::DOUBLE AND {high!r}::DOUBLE"
        if n <= FETCHED_MAX:
            wanted = ", ".join(str(rank - below) for rank in ranks)
            sql = (
                f"SELECT r, y FROM (SELECT y, row_number() OVER (ORDER BY y) - 1 AS r {within}) "
                f"WHERE r IN ({wanted})"
            )
            return {below + r: y for r, y in self.data.run("ranking values", sql)}
        # Halves first: the difference of two ends may be beyond the largest number.
        share = f"(y / 2 - {low / 2!r}::DOUBLE) / {high / 2 - low / 2!r}::DOUBLE"
        sql = (
            f"SELECT least(floor({share} * {BINS}), {BINS - 1})::INTEGER AS b, count(*), min(y), "
            f"max(y) {within} GROUP BY b ORDER BY b"
        )
        found: dict[int, float] = {}
        for _, count, least, most in self.data.run("ranking values", sql):
            mine = [rank for rank in ranks if below <= rank < below + count]
            if mine:
                found |= self._narrowed(values, mine, least, most, below, count)
            below += count
        return found

    def _clustered_error(
        self, metric: Metric, arm: str, stratum: str | None, se: float, quantile: float
    ) -> float:
        y = number_of(self.data, metric.column)
        unit = quoted(self.roles.unit or "")
        sql = (
            "SELECT count(*), sum(s), sum(n), sum(s * s), sum(n * n), sum(s * n) FROM "
            f"(SELECT count_if({y} <= {quantile!r}::DOUBLE)::DOUBLE AS s, count(*)::DOUBLE AS n "
            f"FROM {self.data.table} AS turnout_rows WHERE {y} IS NOT NULL AND "
            f"{self._where(arm, stratum)} GROUP BY turnout_rows.{unit})"
        )
        sums = ClusterSums(*self.data.run(f"clustering {metric.name}", sql)[0])
        return quantile_se_clustered(se, sums, q=metric.q)

    def _aucs(
        self, metric: Metric, control: str, variant: str, settings: Settings, stratum: str | None
    ) -> Compared:
        found = [self._auc(arm, stratum) for arm in (control, variant)]
        empty = _empty(metric, variant)
        if found[0] is None or found[1] is None:
            return Compared(empty, note="an arm lacks a class: labels are all alike")
        (n_c, auc_c, v_c), (n_t, auc_t, v_t) = found[0], found[1]
        difference = auc_t - auc_c
        result = replace(
            empty,
            control=Arm(n_c, auc_c),
            treatment=Arm(n_t, auc_t),
            difference=difference,
            relative=number(difference / auc_c) if auc_c else None,
        )
        variance = v_c + v_t
        if not variance > 0:
            return Compared(result, note="no spread in the data")
        result = _with_interval(result, difference, variance, settings)
        return _with_sequence(result, difference, variance, settings)

    def _auc(self, arm: str, stratum: str | None) -> tuple[int, float, float] | None:
        """Units, area and its variance, all by the ranks of the scores and so exact."""
        roles = self.roles
        score = number_of(self.data, roles.score or "")
        positive = positive_of(self.data, roles.label or "", "label", self.positive)
        where = (
            f"{score} IS NOT NULL AND {quoted(roles.label or '')} IS NOT NULL AND "
            f"{self._where(arm, stratum)}"
        )
        units = f"count(DISTINCT {quoted(roles.unit)})" if roles.unit else "count(*)"
        sql = (
            f"SELECT count(*), {units}, min({score}), max({score}) "
            f"FROM {self.data.table} WHERE {where}"
        )
        n, distinct_units, low, high = self.data.run("reading scores", sql)[0]
        if n == 0:
            return None
        if not (math.isfinite(low) and math.isfinite(high)):
            raise BadInput(
                f"score: column {roles.score!r} has NaN or infinite values; correct or empty them, "
                "or leave them out with --drop-invalid"
            )
        unit = quoted(roles.unit) if roles.unit else "0"
        scored = (
            f"(SELECT {unit} AS u, {score} AS s, {positive} AS hit FROM {self.data.table} "
            f"WHERE {where})"
        )
        won, positives, negatives = self.data.run("ranking scores", _pairs_sql(scored))[0]
        if not positives or not negatives:
            return None
        area, se = auc_of_pairs(won / 2, positives, negatives)
        if n == distinct_units or not roles.unit:
            return n, area, se**2
        sql = _by_unit_sql(scored, area, positives, negatives)
        squares, with_positives, with_negatives = self.data.run("clustering scores", sql)[0]
        # A class that one unit has alone has no spread over units that could be known.
        known = min(with_positives, with_negatives) > 1
        variance = squares * distinct_units / (distinct_units - 1) if known else 0.0
        return distinct_units, area, variance

    def _drift(
        self, metric: Metric, control: str, variant: str, settings: Settings, stratum: str | None
    ) -> Compared:
        column = self.roles.prediction or self.roles.score or ""
        empty = _empty(metric, variant)
        if is_number(self.data.columns[column]):
            value = replace(metric, column=column, name=f"{metric.name} of {column}")
            n, _ = self._size(value, control, stratum)
            if n == 0 or self._size(value, variant, stratum)[0] == 0:
                return Compared(empty, note="no value in an arm")
            ranks = sorted({n * part // DRIFT_BINS for part in range(1, DRIFT_BINS)})
            edges = sorted(set(self._ranked(value, control, stratum, ranks).values()))
            y = number_of(self.data, column)
            place = " + ".join(f"({y} >= {edge!r}::DOUBLE)::INTEGER" for edge in edges)
        else:
            y = place = f"{quoted(column)}::VARCHAR"
        counts: list[dict[str, int]] = []
        for arm in (control, variant):
            sql = (
                f"SELECT ({place})::VARCHAR AS b, count(*) FROM {self.data.table} WHERE {y} "
                f"IS NOT NULL AND {self._where(arm, stratum)} GROUP BY 1 "
                f"ORDER BY 2 DESC, 1 LIMIT {CATEGORIES_MAX}"
            )
            counts.append(dict(self.data.run("comparing predictions", sql)))
        bins = sorted(counts[0].keys() | counts[1].keys())
        arms = [[side.get(name, 0) for name in bins] for side in counts]
        result = replace(empty, control=Arm(sum(arms[0]), None), treatment=Arm(sum(arms[1]), None))
        if len(bins) < 2 or not sum(arms[0]) or not sum(arms[1]):
            return Compared(result, note="predictions are all alike: no drift can be measured")
        drift = binned_drift(arms[0], arms[1])
        if self._repeats(y, (control, variant), stratum):
            # What chance alone gives is known of independent rows only.
            note = f"PSI {drift.psi:.3g} has no p-value: units have several rows, which go together"
            return Compared(replace(result, difference=drift.psi), note=note)
        note = f"predictions differ (PSI {drift.psi:.3g} > {drift.psi_limit:.3g})"
        result = replace(result, difference=drift.psi, p_value=drift.psi_p)
        return Compared(result, note=note if drift.alarm else "")

    def _repeats(self, value: str, arms: Sequence[str], stratum: str | None) -> bool:
        """Whether a unit of an arm has more than one value."""
        if not self.roles.unit:
            return False
        unit = quoted(self.roles.unit)
        return any(
            self.data.run(
                "counting units",
                f"SELECT count(*) > count(DISTINCT {unit}) FROM {self.data.table} "
                f"WHERE {value} IS NOT NULL AND {self._where(arm, stratum)}",
            )[0][0]
            for arm in arms
        )


def _steps_sql(scored: str) -> str:
    """Per score the positives p and negatives q of it, and those up to it, of rows (u, s, hit)."""
    return (
        "(SELECT s, p, q, sum(p) OVER upto AS p_upto, sum(q) OVER upto AS q_upto FROM "
        f"(SELECT s, count_if(hit) AS p, count_if(NOT hit) AS q FROM {scored} GROUP BY s) "
        "WINDOW upto AS (ORDER BY s ROWS UNBOUNDED PRECEDING))"
    )


def _pairs_sql(scored: str) -> str:
    """Twice the pairs in which the positive scores higher, ties half; positives, negatives."""
    return (
        f"SELECT sum(p * (2 * q_upto - q))::DOUBLE, sum(p)::DOUBLE, sum(q)::DOUBLE "
        f"FROM {_steps_sql(scored)}"
    )


def _by_unit_sql(scored: str, area: float, positives: float, negatives: float) -> str:
    """Sum of the squares of what each unit adds to the area; units with either class.

    Source: Obuchowski 1997, eq. 5 (structural components of DeLong et al. summed by unit).
    """
    return (
        "SELECT sum(d * d), count_if(p > 0), count_if(q > 0) FROM (SELECT "
        f"sum(CASE WHEN hit THEN ((2 * q_upto - steps.q) / {2 * negatives!r}::DOUBLE "
        f"- {area!r}::DOUBLE) / {positives!r}::DOUBLE "
        f"ELSE ((2 * ({positives!r}::DOUBLE - p_upto) + steps.p) / {2 * positives!r}::DOUBLE "
        f"- {area!r}::DOUBLE) / {negatives!r}::DOUBLE END) AS d, "
        "count_if(hit) AS p, count_if(NOT hit) AS q "
        f"FROM {scored} AS scored JOIN {_steps_sql(scored)} AS steps ON scored.s = steps.s "
        "GROUP BY scored.u)"
    )


def _with_interval(
    result: MetricResult, difference: float, variance: float, settings: Settings
) -> MetricResult:
    test = estimate(difference, math.sqrt(variance), alpha=settings.alpha)
    return replace(
        result,
        standard_error=float(test.se),
        ci_low=float(test.ci_low),
        ci_high=float(test.ci_high),
        p_value=float(test.p_value),
    )


def _with_sequence(
    result: MetricResult, difference: float, variance: float, settings: Settings
) -> Compared:
    """No sequence below the floor: a variance of few units is no variance yet."""
    if min(result.control.n, result.treatment.n) < UNITS_LEAST:
        return Compared(result, None, variance, TOO_FEW)
    sequence = asymptotic_sequence(
        difference,
        variance,
        n=result.control.n + result.treatment.n,
        n_star=settings.n_star,
        alpha=settings.alpha,
    )
    result = replace(
        result,
        cs_low=float(sequence.ci_low),
        cs_high=float(sequence.ci_high),
        always_valid_p=float(sequence.p_value),
    )
    return Compared(result, None, variance)


def _empty(metric: Metric, variant: str) -> MetricResult:
    return MetricResult(metric.name, metric.kind, variant, Arm(0, None), Arm(0, None), *(None,) * 9)
