"""Running a model that a step has just written, beside the one it came from, and telling how far apart they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ioptim.errors import StepError

if TYPE_CHECKING:
    import numpy as np

    from ioptim.core.artifact import ModelArtifact, TensorSpec
    from ioptim.core.step import Context
    from ioptim.core.task import Feeds, Outputs

SHAPES = ((2, 16), (1, 7), (3, 24))
"""Batch and length of the feeds that two models are compared on; the batch is never the length."""


def trial_feeds(model: ModelArtifact, ctx: Context) -> list[Feeds]:
    """Random feeds of several shapes; an axis that the model has fixed stays as it is."""
    fixed = next((spec.shape[0] for spec in model.inputs if spec.shape and isinstance(spec.shape[0], int)), None)
    return [ctx.task.dummy_feeds(model, fixed or batch, length) for batch, length in SHAPES]


def run_onnx(path: Path, feeds: Sequence[Feeds], threads: int) -> list[dict[str, np.ndarray]]:
    """Outputs of an ONNX file on ONNX Runtime's CPU provider, by name.

    Raises:
        StepError: the file does not load or fails on the feeds, with the library's own words.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    kinds = (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.NotImplemented, errors.RuntimeException)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs = {value.name for value in session.get_inputs()}
        names = [value.name for value in session.get_outputs()]
        runs = [session.run(names, {name: array for name, array in feed.items() if name in inputs}) for feed in feeds]
    except kinds as error:
        raise StepError(f"ONNX Runtime cannot run {path.name}: {one_line(error)}") from error
    return [dict(zip(names, values, strict=True)) for values in runs]


def run_openvino(path: Path, feeds: Sequence[Feeds]) -> list[dict[str, np.ndarray]]:
    """Outputs of an IR (or an ONNX file) on OpenVINO's CPU plugin in float32, by name."""
    import openvino

    try:
        compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        inputs = {name for port in compiled.inputs for name in port.names}
        runs = [compiled({name: array for name, array in feed.items() if name in inputs}) for feed in feeds]
    except RuntimeError as error:
        raise StepError(f"OpenVINO cannot run {path.name}: {one_line(error)}") from error
    return [{port.get_any_name(): run[port] for port in compiled.outputs} for run in runs]


def require_finite(outputs: Sequence[Outputs], what: str, begins: Callable[[int], str] = lambda _: "") -> None:
    """Refuse a model whose outputs are not numbers. `begins` says in which layer it begins on the feeds of run i, or nothing."""
    import numpy as np

    for i, output in enumerate(outputs):
        for name, array in output.items():
            if not np.isfinite(array).all():
                raise StepError(f"the output {name!r} of {what} holds NaN or infinity on a valid input{begins(i)}")


def cosine_mean(outputs: Sequence[Outputs], reference: Sequence[Outputs]) -> float:
    """Mean cosine between two models' outputs, each output of each run as one vector; 0 where one is zero and one is not."""
    pairs = [(got[name], wanted[name]) for got, wanted in zip(outputs, reference, strict=True) for name in wanted]
    return math.fsum(_cosine(got, wanted) for got, wanted in pairs) / len(pairs)


def largest_difference(outputs: Sequence[Outputs], reference: Sequence[Outputs]) -> dict[str, tuple[float, float]]:
    """By output: the largest absolute difference over all runs, and the largest absolute value of the reference.

    Raises:
        StepError: an output is missing or has another shape.
    """
    import numpy as np

    found: dict[str, tuple[float, float]] = {}
    for got, wanted in zip(outputs, reference, strict=True):
        for name, value in wanted.items():
            if name not in got:
                raise StepError(f"the output {name!r} is gone; there are {', '.join(got)}")
            if got[name].shape != value.shape:
                raise StepError(f"the output {name!r} has the shape {list(got[name].shape)}; it was {list(value.shape)} before")
            difference, largest = found.get(name, (0.0, 0.0))
            # numpy's maximum: a NaN stays one, and is then within no tolerance.
            found[name] = (float(np.maximum(difference, _largest(got[name] - value))), float(np.maximum(largest, _largest(value))))
    return found


def specs_of(path: Path, inputs: Sequence[TensorSpec]) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Input and output specs of an ONNX file; inputs that are in `inputs` are taken from there."""
    from ioptim.onnx_graph import load_graph

    graph = load_graph(path, weights=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    known = {spec.name: spec for spec in inputs}
    found = tuple(known.get(value.name) or _spec(value) for value in graph.input if value.name not in weights)
    return found, tuple(_spec(value) for value in graph.output)


def _spec(value: object) -> TensorSpec:
    from onnx import helper

    from ioptim.core.artifact import TensorSpec

    kind = value.type.tensor_type  # type: ignore[attr-defined]
    name: str = value.name  # type: ignore[attr-defined]
    shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or f"{name}_{i}" for i, d in enumerate(kind.shape.dim))
    return TensorSpec(name=name, dtype=str(helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape=shape)


@contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """A folder for intermediate files, the libraries' own included; gone afterwards, so that it is never part of a result."""
    import shutil
    import tempfile

    folder, before = out / "scratch", tempfile.tempdir
    folder.mkdir()
    tempfile.tempdir = str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def one_line(error: BaseException, limit: int = 400) -> str:
    """An error's text without its line breaks, cut where a library writes pages."""
    return " ".join(str(error).split())[:limit]


def listed(names: Sequence[str], limit: int = 3) -> str:
    """A few names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more}"


def _largest(array: np.ndarray) -> float:
    return float(abs(array).max()) if array.size else 0.0


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    import numpy as np

    x: np.ndarray = a.astype("float64").ravel()
    y: np.ndarray = b.astype("float64").ravel()
    length = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / length if length else float(not x.any() and not y.any())
