"""One experiment's run: what the rollout remembers between two decisions.

Stored as JSON in the resource's opaque state. Only `decide` makes a new one; the controller stores
and publishes it. Holds no evidence and no clock.
"""

from dataclasses import dataclass, field

from control.rollout import codec
from control.rollout.words import Action, Phase, Reason, State
from turnout import contract

BLOCK_EVERY_MS = contract.FIRST_BAD_SLOT_S * contract.FIRST_BAD_BLOCK_EVERY * 1000

Ranges = tuple[tuple[int, int], ...]

# Epochs whose late evidence (labels) can still roll back; older ones are forgotten.
PAST_EPOCHS_MAX = 32


@dataclass(frozen=True, slots=True)
class PastEpoch:
    """An earlier epoch with the same variants: labels of its requests may still arrive.

    Attributes:
        epoch, start_ms, split_ppm, blocks_before: As they were in the run.
        blocks: Lane blocks begun in it. An event later than these counts for none: the next epoch
            has their numbers.
    """

    epoch: int
    start_ms: int
    split_ppm: dict[str, int]
    blocks_before: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Run:
    """State of one experiment.

    Attributes:
        experiment: Its id within the tenant.
        state: Where it is.
        step: Index into the spec's steps; 0 in DRAFT.
        phase: Kind of the step that runs; None when none does.
        epoch: +1 at every change of split, shadow, variants, targeting or metrics; 0 before the
            start, never reused for a name.
        epoch_start_ms, step_start_ms, start_ms, end_ms: Unix milliseconds, 0 = not yet. The step's
            start moves by the time that the experiment was paused.
        split_ppm: Every variant, control included -> parts per million of the eligible units; {}
            when nothing runs.
        allocation: Variant -> bucket ranges by `control.snapshot.allocate`; {} when nothing runs.
        shadow_variant, shadow_ppm: The candidate being mirrored to, "" = none.
        paused_ms: When it was paused, 0 = it is not.
        finished: The last step passed and `onFinish` holds.
        blocks_before: Lane blocks begun in earlier epochs: block numbers go on over the experiment.
        past: Earlier epochs since the start or the last change of the spec, oldest first, at most
            `PAST_EPOCHS_MAX`.
        observed_revision: The spec revision that runs.
        bandit_epoch: First epoch of the bandit step that runs or ran, 0 = none did.
        bandit_looks: Looks that it has had.
        reason: Why it ended, one sentence; "" while it has not.
        winner: Variant that was promoted, "" = none.
        last_action, last_reason, last_ms: Of the last recorded decision.
    """

    experiment: str
    state: State = State.DRAFT
    step: int = 0
    phase: Phase | None = None
    epoch: int = 0
    epoch_start_ms: int = 0
    step_start_ms: int = 0
    start_ms: int = 0
    end_ms: int = 0
    split_ppm: dict[str, int] = field(default_factory=dict)
    allocation: dict[str, Ranges] = field(default_factory=dict)
    shadow_variant: str = ""
    shadow_ppm: int = 0
    paused_ms: int = 0
    finished: bool = False
    blocks_before: int = 0
    past: tuple[PastEpoch, ...] = ()
    observed_revision: int = 0
    reason: str = ""
    winner: str = ""
    last_action: Action = Action.CONTINUE
    last_reason: Reason = Reason.UNSPECIFIED
    last_ms: int = 0
    bandit_epoch: int = field(default=0, metadata=codec.ADDED)
    bandit_looks: int = field(default=0, metadata=codec.ADDED)

    def __post_init__(self) -> None:
        assert self.epoch >= 0
        assert self.blocks_before >= 0
        assert not self.split_ppm or sum(self.split_ppm.values()) == contract.BUCKET_COUNT

    @property
    def live(self) -> bool:
        """True while it enrols units or mirrors: RUNNING or PAUSED."""
        return self.state in (State.RUNNING, State.PAUSED)

    def blocks_begun(self, now_ms: int) -> int:
        """Lane blocks begun in this epoch until now; 0 when no candidate serves."""
        served = [name for name, ppm in self.split_ppm.items() if ppm > 0]
        if not self.live or len(served) < 2:
            return 0
        return max(0, now_ms - self.epoch_start_ms) // BLOCK_EVERY_MS + 1

    def to_json(self) -> str:
        """Canonical JSON."""
        return codec.to_json(self)

    @staticmethod
    def from_json(text: str | bytes) -> "Run":
        """The run of `to_json`.

        Raises:
            codec.CorruptJson: The text is no run.
        """
        return codec.from_json(Run, text)
