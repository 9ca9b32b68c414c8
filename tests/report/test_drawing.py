"""Charts as plotly.js draws them: plotly's own schema accepts each, and nothing is lost on the way from the data."""

from __future__ import annotations

import json
from collections.abc import Callable
from html import unescape
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ioptim.core.record import RunRecord
from ioptim.core.step import ChartFigure, Series
from ioptim.report import write_report
from ioptim.report.drawing import MOST_BARS, coloured, drawn
from ioptim.report.plot import logarithmic, said

TONES = {"compile": 0, "source": 1, "runtime-fp32": 2, "compile-ort": 3}


def chart(kind: str, *series: Series, **fields: Any) -> ChartFigure:
    return ChartFigure(**{"title": "T", "kind": kind, "x_label": "x", "y_label": "y", "series": series, **fields})


def painted(value: Any, key: str = "") -> Any:
    """What the page's script does to names of colours, with one colour for all."""
    if isinstance(value, dict):
        return {name: painted(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [painted(each, key) for each in value]
    return "#123456" if isinstance(value, str) and key.endswith("color") and value.startswith("--") else value


@pytest.mark.parametrize("kind", ["charted", "several", "hostile"])
def test_plotly_accepts_every_chart(records: ModuleType, tmp_path: Path, kind: str) -> None:
    graph = pytest.importorskip("plotly.graph_objects")
    run: RunRecord = getattr(records, kind)(tmp_path)
    html = write_report(run, tmp_path).read_text(encoding="utf-8")
    blocks = html.split('<script type="application/json">')[1:]
    assert blocks
    for block in blocks:
        spec = painted(json.loads(block.partition("</script>")[0]))
        figure = graph.Figure(data=spec["data"], layout=spec["layout"])
        figure.update_layout({path.replace(".", "_"): value for path, value in spec["narrow"].items()})


def test_bars_lie_with_the_first_on_top() -> None:
    plot = drawn(chart("bars", Series(name="ms", x=("a", "b"), y=(2.0, None))), TONES)
    [bar] = plot.traces
    assert (bar["orientation"], bar["x"], bar["y"]) == ("h", [2.0, None], [0, 1])
    assert plot.layout["yaxis"]["range"][0] > plot.layout["yaxis"]["range"][1]
    assert bar["text"] == ["2", "–"]
    assert plot.table.columns == ("x", "y") and plot.table.rows == (("a", 2.0), ("b", None))


def test_only_the_largest_of_many_bars_are_drawn_and_that_is_said() -> None:
    names = tuple(f"layer{i}" for i in range(50))
    plot = drawn(chart("bars", Series(name="s", x=names, y=tuple(float(i) for i in range(50)), low=(0.0,) * 50, high=(60.0,) * 50)), TONES)
    [bar] = plot.traces
    assert len(bar["x"]) == MOST_BARS and min(bar["x"]) == 20.0
    assert bar["error_x"]["array"][0] == 40.0 and bar["error_x"]["arrayminus"][0] == 20.0
    assert plot.reading == "The 30 largest of 50 are drawn, all are in the table."
    assert len(plot.table.rows) == 50 and plot.table.rows[0] == ("layer0", 0.0, "0 to 60")


def test_points_keep_labels_intervals_and_gaps() -> None:
    series = Series(name="m", x=(1.0, 2.0), y=(10.0, None), low=(9.0, None), high=(12.0, None), labels=("first", "second"))
    plot = drawn(chart("points", series), TONES)
    [trace] = plot.traces
    assert trace["mode"] == "markers+text" and trace["error_y"]["array"] == [2.0, None]
    assert (trace["text"], trace["textposition"]) == (["first", "second"], ["middle right", "middle left"])
    assert trace["hovertext"][0] == "m<br>first<br>x: 1<br>y: 10<br>interval 9 to 12"
    assert plot.reading == "Of 2 points, 1 without a value."
    assert plot.table.rows == (("m", "first", 1.0, 10.0, "9 to 12"), ("m", "second", 2.0, None, ""))


def test_a_point_right_beside_a_named_one_goes_without_a_name() -> None:
    series = Series(name="m", x=(0.0, 9.0, 10.0), y=(0.0, 5.0, 5.1), labels=("a", "b", "c"))
    series = series.model_copy(update={"x": (*series.x, 10.0), "y": (*series.y, 10.0), "labels": (*series.labels, "d")})
    assert drawn(chart("points", series), TONES).traces[0]["text"] == ["a", "b", "", "d"]


def test_only_a_few_points_of_the_only_series_are_named_in_the_drawing() -> None:
    few = Series(name="m", x=(1.0, 2.0), y=(1.0, 2.0), labels=("a", "b"))
    many = Series(name="m", x=tuple(map(float, range(13))), y=(1.0,) * 13, labels=tuple(f"layer{i}" for i in range(13)))
    for series in ((few, few.model_copy(update={"name": "n"})), (many,), (few.model_copy(update={"labels": ("same", "same")}),)):
        assert all(trace["mode"] == "markers" for trace in drawn(chart("points", *series), TONES).traces)


def test_what_a_logarithmic_axis_cannot_show_is_counted() -> None:
    plot = drawn(chart("points", Series(name="m", x=(0.0, 1.0), y=(1.0, -1.0)), log_x=True, log_y=True), TONES)
    assert plot.reading == "Of 2 points, 2 at or below zero not shown on the logarithmic axis."
    assert plot.layout["xaxis"]["type"] == plot.layout["yaxis"]["type"] == "log"


def test_a_bound_is_a_line_without_marks_in_ink() -> None:
    roof = Series(name="roof", x=(1.0, 10.0), y=(1.0, 1.0), line=True)
    measured = Series(name="MatMul", x=(1.0,), y=(0.5,), labels=("l",))
    plot = drawn(chart("points", roof, measured, log_x=True), TONES)
    assert [trace["mode"] for trace in plot.traces] == ["lines", "markers"]
    assert plot.traces[0]["line"]["color"] == "--ink"
    assert [key.shape for key in plot.keys] == ["solid", "circle"]


def test_models_come_in_the_order_of_the_report() -> None:
    rows = [Series(name=name, x=(), y=(1.0,)) for name in ("source", "runtime-fp32", "compile")]
    assert [row[0] for row in drawn(chart("distribution", *rows), TONES).table.rows] == ["compile", "source", "runtime-fp32"]


def test_a_model_has_its_colour_everywhere_and_others_take_what_is_left() -> None:
    named = [Series(name=name, x=(), y=(1.0,)) for name in ("Gather", "source", "compile, batch 8", "compile-ort", "compiler")]
    assert coloured(named, TONES) == ["t2", "t1", "t0", "t3", "t4"]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([1.04, 7.9], ["1", "1.5", "2", "3", "5", "7"]),
        ([0.5, 200.0], ["0.5", "1", "2", "5", "10", "20", "50", "100", "200"]),
        ([1.0, 1e6], ["1", "10", "100", "1\u202f000", "10\u202f000", "100\u202f000", "1\u202f000\u202f000"]),
    ],
)
def test_ticks_of_a_logarithmic_axis(values: list[float], ticks: list[str]) -> None:
    axis = logarithmic(values)
    assert axis["ticktext"] == ticks and len(axis["tickvals"]) == len(ticks)


def test_a_logarithmic_axis_without_a_positive_value() -> None:
    assert logarithmic([0.0, -1.0, None]) == {"type": "log"}
    assert "tickvals" not in logarithmic([1.0, 1.1])


@pytest.mark.parametrize("cut", [None, 20])
def test_text_is_no_markup_for_plotly(cut: int | None) -> None:
    told = said("<a href='https://x'>press</a> & more words", cut)
    assert "<" not in told.replace("&lt;", "") and unescape(told).startswith("<a href")
    assert cut is None or len(unescape(told)) == cut


@pytest.mark.parametrize("kind", ["bars", "points", "distribution"])
def test_a_chart_without_anything_in_it(kind: str) -> None:
    plot: Any = drawn(chart(kind, Series(name="nothing", x=(), y=())), TONES)
    assert plot.title == "T"
    empty: Callable[..., Any] = drawn
    assert empty(chart(kind), TONES).traces == []
