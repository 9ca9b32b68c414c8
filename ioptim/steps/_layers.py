"""The layers of an ONNX model, which of them a recipe asks to quantize, and what became of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ioptim.core.step import Level, Note, TableFigure
from ioptim.errors import StepError
from ioptim.steps._outputs import listed

if TYPE_CHECKING:
    import onnx

WEIGHT_INPUT: Mapping[str, int] = {
    "Attention": 1,
    "Conv": 1,
    "ConvTranspose": 1,
    "EmbedLayerNormalization": 2,
    "Gather": 0,
    "Gemm": 1,
    "GRU": 1,
    "LSTM": 1,
    "MatMul": 1,
}
"""Operators that hold a model's weights, and which of their inputs is the largest one."""

EXCLUDED = "excluded by the recipe"
SHARED = "shares its weight with a layer that the recipe excludes"
NOT_ASKED = "operator type not asked for"
COMPUTED = "multiplies two computed values, there is no weight"
INSIDE = "inside the body of an If or a Loop"
SENSITIVE = "kept by mixed_precision, for quantizing it costs too much quality"
LEFT = "the quantizer left it as it was"


@dataclass(frozen=True)
class Layer:
    """One node with a weight, or a product of two computed values. `why` says what kept it in float; empty when quantized."""

    name: str
    kind: str
    weight: str = ""
    why: str = ""

    @property
    def quantized(self) -> bool:
        return not self.why

    @property
    def unsupported(self) -> bool:
        """Whether the recipe asked for it, and the quantizer could not."""
        return self.why not in ("", EXCLUDED, SHARED, NOT_ASKED, COMPUTED, INSIDE, SENSITIVE)


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own: the quantizers choose nodes by name."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)


def find_layers(model: onnx.ModelProto) -> list[Layer]:
    """Every layer of the graph. A lookup of indices or shapes in a Gather is none, and neither are the bodies of If and Loop."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = []
    for node in model.graph.node:
        position = WEIGHT_INPUT.get(node.op_type)
        if position is None or len(node.input) <= position:
            continue
        tensor = weights.get(node.input[position])
        if tensor is not None and tensor.data_type in _FLOATS and len(tensor.dims) > 1:
            why = "" if tensor.data_type == _FLOAT else f"its weight is {_FLOATS[tensor.data_type]}"
            layers.append(Layer(node.name, node.op_type, tensor.name, why))
        elif node.op_type != "Gather":
            layers.append(Layer(node.name, node.op_type, "", COMPUTED))
    for node in model.graph.node:
        bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        inside = [inner for body in bodies for inner in body.node if inner.op_type in WEIGHT_INPUT and inner.op_type != "Gather"]
        layers += [Layer(inner.name, inner.op_type, "", INSIDE) for inner in inside]
    return layers


_FLOAT = 1
_FLOATS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}
"""The floating-point members of onnx.TensorProto.DataType."""


def choose(layers: Iterable[Layer], kinds: Collection[str], exclude: Sequence[str], others: Collection[str] = ()) -> list[Layer]:
    """Mark the layers that the recipe leaves out.

    Args:
        kinds: operator types asked for.
        exclude: names of nodes, or regular expressions that match whole names.
        others: names of nodes that are no layers and may be left out too.

    Raises:
        StepError: an entry of `exclude` matches no layer, and none of the others.
    """
    layers = list(layers)
    for pattern in exclude:
        if not any(is_excluded(name, [pattern]) for name in (*others, *(layer.name for layer in layers))):
            there = listed([layer.name for layer in layers], 8)
            raise StepError(f"exclude_nodes: {pattern!r} matches no layer. The layers here are called {there}")
    return [_chosen(layer, kinds, exclude) for layer in layers]


def is_excluded(name: str, exclude: Sequence[str]) -> bool:
    return any(pattern == name or re.fullmatch(pattern, name) for pattern in exclude)


def keep_shared(layers: Iterable[Layer]) -> list[Layer]:
    """Mark the layers whose weight an excluded one reads too, for schemes that store a weight once for all of its readers."""
    layers = list(layers)
    excluded = {layer.weight for layer in layers if layer.why == EXCLUDED} - {""}
    return [replace(layer, why=SHARED) if layer.quantized and layer.weight in excluded else layer for layer in layers]


def _chosen(layer: Layer, kinds: Collection[str], exclude: Sequence[str]) -> Layer:
    if is_excluded(layer.name, exclude):
        return replace(layer, why=EXCLUDED)
    return layer if layer.why or layer.kind in kinds else replace(layer, why=NOT_ASKED)


def judge(layers: Iterable[Layer], made: onnx.ModelProto, low: Collection[int] = ()) -> list[Layer]:
    """Mark the layers whose weight is still read as it was. `low` are data types that count as quantized by themselves."""
    weights = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    floats = {name for name, kind in weights.items() if kind in _FLOATS and kind not in low}
    readers = {(node.name.removesuffix("_MatMul"), name) for node in made.graph.node for name in node.input if name in floats}
    return [replace(x, why=LEFT) if not x.why and (x.name, x.weight) in readers else x for x in layers]


def metrics(layers: Sequence[Layer]) -> dict[str, float]:
    """Counts over the layers that have a weight."""
    weighty = [layer for layer in layers if layer.why != COMPUTED]
    return {
        "layers_quantized": sum(layer.quantized for layer in weighty),
        "layers_total": len(weighty),
        "layers_unsupported": sum(layer.unsupported for layer in layers),
    }


def table(layers: Sequence[Layer]) -> TableFigure:
    """One row per kind of layer."""
    rows = []
    for kind in sorted({layer.kind for layer in layers}):
        here = [layer for layer in layers if layer.kind == kind]
        done = sum(layer.quantized for layer in here)
        whys = Counter(layer.why for layer in here if layer.why)
        rows.append((kind, len(here), done, len(here) - done, "; ".join(f"{why} ({n})" for why, n in whys.most_common())))
    return TableFigure(title="Layers by kind", columns=("kind", "total", "quantized", "left in float", "why"), rows=tuple(rows))


def notes(layers: Sequence[Layer]) -> list[Note]:
    """One note for every group of layers that stayed in float."""
    groups: dict[tuple[str, str], list[Layer]] = {}
    for layer in layers:
        if layer.why:
            groups.setdefault((layer.kind, layer.why), []).append(layer)
    return [
        Note(
            text=f"{len(group)} {kind} left in float: {why} ({listed([layer.name for layer in group])})",
            level=Level.WARNING if group[0].unsupported else Level.INFO,
        )
        for (kind, why), group in groups.items()
    ]
