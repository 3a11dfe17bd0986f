"""Drawings inside the HTML report: SVG that takes its colours and its width from the page.

Owns the interval track (percent coordinates: text and strokes keep their size at any width), the
chart of a confidence sequence, and bars. Every mark differs in shape, so that none needs colour.
Refuses style: classes only, the page's CSS decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape

TRACK_PX: Final = 34
CHART_PX: Final = 180
_EDGE: Final = 0.96  # of the half track; beyond it an interval is cut and ends in an arrow
_NICE: Final = (1.0, 2.0, 4.0, 5.0, 6.0, 8.0, 10.0)
_CLIPPED: Final = 8.0  # a sequence this many times wider than the interval is cut
_LABEL_PX: Final = 15  # between two labels at the end of a chart


@dataclass(frozen=True, slots=True)
class Marks:
    """What a track shows, in the metric's unit; None is left out. clear: 0 is excluded."""

    difference: float | None
    ci: tuple[float, float] | None
    cs: tuple[float, float] | None
    clear: bool


@dataclass(frozen=True, slots=True)
class Look:
    """One point of a chart. at: Position on the horizontal axis, 0..1."""

    at: float
    difference: float
    cs: tuple[float, float] | None


def reach(rows: Sequence[Marks]) -> float:
    """Half-width of the axis that several tracks share, a round number; 0 is in the middle."""
    inner = [abs(x) for row in rows for x in (row.difference, *(row.ci or ())) if x is not None]
    outer = [abs(x) for row in rows for x in row.cs or ()]
    core = max(inner, default=0.0)
    most = max([core, *outer])
    if core > 0 and most > _CLIPPED * core:
        most = _CLIPPED * core
    return nice(most) if most > 0 else 1.0


def nice(least: float) -> float:
    """The smallest round number >= least (> 0) whose half is round, too."""
    base = 10.0 ** math.floor(math.log10(least))
    return next((f * base for f in _NICE if f * base >= least * (1 - 1e-9)), 10.0 * base)


def track(marks: Marks, most: float, *, title: str, desc: str) -> Markup:
    """Interval (thick bar), sequence (line with ends) and difference (diamond) about 0."""
    parts = []
    if marks.cs is not None:
        parts.append(_whiskers(marks.cs, most))
    if marks.ci is not None:
        low, high = (_x(end, most) for end in marks.ci)
        width = max(high - low, 0.3)
        parts.append(f'<rect class="ci" x="{low:.2f}%" width="{width:.2f}%" y="-4" height="8"/>')
    if marks.difference is not None:
        kind = "point clear" if marks.clear else "point"
        parts.append(_mark(_x(marks.difference, most), kind, "M0-7 7 0 0 7-7 0z"))
    zero = '<line class="zero" x1="50%" x2="50%" y1="0" y2="100%"/>'
    inside = f'{zero}<svg y="50%" overflow="visible">{"".join(parts)}</svg>'
    return _svg("track", TRACK_PX, inside, title, desc)


def axis(most: float, labels: Sequence[str]) -> Markup:
    """Five labels under tracks, at -most, -most/2, 0, most/2, most."""
    places = [(-1, "start"), (-0.5, "middle"), (0, "middle"), (0.5, "middle"), (1, "end")]
    drawn = []
    for (place, anchor), label in zip(places, labels, strict=True):
        x = 50 + 50 * _EDGE * place
        half = ' class="half"' if abs(place) == 0.5 else ""
        drawn.append(
            f'<line class="tick" x1="{x:.4g}%" x2="{x:.4g}%" y1="0" y2="4"/>'
            f'<text{half} x="{x:.4g}%" y="16" text-anchor="{anchor}">{escape(label)}</text>'
        )
    inside = "".join(drawn)
    return _safe(f'<svg class="axis" width="100%" height="20" aria-hidden="true">{inside}</svg>')


def bar(share: float, expected: float | None, *, title: str, desc: str, hollow: bool) -> Markup:
    """A bar from 0 of a share of the width; a thick tick where it was expected to end."""
    kind = "bar hollow" if hollow else "bar"
    width = 100 * min(max(share, 0.0), 1.0)
    parts = f'<rect class="{kind}" x="0.5" width="{width:.2f}%" y="3" height="14"/>'
    if expected is not None:
        x = 100 * min(max(expected, 0.0), 1.0)
        parts += f'<line class="expected" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="20"/>'
    return _svg("share", 20, parts, title, desc)


def span(looks: Sequence[Look]) -> tuple[float, float]:
    """Lowest and highest value of a chart: 0 and what the last two thirds of the looks say.

    A sequence is very wide at first; what of it is beyond the axis is cut.
    """
    values = [0.0]
    for look in looks:
        if look.at >= 1 / 3:
            values += [look.difference, *(look.cs or ())]
    low, high = min(values), max(values)
    if low == high:
        low, high = (
            min(0.0, *(k.difference for k in looks)),
            max(0.0, *(k.difference for k in looks)),
        )
    pad = (high - low) * 0.06 or 1.0
    return low - pad, high + pad


def ticks(low: float, high: float) -> list[float]:
    """Two to five round values within [low, high], 0 among them if it is inside."""
    raw = (high - low) / 4
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(f * base for f in (1, 2, 2.5, 5, 10) if f * base >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [step * k for k in range(first, math.floor(high / step + 1e-9) + 1)]


def chart(
    looks: Sequence[Look],
    window: tuple[float, float],
    labels: Sequence[tuple[float, str]],
    ends: Sequence[tuple[float, str]],
    *,
    since: float | None,
    title: str,
    desc: str,
) -> Markup:
    """A sequence over its looks: band between its ends, line of the difference, line at 0.

    Args:
        looks: At least one, in order.
        window: Lowest and highest value shown.
        labels: (value, text) at the left; their lines cross the chart.
        ends: (value, text) at the right, beside the last look; the first is emphasised.
        since: Where, in 0..1, the sequence has left 0 for good; None: it has not.
        title: For who does not see it, like
        desc: the longer text.
    """
    left, lines = "", ""
    for value, text in labels:
        y = _y(value, window)
        left += f'<text x="100%" dx="-6" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
        kind = "zero" if value == 0 else "grid"
        lines += f'<line class="{kind}" x1="0" x2="1000" y1="{y:.1f}" y2="{y:.1f}"/>'
    places = spread([_y(value, window) + 4 for value, _ in ends])
    right = "".join(
        f'<text{" class=strong" if not k else ""} x="6" y="{y:.1f}">{escape(text)}</text>'
        for k, (y, (_, text)) in enumerate(zip(places, ends, strict=True))
    )
    drawn = lines + _band(looks, window) + _line(looks, window)
    if since is not None:
        x = f"{1000 * since:.0f}"
        drawn += f'<line class="since" x1="{x}" x2="{x}" y1="0" y2="{CHART_PX}"/>'
    plot = (
        f'<svg class="plot" role="img" viewBox="0 0 1000 {CHART_PX}" height="{CHART_PX}" '
        f'preserveAspectRatio="none"><title>{escape(title)}</title><desc>{escape(desc)}</desc>'
        f"{drawn}</svg>"
    )
    sides = f'height="{CHART_PX}" aria-hidden="true"'
    return _safe(
        f'<div class="chart"><svg class="scale" {sides}>{left}</svg>{plot}'
        f'<svg class="ends" {sides}>{right}</svg></div>'
    )


def spread(places: Sequence[float]) -> list[float]:
    """Heights of labels, moved apart where they would overlap, kept within the chart."""
    order = sorted(range(len(places)), key=lambda k: places[k])
    heights = [min(max(places[k], 12.0), CHART_PX - 3.0) for k in order]
    for k in range(1, len(heights)):
        heights[k] = max(heights[k], heights[k - 1] + _LABEL_PX)
    beyond = max(0.0, heights[-1] - (CHART_PX - 3.0)) if heights else 0.0
    for k in range(len(heights) - 1, -1, -1):
        most = CHART_PX - 3.0 if k == len(heights) - 1 else heights[k + 1] - _LABEL_PX
        heights[k] = min(heights[k], most) if beyond else heights[k]
    placed = [0.0] * len(places)
    for k, height in zip(order, heights, strict=True):
        placed[k] = height
    return placed


def _x(value: float, most: float) -> float:
    """Percent of the width; what is beyond the axis is put just past its end."""
    return 50 + 50 * _EDGE * min(max(value / most, -1.02), 1.02)


def _whiskers(ends: tuple[float, float], most: float) -> str:
    parts = []
    xs = [_x(end, most) for end in ends]
    parts.append(f'<line class="cs" x1="{xs[0]:.2f}%" x2="{xs[1]:.2f}%" y1="0" y2="0"/>')
    for end, x, arrow in zip(ends, xs, ("M6-5 0 0 6 5", "M-6-5 0 0-6 5"), strict=True):
        if abs(end) > most * (1 + 1e-9):
            parts.append(_mark(x, "cs", arrow))
        else:
            parts.append(f'<line class="cs" x1="{x:.2f}%" x2="{x:.2f}%" y1="-6" y2="6"/>')
    return "".join(parts)


def _mark(x: float, kind: str, path: str) -> str:
    return f'<svg x="{x:.2f}%" overflow="visible"><path class="{kind}" d="{path}"/></svg>'


def _y(value: float, window: tuple[float, float]) -> float:
    low, high = window
    return CHART_PX * (high - value) / (high - low)


def _points(pairs: Sequence[tuple[float, float]], window: tuple[float, float]) -> str:
    """Coordinates, cut at a chart's height beyond it: huge ones would lose the strokes."""
    return " ".join(
        f"{1000 * at:.0f},{min(max(_y(value, window), -CHART_PX), 2 * CHART_PX):.1f}"
        for at, value in pairs
    )


def _band(looks: Sequence[Look], window: tuple[float, float]) -> str:
    low = [(look.at, look.cs[0]) for look in looks if look.cs is not None]
    high = [(look.at, look.cs[1]) for look in looks if look.cs is not None]
    if not low:
        return ""
    return (
        f'<polygon class="band" points="{_points([*high, *low[::-1]], window)}"/>'
        f'<polyline class="edge" points="{_points(high, window)}"/>'
        f'<polyline class="edge" points="{_points(low, window)}"/>'
    )


def _line(looks: Sequence[Look], window: tuple[float, float]) -> str:
    pairs = [(look.at, look.difference) for look in looks]
    return f'<polyline class="line" points="{_points(pairs, window)}"/>'


def _svg(kind: str, height: int, inside: str, title: str, desc: str) -> Markup:
    return _safe(
        f'<svg class="{kind}" role="img" width="100%" height="{height}">'
        f"<title>{escape(title)}</title><desc>{escape(desc)}</desc>{inside}</svg>"
    )


def _safe(drawn: str) -> Markup:
    """Markup made here: numbers, and text that went through `escape`."""
    return Markup(drawn)  # noqa: S704
