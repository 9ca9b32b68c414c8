from __future__ import annotations

import pytest

from ioptim.core.runtime import LayerRun, Operand
from ioptim.steps.profile.kinds import converts, kind_of, runs_in_int8


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::_softmax", "softmax"),
        ("Softmax", "softmax"),
        ("aten::native_layer_norm", "normalization"),
        ("aten::copy_", "copies and layout"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("DynamicQuantizeMatMul", "matrix products"),
        ("FullyConnected", "matrix products"),
        ("aten::relu_", "activations"),
        ("user::fancy", "other"),
    ],
)
def test_kinds(operator: str, kind: str) -> None:
    assert kind_of(operator) == kind


@pytest.mark.parametrize(
    ("operator", "precision", "int8"),
    [
        ("QAttention", None, True),
        ("DynamicQuantizeMatMul", None, True),
        ("MatMulIntegerToFloat", None, True),
        ("QLinearConv", None, True),
        ("QGemm", None, True),
        ("MatMul", None, False),
        ("MatMulNBits", None, False),  # weights alone are small; it multiplies floats
        ("QEmbedLayerNormalization", None, False),  # looks bytes up, computes in float
        ("DynamicQuantizeLinear", None, False),
        ("FullyConnected", "int8", True),
        ("FullyConnected", "float32", False),
        ("Convolution", "uint8", True),
        ("GatherND", "uint8", False),  # a mask of bytes
        ("GreaterEqual", "uint8", False),
    ],
)
def test_what_runs_in_int8(operator: str, precision: str | None, int8: bool) -> None:
    assert runs_in_int8(operator, precision) is int8


@pytest.mark.parametrize(
    ("operator", "read", "written", "found"),
    [
        ("QuantizeLinear", "float32", "uint8", True),
        ("Reorder", "float32", "float32", True),
        ("Cast", "int32", "float32", True),
        ("Cast", "int64", "int32", False),
        ("MatMul", "float32", "float32", False),
    ],
)
def test_conversions(operator: str, read: str, written: str, found: bool) -> None:
    assert converts(LayerRun("a", operator, 1.0, (Operand(read, (1,)),), (Operand(written, (1,)),))) is found
