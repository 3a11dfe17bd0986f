"""`turnout delete`: remove targets, experiments and metrics, by name or as files name them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import grpc
import typer

from control.commands.client import (
    DEFAULT_CONTROL,
    EXIT_NOT_FOUND,
    Client,
    ControlOption,
    EtagOption,
    TenantOption,
    client_command,
    connected,
    explain,
    reference,
)
from control.commands.files import DEFAULT_TENANT, read_documents, refuse
from control.model import ResourceName
from turnout.completing import any_names
from turnout.v1alpha1.experiment_service_pb2 import DeleteExperimentRequest, DeleteTargetRequest
from turnout.v1alpha1.metric_service_pb2 import DeleteMetricRequest


class Doomed(NamedTuple):
    """A resource to be deleted, if it still has this etag ("" = any)."""

    name: ResourceName
    etag: str


@client_command
def delete(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            help="NAME (an experiment), KIND NAME or KIND/NAME.",
            metavar="[WHAT]",
            autocompletion=any_names,
        ),
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", help="Delete what this file holds, or -; repeatable."),
    ] = None,
    control: ControlOption = DEFAULT_CONTROL,
    tenant: TenantOption = DEFAULT_TENANT,
    etag: EtagOption = "",
) -> None:
    """Delete an experiment, a target or a metric, or all that files hold: experiments first.

    Nothing is asked. An experiment that runs is refused (exit code 5): stop it or roll it back
    first; so is a target or a metric that an experiment needs. What is not there is said (exit
    code 4) and the rest is deleted all the same; any other refusal ends the command.

    An experiment's decisions and audit events are kept. Its name can be used again.

    \b
      turnout delete fraud-v2
      turnout delete target/fraud
      turnout delete -f fraud.yaml
    """  # noqa: D301 - click reads the escape
    doomed = _doomed(what or [], files or [], tenant, etag)
    code = 0
    with connected(control) as client:
        for item in doomed:
            try:
                _delete(client, item)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                explain(error, control)
                code = EXIT_NOT_FOUND
                continue
            typer.echo(f"{item.name.collection.removesuffix('s')}/{item.name.name} deleted")
    raise typer.Exit(code)


def _doomed(what: list[str], files: list[Path], tenant: str, etag: str) -> list[Doomed]:
    if bool(what) == bool(files):
        raise typer.BadParameter("say what to delete: NAME, KIND NAME, KIND/NAME, or -f FILE")
    if what:
        return [Doomed(reference(what, tenant), etag)]
    if etag:
        raise typer.BadParameter("files have metadata.etag", param_hint="--etag")
    with refuse():
        documents = [document for _, document in read_documents(files, tenant=tenant)]
    if any(document.kind == "Holdout" for document in documents):
        raise typer.BadParameter(
            "a holdout cannot be deleted: apply it with fraction: 0", param_hint="--file"
        )
    documents.sort(key=lambda document: document.kind != "Experiment")  # stable: else as written
    return [
        Doomed(
            ResourceName(item.tenant or tenant, f"{item.kind.lower()}s", item.name),
            item.etag,
        )
        for item in documents
    ]


def _delete(client: Client, item: Doomed) -> None:
    name = str(item.name)
    if item.name.collection == "targets":
        request = DeleteTargetRequest(name=name, etag=item.etag)
        client.call(client.targets.DeleteTarget, request)
    elif item.name.collection == "metrics":
        client.call(client.metrics.DeleteMetric, DeleteMetricRequest(name=name, etag=item.etag))
    else:
        draft = DeleteExperimentRequest(name=name, etag=item.etag)
        client.call(client.experiments.DeleteExperiment, draft)
