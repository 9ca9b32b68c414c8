"""Charts that steps hand over as data, drawn: points over numbers or names, bars, distributions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from ioptim.core.step import ChartFigure, Series, TableFigure
from ioptim.report.distribution import distribution
from ioptim.report.figures import number
from ioptim.report.plot import DASHES, SYMBOLS, Key, Plot, above, axis, logarithmic, said, thinned, tone

Tones = Mapping[str, int]
"""Which colour a model has in the whole report, by name."""
MOST_BARS = 30
MOST_ROWS = 500
_CROWD = 12
"""Points of a series from which on they are drawn to be seen through."""
_EDGED: Mapping[str, Any] = {"opacity": 0.85, "line": {"color": "--card", "width": 1}}
_SHEER: Mapping[str, Any] = {"opacity": 0.55, "line": {"width": 0}}
_NAME, _SHORT_NAME = 34, 18
"""Letters of a bar's name that a wide and a narrow screen have room for."""


def drawn(chart: ChartFigure, tones: Tones) -> Plot:
    """The chart as plotly.js draws it. A series named after a model has that model's colour, and models come in the report's order."""
    if all(series.name in tones for series in chart.series):
        chart = chart.model_copy(update={"series": tuple(sorted(chart.series, key=lambda series: tones[series.name]))})
    colours = coloured(chart.series, tones)
    return {"bars": _bars, "points": _points, "distribution": distribution}[chart.kind](chart, colours)


def coloured(series: Sequence[Series], tones: Tones) -> list[str]:
    """A colour for each: that of the model it is named after, ink for a bound, else the next that no model in the chart has."""
    models = sorted(tones, key=len, reverse=True)
    known = [next((tones[model] for model in models if _is_of(each.name, model)), None) for each in series]
    free = iter([i for i in range(len(series) + len(tones)) if i not in known])
    return [
        tone(index) if index is not None else "ink" if each.line and not _measured(each) else tone(next(free))
        for index, each in zip(known, series, strict=True)
    ]


def _measured(series: Series) -> bool:
    """Whether its points are measurements, and not only the corners of a line."""
    return bool(series.labels or series.low or not series.line)


def _is_of(name: str, model: str) -> bool:
    return name == model or (name.startswith(model) and not (name[len(model)].isalnum() or name[len(model)] in "-_@"))


# --- points


def _points(chart: ChartFigure, colours: Sequence[str]) -> Plot:
    named = any(isinstance(x, str) for series in chart.series for x in series.x)
    traces, keys = [], []
    symbols, dashes = cycle(SYMBOLS), cycle(DASHES)
    for series, colour in zip(chart.series, colours, strict=True):
        symbol, dash = next(symbols) if _measured(series) else "", next(dashes) if series.line else ""
        traces.append(_scatter(series, f"--{colour}", symbol, dash, (chart.x_label, chart.y_label)))
        if len(chart.series) == 1:
            traces[0] |= _names_beside(series)
        keys.append(Key(series.name, dash or symbol, colour))
    across = logarithmic([x for s in chart.series for x in s.x if not isinstance(x, str)]) if chart.log_x and not named else {}
    up = logarithmic([y for s in chart.series for y in (*s.y, *s.low, *s.high)]) if chart.log_y else {}
    layout = {
        "xaxis": axis(chart.x_label, **({"type": "category"} if named else across)),
        "yaxis": axis(**up),
        "annotations": [above(chart.y_label)],
        "height": 380,
    }
    narrow = {"xaxis.nticks": 5, **thinned(across, "xaxis")}
    return Plot(chart.title, traces, layout, _points_table(chart), keys, chart.note, _left_out(chart), narrow)


def _scatter(series: Series, colour: str, symbol: str, dash: str, labels: tuple[str, str]) -> dict[str, Any]:
    measured = _measured(series)
    crowded = len(series.y) > _CROWD  # an edge in the page's colour keeps a few apart, and hides the most of many
    trace: dict[str, Any] = {
        "type": "scatter",
        "x": [said(x) if isinstance(x, str) else x for x in series.x],
        "y": list(series.y),
        "mode": "+".join(["lines"] * series.line + ["markers"] * (measured or len(series.y) == 1)),
        "marker": {"color": colour, "symbol": symbol or SYMBOLS[0], "size": 9, **(_SHEER if crowded else _EDGED)},
        "hoverinfo": "text",
        "hovertext": [_told(series, i, labels) for i in range(len(series.y))],
    }
    if series.line:
        trace["line"] = {"color": colour, "width": 2.5, "dash": dash}
    return trace | ({"error_y": _error(series, colour)} if series.low and series.high else {})


def _names_beside(series: Series) -> dict[str, Any]:
    """Names of a few points, each on the side where there is room: what a reader of paper cannot point at.

    A point right beside one that has its name goes without: both would be illegible.
    """
    across = [x for x in series.x if not isinstance(x, str)]
    names = set(series.labels)
    if series.line or not 1 < len(names) == len(across) <= _CROWD or max(map(len, names)) > _NAME:
        return {}
    middle = (min(across) + max(across)) / 2
    sides = ["middle right" if x < middle else "middle left" for x in across]
    wide, high = max(across) - min(across) or 1.0, _spread(series.y) or 1.0
    places = [(x / wide, (y or 0.0) / high) for x, y in zip(across, series.y, strict=True)]
    named: list[tuple[float, float]] = []
    text = []
    for (x, y), label in zip(places, series.labels, strict=True):
        clear = all(abs(x - other) > 0.3 or abs(y - up) > 0.05 for other, up in named)
        named += [(x, y)] if clear else []
        text.append(said(label, _SHORT_NAME) if clear else "")
    return {"mode": "markers+text", "text": text, "textposition": sides, "textfont": {"color": "--soft", "size": 12}, "cliponaxis": False}


def _spread(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return max(known) - min(known) if known else 0.0


def _error(series: Series, colour: str) -> dict[str, Any]:
    """The interval's ends as plotly wants them: distances from the point."""
    ends = list(zip(series.y, series.low, series.high, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [None if y is None or high is None else high - y for y, _, high in ends],
        "arrayminus": [None if y is None or low is None else y - low for y, low, _ in ends],
        "color": colour,
        "thickness": 1.5,
        "width": 4,
    }


def _told(series: Series, i: int, labels: tuple[str, str]) -> str:
    """What pointing at a point shows."""
    where = [f"{label}: {_value(value)}" for label, value in zip(labels, (series.x[i], series.y[i]), strict=True)]
    lines = [series.name, series.labels[i] if series.labels else "", *where]
    if between := _interval(series, i):
        lines.append(f"interval {between}")
    return "<br>".join(said(line) for line in lines if line)


def _left_out(chart: ChartFigure) -> str:
    """How many points a logarithmic axis has no place for."""
    pairs = [(x, y) for s in chart.series for x, y in zip(s.x, s.y, strict=True)]
    lost = sum((chart.log_x and not isinstance(x, str) and x <= 0) or (chart.log_y and y is not None and y <= 0) for x, y in pairs)
    missing = sum(y is None for _, y in pairs)
    parts = [f"{lost} at or below zero not shown on the logarithmic axis" if lost else "", f"{missing} without a value" if missing else ""]
    told = ", ".join(part for part in parts if part)
    return f"Of {len(pairs)} points, {told}." if told else ""


def _points_table(chart: ChartFigure) -> TableFigure:
    labelled = any(series.labels for series in chart.series)
    between = any(series.low for series in chart.series)
    rows: list[tuple[str | float | int | None, ...]] = []
    for series in chart.series:
        for i, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
            label = (series.labels[i] if series.labels else "",) if labelled else ()
            rows.append((series.name, *label, x, y, *((_interval(series, i),) if between else ())))
    columns = ("series", *(("point",) * labelled), chart.x_label, chart.y_label, *(("interval",) * between))
    cut = f" (the first {MOST_ROWS} of {len(rows)}; run.json has all)" if len(rows) > MOST_ROWS else ""
    return TableFigure(title=f"{chart.title}{cut}", columns=columns, rows=tuple(rows[:MOST_ROWS]))


# --- bars


def _bars(chart: ChartFigure, colours: Sequence[str]) -> Plot:
    """Horizontal, the first on top: names of operators and layers are long."""
    names = list(dict.fromkeys(_value(x) for series in chart.series for x in series.x))
    shown = _largest(chart, names)
    single = len(chart.series) == 1
    traces = [_bar(series, colour, shown, chart) for series, colour in zip(chart.series, colours, strict=True)]
    rows = len(shown) * (1 if single or chart.stacked else len(chart.series))
    along = logarithmic([y for s in chart.series for y in (*s.y, *s.low, *s.high)]) if chart.log_y else {}
    layout = {
        "xaxis": axis(chart.y_label, **(along or {"zeroline": True, "zerolinecolor": "--soft"})),
        "yaxis": axis(
            tickvals=list(range(len(shown))),
            ticktext=[said(name, _NAME) for name in shown],
            range=[len(shown) - 0.4, -0.6],
            showgrid=False,
        ),
        "barmode": "relative" if chart.stacked else "group",
        "bargap": 0.3,
        "height": max(150, 84 + rows * (26 if rows <= 12 else 21)),
        "margin": {"l": 10, "r": 58 if single else 14, "t": 6, "b": 10},
    }
    narrow = {"yaxis.ticktext": [said(name, _SHORT_NAME) for name in shown], "xaxis.nticks": 4, **thinned(along, "xaxis")}
    kept = f"The {len(shown)} largest of {len(names)} are drawn, all are in the table." if len(shown) < len(names) else ""
    keys = [Key(series.name, "bar", colour) for series, colour in zip(chart.series, colours, strict=True)]
    return Plot(chart.title, traces, layout, _bars_table(chart, names), keys, chart.note, kept, narrow)


def _bar(series: Series, colour: str, shown: Sequence[str], chart: ChartFigure) -> dict[str, Any]:
    place = {name: i for i, name in enumerate(shown)}
    kept = [i for i, x in enumerate(series.x) if _value(x) in place]
    part = series.model_copy(
        update={
            "x": tuple(series.x[i] for i in kept),
            **{name: tuple(getattr(series, name)[i] for i in kept) for name in ("y", "low", "high", "labels") if getattr(series, name)},
        }
    )
    trace: dict[str, Any] = {
        "type": "bar",
        "orientation": "h",
        "x": list(part.y),
        "y": [place[_value(x)] for x in part.x],
        "marker": {"color": f"--{colour}"},
        "hoverinfo": "text",
        "hovertext": [_told(part, i, (chart.x_label, chart.y_label)) for i in range(len(part.y))],
    }
    if len(chart.series) == 1 and not series.low:
        trace |= {"text": [_value(y) for y in part.y], "textposition": "outside", "cliponaxis": False, "textfont": {"color": "--soft"}}
    return trace | ({"error_x": _error(part, "--ink")} if series.low and series.high else {})


def _largest(chart: ChartFigure, names: Sequence[str]) -> list[str]:
    """At most `MOST_BARS` names, in the order given."""
    if len(names) <= MOST_BARS:
        return list(names)
    weight = dict.fromkeys(names, 0.0)
    for series in chart.series:
        for x, y in zip(series.x, series.y, strict=True):
            weight[_value(x)] += abs(y or 0.0)
    keep = set(sorted(names, key=lambda name: -weight[name])[:MOST_BARS])
    return [name for name in names if name in keep]


def _bars_table(chart: ChartFigure, names: Sequence[str]) -> TableFigure:
    columns: list[str] = [chart.x_label]
    cells: list[dict[str, str | float | None]] = []
    for series in chart.series:
        name = series.name if len(chart.series) > 1 else chart.y_label
        columns.append(name)
        cells.append(dict(zip(map(_value, series.x), series.y, strict=True)))
        if series.low:
            columns.append(f"{name}, interval")
            cells.append({_value(x): _interval(series, i) for i, x in enumerate(series.x)})
    rows = tuple((name, *(column.get(name) for column in cells)) for name in names)
    return TableFigure(title=chart.title, columns=tuple(columns), rows=rows)


def _interval(series: Series, i: int) -> str:
    if not (series.low and series.high):
        return ""
    low, high = series.low[i], series.high[i]
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def _value(value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    return "–" if value is None or not math.isfinite(value) else number(value)
