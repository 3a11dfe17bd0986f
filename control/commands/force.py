"""`turnout force`: a signed token that gives its bearer a variant of an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import grpc
import typer
from google.protobuf.timestamp_pb2 import Timestamp

from control import clock, forcetokens
from control.commands import forcecurl
from control.commands.client import (
    DEFAULT_CONTROL,
    Client,
    ControlOption,
    TenantOption,
    client_command,
    connected,
    reference,
)
from control.commands.files import DEFAULT_TENANT, refuse
from control.commands.output import Format, FormatOption, print_data, print_line
from control.model import ResourceName, durations, is_label, plain
from turnout.completing import experiment_names
from turnout.contract import TENANT_KEY_BYTES
from turnout.v1alpha1 import experiment_service_pb2 as api
from turnout.v1alpha1.common_pb2 import Unit
from turnout.v1alpha1.experiment_service_pb2 import ForceToken
from turnout.v1alpha1.target_pb2 import RequestMatch


class _Known(NamedTuple):
    """What a request must look like."""

    match: RequestMatch
    unit: Unit


@client_command
def force(
    experiment: Annotated[
        str, typer.Argument(help="The experiment.", autocompletion=experiment_names)
    ],
    variant: Annotated[str, typer.Argument(help="One of its variants.")],
    unit_given: Annotated[
        str | None,
        typer.Option("--unit", help="Good for this unit only; default for whoever bears it."),
    ] = None,
    ttl: Annotated[str, typer.Option("--ttl", help="How long it is good, 1m to 24h.")] = "1h",
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--key-file",
            help="Sign with this key (STATE_DIR/tenant.key of a sidecar), without a control plane.",
        ),
    ] = None,
    control: ControlOption = DEFAULT_CONTROL,
    tenant: TenantOption = DEFAULT_TENANT,
    output: FormatOption = Format.TABLE,
) -> None:
    """Print a token that gives its bearer a variant, and a request that uses it.

    The token is the value of the header x-force-variant. It counts while the experiment runs, until
    it expires; it cannot be taken back before. What it forces is flagged and left out of analysis.
    The control plane keeps who asked for it, not the token.

    A bearer needs a unit like everybody else (the request has its place; give --unit, or fill it
    in), and must not be held out: what is in the tenant's holdout gets the baseline whatever token
    or list names it. Bucket and segment do not matter.

    With --key-file nothing is known of the target: host and path are yours to fill in, and where
    the unit is sent.

    \b
      turnout force fraud-v2 v2
      turnout force fraud-v2 v2 --unit user-42 --ttl 24h
      turnout force fraud-v2 v2 --tenant risk --key-file state/tenant.key
    """  # noqa: D301 - click reads the escape
    name = reference([experiment], tenant)
    if name.collection != "experiments":
        raise typer.BadParameter(f"{experiment!r} is no experiment")
    if unit_given == "":  # a script's variable that is not set must not widen what is given away
        rule = "is empty: leave it out for a token that is good for whoever bears it"
        raise typer.BadParameter(rule, param_hint="--unit")
    if not (unit_given or "").isprintable():  # what is no UTF-8 comes as surrogates, which are not
        raise typer.BadParameter(f"{unit_given!r} is not printable text", param_hint="--unit")
    unit, seconds = unit_given or "", _seconds(ttl)
    known = None
    if key_file is not None:
        made = _signed(key_file, name, variant, unit, seconds)
    else:
        with connected(control) as client:
            request = api.CreateForceTokenRequest(name=str(name), variant=variant, unit=unit)
            request.ttl.seconds = seconds
            made = client.call(client.experiments.CreateForceToken, request)
            known = _known(client, name)
    if output is Format.TABLE:
        _print(made, known, unit)
    else:
        print_data([plain(made)], output)


def _seconds(ttl: str) -> int:
    found = durations.parse(ttl)
    least, most = forcetokens.TTL_MIN_S, forcetokens.TTL_MAX_S
    if found is None or found.nanos or not least <= found.seconds <= most:
        raise typer.BadParameter(f"{ttl!r} is not a time of 1m to 24h", param_hint="--ttl")
    return found.seconds


def _signed(
    key_file: Path, name: ResourceName, variant: str, unit: str, seconds: int
) -> ForceToken:
    """A token by a key on disk; whether there is such a variant is not known here."""
    with refuse():
        key = key_file.read_bytes()
    if len(key) != TENANT_KEY_BYTES:
        raise typer.BadParameter(
            f"{key_file} has {len(key)} bytes and is no key: tenant.key of a sidecar's --state-dir "
            f"has {TENANT_KEY_BYTES}",
            param_hint="--key-file",
        )
    if not is_label(variant):
        raise typer.BadParameter(f"{variant!r} is no variant: 1 to 63 of a-z 0-9 -")
    if len(unit.encode()) > forcetokens.UNIT_BYTES_MAX:
        rule = f"at most {forcetokens.UNIT_BYTES_MAX} bytes"
        raise typer.BadParameter(rule, param_hint="--unit")
    issued_s = clock.now_ms() // 1000
    token = forcetokens.mint(
        key,
        tenant=name.tenant,
        experiment=name.name,
        variant=variant,
        unit=unit.encode(),
        issued_s=issued_s,
        expires_s=issued_s + seconds,
    )
    return ForceToken(token=token, expire_time=Timestamp(seconds=issued_s + seconds))


def _known(client: Client, name: ResourceName) -> _Known | None:
    """Which requests the experiment is about; None when it has just gone."""
    try:
        asked: Any = api.GetExperimentRequest(name=str(name))
        spec = client.call(client.experiments.GetExperiment, asked).spec
        asked = api.GetTargetRequest(name=f"tenants/{name.tenant}/targets/{spec.target}")
        return _Known(client.call(client.targets.GetTarget, asked).spec.match, spec.unit)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return None


def _print(made: ForceToken, known: _Known | None, unit: str) -> None:
    if known is None:
        printed = forcecurl.unknown_target(made.token, unit)
    else:
        printed = forcecurl.known_target(made.token, known.match, known.unit, unit)
    print_line(made.token)
    print_line(printed.curl)
    print_line(f"Expires {made.expire_time.ToJsonString()}, or when the experiment ends.")
    for note in printed.notes:
        print_line(f"Note: {note}")
