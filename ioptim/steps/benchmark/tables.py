"""The tables of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from ioptim.core.metrics import Kind, Samples
from ioptim.core.step import TableFigure
from ioptim.intervals import quantile_interval
from ioptim.steps.benchmark.scenarios import COST, MEMORY, SIZE
from ioptim.steps.benchmark.server import Served

CONFIDENCE = 0.95
_SCALES = {MEMORY.name: 1e-6, SIZE.name: 1e-6}
_COLUMNS = {
    "latency_p50_ms": "p50 ms",
    "latency_p90_ms": "p90 ms",
    "latency_p99_ms": "p99 ms",
    "n": "n",
    "multi_stream_p50_ms": "multi-stream p50 ms",
    "multi_stream_p90_ms": "multi-stream p90 ms",
    "multi_stream_p99_ms": "multi-stream p99 ms",
    "throughput_per_s": "rows/s",
    COST.name: "cost per million",
    "energy_per_row_j": "energy per row J",
    MEMORY.name: "peak memory MB",
    SIZE.name: "size MB",
    "load_s": "load s",
    "first_inference_ms": "first call ms",
}
_ALWAYS = ("latency_p50_ms", "latency_p90_ms", "latency_p99_ms")
"""Columns with a dash (None) where there are too few samples; the others are there where some model has the figure."""


def figures(found: Mapping[str, Mapping[str, float]]) -> TableFigure:
    """One line per model."""
    single = any("n" in figures for figures in found.values())
    shown = [name for name in _COLUMNS if any(name in figures for figures in found.values()) or (single and name in _ALWAYS)]
    rows = tuple((model, *(_rounded(figures.get(name), _SCALES.get(name, 1)) for name in shown)) for model, figures in found.items())
    return TableFigure(title="Speed, memory and size", columns=("model", *(_COLUMNS[name] for name in shown)), rows=rows)


def intervals(samples: Sequence[Samples]) -> TableFigure:
    """What a gate would judge from: the median of the blocks and its exact interval, where there are blocks enough."""
    rows = []
    for sample in samples:
        for model, values in sample.values.items():
            numbers = [value for value in values if value is not None]
            if sample.kind is Kind.BLOCKS and numbers:
                low, high = quantile_interval(numbers, 0.5, CONFIDENCE) or (None, None)
                rows.append((sample.metric.name, model, _rounded(median(numbers)), _rounded(low), _rounded(high), len(numbers)))
    columns = ("metric", "model", "median of blocks", "low", "high", "blocks")
    return TableFigure(title=f"Intervals at {CONFIDENCE:g} confidence", columns=columns, rows=tuple(rows))


def served(found: Mapping[str, Served], figures: Mapping[str, Mapping[str, float]]) -> TableFigure:
    """What each model serves, with which batches; 0 where no rate meets the bound, a dash where the search did not find out. Rate, low and
    high are of the rounds, which gates are judged from; the percentile is of those that met the bound."""
    asked = next(iter(found.values())).asked
    rows = []
    for model, one in found.items():
        setting, facts = one.setting, one.facts()
        batches = (setting.max_batch, setting.max_delay_ms, facts["mean_batch"], facts["padded_share"]) if setting else (None,) * 4
        low, high = one.interval or (None, None)
        cost = figures[model].get(COST.name)
        numbers = (one.rate_per_s, low, high, one.tail_ms, *batches, cost)
        rows.append((model, *(_rounded(value) for value in numbers)))
    rates = ("requests/s", "low", "high")
    columns = ("model", *rates, f"{asked.p} ms", "max batch", "max delay ms", "mean batch", "padded share")
    title = f"Requests per second {'at the rate asked for' if asked.rate_per_s else f'under {asked.bound}'}"
    return TableFigure(title=title, columns=(*columns, "cost per million"), rows=tuple(rows))


def _rounded(value: float | None, scale: float = 1) -> float | None:
    return None if value is None else float(f"{value * scale:.4g}")
