"""The worker processes of one sidecar.

Owns who serves at each place: starts them, hands over the plan, replaces one that died or fell
silent, and all of them, without a gap, when asked. Refuses to look into a plan or a delta; one
process and its memory file are `workerlife`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from sidecar.clock import monotonic_ms
from sidecar.counters import Key
from sidecar.ipc import Kind, PlanOrder
from sidecar.sockets import check_place, check_socket
from sidecar.spawning import Place, Spawned
from sidecar.workerlife import SILENCE_MS, START_MS, Life

_LOG = logging.getLogger(__name__)

_LOOK_S: Final = 0.1
# A worker that lived shorter than this crashed on its own: it is restarted, but ever later.
_STEADY_MS: Final = 5_000
_BACKOFF_S: Final = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# One that was replaced drains for 1.2 s; then it is killed.
_RETIRE_S: Final = 4.0


class _Slot:
    """What stays when a worker process is replaced."""

    def __init__(self, place: Place) -> None:
        self.place = place
        # Who serves, or is about to.
        self.life: Life | None = None
        self.failures = 0


class Workers:
    """A fixed number of workers, each at its own address."""

    def __init__(
        self,
        places: Iterable[Place],
        *,
        on_delta: Callable[[bytes], None],
        on_change: Callable[[], None],
        spawned: Sequence[Spawned] = (),
    ) -> None:
        """Nothing more is started before `start`.

        Args:
            places: At least one.
            on_delta: Takes the encoded FoldDelta of a worker.
            on_change: Called when a worker came, went, or took a plan.
            spawned: The first worker of each place, as far as they were started already.
        """
        self._slots = [_Slot(place) for place in places]
        self._spawned = list(spawned)
        self._on_delta = on_delta
        self._on_change = on_change
        # None: nothing was said yet.
        self._order: PlanOrder | None = None
        self._serving = False
        # Everybody who runs: also who drains, or is about to take over.
        self._running: dict[Life, asyncio.Task[None]] = {}
        # Who ended, until its last counts are taken.
        self._ended: list[Life] = []
        self._watching: asyncio.Task[None] | None = None
        self._replacing = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._progress = asyncio.Event()
        self._faults_before: Counter[str] = Counter()
        self.restarts = 0
        # How often all were replaced because somebody asked for it.
        self.replacements = 0

    # -- What is known -----------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Workers that should run."""
        return len(self._slots)

    @property
    def ready(self) -> int:
        """Workers that serve a plan."""
        return sum(
            life.report is not None and life.report.version > 0 and life.listening
            for life in self._current()
        )

    @property
    def prepared(self) -> bool:
        """Whether every worker has the newest order, whether or not it serves yet."""
        wanted = self._order.generation if self._order is not None else 0
        reports = [life.report for life in self._current()]
        return len(reports) == self.count and all(
            report is not None and report.generation >= wanted for report in reports
        )

    @property
    def listening(self) -> bool:
        """Whether every worker has its socket."""
        return sum(life.listening for life in self._current()) == self.count

    @property
    def served_generation(self) -> int:
        """The oldest order that some worker still serves, or drains with; 0 = none serves."""
        reports = [life.report for life in self._running if life.report is not None]
        return min((report.generation for report in reports), default=0)

    @property
    def errors(self) -> list[str]:
        """Why workers did not take the current plan."""
        reports = [life.report for life in self._current()]
        return sorted({report.error for report in reports if report is not None and report.error})

    def pids(self) -> list[int]:
        """Process ids of the running workers."""
        return [life.pid for life in self._current() if life.pid is not None]

    def faults(self) -> dict[str, int]:
        """What peers have done wrong, all workers together, dead ones too; see `ipc.Faults`."""
        total = Counter(self._faults_before)
        for life in self._running:
            total.update(life.faults)
        return dict(total)

    def take_decided(self, keys: Mapping[Key, int]) -> dict[Key, int]:
        """Answers given since the last call, all workers together, dead ones included."""
        total: Counter[Key] = Counter()
        for life in (*self._running, *self._ended):
            if life.decided is not None:
                total.update(life.decided.take(keys))
        for life in self._ended:
            life.close()
        self._ended.clear()
        return dict(total)

    def _current(self) -> Iterator[Life]:
        return (slot.life for slot in self._slots if slot.life is not None)

    # -- What to do --------------------------------------------------------------------------------

    async def claim(self) -> None:
        """See whether the sockets can be ours; nothing is started.

        Raises:
            SocketError: Another live server has one of them, or it cannot be made there.
        """
        for slot in self._slots:
            if slot.place.listen.path is not None:
                await check_socket(slot.place.listen.path)

    def claim_from_predecessor(self) -> None:
        """The same, when a live server is there and gives them up.

        Raises:
            SocketError: They cannot be made there.
        """
        for slot in self._slots:
            if slot.place.listen.path is not None:
                check_place(slot.place.listen.path)

    def start(self) -> None:
        """Start all workers; they take no socket before `serve`. Returns at once."""
        spawned = [*self._spawned, *[None] * len(self._slots)]
        self._spawned = []
        for slot, first in zip(self._slots, spawned, strict=False):
            self._begin(slot, first)
        self._watching = asyncio.create_task(self._watch())

    def serve(self) -> None:
        """Let the workers take their sockets, each as soon as it has its plan."""
        self._serving = True
        if self._order is None:
            self.order(PlanOrder(0, b"", b""))
        for life in self._current():
            life.say(Kind.SERVE)

    async def served(self, generation: int) -> None:
        """Wait until every serving worker, and at least one, serves this order or a later one."""
        while self.served_generation < generation:
            await self._progress.wait()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition on what the workers report."""
        while not condition():
            await self._progress.wait()

    def order(self, order: PlanOrder) -> None:
        """Hand a plan to all workers, now and after every restart."""
        self._order = order
        payload = order.encode()
        for life in self._running:
            life.say(Kind.PLAN, payload)

    async def replace(self) -> bool:
        """Replace all workers by new processes, one after the other, without a gap.

        Returns:
            Whether all were; a worker whose successor does not come up serves on.
        """
        async with self._replacing:
            for slot in self._slots:
                if self._stopping.is_set() or not await self._replace(slot):
                    return False
            self.replacements += 1
        return True

    async def stop(self, grace_s: float, *, retire: bool = False) -> None:
        """Let all drain; kill what is left after `grace_s` seconds.

        Args:
            grace_s: For each.
            retire: Others have their sockets already: Envoy need not look elsewhere.
        """
        self._stopping.set()
        running = dict(self._running)
        for life in running:
            life.retiring = True
            if retire:
                life.say(Kind.RETIRE)
            else:
                life.signal(signal.SIGTERM)
        if running:
            _, late = await asyncio.wait(running.values(), timeout=grace_s)
            if late:
                for life in running:
                    life.signal(signal.SIGKILL)
                await asyncio.wait(late, timeout=1.0)
        tasks = [*self._running.values(), *([self._watching] if self._watching else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self, *, keep_sockets: bool = False) -> None:
        """Forget the memory files; `take_decided` is over.

        Args:
            keep_sockets: They are somebody else's now.
        """
        for never in self._spawned:
            never.discard()
        for life in (*self._running, *self._ended):
            life.close()
        self._ended.clear()
        for slot in self._slots:
            # Never served: the sockets may be those of a live sidecar.
            if self._serving and not keep_sockets and slot.place.listen.path is not None:
                slot.place.listen.path.unlink(missing_ok=True)

    # -- One worker --------------------------------------------------------------------------------

    def _life(self, slot: _Slot, *, serve: bool, spawned: Spawned | None = None) -> Life:
        life = Life(slot.place, on_delta=self._on_delta, on_report=self._changed, spawned=spawned)
        if self._order is not None:
            life.say(Kind.PLAN, self._order.encode())
        if serve:
            life.say(Kind.SERVE)
        self._running[life] = asyncio.create_task(self._live(slot, life))
        return life

    def _begin(self, slot: _Slot, spawned: Spawned | None = None) -> None:
        slot.life = self._life(slot, serve=self._serving, spawned=spawned)

    async def _live(self, slot: _Slot, life: Life) -> None:
        """Run one worker, and then, unless another took its place, the next."""
        try:
            await life.run()
        finally:
            del self._running[life]
            self._faults_before.update(life.faults)
            self._ended.append(life)
            self._changed()
        if slot.life is not life or self._stopping.is_set():
            return
        extra = {"worker": slot.place.number}
        _LOG.warning("a worker ended with status %s: restarting it", life.status, extra=extra)
        slot.life = None
        self.restarts += 1
        slot.failures = 0 if life.lived_ms >= _STEADY_MS else slot.failures + 1
        # The first restart is immediate: traffic is waiting.
        delay_s = _BACKOFF_S[max(0, min(slot.failures - 1, len(_BACKOFF_S) - 1))]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()
        if not self._stopping.is_set() and slot.life is None:
            self._begin(slot)

    async def _replace(self, slot: _Slot) -> bool:
        old = slot.life
        if old is None or slot.place.listen.is_tcp:
            # A port cannot be renamed over: the old one must go first.
            if old is not None:
                old.signal(signal.SIGTERM)
                await self._until(lambda: slot.life is not old, _RETIRE_S)
            return await self._until(lambda: slot.life is not None and slot.life.listening, None)
        fresh = self._life(slot, serve=True)
        if not await self._until(lambda: fresh.listening or fresh not in self._running, None):
            fresh.signal(signal.SIGKILL)
        if not fresh.listening:
            extra = {"worker": slot.place.number}
            _LOG.error("a new worker did not come up: the old one serves on", extra=extra)
            return False
        # The old one may have died meanwhile, and its own successor be on the way.
        old, slot.life = slot.life, fresh
        if old is not None and old in self._running:
            old.retiring = True
            old.say(Kind.RETIRE)
            if not await self._until(lambda: old not in self._running, _RETIRE_S):
                old.signal(signal.SIGKILL)
        return True

    async def _until(self, condition: Callable[[], bool], limit_s: float | None) -> bool:
        """Wait for a condition; whether it came within the limit (None: a start's)."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s or START_MS / 1000):
                await self.until(condition)
        return condition()

    def _changed(self) -> None:
        # Whoever waits looks at this very step; whoever comes later waits for the next.
        self._progress.set()
        self._progress = asyncio.Event()
        self._on_change()

    async def _watch(self) -> None:
        """Kill whoever is silent."""
        looked_ms = monotonic_ms()
        while True:
            await asyncio.sleep(_LOOK_S)
            now_ms = monotonic_ms()
            if now_ms - looked_ms > SILENCE_MS / 2:
                # It was this process that stood still: nobody could have been heard.
                for life in self._running:
                    life.excuse(now_ms)
            looked_ms = now_ms
            for life in self._running:
                life.watch(now_ms)
