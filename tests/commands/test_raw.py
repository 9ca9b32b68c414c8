"""Samples of a benchmark, taken again from the calls that it kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ioptim import timing
from ioptim.commands._raw import derive, raw_file
from ioptim.core.metrics import Kind, Samples
from ioptim.core.record import NodeRecord
from ioptim.loadgen import Scenario
from ioptim.steps.benchmark import Benchmark
from ioptim.steps.benchmark.result import Result
from ioptim.steps.benchmark.rounds import Taken
from ioptim.steps.benchmark.search import ServerLoad, Setting
from ioptim.steps.benchmark.server import Served, Trial
from ioptim.steps.benchmark.subjects import Asked, Block

pytest.importorskip("pyarrow", reason="pyarrow is not installed")

SEARCHED, GIVEN = ServerLoad(latency_bound_ms=20, percentile=0.9), ServerLoad(latency_bound_ms=20, percentile=0.9, rate_per_s=50)
PRICES = {"compile": 0.4, "source": 1.5}
OF_EVERY_SERVER = {"latency_p50_ms", "latency_p90_ms", "latency_mean_ms", "multi_stream_p50_ms", "throughput_per_s", "cost_per_million"}


def seconds(model: str, i: int, n: int) -> list[float]:
    return [(0.01 if model == "source" else 0.004) * (1 + 0.01 * i + 0.001 * k * k) for k in range(n)]


def measured(folder: Path, server: ServerLoad | None) -> tuple[NodeRecord, dict[str, Samples], Path]:
    """What a benchmark of two models keeps and records, written by itself from made-up times."""
    scenarios = [scenario for scenario in Scenario if scenario is not Scenario.SERVER]
    step = Benchmark(scenarios=(*scenarios, *([Scenario.SERVER] if server else [])), server=server)
    taken = {}
    for scenario in scenarios:
        blocks = {model: [Block(seconds(model, i, 9), 0.0, 0.0) for i in range(6)] for model in PRICES}
        taken[scenario] = Taken(scenario, Asked(scenario, 9, 4, 0), blocks)
    served = {model: Served(server, rounds=[trials(model, i, server) for i in range(6)]) for model in PRICES} if server else {}
    subjects: list[Any] = [
        SimpleNamespace(
            name=model,
            target=SimpleNamespace(price_per_hour=price),
            model=SimpleNamespace(size_bytes=1),
            peak_memory_bytes=1,
            startup={"load_s": 1.0, "first_inference_s": 1.0},
            facts={},
        )
        for model, price in PRICES.items()
    ]
    ctx: Any = SimpleNamespace(candidates={"compile": None}, baselines={}, target_of=lambda model: SimpleNamespace(name="cpu"), out=folder)
    outcome = Result(step._metrics(), subjects, taken, served, ctx, 0.0, "").outcome("natural")
    node = NodeRecord(
        id="benchmark", step="benchmark", target="cpu", parents=(), config=step.model_dump(mode="json"), facts=outcome.facts
    )
    raw = raw_file(folder / "files")
    assert raw is not None
    return node, {sample.metric.name: sample for sample in outcome.samples}, raw


def trials(model: str, i: int, server: ServerLoad) -> list[Trial]:
    """Of one round. Where a rate is searched for, the search has shown that none of the source meets the bound."""
    if model == "source" and server.rate_per_s is None:
        return []
    taken = seconds(model, i, 40)
    tail_s = timing.percentile(taken, server.percentile)
    assert tail_s is not None
    return [Trial(Setting(1, 0), server.rate_per_s or 50.0 + i, taken, tail_s, model == "compile", 1, 0)]


@pytest.mark.parametrize(
    ("server", "of_server"), [(None, set()), (SEARCHED, set()), (GIVEN, {"server_p90_ms"})], ids=["none", "searched", "given"]
)
def test_what_is_derived_is_what_the_benchmark_kept(tmp_path: Path, server: ServerLoad | None, of_server: set[str]) -> None:
    node, samples, raw = measured(tmp_path, server)
    derived = derive(raw, node, list(samples.values()), list(PRICES.values()))
    both = derived.keys() & samples.keys()
    assert both >= OF_EVERY_SERVER | of_server
    assert samples.keys() - both == {"peak_memory_bytes", "size_bytes"} | ({"server_rate_per_s"} if server is SEARCHED else set())
    for name in both:
        for model, values in samples[name].values.items():
            assert list(derived[name].get(model, [])) == list(values), (name, model)


def test_a_cost_is_that_of_one_of_the_prices_at_the_rate_that_was_kept(tmp_path: Path) -> None:
    node, samples, raw = measured(tmp_path, SEARCHED)
    costs = samples["cost_per_million"]
    lower = costs.model_copy(update={"values": {model: tuple(c and c / 2 for c in mine) for model, mine in costs.values.items()}})
    derived = derive(raw, node, [samples["server_rate_per_s"], lower], list(PRICES.values()))
    assert derived["cost_per_million"]["compile"] == pytest.approx(costs.values["compile"])
    assert list(costs.values["source"]) == derived["cost_per_million"]["source"] == [None] * 6  # it serves nothing


def test_a_round_that_missed_the_bound_of_a_given_rate_has_no_cost(tmp_path: Path) -> None:
    node, samples, raw = measured(tmp_path, GIVEN)
    costs = samples["cost_per_million"]
    claimed = costs.model_copy(update={"values": dict.fromkeys(costs.values, (8.0,) * 6)})
    derived = derive(raw, node, [claimed], list(PRICES.values()))["cost_per_million"]
    assert list(costs.values["source"]) == derived["source"] == [None] * 6
    assert None not in derived["compile"]


def test_a_scenario_that_is_not_in_the_file_gives_nothing(tmp_path: Path) -> None:
    node, samples, raw = measured(tmp_path, None)
    from pyarrow import compute, parquet

    table = parquet.read_table(raw)
    parquet.write_table(table.filter(compute.not_equal(table["scenario"], "offline")), raw)
    derived = derive(raw, node, [], [])
    assert derived["throughput_per_s"] == {} and samples["throughput_per_s"].kind is Kind.BLOCKS
