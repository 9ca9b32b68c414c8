"""Bias correction takes the mean error of rounding off every layer's bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ioptim.core.artifact import ModelArtifact
from ioptim.steps import _outputs
from ioptim.steps._onnx_int8 import Int8Options, prepare

pytestmark = pytest.mark.integration

OPTIONS = Int8Options("int8-static", per_channel=False)


def mean_error(model: ModelArtifact, options: Int8Options, feeds: list[dict[str, Any]], ctx: Any) -> Any:
    """Mean over all rows of what the quantized model's output is off, by channel."""
    import numpy as np

    graph = prepare(options, model.model_path, ctx.out, ctx, feeds)
    graph.write(ctx.out / "made.onnx")
    name = model.outputs[0].name
    runs = [_outputs.run_onnx(path, feeds, 1) for path in (ctx.out / "made.onnx", model.model_path)]
    made, wanted = (np.concatenate([run[name] for run in each]) for each in runs)
    return abs((made - wanted).mean(axis=0)), abs(made - wanted).mean()


def feeds_of(model: ModelArtifact, ctx: Any) -> list[dict[str, Any]]:
    return list(ctx.task.examples(ctx.table("calibration"), model))


@pytest.mark.parametrize("bias", ["Add", "Gemm"])
def test_a_linear_layer_is_right_on_average(
    make_onnx: Callable[..., ModelArtifact], context: Callable[..., Any], bias: str
) -> None:
    import numpy as np
    from onnx import helper

    draw = np.random.default_rng(0)
    weights = {"w": draw.normal(size=(16, 6)).astype(np.float32), "b": draw.normal(size=6).astype(np.float32)}
    weights["w"][0, 0] = 20.0  # one scale for all channels is then coarse
    inside = [helper.make_node("Add", ["m", "b"], ["z"], "bias")] if bias == "Add" else []
    nodes = [
        helper.make_node("Softplus", ["x"], ["p"], "positive"),
        helper.make_node("MatMul", ["p", "w"], ["m"], "layer") if inside else helper.make_node("Gemm", ["p", "w", "b"], ["z"], "layer"),
        *inside,
        helper.make_node("Identity", ["z"], ["y"], "out"),
    ]
    model = make_onnx(nodes, weights, {"x": 16}, {"y": 6})
    feeds = feeds_of(model, context())
    plain, _ = mean_error(model, OPTIONS, feeds, context())
    corrected, _ = mean_error(model, replace(OPTIONS, correct_bias=True), feeds, context())
    assert plain.max() > 0.02
    assert corrected.max() < plain.max() / 5


def test_convolutions_get_nearer(tiny_cnn_onnx: ModelArtifact, context: Callable[..., Any]) -> None:
    feeds = feeds_of(tiny_cnn_onnx, context())
    plain, _ = mean_error(tiny_cnn_onnx, OPTIONS, feeds, context())
    corrected, _ = mean_error(tiny_cnn_onnx, replace(OPTIONS, correct_bias=True), feeds, context())
    assert corrected.mean() < plain.mean()


def test_a_layer_without_a_bias_stays_as_it_is(make_onnx: Callable[..., ModelArtifact], context: Callable[..., Any]) -> None:
    import numpy as np
    from onnx import helper

    weight = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    model = make_onnx([helper.make_node("MatMul", ["x", "w"], ["y"], "layer")], {"w": weight}, {"x": 8}, {"y": 6})
    feeds = feeds_of(model, context())
    assert mean_error(model, OPTIONS, feeds, context())[1] == mean_error(model, replace(OPTIONS, correct_bias=True), feeds, context())[1]
