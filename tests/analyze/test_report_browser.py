"""The HTML report as a person sees it: in Chromium, on a desk and on a phone, by day and by night.

Needs Debian's Chromium, which `make tools` installs; without it these tests fail.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib.image
import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Page, sync_playwright

from control.analyze.report import notebook_html, write_html
from tests.analyze.reportworlds import WORLDS, usual

Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
WIDTHS = (1280, 390)
CONTRAST_LEAST = 4.5  # WCAG 2.2, 1.4.3, level AA

# Colours of every text that is seen against what is behind it; SVG text is filled, not coloured.
CONTRASTS = """() => {
  const parse = c => { const p = c.match(/[\\d.]+/g).map(Number)
    return [...p.slice(0, 3), p[3] ?? 1] }
  const over = (a, b) => [0, 1, 2].map(k => a[k] * a[3] + b[k] * (1 - a[3])).concat(1)
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => { v /= 255
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 })
    return 0.2126 * r + 0.7152 * g + 0.0722 * b }
  const behind = e => { const stack = []
    for (let at = e; at; at = at.parentElement)
      stack.push(parse(getComputedStyle(at).backgroundColor))
    return stack.reverse().reduce((under, c) => over(c, under), [255, 255, 255, 1]) }
  const found = {}
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement
    if (!walk.currentNode.data.trim() || !e.checkVisibility()) continue
    if (['title', 'desc', 'STYLE'].includes(e.tagName)) continue
    const style = getComputedStyle(e), svg = e instanceof SVGElement
    const back = behind(e), ink = over(parse(svg ? style.fill : style.color), back)
    const [low, high] = [light(ink), light(back)].sort((a, b) => a - b)
    const ratio = (high + 0.05) / (low + 0.05)
    const key = `${e.tagName}.${e.getAttribute('class') ?? ''}`
    const text = walk.currentNode.data.slice(0, 40)
    if (!(found[key]?.ratio < ratio)) found[key] = { ratio, text }
  }
  return found
}"""
# Text that sticks out of the page, or out of a box that does not scroll.
OUTSIDE = """() => [...document.querySelectorAll('main *')].filter(e => {
  if (e.closest('.scroll, .plot') || !e.checkVisibility()) return false
  const box = e.getBoundingClientRect()
  return box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5)
}).map(e => `${e.tagName} ${e.getAttribute('class')} ${e.textContent.slice(0, 40)}`)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests here."""
    chromium = shutil.which("chromium")
    assert chromium is not None, "these tests look at pages in Chromium: run `make tools` first"
    with sync_playwright() as playwright:
        # Root has no sandbox in a container; nothing but our own files is opened.
        options = ["--no-sandbox", "--disable-background-networking", "--disable-dev-shm-usage"]
        with playwright.chromium.launch(executable_path=chromium, args=options) as launched:
            yield launched


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of each world."""
    folder = tmp_path_factory.mktemp("reports")
    for name, world in WORLDS.items():
        write_html(world(), folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in WORLDS}


@contextmanager
def opened(browser: Browser, path: Path, width: int, scheme: Scheme) -> Iterator[Page]:
    """A page in a window; it may neither complain nor ask for anything but itself."""
    size: Any = {"width": width, "height": 844}
    context = browser.new_context(viewport=size, color_scheme=scheme)
    try:
        page, said, asked = context.new_page(), [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        yield page
        assert said == []
        assert asked == [path.as_uri()]
    finally:
        context.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("world", WORLDS)
def test_report_is_seen_whole(
    browser: Browser,
    reports: dict[str, Path],
    tmp_path: Path,
    world: str,
    width: int,
    scheme: Scheme,
) -> None:
    """No sideways scrolling, no faint text, no complaint, no request, in any window."""
    with opened(browser, reports[world], width, scheme) as page:
        if world != "huge":
            page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        page.screenshot(path=tmp_path / "seen.png", full_page=world not in ("huge", "absurd"))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(OUTSIDE) == []
        found = page.evaluate(CONTRASTS)
        faint = {key: at for key, at in found.items() if at["ratio"] < CONTRAST_LEAST}
        assert len(found) > 5
        assert not faint
        dark = (
            page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        )
        assert dark == (scheme == "dark")
    assert matplotlib.image.imread(tmp_path / "seen.png").shape[1] == width


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("world", ["usual", "broken", "absurd", "single", "empty"])
def test_report_breaks_no_rule_of_accessibility(
    browser: Browser, reports: dict[str, Path], world: str, scheme: Scheme
) -> None:
    with opened(browser, reports[world], 390, scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        # The rules are brought in by a script, which the report's own policy forbids to pages.
        results = Axe().run(page)
        assert results.violations_count == 0, results.generate_report()


def test_report_prints_what_is_folded(browser: Browser, reports: dict[str, Path]) -> None:
    with opened(browser, reports["usual"], 1280, "dark") as page:
        folded = (
            "document.querySelector('details:not([open]) table').getBoundingClientRect().height"
        )
        page.emulate_media(media="print")
        assert page.evaluate(folded) > 0
        white = "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == white
        assert page.pdf(format="A4").startswith(b"%PDF-")


def test_report_tells_marks_apart_without_colour(
    browser: Browser, reports: dict[str, Path]
) -> None:
    """A clear difference is filled and an unclear one hollow, also in black and white."""
    with opened(browser, reports["usual"], 1280, "light") as page:
        page.add_style_tag(content="html{filter:grayscale(1)}")
        shades = []
        for kind in (".point.clear", ".point:not(.clear)"):
            shot = page.locator(f".forest {kind}").first.screenshot()
            pixels = matplotlib.image.imread(io.BytesIO(shot), format="png")
            middle = pixels[pixels.shape[0] // 2, pixels.shape[1] // 2, :3]
            shades.append(float(middle.mean()))
        assert shades[0] < 0.5 < 0.9 < shades[1]
        words = page.locator(".forest .state").all_inner_texts()
        assert {"▲ higher, better", "▲ higher, worse", "○ not told apart"} <= set(words)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_notebook_fragment_takes_the_colours_of_the_notebook(
    browser: Browser, tmp_path: Path, width: int, scheme: Scheme
) -> None:
    """A dark notebook in a light system, and the other way round."""
    ink, page_colour = ("#eee", "#111") if scheme == "light" else ("#111", "#fff")
    style = f"body{{color:{ink};background:{page_colour};margin:8px}}"
    path = tmp_path / "notebook.html"
    html = (
        f"<!doctype html><meta charset=utf-8><style>{style}</style><main>{notebook_html(usual())}"
    )
    path.write_text(html, encoding="utf-8")
    with opened(browser, path, width, scheme) as page:
        page.screenshot(path=tmp_path / "seen.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        found = page.evaluate(CONTRASTS)
        assert not {key: at for key, at in found.items() if at["ratio"] < CONTRAST_LEAST}
