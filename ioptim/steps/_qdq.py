"""How a static int8 graph is written so that ONNX Runtime runs it fastest. All of it is standard ONNX, which others run too."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from ioptim.steps._editing import Editing

if TYPE_CHECKING:
    import onnx

LINKS = ("QuantizeLinear", "DequantizeLinear")


def spell_gelu(model: onnx.ModelProto) -> int:
    """Turn x · (0.5 · (1 + erf(x/√2))), as torch's exporter writes it, into (x · (1 + erf(x/√2))) · 0.5; how often.

    ONNX Runtime makes one operator of the second spelling and five of the first (onnxruntime/core/optimizer/gelu_fusion.cc).
    """
    graph = Editing(model)
    count = 0
    for outer in model.graph.node:
        for place, name in enumerate(outer.input if outer.op_type == "Mul" else ()):
            inner = graph.producer(name, "Mul")
            if inner is None or graph.only_reader(name) is None:
                continue
            halves = [i for i, part in enumerate(inner.input) if (half := graph.value(part)) is not None and half.size == 1]
            if len(halves) != 1 or not _one_and_erf(graph, inner.input[1 - halves[0]]):
                continue
            half, rest, x = inner.input[halves[0]], inner.input[1 - halves[0]], outer.input[1 - place]
            inner.input[:] = [x, rest]
            outer.input[:] = [name, half]
            count += 1
            break
    return count


def _one_and_erf(graph: Editing, name: str) -> bool:
    add = graph.producer(name, "Add")
    return add is not None and any(graph.producer(part, "Erf") is not None for part in add.input)


def read_floats(model: onnx.ModelProto, quantized: Collection[str]) -> int:
    """Let nodes that compute in float read a float value itself, not what is left of it after 8 bits; how many inputs.

    The library gives every reader of a value the quantized one, so residuals would pass through 8 bits again and again.

    Args:
        quantized: names of the nodes in int8. A value that one of them makes is left alone: its kernel ends in 8 bits.
    """
    graph = Editing(model)
    count = 0
    for node in model.graph.node:
        if node.op_type in LINKS or node.name in quantized:
            continue
        for place, name in enumerate(node.input):
            back = graph.producer(name, "DequantizeLinear")
            there = graph.producer(back.input[0], "QuantizeLinear") if back is not None else None
            maker = graph.producers.get(there.input[0]) if there is not None else None
            if there is not None and (maker is None or maker.name not in quantized):
                node.input[place] = there.input[0]
                count += 1
    return count


def drop_unread(model: onnx.ModelProto) -> None:
    """Remove nodes and weights that nobody reads."""
    read = {value.name for value in model.graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if any(name in read for name in node.output):
            kept.append(node)
            read |= _names_read(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    weights = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(weights)


def _names_read(node: onnx.NodeProto) -> set[str]:
    """Names a node reads, by its inputs and inside the bodies it carries."""
    bodies = [a.g for a in node.attribute if a.HasField("g")]
    return set(node.input) | {name for body in bodies for inner in body.node for name in _names_read(inner)}
