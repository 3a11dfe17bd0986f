"""The composition of `turnout sidecar`: workers first, then stream, metrics, signals.

Owns the event loop, the order of the start and that of the stop: workers drain, their last counts
are merged, and the last batch gets a bounded time to be acknowledged. What only the supervisor
needs is imported when its workers are on their way. Refuses to hold any state.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

import uvloop

from sidecar.clock import monotonic_ms, now_ns
from sidecar.errors import CannotRunError
from sidecar.handover import Claim, Door, HandOverError, Predecessor
from sidecar.options import Options
from sidecar.sockets import SocketError
from sidecar.spawning import Spawned
from sidecar.supervisor import COLLECT_S, FileError, Supervisor
from sidecar.tracing import OFF, Tracing
from turnout import __version__

if TYPE_CHECKING:
    from sidecar.config_client import ConfigClient
    from sidecar.metrics import Metrics
    from turnout.v1alpha1.config_service_pb2 import DeltaBatch, SidecarReport

_LOG = logging.getLogger(__name__)

# How long the last batch may take to be on the control plane's disk.
LAST_ACK_S: Final = 3.0
# Its workers drain for 1.2 s each, or are killed after 4; then it writes its last counts.
PREDECESSOR_END_S: Final = 15.0
# How long one that is told to stop serves on for another that is taking over: half of the time
# that Kubernetes gives by default.
SUCCESSOR_S: Final = 15.0
_LOCK_S: Final = 5.0
_RETRY_S: Final = 0.05
_METRICS_RETRY_S: Final = 2.0


def serve(options: Options, spawned: Sequence[Spawned] = ()) -> None:
    """Run a sidecar until SIGTERM, or until another one takes over.

    Args:
        options: Checked.
        spawned: Workers that were started already.

    Raises:
        StateError: The state directory cannot be used.
        EnvoyDirError: Envoy's directory cannot be used.
        SocketError: The workers cannot listen.
        FileError: The snapshot file is refused.
        MetricsError: The metrics' address is taken.
    """
    uvloop.run(_serve(options, spawned))


async def _serve(options: Options, spawned: Sequence[Spawned]) -> None:
    try:
        supervisor = Supervisor(options, spawned)
    except CannotRunError:
        for one in spawned:
            one.discard()
        raise
    service = _Service(supervisor)
    _handle_signals(service)
    try:
        await service.run()
    finally:
        await service.close()


class _Peer:
    """The supervisor as the stream sees it."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.perform = supervisor.perform
        self.rejected = supervisor.rejected

    def pending(self) -> list[DeltaBatch]:
        return self._supervisor.deltas.pending()

    def report(self) -> SidecarReport:
        return self._supervisor.report()


class _Service:
    """What runs, and in which order it comes and goes."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._options = supervisor.options
        claim = Claim.of(self._options.listen, self._options.state_dir)
        self._claim = claim
        self._door = Door(self._options.listen, claim, self)
        self._client: ConfigClient | None = None
        self._metrics: Metrics | None = None
        self._tracing: Tracing = OFF
        # Leads Envoy and talks to the control plane; not while another takes over.
        self._leading: asyncio.Task[None] | None = None
        self._collecting: asyncio.Task[None] | None = None
        self._replacing: asyncio.Task[None] | None = None
        self._measuring: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._hurry = False
        self._closed = asyncio.Event()
        self._failure: BaseException | None = None

    # -- Start and stop ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until told to stop; the workers have drained when this returns."""
        if not await self._unless_stopped(self._start()):
            return
        await self._stop.wait()
        await self._let_successor_in()
        await self._supervisor.stop()
        self._supervisor.collect(last=True)
        if self._client is not None and not self._supervisor.handed_over:
            await self._last_ack(self._client)
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Let go of everything, whatever was reached."""
        await self._cease()
        await _ended(self._collecting)
        await _ended(self._measuring)
        if self._metrics is not None:
            self._metrics.close()
        self._door.close()
        await self._supervisor.stop()
        self._supervisor.close()
        await self._tracing.close()
        self._closed.set()
        # Whoever takes over hears of it by the end of this process at the latest.
        await asyncio.sleep(0)

    def stop(self) -> None:
        """Stop as soon as possible; a second time: whoever is taking over."""
        self._hurry = self._stop.is_set()
        self._stop.set()

    async def _let_successor_in(self) -> None:
        """Serve until another has taken over, if one is about to: else nobody would meanwhile."""
        if not self._door.busy:
            return
        _LOG.info("told to stop while another sidecar takes over: this one serves until then")
        for _ in range(int(SUCCESSOR_S / _RETRY_S)):
            if not self._door.busy or self._hurry:
                return
            await asyncio.sleep(_RETRY_S)

    async def _start(self) -> None:
        predecessor = await self._find()
        if predecessor is None:
            await self._start_alone()
        else:
            await self._start_after(predecessor)
        await self._door.open()
        self._collecting = asyncio.create_task(self._collect())

    async def _find(self) -> Predecessor | None:
        try:
            return await Predecessor.find(self._options.listen, self._claim)
        except HandOverError as error:
            _LOG.error("the sidecar that serves there does not hand over: %s", error)
            return None  # what is in use is said by who finds it so

    async def _start_alone(self) -> None:
        """Nobody serves here: what is in use is refused before anything is said to anybody."""
        supervisor = self._supervisor
        supervisor.own()
        await supervisor.workers.claim()
        # They need the time that loading takes: Python's start and their imports.
        supervisor.workers.start()
        self._load()
        await supervisor.conductor.begin(inherited=False)
        supervisor.workers.serve()
        self._prepare_stream()
        self._measure()
        try:
            await supervisor.listening()
        except SocketError as error:
            # They are started again and again, and somebody should hear of it.
            _LOG.error("%s", error)
        self._lead()

    async def _start_after(self, predecessor: Predecessor) -> None:
        """Another serves: take over, so that no request finds nobody."""
        supervisor = self._supervisor
        try:
            supervisor.workers.claim_from_predecessor()
            supervisor.workers.start()
            self._load(strict=True)
            await supervisor.conductor.begin(inherited=True)
            self._prepare_stream()
            await supervisor.prepared()
            if not await predecessor.freeze():
                _LOG.warning("the sidecar before this one died while it handed over")
            elif supervisor.reload_state():
                await supervisor.prepared()
            supervisor.workers.serve()
            await supervisor.listening()
        except BaseException:
            predecessor.close()
            raise
        # From here on this one serves: the stream need not wait for the other's drain.
        self._lead()
        await predecessor.end(PREDECESSOR_END_S)
        await self._own_soon()
        self._measuring = asyncio.create_task(self._measure_soon())
        _LOG.info("taken over from the sidecar before this one")

    def _load(self, *, strict: bool = False) -> None:
        if self._options.snapshot is not None:
            self._supervisor.load_file()
        else:
            self._supervisor.load_state(strict=strict)

    async def _own_soon(self) -> None:
        """Own what the one before lets go of; its last process may still hold it for a moment.

        However long that is: this one serves, and nobody else does.
        """
        from sidecar.disk import StateError

        deadline_ms = monotonic_ms() + int(_LOCK_S * 1000)
        said = False
        while True:
            try:
                self._supervisor.own()
                return
            except StateError as error:
                if monotonic_ms() > deadline_ms and not said:
                    _LOG.error("this one serves, and keeps and tells nothing until then: %s", error)
                    said = True
            await asyncio.sleep(_RETRY_S)

    async def _measure_soon(self) -> None:
        """Serve the metrics as soon as their address is free: requests are served already."""
        from sidecar.metrics import MetricsError

        said = ""
        while True:
            try:
                self._measure()
                return
            except MetricsError as error:
                if str(error) != said:
                    said = str(error)
                    _LOG.error("tried again every %g s: %s", _METRICS_RETRY_S, said)
            await asyncio.sleep(_METRICS_RETRY_S)

    # -- Parts -------------------------------------------------------------------------------------

    def _prepare_stream(self) -> None:
        """The stream to the control plane, if one is asked for; brings gRPC along."""
        self._tracing = _tracing(self._options)
        if not self._options.control:
            return
        from sidecar.config_client import ConfigClient

        supervisor = self._supervisor
        client = ConfigClient(
            self._options.control, supervisor.subscription, _Peer(supervisor), self._tracing
        )
        supervisor.send = client.send
        supervisor.on_report = client.send_report
        self._client = client

    def _measure(self) -> None:
        if self._options.metrics is None:
            return
        from sidecar.metrics import Metrics

        self._metrics = Metrics(self._supervisor, self._client, self._options.metrics)

    def _lead(self) -> None:
        self._leading = asyncio.create_task(self._keep_leading())

    async def _keep_leading(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._supervisor.run())
                if self._client is not None:
                    group.create_task(self._client.run())
        except* Exception as errors:  # noqa: BLE001 - a bug: the whole stops, and `run` raises it
            self._failure = errors
            self._stop.set()

    async def _cease(self) -> None:
        leading, self._leading = self._leading, None
        replacing, self._replacing = self._replacing, None
        await _ended(leading)
        await _ended(replacing)

    async def _collect(self) -> None:
        while True:
            await asyncio.sleep(COLLECT_S)
            self._supervisor.collect()
            if self._client is not None:
                self._client.send_pending()

    async def _last_ack(self, client: ConfigClient) -> None:
        client.send_pending()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_ACK_S):
                while client.connected and self._supervisor.deltas.pending():
                    self._supervisor.acknowledged.clear()
                    await self._supervisor.acknowledged.wait()

    async def _unless_stopped(self, start: Coroutine[Any, Any, None]) -> bool:
        """Carry out a start, unless told to stop meanwhile; whether it was."""
        starting = asyncio.create_task(start)
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait([starting, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return False
        starting.result()
        return True

    # -- For whoever takes over --------------------------------------------------------------------

    async def freeze(self) -> None:
        """See `handover.Owner`."""
        if self._replacing is not None:
            await self._replacing
        await self._cease()
        try:
            await self._supervisor.settle()
        except OSError as error:
            self._lead()
            raise HandOverError(f"its state directory cannot be written: {error}") from error

    async def thaw(self) -> None:
        """See `handover.Owner`."""
        self._lead()
        # The other may have taken the sockets: new processes take them back.
        await self._supervisor.workers.replace()
        await self._door.open()

    async def give_up(self) -> None:
        """See `handover.Owner`."""
        self._supervisor.handed_over = True
        self._stop.set()
        await self._closed.wait()

    # -- SIGHUP ------------------------------------------------------------------------------------

    def renew(self) -> None:
        """Read the snapshot file again, if there is one, and replace the workers."""
        supervisor = self._supervisor
        if self._options.snapshot is not None:
            try:
                supervisor.load_file()
                _LOG.info("%s is served", self._options.snapshot)
            except FileError as error:
                _LOG.error("what was served before is served on: %s", error)
        if self._leading is None:
            _LOG.warning("SIGHUP: another sidecar is taking over, or the start is not over")
        elif self._replacing is None or self._replacing.done():
            self._replacing = asyncio.create_task(self._replace())

    async def _replace(self) -> None:
        if await self._supervisor.workers.replace():
            _LOG.info("SIGHUP: all workers were replaced")


async def _ended(task: asyncio.Task[None] | None) -> None:
    """Cancel a task and wait for its end."""
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _tracing(options: Options) -> Tracing:
    if not options.otlp:
        return OFF
    from sidecar.ownspans import OwnSpans  # brings the SDK along

    return OwnSpans(
        options.otlp,
        node=options.node,
        tenant=options.tenant,
        version=__version__,
        clock_ns=now_ns,
    )


def _handle_signals(service: _Service) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop)
    loop.add_signal_handler(signal.SIGHUP, service.renew)
