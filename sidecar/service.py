"""The composition of `turnout sidecar`: supervisor, stream, metrics, signals.

Owns the event loop and the order of the stop: workers drain, their last counts are merged, and the
last batch gets a bounded time to be acknowledged. Refuses to hold any state.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import Final

import uvloop

from sidecar.clock import now_ns
from sidecar.config_client import ConfigClient
from sidecar.metrics import Metrics
from sidecar.options import Options
from sidecar.supervisor import COLLECT_S, FileError, Supervisor
from sidecar.tracing import OFF, Tracing
from turnout import __version__
from turnout.v1alpha1.config_service_pb2 import DeltaBatch, SidecarReport

_LOG = logging.getLogger(__name__)

# How long the last batch may take to be on the control plane's disk.
LAST_ACK_S: Final = 3.0


def serve(options: Options) -> None:
    """Run a sidecar until SIGTERM.

    Raises:
        StateError: The state directory cannot be used.
        EnvoyDirError: Envoy's directory cannot be used.
        SocketError: The workers cannot listen.
        FileError: The snapshot file is refused.
        MetricsError: The metrics' address is taken.
    """
    uvloop.run(_serve(options))


class _Peer:
    """The supervisor as the stream sees it."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.perform = supervisor.perform

    def pending(self) -> list[DeltaBatch]:
        return self._supervisor.deltas.pending()

    def report(self) -> SidecarReport:
        return self._supervisor.report()


async def _serve(options: Options) -> None:
    supervisor = Supervisor(options)
    tracing = _tracing(options)
    metrics: Metrics | None = None
    tasks: list[asyncio.Task[None]] = []
    try:
        client = _configure(supervisor, tracing)
        if options.metrics is not None:
            metrics = Metrics(supervisor, client, options.metrics)
        _handle_signals(supervisor)
        tasks.append(asyncio.create_task(_collect(supervisor, client)))
        if client is not None:
            tasks.append(asyncio.create_task(client.run()))
        await supervisor.run()
        supervisor.collect(last=True)
        if client is not None:
            await _last_ack(supervisor, client)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if metrics is not None:
            metrics.close()
        supervisor.close()
        await tracing.close()


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


def _configure(supervisor: Supervisor, tracing: Tracing) -> ConfigClient | None:
    """Load what is there to serve at once; the stream to the control plane, if one is asked for."""
    options = supervisor.options
    if options.snapshot is not None:
        supervisor.load_file()
        return None
    supervisor.load_state()
    client = ConfigClient(options.control, supervisor.subscription, _Peer(supervisor), tracing)
    supervisor.send = client.send
    supervisor.on_report = client.send_report
    return client


def _handle_signals(supervisor: Supervisor) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stopping.set)
    loop.add_signal_handler(signal.SIGHUP, _reload, supervisor)


def _reload(supervisor: Supervisor) -> None:
    if supervisor.options.snapshot is None:
        _LOG.info("SIGHUP: nothing to read, the control plane says what to serve")
        return
    try:
        supervisor.load_file()
        _LOG.info("%s is served", supervisor.options.snapshot)
    except FileError as error:
        _LOG.error("what was served before is served on: %s", error)


async def _collect(supervisor: Supervisor, client: ConfigClient | None) -> None:
    while True:
        await asyncio.sleep(COLLECT_S)
        supervisor.collect()
        if client is not None:
            client.send_pending()


async def _last_ack(supervisor: Supervisor, client: ConfigClient) -> None:
    client.send_pending()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_ACK_S):
            while client.connected and supervisor.deltas.pending():
                supervisor.acknowledged.clear()
                await supervisor.acknowledged.wait()
