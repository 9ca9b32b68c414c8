"""Operations and bytes against what the definitions of the operators say, by hand."""

from __future__ import annotations

import pytest

from ioptim.core.runtime import LayerRun, Operand
from ioptim.steps.profile.counts import Counted, count


def f32(*shape: int, weight: bool = False) -> Operand:
    return Operand("float32", shape, weight)


def i8(*shape: int, weight: bool = True) -> Operand:
    return Operand("int8", shape, weight)


def run(operator: str, inputs: tuple[Operand, ...], *outputs: Operand) -> LayerRun:
    return LayerRun("a", operator, 1.0, inputs, outputs)


SCALE = Operand("float32", (), True)


@pytest.mark.parametrize(
    ("layer", "operations"),
    [
        (run("MatMul", (f32(1, 5, 8), f32(8, 16, weight=True)), f32(1, 5, 16)), 2 * 5 * 8 * 16),
        (run("MatMul", (f32(2, 3, 5, 4), f32(2, 3, 4, 5)), f32(2, 3, 5, 5)), 2 * 2 * 3 * 5 * 4 * 5),
        (run("FusedMatMul", (f32(2, 3, 5, 4), f32(2, 3, 6, 4)), f32(2, 3, 5, 6)), 2 * 6 * 5 * 4 * 6),
        (run("Gemm", (f32(5, 8), f32(16, 8, weight=True)), f32(5, 16)), 2 * 5 * 8 * 16),
        (run("FullyConnected", (f32(1, 5, 8), f32(16, 8, weight=True)), f32(1, 5, 16)), 2 * 5 * 8 * 16),
        (run("DynamicQuantizeMatMul", (f32(1, 5, 8), i8(8, 16), SCALE), f32(1, 5, 16)), 2 * 5 * 8 * 16),
        (run("QLinearMatMul", (i8(5, 8), SCALE, SCALE, i8(8, 16)), i8(5, 16)), 2 * 5 * 8 * 16),
        (run("MatMulNBits", (f32(1, 5, 32), i8(16, 1, 16)), f32(1, 5, 16)), 2 * 5 * 32 * 16),
        (run("Conv", (f32(1, 8, 6, 6), f32(16, 8, 3, 3, weight=True)), f32(1, 16, 4, 4)), 2 * 16 * 16 * 8 * 9),
        (run("Conv", (f32(1, 8, 6, 6), f32(8, 1, 3, 3, weight=True)), f32(1, 8, 4, 4)), 2 * 8 * 16 * 9),
        (run("GroupConvolution", (f32(1, 8, 6, 6), f32(8, 1, 1, 3, 3, weight=True)), f32(1, 8, 4, 4)), 2 * 8 * 16 * 9),
        (run("QLinearConv", (i8(1, 6, 6, 8), SCALE, SCALE, i8(16, 8, 3, 3)), i8(1, 4, 4, 16)), 2 * 16 * 16 * 8 * 9),
        (run("ConvTranspose", (f32(1, 4, 5, 5), f32(4, 2, 3, 3, weight=True)), f32(1, 2, 7, 7)), 2 * 100 * 2 * 9),
        # projections of 5 tokens from 8 to 3 x 8, then scores and weighted sum
        (run("QAttention", (i8(1, 5, 8, weight=False), i8(8, 24)), f32(1, 5, 8)), 2 * 5 * 8 * 24 + 2 * 2 * 25 * 8),
        (run("Attention", (f32(1, 5, 8), f32(8, 24, weight=True)), f32(1, 5, 8)), 2 * 5 * 8 * 24 + 2 * 2 * 25 * 8),
        (run("Attention", (f32(1, 2, 5, 4), f32(1, 2, 7, 4), f32(1, 2, 7, 4)), f32(1, 2, 5, 4)), 2 * 2 * 5 * 7 * 8),
        (run("MultiHeadAttention", (f32(1, 5, 8), f32(1, 7, 8), f32(1, 7, 8)), f32(1, 5, 8)), 2 * 2 * 5 * 7 * 8),
        # one new token that sees 9
        (run("GroupQueryAttention", (f32(1, 1, 8), f32(1, 1, 4)), f32(1, 1, 8), f32(1, 1, 9, 4)), 2 * 2 * 9 * 8),
        (run("LSTM", (f32(3, 2, 8), f32(1, 16, 8, weight=True), f32(1, 16, 4, weight=True)), f32(3, 1, 2, 4)), 2 * 3 * 2 * (128 + 64)),
        (run("Add", (f32(1, 5, 8), f32(8, weight=True)), f32(1, 5, 8)), 40),
        (run("ReduceMean", (f32(1, 5, 8),), f32(1, 8)), 40),
        (run("Softmax", (f32(1, 5, 8),), f32(1, 5, 8)), 5 * 40),
        (run("Transpose", (f32(1, 5, 8),), f32(1, 8, 5)), 0),
        (run("Fancy", (f32(1, 5, 8),), f32(1, 5, 8)), None),
        (run("MatMul", (), f32(1, 5, 8)), None),
    ],
)
def test_operations(layer: LayerRun, operations: float | None) -> None:
    assert count(layer).operations == operations


@pytest.mark.parametrize(
    ("layer", "weight_bytes", "activation_bytes"),
    [
        (run("MatMul", (f32(1, 5, 8), f32(8, 16, weight=True)), f32(1, 5, 16)), 512, 4 * (40 + 80)),
        (run("QLinearMatMul", (i8(5, 8, weight=False), SCALE, SCALE, i8(8, 16)), i8(5, 16)), 128 + 8, 40 + 80),
        # of the table only the rows found are read
        (run("Gather", (f32(1000, 8, weight=True), Operand("int64", (1, 5))), f32(1, 5, 8)), 160, 160 + 40),
        (run("Reshape", (f32(1, 5, 8), Operand("int64", (2,), True)), f32(5, 8)), 0, 0),
        (run("Transpose", (f32(1, 5, 8),), f32(1, 8, 5)), 0, 320),
    ],
)
def test_bytes(layer: LayerRun, weight_bytes: float, activation_bytes: float) -> None:
    found = count(layer)
    assert (found.weight_bytes, found.activation_bytes) == (weight_bytes, activation_bytes)


def test_a_lookup_with_a_normalization_is_not_counted() -> None:
    tables = (Operand("int32", (1, 5)), Operand("int32", (1, 5)), i8(1000, 8), i8(50, 8), i8(2, 8))
    assert count(run("QEmbedLayerNormalization", tables, f32(1, 5, 8))) == Counted(None, 3 * 160, 40 + 160)
