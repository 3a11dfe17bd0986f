"""`turnout envoy`: print Envoy configurations that work with a sidecar.

Owns reading options and resource files and writing the bootstrap with its first watched files.
Refuses to run Envoy, and to write files of a snapshot's experiments: that is the sidecar's, when
their upstreams are healthy.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from google.protobuf.message import DecodeError

from sidecar import envoyfiles
from sidecar.envoybootstrap import BootstrapOptions, bootstrap
from sidecar.envoymatch import UnsupportedMatch
from sidecar.envoyyaml import is_ip
from sidecar.snapshotcheck import validate
from sidecar.snapshotfile import CorruptSnapshot, decode
from turnout.v1alpha1.snapshot_pb2 import Snapshot

SNAPSHOT_BUILDERS: Final = "turnout.snapshots"
EXIT_FAILED: Final = 1
EXIT_INVALID: Final = 3
# sockaddr_un.sun_path holds 108 bytes with its final NUL.
SOCKET_PATH_BYTES_MAX: Final = 107
WORKERS_MAX: Final = 64

envoy = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Print Envoy configurations that work with a sidecar.",
)


@envoy.callback()
def _group() -> None:
    """Keep `bootstrap` a subcommand although it is the only one."""


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
) -> None:
    """Write bootstrap.yaml, and the first cds/, rds/ and ecds/ files, with which Envoy can start.

    These route every target to its baseline with the filter off; a sidecar given the same
    --envoy-dir replaces them. Exit codes: 0 written, 1 a file cannot be read or written, 2 usage,
    3 a resource is invalid.
    """
    host, port = _address(listen, "--listen")
    if not is_ip(host):
        raise typer.BadParameter(f"{host!r} is not an IP address", param_hint="--listen")
    otlp_host, otlp_port = _address(otlp, "--otlp") if otlp else ("", 0)
    directory = envoy_dir.resolve()
    options = BootstrapOptions(
        listen_host=host,
        listen_port=port,
        sidecar=_socket(sidecar, "--sidecar", suffix=f".{workers - 1}"),
        workers=workers,
        envoy_dir=str(directory),
        admin=_socket(admin, "--admin"),
        otlp_host=otlp_host,
        otlp_port=otlp_port,
        sampling=sampling,
        node=node,
    )
    baselines = _baselines(_load(files or [], snapshot))
    try:
        documents = envoyfiles.documents(baselines, enabled=())
        _write(directory / envoyfiles.CLUSTERS_FILE, documents.cds)
        _write(directory / envoyfiles.ROUTES_FILE, documents.rds)
        _write(directory / envoyfiles.FILTER_FILE, documents.ecds)
        _write(out / "bootstrap.yaml", bootstrap(options))
    except UnsupportedMatch as error:
        _fail(str(error), EXIT_INVALID)
    except OSError as error:
        _fail(f"{error.filename or 'file'}: {error.strerror or error}", EXIT_FAILED)
    typer.echo(f"{out / 'bootstrap.yaml'}: {len(baselines.targets)} target(s)")


def _load(files: list[Path], file: Path | None) -> Snapshot:
    if bool(files) == (file is not None):
        raise typer.BadParameter("give -f or --snapshot, and not both")
    try:
        data = decode(file.read_bytes()) if file is not None else _builder()(files)
        snapshot = Snapshot.FromString(data)
    except OSError as error:
        _fail(f"{error.filename or 'file'}: {error.strerror or error}", EXIT_FAILED)
    except (CorruptSnapshot, DecodeError) as error:
        _fail(f"{file}: {error}", EXIT_INVALID)
    except ValueError as error:
        # The control plane's own refusal, which this side does not import: it lists violations.
        for violation in getattr(error, "violations", None) or [error]:
            typer.echo(str(violation), err=True)
        raise typer.Exit(EXIT_INVALID) from error
    if violations := validate(snapshot):
        for item in violations:
            typer.echo(f"{item.field}: {item.value}: {item.rule}", err=True)
        raise typer.Exit(EXIT_INVALID)
    return snapshot


def _builder() -> Any:
    """The function that makes a snapshot of resource files; it belongs to the control plane."""
    points = tuple(entry_points(group=SNAPSHOT_BUILDERS))
    if not points:
        _fail("-f needs the control plane's package; give --snapshot", EXIT_FAILED)
    return points[0].load()


def _baselines(snapshot: Snapshot) -> Snapshot:
    first = Snapshot()
    first.CopyFrom(snapshot)
    first.ClearField("experiments")
    return first


def _address(text: str, option: str) -> tuple[str, int]:
    try:
        host, port = envoyfiles.split_address(text)
    except ValueError:
        host, port = "", 0
    if not host or not 0 < port < 65_536:
        raise typer.BadParameter(f"{text!r} is not HOST:PORT", param_hint=option)
    return host, port


def _socket(text: str, option: str, *, suffix: str = "") -> str:
    path = text.removeprefix("unix:")
    if path == text or not path:
        raise typer.BadParameter(f"{text!r} is not unix:PATH", param_hint=option)
    absolute = str(Path(path).absolute())
    if len((absolute + suffix).encode()) > SOCKET_PATH_BYTES_MAX:
        raise typer.BadParameter("the socket's path is too long", param_hint=option)
    return absolute


def _write(path: Path, text: str) -> None:
    """Put a file in place in one step: Envoy may be watching."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
