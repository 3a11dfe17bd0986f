"""Webhooks: retries, bounds, an outbox. Against a real HTTP server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from control import alerts as module
from control.alerts import Alert, Alerts
from tests.integration.waiting import wait_for


class Receiver:
    """An HTTP server that fails as often as it is told to.

    Attributes:
        failures: How many requests are still answered 503.
        bodies: Of the requests that were answered 200.
        requests: All of them.
    """

    def __init__(self) -> None:
        self.failures = 0
        self.silent = False
        self.bodies: list[Any] = []
        self.requests = 0
        self.port = 0
        self.came = asyncio.Event()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}/hook"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request per connection."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length")
            )
            body = await reader.readexactly(length)
            self.requests += 1
            self.came.set()
            if self.silent:
                await asyncio.sleep(3600)
            status = b"200 OK"
            if self.failures > 0:
                self.failures -= 1
                status = b"503 Service Unavailable"
            else:
                self.bodies.append(json.loads(body))
            writer.write(
                b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
            await writer.drain()
        finally:
            writer.close()


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver on a free port."""
    one = Receiver()
    server = await asyncio.start_server(one.answer, "127.0.0.1", 0)
    one.port = server.sockets[0].getsockname()[1]
    yield one
    server.close()


class Done:
    """What became of each alert."""

    def __init__(self) -> None:
        self.of: dict[str, bool] = {}
        self._event = asyncio.Event()

    async def __call__(self, alert: Alert, delivered: bool) -> None:
        self.of[alert.id] = delivered
        self._event.set()

    async def until(self, count: int) -> None:
        """Wait for so many alerts."""
        async with asyncio.timeout(10):
            while len(self.of) < count:
                self._event.clear()
                await self._event.wait()


def alert(name: str, url: str) -> Alert:
    """One alert."""
    return Alert(id=name, url=url, body=json.dumps({"id": name}).encode(), payload=name.encode())


async def test_alert_is_delivered_when_the_receiver_fails_at_first(receiver: Receiver) -> None:
    """Once, after as many attempts as it takes."""
    receiver.failures = 3
    done = Done()
    alerts = Alerts(done=done, jitter=lambda: 0.01)
    alerts.submit(alert("a", receiver.url))
    await done.until(1)
    await alerts.close()
    assert receiver.bodies == [{"id": "a"}]
    assert receiver.requests == 4
    assert done.of == {"a": True}
    assert (alerts.delivered, alerts.failed_attempts) == (1, 3)


async def test_alert_is_given_up_when_the_receiver_never_answers_well(receiver: Receiver) -> None:
    """After a bounded number of attempts; the next one is tried all the same."""
    receiver.failures = module.ATTEMPTS_MAX
    done = Done()
    alerts = Alerts(done=done, jitter=lambda: 0.0)
    alerts.submit(alert("a", receiver.url))
    alerts.submit(alert("b", receiver.url))
    await done.until(2)
    await alerts.close()
    assert done.of == {"a": False, "b": True}
    assert receiver.requests == module.ATTEMPTS_MAX + 1


async def test_alert_reaches_others_when_one_receiver_is_dead(receiver: Receiver) -> None:
    """Each URL has its own queue."""
    hung = Receiver()
    hung.silent = True
    server = await asyncio.start_server(hung.answer, "127.0.0.1", 0)
    hung.port = server.sockets[0].getsockname()[1]
    done = Done()
    alerts = Alerts(done=done, jitter=lambda: 0.0)
    alerts.submit(alert("slow", hung.url))
    async with asyncio.timeout(5):
        await hung.came.wait()
    alerts.submit(alert("fast", receiver.url))
    await done.until(1)
    assert done.of == {"fast": True}
    await alerts.close()
    server.close()


async def test_alert_counts_as_waiting_when_it_is_in_hand(receiver: Receiver) -> None:
    """A receiver that never answers is seen with the first alert, not the second."""
    receiver.silent = True
    alerts = Alerts(done=Done(), jitter=lambda: 0.0)
    alerts.submit(alert("a", receiver.url))
    async with asyncio.timeout(5):
        await receiver.came.wait()
    assert alerts.waiting == 1
    alerts.submit(alert("b", receiver.url))
    assert alerts.waiting == 2
    await alerts.close()


async def test_nothing_waits_when_the_alert_was_delivered(receiver: Receiver) -> None:
    done = Done()
    alerts = Alerts(done=done, jitter=lambda: 0.0)
    alerts.submit(alert("a", receiver.url))
    await done.until(1)
    await wait_for(lambda: alerts.waiting == 0, "nothing waits")
    await alerts.close()


async def test_alert_is_dropped_when_the_queue_is_full(receiver: Receiver) -> None:
    """Bounded and counted."""
    receiver.silent = True
    alerts = Alerts(done=Done(), jitter=lambda: 0.0)
    for index in range(module.QUEUE_MAX + 5):
        alerts.submit(alert(str(index), receiver.url))
    assert alerts.waiting == module.QUEUE_MAX
    assert alerts.dropped == 5
    await alerts.close()
