"""Semantics of a run: caching, skipping, verdicts, errors, interruption. The process boundary is replaced by a function that
writes a few bytes, so that each test takes milliseconds; tests/test_end_to_end.py runs the real steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ioptim import ahead, isolate, keys
from ioptim import plan as planning
from ioptim.cache import Store
from ioptim.core.artifact import Format
from ioptim.core.metrics import Kind, Metric, Samples, write_samples
from ioptim.core.record import NodeRecord, RunRecord, Status, TrackingState
from ioptim.core.step import Outcome, Written
from ioptim.core.target import Hardware
from ioptim.errors import ExitCode, StepError, UnavailableError
from ioptim.execute import Run, run_plan
from ioptim.keys import forecast
from ioptim.plan import Plan, make_plan
from ioptim.recipe import RecipeTarget, read_recipe
from ioptim.worker import WorkerContext, run_step

HARDWARE = Hardware(cpu_model="test", cpu_flags=(), cores=2, threads=2, memory_bytes=8 << 30)
RECIPE = """\
name: r
model: {source: folder, task: feature-extraction}
data: {validation: {source: "builtin:retrieval"}, calibration: {source: "builtin:retrieval"}}
targets: [{name: cpu, runtime: onnxruntime}]
steps:
  - {step: quantize, scheme: int8-dynamic}
  - compile
  - {step: benchmark, gates: [{metric: size_bytes, max_ratio: 0.5}]}
"""


class Source:
    """A source whose content a test may change."""

    cheap = False
    content = "0"

    def check(self) -> list[str]:
        return []

    def identity(self) -> Mapping[str, str]:
        return {"sha256": self.content}


class Prepared:
    """Stands in for a process that imports while it waits."""

    def __init__(self, world: World, modules: list[str], log: Path) -> None:
        world.prepared.append(self)
        self.modules, self.node, self.closed = modules, log.stem, False
        self.taken_by: str | None = None

    def close(self) -> None:
        self.closed = True


class World:
    """Stands in for the processes: what each step writes, and how often each ran."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ran: list[str] = []
        self.sizes = {"source": 100, "export": 100, "quantize": 30, "compile": 30}
        self.fail: dict[str, BaseException] = {}
        self.steps: dict[str, Callable[[Path], Outcome]] = {}
        self.prepared: list[Prepared] = []
        self.recipe = RECIPE
        self.keeps_samples = True

    def call(self, function: str, request: dict[str, Any], prepared: Prepared | None = None, **_: Any) -> Any:
        step = request["step"]["step"]
        self.ran.append(step)
        if prepared is not None:
            prepared.taken_by = step
        if step in self.fail:
            raise self.fail[step]
        out = Path(request["out"])
        if step == "benchmark" and not self.keeps_samples:
            return Outcome(metrics={"size_bytes": 30.0}).model_dump(mode="json")
        if step == "benchmark":
            values = {**dict.fromkeys(request["baselines"], 100.0), **dict.fromkeys(request["candidates"], 30.0)}
            metric = Metric(name="size_bytes", higher_is_better=False, description="", unit="bytes")
            (out / "files").mkdir()
            write_samples(out / "files", (Samples(metric=metric, kind=Kind.EXACT, values={k: (v,) for k, v in values.items()}),))
            return Outcome(metrics={"size_bytes": 30.0}).model_dump(mode="json")
        (out / "model").mkdir()
        (out / "model" / "m").write_bytes(step.encode() * self.sizes[step])
        format = Format.TORCH if step == "source" else Format.ONNX
        return Outcome(written=Written(format=format, entry="m")).model_dump(mode="json")

    def plan(self, *overrides: str, hardware: Hardware = HARDWARE) -> Plan:
        path = self.home / "r.yaml"
        path.write_text(self.recipe)
        return make_plan(read_recipe(path, overrides), hardware)

    def run(self, *overrides: str, hardware: Hardware = HARDWARE, **options: Any) -> Run:
        """A run of the recipe to its end; `ran` holds the steps that it computed."""
        run = self.start(*overrides, hardware=hardware, **options)
        run_plan(run)
        run.end()
        return run

    def start(self, *overrides: str, hardware: Hardware = HARDWARE, **options: Any) -> Run:
        self.ran = []
        record = RunRecord(run_id="1", recipe="r", hardware=hardware)
        (self.home / "logs").mkdir(exist_ok=True)
        run = Run(self.plan(*overrides, hardware=hardware), Store(self.home / "store").create(), record, self.home, **options)
        run.begin()
        return run


ALL = ["source", "export", "quantize", "compile", "compile", "benchmark"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    monkeypatch.setattr(isolate, "call", world.call)
    monkeypatch.setattr(ahead, "Prepared", lambda modules, log: Prepared(world, modules, log))
    monkeypatch.setattr(planning, "model_source", lambda *args: Source())
    monkeypatch.setattr(planning, "data_source", lambda *args: Source())
    return world


def statuses(run: Run) -> dict[str, Status]:
    return {node.id: node.status for node in run.record.nodes}


def test_everything_runs_once_and_then_comes_from_the_store(world: World) -> None:
    first = world.run()
    assert world.ran == ALL
    assert first.record.status is Status.PASSED and first.record.exit_code == ExitCode.PASS
    assert [gate.verdict.value for gate in first.record.gates] == ["pass"]
    second = world.run()
    assert world.ran == []
    assert all(node.cached for node in second.record.nodes)
    assert second.record.node("compile").artifact == first.record.node("compile").artifact
    assert [f.state for f in forecast(world.plan(), second.store)] == ["cached"] * 6


def test_a_gate_that_compares_a_model_with_itself_fails_and_is_not_silent(world: World) -> None:
    run = world.run("steps.benchmark.gates.size_bytes.baseline=compile")
    assert run.record.node("benchmark").status is Status.GATE_FAILED
    assert [gate.reason for gate in run.record.gates] == [
        "size_bytes of compile cannot be judged: the only candidate is its own baseline; name another baseline"
    ]
    assert run.record.exit_code == ExitCode.GATE


def test_a_gate_that_cannot_be_judged_fails_beside_the_others(world: World) -> None:
    """The stand-in measures no time: that gate fails for it, and the other's verdict and every metric are kept."""
    gates = "{metric: latency_p50_ms, max_value: 5}, {metric: size_bytes, max_ratio: 0.5}"
    world.recipe = RECIPE.replace("{metric: size_bytes, max_ratio: 0.5}", gates)
    run = world.run()
    node = run.record.node("benchmark")
    assert (node.status, node.error) == (Status.GATE_FAILED, None)
    assert [(gate.metric, gate.verdict.value) for gate in node.gates] == [("latency_p50_ms", "fail"), ("size_bytes", "pass")]
    assert node.gates[0].reason == (
        "latency_p50_ms of compile cannot be judged: no metric 'latency_p50_ms' was measured; there are size_bytes"
    )
    assert node.metrics == {"size_bytes": 30.0}
    assert run.record.exit_code == ExitCode.GATE


def test_gates_of_a_step_that_kept_no_samples_fail(world: World) -> None:
    world.keeps_samples = False
    run = world.run()
    assert [gate.verdict.value for gate in run.record.gates] == ["fail"]
    assert run.record.gates[0].reason.endswith("no metric 'size_bytes' was measured; there are none")
    assert run.record.exit_code == ExitCode.GATE


@pytest.mark.parametrize(
    ("change", "computed"),
    [
        (("steps.quantize.scheme=int8-static",), ["quantize", "compile", "benchmark"]),
        (("steps.quantize.timeout_s=9.0",), []),
        (("steps.benchmark.gates.size_bytes.max_ratio=0.9",), []),
        (("seed=1",), ALL),
        (("targets.cpu.threads=1",), ["compile", "compile", "benchmark"]),
        (("targets.cpu.price_per_hour=2.0",), ["benchmark"]),
        (("targets.cpu.name=other",), []),
        (("name=other", "description=other"), []),
    ],
)
def test_only_what_changed_runs_again(world: World, change: tuple[str, ...], computed: list[str]) -> None:
    world.run()
    world.run(*change)
    # Equal bytes from a changed step are the same artifact, so what follows it may still be cached: the stand-in's model is
    # the same whatever the configuration. Only a really changed result goes further.
    assert [step for step in ALL if step in world.ran] == [step for step in ALL if step in world.ran and step in computed]
    assert bool(world.ran) == bool(computed)
    assert set(world.ran) <= set(computed)


# The target that a model is opened on

NULL_RECIPE = """\
name: r
model: {{source: folder, task: feature-extraction}}
data: {{validation: {{source: "builtin:retrieval"}}}}
targets: [{targets}]
steps: [{steps}]
"""
CPU = "{name: cpu, threads: 1, runtime: 'null'}"
Opened = list[dict[str, RecipeTarget]]


@pytest.fixture
def opened(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Opened]:
    """Runs a recipe with the real `compile`: the targets on which each benchmark that was computed opened its models."""
    found: Opened = []

    def call(function: str, request: dict[str, Any], **options: Any) -> Any:
        ctx = WorkerContext(request)
        if request["step"]["step"] == "compile":
            world.ran.append("compile")
            return run_step(request)
        if request["step"]["step"] == "benchmark":
            found.append({name: ctx.target_of(model) for name, model in {**ctx.baselines, **ctx.candidates}.items()})  # type: ignore[misc]
        return world.call(function, request, **options)

    def run(targets: str, steps: str = "compile, benchmark") -> Opened:
        found.clear()
        world.recipe = NULL_RECIPE.format(targets=targets, steps=steps)
        assert world.run().record.status is Status.PASSED
        return found

    monkeypatch.setattr(isolate, "call", call)
    return run


def test_a_cached_model_is_opened_on_the_target_that_asks_for_it(world: World, opened: Callable[..., Opened]) -> None:
    opened(CPU)
    both = opened(f"{CPU.replace('threads: 1', 'threads: 2')}, {CPU.replace('cpu', 'one')}")
    assert world.ran == ["compile", "benchmark", "benchmark"], "the model of one is the first run's"
    threads = [{name: target.threads for name, target in models.items()} for models in both]
    assert threads == [{"source": 2, "runtime-fp32": 2, "compile@cpu": 2}, {"source": 1, "runtime-fp32": 1, "compile@one": 1}]


def test_a_cached_model_of_a_target_that_was_renamed_is_opened_on_it(world: World, opened: Callable[..., Opened]) -> None:
    opened(CPU)
    [models] = opened(CPU.replace("cpu", "box"), "compile, {step: benchmark, blocks: 7}")
    assert world.ran == ["benchmark"]
    assert {name: target.name for name, target in models.items()} == {"source": "box", "runtime-fp32": "box", "compile": "box"}


def test_a_model_that_two_targets_share_has_the_price_of_each(world: World, opened: Callable[..., Opened]) -> None:
    targets = ", ".join(f"{{name: {name}, price_per_hour: {price}, runtime: 'null'}}" for name, price in (("cheap", 1), ("dear", 2)))
    steps = "{step: compile, id: a, target: cheap}, {step: compile, id: b, target: dear, after: [source]}, "
    [models] = opened(targets, steps + "{step: benchmark, after: [a, b]}")
    assert world.ran == ["source", "compile", "benchmark"]
    prices = {name: target.price_per_hour for name, target in models.items()}
    assert prices == {"source": 1, "a": 1, "b": 2, "runtime-fp32@cheap": 1, "runtime-fp32@dear": 2}


TWO_TARGETS = RECIPE.replace("targets: [", "targets: [{name: ov, runtime: openvino}, ")


@pytest.mark.parametrize(("after", "judged"), [("plain, small", ["small"]), ("small, smaller", ["small", "smaller"])])
def test_where_targets_meet_every_candidate_is_judged_against_its_own_target_s(world: World, after: str, judged: list[str]) -> None:
    gates = "gates: [{metric: size_bytes, max_ratio: 1.0, baseline: plain}]"
    steps = "[{step: compile, id: plain}, {step: quantize, scheme: int8-dynamic, after: [source]}, {step: compile, id: small}, "
    steps += "{step: compile, id: smaller, after: [quantize]}, "
    world.recipe = TWO_TARGETS.partition("steps:")[0] + f"steps: {steps}{{step: benchmark, after: [{after}], {gates}}}]\n"
    run = world.run()
    pairs = [(f"{name}@{target}", f"plain@{target}") for name in judged for target in ("ov", "cpu")]
    assert [(gate.candidate, gate.baseline) for gate in run.record.gates] == pairs
    assert run.record.status is Status.PASSED


def test_a_candidate_made_for_no_target_meets_the_baseline_of_the_step_s(world: World) -> None:
    gates = "gates: [{metric: size_bytes, max_ratio: 1.0, baseline: runtime-fp32}]"
    steps = "[{step: quantize, scheme: int8-dynamic}, {step: compile, id: a, target: cpu, after: [source]}, "
    steps += "{step: compile, id: b, target: ov, after: [source]}, "
    world.recipe = TWO_TARGETS.partition("steps:")[0] + f"steps: {steps}{{step: benchmark, after: [quantize, a, b], {gates}}}]\n"
    found = {gate.candidate: gate.baseline for gate in world.run().record.gates}
    assert found == {"quantize": "runtime-fp32@cpu", "a": "runtime-fp32@cpu", "b": "runtime-fp32@ov"}


def test_new_weights_are_a_new_key(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run()
    monkeypatch.setattr(Source, "content", "1")
    world.sizes["source"] = 90
    world.run()
    assert world.ran[0] == "source" and "export" in world.ran


def test_measurements_hold_on_their_hardware_only(world: World) -> None:
    world.run()
    world.run(hardware=HARDWARE.model_copy(update={"cpu_model": "another"}))
    assert world.ran == ["compile", "compile", "benchmark"]


def test_force_and_no_cache(world: World) -> None:
    world.run()
    world.run(force=["quantize"])
    assert world.ran == ["quantize"]
    world.run(use_cache=False)
    assert world.ran == ALL


def test_a_failed_gate_is_exit_code_1_and_needs_no_new_measurement(world: World) -> None:
    world.run()
    run = world.run("steps.benchmark.gates.size_bytes.max_ratio=0.1")
    assert world.ran == []
    assert run.record.node("benchmark").status is Status.GATE_FAILED
    assert run.record.exit_code == ExitCode.GATE
    assert run.record.gates[0].reason.startswith("size_bytes")


def test_an_error_stops_what_depends_on_it_and_is_never_kept(world: World) -> None:
    world.fail["quantize"] = StepError("no layer could be quantized")
    run = world.run()
    assert statuses(run) == {
        "source": Status.PASSED,
        "export": Status.PASSED,
        "quantize": Status.ERROR,
        "compile": Status.SKIPPED,
        "runtime-fp32": Status.PASSED,
        "benchmark": Status.SKIPPED,
    }
    assert run.record.exit_code == ExitCode.STEP
    assert run.record.node("quantize").error == "no layer could be quantized"
    assert run.record.node("compile").notes[0].text == "not run: quantize ended as error"
    world.fail.clear()
    assert world.run().record.status is Status.PASSED
    assert world.ran == ["quantize", "compile", "benchmark"]


def test_what_is_unavailable_is_exit_code_3(world: World) -> None:
    world.fail["compile"] = UnavailableError("the disk is full")
    assert world.run().record.exit_code == ExitCode.UNAVAILABLE


def test_an_interrupted_run_goes_on_where_it_stopped(world: World) -> None:
    world.fail["quantize"] = KeyboardInterrupt()
    run = world.start()
    with pytest.raises(KeyboardInterrupt):
        run_plan(run)
    record = run.end(KeyboardInterrupt())
    assert record.status is Status.INTERRUPTED and record.exit_code == ExitCode.INTERRUPTED
    assert statuses(run)["quantize"] is Status.INTERRUPTED
    world.fail.clear()
    world.run()
    assert world.ran == ["quantize", "compile", "compile", "benchmark"]


def test_a_lost_engine_is_an_error_and_what_did_not_run_says_so(world: World) -> None:
    run = world.start()
    run.run_node("source")
    record = run.end(UnavailableError("the server was lost"))
    assert record.status is Status.ERROR and record.exit_code == ExitCode.UNAVAILABLE
    assert statuses(run)["benchmark"] is Status.INTERRUPTED
    assert record.warnings == ("the run was stopped: the server was lost",)


def test_a_damaged_artifact_is_computed_again(world: World) -> None:
    run = world.run()
    artifact = run.record.node("quantize").artifact
    assert artifact is not None
    (Path(artifact.path) / "m").write_bytes(b"rot")
    again = world.run()
    assert world.ran == ["quantize"]
    assert again.record.node("quantize").artifact == artifact


def test_changed_code_of_ours_is_a_new_key(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run()
    monkeypatch.setattr(keys, "code_digest", lambda: "another")
    world.run()
    assert world.ran[0] == "source"


class Tracker:
    """Remembers what it was told; `broken` cannot be reached from that call on."""

    def __init__(self, broken: str = "") -> None:
        self.told: list[str] = []
        self.broken = broken

    state = TrackingState(state="pending", uri="http://127.0.0.1:9")

    def _tell(self, what: str) -> None:
        if what == self.broken:
            raise UnavailableError("http://127.0.0.1:9: connection refused")
        self.told.append(what)

    def begin(self, run: RunRecord) -> None:
        self._tell("begin")

    def node(self, run: RunRecord, node: NodeRecord) -> None:
        self._tell(node.id)

    def end(self, run: RunRecord, folder: Path) -> TrackingState:
        self._tell("end")
        return TrackingState(state="logged", run_id="abc")


def report(record: RunRecord, folder: Path) -> Path:
    (folder / "report.html").write_text(record.tracking.state)
    return folder / "report.html"


def test_the_tracker_is_told_everything_in_order(world: World) -> None:
    tracker = Tracker()
    record = world.run(tracker=tracker).close(report)
    assert tracker.told == ["begin", "source", "export", "quantize", "compile", "runtime-fp32", "benchmark", "end"]
    assert record.tracking.state == "logged"
    assert (world.home / "report.html").read_text() == "logged"


@pytest.mark.parametrize("when", ["begin", "quantize", "end"])
def test_a_tracker_out_of_reach_does_not_stop_the_run(world: World, when: str) -> None:
    record = world.run(tracker=Tracker(broken=when)).close(report)
    assert record.status is Status.PASSED
    assert record.tracking.state == "pending"
    assert record.warnings == ("http://127.0.0.1:9: connection refused. The run goes on; `ioptim sync` uploads it later",)
    assert (world.home / "report.html").read_text() == "pending"


def test_the_record_is_saved_as_the_run_goes(world: World) -> None:
    saved: list[RunRecord] = []
    world.run(save=saved.append)
    seen = [[node.status for node in record.nodes].count(Status.PASSED) for record in saved]
    assert seen == sorted(seen) and set(seen) == set(range(7))


# The next step's process, started early


def test_the_next_slow_step_is_prepared_while_one_works(world: World) -> None:
    world.run()
    assert [(p.node, p.taken_by) for p in world.prepared] == [("source", "source"), ("export", "export")]
    assert all("torch" in p.modules and p.modules[0] == "ioptim.worker" for p in world.prepared)


def test_what_nobody_foresaw_fails_the_node_and_the_run(world: World) -> None:
    world.fail["quantize"] = ValueError("cannot convert float NaN to integer")
    record = world.run().record
    node = record.node("quantize")
    assert (record.status, record.exit_code, node.status) == (Status.ERROR, ExitCode.STEP, Status.ERROR)
    assert node.error is not None and node.log is not None
    assert node.error.startswith("ValueError: cannot convert float NaN to integer. This is a defect of ioptim, not of the recipe")
    assert "Traceback (most recent call last)" in Path(node.log).read_text()
    assert record.node("compile").status is Status.SKIPPED


def test_a_run_whose_nodes_did_not_all_end_has_not_passed(world: World) -> None:
    run = world.start()
    run.run_node("source")
    record = run.end()
    assert (record.status, record.exit_code) == (Status.ERROR, ExitCode.STEP)


def test_nothing_is_prepared_when_all_is_in_the_store(world: World) -> None:
    world.run()
    world.prepared.clear()
    world.run()
    assert world.ran == [] and world.prepared == []


def test_a_prepared_process_that_nobody_took_ends_with_the_run(world: World) -> None:
    world.fail["source"] = StepError("broken")
    world.run()
    assert [(p.node, p.taken_by, p.closed) for p in world.prepared] == [("source", "source", False), ("export", None, True)]


def test_nothing_is_prepared_beside_or_behind_a_measurement(world: World) -> None:
    nodes = {node.id: node for node in world.plan().nodes}
    slow = replace(nodes["quantize"], libraries=("torch",))
    waiting = ahead.Ahead(lambda name: world.home / f"{name}.log")
    waiting.prepare([nodes["compile"], nodes["benchmark"], slow])
    assert world.prepared == []
    waiting.prepare([nodes["compile"], slow])
    assert [p.node for p in world.prepared] == ["quantize"]
    waiting.close()
    assert world.prepared[0].closed


def test_nobody_imports_beside_a_measurement(world: World) -> None:
    """The process of a step that then came out of the store, or was skipped, is ended before anything is measured."""
    run = world.start("steps.benchmark.scenarios=[single-stream]")
    for node in run.plan.nodes:
        if node.id == "benchmark":
            run._ahead.prepare([replace(node, id="export", step=run.plan.node("export").step, libraries=("torch",))])
        run.run_node(node.id)
    run.end()
    assert [p.closed for p in world.prepared if p.taken_by is None] == [True]
