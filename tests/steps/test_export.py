"""Exports compute what the source computes, on other shapes than they were traced with, or the step says by how much not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec, seal, verify
from ioptim.core.step import Level, Where
from ioptim.errors import StepError
from ioptim.steps.export import Export


def where(format: Format) -> Where:
    return Where(format=format, targets=(), task=None, hardware=None, has_calibration=False)


def test_knows_which_way_it_goes() -> None:
    assert Export(to=Format.ONNX).check(where(Format.TORCH)) == []
    assert Export(to=Format.OPENVINO).check(where(Format.ONNX)) == []
    assert Export(to=Format.TENSORRT).check(where(Format.ONNX)) == [
        "export cannot turn onnx into tensorrt; it knows torch to onnx, onnx to openvino"
    ]
    assert Export(to=Format.OPENVINO).produces(where(Format.ONNX)) is Format.OPENVINO


def test_needs_the_libraries_of_its_way_only() -> None:
    assert "torch" in Export().library_names(where(Format.TORCH))
    assert "openvino" not in Export().library_names(where(Format.TORCH))
    assert "torch" not in Export(to=Format.OPENVINO).library_names(where(Format.ONNX))


@pytest.mark.integration
def test_a_bert_keeps_its_axes_and_fuses(tiny_bert: ModelArtifact, tiny_bert_onnx: ModelArtifact, tmp_path: Path) -> None:
    import numpy as np
    import onnx
    import onnxruntime

    from ioptim.onnx_graph import count_ops, fuse_transformer

    assert verify(tiny_bert) == []
    graph = onnx.load(tiny_bert_onnx.model_path).graph
    axes = {value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in (*graph.input, *graph.output)}
    tokens = ["batch", "sequence"]
    assert axes == {"input_ids": tokens, "attention_mask": tokens, "token_type_ids": tokens, "logits": ["batch", 2]}
    assert not list(tiny_bert_onnx.path.glob("*.data"))

    counts = fuse_transformer(tiny_bert_onnx.model_path, tmp_path / "fused.onnx").counts
    assert counts == {"Attention": 1, "MultiHeadAttention": 1, "EmbedLayerNormalization": 1, "Gelu": 2}
    assert "Softmax" not in count_ops(tmp_path / "fused.onnx")
    feeds = {"input_ids": np.arange(40).reshape(4, 10), "attention_mask": np.ones((4, 10), int), "token_type_ids": np.zeros((4, 10), int)}
    feeds["attention_mask"][1:, 6:] = 0
    paths = (tiny_bert_onnx.model_path, tmp_path / "fused.onnx")
    plain, fused = (onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)[0] for path in paths)
    assert np.abs(plain - fused).max() < 1e-5


@pytest.mark.integration
def test_reports_what_it_did(tiny_cnn: ModelArtifact, context: Callable[..., Any]) -> None:
    ctx = context()
    outcome = Export().run(tiny_cnn, ctx)
    assert outcome.facts == {"engine": "dynamo"}
    assert outcome.notes == ()
    assert outcome.metrics["opset"] == 18
    assert outcome.metrics["max_abs_difference"] < 1e-4
    assert outcome.written is not None
    assert outcome.written.outputs == (TensorSpec(name="logits", dtype="float32", shape=("batch", 3)),)
    assert [path.name for path in ctx.out.rglob("*") if path.is_file()] == ["model.onnx"]
    assert verify(tiny_cnn) == []


@pytest.mark.integration
def test_torchscript_is_a_fallback_that_is_told(
    tiny_cnn: ModelArtifact, context: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ioptim.steps import export

    def fail(*_: Any) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setitem(export._ENGINES, "dynamo", fail)
    outcome = Export().run(tiny_cnn, context())
    assert outcome.facts == {"engine": "torchscript"}
    assert [(note.level, note.text) for note in outcome.notes] == [
        (Level.WARNING, "exported by the TorchScript engine, since dynamo failed (dynamo: RuntimeError: no such operator)")
    ]
    with pytest.raises(StepError, match="torch.onnx.export cannot export Sequential: dynamo: RuntimeError: no such operator"):
        Export(engine="dynamo").run(tiny_cnn, context())


@pytest.mark.integration
def test_a_difference_is_an_error(tiny_cnn: ModelArtifact, context: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from ioptim import torch_model

    right = torch_model.call
    monkeypatch.setattr(torch_model, "call", lambda *args: {name: value + 0.5 for name, value in right(*args).items()})
    message = "the exported model's output 'logits' differs from the source's by 0.5, and at most 0.000"
    with pytest.raises(StepError, match=re.escape(message)):
        Export().run(tiny_cnn, context())


@pytest.mark.integration
def test_onnx_to_openvino(tiny_cnn_onnx: ModelArtifact, context: Callable[..., Any]) -> None:
    pytest.importorskip("openvino")
    ctx = context()
    outcome = Export(to=Format.OPENVINO).run(tiny_cnn_onnx, ctx)
    assert outcome.metrics["max_abs_difference"] < 1e-4
    assert sorted(path.name for path in (ctx.out / "model").iterdir()) == ["model.bin", "model.xml"]
    # float32 weights: none was halved on the way
    assert (ctx.out / "model" / "model.bin").stat().st_size >= 4 * (8 * 9 + 16 * 8 * 9 + 2560)


@pytest.fixture
def tiny_cnn(tmp_path: Path) -> ModelArtifact:
    """A torch module from a user's factory: 8x8 images, three classes."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_model

    code = tmp_path / "source" / "code"
    code.mkdir(parents=True)
    text = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3))
"""
    (code / "tiny_cnn.py").write_text(text)
    scope = SimpleNamespace()
    exec(text, scope.__dict__)
    torch.manual_seed(0)
    save_model(scope.build(), str(code.parent / "model.safetensors"))
    return seal(
        ModelArtifact(
            path=code.parent,
            format=Format.TORCH,
            entry="model.safetensors",
            inputs=(TensorSpec(name="input", dtype="float32", shape=("batch", 1, 8, 8)),),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 3)),),
            facts={"loader": {"kind": "factory", "factory": "tiny_cnn:build", "code": "code"}},
        )
    )
