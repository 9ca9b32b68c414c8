"""The bounds on made-up numbers, where they can be worked out by hand."""

from __future__ import annotations

import pytest

from ioptim.core.artifact import Format
from ioptim.roofline import Roofs
from ioptim.steps.profile.advice import Advice, Situation, advise, bounds
from ioptim.steps.profile.findings import Findings, Layer, Operator, Weights

ROOFS = Roofs({"float32": 100e9, "int8": 400e9}, memory_bandwidth=10e9)
ONNX = Situation(Format.ONNX)


def product(
    seconds: float, operations: float, precision: str = "float32", weight_bytes: float = 4.0, activation_bytes: float = 0.0
) -> Layer:
    return Layer("product", "MatMul", 1, seconds, operations, weight_bytes, activation_bytes, precision=precision)


def other(seconds: float, operator: str = "Fancy") -> Layer:
    return Layer(operator, operator, 1, seconds, 0.0)


def found(*layers: Layer, **fields: object) -> Findings:
    return Findings([1.0], layers=layers, **{"roofs": ROOFS, **fields})  # type: ignore[arg-type]


def test_the_bound_of_int8_is_the_time_that_is_not_in_products_and_theirs_at_the_int8_roof() -> None:
    """0.71 of the time at 38 % of 100 Gop/s is 26.98 Gop; at 400 Gop/s that takes 0.06745: 1 / (0.29 + 0.06745) = 2.80."""
    profile = found(product(0.71, 0.38 * 0.71 * 100e9), other(0.29))
    reached, at_most, alike = bounds(profile, profile.layers[:1], ROOFS, "int8")
    assert reached == pytest.approx(0.38)
    assert at_most == pytest.approx(1 / (0.29 + 0.06745))
    assert alike == pytest.approx(1 / (0.29 + 0.71 / 4))
    assert [str(one) for one in advise(profile, ONNX)] == [
        "71% of the time is in 1 matrix product at 38% of the float32 roof: int8 is worth at most 2.8x, 2.1x at the same share of its roof:"
        " steps.quantize.scheme=int8-dynamic"
    ]


def test_what_memory_holds_gains_by_smaller_weights_not_by_faster_arithmetic() -> None:
    """8 GB of weights at 10 GB/s are the whole 0.8 s, a quarter of them 0.2 s; the arithmetic would take 0.01 s."""
    profile = found(product(0.8, 1e9, weight_bytes=8e9), other(0.2))
    reached, at_most, _ = bounds(profile, profile.layers[:1], ROOFS, "int8")
    assert reached == pytest.approx(1)
    assert at_most == pytest.approx(1 / (0.2 + 0.2))


def test_activations_do_not_get_smaller() -> None:
    profile = found(product(0.8, 1e9, weight_bytes=4.0, activation_bytes=8e9), other(0.2))
    assert bounds(profile, profile.layers[:1], ROOFS, "int8")[1] == pytest.approx(1)
    assert advise(profile, ONNX) == [], "nothing is promised where nothing is to be had"


def test_a_layer_never_becomes_slower_by_advice() -> None:
    slow = Roofs({"float32": 100e9, "int8": 10e9}, memory_bandwidth=10e9)
    profile = found(product(0.5, 25e9), other(0.5), roofs=slow)
    assert bounds(profile, profile.layers[:1], slow, "int8")[1:] == (1.0, 1.0)


def test_without_an_int8_roof_the_bound_is_amdahls() -> None:
    profile = found(product(0.75, 1e9), other(0.25), roofs=None)
    assert advise(profile, ONNX) == [
        Advice(
            "75% of the time is in 1 matrix product; int8 was not measured here and is worth at most 4.0x",
            "steps.quantize.scheme=int8-dynamic",
            0.75,
            4.0,
        )
    ]


@pytest.mark.parametrize(
    ("layer", "where", "change"),
    [
        (product(0.8, 1e9), Situation(Format.OPENVINO, "openvino"), "steps.quantize.scheme=openvino-int8"),
        (Layer("c", "Conv", 1, 0.8, 1e9, 4.0), ONNX, "steps.quantize.scheme=int8-static"),
    ],
)
def test_the_scheme_is_one_that_the_runtime_has(layer: Layer, where: Situation, change: str) -> None:
    assert advise(found(layer, other(0.2)), where)[0].change == change


def test_a_gpu_is_not_advised_about_the_cpu() -> None:
    assert advise(found(product(0.8, 1e9), other(0.2)), Situation(Format.TORCH, device="cuda:0")) == []


def test_bfloat16_where_the_cpu_has_it() -> None:
    roofs = Roofs({"float32": 100e9, "int8": 100e9, "bfloat16": 200e9}, memory_bandwidth=10e9)
    profile = found(product(0.8, 80e9), other(0.2), roofs=roofs)
    (advice,) = advise(profile, ONNX)
    assert advice.change == "targets[].runtime={runtime: openvino, inference_precision: bf16}"
    assert advice.at_most == pytest.approx(1 / (0.2 + 0.4))
    assert advice.text == (
        "this CPU computes in bfloat16, and 80% of the time is in float32 products at 100% of their roof: bfloat16 is worth at most 1.7x,"
        " 1.7x at the same share of its roof"
    )


def test_what_is_packed_in_blocks_is_not_to_be_made_smaller() -> None:
    roofs = Roofs({"float32": 100e9, "int8": 400e9, "bfloat16": 200e9}, memory_bandwidth=10e9)
    blocks = Layer("m", "MatMulNBits", 1, 0.8, 80e9, 4.0)
    assert advise(found(blocks, other(0.2), roofs=roofs), ONNX) == []
    beside = advise(found(blocks, product(0.8, 80e9), roofs=roofs), ONNX)
    assert [advice.share for advice in beside] == [0.5, 0.5], "of int8 and bfloat16"


def test_fusing_before_and_after_compilation() -> None:
    profile = found(other(0.75), other(0.15, "Add"), other(0.1, "Softmax"))
    text = "25% of the time is in 2 small operators a row between the products (elementwise and softmax): fusing all of them away is worth"
    assert [str(one) for one in advise(profile, ONNX)] == [f"{text} at most 1.3x: add `- step: compile`"]
    compiled = advise(profile, Situation(Format.ONNX, "onnxruntime"))
    assert [str(one) for one in compiled] == [
        f"{text} at most 1.3x; attention is not fused: targets[].runtime.fusions=true, or steps.quantize.fuse=on"
    ]
    assert advise(profile, Situation(Format.OPENVINO, "openvino")) == []


def test_time_outside_operators_is_torchs() -> None:
    profile = found(other(1.0), operators=[Operator("aten::mm", 1, 0.8)], profiled_s=1.0)
    assert [str(one) for one in advise(profile, Situation(Format.TORCH))] == [
        "20% of a row's time is outside operators (Python between them): a compiled graph is worth at most 1.2x: add `- step: compile`"
    ]
    assert advise(profile, ONNX) == []


def test_conversions_between_int8_layers() -> None:
    quantize = Layer("q", "DynamicQuantizeLinear", 6, 0.2, 0.0, converts=True)
    profile = found(product(0.8, 1.0, "int8"), quantize)
    assert [str(one) for one in advise(profile, Situation(Format.ONNX, "onnxruntime"))] == [
        "20% of the time is in 6 conversions a row between precisions or layouts: without them at most 1.2x:"
        " steps.quantize.scheme=int8-static"
    ]


def test_products_left_in_float_beside_int8() -> None:
    profile = found(product(0.5, 1.0, "int8"), product(0.5, 50e9))
    (advice,) = advise(profile, Situation(Format.ONNX, "onnxruntime"))
    assert advice.change.startswith("steps.quantize: take these layers out of exclude_nodes")
    assert advice.at_most == pytest.approx(1 / (0.5 + 0.125))


def test_embeddings_gain_size_not_speed() -> None:
    profile = found(other(1.0), weights=[Weights("Embedding", 3, 600, 2400), Weights("Linear", 5, 400, 1600)])
    (advice,) = advise(profile, ONNX)
    assert advice.text == "embeddings hold 60% of the parameters and 0% of the time: quantizing them gains size, not speed"
    assert advice.at_most is None


def test_the_largest_gain_comes_first() -> None:
    profile = found(product(0.5, 50e9), other(0.5, "Add"))
    said = advise(profile, ONNX)
    assert [one.change for one in said] == ["add `- step: compile`", "steps.quantize.scheme=int8-dynamic"]
