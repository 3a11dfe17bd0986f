"""Tells watchers which experiments have changed.

Owns bounded queues: a watcher that is slower than the changes sees the newest state of each
experiment, not every state. Refuses to know what an experiment looks like.
"""

from __future__ import annotations

import asyncio


class Watch:
    """One watcher's queue: ids of changed experiments in the order of their first change."""

    def __init__(self, only: str) -> None:
        self._only = only
        self._changed: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._closed = False

    def put(self, experiment: str) -> None:
        """Note a change."""
        if not self._only or self._only == experiment:
            self._changed[experiment] = None
            self._wake.set()

    def close(self) -> None:
        """End the watch."""
        self._closed = True
        self._wake.set()

    async def take(self) -> str | None:
        """The next changed experiment; None when the watch has ended."""
        while not self._changed:
            if self._closed:
                return None
            self._wake.clear()
            await self._wake.wait()
        first = next(iter(self._changed))
        del self._changed[first]
        return first


class Watches:
    """All watchers of all tenants."""

    def __init__(self) -> None:
        self._watches: dict[str, set[Watch]] = {}

    def open(self, tenant: str, only: str = "") -> Watch:
        """Begin to watch a tenant, or one experiment of it."""
        watch = Watch(only)
        self._watches.setdefault(tenant, set()).add(watch)
        return watch

    def end(self, tenant: str, watch: Watch) -> None:
        """Forget a watcher."""
        watches = self._watches.get(tenant, set())
        watches.discard(watch)
        if not watches:
            self._watches.pop(tenant, None)

    def changed(self, tenant: str, experiment: str) -> None:
        """Tell everybody who watches it."""
        for watch in self._watches.get(tenant, ()):
            watch.put(experiment)

    def close(self) -> None:
        """End all watches."""
        for watches in self._watches.values():
            for watch in watches:
                watch.close()

    @property
    def count(self) -> int:
        """Watchers of all tenants."""
        return sum(len(watches) for watches in self._watches.values())
