"""OpenVINO: the IR computes the same, in the precision that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from ioptim.core.artifact import Format, ModelArtifact, verify
from ioptim.core.runtime import Target
from ioptim.core.target import Hardware
from ioptim.errors import StepError
from ioptim.runtimes.openvino import OpenVino, _reason


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValidationError):
        OpenVino(inference_precision="fp32")  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        OpenVino(num_streams=0)


def test_objections(target_of: Callable[..., Target], no_gpu: Hardware, one_gpu: Hardware) -> None:
    assert OpenVino().check(target_of(OpenVino()), no_gpu) == []
    assert OpenVino().check(target_of(OpenVino(), "gpu"), one_gpu) == [
        "openvino runs on the CPU; the target here asks for gpu. Write `device: cpu`, or for an NVIDIA GPU the runtime onnxruntime,"
        " tensorrt or torch"
    ]
    half = OpenVino(inference_precision="f16")
    assert half.check(target_of(half), no_gpu) == ["f16 needs a CPU with one of amx_fp16, asimdhp, avx512_fp16; A CPU has avx2. Use f32"]


def test_reason_leaves_out_places_in_the_source() -> None:
    text = "Exception from src/core.cpp:84:\nCheck 'false' failed at src/report.cpp:151:\nFrontEnd API failed with X:\nIt is broken.\n\n"
    assert _reason(RuntimeError(text)) == "It is broken."


@pytest.mark.integration
def test_self_check(target_of: Callable[..., Target]) -> None:
    assert OpenVino().self_check(target_of(OpenVino())) == [2.0, 4.0, 6.0]


@pytest.mark.integration
def test_outputs_dynamic_batch_and_facts(linear: ModelArtifact, compiled: Callable, target_of: Callable[..., Target]) -> None:  # type: ignore[type-arg]
    import numpy as np

    outcome, artifact, session = compiled(OpenVino(), linear)
    weight = np.subtract.outer(np.arange(4), np.arange(3)).astype(np.float32)
    for batch in (1, 5):
        x = np.random.default_rng(batch).standard_normal((batch, 4)).astype(np.float32)
        np.testing.assert_allclose(session.run({"x": x})["y"], np.maximum(x @ weight, 0), rtol=1e-5, atol=1e-6)
    assert session.facts["inference_precision"] == "float32"
    assert session.facts["threads"] == 1 and session.facts["num_streams"] == 1
    assert artifact.facts == {"runtime": "openvino"}
    assert outcome.metrics["float_products"] == 1 and outcome.metrics["int8_products"] == 0
    assert outcome.notes == ()
    assert verify(artifact) == [] and verify(linear) == []
    # Opened as ONNX too, without compiling.
    np.testing.assert_allclose(OpenVino().open(linear, target_of(OpenVino())).run({"x": x})["y"], session.run({"x": x})["y"])


@pytest.mark.integration
def test_results_are_not_overwritten_by_the_next_run(linear: ModelArtifact, target_of: Callable[..., Target]) -> None:
    import numpy as np

    session = OpenVino().open(linear, target_of(OpenVino()))
    first = session.run({"x": np.ones((1, 4), np.float32)})["y"]
    kept = first.copy()
    session.run({"x": np.full((1, 4), 7, np.float32)})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.integration
def test_int64_inputs_of_a_bert(bert: ModelArtifact, compiled: Callable) -> None:  # type: ignore[type-arg]
    import numpy as np

    _, artifact, session = compiled(OpenVino(), bert)
    assert artifact.inputs == bert.inputs
    feeds = {"input_ids": np.arange(18).reshape(2, 9), "attention_mask": np.ones((2, 9), np.int64)}
    assert session.run(feeds)["last_hidden_state"].shape == (2, 9, 64)


@pytest.mark.integration
def test_int8_really_runs(linear_qdq: ModelArtifact, compiled: Callable) -> None:  # type: ignore[type-arg]
    outcome, _, _ = compiled(OpenVino(), linear_qdq)
    assert outcome.metrics["int8_products"] == 1
    assert [note.text for note in outcome.notes] == ["all 1 products with weights run in int8"]


@pytest.mark.integration
@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_a_recurrent_layer_is_a_product(tmp_path: Path, target_of: Callable[..., Target], kind: str, gates: int) -> None:
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    weights = [numpy_helper.from_array(np.ones((1, gates * 4, width), np.float32), name) for name, width in (("w", 3), ("r", 4))]
    values = [helper.make_tensor_value_info("x", 1, ["steps", 2, 3]), helper.make_tensor_value_info("y", 1, ["steps", 1, 2, 4])]
    graph = helper.make_graph([helper.make_node(kind, ["x", "w", "r"], ["y"], hidden_size=4)], "g", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "model.onnx")
    model = ModelArtifact(path=tmp_path, format=Format.ONNX, entry="model.onnx")
    (tmp_path / "out").mkdir()
    outcome = OpenVino().compile(model, target_of(OpenVino()), tmp_path / "out")
    assert (outcome.metrics["int8_products"], outcome.metrics["float_products"]) == (0, 1)


@pytest.mark.integration
def test_a_precision_that_openvino_does_not_keep(linear: ModelArtifact, target_of: Callable[..., Target]) -> None:
    import openvino

    if "FP16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU computes in float16")
    half = OpenVino(inference_precision="f16")
    with pytest.raises(StepError, match=r"inference_precision f16 was asked for; on this CPU OpenVINO would compute in (bfloat16|float32)"):
        half.open(linear, target_of(half))


@pytest.mark.integration
def test_a_file_that_cannot_be_read(tmp_path: Path, target_of: Callable[..., Target]) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    model = ModelArtifact(path=tmp_path, format=Format.ONNX, entry="model.onnx")
    with pytest.raises(StepError, match=r"OpenVINO \S+ cannot read .*model\.onnx: "):
        OpenVino().open(model, target_of(OpenVino()))


@pytest.mark.integration
def test_operators_of_onnx_runtime_alone(linear: ModelArtifact, target_of: Callable[..., Target]) -> None:
    import onnx

    proto = onnx.load(str(linear.model_path))
    proto.graph.node[1].op_type = "QAttention"
    proto.graph.node[1].domain = "com.microsoft"
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(proto, str(linear.model_path))
    with pytest.raises(StepError) as caught:
        OpenVino().open(linear, target_of(OpenVino()))
    assert "No conversion rule found for operations: com.microsoft.QAttention. These operators are ONNX Runtime's own" in str(caught.value)


@pytest.mark.integration
def test_wrong_feeds(linear: ModelArtifact, target_of: Callable[..., Target]) -> None:
    import numpy as np

    session = OpenVino().open(linear, target_of(OpenVino()))
    with pytest.raises(StepError, match="the input x takes float32; it was fed int64"):
        session.run({"x": np.ones((2, 4), np.int64)})
    with pytest.raises(StepError, match=r"OpenVINO failed on x \[2, 5\] float32"):
        session.run({"x": np.ones((2, 5), np.float32)})
