"""Why a request is refused: a status code, every violation, a machine-readable reason.

Owns the vocabulary of refusals and their form as `google.rpc.Status`. Refuses to decide anything
and knows no transport: `control.services.errors` puts a refusal on the wire.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from control.model.violations import NOT_IMPLEMENTED, Feature

DOMAIN: Final = "turnout"
# gRPC keeps trailers under 8 KiB by default, and base64 adds a third: a refusal that has thousands
# of violations must still arrive, so it names this many bytes of them and says how many there were.
DETAILS_BYTES_MAX: Final = 4 * 1024
VALUE_CHARS_MAX: Final = 80
MESSAGE_CHARS_MAX: Final = 512


class Fault(NamedTuple):
    """One thing wrong with a request."""

    field: str
    """Path of the field, as in YAML."""
    value: str
    """What was there, shortened."""
    rule: str
    """What would be right."""


class Refused(Exception):
    """The request is answered with an error and nothing has changed."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        reason: str,
        metadata: Mapping[str, str] | None = None,
        faults: Iterable[Fault] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message[:MESSAGE_CHARS_MAX]
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.faults = tuple(faults)
        self.details: list[Message] = []

    def status(self) -> status_pb2.Status:
        """The whole refusal as `google.rpc.Status`."""
        metadata = {key: value[:MESSAGE_CHARS_MAX] for key, value in self.metadata.items()}
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=metadata)
        details: list[Message] = [info, *self.details]
        if self.faults:
            details.insert(0, _bad_request(self.faults))
        return status_pb2.Status(
            code=self.code, message=self.message, details=[_packed(detail) for detail in details]
        )


def invalid(faults: Iterable[Fault]) -> Refused:
    """INVALID_ARGUMENT that names every fault."""
    found = tuple(faults)
    first = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return Refused(
        code_pb2.INVALID_ARGUMENT,
        f"{first.field}: {first.rule}{more}",
        reason="INVALID",
        metadata={"violations": str(len(found))},
        faults=found,
    )


def unimplemented(features: Iterable[str]) -> Refused:
    """UNIMPLEMENTED that names every feature that was asked for; see `Feature` for why."""
    found = [item if isinstance(item, Feature) else Feature(item) for item in features]
    named = [item if item.why == NOT_IMPLEMENTED else f"{item}: {item.why}" for item in found]
    return Refused(
        code_pb2.UNIMPLEMENTED,
        "not implemented: " + ", ".join(named),
        reason="UNIMPLEMENTED",
        metadata={"features": ",".join(found)},
        faults=[Fault(feature, "", feature.why) for feature in found],
    )


def not_found(name: str) -> Refused:
    """NOT_FOUND: there is no such resource."""
    message = f"{name} does not exist"
    return Refused(code_pb2.NOT_FOUND, message, reason="NOT_FOUND", metadata={"resource": name})


def already_exists(name: str) -> Refused:
    """ALREADY_EXISTS: the name is taken."""
    message = f"{name} exists already"
    return Refused(
        code_pb2.ALREADY_EXISTS, message, reason="ALREADY_EXISTS", metadata={"resource": name}
    )


def stale(name: str, sent: str, current: str) -> Refused:
    """ABORTED: the etag is not the current one; read again and retry."""
    return Refused(
        code_pb2.ABORTED,
        f"{name} has changed: etag {shorten(sent)} is stale, {current} is current",
        reason="STALE_ETAG",
        metadata={"resource": name, "etag": current},
    )


def precondition(reason: str, message: str, **metadata: str) -> Refused:
    """FAILED_PRECONDITION: right in itself, wrong in this state."""
    return Refused(code_pb2.FAILED_PRECONDITION, message, reason=reason, metadata=metadata)


def exhausted(reason: str, message: str, **metadata: str) -> Refused:
    """RESOURCE_EXHAUSTED: a limit, named in the message."""
    return Refused(code_pb2.RESOURCE_EXHAUSTED, message, reason=reason, metadata=metadata)


def unavailable(message: str) -> Refused:
    """UNAVAILABLE: nothing was stored; try again later."""
    return Refused(code_pb2.UNAVAILABLE, message, reason="UNAVAILABLE")


def shorten(value: object) -> str:
    """A value as it may be shown in an error: printable and short."""
    text = str(value)
    if len(text) > VALUE_CHARS_MAX:
        text = text[:VALUE_CHARS_MAX] + "..."
    return "".join(c if c.isprintable() else "?" for c in text)


def _bad_request(faults: tuple[Fault, ...]) -> error_details_pb2.BadRequest:
    detail = error_details_pb2.BadRequest()
    size = 0
    for index, fault in enumerate(faults):
        shown = f"{fault.rule} (is {shorten(fault.value)})" if fault.value else fault.rule
        size += len(fault.field.encode()) + len(shown.encode()) + 8
        if size > DETAILS_BYTES_MAX:
            rest = f"... and {len(faults) - index} more violations"
            detail.field_violations.add(description=rest)
            break
        detail.field_violations.add(field=fault.field, description=shown)
    return detail


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
