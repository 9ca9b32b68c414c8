"""Looks at a model before anything is done to it: where its time goes and where its weights are."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ioptim import timing
from ioptim.core.artifact import Format, ModelArtifact
from ioptim.core.step import Context, Level, MeasuringStep, Note, Outcome, TableFigure, Where
from ioptim.errors import StepError
from ioptim.steps import _profile_onnx, _profile_torch
from ioptim.steps._findings import Findings, advice, affordable, kind_of

if TYPE_CHECKING:
    import numpy as np

OPERATORS_SHOWN = 15


class Profile(MeasuringStep):
    """Time by operator and by layer, parameters by layer, and operations per row, on validation rows at their natural lengths.

    A torch model runs as its library runs it (eager, fp32 on the CPU), an ONNX model on ONNX Runtime with its graph optimizations; the
    rows of any other format are timed as a whole, through its runtime. Nothing is changed and nothing can be gated: the figures with
    the profiler on are for comparing parts of one model. `benchmark` compares models. A Chrome trace is kept in `files`.

    Raises:
        StepError: the model cannot be loaded, or fails on a row.
    """

    step: Literal["profile"] = "profile"
    uses_data: ClassVar[tuple[str, ...]] = ("validation",)

    rows: int = Field(32, ge=1, description="validation rows to run, one at a time, from the first")

    duration_s: float = Field(20.0, gt=0, description="seconds to run rows for, about; fewer rows are run where they would take longer")

    def library_names(self, where: Where) -> tuple[str, ...]:
        if where.format is Format.TORCH:
            return ("torch", "numpy")
        if where.format is Format.ONNX:
            gpu_build = any(True for _ in metadata.distributions(name="onnxruntime-gpu"))
            return ("onnxruntime-gpu" if gpu_build else "onnxruntime", "onnx", "numpy")
        return ()

    def run(self, model: ModelArtifact, ctx: Context) -> Outcome:
        files = ctx.out / "files"
        files.mkdir(parents=True, exist_ok=True)
        ctx.progress(0.0, "reading rows")
        feeds = list(itertools.islice(ctx.task.examples(ctx.table("validation"), model), self.rows))
        if not feeds:
            raise StepError("profile has no rows to run: the validation data gave no example")
        before, own_before = timing.Machine.now(), time.process_time()
        found = self._profile(model, feeds, files, ctx)
        machine = timing.conditions(before, timing.Machine.now(), time.process_time() - own_before)
        ctx.progress(1.0, "profiled")
        disturbed = [Note(text=text, level=Level.WARNING) for text in timing.disturbances(machine)]
        return Outcome(
            metrics=_metrics(found, model),
            tables=tuple(_tables(found)),
            notes=(*(Note(text=text) for text in self._notes(found, len(feeds), ctx)), *disturbed),
            facts={"rows": len(found.row_seconds), **found.facts, **machine},
        )

    def _profile(self, model: ModelArtifact, feeds: Sequence[Mapping[str, np.ndarray]], files: Path, ctx: Context) -> Findings:
        threads = ctx.target.threads or ctx.hardware.cores
        options: dict[str, Any] = {"threads": threads, "duration_s": self.duration_s, "files": files, "progress": ctx.progress}
        if model.format is Format.TORCH:
            return _profile_torch.profile(model, feeds, **options)
        if model.format is Format.ONNX:
            return _profile_onnx.profile(model, feeds, **options)
        session = ctx.open(model)
        feeds = affordable(feeds, min(timing.timed_block(session.run, feeds, 3)), 2, self.duration_s)
        timing.timed_block(session.run, feeds, len(feeds))
        row_seconds = timing.timed_block(session.run, feeds, len(feeds))
        session.close()
        return Findings(row_seconds, notes=[f"the operators of {model.format.value} models are not timed one by one"])

    def _notes(self, found: Findings, there: int, ctx: Context) -> list[str]:
        notes = list(found.notes)
        if found.operators:
            notes.append(advice(found))
        if found.operators and ctx.target.device != "cpu":
            notes.append(f"profiled on the CPU; the target {ctx.target.name} is a {ctx.target.device}, where the shares are others")
        run = len(found.row_seconds)
        if run < self.rows:
            why = "more would take longer than duration_s" if run < there else "the validation data has no more"
            notes.append(f"{run} rows were run, not {self.rows}: {why}")
        return notes


def _metrics(found: Findings, model: ModelArtifact) -> dict[str, float]:
    row_s = statistics.fmean(found.row_seconds)
    metrics: dict[str, float] = {"size_bytes": model.size_bytes, "row_mean_ms": row_s * 1e3}
    metrics["row_p50_ms"] = statistics.median(found.row_seconds) * 1e3
    if found.layers:
        metrics["parameters"] = found.parameters
    if found.flops is not None:
        metrics["flops_per_row"] = found.flops / len(found.row_seconds)
        metrics["gflop_per_s"] = found.flops / sum(found.row_seconds) / 1e9
    for kind, share in found.shares().items():
        metrics[f"{kind.replace(' ', '_')}_share"] = share
    if found.profiled_s is not None:
        metrics["profiler_slowdown"] = found.profiled_s / sum(found.row_seconds)
    return metrics


def _tables(found: Findings) -> list[TableFigure]:
    return [table for table in (_kinds(found), _operators(found), _layers(found)) if table.rows]


def _kinds(found: Findings) -> TableFigure:
    rows = tuple((kind, round(100 * share, 1)) for kind, share in found.shares().items())
    return TableFigure(title="Time by kind of operator", columns=("kind", "% of operator time"), rows=rows)


def _operators(found: Findings) -> TableFigure:
    """The longest operators; what they leave of the time is the last line."""
    total, n = sum(operator.seconds for operator in found.operators), len(found.row_seconds)
    ordered = sorted(found.operators, key=lambda operator: -operator.seconds)
    shown, rest = ordered[:OPERATORS_SHOWN], ordered[OPERATORS_SHOWN:]

    def line(name: str, kind: str, calls: int, seconds: float) -> tuple[Any, ...]:
        return name, kind, _significant(calls / n), _significant(seconds / n * 1e3), round(100 * seconds / total, 1)

    rows = [line(operator.name, kind_of(operator.name), operator.calls, operator.seconds) for operator in shown]
    if rest:
        seconds = sum(operator.seconds for operator in rest)
        rows.append(line(f"{len(rest)} others", "", sum(operator.calls for operator in rest), seconds))
    columns = ("operator", "kind", "calls per row", "ms per row, profiled", "% of operator time")
    return TableFigure(title="Time by operator", columns=columns, rows=tuple(rows))


def _layers(found: Findings) -> TableFigure:
    """Every kind of layer with weights or time. Time between layers (functions, views, Python) is in none of them."""
    n, parameters = len(found.row_seconds), found.parameters or 1
    timed = any(layer.seconds is not None for layer in found.layers)
    rows: list[tuple[Any, ...]] = [
        (
            layer.kind,
            layer.count,
            layer.parameters,
            round(100 * layer.parameters / parameters, 1),
            _significant(layer.weight_bytes / 1e6),
            *((None if layer.seconds is None else _significant(layer.seconds / n * 1e3),) if timed else ()),
        )
        for layer in found.layers
    ]
    columns = ("kind", "layers", "parameters", "% of parameters", "weights MB", *(("ms per row",) if timed else ()))
    return TableFigure(title="Layers", columns=columns, rows=tuple(rows))


def _significant(value: float) -> float:
    return float(f"{value:.4g}")
