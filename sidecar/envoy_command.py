"""`turnout envoy`: print Envoy configurations that work with a sidecar.

Owns reading options and resource files and writing the bootstrap with its first watched files.
Refuses to run Envoy, and to write files of a snapshot's experiments: that is the sidecar's, when
their upstreams are healthy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sidecar import envoyfiles
from sidecar.envoybootstrap import BootstrapOptions, bootstrap
from sidecar.envoycheck_command import lint_command, patch_command, tell_findings
from sidecar.envoyinputs import (
    EXIT_FAILED,
    EXIT_INVALID,
    WORKERS_MAX,
    address_of,
    baselines_of,
    fail,
    load_filters,
    load_snapshot,
    socket_of,
    write_file,
)
from sidecar.envoymatch import UnsupportedMatch
from sidecar.envoyyaml import is_ip

envoy = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Print, check and extend Envoy configurations that work with a sidecar.",
)
envoy.command("lint")(lint_command)
envoy.command("patch")(patch_command)


@envoy.command("bootstrap")
def bootstrap_command(
    listen: Annotated[str, typer.Option(help="HOST:PORT (IP address) for requests.")],
    sidecar: Annotated[str, typer.Option(help="unix:PATH as given to `turnout sidecar`.")],
    envoy_dir: Annotated[Path, typer.Option(help="Directory of the watched files.")],
    admin: Annotated[str, typer.Option(help="unix:PATH of Envoy's admin socket.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for bootstrap.yaml.")],
    files: Annotated[
        list[Path] | None, typer.Option("--file", "-f", help="Resource file (YAML); repeatable.")
    ] = None,
    snapshot: Annotated[Path | None, typer.Option(help="Snapshot file, instead of -f.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=WORKERS_MAX, help="Workers' sockets.")] = 2,
    otlp: Annotated[str, typer.Option(help="HOST:PORT that takes spans (OTLP/gRPC).")] = "",
    sampling: Annotated[
        float, typer.Option(min=0, max=100, help="Percentage of requests traced.")
    ] = 1.0,
    node: Annotated[str, typer.Option(help="Envoy's node id and service name.")] = "turnout",
    local: Annotated[
        str,
        typer.Option(
            help="The listener intercepts what clients send to the pod beside it "
            "(envoy/transparent): the HOST:PORT that resources give that pod, for the sidecar, too."
        ),
    ] = "",
    filters: Annotated[
        Path | None,
        typer.Option(help="YAML list of HTTP filters to run before Turnout's: jwt_authn, ..."),
    ] = None,
) -> None:
    """Write bootstrap.yaml, and the first cds/, rds/ and ecds/ files, with which Envoy can start.

    These route every target to its baseline with the filter off; a sidecar given the same
    --envoy-dir replaces them. A unit that is a verified claim needs jwt_authn among --filters.
    Exit codes: 0 written, 1 a file cannot be read or written, 2 usage, 3 a resource is invalid.
    """
    host, port = address_of(listen, "--listen")
    if not is_ip(host):
        raise typer.BadParameter(f"{host!r} is not an IP address", param_hint="--listen")
    otlp_host, otlp_port = address_of(otlp, "--otlp") if otlp else ("", 0)
    if local:
        address_of(local, "--local")
    if not node:
        raise typer.BadParameter("must not be empty: Envoy needs a node id", param_hint="--node")
    directory = envoy_dir.resolve()
    options = BootstrapOptions(
        listen_host=host,
        listen_port=port,
        sidecar=socket_of(sidecar, "--sidecar", suffix=f".{workers - 1}"),
        workers=workers,
        envoy_dir=str(directory),
        admin=socket_of(admin, "--admin"),
        otlp_host=otlp_host,
        otlp_port=otlp_port,
        sampling=sampling,
        node=node,
        filters=load_filters(filters),
        transparent=bool(local),
    )
    plan = load_snapshot(files or [], snapshot)
    baselines = baselines_of(plan)
    try:
        documents = envoyfiles.documents(baselines, enabled=(), local=local)
        write_file(directory / envoyfiles.CLUSTERS_FILE, documents.cds)
        write_file(directory / envoyfiles.ROUTES_FILE, documents.rds)
        write_file(directory / envoyfiles.FILTER_FILE, documents.ecds)
        text = bootstrap(options)
        write_file(out / "bootstrap.yaml", text)
    except UnsupportedMatch as error:
        fail(str(error), EXIT_INVALID)
    except OSError as error:
        fail(f"{error.filename or 'file'}: {error.strerror or error}", EXIT_FAILED)
    typer.echo(f"{out / 'bootstrap.yaml'}: {len(baselines.targets)} target(s)")
    if stray := envoyfiles.stray_local(plan, local):
        typer.echo(f"warning: --local: {stray}", err=True)
    tell_findings(out / "bootstrap.yaml", text, plan)
