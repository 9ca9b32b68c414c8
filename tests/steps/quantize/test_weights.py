"""Weights in few bits, activations in float: near the float model, and honest about what did not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec, seal, verify
from ioptim.core.step import Outcome, Where
from ioptim.core.target import Hardware
from ioptim.errors import StepError
from ioptim.steps import _outputs
from ioptim.steps.quantize import Quantize


def where(runtime: str = "onnxruntime") -> Where:
    target = SimpleNamespace(name=f"on-{runtime}", device="cpu", runtime=SimpleNamespace(runtime=runtime, execution_provider="auto"))
    hardware = Hardware(cpu_model="", cpu_flags=("avx2", "avx512_vnni"), cores=1, threads=1, memory_bytes=1)
    return Where(format=Format.ONNX, targets=(target,), task=None, hardware=hardware, has_calibration=True)


def run(model: ModelArtifact, ctx: Any, **fields: Any) -> Outcome:
    outcome = Quantize(**fields).resolve(where()).run(model, ctx)
    assert verify(model) == [], "the input was changed"
    assert sorted(path.name for path in ctx.out.iterdir()) == ["model"], "something intermediate was left behind"
    return outcome


def objections(**fields: Any) -> list[str]:
    runtime = fields.pop("runtime", "onnxruntime")
    return Quantize(**fields).resolve(where(runtime)).check(where(runtime))


def test_no_data_is_needed() -> None:
    assert Quantize(scheme="int4-weights").data_roles() == ()
    assert "onnx-ir" in Quantize(scheme="int8-weights").library_names(where())
    assert objections(scheme="int4-weights", blocks={"size": 64, "compute": "float32"}) == []


@pytest.mark.parametrize(("fields", "message"), [
    ({"scheme": "int8-weights", "smooth": 0.5}, "smooth works with int8-dynamic and int8-static, not with int8-weights; remove it"),
    ({"scheme": "int8-dynamic", "correct_bias": False}, "correct_bias works with int8-static, not with int8-dynamic; remove it"),
    (
        {"scheme": "int4-weights", "calibration": {"samples": 4}},
        "calibration works with int8-dynamic and int8-static and openvino-int8, not with int4-weights; remove it",
    ),
    ({"scheme": "int8-static", "blocks": {}}, "blocks works with int8-weights and int4-weights, not with int8-static; remove it"),
    (
        {"scheme": "float16-weights", "reduce_range": "on"},
        "reduce_range works with int8-dynamic and int8-static, not with float16-weights; remove it",
    ),
    ({"scheme": "int4-weights", "activation_type": "uint8"}, "activation_type works with int8-static, not with int4-weights; remove it"),
    (
        {"scheme": "int4-weights", "runtime": "openvino"},
        "scheme int4-weights writes operators that only ONNX Runtime has, and the target on-openvino runs openvino; int8-static runs on"
        " both",
    ),
    ({"scheme": "bfloat16-weights", "operator_types": ["MatMul"]}, "operator_types cannot be chosen with bfloat16-weights; remove it"),
])  # fmt: skip
def test_what_a_scheme_cannot_honour_is_refused(fields: dict[str, Any], message: str) -> None:
    assert objections(**fields) == [message]


def test_a_block_size_that_no_kernel_has() -> None:
    with pytest.raises(ValidationError, match=r"blocks.size\s+Input should be 16, 32, 64, 128 or 256"):
        Quantize(scheme="int4-weights", blocks={"size": 48})


@pytest.mark.integration
@pytest.mark.parametrize(("scheme", "cosine", "ratio"), [("int8-weights", 0.999, 0.6), ("int4-weights", 0.9, 0.6)])
def test_a_bert_in_blocks(tiny_bert_onnx: ModelArtifact, context: Callable[..., Any], scheme: str, cosine: float, ratio: float) -> None:
    from ioptim.onnx_graph import count_ops, fuse_transformer

    ctx = context()
    outcome = run(tiny_bert_onnx, ctx, scheme=scheme)
    assert outcome.metrics["output_cosine_mean"] > cosine
    assert outcome.metrics["size_ratio"] < ratio
    assert {row[0]: (row[1], row[2]) for row in outcome.tables[0].rows} == {"Gather": (3, 3), "Gemm": (2, 2), "MatMul": (16, 12)}
    assert [note.text for note in outcome.notes] == [
        "4 MatMul left in float: multiplies two computed values, there is no weight (node_matmul, node_matmul_1, node_matmul_2 and 1 more)"
    ]
    assert count_ops(ctx.out / "model" / "model.onnx")["MatMulNBits"] == 14
    fused = ctx.out / "fused.onnx"
    fuse_transformer(ctx.out / "model" / "model.onnx", fused)  # as a runtime does when it compiles
    feeds = [ctx.task.dummy_feeds(tiny_bert_onnx, 2, 6)]
    before, after = (_outputs.run_onnx(path, feeds, 1) for path in (ctx.out / "model" / "model.onnx", fused))
    assert _outputs.cosine_mean(after, before) > 0.9999


@pytest.mark.integration
def test_an_embedding_has_a_scale_for_each_row(make_onnx: Callable[..., ModelArtifact], context: Callable[..., Any]) -> None:
    """Rows of very different size: with one scale for all, the small ones would be lost."""
    import numpy as np
    from onnx import helper

    table = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32) * np.array([[1e-4], [1], [100], [0]], np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], "index", to=7),
        helper.make_node("Clip", ["i", "first", "last"], ["row"], "clip"),
        helper.make_node("Gather", ["table", "row"], ["e"], "words"),
        helper.make_node("ReduceSum", ["e", "axes"], ["y"], "sum", keepdims=0),
    ]
    weights = {"table": table, "first": np.array(0), "last": np.array(3), "axes": np.array([2])}
    model = make_onnx(nodes, weights, {"x": 8}, {"y": 8})
    outcome = run(model, context(), scheme="int8-weights")
    assert outcome.metrics["layers_quantized"] == outcome.metrics["layers_total"] == 1
    assert outcome.metrics["output_cosine_mean"] > 0.999


@pytest.mark.integration
def test_a_matrix_that_blocks_do_not_divide(make_onnx: Callable[..., ModelArtifact], context: Callable[..., Any]) -> None:
    import numpy as np
    from onnx import helper

    draw = np.random.default_rng(0)
    weights = {"a": draw.normal(size=(64, 48)).astype(np.float32), "b": draw.normal(size=(4, 48)).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"], "even"), helper.make_node("Gemm", ["h", "b"], ["y"], "odd", transB=1)]
    model = make_onnx(nodes, weights, {"x": 64}, {"y": 4})
    with pytest.raises(StepError) as caught:
        run(model, context(), scheme="int4-weights")
    assert str(caught.value) == (
        "1 of 2 layers could not be quantized: 1 Gemm left in float: its 48 inputs are no multiple of blocks.size 32 (odd). Name them in"
        " `exclude_nodes`, or set `on_unsupported: skip` to leave them in float"
    )
    outcome = run(model, context(), scheme="int4-weights", on_unsupported="skip")
    assert (outcome.metrics["layers_quantized"], outcome.metrics["layers_unsupported"]) == (1, 1)
    assert run(model, context(), scheme="int4-weights", blocks={"size": 16}).metrics["layers_quantized"] == 2


@pytest.mark.integration
@pytest.mark.parametrize(("scheme", "worst"), [("float16-weights", 1e-3), ("bfloat16-weights", 1e-2)])
def test_sixteen_bits_halve_the_weights(
    tiny_bert: ModelArtifact, tiny_bert_onnx: ModelArtifact, context: Callable[..., Any], scheme: str, worst: float
) -> None:
    outcome = run(tiny_bert_onnx, context(), scheme=scheme)
    assert outcome.metrics["layers_quantized"] == outcome.metrics["layers_total"] == 17
    assert 0 < outcome.metrics["output_max_abs_difference"] < 10 * worst
    saved = outcome.metrics["size_before_bytes"] - outcome.metrics["size_after_bytes"]
    assert saved > 0.4 * tiny_bert.size_bytes, "nearly half of what the weights are; the rest of so small a file is its graph"


@pytest.mark.integration
def test_a_weight_beyond_float16_is_not_clipped(make_onnx: Callable[..., ModelArtifact], context: Callable[..., Any]) -> None:
    import numpy as np
    from onnx import helper

    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "wide")]
    model = make_onnx(nodes, {"w": np.full((4, 4), 1e5, np.float32)}, {"x": 4}, {"y": 4})
    with pytest.raises(StepError) as caught:
        run(model, context(), scheme="float16-weights")
    assert str(caught.value) == (
        "float16-weights changed nothing: 1 MatMul left in float: its weight holds values beyond float16's 65504 (wide)"
    )
    assert run(model, context(), scheme="bfloat16-weights").metrics["layers_quantized"] == 1


@pytest.mark.integration
@pytest.mark.parametrize("scheme", ["int8-weights", "int4-weights", "float16", "float16-weights", "bfloat16-weights"])
def test_weights_that_are_listed_as_inputs_too(make_onnx: Callable[..., ModelArtifact], context: Callable[..., Any], scheme: str) -> None:
    """As every file of IR 3 has them, and what an exporter writes with keep_initializers_as_inputs."""
    import numpy as np
    import onnx
    from onnx import helper

    draw = np.random.default_rng(0)
    weights = {name: draw.normal(size=(32, 32)).astype(np.float32) for name in "EW"}
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], "index", to=7),
        helper.make_node("Gather", ["E", "i"], ["e"], "words"),
        helper.make_node("ReduceMean", ["e"], ["m"], "mean", axes=[1], keepdims=0),
        helper.make_node("MatMul", ["m", "W"], ["y"], "product"),
    ]
    made = make_onnx(nodes, weights, {"x": 8}, {"y": 32})
    model = onnx.load(made.model_path)
    model.ir_version, model.opset_import[0].version = 3, 12
    model.graph.node.insert(0, helper.make_node("Clip", ["x", "zero", "last"], ["c"], "clip"))
    model.graph.node[1].input[0] = "c"
    model.graph.initializer.extend(helper.make_tensor(name, 1, [], [value]) for name, value in {"zero": 0.0, "last": 31.0}.items())
    model.graph.input.extend(helper.make_tensor_value_info(t.name, 1, list(t.dims)) for t in model.graph.initializer)
    onnx.save(model, made.model_path)
    model = seal(made.model_copy(update={"digest": ""}))
    outcome = run(model, context(), scheme=scheme)
    assert outcome.metrics["layers_quantized"] == outcome.metrics["layers_total"] == 2
    assert outcome.metrics["output_cosine_mean"] > 0.9
    assert outcome.notes[0].text == "converted from opset 12 to 13, the oldest that graphs are rewritten in"


@pytest.mark.integration
def test_a_weight_in_a_constant_is_a_weight(make_onnx: Callable[..., ModelArtifact], context: Callable[..., Any]) -> None:
    import numpy as np
    from onnx import helper, numpy_helper

    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    nodes = [
        helper.make_node("Constant", [], ["W"], "constant", value=numpy_helper.from_array(weight)),
        helper.make_node("MatMul", ["x", "W"], ["y"], "product"),
    ]
    model = make_onnx(nodes, {}, {"x": 64}, {"y": 64})
    outcome = run(model, context(), scheme="float16-weights")
    assert outcome.metrics["layers_quantized"] == outcome.metrics["layers_total"] == 1
    assert outcome.metrics["size_ratio"] < 0.6


@pytest.mark.integration
@pytest.mark.parametrize("scheme", ["float16-weights", "float16"])
def test_a_weight_that_an_excluded_layer_reads_stays_in_float(
    make_onnx: Callable[..., ModelArtifact], context: Callable[..., Any], scheme: str
) -> None:
    import numpy as np
    import onnx
    from onnx import helper

    draw = np.random.default_rng(0)
    weights = {name: draw.normal(size=(32, 32)).astype(np.float32) for name in "EW"}
    nodes = [
        helper.make_node("MatMul", ["x", "E"], ["h"], "encode"),
        helper.make_node("MatMul", ["h", "W"], ["g"], "between"),
        helper.make_node("Gemm", ["g", "E"], ["y"], "decode", transB=1),
    ]
    ctx = context()
    outcome = run(make_onnx(nodes, weights, {"x": 32}, {"y": 32}), ctx, scheme=scheme, exclude_nodes=["decode"])
    assert [note.text for note in outcome.notes] == [
        "1 MatMul left in float: shares its weight with a layer that the recipe excludes (encode)",
        "1 Gemm left in float: excluded by the recipe (decode)",
    ]
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(ctx.out / "model" / "model.onnx").graph.initializer}
    assert stored["E"] == 1, "float32"


@pytest.mark.integration
@pytest.mark.parametrize("scheme", ["int8-weights", "bfloat16-weights", "int8-dynamic"])
@pytest.mark.parametrize(("opset", "flat"), [(11, False), (14, True)])
def test_attention_of_older_exporters(
    attention_at: Callable[..., Path], context: Callable[..., Any], scheme: str, opset: int, flat: bool
) -> None:
    blocks = {"blocks": {"size": 16}, "on_unsupported": "skip"} if scheme == "int8-weights" else {}
    outcome = run(_attention(attention_at(opset, flat=flat)), context(), scheme=scheme, **blocks)
    assert outcome.metrics["output_cosine_mean"] > 0.99
    assert ("fused_Attention" in outcome.metrics) == (scheme == "int8-dynamic" and not flat)


@pytest.mark.integration
def test_a_spelling_that_does_not_run_is_not_taken(
    attention_at: Callable[..., Path], context: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ioptim.steps import _float_graph

    def misspell(model: Any) -> None:
        next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "Soft"

    monkeypatch.setattr(_float_graph, "canonicalize", misspell)
    outcome = run(_attention(attention_at(14)), context(), scheme="int8-weights", on_unsupported="skip")
    note = outcome.notes[0]
    assert note.text.startswith("left as exported, for a faster spelling of it does not compute the same: ONNX Runtime cannot run spelled")
    assert note.level.value == "warning"


def _attention(path: Path) -> ModelArtifact:
    inputs = tuple(TensorSpec(name=name, dtype="int64", shape=("batch", "sequence")) for name in ("input_ids", "attention_mask"))
    outputs = (TensorSpec(name="y", dtype="float32", shape=("batch", "sequence", 8)),)
    return seal(ModelArtifact(path=path.parent, format=Format.ONNX, entry=path.name, inputs=inputs, outputs=outputs))
