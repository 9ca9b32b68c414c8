"""ONNX graphs in int8 by ONNX Runtime's quantizer, whole or in part: dynamic ranges, or static ones (QDQ) from data."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ioptim.core.step import Level, Note
from ioptim.errors import StepError
from ioptim.onnx_graph import PROTOBUF_LIMIT_BYTES, count_ops, fuse_transformer, load_graph, save_graph
from ioptim.steps import _outputs
from ioptim.steps._layers import COMPUTED, Layer, choose, find_layers, name_nodes

if TYPE_CHECKING:
    import onnx

    from ioptim.core.step import Context
    from ioptim.core.task import Feeds, Outputs

Scheme = Literal["int8-dynamic", "int8-static"]

FUSION_TOLERANCE = 1e-3
"""Largest difference a fusion may make, relative to the largest output: measured 1e-6 on BERT, a wrong mask makes 0.1."""

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
    activation_type: str = "uint8"
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    percentile: float = 99.999


@dataclass(frozen=True)
class FloatGraph:
    """A float graph ready to be quantized as often as is needed, with other layers left out each time.

    `path` is the graph in a scratch folder, `layers` those it has, the ones that the recipe leaves out marked. `ranges` are those of the
    activations, for the static scheme.
    """

    options: Int8Options
    path: Path
    layers: tuple[Layer, ...]
    kinds: tuple[str, ...]
    scratch: Path
    notes: tuple[Note, ...] = ()
    fused: dict[str, int] | None = None
    ranges: Any = None

    def write(self, out: Path, keep: Collection[str] = ()) -> None:
        """Write the graph with every chosen layer in int8 but those whose names are in `keep`."""
        layers = [layer for layer in self.layers if not layer.quantized or layer.name in keep]
        left = [layer.name for layer in layers] + [f"{layer.name}_MatMul" for layer in layers if layer.kind == "Gemm"]
        with quiet(self.scratch):
            if self.options.scheme == "int8-dynamic":
                self._dynamic(out, left, {layer.kind for layer in self.layers if layer.quantized and layer.name not in keep})
            else:
                self._static(out, left)

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

    def _static(self, out: Path, left: list[str]) -> None:
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
        quantizer.model.save_model_to_file(str(out), _too_large(self.path))


def prepare(
    options: Int8Options, source: Path, scratch: Path, ctx: Context, reading: Sequence[Feeds] = (), check: Sequence[Feeds] = ()
) -> FloatGraph:
    """Fuse or simplify the graph, choose its layers and, for the static scheme, measure ranges on `reading`.

    `check` are feeds on which a fused graph must give the outputs of the original.

    Raises:
        StepError: a fusion changed the outputs; an entry of `exclude_nodes` matches nothing; the library failed.
    """
    dynamic = options.scheme == "int8-dynamic"
    prepared, notes, fused = _simplified(source, scratch, fuse=options.fuse and dynamic)
    if fused and check:
        threads = ctx.hardware.threads
        _require_equal(_outputs.run_onnx(prepared, check, threads), _outputs.run_onnx(source, check, threads))
    graph = load_graph(prepared)
    if dynamic:
        _untie_gemms(graph)
        save_graph(graph, prepared)
        kinds: tuple[str, ...] = options.operator_types or DYNAMIC_KINDS
    else:
        kinds = options.operator_types or (STATIC_KINDS if _is_transformer(graph) else (*STATIC_KINDS, *BETWEEN_CONVOLUTIONS))
    layers = tuple(choose(find_layers(graph), kinds, options.exclude_nodes))
    ranges = None if dynamic else _ranges(options, prepared, kinds, reading, ctx, scratch)
    return FloatGraph(options, prepared, layers, kinds, scratch, notes, fused, ranges)


def saturates(cpu_flags: Collection[str]) -> bool:
    """u8 x s8 products are summed in 16 bits, which overflow: AVX2 and AVX-512 before VNNI (vpmaddubsw).

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "When and why to try U8U8".
    """
    return "avx2" in cpu_flags and not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(cpu_flags)


def _simplified(source: Path, scratch: Path, fuse: bool) -> tuple[Path, tuple[Note, ...], dict[str, int]]:
    """The graph to quantize, in scratch: fused, or with constants folded and batch normalization put into convolutions."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = scratch / "prepared.onnx"
    fused = fuse_transformer(source, prepared) if fuse else None
    if fused:
        notes = [Note(text=f"fused before quantization: {fused}")]
        ops = count_ops(prepared)
        if "Softmax" in ops and "Attention" not in ops:
            text = "attention did not fuse, so its products are not quantized together; expect less speed"
            notes.append(Note(text=text, level=Level.WARNING))
    else:
        notes = [Note(text="fuse: there is nothing to fuse in this graph")] if fuse else []
        with quiet(scratch):
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
    graph = load_graph(prepared)
    name_nodes(graph)
    if fused:
        graph.ClearField("metadata_props")
    else:
        # The dynamo exporter's shapes of values; they contradict what the quantizer infers after it has changed a node.
        del graph.graph.value_info[:]
    save_graph(graph, prepared)
    return prepared, tuple(notes), dict(fused.counts) if fused else {}


def _ranges(options: Int8Options, path: Path, kinds: Sequence[str], reading: Sequence[Feeds], ctx: Context, scratch: Path) -> Any:
    """Ranges of all activations. Fed one batch at a time: the histograms of the library take no two lengths at once."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    extra = {"percentile": options.percentile} if options.method == "percentile" else {}
    with quiet(scratch):
        calibrator = create_calibrator(
            path, list(kinds), str(scratch / "augmented.onnx"), methods[options.method], extra_options=extra
        )
        for index, feed in enumerate(reading):
            if index % 16 == 0:
                ctx.progress(0.1 + 0.6 * index / len(reading), f"calibrating, {index} of {len(reading)} done")
            calibrator.collect_data(_One(feed))
        return calibrator.compute_data()


class _One:
    """A calibration data reader of one feed."""

    def __init__(self, feed: Feeds) -> None:
        self.feed: Feeds | None = feed

    def get_next(self) -> Feeds | None:
        feed, self.feed = self.feed, None
        return feed


def _require_equal(fused: Sequence[Outputs], reference: Sequence[Outputs]) -> None:
    for name, (difference, largest) in _outputs.largest_difference(fused, reference).items():
        if not difference <= FUSION_TOLERANCE * max(1.0, largest):
            raise StepError(
                f"the fused model's output {name!r} differs from the original's by {difference:.3g} (largest value {largest:.3g}),"
                " so a fusion changed what it computes. Set `fuse: off` on this step"
            )


def _untie_gemms(model: onnx.ModelProto) -> None:
    """Give a Gemm its own copy of a weight that others read: the library transposes it in place, for all of them."""
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in set(node.input):
            readers[name] = readers.get(name, 0) + 1
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Gemm" and readers.get(node.input[1], 0) > 1 and node.input[1] in weights:
            copy = model.graph.initializer.add()
            copy.CopyFrom(weights[node.input[1]])
            copy.name = f"{node.input[1]}_of_{node.name}"
            node.input[1] = copy.name


def drop_unused_domains(model: onnx.ModelProto) -> None:
    """ONNX Runtime declares every domain it knows in what it saves; another runtime may refuse those it does not."""
    used = {node.domain for node in model.graph.node} | {""}
    kept = [opset for opset in model.opset_import if opset.domain in used or opset.domain == "ai.onnx"]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _is_transformer(model: onnx.ModelProto) -> bool:
    """Whether two computed values are multiplied, and a Softmax is near: attention."""
    kinds = {node.op_type for node in model.graph.node}
    return "Softmax" in kinds and any(layer.why == COMPUTED for layer in find_layers(model))


def _too_large(path: Path) -> bool:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) >= PROTOBUF_LIMIT_BYTES


@contextmanager
def quiet(scratch: Path) -> Iterator[None]:
    """The library's advice to pre-process (done) off the log, its prints into a file, its errors as a step's error."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (scratch / "library.log").open("a") as log, redirect_stdout(log):
            yield
    except (ValueError, RuntimeError, AssertionError, TypeError, KeyError) as error:
        raise StepError(f"onnxruntime.quantization failed: {_outputs.one_line(error)}") from error
    finally:
        logger.setLevel(level)
