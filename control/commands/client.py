"""Calls to the control plane: where it is, who asks, and what its refusals mean to a shell.

Owns the options that all client commands share, and the exit codes. Every mutating call carries a
request id, so that a repeated one changes nothing twice.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

import grpc
import typer
from google.rpc import error_details_pb2, status_pb2

from control.commands.files import (
    EXIT_FAILED,
    EXIT_INVALID,
    EXIT_UNIMPLEMENTED,
    check_tenant,
)
from control.model import ResourceName, is_label, is_metric
from turnout.contract import GRPC_MESSAGE_BYTES_MAX
from turnout.v1alpha1.config_service_pb2_grpc import SidecarServiceStub
from turnout.v1alpha1.experiment_service_pb2_grpc import (
    ExperimentServiceStub,
    HoldoutServiceStub,
    TargetServiceStub,
)
from turnout.v1alpha1.metric_service_pb2_grpc import MetricServiceStub

EXIT_NOT_FOUND: Final = 4
EXIT_CONFLICT: Final = 5
EXIT_UNREACHABLE: Final = 6
EXIT_CODES: Final = (
    "Exit codes: 0 done, 1 failed, 2 usage, 3 a resource or argument is invalid, 4 not found, "
    "5 conflict (stale etag, exists already, wrong state), 6 control plane unreachable, "
    "7 not implemented."
)

COLLECTIONS: Final = ("experiments", "targets", "metrics")
DEFAULT_CONTROL: Final = "127.0.0.1:7700"
TIMEOUT_S: Final = 10.0
METADATA_BYTES_MAX: Final = 1024 * 1024

_EXITS: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: EXIT_INVALID,
    grpc.StatusCode.NOT_FOUND: EXIT_NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: EXIT_CONFLICT,
    grpc.StatusCode.ABORTED: EXIT_CONFLICT,
    grpc.StatusCode.FAILED_PRECONDITION: EXIT_CONFLICT,
    grpc.StatusCode.UNAVAILABLE: EXIT_UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: EXIT_UNREACHABLE,
    grpc.StatusCode.UNIMPLEMENTED: EXIT_UNIMPLEMENTED,
}
# Repeating is safe: reads change nothing, a deletion finds nothing left, and all else has an id.
_RETRY: Final = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 3,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
_REMEDY: Final = "is `turnout control` there? Say --control HOST:PORT or set TURNOUT_CONTROL"
_MISSING: Final = re.compile(
    r"tenants/(?P<tenant>[^/]+)/(?P<kind>targets|experiments|metrics)/\S+ does"
)
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")
# How the server writes a violation: "RULE (is VALUE)".
_DESCRIPTION: Final = re.compile(r"(?P<rule>.*) \(is (?P<value>.*)\)", re.S)

ControlOption = Annotated[
    str,
    typer.Option("--control", envvar="TURNOUT_CONTROL", help="HOST:PORT of the control plane."),
]
TenantOption = Annotated[
    str, typer.Option("--tenant", envvar="TURNOUT_TENANT", help="Tenant of names without one.")
]
EtagOption = Annotated[
    str, typer.Option("--etag", help="Only if the resource still has this etag.")
]


def client_command(function: Callable[..., None]) -> typer.Typer:
    """A function with Typer's annotations as a command whose help ends with the exit codes."""
    return command_with(EXIT_CODES)(function)


def command_with(exit_codes: str) -> Callable[[Callable[..., None]], typer.Typer]:
    """As `client_command`, for a command whose exit codes say more."""

    def decorated(function: Callable[..., None]) -> typer.Typer:
        app = typer.Typer(
            add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
        )
        app.command(epilog=exit_codes)(function)
        return app

    return decorated


class Client:
    """Stubs on one channel. Use as a context manager."""

    def __init__(self, address: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self.channel = grpc.insecure_channel(
            address,
            options=(
                ("grpc.service_config", _RETRY),
                ("grpc.max_receive_message_length", GRPC_MESSAGE_BYTES_MAX),
                ("grpc.max_metadata_size", METADATA_BYTES_MAX),
            ),
        )
        self.targets = TargetServiceStub(self.channel)
        self.experiments = ExperimentServiceStub(self.channel)
        self.metrics = MetricServiceStub(self.channel)
        self.holdouts = HoldoutServiceStub(self.channel)
        self.sidecars = SidecarServiceStub(self.channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def call(self, method: Any, request: Any) -> Any:
        """Call a unary method with a deadline, saying who asks."""
        return method(request, timeout=self.timeout_s, metadata=metadata())


def metadata() -> tuple[tuple[str, str], ...]:
    """Who asks: TURNOUT_ACTOR, else the name of this process's user."""
    actor = os.environ.get("TURNOUT_ACTOR", "")
    if not actor:
        try:
            actor = getpass.getuser()
        except (KeyError, OSError):  # a user id without a name, as in many containers
            actor = f"uid {os.getuid()}"
    actor = "".join(c for c in actor if " " <= c <= "~")
    return (("x-turnout-actor", actor),) if actor else ()


def request_id() -> str:
    """A fresh one: a call that is retried changes nothing twice."""
    return uuid.uuid4().hex


@contextmanager
def connected(control: str) -> Iterator[Client]:
    """A client whose failures become messages and exit codes.

    Raises:
        typer.BadParameter: The address is none.
    """
    if not _ADDRESS.fullmatch(control):
        raise typer.BadParameter(
            f"{control!r} is not HOST:PORT, like 10.0.0.5:7700 or [::1]:7700",
            param_hint="--control",
        )
    with Client(control) as client:
        try:
            yield client
        except grpc.RpcError as error:
            raise typer.Exit(explain(error, control)) from error
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


def explain(error: grpc.RpcError, control: str) -> int:
    """Print why a call failed, every violation on a line of its own; the exit code for it."""
    code, details = error.code(), error.details() or ""
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        typer.echo(f"control plane at {control}: {details}; {_REMEDY}", err=True)
        return EXIT_UNREACHABLE
    lines = violations(error)
    if code is grpc.StatusCode.UNIMPLEMENTED and not lines:
        details = f"no Turnout control plane at {control}, or an older one ({details})"
    if not lines:
        typer.echo(f"{code.name}: {details}{_lists(details, code)}", err=True)
    for line in lines:
        typer.echo(line, err=True)
    return _EXITS.get(code, EXIT_FAILED)


def _lists(details: str, code: grpc.StatusCode) -> str:
    """Which command lists what there is, when a resource was not found."""
    name = _MISSING.match(details)
    if code is not grpc.StatusCode.NOT_FOUND or name is None:
        return ""
    return f"; `turnout get {name['kind']} --tenant {name['tenant']}` lists what there is"


def violations(error: grpc.RpcError) -> list[str]:
    """`field: value: rule` of every violation that came with a status."""
    lines = []
    trailers: Any = error.trailing_metadata() or ()
    for key, value in trailers:
        if key != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            bad = error_details_pb2.BadRequest()
            if detail.Unpack(bad):
                lines += [_violation(item) for item in bad.field_violations]
    return lines


def _violation(item: error_details_pb2.BadRequest.FieldViolation) -> str:
    match = _DESCRIPTION.fullmatch(item.description)
    parts = [item.field, match["value"], match["rule"]] if match else [item.field, item.description]
    return ": ".join(part for part in parts if part)


def reference(words: list[str], tenant: str, *, kind: str = "experiment") -> ResourceName:
    """The resource that somebody means.

    Args:
        words: NAME, KIND/NAME, KIND NAME, or tenants/TENANT/KINDS/NAME.
        tenant: Of a name without one.
        kind: Of a name without one: "experiment", "target" or "metric".

    Raises:
        typer.BadParameter: It is none of these.
    """
    parts = [part for word in words for part in word.split("/")]
    if len(parts) == 4 and parts[0] == "tenants":
        tenant, parts = parts[1], parts[2:]
    else:
        check_tenant(tenant)
    if len(parts) == 2:
        kind, parts = collection(parts[0]).removesuffix("s"), parts[1:]
    # Built-in metrics have underscores in their names.
    good = is_metric if kind == "metric" else is_label
    if len(parts) != 1 or not good(parts[0]) or not is_label(tenant):
        shown = " ".join(words)
        raise typer.BadParameter(
            f"{shown!r} is not NAME, KIND/NAME or tenants/TENANT/KINDS/NAME (a-z 0-9 -)"
        )
    return ResourceName(tenant, f"{kind}s", parts[0])


def collection(word: str) -> str:
    """The collection that a word means: "targets", "experiments" or "metrics".

    Raises:
        typer.BadParameter: It is none of them.
    """
    for name in COLLECTIONS:
        if word.lower() in (name, name.removesuffix("s")):
            return name
    raise typer.BadParameter(f"{word!r} is none of {', '.join(COLLECTIONS)}")
