"""SmoothQuant: what makes activations hard to quantize moves into the weights, on a float ONNX graph that computes the same after.

Channel k of a linear layer's input is divided by s_k and row k of its weight multiplied by it,

    s_k = max|x_k|^α / max|w_k|^(1-α),

so that few large channels no longer set the scale of all. The division costs nothing where the node before can take it
(a normalization's scale, the linear layer before, the value projection behind an attention, each also through a Relu); elsewhere
(after a Gelu, or where a residual reads the value too) a Mul is put in. What a fused attention hands on is left as it is: a Mul there
gained nothing on MiniLM. Source: Xiao et al., https://arxiv.org/abs/2211.10438.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ioptim.errors import StepError
from ioptim.onnx_graph import load_graph, save_graph
from ioptim.steps._activations import channels, watch
from ioptim.steps._editing import Editing

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from ioptim.core.step import Context
    from ioptim.core.task import Feeds

LINEAR = ("MatMul", "Gemm")
FUSED_PROJECTIONS = "Attention"
"""Its three projections are one weight, (in, 3 * out), in the place where a MatMul has its own."""
FUSED_ATTENTIONS = (FUSED_PROJECTIONS, "MultiHeadAttention")
SPLIT = [0, 2, 1, 3]
"""(batch, tokens, heads, size) to (batch, heads, tokens, size), and back."""


@dataclass(frozen=True)
class Smoothed:
    """How many inputs of linear layers were smoothed: into the node before, and by a Mul of their own."""

    folded: int
    inserted: int

    @property
    def told(self) -> str:
        return f"smoothed the inputs of linear layers: {self.folded} by the node before, {self.inserted} by a Mul put in"


def smooth(path: Path, alpha: float, names: Collection[str], reading: Sequence[Feeds], ctx: Context, scratch: Path) -> Smoothed:
    """Rewrite the graph at `path` so that the linear layers called `names` get smoother inputs.

    Raises:
        StepError: none of them is a linear layer.
    """
    model = load_graph(path)
    graph = Editing(model)
    groups = _groups(graph, names)
    if not groups:
        raise StepError("smooth: no linear layer with a weight is quantized here, and it smooths the inputs of those; leave `smooth` out")
    largest: dict[str, np.ndarray] = {}
    for values in watch(path, list(groups), reading, ctx, scratch, (0.1, 0.3), "smoothing"):
        for name, value in values.items():
            seen = abs(channels(value, -1)).max(axis=0)
            largest[name] = seen if name not in largest else seen.clip(min=largest[name])
    added: dict[str, onnx.NodeProto] = {}
    for name, members in groups.items():
        scale = _scale(graph, members, largest[name], alpha)
        for node in members:
            weight = graph.value(node.input[1])
            assert weight is not None, "groups are of layers with a weight"
            graph.set_weight(node, 1, weight * (scale if _inputs_last(graph, node) else scale[:, None]))
        divide = _absorber(graph, name, len(members))
        if divide is None:
            added[members[0].name] = _multiplied(graph, name, members, 1 / scale)
        else:
            divide(1 / scale)
    graph.insert_all(added)
    save_graph(model, path)
    return Smoothed(len(groups) - len(added), len(added))


def _groups(graph: Editing, names: Collection[str]) -> dict[str, list[onnx.NodeProto]]:
    """The linear layers by the value that they read."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.graph.node:
        linear = node.op_type in (*LINEAR, FUSED_PROJECTIONS) and node.name in names and _is_plain(graph, node)
        if linear and graph.producer(node.input[0], *FUSED_ATTENTIONS) is None:
            found.setdefault(node.input[0], []).append(node)
    return found


def _is_plain(graph: Editing, node: onnx.NodeProto) -> bool:
    weight = graph.value(node.input[1])
    untouched = not graph.attribute(node, "transA", 0) and graph.attribute(node, "alpha", 1.0) == 1.0
    return weight is not None and weight.ndim == 2 and untouched and node.input[0] not in graph.weights


def _inputs_last(graph: Editing, node: onnx.NodeProto) -> bool:
    """Whether a weight is (out, in)."""
    return bool(graph.attribute(node, "transB", 0))


def _scale(graph: Editing, members: Sequence[onnx.NodeProto], activations: np.ndarray, alpha: float) -> np.ndarray:
    import numpy as np

    weights = np.zeros_like(activations)
    for node in members:
        weight = graph.value(node.input[1])
        assert weight is not None
        weights = np.maximum(weights, abs(weight).max(axis=0 if _inputs_last(graph, node) else 1))
    scale = activations**alpha / np.maximum(weights, 1e-5) ** (1 - alpha)
    return np.where((activations > 0) & (weights > 0), np.clip(scale, 1e-4, 1e4), 1.0).astype(np.float32)


Divide = Callable[["np.ndarray"], None]


def _absorber(graph: Editing, name: str, readers: int) -> Divide | None:
    """What multiplies the channels of a value where it is made; None where others read it, or its maker cannot."""
    if len(graph.readers[name]) != readers or name in graph.outputs:
        return None
    relu = graph.producer(name, "Relu")
    if relu is not None:
        return _absorber(graph, relu.input[0], 1)
    norm = graph.producer(name, "LayerNormalization")
    if norm is not None and graph.attribute(norm, "axis", -1) == -1:
        return _scales(graph, [(norm, position, -1) for position in range(1, len(norm.input))])
    return _linear(graph, name) or _attention(graph, name)


def _linear(graph: Editing, name: str) -> Divide | None:
    """The linear layer that makes a value, its bias in an Add or its own."""
    node = graph.producer(name, *LINEAR)
    if node is not None:
        if not _is_plain(graph, node):
            return None
        axis = 0 if _inputs_last(graph, node) else 1
        return _scales(graph, [(node, 1, axis), *([(node, 2, -1)] if len(node.input) > 2 else [])])
    add = graph.producer(name, "Add")
    biases = [i for i, part in enumerate(add.input) if part in graph.weights] if add is not None else []
    if add is None or len(biases) != 1 or graph.only_reader(add.input[1 - biases[0]]) is None:
        return None
    matmul = graph.producer(add.input[1 - biases[0]], "MatMul")
    if matmul is None or not _is_plain(graph, matmul):
        return None
    return _scales(graph, [(matmul, 1, 1), (add, biases[0], -1)])


def _attention(graph: Editing, name: str) -> Divide | None:
    """The value projection: heads are split, averaged over tokens and merged again, which leaves every channel in its place."""
    for kinds in (("Reshape",), ("Transpose",), ("MatMul",), ("Transpose",), ("Reshape",)):
        node = graph.producer(name, *kinds)
        if node is None or (node.op_type == "Transpose" and list(graph.attribute(node, "perm", [])) != SPLIT):
            return None
        name = node.input[1 if node.op_type == "MatMul" else 0]
        if graph.only_reader(name) is None:
            return None
    return _linear(graph, name)


def _scales(graph: Editing, places: Sequence[tuple[onnx.NodeProto, int, int]]) -> Divide | None:
    """What multiplies these weights of these nodes along these axes; None where one is no weight of full size."""
    values = [graph.value(node.input[position]) for node, position, _ in places]
    if any(value is None or value.ndim == 0 for value in values):
        return None

    def divide(factor: np.ndarray) -> None:
        for node, position, axis in places:
            value = graph.value(node.input[position])
            assert value is not None
            shape = [1] * value.ndim
            shape[axis] = -1
            graph.set_weight(node, position, value * factor.reshape(shape))

    return divide


def _multiplied(graph: Editing, name: str, members: Sequence[onnx.NodeProto], factor: np.ndarray) -> onnx.NodeProto:
    """A Mul of a value, which these nodes now read; it goes before the first of them."""
    from onnx import helper, numpy_helper

    constant, smoothed = f"{name}_smoothing", f"{name}_smoothed"
    while smoothed in graph.producers or constant in graph.weights:  # of an earlier step, for other layers
        constant, smoothed = f"{constant}_more", f"{smoothed}_more"
    graph.graph.initializer.append(numpy_helper.from_array(factor, constant))
    for node in members:
        node.input[0] = smoothed
    return helper.make_node("Mul", [name, constant], [smoothed], smoothed)
