"""Bias correction: rounding shifts the mean of a layer's output; the shift is taken off the layer's bias.

The output's shift follows from means of the input alone, for the layer is linear: W·E[x] - Ŵ·E[x̂], where hats are what 8 bits make
of it. Each layer is corrected for its own rounding, on the float model's values; at the borders of a padded convolution the means
are those of its inside. Source: Nagel et al., https://arxiv.org/abs/1906.04721, section 4.2.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ioptim.steps._activations import channels, watch
from ioptim.steps._editing import Editing
from ioptim.steps._layers import Layer

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from ioptim.core.step import Context
    from ioptim.core.task import Feeds

KINDS = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True)
class Mean:
    """Of a layer's input, by channel: as it is, and after 8 bits."""

    exact: np.ndarray
    rounded: np.ndarray


def measure(
    path: Path, quantized: onnx.ModelProto, layers: Sequence[Layer], reading: Sequence[Feeds], ctx: Context, scratch: Path
) -> dict[str, Mean]:
    """Means of the inputs of `layers` in the float graph at `path`, by the input's name; `quantized` has their scales."""
    import numpy as np

    graph = Editing(quantized)
    nodes = {node.name: node for node in quantized.graph.node}
    inputs: dict[str, tuple[int, np.ndarray, np.ndarray]] = {}
    for layer in layers:
        node = nodes.get(layer.name)
        link = _quantizer(graph, node.input[0]) if node is not None and node.op_type in KINDS else None
        if node is not None and link is not None:
            scale, zero = graph.value(link.input[1]), graph.value(link.input[2])
            assert scale is not None and zero is not None, "static ranges are constants"
            inputs[link.input[0]] = (1 if node.op_type == "Conv" else -1, scale, zero)
    sums: dict[str, list[np.ndarray]] = {}
    counts = dict.fromkeys(inputs, 0)
    for values in watch(path, list(inputs), reading, ctx, scratch, (0.7, 0.75), "correcting biases"):
        for name, value in values.items():
            axis, scale, zero = inputs[name]
            x: np.ndarray = channels(value, axis).astype(np.float64)
            ends = np.iinfo(zero.dtype)
            rounded = (np.clip(np.rint(x / scale) + zero, ends.min, ends.max) - zero.astype(np.float64)) * scale
            old = sums.get(name, [np.zeros(x.shape[1]), np.zeros(x.shape[1])])
            sums[name] = [old[0] + x.sum(axis=0), old[1] + rounded.sum(axis=0)]
            counts[name] += len(x)
    return {name: Mean(exact / counts[name], rounded / counts[name]) for name, (exact, rounded) in sums.items()}


def correct(
    quantized: onnx.ModelProto, original: onnx.ModelProto, layers: Sequence[Layer], means: Mapping[str, Mean]
) -> Collection[str]:
    """Change the biases of these layers of a quantized graph in place; the names of those that were corrected.

    A layer without a bias has nowhere to put it. `original` is the float graph, which has the exact weights.
    """
    graph = Editing(quantized)
    exact = {layer.name: layer.weight for layer in layers}
    weights = Editing(original)
    done = []
    for node in quantized.graph.node:
        link = _quantizer(graph, node.input[0]) if node.name in exact and node.op_type in KINDS else None
        mean = means.get(link.input[0]) if link is not None else None
        weight, rounded = weights.value(exact.get(node.name, "")), _dequantized(graph, node.input[1]) if mean is not None else None
        if mean is None or weight is None or rounded is None:
            continue
        shift = _output(graph, node, weight, mean.exact) - _output(graph, node, rounded, mean.rounded)
        if _add_to_bias(graph, node, shift):
            done.append(node.name)
    return done


def _quantizer(graph: Editing, name: str) -> onnx.NodeProto | None:
    """The QuantizeLinear behind a value that comes out of a DequantizeLinear."""
    back = graph.producer(name, "DequantizeLinear")
    return graph.producer(back.input[0], "QuantizeLinear") if back is not None else None


def _dequantized(graph: Editing, name: str) -> np.ndarray | None:
    """The weight that int8 kernels multiply by, as float."""
    import numpy as np

    back = graph.producer(name, "DequantizeLinear")
    stored, scale, zero = (graph.value(part) for part in back.input) if back is not None else (None, None, None)
    if back is None or stored is None or scale is None or zero is None:
        return None
    shape = [1] * stored.ndim
    if scale.ndim:
        shape[graph.attribute(back, "axis", 1)] = -1
    return (stored.astype(np.float64) - zero.reshape(shape)) * scale.reshape(shape)


def _output(graph: Editing, node: onnx.NodeProto, weight: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Mean output, by channel, of a layer whose input has this mean everywhere."""
    import numpy as np

    weight = weight.astype(np.float64)
    if node.op_type == "Conv":  # (out, in / groups, height, width)
        groups = graph.attribute(node, "group", 1)
        kernel = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).sum(axis=-1)
        return np.einsum("goi,gi->go", kernel, mean.reshape(groups, -1)).ravel()
    if graph.attribute(node, "transB", 0):
        weight = weight.T
    result: np.ndarray = graph.attribute(node, "alpha", 1.0) * (mean @ weight)
    return result


def _add_to_bias(graph: Editing, node: onnx.NodeProto, shift: np.ndarray) -> bool:
    """Where the bias is: an Add after a MatMul, or the third input, stored as int32 or in float."""
    import numpy as np

    if node.op_type == "MatMul":
        add = graph.only_reader(node.output[0])
        place = next((i for i, name in enumerate(add.input) if name in graph.weights), None) if add is not None else None
        bias = graph.value(add.input[place]) if add is not None and place is not None and add.op_type == "Add" else None
        if add is None or place is None or bias is None or bias.shape != shift.shape:
            return False
        graph.set_weight(add, place, (bias + shift).astype(bias.dtype))
        return True
    if len(node.input) < 3 or graph.attribute(node, "beta", 1.0) != 1.0:
        return False
    back = graph.producer(node.input[2], "DequantizeLinear")
    holder, place = (back, 0) if back is not None else (node, 2)
    bias = graph.value(holder.input[place])
    scale = graph.value(back.input[1]) if back is not None else None
    if bias is None or bias.shape != shift.shape or (back is not None and len(graph.readers[node.input[2]]) > 1):
        return False
    new = bias + (shift if scale is None else np.rint(shift / scale))
    graph.set_weight(holder, place, new.astype(bias.dtype))
    return True
