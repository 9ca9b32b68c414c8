"""Quality against speed: where the models lie, how sure that is, where the gates draw the line."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from types import ModuleType

import pytest

from ioptim.report.estimates import estimates, of_values
from ioptim.report.trade_off import Spot, trade_off


def spots() -> list[Spot]:
    return [
        Spot("compile", "t0", 1.04, 0.883, 23e6, (1.01, 1.06), (0.86, 0.90)),
        Spot("source", "t1", 7.9, 0.8865, 92e6),
        Spot("runtime-fp32", "t2", 2.9, 0.8865, 92e6),
    ]


def test_markers_have_the_area_of_the_size_on_disk() -> None:
    plot = trade_off("T", "latency_p50_ms", "accuracy", spots())
    assert plot is not None
    small, large, _ = (trace["marker"]["size"] for trace in plot.traces)
    assert (large / small) ** 2 == pytest.approx(4)
    assert len({trace["marker"]["symbol"] for trace in plot.traces}) == 3
    assert plot.traces[0]["error_x"]["array"] == [pytest.approx(0.02)] and plot.traces[1]["error_x"] == {"visible": False}
    assert plot.table.rows[0] == ("compile", "0.883 (0.86 to 0.9)", "1.04 (1.01 to 1.06)", "23 MB")
    assert plot.reading == "Higher is better, further left is faster. The area is the size on disk. Bars are 95 % intervals."


def test_bounds_start_from_the_gates_baseline(records: ModuleType, tmp_path: Path) -> None:
    plot = trade_off("T", "latency_p50_ms", "accuracy", spots(), records.passed(tmp_path).gates)
    assert plot is not None
    speed, quality = plot.layout["shapes"]
    assert speed["x0"] == speed["x1"] == pytest.approx(2.9 / 2.2)
    assert quality["y0"] == pytest.approx(0.8865 - 0.02)
    assert [note["text"] for note in plot.layout["annotations"]] == ["accuracy", "min_speedup 2.2", "max_drop 0.02"]


def test_faster_by_a_rate_is_further_right(records: ModuleType, tmp_path: Path) -> None:
    [gate] = [gate for gate in records.passed(tmp_path).gates if gate.gate.bound[0] == "min_speedup"]
    name = "throughput_per_s"
    plot = trade_off("T", name, "accuracy", spots(), [gate.model_copy(update={"metric": name})])
    assert plot is not None
    [speed] = plot.layout["shapes"]
    assert speed["x0"] == speed["x1"] == pytest.approx(2.9 * 2.2)


def test_a_slices_bound_is_not_that_of_all_rows(records: ModuleType, tmp_path: Path) -> None:
    gates = [gate.model_copy(update={"slice": "long"}) for gate in records.passed(tmp_path).gates]
    plot = trade_off("T", "latency_p50_ms", "accuracy", spots(), gates)
    assert plot is not None and plot.layout["shapes"] == []


def test_one_model_is_no_comparison() -> None:
    assert trade_off("T", "latency_p50_ms", "accuracy", spots()[:1]) is None
    assert trade_off("T", "latency_p50_ms", "accuracy", [*spots()[:1], Spot("b", "t1", 0.0, 1.0, None)]) is None


def test_intervals_are_of_the_shown_figures(records: ModuleType, tmp_path: Path) -> None:
    run = records.passed(tmp_path)
    sure = estimates(run)
    low, high = sure["cpu", "compile", "accuracy"]
    assert (low, high) == (pytest.approx(0.8600, abs=1e-4), pytest.approx(0.9027, abs=1e-4))  # Wilson, 770 of 872
    assert all(
        low <= run.node("benchmark").subjects["compile"]["latency_p50_ms"] <= high
        for low, high in [sure["cpu", "compile", "latency_p50_ms"]]
    )
    assert ("cpu", "compile", "size_bytes") not in sure
    elsewhere = {name: {**values, "latency_p50_ms": 99.0} for name, values in run.node("benchmark").subjects.items()}
    nodes = tuple(node.model_copy(update={"subjects": elsewhere}) if node.id == "benchmark" else node for node in run.nodes)
    assert ("cpu", "compile", "latency_p50_ms") not in estimates(run.model_copy(update={"nodes": nodes}))


def test_no_interval_without_enough_numbers(records: ModuleType) -> None:
    accuracy, latency = records.rows()[0], records.timings()[0]
    assert of_values(accuracy.metric, accuracy.kind, (1.0, None, 0.0)) is None
    assert of_values(latency.metric, latency.kind, (1.0, 2.0, 3.0)) is None
    assert of_values(latency.metric, latency.kind, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)) == (1.0, 6.0)
    rows = tuple(0.1 * i for i in range(12))
    half = 2.201 * statistics.stdev(rows) / math.sqrt(12)  # Student's t of 11 degrees of freedom
    assert of_values(accuracy.metric, accuracy.kind, rows) == (pytest.approx(0.55 - half, abs=1e-3), pytest.approx(0.55 + half, abs=1e-3))
