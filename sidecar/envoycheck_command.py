"""`turnout envoy lint` and `patch`: a configuration that somebody else wrote.

Owns reading and writing the files and printing findings. Refuses to judge and to change anything by
itself: `envoylint` and `envoypatch` do.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from sidecar import envoyfiles, envoylint
from sidecar.envoyinputs import (
    EXIT_FAILED,
    EXIT_INVALID,
    WORKERS_MAX,
    baselines_of,
    fail,
    load_snapshot,
    socket_of,
    write_file,
)
from sidecar.envoymatch import UnsupportedMatch
from sidecar.envoypatch import PatchOptions, Unsupported, notes, patch
from turnout.v1alpha1.snapshot_pb2 import Snapshot

EXIT_FINDINGS: Final = 1
EXIT_USAGE: Final = 2


class Output(StrEnum):
    """How findings are printed."""

    table = "table"
    json = "json"


def lint_command(
    configurations: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            help="Bootstrap, LDS/RDS/CDS/ECDS file (resources:), Listener, HCM, "
            "RouteConfiguration or Cluster; YAML or JSON. Several are judged together.",
        ),
    ],
    files: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", help="Resource file whose plan Envoy must serve; repeatable."),
    ] = None,
    snapshot: Annotated[Path | None, typer.Option(help="Snapshot file, instead of -f.")] = None,
    output: Annotated[
        Output, typer.Option("--output", "-o", help="How to print findings.")
    ] = Output.table,
) -> None:
    """Find the traps in your own Envoy's configuration: file, line, rule and remedy.

    With -f or --snapshot also what their plan needs: forwarded headers, candidates' clusters.
    Exit codes: 0 nothing found, 1 findings, 2 usage, or a file that is not YAML, not Envoy's or of
    API v2, 3 a resource is invalid.
    """
    needs = None
    if files or snapshot is not None:
        needs = envoylint.Needs.of(load_snapshot(files or [], snapshot))
    try:
        read = {str(path): path.read_bytes() for path in configurations}
        found = envoylint.lint(read, needs)
        concerned = envoylint.has_processor(read)
    except OSError as error:
        fail(f"{error.filename or 'file'}: {error.strerror or error}", EXIT_USAGE)
    except envoylint.UnreadableFile as error:
        fail(str(error), EXIT_USAGE)
    if output is Output.json:
        typer.echo(json.dumps([finding._asdict() for finding in found], indent=2))
    else:
        for finding in found:
            typer.echo(_lines(finding))
        typer.echo(_summary(found, concerned), err=True)
    if found:
        raise typer.Exit(EXIT_FINDINGS)


def _lines(finding: envoylint.Finding) -> str:
    head = f"{finding.file}:{finding.line}: {finding.severity} {finding.rule}: {finding.fact}"
    return f"{head}\n    {finding.why}\n    Remedy: {finding.remedy}"


def _summary(found: list[envoylint.Finding], concerned: bool) -> str:
    if found:
        errors = sum(finding.severity == envoylint.ERROR for finding in found)
        return f"{errors} error(s), {len(found) - errors} warning(s)"
    if concerned:
        return "nothing found"
    return "nothing found; there is no ext_proc filter here: `turnout envoy patch` adds it"


def patch_command(
    configuration: Annotated[
        Path, typer.Argument(metavar="FILE", help="Your bootstrap, YAML or JSON.")
    ],
    sidecar: Annotated[str, typer.Option(help="unix:PATH as given to `turnout sidecar`.")],
    envoy_dir: Annotated[Path, typer.Option(help="Directory of the watched files.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where to write it (YAML); may be FILE.")
    ],
    files: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", help="Resource file with the targets; repeatable."),
    ] = None,
    snapshot: Annotated[Path | None, typer.Option(help="Snapshot file, instead of -f.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=WORKERS_MAX, help="Workers' sockets.")] = 2,
    admin: Annotated[
        str, typer.Option(help="unix:PATH of Envoy's admin socket, where FILE has no admin.")
    ] = "",
) -> None:
    """Add to your own Envoy's bootstrap what a split needs; everything else in it stays.

    Your routes stay the default of the targets given by -f or --snapshot; a stamped route is put
    before each. Keys keep their order; comments are lost, anchors are written out. Also writes the
    first cds/ and ecds/ files where there are none. Patching again changes nothing. What is left
    for you to decide is printed as `envoy lint` prints it.

    Exit codes: 0 written, 1 a file cannot be read or written, 2 usage, or FILE cannot be patched
    (the message says why), 3 a resource is invalid.
    """
    if out.suffix == ".json":
        raise typer.BadParameter("the output is YAML; call it .yaml", param_hint="--out")
    directory = envoy_dir.resolve()
    options = PatchOptions(
        sidecar=socket_of(sidecar, "--sidecar", suffix=f".{workers - 1}"),
        workers=workers,
        envoy_dir=str(directory),
        admin=socket_of(admin or f"unix:{directory}/admin", "--admin"),
    )
    plan = load_snapshot(files or [], snapshot)
    try:
        text = patch(configuration.read_bytes(), str(configuration), options, plan)
        clusters = envoyfiles.documents(baselines_of(plan), enabled=()).cds
        _write_first(directory / envoyfiles.CLUSTERS_FILE, clusters)
        processor = envoyfiles.documents(plan, enabled=()).ecds
        _write_first(directory / envoyfiles.FILTER_FILE, processor)
        write_file(out, text)
    except OSError as error:
        fail(f"{error.filename or 'file'}: {error.strerror or error}", EXIT_FAILED)
    except UnsupportedMatch as error:
        fail(str(error), EXIT_INVALID)
    except (envoylint.UnreadableFile, Unsupported) as error:
        fail(str(error), EXIT_USAGE)
    typer.echo(f"{out}: {len(plan.targets)} target(s)")
    _tell_rest(out, text, plan)


def _write_first(path: Path, text: str) -> None:
    """Envoy does not start without it; one that is there is the sidecar's."""
    if not path.exists():
        write_file(path, text)


def _tell_rest(out: Path, text: str, plan: Snapshot) -> None:
    for note in notes(text, str(out), plan):
        typer.echo(note, err=True)
    tell_findings(out, text, plan)


def tell_findings(out: Path, text: str, plan: Snapshot) -> None:
    """Print what a file that was just written still lacks for a plan."""
    for finding in envoylint.lint({str(out): text.encode()}, envoylint.Needs.of(plan)):
        typer.echo(_lines(finding), err=True)
