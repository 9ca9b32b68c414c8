"""`profile` with `sensitivity`: each block alone in int8, its loss and the time it saves."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ioptim.core.artifact import Format, ModelArtifact, verify
from ioptim.core.step import Where
from ioptim.core.target import Hardware
from ioptim.errors import StepError
from ioptim.runtimes.onnxruntime import OnnxRuntime
from ioptim.steps.profile import Profile
from ioptim.steps.profile.sensitivity import SensitivityOptions, measure


def where(form: Format) -> Where:
    hardware = Hardware(cpu_model="", cpu_flags=(), cores=1, threads=1, memory_bytes=1)
    return Where(format=form, targets=(), task=None, hardware=hardware, has_calibration=True)


def test_it_needs_calibration_data_and_an_onnx_graph() -> None:
    assert Profile().data_roles() == ("validation",)
    step = Profile(sensitivity=True)
    assert step.data_roles() == ("validation", "calibration")
    assert step.check(where(Format.ONNX)) == []
    assert step.check(where(Format.TORCH)) == [
        "sensitivity quantizes layers of an ONNX graph, and here the model is torch; put `- step: export` above this step"
    ]
    assert step.check(where(Format.OPENVINO)) == [
        "sensitivity quantizes layers of an ONNX graph, and here the model is openvino; move this step in front of `compile`"
    ]
    assert Profile().check(where(Format.TORCH)) == []


@pytest.fixture
def onnxruntime_context(context: Callable[..., Any]) -> Any:
    ctx = context()
    ctx.target = SimpleNamespace(name="here", device="cpu", threads=1, runtime=OnnxRuntime())
    ctx.runtime_for = lambda model: OnnxRuntime()
    return ctx


@pytest.mark.integration
def test_blocks_are_ranked_by_what_they_lose(tiny_bert_onnx: ModelArtifact, onnxruntime_context: Any) -> None:
    ctx = onnxruntime_context
    done: list[float] = []
    found = measure(SensitivityOptions(rows=6), tiny_bert_onnx, ctx, lambda share, said: done.append(share))
    assert found.table.columns[-1] == "ms saved per row"
    assert {"bert.encoder.layer.0", "bert.encoder.layer.1"} <= {row[0] for row in found.table.rows}
    losses = [row[2] for row in found.table.rows]
    assert losses == sorted(losses, reverse=True)  # type: ignore[type-var]
    assert all(isinstance(row[-1], float) and math.isfinite(row[-1]) for row in found.table.rows)
    assert found.metrics["sensitivity_all_distance"] > 0
    assert found.notes[-1].text.startswith(f"int8-dynamic on 6 calibration examples: {found.table.rows[0][0]} alone loses most, ")
    assert done == sorted(done)
    assert list(ctx.out.iterdir()) == [], "nothing intermediate is left"
    assert verify(tiny_bert_onnx) == []


@pytest.mark.integration
def test_single_layers_with_static_ranges(tiny_cnn_onnx: ModelArtifact, onnxruntime_context: Any) -> None:
    options = SensitivityOptions(rows=8, by="layer", scheme="int8-static")
    found = measure(options, tiny_cnn_onnx, onnxruntime_context, lambda share, said: None)
    assert {row[0] for row in found.table.rows} == {"conv1", "conv2", "classifier"}


@pytest.mark.integration
def test_a_graph_without_such_layers_is_an_error(make_onnx: Callable[..., ModelArtifact], onnxruntime_context: Any) -> None:
    from onnx import helper

    model = make_onnx([helper.make_node("Relu", ["x"], ["y"], "relu")], {}, {"x": 4}, {"y": 4})
    message = r"^sensitivity found no layer that int8-dynamic can quantize in this graph; profile the float model$"
    with pytest.raises(StepError, match=message):
        measure(SensitivityOptions(rows=4), model, onnxruntime_context, lambda share, said: None)
