"""What the client saw: one line per request, and the figures of an act that follow from them.

Nothing here comes from Turnout: the ledger is what Turnout's and Envoy's own numbers are held
against.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Line(NamedTuple):
    """One request as its client saw it."""

    # Seconds on the run's clock, when the request was sent and when its answer was complete.
    sent_s: float
    done_s: float
    user: str
    # HTTP status; 0 = no answer (connection refused, reset, timeout).
    status: int
    # The `x-variant` of the answer; empty = not stamped.
    variant: str
    # The model version that answered, as its pod says; empty = no pod answered.
    model: str
    # Whether the prediction was right; None = no prediction.
    correct: bool | None
    request_id: str

    @property
    def latency_ms(self) -> float:
        """Time to the last byte."""
        return (self.done_s - self.sent_s) * 1000

    @property
    def failed(self) -> bool:
        """No answer, or not 200."""
        return self.status != 200


@dataclass(slots=True)
class Figures:
    """What happened to the requests of one variant."""

    requests: int = 0
    errors: int = 0
    correct: int = 0
    answered: int = 0
    latencies_ms: list[float] = field(default_factory=list)

    def add(self, line: Line) -> None:
        """Count one request."""
        self.requests += 1
        self.errors += line.failed
        self.latencies_ms.append(line.latency_ms)
        if line.correct is not None:
            self.answered += 1
            self.correct += line.correct

    @property
    def accuracy(self) -> float | None:
        """Right answers among answers, None without one."""
        return self.correct / self.answered if self.answered else None


def percentile(values: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile, None of nothing. `share` in (0, 1]."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


class Ledger:
    """The lines of one act."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def add(self, line: Line) -> None:
        """Write down one finished request."""
        self.lines.append(line)

    def figures(self, *, unstamped: str) -> dict[str, Figures]:
        """Per variant; a request without a stamp counts for `unstamped`, who served it."""
        found: defaultdict[str, Figures] = defaultdict(Figures)
        for line in self.lines:
            found[line.variant or unstamped].add(line)
        return dict(found)

    def served_by(self, model: str) -> list[Line]:
        """The requests that one model version answered."""
        return [line for line in self.lines if line.model == model]

    def failures(self, *, excused: str | None = None) -> list[Line]:
        """Failed requests but those that the excused model version failed itself."""
        return [line for line in self.lines if line.failed and line.model != (excused or "\0")]

    def first_bad_s(self, model: str) -> float | None:
        """When the model's first bad answer (an error, or a wrong prediction) was seen."""
        bad = (
            line.done_s for line in self.served_by(model) if line.failed or line.correct is False
        )
        return min(bad, default=None)

    def last_served_s(self, model: str) -> float | None:
        """When the last request that the model served was sent."""
        return max((line.sent_s for line in self.served_by(model)), default=None)

    def seconds_to_zero(self, model: str) -> float | None:
        """From the first bad answer seen to the last request that the model still served."""
        first, last = self.first_bad_s(model), self.last_served_s(model)
        if first is None or last is None:
            return None
        return max(0.0, last - first)

    def users(self, lines: Iterable[Line] | None = None) -> int:
        """Different users among the lines."""
        return len({line.user for line in (self.lines if lines is None else lines)})

    def moved(self) -> list[str]:
        """Users who were seen on more than one variant."""
        seen: defaultdict[str, set[str]] = defaultdict(set)
        for line in self.lines:
            if line.variant:
                seen[line.user].add(line.variant)
        return sorted(user for user, variants in seen.items() if len(variants) > 1)

    def statuses(self) -> Counter[int]:
        """How often each status was seen."""
        return Counter(line.status for line in self.lines)
