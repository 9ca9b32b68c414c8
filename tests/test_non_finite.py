"""The layer in which NaN or infinity begins, told by words about layers and on real libraries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ioptim import non_finite
from ioptim.core.artifact import Format, ModelArtifact, TensorSpec
from ioptim.non_finite import Layer, State, begins, found, holes, origin

np = pytest.importorskip("numpy")
FINITE, INFINITE, NAN = State


def test_the_first_layer_that_no_nan_went_into() -> None:
    layers = [Layer("a", "MatMul", FINITE, FINITE), Layer("b", "Log", FINITE, NAN), Layer("c", "Add", NAN, NAN)]
    assert found(layers) == "NaN begins in the layer 'b' (Log)"


def test_what_overflowed_last_is_named_and_not_the_mask_before_it() -> None:
    mask, scores = Layer("mask", "Where", FINITE, INFINITE), Layer("scores", "MatMul", FINITE, INFINITE)
    layers = [mask, scores, Layer("masked", "Add", INFINITE, NAN)]
    assert found(layers) == "NaN begins in the layer 'masked' (Add), of infinite values that begin in the layer 'scores' (MatMul)"
    assert found([mask, scores]) == "infinity begins in the layer 'scores' (MatMul)"


def test_a_weight_that_is_no_number_is_named() -> None:
    assert found([Layer("a", "Linear", FINITE, NAN, "bias")]) == "NaN begins in the layer 'a' (Linear), whose weight 'bias' is not finite"


def test_layers_that_are_finite_one_by_one() -> None:
    said = "run layer by layer it stays finite, so an optimization of the runtime makes it"
    assert found([Layer("a", "MatMul", FINITE, FINITE)]) == said


def test_holes_are_counted_and_infinity_is_none() -> None:
    assert holes({"ids": np.array([1]), "y": np.array([1.0, np.inf])}) == ""
    assert holes({"y": np.array([1.0, np.nan, np.nan])}) == "the output 'y' is not a number (NaN) in 2 of its 3 values"


def test_an_input_that_is_no_number_already(tmp_path: Path) -> None:
    model = ModelArtifact(path=tmp_path, format=Format.ONNX, entry="model.onnx")
    assert begins(model, {"x": np.array([np.nan])}) == "; the input 'x' holds NaN already"


def test_a_format_without_layers_says_nothing(tmp_path: Path) -> None:
    assert begins(ModelArtifact(path=tmp_path, format=Format.NULL, entry="m"), {"x": np.array([1.0])}) == ""


# --- real libraries

FEEDS = {"x": np.array([[1, 2, 3, -4]], "float32")}
Make = Callable[..., ModelArtifact]


@pytest.fixture
def graph(tmp_path: Path) -> Make:
    """An ONNX model from `nodes` (operator, inputs, output), called `/<output>`, and float32 weights; the last output is the model's."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import helper, numpy_helper

    def make(*nodes: tuple[str, str, str], **weights: Any) -> ModelArtifact:
        made = [helper.make_node(kind, inputs.split(), [output], f"/{output}") for kind, inputs, output in nodes]
        tensors = [numpy_helper.from_array(np.asarray(value, "float32"), name) for name, value in weights.items()]
        x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 4]) for name in ("x", nodes[-1][2]))
        proto = helper.make_model(helper.make_graph(made, "g", [x], [y], tensors), ir_version=10)
        proto.opset_import[0].version = 18
        onnx.save(proto, tmp_path / "model.onnx")
        return ModelArtifact(path=tmp_path, format=Format.ONNX, entry="model.onnx")

    return make


@pytest.mark.integration
def test_onnx_names_the_node(graph: Make) -> None:
    model = graph(("MatMul", "x w", "dense"), ("Log", "dense", "log"), ("Add", "log b", "y"), w=np.eye(4), b=np.zeros(4))
    assert origin(model, FEEDS) == "NaN begins in the layer '/log' (Log)"
    assert origin(model, {"x": abs(FEEDS["x"])}) == "run layer by layer it stays finite, so an optimization of the runtime makes it"


@pytest.mark.integration
def test_onnx_follows_infinity_back_and_finds_weights(graph: Make) -> None:
    model = graph(("Mul", "x w", "scaled"), ("Exp", "scaled", "exp"), ("Sub", "exp exp", "y"), w=[100] * 4)
    assert origin(model, FEEDS) == "NaN begins in the layer '/y' (Sub), of infinite values that begin in the layer '/exp' (Exp)"
    model = graph(("MatMul", "x w", "y"), w=np.full((4, 4), np.nan))
    assert origin(model, FEEDS) == "NaN begins in the layer '/y' (MatMul), whose weight 'w' is not finite"


@pytest.mark.integration
def test_a_model_that_does_not_run_so_says_why(graph: Make) -> None:
    said = origin(graph(("Log", "x", "y")), {"x": np.zeros((1, 9), "float32")})
    assert said.startswith("in which layer it begins cannot be told: ONNX Runtime does not run it layer by layer (")


@pytest.mark.integration
def test_openvino_names_the_operation(graph: Make, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    model = graph(("MatMul", "x w", "dense"), ("Log", "dense", "log"), ("Add", "log b", "y"), w=np.eye(4), b=np.ones(4))
    openvino.save_model(openvino.convert_model(str(model.model_path)), str(tmp_path / "model.xml"), compress_to_fp16=False)
    converted = ModelArtifact(path=tmp_path, format=Format.OPENVINO, entry="model.xml")
    assert origin(converted, FEEDS) == "NaN begins in the layer '/log' (Log)"


@pytest.mark.integration
def test_torch_names_the_module_or_the_code_between_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")

    class Root(torch.nn.Module):  # type: ignore[name-defined, misc]
        def forward(self, value: Any) -> Any:
            return self.after(torch.sqrt(self.before(value)))

    def make(first: float) -> Any:
        part = Root()
        part.before, part.after = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4)
        part.before.weight.data = torch.diag(torch.tensor([first, 1, 1, 1]))
        return torch.nn.Sequential(torch.nn.Identity(), part).eval()

    class Model(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self, first: float) -> None:
            super().__init__()
            self.encoder = make(first)

        def forward(self, x: Any) -> Any:
            return self.encoder(x)

    artifact = ModelArtifact(
        path=tmp_path, format=Format.TORCH, entry="m", outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 4)),)
    )
    monkeypatch.setattr(non_finite, "load_module", lambda _: Model(1.0))
    assert origin(artifact, FEEDS) == "NaN begins in the code between the layers of 'encoder.1' (Root)"
    monkeypatch.setattr(non_finite, "load_module", lambda _: Model(float("nan")))
    assert origin(artifact, FEEDS) == "NaN begins in the layer 'encoder.1.before' (Linear), whose weight 'weight' is not finite"
    monkeypatch.setattr(non_finite, "load_module", lambda _: make(1.0)[1])
    said = "in which layer it begins cannot be told: Root failed on x [1, 4] float32: "
    assert origin(artifact, FEEDS).startswith(said)
