"""int8 by ONNX Runtime's quantizer: dynamic (activations are measured at every run) and static (QDQ, ranges from data)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ioptim.core.step import Level, Note
from ioptim.errors import StepError
from ioptim.onnx_graph import count_ops, fuse_transformer, load_graph, save_graph
from ioptim.steps import _outputs
from ioptim.steps.quantize.calibration import calibration_feeds
from ioptim.steps.quantize.layers import COMPUTED, Layer, choose, find_layers, judge, name_nodes
from ioptim.steps.quantize.made import Made

if TYPE_CHECKING:
    import onnx

    from ioptim.core.artifact import ModelArtifact
    from ioptim.core.step import Context
    from ioptim.core.task import Feeds
    from ioptim.steps.quantize import Quantize

ENTRY = "model.onnx"

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


def dynamic(step: Quantize, model: ModelArtifact, ctx: Context, out: Path, scratch: Path) -> Made:
    """Weights become int8, activations uint8 at every run with a range of their own: int8 GEMM, nothing to calibrate."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    feeds = _outputs.trial_feeds(model, ctx)
    reference = _outputs.run_onnx(model.model_path, feeds, ctx.hardware.threads)
    ctx.progress(0.1, "fusing" if step.fuse == "on" else "preparing")
    prepared, notes, facts = _prepare(step, model.model_path, scratch, fuse=step.fuse == "on")
    if facts:
        _require_equal(_outputs.run_onnx(prepared, feeds, ctx.hardware.threads), reference)
    graph = load_graph(prepared)
    _untie_gemms(graph)
    save_graph(graph, prepared)
    layers = choose(find_layers(graph), step.operator_types or DYNAMIC_KINDS, step.exclude_nodes)
    ctx.progress(0.4, f"quantizing {sum(layer.quantized for layer in layers)} layers")
    kinds = {layer.kind for layer in layers if layer.quantized}
    with _quiet(scratch):
        quantize_dynamic(
            prepared,
            out / ENTRY,
            # A Gemm is turned into MatMul and Add before it is quantized.
            op_types_to_quantize=sorted(kinds | ({"MatMul"} if "Gemm" in kinds else set())),
            per_channel=step.per_channel,
            reduce_range=step.reduce_range == "on",
            weight_type=QuantType.QInt8 if step.weight_type == "int8" else QuantType.QUInt8,
            nodes_to_exclude=_excluded(layers),
            use_external_data_format=_too_large(graph),
            # The library cannot infer types behind contrib operators; every weight that it may quantize is float32.
            extra_options={"DefaultTensorType": 1},
        )
    return _made(layers, feeds, reference, out, ctx, notes, facts)


def static(step: Quantize, model: ModelArtifact, ctx: Context, out: Path, scratch: Path) -> Made:
    """Weights int8 and activations 8 bits with fixed ranges, as QuantizeLinear and DequantizeLinear around float operators.

    The runtime turns each such group into an int8 kernel; one that does not know the pattern computes the same in float.
    """
    from onnxruntime.quantization import QDQQuantizer, QuantType

    reading, notes = calibration_feeds(model, ctx, step.calibration.samples, step.calibration.batch_size)
    feeds = reading[: len(_outputs.SHAPES)]
    reference = _outputs.run_onnx(model.model_path, feeds, ctx.hardware.threads)
    prepared, more, _ = _prepare(step, model.model_path, scratch, fuse=False)
    graph = load_graph(prepared)
    transformer = _is_transformer(graph)
    kinds = step.operator_types or (STATIC_KINDS if transformer else (*STATIC_KINDS, *BETWEEN_CONVOLUTIONS))
    layers = choose(find_layers(graph), kinds, step.exclude_nodes)
    ranges = _ranges(step, prepared, list(kinds), reading, ctx, scratch)
    ctx.progress(0.8, f"quantizing {sum(layer.quantized for layer in layers)} layers")
    types = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}
    with _quiet(scratch):
        quantizer = QDQQuantizer(
            graph,
            step.per_channel,
            step.reduce_range == "on",
            types[step.weight_type],
            types[step.activation_type],
            ranges,
            [],
            _excluded(layers),
            list(kinds),
            {
                "ActivationSymmetric": step.activation_type == "int8",
                "OpTypesToExcludeOutputQuantization": FLOAT_OUTPUTS,
            },
        )
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(str(out / ENTRY), _too_large(graph))
    metrics = {"calibration_samples": float(sum(len(next(iter(feed.values()))) for feed in reading))}
    return _made(layers, feeds, reference, out, ctx, (*notes, *more), {}, metrics)


def _prepare(step: Quantize, source: Path, scratch: Path, fuse: bool) -> tuple[Path, tuple[Note, ...], dict[str, Any]]:
    """The graph to quantize, in scratch: fused, or with constants folded and batch normalization put into convolutions."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = scratch / "prepared.onnx"
    counts = fuse_transformer(source, prepared) if fuse else {}
    if counts:
        names = ", ".join(f"{count} {op}" for op, count in counts.items())
        notes = [Note(text=f"fused before quantization: {names}")]
        ops = count_ops(prepared)
        if "Softmax" in ops and "Attention" not in ops:
            text = "attention did not fuse, so its products are not quantized together; expect less speed"
            notes.append(Note(text=text, level=Level.WARNING))
    else:
        notes = [Note(text="fuse: there is nothing to fuse in this graph")] if fuse else []
        with _quiet(scratch):
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
    graph = load_graph(prepared)
    name_nodes(graph)
    if counts:
        graph.ClearField("metadata_props")
    else:
        # The dynamo exporter's shapes of values; they contradict what the quantizer infers after it has changed a node.
        del graph.graph.value_info[:]
    save_graph(graph, prepared)
    return prepared, tuple(notes), {"fused": counts} if counts else {}


def _ranges(step: Quantize, path: Path, kinds: list[str], reading: list[Feeds], ctx: Context, scratch: Path) -> Any:
    """Ranges of all activations. Fed one batch at a time: the histograms of the library take no two lengths at once."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    options = {"percentile": step.calibration.percentile} if step.calibration.method == "percentile" else {}
    with _quiet(scratch):
        calibrator = create_calibrator(
            path, kinds, str(scratch / "augmented.onnx"), methods[step.calibration.method], extra_options=options
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


def _made(
    layers: list[Layer],
    feeds: list[Feeds],
    reference: list[Any],
    out: Path,
    ctx: Context,
    notes: tuple[Note, ...],
    facts: dict[str, Any],
    metrics: dict[str, float] | None = None,
) -> Made:
    made = load_graph(out / ENTRY)
    _drop_unused_domains(made)
    save_graph(made, out / ENTRY)
    ctx.progress(0.9, "comparing outputs")
    outputs = _outputs.run_onnx(out / ENTRY, feeds, ctx.hardware.threads)
    fused = {f"fused_{op}": float(count) for op, count in facts.get("fused", {}).items()}
    return Made(ENTRY, judge(layers, made), reference, outputs, notes, {**fused, **(metrics or {})}, facts)


def _require_equal(fused: list[Any], reference: list[Any]) -> None:
    for name, (difference, largest) in _outputs.largest_difference(fused, reference).items():
        if not difference <= FUSION_TOLERANCE * max(1.0, largest):
            raise StepError(
                f"the fused model's output {name!r} differs from the original's by {difference:.3g} (largest value {largest:.3g}),"
                " so a fusion changed what it computes. Set `fuse: off` on this step"
            )


def _excluded(layers: list[Layer]) -> list[str]:
    """Nodes the quantizer must leave alone, with the name that a Gemm has after it was turned into a MatMul."""
    kept = [layer for layer in layers if not layer.quantized]
    return [layer.name for layer in kept] + [f"{layer.name}_MatMul" for layer in kept if layer.kind == "Gemm"]


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


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    """ONNX Runtime declares every domain it knows in what it saves; another runtime may refuse those it does not."""
    used = {node.domain for node in model.graph.node} | {""}
    kept = [opset for opset in model.opset_import if opset.domain in used or opset.domain == "ai.onnx"]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _is_transformer(model: onnx.ModelProto) -> bool:
    """Whether two computed values are multiplied, and a Softmax is near: attention."""
    kinds = {node.op_type for node in model.graph.node}
    return "Softmax" in kinds and any(layer.why == COMPUTED for layer in find_layers(model))


def _too_large(model: onnx.ModelProto) -> bool:
    return model.ByteSize() >= 2 * 1024**3


@contextmanager
def _quiet(scratch: Path) -> Iterator[None]:
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
