"""Targets, and tiny models built in code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec, open_artifact, seal
from ioptim.core.runtime import Runtime, Session, Target
from ioptim.core.step import Outcome
from ioptim.core.target import Hardware

TEXT_INPUTS = tuple(TensorSpec(name=name, dtype="int64", shape=("batch", "sequence")) for name in ("input_ids", "attention_mask"))


@pytest.fixture
def target_of() -> Callable[..., Target]:
    """A target of one thread around a runtime."""

    def make(runtime: Runtime, device: str = "cpu", threads: int | None = 1) -> Target:
        return Target(name="here", device=device, threads=threads, runtime=runtime)

    return make


@pytest.fixture
def no_gpu() -> Hardware:
    return Hardware(cpu_model="A CPU", cpu_flags=("avx2",), cores=2, threads=2, memory_bytes=1 << 30)


@pytest.fixture
def one_gpu(no_gpu: Hardware) -> Hardware:
    return no_gpu.model_copy(update={"gpus": ({"name": "NVIDIA L4"},)})


@pytest.fixture
def linear(tmp_path: Path) -> ModelArtifact:
    """ONNX: y = relu(x W), W[i, j] = i - j, x (batch, 4)."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder = tmp_path / "linear"
    folder.mkdir()
    weight = np.subtract.outer(np.arange(4), np.arange(3)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "W"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "linear", [x], [y], [numpy_helper.from_array(weight, "W")])
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(folder / "model.onnx"))
    return _sealed(
        folder,
        (TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
        (TensorSpec(name="y", dtype="float32", shape=("batch", 3)),),
    )


@pytest.fixture
def linear_qdq(linear: ModelArtifact, tmp_path: Path) -> ModelArtifact:
    """The same with x and W quantized to int8 (QDQ)."""
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter([{"x": np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)}])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    folder = tmp_path / "qdq"
    folder.mkdir()
    quantize_static(str(linear.model_path), str(folder / "model.onnx"), Rows(), quant_format=QuantFormat.QDQ)
    return _sealed(folder, linear.inputs, linear.outputs)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> ModelArtifact:
    """ONNX: a random BERT of 2 layers, hidden 64, 4 heads, with a padding mask, as the dynamo exporter writes it."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=99)
    config._attn_implementation = "eager"
    module = BertModel(config, add_pooling_layer=False).eval()
    names = [spec.name for spec in TEXT_INPUTS]
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    folder = tmp_path_factory.mktemp("bert")
    torch.onnx.export(
        module,
        kwargs={name: torch.ones((2, 8), dtype=torch.int64) for name in names},
        f=str(folder / "model.onnx"),
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_shapes=dict.fromkeys(names, axes),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    outputs = (TensorSpec(name="last_hidden_state", dtype="float32", shape=("batch", "sequence", 64)),)
    return _sealed(folder, TEXT_INPUTS, outputs)


@pytest.fixture
def compiled(tmp_path: Path, target_of: Callable[..., Target]) -> Callable[..., tuple[Outcome, ModelArtifact, Session]]:
    """Compile with a runtime, seal what it wrote as the store would, read it back and open it."""

    def make(runtime: Runtime, model: ModelArtifact) -> tuple[Outcome, ModelArtifact, Session]:
        target, out = target_of(runtime), tmp_path / "compiled"
        out.mkdir()
        outcome = runtime.compile(model, target, out)
        written = outcome.written
        assert written is not None
        artifact = ModelArtifact(
            path=out,
            format=written.format,
            entry=written.entry,
            inputs=written.inputs or model.inputs,
            outputs=written.outputs or model.outputs,
            facts=written.facts,
        )
        assert written.format == runtime.compiled
        again = open_artifact(seal(artifact).path)
        return outcome, again, runtime.open(again, target)

    return make


def _sealed(folder: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> ModelArtifact:
    return seal(ModelArtifact(path=folder, format=Format.ONNX, entry="model.onnx", inputs=inputs, outputs=outputs))
