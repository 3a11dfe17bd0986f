"""What all requests share: names, page tokens, field masks, who is asking.

Owns the checks of request envelopes. Refuses to look inside a resource: `control.model` does.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from control.refusals import Fault, Refused, exhausted, invalid, shorten
from control.store.base import Page
from turnout import contract

LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1000
# gRPC clients take 4 MiB by default; one resource or decision is far smaller than the rest.
PAGE_BYTES_MAX: Final = 2 * 1024 * 1024
REQUEST_ID_BYTES_MAX: Final = 64
REASON_BYTES_MAX: Final = 1024
ACTOR_BYTES_MAX: Final = 128
ACTOR_KEY: Final = "x-turnout-actor"

LABEL_RULE: Final = "must be a DNS label: 1 to 63 of a-z 0-9 -, no - at either end"

Resource = TypeVar("Resource", bound=Message)
Record = TypeVar("Record")


class Name(NamedTuple):
    """A parsed resource name."""

    tenant: str
    id: str


def tenant_of(parent: str, *, field: str = "parent") -> str:
    """The tenant in `tenants/{tenant}`.

    Raises:
        Refused: INVALID_ARGUMENT, not such a name.
    """
    parts = parent.split("/")
    if len(parts) != 2 or parts[0] != "tenants" or not LABEL.fullmatch(parts[1]):
        raise invalid([Fault(field, shorten(parent), "must be tenants/{tenant}")])
    return parts[1]


def name_of(name: str, collection: str, *, field: str = "name") -> Name:
    """Tenant and id in `tenants/{tenant}/{collection}/{id}`.

    Raises:
        Refused: INVALID_ARGUMENT, not such a name.
    """
    parts = name.split("/")
    good = len(parts) == 4 and parts[0] == "tenants" and parts[2] == collection
    if not good or not LABEL.fullmatch(parts[1]) or not LABEL.fullmatch(parts[3]):
        rule = f"must be tenants/{{tenant}}/{collection}/{{id}}"
        raise invalid([Fault(field, shorten(name), rule)])
    return Name(parts[1], parts[3])


def check_request_id(request_id: str) -> None:
    """Refuse a request id that is too long.

    Raises:
        Refused: INVALID_ARGUMENT.
    """
    if len(request_id.encode()) > REQUEST_ID_BYTES_MAX:
        rule = f"must be at most {REQUEST_ID_BYTES_MAX} bytes"
        raise invalid([Fault("requestId", shorten(request_id), rule)])


def check_reason(reason: str) -> None:
    """Refuse a reason that is too long.

    Raises:
        Refused: INVALID_ARGUMENT.
    """
    if len(reason.encode()) > REASON_BYTES_MAX:
        rule = f"must be at most {REASON_BYTES_MAX} bytes"
        raise invalid([Fault("reason", shorten(reason), rule)])


def check_size(message: Message) -> None:
    """Refuse a resource above the size limit.

    Raises:
        Refused: RESOURCE_EXHAUSTED.
    """
    size = message.ByteSize()
    if size > contract.RESOURCE_BYTES_MAX:
        limit = contract.RESOURCE_BYTES_MAX
        raise exhausted(
            "RESOURCE_TOO_LARGE", f"the resource has {size} bytes; at most {limit} are allowed"
        )


def page_size(asked: int) -> int:
    """How many rows a page has: the default for 0, the most that there may be for more.

    Raises:
        Refused: INVALID_ARGUMENT, negative.
    """
    if asked < 0:
        rule = (
            f"must not be negative; 0 means {PAGE_SIZE_DEFAULT}, above {PAGE_SIZE_MAX} means that"
        )
        raise invalid([Fault("pageSize", str(asked), rule)])
    return min(asked or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


def fitting(messages: Iterable[Message]) -> int:
    """How many of the messages fit into one answer; at least one, so that a list always goes on."""
    size = count = 0
    for message in messages:
        size += message.ByteSize()
        if count and size > PAGE_BYTES_MAX:
            break
        count += 1
    return count


class Listing(NamedTuple):
    """Which list a page is of; a token of another list is refused.

    Attributes:
        kind: What is listed.
        parent: Of which resource.
        only: The filter, "" = none.
    """

    kind: str
    parent: str
    only: str = ""

    @property
    def mark(self) -> bytes:
        """What its tokens begin with; short, and without a colon."""
        text = "\0".join(self).encode()
        return hashlib.blake2b(text, digest_size=6).hexdigest().encode()


def page_token(listing: Listing, key: str) -> str:
    """An opaque token that continues a list after `key`."""
    raw = b"2:%b:%b" % (listing.mark, key.encode())
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def page_key(listing: Listing, token: str) -> str:
    """The key in a page token; empty for the first page.

    Raises:
        Refused: INVALID_ARGUMENT, not a token of this list.
    """
    if not token:
        return ""
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        version, _, rest = raw.partition(b":")
        mark, _, key = rest.partition(b":")
        if version == b"2" and mark == listing.mark and key:
            return key.decode()
    except (binascii.Error, ValueError):
        pass
    raise bad_page_token(token)


def bad_page_token(token: str) -> Refused:
    """INVALID_ARGUMENT: not a token of this list."""
    return invalid([Fault("pageToken", shorten(token), "must be a next_page_token of this list")])


def page_of_names(
    listing: Listing,
    asked_size: int,
    asked_token: str,
    names: Iterable[str],
    show: Callable[[str], Resource],
) -> tuple[list[Resource], str]:
    """One page of a list that is ordered by name, and the token of the next, "" = none.

    Args:
        listing: Which list.
        asked_size: The request's page size.
        asked_token: The request's page token.
        names: Of everything that could be listed, in any order.
        show: The resource of a name.

    Raises:
        Refused: INVALID_ARGUMENT, as `page_size` and `page_key`.
    """
    size, after = page_size(asked_size), page_key(listing, asked_token)
    rest = sorted(name for name in names if name > after)
    page = [show(name) for name in rest[:size]]
    size = fitting(page)
    return page[:size], page_token(listing, rest[size - 1]) if len(rest) > size else ""


async def page_of_records(
    listing: Listing,
    asked_size: int,
    asked_token: str,
    read: Callable[[int, str], Awaitable[Page[Record]]],
    encode: Callable[[Record], Resource],
) -> tuple[list[Resource], str]:
    """One page of what the store lists, and the token of the next, "" = none.

    Args:
        listing: Which list.
        asked_size: The request's page size.
        asked_token: The request's page token.
        read: Reads so many records from the store's own token on.
        encode: The message of a record.

    Raises:
        Refused: INVALID_ARGUMENT, as `page_size` and `page_key`; what `read` raises.
    """
    size, token = page_size(asked_size), page_key(listing, asked_token)
    try:
        page = await read(size, token)
        messages = [encode(record) for record in page.records]
        count = fitting(messages)
        if count < len(messages):
            page = await read(count, token)
    except ValueError as error:
        raise bad_page_token(asked_token) from error
    return messages[:count], page_token(listing, page.next_token) if page.next_token else ""


def actor_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Who is asking: the metadata x-turnout-actor, else the peer's address."""
    for key, value in context.invocation_metadata() or ():
        if key == ACTOR_KEY:
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
            text = "".join(c for c in text if c.isprintable())[:ACTOR_BYTES_MAX]
            if text:
                return text
    return str(context.peer())


def merged(current: Resource, sent: Resource, mask: FieldMask) -> Resource:
    """`current` with the masked fields of `sent`; an empty mask takes labels (if any) and spec.

    Paths are relative to the resource: "labels", "spec", or below "spec" through singular messages
    (snake_case or lowerCamelCase).

    Raises:
        Refused: INVALID_ARGUMENT, naming every path that cannot be masked.
    """
    result = type(current)()
    result.CopyFrom(current)
    faults = []
    whole = [name for name in ("labels", "spec") if name in current.DESCRIPTOR.fields_by_name]
    for path in mask.paths or whole:
        fields = _walk(result, path)
        if fields is None:
            faults.append(
                Fault(
                    "updateMask", shorten(path), 'must be "labels", "spec" or a path below "spec"'
                )
            )
            continue
        _copy_field(result, sent, fields)
    if faults:
        raise invalid(faults)
    return result


def _walk(message: Message, path: str) -> Sequence[Any] | None:
    """Field descriptors along a path, None when the path is not allowed."""
    parts = path.split(".")
    if parts[0] not in {"labels", "spec"} or (parts[0] == "labels" and len(parts) > 1):
        return None
    descriptor: Any = message.DESCRIPTOR
    fields: list[Any] = []
    for part in parts:
        if descriptor is None:
            return None
        field = descriptor.fields_by_name.get(part) or descriptor.fields_by_camelcase_name.get(part)
        if field is None:
            field = next((f for f in descriptor.fields if f.json_name == part), None)
        if field is None:
            return None
        fields.append(field)
        descriptor = None if field.is_repeated else field.message_type
    return fields


def _copy_field(target: Any, source: Any, fields: Sequence[Any]) -> None:
    *above, last = fields
    for field in above:
        if not source.HasField(field.name):
            # The parent is absent in what was sent: the masked field below it is cleared.
            source = type(getattr(source, field.name))()
        else:
            source = getattr(source, field.name)
        target = getattr(target, field.name)
    target.ClearField(last.name)
    if last.is_repeated:
        getattr(target, last.name).MergeFrom(getattr(source, last.name))
    elif last.message_type is not None:
        if source.HasField(last.name):
            getattr(target, last.name).CopyFrom(getattr(source, last.name))
    elif not last.has_presence or source.HasField(last.name):
        setattr(target, last.name, getattr(source, last.name))
