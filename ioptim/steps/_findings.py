"""What a profile finds, whichever library it was taken with."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

KINDS = {
    "matrix products": "mm addmm bmm baddbmm matmul linear addmv mv dot einsum scaled_mm int_mm MatMul Gemm FusedMatMul FusedGemm"
    " MatMulInteger MatMulIntegerToFloat DynamicQuantizeMatMul QLinearMatMul QGemm MatMulNBits Einsum MatMulFpQ4 TransposeMatMul",
    "convolutions": "convolution conv2d conv1d conv3d mkldnn_convolution thnn_conv2d slow_conv2d_forward Conv FusedConv QLinearConv"
    " ConvInteger ConvTranspose NhwcFusedConv",
    "attention": "scaled_dot_product_attention scaled_dot_product_flash_attention_for_cpu scaled_dot_product_flash_attention"
    " scaled_dot_product_attention_math scaled_dot_product_efficient_attention Attention MultiHeadAttention GroupQueryAttention"
    " QAttention QOrderedAttention",
    "softmax": "softmax log_softmax safe_softmax Softmax LogSoftmax QLinearSoftmax",
    "normalization": "layer_norm batch_norm group_norm rms_norm batch_norm_impl_index LayerNormalization BatchNormalization"
    " SkipLayerNormalization SimplifiedLayerNormalization SkipSimplifiedLayerNormalization GroupNormalization"
    " InstanceNormalization RMSNormalization",
    "activations": "gelu relu silu tanh sigmoid hardtanh hardswish leaky_relu elu Relu Gelu FastGelu BiasGelu QuickGelu Tanh Sigmoid"
    " Silu Erf LeakyRelu Clip HardSwish",
    "embeddings": "embedding index_select index gather Gather GatherND GatherElements EmbedLayerNormalization QEmbedLayerNormalization",
    "pooling": "max_pool2d avg_pool2d adaptive_avg_pool2d mean max_pool2d_with_indices MaxPool AveragePool GlobalAveragePool"
    " ReduceMean ReduceSum",
    "quantization": "quantize_per_tensor dequantize QuantizeLinear DequantizeLinear DynamicQuantizeLinear",
    "copies and layout": "copy clone contiguous to transpose t permute view reshape expand cat stack slice select as_strided empty"
    " empty_strided empty_like unsqueeze squeeze unsafe_view flatten chunk split zeros ones fill Transpose Reshape Concat Slice"
    " Squeeze Unsqueeze Expand Split Cast Shape Flatten Pad ReorderInput ReorderOutput MemcpyToHost MemcpyFromHost Identity",
    "elementwise": "add sub mul div pow sqrt rsqrt exp where masked_fill eq ne gt lt ge le neg rsub Add Sub Mul Div Pow Sqrt Where"
    " Equal Not And Or Neg Exp QLinearAdd QLinearMul",
}
"""Operators of ATen (without namespace, underscores and `native_`) and of ONNX, by what they do."""

_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names.split()}


def kind_of(operator: str) -> str:
    """What an operator does, `other` when it is not known: `aten::_softmax` and `Softmax` are both softmax."""
    name = operator.rpartition("::")[2]
    return _KIND_OF.get(name) or _KIND_OF.get(re.sub(r"^_*(native_|cudnn_|miopen_)?|_$", "", name)) or "other"


@dataclass(frozen=True)
class Operator:
    """An operator over all rows: how often it ran, and the seconds in it, those in operators that it called not counted."""

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True)
class Layer:
    """All layers of one kind: their weights, and the seconds in them over all rows (None where the library does not tell)."""

    kind: str
    count: int
    parameters: int
    weight_bytes: int
    seconds: float | None = None


@dataclass(frozen=True)
class Findings:
    """Of one model on some rows. `row_seconds` were taken without the profiler, everything else with it or beside it."""

    row_seconds: Sequence[float]
    operators: Sequence[Operator] = ()
    layers: Sequence[Layer] = ()
    flops: float | None = None
    """Floating-point operations of all rows; a multiplication and an addition are two."""
    profiled_s: float | None = None
    """Wall time of the rows with the profiler on."""
    notes: Sequence[str] = ()
    facts: dict[str, str | int] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    def shares(self) -> dict[str, float]:
        """Share of the operators' time by kind, largest first."""
        seconds: Counter[str] = Counter()
        for operator in self.operators:
            seconds[kind_of(operator.name)] += operator.seconds  # type: ignore[assignment]
        total = sum(seconds.values()) or 1.0
        return {kind: value / total for kind, value in seconds.most_common()}


def affordable(feeds: Sequence[T], row_s: float, passes: int, duration_s: float) -> Sequence[T]:
    """As many of the first feeds as so many passes over them take in `duration_s`, at least one."""
    return feeds[: max(1, int(duration_s / passes / row_s))]


def advice(findings: Findings) -> str:
    """One paragraph: where the time and the weights are, and the most that faster products alone could give."""
    shares = findings.shares()
    largest = " and ".join(f"{share:.0%} {kind}" for kind, share in list(shares.items())[:2])
    said = [f"Of the time in operators, {largest}.", _on_products(findings)]
    embedded = sum(layer.parameters for layer in findings.layers if "mbed" in layer.kind or layer.kind == "Gather")
    if findings.parameters and embedded / findings.parameters > 0.2:
        said.append(
            f"Embeddings hold {embedded / findings.parameters:.0%} of the parameters and {shares.get('embeddings', 0.0):.0%} of the"
            " time: quantizing them gains size, not speed."
        )
    return " ".join(said)


def _on_products(findings: Findings) -> str:
    products = [operator for operator in findings.operators if kind_of(operator.name) in ("matrix products", "convolutions")]
    total = sum(operator.seconds for operator in findings.operators) or 1.0
    share = sum(operator.seconds for operator in products) / total
    int8 = sum(operator.seconds for operator in products if _INT8.search(operator.name)) / total
    if int8:
        return f"Matrix products and convolutions in int8 are {int8:.0%}, those still in float {share - int8:.0%}."
    if share > 0.95:
        return "Nearly all of it is matrix products and convolutions, which int8 shortens."
    return (
        f"Matrix products and convolutions, which int8 shortens, are {share:.0%}: alone they can make the model at most"
        f" {1 / (1 - share):.1f} times as fast; fusing the rest in `compile` adds to that."
    )


_INT8 = re.compile("Integer|^QLinear|^QGemm|DynamicQuantize|int_mm")
