"""`turnout envoy lint`: the traps in an Envoy configuration that somebody else wrote.

Owns reading the files and printing findings. Refuses to judge: `envoylint` does.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sidecar import envoylint
from sidecar.envoyinputs import fail, load_snapshot

EXIT_FINDINGS = 1
EXIT_USAGE = 2


class Output(StrEnum):
    """How findings are printed."""

    table = "table"
    json = "json"


def lint_command(
    configurations: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
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
