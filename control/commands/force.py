"""`turnout force`: a signed token that gives its bearer a variant of an experiment."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, Final

import grpc
import typer
from google.protobuf.timestamp_pb2 import Timestamp

from control import clock, forcetokens
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
from turnout.contract import HEADER_FORCE, TENANT_KEY_BYTES
from turnout.v1alpha1 import experiment_service_pb2 as api
from turnout.v1alpha1.experiment_service_pb2 import ForceToken
from turnout.v1alpha1.target_pb2 import RequestMatch

ENVOY: Final = "127.0.0.1:8080"  # as in the README


@client_command
def force(
    experiment: Annotated[
        str, typer.Argument(help="The experiment.", autocompletion=experiment_names)
    ],
    variant: Annotated[str, typer.Argument(help="One of its variants.")],
    unit: Annotated[
        str, typer.Option("--unit", help="Good for this unit only; default for whoever bears it.")
    ] = "",
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

    \b
      turnout force fraud-v2 v2
      turnout force fraud-v2 v2 --unit user-42 --ttl 24h
      turnout force fraud-v2 v2 --tenant risk --key-file state/tenant.key
    """  # noqa: D301 - click reads the escape
    name = reference([experiment], tenant)
    if name.collection != "experiments":
        raise typer.BadParameter(f"{experiment!r} is no experiment")
    seconds = _seconds(ttl)
    match = RequestMatch(hosts=["*"], path_prefix="/")
    if key_file is not None:
        made = _signed(key_file, name, variant, unit, seconds)
    else:
        with connected(control) as client:
            request = api.CreateForceTokenRequest(name=str(name), variant=variant, unit=unit)
            request.ttl.seconds = seconds
            made = client.call(client.experiments.CreateForceToken, request)
            match = _match_of(client, name)
    if output is Format.TABLE:
        print_line(made.token)
        print_line(_curl(made.token, match))
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


def _match_of(client: Client, name: ResourceName) -> RequestMatch:
    """Which requests the experiment is about; any when it has just gone."""
    try:
        asked: Any = api.GetExperimentRequest(name=str(name))
        target = client.call(client.experiments.GetExperiment, asked).spec.target
        asked = api.GetTargetRequest(name=f"tenants/{name.tenant}/targets/{target}")
        match: RequestMatch = client.call(client.targets.GetTarget, asked).spec.match
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return RequestMatch(hosts=["*"], path_prefix="/")
    return match


def _curl(token: str, match: RequestMatch) -> str:
    """A request with the token, through an Envoy on this machine."""
    words = ["curl", "-H", f"{HEADER_FORCE}: {token}"]
    host = next((host for host in match.hosts if "*" not in host), "")
    if host:
        words += ["-H", f"host: {host}"]
    if match.methods and "GET" not in match.methods:
        words += ["-X", match.methods[0]]
    return shlex.join([*words, f"http://{ENVOY}{match.path_prefix}"])
