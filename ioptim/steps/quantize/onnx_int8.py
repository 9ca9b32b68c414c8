"""int8 by ONNX Runtime's quantizer: dynamic (activations are measured at every run) and static (QDQ, ranges from data)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ioptim.core.step import Note
from ioptim.onnx_graph import load_graph, save_graph
from ioptim.steps import _outputs
from ioptim.steps._bias import KINDS as CORRECTED_KINDS
from ioptim.steps._calibration import calibration_feeds
from ioptim.steps._float_graph import drop_unused_domains
from ioptim.steps._layers import judge
from ioptim.steps._onnx_int8 import FloatGraph, Int8Options, Scheme, prepare
from ioptim.steps.quantize.made import Made
from ioptim.steps.quantize.mixed import Mixed, leave

if TYPE_CHECKING:
    from ioptim.core.artifact import ModelArtifact
    from ioptim.core.step import Context
    from ioptim.core.task import Feeds
    from ioptim.steps.quantize import Quantize

ENTRY = "model.onnx"


def dynamic(step: Quantize, model: ModelArtifact, ctx: Context, out: Path, scratch: Path) -> Made:
    """Weights become int8, activations uint8 at every run with a range of their own: int8 GEMM. Only `smooth` reads calibration rows."""
    feeds = _outputs.trial_feeds(model, ctx)
    reading, notes, metrics = _calibration(step, model, ctx) if step.smooth is not None else ([], [], {})
    ctx.progress(0.1, "fusing" if step.fuse == "on" else "preparing")
    graph = prepare(_options(step, "int8-dynamic"), model.model_path, scratch, ctx, reading, check=feeds)
    return _made(step, graph, model, feeds, out, ctx, notes, metrics)


def static(step: Quantize, model: ModelArtifact, ctx: Context, out: Path, scratch: Path) -> Made:
    """Weights int8 and activations 8 bits with fixed ranges, as QuantizeLinear and DequantizeLinear around float operators.

    The runtime turns each such group into an int8 kernel; one that does not know the pattern computes the same in float.
    """
    reading, notes, metrics = _calibration(step, model, ctx)
    graph = prepare(_options(step, "int8-static"), model.model_path, scratch, ctx, reading)
    return _made(step, graph, model, reading[: len(_outputs.SHAPES)], out, ctx, notes, metrics)


def _calibration(step: Quantize, model: ModelArtifact, ctx: Context) -> tuple[list[Feeds], list[Note], dict[str, float]]:
    reading, notes = calibration_feeds(model, ctx, step.calibration.samples, step.calibration.batch_size)
    return reading, notes, {"calibration_samples": float(sum(len(next(iter(feed.values()))) for feed in reading))}


def _options(step: Quantize, scheme: Scheme) -> Int8Options:
    return Int8Options(
        scheme=scheme,
        fuse=step.fuse == "on",
        per_channel=step.per_channel,
        reduce_range=step.reduce_range == "on",
        weight_type=step.weight_type,
        operator_types=step.operator_types,
        exclude_nodes=step.exclude_nodes,
        activation_type=step.activation_type,
        method=step.calibration.method,
        percentile=step.calibration.percentile,
        smooth=step.smooth,
        correct_bias=step.correct_bias,
    )


def _made(
    step: Quantize,
    graph: FloatGraph,
    model: ModelArtifact,
    feeds: Sequence[Feeds],
    out: Path,
    ctx: Context,
    notes: Sequence[Note] = (),
    metrics: dict[str, float] | None = None,
) -> Made:
    mixed = Mixed() if step.mixed_precision is None else leave(step.mixed_precision, graph, model, ctx)
    chosen = [layer for layer in graph.layers if layer.quantized and layer.name not in mixed.kept]
    ctx.progress(0.8, f"quantizing {len(chosen)} layers")
    corrected = graph.write(out / ENTRY, mixed.kept)
    if graph.means:
        matrices = sum(layer.kind in CORRECTED_KINDS for layer in chosen)
        notes = (*notes, Note(text=f"biases corrected: {len(corrected)} of {matrices} layers with a matrix"))
    made = load_graph(out / ENTRY)
    drop_unused_domains(made)
    save_graph(made, out / ENTRY)
    ctx.progress(0.9, "comparing outputs")
    threads = ctx.hardware.threads
    fused = {f"fused_{op}": float(number) for op, number in (graph.fused or {}).items()}
    return Made(
        ENTRY,
        judge(mixed.mark(graph.layers), made),
        reference=_outputs.run_onnx(model.model_path, feeds, threads),
        outputs=_outputs.run_onnx(out / ENTRY, feeds, threads),
        feeds=feeds,
        notes=(*graph.notes, *notes, *mixed.notes),
        metrics={**fused, **(metrics or {}), **mixed.metrics},
        facts={**({"fused": graph.fused} if graph.fused else {}), **mixed.facts},
        tables=mixed.tables,
        charts=mixed.charts,
    )
