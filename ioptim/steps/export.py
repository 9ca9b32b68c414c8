"""From one format to the next: torch to ONNX, ONNX to OpenVINO. Put in by the plan where formats differ."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ioptim import non_finite
from ioptim.core.artifact import Format, ModelArtifact
from ioptim.core.step import Context, Level, Note, Outcome, Step, Where, Written
from ioptim.errors import StepError
from ioptim.steps import _outputs

if TYPE_CHECKING:
    import torch

    from ioptim.core.task import Feeds

ONNX_ENTRY = "model.onnx"
IR_ENTRY = "model.xml"

DEFAULT_OPSET = 18
"""The newest that the fusions of onnxruntime.transformers know: from 20 on, gelu is one operator, and BiasGelu does not form."""


class Export(Step):
    """Write the same float model in another format, and compare its outputs with the model it came from on several shapes.

    torch to ONNX calls `torch.onnx.export`: the dynamo engine, or with `engine: auto` the TorchScript engine where dynamo fails,
    which is reported. Axes with a name in the artifact's input specs stay variable under that name. ONNX to OpenVINO calls
    `openvino.convert_model`; weights stay float32.

    Raises:
        StepError: the library cannot export the model; an output differs by more than `atol` + `rtol` x its largest value.
    """

    step: Literal["export"] = "export"
    accepts = frozenset({Format.TORCH, Format.ONNX})
    libraries = ("onnx", "onnxruntime", "numpy")

    to: Format = Field(Format.ONNX, description="format to write: onnx from torch, openvino from onnx")
    opset: int | None = Field(None, ge=17, le=23, description=f"ONNX operator set; {DEFAULT_OPSET} when left out, which fusions know best")
    engine: Literal["auto", "dynamo", "torchscript"] = Field(
        "auto", description="how torch captures the graph; auto is dynamo, and torchscript with a warning where that fails"
    )
    atol: float = Field(1e-4, ge=0, description="difference that any output may have")
    rtol: float = Field(1e-4, ge=0, description="further difference, as a fraction of the output's largest value")

    def check(self, where: Where) -> list[str]:
        if (where.format, self.to) in _WAYS:
            return []
        ways = ", ".join(f"{a} to {b}" for a, b in _WAYS)
        return [f"export cannot turn {where.format} into {self.to}; it knows {ways}"]

    def produces(self, where: Where) -> Format:
        return self.to

    def library_names(self, where: Where) -> tuple[str, ...]:
        return (*(("torch", "onnxscript") if where.format is Format.TORCH else ("openvino",)), *self.libraries)

    def run(self, model: ModelArtifact, ctx: Context) -> Outcome:
        (ctx.out / "model").mkdir()
        return _WAYS[model.format, self.to](self, model, ctx)


# torch to ONNX


def _torch_to_onnx(step: Export, model: ModelArtifact, ctx: Context) -> Outcome:
    from ioptim import torch_model
    from ioptim.onnx_graph import count_ops

    path = ctx.out / "model" / ONNX_ENTRY
    ctx.progress(0.0, "loading the module")
    module = torch_model.load_module(model)
    ctx.progress(0.2, "exporting")
    engine, notes = _write(step, module, model, ctx, path)
    ctx.progress(0.8, "comparing outputs")
    feeds = _outputs.trial_feeds(model, ctx)
    reference = [{k: v.numpy() for k, v in torch_model.call(module, feed, model.outputs).items()} for feed in feeds]
    figures = _compare(step, model, feeds, _outputs.run_onnx(path, feeds, ctx.hardware.threads), reference)
    _, outputs = _outputs.specs_of(path, model.inputs)
    ops = count_ops(path)
    opset = step.opset or DEFAULT_OPSET
    return Outcome(
        written=Written(format=Format.ONNX, entry=ONNX_ENTRY, inputs=model.inputs, outputs=outputs, facts={"opset": opset}),
        metrics={**figures, "nodes": sum(ops.values()), "opset": opset},
        notes=notes,
        facts={"engine": engine},
    )


def _write(step: Export, module: torch.nn.Module, model: ModelArtifact, ctx: Context, path: Path) -> tuple[str, tuple[Note, ...]]:
    """Export with the engine asked for; the name of the one that did it."""
    example = ctx.task.dummy_feeds(model, *_outputs.SHAPES[0])
    engines = {"auto": ("dynamo", "torchscript")}.get(step.engine, (step.engine,))
    failures: list[str] = []
    for engine in engines:
        try:
            _ENGINES[engine](_named(module, model), model, example, path, step.opset or DEFAULT_OPSET)
        except _export_errors() as error:
            failures.append(f"{engine}: {type(error).__name__}: {_outputs.one_line(error)}")
            continue
        why = f"exported by the TorchScript engine, since dynamo failed ({failures[0]})" if failures else ""
        return engine, ((Note(text=why, level=Level.WARNING),) if why else ())
    raise StepError(f"torch.onnx.export cannot export {type(module).__name__}: {'; '.join(failures)}")


def _named(module: torch.nn.Module, model: ModelArtifact) -> torch.nn.Module:
    """A module that takes the artifact's inputs in order and returns its outputs in order."""
    import torch

    from ioptim import torch_model

    names = [spec.name for spec in model.inputs]

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            result = self.module(**dict(zip(names, tensors, strict=True)))
            return tuple(torch_model.named_outputs(result, model.outputs).values())

    return Named().eval()


def _by_dynamo(module: torch.nn.Module, model: ModelArtifact, example: Feeds, path: Path, opset: int) -> None:
    import torch

    dims = {axis: torch.export.Dim(axis) for spec in model.inputs for axis in spec.shape if isinstance(axis, str)}
    shapes = tuple({i: dims[axis] for i, axis in enumerate(spec.shape) if isinstance(axis, str)} for spec in model.inputs)
    with _quiet():
        torch.onnx.export(
            module,
            _arguments(model, example),
            path,
            input_names=[spec.name for spec in model.inputs],
            output_names=[spec.name for spec in model.outputs],
            opset_version=opset,
            dynamo=True,
            dynamic_shapes=(shapes,),
            external_data=_is_large(module),
            optimize=True,
            verbose=False,
        )


def _by_torchscript(module: torch.nn.Module, model: ModelArtifact, example: Feeds, path: Path, opset: int) -> None:
    import torch

    axes = {spec.name: {i: a for i, a in enumerate(spec.shape) if isinstance(a, str)} for spec in (*model.inputs, *model.outputs)}
    with _quiet():
        torch.onnx.export(
            module,
            _arguments(model, example),
            str(path),
            input_names=[spec.name for spec in model.inputs],
            output_names=[spec.name for spec in model.outputs],
            opset_version=min(opset, 20),
            dynamo=False,
            dynamic_axes={name: named for name, named in axes.items() if named},
        )


_ENGINES = {"dynamo": _by_dynamo, "torchscript": _by_torchscript}


def _arguments(model: ModelArtifact, example: Feeds) -> tuple[torch.Tensor, ...]:
    import torch

    return tuple(torch.from_numpy(example[spec.name]) for spec in model.inputs)


def _is_large(module: torch.nn.Module) -> bool:
    """Whether the weights outgrow one protobuf file and go into a file beside it."""
    from ioptim.onnx_graph import PROTOBUF_LIMIT_BYTES

    tensors = (*module.parameters(), *module.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) > PROTOBUF_LIMIT_BYTES * 9 // 10


def _export_errors() -> tuple[type[Exception], ...]:
    """What the engines raise for a model that they cannot capture or translate."""
    import torch

    return (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings (the outputs are compared, which is what they warn about), and without the garbage
    collector, which in a graph of millions of small objects finds nothing and takes a tenth of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if collecting:
            gc.enable()


# ONNX to OpenVINO


def _onnx_to_openvino(step: Export, model: ModelArtifact, ctx: Context) -> Outcome:
    from ioptim.environment import quiet_environment

    quiet_environment()  # no telemetry, whoever imports it first
    import openvino

    path = ctx.out / "model" / IR_ENTRY
    ctx.progress(0.0, "converting")
    try:
        graph = openvino.convert_model(model.model_path)
        openvino.save_model(graph, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise StepError(f"openvino.convert_model cannot convert {model.entry}: {_outputs.one_line(error)}") from error
    ctx.progress(0.6, "comparing outputs")
    feeds = _outputs.trial_feeds(model, ctx)
    reference = _outputs.run_onnx(model.model_path, feeds, ctx.hardware.threads)
    figures = _compare(step, model, feeds, _outputs.run_openvino(path, feeds), reference)
    return Outcome(
        written=Written(format=Format.OPENVINO, entry=IR_ENTRY),
        metrics={**figures, "nodes": float(len(graph.get_ops()))},
        facts={"engine": "openvino.convert_model"},
    )


def _compare(
    step: Export,
    model: ModelArtifact,
    feeds: Sequence[Feeds],
    outputs: Sequence[Mapping[str, Any]],
    reference: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
    _outputs.require_finite(reference, "the model to export", lambda run: non_finite.begins(model, feeds[run]))
    _outputs.require_finite(outputs, "the exported model")
    found = _outputs.largest_difference(outputs, reference)
    for name, (difference, largest) in found.items():
        allowed = step.atol + step.rtol * largest
        if not difference <= allowed:
            raise StepError(
                f"the exported model's output {name!r} differs from the source's by {difference:.3g}, and at most {allowed:.3g} is allowed"
                f" (atol {step.atol:g} + rtol {step.rtol:g} x {largest:.3g}). Compared on {_shapes()}"
            )
    return {"max_abs_difference": max(difference for difference, _ in found.values())}


def _shapes() -> str:
    return ", ".join(f"batch {batch} x length {length}" for batch, length in _outputs.SHAPES)


_WAYS = {(Format.TORCH, Format.ONNX): _torch_to_onnx, (Format.ONNX, Format.OPENVINO): _onnx_to_openvino}
"""Every conversion there is."""
