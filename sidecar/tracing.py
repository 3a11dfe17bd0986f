"""What the supervisor tells of itself in spans, for whoever has a backend for them (--otlp).

Owns the moments that have a span. This class makes none, and workers never import the other:
`sidecar.ownspans` brings the OpenTelemetry SDK with it.
"""

from __future__ import annotations


class Tracing:
    """The moments; nothing is made of them."""

    def received(self, version: int, traceparent: str) -> None:
        """A snapshot arrived, pushed under this trace context ("" = none)."""

    def applied(self, version: int, *, refusal: str = "") -> None:
        """The workers serve a snapshot, or it is refused (`refusal` is not empty)."""

    async def close(self) -> None:
        """Send what was not sent yet; takes a bounded time."""


OFF = Tracing()
