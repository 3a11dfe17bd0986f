"""A bound on the bytes of requests that are being worked on.

Parsed, a request takes up to ~20 times its size on the wire; refusing before parsing keeps memory
bounded whatever is sent. Refuses to queue: the sender's retries are the queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from google.protobuf import duration_pb2
from google.rpc import error_details_pb2

from control.refusals import Refused, unavailable

IN_FLIGHT_BYTES_MAX: Final = 16 * 1024 * 1024
RETRY_AFTER_MS: Final = 500


class Admission:
    """Counts bytes in flight.

    Attributes:
        in_flight_bytes: Now.
        shed: Requests that were refused.
    """

    def __init__(self, limit_bytes: int = IN_FLIGHT_BYTES_MAX) -> None:
        self._limit_bytes = limit_bytes
        self.in_flight_bytes = 0
        self.shed = 0

    @contextmanager
    def admit(self, size_bytes: int) -> Iterator[None]:
        """Hold `size_bytes` while the block runs.

        Raises:
            Refused: UNAVAILABLE with RetryInfo, the one overload answer that OTLP senders retry.
        """
        if self.in_flight_bytes + size_bytes > self._limit_bytes:
            self.shed += 1
            raise _overload()
        self.in_flight_bytes += size_bytes
        try:
            yield
        finally:
            self.in_flight_bytes -= size_bytes


def _overload() -> Refused:
    refused = unavailable("too many bytes in flight: try again")
    delay = duration_pb2.Duration(nanos=RETRY_AFTER_MS * 1_000_000)
    refused.details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return refused
