"""What the report shows, ready to be placed: words, cells, groups, drawings.

Owns the words of the decision, which number stands where, and why one is missing. Refuses HTML
(the templates have it) and statistics: every number comes from the analysis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from markupsafe import Markup

from control.analyze import report_svg
from control.analyze.report_numbers import Measure, decimal, measure, percent, probability, whole
from control.analyze.result import Analysis, Arm, MetricResult

TEXT_MOST: Final = 600  # of a reason or a warning
NAME_MOST: Final = 80  # characters of a name that are shown where it stands in line
DASH: Final = "\N{EN DASH}"
UNSAID: Final = "cannot be said"
_LOWER: Final = frozenset(("lower", "lower_is_better"))

# Verdict -> (word on the badge, tone, sentence); {t}: treatment, {c}: control.
DECISIONS: Final[Mapping[str, tuple[str, str, str]]] = {
    "PROMOTE": ("Promote", "good", "Promote {t}: it is better than {c}."),
    "ROLLBACK": ("Roll back", "bad", "Take {t} back: it does harm compared with {c}."),
    "INVALID": ("Invalid", "bad", "Do not use this comparison: it is not a fair one."),
    "WARMING_UP": ("Too early", "wait", "Too early to say: there are too few data on {t} and {c}."),
    "HOLD": ("Hold", "wait", "Hold: something speaks against promoting {t} now."),
    "KEEP_CONTROL_WORSE": ("Keep control", "bad", "Keep {c}: {t} is worse."),
    "KEEP_CONTROL_FUTILE": (
        "Keep control",
        "wait",
        "Keep {c}: {t} cannot reach the improvement that was asked for.",
    ),
    "NO_DIFFERENCE": ("No difference", "wait", "No difference that matters between {t} and {c}."),
    "CONTINUE": ("Go on", "wait", "Go on: the data do not decide between {t} and {c} yet."),
    "INCONCLUSIVE": (
        "Undecided",
        "wait",
        "Undecided: these data do not decide between {t} and {c}.",
    ),
}
_KINDS: Final[Mapping[str, str]] = {
    "proportion": "share of units",
    "mean": "mean per unit",
    "ratio": "ratio of sums",
    "quantile": "quantile",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a sentence; name: It came from the data and is set apart."""

    text: str
    name: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in a table's cell; note: Number of the footnote that says why it is a dash."""

    text: str
    note: int | None = None


@dataclass(slots=True)
class Notes:
    """Footnotes of one section, each said once."""

    texts: list[str] = field(default_factory=list)

    def missing(self, why: str) -> Cell:
        """A dash that points to its reason."""
        if why not in self.texts:
            self.texts.append(why)
        return Cell(DASH, self.texts.index(why) + 1)


@dataclass(frozen=True, slots=True)
class State:
    """What the governing interval says, as shape and word; tone is never the only bearer."""

    symbol: str
    word: str
    tone: str


@dataclass(frozen=True, slots=True)
class Row:
    """One metric of one treatment (in one stratum, or in all units)."""

    who: str
    result: MetricResult
    control: Cell
    treatment: Cell
    difference: Cell
    relative: Cell
    error: Cell
    ci: Cell
    cs: Cell
    p: Cell
    always_p: Cell
    interval: Cell  # the governing one of ci and cs
    state: State
    marks: report_svg.Marks


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that share a metric, and so an axis."""

    title: str
    aside: str  # the treatment, where rows are strata
    kind: str
    direction: str  # "", "higher" or "lower": which is better
    primary: bool
    rows: tuple[Row, ...]
    summary: str
    tracks: tuple[Markup, ...]
    labels: tuple[str, ...]  # of the scale: low, half of it, 0, half of high, high
    axis: Markup
    sides: tuple[str, str]
    open: bool


def clean(text: str) -> str:
    """A name that can be written: control characters and lone surrogates made visible."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if c < " " or "\x7f" <= c < "\xa0" or "\ud800" <= c <= "\udfff"
        else c
        for c in text
    )


def short(text: str, most: int = NAME_MOST) -> str:
    """A name in at most so many characters: the middle gives way, as names differ at their ends."""
    text = clean(text) or "(empty)"
    if len(text) <= most:
        return text
    head = (most - 1) * 2 // 3
    return text[:head] + "…" + text[len(text) - (most - 1 - head) :]


def treatment_of(analysis: Analysis) -> str | None:
    """Whom the decision is about; None: several treatments, and no reason names one."""
    treatments = [v for v in analysis.source.variants if v != analysis.source.control]
    if len(treatments) == 1:
        return treatments[0]
    named = [reason.values.get("variant") for reason in analysis.reasons]
    return next((name for name in named if isinstance(name, str)), None)


def decision(analysis: Analysis) -> tuple[str, str, list[Piece]]:
    """(badge, tone, the plain sentence in pieces)."""
    known = DECISIONS.get(analysis.decision)
    if known is None:
        word = analysis.decision.replace("_", " ").capitalize()
        return word, "wait", [Piece(f"{word}.")]
    badge, tone, sentence = known
    names = {"c": analysis.source.control, "t": treatment_of(analysis)}
    pieces: list[Piece] = []
    for part in sentence.replace("{", "\0").replace("}", "\0").split("\0"):
        name = names.get(part, part)
        if part not in names:
            pieces.append(Piece(part))
        elif name is None:
            pieces.append(Piece("the treatments"))
        else:
            pieces.append(Piece(short(name), name=True))
    return badge, tone, pieces


def sentence(analysis: Analysis) -> str:
    """The decision as plain text."""
    return "".join(piece.text for piece in decision(analysis)[2])


def level(analysis: Analysis) -> str:
    """Of the intervals, such as 95 %; "" where the analysis does not say."""
    alpha = analysis.source.settings.get("alpha")
    if not isinstance(alpha, int | float) or not 0 < alpha < 1:
        return ""
    return f"{100 * (1 - alpha):.6g}\N{NO-BREAK SPACE}%"


def fixed(analysis: Analysis) -> bool:
    """Whether one look was decided beforehand, so that intervals and not sequences govern."""
    return analysis.source.settings.get("method") == "fixed"


def direction(analysis: Analysis, metric: str) -> str:
    """Which is better, "higher" or "lower"; "" where the analysis does not say."""
    chosen = analysis.source.settings.get(f"direction {metric}")
    if not isinstance(chosen, str):
        return ""
    return "lower" if chosen in _LOWER else "higher"


def kind_words(kind: str) -> str:
    """What kind of number it is."""
    return _KINDS.get(kind, clean(kind).replace("_", " "))


def measures(results: Iterable[MetricResult]) -> Measure:
    """One way to write all rows of a metric: digits of the smallest error."""
    rows = list(results)
    errors = [row.standard_error for row in rows if row.standard_error]
    sizes = [x for row in rows for x in (row.difference, row.control.mean, row.treatment.mean)]
    return measure(rows[0].kind, min(errors, default=None), tuple(sizes))


def row(analysis: Analysis, result: MetricResult, how: Measure, notes: Notes, who: str) -> Row:
    """All cells of one result."""
    few = _few(result)
    one_look = few or "no spread in the data, or no interval is defined for this kind of metric"
    any_look = "only a fixed look was asked for" if fixed(analysis) else few
    any_look = any_look or "no spread in the data, or too few units for a confidence sequence"
    ci, cs = _ends(result.ci_low, result.ci_high), _ends(result.cs_low, result.cs_high)
    relative, base = result.relative, result.control.mean
    error = result.standard_error
    told = error / abs(base) if error is not None and base else None
    ci_cell = Cell(how.interval(*ci)) if ci else notes.missing(one_look)
    cs_cell = Cell(how.interval(*cs)) if cs else notes.missing(any_look)
    governing = ci if fixed(analysis) else cs
    state = _state(governing, direction(analysis, result.name))
    return Row(
        who=who,
        result=result,
        control=_mean(result.control, how, notes),
        treatment=_mean(result.treatment, how, notes),
        difference=Cell(how.change(result.difference))
        if result.difference is not None
        else notes.missing(few or "one of the arms has no value"),
        relative=Cell(percent(relative, told))
        if relative is not None
        else notes.missing("control's value is 0, or not told apart from 0"),
        error=Cell(_error(error, how)) if error is not None else notes.missing(one_look),
        ci=ci_cell,
        cs=cs_cell,
        p=_p(result.p_value, few or "no test is defined here, or no spread in the data", notes),
        always_p=_p(result.always_valid_p, any_look, notes),
        interval=_governing_cell(ci_cell, cs_cell, fixed(analysis)),
        state=state,
        marks=report_svg.Marks(result.difference, ci, cs, state.tone != "wait"),
    )


def group(
    analysis: Analysis,
    rows: Sequence[Row],
    how: Measure,
    *,
    title: str,
    aside: str = "",
    opened: bool,
) -> Group:
    """Rows on one axis."""
    first = rows[0].result
    better = direction(analysis, first.name)
    most = report_svg.reach([row.marks for row in rows])
    coarse = Measure(how.share, decimals_of(most * how.factor / 2))
    labels = [coarse.bound(most * place) for place in (-1, -0.5, 0, 0.5, 1)]
    labels[2] = "0"
    unit = "\N{NO-BREAK SPACE}pp" if how.share else ""
    labels[-1] += unit
    return Group(
        title=short(title),
        aside=short(aside) if aside else "",
        kind=kind_words(first.kind),
        direction=better,
        primary=analysis.source.settings.get("primary") == first.name,
        rows=tuple(rows),
        summary=summary([row.state for row in rows]),
        tracks=tuple(_track(row, most) for row in rows),
        labels=tuple(labels),
        axis=report_svg.axis(most, labels),
        sides=_sides(better),
        open=opened,
    )


def summary(states: Sequence[State]) -> str:
    """What rows say together: "2 higher, 1 not told apart"."""
    words = [state.word for state in states]
    if len(words) == 1:
        return f"{states[0].symbol} {words[0]}"
    return ", ".join(
        f"{next(s.symbol for s in states if s.word == word)} {words.count(word)} {word}"
        for word in dict.fromkeys(words)
    )


def decimals_of(step: float) -> int:
    """Decimals that a round step of a scale needs, 0..12."""
    for decimals in range(12):
        if abs(step - round(step, decimals)) <= 1e-9 * abs(step):
            return decimals
    return 12


def _state(ends: tuple[float, float] | None, better: str) -> State:
    if ends is None:
        return State(DASH, UNSAID, "wait")
    low, high = ends
    if low <= 0 <= high:
        return State("○", "not told apart", "wait")
    up = low > 0
    symbol, word = ("▲", "higher") if up else ("▼", "lower")
    if not better:
        return State(symbol, word, "seen")
    good = up == (better == "higher")
    return State(symbol, f"{word}, {'better' if good else 'worse'}", "good" if good else "bad")


def _governing_cell(ci: Cell, cs: Cell, one_look: bool) -> Cell:
    if one_look or cs.note is None:
        return ci if one_look else cs
    return cs if ci.note is not None else Cell(f"{ci.text} at one look")


def _sides(better: str) -> tuple[str, str]:
    if not better:
        return "lower than control", "higher than control"
    good, bad = "better", "worse"
    left, right = (bad, good) if better == "higher" else (good, bad)
    return f"lower, {left}", f"higher, {right}"


def _track(row: Row, most: float) -> Markup:
    said = [f"difference {row.difference.text}"]
    if row.marks.ci:
        said.append(f"interval at one look {row.ci.text}")
    if row.marks.cs:
        said.append(f"sequence {row.cs.text}")
    title = f"{short(row.result.name, 40)}, {short(row.who, 40)}: {row.state.word}"
    return report_svg.track(row.marks, most, title=title, desc="; ".join(said))


def _mean(arm: Arm, how: Measure, notes: Notes) -> Cell:
    if arm.mean is not None:
        return Cell(how.value(arm.mean))
    return notes.missing("the arm has no unit with a value" if not arm.n else "no value")


def _error(error: float, how: Measure) -> str:
    return decimal(error * how.factor, how.decimals) + ("\N{NO-BREAK SPACE}pp" if how.share else "")


def _p(value: float | None, why: str, notes: Notes) -> Cell:
    return Cell(probability(value)) if value is not None else notes.missing(why)


def _few(result: MetricResult) -> str:
    """Why nothing can be computed from so few units, or ""."""
    least = min(result.control.n, result.treatment.n)
    if least == 0:
        return "an arm has no unit with a value"
    return "an arm has only one unit" if least == 1 else ""


def _ends(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def counted(arm: Arm) -> str:
    """Units of an arm."""
    return whole(arm.n)
