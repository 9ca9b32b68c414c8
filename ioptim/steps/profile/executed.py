"""Profile of a model on its runtime, with the runtime's own profiler: ONNX Runtime's trace, OpenVINO's counters."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ioptim import timing
from ioptim.core.artifact import Format, ModelArtifact
from ioptim.core.runtime import LayerRun, ProfiledRun, ProfiledSession
from ioptim.core.step import Context
from ioptim.onnx_graph import load_graph, nodes_of
from ioptim.roofline import FLOAT32, INT8
from ioptim.steps.profile.counts import count, size
from ioptim.steps.profile.findings import Findings, Layer, Operator, Weights, affordable
from ioptim.steps.profile.kinds import IN_BLOCKS, PRODUCTS, converts, kind_of, runs_in_int8

if TYPE_CHECKING:
    import numpy as np
    import onnx

    Feeds = Mapping[str, np.ndarray]

PASSES = 4
"""Over the rows: warm-up and plain time, warm-up and time by layer."""


def profile(model: ModelArtifact, feeds: Sequence[Feeds], ctx: Context, files: Path, duration_s: float) -> Findings:
    """Two sessions, without and with the profiler, the second pass over the rows of each. What has no profiler is timed as a whole."""
    ctx.progress(0.1, "timing")
    row_seconds, facts = plain_seconds(model, feeds, ctx, duration_s)
    feeds = feeds[: len(row_seconds)]
    ctx.progress(0.4, "profiling layers")
    session = ctx.runtime_for(model).open_profiled(model, ctx.target_of(model), files / "trace.json")
    if session is None:
        return Findings(row_seconds, notes=[f"the operators of {model.format.value} models are not timed one by one"])
    runs, profiled_s = run_profiled(session, feeds)
    layers = gather(runs)
    return Findings(
        row_seconds,
        operators=_by_operator(layers),
        layers=layers,
        weights=_weights(model.model_path) if model.format is Format.ONNX else (),
        profiled_s=profiled_s,
        facts={**facts, "trace": "trace.json"},
    )


def plain_seconds(
    model: ModelArtifact, feeds: Sequence[Feeds], ctx: Context, duration_s: float
) -> tuple[list[float], dict[str, str | int]]:
    """In a function of its own: its session must be gone before the next is timed, for its threads would spin beside that."""
    session = ctx.open(model)
    feeds = affordable(feeds, min(timing.timed_block(session.run, feeds, 3)), PASSES, duration_s)
    timing.timed_block(session.run, feeds, len(feeds))
    seconds = timing.timed_block(session.run, feeds, len(feeds))
    facts = {key: value for key, value in dict(getattr(session, "facts", {})).items() if isinstance(value, str | int)}
    session.close()
    return seconds, facts


def run_profiled(session: ProfiledSession, feeds: Sequence[Feeds]) -> tuple[Sequence[ProfiledRun], float]:
    """The passes over the rows after one to warm up, and the wall time of these rows."""
    for feed in feeds:
        session.run(feed)
    start = time.perf_counter()
    for feed in feeds:
        session.run(feed)
    wall = time.perf_counter() - start
    runs = session.finish()
    return runs[len(runs) - len(feeds) :], wall


@dataclass
class _Sum:
    """What one layer adds up to over the passes."""

    first: LayerRun
    calls: int = 0
    seconds: float = 0.0
    operations: float | None = 0.0
    weight_bytes: float = 0.0
    activation_bytes: float = 0.0
    output_bytes: float = 0.0

    def add(self, run: LayerRun) -> None:
        counted = count(run)
        self.calls += 1
        self.seconds += run.seconds
        known = self.operations is not None and counted.operations is not None
        self.operations = self.operations + counted.operations if known else None  # type: ignore[operator]
        self.weight_bytes += counted.weight_bytes
        self.activation_bytes += counted.activation_bytes
        self.output_bytes += sum(map(size, run.outputs))


def gather(runs: Sequence[ProfiledRun]) -> list[Layer]:
    """Every layer over all passes, in the order of execution."""
    sums: dict[tuple[str, str], _Sum] = {}
    for run in runs:
        for layer in run.layers:
            sums.setdefault((layer.name, layer.operator), _Sum(layer)).add(layer)
    return [
        Layer(
            name=name,
            operator=operator,
            calls=found.calls,
            seconds=found.seconds,
            operations=found.operations,
            weight_bytes=found.weight_bytes,
            activation_bytes=found.activation_bytes,
            output_bytes=found.output_bytes,
            precision=_precision(found.first),
            product_operations=found.operations if kind_of(operator) in PRODUCTS else None,
            converts=converts(found.first),
        )
        for (name, operator), found in sums.items()
    ]


def _precision(run: LayerRun) -> str:
    """int8 where it computes in it; else what the runtime says, or the type of the first operand."""
    if runs_in_int8(run.operator, run.precision):
        return INT8
    said = run.precision or next((operand.dtype for operand in run.inputs if "float" in operand.dtype), FLOAT32)
    return said if "float" in said else FLOAT32


def _by_operator(layers: Sequence[Layer]) -> list[Operator]:
    calls: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    for layer in layers:
        calls[layer.operator] += layer.calls
        seconds[layer.operator] = seconds.get(layer.operator, 0.0) + layer.seconds
    return [Operator(name, calls[name], seconds[name]) for name in calls]


def _packed(node: onnx.NodeProto) -> dict[str, int]:
    """Parameters of a node's weight by its name, where its shape is that of the bytes they are packed in."""
    if node.op_type != IN_BLOCKS:
        return {}
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    return {node.input[1]: sizes["K"] * sizes["N"]}


def _weights(path: Path) -> list[Weights]:
    """Weights by the type of the operator that reads them, through a DequantizeLinear; scales and zero points count with them. Of a packed
    weight, parameters are what is packed in it."""
    import numpy as np
    import onnx

    graph = load_graph(path, weights=False).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    counts: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    nodes = list(nodes_of(graph))
    reader = {name: node.op_type for node in reversed(nodes) for name in node.input}
    for node in nodes:
        kind = reader.get(node.output[0], node.op_type) if node.op_type == "DequantizeLinear" else node.op_type
        own = [weights.pop(name) for name in node.input if name in weights]
        counts[kind] += bool(own)
        packed = _packed(node)
        for tensor in own:
            elements = math.prod(tensor.dims)
            parameters[kind] += packed.get(tensor.name, elements)
            sizes[kind] += elements * np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    found = [Weights(kind, counts[kind], parameters[kind], sizes[kind]) for kind in counts if counts[kind]]
    return sorted(found, key=lambda group: -group.parameters)
