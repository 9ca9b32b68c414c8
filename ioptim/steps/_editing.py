"""An ONNX graph that a step edits: who makes a value, who reads it, what a weight holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx


class Editing:
    """Lookups over the nodes of a graph (not of the bodies of If and Loop). They show the graph as it was when this was made."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.producers = {name: node for node in self.graph.node for name in node.output}
        self.outputs = {value.name for value in self.graph.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)

    def producer(self, name: str, *kinds: str) -> onnx.NodeProto | None:
        """The node that makes a value, when it is of one of these kinds."""
        node = self.producers.get(name)
        return node if node is not None and node.op_type in kinds else None

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The node that alone reads a value, which is not an output of the graph."""
        nodes = self.readers.get(name, [])
        return nodes[0] if len(nodes) == 1 and name not in self.outputs else None

    def value(self, name: str) -> np.ndarray | None:
        """What a weight or a constant holds."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self.weights[name]) if name in self.weights else None

    def set_weight(self, node: onnx.NodeProto, position: int, value: np.ndarray) -> None:
        """Give a node another weight; one that others read too stays theirs."""
        from onnx import numpy_helper

        name = node.input[position]
        if len(self.readers[name]) > 1:
            self.readers[name].remove(node)
            name = f"{name}_of_{node.name}"
            node.input[position] = name
            self.readers[name] = [node]
            self.weights[name] = self.graph.initializer.add()
        self.weights[name].CopyFrom(numpy_helper.from_array(value, name))

    def attribute(self, node: onnx.NodeProto, name: str, default: Any) -> Any:
        from onnx import helper

        return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)

    def insert_all(self, nodes: Mapping[str, onnx.NodeProto]) -> None:
        """Put nodes right before others, by these others' names. The last edit: it copies every node, so lookups end here."""
        ordered = [node for old in self.graph.node for node in ((nodes[old.name], old) if old.name in nodes else (old,))]
        del self.graph.node[:]
        self.graph.node.extend(ordered)
