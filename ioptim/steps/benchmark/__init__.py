"""Measures how fast, how large and how hungry models are: every one in a process of its own, in turns, asked by MLPerf's LoadGen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from ioptim.core.artifact import ModelArtifact
from ioptim.core.gate import Gate, fitting_bounds
from ioptim.core.metrics import Kind, Metric
from ioptim.core.step import Context, MeasuringStep, Outcome, Where
from ioptim.core.task import Task
from ioptim.energy import Meter
from ioptim.intervals import fewest_for_quantile
from ioptim.loadgen import Scenario
from ioptim.steps.benchmark.result import Result
from ioptim.steps.benchmark.rounds import FEWEST_ROUNDS, Rounds, Taken
from ioptim.steps.benchmark.scenarios import COST, FIGURES, MEMORY, SIZE
from ioptim.steps.benchmark.search import ServerLoad
from ioptim.steps.benchmark.server import Served, Server
from ioptim.steps.benchmark.subjects import Subject, prepare


class Benchmark(MeasuringStep):
    """Time every candidate and every baseline beside each other.

    Each model lives in its own process, pinned to its target's threads. Only the one being timed is awake, for a thread pool that spins
    slows whatever runs beside it. Blocks go round in turns (A B C, C B A, ...); every block is one LoadGen test, of the same rows in the
    same order for every model. The clock is LoadGen's, around `session.run`: host arrays in, host arrays out, copies to and from a device
    included; reading and tokenizing are not, padding in the server scenario alone. All samples are kept in `files/latency.parquet`,
    LoadGen's own summaries in `files/loadgen`.

    Raises:
        StepError: a model's process crashed or refused the feeds (named, with the last lines of its output); LoadGen cannot issue
            `server.rate_per_s` here.
    """

    step: Literal["benchmark"] = "benchmark"
    libraries = ("mlcommons-loadgen", "pyarrow")
    per_target: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    needs_baselines: ClassVar[bool] = True
    opens_elsewhere: ClassVar[bool] = True
    uses_price: ClassVar[bool] = True
    uses_data: ClassVar[tuple[str, ...]] = ("validation",)

    scenarios: tuple[Scenario, ...] = Field(
        (Scenario.SINGLE_STREAM, Scenario.OFFLINE),
        min_length=1,
        description="single-stream (one row per call), multi-stream (a few), offline (batches), server (random arrivals, see `server`)",
    )
    batch_size: int = Field(32, ge=1, description="rows per call in the offline scenario")
    streams: int = Field(8, ge=1, description="rows per query in the multi-stream scenario")
    padding: Literal["natural", "bucketed", "longest", "max_length"] = Field(
        "natural",
        description="length of the rows: their own (a batch: its longest); bucketed: the same, with rows of alike length in a batch;"
        " the longest of all; or the model's maximum",
    )
    rows: int = Field(64, ge=1, description="validation rows to measure on, from the first; fewer where `duration_s` would be exceeded")
    blocks: int = Field(20, ge=1, description="timing blocks of each model in each scenario; a gate at 0.95 confidence needs at least 6")
    duration_s: float = Field(
        10.0, gt=0, description="seconds to spend on each scenario but server, all models together, warm-up not counted"
    )
    server: ServerLoad | None = Field(None, description="arrivals, bound and batcher of the server scenario, which needs it")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if Scenario.SERVER in self.scenarios and self.server is None:
            raise ValueError("the server scenario needs a bound: add `server: {latency_bound_ms: 20}`")
        if self.server is not None and Scenario.SERVER not in self.scenarios:
            raise ValueError("`server` is set and scenarios does not name it: add server to scenarios")
        return self

    def check(self, where: Where) -> list[str]:
        """A gate whose bound does not fit its metric, that so few blocks can never decide, or on a cost without a price."""
        known = {metric.name: metric for metric in self._metrics()}
        found = [f"gate on {gate.metric}: {text}" for gate in self.gates if gate.metric in known for text in self._objections(gate, known)]
        if not any(gate.metric == COST.name for gate in self.gates):
            return found
        free = [target.name for target in where.targets if target.price_per_hour is None]
        return [*found, *(f"{COST.name} needs a price: add price_per_hour to the target {name}" for name in free)]

    def _objections(self, gate: Gate, known: Mapping[str, Metric]) -> Iterator[str]:
        exact = known[gate.metric] in (MEMORY, SIZE)
        fitting = fitting_bounds(Kind.EXACT if exact else Kind.BLOCKS, known[gate.metric])
        if gate.bound[0] not in fitting:
            yield f"{gate.bound[0]} does not fit this metric; use one of {', '.join(fitting)}"
        fewest, level = fewest_for_quantile(0.5, gate.confidence), f"{gate.confidence * 100:.4g} % confidence"
        if gate.metric.startswith("server_") or (known[gate.metric] is COST and self.server):
            if fewest > FEWEST_ROUNDS:
                yield f"the {FEWEST_ROUNDS} rounds of the server scenario can never decide at {level}; lower confidence to 0.95"
        elif not exact and self.blocks < fewest:
            yield f"{self.blocks} blocks can never decide at {level}; set blocks to {fewest} or more"

    def metric_names(self, task: Task) -> Sequence[str]:
        return [metric.name for metric in self._metrics()]

    def _metrics(self) -> list[Metric]:
        timed = [figure.metric for scenario, figures in FIGURES.items() if scenario in self.scenarios for figure in figures]
        # At a rate that is given, the tail is what is measured; a searched rate has its tail at the bound.
        served = [self.server.rate if self.server.rate_per_s is None else self.server.tail] if self.server else []
        cost = (COST,) if self.server or Scenario.OFFLINE in self.scenarios else ()
        return [*timed, *served, *cost, MEMORY, SIZE]

    def run(self, model: ModelArtifact, ctx: Context) -> Outcome:
        models = {**ctx.baselines, **ctx.candidates}
        scenarios = list(dict.fromkeys(self.scenarios))
        with ExitStack() as stack:
            subjects = self._start(models, ctx, stack)
            floor_s = subjects[0].call("floor")["query_s"]
            meter = Meter(_gpu(ctx.target.device))
            taken: dict[Scenario, Taken] = {}
            served: dict[str, Served] = {}
            for i, scenario in enumerate(scenarios):
                say = partial(_say, ctx, scenario, i, len(scenarios))
                if scenario is Scenario.SERVER:
                    assert self.server is not None, "the validator saw to it"
                    served = Server(self.server, subjects, say).measure(self.padding, self.rows)
                else:
                    rounds = Rounds(scenario, self._batch_size(scenario), subjects, self.duration_s, self.blocks, say)
                    taken[scenario] = rounds.measure(self.padding, self.rows, meter)
            for subject in subjects:
                subject.end()
        ctx.progress(1.0, "measured")
        return Result(self._metrics(), subjects, taken, served, ctx, floor_s, meter.source).outcome(self.padding)

    def _start(self, models: Mapping[str, ModelArtifact], ctx: Context, stack: ExitStack) -> list[Subject]:
        """One process after the other, each left asleep, so that no load is timed beside another."""
        subjects = []
        for name, model in models.items():
            ctx.progress(0.0, f"opening {name}")
            subject = Subject(name, model, ctx)
            stack.callback(subject.close)
            prepare([subject], 1, self.padding, 1)
            subject.startup = subject.call("startup")
            subjects.append(subject)
        return subjects

    def _batch_size(self, scenario: Scenario) -> int:
        return {Scenario.OFFLINE: self.batch_size, Scenario.MULTI_STREAM: self.streams}.get(scenario, 1)


def _say(ctx: Context, scenario: Scenario, number: int, of: int, done: float, message: str) -> None:
    ctx.progress((number + done) / of, f"{scenario.value}: {message}")


def _gpu(device: str) -> int | None:
    """The number of the GPU that a target names; None for a CPU."""
    return int(device.partition(":")[2] or 0) if device.startswith("gpu") else None
