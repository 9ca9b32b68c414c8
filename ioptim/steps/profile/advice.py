"""What to change, why, and the most it can give: every bound follows from the time shares and the measured roofs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ioptim.core.artifact import Format
from ioptim.roofline import BFLOAT16, FLOAT32, INT8, Roofs
from ioptim.steps.profile.findings import Findings, Layer
from ioptim.steps.profile.kinds import IN_BLOCKS

WORTH_SAYING = 0.05
"""Share of the time below which nothing is said."""
FUSIBLE = ("softmax", "normalization", "activations", "elementwise", "copies and layout")
COMPILE = "add `- step: compile`"
SMALLER = {INT8: 4, BFLOAT16: 2}
"""Bytes of a float32 weight ÷ bytes of the same weight in this precision."""


@dataclass(frozen=True)
class Advice:
    """`change` is what to write in the recipe; `share` the part of the time it is about; `at_most` the whole model's speedup.

    `expected` is the speedup if the layers came as near to the new roof as they are to the present one.
    """

    text: str
    change: str
    share: float
    at_most: float | None = None
    expected: float | None = None

    def __str__(self) -> str:
        return f"{self.text}: {self.change}"


@dataclass(frozen=True)
class Situation:
    """What the recipe has already decided about the model that was profiled."""

    format: Format
    runtime: str | None = None
    """The runtime it was compiled for; None before that."""
    device: str = "cpu"


def advise(found: Findings, where: Situation) -> list[Advice]:
    """All that applies, the largest gain first."""
    rules = (_int8, _bfloat16, _fusion, _between, _reorders, _embeddings)
    said = [advice for rule in rules if (advice := rule(found, where))]
    return sorted(said, key=lambda advice: -(advice.at_most or 0))


def bounds(found: Findings, layers: Sequence[Layer], roofs: Roofs, precision: str) -> tuple[float, float, float]:
    """Share of their present roof that the layers reach; the model's speedup at most, and at the same share, with them in `precision`.

    Amdahl: what is not in `layers` takes as long as before. A layer takes at least what the roofs allow for the same operations with
    smaller weights, and never longer than now. Layers whose operations are not known stay as they are.
    """
    whole = found.layer_seconds
    now = least = alike = roof_now = 0.0
    for layer in layers:
        if (one := layer.one) is None:
            continue
        after = replace(one, precision=precision, weight_bytes=one.weight_bytes / SMALLER[precision])
        before_s = max(roofs.least_seconds(one, found.model_weight_bytes))
        after_s = max(roofs.least_seconds(after, found.model_weight_bytes / SMALLER[precision]))
        now += layer.seconds
        roof_now += before_s * layer.calls
        least += min(layer.seconds, after_s * layer.calls)
        alike += layer.seconds * min(1.0, after_s / before_s)
    return roof_now / now if now else 0.0, whole / (whole - now + least), whole / (whole - now + alike)


def _float_products(found: Findings) -> list[Layer]:
    """Products of float32 with float32. What is packed in blocks is as small already as int8 would make it, or smaller."""
    return [layer for layer in found.layers if layer.is_product and layer.precision == FLOAT32 and layer.operator != IN_BLOCKS]


def _int8(found: Findings, where: Situation) -> Advice | None:
    layers = [layer for layer in _float_products(found) if layer.weight_bytes]
    share = found.share(layers)
    if where.device != "cpu" or share < WORTH_SAYING:
        return None
    change = _int8_change(found, where, layers)
    many = f"{share:.0%} of the time is in {_named(layers)}"
    if found.roofs is None or INT8 not in found.roofs.peaks:
        at_most = 1 / (1 - share) if share < 0.99 else None
        text = f"{many}; int8 was not measured here and is worth at most {at_most:.1f}x" if at_most else f"{many}, which int8 shortens"
        return Advice(text, change, share, at_most)
    reached, at_most, alike = bounds(found, layers, found.roofs, INT8)
    if at_most < 1 + WORTH_SAYING:
        return None
    text = f"{many} at {reached:.0%} of the float32 roof: int8 is worth at most {at_most:.1f}x, {alike:.1f}x at the same share of its roof"
    return Advice(text, change, share, at_most, alike)


def _int8_change(found: Findings, where: Situation, layers: Sequence[Layer]) -> str:
    if found.int8_layers:
        return "steps.quantize: take these layers out of exclude_nodes and mixed_precision, or name their operators in operator_types"
    convolutions = sum(layer.seconds for layer in layers if layer.does == "convolutions")
    if where.runtime == "openvino":
        return "steps.quantize.scheme=openvino-int8"
    mostly = convolutions > sum(layer.seconds for layer in layers) / 2
    return "steps.quantize.scheme=int8-static" if mostly else "steps.quantize.scheme=int8-dynamic"


def _bfloat16(found: Findings, where: Situation) -> Advice | None:
    """OpenVINO and torch compute in it by themselves; ONNX Runtime has no kernels for it on CPUs."""
    layers = _float_products(found)
    if found.roofs is None or BFLOAT16 not in found.roofs.peaks or found.share(layers) < WORTH_SAYING or where.device != "cpu":
        return None
    reached, at_most, alike = bounds(found, layers, found.roofs, BFLOAT16)
    if at_most < 1 + WORTH_SAYING:
        return None
    text = (
        f"this CPU computes in bfloat16, and {found.share(layers):.0%} of the time is in float32 products at {reached:.0%} of their roof:"
        f" bfloat16 is worth at most {at_most:.1f}x, {alike:.1f}x at the same share of its roof"
    )
    return Advice(text, "targets[].runtime={runtime: openvino, inference_precision: bf16}", found.share(layers), at_most, alike)


def _fusion(found: Findings, where: Situation) -> Advice | None:
    """Before compilation what stands between products can be fused; afterwards only attention that was not recognized."""
    small = [layer for layer in found.layers if layer.does in FUSIBLE]
    unfused = any(layer.does == "softmax" for layer in small)
    share = found.share(small)
    if share < WORTH_SAYING or not (where.runtime is None or (where.runtime == "onnxruntime" and unfused)):
        return None
    at_most = 1 / (1 - share)
    text = (
        f"{share:.0%} of the time is in {sum(layer.calls for layer in small) / len(found.row_seconds):.0f} small operators a row between"
        f" the products ({_kinds(small)}): fusing all of them away is worth at most {at_most:.1f}x"
    )
    if where.runtime is None:
        return Advice(text, COMPILE, share, at_most)
    return Advice(f"{text}; attention is not fused", "targets[].runtime.fusions=true, or steps.quantize.fuse=on", share, at_most)


def _between(found: Findings, where: Situation) -> Advice | None:
    """Python and dispatch: what a row takes beyond its operators."""
    if where.format is not Format.TORCH or not found.operators or not found.profiled_s or where.device != "cpu":
        return None
    inside = sum(operator.seconds for operator in found.operators) / found.profiled_s
    share = 1 - inside
    if share < WORTH_SAYING:
        return None
    text = f"{share:.0%} of a row's time is outside operators (Python between them): a compiled graph is worth at most {1 / inside:.1f}x"
    return Advice(text, COMPILE, share, 1 / inside)


def _reorders(found: Findings, where: Situation) -> Advice | None:
    share = found.share(found.reorders)
    if share < WORTH_SAYING:
        return None
    at_most = 1 / (1 - share)
    a_row = sum(layer.calls for layer in found.reorders) / len(found.row_seconds)
    text = f"{share:.0%} of the time is in {a_row:.0f} conversions a row between precisions or layouts: without them at most {at_most:.1f}x"
    dynamic = any(layer.operator == "DynamicQuantizeLinear" for layer in found.reorders)
    return Advice(text, f"steps.quantize.scheme={'int8-static' if dynamic else 'int8-dynamic'}", share, at_most)


def _embeddings(found: Findings, where: Situation) -> Advice | None:
    held = sum(group.parameters for group in found.weights if "mbed" in group.kind or group.kind == "Gather")
    if not found.parameters or held / found.parameters <= 0.2 or found.int8_layers:
        return None
    share = found.shares().get("embeddings", 0.0)
    held_share = held / found.parameters
    text = f"embeddings hold {held_share:.0%} of the parameters and {share:.0%} of the time: quantizing them gains size, not speed"
    return Advice(text, "steps.quantize.operator_types, which has Gather unless you choose", share)


def _named(layers: Sequence[Layer]) -> str:
    """`36 matrix products and 6 attention`."""
    kinds = {kind: sum(layer.does == kind for layer in layers) for kind in dict.fromkeys(layer.does for layer in layers)}
    words = [f"{n} {kind if n > 1 or not kind.endswith('s') else kind.removesuffix('s')}" for kind, n in kinds.items()]
    return " and ".join(words)


def _kinds(layers: Sequence[Layer]) -> str:
    """The two that take the most time."""
    seconds: dict[str, float] = {}
    for layer in layers:
        seconds[layer.does] = seconds.get(layer.does, 0.0) + layer.seconds
    return " and ".join(sorted(seconds, key=lambda kind: -seconds[kind])[:2])
