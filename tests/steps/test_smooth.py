"""SmoothQuant moves scales and changes nothing that is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ioptim.core.artifact import ModelArtifact
from ioptim.errors import StepError
from ioptim.steps import _outputs
from ioptim.steps._editing import Editing
from ioptim.steps._smooth import smooth

pytestmark = pytest.mark.integration


def smoothed(
    model: ModelArtifact, names: set[str], feeds: list[dict[str, Any]], context: Callable[..., Any], folder: Path
) -> tuple[Any, Any]:
    """The counts, and the graph after, whose outputs are the same."""
    from ioptim.onnx_graph import load_graph

    path = folder / "smooth.onnx"
    path.write_bytes(model.model_path.read_bytes())
    before = _outputs.run_onnx(path, feeds, 1)
    done = smooth(path, 0.5, names, feeds, context(), folder)
    for _, (difference, largest) in _outputs.largest_difference(_outputs.run_onnx(path, feeds, 1), before).items():
        assert difference <= 1e-5 * max(1.0, largest)
    return done, load_graph(path)


@pytest.fixture
def drawn() -> Any:
    return pytest.importorskip("numpy").random.default_rng(0)


def feeds_of(drawn: Any, width: int) -> list[dict[str, Any]]:
    """One channel a hundred times as large as the others."""
    values = drawn.normal(size=(16, width)).astype("float32")
    values[:, 2] *= 100
    return [{"x": values}]


def test_without_a_linear_layer_it_says_so(
    make_onnx: Callable[..., ModelArtifact], context: Callable[..., Any], tmp_path: Path, drawn: Any
) -> None:
    from onnx import helper

    model = make_onnx([helper.make_node("Relu", ["x"], ["y"], "relu")], {}, {"x": 8}, {"y": 8})
    with pytest.raises(StepError, match="no linear layer with a weight is quantized here"):
        smooth(model.model_path, 0.5, {"relu"}, feeds_of(drawn, 8), context(), tmp_path)


def test_a_value_that_an_earlier_step_smoothed_is_smoothed_for_another_layer(
    make_onnx: Callable[..., ModelArtifact], context: Callable[..., Any], tmp_path: Path, drawn: Any
) -> None:
    from onnx import helper

    weights = {name: drawn.normal(size=(8, 4)).astype("float32") for name in "ab"}
    nodes = [helper.make_node("MatMul", ["x", "a"], ["p"], "first"), helper.make_node("MatMul", ["x", "b"], ["q"], "second")]
    nodes.append(helper.make_node("Add", ["p", "q"], ["y"], "sum"))
    model, feeds, path = make_onnx(nodes, weights, {"x": 8}, {"y": 4}), feeds_of(drawn, 8), tmp_path / "twice.onnx"
    path.write_bytes(model.model_path.read_bytes())
    before = _outputs.run_onnx(path, feeds, 1)
    for name in ("first", "second"):
        assert smooth(path, 0.5, {name}, feeds, context(), tmp_path).inserted == 1
    for _, (difference, largest) in _outputs.largest_difference(_outputs.run_onnx(path, feeds, 1), before).items():
        assert difference <= 1e-5 * max(1.0, largest)


def test_a_linear_layer_through_a_relu_takes_the_scale_of_the_next(
    make_onnx: Callable[..., ModelArtifact], context: Callable[..., Any], tmp_path: Path, drawn: Any
) -> None:
    from onnx import helper

    weights = {"a": drawn.normal(size=(8, 8)).astype("float32"), "b": drawn.normal(size=8).astype("float32")}
    weights["c"] = drawn.normal(size=(4, 8)).astype("float32")
    weights["a"][:, 5] *= 50
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
        helper.make_node("Add", ["h", "b"], ["hb"], "bias"),
        helper.make_node("Relu", ["hb"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "c"], ["y"], "second", transB=1),
    ]
    model = make_onnx(nodes, weights, {"x": 8}, {"y": 4})
    done, graph = smoothed(model, {"second"}, feeds_of(drawn, 8), context, tmp_path)
    assert (done.folded, done.inserted) == (1, 0)
    assert done.told == "smoothed the inputs of linear layers: 1 by the node before, 0 by a Mul put in"
    editing = Editing(graph)
    spread = [abs(editing.value("a")).max(axis=0), abs(weights["a"]).max(axis=0)]
    assert spread[0].max() / spread[0].min() < spread[1].max() / spread[1].min()


def test_a_value_that_others_read_gets_a_mul(
    make_onnx: Callable[..., ModelArtifact], context: Callable[..., Any], tmp_path: Path, drawn: Any
) -> None:
    """A residual around two layers that share a weight with a third, which keeps it."""
    from onnx import helper

    weights = {"g": drawn.normal(size=8).astype("float32"), "w": drawn.normal(size=(8, 8)).astype("float32")}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g"], ["n"], "norm"),
        helper.make_node("MatMul", ["n", "w"], ["q"], "query"),
        helper.make_node("MatMul", ["n", "w"], ["k"], "key"),
        helper.make_node("Add", ["q", "k"], ["s"], "sum"),
        helper.make_node("Add", ["s", "n"], ["r"], "residual"),
        helper.make_node("MatMul", ["r", "w"], ["y"], "left"),
    ]
    model = make_onnx(nodes, weights, {"x": 8}, {"y": 8})
    done, graph = smoothed(model, {"query", "key"}, feeds_of(drawn, 8), context, tmp_path)
    assert (done.folded, done.inserted) == (0, 1)
    nodes_after = {node.name: node for node in graph.graph.node}
    assert nodes_after["query"].input[0] == nodes_after["key"].input[0] == "n_smoothed"
    assert nodes_after["residual"].input[1] == "n"
    assert (Editing(graph).value(nodes_after["left"].input[1]) == weights["w"]).all()


def test_a_normalization_and_an_attention_take_it(
    tiny_bert_onnx: ModelArtifact, context: Callable[..., Any], tmp_path: Path
) -> None:
    """In BERT the outputs of attention are smoothed for nothing, by the value projections."""
    from ioptim.onnx_graph import load_graph
    from ioptim.steps._layers import find_layers

    ctx = context()
    feeds = list(ctx.task.examples(ctx.table("calibration"), tiny_bert_onnx))[:4]
    names = {layer.name for layer in find_layers(load_graph(tiny_bert_onnx.model_path)) if layer.weight}
    done, _ = smoothed(tiny_bert_onnx, names, feeds, context, tmp_path)
    assert done.folded == 2, "one per layer"
    assert done.inserted == 8, "per layer: attention, feed-forward in and out; pooler and classifier"
