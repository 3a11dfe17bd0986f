"""What a user says on the command line of `turnout sidecar`, checked.

Owns the forms of addresses and which options go together. Refuses with a sentence that says what to
write instead.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Final, NamedTuple

from sidecar.listen import PORT_MAX, SERVER_DEFAULT, UNIX_PREFIX, Listen, ServerKind
from turnout.logs import PLAIN, Style

NODE_BYTES_MAX: Final = 253
WORKERS_MAX: Final = 64
# The control plane's rules: it would refuse the stream, again and again.
_TENANT: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
TENANT_RULE: Final = "must be a DNS label: 1 to 63 of a-z 0-9 -, no - at either end"
NODE_RULE: Final = f"must have 1..{NODE_BYTES_MAX} bytes, all printable"


class OptionError(ValueError):
    """An option cannot be used; `option` is its name."""

    def __init__(self, option: str, value: str, rule: str) -> None:
        """Say which option, what it was, and what it must be."""
        super().__init__(f"{option} == {value!r}: {rule}")
        self.option = option


class Options(NamedTuple):
    """Checked options.

    Attributes:
        listen: Where the workers serve; worker i at `listen.worker(i)`.
        workers: How many, 1..WORKERS_MAX.
        control: HOST:PORT of the control plane, "" = stand-alone.
        snapshot: File to serve stand-alone.
        state_dir: Where the last good snapshot is kept; None = nowhere.
        node: Stable name of this node.
        instance_id: Random for each start.
        tenant: Whose configuration it is, "" = whatever the file says.
        envoy_dir: Directory of Envoy's watched files; None = Envoy's files are somebody else's.
        envoy_admin: Address of Envoy's admin, "" = not watched: the start gate is off.
        metrics: Host and port of the metrics, None = none.
        log: How supervisor and workers log.
        otlp: HOST:PORT that takes the supervisor's own spans, "" = it makes none.
        server: Which server the workers run.
        local: The address that resources give the pod beside an Envoy that intercepts, "" = it does
            not.
    """

    listen: Listen
    workers: int
    control: str
    snapshot: Path | None
    state_dir: Path | None
    node: str
    instance_id: str
    tenant: str
    envoy_dir: Path | None
    envoy_admin: str
    metrics: tuple[str, int] | None
    log: Style = PLAIN
    otlp: str = ""
    server: ServerKind = SERVER_DEFAULT
    local: str = ""


def check(
    *,
    listen: str,
    workers: int,
    control: str,
    snapshot: Path | None,
    state_dir: Path | None,
    node: str,
    tenant: str,
    envoy_dir: Path | None,
    envoy_admin: str,
    metrics: str,
    log: Style = PLAIN,
    otlp: str = "",
    server: ServerKind = SERVER_DEFAULT,
    local: str = "",
) -> Options:
    """Check the options of one command line.

    Raises:
        OptionError: The first that cannot be used.
    """
    if bool(control) == (snapshot is not None):
        rule = "give exactly one of --control HOST:PORT and --snapshot FILE"
        raise OptionError("--control", control, rule)
    if control and not tenant:
        raise OptionError("--tenant", tenant, "a control plane needs to know whose sidecar it is")
    if control and state_dir is None:
        rule = "with --control it is needed: a restart must serve without the control plane"
        raise OptionError("--state-dir", "", rule)
    if tenant and not _TENANT.fullmatch(tenant):
        raise OptionError("--tenant", tenant, TENANT_RULE)
    # Printable first: what is no UTF-8 on the command line cannot be encoded.
    if not node.isprintable() or not 1 <= len(node.encode()) <= NODE_BYTES_MAX:
        raise OptionError("--node", node, NODE_RULE)
    if not 1 <= workers <= WORKERS_MAX:
        raise OptionError("--workers", str(workers), f"must be 1..{WORKERS_MAX}")
    if control:
        address("--control", control)
    if otlp:
        address("--otlp", otlp)
    if local:
        address("--local", local)
        if envoy_dir is None:
            rule = "needs --envoy-dir: the routes of an Envoy that intercepts are written by us"
            raise OptionError("--local", local, rule)
    return Options(
        listen=_listen(listen, workers),
        workers=workers,
        control=control,
        snapshot=snapshot,
        state_dir=state_dir,
        node=node,
        instance_id=secrets.token_hex(8),
        tenant=tenant,
        envoy_dir=envoy_dir,
        envoy_admin=_admin(envoy_admin),
        metrics=address("--metrics", metrics) if metrics else None,
        log=log,
        otlp=otlp,
        server=server,
        local=local,
    )


def address(option: str, text: str) -> tuple[str, int]:
    """Read HOST:PORT or [IPv6]:PORT.

    Raises:
        OptionError: It is neither.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or (":" in host and not bracketed):
        raise OptionError(option, text, "must be HOST:PORT, like 127.0.0.1:7700 or [::1]:7700")
    if not (port.isascii() and port.isdigit()) or not 0 <= int(port) <= PORT_MAX:
        raise OptionError(option, text, "its port must be a number of 0..65535")
    return host.strip("[]"), int(port)


def _listen(text: str, workers: int) -> Listen:
    try:
        listen = Listen.parse(text)
    except ValueError as error:
        raise OptionError("--listen", text, str(error)) from None
    if listen.is_tcp and not 1 <= listen.port <= PORT_MAX + 1 - workers:
        rule = "worker i listens on PORT + i: all of them must be within 1..65535"
        raise OptionError("--listen", text, rule)
    return listen


def _socket(option: str, text: str) -> Path:
    path = text.removeprefix(UNIX_PREFIX)
    if not text.startswith(UNIX_PREFIX) or not path:
        raise OptionError(option, text, "must be unix:PATH, like unix:/run/turnout/worker.sock")
    return Path(path)


def _admin(text: str) -> str:
    if text.startswith(UNIX_PREFIX):
        _socket("--envoy-admin", text)
    elif text:
        try:
            address("--envoy-admin", text)
        except OptionError:
            rule = "must be unix:PATH or HOST:PORT, as in Envoy's bootstrap"
            raise OptionError("--envoy-admin", text, rule) from None
    return text
