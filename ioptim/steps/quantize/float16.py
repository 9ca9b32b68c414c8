"""Half precision: every float32 tensor becomes float16, half the bytes, computed in float16 where the hardware can."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ioptim.onnx_graph import save_graph
from ioptim.steps import _outputs
from ioptim.steps._float_graph import float_graph
from ioptim.steps._layers import COMPUTED, choose, find_layers, judge, keep_shared, name_nodes
from ioptim.steps.quantize.made import Made

if TYPE_CHECKING:
    from ioptim.core.artifact import ModelArtifact
    from ioptim.core.step import Context
    from ioptim.steps.quantize import Quantize

ENTRY = "model.onnx"
FLOAT16 = 10
"""onnx.TensorProto.FLOAT16"""


def make(step: Quantize, model: ModelArtifact, ctx: Context, out: Path, scratch: Path) -> Made:
    """Convert weights and operators; inputs and outputs stay float32, so that feeds need not change.

    Values beyond 65504 become the largest float16. Operators without a float16 form stay in float32 between casts.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    feeds = _outputs.trial_feeds(model, ctx)
    reference = _outputs.run_onnx(model.model_path, feeds, ctx.hardware.threads)
    graph, notes = float_graph(model.model_path)
    name_nodes(graph)
    # A product of two computed values has no weight to convert: it follows its inputs.
    layers = [layer for layer in find_layers(graph) if layer.why != COMPUTED]
    layers = keep_shared(choose(layers, {layer.kind for layer in layers}, step.exclude_nodes))
    ctx.progress(0.3, "converting to float16")
    kept = [layer.name for layer in layers if not layer.quantized]
    made = convert_float_to_float16(graph, keep_io_types=True, node_block_list=kept)
    save_graph(made, out / ENTRY)
    ctx.progress(0.8, "comparing outputs")
    outputs = _outputs.run_onnx(out / ENTRY, feeds, ctx.hardware.threads)
    return Made(ENTRY, judge(layers, made, low={FLOAT16}), reference, outputs, feeds, notes)
