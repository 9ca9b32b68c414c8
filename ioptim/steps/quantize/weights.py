"""Fewer bits for weights alone: they are stored in few bits, activations stay float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ioptim.core.base import Frozen
from ioptim.onnx_graph import load_graph, save_graph
from ioptim.steps import _float_graph, _outputs
from ioptim.steps._editing import Editing
from ioptim.steps._layers import COMPUTED, Layer, choose, find_layers, judge, keep_shared, name_nodes
from ioptim.steps._qdq import drop_unread
from ioptim.steps.quantize.made import Made

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from ioptim.core.artifact import ModelArtifact
    from ioptim.core.step import Context, Note
    from ioptim.core.task import Feeds
    from ioptim.steps.quantize import Quantize

ENTRY = "model.onnx"

KINDS = ("Gather", "Gemm", "MatMul")

FLOAT16, BFLOAT16 = 10, 16
"""Members of onnx.TensorProto.DataType."""

LARGEST_FLOAT16 = 65504.0

ACCURACY_LEVEL = {"float32": 1, "int8": 4}
"""MatMulNBits' attribute: the least precise type that activations may take inside of it."""


class Blocks(Frozen):
    """How `int8-weights` and `int4-weights` store a matrix."""

    size: Literal[16, 32, 64, 128, 256] = Field(32, description="weights along the inner dimension that share a scale")
    symmetric: bool = Field(True, description="a scale for each block, without a zero point")
    compute: Literal["float32", "int8"] = Field(
        "int8", description="what products run in: int8 rounds activations inside the kernel, float32 unpacks the weights"
    )


def in_blocks(bits: int) -> Callable[[Quantize, ModelArtifact, Context, Path, Path], Made]:
    """The scheme that stores matrices in blocks of this many bits, and embedding tables in int8.

    A linear layer becomes ONNX Runtime's MatMulNBits, an embedding a lookup of an int8 row and of its scale (standard ONNX).
    """

    def make(step: Quantize, model: ModelArtifact, ctx: Context, out: Path, scratch: Path) -> Made:
        blocks = step.blocks or Blocks()
        feeds = _outputs.trial_feeds(model, ctx)
        path, notes, _ = _float_graph.simplify(model.model_path, scratch, fuse=False)
        notes = (*notes, *_float_graph.respell(path, feeds, scratch, ctx.hardware.threads))
        graph = load_graph(path)
        chosen = choose(find_layers(graph), step.operator_types or KINDS, step.exclude_nodes)
        layers = [_fitting(layer, graph, blocks.size) for layer in chosen]
        ctx.progress(0.3, f"storing {sum(layer.quantized for layer in layers)} weights in {bits} bits")
        _look_up_in_int8(graph, [layer.name for layer in layers if layer.quantized and layer.kind == "Gather"])
        made = _matrices(graph, [layer for layer in layers if layer.kind != "Gather"], bits, blocks, scratch)
        save_graph(made, out / ENTRY)
        return _compared(model, feeds, out, ctx, judge(layers, made), notes)

    return make


def stored_as(data_type: int) -> Callable[[Quantize, ModelArtifact, Context, Path, Path], Made]:
    """The scheme that stores weights as float16 or bfloat16 and turns them back into float32 as the model is loaded."""

    def make(step: Quantize, model: ModelArtifact, ctx: Context, out: Path, scratch: Path) -> Made:
        feeds = _outputs.trial_feeds(model, ctx)
        graph, notes = _float_graph.float_graph(model.model_path)
        name_nodes(graph)
        # A product of two computed values has no weight to store.
        layers = [layer for layer in find_layers(graph) if layer.why != COMPUTED]
        layers = keep_shared(choose(layers, step.operator_types or {layer.kind for layer in layers}, step.exclude_nodes))
        if data_type == FLOAT16:
            layers = [_within_float16(layer, graph) for layer in layers]
        ctx.progress(0.3, "storing weights in 16 bits")
        _cast_up(graph, {layer.weight for layer in layers if layer.quantized}, data_type)
        save_graph(graph, out / ENTRY)
        return _compared(model, feeds, out, ctx, judge(layers, graph), notes)

    return make


def _compared(
    model: ModelArtifact, feeds: Sequence[Feeds], out: Path, ctx: Context, layers: list[Layer], notes: Sequence[Note] = ()
) -> Made:
    ctx.progress(0.8, "comparing outputs")
    threads = ctx.hardware.threads
    reference = _outputs.run_onnx(model.model_path, feeds, threads)
    return Made(ENTRY, layers, reference, _outputs.run_onnx(out / ENTRY, feeds, threads), feeds, tuple(notes))


# In blocks


def _fitting(layer: Layer, graph: onnx.ModelProto, block: int) -> Layer:
    """The layer, marked where its matrix cannot be cut into blocks."""
    if not layer.quantized or layer.kind == "Gather":
        return layer
    shape = next(list(tensor.dims) for tensor in graph.graph.initializer if tensor.name == layer.weight)
    if len(shape) != 2:
        return replace(layer, why=f"its weight has {len(shape)} dimensions, not 2")
    node = next(node for node in graph.graph.node if node.name == layer.name)
    flags = {a.name: a.i or a.f for a in node.attribute}
    if flags.get("transA") or flags.get("alpha", 1.0) != 1.0 or flags.get("beta", 1.0) != 1.0:
        return replace(layer, why="it is a Gemm with transA, alpha or beta")
    inner = shape[1 if flags.get("transB") else 0]
    return replace(layer, why=f"its {inner} inputs are no multiple of blocks.size {block}") if inner % block else layer


def _matrices(graph: onnx.ModelProto, layers: Sequence[Layer], bits: int, blocks: Blocks, scratch: Path) -> onnx.ModelProto:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    left = {layer.name for layer in layers if not layer.quantized}
    gemms = {layer.name for layer in layers if layer.quantized and layer.kind == "Gemm"}
    with _float_graph.quiet(scratch):
        _float_graph.untie_gemms(graph)
        kept = [node for node in graph.graph.node if node.op_type == "Gemm" and node.name not in gemms]
        for node in kept:  # the library knows no choice of its own here
            node.op_type = "KeptGemm"
        model = ONNXModel(graph)
        model.replace_gemm_with_matmul()
        for node in model.model.graph.node:
            node.op_type = "Gemm" if node.op_type == "KeptGemm" else node.op_type
        quantizer = MatMulNBitsQuantizer(
            model.model,
            bits=bits,
            block_size=blocks.size,
            is_symmetric=blocks.symmetric,
            accuracy_level=ACCURACY_LEVEL[blocks.compute],
            nodes_to_exclude=sorted(left),
        )
        quantizer.process()
    made: onnx.ModelProto = quantizer.model.model
    return made


def _look_up_in_int8(graph: onnx.ModelProto, names: Sequence[str]) -> None:
    """Gather(table, i) becomes Gather(rows in int8, i) · Gather(one scale per row, i)."""
    import numpy as np
    from onnx import helper, numpy_helper

    editing = Editing(graph)
    nodes = []
    for node in graph.graph.node:
        table = editing.value(node.input[0]) if node.name in names else None
        if table is None or editing.attribute(node, "axis", 0) != 0:
            nodes.append(node)
            continue
        name, rows = f"{node.input[0]}_int8", node.input[1]
        scale = np.maximum(abs(table).reshape(len(table), -1).max(axis=1), 1e-12) / 127
        scale = scale.astype(np.float32).reshape(-1, *[1] * (table.ndim - 1))
        if name not in editing.weights:
            for tensor, part in ((np.rint(table / scale).astype(np.int8), name), (scale, f"{name}_scale")):
                editing.weights[part] = numpy_helper.from_array(tensor, part)
                graph.graph.initializer.append(editing.weights[part])
        here = [f"{node.output[0]}_{what}" for what in ("int8", "float", "scale")]
        nodes += [
            helper.make_node("Gather", [name, rows], [here[0]], f"{node.name}_int8", axis=0),
            helper.make_node("Cast", [here[0]], [here[1]], f"{node.name}_cast", to=1),
            helper.make_node("Gather", [f"{name}_scale", rows], [here[2]], f"{node.name}_scale", axis=0),
            helper.make_node("Mul", here[1:], [node.output[0]], f"{node.name}_mul"),
        ]
    _replace(graph, nodes)


def _replace(graph: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.graph.node[:]
    graph.graph.node.extend(copies)
    drop_unread(graph)


# In 16 bits


def _within_float16(layer: Layer, graph: onnx.ModelProto) -> Layer:
    if not layer.quantized:
        return layer
    weight = Editing(graph).value(layer.weight)
    assert weight is not None, "a layer that may be quantized has a weight"
    return layer if abs(weight).max() <= LARGEST_FLOAT16 else replace(layer, why="its weight holds values beyond float16's 65504")


def _cast_up(graph: onnx.ModelProto, names: set[str], data_type: int) -> None:
    """Store these weights in 16 bits, each behind a Cast to float32 that all its readers read."""
    from onnx import helper

    casts = []
    for tensor in graph.graph.initializer:
        if tensor.name in names:
            stored = f"{tensor.name}_16"
            casts.append(helper.make_node("Cast", [stored], [tensor.name], f"{tensor.name}_cast", to=1))
            tensor.CopyFrom(_sixteen_bits(tensor, stored, data_type))
    everything = [*casts, *graph.graph.node]
    _replace(graph, everything)


def _sixteen_bits(tensor: onnx.TensorProto, name: str, data_type: int) -> onnx.TensorProto:
    from onnx import helper, numpy_helper

    value: np.ndarray = numpy_helper.to_array(tensor)
    return helper.make_tensor(name, data_type, value.shape, value.astype(helper.tensor_dtype_to_np_dtype(data_type)).tobytes(), raw=True)
