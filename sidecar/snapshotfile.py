"""A snapshot as a file's bytes: MAGIC + BLAKE2b-256 of the payload + payload.

Owns the framing and its check; refuses bytes that are cut, changed or foreign. The payload's
meaning is not looked at (the same frame serves other small files), and the disk is `disk`'s.
"""

import hashlib

from turnout.contract import SNAPSHOT_BYTES_MAX, SNAPSHOT_DIGEST_BYTES, SNAPSHOT_MAGIC

_PAYLOAD_START = len(SNAPSHOT_MAGIC) + SNAPSHOT_DIGEST_BYTES


class CorruptSnapshot(ValueError):
    """The bytes are not what `encode` wrote; the message says what is wrong with them."""


def encode(payload: bytes) -> bytes:
    """Frame a payload.

    Raises:
        ValueError: It is larger than SNAPSHOT_BYTES_MAX, so that `decode` would refuse it.
    """
    if len(payload) > SNAPSHOT_BYTES_MAX:
        raise ValueError(f"snapshot has {len(payload)} bytes, at most {SNAPSHOT_BYTES_MAX}")
    return SNAPSHOT_MAGIC + _digest(payload) + payload


def decode(data: bytes) -> bytes:
    """The payload of a framed file.

    Raises:
        CorruptSnapshot: The frame does not hold.
    """
    if not data.startswith(SNAPSHOT_MAGIC):
        raise CorruptSnapshot(f"does not begin with {SNAPSHOT_MAGIC!r}")
    if len(data) < _PAYLOAD_START:
        raise CorruptSnapshot(f"has {len(data)} bytes, the header alone has {_PAYLOAD_START}")
    if len(data) - _PAYLOAD_START > SNAPSHOT_BYTES_MAX:
        raise CorruptSnapshot(f"has {len(data)} bytes, the payload at most {SNAPSHOT_BYTES_MAX}")
    payload = data[_PAYLOAD_START:]
    if _digest(payload) != data[len(SNAPSHOT_MAGIC) : _PAYLOAD_START]:
        raise CorruptSnapshot("payload does not match its BLAKE2b-256 digest")
    return payload


def _digest(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=SNAPSHOT_DIGEST_BYTES).digest()
