"""Who calls what, and refusals that every mutating method has.

Owns request digests and the search for unknown fields. Refuses to look at any field by meaning.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from control.refusals import Fault, invalid, shorten
from control.rollout.effects import Call
from control.services.errors import Context
from control.services.requests import LABEL, LABEL_RULE, actor_of, check_request_id

UNKNOWN_FIELDS_SHOWN: Final = 16


def call_of(request: Message, context: Context, method: str) -> Call:
    """Who calls what; the digest tells a repeated request from another under the same id.

    Raises:
        Refused: INVALID_ARGUMENT: the request id is too long, or there are unknown fields.
    """
    request_id = str(getattr(request, "request_id", ""))
    check_request_id(request_id)
    unknown = unknown_fields(request)
    if unknown:
        raise invalid([Fault(path, "", "unknown field") for path in unknown])
    digest = hashlib.blake2b(request.SerializeToString(deterministic=True), digest_size=16)
    return Call(actor_of(context), method, request_id, digest.digest())


def unknown_fields(message: Message, path: str = "") -> list[str]:
    """Paths of fields that this version does not know, at any depth; at most a few."""
    # The stubs do not know that the set can be iterated over.
    unknown: Any = UnknownFieldSet(message)
    found = [f"{path}#{field.field_number}" for field in unknown]
    for field, value in message.ListFields():
        if field.message_type is None or len(found) >= UNKNOWN_FIELDS_SHOWN:
            continue
        name = f"{path}{field.json_name}"
        if field.message_type.GetOptions().map_entry:
            continue  # our maps have scalar values
        if field.is_repeated:
            for index, item in enumerate(value):
                found += unknown_fields(item, f"{name}[{index}].")
        else:
            found += unknown_fields(value, f"{name}.")
    return found[:UNKNOWN_FIELDS_SHOWN]


def check_id(field: str, value: str) -> None:
    """Refuse an id that is no DNS label.

    Raises:
        Refused: INVALID_ARGUMENT.
    """
    if not LABEL.fullmatch(value):
        raise invalid([Fault(field, shorten(value), LABEL_RULE)])
