"""What an operator says to an experiment: start, pause, advance, promote, rollback, undo, ..."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from control.commands.client import (
    DEFAULT_CONTROL,
    ControlOption,
    EtagOption,
    TenantOption,
    client_command,
    connected,
    reference,
    request_id,
)
from control.commands.files import DEFAULT_TENANT
from control.commands.output import Format, FormatOption, print_data, print_line, summary
from control.model import document_of
from turnout.completing import experiment_names
from turnout.v1alpha1 import experiment_service_pb2 as api
from turnout.v1alpha1.experiment_pb2 import Experiment

NameArgument = Annotated[
    str,
    typer.Argument(help="The experiment.", metavar="NAME", autocompletion=experiment_names),
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Kept in the decision.")]


@client_command
def start(
    name: NameArgument,
    control: ControlOption = DEFAULT_CONTROL,
    tenant: TenantOption = DEFAULT_TENANT,
    etag: EtagOption = "",
    output: FormatOption = Format.TABLE,
) -> None:
    """Start an experiment at its first step."""
    _say("StartExperiment", api.StartExperimentRequest(etag=etag), name, control, tenant, output)


@client_command
def pause(
    name: NameArgument,
    control: ControlOption = DEFAULT_CONTROL,
    tenant: TenantOption = DEFAULT_TENANT,
    etag: EtagOption = "",
    output: FormatOption = Format.TABLE,
) -> None:
    """Freeze an experiment's step: the split stays, nothing advances; safety still rolls back."""
    _say("PauseExperiment", api.PauseExperimentRequest(etag=etag), name, control, tenant, output)


@client_command
def resume(
    name: NameArgument,
    control: ControlOption = DEFAULT_CONTROL,
    tenant: TenantOption = DEFAULT_TENANT,
    etag: EtagOption = "",
    output: FormatOption = Format.TABLE,
) -> None:
    """Go on with a paused experiment."""
    _say("ResumeExperiment", api.ResumeExperimentRequest(etag=etag), name, control, tenant, output)


@client_command
def advance(
    name: NameArgument,
    control: ControlOption = DEFAULT_CONTROL,
    tenant: TenantOption = DEFAULT_TENANT,
    etag: EtagOption = "",
    output: FormatOption = Format.TABLE,
) -> None:
    """Go to the next step, whatever the checks say."""
    request = api.AdvanceExperimentRequest(etag=etag)
    _say("AdvanceExperiment", request, name, control, tenant, output)


@client_command
def promote(
    name: NameArgument,
    variant: Annotated[
        str, typer.Option("--variant", help="The candidate; needed when there are several.")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Also when no sidecar knows the candidate as healthy.")
    ] = False,
    control: ControlOption = DEFAULT_CONTROL,
    tenant: TenantOption = DEFAULT_TENANT,
    etag: EtagOption = "",
    output: FormatOption = Format.TABLE,
) -> None:
    """Make a candidate the target's baseline and end the experiment. `turnout undo` goes back.

    Refused (exit code 5) while a connected sidecar still waits for the candidate to be healthy, and
    while no sidecar is connected: everybody would be sent to it. --force promotes all the same, and
    the decision says so.
    """
    request = api.PromoteExperimentRequest(etag=etag, variant=variant, force=force)
    _say("PromoteExperiment", request, name, control, tenant, output)


@client_command
def rollback(
    name: NameArgument,
    reason: ReasonOption = "",
    control: ControlOption = DEFAULT_CONTROL,
    tenant: TenantOption = DEFAULT_TENANT,
    etag: EtagOption = "",
    output: FormatOption = Format.TABLE,
) -> None:
    """Take all traffic from the candidates, for good: the baseline serves everybody."""
    request = api.RollbackExperimentRequest(etag=etag, reason=reason)
    _say("RollbackExperiment", request, name, control, tenant, output)


@client_command
def stop(
    name: NameArgument,
    reason: ReasonOption = "",
    control: ControlOption = DEFAULT_CONTROL,
    tenant: TenantOption = DEFAULT_TENANT,
    etag: EtagOption = "",
    output: FormatOption = Format.TABLE,
) -> None:
    """End an experiment without a verdict: the baseline serves everybody."""
    request = api.StopExperimentRequest(etag=etag, reason=reason)
    _say("StopExperiment", request, name, control, tenant, output)


@client_command
def undo(
    name: Annotated[
        str,
        typer.Argument(
            help="The promoted experiment, or target/NAME.",
            metavar="NAME",
            autocompletion=experiment_names,
        ),
    ],
    control: ControlOption = DEFAULT_CONTROL,
    tenant: TenantOption = DEFAULT_TENANT,
    etag: EtagOption = "",
    output: FormatOption = Format.TABLE,
) -> None:
    """Undo a promotion: the previous baseline serves again, while the target keeps it."""
    found = reference([name], tenant)
    if found.collection == "experiments":
        _say("UndoExperiment", api.UndoExperimentRequest(etag=etag), name, control, tenant, output)
        return
    request = api.UndoTargetRequest(name=str(found), etag=etag, request_id=request_id())
    with connected(control) as client:
        target = client.call(client.targets.UndoTarget, request)
    if output is not Format.TABLE:
        print_data([document_of(target)], output)
        return
    upstream = target.spec.baseline.upstream
    print_line(f"target/{found.name}  baseline {upstream.address or upstream.cluster}")


def _say(method: str, request: Any, name: str, control: str, tenant: str, output: Format) -> None:
    found = reference([name], tenant)
    if found.collection != "experiments":
        raise typer.BadParameter(f"{name!r} is no experiment")
    request.name = str(found)
    request.request_id = request_id()
    with connected(control) as client:
        experiment: Experiment = client.call(getattr(client.experiments, method), request)
    if output is Format.TABLE:
        print_line(summary(experiment))
    else:
        print_data([document_of(experiment)], output)
