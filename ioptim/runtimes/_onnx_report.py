"""What an ONNX graph became: operators before and after, what fused, which arithmetic the heavy ones use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ioptim.core.step import Level, Note, TableFigure
from ioptim.onnx_graph import FUSED_OPS, load_graph, nodes_of

INT8_OPS = (
    "QAttention",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QLinearMatMul",
    "QGemm",
    "QLinearConv",
    "ConvInteger",
    "DynamicQuantizeLSTM",
)
"""Operators that multiply by int8 weights and add up in int32. What QAttention multiplies beside its weights stays in float."""

FLOAT_OPS = (
    "Attention",
    "MatMul",
    "FusedMatMul",
    "Gemm",
    "FusedGemm",
    "Conv",
    "FusedConv",
    "NhwcFusedConv",
    "ConvTranspose",
    "LSTM",
    "GRU",
    "RNN",
)
"""The same products in floating point."""

MAYBE_WEIGHTLESS = ("MatMul", "FusedMatMul", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
"""Operators that also multiply two activations (attention's scores): these are not counted as products with weights."""

IN_BLOCKS = "MatMulNBits"
"""Weights in blocks of few bits. With `accuracy_level` 4 its activations become int8 inside, else it multiplies in float."""

QUANTIZED_OPS = (*INT8_OPS, IN_BLOCKS, "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QEmbedLayerNormalization")

HALF = (10, 16)
"""float16 and bfloat16 in onnx.TensorProto.DataType."""

Counts = Mapping[str, int]


def is_unfused_transformer(ops: Counts) -> bool:
    """Attention and normalization spelled out in float operators: what the transformer fusions are for."""
    return "Softmax" in ops and "MatMul" in ops and not is_fused(ops) and not is_quantized(ops)


def is_fused(ops: Counts) -> bool:
    return bool({"Attention", "QAttention", "MultiHeadAttention", "EmbedLayerNormalization", "SkipLayerNormalization"} & set(ops))


def is_quantized(ops: Counts) -> bool:
    return bool(set(QUANTIZED_OPS) & set(ops))


def listed(ops: Counts) -> str:
    """`6 Attention, 6 Gelu`."""
    return ", ".join(f"{count} {op}" for op, count in sorted(ops.items()))


def products(path: Path) -> tuple[Counter[str], Counter[str]]:
    """Matrix products, convolutions and recurrent layers with weights, by operator: those in int8 and those in float."""
    graph = load_graph(path, weights=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    nodes = list(nodes_of(graph))
    for node in nodes:  # weights may be dequantized, transposed or cast first
        if node.op_type in ("Constant", "DequantizeLinear", "Transpose", "Cast", "Identity") and set(node.input) <= weights | {""}:
            weights.update(node.output)
    counted = [n for n in nodes if n.op_type not in MAYBE_WEIGHTLESS or set(n.input) & weights]
    blocks = {n.name: any(a.name == "accuracy_level" and a.i == 4 for a in n.attribute) for n in counted if n.op_type == IN_BLOCKS}
    int8 = Counter(n.op_type for n in counted if n.op_type in INT8_OPS or blocks.get(n.name) is True)
    return int8, Counter(n.op_type for n in counted if n.op_type in FLOAT_OPS or blocks.get(n.name) is False)


def half_weights(path: Path) -> tuple[bool, bool]:
    """Whether weights lie in 16 bits that a Cast widens before they are read, and whether some are read as they are."""
    graph = load_graph(path, weights=False).graph
    half = {tensor.name for tensor in graph.initializer if tensor.data_type in HALF}
    read = {(name, node.op_type == "Cast") for node in nodes_of(graph) for name in half.intersection(node.input)}
    return any(widened for _, widened in read), any(not widened for _, widened in read)


def metrics(before: Counts, after: Counts, path: Path) -> dict[str, float]:
    """Nodes before and after, nodes per fused operator, and how many products with weights run in int8 and in float."""
    fused = {op: after[op] for op in (*FUSED_OPS, "QAttention", "QEmbedLayerNormalization") if op in after}
    int8, floats = products(path)
    return {
        "nodes_before": float(sum(before.values())),
        "nodes_after": float(sum(after.values())),
        "fused_nodes": float(sum(fused.values())),
        "int8_products": float(int8.total()),
        "float_products": float(floats.total()),
        **{f"fused_nodes.{op}": float(count) for op, count in fused.items()},
    }


def table(before: Counts, after: Counts) -> TableFigure:
    """Every operator whose number changed, then those that did not."""
    names = sorted({*before, *after}, key=lambda op: (before.get(op, 0) == after.get(op, 0), op))
    rows = tuple((op, before.get(op, 0), after.get(op, 0)) for op in names)
    return TableFigure(title="Operators before and after compilation", columns=("operator", "before", "after"), rows=rows)


def int8_notes(before: Counts, path: Path) -> list[Note]:
    """What arithmetic the products of a quantized graph run in, now that it is compiled."""
    if not is_quantized(before):
        return []
    int8, floats = products(path)
    if not floats:
        return [Note(text=f"all {int8.total()} products with weights run in int8: {listed(int8)}")]
    text = f"products with weights in int8: {listed(int8) or 'none'}; in float: {listed(floats)}"
    return [Note(text=text, level=Level.INFO if int8 else Level.WARNING)]
