"""What operators do, whichever library names them: ATen, ONNX and ONNX Runtime's own, OpenVINO's CPU plugin."""

from __future__ import annotations

import re

from ioptim.core.runtime import LayerRun

PRODUCTS = ("matrix products", "convolutions", "attention")
"""Kinds that multiply matrices: where int8 saves time."""

_NAMES = {
    "matrix products": "mm addmm bmm baddbmm matmul linear addmv mv dot einsum scaled_mm int_mm MatMul Gemm FusedMatMul FusedGemm"
    " MatMulInteger MatMulIntegerToFloat DynamicQuantizeMatMul QLinearMatMul QGemm MatMulNBits Einsum MatMulFpQ4 TransposeMatMul"
    " DynamicQuantizeLSTM LSTM GRU lstm gru FullyConnected FullyConnectedQuantized FullyConnectedQuantizedLegacy"
    " LSTMSequence LSTMCell GRUSequence RNNSeq RNNCell",
    "convolutions": "convolution conv2d conv1d conv3d mkldnn_convolution thnn_conv2d slow_conv2d_forward Conv FusedConv QLinearConv"
    " ConvInteger ConvTranspose NhwcFusedConv Convolution GroupConvolution Deconvolution cudnn_convolution",
    "attention": "scaled_dot_product_attention scaled_dot_product_flash_attention_for_cpu scaled_dot_product_flash_attention"
    " scaled_dot_product_attention_math scaled_dot_product_efficient_attention scaled_dot_product_cudnn_attention Attention"
    " MultiHeadAttention GroupQueryAttention QAttention QOrderedAttention ScaledDotProductAttention MHA SDPA"
    " ScaledDotProductAttentionWithKVCache",
    "softmax": "softmax log_softmax safe_softmax Softmax LogSoftmax QLinearSoftmax SoftMax",
    "normalization": "layer_norm batch_norm group_norm rms_norm batch_norm_impl_index LayerNormalization BatchNormalization"
    " SkipLayerNormalization SimplifiedLayerNormalization SkipSimplifiedLayerNormalization GroupNormalization"
    " InstanceNormalization RMSNormalization MVN NormalizeL2 RMS GroupNorm",
    "activations": "gelu relu silu tanh sigmoid hardtanh hardswish leaky_relu elu Relu Gelu FastGelu BiasGelu QuickGelu Tanh Sigmoid"
    " Silu Erf LeakyRelu Clip HardSwish Swish HSwish PRelu Elu Clamp SoftPlus",
    "embeddings": "embedding index_select index gather Gather GatherND GatherElements EmbedLayerNormalization QEmbedLayerNormalization",
    "pooling": "max_pool2d avg_pool2d adaptive_avg_pool2d mean max_pool2d_with_indices MaxPool AveragePool GlobalAveragePool"
    " ReduceMean ReduceSum AvgPool Pooling AdaptivePooling QLinearGlobalAveragePool QLinearAveragePool",
    "quantization": "quantize_per_tensor dequantize QuantizeLinear DequantizeLinear DynamicQuantizeLinear FakeQuantize",
    "copies and layout": "copy clone contiguous to transpose t permute view reshape expand cat stack slice select as_strided empty"
    " empty_strided empty_like unsqueeze squeeze unsafe_view flatten chunk split zeros ones fill Transpose Reshape Concat Slice"
    " Squeeze Unsqueeze Expand Split Cast Shape Flatten Pad ReorderInput ReorderOutput MemcpyToHost MemcpyFromHost Identity"
    " Reorder Convert ShapeOf StridedSlice Broadcast Tile Concatenation Range ConstantOfShape MemoryInput MemoryOutput"
    " alias detach lift_fresh resolve_conj resolve_neg",
    "elementwise": "add sub mul div pow sqrt rsqrt exp where masked_fill eq ne gt lt ge le neg rsub bitwise_and logical_and logical_not"
    " Add Sub Mul Div Pow Sqrt Where Equal Not And Or Neg Exp Abs Max Min Greater GreaterOrEqual Less LessOrEqual QLinearAdd QLinearMul"
    " Multiply Subtract Divide MulAdd Eltwise Maximum Minimum GreaterEqual LogicalAnd LogicalNot LogicalOr Select Power Math",
}
"""Operators by what they do; ATen's without namespace, leading underscores and `native_`."""

_KIND_OF = {name: kind for kind, names in _NAMES.items() for name in names.split()}

_VIEWS = (
    "Reshape Squeeze Unsqueeze Flatten Shape ShapeOf Identity view reshape expand t transpose permute unsqueeze squeeze slice select"
    " as_strided unsafe_view flatten alias detach split chunk empty empty_like empty_strided lift_fresh size"
)
VIEWS = frozenset(_VIEWS.split())
"""Operators that move no bytes: they give a tensor another shape, or tell its shape."""

IN_BLOCKS = "MatMulNBits"
"""ONNX Runtime's matrix product with a packed weight, in blocks of 4 or 8 bits; it multiplies floats."""

_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "FakeQuantize", "ReorderInput", "ReorderOutput", "Reorder")

_INT8 = re.compile(r"^(QAttention|QOrdered\w+|QLinear\w+|QGemm|MatMulInteger\w*|ConvInteger|DynamicQuantize(MatMul|LSTM)|int_mm)$")
_LOGIC = ("Equal", "Not", "And", "Or", "Greater", "GreaterEqual", "Less", "LessEqual", "LogicalAnd", "LogicalNot", "LogicalOr", "Select")


def kind_of(operator: str) -> str:
    """What an operator does, `other` when it is not known: `aten::_softmax` and `Softmax` are both softmax."""
    return _KIND_OF.get(operator.rpartition("::")[2]) or _KIND_OF.get(plain(operator)) or "other"


def plain(operator: str) -> str:
    """`aten::_softmax_` → `softmax`."""
    return re.sub(r"^_*(native_|cudnn_|miopen_)?|_$", "", operator.rpartition("::")[2])


def runs_in_int8(operator: str, precision: str | None) -> bool:
    """Whether what executed computes on 8-bit integers: by its name in ONNX Runtime, by its run-time precision in OpenVINO.

    A lookup or a comparison of bytes (masks are bytes in OpenVINO) does not count, and neither does what only converts.
    """
    if precision is None:
        return bool(_INT8.match(operator.rpartition("::")[2].lstrip("_")))
    computes = kind_of(operator) in (*PRODUCTS, "pooling", "activations", "elementwise")
    return precision in ("int8", "uint8") and computes and operator not in _LOGIC


def converts(run: LayerRun) -> bool:
    """Whether a layer only changes precision or layout; a cast does where it makes floats of integers or the other way round."""
    if run.operator not in ("Cast", "Convert"):
        return run.operator in _CONVERSIONS
    read, written = ({operand.dtype for operand in operands} for operands in (run.inputs, run.outputs))
    return any("float" in dtype for dtype in written) != any("float" in dtype for dtype in read)
