"""Profile of an ONNX graph with ONNX Runtime's own profiler, on the CPU."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ioptim import timing
from ioptim.core.artifact import ModelArtifact
from ioptim.errors import StepError, UnavailableError
from ioptim.onnx_graph import load_graph
from ioptim.steps._findings import Findings, Layer, Operator, affordable

if TYPE_CHECKING:
    import numpy as np

    Feeds = Mapping[str, np.ndarray]


PASSES = 4
"""Over the rows: warm-up and plain time, warm-up and time by operator."""


def profile(
    model: ModelArtifact,
    feeds: Sequence[Feeds],
    *,
    threads: int,
    duration_s: float,
    files: Path,
    progress: Callable[[float, str], None],
) -> Findings:
    """Profile the graph on as many rows as `duration_s` allows: two sessions, without and with the profiler, the second pass of each."""
    layers = _layers(model.model_path)
    progress(0.1, "timing")
    with _refusals(model.model_path):
        row_seconds = _plain_seconds(model.model_path, feeds, threads, duration_s)
        feeds = feeds[: len(row_seconds)]
        progress(0.6, "profiling operators")
        session = _session(model.model_path, threads, files / "trace")
        _run_all(session, feeds)
        profiled_s = _run_all(session, feeds)
        trace = Path(session.end_profiling()).rename(files / "trace.json")
    facts: dict[str, str | int] = {"library": f"onnxruntime {_library().__version__}", "threads": threads, "trace": trace.name}
    return Findings(row_seconds, _operators(trace, len(feeds)), layers, profiled_s=profiled_s, facts=facts)


def _plain_seconds(path: Path, feeds: Sequence[Feeds], threads: int, duration_s: float) -> list[float]:
    """In a function of its own: its session must be gone before the next is timed, for its threads would spin beside that."""
    session = _session(path, threads, None)

    def run(feed: Feeds) -> None:
        session.run(None, feed)

    feeds = affordable(feeds, min(timing.timed_block(run, feeds, 3)), PASSES, duration_s)
    timing.timed_block(run, feeds, len(feeds))
    return timing.timed_block(run, feeds, len(feeds))


def _run_all(session: Any, feeds: Sequence[Feeds]) -> float:
    start = time.perf_counter()
    for feed in feeds:
        session.run(None, feed)
    return time.perf_counter() - start


def _library() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UnavailableError(f"onnxruntime cannot be imported ({error}); install it with: pip install 'ioptim[cpu]'") from error
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def _session(path: Path, threads: int, trace: Path | None) -> Any:
    ort = _library()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if trace is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(trace)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """ONNX Runtime's error classes share no base; they are all in one module."""
    ort = _library()
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    classes: list[type[Exception]] = [ValueError]
    classes += [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    try:
        yield
    except tuple(classes) as error:
        raise StepError(f"ONNX Runtime {ort.__version__} refused {path}: {error}") from error


def _operators(trace: Path, skip: int) -> list[Operator]:
    """Kernel times by operator type, without the first `skip` runs."""
    events = json.loads(trace.read_text())
    runs = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    calls: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= runs[skip]:
            name = event["args"]["op_name"]
            calls[name] += 1
            seconds[name] = seconds.get(name, 0.0) + event["dur"] / 1e6
    return [Operator(name, calls[name], seconds[name]) for name in calls]


def _layers(path: Path) -> list[Layer]:
    """Weights by the type of the operator that reads them, through a DequantizeLinear; scales and zero points count with them."""
    import numpy as np
    import onnx

    graph = load_graph(path, weights=False).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    counts: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    reader = {name: node.op_type for node in reversed(graph.node) for name in node.input}
    for node in graph.node:
        kind = reader.get(node.output[0], node.op_type) if node.op_type == "DequantizeLinear" else node.op_type
        own = [weights.pop(name) for name in node.input if name in weights]
        counts[kind] += bool(own)
        for tensor in own:
            elements = math.prod(tensor.dims)
            parameters[kind] += elements
            sizes[kind] += elements * np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    found = [Layer(kind, counts[kind], parameters[kind], sizes[kind]) for kind in counts if counts[kind]]
    return sorted(found, key=lambda layer: -layer.parameters)
