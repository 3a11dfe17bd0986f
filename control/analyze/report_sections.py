"""The report's sections beyond the effects: highlights, sample ratio, sequences over time, strata.

Owns what is worth a section and how much of it is shown. Refuses HTML and statistics, like
`report_view`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from control.analyze import report_svg, report_view
from control.analyze.report_numbers import Measure, digits, evidence, probability, setting, whole
from control.analyze.report_view import Group, Notes, Row
from control.analyze.result import Analysis, MetricResult, SampleRatio, Series

OPEN_GROUPS: Final = 6  # where there are more, the rest starts folded
STRATUM_TRACKS: Final = 240  # drawn one by one; where there are more, strata become a table
_CONVERSION: Final = re.compile(r"(^|_)conv|purchas|checkout|signup|sign_up|subscri", re.IGNORECASE)
_REVENUE: Final = re.compile(r"revenue|\barpu\b|\brpu\b|\bgmv\b|spend", re.IGNORECASE)
_RATIO_DOUBT: Final = 0.001  # p below it is called a mismatch, as is usual for sample ratios
HIGHLIGHTS_MOST: Final = 8


@dataclass(frozen=True, slots=True)
class Highlight:
    """A number that people ask for first, of one treatment."""

    what: str
    row: Row
    bars: tuple[tuple[str, str, Markup], ...]  # (arm, value, bar from 0)


@dataclass(frozen=True, slots=True)
class RatioRow:
    """Units of one variant."""

    variant: str
    observed: str
    expected: str
    share: str
    expected_share: str
    bar: Markup


@dataclass(frozen=True, slots=True)
class Ratio:
    """The sample ratio; fits: Neither the test nor the decision speaks against it."""

    fits: bool
    p: str
    e: str
    rows: tuple[RatioRow, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A sequence over its looks."""

    variant: str
    drawing: Markup
    first: str
    last: str
    said: str


@dataclass(frozen=True, slots=True)
class Track:
    """What is known over time of one metric, on one vertical axis."""

    metric: str
    how: Measure
    series: tuple[Series, ...]
    looks: tuple[tuple[report_svg.Look, ...], ...]  # of each series
    window: tuple[float, float]
    labels: tuple[tuple[float, str], ...]
    by: str  # what the horizontal axis is


@dataclass(frozen=True, slots=True)
class Charts:
    """The charts of one metric."""

    metric: str
    by: str  # what the horizontal axis is
    charts: tuple[Chart, ...]
    open: bool


@dataclass(frozen=True, slots=True)
class Matrix:
    """Strata x treatments of one metric: difference and state."""

    title: str
    variants: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    summary: str


@dataclass(frozen=True, slots=True)
class Strata:
    """Effects within strata: drawn (groups) or, where there are many, as tables (matrices)."""

    names: tuple[str, ...]
    groups: tuple[Group, ...]
    matrices: tuple[Matrix, ...]
    ratios: tuple[tuple[str, Ratio], ...]
    notes: tuple[str, ...]


def by_metric(
    results: Sequence[MetricResult], first: object = None
) -> dict[str, list[MetricResult]]:
    """Results of each metric, in their order; the metric called `first` leads."""
    found: dict[str, list[MetricResult]] = {}
    for result in results:
        found.setdefault(result.name, []).append(result)
    if isinstance(first, str) and first in found:
        found = {first: found.pop(first), **found}
    return found


def effects(analysis: Analysis, notes: Notes) -> tuple[Group, ...]:
    """Every metric, its treatments on one axis."""
    metrics = by_metric(analysis.metrics, analysis.source.settings.get("primary"))
    groups = []
    for place, (name, results) in enumerate(metrics.items()):
        how = report_view.measures(results)
        rows = [report_view.row(analysis, r, how, notes, r.variant) for r in results]
        opened = len(metrics) <= 2 * OPEN_GROUPS or place < OPEN_GROUPS
        groups.append(report_view.group(analysis, rows, how, title=name, opened=opened))
    return tuple(groups)


def highlights(groups: Sequence[Group]) -> tuple[Highlight, ...]:
    """Conversion and revenue per user, where metrics are called so."""
    found = []
    for group in groups:
        result = group.rows[0].result
        if result.kind == "proportion" and _CONVERSION.search(result.name):
            what = "Conversion difference"
        elif result.kind in ("mean", "ratio") and _REVENUE.search(result.name):
            what = "Revenue per user" if result.kind == "mean" else "Revenue"
        else:
            continue
        found += [Highlight(what, row, _arm_bars(row)) for row in group.rows]
    return tuple(found[:HIGHLIGHTS_MOST])


def ratio(found: SampleRatio | None, doubted: bool) -> Ratio | None:
    """The sample ratio in words and bars; doubted: A reason of the decision names it."""
    if found is None:
        return None
    units, planned = sum(found.observed.values()), sum(found.expected.values())
    shares = {
        variant: (found.observed.get(variant, 0) / (units or 1), expected / (planned or 1))
        for variant, expected in found.expected.items()
    }
    widest = max((x for pair in shares.values() for x in pair), default=1.0) or 1.0
    rows = []
    for variant, (seen, due) in shares.items():
        apart = min((abs(s - d) for s, d in shares.values() if s != d), default=0.001)
        decimals = min(max(digits(10_000 * apart), 1), 3)
        texts = [f"{100 * share:.{decimals}f}\N{NO-BREAK SPACE}%" for share in (seen, due)]
        bar = report_svg.bar(
            0.97 * seen / widest,
            0.97 * due / widest,
            title=f"{report_view.short(variant, 40)}: {texts[0]} of the units",
            desc=f"expected {texts[1]}",
            hollow=False,
        )
        observed, expected = found.observed.get(variant, 0), found.expected[variant]
        name = report_view.short(variant)
        rows.append(RatioRow(name, whole(observed), whole(expected), texts[0], texts[1], bar))
    against = found.e_value is None or found.e_value >= 1 / _RATIO_DOUBT
    fits = not (doubted or against) and found.p_value >= _RATIO_DOUBT
    return Ratio(fits, probability(found.p_value), evidence(found.e_value), tuple(rows))


def ratio_doubted(analysis: Analysis) -> bool:
    """Whether a reason of the decision names the sample ratio."""
    return any("ratio" in reason.code or "srm" in reason.code for reason in analysis.reasons)


def tracks(analysis: Analysis) -> tuple[Track, ...]:
    """What is known over time, those of a metric on one vertical axis; the primary leads."""
    found: dict[str, list[Series]] = {}
    for series in analysis.series:
        if len(_looks(series)) > 1:
            found.setdefault(series.metric, []).append(series)
    first = analysis.source.settings.get("primary")
    if isinstance(first, str) and first in found:
        found = {first: found.pop(first), **found}
    return tuple(_track(analysis, name, series) for name, series in found.items())


def charts(analysis: Analysis) -> tuple[Charts, ...]:
    """Sequences over time, drawn."""
    found = tracks(analysis)
    return tuple(
        Charts(
            report_view.short(track.metric),
            track.by,
            tuple(
                _chart(track, series, looks)
                for series, looks in zip(track.series, track.looks, strict=True)
            ),
            open=len(found) <= OPEN_GROUPS or place < 2,
        )
        for place, track in enumerate(found)
    )


def strata(analysis: Analysis) -> Strata | None:
    """Effects within each stratum, with that in all units above them."""
    if not analysis.strata:
        return None
    notes = Notes()
    within: dict[tuple[str, str], list[tuple[str, MetricResult]]] = {}
    for stratum in analysis.strata:
        for result in stratum.metrics:
            within.setdefault((result.name, result.variant), []).append((stratum.stratum, result))
    drawn = sum(map(len, within.values())) <= STRATUM_TRACKS
    if not within:
        return None
    return Strata(
        names=tuple(report_view.short(stratum.stratum) for stratum in analysis.strata),
        groups=_stratum_groups(analysis, within, notes) if drawn else (),
        matrices=() if drawn else _matrices(analysis, within),
        ratios=tuple(
            (report_view.short(stratum.stratum), found)
            for stratum in analysis.strata
            if (found := ratio(stratum.srm, doubted=False)) is not None
        ),
        notes=tuple(notes.texts),
    )


def facts(values: Mapping[str, float | int | str | None]) -> tuple[tuple[str, str], ...]:
    """Names and values, as chosen or found."""
    return tuple(
        (report_view.short(name).replace("_", " "), report_view.short(setting(value)))
        for name, value in values.items()
    )


def _arm_bars(row: Row) -> tuple[tuple[str, str, Markup], ...]:
    means = (row.result.control.mean, row.result.treatment.mean)
    least, most = min(x or 0.0 for x in means), max(x or 0.0 for x in means)
    if least < 0 or most <= 0 or None in means:
        return ()
    names = ("control", report_view.short(row.who, 40))
    cells = (row.control.text, row.treatment.text)
    return tuple(
        (name, text, report_svg.bar(mean / most * 0.99, None, title=name, desc=text, hollow=hollow))
        for name, text, mean, hollow in zip(names, cells, means, (True, False), strict=True)
        if mean is not None
    )


def _looks(series: Series) -> list[report_svg.Look]:
    points = [point for point in series.points if point.difference is not None]
    if not points:
        return []
    units = [point.n for point in points]
    by_time = all(point.time is not None for point in points)
    width = (units[-1] - units[0]) or 1
    looks = []
    for place, point in enumerate(points):
        # Times are any text, in order but not at known distances: evenly spaced.
        at = place / max(len(points) - 1, 1) if by_time else (point.n - units[0]) / width
        both = point.cs_low is not None and point.cs_high is not None
        cs = (point.cs_low, point.cs_high) if both else None
        looks.append(report_svg.Look(at, point.difference or 0.0, cs))  # type: ignore[arg-type]
    return looks


def _track(analysis: Analysis, name: str, found: list[Series]) -> Track:
    of_metric = [result for result in analysis.metrics if result.name == name]
    looks = [_looks(series) for series in found]
    how = report_view.measures(of_metric) if of_metric else Measure(False, 4)
    spans = [report_svg.span(each) for each in looks]
    low, high = min(low for low, _ in spans), max(high for _, high in spans)
    marks = report_svg.ticks(low * how.factor, high * how.factor)
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    coarse = Measure(how.share, report_view.decimals_of(step))
    points = [point for series in found for point in series.points]
    by_time = all(point.time is not None for point in points)
    return Track(
        metric=name,
        how=how,
        series=tuple(found),
        looks=tuple(tuple(each) for each in looks),
        window=(low, high),
        labels=tuple((m / how.factor, coarse.bound(m / how.factor) if m else "0") for m in marks),
        by="time" if by_time else "units so far",
    )


def _chart(track: Track, series: Series, looks: Sequence[report_svg.Look]) -> Chart:
    last, how = looks[-1], track.how
    ends = [(last.difference, how.change(last.difference))]
    ends += [(value, how.bound(value)) for value in last.cs or ()]
    since, said = _since(series, looks)
    at_last = how.change(last.difference)
    if last.cs:
        at_last += f" in {how.interval(*last.cs)}"
    first_text, last_text = ends_of(series)
    return Chart(
        variant=report_view.short(series.variant),
        drawing=report_svg.chart(
            looks,
            track.window,
            track.labels,
            ends,
            since=since,
            title=f"{report_view.short(track.metric, 40)}, {report_view.short(series.variant, 40)}",
            desc=f"At the last look {at_last}. {said}",
        ),
        first=first_text,
        last=last_text,
        said=said,
    )


def ends_of(series: Series) -> tuple[str, str]:
    """What stands under the first and the last look: times, or units so far."""
    points = [point for point in series.points if point.difference is not None]
    first, last = (
        _time(point.time) if point.time is not None else whole(point.n)
        for point in (points[0], points[-1])
    )
    return first, last


def _since(series: Series, looks: Sequence[report_svg.Look]) -> tuple[float | None, str]:
    """From which place on the sequence excludes 0, and in words."""
    points = [point for point in series.points if point.difference is not None]
    since = None
    for point, look in zip(points, looks, strict=True):
        out = look.cs is not None and not look.cs[0] <= 0 <= look.cs[1]
        since = (since or (look.at, point)) if out else None
    if since is None:
        ever = any(k.cs is not None and not k.cs[0] <= 0 <= k.cs[1] for k in looks)
        if ever:
            return None, "It excluded 0 at a look, but not at the last."
        return None, "It includes 0 at every look."
    at, point = since
    when = "" if point.time is None else f", {_time(point.time)}"
    return at, f"It excludes 0 from {whole(point.n)} units on{when}."


def _time(text: str) -> str:
    """An ISO 8601 time without what is 0 in it; any other text as it is."""
    day, parted, hour = text.partition("T")
    if not parted:
        return report_view.short(text, 24)
    hour = hour.removesuffix("+00:00").removesuffix("Z").removesuffix(":00")
    return report_view.short(day if hour == "00:00" else f"{day} {hour}", 24)


def _stratum_groups(
    analysis: Analysis,
    within: Mapping[tuple[str, str], list[tuple[str, MetricResult]]],
    notes: Notes,
) -> tuple[Group, ...]:
    several = len({variant for _, variant in within}) > 1
    overall = {(result.name, result.variant): result for result in analysis.metrics}
    groups = []
    for place, ((name, variant), results) in enumerate(within.items()):
        how = report_view.measures([result for _, result in results])
        rows = [report_view.row(analysis, r, how, notes, stratum) for stratum, r in results]
        whole_effect = overall.get((name, variant))
        if whole_effect is not None:
            rows.insert(0, report_view.row(analysis, whole_effect, how, notes, "all units"))
        aside = variant if several else ""
        opened = len(within) <= OPEN_GROUPS or place < 2
        made = report_view.group(analysis, rows, how, title=name, aside=aside, opened=opened)
        groups.append(made)
    return tuple(groups)


def _matrices(
    analysis: Analysis, within: Mapping[tuple[str, str], list[tuple[str, MetricResult]]]
) -> tuple[Matrix, ...]:
    variants = tuple(dict.fromkeys(variant for _, variant in within))
    matrices = []
    for name in dict.fromkeys(metric for metric, _ in within):
        cells = {
            (stratum, variant): result
            for variant in variants
            for stratum, result in within.get((name, variant), ())
        }
        how = report_view.measures(cells.values())
        unread = Notes()
        rows = {
            key: report_view.row(analysis, result, how, unread, key[1])
            for key, result in cells.items()
        }
        lines = []
        for stratum in dict.fromkeys(stratum for stratum, _ in cells):
            line = []
            for variant in variants:
                found = rows.get((stratum, variant))
                text = report_view.DASH if found is None else found.difference.text
                line.append(text if found is None else f"{text} {found.state.symbol}")
            lines.append((report_view.short(stratum), tuple(line)))
        states = [made.state for made in rows.values()]
        shown = tuple(report_view.short(variant, 40) for variant in variants)
        matrices.append(
            Matrix(report_view.short(name), shown, tuple(lines), report_view.summary(states))
        )
    return tuple(matrices)
