from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from ioptim import hardware
from ioptim.core.artifact import Format, ModelArtifact, TensorSpec, seal, verify
from ioptim.core.step import Outcome
from ioptim.errors import StepError
from ioptim.steps.profile import Profile

if TYPE_CHECKING:
    import numpy as np

WIDTH = 8
FACTORY = """
import torch

class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 8)
        self.project = torch.nn.Linear(8, 16)
        self.back = torch.nn.Linear(16, 8, bias=False)
        self.norm = torch.nn.LayerNorm(8)

    def forward(self, ids):
        x = self.embedding(ids)
        y = self.back(torch.nn.functional.gelu(self.project(x)))
        return self.norm(torch.nn.functional.scaled_dot_product_attention(y, y, y) + x)

def build():
    return Tiny()
"""
PARAMETERS = {"Embedding": 50 * 8, "Linear": 8 * 16 + 16 + 16 * 8, "LayerNorm": 16}


class FakeTask:
    def __init__(self, rows: int = 4) -> None:
        self.rows = rows

    def examples(self, table: Any, model: ModelArtifact) -> Iterator[dict[str, np.ndarray]]:
        import numpy as np

        for i in range(self.rows):
            yield {"ids": np.arange(2 + i, dtype="int64")[None]}


class FakeContext:
    hardware = hardware.probe()

    def __init__(self, out: Path, rows: int = 4, device: str = "cpu", session: Any = None) -> None:
        self.out = out
        self.task = FakeTask(rows)
        self.target = SimpleNamespace(name="here", device=device, threads=1)
        self.session = session
        self.done: list[float] = []

    def table(self, role: str) -> str:
        assert role == "validation"
        return "rows"

    def open(self, model: ModelArtifact) -> Any:
        return self.session

    def progress(self, done: float, message: str) -> None:
        self.done.append(done)


def profiled(model: ModelArtifact, ctx: FakeContext, **fields: Any) -> Outcome:
    return Profile(**{"rows": 4, **fields}).run(model, ctx)  # type: ignore[arg-type]


def table(outcome: Outcome, title: str) -> dict[Any, tuple[Any, ...]]:
    return {row[0]: row for found in outcome.tables if found.title == title for row in found.rows}


@pytest.fixture
def torch_model(tmp_path: Path) -> ModelArtifact:
    import torch
    from safetensors.torch import save_file

    folder = tmp_path / "model"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "tiny_factory.py").write_text(FACTORY)
    scope: dict[str, Any] = {}
    exec(FACTORY, scope)
    torch.manual_seed(0)
    save_file(scope["build"]().state_dict(), folder / "model.safetensors")
    model = ModelArtifact(
        path=folder,
        format=Format.TORCH,
        entry="model.safetensors",
        inputs=(TensorSpec(name="ids", dtype="int64", shape=("batch", "sequence")),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", "sequence", WIDTH)),),
        facts={"loader": {"kind": "factory", "factory": "tiny_factory:build", "code": "code"}},
    )
    return seal(model)


@pytest.fixture
def onnx_model(tmp_path: Path) -> ModelArtifact:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder = tmp_path / "onnx"
    folder.mkdir()
    weights = {"table": (50, 8), "w": (8, 16), "v": (16, 8)}
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["x"]),
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "v"], ["y"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", 8])],
        [numpy_helper.from_array(np.ones(shape, "float32"), name) for name, shape in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "model.onnx")
    return seal(ModelArtifact(path=folder, format=Format.ONNX, entry="model.onnx"))


@pytest.mark.integration
def test_torch(torch_model: ModelArtifact, tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path / "out")
    outcome = profiled(torch_model, ctx)
    layers = table(outcome, "Layers")
    assert {kind: row[2] for kind, row in layers.items()} == PARAMETERS
    assert layers["Linear"][1] == 2
    assert all(row[5] > 0 for row in layers.values())
    assert outcome.metrics["parameters"] == sum(PARAMETERS.values())
    assert outcome.metrics["size_bytes"] == torch_model.size_bytes
    operators = table(outcome, "Time by operator")
    assert operators["aten::addmm"][1:3] == ("matrix products", 1.0)
    assert "Time by kind of operator" in [found.title for found in outcome.tables]
    assert sum(value for name, value in outcome.metrics.items() if name.endswith("_share")) == pytest.approx(1)
    assert outcome.notes[0].text.startswith("Of the time in operators, ")
    assert outcome.facts["rows"] == 4
    assert outcome.facts["threads"] == 1
    assert ctx.done == sorted(ctx.done)
    with gzip.open(ctx.out / "files" / "trace.json.gz") as file:
        assert json.load(file)["traceEvents"]
    assert verify(torch_model) == []


@pytest.mark.integration
def test_operations_of_a_torch_model(torch_model: ModelArtifact, tmp_path: Path) -> None:
    """Two per multiply-add: both projections, and both products of attention, at lengths 2, 3, 4 and 5."""
    tokens, squares = 2 + 3 + 4 + 5, 4 + 9 + 16 + 25
    expected = 2 * (tokens * (8 * 16 + 16 * 8) + squares * 2 * WIDTH)
    assert profiled(torch_model, FakeContext(tmp_path / "out")).metrics["flops_per_row"] == expected / 4


@pytest.mark.integration
def test_onnx(onnx_model: ModelArtifact, tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path / "out")
    outcome = profiled(onnx_model, ctx)
    assert {kind: row[1:3] for kind, row in table(outcome, "Layers").items()} == {"Gather": (1, 400), "MatMul": (2, 256)}
    operators = table(outcome, "Time by operator")
    assert operators["MatMul"][1:3] == ("matrix products", 2.0)
    assert operators["Gather"][1:3] == ("embeddings", 1.0)
    assert outcome.metrics["parameters"] == 656
    assert "flops_per_row" not in outcome.metrics
    assert json.loads((ctx.out / "files" / outcome.facts["trace"]).read_text())
    assert verify(onnx_model) == []


@pytest.mark.integration
def test_a_quantized_weight_belongs_to_the_operator_that_uses_it(onnx_model: ModelArtifact, tmp_path: Path) -> None:
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(onnx_model.model_path)
    graph = model.graph
    kept = [tensor for tensor in graph.initializer if tensor.name != "v"]
    scale, quantized = numpy_helper.from_array(np.float32(1), "v_scale"), numpy_helper.from_array(np.ones((16, 8), "int8"), "v_q")
    del graph.initializer[:]
    graph.initializer.extend([*kept, scale, quantized])
    graph.node.insert(3, helper.make_node("DequantizeLinear", ["v_q", "v_scale"], ["v"]))
    onnx.save(model, onnx_model.model_path)
    layers = table(profiled(onnx_model, FakeContext(tmp_path / "out")), "Layers")
    assert layers["MatMul"][:3] == ("MatMul", 2, 8 * 16 + 16 * 8 + 1)
    assert "DequantizeLinear" not in layers


@pytest.mark.integration
def test_an_onnx_file_that_the_runtime_refuses(onnx_model: ModelArtifact, tmp_path: Path) -> None:
    import onnx

    broken = onnx.load(onnx_model.model_path)
    broken.graph.node[0].op_type = "Gathre"
    onnx.save(broken, onnx_model.model_path)
    with pytest.raises(StepError, match=r"^ONNX Runtime \S+ refused .*model\.onnx: .*Gathre"):
        profiled(onnx_model, FakeContext(tmp_path / "out"))


def null_model(folder: Path) -> ModelArtifact:
    folder.mkdir()
    (folder / "model.json").write_text("{}")
    return seal(ModelArtifact(path=folder, format=Format.NULL, entry="model.json"))


def test_another_format_is_timed_as_a_whole_and_says_so(tmp_path: Path) -> None:
    closed: list[bool] = []
    session = SimpleNamespace(run=lambda feeds: {}, close=lambda: closed.append(True))
    outcome = profiled(null_model(tmp_path / "model"), FakeContext(tmp_path / "out", session=session))
    assert outcome.notes[0].text == "the operators of null models are not timed one by one"
    assert set(outcome.metrics) == {"size_bytes", "row_mean_ms", "row_p50_ms"}
    assert outcome.tables == ()
    assert closed == [True]


def test_fewer_rows_than_asked_are_noted(tmp_path: Path) -> None:
    session = SimpleNamespace(run=lambda feeds: {}, close=lambda: None)
    outcome = profiled(null_model(tmp_path / "model"), FakeContext(tmp_path / "out", rows=3, session=session), rows=5)
    assert "3 rows were run, not 5: the validation data has no more" in [note.text for note in outcome.notes]


def test_rows_that_would_take_too_long_are_left_out_and_noted(tmp_path: Path) -> None:
    session = SimpleNamespace(run=lambda feeds: {}, close=lambda: None)
    outcome = profiled(null_model(tmp_path / "model"), FakeContext(tmp_path / "out", session=session), duration_s=1e-9)
    assert "1 rows were run, not 4: more would take longer than duration_s" in [note.text for note in outcome.notes]
    assert outcome.facts["rows"] == 1


def test_no_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"^profile has no rows to run: the validation data gave no example$"):
        profiled(null_model(tmp_path / "model"), FakeContext(tmp_path / "out", rows=0))
