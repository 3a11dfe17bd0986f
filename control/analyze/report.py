"""The HTML report of an analysis: one file that stands alone, and a fragment for notebooks.

Owns which sections there are and writing the file. Refuses scripts, fonts and addresses: what is
shown is in the file; names from the data are escaped, cut in the middle when long, and isolated
from the text around them whatever way they are written in.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from control.analyze import report_sections, report_svg, report_view
from control.analyze.report_numbers import whole
from control.analyze.report_view import Group
from control.analyze.report_words import METHODS, TERMS
from control.analyze.result import Analysis, Value
from turnout import __version__

NOTEBOOK_ROWS_MOST: Final = 40


@dataclass(frozen=True, slots=True)
class _Reason:
    text: str
    facts: tuple[tuple[str, str], ...]


def write_html(analysis: Analysis, path: str | os.PathLike[str]) -> None:
    """Write the report, UTF-8.

    Raises:
        OSError: The file cannot be written.
    """
    Path(path).write_text(to_html(analysis), encoding="utf-8")


def to_html(analysis: Analysis) -> str:
    """The whole report as one HTML document."""
    notes = report_view.Notes()
    groups = report_sections.effects(analysis, notes)
    doubted = report_sections.ratio_doubted(analysis)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            **_head(analysis),
            groups=groups,
            notes=notes.texts,
            clipped=any(_cut(group) for group in groups),
            highlights=report_sections.highlights(groups),
            charts=report_sections.charts(analysis),
            ratio=report_sections.ratio(analysis.srm, doubted),
            strata=report_sections.strata(analysis),
            columns=report_sections.facts(analysis.source.columns),
            settings=report_sections.facts(_settings(analysis)),
            one_look=report_view.fixed(analysis),
            methods=[(f"Of a {kind}", how) for kind, how in METHODS if _has(analysis, kind)],
            terms=TERMS,
            version=__version__,
        )
    )


def notebook_html(analysis: Analysis) -> str:
    """A compact fragment for a notebook's output cell: decision, reasons, effects."""
    notes = report_view.Notes()
    groups: list[Group] = []
    rows = 0
    for group in report_sections.effects(analysis, notes):
        rows += len(group.rows)
        if groups and rows > NOTEBOOK_ROWS_MOST:
            break
        groups.append(group)
    metrics = len({result.name for result in analysis.metrics})
    return (
        _environment()
        .get_template("notebook.html.j2")
        .render(**_head(analysis), groups=groups, notes=notes.texts, left_out=metrics - len(groups))
    )


def _head(analysis: Analysis) -> dict[str, object]:
    badge, tone, pieces = report_view.decision(analysis)
    level = report_view.level(analysis)
    look = "one look" if report_view.fixed(analysis) else "any look"
    standing = f"{whole(analysis.source.units)} units in {len(analysis.source.variants)} variants"
    if level:
        standing += f"; {level} confidence, valid at {look}"
    return {
        "badge": badge,
        "tone": tone,
        "pieces": pieces,
        "sentence": report_view.sentence(analysis),
        "standing": f"{standing}.",
        "level": level,
        "reasons": [
            _Reason(
                report_view.short(r.text, report_view.TEXT_MOST), report_sections.facts(r.values)
            )
            for r in analysis.reasons
        ],
        "warnings": [
            report_view.short(warning, report_view.TEXT_MOST) for warning in analysis.warnings
        ],
        "source": analysis.source,
    }


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("control.analyze"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.globals["short"] = report_view.short
    environment.globals["count"] = whole
    return environment


def _settings(analysis: Analysis) -> dict[str, Value]:
    """Those that are not said beside their metric."""
    return {
        name: value
        for name, value in analysis.source.settings.items()
        if not name.startswith("direction ")
    }


def _cut(group: Group) -> bool:
    most = report_svg.reach([row.marks for row in group.rows])
    return any(abs(end) > most for row in group.rows for end in row.marks.cs or ())


def _has(analysis: Analysis, kind: str) -> bool:
    return any(result.kind == kind for result in analysis.metrics)
