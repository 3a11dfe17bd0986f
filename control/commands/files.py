"""Resource files on the command line: reading them, and refusing them with every violation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import typer

from control.model import Document, InvalidDocument, Violation, read_yaml
from turnout.contract import RESOURCE_BYTES_MAX
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec
from turnout.v1alpha1.target_pb2 import TargetSpec

DEFAULT_TENANT: Final = "default"

EXIT_FAILED: Final = 1
EXIT_INVALID: Final = 3


class Located(NamedTuple):
    """A violation and the file that it is in."""

    file: str
    violation: Violation

    def __str__(self) -> str:
        """Render as `file:line: field: value: rule`."""
        line = f":{self.violation.line}" if self.violation.line else ""
        return f"{self.file}{line}: {self.violation}"


class InvalidFiles(InvalidDocument):
    """Files that are refused; `located` has every violation with its file."""

    def __init__(self, located: list[Located]) -> None:
        self.located = located
        super().__init__(item.violation for item in located)


@dataclass(slots=True)
class Bundle:
    """The resources of some files, all of one tenant."""

    tenant: str = DEFAULT_TENANT
    targets: dict[str, TargetSpec] = field(default_factory=dict)
    experiments: dict[str, ExperimentSpec] = field(default_factory=dict)


def read_bytes(path: Path) -> bytes:
    """Contents of a file, or of standard input for "-"; a little more than is accepted at most."""
    if str(path) == "-":
        return sys.stdin.buffer.read(RESOURCE_BYTES_MAX + 1)
    with path.open("rb") as stream:
        return stream.read(RESOURCE_BYTES_MAX + 1)


def read_files(paths: list[Path]) -> Bundle:
    """Read and check files that must stand by themselves.

    Raises:
        InvalidFiles: With every violation.
        OSError: A file cannot be read.
    """
    located: list[Located] = []
    documents: list[tuple[str, Document]] = []
    for path in paths:
        try:
            found, violations = read_yaml(read_bytes(path))
        except InvalidDocument as error:
            found, violations = [], list(error.violations)
        located.extend(Located(str(path), violation) for violation in violations)
        documents.extend((str(path), document) for document in found)
    if located:
        raise InvalidFiles(located)
    bundle = Bundle()
    for _, document in documents:
        bundle.tenant = document.tenant or bundle.tenant
        if isinstance(document.spec, TargetSpec):
            bundle.targets[document.name] = document.spec
        else:
            bundle.experiments[document.name] = document.spec
    return bundle


@contextmanager
def refuse() -> Iterator[None]:
    """Turn refused files and unreadable ones into messages and exit codes."""
    try:
        yield
    except InvalidFiles as error:
        for item in error.located:
            typer.echo(str(item), err=True)
        raise typer.Exit(EXIT_INVALID) from error
    except OSError as error:
        typer.echo(f"{error.filename or 'file'}: {error.strerror or error}", err=True)
        raise typer.Exit(EXIT_FAILED) from error
