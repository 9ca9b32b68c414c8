"""Mixed precision: the layers that cost most quality stay in float, as few as a bound on calibration rows needs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ioptim.core.base import Frozen
from ioptim.core.step import ChartFigure, Note, TableFigure
from ioptim.errors import StepError
from ioptim.steps import _sensitivity
from ioptim.steps._calibration import calibration_feeds
from ioptim.steps._layers import SENSITIVE, Layer
from ioptim.steps._onnx_int8 import FloatGraph
from ioptim.steps._outputs import listed

if TYPE_CHECKING:
    from ioptim.core.artifact import ModelArtifact
    from ioptim.core.step import Context


class MixedPrecision(Frozen):
    """How much quality int8 may cost before layers are left in float. Measured on calibration rows; validation is for gates."""

    max_drop: float = Field(
        gt=0, lt=1, description="largest loss: share of calibration rows whose top answer changes, or 1 - mean cosine where no classes"
    )
    rows: int = Field(128, ge=1, description="rows of data.calibration it is measured on, drawn with the recipe's seed")
    by: _sensitivity.By = Field("layer", description="leave single layers in float, or whole blocks that the model repeats")


@dataclass(frozen=True)
class Mixed:
    """Which nodes stay in float, and what the reader should know of the choice."""

    kept: frozenset[str] = frozenset()
    notes: tuple[Note, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    tables: tuple[TableFigure, ...] = ()
    charts: tuple[ChartFigure, ...] = ()

    def mark(self, layers: Iterable[Layer]) -> list[Layer]:
        return [replace(layer, why=SENSITIVE) if layer.name in self.kept else layer for layer in layers]


def leave(bound: MixedPrecision, graph: FloatGraph, model: ModelArtifact, ctx: Context) -> Mixed:
    """Choose the layers to leave in float: none where all in int8 meet the bound, else the fewest, the most sensitive first.

    Raises:
        StepError: the bound is met by no choice that leaves a layer in int8.
    """
    ctx.progress(0.2, "comparing with all layers in int8")
    feeds, notes = calibration_feeds(model, ctx, bound.rows, 1)
    judge = _sensitivity.Judge(model.model_path, feeds, ctx)
    drops: dict[frozenset[str], float] = {}

    def drop(keep: Collection[str]) -> float:
        key = frozenset(keep)
        if key not in drops:
            path = graph.scratch / "mixed.onnx"
            graph.write(path, key)
            drops[key] = judge.loss(path).drop
        return drops[key]

    what = f"{_sensitivity.drop_name(ctx.task)} on {judge.rows} calibration examples"
    whole = drop(())
    if whole <= bound.max_drop:
        text = f"mixed_precision: all layers in int8 cost {whole:.3g} ({what}), within max_drop {bound.max_drop:g}; none is left in float"
        return Mixed(notes=(*notes, Note(text=text)), metrics={"calibration_drop": whole, "calibration_drop_all_int8": whole})
    groups = _sensitivity.groups_of(graph, bound.by)
    ranking = _sensitivity.rank(graph, groups, judge, lambda done, said: ctx.progress(0.25 + 0.4 * done, said))
    ctx.progress(0.65, "searching for the fewest layers in float")
    count, _ = _sensitivity.fewest_in_float(ranking, bound.max_drop, drop)
    if count == len(ranking):
        raise StepError(_impossible(bound, ranking, whole, what))
    kept = frozenset(name for one in ranking[:count] for name in one.group.layers)
    return _chosen(bound, ranking, count, kept, drop(kept), whole, what, (*notes,), ctx)


def _chosen(
    bound: MixedPrecision,
    ranking: list[_sensitivity.Sensitivity],
    count: int,
    kept: frozenset[str],
    reached: float,
    whole: float,
    what: str,
    notes: tuple[Note, ...],
    ctx: Context,
) -> Mixed:
    names = [one.group.name for one in ranking[:count]]
    text = (
        f"mixed_precision: {count} of {len(ranking)} {bound.by}s stay in float ({listed(names, 6)}): all in int8 cost {whole:.3g}"
        f" ({what}), more than max_drop {bound.max_drop:g}; so it is {reached:.3g}"
    )
    return Mixed(
        kept=kept,
        notes=(*notes, Note(text=text)),
        metrics={"calibration_drop": reached, "calibration_drop_all_int8": whole, "layers_kept_in_float": float(len(kept))},
        facts={"kept_in_float": sorted(kept)},
        tables=(_sensitivity.table(ranking, ctx.task, kept),),
        charts=(_sensitivity.chart(ranking, ctx.task, kept),),
    )


def _impossible(bound: MixedPrecision, ranking: list[_sensitivity.Sensitivity], whole: float, what: str) -> str:
    least = min(ranking, key=lambda one: one.loss.drop)
    return (
        f"mixed_precision: max_drop {bound.max_drop:g} is met by no model with a layer in int8. All in int8 cost {whole:.3g} ({what});"
        f" {ranking[-1].group.name}, the least sensitive, costs {ranking[-1].loss.drop:.3g} alone, and no other less than"
        f" {least.loss.drop:.3g}. Allow more, or leave this step out"
    )
