"""Operations and bytes of an executed layer, from its operator and the shapes it read and wrote. A multiply-add is two operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ioptim.core.runtime import LayerRun, Operand
from ioptim.steps.profile.kinds import PRODUCTS, VIEWS, kind_of

PER_ELEMENT = {
    "elementwise": 1,
    "activations": 1,
    "pooling": 1,
    "softmax": 5,
    "normalization": 7,
    "quantization": 2,
    "embeddings": 0,
    "copies and layout": 0,
}
"""Operations per element of the larger of input and output, by kind of operator. Softmax: maximum, subtract, exp, sum, divide;
normalization: mean, subtract, square, mean, scale, multiply, add. An activation is counted as one, however it is computed."""

BYTES = {"float64": 8, "int64": 8, "uint64": 8, "float32": 4, "int32": 4, "uint32": 4, "float16": 2, "bfloat16": 2, "int16": 2, "int4": 0.5}
LOOKUPS = ("Gather", "GatherND", "GatherElements", "embedding", "index", "index_select")


@dataclass(frozen=True)
class Counted:
    """`operations` is None for an operator whose operations are not known."""

    operations: float | None
    weight_bytes: float
    activation_bytes: float


def count(layer: LayerRun) -> Counted:
    """Operations, and bytes if every operand is read and every result written once. A lookup reads the rows it finds, not the table."""
    kind = kind_of(layer.operator)
    if layer.operator in VIEWS:
        return Counted(0.0, 0.0, 0.0)
    written = sum(map(size, layer.outputs))
    if layer.operator in LOOKUPS:
        rows = written if layer.inputs and layer.inputs[0].weight else 0.0
        indices = sum(size(operand) for operand in layer.inputs[1:])
        return Counted(0.0, rows, written + indices + (0.0 if rows else written))
    weights = sum(size(operand) for operand in layer.inputs if operand.weight)
    read = sum(size(operand) for operand in layer.inputs if not operand.weight)
    if "Embed" in layer.operator:
        return Counted(None, 3 * written, read + written)  # three tables are looked up, of which the rows found are read
    return Counted(_operations(layer, kind), weights, read + written)


def _operations(layer: LayerRun, kind: str) -> float | None:
    """None also where the profiler did not tell the shapes that the formula needs."""
    if kind in PRODUCTS:
        try:
            return _PRODUCTS[layer.operator](layer)
        except (KeyError, IndexError, ValueError, ZeroDivisionError):
            return None
    if kind not in PER_ELEMENT:
        return None
    largest = max((elements(operand) for operand in (*layer.outputs, *(o for o in layer.inputs if not o.weight))), default=0)
    return float(PER_ELEMENT[kind] * largest)


def elements(operand: Operand) -> int:
    return math.prod(operand.shape)


def size(operand: Operand) -> float:
    """Bytes of one operand; a type of unknown width (bool, 8 bits) counts one byte an element."""
    return elements(operand) * BYTES.get(operand.dtype, 1)


def _matmul(at: int) -> Callable[[LayerRun], float]:
    """Of (..., M, K) and operand `at` (..., K, N), either of them transposed: 2 M N K a matrix, with K = elements of the second ÷ N."""

    def operations(layer: LayerRun) -> float:
        (rows, columns), out = layer.inputs[at].shape[-2:], layer.outputs[0]
        return 2 * elements(out) * rows * columns / out.shape[-1]

    return operations


def _block_packed(layer: LayerRun) -> float:
    """The weight is packed in blocks: the inner size is the last axis of the activation."""
    return 2.0 * elements(layer.outputs[0]) * layer.inputs[0].shape[-1]


def _convolution(at: int) -> Callable[[LayerRun], float]:
    """2 for every output element and weight of its filter. Filters are on the first axis of the weight, in OpenVINO on the second
    too when they are grouped; so it does not matter where the output has its channels."""

    def operations(layer: LayerRun) -> float:
        weight, out = layer.inputs[at], layer.outputs[0]
        grouped = len(weight.shape) > len(out.shape)
        return 2 * elements(out) * elements(weight) / math.prod(weight.shape[: 2 if grouped else 1])

    return operations


def _transposed_convolution(layer: LayerRun) -> float:
    """2 for every input element and weight that it is multiplied by."""
    return 2 * elements(layer.inputs[0]) * elements(layer.inputs[1]) / layer.inputs[0].shape[1]


def _fused_attention(layer: LayerRun) -> float:
    """Attention of com.microsoft: input (batch, sequence, hidden), weight (hidden, 3 x width); projection, scores, weighted sum."""
    (batch, sequence, hidden), (_, tripled) = layer.inputs[0].shape, layer.inputs[1].shape
    width = layer.outputs[0].shape[-1]
    return 2.0 * batch * sequence * (hidden * tripled + sequence * ((tripled - width) // 2 + width))


def _attention(layer: LayerRun) -> float:
    """Scores and weighted sum of query, key and value, (batch, sequence, width) or (batch, heads, sequence, width per head).

    Keys of earlier tokens are counted where a result tells their number; masked ones are counted though a kernel may skip them.
    """
    query, key = layer.inputs[0], layer.inputs[1]
    seen = max([key.shape[-2], *(out.shape[-2] for out in layer.outputs[1:] if len(out.shape) == 4)])
    return 2.0 * (elements(query) + elements(layer.outputs[0])) * seen


def _recurrent(layer: LayerRun) -> float:
    """Input (sequence, batch, size); at each step every weight once: (directions, gates, size) and (directions, gates, hidden)."""
    steps, batch = layer.inputs[0].shape[:2]
    return 2.0 * steps * batch * (elements(layer.inputs[1]) + elements(layer.inputs[2]))


_PRODUCTS: dict[str, Callable[[LayerRun], float]] = {
    **dict.fromkeys(("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "TransposeMatMul"), _matmul(1)),
    **dict.fromkeys(("FullyConnected", "FullyConnectedQuantized", "FullyConnectedQuantizedLegacy"), _matmul(1)),
    **dict.fromkeys(("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), _matmul(1)),
    **dict.fromkeys(("QLinearMatMul", "QGemm"), _matmul(3)),
    **dict.fromkeys(("MatMulNBits", "MatMulFpQ4"), _block_packed),
    **dict.fromkeys(("Conv", "FusedConv", "NhwcFusedConv", "ConvInteger", "Convolution", "GroupConvolution"), _convolution(1)),
    "QLinearConv": _convolution(3),
    **dict.fromkeys(("ConvTranspose", "Deconvolution"), _transposed_convolution),
    **dict.fromkeys(("QAttention", "QOrderedAttention"), _fused_attention),
    "Attention": lambda layer: _fused_attention(layer) if _has_projection(layer) else _attention(layer),
    **dict.fromkeys(("MultiHeadAttention", "GroupQueryAttention", "ScaledDotProductAttention", "SDPA"), _attention),
    **dict.fromkeys(("LSTM", "GRU", "DynamicQuantizeLSTM"), _recurrent),
}


def _has_projection(layer: LayerRun) -> bool:
    """com.microsoft's Attention has the weights of its projections as second operand, the one of ai.onnx has the keys."""
    return len(layer.inputs[1].shape) == 2 and layer.inputs[1].weight
