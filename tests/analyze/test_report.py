"""The HTML report as text: what it says, and that it stands alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from control.analyze import report_numbers, report_svg, report_view
from control.analyze.report import notebook_html, to_html, write_html
from control.analyze.result import Analysis
from control.stats.verdicts import Kind
from tests.analyze import reportworlds
from tests.analyze.reportworlds import WORLDS

VOID = {"meta", "br", "link", "img"}
LOADING = ("src", "href", "srcset", "data", "action", "poster", "xlink:href", "background")
NARROW = "\N{NARROW NO-BREAK SPACE}"
SOLID = "\N{NO-BREAK SPACE}"
TIMES = "\N{MULTIPLICATION SIGN}"


class Page(HTMLParser):
    """Elements, attributes and text; `unclosed` and `crossed` name what is not well nested."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.unclosed: list[str] = []
        self.crossed: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.unclosed.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.unclosed or self.unclosed.pop() != tag:
            self.crossed.append(tag)

    def handle_data(self, data: str) -> None:
        if not self.unclosed or self.unclosed[-1] != "style":
            self.said.append(data)

    @property
    def text(self) -> str:
        """All text but styles, spaces as they are read."""
        return re.sub(r"[ \n]+", " ", "".join(self.said))


@pytest.mark.parametrize("render", [to_html, notebook_html])
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_report_stands_alone_and_is_well_formed(
    world: Callable[[], Analysis], render: Callable[[Analysis], str]
) -> None:
    html = render(world())
    page = Page(html)
    assert page.crossed == page.unclosed == []
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in LOADING:
            assert (attributes.get(name) or "#").startswith("#")
    styles = "".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))
    assert not re.search(r"url\(|@import|@font-face", styles)


@pytest.mark.parametrize("world", [w for n, w in WORLDS.items() if n != "absurd"])
def test_report_has_no_address_at_all(world: Callable[[], Analysis]) -> None:
    assert not re.search(r"https?:|//\w", to_html(world()))


def test_report_shows_names_as_text_when_they_are_markup_or_templates() -> None:
    page = Page(to_html(reportworlds.absurd()))
    assert "<script>alert('x')</script>" in page.text
    assert "{{ 7*7 }}" in page.text
    assert "49" not in re.findall(r"\b\d+\b", page.text)
    assert "\x00" not in page.text
    page.text.encode()  # a lone surrogate could not be written


def test_report_says_the_decision_first() -> None:
    page = Page(to_html(reportworlds.usual()))
    heading = [tag for tag, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert heading[0] == "h1"
    assert heading.count("h1") == 1
    first, _, rest = page.text.partition("it is better than control.")
    assert first.endswith("Promote new-checkout: ")
    assert rest


@pytest.mark.parametrize("kind", list(Kind))
def test_report_has_a_sentence_for_every_verdict(kind: Kind) -> None:
    one = replace(reportworlds.usual(), decision=kind.value)
    assert kind.value in report_view.DECISIONS
    assert report_view.sentence(one).endswith(".")
    assert "{" not in report_view.sentence(one)


def test_report_says_every_number_of_a_metric() -> None:
    text = Page(to_html(reportworlds.usual())).text
    for said in ("11.12 %", "12.51 %", "n 10,000", "n 9,963", "+1.39 pp", "0.31 pp", "+12.5 %"):
        assert said.replace(" ", SOLID) in text or said in text, said
    assert f"[+0.78, +2.00]{SOLID}pp" in text
    assert f"[+0.43, +2.35]{SOLID}pp" in text
    assert f"7.3{NARROW}{TIMES}{NARROW}10⁻⁶" in text


def test_report_highlights_conversion_and_revenue_per_user() -> None:
    text = Page(to_html(reportworlds.usual())).text
    assert "Conversion difference" in text
    assert "Revenue per user" in text
    assert "Conversion difference" not in Page(to_html(reportworlds.single())).text


def test_report_says_why_a_number_is_missing() -> None:
    page = Page(to_html(reportworlds.broken()))
    assert "an arm has no unit with a value" in page.text
    assert "an arm has only one unit" in page.text
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split()


def test_report_says_that_the_split_is_not_as_expected() -> None:
    text = Page(to_html(reportworlds.broken())).text
    assert "The split is not as it was expected" in text
    assert f"3.1{NARROW}{TIMES}{NARROW}10⁻⁴¹" in text
    assert "The split is as it was expected." in Page(to_html(reportworlds.usual())).text
    assert "Not checked: nobody said" in Page(to_html(reportworlds.single())).text


def test_report_describes_every_drawing() -> None:
    html = to_html(reportworlds.usual())
    drawings = re.findall(r'<svg[^>]*role="img".*?</title>', html)
    assert len(drawings) == html.count('role="img"')
    assert html.count("<desc>") == len(drawings)


def test_report_says_from_when_on_a_sequence_excludes_zero() -> None:
    text = Page(to_html(reportworlds.usual())).text
    assert "It excludes 0 from 13,475 units on, 2026-03-14 12:00." in text
    assert "It includes 0 at every look." in text


def test_report_is_small_when_the_analysis_is_usual() -> None:
    assert len(to_html(reportworlds.usual()).encode()) < 100_000
    assert len(notebook_html(reportworlds.usual()).encode()) < 30_000


def test_report_shows_every_stratum_when_there_are_thousands() -> None:
    html = to_html(reportworlds.huge())
    assert len(html.encode()) < 4_000_000
    assert html.count("stratum 15</bdi></th>") == 60


def test_report_is_the_same_when_written_again(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_html(reportworlds.usual(), path)
    assert path.read_text(encoding="utf-8") == to_html(reportworlds.usual())


def test_notebook_fragment_is_no_document_and_says_what_it_leaves_out() -> None:
    html = reportworlds.huge()._repr_html_()
    assert "<html" not in html
    assert "<body" not in html
    assert "and 55 more metrics: see the report." in Page(html).text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0312, "0.031"),
        (0.5, "0.50"),
        (0.00012, "0.00012"),
        (3e-9, f"3.0{NARROW}{TIMES}{NARROW}10⁻⁹"),
        (0.0, f"<{NARROW}10⁻³⁰⁰"),
        (0.999, f">{NARROW}0.99"),
        (1.0, "1"),
    ],
)
def test_p_values_have_two_digits_and_are_never_zero(value: float, text: str) -> None:
    assert report_numbers.probability(value) == text


@pytest.mark.parametrize(
    ("kind", "error", "value", "text"),
    [
        ("proportion", 0.0034, 0.0123456, f"+1.23{SOLID}pp"),
        ("mean", 12_345.0, -123_456.7, "\N{MINUS SIGN}123,457"),
        ("mean", 0.4, 1e9 + 0.26, "+1,000,000,000.26"),
        ("mean", 1e-9, 1.23e-7, f"+1.230{NARROW}{TIMES}{NARROW}10⁻⁷"),
        ("mean", 0.5, -0.0001, "0.00"),
        ("mean", None, 0.0123456, "+0.01235"),
    ],
)
def test_differences_have_the_digits_of_their_error(
    kind: str, error: float | None, value: float, text: str
) -> None:
    assert report_numbers.measure(kind, error, (value,)).change(value) == text


def test_labels_at_the_end_of_a_chart_never_overlap() -> None:
    for places in ([90.0, 91.0, 92.0], [-50.0, -40.0, 5.0], [500.0, 400.0, 170.0], [3.0]):
        spread = sorted(report_svg.spread(places))
        assert all(b - a >= 14.9 for a, b in pairwise(spread))
        assert all(10 <= place <= report_svg.CHART_PX for place in spread)


def test_scales_are_round_and_hold_what_they_show() -> None:
    for value in (1e-9, 0.0031, 0.7, 1.0, 7.4, 999.0, 3e12):
        most = report_svg.nice(value)
        assert value <= most * (1 + 1e-9) <= 2.1 * value
    marks = report_svg.Marks(1.0, (0.5, 1.5), (-90.0, 92.0), clear=False)
    assert report_svg.reach([marks]) <= 20  # an endless sequence does not hide the interval
    assert "M6-5 0 0 6 5" in report_svg.track(marks, 12.0, title="t", desc="d")
