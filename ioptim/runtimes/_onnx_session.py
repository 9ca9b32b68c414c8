"""Sessions of ONNX Runtime: creating one, running it by names, and what it says of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ioptim.core.artifact import ModelArtifact, TensorSpec
from ioptim.errors import StepError, UnavailableError

if TYPE_CHECKING:
    import numpy as np


class OnnxSession:
    """An `InferenceSession` with names."""

    def __init__(self, session: Any, model: ModelArtifact, facts: Mapping[str, Any]) -> None:
        self._session = session
        self._names = [value.name for value in session.get_outputs()]
        self.inputs = model.inputs or tuple(spec_of(value) for value in session.get_inputs())
        self.outputs = model.outputs or tuple(spec_of(value) for value in session.get_outputs())
        self.facts = facts

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self._names, run(self._session, self._names, feeds), strict=True))

    def close(self) -> None:
        self._session = None


def library() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UnavailableError(f"onnxruntime cannot be imported ({error}); install it with: pip install 'ioptim[cpu]'") from error
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def create(path: Path, options: Any, providers: list[Any], left_out: tuple[str, ...] = ()) -> Any:
    """A session; the optimizers named in `left_out` do not touch its graph."""
    ort = library()
    try:
        # Without this, Python's wrapper would start again on the CPU by itself when a provider fails.
        return ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0, disabled_optimizers=list(left_out))
    except _refusals() as error:
        raise StepError(f"ONNX Runtime {ort.__version__} refused {path}: {error}") from error


def run(session: Any, names: list[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    try:
        return session.run(names, feeds)  # type: ignore[no-any-return]
    except _refusals() as error:
        fed = ", ".join(f"{name} {list(array.shape)} {array.dtype}" for name, array in feeds.items())
        raise StepError(f"ONNX Runtime failed on {fed}: {error}") from error


def _refusals() -> tuple[type[Exception], ...]:
    """Every error class of ONNX Runtime (they share no base of their own), and what its Python wrapper raises for wrong names."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = [value for value in vars(state).values() if isinstance(value, type)]
    return (ValueError, *(kind for kind in kinds if issubclass(kind, Exception)))


def nodes_by_provider(session: Any) -> dict[str, Counter[str]] | None:
    """Operators by the execution provider that ONNX Runtime placed them on; None before 1.24, which does not tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    found: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return found


def spec_of(value: Any) -> TensorSpec:
    """From `tensor(int64)` and ["batch", 3]."""
    names = {"float": "float32", "double": "float64"}
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(axis if isinstance(axis, int) else str(axis or f"axis_{i}") for i, axis in enumerate(value.shape))
    return TensorSpec(name=value.name, dtype=names.get(kind, kind), shape=shape)
