"""What client commands print: the same data as a table, as YAML or as JSON.

Owns formats and columns. YAML and JSON are in the spelling of resource files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from control.model import to_yaml
from control.model.render import enum_text
from turnout.v1alpha1.experiment_pb2 import Experiment, ExperimentStatus

# Wide enough for every column when nobody watches: a pipe has no edge to wrap at.
PIPE_COLUMNS: Final = 400


class Format(StrEnum):
    """How to print."""

    TABLE = "table"
    YAML = "yaml"
    JSON = "json"


FormatOption = Annotated[Format, typer.Option("--output", "-o", help="How to print.")]


def print_data(documents: Sequence[Any], form: Format) -> None:
    """Print one document as it is and several as a list (JSON) or one after the other (YAML)."""
    if form is Format.YAML:
        typer.echo(to_yaml(documents), nl=False)
    else:
        shown = documents[0] if len(documents) == 1 else list(documents)
        typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table without lines; numbers are aligned to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    cells = [["" if value is None else value for value in row] for row in rows]
    for index, name in enumerate(columns):
        numbers = [row[index] for row in cells if row[index] != ""]
        right = bool(numbers) and all(isinstance(value, int | float) for value in numbers)
        last = index == len(columns) - 1
        table.add_column(name, justify="right" if right else "left", no_wrap=not last)
    for row in cells:
        table.add_row(*(Text(_cell(value)) for value in row))
    out = console()
    with out.capture() as captured:
        out.print(table)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def console() -> Console:
    """Standard output; as wide as the terminal, or very wide when there is none."""
    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    return Console(width=width, highlight=False, soft_wrap=False)


def print_line(text: str) -> None:
    """Print a line as it is."""
    typer.echo(text)


def state_of(status: ExperimentStatus) -> str:
    """The state's name, as in "RUNNING"."""
    return enum_text(status.DESCRIPTOR.fields_by_name["state"], status.state)


def step_of(experiment: Experiment) -> str:
    """Where it is: "2/4 canary"."""
    if not experiment.status.phase:
        return ""
    steps = len(experiment.spec.steps)
    return f"{experiment.status.step + 1}/{steps} {experiment.status.phase}"


def split_of(experiment: Experiment) -> str:
    """Who gets what: "control 95 %, v2 5 %", and the shadow."""
    status = experiment.status
    order = [variant.name for variant in experiment.spec.variants]
    shares = sorted(status.split, key=lambda name: order.index(name) if name in order else -1)
    parts = [f"{name} {percent(status.split[name])}" for name in shares]
    if status.shadow_variant:
        parts.append(f"copies to {status.shadow_variant} {percent(status.shadow_fraction)}")
    return ", ".join(parts)


def why(experiment: Experiment) -> str:
    """The sentence that says why it is where it is."""
    return experiment.status.reason or experiment.status.last_decision.sentence


def summary(experiment: Experiment) -> str:
    """One line: name, state, step, split, why."""
    parts = [
        experiment.name.rpartition("/")[2],
        state_of(experiment.status),
        step_of(experiment),
        split_of(experiment),
        why(experiment),
    ]
    return "  ".join(part for part in parts if part)


def percent(share: float) -> str:
    """A share of 0..1."""
    return f"{share * 100:.4g} %"


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
