"""How many requests Envoy passed on without an answer, and why, as far as is known.

Owns the reconciliation of two sources: Envoy's own counter, which is exact and has no reasons, and
access-log entries, which have reasons and may be lost. Refuses to invent: the sum over reasons is
what the counter says, and what no entry explains is "unknown". Pure; the clock is an argument.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

UNKNOWN: Final = "unknown"
# Envoy flushes access logs once a second, workers flush twice a second; then some.
SETTLE_MS: Final = 5_000
LATE_MS: Final = 30_000
# Two readings of Envoy's age, in whole seconds, may disagree by this about when it started.
START_SLACK_MS: Final = 3_000
# An empty answer is an answer (Trailers-Only, status 0): Envoy does not count it as a failure.
_ANSWERED: Final = frozenset({"empty"})


class Accounted(NamedTuple):
    """How far one Envoy's counter of unanswered requests is in our batches.

    Attributes:
        start_ms: When that Envoy started, unix milliseconds, as far as whole seconds tell.
        unanswered: Its counter.
    """

    start_ms: int
    unanswered: int

    def is_same(self, other: Accounted | None) -> bool:
        """Whether both say the same of the same Envoy."""
        return (
            other is not None
            and self.unanswered == other.unanswered
            and abs(self.start_ms - other.start_ms) <= START_SLACK_MS
        )


def accounted_of(known: Iterable[Accounted], start_ms: int) -> int:
    """How far the Envoy that started at `start_ms` is accounted for, by whoever knows most."""
    return max(
        (k.unanswered for k in known if abs(k.start_ms - start_ms) <= START_SLACK_MS), default=0
    )


def newest(known: Iterable[Accounted]) -> Accounted | None:
    """What is known of the Envoy that started last."""
    all_known = list(known)
    if not all_known:
        return None
    start_ms = max(one.start_ms for one in all_known)
    return Accounted(start_ms, accounted_of(all_known, start_ms))


class EnvoyCounter:
    """Turns a counter that starts again at zero with each Envoy into increments."""

    def __init__(self, last: int = 0) -> None:
        """Start at `last`, the value already accounted for in this very Envoy."""
        self.last = last
        self._uptime_s = 0
        # Envoys that started again while we watched.
        self.resets = 0

    def observe(self, value: int, *, uptime_s: int) -> int:
        """Increment since the last look.

        Args:
            value: The counter now.
            uptime_s: Envoy's age in seconds; going back means a restart, even when the new count
            has
                already overtaken the old one.
        """
        last, self.last = self.last, value
        age, self._uptime_s = self._uptime_s, uptime_s
        if value < last or uptime_s < age:
            self.resets += 1
            return value
        return value - last


class UnstampedLedger:
    """Splits Envoy's total by reason.

    A reason may come before or after the total that contains it: it waits SETTLE_MS for its total.
    A total that nothing explains within SETTLE_MS is "unknown"; a reason that comes up to LATE_MS
    later still is then dropped, so that the sum stays exact.
    """

    def __init__(self) -> None:
        """Nothing counted."""
        self._total = 0
        self._emitted = 0
        # (arrived, reason, count) without a total yet, oldest first.
        self._reasons: deque[tuple[int, str, int]] = deque()
        # (counted at, total at that time): what must be explained SETTLE_MS later.
        self._marks: deque[tuple[int, int]] = deque()
        # (emitted at, count) of what was called unknown, oldest first.
        self._unknown: deque[tuple[int, int]] = deque()

    def add_total(self, increment: int, now_ms: int) -> None:
        """Envoy counted `increment` more."""
        if increment:
            self._total += increment
            self._marks.append((now_ms, self._total))

    def add_reasons(self, reasons: Mapping[str, int], now_ms: int) -> None:
        """Access-log entries of requests without an answer, by reason."""
        for reason, count in sorted(reasons.items()):
            if reason in _ANSWERED:
                continue
            if left := self._forgive(count):
                self._reasons.append((now_ms, reason, left))

    @property
    def waiting(self) -> int:
        """Counted by Envoy and not given out yet: a reason may still come."""
        return self._total - self._emitted

    def take(self, now_ms: int, *, last: bool = False) -> dict[str, int]:
        """Increments by reason, to be sent on.

        Args:
            now_ms: Monotonic, as in every other call.
            last: Nothing more will come: what has no reason yet is unknown now.
        """
        taken: Counter[str] = Counter()
        while self._reasons and self._total > self._emitted:
            arrived, reason, count = self._reasons.popleft()
            more = min(count, self._total - self._emitted)
            taken[reason] += more
            self._emitted += more
            if count > more:
                self._reasons.appendleft((arrived, reason, count - more))
        while self._marks and (last or self._marks[0][0] + SETTLE_MS <= now_ms):
            _, due = self._marks.popleft()
            if due > self._emitted:
                taken[UNKNOWN] += due - self._emitted
                self._unknown.append((now_ms, due - self._emitted))
                self._emitted = due
        while self._reasons and self._reasons[0][0] + SETTLE_MS <= now_ms:
            self._reasons.popleft()
        while self._unknown and self._unknown[0][0] + LATE_MS <= now_ms:
            self._unknown.popleft()
        return dict(taken)

    def _forgive(self, count: int) -> int:
        """Set `count` off against what was called unknown too early; what is left."""
        while count and self._unknown:
            when, unknown = self._unknown.popleft()
            paid = min(count, unknown)
            count -= paid
            if unknown > paid:
                self._unknown.appendleft((when, unknown - paid))
        return count
