"""What is measured in each scenario: its metrics, and the figure of a block and of all blocks."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ioptim import timing
from ioptim.core.metrics import Metric
from ioptim.loadgen import Scenario

Blocks = Sequence[Sequence[float]]
"""Seconds of each query, block by block."""


@dataclass(frozen=True)
class Figure:
    """A metric and its value in each block; that of all blocks is their median. `rows` is how many rows a block answers."""

    metric: Metric
    of_blocks: Callable[[Blocks, int], list[float]]
    """One value for each block, or for as few neighbouring ones together as support it; none where all together do not."""


def _metric(name: str, description: str) -> Metric:
    return Metric(name=name, higher_is_better=False, description=description, unit="ms")


def _quantile(name: str, quantile: float, what: str) -> Figure:
    return Figure(
        _metric(name, f"time within which {quantile:.0%} of {what} end"),
        lambda blocks, rows: [value * 1e3 for value in timing.block_percentiles(blocks, quantile)],
    )


def _median(name: str, what: str) -> Figure:
    """Of a block, however short, the plain median."""

    def of_blocks(blocks: Blocks, rows: int) -> list[float]:
        known = sum(map(len, blocks)) >= timing.fewest_for(0.5)
        return [statistics.median(block) * 1e3 for block in blocks] if known else []

    return Figure(_metric(name, f"median time of {what}"), of_blocks)


_ROW, _QUERY = "the calls with one row", "the multi-stream queries"
P50 = _median("latency_p50_ms", _ROW)
MEAN = Figure(
    _metric("latency_mean_ms", f"mean time of {_ROW}"),
    lambda blocks, rows: [statistics.fmean(block) * 1e3 for block in blocks],
)
THROUGHPUT = Figure(
    Metric(name="throughput_per_s", higher_is_better=True, description="rows per second in full batches", unit="rows/s"),
    lambda blocks, rows: [rows / max(block) for block in blocks],
)
FIGURES: dict[Scenario, tuple[Figure, ...]] = {
    Scenario.SINGLE_STREAM: (P50, _quantile("latency_p90_ms", 0.9, _ROW), _quantile("latency_p99_ms", 0.99, _ROW), MEAN),
    Scenario.MULTI_STREAM: (
        _median("multi_stream_p50_ms", _QUERY),
        _quantile("multi_stream_p90_ms", 0.9, _QUERY),
        _quantile("multi_stream_p99_ms", 0.99, _QUERY),
    ),
    Scenario.OFFLINE: (THROUGHPUT,),
    Scenario.SERVER: (),
}
QUANTILES = {"_p50_ms": 0.5, "_p90_ms": 0.9, "_p99_ms": 0.99}
MEMORY = Metric(name="peak_memory_bytes", higher_is_better=False, description="most memory the process ever held", unit="bytes")
SIZE = Metric(name="size_bytes", higher_is_better=False, description="model on disk, without its assets", unit="bytes")
COST = Metric(
    name="cost_per_million",
    higher_is_better=False,
    description="price of the target for a million requests at the server's rate, or for a million rows at the offline throughput",
    unit="in the price's currency",
)
