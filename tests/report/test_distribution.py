"""Distributions: few samples as dots, many as a density, percentiles only where the samples support them."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from ioptim.core.step import ChartFigure, Series
from ioptim.report.density import POINTS, density
from ioptim.report.distribution import distribution


def chart(*rows: tuple[float | None, ...]) -> ChartFigure:
    series = tuple(Series(name=f"m{i}", x=(), y=row) for i, row in enumerate(rows))
    return ChartFigure(title="Latency", kind="distribution", x_label="", y_label="latency (ms)", series=series)


def test_density_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = random.Random(0)
    samples = [rng.gauss(10, 2) if i % 3 else rng.gauss(20, 1) for i in range(3000)]
    low, high = min(samples), max(samples)
    ours = density(samples, low, high)
    spread = statistics.stdev(samples)
    quartiles = statistics.quantiles(samples, n=4)
    width = 0.9 * min(spread, (quartiles[2] - quartiles[0]) / 1.34) * len(samples) ** -0.2
    places = [low + (high - low) * i / (POINTS - 1) for i in range(POINTS)]
    theirs = stats.gaussian_kde(samples, bw_method=width / spread)(places)
    assert max(abs(a - b / max(theirs)) for a, b in zip(ours, theirs, strict=True)) < 0.01


def test_few_samples_are_all_drawn_and_support_no_tail() -> None:
    plot = distribution(chart(tuple(float(i) for i in range(10, 30))), ["t0"])
    dots, strokes = plot.traces
    assert len(dots["x"]) == 20 and strokes["x"] == [19.5]
    assert plot.table.rows == (("m0", 20, 10.0, 19.5, None, None, 29.0),)
    assert plot.reading.startswith("Every dot is one sample") and plot.table_open


def test_many_samples_become_a_density_of_fixed_size() -> None:
    rng = random.Random(0)
    plot = distribution(chart(tuple(rng.lognormvariate(0, 0.1) for _ in range(20_000)), (5.0,) * 400), ["t0", "t1"])
    hill, strokes, dots, _ = plot.traces
    assert len(hill["x"]) == POINTS + 2 and max(hill["y"]) == 0 and min(hill["y"]) == pytest.approx(-0.85)
    assert len(strokes["x"]) == 3 and strokes["x"] == sorted(strokes["x"])
    assert set(dots["x"]) == {5.0}
    assert plot.layout["xaxis"]["type"] == "log" and plot.layout["xaxis"]["title"]["text"] == "latency (ms) (logarithmic)"


def test_what_is_no_number_is_left_out_and_counted() -> None:
    plot = distribution(chart((1.0, None, math.inf, 2.0), (None,)), ["t0", "t1"])
    assert plot.note.endswith("3 samples were not numbers.")
    assert [row[:2] for row in plot.table.rows] == [("m0", 2), ("m1", 0)]
    assert "type" not in plot.layout["xaxis"]


def test_zero_and_below_keep_a_linear_axis() -> None:
    plot = distribution(chart((-1.0, 0.0, 100.0)), ["t0"])
    assert "type" not in plot.layout["xaxis"]
