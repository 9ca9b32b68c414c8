"""OpenVINO's per-layer counters, with the shapes and the precision of the graph that really ran."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ioptim.core.runtime import LayerRun, Operand, ProfiledRun

if TYPE_CHECKING:
    import numpy as np

NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "i8": "int8", "u8": "uint8", "i32": "int32", "i64": "int64"}
NOT_EXECUTED = ("Input", "Output", "Const")


class _Session(Protocol):
    @property
    def request(self) -> Any: ...
    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...
    def close(self) -> None: ...


class ProfiledOpenVinoSession:
    """After every pass the counters are read, and the shapes from the runtime model, which keeps those of the last pass."""

    def __init__(self, session: _Session, compiled: Any, trace: Path) -> None:
        self._session = session
        self._compiled = compiled
        self._trace = trace
        self._passes: list[ProfiledRun] = []

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        start = time.perf_counter()
        outputs = self._session.run(feeds)
        seconds = time.perf_counter() - start
        self._passes.append(ProfiledRun(seconds, tuple(self._layers())))
        return outputs

    def finish(self) -> Sequence[ProfiledRun]:
        self._session.close()
        self._trace.write_text(json.dumps({"traceEvents": trace_events(self._passes), "displayTimeUnit": "ms"}))
        return self._passes

    def _layers(self) -> list[LayerRun]:
        nodes = {node.get_friendly_name(): node for node in self._compiled.get_runtime_model().get_ordered_ops()}
        executed = [info for info in self._session.request.get_profiling_info() if info.status.name == "EXECUTED"]
        return [_layer(info, nodes.get(info.node_name)) for info in executed if info.node_type not in NOT_EXECUTED]


def _layer(info: Any, node: Any) -> LayerRun:
    seconds = info.real_time.total_seconds()
    if node is None:
        return LayerRun(info.node_name, info.node_type, seconds, kernel=info.exec_type)
    inputs = tuple(_operand(port.get_source_output()) for port in node.inputs())
    outputs = tuple(_operand(port) for port in node.outputs())
    precision = node.get_rt_info()["runtimePrecision"].astype(str)
    return LayerRun(info.node_name, info.node_type, seconds, inputs, outputs, info.exec_type, NAMES.get(precision.lower(), precision))


def _operand(port: Any) -> Operand:
    """An output of a node of the runtime model; an axis that no pass has fixed counts as one."""
    shape = tuple(axis.get_length() if axis.is_static else 1 for axis in port.get_partial_shape())
    kind = port.get_element_type().get_type_name()
    return Operand(NAMES.get(kind, kind), shape, _is_weight(port.get_node()))


def _is_weight(node: Any) -> bool:
    """A constant, or a constant that was reordered, transposed or converted once when the model was compiled."""
    info = node.get_rt_info()
    if info["layerType"].astype(str) == "Const":
        return True
    done = info["execTimeMcs"].astype(str) == "not_executed" and node.get_input_size() > 0
    return bool(done) and all(_is_weight(port.get_source_output().get_node()) for port in node.inputs())


def trace_events(passes: Sequence[ProfiledRun]) -> list[dict[str, Any]]:
    """Chrome trace events: OpenVINO tells durations and their order, so layers of a pass are laid end to end."""
    events: list[dict[str, Any]] = []
    at = 0.0
    for run in passes:
        events.append({"name": "pass", "ph": "X", "pid": 0, "tid": 0, "ts": at, "dur": run.seconds * 1e6})
        start = at
        for layer in run.layers:
            about = {"operator": layer.operator, "kernel": layer.kernel, "precision": layer.precision}
            events.append({"name": layer.name, "ph": "X", "pid": 0, "tid": 1, "ts": start, "dur": layer.seconds * 1e6, "args": about})
            start += layer.seconds * 1e6
        at += max(run.seconds * 1e6, start - at)
    return events
