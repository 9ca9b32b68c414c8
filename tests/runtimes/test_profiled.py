"""Sessions with the runtime's own profiler: every layer that executed, with what it read and wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ioptim.core.artifact import ModelArtifact
from ioptim.core.runtime import LayerRun, Operand, ProfiledRun, Runtime, Target
from ioptim.runtimes._openvino_profile import trace_events
from ioptim.runtimes.null import Null
from ioptim.runtimes.onnxruntime import OnnxRuntime
from ioptim.runtimes.openvino import OpenVino


def layers(runtime: Runtime, model: ModelArtifact, target: Target, trace: Path, rows: tuple[int, ...] = (2, 5)) -> list[ProfiledRun]:
    import numpy as np

    session = runtime.open_profiled(model, target, trace)
    assert session is not None
    for n in rows:
        outputs = session.run({"x": np.ones((n, 4), np.float32)})
        assert outputs["y"].shape == (n, 3)
    return list(session.finish())


@pytest.mark.integration
def test_onnxruntime(linear: ModelArtifact, target_of: Callable[..., Target], tmp_path: Path) -> None:
    """Nodes without names, whose weight is packed and so missing in the trace."""
    runtime = OnnxRuntime()
    runs = layers(runtime, linear, target_of(runtime), tmp_path / "trace.json")
    assert len(runs) == 2
    for run, n in zip(runs, (2, 5), strict=True):
        product = run.layers[0]
        assert product.inputs[:2] == (Operand("float32", (n, 4)), Operand("float32", (4, 3), True))
        assert product.outputs == (Operand("float32", (n, 3)),)
        assert 0 <= sum(layer.seconds for layer in run.layers) <= run.seconds
    assert any(event.get("cat") == "Node" for event in json.loads((tmp_path / "trace.json").read_text()))
    assert [path.name for path in tmp_path.glob("optimized*")] == []


@pytest.mark.integration
def test_openvino(linear: ModelArtifact, target_of: Callable[..., Target], tmp_path: Path) -> None:
    runtime = OpenVino()
    runs = layers(runtime, linear, target_of(runtime), tmp_path / "trace.json")
    for run, n in zip(runs, (2, 5), strict=True):
        product = next(layer for layer in run.layers if layer.operator == "FullyConnected")
        assert product.inputs[0] == Operand("float32", (n, 4)), "the shape of this pass, though the model's varies"
        assert product.inputs[1].weight
        assert (product.precision, product.outputs[0].shape) == ("float32", (n, 3))
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_a_runtime_without_a_profiler_says_so(linear: Any, target_of: Callable[..., Target], tmp_path: Path) -> None:
    assert Null().open_profiled(linear, target_of(Null()), tmp_path / "trace.json") is None


def test_openvinos_layers_are_laid_end_to_end() -> None:
    run = ProfiledRun(10e-6, (LayerRun("a", "MatMul", 4e-6), LayerRun("b", "Add", 2e-6)))
    events = [(event["name"], event["ts"], event["dur"]) for event in trace_events([run, run])]
    expected = [("pass", 0, 10), ("a", 0, 4), ("b", 4, 2), ("pass", 10, 10), ("a", 10, 4), ("b", 14, 2)]
    assert [(name, round(ts), round(dur)) for name, ts, dur in events] == expected
