"""`turnout lint`: check resource files offline, naming every violation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from control.commands.doubts import doubts_of, entry, warn
from control.commands.files import (
    DEFAULT_TENANT,
    EXIT_INVALID,
    EXIT_UNIMPLEMENTED,
    InvalidFiles,
    Located,
    Unimplemented,
    read_documents,
    refuse,
)
from control.commands.output import Format, FormatOption
from control.model import to_yaml


def lint(
    files: Annotated[
        list[Path], typer.Option("--file", "-f", help="Resource file (YAML), or -; repeatable.")
    ],
    tenant: Annotated[
        str, typer.Option("--tenant", envvar="TURNOUT_TENANT", help="Tenant of files without one.")
    ] = DEFAULT_TENANT,
    output: FormatOption = Format.TABLE,
) -> None:
    """Check resource files offline and name every violation: FILE:LINE: FIELD: VALUE: RULE.

    An experiment is checked against the target and the other experiments that are in the files.

    A step that can never decide, whatever the traffic, is warned of on standard error; with -o json
    and yaml it is an entry with `warning` in place of `value` and `rule`. The exit code does not
    change. `turnout plan` says what traffic is enough for what.

    Exit codes: 0 all are good, 1 a file cannot be read, 2 usage, 3 a resource is invalid, 7 all are
    valid and one names a feature that is not implemented.
    """
    with refuse():
        try:
            documents = read_documents(files, tenant=tenant)
        except InvalidFiles as error:
            if output is Format.TABLE:
                raise
            _print([_entry(item) for item in error.violations], output)
            code = EXIT_UNIMPLEMENTED if isinstance(error, Unimplemented) else EXIT_INVALID
            raise typer.Exit(code) from error
    beside = [document for _, document in documents]
    if output is not Format.TABLE:
        found = [
            entry(file, document, doubt)
            for file, document in documents
            for doubt in doubts_of(document, beside)
        ]
        _print(found, output)
        return
    for file, document in documents:
        warn(file, document, doubts_of(document, beside))
        what = f"{document.kind} {document.name}".rstrip()
        typer.echo(f"{file}:{document.lines['']}: {what}: ok")


def _entry(item: Located) -> dict[str, Any]:
    violation = item.violation
    return {
        "file": item.file,
        "line": violation.line,
        "field": violation.field,
        "value": violation.value,
        "rule": violation.rule,
    }


def _print(entries: list[dict[str, Any]], output: Format) -> None:
    if output is Format.JSON:
        typer.echo(json.dumps(entries, indent=2, ensure_ascii=False))
    else:
        typer.echo(to_yaml([entries]), nl=False)
