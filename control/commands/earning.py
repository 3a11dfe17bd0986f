"""What commands print of a bandit step: what each variant earns, what the split cost.

Owns the columns. Refuses to compute: the control plane says everything.
"""

from __future__ import annotations

from control.commands.output import percent, print_line, print_table
from control.model.render import time_text
from turnout.v1alpha1.experiment_pb2 import BanditArm, BanditResult

COLUMNS = (
    "BANDIT (* CONTROL)",
    "SHARE",
    "REQUESTS",
    "EXPOSURE",
    "EARNS",
    "SE",
    "BEST",
    "DIFFERENCE",
    "95 % SEQUENCE",
    "BY PROPENSITY",
)


def print_bandit(result: BanditResult) -> None:
    """Print a table of the arms and what the split has cost."""
    print_table(COLUMNS, [_row(arm) for arm in result.arms])
    for line in lines(result):
        print_line(line)


def lines(result: BanditResult) -> list[str]:
    """What there is beside the arms, a line each."""
    found = [
        f"Earned: {result.sentence}",
        f"Regret: {result.regret:.4g} rewards of {result.metric} in {result.epochs} epochs; equal "
        f"shares would have lost {result.uniform_regret:.4g}",
    ]
    if result.HasField("next_reallocation_time"):
        found.append(f"Next look: {time_text(result.next_reallocation_time)}")
    return found


def page(result: BanditResult) -> list[str]:
    """The same without a table: who was exposed to what, then `lines`."""
    exposed = ", ".join(f"{arm.variant} {percent(arm.exposure)}" for arm in result.arms)
    best = ", ".join(f"{arm.variant} {percent(arm.probability_best)}" for arm in result.arms)
    return [f"Exposure: {exposed}", f"Probability of being the best: {best}", *lines(result)]


def _row(arm: BanditArm) -> tuple[object, ...]:
    return (
        f"{arm.variant} *" if arm.control else arm.variant,
        percent(arm.share),
        arm.requests,
        percent(arm.exposure),
        percent(arm.mean) if arm.standard_error else None,
        arm.standard_error or None,
        percent(arm.probability_best) if arm.standard_error else None,
        _points(arm.difference) if arm.compared else None,
        f"{_points(arm.lower)} .. {_points(arm.upper)}" if arm.compared else None,
        _points(arm.inverse_propensity_difference) if arm.compared else None,
    )


def _points(difference: float) -> str:
    return f"{100 * difference:+.3g} points"
