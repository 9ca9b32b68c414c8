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
        self.target: Any = SimpleNamespace(name="here", device=device, threads=1)
        self.session = session
        self.done: list[float] = []

    def table(self, role: str) -> str:
        assert role == "validation"
        return "rows"

    def open(self, model: ModelArtifact) -> Any:
        return self.session or self.runtime_for(model).open(model, self.target)

    def runtime_for(self, model: ModelArtifact) -> Any:
        from ioptim.runtimes.null import Null
        from ioptim.runtimes.onnxruntime import OnnxRuntime
        from ioptim.runtimes.openvino import OpenVino

        return {Format.ONNX: OnnxRuntime, Format.OPENVINO: OpenVino, Format.NULL: Null}[model.format]()

    def target_of(self, model: ModelArtifact) -> Any:
        return self.target

    def progress(self, done: float, message: str) -> None:
        self.done.append(done)


def profiled(model: ModelArtifact, ctx: FakeContext, **fields: Any) -> Outcome:
    return Profile(**{"rows": 4, "roofline": False, **fields}).run(model, ctx)  # type: ignore[arg-type]


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
    by_kind = table(outcome, "Time by kind of operator")
    assert sum(outcome.metrics[f"{kind.replace(' ', '_')}_share"] for kind in by_kind) == pytest.approx(1)
    assert {"int8_layers", "int8_time_share", "reorders"} <= outcome.metrics.keys()
    assert outcome.metrics["int8_layers"] == 0
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
def test_modules_of_a_torch_model_add_up_to_the_row(torch_model: ModelArtifact, tmp_path: Path) -> None:
    """Attention is computed by the root itself, as a function: its own time and work are the root's, without its children's."""
    from ioptim.steps.profile import torch_module

    feeds = list(FakeTask().examples("rows", torch_model))
    (tmp_path / "files").mkdir()
    found = torch_module.profile(
        torch_model, feeds, device="cpu", threads=1, duration_s=5, files=tmp_path / "files", progress=lambda done, message: None
    )
    layers = {layer.name: layer for layer in found.layers}
    assert set(layers) == {"Tiny", "embedding", "project", "back", "norm"}
    tokens, squares = 2 + 3 + 4 + 5, 4 + 9 + 16 + 25
    assert layers["project"].operations == 2 * tokens * 8 * 16
    assert layers["project"].weight_bytes == 4 * 4 * (8 * 16 + 16), "weight and bias, once a row"
    assert layers["project"].activation_bytes == 4 * tokens * (8 + 16)
    assert layers["embedding"].weight_bytes == 4 * tokens * 8, "of the table only the rows found"
    assert layers["Tiny"].product_operations == 2 * squares * 2 * WIDTH, "both products of attention"
    operations, products = layers["Tiny"].operations, layers["Tiny"].product_operations
    assert operations is not None and operations > products, "its softmax, gelu and the sum beside them"
    assert all(layer.seconds > 0 for layer in found.layers)


@pytest.mark.integration
def test_onnx(onnx_model: ModelArtifact, tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path / "out")
    outcome = profiled(onnx_model, ctx)
    assert {kind: row[1:3] for kind, row in table(outcome, "Layers").items()} == {"Gather": (1, 400), "MatMul": (2, 256)}
    operators = table(outcome, "Time by operator")
    assert operators["MatMul"][1:3] == ("matrix products", 2.0)
    assert operators["Gather"][1:3] == ("embeddings", 1.0)
    assert outcome.metrics["parameters"] == 656
    assert outcome.metrics["flops_per_row"] == 2 * (2 + 3 + 4 + 5) / 4 * (8 * 16 + 16 * 8)
    layers = table(outcome, "Layers by time")
    by_operator = {row[1]: row for row in layers.values()}
    assert by_operator["Gather"][5] == 0 and by_operator["MatMul"][5] > 0
    assert not list((ctx.out / "files").glob("optimized*")), "the graph that was read for its shapes is gone"
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
def test_parameters_of_a_weight_in_blocks_are_what_is_packed_in_it(tmp_path: Path) -> None:
    """64 x 256 numbers of 4 bits are 8192 bytes, and every 32 of them have a scale."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    sizes = {"K": 64, "N": 256, "bits": 4, "block_size": 32}
    weights = {"table": np.ones((50, 64), "float32"), "b": np.full((256, 2, 16), 0x99, "uint8"), "scales": np.ones((256, 2), "float32")}
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["x"]),
            helper.make_node("MatMulNBits", ["x", "b", "scales"], ["y"], domain="com.microsoft", **sizes),
        ],
        "blocks",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", 256])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    (folder := tmp_path / "onnx").mkdir()
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "model.onnx")
    outcome = profiled(seal(ModelArtifact(path=folder, format=Format.ONNX, entry="model.onnx")), FakeContext(tmp_path / "out"))
    assert table(outcome, "Layers")["MatMulNBits"][1:3] == (1, 64 * 256 + 512)
    assert outcome.metrics["parameters"] == 50 * 64 + 64 * 256 + 512


@pytest.mark.integration
def test_an_onnx_file_that_the_runtime_refuses(onnx_model: ModelArtifact, tmp_path: Path) -> None:
    import onnx

    broken = onnx.load(onnx_model.model_path)
    broken.graph.node[0].op_type = "Gathre"
    onnx.save(broken, onnx_model.model_path)
    with pytest.raises(StepError, match=r"^ONNX Runtime \S+ refused .*model\.onnx: .*Gathre"):
        profiled(onnx_model, FakeContext(tmp_path / "out"))


@pytest.mark.integration
def test_the_roofs_are_measured_and_layers_placed(onnx_model: ModelArtifact, tmp_path: Path) -> None:
    outcome = profiled(onnx_model, FakeContext(tmp_path / "out"), roofline=True)
    assert {"peak_float32_gop_per_s", "peak_int8_gop_per_s", "memory_gb_per_s"} <= outcome.metrics.keys()
    bounds = [row[11] for row in table(outcome, "Layers by time").values() if row[11] is not None]
    assert bounds and set(bounds) <= {"compute", "memory", "overhead"}
    assert [chart.title for chart in outcome.charts] == ["Time by operator", "Roofline"]
    assert {row[0] for row in table(outcome, "Roofs of this machine").values()} >= {"float32", "int8", "memory"}


@pytest.mark.integration
def test_openvino_counters(onnx_model: ModelArtifact, tmp_path: Path) -> None:
    import openvino

    folder = tmp_path / "ir"
    folder.mkdir()
    openvino.save_model(openvino.convert_model(onnx_model.model_path), folder / "model.xml", compress_to_fp16=False)
    ctx = FakeContext(tmp_path / "out")
    outcome = profiled(seal(ModelArtifact(path=folder, format=Format.OPENVINO, entry="model.xml")), ctx)
    operators = table(outcome, "Time by operator")
    assert operators["FullyConnected"][1:3] == ("matrix products", 2.0)
    assert outcome.metrics["flops_per_row"] == 2 * (2 + 3 + 4 + 5) / 4 * (8 * 16 + 16 * 8)
    assert outcome.metrics["int8_layers"] == 0
    events = json.loads((ctx.out / "files" / "trace.json").read_text())["traceEvents"]
    assert {event["args"]["kernel"] for event in events if event["name"] != "pass"}


@pytest.mark.integration
def test_a_quantized_model_runs_in_int8(onnx_model: ModelArtifact, tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    folder = tmp_path / "int8"
    folder.mkdir()
    quantize_dynamic(onnx_model.model_path, folder / "model.onnx", op_types_to_quantize=["MatMul"])
    outcome = profiled(seal(ModelArtifact(path=folder, format=Format.ONNX, entry="model.onnx")), FakeContext(tmp_path / "out"))
    assert outcome.metrics["int8_layers"] == 2
    assert 0 < outcome.metrics["int8_time_share"] < 1
    assert outcome.metrics["flops_per_row"] == 2 * (2 + 3 + 4 + 5) / 4 * (8 * 16 + 16 * 8)
    rows = [row for found in outcome.tables if found.title == "What runs in int8" for row in found.rows]
    assert rows[0][:4] == ("in int8", "DynamicQuantizeMatMul", "int8", 2)


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
