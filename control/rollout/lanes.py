"""Safety lanes: anytime-valid tests of "the candidate has more bad events than its share".

Owns the first bad events of units by slot and block, and the tilt e-process over them. Refuses counts of
raw events under a sticky unit: one user who always fails would be evidence again and again.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from control.rollout.policy import Policy
from control.rollout.run import PastEpoch, Run
from control.rollout.seen import LaneState
from control.rollout.words import Kind


@dataclass(frozen=True, slots=True)
class LaneFacts:
    """What one epoch's design fixes for its lanes.

    Attributes:
        control: Name of the control variant.
        thetas: Candidate -> f_candidate / (f_candidate + f_control), each in (0, 1).
        kinds: Kinds in use.
        alpha_lane: `safety.alpha` / (kinds in use x candidates).
        blocks_before: Blocks begun in earlier epochs.
    """

    control: str
    thetas: dict[str, float]
    kinds: tuple[Kind, ...]
    alpha_lane: float
    blocks_before: int


def facts(policy: Policy, epoch: Run | PastEpoch) -> LaneFacts:
    """The facts of the run's current epoch or of an earlier one. No thetas = no lane applies."""
    raise NotImplementedError


class BlockTracker:
    """First bad events of one epoch of one experiment. Merging is a union: any order, any duplicates."""

    def add(
        self, kind: Kind, slot: int, variant: str, unit_hashes: Iterable[int], sample_shift: int = 0
    ) -> None:
        """Units whose first bad event of this kind in this slot is known now.

        Args:
            kind: Kind of bad event.
            slot: floor((time of the request - epoch start) / `contract.FIRST_BAD_SLOT_S`), >= 0.
            variant: The unit's variant in this epoch.
            unit_hashes: 64-bit hashes; for a random unit each event has its own.
            sample_shift: Only hashes with `hash & (2**sample_shift - 1) == 0` were kept.
        """
        raise NotImplementedError

    def assess(self, lane_facts: LaneFacts, now_slot: int) -> list[LaneState]:
        """One state per kind in use and candidate, in that order: the strongest block."""
        raise NotImplementedError

    def to_bytes(self) -> bytes:
        """Deterministic: equal evidence gives equal bytes, whatever the order it came in."""
        raise NotImplementedError

    @classmethod
    def from_bytes(cls, data: bytes) -> "BlockTracker":
        """The tracker of `to_bytes`."""
        raise NotImplementedError
