"""Fewer bits for weights and activations."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, field_validator

from ioptim import non_finite
from ioptim.core.artifact import Format, ModelArtifact
from ioptim.core.base import Frozen
from ioptim.core.registry import did_you_mean
from ioptim.core.step import Context, Outcome, Step, Where, Written
from ioptim.errors import StepError
from ioptim.steps import _layers, _onnx_int8, _outputs
from ioptim.steps.quantize import float16, onnx_int8, openvino_int8, weights
from ioptim.steps.quantize.made import Made
from ioptim.steps.quantize.mixed import MixedPrecision
from ioptim.steps.quantize.weights import Blocks

if TYPE_CHECKING:
    from ioptim.core.runtime import Target


class Scheme(StrEnum):
    """What becomes of weights and activations, and who does it."""

    INT8_DYNAMIC = "int8-dynamic"
    INT8_STATIC = "int8-static"
    OPENVINO_INT8 = "openvino-int8"
    INT8_WEIGHTS = "int8-weights"
    INT4_WEIGHTS = "int4-weights"
    FLOAT16 = "float16"
    FLOAT16_WEIGHTS = "float16-weights"
    BFLOAT16 = "bfloat16"
    BFLOAT16_WEIGHTS = "bfloat16-weights"


class Calibration(Frozen):
    """How the ranges of activations are found."""

    method: Literal["minmax", "entropy", "percentile", "mse"] = Field(
        "minmax",
        description="range of an activation: all values seen, what loses least information, a percentile, or the least squared error",
    )
    samples: int = Field(128, ge=1, description="rows of data.calibration used, drawn with the recipe's seed")
    batch_size: int = Field(1, ge=1, description="rows at once; above 1 texts are padded, and padding widens the ranges")
    percentile: float = Field(99.999, gt=50, le=100, description="share of values inside the range, for method percentile")


@dataclass(frozen=True)
class _Spec:
    """How a scheme is carried out."""

    make: Callable[[Quantize, ModelArtifact, Context, Path, Path], Made]
    produces: Format
    libraries: tuple[str, ...]
    calibrates: bool
    kinds: tuple[str, ...] = ()
    """Operator types that the recipe may ask for; empty where it cannot choose."""


_ORT = ("onnx", "onnxruntime", "numpy")
_BLOCKS = (*_ORT, "onnx-ir")
IN_BLOCKS = (Scheme.INT8_WEIGHTS, Scheme.INT4_WEIGHTS)

SCHEMES: dict[Scheme, _Spec] = {
    Scheme.INT8_DYNAMIC: _Spec(onnx_int8.dynamic, Format.ONNX, _ORT, False, (*_onnx_int8.DYNAMIC_KINDS, "Conv")),
    Scheme.INT8_STATIC: _Spec(onnx_int8.static, Format.ONNX, _ORT, True, (*_onnx_int8.STATIC_KINDS, *_onnx_int8.BETWEEN_CONVOLUTIONS)),
    Scheme.OPENVINO_INT8: _Spec(openvino_int8.make, Format.OPENVINO, ("openvino", "nncf", *_ORT), True),
    Scheme.INT8_WEIGHTS: _Spec(weights.in_blocks(8), Format.ONNX, _BLOCKS, False, weights.KINDS),
    Scheme.INT4_WEIGHTS: _Spec(weights.in_blocks(4), Format.ONNX, _BLOCKS, False, weights.KINDS),
    Scheme.FLOAT16: _Spec(float16.make, Format.ONNX, _ORT, False),
    Scheme.FLOAT16_WEIGHTS: _Spec(weights.stored_as(weights.FLOAT16), Format.ONNX, _ORT, False),
    Scheme.BFLOAT16_WEIGHTS: _Spec(weights.stored_as(weights.BFLOAT16), Format.ONNX, _ORT, False),
}
"""Every scheme that can be carried out; one that is missing here is refused by `check`."""

_ONNX_INT8 = (Scheme.INT8_DYNAMIC, Scheme.INT8_STATIC)

HONOURED_BY: dict[str, tuple[Scheme, ...]] = {
    "calibration": (*_ONNX_INT8, Scheme.OPENVINO_INT8),
    "per_channel": (*_ONNX_INT8, Scheme.OPENVINO_INT8),
    "weight_type": _ONNX_INT8,
    "reduce_range": _ONNX_INT8,
    "mixed_precision": _ONNX_INT8,
    "activation_type": (Scheme.INT8_STATIC,),
    "smooth": _ONNX_INT8,
    "correct_bias": (Scheme.INT8_STATIC,),
    "blocks": IN_BLOCKS,
}
"""Fields that not every scheme can honour; the others refuse them."""


class Quantize(Step):
    """Store weights, and where the scheme has it compute, in fewer bits; say layer by layer what was quantized and what was not.

    `int8-dynamic`: int8 GEMM on ONNX Runtime, ranges of activations measured at every run; needs no data.
    `int8-static`: QDQ in standard ONNX, ranges from data; int8 kernels on ONNX Runtime, OpenVINO and TensorRT.
    `openvino-int8`: NNCF's post-training quantization of an OpenVINO model, ranges from data.
    `int8-weights`, `int4-weights`: weights stored in blocks with a scale each, activations float. ONNX Runtime's MatMulNBits unpacks them
    as it multiplies, which gains where reading weights takes longer than multiplying (generation, batch 1 of wide layers); an encoder over
    a whole text is bound by multiplication and is slower than with `int8-dynamic`.
    `float16`: every float tensor in half precision, inputs and outputs stay float32.
    `float16-weights`, `bfloat16-weights`: a file of half the size; in memory and in speed it is the float32 model again.

    The quantized model is run beside the one that came in; its outputs must be finite.

    Raises:
        StepError: no layer was quantized; with `on_unsupported: error` a layer asked for was left in float; an entry of
            `exclude_nodes` matches nothing; a fusion changed the outputs; the library failed.
    """

    step: Literal["quantize"] = "quantize"
    accepts = frozenset({Format.ONNX})
    libraries = ("onnx", "onnxruntime", "numpy")

    scheme: Scheme = Field(description="int8-static, openvino-int8, `smooth` and `mixed_precision` need data.calibration, the rest no data")
    calibration: Calibration = Field(Calibration(), description="how the static schemes, and `smooth`, measure activations")
    per_channel: bool = Field(True, description="one scale for each output channel of a weight instead of one for all")
    blocks: Blocks | None = Field(None, description="how int8-weights and int4-weights store matrices; their defaults when left out")
    operator_types: tuple[str, ...] | None = Field(
        None, min_length=1, description="ONNX operators to quantize, for example [MatMul, Gemm]; what the scheme does best when left out"
    )
    exclude_nodes: tuple[str, ...] = Field((), description="names of nodes, or regular expressions of whole names, that stay in float")
    mixed_precision: MixedPrecision | None = Field(
        None, description="leave the layers in float that cost most quality, as few as a bound on calibration rows needs"
    )
    smooth: float | None = Field(
        None, gt=0, lt=1, description="SmoothQuant's α: how much of what makes activations hard to quantize moves into weights; try 0.8"
    )
    correct_bias: bool = Field(True, description="take the mean error that rounding makes off the layers' biases, for int8-static")
    fuse: Literal["auto", "on", "off"] = Field(
        "auto",
        description="fuse attention, gelu and embeddings first; auto does it for int8-dynamic when every target is ONNX Runtime",
    )
    activation_type: Literal["auto", "uint8", "int8"] = Field(
        "auto", description="type of static activations; auto is int8 for TensorRT, which takes no other, else uint8"
    )
    weight_type: Literal["int8", "uint8"] = Field("int8", description="type of the weights in the ONNX int8 schemes")
    reduce_range: Literal["auto", "on", "off"] = Field(
        "auto", description="7-bit weights, which keeps int8 sums from saturating; auto is on for x86 CPUs without VNNI"
    )
    on_unsupported: Literal["error", "skip"] = Field(
        "error", description="a layer asked for that cannot be quantized: end the step, or leave it in float with a warning"
    )

    @field_validator("exclude_nodes")
    @classmethod
    def _are_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is neither a plain name nor a regular expression: {error}") from error
        return patterns

    def resolve(self, where: Where) -> Self:
        changes: dict[str, str] = {}
        if self.fuse == "auto":
            changes["fuse"] = "on" if self.scheme is Scheme.INT8_DYNAMIC and _all_run_on(where, "onnxruntime") else "off"
        if self.activation_type == "auto" and "activation_type" in self._honoured():
            changes["activation_type"] = "int8" if any(_is_tensorrt(target) for target in where.targets) else "uint8"
        if self.reduce_range == "auto" and "reduce_range" in self._honoured():
            here = any(target.device == "cpu" for target in where.targets) and _onnx_int8.saturates(where.hardware.cpu_flags)
            changes["reduce_range"] = "on" if here and self.weight_type == "int8" else "off"
        return self.model_copy(update=changes)

    def _honoured(self) -> set[str]:
        """Fields that mean something to some schemes only, and do to this one."""
        return {name for name, schemes in HONOURED_BY.items() if self.scheme in schemes}

    def check(self, where: Where) -> list[str]:
        asked = (_about_scheme, _about_targets, _about_calibration, _about_options)
        return [text for objections in asked for text in objections(self, where)]

    def produces(self, where: Where) -> Format:
        return SCHEMES[self.scheme].produces if self.scheme in SCHEMES else where.format

    def data_roles(self) -> tuple[str, ...]:
        return ("calibration",) if self.mixed_precision or self._calibrates() else ()

    def _calibrates(self) -> bool:
        smooths = self.smooth is not None and "smooth" in self._honoured()
        return smooths or (self.scheme in SCHEMES and SCHEMES[self.scheme].calibrates)

    def library_names(self, where: Where) -> tuple[str, ...]:
        return SCHEMES[self.scheme].libraries if self.scheme in SCHEMES else self.libraries

    def run(self, model: ModelArtifact, ctx: Context) -> Outcome:
        spec = SCHEMES[self.scheme]
        if broken := non_finite.nan_weights(model.model_path):
            raise StepError(f"weights of the model to quantize hold NaN: {_outputs.listed(broken)}. They have no int8 or float16 form")
        out = ctx.out / "model"
        out.mkdir()
        with _outputs.scratch_folder(ctx.out) as scratch:
            made = spec.make(self, model, ctx, out, scratch)
        self._require(made, ModelArtifact(path=out, format=spec.produces, entry=made.entry))
        after = _outputs.size_of(out)
        differences = _outputs.largest_difference(made.outputs, made.reference)
        metrics = {
            **_layers.metrics(made.layers),
            "size_before_bytes": model.size_bytes,
            "size_after_bytes": after,
            "size_ratio": after / model.size_bytes,
            "output_cosine_mean": _outputs.cosine_mean(made.outputs, made.reference),
            "output_max_abs_difference": max(difference for difference, _ in differences.values()),
            **made.metrics,
        }
        facts = {"scheme": self.scheme.value, **made.facts}
        return Outcome(
            written=Written(format=spec.produces, entry=made.entry, facts={"precision": self.scheme.value}),
            metrics=metrics,
            tables=(_layers.table(made.layers), *made.tables),
            notes=(*made.notes, *_layers.notes(made.layers)),
            charts=made.charts,
            facts=facts,
        )

    def _require(self, made: Made, written: ModelArtifact) -> None:
        """Something was quantized, everything asked for was, and the result computes numbers."""
        quantized = [layer for layer in made.layers if layer.quantized]
        if not quantized:
            groups = "; ".join(note.text for note in _layers.notes(made.layers)) or "the graph has no layer with a weight"
            raise StepError(f"{self.scheme.value} changed nothing: {groups}")
        left = [layer for layer in made.layers if layer.unsupported]
        if left and self.on_unsupported == "error":
            groups = "; ".join(note.text for note in _layers.notes(left))
            raise StepError(
                f"{len(left)} of {len(made.layers)} layers could not be quantized: {groups}. Name them in `exclude_nodes`, or set"
                " `on_unsupported: skip` to leave them in float"
            )
        what = f"the {self.scheme.value} model"
        _outputs.require_finite(made.outputs, what, lambda run: non_finite.begins(written, made.feeds[run]))


def _about_scheme(step: Quantize, where: Where) -> list[str]:
    """bfloat16 has no step of its own here, and half precision needs hardware that computes in it."""
    if step.scheme is Scheme.BFLOAT16:
        return [
            "scheme bfloat16 is not a change of the model here: ONNX Runtime has no bfloat16 kernels for CPUs. OpenVINO and torch"
            " compute in it themselves: leave this step out and set `inference_precision: bf16` on a target with `runtime: openvino`"
        ]
    slow = [t.name for t in where.targets if t.device == "cpu" and t.runtime.runtime == "onnxruntime"]
    if step.scheme is Scheme.FLOAT16 and slow:
        return [
            f"scheme float16 is slower than float32 on {', '.join(slow)}: ONNX Runtime has next to no float16 kernels for CPUs and"
            " converts back and forth. Use int8-dynamic there, or a gpu target"
        ]
    return []


def _about_targets(step: Quantize, where: Where) -> list[str]:
    """A scheme whose result a target cannot run, or runs without gain."""
    objections = []
    for target in where.targets:
        runtime = target.runtime.runtime
        if step.scheme is Scheme.OPENVINO_INT8 and runtime not in ("openvino", "null"):
            objections.append(
                f"scheme openvino-int8 writes an OpenVINO model, which {target.name} ({runtime}) cannot run; int8-static runs on both"
            )
        if step.scheme is Scheme.INT8_DYNAMIC and target.device != "cpu":
            objections.append(
                f"scheme int8-dynamic has no GPU kernels, and {target.name} is one; use float16, or int8-static with `runtime: tensorrt`"
            )
        if step.scheme is Scheme.INT8_STATIC and step.activation_type == "int8" and _is_x86_onnxruntime(target, where):
            objections.append(
                "activation_type int8 has no int8 kernel in ONNX Runtime on x86 CPUs (measured 15 times slower than uint8)"
                f" and {target.name} is one; use uint8"
            )
        if step.scheme in IN_BLOCKS and runtime not in ("onnxruntime", "null"):
            objections.append(
                f"scheme {step.scheme.value} writes operators that only ONNX Runtime has, and the target {target.name} runs {runtime};"
                " int8-static runs on both"
            )
        if step.fuse == "on" and runtime not in ("onnxruntime", "null"):
            objections.append(
                f"fuse: on writes operators that only ONNX Runtime has, and the target {target.name} runs {runtime}; use auto or off"
            )
    return objections


def _about_calibration(step: Quantize, where: Where) -> list[str]:
    """Keys of `calibration` that the scheme cannot honour, of the schemes that read calibration rows."""
    given, default = step.calibration, Calibration()
    objections = []
    match step.scheme:
        case Scheme.INT8_DYNAMIC if step.smooth is None and given != default:
            objections.append("calibration is for `smooth` with int8-dynamic, whose activations are measured at every run; remove it")
        case Scheme.INT8_DYNAMIC if (given.method, given.percentile) != (default.method, default.percentile):
            objections.append("calibration.method and percentile are of fixed ranges, which int8-dynamic has not; remove them")
        case Scheme.OPENVINO_INT8:
            if given.method != default.method:
                objections.append(f"calibration.method {given.method} is for int8-static; openvino-int8 has NNCF's minmax only")
            if given.percentile != default.percentile:
                objections.append("calibration.percentile is for int8-static with calibration.method percentile; remove it")
        case Scheme.INT8_STATIC if given.percentile != default.percentile and given.method != "percentile":
            objections.append(f"calibration.percentile is for calibration.method percentile, not for {given.method}; remove it")
    return objections


def _about_options(step: Quantize, where: Where) -> list[str]:
    """Fields that the scheme cannot honour."""
    objections = []
    if step.fuse == "on" and step.scheme is not Scheme.INT8_DYNAMIC:
        objections.append(
            f"fuse: on works with int8-dynamic only, not with {step.scheme.value}: ONNX Runtime has no kernel for a fused Attention"
            " with static ranges and multiplies it in float, slower than not quantized at all. Use auto or off"
        )
    for name, schemes in HONOURED_BY.items():
        if step.scheme not in schemes and getattr(step, name) != type(step).model_fields[name].default:
            objections.append(f"{name} works with {' and '.join(schemes)}, not with {step.scheme.value}; remove it")
    accepted = SCHEMES[step.scheme].kinds if step.scheme in SCHEMES else ()
    for kind in step.operator_types or ():
        if not accepted:
            objections.append(f"operator_types cannot be chosen with {step.scheme.value}; remove it")
            break
        if kind not in accepted:
            hint = did_you_mean(kind, accepted)
            objections.append(
                f"{step.scheme.value} cannot quantize the operator {kind!r}{hint or '.'} It knows {', '.join(sorted(accepted))}"
            )
    return objections


def _all_run_on(where: Where, runtime: str) -> bool:
    return all(target.runtime.runtime == runtime and target.device == "cpu" for target in where.targets)


def _is_tensorrt(target: Target) -> bool:
    return target.runtime.runtime == "tensorrt" or getattr(target.runtime, "execution_provider", "") == "tensorrt"


def _is_x86_onnxruntime(target: Target, where: Where) -> bool:
    return target.device == "cpu" and target.runtime.runtime == "onnxruntime" and "avx2" in where.hardware.cpu_flags

