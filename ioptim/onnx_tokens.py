"""Leaves out the work on tokens that nobody reads.

A classifier reads one token of its last layer's output, Gather(hidden, 0, axis=1). What computes token by token (products with
weights, normalization, activation) need then compute that token alone, and attention needs its query alone; keys and values stay
whole. In a six-layer encoder that is a seventh of all multiply-adds, in a two-layer one two fifths; the answers are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ioptim.errors import StepError

if TYPE_CHECKING:
    import numpy as np
    import onnx

TOKENS = 1
"""The axis of tokens in (batch, tokens, width)."""

_ONE_INPUT = frozenset({"BiasGelu", "Cast", "Dropout", "Erf", "FastGelu", "Gelu", "Identity", "LayerNormalization", "Relu", "Tanh"})
"""Operators that read tokens at their first input and compute each by itself."""

_TWO_INPUTS = frozenset({"Add", "Div", "Mul", "SkipLayerNormalization", "Sub"})
"""Operators that read tokens at their first two inputs, or at one of them and a constant at the other."""


@dataclass
class _Graph:
    """A graph with its lookups, and what was found of it. Nodes are known by `id`: they have no name that must be unique."""

    graph: onnx.GraphProto
    read_by: dict[str, list[tuple[onnx.NodeProto, int]]] = field(default_factory=dict)
    narrowed: dict[int, onnx.NodeProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.outputs = {value.name for value in self.graph.output}
        for node in self.graph.node:
            for place, name in enumerate(node.input):
                self.read_by.setdefault(name, []).append((node, place))

    def array(self, name: str) -> np.ndarray:
        from onnx import numpy_helper

        return numpy_helper.to_array(self.weights[name])

    def add(self, name: str, value: np.ndarray) -> str:
        from onnx import numpy_helper

        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def reads_tokens(self, node: onnx.NodeProto, place: int) -> bool:
        """Whether a narrowed node reads one token at this input. Attention does not: keys and values need every token."""
        if node.op_type in _TWO_INPUTS:
            return place < 2
        return place == 0 and node.op_type != "Attention"

    def token_by_token(self, node: onnx.NodeProto) -> bool:
        """Whether each token of the first output depends on the same token of the inputs (of attention: on its query)."""
        if any(name and (name in self.read_by or name in self.outputs) for name in node.output[1:]):
            return False
        attributes = {a.name: a for a in node.attribute}
        match node.op_type:
            case "MatMul":
                return node.input[1] in self.weights and len(self.weights[node.input[1]].dims) == 2
            case "LayerNormalization":
                return attributes["axis"].i == -1 if "axis" in attributes else True
            case "Attention":
                plain = not any(node.input[4:]) and set(node.input[1:3]) <= set(self.weights)
                return plain and not any(attributes[name].i for name in ("unidirectional", "do_rotary") if name in attributes)
            case op if op in _TWO_INPUTS:
                return all(name not in self.weights or len(self.weights[name].dims) <= 1 for name in node.input[:2])
            case op:
                return op in _ONE_INPUT


def narrow(model: onnx.ModelProto) -> int:
    """Rewrite the graph in place where a single token is read; returns how many of its nodes now compute that token alone.

    Expects attention fused to `Attention` (com.microsoft); where it is not, what comes after it becomes narrow nevertheless.
    Whoever calls compares outputs: ranks are not known here, so what is token by token is told from the operators alone.
    """
    graph = _Graph(model.graph)
    gathers = [node for node in model.graph.node if _reads_one(graph, node)]
    if len(gathers) != 1:
        return 0
    (gather,) = gathers
    graph.narrowed[id(gather)] = gather
    cuts: list[tuple[str, list[tuple[onnx.NodeProto, int]]]] = []
    for node in reversed(model.graph.node):
        name = node.output[0]
        readers = graph.read_by.get(name, [])
        narrow_readers = [(user, i) for user, i in readers if id(user) in graph.narrowed and graph.reads_tokens(user, i)]
        if readers and len(narrow_readers) == len(readers) and name not in graph.outputs and graph.token_by_token(node):
            graph.narrowed[id(node)] = node
        elif narrow_readers:
            cuts.append((name, narrow_readers))
    if len(graph.narrowed) > 1:
        _rewrite(graph, gather, cuts)
    return len(graph.narrowed) - 1


def _reads_one(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Gather of one token, by a constant, of a value that nothing else reads."""
    if node.op_type != "Gather" or node.input[0] in graph.weights or node.input[1] not in graph.weights:
        return False
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    alone = len(graph.read_by[node.input[0]]) == 1 and node.input[0] not in graph.outputs
    return axis == TOKENS and alone and graph.array(node.input[1]).size == 1


def _rewrite(graph: _Graph, gather: onnx.NodeProto, cuts: Iterable[tuple[str, list[tuple[onnx.NodeProto, int]]]]) -> None:
    """Slice where whole values enter the narrow part, and split its attention into query, keys and values."""
    import numpy as np

    index = graph.array(gather.input[1])
    first = int(index.item())
    bounds = [graph.add(f"token_{name}", np.array([value])) for name, value in _bounds(first).items()]
    sliced: dict[str, onnx.NodeProto] = {}
    for name, readers in cuts:
        for reader, place in readers:
            reader.input[place] = _sliced(name, bounds, sliced)
    gather.input[1] = graph.add("token_index", np.zeros_like(index))
    nodes: list[onnx.NodeProto] = []
    attention = [node for node in graph.narrowed.values() if node.op_type == "Attention"]
    replaced = {id(node): _query_alone(graph, node, _sliced(node.input[0], bounds, sliced)) for node in attention}
    for node in graph.graph.node:
        nodes += replaced.get(id(node), [node])
        nodes += [sliced[name] for name in node.output if name in sliced]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]  # clearing the list ends its nodes
    del graph.graph.node[:]
    graph.graph.node.extend(copies)


def _bounds(first: int) -> dict[str, int]:
    """Of Slice: the last token has no end that is known."""
    return {"start": first, "end": first + 1 if first != -1 else 2**62, "axis": TOKENS}


def _sliced(name: str, bounds: list[str], sliced: dict[str, onnx.NodeProto]) -> str:
    from onnx import helper

    if name not in sliced:
        sliced[name] = helper.make_node("Slice", [name, *bounds], [f"{name}_token"], name=f"{name}_token")
    return f"{name}_token"


def _query_alone(graph: _Graph, attention: onnx.NodeProto, token: str) -> list[onnx.NodeProto]:
    """Attention of one query over all tokens: three products and MultiHeadAttention, with the weights that `Attention` held in one.

    Raises:
        StepError: its weights are not (width, 3 x width).
    """
    import numpy as np
    from onnx import helper

    x, weight, bias = attention.input[:3]
    weights, biases = np.split(graph.array(weight), 3, axis=1), np.split(graph.array(bias), 3)
    if graph.array(weight).shape[1] % 3:
        raise StepError(f"{attention.name} has weights of the shape {graph.array(weight).shape}, not of three equal parts")
    nodes = []
    parts = [f"{attention.output[0]}_{part}" for part in ("query", "key", "value")]
    for name, source, w, b in zip(parts, (token, x, x), weights, biases, strict=True):
        inputs = [graph.add(f"{name}_weight", np.ascontiguousarray(w)), graph.add(f"{name}_bias", b)]
        nodes += [
            helper.make_node("MatMul", [source, inputs[0]], [f"{name}_product"], name=f"{name}_product"),
            helper.make_node("Add", [f"{name}_product", inputs[1]], [name], name=name),
        ]
    kept = {a.name: helper.get_attribute_value(a) for a in attention.attribute if a.name in ("num_heads", "mask_filter_value", "scale")}
    mask = ["", *attention.input[3:4]] if any(attention.input[3:4]) else []
    attended = helper.make_node(
        "MultiHeadAttention", [*parts, *mask], attention.output[:1], name=f"{attention.output[0]}_attended", domain="com.microsoft", **kept
    )
    return [*nodes, attended]
