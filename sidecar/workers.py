"""The worker processes of one sidecar.

Owns their life: start, hand over the plan, notice that one died or fell silent, kill, restart,
drain. Owns their memory files, which outlive them. Refuses to look into a plan or a delta.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from sidecar.clock import monotonic_ms
from sidecar.counters import CounterFile, CounterReader, Key
from sidecar.ipc import FrameError, Kind, PlanOrder, PlanReport, frame, read_frame
from sidecar.listen import Listen
from sidecar.protocol import SERVER_DEFAULT, ServerKind
from turnout.logs import PLAIN, Style

_LOG = logging.getLogger(__name__)

SILENCE_MS: Final = 2_000
# Imports on a busy machine; a worker that hangs before its first heartbeat is rare and not urgent.
START_MS: Final = 30_000
_LOOK_S: Final = 0.1
# A worker that lived shorter than this crashed on its own: it is restarted, but ever later.
_STEADY_MS: Final = 5_000
_BACKOFF_S: Final = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# The path of a Unix socket fits into 108 bytes, with its NUL; ours needs a temporary name beside
# it.
SOCKET_PATH_BYTES_MAX: Final = 90
_PROBE_S: Final = 3.0


class SocketError(RuntimeError):
    """The workers cannot listen there; the message says why and what to do."""


class _Slot:
    """What stays when a worker process is replaced."""

    def __init__(self, index: int, listen: Listen) -> None:
        self.index = index
        self.listen = listen
        self.counters = CounterFile.create(f"turnout-decided-{index}")
        self.decided = CounterReader(self.counters)
        self.process: asyncio.subprocess.Process | None = None
        self.writer: asyncio.StreamWriter | None = None
        # 0 = no heartbeat yet.
        self.heard_ms = 0
        self.started_ms = 0
        self.report: PlanReport | None = None
        self.failures = 0


class Workers:
    """A fixed number of workers, each at its own address."""

    def __init__(
        self,
        listen: Listen,
        count: int,
        *,
        on_delta: Callable[[bytes], None],
        on_change: Callable[[], None],
        server: ServerKind = SERVER_DEFAULT,
        log: Style = PLAIN,
    ) -> None:
        """Nothing is started before `start`.

        Args:
            listen: Where; worker i at `listen.worker(i)`.
            count: Of workers, >= 1.
            on_delta: Takes the encoded FoldDelta of a worker.
            on_change: Called when a worker came, went, or took a plan.
            server: Which server they run.
            log: How the workers log.
        """
        self._slots = [_Slot(i, listen.worker(i)) for i in range(count)]
        self._on_delta = on_delta
        self._on_change = on_change
        self._log = log
        self._server = server
        self._order = PlanOrder(0, b"", b"")
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._progress = asyncio.Event()
        self.restarts = 0

    # -- What is known -----------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Workers that should run."""
        return len(self._slots)

    @property
    def ready(self) -> int:
        """Workers that serve a plan."""
        return sum(slot.report is not None and slot.report.version > 0 for slot in self._slots)

    @property
    def served_generation(self) -> int:
        """The oldest order that some serving worker still serves; 0 = none serves."""
        reports = [slot.report for slot in self._slots if slot.report is not None]
        return min((report.generation for report in reports), default=0)

    @property
    def errors(self) -> list[str]:
        """Why workers did not take the current plan."""
        reports = [slot.report for slot in self._slots]
        return sorted({report.error for report in reports if report is not None and report.error})

    def pids(self) -> list[int]:
        """Process ids of the running workers."""
        return [slot.process.pid for slot in self._slots if slot.process is not None]

    def take_decided(self, keys: Mapping[Key, int]) -> dict[Key, int]:
        """Answers given since the last call, all workers together, dead ones included."""
        total: Counter[Key] = Counter()
        for slot in self._slots:
            total.update(slot.decided.take(keys))
        return dict(total)

    # -- What to do --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start all workers; returns at once.

        Raises:
            SocketError: Another live server has one of the sockets, or it cannot be made there.
        """
        for slot in self._slots:
            if slot.listen.path is not None:
                await _check_socket(slot.listen.path)
        self._tasks = [asyncio.create_task(self._keep(slot)) for slot in self._slots]
        self._tasks.append(asyncio.create_task(self._watch()))

    async def served(self, generation: int) -> None:
        """Wait until every serving worker, and at least one, serves this order or a later one."""
        while self.served_generation < generation:
            await self._progress.wait()

    def order(self, order: PlanOrder) -> None:
        """Hand a plan to all workers, now and after every restart."""
        self._order = order
        payload = frame(Kind.PLAN, order.encode())
        for slot in self._slots:
            if slot.writer is not None and not slot.writer.is_closing():
                slot.writer.write(payload)

    async def stop(self, grace_s: float) -> None:
        """Let all drain; kill what is left after `grace_s` seconds."""
        self._stopping = True
        running = [slot for slot in self._slots if slot.process is not None]
        for slot in running:
            _signal(slot, signal.SIGTERM)
        keepers = self._tasks[:-1]
        if keepers:
            _, late = await asyncio.wait(keepers, timeout=grace_s)
            if late:
                for slot in running:
                    _signal(slot, signal.SIGKILL)
                await asyncio.wait(late, timeout=1.0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """Forget the memory files; `take_decided` is over."""
        for slot in self._slots:
            slot.counters.close()
            # Never started: the sockets may be those of a live sidecar.
            if self._tasks and slot.listen.path is not None:
                slot.listen.path.unlink(missing_ok=True)

    # -- One worker --------------------------------------------------------------------------------

    async def _keep(self, slot: _Slot) -> None:
        """Run one worker after the other in a slot."""
        while not self._stopping:
            await self._run_once(slot)
            if self._stopping:
                return
            self.restarts += 1
            lived_ms = monotonic_ms() - slot.started_ms
            slot.failures = 0 if lived_ms >= _STEADY_MS else slot.failures + 1
            # The first restart is immediate: traffic is waiting.
            delay = _BACKOFF_S[max(0, min(slot.failures - 1, len(_BACKOFF_S) - 1))]
            self._on_change()
            await asyncio.sleep(delay)

    async def _run_once(self, slot: _Slot) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        slot.started_ms, slot.heard_ms = monotonic_ms(), 0
        try:
            process = await _spawn(slot, theirs, self._server, self._log)
        except OSError as error:
            _LOG.error("a worker cannot start: %s", error, extra={"worker": slot.index})
            ours.close()
            return
        finally:
            theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        slot.process, slot.writer = process, writer
        writer.write(frame(Kind.PLAN, self._order.encode()))
        try:
            # What a dead worker sent is still read: the link ends after its last byte.
            await self._listen(slot, reader)
        finally:
            slot.report, slot.writer = None, None
            writer.close()
            with contextlib.suppress(ProcessLookupError):
                if not self._stopping:
                    process.kill()
            status = await process.wait()
            slot.process = None
        if not self._stopping:
            _LOG.warning(
                "a worker ended with status %d: restarting it", status, extra={"worker": slot.index}
            )

    async def _listen(self, slot: _Slot, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                kind, payload = await read_frame(reader)
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            except FrameError as error:
                _LOG.error(
                    "a worker sends what it should not: %s", error, extra={"worker": slot.index}
                )
                return
            slot.heard_ms = monotonic_ms()
            if kind is Kind.DELTA:
                self._on_delta(payload)
            elif kind is Kind.APPLIED:
                slot.report = PlanReport.decode(payload)
                # Whoever waits looks at this very step; whoever comes later waits for the next.
                self._progress.set()
                self._progress = asyncio.Event()
                self._on_change()

    async def _watch(self) -> None:
        """Kill whoever is silent: it takes connections and answers nothing."""
        looked_ms = monotonic_ms()
        while True:
            await asyncio.sleep(_LOOK_S)
            now = monotonic_ms()
            if now - looked_ms > SILENCE_MS / 2:
                # It was this process that stood still: nobody could have been heard.
                for slot in self._slots:
                    slot.heard_ms = now if slot.heard_ms else 0
                    slot.started_ms = now
            looked_ms = now
            for slot in self._slots:
                limit_ms = SILENCE_MS if slot.heard_ms else START_MS
                silent_ms = now - (slot.heard_ms or slot.started_ms)
                if slot.process is not None and silent_ms > limit_ms:
                    extra = {"worker": slot.index}
                    _LOG.error("a worker was silent for %d ms: killed", silent_ms, extra=extra)
                    # Once is enough: SIGKILL works on a stopped process too.
                    slot.heard_ms = now
                    _signal(slot, signal.SIGKILL)


async def _spawn(
    slot: _Slot, link: socket.socket, server: ServerKind, log: Style
) -> asyncio.subprocess.Process:
    # -P: what lies in the working directory is not imported.
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", "sidecar.worker"),
        *("--listen", str(slot.listen), "--server", server),
        *("--link", str(link.fileno())),
        *("--counters", str(slot.counters.fd)),
        *("--index", str(slot.index)),
        *("--log-format", log.format, "--log-level", log.level),
        stdin=asyncio.subprocess.DEVNULL,
        pass_fds=(link.fileno(), slot.counters.fd),
        env={"GRPC_VERBOSITY": "NONE", **os.environ},
    )


def _signal(slot: _Slot, number: signal.Signals) -> None:
    if slot.process is not None:
        with contextlib.suppress(ProcessLookupError):
            slot.process.send_signal(number)


async def _check_socket(path: Path) -> None:
    """A socket file that nobody answers on is rubbish; one that answers is somebody's.

    Workers of a supervisor that was killed a moment ago are still draining: wait for them a little.
    """
    _check_place(path)
    deadline = monotonic_ms() + int(_PROBE_S * 1000)
    while await _is_live(path):
        if monotonic_ms() > deadline:
            raise SocketError(
                f"{path} is in use by a live server: stop it, or choose another --listen"
            )
        await asyncio.sleep(_LOOK_S)


def _check_place(path: Path) -> None:
    if len(str(path).encode()) > SOCKET_PATH_BYTES_MAX:
        raise SocketError(f"{path} is too long for a Unix socket (at most {SOCKET_PATH_BYTES_MAX})")
    if not path.parent.is_dir():
        raise SocketError(f"{path}: there is no directory {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise SocketError(f"{path}: this user may not create files in {path.parent}")
    if path.exists() and not path.is_socket():
        raise SocketError(f"{path} is there already and is not a socket: remove it")


async def _is_live(path: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(str(path))
    except OSError:
        return False
    writer.close()
    return True
