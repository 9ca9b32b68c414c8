"""The pages in a browser: charts are drawn, nothing complains, nothing is fetched, nothing is out of reach."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ioptim.core.record import RunRecord
from ioptim.report import compare, comparison_page, write_report

WIDTHS = (400, 1400)
UNFOLD = "document.querySelectorAll('details').forEach(fold => fold.open = true)"
COLOUR_OF_TEXT = "getComputedStyle(document.querySelector('.main-svg .xtick text')).fill"
VISIBLE = "checkVisibility({contentVisibilityAuto: true})"
CUT_OFF = """[...document.querySelectorAll('.main-svg .xtitle')].filter(title => {
  const [text, frame] = [title, title.closest('.main-svg')].map(each => each.getBoundingClientRect());
  return text.left < frame.left || text.right > frame.right;
}).map(title => title.textContent)"""
BEYOND = "[...document.querySelectorAll('.main-svg')].filter(svg => svg.getBoundingClientRect().right > innerWidth).length"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("report_chromium", Path(__file__).with_name("chromium.py"))
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.COMMAND is None:
        pytest.skip("no chromium on the PATH")
    browser = module.Chromium(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def pages(records: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of each kind, and a comparison."""
    pytest.importorskip("plotly")
    folder = tmp_path_factory.mktemp("pages")
    kinds = ("charted", "several", "hostile")
    found = {kind: write_report(getattr(records, kind)(folder / kind), folder / kind) for kind in kinds}
    runs: list[RunRecord] = [records.passed(folder / "1"), records.gate_failed(folder / "2")]
    found["comparison"] = folder / "comparison.html"
    found["comparison"].write_text(comparison_page(compare(runs)), encoding="utf-8")
    return found


@pytest.mark.parametrize("kind", ["charted", "several", "hostile", "comparison"])
def test_charts_are_drawn_in_silence_and_fit(chromium: Any, pages: dict[str, Path], kind: str) -> None:
    """At the width of a phone, then, as when it is turned, at that of a desk."""
    chromium.open(pages[kind], WIDTHS[0])
    chromium.run(UNFOLD)
    for width in WIDTHS:
        chromium.resize(width)
        chromium.wait_for(f"{chromium.DRAWN} && document.querySelector('.main-svg').clientWidth > {width / 2}")
        assert chromium.run("document.querySelectorAll('.canvas .main-svg .trace').length") > 0
        assert chromium.run("[...document.querySelectorAll('.canvas')].every(canvas => canvas.querySelector('.main-svg .trace'))")
        assert chromium.run("document.documentElement.scrollWidth <= innerWidth")
        assert chromium.run(BEYOND) == 0
        assert chromium.run(CUT_OFF) == []
    assert chromium.complaints == []
    assert chromium.requests == [pages[kind].as_uri()]
    assert chromium.run("performance.getEntriesByType('resource').map(entry => entry.name)") == []
    if kind == "hostile":
        assert chromium.run("document.querySelectorAll('.main-svg a, .main-svg image, .main-svg b, .main-svg script').length") == 0
        assert "</style>" in chromium.run("[...document.querySelectorAll('.main-svg')].map(svg => svg.textContent).join()")


def test_colours_follow_the_scheme_and_paper_is_light(chromium: Any, pages: dict[str, Path]) -> None:
    chromium.open(pages["charted"], 1400)
    light = chromium.run(COLOUR_OF_TEXT)
    chromium.prefer("dark")
    chromium.wait_for(f"{COLOUR_OF_TEXT} !== {light!r}")
    chromium.run("dispatchEvent(new Event('beforeprint'))")
    chromium.wait_for(f"{COLOUR_OF_TEXT} === {light!r}")
    chromium.run("dispatchEvent(new Event('afterprint'))")
    chromium.wait_for(f"{COLOUR_OF_TEXT} !== {light!r}")
    assert chromium.complaints == []


def test_by_keyboard(chromium: Any, pages: dict[str, Path]) -> None:
    """The first stop skips to the verdicts; every link, fold and scrolling table is reached, round to the top again; a fold opens."""
    chromium.open(pages["charted"], 400)
    chromium.press("Tab", 9)
    assert chromium.run("document.activeElement.textContent") == "Skip to the verdicts"
    assert chromium.run("document.activeElement.getBoundingClientRect().left >= 0")
    chromium.press("Enter", 13)
    chromium.wait_for("location.hash === '#verdicts'")
    chromium.run("window.reached = new Set(); addEventListener('focusin', event => reached.add(event.target))")
    stops = f"[...document.querySelectorAll('main a, summary, [tabindex]')].filter(each => each.{VISIBLE})"
    for _ in range(chromium.run(f"{stops}.length") + 5):
        chromium.press("Tab", 9)
    assert chromium.run(f"{stops}.filter(stop => !reached.has(stop)).map(stop => stop.outerHTML)") == []
    drawn = "Boolean(document.querySelector('#step-compile .canvas .main-svg'))"
    assert chromium.run(drawn) is False
    chromium.run("document.querySelector('#step-compile > summary').focus()")
    chromium.press("Enter", 13)
    chromium.wait_for(drawn)
