"""The parts of the plan by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.simulations import (
    clustered,
    coverage,
    decisions,
    merging,
    peeking,
    power,
    ramps,
    rollback,
    sampleratio,
)
from tests.simulations.figures import Figure

PLAN: Final[dict[str, Callable[..., list[Figure]]]] = {
    "P1": peeking.run,
    "P2": clustered.run,
    "P3": ramps.run,
    "P4": power.run,
    "P5": sampleratio.run,
    "P6": rollback.run,
    "P7": decisions.run,
    "P8": merging.run,
    "P9": coverage.run,
}
