"""ONNX Runtime: the optimized file computes the same, and says what fused and what did not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ioptim.core.artifact import Format, ModelArtifact, seal, verify
from ioptim.core.runtime import Target
from ioptim.core.target import Hardware
from ioptim.errors import StepError, UnavailableError
from ioptim.onnx_graph import fuse_transformer
from ioptim.runtimes import _onnx_report as report
from ioptim.runtimes._onnx_compare import require_near
from ioptim.runtimes.onnxruntime import OnnxRuntime


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValidationError):
        OnnxRuntime(graph_optimization="most")  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        OnnxRuntime(optimization="all")  # type: ignore[call-arg]


def test_provider_that_does_not_run_on_the_device(target_of: Callable[..., Target], no_gpu: Hardware) -> None:
    runtime = OnnxRuntime(execution_provider="cuda")
    assert runtime.check(target_of(runtime), no_gpu) == [
        "execution_provider cuda does not run on the device cpu; leave it out, or write `device: gpu`"
    ]
    assert OnnxRuntime(execution_provider="cpu").check(target_of(runtime), no_gpu) == []


def test_what_counts_as_an_unfused_transformer() -> None:
    plain = {"Softmax": 2, "MatMul": 8, "LayerNormalization": 3}
    assert report.is_unfused_transformer(plain)
    assert not report.is_unfused_transformer({**plain, "Attention": 2})
    assert not report.is_unfused_transformer({**plain, "MatMulInteger": 2})
    assert not report.is_unfused_transformer({**plain, "MatMulNBits": 2})
    assert not report.is_unfused_transformer({"Conv": 3})


@pytest.mark.integration
@pytest.mark.parametrize(("level", "found"), [(4, ({"MatMulNBits": 1}, {"Gemm": 1})), (1, ({}, {"MatMulNBits": 1, "Gemm": 1}))])
def test_weights_in_blocks_count_as_what_they_multiply_in(tmp_path: Path, level: int, found: Any) -> None:
    import onnx
    from onnx import helper

    nodes = [
        helper.make_node("MatMulNBits", ["x", "b", "s"], ["h"], "m", domain="com.microsoft", bits=4, block_size=32, accuracy_level=level),
        helper.make_node("Gemm", ["h", "w"], ["y"], "g"),
    ]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], []), opset_imports=opsets), tmp_path / "m.onnx")
    assert report.products(tmp_path / "m.onnx") == found


@pytest.mark.integration
def test_self_check(target_of: Callable[..., Target]) -> None:
    assert OnnxRuntime().self_check(target_of(OnnxRuntime())) == [2.0, 4.0, 6.0]


@pytest.mark.integration
@pytest.mark.parametrize("level", ["off", "basic", "extended", "all"])
def test_outputs_and_dynamic_batch(linear: ModelArtifact, compiled: Callable, level: str) -> None:  # type: ignore[type-arg]
    import numpy as np

    outcome, artifact, session = compiled(OnnxRuntime(graph_optimization=level), linear)  # type: ignore[arg-type]
    weight = np.subtract.outer(np.arange(4), np.arange(3)).astype(np.float32)
    for batch in (1, 5):
        x = np.random.default_rng(batch).standard_normal((batch, 4)).astype(np.float32)
        np.testing.assert_allclose(session.run({"x": x})["y"], np.maximum(x @ weight, 0), rtol=1e-5)
    assert session.facts["execution_provider"] == "CPUExecutionProvider"
    assert session.facts["intra_op_threads"] == 1
    assert session.facts["graph_optimization"] == level
    assert artifact.facts["runtime"] == "onnxruntime" and artifact.facts["instruction_sets"]
    assert outcome.metrics["nodes_before"] == 2
    assert verify(artifact) == [] and verify(linear) == []


@pytest.mark.integration
def test_a_model_that_nothing_compiled_opens_too(linear: ModelArtifact, target_of: Callable[..., Target]) -> None:
    import numpy as np

    session = OnnxRuntime().open(linear, target_of(OnnxRuntime(), threads=2))
    assert session.run({"x": np.ones((2, 4), np.float32)})["y"].shape == (2, 3)
    assert session.facts["intra_op_threads"] == 2


@pytest.mark.integration
def test_fusions_of_a_bert(bert: ModelArtifact, compiled: Callable, target_of: Callable[..., Target]) -> None:  # type: ignore[type-arg]
    import numpy as np

    outcome, artifact, session = compiled(OnnxRuntime(on_unfused="error"), bert)
    fused = {name: count for name, count in outcome.metrics.items() if name.startswith("fused_nodes.")}
    assert fused == {
        "fused_nodes.Attention": 2,
        "fused_nodes.EmbedLayerNormalization": 1,
        "fused_nodes.Gelu": 2,
    }
    assert outcome.metrics["nodes_after"] < outcome.metrics["nodes_before"] / 2
    assert 0 <= outcome.metrics["fusion_max_difference"] < 1e-4
    assert outcome.notes[0].text == "fused: 2 Attention, 1 EmbedLayerNormalization"
    rows = {row[0]: row[1:] for row in outcome.tables[0].rows}
    assert rows["Softmax"] == (2, 0)
    assert rows["Attention"] == (0, 2)
    assert rows["LayerNormalization"] == (5, 4), "not fused with the sums before it: that kernel is slow on a CPU"
    assert rows["Sum"] == (0, 4), "nor would they fuse for anyone who opens the file with default options"
    plain = OnnxRuntime(graph_optimization="off", fusions=False).open(bert, target_of(OnnxRuntime()))
    mask = np.array([[1] * 9, [1] * 6 + [0] * 3])
    feeds = {"input_ids": np.arange(18).reshape(2, 9), "attention_mask": mask}
    a, b = (s.run(feeds)["last_hidden_state"] for s in (plain, session))
    np.testing.assert_allclose(a[mask == 1], b[mask == 1], atol=1e-4)
    assert [path.name for path in artifact.path.iterdir() if path.suffix == ".onnx"] == ["model.onnx"]


@pytest.mark.integration
def test_a_fused_and_quantized_model_is_taken_as_it_is(bert: ModelArtifact, compiled: Callable, tmp_path: Path) -> None:  # type: ignore[type-arg]
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    fused = tmp_path / "fused"
    fused.mkdir()
    fuse_transformer(bert.model_path, fused / "model.onnx")
    quantize_dynamic(fused / "model.onnx", fused / "int8.onnx", extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})
    model = bert.model_copy(update={"path": fused, "entry": "int8.onnx"})
    outcome, _, session = compiled(OnnxRuntime(), model)
    nodes = f"{outcome.metrics['packed_nodes']:g} nodes"
    assert [note.text for note in outcome.notes] == [
        "the graph was fused before it was compiled; taken as it is",
        f"{nodes} leave out padding where it is more than 15% of a batch; last_hidden_state is 0 there",
        "all 8 products with weights run in int8: 6 DynamicQuantizeMatMul, 2 QAttention",
    ]
    assert outcome.metrics["float_products"] == 0
    assert session.outputs == bert.outputs


@pytest.mark.integration
def test_attention_that_does_not_fuse_is_said_or_refused(linear: ModelArtifact, compiled: Callable, tmp_path: Path) -> None:  # type: ignore[type-arg]
    import onnx
    from onnx import helper

    graph = onnx.load(str(linear.model_path))
    graph.graph.node[1].CopyFrom(helper.make_node("Softmax", ["h"], ["p"]))
    graph.graph.node.append(helper.make_node("Transpose", ["h"], ["t"]))
    graph.graph.node.append(helper.make_node("MatMul", ["p", "t"], ["y"]))
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "batch"
    onnx.save(graph, str(linear.model_path))
    outcome, _, _ = compiled(OnnxRuntime(), linear)
    says = "1 of 1 attention blocks were not recognized and stay in single operators"
    assert [(note.text, note.level.value) for note in outcome.notes] == [(says, "warning")]
    (tmp_path / "compiled").rename(tmp_path / "before")
    with pytest.raises(StepError) as caught:
        compiled(OnnxRuntime(on_unfused="error"), linear)
    assert str(caught.value) == f"{says} (on_unfused: error); fused were none"


@pytest.mark.integration
def test_a_classifier_that_ends_in_softmax_has_no_attention(linear: ModelArtifact, compiled: Callable) -> None:  # type: ignore[type-arg]
    import onnx

    graph = onnx.load(str(linear.model_path))
    graph.graph.node[1].op_type = "Softmax"
    onnx.save(graph, str(linear.model_path))
    outcome, _, _ = compiled(OnnxRuntime(on_unfused="error"), linear)
    assert outcome.notes == ()


@pytest.mark.integration
def test_an_older_opset_is_fused(attention_at: Callable[..., Path], compiled: Callable) -> None:  # type: ignore[type-arg]
    outcome, _, _ = compiled(OnnxRuntime(on_unfused="error"), _artifact(attention_at(11)))
    assert outcome.metrics["fused_nodes.Attention"] == 1
    assert outcome.metrics["fusion_max_difference"] < 1e-4


@pytest.mark.integration
@pytest.mark.parametrize("broken", [("Identity", 2), ("Reshape", 2)], ids=["does not load", "does not run"])
def test_a_fused_graph_that_does_not_run_is_left_out(
    bert: ModelArtifact,
    compiled: Callable,  # type: ignore[type-arg]
    target_of: Callable[..., Target],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    broken: tuple[str, int],
) -> None:
    import numpy as np
    from onnx import helper, numpy_helper

    from ioptim.onnx_graph import load_graph, save_graph
    from ioptim.runtimes import onnxruntime

    def fuse(source: Path, destination: Path, *, cpu: bool) -> Any:
        found = fuse_transformer(source, destination, cpu=cpu)
        model = load_graph(destination)
        output = model.graph.output[0].name
        for node in model.graph.node:
            node.output[:] = [f"{name}_whole" if name == output else name for name in node.output]
        model.graph.initializer.append(numpy_helper.from_array(np.array([7, 7, 7]), "sevens"))
        model.graph.node.append(helper.make_node(broken[0], [f"{output}_whole", "sevens"][: broken[1]], [output]))
        save_graph(model, destination)
        return found

    monkeypatch.setattr(onnxruntime, "fuse_transformer", fuse)
    outcome, _, session = compiled(OnnxRuntime(), bert)
    (note,) = outcome.notes
    assert note.text.startswith("nothing is fused, for the fused graph does not run: ONNX Runtime") and note.level.value == "warning"
    assert "fused_nodes.Attention" not in outcome.metrics and "fusion_max_difference" not in outcome.metrics
    ones = np.ones((2, 5), np.int64)
    assert session.run({"input_ids": ones, "attention_mask": ones})["last_hidden_state"].shape == (2, 5, 64)
    with pytest.raises(StepError, match="ONNX Runtime"):
        OnnxRuntime(on_unfused="error").compile(bert, target_of(OnnxRuntime()), tmp_path)


@pytest.mark.integration
@pytest.mark.parametrize("data_type", [10, 16])
def test_weights_in_16_bits_stay_small_and_are_computed_in_float32(
    tmp_path: Path,
    compiled: Callable,  # type: ignore[type-arg]
    target_of: Callable[..., Target],
    data_type: int,
) -> None:
    import numpy as np
    import onnx
    from onnx import helper

    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(helper.tensor_dtype_to_np_dtype(data_type))
    nodes = [
        helper.make_node("Cast", ["W_16"], ["W"], to=1),
        helper.make_node("MatMul", ["x", "W"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, 1, ["batch", 64]) for name in "xy"]
    tensor = helper.make_tensor("W_16", data_type, weight.shape, weight.tobytes(), raw=True)
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [tensor])
    (tmp_path / "stored").mkdir()
    path = tmp_path / "stored" / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    _, artifact, session = compiled(OnnxRuntime(), _artifact(path))
    assert artifact.model_path.stat().st_size < 64 * 64 * 2 + 2000
    assert session.facts["graph_optimization"] == "all"
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    np.testing.assert_allclose(session.run({"x": x})["y"], np.maximum(x @ weight.astype(np.float32), 0), rtol=1e-4, atol=1e-4)
    profiled = OnnxRuntime().open_profiled(artifact, target_of(OnnxRuntime()), tmp_path / "trace.json")
    profiled.run({"x": x})
    assert "Cast" not in {layer.operator for layer in profiled.finish()[0].layers}, "the weight was widened as it was loaded"


@pytest.mark.integration
def test_recurrent_layers_are_products_in_float(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    kinds = ("LSTM", "GRU", "RNN", "ConvTranspose", "DynamicQuantizeLSTM")
    domains = {"DynamicQuantizeLSTM": "com.microsoft"}
    nodes = [helper.make_node(kind, ["x", "w", "r"], [kind], domain=domains.get(kind, "")) for kind in kinds]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [])), tmp_path / "m.onnx")
    assert report.products(tmp_path / "m.onnx") == ({"DynamicQuantizeLSTM": 1}, dict.fromkeys(kinds[:-1], 1))
    (note,) = report.int8_notes({"MatMulInteger": 1}, tmp_path / "m.onnx")
    assert note.text == (
        "products with weights in int8: 1 DynamicQuantizeLSTM; in float: 1 ConvTranspose, 1 GRU, 1 LSTM, 1 RNN"
    )


def test_rounding_in_16_bits_is_no_other_computation() -> None:
    require_near(0.004, half=True)
    for difference, half, accepted in ((0.004, False, 0.001), (0.1, True, 0.01), (float("nan"), True, 0.01)):
        with pytest.raises(StepError, match=f"at most {accepted} is accepted; set `fusions: false`"):
            require_near(difference, half=half)


@pytest.mark.integration
def test_a_float16_model_may_differ_by_its_rounding(attention_at: Callable[..., Path], compiled: Callable) -> None:  # type: ignore[type-arg]
    from onnxruntime.transformers.float16 import convert_float_to_float16

    from ioptim.onnx_graph import load_graph, save_graph

    path = attention_at(14)
    save_graph(convert_float_to_float16(load_graph(path), keep_io_types=True), path)
    assert report.half_weights(path) == (False, True)
    outcome, _, _ = compiled(OnnxRuntime(on_unfused="error"), _artifact(path))
    assert 0 < outcome.metrics["fusion_max_difference"] < 1e-2


@pytest.mark.integration
def test_int8_really_runs(linear_qdq: ModelArtifact, compiled: Callable) -> None:  # type: ignore[type-arg]
    outcome, _, _ = compiled(OnnxRuntime(), linear_qdq)
    assert outcome.metrics["int8_products"] == 1
    assert [note.text for note in outcome.notes] == ["all 1 products with weights run in int8: 1 QLinearMatMul"]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not an ONNX file: it is empty"),
        (b"PK\x03\x04zip", "is not an ONNX file: it is a zip archive"),
        (b"<xml/>", "is not an ONNX file: it is text"),
    ],
)
def test_a_file_that_is_not_onnx(tmp_path: Path, target_of: Callable[..., Target], content: bytes, says: str) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    model = ModelArtifact(path=tmp_path, format=Format.ONNX, entry="model.onnx")
    (tmp_path / "out").mkdir()
    with pytest.raises(StepError) as caught:
        OnnxRuntime().compile(model, target_of(OnnxRuntime()), tmp_path / "out")
    assert says in str(caught.value)
    with pytest.raises(StepError, match=r"ONNX Runtime \S+ refused .*model\.onnx"):
        OnnxRuntime().open(model, target_of(OnnxRuntime()))


@pytest.mark.integration
def test_a_provider_that_is_not_there_is_an_error(linear: ModelArtifact, target_of: Callable[..., Target]) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(UnavailableError, match=r"CUDAExecutionProvider is not in the installed onnxruntime \(it has .*CPUExec"):
        OnnxRuntime().open(linear, target_of(OnnxRuntime(), "gpu"))


@pytest.mark.integration
def test_falling_back_to_the_cpu_is_an_error(linear: ModelArtifact, target_of: Callable[..., Target]) -> None:
    """As when CUDA is in the package but its libraries cannot be loaded: the session is there, and runs on the CPU."""
    plain = OnnxRuntime()
    session = plain.open(linear, target_of(plain))._session  # type: ignore[attr-defined]
    with pytest.raises(StepError, match="CUDAExecutionProvider was asked for and ONNX Runtime fell back to CPUExecutionProvider"):
        plain._placement(session, target_of(plain, "gpu"))


@pytest.mark.integration
def test_nodes_left_to_the_cpu_are_an_error_or_counted(linear: ModelArtifact, target_of: Callable[..., Target]) -> None:
    class Half:
        """A session whose first provider is CUDA and whose nodes are on the CPU."""

        def __init__(self, session: object) -> None:
            self.session = session

        def __getattr__(self, name: str) -> object:
            return getattr(self.session, name)

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    plain = OnnxRuntime()
    session = Half(plain.open(linear, target_of(plain))._session)  # type: ignore[attr-defined]
    with pytest.raises(StepError) as caught:
        plain._placement(session, target_of(plain, "gpu"))
    assert "2 nodes have no CUDAExecutionProvider kernel and would run on the CPU: 1 MatMul, 1 Relu" in str(caught.value)
    facts = OnnxRuntime(on_cpu_fallback="count")._placement(session, target_of(plain, "gpu"))
    assert facts["nodes_by_provider"] == {"CPUExecutionProvider": 2}
    assert facts["cpu_fallback"] == {"MatMul": 1, "Relu": 1}


@pytest.mark.integration
def test_a_file_optimized_for_another_cpu(linear: ModelArtifact, target_of: Callable[..., Target]) -> None:
    other = linear.model_copy(update={"facts": {"runtime": "onnxruntime", "instruction_sets": ["x86_64", "avx1024"]}})
    with pytest.raises(StepError, match="was compiled on a CPU with avx1024, which this one does not have; run `compile` here"):
        OnnxRuntime().open(other, target_of(OnnxRuntime()))


@pytest.mark.integration
def test_a_file_laid_out_for_narrower_vectors(
    linear: ModelArtifact, target_of: Callable[..., Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ioptim.runtimes import onnxruntime

    other = linear.model_copy(update={"facts": {"runtime": "onnxruntime", "instruction_sets": ["x86_64", "avx2"]}})
    monkeypatch.setattr(onnxruntime, "_instruction_sets", lambda: ["x86_64", "avx2", "avx512f"])
    with pytest.raises(StepError, match="was compiled on a CPU without avx512f, which this one has: .* promote a run that was made here"):
        OnnxRuntime().open(other, target_of(OnnxRuntime()))
    monkeypatch.setattr(onnxruntime, "_instruction_sets", lambda: ["x86_64", "avx2", "amx_int8"])
    assert OnnxRuntime().open(other, target_of(OnnxRuntime()))


@pytest.mark.integration
def test_wrong_feeds(linear: ModelArtifact, target_of: Callable[..., Target]) -> None:
    import numpy as np

    session = OnnxRuntime().open(linear, target_of(OnnxRuntime()))
    with pytest.raises(StepError, match=r"ONNX Runtime failed on x \[2, 4\] int64"):
        session.run({"x": np.ones((2, 4), np.int64)})
    with pytest.raises(StepError, match=r"failed on z \[2, 4\] float32: Required inputs"):
        session.run({"z": np.ones((2, 4), np.float32)})


def _artifact(path: Path) -> ModelArtifact:
    return seal(ModelArtifact(path=path.parent, format=Format.ONNX, entry=path.name))
