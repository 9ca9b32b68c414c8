"""Quality against speed, the size on disk as the marker's, every candidate beside every baseline and inside or outside the gates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ioptim.core.gate import GateResult
from ioptim.core.step import TableFigure
from ioptim.intervals import Interval
from ioptim.report.figures import Quantity, number, quantity, shown
from ioptim.report.plot import SYMBOLS, Key, Plot, above, axis, logarithmic, said, thinned

_LARGEST, _SMALLEST = 34.0, 9.0
"""Diameters in pixels."""


@dataclass(frozen=True)
class Spot:
    """One model: where it lies and how sure that is."""

    name: str
    colour: str
    speed: float
    quality: float
    size_bytes: float | None
    speed_interval: Interval | None = None
    quality_interval: Interval | None = None


def trade_off(title: str, speed: str, quality: str, spots: Sequence[Spot], gates: Sequence[GateResult] = ()) -> Plot | None:
    """Nothing where fewer than two models have both metrics. A bound that a gate sets on either metric is a line."""
    spots = [spot for spot in spots if spot.speed > 0 and math.isfinite(spot.speed) and math.isfinite(spot.quality)]
    if len(spots) < 2:
        return None
    bounds = _bounds(gates, spots, speed, quality)
    scale = logarithmic([v for spot in spots for v in (spot.speed, *(spot.speed_interval or ()))] + list(bounds[0]), room=0.14)
    up = _padded([v for spot in spots for v in (spot.quality, *(spot.quality_interval or ()))] + list(bounds[1]))
    layout = {
        "xaxis": axis(f"{speed} (logarithmic)", **scale),
        "yaxis": axis(range=up),
        "annotations": [above(quality), *_names(bounds)],
        "shapes": [_line("x", at) for at in bounds[0]] + [_line("y", at) for at in bounds[1]],
        "height": 400,
    }
    largest = max((spot.size_bytes or 0.0 for spot in spots), default=0.0)
    traces = [_marker(spot, i, speed, quality, largest) for i, spot in enumerate(spots)]
    faster = "further left is faster" if "latency" in speed else "further right is faster"
    words = [f"Higher is better, {faster}.", "The area is the size on disk." if largest else ""]
    words.append("Bars are 95 % intervals." if any(spot.speed_interval or spot.quality_interval for spot in spots) else "")
    words.append("Dashed lines are the gates' bounds." if bounds[0] or bounds[1] else "")
    keys = [Key(spot.name, SYMBOLS[i % len(SYMBOLS)], spot.colour) for i, spot in enumerate(spots)]
    return Plot(
        title=title,
        traces=traces,
        layout=layout,
        table=_table(title, speed, quality, spots),
        keys=keys,
        reading=" ".join(word for word in words if word),
        narrow={"height": 340, **thinned(scale, "xaxis")},
    )


def _marker(spot: Spot, i: int, speed: str, quality: str, largest: float) -> dict[str, Any]:
    share = (spot.size_bytes or 0.0) / largest if largest else 0.25
    colour = f"--{spot.colour}"
    told = [spot.name, f"{quality}: {shown(quality, spot.quality)}", f"{speed}: {shown(speed, spot.speed)}"]
    told += [f"size: {shown('size_bytes', spot.size_bytes)}"] if spot.size_bytes else []
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [spot.speed],
        "y": [spot.quality],
        "error_x": _error(spot.speed, spot.speed_interval, colour),
        "error_y": _error(spot.quality, spot.quality_interval, colour),
        "marker": {
            "symbol": SYMBOLS[i % len(SYMBOLS)],
            "size": max(_SMALLEST, _LARGEST * math.sqrt(share)),
            "color": f"{colour}@66",
            "line": {"color": colour, "width": 2},
            "opacity": 1,
        },
        "hoverinfo": "text",
        "hovertext": ["<br>".join(said(line) for line in told)],
        "cliponaxis": False,
    }


def _error(value: float, interval: Interval | None, colour: str) -> dict[str, Any]:
    if interval is None:
        return {"visible": False}
    low, high = interval
    ends = {"array": [high - value], "arrayminus": [value - low]}
    return {"type": "data", "symmetric": False, **ends, "color": colour, "thickness": 1.5, "width": 5}


def _bounds(gates: Sequence[GateResult], spots: Sequence[Spot], speed: str, quality: str) -> tuple[dict[float, str], dict[float, str]]:
    """Where the gates on all rows draw the line, on each axis, by name; a bound on a ratio or a drop starts from its baseline."""
    by_name = {spot.name: spot for spot in spots}
    found: tuple[dict[float, str], dict[float, str]] = ({}, {})
    for result in gates:
        if result.metric not in (speed, quality) or result.slice is not None:
            continue
        kind, bound = result.gate.bound
        base = by_name.get(result.baseline or "")
        if base is None and result.gate.needs_baseline:
            continue
        start = 0.0 if base is None else base.speed if result.metric == speed else base.quality
        faster = start * bound if quantity(result.metric) is Quantity.RATE else start / bound if bound else 0.0
        at = {"min_speedup": faster, "max_ratio": start * bound, "min_ratio": start * bound}.get(kind, bound)
        at = start - bound if kind == "max_drop" else at
        if at > 0 or result.metric == quality:
            found[result.metric == quality][at] = f"{kind} {number(bound)}"
    return found


def _names(bounds: tuple[dict[float, str], dict[float, str]]) -> list[dict[str, Any]]:
    """What each bound is called: along the line upright at the top, or on the line at the right."""
    common = {"showarrow": False, "font": {"color": "--soft", "size": 12}}
    upright = {"xref": "x", "yref": "paper", "y": 1, "yanchor": "top", "xanchor": "right", "textangle": -90, **common}
    flat = {"xref": "paper", "x": 1, "xanchor": "right", "yref": "y", "yanchor": "bottom", **common}
    return [{"x": math.log10(at), "text": said(name), **upright} for at, name in bounds[0].items()] + [
        {"y": at, "text": said(name), **flat} for at, name in bounds[1].items()
    ]


def _line(which: str, at: float) -> dict[str, Any]:
    other = "y" if which == "x" else "x"
    ends = {f"{which}0": at, f"{which}1": at, f"{other}0": 0, f"{other}1": 1, f"{which}ref": which, f"{other}ref": "paper"}
    return {"type": "line", "layer": "below", "line": {"color": "--soft", "width": 1.5, "dash": "dash"}, **ends}


def _padded(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.18 or abs(high) * 0.02 or 1.0
    return [low - room, high + room]


def _table(title: str, speed: str, quality: str, spots: Sequence[Spot]) -> TableFigure:
    between = any(spot.speed_interval or spot.quality_interval for spot in spots)
    rows = []
    for spot in spots:
        row = [spot.name, _with(spot.quality, spot.quality_interval), _with(spot.speed, spot.speed_interval)]
        rows.append((*row, shown("size_bytes", spot.size_bytes)))
    note = " (95 % interval)" if between else ""
    return TableFigure(title=title, columns=("model", quality + note, speed + note, "size on disk"), rows=tuple(rows))


def _with(value: float, interval: Interval | None) -> str:
    return number(value) + (f" ({number(interval[0])} to {number(interval[1])})" if interval else "")
