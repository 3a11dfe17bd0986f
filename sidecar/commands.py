"""`turnout sidecar`: run the sidecar beside an Envoy.

Owns the options' help, log set-up and exit codes. Refuses to import what it does not run: the
servers are imported when the command is called.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from pathlib import Path
from typing import Annotated, Final

import typer

from sidecar.listen import SERVER_DEFAULT, ServerKind
from sidecar.options import OptionError, Options, check
from turnout.logs import LogFormat, LogLevel, Style, configure, quiet_grpc

EXIT_FAILED: Final = 1
EXIT_INVALID: Final = 3

HELP = """Serve Envoy: choose each request's variant, fold its access log.

Worker i listens on PATH.i (mode 0660). Give the same PATH, --workers, --envoy-dir and --envoy-admin
to `turnout envoy bootstrap`.

With a control plane:

\b
  turnout sidecar --listen unix:/run/turnout/worker --workers 2 \\
    --control 10.0.0.5:7700 --tenant risk --state-dir /var/lib/turnout \\
    --envoy-dir /etc/envoy/turnout --envoy-admin unix:/run/envoy/admin \\
    --metrics 127.0.0.1:9102

Stand-alone, from a file made by `turnout snapshot build`:

\b
  turnout sidecar --listen unix:/run/turnout/worker --snapshot risk.snapshot

SIGTERM drains: requests in flight are answered, the last counts are sent. SIGHUP replaces the
workers, one after the other, without a gap (and reads the --snapshot file again). To upgrade, start
the new version with the same --listen and --state-dir: it takes over from the one that runs, which
then ends with 0; no request goes unanswered, no count is lost. See sidecar/README.md.

\b
Exit codes: 0 stopped, 1 cannot run (the message says why), 2 usage,
3 the snapshot file is refused.
"""

# Options whose help is long.
_Listen = Annotated[
    str,
    typer.Option(
        help="unix:PATH, worker i listens on PATH.i; or, for tests, tcp:HOST:PORT, on PORT + i "
        "(GET /healthz there: curl --http2-prior-knowledge)."
    ),
]
_Node = Annotated[
    str,
    typer.Option(
        help="Stable name of this node, its own for each sidecar.  [default: the host's name]"
    ),
]
_Tenant = Annotated[
    str,
    typer.Option(
        help="Whose configuration it serves; needed with --control. What the clients apply "
        "without naming one is tenant `default`'s."
    ),
]
_Local = Annotated[
    str,
    typer.Option(
        help="HOST:PORT that resources give the pod beside an Envoy that intercepts what is "
        "meant for it (turnout envoy bootstrap --local)."
    ),
]

sidecar = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


@sidecar.command("sidecar", help=HELP)
def run(
    listen: _Listen,
    workers: Annotated[int, typer.Option(help="Worker processes; two survive one's death.")] = 2,
    control: Annotated[str, typer.Option(help="HOST:PORT of the control plane.")] = "",
    snapshot: Annotated[
        Path | None, typer.Option(help="Serve this file, without a control plane.")
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Keeps the last good snapshot; one sidecar each.")
    ] = None,
    node: _Node = "",
    tenant: _Tenant = "",
    envoy_dir: Annotated[
        Path | None, typer.Option(help="Directory of Envoy's watched files; written by us.")
    ] = None,
    envoy_admin: Annotated[
        str, typer.Option(help="unix:PATH or HOST:PORT of Envoy's admin; without: no start gate.")
    ] = "",
    metrics: Annotated[str, typer.Option(help="HOST:PORT for Prometheus, at /metrics.")] = "",
    otlp: Annotated[
        str, typer.Option(help="HOST:PORT that takes this sidecar's own spans (OTLP/gRPC).")
    ] = "",
    local: _Local = "",
    server: Annotated[
        ServerKind, typer.Option(help="The workers' server; grpcio is the reference, and slower.")
    ] = SERVER_DEFAULT,
    log_format: Annotated[
        LogFormat, typer.Option(help="One line per event, as text or JSON.")
    ] = LogFormat.TEXT,
    log_level: Annotated[LogLevel, typer.Option(help="Least serious events told.")] = LogLevel.INFO,
) -> None:
    """Check the options and run until SIGTERM."""
    try:
        options = check(
            listen=listen,
            workers=workers,
            control=control,
            snapshot=snapshot,
            state_dir=state_dir,
            node=node or socket.gethostname(),
            tenant=tenant,
            envoy_dir=envoy_dir,
            envoy_admin=envoy_admin,
            metrics=metrics,
            otlp=otlp,
            server=server,
            local=local,
            log=Style(log_format, log_level),
        )
    except OptionError as error:
        raise typer.BadParameter(str(error)) from error
    configure(options.log, {"tenant": options.tenant, "node": options.node})
    # Workers are started by fork and exec; grpc's fork handlers would only make noise.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    quiet_grpc()
    _serve(options)


def _serve(options: Options) -> None:
    from sidecar.scheduling import LONG_NS, ask_for_turns
    from sidecar.spawning import Spawned, places, spawn

    # Workers have the same until they serve.
    ask_for_turns(LONG_NS)
    # While they import what they need, so do we; what fails here is tried again and said there.
    spawned: list[Spawned] = []
    with contextlib.suppress(OSError):
        spawned.extend(spawn(place) for place in places(options))

    from sidecar.errors import CannotRunError
    from sidecar.service import serve
    from sidecar.supervisor import FileError

    try:
        serve(options, spawned)
    except FileError as error:
        _tell(options.log, str(error))
        raise typer.Exit(EXIT_INVALID) from error
    except CannotRunError as error:
        _tell(options.log, str(error))
        raise typer.Exit(EXIT_FAILED) from error


def _tell(style: Style, message: str) -> None:
    """Say why it cannot run: as plain words, or as a line of the log."""
    if style.format == LogFormat.JSON:
        logging.getLogger("turnout.sidecar").error("%s", message)
    else:
        typer.echo(f"Error: {message}", err=True)
