"""`turnout snapshot`: make a snapshot from resource files without a control plane, or show one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf import json_format

from control import snapshot as snapshots
from control.commands.files import (
    Bundle,
    InvalidFiles,
    Located,
    read_bundle,
    refuse,
)
from control.model import (
    KnownMetrics,
    Violation,
    layer_name,
    measured_names,
    reserved,
    resolved,
    shadow_at,
    split_at,
)
from turnout.v1alpha1.snapshot_pb2 import Snapshot

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Build a snapshot from resource files, or show one.",
)

# What an offline build says of things that only a control plane can count.
_VERSION = 1
_EPOCH = 1
_EPOCH_START_MS = 1  # before any request, and no 0: that would say that there is none


def build(files: list[Path]) -> bytes:
    """Make an encoded `Snapshot` (without the file header) from resource files.

    Every experiment is at its first step, in epoch 1; experiments of one layer have its ranges in
    the order of their names. The same files give the same bytes.

    Args:
        files: YAML files that hold all targets that are named and belong to one tenant; "-" reads
            standard input.

    Raises:
        InvalidDocument: With every violation in all files.
        Unimplemented: A feature is named that this version does not have.
        OSError: A file cannot be read.
    """
    return snapshots.encode(_assemble(read_bundle(files)))


def _assemble(bundle: Bundle) -> Snapshot:
    """The snapshot of experiments that all start now, one after the other in the order of names."""
    holdout = None
    if bundle.holdout is not None:
        salt = bundle.holdout.salt or snapshots.holdout_salt(bundle.tenant)
        holdout = (salt, bundle.holdout.fraction)
    taken: dict[tuple[str, str], list[snapshots.Ranges]] = {}
    mirrored: set[str] = set()
    running = []
    metrics = KnownMetrics(bundle.metrics, complete=True)
    for name, written in sorted(bundle.experiments.items()):
        spec = resolved(written, dict(measured_names(written, metrics)))
        if not spec.salt:
            spec.salt = snapshots.derived_salt(bundle.tenant, name)
        beside = taken.setdefault((spec.target, layer_name(spec)), [])
        beside.append(snapshots.reserve(beside, reserved(spec)))
        shadow = shadow_at(spec, 0)
        if shadow is not None and spec.target in mirrored:
            shadow = None  # one at a time: a control plane lets it wait
        elif shadow is not None:
            mirrored.add(spec.target)
        running.append(
            snapshots.RunningExperiment(
                name=name,
                spec=spec,
                epoch=_EPOCH,
                epoch_start_ms=_EPOCH_START_MS,
                allocation=snapshots.grow({}, split_at(spec, 0), control=spec.control),
                shadow=shadow,
                layer_ranges=beside[-1],
                holdout=holdout,
            )
        )
    return snapshots.build(bundle.tenant, _VERSION, bundle.targets, running)


@app.command("build")
def build_command(
    files: Annotated[
        list[Path], typer.Option("--file", "-f", help="Resource file (YAML), or -; repeatable.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Snapshot file to write.")],
) -> None:
    """Make a snapshot file: every experiment at its first step.

    The same files give the same bytes. Exit codes: 0 written, 1 a file cannot be read or written,
    2 usage, 3 a resource is invalid, 7 it names a feature that is not implemented.
    """
    with refuse():
        data = snapshots.to_file(build(files))
        try:
            _replace(out, data)
        except OSError as error:
            # Not the temporary file's: the user knows nothing of that.
            raise OSError(error.errno, error.strerror, str(out)) from error
    typer.echo(f"{out}: {len(data)} bytes")


@app.command("show")
def show_command(
    file: Annotated[Path, typer.Argument(help="Snapshot file.")],
) -> None:
    """Print a snapshot file as JSON.

    Exit codes: 0 printed, 1 the file cannot be read, 2 usage, 3 it is not a snapshot file.
    """
    with refuse():
        try:
            snapshot = Snapshot.FromString(snapshots.from_file(file.read_bytes()))
        except ValueError as error:
            violation = Violation("(file)", f"{file.stat().st_size} bytes", str(error))
            raise InvalidFiles([Located(str(file), violation)]) from error
    typer.echo(json_format.MessageToJson(snapshot, ensure_ascii=False))


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
