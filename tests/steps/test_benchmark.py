from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ioptim import hardware
from ioptim.core.artifact import Format, ModelArtifact, seal
from ioptim.core.metrics import Kind, Samples
from ioptim.core.step import Level, Outcome
from ioptim.errors import StepError, UnavailableError
from ioptim.steps.benchmark import Benchmark, Scenario

QUICK = Benchmark(blocks=8, duration_s=0.8, rows=4, batch_size=2)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def artifact(folder: Path, size: int = 1000, target: str = "cpu", **spec: Any) -> ModelArtifact:
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps(spec).ljust(size))
    return seal(ModelArtifact(path=folder, format=Format.NULL, entry="model.json", facts={"target": target}))


class FakeContext:
    subject_worker = "fake_subject:Subject"
    request: dict[str, Any] = {}
    hardware = hardware.probe()

    def __init__(self, out: Path, candidates: dict[str, ModelArtifact], baselines: dict[str, ModelArtifact]) -> None:
        self.out = out
        self.candidates = candidates
        self.baselines = baselines
        self.said: list[tuple[float, str]] = []

    def target_of(self, model: ModelArtifact) -> SimpleNamespace:
        return SimpleNamespace(name=model.facts["target"], threads=1)

    def progress(self, done: float, message: str) -> None:
        self.said.append((done, message))


def measure(
    step: Benchmark, out: Path, candidates: dict[str, ModelArtifact], baselines: dict[str, ModelArtifact]
) -> tuple[Outcome, FakeContext]:
    ctx = FakeContext(out, candidates, baselines)
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


def test_figures_of_every_subject(measured: tuple[Outcome, FakeContext]) -> None:
    outcome, _ = measured
    assert list(outcome.subjects) == ["source", "runtime-fp32", "compile"]
    candidate, source = outcome.subjects["compile"], outcome.subjects["source"]
    # Four feeds of 1.00, 1.01, 1.02, 1.03 times 2 ms; the first call after each pause, ten times as slow, is not among them.
    assert candidate["latency_p50_ms"] == pytest.approx(2.03)
    assert candidate["latency_mean_ms"] == pytest.approx(2.03)
    assert candidate["latency_p90_ms"] == pytest.approx(2.06)
    assert candidate["n"] == 32
    assert candidate["throughput_per_s"] == pytest.approx(2 / (2 * 0.002 * 1.005))
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
    assert 0 < outcome.metrics["harness_floor_us"] < 1000
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
    assert [s.metric.name for s in outcome.samples] == QUICK.metric_names(None)  # type: ignore[arg-type]


def test_every_block_holds_the_same_rows_for_all(measured: tuple[Outcome, FakeContext]) -> None:
    outcome, _ = measured
    facts = outcome.facts["subjects"]
    timed = {name: [c for c in facts[name]["calls"] if c[0] == "block" and c[1] == 7] for name in facts}  # 3 of lead-in, 4 rows
    assert len(timed["source"]) == 8
    assert timed["source"] == timed["runtime-fp32"] == timed["compile"]
    prepared = {name: [c for c in facts[name]["calls"] if c[0] == "prepare"] for name in facts}
    assert prepared["source"] == prepared["runtime-fp32"] == prepared["compile"]


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
    kept = json.loads((ctx.out / "files" / "latency.json").read_text())
    assert kept["unit"] == "s"
    single = kept["scenarios"]["single-stream"]
    assert (single["calls_per_block"], single["rows_per_block"], single["unrecorded_calls_per_block"]) == (4, 4, 3)
    assert single["seconds"]["compile"][0] == pytest.approx([0.00202, 0.00204, 0.00206, 0.002])


def test_a_percentile_without_samples_is_not_reported(measured: tuple[Outcome, FakeContext]) -> None:
    outcome, _ = measured
    assert "latency_p99_ms" not in outcome.subjects["compile"]
    assert sample(outcome, "latency_p99_ms").values["compile"] == ()
    assert "latency_p99_ms is not reported: 32 samples, at least 299 are needed; raise duration_s or blocks" in [
        n.text for n in outcome.notes
    ]


def test_the_table_has_a_line_per_model(measured: tuple[Outcome, FakeContext]) -> None:
    outcome, _ = measured
    (table,) = outcome.tables
    assert table.columns[:4] == ("model", "p50 ms", "p90 ms", "p99 ms")
    assert table.rows[2][:4] == ("compile", 2.03, 2.06, None)


def test_a_slow_model_gets_fewer_rows_and_keeps_whole_passes(tmp_path: Path) -> None:
    step = QUICK.model_copy(update={"scenarios": (Scenario.SINGLE_STREAM,)})
    outcome, _ = measure(step, tmp_path / "out", {"compile": artifact(tmp_path / "slow", seconds=0.04)}, {})
    facts = outcome.facts["scenarios"]["single-stream"]
    assert (facts["calls_per_block"], facts["rows_per_block"], facts["unrecorded_calls_per_block"]) == (1, 1, 1)
    assert "throughput_per_s" not in outcome.metrics
    assert step.metric_names(None) == [  # type: ignore[arg-type]
        *("latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "latency_mean_ms", "peak_memory_bytes", "size_bytes")
    ]


def test_a_fast_model_makes_several_passes(tmp_path: Path) -> None:
    step = QUICK.model_copy(update={"scenarios": (Scenario.SINGLE_STREAM,)})
    outcome, _ = measure(step, tmp_path / "out", {"compile": artifact(tmp_path / "fast", seconds=0.001)}, {})
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


def test_a_model_that_crashes_is_named(tmp_path: Path) -> None:
    baselines = {"source": artifact(tmp_path / "source", seconds=0.004)}
    with pytest.raises(StepError, match=r"^compile: the process was killed by signal 6 \(aborted\)"):
        measure(QUICK, tmp_path / "out", {"compile": artifact(tmp_path / "bad", seconds=0.001, crash=True)}, baselines)


def test_a_runtime_that_is_not_there_stays_that_error(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"^compile: the runtime is not installed: pip install it$"):
        measure(QUICK, tmp_path / "out", {"compile": artifact(tmp_path / "bad", unavailable=True)}, {})


def test_models_that_get_other_feeds_are_not_compared(tmp_path: Path) -> None:
    baselines = {"source": artifact(tmp_path / "source", seconds=0.004)}
    candidates = {"compile": artifact(tmp_path / "short", seconds=0.001, rows=3)}
    with pytest.raises(StepError, match=r"^compile got other feeds than source: .* they cannot be compared$"):
        measure(QUICK, tmp_path / "out", candidates, baselines)


def test_feeds_are_asked_for_as_the_recipe_says(tmp_path: Path) -> None:
    step = QUICK.model_copy(update={"padding": "max_length"})
    outcome, _ = measure(step, tmp_path / "out", {"compile": artifact(tmp_path / "m", seconds=0.001)}, {})
    prepared = [call[1] for call in outcome.facts["subjects"]["compile"]["calls"] if call[0] == "prepare"]
    assert {feeds["padding"] for feeds in prepared} == {"max_length"}
    assert [feeds["batch_size"] for feeds in prepared] == [1, 1, 2]
    assert outcome.facts["padding"] == "max_length"


def test_a_scenario_that_takes_too_long_ends_early_and_says_so(tmp_path: Path) -> None:
    """The fake takes no time itself, so that ten blocks of two calls are planned for a duration that starting them exceeds."""
    step = Benchmark(blocks=10, duration_s=1e-6, scenarios=(Scenario.SINGLE_STREAM,))
    outcome, _ = measure(step, tmp_path / "out", {"compile": artifact(tmp_path / "m", seconds=0.001)}, {})
    assert len(sample(outcome, "latency_p50_ms").values["compile"]) == 6
    early = "single-stream: ended after 6 of 10 blocks, because a round took longer than planned; raise duration_s to have them all"
    assert early in [note.text for note in outcome.notes]


def test_notes_on_a_busy_machine(measured: tuple[Outcome, FakeContext], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    busy = {"others_share": 0.31, "stolen_share": 0.08, "load_average": 3.21}
    monkeypatch.setattr("ioptim.steps.benchmark.timing.conditions", lambda before, after, own: busy)
    step = QUICK.model_copy(update={"scenarios": (Scenario.OFFLINE,)})
    outcome, _ = measure(step, tmp_path / "again", {"compile": artifact(tmp_path / "m", seconds=0.001)}, {})
    assert [note.text for note in outcome.notes if note.level is Level.WARNING] == [
        "offline: other processes used 31% of the CPU time while this was measured (load average 3.2 before); repeat it on an idle machine",
        "offline: the hypervisor gave 8% of the CPU time to other machines while this was measured",
    ]
