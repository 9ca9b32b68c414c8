"""The scripts of a page with charts: plotly.js as its package brings it, and the few lines that draw with it."""

from __future__ import annotations

import importlib.metadata
import re
from functools import cache
from pathlib import Path

NOT_INSTALLED = (
    "Charts are shown as tables here, because plotly is not installed. With it (pip install 'ioptim[report]'), "
    "`ioptim report RUN` draws them."
)


@cache
def plotly_js() -> str | None:
    """The source of plotly.js; None where the package is not installed. Read as a file: importing plotly would take longer."""
    try:
        package = importlib.metadata.distribution("plotly")
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(package.locate_file("plotly/package_data/plotly.min.js")))
    return path.read_text(encoding="utf-8") if path.is_file() else None


@cache
def style_guards() -> tuple[str, ...]:
    """Ids by which plotly.js knows that the styles of its map library are in the page. It has none to draw: an empty element suffices."""
    return tuple(dict.fromkeys(re.findall(r'document\.getElementById\("([0-9a-f]{64})"\)', plotly_js() or "")))


DRAW = """"use strict";
(() => {
  const NARROW = 620;
  const CONFIG = {displayModeBar: false, doubleClick: false, showTips: false};
  const root = document.documentElement;
  const drawn = new Map();  // canvas -> the width it was drawn at

  // A colour is named "--t0", or "--t0@40" with its opacity, and looked up in the style sheet: so it follows the colour scheme.
  function painted(value, key, style) {
    if (Array.isArray(value)) return value.map(each => painted(each, key, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, painted(each, name, style)]));
    }
    if (typeof value !== "string" || !key.endsWith("color") || !value.startsWith("--")) return value;
    const [name, opacity = ""] = value.split("@");
    return style.getPropertyValue(name).trim() + opacity;
  }

  function patch(layout, changes) {
    for (const [path, value] of Object.entries(changes)) {
      const names = path.split(".");
      const last = names.pop();
      names.reduce((place, name) => place[name] ??= {}, layout)[last] = value;
    }
  }

  const read = canvas => JSON.parse(canvas.parentElement.querySelector("script").textContent);

  function draw(canvas, width) {
    const chart = painted(read(canvas), "", getComputedStyle(root));
    if (width < NARROW) patch(chart.layout, chart.narrow);
    drawn.set(canvas, width);
    canvas.style.minHeight = chart.layout.height + "px";
    Plotly.react(canvas, chart.data, {...chart.layout, width}, CONFIG).catch(error => {
      canvas.textContent = "This chart could not be drawn; the table below holds its numbers.";
      console.error(error);
    });
  }

  const redraw = width => drawn.forEach((was, canvas) => draw(canvas, width ?? (Math.floor(canvas.clientWidth) || was)));

  // Drawn when it first has a width: at once, or when the part of the page that holds it is unfolded.
  const watcher = new ResizeObserver(entries => {
    for (const {target, contentRect} of entries) {
      const width = Math.floor(contentRect.width);
      if (width && width !== drawn.get(target)) draw(target, width);
    }
  });
  for (const canvas of document.querySelectorAll(".canvas")) {
    canvas.style.minHeight = read(canvas).layout.height + "px";
    watcher.observe(canvas);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
  addEventListener("beforeprint", () => { root.classList.add("paper"); redraw(680); });
  addEventListener("afterprint", () => { root.classList.remove("paper"); redraw(); });
})();
"""
