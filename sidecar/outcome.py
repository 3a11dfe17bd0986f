"""How a request was answered: the words, and what of it is counted by target.

Owns the outcomes, their order and the flags beside them. Refuses to count: `fold` does.
"""

from enum import IntEnum
from typing import Final, NamedTuple

# What is counted beside the outcome; bits.
DUPLICATE_UNIT: Final = 1  # several values of the unit: the first was taken
INVALID_TOKEN: Final = 2  # a force token that is not good, or names what does not serve: ignored


class Outcome(IntEnum):
    """How a request was answered.

    From NO_EXPERIMENT on, the greater the further: of several experiments that do not enrol a
    request, the one that came furthest says why.
    """

    STAMPED = 0
    NO_TARGET = 1
    NO_SNAPSHOT = 2
    SHED = 3
    PEER = 4  # another sidecar has decided this request before it came here
    NO_EXPERIMENT = 5  # none runs on the target, or its epoch is tombstoned
    WAITING = 6  # the start gate is closed: nobody is enrolled, in either arm
    NO_UNIT = 7
    INVALID_UNIT = 8
    HELD_OUT = 9
    NOT_IN_SEGMENT = 10
    NOT_IN_LAYER = 11  # the unit's place in the layer is another experiment's, or nobody's


class Tally:
    """What one answer counts as; made once per plan and compared by identity, so that it is cheap.

    Attributes:
        target: Name of the target, "" when none matched.
        outcome: How it was answered.
        flags: Bits beside it.
    """

    __slots__ = ("flags", "outcome", "target")

    def __init__(self, target: str, outcome: Outcome, flags: int = 0) -> None:
        self.target = target
        self.outcome = outcome
        self.flags = flags


class Answer(NamedTuple):
    """What to send, and what to count."""

    response: bytes | None  # None: Trailers-Only status 0; Envoy's own route serves
    outcome: Outcome
    target: str  # "" when none matched
    slots: tuple[int, ...]  # decided counters to raise
    flags: int
