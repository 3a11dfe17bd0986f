"""`turnout apply`: make the control plane's resources what the files say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from control.commands.applying import Missing, Resource, filled, plan, send
from control.commands.client import (
    DEFAULT_CONTROL,
    EXIT_CONFLICT,
    ControlOption,
    TenantOption,
    client_command,
    connected,
)
from control.commands.doubts import doubts_of, measured_doubts, warn, with_warnings
from control.commands.files import DEFAULT_TENANT, read_documents, refuse
from control.commands.output import Format, FormatOption, print_data
from control.model import document_of
from control.planning.inputs import Caution


@client_command
def apply(
    files: Annotated[
        list[Path], typer.Option("--file", "-f", help="Resource file (YAML), or -; repeatable.")
    ],
    control: ControlOption = DEFAULT_CONTROL,
    tenant: TenantOption = DEFAULT_TENANT,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Let the control plane check, change nothing.")
    ] = False,
    overwrite_baseline: Annotated[
        bool, typer.Option("--overwrite-baseline", help="Also where a promotion set another one.")
    ] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Create or update the resources in files: experiments last, after what they name.

    Prints what became of each: created, configured or unchanged. All files are checked before
    anything is sent; it stops at the first resource that the control plane refuses. A file with
    metadata.etag (from `turnout get -o yaml`) is applied only if the resource has not changed
    since.

    With --dry-run the control plane checks every resource as it would be, and stores nothing. An
    experiment whose target or metric does not exist yet is checked against the files alone, and
    says so.
    `turnout diff` shows what would change.

    Steps that can never decide (no candidate or no control is served, a margin of 0, a maximum of
    seconds) are warned of on standard error and in `status.warnings` of -o json and yaml; so are
    those that cannot in their time, where the control plane has counted traffic on the target.
    Warnings stop nothing; `turnout plan` says more.

    A target whose baseline was set by a promotion is not set back by an older file unless you ask
    for that with --overwrite-baseline.

    \b
      turnout apply -f fraud.yaml --dry-run
      turnout apply -f fraud.yaml
      turnout get target fraud -o yaml | sed s/fraud-v1/fraud-v3/ | turnout apply -f -
    """  # noqa: D301 - click reads the escape
    with refuse():
        documents = read_documents(files, tenant=tenant)
    documents.sort(key=lambda found: found[1].kind == "Experiment")  # stable: else as written
    beside = [document for _, document in documents]
    results: list[tuple[Resource, tuple[Caution, ...]]] = []
    missing = Missing()
    with connected(control) as client:
        for file, document in documents:
            change = plan(client, document, tenant)
            if change.overwrites and not overwrite_baseline:
                typer.echo(change.overwrites, err=True)
                raise typer.Exit(EXIT_CONFLICT)
            doubts = doubts_of(document, beside)
            if not change.same:
                doubts += measured_doubts(client, document, beside, tenant)
            suffix = ""
            if dry_run and (held := missing.hold(change)):
                results.append((filled(change.wanted), doubts))
                suffix = f" (dry run; {held} is not there yet: checked against the files only)"
            else:
                results.append((send(client, change, validate_only=dry_run), doubts))
                suffix = " (dry run)" if dry_run else ""
            missing.note(change)
            if output is Format.TABLE:
                typer.echo(f"{change.label} {change.verdict}{suffix}")
            warn(file, document, doubts)
    if output is not Format.TABLE:
        shown = [with_warnings(document_of(resource), doubts) for resource, doubts in results]
        print_data(shown, output)
