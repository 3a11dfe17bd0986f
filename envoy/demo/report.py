"""Closing tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console as Terminal
from rich.table import Table
from rich.text import Text

from envoy.demo.result import ActResult


def _number(value: float | None, pattern: str) -> str:
    return "-" if value is None else format(value, pattern)


def _unstamped(act: ActResult) -> str:
    reasons = ", ".join(f"{name} {count}" for name, count in sorted(act.unstamped.items()) if count)
    return f"{sum(act.unstamped.values())}" + (f" ({reasons})" if reasons else "")


def print_act(terminal: Terminal, act: ActResult) -> None:
    """One act: its variants, its figures, its claims."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("variant")
    for heading in ("requests", "share", "errors", "accuracy", "p50 ms", "p95 ms"):
        table.add_column(heading, justify="right")
    for name, row in act.variants.items():
        table.add_row(
            name,
            f"{row.requests:,}",
            f"{row.requests / act.requests:.0%}" if act.requests else "-",
            f"{row.errors:,}",
            _number(row.accuracy, ".1%"),
            _number(row.p50_ms, ".1f"),
            _number(row.p95_ms, ".1f"),
        )
    terminal.print(table)
    line = f"requests {act.requests:,} · failed {act.failed} · unstamped {_unstamped(act)}"
    if act.exposed_requests is not None:
        line += (
            f" · exposed {act.exposed_users} users, {act.exposed_requests} requests"
            f" · to zero in {_number(act.seconds_to_zero, '.1f')} s"
        )
    terminal.print(line, highlight=False, soft_wrap=True)
    if act.final_state:
        ended = f"{act.final_state}: {act.reason or 'runs'}"
        terminal.print(ended, highlight=False, markup=False, soft_wrap=True)
    for claim in act.claims:
        mark, style = ("ok  ", "green") if claim.held else ("FAIL", "bold red")
        detail = f" ({claim.detail})" if claim.detail else ""
        terminal.print(Text.assemble((mark, style), f" {claim.text}{detail}"), soft_wrap=True)


def print_summary(terminal: Terminal, acts: Sequence[ActResult]) -> None:
    """All acts, one line each."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("act", no_wrap=True)
    for heading in ("requests", "failed", "unstamped"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("ended as", no_wrap=True)
    for heading in ("to zero", "exposed"):  # of a bad model: seconds, requests
        table.add_column(heading, justify="right")
    table.add_column("right")
    for act in acts:
        table.add_row(
            act.title,
            f"{act.requests:,}",
            str(act.failed),
            str(sum(act.unstamped.values())),
            act.final_state,
            "-" if act.seconds_to_zero is None else f"{act.seconds_to_zero:.1f} s",
            "-" if act.exposed_requests is None else f"{act.exposed_requests}",
            Text("yes", style="green") if act.ok else Text("NO", style="bold red"),
        )
    terminal.print()
    terminal.print(table)
