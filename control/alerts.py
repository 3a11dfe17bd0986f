"""Tells somebody that traffic was taken away: webhooks with an outbox that outlives the process.

Owns delivery (JSON over HTTP POST, timeout, retries with full jitter, a bounded queue). Refuses to
decide what is worth an alert: the controller does. URLs are the operator's own (`--webhook`), never
a tenant's, so loopback and private addresses are allowed; redirects are not followed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import httpx

TIMEOUT_S: Final = 5.0
ATTEMPTS_MAX: Final = 10
BACKOFF_BASE_S: Final = 0.5
BACKOFF_CAP_S: Final = 30.0
# Alerts that wait for delivery, over all URLs. Beyond it the oldest is dropped and counted.
QUEUE_MAX: Final = 1000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Alert:
    """One message for one URL."""

    id: str
    """Unique; a receiver that sees it twice has seen it once."""
    url: str
    body: bytes
    """JSON."""
    payload: bytes
    """The same in the outbox, by which it is found there."""


class Alerts:
    """Delivers alerts; one at a time per URL, so that a dead receiver delays nobody else.

    Args:
        done: Called when an alert needs no more attempts (delivered or given up), with whether it
            was delivered; removes it from the stored outbox.
        jitter: A number in [0, 1) for the backoff.
    """

    def __init__(
        self, *, done: Callable[[Alert, bool], Awaitable[None]], jitter: Callable[[], float]
    ) -> None:
        self._done = done
        self._jitter = jitter
        self._queues: dict[str, asyncio.Queue[Alert]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._client: httpx.AsyncClient | None = None
        self._in_hand = 0
        self.delivered = 0
        self.failed_attempts = 0
        self.given_up = 0
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """Alerts that are not done: queued, or being tried now."""
        return self._queued + self._in_hand

    @property
    def _queued(self) -> int:
        return sum(queue.qsize() for queue in self._queues.values())

    def submit(self, alert: Alert) -> None:
        """Queue an alert for delivery; never blocks."""
        if self._queued >= QUEUE_MAX:
            self.dropped += 1
            _log.error("alert queue is full (%d): alert %s is not sent", QUEUE_MAX, alert.id)
            return
        if alert.url not in self._queues:
            self._queues[alert.url] = asyncio.Queue()
            self._tasks[alert.url] = asyncio.create_task(self._deliver_all(alert.url))
        self._queues[alert.url].put_nowait(alert)

    async def close(self) -> None:
        """Stop delivering; what was not delivered stays in the stored outbox."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
        if self._client is not None:
            await self._client.aclose()

    async def _deliver_all(self, url: str) -> None:
        queue = self._queues[url]
        while True:
            alert = await queue.get()
            self._in_hand += 1
            try:
                await self._finish(alert)
            finally:
                self._in_hand -= 1

    async def _finish(self, alert: Alert) -> None:
        delivered = await self._deliver(alert)
        if delivered:
            self.delivered += 1
        else:
            self.given_up += 1
            _log.error("alert %s was not delivered in %d attempts", alert.id, ATTEMPTS_MAX)
        await self._done(alert, delivered)

    async def _deliver(self, alert: Alert) -> bool:
        for attempt in range(ATTEMPTS_MAX):
            if attempt:
                ceiling = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2 ** (attempt - 1))
                await asyncio.sleep(ceiling * self._jitter())
            fault = await self._attempt(alert)
            if fault is None:
                return True
            self.failed_attempts += 1
            _log.warning("alert %s attempt %d: %s", alert.id, attempt + 1, fault)
        return False

    async def _attempt(self, alert: Alert) -> str | None:
        """Post once; None when the receiver took it, else what went wrong."""
        if self._client is None:
            # trust_env off: a proxy from the environment is no part of what the operator named.
            self._client = httpx.AsyncClient(
                timeout=TIMEOUT_S, follow_redirects=False, trust_env=False
            )
        headers = {"content-type": "application/json", "x-turnout-alert-id": alert.id}
        try:
            async with asyncio.timeout(TIMEOUT_S):
                request = self._client.stream(
                    "POST", alert.url, content=alert.body, headers=headers
                )
                async with request as response:
                    return None if response.is_success else f"HTTP {response.status_code}"
        except TimeoutError:
            return f"no answer in {TIMEOUT_S:g} s"
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"
