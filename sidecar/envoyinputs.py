"""What the commands of `turnout envoy` take: resource files, snapshots, addresses, sockets.

Owns reading them and refusing bad ones with a message and an exit code. Refuses to know what a
command makes of them.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, NoReturn

import typer
import yaml
from google.protobuf.message import DecodeError

from sidecar import envoyfiles
from sidecar.snapshotcheck import validate
from sidecar.snapshotfile import CorruptSnapshot, decode
from sidecar.sockets import SOCKET_PATH_BYTES_MAX as WORKER_PATH_BYTES_MAX
from turnout.v1alpha1.snapshot_pb2 import Snapshot

SNAPSHOT_BUILDERS: Final = "turnout.snapshots"
EXIT_FAILED: Final = 1
EXIT_INVALID: Final = 3
# sockaddr_un.sun_path holds 108 bytes with its final NUL.
SOCKET_PATH_BYTES_MAX: Final = 107
WORKERS_MAX: Final = 64


def load_snapshot(files: list[Path], file: Path | None) -> Snapshot:
    """Read the resources of -f, or the snapshot of --snapshot.

    Raises:
        typer.Exit: They cannot be read, or are invalid; every violation is printed.
        typer.BadParameter: Both are given, or none.
    """
    if bool(files) == (file is not None):
        raise typer.BadParameter("give -f or --snapshot, and not both")
    try:
        data = decode(file.read_bytes()) if file is not None else _builder()(files)
        snapshot = Snapshot.FromString(data)
    except OSError as error:
        fail(f"{error.filename or 'file'}: {error.strerror or error}", EXIT_FAILED)
    except (CorruptSnapshot, DecodeError) as error:
        fail(f"{file}: {error}", EXIT_INVALID)
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
        fail("-f needs the control plane's package; give --snapshot", EXIT_FAILED)
    return points[0].load()


def load_filters(file: Path | None) -> tuple[dict[str, Any], ...]:
    """Read HTTP filters, a list in YAML.

    Raises:
        typer.Exit: The file cannot be read, or has no such list.
    """
    if file is None:
        return ()
    try:
        found = yaml.safe_load(file.read_bytes())
    except OSError as error:
        fail(f"{file}: {error.strerror or error}", EXIT_FAILED)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        fail(f"{file}: {' '.join(str(error).split())}", EXIT_INVALID)
    entries = found if isinstance(found, list) else [None]
    if not all(isinstance(entry, dict) and "name" in entry for entry in entries):
        fail(f"{file}: must be a list of Envoy's HTTP filters, each with a name", EXIT_INVALID)
    return tuple(entries)


def baselines_of(snapshot: Snapshot) -> Snapshot:
    """The snapshot without its experiments: with what Envoy starts."""
    first = Snapshot()
    first.CopyFrom(snapshot)
    first.ClearField("experiments")
    return first


def address_of(text: str, option: str) -> tuple[str, int]:
    """HOST:PORT as given to an option.

    Raises:
        typer.BadParameter: It is not.
    """
    try:
        host, port = envoyfiles.split_address(text)
    except ValueError:
        host, port = "", 0
    if not host or not 0 < port < 65_536:
        raise typer.BadParameter(f"{text!r} is not HOST:PORT", param_hint=option)
    return host, port


def socket_of(text: str, option: str, *, suffix: str = "") -> str:
    """The absolute path in unix:PATH; with a suffix it is the workers', which that is added to.

    Raises:
        typer.BadParameter: It is not, or too long for a socket.
    """
    path = text.removeprefix("unix:")
    if path == text or not path:
        raise typer.BadParameter(f"{text!r} is not unix:PATH", param_hint=option)
    absolute = str(Path(path).absolute())
    most = (WORKER_PATH_BYTES_MAX if suffix else SOCKET_PATH_BYTES_MAX) - len(suffix)
    if (size := len(absolute.encode())) > most:
        rule = f"{absolute!r} has {size} bytes, at most {most} fit: choose a shorter path"
        raise typer.BadParameter(rule, param_hint=option)
    return absolute


def write_file(path: Path, text: str) -> None:
    """Put a file in place in one step: Envoy may be watching."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def fail(message: str, code: int) -> NoReturn:
    """Say why and end with an exit code."""
    typer.echo(message, err=True)
    raise typer.Exit(code)
