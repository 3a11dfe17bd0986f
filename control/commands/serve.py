"""`turnout control`: run the control plane."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Annotated, Final, NoReturn
from urllib.parse import urlsplit

import typer
import uvloop

from turnout.logs import LogFormat, LogLevel, Style, configure, quiet_grpc

# Before gRPC is imported, which reads this once: its own lines have another form.
quiet_grpc()

from control.server import ControlPlane, ListenError, Options  # noqa: E402
from control.store.base import StoreError  # noqa: E402
from control.store.sqlite import SqliteStore  # noqa: E402

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
ADDRESS: Final = re.compile(r"(\[[\w:.%]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")

_log = logging.getLogger("turnout.control")

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def control(
    *,
    listen: Annotated[str, typer.Option(help="HOST:PORT of the API.")] = "127.0.0.1:7700",
    store: Annotated[str, typer.Option(help="sqlite:PATH.")] = "sqlite:turnout.db",
    metrics: Annotated[str, typer.Option(help="HOST:PORT for Prometheus.")] = "",
    webhook: Annotated[
        list[str] | None, typer.Option(help="URL that is told of rollbacks (JSON); repeatable.")
    ] = None,
    reflection: Annotated[
        bool | None,
        typer.Option(help="Serve gRPC reflection. Default: only when listening on loopback."),
    ] = None,
    forward_otlp: Annotated[
        str,
        typer.Option(help="HOST:PORT of a tracing backend (OTLP/gRPC) that gets every span, too."),
    ] = "",
    log_format: Annotated[
        LogFormat, typer.Option(help="One line per event, as text or JSON.")
    ] = LogFormat.TEXT,
    log_level: Annotated[LogLevel, typer.Option(help="Least serious events told.")] = LogLevel.INFO,
) -> None:
    """Run the control plane: resources, rollouts, sidecars' config.

    Exit codes: 0 stopped by a signal, 1 could not start or the store failed, 2 usage.
    """
    style = Style(log_format, log_level)
    configure(style)
    for address in (listen, *filter(None, (metrics, forward_otlp))):
        _check_address(address)
    if forward_otlp and forward_otlp in (listen, metrics):
        _refuse(f"--forward-otlp {forward_otlp} is this control plane itself")
    for url in webhook or ():
        _check_url(url)
    options = Options(
        listen=listen,
        metrics=metrics,
        webhooks=tuple(webhook or ()),
        reflection=_is_loopback(listen) if reflection is None else reflection,
        forward_otlp=forward_otlp,
    )
    sys.exit(uvloop.run(_serve(store, options, partial(_tell, style))))


async def _serve(url: str, options: Options, tell: Callable[[int, str], None]) -> int:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        store = await SqliteStore.open(url)
    except StoreError as error:
        tell(logging.ERROR, str(error))
        return EXIT_FAILED
    plane = ControlPlane(store, options)
    try:
        await plane.start()
    except (ListenError, StoreError) as error:
        tell(logging.ERROR, str(error))
        await plane.stop()
        return EXIT_FAILED
    tell(logging.INFO, f"listening on {options.listen}")
    waits = [asyncio.create_task(stopped.wait()), asyncio.create_task(plane.failure.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await plane.stop()
    if plane.failure.is_set():
        # What is on disk is unknown: never write again, recover by starting anew.
        tell(logging.ERROR, plane.failure_reason)
        return EXIT_FAILED
    return 0


def _tell(style: Style, level: int, message: str) -> None:
    """Say what a person who started it waits for: as plain words, or as a line of the log."""
    if style.format == LogFormat.JSON:
        _log.log(level, "%s", message)
    else:
        print(f"turnout control: {message}", file=sys.stderr, flush=True)


def _check_address(address: str) -> None:
    # Not a URL: its scheme would be taken for a host.
    if not ADDRESS.fullmatch(address) or int(address.rpartition(":")[2]) >= 1 << 16:
        _refuse(f"{address!r} is not HOST:PORT, like 10.0.0.5:7700 or [::1]:7700")


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        _refuse(f"webhook {url!r} is not an http(s) URL")


def _refuse(message: str) -> NoReturn:
    print(f"turnout control: {message}", file=sys.stderr)
    raise typer.Exit(EXIT_USAGE)


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
