"""A batch of counts as a file's bytes, for the time after a stop without the control plane.

Owns the form: the frame of `snapshotfile` around one line of JSON and the encoded batch. Refuses
bytes that are not one. The disk is `disk`'s; which batches are kept is the supervisor's.
"""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from sidecar import snapshotfile
from sidecar.snapshotfile import CorruptSnapshot
from sidecar.unstamped import Accounted
from turnout.v1alpha1.config_service_pb2 import DeltaBatch

# Newer batches are most likely about to be acknowledged; what is older is written.
FRESH: Final = 2


class CorruptUnsent(ValueError):
    """The bytes are not what `encode` wrote; the message says what is wrong with them."""


class Unsent(NamedTuple):
    """A batch that no control plane has acknowledged.

    Attributes:
        tenant: Whose counts they are.
        batch: With the instance and number it was made under: merging it twice changes nothing.
        accounted: How far Envoy's own counter is in this batch and those before it.
    """

    tenant: str
    batch: DeltaBatch
    accounted: Accounted | None

    @property
    def name(self) -> str:
        """Of the file; sorts by number within an instance."""
        return f"{self.batch.instance_id}.{self.batch.seq:012d}"


def encode(unsent: Unsent) -> bytes:
    """One batch as a file's bytes."""
    head = {"tenant": unsent.tenant, "accounted": unsent.accounted}
    line = json.dumps(head, sort_keys=True).encode() + b"\n"
    return snapshotfile.encode(line + unsent.batch.SerializeToString(deterministic=True))


def decode(data: bytes) -> Unsent:
    """The batch of a file.

    Raises:
        CorruptUnsent: The frame does not hold, or what is in it is not ours.
    """
    try:
        line, _, encoded = snapshotfile.decode(data).partition(b"\n")
        head = json.loads(line)
        batch = DeltaBatch.FromString(encoded)
        tenant, accounted = str(head["tenant"]), head["accounted"]
        known = Accounted(*map(int, accounted)) if accounted is not None else None
    except CorruptSnapshot as error:
        raise CorruptUnsent(str(error)) from error
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise CorruptUnsent(f"not a batch: {error}") from error
    if not batch.instance_id or not batch.seq:
        raise CorruptUnsent("the batch has no number")
    return Unsent(tenant, batch, known)


def to_keep(pending: list[Unsent], instance_id: str, *, all_: bool) -> list[Unsent]:
    """Which unacknowledged batches belong on disk.

    Args:
        pending: Oldest first.
        instance_id: Ours; batches of another were on disk before.
        all_: Nothing more will be acknowledged: all do.

    Returns:
        What others made, what has waited, and at once what Envoy's counter, as we keep it, will
        not tell the next supervisor again.
    """
    fresh = {unsent.name for unsent in pending[-FRESH:] if unsent.batch.instance_id == instance_id}
    return [
        unsent
        for unsent in pending
        if all_ or unsent.name not in fresh or _counts_unstamped(unsent.batch)
    ]


def _counts_unstamped(batch: DeltaBatch) -> bool:
    return any(target.unstamped for target in batch.targets if not target.target)
