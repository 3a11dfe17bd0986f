"""`turnout diff`: what `turnout apply` would change."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import grpc
import typer

from control.commands.applying import Change, Missing, Resource, filled, plan, send
from control.commands.client import (
    DEFAULT_CONTROL,
    Client,
    ControlOption,
    TenantOption,
    command_with,
    connected,
    explain,
)
from control.commands.files import DEFAULT_TENANT, EXIT_FAILED, read_documents, refuse
from control.model import document_of, to_yaml

EXIT_DIFFERENT: Final = 1
# `diff` and `kubectl diff` say 1 for a difference: whatever failed needs another code here.
EXIT_DIFF_FAILED: Final = 8
EXIT_CODES: Final = (
    "Exit codes: 0 no difference, 1 a difference, 2 usage, 3 a resource or argument is invalid, "
    "5 apply would be refused (stale etag, wrong state), 6 control plane unreachable, "
    "7 not implemented, 8 failed (a file cannot be read)."
)
_KEPT: Final = ("name", "tenant", "labels")
_COLOURS: Final = {"+": typer.colors.GREEN, "-": typer.colors.RED, "@": typer.colors.CYAN}


@command_with(EXIT_CODES)
def diff(
    files: Annotated[
        list[Path], typer.Option("--file", "-f", help="Resource file (YAML), or -; repeatable.")
    ],
    control: ControlOption = DEFAULT_CONTROL,
    tenant: TenantOption = DEFAULT_TENANT,
) -> None:
    """Show what `turnout apply` would change, as a unified diff; changes nothing.

    Both sides are written in full, with every default, so that only what means something else is
    a difference. The control plane checks each change as `apply --dry-run` does: what it would
    refuse is shown, and why is said on standard error.

    \b
      turnout diff -f fraud.yaml
      turnout diff -f fraud.yaml && echo "nothing to apply"
    """  # noqa: D301 - click reads the escape
    with _failing_as(EXIT_DIFF_FAILED):
        with refuse():
            documents = read_documents(files, tenant=tenant)
        documents.sort(key=lambda found: found[1].kind == "Experiment")  # stable: as apply does
        different, refusal = False, 0
        missing = Missing()
        with connected(control) as client:
            for file, document in documents:
                change = plan(client, document, tenant)
                different |= _show(change, file)
                if change.overwrites:
                    typer.echo(f"apply would refuse this: {change.overwrites}", err=True)
                if not missing.hold(change):
                    refusal = refusal or _refused(client, change, control)
                missing.note(change)
    if refusal or different:
        raise typer.Exit(refusal or EXIT_DIFFERENT)


@contextmanager
def _failing_as(code: int) -> Iterator[None]:
    try:
        yield
    except typer.Exit as error:
        if error.exit_code == EXIT_FAILED:
            raise typer.Exit(code) from error
        raise


def _refused(client: Client, change: Change, control: str) -> int:
    """The exit code of the control plane's refusal, which is said; 0 = it would take it."""
    try:
        send(client, change, validate_only=True)
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise
        typer.echo(f"apply would refuse {change.label}:", err=True)
        code = explain(error, control)
        return EXIT_DIFF_FAILED if code == EXIT_FAILED else code
    return 0


def _show(change: Change, file: str) -> bool:
    """Print the difference; False when there is none."""
    current = change.current
    before = _lines(current) if current is not None else []
    after = _lines(filled(change.wanted))
    if before == after:
        return False
    revision = f"revision {current.revision}" if current is not None else "not there"
    lines = difflib.unified_diff(
        before, after, f"{change.label} ({revision})", f"{change.label} ({file})", lineterm=""
    )
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for line in lines:
        typer.echo(typer.style(line, fg=_COLOURS.get(line[:1])) if coloured else line)
    return True


def _lines(resource: Resource) -> list[str]:
    """A resource as people write it: without what only the control plane knows."""
    document = document_of(resource)
    document.pop("status", None)
    document["metadata"] = {k: v for k, v in document["metadata"].items() if k in _KEPT}
    return to_yaml([document]).splitlines()
