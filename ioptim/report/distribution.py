"""How the samples of several models are spread: one row for each, the same axis below all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ioptim.core.step import ChartFigure, TableFigure
from ioptim.report.density import POINTS, density
from ioptim.report.figures import number
from ioptim.report.plot import Plot, axis, logarithmic, said, thinned
from ioptim.timing import percentile

QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
FEW = 60
"""Up to here every sample is drawn; above, their density."""
_WIDE = 4
"""Largest sample ÷ smallest above which a linear axis would press the bulk into a corner."""


def distribution(chart: ChartFigure, colours: Sequence[str]) -> Plot:
    """A row for each series, the first on top: its samples or their density, and a mark at each percentile that they support."""
    rows = [sorted(y for y in series.y if y is not None and math.isfinite(y)) for series in chart.series]
    every = [value for row in rows for value in row]
    log = bool(every) and min(every) > 0 and (chart.log_x or chart.log_y or max(every) / min(every) > _WIDE)
    scale = logarithmic(every) if log else {}
    traces: list[dict[str, Any]] = []
    for i, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        traces += _row(row, i, f"--{colour}", log, chart.series[i].name)
    names = [_named(series.name, row, 30) for series, row in zip(chart.series, rows, strict=True)]
    label = chart.y_label or chart.x_label
    layout = {
        "xaxis": axis(f"{label} (logarithmic)" if log else label, **scale),
        "yaxis": axis(
            tickvals=list(range(len(rows))),
            ticktext=names,
            range=[len(rows) - 0.55, -1.05],
            showgrid=False,
            tickfont={"color": "--ink", "size": 13},
        ),
        "height": 84 + 92 * len(rows),
        "margin": {"l": 10, "r": 14, "t": 6, "b": 10},
    }
    short = [_named(series.name, row, 16) for series, row in zip(chart.series, rows, strict=True)]
    narrow = {"yaxis.ticktext": short, "xaxis.nticks": 5, "yaxis.tickfont.size": 12, **thinned(scale, "xaxis")}
    lost = sum(len(series.y) for series in chart.series) - len(every)
    note = " ".join(part for part in (chart.note, f"{lost} samples were not numbers." if lost else "") if part)
    return Plot(chart.title, traces, layout, _table(chart, rows), (), note, _legend(rows), narrow, table_open=True)


def _legend(rows: Sequence[Sequence[float]]) -> str:
    smooth = any(len(row) > FEW for row in rows)
    drawn = "The height is the density of the samples, each row to its own peak" if smooth else "Every dot is one sample"
    return f"{drawn}; the strokes are p50, p90 and p99 of all of them together, where there are enough."


def _named(name: str, row: Sequence[float], longest: int) -> str:
    """A row's name with its median below."""
    median = percentile(row, 0.5) if row else None
    return said(name, longest) + (f"<br>p50 {number(median)}" if median is not None else "")


def _row(row: Sequence[float], i: int, colour: str, log: bool, name: str) -> list[dict[str, Any]]:
    if not row:
        return []
    marks = [(label, value) for label, q in QUANTILES if (value := percentile(row, q)) is not None]
    few = len(row) <= FEW or row[0] == row[-1]
    strokes = {
        "type": "scatter",
        "mode": "markers",
        "x": [value for _, value in marks],
        "y": [i - 0.3 if few else i - 0.01] * len(marks),
        "marker": {"symbol": "line-ns-open", "size": 16, "color": "--ink", "line": {"width": 2, "color": "--ink"}},
        "hoverinfo": "text",
        "hovertext": [said(f"{name}: {label} {number(value)}") for label, value in marks],
    }
    return [_dots(row, i, colour, name) if few else _hill(row, i, colour, log), strokes]


def _dots(row: Sequence[float], i: int, colour: str, name: str) -> dict[str, Any]:
    kept = row[:: max(1, len(row) // FEW)]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": kept,
        "y": [i - 0.3] * len(kept),
        "marker": {"color": colour, "size": 9, "opacity": 0.55},
        "hoverinfo": "text",
        "hovertext": [said(f"{name}: {number(value)}") for value in kept],
    }


def _hill(row: Sequence[float], i: int, colour: str, log: bool) -> dict[str, Any]:
    scaled = [math.log10(value) for value in row] if log else row
    low, high = scaled[0], scaled[-1]
    places = [low + (high - low) * k / (POINTS - 1) for k in range(POINTS)]
    heights = density(scaled, low, high)
    x = [10**place if log else place for place in places]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x[0], *(float(f"{value:.5g}") for value in x), x[-1]],
        "y": [i, *(round(i - 0.85 * height, 4) for height in heights), i],
        "fill": "toself",
        "fillcolor": f"{colour}@55",
        "line": {"color": colour, "width": 1.5},
        "hoverinfo": "skip",
    }


def _table(chart: ChartFigure, rows: Sequence[Sequence[float]]) -> TableFigure:
    cells = []
    for series, row in zip(chart.series, rows, strict=True):
        marks = [percentile(row, q) if row else None for _, q in QUANTILES]
        cells.append((series.name, len(row), row[0] if row else None, *marks, row[-1] if row else None))
    columns = ("series", "points", "smallest", *(label for label, _ in QUANTILES), "largest")
    return TableFigure(title=f"{chart.title}: {chart.y_label or chart.x_label}", columns=columns, rows=tuple(cells))
