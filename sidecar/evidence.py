"""What all workers and Envoy itself have counted, merged into one delta a second.

Owns the merge and the running totals for the metrics. Refuses to send anything, and to know the
time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from sidecar.counters import Key
from sidecar.fold import Fold
from sidecar.increments import ANSWER_COUNTS, FoldDelta
from sidecar.unitsample import UnitSamples
from sidecar.unstamped import UnstampedLedger


class Evidence:
    """The supervisor's fold."""

    def __init__(self, *, envoy_counts: bool) -> None:
        """Nothing counted.

        Args:
            envoy_counts: Envoy's own counters are read: they are the total of unstamped requests.
                Otherwise the access log's entries are, and lost entries are not seen.
        """
        self._fold = Fold()
        self._units = UnitSamples()
        self._ledger = UnstampedLedger() if envoy_counts else None
        # By (experiment, variant): epochs would grow without end.
        self.decided_total: Counter[tuple[str, str]] = Counter()
        self.unstamped_total: Counter[str] = Counter()
        # By (target, name of the count).
        self.answers_total: Counter[tuple[str, str]] = Counter()
        # By (experiment, variant, name of the count).
        self.requests_total: Counter[tuple[str, str, str]] = Counter()

    def add_worker(self, delta: FoldDelta, now_ms: int) -> None:
        """Merge what a worker took."""
        reasons: Counter[str] = Counter()
        for target, counts in delta.targets.items():
            reasons.update(counts.unstamped)
            if not target:
                # No target is this Envoy as a whole, whose total is written below.
                counts.unstamped = {}
            for name in ANSWER_COUNTS:
                self.answers_total[target, name] += getattr(counts, name)
        for key, count in delta.counts.items():
            for name in ("requests", "errors", "slow"):
                total = (key.experiment, key.variant, name)
                self.requests_total[total] += getattr(count, name)
        for exposed, rows in delta.exposures.items():
            if not exposed.forced:
                group = (exposed.variant, exposed.stratum)
                self._units.add(exposed.experiment, exposed.epoch, group, rows.units)
        self._fold.merge(delta)
        if self._ledger is not None:
            self._ledger.add_reasons(reasons, now_ms)
        else:
            self._add_unstamped(reasons)

    def add_envoy(self, unanswered: int, now_ms: int) -> None:
        """Envoy passed on so many more requests without an answer."""
        if self._ledger is not None:
            self._ledger.add_total(unanswered, now_ms)

    def add_decided(self, grown: Mapping[Key, int], now_ms: int) -> None:
        """Workers gave so many more answers."""
        for (experiment, epoch, variant), count in grown.items():
            self._fold.decided(experiment, epoch, variant, count=count, now_ms=now_ms)
            self.decided_total[experiment, variant] += count

    @property
    def unexplained(self) -> int:
        """Unstamped requests of Envoy's total that wait for their reason: in no delta yet."""
        return self._ledger.waiting if self._ledger is not None else 0

    def take(self, now_ms: int, *, last: bool = False) -> FoldDelta:
        """Everything since the last take; `last` = nothing more will come."""
        if self._ledger is not None:
            self._add_unstamped(self._ledger.take(now_ms, last=last))
        delta = self._fold.take()
        delta.units = self._units.take()
        return delta

    def _add_unstamped(self, reasons: Mapping[str, int]) -> None:
        if reasons:
            self._fold.unstamped(reasons)
            self.unstamped_total.update(reasons)
