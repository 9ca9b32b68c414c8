"""ONNX Runtime's own profiler: the time of every node, with the shapes of what it read and wrote."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ioptim.core.runtime import LayerRun, Operand, ProfiledRun
from ioptim.onnx_graph import load_graph, nodes_of
from ioptim.runtimes._onnx_session import run

if TYPE_CHECKING:
    import numpy as np
    import onnx

SUFFIX = "_kernel_time"

CONTROL = ("If", "Loop", "Scan")
"""Operators whose time is that of the nodes inside."""

Event = Mapping[str, Any]


class ProfiledOnnxSession:
    """A session whose trace is read when it is finished.

    The trace leaves out weights that were packed when the session was made; they are taken from the optimized graph, node by node.
    """

    def __init__(self, session: Any, optimized: Path, trace: Path) -> None:
        self._session = session
        self._names = [value.name for value in session.get_outputs()]
        self._optimized = optimized
        self._trace = trace

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self._names, run(self._session, self._names, feeds), strict=True))

    def finish(self) -> Sequence[ProfiledRun]:
        written = Path(self._session.end_profiling()).rename(self._trace)
        self._session = None
        graph = load_graph(self._optimized, weights=False).graph
        for file in self._optimized.parent.glob(f"{self._optimized.name}*"):
            file.unlink()
        return read_trace(json.loads(written.read_text()), graph)


def read_trace(events: Sequence[Event], graph: onnx.GraphProto) -> list[ProfiledRun]:
    """The passes of a trace. A node whose place in the graph is not known keeps the operands the trace tells.

    If and Loop are not in it: their time is that of the nodes inside, which are.
    """
    weights = {tensor.name: Operand(_numpy_name(tensor.data_type), tuple(tensor.dims), True) for tensor in graph.initializer}
    passes = sorted((event["ts"], event["dur"]) for event in events if event.get("name") == "model_run")
    found: list[list[LayerRun]] = [[] for _ in passes]
    values: list[dict[str, Operand]] = [{} for _ in passes]
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(SUFFIX)]
    kernels.sort(key=lambda event: event["ts"])
    node_of = _finder(kernels, graph)
    number = 0
    for event in kernels:
        while number + 1 < len(passes) and event["ts"] >= passes[number + 1][0]:
            number += 1
        if event["args"]["op_name"] not in CONTROL:
            found[number].append(_layer(event, node_of(event), weights, values[number]))
    return [ProfiledRun(dur / 1e6, tuple(layers)) for (_, dur), layers in zip(passes, found, strict=True)]


def _finder(kernels: Sequence[Event], graph: onnx.GraphProto) -> Callable[[Event], onnx.NodeProto | None]:
    """What tells the node of an event: by its name, and where it has none of its own, by the order in which nodes run.

    ONNX Runtime saves nodes in that order; should it not, or should it leave some out (bodies of If), operators do not agree and nothing is
    taken.
    """
    nodes = list(nodes_of(graph, both=True))
    names = Counter(node.name for node in nodes)
    named = {node.name: node for node in nodes if node.name and names[node.name] == 1}
    by_index = {event["args"]["node_index"]: event for event in reversed(kernels)}
    ordered = sorted(by_index.values(), key=lambda event: event["ts"])
    agree = [event["args"]["op_name"] for event in ordered] == [node.op_type for node in nodes]
    by_order = {event["args"]["node_index"]: node for event, node in zip(ordered, nodes, strict=True)} if agree else {}

    def find(event: Event) -> onnx.NodeProto | None:
        return named.get(event["name"].removesuffix(SUFFIX)) or by_order.get(event["args"]["node_index"])

    return find


def _layer(event: Event, node: onnx.NodeProto | None, weights: Mapping[str, Operand], values: dict[str, Operand]) -> LayerRun:
    """`values` are the operands computed so far in this pass; those of this node are added."""
    arguments = event["args"]
    name = event["name"].removesuffix(SUFFIX)
    told = _operands(arguments.get("input_type_shape", ()))
    outputs = _operands(arguments.get("output_type_shape", ()))
    inputs = told
    if node is not None and node.op_type == arguments["op_name"]:
        values.update(zip((output for output in node.output if output), outputs, strict=False))
        inputs = _inputs(node, told, weights, values)
    return LayerRun(name, arguments["op_name"], event["dur"] / 1e6, inputs, outputs, arguments.get("provider", ""))


def _inputs(
    node: onnx.NodeProto, told: tuple[Operand, ...], weights: Mapping[str, Operand], values: Mapping[str, Operand]
) -> tuple[Operand, ...]:
    """In the node's order, weights marked; what is neither a weight nor computed (an input of the model) is found among those told."""
    known = [weights.get(name) or values.get(name) for name in node.input if name]
    rest = list(told)
    for operand in known:
        same = next((i for i, other in enumerate(rest) if operand and other[:2] == operand[:2]), None)
        if same is not None:
            del rest[same]
    return tuple(operand or (rest.pop(0) if rest else Operand("", ())) for operand in known)


def _operands(told: Sequence[Mapping[str, Sequence[int]]]) -> tuple[Operand, ...]:
    """From [{"float": [1, 32, 384]}, ...]."""
    names = {"float": "float32", "double": "float64"}
    return tuple(Operand(names.get(kind, kind), tuple(shape)) for one in told for kind, shape in one.items())


def _numpy_name(data_type: int) -> str:
    from onnx import helper

    return str(helper.tensor_dtype_to_np_dtype(data_type))
