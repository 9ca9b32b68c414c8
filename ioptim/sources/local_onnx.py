"""A model in an .onnx file of this machine."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ioptim.core.artifact import Format, TensorSpec, hash_file
from ioptim.core.source import ModelSource, ModelSpec
from ioptim.core.step import Outcome, Written
from ioptim.core.task import Task
from ioptim.errors import PlanError, StepError
from ioptim.onnx_graph import load_graph
from ioptim.sources._assets import assets_in, copy_assets
from ioptim.sources._onnx_head import NotOnnxError, check_onnx
from ioptim.sources._paths import located, missing, outside, unreadable

if TYPE_CHECKING:
    import onnx

ENTRY = "model.onnx"


class OnnxModel(ModelSource):
    """One .onnx file, the files its weights lie in, and the tokenizer and config.json beside it when there are any."""

    libraries = ("onnx", "onnxruntime")

    def __init__(self, spec: ModelSpec, base: Path, root: Path | None) -> None:
        self.spec = spec
        self.root = root
        self.path = located(spec.source, base)

    def check(self) -> list[str]:
        """A path that is not there, leaves the root or may not be read, a file beside it too; not ONNX, cut off. Reads a few bytes."""
        if objections := outside(self.path, self.root):
            return objections
        if not self.path.is_file():
            return [missing(self.path, "file")]
        beside = [self.path.parent / name for name in assets_in(self.path.parent)]
        if objections := [text for path in beside for text in outside(path, self.root)] + unreadable([self.path, *beside]):
            return objections
        try:
            check_onnx(self.path)
        except NotOnnxError as error:
            return [str(error)]
        if importlib.util.find_spec("onnx") is None:
            return ["an .onnx model needs onnx; install it with: pip install 'ioptim[cpu]'"]
        return []

    def identity(self) -> Mapping[str, str]:
        """Digests of the file, of its external weights and of the assets beside it."""
        if objections := self.check():
            raise PlanError("; ".join(objections))
        try:
            names = self._external()
        except StepError as error:
            raise PlanError(str(error)) from error
        found = {ENTRY: hash_file(self.path)}
        return found | {name: hash_file(self.path.parent / name) for name in [*names, *assets_in(self.path.parent)]}

    def fetch(self, out: Path, task: Task) -> Outcome:
        """Copy it and read its inputs and outputs; the weights are checked against the graph, not loaded."""
        if objections := self.check():
            raise StepError("; ".join(objections))
        import onnx

        folder = out / "model"
        folder.mkdir(parents=True)
        external = self._external()
        for name in external:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.path.parent / name, folder / name)
        shutil.copyfile(self.path, folder / ENTRY)
        assets = copy_assets(self.path.parent, folder)
        try:
            onnx.checker.check_model(str(folder / ENTRY))
        except onnx.checker.ValidationError as error:
            text = " ".join(str(error).split())[:400]
            raise StepError(f"{self.path} is not a valid ONNX model: {text}") from error
        graph = self._graph.graph
        weights = {tensor.name for tensor in graph.initializer}
        inputs = tuple(_spec(value) for value in graph.input if value.name not in weights)
        facts: dict[str, Any] = {
            "parameters": sum(_size(tensor) for tensor in graph.initializer),
            "opset": max((entry.version for entry in self._graph.opset_import if entry.domain in ("", "ai.onnx")), default=0),
        }
        return Outcome(
            written=Written(
                format=Format.ONNX,
                entry=ENTRY,
                inputs=inputs,
                outputs=tuple(_spec(value) for value in graph.output),
                assets=assets,
                facts=facts,
            ),
            metrics={"parameters": float(facts["parameters"])},
        )

    @cached_property
    def _graph(self) -> onnx.ModelProto:
        return load_graph(self.path, weights=False)

    def _external(self) -> list[str]:
        """Files beside the model that its weights lie in.

        Raises:
            StepError: one is not there, or lies outside the model's folder.
        """
        from onnx.external_data_helper import ExternalDataInfo, uses_external_data

        tensors = (tensor for tensor in self._graph.graph.initializer if uses_external_data(tensor))
        names = sorted({ExternalDataInfo(tensor).location for tensor in tensors})
        for name in names:
            path = self.path.parent / name
            if not path.resolve().is_relative_to(self.path.parent.resolve()):
                raise StepError(f"{self.path} keeps weights in {name!r}, outside its own folder; that is not read")
            if not path.is_file():
                raise StepError(f"{self.path} keeps weights in {name!r}, which is not beside it. Copy both files")
            if objections := unreadable([path]):
                raise StepError(objections[0])
        return names


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """An axis without a number gets the name that the file gives it, else one of its own."""
    import onnx

    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or tensor.elem_type == onnx.TensorProto.UNDEFINED:
        raise StepError(f"{value.name!r} is {value.type.WhichOneof('value') or 'of no type'}; only tensors can be fed and read")
    shape: list[int | str] = []
    for axis, dim in enumerate(tensor.shape.dim):
        shape.append(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param or f"{value.name}_{axis}")
    return TensorSpec(name=value.name, dtype=str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape=tuple(shape))


def _size(tensor: onnx.TensorProto) -> int:
    size = 1
    for dim in tensor.dims:
        size *= dim
    return size
