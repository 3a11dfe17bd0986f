"""Resource files on the command line: reading them, and refusing them with every violation."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import typer

from control.model import (
    Document,
    InvalidDocument,
    Violation,
    check_documents,
    is_label,
    read_yaml,
    unimplemented,
)
from turnout.contract import RESOURCE_BYTES_MAX
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec
from turnout.v1alpha1.experiment_service_pb2 import HoldoutSpec
from turnout.v1alpha1.metric_pb2 import MetricSpec
from turnout.v1alpha1.target_pb2 import TargetSpec

DEFAULT_TENANT: Final = "default"

EXIT_FAILED: Final = 1
EXIT_INVALID: Final = 3
EXIT_UNIMPLEMENTED: Final = 7


class Located(NamedTuple):
    """A violation and the file that it is in."""

    file: str
    violation: Violation

    def __str__(self) -> str:
        """Render as `file:line: field: value: rule`."""
        line = f":{self.violation.line}" if self.violation.line else ""
        return f"{self.file}{line}: {self.violation}"


class InvalidFiles(ValueError):
    """Files that are refused; `violations` has every one with its file."""

    def __init__(self, violations: Sequence[Located]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(map(str, self.violations)))


class Unimplemented(InvalidFiles):
    """Files in which nothing is wrong but that name features this version does not have."""


class Bundle(NamedTuple):
    """The resources of some files: what a snapshot is built from.

    Attributes:
        tenant: Of all of them.
        targets: Id -> spec.
        experiments: Id -> spec.
        metrics: Id -> spec.
        holdout: The tenant's, None = there is none in the files.
    """

    tenant: str
    targets: dict[str, TargetSpec]
    experiments: dict[str, ExperimentSpec]
    metrics: dict[str, MetricSpec]
    holdout: HoldoutSpec | None = None


def check_tenant(tenant: str) -> str:
    """A tenant's name that can be asked for.

    Raises:
        typer.BadParameter: It is no DNS label.
    """
    if not is_label(tenant):
        raise typer.BadParameter(
            f"{tenant!r} is no tenant: 1 to 63 of a-z 0-9 -", param_hint="--tenant"
        )
    return tenant


def read_documents(
    paths: Sequence[Path], *, tenant: str = DEFAULT_TENANT, whole: bool = False
) -> list[tuple[str, Document]]:
    """Read and check files; the documents in their order, each with its file.

    Args:
        paths: "-" is standard input.
        tenant: Of documents that name none.
        whole: The files must stand by themselves.

    Raises:
        InvalidFiles: With every violation in all files.
        Unimplemented: Nothing is invalid, and features are named that do not exist yet.
        OSError: A file cannot be read.
        typer.BadParameter: The tenant's name can be none.
    """
    check_tenant(tenant)
    located: list[Located] = []
    found: list[tuple[str, Document]] = []
    for path in paths:
        try:
            documents, violations = read_yaml(read_bytes(path))
        except InvalidDocument as error:
            documents, violations = [], list(error.violations)
        located.extend(Located(str(path), violation) for violation in violations)
        found.extend((str(path), document) for document in documents)
    checked = check_documents([document for _, document in found], tenant=tenant, whole=whole)
    for (file, _), violations in zip(found, checked, strict=True):
        located.extend(Located(file, violation) for violation in violations)
    if located:
        raise InvalidFiles(located)
    together = [document for _, document in found]
    features = [
        Located(file, Violation(feature, "set", feature.why, document.line_of(feature)))
        for file, document in found
        for feature in unimplemented(document, together, tenant=tenant)
    ]
    if features:
        raise Unimplemented(features)
    return found


def read_bundle(paths: Sequence[Path]) -> Bundle:
    """Read and check files that must stand by themselves.

    Raises:
        InvalidFiles, Unimplemented, OSError: As `read_documents`.
    """
    bundle = Bundle(DEFAULT_TENANT, {}, {}, {})
    for _, document in read_documents(paths, whole=True):
        bundle = bundle._replace(tenant=document.tenant or DEFAULT_TENANT)
        if isinstance(document.spec, TargetSpec):
            bundle.targets[document.name] = document.spec
        elif isinstance(document.spec, HoldoutSpec):
            bundle = bundle._replace(holdout=document.spec)
        elif isinstance(document.spec, MetricSpec):
            bundle.metrics[document.name] = document.spec
        else:
            bundle.experiments[document.name] = document.spec
    return bundle


def read_bytes(path: Path) -> bytes:
    """Contents of a file, or of standard input for "-"; at most a byte more than is accepted."""
    if str(path) == "-":
        return sys.stdin.buffer.read(RESOURCE_BYTES_MAX + 1)
    with path.open("rb") as stream:
        return stream.read(RESOURCE_BYTES_MAX + 1)


@contextmanager
def refuse() -> Iterator[None]:
    """Turn refused files and unreadable ones into messages and exit codes."""
    try:
        yield
    except InvalidFiles as error:
        for violation in error.violations:
            typer.echo(str(violation), err=True)
        code = EXIT_UNIMPLEMENTED if isinstance(error, Unimplemented) else EXIT_INVALID
        raise typer.Exit(code) from error
    except OSError as error:
        typer.echo(f"{error.filename or 'file'}: {error.strerror or error}", err=True)
        raise typer.Exit(EXIT_FAILED) from error
