"""What a benchmark says: figures of every model, samples for the gates, tables, charts, notes and the files it keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ioptim.core.metrics import Kind, Metric, Samples
from ioptim.core.step import Context, Level, Note, Outcome
from ioptim.loadgen import Scenario
from ioptim.steps.benchmark import charts, server, tables
from ioptim.steps.benchmark.rounds import Taken
from ioptim.steps.benchmark.scenarios import COST, FIGURES, MEMORY, P50, SIZE, THROUGHPUT
from ioptim.steps.benchmark.search import RATE
from ioptim.steps.benchmark.server import Served
from ioptim.steps.benchmark.subjects import Subject

FLOOR_LIMIT_S = 20e-6
"""What the harness may take of a single-stream query before a reader is warned."""
MILLION = 1e6


class Result:
    """Everything measured. `metrics` are those the step promised."""

    def __init__(
        self,
        metrics: Sequence[Metric],
        subjects: Sequence[Subject],
        taken: Mapping[Scenario, Taken],
        served: Mapping[str, Served],
        ctx: Context,
        floor_s: float,
        energy_source: str,
    ) -> None:
        self.subjects = subjects
        self.taken = taken
        self.served = served
        self.ctx = ctx
        self.floor_s = floor_s
        self.energy_source = energy_source
        self.samples = [sample for metric in metrics if (sample := self._sample(metric)).values]

    def outcome(self, padding: str) -> Outcome:
        figures = {subject.name: self._figures(subject) for subject in self.subjects}
        for name in self.ctx.candidates:
            baselines = {short: figures[full] for short, full in _baselines_of(name, self.ctx).items()}
            figures[name] |= _against(figures[name], baselines)
        _keep(self.ctx.out / "files" / "latency.parquet", self.taken, self.served)
        only = next(iter(self.ctx.candidates)) if len(self.ctx.candidates) == 1 else None
        served = [tables.served(self.served, figures)] if self.served else []
        return Outcome(
            metrics={**(figures[only] if only else {}), "harness_floor_us": self.floor_s * 1e6},
            subjects=figures,
            samples=tuple(self.samples),
            tables=(tables.figures(figures), *served, tables.intervals(self.samples)),
            charts=tuple(charts.of(self.taken, self.served)),
            notes=tuple(self._notes(figures)),
            facts=self._facts(padding),
        )

    def _figures(self, subject: Subject) -> dict[str, float]:
        """Every figure of a model that its samples support: of what is measured in blocks their median, as gates say it."""
        found: dict[str, float | None] = {}
        for scenario, taken in self.taken.items():
            blocks = taken.seconds(subject.name)
            of_blocks = {figure.metric.name: figure.of_blocks(blocks, taken.asked.rows) for figure in FIGURES[scenario]}
            found |= {name: median(values) if values else None for name, values in of_blocks.items()}
        if single := self.taken.get(Scenario.SINGLE_STREAM):
            found["n"] = sum(map(len, single.seconds(subject.name)))
        if served := self.served.get(subject.name):
            found |= {RATE: served.rate_per_s, served.asked.tail.name: served.tail_ms}
        found[COST.name] = self._cost(subject, found)
        found["energy_per_row_j"] = self._energy(subject.name)
        found |= {MEMORY.name: subject.peak_memory_bytes, SIZE.name: subject.model.size_bytes}
        found |= {"load_s": subject.startup["load_s"], "first_inference_ms": subject.startup["first_inference_s"] * 1e3}
        return {name: value for name, value in found.items() if value is not None}

    def _cost(self, subject: Subject, figures: Mapping[str, float | None]) -> float | None:
        """Of the target's price, at the server's rate where there is one that meets the bound, else at the offline throughput."""
        rate = self.served[subject.name].met_rate_per_s if self.served else figures.get(THROUGHPUT.metric.name)
        return _cost(subject.target.price_per_hour, rate)

    def _energy(self, name: str) -> float | None:
        """Joules of a row in full batches, else of a row by itself; the unrecorded calls at a block's head are in it and count."""
        taken = self.taken.get(Scenario.OFFLINE) or self.taken.get(Scenario.SINGLE_STREAM)
        if taken is None or not self.energy_source:
            return None
        calls = (taken.asked.queries + taken.asked.lead_in) * len(taken.blocks[name])
        return taken.joules[name] / (calls * taken.asked.batch_size)

    def _sample(self, metric: Metric) -> Samples:
        """What gates are judged from; without values where nothing supports the metric."""
        if metric in (MEMORY, SIZE):
            exact = {s.name: (s.peak_memory_bytes if metric is MEMORY else s.model.size_bytes,) for s in self.subjects}
            return Samples(metric=metric, kind=Kind.EXACT, values=exact)
        values = {subject.name: self._blocks(metric, subject) for subject in self.subjects}
        if metric is COST and any(subject.target.price_per_hour is None for subject in self.subjects):
            values = {}
        return Samples(metric=metric, kind=Kind.BLOCKS, values={name: tuple(of_blocks) for name, of_blocks in values.items()})

    def _blocks(self, metric: Metric, subject: Subject) -> Sequence[float | None]:
        """One value for each block of a model."""
        for scenario, taken in self.taken.items():
            for figure in FIGURES[scenario]:
                if figure.metric == metric:
                    return figure.of_blocks(taken.seconds(subject.name), taken.asked.rows)
        if metric is COST:
            rates = self.served[subject.name].met_rates if self.served else self._blocks(THROUGHPUT.metric, subject)
            return [_cost(subject.target.price_per_hour, rate) for rate in rates]
        if metric.name == RATE:
            return self.served[subject.name].rates
        return [trial.tail_s * 1e3 for trial in self.served[subject.name].ends]

    def _facts(self, padding: str) -> dict[str, Any]:
        return {
            "clock": "LoadGen's, around session.run: host arrays in, host arrays out; server: from arrival to answer, padding included",
            "padding": padding,
            "energy": self.energy_source or "not readable here: no counter of RAPL or NVML that this user may read",
            "scenarios": {scenario.value: one.facts() for scenario, one in self.taken.items()},
            **({"server": {name: served.facts() for name, served in self.served.items()}} if self.served else {}),
            "subjects": {subject.name: subject.facts for subject in self.subjects},
        }

    def _notes(self, figures: Mapping[str, Mapping[str, float]]) -> Iterator[Note]:
        for taken in self.taken.values():
            yield from taken.notes()
        for name, served in self.served.items():
            yield from served.notes(name, figures[name].get(COST.name))
        if self.served:
            yield from server.noise(self.served)
        text = f"the harness itself takes {self.floor_s * 1e6:.0f} µs of a single-stream query (LoadGen with a model that does nothing)"
        if self.floor_s > FLOOR_LIMIT_S:
            yield Note(text=f"{text}; on an idle machine it takes less than {FLOOR_LIMIT_S * 1e6:.0f}", level=Level.WARNING)
        else:
            yield Note(text=text)
        if any(subject.peak_memory_bytes is None for subject in self.subjects):
            yield Note(text="peak memory is not known: this system does not tell it", level=Level.WARNING)


def _cost(price_per_hour: float | None, rate_per_s: float | None) -> float | None:
    """None where there is no price, or nothing is served for it."""
    return None if price_per_hour is None or not rate_per_s else price_per_hour / 3600 / rate_per_s * MILLION


def _baselines_of(candidate: str, ctx: Context) -> dict[str, str]:
    """The baselines that a candidate is compared with, by the name without target: of several targets its own."""
    target = ctx.target_of(ctx.candidates[candidate]).name
    return {name.partition("@")[0]: name for name in ctx.baselines if name.partition("@")[2] in ("", target) and name != candidate}


def _against(mine: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Speedup is baseline ÷ candidate of the median latency; the other ratios are candidate ÷ baseline."""
    found = {}
    p50, throughput = P50.metric.name, THROUGHPUT.metric.name
    for name, theirs in baselines.items():
        if p50 in mine and p50 in theirs:
            found[f"speedup_vs_{name}"] = theirs[p50] / mine[p50]
        if throughput in mine:
            found[f"throughput_ratio_vs_{name}"] = mine[throughput] / theirs[throughput]
        if theirs[SIZE.name]:
            found[f"size_ratio_vs_{name}"] = mine[SIZE.name] / theirs[SIZE.name]
    return found


def _keep(path: Path, taken: Mapping[Scenario, Taken], served: Mapping[str, Served]) -> None:
    """Every sample: subject, scenario, block, query (from 0 in its block; offline: batch), seconds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = [(name, scenario.value, one.seconds(name)) for scenario, one in taken.items() for name in one.blocks]
    kept += [(name, Scenario.SERVER.value, [trial.seconds for trial in one.ends]) for name, one in served.items()]
    rows = [(name, scenario, b, q, s) for name, scenario, blocks in kept for b, block in enumerate(blocks) for q, s in enumerate(block)]
    types = {"subject": pa.string(), "scenario": pa.string(), "block": pa.int32(), "query": pa.int32(), "seconds": pa.float64()}
    columns = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(types.values())]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, names=list(types)), path)
