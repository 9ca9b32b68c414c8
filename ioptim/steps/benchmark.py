"""Measures how fast, how large and how hungry models are: every one in a process of its own, in turns, on the same rows."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from ioptim import timing
from ioptim.core.artifact import ModelArtifact, write_json
from ioptim.core.metrics import Kind, Metric, Samples
from ioptim.core.step import Context, Level, MeasuringStep, Note, Outcome, TableFigure
from ioptim.core.task import Task
from ioptim.errors import IoptimError, StepError
from ioptim.isolate import Worker

LEAD_IN = 3
"""Calls at the head of every block that are not recorded. A process that slept finds its caches taken by the one that ran: its first
call took up to twice as long as the rest, the second and third a few per cent."""
MOST_CALLS = 1000
"""Of a block: where a call takes microseconds, more samples say nothing new."""
FEWEST_ROUNDS = 6
"""The median's exact interval at 0.95 confidence needs six blocks."""
OVERRUN = 2
"""Times `duration_s`: a scenario that takes longer ends after its `FEWEST_ROUNDS`, and says so."""


class Scenario(StrEnum):
    """How the model is called, in the words of MLPerf Inference (https://arxiv.org/abs/1911.02549)."""

    SINGLE_STREAM = "single-stream"
    """One row per call, the next when the last is answered."""
    OFFLINE = "offline"
    """Full batches, one after another."""


def _milliseconds(name: str, description: str) -> Metric:
    return Metric(name=name, higher_is_better=False, description=description, unit="ms")


P50 = _milliseconds("latency_p50_ms", "median time of a call with one row")
P90 = _milliseconds("latency_p90_ms", "time within which 90 % of the calls with one row end")
P99 = _milliseconds("latency_p99_ms", "time within which 99 % of the calls with one row end")
MEAN = _milliseconds("latency_mean_ms", "mean time of a call with one row")
THROUGHPUT = Metric(name="throughput_per_s", higher_is_better=True, description="rows per second in full batches", unit="rows/s")
MEMORY = Metric(name="peak_memory_bytes", higher_is_better=False, description="most memory the process ever held", unit="bytes")
SIZE = Metric(name="size_bytes", higher_is_better=False, description="model on disk, without its assets", unit="bytes")
LATENCY = (P50, P90, P99, MEAN)


class Benchmark(MeasuringStep):
    """Time every candidate and every baseline beside each other.

    Each model lives in its own process, pinned to its target's threads. Only the one being timed is awake, for a thread pool that spins
    slows whatever runs beside it. Blocks go round in turns (A B C, C B A, ...); every block of every model holds the same rows in the
    same order. The clock covers `session.run`: host arrays in, host arrays out, copies to and from a device included; reading, tokenizing
    and padding are not. All samples are kept in `files/latency.json` (seconds).

    Raises:
        StepError: a model's process crashed or refused the feeds (named, with the last lines of its output).
    """

    step: Literal["benchmark"] = "benchmark"
    per_target: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    needs_baselines: ClassVar[bool] = True
    opens_elsewhere: ClassVar[bool] = True
    uses_data: ClassVar[tuple[str, ...]] = ("validation",)

    scenarios: tuple[Scenario, ...] = Field(
        (Scenario.SINGLE_STREAM, Scenario.OFFLINE), min_length=1, description="single-stream (one row per call) and offline (batches)"
    )
    batch_size: int = Field(32, ge=1, description="rows per call in the offline scenario")
    padding: Literal["natural", "longest", "max_length"] = Field(
        "natural", description="length of the rows: their own (a batch: its longest), the longest of all, or the model's maximum"
    )
    rows: int = Field(64, ge=1, description="validation rows to measure on, from the first; fewer where `duration_s` would be exceeded")
    blocks: int = Field(20, ge=1, description="timing blocks of each model in each scenario; a gate at 0.95 confidence needs at least 6")
    duration_s: float = Field(5.0, gt=0, description="seconds to spend on each scenario, all models together, warm-up not counted")

    def metric_names(self, task: Task) -> Sequence[str]:
        return [metric.name for metric in self._metrics()]

    def run(self, model: ModelArtifact, ctx: Context) -> Outcome:
        models = {**ctx.baselines, **ctx.candidates}
        scenarios = list(dict.fromkeys(self.scenarios))
        with ExitStack() as stack:
            subjects = self._start(models, ctx, stack)
            taken = [self._measure(scenario, subjects, ctx, i / len(scenarios)) for i, scenario in enumerate(scenarios)]
            for subject in subjects:
                subject.finish()
        ctx.progress(1.0, "measured")
        return self._outcome(subjects, {scenario.scenario: scenario for scenario in taken}, ctx)

    # Measuring

    def _start(self, models: Mapping[str, ModelArtifact], ctx: Context, stack: ExitStack) -> list[_Subject]:
        """One process after the other, each left asleep, so that no load is timed beside another."""
        subjects = []
        for name, model in models.items():
            ctx.progress(0.0, f"opening {name}")
            subject = _Subject(name, model, ctx)
            stack.callback(subject.close)
            subject.open(self._feeds(Scenario.SINGLE_STREAM, 1))
            subjects.append(subject)
        return subjects

    def _feeds(self, scenario: Scenario, limit: int) -> dict[str, Any]:
        batch_size = 1 if scenario is Scenario.SINGLE_STREAM else self.batch_size
        return {"batch_size": batch_size, "padding": self.padding, "limit": limit}

    def _measure(self, scenario: Scenario, subjects: list[_Subject], ctx: Context, done: float) -> _Taken:
        share = 1 / len(set(self.scenarios))
        ctx.progress(done, f"{scenario.value}: warming up")
        n, lead_in, rows = self._fit(scenario, subjects)
        warm_ups = {subject.name: subject.warm_up(n, self.duration_s) for subject in subjects}
        taken = _Taken(scenario, n, lead_in, rows, warm_ups, {subject.name: [] for subject in subjects})
        by_name = {subject.name: subject for subject in subjects}
        before, own_before = timing.Machine.now(), _own_seconds(subjects)
        for i in range(self.blocks):
            if i >= FEWEST_ROUNDS and time.monotonic() - before.at > OVERRUN * self.duration_s:
                break
            for name in timing.turn(list(by_name), i):
                ctx.progress(done + share * i / self.blocks, f"{scenario.value}: round {i + 1} of {self.blocks}, {name}")
                taken.blocks[name].append(by_name[name].block(lead_in + n)[lead_in:])
        own_after = _own_seconds(subjects)
        own = None if own_before is None or own_after is None else own_after - own_before
        taken.conditions.update(timing.conditions(before, timing.Machine.now(), own))
        return taken

    def _fit(self, scenario: Scenario, subjects: list[_Subject]) -> tuple[int, int, int]:
        """Calls per block, calls of the lead-in, and rows per block, so that all models and blocks take about `duration_s`.

        A block is a whole number of passes over its feeds: where time allows less than one pass, the feeds are cut to what it allows.
        """
        batch_size = self._feeds(scenario, 1)["batch_size"]
        prepared = _prepare(subjects, self._feeds(scenario, max(self.rows, batch_size)))
        turn_s = sum(min(subject.block(2)) for subject in subjects)
        calls = max(2, min(MOST_CALLS, int(self.duration_s / self.blocks / turn_s)))
        lead_in = min(LEAD_IN, calls // 2)
        n, feeds = calls - lead_in, prepared["feeds"]
        if n < feeds:
            prepared = _prepare(subjects, self._feeds(scenario, n * batch_size))
        else:
            n -= n % feeds
        return n, lead_in, prepared["rows"] * n // prepared["feeds"]

    # What is said about it

    def _metrics(self) -> list[Metric]:
        latency = LATENCY if Scenario.SINGLE_STREAM in self.scenarios else ()
        throughput = (THROUGHPUT,) if Scenario.OFFLINE in self.scenarios else ()
        return [*latency, *throughput, MEMORY, SIZE]

    def _outcome(self, subjects: list[_Subject], taken: Mapping[Scenario, _Taken], ctx: Context) -> Outcome:
        figures = {subject.name: subject.figures(taken) for subject in subjects}
        for name in ctx.candidates:
            figures[name] |= _against(figures[name], {short: figures[full] for short, full in _baselines_of(name, ctx).items()})
        floor_us = timing.harness_floor() * 1e6
        only = next(iter(ctx.candidates)) if len(ctx.candidates) == 1 else None
        _keep(ctx.out / "files" / "latency.json", taken)
        return Outcome(
            metrics={**(figures[only] if only else {}), "harness_floor_us": floor_us},
            subjects=figures,
            samples=self._samples(subjects, taken),
            tables=(_table(figures),),
            notes=tuple(_notes(taken, subjects, self.blocks)),
            facts={
                "clock": "session.run: host arrays in, host arrays out",
                "padding": self.padding,
                "scenarios": {scenario.value: one.facts() for scenario, one in taken.items()},
                "subjects": {subject.name: subject.facts for subject in subjects},
            },
        )

    def _samples(self, subjects: list[_Subject], taken: Mapping[Scenario, _Taken]) -> tuple[Samples, ...]:
        columns: dict[str, Mapping[str, Sequence[float | None]]] = {}
        if single := taken.get(Scenario.SINGLE_STREAM):
            columns[P50.name] = single.each(lambda blocks: [statistics.median(block) * 1e3 for block in blocks])
            columns[P90.name] = single.each(lambda blocks: [value * 1e3 for value in timing.block_percentiles(blocks, 0.9)])
            columns[P99.name] = single.each(lambda blocks: [value * 1e3 for value in timing.block_percentiles(blocks, 0.99)])
            columns[MEAN.name] = single.each(lambda blocks: [statistics.fmean(block) * 1e3 for block in blocks])
        if offline := taken.get(Scenario.OFFLINE):
            columns[THROUGHPUT.name] = offline.each(lambda blocks: [offline.rows / sum(block) for block in blocks])
        columns[MEMORY.name] = {subject.name: [subject.peak_memory_bytes] for subject in subjects}
        columns[SIZE.name] = {subject.name: [subject.model.size_bytes] for subject in subjects}
        return tuple(
            Samples(
                metric=metric,
                kind=Kind.EXACT if metric in (MEMORY, SIZE) else Kind.BLOCKS,
                values={name: tuple(values) for name, values in columns[metric.name].items()},
            )
            for metric in self._metrics()
        )


class _Subject:
    """One model in its process, asleep unless it is being timed."""

    def __init__(self, name: str, model: ModelArtifact, ctx: Context) -> None:
        self.name = name
        self.model = model
        self.threads = ctx.target_of(model).threads or ctx.hardware.cores
        self.facts: dict[str, Any] = {}
        self.startup: dict[str, float] = {}
        self.peak_memory_bytes: int | None = None
        with self._named():
            self._worker = Worker(
                ctx.subject_worker,
                {"request": dict(ctx.request), "model": str(model.path)},
                log=ctx.out / "logs" / f"{name}.log",
                env={**dict.fromkeys(_THREADS_OF_POOLS, str(self.threads)), **_AS_BY_DEFAULT, "TOKENIZERS_PARALLELISM": "false"},
                cpus=timing.cpus_for(self.threads),
            )

    def open(self, feeds: Mapping[str, Any]) -> None:
        self.call("prepare", feeds)
        self.startup = self.call("startup", {})

    def call(self, method: str, argument: Any) -> Any:
        """Wake the process, let it work alone, put it to sleep."""
        with self._named():
            answer = self._worker.call(method, argument)
            self._worker.pause()
            return answer

    def block(self, n: int) -> list[float]:
        seconds: list[float] = self.call("block", {"n": n})
        return seconds

    def warm_up(self, n: int, max_seconds: float) -> timing.WarmUp:
        return timing.warm_up(self, n, max_seconds=max_seconds)

    def cpu_seconds(self) -> float | None:
        return self._worker.cpu_seconds()

    def finish(self) -> None:
        self.facts = {"threads": self.threads, **self.call("facts", {})}
        self.peak_memory_bytes = self._worker.peak_memory_bytes()

    def close(self) -> None:
        self._worker.close()

    def figures(self, taken: Mapping[Scenario, _Taken]) -> dict[str, float]:
        """Every figure that its samples support."""
        found: dict[str, float | None] = {}
        if single := taken.get(Scenario.SINGLE_STREAM):
            summary = timing.summary([s for block in single.blocks[self.name] for s in block])
            found |= {P50.name: summary.p50_ms, P90.name: summary.p90_ms, P99.name: summary.p99_ms}
            found |= {MEAN.name: summary.mean_ms, "n": summary.n}
        if offline := taken.get(Scenario.OFFLINE):
            blocks = offline.blocks[self.name]
            found[THROUGHPUT.name] = offline.rows * len(blocks) / sum(map(sum, blocks))
        found |= {MEMORY.name: self.peak_memory_bytes, SIZE.name: self.model.size_bytes}
        found |= {"load_s": self.startup["load_s"], "first_inference_ms": self.startup["first_inference_s"] * 1e3}
        return {name: value for name, value in found.items() if value is not None}

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except IoptimError as error:
            raise type(error)(f"{self.name}: {error}") from error


_THREADS_OF_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_AS_BY_DEFAULT = {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "300000")}
"""What libgomp spins by default, over the OMP_WAIT_POLICY that the other steps get: a torch model is timed as its users run it."""


@dataclass(frozen=True)
class _Taken:
    """What was measured in one scenario. `blocks[name]` are lists of seconds; `rows` is how many rows a block answers."""

    scenario: Scenario
    n: int
    lead_in: int
    rows: int
    warm_ups: Mapping[str, timing.WarmUp]
    blocks: dict[str, list[list[float]]]
    conditions: dict[str, float] = field(default_factory=dict)

    def each(self, figure: Any) -> dict[str, Sequence[float | None]]:
        return {name: figure(blocks) for name, blocks in self.blocks.items()}

    def facts(self) -> dict[str, Any]:
        return {
            "calls_per_block": self.n,
            "rows_per_block": self.rows,
            "unrecorded_calls_per_block": self.lead_in,
            "blocks": len(next(iter(self.blocks.values()))),
            "warm_up_blocks": {name: len(warm_up.medians) for name, warm_up in self.warm_ups.items()},
            **self.conditions,
        }


def _prepare(subjects: Sequence[_Subject], feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Build the same feeds in every process.

    Raises:
        StepError: they are not the same.
    """
    answers = {subject.name: subject.call("prepare", feeds) for subject in subjects}
    first: dict[str, Any] = next(iter(answers.values()))
    for name, answer in answers.items():
        if (answer["feeds"], answer["rows"]) != (first["feeds"], first["rows"]):
            raise StepError(f"{name} got other feeds than {next(iter(answers))}: {answer} against {first}; they cannot be compared")
    return first


def _own_seconds(subjects: Sequence[_Subject]) -> float | None:
    """CPU time of this process and of all subjects; None where the system does not tell."""
    times = [subject.cpu_seconds() for subject in subjects]
    return None if None in times else time.process_time() + sum(t for t in times if t is not None)


def _baselines_of(candidate: str, ctx: Context) -> dict[str, str]:
    """The baselines that a candidate is compared with, by the name without target: of several targets its own."""
    target = ctx.target_of(ctx.candidates[candidate]).name
    return {name.partition("@")[0]: name for name in ctx.baselines if name.partition("@")[2] in ("", target) and name != candidate}


def _against(mine: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Speedup is baseline ÷ candidate of the median latency; the other ratios are candidate ÷ baseline."""
    found = {}
    for name, theirs in baselines.items():
        if P50.name in mine and P50.name in theirs:
            found[f"speedup_vs_{name}"] = theirs[P50.name] / mine[P50.name]
        if THROUGHPUT.name in mine:
            found[f"throughput_ratio_vs_{name}"] = mine[THROUGHPUT.name] / theirs[THROUGHPUT.name]
        if theirs[SIZE.name]:
            found[f"size_ratio_vs_{name}"] = mine[SIZE.name] / theirs[SIZE.name]
    return found


def _keep(path: Path, taken: Mapping[Scenario, _Taken]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scenarios = {scenario.value: {**one.facts(), "seconds": one.blocks} for scenario, one in taken.items()}
    write_json(path, {"unit": "s", "scenarios": scenarios})


def _table(figures: Mapping[str, Mapping[str, float]]) -> TableFigure:
    """One line per model; a dash (None) where there are too few samples or the scenario was not asked for."""
    columns = {
        "p50 ms": lambda f: f.get(P50.name),
        "p90 ms": lambda f: f.get(P90.name),
        "p99 ms": lambda f: f.get(P99.name),
        "n": lambda f: f.get("n"),
        "rows/s": lambda f: f.get(THROUGHPUT.name),
        "peak memory MB": lambda f: f[MEMORY.name] / 1e6 if MEMORY.name in f else None,
        "size MB": lambda f: f[SIZE.name] / 1e6,
        "load s": lambda f: f["load_s"],
        "first call ms": lambda f: f["first_inference_ms"],
    }
    rows = tuple((name, *(_rounded(value(f)) for value in columns.values())) for name, f in figures.items())
    return TableFigure(title="Speed, memory and size", columns=("model", *columns), rows=rows)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _notes(taken: Mapping[Scenario, _Taken], subjects: Sequence[_Subject], asked: int) -> Iterator[Note]:
    for scenario, one in taken.items():
        yield from _notes_on_samples(scenario, one, asked)
        for text in timing.disturbances(one.conditions):
            yield Note(text=f"{scenario.value}: {text}", level=Level.WARNING)
    if any(subject.peak_memory_bytes is None for subject in subjects):
        yield Note(text="peak memory is not known: this system does not tell it", level=Level.WARNING)


def _notes_on_samples(scenario: Scenario, taken: _Taken, asked: int) -> Iterator[Note]:
    for name, warm_up in taken.warm_ups.items():
        if not warm_up.stable:
            last = ", ".join(f"{median * 1e3:.3g}" for median in warm_up.medians[-timing.STABLE_BLOCKS :])
            text = f"{scenario.value}: {name} was not stable within {timing.TOLERANCE:.0%} after {len(warm_up.medians)} warm-up blocks"
            yield Note(text=f"{text} (last medians {last} ms); its figures carry that noise", level=Level.WARNING)
    rounds = len(next(iter(taken.blocks.values())))
    if rounds < asked:
        text = f"{scenario.value}: ended after {rounds} of {asked} blocks, because a round took longer than planned"
        yield Note(text=f"{text}; raise duration_s to have them all", level=Level.WARNING)
    n = taken.n * rounds
    if scenario is Scenario.SINGLE_STREAM:
        for metric, quantile in ((P99, 0.99), (P90, 0.9), (P50, 0.5)):
            if n < (fewest := timing.fewest_for(quantile)):
                yield Note(text=f"{metric.name} is not reported: {n} samples, at least {fewest} are needed; raise duration_s or blocks")
