"""`turnout explain`: why a request gets its variant, from a snapshot file or a control plane.

Owns reading the request from words, the snapshot's sources and the printing. Refuses to decide
anything: `explain` tells what `processor` does.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, NoReturn

import typer
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct

from sidecar.clock import now_ms
from sidecar.disk import KEY_FILE, SNAPSHOT_FILE, TOMBSTONES_FILE
from sidecar.explain import Explanation, explain, is_taken, steps_as_lines
from sidecar.explainteller import Assigned
from sidecar.processor import RANDOM_UNIT_BYTES
from sidecar.snapshotcheck import InvalidSnapshot
from sidecar.snapshotfile import CorruptSnapshot, decode
from turnout.completing import experiments_and_targets
from turnout.contract import GRPC_MESSAGE_BYTES_MAX, HEADER_FORCE, TENANT_KEY_BYTES
from turnout.v1alpha1.config_service_pb2 import Sidecar, TombstoneSet
from turnout.v1alpha1.snapshot_pb2 import Snapshot, TargetPlan

SNAPSHOT_BUILDERS: Final = "turnout.snapshots"
EXIT_FAILED: Final = 1
EXIT_INVALID: Final = 3
EXIT_NOT_FOUND: Final = 4
EXIT_UNREACHABLE: Final = 6
EXIT_UNIMPLEMENTED: Final = 7
TIMEOUT_S: Final = 10.0
DEFAULT_CONTROL: Final = "127.0.0.1:7700"

# RFC 9110 section 5.1: a token. Lower-cased as Envoy does.
_NAME: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")

HELP: Final = """Say why a request gets its variant: target, unit, segment, bucket, range, upstream.

HEADERS are 'NAME: VALUE', as curl's -H. NAME is an experiment or a target: host, path and method
are then those of its target, unless you give others. Without NAME and with a single target, they
are that one's.

Live, from the control plane's current snapshot:

\b
  turnout explain fraud-v2 'x-user-id: 42' --control 10.0.0.5:7700
  turnout explain -H 'x-user-id: 42' --host fraud.risk.svc --path /v2/models/fraud

Offline, from a snapshot file, a sidecar's state directory (what it serves now) or resource files
(every experiment at its first step):

\b
  turnout explain --snapshot /var/lib/turnout fraud-v2 'x-user-id: 42'
  turnout explain --snapshot risk.snapshot fraud-v2 'cookie: session=8f2a'
  turnout explain -f fraud.yaml 'x-user-id: 42' -o json

\b
  turnout explain --snapshot /var/lib/turnout fraud 'x-force-variant: v1.cmlza...'
  turnout explain -f fraud.yaml --claims '{"sub": "42"}'

The unit's pseudonym in x-turnout needs the tenant's key and is not shown. What a client may not
send (x-variant, x-turnout-*, x-param-*, x-envoy-*) is left out, as Envoy does.
"""
EPILOG: Final = (
    "Exit codes: 0 explained, whatever the answer is, 1 a file cannot be read, 2 usage, 3 the "
    "snapshot or a file is refused, 4 the name or the tenant's snapshot is not there, 6 control "
    "plane unreachable, 7 not implemented (a control plane that is too old)."
)


class Format(StrEnum):
    """How to print."""

    TABLE = "table"
    YAML = "yaml"
    JSON = "json"


class Source(NamedTuple):
    """A snapshot and what is known of who serves it."""

    snapshot: Snapshot
    sidecars: Sequence[Sidecar] | None  # None: nobody was asked
    tenant_key: bytes | None = None  # None: there is none here


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


@app.command("explain", help=HELP, epilog=EPILOG)
def explain_command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME|HEADER",
            help="NAME first, then headers 'NAME: VALUE'.",
            autocompletion=experiments_and_targets,
        ),
    ] = None,
    headers: Annotated[
        list[str] | None, typer.Option("--header", "-H", help="'NAME: VALUE'; repeatable.")
    ] = None,
    host: Annotated[str, typer.Option(help="Host of the request (:authority).")] = "",
    path: Annotated[str, typer.Option(help="Path of the request.")] = "",
    method: Annotated[
        str, typer.Option(help="Method.  [default: the target's first, or POST]")
    ] = "",
    snapshot: Annotated[
        Path | None, typer.Option(help="Snapshot file, or a sidecar's --state-dir.")
    ] = None,
    files: Annotated[
        list[Path] | None, typer.Option("--file", "-f", help="Resource file (YAML); repeatable.")
    ] = None,
    control: Annotated[
        str,
        typer.Option(envvar="TURNOUT_CONTROL", help="HOST:PORT of the control plane."),
    ] = DEFAULT_CONTROL,
    tenant: Annotated[
        str, typer.Option(envvar="TURNOUT_TENANT", help="Whose snapshot, when it is asked for.")
    ] = "default",
    claims: Annotated[
        str, typer.Option(help="JSON of the claims that Envoy's jwt_authn has verified.")
    ] = "",
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print.")] = Format.TABLE,
) -> None:
    """Read the request, find the snapshot, tell the story."""
    name, texts = _split(words or [])
    given = [_header(text) for text in [*texts, *(headers or [])]]
    if snapshot is not None and files:
        raise typer.BadParameter("give --snapshot or -f, and not both")
    if snapshot is not None:
        source = Source(_from_file(snapshot), None, _key(snapshot))
    elif files:
        source = Source(_from_resources(files), None)
    else:
        source = _from_control(control, tenant)
    request = [*_request_line(source.snapshot, name, host, path, method), *given]
    try:
        found = explain(
            source.snapshot,
            request,
            random_unit=lambda: secrets.token_bytes(RANDOM_UNIT_BYTES),
            now_s=lambda: now_ms() / 1e3,
            tenant_key=source.tenant_key,
            claims=_claims(claims),
        )
    except InvalidSnapshot as error:
        for item in error.violations:
            typer.echo(f"{item.field}: {item.value}: {item.rule}", err=True)
        raise typer.Exit(EXIT_INVALID) from error
    notes = [*_notes(source, found, name), *_taken(given), *_unread(source, given)]
    _print(found, notes, output)


# -- the request -----------------------------------------------------------------------------------


def _split(words: list[str]) -> tuple[str, list[str]]:
    """The name, if the first word is one, and the headers."""
    if words and ":" not in words[0]:
        kind, slash, name = words[0].rpartition("/")
        if slash and kind not in ("experiment", "experiments", "target", "targets"):
            _refuse_name(words[0])
        if not _LABEL.fullmatch(name):
            _refuse_name(words[0])
        return name, words[1:]
    return "", words


def _refuse_name(word: str) -> NoReturn:
    raise typer.BadParameter(
        f"{word!r} is neither the name of an experiment or a target (a-z 0-9 -) "
        "nor a header 'NAME: VALUE'"
    )


def _header(text: str) -> tuple[str, bytes]:
    name, colon, value = text.partition(":")
    name = name.strip().lower()
    if not colon or not _NAME.fullmatch(name):
        rule = "must be 'NAME: VALUE', like 'x-user-id: 42'"
        if text.startswith(":"):
            rule = "is no header: say --host, --path or --method"
        raise typer.BadParameter(f"{text!r} {rule}")
    if name == "host":
        raise typer.BadParameter(f"{text!r}: say --host {value.strip() or 'HOST'}")
    value = value.strip()
    if any(c in value for c in "\r\n\0"):
        raise typer.BadParameter(f"{text!r}: a value has no line ends and no NUL")
    return name, value.encode(errors="surrogateescape")


def _request_line(
    snapshot: Snapshot, name: str, host: str, path: str, method: str
) -> Iterator[tuple[str, bytes]]:
    target = _target(snapshot, name) if name else None
    if target is None and not path and len(snapshot.targets) == 1:
        target = snapshot.targets[0]
    if target is None and not path:
        known = ", ".join(plan.name for plan in snapshot.targets) or "there is none"
        raise typer.BadParameter(f"say --path (and --host), or the name of a target: {known}")
    target = target or TargetPlan()
    pattern = target.hosts[0] if target.hosts else "*"
    default = pattern if "*" not in pattern else f"any{pattern.removeprefix('*')}"
    yield ":authority", (host or default).encode()
    yield ":path", (path or _path_of(target)).encode()
    yield ":method", (method or next(iter(target.methods), "POST")).encode()


def _path_of(target: TargetPlan) -> str:
    """A path of a target's requests."""
    if not target.model_name:
        return target.path_prefix or "/"
    version = f"/versions/{target.model_version}" if target.model_version else ""
    return f"{target.path_prefix.rstrip('/')}/v2/models/{target.model_name}{version}/infer"


def _claims(text: str) -> Mapping[str, Any] | None:
    if not text:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{text!r} is no JSON object", param_hint="--claims")
    try:
        # What Envoy could not put into its metadata either.
        claims = Struct()
        claims.update(found)
        Struct.FromString(claims.SerializeToString())
    except (ValueError, OverflowError, RecursionError, DecodeError) as error:
        rule = f"cannot be claims: {str(error) or 'nested too deeply'}"
        raise typer.BadParameter(rule, param_hint="--claims") from error
    return found


def _target(snapshot: Snapshot, name: str) -> TargetPlan:
    """The target that a name means: its own, or its experiment's."""
    targets = {target.name: target for target in snapshot.targets}
    for experiment in snapshot.experiments:
        if experiment.name == name:
            return targets[experiment.target]
    if name not in targets:
        grave = next((t for t in snapshot.tombstones if t.experiment == name), None)
        if grave is not None:
            why = f"{name} was rolled back: {grave.reason or 'no reason was given'}"
        else:
            why = f"{name} is no target and no experiment that enrols anybody now"
        known = ", ".join([*targets, *(e.name for e in snapshot.experiments)]) or "nothing"
        _fail(f"{why}; in the snapshot: {known}", EXIT_NOT_FOUND)
    return targets[name]


# -- the snapshot ----------------------------------------------------------------------------------


def _from_file(place: Path) -> Snapshot:
    """A snapshot file's content; of a sidecar's state directory with all of its tombstones."""
    file = place / SNAPSHOT_FILE if place.is_dir() else place
    try:
        snapshot = Snapshot.FromString(decode(file.read_bytes()))
        file = place / TOMBSTONES_FILE
        if place.is_dir() and file.exists():
            buried = TombstoneSet.FromString(decode(file.read_bytes()))
            snapshot.tombstones.extend(buried.tombstones)
        return snapshot
    except OSError as error:
        hint = ": a sidecar that serves a file keeps none here: name that file" * place.is_dir()
        _fail(f"{file}: {error.strerror or error}{hint}", EXIT_FAILED)
    except (CorruptSnapshot, DecodeError) as error:
        _fail(
            f"{file}: no snapshot file: {error}; `turnout snapshot build` makes one", EXIT_INVALID
        )


def _key(place: Path) -> bytes | None:
    """The tenant's key in a sidecar's state directory; None where it is not, or not to be read."""
    try:
        key = (place / KEY_FILE).read_bytes()
    except OSError:
        return None
    return key if len(key) == TENANT_KEY_BYTES else None


def _from_resources(files: list[Path]) -> Snapshot:
    points = tuple(entry_points(group=SNAPSHOT_BUILDERS))
    if not points:
        _fail("-f needs the control plane's package; give --snapshot", EXIT_FAILED)
    try:
        return Snapshot.FromString(points[0].load()(files))
    except OSError as error:
        _fail(f"{error.filename or 'file'}: {error.strerror or error}", EXIT_FAILED)
    except ValueError as error:
        # The control plane's own refusal, which this side does not import: it lists violations.
        for violation in getattr(error, "violations", None) or [error]:
            typer.echo(str(violation), err=True)
        raise typer.Exit(EXIT_INVALID) from error


def _from_control(control: str, tenant: str) -> Source:
    import grpc  # offline nobody waits for it

    from turnout.v1alpha1.config_service_pb2 import GetSnapshotRequest, ListSidecarsRequest
    from turnout.v1alpha1.config_service_pb2_grpc import SidecarServiceStub

    if not _ADDRESS.fullmatch(control):
        raise typer.BadParameter(f"{control!r} is not HOST:PORT", param_hint="--control")
    if not _LABEL.fullmatch(tenant):
        raise typer.BadParameter(f"{tenant!r} is no tenant (a-z 0-9 -)", param_hint="--tenant")
    options = (("grpc.max_receive_message_length", GRPC_MESSAGE_BYTES_MAX),)
    parent = f"tenants/{tenant}"
    with grpc.insecure_channel(control, options=options) as channel:
        stub = SidecarServiceStub(channel)
        try:
            snapshot = stub.GetSnapshot(GetSnapshotRequest(parent=parent), timeout=TIMEOUT_S)
            listed = stub.ListSidecars(ListSidecarsRequest(parent=parent), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            _explain_error(error, control, tenant)
    return Source(snapshot, listed.sidecars)


def _explain_error(error: Any, control: str, tenant: str) -> NoReturn:
    code = error.code().name
    if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
        remedy = "is `turnout control` there? Say --control HOST:PORT, or --snapshot FILE"
        _fail(f"control plane at {control}: {error.details()}; {remedy}", EXIT_UNREACHABLE)
    if code == "NOT_FOUND":
        remedy = "apply a target first, or say --tenant"
        _fail(f"tenant {tenant} has no snapshot yet: {remedy}", EXIT_NOT_FOUND)
    if code == "UNIMPLEMENTED":
        remedy = "no Turnout control plane, or an older one; say --snapshot FILE"
        _fail(f"control plane at {control}: {remedy}", EXIT_UNIMPLEMENTED)
    _fail(f"{code}: {error.details()}", EXIT_FAILED)


# -- printing --------------------------------------------------------------------------------------


def _notes(source: Source, found: Explanation, name: str) -> Iterator[str]:
    """What the snapshot alone does not say: another experiment was meant, not all serve it."""
    experiments = {one.experiment for one in found.assigned}
    if name and name != found.target and name not in experiments:
        yield f"This is not {name}'s: the request is {found.target or 'no target'}'s."
    for sidecar in source.sidecars or ():
        if not sidecar.connected:
            continue
        report = sidecar.report
        version = report.applied_version or sidecar.acked_version
        if version != source.snapshot.version:
            wanted = source.snapshot.version
            yield f"Sidecar {sidecar.node} serves version {version}, not yet {wanted}."
        for gate in report.gates:
            if gate.experiment in experiments and not gate.open:
                clusters = ", ".join(gate.waiting_for)
                yield (
                    f"Sidecar {sidecar.node} enrols nobody in {gate.experiment} yet: it waits for "
                    f"{clusters or 'its upstreams'}; the baseline serves there."
                )
    if source.sidecars is not None and not any(s.connected for s in source.sidecars):
        yield "No sidecar is connected: nobody serves this now."


def _taken(headers: Sequence[tuple[str, bytes]]) -> Iterator[str]:
    for name, _ in headers:
        if is_taken(name):
            yield f"Envoy removes {name} when a client sends it: it was left out."


def _unread(source: Source, headers: Sequence[tuple[str, bytes]]) -> Iterator[str]:
    if source.tenant_key is None and any(name == HEADER_FORCE for name, _ in headers):
        yield (
            f"{HEADER_FORCE} was left out: only a sidecar's state directory (--snapshot) has the "
            "key that its token is verified with."
        )


def _print(found: Explanation, notes: list[str], output: Format) -> None:
    if output is Format.TABLE:
        typer.echo(found.sentence)
        typer.echo("")
        for line in steps_as_lines(found.steps):
            typer.echo(line)
        if found.headers:
            typer.echo("\nStamped:")
        for name, value in found.headers.items():
            typer.echo(f"  {name}: {value}")
        for note in notes:
            typer.echo(f"\nNote: {note}")
        return
    document = _document(found, notes)
    if output is Format.JSON:
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        import yaml

        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
        typer.echo(text, nl=False)


def _document(found: Explanation, notes: list[str]) -> dict[str, Any]:
    return {
        "outcome": found.outcome,
        "sentence": found.sentence,
        "target": found.target,
        "experiment": found.main.experiment,
        "epoch": found.main.epoch,
        "unit": found.main.unit,
        "bucket": found.main.bucket,
        "bucketRange": _range(found.main),
        "variant": found.variant,
        "experiments": [
            {
                "experiment": one.experiment,
                "epoch": one.epoch,
                "layer": one.layer,
                "outcome": one.outcome,
                "unit": one.unit,
                "bucket": one.bucket,
                "bucketRange": _range(one),
                "variant": one.variant,
                "forced": one.forced,
            }
            for one in found.assigned
        ],
        "upstream": found.upstream,
        "address": found.address,
        "shadow": found.shadow,
        "shadowUpstream": found.shadow_upstream,
        "headers": dict(found.headers),
        "steps": [step._asdict() for step in found.steps],
        "notes": notes,
    }


def _range(one: Assigned) -> list[int] | None:
    return list(one.bucket_range) if one.bucket_range else None


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
