"""The answer for a terminal: the decision as a sentence first, then the numbers behind it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from control.analyze.result import Analysis, MetricResult, SampleRatio

PIPE_COLUMNS: Final = 160
_SIGNIFICANT: Final = 4

# What each decision asks for.
MEANS: Final = {
    "PROMOTE": "the treatment is better: ship it",
    "ROLLBACK": "the treatment does harm: take it away",
    "INVALID": "do not believe these data: find out what is wrong with them first",
    "WARMING_UP": "too few data to say anything yet",
    "HOLD": "promising but doubtful: keep the split and look into it",
    "CONTINUE": "not decided yet: keep collecting",
    "KEEP_CONTROL_WORSE": "the treatment is worse: keep control",
    "KEEP_CONTROL_FUTILE": "the treatment cannot reach the minimum effect: keep control",
    "NO_DIFFERENCE": "no difference that matters: keep control",
    "INCONCLUSIVE": "these data do not decide: keep control",
}


def render_text(analysis: Analysis) -> None:
    """Print it; as wide as the terminal, or wide enough when there is none."""
    out = sys.stdout
    console = Console(
        file=out, width=None if out.isatty() else PIPE_COLUMNS, highlight=False, soft_wrap=False
    )
    console.print(Text.assemble((analysis.decision, "bold"), ": ", MEANS[analysis.decision]))
    for reason in analysis.reasons:
        console.print(Text(f"  because {reason.text}"))
    console.print()
    console.print(Text(sample_ratio_line(analysis.srm)))
    console.print()
    fixed = analysis.source.settings.get("method") == "fixed"
    alpha = analysis.source.settings.get("alpha")
    level = f"{100 * (1 - alpha):g} %" if isinstance(alpha, float) else ""
    console.print(_table(analysis.metrics, level, fixed=fixed))
    for stratum in analysis.strata:
        column = analysis.source.columns.get("strata", "stratum")
        console.print()
        console.print(Text(f"{column} = {stratum.stratum}", style="bold"))
        if stratum.srm is not None:
            console.print(Text(sample_ratio_line(stratum.srm)))
        console.print(_table(stratum.metrics, level, fixed=fixed))
    if analysis.warnings:
        console.print()
    for warning in analysis.warnings:
        console.print(Text(f"warning: {warning}"))


def sample_ratio_line(ratio: SampleRatio | None) -> str:
    """Whether units fell as they should, in a line."""
    if ratio is None:
        return "Sample ratio: not checked (no --expected)"
    arms = ", ".join(
        f"{name} {seen:,} of {ratio.expected[name]:,.0f}" for name, seen in ratio.observed.items()
    )
    bad = ratio.e_value is not None and ratio.e_value >= 1000
    verdict = "MISMATCH" if bad else "as expected"
    return (
        f"Sample ratio: {verdict}: {arms} (e-value {shown(ratio.e_value)}, one look p = "
        f"{shown(ratio.p_value)})"
    )


def shown(value: float | None) -> str:
    """A number with four significant digits, "-" for none."""
    if value is None:
        return "-"
    if value != 0 and (abs(value) >= 1e7 or abs(value) < 1e-4):
        return f"{value:.3g}"
    digits = 0 if value == 0 else max(_SIGNIFICANT - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{digits}f}"


def _table(metrics: Sequence[MetricResult], level: str, *, fixed: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    columns = ("metric", "variant", "n", "control", "treatment", "difference", "relative")
    intervals = (f"{level} at any look", "p", f"{level} at one look", "p")
    if fixed:
        intervals = (*intervals[2:], *intervals[:2])
    for index, name in enumerate((*columns, *intervals)):
        table.add_column(name, justify="left" if index < 2 else "right", no_wrap=True)
    for metric in metrics:
        sequence = (_interval(metric.cs_low, metric.cs_high), shown(metric.always_valid_p))
        interval = (_interval(metric.ci_low, metric.ci_high), shown(metric.p_value))
        cells = (*interval, *sequence) if fixed else (*sequence, *interval)
        relative = "-" if metric.relative is None else f"{metric.relative:+.2%}"
        table.add_row(
            Text(metric.name),
            Text(metric.variant),
            f"{metric.control.n:,} / {metric.treatment.n:,}",
            shown(metric.control.mean),
            shown(metric.treatment.mean),
            shown(metric.difference),
            relative,
            *cells,
        )
    return table


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{shown(low)} to {shown(high)}"
