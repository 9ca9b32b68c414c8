"""A static graph is spelled so that ONNX Runtime runs it fastest, and computes the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ioptim.core.artifact import ModelArtifact
from ioptim.steps import _outputs
from ioptim.steps._qdq import drop_unread, read_floats, spell_gelu

pytestmark = pytest.mark.integration


def test_gelu_as_torch_exports_it_becomes_one_operator(make_onnx: Callable[..., ModelArtifact], tmp_path: Path) -> None:
    import numpy as np
    import onnxruntime
    from onnx import helper

    from ioptim.onnx_graph import count_ops, load_graph, save_graph

    nodes = [
        helper.make_node("Relu", ["x"], ["h"], "relu"),
        helper.make_node("Div", ["h", "root"], ["d"], "div"),
        helper.make_node("Erf", ["d"], ["e"], "erf"),
        helper.make_node("Add", ["e", "one"], ["a"], "add"),
        helper.make_node("Mul", ["half", "a"], ["m"], "mul"),
        helper.make_node("Mul", ["h", "m"], ["y"], "gelu"),
    ]
    constants = {name: np.array(value, np.float32) for name, value in {"root": 2**0.5, "one": 1.0, "half": 0.5}.items()}
    model = make_onnx(nodes, constants, {"x": 4}, {"y": 4})
    graph = load_graph(model.model_path)
    assert spell_gelu(graph) == 1
    save_graph(graph, tmp_path / "spelled.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "spelled.onnx"), options, providers=["CPUExecutionProvider"])
    assert count_ops(tmp_path / "optimized.onnx") == {"Gelu": 1, "Relu": 1}
    feeds = [{"x": np.linspace(-4, 4, 12, dtype=np.float32).reshape(3, 4)}]
    before, after = (_outputs.run_onnx(path, feeds, 1)[0]["y"] for path in (model.model_path, tmp_path / "spelled.onnx"))
    assert np.allclose(before, after, atol=1e-6)
    assert spell_gelu(graph) == 0, "it is spelled already"


def test_float_nodes_read_floats_but_not_behind_an_int8_kernel(make_onnx: Callable[..., ModelArtifact]) -> None:
    import numpy as np
    from onnx import helper

    from ioptim.onnx_graph import load_graph

    nodes = [
        helper.make_node("Relu", ["x"], ["h"], "float"),
        helper.make_node("QuantizeLinear", ["h", "s", "z"], ["hq"], "q1"),
        helper.make_node("DequantizeLinear", ["hq", "s", "z"], ["hd"], "d1"),
        helper.make_node("MatMul", ["hd", "w"], ["m"], "int8"),
        helper.make_node("QuantizeLinear", ["m", "s", "z"], ["mq"], "q2"),
        helper.make_node("DequantizeLinear", ["mq", "s", "z"], ["md"], "d2"),
        helper.make_node("Add", ["hd", "md"], ["y"], "residual"),
    ]
    constants = {"s": np.array(0.1, np.float32), "z": np.array(0, np.uint8), "w": np.eye(4, dtype=np.float32), "unread": np.zeros(3)}
    graph = load_graph(make_onnx(nodes, constants, {"x": 4}, {"y": 4}).model_path)
    assert read_floats(graph, {"int8"}) == 1
    found = {node.name: list(node.input) for node in graph.graph.node}
    assert found["residual"] == ["h", "md"], "what the kernel makes is 8 bits already"
    assert found["int8"] == ["hd", "w"]
    drop_unread(graph)
    assert {tensor.name for tensor in graph.graph.initializer} == {"s", "z", "w"}


def test_the_residuals_of_a_static_bert_are_float(tiny_bert_onnx: ModelArtifact, context: Callable[..., Any]) -> None:
    from ioptim.onnx_graph import load_graph
    from ioptim.steps._editing import Editing
    from ioptim.steps._onnx_int8 import Int8Options, prepare

    ctx = context()
    feeds = list(ctx.task.examples(ctx.table("calibration"), tiny_bert_onnx))[:4]
    graph = prepare(Int8Options("int8-static"), tiny_bert_onnx.model_path, ctx.out, ctx, feeds)
    graph.write(ctx.out / "made.onnx")
    made = Editing(load_graph(ctx.out / "made.onnx"))
    residuals = [node for node in made.graph.node if node.op_type == "LayerNormalization"]
    adds = [made.producer(node.input[0], "Add") for node in residuals]
    assert len(residuals) == 5
    behind = {type(made.producer(name, "DequantizeLinear")).__name__ for add in adds[1:] if add is not None for name in add.input}
    assert behind == {"NoneType"}
    tables = [node for node in made.graph.node if node.op_type == "Gather" and made.producer(node.input[0], "DequantizeLinear")]
    assert len(tables) == 3, "the embeddings stay in int8"
