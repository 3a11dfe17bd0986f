"""The bytes that sidecar/README.md shows, and the world in which they were recorded.

Owns reading them. Refuses to know what a frame means.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from tests.integration.pods import Pod
from tests.integration.snapshots import one_experiment
from turnout.v1alpha1.snapshot_pb2 import Snapshot

README: Final = Path(__file__).parents[2] / "sidecar" / "README.md"
KEY: Final = bytes(range(32))
USER: Final = "user-15"
PREFACE_BYTES: Final = 24
FRAME_HEADER_BYTES: Final = 9
_BLOCK: Final = re.compile(r"```bytes\n(.*?)```", re.DOTALL)
_LINE: Final = re.compile(r"([<>]) ([0-9a-f ]+) \| (.+)")


class Line(NamedTuple):
    """One line of a block.

    Attributes:
        envoy: Envoy said it, not the worker.
        data: The bytes.
        says: What they are said to be.
    """

    envoy: bool
    data: bytes
    says: str


class Turn(NamedTuple):
    """What one side says before the other does."""

    envoy: bool
    lines: tuple[Line, ...]

    @property
    def data(self) -> bytes:
        """All its bytes."""
        return b"".join(line.data for line in self.lines)


class Frame(NamedTuple):
    """One HTTP/2 frame."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def turns() -> list[Turn]:
    """The whole dialogue."""
    lines = []
    for block in _BLOCK.findall(README.read_text()):
        for text in block.splitlines():
            found = _LINE.fullmatch(text)
            assert found is not None, text
            lines.append(Line(found[1] == ">", bytes.fromhex(found[2]), found[3]))
    made: list[Turn] = []
    for line in lines:
        if made and made[-1].envoy == line.envoy:
            made[-1] = made[-1]._replace(lines=(*made[-1].lines, line))
        else:
            made.append(Turn(line.envoy, (line,)))
    return made


def frames_of(data: bytes) -> list[Frame]:
    """Cut bytes into whole frames; a preface is left out, and so is a frame that is cut off."""
    at = PREFACE_BYTES if data.startswith(b"PRI ") else 0
    found = []
    while at + FRAME_HEADER_BYTES <= len(data):
        length = int.from_bytes(data[at : at + 3], "big")
        end = at + FRAME_HEADER_BYTES + length
        if end > len(data):
            break
        stream = int.from_bytes(data[at + 5 : at + 9], "big")
        found.append(Frame(data[at + 3], data[at + 4], stream, data[at + FRAME_HEADER_BYTES : end]))
        at = end
    return found


def said(*, envoy: bool) -> list[Frame]:
    """All frames of one side."""
    return frames_of(b"".join(turn.data for turn in turns() if turn.envoy is envoy))


def snapshot_of(baseline: Pod, candidate: Pod) -> Snapshot:
    """What was served; clusters have names that do not depend on a port."""
    snapshot = one_experiment(baseline, candidate, {"v2": 0.2})
    for variant in snapshot.experiments[0].variants:
        variant.cluster.cluster = f"turnout.fraud.{'v1' if variant.control else variant.name}"
    snapshot.targets[0].baseline.cluster = "turnout.fraud.v1"
    return snapshot
