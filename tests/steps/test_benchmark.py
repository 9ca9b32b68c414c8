from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from ioptim import hardware, timing
from ioptim.core.artifact import Format, ModelArtifact, seal
from ioptim.core.gate import Gate, Verdict
from ioptim.core.metrics import Kind, Samples
from ioptim.core.step import ChartFigure, Level, Outcome
from ioptim.errors import StepError, UnavailableError
from ioptim.gates import judge
from ioptim.loadgen import Scenario
from ioptim.plan import missing_text
from ioptim.steps.benchmark import Benchmark
from ioptim.steps.benchmark.rounds import Taken
from ioptim.steps.benchmark.search import ServerLoad, Setting
from ioptim.steps.benchmark.server import Served, Trial
from ioptim.steps.benchmark.subjects import Asked, Block

QUICK = Benchmark(blocks=8, duration_s=0.8, rows=4, batch_size=2)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    quiet(monkeypatch)


def quiet(monkeypatch: pytest.MonkeyPatch, **busy: float) -> None:
    """A machine on which nothing else runs, whatever this one does."""
    monkeypatch.setattr("ioptim.timing.conditions", lambda before, after, own: busy)


def artifact(folder: Path, size: int = 1000, target: str = "cpu", **spec: Any) -> ModelArtifact:
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps(spec).ljust(size))
    return seal(ModelArtifact(path=folder, target=target, format=Format.NULL, entry="model.json"))


class FakeContext:
    subject_worker = "fake_subject:Subject"
    request: dict[str, Any] = {}
    hardware = hardware.probe()

    def __init__(self, out: Path, candidates: dict[str, ModelArtifact], baselines: dict[str, ModelArtifact], price: float | None) -> None:
        self.out = out
        self.candidates = candidates
        self.baselines = baselines
        self.price = price
        self.target = SimpleNamespace(device="cpu")
        self.said: list[tuple[float, str]] = []

    def target_of(self, model: ModelArtifact) -> SimpleNamespace:
        return SimpleNamespace(name=model.target, threads=1, price_per_hour=self.price)

    def progress(self, done: float, message: str) -> None:
        self.said.append((done, message))


def measure(
    step: Benchmark,
    out: Path,
    candidates: dict[str, ModelArtifact],
    baselines: dict[str, ModelArtifact] | None = None,
    price: float | None = None,
) -> tuple[Outcome, FakeContext]:
    ctx = FakeContext(out, candidates, baselines or {}, price)
    return step.run(next(iter(candidates.values())), ctx), ctx  # type: ignore[arg-type]


@pytest.fixture
def measured(tmp_path: Path) -> tuple[Outcome, FakeContext]:
    baselines = {
        "source": artifact(tmp_path / "source", 4000, seconds=0.008),
        "runtime-fp32": artifact(tmp_path / "fp32", 4000, seconds=0.004),
    }
    return measure(QUICK, tmp_path / "out", {"compile": artifact(tmp_path / "int8", seconds=0.002)}, baselines)


def sample(outcome: Outcome, name: str) -> Samples:
    return next(sample for sample in outcome.samples if sample.metric.name == name)


def chart(outcome: Outcome, title: str) -> ChartFigure:
    return next(chart for chart in outcome.charts if chart.title == title)


def kept(ctx: FakeContext) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(ctx.out / "files" / "latency.parquet").to_pylist()
    return rows


def texts(outcome: Outcome, level: Level | None = None) -> list[str]:
    return [note.text for note in outcome.notes if level in (None, note.level)]


def asked(outcome: Outcome, name: str, method: str) -> list[Any]:
    return [call[1:] for call in outcome.facts["subjects"][name]["calls"] if call[0] == method]


def test_figures_of_every_subject(measured: tuple[Outcome, FakeContext]) -> None:
    outcome, _ = measured
    assert list(outcome.subjects) == ["source", "runtime-fp32", "compile"]
    candidate, source = outcome.subjects["compile"], outcome.subjects["source"]
    # Four rows of 1.00, 1.01, 1.02, 1.03 times 2 ms.
    assert candidate["latency_p50_ms"] == pytest.approx(2.03)
    assert candidate["latency_mean_ms"] == pytest.approx(2.03)
    assert candidate["latency_p90_ms"] == pytest.approx(2.06)
    assert candidate["n"] == 32
    assert candidate["throughput_per_s"] == pytest.approx(2 / (1.5 * 0.002 * 1.005))
    assert candidate["size_bytes"] == 1000
    assert candidate["load_s"] == 0.5
    assert candidate["first_inference_ms"] == pytest.approx(20)
    assert candidate["peak_memory_bytes"] > 1e6
    assert source["latency_p50_ms"] == pytest.approx(4 * candidate["latency_p50_ms"])


def test_the_only_candidate_stands_for_the_step(measured: tuple[Outcome, FakeContext]) -> None:
    outcome, _ = measured
    assert outcome.metrics["latency_p50_ms"] == outcome.subjects["compile"]["latency_p50_ms"]
    assert outcome.metrics["speedup_vs_source"] == pytest.approx(4)
    assert outcome.metrics["speedup_vs_runtime-fp32"] == pytest.approx(2)
    assert outcome.metrics["throughput_ratio_vs_source"] == pytest.approx(4)
    assert outcome.metrics["size_ratio_vs_source"] == pytest.approx(0.25)
    assert outcome.metrics["harness_floor_us"] == 7
    assert "speedup_vs_source" not in outcome.subjects["source"]


def test_samples_are_blocks_side_by_side(measured: tuple[Outcome, FakeContext]) -> None:
    outcome, _ = measured
    p50 = sample(outcome, "latency_p50_ms")
    assert p50.kind is Kind.BLOCKS
    assert {name: len(values) for name, values in p50.values.items()} == {"source": 8, "runtime-fp32": 8, "compile": 8}
    assert sample(outcome, "throughput_per_s").metric.higher_is_better
    assert sample(outcome, "size_bytes").kind is Kind.EXACT
    assert sample(outcome, "size_bytes").values["source"] == (4000,)
    assert sample(outcome, "peak_memory_bytes").kind is Kind.EXACT
    assert [s.metric.name for s in outcome.samples] == [n for n in QUICK.metric_names(None) if n != "cost_per_million"]  # type: ignore[arg-type]


def test_every_block_is_the_same_test_for_all(measured: tuple[Outcome, FakeContext]) -> None:
    outcome, _ = measured
    begun = asked(outcome, "source", "begin")
    single = {"load": {"scenario": "single-stream", "queries": 4, "rows_per_query": 1}, "batch_size": 1, "lead_in": 3}
    offline = {"load": {"scenario": "offline", "queries": 4, "rows_per_query": 1}, "batch_size": 2, "lead_in": 2}
    assert begun.count([single]) == begun.count([offline]) == 3 + 8  # the warm-up was stable after three
    assert begun == asked(outcome, "runtime-fp32", "begin") == asked(outcome, "compile", "begin")
    assert asked(outcome, "source", "prepare") == asked(outcome, "compile", "prepare")


def test_turns_go_round_and_back(measured: tuple[Outcome, FakeContext]) -> None:
    _, ctx = measured
    turns = [message.rpartition(", ")[2] for _, message in ctx.said if message.startswith("single-stream: round")]
    assert turns[:6] == ["source", "runtime-fp32", "compile", "compile", "runtime-fp32", "source"]
    done = [value for value, _ in ctx.said]
    assert done == sorted(done)
    assert done[-1] == 1.0


def test_processes_have_their_targets_threads(measured: tuple[Outcome, FakeContext]) -> None:
    outcome, _ = measured
    facts = outcome.facts["subjects"]["compile"]
    assert (facts["threads"], facts["omp"], facts["cpus"]) == (1, "1", 1)


def test_raw_samples_are_kept(measured: tuple[Outcome, FakeContext]) -> None:
    _, ctx = measured
    rows = kept(ctx)
    assert len(rows) == 3 * 8 * (4 + 2)  # models, blocks, queries (offline: batches)
    assert rows[4] == {"subject": "source", "scenario": "single-stream", "block": 1, "query": 0, "seconds": 0.008}
    assert {row["scenario"] for row in rows} == {"single-stream", "offline"}


def test_loadgen_keeps_its_files_by_model(measured: tuple[Outcome, FakeContext]) -> None:
    outcome, _ = measured
    assert asked(outcome, "runtime-fp32", "logs") == [["runtime-fp32"]]


def test_a_percentile_without_samples_is_not_reported(measured: tuple[Outcome, FakeContext]) -> None:
    outcome, _ = measured
    assert "latency_p99_ms" not in outcome.subjects["compile"]
    assert sample(outcome, "latency_p99_ms").values["compile"] == ()
    assert "latency_p99_ms is not reported: 32 samples, at least 299 are needed; raise duration_s or blocks" in [
        n.text for n in outcome.notes
    ]


def test_the_table_has_a_line_per_model(measured: tuple[Outcome, FakeContext]) -> None:
    outcome, _ = measured
    speed = outcome.tables[0]
    assert speed.columns == ("model", "p50 ms", "p90 ms", "p99 ms", "n", "rows/s", "peak memory MB", "size MB", "load s", "first call ms")
    assert speed.rows[2][:6] == ("compile", 2.03, 2.06, None, 32, 663.3)


def test_intervals_are_those_that_gates_judge_by(measured: tuple[Outcome, FakeContext]) -> None:
    outcome, _ = measured
    intervals = outcome.tables[1]
    assert intervals.title == "Intervals at 0.95 confidence"
    assert ("latency_p50_ms", "compile", 2.03, 2.03, 2.03, 8) in intervals.rows
    assert ("latency_p90_ms", "compile", 2.06, None, None, 1) in intervals.rows  # 32 samples make one block for p90


def test_every_figure_is_what_a_verdict_says_of_it(tmp_path: Path) -> None:
    """The median of the blocks: a third of them on a busy machine moves neither, and the calls of all blocks together have another p90."""
    step = Benchmark(blocks=9, duration_s=3, rows=4, batch_size=2)
    source, compiled = artifact(tmp_path / "source", seconds=0.004), artifact(tmp_path / "int8", seconds=0.002, slow_every=3)
    outcome, _ = measure(step, tmp_path / "out", {"compile": compiled}, {"source": source})
    timed = ["latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "latency_mean_ms"]
    judged = [each for each in outcome.samples if each.kind is Kind.BLOCKS and each.values["compile"]]
    assert [each.metric.name for each in judged] == [*timed, "throughput_per_s"]
    for each in judged:
        gate = Gate(metric=each.metric.name, max_ratio=100)
        (result,) = judge(gate, outcome.samples, ["compile"])
        assert outcome.subjects["compile"][each.metric.name] == result.candidate_value
        assert outcome.subjects["source"][each.metric.name] == result.baseline_value
    assert outcome.subjects["compile"]["latency_p90_ms"] == pytest.approx(2 * 1.03)
    calls = [call for each in chart(outcome, "Latency, single-stream").series if each.name == "compile" for call in each.y]
    assert timing.percentile([y for y in calls if y is not None], 0.9) == pytest.approx(20, rel=0.1)


def test_charts_are_small_and_hold_every_model(tmp_path: Path) -> None:
    step = Benchmark(blocks=6, duration_s=6, rows=4, scenarios=(Scenario.SINGLE_STREAM,))
    outcome, _ = measure(step, tmp_path / "out", {"compile": artifact(tmp_path / "fast", seconds=0.001)})
    (series,) = chart(outcome, "Latency, single-stream").series
    assert outcome.subjects["compile"]["n"] == 5976
    assert len(series.y) == 2000
    assert (min(series.y), max(series.y)) == (1.0, 1.03)
    assert chart(outcome, "Warm-up, single-stream").series[0].x == (1, 2, 3)


def test_a_slow_model_gets_fewer_rows_and_keeps_whole_passes(tmp_path: Path) -> None:
    step = QUICK.model_copy(update={"scenarios": (Scenario.SINGLE_STREAM,)})
    outcome, _ = measure(step, tmp_path / "out", {"compile": artifact(tmp_path / "slow", seconds=0.04)})
    facts = outcome.facts["scenarios"]["single-stream"]
    assert (facts["calls_per_block"], facts["rows_per_block"], facts["unrecorded_calls_per_block"]) == (1, 1, 1)
    assert "throughput_per_s" not in outcome.metrics
    assert step.metric_names(None) == [  # type: ignore[arg-type]
        *("latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "latency_mean_ms", "peak_memory_bytes", "size_bytes")
    ]


def test_a_fast_model_makes_several_passes(tmp_path: Path) -> None:
    step = QUICK.model_copy(update={"scenarios": (Scenario.SINGLE_STREAM,)})
    outcome, _ = measure(step, tmp_path / "out", {"compile": artifact(tmp_path / "fast", seconds=0.001)})
    facts = outcome.facts["scenarios"]["single-stream"]
    assert facts["calls_per_block"] == facts["rows_per_block"] == 96
    assert outcome.metrics["latency_p99_ms"] == pytest.approx(1.03)


def test_several_candidates_stay_apart_and_meet_their_own_targets_baseline(tmp_path: Path) -> None:
    candidates = {
        "compile-a": artifact(tmp_path / "a", target="a", seconds=0.001),
        "compile-b": artifact(tmp_path / "b", target="b", seconds=0.002),
    }
    baselines = {
        "source": artifact(tmp_path / "source", seconds=0.004),
        "runtime-fp32@a": artifact(tmp_path / "fa", target="a", seconds=0.002),
        "runtime-fp32@b": artifact(tmp_path / "fb", target="b", seconds=0.006),
    }
    outcome, _ = measure(QUICK, tmp_path / "out", candidates, baselines)
    assert set(outcome.metrics) == {"harness_floor_us"}
    assert outcome.subjects["compile-a"]["speedup_vs_runtime-fp32"] == pytest.approx(2)
    assert outcome.subjects["compile-b"]["speedup_vs_runtime-fp32"] == pytest.approx(3)
    assert outcome.subjects["compile-b"]["speedup_vs_source"] == pytest.approx(2)
    opened_on = {name: facts["target"] for name, facts in outcome.facts["subjects"].items()}
    assert opened_on == {"source": "cpu", "compile-a": "a", "compile-b": "b", "runtime-fp32@a": "a", "runtime-fp32@b": "b"}


def test_a_model_that_crashes_is_named(tmp_path: Path) -> None:
    baselines = {"source": artifact(tmp_path / "source", seconds=0.004)}
    with pytest.raises(StepError, match=r"^compile: the process was killed by signal 6 \(aborted\)"):
        measure(QUICK, tmp_path / "out", {"compile": artifact(tmp_path / "bad", seconds=0.001, crash=True)}, baselines)


def test_a_runtime_that_is_not_there_stays_that_error(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"^compile: the runtime is not installed: pip install it$"):
        measure(QUICK, tmp_path / "out", {"compile": artifact(tmp_path / "bad", unavailable=True)})


def test_models_that_get_other_rows_are_not_compared(tmp_path: Path) -> None:
    baselines = {"source": artifact(tmp_path / "source", seconds=0.004)}
    candidates = {"compile": artifact(tmp_path / "short", seconds=0.001, rows=3)}
    with pytest.raises(StepError, match=r"^compile got 3 rows and source 4; they cannot be compared$"):
        measure(QUICK, tmp_path / "out", candidates, baselines)


def test_rows_are_asked_for_as_the_recipe_says(tmp_path: Path) -> None:
    step = QUICK.model_copy(update={"padding": "max_length", "scenarios": (*QUICK.scenarios, Scenario.MULTI_STREAM), "streams": 3})
    outcome, _ = measure(step, tmp_path / "out", {"compile": artifact(tmp_path / "m", seconds=0.001)})
    prepared = [call[0] for call in asked(outcome, "compile", "prepare")]
    assert {given["padding"] for given in prepared} == {"max_length"}
    assert [(given["batch_size"], given["limit"]) for given in prepared] == [(1, 1), (1, 4), (2, 4), (3, 4)]
    assert outcome.facts["padding"] == "max_length"


def test_multi_stream_asks_for_several_rows_at_once(tmp_path: Path) -> None:
    step = QUICK.model_copy(update={"scenarios": (Scenario.MULTI_STREAM,), "streams": 4, "rows": 8})
    outcome, _ = measure(step, tmp_path / "out", {"compile": artifact(tmp_path / "m", seconds=0.001)})
    assert outcome.metrics["multi_stream_p50_ms"] == pytest.approx(2.5 * 1.005)  # (1 + 4) / 2 ms, and 1 % more for the second query
    assert outcome.facts["scenarios"]["multi-stream"]["rows_per_block"] == 4 * 36
    assert [sample.metric.name for sample in outcome.samples][:2] == ["multi_stream_p50_ms", "multi_stream_p90_ms"]


def test_the_padded_share_is_told(measured: tuple[Outcome, FakeContext]) -> None:
    outcome, _ = measured
    assert outcome.facts["scenarios"]["offline"]["padded_share"] == 0.25
    assert "offline: 25% of the tokens in a batch were padding" in texts(outcome)
    assert not [text for text in texts(outcome) if text.startswith("single-stream: 0%")]


def test_a_scenario_that_takes_too_long_ends_early_and_says_so(tmp_path: Path) -> None:
    """The fake takes no time itself, so that ten blocks of two calls are planned for a duration that starting them exceeds."""
    step = Benchmark(blocks=10, duration_s=1e-6, scenarios=(Scenario.SINGLE_STREAM,))
    outcome, _ = measure(step, tmp_path / "out", {"compile": artifact(tmp_path / "m", seconds=0.001)})
    assert len(sample(outcome, "latency_p50_ms").values["compile"]) == 6
    early = "single-stream: ended after 6 of 10 blocks, because a round took longer than planned; raise duration_s to have them all"
    assert early in texts(outcome)


def test_a_busy_machine_is_told_and_measured_for_longer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quiet(monkeypatch, others_share=0.31, stolen_share=0.08, load_average=3.21)
    step = QUICK.model_copy(update={"scenarios": (Scenario.OFFLINE,), "duration_s": 100.0})
    outcome, _ = measure(step, tmp_path / "out", {"compile": artifact(tmp_path / "m", seconds=0.1)})
    assert texts(outcome, Level.WARNING) == [
        "offline: other processes used 31% of the CPU time while this was measured (load average 3.2 before); repeat it on an idle machine",
        "offline: the hypervisor gave 8% of the CPU time to other machines while this was measured",
    ]
    assert "offline: 12 blocks instead of 8, because the machine was busy" in texts(outcome)
    assert len(sample(outcome, "throughput_per_s").values["compile"]) == 12


def test_models_that_were_not_stable_are_told_together() -> None:
    medians = {"source": (1.473,), "fp32": (0.0428, 0.0254, 0.0712), "torch": (0.2, 1.48), "compile": (0.01, 0.01, 0.01)}
    warm_ups = {name: timing.WarmUp(each, name == "compile") for name, each in medians.items()}
    block = Block([0.01], 0.0, 0.0)
    taken = Taken(Scenario.OFFLINE, Asked(Scenario.OFFLINE, 1, 1, 0), {name: [block] for name in medians}, warm_ups)
    assert [note.text for note in taken.notes()][:2] == [
        "offline: source (1473 ms), torch (200, 1480 ms) had no time for the 3 warm-up blocks that show whether a model is stable;"
        " figures may carry that noise",
        "offline: not stable within 3% at the end of the warm-up: fp32 (42.8, 25.4, 71.2 ms); figures carry that noise",
    ]


def test_a_harness_that_takes_too_much_is_told(tmp_path: Path) -> None:
    outcome, _ = measure(QUICK, tmp_path / "out", {"compile": artifact(tmp_path / "m", seconds=0.001, floor_s=5e-5)})
    said = (
        "the harness itself takes 50 µs of a single-stream query (LoadGen with a model that does nothing); on an idle machine it takes less"
    )
    assert f"{said} than 20" in texts(outcome, Level.WARNING)


def test_energy_is_said_not_to_be_readable(measured: tuple[Outcome, FakeContext], monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _ = measured
    if "energy_per_row_j" in outcome.metrics:
        pytest.skip("this machine lets its energy counters be read")
    assert outcome.facts["energy"] == "not readable here: no counter of RAPL or NVML that this user may read"


def test_energy_of_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Watt:
        """A joule goes by between any two readings."""

        source = "RAPL"
        read = 0.0

        def __init__(self, gpu: int | None) -> None: ...

        def joules(self) -> float:
            self.read += 1
            return self.read

    monkeypatch.setattr("ioptim.steps.benchmark.Meter", Watt)
    outcome, _ = measure(QUICK, tmp_path / "out", {"compile": artifact(tmp_path / "m", seconds=0.002)})
    calls = sum(outcome.facts["scenarios"]["offline"][name] for name in ("calls_per_block", "unrecorded_calls_per_block"))
    assert outcome.metrics["energy_per_row_j"] == pytest.approx(1 / (calls * QUICK.batch_size))


# Cost


def test_cost_of_a_million_rows_at_the_offline_throughput(tmp_path: Path) -> None:
    outcome, _ = measure(QUICK, tmp_path / "out", {"compile": artifact(tmp_path / "m", seconds=0.002)}, price=3.6)
    assert outcome.metrics["cost_per_million"] == pytest.approx(3.6 / 3600 / outcome.metrics["throughput_per_s"] * 1e6)
    assert len(sample(outcome, "cost_per_million").values["compile"]) == 8


def test_gates_that_can_never_be_decided_are_objected_to() -> None:
    gates = (
        Gate(metric="latency_p50_ms", max_drop=0.1),
        Gate(metric="size_bytes", min_speedup=2),
        Gate(metric="throughput_per_s", min_speedup=2, confidence=0.99),
        Gate(metric="size_bytes", max_ratio=1),
    )
    where = SimpleNamespace(targets=[])
    assert Benchmark(blocks=7, gates=gates).check(where) == [  # type: ignore[arg-type]
        "gate on latency_p50_ms: max_drop does not fit this metric; use one of max_ratio, min_ratio, min_speedup, min_value, max_value",
        "gate on size_bytes: min_speedup does not fit this metric; use one of max_ratio, min_ratio, min_value, max_value",
        "gate on throughput_per_s: 7 blocks can never decide at 99 % confidence; set blocks to 8 or more",
    ]


@pytest.mark.parametrize(("metric", "bound"), [("server_rate_per_s", "min_value"), ("cost_per_million", "max_value")])
def test_the_rounds_of_a_server_cannot_decide_at_a_high_confidence(metric: str, bound: str) -> None:
    where = SimpleNamespace(targets=[])

    def objections(confidence: float) -> list[str]:
        gate = Gate(metric=metric, confidence=confidence, **{bound: 1})  # type: ignore[arg-type]
        return server().model_copy(update={"gates": (gate,), "blocks": 1}).check(where)  # type: ignore[arg-type]

    said = f"gate on {metric}: the 6 rounds of the server scenario can never decide at 99 % confidence; lower confidence to 0.95"
    assert objections(0.99) == [said]
    assert objections(0.95) == []


def test_a_gate_on_the_cost_needs_a_price() -> None:
    step = QUICK.model_copy(update={"gates": (Gate(metric="cost_per_million", max_value=1),)})
    where = SimpleNamespace(targets=(SimpleNamespace(name="cpu", price_per_hour=None), SimpleNamespace(name="gpu", price_per_hour=2.0)))
    assert step.check(where) == ["cost_per_million needs a price: add price_per_hour to the target cpu"]  # type: ignore[arg-type]
    assert QUICK.check(where) == []  # type: ignore[arg-type]


# The server scenario


def server(**options: Any) -> Benchmark:
    load = ServerLoad(**{"latency_bound_ms": 20, "max_batch": (1, 8), "max_delay_ms": (0.0, 2.0), **options})
    return QUICK.model_copy(update={"scenarios": (Scenario.SERVER,), "server": load})


def test_the_highest_rate_within_the_bound_is_searched_over_the_batch_settings(tmp_path: Path) -> None:
    """A row takes 2 ms, eight take 9: the queue keeps 20 ms up to 1 - 9/20 of 8 / 0.009 requests per second."""
    outcome, ctx = measure(server(), tmp_path / "out", {"compile": artifact(tmp_path / "m", seconds=0.002)}, price=0.4)
    limit = (1 - 9 / 20) * 8 / 0.009
    assert limit / 1.05 < outcome.metrics["server_rate_per_s"] <= limit
    assert 18 < outcome.metrics["server_p99_ms"] <= 20
    assert outcome.metrics["cost_per_million"] == pytest.approx(0.4 / 3600 / outcome.metrics["server_rate_per_s"] * 1e6)
    facts = outcome.facts["server"]["compile"]
    assert (facts["max_batch"], facts["max_delay_ms"], facts["mean_batch"], facts["padded_share"]) == (8, 0, 4, 0.1)
    assert len(sample(outcome, "server_rate_per_s").values["compile"]) == 6
    assert len({row["block"] for row in kept(ctx)}) == 6
    said = [text for text in texts(outcome) if text.startswith("server: compile answers ")]
    assert said[0].partition(" requests per second ")[2].startswith("under 20 ms at p99 with max_batch 8, max_delay 0 ms, at 0.2")


def test_a_setting_that_cannot_win_costs_one_trial(tmp_path: Path) -> None:
    outcome, _ = measure(server(max_batch=(8, 1)), tmp_path / "out", {"compile": artifact(tmp_path / "m", seconds=0.002)})
    serves = asked(outcome, "compile", "serve")
    assert len([call for call in serves if call[0] == 1]) == 1
    assert len([call for call in serves if call[:2] == [8, 0.002]]) == 1


def test_the_chart_of_rates_shows_the_bound(tmp_path: Path) -> None:
    outcome, _ = measure(server(), tmp_path / "out", {"compile": artifact(tmp_path / "m", seconds=0.002)})
    found = chart(outcome, "Server: p99 against the rate of arrivals")
    model, bound = found.series
    assert (bound.name, bound.line, bound.y) == ("bound", True, (20, 20))
    assert list(model.x) == sorted(model.x)
    assert model.labels[0] == "max_batch 1, max_delay 0 ms, mean batch 0.5"


def test_a_rate_that_is_given_is_kept(tmp_path: Path) -> None:
    outcome, _ = measure(server(rate_per_s=600), tmp_path / "out", {"compile": artifact(tmp_path / "m", seconds=0.002)})
    assert outcome.metrics["server_rate_per_s"] == 600
    assert sample(outcome, "server_p99_ms").values["compile"] == pytest.approx([27.692] * 6, abs=1e-3)
    assert {call[3] for call in asked(outcome, "compile", "serve")} == {600}  # arrivals of a second
    assert "server: compile answers 600 requests per second not within 20 ms at p99 (27.7 ms) with max_batch 8, max_delay 0 ms" in texts(
        outcome, Level.WARNING
    )


def test_a_rate_that_is_given_has_a_cost_only_within_the_bound(tmp_path: Path) -> None:
    missed, _ = measure(server(rate_per_s=600), tmp_path / "missed", {"compile": artifact(tmp_path / "a", seconds=0.002)}, price=0.4)
    assert "cost_per_million" not in missed.metrics
    assert sample(missed, "cost_per_million").values["compile"] == (None,) * 6
    (result,) = judge(Gate(metric="cost_per_million", max_value=1e6), missed.samples, ["compile"])
    assert result.verdict is Verdict.FAIL
    met, _ = measure(server(rate_per_s=100), tmp_path / "met", {"compile": artifact(tmp_path / "b", seconds=0.002)}, price=0.4)
    cost = 0.4 / 3600 / 100 * 1e6
    assert met.metrics["cost_per_million"] == pytest.approx(cost)
    assert sample(met, "cost_per_million").values["compile"] == pytest.approx([cost] * 6)


def test_one_round_of_a_given_rate_that_missed_the_bound_passes_no_gate_on_the_cost(tmp_path: Path) -> None:
    trials = 3 + 5  # one with each setting, and five rounds
    models = {"compile": artifact(tmp_path / "m", seconds=0.002, late_after=trials)}
    outcome, _ = measure(server(rate_per_s=100), tmp_path / "out", models, price=0.4)
    cost = 0.4 / 3600 / 100 * 1e6
    assert sample(outcome, "cost_per_million").values["compile"] == (*[pytest.approx(cost)] * 5, None)
    assert outcome.metrics["cost_per_million"] == pytest.approx(cost), "the median round meets the bound"
    (result,) = judge(Gate(metric="cost_per_million", max_value=1e6), outcome.samples, ["compile"])
    assert result.verdict is Verdict.FAIL


def test_a_rate_that_this_machine_cannot_issue_is_refused(tmp_path: Path) -> None:
    said = (
        "server: rate_per_s 50000 was asked for, but this machine issues at most 40000 requests per second even where nothing answers them"
    )
    with pytest.raises(StepError, match=f"^{said}; lower rate_per_s$"):
        measure(server(rate_per_s=50_000), tmp_path / "out", {"compile": artifact(tmp_path / "m", seconds=0.002)})


def test_a_model_that_never_meets_the_bound(tmp_path: Path) -> None:
    step = server(latency_bound_ms=1, max_batch=(1,), duration_s=1e9)
    outcome, _ = measure(step, tmp_path / "out", {"compile": artifact(tmp_path / "m", seconds=0.002)})
    assert outcome.metrics["server_rate_per_s"] == 0
    (said,) = texts(outcome, Level.WARNING)
    assert said.startswith("server: no rate of compile meets 1 ms at p99: at ")
    assert outcome.tables[1].rows == (("compile", 0, 0, 0, *[None] * 6),)


@pytest.mark.parametrize(("metric", "bound"), [("server_rate_per_s", {"min_value": 1}), ("cost_per_million", {"max_value": 1})])
def test_a_model_that_never_meets_the_bound_fails_its_gates(tmp_path: Path, metric: str, bound: dict[str, float]) -> None:
    step = server(latency_bound_ms=1, max_batch=(1,), duration_s=1e9)
    outcome, _ = measure(step, tmp_path / "out", {"compile": artifact(tmp_path / "m", seconds=0.002)}, price=1)
    (result,) = judge(Gate(metric=metric, undecided="warn", **bound), outcome.samples, ["compile"])  # type: ignore[arg-type]
    assert result.verdict is Verdict.FAIL
    assert result.n == 6


def test_a_rate_that_missed_the_bound_is_never_judged(tmp_path: Path) -> None:
    """Found in a good moment: the search meets some 480 per second, and every trial of the rounds misses."""
    first, _ = measure(server(), tmp_path / "a", {"compile": artifact(tmp_path / "good", seconds=0.002)})
    searched = first.facts["server"]["compile"]["trials"]
    outcome, _ = measure(server(), tmp_path / "b", {"compile": artifact(tmp_path / "m", seconds=0.002, late_after=searched)})
    rates = asked(outcome, "compile", "serve")[searched:]
    assert rates[0][2] > 400
    assert sample(outcome, "server_rate_per_s").values["compile"] == (0,) * 6
    (result,) = judge(Gate(metric="server_rate_per_s", min_value=120), outcome.samples, ["compile"])
    assert result.verdict is Verdict.FAIL
    said = "server: 6 of 6 rounds of compile met the bound at no rate, down to "
    assert [text for text in texts(outcome, Level.WARNING) if text.startswith(said)]
    assert outcome.metrics["server_rate_per_s"] == 0, "not the rate of the search, which no round met"
    assert "server_p99_ms" not in outcome.metrics


def test_too_few_rounds_that_met_the_bound_pass_no_gate(tmp_path: Path) -> None:
    first, _ = measure(server(), tmp_path / "a", {"compile": artifact(tmp_path / "good", seconds=0.002)})
    facts = first.facts["server"]["compile"]
    late_after = facts["trials"] + sum(facts["trials_of_rounds"][:5])
    outcome, _ = measure(server(), tmp_path / "b", {"compile": artifact(tmp_path / "m", seconds=0.002, late_after=late_after)})
    values = sample(outcome, "server_rate_per_s").values["compile"]
    assert min(value for value in values[:5] if value is not None) > 400
    assert values[5] == 0
    assert outcome.metrics["server_rate_per_s"] == pytest.approx(median(values))  # type: ignore[type-var]
    assert outcome.metrics["server_p99_ms"] <= 20, "the round that missed is not in it"
    (result,) = judge(Gate(metric="server_rate_per_s", min_value=1), outcome.samples, ["compile"])
    assert result.verdict is Verdict.UNDECIDED


def test_every_round_ends_at_a_rate_that_met_the_bound(tmp_path: Path) -> None:
    outcome, ctx = measure(server(), tmp_path / "out", {"compile": artifact(tmp_path / "m", seconds=0.002)})
    limit = (1 - 9 / 20) * 8 / 0.009
    assert all(value is not None and limit / 1.11 < value <= limit for value in sample(outcome, "server_rate_per_s").values["compile"])
    assert max(row["seconds"] for row in kept(ctx)) <= 0.02


def test_arrivals_are_drawn_anew_in_every_round_and_are_the_same_for_all_models(tmp_path: Path) -> None:
    models = {name: artifact(tmp_path / name, seconds=0.002 * (i + 1)) for i, name in enumerate("ab")}
    outcome, _ = measure(server(), tmp_path / "out", models)
    for name in models:
        facts, seeds = outcome.facts["server"][name], [call[4] for call in asked(outcome, name, "serve")]
        per_round = [number for number, n in enumerate(facts["trials_of_rounds"], 1) for _ in range(n)]
        assert seeds == [0] * facts["trials"] + per_round
    given, _ = measure(server(rate_per_s=100), tmp_path / "given", models)
    assert [call[4] for call in asked(given, "a", "serve")][-6:] == [1, 2, 3, 4, 5, 6]


def test_a_busy_machine_is_told_and_gets_more_rounds_of_a_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quiet(monkeypatch, stolen_share=0.08, frequency_before_mhz=3000.0, frequency_after_mhz=2400.0)
    outcome, _ = measure(server(), tmp_path / "out", {"compile": artifact(tmp_path / "m", seconds=0.002)})
    stolen, clock = texts(outcome, Level.WARNING)
    assert stolen == "server: the hypervisor gave 8% of the CPU time to other machines while this was measured"
    assert clock.startswith("server: the CPU's clock went from 3000 to 2400 MHz while this was measured")
    assert "server: 9 rounds instead of 6, because the machine was busy" in texts(outcome)
    assert len(sample(outcome, "server_rate_per_s").values["compile"]) == 9
    facts = outcome.facts["server"]["compile"]
    assert (facts["stolen_share"], facts["frequency_before_mhz"], facts["frequency_after_mhz"]) == (0.08, 3000, 2400)


def test_a_search_without_time_says_so(tmp_path: Path) -> None:
    outcome, _ = measure(server(duration_s=1e-6), tmp_path / "out", {"compile": artifact(tmp_path / "m", seconds=0.002)})
    said = "server: the search for compile ended after 1e-06 s without a trial: 299 requests of it take longer. Raise server.duration_s"
    assert texts(outcome, Level.WARNING) == [said]
    assert "server_rate_per_s" not in outcome.metrics
    (result,) = judge(Gate(metric="server_rate_per_s", min_value=1), outcome.samples, ["compile"])
    assert result.verdict is Verdict.UNDECIDED


def test_metrics_of_the_server() -> None:
    assert ServerLoad(latency_bound_ms=5, percentile=0.999).tail.name == "server_p99_9_ms"
    assert server().metric_names(None)[0] == "server_rate_per_s"  # type: ignore[arg-type]
    assert server(rate_per_s=10).metric_names(None)[0] == "server_p99_ms"  # type: ignore[arg-type]


def test_a_searched_rate_and_its_tail_are_of_the_rounds_that_met_the_bound() -> None:
    """Found at 50 per second in a good moment; the rounds end at 40, 30 and 20, on the way there one missed with ten times the bound."""

    def trial(rate: float, tail_s: float) -> Trial:
        return Trial(Setting(1, 0), rate, [tail_s] * 299, tail_s, tail_s <= 0.02, 1, 0)

    rounds = [[trial(50, 0.2), trial(40, 0.016)], [trial(30, 0.014)], [trial(20, 0.012)]]
    served = Served(ServerLoad(latency_bound_ms=20), [trial(50, 0.01)], rounds)
    assert (served.rate_per_s, served.tail_ms) == (30, pytest.approx(14))
    assert [note.text for note in served.notes("int8", None)] == [
        "server: int8 answers 30 requests per second under 20 ms at p99 with max_batch 1, max_delay 0 ms"
    ]


def test_a_server_needs_a_bound() -> None:
    with pytest.raises(ValidationError, match=r"the server scenario needs a bound: add `server: \{latency_bound_ms: 20\}`"):
        Benchmark(scenarios=(Scenario.SERVER,))
    with pytest.raises(ValidationError, match="`server` is set and scenarios does not name it: add server to scenarios"):
        Benchmark(server=ServerLoad(latency_bound_ms=20))


def test_loadgen_is_an_objection_where_it_is_not_installed() -> None:
    assert "mlcommons-loadgen" in Benchmark.libraries
    assert missing_text({"mlcommons-loadgen": ["benchmark"]}) == (
        "not installed: mlcommons-loadgen (for benchmark). Install with: pip install 'ioptim[cpu]'"
    )
