"""A chart as plotly.js draws it, and the figure around it: title, legend, note, and the same numbers as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from textwrap import wrap
from typing import Any

from ioptim.core.step import TableFigure
from ioptim.report.figures import number
from ioptim.report.html import Html, data, el
from ioptim.report.script import plotly_js
from ioptim.report.style import FONT, TONES
from ioptim.report.tables import folded, grid

LABEL = 34
"""Letters of an axis's name that a small screen has room for in one line."""
CANVAS = 'class="canvas"'
"""What a page that holds a chart holds."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "x", "star")
DASHES = ("solid", "dash", "dot", "dashdot")
_SHAPES = {
    "circle": "M8 3a5 5 0 1 1 0 10a5 5 0 1 1 0-10z",
    "square": "M3.5 3.5h9v9h-9z",
    "diamond": "M8 2l6 6l-6 6l-6-6z",
    "triangle-up": "M8 3l5.5 10h-11z",
    "cross": "M6 2.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5v-4h3.5z",
    "triangle-down": "M8 13l5.5-10h-11z",
    "x": "M5 2.5l3 3l3-3l2.5 2.5l-3 3l3 3l-2.5 2.5l-3-3l-3 3l-2.5-2.5l3-3l-3-3z",
    "star": "M8 1.5l2 4.4l4.8.5l-3.6 3.2l1 4.7l-4.2-2.4l-4.2 2.4l1-4.7l-3.6-3.2l4.8-.5z",
    "bar": "M3 3h10v10h-10z",
    "solid": "M0 6.5h16v3h-16z",
    "dash": "M0 6.5h6v3h-6zM10 6.5h6v3h-6z",
    "dot": "M1 6.5h3v3h-3zM6.5 6.5h3v3h-3zM12 6.5h3v3h-3z",
    "dashdot": "M0 6.5h7v3h-7zM10 6.5h3v3h-3z",
}


@dataclass(frozen=True)
class Key:
    """One entry of the legend: the shape as well as the colour tells what is meant."""

    name: str
    shape: str
    colour: str


@dataclass(frozen=True)
class Plot:
    """`traces` and `layout` are plotly.js's own (https://plotly.com/javascript/reference), colours named as in `style.py`.

    `narrow` changes the layout on a small screen, by dotted path. All text in them has gone through `said`.
    """

    title: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    table: TableFigure
    keys: Sequence[Key] = ()
    note: str = ""
    """What it shows; stands beside the table too."""
    reading: str = ""
    """How to read the drawing."""
    narrow: Mapping[str, Any] = field(default_factory=dict)
    table_open: bool = False


def figure(plot: Plot, heading: bool = True) -> Html:
    """The chart with its table behind it; the table alone, unfolded, where plotly is not installed.

    Without `heading` where it would repeat the section's.
    """
    head = el("h3", plot.title) if heading else None
    label = " ".join(part for part in (f"{plot.title}.", plot.note, plot.reading, "The table below holds the numbers.") if part)
    caption = " ".join(part for part in (plot.note, plot.reading) if part)
    if plotly_js() is None:
        return el("figure", head, el("figcaption", plot.note) if plot.note else None, grid(plot.table))
    layout = {**_LAYOUT, **plot.layout}
    return el(
        "figure",
        head,
        _legend(plot.keys),
        el("div", el("noscript", "Scripts are off: the table below holds the numbers."), class_="canvas", role="img", aria_label=label),
        data({"data": plot.traces, "layout": layout, "narrow": {**_wrapped(layout), **plot.narrow}}),
        el("figcaption", caption) if caption else None,
        folded("The numbers as a table", plot.table, plot.table_open),
        class_="plot",
    )


def _wrapped(layout: Mapping[str, Any]) -> dict[str, str]:
    """The name of the horizontal axis in lines that a small screen has room for, as a `narrow` change."""
    label = layout.get("xaxis", {}).get("title", {}).get("text", "")
    return {"xaxis.title.text": "<br>".join(wrap(label, LABEL))} if len(label) > LABEL else {}


def _legend(keys: Sequence[Key]) -> Html | None:
    """Ours, not plotly's: it wraps as text does, and a screen reader reads it."""
    marks = [el("svg", el("path", d=_SHAPES[key.shape], class_=key.colour), viewBox="0 0 16 16", aria_hidden="true") for key in keys]
    return el("ul", [el("li", mark, key.name) for key, mark in zip(keys, marks, strict=True)], class_="legend") if len(keys) > 1 else None


def tone(index: int) -> str:
    """The colour of the i-th thing in a chart, as the style sheet names it."""
    return f"t{index % TONES}"


def said(given: str, longest: int | None = None) -> str:
    """Text for plotly.js, which would read a tag in it as markup. `longest`: cut in the middle, where layer names differ least."""
    if longest and len(given) > longest:
        given = f"{given[: longest // 2 - 1]}…{given[-(longest - longest // 2) :]}"
    return escape(given, quote=False)


def axis(label: str = "", **fields: Any) -> dict[str, Any]:
    """An axis in the page's manner: quiet lines, no zooming (it would hold up scrolling on a touch screen)."""
    title = {"title": {"text": said(label), "font": {"color": "--soft", "size": 13}, "standoff": 8}} if label else {}
    return {**_AXIS, **title, **fields}


def above(label: str) -> dict[str, Any]:
    """The name of the vertical axis, written over it, where it can be read without turning the head."""
    return {
        "text": said(label),
        "showarrow": False,
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": 1,
        "yref": "paper",
        "yanchor": "bottom",
        "yshift": 6,
        "font": {"color": "--soft", "size": 13},
    }


def logarithmic(values: Iterable[float | None], room: float = 0.06) -> dict[str, Any]:
    """A logarithmic axis over these values; the wider it is, the fewer ticks in each decade."""
    kept = [value for value in values if value is not None and value > 0 and math.isfinite(value)]
    if not kept:
        return {"type": "log"}
    low, high = math.log10(min(kept)), math.log10(max(kept))
    pad = max((high - low) * room, 0.04)
    low, high = low - pad, high + pad
    digits = (1, 1.5, 2, 3, 5, 7) if high - low <= 1 else (1, 2, 5) if high - low <= 3 else (1,)
    every = [digit * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for digit in digits]
    ticks = [tick for tick in every if low <= math.log10(tick) <= high]
    if len(ticks) < 2:  # less than an octave: round numbers of the linear scale
        return {"type": "log", "range": [low, high], "nticks": 5}
    return {"type": "log", "range": [low, high], "tickvals": ticks, "ticktext": [number(tick) for tick in ticks]}


def thinned(scale: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The ticks of a logarithmic axis that a small screen has room for, as a `narrow` change."""
    ticks = scale.get("tickvals")
    if not ticks or len(ticks) <= 6:
        return {}
    step = math.ceil(len(ticks) / 6)
    return {f"{name}.tickvals": ticks[::step], f"{name}.ticktext": scale["ticktext"][::step]}


_CLEAR = "rgba(0,0,0,0)"
_LAYOUT: Mapping[str, Any] = {
    "font": {"family": FONT, "size": 13, "color": "--ink"},
    "paper_bgcolor": _CLEAR,
    "plot_bgcolor": _CLEAR,
    "margin": {"l": 10, "r": 14, "t": 30, "b": 10},
    "height": 340,
    "showlegend": False,
    "dragmode": False,
    "hovermode": "closest",
    "separators": ".\u202f",
    "hoverlabel": {"bgcolor": "--card", "bordercolor": "--soft", "font": {"color": "--ink", "size": 13}, "align": "left"},
}
_AXIS: Mapping[str, Any] = {
    "automargin": True,
    "fixedrange": True,
    "gridcolor": "--line",
    "linecolor": "--line",
    "tickcolor": "--line",
    "tickfont": {"color": "--soft", "size": 12},
    "zeroline": False,
    "exponentformat": "power",
}
