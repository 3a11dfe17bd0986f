"""What the control plane tells of itself in spans, for whoever has a backend for them.

Owns the moments that have a span. This class makes none: `control.ownspans` does, when a backend is
configured. Refuses to slow anything down.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from control.rollout.decide import Decision


class Tracing:
    """The moments; nothing is made of them."""

    def now_ns(self) -> int:
        """Unix nanoseconds, 0 when nobody wants them."""
        return 0

    def decision(
        self,
        tenant: str,
        decision: Decision,
        *,
        assessed_ns: int,
        spans: Mapping[str, str],
    ) -> AbstractContextManager[None]:
        """While a decision is carried out.

        Args:
            tenant: Whose.
            decision: The time of the look that led to it included.
            assessed_ns: When it was made.
            spans: Trace id -> span id of requests that show why.
        """
        return nullcontext()

    def push(self, tenant: str, version: int, size_bytes: int) -> AbstractContextManager[str]:
        """While a snapshot is put on all streams; gives the W3C `traceparent` that goes with it."""
        return nullcontext("")

    def acknowledged(
        self, tenant: str, node: str, version: int, *, sent_ms: int, now_ms: int, refusal: str
    ) -> None:
        """A sidecar serves a snapshot, or refuses it (`refusal` is not empty)."""

    def close(self) -> None:
        """Hand over what was not handed over yet."""


OFF = Tracing()
