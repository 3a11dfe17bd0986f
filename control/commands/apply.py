"""`turnout apply`: make the control plane's resources what the files say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import grpc
import typer

from control.commands.client import (
    DEFAULT_CONTROL,
    EXIT_CONFLICT,
    Client,
    ControlOption,
    TenantOption,
    client_command,
    connected,
    request_id,
)
from control.commands.files import DEFAULT_TENANT, read_documents, refuse
from control.commands.output import Format, FormatOption, print_data
from control.model import (
    Document,
    document_of,
    experiment_with_defaults,
    target_with_defaults,
)
from turnout.v1alpha1.experiment_pb2 import Experiment, ExperimentSpec
from turnout.v1alpha1.experiment_service_pb2 import (
    CreateExperimentRequest,
    CreateTargetRequest,
    GetExperimentRequest,
    GetTargetRequest,
    UpdateExperimentRequest,
    UpdateTargetRequest,
)
from turnout.v1alpha1.target_pb2 import Target, TargetSpec


class Overwrites(Exception):
    """The file would undo a promotion that it does not know of."""


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
    """Create or update the resources in files: targets first, then experiments.

    Prints what became of each: created, configured or unchanged. All files are checked before
    anything is sent; it stops at the first resource that the control plane refuses. A file with
    metadata.etag (from `turnout get -o yaml`) is applied only if the resource has not changed
    since.

    A target whose baseline was set by a promotion is not set back by an older file unless you ask
    for that with --overwrite-baseline.
    """
    with refuse():
        documents = [document for _, document in read_documents(files, tenant=tenant)]
    documents.sort(key=lambda document: document.kind != "Target")  # stable: else as written
    results: list[Target | Experiment] = []
    with connected(control) as client:
        for document in documents:
            try:
                applied = _Apply(client, document, document.tenant or tenant, dry_run=dry_run)
                resource, verdict = applied.run(overwrite_baseline=overwrite_baseline)
            except Overwrites as error:
                typer.echo(str(error), err=True)
                raise typer.Exit(EXIT_CONFLICT) from error
            results.append(resource)
            if output is Format.TABLE:
                suffix = " (dry run)" if dry_run else ""
                typer.echo(f"{document.kind.lower()}/{document.name} {verdict}{suffix}")
    if output is not Format.TABLE:
        print_data([document_of(resource) for resource in results], output)


class _Apply:
    """One document on its way to the control plane."""

    def __init__(self, client: Client, document: Document, tenant: str, *, dry_run: bool) -> None:
        self._client = client
        self._document = document
        self._parent = f"tenants/{tenant}"
        self._dry_run = dry_run

    def run(self, *, overwrite_baseline: bool) -> tuple[Target | Experiment, str]:
        """Create or update; the resource afterwards, and what became of it.

        Raises:
            Overwrites: It would set back a promoted baseline, and nobody asked for that.
            grpc.RpcError: The control plane refused.
        """
        spec = self._document.spec
        if isinstance(spec, TargetSpec):
            return self._target(spec, overwrite_baseline=overwrite_baseline)
        return self._experiment(spec)

    def _target(self, spec: TargetSpec, *, overwrite_baseline: bool) -> tuple[Target, str]:
        document, stubs = self._document, self._client.targets
        wanted = Target(
            name=f"{self._parent}/targets/{document.name}", labels=document.labels, spec=spec
        )
        current = self._found(stubs.GetTarget, GetTargetRequest(name=wanted.name))
        if current is None:
            request = CreateTargetRequest(
                parent=self._parent,
                target_id=document.name,
                target=wanted,
                validate_only=self._dry_run,
                request_id=request_id(),
            )
            return self._client.call(stubs.CreateTarget, request), "created"
        assert isinstance(current, Target)
        wanted.etag = document.etag or current.etag
        same = current.labels == wanted.labels and current.spec == target_with_defaults(spec)
        if same and wanted.etag == current.etag:
            return current, "unchanged"
        promoted = current.status.promoted_from
        moved = current.spec.baseline != spec.baseline
        if promoted and moved and not document.etag and not overwrite_baseline:
            raise Overwrites(
                f"target/{document.name}: {promoted} was promoted and the file has another "
                "baseline; write the promoted one into it, or say --overwrite-baseline"
            )
        update = UpdateTargetRequest(
            target=wanted, validate_only=self._dry_run, request_id=request_id()
        )
        return self._client.call(stubs.UpdateTarget, update), "configured"

    def _experiment(self, spec: ExperimentSpec) -> tuple[Experiment, str]:
        document, stubs = self._document, self._client.experiments
        name = f"{self._parent}/experiments/{document.name}"
        wanted = Experiment(name=name, labels=document.labels, spec=spec)
        current = self._found(stubs.GetExperiment, GetExperimentRequest(name=name))
        if current is None:
            request = CreateExperimentRequest(
                parent=self._parent,
                experiment_id=document.name,
                experiment=wanted,
                validate_only=self._dry_run,
                request_id=request_id(),
            )
            return self._client.call(stubs.CreateExperiment, request), "created"
        assert isinstance(current, Experiment)
        wanted.etag = document.etag or current.etag
        # Chosen at creation and never changed: a file that says nothing about it means the same.
        wanted.spec.salt = spec.salt or current.spec.salt
        full = experiment_with_defaults(wanted.spec)
        same = current.labels == wanted.labels and current.spec == full
        if same and wanted.etag == current.etag:
            return current, "unchanged"
        update = UpdateExperimentRequest(
            experiment=wanted, validate_only=self._dry_run, request_id=request_id()
        )
        return self._client.call(stubs.UpdateExperiment, update), "configured"

    def _found(
        self, method: object, request: GetTargetRequest | GetExperimentRequest
    ) -> Target | Experiment | None:
        try:
            found: Target | Experiment = self._client.call(method, request)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return found
