"""The smallest ONNX model that computes something: y = 2 x."""

from __future__ import annotations

from pathlib import Path

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec


def write_double(folder: Path) -> ModelArtifact:
    """Write it to `folder`; x and y are float32 (batch, 3)."""
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "xy")
    two = helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])
    graph = helper.make_graph([helper.make_node("Mul", ["x", "two"], ["y"])], "double", [x], [y], [two])
    # IR 8 and opset 17: what every runtime since 2022 reads.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, str(folder / "model.onnx"))
    inputs, outputs = ((TensorSpec(name=name, dtype="float32", shape=("batch", 3)),) for name in "xy")
    return ModelArtifact(path=folder, format=Format.ONNX, entry="model.onnx", inputs=inputs, outputs=outputs)
