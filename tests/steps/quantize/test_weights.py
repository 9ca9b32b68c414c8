"""Weights in few bits, activations in float: near the float model, and honest about what did not fit."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from ioptim.core.artifact import Format, ModelArtifact, verify
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
    ({"scheme": "int8-weights", "smooth": 0.5}, "smooth works with int8-static, not with int8-weights; remove it"),
    ({"scheme": "int8-dynamic", "correct_bias": False}, "correct_bias works with int8-static, not with int8-dynamic; remove it"),
    (
        {"scheme": "int8-dynamic", "calibration": {"samples": 4}},
        "calibration works with int8-static and openvino-int8, not with int8-dynamic; remove it",
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
