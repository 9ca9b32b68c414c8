"""ONNX graphs in int8 by ONNX Runtime's quantizer, whole or in part: dynamic ranges, or static ones (QDQ) from data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ioptim.core.step import Level, Note
from ioptim.onnx_graph import PROTOBUF_LIMIT_BYTES, load_graph, save_graph
from ioptim.steps import _bias, _outputs, _qdq, _ranges, _smooth
from ioptim.steps._float_graph import quiet, require_equal, respell, simplify, untie_gemms
from ioptim.steps._layers import COMPUTED, EXCLUDED, Layer, choose, find_layers, is_excluded

if TYPE_CHECKING:
    import onnx

    from ioptim.core.step import Context
    from ioptim.core.task import Feeds

Scheme = Literal["int8-dynamic", "int8-static"]

DYNAMIC_KINDS = ("Attention", "EmbedLayerNormalization", "Gather", "Gemm", "LSTM", "MatMul")
"""What has a kernel of its own: QAttention, QEmbedLayerNormalization, DynamicQuantizeLSTM, MatMulInteger. ConvInteger is left
out: ONNX Runtime has it, slower than the convolution in float."""

STATIC_KINDS = ("Conv", "ConvTranspose", "Gather", "Gemm", "MatMul")
BETWEEN_CONVOLUTIONS = (
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "Flatten",
    "GlobalAveragePool",
    "MaxPool",
    "Relu",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
"""Operators that pass int8 on between convolutions. Not in transformers: there they cost accuracy (0.8635 against 0.8888 on
SST-2 with MiniLM) and win no time."""

ENTROPY_IN_TRANSFORMERS = Note(
    text="calibration.method entropy cuts off the rare large values that transformers live on; use minmax, mse or percentile",
    level=Level.WARNING,
)
"""Measured 0.56 in place of 0.94 on SST-2 with MiniLM; BERT on SQuAD: Wu et al., https://arxiv.org/abs/2004.09602, table 5."""

FLOAT_OUTPUTS = ["Gather", "Gemm", "MatMul"]
"""Their products leave as float, which the kernels do by themselves; quantizing them again lost accuracy and time."""


@dataclass(frozen=True)
class Int8Options:
    """How a graph is quantized; what each means is said at the fields of the `quantize` step. The last four are for `int8-static`."""

    scheme: Scheme
    fuse: bool = False
    per_channel: bool = True
    reduce_range: bool = False
    weight_type: Literal["int8", "uint8"] = "int8"
    operator_types: tuple[str, ...] | None = None
    exclude_nodes: tuple[str, ...] = ()
    smooth: float | None = None
    activation_type: str = "uint8"
    method: _ranges.Method = "minmax"
    percentile: float = 99.999
    correct_bias: bool = False


@dataclass(frozen=True)
class FloatGraph:
    """A float graph ready to be quantized as often as is needed, with other layers left out each time.

    `path` is the graph in a scratch folder, `layers` those it has, the ones that the recipe leaves out marked, and `left` the names of
    the other nodes that it leaves out. `ranges` are those of the activations and `means` those of the layers' inputs, both for the static
    scheme.
    """

    options: Int8Options
    path: Path
    layers: tuple[Layer, ...]
    kinds: tuple[str, ...]
    scratch: Path
    notes: tuple[Note, ...] = ()
    fused: dict[str, int] | None = None
    left: tuple[str, ...] = ()
    ranges: Any = None
    means: Mapping[str, _bias.Mean] = field(default_factory=dict)

    def write(self, out: Path, keep: Collection[str] = ()) -> Collection[str]:
        """Write the graph with every chosen layer in int8 but those whose names are in `keep`; the layers whose bias was corrected."""
        layers = [layer for layer in self.layers if not layer.quantized or layer.name in keep]
        left = [*self.left, *(layer.name for layer in layers)] + [f"{layer.name}_MatMul" for layer in layers if layer.kind == "Gemm"]
        with quiet(self.scratch):
            if self.options.scheme == "int8-dynamic":
                self._dynamic(out, left, {layer.kind for layer in self.layers if layer.quantized and layer.name not in keep})
                return ()
            return self._static(out, left)

    def _dynamic(self, out: Path, left: list[str], kinds: set[str]) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            self.path,
            out,
            # A Gemm is turned into MatMul and Add before it is quantized.
            op_types_to_quantize=sorted(kinds | ({"MatMul"} if "Gemm" in kinds else set())),
            per_channel=self.options.per_channel,
            reduce_range=self.options.reduce_range,
            weight_type=QuantType.QInt8 if self.options.weight_type == "int8" else QuantType.QUInt8,
            nodes_to_exclude=left,
            use_external_data_format=_too_large(self.path),
            # The library cannot infer types behind contrib operators; every weight that it may quantize is float32.
            extra_options={"DefaultTensorType": 1},
        )

    def _static(self, out: Path, left: list[str]) -> Collection[str]:
        from onnxruntime.quantization import QDQQuantizer, QuantType

        types = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}
        quantizer = QDQQuantizer(
            load_graph(self.path),
            self.options.per_channel,
            self.options.reduce_range,
            types[self.options.weight_type],
            types[self.options.activation_type],
            self.ranges,
            [],
            left,
            list(self.kinds),
            {
                "ActivationSymmetric": self.options.activation_type == "int8",
                "OpTypesToExcludeOutputQuantization": FLOAT_OUTPUTS,
            },
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        made = quantizer.model.model
        _qdq.read_floats(made, {node.name for node in made.graph.node if node.op_type in self.kinds} - set(left))
        _qdq.drop_unread(made)
        chosen = [layer for layer in self.layers if layer.quantized and layer.name not in left]
        corrected = _bias.correct(made, load_graph(self.path), chosen, self.means) if self.means else ()
        save_graph(made, out)
        return corrected


def prepare(
    options: Int8Options, source: Path, scratch: Path, ctx: Context, reading: Sequence[Feeds] = (), check: Sequence[Feeds] = ()
) -> FloatGraph:
    """Fuse or simplify the graph, choose its layers, smooth it on `reading` and, for the static scheme, measure ranges on that.

    `check` are feeds on which a fused graph must give the outputs of the original.

    Raises:
        StepError: a fusion changed the outputs; an entry of `exclude_nodes` matches nothing; the library failed.
    """
    dynamic = options.scheme == "int8-dynamic"
    prepared, notes, fused = simplify(source, scratch, fuse=options.fuse and dynamic)
    feeds, threads = check or reading[: len(_outputs.SHAPES)], ctx.hardware.threads
    if fused and feeds:
        reference = _outputs.run_onnx(source, feeds, threads)
        require_equal(_outputs.run_onnx(prepared, feeds, threads), reference, "a fusion", "Set `fuse: off` on this step")
    elif feeds and not dynamic:
        notes = (*notes, *respell(prepared, feeds, scratch, threads))
    graph = load_graph(prepared)
    if dynamic:
        untie_gemms(graph)
        save_graph(graph, prepared)
        kinds: tuple[str, ...] = options.operator_types or DYNAMIC_KINDS
    else:
        attention = _is_transformer(graph)
        kinds = options.operator_types or (STATIC_KINDS if attention else (*STATIC_KINDS, *BETWEEN_CONVOLUTIONS))
        notes = (*notes, *([ENTROPY_IN_TRANSFORMERS] if attention and options.method == "entropy" else []))
    found = find_layers(graph)
    between = {node.name for node in graph.graph.node if node.op_type in kinds} - {layer.name for layer in found}
    layers = tuple(choose(found, kinds, options.exclude_nodes, between))
    left = tuple(sorted(name for name in between if is_excluded(name, options.exclude_nodes)))
    if left:
        notes = (*notes, Note(text=f"{len(left)} nodes without weights left in float: {EXCLUDED} ({_outputs.listed(left)})"))
    made = FloatGraph(options, prepared, layers, kinds, scratch, notes, fused, left)
    if options.smooth is not None:
        made = _smoothed(made, options.smooth, reading, ctx)
    return made if dynamic else _calibrated(made, reading, ctx)


def _smoothed(graph: FloatGraph, alpha: float, reading: Sequence[Feeds], ctx: Context) -> FloatGraph:
    names = {layer.name for layer in graph.layers if layer.quantized}
    feeds, threads = reading[: len(_outputs.SHAPES)], ctx.hardware.threads
    with quiet(graph.scratch):
        before = _outputs.run_onnx(graph.path, feeds, threads)
        done = _smooth.smooth(graph.path, alpha, names, reading, ctx, graph.scratch)
        require_equal(_outputs.run_onnx(graph.path, feeds, threads), before, "smoothing", "Leave `smooth` out")
    layers = choose(find_layers(load_graph(graph.path)), graph.kinds, graph.options.exclude_nodes, graph.left)
    return replace(graph, layers=tuple(layers), notes=(*graph.notes, Note(text=done.told)))


def _calibrated(graph: FloatGraph, reading: Sequence[Feeds], ctx: Context) -> FloatGraph:
    """The graph with ranges and, for bias correction, means."""
    options, scratch = graph.options, graph.scratch
    with quiet(scratch):
        symmetric = options.activation_type == "int8"
        ranges = _ranges.measure(graph.path, graph.kinds, options.method, options.percentile, symmetric, reading, ctx, scratch)
    graph = replace(graph, ranges=ranges)
    if not options.correct_bias:
        return graph
    whole = scratch / "whole.onnx"
    graph.write(whole)
    chosen = [layer for layer in graph.layers if layer.quantized]
    return replace(graph, means=_bias.measure(graph.path, load_graph(whole), chosen, reading, ctx, scratch))


def saturates(cpu_flags: Collection[str]) -> bool:
    """u8 x s8 products are summed in 16 bits, which overflow: AVX2 and AVX-512 before VNNI (vpmaddubsw).

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "When and why to try U8U8".
    """
    return "avx2" in cpu_flags and not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(cpu_flags)


def _is_transformer(model: onnx.ModelProto) -> bool:
    """Whether two computed values are multiplied, and a Softmax is near: attention."""
    kinds = {node.op_type for node in model.graph.node}
    return "Softmax" in kinds and any(layer.why == COMPUTED for layer in find_layers(model))


def _too_large(path: Path) -> bool:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) >= PROTOBUF_LIMIT_BYTES
