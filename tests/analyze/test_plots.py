"""Plots of analyses as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from control.analyze import plots
from control.analyze.result import Analysis
from tests.analyze import reportworlds
from tests.analyze.reportworlds import WORLDS

MAGIC = {".png": b"\x89PNG\r\n", ".svg": b"<?xml", ".pdf": b"%PDF-"}


def texts(figure: Figure) -> list[str]:
    """Every text of a figure."""
    found = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        found += [text.get_text() for text in (*axes.texts, *axes.get_yticklabels())]
    return found


@pytest.mark.parametrize("suffix", plots.SUFFIXES)
def test_plot_has_the_form_of_its_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"plot{suffix.upper()}"
    plots.write_plot(reportworlds.usual(), path)
    assert path.read_bytes().startswith(MAGIC[suffix])


@pytest.mark.parametrize("suffix", plots.SUFFIXES)
def test_plot_is_the_same_bytes_when_written_again(tmp_path: Path, suffix: str) -> None:
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    for path in (first, second):
        plots.write_plot(reportworlds.single(), path)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", ["plot.jpeg", "plot", "plot.html", ".png"])
def test_plot_names_the_allowed_suffixes_when_it_knows_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"must be one of \.png, \.svg, \.pdf"):
        plots.write_plot(reportworlds.usual(), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_plot_is_drawn_of_any_analysis(tmp_path: Path, world: Callable[[], Analysis]) -> None:
    """Names that are formulas, have no glyphs or no end; no metric; more than a page holds."""
    path = tmp_path / "plot.png"
    plots.write_plot(world(), path)
    assert path.stat().st_size > 10_000


def test_plot_says_decision_values_and_sides() -> None:
    found = texts(plots.draw(reportworlds.usual()))
    assert "Promote new-checkout: it is better than control." in found
    assert (
        "+1.39\N{NO-BREAK SPACE}pp  ▲ higher, better\n[+0.43, +2.35]\N{NO-BREAK SPACE}pp" in found
    )
    assert "← lower, better" in found  # of the latency


def test_plot_says_what_it_leaves_out_when_there_is_more_than_fits() -> None:
    found = texts(plots.draw(reportworlds.huge()))
    assert "56 more metrics are in the report and the JSON." in found
    assert any("5 more are in the report" in text for text in found)
