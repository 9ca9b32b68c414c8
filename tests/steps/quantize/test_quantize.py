"""Every scheme stays near the float model, says what became of each layer, and refuses what it cannot do."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from ioptim.core.artifact import Format, ModelArtifact, seal, verify
from ioptim.core.step import Level, Outcome, Where
from ioptim.core.target import Hardware
from ioptim.errors import StepError
from ioptim.steps._layers import COMPUTED, EXCLUDED, LEFT, NOT_ASKED, Layer, choose, metrics, notes, table
from ioptim.steps.quantize import SCHEMES, Quantize, Scheme

VNNI = ("avx2", "avx512f", "avx512_vnni")


def where(*runtimes: str, device: str = "cpu", flags: tuple[str, ...] = VNNI, provider: str = "auto") -> Where:
    targets = tuple(
        SimpleNamespace(name=f"on-{name}", device=device, runtime=SimpleNamespace(runtime=name, execution_provider=provider))
        for name in runtimes or ("onnxruntime",)
    )
    hardware = Hardware(cpu_model="", cpu_flags=flags, cores=1, threads=1, memory_bytes=1)
    return Where(format=Format.ONNX, targets=targets, task=None, hardware=hardware, has_calibration=True)


# What the plan is told


def test_every_scheme_but_bfloat16_can_be_carried_out() -> None:
    assert set(Scheme) - set(SCHEMES) == {Scheme.BFLOAT16}


@pytest.mark.parametrize(("scheme", "runtimes", "fuse"), [
    ("int8-dynamic", ("onnxruntime",), "on"),
    ("int8-dynamic", ("onnxruntime", "openvino"), "off"),
    ("int8-static", ("onnxruntime",), "off"),
    ("openvino-int8", ("openvino",), "off"),
])  # fmt: skip
def test_auto_fuses_where_the_fused_operators_have_int8_kernels(scheme: str, runtimes: tuple[str, ...], fuse: str) -> None:
    assert Quantize(scheme=scheme).resolve(where(*runtimes)).fuse == fuse


@pytest.mark.parametrize(("flags", "reduced"), [
    (VNNI, "off"),
    (("avx2",), "on"),
    (("avx2", "avx512f"), "on"),
    (("avx2", "avx_vnni"), "off"),
    (("asimd",), "off"),
])  # fmt: skip
def test_auto_reduces_the_range_where_sums_saturate(flags: tuple[str, ...], reduced: str) -> None:
    assert Quantize(scheme="int8-dynamic").resolve(where(flags=flags)).reduce_range == reduced
    assert Quantize(scheme="int8-dynamic", reduce_range="off").resolve(where(flags=flags)).reduce_range == "off"


def test_auto_activations_are_what_the_runtime_takes() -> None:
    assert Quantize(scheme="int8-static").resolve(where()).activation_type == "uint8"
    assert Quantize(scheme="int8-static").resolve(where("tensorrt", device="gpu")).activation_type == "int8"
    assert Quantize(scheme="int8-static").resolve(where(device="gpu", provider="tensorrt")).activation_type == "int8"


def test_data_libraries_and_formats_go_with_the_scheme() -> None:
    found = {tag: (Quantize(scheme=tag).data_roles(), Quantize(scheme=tag).produces(where()).value) for tag in SCHEMES}
    assert found == {
        "int8-dynamic": ((), "onnx"),
        "int8-static": (("calibration",), "onnx"),
        "openvino-int8": (("calibration",), "openvino"),
        "int8-weights": ((), "onnx"),
        "int4-weights": ((), "onnx"),
        "float16": ((), "onnx"),
        "float16-weights": ((), "onnx"),
        "bfloat16-weights": ((), "onnx"),
    }
    assert "nncf" in Quantize(scheme="openvino-int8").library_names(where())
    assert "nncf" not in Quantize(scheme="int8-static").library_names(where())


@pytest.mark.parametrize(("fields", "place", "message"), [
    (
        {"scheme": "bfloat16"},
        where(),
        "scheme bfloat16 is not a change of the model here: ONNX Runtime has no bfloat16 kernels for CPUs. OpenVINO and torch compute in"
        " it themselves: leave this step out and set `inference_precision: bf16` on a target with `runtime: openvino`",
    ),
    (
        {"scheme": "float16"},
        where(),
        "scheme float16 is slower than float32 on on-onnxruntime: ONNX Runtime has next to no float16 kernels for CPUs and converts back"
        " and forth. Use int8-dynamic there, or a gpu target",
    ),
    (
        {"scheme": "openvino-int8"},
        where("openvino", "onnxruntime"),
        "scheme openvino-int8 writes an OpenVINO model, which on-onnxruntime (onnxruntime) cannot run; int8-static runs on both",
    ),
    (
        {"scheme": "openvino-int8", "calibration": {"method": "entropy"}},
        where("openvino"),
        "calibration.method entropy is for int8-static; openvino-int8 has NNCF's minmax only",
    ),
    (
        {"scheme": "int8-static", "calibration": {"percentile": 99.9}},
        where(),
        "calibration.percentile is for calibration.method percentile, not for minmax; remove it",
    ),
    (
        {"scheme": "openvino-int8", "calibration": {"percentile": 99.9}},
        where("openvino"),
        "calibration.percentile is for int8-static with calibration.method percentile; remove it",
    ),
    (
        {"scheme": "int8-dynamic", "calibration": {"samples": 9}},
        where(),
        "calibration is for `smooth` with int8-dynamic, whose activations are measured at every run; remove it",
    ),
    (
        {"scheme": "int8-dynamic", "smooth": 0.8, "calibration": {"method": "mse"}},
        where(),
        "calibration.method and percentile are of fixed ranges, which int8-dynamic has not; remove them",
    ),
    (
        {"scheme": "int8-weights", "smooth": 0.8},
        where(),
        "smooth works with int8-dynamic and int8-static, not with int8-weights; remove it",
    ),
    (
        {"scheme": "openvino-int8", "operator_types": ["MatMul"]},
        where("openvino"),
        "operator_types cannot be chosen with openvino-int8; remove it",
    ),
    (
        {"scheme": "int8-dynamic"},
        where(device="gpu"),
        "scheme int8-dynamic has no GPU kernels, and on-onnxruntime is one; use float16, or int8-static with `runtime: tensorrt`",
    ),
    (
        {"scheme": "int8-static", "activation_type": "int8"},
        where(),
        "activation_type int8 has no int8 kernel in ONNX Runtime on x86 CPUs (measured 15 times slower than uint8) and on-onnxruntime is"
        " one; use uint8",
    ),
    (
        {"scheme": "int8-static", "operator_types": ["Matmul"]},
        where(),
        "int8-static cannot quantize the operator 'Matmul'; did you mean 'MatMul'? It knows Add, AveragePool, Clip, Concat, Conv,"
        " ConvTranspose, Flatten, Gather, Gemm, GlobalAveragePool, MatMul, MaxPool, Relu, Reshape, Squeeze, Transpose, Unsqueeze",
    ),
    (
        {"scheme": "int8-static", "fuse": "on"},
        where(),
        "fuse: on works with int8-dynamic only, not with int8-static: ONNX Runtime has no kernel for a fused Attention with static ranges"
        " and multiplies it in float, slower than not quantized at all. Use auto or off",
    ),
    (
        {"scheme": "int8-dynamic", "fuse": "on"},
        where("openvino"),
        "fuse: on writes operators that only ONNX Runtime has, and the target on-openvino runs openvino; use auto or off",
    ),
])  # fmt: skip
def test_objections(fields: dict[str, Any], place: Where, message: str) -> None:
    step = Quantize(**fields).resolve(place)
    assert step.check(place) == [message]


def test_what_works_has_no_objection() -> None:
    assert Quantize(scheme="int8-dynamic").resolve(where()).check(where()) == []
    smoothed = Quantize(scheme="int8-dynamic", smooth=0.8, calibration={"samples": 9, "batch_size": 2}).resolve(where())
    assert (smoothed.check(where()), smoothed.data_roles()) == ([], ("calibration",))
    assert Quantize(scheme="int8-dynamic").data_roles() == ()
    both = where("onnxruntime", "openvino")
    assert Quantize(scheme="int8-static").resolve(both).check(both) == []
    assert Quantize(scheme="int8-static", calibration={"method": "percentile", "percentile": 99.9}).resolve(both).check(both) == []
    assert Quantize(scheme="openvino-int8").resolve(where("openvino")).check(where("openvino")) == []


def test_a_broken_pattern_is_a_mistake_in_the_recipe() -> None:
    with pytest.raises(ValidationError, match=r"'\(conv' is neither a plain name nor a regular expression"):
        Quantize(scheme="int8-static", exclude_nodes=["(conv"])


# Layers


LAYERS = [
    Layer("query", "MatMul", "w0"),
    Layer("key", "MatMul", "w1"),
    Layer("scores", "MatMul", "", COMPUTED),
    Layer("words", "Gather", "w2"),
    Layer("half", "Gemm", "w3", "its weight is float16"),
]


def test_layers_are_chosen_by_kind_and_name() -> None:
    chosen = choose(LAYERS, {"MatMul", "Gemm"}, ["k.y"])
    assert [layer.why for layer in chosen] == ["", EXCLUDED, COMPUTED, NOT_ASKED, "its weight is float16"]
    assert metrics(chosen) == {"layers_quantized": 1, "layers_total": 4, "layers_unsupported": 1}
    assert table(chosen).rows == (
        ("Gather", 1, 0, 1, f"{NOT_ASKED} (1)"),
        ("Gemm", 1, 0, 1, "its weight is float16 (1)"),
        ("MatMul", 3, 1, 2, f"{EXCLUDED} (1); {COMPUTED} (1)"),
    )
    assert [(note.level, note.text) for note in notes(chosen)] == [
        (Level.INFO, "1 MatMul left in float: excluded by the recipe (key)"),
        (Level.INFO, "1 MatMul left in float: multiplies two computed values, there is no weight (scores)"),
        (Level.INFO, "1 Gather left in float: operator type not asked for (words)"),
        (Level.WARNING, "1 Gemm left in float: its weight is float16 (half)"),
    ]


def test_an_exclusion_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(StepError) as caught:
        choose(LAYERS, {"MatMul"}, ["que"])
    assert str(caught.value) == "exclude_nodes: 'que' matches no layer. The layers here are called query, key, scores, words, half"


# The schemes on real runtimes


def run(model: ModelArtifact, ctx: Any, on: Where | None = None, **fields: Any) -> Outcome:
    outcome = Quantize(**fields).resolve(on or where()).run(model, ctx)
    assert verify(model) == [], "the input was changed"
    assert sorted(path.name for path in ctx.out.iterdir()) == ["model"], "something intermediate was left behind"
    return outcome


def kinds(outcome: Outcome) -> dict[str, tuple[Any, ...]]:
    """(total, quantized) by kind of layer."""
    return {str(row[0]): (row[1], row[2]) for row in outcome.tables[0].rows}


@pytest.mark.integration
def test_dynamic_fuses_and_quantizes_a_bert(tiny_bert_onnx: ModelArtifact, context: Callable[..., Any]) -> None:
    from ioptim.onnx_graph import count_ops

    ctx = context()
    outcome = run(tiny_bert_onnx, ctx, scheme="int8-dynamic")
    assert kinds(outcome) == {"Attention": (1, 1), "EmbedLayerNormalization": (1, 1), "Gemm": (2, 2), "MatMul": (9, 9)}
    assert outcome.metrics["output_cosine_mean"] > 0.99
    assert outcome.metrics["size_ratio"] < 0.5
    assert outcome.metrics["layers_quantized"] == outcome.metrics["layers_total"] == 13
    assert [note.text for note in outcome.notes] == [
        "fused before quantization: 1 Attention, 1 EmbedLayerNormalization, 2 Gelu, 1 MultiHeadAttention;"
        " 12 nodes compute only the token that is read"
    ]
    ops = count_ops(ctx.out / "model" / "model.onnx")
    assert (ops["QAttention"], ops["QEmbedLayerNormalization"], ops["MatMulInteger"]) == (1, 1, 11)


@pytest.mark.integration
@pytest.mark.parametrize(("fuse", "told"), [("on", "0 by the node before, 9"), ("off", "2 by the node before, 8")])
def test_dynamic_smoothed(tiny_bert_onnx: ModelArtifact, context: Callable[..., Any], fuse: str, told: str) -> None:
    plain = run(tiny_bert_onnx, context(), scheme="int8-dynamic", fuse=fuse)
    outcome = run(tiny_bert_onnx, context(), scheme="int8-dynamic", fuse=fuse, smooth=0.5, calibration={"samples": 8})
    assert kinds(outcome) == kinds(plain)
    assert outcome.metrics["output_cosine_mean"] > 0.98
    assert outcome.metrics["calibration_samples"] == 8
    assert f"smoothed the inputs of linear layers: {told} by a Mul put in" in [note.text for note in outcome.notes]


@pytest.mark.integration
def test_static_quantizes_a_bert_but_not_its_scores(tiny_bert_onnx: ModelArtifact, context: Callable[..., Any]) -> None:
    outcome = run(tiny_bert_onnx, context(), scheme="int8-static", calibration={"samples": 8})
    assert kinds(outcome) == {"Gather": (3, 3), "Gemm": (2, 2), "MatMul": (16, 12)}
    assert outcome.metrics["output_cosine_mean"] > 0.98
    assert outcome.metrics["calibration_samples"] == 8
    assert [note.text for note in outcome.notes] == [
        "biases corrected: 12 of 14 layers with a matrix",  # torch exported the others without: all were zero
        "4 MatMul left in float: multiplies two computed values, there is no weight (node_matmul, node_matmul_1, node_matmul_2 and 1 more)"
    ]


@pytest.mark.integration
def test_static_smoothed_and_corrected(tiny_bert_onnx: ModelArtifact, context: Callable[..., Any]) -> None:
    outcome = run(tiny_bert_onnx, context(), scheme="int8-static", calibration={"samples": 8}, smooth=0.5, correct_bias=True)
    assert kinds(outcome) == {"Gather": (3, 3), "Gemm": (2, 2), "MatMul": (16, 12)}
    assert outcome.metrics["output_cosine_mean"] > 0.98
    assert outcome.notes[0].text == "smoothed the inputs of linear layers: 2 by the node before, 8 by a Mul put in"
    assert outcome.notes[1].text == "biases corrected: 12 of 14 layers with a matrix", "the two Gemms came without one"


@pytest.mark.integration
@pytest.mark.parametrize("method", ["entropy", "percentile", "mse"])
def test_histograms_take_rows_of_several_lengths(tiny_bert_onnx: ModelArtifact, context: Callable[..., Any], method: str) -> None:
    outcome = run(tiny_bert_onnx, context(), scheme="int8-static", calibration={"method": method, "samples": 6})
    assert outcome.metrics["output_cosine_mean"] > 0.9
    warnings = [note.text for note in outcome.notes if note.level is Level.WARNING]
    entropy = "calibration.method entropy cuts off the rare large values that transformers live on; use minmax, mse or percentile"
    assert warnings == ([entropy] if method == "entropy" else [])


@pytest.mark.integration
def test_static_keeps_int8_between_convolutions(tiny_cnn_onnx: ModelArtifact, context: Callable[..., Any]) -> None:
    from ioptim.onnx_graph import count_ops

    ctx = context()
    outcome = run(tiny_cnn_onnx, ctx, scheme="int8-static", calibration={"samples": 16, "batch_size": 4})
    assert kinds(outcome) == {"Conv": (2, 2), "Gemm": (1, 1)}
    assert outcome.metrics["output_cosine_mean"] > 0.99
    ops = count_ops(ctx.out / "model" / "model.onnx")
    assert "BatchNormalization" not in ops, "it belongs into the convolution before its weight is rounded"
    assert ops["QuantizeLinear"] >= 4


@pytest.mark.integration
def test_float16_keeps_its_inputs_and_outputs(tiny_bert_onnx: ModelArtifact, context: Callable[..., Any]) -> None:
    import onnx

    ctx = context()
    outcome = run(tiny_bert_onnx, ctx, where("openvino"), scheme="float16")
    assert kinds(outcome) == {"Gather": (3, 3), "Gemm": (2, 2), "MatMul": (12, 12)}
    assert outcome.metrics["output_max_abs_difference"] < 0.05
    graph = onnx.load(ctx.out / "model" / "model.onnx").graph
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.integration
def test_openvino_int8(tiny_cnn_onnx: ModelArtifact, context: Callable[..., Any]) -> None:
    pytest.importorskip("nncf")
    ctx = context()
    outcome = run(tiny_cnn_onnx, ctx, where("openvino"), scheme="openvino-int8", calibration={"samples": 16})
    assert kinds(outcome) == {"Convolution": (2, 2), "MatMul": (1, 1)}
    assert outcome.metrics["output_cosine_mean"] > 0.99
    assert outcome.written is not None and outcome.written.format is Format.OPENVINO
    assert sorted(path.name for path in (ctx.out / "model").iterdir()) == ["model.bin", "model.xml"]


@pytest.mark.integration
def test_what_the_recipe_leaves_out_stays_in_float(tiny_cnn_onnx: ModelArtifact, context: Callable[..., Any]) -> None:
    outcome = run(tiny_cnn_onnx, context(), scheme="int8-static", exclude_nodes=["conv1", "class.*"], calibration={"samples": 30})
    assert kinds(outcome) == {"Conv": (2, 1), "Gemm": (1, 0)}
    assert [(note.level, note.text) for note in outcome.notes] == [
        (Level.WARNING, "calibrated on all 24 rows of data.tsv; 30 were asked for"),
        (Level.INFO, "biases corrected: 0 of 1 layers with a matrix"),
        (Level.INFO, "1 Conv left in float: excluded by the recipe (conv1)"),
        (Level.INFO, "1 Gemm left in float: excluded by the recipe (classifier)"),
    ]


@pytest.mark.integration
def test_static_quantizes_by_channel_in_an_older_opset(make_onnx: Callable[..., ModelArtifact], context: Callable[..., Any]) -> None:
    import numpy as np
    import onnx
    from onnx import helper

    draw = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "product"), helper.make_node("Relu", ["h"], ["y"], "relu")]
    made = make_onnx(nodes, {"w": draw.normal(size=(16, 8)).astype(np.float32)}, {"x": 16}, {"y": 8})
    model = onnx.load(made.model_path)
    model.opset_import[0].version = 11
    onnx.save(model, made.model_path)
    outcome = run(seal(made.model_copy(update={"digest": ""})), context(), scheme="int8-static")
    assert outcome.metrics["layers_quantized"] == 1
    assert outcome.metrics["output_cosine_mean"] > 0.99


@pytest.mark.integration
def test_what_lies_between_convolutions_can_be_left_in_float(
    make_onnx: Callable[..., ModelArtifact], context: Callable[..., Any]
) -> None:
    import numpy as np
    import onnx
    from onnx import helper

    draw = np.random.default_rng(0)
    weights = {name: draw.normal(size=(4, 4, 1, 1)).astype(np.float32) for name in ("w1", "w2")}
    weights |= {"image": np.array([-1, 4, 2, 2]), "row": np.array([-1, 16])}
    nodes = [
        helper.make_node("Reshape", ["x", "image"], ["i"], "image"),
        helper.make_node("Conv", ["i", "w1"], ["c1"], "conv1"),
        helper.make_node("Conv", ["c1", "w2"], ["c2"], "conv2"),
        helper.make_node("Add", ["c1", "c2"], ["a"], "residual_add"),
        helper.make_node("Sigmoid", ["a"], ["s"], "sigmoid"),
        helper.make_node("Reshape", ["s", "row"], ["y"], "row"),
    ]
    model = make_onnx(nodes, weights, {"x": 16}, {"y": 16})
    made = {}
    for excluded in ([], ["residual_add"], ["conv2|residual_add"]):
        ctx = context()
        outcome = run(model, ctx, scheme="int8-static", exclude_nodes=excluded)
        graph = onnx.load(ctx.out / "model" / "model.onnx").graph
        add = next(node for node in graph.node if node.name == "residual_add")
        made["".join(excluded)] = any(node.op_type == "QuantizeLinear" and node.input[0] == add.output[0] for node in graph.node)
    assert made == {"": True, "residual_add": False, "conv2|residual_add": False}
    text = "1 nodes without weights left in float: excluded by the recipe (residual_add)"
    assert text in [note.text for note in outcome.notes]
    with pytest.raises(StepError, match="exclude_nodes: 'sigmoid' matches no layer"):
        run(model, context(), scheme="int8-static", exclude_nodes=["sigmoid"])


@pytest.mark.integration
def test_changing_nothing_is_an_error(tiny_cnn_onnx: ModelArtifact, context: Callable[..., Any]) -> None:
    with pytest.raises(StepError) as caught:
        run(tiny_cnn_onnx, context(), scheme="int8-dynamic", operator_types=["MatMul"])
    assert str(caught.value) == (
        "int8-dynamic changed nothing: 2 Conv left in float: operator type not asked for (conv1, conv2);"
        " 1 Gemm left in float: operator type not asked for (classifier)"
    )


@pytest.mark.integration
def test_a_layer_that_cannot_be_quantized(make_onnx: Callable[..., ModelArtifact], context: Callable[..., Any]) -> None:
    import numpy as np
    from onnx import TensorProto, helper

    draw = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], "single"),
        helper.make_node("Cast", ["y"], ["y16"], "down", to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["y16", "w64"], ["z64"], "double"),
        helper.make_node("Cast", ["z64"], ["z"], "up", to=TensorProto.FLOAT),
    ]
    weights = {"w": draw.normal(size=(8, 6)).astype(np.float32), "w64": draw.normal(size=(6, 4))}
    model = make_onnx(nodes, weights, {"x": 8}, {"z": 4})
    with pytest.raises(StepError) as caught:
        run(model, context(), scheme="int8-dynamic")
    assert str(caught.value) == (
        "1 of 2 layers could not be quantized: 1 MatMul left in float: its weight is float64 (double). Name them in `exclude_nodes`, or"
        " set `on_unsupported: skip` to leave them in float"
    )
    outcome = run(model, context(), scheme="int8-dynamic", on_unsupported="skip")
    assert [(note.level, note.text) for note in outcome.notes if "float64" in note.text] == [
        (Level.WARNING, "1 MatMul left in float: its weight is float64 (double)")
    ]
    assert outcome.metrics["layers_unsupported"] == 1


@pytest.mark.integration
def test_a_weight_shared_with_a_gemm_is_not_transposed_for_both(
    make_onnx: Callable[..., ModelArtifact], context: Callable[..., Any]
) -> None:
    import numpy as np
    from onnx import helper

    weight = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "first"), helper.make_node("Gemm", ["y", "w"], ["z"], "tied", transB=1)]
    outcome = run(make_onnx(nodes, {"w": weight}, {"x": 6}, {"z": 6}), context(), scheme="int8-dynamic")
    assert outcome.metrics["output_cosine_mean"] > 0.99


@pytest.mark.integration
def test_a_model_that_computes_no_numbers_is_refused(make_onnx: Callable[..., ModelArtifact], context: Callable[..., Any]) -> None:
    import numpy as np
    from onnx import helper

    weight = np.diag([1e-6, 1, 1, 1]).astype(np.float32)  # with one scale for all, the first becomes 0, and its logarithm -inf
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], "m"),
        helper.make_node("Abs", ["y"], ["a"], "abs"),
        helper.make_node("Log", ["a"], ["l"], "log"),
        helper.make_node("Gather", ["l", "first"], ["z"], "gather", axis=1),
    ]
    model = make_onnx(nodes, {"w": weight, "first": np.array([0])}, {"x": 4}, {"z": 1})
    said = "the output 'z' of the int8-dynamic model holds NaN or infinity on a valid input"
    message = re.escape(f"{said}; infinity begins in the layer 'log' (Log)")
    with pytest.raises(StepError, match=message):
        run(model, context(), scheme="int8-dynamic", per_channel=False)


@pytest.mark.integration
@pytest.mark.parametrize("scheme", ["int8-dynamic", "float16"])
def test_weights_that_hold_nan_are_named(
    make_onnx: Callable[..., ModelArtifact], context: Callable[..., Any], scheme: str
) -> None:
    import numpy as np
    from onnx import helper

    weight = np.full((4, 4), np.nan, np.float32)
    model = make_onnx([helper.make_node("MatMul", ["x", "w"], ["y"], "m")], {"w": weight}, {"x": 4}, {"y": 4})
    message = "weights of the model to quantize hold NaN: w. They have no int8 or float16 form"
    with pytest.raises(StepError, match=message):
        run(model, context(), scheme=scheme)


def test_a_layer_the_quantizer_left_is_told_apart() -> None:
    assert Layer("a", "MatMul", "w", LEFT).unsupported
    assert not Layer("a", "MatMul", "w", EXCLUDED).unsupported
