"""What each layer or block would lose and save in int8, measured: one graph for each, in which it alone is quantized."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from ioptim.core.artifact import Format, ModelArtifact
from ioptim.core.base import Frozen
from ioptim.core.step import ChartFigure, Context, Note, TableFigure
from ioptim.errors import StepError
from ioptim.steps import _outputs, _sensitivity
from ioptim.steps._calibration import calibration_feeds
from ioptim.steps._onnx_int8 import FloatGraph, Int8Options, Scheme, prepare, saturates

if TYPE_CHECKING:
    import numpy as np

TIMED_ROWS = 8
TIMED_PASSES = 4
"""Over these rows, the first to warm up; of each layer and row the fastest counts, for what else the machine does only slows it."""


class SensitivityOptions(Frozen):
    """How the sensitivity of layers is measured; on calibration rows, for validation is for gates."""

    rows: int = Field(128, ge=1, description="rows of data.calibration, drawn with the recipe's seed")
    by: _sensitivity.By = Field("block", description="layer: each by itself; block: those of one repeated block of the model together")
    scheme: Scheme = Field("int8-dynamic", description="how a layer is quantized; int8-static measures its ranges on the same rows")


@dataclass(frozen=True)
class Ranked:
    """The ranking, as figures, and what it says."""

    metrics: dict[str, float]
    table: TableFigure
    chart: ChartFigure
    notes: tuple[Note, ...]


def measure(options: SensitivityOptions, model: ModelArtifact, ctx: Context, progress: Callable[[float, str], None]) -> Ranked:
    """Rank the groups of layers by the quality lost when they alone are quantized, beside the time that this saves.

    Raises:
        StepError: the graph has no layer that the scheme can quantize.
    """
    with _outputs.scratch_folder(ctx.out) as scratch:
        feeds, notes = calibration_feeds(model, ctx, options.rows, 1)
        progress(0.0, "preparing the graph")
        graph = prepare(_int8_options(options, ctx), model.model_path, scratch, ctx, feeds)
        groups = _sensitivity.groups_of(graph, options.by)
        if not groups:
            raise StepError(f"sensitivity found no layer that {options.scheme} can quantize in this graph; profile the float model")
        judge = _sensitivity.Judge(model.model_path, feeds, ctx)
        times = KernelTimes(graph, feeds[:TIMED_ROWS], ctx)
        ranking = _sensitivity.rank(graph, groups, judge, lambda done, said: progress(0.1 + 0.8 * done, said), times.saved)
        whole = scratch / "all.onnx"
        graph.write(whole)
        together, saved = judge.loss(whole), times.saved(whole)
    metrics = {"distance": together.distance, "drop": together.drop, "saved_ms": saved * 1e3}
    return Ranked(
        metrics={f"sensitivity_all_{name}": value for name, value in metrics.items() if math.isfinite(value)},
        table=_sensitivity.table(ranking, ctx.task),
        chart=_sensitivity.chart(ranking, ctx.task),
        notes=(*notes, Note(text=_said(options, ranking, judge.rows, together, saved, ctx))),
    )


def _int8_options(options: SensitivityOptions, ctx: Context) -> Int8Options:
    """As `quantize` with its defaults would have it on this target."""
    target = ctx.target
    fuse = options.scheme == "int8-dynamic" and target.runtime.runtime == "onnxruntime" and target.device == "cpu"
    return Int8Options(options.scheme, fuse=fuse, reduce_range=target.device == "cpu" and saturates(ctx.hardware.cpu_flags))


def _said(
    options: SensitivityOptions,
    ranking: Sequence[_sensitivity.Sensitivity],
    rows: int,
    together: _sensitivity.Loss,
    saved: float,
    ctx: Context,
) -> str:
    first = ranking[0]
    changed = f" ({together.drop:.2g} of the answers change)" if ctx.task.output == "logits" else ""
    return (
        f"{options.scheme} on {rows} calibration examples: {first.group.name} alone loses most, {first.loss.distance:.2g}"
        f" ({_sensitivity.distance_name(ctx.task)}), and saves {(first.saved_s or 0.0) * 1e3:.2g} ms a row;"
        f" all {len(ranking)} {options.by}s together lose {together.distance:.2g}{changed}"
        f" and save {saved * 1e3:.2g} ms:"
        f" steps.quantize.mixed_precision={{max_drop: ...}} leaves the first of them in float"
    )


class KernelTimes:
    """Time of the kernels of a graph against the float graph's, by the runtime's own profiler.

    Nodes that both graphs have run the same kernels: only what is in one of them is compared, so that their noise stays out.
    """

    def __init__(self, graph: FloatGraph, feeds: Sequence[Mapping[str, np.ndarray]], ctx: Context) -> None:
        self._feeds = feeds
        self._ctx = ctx
        self._float = self._seconds(graph.path)

    def saved(self, path: Path) -> float:
        """Seconds per row that this graph takes less than the float graph; negative where it takes more."""
        here = self._seconds(path)
        gone = sum(seconds for node, seconds in self._float.items() if node not in here)
        come = sum(seconds for node, seconds in here.items() if node not in self._float)
        return gone - come

    def _seconds(self, path: Path) -> dict[tuple[str, str], float]:
        """Seconds per row by node: name and operator."""
        model = ModelArtifact(path=path.parent, format=Format.ONNX, entry=path.name)
        session = self._ctx.runtime_for(model).open_profiled(model, self._ctx.target, path.with_name("times.json"))
        if session is None:
            raise StepError(f"sensitivity needs the time of every layer, which {self._ctx.target.runtime.runtime} does not tell")
        for _ in range(TIMED_PASSES):
            for feed in self._feeds:
                session.run(feed)
        runs = session.finish()[len(self._feeds) :]
        best: dict[tuple[int, str, str], float] = {}
        for number, run in enumerate(runs):
            for layer in run.layers:
                key = (number % len(self._feeds), layer.name, layer.operator)
                best[key] = min(best.get(key, math.inf), layer.seconds)
        total: dict[tuple[str, str], float] = {}
        for (_, name, operator), seconds in best.items():
            total[name, operator] = total.get((name, operator), 0.0) + seconds / len(self._feeds)
        return total
