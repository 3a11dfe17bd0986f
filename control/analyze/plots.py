"""The effect plot of an analysis as a file: PNG, SVG or PDF.

Owns one figure: the decision, each metric's differences with interval and sequence about 0, and
beside them the sequence over time. Marks differ in shape, so that the figure survives black and
white. Refuses a window and global state: figures are made and drawn without pyplot.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import FixedLocator, FuncFormatter

from control.analyze import report_sections, report_svg, report_view
from control.analyze.report_numbers import whole
from control.analyze.report_sections import Track
from control.analyze.report_view import Group, Row
from control.analyze.result import Analysis

SUFFIXES: Final = (".png", ".svg", ".pdf")
ROWS_MOST: Final = 32  # metrics x treatments in a figure; what is left out is said
LINES_MOST: Final = 3  # treatments in one chart over time
_WIDTH_IN, _NAMES_IN, _NUMBERS_IN = 11.0, 2.3, 2.3
_HEAD_IN, _FOOT_IN, _ROW_IN, _AXIS_IN = 1.05, 0.75, 0.5, 0.95
_CHART_LEAST_IN: Final = 1.75
_DPI: Final = 160
_INK, _SOFT, _LINE = "#1a1e23", "#545c66", "#cdd4db"
_TONES: Final = {"good": "#0b5a94", "bad": "#a33308"}
_DASHES: Final = ("-", "--", ":")
# Files of the same analysis are the same bytes; text is drawn so that it needs no font.
_STYLE: Final[Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "turnout",
    "pdf.fonttype": 42,
    "axes.unicode_minus": True,
    "text.color": _INK,
    "axes.edgecolor": _SOFT,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
}
_METADATA: Final[dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def write_plot(analysis: Analysis, path: str | os.PathLike[str]) -> None:
    """Draw into a file whose suffix says its form.

    Raises:
        ValueError: The suffix is not one of .png, .svg and .pdf.
        OSError: The file cannot be written.
    """
    suffix = check_suffix(path)
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A name may be in a script that the font lacks; it is drawn with boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = draw(analysis)
        figure.savefig(
            Path(path),
            format=suffix.removeprefix("."),
            dpi=_DPI,
            facecolor="white",
            metadata=_METADATA[suffix],
        )


def check_suffix(path: str | os.PathLike[str]) -> str:
    """The suffix, in small letters.

    Raises:
        ValueError: No plot can be written with it.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        allowed = ", ".join(SUFFIXES)
        raise ValueError(f"plot file {str(path)!r} has suffix {suffix!r}, must be one of {allowed}")
    return suffix


def draw(analysis: Analysis) -> Figure:
    """The figure: a band of each metric, as many as fit."""
    groups, left_out = _shown(report_sections.effects(analysis, report_view.Notes()))
    tracks = {track.metric: track for track in report_sections.tracks(analysis)}
    timed = any(group.rows[0].result.name in tracks for group in groups)
    heights = [
        max(
            len(group.rows) * _ROW_IN,
            _CHART_LEAST_IN if group.rows[0].result.name in tracks else 0.0,
        )
        + _AXIS_IN
        for group in groups
    ]
    height = _HEAD_IN + _FOOT_IN + sum(heights)
    width = _WIDTH_IN + (4.2 if timed else 0.0)
    figure = Figure(figsize=(width, height))
    _head(figure, analysis, width, height)
    if groups:
        grid = GridSpec(
            len(groups),
            2 if timed else 1,
            figure=figure,
            left=_NAMES_IN / width,
            right=1 - (1.05 if timed else _NUMBERS_IN + 0.2) / width,
            top=1 - _HEAD_IN / height,
            bottom=_FOOT_IN / height,
            height_ratios=heights,
            wspace=(_NUMBERS_IN + 1.0) / 4.6,
            hspace=0.0,
        )
        for place, (group, tall) in enumerate(zip(groups, heights, strict=True)):
            axes = _cell(figure, grid, place, 0, tall)
            _forest(axes, group)
            track = tracks.get(group.rows[0].result.name)
            if timed and track is not None:
                _chart(_cell(figure, grid, place, 1, tall), track)
    _foot(figure, height, left_out, bool(groups))
    return figure


def _shown(groups: Sequence[Group]) -> tuple[list[Group], int]:
    shown: list[Group] = []
    rows = 0
    for group in groups:
        rows += len(group.rows)
        if shown and rows > ROWS_MOST:
            break
        shown.append(group)
    return shown, len(groups) - len(shown)


def _cell(figure: Figure, grid: GridSpec, row: int, column: int, tall: float) -> Axes:
    """Axes in a cell of the grid, with room above for a name and below for the scale."""
    box = grid[row, column].get_position(figure)
    inch = box.height / tall
    return figure.add_axes((box.x0, box.y0 + 0.5 * inch, box.width, box.height - 0.95 * inch))


def _head(figure: Figure, analysis: Analysis, width: float, height: float) -> None:
    badge, _, _ = report_view.decision(analysis)
    sentence = report_view.sentence(analysis)
    level = report_view.level(analysis)
    x = 0.3 / width
    big: dict[str, Any] = {"fontsize": 15 if len(sentence) < 80 else 11, "fontweight": "bold"}
    figure.text(x, 1 - 0.42 / height, sentence[:170], parse_math=False, **big)
    said = f"{badge}. {whole(analysis.source.units)} units. "
    said += f"Thick bar: {level} confidence interval, one look; ".replace("  ", " ")
    said += "line with ends: confidence sequence, any look; filled diamond: 0 is excluded."
    figure.text(x, 1 - 0.68 / height, said, color=_SOFT, parse_math=False)


def _foot(figure: Figure, height: float, left_out: int, any_shown: bool) -> None:
    said = "" if any_shown else "No metric was asked for, or none could be computed."
    if left_out:
        said = f"{left_out} more metrics are in the report and the JSON."
    figure.text(0.03, 0.22 / height, said, color=_SOFT, parse_math=False)


def _forest(axes: Axes, group: Group) -> None:
    most = report_svg.reach([row.marks for row in group.rows])
    count = len(group.rows)
    axes.set_xlim(-most * 1.04, most * 1.04)
    axes.set_ylim(count - 0.4, -0.6)
    axes.axvline(0, color=_INK, linewidth=1, linestyle=(0, (3, 2)), zorder=0)
    for place, row in enumerate(group.rows):
        _marks(axes, row, place, most)
    axes.set_yticks(
        range(count),
        [report_view.short(row.who, 26) for row in group.rows],
        parse_math=False,
        color=_INK,
    )
    axes.tick_params(axis="y", length=0, pad=8)
    axes.xaxis.set_major_locator(FixedLocator([-most, -most / 2, 0, most / 2, most]))
    labels = dict(zip((-2, -1, 0, 1, 2), group.labels, strict=True))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: labels.get(round(2 * value / most), ""))
    )
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    title = report_view.short(group.title, 44)
    kind = group.kind + (f", {group.direction} is better" if group.direction else "")
    say(axes, title, (0, 1), (-_NAMES_IN * 72 + 22, 8), fontweight="bold")
    say(axes, kind, (1, 1), (0, 8), color=_SOFT, ha="right")
    left, right = group.sides
    under: dict[str, Any] = {"color": _SOFT, "fontsize": 8.5}
    say(axes, f"\N{LEFTWARDS ARROW} {left}", (0, 0), (0, -30), **under)
    say(axes, f"{right} \N{RIGHTWARDS ARROW}", (1, 0), (0, -30), ha="right", **under)


def say(
    axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **style: Any
) -> None:
    """Text as it is (no formulas), so many points from a place in the axes (0..1)."""
    style = {"xycoords": "axes fraction", "annotation_clip": False, **style}
    axes.annotate(text, at, offset, textcoords="offset points", parse_math=False, **style)


def _marks(axes: Axes, row: Row, place: int, most: float) -> None:
    color = _TONES.get(row.state.tone, _INK)
    if row.marks.cs is not None:
        low, high = (min(max(end, -most), most) for end in row.marks.cs)
        axes.plot([low, high], [place, place], color=color, linewidth=1.4, zorder=2)
        for end, shown, arrow in zip(row.marks.cs, (low, high), ("<", ">"), strict=True):
            marker = "|" if end == shown else arrow
            axes.plot([shown], [place], marker=marker, color=color, markersize=9, zorder=2)
    if row.marks.ci is not None:
        axes.plot(
            row.marks.ci,
            [place, place],
            color=color,
            alpha=0.45,
            linewidth=7,
            solid_capstyle="butt",
        )
    if row.marks.difference is not None:
        face = color if row.marks.clear else "white"
        axes.plot(
            [row.marks.difference],
            [place],
            marker="D",
            markersize=7,
            markerfacecolor=face,
            markeredgecolor="white" if row.marks.clear else color,
            markeredgewidth=0.8 if row.marks.clear else 1.6,
            zorder=3,
        )
    said = f"{row.difference.text}  {row.state.symbol} {row.state.word}\n{row.interval.text}"
    if row.interval.note is not None:
        known = f"{row.difference.text}, " if row.difference.note is None else ""
        said = f"{known}no interval: {row.state.word}"
    beside = ("axes fraction", "data")
    say(axes, said, (1, place), (10, 0), xycoords=beside, va="center", fontsize=9)


def _chart(axes: Axes, track: Track) -> None:
    """Difference and sequence over the looks, labelled at the last one."""
    low, high = track.window
    axes.set_xlim(0, 1)
    axes.set_ylim(low, high)
    drawn = list(zip(track.series, track.looks, strict=True))[:LINES_MOST]
    for (series, looks), dashes in zip(drawn, _DASHES, strict=False):
        sure = [look for look in looks if look.cs is not None]
        at = [look.at for look in sure]
        lows, highs = ([look.cs[end] for look in sure if look.cs] for end in (0, 1))
        if len(drawn) == 1:
            axes.fill_between(at, lows, highs, color=_INK, alpha=0.1, linewidth=0)
        for edge in (lows, highs):
            axes.plot(at, edge, color=_SOFT, linewidth=0.9, linestyle=dashes)
        shown = [look.difference for look in looks]
        axes.plot([look.at for look in looks], shown, color=_INK, linewidth=1.9, linestyle=dashes)
        ends = [(looks[-1].difference, track.how.change(looks[-1].difference), "bold")]
        if len(drawn) == 1:
            ends += [(end, track.how.bound(end), "normal") for end in looks[-1].cs or ()]
        else:
            ends = [(looks[-1].difference, report_view.short(series.variant, 12), "normal")]
        for value, text, weight in ends:
            style: dict[str, Any] = {"va": "center", "fontsize": 8.5, "fontweight": weight}
            say(axes, text, (1, value), (5, 0), xycoords="data", **style)
    axes.axhline(0, color=_INK, linewidth=1, linestyle=(0, (3, 2)), zorder=0)
    axes.set_yticks([value for value, _ in track.labels], [text for _, text in track.labels])
    axes.set_xticks([0, 1], report_sections.ends_of(track.series[0]), parse_math=False)
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    axes.tick_params(length=3, labelsize=8.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    unit = "pp " if track.how.share else ""
    more = len(track.series) - len(drawn)
    note = f"; {more} more are in the report" if more else ""
    say(axes, f"{unit}over {track.by}{note}", (0, 1), (0, 8), color=_SOFT)
