"""int8 by NNCF's post-training quantization, as an OpenVINO model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ioptim.environment import quiet_environment
from ioptim.errors import StepError
from ioptim.steps import _outputs
from ioptim.steps._calibration import calibration_feeds
from ioptim.steps._layers import COMPUTED, EXCLUDED, LEFT, Layer, choose
from ioptim.steps.quantize.made import Made

if TYPE_CHECKING:
    from ioptim.core.artifact import ModelArtifact
    from ioptim.core.step import Context
    from ioptim.steps.quantize import Quantize

ENTRY = "model.xml"

WEIGHT_PORT = {"MatMul": 1, "Convolution": 1, "GroupConvolution": 1, "ConvolutionBackpropData": 1, "Gather": 0}
"""OpenVINO operators that hold a model's weights, and the port the weight comes in by."""

INT8, FLOAT = "int8", "float"
"""What a weight is stored as, kept in `Layer.weight`."""

PASSING = ("Convert", "FakeQuantize", "Multiply", "Subtract", "Reshape", "Transpose")
"""What may stand between a weight and its layer."""


def make(step: Quantize, model: ModelArtifact, ctx: Context, out: Path, scratch: Path) -> Made:
    """Insert FakeQuantize by NNCF's rules for the CPU, weights stored int8; OpenVINO computes int8 between them.

    Transformers get NNCF's preset for them, which keeps sensitive products in float.
    """
    quiet_environment()  # no telemetry, whoever imports these first
    import nncf
    import openvino

    reading, notes = calibration_feeds(model, ctx, step.calibration.samples, step.calibration.batch_size)
    feeds = reading[: len(_outputs.SHAPES)]
    reference = _outputs.run_onnx(model.model_path, feeds, ctx.hardware.threads)
    try:
        graph = openvino.convert_model(model.model_path)
        layers = choose(_find(graph), set(WEIGHT_PORT), step.exclude_nodes)
        kept = [layer.name for layer in layers if layer.why == EXCLUDED]
        ctx.progress(0.2, f"calibrating on {len(reading)} batches")
        made = nncf.quantize(
            graph,
            nncf.Dataset(reading),
            subset_size=len(reading),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER if _has_attention(graph) else None,
            ignored_scope=nncf.IgnoredScope(names=kept) if kept else None,
            advanced_parameters=_parameters(step),
        )
        openvino.save_model(made, out / ENTRY, compress_to_fp16=False)
    except (RuntimeError, ValueError, nncf.ValidationError) as error:
        raise StepError(f"NNCF failed: {_outputs.one_line(error)}") from error
    ctx.progress(0.9, "comparing outputs")
    outputs = _outputs.run_openvino(out / ENTRY, feeds)
    done = {layer.name: layer for layer in _find(made)}
    products = _quantized_products(made)
    judged = [_judged(layer, done, products) for layer in layers]
    metrics = {"calibration_samples": float(sum(len(next(iter(feed.values()))) for feed in reading))}
    return Made(ENTRY, judged, reference, outputs, feeds, tuple(notes), metrics)


def _parameters(step: Quantize) -> Any:
    """NNCF's defaults (mean of the samples' minima and maxima), with one scale per weight where the recipe asks for it."""
    from nncf import AdvancedQuantizationParameters
    from nncf.quantization.advanced_parameters import QuantizationParameters

    if step.per_channel:
        return AdvancedQuantizationParameters()
    return AdvancedQuantizationParameters(weights_quantization_params=QuantizationParameters(per_channel=False))


def _find(graph: Any) -> list[Layer]:
    """Layers of an OpenVINO model; of a quantized one, `why` is empty where the weight is int8."""
    layers = []
    for node in graph.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in WEIGHT_PORT:
            continue
        weight, low = _weight(node, WEIGHT_PORT[kind])
        if weight is not None and weight.get_output_element_type(0).is_integral() and not low:
            continue  # a table of indices
        if weight is None and kind == "Gather":
            continue
        why = "" if weight is not None else COMPUTED
        layers.append(Layer(node.get_friendly_name(), kind, INT8 if low else FLOAT, why))
    return layers


def _weight(node: Any, port: int) -> tuple[Any, bool]:
    """The constant that a layer's weight comes from, and whether it is stored or faked in int8; None where it is computed."""
    current, low = node.input_value(port).get_node(), False
    while current.get_type_name() in PASSING:
        low = low or current.get_type_name() == "FakeQuantize"
        current = current.input_value(0).get_node()
    if current.get_type_name() != "Constant" or len(current.get_output_shape(0)) < 2:
        return None, False
    return current, low or current.get_output_element_type(0).bitwidth == 8


def _judged(layer: Layer, done: dict[str, Layer], products: set[str]) -> Layer:
    """`products` are the layers of two computed values that NNCF quantized on both sides."""
    if layer.why == COMPUTED and layer.name in products:
        return replace(layer, why="")
    after = done.get(layer.name)
    return layer if layer.why or (after is not None and after.weight == INT8) else replace(layer, why=LEFT)


def _quantized_products(graph: Any) -> set[str]:
    """Layers all of whose inputs come out of a FakeQuantize."""
    found = set()
    for node in graph.get_ordered_ops():
        if node.get_type_name() in WEIGHT_PORT and all(_is_faked(node.input_value(port).get_node()) for port in (0, 1)):
            found.add(node.get_friendly_name())
    return found


def _is_faked(node: Any) -> bool:
    while node.get_type_name() in ("Reshape", "Transpose"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "FakeQuantize")


def _has_attention(graph: Any) -> bool:
    kinds = [node.get_type_name() for node in graph.get_ordered_ops()]
    return "ScaledDotProductAttention" in kinds or ("Softmax" in kinds and any(x.why == COMPUTED for x in _find(graph)))
