"""Frames between a supervisor and its workers, over a Unix socket pair.

Owns the framing and the kinds of message. Refuses to know what a plan or a delta means. Both ends
are one installation and are started together, so there is no version negotiation: an upgrade brings
its own workers along.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any, Final

# Length of the payload, then its kind.
_HEADER: Final = struct.Struct("<IB")
_U32: Final = struct.Struct("<I")
# Gates and slots of a line: those of 1,000 experiments, read at once, would hold a worker for 2 ms.
_LINE: Final = 64
# A snapshot (16 MiB at most) with its envelope, or a delta of 65,536 exposures (about 2 MiB).
FRAME_BYTES_MAX: Final = 32 * 1024 * 1024


class Kind(IntEnum):
    """What a frame carries."""

    PLAN = 1  # supervisor -> worker: a PlanOrder
    APPLIED = 2  # worker -> supervisor: a PlanReport
    HEARTBEAT = 3  # worker -> supervisor: Faults
    DELTA = 4  # worker -> supervisor: an encoded FoldDelta
    SERVE = 5  # supervisor -> worker: empty; take the socket, as soon as there is a plan
    RETIRE = 6  # supervisor -> worker: empty; another has the socket: drain, and end


# A fault of a message rather than of its connection.
MALFORMED_MESSAGE: Final = "malformed_message"


class FrameError(ValueError):
    """The other end sent something that is not a frame: a bug, or a foreign process."""


@dataclass(frozen=True, slots=True)
class PlanOrder:
    """Everything a worker needs to build its plan.

    Attributes:
        generation: Rises by one at every order; the worker reports it back.
        snapshot: An encoded Snapshot.
        tenant_key: The key of unit hashes, 32 bytes.
        dead: Experiment -> highest tombstoned epoch.
        open_gates: (experiment, epoch) whose start gate is open; None = no gate, all are open.
        slots: (experiment, epoch, variant) -> slot in the decided counters.
        defaults: Target -> cluster of requests without a variant; empty = the routes know it.
        transparent: Whether Envoy intercepts, so that peers' marks are read and made.
    """

    generation: int
    snapshot: bytes
    tenant_key: bytes
    dead: dict[str, int] = field(default_factory=dict)
    open_gates: frozenset[tuple[str, int]] | None = None
    slots: dict[tuple[str, int, str], int] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)
    transparent: bool = False

    def encode(self) -> bytes:
        """A frame's payload: lines of JSON behind their length, then the snapshot.

        The first line has what is short; of the others each has some gates and slots.
        """
        meta = {
            "generation": self.generation,
            "key": self.tenant_key.hex(),
            "dead": self.dead,
            "gated": self.open_gates is not None,
            "defaults": self.defaults,
            "transparent": self.transparent,
        }
        gates = sorted(self.open_gates or ())
        slots = [[*key, slot] for key, slot in self.slots.items()]
        lists: list[Any] = [
            [gates[at : at + _LINE], slots[at : at + _LINE]]
            for at in range(0, max(len(gates), len(slots)), _LINE)
        ]
        lines = "\n".join(json.dumps(line) for line in (meta, *lists)).encode()
        return _U32.pack(len(lines)) + lines + self.snapshot

    @classmethod
    def decode(cls, payload: bytes) -> PlanOrder:
        """Read a frame's payload."""
        steps = cls.decoding(payload)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                order: PlanOrder = done.value
                return order

    @classmethod
    def decoding(cls, payload: bytes) -> Generator[None, None, PlanOrder]:
        """`decode` in steps of some 0.1 ms; returns the order."""
        (length,) = _U32.unpack_from(payload)
        start = _U32.size + length
        lines = iter(payload[_U32.size : start].split(b"\n"))
        meta = json.loads(next(lines))
        gates: set[tuple[str, int]] = set()
        slots: dict[tuple[str, int, str], int] = {}
        for line in lines:
            some_gates, some_slots = json.loads(line)
            gates.update((name, epoch) for name, epoch in some_gates)
            slots.update(
                ((name, epoch, variant), slot) for name, epoch, variant, slot in some_slots
            )
            yield
        return cls(
            generation=meta["generation"],
            snapshot=payload[start:],
            tenant_key=bytes.fromhex(meta["key"]),
            dead=meta["dead"],
            open_gates=frozenset(gates) if meta["gated"] else None,
            slots=slots,
            defaults=meta["defaults"],
            transparent=meta["transparent"],
        )


@dataclass(frozen=True, slots=True)
class Faults:
    """What peers have done wrong since the worker's start.

    Attributes:
        counts: Connections closed for it, by the reason in words; MALFORMED_MESSAGE are messages.
    """

    counts: Mapping[str, int]

    def encode(self) -> bytes:
        """A frame's payload; nothing when there is nothing."""
        return json.dumps(dict(self.counts)).encode() if self.counts else b""

    @classmethod
    def decode(cls, payload: bytes) -> Faults:
        """Read a payload."""
        return cls(json.loads(payload) if payload else {})


@dataclass(frozen=True, slots=True)
class PlanReport:
    """A worker's answer to a PlanOrder.

    Attributes:
        generation: Of the order.
        version: Of the snapshot that serves now; 0 = none.
        error: Empty = the plan serves. Otherwise the plan that served before serves on.
        listening: Whether the worker has taken its socket.
    """

    generation: int
    version: int
    error: str = ""
    listening: bool = False

    def encode(self) -> bytes:
        """A frame's payload."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, payload: bytes) -> PlanReport:
        """Read a frame's payload."""
        return cls(**json.loads(payload))


def frame(kind: Kind, payload: bytes = b"") -> bytes:
    """Bytes to write for one message.

    Raises:
        FrameError: The payload is larger than FRAME_BYTES_MAX.
    """
    if len(payload) > FRAME_BYTES_MAX:
        raise FrameError(f"frame of {len(payload)} bytes, must be <= {FRAME_BYTES_MAX}")
    return _HEADER.pack(len(payload), kind) + payload


async def read_frame(reader: asyncio.StreamReader) -> tuple[Kind, bytes]:
    """The next message.

    Raises:
        asyncio.IncompleteReadError: The other end is gone.
        FrameError: Unknown kind, or longer than FRAME_BYTES_MAX.
    """
    length, kind = _HEADER.unpack(await reader.readexactly(_HEADER.size))
    if length > FRAME_BYTES_MAX:
        raise FrameError(f"frame of {length} bytes, must be <= {FRAME_BYTES_MAX}")
    try:
        known = Kind(kind)
    except ValueError:
        raise FrameError(f"unknown kind of frame: {kind}") from None
    return known, await reader.readexactly(length)
